//! The tier that a user has at a moment, and until when.

use super::State;
use super::item::{Item, Period, View};
use super::snapshot::{Snapshot, SnapshotItem, Terms};
use super::subscription::Subscription;
use crate::catalog::{Catalog, PauseCollection, RefundedAccess};
use crate::event::SubscriptionStatus;
use crate::ids::{ItemId, PriceId, SubscriptionId};
use crate::timestamp::Timestamp;

/// The access a user has at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The tier's name.
    pub tier: String,
    /// Its rank.
    pub rank: u32,
    /// When this tier ends without another event: a planned end, or the end of a paid or grace period.
    pub until: Option<Timestamp>,
}

/// A plan that gives access, and what gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanAccess {
    /// The plan's name.
    pub plan: String,
    /// The end of the access, excluded. `None` without a known end.
    pub until: Option<Timestamp>,
    /// The subscription's item that gives it. `None` for a lifetime plan and a complimentary plan.
    pub by: Option<(SubscriptionId, ItemId)>,
    /// Why it gives access, in one sentence for the operator.
    pub why: String,
}

/// The summary of a subscription: its status, and its item with the highest plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its status by all known facts. `None` while only invoices are known.
    pub status: Option<SubscriptionStatus>,
    /// The price of the item with the highest plan.
    pub price: Option<PriceId>,
    /// That plan's name.
    pub plan: Option<String>,
    /// The item's quantity.
    pub quantity: u64,
    /// Start of that item's period.
    pub start: Option<Timestamp>,
    /// End of that item's period, excluded.
    pub end: Option<Timestamp>,
    /// The scheduled end. `None` after it has ended.
    pub ends: Option<Timestamp>,
}

impl Summary {
    /// Whether only invoices of it are known, and the period that they paid is running.
    pub fn runs_by_invoice(&self, now: Timestamp) -> bool {
        self.status.is_none() && self.end.is_none_or(|end| end > now)
    }
}

impl State {
    /// The summary of a subscription.
    pub fn summary(&self, id: &SubscriptionId, catalog: &Catalog, now: Timestamp) -> Option<Summary> {
        let now = self.time(now);
        let subscription = self.subscriptions.get(id)?;
        let deleted = subscription.customer.as_ref().and_then(|customer| self.customers.get(customer));
        let deleted = deleted.copied().flatten().is_some();
        self.view(id, subscription, &catalog.policy, now, |view| {
            let rank = |plan: Option<&Terms>| {
                plan.and_then(|terms| catalog.tier_of_plan(&terms.plan)).map(|(_, rank)| rank)
            };
            let Some(snapshot) = &subscription.snapshot else {
                let periods = subscription.items.values().filter_map(|item| item.periods(view).pop());
                let period = periods.max_by_key(|period| (rank(Some(&period.terms)), period.start))?;
                return Some(Summary {
                    status: deleted.then_some(SubscriptionStatus::Canceled),
                    plan: Some(period.terms.with_name_of(&period.price, catalog).plan),
                    price: Some(period.price),
                    quantity: period.quantity,
                    start: Some(period.start),
                    end: period.end,
                    ends: None,
                });
            };
            let best = snapshot
                .items
                .iter()
                .max_by(|a, b| (rank(a.terms.as_ref()), &b.id).cmp(&(rank(b.terms.as_ref()), &a.id)));
            let item = best.and_then(|best| subscription.items.get(&best.id));
            let period = item.and_then(|item| item.periods(view).pop());
            let status =
                if deleted { SubscriptionStatus::Canceled } else { status_of(snapshot, period.as_ref()) };
            let mut summary = Summary {
                ends: best.and_then(|best| snapshot.ends(best)).filter(|_| !snapshot.is_terminal()),
                status: Some(status),
                price: best.map(|best| best.price.clone()),
                plan: best.and_then(|best| Some(best.terms.clone()?.with_name_of(&best.price, catalog).plan)),
                quantity: best.map_or(1, |best| best.quantity),
                start: best.and_then(|best| best.start),
                end: best.and_then(|best| best.end),
            };
            let newer = |period: &Period| best.is_some_and(|best| is_newer(period, snapshot, best));
            if let Some(period) = period.filter(newer) {
                summary.plan = Some(period.terms.with_name_of(&period.price, catalog).plan);
                summary.price = Some(period.price);
                (summary.start, summary.end) = (Some(period.start), period.end);
            }
            Some(summary)
        })
    }

    /// The active subscriptions that have a plan with a price and no known paid invoice. Subscriptions with a
    /// state newer than `since` are left out: their invoice may still arrive.
    pub fn plans_without_invoice(
        &self,
        catalog: &Catalog,
        since: Timestamp,
        now: Timestamp,
    ) -> Vec<&SubscriptionId> {
        let is_unpaid = |id: &&SubscriptionId| {
            let Some(subscription) = self.subscriptions.get(*id) else { return false };
            let Some(snapshot) = &subscription.snapshot else { return false };
            let is_active = || {
                let status = self.summary(id, catalog, now).and_then(|summary| summary.status);
                status == Some(SubscriptionStatus::Active)
            };
            snapshot.created <= since
                && snapshot.items.iter().any(|item| item.terms.is_some() && !item.free)
                && subscription.items.values().all(|item| item.billed_at.is_none())
                && is_active()
        };
        self.subscriptions.keys().filter(is_unpaid).collect()
    }

