//! `invoice.paid`: what the lines of a paid invoice grant. The lines decide, not the billing reason.
//!
//! | line | rule |
//! |---|---|
//! | a plan's price, positive, no proration | opens the item's period that it bills |
//! | a plan's price, positive, on a subscription's first invoice | opens it, also for a part of a period |
//! | a plan's price, a proration | charges a plan change; may open a period that starts with it |
//! | a plan's price, zero | opens a period only if the price is free or it is a renewal; else a trial |
//! | a plan's price without a subscription | sells the plan for life |
//! | a pack's price | adds the pack's credits |
//! | a pack's price, a proration | nothing: how much of a pack it bills is not known |
//! | a product's price | sells the product; of a subscription item, like a plan without a tier |
//! | zero, of the quantity 0 | nothing |
//! | negative | credits unused time; it shows the share that an earlier payment paid |
//! | a proration that a negative line of the same invoice takes back | neither of the two has an effect |
//! | an unknown price | nothing, if there is a known line or the plan of the subscription is known |
//!
//! `invoice#in_…` records each paid invoice once. An invoice that is not paid grants nothing. The invoice's
//! own `period_start` and `period_end` are never the period of service.

use std::collections::BTreeSet;

use super::customer_subscription::{Place, PriceTerms, price_terms};
use super::{EventFacts, Parked, offer, payment_of_invoice};
use crate::account::item::{Line, MADE_BEFORE_SECONDS, Moved, MovedCredit};
use crate::account::lots::Purchase;
use crate::account::products::BoughtProduct;
use crate::account::snapshot::{Terms, digest};
use crate::account::state::MAX_ITEMS;
use crate::account::{Account, Fact, PaidInvoice};
use crate::catalog::{Catalog, MAX_QUANTITY, Offer, Product};
use crate::credits::Credits;
use crate::event::{self, BillingReason, Event, Invoice};
use crate::ids::{ItemId, PriceId, SubscriptionId};
use crate::ledger::{EntryKind, LedgerKey, Payment};
use crate::timestamp::Timestamp;

pub(super) fn read(
    invoice: &Invoice,
    event: &Event,
    account: &Account,
    catalog: &Catalog,
) -> Result<EventFacts, Parked> {
    if !invoice.paid {
        return Ok(EventFacts { not_paid: true, ..EventFacts::default() });
    }
    if invoice.lines_has_more {
        return Err(Parked::LinesMissing);
    }
    let total = invoice.total.unwrap_or(invoice.amount_paid);
    let payment = Payment {
        amount: total,
        currency: invoice.currency.clone().unwrap_or_default(),
        intent: invoice.payment_intent.clone(),
    };
    let sold = Sold::read(invoice, event, total, account, catalog)?;
    let mut facts = Vec::new();
    let mut is_recorded = false;
    if let Some(subscription) = &invoice.subscription
        && sold.has_plan(account, subscription)
    {
        let known = account.state.subscriptions.get(subscription);
        let shown = known.and_then(|known| known.snapshot.as_ref()).into_iter();
        let shown = shown.flat_map(|snapshot| &snapshot.items).map(|item| &item.id);
        let billed = sold.lines.iter().filter_map(|(item, ..)| item.as_ref());
        if account.state.live_items_with(subscription, shown.chain(billed)) > MAX_ITEMS {
            return Err(Parked::TooManyItems);
        }
        facts.push(Fact::Invoice(Box::new(PaidInvoice {
            id: invoice.id.clone(),
            subscription: subscription.clone(),
            customer: invoice.customer.clone(),
            kind: kind(invoice, &sold, account),
            lines: sold.lines,
            payment: payment.clone(),
        })));
        is_recorded = true;
    }
    for purchases in [sold.lifetimes, sold.packs] {
        if !Vec::is_empty(&purchases) {
            facts.push(Fact::Purchase(purchases, Some(payment.clone()).filter(|_| !is_recorded)));
            is_recorded = true;
        }
    }
    if !is_recorded && !sold.products.is_empty() {
        let key = LedgerKey::invoice(&invoice.id);
        facts.push(Fact::Recorded(key, EntryKind::Product, Some(payment.clone())));
        is_recorded = true;
    }
    facts.extend(sold.products.into_iter().map(|product| Fact::Product(Box::new(product))));
    if !is_recorded {
        if let (Some(price), Some(subscription)) = (sold.unknown, &invoice.subscription) {
            let known = account.state.subscriptions.get(subscription);
            if !known.is_some_and(|known| known.has_plan()) {
                return Err(Parked::UnknownPrice(price, Some(subscription.clone())));
            }
        }
        facts.push(Fact::Recorded(LedgerKey::invoice(&invoice.id), EntryKind::NoGrant, Some(payment)));
    }
    if sold.charged {
        facts.push(Fact::Paid(event.created));
    }
    let Sold { prices_not_in_catalog, pack_prorated, .. } = sold;
    Ok(EventFacts { facts, prices_not_in_catalog, pack_prorated, ..EventFacts::default() })
}

