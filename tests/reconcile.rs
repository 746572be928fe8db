//! Reconciliation and replay: the real path over an embedded DynamoDB on one side, a fake Stripe over HTTP on
//! the other.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::store::Store;
use tallyhook_aws::stripe::{EventFilter, Stripe};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::drift::Class;
use tallyhook_core::event::{EventType, Family};
use tallyhook_core::ids::UserId;
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::accounts::Accounts;
use tallyhook_service::alerts::Alerts;
use tallyhook_service::outbox::Outbox;
use tallyhook_service::process::Processor;
use tallyhook_service::resend::redrive::Redrive;
use tallyhook_service::resend::replay::{Replayer, Selection};
use tallyhook_service::schedules::reconcile::{Options, Reconciler, Report, gap};

use crate::stripe_client::{KEY, stripe};
use crate::support::{Fault, World, aws_error, sample};

/// The samples in the order in which they happened, up to the first renewal: a subscription, a pack, the
/// renewal.
const LIFE: [&str; 6] = [
    "customer.subscription.created",
    "invoice.paid",
    "checkout.session.completed",
    "checkout.session.completed.pack",
    "customer.subscription.updated",
    "invoice.paid.renewal",
];
/// A day after the pack of [`LIFE`], when Stripe still has every event.
const EARLY: i64 = 1_768_330_000;
/// Ten days after the renewal of [`LIFE`], when the first events are gone.
const LATE: i64 = 1_771_150_000;

struct Shop {
    world: World,
    fake: FakeStripe,
    stripe: Stripe,
    reconciler: Reconciler,
}

impl Shop {
    async fn new() -> Self {
        let (world, (fake, stripe)) = (World::new().await, stripe().await);
        let reconciler = Reconciler::new(stripe.clone(), processor(&world));
        Self { world, fake, stripe, reconciler }
    }

    /// Adds sample events to the fake Stripe. A tag changes the ids to those of another customer.
    fn happens(&self, user: &str, tag: &str, names: &[&str], delivered: bool) {
        for name in names {
            self.fake.ingest(&of_customer(name, user, tag).to_string(), delivered).unwrap();
        }
    }

    async fn run(&self, now: i64) -> Report {
        self.run_with(&Options::default(), now).await
    }

    async fn run_with(&self, options: &Options, now: i64) -> Report {
        self.fake.set_now(now);
        self.reconciler.run(options, Timestamp::from_unix(now)).await
    }

    /// Asserts that a run finds nothing to repair and changes no item.
    async fn is_settled(&self, now: i64) {
        let before = self.world.everything().await;
        let report = self.run(now).await;
        assert!(report.complete && report.changed == 0 && report.failures.is_empty(), "{report:#?}");
        assert_eq!(self.world.everything().await, before);
    }

    async fn tier_and_credits(&self, user: &str) -> (String, i64) {
        let account = self.world.account(user).await;
        (account["tier"].as_str().unwrap_or("none").to_owned(), account["credits"].as_i64().unwrap_or(-1))
    }
}

pub fn processor(world: &World) -> Processor {
    let catalog = Catalog::parse(include_str!("../catalog.toml")).unwrap();
    let (dynamodb, sqs) = world.clients("reconcile");
    let redrive = Redrive::new(Queue::new(sqs), queues(world));
    let store = Store::new(dynamodb, "accounts", "events");
    let accounts = Accounts::new(store, std::sync::Arc::new(catalog.into()), Outbox::default());
    let alerts = Alerts::new(Queue::new(world.clients("reconcile").1), None);
    Processor { accounts, livemode: None, keep_payloads: true, redrive, alerts }
}

fn queues(world: &World) -> BTreeMap<Family, String> {
    Family::ALL.into_iter().map(|family| (family, world.queue_url(family))).collect()
}

/// A sample event with the ids of another customer.
fn of_customer(name: &str, user: &str, tag: &str) -> Value {
    let event = sample(name, user).to_string().replace("TallyHook0", &format!("TallyHook{tag}0"));
    let mut event: Value = serde_json::from_str(&event).unwrap();
    event["id"] = json!(format!("{}{tag}", event["id"].as_str().unwrap()));
    event
}

fn count(report: &Report, class: Class) -> u64 {
    report.found.get(&class).copied().unwrap_or(0)
}

/// The ledger's keys, sorted, with their deltas.
async fn grants(world: &World, user: &str) -> Vec<(String, i64)> {
    let entries = world.ledger(user).await;
    let mut grants: Vec<_> = entries
        .iter()
        .map(|entry| (entry["key"].as_str().unwrap().to_owned(), entry["delta"].as_i64().unwrap()))
        .collect();
    grants.sort();
    grants
}

#[tokio::test]
async fn one_run_repairs_a_customer_whose_webhooks_were_all_dropped() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &LIFE[..4], false);
    let report = shop.run(EARLY).await;
    assert!(report.complete && report.failures.is_empty() && report.left.is_empty(), "{report:#?}");
    assert_eq!(count(&report, Class::LostEvent), 4, "{report:#?}");

    let other = World::new().await;
    other.sign_up("user_1").await;
    for name in &LIFE[..4] {
        other.process(&sample(name, "user_1")).await;
    }
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 6000));
    assert_eq!(grants(&shop.world, "user_1").await, grants(&other, "user_1").await);
    shop.is_settled(EARLY + 60).await;
}

