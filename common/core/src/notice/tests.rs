//! Which messages the app gets about an event.

use serde_json::{Value, json};

use super::Notice;
use crate::decide::tests::{
    P1, P2, Step, changed, dispute, event, invoice, items, notices_of, pack, paid, refunded, session, sub,
    updated,
};

fn kinds(given: &[Step], step: &Step) -> Vec<&'static str> {
    notices_of(given, step).iter().map(|notice| notice.kind.as_str()).collect()
}

fn active() -> Step {
    sub("created", P1, json!({}))
}

fn first() -> Step {
    paid(P1, "in_1", "subscription_create", "price_pro", P1)
}

#[test]
fn a_subscription_starts_changes_ends_and_renews_once() {
    let now = |patch: Value| updated(P1 + 9, patch, json!({}));
    let seats = |count: u64| json!({"items": items(&[("price_team", count)], P1)});
    let cancels = json!({"cancel_at_period_end": true});
    let trialing = json!({"status": "trialing"});
    let ended = sub("deleted", P1 + 9, json!({"status": "canceled"}));
    let deleted = event("customer.deleted", P1 + 9, &json!({"id": "cus_1"}), None);
    let renewed = || paid(P2, "in_2", "subscription_cycle", "price_pro", P2);
    for (what, given, step, expect) in [
        ("it starts", vec![], active(), vec!["subscription_started"]),
        ("shown again", vec![active()], active(), vec![]),
        ("its first invoice is all that is known", vec![], first(), vec!["subscription_started"]),
        ("its first invoice", vec![active()], first(), vec![]),
        ("not paid yet", vec![], sub("created", P1, json!({"status": "incomplete"})), vec![]),
        (
            "paid then",
            vec![sub("created", P1, json!({"status": "incomplete"}))],
            now(json!({})),
            vec!["subscription_started"],
        ),
        (
            "without a plan of the catalog",
            vec![],
            sub("created", P1, json!({"status": "paused", "items": items(&[("price_other", 1)], P1)})),
            vec![],
        ),
        (
            "another plan",
            vec![active()],
            changed(P1 + 9, ("price_pro", 1), ("price_business", 1), P1),
            vec!["subscription_changed"],
        ),
        (
            "another price of the plan",
            vec![active()],
            changed(P1 + 9, ("price_pro", 1), ("price_pro_year", 1), P1),
            vec!["subscription_changed"],
        ),
        ("another seat", vec![sub("created", P1, seats(2))], now(seats(3)), vec!["subscription_changed"]),
        (
            "a second item",
            vec![active()],
            now(json!({"items": items(&[("price_pro", 1), ("price_boost", 1)], P1)})),
            vec!["subscription_changed"],
        ),
        ("overdue", vec![active()], now(json!({"status": "past_due"})), vec!["subscription_changed"]),
        ("it will end", vec![active()], now(cancels.clone()), vec!["subscription_ending"]),
        (
            "it starts and will end",
            vec![],
            now(cancels.clone()),
            vec!["subscription_started", "subscription_ending"],
        ),
        ("it will not", vec![sub("created", P1, cancels)], now(json!({})), vec!["subscription_changed"]),
        (
            "its trial ends",
            vec![sub("created", P1, trialing.clone())],
            sub("trial_will_end", P1 + 9, trialing),
            vec!["trial_ending"],
        ),
        ("its trial has ended", vec![active()], sub("trial_will_end", P1 + 9, json!({})), vec![]),
        ("it ended", vec![active()], ended.clone(), vec!["subscription_ended"]),
        ("with its customer", vec![active()], deleted.clone().into(), vec!["subscription_ended"]),
        ("it had ended", vec![active(), ended], deleted.into(), vec![]),
        ("renewed", vec![active(), first()], renewed(), vec!["subscription_renewed"]),
        ("an older one that comes late", vec![active(), renewed()], first(), vec![]),
    ] {
        assert_eq!(kinds(&given, &step), expect, "{what}");
    }
    let all = notices_of(&[active(), first()], &renewed());
    let [Notice { about, data, .. }] = &all[..] else { panic!("{all:?}") };
    assert_eq!((about.as_str(), &data["invoice"]), ("in_2", &json!({"id": "in_2"})));
    let all = notices_of(&[], &sub("created", P1, json!({"cancel_at_period_end": true})));
    let shown = json!({
        "id": "sub_1", "status": "active", "plan": "pro", "price": "price_pro", "quantity": 1,
        "period_start": "1970-01-01T00:16:40Z", "period_end": "1970-01-31T00:16:40Z",
        "cancelling": true, "cancel_at": "1970-01-31T00:16:40Z",
    });
    assert_eq!(all[0].data["subscription"], shown);
    let over = [Step::At(P2 + 9)];
    assert_eq!(kinds(&over, &first()), Vec::<&str>::new(), "an invoice of a period that is over");
}

