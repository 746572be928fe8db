//! One user's account: everything the rules remember, and the only way it changes ([`Account::evolve`]).
//!
//! **Invariant:** the balance is the sum of the buckets (`signup`, one per subscription, `addon`) and never
//! below zero. **Invariant:** facts are joined, not replayed: any order and any repetition of the same facts
//! ends in the same account. The one stated exception: under `addons = "reset"` a pack that reaches us after
//! a newer reset is granted in full, because a payment is never swallowed for being late.

pub mod explain;
pub mod fix;
pub mod subscription;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::subscription::{Evidence, Opening, PlanChange, Snapshot, Standing, Subscription, digest};
use super::catalog::{Addons, Catalog};
use super::credits::Credits;
use super::ids::{CustomerId, EventId, PriceId, SubscriptionId, UserId};
use super::ledger::{Entry, EntryKind, LedgerKey, Note, Payment};
use super::reversal::{News, Reversal};
use super::timestamp::Timestamp;

/// Stripe lets people resend an event for 30 days; a subscription that ended this long ago and holds no
/// credits may be forgotten.
const FORGET_ENDED_AFTER_DAYS: i64 = 60;
/// As many ended subscriptions are remembered however long ago they ended.
const REMEMBER_ENDED: usize = 10;
/// Add-on purchases since the last reset that are told apart; beyond it the two oldest become one.
const MOST_LOTS: usize = 8;

/// An account as loaded: its state, the version the store holds, and the ledger entries that the event at
/// hand may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whose it is.
    pub user_id: UserId,
    /// Number of commits so far; 0 for an account that was never stored. A commit succeeds only on the
    /// version it was decided on.
    pub version: u64,
    /// What the rules remember.
    pub state: State,
    /// The entries with the keys that were asked for, as far as they exist.
    pub recorded: BTreeMap<LedgerKey, Entry>,
    /// Refunds and disputes of the payments that were asked for, by the key of the payment's grant.
    pub reversals: BTreeMap<LedgerKey, Reversal>,
}

/// What the rules remember of an account; stored as one map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// When the account was first written.
    pub created_at: Timestamp,
    /// The Stripe customers that are bound to this user; the value says when one was deleted at Stripe.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub customers: BTreeMap<CustomerId, Option<Timestamp>>,
    /// The `signup` bucket; absent until the app has created the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signup: Option<Credits>,
    /// Whether any subscription was ever granted: that ends the signup credits, whichever is heard of first.
    #[serde(default, skip_serializing_if = "is_false")]
    pub subscribed: bool,
    /// The `addon` bucket: purchases since the last reset, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lots: Vec<Lot>,
    /// Start of the newest period whose opening ended unspent add-on credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_at: Option<Timestamp>,
    /// All subscriptions that may still matter. Shared with the states before and after: an event changes one
    /// of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subscriptions: BTreeMap<SubscriptionId, Arc<Subscription>>,
    /// When the first payment of this user was confirmed, by the earliest event that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_paid_at: Option<Timestamp>,
    /// The newest failed payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_failed_at: Option<Timestamp>,
    /// The newest ledger entry: the head of the list that `previous` continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_entry: Option<LedgerKey>,
    /// The newest event of the log that names this user: the head of the list that its `previous` continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<EventId>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Unspent credits of one add-on purchase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lot {
    /// When it was bought, or the reset it came too late for.
    pub at: Timestamp,
    /// Digest of the purchase's ledger key: a refund takes back from its own purchase only.
    pub of: u32,
    /// What is left of it.
    pub credits: Credits,
    /// Whether it holds what was left of older purchases too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub older: bool,
}