#[tokio::test]
async fn without_events_a_run_repairs_from_stripes_objects() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &LIFE, false);
    let now = LATE + 25 * 86_400;
    let report = shop.run(now).await;
    assert!(report.complete && report.failures.is_empty(), "{report:#?}");
    assert_eq!(count(&report, Class::LostEvent), 0);
    let subscription = report.changes.iter().find(|change| change.object == "sub_TallyHook0001").unwrap();
    assert_eq!(subscription.class, Class::MissingHere, "{report:#?}");
    // Oldest first: the pack is granted before the renewal that ends it.
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 5000));
    let keys: Vec<String> = grants(&shop.world, "user_1").await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        ["invoice#in_TallyHook0001", "invoice#in_TallyHook0002", "session#cs_test_a1TallyHook0002", "signup"]
    );
    for entry in shop.world.ledger("user_1").await.iter().filter(|entry| entry["key"] != "signup") {
        let cause = entry["cause"].as_str().or(entry["event_id"].as_str()).unwrap_or_default();
        assert_eq!(cause, format!("reconcile:{}", report.run), "{entry}");
    }
    // The audit: the log has a record of each change, with the run and what was different.
    for change in &report.changes {
        let record = shop.world.event(&change.event_id).await.unwrap();
        assert!(
            record["message"].starts_with(&format!("reconcile:{}: {}", report.run, change.class.as_str())),
            "{record:?}"
        );
    }
    shop.is_settled(now + 60).await;
    // The real events, delivered much later, change nothing.
    let before = shop.world.account("user_1").await;
    for name in LIFE {
        shop.world.process(&sample(name, "user_1")).await;
    }
    let after = shop.world.account("user_1").await;
    assert_eq!(
        (&before["tier"], &before["credits"], &before["buckets"]),
        (&after["tier"], &after["credits"], &after["buckets"])
    );
}

#[tokio::test]
async fn a_missed_cancellation_takes_the_tier_and_leaves_the_credits() {
    let shop = Shop::new().await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        shop.world.process(&sample(name, "user_1")).await;
    }
    shop.happens(
        "user_1",
        "",
        &["customer.subscription.created", "invoice.paid", "customer.subscription.deleted"],
        true,
    );
    let report = shop.run(1_776_300_000).await;
    assert_eq!((count(&report, Class::Tier), report.changed), (1, 1), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await, ("free".to_owned(), 5000));
    shop.is_settled(1_776_300_060).await;
}

#[tokio::test]
async fn a_missed_downgrade_sets_the_tier_and_leaves_the_credits_to_a_person() {
    let shop = Shop::new().await;
    let business = |name: &str| {
        let text = sample(name, "user_1").to_string().replace("price_pro_test", "price_business_test");
        serde_json::from_str::<Value>(&text.replace("pro_monthly", "business_monthly")).unwrap()
    };
    for name in ["customer.subscription.created", "invoice.paid"] {
        shop.world.process(&business(name)).await;
        shop.fake.ingest(&business(name).to_string(), true).unwrap();
    }
    let mut subscription = sample("customer.subscription.created", "user_1")["data"]["object"].clone();
    subscription["items"]["data"][0]["quantity"] = json!(1);
    shop.fake.put(subscription);
    let report = shop.run(EARLY).await;
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 20_000));
    assert_eq!(
        (count(&report, Class::Tier), count(&report, Class::Credits), report.changed),
        (1, 1, 1),
        "{report:#?}"
    );
    assert_eq!(report.left[0].after["credits"], "5000");
    shop.is_settled(EARLY + 60).await;
}

#[tokio::test]
async fn a_missed_mid_period_upgrade_is_granted_without_the_first_payment() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    let names = [
        "customer.subscription.created",
        "invoice.paid",
        "customer.subscription.updated",
        "invoice.paid.renewal",
    ];
    shop.happens("user_1", "", &names, true);
    shop.happens(
        "user_1",
        "",
        &["customer.subscription.updated.upgrade.mid_period", "invoice.paid.proration.mid_period"],
        true,
    );
    let report = shop.run(LATE + 7200).await;
    assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await, ("business".to_owned(), 20_000), "{report:#?}");
    shop.is_settled(LATE + 7260).await;
}

#[tokio::test]
async fn an_interrupted_run_resumes_where_it_stopped() {
    let shop = Shop::new().await;
    for tag in ["A", "B", "C"] {
        shop.happens(&format!("user_{tag}"), tag, &LIFE[..2], true);
    }
    let options = Options { max_changes: 1, ..Options::default() };
    let report = shop.run_with(&options, EARLY).await;
    assert!(
        !report.complete
            && report.changed == 1
            && report.stopped.unwrap().contains("the run reached its maximum")
    );
    assert!(shop.world.event("reconcile").await.is_some());
    let mut runs = 0;
    loop {
        runs += 1;
        let report = shop.run_with(&options, EARLY + runs).await;
        if report.complete {
            break;
        }
        assert!(report.changed == 1 && runs < 10, "{report:#?}");
    }
    for tag in ["A", "B", "C"] {
        assert_eq!(shop.tier_and_credits(&format!("user_{tag}")).await, ("pro".to_owned(), 5000), "{tag}");
    }
    assert!(shop.world.event("reconcile").await.is_none());
    shop.is_settled(EARLY + 600).await;
}

#[tokio::test]
async fn a_page_that_fails_stops_the_run_and_the_next_run_requests_it_again() {
    let shop = Shop::new().await;
    shop.happens("user_1", "", &LIFE[..4], true);
    shop.fake.fail("/v1/checkout/sessions", 3, Misbehaviour::Status(500, None));
    let report = shop.run(EARLY).await;
    assert!(report.stopped.as_ref().unwrap().contains("GET /v1/checkout/sessions: 500"), "{report:#?}");
    // Without its sessions, nothing of this window is applied: what is missing may be the oldest.
    assert_eq!(shop.tier_and_credits("user_1").await, ("none".to_owned(), -1));
    // After its deadline, a run does nothing and keeps its place.
    let options = Options { deadline: Some(std::time::Instant::now()), ..Options::default() };
    assert_eq!(shop.run_with(&options, EARLY).await.stopped.as_deref(), Some("the time is up"));
    assert!(shop.run(EARLY + 1).await.complete);
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 6000));
}

