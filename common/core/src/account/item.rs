//! What an account knows of one subscription item, and what its bucket holds.
//!
//! Stripe bills *items* in *lines*: each item has its own price, quantity and period. The account keeps the
//! lines of paid invoices and the plans that snapshots show, as far as they may still matter, and computes
//! the bucket from them. So the order in which events arrive cannot matter.
//!
//! **Invariant:** a `fold_*` only adds what it is given. `prune` drops only what no later fact can make
//! count again.
//!
//! The words, in order of use: a *line* of a paid invoice may *open* a period or *charge* a plan change in
//! it. A *sight* is a plan that an `active` or `trialing` snapshot shows in a period. A *run* is a plan in
//! force in the current period, from sight to sight. A period has one *slice*, or one for each month
//! ([`mod@super::slice`]); the bucket holds the credits of the current slice.

mod refunds;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::refunds::{Moved, MovedCredit};
use super::slice::{Carry, MAX_SLICES, Phase, Slice, cuts};
use super::snapshot::{Snapshot, SnapshotItem, Terms, is_false, is_one, one};
use super::swap::Handed;
use crate::catalog::{Catalog, PauseCollection, PlanChange};
use crate::credits::Credits;
use crate::event::SubscriptionStatus;
use crate::ids::{InvoiceId, ItemId, PriceId};
use crate::ledger::LedgerKey;
use crate::reversal::{DisputeSpan, Disputes};
use crate::timestamp::Timestamp;

/// The maximum number of lines of one item: waiting and future lines, and lines of the current period and its
/// predecessors.
const MAX_LINES: usize = 64;
/// The maximum number of sights of one item.
const MAX_SIGHTS: usize = 16;
/// Up to this number all sights are kept: another plan may still show between two that show the same.
const MANY_SIGHTS: usize = 8;
/// The maximum number of credits of time ahead that are kept.
const MAX_CREDITS_AHEAD: usize = 8;
/// The maximum number of snapshots with another status that are kept for the order of sights.
const MAX_BETWEEN: usize = 4;
/// The maximum number of period starts of one item that no line has opened.
const MAX_STARTS: usize = 16;
/// The maximum number of periods before the current one that are kept: each was cut short by the next, or
/// ended before it.
const MAX_PREDECESSORS: usize = 12;
/// An invoice that was made longer than this before the start of a line bills the line's period in advance.
/// One recorded invoice was made a second before its line starts.
pub const MADE_BEFORE_SECONDS: i64 = 60;
/// A future line opens its period this long before the start.
const OPENS_EARLY_SECONDS: i64 = 3_600;
/// The period under which credits of a trial are counted as spent.
const TRIAL: Timestamp = Timestamp::from_unix(0);

/// The record of one item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Lines of paid invoices, by start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lines: Vec<Line>,
    /// Plans that snapshots show, by time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sights: Vec<Sight>,
    /// Snapshots with a status that makes no sight, by time. One of them may lie between two sights of its
    /// second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    between: Vec<Between>,
    /// Starts of periods that snapshots show and that are not the current period's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    starts: Vec<Timestamp>,
    /// Starts of periods that snapshots show as `past_due` or `unpaid`, each with `created` of such a snapshot.
    /// Those before the newest `active` snapshot are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overdue: Vec<(Timestamp, Timestamp)>,
    /// Its prices with the amount 0, as snapshots show them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    free_prices: Vec<PriceId>,
    /// What its trial is worth, by the latest `trialing` snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trial: Option<Trial>,
    /// Credits spent, by the slice and the plan that they were taken from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spent: Vec<Spent>,
    /// The newest moment at which an invoice shows that the item was there: `created` of the invoice, which may
    /// be paid days later, or the start of a line that bills only time before the item was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) billed_at: Option<Timestamp>,
    /// Its first period, once the line of that is dropped. Kept if the subscription has other items, because it
    /// may have replaced one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<Began>,
    /// Starts that may still end packs.
    #[serde(default, skip_serializing_if = "Resets::is_empty")]
    resets: Resets,
    /// Start of a paid period that began when the period before it ended. Older periods do not matter to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    follows_from: Option<Timestamp>,
    /// Credits of time ahead whose lines are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    credits_ahead: Vec<CreditAhead>,
}

/// Time after the period of a line that the line's invoice credits. A period that was billed in advance for
/// this time does not begin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct CreditAhead {
    billed_at: Timestamp,
    /// Start of the period that the invoice bills.
    start: Timestamp,
    /// End of what it credits, excluded.
    until: Timestamp,
    invoice: InvoiceId,
}

/// Starts that decide which packs end. A line that charges a plan change ends packs if a period begins in the
/// same second. The line or the period may arrive long after the other one, so starts stay when lines and
/// periods are dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Resets {
    /// Starts of paid periods.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    periods: BTreeSet<Timestamp>,
    /// Starts of periods that snapshots show.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    shown: BTreeSet<Timestamp>,
    /// Starts of lines that charge a change to a plan whose periods end packs.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    charges: BTreeSet<Timestamp>,
    /// Starts of those lines that open a period if a snapshot shows their start: no line of their invoice starts
    /// later.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    openers: BTreeSet<Timestamp>,
    /// Starts of periods that end packs and that a later fact may close: of a renewal's zero line, or of a
    /// period that was billed in advance.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    unproven: BTreeSet<Timestamp>,
}

impl Resets {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Keeps the newest starts at which packs may still end.
    fn prune(&mut self, oldest_pack: Option<Timestamp>) {
        let Self { periods, shown, charges, openers, unproven } = self;
        for starts in [periods, shown, charges, openers, unproven] {
            starts.retain(|start| oldest_pack.is_some_and(|pack| pack < *start));
            while starts.len() > MAX_STARTS {
                starts.pop_first();
            }
        }
    }
}

/// A first period as far as it matters for what the item takes over of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Began {
    start: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<Timestamp>,
    /// Whether snapshots show an earlier start.
    #[serde(default, skip_serializing_if = "is_false")]
    within: bool,
    terms: Terms,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    quantity: u64,
}

/// The lines of one paid invoice for one item, one start and one plan.
///
/// ```json
/// {"invoice":"in_1","at":1759312801,"start":1759312800,"end":1761904800,"price":"price_1",
///  "terms":{"plan":"pro","credits":5000},"amount":2000,"total":2000}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The invoice.
    pub invoice: InvoiceId,
    /// `created` of the event that says it is paid.
    pub at: Timestamp,
    /// `created` of the invoice, if that bills the line in advance ([`MADE_BEFORE_SECONDS`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Timestamp>,
    /// Start of the service.
    pub start: Timestamp,
    /// End of the service, excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// The price.
    pub price: PriceId,
    /// How many; left out when 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub quantity: u64,
    /// What the plan is worth.
    pub terms: Terms,
    /// Minor units, as the line says: before discounts, but for most prorations.
    pub amount: i64,
    /// Marked as a proration.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flagged: bool,
    /// The invoice's `billing_reason` is `subscription_create`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub first: bool,
    /// The invoice's `billing_reason` is `subscription_cycle`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cycle: bool,
    /// The line says that the price's own amount is 0.
    #[serde(default, skip_serializing_if = "is_false")]
    pub free: bool,
    /// The invoice's `total` in minor units: after discounts and tax, before the customer's balance.
    pub total: i64,
    /// Minor units that were paid, through Stripe or outside it; absent when equal to `total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paid: Option<i64>,
    /// Minor units by which the invoice credits unused time of the item (its negative lines), after
    /// discounts.
    #[serde(default, skip_serializing_if = "is_zero_amount")]
    pub credited: i64,
    /// Where the newest of these credits starts; absent when that is `start` and `credited` is not 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credited_at: Option<Timestamp>,
    /// Where the last of these credits ends, excluded; absent unless that is after `end`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credited_until: Option<Timestamp>,
    /// Minor units of the item's positive lines on the invoice that start earlier, after discounts. The
    /// credits pay for them first.
    #[serde(default, skip_serializing_if = "is_zero_amount")]
    pub charged_before: i64,
    /// Minor units of the item's positive lines on the invoice with this start, after discounts; absent when
    /// equal to `amount`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged: Option<i64>,
    /// What the invoice credits other items and charges for this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Box<Moved>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero_amount(amount: &i64) -> bool {
    *amount == 0
}

impl Line {
    fn worth(&self) -> Credits {
        self.terms.worth(self.quantity)
    }

    /// Whether the line opens its period without a matching snapshot: an unflagged positive line, or any
    /// positive line of a subscription's first invoice.
    fn opens_alone(&self) -> bool {
        self.amount > 0 && (!self.flagged || self.first)
    }

