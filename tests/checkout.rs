//! `POST /checkout-sessions`, `POST /users/{id}/portal` and `GET /catalog` through the real handler, against
//! the fake Stripe, which refuses every parameter that Stripe's description does not have.

use std::time::Duration;

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
    fake.put_portal("bpc_1", "always_invoice");
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
    let customer = fake.object(plan["customer"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&customer["metadata"], &plan["payment_intent_data"]),
        (&json!({"user_id": "user <1>"}), &Value::Null)
    );
    assert_eq!(plan["success_url"], format!("{APP}/portal/status?session_id={{CHECKOUT_SESSION_ID}}"));
    assert_eq!(plan["cancel_url"], format!("{APP}/"));
    assert!(plan.to_string().contains("price_pro_test"), "{plan}");

    let pack = json!({"user_id": "u", "pack": "credits_1000", "quantity": 3,
        "customer_email": "jo@example.com", "success_path": "/thanks"});
    let pack = at_stripe(&world, &fake, pack).await;
    let named = json!({"user_id": "u", "pack": "credits_1000", "quantity": "3"});
    assert_eq!((&pack["metadata"], &pack["payment_intent_data"]["metadata"]), (&named, &named));
    assert_eq!((&pack["mode"], &pack["success_url"]), (&json!("payment"), &json!(format!("{APP}/thanks"))));
    let customer = fake.object(pack["customer"].as_str().unwrap()).unwrap();
    assert!(pack["subscription_data"].is_null() && customer["email"] == "jo@example.com", "{customer}");

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
    assert_eq!(session["customer"], "cus_TallyHook0001");
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
        (
            json!({"user_id": "u", "plan": "pro", "adjustable_quantity": true}),
            "invalid_quantity",
            "not sold by the seat",
        ),
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
    let (wish, key) = (json!({"user_id": "u", "plan": "pro"}), "k".repeat(256));
    let (status, body) = world.app("POST", "/checkout-sessions", wish, Some(&key)).await;
    assert_eq!((status, body["error"].as_str()), (400, Some("invalid_idempotency_key")), "{body}");
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
        (&json!("de"), &json!("if_required"), &json!({"address": "auto", "name": "auto"}))
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