#[tokio::test]
async fn one_broken_customer_does_not_stop_the_run() {
    let shop = Shop::new().await;
    for tag in ["A", "B", "C"] {
        shop.happens(&format!("user_{tag}"), tag, &LIFE[..4], true);
    }
    shop.fake.break_customer("cus_TallyHookB0001");
    let report = shop.run(EARLY).await;
    assert!(report.complete, "{report:#?}");
    assert!(
        report.failures.iter().all(|failure| failure.customer.as_deref() == Some("cus_TallyHookB0001")),
        "{report:#?}"
    );
    assert!(!report.failures.is_empty());
    for (tag, expected) in [("A", ("pro", 6000)), ("B", ("none", -1)), ("C", ("pro", 6000))] {
        assert_eq!(
            shop.tier_and_credits(&format!("user_{tag}")).await,
            (expected.0.to_owned(), expected.1),
            "{tag}"
        );
    }
    shop.fake.heal();
    assert!(shop.run(EARLY + 60).await.failures.is_empty());
    assert_eq!(shop.tier_and_credits("user_B").await, ("pro".to_owned(), 6000));
}

#[tokio::test]
async fn a_dry_run_reports_the_changes_and_writes_nothing() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &LIFE[..4], true);
    shop.happens("user_2", "B", &LIFE[..4], false);
    let before = shop.world.everything().await;
    let report = shop.run_with(&Options { dry_run: true, ..Options::default() }, EARLY).await;
    assert!(report.complete && report.dry_run && report.changed > 0, "{report:#?}");
    let objects: Vec<&str> = report.changes.iter().map(|change| change.object.as_str()).collect();
    for object in ["sub_TallyHook0001", "in_TallyHook0001", "cs_test_a1TallyHook0002"] {
        assert_eq!(objects.iter().filter(|other| **other == object).count(), 1, "{objects:?}");
    }
    assert_eq!(count(&report, Class::LostEvent), 4);
    let change = report.changes.iter().find(|change| change.object == "sub_TallyHook0001").unwrap();
    assert_eq!((change.before["tier"].as_str(), change.after["tier"].as_str()), ("free", "pro"));
    assert_eq!(shop.world.everything().await, before);
}

#[tokio::test]
async fn concurrent_runs_and_webhooks_end_like_one_of_them_alone() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &LIFE[..4], false);
    shop.fake.set_now(EARLY);
    let deliver = async {
        for name in &LIFE[..4] {
            shop.world.deliver(sample(name, "user_1").to_string().as_bytes()).await;
        }
        join_all(Family::ALL.map(|family| shop.world.poll(family))).await;
    };
    let (first, second, ()) = futures_util::join!(shop.run(EARLY), shop.run(EARLY), deliver);
    shop.world.drain().await;
    for report in [&first, &second] {
        assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
    }
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 6000));
    let grants = grants(&shop.world, "user_1").await;
    assert_eq!(grants.len(), 3, "{grants:?}");
    shop.is_settled(EARLY + 60).await;
}

#[tokio::test]
async fn a_paying_customer_without_a_user_is_reported_and_not_guessed() {
    let shop = Shop::new().await;
    for name in &LIFE[..2] {
        let mut event =
            sample(name, "user_1").to_string().replace("\"user_id\":\"user_1\"", "\"other\":\"x\"");
        event = event.replace("\"client_id\":\"user_1\"", "\"other\":\"x\"");
        shop.fake.ingest(&event, true).unwrap();
    }
    let before = shop.world.everything().await;
    let report = shop.run(EARLY).await;
    assert_eq!(count(&report, Class::OrphanCustomer), 1, "{report:#?}");
    assert_eq!(report.left[0].customer.as_deref(), Some("cus_TallyHook0001"));
    assert_eq!(shop.world.everything().await, before);

    // Once a finished session names the user, the run repairs the rest.
    let mut session = sample("checkout.session.completed", "user_1");
    session["data"]["object"]["metadata"] = json!({});
    session["data"]["object"]["client_reference_id"] = json!("user_1");
    shop.fake.ingest(&session.to_string(), true).unwrap();
    let report = shop.run(EARLY).await;
    assert!(report.complete && report.left.is_empty(), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 5000));
    shop.is_settled(EARLY + 60).await;
}

#[tokio::test]
async fn duplicate_and_unknown_subscriptions_are_reported_and_left() {
    let shop = Shop::new().await;
    for tag in ["A", "B"] {
        shop.happens("user_1", tag, &LIFE[..2], true);
    }
    shop.run(EARLY).await;
    let before = shop.world.everything().await;
    shop.fake.remove("sub_TallyHookA0001");
    let report = shop.run(EARLY + 60).await;
    assert_eq!(
        (count(&report, Class::DuplicateSubscriptions), count(&report, Class::MissingAtStripe)),
        (1, 1),
        "{report:#?}"
    );
    assert!(report.complete && report.changed == 0);
    assert_eq!(shop.world.everything().await, before);
}