    fn charges(&self) -> bool {
        self.flagged && self.amount >= 0
    }

    /// Whether its invoice credits unused time of the item, also if that time cost nothing.
    fn credits_time(&self) -> bool {
        self.credited > 0 || self.credited_at.is_some()
    }

    /// What its invoice credits, if that lasts longer than what the line bills.
    fn credit_ahead(&self) -> Option<CreditAhead> {
        let (until, invoice) = (self.credited_until?, self.invoice.clone());
        Some(CreditAhead { billed_at: self.billed_at(), start: self.start, until, invoice })
    }

    /// Whether it ends packs if a period begins at its start.
    fn ends_packs(&self) -> bool {
        self.amount > 0 && self.terms.resets()
    }

    /// Whether it ends packs, and no later fact can close its period, because it was not billed in advance.
    fn ends_packs_for_good(&self) -> bool {
        self.ends_packs() && self.made.is_none()
    }

    /// When it was billed: at its start, unless it was billed in advance.
    fn billed_at(&self) -> Timestamp {
        self.made.unwrap_or(self.start)
    }

    fn opened_by(&self, now: Timestamp) -> bool {
        self.start.plus_seconds(-OPENS_EARLY_SECONDS) <= now.max(self.at)
    }
}

/// A plan that an `active` or `trialing` snapshot shows in the period that starts at `start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sight {
    start: Timestamp,
    /// `created` of the event.
    at: Timestamp,
    price: PriceId,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    quantity: u64,
    terms: Terms,
    #[serde(default, skip_serializing_if = "is_false")]
    trialing: bool,
    /// When the trial ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trial_end: Option<Timestamp>,
    digest: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<u32>,
}

/// A snapshot as far as it matters for the order of the others of its second.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Between {
    /// `created` of the event.
    at: Timestamp,
    digest: u32,
    before: u32,
}

/// What a trial is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trial {
    at: Timestamp,
    price: PriceId,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    quantity: u64,
    terms: Terms,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<Timestamp>,
    digest: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Spent {
    /// Start of the slice.
    start: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    plan: String,
    credits: Credits,
    /// Whether they were taken from the credits that the slice took over from the one before it.
    #[serde(default, skip_serializing_if = "is_false")]
    carried: bool,
    /// Whether they were spent in another system, as an import says.
    #[serde(default, skip_serializing_if = "is_false")]
    imported: bool,
}

/// The slice of an item that ran at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunningSlice {
    /// The slice and the plan that spends are counted under.
    pub spends_of: (Timestamp, String),
    /// Its planned end, excluded.
    pub end: Option<Timestamp>,
    /// What its bucket could hold then: its credits, less what refunds and disputes had taken by then.
    pub worth: Credits,
}

/// A paid period of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// Its start.
    pub start: Timestamp,
    /// The start that snapshots show. It is earlier than `start` if the item was added to the subscription
    /// within the period.
    shown: Timestamp,
    /// Its end, excluded, if the line has one.
    pub end: Option<Timestamp>,
    /// `created` of the event that opened it.
    pub at: Timestamp,
    /// `created` of its invoice, if that bills it in advance.
    made: Option<Timestamp>,
    /// The invoice that opened it.
    pub invoice: InvoiceId,
    /// The price that was paid for.
    pub price: PriceId,
    /// How many.
    pub quantity: u64,
    /// What the plan is worth.
    pub terms: Terms,
    total: i64,
    paid: i64,
    /// Whether it has an amount before discounts.
    costs: bool,
    /// Minor units by which the invoice credits unused time of the item.
    credited: i64,
    /// Whether it credits any, also if that time cost nothing.
    pub(super) credits_time: bool,
    credited_at: Timestamp,
    charged_before: i64,
    charged: i64,
    moved: Option<Box<Moved>>,
    /// Whether no later fact can close it. A `trialing` snapshot closes the period of a renewal's zero line.
    /// A newer invoice, or the item's end, closes one that was billed in advance.
    pub(super) proven: bool,
    /// Whether it ends add-ons: a line with this start bills a plan without seats. If a subscription changes
    /// its plan in the second in which it starts, either invoice may arrive first, so any such line counts.
    pub(super) resets: bool,
}

impl Period {
    /// What the opening grants.
    pub fn worth(&self) -> Credits {
        self.terms.worth(self.quantity)
    }

    fn billed_at(&self) -> Timestamp {
        self.made.unwrap_or(self.start)
    }

    /// Whether it ends with another period, or is the first one of an item that was added within the
    /// subscription's period.
    pub(super) fn is_prorated_with(&self, other: &Self) -> bool {
        self.shown < self.start || self.end == other.end
    }

    /// The last of some periods that began before it, if that had not ended when it began.
    pub(super) fn cut_short<'a>(&self, periods: &'a [Self]) -> Option<&'a Self> {
        let before = periods.iter().rfind(|before| before.start < self.start);
        before.filter(|before| before.end.is_none_or(|end| end > self.start))
    }

    /// What counts as spent in it of what was spent in a period that it cut short: the share of its invoice
    /// that was not paid, or all if nothing was charged.
    pub(super) fn unpaid_share(&self, spent: Credits) -> Credits {
        if self.total <= 0 {
            return spent;
        }
        spent.share(self.total.saturating_sub(self.paid), self.total)
    }
}

/// Whether a period has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has begun, also if it is over.
    Open,
    /// It begins later.
    Ahead,
    /// It never begins.
    Void,
}

/// What the computation of a bucket needs besides the item.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// All items of the subscription.
    pub items: &'a BTreeMap<ItemId, Item>,
    /// How plan changes count.
    pub plan_change: PlanChange,
    /// Minor units of an invoice's payments that were refunded or disputed.
    pub refunded: &'a dyn Fn(&InvoiceId) -> i64,
    /// The same at a moment.
    pub refunded_at: &'a dyn Fn(&InvoiceId, Timestamp) -> i64,
    /// The disputes of the user's payments, by document and payment.
    pub disputes: &'a Disputes,
    /// Whether the subscription's trial grants credits.
    pub trial_counts: bool,
    /// What snapshots say about pauses, by time.
    pub phases: &'a [Phase],
    /// What `pause_collection` means.
    pub pause_collection: PauseCollection,
    /// When the item ended, unless failed payments ended it. No month that starts later is granted, and no
    /// period that was billed in advance.
    pub ended: Option<Timestamp>,
    /// How many periods before the current one are kept because their credits may be carried over.
    pub carried_periods: u64,
    /// The time of an import. Credits that were granted before it are part of the imported balance.
    pub imported_at: Option<Timestamp>,
    /// What the items that it replaced hand over to its first period.
    pub handed: &'a Handed,
    /// Days after the last paid period for which carried credits stay.
    pub grace_days: i64,
    /// When the oldest pack was bought that a period may still end.
    pub oldest_pack: Option<Timestamp>,
    /// The current time.
    pub now: Timestamp,
}

impl View<'_> {
    /// The disputes of an invoice's payments.
    pub(super) fn disputes_of(&self, invoice: &InvoiceId) -> Vec<DisputeSpan> {
        if self.disputes.is_empty() {
            return Vec::new();
        }
        let payments = self.disputes.get(&LedgerKey::invoice(invoice));
        payments.into_iter().flat_map(BTreeMap::values).flatten().copied().collect()
    }
}

/// What an item's bucket holds, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// What is left to spend.
    pub left: Credits,
    /// What it would hold without refunds and spends.
    pub granted: Credits,
    /// What refunds and disputes take of it.
    pub lost: Credits,
    /// What was spent of it.
    pub spent: Credits,
    /// The period it belongs to; without one it is the trial's.
    pub period: Option<Period>,
    /// The slice of that period.
    pub slice: Slice,
    /// How many slices of the period were granted before it.
    pub slices_before: usize,
    /// What the plan in force at the slice's start is worth.
    pub opened_with: Credits,
    /// What was taken over from earlier slices.
    pub carries: Vec<Carry>,
    /// When the next month of the period falls due.
    pub next_month: Option<Timestamp>,
    /// The earlier of `next_month` and the time at which a future line opens its period.
    pub next: Option<Timestamp>,
    /// The plan in force, if it is not the plan that the period was opened with.
    pub changed_to: Option<Terms>,
    /// How many units of it.
    pub quantity: u64,
    /// Ledger keys of plan changes that count, as `<plan>#<n>`, each with what the plan is worth.
    pub changes: Vec<(String, Credits)>,
    /// The invoices that opened the period and charged changes in it.
    pub documents: Vec<InvoiceId>,
    /// Whether it is the bucket of a trial.
    pub trial: bool,
    /// What an item that replaces this one takes over.
    pub(super) hands_over: Handed,
}

