//! Refunds and disputes of one payment.
//!
//! **Invariant:** the final amount does not depend on the order of the events. Each refund and each dispute
//! only moves forward in its own lifecycle, and of `charge.refunded` events the newest counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::{DisputeStatus, RefundStatus};
use crate::ids::{DisputeId, RefundId, UserId};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

/// The refunds and disputes of one payment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reversal {
    /// The newest `amount_refunded` of a charge event, in minor units, with the event's `created`. It counts
    /// refunds that fail later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    charge: Option<(Timestamp, i64)>,
    /// What the charge charged, in minor units, if a charge event is known. A bank may dispute all of a charge
    /// of which a part is refunded, and no more than the charge can go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    charged: Option<i64>,
    /// Single refunds: amount in minor units and stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    refunds: BTreeMap<RefundId, (i64, RefundStage)>,
    /// Disputes: amount in minor units and stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    disputes: BTreeMap<DisputeId, (i64, DisputeStage)>,
    /// Earlier states of `charge`, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    charges: Vec<(Timestamp, i64)>,
    /// For each refund `created` of the earliest event that says it succeeded, for each dispute of the
    /// earliest one that says it is open or lost.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    since: BTreeMap<String, Timestamp>,
    /// For each dispute that is closed `created` of the earliest event that says so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    closed: BTreeMap<DisputeId, Timestamp>,
}

/// When a dispute was opened, and closed: it holds what was paid for in between.
pub type DisputeSpan = (Timestamp, Option<Timestamp>);

/// The disputes of each payment of each document.
pub type Disputes = BTreeMap<LedgerKey, BTreeMap<String, Vec<DisputeSpan>>>;

/// Whether a dispute was open at a moment.
pub(crate) fn is_open((opened, closed): &DisputeSpan, at: Timestamp) -> bool {
    *opened <= at && closed.is_none_or(|closed| at < closed)
}

/// The maximum number of earlier states of a charge that are kept.
const MAX_CHARGES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RefundStage {
    Pending,
    Succeeded,
    Failed,
}

/// How a dispute stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisputeStage {
    /// The bank asks, and withdrew nothing.
    Inquiry,
    /// The bank withdrew the amount.
    Open,
    /// The merchant lost it.
    Lost,
    /// The merchant won it and has the amount again.
    Won,
}

/// One payment: the document that it paid, and its refunds and disputes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentRecord {
    /// The ledger key of the document (`session#cs_…`, `invoice#in_…`), if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<LedgerKey>,
    /// The owner of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Refunds and disputes.
    #[serde(default, skip_serializing_if = "Reversal::is_empty")]
    pub reversal: Reversal,
}

/// One event about a refund or a dispute. Amounts in minor units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReversalEvent {
    /// `charge.refunded`: the event's `created`, the cumulative amount, and the amount of the charge.
    Charge(Timestamp, i64, i64),
    /// `refund.*`: one refund.
    Refund(RefundId, i64, RefundStatus),
    /// `charge.dispute.*`: one dispute, and when it was opened.
    Dispute(DisputeId, i64, DisputeStatus, Option<Timestamp>),
}