/// The invoice event of a first payment arrived, and every event of the subscription was lost.
#[tokio::test]
async fn a_subscription_known_by_its_invoice_alone_gets_its_state_at_the_next_run() {
    let shop = Shop::new().await;
    shop.happens("user_1", "A", &LIFE[..2], true);
    shop.world.process(&of_customer("invoice.paid", "user_1", "A")).await;
    let shown = shop.world.account("user_1").await["subscriptions"][0].clone();
    assert_eq!((&shown["status"], &shown["plan"]), (&Value::Null, &json!("pro")), "{shown}");
    let (_, checked) = shop.world.ask("GET", "/admin/stripe/check-user/user_1", Value::Null).await;
    assert_eq!(checked["account"]["subscriptions"][0]["status"], Value::Null);

    let report = shop.run(EARLY).await;
    assert_eq!(count(&report, Class::MissingHere), 1, "{report:#?}");
    assert_eq!(shop.world.account("user_1").await["subscriptions"][0]["status"], "active");
    assert_eq!(shop.tier_and_credits("user_1").await.1, 5000, "nothing is granted twice");
    shop.is_settled(EARLY + 60).await;
}

#[tokio::test]
async fn an_active_plan_without_any_paid_invoice_is_reported_and_costs_health_points() {
    let shop = Shop::new().await;
    shop.happens("user_1", "A", &LIFE[..1], true);
    shop.world.process(&of_customer("customer.subscription.created", "user_1", "A")).await;
    let today = crate::support::now().unix();
    let report = shop.run(today).await;
    assert_eq!(count(&report, Class::PlanWithoutInvoice), 1, "{report:#?}");
    assert!(report.left[0].why.contains("no paid invoice"), "{report:#?}");
    shop.reconciler.conclude(&report, None, Timestamp::from_unix(today)).await;
    let (_, health) = shop.world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
    assert_eq!(health["counts"]["plans_without_invoice"], 1, "{health:#}");
    let found = |code: &str| {
        let all = health["deductions"].as_array().unwrap();
        all.iter().find(|deduction| deduction["code"] == code).cloned()
    };
    let unpaid = found("plans_without_invoice").unwrap();
    assert_eq!(
        (&unpaid["points"], &unpaid["reason"]),
        (&json!(5), &json!("1 active plan has no paid invoice here"))
    );
    assert!(found("not_reconciled").is_none(), "{health:#}");

    // With the invoice, nothing is left.
    shop.world.process(&of_customer("invoice.paid", "user_1", "A")).await;
    let report = shop.run(today + 60).await;
    assert_eq!(count(&report, Class::PlanWithoutInvoice), 0, "{report:#?}");
}

#[tokio::test]
async fn the_difference_of_a_dismissed_event_is_not_reported_again() {
    let shop = Shop::new().await;
    let mut event = of_customer("customer.subscription.created", "user_1", "A");
    event["data"]["object"]["metadata"] = json!({});
    shop.fake.ingest(&event.to_string(), true).unwrap();
    shop.world.process(&event).await;
    shop.world.pass_seconds(6);
    shop.world.drain().await;
    assert_eq!(count(&shop.run(EARLY).await, Class::OrphanCustomer), 1);
    let path = format!("/admin/stripe/webhook-logs/{}/dismiss", event["id"].as_str().unwrap());
    let (status, answer) = shop.world.ask("POST", &path, json!({"reason": "of our other shop"})).await;
    assert_eq!(status, 200, "{answer}");
    let report = shop.run(EARLY + 60).await;
    assert!(report.found.is_empty() && report.left.is_empty(), "{report:#?}");
}

#[tokio::test]
async fn a_pack_without_metadata_is_known_by_its_line_items() {
    let shop = Shop::new().await;
    let mut event = sample("checkout.session.completed.pack", "user_1");
    let session = &mut event["data"]["object"];
    session["metadata"] = json!({"user_id": "user_1"});
    let id = session["id"].as_str().unwrap().to_owned();
    shop.fake.ingest(&event.to_string(), true).unwrap();
    let report = shop.run(EARLY).await;
    assert_eq!(report.left.len(), 1, "{report:#?}");
    let item =
        json!({"id": "li_1", "object": "item", "quantity": 3, "price": {"id": "price_pack_1000_test"}});
    shop.fake.put_inside(&id, vec![item]);
    let report = shop.run(EARLY).await;
    assert_eq!((count(&report, Class::Credits), report.left.len()), (1, 0), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await, ("free".to_owned(), 3000));
    shop.is_settled(EARLY + 60).await;
}

/// The same, and its event was lost too: the event does not say how many were sold.
#[tokio::test]
async fn a_lost_event_of_a_pack_without_metadata_counts_what_its_line_items_say() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    let mut event = sample("checkout.session.completed.pack", "user_1");
    let session = &mut event["data"]["object"];
    session["metadata"] = json!({"user_id": "user_1"});
    let id = session["id"].as_str().unwrap().to_owned();
    shop.fake.ingest(&event.to_string(), false).unwrap();
    let item =
        json!({"id": "li_1", "object": "item", "quantity": 3, "price": {"id": "price_pack_1000_test"}});
    shop.fake.put_inside(&id, vec![item]);
    let report = shop.run(EARLY).await;
    assert_eq!(report.left.len(), 0, "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await, ("free".to_owned(), 3500));
    shop.is_settled(EARLY + 60).await;
}

#[tokio::test]
async fn lost_refunds_are_replayed_after_the_payments_they_are_for() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &["checkout.session.completed.pack", "charge.refunded"], false);
    let now = 1_769_200_000;
    let report = shop.run(now).await;
    assert!(report.complete && report.left.is_empty(), "{report:#?}");
    assert_eq!(report.changed, 2, "{report:#?}");
    // 400 of 1000 minor units were refunded.
    assert_eq!(shop.tier_and_credits("user_1").await.1, 500 + 600);
    shop.is_settled(now + 60).await;
}

