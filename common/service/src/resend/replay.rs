//! Replay from Stripe: events that Stripe still has (30 days), sent through the same queues as if they had
//! just come.
//!
//! What an event did it does not do again; what it did not do, it does now. One that Stripe lists and our log
//! has finished is a duplicate to its worker, so sending too many is harmless.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use tallyhook_aws::queue::{Envelope, Queue, SendError};
use tallyhook_aws::stripe::{Cursor, EventFilter, Object, Stripe, StripeError};
use tallyhook_core::event::{self, Family};
use tallyhook_core::ids::EventId;
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// Which events.
#[derive(Clone, Debug)]
pub enum Selection {
    /// This one.
    One(EventId),
    /// Those of a list; at most twenty types.
    Listed(EventFilter),
}

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Ids of the events that were queued.
    pub sent: Vec<String>,
    /// Ids of the events that were not, and why.
    pub skipped: Vec<(String, String)>,
    /// Where to go on, if there are more than the limit, or more than there was time for.
    pub next: Option<String>,
}

/// Why a replay did not come to its end. What was sent before stays sent.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Stripe did not answer, or has no such event (any more).
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// The queue did not take it.
    #[error(transparent)]
    Queue(#[from] SendError),
}

/// Sends events of Stripe's to the queues of their families.
#[derive(Clone, Debug)]
pub struct Replayer {
    stripe: Stripe,
    queue: Queue,
    queues: BTreeMap<Family, String>,
}

impl Replayer {
    /// Over a client, and the queue of each family.
    pub fn new(stripe: Stripe, queue: Queue, queues: BTreeMap<Family, String>) -> Self {
        Self { stripe, queue, queues }
    }

    /// Sends what is selected: at most `limit` events, those after `after`, newest first, until `deadline`.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub async fn replay(
        &self,
        selection: &Selection,
        limit: usize,
        after: Option<&str>,
        deadline: Option<Instant>,
        now: Timestamp,
    ) -> Result<Replayed, ReplayError> {
        let mut replayed = Replayed::default();
        let filter = match selection {
            Selection::One(id) => {
                let event = self.stripe.event(id).await?;
                self.send(&event, now, &mut replayed).await?;
                return Ok(replayed);
            }
            Selection::Listed(filter) => filter,
        };
        let mut cursor = Cursor::after(after);
        loop {
            let page = self.stripe.events(filter, &cursor).await?;
            for (place, event) in page.objects.iter().enumerate() {
                let late = deadline.is_some_and(|deadline| Instant::now() >= deadline)
                    && replayed.sent.len() + replayed.skipped.len() > 0;
                if replayed.sent.len() >= limit || late {
                    let before =
                        place.checked_sub(1).and_then(|place| page.objects.get(place)).and_then(Object::id);
                    replayed.next = before.map(str::to_owned).or_else(|| match &cursor {
                        Cursor::After(id) | Cursor::Before(id) => Some(id.clone()),
                        Cursor::Newest => None,
                    });
                    return Ok(replayed);
                }
                self.send(event, now, &mut replayed).await?;
            }
            match page.last_id() {
                Some(last) if page.has_more => cursor = Cursor::After(last.to_owned()),
                Some(_) | None => return Ok(replayed),
            }
        }
    }

    async fn send(&self, event: &Object, now: Timestamp, replayed: &mut Replayed) -> Result<(), ReplayError> {
        let id = event.id().unwrap_or("(no id)").to_owned();
        let head = match event::read_head(event.text().as_bytes()) {
            Ok(head) => head,
            Err(error) => {
                replayed.skipped.push((id, error.to_string()));
                return Ok(());
            }
        };
        let Some(queue) = head.kind.family().and_then(|family| self.queues.get(&family)) else {
            replayed.skipped.push((id, format!("nobody handles {}", head.kind)));
            return Ok(());
        };
        let mode = if head.livemode { SecretMode::Live } else { SecretMode::Test };
        let body = event.text().as_bytes().to_vec();
        let envelope = Envelope { body, received_ms: now.unix().saturating_mul(1000), mode };
        match self.queue.send(queue, envelope).await {
            Ok(()) => replayed.sent.push(id),
            Err(error @ SendError::TooLarge) => replayed.skipped.push((id, error.to_string())),
            Err(error @ SendError::Unavailable(_)) => return Err(error.into()),
        }
        Ok(())
    }
}
