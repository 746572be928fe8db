//! All shapes of an object give equal values. An error names the path of the field.

use serde_json::{Value, json};

use super::*;

/// An event of `kind` about `object`.
fn event(kind: &str, object: Value) -> Event {
    try_event(kind, object, Value::Null).unwrap()
}

fn try_event(kind: &str, object: Value, before: Value) -> Result<Event, ReadError> {
    let body = json!({"id": "evt_1", "object": "event", "type": kind, "created": 1_759_312_800,
        "livemode": true, "account": "acct_1", "context": "acct_1/acct_2",
        "api_version": "2025-09-30.clover", "request": "req_1", "data": {"object": object,
            "previous_attributes": before}});
    read(body.to_string().as_bytes())
}

fn subscription(event: Event) -> Subscription {
    let Object::Subscription(subscription) = event.object else { panic!("{:?}", event.object) };
    subscription
}

fn invoice(event: Event) -> Invoice {
    let Object::Invoice(invoice) = event.object else { panic!("{:?}", event.object) };
    invoice
}

fn time(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp::from_unix(seconds))
}

#[test]
fn the_envelope_is_read_for_any_type() {
    let event = event("coupon.created", json!({"percent_off": 12.5}));
    assert_eq!((event.id.as_str(), event.created.unix(), event.livemode), ("evt_1", 1_759_312_800, true));
    assert_eq!(
        (event.account.as_deref(), event.context.as_deref(), event.api_version.as_deref()),
        (Some("acct_1"), Some("acct_1/acct_2"), Some("2025-09-30.clover"))
    );
    assert_eq!(
        (&event.object, event.kind.as_str(), event.object_ids().len()),
        (&Object::Other, "coupon.created", 0)
    );
}

#[test]
fn a_version_is_unknown_if_it_is_newer_than_the_documented_ones_or_no_date() {
    let mut event = event("coupon.created", json!({}));
    let mut unknown = |version: Option<&str>| {
        event.api_version = version.map(str::to_owned);
        event.unknown_version().map(str::to_owned)
    };
    let known = ["2017-12-14", "2024-06-20", "2025-03-31.basil", "2026-10-28.endive", "2026-10-28.preview"];
    for version in known {
        assert_eq!(unknown(Some(version)), None, "{version}");
    }
    assert_eq!(unknown(None), None);
    for version in ["2026-10-29.endive", "2031-01-01.zephyr", "", "2026", "newest", "2026/10/28", "äöüäöüä"]
    {
        assert_eq!(unknown(Some(version)).as_deref(), Some(version));
    }
}

#[test]
fn the_ids_of_a_log_line_are_those_of_the_object() {
    let ids = |kind: &str, object: Value| {
        let event = event(kind, object);
        [
            event.customer().map(ToString::to_string),
            event.subscription_id().map(ToString::to_string),
            event.checkout_session_id().map(ToString::to_string),
        ]
        .map(|id| id.unwrap_or_default())
    };
    let session = json!({"id": "cs_1", "object": "checkout.session", "mode": "subscription",
        "customer": "cus_1", "subscription": "sub_1",
        "payment_status": "paid", "created": 1, "metadata": {}});
    assert_eq!(ids("checkout.session.completed", session), ["cus_1", "sub_1", "cs_1"]);
    assert_eq!(
        ids("customer.deleted", json!({"id": "cus_2", "object": "customer", "metadata": {}})),
        ["cus_2", "", ""]
    );
    assert_eq!(ids("coupon.created", json!({"customer": "cus_3"})), ["", "", ""]);
}