    /// The tier at `now`: the highest-ranked plan of all that give access, else the default tier.
    pub fn access(&self, catalog: &Catalog, now: Timestamp) -> Access {
        let now = self.time(now);
        let mut best =
            Access { tier: catalog.policy.default_tier.clone(), rank: catalog.default_rank(), until: None };
        for given in self.given(catalog, now) {
            if given.until.is_some_and(|until| until <= now) {
                continue;
            }
            let Some((tier, rank)) = catalog.tier_of_plan(&given.plan) else { continue };
            if rank < best.rank {
                continue;
            }
            let until = if best.tier == tier { later(best.until, given.until) } else { given.until };
            best = Access { tier: tier.to_owned(), rank, until };
        }
        best
    }

    /// The earliest known moment after `now` at which the tier or the credits change by time alone. Free
    /// credits of a user without a plan are computed when they are read, and do not count here.
    pub fn next_change(&self, access: &Access, now: Timestamp) -> Option<Timestamp> {
        let now = self.time(now);
        let gifts = self.complimentary.iter().map(|gift| gift.from).filter(|from| *from > now);
        let holds = self.holds.values().map(|hold| hold.until).filter(|until| *until > now);
        self.due_at.into_iter().chain(access.until).chain(gifts).chain(holds).min()
    }

    /// Every plan that gives access, also plans that have already ended.
    pub fn given(&self, catalog: &Catalog, now: Timestamp) -> Vec<PlanAccess> {
        let now = self.time(now);
        let mut all = Vec::new();
        for (id, subscription) in &self.subscriptions {
            self.view(id, subscription, &catalog.policy, now, |view| {
                self.given_by(id, subscription, view, catalog, &mut all);
            });
        }
        for purchase in &self.lifetimes {
            let back = purchase.total > 0 && self.refunded_of(purchase) >= purchase.total;
            if let Some(terms) = purchase.plan.as_ref().filter(|_| !back) {
                let plan = catalog.present_name(&terms.plan).to_owned();
                let why = format!("the plan {plan} was bought for life");
                all.push(PlanAccess { plan, until: None, by: None, why });
            }
        }
        for gift in self.complimentary.iter().filter(|gift| gift.from <= now) {
            let plan = catalog.present_name(&gift.plan).to_owned();
            let why = format!("an operator gave the plan {plan}");
            all.push(PlanAccess { plan, until: gift.until, by: None, why });
        }
        all
    }

    fn given_by(
        &self,
        id: &SubscriptionId,
        subscription: &Subscription,
        view: &View<'_>,
        catalog: &Catalog,
        all: &mut Vec<PlanAccess>,
    ) {
        // A deleted customer has no access, even if the snapshot of the subscription is active.
        let deleted = subscription
            .customer
            .as_ref()
            .and_then(|customer| self.customers.get(customer).copied().flatten());
        if deleted.is_some() {
            return;
        }
        let is_back = |item: &Item, period: &Period| {
            catalog.policy.refunded_access == RefundedAccess::End && item.is_refunded(period, view)
        };
        let Some(snapshot) = &subscription.snapshot else {
            for (item_id, item) in &subscription.items {
                if let Some(period) = item.periods(view).pop().filter(|period| !is_back(item, period)) {
                    let why = format!("{} paid the period from {}", period.invoice, period.start);
                    let plan = item.paid_plan(&period, view, catalog).plan;
                    all.push(PlanAccess {
                        plan,
                        until: period.end,
                        by: Some((id.clone(), item_id.clone())),
                        why,
                    });
                }
            }
            return;
        };
        let none = Item::default();
        for shown in &snapshot.items {
            let item = subscription.items.get(&shown.id).unwrap_or(&none);
            let period = item.periods(view).pop();
            let Some((terms, until, why)) =
                item_access(snapshot, shown, item, period.as_ref(), view, catalog)
            else {
                continue;
            };
            if period.as_ref().is_some_and(|period| is_back(item, period)) {
                continue;
            }
            all.push(PlanAccess { plan: terms.plan, until, by: Some((id.clone(), shown.id.clone())), why });
        }
        // Items that the snapshot does not have. One was removed only if the snapshot is newer than its invoice.
        for (item_id, item) in &subscription.items {
            let newer = item.billed_at >= Some(snapshot.created) && snapshot.item(item_id).is_none();
            let period = item.periods(view).pop().filter(|_| newer && !snapshot.is_terminal());
            if let Some(period) = period.filter(|period| !is_back(item, period)) {
                let why = format!("{} paid the period from {}", period.invoice, period.start);
                let plan = item.paid_plan(&period, view, catalog).plan;
                all.push(PlanAccess {
                    plan,
                    until: period.end,
                    by: Some((id.clone(), item_id.clone())),
                    why,
                });
            }
        }
    }
}

