//! Webhooks that never came, over whole lives: customers of `local::life` at the fake Stripe, put right by one reconciliation.
//!
//! Each is compared with a twin who got every webhook in order.

use std::collections::BTreeSet;

use common::domain::catalog::Catalog;
use common::domain::timestamp::Timestamp;
use common::reconcile::{Options, Reconciler};
use local::life::{self, Life};
use serde_json::{Value, json};

use crate::reconcile::processor;
use crate::stripe_client::stripe;
use crate::support::World;

/// Seeds of the lives. Each takes a second; `cargo run -- fuzz-order` plays more of them.
const SEEDS: std::ops::Range<u64> = 0..4;

/// Packs survive renewals: one that is heard of late is otherwise granted in full, which in-order delivery does not do.
fn catalog() -> String {
    include_str!("../catalog.toml").replace("addons = \"reset\"", "addons = \"keep\"")
}

/// The keys of what was paid out. Where the orders differ, a ledger says in its own way how a bucket moved (`adjust#`).
async fn keys(world: &World, user: &str) -> BTreeSet<String> {
    let entries = world.ledger(user).await;
    entries.iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).filter(|key| !key.starts_with("adjust#")).collect()
}

fn payments(keys: &BTreeSet<String>) -> Vec<&String> {
    keys.iter().filter(|key| key.starts_with("invoice#") || key.starts_with("session#")).collect()
}

fn seen(account: &Value) -> Value {
    json!({"tier": account["tier"], "credits": account["credits"], "buckets": account["buckets"]})
}

/// The account of a life none of whose webhooks came, after one reconciliation; a second one has written nothing.
async fn reconciled(life: &Life, file: &str, stripe_has_every_event: bool) -> World {
    let world = World::with(&[("CATALOG_FILE", file)]).await;
    world.sign_up(&life.user).await;
    let (fake, stripe) = stripe().await;
    for sent in &life.events {
        fake.ingest(&sent.body, false).unwrap();
    }
    let now = life.end + 3600;
    if !stripe_has_every_event {
        fake.set_now(now);
    }
    let mut processor = processor(&world);
    processor.catalog = Catalog::parse(&catalog()).unwrap();
    let reconciler = Reconciler::new(stripe, processor);
    let report = reconciler.run(&Options::default(), Timestamp::from_unix(now)).await;
    assert!(report.complete && report.failures.is_empty() && report.changed > 0, "{life}\n{report:#?}");
    let before = world.everything().await;
    let again = reconciler.run(&Options::default(), Timestamp::from_unix(now + 60)).await;
    assert!(again.complete && again.changed == 0, "{life}\n{again:#?}");
    assert_eq!(world.everything().await, before, "{life}");
    world
}

#[tokio::test]
async fn lives_without_a_single_webhook_are_put_right_by_one_reconciliation_and_a_second_writes_nothing() {
    let file = std::env::temp_dir().join(format!("tallyhook-dropped-{}.toml", std::process::id()));
    std::fs::write(&file, catalog()).unwrap();
    let file = file.to_str().unwrap();
    let sold = Catalog::parse(&catalog()).unwrap();
    for life in SEEDS.map(|seed| Life::new(seed, &sold, life::Options { noise: false, ..life::Options::default() })) {
        let twin = World::with(&[("CATALOG_FILE", file)]).await;
        twin.sign_up(&life.user).await;
        for sent in &life.events {
            assert_eq!(twin.deliver(sent.body.as_bytes()).await.0, 200);
            twin.settle().await;
        }
        let (account, granted) = (twin.account(&life.user).await, keys(&twin, &life.user).await);

        // Stripe has every event still: the account ends as the twin's.
        let world = reconciled(&life, file, true).await;
        assert_eq!(seen(&world.account(&life.user).await), seen(&account), "{life}");
        assert_eq!(keys(&world, &life.user).await, granted, "{life}");

        // Of what is older than 30 days Stripe has only the objects: they say the tier and every payment, once each.
        let world = reconciled(&life, file, false).await;
        assert_eq!(world.account(&life.user).await["tier"], account["tier"], "{life}");
        let known = keys(&world, &life.user).await;
        assert_eq!(payments(&known), payments(&granted), "{life}");
    }
}
