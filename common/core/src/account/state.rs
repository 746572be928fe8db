//! What the rules remember of an account, and what its buckets hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::holds::Hold;
use super::item::{Bucket, Item, Period, View};
use super::lots::{Complimentary, Grant, Purchase, Signup};
use super::products::BoughtProduct;
use super::subscription::Subscription;
use crate::catalog::{Addons, Policy, Trials};
use crate::credits::Credits;
use crate::ids::{CustomerId, EventId, HoldId, InvoiceId, ItemId, SubscriptionId};
use crate::ledger::{EntryKind, LedgerKey};
use crate::timestamp::Timestamp;

/// Stripe lets people resend an event for 30 days; a subscription that ended this long ago and holds no
/// credits may be forgotten.
const FORGET_ENDED_AFTER_DAYS: i64 = 60;
/// The newest ended subscriptions are kept, up to this number, regardless of when they ended.
const REMEMBER_ENDED: usize = 10;
/// The maximum number of pack purchases. Beyond it, the two oldest are merged into one.
pub(super) const MAX_PURCHASES: usize = 24;
/// The maximum number of spent purchases that are kept for later refunds.
const MAX_SPENT_PURCHASES: usize = 4;
/// The maximum number of items over all subscriptions.
pub const MAX_ITEMS: usize = 50;

/// What the rules remember of an account; stored as one map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// When the account was first written.
    pub created_at: Timestamp,
    /// The balance that the ledger's entries add up to.
    #[serde(default, skip_serializing_if = "super::lots::is_zero")]
    pub booked: Credits,
    /// When it was last written: what falls due by time alone is booked from then on.
    #[serde(default)]
    pub as_of: Timestamp,
    /// The Stripe customers of this user; the value says when one was deleted at Stripe.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub customers: BTreeMap<CustomerId, Option<Timestamp>>,
    /// The bucket `signup`; absent until the app has created the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signup: Option<Signup>,
    /// Start of the first paid period. It ends the signup credits, in any order of arrival.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paid_since: Option<Timestamp>,
    /// The bucket `addon`: packs bought since the last reset, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packs: Vec<Purchase>,
    /// Plans that were sold for life.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifetimes: Vec<Purchase>,
    /// The bucket `grant`, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
    /// Plans that an operator gave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub complimentary: Vec<Complimentary>,
    /// Products that were bought, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub products: Vec<BoughtProduct>,
    /// Open holds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holds: BTreeMap<HoldId, Hold>,
    /// Start of the newest period that ended unspent add-on credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_at: Option<Timestamp>,
    /// All subscriptions that may still matter. Shared with the states before and after.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subscriptions: BTreeMap<SubscriptionId, Arc<Subscription>>,
    /// The user's earliest trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_trial: Option<(Timestamp, SubscriptionId)>,
    /// Minor units that went back, by document and payment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refunds: BTreeMap<LedgerKey, BTreeMap<String, i64>>,
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

/// Which credits a spend is taken from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lot {
    /// The bucket of a subscription item.
    Item(SubscriptionId, ItemId),
    /// A plan that was sold for life.
    Lifetime(usize),
    /// The signup credits.
    Signup,
    /// A grant by hand.
    Grant(usize),
    /// A pack.
    Pack(usize),
}

/// The buckets of an account at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// One for each subscription item.
    pub items: BTreeMap<(SubscriptionId, ItemId), Bucket>,
    /// All credits that can be spent, in the order in which they are.
    pub lots: Vec<(Lot, Credits)>,
    /// The documents that count beside the ones that name themselves: plan changes, trials, lines that count
    /// later than their invoice was recorded.
    pub(super) derived: BTreeMap<LedgerKey, (EntryKind, Credits)>,
    /// What refunds and disputes take of all of it.
    pub(super) lost: Credits,
    /// Start of the first paid period, which ends the signup credits.
    pub(super) paid_since: Option<Timestamp>,
}