impl Bucket {
    /// What was spent of the trial, and whether a period with an amount was paid for.
    pub(super) fn hands_over_of_trial(&self) -> (Credits, bool) {
        (if self.trial { self.spent } else { Credits::ZERO }, self.hands_over.was_paid)
    }

    /// The slice and the plan that spends are counted under.
    pub(super) fn spends_of(&self) -> (Timestamp, String) {
        match &self.period {
            Some(period) => {
                let plan = self.changed_to.as_ref().unwrap_or(&period.terms).plan.clone();
                (self.slice.start, plan)
            }
            None => (TRIAL, String::new()),
        }
    }
}

impl Item {
    /// The number of lines, plans shown and spends that are kept.
    pub(super) fn records(&self) -> usize {
        self.lines.len() + self.sights.len() + self.spent.len()
    }

    /// Adds a line of a paid invoice. It shows that the item was there at `named_at`. A later line of the same
    /// price and period has the terms of the first one, also if the catalog has changed since.
    pub(super) fn fold_line(&mut self, mut line: Line, named_at: Timestamp) {
        self.billed_at = self.billed_at.max(Some(named_at));
        if let Some(known) =
            self.lines.iter().find(|known| known.start == line.start && known.price == line.price)
        {
            line.terms = known.terms.clone();
        }
        self.lines.push(line);
        self.sort_lines();
    }

    fn sort_lines(&mut self) {
        self.lines.sort_by(|a, b| {
            (a.start, a.at, &a.invoice, a.flagged).cmp(&(b.start, b.at, &b.invoice, b.flagged))
        });
    }

    /// Compares a line with what is known of its invoice. A line that was dropped is not compared. Lines of
    /// tiered prices are summed up only for a plan with seats, so quantities are compared only if the catalog
    /// still says the same about seats.
    ///
    /// # Errors
    /// The known line, when the invoice billed another price or quantity for the same start.
    pub(super) fn compare_line(&self, line: &Line) -> Result<(), Box<Line>> {
        let same = |known: &&Line| {
            known.invoice == line.invoice && known.start == line.start && known.flagged == line.flagged
        };
        let agrees = |known: &Line| {
            known.price == line.price
                && (known.quantity == line.quantity || known.terms.seats != line.terms.seats)
        };
        match self.lines.iter().find(same) {
            Some(known) if !self.lines.iter().filter(same).any(agrees) => Err(Box::new(known.clone())),
            Some(_) | None => Ok(()),
        }
    }

    /// Adds what a snapshot shows of the item.
    pub(super) fn fold_sight(&mut self, snapshot: &Snapshot, item: &SnapshotItem) {
        let Some(start) = item.start else { return };
        if !self.starts.contains(&start) {
            self.starts.push(start);
            self.starts.sort();
        }
        if matches!(snapshot.status, SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid) {
            self.fold_overdue(start, snapshot.created);
        }
        if item.free && !self.free_prices.contains(&item.price) {
            self.free_prices.push(item.price.clone());
            self.free_prices.sort();
        }
        let trialing = snapshot.status == SubscriptionStatus::Trialing;
        if trialing {
            self.resets.unproven.remove(&start);
        }
        let Some(terms) = item.terms.clone() else { return };
        if trialing {
            let trial = Trial {
                at: snapshot.created,
                price: item.price.clone(),
                quantity: item.quantity,
                terms: self.trial_terms(&item.price, &terms.plan).unwrap_or(&terms).clone(),
                end: item.end,
                digest: snapshot.digest,
                before: snapshot.before,
            };
            if self.trial.as_ref().is_none_or(|known| follows(&trial, known)) {
                self.trial = Some(trial);
            }
        }
        if trialing || snapshot.status == SubscriptionStatus::Active {
            // A plan keeps the terms with which it was first seen in the period, also after an edit of the
            // catalog.
            let here = || self.sights.iter().filter(|sight| sight.start == start);
            let known = here()
                .find(|sight| sight.price == item.price)
                .or_else(|| here().find(|sight| sight.terms.plan == terms.plan));
            let terms = known.map_or(terms, |known| known.terms.clone());
            let sight = Sight {
                start,
                at: snapshot.created,
                price: item.price.clone(),
                quantity: item.quantity,
                terms,
                trialing,
                trial_end: item.end.filter(|_| trialing),
                digest: snapshot.digest,
                before: snapshot.before,
            };
            if !self.sights.contains(&sight) {
                self.sights.push(sight);
                self.sort_sights();
            }
        } else if let Some(before) = snapshot.before {
            let between = Between { at: snapshot.created, digest: snapshot.digest, before };
            if !self.between.contains(&between) {
                self.between.push(between);
                self.sort_sights();
            }
        }
        self.take_trial_from_sights();
    }

    /// If several snapshots of the trial's second show it, the last one in their order counts. Two of them
    /// alone do not tell the order of three.
    fn take_trial_from_sights(&mut self) {
        let Some(trial) = &self.trial else { return };
        let of_second = |sight: &&Sight| sight.trialing && sight.at == trial.at;
        let Some(last) = self.sights.iter().rfind(of_second) else { return };
        let Sight { at, quantity, trial_end: end, digest, before, .. } = *last;
        let terms = self.trial_terms(&last.price, &last.terms.plan).unwrap_or(&last.terms).clone();
        self.trial = Some(Trial { at, price: last.price.clone(), quantity, terms, end, digest, before });
    }

    /// Sorts by time. Within one second a sight follows the sight that it names as its predecessor, also if
    /// snapshots with another status lie between; otherwise the status decides, then the price and the
    /// quantity, as for whole snapshots.
    fn sort_sights(&mut self) {
        fn key(sight: &Sight) -> impl Ord {
            let Sight { start, at, price, quantity, digest, before, trial_end, .. } = sight;
            (*start, *at, !sight.trialing, price, *quantity, *digest, *before, *trial_end)
        }
        self.between.sort();
        self.sights.sort_by(|one, other| key(one).cmp(&key(other)));
        let seconds = self.sights.chunk_by_mut(|a, b| (a.start, a.at) == (b.start, b.at));
        seconds.for_each(|second| chain(second, &self.between));
    }

    fn fold_overdue(&mut self, start: Timestamp, at: Timestamp) {
        if !self.overdue.contains(&(start, at)) {
            self.overdue.push((start, at));
            self.overdue.sort();
        }
    }

    /// The terms with which a trial of this price or plan was first seen.
    fn trial_terms(&self, price: &PriceId, plan: &str) -> Option<&Terms> {
        let shown = self.trial.iter().map(|trial| (&trial.price, &trial.terms));
        let sights = self.sights.iter().filter(|sight| sight.trialing);
        let billed = self.trial_line().map(|line| (&line.price, &line.terms));
        let all =
            || shown.clone().chain(sights.clone().map(|sight| (&sight.price, &sight.terms))).chain(billed);
        let known = all().find(|(known, _)| *known == price);
        known.or_else(|| all().find(|(_, terms)| terms.plan == plan)).map(|(_, terms)| terms)
    }

    /// Takes over what is known of an item that turns out to be this one.
    pub(super) fn absorb(&mut self, other: Self) {
        self.billed_at = self.billed_at.max(other.billed_at);
        self.began = self.began.take().into_iter().chain(other.began).min_by_key(|began| began.start);
        self.lines.extend(other.lines);
        self.sort_lines();
        self.sights.extend(other.sights);
        self.between.extend(other.between);
        self.sort_sights();
        for (start, at) in other.overdue {
            self.fold_overdue(start, at);
        }
        self.starts.extend(other.starts);
        self.starts.sort();
        self.starts.dedup();
        self.free_prices.extend(other.free_prices);
        self.free_prices.sort();
        self.free_prices.dedup();
        self.trial = self.trial.take().or(other.trial);
        self.resets.periods.extend(other.resets.periods);
        self.resets.shown.extend(other.resets.shown);
        self.resets.charges.extend(other.resets.charges);
        self.resets.openers.extend(other.resets.openers);
        self.resets.unproven.extend(other.resets.unproven);
        self.follows_from = self.follows_from.max(other.follows_from);
        self.credits_ahead.extend(other.credits_ahead);
        for spent in other.spent {
            self.add_spent(spent);
        }
    }

    /// The terms that a period has under a name that the plan had before. A flagged line belongs to the period
    /// that it lies in, else the period has this start.
    pub(super) fn terms_before_rename(
        &self,
        plan: &str,
        start: Timestamp,
        flagged: bool,
        catalog: &Catalog,
    ) -> Option<&Terms> {
        let lies_within =
            |line: &Line| flagged && line.start < start && line.end.is_none_or(|end| start < end);
        let lines = self.lines.iter().filter(|line| line.start == start || lies_within(line));
        let sights = self.sights.iter().filter(|sight| sight.start == start);
        let mut all = lines.map(|line| &line.terms).chain(sights.map(|sight| &sight.terms));
        all.find(|terms| terms.plan != plan && catalog.present_name(&terms.plan) == plan)
    }

