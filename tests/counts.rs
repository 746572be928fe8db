//! What an event costs, counted where it is exact: calls, bytes of the requests, capacity units of DynamoDB.
//!
//! The counts are kept in `data/counts.json`, from which `scripts/cost.py` makes the prices of
//! `docs/cost.md`. After an intended change run `UPDATE_GOLDEN=1 cargo test -p tests counts` and review the
//! difference.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use local::life::{Life, Options};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::Family;

use crate::support::{Call, World, cancelled, pack, sample, signature};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/counts.json");

/// A world without rollover. With it, each account keeps one more period, and most renewals cost two write
/// units more.
pub async fn world() -> World {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name =
        format!("tallyhook-counts-{}-{}.toml", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let file = std::env::temp_dir().join(name);
    let lines = include_str!("../catalog.toml").lines().filter(|line| !line.starts_with("rollover"));
    std::fs::write(&file, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let world = World::with(&[("CATALOG_FILE", file.to_str().unwrap())]).await;
    std::fs::remove_file(file).unwrap();
    world
}

/// Calls by name, and DynamoDB's capacity units.
#[derive(Default)]
struct Counts {
    events: u32,
    calls: BTreeMap<String, u32>,
    bytes: usize,
    read_units: f64,
    write_units: f64,
}

impl Counts {
    fn add(&mut self, calls: &[Call]) {
        for call in calls {
            *self.calls.entry(call.operation.clone()).or_default() += 1;
            self.bytes += call.bytes;
            match call.operation.as_str() {
                "BatchGetItem" | "GetItem" | "Query" => self.read_units += call.units,
                _ => self.write_units += call.units,
            }
        }
    }

    fn of(events: u32, calls: &[Call]) -> Self {
        let mut counts = Self { events, ..Self::default() };
        counts.add(calls);
        counts
    }

    /// For one event, to a hundredth.
    fn per_event(&self) -> Value {
        let each = |total: f64| (total / f64::from(self.events) * 100.0).round() / 100.0;
        let calls: BTreeMap<&String, f64> =
            self.calls.iter().map(|(name, count)| (name, each(f64::from(*count)))).collect();
        let bytes = u32::try_from(self.bytes).unwrap();
        json!({
            "calls": calls, "request_bytes": each(f64::from(bytes)).round(),
            "read_units": each(self.read_units), "write_units": each(self.write_units),
        })
    }
}

/// A sample as Stripe sends it (indented), for a user with ids of their own.
fn of_user(name: &str, user: &str) -> Vec<u8> {
    let text = serde_json::to_string_pretty(&sample(name, user)).unwrap();
    text.replace("TallyHook", &user.replace('_', "")).into_bytes()
}

/// Delivers these bodies and has the family's worker take them in one batch. Returns the webhook's calls and
/// the worker's.
async fn batch(world: &World, family: Family, bodies: &[Vec<u8>]) -> (Vec<Call>, Vec<Call>) {
    world.calls();
    for body in bodies {
        assert_eq!(world.post(body, Some(&signature(body))).await.0, 200);
    }
    let webhook = world.calls();
    let batch = world.receive(family).await;
    assert_eq!(batch.records.len(), bodies.len());
    world.calls();
    let answer = world.worker(family).handle(batch.clone()).await.unwrap();
    let worker = world.calls();
    assert!(answer.batch_item_failures.is_empty());
    world.delete(family, &batch, &answer).await;
    (webhook, worker)
}

#[tokio::test]
async fn the_cost_of_an_event_has_not_changed() {
    let world = world().await;
    // As a function does in init; the first batch would read the stored catalog otherwise.
    for family in Family::ALL {
        world.worker(family).prewarm().await;
    }
    let users: Vec<String> = (0..11).map(|number| format!("user_{number}")).collect();
    for user in &users {
        world.sign_up(user).await;
        for name in ["customer.subscription.created", "invoice.paid"] {
            assert_eq!(world.deliver(&of_user(name, user)).await.0, 200);
            world.drain().await;
        }
    }
    let bodies: Vec<Vec<u8>> = users.iter().map(|user| of_user("invoice.paid.renewal", user)).collect();
    assert!((4096..6144).contains(&bodies[0].len()), "{} bytes", bodies[0].len());

    let (webhook, alone) = batch(&world, Family::InvoicePaid, &bodies[..1]).await;
    let (_, ten) = batch(&world, Family::InvoicePaid, &bodies[1..]).await;
    let (_, duplicate) = batch(&world, Family::InvoicePaid, &bodies[..1]).await;
    let (_, duplicates) = batch(&world, Family::InvoicePaid, &bodies[1..]).await;
    let packs: Vec<Vec<u8>> =
        (0..10).map(|number| pack(&format!("p{number}"), "user_1", 1).to_string().into_bytes()).collect();
    let (_, packs) = batch(&world, Family::CheckoutSession, &packs).await;

    // The file cannot change these bounds.
    let operations = |calls: &[Call]| calls.iter().map(|call| call.operation.clone()).collect::<Vec<_>>();
    assert_eq!(operations(&webhook), ["SendMessage"]);
    for calls in [&alone, &ten, &packs] {
        assert_eq!(operations(calls), ["BatchGetItem", "TransactWriteItems"]);
    }
    for calls in [&duplicate, &duplicates] {
        assert_eq!(operations(calls), ["BatchGetItem"]);
    }
    let body = serde_json::to_string(std::str::from_utf8(&bodies[0]).unwrap()).unwrap();
    assert!(
        webhook[0].bytes < body.len() + 300,
        "{} bytes to send the {} of an event",
        webhook[0].bytes,
        body.len()
    );
    let (read, write) = (Counts::of(1, &alone).read_units, Counts::of(1, &alone).write_units);
    assert!(read <= 3.0 && write <= 8.0, "{read} read and {write} write units for a renewal");

    let measured = json!({
        "event_bytes": bodies[0].len(),
        "webhook": Counts::of(1, &webhook).per_event(),
        "a renewal": Counts::of(1, &alone).per_event(),
        "ten renewals of ten users": Counts::of(10, &ten).per_event(),
        "ten packs of one user": Counts::of(10, &packs).per_event(),
        "a duplicate": Counts::of(1, &duplicate).per_event(),
        "ten duplicates": Counts::of(10, &duplicates).per_event(),
        "a year of a subscriber": a_year().await.per_event(),
        "a random life": random_lives().await.per_event(),
    });
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, serde_json::to_string_pretty(&measured).unwrap() + "\n").unwrap();
    }
    let known: Value =
        serde_json::from_str(&std::fs::read_to_string(GOLDEN).unwrap_or_default()).unwrap_or_default();
    for (name, now) in measured.as_object().unwrap() {
        same(name, now, &known[name]);
    }
}