impl Buckets {
    /// The balance: the sum of all buckets.
    pub fn balance(&self) -> Credits {
        self.lots.iter().map(|(_, left)| *left).sum()
    }

    /// What is left of the lots that a test picks.
    pub fn sum(&self, of: impl Fn(&Lot) -> bool) -> Credits {
        self.lots.iter().filter(|(lot, _)| of(lot)).map(|(_, left)| *left).sum()
    }

    /// Whether a document granted or charged something that a bucket holds.
    pub fn counts(&self, document: &LedgerKey, state: &State) -> bool {
        let items = self.items.values().flat_map(|bucket| &bucket.documents);
        items.into_iter().any(|invoice| document.is_invoice(invoice))
            || state.packs.iter().chain(&state.lifetimes).any(|purchase| purchase.is_of(document))
            || state.products.iter().any(|product| product.is_of(document))
    }

    /// What the items of a subscription hold.
    pub fn of_subscription(&self, id: &SubscriptionId) -> Credits {
        self.sum(|lot| matches!(lot, Lot::Item(of, _) if of == id))
    }
}

impl State {
    /// The balance at a moment.
    pub fn balance(&self, policy: &Policy, now: Timestamp) -> Credits {
        self.buckets(policy, now).balance()
    }

    /// Minor units of a document's payments that went back.
    pub fn refunded(&self, document: &LedgerKey) -> i64 {
        self.refunds
            .get(document)
            .map_or(0, |payments| payments.values().fold(0, |sum, amount| sum.saturating_add(*amount)))
    }

    /// Minor units of a purchase that went back, whichever of its documents the payment names.
    pub fn refunded_of(&self, purchase: &Purchase) -> i64 {
        let mut payments: BTreeMap<&str, i64> = BTreeMap::new();
        let session = purchase.session.as_ref().map(LedgerKey::session);
        let invoice = purchase.invoice.as_ref().map(LedgerKey::invoice);
        for document in session.iter().chain(&invoice) {
            for (payment, amount) in self.refunds.get(document).into_iter().flatten() {
                let known = payments.entry(payment).or_insert(0);
                *known = (*known).max(*amount);
            }
        }
        payments.values().fold(0, |sum, amount| sum.saturating_add(*amount))
    }

