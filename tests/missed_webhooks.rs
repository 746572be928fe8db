//! No webhook of these customers arrived. One reconciliation against the fake Stripe repairs them.
//! Each customer is a life of `local::life`. A twin gets every webhook in order, for comparison.

use std::collections::BTreeSet;
use std::sync::Arc;

use local::life::{self, Life};
use serde_json::{Value, json};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::stripe::EventFilter;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::accounts::Accounts;
use tallyhook_service::alerts::Alerts;
use tallyhook_service::process::Processor;
use tallyhook_service::resend::replay::{Replayer, Selection};
use tallyhook_service::schedules::reconcile::{Options, Reconciler};

use crate::reconcile::processor;
use crate::stripe_client::{KEY, stripe};
use crate::support::{World, now, sample};

/// Seeds of the lives. Each takes a second; `cargo run -- fuzz-order` plays more of them.
const SEEDS: std::ops::Range<u64> = 0..4;

/// Renewals end packs here, so that the order of events decides what is left.
fn catalog() -> &'static str {
    include_str!("../catalog.toml")
}

/// The ledger keys of the grants. Corrections (`adjust#`) are left out, because they depend on the order.
async fn keys(world: &World, user: &str) -> BTreeSet<String> {
    let entries = world.ledger(user).await;
    entries
        .iter()
        .map(|entry| entry["key"].as_str().unwrap().to_owned())
        .filter(|key| !key.starts_with("adjust#"))
        .collect()
}

fn payments(keys: &BTreeSet<String>) -> Vec<&String> {
    keys.iter().filter(|key| key.starts_with("invoice#") || key.starts_with("session#")).collect()
}

fn seen(account: &Value) -> Value {
    json!({"tier": account["tier"], "credits": account["credits"], "buckets": account["buckets"]})
}

/// A processor with [`catalog`].
fn processor_with(world: &World) -> Processor {
    let mut processor = processor(world);
    let Accounts { store, outbox, .. } = processor.accounts;
    let catalog = Arc::new(Catalog::parse(catalog()).unwrap().into());
    processor.accounts = Accounts::new(store, catalog, outbox);
    processor
}

/// The deployment of a life without webhooks, after one reconciliation. Asserts that a second writes nothing.
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
    let reconciler = Reconciler::new(stripe, processor_with(&world));
    let report = reconciler.run(&Options::default(), Timestamp::from_unix(now)).await;
    assert!(report.complete && report.failures.is_empty() && report.changed > 0, "{life}\n{report:#?}");
    let before = world.everything().await;
    let again = reconciler.run(&Options::default(), Timestamp::from_unix(now + 60)).await;
    assert!(again.complete && again.changed == 0, "{life}\n{again:#?}");
    assert_eq!(world.everything().await, before, "{life}");
    world
}

#[tokio::test]
async fn one_reconciliation_repairs_lives_whose_webhooks_were_all_missed() {
    let file = std::env::temp_dir().join(format!("tallyhook-dropped-{}.toml", std::process::id()));
    std::fs::write(&file, catalog()).unwrap();
    let file = file.to_str().unwrap();
    let sold = Catalog::parse(catalog()).unwrap();
    for life in
        SEEDS.map(|seed| Life::new(seed, &sold, life::Options { noise: false, ..life::Options::default() }))
    {
        let twin = World::with(&[("CATALOG_FILE", file)]).await;
        twin.sign_up(&life.user).await;
        for sent in &life.events {
            assert_eq!(twin.deliver(sent.body.as_bytes()).await.0, 200);
            twin.settle().await;
        }
        let (account, granted) = (twin.account(&life.user).await, keys(&twin, &life.user).await);

        // Stripe still has every event: the account equals the twin's.
        let world = reconciled(&life, file, true).await;
        assert_eq!(seen(&world.account(&life.user).await), seen(&account), "{life}");
        // If the paid period is known when a trial is first read, the trial needs no entry.
        let known = keys(&world, &life.user).await;
        assert!(known.is_subset(&granted), "{known:?} {life}");
        assert_eq!(payments(&known), payments(&granted), "{life}");

        // Of events older than 30 days Stripe has only the objects. They give the tier and every payment
        // once.
        let world = reconciled(&life, file, false).await;
        assert_eq!(world.account(&life.user).await["tier"], account["tier"], "{life}");
        let known = keys(&world, &life.user).await;
        assert_eq!(payments(&known), payments(&granted), "{life}");
    }
}

