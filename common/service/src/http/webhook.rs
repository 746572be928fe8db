//! `stripe-webhook`: verifies a request, picks the queue, sends one message, answers 200.
//!
//! | request | answer |
//! |---|---|
//! | `POST` to one of [`ENDPOINTS`] | 200 `{"received":true}` after SQS stored the event |
//! | bad signature | 400 `missing_signature`, `invalid_signature`, `timestamp_out_of_tolerance` |
//! | bad body | 400 `malformed_event` |
//! | a body over 6 MB, or one that does not fit into a message | 413 `too_large` |
//! | SQS does not take the message | 503 `queue_unavailable`; Stripe sends the event again |
//! | `GET`, `HEAD /webhooks/stripe/health` | 200 with the number of secrets of each mode |
//!
//! **Invariant:** the answer is 2xx only after SQS stored the event. **Invariant:** a request that is not
//! verified changes nothing.

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

/// The path of the endpoint, and the paths of the systems that tallyhook replaces. Each may end with
/// a slash.
pub const ENDPOINTS: [&str; 3] = ["/webhooks/stripe", "/api/webhook/stripe", "/api/webhooks/stripe"];

/// The largest request that API Gateway passes to Lambda.
const MAX_BYTES: usize = 6 * 1024 * 1024;

/// This many requests with a signature of an unknown secret within [`BURST_MS`] cause an alert.
const BURST: u32 = 5;
const BURST_MS: i64 = 600_000;
/// The shortest time between two such alerts.
const ALERT_PAUSE_MS: i64 = 3_600_000;
/// A larger difference between the signature's time and our clock means that one of the clocks is wrong:
/// Stripe signs each attempt when it sends it.
const MAX_CLOCK_OFFSET_SECONDS: i64 = 30;

/// The function, with its configuration and clients.
pub struct Webhook {
    config: WebhookConfig,
    secrets: Secrets,
    queue: Queue,
    alerts: Alerts,
    signatures: Mutex<Signatures>,
}

/// Counts of verified and refused signatures of this instance.
///
/// A refused request makes no call, with one exception: the request that completes a burst sends the alert.
/// So a sender without the secret can cause at most one message per hour and instance. Where events are too
/// rare for a burst within the life of an instance, an alarm on the metric `SignaturesRefused` counts them.
#[derive(Debug, Default)]
struct Signatures {
    since_ms: i64,
    refused: u32,
    verified: u32,
    alerted_ms: Option<i64>,
}

impl Signatures {
    /// The counts of the current time window.
    fn current(&mut self, now_ms: i64) -> &mut Self {
        if now_ms - self.since_ms > BURST_MS {
            *self = Self { since_ms: now_ms, alerted_ms: self.alerted_ms, ..Self::default() };
        }
        self
    }

    /// Counts a refused signature. Returns the alert to send when it completes a burst.
    fn count_refused(&mut self, now_ms: i64) -> Option<Alert> {
        let counts = self.current(now_ms);
        counts.refused = counts.refused.saturating_add(1);
        if counts.refused < BURST || counts.alerted_ms.is_some_and(|at| now_ms - at < ALERT_PAUSE_MS) {
            return None;
        }
        counts.alerted_ms = Some(now_ms);
        Some(Alert::BadSignatures {
            refused: counts.refused,
            verified: counts.verified,
            seconds: (now_ms - counts.since_ms) / 1000,
        })
    }

    fn count_verified(&mut self, now_ms: i64) {
        let counts = self.current(now_ms);
        counts.verified = counts.verified.saturating_add(1);
    }
}

/// An error answer.
struct Rejection {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

impl Webhook {
    /// Builds the function from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let config = WebhookConfig::from_env(env)?;
        Ok(Self::new(config, sdk::sqs(&sdk::sdk_config(env, "SQS")?)))
    }

    /// Builds the function with a given client.
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