/// The lines without the prorations that the same invoice takes back. If a plan or quantity is changed twice
/// in one second, the invoice charges the one between and credits it again for the same period. The order of
/// the lines does not say which of two charges is the last one. A credit of the amount 0 has no effect.
fn lasting_lines(invoice: &Invoice) -> Vec<&event::InvoiceLine> {
    let mut lasting: Vec<&event::InvoiceLine> = Vec::new();
    let credits = |line: &event::InvoiceLine| line.amount < 0 || line.credits_unused_time;
    for line in &invoice.lines {
        let takes_back = |other: &&event::InvoiceLine| {
            let id = |line: &event::InvoiceLine| line.price.as_ref().map(|price| price.id.clone());
            (line.proration && other.proration)
                && credits(line) != credits(other)
                && (line.amount == 0) == (other.amount == 0)
                && (&line.item, &line.subscription, line.quantity)
                    == (&other.item, &other.subscription, other.quantity)
                && (line.period_start, line.period_end) == (other.period_start, other.period_end)
                && id(line).is_some_and(|price| Some(price) == id(other))
        };
        match lasting.iter().position(takes_back) {
            Some(place) => {
                lasting.remove(place);
            }
            None => lasting.push(line),
        }
    }
    lasting.retain(|line| line.amount != 0 || !credits(line));
    lasting
}

/// Whether a snapshot that has not arrived may say what a line's price sells: by its lookup key, or because
/// the snapshot is parked until the catalog has the price.
fn may_be_learnt(line: &event::InvoiceLine, subscription: &SubscriptionId, account: &Account) -> bool {
    if !(line.is_subscription || line.item.is_some()) {
        return false;
    }
    let known = account.state.subscriptions.get(subscription).and_then(|known| known.snapshot.as_ref());
    let shown = known.into_iter().flat_map(|snapshot| &snapshot.items).map(|item| &item.price);
    !shown.into_iter().any(|price| line.price.as_ref().is_some_and(|named| named.id == *price))
}

/// What the lines of an invoice sell.
struct Sold {
    lines: Vec<(Option<ItemId>, Line, Timestamp)>,
    /// One for each number of days after which packs expire.
    packs: Vec<Purchase>,
    lifetimes: Vec<Purchase>,
    products: Vec<BoughtProduct>,
    /// The first price that the catalog does not name.
    unknown: Option<PriceId>,
    /// Whether a known line has an amount above 0.
    charged: bool,
    prices_not_in_catalog: Vec<PriceId>,
    /// Whether a proration of a pack grants nothing.
    pack_prorated: bool,
}

