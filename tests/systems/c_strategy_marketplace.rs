//! C. A marketplace of strategies: users own single products, and an operator sees and repairs what goes
//! wrong.

use local::fake_stripe::FakeStripe;
use serde_json::{Value, json};
use tallyhook_core::event::Family;

use crate::features::{catalog, refunded, sold};
use crate::parked_and_failed::{nameless, park};
use crate::stripe_client::KEY;
use crate::support::{Fault, World, now, sample};

async fn marketplace(name: &str) -> (World, FakeStripe) {
    let fake = FakeStripe::new(KEY);
    let base = format!("http://{}", fake.start().await.unwrap());
    let file = catalog(name, |text| text);
    let variables = [
        ("CATALOG_FILE", file.to_str().unwrap()),
        ("STRIPE_SECRET_KEY", KEY),
        ("STRIPE_API_BASE", base.as_str()),
    ];
    let world = World::with(&variables).await;
    std::fs::remove_file(file).unwrap();
    (world, fake)
}

#[tokio::test]
async fn a_user_owns_what_was_bought_and_nothing_else() {
    let (world, _fake) = marketplace("products").await;
    for event in [sold("a", "user_1", "strategy"), sold("b", "user_2", "course")] {
        world.process(&event).await;
    }
    let account = world.account("user_1").await;
    let [purchase] = account["products"].as_array().unwrap().as_slice() else { panic!("{account:#}") };
    assert_eq!(
        (&purchase["name"], &purchase["status"], &purchase["purchase_type"], &purchase["payment_intent"]),
        (&json!("strategy"), &json!("active"), &json!("one_time"), &json!("pi_a")),
        "{purchase:#}"
    );
    assert!(purchase["amount"].as_i64() > Some(0) && purchase["currency"] == "usd", "{purchase:#}");
    assert!(purchase["subscription"].is_null() && purchase["at"].is_string(), "{purchase:#}");
    let owns = async |user: &str, feature: &str| {
        let path = format!("/users/{user}/check?feature={feature}");
        world.app("GET", &path, Value::Null, None).await.1["limit"].clone()
    };
    assert_eq!((owns("user_1", "projects").await, owns("user_2", "projects").await), (json!(20), json!(1)));
    world.process(&refunded("a")).await;
    assert_eq!(owns("user_1", "projects").await, 1, "a refund takes the product back");
    assert_eq!(world.account("user_1").await["products"][0]["status"], "refunded");
    assert_eq!(world.account("user_2").await["products"][0]["status"], "active");
}

#[tokio::test]
async fn an_operator_sees_the_log_the_score_and_the_user_and_repairs_by_six_routes() {
    let (world, fake) = marketplace("operator").await;
    world.sign_up("user_1").await;
    let invoice = nameless("invoice.paid");
    park(&world, &invoice).await;
    assert_eq!(world.alerts().await[0]["reason"], "no_user", "what cannot be repaired raises an alert");
    let ask = async |method: &str, path: &str, body: Value| {
        let (status, answer) = world.ask(method, path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    let logs = ask("GET", "/admin/stripe/webhook-logs?status=parked", Value::Null).await;
    assert_eq!(logs["events"][0]["id"], invoice["id"], "{logs:#}");
    let health = ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
    assert!(health["score"].as_u64() < Some(100), "{health:#}");
    let retried = json!({"id": invoice["id"], "reason": "looks right now"});
    ask("POST", "/admin/stripe/retry-webhooks", retried).await;
    world.drain().await;
    assert_eq!(world.account("user_1").await["tier"], "free", "the user is still not known");

    // `fix-user` in the marketplace's own form.
    let subscription = sample("customer.subscription.created", "x")["data"]["object"]["id"].clone();
    let fix = json!({"stripe_subscription_id": subscription, "webhook_id": invoice["id"]});
    let fixed = ask("POST", "/admin/stripe/fix-user/user_1", fix).await;
    assert_eq!((&fixed["result"], &fixed["webhook"]), (&json!("linked"), &json!("queued")), "{fixed}");
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 5000);
    world.process(&nameless("customer.subscription.created")).await;
    let account = world.account("user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(5000)), "{account:#}");

    // Stripe and the account agree: reconciliation finds nothing for this user.
    for name in ["customer.subscription.created", "invoice.paid"] {
        fake.ingest(&sample(name, "user_1").to_string(), true).unwrap();
    }
    let report = ask("POST", "/admin/stripe/reconcile", json!({"user": "user_1"})).await["report"].clone();
    assert_eq!((&report["dry_run"], &report["complete"]), (&json!(true), &json!(true)), "{report:#}");
    let checked = ask("GET", "/admin/stripe/check-user/user_1", Value::Null).await;
    assert_eq!((&checked["found"], &checked["account"]["tier"]), (&json!(true), &json!("pro")));
}

/// Three retries after 5, 10 and 15 minutes. Then an alert is sent, and the schedule tries again.
#[tokio::test(start_paused = true)]
async fn a_purchase_that_fails_is_tried_four_times_alerted_and_sent_again_by_the_schedule() {
    let file = catalog("attempts", |text| text);
    let world = World::with(&[("CATALOG_FILE", file.to_str().unwrap())]).await;
    std::fs::remove_file(file).unwrap();
    let family = Family::CheckoutSession;
    world.deliver(sold("late", "user_1", "strategy").to_string().as_bytes()).await;
    world.fault(|call| call.request.to_string().contains("evt_late").then_some(Fault::LoseRequest));
    assert_eq!(world.poll(family).await, 1);
    for minutes in [5, 10, 15] {
        world.pass_seconds(minutes * 60 - 1);
        assert_eq!(world.poll(family).await, 0, "not before {minutes} minutes");
        world.pass_seconds(1);
        assert_eq!(world.poll(family).await, 1, "after {minutes} minutes");
    }
    world.pass_seconds(901);
    assert_eq!(world.poll(family).await, 0, "no fifth attempt");
    world.heal();
    assert_eq!(world.drain_dead_letters().await, 1);
    let alerts = world.alerts().await;
    assert_eq!((alerts.len(), &alerts[0]["alert"]), (1, &json!("dead_letter")), "{alerts:?}");
    let (_, logs) = world.ask("GET", "/admin/stripe/webhook-logs?status=failed", Value::Null).await;
    assert_eq!((&logs["events"][0]["id"], &logs["events"][0]["attempts"]), (&json!("evt_late"), &json!(4)));
    assert_eq!(world.retry_in(3600).await.sent, 1);
    world.drain().await;
    assert_eq!(world.account("user_1").await["products"][0]["name"], "strategy");
    let (_, health) = world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
    assert_eq!(health["success_rate"], 1.0, "{health:#}");
}

#[tokio::test]
async fn an_event_that_never_arrived_is_replayed_from_stripe() {
    let (world, fake) = marketplace("replayed").await;
    let mut event = sold("missed", "user_1", "strategy");
    event["created"] = json!(now().unix() - 600);
    fake.ingest(&event.to_string(), false).unwrap();
    let replay =
        json!({"source": "stripe", "from": now().plus_seconds(-3600).to_string(), "reason": "missed"});
    let (status, answer) = world.ask("POST", "/admin/stripe/retry-webhooks", replay).await;
    assert_eq!(status, 200, "{answer}");
    world.drain().await;
    assert_eq!(world.account("user_1").await["products"][0]["status"], "active");
}
