//! The state of an account, and what its buckets hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::NewEntry;
use super::actions::PaymentAction;
use super::item::{Bucket, Item, Period, View};
use super::lots::{
    Complimentary, FreeRefill, Grant, Hold, Lot, LotBalance, OlderLot, Purchase, Signup, replace,
};
use super::opening::Import;
use super::products::BoughtProduct;
use super::slice::{Carry, Phase, phase_at};
use super::snapshot::Snapshot;
use super::subscription::Subscription;
use super::swap::{Handed, NOTHING, Taker, hand_over, hand_over_trials};
use crate::catalog::{Addons, PauseCollection, Policy, RefundedAccess, SpendOrder, Trials};
use crate::credits::Credits;
use crate::event::SubscriptionStatus;
use crate::ids::{CustomerId, EventId, HoldId, InvoiceId, ItemId, SessionId, SubscriptionId};
use crate::ledger::{EntryKind, LedgerKey};
use crate::reversal::{DisputeSpan, Disputes};
use crate::timestamp::Timestamp;

/// Days after its end at which a subscription without credits may be dropped. Stripe can send an event again
/// for 30 days.
const FORGET_ENDED_AFTER_DAYS: i64 = 60;
/// The newest ended subscriptions are kept, up to this number, regardless of when they ended.
const REMEMBER_ENDED: usize = 10;
/// The maximum number of pack purchases. Beyond it, the two with the nearest ends are merged into one.
pub(super) const MAX_PURCHASES: usize = 24;
/// The maximum number of spent purchases that are kept, so that the app can give their credits back.
const MAX_SPENT_PURCHASES: usize = 12;
/// The maximum number of grants by hand. Beyond it, the two with the nearest ends are merged into one.
const MAX_GRANTS: usize = 16;
/// The number of newest free refills that are kept, in case a later event takes one back.
const MAX_FREE_REFILLS: usize = 4;
/// The number of months in which a free refill is looked for that fell due and was not booked, because nothing
/// was written to the account since. Such a refill stays while a plan gives access without a new payment.
const FREE_MONTHS: u32 = 36;
/// The maximum number of items over all subscriptions.
pub const MAX_ITEMS: usize = 50;
/// The largest state, in bytes of JSON. DynamoDB allows an item 400 KB; packed, this takes a third of it.
const MAX_STATE_BYTES: usize = 500_000;
/// A state with at most this many records in all subscriptions is smaller than [`MAX_STATE_BYTES`].
const MANY_RECORDS: usize = 800;

/// What the rules know about an account; stored as one packed text of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// When the account was first written.
    pub created_at: Timestamp,
    /// The balance that the ledger's entries add up to.
    #[serde(default, skip_serializing_if = "super::lots::is_zero")]
    pub booked: Credits,
    /// When it was last written. What fell due by time alone up to then is booked.
    #[serde(default)]
    pub as_of: Timestamp,
    /// The earliest moment after `as_of` at which the credits change by time alone, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// The Stripe customers of this user; the value says when one was deleted at Stripe.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub customers: BTreeMap<CustomerId, Option<Timestamp>>,
    /// The bucket `signup`; absent until the app has created the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signup: Option<Signup>,
    /// The newest free refills that were booked, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub free: Vec<FreeRefill>,
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
    /// The balance that the user had in another system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<Import>,
    /// Start of the newest period that ended unspent add-on credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_at: Option<Timestamp>,
    /// All subscriptions that may still matter. Copies of the state share them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subscriptions: BTreeMap<SubscriptionId, Arc<Subscription>>,
    /// The user's earliest trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_trial: Option<(Timestamp, SubscriptionId)>,
    /// Refunded and disputed minor units, by document and payment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refunds: BTreeMap<LedgerKey, BTreeMap<String, i64>>,
    /// For each payment in `refunds`, its refunded and disputed minor units after each change, oldest first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) refunded_since: BTreeMap<String, Vec<(Timestamp, i64)>>,
    /// The disputes of payments of invoices that may still count, also those that were won.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) disputes: Disputes,
    /// When the first payment of this user was confirmed, by the earliest event that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_paid_at: Option<Timestamp>,
    /// The newest failed payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_failed_at: Option<Timestamp>,
    /// The newest `created` of an event of this account, if one of its subscriptions is on a test clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Timestamp>,
    /// When the personal data of the user was erased. Later events keep no e-mail address and no payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased_at: Option<Timestamp>,
    /// Payments that wait for the customer, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<PaymentAction>,
    /// The newest ledger entry: the head of the list that `previous` continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_entry: Option<LedgerKey>,
    /// The newest event of this user in the log: the head of the list that `previous` continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<EventId>,
}

/// A ledger entry that no single event states: it follows from all facts and the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Derived {
    pub kind: EntryKind,
    /// Its worth in credits.
    pub worth: Credits,
    /// When it fell due, if time alone made it count.
    pub since: Option<Timestamp>,
    /// The number of earlier entries of its kind in the same period.
    pub before: usize,
}

/// The buckets of an account at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// One for each subscription item.
    pub items: BTreeMap<(SubscriptionId, ItemId), Bucket>,
    /// All credits that can be spent, in the order of spending.
    pub lots: Vec<LotBalance>,
    /// The entries that follow from all facts and the time: plan changes, trials, lines that count later than
    /// their invoice was recorded, months of a period, free refills.
    pub(super) derived: BTreeMap<LedgerKey, Derived>,
    /// The earliest moment at which a lot ends or a month of a period begins.
    pub(super) next: Option<Timestamp>,
    /// The month of the free refill that the bucket `signup` holds.
    pub(super) free_month: Option<u32>,
    /// The credits that refunds and disputes take from all buckets together.
    pub(super) lost: Credits,
    /// Start of the first paid period, which ends the signup credits.
    pub(super) paid_since: Option<Timestamp>,
}

impl Buckets {
    /// The balance: the sum of all buckets.
    pub fn balance(&self) -> Credits {
        self.lots.iter().map(|one| one.left).sum()
    }

    /// The credits left in the lots that `of` selects.
    pub fn sum(&self, of: impl Fn(&Lot) -> bool) -> Credits {
        self.lots.iter().filter(|one| of(&one.lot)).map(|one| one.left).sum()
    }

    /// What is left of a carry, by its ledger key.
    pub(super) fn carried_over(&self, key: &LedgerKey) -> i64 {
        let carries = self
            .items
            .iter()
            .flat_map(|((_, item), bucket)| bucket.carries.iter().map(move |carry| (item, carry)));
        let of_key = |(item, carry): &(&ItemId, &Carry)| {
            LedgerKey::rollover(&carry.invoice, item, carry.index) == *key
        };
        let left = carries.into_iter().find(of_key).map_or(Credits::ZERO, |(_, carry)| carry.left);
        left.delta_from(Credits::ZERO)
    }