impl Sold {
    fn read(
        invoice: &Invoice,
        event: &Event,
        total: i64,
        account: &Account,
        catalog: &Catalog,
    ) -> Result<Self, Parked> {
        let mut sold = Self {
            lines: Vec::new(),
            packs: Vec::new(),
            lifetimes: Vec::new(),
            products: Vec::new(),
            unknown: None,
            charged: false,
            prices_not_in_catalog: Vec::new(),
            pack_prorated: false,
        };
        let paid = invoice.amount_paid.saturating_add(invoice.paid_off_stripe).min(total);
        let lines = lasting_lines(invoice);
        let mut sold_lines: Vec<_> = lines
            .iter()
            .filter(|line| line.amount >= 0)
            .filter_map(|line| Some((line.price.as_ref()?.id.as_str(), line.quantity)))
            .collect();
        sold_lines.sort_unstable();
        let digest_of_lines = digest(&format!("{sold_lines:?}"));
        let purchase = |granted: Credits, plan: Option<Terms>, expires_days: i64| Purchase {
            session: None,
            invoice: Some(invoice.id.clone()),
            payment: payment_of_invoice(invoice),
            at: event.created,
            outlives: BTreeSet::new(),
            billed_with: BTreeSet::new(),
            granted,
            plan,
            spent: Credits::ZERO,
            expires_days,
            until: (expires_days > 0).then(|| event.created.plus_days(expires_days)),
            sold: digest_of_lines,
            total,
            joined: false,
            older: Vec::new(),
        };
        for &line in &lines {
            let Some(price) = &line.price else { continue };
            let subscription = line.subscription.as_ref().or(invoice.subscription.as_ref());
            let offer = offer(price, catalog)?;
            if let Some(Offer::Pack(pack)) = offer {
                sold.charged |= line.amount > 0;
                let first = invoice.billing_reason == BillingReason::SubscriptionCreate;
                let is_prorated = line.proration && !first;
                sold.pack_prorated |= is_prorated && line.amount > 0;
                // The zero line of a subscription's item is a trial's, or of the quantity 0.
                let is_of_item = line.is_subscription || line.item.is_some();
                let is_sold = line.amount > 0 || (line.amount == 0 && (!is_of_item || line.price_is_free));
                if is_sold && !is_prorated {
                    let out_of_range = || Parked::Quantity(line.quantity.to_string());
                    let counted = Some(line.quantity).filter(|quantity| *quantity <= MAX_QUANTITY);
                    let credits = counted.and_then(|quantity| Credits::new(pack.credits).times(quantity));
                    let credits = credits.ok_or_else(out_of_range)?;
                    match sold.packs.iter_mut().find(|known| known.expires_days == pack.expires_days) {
                        Some(known) => known.granted = known.granted.plus(credits),
                        None => sold.packs.push(purchase(credits, None, pack.expires_days)),
                    }
                }
                continue;
            }
            if let Some(Offer::Product(product)) = offer {
                // A line that bills no subscription item sells the product once.
                let item_of = subscription.filter(|_| line.is_subscription || line.item.is_some());
                if line.amount > 0 || (line.amount == 0 && item_of.is_none()) {
                    sold.add_product(product, line, item_of, invoice, event, total);
                }
                if item_of.is_none() {
                    if line.amount >= 0 && product.credits > 0 {
                        let credits = Credits::new(product.credits).times(line.quantity.min(MAX_QUANTITY));
                        let credits = credits.unwrap_or_default();
                        match sold.packs.iter_mut().find(|known| known.expires_days == 0) {
                            Some(known) => known.granted = known.granted.plus(credits),
                            None => sold.packs.push(purchase(credits, None, 0)),
                        }
                    }
                    sold.charged |= line.amount > 0;
                    continue;
                }
            }
            let terms = match (subscription, offer) {
                (Some(subscription), _) => {
                    let place = Place {
                        subscription,
                        item: line.item.as_ref(),
                        start: line.period_start,
                        flagged: line.proration,
                    };
                    let PriceTerms { terms, in_catalog, .. } = price_terms(price, &place, account, catalog)?;
                    if terms.is_none() && may_be_learnt(line, subscription, account) && line.amount >= 0 {
                        sold.add(line, invoice, event, &price.id, Terms::unknown(), total, paid);
                    }
                    if !in_catalog {
                        sold.prices_not_in_catalog.push(price.id.clone());
                    }
                    terms
                }
                (None, Some(Offer::Plan(plan))) => Some(Terms::of(plan)),
                (None, _) => None,
            };
            let Some(terms) = terms else {
                if line.amount > 0 {
                    sold.unknown.get_or_insert_with(|| price.id.clone());
                }
                continue;
            };
            // With the quantity 0 an item stays in its subscription, and each of its invoices has a zero line.
            if line.amount < 0 || (line.amount == 0 && line.quantity == 0) {
                continue;
            }
            if line.quantity > MAX_QUANTITY {
                return Err(Parked::Quantity(line.quantity.to_string()));
            }
            sold.charged |= line.amount > 0;
            match (subscription, line.period_start) {
                // A subscription's line always names its subscription; a line that does not sells nothing.
                (None, _) if line.is_subscription || line.item.is_some() => {}
                (None, _) => {
                    sold.lifetimes.push(purchase(terms.worth(line.quantity), Some(terms), 0));
                }
                (Some(_), None) => return Err(Parked::NoPeriod),
                (Some(_), Some(_)) => sold.add(line, invoice, event, &price.id, terms, total, paid),
            }
        }
        sold.name_credits(&lines);
        Ok(sold)
    }

