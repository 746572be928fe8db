//! Credits that a paid period grants every month, and credits that the next period takes over.
//!
//! A *slice* is a part of a paid period. Its credits are granted at its start. Without
//! `refill = "month"` a period has one slice, the whole. With it, the period is cut at each calendar month
//! from its start. A *carry* is the part of a slice's unspent credits that the next slice takes over.
//!
//! [`super::months`] computes both.

use serde::{Deserialize, Serialize};

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

    pub(super) fn stops(&self, policy: PauseCollection) -> bool {
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

/// Drops phases that affect none of these moments, the starts of slices among them. For each moment it keeps
/// the newest phase at it and the first later phase that does not stop. It also keeps all phases after the
/// last moment.
pub(super) fn prune_phases(phases: &mut Vec<Phase>, starts: &[Timestamp]) {
    let Some(last) = starts.iter().max().copied() else { return };
    let newest_at = |start: &Timestamp| phase_at(phases, *start);
    let first_after = |start: &Timestamp, policy: PauseCollection| {
        phases.iter().find(|phase| phase.at > *start && !phase.stops(policy))
    };
    let mut kept: Vec<Timestamp> = Vec::new();
    for start in starts {
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

/// When a slice's credits are granted: at its start, unless something `stops` them then. Otherwise at the first
/// of these moments within the slice at which nothing does.
pub(super) fn granted_since(
    start: Timestamp,
    end: Option<Timestamp>,
    moments: impl Iterator<Item = Timestamp>,
    stops: impl Fn(Timestamp) -> bool,
) -> Option<Timestamp> {
    if !stops(start) {
        return Some(start);
    }
    let within = |at: &Timestamp| *at > start && end.is_none_or(|end| *at < end);
    moments.filter(within).filter(|at| !stops(*at)).min()
}
