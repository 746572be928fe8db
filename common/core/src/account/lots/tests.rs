//! Lots that hold older ones.

use serde_json::{Value, json};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix(second)
}

fn purchase(patch: Value) -> Purchase {
    let base = json!({"session": "cs_1", "at": 5, "granted": 30, "total": 2000});
    serde_json::from_value(crate::decide::tests::patched(base, &patch)).unwrap()
}

fn nothing(_: &OlderLot) -> Credits {
    Credits::ZERO
}

#[test]
fn a_part_that_is_spent_is_not_kept() {
    let pack = purchase(json!({"spent": 20, "older": [{"at": 1, "left": 20}]}));
    let parts = pack.parts_left(nothing);
    assert_eq!(parts.iter().map(|part| part.left.get()).collect::<Vec<_>>(), [10]);
}

/// The lot itself may be older than what it holds: the two with the nearest ends are joined.
#[test]
fn what_was_bought_in_the_second_of_a_reset_is_not_dropped_with_what_is_older() {
    let dropped = |second: i64| {
        let mut pack = purchase(json!({"older": [{"at": second, "left": 20}]}));
        pack.drop_before(at(10), nothing);
        (pack.granted.get(), pack.spent.get())
    };
    assert_eq!(dropped(9), (30, 30), "all of it");
    assert_eq!(dropped(10), (20, 0), "its own part");
}

#[test]
fn a_grant_that_holds_nothing_of_before_a_time_stays_as_it_is() {
    let key = LedgerKey::fix("1");
    let mut grant = Grant::new(key, Credits::new(100), at(20), None);
    grant.left = Credits::new(60);
    grant.older = vec![OlderLot { at: at(15), left: Credits::new(30), sale: None }];
    let dropped = |second: i64| {
        let mut grant = grant.clone();
        grant.drop_before(at(second));
        (grant.granted.get(), grant.left.get(), grant.older.len())
    };
    assert_eq!(dropped(15), (100, 60, 1), "nothing of it is older");
    assert_eq!(dropped(16), (60, 60, 0), "40 were spent of it, the older 30 first");
}

#[test]
fn what_was_spent_of_an_invoice_s_lot_counts_for_the_session_s_lot_with_the_same_end() {
    let old = purchase(json!({"session": null, "invoice": "in_1", "expires_days": 30, "spent": 20}));
    let (mut one, mut other) = (purchase(json!({})), purchase(json!({"expires_days": 30})));
    replace(&[old], vec![&mut one, &mut other]);
    assert_eq!((one.spent.get(), other.spent.get()), (0, 20));
}

#[test]
fn what_no_lot_of_the_session_covers_counts_as_spent_of_the_last_one() {
    let old = |spent: u64| {
        purchase(
            json!({"session": null, "invoice": "in_1", "granted": 90, "expires_days": 7, "spent": spent}),
        )
    };
    let spent = |of_old: u64| {
        let (mut one, mut other) = (purchase(json!({})), purchase(json!({"expires_days": 30})));
        replace(&[old(of_old)], vec![&mut one, &mut other]);
        (one.spent.get(), other.spent.get())
    };
    assert_eq!(spent(20), (20, 0));
    assert_eq!(spent(40), (30, 10));
    assert_eq!(spent(70), (30, 40));
}
