//! The slices of an item, and what each takes over from the one before it.
//!
//! **Invariant:** both are computed from the item's lines, sights and spends. Nothing is stored when a slice
//! falls due, so it does not matter when, or whether, a schedule runs.

use super::item::{Item, Period, View, in_force};
use super::slice::{Carry, MAX_SLICES, Slice, cuts, granted_since, phase_at};
use crate::credits::Credits;
use crate::ids::InvoiceId;
use crate::reversal::is_open;
use crate::timestamp::Timestamp;

impl Item {
    /// The slices that have been granted by now, the current one last.
    pub(super) fn slices(&self, periods: &[Period], view: &View<'_>) -> Vec<Slice> {
        let mut slices = Vec::new();
        for (place, period) in periods.iter().enumerate() {
            self.slices_of(place, period, periods, view, &mut slices);
        }
        slices
    }

    fn slices_of(
        &self,
        place: usize,
        period: &Period,
        periods: &[Period],
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
        let next = periods.get(place + 1).map(|next| next.start);
        let is_refunded = self.is_refunded(period, view);
        let disputes = view.disputes_of(&period.invoice);
        let stops = |at: Timestamp| {
            let refunded_then = |invoice: &InvoiceId| (view.refunded_at)(invoice, at);
            let then = View { refunded: &refunded_then, ..*view };
            phase_at(view.phases, at).is_some_and(|phase| phase.stops(view.pause_collection))
                || disputes.iter().any(|dispute| is_open(dispute, at))
                || (is_refunded && self.is_refunded(period, &then))
        };
        for (index, start) in cuts.iter().copied().enumerate().skip(1) {
            let is_over =
                next.is_some_and(|next| start >= next) || view.ended.is_some_and(|end| start >= end);
            if start > view.now || is_over {
                break;
            }
            if !in_force(&runs, start).is_some_and(|run| run.terms.monthly) {
                continue;
            }
            let end = end_of(index);
            let resumes = view.phases.iter().map(|phase| phase.at);
            let moments = resumes.chain(disputes.iter().filter_map(|(_, closed)| *closed));
            let counts = |since: &Timestamp| *since <= view.now && view.ended.is_none_or(|end| *since < end);
            let Some(since) = granted_since(start, end, moments, stops).filter(counts) else { continue };
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
        let stops = view.phases.last().is_some_and(|phase| phase.stops(view.pause_collection))
            || view.disputes_of(&current.invoice).iter().any(|(_, closed)| closed.is_none())
            || self.is_refunded(current, view);
        (!stops && view.ended.is_none()).then_some(next)
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
            let ends = runs.iter().rfind(|run| run.at.is_none_or(|at| at < slice.since));
            let Some(rollover) = ends.and_then(|run| run.terms.rollover) else { continue };
            let openings_since = u64::try_from(last - place).unwrap_or(u64::MAX);
            // If the invoice pays back unused time, that time's credits are not also carried over. Of a period
            // that has ended, it credits only what it charges again for a change.
            let is_paid_back =
                before.period != slice.period && to.credits_time && to.cut_short(periods).is_some();
            let is_imported = view.imported_at.is_some_and(|at| slice.since < at);
            if openings_since >= rollover.periods || is_paid_back || is_imported {
                continue;
            }
            let until = paid_until.map(|end| end.plus_days(view.grace_days));
            // Refunds before the slice began lower what is carried over. Later refunds take their share of
            // it.
            let refunded_then = |invoice: &InvoiceId| (view.refunded_at)(invoice, slice.since);
            let then = View { refunded: &refunded_then, ..*view };
            let left = self.slice_bucket(Some(slice.since), place - 1, slices, periods, &then).left;
            let part = left.share(i64::try_from(rollover.percent).unwrap_or(0), 100);
            let granted = part.min(Credits::new(rollover.max));
            let charges = self.charges(from, periods);
            let lost = |view: &View<'_>| self.lost(from, &charges, granted, view);
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