    /// Runs `with` on what the arithmetic of a subscription's items needs.
    pub(super) fn view<R>(
        &self,
        id: &SubscriptionId,
        subscription: &Subscription,
        policy: &Policy,
        now: Timestamp,
        with: impl FnOnce(&View<'_>) -> R,
    ) -> R {
        let refunded = |invoice: &InvoiceId| {
            if self.refunds.is_empty() { 0 } else { self.refunded(&LedgerKey::invoice(invoice)) }
        };
        let first = self.first_trial.as_ref().is_none_or(|(_, first)| first == id);
        let view = View {
            plan_change: policy.plan_change,
            refunded: &refunded,
            trial_counts: self.ended_at(subscription).is_none() && (first || policy.trials == Trials::Each),
            now,
        };
        with(&view)
    }

    /// When a subscription ended: by its own end, or with its customer.
    pub fn ended_at(&self, subscription: &Subscription) -> Option<Timestamp> {
        let customer = subscription.customer.as_ref();
        let deleted = customer.and_then(|customer| self.customers.get(customer).copied().flatten());
        match (subscription.ended_at(), deleted) {
            (Some(end), Some(deleted)) => Some(end.min(deleted)),
            (end, deleted) => end.or(deleted),
        }
    }

    /// What every bucket holds at a moment.
    pub fn buckets(&self, policy: &Policy, now: Timestamp) -> Buckets {
        let mut items: BTreeMap<(SubscriptionId, ItemId), Bucket> = BTreeMap::new();
        for (id, subscription) in &self.subscriptions {
            self.view(id, subscription, policy, now, |view| {
                for (item_id, item) in &subscription.items {
                    let bucket = item.bucket(view);
                    if bucket != Bucket::default() {
                        items.insert((id.clone(), item_id.clone()), bucket);
                    }
                }
            });
        }
        self.void_ended(&mut items);
        let mut derived = BTreeMap::new();
        for ((subscription, item), bucket) in &items {
            if let Some(period) = &bucket.period {
                let late = LedgerKey::invoice_item(&period.invoice, item);
                derived.insert(late, (EntryKind::Renewal, period.worth()));
                for (change, worth) in &bucket.changes {
                    let key = LedgerKey::plan(item, period.start, change);
                    derived.insert(key, (EntryKind::PlanChange, *worth));
                }
            } else if bucket.trial {
                let key = LedgerKey::trial(subscription, item);
                derived.insert(key, (EntryKind::Trial, bucket.granted));
            }
        }
        let mut lost: Credits = items.values().map(|bucket| bucket.lost).sum();
        let mut lots = Vec::new();
        let mut by_end: Vec<_> = items.iter().collect();
        let end_of = |(key, bucket): &(&(SubscriptionId, ItemId), &Bucket)| {
            let trial_end = || self.subscriptions.get(&key.0)?.items.get(&key.1)?.trial_end();
            bucket
                .period
                .as_ref()
                .map_or_else(trial_end, |period| period.end)
                .map_or(i64::MAX, Timestamp::unix)
        };
        by_end.sort_by_key(end_of);
        for ((subscription, item), bucket) in by_end {
            lots.push((Lot::Item(subscription.clone(), item.clone()), bucket.left));
        }
        for (place, purchase) in self.lifetimes.iter().enumerate() {
            let taken = purchase.granted.share(self.refunded_of(purchase), purchase.total);
            lost = lost.plus(taken);
            lots.push((Lot::Lifetime(place), purchase.granted.minus(taken).minus(purchase.spent)));
        }
        let unproven = || periods_of_plans(&items).filter(|period| !period.proven);
        let paid_since = self.paid_since.into_iter().chain(unproven().map(|period| period.start)).min();
        let reset_at = self.unproven_reset(&items, policy);
        if let Some(signup) = self.signup.as_ref().filter(|_| paid_since.is_none()) {
            lots.push((Lot::Signup, signup.granted.minus(signup.spent)));
        }
        for (place, grant) in self.grants.iter().enumerate() {
            let ended = grant.until.is_some_and(|until| until <= now);
            lots.push((Lot::Grant(place), if ended { Credits::ZERO } else { grant.left }));
        }
        for (place, pack) in self.packs.iter().enumerate() {
            if Some(pack.at) < reset_at {
                continue;
            }
            let taken = pack.granted.share(self.refunded_of(pack), pack.total);
            lost = lost.plus(taken);
            lots.push((Lot::Pack(place), pack.granted.minus(taken).minus(pack.spent)));
        }
        Buckets { items, lots, derived, lost, paid_since }
    }

    /// Start of the newest period that ends add-ons and that a late `trialing` snapshot may still close. The
    /// packs before it stay in the account, without credits.
    fn unproven_reset(
        &self,
        items: &BTreeMap<(SubscriptionId, ItemId), Bucket>,
        policy: &Policy,
    ) -> Option<Timestamp> {
        let periods = items.values().filter_map(|bucket| bucket.period.as_ref());
        let unproven = periods.filter(|period| !period.proven && period.resets);
        unproven.map(|period| period.start).max().filter(|_| policy.addons == Addons::Reset)
    }

    /// The newest start of a period that ends add-ons.
    pub(super) fn newest_reset(&self, policy: &Policy, now: Timestamp) -> Option<Timestamp> {
        self.reset_at.max(self.unproven_reset(&self.buckets(policy, now).items, policy))
    }

    /// The bucket of an ended subscription or of a removed item ends once another item's paid period starts
    /// at or after that end.
    fn void_ended(&self, items: &mut BTreeMap<(SubscriptionId, ItemId), Bucket>) {
        let starts: Vec<((SubscriptionId, ItemId), Timestamp)> = items
            .iter()
            .filter_map(|(key, bucket)| Some((key.clone(), bucket.period.as_ref()?)))
            .filter(|(_, period)| !period.terms.product)
            .map(|(key, period)| (key, period.start))
            .collect();
        for (key, bucket) in items.iter_mut() {
            let end = self.item_ended_at(&key.0, &key.1);
            let replaced =
                end.is_some_and(|end| starts.iter().any(|(other, start)| other != key && *start >= end));
            if replaced {
                *bucket = Bucket { left: Credits::ZERO, lost: Credits::ZERO, ..std::mem::take(bucket) };
            }
        }
    }

    /// When an item ended: with its subscription, with its customer, or when it was removed.
    pub fn item_ended_at(&self, subscription: &SubscriptionId, item: &ItemId) -> Option<Timestamp> {
        let subscription = self.subscriptions.get(subscription)?;
        match (self.ended_at(subscription), subscription.removed_at(item)) {
            (Some(end), Some(removed)) => Some(end.min(removed)),
            (end, removed) => end.or(removed),
        }
    }

    pub(super) fn subscription_mut(&mut self, id: &SubscriptionId) -> &mut Subscription {
        Arc::make_mut(self.subscriptions.entry(id.clone()).or_default())
    }

    /// How many items would not have ended if a subscription had these.
    pub fn live_items_with<'a>(
        &self,
        subscription: &SubscriptionId,
        items: impl IntoIterator<Item = &'a ItemId>,
    ) -> usize {
        let others = self
            .subscriptions
            .iter()
            .filter(|(id, other)| *id != subscription && self.ended_at(other).is_none());
        let count = |other: &Subscription| {
            other.snapshot.as_ref().map_or(other.items.len(), |snapshot| snapshot.items.len())
        };
        let its_own: BTreeSet<&ItemId> = items.into_iter().collect();
        others.map(|(_, other)| count(other)).sum::<usize>() + its_own.len()
    }

