//! Credits that a paid period grants every month, and credits that the next period takes over.
//!
//! A *slice* is a part of a paid period. Its credits are granted at its start. Without
//! `refill = "month"` a period has one slice, the whole. With it, the period is cut at each calendar month
//! from its start. A *carry* is the part of a slice's unspent credits that the next slice takes over.
//!
//! **Invariant:** both are computed from the item's lines, sights and spends. Nothing is stored when a slice
//! falls due, so it does not matter when, or whether, a schedule runs.

use serde::{Deserialize, Serialize};

use super::item::{Item, Period, Run, View};
use super::snapshot::{Snapshot, is_false};
use crate::catalog::PauseCollection;
use crate::credits::Credits;
use crate::event::SubscriptionStatus;
use crate::ids::InvoiceId;
use crate::timestamp::Timestamp;

/// The maximum number of slices of one period.
pub(super) const MAX_SLICES: u32 = 36;
/// If the last part of a period is shorter than this, it belongs to the slice before it.
const MIN_SLICE_DAYS: i64 = 4;
/// The maximum number of phases of one subscription that are kept.
const MAX_PHASES: usize = 120;
/// Beyond this number of phases, those that affect no slice are dropped.
pub(super) const MANY_PHASES: usize = 30;

/// What a snapshot says about whether a subscription gets its monthly credits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Phase {
    /// `created` of the event.
    pub at: Timestamp,
    /// The status is `paused`.
    #[serde(default, skip_serializing_if = "is_false")]
    paused: bool,
    /// `pause_collection` is set.
    #[serde(default, skip_serializing_if = "is_false")]
    collection_paused: bool,
}

impl Phase {
    /// Whether the status is `paused`: Stripe takes the access away.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether `pause_collection` is set.
    pub(super) fn collection_is_paused(&self) -> bool {
        self.collection_paused
    }

    fn stops(&self, policy: PauseCollection) -> bool {
        self.paused || (self.collection_paused && policy == PauseCollection::UntilPeriodEnd)
    }
}

/// The newest phase at a moment.
pub(super) fn phase_at(phases: &[Phase], at: Timestamp) -> Option<&Phase> {
    phases.iter().rfind(|phase| phase.at <= at)
}

/// Adds the phase of a snapshot. If two snapshots have the same second, the one that stops less counts.
pub(super) fn fold_phase(phases: &mut Vec<Phase>, snapshot: &Snapshot) {
    if snapshot.is_terminal() {
        return;
    }
    let paused = snapshot.status == SubscriptionStatus::Paused;
    let phase = Phase { at: snapshot.created, paused, collection_paused: snapshot.collection_paused };
    match phases.binary_search_by_key(&phase.at, |known| known.at) {
        Ok(place) => {
            if let Some(known) = phases.get_mut(place) {
                known.paused &= phase.paused;
                known.collection_paused &= phase.collection_paused;
            }
        }
        Err(place) => phases.insert(place, phase),
    }
}

/// Drops phases that affect no slice of these periods and none of these moments. For each slice start and
/// each moment it keeps the newest phase at it and the first later phase that does not stop. It also keeps
/// all phases after the last of them.
pub(super) fn prune_phases(phases: &mut Vec<Phase>, periods: &[Period], moments: &[Timestamp]) {
    let cuts = periods.iter().flat_map(|period| cuts(period.start, period.end));
    let starts: Vec<Timestamp> = cuts.chain(moments.iter().copied()).collect();
    let Some(last) = starts.iter().max().copied() else { return };
    let newest_at = |start: &Timestamp| phase_at(phases, *start);
    let first_after = |start: &Timestamp, policy: PauseCollection| {
        phases.iter().find(|phase| phase.at > *start && !phase.stops(policy))
    };
    let mut kept: Vec<Timestamp> = Vec::new();
    for start in &starts {
        kept.extend(newest_at(start).map(|phase| phase.at));
        for policy in [PauseCollection::Keep, PauseCollection::UntilPeriodEnd] {
            kept.extend(first_after(start, policy).map(|phase| phase.at));
        }
    }
    phases.retain(|phase| phase.at > last || kept.contains(&phase.at));
    while phases.len() > MAX_PHASES {
        phases.remove(0);
    }
}

