//! What an account knows of one subscription: its newest state, its items, and when each set of items was
//! seen.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::item::{Item, Line, Period};
use super::slice::{MANY_PHASES, Phase, cuts, fold_phase, prune_phases};
use super::snapshot::{self, Snapshot, SnapshotItem, Terms};
use super::swap::Swap;
use crate::catalog::Catalog;
use crate::event::SubscriptionStatus;
use crate::ids::{CustomerId, InvoiceId, ItemId, PriceId};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

/// The maximum number of times in [`Subscription::sets`].
const MAX_SET_TIMES: usize = 16;

/// Prices that one subscription remembers by the plan that their lookup key or Stripe product named, and
/// lines that wait for such a price.
const MAX_LEARNT: usize = 32;

/// The record of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The customer who pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<CustomerId>,
    /// The newest state. `None` while only invoices are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Other states in the same second as `snapshot`. A later event may show that one of them is the newest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rivals: Vec<Snapshot>,
    /// The items, including removed ones that still hold credits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub items: BTreeMap<ItemId, Item>,
    /// When each set of items was seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sets: Vec<ItemSet>,
    /// `created` of the earliest `trialing` snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_at: Option<Timestamp>,
    /// What snapshots say about pauses, by time; only for plans that grant credits every month, and with
    /// `free_credits`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) phases: Vec<Phase>,
    /// The plans of prices that the catalog does not name by their ids; at most [`MAX_LEARNT`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    learnt: BTreeMap<PriceId, String>,
    /// Paid lines with a price that no snapshot has shown yet, each with the item that it names and the time
    /// at which that item was there; at most [`MAX_LEARNT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unpriced: Vec<(Option<ItemId>, Line, Timestamp)>,
    /// The earliest time at which it is known to have existed; only with `free_credits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ItemSet {
    items: BTreeSet<ItemId>,
    /// `created` of the snapshots that show it, oldest first.
    seen: Vec<Timestamp>,
}

impl Subscription {
    /// Adds a state that an event shows. `with_free_credits`: pauses decide about free refills.
    pub(super) fn fold_snapshot(&mut self, snapshot: Snapshot, with_free_credits: bool) {
        if snapshot.status == SubscriptionStatus::Trialing {
            self.trial_at = Some(self.trial_at.map_or(snapshot.created, |known| known.min(snapshot.created)));
        }
        let is_monthly = |item: &SnapshotItem| item.terms.as_ref().is_some_and(|terms| terms.monthly);
        if with_free_credits || snapshot.items.iter().any(is_monthly) {
            fold_phase(&mut self.phases, &snapshot);
        }
        for item in snapshot.items.iter().filter(|item| item.learnt) {
            if let Some(terms) = item.terms.as_ref().filter(|_| self.learnt.len() < MAX_LEARNT) {
                self.learnt.insert(item.price.clone(), terms.plan.clone());
            }
        }
        self.price_lines(&snapshot.items);
        self.adopt(&snapshot.items);
        for item in &snapshot.items {
            self.items.entry(item.id.clone()).or_default().fold_sight(&snapshot, item);
        }
        if !snapshot.items.is_empty() {
            let items = snapshot.items.iter().map(|item| item.id.clone()).collect();
            self.fold_set(items, snapshot.created);
        }
        snapshot::join(&mut self.snapshot, &mut self.rivals, snapshot);
    }

    /// Adds a state for access only, without its items.
    pub(super) fn fold_status(&mut self, snapshot: Snapshot) {
        snapshot::join(&mut self.snapshot, &mut self.rivals, snapshot);
    }

    fn fold_set(&mut self, items: BTreeSet<ItemId>, at: Timestamp) {
        let place = self.sets.iter().position(|set| set.items == items).unwrap_or_else(|| {
            self.sets.push(ItemSet { items, seen: Vec::new() });
            self.sets.len() - 1
        });
        if let Some(set) = self.sets.get_mut(place)
            && !set.seen.contains(&at)
        {
            set.seen.push(at);
            set.seen.sort();
        }
        self.sets.sort_by(|a, b| a.items.cmp(&b.items));
        while self.sets.iter().map(|set| set.seen.len()).sum::<usize>() > MAX_SET_TIMES {
            self.drop_a_set_time();
        }
    }

