//! What an account knows of one subscription, kept so that the order in which it was learnt cannot be told
//! from the result.
//!
//! Three things are held apart:
//! - the **snapshot**: the newest state of the subscription that Stripe has told us (status, price, end);
//! - the **period**: the newest billing period that a paid invoice or a trial has opened, and what was
//!   granted and spent in it;
//! - the **waiting** evidence: plans taken up, or seen, in periods that no payment has opened yet.
//!
//! **Invariant:** each `fold_*` only ever moves forward in an order made of the events' contents, so folding
//! a set of facts gives the same record whatever the order, and folding one twice changes nothing.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::credits::Credits;
use crate::event::SubscriptionStatus;
use crate::ids::{CustomerId, PriceId};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

/// More snapshots of one second than this are not told apart: Stripe changes a subscription a few times a
/// second at most.
const MOST_RIVALS: usize = 8;
/// More evidence than this never waits for one payment; the oldest is dropped.
const MOST_WAITING: usize = 16;

/// The record of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Who pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<CustomerId>,
    /// The newest state; absent while only invoices have been seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Other states of the same second as `snapshot`, in case news arrives that decides between them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rivals: Vec<Snapshot>,
    /// The newest period that was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Period>,
    /// Evidence of plans in periods that were not opened yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<Waiting>,
}

/// The state of a subscription as one event told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The event's `created`.
    pub created: Timestamp,
    /// Stripe's status.
    pub status: SubscriptionStatus,
    /// Start of the current billing period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// End of the current billing period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// The price that decides the plan; absent when the catalog knew none of the items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<PriceId>,
    /// How many of it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub quantity: u64,
    /// When it is going to end: `cancel_at`, or the period's end with `cancel_at_period_end`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_at: Option<Timestamp>,
    /// When it ended; only with a terminal status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Digest of what the event says about the subscription.
    pub digest: u32,
    /// Digest of what it says was there before (`previous_attributes`), where it names anything that we keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u32>,
}

fn one() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(quantity: &u64) -> bool {
    *quantity == 1
}

/// The short digest by which a snapshot and the `previous_attributes` of its successor are matched.
pub fn digest(text: &str) -> u32 {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(4).fold(0, |digest, &byte| (digest << 8) | u32::from(byte))
}

impl Snapshot {
    /// Whether the status is one that is never left.
    pub fn is_terminal(&self) -> bool {
        is_terminal(&self.status)
    }

    /// Which of two snapshots of different moments is newer: a terminal status, then the later period, then
    /// the later second.
    fn age(&self, other: &Self) -> Ordering {
        let key = |snapshot: &Self| (snapshot.is_terminal(), snapshot.start, snapshot.created);
        key(self).cmp(&key(other))
    }

    /// Ranks snapshots that nothing else tells apart: the further status in Stripe's lifecycle, then the
    /// content itself.
    fn tie_rank(&self) -> (u8, Option<Timestamp>, u32) {
        (lifecycle_rank(&self.status), self.end, self.digest)
    }
}

/// `canceled` and `incomplete_expired` are never left.
pub fn is_terminal(status: &SubscriptionStatus) -> bool {
    matches!(status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
}

fn lifecycle_rank(status: &SubscriptionStatus) -> u8 {
    match status {
        SubscriptionStatus::Incomplete => 0,
        SubscriptionStatus::Trialing => 1,
        SubscriptionStatus::Active => 2,
        SubscriptionStatus::Other(_) => 3,
        SubscriptionStatus::PastDue => 4,
        SubscriptionStatus::Unpaid => 5,
        SubscriptionStatus::Paused => 6,
        SubscriptionStatus::IncompleteExpired => 7,
        SubscriptionStatus::Canceled => 8,
    }
}

/// A billing period that was paid for, or a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// Its start; a later start is a later period.
    pub start: Timestamp,
    /// Its end, where the document says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// `created` of the event that opened it.
    pub at: Timestamp,
    /// The price that was paid for.
    pub price: PriceId,
    /// Credits granted at the opening.
    pub credits: Credits,
    /// The ledger key of the opening document.
    pub key: LedgerKey,
    /// Plans taken up within the period, or seen in it with other seats than were paid for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Run>,
    /// When the plan that was paid for was last seen, unless it has a run of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<Timestamp>,
    /// Credits spent from this subscription's bucket since we knew the period open.
    #[serde(default, skip_serializing_if = "is_zero")]
    spent: Credits,
    /// Credits of the opening grant that refunds and disputes have taken back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reversed: Credits,
}