    /// The plan that was last known under a price, for a price that has left the catalog.
    pub(super) fn terms_of(&self, price: &PriceId) -> Option<&Terms> {
        self.lines.iter().rev().find(|line| line.price == *price).map(|line| &line.terms)
    }

    /// The earliest start of a line that pays for it.
    pub(super) fn known_since(&self) -> Option<Timestamp> {
        self.lines.iter().map(|line| line.start).min()
    }

    /// When the newest of its lines was paid.
    pub(super) fn paid_at(&self) -> Option<Timestamp> {
        self.lines.iter().map(|line| line.at).max()
    }

    /// The earliest start of a line with an amount.
    pub(super) fn paid_since(&self) -> Option<Timestamp> {
        self.lines.iter().filter(|line| line.amount > 0).map(|line| line.start).min()
    }

    /// Whether a line bills a price.
    pub(super) fn bills(&self, price: &PriceId) -> bool {
        self.lines.iter().any(|line| line.price == *price)
    }

    /// Whether any of its lines is kept.
    pub fn is_billed(&self) -> bool {
        !self.lines.is_empty()
    }

    /// How many units the newest paid line bills.
    pub(super) fn paid_quantity(&self) -> Option<u64> {
        self.lines.iter().rev().find(|line| line.amount >= 0).map(|line| line.quantity)
    }

    /// The invoices with a line here that may still count.
    pub(super) fn invoices(&self) -> impl Iterator<Item = &InvoiceId> {
        self.lines.iter().map(|line| &line.invoice)
    }

    /// The starts of the lines of an invoice.
    pub(super) fn starts_billed_by(&self, invoice: &InvoiceId) -> impl Iterator<Item = Timestamp> {
        self.lines.iter().filter(move |line| line.invoice == *invoice).map(|line| line.start)
    }

    /// Whether an invoice has a line here that may still count.
    pub(super) fn names_document(&self, document: &LedgerKey) -> bool {
        self.lines.iter().any(|line| document.is_invoice(&line.invoice))
    }

    /// Whether an invoice has a line here that belongs to no period yet.
    pub(super) fn waits(&self, document: &LedgerKey) -> bool {
        let last = self.lines.iter().filter(|line| !line.flagged).map(|line| line.start).max();
        self.lines
            .iter()
            .any(|line| document.is_invoice(&line.invoice) && (line.amount == 0 || Some(line.start) >= last))
    }

    /// The paid periods that have opened by now, the current one last.
    pub(super) fn periods(&self, view: &View<'_>) -> Vec<Period> {
        begun(self.all_periods(view))
    }

    /// Whether a line of it was billed in advance.
    pub(super) fn is_billed_in_advance(&self) -> bool {
        self.lines.iter().any(|line| line.made.is_some())
    }

    /// The starts of the periods, and of their months, that never begin.
    fn void_starts(&self, view: &View<'_>) -> Vec<Timestamp> {
        if !self.is_billed_in_advance() {
            return Vec::new();
        }
        let (void, begun): (Vec<_>, Vec<_>) =
            self.all_periods(view).into_iter().partition(|(_, stage)| *stage == Stage::Void);
        let cuts = |all: &[(Period, Stage)]| -> Vec<Timestamp> {
            all.iter().flat_map(|(period, _)| cuts(period.start, period.end)).collect()
        };
        let begun = cuts(&begun);
        cuts(&void).into_iter().filter(|start| !begun.contains(start)).collect()
    }

    /// The first period that has opened by now, and whether its line is dropped. What a dropped period took
    /// over of another item does not count any more.
    pub(super) fn first_period(&self, view: &View<'_>) -> Option<(Period, bool)> {
        let first = self.periods(view).into_iter().next()?;
        let Some(began) = self.began.clone().filter(|began| began.start < first.start) else {
            return Some((first, false));
        };
        let Began { start, end, within, terms, quantity } = began;
        let shown = start.plus_seconds(-i64::from(within));
        Some((Period { start, shown, end, terms, quantity, ..first }, true))
    }

    /// Whether a line never opens its period. Only a line that was billed in advance can be void: if its item
    /// ended at or before its start, or if a newer invoice opened an earlier period, as for another interval,
    /// and that period, or what the invoice credits, lasts beyond this start.
    fn is_void(&self, line: &Line, before: &[(Period, Stage)], ended: Option<Timestamp>) -> bool {
        let Some(made) = line.made else { return false };
        let is_billed_anew = before.iter().any(|(one, stage)| {
            *stage != Stage::Void
                && one.invoice != line.invoice
                && one.billed_at() >= made
                && one.end.is_some_and(|end| end > line.start)
        });
        let credits = self.lines.iter().filter_map(Line::credit_ahead);
        let mut credits = self.credits_ahead.iter().cloned().chain(credits);
        ended.is_some_and(|ended| ended <= line.start)
            || is_billed_anew
            || credits.any(|one| {
                one.invoice != line.invoice
                    && one.billed_at >= made
                    && one.start < line.start
                    && one.until > line.start
            })
    }

    /// All periods that lines open, by start. Of the lines of one invoice that open at once, the latest
    /// opens. A start may have a void period, and another one that a later invoice bills.
    fn all_periods(&self, view: &View<'_>) -> Vec<(Period, Stage)> {
        let mut periods: Vec<(Period, Stage)> = Vec::new();
        let mut starts: Vec<Timestamp> = self.lines.iter().map(|line| line.start).collect();
        starts.dedup();
        for start in starts {
            let here = self.lines.iter().filter(|line| line.start == start);
            let (void, lasting): (Vec<&Line>, Vec<&Line>) =
                here.partition(|line| self.is_void(line, &periods, view.ended));
            let is_first = periods.is_empty();
            for (here, is_void) in [(void, true), (lasting, false)] {
                let Some((period, opens)) = self.opening(start, &here, is_first, view.now) else { continue };
                let opens_at = start.plus_seconds(-OPENS_EARLY_SECONDS);
                periods.retain(|(before, _)| before.invoice != period.invoice || opens_at > before.at);
                let begins = if opens { Stage::Open } else { Stage::Ahead };
                periods.push((period, if is_void { Stage::Void } else { begins }));
            }
        }
        periods
    }

    /// The period that some lines of one start open, and whether it has opened by now. `is_first`: the item
    /// has no earlier one.
    fn opening(
        &self,
        start: Timestamp,
        here: &[&Line],
        is_first: bool,
        now: Timestamp,
    ) -> Option<(Period, bool)> {
        let here = || here.iter().copied();
        let opens = |line: &&Line| line.opens_alone() || self.zero_line_opens(line);
        // Stripe prorates the first period of an item that is added within the subscription's period.
        // Snapshots before 2025-03-31.basil show only the subscription's period.
        let is_shown = self.starts.contains(&start);
        let shown_before = self.starts.iter().copied().rfind(|shown| *shown < start);
        let is_added = |line: &Line| is_first && shown_before.is_some() && !line.credits_time();
        let charges = |line: &&Line| line.flagged && line.amount > 0 && (is_shown || is_added(line));
        let opening = here()
            .filter(opens)
            .min_by_key(|line| (line.at, &line.invoice))
            .or_else(|| here().filter(charges).min_by_key(|line| (line.at, &line.invoice)));
        let opening = opening?;
        let shown_before = shown_before.filter(|_| !is_shown && !opens(&opening));
        // If one invoice has several plans for one item and start, the plan with the most credits counts.
        let most = here()
            .filter(|line| {
                line.invoice == opening.invoice && line.flagged == opening.flagged && line.amount >= 0
            })
            .max_by_key(|line| (line.worth(), &line.terms.plan))
            .unwrap_or(opening);
        let period = Period {
            start,
            shown: shown_before.unwrap_or(start),
            end: most.end,
            at: opening.at,
            made: opening.made,
            invoice: most.invoice.clone(),
            price: most.price.clone(),
            quantity: most.quantity,
            terms: most.terms.clone(),
            total: most.total,
            paid: most.paid.unwrap_or(most.total),
            costs: here().any(|line| line.invoice == most.invoice && line.amount > 0),
            credited: most.credited,
            credits_time: most.credits_time(),
            credited_at: most.credited_at.unwrap_or(start),
            charged_before: most.charged_before,
            charged: most.charged.unwrap_or(most.amount),
            moved: most.moved.clone(),
            proven: opening.made.is_none() && (opening.amount > 0 || self.is_free(opening)),
            resets: here().any(|line| line.ends_packs() || (line.terms.resets() && opens(&line))),
        };
        Some((period, opening.opened_by(now)))
    }

