//! Sends events of the log back to their queues, as the webhook sent them first.
//!
//! Nothing is decided here: the worker reads everything again, and an event that was finished meanwhile
//! changes nothing. So sending one twice is harmless, and not sending one is made good by the next run of
//! `retry`.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use tallyhook_aws::payload;
use tallyhook_aws::queue::{Envelope, Queue};
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::event::{EventType, Family};
use tallyhook_core::signature::SecretMode;

/// So many events are sent at once when a link frees them; the others wait for the next run of `retry`.
const MOST_FREED: usize = 100;

/// The queues of all families.
#[derive(Clone, Debug)]
pub struct Redrive {
    queue: Queue,
    queues: BTreeMap<Family, String>,
}

/// What became of an event that was to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resent {
    /// It is in its queue.
    Queued,
    /// It was processed or ignored before: nothing to do.
    Finished,
    /// The log does not have it.
    Unknown,
    /// The log has it without its body (too large, or never an event of Stripe's), or with a second content
    /// that must not be applied.
    NotSendable,
    /// The queue did not take it; a later run will.
    NotQueued,
}

impl Redrive {
    /// Over the families' queues. Events of a family without one wait for whoever has it.
    pub fn new(queue: Queue, queues: BTreeMap<Family, String>) -> Self {
        Self { queue, queues }
    }

    /// Sends the events with these ids that are parked or failed.
    ///
    /// # Errors
    /// [`StoreError`] when the log cannot be read; nothing was sent then.
    pub async fn send(&self, store: &Store, ids: &[String]) -> Result<Vec<Resent>, StoreError> {
        let keys: Vec<Key> = ids.iter().map(|id| Key::Event(id.clone())).collect();
        let items = store.load(keys.iter().cloned()).await?;
        let mut answers = Vec::new();
        for key in &keys {
            answers.push(match items.get(key) {
                None => Resent::Unknown,
                Some(item) => self.send_one(key, item).await,
            });
        }
        Ok(answers)
    }

    async fn send_one(&self, key: &Key, item: &Item) -> Resent {
        match items::read_event(key, item) {
            Ok(known) if known.finished => return Resent::Finished,
            Ok(_) => {}
            Err(error) => {
                warn!(error = error.to_string(), "EVENT_NOT_SENT_AGAIN");
                return Resent::NotSendable;
            }
        }
        let Some((family, envelope)) = envelope(item) else { return Resent::NotSendable };
        let event_id = key.partition();
        let Some(queue_url) = self.queues.get(&family) else {
            warn!(
                event_id,
                error = format!("no queue of {family} is configured here"),
                "EVENT_NOT_SENT_AGAIN"
            );
            return Resent::NotQueued;
        };
        match self.queue.send(queue_url, envelope).await {
            Ok(()) => {
                info!(event_id, "EVENT_SENT_AGAIN");
                Resent::Queued
            }
            Err(error) => {
                warn!(event_id, error = error.to_string(), "EVENT_NOT_SENT_AGAIN");
                Resent::NotQueued
            }
        }
    }

    /// Sends what a new link or payment frees. Called after the commit that made it; a failure is logged and
    /// left to `retry`.
    pub async fn freed(&self, store: &Store, ids: &BTreeSet<String>) {
        if ids.is_empty() {
            return;
        }
        let ids: Vec<String> = ids.iter().take(MOST_FREED).cloned().collect();
        if let Err(error) = self.send(store, &ids).await {
            warn!(error = error.to_string(), events = ids.len(), "EVENT_NOT_SENT_AGAIN");
        }
    }
}

/// The message that the webhook sent for an event of the log; `None` where there is none to send.
fn envelope(item: &Item) -> Option<(Family, Envelope)> {
    let text = |name: &str| items::read_text(item, name);
    if matches!(text("reason").as_deref(), Some("payload_mismatch" | "message")) {
        return None;
    }
    // Types that no family handles go to the quietest queue, as the webhook sends them.
    let family = EventType::from(text("type")?.as_str()).family().unwrap_or(Family::Customer);
    let body = payload::unpack(items::read_payload(item)?)?;
    let mode = text("mode").and_then(|mode| SecretMode::from_text(&mode))?;
    Some((family, Envelope { body, received_ms: items::read_number(item, "received")?, mode }))
}