    /// Whether a document granted or charged something that a bucket holds.
    pub fn counts(&self, document: &LedgerKey, state: &State) -> bool {
        let items = self.items.values().flat_map(|bucket| &bucket.documents);
        items.into_iter().any(|invoice| document.is_invoice(invoice))
            || state.packs.iter().chain(&state.lifetimes).any(|purchase| purchase.holds(document))
            || state.products.iter().any(|product| product.is_of(document))
    }

    /// What each item holds, with what it took over.
    pub fn by_item(&self) -> BTreeMap<&str, Credits> {
        let mut items = BTreeMap::new();
        for one in &self.lots {
            if let Lot::Item(_, item) | Lot::Carry(_, item, _) = &one.lot {
                let sum: &mut Credits = items.entry(item.as_str()).or_default();
                *sum = sum.plus(one.left);
            }
        }
        items
    }

    /// What the items of a subscription hold.
    pub fn of_subscription(&self, id: &SubscriptionId) -> Credits {
        self.sum(|lot| matches!(lot, Lot::Item(of, _) | Lot::Carry(of, ..) if of == id))
    }
}

impl State {
    /// The time of this account. On a test clock, whose time the merchant moves, it is the newest time that
    /// an event shows, unless the wall clock is later. Every function with the argument `now` reads it first.
    pub fn time(&self, now: Timestamp) -> Timestamp {
        self.clock.map_or(now, |clock| clock.max(now))
    }

    /// The balance at a moment.
    pub fn balance(&self, policy: &Policy, now: Timestamp) -> Credits {
        self.buckets(policy, now).balance()
    }

    /// Refunded and disputed minor units of a document's payments.
    pub fn refunded(&self, document: &LedgerKey) -> i64 {
        self.refunds
            .get(document)
            .map_or(0, |payments| payments.values().fold(0, |sum, amount| sum.saturating_add(*amount)))
    }

    /// Refunded and disputed minor units of a document at a moment; 0 for payments whose changes are not
    /// known.
    pub(super) fn refunded_at(&self, document: &LedgerKey, at: Timestamp) -> i64 {
        let payments = self.refunds.get(document).into_iter().flatten();
        let then = payments.map(|(payment, amount)| self.back_at(payment, *amount, at));
        then.fold(0, i64::saturating_add)
    }

    /// What of a payment's refunded and disputed amount had gone back at a moment.
    fn back_at(&self, payment: &str, amount: i64, at: Timestamp) -> i64 {
        let steps = self.refunded_since.get(payment).into_iter().flatten();
        steps.rev().find(|(since, _)| *since <= at).map_or(0, |(_, then)| amount.min(*then))
    }

    /// Refunded and disputed minor units of a purchase, whichever of its documents the payment names.
    pub fn refunded_of(&self, purchase: &Purchase) -> i64 {
        self.refunded_of_both(purchase.session.as_ref(), purchase.invoice.as_ref(), None)
    }

    /// What refunds and disputes take of a purchase and of the older ones in it.
    pub(super) fn lost_of(&self, purchase: &Purchase) -> Credits {
        if self.refunds.is_empty() {
            return Credits::ZERO;
        }
        let own = purchase.own();
        std::iter::once(&own).chain(&purchase.older).map(|part| self.lost_of_part(part)).sum()
    }

    /// What refunds and disputes take of a lot: at most what was left of it when it was joined with another.
    pub(super) fn lost_of_part(&self, part: &OlderLot) -> Credits {
        let Some(sale) = &part.sale else { return Credits::ZERO };
        let back = self.refunded_of_both(sale.session.as_ref(), sale.invoice.as_ref(), None);
        sale.granted.share(back, sale.total).min(part.left)
    }

    /// What had gone back of the payments of both documents of a purchase, now or at a moment.
    fn refunded_of_both(
        &self,
        session: Option<&SessionId>,
        invoice: Option<&InvoiceId>,
        at: Option<Timestamp>,
    ) -> i64 {
        let mut payments: BTreeMap<&str, i64> = BTreeMap::new();
        let session = session.map(LedgerKey::session);
        let invoice = invoice.map(LedgerKey::invoice);
        for document in session.iter().chain(&invoice) {
            for (payment, amount) in self.refunds.get(document).into_iter().flatten() {
                let known = payments.entry(payment).or_insert(0);
                *known = (*known).max(at.map_or(*amount, |at| self.back_at(payment, *amount, at)));
            }
        }
        payments.values().fold(0, |sum, amount| sum.saturating_add(*amount))
    }

