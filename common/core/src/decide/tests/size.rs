//! The largest state that an account can have. DynamoDB's limit of an item is 400 KB.

use serde_json::{Value, json};

use super::shapes::{DAY, T, YEAR, bill, flagged, seats, shows, times};
use super::{Parked, Run, Step, session};
use crate::account::state::MAX_ITEMS;

const MAX_ITEM_BYTES: usize = 400 * 1024;

/// The maximum number of items, whose seats change `changes` times within a year, and a pack with each
/// change. Ids have Stripe's lengths.
fn largest(changes: i64) -> Vec<Step> {
    let price = format!("price_{:024}", 1);
    let mut steps = vec![Step::Edit("price_team", "price_000000000000000000000001"), Step::Signup];
    let ids: Vec<String> = (0..MAX_ITEMS).map(|number| format!("si_{number:024}")).collect();
    for change in 0..changes {
        let (at, quantity) = (T + change * 6 * DAY, u64::try_from(change + 1).unwrap());
        let items: Vec<_> = ids.iter().map(|id| seats(id, &price, quantity, T, T + YEAR)).collect();
        let lines: Vec<_> =
            ids.iter().map(|id| times(quantity, flagged(id, &price, 500, at, T + YEAR))).collect();
        steps.extend([
            shows(at, "active", &items),
            bill(at + 1, &format!("in_{change:024}"), "subscription_update", &lines),
            session("completed", at + 2, &format!("cs_{at}"), json!({"pack": "p1000"}), json!({})),
        ]);
    }
    steps
}

#[test]
fn the_largest_state_fits_an_item_and_an_event_that_needs_more_is_parked() {
    let run = Run::of(&largest(34));
    let (bytes, json) = sizes(&run);
    assert!((MAX_ITEM_BYTES * 3 / 4..MAX_ITEM_BYTES * 95 / 100).contains(&bytes), "{bytes} bytes");
    assert!(json * 100 > bytes * 135, "{json} bytes of JSON for {bytes}");
    assert!(!run.parked.is_empty());
    assert!(run.parked.iter().all(|(_, parked)| *parked == Parked::TooManyItems));
}

/// The bytes of the state as an item of DynamoDB, and as JSON.
fn sizes(run: &Run) -> (usize, usize) {
    let state = serde_json::to_value(&run.account.state).unwrap();
    (item_bytes(&state), state.to_string().len())
}

/// The size of a value in an item of DynamoDB: text has its bytes of UTF-8, a number one byte for two digits
/// and one more, a list or map three bytes and one for each element. Source: "DynamoDB item sizes and
/// formats" in the developer guide.
fn item_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 1,
        Value::Number(number) => number.to_string().trim_end_matches('0').len().div_ceil(2) + 1,
        Value::String(text) => text.len(),
        Value::Array(values) => 3 + values.iter().map(|value| 1 + item_bytes(value)).sum::<usize>(),
        Value::Object(map) => {
            3 + map.iter().map(|(name, value)| 1 + name.len() + item_bytes(value)).sum::<usize>()
        }
    }
}
