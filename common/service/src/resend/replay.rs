//! Replays events from Stripe, which keeps them for 30 days: processes them as the workers do.
//!
//! An event changes an account at most once. If the log already has the event as finished, the replayed copy
//! is a duplicate. So it is harmless to replay too many events.
//!
//! Events are processed one after the other, oldest first, and not sent to the queues: SQS keeps no order
//! between queues, and a pack that arrives after a newer renewal is granted in full. Stripe lists the newest
//! events first, so the replay reads one window of time after the other, and reverses it.
//!
//! Stripe creates the first events of a customer within a second, and the one that links the customer to its
//! user may be the last of them. So an event without a known user waits until a later event was processed,
//! and is parked if it still has no user when the replay ends.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;
use tracing::warn;

use crate::process::{EventOutcome, Job, Processor};
use crate::worker::{BatchSummary, ask, log_outcome};
use tallyhook_aws::store::StoreError;
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
    /// Ids of the events that are finished: processed or ignored, in this replay or before.
    pub processed: Vec<String>,
    /// Ids of the events that are parked, with the reason.
    pub parked: Vec<(String, String)>,
    /// Ids of the events that were not processed, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Pass this as `after` to continue, when the limit or the deadline stopped the replay.
    pub next: Option<String>,
}

/// Why a replay stopped early. Events that were already processed stay processed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Stripe did not answer, or does not have the event.
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// Stripe did not answer what an event leaves out.
    #[error("{0}")]
    Incomplete(String),
    /// DynamoDB did not answer.
    #[error(transparent)]
    Store(StoreError),
    /// The position to continue from is not one of a report.
    #[error("next must be what the last report gave")]
    Position,
}

/// Stripe keeps events for this long.
const KEPT_DAYS: i64 = 30;
/// Pages that are read of a window of time. A window with more is made smaller.
const MAX_PAGES: usize = 5;

/// Events without a known user that wait for a later event.
const MAX_WAITING: usize = 20;

/// Where a replay continues, as text: `1767600000`, or `1767600000 evt_1` if this event of that second was
/// the last one.
struct Position {
    from: Timestamp,
    last: Option<String>,
}

impl Position {
    fn from_text(text: &str) -> Option<Self> {
        let (from, last) = match text.split_once(' ') {
            Some((from, last)) => (from, Some(last.to_owned())),
            None => (text, None),
        };
        Some(Self { from: Timestamp::from_unix(from.parse().ok()?), last })
    }

    fn text(&self) -> String {
        let last = self.last.as_ref().map_or_else(String::new, |last| format!(" {last}"));
        format!("{}{last}", self.from.unix())
    }

    /// Drops the events up to the last one. If that event is missing from Stripe's list, keeps all events.
    /// Those of its second are then duplicates.
    fn rest(&self, mut events: Vec<Object>) -> Vec<Object> {
        let last =
            self.last.as_deref().and_then(|last| events.iter().position(|event| event.id() == Some(last)));
        events.split_off(last.map_or(0, |last| last + 1))
    }
}

/// Processes events of Stripe.
pub struct Replayer {
    stripe: Stripe,
    processor: Processor,
    prices: ask::Prices,
}

/// What a replay did so far.
#[derive(Default)]
struct Progress {
    report: ReplayReport,
    /// Events without a known user, oldest first.
    waiting: Vec<Job>,
    summaries: BTreeMap<Family, BatchSummary>,
}

impl Progress {
    fn count(&self) -> usize {
        let ReplayReport { processed, parked, skipped, .. } = &self.report;
        processed.len() + parked.len() + skipped.len() + self.waiting.len()
    }
}

impl Replayer {
    /// Reads with a client of Stripe and processes with this processor.
    pub fn new(stripe: Stripe, processor: Processor) -> Self {
        Self { stripe, processor, prices: ask::Prices::default() }
    }

