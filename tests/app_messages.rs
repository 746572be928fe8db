//! The messages to the app: each one of `docs/app-api.md`, once for each cause.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::features::{catalog, refunded, sold};
use crate::orders::{order, refund_of};
use crate::provision::{App, with_app};
use crate::support::{World, pack, sample, with_id};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/app-api.md");
/// The line before the payloads in the document.
const FENCE: &str = "<!-- `app_messages` compares this block with what it sees. -->\n\n```json\n";

/// JSON in lines of at most 110 characters.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for (place, part) in text.split(",\"").enumerate() {
        let part = if place == 0 { part.to_owned() } else { format!("\"{part}") };
        if place > 0 && line.len() + part.len() > 107 {
            lines += &format!("{line},\n");
            line = format!("  {part}");
        } else {
            line += &if place == 0 { part } else { format!(",{part}") };
        }
    }
    format!("{lines}{line}\n")
}

/// The messages since the last call, sorted by type.
pub async fn received(world: &World, app: &App) -> Vec<(String, Value)> {
    assert_eq!(world.provision().await, 0);
    let mut all: Vec<(String, Value)> = app
        .requests()
        .into_iter()
        .map(|(_, body)| (body["type"].as_str().unwrap().to_owned(), body["data"].clone()))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

pub fn types(messages: &[(String, Value)]) -> Vec<&str> {
    messages.iter().map(|(kind, _)| kind.as_str()).collect()
}

/// The catalog of a deployment, which exists as long as its functions may start.
struct CatalogFile(std::path::PathBuf);

impl Drop for CatalogFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

async fn deployment(name: &str) -> (World, App, CatalogFile) {
    let (app, url) = App::start().await;
    let low = |text: String| text.replace("[policy]\n", "[policy]\nlow = [100, 0]\n");
    let file = catalog(&format!("messages-{name}"), low);
    let world = with_app(&url).await.redeploy(&[("CATALOG_FILE", file.to_str().unwrap())]);
    (world, app, CatalogFile(file))
}

/// The samples in the order of their times: one user's life.
fn life() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("customer.subscription.created", vec!["account.updated", "subscription.started"]),
        ("invoice.paid", vec!["account.updated", "payment.confirmed"]),
        ("checkout.session.completed", vec![]),
        ("checkout.session.completed.pack", vec!["account.updated"]),
        ("checkout.session.async_payment_failed", vec!["payment.failed"]),
        ("charge.refunded", vec!["account.updated", "refund.applied"]),
        // The event of its charge has sent it.
        ("refund.created", vec![]),
        ("charge.refunded.full", vec!["account.updated", "refund.applied"]),
        // The same period.
        ("customer.subscription.updated", vec![]),
        // The balance is what it was.
        ("invoice.paid.renewal", vec!["subscription.renewed"]),
        ("checkout.session.completed.pack_5000", vec!["account.updated"]),
        ("charge.dispute.created", vec!["account.updated", "dispute.opened"]),
        ("charge.dispute.funds_withdrawn", vec![]),
        ("charge.dispute.updated", vec![]),
        ("customer.subscription.updated.upgrade", vec!["account.updated", "subscription.changed"]),
        ("charge.dispute.closed.won", vec!["account.updated", "dispute.closed"]),
        ("charge.dispute.funds_reinstated", vec![]),
        ("invoice.payment_action_required", vec!["payment.action_required"]),
        ("invoice.payment_failed", vec!["payment.failed"]),
        // The grace is over long ago.
        (
            "customer.subscription.updated.past_due",
            vec!["access.ended", "account.updated", "subscription.changed"],
        ),
        ("invoice.paid.recovered", vec!["account.updated", "subscription.changed", "subscription.renewed"]),
        ("customer.subscription.updated.recovered", vec![]),
        // Its end is in the past, too.
        (
            "customer.subscription.updated.cancel",
            vec!["access.ended", "account.updated", "subscription.ending"],
        ),
        ("customer.subscription.deleted", vec!["subscription.ended"]),
        ("customer.subscription.created.trialing", vec!["account.updated", "subscription.started"]),
        ("customer.subscription.trial_will_end", vec!["trial.ending"]),
    ]
}

/// Then another user buys once, and money goes back.
fn purchases() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("a first payment", vec!["account.updated", "credits.restored", "payment.confirmed"]),
        ("a paid order", vec!["order.paid"]),
        ("its refund", vec!["order.refunded", "refund.applied"]),
        ("a product", vec!["product.granted"]),
        ("the same product again", vec![]),
        ("the refund of one", vec!["refund.applied"]),
        ("the refund of the other", vec!["product.revoked", "refund.applied"]),
    ]
}