/// The life of [`LIFE`] with everything delivered in order: the renewal ends what is left of the pack.
async fn in_order() -> World {
    let world = World::new().await;
    world.sign_up("user_1").await;
    for name in LIFE {
        world.process(&sample(name, "user_1")).await;
    }
    world
}

#[tokio::test]
async fn lost_events_are_applied_oldest_first() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    // Stripe still has the events of the pack and of the renewal.
    shop.happens("user_1", "", &LIFE, false);
    let now = 1_770_600_000;
    let report = shop.run(now).await;
    assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
    let twin = in_order().await;
    let (account, expected) = (shop.world.account("user_1").await, twin.account("user_1").await);
    assert_eq!(
        (&account["tier"], &account["credits"], &account["buckets"]),
        (&expected["tier"], &expected["credits"], &expected["buckets"]),
        "{report:#?}"
    );
    assert_eq!(account["credits"], 5000);
    shop.is_settled(now + 60).await;
}

/// The documented first run: another endpoint took every event, so none is undelivered.
#[tokio::test]
async fn a_first_run_grants_what_in_order_events_would_have_left() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &LIFE, true);
    let report = shop.run(LATE).await;
    assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 5000));
    shop.is_settled(LATE + 60).await;
}

#[tokio::test]
async fn a_first_run_takes_back_what_was_refunded() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &["checkout.session.completed.pack"], true);
    let session = &sample("checkout.session.completed.pack", "user_1")["data"]["object"];
    let refund = json!({
        "id": "re_TallyHook0001", "object": "refund", "status": "succeeded", "currency": "usd",
        "amount": session["amount_total"], "payment_intent": session["payment_intent"],
        "charge": "ch_TallyHook0001", "created": EARLY - 3600, "metadata": {},
    });
    shop.fake.put(refund);
    let report = shop.run(EARLY).await;
    assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
    assert_eq!((report.changed, count(&report, Class::Credits)), (2, 2), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await.1, 500, "the signup credits");
    shop.is_settled(EARLY + 60).await;
}

/// The list is older than the answer for the single object: between both, the object may have changed and
/// its webhook may have arrived.
#[tokio::test]
async fn an_object_is_read_again_before_it_is_repaired() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &["customer.subscription.created", "invoice.paid"], true);
    for path in ["/v1/invoices/in_TallyHook0001", "/v1/subscriptions/sub_TallyHook0001"] {
        shop.fake.fail(path, 3, Misbehaviour::Status(500, None));
    }
    let before = shop.world.everything().await;
    let report = shop.run(EARLY).await;
    assert!(report.complete && report.changed == 0 && report.failures.len() == 2, "{report:#?}");
    assert_eq!(shop.world.everything().await, before, "what cannot be read again is not granted");

    shop.fake.requests();
    assert_eq!(shop.run(EARLY).await.changed, 2);
    let single = |request: &&String| request.contains("/v1/invoices/in_") || request.contains("/sub_");
    assert_eq!(shop.fake.requests().iter().filter(single).count(), 2, "one request for each repair");
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 5000));
    shop.fake.requests();
    shop.is_settled(EARLY + 60).await;
    assert_eq!(shop.fake.requests().iter().filter(single).count(), 0, "nothing to repair");
}

#[tokio::test]
async fn a_refund_of_a_known_payment_is_applied_once_with_what_its_event_would_do() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &["checkout.session.completed.pack"], true);
    shop.world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    assert_eq!(shop.tier_and_credits("user_1").await.1, 1500);
    let session = &sample("checkout.session.completed.pack", "user_1")["data"]["object"];
    let refund = |status: &str| {
        json!({
            "id": "re_TallyHook0001", "object": "refund", "status": status, "currency": "usd",
            "amount": session["amount_total"], "payment_intent": session["payment_intent"],
            "charge": "ch_TallyHook0001", "created": EARLY - 3600, "metadata": {},
        })
    };
    shop.fake.put(refund("pending"));
    shop.is_settled(EARLY).await;
    shop.fake.put(refund("succeeded"));
    let report = shop.run(EARLY).await;
    assert!(report.complete && report.changed == 1 && report.left.is_empty(), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await.1, 500);
    let ledger = shop.world.ledger("user_1").await;
    let entry = ledger.iter().find(|entry| entry["key"] == "refund#re_TallyHook0001#succeeded").unwrap();
    assert_eq!(entry["delta"], -1000);
    assert!(entry["cause"].as_str().unwrap().starts_with("reconcile:"), "{entry}");
    // The webhook that arrives after the run finds the refund applied.
    let late = json!({"id": "evt_late", "object": "event", "type": "refund.updated", "created": EARLY,
        "livemode": false, "data": {"object": refund("succeeded")}});
    shop.world.process(&late).await;
    assert_eq!(shop.tier_and_credits("user_1").await.1, 500);
    shop.is_settled(EARLY + 60).await;
}

/// A refund as `GET /v1/refunds` lists it, with the fields that are read (Stripe's API reference, "Refund").
fn refund_at(created: i64, payment: &str, charge: &str, amount: i64) -> Value {
    json!({"id": format!("re_{charge}"), "object": "refund", "status": "succeeded", "currency": "usd",
        "amount": amount, "payment_intent": payment, "charge": charge, "created": created, "metadata": {}})
}

/// A dispute as `GET /v1/disputes` lists it (Stripe's API reference, "Dispute").
fn dispute_at(created: i64, payment: &str, charge: &str, amount: i64, status: &str) -> Value {
    json!({"id": format!("dp_{charge}"), "object": "dispute", "status": status, "currency": "usd",
        "amount": amount, "payment_intent": payment, "charge": charge, "created": created, "metadata": {},
        "reason": "fraudulent"})
}

