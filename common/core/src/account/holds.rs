//! Credits that are reserved for a job and then committed or released, and spends that are given back.
//!
//! **Invariant:** a hold moves no credits. It only lowers what is *available*: the balance minus all open
//! holds. A hold is open until its end, excluded; no write is needed to end it.
//!
//! **Invariant:** a spend's entry names the lots that the credits were taken from, so that they can be given
//! back to the same lots.

use std::ops::RangeInclusive;

use sha2::{Digest, Sha256};

use super::lots::{Grant, Hold, Lot, Purchase};
use super::state::Buckets;
use super::{Account, Cause, Change, NewEntry, State};
use crate::catalog::{Catalog, Policy};
use crate::credits::Credits;
use crate::ids::{HoldId, ItemId, SubscriptionId, UserId};
use crate::ledger::{Entry, EntryKind, LedgerKey, Note, Taken};
use crate::timestamp::Timestamp;

/// The maximum number of open holds of an account.
pub const MAX_HOLDS: usize = 64;
/// How long a hold may be open, in seconds.
pub const TTL_SECONDS: RangeInclusive<u32> = 60..=86_400;
/// In the place of a lot, instead of a plan's name: credits that a slice took over from the one before it. No
/// plan has this name.
const CARRIED: &str = "+";
/// Days that a hold is kept after its end.
pub const HOLD_DAYS: i64 = 7;

/// The id of the hold for a user's idempotency key: `hold_` and 32 hexadecimal digits.
pub fn hold_id(user: &UserId, idempotency_key: &str) -> HoldId {
    let digest = Sha256::digest(format!("{user}\n{idempotency_key}").as_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    HoldId::new(format!("hold_{hex}")).expect("letters and digits follow the prefix")
}

/// Why a hold cannot be made, committed or released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldError {
    /// Too few credits are available: this many.
    Insufficient(Credits),
    /// The account has [`MAX_HOLDS`] open holds.
    TooMany,
    /// More would be committed than is held (the first) and, with `extend`, than is available beside it (the
    /// second).
    Exceeds(Credits, Credits),
}

/// Whether the plan of a [`LedgerKey::place_in_item`] stands for credits that the slice took over.
pub(super) fn is_carried(plan: &str) -> bool {
    plan == CARRIED
}

/// The spend cannot be given back: only this many of its credits are left to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceedsSpend(pub Credits);

impl State {
    /// The credits of all open holds.
    pub fn held(&self, now: Timestamp) -> Credits {
        let now = self.time(now);
        self.holds.values().filter(|hold| hold.until > now).map(|hold| hold.amount).sum()
    }

    /// What can be spent or held: the balance minus the open holds, at least 0.
    pub fn available(&self, policy: &Policy, now: Timestamp) -> Credits {
        self.balance(policy, now).minus(self.held(now))
    }

    /// The hold with this id, if it is open.
    pub fn open_hold(&self, id: &HoldId, now: Timestamp) -> Option<&Hold> {
        let now = self.time(now);
        self.holds.get(id).filter(|hold| hold.until > now)
    }

    /// The lots that a spend takes from, in the order of [`State::take`], each with the amount.
    pub(super) fn lots_for(&self, amount: Credits, buckets: &Buckets) -> Vec<Taken> {
        let mut rest = amount;
        let mut taken = Vec::new();
        for one in &buckets.lots {
            let credits = one.left.min(rest);
            rest = rest.minus(credits);
            if credits > Credits::ZERO
                && let Some(lot) = self.lot_key(&one.lot, buckets)
            {
                let place = self.place_of(&one.lot, buckets);
                let until = one.until.filter(|_| place.is_none());
                let since = one.since.filter(|_| !matches!(one.lot, Lot::Item(..)));
                taken.push(Taken { lot, credits, place, until, since });
            }
        }
        taken
    }

    /// The place of a lot in the account, if its key does not name it: an item records spends by slice and
    /// plan.
    fn place_of(&self, lot: &Lot, buckets: &Buckets) -> Option<LedgerKey> {
        match lot {
            Lot::Item(subscription, item) => {
                let bucket = buckets.items.get(&(subscription.clone(), item.clone()))?;
                let (start, plan) = bucket.spends_of();
                Some(LedgerKey::place_in_item(subscription, item, start, &plan))
            }
            Lot::Carry(subscription, item, start) => {
                Some(LedgerKey::place_in_item(subscription, item, *start, CARRIED))
            }
            Lot::Lifetime(place) => self.lifetimes.get(*place)?.key().map(|key| key.place_in_lifetimes()),
            Lot::Signup | Lot::Opening | Lot::Grant(_) | Lot::Pack(_) => None,
        }
    }

