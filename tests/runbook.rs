//! The manual procedures of `docs/operating.md`: restoring tables, erasing personal data.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use local::fake_stripe::FakeStripe;
use serde_json::{Value, json};
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::schedules::reconcile::{Options, Reconciler};

use crate::reconcile::processor;
use crate::stripe_client::{KEY, stripe};
use crate::support::{World, now, sample};

type Item = HashMap<String, AttributeValue>;

/// `restore-table-to-point-in-time`, to now.
async fn backup(world: &World, table: &str) -> Vec<Item> {
    world
        .dynamodb
        .scan()
        .table_name(table)
        .consistent_read(true)
        .send()
        .await
        .unwrap()
        .items
        .unwrap_or_default()
}

/// The table as it was.
async fn restore(world: &World, table: &str, before: &[Item]) {
    let names = if table == "accounts" { &["pk", "sk"][..] } else { &["pk"] };
    for item in backup(world, table).await {
        let key = names.iter().map(|name| ((*name).to_owned(), item[*name].clone())).collect();
        world.dynamodb.delete_item().table_name(table).set_key(Some(key)).send().await.unwrap();
    }
    for item in before {
        world.dynamodb.put_item().table_name(table).set_item(Some(item.clone())).send().await.unwrap();
    }
}

struct Drill {
    world: World,
    fake: FakeStripe,
    reconciler: Reconciler,
    /// When the first event happened; one follows each minute.
    first: i64,
}

impl Drill {
    async fn new() -> Self {
        let (fake, stripe) = stripe().await;
        let address = fake.start().await.unwrap();
        let world =
            World::with(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &format!("http://{address}"))])
                .await;
        world.sign_up("user_1").await;
        let reconciler = Reconciler::new(stripe, processor(&world));
        Self { world, fake, reconciler, first: now().unix() - 7200 }
    }

    /// Adds an event to the fake Stripe and delivers it.
    async fn happens(&self, minute: i64, name: &str) {
        let mut event = sample(name, "user_1");
        event["created"] = json!(self.first + 60 * minute);
        event["data"]["object"]["created"] = event["created"].clone();
        self.fake.ingest(&event.to_string(), true).unwrap();
        self.world.process(&event).await;
    }

    async fn seen(&self) -> (Value, Value) {
        let account = self.world.account("user_1").await;
        (account["tier"].clone(), account["credits"].clone())
    }

    async fn replay(&self) {
        let (from, to) = (Timestamp::from_unix(self.first - 60).to_string(), now().to_string());
        let body = json!({"source": "stripe", "from": from, "to": to, "actor": "ann",
            "reason": "a table was restored"});
        let (status, answer) = self.world.ask("POST", "/admin/stripe/retry-webhooks", body).await;
        assert_eq!(status, 200, "{answer}");
        self.world.drain().await;
    }

    async fn reconcile(&self) -> u64 {
        let report = self.reconciler.run(&Options::default(), now()).await;
        assert!(report.complete && report.failures.is_empty(), "{report:#?}");
        report.changed
    }
}

/// A subscription, a backup of both tables, then a pack and a spend.
async fn damaged() -> (Drill, [Vec<Item>; 2]) {
    let drill = Drill::new().await;
    for (minute, name) in (0..).zip(["customer.subscription.created", "invoice.paid"]) {
        drill.happens(minute, name).await;
    }
    assert_eq!(drill.seen().await, (json!("pro"), json!(5000)));
    let before = [backup(&drill.world, "accounts").await, backup(&drill.world, "events").await];
    drill.happens(2, "checkout.session.completed.pack").await;
    let spend = json!({"amount": 100, "reason": "a report"});
    assert_eq!(drill.world.app("POST", "/users/user_1/credits/consume", spend, Some("key-1")).await.0, 200);
    assert_eq!(drill.seen().await, (json!("pro"), json!(5900)));
    (drill, before)
}

#[tokio::test]
async fn replaying_stripes_events_repairs_both_tables_restored_to_one_time() {
    let (drill, [accounts, events]) = damaged().await;
    restore(&drill.world, "accounts", &accounts).await;
    restore(&drill.world, "events", &events).await;
    assert_eq!(drill.seen().await, (json!("pro"), json!(5000)));
    drill.replay().await;
    // The pack is granted again, once. The spend was recorded only in the lost table.
    assert_eq!(drill.seen().await, (json!("pro"), json!(6000)));
    let ledger = drill.world.ledger("user_1").await;
    drill.replay().await;
    assert_eq!((drill.reconcile().await, drill.world.ledger("user_1").await), (0, ledger));
}

#[tokio::test]
async fn reconciliation_repairs_accounts_restored_to_before_the_event_log() {
    let (drill, [accounts, _]) = damaged().await;
    restore(&drill.world, "accounts", &accounts).await;
    drill.replay().await;
    assert_eq!(
        drill.seen().await,
        (json!("pro"), json!(5000)),
        "the event log has the event, so the replay is a duplicate"
    );
    assert!(drill.reconcile().await > 0);
    assert_eq!(drill.seen().await, (json!("pro"), json!(6000)));
    assert_eq!(drill.reconcile().await, 0);
}

#[tokio::test]
async fn erasing_personal_data_leaves_the_ledger_intact() {
    let drill = Drill::new().await;
    drill.happens(0, "checkout.session.completed.pack").await;
    drill.happens(1, "checkout.session.completed.order").await;
    let address = |all: &Value| all.to_string().matches("@example.com").count();
    assert!(address(&drill.world.everything().await) > 0);
    let (seen, ledger) = (drill.seen().await, drill.world.ledger("user_1").await);

    for item in backup(&drill.world, "accounts").await {
        if item["sk"].as_s().unwrap().starts_with("order#") {
            let key = ["pk", "sk"].map(|name| (name.to_owned(), item[name].clone()));
            let update = drill.world.dynamodb.update_item().table_name("accounts").set_key(Some(key.into()));
            update.update_expression("REMOVE customer_email").send().await.unwrap();
        }
    }
    let (_, user) = drill.world.ask("GET", "/admin/stripe/check-user/user_1", Value::Null).await;
    for event in user["events"].as_array().unwrap() {
        let update = drill
            .world
            .dynamodb
            .update_item()
            .table_name("events")
            .key("pk", AttributeValue::S(event["id"].as_str().unwrap().to_owned()));
        update.update_expression("REMOVE payload").send().await.unwrap();
    }
    let all = drill.world.everything().await;
    assert_eq!((address(&all), all.to_string().matches("\"payload\"").count()), (0, 0), "{all:#}");
    assert_eq!((drill.seen().await, drill.world.ledger("user_1").await), (seen, ledger));

    // The same event is still a duplicate.
    drill.happens(0, "checkout.session.completed.pack").await;
    assert_eq!(drill.world.everything().await, all);
}
