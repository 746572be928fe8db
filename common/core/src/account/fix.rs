//! Credits given or taken by a person.

use super::subscription::digest;
use super::{Account, Cause, Change, Lot, Want};
use crate::credits::Credits;
use crate::ledger::{Entry, EntryKind, LedgerKey};
use crate::timestamp::Timestamp;

use std::collections::BTreeMap;

/// What a person does to a balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// Adds credits. They are kept as an add-on's are: spent last, and ended by a renewal under `addons =
    /// "reset"`.
    Grant(Credits),
    /// Takes credits, in the order in which they are spent; what is not there is recorded as shortfall.
    Revoke(Credits),
}

impl Fix {
    /// The amount, whichever way it goes.
    pub fn credits(self) -> Credits {
        match self {
            Self::Grant(credits) | Self::Revoke(credits) => credits,
        }
    }

    /// Whether an entry is the record of this very fix.
    pub fn is_recorded_as(self, entry: &Entry, by: &str, reason: &str) -> bool {
        let grants = matches!(self, Self::Grant(_));
        entry.worth == self.credits()
            && (entry.delta > 0) == grants
            && entry.cause == by
            && entry.reason.as_deref() == Some(reason)
    }
}

impl Account {
    /// The change that a person's fix makes, booked under `key` with who did it and why.
    pub fn fix(&self, fix: Fix, key: LedgerKey, by: &str, reason: &str, now: Timestamp) -> Change {
        let mut state = self.state.clone();
        let mut want = Want::new(key.clone(), EntryKind::Fix, fix.credits());
        match fix {
            Fix::Grant(credits) => {
                let filed_at = state.reset_at.map_or(now, |reset_at| reset_at.max(now));
                state.add_lot(Lot { at: filed_at, of: digest(key.as_str()), credits, older: false });
                want.filed_at = Some(filed_at);
            }
            Fix::Revoke(credits) => {
                let taken = credits.min(state.balance());
                state.spend(taken);
                want.shortfall = credits.minus(taken);
            }
        }
        let cause = Cause { by: by.to_owned(), adjust_key: key, created: now };
        let mut entries = self.entries(&mut state, vec![want], &cause, now);
        entries.iter_mut().for_each(|entry| entry.reason = Some(reason.to_owned()));
        Change { state, entries, reversals: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    #[test]
    fn a_grant_adds_a_revocation_never_goes_below_zero_and_both_say_who_and_why() {
        let now = Timestamp::from_unix(1_767_600_000);
        let account = Account { version: 1, ..Account::new(UserId::new("u").unwrap()) };
        let granted =
            account.fix(Fix::Grant(Credits::new(300)), LedgerKey::fix("a"), "admin:ann", "late", now);
        let after = account.after(&granted);
        let taken =
            after.fix(Fix::Revoke(Credits::new(500)), LedgerKey::fix("b"), "admin:ann", "mistake", now);
        let [entry] = &taken.entries[..] else { panic!("{taken:?}") };
        assert_eq!((granted.entries[0].delta, entry.delta, entry.shortfall), (300, -300, Credits::new(200)));
        assert_eq!((taken.state.balance(), entry.reason.as_deref()), (Credits::ZERO, Some("mistake")));
        assert_eq!(entry.previous, Some(LedgerKey::fix("a")));
        assert!(Fix::Revoke(Credits::new(500)).is_recorded_as(entry, "admin:ann", "mistake"));
        assert!(!Fix::Grant(Credits::new(500)).is_recorded_as(entry, "admin:ann", "mistake"));
        assert!(!Fix::Revoke(Credits::new(500)).is_recorded_as(entry, "admin:ann", "another"));
        assert!(!Fix::Revoke(Credits::new(501)).is_recorded_as(entry, "admin:ann", "mistake"));
        assert!(Fix::Grant(Credits::new(300)).is_recorded_as(&granted.entries[0], "admin:ann", "late"));
        // Nothing was there to take: the entry moves nothing, and is the revocation's all the same.
        let nothing = after.after(&taken).fix(
            Fix::Revoke(Credits::new(5)),
            LedgerKey::fix("c"),
            "admin:ann",
            "again",
            now,
        );
        assert_eq!(nothing.entries[0].delta, 0);
        assert!(Fix::Revoke(Credits::new(5)).is_recorded_as(&nothing.entries[0], "admin:ann", "again"));
    }
}
