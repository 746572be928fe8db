//! The worker of a family: takes an SQS batch and returns the records that SQS must deliver again.
//!
//! A record fails only when a later attempt may succeed. SQS delivers it again after the delay that
//! `RETRY_DELAYS_SECONDS` has for its attempt; after the last attempt SQS moves it to the dead-letter queue.
//! Every other record is processed, ignored, parked or a duplicate, and that is stored before the record is
//! acknowledged.

pub(crate) mod ask;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::time::Instant;

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use tracing::{info, warn};

use crate::accounts::Accounts;
use crate::alerts::{Alert, Alerts};
use crate::config::WorkerConfig;
use crate::outbox::Outbox;
use crate::process::{EventOutcome, Job, Processor};
use crate::resend::redrive::Redrive;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::payload;
use tallyhook_aws::queue::{Envelope, Queue};
use tallyhook_aws::sdk;
use tallyhook_aws::store::items::{self, EventRecord, EventState, Key};
use tallyhook_aws::store::{Reason, Store, StoreError};
use tallyhook_aws::stripe::{RetryLimits, Stripe};
use tallyhook_aws::telemetry;
use tallyhook_core::decide::{Ignored, Parked};
use tallyhook_core::event::{self, Event, EventType, Family};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// The limits for calls of Stripe. The events of a batch make them at the same time, and DynamoDB needs a
/// part of the function's 30 s.
const RETRY_LIMITS: RetryLimits = RetryLimits {
    attempts: 2,
    attempt_timeout: Duration::from_secs(4),
    call_timeout: Duration::from_secs(9),
    first_wait: Duration::from_millis(300),
};

/// The delay before the second attempt for an event whose user is unknown. The event that links its customer
/// usually arrives within seconds.
const UNKNOWN_USER_DELAY_SECONDS: u32 = 5;

/// The worker of one family.
pub struct Worker {
    family: Family,
    processor: Processor,
    queue: Queue,
    queue_url: String,
    retry_delays_seconds: Vec<u32>,
    alerts: Alerts,
    stripe: Option<Stripe>,
    prices: ask::Prices,
    /// The unknown API versions for which this instance sent an alert.
    alerted_versions: Mutex<BTreeSet<String>>,
}

/// A record of the batch: an event to process, or a message that cannot be processed.
enum Record {
    Job(Box<Job>),
    Unreadable(Box<Unreadable>),
}

/// A message that is parked because this worker cannot process it as an event.
struct Unreadable {
    id: String,
    kind: String,
    parked: Parked,
    raw: Vec<u8>,
    received_ms: i64,
    mode: SecretMode,
}

/// The metrics of a batch, and one alert for each reason for parking.
#[derive(Default)]
pub(crate) struct BatchSummary {
    counts: BTreeMap<&'static str, u32>,
    /// The longest time from the creation of an event at Stripe to its commit here.
    applied_after_seconds: Option<i64>,
    alerts: BTreeMap<String, Alert>,
}

impl BatchSummary {
    fn count(&mut self, outcome: &Result<EventOutcome, StoreError>) {
        let name = match outcome {
            Ok(EventOutcome::Processed(..)) => "Processed",
            Ok(EventOutcome::Duplicate) => "Duplicate",
            Ok(EventOutcome::Ignored(Ignored::Livemode)) => "OtherMode",
            Ok(EventOutcome::Ignored(_)) => "Ignored",
            Ok(EventOutcome::Parked(_)) => "ParkedEvents",
            // The event that links its customer usually follows within seconds, so this does not count as a
            // failure.
            Ok(EventOutcome::NotYet) => return,
            Err(_) => "FailedAttempts",
        };
        *self.counts.entry(name).or_default() += 1;
    }

    /// Counts the outcome of an event, and its alert if it is parked.
    pub(crate) fn add(&mut self, event: &Event, outcome: &Result<EventOutcome, StoreError>) {
        self.count(outcome);
        match outcome {
            Ok(EventOutcome::Processed(..)) => {
                let seconds = clock::now().seconds_since(event.created);
                self.applied_after_seconds = self.applied_after_seconds.max(Some(seconds));
            }
            Ok(EventOutcome::Parked(parked)) => {
                self.alert(event.id.as_str(), event.kind.as_str(), parked);
            }
            Ok(EventOutcome::Duplicate | EventOutcome::Ignored(_) | EventOutcome::NotYet) | Err(_) => {}
        }
    }