#[test]
fn old_and_new_subscriptions_give_equal_values() {
    let with = |more: Value| {
        let mut object = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1",
            "status": "active", "cancel_at": null,
            "cancel_at_period_end": true, "canceled_at": 5, "trial_end": 7, "created": 1,
            "latest_invoice": "in_1",
            "metadata": {"user_id": "u1", "color": "red"}, "pause_collection": null});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        subscription(event("customer.subscription.created", object))
    };
    let new = with(json!({"customer": {"id": "cus_1", "object": "customer", "deleted": true},
            "latest_invoice": {"id": "in_1"}, "items":
        {"has_more": false, "data": [{"id": "si_1", "price": {"id": "gold"}, "quantity": 3,
            "current_period_start": 10, "current_period_end": 20}]}}));
    let period_above = with(json!({"current_period_start": 10, "current_period_end": 20,
        "items": {"data": [{"id": "si_1", "price": {"id": "gold"}, "plan": {"id": "x"}, "quantity": 3}]}}));
    let plans = with(json!({"current_period_start": 10, "current_period_end": 20,
            "items": {"data": [{"plan": {"id": "gold"}, "quantity": 3}]}}));
    let no_items = with(
        json!({"current_period_start": 10, "current_period_end": 20, "plan": {"id": "gold"}, "quantity": 3}),
    );
    // An item without an id gets one from its position.
    for (mut old, id) in [(period_above, "si_1"), (plans, "item-0"), (no_items, "only")] {
        assert_eq!(old.items[0].id.as_str(), id);
        old.items[0].id = new.items[0].id.clone();
        assert_eq!(old, new);
    }
    assert_eq!((new.period_start(), new.period_end(), new.items[0].quantity), (time(10), time(20), 3));
    assert_eq!(
        (new.cancel_at_period_end, new.canceled_at, new.trial_start, new.trial_end),
        (true, time(5), None, time(7))
    );
    assert_eq!(new.metadata, Metadata::from([("user_id".to_owned(), "u1".to_owned())]));
    let metered = with(json!({"items": {"has_more": true, "data": [{"price": "a"}, {"price": {"id": "b"},
            "current_period_start": 9}]}}));
    assert_eq!(
        (metered.items[0].quantity, metered.items_has_more, metered.period_start()),
        (1, true, time(9))
    );
}

#[test]
fn old_and_new_updates_give_equal_previous_values() {
    let with = |before: Value| {
        let object =
            json!({"id": "sub_1", "status": "active", "items": {"data": [{"price": {"id": "gold"}}]}});
        subscription(try_event("customer.subscription.updated", object, before).unwrap()).previous
    };
    let item = |price: &str, quantity, start, end| PreviousItem {
        id: None,
        price: (!price.is_empty()).then(|| price.parse().unwrap()),
        quantity,
        period_start: start,
        period_end: end,
    };
    let new =
        with(json!({"items": {"data": [{"price": {"id": "basic"}, "quantity": 2, "current_period_start": 1,
            "current_period_end": 2}]}}));
    let old = with(
        json!({"items": {"data": [{"plan": {"id": "basic"}, "quantity": 2}]}, "current_period_start": 1,
            "current_period_end": 2}),
    );
    let older = with(
        json!({"plan": {"id": "basic"}, "quantity": 2, "current_period_start": 1, "current_period_end": 2}),
    );
    assert_eq!(
        new,
        Some(PreviousAttributes {
            items: Some(vec![item("basic", Some(2), time(1), time(2))]),
            period_start: time(1),
            ..PreviousAttributes::default()
        })
    );
    assert_eq!((&old, &older), (&new, &new));

    let seats = with(json!({"quantity": 2})).unwrap();
    assert_eq!(seats.items, Some(vec![item("", Some(2), None, None)]));
    let renewal = with(json!({"current_period_start": 1, "current_period_end": 2})).unwrap();
    assert_eq!((renewal.items, renewal.period_start), (None, time(1)));
    let cancel = with(json!({"status": "past_due", "cancel_at": null, "cancel_at_period_end": false,
        "default_source": null}))
    .unwrap();
    assert_eq!((cancel.status, cancel.cancel_at), (Some(SubscriptionStatus::PastDue), Some(None)));
    assert_eq!(
        (cancel.cancel_at_period_end, with(json!({"cancel_at": 9})).unwrap().cancel_at),
        (Some(false), Some(time(9)))
    );
    assert_eq!((with(json!({})), with(Value::Null)), (Some(PreviousAttributes::default()), None));
}