/// One thing that an event says about an account, in the words of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// This Stripe customer is this user.
    Customer(CustomerId),
    /// The customer was deleted at Stripe: none of its subscriptions gives access any more.
    CustomerDeleted(CustomerId, Timestamp),
    /// The app created the user.
    Signup,
    /// A subscription was seen in a state.
    Snapshot(SubscriptionId, Option<CustomerId>, Snapshot),
    /// A paid invoice or a trial opened a billing period.
    Opening(SubscriptionId, OpeningKind, Opening, Option<Payment>),
    /// A plan was taken up, or is seen, within a period.
    PlanChange {
        /// Which subscription.
        subscription: SubscriptionId,
        /// Start of the period it happened in.
        start: Timestamp,
        /// The plan and when.
        change: PlanChange,
        /// How well the event proves it.
        evidence: Evidence,
    },
    /// Credits bought once.
    AddOn {
        /// The session's key.
        key: LedgerKey,
        /// What was bought.
        credits: Credits,
        /// `created` of the event.
        at: Timestamp,
        /// What was paid.
        payment: Option<Payment>,
    },
    /// Money of the payment behind a recorded grant goes back, or comes back: the grant's key, the news, the
    /// key to book it under.
    Reversal(LedgerKey, News, LedgerKey),
    /// A document that is recorded in the ledger and moves no credits: an order, an invoice that is worth
    /// nothing of its own.
    Recorded(LedgerKey, EntryKind, Option<Payment>),
    /// A payment was confirmed at this time.
    Paid(Timestamp),
    /// A payment failed at this time.
    PaymentFailed(Timestamp),
}

/// What a period's opening is called in the ledger, and whether it is the start of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpeningKind {
    /// The first paid invoice of a subscription.
    New,
    /// A trial start.
    Trial,
    /// A renewal.
    Renewal,
    /// A plan change that began a new period and was paid at once.
    Change,
}

impl OpeningKind {
    fn entry_kind(self) -> EntryKind {
        match self {
            Self::New => EntryKind::Subscription,
            Self::Trial => EntryKind::Trial,
            Self::Renewal => EntryKind::Renewal,
            Self::Change => EntryKind::PlanChange,
        }
    }
}

/// Who and what made a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `evt_…`, `app`, `admin:<actor>` or `reconcile:<run>`.
    pub by: String,
    /// The key for movements that grant nothing new.
    pub adjust_key: LedgerKey,
    /// When it happened at Stripe.
    pub created: Timestamp,
}

/// What a set of facts does to an account: the next state and the entries to write, nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state after.
    pub state: State,
    /// New ledger entries, oldest first.
    pub entries: Vec<Entry>,
    /// Refunds and disputes as they stand after it, of the payments that it touched.
    pub reversals: BTreeMap<LedgerKey, Reversal>,
}

/// The same ledger key was asked for with two different amounts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ledger key {key} is recorded as worth {recorded} credits, this document makes it {asked}")]
pub struct Conflict {
    /// The key.
    pub key: LedgerKey,
    /// What stands.
    pub recorded: Credits,
    /// What was asked for.
    pub asked: Credits,
}

/// The access a user has at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The tier's name.
    pub tier: String,
    /// Its rank.
    pub rank: u32,
    /// When this tier ends unless news comes: the end of a cancelled subscription or of the grace after a
    /// failed payment.
    pub until: Option<Timestamp>,
}

/// An entry that a fact asks for.
struct Want {
    key: LedgerKey,
    kind: EntryKind,
    worth: Credits,
    shortfall: Credits,
    superseded: bool,
    payment: Option<Payment>,
    filed_at: Option<Timestamp>,
}

impl Want {
    fn new(key: LedgerKey, kind: EntryKind, worth: Credits) -> Self {
        Self { key, kind, worth, shortfall: Credits::ZERO, superseded: false, payment: None, filed_at: None }
    }
}

impl Account {
    /// The account of a user who was never seen.
    pub fn new(user_id: UserId) -> Self {
        Self {
            user_id,
            version: 0,
            state: State::default(),
            recorded: BTreeMap::new(),
            reversals: BTreeMap::new(),
        }
    }

