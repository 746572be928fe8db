//! `checkout.session.*`: one-time purchases, and the user of a customer.
//!
//! | session | rule | ledger key |
//! |---|---|---|
//! | `mode=payment`, a pack | adds the pack's credits × the quantity | `session#cs_…` |
//! | `mode=payment`, a plan's price or `metadata.plan` | sells the plan for life | `session#cs_…` |
//! | `mode=payment`, a product's price or `metadata.product` | sells the product | `session#cs_…` |
//! | `mode=payment`, `metadata.mode` + `plan` | an order | `session#cs_…` |
//! | `mode=subscription` | links customer and user; `invoice.paid` grants, also packs | – |
//! | `mode=setup` | links customer and user | – |
//! | unpaid, failed, expired | nothing: a delayed payment sends `async_payment_succeeded` later | – |
//!
//! A session is paid by its `payment_status`, not by `status=complete`. Credits come from the catalog, never
//! from metadata.
//!
//! The purchase is read from the line items, if a call to Stripe returned them, else from the metadata. The
//! quantity without line items is the one in the metadata, which our checkout writes; else ⌊`amount_subtotal`
//! / the price's amount⌋, if the catalog has the amount in the session's currency; else 1.

use std::collections::{BTreeMap, BTreeSet};

use super::{EventFacts, Order, Parked, Payments, offer};
use crate::account::Fact;
use crate::account::lots::Purchase;
use crate::account::products::BoughtProduct;
use crate::account::snapshot::{Terms, digest};
use crate::catalog::{Catalog, MAX_QUANTITY, Offer, Pack, Product};
use crate::credits::Credits;
use crate::event::{CheckoutMode, CheckoutSession, Event, EventType, PaymentStatus, SoldLine};
use crate::ids::PriceId;
use crate::ledger::{EntryKind, LedgerKey, Payment};

