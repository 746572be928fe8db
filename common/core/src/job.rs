//! Jobs that notify the app of a change.
//!
//! A job is written in the transaction of the change. The outbox does it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::account::low::LowKind;
use crate::ids::{SessionId, UserId};

/// The type of the message that a job sends to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// The first payment of a user is confirmed: the app sets the user up.
    Provision,
    /// The tier or the balance changed.
    Account,
    /// An order is paid.
    OrderPaid,
    /// All of an order's payment went back.
    OrderRefunded,
    /// The user has a product that the user did not have before.
    ProductGranted,
    /// The user lost a product.
    ProductRevoked,
    /// A subscription began to run, with a trial or a payment.
    SubscriptionStarted,
    /// A later period of a subscription is paid.
    SubscriptionRenewed,
    /// The status, plan, price or quantity of a running subscription changed, or its end was cancelled.
    SubscriptionChanged,
    /// A running subscription has a planned end.
    SubscriptionEnding,
    /// A subscription that ran has ended.
    SubscriptionEnded,
    /// A trial ends in a few days.
    TrialEnding,
    /// A payment failed.
    PaymentFailed,
    /// A payment waits for the customer, for example for 3D Secure.
    PaymentActionRequired,
    /// The balance fell below thresholds.
    CreditsLow,
    /// The balance fell to 0.
    CreditsDepleted,
    /// The balance reached thresholds again.
    CreditsRestored,
    /// A refund, or the failure of a refund, moved what was paid.
    RefundApplied,
    /// A dispute holds a payment.
    DisputeOpened,
    /// A dispute is won or lost.
    DisputeClosed,
    /// The last plan that gave access ended.
    AccessEnded,
}

impl From<LowKind> for JobKind {
    fn from(kind: LowKind) -> Self {
        match kind {
            LowKind::Low => Self::CreditsLow,
            LowKind::Depleted => Self::CreditsDepleted,
            LowKind::Restored => Self::CreditsRestored,
        }
    }
}

