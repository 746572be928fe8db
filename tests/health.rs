//! The hourly health check: how old messages are, and what is wrong in the Stripe account.

use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::{API_VERSION, Family};

use crate::stripe_client::KEY;
use crate::support::{World, aws_error, now, pack};

const HEALTH: &str = "/admin/stripe/subscription-health";
const WEBHOOK: &str = "https://api.example/webhooks/stripe";

async fn health(world: &World) -> Value {
    let (status, body) = world.ask("GET", HEALTH, Value::Null).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// The deductions with this code: points and reason.
fn deducted(health: &Value, code: &str) -> Vec<(u64, String)> {
    let all = health["deductions"].as_array().unwrap().iter().filter(|it| it["code"] == code);
    all.map(|it| (it["points"].as_u64().unwrap(), it["reason"].as_str().unwrap().to_owned())).collect()
}

fn oldest(health: &Value, queue: &str) -> Value {
    let queues = health["counts"]["queues"].as_array().unwrap();
    queues.iter().find(|it| it["queue"] == queue).unwrap()["oldest_seconds"].clone()
}

#[tokio::test]
async fn a_message_that_waits_for_15_minutes_costs_points_and_is_alerted() {
    let world = World::new().await;
    world.deliver(pack("waits", "user_1", 1).to_string().as_bytes()).await;
    world.pass_seconds(900);
    let young = health(&world).await;
    assert_eq!((oldest(&young, "checkout-session"), oldest(&young, "refund")), (json!(900), Value::Null));
    assert_eq!(deducted(&young, "old_message"), []);
    world.pass_seconds(60);
    let old = health(&world).await;
    let reason = "the oldest message of checkout-session is 16 minutes old".to_owned();
    assert_eq!(deducted(&old, "old_message"), [(21, reason)]);
    assert!(old["score"].as_u64().unwrap() < 80, "{old}");

    world.health.handle(Value::Null).await.unwrap();
    let alerts = world.alerts().await;
    let alert = alerts.iter().find(|alert| alert["alert"] == "old_message").expect("an alert");
    assert_eq!((&alert["queue"], &alert["seconds"]), (&json!("checkout-session"), &json!(960)));
}

/// SQS leaves a message that was received three times out of its metric. The alarm `failed-attempts` reports
/// it, and at last it is a failed event.
#[tokio::test]
async fn a_message_that_fails_three_times_has_no_age() {
    let world = World::new().await;
    world.deliver(pack("fails", "user_1", 1).to_string().as_bytes()).await;
    for (received, age) in [(1, json!(181)), (2, json!(362)), (3, Value::Null)] {
        assert_eq!(world.receive(Family::CheckoutSession).await.records.len(), 1);
        world.pass_seconds(181);
        assert_eq!(oldest(&health(&world).await, "checkout-session"), age, "received {received} times");
    }
}

#[tokio::test]
async fn empty_queues_cause_no_call_of_cloudwatch_and_full_ones_one() {
    let world = World::new().await;
    let calls = || world.operations().iter().filter(|name| *name == "GetMetricData").count();
    health(&world).await;
    assert_eq!(calls(), 0);
    for (event, kind) in [("a", "checkout.session.completed"), ("b", "charge.refunded")] {
        let mut sent = pack(event, "user_1", 1);
        sent["type"] = json!(kind);
        assert_eq!(world.deliver(sent.to_string().as_bytes()).await.0, 200);
    }
    health(&world).await;
    assert_eq!(calls(), 1);
}

#[tokio::test]
async fn an_age_that_cloudwatch_does_not_give_costs_points() {
    let world = World::new().await;
    world.deliver(pack("waits", "user_1", 1).to_string().as_bytes()).await;
    world.fault(|call| (call.operation == "GetMetricData").then(|| aws_error(403, "AccessDenied")));
    let unknown = health(&world).await;
    let reason = "how long the oldest messages wait is not known".to_owned();
    assert_eq!(deducted(&unknown, "ages_unknown"), [(5, reason)]);
    assert_eq!(oldest(&unknown, "checkout-session"), Value::Null);
}

/// A deployment in order: its Stripe account has the prices of the catalog, an endpoint and a portal.
async fn in_order() -> (FakeStripe, World) {
    let stripe = FakeStripe::new(KEY);
    stripe.sell(&Catalog::parse(include_str!("../catalog.toml")).unwrap());
    stripe.put_endpoint("we_1", WEBHOOK, "shop");
    stripe.put_portal("bpc_1", "always_invoice");
    let address = format!("http://{}", stripe.start().await.unwrap());
    let world = World::with(&[
        ("STRIPE_SECRET_KEY", KEY),
        ("STRIPE_API_BASE", &address),
        ("ENDPOINT_URL", WEBHOOK),
        ("PREFIX", "shop"),
    ])
    .await;
    (stripe, world)
}

/// What the hourly run finds, and the problems of the alerts that it sends.
async fn run(world: &World) -> (Vec<(u64, String)>, Vec<String>) {
    world.health.handle(Value::Null).await.unwrap();
    let alerts = world.alerts().await;
    let alerts = alerts.iter().filter(|alert| alert["alert"] == "stripe_account");
    let alerts = alerts.map(|alert| alert["problem"].as_str().unwrap().to_owned()).collect();
    (deducted(&health(world).await, "stripe_account"), alerts)
}

fn change(stripe: &FakeStripe, id: &str, field: &str, value: Value) {
    let mut object = stripe.object(id).unwrap();
    object[field] = value;
    stripe.put(object);
}

#[tokio::test]
async fn an_account_in_order_costs_no_points_and_a_bounded_number_of_requests() {
    let (stripe, world) = in_order().await;
    assert_eq!(
        deducted(&health(&world).await, "stripe_not_checked").len(),
        1,
        "not known before the first run"
    );
    stripe.requests();
    assert_eq!(run(&world).await, (vec![], vec![]));
    let requests = stripe.requests().len();
    assert!(requests <= 66, "{requests} requests");
    let checked = health(&world).await;
    assert_eq!(checked["counts"]["stripe_account"]["findings"], json!([]));
    assert_eq!(deducted(&checked, "stripe_not_checked"), []);

    // Many prices and subscriptions: the lists are not read to the end, and the catalog's prices are found.
    for number in 0..650 {
        stripe.put_price(&format!("price_more_{number}"), 100, true, None);
        stripe.put(json!({"id": format!("sub_{number}"), "object": "subscription", "status": "active",
            "created": number, "customer": "cus_1", "metadata": {},
            "items": {"data": [{"id": "si_1", "price": {"id": "price_pro_test", "product": "prod_pro"}}]}}));
    }
    stripe.requests();
    assert_eq!(run(&world).await, (vec![], vec![]));
    let requests = stripe.requests().len();
    assert!(requests <= 66, "{requests} requests");
}

#[tokio::test]
async fn each_broken_state_of_the_account_costs_points_and_is_alerted_once() {
    type Break = fn(&FakeStripe);
    let broken: [(Break, u64, &str); 11] = [
        (
            |stripe| stripe.remove("we_1"),
            21,
            "no webhook endpoint at Stripe in test mode posts to https://api",
        ),
        (|stripe| change(stripe, "we_1", "status", json!("disabled")), 21, "we_1 is disabled"),
        (|stripe| change(stripe, "we_1", "url", json!("https://old.example/hook")), 21, "not to https://api"),
        (
            |stripe| change(stripe, "we_1", "enabled_events", json!(["invoice.paid"])),
            21,
            "we_1 does not send checkout.session.completed",
        ),
        (
            |stripe| change(stripe, "we_1", "api_version", json!("2024-06-20")),
            2,
            "we_1 sends events of API version 2024-06-20",
        ),
        (|stripe| stripe.remove("bpc_1"), 2, "no configuration of the customer portal"),
        (|stripe| stripe.put_portal("bpc_1", "create_prorations"), 10, "bpc_1 changes plans with"),
        (
            |stripe| {
                for id in ["price_business_test", "price_business_live"] {
                    stripe.remove(id);
                }
            },
            10,
            "plan business: Stripe has none of its prices",
        ),
        (
            |stripe| {
                stripe.put(json!({"id": "sub_1", "object": "subscription", "status": "active", "created": 1,
                    "customer": "cus_1", "metadata": {},
                    "items": {"data": [{"id": "si_1", "price": {"id": "price_x", "product": "prod_x"}}]}}));
            },
            10,
            "1 live subscription is on price_x, which the catalog lacks",
        ),
        (
            |stripe| stripe.fail("/v1/refunds", 1_000, Misbehaviour::Status(403, None)),
            21,
            "the key may not read refunds",
        ),
        (|stripe| stripe.set_now(now().unix() - 400), 21, "the clock of this machine is 40"),
    ];
    for (break_it, points, problem) in broken {
        let (stripe, world) = in_order().await;
        break_it(&stripe);
        let (found, alerts) = run(&world).await;
        let [(lost, reason)] = found.as_slice() else { panic!("{problem}: {found:?}") };
        assert!(*lost == points && reason.contains(problem), "{problem}: {found:?}");
        assert_eq!(alerts, std::slice::from_ref(reason), "{problem}");
        let (again, alerts) = run(&world).await;
        assert_eq!((again.len(), alerts.len()), (1, 0), "{problem}: the next hour sends no alert");
    }
}

#[tokio::test]
async fn a_repaired_finding_costs_nothing_and_a_new_one_is_alerted_again() {
    let (stripe, world) = in_order().await;
    change(&stripe, "we_1", "status", json!("disabled"));
    assert_eq!(run(&world).await.1.len(), 1);
    change(&stripe, "we_1", "status", json!("enabled"));
    assert_eq!(run(&world).await, (vec![], vec![]));
    change(&stripe, "we_1", "status", json!("disabled"));
    assert_eq!(run(&world).await.1.len(), 1);
    // Another subscription on the same unknown price is the same finding with another count.
    change(&stripe, "we_1", "status", json!("enabled"));
    for (number, alerts) in [(1, 1), (2, 0)] {
        stripe.put(json!({"id": format!("sub_{number}"), "object": "subscription", "status": "active",
            "created": number, "customer": "cus_1", "metadata": {},
            "items": {"data": [{"id": "si_1", "price": {"id": "price_x", "product": "prod_x"}}]}}));
        assert_eq!(run(&world).await.1.len(), alerts, "{number}");
    }
}

#[tokio::test]
async fn an_outage_of_stripe_keeps_what_was_found_before() {
    let (stripe, world) = in_order().await;
    change(&stripe, "we_1", "status", json!("disabled"));
    let (found, _) = run(&world).await;
    stripe.fail("/v1/prices", 1_000, Misbehaviour::Status(503, None));
    assert_eq!(run(&world).await, (found, vec![]));
}

#[tokio::test]
async fn the_other_paths_and_urls_of_the_webhook_are_in_order() {
    let (stripe, world) = in_order().await;
    let urls = format!("https://own.example/webhooks/stripe,{WEBHOOK}");
    let world = world.redeploy(&[("ENDPOINT_URL", urls.as_str())]);
    for url in [WEBHOOK, "https://own.example/webhooks/stripe/", "https://api.example/api/webhooks/stripe"] {
        change(&stripe, "we_1", "url", json!(url));
        assert_eq!(run(&world).await, (vec![], vec![]), "{url}");
    }
    change(&stripe, "we_1", "url", json!("https://other.example/webhooks/stripe"));
    assert_eq!(run(&world).await.1.len(), 1);
    assert_eq!(stripe.object("we_1").unwrap()["api_version"], API_VERSION);
}

#[tokio::test]
async fn without_a_stripe_key_the_account_is_not_checked() {
    let world = World::new().await;
    assert_eq!(run(&world).await, (vec![], vec![]));
    assert_eq!(health(&world).await["counts"]["stripe_account"], Value::Null);
}
