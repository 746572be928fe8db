//! `checkout.session.*`: what was bought once, and who the customer is.
//!
//! | session | rule | ledger key |
//! |---|---|---|
//! | `mode=payment`, `metadata.pack` (× `quantity`), paid or nothing to pay | ADD the pack's credits | `session#cs_…` |
//! | `mode=payment`, `metadata.mode` + `plan`, paid or nothing to pay | an order | `session#cs_…` |
//! | `mode=subscription` | binds customer and user; `invoice.paid` grants | – |
//! | `mode=setup` | binds customer and user | – |
//! | unpaid, failed, expired | nothing: a delayed payment sends `async_payment_succeeded` later | – |
//!
//! `status=complete` does not mean paid; only `payment_status` does. Amounts come from the catalog, never
//! from metadata.

use super::{Order, Parked, PaymentRef, Reading};
use crate::account::Fact;
use crate::catalog::{Catalog, MAX_QUANTITY};
use crate::credits::Credits;
use crate::event::{CheckoutMode, CheckoutSession, Event, EventType, PaymentStatus};
use crate::ledger::{EntryKind, LedgerKey, Payment};

pub(super) fn read(session: &CheckoutSession, event: &Event, catalog: &Catalog) -> Result<Reading, Parked> {
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
            return Ok(Reading { facts: failed.into_iter().collect(), not_paid: true, ..Reading::default() });
        }
        CheckoutMode::Subscription | CheckoutMode::Setup | CheckoutMode::Other(_) => {
            let confirmed = paid && session.mode == CheckoutMode::Subscription;
            let facts = failed.into_iter().chain(confirmed.then_some(Fact::Paid(event.created))).collect();
            return Ok(Reading { facts, not_paid: !paid, ..Reading::default() });
        }
    }
    let key = LedgerKey::session(&session.id);
    let payment = Payment {
        amount: session.amount_total.unwrap_or(0),
        currency: session.currency.clone().unwrap_or_default(),
        intent: session.payment_intent.clone(),
    };
    let (bought, order) = bought(session, event, catalog, &key, payment)?;
    Ok(Reading {
        facts: vec![bought, Fact::Paid(event.created)],
        payments: session
            .payment_intent
            .iter()
            .map(|intent| (PaymentRef::Intent(intent.clone()), key.clone()))
            .collect(),
        order,
        not_paid: false,
    })
}

