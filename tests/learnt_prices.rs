//! Prices that the catalog names by their lookup keys: each price id is learnt once, for all functions.
//!
//! Shapes: an item of a subscription holds the price object with its `lookup_key`
//! (<https://docs.stripe.com/api/prices/object>). Since 2025-03-31.basil the line of an invoice holds only
//! the price's id and its product
//! (<https://docs.stripe.com/changelog/basil/2025-03-31/invoice-pricing-configurations>). Stripe moves a
//! lookup key to another price with `transfer_lookup_key`, and then shows null for the old one.

use local::fake_stripe::FakeStripe;
use serde_json::{Value, json};
use tallyhook_aws::store::Store;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_core::catalog::{LearntPrice, MAX_LEARNT_PRICES};
use tallyhook_core::event::Family;
use tallyhook_core::timestamp::Timestamp;

use crate::catalog::put;
use crate::stripe_client::KEY;
use crate::support::{World, sample, with_id};

const CATALOG: &str = r#"
[tiers]
free = 0
pro = 1
[policy]
default_tier = "free"
[[plan]]
name = "pro"
tier = "pro"
credits = 5000
lookup_keys = ["pro_monthly"]
[[plan]]
name = "team"
tier = "pro"
credits = 1000
lookup_keys = ["team_monthly"]
"#;

/// A deployment with the stored catalog, in which every read of the catalog is due.
async fn deployment(variables: &[(&str, &str)]) -> World {
    let all = [&[("CATALOG_MAX_AGE_SECONDS", "0"), ("CATALOG_FILE", "")], variables].concat();
    let world = World::with(&all).await;
    let (status, stored) = put(&world, "?apply=true&reason=first", None, CATALOG).await;
    assert_eq!((status, &stored["applied"]), (200, &json!(true)), "{stored:#}");
    world
}

/// An event of a user with its own subscription.
fn of_user(name: &str, user: &str) -> Value {
    let own = sample(name, user).to_string().replace("TallyHook0001", &format!("Of{user}"));
    with_id(serde_json::from_str(&own).unwrap(), &format!("evt_{}_{user}", name.replace('.', "_")))
}

fn subscribed(user: &str, lookup_key: Option<&str>) -> Value {
    let mut event = of_user("customer.subscription.created", user);
    event["data"]["object"]["items"]["data"][0]["price"]["lookup_key"] = json!(lookup_key);
    event
}

fn paid(user: &str) -> Value {
    of_user("invoice.paid", user)
}

async fn learnt(world: &World) -> Vec<LearntPrice> {
    let store = Store::new(world.dynamodb.clone(), "accounts".to_owned(), "events".to_owned());
    let found = store.load([Key::LearntPrices]).await.unwrap();
    items::read_learnt_prices(found.get(&Key::LearntPrices)).unwrap().0
}

async fn credits(world: &World, user: &str) -> i64 {
    world.account(user).await["credits"].as_i64().unwrap()
}

#[tokio::test]
async fn a_price_that_a_subscription_showed_grants_another_users_invoice_without_stripe() {
    let fake = FakeStripe::new(KEY);
    let base = format!("http://{}", fake.start().await.unwrap());
    let world = deployment(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &base)]).await;
    for user in ["user_1", "user_2", "user_3"] {
        world.sign_up(user).await;
    }
    world.process(&subscribed("user_1", Some("pro_monthly"))).await;
    let [price] = &learnt(&world).await[..] else { panic!("one price is learnt") };
    assert_eq!(
        (price.id.as_str(), price.lookup_key.as_deref(), price.product.as_deref()),
        ("price_pro_test", Some("pro_monthly"), Some("prod_TallyHookPro"))
    );
    world.process(&paid("user_2")).await;
    assert_eq!(credits(&world, "user_2").await, 5000);
    assert_eq!(fake.requests(), Vec::<String>::new());

    // A known id costs no further call.
    let world = world.redeploy(&[]);
    world.worker(Family::CustomerSubscription).prewarm().await;
    world.calls();
    world.process(&subscribed("user_3", Some("pro_monthly"))).await;
    let operations = world.operations();
    let of_tables: Vec<&String> = operations.iter().filter(|name| !name.ends_with("Message")).collect();
    assert_eq!(of_tables, ["BatchGetItem", "TransactWriteItems"]);
}

#[tokio::test]
async fn a_price_that_was_read_from_stripe_is_read_once_for_all_instances() {
    let fake = FakeStripe::new(KEY);
    let base = format!("http://{}", fake.start().await.unwrap());
    fake.put_price("price_pro_test", 2000, true, Some("pro_monthly"));
    let mut world = deployment(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &base)]).await;
    for user in ["user_1", "user_2", "user_3"] {
        world.sign_up(user).await;
        world.worker(Family::InvoicePaid).prewarm().await;
        world.process(&paid(user)).await;
        assert_eq!(credits(&world, user).await, 5000, "{user}");
        world = world.redeploy(&[]);
    }
    assert_eq!(fake.requests(), ["GET /v1/prices/price_pro_test"]);
}

