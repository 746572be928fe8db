//! Lives on one of Stripe's test clocks: the merchant moves the time, so it is ahead of the wall clock.

use serde_json::{Value, json};

use crate::features::catalog;
use crate::support::{World, now, sample};

const DAY: i64 = 86_400;
const MONTH: i64 = 30 * DAY;

/// A sample with another time and period. `clock`: whether its object is on a test clock.
struct Clock {
    start: i64,
    clock: bool,
}

impl Clock {
    fn event(&self, name: &str, id: &str, at: i64, period: (i64, i64)) -> Value {
        let mut event = sample(name, "user_123");
        event["id"] = json!(format!("evt_{id}"));
        event["created"] = json!(self.start + at);
        let object = &mut event["data"]["object"];
        let (start, end) = (json!(self.start + period.0), json!(self.start + period.1));
        if self.clock {
            object["test_clock"] = json!("clock_1TallyHook0001");
        }
        if object["object"] == "invoice" {
            object["id"] = json!(format!("in_{id}"));
            object["lines"]["data"][0]["period"] = json!({"start": start, "end": end});
        } else {
            let item = &mut object["items"]["data"][0];
            item["price"]["id"] = json!("price_pro_test");
            (item["current_period_start"], item["current_period_end"]) = (start, end);
            // The changes that the sample shows did not happen in this life.
            event["data"].as_object_mut().unwrap().remove("previous_attributes");
        }
        event
    }

    /// A period's events: the subscription in this period, then its invoice.
    fn period(&self, place: i64, names: [&str; 2]) -> [Value; 2] {
        let period = (place * MONTH, (place + 1) * MONTH);
        let at = place * MONTH + 60;
        names.map(|name| self.event(name, &format!("{}{place}", &name[..7]), at, period))
    }
}

async fn spend(world: &World, key: &str) {
    let path = "/users/user_123/credits/consume";
    assert_eq!(world.app("POST", path, json!({"amount": 100}), Some(key)).await.0, 200);
}

/// Thirteen paid months, one of them unpaid, and eight days: the tier in the grace, after it, and the
/// credits.
async fn thirteen_months(clock: bool) -> (World, Vec<Value>) {
    let world = World::new().await;
    let life = Clock { start: now().unix() - DAY, clock };
    world.sign_up("user_123").await;
    let mut seen = Vec::new();
    for event in life.period(0, ["customer.subscription.created", "invoice.paid"]) {
        world.process(&event).await;
    }
    for month in 1..13 {
        spend(&world, &format!("spend-{month}")).await;
        for event in life.period(month, ["customer.subscription.updated", "invoice.paid.renewal"]) {
            world.process(&event).await;
        }
    }
    seen.push(world.account("user_123").await);
    let unpaid = (13 * MONTH, 14 * MONTH);
    for (name, at) in [
        ("customer.subscription.updated.past_due", 13 * MONTH + 60),
        ("invoice.payment_failed", 13 * MONTH + 8 * DAY),
    ] {
        world.process(&life.event(name, &format!("unpaid{at}"), at, unpaid)).await;
        seen.push(world.account("user_123").await);
    }
    (world, seen)
}

#[tokio::test]
async fn thirteen_months_on_a_clock_end_with_the_right_tier_grace_and_grants() {
    let (world, seen) = thirteen_months(true).await;
    let [paid, grace, over] = seen.as_slice() else { panic!("{seen:#?}") };
    assert_eq!((&paid["tier"], &paid["credits"]), (&json!("pro"), &json!(5000)), "{paid:#}");
    assert_eq!(grace["tier"], "pro", "seven days of grace: {grace:#}");
    assert!(grace["access_until"].is_string(), "{grace:#}");
    assert_eq!((&over["tier"], &over["access_until"]), (&json!("free"), &Value::Null), "{over:#}");
    let ledger = world.ledger("user_123").await;
    let grants: Vec<i64> = ledger
        .iter()
        .filter(|entry| entry["key"].as_str().unwrap().starts_with("invoice#"))
        .map(|entry| entry["delta"].as_i64().unwrap())
        .collect();
    // Each renewal gives back the 100 that were spent.
    let expected: Vec<i64> = std::iter::repeat_n(100, 12).chain([4500]).collect();
    assert_eq!(grants, expected, "{ledger:#?}");
    let sum: i64 = ledger.iter().map(|entry| entry["delta"].as_i64().unwrap()).sum();
    assert_eq!(json!(sum), over["credits"]);
}

#[tokio::test]
async fn without_a_clock_the_grace_ends_by_the_wall_clock() {
    let (_, seen) = thirteen_months(false).await;
    assert!(seen.iter().all(|account| account["tier"] == "pro"), "{seen:#?}");
}

#[tokio::test]
async fn months_of_a_yearly_plan_fall_due_as_the_clock_moves() {
    let monthly = |text: String| text.replacen("refill = \"period\"", "refill = \"month\"", 1);
    let file = catalog("clock", monthly);
    let world = World::with(&[("CATALOG_FILE", file.to_str().unwrap())]).await;
    std::fs::remove_file(file).unwrap();
    let life = Clock { start: now().unix() - DAY, clock: true };
    let year = (0, 365 * DAY);
    for name in ["customer.subscription.created", "invoice.paid"] {
        world.process(&life.event(name, &name[..7], 60, year)).await;
    }
    spend(&world, "a").await;
    for (days, months) in [(20, 0), (70, 2), (340, 11)] {
        let name = "customer.subscription.updated";
        world.process(&life.event(name, &format!("move{days}"), days * DAY, year)).await;
        let account = world.account("user_123").await;
        let credits = if months == 0 { 4900 } else { 5000 };
        assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(credits)), "day {days}");
        let newest = world.ledger("user_123").await[0]["key"].as_str().unwrap().to_owned();
        assert_eq!(newest.ends_with(&format!("#{months}")), months > 0, "day {days}: {newest}");
    }
}

#[tokio::test]
async fn a_hold_on_a_clock_that_is_ahead_reserves_its_credits() {
    let world = World::new().await;
    let life = Clock { start: now().unix() + 2 * MONTH, clock: true };
    world.sign_up("user_123").await;
    for event in life.period(0, ["customer.subscription.created", "invoice.paid"]) {
        world.process(&event).await;
    }
    let body = json!({"amount": 1200, "ttl_seconds": 900});
    let (status, hold) = world.app("POST", "/users/user_123/credits/holds", body, Some("job")).await;
    assert_eq!((status, &hold["available"]), (201, &json!(3800)), "{hold:#}");
    let account = world.account("user_123").await;
    assert_eq!((&account["credits"], &account["available"]), (&json!(5000), &json!(3800)));
}