/// The first message of each type in a life of which every type is a part, and the types after each event.
async fn first_of_each_type() -> (BTreeMap<String, Value>, Vec<(String, Vec<String>)>) {
    let (world, app, _file) = deployment("life").await;
    let mut first = BTreeMap::new();
    let mut keep = |messages: Vec<(String, Value)>| {
        messages.into_iter().for_each(|(kind, data)| _ = first.entry(kind).or_insert(data));
    };
    let mut seen = Vec::new();
    for (name, _) in life() {
        let event = sample(name, "user_123");
        world.process(&event).await;
        let mut messages = received(&world, &app).await;
        messages.retain(|(kind, _)| !kind.starts_with("credits."));
        seen.push((name.to_owned(), messages.iter().map(|(kind, _)| kind.clone()).collect::<Vec<_>>()));
        keep(messages);
        world.process(&event).await;
        assert_eq!(received(&world, &app).await, [], "{name} is repeated");
    }
    world.sign_up("user_123").await;
    received(&world, &app).await;
    let spend = async |key: &str, amount: u64| {
        let path = "/users/user_1/credits/consume";
        assert_eq!(world.app("POST", path, json!({"amount": amount}), Some(key)).await.0, 200);
    };
    world.sign_up("user_1").await;
    received(&world, &app).await;
    spend("a", 450).await;
    let messages = received(&world, &app).await;
    assert_eq!(types(&messages), ["account.updated", "credits.low"]);
    keep(messages);
    spend("b", 50).await;
    let messages = received(&world, &app).await;
    assert_eq!(types(&messages), ["account.updated", "credits.depleted"]);
    keep(messages);
    for (what, event) in [
        ("a first payment", pack("one", "user_1", 1)),
        ("a paid order", order(1, "user_1")),
        ("its refund", refund_of(&order(1, "user_1"))),
        ("a product", sold("a", "user_1", "course")),
        ("the same product again", sold("b", "user_1", "course")),
        ("the refund of one", refunded("a")),
        ("the refund of the other", refunded("b")),
    ] {
        world.process(&event).await;
        let messages = received(&world, &app).await;
        seen.push((what.to_owned(), messages.iter().map(|(kind, _)| kind.clone()).collect()));
        keep(messages);
    }
    (first, seen)
}

#[tokio::test]
async fn the_guide_shows_one_payload_of_each_message() {
    let (first, seen) = first_of_each_type().await;
    let (world, _app, _file) = deployment("account").await;
    let account = world.sign_up("user_1").await;
    let mut lines = String::new();
    for (kind, data) in &first {
        // The account is the same in all; the guide shows it once.
        let is_own =
            |name: &str| account.get(name).is_none() && !["version", "first_paid_at"].contains(&name);
        let own = data.as_object().unwrap().iter().filter(|(name, _)| is_own(name));
        let mut own: Map<String, Value> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        if let Some(order) = own.get_mut("order") {
            // The refund is of this moment.
            order["updated_at"] = order["created_at"].clone();
        }
        for name in ["user_id", "tier", "credits", "lots", "subscriptions", "version", "first_paid_at"] {
            assert!(data.get(name).is_some(), "{kind} has the whole account: {data:#}");
        }
        lines += &wrapped(&json!({"type": kind, "data": own}).to_string());
    }
    let mut text = std::fs::read_to_string(DOCUMENT).unwrap();
    let start = text.find(FENCE).expect("the guide has a block of payloads") + FENCE.len();
    let end = start + text[start..].find("```").unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        text.replace_range(start..end, &lines);
        std::fs::write(DOCUMENT, &text).unwrap();
    } else {
        assert_eq!(&text[start..end], lines, "UPDATE_GOLDEN=1 writes {DOCUMENT}");
    }
    let all = tallyhook_core::job::JobKind::ALL.map(tallyhook_core::job::JobKind::message_type);
    let missing: Vec<&str> = all.into_iter().filter(|kind| !first.contains_key(*kind)).collect();
    assert_eq!(missing, [""; 0], "every type is sent and shown");
    let named = |(name, types): (&str, Vec<&str>)| {
        (name.to_owned(), types.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let expected: Vec<_> = life().into_iter().chain(purchases()).map(named).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn the_app_gets_only_the_selected_types_and_each_cause_once_in_a_batch() {
    let (world, app, _file) = deployment("selected").await;
    let world = world.redeploy(&[("PROVISION_EVENTS", "subscription.renewed,refund.applied")]);
    // All in one batch: the two refunds are two causes.
    let renewal = sample("invoice.paid.renewal", "user_123");
    for event in [
        sample("customer.subscription.created", "user_123"),
        sample("invoice.paid", "user_123"),
        renewal.clone(),
        with_id(renewal, "evt_other"),
        pack("one", "user_1", 1),
    ] {
        assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200);
    }
    world.drain().await;
    assert_eq!(types(&received(&world, &app).await), ["subscription.renewed"]);
    let mut half = with_id(refunded("one"), "evt_half");
    half["data"]["object"]["amount_refunded"] = json!(500);
    for event in [&half, &refunded("one"), &with_id(refunded("one"), "evt_other_refund")] {
        assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200);
    }
    world.drain().await;
    assert_eq!(types(&received(&world, &app).await), ["refund.applied", "refund.applied"]);
    assert!(world.event("job#account#user_123").await.is_none());
    let (_, setup) = world.setup_status("cs_test_one").await;
    assert_eq!(setup["provisioning_state"], "completed", "payment.confirmed is not selected: {setup}");
}

#[tokio::test]
async fn a_payment_that_waits_for_the_customer_is_shown_until_its_invoice_is_paid() {
    let world = World::new().await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        world.process(&sample(name, "user_123")).await;
    }
    assert_eq!(world.account("user_123").await["payment_action"], Value::Null);
    world.process(&sample("invoice.payment_action_required", "user_123")).await;
    let shown = world.account("user_123").await["payment_action"].clone();
    let expected = json!({
        "invoice": "in_TallyHook0004", "subscription": "sub_TallyHook0001", "at": "2026-03-15T11:02:10Z",
        "hosted_invoice_url": "https://invoice.stripe.com/i/acct_1TallyHook/test_0004",
    });
    assert_eq!(shown, expected);
    let (_, checked) = world.ask("GET", "/admin/stripe/check-user/user_123", Value::Null).await;
    assert_eq!(checked["account"]["payment_action"], expected);
    world.process(&sample("invoice.paid.recovered", "user_123")).await;
    assert_eq!(world.account("user_123").await["payment_action"], Value::Null);
}
