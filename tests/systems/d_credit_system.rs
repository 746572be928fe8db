//! D. A credit system: each payment grants once, and the ledger explains every credit.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_service::config::ApiConfig;

use crate::support::{World, pack, sample};

#[tokio::test]
async fn credits_come_go_and_return_and_the_ledger_explains_each() {
    let world = World::new().await;
    let balance = async || world.account("user_1").await["credits"].as_u64().unwrap();
    let spend = async |key: &str, amount: u64| {
        let path = "/users/user_1/credits/consume";
        world.app("POST", path, json!({"amount": amount}), Some(key)).await
    };
    // 500 at signup, once.
    for _ in 0..2 {
        assert_eq!(world.sign_up("user_1").await["credits"], 500);
    }
    // The first payment sets the plan's credits, and a second delivery changes nothing.
    for name in ["customer.subscription.created", "invoice.paid", "invoice.paid"] {
        world.process(&sample(name, "user_1")).await;
    }
    assert_eq!(balance().await, 5000);
    // Two purchases at once are both counted.
    let (one, two) = (pack("one", "user_1", 1), pack("two", "user_1", 1));
    for event in [&one, &two] {
        assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200);
    }
    world.drain().await;
    assert_eq!(balance().await, 7000);
    // Ten equal requests at once spend once, and no request spends more than there is.
    let answers = join_all((0..10).map(|_| spend("job-1", 1000))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(balance().await, 6000);
    assert_eq!(spend("job-2", 6001).await.1["error"], "insufficient_credits");
    assert_eq!(spend("job-1", 999).await.0, 409, "the same key with another amount");
    // A failed job is given back.
    let back = json!({"spend": "job-1", "amount": 400});
    assert_eq!(world.app("POST", "/users/user_1/credits/refund", back, Some("back")).await.0, 200);
    assert_eq!(balance().await, 6400);
    // An unpaid session adds no credits.
    let mut unpaid = pack("unpaid", "user_1", 1);
    unpaid["data"]["object"]["payment_status"] = json!("unpaid");
    world.process(&unpaid).await;
    assert_eq!(balance().await, 6400);
    // The renewal resets the plan and ends the packs.
    for name in ["customer.subscription.updated", "invoice.paid.renewal"] {
        world.process(&sample(name, "user_1")).await;
    }
    assert_eq!(balance().await, 5000);
    // The upgrade counts at once.
    world.process(&sample("customer.subscription.updated.upgrade.mid_period", "user_1")).await;
    let account = world.account("user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("business"), &json!(20_000)));
    // The end takes the tier and leaves the credits.
    world.process(&sample("customer.subscription.deleted", "user_1")).await;
    let account = world.account("user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("free"), &json!(20_000)));
    // The ledger adds up, entry by entry.
    let ledger = world.ledger("user_1").await;
    let mut sum = 0;
    for entry in ledger.iter().rev() {
        sum += entry["delta"].as_i64().unwrap();
        assert_eq!(entry["balance"], sum, "{entry:#}");
        assert!(entry["cause"].is_string() && entry["key"].is_string(), "{entry:#}");
    }
    assert_eq!(sum, 20_000);
    // Only the app can change a balance.
    let stranger = world.visit(None, "GET", "/users/user_1", lambda_http::Body::Empty).await;
    assert_eq!(stranger.status().as_u16(), 401);
    assert_eq!(world.app("GET", "/users/unknown", Value::Null, None).await.0, 404);
}

#[test]
fn customers_never_return_to_this_machine_in_production() {
    let config = |url: &str, livemode: &str| {
        ApiConfig::from_env(&Env::from([
            ("ACCOUNTS_TABLE", "a"),
            ("EVENTS_TABLE", "e"),
            ("APP_BASE_URL", url),
            ("STRIPE_LIVEMODE", livemode),
        ]))
    };
    assert!(config("http://localhost:3000", "false").is_ok());
    assert!(config("https://app.example.com", "true").is_ok());
    let error = config("http://localhost:3000", "true").err().unwrap().to_string();
    assert!(error.contains("APP_BASE_URL"), "{error}");
}