/// A part of a paid period with credits of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The number of its month in the period, from 0. The invoice grants month 0.
    pub index: u32,
    /// Its start.
    pub start: Timestamp,
    /// Its planned end, excluded: the next month, or the end of the period.
    pub end: Option<Timestamp>,
    /// When its credits were granted: at its start, or when a pause ended within it.
    pub since: Timestamp,
    /// The place of its period in the item's periods.
    pub(super) period: usize,
    /// Whether its period has other slices.
    pub(super) monthly: bool,
}

impl Slice {
    /// Whether a spend that was recorded under `start` is of a later slice that turned out not to be granted:
    /// such spends count in this slice. `next` is the start of the period's next granted slice. `cuts` are the starts
    /// of this period's months: if an invoice arrives late, a spend of another period may have a later start.
    pub(super) fn holds_undone(&self, start: Timestamp, next: Option<Timestamp>, cuts: &[Timestamp]) -> bool {
        self.monthly && start > self.start && next.is_none_or(|next| start < next) && cuts.contains(&start)
    }
}

/// Credits that a slice took over from the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// The invoice of the slice that took them over.
    pub invoice: InvoiceId,
    /// The index of that slice.
    pub index: u32,
    /// When they were carried over.
    pub since: Timestamp,
    /// They end then, excluded.
    pub until: Option<Timestamp>,
    /// What was carried over.
    pub granted: Credits,
    /// What refunds and disputes take of it.
    pub lost: Credits,
    /// What is left to spend.
    pub left: Credits,
}

/// The starts of a period's months, its own start first.
pub(super) fn cuts(start: Timestamp, end: Option<Timestamp>) -> Vec<Timestamp> {
    let mut cuts = vec![start];
    let Some(end) = end else { return cuts };
    for month in 1..MAX_SLICES {
        let cut = start.plus_months(month);
        if cut <= start || cut.plus_days(MIN_SLICE_DAYS) > end {
            break;
        }
        cuts.push(cut);
    }
    cuts
}

impl Item {
    /// The slices that have been granted by now, the current one last.
    pub(super) fn slices(&self, periods: &[Period], view: &View<'_>) -> Vec<Slice> {
        let mut slices = Vec::new();
        for (place, period) in periods.iter().enumerate() {
            let next = periods.get(place + 1).map(|next| next.start);
            self.slices_of(place, period, next, view, &mut slices);
        }
        slices
    }

    fn slices_of(
        &self,
        place: usize,
        period: &Period,
        next: Option<Timestamp>,
        view: &View<'_>,
        slices: &mut Vec<Slice>,
    ) {
        let whole = Slice {
            index: 0,
            start: period.start,
            end: period.end,
            since: period.start,
            period: place,
            monthly: false,
        };
        let runs = self.runs(period);
        if !runs.iter().any(|run| run.terms.monthly) {
            slices.push(whole);
            return;
        }
        let cuts = cuts(period.start, period.end);
        let end_of = |index: usize| cuts.get(index + 1).copied().or(period.end);
        slices.push(Slice { end: end_of(0), monthly: true, ..whole.clone() });
        let refunded = self.is_refunded(period, view);
        for (index, start) in cuts.iter().copied().enumerate().skip(1) {
            let is_over =
                next.is_some_and(|next| start >= next) || view.ended.is_some_and(|end| start >= end);
            let refunded_then = |invoice: &InvoiceId| (view.refunded_at)(invoice, start);
            let then = View { refunded: &refunded_then, ..*view };
            // No month begins after a full refund.
            if start > view.now || is_over || (refunded && self.is_refunded(period, &then)) {
                break;
            }
            if !in_force(&runs, start).is_some_and(|run| run.terms.monthly) {
                continue;
            }
            let end = end_of(index);
            let Some(since) = granted_since(start, end, view).filter(|since| *since <= view.now) else {
                continue;
            };
            let index = u32::try_from(index).unwrap_or(MAX_SLICES);
            slices.push(Slice { index, start, end, since, period: place, monthly: true });
        }
    }