/// Compares with a tolerance of 1 %: timestamps differ in length, and rounding may go either way.
fn same(name: &str, now: &Value, then: &Value) {
    match (now.as_object(), now.as_f64(), then.as_f64()) {
        (Some(fields), ..) => {
            fields.iter().for_each(|(field, now)| same(&format!("{name}: {field}"), now, &then[field]))
        }
        (None, Some(now), Some(then)) => {
            assert!((now - then).abs() <= (then * 0.01).max(0.02), "{name}: {now} instead of {then}")
        }
        _ => panic!("{name} is not in {GOLDEN}; UPDATE_GOLDEN=1 writes it"),
    }
}

/// The same year of ten users, month by month: a checkout, a subscription with its invoice each month, two
/// packs, the end.
async fn a_year() -> Counts {
    const MONTH: i64 = 2_592_000;
    let world = world().await;
    // As a function does in init; the first batch would read the stored catalog otherwise.
    for family in Family::ALL {
        world.worker(family).prewarm().await;
    }
    let users: Vec<String> = (0..10).map(|number| format!("user_{number}")).collect();
    for user in &users {
        world.sign_up(user).await;
    }
    let mut counts = Counts::default();
    let mut steps =
        vec![("checkout.session.completed", 0), ("customer.subscription.created", 0), ("invoice.paid", 0)];
    for month in 1..12 {
        steps.extend([("customer.subscription.updated", month), ("invoice.paid.renewal", month)]);
        steps.extend(
            [3, 8].iter().filter(|pack| **pack == month).map(|_| ("checkout.session.completed.pack", month)),
        );
    }
    steps.push(("customer.subscription.deleted", 12));
    for (name, month) in steps {
        let mut bodies = Vec::new();
        for user in &users {
            let mut event: Value = serde_json::from_slice(&of_user(name, user)).unwrap();
            let id = |id: &Value| json!(format!("{}m{month}", id.as_str().unwrap()));
            let start = 1_790_000_000 + month * MONTH;
            let period = |place: &mut Value, from: &str, to: &str| {
                place[from] = json!(start);
                place[to] = json!(start + MONTH);
            };
            event["id"] = id(&event["id"]);
            event["created"] = json!(start + 60);
            let object = &mut event["data"]["object"];
            match object["object"].as_str().unwrap() {
                "invoice" => {
                    object["created"] = json!(start);
                    period(&mut object["lines"]["data"][0]["period"], "start", "end");
                }
                "subscription" if month == 12 => object["ended_at"] = json!(start),
                "subscription" if month < 12 => {
                    period(&mut object["items"]["data"][0], "current_period_start", "current_period_end")
                }
                _ => {}
            }
            if object["object"] != "subscription" {
                object["id"] = id(&object["id"]);
            }
            if object["payment_intent"].is_string() {
                object["payment_intent"] = id(&object["payment_intent"]);
            }
            bodies.push(serde_json::to_vec_pretty(&event).unwrap());
        }
        let family = tallyhook_core::event::read_head(&bodies[0]).unwrap().kind.family().unwrap();
        let (_, worker) = batch(&world, family, &bodies).await;
        let calls: Vec<&str> = worker.iter().map(|call| call.operation.as_str()).collect();
        assert_eq!(calls, ["BatchGetItem", "TransactWriteItems"], "{name} in month {month}");
        counts.events += 10;
        counts.add(&worker);
    }
    let account = world.account("user_7").await;
    assert_eq!(
        (account["tier"].as_str(), account["credits"].as_u64()),
        (Some("free"), Some(5000)),
        "{account:#}"
    );
    counts
}

