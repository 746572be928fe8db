//! Sample events.

use serde_json::{Value, json};

/// A sample event from `events/`, for this user.
pub fn sample(name: &str, user: &str) -> Value {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../events").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text.replace("user_123", user)).unwrap()
}

/// The same event under another event id.
pub fn with_id(mut event: Value, id: &str) -> Value {
    event["id"] = json!(id);
    event
}

/// A paid checkout session of a pack. Its ids are made from `name`.
pub fn pack(name: &str, user: &str, quantity: u32) -> Value {
    let mut event = with_id(sample("checkout.session.completed.pack", user), &format!("evt_{name}"));
    let session = &mut event["data"]["object"];
    session["id"] = json!(format!("cs_test_{name}"));
    session["payment_intent"] = json!(format!("pi_{name}"));
    session["customer"] = json!(format!("cus_{}", user.replace('_', "")));
    session["metadata"] = json!({"user_id": user, "pack": "credits_1000", "quantity": quantity.to_string()});
    event
}

/// The session of a pack whose metadata does not name the pack. The event is parked.
pub fn unnamed_pack(name: &str) -> Value {
    let mut event = pack(name, "user_1", 1);
    event["data"]["object"]["metadata"] = json!({"user_id": "user_1"});
    event
}