    fn alert(&mut self, event_id: &str, event_type: &str, parked: &Parked) {
        let alert = Alert::Parked {
            event_id: event_id.to_owned(),
            event_type: event_type.to_owned(),
            reason: parked.code().to_owned(),
            waits_for: parked.waits_for(),
        };
        self.alerts.entry(alert.key()).or_insert(alert);
    }

    pub(crate) async fn send_alerts(&self, alerts: &Alerts) {
        for alert in self.alerts.values() {
            alerts.send(alert).await;
        }
    }

    /// Writes the metrics.
    pub(crate) fn write(&self, family: Family) {
        let counts = self.counts.iter();
        let mut metrics: Vec<(&str, f64)> = counts.map(|(name, count)| (*name, f64::from(*count))).collect();
        let slowest = self.applied_after_seconds.and_then(|seconds| u32::try_from(seconds).ok());
        metrics.extend(slowest.map(|seconds| ("AppliedAfterSeconds", f64::from(seconds))));
        telemetry::metrics(&[("family", family.as_str())], &metrics);
    }
}

/// Writes a log line with the ids of its event. `client_id` is the user's id under the name that portals use.
/// `customer_id` is left out if it is an e-mail address, which a merchant may choose as the id.
macro_rules! event_line {
    ($level:ident, $ids:expr, $name:literal, $($field:tt)*) => {
        $level!(
            event_id = $ids.event.id.as_str(),
            event_type = $ids.event.kind.as_str(),
            livemode = $ids.event.livemode,
            user_id = $ids.user_id,
            client_id = $ids.user_id,
            customer_id = $ids.event.customer().map(|id| id.as_str()).filter(|id| !id.contains('@')),
            subscription_id = $ids.event.subscription_id().map(|id| id.as_str()),
            checkout_session_id = $ids.event.checkout_session_id().map(|id| id.as_str()),
            $($field)*,
            duration_ms = $ids.duration_ms,
            $name
        )
    };
}

/// A record of the batch and its outcome; `None` until its job is processed.
struct HandledRecord<'a> {
    message: &'a SqsMessage,
    outcome: Option<Result<EventOutcome, StoreError>>,
}