fn bought(
    session: &CheckoutSession,
    event: &Event,
    catalog: &Catalog,
    key: &LedgerKey,
    payment: Payment,
) -> Result<(Fact, Option<Order>), Parked> {
    let named = |name: &str| session.metadata.get(name).map(String::as_str).filter(|value| !value.is_empty());
    if let Some(mode) = named("mode") {
        let unknown = |what, name: &str| Parked::UnknownName(what, name.to_owned());
        let kind = catalog.order(mode).ok_or_else(|| unknown("mode", mode))?;
        let plan_name = named("plan").ok_or(Parked::Unnamed)?;
        let plan = kind.plans.get(plan_name).ok_or_else(|| unknown("plan", plan_name))?;
        let order = Order {
            session: session.id.clone(),
            mode: mode.to_owned(),
            tier: plan_name.to_uppercase(),
            deadline: event.created.plus_days(plan.deadline_days),
            revisions_left: plan.revisions,
            customer_email: session.customer_email.clone(),
            amount_total: payment.amount,
            currency: payment.currency.clone(),
            upgraded_from: named("upgraded_from").map(str::to_owned),
            created_at: event.created,
        };
        return Ok((Fact::Recorded(key.clone(), EntryKind::Order, Some(payment)), Some(order)));
    }
    let Some(name) = named("pack") else { return Err(Parked::Unnamed) };
    let pack = catalog.pack(name).ok_or_else(|| Parked::UnknownName("pack", name.to_owned()))?;
    let quantity = named("quantity").unwrap_or("1");
    let out_of_range = || Parked::Quantity(quantity.chars().take(32).collect());
    let count: u64 =
        quantity.parse().ok().filter(|count| (1..=MAX_QUANTITY).contains(count)).ok_or_else(out_of_range)?;
    let credits = Credits::new(pack.credits).times(count).ok_or_else(out_of_range)?;
    Ok((Fact::AddOn { key: key.clone(), credits, at: event.created, payment: Some(payment) }, None))
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
                "twice told",
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
                    json!({"payment_status": "no_payment_required", "payment_intent": null, "amount_total": 0}),
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
    fn a_paid_session_of_a_subscription_confirms_a_payment_and_one_of_a_setup_does_not() {
        for (mode, confirmed) in [("subscription", true), ("setup", false)] {
            let run = Run::of(&[session("completed", 50, "cs_1", json!({}), json!({"mode": mode}))]);
            assert_eq!(run.account.state.first_paid_at.is_some(), confirmed, "{mode}");
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
        check("nor does a session that ran out", vec![later("expired", "paid")], "free 0 |  | ");
        let run = Run::of(&[unpaid(), later("async_payment_failed", "unpaid")]);
        assert!(run.account.state.payment_failed_at.is_some() && run.account.state.first_paid_at.is_none());
    }

    #[test]
    fn a_pack_that_comes_after_the_reset_that_ended_it_is_granted_in_full() {
        let renewal = |id: &str, start| paid(start, id, "subscription_cycle", "price_pro", start);
        check(
            "in order the renewal ends it",
            vec![pack(P1 + 5, "cs_1"), renewal("in_2", P2)],
            "pro 5000 | sub_1=5000 | session#cs_1 +1000, invoice#in_2 +4000",
        );
        check(
            "late it counts until the next reset",
            vec![renewal("in_2", P2), pack(P1 + 5, "cs_1")],
            "pro 6000 | sub_1=5000 addon=1000 | invoice#in_2 +5000, session#cs_1 +1000",
        );
        let next = renewal("in_3", P2 + 99);
        check(
            "which ends it",
            vec![renewal("in_2", P2), pack(P1 + 5, "cs_1"), next],
            "pro 5000 | sub_1=5000 | invoice#in_2 +5000, session#cs_1 +1000, invoice#in_3 -1000",
        );
        let kept = vec![Step::KeepAddons, pack(P1 + 5, "cs_1"), renewal("in_2", P2)];
        check_any_order(
            "kept add-ons do not care",
            kept,
            "pro 6000 | sub_1=5000 addon=1000 | session#cs_1 +1000, invoice#in_2 +5000",
        );
    }

    #[test]
    fn an_order_is_made_once_with_all_that_the_app_needs() {
        let metadata = json!({"mode": "dfy", "plan": "starter", "upgraded_from": "cs_0"});
        let order =
            session("completed", 50, "cs_1", metadata, json!({"amount_total": 9900, "currency": "jpy"}));
        let run = Run::of(&[order.clone(), order]);
        assert_eq!(run.told(), "free 0 |  | session#cs_1 +0");
        let [order] = run.orders.as_slice() else { panic!("{:?}", run.orders) };
        assert_eq!(
            (order.session.as_str(), order.mode.as_str(), order.tier.as_str()),
            ("cs_1", "dfy", "STARTER")
        );
        assert_eq!(
            (order.created_at.unix(), order.deadline.unix(), order.revisions_left),
            (50, 50 + 3 * 86_400, 2)
        );
        assert_eq!((order.amount_total, order.currency.as_str()), (9900, "jpy"));
        assert_eq!(
            (order.customer_email.as_deref(), order.upgraded_from.as_deref()),
            (Some("a@example.com"), Some("cs_0"))
        );
    }

    #[test]
    fn a_subscription_bought_for_nothing_is_confirmed_by_its_session() {
        for (status, confirmed) in [("paid", true), ("no_payment_required", true), ("unpaid", false)] {
            let patch = json!({"mode": "subscription", "subscription": "sub_1", "payment_status": status, "payment_intent": null});
            let run = Run::of(&[session("completed", 50, "cs_1", json!({}), patch)]);
            assert_eq!(run.account.state.first_paid_at.is_some(), confirmed, "{status}");
        }
    }
}