/// What makes two jobs of one kind and user different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobScope {
    /// There is one in the life of a user.
    User,
    /// It names what caused it: an order, an event, an invoice or a dispute. Each cause has one message.
    Cause,
    /// It names the version of the account, because the same change can happen again.
    Version,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 21] = [
        Self::Provision,
        Self::Account,
        Self::OrderPaid,
        Self::OrderRefunded,
        Self::ProductGranted,
        Self::ProductRevoked,
        Self::SubscriptionStarted,
        Self::SubscriptionRenewed,
        Self::SubscriptionChanged,
        Self::SubscriptionEnding,
        Self::SubscriptionEnded,
        Self::TrialEnding,
        Self::PaymentFailed,
        Self::PaymentActionRequired,
        Self::CreditsLow,
        Self::CreditsDepleted,
        Self::CreditsRestored,
        Self::RefundApplied,
        Self::DisputeOpened,
        Self::DisputeClosed,
        Self::AccessEnded,
    ];

    /// Its name in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Account => "account",
            Self::OrderPaid => "order_paid",
            Self::OrderRefunded => "order_refunded",
            Self::ProductGranted => "product_granted",
            Self::ProductRevoked => "product_revoked",
            Self::SubscriptionStarted => "subscription_started",
            Self::SubscriptionRenewed => "subscription_renewed",
            Self::SubscriptionChanged => "subscription_changed",
            Self::SubscriptionEnding => "subscription_ending",
            Self::SubscriptionEnded => "subscription_ended",
            Self::TrialEnding => "trial_ending",
            Self::PaymentFailed => "payment_failed",
            Self::PaymentActionRequired => "payment_action_required",
            Self::CreditsLow => "credits_low",
            Self::CreditsDepleted => "credits_depleted",
            Self::CreditsRestored => "credits_restored",
            Self::RefundApplied => "refund_applied",
            Self::DisputeOpened => "dispute_opened",
            Self::DisputeClosed => "dispute_closed",
            Self::AccessEnded => "access_ended",
        }
    }

    /// The `type` of its message to the app, and its name in `PROVISION_EVENTS`.
    pub fn message_type(self) -> &'static str {
        match self {
            Self::Provision => "payment.confirmed",
            Self::Account => "account.updated",
            Self::OrderPaid => "order.paid",
            Self::OrderRefunded => "order.refunded",
            Self::ProductGranted => "product.granted",
            Self::ProductRevoked => "product.revoked",
            Self::SubscriptionStarted => "subscription.started",
            Self::SubscriptionRenewed => "subscription.renewed",
            Self::SubscriptionChanged => "subscription.changed",
            Self::SubscriptionEnding => "subscription.ending",
            Self::SubscriptionEnded => "subscription.ended",
            Self::TrialEnding => "trial.ending",
            Self::PaymentFailed => "payment.failed",
            Self::PaymentActionRequired => "payment.action_required",
            Self::CreditsLow => "credits.low",
            Self::CreditsDepleted => "credits.depleted",
            Self::CreditsRestored => "credits.restored",
            Self::RefundApplied => "refund.applied",
            Self::DisputeOpened => "dispute.opened",
            Self::DisputeClosed => "dispute.closed",
            Self::AccessEnded => "access.ended",
        }
    }

    /// Its name in the list of jobs: `PAYMENT_CONFIRMED`.
    pub fn event(self) -> String {
        self.message_type().replace('.', "_").to_uppercase()
    }

    /// What makes two jobs of this kind and one user different.
    pub fn scope(self) -> JobScope {
        match self {
            Self::Provision => JobScope::User,
            Self::Account
            | Self::ProductGranted
            | Self::ProductRevoked
            | Self::CreditsLow
            | Self::CreditsDepleted
            | Self::CreditsRestored
            | Self::AccessEnded => JobScope::Version,
            Self::OrderPaid
            | Self::OrderRefunded
            | Self::SubscriptionStarted
            | Self::SubscriptionRenewed
            | Self::SubscriptionChanged
            | Self::SubscriptionEnding
            | Self::SubscriptionEnded
            | Self::TrialEnding
            | Self::PaymentFailed
            | Self::PaymentActionRequired
            | Self::RefundApplied
            | Self::DisputeOpened
            | Self::DisputeClosed => JobScope::Cause,
        }
    }

    /// Whether its key names what it is about: its cause, or a product.
    pub fn names_subject(self) -> bool {
        self.scope() == JobScope::Cause || matches!(self, Self::ProductGranted | Self::ProductRevoked)
    }

    /// Whether only an event causes it, and [`crate::notice`] finds it.
    pub fn is_notice_of_event(self) -> bool {
        self.scope() == JobScope::Cause && !self.is_about_order()
    }

    /// Whether it is about one order.
    pub fn is_about_order(self) -> bool {
        matches!(self, Self::OrderPaid | Self::OrderRefunded)
    }
}

/// Names a job. It is also the message on the queue of `provision`:
/// `{"job":"order_paid","about":"cs_1","user_id":"user_123"}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobMessage {
    /// The type of the message.
    pub job: JobKind,
    /// What it is about: an order, the product, or the event, invoice or dispute that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// The user to report about.
    pub user_id: UserId,
    /// The checkout session that caused the job, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout_session_id: Option<SessionId>,
}

impl JobMessage {
    /// A job about a user.
    pub fn of_user(job: JobKind, user: &UserId) -> Self {
        Self { job, about: None, user_id: user.clone(), checkout_session_id: None }
    }

    /// A job about an order, a product or a cause. `about` has no `#`: it is an id of Stripe or a name of the
    /// catalog.
    pub fn about(job: JobKind, about: &str, user: &UserId) -> Self {
        Self { about: Some(about.to_owned()), ..Self::of_user(job, user) }
    }

    /// The order of a job about one.
    pub fn order(&self) -> Option<SessionId> {
        let about = self.about.as_deref().filter(|_| self.job.is_about_order())?;
        SessionId::new(about).ok()
    }

    /// The same job with the checkout session that caused it.
    #[must_use]
    pub fn caused_by(self, session: Option<&SessionId>) -> Self {
        Self { checkout_session_id: session.cloned(), ..self }
    }

