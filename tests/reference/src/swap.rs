//! 2.6 for items that one update replaced by others: a plan change by another item.

use crate::item::{Item, Paid, Sub};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What an item takes over from those that it replaced: the plans, in order, and what was spent of each.
#[derive(Default)]
pub struct Handed {
    pub plans: Vec<String>,
    pub spent: BTreeMap<String, i64>,
    /// What was spent of the trials of the replaced items, and whether they had a period that cost something:
    /// the new item's trial is the second one of the subscription then.
    pub trial: i64,
    pub was_paid: bool,
}

impl Handed {
    pub fn add(&mut self, plan: &str, n: i64) {
        *self.spent.entry(plan.into()).or_insert(0) += n;
    }

    pub fn total(&self) -> i64 {
        self.spent.values().sum()
    }
}

/// The end of a replaced item's last period, with what it hands over.
struct Given {
    start: i64,
    end: i64,
    /// Whether an earlier snapshot shows that the new items are new.
    is_shown_before: bool,
    handed: Handed,
}

impl Paid<'_> {
    fn came_within(&self, given: &Given) -> bool {
        (given.is_shown_before || self.start > given.start) && self.start < given.end
    }

    fn is_rest(&self, given: &Given) -> bool {
        self.came_within(given) && (self.shown < self.start || self.end == given.end)
    }

    fn worth(&self) -> i64 {
        self.plan.worth(self.quantity)
    }
}

impl<'a> Sub<'a> {
    /// Hands over what was spent of replaced items, the oldest update first.
    pub fn swap_items(&mut self) {
        let updates: BTreeSet<i64> = self.items.iter().filter_map(|i| i.gone).collect();
        for at in updates {
            let before = self.snapshots.first().is_some_and(|s| s.created < at);
            let old = self.items.iter().filter(|i| i.gone == Some(at));
            let given: Vec<Given> = old.filter_map(|i| i.hands_over(before)).collect();
            let is_new = |i: &&mut Item<'a>| i.came == Some(at) && !i.periods.is_empty();
            let mut new: Vec<&mut Item<'a>> = self.items.iter_mut().filter(is_new).collect();
            hand_over(&given, &mut new);
        }
        self.hand_over_trials();
    }

    /// 2.7: "once per subscription", also if another item comes for the one that has it: what was spent of a
    /// removed item's trial counts for the items on trial that came after it, each up to what its trial is
    /// worth, the one with the most credits first, which also takes the rest.
    fn hand_over_trials(&mut self) {
        let removals = self.items.iter().filter_map(|i| Some((i.gone?, i.id.clone())));
        let removals: BTreeSet<(i64, String)> = removals.collect();
        let Some(first) = self.snapshots.first().map(|s| s.created) else { return };
        for (at, id) in removals {
            let Some(old) = self.items.iter().find(|i| i.id == id) else { continue };
            let (mut spent, since) = (old.trial_spent(), old.came.unwrap_or(first).max(first));
            let was_paid = old.handed.was_paid || old.periods.iter().any(Paid::costs);
            let later = |i: &&mut Item<'a>| {
                i.periods.is_empty()
                    && i.came.is_some_and(|came| came > since)
                    && i.gone.is_none_or(|g| g > at)
            };
            let mut new: Vec<&mut Item<'a>> = self.items.iter_mut().filter(later).collect();
            new.sort_by_key(|i| (Reverse(i.trial_worth()), i.id.clone()));
            for item in &mut new {
                let part = spent.min((item.trial_worth() - item.handed.trial).max(0));
                item.handed.trial += part;
                item.handed.was_paid |= was_paid;
                spent -= part;
            }
            new.first_mut().into_iter().for_each(|i| i.handed.trial += spent);
        }
    }
}

impl Item<'_> {
    fn hands_over(&self, is_shown_before: bool) -> Option<Given> {
        let unit = self.units.len().checked_sub(1)?;
        let (plans, spent) = (self.plans_of(unit), self.spent_by_plan(unit));
        let handed = Handed { plans, spent, ..Handed::default() };
        let Paid { start, end, .. } = self.periods[self.units[unit].period];
        Some(Given { start, end, is_shown_before, handed })
    }
}

/// "What was spent stays spent": the spends of a plan count against the new item of the same plan, then against
/// the one with the most credits, each up to its worth, and the rest against the first. A new item with a full
/// period of its own takes over what a new period of one item would.
fn hand_over(given: &[Given], new: &mut [&mut Item<'_>]) {
    let mut parts: Vec<(&Given, &String, i64)> = Vec::new();
    for one in given {
        let (rests, others): (Vec<_>, Vec<_>) = new.iter_mut().partition(|i| i.periods[0].is_rest(one));
        if rests.is_empty() {
            let within = others.into_iter().filter(|i| i.periods[0].came_within(one));
            if let Some(item) = within.min_by_key(|i| (Reverse(i.periods[0].worth()), i.id.clone())) {
                let (plan, unpaid) = (&item.periods[0].plan.name, item.periods[0].unpaid(one.handed.total()));
                item.handed.add(plan, unpaid);
            }
            continue;
        }
        rests.into_iter().for_each(|i| i.handed.plans.extend(one.handed.plans.iter().cloned()));
        parts.extend(one.handed.spent.iter().map(|(plan, n)| (one, plan, *n)));
    }
    let sold: BTreeSet<String> = new.iter().map(|i| i.periods[0].plan.name.clone()).collect();
    parts.sort_by_key(|(_, plan, _)| !sold.contains(*plan));
    for (one, plan, mut rest) in parts {
        let mut takers: Vec<_> = new.iter_mut().filter(|i| i.periods[0].is_rest(one)).collect();
        takers
            .sort_by_key(|i| (i.periods[0].plan.name != *plan, Reverse(i.periods[0].worth()), i.id.clone()));
        for item in &mut takers {
            let part = rest.min((item.periods[0].worth() - item.handed.total()).max(0));
            item.handed.add(plan, part);
            rest -= part;
        }
        takers[0].handed.add(plan, rest);
    }
}