pub(super) fn read(
    session: &CheckoutSession,
    event: &Event,
    payments: &Payments,
    catalog: &Catalog,
) -> Result<EventFacts, Parked> {
    let ended = matches!(
        event.kind,
        EventType::CheckoutSessionAsyncPaymentFailed | EventType::CheckoutSessionExpired
    );
    let paid =
        matches!(session.payment_status, PaymentStatus::Paid | PaymentStatus::NoPaymentRequired) && !ended;
    let failed = (event.kind == EventType::CheckoutSessionAsyncPaymentFailed)
        .then_some(Fact::PaymentFailed(event.created));
    match session.mode {
        CheckoutMode::Payment if paid => {}
        CheckoutMode::Payment => {
            return Ok(EventFacts {
                facts: failed.into_iter().collect(),
                not_paid: true,
                ..EventFacts::default()
            });
        }
        CheckoutMode::Subscription | CheckoutMode::Setup | CheckoutMode::Other(_) => {
            // A trial's session has `no_payment_required`, which confirms no payment.
            let sold = named(session, "plan").is_some_and(|plan| catalog.plan(plan).is_some())
                || named(session, "product").is_some_and(|product| catalog.product(product).is_some());
            let confirmed = session.mode == CheckoutMode::Subscription
                && session.payment_status == PaymentStatus::Paid
                && !ended
                && sold
                && session.amount_total.unwrap_or(0) > 0;
            let facts = failed.into_iter().chain(confirmed.then_some(Fact::Paid(event.created))).collect();
            return Ok(EventFacts { facts, not_paid: !paid, ..EventFacts::default() });
        }
    }
    let key = LedgerKey::session(&session.id);
    let payment = Payment {
        amount: session.amount_total.unwrap_or(0),
        currency: session.currency.clone().unwrap_or_default(),
        intent: session.payment_intent.clone(),
    };
    if let Some(mode) = named(session, "mode") {
        let order = order(session, event, mode, &payment, catalog)?;
        let recorded = Fact::Recorded(key, EntryKind::Order, Some(payment));
        return Ok(EventFacts {
            facts: vec![recorded, Fact::Paid(event.created)],
            order: Some(order),
            ..EventFacts::default()
        });
    }
    let Sold { packs, lifetimes, products, quantity_assumed } = sold(session, catalog)?;
    let sold = digest(&what_was_sold(session));
    let mut facts = Vec::new();
    if packs.is_empty() && lifetimes.is_empty() {
        facts.push(Fact::Recorded(key, EntryKind::Product, Some(payment.clone())));
    }
    // A session may not name its invoice, which has the same payment.
    let tied = session.payment_intent.as_ref().and_then(|intent| payments.get(intent.as_str()));
    let invoice = session.invoice.clone().or_else(|| tied?.document.as_ref()?.invoice_id());
    let purchase = |granted: Credits, plan: Option<Terms>, expires_days: i64| Purchase {
        session: Some(session.id.clone()),
        invoice: invoice.clone(),
        payment: session.payment_intent.as_ref().map(ToString::to_string),
        at: event.created,
        outlives: BTreeSet::new(),
        billed_with: BTreeSet::new(),
        granted,
        plan,
        spent: Credits::ZERO,
        expires_days,
        until: (expires_days > 0).then(|| event.created.plus_days(expires_days)),
        sold,
        total: payment.amount,
        joined: false,
        older: Vec::new(),
    };
    let packs: Vec<Purchase> =
        packs.into_iter().map(|(days, granted)| purchase(granted, None, days)).collect();
    let lifetimes: Vec<Purchase> =
        lifetimes.into_iter().map(|(worth, terms)| purchase(worth, Some(terms), 0)).collect();
    for purchases in [packs, lifetimes] {
        if !purchases.is_empty() {
            let payment = Some(payment.clone()).filter(|_| facts.is_empty());
            facts.push(Fact::Purchase(purchases, payment));
        }
    }
    for product in products {
        facts.push(Fact::Product(Box::new(BoughtProduct {
            name: product.name,
            price: product.price,
            amount: product.amount.unwrap_or(payment.amount),
            currency: payment.currency.clone(),
            session: Some(session.id.clone()),
            invoice: session.invoice.clone(),
            payment: session.payment_intent.as_ref().map(ToString::to_string),
            subscription: None,
            at: event.created,
            total: payment.amount,
            disputed: false,
        })));
    }
    if payment.amount > 0 {
        facts.push(Fact::Paid(event.created));
    }
    Ok(EventFacts { facts, quantity_assumed, ..EventFacts::default() })
}

/// What a session says it sold, as one text that does not depend on the catalog.
fn what_was_sold(session: &CheckoutSession) -> String {
    if let Some(lines) = session.line_items.as_ref().filter(|lines| !lines.is_empty()) {
        let mut lines: Vec<_> = lines.iter().map(|line| (line.price.id.as_str(), line.quantity)).collect();
        lines.sort_unstable();
        return format!("{lines:?}");
    }
    let names = ["product", "pack", "plan", "quantity"].map(|name| named(session, name));
    format!("{names:?} {:?}", session.amount_subtotal)
}

/// Whether Stripe's line items have more details than the session.
pub(super) fn leaves_out(session: &CheckoutSession) -> bool {
    let paid = matches!(session.payment_status, PaymentStatus::Paid | PaymentStatus::NoPaymentRequired);
    let by_metadata = named(session, "mode").is_some()
        || (named(session, "product").is_some() && !session.payment_link)
        || (named(session, "pack").is_some()
            && named(session, "quantity").is_some()
            && !session.payment_link);
    session.mode == CheckoutMode::Payment && paid && session.line_items.is_none() && !by_metadata
}

/// What the metadata names. `plan_code` is another name of `plan`.
fn named<'a>(session: &'a CheckoutSession, name: &str) -> Option<&'a str> {
    let value = |name: &str| session.metadata.get(name).map(String::as_str).filter(|value| !value.is_empty());
    value(name).or_else(|| if name == "plan" { value("plan_code") } else { None })
}

