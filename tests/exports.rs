//! Exports of everything, and the deletion of what identifies a person.

use std::collections::BTreeMap;

use local::fake_stripe::FakeStripe;
use serde_json::{Value, json};

use crate::stripe_client::KEY;
use crate::support::{World, sample, with_id};

const LIFE: [&str; 4] = [
    "customer.subscription.created",
    "invoice.paid",
    "checkout.session.completed",
    "checkout.session.completed.order",
];

async fn shop() -> (World, FakeStripe) {
    let fake = FakeStripe::new(KEY);
    let base = format!("http://{}", fake.start().await.unwrap());
    let world = World::with(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &base)]).await;
    for user in ["user_1", "user_2"] {
        world.sign_up(user).await;
    }
    for name in LIFE {
        fake.ingest(&sample(name, "user_1").to_string(), true).unwrap();
        world.process(&sample(name, "user_1")).await;
    }
    (world, fake)
}

/// All rows of an export.
async fn all(world: &World, path: &str, rows: &str) -> Vec<Value> {
    let (mut found, mut next) = (Vec::new(), String::new());
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let (status, answer) = world.ask("GET", &format!("{path}{separator}next={next}"), Value::Null).await;
        assert_eq!(status, 200, "{answer:#}");
        found.extend(answer[rows].as_array().unwrap().iter().cloned());
        match answer["next"].as_str() {
            Some(more) => next = more.to_owned(),
            None => return found,
        }
    }
}

#[tokio::test]
async fn exports_have_every_account_and_ledgers_that_add_up_to_the_balances() {
    let (world, _fake) = shop().await;
    let users = all(&world, "/admin/export/users", "users").await;
    let credits: BTreeMap<&str, i64> = users
        .iter()
        .map(|user| (user["user_id"].as_str().unwrap(), user["credits"].as_i64().unwrap()))
        .collect();
    assert_eq!(credits, BTreeMap::from([("user_1", 5000), ("user_2", 500)]));
    let pro = users.iter().find(|user| user["user_id"] == "user_1").unwrap();
    assert_eq!((&pro["tier"], &pro["customers"]), (&json!("pro"), &json!(["cus_TallyHook0001"])));

    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    for entry in all(&world, "/admin/export/ledger", "entries").await {
        let user = entry["user_id"].as_str().unwrap().to_owned();
        *sums.entry(user).or_default() += entry["delta"].as_i64().unwrap();
    }
    assert_eq!(sums, BTreeMap::from([("user_1".to_owned(), 5000), ("user_2".to_owned(), 500)]));
    let old = all(&world, "/admin/export/ledger?to=2020-01-01", "entries").await;
    assert_eq!(old, [] as [Value; 0]);
    let (status, answer) = world.ask("GET", "/admin/export/users?next=x", Value::Null).await;
    assert_eq!((status, &answer["error"]), (400, &json!("invalid_next")));
}

#[tokio::test]
async fn an_erased_person_is_deleted_at_stripe_and_no_later_event_brings_data_back() {
    let (world, fake) = shop().await;
    let balance = world.account("user_1").await["credits"].clone();
    let ledger = world.ledger("user_1").await;
    let email = "ada@example.com";
    let stored = async || world.everything().await.to_string();
    assert!(stored().await.contains(email), "the samples' address is in an order");
    let before = world.everything().await;
    let erase = async |body: Value| world.ask("POST", "/admin/erase/user_1", body).await;
    let (status, tried) = erase(json!({})).await;
    assert_eq!((status, &tried["customers"]), (200, &json!(["cus_TallyHook0001"])), "{tried:#}");
    assert_eq!((&tried["payloads"], &tried["orders"]), (&json!(4), &json!(1)), "{tried:#}");
    assert_eq!(world.everything().await, before, "a dry run deletes nothing");
    assert_eq!(erase(json!({"dry_run": false})).await.1["error"], "missing_reason");

    let done = erase(json!({"dry_run": false, "reason": "a request"})).await.1;
    assert_eq!((&done["payloads"], &done["orders"], &done["complete"]), (&json!(4), &json!(1), &json!(true)));
    assert_eq!(fake.object("cus_TallyHook0001").unwrap()["deleted"], true);
    assert!(!stored().await.contains(email));
    let again = erase(json!({"dry_run": false, "reason": "a request"})).await.1;
    let nothing = json!({"user_id": "user_1", "dry_run": false, "customers": [], "payloads": 0, "orders": 0,
        "waiting": [], "complete": true});
    assert_eq!(again, nothing);

    // An order of later is kept without the address, and its event without the payload.
    let mut order = with_id(sample("checkout.session.completed.order", "user_1"), "evt_later");
    order["data"]["object"]["id"] = json!("cs_test_later");
    order["data"]["object"]["payment_intent"] = json!("pi_later");
    world.process(&order).await;
    assert!(!stored().await.contains(email));
    assert!(!world.event("evt_later").await.unwrap().contains_key("payload"));
    assert_eq!(world.account("user_1").await["credits"], balance);
    assert_eq!(world.ledger("user_1").await[1..], ledger[..], "the ledger stays");
    let audits = world.ask("GET", "/admin/audit", Value::Null).await.1;
    assert_eq!(
        (&audits["audits"][0]["act"], &audits["audits"][0]["target"]),
        (&json!("erase"), &json!("user_1"))
    );
    assert_eq!(world.ask("POST", "/admin/erase/unknown_user", json!({})).await.0, 404);
}