    /// The next state and the entries that `facts` call for. Facts that are known already change nothing; a
    /// key that is recorded is not written again.
    ///
    /// # Errors
    /// [`Conflict`] when a recorded payment would now be worth another amount.
    pub fn evolve(
        &self,
        facts: Vec<Fact>,
        cause: &Cause,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<Change, Conflict> {
        let mut state = self.state.clone();
        if self.version == 0 && state.created_at == Timestamp::default() {
            state.created_at = now;
        }
        let mut wants = Vec::new();
        let mut reversals = BTreeMap::new();
        for fact in facts {
            if let Fact::Reversal(grant, news, key) = fact {
                let Some(entry) = self.recorded.get(&grant) else { continue };
                let mut reversal = self.reversals.get(&grant).cloned().unwrap_or_default();
                wants.push(state.reverse(entry, &mut reversal, news, key));
                reversals.insert(grant, reversal);
            } else {
                state.fold(fact, &self.recorded, catalog, &mut wants)?;
            }
        }
        state.forget(now);
        let entries = self.entries(&mut state, wants, cause, now);
        Ok(Change { state, entries, reversals })
    }

    /// The account after a change was committed.
    #[must_use]
    pub fn after(&self, change: &Change) -> Self {
        let mut recorded = self.recorded.clone();
        recorded.extend(change.entries.iter().map(|entry| (entry.key.clone(), entry.clone())));
        let mut reversals = self.reversals.clone();
        reversals.extend(change.reversals.clone());
        Self {
            user_id: self.user_id.clone(),
            version: self.version + 1,
            state: change.state.clone(),
            recorded,
            reversals,
        }
    }

    /// Spends credits under the app's idempotency key; `None` when there are not enough.
    pub fn consume(&self, amount: Credits, key: LedgerKey, now: Timestamp) -> Option<Change> {
        let mut state = self.state.clone();
        if !state.spend(amount) {
            return None;
        }
        let cause = Cause { by: "app".to_owned(), adjust_key: key.clone(), created: now };
        let entries = self.entries(&mut state, vec![Want::new(key, EntryKind::Spend, amount)], &cause, now);
        Some(Change { state, entries, reversals: BTreeMap::new() })
    }

    /// Turns what was asked for into entries. The first new one carries the whole movement of the balance; a
    /// movement that no new entry explains is booked under the cause's own key.
    fn entries(&self, state: &mut State, wants: Vec<Want>, cause: &Cause, now: Timestamp) -> Vec<Entry> {
        let balance = state.balance();
        let mut left = balance.delta_from(self.state.balance());
        let mut new: Vec<Want> = Vec::new();
        for want in wants {
            if !self.recorded.contains_key(&want.key) && new.iter().all(|other| other.key != want.key) {
                new.push(want);
            }
        }
        if new.is_empty() && left != 0 {
            new.push(Want::new(cause.adjust_key.clone(), EntryKind::Adjust, Credits::ZERO));
        }
        let mut entries = Vec::new();
        for want in new {
            let delta = std::mem::take(&mut left);
            let note = match (want.superseded, want.shortfall) {
                (true, _) => Some(Note::Superseded),
                (false, Credits::ZERO) => None,
                (false, _) => Some(Note::Shortfall),
            };
            entries.push(Entry {
                previous: state.last_entry.replace(want.key.clone()),
                key: want.key,
                kind: want.kind,
                delta,
                balance,
                worth: want.worth,
                shortfall: want.shortfall,
                cause: cause.by.clone(),
                reason: None,
                at: now,
                created: cause.created,
                note,
                payment: want.payment,
                filed_at: want.filed_at,
            });
        }
        entries
    }
}

impl State {
    /// The balance: the sum of all buckets.
    pub fn balance(&self) -> Credits {
        let subscriptions: Credits = self.subscriptions.keys().map(|id| self.bucket(id)).sum();
        subscriptions.plus(self.signup.unwrap_or_default()).plus(self.addon())
    }

    /// The `addon` bucket.
    pub fn addon(&self) -> Credits {
        self.lots.iter().map(|lot| lot.credits).sum()
    }

    /// The bucket of one subscription: what its period has left, or nothing once another subscription was
    /// granted after its end.
    pub fn bucket(&self, id: &SubscriptionId) -> Credits {
        let Some(subscription) = self.subscriptions.get(id) else { return Credits::ZERO };
        let void = self.ended_at(subscription).is_some_and(|end| {
            let granted_after =
                |other: &Subscription| other.period.as_ref().is_some_and(|period| period.start >= end);
            self.subscriptions.iter().any(|(other_id, other)| other_id != id && granted_after(other))
        });
        if void { Credits::ZERO } else { subscription.credits() }
    }