    /// Whether a line has a known plan, or waits for its price on a subscription with one.
    fn has_plan(&self, account: &Account, subscription: &SubscriptionId) -> bool {
        let known = account.state.subscriptions.get(subscription).is_some_and(|known| known.has_plan());
        self.lines.iter().any(|(_, line, _)| known || !line.terms.is_unknown())
    }

    /// Adds a product, once for each name.
    fn add_product(
        &mut self,
        product: &Product,
        line: &event::InvoiceLine,
        subscription: Option<&SubscriptionId>,
        invoice: &Invoice,
        event: &Event,
        total: i64,
    ) {
        if let Some(known) = self.products.iter_mut().find(|known| known.name == product.name) {
            known.amount = known.amount.saturating_add(line.amount);
            return;
        }
        self.products.push(BoughtProduct {
            name: product.name.clone(),
            price: line.price.as_ref().map(|price| price.id.clone()),
            amount: line.amount,
            currency: invoice.currency.clone().unwrap_or_default(),
            session: None,
            invoice: Some(invoice.id.clone()),
            payment: payment_of_invoice(invoice),
            subscription: subscription.cloned(),
            at: event.created,
            total,
            disputed: false,
        });
    }

    /// Adds a plan's line. Tiered prices are billed in several lines of one item and period. They count as
    /// one line.
    #[allow(clippy::too_many_arguments, reason = "the parts of one line")]
    fn add(
        &mut self,
        line: &event::InvoiceLine,
        invoice: &Invoice,
        event: &Event,
        price: &PriceId,
        terms: Terms,
        total: i64,
        paid: i64,
    ) {
        let Some(start) = line.period_start else { return };
        let same = self.lines.iter_mut().find(|(item, known, _)| {
            *item == line.item
                && known.start == start
                && known.flagged == line.proration
                && known.price == *price
        });
        if let Some((_, known, _)) = same {
            known.amount = known.amount.saturating_add(line.amount);
            if known.terms.seats {
                known.quantity = known.quantity.saturating_add(line.quantity);
            }
            return;
        }
        let item = line.item.clone();
        let line = Line {
            invoice: invoice.id.clone(),
            at: event.created,
            made: invoice.created.filter(|made| made.plus_seconds(MADE_BEFORE_SECONDS) < start),
            start,
            end: line.period_end,
            price: price.clone(),
            quantity: line.quantity,
            terms,
            amount: line.amount,
            flagged: line.proration,
            first: invoice.billing_reason == BillingReason::SubscriptionCreate,
            cycle: invoice.billing_reason == BillingReason::SubscriptionCycle,
            free: line.price_is_free,
            total,
            paid: (paid != total).then_some(paid),
            credited: 0,
            credited_at: None,
            credited_until: None,
            charged_before: 0,
            charged: None,
            moved: None,
        };
        self.lines.push((item, line, invoice.created.unwrap_or(event.created)));
    }

