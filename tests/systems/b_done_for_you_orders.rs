//! B. Done-for-you orders: a paid order becomes a record, a job of the app, and in the end a delivery.

use serde_json::{Value, json};
use tallyhook_core::event::Family;

use crate::app_messages::{received, types};
use crate::orders::{order, refund_of, step};
use crate::provision::{App, with_app};
use crate::support::{Fault, call, cancelled, with_id};

#[tokio::test]
async fn an_order_is_paid_recorded_reported_worked_on_delivered_and_refunded() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;

    // The health route names the endpoint.
    for method in ["GET", "HEAD"] {
        let (status, body) = world.call(&call(method, "/webhooks/stripe/health", None, "", false)).await;
        assert_eq!(status, 200, "{method}");
        if method == "GET" {
            assert_eq!(
                (&body["ok"], &body["service"], &body["endpoint"]),
                (&json!(true), &json!("stripe-webhook"), &json!("/webhooks/stripe")),
                "{body}"
            );
        }
    }

    // DynamoDB fails once: the event is retried, and no order is lost or made twice.
    let mut failures = 1;
    world.fault(move |call| {
        let fails = failures > 0 && call.operation == "TransactWriteItems";
        failures -= i32::from(fails);
        fails.then(|| cancelled(call, "order", "ThrottlingError"))
    });
    world.process(&order(1, "user_1")).await;
    world.settle().await;
    world.process(&order(1, "user_1")).await;
    world.process(&with_id(order(1, "user_1"), "evt_sent_twice")).await;
    let account = world.account("user_1").await;
    let orders = account["orders"].as_array().unwrap();
    assert_eq!(orders.len(), 1, "{account:#}");

    // The record has every field.
    let path = "/users/user_1/orders/cs_test_order1";
    let (status, new) = world.app("GET", path, Value::Null, None).await;
    assert_eq!(status, 200);
    for (field, value) in [
        ("id", json!("cs_test_order1")),
        ("tier", json!("STARTER")),
        ("status", json!("NEW")),
        ("deadline", Value::Null),
        ("revisions_left", json!(1)),
        ("files_url", Value::Null),
        ("final_package_url", Value::Null),
        ("upgraded_from", Value::Null),
        ("checklist_status", json!("PENDING")),
    ] {
        assert_eq!(new[field], value, "{field}: {new:#}");
    }
    for field in ["customer_id", "customer_email", "amount_total", "currency", "created_at", "updated_at"] {
        assert!(!new[field].is_null(), "{field}: {new:#}");
    }

    // The app gets one message, and works on the order.
    assert_eq!(types(&received(&world, &app).await), ["order.paid", "payment.confirmed"]);
    for (to, left) in
        [("IN_PROGRESS", 1), ("DELIVERED", 1), ("REVISION", 0), ("IN_PROGRESS", 0), ("DELIVERED", 0)]
    {
        let link = json!({"status": to, "files_url": "https://files.example.com/1"});
        assert_eq!(step(&world, path, link).await, (200, to.to_owned()));
        let (_, order) = world.app("GET", path, Value::Null, None).await;
        assert_eq!(order["revisions_left"], left, "{to}");
    }
    assert_eq!(
        step(&world, path, json!({"status": "REVISION"})).await,
        (409, "no_revisions_left".to_owned())
    );
    let package = json!({"status": "DONE", "final_package_url": "https://files.example.com/final.zip"});
    assert_eq!(step(&world, path, package).await, (200, "DONE".to_owned()));

    // The log has the event, and an order of an unknown plan raises an alert.
    let (_, logged) = world.ask("GET", "/admin/stripe/webhook-logs/evt_order1", Value::Null).await;
    assert_eq!(logged["event"]["status"], "processed", "{logged:#}");
    let mut unknown = order(2, "user_1");
    unknown["data"]["object"]["metadata"]["plan"] = json!("platinum");
    world.process(&unknown).await;
    let alerts = world.alerts().await;
    assert!(alerts.iter().any(|alert| alert["reason"] == "unknown_name"), "{alerts:?}");

    // The money goes back.
    world.process(&refund_of(&order(1, "user_1"))).await;
    let (_, order) = world.app("GET", path, Value::Null, None).await;
    assert_eq!(order["status"], "REFUNDED", "{order:#}");
    assert_eq!(types(&received(&world, &app).await), ["order.refunded", "refund.applied"]);
}

#[tokio::test]
async fn an_order_that_the_database_never_takes_is_kept_and_sent_again() {
    let (_app, url) = App::start().await;
    let world = with_app(&url).await;
    world.fault(|call| (call.operation == "TransactWriteItems").then_some(Fault::LoseRequest));
    assert_eq!(world.deliver(order(1, "user_1").to_string().as_bytes()).await.0, 200);
    for delay in [0, 301, 601, 901] {
        world.pass_seconds(delay);
        world.poll(Family::CheckoutSession).await;
    }
    world.heal();
    world.pass_seconds(901);
    world.poll(Family::CheckoutSession).await;
    world.drain_dead_letters().await;
    assert_eq!(world.event("evt_order1").await.unwrap()["outcome"], "failed");
    let again = json!({"id": "evt_order1", "reason": "the database is back"});
    let (status, answer) = world.ask("POST", "/admin/stripe/retry-webhooks", again).await;
    assert_eq!(status, 200, "{answer}");
    world.drain().await;
    assert_eq!(world.account("user_1").await["orders"][0]["status"], "NEW");
}