/// A customer pays for a year, and the run reads the payments of the last 90 days only.
#[tokio::test]
async fn a_yearly_payment_older_than_the_history_is_granted_less_what_was_reversed() {
    let (start, day) = (1_767_607_200, 86_400);
    let now = start + 200 * day;
    for (refunded, disputed, credits) in [(0, None, 5000), (1000, None, 2500), (0, Some("lost"), 0)] {
        let shop = Shop::new().await;
        shop.world.sign_up("user_1").await;
        shop.fake.put(of_a_year("customer.subscription.created", start));
        shop.fake.put(of_a_year("invoice.paid", start));
        shop.fake.put(sample("invoice_payment.paid", "user_1")["data"]["object"].clone());
        let (payment, charge) = ("pi_TallyHook0001", "ch_TallyHook0001");
        if refunded > 0 {
            shop.fake.put(refund_at(start + 20 * day, payment, charge, refunded));
        }
        if let Some(status) = disputed {
            shop.fake.put(dispute_at(start + 20 * day, payment, charge, 2000, status));
        }
        let report = shop.run(now).await;
        assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
        let found = shop.tier_and_credits("user_1").await;
        assert_eq!(found, ("pro".to_owned(), credits), "{refunded} {disputed:?} {report:#?}");
        shop.is_settled(now + 60).await;
    }
}

/// The samples of a first payment, with a period of a year instead of a month.
fn of_a_year(name: &str, start: i64) -> Value {
    let text = sample(name, "user_1")["data"]["object"].to_string();
    serde_json::from_str(&text.replace("1770285600", &(start + 365 * 86_400).to_string())).unwrap()
}

/// The process ends after one of the transactions of a run, and the next run starts an hour later. No run reads
/// the refunds of an old payment that is granted already.
#[tokio::test]
async fn a_run_that_is_killed_leaves_no_refunded_credits_of_an_old_payment() {
    let (start, day) = (1_767_607_200, 86_400);
    let now = start + 200 * day;
    for killed_at in 1..10 {
        let shop = Shop::new().await;
        shop.world.sign_up("user_1").await;
        shop.fake.put(of_a_year("customer.subscription.created", start));
        shop.fake.put(of_a_year("invoice.paid", start));
        shop.fake.put(sample("invoice_payment.paid", "user_1")["data"]["object"].clone());
        let (payment, charge) = ("pi_TallyHook0001", "ch_TallyHook0001");
        shop.fake.put(refund_at(start + 20 * day, payment, charge, 400));
        shop.fake.put(dispute_at(start + 21 * day, payment, charge, 600, "lost"));
        shop.fake.set_now(now);
        let mut transactions = 0;
        shop.world.fault(move |call| {
            transactions += usize::from(call.operation == "TransactWriteItems");
            let is_this = call.operation == "TransactWriteItems" && transactions == killed_at;
            is_this.then_some(Fault::HangAfter)
        });
        let options = Options::default();
        let run = shop.reconciler.run(&options, Timestamp::from_unix(now));
        let ended = shop.world.until_hung(run).await;
        shop.world.heal();
        let report = shop.run(now + 3600).await;
        assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
        let found = shop.tier_and_credits("user_1").await;
        assert_eq!(found, ("pro".to_owned(), 2500), "killed after transaction {killed_at}");
        if ended.is_some() {
            assert!(killed_at > 2, "the run writes the status and the payment");
            return;
        }
    }
    panic!("a run has less than nine transactions");
}

#[tokio::test]
async fn a_lost_dispute_of_a_known_payment_takes_the_credits_until_it_is_won() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &["checkout.session.completed.pack"], true);
    shop.world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    for (status, credits) in [("warning_needs_response", 1500), ("needs_response", 500), ("won", 1500)] {
        shop.fake.put(dispute_at(EARLY - 7200, "pi_TallyHook0002", "ch_TallyHook0002", 1000, status));
        let report = shop.run(EARLY).await;
        assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
        assert_eq!(shop.tier_and_credits("user_1").await.1, credits, "{status} {report:#?}");
        shop.is_settled(EARLY + 60).await;
    }
}

#[tokio::test]
async fn a_refund_of_today_of_an_old_charge_is_found_for_one_user() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    let mut charge = sample("charge.refunded", "user_1")["data"]["object"].clone();
    charge["refunds"] = Value::Null;
    shop.fake.put(charge);
    let now = EARLY + 150 * 86_400;
    shop.fake.put(refund_at(now - 3600, "pi_TallyHook0002", "ch_TallyHook0002", 400));
    shop.fake.set_now(now);
    let user = tallyhook_core::ids::UserId::new("user_1").unwrap();
    let report = shop.reconciler.run_for(&user, &Options::default(), Timestamp::from_unix(now)).await;
    assert!(report.complete && report.failures.is_empty(), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await.1, 500 + 600, "{report:#?}");
}

