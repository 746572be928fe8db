//! Sends events of the log to their queues again, with the message that the webhook sent.
//!
//! Nothing is decided here: the worker reads the state again, and an event that is finished changes nothing.
//! So an event may be sent twice without harm, and `retry` sends later what could not be sent now.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use tallyhook_aws::payload;
use tallyhook_aws::queue::{Envelope, Queue};
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::event::{EventType, Family};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// The most events that one new link sends at once; `retry` sends the others.
const MAX_FREED: usize = 100;

/// Sends events to the queues of their families.
#[derive(Clone, Debug)]
pub struct Redrive {
    queue: Queue,
    queues: BTreeMap<Family, String>,
}

/// The result of sending one event again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RedriveOutcome {
    /// It is in its queue.
    Queued,
    /// It is processed, ignored or dismissed already, so it was not sent.
    Finished,
    /// The log does not have it.
    Unknown,
    /// The log has no body of it (too large, or not an event of Stripe), or it is a second content of a known
    /// id, which must not be applied.
    NotSendable,
    /// The queue did not take it; `retry` sends it later.
    NotQueued,
}

impl Redrive {
    /// Sends to these queues. Events of a family without a queue are not sent.
    pub fn new(queue: Queue, queues: BTreeMap<Family, String>) -> Self {
        Self { queue, queues }
    }

    /// Sends those of the events with these ids that are parked or failed. The outcomes are in the same
    /// order.
    ///
    /// # Errors
    /// [`StoreError`] when the log cannot be read; then nothing is sent.
    pub async fn send(&self, store: &Store, ids: &[String]) -> Result<Vec<RedriveOutcome>, StoreError> {
        let keys: Vec<Key> = ids.iter().map(|id| Key::Event(id.clone())).collect();
        let items = store.load(keys.iter().cloned()).await?;
        let mut answers = Vec::new();
        for key in &keys {
            answers.push(match items.get(key) {
                None => RedriveOutcome::Unknown,
                Some(item) => self.send_one(key, item).await,
            });
        }
        Ok(answers)
    }

    /// Opens a dismissed event again, if it can be sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reopen(&self, store: &Store, id: &str, now: Timestamp) -> Result<(), StoreError> {
        let key = Key::Event(id.to_owned());
        let items = store.load([key.clone()]).await?;
        if let Some(item) = items.get(&key).filter(|item| envelope(item).is_some()) {
            store.reopen(&key, item, now).await?;
        }
        Ok(())
    }

    async fn send_one(&self, key: &Key, item: &Item) -> RedriveOutcome {
        match items::read_event(key, item) {
            // A dismissed event that is not open again cannot be sent.
            Ok(_) if items::read_dismissal(item).is_some() && envelope(item).is_none() => {
                return RedriveOutcome::NotSendable;
            }
            Ok(known) if known.finished => return RedriveOutcome::Finished,
            Ok(_) => {}
            Err(error) => {
                warn!(error = error.to_string(), "EVENT_NOT_SENT_AGAIN");
                return RedriveOutcome::NotSendable;
            }
        }
        let Some((family, envelope)) = envelope(item) else { return RedriveOutcome::NotSendable };
        let event_id = key.partition();
        let Some(queue_url) = self.queues.get(&family) else {
            warn!(
                event_id,
                error = format!("no queue of {family} is configured here"),
                "EVENT_NOT_SENT_AGAIN"
            );
            return RedriveOutcome::NotQueued;
        };
        match self.queue.send(queue_url, envelope).await {
            Ok(()) => {
                info!(event_id, "EVENT_SENT_AGAIN");
                RedriveOutcome::Queued
            }
            Err(error) => {
                warn!(event_id, error = error.to_string(), "EVENT_NOT_SENT_AGAIN");
                RedriveOutcome::NotQueued
            }
        }
    }

    /// Sends the events that a new link or payment frees, after its commit. A failure is logged; `retry`
    /// sends them later.
    pub async fn send_freed(&self, store: &Store, ids: &BTreeSet<String>) {
        if ids.is_empty() {
            return;
        }
        let ids: Vec<String> = ids.iter().take(MAX_FREED).cloned().collect();
        if let Err(error) = self.send(store, &ids).await {
            warn!(error = error.to_string(), events = ids.len(), "EVENT_NOT_SENT_AGAIN");
        }
    }
}

/// The queue message of an event of the log; `None` when the event must not be sent or has no body.
fn envelope(item: &Item) -> Option<(Family, Envelope)> {
    let text = |name: &str| items::read_text(item, name);
    if matches!(text("reason").as_deref(), Some("payload_mismatch" | "message")) {
        return None;
    }
    // The worker of the quietest queue records the types that no family handles.
    let family = EventType::from(text("type")?.as_str()).family().unwrap_or(Family::Customer);
    let body = payload::unpack(items::read_payload(item)?)?;
    let mode = text("mode").and_then(|mode| SecretMode::from_text(&mode))?;
    Some((family, Envelope { body, received_ms: items::read_number(item, "received")?, mode }))
}