#[tokio::test]
async fn an_invoice_that_is_parked_for_a_price_is_sent_again_when_the_price_is_learnt() {
    let world = deployment(&[]).await;
    world.sign_up("user_1").await;
    world.sign_up("user_2").await;
    world.process(&paid("user_2")).await;
    world.settle().await;
    let parked = world.event("evt_invoice_paid_user_2").await.unwrap();
    assert_eq!((parked["outcome"].as_str(), parked["reason"].as_str()), ("parked", "unknown_price"));
    // A run that cannot help makes the event rest for half an hour.
    world.retry_in(0).await;
    world.drain().await;
    world.process(&subscribed("user_1", Some("pro_monthly"))).await;
    assert_eq!(world.retry_in(60).await.sent, 1);
    world.drain().await;
    assert_eq!(credits(&world, "user_2").await, 5000);
}

#[tokio::test]
async fn a_plan_that_is_renamed_keeps_its_tier_and_a_push_keeps_what_was_learnt() {
    let world = deployment(&[]).await;
    world.sign_up("user_1").await;
    world.process(&subscribed("user_1", Some("pro_monthly"))).await;
    world.process(&paid("user_1")).await;
    let (_, current) = world.ask("GET", "/admin/catalog", Value::Null).await;
    let shown = &current["learnt_prices"][0];
    assert_eq!((&shown["id"], &shown["lookup_key"]), (&json!("price_pro_test"), &json!("pro_monthly")));
    // With another lookup key the plan keeps the price. A push without the plan says who is on the price.
    let other_key = CATALOG.replace("pro_monthly", "pro_yearly");
    let (_, dry) = put(&world, "", current["digest"].as_str(), &other_key).await;
    assert_eq!(dry["accounts_on_removed_prices"]["users"], json!([]), "{dry:#}");
    let removed = other_key.replace("name = \"pro\"", "name = \"plus\"");
    let (_, dry) = put(&world, "", current["digest"].as_str(), &removed).await;
    assert_eq!(dry["accounts_on_removed_prices"]["users"], json!(["user_1"]), "{dry:#}");
    let renamed = CATALOG.replace("name = \"pro\"", "name = \"plus\"");
    let (status, pushed) = put(&world, "?apply=true&reason=name", current["digest"].as_str(), &renamed).await;
    assert_eq!((status, &pushed["applied"]), (200, &json!(true)), "{pushed:#}");
    let account = world.account("user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(5000)), "{account:#}");
    assert_eq!(learnt(&world).await.len(), 1);
    world.sign_up("user_2").await;
    world.process(&paid("user_2")).await;
    assert_eq!(credits(&world, "user_2").await, 5000);
}

#[tokio::test]
async fn a_price_that_gets_the_lookup_key_of_another_plan_is_parked_with_both_names() {
    let world = deployment(&[]).await;
    for user in ["user_1", "user_2", "user_3"] {
        world.sign_up(user).await;
    }
    world.process(&subscribed("user_1", Some("pro_monthly"))).await;
    world.process(&subscribed("user_2", Some("team_monthly"))).await;
    let parked = world.event("evt_customer_subscription_created_user_2").await.unwrap();
    assert_eq!((parked["outcome"].as_str(), parked["reason"].as_str()), ("parked", "ambiguous_price"));
    assert_eq!(
        parked["message"], "price price_pro_test is plan \"team\" and plan \"pro\" in the catalog",
        "{parked:#?}"
    );
    // The lookup key has moved to another price.
    world.process(&subscribed("user_3", None)).await;
    assert_eq!(world.account("user_3").await["tier"], "pro");
    // The catalog says which plan it is.
    let (_, current) = world.ask("GET", "/admin/catalog", Value::Null).await;
    let key = "lookup_keys = [\"team_monthly\"]";
    let named = CATALOG.replace(key, &format!("{key}\nprices = [\"price_pro_test\"]"));
    put(&world, "?apply=true&reason=named", current["digest"].as_str(), &named).await;
    world.retry_in(3_600).await;
    world.drain().await;
    let processed = world.event("evt_customer_subscription_created_user_2").await.unwrap();
    assert_eq!(processed["outcome"], "processed", "{processed:#?}");
}

#[tokio::test]
async fn the_oldest_of_more_than_a_thousand_learnt_prices_is_dropped() {
    let world = deployment(&[]).await;
    let price = |number: usize| LearntPrice {
        id: format!("price_{number}"),
        sold: "plan pro".to_owned(),
        lookup_key: Some("pro_monthly".to_owned()),
        product: Some("prod_TallyHookPro".to_owned()),
        at: Timestamp::from_unix(1_767_607_200),
    };
    let all: Vec<LearntPrice> = (0..MAX_LEARNT_PRICES).map(price).collect();
    let store = Store::new(world.dynamodb.clone(), "accounts".to_owned(), "events".to_owned());
    store.commit(vec![items::learnt_prices(&all, 0).unwrap()]).await.unwrap();
    world.sign_up("user_1").await;
    world.process(&subscribed("user_1", Some("pro_monthly"))).await;
    let known = learnt(&world).await;
    assert_eq!((known.len(), known[0].id.as_str()), (MAX_LEARNT_PRICES, "price_1"));
    assert_eq!(known.last().unwrap().id, "price_pro_test");
}