/// The customer of a new session.
async fn customer_of(world: &World, wish: Value) -> String {
    let (status, body) = buy(world, wish).await;
    assert_eq!(status, 200, "{body}");
    body["customer"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn two_tabs_at_once_make_one_customer_whatever_the_user_id_is() {
    let (world, fake) = shop().await;
    let before = fake.count("customer");
    for (at, user) in ["ann", "a/b?c#d%20\u{e9}\"", &"\u{1F600}".repeat(128)].into_iter().enumerate() {
        fake.fail("/v1/customers", 4, Misbehaviour::Delay(Duration::from_millis(30)));
        let one = json!({"user_id": user, "plan": "pro", "customer_email": "jo@example.com"});
        let two = json!({"user_id": user, "pack": "credits_1000", "customer_email": "ann@example.com"});
        let (one, two) = tokio::join!(customer_of(&world, one), customer_of(&world, two));
        assert_eq!(one, two);
        assert_eq!(fake.count("customer"), before + at + 1);
        assert_eq!(fake.object(&one).unwrap()["metadata"]["user_id"], user);
        fake.heal();
        fake.requests();
        assert_eq!(customer_of(&world, json!({"user_id": user, "plan": "team"})).await, one);
        let asked = fake.requests();
        assert!(!asked.iter().any(|request| request.contains("customers")), "it is remembered: {asked:?}");
    }
}

#[tokio::test]
async fn a_retry_after_a_lost_answer_gets_the_same_customer() {
    let (world, fake) = shop().await;
    let before = fake.count("customer");
    let wish = |email: &str| json!({"user_id": "u", "plan": "pro", "customer_email": email});
    fake.fail("/v1/customers", 2, Misbehaviour::Cut);
    assert_eq!(buy(&world, wish("typo@example")).await.0, 502);
    fake.heal();
    let customer = customer_of(&world, wish("jo@example.com")).await;
    assert_eq!(fake.count("customer"), before + 1);
    assert_eq!(fake.object(&customer).unwrap()["email"], "jo@example.com");
}

#[tokio::test]
async fn a_customer_that_stripe_does_not_have_is_replaced_once() {
    let (world, fake) = shop().await;
    // Another quantity each time: Stripe answers the same request with the session that it has.
    let quantity = std::cell::Cell::new(0);
    let wish = |user: &str| {
        quantity.set(quantity.get() + 1);
        json!({"user_id": user, "pack": "credits_1000", "quantity": quantity.get()})
    };
    let mut known = vec![customer_of(&world, wish("u")).await];
    for _ in 0..2 {
        fake.remove(known.last().unwrap());
        let next = customer_of(&world, wish("u")).await;
        assert!(!known.contains(&next), "{next} {known:?}");
        assert_eq!(customer_of(&world, wish("u")).await, next);
        known.push(next);
    }
    // One that an event has linked, too.
    world.process(&sample("checkout.session.completed.pack", "user_123")).await;
    assert_eq!(customer_of(&world, wish("user_123")).await, "cus_TallyHook0001");
    fake.remove("cus_TallyHook0001");
    let next = customer_of(&world, wish("user_123")).await;
    assert_ne!(next, "cus_TallyHook0001");
    assert_eq!(customer_of(&world, wish("user_123")).await, next);
    // And one whose deletion was reported.
    let (world, fake) = shop().await;
    world.process(&sample("checkout.session.completed.pack", "user_123")).await;
    world.process(&sample("customer.deleted", "user_123")).await;
    fake.requests();
    assert_ne!(customer_of(&world, wish("user_123")).await, "cus_TallyHook0001");
    let sessions = fake.requests().iter().filter(|request| request.contains("checkout/sessions")).count();
    assert_eq!(sessions, 1, "the deleted one was not tried");
}

const PACKS: &str = r#"
[tiers]
free = 0
[policy]
default_tier = "free"
signup_credits = 0
[[pack]]
name = "small"
credits = 100
prices = ["price_small"]
[[pack]]
name = "large"
credits = 1000
lookup_keys = ["large"]
"#;

#[tokio::test]
async fn several_packs_are_sold_in_one_payment() {
    let (world, fake) = shop_of("checkout-packs", PACKS).await;
    let packs = json!([{"pack": "small", "quantity": 3}, {"pack": "large"}]);
    let (status, body) = buy(&world, json!({"user_id": "u", "packs": packs})).await;
    assert_eq!((status, &body["mode"]), (200, &json!("payment")), "{body}");
    let id = body["session_id"].as_str().unwrap();
    assert_eq!(fake.form(id).unwrap()["metadata"], json!({"user_id": "u"}));
    for event in fake.pay(id, local::fake_stripe::Payment::AtOnce).unwrap() {
        if event.kind == "checkout.session.completed" {
            world.process(&serde_json::from_str(&event.body).unwrap()).await;
        }
    }
    assert_eq!(world.app("GET", "/users/u", Value::Null, None).await.1["credits"], 1_300);
    let many: Vec<Value> = (0..21).map(|_| json!({"pack": "small"})).collect();
    for (wish, code) in [
        (json!({"user_id": "u", "packs": []}), "invalid_body"),
        (json!({"user_id": "u", "packs": many}), "invalid_body"),
        (json!({"user_id": "u", "packs": [{"pack": "small"}], "pack": "large"}), "invalid_body"),
        (json!({"user_id": "u", "packs": [{"pack": "small"}], "quantity": 2}), "invalid_body"),
        (json!({"user_id": "u", "packs": [{"pack": "small"}, {"pack": "small"}]}), "invalid_quantity"),
        (json!({"user_id": "u", "packs": [{"pack": "small", "quantity": 0}]}), "invalid_quantity"),
        (json!({"user_id": "u", "packs": [{"pack": "huge"}]}), "unknown_name"),
    ] {
        let (status, body) = buy(&world, wish.clone()).await;
        assert_eq!((status, &body["error"]), (400, &json!(code)), "{wish} {body}");
    }
}

/// The limits are Stripe's: <https://docs.stripe.com/api/metadata>
#[tokio::test]
async fn the_apps_metadata_is_beside_ours_and_cannot_replace_it() {
    let (world, fake) = shop().await;
    let wish = |metadata: Value| json!({"user_id": "u", "plan": "pro", "metadata": metadata});
    let full: Value = (0..48).map(|at| (format!("{at:0>40}"), json!("x".repeat(500)))).collect();
    let form = at_stripe(&world, &fake, wish(full.clone())).await;
    let all = form["metadata"].as_object().unwrap();
    assert_eq!((all.len(), &form["metadata"]), (50, &form["subscription_data"]["metadata"]));
    assert_eq!((&all["user_id"], &all["plan"]), (&json!("u"), &json!("pro")));
    let mut too_many = full;
    too_many["one"] = json!("more");
    let long = "k".repeat(41);
    for metadata in [
        too_many,
        json!({"user_id": "other"}),
        json!({"client_id": "other"}),
        json!({"quantity": "9"}),
        json!({"tallyhook_own": "x"}),
        json!({long: "x"}),
        json!({"": "x"}),
        json!({"a[b]": "x"}),
        json!({"a": ""}),
        json!({"a": "x".repeat(501)}),
    ] {
        let (status, body) = buy(&world, wish(metadata)).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_metadata")), "{body}");
    }
    assert_eq!(buy(&world, wish(json!({"a": 1}))).await.1["error"], "invalid_body");
}

async fn open_portal(world: &World, wish: Value) -> (u16, Value) {
    world.app("POST", "/users/user_123/portal", wish, None).await
}

/// The flows are Stripe's: <https://docs.stripe.com/customer-management/portal-deep-links>
#[tokio::test]
async fn each_flow_of_the_portal_opens_for_what_the_user_has() {
    let (world, fake) = shop().await;
    assert_eq!(open_portal(&world, json!({})).await.1["error"], "user_not_found");
    world.sign_up("user_123").await;
    assert_eq!(open_portal(&world, json!({"flow": "home"})).await.1["error"], "no_customer");
    let mut event = sample("customer.subscription.created", "user_123");
    fake.ingest(&event.to_string(), true).unwrap();
    world.process(&event).await;
    let (subscription, change) = (json!("sub_TallyHook0001"), json!({"flow": "change_plan", "plan": "team"}));
    for (wish, shown) in [
        (json!({}), &Value::Null),
        (json!({"flow": "payment_method", "return_path": "/settings"}), &subscription),
        (json!({"flow": "cancel"}), &subscription),
        (json!({"flow": "change_plan"}), &subscription),
        (change.clone(), &subscription),
        (json!({"flow": "change_plan", "plan": "team", "quantity": 3}), &subscription),
        (json!({"flow": "cancel", "subscription": "sub_TallyHook0001"}), &subscription),
    ] {
        let (status, body) = open_portal(&world, wish.clone()).await;
        assert_eq!((status, &body["subscription"]), (200, shown), "{wish} {body}");
        assert!(body["url"].as_str().is_some_and(|url| url.starts_with("https://")), "{body}");
        let (_, other) = open_portal(&world, wish).await;
        assert_ne!(other["url"], body["url"], "each request gets a new session");
    }
    for (wish, status, code) in [
        (json!({"flow": "change_plan", "plan": "pro"}), 409, "nothing_to_change"),
        (json!({"flow": "change_plan", "plan": "business"}), 409, "no_price"),
        (json!({"flow": "change_plan", "plan": "none"}), 400, "unknown_name"),
        (json!({"flow": "change_plan", "plan": "pro", "quantity": 2}), 400, "invalid_quantity"),
        (json!({"flow": "cancel", "plan": "pro"}), 400, "invalid_body"),
        (json!({"flow": "cancel", "subscription": "sub_other"}), 409, "no_subscription"),
        (json!({"flow": "cancel", "return_path": "https://evil.test"}), 400, "invalid_path"),
        (json!({"flow": "leave"}), 400, "invalid_body"),
    ] {
        let (got, body) = open_portal(&world, wish.clone()).await;
        assert_eq!((got, &body["error"]), (status, &json!(code)), "{wish} {body}");
    }
    fake.remove("bpc_1");
    let (status, body) = open_portal(&world, json!({"flow": "home"})).await;
    assert_eq!((status, &body["error"]), (502, &json!("no_portal_configuration")), "{body}");
    fake.put_portal("bpc_1", "always_invoice");
    fake.fail("billing_portal", 9, Misbehaviour::Status(500, None));
    assert_eq!(open_portal(&world, change.clone()).await.1["error"], "stripe_error");
    fake.heal();

    // A second item, a second subscription, a scheduled end, a deleted customer.
    let mut two_items = event.clone();
    let item = event["data"]["object"]["items"]["data"][0].clone();
    two_items["data"]["object"]["items"]["data"].as_array_mut().unwrap().push(item);
    fake.put(two_items["data"]["object"].clone());
    assert_eq!(open_portal(&world, change).await.1["error"], "several_items");
    event["id"] = json!("evt_second");
    event["data"]["object"]["id"] = json!("sub_Second");
    event["data"]["object"]["items"]["data"][0]["id"] = json!("si_Second");
    fake.ingest(&event.to_string(), true).unwrap();
    world.process(&event).await;
    let (status, body) = open_portal(&world, json!({"flow": "cancel"})).await;
    assert_eq!((status, &body["error"]), (409, &json!("several_subscriptions")), "{body}");
    let listed: Vec<&Value> =
        body["subscriptions"].as_array().unwrap().iter().map(|one| &one["subscription"]).collect();
    assert_eq!(listed, [&json!("sub_Second"), &json!("sub_TallyHook0001")]);
    let second = json!({"flow": "cancel", "subscription": "sub_Second"});
    assert_eq!(open_portal(&world, second.clone()).await.0, 200);
    event["id"] = json!("evt_third");
    event["type"] = json!("customer.subscription.updated");
    event["created"] = json!(event["created"].as_i64().unwrap() + 60);
    event["data"]["object"]["cancel_at_period_end"] = json!(true);
    world.process(&event).await;
    assert_eq!(open_portal(&world, second).await.1["error"], "nothing_to_cancel");
    fake.remove("cus_TallyHook0001");
    assert_eq!(open_portal(&world, json!({})).await.1["error"], "no_customer");
}

async fn catalog(world: &World, headers: &[(&str, &str)]) -> lambda_http::Response<Body> {
    let request = crate::support::request(
        crate::support::EntryPoint::HttpApi,
        headers,
        "GET",
        "/catalog",
        &Body::Empty,
    );
    world.api.handle(request).await.unwrap()
}

#[tokio::test]
async fn the_catalog_shows_stripes_amounts_and_asks_once_in_five_minutes() {
    let (world, fake) = shop_of("catalog", OPTIONS).await;
    fake.requests();
    let answer = catalog(&world, &[]).await;
    for (name, value) in [
        ("cache-control", "public, max-age=300"),
        ("access-control-allow-origin", "*"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    let (_, body) = read_answer(answer);
    crate::openapi::check("GET", "/catalog", 200, &body);
    let monthly = json!({"amount": 2000, "currency": "usd", "interval": "month", "interval_count": 1});
    let once = json!({"amount": 1000, "currency": "usd", "interval": null, "interval_count": null});
    let price = |list: &str, at: usize| body[list][at]["price"].clone();
    assert_eq!((price("plans", 0), price("plans", 1), price("packs", 0)), (monthly.clone(), monthly, once));
    assert_eq!((&body["plans"][0]["trial_days"], &body["warnings"]), (&json!(14), &json!([])));
    assert!(!body.to_string().contains("price_"), "ids of prices are not shown");
    for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}")] {
        let answer = catalog(&world, &[("if-none-match", &known)]).await;
        assert_eq!((answer.status().as_u16(), answer.body().is_empty()), (304, true));
        assert_eq!(answer.headers()["etag"], tag.as_str());
    }
    assert_eq!(catalog(&world, &[("if-none-match", "\"x\"")]).await.status(), 200);
    assert_eq!(fake.requests().len(), 1, "Stripe was asked once");
    assert_eq!(world.app("POST", "/catalog", Value::Null, None).await.0, 405);
    assert_eq!(world.operations(), ["BatchGetItem"], "the stored catalog is read once in 30 s");
}

#[tokio::test]
async fn the_catalog_is_shown_without_amounts_when_stripe_cannot_be_asked() {
    let (world, fake) = shop_of("catalog-silent", OPTIONS).await;
    fake.requests();
    fake.fail("/v1/prices", 9, Misbehaviour::Status(500, None));
    let answer = catalog(&world, &[]).await;
    assert_eq!(answer.headers()["cache-control"], "public, max-age=30");
    let (status, body) = read_answer(answer);
    assert_eq!((status, &body["amounts_at"], &body["plans"][0]["price"]), (200, &Value::Null, &Value::Null));
    assert!(body["warnings"][0].as_str().unwrap().contains("did not answer"), "{body}");
    catalog(&world, &[]).await;
    assert_eq!(fake.requests().len(), 1, "a failure is not repeated at once");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml");
    let world = world.redeploy(&[("STRIPE_SECRET_KEY", ""), ("CATALOG_FILE", file)]);
    let (status, body) = read_answer(catalog(&world, &[]).await);
    assert!(status == 200 && body["warnings"][0].as_str().unwrap().contains("STRIPE_SECRET_KEY"), "{body}");
}

#[tokio::test]
async fn the_catalog_reads_at_most_five_pages_of_prices() {
    let (world, fake) = shop_of("catalog-pages", OPTIONS).await;
    // Newer than the prices of the catalog, which are then beyond the last page.
    for at in 0..500 {
        fake.put(json!({"id": format!("price_{at}"), "object": "price", "active": true, "created": 9}));
    }
    fake.requests();
    let (_, body) = read_answer(catalog(&world, &[]).await);
    assert_eq!(fake.requests().len(), 5);
    assert!(body["warnings"][0].as_str().unwrap().contains("more active prices"), "{body}");
    assert_eq!(body["plans"][0]["price"], Value::Null);
}