#[test]
fn old_and_new_invoices_give_equal_values() {
    let new = json!({"id": "in_1", "object": "invoice", "customer": "cus_1", "status": "paid",
        "billing_reason": "subscription_update",
        "amount_paid": 1500, "subtotal": 1500, "total": 1500, "currency": "usd", "created": 1,
        "attempt_count": 1, "next_payment_attempt": null,
        "period_start": 99, "period_end": 99,
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_1",
            "metadata": {"user_id": "u1"}}},
        "payments": {"data": [{"status": "canceled", "payment": {"type": "payment_intent",
            "payment_intent": "pi_0"}},
            {"status": "paid", "payment": {"type": "payment_intent", "payment_intent": {"id": "pi_1"},
                "charge": "ch_1"}}]},
        "lines": {"has_more": true, "data": [
            {"amount": -500, "quantity": 1, "period": {"start": 3, "end": 10},
                "metadata": {"client_id": "u2"},
             "parent": {"type": "invoice_item_details", "invoice_item_details": {"proration": true,
                 "subscription": "sub_1"}},
             "pricing": {"price_details": {"price": "basic", "product": "prod_1"}}},
            {"amount": 2000, "quantity": 2, "period": {"start": 3, "end": 13}, "metadata": {},
             "parent": {"type": "subscription_item_details", "subscription_item_details": {"proration": false,
                 "subscription": "sub_1"}},
             "pricing": {"price_details": {"price": {"id": "gold"}}}}]}});
    let old = json!({"id": "in_1", "object": "invoice", "customer": {"id": "cus_1"}, "paid": true,
        "status": "paid",
        "billing_reason": "subscription_update", "amount_paid": 1500, "subtotal": 1500, "total": 1500,
        "currency": "usd", "created": 1,
        "attempt_count": 1, "subscription": "sub_1", "payment_intent": "pi_1", "charge": "ch_1",
        "subscription_details": {"metadata": {"user_id": "u1"}},
        "lines": {"has_more": true, "data": [
            {"amount": -500, "quantity": 1, "period": {"start": 3, "end": 10},
                "metadata": {"client_id": "u2"}, "type": "invoiceitem",
             "proration": true, "price": {"id": "basic", "product": "prod_1"}, "subscription": "sub_1"},
            {"id": "sub_1", "amount": 2000, "quantity": 2, "period": {"start": 3, "end": 13},
                "type": "subscription",
             "proration": false, "plan": {"id": "gold"}, "subscription": null}]}});
    let (old, new) = (event("invoice.paid", old), event("invoice.paid", new));
    assert_eq!(old, new);
    assert_eq!(new.object_ids(), ["in_1", "cus_1", "sub_1", "pi_1", "ch_1"]);
    let new = invoice(new);
    let shape: Vec<_> =
        new.lines.iter().map(|line| (line.proration, line.is_subscription, line.period_end)).collect();
    assert_eq!(shape, [(true, false, time(10)), (false, true, time(13))]);
    assert!(new.paid && new.lines_has_more);
}

/// Recorded in 2024-12-18.acacia: tests/data/shapes.toml.
#[test]
fn a_line_with_the_fields_of_old_and_new_versions_is_read_like_either() {
    let read = |fields: &[&Value]| {
        let mut line = json!({"amount": 1000, "quantity": 1, "period": {"start": 3, "end": 3}});
        for field in fields {
            line.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        }
        let object = json!({"id": "in_1", "amount_paid": 1000, "parent": null, "subscription": null,
            "subscription_details": {"metadata": null}, "lines": {"data": [line]}});
        invoice(event("invoice.paid", object))
    };
    let old = json!({"type": "invoiceitem", "price": {"id": "gold", "product": "prod_1"}, "plan": null,
        "proration": false, "subscription": null});
    let new = json!({"parent": {"type": "invoice_item_details", "subscription_item_details": null,
            "invoice_item_details": {"invoice_item": "ii_1", "proration": false, "subscription": null}},
        "pricing": {"type": "price_details", "price_details": {"price": "gold", "product": "prod_1"}}});
    assert_eq!(read(&[&old]), read(&[&new]));
    assert_eq!(read(&[&old, &new]), read(&[&new]));
}