    /// Processes the selected events, oldest first: at most `limit`, from the position `after` on, until
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
        let mut progress = Progress::default();
        let mut result = self.read_and_process(selection, limit, after, deadline, now, &mut progress).await;
        for mut job in std::mem::take(&mut progress.waiting) {
            // The second attempt parks an event without a known user.
            job.attempt = 2;
            if result.is_ok() {
                result = self.process(job, now, &mut progress).await;
            }
        }
        for (family, summary) in &progress.summaries {
            summary.write(*family);
            summary.send_alerts(&self.processor.alerts).await;
        }
        result.map(|()| progress.report)
    }

    async fn read_and_process(
        &self,
        selection: &Selection,
        limit: usize,
        after: Option<&str>,
        deadline: Option<Instant>,
        now: Timestamp,
        progress: &mut Progress,
    ) -> Result<(), ReplayError> {
        let filter = match selection {
            Selection::One(id) => {
                let event = self.stripe.event(id).await?;
                return self.take(&event, now, progress).await;
            }
            Selection::Listed(filter) => filter,
        };
        let mut position = match after {
            None => Position { from: filter.from.unwrap_or(now.plus_days(-KEPT_DAYS)), last: None },
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
            for event in position.rest(events) {
                if progress.count() >= limit || (progress.count() > 0 && is_late()) {
                    progress.report.next = Some(position.text());
                    return Ok(());
                }
                self.take(&event, now, progress).await?;
                position = Position { from: created(&event), last: event.id().map(str::to_owned) };
            }
            let Some(until) = until else { return Ok(()) };
            position = Position { from: until, last: None };
            if is_late() {
                progress.report.next = Some(position.text());
                return Ok(());
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

    /// Processes an event of Stripe, then the waiting events of its customer, which it may have linked.
    async fn take(&self, event: &Object, now: Timestamp, progress: &mut Progress) -> Result<(), ReplayError> {
        let raw = event.text().as_bytes().to_vec();
        let event = match event::read(&raw) {
            Ok(event) if event.kind.family().is_some() => event,
            Ok(other) => {
                let why = format!("no family handles {}", other.kind);
                progress.report.skipped.push((other.id.to_string(), why));
                return Ok(());
            }
            Err(error) => {
                let id = event.id().unwrap_or("(no id)").to_owned();
                progress.report.skipped.push((id, error.to_string()));
                return Ok(());
            }
        };
        let processed = progress.report.processed.len();
        let customer = event.customer().cloned();
        let job = Job {
            digest: event::content_digest(&raw),
            mode: if event.livemode { SecretMode::Live } else { SecretMode::Test },
            event,
            raw,
            received_ms: now.unix().saturating_mul(1000),
            attempt: 1,
            repair: None,
        };
        self.process(job, now, progress).await?;
        if progress.report.processed.len() > processed {
            let waiting = std::mem::take(&mut progress.waiting).into_iter();
            let (linked, others): (Vec<Job>, Vec<Job>) =
                waiting.partition(|job| job.event.customer() == customer.as_ref());
            progress.waiting = others;
            for job in linked {
                self.process(job, now, progress).await?;
            }
        }
        Ok(())
    }

    async fn process(
        &self,
        mut job: Job,
        now: Timestamp,
        progress: &mut Progress,
    ) -> Result<(), ReplayError> {
        let started = Instant::now();
        let family = job.event.kind.family();
        let id = job.event.id.to_string();
        let asked = ask::complete_all(
            &self.stripe,
            &self.processor.accounts,
            &self.prices,
            std::slice::from_mut(&mut job),
        );
        asked.await.into_iter().collect::<Result<(), _>>().map_err(ReplayError::Incomplete)?;
        if job.attempt == 1 && progress.waiting.len() >= MAX_WAITING {
            job.attempt = 2;
        }
        let outcome = self.processor.run(std::slice::from_ref(&job), now).await.into_iter().next();
        let Some(outcome) = outcome else { return Ok(()) };
        if matches!(&outcome, Ok(outcome) if *outcome != EventOutcome::NotYet) {
            log_outcome(&job.event, &outcome, job.attempt, None, started);
        }
        if let Some(family) = family {
            progress.summaries.entry(family).or_default().add(&job.event, &outcome);
        }
        match outcome {
            Ok(EventOutcome::Processed(..) | EventOutcome::Ignored(_) | EventOutcome::Duplicate) => {
                progress.report.processed.push(id);
            }
            Ok(EventOutcome::Parked(parked)) => progress.report.parked.push((id, parked.to_string())),
            Ok(EventOutcome::NotYet) => progress.waiting.push(job),
            Err(error) if error.is_transient() => return Err(ReplayError::Store(error)),
            Err(error) => {
                warn!(event_id = id, error = error.to_string(), "EVENT_NOT_SENT_AGAIN");
                progress.report.skipped.push((id, error.to_string()));
            }
        }
        Ok(())
    }
}

fn created(event: &Object) -> Timestamp {
    Timestamp::from_unix(event.value()["created"].as_i64().unwrap_or(0))
}