/// What is known of one plan within the open period. Of two events of one second the one that tells of the
/// change is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    price: PriceId,
    /// Credits of the latest moment at which it was seen (its seats may change).
    credits: Credits,
    /// When it was first and last taken up.
    first: Timestamp,
    last: Timestamp,
    /// Whether `last` is a change itself, rather than a later sight of the plan.
    #[serde(default, skip_serializing_if = "is_false")]
    told: bool,
    /// What it was taken up from, the last time: decides between changes of one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<PriceId>,
    /// Credits that had been spent in the period when we heard of it: its first grant forgives them.
    #[serde(default, skip_serializing_if = "is_zero")]
    forgiven: Credits,
}

/// Evidence of a plan that waits for the payment that opens its period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    start: Timestamp,
    evidence: Evidence,
    #[serde(flatten)]
    change: PlanChange,
}

/// How well an event proves that a plan was taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// It shows the plan in good standing, and does not say since when.
    Seen,
    /// It says that the plan was taken up by a subscription that is not in good standing: it counts once the
    /// plan is seen in one.
    Unpaid,
    /// It says that the plan was taken up, in good standing.
    Told,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(credits: &Credits) -> bool {
    *credits == Credits::ZERO
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Evidence that a plan was taken up: at `at`, within the period that began at some start, for `credits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanChange {
    /// The new price.
    pub price: PriceId,
    /// What the new plan is worth.
    pub credits: Credits,
    /// `created` of the event.
    pub at: Timestamp,
    /// The price before, where the event names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PriceId>,
}

/// A paid invoice or a trial start: the document that opens a billing period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Start of the service period.
    pub start: Timestamp,
    /// End of the service period.
    pub end: Option<Timestamp>,
    /// `created` of the event.
    pub at: Timestamp,
    /// The price paid for.
    pub price: PriceId,
    /// What it is worth.
    pub credits: Credits,
    /// The document's ledger key.
    pub key: LedgerKey,
}

/// What evidence of a plan calls for in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: its period is not open yet, or it says what is known.
    Quiet,
    /// An entry of the open period.
    Counts,
    /// An entry that changes nothing, as a later period is open.
    Superseded,
}

impl Subscription {
    /// Takes in a state told by an event.
    pub fn fold_snapshot(&mut self, snapshot: Snapshot) {
        let Some(current) = &mut self.snapshot else {
            self.snapshot = Some(snapshot);
            return;
        };
        match snapshot.age(current) {
            Ordering::Less => {}
            Ordering::Greater => {
                *current = snapshot;
                self.rivals.clear();
            }
            Ordering::Equal => {
                let twin = std::iter::once(&*current).chain(&self.rivals).any(|known| *known == snapshot);
                if twin || self.rivals.len() >= MOST_RIVALS {
                    return;
                }
                self.rivals.push(snapshot);
                self.rivals.push(current.clone());
                self.rivals.sort_by_key(|rival| (rival.digest, rival.before));
                let newest = newest_of_a_second(&self.rivals);
                *current = self.rivals.remove(newest);
            }
        }
    }

    /// Takes in a payment or a trial start. Returns the plan changes that had waited for this period or for
    /// an older one, each with what it calls for in the ledger.
    pub fn fold_opening(&mut self, opening: Opening) -> Vec<(Timestamp, PlanChange, Standing)> {
        let fresh = |opening: Opening| Period {
            start: opening.start,
            end: opening.end,
            at: opening.at,
            price: opening.price,
            credits: opening.credits,
            key: opening.key,
            runs: Vec::new(),
            seen: None,
            spent: Credits::ZERO,
            reversed: Credits::ZERO,
        };
        let start = opening.start;
        match &mut self.period {
            Some(period) if period.start > start => return Vec::new(),
            // Another document for the same period, such as a trial told by the subscription and by its zero
            // invoice: the earliest one says what was granted, the content decides a tie.
            Some(period) if period.start == start => {
                let rank = |at, credits, key: &LedgerKey| (at, std::cmp::Reverse(credits), key.clone());
                if rank(opening.at, opening.credits, &opening.key)
                    < rank(period.at, period.credits, &period.key)
                {
                    let (runs, spent) = (std::mem::take(&mut period.runs), period.spent);
                    // A refund is of the document that it names, and of no other of the same period.
                    let reversed = if period.key == opening.key { period.reversed } else { Credits::ZERO };
                    let (seen, price) = (period.paid_for_seen(), period.price.clone());
                    *period = Period { runs, spent, reversed, ..fresh(opening) };
                    if let Some(seen) = seen {
                        period.fold_change(&seen, false);
                    }
                    // What was spent while this plan passed for the one paid for was spent from it.
                    period
                        .runs
                        .iter_mut()
                        .filter(|run| run.price == price)
                        .for_each(|run| run.forgiven = Credits::ZERO);
                }
            }
            Some(_) | None => self.period = Some(fresh(opening)),
        }
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.start <= start);
        self.waiting = later;
        let mut waited = Vec::new();
        for Waiting { start, evidence, change } in due {
            let standing = self.fold_plan_change(start, evidence, change.clone());
            if standing != Standing::Quiet {
                waited.push((start, change, standing));
            }
        }
        waited
    }

    /// Takes in evidence of a plan within the period that began at `start`.
    pub fn fold_plan_change(&mut self, start: Timestamp, evidence: Evidence, change: PlanChange) -> Standing {
        match &mut self.period {
            Some(period) if period.start > start && evidence == Evidence::Seen => Standing::Quiet,
            Some(period) if period.start > start => Standing::Superseded,
            Some(period) if period.start == start => match evidence {
                Evidence::Seen if period.fold_change(&change, false) => Standing::Counts,
                Evidence::Seen => Standing::Quiet,
                Evidence::Unpaid => Standing::Counts,
                Evidence::Told => {
                    period.fold_change(&change, true);
                    Standing::Counts
                }
            },
            Some(_) | None => {
                self.wait(Waiting { start, evidence, change });
                Standing::Quiet
            }
        }
    }

    /// Of one plan seen time and again only the latest sight is kept.
    fn wait(&mut self, waiting: Waiting) {
        let seen =
            |of: &Waiting| (of.evidence == Evidence::Seen).then(|| (of.start, of.change.price.clone()));
        let rank =
            |of: &Waiting| (of.start, of.change.at, of.change.price.clone(), of.evidence, of.change.credits);
        let known = self
            .waiting
            .iter()
            .position(|other| *other == waiting || (seen(other).is_some() && seen(other) == seen(&waiting)));
        match known.and_then(|place| self.waiting.get_mut(place)) {
            Some(known) if rank(known) >= rank(&waiting) => return,
            Some(known) => *known = waiting,
            None => self.waiting.push(waiting),
        }
        self.waiting.sort_by_key(rank);
        if self.waiting.len() > MOST_WAITING {
            self.waiting.remove(0);
        }
    }

    /// When it ended, if it has.
    pub fn ended_at(&self) -> Option<Timestamp> {
        self.snapshot
            .as_ref()
            .filter(|snapshot| snapshot.is_terminal())
            .map(|snapshot| snapshot.ended_at.unwrap_or(snapshot.created))
    }

    /// The status as all that is known implies it: a payment newer than the last snapshot proves an unpaid
    /// one out of date. `None` while nothing is known but plan changes.
    pub fn status(&self) -> Option<SubscriptionStatus> {
        let Some(snapshot) = &self.snapshot else {
            return self.period.as_ref().map(|_| SubscriptionStatus::Active);
        };
        let proof = self.period.as_ref().map(|period| (Some(period.start), period.at));
        let told = Some((snapshot.start, snapshot.created));
        let out_of_date = match snapshot.status {
            SubscriptionStatus::Incomplete => proof >= told,
            // Were the payment the later one of the same second, an active state would be told as well.
            SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid => proof > told,
            SubscriptionStatus::Trialing
            | SubscriptionStatus::Active
            | SubscriptionStatus::Paused
            | SubscriptionStatus::IncompleteExpired
            | SubscriptionStatus::Canceled
            | SubscriptionStatus::Other(_) => false,
        };
        Some(if out_of_date { SubscriptionStatus::Active } else { snapshot.status.clone() })
    }

    /// The price that decides the tier: the newest snapshot's, or the open period's while that is newer or
    /// all there is.
    pub fn price(&self) -> Option<&PriceId> {
        let snapshot = self.snapshot.as_ref();
        match &self.period {
            Some(period)
                if snapshot.is_none_or(|snapshot| {
                    snapshot.start < Some(period.start) && !snapshot.is_terminal()
                }) =>
            {
                Some(&period.price)
            }
            Some(_) | None => snapshot.and_then(|snapshot| snapshot.price.as_ref()),
        }
    }

    /// The current billing period as far as known: start and end.
    pub fn current_period(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        let told = self.snapshot.as_ref().map_or((None, None), |snapshot| (snapshot.start, snapshot.end));
        match &self.period {
            Some(period) if Some(period.start) > told.0 => (Some(period.start), period.end),
            Some(_) | None => told,
        }
    }

    /// Unspent credits of the open period, were nothing else known; the account decides whether the bucket is
    /// void.
    pub fn credits(&self) -> Credits {
        self.period.as_ref().map_or(Credits::ZERO, Period::bucket)
    }

    /// Spends from the bucket; the caller has checked that there is enough.
    pub fn spend(&mut self, credits: Credits) {
        if let Some(period) = &mut self.period {
            period.spent = period.spent.plus(credits);
        }
    }

    /// Whether a plan change still waits for a payment.
    pub fn is_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.evidence != Evidence::Seen)
    }
}

/// Of several snapshots of one second: the one that no other names as its predecessor; then the further
/// status.
fn newest_of_a_second(rivals: &[Snapshot]) -> usize {
    let precedes = |candidate: &Snapshot| {
        rivals.iter().any(|other| other.digest != candidate.digest && other.before == Some(candidate.digest))
    };
    let rank = |&(_, candidate): &(usize, &Snapshot)| (!precedes(candidate), candidate.tie_rank());
    rivals.iter().enumerate().max_by_key(rank).map_or(0, |(index, _)| index)
}

impl Period {
    /// Credits spent from the bucket in this period.
    pub fn spent(&self) -> Credits {
        self.spent
    }

    /// The price in force, where it is another than the one that was paid for.
    pub fn changed_to(&self) -> Option<&PriceId> {
        self.current_run().map(|run| &run.price).filter(|price| **price != self.price)
    }

    /// The plan that was paid for, as it was last seen.
    fn paid_for_seen(&self) -> Option<PlanChange> {
        self.seen.map(|at| PlanChange { price: self.price.clone(), credits: self.credits, at, from: None })
    }

    /// Takes in that a plan was taken up (`told`), or seen. Returns whether it has a run only since.
    fn fold_change(&mut self, change: &PlanChange, told: bool) -> bool {
        let spent = self.spent;
        let Some(run) = self.runs.iter_mut().find(|run| run.price == change.price) else {
            if !told && change.price == self.price && change.credits == self.credits {
                self.seen = self.seen.max(Some(change.at));
                return false;
            }
            let seen = if change.price == self.price { self.paid_for_seen() } else { None };
            self.runs.push(Run {
                price: change.price.clone(),
                credits: change.credits,
                first: change.at,
                last: change.at,
                told,
                from: change.from.clone(),
                forgiven: spent,
            });
            self.runs.sort_by(|a, b| a.price.cmp(&b.price));
            if let Some(seen) = seen {
                self.seen = None;
                self.fold_change(&seen, false);
            }
            return true;
        };
        run.first = run.first.min(change.at);
        match (change.at, told).cmp(&(run.last, run.told)) {
            Ordering::Less => {}
            Ordering::Equal => {
                run.credits = run.credits.max(change.credits);
                run.from = run.from.clone().max(change.from.clone());
            }
            Ordering::Greater => {
                (run.last, run.told) = (change.at, told);
                run.credits = change.credits;
                run.from.clone_from(&change.from);
            }
        }
        false
    }

    /// The plan in force, unless that is the one paid for, as it was paid for.
    fn current_run(&self) -> Option<&Run> {
        let last = self.runs.iter().map(|run| run.last).max()?;
        let of_that_second = || self.runs.iter().filter(move |run| run.last == last);
        let left = |price: &PriceId| {
            of_that_second().any(|other| other.price != *price && other.from.as_ref() == Some(price))
        };
        let rank = |price: &PriceId| (!left(price), price.clone());
        let newest = of_that_second().max_by_key(|run| rank(&run.price))?;
        let paid_for_is_newer =
            self.seen > Some(last) || (self.seen == Some(last) && rank(&self.price) > rank(&newest.price));
        if paid_for_is_newer { None } else { Some(newest) }
    }

    /// A plan's first grant in the period is its full amount; coming back to one gives its amount less all
    /// that was spent in the period. What was refunded counts against the grant that was paid for.
    fn bucket(&self) -> Credits {
        let Some(run) = self.current_run() else {
            return self.credits.minus(self.spent).minus(self.reversed);
        };
        if run.price == self.price {
            return run.credits.minus(self.spent).minus(self.reversed);
        }
        let left_for = |other: &Run| {
            other.last > run.first || (other.last == run.first && other.from.as_ref() == Some(&run.price))
        };
        let mut others = self.runs.iter().filter(|other| other.price != run.price);
        let left_since = others.any(left_for) || self.seen > Some(run.first);
        let counted = if left_since { self.spent } else { self.spent.minus(run.forgiven) };
        run.credits.minus(counted)
    }
}

#[cfg(test)]
mod tests;