#[test]
fn the_id_of_a_line_is_its_subscription_only_without_another_field() {
    for (line, subscription) in [
        (json!({"id": "sub_1", "type": "subscription"}), Some("sub_1")),
        (json!({"id": "sub_1", "type": "subscription", "subscription": "sub_2"}), Some("sub_2")),
        (json!({"id": "il_1", "type": "subscription", "subscription": "sub_2"}), Some("sub_2")),
        (json!({"id": "il_1", "type": "subscription"}), None),
        (json!({"id": "sub_1", "type": "invoiceitem"}), None),
    ] {
        let mut amount = line.clone();
        amount["amount"] = json!(1);
        let read = invoice(event(
            "invoice.paid",
            json!({"id": "in_1", "amount_paid": 1, "lines": {"data": [amount]}}),
        ));
        assert_eq!(read.lines[0].subscription.as_ref().map(SubscriptionId::as_str), subscription, "{line}");
    }
}

#[test]
fn the_payment_of_the_invoice_takes_precedence_over_the_list() {
    let payments =
        json!({"data": [{"status": "paid", "payment": {"payment_intent": "pi_2", "charge": "ch_2"}}]});
    for (named, ids) in [
        (json!({}), vec!["in_1", "pi_2", "ch_2"]),
        (json!({"payment_intent": "pi_1"}), vec!["in_1", "pi_1"]),
        (json!({"charge": "ch_1"}), vec!["in_1", "ch_1"]),
    ] {
        let mut object = json!({"id": "in_1", "amount_paid": 1, "payments": payments});
        object.as_object_mut().unwrap().extend(named.as_object().unwrap().clone());
        assert_eq!(event("invoice.paid", object).object_ids(), ids, "{named}");
    }
}

#[test]
fn an_invoice_is_paid_when_its_status_says_so() {
    let rows = [
        (json!("paid"), json!(null), true),
        (json!(null), json!(true), true),
        (json!("open"), json!(true), false),
        (json!("void"), json!(true), false),
        (json!("settled"), json!(true), false),
        (json!(null), json!(null), false),
    ];
    for (status, paid, expect) in rows {
        let read = invoice(event(
            "invoice.paid",
            json!({"id": "in_1", "amount_paid": 0, "status": status, "paid": paid}),
        ));
        assert_eq!(read.paid, expect, "{status} {paid}");
        assert_eq!((read.subscription, read.lines.len()), (None, 0));
    }
}

#[test]
fn a_checkout_session_is_read_with_and_without_optional_fields() {
    let Object::CheckoutSession(full) = event(
        "checkout.session.completed",
        json!({"id": "cs_test_1", "mode": "payment",
        "payment_status": "no_payment_required", "status": "complete", "customer": null,
        "client_reference_id": "u1",
        "metadata": {"pack": "credits_1000", "quantity": "2", "mode": 7}, "payment_intent": {"id": "pi_1"},
        "amount_total": 0,
        "currency": "usd", "customer_details": {"email": "typed@example.com"},
        "customer_email": "given@example.com"}),
    )
    .object
    else {
        panic!("not a session")
    };
    assert_eq!((full.mode, full.payment_status), (CheckoutMode::Payment, PaymentStatus::NoPaymentRequired));
    assert_eq!((full.customer_email.as_deref(), full.amount_total), (Some("typed@example.com"), Some(0)));
    assert_eq!(full.metadata.keys().collect::<Vec<_>>(), ["pack", "quantity"]);
    let Object::CheckoutSession(bare) =
        event("checkout.session.expired", json!({"id": "cs_1", "mode": "barter"})).object
    else {
        panic!("not a session")
    };
    assert_eq!((bare.mode.as_str(), bare.payment_status), ("barter", PaymentStatus::Other(String::new())));
}

#[test]
fn the_reference_of_a_session_is_plain_text_that_is_not_blank() {
    let reference = |metadata: Value| {
        let object = json!({"id": "cs_1", "mode": "payment", "metadata": metadata});
        let Object::CheckoutSession(session) = event("checkout.session.completed", object).object else {
            panic!("not a session")
        };
        session.customer_reference()
    };
    assert_eq!(reference(json!({"customer_reference": " A-17\n"})).as_deref(), Some("A-17"));
    assert_eq!(reference(json!({"customer_reference": " \t"})), None);
    assert_eq!(reference(json!({})), None);
}