    /// Drops the oldest time whose two neighbours have the same set of items. If there is none, drops the
    /// oldest time.
    fn drop_a_set_time(&mut self) {
        let mut times: Vec<(Timestamp, usize)> = Vec::new();
        for (place, set) in self.sets.iter().enumerate() {
            times.extend(set.seen.iter().map(|at| (*at, place)));
        }
        times.sort();
        let same = |three: &[(Timestamp, usize)]| {
            three.iter().all(|(_, place)| Some(*place) == three.first().map(|first| first.1))
        };
        let gone = times.windows(3).position(same).map_or(0, |before| before + 1);
        if let Some((at, place)) = times.get(gone).copied()
            && let Some(set) = self.sets.get_mut(place)
        {
            set.seen.retain(|seen| *seen != at);
        }
        self.sets.retain(|set| !set.seen.is_empty());
    }

    /// Adds a line of a paid invoice. If the invoice is already known, compares the line with the known one.
    ///
    /// # Errors
    /// The known line, when it differs.
    pub(super) fn fold_line(
        &mut self,
        item: Option<&ItemId>,
        line: Line,
        named_at: Timestamp,
        invoice_is_known: bool,
    ) -> Result<(), Box<Line>> {
        let id = item.cloned().unwrap_or_else(|| self.item_of(&line.price, &line.terms.plan));
        let item = self.items.entry(id).or_default();
        if invoice_is_known {
            item.compare_line(&line)
        } else {
            item.fold_line(line, named_at);
            Ok(())
        }
    }

    /// Keeps a paid line until a snapshot shows its price with a lookup key.
    pub(super) fn keep_unpriced(&mut self, item: Option<ItemId>, line: Line, named_at: Timestamp) {
        self.unpriced.push((item, line, named_at));
        self.unpriced
            .sort_by(|(_, a, _), (_, b, _)| (a.at, &a.invoice, a.start).cmp(&(b.at, &b.invoice, b.start)));
        if self.unpriced.len() > MAX_LEARNT {
            self.unpriced.remove(0);
        }
    }

    /// Adds the lines that waited for one of these prices.
    fn price_lines(&mut self, items: &[SnapshotItem]) {
        for (item, mut line, named_at) in std::mem::take(&mut self.unpriced) {
            let priced =
                items.iter().filter(|shown| shown.price == line.price).find_map(|shown| shown.terms.as_ref());
            match priced {
                Some(terms) => {
                    line.terms = terms.clone();
                    let id = item.unwrap_or_else(|| self.item_of(&line.price, &line.terms.plan));
                    self.items.entry(id).or_default().fold_line(line, named_at);
                }
                None => self.unpriced.push((item, line, named_at)),
            }
        }
    }

    /// The item of a line that has no item id: the only item of the snapshot, or else the one with the line's
    /// price or plan, or else a provisional id.
    pub fn item_of(&self, price: &PriceId, plan: &str) -> ItemId {
        let known = self.snapshot.as_ref().map(|snapshot| snapshot.items.as_slice()).unwrap_or_default();
        match known {
            [only] => return only.id.clone(),
            [] => {}
            several => {
                let of_plan =
                    |item: &&SnapshotItem| item.terms.as_ref().is_some_and(|terms| terms.plan == plan);
                let of_price = several.iter().find(|item| item.price == *price);
                if let Some(item) = of_price.or_else(|| several.iter().find(of_plan)) {
                    return item.id.clone();
                }
            }
        }
        provisional(plan)
    }

    /// Moves the lines under a provisional id to the item that the snapshot shows.
    fn adopt(&mut self, items: &[SnapshotItem]) {
        let waiting: Vec<ItemId> =
            self.items.keys().filter(|id| id.as_str().starts_with(PROVISIONAL)).cloned().collect();
        for id in waiting {
            let plan = id.as_str().trim_start_matches(PROVISIONAL).to_owned();
            let of_plan = |item: &&SnapshotItem| item.terms.as_ref().is_some_and(|terms| terms.plan == plan);
            let target = match items {
                [only] => Some(only),
                several => {
                    let billed = |item: &&SnapshotItem| {
                        self.items.get(&id).is_some_and(|waiting| waiting.bills(&item.price))
                    };
                    several.iter().find(billed).or_else(|| several.iter().find(of_plan))
                }
            };
            if let Some(target) = target
                && let Some(item) = self.items.remove(&id)
            {
                self.items.entry(target.id.clone()).or_default().absorb(item);
            }
        }
    }