/// The plan that an item gives by the newest snapshot, until when, and why.
fn item_access(
    snapshot: &Snapshot,
    shown: &SnapshotItem,
    item: &Item,
    period: Option<&Period>,
    view: &View<'_>,
    catalog: &Catalog,
) -> Option<(Terms, Option<Timestamp>, String)> {
    use SubscriptionStatus as Status;
    let policy = &catalog.policy;
    let mut plan = shown.terms.clone()?.with_name_of(&shown.price, catalog);
    let cancels = snapshot.ends(shown);
    let sooner = |until: Timestamp| Some(cancels.map_or(until, |cancels| cancels.min(until)));
    let status = status_of(snapshot, period);
    // A paid period that began after the snapshot also has the newer plan.
    if let Some(period) = period.filter(|period| is_newer(period, snapshot, shown)) {
        plan = item.paid_plan(period, view, catalog);
    }
    let paid = |end: Option<Timestamp>, period: &Period| {
        let lower = lower_of(item.paid_plan(period, view, catalog), plan.clone(), catalog);
        let why = format!(
            "the subscription is {}; the paid period of plan {} still runs",
            snapshot.status, lower.plan
        );
        (lower, end.and_then(sooner).or(end).or(cancels), why)
    };
    match status {
        Status::Active | Status::Trialing => {
            if snapshot.collection_paused && policy.pause_collection == PauseCollection::UntilPeriodEnd {
                let period = period?;
                return Some(paid(period.end, period));
            }
            let why = format!("the subscription is {status} with plan {}", plan.plan);
            Some((plan, cancels, why))
        }
        Status::PastDue | Status::Unpaid => {
            if let Some(period) = period.filter(|period| period.end.is_none_or(|end| end > view.now)) {
                return Some(paid(period.end, period));
            }
            if status == Status::Unpaid {
                return None;
            }
            let start = shown.start.or_else(|| period.and_then(|period| period.end))?;
            let due = item.unpaid_since(start, period, snapshot.days_until_due);
            let until = due.plus_days(policy.past_due_grace_days);
            let plan = match period {
                Some(period) => lower_of(item.paid_plan(period, view, catalog), plan, catalog),
                None => plan,
            };
            let why = format!(
                "the subscription is past_due; plan {} has {} days of grace",
                plan.plan, policy.past_due_grace_days
            );
            Some((plan, sooner(until), why))
        }
        Status::Canceled if snapshot.ended_unpaid => {
            let period = period.filter(|period| period.end.is_none_or(|end| end > view.now))?;
            let (plan, _, why) = paid(period.end, period);
            Some((plan, Some(period.end?), why))
        }
        Status::Incomplete
        | Status::IncompleteExpired
        | Status::Canceled
        | Status::Paused
        | Status::Other(_) => None,
    }
}

/// Whether a paid period began after the snapshot of its item.
fn is_newer(period: &Period, snapshot: &Snapshot, shown: &SnapshotItem) -> bool {
    Some(period.start) > shown.start && period.at > snapshot.created && !snapshot.is_terminal()
}

/// The status by all known facts. If the snapshot is unpaid and a payment is newer, the status is active.
///
/// A payment in the same second as the snapshot counts only for the first payment (`incomplete`). In all
/// other cases Stripe also sends an update with the status `active`, and that snapshot decides.
pub fn status_of(snapshot: &Snapshot, period: Option<&Period>) -> SubscriptionStatus {
    let paid_at = period.map(|period| period.at);
    let out_of_date = match snapshot.status {
        SubscriptionStatus::Incomplete => paid_at >= Some(snapshot.created),
        SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid => {
            let newer_period = period
                .is_some_and(|period| snapshot.items.iter().all(|item| item.start <= Some(period.start)));
            paid_at > Some(snapshot.created) && newer_period
        }
        SubscriptionStatus::Trialing
        | SubscriptionStatus::Active
        | SubscriptionStatus::Paused
        | SubscriptionStatus::IncompleteExpired
        | SubscriptionStatus::Canceled
        | SubscriptionStatus::Other(_) => false,
    };
    if out_of_date { SubscriptionStatus::Active } else { snapshot.status.clone() }
}

/// The plan with the lower rank. A plan that was removed from the catalog ranks lowest.
fn lower_of(one: Terms, other: Terms, catalog: &Catalog) -> Terms {
    let rank = |terms: &Terms| catalog.tier_of_plan(&terms.plan).map(|(_, rank)| rank);
    if rank(&one) <= rank(&other) { one } else { other }
}

/// The later of two ends of access to the same tier. `None` means no end, which is later than every end.
fn later(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.zip(other).map(|(one, other)| one.max(other))
}
