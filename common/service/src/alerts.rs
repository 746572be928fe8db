//! What people are told when something needs them, and how it travels to `notify`.
//!
//! An alert is a closed list of cases with typed fields: what is not a field here cannot reach a chat, so no
//! payload, secret or personal datum does. It is a message on the queue `tallyhook-notify`:
//!
//! ```json
//! {"alert":"parked","event_id":"evt_1","event_type":"invoice.paid","reason":"no_user","waits_for":"customer#cus_1"}
//! ```

pub mod notify;

use serde::{Deserialize, Serialize};
use tracing::warn;

use tallyhook_aws::queue::Queue;
use tallyhook_core::health::Deduction;

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "alert", rename_all = "snake_case")]
pub enum Alert {
    /// An event was parked.
    Parked {
        /// Which.
        event_id: String,
        /// Stripe's type.
        event_type: String,
        /// Why, as in the log.
        reason: String,
        /// What would free it.
        waits_for: Option<String>,
    },
    /// The dead-letter queue was not empty: an event's retries are used up.
    DeadLetter {
        /// The first of them.
        event_id: String,
        /// Stripe's type.
        event_type: String,
        /// How often it was tried.
        attempts: u32,
        /// How many came together.
        events: usize,
    },
    /// More failed events are in the log than may be.
    Failed {
        /// How many.
        events: u64,
    },
    /// Requests with a wrong signature came one after the other.
    BadSignatures {
        /// How many.
        refused: u32,
        /// How many were verified meanwhile; none speaks for a wrong secret.
        verified: u32,
        /// Within how many seconds.
        seconds: i64,
    },
    /// A message waits for longer than it may.
    OldMessage {
        /// Its queue.
        queue: String,
        /// For how long.
        seconds: u64,
    },
    /// Reconciliation found records that Stripe has and we do not.
    Missing {
        /// How many still are.
        records: u64,
        /// How many were, until this run.
        #[serde(default)]
        repaired: u64,
    },
    /// The health score is low.
    Score {
        /// 0 to 100.
        score: u8,
        /// Where the points went.
        deductions: Vec<Deduction>,
    },
    /// A CloudWatch alarm of this deployment went off.
    Alarm {
        /// Its name.
        name: String,
        /// CloudWatch's words: numbers and a threshold.
        reason: String,
    },
}

impl Alert {
    /// Alerts with the same key say the same; one is enough for [`Alert::quiet_seconds`].
    pub fn key(&self) -> String {
        match self {
            Self::Parked { reason, .. } => format!("parked#{reason}"),
            Self::DeadLetter { .. } => "dead_letter".to_owned(),
            Self::Failed { .. } => "failed".to_owned(),
            Self::BadSignatures { .. } => "bad_signatures".to_owned(),
            Self::OldMessage { queue, .. } => format!("old_message#{queue}"),
            Self::Missing { .. } => "missing".to_owned(),
            Self::Score { .. } => "score".to_owned(),
            Self::Alarm { name, .. } => format!("alarm#{name}"),
        }
    }

    /// For how long the same is not said again: an hour for what happens, six for a state that health looks
    /// at every hour.
    pub fn quiet_seconds(&self) -> i64 {
        match self {
            Self::Parked { .. }
            | Self::DeadLetter { .. }
            | Self::BadSignatures { .. }
            | Self::OldMessage { .. }
            | Self::Alarm { .. } => 3_600,
            Self::Failed { .. } | Self::Missing { .. } | Self::Score { .. } => 21_600,
        }
    }

    /// What happened, in one line.
    pub fn title(&self) -> String {
        match self {
            Self::Parked { reason, .. } => format!("A Stripe event is parked: {reason}"),
            Self::DeadLetter { events: 1, .. } => "A Stripe event failed on every attempt".to_owned(),
            Self::DeadLetter { events, .. } => format!("{events} Stripe events failed on every attempt"),
            Self::Failed { events } => format!("{events} failed events wait in the log"),
            Self::BadSignatures { verified: 0, .. } => {
                "Stripe's signatures do not verify: the webhook secret is wrong".to_owned()
            }
            Self::BadSignatures { .. } => "Many requests with a wrong signature".to_owned(),
            Self::OldMessage { queue, seconds } => {
                format!("A message waits in {queue} for {} minutes", seconds / 60)
            }
            Self::Missing { records, repaired: 0 } => format!("{records} records of Stripe are missing here"),
            Self::Missing { records: 0, repaired } => {
                format!("{repaired} records of Stripe were missing here and have been made good")
            }
            Self::Missing { records, repaired } => {
                format!("{records} records of Stripe are missing here, {repaired} have been made good")
            }
            Self::Score { score, .. } => format!("Health is at {score} of 100"),
            Self::Alarm { name, .. } => format!("Alarm {name}"),
        }
    }