fn unknown(what: &'static str, name: &str) -> Parked {
    Parked::UnknownName(what, name.to_owned())
}

fn order(
    session: &CheckoutSession,
    event: &Event,
    mode: &str,
    payment: &Payment,
    catalog: &Catalog,
) -> Result<Order, Parked> {
    let kind = catalog.order(mode).ok_or_else(|| unknown("mode", mode))?;
    let plan_name = named(session, "plan").ok_or(Parked::Unnamed)?;
    let plan = kind.plans.get(plan_name).ok_or_else(|| unknown("plan", plan_name))?;
    Ok(Order {
        session: session.id.clone(),
        mode: mode.to_owned(),
        tier: plan_name.to_uppercase(),
        customer: session.customer.clone(),
        deadline: (plan.deadline_days > 0).then(|| event.created.plus_days(plan.deadline_days)),
        revisions_left: plan.revisions,
        customer_email: session.customer_email.clone(),
        amount_total: payment.amount,
        currency: payment.currency.clone(),
        upgraded_from: named(session, "upgraded_from").map(str::to_owned),
        created_at: event.created,
    })
}

/// What a session sold.
#[derive(Default)]
struct Sold {
    /// Credits of packs, by the days after which they expire.
    packs: BTreeMap<i64, Credits>,
    lifetimes: Vec<(Credits, Terms)>,
    products: Vec<SoldProduct>,
    quantity_assumed: bool,
}

struct SoldProduct {
    name: String,
    price: Option<PriceId>,
    amount: Option<i64>,
}

impl Sold {
    fn add_packs(&mut self, pack: &Pack, quantity: u64) -> Result<(), Parked> {
        self.add_credits(pack.credits, pack.expires_days, quantity)
    }

    fn add_credits(&mut self, credits: u64, expires_days: i64, quantity: u64) -> Result<(), Parked> {
        let counted = Some(quantity).filter(|quantity| (1..=MAX_QUANTITY).contains(quantity));
        let credits = counted.and_then(|quantity| Credits::new(credits).times(quantity));
        let credits = credits.ok_or_else(|| Parked::Quantity(quantity.to_string()))?;
        let known = self.packs.entry(expires_days).or_default();
        *known = known.plus(credits);
        Ok(())
    }

    fn add_product(&mut self, product: &Product, line: Option<&SoldLine>) -> Result<(), Parked> {
        if product.credits > 0 {
            self.add_credits(product.credits, 0, line.map_or(1, |line| line.quantity))?;
        }
        let amount = line.and_then(|line| line.amount);
        match self.products.iter_mut().find(|known| known.name == product.name) {
            Some(known) => known.amount = known.amount.zip(amount).map(|(a, b)| a.saturating_add(b)),
            None => self.products.push(SoldProduct {
                name: product.name.clone(),
                price: line.map(|line| line.price.id.clone()),
                amount,
            }),
        }
        Ok(())
    }
}

fn sold(session: &CheckoutSession, catalog: &Catalog) -> Result<Sold, Parked> {
    if let Some(lines) = session.line_items.as_ref().filter(|lines| !lines.is_empty()) {
        match sold_lines(lines, catalog) {
            // A price that was made for this session alone (`price_data`): the metadata says what it sells.
            Err(Parked::UnknownPrice(..))
                if ["product", "pack"].iter().any(|it| named(session, it).is_some()) => {}
            sold => return sold,
        }
    }
    let mut sold = Sold::default();
    if let Some(name) = named(session, "product") {
        let product = catalog.product(name).ok_or_else(|| unknown("product", name))?;
        sold.add_product(product, None)?;
        return Ok(sold);
    }
    if let Some(name) = named(session, "pack") {
        let pack = catalog.pack(name).ok_or_else(|| unknown("pack", name))?;
        let (quantity, assumed) = quantity(session, pack.amount, pack.currency.as_deref())?;
        sold.quantity_assumed = assumed;
        sold.add_packs(pack, quantity)?;
        return Ok(sold);
    }
    let Some(name) = named(session, "plan") else { return Err(Parked::Unnamed) };
    let plan = catalog.plan(name).ok_or_else(|| unknown("plan", name))?;
    let (quantity, assumed) = quantity(session, plan.amount, plan.currency.as_deref())?;
    let terms = Terms::of(plan);
    Ok(Sold { lifetimes: vec![(terms.worth(quantity), terms)], quantity_assumed: assumed, ..sold })
}

