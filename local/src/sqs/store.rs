//! The queues in SQLite: every SQL statement, and nothing of the protocol.
//!
//! There is one connection. Each method is one transaction. Statements stay prepared, and each finds its rows
//! through an index, so the cost of a receive does not grow with the queue. Time is an argument, in
//! milliseconds since the epoch.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::wire::{self, MessageAttribute};

/// Grows with each change of the schema. A file of another version is refused.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE queues (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        attributes TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        modified_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        queue INTEGER NOT NULL,
        message_id TEXT NOT NULL,
        body TEXT NOT NULL,
        attributes TEXT NOT NULL,
        system TEXT NOT NULL,
        sent_ms INTEGER NOT NULL,
        visible_ms INTEGER NOT NULL,
        in_flight INTEGER NOT NULL DEFAULT 0,
        receives INTEGER NOT NULL DEFAULT 0,
        first_received_ms INTEGER,
        generation INTEGER NOT NULL DEFAULT 0,
        dead_letter_source TEXT
    ) STRICT;
    CREATE INDEX messages_by_visibility ON messages (queue, visible_ms, in_flight);
    CREATE INDEX messages_by_age ON messages (queue, sent_ms);
    CREATE TABLE move_tasks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        destination TEXT,
        started_ms INTEGER NOT NULL,
        found INTEGER NOT NULL,
        moved INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX move_tasks_by_source ON move_tasks (source);
    PRAGMA user_version = 1;
";

/// The open database.
pub(super) struct Store {
    db: Connection,
}

/// One queue, with the attributes that were set on it.
pub(super) struct Queue {
    pub id: i64,
    pub name: String,
    pub attributes: BTreeMap<String, String>,
    pub created_ms: i64,
    pub modified_ms: i64,
}

/// A checked message to be stored.
pub(super) struct NewMessage {
    pub message_id: String,
    pub body: String,
    pub attributes: BTreeMap<String, MessageAttribute>,
    pub system: BTreeMap<String, String>,
    pub visible_ms: i64,
}

/// A received message.
pub(super) struct Delivery {
    pub handle: ReceiptHandle,
    pub body: String,
    pub attributes: BTreeMap<String, MessageAttribute>,
    pub system: BTreeMap<String, String>,
    pub sent_ms: i64,
    pub receives: i64,
    pub first_received_ms: i64,
    pub dead_letter_source: Option<String>,
}

/// A receipt handle: one receive (`generation`) of one message. With the message id, a handle of a deleted
/// file cannot match a message of a new file.
pub(super) struct ReceiptHandle {
    pub queue: i64,
    pub row: i64,
    pub generation: i64,
    pub message_id: String,
}

/// How many messages a queue holds, by state, and when the oldest was sent: of all, and of those that were
/// received less than three times.
pub(super) struct Counts {
    pub visible: i64,
    pub in_flight: i64,
    pub delayed: i64,
    pub oldest_sent_ms: Option<i64>,
    pub oldest_rated_sent_ms: Option<i64>,
}

/// A finished redrive.
pub(super) struct MoveTask {
    pub destination: Option<String>,
    pub started_ms: i64,
    pub found: i64,
    pub moved: i64,
}

impl Queue {
    /// The value of a numeric attribute, or else AWS's default.
    pub(super) fn number(&self, name: &str) -> i64 {
        self.attributes
            .get(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| wire::default_number(name))
    }
}

