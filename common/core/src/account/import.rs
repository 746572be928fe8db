//! The balance that a user had in another system: the fact that an import states.
//!
//! A user had `credits` at the time `as_of`. What was granted or spent before that time is included in these
//! credits, so an event about it does not change them, whenever it arrives. Each subscription item that ran
//! at `as_of` has a share of the credits: at most what its slice could hold then. The next payment replaces
//! this share like any credits of a slice. The rest is the lot [`super::Lot::Opening`] of the bucket `grant`.
//!
//! ```json
//! {"key":"import#2026-11","as_of":1767225600,"credits":7000,"spent":300,
//!  "running":[{"subscription":"sub_1","item":"si_1","end":1769904000,"worth":5000}]}
//! ```
//!
//! **Invariant:** the result depends on the facts, not on their order. `State::settle_import` computes the
//! shares again with each fact. `running` keeps what an item's slice could hold after the item has dropped
//! the lines that this was computed from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::item::{RunningSlice, View};
use super::lots::Complimentary;
use super::opening::{Import, RunningItem};
use super::state::State;
use super::subscription::PROVISIONAL;
use super::{Conflict, NewEntry};
use crate::catalog::{Policy, Trials};
use crate::credits::Credits;
use crate::ids::{ItemId, SubscriptionId};
use crate::ledger::{Entry, EntryKind, LedgerKey, Note, Taken};
use crate::timestamp::Timestamp;

/// What an import says about a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedBalance {
    /// The name of the import.
    pub batch: String,
    /// The time of the balance.
    pub as_of: Timestamp,
    /// The balance at that time.
    pub credits: Credits,
    /// Whether the user gets the signup credits beside the balance.
    pub with_signup: bool,
    /// A plan that the other system gives without a subscription of Stripe, and its end, excluded.
    pub plan: Option<(String, Timestamp)>,
    /// What was spent here, or revoked by an operator, at or after `as_of` and was not given back, from the
    /// entries that took it.
    pub spent_since: Vec<Taken>,
    /// The entries here whose cause was created at or after `as_of`. A lot that the account has dropped was
    /// granted before `as_of` if its entry is not among them.
    pub entries_since: BTreeSet<LedgerKey>,
    /// The state of an account that has only the invoices from before `as_of`. It is needed if the account
    /// has dropped the period that ran at that time.
    pub documents: Option<Box<State>>,
}

impl State {
    /// Whether the account may have dropped the period that ran at a moment: an item has paid periods, and
    /// none of its slices ran at that moment.
    pub fn lacks_period_at(&self, at: Timestamp, policy: &Policy, now: Timestamp) -> bool {
        self.subscriptions.iter().any(|(id, subscription)| {
            self.view(id, subscription, policy, now, |view| {
                subscription.items.values().any(|item| {
                    let periods = item.periods(view);
                    !periods.is_empty() && item.running_at(at, view).is_none()
                })
            })
        })
    }

    /// Adds an imported balance. The same one again changes nothing; another one is a [`Conflict`].
    pub(super) fn fold_import(&mut self, balance: ImportedBalance) -> Result<NewEntry, Conflict> {
        let key = LedgerKey::import(&balance.batch);
        let ImportedBalance {
            as_of, credits, with_signup, plan, spent_since, entries_since, documents, ..
        } = balance;
        let new = Import {
            key: key.clone(),
            as_of,
            credits,
            with_signup,
            spent: Credits::ZERO,
            running: Vec::new(),
        };
        let entry = NewEntry::new(key.clone(), EntryKind::Import, credits);
        match &self.import {
            Some(known) if (&known.key, known.credits, known.as_of) == (&key, credits, as_of) => {
                return Ok(entry);
            }
            Some(known) => {
                return Err(Conflict { key: known.key.clone(), known: known.says(), says: new.says() });
            }
            None => {}
        }
        if let Some(documents) = documents {
            self.recall(&documents);
        }
        let spent = self.keep_spends(as_of, with_signup, &spent_since, &entries_since);
        self.import = Some(Import { spent, ..new });
        if let Some((plan, until)) = plan {
            self.complimentary.push(Complimentary { key, plan, from: as_of, until: Some(until) });
        }
        Ok(entry)
    }

    /// Adds the lines of invoices that were dropped, or that had not arrived.
    fn recall(&mut self, documents: &Self) {
        for (id, subscription) in &documents.subscriptions {
            let own = self.subscription_mut(id);
            for (item, lines) in &subscription.items {
                own.items.entry(item.clone()).or_default().recall(lines);
            }
        }
    }

