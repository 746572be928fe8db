//! Jobs that notify the app of a changed account.
//!
//! A job is written in the transaction of the change. The outbox does it.

use serde::{Deserialize, Serialize};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Calls the app to set up a user.
    Provision,
    /// Sends the app the current state of an account.
    Account,
}

impl JobKind {
    /// Its name in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Account => "account",
        }
    }

    /// Its name in the list of jobs.
    pub fn event(self) -> &'static str {
        match self {
            Self::Provision => "PAYMENT_CONFIRMED",
            Self::Account => "ACCOUNT_UPDATED",
        }
    }
}