    /// Gives credits of a spend at `spent_at` back to the lot that they were taken from. Nothing happens if
    /// the lot has ended.
    fn return_to(
        &mut self,
        taken: &Taken,
        credits: Credits,
        buckets: &Buckets,
        spent_at: Timestamp,
        now: Timestamp,
    ) {
        if self.import.as_ref().is_some_and(|import| import.holds(taken)) {
            // The imported balance has been without an earlier spend from the start.
            let import = self.import.as_mut().filter(|import| spent_at >= import.as_of);
            if let Some(import) = import {
                import.give_back(credits);
            }
            return;
        }
        let back_to = |purchase: &mut Purchase| purchase.spent = purchase.spent.minus(credits);
        let lot = &taken.lot;
        if let Some(place) = &taken.place {
            if let Some((subscription, item, start, plan)) = place.place_in_item_parts() {
                let imported = self.import.as_ref().map(|import| import.as_of);
                if imported.is_none_or(|at| start >= at || spent_at >= at) {
                    self.return_to_item(subscription, item, start, plan, credits, buckets);
                }
            } else {
                let took = |one: &&mut Purchase| one.is_of(lot) && one.spent >= credits;
                self.lifetimes.iter_mut().find(took).map(back_to);
            }
        } else if *lot == LedgerKey::signup() {
            if let Some(signup) = &mut self.signup {
                signup.spent = signup.spent.minus(credits);
            }
        } else if let Some(refill) = self.free.iter_mut().find(|one| LedgerKey::free(one.month) == *lot) {
            refill.spent = refill.spent.minus(credits);
        } else if lot.session_id().is_some() || lot.invoice_id().is_some() {
            // The lot of a session has another end than the lot of the invoice that it replaced.
            let exact = self.packs.iter().position(|pack| pack.is_of(lot) && pack.until == taken.until);
            let replaced = |pack: &Purchase| pack.session.is_some() && lot.invoice_id().is_some();
            let any = || self.packs.iter().position(|pack| pack.is_of(lot) && replaced(pack));
            if let Some(pack) = exact.or_else(any).and_then(|place| self.packs.get_mut(place)) {
                back_to(pack);
            } else {
                self.packs.iter_mut().any(|pack| pack.give_back_to_older(lot, credits));
            }
        } else if let Some(import) = self.import.as_mut().filter(|import| import.key == *lot) {
            import.give_back(credits);
        } else if let Some(grant) = self.grants.iter_mut().find(|grant| grant.key == *lot) {
            grant.left = grant.left.plus(credits);
            // A grant that was empty came back with the first credits alone.
            grant.granted = grant.granted.max(grant.left);
        } else if lot.is_grant() {
            // A grant that is empty or has ended is dropped.
            let since = taken.since.unwrap_or(now);
            let place = self.grants.partition_point(|grant| grant.since <= since);
            self.grants.insert(place, Grant::new(lot.clone(), credits, since, taken.until));
        }
    }

    fn return_to_item(
        &mut self,
        subscription: &str,
        item: &str,
        start: Timestamp,
        plan: &str,
        credits: Credits,
        buckets: &Buckets,
    ) {
        let (Ok(id), Ok(item)) = (SubscriptionId::new(subscription), ItemId::new(item)) else { return };
        // Only the running slice lives, and what it took over. What is left of an earlier one has been
        // carried over already.
        let of_it = |(of, other): &(SubscriptionId, ItemId)| {
            *of == id && (*other == item || !buckets.items.contains_key(&(id.clone(), item.clone())))
        };
        let lives = buckets.items.iter().filter(|(key, _)| of_it(key)).any(|(_, bucket)| {
            if plan == CARRIED {
                bucket.carries.iter().any(|carry| carry.since == start)
            } else {
                bucket.spends_of().0 == start
            }
        });
        if !lives {
            return;
        }
        let items = &mut self.subscription_mut(&id).items;
        let (plan, carried) = if plan == CARRIED { ("", true) } else { (plan, false) };
        // Until a snapshot shows the item of a line, its spends are kept under a provisional one.
        let named = items.contains_key(&item);
        for (_, item) in items.iter_mut().filter(|(id, _)| !named || **id == item) {
            if item.give_back(start, plan, carried, credits) {
                return;
            }
        }
    }
}

