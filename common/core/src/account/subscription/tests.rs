//! What a subscription keeps.

use serde_json::json;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix(second)
}

#[test]
fn records_are_the_phases_and_those_of_the_items() {
    let line = json!({"invoice": "in_1", "at": 1, "start": 1, "price": "price_pro",
        "terms": {"plan": "pro", "credits": 5000}, "amount": 2000, "total": 2000});
    let one: Subscription = serde_json::from_value(json!({
        "items": {"si_1": {"lines": [line, line]}, "si_2": {"lines": [line]}},
        "phases": [{"at": 1}, {"at": 2}],
    }))
    .unwrap();
    assert_eq!(one.records(), 5);
}

/// When an item came is known by the last time without it and the first with it.
#[test]
fn of_too_many_times_one_between_two_with_the_same_items_is_dropped() {
    let set = |ids: &[&str]| -> BTreeSet<ItemId> { ids.iter().map(|id| ItemId::new(*id).unwrap()).collect() };
    let mut one = Subscription::default();
    one.fold_set(set(&["si_1"]), at(0));
    (1..20).for_each(|second| one.fold_set(set(&["si_1", "si_2"]), at(second)));
    let seen: Vec<i64> = one.sets.iter().flat_map(|set| &set.seen).map(|at| at.unix()).collect();
    assert_eq!(seen, [0, 1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
}

/// An item is there from the first snapshot or line that shows it to the first snapshot without it.
#[test]
fn an_item_was_there_until_it_was_removed() {
    let set = |ids: &[&str]| -> BTreeSet<ItemId> { ids.iter().map(|id| ItemId::new(*id).unwrap()).collect() };
    let (id, mut one) = (ItemId::new("si_1").unwrap(), Subscription::default());
    one.fold_set(set(&["si_1", "si_2"]), at(10));
    one.fold_set(set(&["si_2"]), at(20));
    one.items.insert(id.clone(), Item::default());
    let was_there = |second: i64| one.was_there(&id, &one.items[&id], at(second));
    assert_eq!([9, 10, 19, 20].map(was_there), [false, true, true, false]);
}