    /// Takes credits in the order in which they are spent. Returns what could not be taken.
    pub(super) fn take(&mut self, amount: Credits, buckets: &Buckets) -> Credits {
        let mut rest = amount;
        for (lot, left) in &buckets.lots {
            let part = (*left).min(rest);
            if part == Credits::ZERO {
                continue;
            }
            rest = rest.minus(part);
            match lot {
                Lot::Item(id, item) => {
                    let bucket = buckets.items.get(&(id.clone(), item.clone()));
                    let known = self.subscriptions.get_mut(id).map(Arc::make_mut);
                    if let (Some(bucket), Some(item)) =
                        (bucket, known.and_then(|known| known.items.get_mut(item)))
                    {
                        item.spend(part, bucket);
                    }
                }
                Lot::Lifetime(place) => spend_of(self.lifetimes.get_mut(*place), part),
                Lot::Signup => {
                    if let Some(signup) = &mut self.signup {
                        signup.spent = signup.spent.plus(part);
                    }
                }
                Lot::Grant(place) => {
                    if let Some(grant) = self.grants.get_mut(*place) {
                        grant.left = grant.left.minus(part);
                    }
                }
                Lot::Pack(place) => spend_of(self.packs.get_mut(*place), part),
            }
        }
        rest
    }

    /// Brings what follows from the periods up to date, and drops what can no longer matter.
    pub(super) fn settle(&mut self, policy: &Policy, now: Timestamp) {
        let openings = self.openings(policy, now);
        let of_plans = openings.iter().filter(|opening| opening.proven && !opening.terms.product);
        let first = of_plans.map(|opening| opening.start).min();
        self.paid_since = match (self.paid_since, first) {
            (Some(known), Some(first)) => Some(known.min(first)),
            (known, first) => known.or(first),
        };
        if policy.addons == Addons::Reset {
            // A pack on the invoice of an opening is bought with it, whenever the period starts.
            for pack in &mut self.packs {
                let with = openings.iter().filter(|opening| pack.invoice.as_ref() == Some(&opening.invoice));
                pack.at = with.map(|opening| opening.start).fold(pack.at, Timestamp::max);
            }
            let resets = openings.iter().filter(|opening| opening.proven && opening.resets);
            let newest = resets.map(|opening| opening.start).max();
            self.reset_at = self.reset_at.max(newest);
            let reset_at = self.reset_at;
            self.packs.retain(|pack| Some(pack.at) >= reset_at);
        }
        self.join_oldest_packs();
        self.holds.retain(|_, hold| hold.until > now);
        self.grants.retain(|grant| grant.left > Credits::ZERO && grant.until.is_none_or(|until| until > now));
        self.prune(policy, now);
        self.forget(policy, now);
    }