/// Checkout lets a customer pay up to a day after the session was made. A pack counts from its payment.
#[tokio::test]
async fn a_pack_counts_from_its_payment_and_not_from_its_session() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    // The renewal is at 1770285600: the session was made before it and paid after it.
    let renewal = 1_770_285_600;
    shop.happens(
        "user_1",
        "",
        &["customer.subscription.created", "invoice.paid", "invoice.paid.renewal"],
        true,
    );
    let mut session = sample("checkout.session.completed.pack", "user_1")["data"]["object"].clone();
    session["created"] = json!(renewal - 3600);
    shop.fake.put(session);
    shop.fake.put(json!({"id": "ch_TallyHook0002", "object": "charge", "payment_intent": "pi_TallyHook0002",
        "paid": true, "amount": 1000, "amount_refunded": 0, "created": renewal + 3600}));
    let report = shop.run(LATE).await;
    assert!(report.complete && report.left.is_empty() && report.failures.is_empty(), "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 6000), "{report:#?}");
    shop.is_settled(LATE + 60).await;
}

#[tokio::test]
async fn a_run_alerts_about_what_it_left_and_about_an_error_that_stopped_it() {
    let shop = Shop::new().await;
    let alerts = Alerts::new(Queue::new(shop.world.sqs.clone()), shop.world.env.get("QUEUE_URL_NOTIFY"));
    let reconciler = Reconciler::new(shop.stripe.clone(), processor(&shop.world)).with_alerts(alerts);
    let conclude = async |now: i64| {
        shop.fake.set_now(now);
        let now = Timestamp::from_unix(now);
        let report = reconciler.run(&Options::default(), now).await;
        reconciler.conclude(&report, None, now).await;
        let named = |alert: &Value| alert["alert"].as_str().unwrap().to_owned();
        (report, shop.world.alerts().await.iter().map(named).collect::<Vec<_>>())
    };
    assert_eq!(conclude(EARLY).await.1, [] as [&str; 0], "a run that finds nothing");

    // Both subscriptions of one user are repaired. That there are two is for an operator.
    for tag in ["A", "B"] {
        shop.happens("user_1", tag, &LIFE[..2], true);
    }
    let (report, alerts) = conclude(EARLY).await;
    assert_eq!(report.left.len(), 1, "{report:#?}");
    assert_eq!(alerts, ["unrepaired", "missing"]);
    let (report, alerts) = conclude(EARLY + 60).await;
    assert_eq!((report.changed, alerts), (0, vec!["unrepaired".to_owned()]), "found again, and left again");

    shop.fake.fail("/v1/invoices", 3, Misbehaviour::Status(500, None));
    let (report, alerts) = conclude(EARLY + 120).await;
    assert!(!report.complete && report.stopped.is_some(), "{report:#?}");
    assert_eq!(alerts, ["reconcile_stopped"]);
}

#[tokio::test]
async fn twelve_hours_without_a_complete_run_cost_points_and_are_alerted() {
    let shop = Shop::new().await;
    let today = crate::support::now().unix();
    let deductions = async || {
        let (_, health) = shop.world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
        let all = health["deductions"].as_array().unwrap().clone();
        shop.world.health.handle(Value::Null).await.unwrap();
        let alerts = shop.world.alerts().await;
        let alerted = alerts.iter().find(|alert| alert["alert"] == "not_reconciled").cloned();
        (all.iter().any(|deduction| deduction["code"] == "not_reconciled"), alerted)
    };
    for (hours_ago, expected) in [(1, None), (11, None), (13, Some(13)), (24 * 30, Some(24 * 30))] {
        let at = today - hours_ago * 3600;
        let report = shop.run(at).await;
        assert!(report.complete, "{report:#?}");
        shop.reconciler.conclude(&report, None, Timestamp::from_unix(at)).await;
        let (costs_points, alert) = deductions().await;
        assert_eq!(costs_points, expected.is_some(), "{hours_ago} hours");
        assert_eq!(alert.map(|alert| alert["hours"].clone()), expected.map(|hours| json!(hours)));
    }
    // A run that stops is not complete, so it does not count.
    shop.fake.fail("/v1/subscriptions", 3, Misbehaviour::Status(500, None));
    let report = shop.run(today).await;
    shop.reconciler.conclude(&report, None, Timestamp::from_unix(today)).await;
    assert!(deductions().await.0);
}

#[tokio::test]
async fn one_user_can_be_reconciled_alone() {
    let shop = Shop::new().await;
    for tag in ["A", "B"] {
        shop.happens(&format!("user_{tag}"), tag, &LIFE[..2], true);
        shop.world.process(&of_customer("customer.subscription.created", &format!("user_{tag}"), tag)).await;
    }
    shop.fake.set_now(EARLY);
    let user = UserId::new("user_A").unwrap();
    let report = shop.reconciler.run_for(&user, &Options::default(), Timestamp::from_unix(EARLY)).await;
    assert!(report.complete && report.changed == 1, "{report:#?}");
    assert_eq!(shop.tier_and_credits("user_A").await.1, 5000);
    assert_eq!(shop.tier_and_credits("user_B").await.1, 0);
}

#[tokio::test]
async fn a_refused_key_stops_the_run_with_stripes_words() {
    let shop = Shop::new().await;
    let address = shop.fake.start().await.unwrap();
    let stripe = Stripe::new("sk_test_wrong", format!("http://{address}"));
    let report = Reconciler::new(stripe, processor(&shop.world))
        .run(&Options::default(), Timestamp::from_unix(EARLY))
        .await;
    let why = report.stopped.unwrap();
    assert!(why.contains("401") && !why.contains("sk_test_wrong") && !why.contains(KEY), "{why}");
}

#[tokio::test]
async fn the_gap_between_stripes_events_and_ours_is_counted() {
    let shop = Shop::new().await;
    shop.happens("user_1", "", &LIFE[..4], true);
    shop.happens("user_1", "", &["product.updated"], true);
    for name in &LIFE[..3] {
        shop.world.process(&sample(name, "user_1")).await;
    }
    let store = processor(&shop.world).accounts.store;
    let (from, until) = (Timestamp::from_unix(EARLY - 20 * 86_400), Timestamp::from_unix(EARLY));
    let gap = gap(&shop.stripe, &store, from, until, None).await.unwrap();
    assert_eq!((gap.listed, gap.held, gap.complete), (4, 3, true), "{gap:?}");
    assert_eq!(
        gap.missing[0].id,
        sample("checkout.session.completed.pack", "user_1")["id"].as_str().unwrap()
    );
}

/// Whatever the page, the oldest event that was not processed is the next one. The renewal ends the pack.
#[tokio::test]
async fn a_replay_processes_the_oldest_events_first() {
    for limit in [1, 4, 100] {
        let shop = Shop::new().await;
        shop.world.sign_up("user_1").await;
        shop.happens("user_1", "", &LIFE, false);
        let replayer = Replayer::new(shop.stripe.clone(), processor(&shop.world));
        let now = Timestamp::from_unix(LATE);
        let from = Some(Timestamp::from_unix(EARLY - 30 * 86_400));
        let listed = Selection::Listed(EventFilter { undelivered: true, from, ..EventFilter::default() });
        let (mut processed, mut next) = (Vec::new(), None);
        loop {
            let page = replayer.replay(&listed, limit, next.as_deref(), None, now).await.unwrap();
            let others = page.skipped.len() + page.parked.len();
            assert!(page.processed.len() <= limit && others == 0, "{page:#?}");
            processed.extend(page.processed);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        let life = LIFE.map(|name| sample(name, "user_1")["id"].as_str().unwrap().to_owned());
        assert_eq!(processed, life, "limit {limit}");
        assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 5000), "limit {limit}");
    }
}

