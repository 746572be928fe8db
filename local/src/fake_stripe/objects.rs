//! What the fake knows, in SQLite: a file when the stack keeps its data, else a database in memory.
//!
//! A stack that keeps its accounts keeps its Stripe too: else reconciliation would find every subscription
//! missing there. And a hundred thousand objects are neither memory of the process nor a list to be walked: a
//! page is read from an index, from where the last one ended.
//!
//! An error of SQLite (a full disk) is said, and what it was about is absent: this Stripe is for tests and
//! for trying things out.
//!
//! | table | columns |
//! |---|---|
//! | `objects` | `id`, `kind` (`object` of the object), `told`, `created` and `heard` (its place in lists), `delivered`, `about` (the customer; of an invoice payment the invoice), `text` (as it was told) |
//! | `inside` | `id`, `entries` (JSON): what is inside an object beyond what it shows |

use std::path::Path;

use anyhow::Context as _;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::Value;

use super::Stored;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS objects (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        told INTEGER NOT NULL,
        created INTEGER NOT NULL,
        heard INTEGER NOT NULL,
        delivered INTEGER NOT NULL,
        about TEXT,
        text TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS objects_by_place ON objects (kind, created, heard);
    CREATE INDEX IF NOT EXISTS objects_by_subject ON objects (kind, about, created, heard) WHERE about IS NOT NULL;
    CREATE TABLE IF NOT EXISTS inside (id TEXT PRIMARY KEY, entries TEXT NOT NULL) STRICT;
";

/// Where a list begins, and which of a kind are looked at.
pub(super) struct Walk<'a> {
    pub(super) kind: &'a str,
    /// See the column `about`.
    pub(super) about: Option<&'a str>,
    pub(super) delivered: Option<bool>,
    /// `created`, both ends included.
    pub(super) within: (i64, i64),
    pub(super) from: From,
}

/// The end of a list at which a walk begins, and its direction.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// Older ones than this place, newest first.
    Newest((i64, i64)),
    /// Newer ones than this place, oldest first.
    Oldest((i64, i64)),
}

impl<'a> Walk<'a> {
    /// All of a kind, newest first.
    pub(super) fn of(kind: &'a str) -> Self {
        Self {
            kind,
            about: None,
            delivered: None,
            within: (i64::MIN, i64::MAX),
            from: From::Newest((i64::MAX, i64::MAX)),
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
        db.execute_batch(SCHEMA).context("cannot create the tables of the fake Stripe")?;
        Ok(Self { db })
    }

    /// How many things were heard of so far.
    pub(super) fn heard(&self) -> i64 {
        said(self.db.query_row("SELECT max(heard) FROM objects", [], |row| row.get::<_, Option<i64>>(0)))
            .unwrap_or(0)
    }

    /// An object as it is.
    pub(super) fn get(&self, id: &str) -> Option<Stored> {
        let get = || {
            let mut select = self.db.prepare_cached(
                "SELECT kind, told, created, heard, delivered, text FROM objects WHERE id = ?1",
            )?;
            select.query_row([id], stored).optional()
        };
        said(get())
    }

    /// When an object was last told, and its place in lists.
    pub(super) fn place(&self, id: &str) -> Option<(i64, (i64, i64))> {
        let get = || {
            let mut select =
                self.db.prepare_cached("SELECT told, created, heard FROM objects WHERE id = ?1")?;
            select.query_row([id], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).optional()
        };
        said(get())
    }

    /// Makes an object be so.
    pub(super) fn put(&self, id: &str, stored: &Stored) {
        let about = if stored.kind == "invoice_payment" {
            &stored.value["invoice"]
        } else {
            &stored.value["customer"]
        };
        let put = || {
            let mut put = self.db.prepare_cached(
                "INSERT INTO objects (id, kind, told, created, heard, delivered, about, text) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET kind = ?2, told = ?3, created = ?4, heard = ?5, delivered = ?6, about = ?7, text = ?8",
            )?;
            let (created, heard) = stored.place;
            put.execute(params![
                id,
                stored.kind,
                stored.told,
                created,
                heard,
                stored.delivered,
                about.as_str(),
                stored.text
            ])
        };
        said(put());
    }

    /// A webhook has got this event.
    pub(super) fn deliver(&self, id: &str) {
        said(
            self.db
                .prepare_cached("UPDATE objects SET delivered = 1 WHERE id = ?1")
                .and_then(|mut update| update.execute([id])),
        );
    }

    /// Forgets an object.
    pub(super) fn remove(&self, id: &str) {
        said(self.db.execute("DELETE FROM objects WHERE id = ?1", [id]));
    }

    /// Hands out one after the other until it is told that it is enough.
    pub(super) fn walk(&self, walk: &Walk<'_>, mut goes_on: impl FnMut(Stored) -> bool) {
        // One bound on each side, so that SQLite starts where the walk does.
        let (least, most) = walk.within;
        let ((created, heard), end, order) = match walk.from {
            From::Newest(place) => (
                place.min((most, i64::MAX)),
                least,
                "(created, heard) < (?4, ?5) AND created >= ?6 ORDER BY created DESC, heard DESC",
            ),
            From::Oldest(place) => (
                place.max((least, i64::MIN)),
                most,
                "(created, heard) > (?4, ?5) AND created <= ?6 ORDER BY created, heard",
            ),
        };
        // One text for each index, so that SQLite takes that index.
        let about = if walk.about.is_some() { "about = ?2" } else { "?2 IS NULL" };
        let select = format!(
            "SELECT kind, told, created, heard, delivered, text FROM objects
             WHERE kind = ?1 AND {about} AND (?3 IS NULL OR delivered = ?3) AND {order}"
        );
        let mut each = || {
            let mut select = self.db.prepare_cached(&select)?;
            let mut rows =
                select.query(params![walk.kind, walk.about, walk.delivered, created, heard, end])?;
            while let Some(row) = rows.next()? {
                if !goes_on(stored(row)?) {
                    break;
                }
            }
            Ok(())
        };
        said(each());
    }

    /// What was put inside an object.
    pub(super) fn inside(&self, id: &str) -> Option<Vec<Value>> {
        let get = || {
            let mut select = self.db.prepare_cached("SELECT entries FROM inside WHERE id = ?1")?;
            select.query_row([id], |row| row.get::<_, String>(0)).optional()
        };
        said(get()).and_then(|entries| serde_json::from_str(&entries).ok())
    }

    /// Puts something inside an object, in place of what was there.
    pub(super) fn put_inside(&self, id: &str, entries: Vec<Value>) {
        said(self.db.execute(
            "INSERT OR REPLACE INTO inside (id, entries) VALUES (?1, ?2)",
            params![id, Value::Array(entries).to_string()],
        ));
    }

    /// What is written until [`Self::commit`] is written at once.
    pub(super) fn begin(&self) {
        said(self.db.execute_batch("BEGIN"));
    }

    /// See [`Self::begin`].
    pub(super) fn commit(&self) {
        said(self.db.execute_batch("COMMIT"));
    }
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let text: String = row.get(5)?;
    let value = serde_json::from_str(&text).unwrap_or_default();
    Ok(Stored {
        kind: row.get(0)?,
        told: row.get(1)?,
        place: (row.get(2)?, row.get(3)?),
        delivered: row.get(4)?,
        value,
        text,
    })
}

fn said<T: Default>(result: rusqlite::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "the fake Stripe's store");
        T::default()
    })
}
