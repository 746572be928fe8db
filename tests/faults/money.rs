//! Payments, refunds, disputes and amounts.

use serde_json::{Value, json};

use super::{buyer, changed, credits, outcome, signed_up, spend, subscriber, tier};
use crate::invariants::{Tables, check_quiet};
use crate::support::{pack, sample, with_id};

#[tokio::test]
async fn s37_an_unpaid_session_grants_when_it_is_paid_once_and_in_either_order() {
    let (unpaid, paid) = (
        sample("checkout.session.completed.unpaid", "user_1"),
        sample("checkout.session.async_payment_succeeded", "user_1"),
    );
    let mut ends = Vec::new();
    for order in [[&unpaid, &paid, &paid], [&paid, &unpaid, &paid], [&paid, &paid, &unpaid]] {
        let world = signed_up().await;
        for (number, event) in order.into_iter().enumerate() {
            world.process(&with_id(event.clone(), &format!("evt_{number}"))).await;
        }
        ends.push(credits(&world, "user_1").await);
    }
    assert!(ends[0] > 500 && ends.iter().all(|end| *end == ends[0]), "{ends:?}");
}

#[tokio::test]
async fn s38_s39_s40_an_unpaid_document_or_one_without_a_period_grants_nothing() {
    let world = signed_up().await;
    let mut manual = with_id(sample("invoice.paid", "user_1"), "evt_manual");
    manual["data"]["object"]["id"] = json!("in_manual");
    manual["data"]["object"]["billing_reason"] = json!("manual");
    manual["data"]["object"]["lines"]["data"][0]["period"] = Value::Null;
    for event in [
        sample("checkout.session.async_payment_failed", "user_1"),
        sample("checkout.session.expired", "user_1"),
        sample("checkout.session.completed.unpaid", "user_1"),
        sample("checkout.session.completed.trial", "user_1"),
        manual,
    ] {
        world.process(&event).await;
        let (outcome, reason) = outcome(&world, event["id"].as_str().unwrap()).await;
        assert_eq!(credits(&world, "user_1").await, 500, "{} {outcome} {reason}", event["type"]);
    }
}

#[tokio::test]
async fn s39_a_trial_grants_its_credits_once_whichever_of_its_events_arrive() {
    let names =
        ["customer.subscription.created.trialing", "invoice.paid.trial", "checkout.session.completed.trial"];
    for rotation in 0..3 {
        let world = signed_up().await;
        for number in 0..6 {
            world.process(&sample(names[(number + rotation) % 3], "user_1")).await;
        }
        // A trial ends nothing: the signup credits stay.
        assert_eq!((credits(&world, "user_1").await, rotation), (5500, rotation));
    }
}

#[tokio::test]
async fn s41_partial_refunds_in_any_order_and_number_take_back_their_share_once() {
    let refund = |amount: i64| {
        let all = json!(amount == 1000);
        let event = sample("charge.refunded", "user_1");
        changed(
            event,
            &format!("evt_r{amount}"),
            &[("/data/object/amount_refunded", json!(amount)), ("/data/object/refunded", all)],
        )
    };
    for order in
        [[400, 700, 1000, 400], [1000, 700, 400, 1000], [700, 700, 1000, 400], [1000, 1000, 1000, 1000]]
    {
        let world = buyer().await;
        for (number, amount) in order.into_iter().enumerate() {
            world.process(&with_id(refund(amount), &format!("evt_r{number}"))).await;
            let most = order[..=number].iter().max().unwrap();
            assert_eq!(credits(&world, "user_1").await, 1500 - most, "I11, {order:?} at {number}");
        }
    }
}

#[tokio::test]
async fn s42_a_refund_of_what_is_spent_is_recorded_with_its_shortfall_and_leaves_no_debt() {
    let world = buyer().await;
    assert_eq!(spend(&world, 1400, "all").await, 200);
    world.process(&sample("charge.refunded.full", "user_1")).await;
    let tables = Tables::read(&world).await;
    tables.check("S42");
    let taken = tables.accounts.values().find(|item| item["kind"] == "refund").unwrap();
    let shortfall = taken["shortfall"].as_i64().unwrap();
    assert_eq!(-taken["delta"].as_i64().unwrap() + shortfall, 1000, "{taken}");
    assert!(shortfall > 0 && tables.credits("user_1") >= 0, "I12");
}

#[tokio::test]
async fn s43_a_pending_refund_takes_nothing_for_good_and_a_failed_one_gives_back() {
    let world = signed_up().await;
    world.process(&sample("checkout.session.async_payment_succeeded", "user_1")).await;
    let bought = credits(&world, "user_1").await;
    world.process(&sample("refund.created.pending", "user_1")).await;
    let pending = credits(&world, "user_1").await;
    world.process(&sample("refund.failed", "user_1")).await;
    assert_eq!((pending, credits(&world, "user_1").await), (bought, bought));
    world.process(&with_id(sample("refund.created.pending", "user_1"), "evt_late_pending")).await;
    assert_eq!(credits(&world, "user_1").await, bought);
}

