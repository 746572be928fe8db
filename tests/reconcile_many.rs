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
use tallyhook_aws::store::{Store, items};
use tallyhook_core::ids::UserId;
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::schedules::reconcile::{Options, Reconciler, Report};

use crate::reconcile::processor;
use crate::stripe_client::stripe;
use crate::support::{World, change_packed, sample};

/// A day after the payment of the samples.
const NOW: i64 = 1_768_330_000;
/// Stripe's pages.
const PAGE: usize = 100;
/// Reads, of a hundred keys each, for a page of subscriptions and one of invoices.
const READS: usize = 9;

struct Shop {
    world: World,
    fake: FakeStripe,
    reconciler: Reconciler,
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
            let mut row: HashMap<_, _> =
                row.iter().map(|(name, value)| (another(name, number), copy(value, number))).collect();
            if row.contains_key("shard") {
                let user = UserId::new(format!("user_{number}")).unwrap();
                let shard = items::account_shard(&user).to_string();
                row.insert("shard".to_owned(), AttributeValue::S(shard));
            }
            put(row)
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
    Shop { world, fake, reconciler }
}

fn put(row: HashMap<String, AttributeValue>) -> WriteRequest {
    WriteRequest::builder().put_request(PutRequest::builder().set_item(Some(row)).build().unwrap()).build()
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
    } else if value.is_b() {
        change_packed(value, |text| another(&text, number))
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
    let Shop { world, fake, reconciler } = shop(subscriptions).await;
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
    // The last page of accounts is full, so an empty one follows.
    let account_pages = pages + 1;
    let cursors = pages - 1 + account_pages - 1;
    // A query ends a page or a shard.
    let queries = pages + usize::from(items::ACCOUNT_SHARDS);
    if in_one_window {
        assert_eq!(
            calls,
            counts([
                ("BatchGetItem", 1 + READS * pages + pages),
                // Accounts, and dismissed events in each shard of their index.
                ("Query", queries + 4),
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

#[tokio::test]
async fn the_passes_over_accounts_read_as_much_with_many_ledger_entries_as_with_few() {
    const ENTRIES: usize = 5_000;
    // Each function reads the catalog once, before the units are counted.
    let world = World::with(&[("CATALOG_MAX_AGE_SECONDS", "3600")]).await;
    let (fake, client) = stripe().await;
    for user in ["user_1", "user_2", "user_3"] {
        world.sign_up(user).await;
    }
    let spent =
        world.app("POST", "/users/user_1/credits/consume", json!({"amount": 1}), Some("spend0")).await;
    assert_eq!(spent.0, 200, "{}", spent.1);
    fake.set_now(NOW);
    let reconciler = Reconciler::new(client, processor(&world));
    // The first run makes the items that the next one reads.
    passes(&world, &reconciler).await;
    let few = passes(&world, &reconciler).await;

    let rows = world.dynamodb.scan().table_name("accounts").send().await.unwrap().items.unwrap();
    let entry = rows.iter().find(|row| row["sk"].as_s().unwrap().contains("spend0")).unwrap();
    let entries: Vec<WriteRequest> = (1..=ENTRIES)
        .map(|number| {
            let mut entry = entry.clone();
            let sk = entry["sk"].as_s().unwrap().replace("spend0", &format!("spend{number}"));
            entry.insert("sk".to_owned(), AttributeValue::S(sk));
            put(entry)
        })
        .collect();
    for batch in entries.chunks(25) {
        let write = world.dynamodb.batch_write_item().request_items("accounts", batch.to_vec());
        write.send().await.unwrap();
    }
    assert_eq!(passes(&world, &reconciler).await, few);
    println!("read units of a reconciliation, a sweep and an export: {few:?}");
    let shards = f64::from(items::ACCOUNT_SHARDS);
    // Half a unit for the query of a shard, and one for the consistent read of an account.
    assert_eq!(few[1..], [shards / 2.0 + 3.0; 2]);
}

/// Read units of a reconciliation, of the list that the sweep reads, and of an export.
async fn passes(world: &World, reconciler: &Reconciler) -> [f64; 3] {
    let units = || {
        let calls = world.calls();
        assert!(calls.iter().all(|call| call.operation != "Scan"));
        let reads = calls.iter().filter(|call| ["Query", "BatchGetItem"].contains(&call.operation.as_str()));
        reads.map(|call| call.units).sum::<f64>()
    };
    world.calls();
    let report = run(reconciler).await;
    assert!(report.complete && report.read["accounts"] == 3, "{report:#?}");
    let reconciled = units();
    let store = Store::new(world.dynamodb.clone(), "accounts", "events");
    let page = store.accounts_of_other_catalogs(Some("another"), None).await.unwrap();
    assert_eq!((page.users.len(), page.next), (3, None));
    let swept = units();
    let (status, answer) = world.ask("GET", "/admin/export/users", Value::Null).await;
    assert_eq!((status, answer["users"].as_array().unwrap().len()), (200, 3), "{answer}");
    [reconciled, swept, units()]
}

#[tokio::test]
async fn every_account_is_listed_once_whatever_the_pages_and_shards() {
    let Shop { world, .. } = shop(250).await;
    let store = Store::new(world.dynamodb.clone(), "accounts", "events");
    let (mut users, mut sizes, mut next) = (Vec::new(), Vec::new(), None);
    loop {
        let page = store.accounts(next.as_deref()).await.unwrap();
        sizes.push(page.accounts.len());
        users.extend(page.accounts.into_iter().map(|(user, account)| {
            account.unwrap();
            user
        }));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [100, 100, 50]);
    users.sort();
    let mut expected: Vec<String> = (1..=250).map(|number| format!("user_{number}")).collect();
    expected.sort();
    assert_eq!(users, expected);
}
