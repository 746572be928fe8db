//! `provision`: tells the app what happened, over a signed request to `PROVISION_URL`.
//!
//! ```text
//! POST <PROVISION_URL>                                                  Standard Webhooks, https://www.standardwebhooks.com
//! webhook-id: provision_9f86d081884c7d65                                the same at every attempt and when it is run again
//! webhook-timestamp: 1767607206
//! webhook-signature: v1,<base64 of HMAC-SHA256 over "id.timestamp.body">
//!
//! {"type":"payment.confirmed","timestamp":"2026-01-05T10:00:06Z","data":{"user_id":"user_123","tier":"pro","tier_rank":1,
//!  "credits":5000,"access_until":null,"version":3,"first_paid_at":"2026-01-05T10:00:05Z"}}
//! ```
//! `payment.confirmed` comes once for each user, `account.updated` after every change of tier or balance,
//! with the account as it is when the request is made: of several quick changes the last may be the only one
//! told, and `version` only grows.
//!
//! Any 2xx is a yes. Everything else is tried again by the law of all queues; after the last attempt the job
//! is `failed`, in the log, in an alert, and for an operator to run again. Redirects are not followed; only
//! public addresses over https are called.

use std::time::Duration;

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::alerts::{Alert, Alerts};
use crate::config::ProvisionConfig;
use crate::outbox::Nudge;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::http::Http;
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::account::Account;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::job::JobKind;
use tallyhook_core::setup_status::ProvisioningState;
use tallyhook_core::timestamp::Timestamp;

/// The app has so long to answer; the function itself is ended after 30 s.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The function.
pub struct Provision {
    store: Store,
    queue: Queue,
    alerts: Alerts,
    http: Http,
    config: ProvisionConfig,
}

