//! `provision`: reports changes of accounts to the app, with a signed request to `PROVISION_URL`.
//!
//! The request follows Standard Webhooks (<https://www.standardwebhooks.com>):
//!
//! ```text
//! POST <PROVISION_URL>
//! webhook-id: provision_9f86d081884c7d65
//! webhook-timestamp: 1767607206
//! webhook-signature: v1,<base64 of HMAC-SHA256 over "id.timestamp.body">
//!
//! {"type":"subscription.renewed","timestamp":"2026-01-05T10:00:06Z",
//!  "data":{"user_id":"user_123","tier":"pro","tier_rank":1,"credits":5000,"access_until":null,…,"version":3,
//!          "first_paid_at":"2026-01-05T10:00:05Z",
//!          "event_id":"evt_1","event_created":"…","subscription":{…},"invoice":{"id":"in_1"}}}
//! ```
//! `data` has the account as it is when the request is made ([`account_view`]), so several quick changes may
//! be reported as one; `version` only grows. Beside it is what the job keeps of its cause, or the order.
//! `webhook-id` is the same at every attempt, also when an operator runs the job again. It names the cause
//! or, where the same may happen again, the version.
//!
//! A 2xx answer completes the job. Any other answer is retried after the delays in `RETRY_DELAYS_SECONDS`.
//! After the last attempt the job is `failed`: the log and an alert report it, and an operator can run it
//! again. Redirects are not followed. Only public addresses over https are called.

use std::sync::Arc;
use std::time::Duration;

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use serde_json::{Value, json};
use sha2::Sha256;
use tracing::{info, warn};

use crate::account_view::account_view;
use crate::alerts::{Alert, Alerts};
use crate::catalog_cache::CatalogCache;
use crate::config::ProvisionConfig;
use crate::outbox::JobMessage;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::http::Http;
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::telemetry;
use tallyhook_core::account::Account;
use tallyhook_core::job::JobScope;
use tallyhook_core::setup_status::ProvisioningState;
use tallyhook_core::timestamp::Timestamp;

/// How long the app may take to answer. Lambda ends the function after 30 s.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The function `provision`.
pub struct Provision {
    store: Store,
    queue: Queue,
    alerts: Alerts,
    http: Http,
    catalog_cache: CatalogCache,
    config: ProvisionConfig,
}