    /// Why it matters and what to do about it.
    pub fn advice(&self) -> String {
        match self {
            Self::Parked { reason, .. } => parked_advice(reason).to_owned(),
            Self::DeadLetter { .. } | Self::Failed { .. } => {
                "Nothing is lost: each is in the event log with its payload. The log lines WEBHOOK_PROCESSING_FAILED of the event say \
                 what failed; once that is mended, POST /admin/stripe/retry-webhooks sends it again. The schedule tries by itself, too."
                    .to_owned()
            }
            Self::BadSignatures { verified: 0, .. } => {
                "Every event is refused, so payments are not applied. Copy the signing secret (whsec_…) of this endpoint from its page at \
                 Stripe into the parameter that STRIPE_WEBHOOK_SECRET names, and check that it is of the right mode. Stripe sends what was \
                 refused again for three days."
                    .to_owned()
            }
            Self::BadSignatures { .. } => {
                "Other requests verified meanwhile: either a second endpoint sends here whose secret is not configured, or somebody \
                 tries the address. The log lines WEBHOOK_REFUSED have a hint."
                    .to_owned()
            }
            Self::OldMessage { .. } => {
                "The queue's function does not keep up or does not run: look at its errors and throttles. Messages are kept for four days."
                    .to_owned()
            }
            Self::Missing { .. } => {
                "Webhooks did not arrive. Look at the endpoint in Stripe's dashboard: is it enabled, does its URL answer, does it have every \
                 event type? GET /admin/stripe/gap lists what is missing of the last day; POST /admin/stripe/reconcile makes good what it can."
                    .to_owned()
            }
            Self::Score { deductions, .. } => {
                let lines = deductions.iter().map(|deduction| format!("−{} {}: {}", deduction.points, deduction.reason, deduction.advice));
                lines.collect::<Vec<_>>().join("\n")
            }
            Self::Alarm { reason, .. } => reason.clone(),
        }
    }

    /// The facts, by name.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Parked { event_id, event_type, reason, waits_for } => {
                let mut fields = vec![
                    ("event", event_id.clone()),
                    ("type", event_type.clone()),
                    ("reason", reason.clone()),
                ];
                fields.extend(waits_for.clone().map(|waits_for| ("waits for", waits_for)));
                fields
            }
            Self::DeadLetter { event_id, event_type, attempts, .. } => {
                vec![
                    ("event", event_id.clone()),
                    ("type", event_type.clone()),
                    ("attempts", attempts.to_string()),
                ]
            }
            Self::BadSignatures { refused, verified, seconds } => {
                vec![
                    ("refused", refused.to_string()),
                    ("verified", verified.to_string()),
                    ("within", format!("{seconds} s")),
                ]
            }
            Self::OldMessage { queue, .. } => vec![("queue", queue.clone())],
            Self::Failed { .. } | Self::Missing { .. } | Self::Score { .. } | Self::Alarm { .. } => {
                Vec::new()
            }
        }
    }
}

fn parked_advice(reason: &str) -> &'static str {
    match reason {
        "no_user" => {
            "The customer paid and we do not know who that is. Link the customer to a user (POST /admin/stripe/fix-user/{user_id}); the event \
             is applied at once. To avoid it, create sessions with POST /checkout-sessions, or set metadata.user_id on the subscription."
        }
        "unknown_price" | "unknown_name" => {
            "Something was sold that catalog.toml does not have. Add it and deploy; the next scheduled retry applies the event."
        }
        "unnamed_purchase" => {
            "The session does not say what was bought. Set metadata.pack or metadata.plan when creating sessions."
        }
        "no_grant" => {
            "Money went back for a payment that granted nothing here. If the purchase's own event is missing, replay it."
        }
        "conflict" => {
            "The same document came with another amount. Compare it at Stripe, then fix the user by hand."
        }
        "payload_mismatch" => {
            "An event id came a second time with another content. The first stands. Find out who can sign: roll the webhook secret if nobody should."
        }
        _ => "Read the event and its message: GET /admin/stripe/webhook-logs/{id}.",
    }
}

/// Where alerts go.
#[derive(Clone, Debug)]
pub struct Alerts {
    queue: Queue,
    queue_url: Option<String>,
}

impl Alerts {
    /// To this queue; without one, alerts are only logged.
    pub fn new(queue: Queue, queue_url: Option<String>) -> Self {
        Self { queue, queue_url }
    }

    /// Sends an alert. One that cannot be sent is logged and fails nothing.
    pub async fn send(&self, alert: &Alert) {
        let key = alert.key();
        warn!(alert = key, "ALERT");
        let Some(queue_url) = &self.queue_url else { return };
        let sent = match serde_json::to_string(alert) {
            Ok(body) => self.queue.send_text(queue_url, body).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            warn!(alert = key, error, "ALERT_NOT_SENT");
        }
    }
}
