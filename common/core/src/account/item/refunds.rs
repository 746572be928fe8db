//! Which payments paid for an item's credits, and what their refunds and disputes take.
//!
//! An invoice charges an item from a moment on: it opens a period, or a plan changes within one. Its own payment
//! pays for that, but for the part that it credits. What it credits was paid for by the payments of the period
//! in which the credit starts, and so on back.

use serde::{Deserialize, Serialize};

use super::{Item, Line, Period, Stage, View};
use crate::credits::Credits;
use crate::ids::{InvoiceId, ItemId};
use crate::timestamp::Timestamp;

/// Stands for all that a period's payments paid.
const WHOLE: Credits = Credits::new(1_000_000);

/// Money that an invoice moves from items to others: it credits unused time of the ones, which pays for the
/// others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The items that it credits.
    pub credits: Vec<MovedCredit>,
    /// Minor units that it charges for the items which these credits pay for.
    pub charged: i64,
}

/// What an invoice credits one item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedCredit {
    /// The item.
    pub item: ItemId,
    /// Minor units.
    pub amount: i64,
    /// Where the newest of its credits starts.
    pub at: Timestamp,
}

/// The periods of an item that its payments paid for, by start.
struct Paid {
    /// Those that have begun or will begin.
    periods: Vec<Period>,
    /// Those that were billed in advance and never begin.
    void: Vec<Period>,
}

impl Paid {
    /// The period in which an invoice's newest credit of the item starts.
    fn credited_by(&self, by: &Bill<'_>) -> Option<&Period> {
        credited_by(by, &self.periods).or_else(|| credited_by(by, &self.void))
    }
}

/// The newest of some periods that an invoice may credit. A period that is over when the credit starts is not
/// credited.
fn credited_by<'a>(by: &Bill<'_>, periods: &'a [Period]) -> Option<&'a Period> {
    let before =
        periods.iter().rfind(|period| period.start <= by.credited_at && period.bill().precedes(by))?;
    before.end.is_none_or(|end| end > by.credited_at).then_some(before)
}

/// What an invoice charges an item from a moment on, and what pays for it.
#[derive(Clone, Copy)]
struct Bill<'a> {
    start: Timestamp,
    /// Its start, or `created` of the invoice if that bills it in advance.
    billed_at: Timestamp,
    /// `created` of the event that says the invoice is paid.
    at: Timestamp,
    invoice: &'a InvoiceId,
    /// The invoice's `total` in minor units.
    total: i64,
    /// Minor units that were paid: less than `total` if the customer's balance paid the rest.
    paid: i64,
    /// Minor units that are credited for it.
    credited: i64,
    /// Where the newest credit starts.
    credited_at: Timestamp,
    /// Minor units that are charged.
    charged: i64,
    moved: Option<&'a Moved>,
}

impl Bill<'_> {
    /// Whether its own payment alone paid for it.
    fn is_leaf(&self) -> bool {
        self.credited == 0 && self.moved.is_none()
    }

    /// Whether its payment may have paid a part of another bill. In one second, a bill without credits may
    /// come late.
    fn precedes(&self, other: &Bill<'_>) -> bool {
        let is_older = || self.is_leaf() || (self.at, self.invoice) < (other.at, other.invoice);
        self.invoice != other.invoice
            && (self.billed_at < other.billed_at || (self.billed_at == other.billed_at && is_older()))
    }

    /// What refunds and disputes of its own payment take of a part.
    fn lost(&self, part: Credits, view: &View<'_>) -> Credits {
        part.share(self.back(view), self.total)
    }

    /// Refunded and disputed minor units. A bank may dispute a payment that is refunded already: no more than
    /// was paid goes back.
    fn back(&self, view: &View<'_>) -> i64 {
        (view.refunded)(self.invoice).min(self.paid.max(0))
    }
}

impl Line {
    fn bill(&self) -> Bill<'_> {
        Bill {
            start: self.start,
            billed_at: self.billed_at(),
            at: self.at,
            invoice: &self.invoice,
            total: self.total,
            paid: self.paid.unwrap_or(self.total),
            credited: self.credited.saturating_sub(self.charged_before).max(0),
            credited_at: self.credited_at.unwrap_or(self.start),
            charged: self.charged.unwrap_or(self.amount),
            moved: self.moved.as_deref(),
        }
    }
}

impl Period {
    /// Whether earlier payments paid for a part of it.
    pub(in crate::account) fn is_paid_by_credits(&self) -> bool {
        !self.bill().is_leaf()
    }

    fn bill(&self) -> Bill<'_> {
        Bill {
            start: self.start,
            billed_at: self.billed_at(),
            at: self.at,
            invoice: &self.invoice,
            total: self.total,
            paid: self.paid,
            credited: self.credited.saturating_sub(self.charged_before).max(0),
            credited_at: self.credited_at,
            charged: self.charged,
            moved: self.moved.as_deref(),
        }
    }
}

impl Item {
    fn paid(&self, view: &View<'_>) -> Paid {
        let (void, begun): (Vec<_>, Vec<_>) =
            self.all_periods(view).into_iter().partition(|(_, stage)| *stage == Stage::Void);
        let periods = |all: Vec<(Period, Stage)>| all.into_iter().map(|(period, _)| period).collect();
        Paid { periods: periods(begun), void: periods(void) }
    }