#[test]
fn a_failed_payment_is_told_unless_its_document_was_paid() {
    let billed = |kind: &str| {
        let patch = json!({"status": "open", "amount_due": 2000, "attempt_count": 2});
        invoice(kind, P1 + 9, "in_1", "subscription_cycle", &[], patch)
    };
    assert_eq!(kinds(&[active()], &billed("payment_failed")), ["payment_failed"]);
    let all = notices_of(&[active()], &billed("payment_failed"));
    let shown = json!({
        "id": "in_1", "subscription": "sub_1", "amount_due": 2000, "currency": "usd", "attempt_count": 2,
        "next_payment_attempt": null, "hosted_invoice_url": null,
    });
    assert_eq!(all[0].data["invoice"], shown);
    assert_eq!(kinds(&[active()], &billed("payment_action_required")), ["payment_action_required"]);
    assert_eq!(kinds(&[active(), first()], &billed("payment_failed")), Vec::<&str>::new());
    let failed = session(
        "async_payment_failed",
        P1,
        "cs_1",
        json!({"pack": "p1000"}),
        json!({"payment_status": "unpaid"}),
    );
    let all = notices_of(&[], &failed);
    let [Notice { data, .. }] = &all[..] else { panic!("{all:?}") };
    let shown = json!({"id": "cs_1", "amount_total": 2000, "currency": "usd"});
    assert_eq!((kinds(&[], &failed), &data["checkout_session"]), (vec!["payment_failed"], &shown));
    assert_eq!(kinds(&[pack(P1, "cs_1")], &failed), Vec::<&str>::new());
    let expired = session("expired", P1, "cs_1", json!({}), json!({"payment_status": "unpaid"}));
    assert_eq!(kinds(&[], &expired), Vec::<&str>::new());
}

#[test]
fn a_refund_is_told_once_with_what_it_took() {
    let half = || refunded(P1 + 9, "pi_cs_1", 1000);
    let all = notices_of(&[pack(P1, "cs_1")], &half());
    let [Notice { kind, data, .. }] = &all[..] else { panic!("{all:?}") };
    assert_eq!(kind.as_str(), "refund_applied");
    let shown = json!({
        "payment": "pi_cs_1", "invoice": null, "checkout_session": "cs_1",
        "amount_refunded": 1000, "credits": -500, "shortfall": 0,
    });
    assert_eq!(data["refund"], shown);
    let again = refunded(P1 + 12, "pi_cs_1", 1000);
    assert_eq!(kinds(&[pack(P1, "cs_1"), half()], &again), Vec::<&str>::new());
    assert_eq!(kinds(&[half()], &pack(P1, "cs_1")), ["refund_applied"], "the refund came first");
    let past = [active(), first(), paid(P2, "in_2", "subscription_cycle", "price_pro", P2)];
    assert_eq!(kinds(&past, &refunded(P2 + 9, "pi_in_1", 2000)), Vec::<&str>::new());
}

#[test]
fn a_dispute_is_told_when_it_opens_and_when_it_closes() {
    let of = |kind: &str, at: i64, status: &str| dispute(kind, P1 + at, "pi_cs_1", status);
    let given = |more: &[Step]| [&[pack(P1, "cs_1")][..], more].concat();
    let opened = || of("created", 5, "needs_response");
    let inquiry = || of("created", 4, "warning_needs_response");
    for (what, before, step, expect) in [
        ("an inquiry", vec![], inquiry(), None),
        ("a dispute", vec![], opened(), Some("dispute_opened")),
        ("of an inquiry", vec![inquiry()], opened(), Some("dispute_opened")),
        ("the same again", vec![opened()], of("updated", 6, "under_review"), None),
        ("lost", vec![opened()], of("closed", 9, "lost"), Some("dispute_closed")),
        ("won", vec![opened()], of("closed", 9, "won"), Some("dispute_closed")),
        ("lost, and not known before", vec![], of("closed", 9, "lost"), Some("dispute_closed")),
        ("lost, once more", vec![opened(), of("closed", 9, "lost")], of("closed", 10, "lost"), None),
    ] {
        assert_eq!(kinds(&given(&before), &step), Vec::from_iter(expect), "{what}");
    }
    let all = notices_of(&given(&[]), &opened());
    assert_eq!(all[0].about, "dp_1");
    assert_eq!(all[0].data["dispute"]["status"], "open");
}