#[tokio::test]
async fn s44_s45_s46_disputes_and_refunds_of_one_charge_never_take_more_than_was_granted() {
    // `pack_5000` is paid by pi_TallyHook0004, 4500 minor units.
    let refund = |id: &str, amount: i64| {
        let event = sample("charge.refunded", "user_1");
        changed(
            event,
            id,
            &[
                ("/data/object/id", json!("ch_TallyHook0004")),
                ("/data/object/payment_intent", json!("pi_TallyHook0004")),
                ("/data/object/amount", json!(4500)),
                ("/data/object/amount_refunded", json!(amount)),
                ("/data/object/metadata", json!({})),
            ],
        )
    };
    let dispute = |name: &str| sample(&format!("charge.dispute.{name}"), "user_1");
    let all = |events: Vec<(Value, i64)>| async {
        let world = signed_up().await;
        world.process(&sample("checkout.session.completed.pack_5000", "user_1")).await;
        assert_eq!(credits(&world, "user_1").await, 5500);
        for (event, left) in events {
            for _ in 0..2 {
                world.process(&event).await;
                assert_eq!(credits(&world, "user_1").await, left, "after {}", event["type"]);
            }
        }
    };
    all(vec![
        (dispute("created"), 500),
        (dispute("funds_withdrawn"), 500),
        (dispute("closed.won"), 5500),
        (refund("evt_r", 4500), 500),
    ])
    .await;
    all(vec![(dispute("created"), 500), (dispute("closed.lost"), 500), (refund("evt_r", 4500), 500)]).await;
    all(vec![(refund("evt_r", 2250), 3000), (dispute("created"), 500), (dispute("closed.won"), 3000)]).await;
    all(vec![(dispute("closed.won"), 5500), (dispute("created"), 5500)]).await;
}

#[tokio::test]
async fn s47_an_inquiry_revokes_nothing() {
    let world = signed_up().await;
    world.process(&sample("checkout.session.completed.order", "user_1")).await;
    let mut inquiry = sample("charge.dispute.created.inquiry", "user_1");
    inquiry["data"]["object"]["payment_intent"] = json!("pi_TallyHook0003");
    world.process(&inquiry).await;
    assert_eq!(credits(&world, "user_1").await, 500);
}

#[tokio::test]
async fn s48_credits_are_per_seat_and_a_truncated_list_is_parked() {
    let world = signed_up().await;
    let text = sample("invoice.paid", "user_1").to_string().replace("price_pro_test", "price_team_test");
    let mut seats: Value = serde_json::from_str(&text).unwrap();
    seats["data"]["object"]["lines"]["data"][0]["quantity"] = json!(7);
    world.process(&with_id(seats, "evt_seats")).await;
    assert_eq!(credits(&world, "user_1").await, 7000);
    let mut cut = with_id(sample("invoice.paid.renewal", "user_1"), "evt_cut");
    cut["data"]["object"]["lines"]["has_more"] = json!(true);
    cut["data"]["object"]["lines"]["data"] = json!([]);
    world.process(&cut).await;
    assert_eq!(outcome(&world, "evt_cut").await, ("parked".into(), "lines_missing".into()));
    assert_eq!(credits(&world, "user_1").await, 7000);
}

#[tokio::test]
async fn s49_s50_amounts_come_from_the_catalog_and_no_number_breaks_it() {
    let world = signed_up().await;
    let mut own = pack("own", "user_1", 1);
    own["data"]["object"]["metadata"]["credits"] = json!("999999");
    own["data"]["object"]["amount_total"] = json!(i64::MAX);
    own["data"]["object"]["currency"] = json!("jpy");
    world.process(&own).await;
    assert_eq!(credits(&world, "user_1").await, 1500);
    for (number, quantity) in
        ["0", "-1", "1e9", "999999999999", "18446744073709551616", " 7", "NaN", "١"].into_iter().enumerate()
    {
        let mut odd = pack(&format!("odd{number}"), "user_1", 1);
        odd["data"]["object"]["metadata"]["quantity"] = json!(quantity);
        world.process(&odd).await;
        let (outcome, reason) = outcome(&world, &format!("evt_odd{number}")).await;
        let left = credits(&world, "user_1").await;
        assert!(outcome == "parked" && left == 1500, "{quantity:?}: {outcome} {reason} {left}");
    }
    for (number, amount) in
        [json!(i64::MIN), json!(i64::MAX), json!(u64::MAX), json!(1.5), json!("1")].into_iter().enumerate()
    {
        let event = with_id(sample("charge.refunded", "user_1"), &format!("evt_amount{number}"));
        let event =
            changed(event, &format!("evt_amount{number}"), &[("/data/object/amount_refunded", amount)]);
        world.process(&event).await;
        world.settle().await;
        Tables::read(&world).await.check("S50");
    }
    check_quiet(&world, &[], "S50").await;
}

#[tokio::test]
async fn s51_only_a_status_that_pays_gives_the_paid_tier() {
    for (status, expected) in [
        ("active", "pro"),
        ("trialing", "pro"),
        ("unpaid", "free"),
        ("paused", "free"),
        ("incomplete", "free"),
        ("incomplete_expired", "free"),
        ("canceled", "free"),
        ("past_due", "free"),
        ("a_word_of_the_future", "free"),
    ] {
        let world = signed_up().await;
        world
            .process(&changed(
                sample("customer.subscription.updated", "user_1"),
                "evt_s",
                &[("/data/object/status", json!(status))],
            ))
            .await;
        assert_eq!(tier(&world, "user_1").await, expected, "{status}");
    }
}

#[tokio::test]
async fn s52_late_events_of_a_deleted_customer_restore_nothing() {
    let world = subscriber().await;
    world.process(&sample("customer.deleted", "user_1")).await;
    assert_eq!(tier(&world, "user_1").await, "free");
    world.process(&sample("customer.subscription.updated", "user_1")).await;
    world.process(&sample("customer.subscription.updated.upgrade", "user_1")).await;
    assert_eq!(tier(&world, "user_1").await, "free");
}