impl Worker {
    /// Builds the worker and its clients from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env, family: Family) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::sdk_configs(env)?;
        let queue = Queue::later(move || sdk::sqs(&sqs));
        Ok(Self::new(WorkerConfig::from_env(env, family)?, family, sdk::dynamodb(&dynamodb), queue))
    }

    /// Builds the worker with given clients.
    pub fn new(config: WorkerConfig, family: Family, dynamodb: sdk::DynamoDb, queue: Queue) -> Self {
        let store = Store::new(dynamodb, config.accounts_table, config.events_table);
        let redrive = Redrive::new(queue.clone(), config.queues);
        let outbox = Outbox::new(queue.clone(), config.outbox);
        let accounts = Accounts::new(store, config.catalog, outbox);
        let alerts = Alerts::new(queue.clone(), config.notify_queue_url);
        Self {
            family,
            processor: Processor {
                accounts,
                livemode: config.livemode,
                keep_payloads: config.keep_payloads,
                redrive,
                alerts: alerts.clone(),
            },
            alerts,
            queue,
            queue_url: config.queue_url,
            retry_delays_seconds: config.retry_delays_seconds,
            stripe: config.stripe.map(|stripe| Stripe::of(stripe).with_retry_limits(RETRY_LIMITS)),
            prices: ask::Prices::default(),
            alerted_versions: Mutex::default(),
        }
    }

    /// Reads the stored catalog, which also opens the connection to DynamoDB, and while that waits for
    /// answers, prepares the compression of payloads. Called once, before the first batch.
    pub async fn prewarm(&self) {
        let Accounts { store, catalog_cache, .. } = &self.processor.accounts;
        tokio::join!(catalog_cache.prewarm(store), async { payload::prepare() });
    }

    /// Processes a batch and returns the records that failed.
    ///
    /// # Errors
    /// None; a failed record is part of the answer.
    pub async fn handle(&self, batch: SqsEvent) -> Result<SqsBatchResponse, lambda_runtime::Error> {
        let started = Instant::now();
        let now = clock::now();
        let mut summary = BatchSummary::default();
        let mut jobs = Vec::new();
        let mut records: Vec<HandledRecord<'_>> = Vec::new();
        for message in &batch.records {
            let outcome = match self.read(message) {
                Record::Job(job) => {
                    jobs.push(*job);
                    None
                }
                Record::Unreadable(unreadable) => {
                    let (id, kind) = (unreadable.id.clone(), unreadable.kind.clone());
                    let outcome = self.park(*unreadable, attempt(message), now).await;
                    if let Ok(EventOutcome::Parked(parked)) = &outcome {
                        summary.alert(&id, &kind, parked);
                    }
                    summary.count(&outcome);
                    Some(outcome)
                }
            };
            records.push(HandledRecord { message, outcome });
        }
        let outcomes = self.process(&mut jobs, now).await;
        let waiting = records.iter_mut().filter(|record| record.outcome.is_none());
        for (record, (job, outcome)) in waiting.zip(jobs.iter().zip(outcomes)) {
            log_outcome(&job.event, &outcome, job.attempt, self.delay(job.attempt), started);
            summary.add(&job.event, &outcome);
            if let Some(alert) = self.unknown_version(&job.event) {
                summary.alerts.entry(alert.key()).or_insert(alert);
            }
            record.outcome = Some(outcome);
        }

        let mut failures = Vec::new();
        let mut delays = Vec::new();
        for HandledRecord { message, outcome } in records {
            let seconds = match outcome {
                Some(Ok(
                    EventOutcome::Processed(..)
                    | EventOutcome::Duplicate
                    | EventOutcome::Ignored(_)
                    | EventOutcome::Parked(_),
                )) => continue,
                Some(Ok(EventOutcome::NotYet)) => Some(UNKNOWN_USER_DELAY_SECONDS),
                Some(Err(_)) | None => self.delay(attempt(message)),
            };
            if let (Some(seconds), Some(receipt_handle)) = (seconds, &message.receipt_handle) {
                delays.push((receipt_handle.clone(), seconds));
            }
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = message.message_id.clone().unwrap_or_default();
            failures.push(failure);
        }
        if let Err(error) = self.queue.delay(&self.queue_url, &delays).await {
            warn!(error, "WEBHOOK_RETRY_NOT_DELAYED");
        }
        summary.write(self.family);
        summary.send_alerts(&self.alerts).await;
        let mut response = SqsBatchResponse::default();
        response.batch_item_failures = failures;
        Ok(response)
    }

    /// The alert about the API version of an event of a family, once for each version and instance. `notify`
    /// holds back those of other instances.
    fn unknown_version(&self, event: &Event) -> Option<Alert> {
        event.kind.family()?;
        let version: String = event.unknown_version()?.chars().take(32).collect();
        let mut alerted = self.alerted_versions.lock().unwrap_or_else(PoisonError::into_inner);
        let event_id = event.id.to_string();
        alerted.insert(version.clone()).then_some(Alert::UnknownVersion { version, event_id })
    }

    /// Reads missing parts of events from Stripe (few events need it), then processes the events. If a call
    /// to Stripe fails, its event fails too, and SQS redelivers it.
    async fn process(&self, jobs: &mut [Job], now: Timestamp) -> Vec<Result<EventOutcome, StoreError>> {
        let Some(stripe) = &self.stripe else { return self.processor.run(jobs, now).await };
        let completed = ask::complete_all(stripe, &self.processor.accounts, &self.prices, jobs).await;
        if completed.iter().all(Result::is_ok) {
            return self.processor.run(jobs, now).await;
        }
        let ready = jobs.iter().zip(&completed).filter(|(_, completed)| completed.is_ok());
        let ready: Vec<Job> = ready.map(|(job, _)| job.clone()).collect();
        let mut outcomes = self.processor.run(&ready, now).await.into_iter();
        let unanswered = |message| Err(StoreError::Unavailable { operation: "asking Stripe", message });
        let lost = || unanswered("no answer for this event".to_owned());
        completed
            .into_iter()
            .map(|completed| completed.map_or_else(unanswered, |()| outcomes.next().unwrap_or_else(lost)))
            .collect()
    }

    /// The seconds until the next attempt. `None` leaves the delay to the queue.
    fn delay(&self, attempt: u32) -> Option<u32> {
        let place = usize::try_from(attempt).unwrap_or(usize::MAX).checked_sub(1)?;
        // After the last attempt SQS receives the message once more only to move it to the dead-letter queue.
        Some(self.retry_delays_seconds.get(place).copied().unwrap_or(0))
    }

    fn read(&self, message: &SqsMessage) -> Record {
        let fallback = format!("msg_{}", message.message_id.as_deref().unwrap_or("unknown").replace('-', ""));
        let envelope = match Envelope::read(message) {
            Ok(envelope) => envelope,
            Err(error) => {
                let raw = message.body.clone().unwrap_or_default().into_bytes();
                let parked = Parked::Message(error.to_string());
                let kind = "unknown".to_owned();
                let (received_ms, mode) = (clock::now_ms(), SecretMode::Any);
                return Record::Unreadable(Box::new(Unreadable {
                    id: fallback,
                    kind,
                    parked,
                    raw,
                    received_ms,
                    mode,
                }));
            }
        };
        let unreadable = |id: String, kind: String, parked: Parked, envelope: Envelope| {
            let Envelope { body: raw, received_ms, mode } = envelope;
            Record::Unreadable(Box::new(Unreadable { id, kind, parked, raw, received_ms, mode }))
        };
        match event::read(&envelope.body) {
            Ok(event) if !self.takes(&event.kind) => {
                let parked = Parked::Message(format!(
                    "{} does not belong on the queue of {}",
                    event.kind, self.family
                ));
                unreadable(event.id.to_string(), event.kind.to_string(), parked, envelope)
            }
            Ok(event) => Record::Job(Box::new(Job {
                digest: event::content_digest(&envelope.body),
                event,
                raw: envelope.body,
                received_ms: envelope.received_ms,
                mode: envelope.mode,
                attempt: attempt(message),
                repair: None,
            })),
            Err(error) => {
                let head = event::read_head(&envelope.body).ok();
                let kind = head.as_ref().map_or_else(|| "unknown".to_owned(), |head| head.kind.to_string());
                let id = head.map_or(fallback, |head| head.id.to_string());
                unreadable(id, kind, Parked::Unreadable(error.to_string()), envelope)
            }
        }
    }

    /// Whether this queue may carry the type. The worker of `customer` also records types without a family.
    fn takes(&self, kind: &EventType) -> bool {
        kind.family().unwrap_or(Family::Customer) == self.family
    }

    async fn park(
        &self,
        unreadable: Unreadable,
        attempts: u32,
        now: Timestamp,
    ) -> Result<EventOutcome, StoreError> {
        let Unreadable { id, kind, parked, raw, received_ms, mode } = unreadable;
        let key = Key::Event(id.clone());
        let known = self.processor.accounts.store.load([key.clone()]).await?;
        let known = known.get(&key).map(|item| items::read_event(&key, item)).transpose()?;
        if known.as_ref().is_some_and(|known| known.finished) {
            return Ok(EventOutcome::Duplicate);
        }
        warn!(event_id = id, event_type = kind, outcome = "parked", reason = parked.code(), "WEBHOOK_PARKED");
        let record = EventRecord {
            id,
            kind,
            family: self.family.as_str(),
            state: EventState::Parked,
            reason: Some(parked.code().to_owned()),
            message: Some(parked.to_string()),
            waits_for: parked.waits_for(),
            user: None,
            objects: Vec::new(),
            created: now,
            received_ms,
            finished_ms: now.unix().saturating_mul(1000),
            attempts: known.as_ref().map_or(0, |known| known.attempts) + attempts,
            redrives: known.as_ref().map_or(0, |known| known.redrives),
            previous: known.and_then(|known| known.previous),
            mode,
            livemode: false,
            api_version: None,
            digest: event::content_digest(&raw),
            payload: payload::keep(&raw),
        };
        match self.processor.accounts.store.commit(vec![items::event(&record)]).await {
            Ok(()) => Ok(EventOutcome::Parked(parked)),
            // An event with this id is already finished, so this message changes nothing. Any other reason (a
            // conflict, throttling) means that nothing was written.
            Err(StoreError::Cancelled(reasons))
                if reasons.iter().all(|(_, reason)| *reason == Reason::Condition) =>
            {
                Ok(EventOutcome::Duplicate)
            }
            Err(error) => Err(error),
        }
    }
}