/// Each known line has its effect. Unknown lines have no effect if there is a known one.
fn sold_lines(lines: &[SoldLine], catalog: &Catalog) -> Result<Sold, Parked> {
    let mut sold = Sold::default();
    let mut unknown = None;
    for line in lines {
        match offer(&line.price, catalog)? {
            Some(Offer::Pack(pack)) => sold.add_packs(pack, line.quantity)?,
            Some(Offer::Product(product)) => sold.add_product(product, Some(line))?,
            Some(Offer::Plan(plan)) => {
                let terms = Terms::of(plan);
                sold.lifetimes.push((terms.worth(line.quantity.min(MAX_QUANTITY)), terms));
            }
            None => {
                unknown.get_or_insert(&line.price.id);
            }
        }
    }
    match unknown {
        Some(price) if sold.packs.is_empty() && sold.lifetimes.is_empty() && sold.products.is_empty() => {
            Err(Parked::UnknownPrice(price.clone(), None))
        }
        Some(_) | None => Ok(sold),
    }
}

/// The quantity that was sold, and whether it is assumed. `amount` is what one costs, in `currency`.
fn quantity(
    session: &CheckoutSession,
    amount: Option<u64>,
    currency: Option<&str>,
) -> Result<(u64, bool), Parked> {
    if let Some(text) = named(session, "quantity").filter(|_| !session.payment_link) {
        let out_of_range = || Parked::Quantity(text.chars().take(32).collect());
        let quantity = text.parse().ok().filter(|count| (1..=MAX_QUANTITY).contains(count));
        return Ok((quantity.ok_or_else(out_of_range)?, false));
    }
    if let Some([line]) = session.line_items.as_deref() {
        return Ok((line.quantity, false));
    }
    let subtotal = subtotal_in(session, currency).and_then(|subtotal| u64::try_from(subtotal).ok());
    let counted = subtotal.zip(amount).and_then(|(subtotal, amount)| subtotal.checked_div(amount));
    match counted.filter(|count| *count > 0) {
        Some(quantity) => Ok((quantity, false)),
        None => Ok((1, true)),
    }
}