impl Store {
    /// Opens the file, or a store in memory without one.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let db = match path {
            Some(path) => {
                Connection::open(path).with_context(|| format!("open queue store {}", path.display()))?
            }
            None => Connection::open_in_memory()?,
        };
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.set_prepared_statement_cache_capacity(64);
        match db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
            0 => db
                .execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))
                .context("create the queue store's tables")?,
            SCHEMA_VERSION => {}
            other => {
                bail!(
                    "queue store has schema {other}, this build reads {SCHEMA_VERSION}: delete the file, or use the build that wrote it"
                )
            }
        }
        Ok(Self { db })
    }

    pub(super) fn queue(&self, name: &str) -> rusqlite::Result<Option<Queue>> {
        let mut select = self.db.prepare_cached(
            "SELECT id, name, attributes, created_ms, modified_ms FROM queues WHERE name = ?1",
        )?;
        select.query_row([name], queue_from).optional()
    }

    /// All queues, by name.
    pub(super) fn queues(&self) -> rusqlite::Result<Vec<Queue>> {
        let mut select = self.db.prepare_cached(
            "SELECT id, name, attributes, created_ms, modified_ms FROM queues ORDER BY name",
        )?;
        select.query_map([], queue_from)?.collect()
    }

    pub(super) fn create_queue(
        &self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        now_ms: i64,
    ) -> rusqlite::Result<()> {
        let insert = "INSERT INTO queues (name, attributes, created_ms, modified_ms) VALUES (?1, ?2, ?3, ?3)";
        self.db.execute(insert, params![name, to_json(attributes)?, now_ms])?;
        Ok(())
    }

    pub(super) fn set_attributes(
        &self,
        queue: i64,
        attributes: &BTreeMap<String, String>,
        now_ms: i64,
    ) -> rusqlite::Result<()> {
        let update = "UPDATE queues SET attributes = ?2, modified_ms = ?3 WHERE id = ?1";
        self.db.execute(update, params![queue, to_json(attributes)?, now_ms])?;
        Ok(())
    }

    pub(super) fn delete_queue(&mut self, queue: i64) -> rusqlite::Result<()> {
        let change = self.db.transaction()?;
        change.execute("DELETE FROM messages WHERE queue = ?1", [queue])?;
        change.execute("DELETE FROM queues WHERE id = ?1", [queue])?;
        change.commit()
    }

    pub(super) fn purge(&self, queue: i64) -> rusqlite::Result<()> {
        self.db.execute("DELETE FROM messages WHERE queue = ?1", [queue])?;
        Ok(())
    }

    /// Stores all messages or none.
    pub(super) fn send(&mut self, queue: i64, messages: &[NewMessage], now_ms: i64) -> rusqlite::Result<()> {
        let change = self.db.transaction()?;
        for new in messages {
            change
                .prepare_cached(
                    "INSERT INTO messages (queue, message_id, body, attributes, system, sent_ms, visible_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    queue,
                    new.message_id,
                    new.body,
                    to_json(&new.attributes)?,
                    to_json(&new.system)?,
                    now_ms,
                    new.visible_ms
                ])?;
        }
        change.commit()
    }

    /// Receives at most `limit` visible messages, those that are visible for the longest time first, and
    /// hides them until `hidden_until_ms`. A message that reached the maximum receives of `redrive` moves to
    /// the dead-letter queue instead. The second value is the number of moved messages.
    pub(super) fn receive(
        &mut self,
        queue: &Queue,
        redrive: Option<(&Queue, i64)>,
        now_ms: i64,
        hidden_until_ms: i64,
        limit: usize,
    ) -> rusqlite::Result<(Vec<Delivery>, usize)> {
        let change = self.db.transaction()?;
        expire(&change, queue, now_ms)?;
        let (mut taken, mut moved) = (Vec::<Delivery>::new(), 0);
        loop {
            let visible = visible(&change, queue.id, now_ms, limit)?;
            let before = moved;
            for mut delivery in visible {
                // A message received with a visibility timeout of zero stays visible. Return it once.
                if taken.len() == limit
                    || taken.iter().any(|earlier| earlier.handle.row == delivery.handle.row)
                {
                    continue;
                }
                if let Some((target, max_receives)) = redrive
                    && delivery.receives >= max_receives
                {
                    change
                        .prepare_cached(
                            "UPDATE messages SET queue = ?2, visible_ms = ?3, dead_letter_source = ?4, in_flight = 0,
                                generation = generation + 1 WHERE id = ?1",
                        )?
                        .execute(params![delivery.handle.row, target.id, now_ms, queue.name])?;
                    moved += 1;
                    continue;
                }
                delivery.receives += 1;
                delivery.handle.generation += 1;
                change
                    .prepare_cached(
                        "UPDATE messages SET visible_ms = ?2, in_flight = 1, receives = ?3, generation = ?4, first_received_ms = ?5
                         WHERE id = ?1",
                    )?
                    .execute(params![
                        delivery.handle.row,
                        hidden_until_ms,
                        delivery.receives,
                        delivery.handle.generation,
                        delivery.first_received_ms
                    ])?;
                taken.push(delivery);
            }
            if moved == before || taken.len() == limit {
                change.commit()?;
                return Ok((taken, moved));
            }
        }
    }

    /// Makes the messages visible that consumers hold, except those that a consumer hid for a time of its
    /// own. The receive does not count: the consumer did not end by itself. Its handle is void, because the
    /// process of a function lives on for a moment after a killed stack and would hide the message for a
    /// retry. Returns their number.
    pub(super) fn release(&self, now_ms: i64) -> rusqlite::Result<usize> {
        self.db.execute(
            "UPDATE messages SET visible_ms = ?1, in_flight = 0, receives = max(receives - 1, 0),
                generation = generation + 1
             WHERE in_flight = 1 AND visible_ms > ?1",
            [now_ms],
        )
    }

    /// When the next hidden message of a queue becomes visible.
    pub(super) fn next_visible(&self, queue: i64, now_ms: i64) -> rusqlite::Result<Option<i64>> {
        let mut select = self
            .db
            .prepare_cached("SELECT min(visible_ms) FROM messages WHERE queue = ?1 AND visible_ms > ?2")?;
        select.query_row(params![queue, now_ms], |row| row.get(0))
    }

    /// Deletes the message of a handle, unless it was deleted, moved or received again.
    pub(super) fn delete(&self, handle: &ReceiptHandle) -> rusqlite::Result<()> {
        let mut delete = self.db.prepare_cached(
            "DELETE FROM messages WHERE id = ?1 AND queue = ?2 AND generation = ?3 AND message_id = ?4",
        )?;
        delete.execute(params![handle.row, handle.queue, handle.generation, handle.message_id])?;
        Ok(())
    }

    /// Hides the message of a handle until `visible_ms`. False if it was deleted, moved or received again.
    pub(super) fn hide(&self, handle: &ReceiptHandle, visible_ms: i64) -> rusqlite::Result<bool> {
        let mut update = self
            .db
            .prepare_cached("UPDATE messages SET visible_ms = ?5, in_flight = 2 WHERE id = ?1 AND queue = ?2 AND generation = ?3 AND message_id = ?4")?;
        Ok(update.execute(params![
            handle.row,
            handle.queue,
            handle.generation,
            handle.message_id,
            visible_ms
        ])? == 1)
    }

    pub(super) fn counts(&self, queue: &Queue, now_ms: i64) -> rusqlite::Result<Counts> {
        expire(&self.db, queue, now_ms)?;
        let mut select = self.db.prepare_cached(
            "SELECT count(*) FILTER (WHERE visible_ms <= ?2), count(*) FILTER (WHERE visible_ms > ?2 AND in_flight > 0),
                count(*) FILTER (WHERE visible_ms > ?2 AND in_flight = 0), (SELECT min(sent_ms) FROM messages WHERE queue = ?1),
                min(sent_ms) FILTER (WHERE receives < 3)
             FROM messages WHERE queue = ?1",
        )?;
        select.query_row(params![queue.id, now_ms], |row| {
            Ok(Counts {
                visible: row.get(0)?,
                in_flight: row.get(1)?,
                delayed: row.get(2)?,
                oldest_sent_ms: row.get(3)?,
                oldest_rated_sent_ms: row.get(4)?,
            })
        })
    }

    /// Moves every visible message of `source` to `destination`, or back to its origin. A moved message is a
    /// new one: new id, sent at `now_ms`, never received. A message stays if its origin is unknown or
    /// deleted. Returns the number of the task.
    pub(super) fn redrive(
        &mut self,
        source: &Queue,
        destination: Option<&Queue>,
        now_ms: i64,
    ) -> rusqlite::Result<i64> {
        let origins: BTreeMap<String, i64> =
            self.queues()?.into_iter().map(|queue| (queue.name, queue.id)).collect();
        let change = self.db.transaction()?;
        expire(&change, source, now_ms)?;
        let found: Vec<(i64, Option<String>)> = change
            .prepare_cached("SELECT id, dead_letter_source FROM messages WHERE queue = ?1 AND visible_ms <= ?2 ORDER BY visible_ms, id")?
            .query_map(params![source.id, now_ms], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut moved = 0_i64;
        for (row, origin) in &found {
            let target = destination
                .map(|queue| queue.id)
                .or_else(|| origin.as_ref().and_then(|name| origins.get(name)).copied());
            let Some(target) = target else { continue };
            change
                .prepare_cached(
                    "UPDATE messages SET queue = ?2, message_id = ?3, sent_ms = ?4, visible_ms = ?4, in_flight = 0, receives = 0,
                        first_received_ms = NULL, dead_letter_source = NULL, generation = generation + 1 WHERE id = ?1",
                )?
                .execute(params![row, target, Uuid::new_v4().to_string(), now_ms])?;
            moved += 1;
        }
        change.execute(
            "INSERT INTO move_tasks (source, destination, started_ms, found, moved) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![source.name, destination.map(|queue| &queue.name), now_ms, found.len(), moved],
        )?;
        let task = change.last_insert_rowid();
        change.commit()?;
        Ok(task)
    }

    /// The last redrives of a dead-letter queue, the latest first.
    pub(super) fn move_tasks(&self, source: &str, limit: i64) -> rusqlite::Result<Vec<MoveTask>> {
        let select = "SELECT destination, started_ms, found, moved FROM move_tasks WHERE source = ?1 ORDER BY id DESC LIMIT ?2";
        self.db
            .prepare_cached(select)?
            .query_map(params![source, limit], |row| {
                Ok(MoveTask {
                    destination: row.get(0)?,
                    started_ms: row.get(1)?,
                    found: row.get(2)?,
                    moved: row.get(3)?,
                })
            })?
            .collect()
    }
}

