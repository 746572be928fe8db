//! `POST /checkout-sessions` through the real handler, against the fake Stripe.

use lambda_http::Body;
use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;

use crate::stripe_client::KEY;
use crate::support::{World, read_answer, sample};

const APP: &str = "https://app.example.com";

async fn shop() -> (World, FakeStripe) {
    let fake = FakeStripe::new(KEY);
    let base = format!("http://{}", fake.start().await.unwrap());
    // Stripe has only the prices of this mode.
    for price in ["price_pro_test", "price_team_test", "price_pack_1000_test", "price_dfy_starter_test"] {
        fake.put(json!({"id": price, "object": "price", "active": true}));
    }
    fake.put(json!({"id": "cus_TallyHook0001", "object": "customer"}));
    let variables = [("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", base.as_str()), ("APP_BASE_URL", APP)];
    (World::with(&variables).await, fake)
}

async fn buy(world: &World, wish: Value) -> (u16, Value) {
    world.app("POST", "/checkout-sessions", wish, None).await
}

/// The form that Stripe received.
async fn at_stripe(world: &World, fake: &FakeStripe, wish: Value) -> Value {
    let (status, body) = buy(world, wish).await;
    assert_eq!(status, 200, "{body}");
    fake.form(body["session_id"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn the_session_its_payment_and_its_subscription_carry_user_and_purchase() {
    let (world, fake) = shop().await;
    let plan = at_stripe(&world, &fake, json!({"user_id": "user <1>", "plan": "pro"})).await;
    assert_eq!((&plan["mode"], &plan["client_reference_id"]), (&json!("subscription"), &json!("user <1>")));
    let named = json!({"user_id": "user <1>", "plan": "pro"});
    assert_eq!((&plan["metadata"], &plan["subscription_data"]["metadata"]), (&named, &named));
    assert_eq!(
        (&plan["customer"], &plan["customer_creation"], &plan["payment_intent_data"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(plan["success_url"], format!("{APP}/portal/status?session_id={{CHECKOUT_SESSION_ID}}"));
    assert_eq!(plan["cancel_url"], format!("{APP}/"));
    assert!(plan.to_string().contains("price_pro_test"), "{plan}");

    let pack = json!({"user_id": "u", "pack": "credits_1000", "quantity": 3,
        "customer_email": "jo@example.com", "success_path": "/thanks"});
    let pack = at_stripe(&world, &fake, pack).await;
    let named = json!({"user_id": "u", "pack": "credits_1000", "quantity": "3"});
    assert_eq!((&pack["metadata"], &pack["payment_intent_data"]["metadata"]), (&named, &named));
    assert_eq!(
        (&pack["mode"], &pack["customer_creation"], &pack["success_url"]),
        (&json!("payment"), &json!("always"), &json!(format!("{APP}/thanks")))
    );
    assert!(pack["subscription_data"].is_null() && pack["customer_email"] == "jo@example.com");

    let order = at_stripe(&world, &fake, json!({"user_id": "u", "mode": "dfy", "plan": "starter"})).await;
    assert_eq!(order["metadata"], json!({"user_id": "u", "mode": "dfy", "plan": "starter"}));
    let seats = at_stripe(&world, &fake, json!({"user_id": "u", "plan": "team", "quantity": 7})).await;
    assert!(seats.to_string().contains("\"quantity\":\"7\""), "{seats}");
}

#[tokio::test]
async fn the_answer_warns_of_packs_that_a_payment_ends_and_stripe_has_the_reference() {
    let (world, fake) = shop().await;
    let pack = json!({"user_id": "user_1", "pack": "credits_1000", "customer_reference": "PO 7"});
    let (_, answer) = buy(&world, pack).await;
    let [warning] = answer["warnings"].as_array().unwrap().as_slice() else { panic!("{answer}") };
    assert!(warning.as_str().unwrap().contains("addons = \"reset\""), "{warning}");
    let form = fake.form(answer["session_id"].as_str().unwrap()).unwrap();
    let own = "customer_reference";
    assert_eq!(
        (&form["metadata"][own], &form["payment_intent_data"]["metadata"][own]),
        (&json!("PO 7"), &json!("PO 7"))
    );
    let plan = || json!({"user_id": "user_1", "plan": "pro"});
    assert_eq!(buy(&world, plan()).await.1["warnings"], json!([]), "the user has no pack");
    world.process(&crate::support::pack("one", "user_1", 1)).await;
    fake.put(json!({"id": "cus_user1", "object": "customer"}));
    let (_, answer) = buy(&world, plan()).await;
    assert!(answer["warnings"][0].as_str().is_some_and(|text| text.contains("1000 credits")), "{answer}");
    for reference in ["", "two\nlines", &"x".repeat(201)] {
        let wrong = json!({"user_id": "user_1", "plan": "pro", "customer_reference": reference});
        let (status, answer) = buy(&world, wrong).await;
        assert_eq!((status, &answer["error"]), (400, &json!("invalid_reference")));
    }
}

#[tokio::test]
async fn a_repeated_request_gets_the_same_session_until_the_purchase() {
    let (world, fake) = shop().await;
    let wish = || json!({"user_id": "user_123", "pack": "credits_1000"});
    let first = buy(&world, wish()).await.1;
    assert_eq!(buy(&world, wish()).await.1["session_id"], first["session_id"]);
    let other = world.app("POST", "/checkout-sessions", wish(), Some("another")).await.1;
    assert_ne!(other["session_id"], first["session_id"], "another idempotency key makes another session");
    world.process(&sample("checkout.session.completed.pack", "user_123")).await;
    let next = buy(&world, wish()).await.1;
    assert_ne!(next["session_id"], first["session_id"]);
    assert_eq!(next["customer"], "cus_TallyHook0001", "the customer is known from the first purchase");
    let session = fake.object(next["session_id"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&session["customer"], &session["customer_creation"]),
        (&json!("cus_TallyHook0001"), &Value::Null)
    );
    let prices = fake.requests().iter().filter(|request| request.contains("/v1/prices/")).count();
    assert_eq!(prices, 1, "which price is of this mode is asked once");
}

#[tokio::test]
async fn a_second_subscription_is_refused_with_the_way_to_the_billing_portal() {
    let (world, fake) = shop().await;
    let event = sample("customer.subscription.created", "user_123");
    fake.ingest(&event.to_string(), true).unwrap();
    world.process(&event).await;
    let (status, body) = buy(&world, json!({"user_id": "user_123", "plan": "business"})).await;
    assert_eq!(
        (status, &body["error"], &body["plan"]),
        (409, &json!("already_subscribed"), &json!("pro")),
        "{body}"
    );
    assert_eq!(body["subscription"], "sub_TallyHook0001");
    assert!(body["portal_url"].as_str().is_some_and(|url| url.starts_with("https://")), "{body}");
    assert!(
        fake.requests().iter().all(|request| !request.contains("checkout/sessions")),
        "no session was made"
    );
    assert_eq!(
        buy(&world, json!({"user_id": "user_123", "pack": "credits_1000"})).await.0,
        200,
        "a pack is no subscription"
    );
    fake.fail("billing_portal", 9, Misbehaviour::Status(500, None));
    let (status, body) = buy(&world, json!({"user_id": "user_123", "plan": "business"})).await;
    assert_eq!((status, &body["portal_url"]), (409, &Value::Null), "{body}");
    world.process(&sample("customer.subscription.deleted", "user_123")).await;
    assert_eq!(
        buy(&world, json!({"user_id": "user_123", "plan": "pro"})).await.0,
        200,
        "an ended subscription does not block a new one"
    );
}

#[tokio::test]
async fn a_failure_of_stripe_is_a_502_with_its_words_and_without_secrets() {
    let (world, fake) = shop().await;
    let wish = || json!({"user_id": "u", "pack": "credits_1000"});
    fake.fail("/v1/checkout/sessions", 9, Misbehaviour::Status(402, None));
    let (status, body) = buy(&world, wish()).await;
    assert_eq!(
        (status, &body["error"], &body["message"], &body["stripe"]["status"]),
        (502, &json!("stripe_error"), &json!("this failure was requested"), &json!(402))
    );
    fake.heal();
    fake.fail("/v1/checkout/sessions", 9, Misbehaviour::Cut);
    let (status, body) = buy(&world, wish()).await;
    assert_eq!((status, &body["error"]), (502, &json!("stripe_error")));
    fake.heal();
    let down = world.redeploy(&[("STRIPE_API_BASE", "http://127.0.0.1:9")]);
    let (status, body) = buy(&down, wish()).await;
    assert_eq!((status, &body["error"]), (502, &json!("stripe_error")), "{body}");
    let wrong = down.redeploy(&[
        ("STRIPE_API_BASE", &format!("http://{}", fake.start().await.unwrap())),
        ("STRIPE_SECRET_KEY", "sk_test_wrong"),
    ]);
    let (status, body) = buy(&wrong, wish()).await;
    assert_eq!((status, &body["stripe"]["status"]), (502, &json!(401)));
    let answer = body.to_string();
    assert!(!answer.contains("sk_test_wrong") && !answer.contains("Bearer"), "{answer}");
}

#[tokio::test]
async fn an_unknown_purchase_is_refused_with_what_the_catalog_has() {
    let (world, fake) = shop().await;
    for (wish, code, says) in [
        (json!({"user_id": "u", "plan": "<script>"}), "unknown_name", "it has: pro, business, team"),
        (json!({"user_id": "u", "pack": "credits_9"}), "unknown_name", "credits_1000"),
        (json!({"user_id": "u", "mode": "xyz", "plan": "starter"}), "unknown_name", "dfy"),
        (json!({"user_id": "u", "mode": "dfy", "plan": "pro"}), "unknown_name", "starter"),
        (json!({"user_id": "u"}), "invalid_body", "say what is bought"),
        (json!({"user_id": "u", "mode": "dfy"}), "invalid_body", "say what is bought"),
        (
            json!({"user_id": "u", "plan": "pro", "pack": "credits_1000"}),
            "invalid_body",
            "say what is bought",
        ),
        (json!({"user_id": "u", "plan": "pro", "price": "price_x"}), "invalid_body", "unknown field"),
        (json!({"plan": "pro"}), "invalid_body", "user_id"),
        (json!({"user_id": "", "plan": "pro"}), "invalid_user_id", "1 to 128"),
        (json!({"user_id": "u\u{0}", "plan": "pro"}), "invalid_user_id", "1 to 128"),
        (json!({"user_id": "u", "plan": "pro", "quantity": 2}), "invalid_quantity", "not sold by the seat"),
        (json!({"user_id": "u", "pack": "credits_1000", "quantity": 0}), "invalid_quantity", "from 1 to"),
        (json!({"user_id": "u", "pack": "credits_1000", "quantity": -1}), "invalid_body", ""),
        (
            json!({"user_id": "u", "pack": "credits_1000", "success_path": "https://evil.test"}),
            "invalid_path",
            "APP_BASE_URL",
        ),
        (
            json!({"user_id": "u", "pack": "credits_1000", "success_path": "//evil.test"}),
            "invalid_path",
            "APP_BASE_URL",
        ),
        (
            json!({"user_id": "u", "pack": "credits_1000", "cancel_path": "/\\evil.test"}),
            "invalid_path",
            "APP_BASE_URL",
        ),
    ] {
        let (status, body) = buy(&world, wish.clone()).await;
        assert_eq!((status, body["error"].as_str()), (400, Some(code)), "{wish} {body}");
        assert!(body["message"].as_str().unwrap().contains(says), "{wish} {body}");
    }
    assert_eq!(fake.requests(), Vec::<String>::new(), "Stripe was not asked for any of it");
    let (status, body) = buy(&world, json!({"user_id": "u", "plan": "business"})).await;
    assert_eq!(
        (status, &body["error"]),
        (409, &json!("no_price")),
        "Stripe has neither of its prices: {body}"
    );

    assert_eq!(
        read_answer(world.visit(None, "POST", "/checkout-sessions", Body::Text("{}".into())).await).0,
        401
    );
    assert_eq!(world.app("GET", "/checkout-sessions", Value::Null, None).await.0, 405);
    let closed = world.redeploy(&[("STRIPE_SECRET_KEY", "")]);
    assert_eq!(
        buy(&closed, json!({"user_id": "u", "plan": "pro"})).await.1["error"],
        "checkout_not_configured"
    );
}

/// A shop with another catalog.
async fn shop_of(name: &str, catalog: &str) -> (World, FakeStripe) {
    let path = std::env::temp_dir().join(format!("tallyhook-{name}-{}.toml", std::process::id()));
    std::fs::write(&path, catalog).unwrap();
    let (world, fake) = shop().await;
    let world = world.redeploy(&[("CATALOG_FILE", path.to_str().unwrap())]);
    std::fs::remove_file(path).unwrap();
    fake.sell(&Catalog::parse(catalog).unwrap());
    (world, fake)
}

const OPTIONS: &str = r#"
[tiers]
free = 0
pro = 1
[policy]
default_tier = "free"
[checkout]
promotion_codes = true
tax_id = true
[[plan]]
name = "pro"
tier = "pro"
credits = 5000
trial_days = 14
lookup_keys = ["pro_by_key"]
[[plan]]
name = "basic"
tier = "pro"
credits = 100
stripe_products = ["prod_basic"]
[[pack]]
name = "credits_1000"
credits = 1000
prices = ["price_pack"]
"#;

/// The fields are Stripe's: <https://docs.stripe.com/api/checkout/sessions/create>
#[tokio::test]
async fn options_are_the_requests_else_the_catalogs() {
    let (world, fake) = shop_of("checkout-options", OPTIONS).await;
    let plan = json!({"user_id": "u", "plan": "pro", "trial": true, "promotion_codes": false, "locale": "de",
        "automatic_tax": true, "payment_method_collection": "if_required"});
    let plan = at_stripe(&world, &fake, plan).await;
    assert_eq!(plan["line_items"][0]["price"], "price_pro_by_key", "the price with the lookup key");
    assert_eq!(plan["subscription_data"]["trial_period_days"], "14");
    assert_eq!(
        (&plan["allow_promotion_codes"], &plan["tax_id_collection"], &plan["automatic_tax"]),
        (&Value::Null, &json!({"enabled": "true"}), &json!({"enabled": "true"}))
    );
    assert_eq!(
        (&plan["locale"], &plan["payment_method_collection"], &plan["customer_update"]),
        (&json!("de"), &json!("if_required"), &Value::Null)
    );
    let basic = at_stripe(&world, &fake, json!({"user_id": "u", "plan": "basic"})).await;
    assert_eq!(basic["line_items"][0]["price"], "price_of_prod_basic", "the only price of the product");
    let pack = json!({"user_id": "u", "pack": "credits_1000", "quantity": 2, "adjustable_quantity": true,
        "payment_method_collection": "if_required"});
    let pack = at_stripe(&world, &fake, pack).await;
    assert_eq!(pack["line_items"][0]["adjustable_quantity"], json!({"enabled": "true"}));
    assert_eq!(pack["metadata"], json!({"user_id": "u", "pack": "credits_1000"}), "the line items have it");
    assert_eq!(
        (&pack["payment_method_collection"], &pack["allow_promotion_codes"]),
        (&Value::Null, &json!("true"))
    );
    for (wish, status, code) in [
        (json!({"user_id": "u", "plan": "basic", "trial": true}), 400, "no_trial"),
        (json!({"user_id": "u", "plan": "pro", "locale": "a b"}), 400, "invalid_locale"),
        (json!({"user_id": "u", "plan": "pro", "payment_method_collection": "never"}), 400, "invalid_body"),
    ] {
        let (got, body) = buy(&world, wish).await;
        assert_eq!((got, &body["error"]), (status, &json!(code)), "{body}");
    }
}

#[tokio::test]
async fn a_trial_is_started_once_for_each_user() {
    let (world, _fake) = shop_of("checkout-trial", OPTIONS).await;
    let wish = || json!({"user_id": "user_123", "plan": "pro", "trial": true});
    assert_eq!(buy(&world, wish()).await.0, 200);
    let mut trial = sample("customer.subscription.created", "user_123");
    let object = &mut trial["data"]["object"];
    object["status"] = json!("trialing");
    object["items"]["data"][0]["price"]["lookup_key"] = json!("pro_by_key");
    world.process(&trial).await;
    let mut over = sample("customer.subscription.deleted", "user_123");
    over["data"]["object"]["items"] = trial["data"]["object"]["items"].clone();
    world.process(&over).await;
    let (status, body) = buy(&world, wish()).await;
    assert_eq!((status, &body["error"]), (409, &json!("trial_used")), "{body}");
    assert_eq!(buy(&world, json!({"user_id": "user_123", "plan": "pro"})).await.0, 200);
}