impl Reversal {
    /// Whether no refund and no dispute is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds one event that Stripe created at `at`. A repeated event changes nothing.
    pub fn fold(&mut self, at: Timestamp, event: ReversalEvent) {
        match event {
            ReversalEvent::Charge(at, cumulative, charged) => {
                self.charged = self.charged.max(Some(charged));
                let mut states: Vec<(Timestamp, i64)> = self.charges.drain(..).chain(self.charge).collect();
                states.push((at, cumulative));
                states.sort_unstable();
                states.dedup();
                self.charge = states.pop();
                let oldest = states.len().saturating_sub(MAX_CHARGES);
                self.charges = states.split_off(oldest);
            }
            ReversalEvent::Refund(id, amount, status) => {
                let stage = match status {
                    RefundStatus::Pending | RefundStatus::RequiresAction | RefundStatus::Other(_) => {
                        RefundStage::Pending
                    }
                    RefundStatus::Succeeded => RefundStage::Succeeded,
                    RefundStatus::Failed | RefundStatus::Canceled => RefundStage::Failed,
                };
                if stage == RefundStage::Succeeded {
                    self.note_since(id.as_str(), at);
                }
                let known = self.refunds.entry(id).or_insert((amount, stage));
                *known = (known.0.max(amount), known.1.max(stage));
            }
            ReversalEvent::Dispute(id, amount, status, opened) => {
                let stage = match status {
                    DisputeStatus::WarningNeedsResponse
                    | DisputeStatus::WarningUnderReview
                    | DisputeStatus::WarningClosed
                    | DisputeStatus::Prevented
                    | DisputeStatus::Other(_) => DisputeStage::Inquiry,
                    DisputeStatus::NeedsResponse | DisputeStatus::UnderReview => DisputeStage::Open,
                    DisputeStatus::Lost => DisputeStage::Lost,
                    DisputeStatus::Won => DisputeStage::Won,
                };
                if matches!(stage, DisputeStage::Open | DisputeStage::Lost) {
                    self.note_since(id.as_str(), at);
                }
                let before = self.dispute(&id);
                if before < Some(stage) {
                    self.closed.remove(&id);
                }
                // What reconcile reads at Stripe has the time at which the dispute was opened.
                let says_when = opened.is_none_or(|opened| at > opened);
                if stage >= DisputeStage::Lost && before <= Some(stage) && says_when {
                    let closed = self.closed.entry(id.clone()).or_insert(at);
                    *closed = at.min(*closed);
                }
                let known = self.disputes.entry(id).or_insert((amount, stage));
                *known = (known.0.max(amount), known.1.max(stage));
            }
        }
    }

    fn note_since(&mut self, id: &str, at: Timestamp) {
        let known = self.since.entry(id.to_owned()).or_insert(at);
        *known = at.min(*known);
    }

    /// What [`Self::amount`] was after each moment at which it changed, oldest first. A refund that failed
    /// and a dispute that was won count as if they had never been.
    pub fn steps(&self) -> Vec<(Timestamp, i64)> {
        let charges = || self.charges.iter().copied().chain(self.charge);
        let mut times: Vec<Timestamp> =
            charges().map(|(at, _)| at).chain(self.since.values().copied()).collect();
        times.sort_unstable();
        times.dedup();
        let mut steps: Vec<(Timestamp, i64)> = Vec::new();
        for at in times {
            let begun = |id: &str| self.since.get(id).is_none_or(|since| *since <= at);
            let then = Self {
                charge: charges().filter(|(charged, _)| *charged <= at).max(),
                charged: self.charged,
                refunds: self.refunds.iter().filter(|(id, _)| begun(id.as_str())).map(cloned).collect(),
                disputes: self.disputes.iter().filter(|(id, _)| begun(id.as_str())).map(cloned).collect(),
                ..Self::default()
            };
            let amount = then.amount();
            if steps.last().map_or(0, |(_, known)| *known) != amount {
                steps.push((at, amount));
            }
        }
        steps
    }

    /// When each dispute that took or takes the amount was opened and closed, the earliest first. One that is
    /// closed, and of which no event says when, was never open.
    pub fn open_disputes(&self) -> Vec<DisputeSpan> {
        let span = |(id, (_, stage)): (&DisputeId, &(i64, DisputeStage))| {
            let opened = *self.since.get(id.as_str())?;
            let closed = (*stage >= DisputeStage::Lost).then_some(opened);
            Some((opened, self.closed.get(id).copied().or(closed)))
        };
        let mut disputes: Vec<DisputeSpan> = self.disputes.iter().filter_map(span).collect();
        disputes.sort();
        disputes
    }

    /// The disputes, with their amount in minor units.
    pub fn disputes(&self) -> impl Iterator<Item = (&DisputeId, i64, DisputeStage)> {
        self.disputes.iter().map(|(id, (amount, stage))| (id, *amount, *stage))
    }

    /// How a dispute stands, if it is known.
    pub fn dispute(&self, id: &DisputeId) -> Option<DisputeStage> {
        self.disputes.get(id).map(|(_, stage)| *stage)
    }

    /// Whether a dispute is open or lost.
    pub fn is_disputed(&self) -> bool {
        let holds = |stage: DisputeStage| matches!(stage, DisputeStage::Open | DisputeStage::Lost);
        self.disputes.values().any(|(_, stage)| holds(*stage))
    }

