//! Snapshots of what others read: the items in the two tables, and `openapi.json` as it is served. A change
//! of either shows as a difference in `snapshots/`. Review it, then accept it with `INSTA_UPDATE=always`. The
//! log lines have a file of their own there, see `log_lines.rs`.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::http::StatusCode;
use axum::{Router, routing::post};
use insta::assert_snapshot;
use lambda_http::Body;
use local::fake_stripe::FakeStripe;
use serde_json::{Value, json};
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::schedules::reconcile::{Options, Reconciler};

use crate::reconcile::processor;
use crate::stripe_client::{KEY, stripe};
use crate::support::{World, aws_error, now, pack, read_answer, sample, signature, unnamed_pack, with_id};

const DAY_SECONDS: i64 = 86_400;

/// A chat that accepts every alert.
async fn start_chat() -> String {
    let router = Router::new().route("/", post(|| async { StatusCode::NO_CONTENT }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// Writes at least one item of every kind.
async fn write_every_kind(world: &World) {
    world.sign_up("user_1").await;
    // A subscription that will end, with a period that has not ended: `access_until`, `due_at`, `due_day`.
    let mut subscription = sample("customer.subscription.created", "user_1");
    subscription["data"]["object"]["cancel_at"] = json!(4_000_000_000_u64);
    world.process(&subscription).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    world.process(&sample("checkout.session.completed", "user_1")).await;
    world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    world.process(&sample("checkout.session.completed.order", "user_1")).await;
    world.process(&sample("charge.refunded", "user_1")).await;
    world.process(&sample("checkout.session.completed.pack_5000", "user_1")).await;
    world.process(&sample("charge.dispute.created", "user_1")).await;
    world.app("POST", "/users/user_1/credits/consume", json!({"amount": 10}), Some("spend-1")).await;
    let grant = json!({"action": "grant", "credits": 5, "actor": "ann", "reason": "an apology"});
    assert_eq!(world.fix("user_1", Some("fix-1"), grant).await.0, 200);
    world.app("POST", "/portal/password-set", json!({"user_id": "user_1"}), None).await;

    // Ignored, parked, parked until a customer or a payment has a user, and failed.
    world.process(&sample("product.updated", "user_1")).await;
    world.process(&unnamed_pack("parked")).await;
    let mut unowned = with_id(sample("customer.subscription.created", "user_1"), "evt_no_user");
    unowned["data"]["object"]["id"] = json!("sub_nobody");
    unowned["data"]["object"]["customer"] = json!("cus_nobody");
    unowned["data"]["object"]["metadata"] = json!({});
    world.process(&unowned).await;
    let mut early = with_id(sample("charge.refunded", "user_1"), "evt_early_refund");
    early["data"]["object"]["payment_intent"] = json!("pi_early");
    early["data"]["object"]["metadata"] = json!({});
    world.process(&early).await;
    world.settle().await;
    world.deliver(pack("failed", "user_1", 1).to_string().as_bytes()).await;
    world.fault(|call| {
        (call.operation == "TransactWriteItems").then_some(aws_error(400, "ValidationException"))
    });
    for _ in 0..5 {
        world.drain().await;
        world.pass_seconds(901);
    }
    world.heal();
    world.drain_dead_letters().await;

    // Signatures that are wrong, alerts, and a session that Stripe is asked for.
    let body = pack("forged", "user_1", 1).to_string();
    for _ in 0..5 {
        world.post(body.as_bytes(), Some(&signature(b"another body"))).await;
    }
    world.notify().await;
    world.setup_status("cs_test_unknown").await;

    // A reconciliation that stops after one change, and one that ends.
    let (fake, stripe) = stripe().await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        let event = sample(name, "user_2").to_string().replace("TallyHook0", "TallyHookB0");
        fake.ingest(&event, true).unwrap();
    }
    let reconciler = Reconciler::new(stripe, processor(world));
    let at = Timestamp::from_unix(1_768_330_000);
    fake.set_now(at.unix());
    let finished = reconciler.run(&Options::default(), at).await;
    assert!(finished.complete, "{finished:#?}");
    reconciler.conclude(&finished, None, at).await;
    let event = sample("checkout.session.completed.pack", "user_2").to_string();
    fake.ingest(&event.replace("TallyHook0", "TallyHookB0"), true).unwrap();
    let stopped = reconciler.run(&Options { max_changes: 0, ..Options::default() }, at).await;
    assert!(!stopped.complete, "{stopped:#?}");
}

/// The kind of an item, by the fixed words of its key.
fn kind(item: &Value) -> String {
    let word = |name: &str| {
        let text = item[name]["S"].as_str().unwrap_or_default();
        text.split_once('#').map_or(text, |(word, _)| word).to_owned()
    };
    match (word("pk"), word("sk")) {
        (pk, sk) if sk.is_empty() && pk.starts_with("evt_") => "event".to_owned(),
        (pk, sk) => format!("{pk} {sk}").trim().to_owned(),
    }
}

/// Replaces what differs from run to run: times near `start`, days, random ids, and compressed bytes.
fn redact(name: &str, value: &mut Value, start: i64) {
    let near = |seconds: i64| (start - 2 * DAY_SECONDS..start + 400 * DAY_SECONDS).contains(&seconds);
    match value {
        Value::Object(map) if map.len() == 1 => {
            let (kind, inner) = map.iter_mut().next().unwrap();
            let text = inner.as_str().unwrap_or_default().to_owned();
            let number = text.parse::<i64>().unwrap_or(0);
            match (kind.as_str(), name) {
                ("N", _) if near(number) => *inner = json!("(unix s)"),
                ("N", _) if near(number / 1000) => *inner = json!("(unix ms)"),
                ("S", "due_day") if text == "order" => {}
                ("S", "day" | "due_day") => *inner = json!(text.replacen(&text[..10], "(day)", 1)),
                ("S", "pk") if text.starts_with("audit#") => *inner = json!("audit#(unix ms)#(random)"),
                ("S", "message" | "posted") if text.len() == 36 && text.matches('-').count() == 4 => {
                    *inner = json!("(message id)");
                }
                ("S", "cause" | "message") if text.starts_with("reconcile:") => {
                    let run = text.split(':').nth(1).unwrap();
                    *inner = json!(text.replacen(run, "(run)", 1));
                }
                ("B", "payload") => *inner = json!("(zstd)"),
                ("B", "state") => redact_seconds(inner, &near),
                ("L", _) => {
                    inner.as_array_mut().unwrap().iter_mut().for_each(|value| redact("", value, start));
                }
                ("M", _) => inner.as_object_mut().unwrap().iter_mut().for_each(|(name, value)| {
                    redact(name, value, start);
                }),
                _ => {}
            }
        }
        Value::Object(map) => map.iter_mut().for_each(|(name, value)| redact(name, value, start)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {}
    }
}

/// Replaces the times near the start in the state of an account.
fn redact_seconds(value: &mut Value, near: &impl Fn(i64) -> bool) {
    match value {
        Value::Number(number) if number.as_i64().is_some_and(near) => *value = json!("(unix s)"),
        Value::Array(values) => values.iter_mut().for_each(|value| redact_seconds(value, near)),
        Value::Object(map) => map.values_mut().for_each(|value| redact_seconds(value, near)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn items_of_every_kind_have_these_attributes() {
    let start = now().unix();
    let chat = start_chat().await;
    let stripe = format!("http://{}", FakeStripe::new(KEY).start().await.unwrap());
    let world = World::provisioning(&[
        ("SLACK_WEBHOOK_URL", &chat),
        ("NOTIFY_ALLOW_LOOPBACK", "true"),
        ("STRIPE_SECRET_KEY", KEY),
        ("STRIPE_API_BASE", &stripe),
        ("PROVISION_URL", "http://127.0.0.1:9/hook"),
        ("PROVISION_SECRET", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
        ("PROVISION_ALLOW_LOOPBACK", "true"),
    ])
    .await;
    write_every_kind(&world).await;

    let all = world.everything().await;
    let mut kinds: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for mut item in all[0].as_array().unwrap().iter().flat_map(|table| table.as_array().unwrap()).cloned() {
        redact("", &mut item, start);
        let key = format!("{} {}", item["pk"]["S"], item["sk"]["S"]);
        kinds.entry(kind(&item)).or_default().insert(key, item);
    }
    let mut text = String::new();
    for (kind, items) in kinds {
        writeln!(text, "## {kind}").unwrap();
        for item in items.values() {
            writeln!(text, "{}", serde_json::to_string_pretty(item).unwrap()).unwrap();
        }
    }
    assert_snapshot!("items", text);
}

#[tokio::test]
async fn openapi_json_is_served_with_this_content() {
    let world = World::new().await;
    let (status, document) = read_answer(world.visit(None, "GET", "/openapi.json", Body::Empty).await);
    assert_eq!(status, 200);
    assert_snapshot!("openapi", serde_json::to_string_pretty(&document).unwrap());
}
