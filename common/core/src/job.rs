//! Jobs by which the app learns that an account changed.
//!
//! A job is written in the transaction of the change, and `provision` does it.

use serde::{Deserialize, Serialize};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Has the app set a user up.
    Provision,
    /// Tells the app how an account stands.
    Account,
}

impl JobKind {
    /// The word in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Account => "account",
        }
    }

    /// The word in the list of jobs.
    pub fn event(self) -> &'static str {
        match self {
            Self::Provision => "PAYMENT_CONFIRMED",
            Self::Account => "ACCOUNT_UPDATED",
        }
    }
}