/// Why a job is not completed.
#[derive(Debug, thiserror::Error)]
enum JobError {
    /// The app did not answer 2xx.
    #[error("{0}")]
    App(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Provision {
    /// Builds the function from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(ProvisionConfig::from_env(env)?, dynamodb, sqs))
    }

    /// Builds the function with given clients.
    pub fn new(config: ProvisionConfig, dynamodb: sdk::DynamoDb, sqs: sdk::Sqs) -> Self {
        let queue = Queue::new(sqs);
        Self {
            store: Store::new(dynamodb, config.accounts_table.clone(), config.events_table.clone()),
            alerts: Alerts::new(queue.clone(), config.notify_queue_url.clone()),
            queue,
            http: Http::allowing(config.allowed_addresses),
            catalog_cache: CatalogCache::new(Arc::clone(&config.catalog)),
            config,
        }
    }

    /// Does the jobs of a batch and returns the messages that SQS must deliver again.
    ///
    /// # Errors
    /// None; a failed job is part of the answer.
    pub async fn handle(&self, batch: SqsEvent) -> Result<SqsBatchResponse, lambda_runtime::Error> {
        let mut response = SqsBatchResponse::default();
        let mut delays = Vec::new();
        let done = join_all(batch.records.iter().map(|message| self.do_job(message))).await;
        for (message, done) in batch.records.iter().zip(done) {
            let Err(delay) = done else { continue };
            if let (Some(receipt_handle), Some(seconds)) = (&message.receipt_handle, delay) {
                delays.push((receipt_handle.clone(), seconds));
            }
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = message.message_id.clone().unwrap_or_default();
            response.batch_item_failures.push(failure);
        }
        if let Err(error) = self.queue.delay(&self.config.queue_url, &delays).await {
            warn!(error, "PROVISIONING_NOT_DELAYED");
        }
        Ok(response)
    }

    /// Does one job. The error contains the seconds until the next attempt; `None` after the last one.
    async fn do_job(&self, message: &SqsMessage) -> Result<(), Option<u32>> {
        let Ok(job_message) = serde_json::from_str::<JobMessage>(message.body.as_deref().unwrap_or_default())
        else {
            warn!(message_id = message.message_id, "PROVISIONING_UNREADABLE");
            return Ok(());
        };
        let attempt = attempt(message);
        let place = usize::try_from(attempt).unwrap_or(usize::MAX).saturating_sub(1);
        let delay = self.config.retry_delays_seconds.get(place).copied();
        let Err(error) = self.run_job(&job_message, delay, clock::now()).await else { return Ok(()) };
        let (job, user_id, error) =
            (job_message.job.as_str(), job_message.user_id.as_str(), error.to_string());
        let session = job_message.checkout_session_id.as_ref().map(|session| session.as_str());
        warn!(
            job,
            job_id = job_message.id(),
            user_id,
            client_id = user_id,
            checkout_session_id = session,
            error,
            attempt,
            next_attempt_seconds = delay,
            "PROVISIONING_FAILED"
        );
        telemetry::metrics(&[("family", "provision")], &[("FailedAttempts", 1.0)]);
        if delay.is_none() && self.give_up(&job_message, attempt).await { Ok(()) } else { Err(delay) }
    }

    async fn run_job(
        &self,
        job_message: &JobMessage,
        delay: Option<u32>,
        now: Timestamp,
    ) -> Result<(), JobError> {
        let user = &job_message.user_id;
        let (job_key, account_key) = (items::job_key(job_message), Key::Account(user.clone()));
        let order_key = job_message.order().map(|order| Key::Order(user.clone(), order));
        let keys = [job_key.clone(), account_key.clone()].into_iter().chain(order_key.clone());
        let items = self.store.load(keys).await?;
        let (Some(job), Some(account)) = (items.get(&job_key), items.get(&account_key)) else {
            return Ok(());
        };
        let Some(written) = items::read_number::<i64>(job, "seen") else { return Ok(()) };
        if items::read_text(job, "outcome").as_deref() == Some("completed") {
            return Ok(());
        }
        let (name, user_id) = (job_message.job.as_str(), job_message.user_id.as_str());
        let attempts = items::read_number::<u32>(job, "attempts").unwrap_or(0).saturating_add(1);
        // `retry` does not send the job before this time. SQS redelivers it earlier unless the message is
        // lost.
        let due = now
            .plus_seconds(items::redrive_pause_seconds(0) + i64::from(delay.unwrap_or(0)))
            .unix()
            .saturating_mul(1000);
        if !self.store.start_job(job_message, written, attempts, due).await? {
            // The job was written again just now, with a message of its own.
            return Ok(());
        }
        let (job_id, session) = (job_message.id(), items::session_of_job(job));
        let session = session.as_ref().map(|session| session.as_str());
        info!(
            job = name,
            job_id,
            user_id,
            client_id = user_id,
            checkout_session_id = session,
            attempt = attempts,
            "PROVISIONING_STARTED"
        );
        let account = items::read_account(&job_message.user_id, account)?;
        let reported = match &self.config.url {
            Some(url) => {
                let order = order_key.and_then(|key| items.get(&key)).map(items::read_order);
                let mut more = items::data_of_job(job);
                // The message leaves this system: the app reads the customer's address from the order itself.
                more.extend(order.map(|mut order| {
                    order.remove("customer_email");
                    ("order".to_owned(), json!(order))
                }));
                self.report(url, job_message, &account, more, now).await
            }
            None => Ok(()),
        };
        let (state, reason) = match &reported {
            Ok(()) if self.config.url.is_none() => {
                (ProvisioningState::Completed, "no PROVISION_URL: there was nothing to call".to_owned())
            }
            Ok(()) => (ProvisioningState::Completed, "the app took it".to_owned()),
            Err(error) => (ProvisioningState::Queued, error.clone()),
        };
        self.store.end_job(job_message, written, state, &reason, clock::now_ms()).await?;
        reported.map_err(JobError::App)?;
        if job_message.job.is_about_order() {
            telemetry::metrics(&[], &[("OrdersReported", 1.0)]);
        }
        info!(
            job = name,
            job_id,
            user_id,
            client_id = user_id,
            checkout_session_id = session,
            called = self.config.url.is_some(),
            "PROVISIONING_COMPLETED"
        );
        Ok(())
    }

    async fn report(
        &self,
        url: &str,
        job_message: &JobMessage,
        account: &Account,
        more: serde_json::Map<String, Value>,
        now: Timestamp,
    ) -> Result<(), String> {
        let kind = job_message.job.message_type();
        let catalog = self.catalog_cache.fresh(&self.store).await;
        let mut data = account_view(account, &catalog, now);
        data["version"] = json!(account.version);
        data["first_paid_at"] = json!(account.state.first_paid_at.map(|at| at.to_string()));
        if let Some(data) = data.as_object_mut() {
            data.extend(more);
        }
        let body = json!({"type": kind, "timestamp": now.to_string(), "data": data}).to_string();
        let id = webhook_id(job_message, account.version);
        let request = Request::post(url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("tallyhook/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &id)
            .header("webhook-timestamp", now.unix().to_string())
            .header("webhook-signature", sign(&self.config.secret, &id, now, &body));
        let request = request.body(body).map_err(|_| "PROVISION_URL is no address".to_owned())?;
        let answer = self.http.send(request, TIMEOUT).await.map_err(|error| error.to_string())?;
        // A redirect is a failure too: following it could lead to an address that was not checked.
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("the app answered {}", answer.status().as_u16()))
        }
    }

    /// Marks a job as failed after its last attempt. `false` leaves the message to the dead-letter queue.
    async fn give_up(&self, job_message: &JobMessage, attempts: u32) -> bool {
        let failed = fail(&self.store, job_message, "all attempts failed").await;
        if let Err(error) = &failed {
            warn!(
                job = job_message.job.as_str(),
                user_id = job_message.user_id.as_str(),
                error = error.to_string(),
                "PROVISIONING_NOT_MARKED"
            );
            return false;
        }
        let event_id = items::job_key(job_message).partition();
        let event_type = job_message.job.event();
        self.alerts.send(&Alert::DeadLetter { event_id, event_type, attempts, events: 1 }).await;
        true
    }
}

/// Marks a job as failed until an operator runs it again, with the result of its last attempt.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn fail(store: &Store, job_message: &JobMessage, why: &str) -> Result<(), StoreError> {
    let key = items::job_key(job_message);
    let items = store.load([key.clone()]).await?;
    let Some(job) = items.get(&key) else { return Ok(()) };
    let text = |name: &str| items::read_text(job, name).unwrap_or_default();
    let Some(written) = items::read_number::<i64>(job, "seen").filter(|_| text("outcome") != "completed")
    else {
        return Ok(());
    };
    let reason = format!("{why}; the last one: {}", text("reason"));
    let failed = ProvisioningState::Failed;
    store.end_job(job_message, written, failed, &reason, clock::now_ms()).await?;
    Ok(())
}

/// The id that the app uses to recognise a repetition.
fn webhook_id(job_message: &JobMessage, version: u64) -> String {
    let id = job_message.id();
    match job_message.job.scope() {
        JobScope::User | JobScope::Cause => id,
        JobScope::Version => format!("{id}_{version}"),
    }
}

/// The header `webhook-signature` of a body, as Standard Webhooks defines it: `v1,<base64>`. The receiver
/// computes it again and compares.
pub fn sign(secret: &[u8], id: &str, now: Timestamp, body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    let mac = mac.chain_update(format!("{id}.{}.{body}", now.unix()));
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn attempt(message: &SqsMessage) -> u32 {
    message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// Reads a message of the queue of `provision`; `None` for any other message.
pub(crate) fn read_message(body: &str) -> Option<JobMessage> {
    serde_json::from_str(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_equals_the_example_of_the_specification() {
        // The test vector of github.com/standard-webhooks, which all its libraries use.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = sign(
            &secret,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            Timestamp::from_unix(1_614_265_330),
            "{\"test\": 2432232314}",
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
