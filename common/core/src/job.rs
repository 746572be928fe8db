//! Jobs that notify the app of a change.
//!
//! A job is written in the transaction of the change. The outbox does it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::account::low::LowKind;
use crate::ids::{SessionId, UserId};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Calls the app to set up a user.
    Provision,
    /// Sends the app the current state of an account.
    Account,
    /// Informs the app about a paid order.
    OrderPaid,
    /// Informs the app that the whole payment of an order was refunded.
    OrderRefunded,
    /// Informs the app that the balance fell below thresholds.
    CreditsLow,
    /// Informs the app that the balance fell to 0.
    CreditsDepleted,
    /// Informs the app that the balance is not below thresholds any more.
    CreditsRestored,
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

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Provision,
        Self::Account,
        Self::OrderPaid,
        Self::OrderRefunded,
        Self::CreditsLow,
        Self::CreditsDepleted,
        Self::CreditsRestored,
    ];

    /// Its name in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Account => "account",
            Self::OrderPaid => "order_paid",
            Self::OrderRefunded => "order_refunded",
            Self::CreditsLow => "credits_low",
            Self::CreditsDepleted => "credits_depleted",
            Self::CreditsRestored => "credits_restored",
        }
    }

    /// Its name in the list of jobs.
    pub fn event(self) -> &'static str {
        match self {
            Self::Provision => "PAYMENT_CONFIRMED",
            Self::Account => "ACCOUNT_UPDATED",
            Self::OrderPaid => "ORDER_PAID",
            Self::OrderRefunded => "ORDER_REFUNDED",
            Self::CreditsLow => "CREDITS_LOW",
            Self::CreditsDepleted => "CREDITS_DEPLETED",
            Self::CreditsRestored => "CREDITS_RESTORED",
        }
    }

    /// The `type` of its message to the app.
    pub fn message_type(self) -> &'static str {
        match self {
            Self::Provision => "payment.confirmed",
            Self::Account => "account.updated",
            Self::OrderPaid => "order.paid",
            Self::OrderRefunded => "order.refunded",
            Self::CreditsLow => "credits.low",
            Self::CreditsDepleted => "credits.depleted",
            Self::CreditsRestored => "credits.restored",
        }
    }

    /// Whether the job is about one order.
    pub fn is_about_order(self) -> bool {
        match self {
            Self::Provision
            | Self::Account
            | Self::CreditsLow
            | Self::CreditsDepleted
            | Self::CreditsRestored => false,
            Self::OrderPaid | Self::OrderRefunded => true,
        }
    }
}

/// Names a job. It is also the message on the queue of `provision`:
/// `{"job":"order_paid","order":"cs_1","user_id":"user_123"}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobMessage {
    /// What to do.
    pub job: JobKind,
    /// The order of a job about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<SessionId>,
    /// The user to report about.
    pub user_id: UserId,
    /// The checkout session that caused the job, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout_session_id: Option<SessionId>,
}

impl JobMessage {
    /// A job about a user.
    pub fn of_user(job: JobKind, user: &UserId) -> Self {
        Self { job, order: None, user_id: user.clone(), checkout_session_id: None }
    }

    /// A job about an order.
    pub fn of_order(job: JobKind, order: &SessionId, user: &UserId) -> Self {
        Self { order: Some(order.clone()), ..Self::of_user(job, user) }
    }

    /// The same job with the checkout session that caused it.
    #[must_use]
    pub fn caused_by(self, session: Option<&SessionId>) -> Self {
        Self { checkout_session_id: session.cloned(), ..self }
    }

    /// The job's id in the log and in the app's `webhook-id`: `provision_9f86d081884c7d65…`. It hashes the
    /// user id, which may contain characters that a header must not contain.
    pub fn id(&self) -> String {
        let order = self.order.as_ref().map_or_else(String::new, |order| format!("{order}#"));
        let digest = Sha256::digest(format!("{order}{}", self.user_id));
        let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        format!("{}_{hex}", self.job.as_str())
    }

    /// The text of the job in its key: `provision#<user>`, `order_paid#<cs_…>#<user>`.
    pub fn text(&self) -> String {
        let order = self.order.as_ref().map_or_else(String::new, |order| format!("{order}#"));
        format!("{}#{order}{}", self.job.as_str(), self.user_id)
    }

    /// Reads [`JobMessage::text`].
    pub fn from_text(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('#')?;
        let job = JobKind::ALL.into_iter().find(|job| job.as_str() == kind)?;
        let (order, user) = match rest.split_once('#').filter(|_| job.is_about_order()) {
            Some((order, user)) => (Some(SessionId::new(order).ok()?), user),
            None if job.is_about_order() => return None,
            None => (None, rest),
        };
        Some(Self { job, order, user_id: UserId::new(user).ok()?, checkout_session_id: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_job_is_read_back_whatever_the_users_id() {
        for user in ["user_1", "a#b", "cs_1#x"] {
            let user = UserId::new(user).unwrap();
            let order = SessionId::new("cs_1").unwrap();
            for job in JobKind::ALL {
                let job = match job.is_about_order() {
                    true => JobMessage::of_order(job, &order, &user),
                    false => JobMessage::of_user(job, &user),
                };
                assert_eq!(JobMessage::from_text(&job.text()), Some(job));
            }
        }
        assert_eq!(JobMessage::from_text("order_paid#user_1"), None);
    }
}