/// Twenty random customers' lives in parallel, with far more purchases, refunds and disputes than usual.
async fn random_lives() -> Counts {
    const LIVES: u64 = 20;
    let world = world().await;
    let catalog = Catalog::parse(include_str!("../catalog.toml")).unwrap();
    let lives: Vec<Life> = (0..LIVES)
        .map(|seed| Life::new(seed, &catalog, Options { noise: false, ..Options::default() }))
        .collect();
    let mut counts = Counts::default();
    for place in 0..lives.iter().map(|life| life.events.len()).max().unwrap() {
        for event in lives.iter().filter_map(|life| life.events.get(place)) {
            assert_eq!(world.deliver(event.body.as_bytes()).await.0, 200);
            counts.events += 1;
        }
        for _ in 0..3 {
            for family in Family::ALL {
                while world.messages(family.as_str()).0 > 0 {
                    let batch = world.receive(family).await;
                    world.calls();
                    let answer = world.worker(family).handle(batch.clone()).await.unwrap();
                    counts.add(&world.calls());
                    world.delete(family, &batch, &answer).await;
                }
            }
            world.pass_seconds(6);
        }
    }
    assert!(counts.events > 200, "{} events", counts.events);
    counts
}

#[tokio::test]
async fn a_cancelled_batch_is_split_by_account_and_only_the_failing_events_return() {
    let world = world().await;
    let batch = world.ten_purchases().await;
    // Every write of user_3 is refused; those of the other users are not.
    world.fault(|call| {
        let writes = call.operation == "TransactWriteItems" && call.request.to_string().contains("user_3");
        writes.then(|| cancelled(call, "user_3", "ValidationError"))
    });
    let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
    world.heal();
    let operations = world.operations();
    let count = |name: &str| operations.iter().filter(|operation| *operation == name).count();
    // One for all, one for each account, and one for each of the two events of the failing account.
    assert_eq!(
        (count("BatchGetItem"), count("TransactWriteItems")),
        (1 + 5 + 2, 1 + 5 + 2),
        "{operations:?}"
    );
    let failed: Vec<&str> =
        answer.batch_item_failures.iter().map(|failure| failure.item_identifier.as_str()).collect();
    let of_user_3 = batch.records.iter().filter(|record| record.body.as_deref().unwrap().contains("user_3"));
    let of_user_3: Vec<&str> = of_user_3.map(|record| record.message_id.as_deref().unwrap()).collect();
    assert_eq!((failed.len(), &failed), (2, &of_user_3));
    for user in [0, 1, 2, 4] {
        assert_eq!(world.account(&format!("user_{user}")).await["credits"], 2000);
    }
    assert_eq!(world.account("user_3").await["error"], "user_not_found");
}