    /// The job's id in the log and in the app's `webhook-id`: `provision_9f86d081884c7d65…`. It hashes the
    /// user id, which may contain characters that a header must not contain.
    pub fn id(&self) -> String {
        let about = self.about.as_ref().map_or_else(String::new, |about| format!("{about}#"));
        let digest = Sha256::digest(format!("{about}{}", self.user_id));
        let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        format!("{}_{hex}", self.job.as_str())
    }

    /// The text of the job in its key: `provision#<user>`, `order_paid#<cs_…>#<user>`.
    pub fn text(&self) -> String {
        let about = self.about.as_ref().map_or_else(String::new, |about| format!("{about}#"));
        format!("{}#{about}{}", self.job.as_str(), self.user_id)
    }

    /// Reads [`JobMessage::text`].
    pub fn from_text(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('#')?;
        let job = JobKind::ALL.into_iter().find(|job| job.as_str() == kind)?;
        let (about, user) = match rest.split_once('#').filter(|_| job.names_subject()) {
            Some((about, user)) => (Some(about.to_owned()), user),
            None if job.names_subject() => return None,
            None => (None, rest),
        };
        Some(Self { job, about, user_id: UserId::new(user).ok()?, checkout_session_id: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_job_is_read_back_whatever_the_users_id() {
        for user in ["user_1", "a#b", "cs_1#x"] {
            let user = UserId::new(user).unwrap();
            for job in JobKind::ALL {
                let job = match job.names_subject() {
                    true => JobMessage::about(job, "cs_1", &user),
                    false => JobMessage::of_user(job, &user),
                };
                assert_eq!(JobMessage::from_text(&job.text()), Some(job));
            }
        }
        assert_eq!(JobMessage::from_text("order_paid#user_1"), None);
        let of_user = JobMessage::of_user(JobKind::Provision, &UserId::new("a#b").unwrap());
        assert_eq!(JobMessage::from_text("provision#a#b"), Some(of_user));
    }

    #[test]
    fn only_orders_have_jobs_about_an_order() {
        let user = UserId::new("user_1").unwrap();
        let about = |job| JobMessage::about(job, "cs_1", &user).order().is_some();
        let all: Vec<JobKind> = JobKind::ALL.into_iter().filter(|job| about(*job)).collect();
        assert_eq!(all, [JobKind::OrderPaid, JobKind::OrderRefunded]);
        assert!(JobKind::RefundApplied.is_notice_of_event() && !JobKind::OrderPaid.is_notice_of_event());
        assert!(!JobKind::Account.is_notice_of_event());
    }

    #[test]
    fn a_job_names_the_session_that_caused_it() {
        let user = UserId::new("user_1").unwrap();
        let job = JobMessage::of_user(JobKind::Provision, &user);
        let session = "cs_1".parse().unwrap();
        let caused = serde_json::to_value(job.clone().caused_by(Some(&session))).unwrap();
        assert_eq!(caused["checkout_session_id"], "cs_1");
        assert_eq!(job.clone().caused_by(None), job);
    }

    /// The app stores the id: it must stay the same from version to version.
    #[test]
    fn the_id_of_a_job_names_its_kind_and_hashes_its_user() {
        let user = UserId::new("user_1").unwrap();
        let id = JobMessage::of_user(JobKind::Provision, &user).id();
        assert_eq!(id, "provision_79b0aa0042b3c05617c37804");
        assert_ne!(
            JobMessage::about(JobKind::OrderPaid, "cs_1", &user).id(),
            JobMessage::about(JobKind::OrderPaid, "cs_2", &user).id()
        );
    }

    #[test]
    fn the_names_of_a_job_agree() {
        for job in JobKind::ALL {
            assert_eq!(serde_json::to_value(job).unwrap(), job.as_str());
            assert_eq!(job.event(), job.message_type().replace('.', "_").to_uppercase());
            if !matches!(job, JobKind::Provision | JobKind::Account) {
                assert_eq!(job.as_str(), job.message_type().replace('.', "_"));
            }
        }
    }
}
