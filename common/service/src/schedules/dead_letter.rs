//! `dead-letter`: writes the messages of the dead-letter queue to the event log as `failed`, with their body.
//!
//! From the log an event is listed, alerted and sent again, by `retry` or by an operator. A message leaves
//! the queue only after the log has it. An event that is finished (by a second copy of its message, or a
//! redrive from the AWS console) is never overwritten. Writing the same message twice has the same result as
//! once.

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use tracing::{error, warn};

use crate::alerts::{Alert, Alerts};
use crate::config::DeadLetterConfig;
use crate::outbox::provision;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::payload;
use tallyhook_aws::queue::{Envelope, Queue};
use tallyhook_aws::sdk;
use tallyhook_aws::store::items::{self, EventRecord, EventState, Key};
use tallyhook_aws::store::{Reason, Store, StoreError};
use tallyhook_aws::telemetry;
use tallyhook_core::event::{self, Event, EventType};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// The reason of a failed event whose attempts are used up.
pub const REASON: &str = "retries_used_up";

/// The function `dead-letter`.
pub struct DeadLetter {
    store: Store,
    alerts: Alerts,
}

impl DeadLetter {
    /// Builds the function from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(DeadLetterConfig::from_env(env)?, dynamodb, sqs))
    }

    /// Builds the function with given clients.
    pub fn new(config: DeadLetterConfig, dynamodb: sdk::DynamoDb, sqs: sdk::Sqs) -> Self {
        Self {
            store: Store::new(dynamodb, config.accounts_table, config.events_table),
            alerts: Alerts::new(Queue::new(sqs), config.notify_queue_url),
        }
    }

    /// Records a batch and returns the messages that could not be recorded; they stay in the queue.
    ///
    /// # Errors
    /// None; a failed message is part of the answer.
    pub async fn handle(&self, batch: SqsEvent) -> Result<SqsBatchResponse, lambda_runtime::Error> {
        let now = clock::now();
        let mut response = SqsBatchResponse::default();
        let mut recorded: Vec<EventRecord> = Vec::new();
        for message in &batch.records {
            match self.record(message, now).await {
                Ok(Some(record)) => recorded.push(record),
                Ok(None) => {}
                Err(error) => {
                    error!(
                        message_id = message.message_id,
                        error = error.to_string(),
                        "DEAD_LETTER_NOT_RECORDED"
                    );
                    let mut failure = BatchItemFailure::default();
                    failure.item_identifier = message.message_id.clone().unwrap_or_default();
                    response.batch_item_failures.push(failure);
                }
            }
        }
        if let Some(first) = recorded.first() {
            let (event_id, event_type) = (first.id.clone(), first.kind.clone());
            self.alerts
                .send(&Alert::DeadLetter {
                    event_id,
                    event_type,
                    attempts: first.attempts,
                    events: recorded.len(),
                })
                .await;
        }
        Ok(response)
    }

    /// Writes one message to the log. `None` when there is nothing to write.
    async fn record(&self, message: &SqsMessage, now: Timestamp) -> Result<Option<EventRecord>, StoreError> {
        if source(message).ends_with("provision")
            && let Some(message) = message.body.as_deref().and_then(provision::read_message)
        {
            provision::fail(&self.store, &message, "all attempts failed").await?;
            error!(job = message.job.as_str(), user_id = message.user_id.as_str(), "PROVISIONING_FAILED");
            return Ok(None);
        }
        let Some(mut record) = read(message, now) else {
            // An alert that could not be posted. `notify` logged it; an alert about it would end here again.
            warn!(message_id = message.message_id, queue = source(message), "DEAD_LETTER_DROPPED");
            telemetry::metrics(&[], &[("AlertsLost", 1.0)]);
            return Ok(None);
        };
        let key = Key::Event(record.id.clone());
        let known = self.store.load([key.clone()]).await?;
        if let Some(known) = known.get(&key).map(|item| items::read_event(&key, item)).transpose()? {
            if known.finished {
                return Ok(None);
            }
            record.redrives = known.redrives;
            record.previous = known.previous;
        }
        match self.store.commit(vec![items::event(&record)]).await {
            Ok(()) => {
                error!(
                    event_id = record.id,
                    event_type = record.kind,
                    attempts = record.attempts,
                    outcome = "failed",
                    "WEBHOOK_FAILED"
                );
                Ok(Some(record))
            }
            // The event was finished in the meantime.
            Err(StoreError::Cancelled(reasons))
                if reasons.iter().all(|(_, reason)| *reason == Reason::Condition) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The name of the queue on which a message failed; empty when SQS does not name it.
fn source(message: &SqsMessage) -> &str {
    let arn = message.attributes.get("DeadLetterQueueSourceArn").map_or("", String::as_str);
    arn.rsplit(':').next().unwrap_or_default()
}

/// The log entry for a message; `None` for a message that is not an event.
fn read(message: &SqsMessage, now: Timestamp) -> Option<EventRecord> {
    let queue = source(message);
    if queue.ends_with("notify") {
        return None;
    }
    // This delivery counts as a receive too.
    let receives: u32 =
        message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1);
    let attempts = receives.saturating_sub(1).max(1);
    let sent_ms = message
        .attributes
        .get("SentTimestamp")
        .and_then(|ms| ms.parse().ok())
        .unwrap_or_else(|| now.unix().saturating_mul(1000));
    let fallback = format!("msg_{}", message.message_id.as_deref().unwrap_or("unknown").replace('-', ""));
    let envelope = Envelope::read(message);
    let (raw, received_ms, mode) = match &envelope {
        Ok(envelope) => (envelope.body.clone(), envelope.received_ms, envelope.mode),
        Err(_) => (message.body.clone().unwrap_or_default().into_bytes(), sent_ms, SecretMode::Any),
    };
    let readable = envelope
        .as_ref()
        .map_err(ToString::to_string)
        .and_then(|_| event::read(&raw).map_err(|error| error.to_string()));
    let head = event::read_head(&raw).ok();
    let kind = head.as_ref().map_or_else(|| "unknown".to_owned(), |head| head.kind.to_string());
    let reason = match (&envelope, &readable) {
        (Err(_), _) => "message",
        (Ok(_), Err(_)) => "unreadable",
        (Ok(_), Ok(_)) => REASON,
    };
    let why = readable.as_ref().err().map_or_else(String::new, |error| format!(": {error}"));
    let event: Option<Event> = readable.ok();
    Some(EventRecord {
        id: head.as_ref().filter(|_| envelope.is_ok()).map_or(fallback, |head| head.id.to_string()),
        family: EventType::from(kind.as_str()).family().map_or("other", |family| family.as_str()),
        kind,
        state: EventState::Failed,
        reason: Some(reason.to_owned()),
        message: Some(format!(
            "{attempts} attempts from queue {queue} failed{why}; the log lines of this event say why"
        )),
        waits_for: None,
        user: event.as_ref().and_then(|event| event.named_user().ok().flatten()),
        objects: event
            .as_ref()
            .map(|event| event.object_ids().into_iter().map(str::to_owned).collect())
            .unwrap_or_default(),
        created: head.as_ref().map_or(now, |head| head.created),
        received_ms,
        finished_ms: now.unix().saturating_mul(1000),
        attempts,
        redrives: 0,
        previous: None,
        mode,
        livemode: head.as_ref().is_some_and(|head| head.livemode),
        api_version: event.as_ref().and_then(|event| event.api_version.clone()),
        digest: event::content_digest(&raw),
        payload: payload::keep(&raw),
    })
}