#[test]
fn the_other_objects_are_read_by_the_type_of_the_event() {
    let rows = [
        (
            "charge.refunded",
            json!({"id": "py_1", "amount": 5, "amount_refunded": 2, "payment_intent": "pi_1"}),
            vec!["py_1", "pi_1"],
        ),
        (
            "refund.failed",
            json!({"id": "re_1", "amount": 2, "charge": {"id": "ch_1"}, "status": "failed"}),
            vec!["re_1", "ch_1"],
        ),
        (
            "charge.dispute.closed",
            json!({"id": "du_1", "amount": 2, "charge": "ch_1", "status": "won"}),
            vec!["du_1", "ch_1"],
        ),
        ("customer.deleted", json!({"id": "cus_1", "object": "customer"}), vec!["cus_1"]),
    ];
    for (kind, object, ids) in rows {
        assert_eq!(event(kind, object).object_ids(), ids);
    }
}

#[test]
fn an_invalid_field_is_reported_with_its_path() {
    let line =
        |line: Value| json!({"id": "in_1", "amount_paid": 1, "lines": {"data": [{"amount": 1}, line]}});
    let rows = [
        ("invoice.paid", json!({"amount_paid": 1}), "data.object.id is missing"),
        ("invoice.paid", json!({"id": "in_1"}), "data.object.amount_paid is missing"),
        (
            "invoice.paid",
            json!({"id": "in_1", "amount_paid": 1.5}),
            "data.object.amount_paid is not a whole number",
        ),
        (
            "invoice.paid",
            json!({"id": "in_1", "amount_paid": "1"}),
            "data.object.amount_paid is not a whole number",
        ),
        ("invoice.paid", json!({"id": "cus_1", "amount_paid": 1}), "data.object.id is not an id"),
        ("invoice.paid", json!({"id": "in_1", "object": "charge"}), "data.object.object is not invoice"),
        ("invoice.paid", line(json!({})), "data.object.lines.data[1].amount is missing"),
        (
            "invoice.paid",
            line(json!({"amount": 1, "quantity": -1})),
            "data.object.lines.data[1].quantity is not a whole number, not negative",
        ),
        (
            "invoice.paid",
            line(json!({"amount": 1, "price": {"object": "price"}})),
            "data.object.lines.data[1].price is not an id, or an object with one",
        ),
        ("customer.subscription.deleted", json!({"id": "sub_1"}), "data.object.status is missing"),
        (
            "customer.subscription.deleted",
            json!({"id": "sub_1", "status": "active", "items": {"data": [{}]}}),
            "data.object.items.data[0].price is missing",
        ),
        (
            "checkout.session.completed",
            json!({"id": "cs_1", "metadata": {}, "created": "x"}),
            "data.object.created is not a time in whole seconds",
        ),
    ];
    for (kind, object, message) in rows {
        assert_eq!(try_event(kind, object, Value::Null).unwrap_err().to_string(), message);
    }
    let before = try_event(
        "customer.subscription.updated",
        json!({"id": "sub_1", "status": "active"}),
        json!({"quantity": "x"}),
    );
    assert_eq!(
        before.unwrap_err().to_string(),
        "data.previous_attributes.quantity is not a whole number, not negative"
    );
}

#[test]
fn the_first_user_in_the_metadata_counts_or_is_an_error() {
    let session = |reference: Value, metadata: Value| {
        event(
            "checkout.session.completed",
            json!({"id": "cs_1", "client_reference_id": reference, "metadata": metadata}),
        )
    };
    let long = "u".repeat(129);
    let invoice = |metadata: Value, lines: Value| {
        event(
            "invoice.paid",
            json!({"id": "in_1", "amount_paid": 0, "metadata": metadata, "lines": {"data": lines}}),
        )
    };
    let lines = json!([{"amount": 0}, {"amount": 0, "metadata": {"user_id": "line"}}]);
    let charge = json!({"id": "ch_1", "amount": 1, "amount_refunded": 1, "metadata": {"user_id": "u4"}});
    let rows = [
        (session(json!("u1"), json!({"user_id": "u2"})), Ok(Some("u2"))),
        (session(json!("u1"), json!({})), Ok(None)),
        (session(json!(null), json!({"client_id": "u3", "user_id": "u2"})), Ok(Some("u2"))),
        (session(json!(""), json!({"user_id": "", "client_id": "u3"})), Ok(Some("u3"))),
        (session(json!(null), json!(null)), Ok(None)),
        (
            session(json!(null), json!({"user_id": long})),
            Err("not a user id: it is longer than 128 characters"),
        ),
        (
            session(json!(null), json!({"user_id": "a\nb"})),
            Err("not a user id: it has a character that such an id never has"),
        ),
        (invoice(json!({"user_id": "own"}), lines.clone()), Ok(Some("own"))),
        (invoice(json!({}), lines), Ok(Some("line"))),
        (event("charge.refunded", charge), Ok(None)),
    ];
    for (event, expect) in rows {
        let named = event.named_user();
        assert_eq!(
            named.as_ref().map(|user| user.as_ref().map(UserId::as_str)).map_err(ToString::to_string),
            expect.map_err(str::to_owned)
        );
    }
}