    /// The starts at which both a period began and a line charged a change.
    pub(super) fn charged_resets(&self) -> impl Iterator<Item = Timestamp> {
        let Resets { periods, shown, charges, openers, .. } = &self.resets;
        let charged = self.lines.iter().filter(|line| line.ends_packs_for_good()).map(|line| line.start);
        let paid = charged.chain(charges.iter().copied()).filter(|start| periods.contains(start));
        let opened = self.openers().map(|line| line.start).chain(openers.iter().copied());
        paid.chain(opened.filter(|start| shown.contains(start) || self.starts.contains(start)))
    }

    /// The lines that end packs and open a period if a snapshot shows their start.
    fn openers(&self) -> impl Iterator<Item = &Line> {
        let is_later = |one: &Line, other: &Line| other.invoice == one.invoice && other.start > one.start;
        let is_last =
            move |one: &Line| !self.lines.iter().any(|other| other.amount > 0 && is_later(one, other));
        self.lines.iter().filter(move |line| line.ends_packs_for_good() && is_last(line))
    }

    /// Starts of its periods that end packs and that a later fact may still close.
    pub(super) fn unproven_resets(&self, view: &View<'_>) -> BTreeSet<Timestamp> {
        let all = self.all_periods(view);
        let is_void = |start: &Timestamp| {
            let mut here = all.iter().filter(|(period, _)| period.start == *start).peekable();
            here.peek().is_some() && here.all(|(_, stage)| *stage == Stage::Void)
        };
        let known = self.resets.unproven.iter().copied().filter(|start| !is_void(start));
        let mut starts: BTreeSet<Timestamp> = known.collect();
        let unproven = |period: &Period| !period.proven && period.resets;
        starts.extend(begun(all).into_iter().filter(unproven).map(|period| period.start));
        starts
    }

    /// A zero line opens a period if its price costs nothing, or if it is on the invoice of a renewal and no
    /// snapshot of that period is `trialing`. Any other zero line is a trial's, or has no effect.
    fn zero_line_opens(&self, line: &Line) -> bool {
        if line.amount != 0 || line.flagged {
            return false;
        }
        let trialing = || self.sights.iter().any(|sight| sight.start == line.start && sight.trialing);
        self.is_free(line) || (line.cycle && !trialing())
    }

    fn is_free(&self, line: &Line) -> bool {
        line.free || self.free_prices.contains(&line.price)
    }

    /// When the first unpaid period was to be paid, while the subscription is overdue in the period that starts
    /// at `shown`: at its start, or with invoices sent by e-mail the given number of days later. A subscription
    /// that stays `past_due` goes on to further periods.
    pub(super) fn unpaid_since(
        &self,
        shown: Timestamp,
        paid: Option<&Period>,
        days_until_due: Option<i64>,
    ) -> Timestamp {
        let first = self.overdue.iter().map(|(start, _)| *start).min().unwrap_or(shown);
        let paid_until = paid.and_then(|period| period.end);
        let first = first.max(paid_until.unwrap_or(first)).min(shown);
        let Some(days) = days_until_due else { return first };
        // An invoice may fall due after the next period has begun. Snapshots then show the next period, whose
        // own invoice is not due yet.
        let seen = self.overdue.iter().map(|(_, at)| *at).min();
        let fell_due = |start: &Timestamp| Some(start.plus_days(days)) <= seen;
        let is_trial = |start: &Timestamp| self.sights.iter().any(|one| one.trialing && one.start == *start);
        let mut earlier = self.starts.iter().copied().chain(paid_until).collect::<Vec<_>>();
        earlier.retain(|start| paid_until <= Some(*start) && fell_due(start) && !is_trial(start));
        let unpaid = earlier.into_iter().max().filter(|_| !fell_due(&first)).unwrap_or(first);
        unpaid.plus_days(days)
    }

    /// `created` of the newest `active` or `trialing` snapshot.
    fn in_order_at(&self) -> Option<Timestamp> {
        self.sights.iter().map(|sight| sight.at).max()
    }

    /// What the bucket holds.
    pub(super) fn bucket(&self, view: &View<'_>) -> Bucket {
        let all = self.all_periods(view);
        let ahead = all.iter().filter(|(_, stage)| *stage == Stage::Ahead).map(|(period, _)| period.start);
        let opens = ahead.min().map(|start| start.plus_seconds(-OPENS_EARLY_SECONDS));
        let periods = begun(all);
        let Some(current) = periods.last() else {
            return Bucket { next: opens, ..self.trial_bucket(view) };
        };
        let slices = self.slices(&periods, view);
        let mut bucket = self.slice_bucket(None, slices.len().saturating_sub(1), &slices, &periods, view);
        bucket.carries = self.carries(&slices, &periods, view);
        bucket.next_month = self.next_slice(current, view);
        bucket.next = bucket.next_month.into_iter().chain(opens).min();
        bucket
    }

    /// The zero line of a trial whose snapshots have not arrived.
    fn trial_line(&self) -> Option<&Line> {
        self.lines.iter().rev().find(|line| line.first && line.amount == 0)
    }

    /// What its trial is worth, if it has one.
    pub(super) fn trial_worth(&self) -> Option<Credits> {
        let shown = self.trial.as_ref().map(|trial| trial.terms.trial_worth(trial.quantity));
        shown.or_else(|| self.trial_line().map(|line| line.terms.trial_worth(line.quantity)))
    }

    fn trial_bucket(&self, view: &View<'_>) -> Bucket {
        let Some(worth) = self.trial_worth() else { return Bucket::default() };
        let counts = view.trial_counts && !view.handed.was_paid;
        let granted = if counts { worth } else { Credits::ZERO };
        let spent = self.spent_of(|start| start == TRIAL).plus(view.handed.total());
        Bucket { left: granted.minus(spent), granted, spent, trial: true, ..Bucket::default() }
    }

    /// What a slice holds, or held at `next`, when the next one was granted.
    pub(super) fn slice_bucket(
        &self,
        next: Option<Timestamp>,
        place: usize,
        slices: &[Slice],
        periods: &[Period],
        view: &View<'_>,
    ) -> Bucket {
        let Some(slice) = slices.get(place) else { return Bucket::default() };
        let Some(current) = periods.get(slice.period) else { return Bucket::default() };
        let before_next = |at: Timestamp| next.is_none_or(|next| at < next);
        let mut runs = self.runs(current);
        runs.retain(|run| run.at.is_none_or(before_next));
        let Some(Run { terms, quantity, .. }) = runs.last().cloned() else { return Bucket::default() };
        let worth = terms.worth(quantity);
        let charges = self.charges(current, periods);
        let charges: Vec<&Line> = charges.into_iter().filter(|line| before_next(line.start)).collect();
        let opening = current.worth();
        let granted = match view.plan_change {
            PlanChange::AtOnce => worth,
            PlanChange::OnPayment => {
                // More credits count when a paid line names the plan and at least the quantity; fewer at
                // once.
                let is_paid = |run: &Run| {
                    let pays = |price: &PriceId, terms: &Terms, quantity: u64| {
                        run.sells(price, terms) && (!terms.seats || quantity >= run.quantity)
                    };
                    pays(&current.price, &current.terms, current.quantity)
                        || charges.iter().any(|line| pays(&line.price, &line.terms, line.quantity))
                };
                runs.iter().fold(opening, |worth, run| {
                    if run.worth() <= worth || is_paid(run) { run.worth() } else { worth }
                })
            }
        };
        // Within a slice, the plan in force at its start is the first one.
        let opened = in_force(&runs, slice.start).cloned();
        let after_start = |run: &Run| run.at.is_some_and(|at| at > slice.start);
        if let Some(opened) = opened.filter(|_| slice.index > 0) {
            runs.retain(after_start);
            runs.insert(0, opened);
        }
        let lost = self.lost(current, &charges, granted, view);
        let void = self.void_starts(view);
        let carried = if slice.index == 0 {
            carried(self, current, periods, slices, &void, view)
        } else {
            Credits::ZERO
        };
        let is_first = slice.index == 0 && slice.period == 0;
        let handed = if is_first { view.handed.clone() } else { Handed::default() };
        let own = if slice.monthly { cuts(current.start, current.end) } else { Vec::new() };
        let of_slice = |start: Timestamp| start == slice.start;
        let following = slices.get(place + 1);
        let next = next.filter(|_| following.is_none_or(|next| next.period == slice.period));
        let next = next.map(|next| following.map_or(next, |following| next.min(following.start)));
        let holds_undone = |start: Timestamp| {
            slice.holds_undone(start, next, &own) && !is_of_later_period(start, slice, slices, periods)
        };
        let undone = self.spent_of(holds_undone);
        let opened_by = runs.first().map_or_else(String::new, |run| run.terms.plan.clone());
        let mut plans = handed.plans;
        plans.extend(runs.iter().map(|run| run.terms.plan.clone()));
        let first = plans.iter().position(|plan| *plan == terms.plan).unwrap_or(0);
        let left_and_back = plans.iter().skip(first).any(|plan| *plan != terms.plan);
        let was_paid = periods.iter().any(|period| period.costs);
        let mut hands_over = Handed { plans, spent: handed.spent, was_paid };
        for spent in self.spent.iter().filter(|spent| !spent.carried && of_slice(spent.start)) {
            hands_over.add(&spent.plan, spent.credits);
        }
        let holds_void = |start: Timestamp| holds_void(start, place, slices, &void);
        for spent in self.spent.iter().filter(|spent| !spent.carried && holds_void(spent.start)) {
            // What was spent of a plan that was never in force here counts as spent of the present one.
            let known = hands_over.plans.contains(&spent.plan);
            hands_over.add(if known { &spent.plan } else { &terms.plan }, spent.credits);
        }
        let of_first = if first == 0 { carried } else { Credits::ZERO };
        let spent = if view.plan_change == PlanChange::OnPayment || left_and_back {
            hands_over.total().plus(carried)
        } else {
            hands_over.of_plan(&terms.plan).plus(of_first)
        };
        let spent = spent.plus(undone);
        hands_over.add(&opened_by, carried);
        for spent in self.spent.iter().filter(|spent| !spent.carried && holds_undone(spent.start)) {
            hands_over.add(&spent.plan, spent.credits);
        }
        let is_changed = terms.plan != current.terms.plan || quantity != current.quantity;
        let of_period = |other: &&Slice| other.period == slice.period;
        Bucket {
            left: granted.minus(lost).minus(spent),
            granted,
            lost,
            spent,
            period: Some(current.clone()),
            slice: slice.clone(),
            slices_before: slices.iter().take(place).filter(of_period).count(),
            opened_with: runs.first().map_or(opening, Run::worth),
            carries: Vec::new(),
            next_month: None,
            next: None,
            changed_to: is_changed.then_some(terms),
            quantity,
            changes: change_names(&runs),
            documents: std::iter::once(&current.invoice)
                .chain(charges.iter().map(|line| &line.invoice).filter(|charge| **charge != current.invoice))
                .cloned()
                .collect(),
            trial: false,
            hands_over,
        }
    }

