//! Items that replace others, as Laravel Cashier's `swap` changes a plan.
//!
//! **Invariant:** a swap counts as a plan change within one item does. What was spent of the item that was
//! replaced is handed over once, to one of the items that replaced it. So is what was spent of its trial, also
//! if the other item came in another update.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::item::{Bucket, Period, View};
use super::subscription::Subscription;
use crate::credits::Credits;
use crate::ids::ItemId;

/// Items that one update replaced by others.
#[derive(Default)]
pub(super) struct Swap<'a> {
    pub old: Vec<&'a ItemId>,
    pub new: Vec<&'a ItemId>,
    /// No earlier snapshot is remembered, so that some of the new items may have been there before.
    pub is_oldest: bool,
}

/// The plans that were in force in a period, or in a month of it, and what was spent of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Handed {
    /// In the order in which they were in force.
    pub plans: Vec<String>,
    pub spent: BTreeMap<String, Credits>,
    /// Whether a period with an amount was paid for. A trial of the item that came after grants nothing then.
    pub was_paid: bool,
}

/// Nothing was handed over.
pub(super) static NOTHING: Handed = Handed { plans: Vec::new(), spent: BTreeMap::new(), was_paid: false };

impl Handed {
    pub(super) fn add(&mut self, plan: &str, credits: Credits) {
        if credits > Credits::ZERO {
            let spent = self.spent.entry(plan.to_owned()).or_default();
            *spent = spent.plus(credits);
        }
    }

    pub(super) fn of_plan(&self, plan: &str) -> Credits {
        self.spent.get(plan).copied().unwrap_or_default()
    }

    pub(super) fn total(&self) -> Credits {
        self.spent.values().copied().sum()
    }
}

/// A new item with its first period.
pub(super) struct Taker<'a> {
    pub item: &'a ItemId,
    pub period: Period,
    pub handed: Handed,
    /// Whether it may have been there before.
    pub may_be_older: bool,
    /// The period is over and dropped: what it takes over counts no more.
    pub is_dropped: bool,
}

impl Taker<'_> {
    /// Whether it came within a period of a replaced item.
    fn came_within(&self, old: &Period) -> bool {
        let is_new = !self.may_be_older || self.period.start > old.start;
        is_new && old.end.is_none_or(|end| self.period.start < end)
    }

    /// Whether its period is the rest of a period of a replaced item.
    fn continues(&self, old: &Period) -> bool {
        self.came_within(old) && self.period.is_prorated_with(old)
    }
}

/// Divides what was spent of replaced items among the new ones. The spends of each plan go to the new items
/// one after another, to each up to its worth, what is left to the first one: first to the item of the same
/// plan, then to the one with the most credits. An item with a full period of its own takes over what its
/// invoice left unpaid, as within one item.
pub(super) fn hand_over<'a>(old: impl Iterator<Item = &'a Bucket>, takers: &mut [Taker<'_>]) {
    let mut spends: Vec<(&Period, &String, Credits)> = Vec::new();
    for bucket in old {
        let Some(period) = &bucket.period else { continue };
        let mut continues = false;
        for taker in takers.iter_mut().filter(|taker| taker.continues(period)) {
            taker.handed.plans.extend(bucket.hands_over.plans.iter().cloned());
            continues = true;
        }
        if continues {
            let spent = &bucket.hands_over.spent;
            spends.extend(spent.iter().map(|(plan, credits)| (period, plan, *credits)));
        } else {
            let within = takers.iter_mut().filter(|taker| taker.came_within(period));
            if let Some(taker) = within.min_by_key(|taker| (Reverse(taker.period.worth()), taker.item)) {
                let plan = taker.period.terms.plan.clone();
                taker.handed.add(&plan, taker.period.unpaid_share(bucket.hands_over.total()));
            }
        }
    }
    let is_sold = |plan: &String| takers.iter().any(|taker| taker.period.terms.plan == *plan);
    spends.sort_by_key(|(_, plan, _)| !is_sold(plan));
    for (period, plan, mut rest) in spends {
        takers.sort_by_key(|taker| {
            (taker.period.terms.plan != *plan, Reverse(taker.period.worth()), taker.item)
        });
        let mut rests: Vec<_> = takers.iter_mut().filter(|taker| taker.continues(period)).collect();
        for taker in &mut rests {
            let part = rest.min(taker.period.worth().minus(taker.handed.total()));
            taker.handed.add(plan, part);
            rest = rest.minus(part);
        }
        if let Some(first) = rests.first_mut() {
            first.handed.add(plan, rest);
        }
    }
}

/// What items on trial take over of items that were removed. A removed item hands what was spent of its trial
/// to those that came after it: up to what their trials are worth, the one with the most credits first, which
/// also takes the rest. `of_trial` says what was spent of an item's own trial, and whether a period of it with
/// an amount was paid for.
pub(super) fn hand_over_trials<'a>(
    subscription: &'a Subscription,
    of_trial: impl Fn(&ItemId) -> (Credits, bool),
    view: &View<'_>,
) -> BTreeMap<&'a ItemId, Handed> {
    let mut all: BTreeMap<&ItemId, Handed> = BTreeMap::new();
    let removals = subscription.removals();
    for (at, old) in &removals {
        let stays = |item: &ItemId| removals.iter().all(|(removed, other)| *other != item || removed > at);
        let later = subscription.items.iter().filter(|(item, known)| {
            subscription.came_after(item, old) && stays(item) && known.periods(view).is_empty()
        });
        let mut takers: Vec<(Credits, &ItemId)> =
            later.map(|(item, known)| (known.trial_worth().unwrap_or_default(), item)).collect();
        takers.sort_by_key(|(worth, item)| (Reverse(*worth), *item));
        let (own, paid) = of_trial(old);
        let before = all.get(*old).unwrap_or(&NOTHING);
        let (mut spent, was_paid) = (own.plus(before.total()), paid || before.was_paid);
        for (worth, item) in &takers {
            let handed = all.entry(*item).or_default();
            let part = spent.min(worth.minus(handed.total()));
            handed.add("", part);
            handed.was_paid |= was_paid;
            spent = spent.minus(part);
        }
        if let Some((_, first)) = takers.first() {
            all.entry(*first).or_default().add("", spent);
        }
    }
    all.retain(|_, handed| *handed != NOTHING);
    all
}

#[cfg(test)]
mod tests;
