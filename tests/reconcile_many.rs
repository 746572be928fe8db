//! Reconciliation of many subscriptions: its requests to Stripe and AWS, page by page, and its memory.
//!
//! ```text
//! TALLYHOOK_SUBSCRIPTIONS=100000 cargo test -p tests reconcile_many -- --nocapture
//! ```

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::schedules::reconcile::{Options, Reconciler, Report};

use crate::reconcile::processor;
use crate::stripe_client::stripe;
use crate::support::{World, sample};

/// A day after the payment of the samples.
const NOW: i64 = 1_768_330_000;
/// Stripe's pages.
const PAGE: usize = 100;
/// Reads, of a hundred keys each, for a page of subscriptions and one of invoices.
const READS: usize = 9;
/// Rows that one `Scan` looks at.
const SCAN: usize = 500;

struct Shop {
    world: World,
    fake: FakeStripe,
    reconciler: Reconciler,
    /// In the table of accounts.
    rows: usize,
}

/// This many paid subscriptions of different users, the same at Stripe and here.
async fn shop(subscriptions: usize) -> Shop {
    let (world, (fake, client)) = (World::new().await, stripe().await);
    let events = ["customer.subscription.created", "invoice.paid"].map(|name| sample(name, "user_1"));
    for event in &events {
        world.process(event).await;
    }
    let rows = world.dynamodb.scan().table_name("accounts").send().await.unwrap().items.unwrap();
    for number in 1..=subscriptions {
        for event in &events {
            fake.put(renamed(&event["data"]["object"], number));
        }
    }
    for number in 1..=subscriptions {
        let row = |row: &HashMap<String, AttributeValue>| {
            let row = row.iter().map(|(name, value)| (another(name, number), copy(value, number))).collect();
            WriteRequest::builder()
                .put_request(PutRequest::builder().set_item(Some(row)).build().unwrap())
                .build()
        };
        world
            .dynamodb
            .batch_write_item()
            .request_items("accounts", rows.iter().map(row).collect())
            .send()
            .await
            .unwrap();
        world.calls();
    }
    fake.set_now(NOW);
    let reconciler = Reconciler::new(client, processor(&world));
    // The first account was written over.
    Shop { world, fake, reconciler, rows: rows.len() * (subscriptions + 1) - 1 }
}

/// The object of another user, a second younger than the one before.
fn renamed(object: &Value, number: usize) -> Value {
    let mut object: Value = serde_json::from_str(&another(&object.to_string(), number)).unwrap();
    object["created"] = json!(NOW - 1_000_000 + i64::try_from(number).unwrap());
    object
}

fn another(text: &str, number: usize) -> String {
    text.replace("TallyHook0", &format!("TallyHook{number}x")).replace("user_1", &format!("user_{number}"))
}

fn copy(value: &AttributeValue, number: usize) -> AttributeValue {
    if let Ok(text) = value.as_s() {
        AttributeValue::S(another(text, number))
    } else if let Ok(values) = value.as_l() {
        AttributeValue::L(values.iter().map(|value| copy(value, number)).collect())
    } else if let Ok(values) = value.as_m() {
        AttributeValue::M(
            values.iter().map(|(name, value)| (another(name, number), copy(value, number))).collect(),
        )
    } else {
        value.clone()
    }
}

/// Requests to Stripe, by path.
fn asked(fake: &FakeStripe) -> BTreeMap<String, usize> {
    counted(
        fake.requests()
            .into_iter()
            .map(|request| request.split(['?', ' ']).nth(1).unwrap_or_default().to_owned()),
    )
}

fn counted(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name).or_default() += 1;
        counts
    })
}

fn counts<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
}

async fn run(reconciler: &Reconciler) -> Report {
    reconciler.run(&Options::default(), Timestamp::from_unix(NOW)).await
}

