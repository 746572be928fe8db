//! What holds for an account whatever its history: that it stays small, and that what it has forgotten does not come back.

use serde_json::json;

use crate::domain::decide::tests::{MONTH, P1, Run, Step, changed, invoice, items, line, pack, paid, patched, refunded, sub, updated};

const DAY: i64 = 86_400;

/// A subscriber of so many months, who changes the plan and buys packs in each.
fn months(count: i64) -> Vec<Step> {
    let pro = |start| json!({"items": items(&[("price_pro", 1)], start)});
    let month = |number: i64| {
        let start = P1 + number * MONTH;
        let (bought, paid_by) = (format!("cs_{number}"), format!("pi_cs_{number}"));
        vec![
            updated(start, pro(start), pro(start - MONTH)),
            paid(start + 60, &format!("in_{number}"), "subscription_cycle", "price_pro", start),
            pack(start + DAY, &bought),
            Step::Spend(700),
            changed(start + 2 * DAY, ("price_pro", 1), ("price_business", 1), start),
            changed(start + 3 * DAY, ("price_business", 1), ("price_team", 1 + number.unsigned_abs() % 7), start),
            pack(start + 4 * DAY, &format!("cs_again{number}")),
            refunded(start + 5 * DAY, &paid_by, 500),
            Step::Spend(300),
            changed(start + 6 * DAY, ("price_team", 1 + number.unsigned_abs() % 7), ("price_pro", 1), start),
        ]
    };
    (0..count).flat_map(month).collect()
}

/// Somebody who subscribes anew each month and lets it end.
fn subscriptions(count: i64) -> Vec<Step> {
    (0..count)
        .flat_map(|number| [subscribed(number, P1 + number * MONTH), ended(number, P1 + number * MONTH + 20 * DAY)].concat())
        .collect()
}

fn subscribed(number: i64, start: i64) -> Vec<Step> {
    let id = format!("sub_{number}");
    let of = json!({"parent": {"subscription_details": {"subscription": id}}});
    vec![
        sub("created", start, json!({"id": id, "items": items(&[("price_pro", 1)], start), "latest_invoice": format!("in_{number}")})),
        invoice("paid", start + 1, &format!("in_{number}"), "subscription_create", &[line("price_pro", 1, start)], of),
    ]
}

fn ended(number: i64, at: i64) -> Vec<Step> {
    let state = json!({"id": format!("sub_{number}"), "items": items(&[("price_pro", 1)], at - 20 * DAY)});
    vec![sub("deleted", at, patched(state, &json!({"status": "canceled", "ended_at": at})))]
}

fn bytes(steps: &[Step]) -> usize {
    serde_json::to_vec(&Run::of(steps).account.state).unwrap().len()
}

#[test]
fn an_account_is_as_small_after_a_thousand_of_everything_as_after_ten() {
    let keep = |steps: Vec<Step>| [vec![Step::KeepAddons], steps].concat();
    for (what, few, many) in [
        ("renewals, changes and packs", months(10), months(1000)),
        ("the same, and packs are kept", keep(months(10)), keep(months(1000))),
        ("subscriptions", subscriptions(20), subscriptions(1000)),
    ] {
        let (few, many) = (bytes(&few), bytes(&many));
        assert!(many <= few + 300 && many < 4000, "{what}: {few} bytes, then {many}");
    }
}

#[test]
fn a_forgotten_subscription_is_not_paid_out_again() {
    let lives = subscriptions(30);
    let run = Run::of(&lives);
    assert!(!run.account.state.subscriptions.keys().any(|id| id.as_str() == "sub_0"), "sub_0 is not forgotten");
    // Somebody has the oldest events sent again, or reconciliation reads the objects: with the end told, or not.
    let (first, over) = (subscribed(0, P1), ended(0, P1 + 20 * DAY));
    for late in [first.clone(), first[1..].to_vec(), [over.clone(), first.clone()].concat(), [first, over].concat()] {
        let again = Run::of(&[lives.clone(), late].concat());
        assert_eq!(again.account.state.balance(), run.account.state.balance(), "{}", again.told());
    }
}