    /// Writes beside each line when it shows that its item was there, and into it by how much the invoice
    /// credits unused time of the item.
    fn name_credits(&mut self, lines: &[&event::InvoiceLine]) {
        for (item, line, named_at) in &mut self.lines {
            if let Some(item) = item
                && !shows(line, item, lines, *named_at)
            {
                *named_at = line.start.min(*named_at);
            }
            let sums = Sums::of(item.as_ref(), line.start, lines);
            line.credited = sums.credited;
            line.credited_at = sums.credited_at.filter(|at| *at != line.start || sums.credited == 0);
            line.credited_until =
                sums.credited_until.filter(|until| line.end.is_some_and(|end| *until > end));
            line.charged_before = sums.charged_before;
            line.charged = (sums.charged != line.amount).then_some(sums.charged);
            line.moved =
                item.as_ref().and_then(|item| moved(item, (line.start, line.end), line.total, lines));
        }
    }
}

/// What an invoice credits and charges an item up to a moment (minor units, after discounts).
struct Sums {
    credited: i64,
    /// Where the newest credit starts.
    credited_at: Option<Timestamp>,
    /// Where the last credit ends.
    credited_until: Option<Timestamp>,
    /// What is charged from earlier moments on.
    charged_before: i64,
    /// What is charged from this moment on.
    charged: i64,
}

impl Sums {
    /// An invoice may bill several changes of an item. A credit belongs to the charge whose start is nearest;
    /// in recorded events the two differ by a second.
    fn of(item: Option<&ItemId>, at: Timestamp, lines: &[&event::InvoiceLine]) -> Self {
        let of_item = || lines.iter().copied().filter(|line| line.item.as_ref() == item);
        let charges = || of_item().filter(|line| line.amount >= 0);
        let distance = |one: Timestamp, other: Timestamp| one.seconds_since(other).abs();
        let is_for_later_charge = |credit: Timestamp| {
            let later = charges().filter_map(|line| line.period_start).filter(|start| *start > at);
            later.into_iter().any(|later| distance(later, credit) < distance(at, credit))
        };
        let credits = of_item().filter(|line| line.amount < 0);
        let credits: Vec<_> =
            credits.filter(|line| !line.period_start.is_some_and(is_for_later_charge)).collect();
        let sum = |sum: i64, line: &event::InvoiceLine| sum.saturating_add(line.net().saturating_abs());
        Self {
            credited: credits.iter().copied().fold(0, sum),
            credited_at: credits.iter().filter_map(|line| line.period_start).max(),
            credited_until: credits.iter().filter_map(|line| line.period_end).max(),
            charged_before: charges()
                .filter(|line| line.period_start.is_some_and(|start| start < at))
                .fold(0, sum),
            charged: charges().filter(|line| line.period_start.is_none_or(|start| start == at)).fold(0, sum),
        }
    }
}

/// Whether a line shows that its item was there when the invoice was made: it bills time that was not over,
/// and the invoice does not credit the item from a later moment on, as it does when the item was removed.
fn shows(line: &Line, item: &ItemId, lines: &[&event::InvoiceLine], made: Timestamp) -> bool {
    let is_credit = |other: &event::InvoiceLine| other.item.as_ref() == Some(item) && other.amount < 0;
    let is_later = |other: &event::InvoiceLine| other.period_start.is_some_and(|start| start > line.start);
    line.end.is_none_or(|end| end > made) && !lines.iter().any(|other| is_credit(other) && is_later(other))
}