    /// The plans in force in a period: the plan that it was opened with, then each plan that a snapshot of
    /// the period shows. Another price of the same plan is no change. The same price is no change either,
    /// also if the catalog has another plan for it since. A trial on a paid item moves the item's period at
    /// Stripe. Its snapshots belong to the paid period in which they were created.
    pub(super) fn runs(&self, period: &Period) -> Vec<Run> {
        let (price, terms) = (period.price.clone(), period.terms.clone());
        let mut runs = vec![Run { price, terms, quantity: period.quantity, at: None }];
        let of_period = |sight: &&Sight| match sight.start.cmp(&period.start) {
            Ordering::Less => sight.start == period.shown && sight.at >= period.start,
            Ordering::Equal => true,
            Ordering::Greater => sight.trialing && period.end.is_none_or(|end| sight.at < end),
        };
        let mut sights: Vec<&Sight> = self.sights.iter().filter(of_period).collect();
        sights.sort_by_key(|sight| sight.at);
        for sight in sights {
            let same = runs.last().is_some_and(|run| {
                run.sells(&sight.price, &sight.terms) && (run.quantity == sight.quantity || !run.terms.seats)
            });
            if !same {
                let of_price = runs.iter().rev().find(|run| run.price == sight.price);
                let known =
                    of_price.or_else(|| runs.iter().rev().find(|run| run.terms.plan == sight.terms.plan));
                let terms = known.map_or_else(|| sight.terms.clone(), |run| run.terms.clone());
                let (price, at) = (sight.price.clone(), Some(sight.at));
                runs.push(Run { price, terms, quantity: sight.quantity, at });
            }
        }
        runs
    }

    /// The lines that charge plan changes within a period, in the order of the changes.
    pub(super) fn charges(&self, period: &Period, periods: &[Period]) -> Vec<&Line> {
        let next = periods.iter().map(|other| other.start).filter(|start| *start > period.start).min();
        let end = match (period.end, next) {
            (Some(end), Some(next)) => Some(end.min(next)),
            (end, next) => end.or(next),
        };
        let within = |line: &&Line| {
            line.charges()
                && (line.made.is_none() || period.made.is_some())
                && (line.start > period.start
                    || (line.start == period.start && line.invoice != period.invoice))
                && end.is_none_or(|end| line.start < end)
        };
        let mut charges: Vec<&Line> = self.lines.iter().filter(within).collect();
        charges.sort_by_key(|line| (line.start, line.at, &line.invoice));
        charges
    }

    /// Credits that were spent from the slices with these starts.
    fn spent_of(&self, starts: impl Fn(Timestamp) -> bool) -> Credits {
        let of = |spent: &&Spent| !spent.carried && starts(spent.start);
        self.spent.iter().filter(of).map(|spent| spent.credits).sum()
    }

    /// Spent credits that the slice with this start had taken over.
    pub(super) fn spent_of_carry(&self, start: Timestamp) -> Credits {
        self.spent
            .iter()
            .filter(|spent| spent.carried && spent.start == start)
            .map(|spent| spent.credits)
            .sum()
    }

    fn add_spent(&mut self, new: Spent) {
        let same = |spent: &&mut Spent| {
            spent.start == new.start
                && spent.plan == new.plan
                && spent.carried == new.carried
                && spent.imported == new.imported
        };
        match self.spent.iter_mut().find(same) {
            Some(spent) => spent.credits = spent.credits.plus(new.credits),
            None => self.spent.push(new),
        }
        self.spent.sort_by(|a, b| {
            (a.start, &a.plan, a.carried, a.imported).cmp(&(b.start, &b.plan, b.carried, b.imported))
        });
    }

    /// Gives spent credits back; `false` when nothing is known to be spent of this slice and plan.
    pub(super) fn give_back(
        &mut self,
        start: Timestamp,
        plan: &str,
        carried: bool,
        credits: Credits,
    ) -> bool {
        let same = |spent: &&mut Spent| {
            spent.start == start && spent.plan == plan && spent.carried == carried && !spent.imported
        };
        let spent = self.spent.iter_mut().find(same);
        let known = spent.map(|spent| spent.credits = spent.credits.minus(credits)).is_some();
        self.spent.retain(|spent| spent.credits > Credits::ZERO);
        known
    }

    /// Spends from the bucket. The caller has checked that it holds enough credits.
    pub(super) fn spend(&mut self, credits: Credits, bucket: &Bucket) {
        let (start, plan) = bucket.spends_of();
        self.add_spent(Spent { start, plan, credits, carried: false, imported: false });
    }

    /// Spends credits that the slice with this start took over.
    pub(super) fn spend_carry(&mut self, credits: Credits, start: Timestamp) {
        self.add_spent(Spent { start, plan: String::new(), credits, carried: true, imported: false });
    }

    /// The slice that ran at a moment, with what its bucket could hold then. `None` if no slice is known that
    /// began before it.
    pub(super) fn running_at(&self, at: Timestamp, view: &View<'_>) -> Option<RunningSlice> {
        let periods = self.periods(view);
        let slices = self.slices(&periods, view);
        // A period that was paid after the moment had granted nothing by then.
        let was_paid = |slice: &Slice| periods.get(slice.period).is_some_and(|period| period.at < at);
        let Some(place) = slices.iter().rposition(|slice| slice.since < at && was_paid(slice)) else {
            return self.trial_at(at, view);
        };
        let refunded_then = |invoice: &InvoiceId| (view.refunded_at)(invoice, at);
        let then = View { refunded: &refunded_then, ..*view };
        let next = slices.get(place + 1).map_or(at, |next| next.start.min(at));
        let bucket = self.slice_bucket(Some(next), place, &slices, &periods, &then);
        let end = slices.get(place).and_then(|slice| slice.end);
        Some(RunningSlice { spends_of: bucket.spends_of(), end, worth: bucket.granted.minus(bucket.lost) })
    }