#[tokio::test]
async fn events_are_replayed_from_stripe_once() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &LIFE[..4], false);
    let replayer = Replayer::new(shop.stripe.clone(), processor(&shop.world));
    let now = Timestamp::from_unix(EARLY);

    let id = sample("customer.subscription.created", "user_1")["id"].as_str().unwrap().parse().unwrap();
    let one = replayer.replay(&Selection::One(id), 1, None, None, now).await.unwrap();
    assert_eq!(one.processed.len(), 1);
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 500));

    let types = vec![EventType::InvoicePaid, EventType::CheckoutSessionCompleted];
    let listed = Selection::Listed(EventFilter { types, undelivered: true, ..EventFilter::default() });
    let first = replayer.replay(&listed, 2, None, None, now).await.unwrap();
    assert_eq!((first.processed.len(), first.next.is_some()), (2, true));
    let rest = replayer.replay(&listed, 2, first.next.as_deref(), None, now).await.unwrap();
    assert_eq!((rest.processed.len(), rest.next), (1, None));
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 6000));

    let before = shop.world.everything().await;
    replayer.replay(&listed, 100, None, None, now).await.unwrap();
    assert_eq!(shop.world.everything().await, before, "a second replay changes nothing");
    let unknown = replayer.replay(&listed, 2, Some("evt_1"), None, now).await;
    assert_eq!(unknown.unwrap_err().to_string(), "next must be what the last report gave");
    let gone = replayer.replay(&Selection::One("evt_gone".parse().unwrap()), 1, None, None, now).await;
    assert!(gone.unwrap_err().to_string().contains("No such event"));
}

/// A sample invoice that names its customer and not its user.
fn without_user(name: &str) -> Value {
    let mut event = sample(name, "user_1");
    let invoice = &mut event["data"]["object"];
    invoice["parent"]["subscription_details"]["metadata"] = json!({});
    for line in invoice["lines"]["data"].as_array_mut().unwrap() {
        line["metadata"] = json!({});
    }
    event
}

/// Stripe creates the session, which links the customer, after the first invoice.
#[tokio::test]
async fn in_a_replay_an_event_without_a_known_user_waits_for_the_link() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    let replayer = Replayer::new(shop.stripe.clone(), processor(&shop.world));
    let from = Some(Timestamp::from_unix(EARLY - 30 * 86_400));
    let listed = Selection::Listed(EventFilter { from, ..EventFilter::default() });
    let replay =
        async || replayer.replay(&listed, 10, None, None, Timestamp::from_unix(EARLY)).await.unwrap();

    shop.fake.ingest(&without_user("invoice.paid").to_string(), false).unwrap();
    let alone = replay().await;
    assert_eq!((alone.processed.len(), alone.parked.len()), (0, 1), "{alone:#?}");
    assert!(alone.parked[0].1.contains("cus_"), "{alone:#?}");
    shop.happens("user_1", "", &["checkout.session.completed"], false);
    let both = replay().await;
    assert_eq!((both.processed.len(), both.parked.len()), (2, 0), "{both:#?}");
    assert_eq!(shop.tier_and_credits("user_1").await.1, 5000);
}

/// An event that cannot be stored is not reported as done, and the replay says where it stopped.
#[tokio::test]
async fn a_replay_stops_when_dynamodb_does_not_answer() {
    let shop = Shop::new().await;
    shop.world.sign_up("user_1").await;
    shop.happens("user_1", "", &LIFE[..3], false);
    let replayer = Replayer::new(shop.stripe.clone(), processor(&shop.world));
    let from = Some(Timestamp::from_unix(EARLY - 30 * 86_400));
    let listed = Selection::Listed(EventFilter { from, ..EventFilter::default() });
    let now = Timestamp::from_unix(EARLY);
    shop.world.fault(|call| {
        (call.operation == "TransactWriteItems").then(|| aws_error(500, "InternalServerError"))
    });
    let stopped = replayer.replay(&listed, 10, None, None, now).await.unwrap_err();
    assert!(stopped.to_string().starts_with("dynamodb"), "{stopped}");
    shop.world.heal();
    assert_eq!(shop.tier_and_credits("user_1").await, ("free".to_owned(), 500));
    assert_eq!(replayer.replay(&listed, 10, None, None, now).await.unwrap().processed.len(), 3);
    assert_eq!(shop.tier_and_credits("user_1").await, ("pro".to_owned(), 5000));
}