    /// Refunded minor units: the sum of the succeeded refunds, or the charge's newest `amount_refunded` minus
    /// the failed refunds, whichever is larger.
    pub fn refunded(&self) -> i64 {
        let refunds = |stage: RefundStage| {
            self.refunds
                .values()
                .filter(|refund| refund.1 == stage)
                .map(|refund| refund.0)
                .fold(0, i64::saturating_add)
        };
        let newest = self.charge.map_or(0, |(_, amount)| amount);
        let counted = newest.saturating_sub(refunds(RefundStage::Failed));
        counted.max(refunds(RefundStage::Succeeded)).max(0)
    }

    /// Minor units that are back with the customer or held by a dispute that is open or lost: no more than
    /// were charged.
    pub fn amount(&self) -> i64 {
        let held =
            |dispute: &&(i64, DisputeStage)| matches!(dispute.1, DisputeStage::Open | DisputeStage::Lost);
        let refunded = self.refunded();
        let disputed = self.disputes.values().filter(held).map(|dispute| dispute.0);
        let both = disputed.fold(refunded, i64::saturating_add);
        self.charged.map_or(both, |charged| both.min(charged).max(refunded))
    }
}

fn cloned<K: Clone, V: Clone>((key, value): (&K, &V)) -> (K, V) {
    (key.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(amount: i64) -> ReversalEvent {
        ReversalEvent::Charge(Timestamp::from_unix(amount), amount, 2000)
    }

    fn refund(id: &str, amount: i64, status: RefundStatus) -> ReversalEvent {
        ReversalEvent::Refund(RefundId::new(id).unwrap(), amount, status)
    }

    fn dispute(status: DisputeStatus) -> ReversalEvent {
        ReversalEvent::Dispute(DisputeId::new("dp_1").unwrap(), 1000, status, None)
    }

    #[test]
    fn events_in_any_order_and_number_give_the_same_amount() {
        use DisputeStatus::{Lost, NeedsResponse, WarningClosed, WarningNeedsResponse, Won};
        use RefundStatus::{Failed, Pending, Succeeded};
        for (events, amount) in [
            (vec![charge(500), charge(1500), charge(2000)], 2000),
            (vec![charge(500), refund("re_1", 500, Succeeded)], 500),
            (vec![charge(500), refund("re_1", 500, Succeeded), refund("re_1", 500, Failed)], 0),
            (vec![charge(500), refund("re_1", 500, Pending)], 500),
            (vec![refund("re_1", 500, Pending)], 0),
            (vec![charge(800), refund("re_1", 500, Failed), refund("re_2", 300, Succeeded)], 300),
            (vec![dispute(NeedsResponse)], 1000),
            (vec![dispute(NeedsResponse), dispute(Won)], 0),
            (vec![dispute(NeedsResponse), dispute(Lost)], 1000),
            (vec![dispute(WarningNeedsResponse), dispute(WarningClosed)], 0),
            (vec![dispute(NeedsResponse), dispute(Won), charge(700)], 700),
            // Of 2000, 1500 are refunded, and the bank takes 1000 more.
            (vec![charge(1500), dispute(NeedsResponse)], 2000),
            (vec![charge(1500), dispute(Lost), refund("re_1", 1500, Failed)], 1000),
        ] {
            let fold = |events: &mut dyn Iterator<Item = ReversalEvent>| {
                let mut reversal = Reversal::default();
                events.for_each(|event| reversal.fold(Timestamp::from_unix(7), event));
                let last = reversal.steps().last().map_or(0, |(_, amount)| *amount);
                assert_eq!(last, reversal.amount(), "the last step is the amount: {reversal:?}");
                reversal.amount()
            };
            assert_eq!(fold(&mut events.iter().cloned()), amount, "{events:?}");
            assert_eq!(
                fold(&mut events.iter().rev().chain(&events).cloned()),
                amount,
                "reversed and doubled: {events:?}"
            );
        }
    }

    #[test]
    fn the_steps_say_what_had_gone_back_at_a_moment_in_any_order() {
        use DisputeStatus::{NeedsResponse, Won};
        use RefundStatus::{Failed, Succeeded};
        let at = Timestamp::from_unix;
        let step = |second: i64, amount: i64| (at(second), amount);
        for (events, steps) in [
            (vec![(500, charge(500)), (900, charge(900))], vec![step(500, 500), step(900, 900)]),
            (
                vec![
                    (20, refund("re_1", 300, Succeeded)),
                    (400, charge(400)),
                    (30, refund("re_2", 100, Succeeded)),
                ],
                vec![step(20, 300), step(30, 400)],
            ),
            (vec![(9, refund("re_1", 300, Succeeded)), (20, refund("re_1", 300, Failed))], vec![]),
            (vec![(9, dispute(NeedsResponse))], vec![step(9, 1000)]),
            (vec![(9, dispute(NeedsResponse)), (20, dispute(Won))], vec![]),
        ] {
            let fold = |events: &mut dyn Iterator<Item = (i64, ReversalEvent)>| {
                let mut reversal = Reversal::default();
                events.for_each(|(second, event)| reversal.fold(at(second), event));
                reversal.steps()
            };
            assert_eq!(fold(&mut events.iter().cloned()), steps, "{events:?}");
            let reversed = &mut events.iter().rev().chain(&events).cloned();
            assert_eq!(fold(reversed), steps, "reversed and doubled: {events:?}");
        }
    }

    #[test]
    fn a_dispute_is_open_from_the_second_of_its_news_until_that_of_its_end() {
        let at = Timestamp::from_unix;
        let open = |closed: Option<i64>| {
            [8, 9, 19, 20, 21].map(|moment| is_open(&(at(9), closed.map(at)), at(moment)))
        };
        assert_eq!(open(Some(20)), [false, true, true, false, false]);
        assert_eq!(open(None), [false, true, true, true, true]);
    }

    #[test]
    fn a_dispute_is_open_from_its_first_news_to_the_first_that_says_how_it_ended() {
        use DisputeStatus::{Lost, NeedsResponse, UnderReview, WarningNeedsResponse, Won};
        let at = Timestamp::from_unix;
        for (events, expect) in [
            (vec![(9, WarningNeedsResponse)], vec![]),
            (vec![(9, WarningNeedsResponse), (12, NeedsResponse)], vec![(at(12), None)]),
            (vec![(9, NeedsResponse), (12, UnderReview), (20, Lost)], vec![(at(9), Some(at(20)))]),
            (vec![(9, NeedsResponse), (20, Won), (21, Won)], vec![(at(9), Some(at(20)))]),
            (vec![(9, NeedsResponse), (20, Lost), (30, Won), (31, Won)], vec![(at(9), Some(at(30)))]),
            (vec![(9, Lost), (30, Lost)], vec![(at(9), Some(at(9)))]),
        ] {
            let fold = |events: &mut dyn Iterator<Item = &(i64, DisputeStatus)>| {
                let mut reversal = Reversal::default();
                events.for_each(|(second, status)| reversal.fold(at(*second), dispute(status.clone())));
                reversal.open_disputes()
            };
            assert_eq!(fold(&mut events.iter()), expect, "{events:?}");
            let reversed = &mut events.iter().rev().chain(&events);
            assert_eq!(fold(reversed), expect, "reversed and doubled: {events:?}");
        }
    }

    /// A dispute's `created` is when it was opened
    /// (<https://docs.stripe.com/api/disputes/object#dispute_object-created>). What reconcile reads at Stripe has
    /// that time; an event is later.
    #[test]
    fn only_an_event_after_the_opening_says_when_a_dispute_was_closed() {
        use DisputeStatus::{NeedsResponse, Won};
        let at = Timestamp::from_unix;
        let fold = |events: &[(i64, DisputeStatus)]| {
            let mut reversal = Reversal::default();
            for (second, status) in events {
                let id = DisputeId::new("dp_1").unwrap();
                reversal.fold(at(*second), ReversalEvent::Dispute(id, 9, status.clone(), Some(at(9))));
            }
            reversal.open_disputes()
        };
        assert_eq!(fold(&[(9, NeedsResponse), (20, Won)]), [(at(9), Some(at(20)))]);
        assert_eq!(fold(&[(9, NeedsResponse), (20, Won), (9, Won)]), [(at(9), Some(at(20)))]);
        assert_eq!(
            fold(&[(9, NeedsResponse), (9, Won)]),
            [(at(9), Some(at(9)))],
            "when it ended is not known"
        );
    }
}