/// Of all events together, in pages. Renewals end packs, so an order other than Stripe's would leave more
/// credits than the customers have bought.
#[tokio::test]
async fn a_replay_of_whole_lives_ends_like_the_original() {
    let file = std::env::temp_dir().join(format!("tallyhook-replayed-{}.toml", std::process::id()));
    std::fs::write(&file, catalog()).unwrap();
    let file = file.to_str().unwrap();
    let sold = Catalog::parse(catalog()).unwrap();
    let original = World::with(&[("CATALOG_FILE", file)]).await;
    let replayed = World::with(&[("CATALOG_FILE", file)]).await;
    let (fake, stripe) = stripe().await;
    let options = life::Options { noise: false, ..life::Options::default() };
    let lives: Vec<Life> = (100..106).map(|seed| Life::new(seed, &sold, options)).collect();
    let mut sent: Vec<_> = lives.iter().flat_map(|life| &life.events).collect();
    sent.sort_by_key(|sent| sent.created);
    for world in [&original, &replayed] {
        for life in &lives {
            world.sign_up(&life.user).await;
        }
    }
    for sent in &sent {
        assert_eq!(original.deliver(sent.body.as_bytes()).await.0, 200);
        original.settle().await;
        fake.ingest(&sent.body, false).unwrap();
    }
    let replayer = Replayer::new(stripe, processor_with(&replayed));
    let first = sent.first().unwrap().created;
    let from = Some(Timestamp::from_unix(first - 1));
    let all = Selection::Listed(EventFilter { from, ..EventFilter::default() });
    let now = Timestamp::from_unix(lives.iter().map(|life| life.end).max().unwrap() + 3600);
    let mut next = None;
    loop {
        let page = replayer.replay(&all, 7, next.as_deref(), None, now).await.unwrap();
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    replayed.settle().await;
    for life in &lives {
        let (one, other) = (original.account(&life.user).await, replayed.account(&life.user).await);
        assert_eq!(seen(&one), seen(&other), "{life}");
        let (one, other) = (keys(&original, &life.user).await, keys(&replayed, &life.user).await);
        assert_eq!(payments(&one), payments(&other), "{life}");
    }
}

#[tokio::test]
async fn events_never_sent_to_our_endpoint_are_counted_alerted_and_replayed() {
    let (fake, stripe) = stripe().await;
    let address = fake.start().await.unwrap();
    let world =
        World::with(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &format!("http://{address}"))]).await;
    let two_hours_ago = now().unix() - 7200;
    for name in ["customer.subscription.created", "invoice.paid"] {
        let mut event = sample(name, "user_1");
        event["created"] = json!(two_hours_ago);
        event["data"]["object"]["created"] = json!(two_hours_ago);
        fake.ingest(&event.to_string(), true).unwrap();
    }
    let alerts = Alerts::new(Queue::new(world.sqs.clone()), world.env.get("QUEUE_URL_NOTIFY"));
    let reconciler = Reconciler::new(stripe, processor(&world)).with_alerts(alerts);
    let reconcile = async || {
        let report = reconciler.run(&Options::default(), now()).await;
        assert!(report.complete && report.failures.is_empty(), "{report:#?}");
        reconciler.conclude(&report, None, now()).await;
        world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await.1
    };
    let health = reconcile().await;
    assert_eq!(health["counts"]["missing"], 2);
    assert!(
        health["deductions"].as_array().unwrap().iter().any(|deduction| deduction["code"] == "missing"),
        "{health:#}"
    );
    let sent_alerts = world.alerts().await;
    assert_eq!(
        (sent_alerts.len(), &sent_alerts[0]["alert"], &sent_alerts[0]["records"]),
        (1, &json!("missing"), &json!(2)),
        "{sent_alerts:?}"
    );

    let (status, gap) = world.ask("GET", "/admin/stripe/gap", Value::Null).await;
    assert_eq!(
        (status, &gap["listed"], &gap["held"], &gap["complete"]),
        (200, &json!(2), &json!(0), &json!(true))
    );
    assert!(
        gap["missing"].to_string().contains(sample("invoice.paid", "user_1")["id"].as_str().unwrap()),
        "{gap:#}"
    );
    assert_eq!(world.ask("GET", "/admin/stripe/gap?from=2020-01-01", Value::Null).await.0, 400);

    let replay = json!({"source": "stripe", "from": gap["from"], "to": gap["to"], "actor": "ann",
        "reason": "the endpoint was not there"});
    assert_eq!(world.ask("POST", "/admin/stripe/retry-webhooks", replay).await.0, 200);
    let (_, gap) = world.ask("GET", "/admin/stripe/gap", Value::Null).await;
    assert_eq!((&gap["held"], &gap["missing"]), (&json!(2), &json!([])));
    assert_eq!(reconcile().await["counts"]["missing"], 0);
    assert_eq!(world.alerts().await, [] as [Value; 0]);
}