/// Writes one log line for an attempt, with the ids that the event names.
pub(crate) fn log_outcome(
    event: &Event,
    outcome: &Result<EventOutcome, StoreError>,
    attempt: u32,
    next_attempt_seconds: Option<u32>,
    started: Instant,
) {
    let named = event.named_user().ok().flatten();
    let owner = match outcome {
        Ok(EventOutcome::Processed(owner, _)) => owner.as_ref(),
        Ok(
            EventOutcome::Duplicate
            | EventOutcome::Ignored(_)
            | EventOutcome::Parked(_)
            | EventOutcome::NotYet,
        )
        | Err(_) => None,
    };
    let ids = LogFields {
        event,
        user_id: owner.or(named.as_ref()).map(|id| id.as_str()),
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    match outcome {
        Ok(EventOutcome::Processed(_, effect)) => {
            let reason = effect.as_str();
            event_line!(info, ids, "WEBHOOK_PROCESSED_OK", outcome = "processed", reason);
        }
        Ok(EventOutcome::Duplicate) => {
            event_line!(info, ids, "WEBHOOK_PROCESSED_OK", outcome = "duplicate");
        }
        Ok(EventOutcome::Ignored(ignored)) => {
            let reason = ignored.as_str();
            event_line!(info, ids, "WEBHOOK_IGNORED", outcome = "ignored", reason);
        }
        Ok(EventOutcome::Parked(parked)) => {
            let reason = parked.code();
            event_line!(warn, ids, "WEBHOOK_PARKED", outcome = "parked", reason);
        }
        Ok(EventOutcome::NotYet) => {
            let (reason, next_attempt_seconds) = ("no_user", UNKNOWN_USER_DELAY_SECONDS);
            event_line!(info, ids, "WEBHOOK_PROCESSING_FAILED", reason, attempt, next_attempt_seconds);
        }
        Err(error) => {
            let error = error.to_string();
            event_line!(warn, ids, "WEBHOOK_PROCESSING_FAILED", error, attempt, next_attempt_seconds);
        }
    }
}

/// The fields that every line about an event has.
struct LogFields<'a> {
    event: &'a Event,
    user_id: Option<&'a str>,
    duration_ms: u64,
}

fn attempt(message: &SqsMessage) -> u32 {
    message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_waits_for_its_customers_link_is_not_a_failed_attempt() {
        let mut summary = BatchSummary::default();
        let ignored = |why: Ignored| Ok(EventOutcome::Ignored(why));
        for outcome in [Ok(EventOutcome::NotYet), Ok(EventOutcome::Duplicate), ignored(Ignored::Type)] {
            summary.count(&outcome);
        }
        assert_eq!(summary.counts, BTreeMap::from([("Duplicate", 1), ("Ignored", 1)]));
    }

    #[test]
    fn an_event_of_the_other_mode_has_a_count_of_its_own() {
        let mut summary = BatchSummary::default();
        summary.count(&Ok(EventOutcome::Ignored(Ignored::Livemode)));
        assert_eq!(summary.counts, BTreeMap::from([("OtherMode", 1)]));
    }
}