    /// Of the spends in slices that began before `as_of`, keeps only those in `since`. Returns what the
    /// spends in `since` took from other lots that were granted before `as_of`.
    fn keep_spends(
        &mut self,
        as_of: Timestamp,
        with_signup: bool,
        since: &[Taken],
        entries_since: &BTreeSet<LedgerKey>,
    ) -> Credits {
        let mut of_ended_lots = Credits::ZERO;
        let mut of_lots: BTreeMap<&LedgerKey, Credits> = BTreeMap::new();
        let mut of_items: Vec<(String, String, Timestamp, String, Credits)> = Vec::new();
        for taken in since {
            let place = taken.place.as_ref().and_then(LedgerKey::place_in_item_parts);
            match place {
                Some((subscription, item, start, plan)) if !super::holds::is_carried(plan) => of_items
                    .push((subscription.to_owned(), item.to_owned(), start, plan.to_owned(), taken.credits)),
                Some((_, _, start, _)) if start < as_of => {
                    of_ended_lots = of_ended_lots.plus(taken.credits);
                }
                Some(_) => {}
                None => {
                    let of_lot = of_lots.entry(&taken.lot).or_default();
                    *of_lot = of_lot.plus(taken.credits);
                }
            }
        }
        for (lot, credits) in of_lots {
            let of_before = self.taken_of_before(lot, credits, as_of, with_signup, entries_since);
            of_ended_lots = of_ended_lots.plus(of_before);
        }
        for (id, subscription) in &mut self.subscriptions {
            for (item_id, item) in &mut Arc::make_mut(subscription).items {
                let of_it = |(subscription, item, start, plan, credits): &(
                    String,
                    String,
                    Timestamp,
                    String,
                    Credits,
                )| {
                    let same = subscription == id.as_str() && item == item_id.as_str();
                    same.then(|| (*start, plan.clone(), *credits))
                };
                let kept: Vec<_> = of_items.iter().filter_map(of_it).collect();
                item.keep_spent(as_of, &kept);
            }
        }
        of_ended_lots
    }

    /// How much of the credits that were taken from a lot since `as_of` was granted before `as_of`.
    fn taken_of_before(
        &self,
        lot: &LedgerKey,
        credits: Credits,
        as_of: Timestamp,
        with_signup: bool,
        entries_since: &BTreeSet<LedgerKey>,
    ) -> Credits {
        let packs = self.packs.iter().filter(|one| one.is_of(lot) && !one.older.is_empty());
        let grants = self.grants.iter().filter(|one| one.key == *lot && !one.older.is_empty());
        let mut joined = packs
            .map(|one| (one.spent, one.granted_before(as_of)))
            .chain(grants.map(|one| one.spent_and_granted_before(as_of)));
        match joined.next() {
            Some((_, Credits::ZERO)) => Credits::ZERO,
            // The credits that were bought or granted first are spent first.
            Some((spent, before)) => credits.minus(spent.minus(before)),
            None if self.is_lot_of_before(lot, as_of, with_signup, entries_since) => credits,
            None => Credits::ZERO,
        }
    }

    /// Whether a lot that belongs to no subscription item was granted before `as_of`.
    fn is_lot_of_before(
        &self,
        lot: &LedgerKey,
        as_of: Timestamp,
        with_signup: bool,
        entries_since: &BTreeSet<LedgerKey>,
    ) -> bool {
        let purchases = self.packs.iter().chain(&self.lifetimes);
        if *lot == LedgerKey::signup() {
            !with_signup
        } else if let Some(month) = lot.free_month() {
            self.signup.as_ref().is_some_and(|signup| signup.since.plus_months(month) < as_of)
        } else if let Some(purchase) = purchases.clone().find(|one| one.is_of(lot)) {
            purchase.at < as_of
        } else if let Some(grant) = self.grants.iter().find(|grant| grant.key == *lot) {
            grant.since < as_of
        } else {
            // The account has dropped the lot.
            let is_once = lot.is_grant() || lot.session_id().is_some() || lot.invoice_id().is_some();
            is_once && !entries_since.contains(lot)
        }
    }

