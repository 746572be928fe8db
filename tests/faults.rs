//! The scenarios of `docs/faults.md` that no other file proves, by their numbers there. Each goes
//! through HTTP, queue and DynamoDB.

mod hostile_content;
mod money;
mod order;
mod processing;
mod requests;

use serde_json::{Value, json};
use tallyhook_core::signature::{Secret, sign};
use tallyhook_core::timestamp::Timestamp;

use crate::invariants::Tables;
use crate::support::{World, sample};

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs())
        .unwrap()
}

fn signed(body: &[u8], secret: &str, offset_seconds: i64) -> String {
    sign(body, &Secret::new(secret).unwrap(), Timestamp::from_unix(now() + offset_seconds))
}

/// The outcome and the reason in the event log.
async fn outcome(world: &World, id: &str) -> (String, String) {
    let record = world.event(id).await.unwrap_or_else(|| panic!("{id} is not in the log"));
    (record["outcome"].clone(), record.get("reason").cloned().unwrap_or_default())
}

async fn credits(world: &World, user: &str) -> i64 {
    Tables::read(world).await.credits(user)
}

async fn tier(world: &World, user: &str) -> String {
    world.account(user).await["tier"].as_str().unwrap_or("none").to_owned()
}

async fn spend(world: &World, amount: u64, key: &str) -> u16 {
    world.app("POST", "/users/user_1/credits/consume", json!({"amount": amount}), Some(key)).await.0
}

async fn signed_up() -> World {
    let world = World::new().await;
    world.sign_up("user_1").await;
    world
}

/// A user with 500 + 1000 credits: a pack was paid by `pi_TallyHook0002`, 1000 minor units.
async fn buyer() -> World {
    let world = signed_up().await;
    world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    assert_eq!(credits(&world, "user_1").await, 1500);
    world
}

async fn subscriber() -> World {
    let world = signed_up().await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    world
}

/// An event that names no user anywhere.
fn anonymous(name: &str) -> Value {
    serde_json::from_str(
        &sample(name, "user_1").to_string().replace("\"user_id\":\"user_1\"", "\"note\":\"none\""),
    )
    .unwrap()
}

fn changed(mut event: Value, id: &str, changes: &[(&str, Value)]) -> Value {
    event["id"] = json!(id);
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        event.pointer_mut(parent).unwrap()[name] = value.clone();
    }
    event
}