    /// When the next month's credits fall due, by the facts known now.
    pub(super) fn next_slice(&self, current: &Period, view: &View<'_>) -> Option<Timestamp> {
        let runs = self.runs(current);
        if !runs.last()?.terms.monthly {
            return None;
        }
        let next = cuts(current.start, current.end).into_iter().find(|cut| *cut > view.now)?;
        let stops = view.phases.last().is_some_and(|phase| phase.stops(view.pause_collection));
        (!stops && view.ended.is_none_or(|end| next < end)).then_some(next)
    }

    /// The credits that the current slice and recent slices took over and that are still valid.
    pub(super) fn carries(&self, slices: &[Slice], periods: &[Period], view: &View<'_>) -> Vec<Carry> {
        let mut carries = Vec::new();
        let Some(last) = slices.len().checked_sub(1) else { return carries };
        let paid_until = periods.last().and_then(|period| period.end);
        for place in 1..slices.len() {
            let (Some(before), Some(slice)) = (slices.get(place - 1), slices.get(place)) else { continue };
            let (Some(from), Some(to)) = (periods.get(before.period), periods.get(slice.period)) else {
                continue;
            };
            let runs = self.runs(from);
            let ends = runs.iter().rfind(|run| run.at.is_none_or(|at| at < slice.start));
            let Some(rollover) = ends.and_then(|run| run.terms.rollover) else { continue };
            let openings_since = u64::try_from(last - place).unwrap_or(u64::MAX);
            // If the invoice pays back unused time, that time's credits are not also carried over.
            let is_paid_back = before.period != slice.period && to.credited > 0;
            let is_imported = view.imported_at.is_some_and(|at| slice.since < at);
            if openings_since >= rollover.periods || is_paid_back || is_imported {
                continue;
            }
            let until = paid_until.map(|end| end.plus_days(view.grace_days));
            // Refunds before the slice began lower what is carried over. Later refunds take their share of
            // it.
            let refunded_then = |invoice: &InvoiceId| (view.refunded_at)(invoice, slice.since);
            let then = View { refunded: &refunded_then, ..*view };
            let left = self.slice_bucket(place - 1, slices, periods, &then).left;
            let part = left.share(i64::try_from(rollover.percent).unwrap_or(0), 100);
            let granted = part.min(Credits::new(rollover.max));
            let charges = self.charges(from, periods);
            let lost = |view: &View<'_>| self.lost(from, periods, &charges, granted, view);
            let lost_then = if self.is_refunded(from, view) { Credits::ZERO } else { lost(&then) };
            let lost = lost(view).minus(lost_then);
            let spent = self.spent_of_carry(slice.start);
            let ended = until.is_some_and(|until| until <= view.now);
            let left = if ended { Credits::ZERO } else { granted.minus(lost).minus(spent) };
            if granted > Credits::ZERO {
                carries.push(Carry {
                    invoice: to.invoice.clone(),
                    index: slice.index,
                    since: slice.start,
                    until,
                    granted,
                    lost,
                    left,
                });
            }
        }
        carries
    }
}

/// The plan in force at a moment.
pub(super) fn in_force(runs: &[Run], at: Timestamp) -> Option<&Run> {
    runs.iter().rfind(|run| run.at.is_none_or(|since| since <= at))
}

/// When a slice's credits are granted: at its start, or when a pause at its start ended within it.
fn granted_since(start: Timestamp, end: Option<Timestamp>, view: &View<'_>) -> Option<Timestamp> {
    let stops = |phase: &&Phase| phase.stops(view.pause_collection);
    let at_start = phase_at(view.phases, start);
    if at_start.as_ref().is_none_or(|phase| !stops(phase)) {
        return Some(start);
    }
    let within = |phase: &&Phase| phase.at > start && end.is_none_or(|end| phase.at < end);
    view.phases.iter().filter(within).find(|phase| !stops(phase)).map(|phase| phase.at)
}
