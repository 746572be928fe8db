//! An imported balance, as the account keeps it, and how it is divided among the items that ran then.
//! [`super::import`] computes both.

use serde::{Deserialize, Serialize};

use super::lots::{Lot, LotBalance};
use super::snapshot::is_false;
use crate::credits::Credits;
use crate::ids::{ItemId, SubscriptionId};
use crate::ledger::{LedgerKey, Taken};
use crate::timestamp::Timestamp;

/// An imported balance, as the account keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The key of its ledger entry.
    pub key: LedgerKey,
    /// The time of the balance.
    pub as_of: Timestamp,
    /// The balance at that time.
    pub credits: Credits,
    /// Whether the user has the signup credits in addition to the balance.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) with_signup: bool,
    /// Credits spent of [`Lot::Opening`].
    #[serde(default, skip_serializing_if = "super::lots::is_zero")]
    pub(super) spent: Credits,
    /// The items that ran at that time, in the order in which they hold credits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) running: Vec<RunningItem>,
}

/// A subscription item that ran at the time of the balance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunningItem {
    pub subscription: SubscriptionId,
    pub item: ItemId,
    /// The end of its slice, excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// What its bucket could hold.
    pub worth: Credits,
}

impl Import {
    /// The share of each running item, and the rest of the balance.
    fn shares(&self) -> (Vec<Credits>, Credits) {
        let mut rest = self.credits;
        let mut share = |one: &RunningItem| {
            let share = one.worth.min(rest);
            rest = rest.minus(share);
            share
        };
        let shares = self.running.iter().map(&mut share).collect();
        (shares, rest)
    }

    /// What is left of the share of each running item. An item that arrives after a spend makes the lot
    /// smaller. If more was spent of the lot than it then has, the difference is taken from the shares.
    pub(super) fn left_in_items(&self) -> Vec<Credits> {
        let (mut shares, rest) = self.shares();
        let mut too_much = self.spent.minus(rest);
        for share in &mut shares {
            let paid = too_much.min(*share);
            too_much = too_much.minus(paid);
            *share = share.minus(paid);
        }
        shares
    }

    pub(super) fn lot(&self) -> LotBalance {
        let (_, granted) = self.shares();
        let left = granted.minus(self.spent);
        LotBalance { lot: Lot::Opening, granted, left, since: Some(self.as_of), until: None, free: true }
    }

    pub(super) fn spend(&mut self, credits: Credits) {
        self.spent = self.spent.plus(credits);
    }

    pub(super) fn give_back(&mut self, credits: Credits) {
        self.spent = self.spent.minus(credits);
    }

    /// Whether the balance includes what is left of the lot that a spend took from. The slice of a
    /// subscription item keeps its own spends.
    pub(super) fn holds(&self, taken: &Taken) -> bool {
        let is_beside = self.with_signup && taken.lot == LedgerKey::signup();
        !is_beside && taken.lot != self.key && taken.since.is_some_and(|since| since < self.as_of)
    }

    /// One sentence for a person about how the balance is divided.
    pub(super) fn explain(&self) -> String {
        let of_items = self.credits.minus(self.shares().1);
        format!(
            "{} says that the user had {} credits at {}; {of_items} belong to the subscriptions that ran \
             then, and {} were spent of the rest",
            self.key, self.credits, self.as_of, self.spent
        )
    }

    pub(super) fn says(&self) -> String {
        format!("{} credits at {}", self.credits, self.as_of)
    }
}
