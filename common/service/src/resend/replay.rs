//! Replays events from Stripe, which keeps them for 30 days: sends them through the queues like new events.
//!
//! An event changes an account at most once. If the log already has the event as finished, the worker treats
//! the replayed copy as a duplicate. So it is harmless to replay too many events.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use tallyhook_aws::queue::{Envelope, Queue, SendError};
use tallyhook_aws::stripe::{Cursor, EventFilter, Object, Stripe, StripeError};
use tallyhook_core::event::{self, Family};
use tallyhook_core::ids::EventId;
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// The events to replay.
#[derive(Clone, Debug)]
pub enum Selection {
    /// One event.
    One(EventId),
    /// The events that a filter selects; at most twenty types.
    Listed(EventFilter),
}

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Ids of the events that were queued.
    pub sent: Vec<String>,
    /// Ids of the events that were not queued, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Pass this as `after` to continue, when the limit or the deadline stopped the replay.
    pub next: Option<String>,
}

/// Why a replay stopped early. Events that were already sent stay sent.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Stripe did not answer, or does not have the event.
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// The queue did not take an event.
    #[error(transparent)]
    Queue(#[from] SendError),
}

/// Sends events of Stripe to the queues of their families.
#[derive(Clone, Debug)]
pub struct Replayer {
    stripe: Stripe,
    queue: Queue,
    queues: BTreeMap<Family, String>,
}

impl Replayer {
    /// Reads with a client of Stripe and sends to the queue of each family.
    pub fn new(stripe: Stripe, queue: Queue, queues: BTreeMap<Family, String>) -> Self {
        Self { stripe, queue, queues }
    }

    /// Sends the selected events: at most `limit`, only those after `after`, newest first, until `deadline`.
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
    ) -> Result<ReplayReport, ReplayError> {
        let mut report = ReplayReport::default();
        let filter = match selection {
            Selection::One(id) => {
                let event = self.stripe.event(id).await?;
                self.send(&event, now, &mut report).await?;
                return Ok(report);
            }
            Selection::Listed(filter) => filter,
        };
        let mut cursor = Cursor::after(after);
        loop {
            let page = self.stripe.events(filter, &cursor).await?;
            for (place, event) in page.objects.iter().enumerate() {
                let late = deadline.is_some_and(|deadline| Instant::now() >= deadline)
                    && report.sent.len() + report.skipped.len() > 0;
                if report.sent.len() >= limit || late {
                    let before =
                        place.checked_sub(1).and_then(|place| page.objects.get(place)).and_then(Object::id);
                    report.next = before.map(str::to_owned).or_else(|| match &cursor {
                        Cursor::After(id) | Cursor::Before(id) => Some(id.clone()),
                        Cursor::Newest => None,
                    });
                    return Ok(report);
                }
                self.send(event, now, &mut report).await?;
            }
            match page.last_id() {
                Some(last) if page.has_more => cursor = Cursor::After(last.to_owned()),
                Some(_) | None => return Ok(report),
            }
        }
    }

    async fn send(
        &self,
        event: &Object,
        now: Timestamp,
        report: &mut ReplayReport,
    ) -> Result<(), ReplayError> {
        let id = event.id().unwrap_or("(no id)").to_owned();
        let head = match event::read_head(event.text().as_bytes()) {
            Ok(head) => head,
            Err(error) => {
                report.skipped.push((id, error.to_string()));
                return Ok(());
            }
        };
        let Some(queue) = head.kind.family().and_then(|family| self.queues.get(&family)) else {
            report.skipped.push((id, format!("no family handles {}", head.kind)));
            return Ok(());
        };
        let mode = if head.livemode { SecretMode::Live } else { SecretMode::Test };
        let body = event.text().as_bytes().to_vec();
        let envelope = Envelope { body, received_ms: now.unix().saturating_mul(1000), mode };
        match self.queue.send(queue, envelope).await {
            Ok(()) => report.sent.push(id),
            Err(error @ SendError::TooLarge) => report.skipped.push((id, error.to_string())),
            Err(error @ SendError::Unavailable(_)) => return Err(error.into()),
        }
        Ok(())
    }
}
