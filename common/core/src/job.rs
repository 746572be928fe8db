//! Jobs that notify the app of a changed account.
//!
//! A job is written in the transaction of the change. The outbox does it.

use serde::{Deserialize, Serialize};

use crate::account::low::LowKind;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Calls the app to set up a user.
    Provision,
    /// Sends the app the current state of an account.
    Account,
    /// Tells the app that the balance fell below thresholds.
    CreditsLow,
    /// Tells the app that the balance fell to 0.
    CreditsDepleted,
    /// Tells the app that the balance is not below thresholds any more.
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
    pub const ALL: [Self; 5] =
        [Self::Provision, Self::Account, Self::CreditsLow, Self::CreditsDepleted, Self::CreditsRestored];

    /// Its name in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Account => "account",
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
            Self::CreditsLow => "credits.low",
            Self::CreditsDepleted => "credits.depleted",
            Self::CreditsRestored => "credits.restored",
        }
    }
}