/// Why a job is not done.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The app did not take it.
    #[error("{0}")]
    App(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Provision {
    /// Builds it from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(ProvisionConfig::from_env(env)?, dynamodb, sqs))
    }

    /// The same over given clients.
    pub fn new(config: ProvisionConfig, dynamodb: sdk::DynamoDb, sqs: sdk::Sqs) -> Self {
        let queue = Queue::new(sqs);
        Self {
            store: Store::new(dynamodb, config.accounts_table.clone(), config.events_table.clone()),
            alerts: Alerts::new(queue.clone(), config.notify_queue_url.clone()),
            queue,
            http: Http::within(config.reach),
            config,
        }
    }

    /// Does a batch of jobs and names those that are to come back.
    ///
    /// # Errors
    /// None; a job that is not done is part of the answer.
    pub async fn handle(&self, batch: SqsEvent) -> Result<SqsBatchResponse, lambda_runtime::Error> {
        let mut response = SqsBatchResponse::default();
        let mut delays = Vec::new();
        let done = join_all(batch.records.iter().map(|message| self.one(message))).await;
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

    /// Does one job; an error is the seconds until its next attempt, where the law has one.
    async fn one(&self, message: &SqsMessage) -> Result<(), Option<u32>> {
        let Ok(nudge) = serde_json::from_str::<Nudge>(message.body.as_deref().unwrap_or_default()) else {
            warn!(message_id = message.message_id, "PROVISIONING_UNREADABLE");
            return Ok(());
        };
        let attempt = attempt(message);
        let place = usize::try_from(attempt).unwrap_or(usize::MAX).saturating_sub(1);
        let delay = self.config.retry_delays_seconds.get(place).copied();
        let Err(trouble) = self.work(&nudge, delay, clock::now()).await else { return Ok(()) };
        let (job, user_id, error) = (nudge.job.as_str(), nudge.user_id.as_str(), trouble.to_string());
        warn!(job, user_id, error, attempt, next_attempt_seconds = delay, "PROVISIONING_FAILED");
        if delay.is_none() && self.give_up(&nudge, attempt).await { Ok(()) } else { Err(delay) }
    }

    async fn work(&self, nudge: &Nudge, delay: Option<u32>, now: Timestamp) -> Result<(), Trouble> {
        let (job_key, account_key) =
            (items::job_key(nudge.job, &nudge.user_id), Key::Account(nudge.user_id.clone()));
        let items = self.store.load([job_key.clone(), account_key.clone()]).await?;
        let (Some(job), Some(account)) = (items.get(&job_key), items.get(&account_key)) else {
            return Ok(());
        };
        let Some(written) = items::read_number::<i64>(job, "seen") else { return Ok(()) };
        if items::read_text(job, "outcome").as_deref() == Some("completed") {
            return Ok(());
        }
        let (name, user_id) = (nudge.job.as_str(), nudge.user_id.as_str());
        let attempts = items::read_number::<u32>(job, "attempts").unwrap_or(0).saturating_add(1);
        // Until then `retry` leaves it alone: the queue brings it back before, unless its message is lost.
        let due = now
            .plus_seconds(items::redrive_pause_seconds(0) + i64::from(delay.unwrap_or(0)))
            .unix()
            .saturating_mul(1000);
        if !self.store.start_job(nudge.job, &nudge.user_id, written, attempts, due).await? {
            // It was written anew at this moment, and its own message is on the way.
            return Ok(());
        }
        info!(job = name, user_id, attempt = attempts, "PROVISIONING_STARTED");
        let account = items::read_account(&nudge.user_id, account)?;
        let told = match &self.config.url {
            Some(url) => self.tell(url, nudge, &account, now).await,
            None => Ok(()),
        };
        let (state, reason) = match &told {
            Ok(()) if self.config.url.is_none() => {
                (ProvisioningState::Completed, "no PROVISION_URL: there was nothing to call".to_owned())
            }
            Ok(()) => (ProvisioningState::Completed, "the app took it".to_owned()),
            Err(error) => (ProvisioningState::Queued, error.clone()),
        };
        self.store.end_job(nudge.job, &nudge.user_id, written, state, &reason, clock::now_ms()).await?;
        told.map_err(Trouble::App)?;
        info!(job = name, user_id, called = self.config.url.is_some(), "PROVISIONING_COMPLETED");
        Ok(())
    }

    async fn tell(&self, url: &str, nudge: &Nudge, account: &Account, now: Timestamp) -> Result<(), String> {
        let kind = match nudge.job {
            JobKind::Provision => "payment.confirmed",
            JobKind::Account => "account.updated",
        };
        let body = json!({"type": kind, "timestamp": now.to_string(), "data": data(account, &self.config.catalog, now)}).to_string();
        let id = webhook_id(nudge, account.version);
        let request = Request::post(url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("tallyhook/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &id)
            .header("webhook-timestamp", now.unix().to_string())
            .header("webhook-signature", sign(&self.config.secret, &id, now, &body));
        let request = request.body(body).map_err(|_| "PROVISION_URL is no address".to_owned())?;
        let answer = self.http.send(request, TIMEOUT).await.map_err(|error| error.to_string())?;
        // A redirect counts as a failure, too: following it would leave the address that was checked.
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("the app answered {}", answer.status().as_u16()))
        }
    }

    /// After the last attempt. `false` leaves the message to the dead-letter queue.
    async fn give_up(&self, nudge: &Nudge, attempts: u32) -> bool {
        let failed = fail(&self.store, nudge, "all attempts failed").await;
        if let Err(error) = &failed {
            warn!(
                job = nudge.job.as_str(),
                user_id = nudge.user_id.as_str(),
                error = error.to_string(),
                "PROVISIONING_NOT_MARKED"
            );
            return false;
        }
        let event_id = items::job_key(nudge.job, &nudge.user_id).partition();
        let event_type = nudge.job.event().to_owned();
        self.alerts.send(&Alert::DeadLetter { event_id, event_type, attempts, events: 1 }).await;
        true
    }
}

/// Notes that a job is given up until an operator runs it again, with what its last attempt came to.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn fail(store: &Store, nudge: &Nudge, why: &str) -> Result<(), StoreError> {
    let key = items::job_key(nudge.job, &nudge.user_id);
    let items = store.load([key.clone()]).await?;
    let Some(job) = items.get(&key) else { return Ok(()) };
    let text = |name: &str| items::read_text(job, name).unwrap_or_default();
    let Some(written) = items::read_number::<i64>(job, "seen").filter(|_| text("outcome") != "completed")
    else {
        return Ok(());
    };
    let reason = format!("{why}; the last one: {}", text("reason"));
    let failed = ProvisioningState::Failed;
    store.end_job(nudge.job, &nudge.user_id, written, failed, &reason, clock::now_ms()).await?;
    Ok(())
}

fn data(account: &Account, catalog: &Catalog, now: Timestamp) -> Value {
    let access = account.state.access(catalog, now);
    json!({
        "user_id": account.user_id,
        "tier": access.tier,
        "tier_rank": access.rank,
        "credits": account.state.balance(&catalog.policy, now),
        "access_until": access.until.map(|until| until.to_string()),
        "version": account.version,
        "first_paid_at": account.state.first_paid_at.map(|at| at.to_string()),
    })
}

/// What the app tells repetitions by. A user id may hold any character, an id in a header may not.
fn webhook_id(nudge: &Nudge, version: u64) -> String {
    let hex: String =
        Sha256::digest(nudge.user_id.as_str()).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    match nudge.job {
        JobKind::Provision => format!("provision_{hex}"),
        JobKind::Account => format!("account_{hex}_{version}"),
    }
}

/// `v1,<base64>`, as Standard Webhooks has it: what `webhook-signature` says of a body. A receiver makes it
/// again and compares.
pub fn sign(secret: &[u8], id: &str, now: Timestamp, body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    let mac = mac.chain_update(format!("{id}.{}.{body}", now.unix()));
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn attempt(message: &SqsMessage) -> u32 {
    message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// A message of the queue of `provision` that ended in the dead-letter queue; `None` for one that is not.
pub(crate) fn read_nudge(body: &str) -> Option<Nudge> {
    serde_json::from_str(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_of_the_specifications_example() {
        // github.com/standard-webhooks: the test vector that every library of it has.
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