    /// When a subscription ended: by its own end, or with its customer.
    fn ended_at(&self, subscription: &Subscription) -> Option<Timestamp> {
        let deleted = subscription
            .customer
            .as_ref()
            .and_then(|customer| self.customers.get(customer).copied().flatten());
        match (subscription.ended_at(), deleted) {
            (Some(end), Some(deleted)) => Some(end.min(deleted)),
            (end, deleted) => end.or(deleted),
        }
    }

    /// The tier at `now`: the highest-ranked plan among the subscriptions that give access, else the default
    /// tier.
    pub fn access(&self, catalog: &Catalog, now: Timestamp) -> Access {
        let default =
            Access { tier: catalog.policy.default_tier.clone(), rank: catalog.default_rank(), until: None };
        let mut best = default;
        for subscription in self.subscriptions.values() {
            let Some(plan) = subscription.price().and_then(|price| catalog.plan_of_price(price.as_str()))
            else {
                continue;
            };
            let Some(until) = self.access_of(subscription, catalog) else { continue };
            if until.is_some_and(|until| until <= now) || plan.rank < best.rank {
                continue;
            }
            let until = later(best.until, until, best.tier == plan.tier);
            best = Access { tier: plan.tier.clone(), rank: plan.rank, until };
        }
        best
    }

    /// Whether a subscription gives access at all, and until when: `Some(None)` is without a known end.
    fn access_of(&self, subscription: &Subscription, catalog: &Catalog) -> Option<Option<Timestamp>> {
        use crate::event::SubscriptionStatus as Status;
        if self.ended_at(subscription).is_some() {
            return None;
        }
        let ends = subscription.snapshot.as_ref().and_then(|snapshot| snapshot.cancel_at);
        match subscription.status()? {
            Status::Active | Status::Trialing => Some(ends),
            Status::PastDue => {
                let grace = subscription.current_period().0?.plus_days(catalog.policy.past_due_grace_days);
                Some(Some(ends.map_or(grace, |ends| ends.min(grace))))
            }
            Status::Incomplete
            | Status::IncompleteExpired
            | Status::Canceled
            | Status::Unpaid
            | Status::Paused
            | Status::Other(_) => None,
        }
    }