impl Account {
    /// Reserves credits. The caller has checked that no hold with this id exists.
    ///
    /// # Errors
    /// [`HoldError::Insufficient`], [`HoldError::TooMany`].
    pub fn hold(
        &self,
        id: HoldId,
        hold: Hold,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<Change, HoldError> {
        let now = self.state.time(now);
        let cause = cause(&LedgerKey::hold(&id), now);
        let mut due = self.due(&cause, catalog, now);
        let available = due.state.available(&catalog.policy, now);
        if available < hold.amount {
            return Err(HoldError::Insufficient(available));
        }
        if due.state.holds.len() >= MAX_HOLDS {
            return Err(HoldError::TooMany);
        }
        due.state.holds.insert(id, hold);
        Ok(due)
    }

    /// Spends `amount` of a hold and ends it. If fewer credits are left, the rest is recorded as a shortfall,
    /// because the job was done. After the hold's end it is an ordinary spend.
    ///
    /// # Errors
    /// [`HoldError::Exceeds`]; after the end [`HoldError::Insufficient`], which may change later.
    pub fn commit_hold(
        &self,
        id: &HoldId,
        held: Credits,
        amount: Credits,
        extend: bool,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<Change, HoldError> {
        let now = self.state.time(now);
        let key = LedgerKey::hold(id);
        let cause = cause(&key, now);
        let mut due = self.due(&cause, catalog, now);
        let available = due.state.available(&catalog.policy, now);
        let is_open = due.state.open_hold(id, now).is_some();
        let more = amount.minus(held);
        if more > Credits::ZERO && (!extend || (is_open && more > available)) {
            return Err(HoldError::Exceeds(held, available));
        }
        if !is_open && available < amount {
            return Err(HoldError::Insufficient(available));
        }
        due.state.holds.remove(id);
        Ok(self.spend(due, amount, key, &cause, catalog, now))
    }

    /// Ends a hold without a spend. The entry changes no balance; its worth is the held amount.
    pub fn release_hold(&self, id: &HoldId, held: Credits, catalog: &Catalog, now: Timestamp) -> Change {
        let now = self.state.time(now);
        let key = LedgerKey::hold(id);
        let cause = cause(&key, now);
        let mut due = self.due(&cause, catalog, now);
        due.state.holds.remove(id);
        let after = due.state.buckets(&catalog.policy, now);
        let entry = NewEntry::new(key, EntryKind::Release, held);
        let entries = self.entries(&mut due.state, &after, vec![entry], &due.entries, &cause, now);
        due.entries.extend(entries);
        due
    }

    /// Gives credits of a spend back to the lots that they came from. The lot that was taken from last comes
    /// first, so the result is the same as after a smaller spend. Returns the change, and the spend's entry
    /// with the new sum.
    ///
    /// # Errors
    /// [`ExceedsSpend`].
    pub fn give_back(
        &self,
        spend: &Entry,
        amount: Credits,
        key: LedgerKey,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<(Change, Entry), ExceedsSpend> {
        let now = self.state.time(now);
        let spent = if spend.kind == EntryKind::Spend { spend.worth } else { Credits::ZERO };
        let left = spent.minus(spend.given_back);
        if amount > left {
            return Err(ExceedsSpend(left));
        }
        let policy = &catalog.policy;
        let cause = cause(&key, now);
        let mut due = self.due(&cause, catalog, now);
        let buckets = due.state.buckets(policy, now);
        let before = buckets.balance();
        // What a hold's commit could not take comes last in the spend, and first here.
        let (mut skip, mut rest) = (spend.given_back, amount);
        let mut of_part = |credits: Credits| {
            let part = credits.minus(skip).min(rest);
            skip = skip.minus(credits);
            rest = rest.minus(part);
            part
        };
        let not_taken = of_part(spend.shortfall);
        for taken in spend.from.iter().rev() {
            due.state.return_to(taken, of_part(taken.credits), &buckets, spend.created, now);
        }
        due.state.settle(policy, now);
        let after = due.state.buckets(policy, now);
        let missing = amount.minus(after.balance().minus(before));
        let note = match missing.minus(not_taken) {
            Credits::ZERO => (missing > Credits::ZERO).then_some(Note::Shortfall),
            _ => Some(Note::LotEnded),
        };
        let new = NewEntry {
            shortfall: missing,
            note,
            of: Some(spend.key.clone()),
            ..NewEntry::new(key, EntryKind::GiveBack, amount)
        };
        let entries = self.entries(&mut due.state, &after, vec![new], &due.entries, &cause, now);
        due.entries.extend(entries);
        due.state.due_at = after.next;
        let spend = Entry { given_back: spend.given_back.plus(amount), ..spend.clone() };
        Ok((due, spend))
    }

    /// Takes credits from the lots and books the spend with these lots and the shortfall.
    pub(super) fn spend(
        &self,
        mut due: Change,
        amount: Credits,
        key: LedgerKey,
        cause: &Cause,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Change {
        let buckets = due.state.buckets(&catalog.policy, now);
        let from = due.state.lots_for(amount, &buckets);
        let shortfall = due.state.take(amount, &buckets);
        let spent = due.state.buckets(&catalog.policy, now);
        let note = (shortfall > Credits::ZERO).then_some(Note::Shortfall);
        let entry = NewEntry { shortfall, note, from, ..NewEntry::new(key, EntryKind::Spend, amount) };
        let entries = self.entries(&mut due.state, &spent, vec![entry], &due.entries, cause, now);
        due.entries.extend(entries);
        due.state.due_at = spent.next;
        due
    }

    /// The change by what has fallen due by time.
    fn due(&self, cause: &Cause, catalog: &Catalog, now: Timestamp) -> Change {
        let unchanged = Change { state: self.state.clone(), entries: Vec::new() };
        self.evolve(Vec::new(), cause, catalog, now).unwrap_or(unchanged)
    }
}

fn cause(key: &LedgerKey, now: Timestamp) -> Cause {
    Cause { by: "app".to_owned(), adjust_key: key.adjusted(), created: now }
}

#[cfg(test)]
mod tests;
