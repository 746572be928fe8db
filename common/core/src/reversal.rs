//! What refunds and disputes of one payment take back, kept per payment beside the ledger.
//!
//! **Invariant:** news is joined: each refund and each dispute only moves forward in its own lifecycle and
//! the cumulative amount only grows, so what is reversed in the end does not depend on the order, and never
//! exceeds the payment.

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
    /// Single refunds: amount in minor units and how far they got.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    refunds: BTreeMap<RefundId, (i64, RefundStage)>,
    /// Disputes: amount in minor units and how far they got.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    disputes: BTreeMap<DisputeId, (i64, DisputeStage)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RefundStage {
    Pending,
    Succeeded,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DisputeStage {
    Inquiry,
    Open,
    Lost,
    Won,
}

/// What is known of one payment: the document that it paid, and what went back of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentRecord {
    /// The ledger key of the document (`session#cs_…`, `invoice#in_…`) once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<LedgerKey>,
    /// The user whose document it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Refunds and disputes.
    #[serde(default, skip_serializing_if = "Reversal::is_empty")]
    pub reversal: Reversal,
}

/// One event about a payment that goes back. Amounts in minor units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// `charge.refunded`: the event's `created` and the cumulative amount.
    Charge(Timestamp, i64),
    /// `refund.*`: one refund.
    Refund(RefundId, i64, RefundStatus),
    /// `charge.dispute.*`: one dispute.
    Dispute(DisputeId, i64, DisputeStatus),
}

impl Reversal {
    /// Whether nothing is known to have gone back.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in one event.
    pub fn fold(&mut self, news: News) {
        match news {
            News::Charge(at, cumulative) => self.charge = self.charge.max(Some((at, cumulative))),
            News::Refund(id, amount, status) => {
                let stage = match status {
                    RefundStatus::Pending | RefundStatus::RequiresAction | RefundStatus::Other(_) => {
                        RefundStage::Pending
                    }
                    RefundStatus::Succeeded => RefundStage::Succeeded,
                    RefundStatus::Failed | RefundStatus::Canceled => RefundStage::Failed,
                };
                let known = self.refunds.entry(id).or_insert((amount, stage));
                *known = (known.0.max(amount), known.1.max(stage));
            }
            News::Dispute(id, amount, status) => {
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
                let known = self.disputes.entry(id).or_insert((amount, stage));
                *known = (known.0.max(amount), known.1.max(stage));
            }
        }
    }

    /// Whether a dispute is open or lost.
    pub fn is_disputed(&self) -> bool {
        let holds = |stage: DisputeStage| matches!(stage, DisputeStage::Open | DisputeStage::Lost);
        self.disputes.values().any(|(_, stage)| holds(*stage))
    }

    /// Minor units that went back by refunds: the larger of the sum of succeeded refunds and the charge's
    /// newest `amount_refunded` less refunds that failed.
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

    /// Minor units that are back with the customer or held by a dispute that is open or lost.
    pub fn amount(&self) -> i64 {
        let held =
            |dispute: &&(i64, DisputeStage)| matches!(dispute.1, DisputeStage::Open | DisputeStage::Lost);
        self.disputes
            .values()
            .filter(held)
            .map(|dispute| dispute.0)
            .fold(self.refunded(), i64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(amount: i64) -> News {
        News::Charge(Timestamp::from_unix(amount), amount)
    }

    fn refund(id: &str, amount: i64, status: RefundStatus) -> News {
        News::Refund(RefundId::new(id).unwrap(), amount, status)
    }

    fn dispute(status: DisputeStatus) -> News {
        News::Dispute(DisputeId::new("dp_1").unwrap(), 1000, status)
    }

    #[test]
    fn news_in_any_order_and_any_number_ends_in_the_same_amount() {
        use DisputeStatus::{Lost, NeedsResponse, WarningClosed, WarningNeedsResponse, Won};
        use RefundStatus::{Failed, Pending, Succeeded};
        for (news, amount) in [
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
        ] {
            let fold = |news: &mut dyn Iterator<Item = News>| {
                let mut reversal = Reversal::default();
                news.for_each(|one| reversal.fold(one));
                reversal.amount()
            };
            assert_eq!(fold(&mut news.iter().cloned()), amount, "{news:?}");
            assert_eq!(
                fold(&mut news.iter().rev().chain(&news).cloned()),
                amount,
                "reversed and doubled: {news:?}"
            );
        }
    }
}