    fn trial_at(&self, at: Timestamp, view: &View<'_>) -> Option<RunningSlice> {
        let trialing = self.sights.iter().filter(|sight| sight.trialing).map(|sight| sight.start);
        let start = trialing.min().or_else(|| Some(self.trial_line()?.start));
        start.filter(|start| *start < at)?;
        let bucket = self.trial_bucket(view);
        let worth = bucket.granted;
        Some(RunningSlice { spends_of: bucket.spends_of(), end: self.trial_end(), worth })
    }

    /// Replaces what was spent in another system. The import says how much of a slice was left.
    pub(super) fn set_imported(&mut self, slice: &RunningSlice, credits: Credits) {
        self.spent.retain(|spent| !spent.imported);
        if credits > Credits::ZERO {
            let (start, plan) = slice.spends_of.clone();
            self.add_spent(Spent { start, plan, credits, carried: false, imported: true });
        }
    }

    /// Drops spends of slices that began before an import, except those that the import names.
    pub(super) fn keep_spent(&mut self, as_of: Timestamp, kept: &[(Timestamp, String, Credits)]) {
        self.spent.retain(|spent| spent.start >= as_of);
        for (start, plan, credits) in kept.iter().filter(|(start, ..)| *start < as_of) {
            let (start, plan, credits) = (*start, plan.clone(), *credits);
            self.add_spent(Spent { start, plan, credits, carried: false, imported: false });
        }
    }

    /// Adds the lines of paid invoices that it does not have.
    pub(super) fn recall(&mut self, other: &Self) {
        let known = |line: &&Line| {
            !self.lines.iter().any(|own| {
                own.invoice == line.invoice && own.start == line.start && own.flagged == line.flagged
            })
        };
        let missing: Vec<Line> = other.lines.iter().filter(known).cloned().collect();
        for line in missing {
            let made = other.billed_at.unwrap_or(line.at);
            self.fold_line(line, made);
        }
    }

    /// When the trial began that its newest `trialing` snapshot shows, else its line.
    pub(super) fn trial_start(&self) -> Option<Timestamp> {
        let shown = self.sights.iter().filter(|sight| sight.trialing).map(|sight| sight.start).max();
        shown.or_else(|| self.trial_line().map(|line| line.start))
    }

    /// When the trial ends, by the latest `trialing` snapshot, else by the trial's line.
    pub(super) fn trial_end(&self) -> Option<Timestamp> {
        match &self.trial {
            Some(trial) => trial.end,
            None => self.trial_line().and_then(|line| line.end),
        }
    }

    /// The plan that was paid for in a period: the plan of its newest charge, else the plan of its opening.
    pub(super) fn paid_plan(&self, period: &Period, view: &View<'_>, catalog: &Catalog) -> Terms {
        let periods = self.periods(view);
        let charges = self.charges(period, &periods);
        let opening = (&period.terms, &period.price);
        let (terms, price) = charges.last().map_or(opening, |line| (&line.terms, &line.price));
        terms.clone().with_name_of(price, catalog)
    }

    /// Keeps the credits of dropped lines that last beyond the start of the current period, or that may close
    /// the period of a line that is kept.
    fn keep_credits_ahead(&mut self, credits: Vec<CreditAhead>, current: Timestamp) {
        self.credits_ahead.extend(credits);
        let lines = &self.lines;
        self.credits_ahead.retain(|one| {
            let closes =
                |line: &Line| line.made.is_some() && one.start < line.start && line.start < one.until;
            let is_of_line = lines.iter().any(|line| line.credit_ahead().as_ref() == Some(one));
            !is_of_line && (one.until > current || lines.iter().any(closes))
        });
        self.credits_ahead.sort();
        self.credits_ahead.dedup();
        while self.credits_ahead.len() > MAX_CREDITS_AHEAD {
            self.credits_ahead.remove(0);
        }
    }

    /// Drops what no later fact can make count again.
    pub(super) fn prune(&mut self, view: &View<'_>) {
        let all = self.all_periods(view);
        let openings: Vec<(Timestamp, InvoiceId)> =
            all.iter().map(|(period, _)| (period.start, period.invoice.clone())).collect();
        let void = all.iter().filter(|(_, stage)| *stage == Stage::Void);
        let void: Vec<Timestamp> = void.map(|(period, _)| period.start).collect();
        let in_advance = all.iter().filter(|(period, _)| period.made.is_some());
        let in_advance: Vec<Timestamp> = in_advance.map(|(period, _)| period.start).collect();
        let periods = begun(all);
        for start in void.iter().filter(|start| periods.iter().all(|period| period.start != **start)) {
            self.resets.unproven.remove(start);
            self.resets.periods.remove(start);
        }
        if let Some(current) = periods.last() {
            // These earlier periods stay:
            // - Periods that the current one cut short: their spends may count in it, and their payments may
            //   have paid a share of it.
            // - The period before a zero line: a late `trialing` snapshot may close the line's period again.
            // - The period before one that was billed in advance: a late invoice may take the place of that
            //   one, and what an invoice credits of it waits for the renewal after that.
            // - The period before an invoice that credits unused time: the credited period may arrive later.
            // - The period before a gap: an invoice that arrives later may fill the gap.
            // - Periods whose credits may still be carried over. Any item may change to a plan with
            //   `rollover`.
            // - The period that ran at the time of an import (below).
            let carried = usize::try_from(view.carried_periods).unwrap_or(usize::MAX);
            let mut oldest = current;
            let mut ended = None;
            for (kept, before) in periods.iter().rev().skip(1).enumerate() {
                let may_overlap = !oldest.proven || oldest.credits_time;
                if before.end == Some(oldest.start) && !may_overlap {
                    self.follows_from = Some(oldest.start);
                }
                let is_over = !may_overlap && self.follows_from == Some(oldest.start);
                if kept >= carried && (is_over || kept >= MAX_PREDECESSORS) {
                    ended = Some(before.end.unwrap_or(oldest.start).min(oldest.start));
                    break;
                }
                oldest = before;
            }
            if ended.is_some() && view.items.len() > 1 {
                let known = self.began.as_ref().map(|began| began.start);
                if let Some(first) =
                    periods.first().filter(|first| known.is_none_or(|known| first.start < known))
                {
                    self.began = Some(Began {
                        start: first.start,
                        end: first.end,
                        within: first.shown < first.start,
                        terms: first.terms.clone(),
                        quantity: first.quantity,
                    });
                }
            }
            // Without an earlier period that has ended, the period that a line belongs to may still arrive.
            let from = ended.unwrap_or(Timestamp::from_unix(i64::MIN));
            let is_unproven = ended.is_none() && !oldest.proven;
            let (oldest, current, proven) = (oldest.shown, current.start, current.proven);
            let imported = view.imported_at.map(|at| imported_period(at, &periods));
            let is_imported =
                |start: Timestamp| imported.is_some_and(|(from, to)| start >= from && start < to);
            self.resets.periods.extend(periods.iter().map(|period| period.start));
            self.resets.shown.extend(&self.starts);
            let unproven = periods.iter().filter(|period| period.resets && !period.proven);
            self.resets.unproven.extend(unproven.map(|period| period.start));
            let charges = self.lines.iter().filter(|line| line.ends_packs_for_good());
            self.resets.charges.extend(charges.map(|line| line.start));
            let openers: Vec<Timestamp> = self.openers().map(|line| line.start).collect();
            self.resets.openers.extend(openers);
            let credits: Vec<CreditAhead> = self.lines.iter().filter_map(Line::credit_ahead).collect();
            self.lines.retain(|line| {
                let opens =
                    openings.iter().any(|(start, invoice)| *start == line.start && *invoice == line.invoice);
                // A period in advance may prove void; another line may then open that start.
                let may_open = line.opens_alone() && in_advance.contains(&line.start);
                let may_count = line.charges() || line.amount == 0 || may_open;
                is_imported(line.start) || (line.start >= from && (opens || may_count))
            });
            self.keep_credits_ahead(credits, current);
            // The line of a period that carries over may arrive after its snapshots, and so may that of the
            // period before one that a late fact may close.
            let oldest = if carried > 0 || is_unproven { from } else { oldest };
            // A trial's zero line would open a period if the trial were forgotten.
            let is_of_trial = |sight: &Sight| {
                sight.trialing && self.lines.iter().any(|line| line.amount == 0 && line.start == sight.start)
            };
            self.sights
                .retain(|sight| sight.start >= oldest || is_imported(sight.start) || is_of_trial(sight));
            self.between.retain(|between| between.at >= oldest);
            let flagged =
                |start: &Timestamp| self.lines.iter().any(|line| line.flagged && line.start == *start);
            let is_open = |start: &Timestamp| proven && *start == current;
            self.starts.retain(|start| {
                is_imported(*start) || (*start >= from && (!is_open(start) || flagged(start)))
            });
            self.overdue.retain(|(start, _)| *start >= oldest);
            self.spent.retain(|spent| spent.start >= oldest || is_imported(spent.start));
            if proven && imported.is_none() {
                self.trial = None;
            }
        }
        self.resets.prune(view.oldest_pack);
        compress_sights(&mut self.sights);
        // What was before an import stays: it says what the imported period was worth.
        let is_later = |at: Timestamp| view.imported_at.is_none_or(|imported| at >= imported);
        while self.lines.len() > MAX_LINES {
            let later = self.lines.iter().skip(1).position(|line| is_later(line.at)).unwrap_or(0);
            self.lines.remove(later + 1);
        }
        while self.sights.len() > MAX_SIGHTS {
            let later = self.sights.iter().position(|sight| is_later(sight.at)).unwrap_or(0);
            self.sights.remove(later);
        }
        while self.between.len() > MAX_BETWEEN {
            self.between.remove(0);
        }
        let in_order = self.in_order_at();
        self.overdue.retain(|(_, at)| Some(*at) > in_order);
        while self.overdue.len() > MAX_STARTS {
            self.overdue.remove(MAX_STARTS / 2);
        }
        // A flagged line opens its period because a snapshot shows its start, so that start stays.
        let opens = |start: &Timestamp| self.lines.iter().any(|line| line.flagged && line.start == *start);
        while self.starts.len() > MAX_STARTS {
            let unneeded = self.starts.iter().position(|start| !opens(start)).unwrap_or(0);
            self.starts.remove(unneeded);
        }
    }
}