    /// All paid periods that have opened.
    fn openings(&self, policy: &Policy, now: Timestamp) -> Vec<Period> {
        let mut all = Vec::new();
        for (id, subscription) in &self.subscriptions {
            self.view(id, subscription, policy, now, |view| {
                all.extend(subscription.items.values().flat_map(|item| item.periods(view)));
            });
        }
        all
    }

    fn prune(&mut self, policy: &Policy, now: Timestamp) {
        let pruned: Vec<(SubscriptionId, BTreeMap<ItemId, Item>)> = self
            .subscriptions
            .iter()
            .map(|(id, subscription)| {
                let mut items = subscription.items.clone();
                self.view(id, subscription, policy, now, |view| {
                    items.values_mut().for_each(|item| item.prune(view));
                });
                items.retain(|_, item| *item != Item::default());
                (id.clone(), items)
            })
            .collect();
        for (id, items) in pruned {
            if let Some(subscription) = self.subscriptions.get_mut(&id)
                && subscription.items != items
            {
                Arc::make_mut(subscription).items = items;
            }
        }
        let gone: Vec<LedgerKey> =
            self.refunds.keys().filter(|document| !self.knows(document)).cloned().collect();
        for document in gone {
            self.refunds.remove(&document);
        }
    }

    /// Whether a document has something here that may still count.
    pub fn knows(&self, document: &LedgerKey) -> bool {
        self.packs.iter().chain(&self.lifetimes).any(|purchase| purchase.is_of(document))
            || self.products.iter().any(|product| product.is_of(document))
            || self.subscriptions.values().any(|one| one.names_document(document))
    }

    /// Ties a payment to an invoice: a session's purchase that the payment paid and the invoice's are one.
    pub(super) fn tie(&mut self, invoice: &InvoiceId, payment: &str) {
        self.tie_products(invoice, payment);
        for all in [&mut self.packs, &mut self.lifetimes] {
            let of_payment =
                all.iter().position(|one| one.session.is_some() && one.payment.as_deref() == Some(payment));
            let of_invoice =
                all.iter().position(|one| one.session.is_none() && one.invoice.as_ref() == Some(invoice));
            match (of_payment, of_invoice) {
                (Some(session), Some(place)) => {
                    let spent = all.get(place).map_or(Credits::ZERO, |one| one.spent);
                    if let Some(session) = all.get_mut(session) {
                        session.spent = session.spent.plus(spent);
                        session.invoice = Some(invoice.clone());
                    }
                    all.remove(place);
                }
                (Some(session), None) => {
                    if let Some(session) = all.get_mut(session) {
                        session.invoice.get_or_insert_with(|| invoice.clone());
                    }
                }
                (None, Some(place)) => {
                    if let Some(one) = all.get_mut(place) {
                        one.payment.get_or_insert_with(|| payment.to_owned());
                    }
                }
                (None, None) => {}
            }
        }
    }

    /// Whether a document has lines that wait for their start, for a snapshot or for their period.
    pub(super) fn waits(&self, document: &LedgerKey) -> bool {
        self.subscriptions.values().any(|one| one.items.values().any(|item| item.waits(document)))
    }