    /// The credits that refunds and disputes take. The granted credits consist of the opening's credits, then
    /// the increments of the charged changes, then what was not charged. Each part loses the share of its own
    /// payment that was refunded or disputed.
    pub(in crate::account) fn lost(
        &self,
        current: &Period,
        charges: &[&Line],
        granted: Credits,
        view: &View<'_>,
    ) -> Credits {
        let paid = self.paid(view);
        let opening = current.worth().min(granted);
        let mut lost = self.lost_of_opening(opening, current, &paid, view);
        let (mut reached, mut filled) = (current.worth(), opening);
        for line in charges {
            let increment = line.worth().minus(reached).min(granted.minus(filled));
            reached = reached.max(line.worth());
            filled = filled.plus(increment);
            lost = lost.plus(self.lost_of_increment(increment, line, current, &paid, view));
        }
        lost
    }

    /// The part of a charge's credits that refunds and disputes take. If the invoice left nothing to pay, what
    /// it credits paid for the charge.
    fn lost_of_increment(
        &self,
        part: Credits,
        line: &Line,
        period: &Period,
        paid: &Paid,
        view: &View<'_>,
    ) -> Credits {
        let bill = line.bill();
        if bill.total > 0 || part == Credits::ZERO {
            return bill.lost(part, view);
        }
        if bill.credited > 0 && bill.credited >= bill.charged {
            return self.lost_of_credited(part, &bill, period, paid, view);
        }
        let (rest, lost) = lost_of_moved(part, &bill, view);
        lost.plus(bill.lost(rest, view))
    }

    /// The part of an opening's credits that refunds and disputes take. If the opening's invoice credits
    /// unused time of the item, the payments of the credited period paid that share. What the invoice charges
    /// for earlier time is paid by these credits first.
    fn lost_of_opening(&self, part: Credits, period: &Period, paid: &Paid, view: &View<'_>) -> Credits {
        let bill = period.bill();
        let credited = part.share(bill.credited, bill.charged);
        let (rest, lost) = lost_of_moved(part.minus(credited), &bill, view);
        match paid.credited_by(&bill).filter(|_| credited > Credits::ZERO) {
            Some(before) => lost
                .plus(self.lost_of_credited(credited, &bill, before, paid, view))
                .plus(bill.lost(rest, view)),
            None => lost.plus(bill.lost(credited.plus(rest), view)),
        }
    }

    /// What refunds and disputes take of a share that the payments of a credited period paid: first the newest
    /// charge of that period, except for the unused time that this charge credits itself, and so on back to the
    /// period's opening.
    fn lost_of_credited(
        &self,
        mut part: Credits,
        by: &Bill<'_>,
        period: &Period,
        paid: &Paid,
        view: &View<'_>,
    ) -> Credits {
        let mut lost = Credits::ZERO;
        for line in self.charges(period, &paid.periods).iter().rev() {
            let bill = line.bill();
            if bill.charged > 0 && bill.start <= by.credited_at && bill.precedes(by) {
                let older = part.share(bill.credited, bill.charged);
                let (rest, moved) = lost_of_moved(part.minus(older), &bill, view);
                lost = lost.plus(moved).plus(bill.lost(rest, view));
                part = older;
            }
        }
        if part == Credits::ZERO {
            return lost;
        }
        lost.plus(self.lost_of_opening(part, period, paid, view))
    }

    /// Whether all that was paid for a period is refunded or disputed, also what the invoice of its opening
    /// credits of earlier payments.
    pub(in crate::account) fn is_refunded(&self, period: &Period, view: &View<'_>) -> bool {
        let paid = self.paid(view);
        let back = |line: &&Line| line.total <= 0 || line.bill().back(view) >= line.total;
        self.lost_of_opening(WHOLE, period, &paid, view) == WHOLE
            && self.charges(period, &paid.periods).iter().all(back)
    }
}

/// What refunds and disputes take of a part through the payments of other items whose credits paid for it, and
/// the rest of the part.
fn lost_of_moved(part: Credits, bill: &Bill<'_>, view: &View<'_>) -> (Credits, Credits) {
    let (mut rest, mut own, mut lost) = (part, Credits::ZERO, Credits::ZERO);
    let Some(moved) = bill.moved else { return (rest, lost) };
    let mut charged = moved.charged;
    for MovedCredit { item, amount, at } in &moved.credits {
        let share = rest.share(*amount, charged);
        rest = rest.minus(share);
        charged = charged.saturating_sub(*amount);
        if share == Credits::ZERO {
            continue;
        }
        let by = Bill { credited_at: *at, ..*bill };
        let item = view.items.get(item);
        let paid = item.map(|item| (item, item.paid(view)));
        match paid.as_ref().and_then(|(item, paid)| Some((item, paid, paid.credited_by(&by)?))) {
            Some((item, paid, period)) => {
                lost = lost.plus(item.lost_of_credited(share, &by, period, paid, view));
            }
            None => own = own.plus(share),
        }
    }
    (own.plus(rest), lost)
}