    /// The newest known terms of a price. Used when the catalog does not have the price any more.
    pub fn terms_of(&self, price: &PriceId) -> Option<&Terms> {
        let shown = self.snapshot.iter().flat_map(|snapshot| &snapshot.items);
        let shown = shown.filter(|item| item.price == *price).find_map(|item| item.terms.as_ref());
        shown.or_else(|| self.items.values().find_map(|item| item.terms_of(price)))
    }

    /// The terms that a running period has under a name that the plan had before, so that another price of the
    /// renamed plan is no plan change. Of all items, if the item is not known.
    pub fn terms_before_rename(
        &self,
        plan: &str,
        item: Option<&ItemId>,
        start: Timestamp,
        flagged: bool,
        catalog: &Catalog,
    ) -> Option<&Terms> {
        let items = self.items.iter().filter(|(id, _)| item.is_none_or(|item| item == *id));
        items.map(|(_, item)| item).find_map(|item| item.terms_before_rename(plan, start, flagged, catalog))
    }

    /// The plan or product of a price that a snapshot showed with its lookup key or its Stripe product.
    pub fn learnt(&self, price: &PriceId) -> Option<&str> {
        self.learnt.get(price).map(String::as_str)
    }

    /// Whether one of its items sells a plan of the catalog.
    pub fn has_plan(&self) -> bool {
        let shown =
            self.snapshot.iter().flat_map(|snapshot| &snapshot.items).any(|item| item.terms.is_some());
        shown || self.items.values().any(|item| item.billed_at.is_some())
    }

    /// The invoices with a line here that may still count.
    pub(super) fn invoices(&self) -> impl Iterator<Item = &InvoiceId> {
        let unpriced = self.unpriced.iter().map(|(_, line, _)| &line.invoice);
        unpriced.chain(self.items.values().flat_map(Item::invoices))
    }

    /// Whether an invoice has a line here that may still count.
    pub(super) fn names_document(&self, document: &LedgerKey) -> bool {
        let unpriced = self.unpriced.iter().any(|(_, line, _)| document.is_invoice(&line.invoice));
        unpriced || self.items.values().any(|item| item.names_document(document))
    }

    /// Whether every set shows exactly the known items, so that none of them was removed.
    pub(super) fn keeps_all_items(&self) -> bool {
        self.sets.iter().all(|set| set.items.iter().eq(self.items.keys()))
    }

    /// When an item was removed: the earliest snapshot without it that is later than every snapshot and
    /// invoice that names it, as far as they are remembered. An item that came in its place is billed from the
    /// time of the change, which may be earlier than the snapshot.
    pub(super) fn removed_at(&self, id: &ItemId) -> Option<Timestamp> {
        let named = self.named_at(id);
        let removed = self.missing_at(id, named)?;
        let came =
            self.items.iter().filter(|(other, _)| self.first_seen(other).is_some_and(|at| Some(at) > named));
        let replaced = came.filter_map(|(_, item)| item.paid_since()).min();
        Some(replaced.map_or(removed, |replaced| replaced.min(removed)))
    }

    /// The newest snapshot or invoice that names an item.
    fn named_at(&self, id: &ItemId) -> Option<Timestamp> {
        let billed = self.items.get(id).and_then(|item| item.billed_at);
        self.sets
            .iter()
            .filter(|set| set.items.contains(id))
            .flat_map(|set| &set.seen)
            .max()
            .copied()
            .max(billed)
    }

    /// The earliest snapshot without an item that is later than a moment.
    fn missing_at(&self, id: &ItemId, named: Option<Timestamp>) -> Option<Timestamp> {
        let without = self.sets.iter().filter(|set| !set.items.contains(id)).flat_map(|set| &set.seen);
        without.filter(|at| named.is_none_or(|named| **at > named)).min().copied()
    }

