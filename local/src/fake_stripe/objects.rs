//! The objects in SQLite: a file when the stack keeps its data, else a database in memory.
//!
//! A stack that keeps its accounts must keep the fake Stripe too. Otherwise reconciliation would find every
//! subscription missing. With a hundred thousand objects, a page of a list is read from an index.
//!
//! An error of SQLite (for example a full disk) is logged, and the object is treated as absent: this Stripe
//! is for tests and for trying things out.
//!
//! | table | columns |
//! |---|---|
//! | `objects` | `id`, `kind` (the object's field `object`), `updated`, `created` and `serial` (the place in lists), `delivered`, `subject` (the customer, or the invoice of an invoice payment), `text` (the JSON as it was received) |
//! | `inside` | `id`, `entries` (JSON): the full list inside an object |

use std::path::Path;

use anyhow::Context as _;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::Value;

use super::Stored;

/// Grows with each change of the schema. The objects of an older file are dropped.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS objects (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        updated INTEGER NOT NULL,
        created INTEGER NOT NULL,
        serial INTEGER NOT NULL,
        delivered INTEGER NOT NULL,
        subject TEXT,
        text TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS objects_by_place ON objects (kind, created, serial);
    CREATE INDEX IF NOT EXISTS objects_by_subject ON objects (kind, subject, created, serial) WHERE subject IS NOT NULL;
    CREATE TABLE IF NOT EXISTS inside (id TEXT PRIMARY KEY, entries TEXT NOT NULL) STRICT;
";

/// Which objects of a kind a list contains, and where it starts.
pub(super) struct ListQuery<'a> {
    pub(super) kind: &'a str,
    /// The value of the column `subject`.
    pub(super) subject: Option<&'a str>,
    pub(super) delivered: Option<bool>,
    /// The first and the last `created`, both included.
    pub(super) within: (i64, i64),
    pub(super) from: ListStart,
}

/// The place before the first object of a list, and the direction.
#[derive(Clone, Copy)]
pub(super) enum ListStart {
    /// Objects older than this place, newest first.
    Before((i64, i64)),
    /// Objects newer than this place, oldest first.
    After((i64, i64)),
}

impl<'a> ListQuery<'a> {
    /// All objects of a kind, newest first.
    pub(super) fn of(kind: &'a str) -> Self {
        Self {
            kind,
            subject: None,
            delivered: None,
            within: (i64::MIN, i64::MAX),
            from: ListStart::Before((i64::MAX, i64::MAX)),
        }
    }
}

/// The open database.
pub(super) struct Objects {
    db: Connection,
}

impl Default for Objects {
    fn default() -> Self {
        Self::open(None).expect("a database in memory needs nothing but memory")
    }
}