/// A plan in force.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// The price that first sold it.
    price: PriceId,
    /// The plan.
    pub terms: Terms,
    /// How many units of it.
    pub quantity: u64,
    /// `created` of the snapshot that shows it; absent for the plan that the period was opened with.
    pub at: Option<Timestamp>,
}

impl Run {
    /// Whether a price and its terms are of this plan.
    fn sells(&self, price: &PriceId, terms: &Terms) -> bool {
        self.terms.plan == terms.plan || self.price == *price
    }

    fn worth(&self) -> Credits {
        self.terms.worth(self.quantity)
    }
}

/// The plan in force at a moment.
pub(super) fn in_force(runs: &[Run], at: Timestamp) -> Option<&Run> {
    runs.iter().rfind(|run| run.at.is_none_or(|since| since <= at))
}

/// The period that ran at the time of an import, from its start to the next one. Its facts stay, because the
/// shares of the imported balance are computed from them. If no period ran, it is the time before the first
/// period, because a trial may have run.
fn imported_period(at: Timestamp, periods: &[Period]) -> (Timestamp, Timestamp) {
    let ran = periods.iter().rposition(|period| period.start < at && period.at < at);
    let start = |place: usize| periods.get(place).map(|period| period.start);
    let from = ran.and_then(start).unwrap_or(Timestamp::from_unix(i64::MIN));
    let to = start(ran.map_or(0, |place| place + 1)).unwrap_or(Timestamp::from_unix(i64::MAX));
    (from, to)
}

/// `<plan>#<n>` for the n-th change to a plan in a period, for the ledger keys, each with its worth.
fn change_names(runs: &[Run]) -> Vec<(String, Credits)> {
    let mut names: Vec<(String, Credits)> = Vec::new();
    for (place, run) in runs.iter().enumerate().skip(1) {
        let times =
            runs.iter().take(place + 1).skip(1).filter(|other| other.terms.plan == run.terms.plan).count();
        names.push((format!("{}#{times}", run.terms.plan), run.terms.worth(run.quantity)));
    }
    names
}

/// Whether a spend that was recorded under `start` is of a later period than this slice's.
fn is_of_later_period(start: Timestamp, slice: &Slice, slices: &[Slice], periods: &[Period]) -> bool {
    let months = |of: &Slice| periods.get(of.period).map(|period| cuts(period.start, period.end));
    let is_in = |of: &Slice| {
        start == of.start || (of.monthly && months(of).is_some_and(|months| months.contains(&start)))
    };
    slices.iter().filter(|other| other.period > slice.period).any(is_in)
}

/// The periods that have begun.
fn begun(all: Vec<(Period, Stage)>) -> Vec<Period> {
    all.into_iter().filter(|(_, stage)| *stage == Stage::Open).map(|(period, _)| period).collect()
}

/// Whether a spend recorded under `start` belongs to a void period that would have begun in this slice.
fn holds_void(start: Timestamp, place: usize, slices: &[Slice], void: &[Timestamp]) -> bool {
    void.contains(&start) && slices.iter().rposition(|slice| slice.start <= start) == Some(place)
}

/// Credits that were spent in a period that this period cut short, and that count as spent in this one: the
/// share of this period's invoice that was not paid, or all of them if nothing was charged.
fn carried(
    item: &Item,
    period: &Period,
    periods: &[Period],
    slices: &[Slice],
    void: &[Timestamp],
    view: &View<'_>,
) -> Credits {
    let Some(before) = period.cut_short(periods) else { return Credits::ZERO };
    let Some(place) = periods.iter().position(|other| other == before) else { return Credits::ZERO };
    let earlier: Vec<Period> = periods.iter().filter(|other| other.start <= before.start).cloned().collect();
    let last = slices.iter().rposition(|slice| slice.period == place);
    let slice = last.and_then(|last| slices.get(last));
    let months = slice.filter(|slice| slice.monthly).map(|_| cuts(before.start, before.end));
    let months = months.unwrap_or_default();
    let in_slice = |start: Timestamp| {
        slice.is_some_and(|slice| {
            let holds_undone = || slice.holds_undone(start, None, &months);
            start == slice.start || (holds_undone() && !is_of_later_period(start, slice, slices, periods))
        }) || last.is_some_and(|last| holds_void(start, last, slices, void))
    };
    let before_slice = match slice {
        Some(slice) if slice.index > 0 => Credits::ZERO,
        Some(_) | None if place == 0 => view.handed.total(),
        Some(_) | None => carried(item, before, &earlier, slices, void, view),
    };
    period.unpaid_share(item.spent_of(in_slice).plus(before_slice))
}

/// Whether a trial's snapshot is newer than the known one.
fn follows(trial: &Trial, known: &Trial) -> bool {
    match trial.at.cmp(&known.at) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal if trial.digest == known.digest => {
            (trial.before, trial.end) > (known.before, known.end)
        }
        Ordering::Equal => {
            let after = trial.before == Some(known.digest);
            let before = known.before == Some(trial.digest);
            (after, &trial.price, trial.quantity, trial.digest)
                > (before, &known.price, known.quantity, known.digest)
        }
    }
}

/// Orders the sights of one second: repeatedly takes the first sight that has no predecessor among the rest.
fn chain(second: &mut [Sight], between: &[Between]) {
    for place in 0..second.len() {
        let rest = &second[place..];
        let before = |sight: &Sight| {
            let is_here = |digest| rest.iter().any(|other| Some(other.digest) == digest);
            let mut before = sight.before;
            for _ in between {
                let is_named = |other: &&Between| other.at == sight.at && Some(other.digest) == before;
                let named = between.iter().find(is_named).filter(|_| !is_here(before));
                before = named.map_or(before, |other| Some(other.before));
            }
            before
        };
        let free = rest.iter().position(|one| {
            !rest.iter().any(|other| other.digest != one.digest && before(one) == Some(other.digest))
        });
        if let Some(free) = free {
            second[place..=place + free].rotate_right(1);
        }
    }
}

/// Of many sights, keeps only the first and the last of consecutive ones that show the same plan. For a plan
/// with monthly credits, it also keeps the last one before each month: it says which plan is in force when the
/// month begins, even if an older snapshot with another plan arrives later.
fn compress_sights(sights: &mut Vec<Sight>) {
    let same = |a: &Sight, b: &Sight| {
        a.start == b.start
            && a.terms.plan == b.terms.plan
            && a.quantity == b.quantity
            && a.trialing == b.trialing
    };
    let mut place = 1;
    while place + 1 < sights.len() && sights.len() > MANY_SIGHTS {
        if same(&sights[place - 1], &sights[place])
            && same(&sights[place], &sights[place + 1])
            && sights[place].at != sights[place + 1].at
            && !(sights[place].terms.monthly && in_other_months(&sights[place], &sights[place + 1]))
        {
            sights.remove(place);
        } else {
            place += 1;
        }
    }
}

/// Whether a month of the period begins between two sights.
fn in_other_months(one: &Sight, next: &Sight) -> bool {
    let mut begins = (1..MAX_SLICES).map(|month| one.start.plus_months(month));
    begins.find(|begin| *begin > one.at).is_some_and(|begin| begin <= next.at)
}

#[cfg(test)]
pub(super) mod tests;