/// The subtotal in a currency, or in the price's own if the catalog names none. A price may have an amount of
/// its own in each currency, and Stripe may convert a session into the currency of the customer.
fn subtotal_in(session: &CheckoutSession, currency: Option<&str>) -> Option<i64> {
    let is_it = |of: &str| currency.is_none_or(|currency| currency == of);
    match &session.converted_from {
        Some((subtotal, of)) if is_it(of) => Some(*subtotal),
        Some(_) | None => session.amount_subtotal.filter(|_| session.currency.as_deref().is_none_or(is_it)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::decide::tests::{P1, P2, Run, Step, check, check_any_order, pack, paid, session};

    #[test]
    fn a_paid_pack_is_added_once() {
        let bought = |metadata, patch| vec![session("completed", 50, "cs_1", metadata, patch)];
        let p = || json!({"pack": "p1000"});
        for (what, given, expect) in [
            ("one", bought(p(), json!({})), "free 1000 | addon=1000 | session#cs_1 +1000"),
            (
                "twice summary",
                [bought(p(), json!({})), bought(p(), json!({}))].concat(),
                "free 1000 | addon=1000 | session#cs_1 +1000",
            ),
            (
                "three",
                bought(json!({"pack": "p1000", "quantity": "3"}), json!({})),
                "free 3000 | addon=3000 | session#cs_1 +3000",
            ),
            (
                "a guest",
                bought(p(), json!({"customer": null})),
                "free 1000 | addon=1000 | session#cs_1 +1000",
            ),
            (
                "free of charge",
                bought(
                    p(),
                    json!({"payment_status": "no_payment_required", "payment_intent": null,
                        "amount_total": 0}),
                ),
                "free 1000 | addon=1000 | session#cs_1 +1000",
            ),
            ("unpaid", bought(p(), json!({"payment_status": "unpaid"})), "free 0 |  | "),
            (
                "none",
                bought(json!({"pack": "p1000", "quantity": "0"}), json!({})),
                "free 0 |  |  | checkout.session.completed parked: quantity",
            ),
            (
                "a negative number",
                bought(json!({"pack": "p1000", "quantity": "-3"}), json!({})),
                "free 0 |  |  | checkout.session.completed parked: quantity",
            ),
            (
                "no number",
                bought(json!({"pack": "p1000", "quantity": "1e9"}), json!({})),
                "free 0 |  |  | checkout.session.completed parked: quantity",
            ),
            (
                "unknown",
                bought(json!({"pack": "p9"}), json!({})),
                "free 0 |  |  | checkout.session.completed parked: unknown_name",
            ),
            (
                "unnamed",
                bought(json!({"credits": "5000"}), json!({})),
                "free 0 |  |  | checkout.session.completed parked: unnamed_purchase",
            ),
            (
                "an unknown order",
                bought(json!({"mode": "xyz", "plan": "starter"}), json!({})),
                "free 0 |  |  | checkout.session.completed parked: unknown_name",
            ),
            (
                "an unknown plan of an order",
                bought(json!({"mode": "dfy", "plan": "xyz"}), json!({})),
                "free 0 |  |  | checkout.session.completed parked: unknown_name",
            ),
            (
                "mode subscription",
                bought(json!({"plan": "pro"}), json!({"mode": "subscription", "subscription": "sub_1"})),
                "free 0 |  | ",
            ),
            (
                "mode setup",
                bought(json!({}), json!({"mode": "setup", "payment_status": "no_payment_required"})),
                "free 0 |  | ",
            ),
        ] {
            check(what, given, expect);
        }
    }

    #[test]
    fn a_delayed_payment_counts_when_it_arrives() {
        let unpaid = || {
            session("completed", 50, "cs_1", json!({"pack": "p1000"}), json!({"payment_status": "unpaid"}))
        };
        let later = |kind: &str, status: &str| {
            session(kind, 90, "cs_1", json!({"pack": "p1000"}), json!({"payment_status": status}))
        };
        let arrived = || later("async_payment_succeeded", "paid");
        check_any_order(
            "it arrives",
            vec![unpaid(), arrived()],
            "free 1000 | addon=1000 | session#cs_1 +1000",
        );
        check_any_order(
            "twice",
            vec![unpaid(), arrived(), arrived()],
            "free 1000 | addon=1000 | session#cs_1 +1000",
        );
        check_any_order("it fails", vec![unpaid(), later("async_payment_failed", "unpaid")], "free 0 |  | ");
        check("a failure never counts as paid", vec![later("async_payment_failed", "paid")], "free 0 |  | ");
        check("an expired session never counts as paid", vec![later("expired", "paid")], "free 0 |  | ");
        let run = Run::of(&[unpaid(), later("async_payment_failed", "unpaid")]);
        assert!(run.account.state.payment_failed_at.is_some() && run.account.state.first_paid_at.is_none());
        let waits = Run::of(&[unpaid(), later("expired", "unpaid")]);
        assert_eq!(waits.account.state.payment_failed_at, None, "a payment that is awaited has not failed");
    }

    #[test]
    fn a_pack_that_arrives_after_a_newer_reset_is_granted_in_full() {
        let renewal = |id: &str, start| paid(start, id, "subscription_cycle", "price_pro", start);
        check(
            "in order the renewal ends it",
            vec![pack(P1 + 5, "cs_1"), renewal("in_2", P2)],
            "pro until 5185000 5000 | sub_1=5000 | session#cs_1 +1000, invoice#in_2 +4000",
        );
        check(
            "late it counts until the next reset",
            vec![renewal("in_2", P2), pack(P1 + 5, "cs_1")],
            "pro until 5185000 6000 | sub_1=5000 addon=1000 | invoice#in_2 +5000, session#cs_1 +1000",
        );
        let next = renewal("in_3", P2 + 99);
        check(
            "which ends it",
            vec![renewal("in_2", P2), pack(P1 + 5, "cs_1"), next],
            "pro until 5185099 5000 | sub_1=5000 | invoice#in_2 +5000, session#cs_1 +1000, invoice#in_3 \
             -1000",
        );
        let kept = vec![Step::KeepAddons, pack(P1 + 5, "cs_1"), renewal("in_2", P2)];
        check_any_order(
            "kept add-ons are not ended",
            kept,
            "pro until 5185000 6000 | sub_1=5000 addon=1000 | session#cs_1 +1000, invoice#in_2 +5000",
        );
    }

    #[test]
    fn an_order_is_created_once_with_all_its_fields() {
        let metadata = json!({"mode": "dfy", "plan": "starter", "upgraded_from": "cs_0"});
        let order =
            session("completed", 50, "cs_1", metadata, json!({"amount_total": 9900, "currency": "jpy"}));
        let run = Run::of(&[order.clone(), order]);
        assert_eq!(run.summary(), "free 0 |  | session#cs_1 +0");
        let [order] = run.orders.as_slice() else { panic!("{:?}", run.orders) };
        assert_eq!(
            (order.session.as_str(), order.mode.as_str(), order.tier.as_str()),
            ("cs_1", "dfy", "STARTER")
        );
        assert_eq!(
            (order.created_at.unix(), order.deadline.unwrap().unix(), order.revisions_left),
            (50, 50 + 3 * 86_400, 2)
        );
        assert_eq!((order.amount_total, order.currency.as_str()), (9900, "jpy"));
        assert_eq!(
            (order.customer_email.as_deref(), order.upgraded_from.as_deref()),
            (Some("a@example.com"), Some("cs_0"))
        );
        let order = session("completed", 50, "cs_1", json!({"mode": "dfy", "plan": "starter"}), json!({}));
        let run = Run::of(&[Step::Edit("revisions = 2, deadline_days = 3", "revisions = 2"), order]);
        assert_eq!(run.orders[0].deadline, None, "the plan has no deadline");
    }

    #[test]
    fn a_subscription_session_confirms_a_payment_for_a_plan_of_the_catalog() {
        for (what, mode, status, amount, plan, confirmed) in [
            ("paid", "subscription", "paid", 2000, "pro", true),
            ("not paid", "subscription", "unpaid", 2000, "pro", false),
            ("a trial", "subscription", "no_payment_required", 0, "pro", false),
            ("nothing to pay", "subscription", "paid", 0, "pro", false),
            ("a plan of another product", "subscription", "paid", 2000, "xyz", false),
            ("a set-up", "setup", "no_payment_required", 0, "pro", false),
        ] {
            let patch = json!({
                "mode": mode, "subscription": "sub_1", "payment_status": status, "amount_total": amount,
                "payment_intent": null,
            });
            let run = Run::of(&[session("completed", 50, "cs_1", json!({"plan": plan}), patch)]);
            assert_eq!(run.account.state.first_paid_at.is_some(), confirmed, "{what}");
        }
    }
}
