//! A. An app whose tier never changed after a checkout.

use serde_json::{Value, json};
use tallyhook_core::signature::{Secret, sign};

use crate::setup_status::{app_asks, with_stripe};
use crate::support::{World, now, sample, signature};

const PURCHASE: [&str; 3] = ["checkout.session.completed", "customer.subscription.created", "invoice.paid"];

#[tokio::test]
async fn a_checkout_changes_the_tier_and_a_wrong_setting_is_named() {
    let world = World::new().await;
    assert_eq!(world.sign_up("user_123").await["tier"], "free");

    // "No signature": 400, and nothing changes.
    let body = sample("invoice.paid", "user_123").to_string();
    let (status, answer) = world.post(body.as_bytes(), None).await;
    assert_eq!((status, &answer["error"]), (400, &json!("missing_signature")));

    // "The secret is of another endpoint": 400, and the answer does not say which part was wrong.
    let other = sign(body.as_bytes(), &Secret::new("whsec_of_another_endpoint").unwrap(), now());
    let (status, answer) = world.post(body.as_bytes(), Some(&other)).await;
    assert_eq!((status, &answer["error"]), (400, &json!("invalid_signature")), "{answer}");
    assert_eq!(world.account("user_123").await["tier"], "free");

    // A signed test event, as `tallyhook send` makes it: the tier changes.
    for name in PURCHASE {
        let body = sample(name, "user_123").to_string();
        assert_eq!(world.post(body.as_bytes(), Some(&signature(body.as_bytes()))).await.0, 200, "{name}");
    }
    world.drain().await;
    let account = world.account("user_123").await;
    assert_eq!((&account["tier"], &account["tier_rank"]), (&json!("pro"), &json!(1)), "{account:#}");

    // The app gates a feature by the same answer.
    let (status, check) = world.app("GET", "/users/user_123/check?credits=5000", Value::Null, None).await;
    assert_eq!((status, &check["allowed"]), (200, &json!(true)));
}

#[tokio::test]
async fn a_webhook_that_never_comes_is_replaced_when_the_customer_returns() {
    let (world, fake) = with_stripe().await;
    world.sign_up("user_123").await;
    for name in PURCHASE {
        fake.ingest(&sample(name, "user_123").to_string(), false).unwrap();
    }
    // The app's own checkout made the session, so the app asks with its token.
    let (status, setup) = app_asks(&world, "cs_test_a1TallyHook0001").await;
    assert_eq!((status, &setup["payment_state"]), (200, &json!("paid")), "{setup}");
    let account = world.account("user_123").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(5000)), "{account:#}");
    // The late webhook changes nothing.
    for name in PURCHASE {
        world.process(&sample(name, "user_123")).await;
    }
    assert_eq!(world.account("user_123").await["credits"], 5000);
}
