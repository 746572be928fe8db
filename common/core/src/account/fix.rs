//! Credits and plans that an operator gives or takes.

use super::lots::{Complimentary, Grant};
use super::{Account, Cause, Change, NewEntry};
use crate::catalog::Catalog;
use crate::credits::Credits;
use crate::ledger::{Entry, EntryKind, LedgerKey};
use crate::timestamp::Timestamp;

/// What an operator does to an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// Adds credits to the bucket `grant`, which no renewal ends; with an end, until then.
    Grant(Credits, Option<Timestamp>),
    /// Takes credits in the order of spending. What is missing is recorded as a shortfall.
    Revoke(Credits),
    /// Gives a plan for a time, with credits that end with it.
    Complimentary {
        /// The plan's name.
        plan: String,
        /// The start.
        from: Timestamp,
        /// The end, excluded; absent without an end.
        until: Option<Timestamp>,
        /// Credits that are granted with it.
        credits: Credits,
    },
}

impl Fix {
    /// The amount that it gives or takes.
    pub fn credits(&self) -> Credits {
        match self {
            Self::Grant(credits, _) | Self::Revoke(credits) | Self::Complimentary { credits, .. } => *credits,
        }
    }

    /// Whether an entry records this fix.
    pub fn is_recorded_as(&self, entry: &Entry, by: &str, reason: &str) -> bool {
        let takes = matches!(self, Self::Revoke(_));
        entry.worth == self.credits()
            && (entry.delta < 0 || entry.shortfall > Credits::ZERO) == (takes && entry.worth > Credits::ZERO)
            && entry.cause == by
            && entry.reason.as_deref() == Some(reason)
    }
}

impl Account {
    /// The change that an operator's fix makes, booked under `key` with who did it and why.
    pub fn fix(
        &self,
        fix: Fix,
        key: LedgerKey,
        by: &str,
        reason: &str,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Change {
        let now = self.state.time(now);
        let cause = Cause { by: by.to_owned(), adjust_key: key.adjusted(), created: now };
        let unchanged = Change { state: self.state.clone(), entries: Vec::new() };
        let mut due = self.evolve(Vec::new(), &cause, catalog, now).unwrap_or(unchanged);
        let mut entry = NewEntry::new(key.clone(), EntryKind::Fix, fix.credits());
        let state = &mut due.state;
        match fix {
            Fix::Grant(credits, until) => {
                state.grants.push(Grant::new(key, credits, now, until));
            }
            Fix::Revoke(credits) => {
                let buckets = state.buckets(&catalog.policy, now);
                entry.from = state.lots_for(credits, &buckets);
                entry.shortfall = state.take(credits, &buckets);
            }
            Fix::Complimentary { plan, from, until, credits } => {
                state.grants.push(Grant::new(key.clone(), credits, now, until));
                state.complimentary.push(Complimentary { key, plan, from, until });
            }
        }
        state.settle(&catalog.policy, now);
        let after = state.buckets(&catalog.policy, now);
        let mut entries = self.entries(&mut due.state, &after, vec![entry], &due.entries, &cause, now);
        entries.iter_mut().for_each(|entry| entry.reason = Some(reason.to_owned()));
        due.entries.extend(entries);
        due.state.due_at = after.next;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    #[test]
    fn a_fix_is_booked_with_who_and_why_and_never_takes_more_than_there_is() {
        let catalog = Catalog::parse(crate::decide::tests::CATALOG).unwrap();
        let now = Timestamp::from_unix(1_767_600_000);
        let account = Account { version: 1, ..Account::new(UserId::new("u").unwrap()) };
        let fix = |account: &Account, fix: Fix, key: &str, reason: &str| {
            account.fix(fix, LedgerKey::fix(key), "admin:ann", reason, &catalog, now)
        };
        let granted = fix(&account, Fix::Grant(Credits::new(300), None), "a", "late");
        let after = account.after(&granted);
        let taken = fix(&after, Fix::Revoke(Credits::new(500)), "b", "mistake");
        let [entry] = &taken.entries[..] else { panic!("{taken:?}") };
        assert_eq!((granted.entries[0].delta, entry.delta, entry.shortfall), (300, -300, Credits::new(200)));
        let balance = taken.state.balance(&catalog.policy, now);
        assert_eq!((balance, entry.reason.as_deref()), (Credits::ZERO, Some("mistake")));
        assert_eq!(entry.previous, Some(LedgerKey::fix("a")));
        let recorded = |fix: Fix, entry: &Entry, reason: &str| fix.is_recorded_as(entry, "admin:ann", reason);
        assert!(recorded(Fix::Revoke(Credits::new(500)), entry, "mistake"));
        assert!(!recorded(Fix::Grant(Credits::new(500), None), entry, "mistake"));
        assert!(!recorded(Fix::Revoke(Credits::new(500)), entry, "another"));
        assert!(!recorded(Fix::Revoke(Credits::new(501)), entry, "mistake"));
        assert!(recorded(Fix::Grant(Credits::new(300), None), &granted.entries[0], "late"));
        let whole = fix(&after, Fix::Revoke(Credits::new(300)), "d", "all of it");
        assert!(recorded(Fix::Revoke(Credits::new(300)), &whole.entries[0], "all of it"));
        let none = fix(&after, Fix::Revoke(Credits::ZERO), "e", "a note");
        assert!(recorded(Fix::Revoke(Credits::ZERO), &none.entries[0], "a note"));
        // Without credits to take, the entry changes nothing and still records the revocation.
        let nothing = fix(&after.after(&taken), Fix::Revoke(Credits::new(5)), "c", "again");
        assert_eq!(nothing.entries[0].delta, 0);
        assert!(recorded(Fix::Revoke(Credits::new(5)), &nothing.entries[0], "again"));
    }

    #[test]
    fn a_complimentary_plan_gives_access_and_credits_until_its_end() {
        let catalog = Catalog::parse(crate::decide::tests::CATALOG).unwrap();
        let at = Timestamp::from_unix;
        let account = Account { version: 1, ..Account::new(UserId::new("u").unwrap()) };
        let gift = Fix::Complimentary {
            plan: "business".to_owned(),
            from: at(100),
            until: Some(at(200)),
            credits: Credits::new(70),
        };
        let key = LedgerKey::complimentary("r");
        let change = account.fix(gift, key.clone(), "admin:ann", "sorry", &catalog, at(100));
        assert_eq!((change.entries[0].key.clone(), change.entries[0].delta), (key, 70));
        let seen = |now| {
            let access = change.state.access(&catalog, at(now));
            (access.tier, access.until, change.state.balance(&catalog.policy, at(now)).get())
        };
        assert_eq!(seen(199), ("business".to_owned(), Some(at(200)), 70));
        assert_eq!(seen(200), ("free".to_owned(), None, 0));
        // What ended by time is booked with the next change.
        let cause = Cause { by: "app".to_owned(), adjust_key: LedgerKey::fix("x"), created: at(300) };
        let later = account.after(&change).evolve(Vec::new(), &cause, &catalog, at(300)).unwrap();
        assert_eq!((later.entries[0].delta, later.state.grants.len()), (-70, 0));
    }
}