    /// Joins the oldest purchases when there are too many, those that are spent first.
    fn join_oldest_packs(&mut self) {
        self.packs.sort_by(|a, b| (a.at, &a.session, &a.invoice).cmp(&(b.at, &b.session, &b.invoice)));
        let spent = |pack: &Purchase| pack.spent >= pack.granted;
        let mut too_many =
            self.packs.iter().filter(|pack| spent(pack)).count().saturating_sub(MAX_SPENT_PURCHASES);
        self.packs.retain(|pack| {
            let drop = too_many > 0 && spent(pack);
            too_many -= usize::from(drop);
            !drop
        });
        while self.packs.len() > MAX_PURCHASES {
            let oldest = self.packs.remove(0);
            let left = oldest
                .granted
                .minus(oldest.granted.share(self.refunded_of(&oldest), oldest.total))
                .minus(oldest.spent);
            if let Some(next) = self.packs.first_mut() {
                // A refund of the joined purchase takes at most what its own payment granted.
                next.total = next.total.saturating_add(if next.granted == Credits::ZERO {
                    0
                } else {
                    i64::try_from(
                        u128::from(left.get()) * u128::from(next.total.unsigned_abs())
                            / u128::from(next.granted.get()).max(1),
                    )
                    .unwrap_or(i64::MAX)
                });
                next.granted = next.granted.plus(left);
                next.joined = true;
            }
        }
    }

    /// Drops subscriptions that ended long ago and hold nothing, so that an account stays small with any
    /// history.
    fn forget(&mut self, policy: &Policy, now: Timestamp) {
        let horizon = now.plus_days(-FORGET_ENDED_AFTER_DAYS);
        self.forget_removed_items(policy, horizon, now);
        let ended: Vec<(Timestamp, SubscriptionId)> = self
            .subscriptions
            .iter()
            .filter_map(|(id, subscription)| Some((self.ended_at(subscription)?, id.clone())))
            .collect();
        if ended.len() <= REMEMBER_ENDED {
            return;
        }
        let buckets = self.buckets(policy, now);
        let mut empty: Vec<_> =
            ended.into_iter().filter(|(_, id)| buckets.of_subscription(id) == Credits::ZERO).collect();
        empty.sort();
        empty.truncate(empty.len().saturating_sub(REMEMBER_ENDED));
        for (_, id) in empty.iter().filter(|(end, _)| *end < horizon) {
            self.subscriptions.remove(id);
        }
    }
}

impl State {
    /// Drops items that were removed long ago and hold nothing, beyond the last ten of a subscription.
    fn forget_removed_items(&mut self, policy: &Policy, horizon: Timestamp, now: Timestamp) {
        if self.subscriptions.values().all(|subscription| subscription.items.len() <= REMEMBER_ENDED) {
            return;
        }
        let buckets = self.buckets(policy, now);
        let mut gone = Vec::new();
        for (id, subscription) in &self.subscriptions {
            let empty = |item: &ItemId| {
                buckets
                    .items
                    .get(&(id.clone(), item.clone()))
                    .is_none_or(|bucket| bucket.left == Credits::ZERO)
            };
            let mut removed: Vec<(Timestamp, ItemId)> = subscription
                .items
                .keys()
                .filter(|item| empty(item))
                .filter_map(|item| Some((subscription.removed_at(item)?, item.clone())))
                .collect();
            removed.sort();
            removed.truncate(removed.len().saturating_sub(REMEMBER_ENDED));
            gone.extend(
                removed.into_iter().filter(|(end, _)| *end < horizon).map(|(_, item)| (id.clone(), item)),
            );
        }
        for (id, item) in gone {
            if let Some(subscription) = self.subscriptions.get_mut(&id) {
                Arc::make_mut(subscription).items.remove(&item);
            }
        }
    }
}

fn spend_of(purchase: Option<&mut Purchase>, credits: Credits) {
    if let Some(purchase) = purchase {
        purchase.spent = purchase.spent.plus(credits);
    }
}

/// The current periods of items that bill plans.
fn periods_of_plans(items: &BTreeMap<(SubscriptionId, ItemId), Bucket>) -> impl Iterator<Item = &Period> {
    items.values().filter_map(|bucket| bucket.period.as_ref()).filter(|period| !period.terms.product)
}