#[tokio::test]
async fn a_run_without_differences_requests_only_lists_and_resumes_at_its_page() {
    let subscriptions =
        Env::of_process().get("TALLYHOOK_SUBSCRIPTIONS").map_or(500, |count| count.parse().unwrap());
    assert_eq!(subscriptions % PAGE, 0, "whole pages, so that the reads can be counted");
    let started = Instant::now();
    let Shop { world, fake, reconciler, rows } = shop(subscriptions).await;
    println!("{subscriptions} subscriptions: made in {:.1} s", started.elapsed().as_secs_f64());
    world.count_only();
    let pages = subscriptions.div_ceil(PAGE);

    let (started, before) = (Instant::now(), resident_kb());
    let report = run(&reconciler).await;
    println!(
        "a run: {:.1} s, memory {} KB before and {} KB after",
        started.elapsed().as_secs_f64(),
        before,
        resident_kb()
    );
    assert!(
        report.complete && report.found.is_empty() && report.failures.is_empty() && report.left.is_empty(),
        "{report:#?}"
    );
    let read = |what: &str| report.read.get(what).copied().unwrap_or_default();
    let each = u64::try_from(subscriptions).unwrap();
    assert_eq!((read("subscriptions"), read("invoices"), read("accounts")), (each, each, each));
    let lists = [
        ("/v1/events", 2),
        ("/v1/subscriptions", pages),
        ("/v1/invoices", pages),
        ("/v1/checkout/sessions", 1),
        ("/v1/disputes", 1),
        ("/v1/refunds", 1),
    ];
    // More invoices than this are read in several windows of time.
    let in_one_window = subscriptions <= 500;
    if in_one_window {
        assert_eq!(asked(&fake), counts(lists));
    }
    let calls = counted(world.operations().into_iter());
    println!("a run: {calls:?}");
    let scans = rows / SCAN + 1;
    let cursors = pages - 1 + scans - 1;
    if in_one_window {
        assert_eq!(
            calls,
            counts([
                ("BatchGetItem", 1 + READS * pages),
                // Dismissed events, in each shard of the index.
                ("Query", 4),
                ("Scan", scans),
                ("TransactWriteItems", cursors),
                ("DeleteItem", 1)
            ])
        );
    }

    // Stripe stops answering in the middle of the subscriptions.
    let half = pages / 2;
    let last = renamed(
        &sample("customer.subscription.created", "user_1")["data"]["object"],
        subscriptions + 1 - half * PAGE,
    );
    fake.fail(
        &format!("starting_after={}", last["id"].as_str().unwrap()),
        3,
        Misbehaviour::Status(500, None),
    );
    let report = run(&reconciler).await;
    assert!(report.stopped.as_ref().unwrap().contains("GET /v1/subscriptions: 500"), "{report:#?}");
    fake.requests();
    let started = Instant::now();
    let report = run(&reconciler).await;
    println!("the other half: {:.1} s", started.elapsed().as_secs_f64());
    assert!(report.complete && report.found.is_empty() && report.failures.is_empty(), "{report:#?}");
    // The history is done. The subscriptions of the first half are listed once more before the accounts are
    // compared.
    assert_eq!(asked(&fake), counts([("/v1/subscriptions", pages - half + pages)]));
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_long_history_is_read_in_windows_and_each_payment_is_granted_once() {
    let (world, (fake, client)) = (World::new().await, stripe().await);
    let invoice = sample("invoice.paid", "user_1")["data"]["object"].clone();
    let paid = 510;
    for number in 1..=paid {
        fake.put(renamed(&invoice, number));
    }
    fake.set_now(NOW);
    let reconciler = Reconciler::new(client, processor(&world));
    let options = Options { max_changes: 2_000, ..Options::default() };
    let report = reconciler.run(&options, Timestamp::from_unix(NOW)).await;
    assert!(report.complete && report.failures.is_empty(), "{report:#?}");
    assert_eq!((report.changed, report.read["invoices"]), (510, 510), "{:?}", report.read);
    assert!(asked(&fake)["/v1/checkout/sessions"] > 1, "more than one window");
    let again = reconciler.run(&options, Timestamp::from_unix(NOW)).await;
    assert!(again.complete && again.changed == 0, "{again:#?}");
}