#[test]
fn a_huge_metadata_value_is_cut_and_is_not_a_user() {
    let huge = "x".repeat(500_000);
    let event =
        event("customer.deleted", json!({"id": "cus_1", "metadata": {"user_id": huge, "notes": huge}}));
    let Object::Customer(customer) = &event.object else { panic!("not a customer") };
    assert_eq!(customer.metadata.values().map(String::len).collect::<Vec<_>>(), [512]);
    assert!(event.named_user().is_err());
}

#[test]
fn every_value_of_an_open_enumeration_is_read_back() {
    for status in SubscriptionStatus::KNOWN {
        assert_eq!(&SubscriptionStatus::from(status.as_str()), status);
        assert_eq!(serde_json::to_value(status).unwrap(), json!(status.as_str()));
    }
    assert_eq!(
        serde_json::from_value::<DisputeStatus>(json!("frozen")).unwrap(),
        DisputeStatus::Other("frozen".to_owned())
    );
}

#[test]
fn the_prices_of_an_event_are_those_of_its_lines_or_items() {
    let price = |id: &str| json!({"price": {"id": id, "object": "price"}, "quantity": 1});
    let list = json!({"data": [price("price_a"), price("price_b")], "has_more": false});
    let lines = json!({"data": [
        {"amount": 1, "pricing": {"price_details": {"price": "price_a"}}},
        {"amount": 1, "pricing": {"price_details": {"price": "price_b"}}},
    ], "has_more": false});
    let mut items = list.clone();
    for (place, item) in items["data"].as_array_mut().unwrap().iter_mut().enumerate() {
        item["id"] = json!(format!("si_{place}"));
    }
    let ids = |event: Event| event.prices().iter().map(|price| price.id.to_string()).collect::<Vec<_>>();
    for event in [
        event(
            "checkout.session.completed",
            json!({"id": "cs_1", "object": "checkout.session", "mode": "payment", "line_items": list}),
        ),
        event(
            "customer.subscription.updated",
            json!({"id": "sub_1", "object": "subscription", "status": "active", "items": items}),
        ),
        event("invoice.paid", json!({"id": "in_1", "status": "paid", "amount_paid": 2, "lines": lines})),
    ] {
        assert_eq!(ids(event), ["price_a", "price_b"]);
    }
    assert_eq!(ids(event("customer.deleted", json!({"id": "cus_1"}))), Vec::<String>::new());
}

/// 2025-03-31.basil removed `paid_out_of_band`
/// (<https://docs.stripe.com/changelog/basil/2025-03-31/add-support-for-multiple-partial-payments-on-invoices>).
/// An invoice that is read from Stripe may have `amount_paid_off_stripe` in its place
/// (<https://docs.stripe.com/changelog/dahlia/2026-05-27/invoice-object-amount-paid-off-stripe-property>).
#[test]
fn what_was_paid_outside_stripe_is_read_in_both_shapes() {
    let paid = |patch: Value| {
        let base =
            json!({"id": "in_1", "status": "paid", "amount_paid": 0, "total": 1500, "lines": {"data": []}});
        invoice(event("invoice.paid", crate::decide::tests::patched(base, &patch))).paid_off_stripe
    };
    assert_eq!(paid(json!({"paid_out_of_band": true})), 1500);
    assert_eq!(paid(json!({"paid_out_of_band": false})), 0);
    assert_eq!(paid(json!({})), 0);
    assert_eq!(paid(json!({"amount_paid_off_stripe": 700, "paid_out_of_band": true})), 700);
}
