//! Replays events from Stripe, which keeps them for 30 days: sends them through the queues like new events.
//!
//! An event changes an account at most once. If the log already has the event as finished, the worker treats
//! the replayed copy as a duplicate. So it is harmless to replay too many events.
//!
//! Events are sent oldest first. If a pack arrived after a newer renewal, it would be granted in full. Stripe
//! lists the newest events first, so the replay reads one window of time after the other, and reverses it.

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
    /// The position to continue from is not one of a report.
    #[error("next must be what the last report gave")]
    Position,
}

/// Stripe keeps events for this long.
const KEPT_DAYS: i64 = 30;
/// Pages that are read of a window of time. A window with more is made smaller.
const MAX_PAGES: usize = 5;

/// Where a replay continues, as text: `1767600000`, or `1767600000 evt_1` if this event of that second was
/// the last one that was sent.
struct Position {
    from: Timestamp,
    sent: Option<String>,
}

impl Position {
    fn from_text(text: &str) -> Option<Self> {
        let (from, sent) = match text.split_once(' ') {
            Some((from, sent)) => (from, Some(sent.to_owned())),
            None => (text, None),
        };
        Some(Self { from: Timestamp::from_unix(from.parse().ok()?), sent })
    }

    fn text(&self) -> String {
        let sent = self.sent.as_ref().map_or_else(String::new, |sent| format!(" {sent}"));
        format!("{}{sent}", self.from.unix())
    }

    /// Drops the events up to the one that was sent last. If that event is missing from Stripe's list, keeps
    /// all events. Those of its second are then sent again, and a worker skips a processed event.
    fn not_sent(&self, mut events: Vec<Object>) -> Vec<Object> {
        let sent =
            self.sent.as_deref().and_then(|sent| events.iter().position(|event| event.id() == Some(sent)));
        events.split_off(sent.map_or(0, |sent| sent + 1))
    }
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

    /// Sends the selected events, oldest first: at most `limit`, from the position `after` on, until
    /// `deadline`.
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
        let mut position = match after {
            None => Position { from: filter.from.unwrap_or(now.plus_days(-KEPT_DAYS)), sent: None },
            Some(text) => Position::from_text(text).ok_or(ReplayError::Position)?,
        };
        // Without an end, the last window has none either: our clock may be behind Stripe's.
        let end = filter.until.unwrap_or(now.plus_seconds(1));
        let mut seconds = end.seconds_since(position.from).max(1);
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        loop {
            let until = Some(position.from.plus_seconds(seconds)).filter(|until| *until < end);
            let window =
                EventFilter { from: Some(position.from), until: until.or(filter.until), ..filter.clone() };
            let events = match self.window(&window, seconds == 1).await? {
                Ok(events) => events,
                Err(span) => {
                    seconds = span.clamp(1, (seconds / 2).max(1));
                    continue;
                }
            };
            for event in position.not_sent(events) {
                let has_progress = report.sent.len() + report.skipped.len() > 0;
                if report.sent.len() >= limit || (has_progress && is_late()) {
                    report.next = Some(position.text());
                    return Ok(report);
                }
                self.send(&event, now, &mut report).await?;
                position = Position { from: created(&event), sent: event.id().map(str::to_owned) };
            }
            let Some(until) = until else { return Ok(report) };
            position = Position { from: until, sent: None };
            if is_late() {
                report.next = Some(position.text());
                return Ok(report);
            }
        }
    }

    /// The events of a window, oldest first. If it has more than [`MAX_PAGES`] pages, the seconds between the
    /// first and the last of the events that were read. A window of one second is always read to its end.
    async fn window(
        &self,
        filter: &EventFilter,
        is_one_second: bool,
    ) -> Result<Result<Vec<Object>, i64>, StripeError> {
        let (mut cursor, mut events) = (Cursor::Newest, Vec::new());
        for page_number in 1.. {
            let page = self.stripe.events(filter, &cursor).await?;
            let next = page.last_id().map(str::to_owned).filter(|_| page.has_more);
            events.extend(page.objects);
            let Some(next) = next else { break };
            if page_number >= MAX_PAGES && !is_one_second {
                let times = events.first().zip(events.last());
                let span = times.map(|(newest, oldest)| created(newest).seconds_since(created(oldest)));
                return Ok(Err(span.unwrap_or(1)));
            }
            cursor = Cursor::After(next);
        }
        events.reverse();
        events.sort_by_key(created);
        Ok(Ok(events))
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

fn created(event: &Object) -> Timestamp {
    Timestamp::from_unix(event.value()["created"].as_i64().unwrap_or(0))
}