    /// Opens the connection to SQS. Called once, before the first request.
    pub async fn prewarm(&self) {
        if let Some(queue_url) = self.config.queues.values().next() {
            self.queue.prewarm(queue_url).await;
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every failure becomes an answer.
    pub async fn handle(&self, call: Call) -> Result<Answer, lambda_runtime::Error> {
        let (method, path) = call.route();
        let answer = if is_endpoint(path) {
            if method == "POST" { self.endpoint(call).await } else { Answer::other_method("POST") }
        } else if without_slash(path) == "/webhooks/stripe/health" {
            match method {
                "GET" => Answer::new(StatusCode::OK, &self.health()),
                "HEAD" => Answer::new(StatusCode::OK, &self.health()).without_body(),
                _ => Answer::other_method("GET, HEAD"),
            }
        } else {
            Answer::error(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
        };
        Ok(answer)
    }

    async fn endpoint(&self, call: Call) -> Answer {
        match self.receive(call).await {
            Ok(()) => Answer::new(StatusCode::OK, &json!({"received": true})),
            Err(rejection) => Answer::error(rejection.status, rejection.code, rejection.message),
        }
    }

    async fn receive(&self, call: Call) -> Result<(), Rejection> {
        let (header, body) = call.into_parts();
        let header = header.as_deref().map(str::as_bytes);
        let Some(body) = body else {
            let message = "the body is marked as base64 but is not base64";
            warn!(code = "malformed_event", error = message, "WEBHOOK_REFUSED");
            return Err(Rejection { status: StatusCode::BAD_REQUEST, code: "malformed_event", message });
        };
        if body.len() > MAX_BYTES {
            return Err(too_large());
        }
        let received_ms = clock::now_ms();
        let mode = match self.verify(&body, header, received_ms).await {
            Ok(mode) => mode,
            Err(refusal) => {
                warn!(
                    code = refusal.code(),
                    error = %refusal,
                    hint = refusal.hint(),
                    body_bytes = body.len(),
                    "WEBHOOK_REFUSED"
                );
                // Count only well-formed signatures of another secret: they point to a wrong secret here.
                // Scanners send no signature.
                if matches!(refusal, Refusal::NoMatch { .. }) {
                    telemetry::metrics(&[], &[("SignaturesRefused", 1.0)]);
                    let alert = self.signatures().count_refused(received_ms);
                    if let Some(alert) = alert {
                        self.alerts.send(&alert).await;
                    }
                }
                let message = "the request could not be verified; the log of this function says why";
                return Err(Rejection { status: StatusCode::BAD_REQUEST, code: refusal.code(), message });
            }
        };
        self.signatures().count_verified(received_ms);
        let head = event::read_head(&body).map_err(|error| malformed(&error))?;
        // The worker of the quietest queue records the types that no family handles.
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

    /// Verifies the signature and returns the mode of the secret that matched. When no secret matches, reads
    /// the secrets again and verifies once more, because they may have been rolled.
    async fn verify(&self, body: &[u8], header: Option<&[u8]>, now_ms: i64) -> Result<SecretMode, Refusal> {
        let now = Timestamp::from_unix(now_ms.div_euclid(1000));
        let verify_with = |secrets: &[Secret]| {
            let verdict = verify(body, header, secrets, now, self.config.tolerance_seconds);
            if let Some(seconds) = clock_offset_seconds(&verdict, now) {
                telemetry::metrics(&[], &[("ClockOffSeconds", seconds)]);
            }
            Ok(secrets.get(verdict?.secret_index).map_or(SecretMode::Any, Secret::mode))
        };
        let secrets = self.secrets.current();
        match verify_with(&secrets) {
            Err(refusal @ Refusal::NoMatch { .. }) => match self.secrets.newer(&secrets, now_ms).await {
                Some(newer) => verify_with(&newer),
                None => Err(refusal),
            },
            verdict => verdict,
        }
    }

    fn signatures(&self) -> MutexGuard<'_, Signatures> {
        self.signatures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> serde_json::Value {
        let secrets = self.secrets.current();
        let count = |mode: SecretMode| secrets.iter().filter(|secret| secret.mode() == mode).count();
        let (test, live) = (count(SecretMode::Test), count(SecretMode::Live));
        json!({
            "ok": true,
            "service": "stripe-webhook",
            "endpoint": ENDPOINTS[0],
            "secrets": {"test": test, "live": live, "any": count(SecretMode::Any)},
            "tolerance_seconds": self.config.tolerance_seconds,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("TALLYHOOK_COMMIT"),
        })
    }
}

/// Whether Stripe may send events to this path.
pub fn is_endpoint(path: &str) -> bool {
    ENDPOINTS.contains(&without_slash(path))
}

fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

/// The seconds between Stripe's clock and ours when they exceed [`MAX_CLOCK_OFFSET_SECONDS`]. `None` for a
/// signature that no secret verifies: its time proves nothing.
fn clock_offset_seconds(verdict: &Result<Verified, Refusal>, now: Timestamp) -> Option<f64> {
    let seconds = match verdict {
        Ok(verified) => now.seconds_since(verified.timestamp).saturating_abs(),
        Err(Refusal::TooOld { age_seconds: seconds } | Refusal::TooNew { ahead_seconds: seconds }) => {
            *seconds
        }
        Err(_) => return None,
    };
    (seconds > MAX_CLOCK_OFFSET_SECONDS).then(|| f64::from(u32::try_from(seconds).unwrap_or(u32::MAX)))
}

fn malformed(error: &ReadError) -> Rejection {
    warn!(code = "malformed_event", error = %error, "WEBHOOK_REFUSED");
    telemetry::metrics(&[], &[("MalformedEvents", 1.0)]);
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
    Rejection { status: StatusCode::BAD_REQUEST, code: "malformed_event", message }
}

fn too_large() -> Rejection {
    Rejection {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        code: "too_large",
        message: "the body is larger than this endpoint takes",
    }
}

fn unavailable() -> Rejection {
    let message = "the queue did not take the event; Stripe will send it again";
    Rejection { status: StatusCode::SERVICE_UNAVAILABLE, code: "queue_unavailable", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_signature_measures_the_clock_offset() {
        let now = Timestamp::from_unix(1_795_219_200);
        let signed = |seconds_ago: i64| {
            Ok(Verified { secret_index: 0, timestamp: Timestamp::from_unix(now.unix() - seconds_ago) })
        };
        for (verdict, offset) in [
            (signed(0), None),
            (signed(30), None),
            (signed(31), Some(31.0)),
            (signed(-120), Some(120.0)),
            (Err(Refusal::TooOld { age_seconds: 360 }), Some(360.0)),
            (Err(Refusal::TooNew { ahead_seconds: 400 }), Some(400.0)),
            (Err(Refusal::TooOld { age_seconds: i64::MAX }), Some(f64::from(u32::MAX))),
            (Err(Refusal::NoMatch { signatures: 1, secrets: 1 }), None),
        ] {
            assert_eq!(clock_offset_seconds(&verdict, now), offset, "{verdict:?}");
        }
    }
}