    /// Calls `with` with the view that the computation of a subscription's items needs.
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
        let refunded_at = |invoice: &InvoiceId, at: Timestamp| {
            if self.refunds.is_empty() { 0 } else { self.refunded_at(&LedgerKey::invoice(invoice), at) }
        };
        let first = self.first_trial.as_ref().is_none_or(|(_, first)| first == id);
        let view = View {
            items: &subscription.items,
            plan_change: policy.plan_change,
            phases: &subscription.phases,
            pause_collection: policy.pause_collection,
            ended: None,
            carried_periods: policy.carried_periods,
            handed: &NOTHING,
            imported_at: self.import.as_ref().map(|import| import.as_of),
            grace_days: policy.past_due_grace_days,
            refunded: &refunded,
            refunded_at: &refunded_at,
            disputes: &self.disputes,
            oldest_pack: self
                .packs
                .iter()
                .map(|pack| pack.at)
                .min()
                .map(|oldest| self.reset_at.map_or(oldest, |reset_at| reset_at.max(oldest)))
                .filter(|_| policy.addons == Addons::Reset),
            trial_counts: self.ended_at(subscription).is_none() && (first || policy.trials == Trials::Each),
            now,
        };
        with(&view)
    }

    /// The key of the entry that granted a lot's credits.
    pub fn lot_key(&self, lot: &Lot, buckets: &Buckets) -> Option<LedgerKey> {
        let bucket = |id: &SubscriptionId, item: &ItemId| buckets.items.get(&(id.clone(), item.clone()));
        match lot {
            Lot::Item(id, item) => {
                let bucket = bucket(id, item)?;
                Some(match (&bucket.period, bucket.slice.index) {
                    (None, _) => LedgerKey::trial(id, item),
                    (Some(period), 0) => LedgerKey::invoice(&period.invoice),
                    (Some(period), month) => LedgerKey::slice(&period.invoice, item, month),
                })
            }
            Lot::Carry(id, item, start) => {
                let carry = bucket(id, item)?.carries.iter().find(|carry| carry.since == *start)?;
                Some(LedgerKey::rollover(&carry.invoice, item, carry.index))
            }
            Lot::Lifetime(place) => self.lifetimes.get(*place)?.key(),
            Lot::Signup => Some(buckets.free_month.map_or_else(LedgerKey::signup, LedgerKey::free)),
            Lot::Opening => Some(self.import.as_ref()?.key.clone()),
            Lot::Grant(place) => Some(self.grants.get(*place)?.key.clone()),
            Lot::Pack(place) => self.packs.get(*place)?.key(),
        }
    }

    /// The entries for the lots that end at a moment.
    pub(super) fn expired_at(&self, buckets: &Buckets, end: Timestamp) -> Vec<NewEntry> {
        let ending = |one: &&LotBalance| one.expires() && one.until == Some(end) && one.left > Credits::ZERO;
        let entry = |one: &LotBalance| {
            let key = self.lot_key(&one.lot, buckets)?.expired();
            // A late payment can give carried credits a later end.
            let key = match one.lot {
                Lot::Carry(..) => LedgerKey::from_text(&format!("{key}#{}", end.unix())),
                Lot::Item(..)
                | Lot::Lifetime(_)
                | Lot::Signup
                | Lot::Opening
                | Lot::Grant(_)
                | Lot::Pack(_) => key,
            };
            Some(expired(key, one.left, end))
        };
        buckets.lots.iter().filter(ending).filter_map(entry).collect()
    }

    /// The entries for the end of credits that had ended before their document arrived.
    pub(super) fn granted_too_late<'a>(
        &self,
        new: impl Iterator<Item = &'a NewEntry> + Clone,
        now: Timestamp,
    ) -> Vec<NewEntry> {
        let mut entries = Vec::new();
        for purchase in self.packs.iter().filter(|purchase| purchase.is_expired(now)) {
            let (Some(key), Some(until)) = (purchase.key(), purchase.until) else { continue };
            let sells = |entry: &NewEntry| entry.key == key && entry.kind == EntryKind::AddOn;
            if new.clone().any(sells) && purchase.spent == Credits::ZERO {
                let left = purchase.granted.minus(self.lost_of(purchase));
                entries.push(expired(key.expired(), left, until));
            }
        }
        entries
    }

    /// When a subscription ended: by itself, or with the deletion of its customer.
    pub fn ended_at(&self, subscription: &Subscription) -> Option<Timestamp> {
        let customer = subscription.customer.as_ref();
        let deleted = customer.and_then(|customer| self.customers.get(customer).copied().flatten());
        earlier(subscription.ended_at(), deleted)
    }

    /// When an item ended so that no month begins after it: by its removal, or with its subscription, unless
    /// failed payments ended that.
    fn no_month_after(&self, one: &Subscription, removed: Option<Timestamp>) -> Option<Timestamp> {
        earlier(self.ended_at(one).filter(|_| !one.ended_unpaid()), removed)
    }

    /// The same for an item of which a line was billed in advance. Other items need no end for their periods.
    fn no_period_after(&self, one: &Subscription, id: &ItemId, item: &Item) -> Option<Timestamp> {
        if item.is_billed_in_advance() { self.no_month_after(one, one.removed_at(id)) } else { None }
    }

    /// What every bucket holds at a moment.
    pub fn buckets(&self, policy: &Policy, now: Timestamp) -> Buckets {
        let now = self.time(now);
        let mut items: BTreeMap<(SubscriptionId, ItemId), Bucket> = BTreeMap::new();
        let mut ends: Vec<((SubscriptionId, ItemId), Timestamp)> = Vec::new();
        for (id, subscription) in &self.subscriptions {
            let has_ended = self.ended_at(subscription);
            let keeps_all = subscription.keeps_all_items();
            self.view(id, subscription, policy, now, |view| {
                let bucket = |item: &Item, removed: Option<Timestamp>, handed: &Handed| {
                    // The trial of a removed item has ended unpaid.
                    let trial_counts = view.trial_counts && removed.is_none();
                    let ended = self.no_month_after(subscription, removed);
                    item.bucket(&View { ended, trial_counts, handed, ..*view })
                };
                for (item_id, item) in &subscription.items {
                    let removed = if keeps_all { None } else { subscription.removed_at(item_id) };
                    let bucket = bucket(item, removed, &NOTHING);
                    if bucket != Bucket::default() {
                        let key = (id.clone(), item_id.clone());
                        ends.extend(earlier(has_ended, removed).map(|end| (key.clone(), end)));
                        items.insert(key, bucket);
                    }
                }
                if keeps_all {
                    return;
                }
                for swap in subscription.swaps() {
                    let old = swap.old.iter().filter_map(|old| items.get(&(id.clone(), (*old).clone())));
                    let mut takers: Vec<Taker<'_>> = Vec::new();
                    for (item, known) in
                        swap.new.iter().filter_map(|new| subscription.items.get_key_value(*new))
                    {
                        let may_be_older = swap.is_oldest;
                        takers.extend(known.first_period(view).map(|(period, is_dropped)| Taker {
                            item,
                            period,
                            handed: Handed::default(),
                            may_be_older,
                            is_dropped,
                        }));
                    }
                    hand_over(old, &mut takers);
                    let counts = |taker: &&Taker<'_>| taker.handed != NOTHING && !taker.is_dropped;
                    for Taker { item, handed, .. } in takers.iter().filter(counts) {
                        let Some(known) = subscription.items.get(*item) else { continue };
                        let bucket = bucket(known, subscription.removed_at(item), handed);
                        items.insert((id.clone(), (*item).clone()), bucket);
                    }
                }
                let of_trial = |item: &ItemId| {
                    let bucket = items.get(&(id.clone(), item.clone()));
                    bucket.map_or((Credits::ZERO, false), Bucket::hands_over_of_trial)
                };
                for (item, handed) in hand_over_trials(subscription, of_trial, view) {
                    let Some(known) = subscription.items.get(item) else { continue };
                    let bucket = bucket(known, subscription.removed_at(item), &handed);
                    if bucket != Bucket::default() {
                        items.insert((id.clone(), item.clone()), bucket);
                    }
                }
            });
        }
        void_ended(&mut items, &ends);
        let derived = derived(&items);
        let mut lost: Credits = items.values().map(|bucket| bucket.lost).sum();
        lost = lost.plus(items.values().flat_map(|bucket| &bucket.carries).map(|carry| carry.lost).sum());
        let mut lots = self.item_lots(&items);
        for (place, purchase) in self.lifetimes.iter().enumerate() {
            let (taken, lot) = self.purchase_lot(Lot::Lifetime(place), purchase, now);
            lost = lost.plus(taken);
            lots.push(lot);
        }
        let unproven = || periods_of_plans(&items).filter(|period| !period.proven);
        let paid_since = self.paid_since.into_iter().chain(unproven().map(|period| period.start)).min();
        let may_end = policy.addons == Addons::Reset && !self.packs.is_empty();
        let resets = if may_end { self.resets(policy, now) } else { BTreeSet::new() };
        let mut all = Buckets { items, derived, paid_since, ..Buckets::default() };
        lots.extend(self.signup_lot(&mut all, policy, now));
        lots.extend(self.import.as_ref().map(Import::lot));
        for (place, grant) in self.grants.iter().enumerate() {
            let ended = grant.until.is_some_and(|until| until <= now);
            lots.push(LotBalance {
                lot: Lot::Grant(place),
                granted: grant.granted,
                left: if ended { Credits::ZERO } else { grant.left },
                since: Some(grant.since),
                until: grant.until,
                free: true,
            });
        }
        for (place, pack) in self.packs.iter().enumerate() {
            if pack.is_ended_by(&resets) {
                continue;
            }
            let (taken, lot) = self.purchase_lot(Lot::Pack(place), pack, now);
            lost = lost.plus(taken);
            lots.push(lot);
        }
        if policy.spend_order == SpendOrder::ExpiringFirst {
            let is_pack = |lot: &Lot| matches!(lot, Lot::Pack(_));
            lots.sort_by_key(|one| {
                let until = one.until.map_or(i64::MAX, Timestamp::unix);
                (until, !one.free, is_pack(&one.lot), one.since, one.lot.clone())
            });
        }
        let ends = lots.iter().filter(|one| one.expires() && one.left > Credits::ZERO);
        let ends = ends.filter_map(|one| one.until);
        let next = ends.chain(all.items.values().filter_map(|bucket| bucket.next)).min();
        Buckets { lots, lost, next, ..all }
    }

    /// The lots of all items, the earliest end first, each followed by the credits that it took over. Of items
    /// with the same end, the item with the smaller id comes first.
    fn item_lots(&self, items: &BTreeMap<(SubscriptionId, ItemId), Bucket>) -> Vec<LotBalance> {
        let end_of = |(id, item): &(SubscriptionId, ItemId), bucket: &Bucket| match &bucket.period {
            Some(_) => bucket.slice.end,
            None => self.subscriptions.get(id)?.items.get(item)?.trial_end(),
        };
        let mut by_end: Vec<_> =
            items.iter().map(|(key, bucket)| (end_of(key, bucket), key, bucket)).collect();
        let by = |end: &Option<Timestamp>| end.map_or(i64::MAX, Timestamp::unix);
        by_end.sort_by(|(end, one, _), (other_end, other, _)| {
            (by(end), &one.1).cmp(&(by(other_end), &other.1))
        });
        let mut lots = Vec::with_capacity(by_end.len());
        for (until, (id, item), bucket) in by_end {
            lots.push(LotBalance {
                lot: Lot::Item(id.clone(), item.clone()),
                granted: bucket.granted.minus(bucket.lost),
                left: bucket.left,
                since: match &bucket.period {
                    Some(_) => Some(bucket.slice.since),
                    None => self.subscriptions.get(id).and_then(|one| one.items.get(item)?.trial_start()),
                },
                until,
                free: bucket.trial,
            });
            lots.extend(bucket.carries.iter().map(|carry| LotBalance {
                lot: Lot::Carry(id.clone(), item.clone(), carry.since),
                granted: carry.granted.minus(carry.lost),
                left: carry.left,
                since: Some(carry.since),
                until: carry.until,
                free: false,
            }));
        }
        lots
    }

    /// What refunds and disputes take of a purchase, and its lot.
    fn purchase_lot(&self, lot: Lot, purchase: &Purchase, now: Timestamp) -> (Credits, LotBalance) {
        let taken = self.lost_of(purchase);
        let granted = purchase.granted.minus(taken);
        let left = if purchase.is_expired(now) { Credits::ZERO } else { granted.minus(purchase.spent) };
        let since = Some(purchase.at);
        (taken, LotBalance { lot, granted, left, since, until: purchase.until, free: false })
    }

    /// The bucket `signup`: the newest free refill that no later paid period ended, else the signup credits.
    fn signup_lot(&self, all: &mut Buckets, policy: &Policy, now: Timestamp) -> Option<LotBalance> {
        let signup = self.signup.as_ref()?;
        let lot = |granted: Credits, spent: Credits, since, until: Option<Timestamp>| {
            let ended = until.is_some_and(|until| until <= now);
            let left = if ended { Credits::ZERO } else { granted.minus(spent) };
            LotBalance { lot: Lot::Signup, granted, left, since: Some(since), until, free: true }
        };
        if let Some(month) = self.free_month(policy, now) {
            let start = signup.since.plus_months(month);
            let booked = self.free.iter().find(|refill| refill.month == month);
            let granted = booked.map_or(Credits::new(policy.free_credits), |refill| refill.granted);
            let spent = self.free.iter().filter(|refill| refill.month >= month);
            let spent = spent.map(|refill| refill.spent).sum();
            all.free_month = Some(month);
            let before = usize::try_from(month).unwrap_or(usize::MAX);
            let derived = Derived { kind: EntryKind::FreeRefill, worth: granted, since: Some(start), before };
            all.derived.insert(LedgerKey::free(month), derived);
            let ended = periods_of_plans(&all.items).map(|period| period.start).max() > Some(start);
            return (!ended).then(|| lot(granted, spent, start, None));
        }
        all.paid_since.is_none().then(|| lot(signup.granted, signup.spent, signup.since, signup.until))
    }

    /// The months after the signup in which a free refill may be due, oldest first.
    fn free_months(since: Timestamp, now: Timestamp) -> std::ops::RangeInclusive<u32> {
        let newest = months_since(since, now);
        newest.saturating_sub(FREE_MONTHS).max(1)..=newest
    }

    fn months_of_free_refills(&self, now: Timestamp) -> Vec<Timestamp> {
        let starts = |signup: &Signup| {
            let since = signup.since;
            self.months_newest_first(since, now).map(|month| since.plus_months(month)).collect()
        };
        self.signup.as_ref().map(starts).unwrap_or_default()
    }

    /// The months in which a free refill may be due, and the older ones whose refill was booked: it stays until
    /// a newer refill or a paid period ends it, also if a plan without payment gives access for long.
    fn months_newest_first(&self, since: Timestamp, now: Timestamp) -> impl Iterator<Item = u32> {
        let months = Self::free_months(since, now);
        let oldest = *months.start();
        let booked = self.free.iter().rev().map(|refill| refill.month).filter(move |month| *month < oldest);
        months.rev().chain(booked)
    }

    /// The month of the newest free refill that is due: no plan gave access at its start.
    fn free_month(&self, policy: &Policy, now: Timestamp) -> Option<u32> {
        let signup = self.signup.as_ref()?;
        if policy.free_credits == 0 && self.free.is_empty() {
            return None;
        }
        let mut months = self.months_newest_first(signup.since, now);
        months.find(|month| !self.had_access(policy, signup.since.plus_months(*month)))
    }

    /// When the next free refill falls due, if no plan gives access until then.
    pub fn next_free_refill(&self, policy: &Policy, now: Timestamp) -> Option<Timestamp> {
        let now = self.time(now);
        let since = self.signup.as_ref().filter(|_| policy.free_credits > 0)?.since;
        let next = since.plus_months(months_since(since, now) + 1);
        (!self.had_access(policy, next)).then_some(next)
    }

    /// When the next credits fall due without a payment: a month of a paid period, or free credits.
    pub fn next_grant_at(&self, buckets: &Buckets, policy: &Policy, now: Timestamp) -> Option<Timestamp> {
        let now = self.time(now);
        let months = buckets.items.values().filter_map(|bucket| bucket.next_month);
        months.chain(self.next_free_refill(policy, now)).min()
    }

    /// Whether the newest paid period of one of the subscription's items runs at a moment. An item that was
    /// removed by then gives no access.
    fn is_paid_at(&self, id: &SubscriptionId, one: &Subscription, policy: &Policy, at: Timestamp) -> bool {
        self.view(id, one, policy, at, |view| {
            let runs = |item: &Item| {
                let newest = item.periods(view).pop();
                newest.is_some_and(|period| period.end.is_none_or(|end| at < end))
            };
            let is_there = |id: &ItemId| one.removed_at(id).is_none_or(|removed| at < removed);
            let keeps_all = one.keeps_all_items();
            one.items.iter().any(|(id, item)| runs(item) && (keeps_all || is_there(id)))
        })
    }

    /// Whether a subscription that has ended gave access at a moment. If a payment failed, it does so to the
    /// end of what was paid.
    fn gave_access(
        &self,
        id: &SubscriptionId,
        one: &Subscription,
        end: Timestamp,
        policy: &Policy,
        at: Timestamp,
    ) -> bool {
        use SubscriptionStatus::{Incomplete, IncompleteExpired};
        let deleted = one.customer.as_ref().and_then(|customer| self.customers.get(customer)?.as_ref());
        if at >= end {
            let unpaid = one.snapshot.as_ref().is_some_and(|snapshot| snapshot.ended_unpaid);
            return unpaid && deleted.is_none() && self.is_paid_at(id, one, policy, at);
        }
        let phase = phase_at(&one.phases, at);
        if phase.is_some_and(Phase::is_paused) {
            return false;
        }
        let pauses = policy.pause_collection == PauseCollection::UntilPeriodEnd;
        if pauses && phase.is_some_and(Phase::collection_is_paused) {
            return self.is_paid_at(id, one, policy, at);
        }
        let never_began =
            one.snapshot.as_ref().is_some_and(|one| matches!(one.status, Incomplete | IncompleteExpired));
        !never_began || self.is_paid_at(id, one, policy, at)
    }

    /// Whether a subscription that has not ended gives access at a moment.
    fn gives_access(&self, id: &SubscriptionId, one: &Subscription, policy: &Policy, at: Timestamp) -> bool {
        let paid = || self.is_paid_at(id, one, policy, at);
        let Some(snapshot) = &one.snapshot else { return paid() };
        // The newest snapshot does not show a pause that has ended; `phases` has it.
        let phase = phase_at(&one.phases, at);
        let was_paused = phase.map_or(snapshot.status == SubscriptionStatus::Paused, Phase::is_paused);
        if was_paused {
            return false;
        }
        match snapshot.status {
            SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::Paused => {
                let pauses = policy.pause_collection == PauseCollection::UntilPeriodEnd;
                let collection = phase.map_or(snapshot.collection_paused, Phase::collection_is_paused);
                !(collection && pauses) || paid()
            }
            SubscriptionStatus::PastDue => paid() || self.is_in_grace(id, one, snapshot, policy, at),
            SubscriptionStatus::Unpaid | SubscriptionStatus::Incomplete => paid(),
            SubscriptionStatus::IncompleteExpired
            | SubscriptionStatus::Canceled
            | SubscriptionStatus::Other(_) => false,
        }
    }

    /// Whether an item of an overdue subscription is in its grace at a moment.
    fn is_in_grace(
        &self,
        id: &SubscriptionId,
        one: &Subscription,
        snapshot: &Snapshot,
        policy: &Policy,
        at: Timestamp,
    ) -> bool {
        let items = || snapshot.items.iter().filter(|shown| shown.terms.is_some());
        self.view(id, one, policy, at, |view| {
            items().any(|shown| {
                let (Some(start), Some(item)) = (shown.start, one.items.get(&shown.id)) else { return false };
                let due = item.unpaid_since(start, item.periods(view).last(), snapshot.days_until_due);
                at < due.plus_days(policy.past_due_grace_days)
            })
        })
    }

    /// Whether all that was paid for the items of a subscription had gone back at a moment, and access with it.
    fn is_given_back(&self, id: &SubscriptionId, one: &Subscription, policy: &Policy, at: Timestamp) -> bool {
        if policy.refunded_access == RefundedAccess::Keep || self.refunds.is_empty() {
            return false;
        }
        self.view(id, one, policy, at, |view| {
            let refunded = |invoice: &InvoiceId| (view.refunded_at)(invoice, at);
            let then = View { refunded: &refunded, ..*view };
            let is_there = |id: &ItemId, item: &Item| one.was_there(id, item, at);
            let is_back = |item: &Item| {
                let period = item.periods(&then).into_iter().rfind(|period| period.start <= at);
                period.is_some_and(|period| item.is_refunded(&period, &then))
            };
            let mut shown = one.items.iter().filter(|(id, item)| is_there(id, item)).peekable();
            shown.peek().is_some() && shown.all(|(_, item)| is_back(item))
        })
    }

    /// Whether a plan gave access at a moment, as far as is known now. Of the gaps within a subscription's
    /// life only pauses are known; the others count as access.
    fn had_access(&self, policy: &Policy, at: Timestamp) -> bool {
        let subscription = |(id, one): (&SubscriptionId, &Arc<Subscription>)| {
            one.since.is_some_and(|since| since <= at)
                && match self.ended_at(one) {
                    Some(end) => self.gave_access(id, one, end, policy, at),
                    None => self.gives_access(id, one, policy, at),
                }
                && !self.is_given_back(id, one, policy, at)
        };
        let back = |purchase: &Purchase| {
            self.refunded_of_both(purchase.session.as_ref(), purchase.invoice.as_ref(), Some(at))
        };
        self.subscriptions.iter().any(subscription)
            || self
                .lifetimes
                .iter()
                .any(|purchase| purchase.at <= at && (purchase.total <= 0 || back(purchase) < purchase.total))
            || self
                .complimentary
                .iter()
                .any(|gift| gift.from <= at && gift.until.is_none_or(|until| at < until))
    }

    /// Starts of periods that end packs: the newest one that nothing closes, and all that a later fact may
    /// still close. Packs from before the latter stay in the account, with no credits left.
    pub(super) fn resets(&self, policy: &Policy, now: Timestamp) -> BTreeSet<Timestamp> {
        let mut all: BTreeSet<Timestamp> = self.reset_at.into_iter().collect();
        let now = self.time(now);
        for (id, one) in &self.subscriptions {
            self.view(id, one, policy, now, |view| {
                for (id, item) in &one.items {
                    let ended = self.no_period_after(one, id, item);
                    all.extend(item.unproven_resets(&View { ended, ..*view }));
                }
            });
        }
        all
    }

    /// The starts of the lines of an invoice that may still count.
    pub(super) fn starts_billed_by(&self, invoice: Option<&InvoiceId>) -> impl Iterator<Item = Timestamp> {
        invoice.into_iter().flat_map(|invoice| {
            let items = self.subscriptions.values().flat_map(|one| one.items.values());
            items.flat_map(move |item| item.starts_billed_by(invoice))
        })
    }

    /// When an item ended: with its subscription, with the deletion of its customer, or by its removal.
    pub fn item_ended_at(&self, subscription: &SubscriptionId, item: &ItemId) -> Option<Timestamp> {
        let subscription = self.subscriptions.get(subscription)?;
        earlier(self.ended_at(subscription), subscription.removed_at(item))
    }

    pub(super) fn subscription_mut(&mut self, id: &SubscriptionId) -> &mut Subscription {
        Arc::make_mut(self.subscriptions.entry(id.clone()).or_default())
    }

    /// Whether the state would not fit an item of DynamoDB. Only dozens of items that change dozens of times
    /// within one period need so much.
    pub fn is_too_large(&self) -> bool {
        let records: usize = self.subscriptions.values().map(|subscription| subscription.records()).sum();
        records > MANY_RECORDS && serde_json::to_string(self).is_ok_and(|state| state.len() > MAX_STATE_BYTES)
    }

    /// The number of live items in the account if this subscription has the given items.
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

    /// Takes credits in the order of spending. Returns what could not be taken.
    pub(super) fn take(&mut self, amount: Credits, buckets: &Buckets) -> Credits {
        let mut rest = amount;
        for one in &buckets.lots {
            let part = one.left.min(rest);
            if part == Credits::ZERO {
                continue;
            }
            rest = rest.minus(part);
            match &one.lot {
                Lot::Item(id, item) => {
                    let bucket = buckets.items.get(&(id.clone(), item.clone()));
                    let known = self.subscriptions.get_mut(id).map(Arc::make_mut);
                    if let (Some(bucket), Some(item)) =
                        (bucket, known.and_then(|known| known.items.get_mut(item)))
                    {
                        item.spend(part, bucket);
                    }
                }
                Lot::Carry(id, item, start) => {
                    let known = self.subscriptions.get_mut(id).map(Arc::make_mut);
                    if let Some(item) = known.and_then(|known| known.items.get_mut(item)) {
                        item.spend_carry(part, *start);
                    }
                }
                Lot::Lifetime(place) => spend_of(self.lifetimes.get_mut(*place), part),
                Lot::Signup => self.spend_signup(part, buckets),
                Lot::Opening => {
                    if let Some(import) = &mut self.import {
                        import.spend(part);
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

    fn spend_signup(&mut self, credits: Credits, buckets: &Buckets) {
        let refill = buckets.free_month.and_then(|month| self.free.iter_mut().find(|one| one.month == month));
        match (refill, &mut self.signup) {
            (Some(refill), _) => refill.spent = refill.spent.plus(credits),
            (None, Some(signup)) => signup.spent = signup.spent.plus(credits),
            (None, None) => {}
        }
    }

    /// Stores the newest free refill that is due, with its amount.
    fn book_free_refill(&mut self, policy: &Policy, now: Timestamp) {
        let Some(month) = self.free_month(policy, now) else { return };
        if self.free.iter().any(|refill| refill.month == month) {
            return;
        }
        let granted = Credits::new(policy.free_credits);
        self.free.push(FreeRefill { month, granted, spent: Credits::ZERO });
        self.free.sort_by_key(|refill| refill.month);
        while self.free.len() > MAX_FREE_REFILLS {
            self.free.remove(0);
        }
    }

    /// Updates what follows from the periods, and drops facts that cannot change the state.
    pub(super) fn settle(&mut self, policy: &Policy, now: Timestamp) {
        let openings = self.openings(policy, now);
        let of_plans = openings.iter().filter(|opening| opening.proven && !opening.terms.product);
        let first = of_plans.map(|opening| opening.start).min();
        self.paid_since = match (self.paid_since, first) {
            (Some(known), Some(first)) => Some(known.min(first)),
            (known, first) => known.or(first),
        };
        let mut packs = std::mem::take(&mut self.packs);
        for pack in &mut packs {
            let starts = self.starts_billed_by(pack.invoice.as_ref());
            pack.billed_with.extend(starts.filter(|start| *start > pack.at));
            let invoice = pack.invoice.as_ref();
            let of_another = |one: &&Period| one.resets && Some(&one.invoice) != invoice;
            for period in openings.iter().filter(of_another) {
                pack.billed_with.remove(&period.start);
            }
        }
        self.packs = packs;
        let mut resets = BTreeSet::new();
        if policy.addons == Addons::Reset {
            let proven = openings.iter().filter(|opening| opening.proven && opening.resets);
            let items = self.subscriptions.values().flat_map(|subscription| subscription.items.values());
            let charged = items.flat_map(Item::charged_resets);
            let newest = proven.map(|opening| opening.start).chain(charged).max();
            self.reset_at = self.reset_at.max(newest);
            let is_late = |pack: &Purchase| !pack.outlives.is_empty();
            if self.packs.len() > MAX_PURCHASES || self.packs.iter().any(is_late) {
                resets = self.resets(policy, now);
            }
            let reset_at = self.reset_at;
            self.packs.retain(|pack| {
                let ends = |reset: &Timestamp| {
                    *reset > pack.counts_from(&resets) && !pack.billed_with.contains(reset)
                };
                !reset_at.as_ref().is_some_and(ends)
            });
        }
        if policy.free_credits > 0 {
            self.subscriptions.values_mut().for_each(|one| {
                if one.known_since() != one.since {
                    Arc::make_mut(one).since = one.known_since();
                }
            });
            self.book_free_refill(policy, now);
        }
        self.empty_imported_lots();
        self.settle_import(policy, now);
        self.join_packs(&resets, now);
        self.holds.retain(|_, hold| hold.until > now);
        self.grants.retain(|grant| grant.left > Credits::ZERO && grant.until.is_none_or(|until| until > now));
        self.join_grants();
        self.prune(policy, now);
        self.forget(policy, now);
    }

    /// All paid periods that have opened.
    fn openings(&self, policy: &Policy, now: Timestamp) -> Vec<Period> {
        let mut all = Vec::new();
        for (id, subscription) in &self.subscriptions {
            self.view(id, subscription, policy, now, |view| {
                for (id, item) in &subscription.items {
                    let ended = self.no_period_after(subscription, id, item);
                    all.extend(item.periods(&View { ended, ..*view }));
                }
            });
        }
        all
    }

    fn prune(&mut self, policy: &Policy, now: Timestamp) {
        self.prune_phases(policy, now);
        let mut pruned: Vec<(SubscriptionId, ItemId, Item)> = Vec::new();
        for (id, subscription) in &self.subscriptions {
            self.view(id, subscription, policy, now, |view| {
                for (item_id, item) in &subscription.items {
                    let mut copy = item.clone();
                    let ended = self.no_period_after(subscription, item_id, item);
                    copy.prune(&View { ended, ..*view });
                    if copy != *item || copy == Item::default() {
                        pruned.push((id.clone(), item_id.clone(), copy));
                    }
                }
            });
        }
        for (id, item_id, item) in pruned {
            let items = &mut self.subscription_mut(&id).items;
            if item == Item::default() {
                items.remove(&item_id);
            } else {
                items.insert(item_id, item);
            }
        }
        let documents = self.refunds.keys().chain(self.disputes.keys());
        let gone: Vec<LedgerKey> = documents.filter(|document| !self.knows(document)).cloned().collect();
        for document in gone {
            self.refunds.remove(&document);
            self.disputes.remove(&document);
        }
        let refunds = &self.refunds;
        self.refunded_since.retain(|payment, _| refunds.values().any(|paid| paid.contains_key(payment)));
    }

    fn prune_phases(&mut self, policy: &Policy, now: Timestamp) {
        let many: Vec<(SubscriptionId, Vec<Period>)> = self
            .subscriptions
            .iter()
            .filter(|(_, one)| one.has_many_phases())
            .map(|(id, one)| {
                let mut periods = Vec::new();
                self.view(id, one, policy, now, |view| {
                    periods.extend(one.items.values().flat_map(|item| item.periods(view)));
                });
                (id.clone(), periods)
            })
            .collect();
        let mut moments = self.months_of_free_refills(now);
        let disputes = self.disputes.values().flat_map(BTreeMap::values).flatten();
        moments.extend(disputes.filter_map(|(_, closed)| *closed));
        for (id, periods) in many {
            self.subscription_mut(&id).prune_phases(&periods, &moments);
        }
    }

    /// Keeps when an invoice's payment was disputed. No month begins while a dispute of it is open.
    pub(super) fn set_disputes(&mut self, document: &LedgerKey, payment: &str, disputes: Vec<DisputeSpan>) {
        if document.invoice_id().is_none() {
            return;
        }
        let payments = self.disputes.entry(document.clone()).or_default();
        payments.remove(payment);
        if !disputes.is_empty() {
            payments.insert(payment.to_owned(), disputes);
        }
        self.disputes.retain(|_, payments| !payments.is_empty());
    }

    /// Whether the state has a line or purchase of this document that may still count.
    pub fn knows(&self, document: &LedgerKey) -> bool {
        self.packs.iter().chain(&self.lifetimes).any(|purchase| purchase.holds(document))
            || self.products.iter().any(|product| product.is_of(document))
            || self.subscriptions.values().any(|one| one.names_document(document))
    }

    /// Links a payment to an invoice. A purchase of a session with this payment and a purchase of the invoice
    /// are then one purchase.
    pub(super) fn tie(&mut self, invoice: &InvoiceId, payment: &str) {
        self.tie_products(invoice, payment);
        let all = || self.packs.iter().chain(&self.lifetimes);
        let is_of_session = |one: &Purchase| one.session.is_some() && one.payment.as_deref() == Some(payment);
        let is_of_invoice = |one: &Purchase| one.session.is_none() && one.invoice.as_ref() == Some(invoice);
        if all().any(is_of_session) {
            let packs: Vec<_> = self.packs.extract_if(.., |one| is_of_invoice(one)).collect();
            let lifetimes: Vec<_> = self.lifetimes.extract_if(.., |one| is_of_invoice(one)).collect();
            let sold_packs = self.packs.iter().any(is_of_session);
            let sold_lifetime = self.lifetimes.iter().any(is_of_session);
            for (of_invoice, is_pack) in [(packs, sold_packs), (lifetimes, !sold_lifetime)] {
                let own = if is_pack { &mut self.packs } else { &mut self.lifetimes };
                replace(&of_invoice, own.iter_mut().filter(|one| is_of_session(one)).collect());
            }
            for one in self.packs.iter_mut().chain(&mut self.lifetimes).filter(|one| is_of_session(one)) {
                one.invoice.get_or_insert_with(|| invoice.clone());
            }
        } else {
            for one in self.packs.iter_mut().chain(&mut self.lifetimes).filter(|one| is_of_invoice(one)) {
                one.payment.get_or_insert_with(|| payment.to_owned());
            }
        }
    }

    /// Whether a document has lines that wait for their start, for a snapshot or for their period.
    pub(super) fn waits(&self, document: &LedgerKey) -> bool {
        self.subscriptions.values().any(|one| one.items.values().any(|item| item.waits(document)))
    }

    /// Drops the oldest spent purchases beyond [`MAX_SPENT_PURCHASES`], and joins the two purchases with the
    /// nearest ends until [`MAX_PURCHASES`] are left.
    fn join_packs(&mut self, resets: &BTreeSet<Timestamp>, now: Timestamp) {
        // A pack that arrived after a reset is as new as the reset.
        let order = |pack: &Purchase| (!pack.is_ended_by(resets), pack.counts_from(resets), pack.at);
        self.packs
            .sort_by(|a, b| (order(a), &a.session, &a.invoice).cmp(&(order(b), &b.session, &b.invoice)));
        let spent = |pack: &Purchase| pack.spent >= pack.granted || pack.is_expired(now);
        let mut too_many =
            self.packs.iter().filter(|pack| spent(pack)).count().saturating_sub(MAX_SPENT_PURCHASES);
        self.packs.retain(|pack| {
            let drop = too_many > 0 && spent(pack);
            too_many -= usize::from(drop);
            !drop
        });
        while self.packs.len() > MAX_PURCHASES {
            // A pack that an unproven period ended is never joined with one that it did not end.
            let ended = self.packs.iter().take_while(|pack| pack.is_ended_by(resets)).count();
            let of = if ended > 1 { 0..ended } else { ended..self.packs.len() };
            let (first, second) =
                nearest_ends(self.packs.get(of.clone()).unwrap_or_default(), |pack| pack.until);
            let (first, second) = (of.start + first, of.start + second);
            let oldest = self.packs.remove(first);
            let parts = oldest.parts_left(|part| self.lost_of_part(part));
            let parts = if oldest.is_expired(now) { Vec::new() } else { parts };
            if let Some(next) = self.packs.get_mut(second - 1) {
                next.join(oldest.until, parts);
            }
        }
    }

    /// Joins the two grants by hand with the nearest ends until [`MAX_GRANTS`] are left.
    fn join_grants(&mut self) {
        while self.grants.len() > MAX_GRANTS {
            let (first, second) = nearest_ends(&self.grants, |grant| grant.until);
            let joined = self.grants.remove(first);
            if let Some(next) = self.grants.get_mut(second - 1) {
                next.join(&joined);
            }
        }
    }

    /// Drops subscriptions that ended long ago and hold no credits. So an account stays small with any
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
    /// Drops items that were removed long ago and hold no credits, except the last ten of a subscription.
    fn forget_removed_items(&mut self, policy: &Policy, horizon: Timestamp, now: Timestamp) {
        let may_forget = |one: &Arc<Subscription>| {
            let mut removed = one.items.keys().filter_map(|item| one.removed_at(item));
            one.items.len() > REMEMBER_ENDED && !one.keeps_all_items() && removed.any(|end| end < horizon)
        };
        if !self.subscriptions.values().any(may_forget) {
            return;
        }
        let buckets = self.buckets(policy, now);
        let mut gone = Vec::new();
        for (id, subscription) in &self.subscriptions {
            let empty = |item: &ItemId| {
                buckets.items.get(&(id.clone(), item.clone())).is_none_or(|bucket| {
                    // What was spent in a period that has not ended counts for the item that came after.
                    let end = bucket.period.as_ref().and_then(|period| period.end);
                    bucket.left == Credits::ZERO && end.is_none_or(|end| end < horizon)
                })
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

/// The earlier of two ends. `None` means no end.
fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// Empties the bucket of an ended subscription or a removed item once another item's paid period starts at
/// or after that end.
fn void_ended(
    items: &mut BTreeMap<(SubscriptionId, ItemId), Bucket>,
    ends: &[((SubscriptionId, ItemId), Timestamp)],
) {
    let is_replaced = |(key, end): &&((SubscriptionId, ItemId), Timestamp)| {
        let mut others = items.iter().filter(|(other, _)| *other != key);
        others.any(|(_, bucket)| {
            bucket.period.as_ref().is_some_and(|period| !period.terms.product && period.start >= *end)
        })
    };
    let replaced: Vec<_> = ends.iter().filter(is_replaced).map(|(key, _)| key).collect();
    for key in replaced {
        if let Some(bucket) = items.get_mut(key) {
            (bucket.left, bucket.lost) = (Credits::ZERO, Credits::ZERO);
            (bucket.next_month, bucket.next) = (None, None);
            bucket.carries.clear();
        }
    }
}

fn spend_of(purchase: Option<&mut Purchase>, credits: Credits) {
    if let Some(purchase) = purchase {
        purchase.spent = purchase.spent.plus(credits);
    }
}

fn expired(key: LedgerKey, left: Credits, end: Timestamp) -> NewEntry {
    let delta = Some(Credits::ZERO.delta_from(left));
    NewEntry { delta, due: Some(end), ..NewEntry::new(key, EntryKind::Expire, Credits::ZERO) }
}

/// The entries that follow from all facts and the time, except free refills.
fn derived(items: &BTreeMap<(SubscriptionId, ItemId), Bucket>) -> BTreeMap<LedgerKey, Derived> {
    let mut derived = BTreeMap::new();
    let mut add = |key, kind, worth| {
        derived.insert(key, Derived { kind, worth, since: None, before: 0 });
    };
    for ((subscription, item), bucket) in items {
        if let Some(period) = &bucket.period {
            let late = LedgerKey::invoice_item(&period.invoice, item);
            add(late, EntryKind::Renewal, period.worth());
            for (change, worth) in &bucket.changes {
                let key = LedgerKey::plan(item, bucket.slice.start, change);
                add(key, EntryKind::PlanChange, *worth);
            }
        } else if bucket.trial {
            add(LedgerKey::trial(subscription, item), EntryKind::Trial, bucket.granted);
        }
    }
    for ((_, item), bucket) in items {
        let Some(period) = &bucket.period else { continue };
        if bucket.slice.index > 0 {
            let since = Some(bucket.slice.since);
            let derived_slice = Derived {
                kind: EntryKind::Refill,
                worth: bucket.opened_with,
                since,
                before: bucket.slices_before,
            };
            derived.insert(LedgerKey::slice(&period.invoice, item, bucket.slice.index), derived_slice);
        }
        for carry in &bucket.carries {
            let key = LedgerKey::rollover(&carry.invoice, item, carry.index);
            let since = Some(carry.since);
            let carried = Derived { kind: EntryKind::Rollover, worth: carry.granted, since, before: 0 };
            derived.insert(key, carried);
        }
    }
    derived
}

/// The number of calendar months that have passed.
fn months_since(since: Timestamp, now: Timestamp) -> u32 {
    let days = now.seconds_since(since).max(0) / 86_400;
    // A month has 28 to 31 days.
    let most = u32::try_from(days / 28).unwrap_or(0).min(24_000);
    let least = u32::try_from(days / 31).unwrap_or(0).min(24_000).saturating_sub(1);
    (least..=most).rev().find(|months| since.plus_months(*months) <= now).unwrap_or(0)
}

/// The places of the two lots with the nearest ends. Of several such pairs, the oldest one.
fn nearest_ends<T>(lots: &[T], until: impl Fn(&T) -> Option<Timestamp>) -> (usize, usize) {
    let end = |place: usize| lots.get(place).and_then(&until).map_or(i64::MAX, Timestamp::unix);
    let mut by_end: Vec<usize> = (0..lots.len()).collect();
    by_end.sort_by_key(|place| (end(*place), *place));
    let distance = |pair: &&[usize]| end(pair[1]).abs_diff(end(pair[0]));
    let pair = by_end.windows(2).min_by_key(|pair| (distance(pair), pair[0].min(pair[1])));
    pair.map_or((0, 1), |pair| (pair[0].min(pair[1]), pair[0].max(pair[1])))
}

/// The current periods of items that bill plans.
fn periods_of_plans(items: &BTreeMap<(SubscriptionId, ItemId), Bucket>) -> impl Iterator<Item = &Period> {
    items.values().filter_map(|bucket| bucket.period.as_ref()).filter(|period| !period.terms.product)
}
