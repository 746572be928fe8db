//! `stripe-webhook`: verify, route, one `SendMessage`, 200.
//!
//! | request | answer |
//! |---|---|
//! | `POST /webhooks/stripe` | 200 `{"received":true}` once the event is durably in its queue |
//! | a bad signature or body | 400 `missing_signature`, `invalid_signature`, `timestamp_out_of_tolerance`, `malformed_event` |
//! | a body beyond 6 MB, or one that fits into no message | 413 `too_large` |
//! | the queue does not take it | 503 `queue_unavailable`: Stripe sends it again |
//! | `GET /webhooks/stripe/health` | 200, how many secrets of which mode are configured |
//!
//! **Invariant:** an event is answered 2xx only after SQS has taken it; a request that is not verified
//! changes nothing anywhere.

mod call;
mod secrets;

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use serde_json::json;
use tracing::{error, info, warn};

use crate::alerts::{Alert, Alerts};
use crate::config::WebhookConfig;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::{Envelope, Queue, SendError};
use tallyhook_aws::sdk;
use tallyhook_aws::telemetry;
use tallyhook_core::event::{self, Family, ReadError};
use tallyhook_core::signature::{Refusal, Secret, SecretMode, Verified, verify};
use tallyhook_core::timestamp::Timestamp;

pub use call::{Answer, Call};
use secrets::Secrets;

/// What Lambda takes from API Gateway.
const MOST_BYTES: usize = 6 * 1024 * 1024;

/// So many requests whose signature matches no secret, within [`BURST_MS`], are a burst.
const BURST: u32 = 5;
const BURST_MS: i64 = 600_000;
/// After a burst was told, the next one is told so much later.
const QUIET_MS: i64 = 3_600_000;
/// A signature that is off by so much tells of a clock that is wrong: Stripe signs each attempt when it makes
/// it.
const CLOCK_SECONDS: i64 = 30;

/// The webhook: its configuration and its one client.
pub struct Webhook {
    config: WebhookConfig,
    secrets: Secrets,
    queue: Queue,
    alerts: Alerts,
    signatures: Mutex<Signatures>,
}

/// What this instance saw of signatures. A refused request makes no call, with one exception: the one that
/// completes a burst sends the alert about it. So whoever does not know the secret can cause one message an
/// hour and instance, and a wrong secret does not stay unseen. Where events are too rare to make a burst in
/// the life of an instance, an alarm on the metric `SignaturesRefused` adds them up.
#[derive(Debug, Default)]
struct Signatures {
    since_ms: i64,
    refused: u32,
    verified: u32,
    told_ms: Option<i64>,
}

impl Signatures {
    fn at(&mut self, now_ms: i64) -> &mut Self {
        if now_ms - self.since_ms > BURST_MS {
            *self = Self { since_ms: now_ms, told_ms: self.told_ms, ..Self::default() };
        }
        self
    }

    /// Counts a refusal; the alert, if it completes a burst.
    fn refuse(&mut self, now_ms: i64) -> Option<Alert> {
        let seen = self.at(now_ms);
        seen.refused = seen.refused.saturating_add(1);
        if seen.refused < BURST || seen.told_ms.is_some_and(|told| now_ms - told < QUIET_MS) {
            return None;
        }
        seen.told_ms = Some(now_ms);
        Some(Alert::BadSignatures {
            refused: seen.refused,
            verified: seen.verified,
            seconds: (now_ms - seen.since_ms) / 1000,
        })
    }
}

/// Why a request was not taken.
struct Refused {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

impl Webhook {
    /// Builds it from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let config = WebhookConfig::from_env(env)?;
        Ok(Self::new(config, sdk::sqs(&sdk::sdk_config(env, "SQS")?)))
    }

    /// The same over a given client.
    pub fn new(mut config: WebhookConfig, sqs: sdk::Sqs) -> Self {
        let queue = Queue::new(sqs);
        let secrets = Secrets::new(std::mem::take(&mut config.secrets), config.secrets_source.take());
        Self {
            alerts: Alerts::new(queue.clone(), config.notify_queue_url.clone()),
            config,
            secrets,
            queue,
            signatures: Mutex::default(),
        }
    }