    fn fold(
        &mut self,
        fact: Fact,
        recorded: &BTreeMap<LedgerKey, Entry>,
        catalog: &Catalog,
        wants: &mut Vec<Want>,
    ) -> Result<(), Conflict> {
        match fact {
            Fact::Customer(customer) => {
                self.customers.entry(customer).or_insert(None);
            }
            Fact::CustomerDeleted(customer, at) => {
                let deleted = self.customers.entry(customer).or_insert(None);
                *deleted = Some(deleted.map_or(at, |known| known.min(at)));
            }
            Fact::Signup => {
                let key = LedgerKey::signup();
                let worth = Credits::new(catalog.policy.signup_credits);
                if self.signup.is_none() && !recorded.contains_key(&key) {
                    self.signup = Some(if self.subscribed { Credits::ZERO } else { worth });
                }
                wants.push(Want { superseded: self.subscribed, ..Want::new(key, EntryKind::Signup, worth) });
            }
            Fact::Snapshot(id, customer, snapshot) => {
                let subscription = self.subscription_mut(&id);
                subscription.customer = subscription.customer.take().or(customer);
                subscription.fold_snapshot(snapshot);
            }
            Fact::Opening(id, kind, opening, payment) => {
                let want =
                    Want { payment, ..Want::new(opening.key.clone(), kind.entry_kind(), opening.credits) };
                // A trial's key may be known from the subscription; a plan's, from a change of seats in the
                // same period.
                if matches!(kind, OpeningKind::New | OpeningKind::Renewal) {
                    conflict(recorded, &want)?;
                }
                // A grant that is recorded has opened its period: a subscription without one was forgotten,
                // and stays so.
                let forgotten = self.subscriptions.get(&id).is_none_or(|known| known.period.is_none());
                if !(forgotten && recorded.contains_key(&want.key)) {
                    self.open(&id, kind, opening, want, catalog, wants);
                }
            }
            Fact::PlanChange { subscription: id, start, change, evidence } => {
                let subscription = self.subscription_mut(&id);
                let (price, worth) = (change.price.clone(), change.credits);
                let standing = subscription.fold_plan_change(start, evidence, change);
                if standing != Standing::Quiet {
                    wants.push(plan_want(&id, &price, start, worth, standing));
                }
            }
            Fact::AddOn { key, credits, at, payment } => {
                let filed_at = self.reset_at.map_or(at, |reset_at| reset_at.max(at));
                let want =
                    Want { payment, filed_at: Some(filed_at), ..Want::new(key, EntryKind::AddOn, credits) };
                conflict(recorded, &want)?;
                if !recorded.contains_key(&want.key) {
                    self.add_lot(Lot { at: filed_at, of: digest(want.key.as_str()), credits, older: false });
                }
                wants.push(want);
            }
            Fact::Recorded(key, kind, payment) => {
                wants.push(Want { payment, ..Want::new(key, kind, Credits::ZERO) })
            }
            // Needs the payment's own record: see `evolve`.
            Fact::Reversal(..) => {}
            Fact::Paid(at) => self.first_paid_at = Some(self.first_paid_at.map_or(at, |known| known.min(at))),
            Fact::PaymentFailed(at) => self.payment_failed_at = self.payment_failed_at.max(Some(at)),
        }
        Ok(())
    }

    fn open(
        &mut self,
        id: &SubscriptionId,
        kind: OpeningKind,
        opening: Opening,
        want: Want,
        catalog: &Catalog,
        wants: &mut Vec<Want>,
    ) {
        self.subscribed = true;
        self.signup = self.signup.map(|_| Credits::ZERO);
        if catalog.policy.addons == Addons::Reset && kind != OpeningKind::Change {
            self.reset_at = self.reset_at.max(Some(opening.start));
            let reset_at = self.reset_at;
            self.lots.retain(|lot| Some(lot.at) >= reset_at);
        }
        let subscription = self.subscription_mut(id);
        let waited = subscription.fold_opening(opening);
        let counts = subscription.period.as_ref().is_some_and(|period| period.key == want.key);
        wants.push(Want { superseded: !counts, ..want });
        wants.extend(
            waited
                .into_iter()
                .map(|(then, change, standing)| plan_want(id, &change.price, then, change.credits, standing)),
        );
    }

    /// Takes back, or gives back, what refunds and disputes make of a grant. A grant that a later one has
    /// replaced has nothing left to take, nor has a purchase that was spent: what is due is then recorded as
    /// shortfall. What comes back is what was taken.
    fn reverse(&mut self, grant: &Entry, reversal: &mut Reversal, news: News, key: LedgerKey) -> Want {
        let kind = if matches!(news, News::Dispute(..)) { EntryKind::Dispute } else { EntryKind::Refund };
        let before = self.balance();
        reversal.fold(news);
        let paid = grant.payment.as_ref().map_or(0, |payment| payment.amount);
        let due = grant.worth.share(reversal.amount(), paid);
        let opened =
            |one: &&mut Arc<Subscription>| one.period.as_ref().is_some_and(|period| period.key == grant.key);
        let period =
            self.subscriptions.values_mut().find(opened).and_then(|one| Arc::make_mut(one).period.as_mut());
        let due_before = std::mem::replace(&mut reversal.due, due);
        match (period, grant.filed_at) {
            (Some(period), _) => period.reversed = due,
            (None, Some(filed_at)) if Some(filed_at) >= self.reset_at => {
                let of = digest(grant.key.as_str());
                let place = self.lots.iter().position(|lot| lot.of == of);
                let place =
                    place.or_else(|| self.lots.iter().position(|lot| lot.older && lot.at >= filed_at));
                let lot = place
                    .map_or(Lot { at: filed_at, of, credits: Credits::ZERO, older: false }, |place| {
                        self.lots.remove(place)
                    });
                let unspent = lot.credits.plus(reversal.taken);
                reversal.taken = due.min(unspent);
                self.add_lot(Lot { credits: unspent.minus(reversal.taken), ..lot });
            }
            (None, _) => {}
        }
        let moved = before.minus(self.balance());
        Want { shortfall: due.minus(due_before).minus(moved), ..Want::new(key, kind, due) }
    }