impl Objects {
    /// Opens the file, or a database in memory.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let db = match path {
            Some(path) => {
                Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?
            }
            None => Connection::open_in_memory()?,
        };
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.set_prepared_statement_cache_capacity(64);
        if db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? != SCHEMA_VERSION {
            db.execute_batch("DROP TABLE IF EXISTS objects; DROP TABLE IF EXISTS inside;")?;
            db.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        db.execute_batch(SCHEMA).context("cannot create the tables of the fake Stripe")?;
        Ok(Self { db })
    }

    /// The largest serial number in use.
    pub(super) fn last_serial(&self) -> i64 {
        log_error(
            self.db.query_row("SELECT max(serial) FROM objects", [], |row| row.get::<_, Option<i64>>(0)),
        )
        .unwrap_or(0)
    }

    /// The object with this id.
    pub(super) fn get(&self, id: &str) -> Option<Stored> {
        let get = || {
            let mut select = self.db.prepare_cached(
                "SELECT kind, updated, created, serial, delivered, text FROM objects WHERE id = ?1",
            )?;
            select.query_row([id], stored).optional()
        };
        log_error(get())
    }

    /// The time of the last update of an object, and its place in lists.
    pub(super) fn place(&self, id: &str) -> Option<(i64, (i64, i64))> {
        let get = || {
            let mut select =
                self.db.prepare_cached("SELECT updated, created, serial FROM objects WHERE id = ?1")?;
            select.query_row([id], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).optional()
        };
        log_error(get())
    }

    /// Stores an object in place of the earlier version.
    pub(super) fn put(&self, id: &str, stored: &Stored) {
        let subject = if stored.kind == "invoice_payment" {
            &stored.value["invoice"]
        } else {
            &stored.value["customer"]
        };
        let put = || {
            let mut put = self.db.prepare_cached(
                "INSERT INTO objects (id, kind, updated, created, serial, delivered, subject, text) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET kind = ?2, updated = ?3, created = ?4, serial = ?5, delivered = ?6, subject = ?7, text = ?8",
            )?;
            let (created, serial) = stored.place;
            put.execute(params![
                id,
                stored.kind,
                stored.updated,
                created,
                serial,
                stored.delivered,
                subject.as_str(),
                stored.text
            ])
        };
        log_error(put());
    }

    /// Marks an event as delivered to a webhook.
    pub(super) fn deliver(&self, id: &str) {
        log_error(
            self.db
                .prepare_cached("UPDATE objects SET delivered = 1 WHERE id = ?1")
                .and_then(|mut update| update.execute([id])),
        );
    }

    /// Removes an object.
    pub(super) fn remove(&self, id: &str) {
        log_error(self.db.execute("DELETE FROM objects WHERE id = ?1", [id]));
    }

    /// Calls `visit` with one object of the list after the other, as long as it returns true.
    pub(super) fn visit(&self, query: &ListQuery<'_>, mut visit: impl FnMut(Stored) -> bool) {
        // One bound on each side, so that SQLite starts reading at the right place of the index.
        let (first, last) = query.within;
        let ((created, serial), end, order) = match query.from {
            ListStart::Before(place) => (
                place.min((last, i64::MAX)),
                first,
                "(created, serial) < (?4, ?5) AND created >= ?6 ORDER BY created DESC, serial DESC",
            ),
            ListStart::After(place) => (
                place.max((first, i64::MIN)),
                last,
                "(created, serial) > (?4, ?5) AND created <= ?6 ORDER BY created, serial",
            ),
        };
        // A separate statement for each index, so that SQLite uses that index.
        let subject = if query.subject.is_some() { "subject = ?2" } else { "?2 IS NULL" };
        let select = format!(
            "SELECT kind, updated, created, serial, delivered, text FROM objects
             WHERE kind = ?1 AND {subject} AND (?3 IS NULL OR delivered = ?3) AND {order}"
        );
        let mut each = || {
            let mut select = self.db.prepare_cached(&select)?;
            let mut rows =
                select.query(params![query.kind, query.subject, query.delivered, created, serial, end])?;
            while let Some(row) = rows.next()? {
                if !visit(stored(row)?) {
                    break;
                }
            }
            Ok(())
        };
        log_error(each());
    }

    /// The full list inside an object, if it was set.
    pub(super) fn inside(&self, id: &str) -> Option<Vec<Value>> {
        let get = || {
            let mut select = self.db.prepare_cached("SELECT entries FROM inside WHERE id = ?1")?;
            select.query_row([id], |row| row.get::<_, String>(0)).optional()
        };
        log_error(get()).and_then(|entries| serde_json::from_str(&entries).ok())
    }

    /// Sets the full list inside an object.
    pub(super) fn put_inside(&self, id: &str, entries: Vec<Value>) {
        log_error(self.db.execute(
            "INSERT OR REPLACE INTO inside (id, entries) VALUES (?1, ?2)",
            params![id, Value::Array(entries).to_string()],
        ));
    }

    /// Starts a transaction. [`Self::commit`] ends it.
    pub(super) fn begin(&self) {
        log_error(self.db.execute_batch("BEGIN"));
    }

    /// Ends the transaction.
    pub(super) fn commit(&self) {
        log_error(self.db.execute_batch("COMMIT"));
    }
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let text: String = row.get(5)?;
    let value = serde_json::from_str(&text).unwrap_or_default();
    Ok(Stored {
        kind: row.get(0)?,
        updated: row.get(1)?,
        place: (row.get(2)?, row.get(3)?),
        delivered: row.get(4)?,
        value,
        text,
    })
}

fn log_error<T: Default>(result: rusqlite::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "the store of the fake Stripe failed");
        T::default()
    })
}