    /// Opens the connection to SQS: once, before the first request.
    pub async fn prewarm(&self) {
        if let Some(queue_url) = self.config.queues.values().next() {
            self.queue.prewarm(queue_url).await;
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every failure is an answer.
    pub async fn handle(&self, call: Call) -> Result<Answer, lambda_runtime::Error> {
        Ok(match call.route() {
            ("POST", "/webhooks/stripe") => match self.receive(call).await {
                Ok(()) => Answer::new(StatusCode::OK, &json!({"received": true})),
                Err(refused) => Answer::error(refused.status, refused.code, refused.message),
            },
            ("GET", "/webhooks/stripe/health") => Answer::new(StatusCode::OK, &self.health()),
            (_, "/webhooks/stripe" | "/webhooks/stripe/health") => Answer::error(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Stripe sends events with POST",
            ),
            _ => Answer::error(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path"),
        })
    }

    async fn receive(&self, call: Call) -> Result<(), Refused> {
        let (header, body) = call.into_parts();
        let header = header.as_deref().map(str::as_bytes);
        let Some(body) = body else {
            let message = "the body is not the base64 that it is said to be";
            warn!(code = "malformed_event", error = message, "WEBHOOK_REFUSED");
            return Err(Refused { status: StatusCode::BAD_REQUEST, code: "malformed_event", message });
        };
        if body.len() > MOST_BYTES {
            return Err(too_large());
        }
        let received_ms = clock::now_ms();
        let mode = match self.verify(&body, header, received_ms).await {
            Ok(mode) => mode,
            Err(refusal) => {
                warn!(code = refusal.code(), error = %refusal, hint = refusal.hint(), body_bytes = body.len(), "WEBHOOK_REFUSED");
                // Only what is signed in Stripe's way with another secret speaks for a wrong one; scanners
                // send no signature.
                if matches!(refusal, Refusal::NoMatch { .. }) {
                    telemetry::metrics(&[], &[("SignaturesRefused", 1.0)]);
                    let burst = self.signatures().refuse(received_ms);
                    if let Some(alert) = burst {
                        self.alerts.send(&alert).await;
                    }
                }
                let message = "the request could not be verified; the log of this function says why";
                return Err(Refused { status: StatusCode::BAD_REQUEST, code: refusal.code(), message });
            }
        };
        {
            let mut signatures = self.signatures();
            let seen = signatures.at(received_ms);
            seen.verified = seen.verified.saturating_add(1);
        }
        let head = event::read_head(&body).map_err(|error| malformed(&error))?;
        // Types that no family handles are recorded once, by the worker of the quietest queue.
        let family = head.kind.family().unwrap_or(Family::Customer);
        let Some(queue_url) = self.config.queues.get(&family) else { return Err(unavailable()) };
        let sent = self.queue.send(queue_url, Envelope { body, received_ms, mode }).await;
        let (event_id, event_type) = (head.id.as_str(), head.kind.as_str());
        match sent {
            Ok(()) => {
                info!(event_id, event_type, livemode = head.livemode, "WEBHOOK_RECEIVED");
                Ok(())
            }
            Err(SendError::TooLarge) => {
                error!(event_id, event_type, code = "too_large", "WEBHOOK_REFUSED");
                Err(too_large())
            }
            Err(SendError::Unavailable(reason)) => {
                error!(event_id, event_type, code = "queue_unavailable", error = reason, "WEBHOOK_REFUSED");
                Err(unavailable())
            }
        }
    }

    /// Which mode the signature vouches for. Secrets that may have been rolled are read again before a
    /// signature is refused.
    async fn verify(&self, body: &[u8], header: Option<&[u8]>, now_ms: i64) -> Result<SecretMode, Refusal> {
        let now = Timestamp::from_unix(now_ms.div_euclid(1000));
        let with = |secrets: &[Secret]| {
            let verdict = verify(body, header, secrets, now, self.config.tolerance_seconds);
            if let Some(seconds) = clock_off(&verdict, now) {
                telemetry::metrics(&[], &[("ClockOffSeconds", seconds)]);
            }
            Ok(secrets.get(verdict?.secret_index).map_or(SecretMode::Any, Secret::mode))
        };
        let secrets = self.secrets.current();
        match with(&secrets) {
            Err(refusal @ Refusal::NoMatch { .. }) => match self.secrets.newer(&secrets, now_ms).await {
                Some(newer) => with(&newer),
                None => Err(refusal),
            },
            done => done,
        }
    }

    fn signatures(&self) -> MutexGuard<'_, Signatures> {
        self.signatures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> serde_json::Value {
        let secrets = self.secrets.current();
        let count = |mode: SecretMode| secrets.iter().filter(|secret| secret.mode() == mode).count();
        json!({
            "ok": true,
            "service": "stripe-webhook",
            "secrets": {"test": count(SecretMode::Test), "live": count(SecretMode::Live), "any": count(SecretMode::Any)},
            "tolerance_seconds": self.config.tolerance_seconds,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

/// How many seconds lie between Stripe's clock and this one, where that is worth a metric. Only a signature
/// that holds tells.
fn clock_off(verdict: &Result<Verified, Refusal>, now: Timestamp) -> Option<f64> {
    let seconds = match verdict {
        Ok(verified) => now.seconds_since(verified.timestamp).saturating_abs(),
        Err(Refusal::TooOld { age_seconds: seconds } | Refusal::TooNew { ahead_seconds: seconds }) => {
            *seconds
        }
        Err(_) => return None,
    };
    (seconds > CLOCK_SECONDS).then(|| f64::from(u32::try_from(seconds).unwrap_or(u32::MAX)))
}

fn malformed(error: &ReadError) -> Refused {
    warn!(code = "malformed_event", error = %error, "WEBHOOK_REFUSED");
    let message = match error {
        ReadError::Thin => "this is a thin event; the endpoint must be set to snapshot events",
        ReadError::EventBridge => "this is an EventBridge envelope; post the event under `detail`",
        ReadError::NotUtf8(_)
        | ReadError::NotJson(_)
        | ReadError::NotAnObject
        | ReadError::NotAnEvent
        | ReadError::Missing { .. }
        | ReadError::Wrong { .. }
        | ReadError::Id { .. } => "the body is signed and is not a Stripe event",
    };
    Refused { status: StatusCode::BAD_REQUEST, code: "malformed_event", message }
}

fn too_large() -> Refused {
    Refused {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        code: "too_large",
        message: "the body is larger than this endpoint takes",
    }
}

fn unavailable() -> Refused {
    let message = "the queue did not take the event; Stripe will send it again";
    Refused { status: StatusCode::SERVICE_UNAVAILABLE, code: "queue_unavailable", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_by_signatures_that_hold_and_by_no_others() {
        let now = Timestamp::from_unix(1_795_219_200);
        let signed = |seconds_ago: i64| {
            Ok(Verified { secret_index: 0, timestamp: Timestamp::from_unix(now.unix() - seconds_ago) })
        };
        for (verdict, told) in [
            (signed(0), None),
            (signed(30), None),
            (signed(31), Some(31.0)),
            (signed(-120), Some(120.0)),
            (Err(Refusal::TooOld { age_seconds: 360 }), Some(360.0)),
            (Err(Refusal::TooNew { ahead_seconds: 400 }), Some(400.0)),
            (Err(Refusal::TooOld { age_seconds: i64::MAX }), Some(f64::from(u32::MAX))),
            (Err(Refusal::NoMatch { signatures: 1, secrets: 1 }), None),
        ] {
            assert_eq!(clock_off(&verdict, now), told, "{verdict:?}");
        }
    }
}