    fn subscription_mut(&mut self, id: &SubscriptionId) -> &mut Subscription {
        Arc::make_mut(self.subscriptions.entry(id.clone()).or_default())
    }

    /// Files a purchase; the oldest two become one when there are too many.
    fn add_lot(&mut self, lot: Lot) {
        if lot.credits == Credits::ZERO {
            return;
        }
        let place = self.lots.partition_point(|other| (other.at, other.of) < (lot.at, lot.of));
        self.lots.insert(place, lot);
        while self.lots.len() > MOST_LOTS {
            let oldest = self.lots.remove(0);
            if let Some(next) = self.lots.first_mut() {
                next.credits = next.credits.plus(oldest.credits);
                next.older = true;
            }
        }
    }

    /// Takes credits from subscription buckets, then `signup`, then `addon`; false and unchanged when there
    /// are not enough.
    fn spend(&mut self, amount: Credits) -> bool {
        if self.balance() < amount {
            return false;
        }
        let mut left = amount;
        let buckets: Vec<_> = self.subscriptions.keys().map(|id| (id.clone(), self.bucket(id))).collect();
        for (id, bucket) in buckets {
            let part = bucket.min(left);
            left = left.minus(part);
            if part > Credits::ZERO
                && let Some(subscription) = self.subscriptions.get_mut(&id)
            {
                Arc::make_mut(subscription).spend(part);
            }
        }
        if let Some(signup) = &mut self.signup {
            let part = (*signup).min(left);
            *signup = signup.minus(part);
            left = left.minus(part);
        }
        for lot in &mut self.lots {
            let part = lot.credits.min(left);
            lot.credits = lot.credits.minus(part);
            left = left.minus(part);
        }
        self.lots.retain(|lot| lot.credits > Credits::ZERO);
        true
    }

    /// Drops what can no longer matter, so that an account stays small whatever its history.
    fn forget(&mut self, now: Timestamp) {
        let horizon = now.plus_days(-FORGET_ENDED_AFTER_DAYS);
        let mut done: Vec<_> = self
            .subscriptions
            .iter()
            .filter_map(|(id, subscription)| self.ended_at(subscription).map(|end| (end, id)))
            .filter(|(_, id)| self.bucket(id) == Credits::ZERO)
            .map(|(end, id)| (end, id.clone()))
            .collect();
        done.sort();
        done.truncate(done.len().saturating_sub(REMEMBER_ENDED));
        for (_, id) in done.iter().filter(|(end, _)| *end < horizon) {
            self.subscriptions.remove(id);
        }
    }
}

/// Of two ends of access to the same tier the later one holds; no end is later than any.
fn later(one: Option<Timestamp>, other: Option<Timestamp>, same_tier: bool) -> Option<Timestamp> {
    if same_tier { one.zip(other).map(|(one, other)| one.max(other)) } else { other }
}

fn plan_want(
    id: &SubscriptionId,
    price: &PriceId,
    start: Timestamp,
    worth: Credits,
    standing: Standing,
) -> Want {
    Want {
        superseded: standing == Standing::Superseded,
        ..Want::new(LedgerKey::plan(id, price, start), EntryKind::PlanChange, worth)
    }
}

fn conflict(recorded: &BTreeMap<LedgerKey, Entry>, want: &Want) -> Result<(), Conflict> {
    match recorded.get(&want.key) {
        Some(entry) if entry.worth != want.worth => {
            Err(Conflict { key: want.key.clone(), recorded: entry.worth, asked: want.worth })
        }
        Some(_) | None => Ok(()),
    }
}