fn visible(
    change: &Transaction<'_>,
    queue: i64,
    now_ms: i64,
    limit: usize,
) -> rusqlite::Result<Vec<Delivery>> {
    change
        .prepare_cached(
            "SELECT id, generation, message_id, body, attributes, system, sent_ms, receives, first_received_ms, dead_letter_source
             FROM messages WHERE queue = ?1 AND visible_ms <= ?2 ORDER BY visible_ms LIMIT ?3",
        )?
        .query_map(params![queue, now_ms, limit], |row| {
            Ok(Delivery {
                handle: ReceiptHandle { queue, row: row.get(0)?, generation: row.get(1)?, message_id: row.get(2)? },
                body: row.get(3)?,
                attributes: from_json(row, 4)?,
                system: from_json(row, 5)?,
                sent_ms: row.get(6)?,
                receives: row.get(7)?,
                first_received_ms: row.get::<_, Option<i64>>(8)?.unwrap_or(now_ms),
                dead_letter_source: row.get(9)?,
            })
        })?
        .collect()
}

/// Deletes messages older than the retention of the queue.
fn expire(db: &Connection, queue: &Queue, now_ms: i64) -> rusqlite::Result<()> {
    let oldest_ms = now_ms - queue.number("MessageRetentionPeriod") * 1_000;
    db.prepare_cached("DELETE FROM messages WHERE queue = ?1 AND sent_ms <= ?2")?
        .execute(params![queue.id, oldest_ms])?;
    Ok(())
}

fn queue_from(row: &Row<'_>) -> rusqlite::Result<Queue> {
    Ok(Queue {
        id: row.get(0)?,
        name: row.get(1)?,
        attributes: from_json(row, 2)?,
        created_ms: row.get(3)?,
        modified_ms: row.get(4)?,
    })
}

fn to_json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}