    /// The earliest snapshot that shows an item.
    fn first_seen(&self, id: &ItemId) -> Option<Timestamp> {
        self.sets.iter().filter(|set| set.items.contains(id)).flat_map(|set| &set.seen).min().copied()
    }

    /// The removed items, the earliest removal first.
    pub(super) fn removals(&self) -> Vec<(Timestamp, &ItemId)> {
        let removal = |id| Some((self.missing_at(id, self.named_at(id))?, id));
        let mut removals: Vec<_> = self.items.keys().filter_map(removal).collect();
        removals.sort();
        removals
    }

    /// Whether a snapshot shows that an item was added later than another one.
    pub(super) fn came_after(&self, item: &ItemId, other: &ItemId) -> bool {
        let oldest = self.sets.iter().flat_map(|set| &set.seen).min().copied();
        self.first_seen(item) > oldest.max(self.first_seen(other))
    }

    /// Whether an item was in the subscription at a moment, as far as is known.
    pub(super) fn was_there(&self, id: &ItemId, item: &Item, at: Timestamp) -> bool {
        let came = self.first_seen(id).into_iter().chain(item.known_since()).min();
        came.is_none_or(|came| came <= at) && self.removed_at(id).is_none_or(|removed| at < removed)
    }

    /// The items that one update replaced by others, oldest update first: the first snapshot without the ones
    /// is the first with the others.
    pub(super) fn swaps(&self) -> Vec<Swap<'_>> {
        let mut swaps: BTreeMap<Timestamp, Swap<'_>> = BTreeMap::new();
        for id in self.items.keys() {
            if let Some(at) = self.missing_at(id, self.named_at(id)) {
                swaps.entry(at).or_default().old.push(id);
            }
        }
        let oldest = self.sets.iter().flat_map(|set| &set.seen).min().copied();
        for id in self.items.keys() {
            if let Some(at) = self.first_seen(id)
                && let Some(swap) = swaps.get_mut(&at)
            {
                swap.new.push(id);
                swap.is_oldest = Some(at) == oldest;
            }
        }
        swaps.into_values().filter(|swap| !swap.new.is_empty()).collect()
    }

    /// Drops phases that affect no month of these periods and none of these moments.
    pub(super) fn prune_phases(&mut self, periods: &[Period], moments: &[Timestamp]) {
        let cuts = periods.iter().flat_map(|period| cuts(period.start, period.end));
        let starts: Vec<Timestamp> = cuts.chain(moments.iter().copied()).collect();
        prune_phases(&mut self.phases, &starts);
    }

    /// The number of lines, plans shown, spends and phases that are kept.
    pub(super) fn records(&self) -> usize {
        self.phases.len() + self.items.values().map(Item::records).sum::<usize>()
    }

    /// Whether phases should be pruned.
    pub(super) fn has_many_phases(&self) -> bool {
        self.phases.len() > MANY_PHASES
    }

    /// Whether it ended because all retries of a payment failed.
    pub(super) fn ended_unpaid(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_terminal() && snapshot.ended_unpaid)
    }

    /// The earliest time at which it is known to have existed.
    pub(super) fn known_since(&self) -> Option<Timestamp> {
        let seen = self.sets.iter().flat_map(|set| set.seen.iter().copied());
        let billed = self.items.values().filter_map(Item::known_since);
        self.since.into_iter().chain(seen).chain(billed).chain(self.trial_at).min()
    }

    /// The end, if it has ended.
    pub fn ended_at(&self) -> Option<Timestamp> {
        let snapshot = self.snapshot.as_ref().filter(|snapshot| snapshot.is_terminal())?;
        Some(snapshot.ended_at.unwrap_or(snapshot.created))
    }
}

/// The prefix of a provisional item id: only lines without an item id are known.
pub(super) const PROVISIONAL: &str = "plan:";

fn provisional(plan: &str) -> ItemId {
    ItemId::new(format!("{PROVISIONAL}{plan}")).expect("a plan's name is short and plain")
}

#[cfg(test)]
mod tests;