    /// Empties the lots that were granted before `as_of` and belong to no subscription item.
    pub(super) fn empty_imported_lots(&mut self) {
        let Some(import) = &self.import else { return };
        let as_of = import.as_of;
        if let Some(signup) = &mut self.signup {
            if !import.with_signup {
                signup.spent = signup.granted;
            }
            let before = |month: u32| signup.since.plus_months(month) < as_of;
            self.free.iter_mut().filter(|one| before(one.month)).for_each(|one| one.spent = one.granted);
        }
        let mut packs = std::mem::take(&mut self.packs);
        packs.iter_mut().for_each(|pack| pack.drop_before(as_of, |part| self.lost_of_part(part)));
        self.packs = packs;
        self.lifetimes.iter_mut().for_each(|purchase| purchase.drop_before(as_of, |_| Credits::ZERO));
        self.grants.iter_mut().for_each(|grant| grant.drop_before(as_of));
    }

    /// Computes which items ran at the time of the import, and their shares of it.
    pub(super) fn settle_import(&mut self, policy: &Policy, now: Timestamp) {
        let Some(as_of) = self.import.as_ref().map(|import| import.as_of) else { return };
        // The newest slice of each item that began before it, and whether the item had not ended by then.
        let mut slices: Vec<(SubscriptionId, ItemId, RunningSlice, bool)> = Vec::new();
        for (id, subscription) in &self.subscriptions {
            let ended = self.ended_at(subscription);
            let first = self.first_trial.as_ref().is_none_or(|(_, first)| first == id);
            let trial_counts =
                ended.is_none_or(|end| end > as_of) && (first || policy.trials == Trials::Each);
            self.view(id, subscription, policy, now, |view| {
                for (item_id, item) in &subscription.items {
                    let ended = self.item_ended_at(id, item_id);
                    let view = View { trial_counts, ..*view };
                    let Some(slice) = item.running_at(as_of, &view) else { continue };
                    let ran = ended.is_none_or(|end| end > as_of);
                    slices.push((id.clone(), item_id.clone(), slice, ran));
                }
            });
        }
        let Some(import) = &mut self.import else { return };
        let known = std::mem::take(&mut import.running);
        let is_known = |one: &RunningItem| {
            slices.iter().any(|(id, item, ..)| *id == one.subscription && *item == one.item)
        };
        let was_adopted = |one: &RunningItem| {
            one.item.as_str().starts_with(PROVISIONAL)
                && slices.iter().any(|(id, ..)| *id == one.subscription)
        };
        import.running = known.into_iter().filter(|one| !is_known(one) && !was_adopted(one)).collect();
        let running = slices.iter().filter(|(.., ran)| *ran);
        import.running.extend(running.map(|(subscription, item, slice, _)| {
            let (subscription, item) = (subscription.clone(), item.clone());
            RunningItem { subscription, item, end: slice.end, worth: slice.worth }
        }));
        let end = |one: &RunningItem| one.end.map_or(i64::MAX, Timestamp::unix);
        import
            .running
            .sort_by(|a, b| (end(a), &a.subscription, &a.item).cmp(&(end(b), &b.subscription, &b.item)));
        let left: Vec<(RunningItem, Credits)> =
            import.running.iter().cloned().zip(import.left_in_items()).collect();
        for (id, item_id, slice, _) in slices {
            let left = left.iter().find(|(one, _)| one.subscription == id && one.item == item_id);
            // An item that had ended has no share: the balance includes what was left of it.
            let spent = slice.worth.minus(left.map_or(Credits::ZERO, |(_, left)| *left));
            let Some(subscription) = self.subscriptions.get_mut(&id) else { continue };
            if let Some(item) = Arc::make_mut(subscription).items.get_mut(&item_id) {
                item.set_imported(&slice, spent);
            }
        }
    }

    /// Marks an entry of a document that granted nothing, because an imported balance includes it.
    pub(super) fn note_imported(&self, entry: &mut Entry) {
        let Some(import) = &self.import else { return };
        let of_before = match entry.kind {
            EntryKind::Signup => !import.with_signup,
            EntryKind::Subscription
            | EntryKind::Trial
            | EntryKind::Renewal
            | EntryKind::PlanChange
            | EntryKind::Refill
            | EntryKind::Rollover
            | EntryKind::FreeRefill
            | EntryKind::AddOn
            | EntryKind::Product => entry.created < import.as_of,
            EntryKind::Expire
            | EntryKind::Order
            | EntryKind::Refund
            | EntryKind::Dispute
            | EntryKind::Spend
            | EntryKind::Release
            | EntryKind::GiveBack
            | EntryKind::Fix
            | EntryKind::Import
            | EntryKind::Adjust
            | EntryKind::NoGrant => false,
        };
        if of_before && entry.note.is_none() && entry.delta == 0 && entry.worth > Credits::ZERO {
            entry.note = Some(Note::Imported);
        }
    }
}
