//! Messages to the operator, and how they reach the function `notify`.
//!
//! An alert is one of a closed list of cases with typed fields. Only these fields can reach a chat, so
//! payloads, secrets and personal data cannot. An alert is a message on the queue `tallyhook-notify`:
//!
//! ```json
//! {"alert":"parked","event_id":"evt_1","event_type":"invoice.paid","reason":"no_user",
//!  "waits_for":"customer#cus_1"}
//! ```

pub mod notify;

use serde::{Deserialize, Serialize};
use tracing::warn;

use tallyhook_aws::queue::Queue;
use tallyhook_aws::telemetry;
use tallyhook_core::health::Deduction;

/// A case that an operator must know about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "alert", rename_all = "snake_case")]
pub enum Alert {
    /// An event was parked.
    Parked {
        /// The event's id.
        event_id: String,
        /// Stripe's event type.
        event_type: String,
        /// The reason, as in the log.
        reason: String,
        /// What the event waits for.
        waits_for: Option<String>,
    },
    /// Something is wrong in the Stripe account. It is sent once, when it is found.
    StripeAccount {
        /// The finding's key.
        key: String,
        /// The problem in words.
        problem: String,
        /// What to do.
        fix: String,
    },
    /// No event arrived for the policy's `quiet_hours`.
    Quiet {
        /// These hours.
        hours: u64,
    },
    /// An event bills a price that has left the catalog.
    PriceNotInCatalog {
        /// The price.
        price: String,
        /// The id of the event.
        event_id: String,
    },
    /// An event has an API version that is newer than the known ones.
    UnknownVersion {
        /// The version, cut to 32 characters.
        version: String,
        /// The id of the event.
        event_id: String,
    },
    /// Metadata names a second user for a customer.
    SharedCustomer {
        /// The customer.
        customer: String,
        /// The user who owns the customer.
        owner: String,
        /// The other user.
        user: String,
        /// What the customer's subscriptions gave the owner before.
        granted: Vec<String>,
    },
    /// Events used up their retries and arrived in the dead-letter queue.
    DeadLetter {
        /// The id of the first event.
        event_id: String,
        /// Stripe's type of the first event.
        event_type: String,
        /// The number of attempts.
        attempts: u32,
        /// The number of events.
        events: usize,
    },
    /// The log has too many failed events.
    Failed {
        /// The number of failed events.
        events: u64,
    },
    /// Many requests with a wrong signature arrived within a short time.
    BadSignatures {
        /// The number of refused requests.
        refused: u32,
        /// The number of requests verified in the same time; 0 means that the secret is probably wrong.
        verified: u32,
        /// The length of that time in seconds.
        seconds: i64,
    },
    /// A message waits too long in its queue.
    OldMessage {
        /// The name of the queue.
        queue: String,
        /// How long it has waited.
        seconds: u64,
    },
    /// Reconciliation found records of Stripe that are missing here.
    Missing {
        /// Records that are still missing.
        records: u64,
        /// Records that the run added.
        #[serde(default)]
        repaired: u64,
    },
    /// Reconciliation found differences that it did not repair.
    Unrepaired {
        /// The number of differences of each class, such as `2 credits`.
        left: Vec<String>,
        /// Objects that could not be compared.
        failures: u64,
        /// A digest of the differences: the same ones are alerted once a day.
        digest: String,
    },
    /// A run of reconciliation stopped at an error.
    ReconcileStopped,
    /// No reconciliation was complete for a long time.
    NotReconciled {
        /// Hours since the last complete one.
        hours: i64,
    },
    /// The health score is low.
    Score {
        /// From 0 to 100.
        score: u8,
        /// The reasons for the lost points.
        deductions: Vec<Deduction>,
    },
    /// A CloudWatch alarm of this deployment changed its state.
    Alarm {
        /// Its name.
        name: String,
        /// CloudWatch's text, with the numbers and the threshold.
        reason: String,
    },
}

impl Alert {
    /// Alerts with the same key say the same. After one is posted, the next is held for
    /// [`Alert::quiet_seconds`].
    pub fn key(&self) -> String {
        match self {
            Self::Parked { reason, .. } => format!("parked#{reason}"),
            Self::PriceNotInCatalog { price, .. } => format!("price_not_in_catalog#{price}"),
            Self::UnknownVersion { version, .. } => format!("unknown_version#{version}"),
            Self::SharedCustomer { customer, .. } => format!("shared_customer#{}", hidden(customer)),
            Self::StripeAccount { key, .. } => format!("stripe_account#{key}"),
            Self::Quiet { .. } => "quiet".to_owned(),
            Self::DeadLetter { .. } => "dead_letter".to_owned(),
            Self::Failed { .. } => "failed".to_owned(),
            Self::BadSignatures { .. } => "bad_signatures".to_owned(),
            Self::OldMessage { queue, .. } => format!("old_message#{queue}"),
            Self::Missing { .. } => "missing".to_owned(),
            Self::Unrepaired { digest, .. } => format!("unrepaired#{digest}"),
            Self::ReconcileStopped => "reconcile_stopped".to_owned(),
            Self::NotReconciled { .. } => "not_reconciled".to_owned(),
            Self::Score { .. } => "score".to_owned(),
            Self::Alarm { name, .. } => format!("alarm#{name}"),
        }
    }