/// What of other items' unused time pays for the lines of an item from a moment on. An invoice that replaces
/// items by others, as Laravel Cashier's `swap` does, only credits the ones and only charges the others, from
/// that moment on. If an invoice leaves nothing to pay, what it credits items beyond its charges for them
/// pays for all others: what it credits an item that is gone, because nothing is charged from its newest
/// credit on; and of an item that stays, if the credit lasts to the end of the charged period, or if the
/// invoice renews both. Else the credited period may be forgotten while the charged one runs.
fn moved(
    item: &ItemId,
    (start, end): (Timestamp, Option<Timestamp>),
    total: i64,
    lines: &[&event::InvoiceLine],
) -> Option<Box<Moved>> {
    if lines.iter().all(|line| line.amount >= 0) {
        return None;
    }
    let is_credited = |item: &ItemId| lines_of(item, lines).any(|line| line.amount < 0);
    let net = |item: &ItemId| {
        let counts = |line: &event::InvoiceLine| total <= 0 || line.period_start == Some(start);
        let is_mixed = is_credited(item) && lines_of(item, lines).any(|line| line.amount >= 0);
        let lines = lines_of(item, lines).filter(|line| counts(line) && !(total > 0 && is_mixed));
        lines.fold(0_i64, |sum, line| sum.saturating_add(line.net()))
    };
    let pays_itself = if total > 0 { is_credited(item) } else { net(item) <= 0 };
    if pays_itself {
        return None;
    }
    let items: BTreeSet<&ItemId> = lines.iter().filter_map(|line| line.item.as_ref()).collect();
    let credit = |item: &ItemId| {
        let credits = lines_of(item, lines).filter(|line| line.amount < 0);
        let newest = credits.max_by_key(|line| (line.period_start, line.period_end))?;
        let charges = || lines_of(item, lines).filter(|line| line.amount >= 0);
        let is_gone = charges().all(|line| line.period_start < newest.period_start);
        let renews = |line: &event::InvoiceLine| line.period_start == Some(start) && line.period_end >= end;
        let is_renewed = newest.period_end <= Some(start) && charges().any(renews);
        (is_gone || is_renewed || newest.period_end >= end).then(|| MovedCredit {
            item: item.clone(),
            amount: net(item).saturating_abs(),
            at: newest.period_start.unwrap_or(start),
        })
    };
    let credits: Vec<MovedCredit> =
        items.iter().filter(|item| net(item) < 0).filter_map(|item| credit(item)).collect();
    let charged = items.iter().map(|item| net(item).max(0)).fold(0, i64::saturating_add);
    (!credits.is_empty()).then(|| Box::new(Moved { credits, charged }))
}

fn lines_of<'a>(
    item: &'a ItemId,
    lines: &'a [&'a event::InvoiceLine],
) -> impl Iterator<Item = &'a event::InvoiceLine> {
    lines.iter().copied().filter(move |line| line.item.as_ref() == Some(item))
}

/// The kind of an invoice's ledger entry, by its lines.
fn kind(invoice: &Invoice, sold: &Sold, account: &Account) -> EntryKind {
    let lines = || sold.lines.iter().map(|(_, line, _)| line).filter(|line| !line.terms.is_unknown());
    if lines().all(|line| line.amount == 0 && !line.cycle && !line.free) {
        return EntryKind::NoGrant;
    }
    if invoice.billing_reason == BillingReason::SubscriptionCreate {
        return EntryKind::Subscription;
    }
    if lines().all(|line| line.flagged) || invoice.billing_reason == BillingReason::SubscriptionUpdate {
        return EntryKind::PlanChange;
    }
    let billed = |subscription: &SubscriptionId| {
        let known = account.state.subscriptions.get(subscription);
        known.is_some_and(|known| known.items.values().any(|item| item.is_billed()))
    };
    if invoice.billing_reason != BillingReason::SubscriptionCycle
        && !invoice.subscription.as_ref().is_some_and(billed)
    {
        return EntryKind::Subscription;
    }
    EntryKind::Renewal
}

#[cfg(test)]
mod tests;
