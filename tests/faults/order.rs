//! Events that arrive in another order than they happened.

use serde_json::{Value, json};
use tallyhook_core::event::Family;

use super::{anonymous, changed, credits, outcome, signed_up, subscriber, tier};
use crate::invariants::{Tables, check_quiet};
use crate::support::{sample, with_id};

#[tokio::test]
async fn s28_an_update_after_the_deletion_restores_nothing() {
    let world = subscriber().await;
    world.process(&sample("customer.subscription.deleted", "user_1")).await;
    let late = changed(
        sample("customer.subscription.updated", "user_1"),
        "evt_late",
        &[("/created", json!(1_790_000_000))],
    );
    world.process(&late).await;
    assert_eq!(
        (tier(&world, "user_1").await.as_str(), outcome(&world, "evt_late").await.0.as_str()),
        ("free", "processed")
    );
}

#[tokio::test]
async fn s29_incomplete_after_active_takes_nothing_away() {
    let world = signed_up().await;
    for name in
        ["old/customer.subscription.updated.activated", "old/customer.subscription.created.incomplete"]
    {
        world.process(&sample(name, "user_1")).await;
        assert_eq!(tier(&world, "user_1").await, "pro", "{name}");
    }
}

#[tokio::test]
async fn s30_two_updates_of_one_second_give_one_result_in_either_order() {
    let one = sample("customer.subscription.updated", "user_1");
    let mut ends = Vec::new();
    for other in ["past_due", "unpaid", "paused", "canceled"] {
        let two = changed(
            one.clone(),
            "evt_two",
            &[
                ("/data/object/status", json!(other)),
                ("/data/previous_attributes", json!({"status": "active"})),
            ],
        );
        for order in [[&one, &two], [&two, &one]] {
            let world = subscriber().await;
            for event in order {
                world.process(event).await;
            }
            let account = Tables::read(&world).await.meaning().accounts
                [&("user#user_1".to_owned(), "account".to_owned())]
                .clone();
            ends.push((account["tier"].clone(), account["state"]["subscriptions"].clone()));
        }
        assert_eq!(ends[0], ends[1], "{other}");
        ends.clear();
    }
}

#[tokio::test]
async fn s31_an_invoice_before_its_customer_link_is_granted_within_seconds() {
    let world = signed_up().await;
    let invoice = anonymous("invoice.paid");
    assert_eq!(world.deliver(invoice.to_string().as_bytes()).await.0, 200);
    assert_eq!(world.poll(Family::InvoicePaid).await, 1);
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.pass_seconds(6);
    world.drain().await;
    assert_eq!(check_quiet(&world, &[invoice], "S31").await.credits("user_1"), 5000);
}

#[tokio::test]
async fn s31_an_invoice_in_one_batch_with_its_customers_link_is_granted() {
    let world = signed_up().await;
    let nameless =
        changed(anonymous("invoice.paid"), "evt_nameless", &[("/data/object/id", json!("in_nameless"))]);
    assert_eq!(world.deliver(nameless.to_string().as_bytes()).await.0, 200);
    assert_eq!(world.poll(Family::InvoicePaid).await, 1, "the first attempt");
    // Both events are in one batch. The transaction that binds the customer must not park the other event
    // because it has no user.
    let named = sample("invoice.paid", "user_1");
    world.deliver(named.to_string().as_bytes()).await;
    world.pass_seconds(6);
    let mut batch = world.receive(Family::InvoicePaid).await;
    assert_eq!(batch.records.len(), 2);
    batch
        .records
        .sort_by_key(|record| record.body.as_ref().is_some_and(|body| body.contains("evt_nameless")));
    let answer = world.worker(Family::InvoicePaid).handle(batch.clone()).await.unwrap();
    world.delete(Family::InvoicePaid, &batch, &answer).await;
    world.settle().await;
    check_quiet(&world, &[named, nameless], "S31").await;
    assert_eq!(outcome(&world, "evt_nameless").await.0, "processed");
}

#[tokio::test]
async fn s32_a_refund_before_its_grant_waits_and_then_takes_the_grant() {
    let world = signed_up().await;
    let refund = anonymous("charge.refunded.full");
    world.process(&refund).await;
    world.settle().await;
    assert_eq!(outcome(&world, refund["id"].as_str().unwrap()).await.0, "parked");
    assert_eq!(credits(&world, "user_1").await, 500, "a refund without a grant revokes nothing");
    world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    // The refund is delivered again; it may also have been freed by the purchase.
    world.process(&refund).await;
    world.settle().await;
    assert_eq!(credits(&world, "user_1").await, 500);
    assert_eq!(outcome(&world, refund["id"].as_str().unwrap()).await.0, "processed");
}

#[tokio::test]
async fn s33_the_end_of_an_old_subscription_leaves_the_new_one_its_tier() {
    let world = subscriber().await;
    let other: Value = serde_json::from_str(
        &sample("customer.subscription.created", "user_1")
            .to_string()
            .replace("sub_TallyHook0001", "sub_New"),
    )
    .unwrap();
    world.process(&with_id(other, "evt_new")).await;
    world.process(&sample("customer.subscription.deleted", "user_1")).await;
    assert_eq!(tier(&world, "user_1").await, "pro");
}

#[tokio::test]
async fn s34_an_invoice_after_the_end_of_its_subscription_is_still_granted() {
    let world = signed_up().await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.process(&sample("customer.subscription.deleted", "user_1")).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    assert_eq!((credits(&world, "user_1").await, tier(&world, "user_1").await.as_str()), (5000, "free"));
}