    /// How long alerts with the same key are held: an hour for something that happened, six hours for a state
    /// that `health` checks every hour, a day for differences and findings that wait for an operator, 90 days for a price
    /// that has left the catalog, which every renewal bills again, and for an API version, which every event
    /// has.
    pub fn quiet_seconds(&self) -> i64 {
        match self {
            Self::PriceNotInCatalog { .. } | Self::UnknownVersion { .. } => 90 * 86_400,
            Self::Unrepaired { .. } | Self::StripeAccount { .. } => 86_400,
            Self::Parked { .. }
            | Self::SharedCustomer { .. }
            | Self::DeadLetter { .. }
            | Self::BadSignatures { .. }
            | Self::OldMessage { .. }
            | Self::Alarm { .. } => 3_600,
            Self::Quiet { .. }
            | Self::Failed { .. }
            | Self::Missing { .. }
            | Self::ReconcileStopped
            | Self::NotReconciled { .. }
            | Self::Score { .. } => 21_600,
        }
    }

    /// One line that says what happened.
    pub fn title(&self) -> String {
        match self {
            Self::Parked { reason, .. } => format!("A Stripe event is parked: {reason}"),
            Self::PriceNotInCatalog { price, .. } => format!("Price {price} has left the catalog"),
            Self::UnknownVersion { version, .. } => format!("Events have the unknown API version {version}"),
            Self::SharedCustomer { customer, .. } => {
                format!("Customer {customer} pays for several users")
            }
            Self::StripeAccount { problem, .. } => format!("Stripe: {problem}"),
            Self::Quiet { hours } => format!("No event has arrived for {hours} hours"),
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
                format!("{repaired} records of Stripe were missing here and were added")
            }
            Self::Missing { records, repaired } => {
                format!("{records} records of Stripe are missing here, {repaired} were added")
            }
            Self::Unrepaired { left, failures: 0, .. } => {
                format!("Reconciliation left differences to you: {}", left.join(", "))
            }
            Self::Unrepaired { left, failures, .. } => {
                let failures = format!("{failures} not compared");
                let all: Vec<&str> =
                    left.iter().map(String::as_str).chain(std::iter::once(failures.as_str())).collect();
                format!("Reconciliation left differences to you: {}", all.join(", "))
            }
            Self::ReconcileStopped => "Reconciliation stopped at an error".to_owned(),
            Self::NotReconciled { hours } => format!("No reconciliation was complete for {hours} hours"),
            Self::Score { score, .. } => format!("Health is at {score} of 100"),
            Self::Alarm { name, .. } => format!("Alarm {name}"),
        }
    }

    /// Why it matters and what to do.
    pub fn advice(&self) -> String {
        match self {
            Self::Parked { reason, .. } => parked_advice(reason).to_owned(),
            Self::PriceNotInCatalog { .. } => {
                "Subscriptions still have this price, and catalog.toml does not. Their users keep plan and \
                 tier, and a renewal grants what the last period was worth. A new subscription with this \
                 price is parked. If the price is still sold, add it to its plan and deploy."
                    .to_owned()
            }
            Self::UnknownVersion { .. } => {
                "Events of this version are applied as far as their fields are where they were. Run setup: it \
                 makes an endpoint of a known version. Or update tallyhook, and compare the accounts with \
                 Stripe (POST /admin/stripe/reconcile)."
                    .to_owned()
            }
            Self::SharedCustomer { .. } => {
                "Each subscription belongs to the user in its own metadata, and what was granted before \
                 stays with the customer's owner. From now on an event of this customer that names no user \
                 is parked. If something that was granted before belongs to the other user, move the \
                 subscription (POST /admin/stripe/fix-user/{user_id} with the action move)."
                    .to_owned()
            }
            Self::StripeAccount { fix, .. } => format!("Fix: {fix}. The command doctor checks the rest."),
            Self::Quiet { .. } => {
                "If you sell more often than that, events do not arrive. Look at the endpoint's page at Stripe: \
                 it may be disabled, or have another URL. The command doctor names the cause. Else raise \
                 quiet_hours in the catalog's policy; 0 is never."
                    .to_owned()
            }
            Self::DeadLetter { .. } | Self::Failed { .. } => {
                "Nothing is lost: each event is in the event log with its payload. The log lines \
                 WEBHOOK_PROCESSING_FAILED of the event say what failed. When the cause is fixed, POST \
                 /admin/stripe/retry-webhooks sends the event again. The schedule retries it too."
                    .to_owned()
            }
            Self::BadSignatures { verified: 0, .. } => {
                "Every event is refused, so payments are not applied. Copy the signing secret (whsec_…) of \
                 this endpoint from its page at Stripe into the parameter that STRIPE_WEBHOOK_SECRET names, \
                 and check that it has the right mode. Stripe retries the refused events for three days."
                    .to_owned()
            }
            Self::BadSignatures { .. } => {
                "Other requests were verified in the same time. Either a second endpoint with an unknown \
                 secret sends here, or a stranger calls the address. The log lines WEBHOOK_REFUSED have a hint."
                    .to_owned()
            }
            Self::OldMessage { .. } => {
                "The queue's function is too slow or does not run: look at its errors and throttles. SQS \
                 keeps messages for four days."
                    .to_owned()
            }
            Self::Missing { .. } => {
                "Webhooks did not arrive. Check the endpoint in Stripe's dashboard: is it enabled, does its \
                 URL answer, does it have every event type? GET /admin/stripe/gap lists the missing events \
                 of the last day; POST /admin/stripe/reconcile repairs what it can."
                    .to_owned()
            }
            Self::Unrepaired { .. } => {
                "They differ between Stripe and the accounts, and only an operator may decide them. A dry run \
                 in the dashboard (Reconcile) lists each with its reason; so do the log lines RECONCILE_LEFT \
                 and RECONCILE_FAILED."
                    .to_owned()
            }
            Self::ReconcileStopped => {
                "The log line RECONCILE_FINISHED has the reason: a Stripe key that was revoked or may not read \
                 enough, Stripe, or the tables. The next run continues there."
                    .to_owned()
            }
            Self::NotReconciled { .. } => {
                "What is missing or differs since then is not known. Look at the errors of the function \
                 reconcile, its schedule, and the log lines RECONCILE_FINISHED: a Stripe key that was revoked \
                 stops every run."
                    .to_owned()
            }
            Self::Score { deductions, .. } => {
                let line = |deduction: &Deduction| {
                    format!("−{} {}: {}", deduction.points, deduction.reason, deduction.advice)
                };
                deductions.iter().map(line).collect::<Vec<_>>().join("\n")
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
            Self::PriceNotInCatalog { price, event_id } => {
                vec![("price", price.clone()), ("event", event_id.clone())]
            }
            Self::UnknownVersion { version, event_id } => {
                vec![("version", version.clone()), ("event", event_id.clone())]
            }
            Self::SharedCustomer { customer, owner, user, granted } => {
                let granted = if granted.is_empty() { "nothing".to_owned() } else { granted.join("; ") };
                vec![
                    ("customer", customer.clone()),
                    ("owner", owner.clone()),
                    ("other user", user.clone()),
                    ("granted before", granted),
                ]
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
            Self::StripeAccount { .. }
            | Self::Quiet { .. }
            | Self::Failed { .. }
            | Self::Missing { .. }
            | Self::Unrepaired { .. }
            | Self::ReconcileStopped
            | Self::NotReconciled { .. }
            | Self::Score { .. }
            | Self::Alarm { .. } => Vec::new(),
        }
    }
}

/// An id for the log. A merchant may choose an e-mail address as a customer's id.
fn hidden(id: &str) -> &str {
    if id.contains('@') { "(withheld)" } else { id }
}

fn parked_advice(reason: &str) -> &'static str {
    match reason {
        "no_user" => {
            "The customer paid, and no user is linked to this customer. Link the customer to a user (POST \
             /admin/stripe/fix-user/{user_id}); the event is then applied at once. To avoid this, create \
             sessions with POST /checkout-sessions, or set metadata.user_id on the subscription."
        }
        "unknown_price" | "unknown_name" => {
            "Something was sold that catalog.toml does not have. Add it and deploy; the next scheduled retry \
             applies the event."
        }
        "unnamed_purchase" => {
            "The session does not name what was bought. Set metadata.pack or metadata.plan when creating \
             sessions."
        }
        "no_grant" => {
            "A payment that granted nothing here was refunded or disputed. If the event of the purchase is \
             missing, replay it."
        }
        "owner_conflict" => {
            "The event names another user than the owner of its subscription. If the event is right, move the \
             subscription (POST /admin/stripe/fix-user/{user_id} with the action move) and send the event \
             again. If not, dismiss it (POST /admin/stripe/webhook-logs/{id}/dismiss)."
        }
        "conflict" => {
            "The same document arrived with another amount. Compare it at Stripe, then fix the user by hand."
        }
        "payload_mismatch" => {
            "An event id arrived a second time with another content. The first content stays. If \
             someone else may have the signing secret, roll it."
        }
        _ => "Read the event and its message: GET /admin/stripe/webhook-logs/{id}.",
    }
}

/// Sends alerts to the queue of `notify`.
#[derive(Clone, Debug)]
pub struct Alerts {
    queue: Queue,
    queue_url: Option<String>,
}

impl Alerts {
    /// Sends to this queue; without one, alerts are only logged.
    pub fn new(queue: Queue, queue_url: Option<String>) -> Self {
        Self { queue, queue_url }
    }

    /// Sends an alert. A failure is logged and does not fail the caller.
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
            telemetry::metrics(&[], &[("AlertsLost", 1.0)]);
        }
    }
}
