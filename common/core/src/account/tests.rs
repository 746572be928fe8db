//! Properties of an account with any history: it stays small, and what it has dropped is not granted again.

use serde_json::{Value, json};

use super::lots::Purchase;
use super::state::MAX_PURCHASES;
use super::subscription::Subscription;
use super::{Account, Cause, Fact};
use crate::catalog::Catalog;
use crate::credits::Credits;
use crate::decide::tests::{
    MONTH, P1, P2, Run, Step, changed, check, invoice, items, line, pack, paid, patched, proration, refund,
    refunded, session, sub, updated,
};
use crate::ids::UserId;
use crate::ledger::{EntryKind, LedgerKey};
use crate::timestamp::Timestamp;

const DAY: i64 = 86_400;

/// A subscriber who changes the plan and buys packs in each of `count` months.
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
            changed(
                start + 3 * DAY,
                ("price_business", 1),
                ("price_team", 1 + number.unsigned_abs() % 7),
                start,
            ),
            pack(start + 4 * DAY, &format!("cs_again{number}")),
            refunded(start + 5 * DAY, &paid_by, 500),
            Step::Spend(300),
            changed(start + 6 * DAY, ("price_team", 1 + number.unsigned_abs() % 7), ("price_pro", 1), start),
        ]
    };
    (0..count).flat_map(month).collect()
}

/// A user with a new subscription in each of `count` months, each of which ends.
fn subscriptions(count: i64) -> Vec<Step> {
    (0..count)
        .flat_map(|number| {
            [subscribed(number, P1 + number * MONTH), ended(number, P1 + number * MONTH + 20 * DAY)].concat()
        })
        .collect()
}

fn subscribed(number: i64, start: i64) -> Vec<Step> {
    let id = format!("sub_{number}");
    let of = json!({"parent": {"subscription_details": {"subscription": id}}});
    vec![
        sub(
            "created",
            start,
            json!({"id": id, "items": items(&[("price_pro", 1)], start),
                "latest_invoice": format!("in_{number}")}),
        ),
        invoice(
            "paid",
            start + 1,
            &format!("in_{number}"),
            "subscription_create",
            &[line("price_pro", 1, start)],
            of,
        ),
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
fn an_account_is_as_small_after_two_hundred_of_everything_as_after_ten() {
    let keep = |steps: Vec<Step>| [vec![Step::KeepAddons], steps].concat();
    for (what, few, many) in [
        ("renewals, changes and packs", months(10), months(200)),
        // After twenty months the maximum number of packs is kept.
        ("the same, and packs are kept", keep(months(20)), keep(months(200))),
        ("subscriptions", subscriptions(20), subscriptions(200)),
    ] {
        let (few, many) = (bytes(&few), bytes(&many));
        assert!(many <= few + 400 && many < 8000, "{what}: {few} bytes, then {many}");
    }
}

#[test]
fn a_dropped_subscription_is_not_granted_again() {
    let lives = subscriptions(30);
    let run = Run::of(&lives);
    assert!(
        !run.account.state.subscriptions.keys().any(|id| id.as_str() == "sub_0"),
        "sub_0 was not dropped"
    );
    // The oldest events are sent again, or reconciliation reads the objects, with and without the end.
    let (first, over) = (subscribed(0, P1), ended(0, P1 + 20 * DAY));
    for late in
        [first.clone(), first[1..].to_vec(), [over.clone(), first.clone()].concat(), [first, over].concat()]
    {
        let again = Run::of(&[lives.clone(), late].concat());
        assert_eq!(again.balance(), run.balance(), "{}", again.summary());
    }
}

/// A subscription with this id in the first period.
fn known(id: &str, price: &str, more: &Value) -> Step {
    sub("created", P1, patched(json!({"id": id, "items": items(&[(price, 1)], P1)}), more))
}

#[test]
fn the_highest_plan_gives_the_tier_until_its_latest_end() {
    let ends = |at: i64| json!({"cancel_at": at});
    let (none, soon, later) = (json!({}), ends(P1 + 5 * DAY), ends(P1 + 9 * DAY));
    let end = |at: i64| format!(" until {at}");
    for (what, subscriptions, tier) in [
        (
            "the higher one",
            [("sub_1", "price_business", &none), ("sub_2", "price_pro", &none)],
            "business".to_owned(),
        ),
        (
            "the higher one ends",
            [("sub_1", "price_business", &soon), ("sub_2", "price_pro", &none)],
            "business".to_owned() + &end(P1 + 5 * DAY),
        ),
        ("one of two ends", [("sub_1", "price_pro", &soon), ("sub_2", "price_pro", &none)], "pro".to_owned()),
        (
            "both end",
            [("sub_1", "price_pro", &soon), ("sub_2", "price_pro", &later)],
            "pro".to_owned() + &end(P1 + 9 * DAY),
        ),
    ] {
        let [(one, price, more), (two, other, less)] = subscriptions;
        check(
            what,
            vec![known(one, price, more), known(two, other, less)],
            &format!("{tier} 0 | sub_1=0 sub_2=0 | "),
        );
        // Stripe's ids decide which one comes first in the account.
        check(
            what,
            vec![known(two, price, more), known(one, other, less)],
            &format!("{tier} 0 | sub_1=0 sub_2=0 | "),
        );
    }
    let over = |at: i64| vec![known("sub_1", "price_pro", &soon), Step::At(at)];
    check(
        "a second before its end",
        over(P1 + 5 * DAY - 1),
        &format!("pro{} 0 | sub_1=0 | ", end(P1 + 5 * DAY)),
    );
    check("at its end", over(P1 + 5 * DAY), "free 0 | sub_1=0 | ");
}

#[test]
fn signup_credits_are_granted_once_and_not_after_a_paid_subscription() {
    let subscribed = || vec![paid(P1, "in_1", "subscription_create", "price_pro", P1), Step::Signup];
    check(
        "too late",
        subscribed(),
        "pro until 2593000 5000 | sub_1=5000 signup=0 | invoice#in_1 +5000, signup +0 superseded",
    );
    let catalog = Catalog::parse(include_str!("../../../../catalog.toml")).unwrap();
    let cause =
        Cause { by: "app".to_owned(), adjust_key: LedgerKey::signup(), created: Timestamp::from_unix(5) };
    let new = Account::new(UserId::new("u").unwrap());
    let once = new.after(&new.evolve(vec![Fact::Signup], &cause, &catalog, Timestamp::from_unix(5)).unwrap());
    // The account knows that they were granted, even if the entry was not read.
    let forgetful = Account { recorded: std::collections::BTreeMap::new(), ..once.clone() };
    let spent = forgetful
        .consume(Credits::new(500), LedgerKey::consume("k"), &catalog, Timestamp::from_unix(6))
        .unwrap();
    let twice = forgetful
        .after(&spent)
        .evolve(vec![Fact::Signup], &cause, &catalog, Timestamp::from_unix(7))
        .unwrap();
    assert_eq!(
        (twice.state.balance(&catalog.policy, Timestamp::from_unix(7)), once.version, once.state.created_at),
        (Credits::ZERO, 1, Timestamp::from_unix(5))
    );
    // An account of an older version has no time of creation, and gets none.
    let old = Account { version: 3, ..Account::new(UserId::new("u").unwrap()) };
    assert_eq!(
        old.evolve(Vec::new(), &cause, &catalog, Timestamp::from_unix(9)).unwrap().state.created_at,
        Timestamp::default()
    );
    let later = once.after(&once.evolve(Vec::new(), &cause, &catalog, Timestamp::from_unix(9)).unwrap());
    assert_eq!(
        (later.version, later.state.created_at),
        (2, Timestamp::from_unix(5)),
        "it was created when it was first written"
    );
}

#[test]
fn an_account_is_read_back_unchanged_and_absent_values_are_not_stored() {
    let packs = (0..10).map(|number| pack(P1 + number, &format!("cs_{number}")));
    let paused = sub(
        "paused",
        P1 + 500,
        json!({"id": "sub_2", "status": "paused", "items": items(&[("price_team", 3)], P1)}),
    );
    let single = sub("created", P1 + 500, json!({"id": "sub_3"}));
    let mut steps =
        vec![Step::KeepAddons, paid(P1, "in_1", "subscription_create", "price_pro", P1), paused, single];
    steps.extend(packs);
    steps.extend([
        changed(P1 + 60, ("price_pro", 1), ("price_business", 1), P1),
        changed(P1 + 70, ("price_business", 1), ("price_pro", 1), P1),
        changed(P2 + 60, ("price_pro", 1), ("price_team", 2), P2),
        refunded(P1 + 90, "pi_in_1", 500),
        invoice(
            "paid",
            P1 + 500,
            "in_2",
            "subscription_update",
            &[proration("price_pro", -700), line("price_business", 1, P1 + 500)],
            json!({}),
        ),
        Step::Spend(70),
    ]);
    let run = Run::of(&steps);
    let state = &run.account.state;
    let item = serde_json::to_value(state).unwrap();
    assert_eq!(&serde_json::from_value::<super::State>(item.clone()).unwrap(), state, "{item:#}");
    for entry in run.ledger.values() {
        assert_eq!(
            &serde_json::from_value::<crate::ledger::Entry>(serde_json::to_value(entry).unwrap()).unwrap(),
            entry
        );
    }
    let bought = |joined| {
        serde_json::to_value(Purchase {
            session: Some("cs_1".parse().unwrap()),
            invoice: None,
            payment: None,
            at: Timestamp::from_unix(7),
            outlives: std::collections::BTreeSet::new(),
            billed_with: std::collections::BTreeSet::new(),
            granted: Credits::new(9),
            plan: None,
            spent: Credits::ZERO,
            expires_days: 0,
            sold: 3,
            until: None,
            total: 500,
            joined,
            older: Vec::new(),
        })
        .unwrap()
    };
    let plain = json!({"session": "cs_1", "at": 7, "granted": 9, "sold": 3, "total": 500});
    let joined = json!({"session": "cs_1", "at": 7, "granted": 9, "sold": 3, "total": 500, "joined": true});
    assert_eq!((bought(false), bought(true)), (plain, joined));
    let expiring = Step::Edit("name = \"p1000\"\n", "name = \"p1000\"\nexpires_days = 9\n");
    let expiring = Run::of(&[expiring, pack(P1, "cs_1")]).account.state;
    let stored = serde_json::to_string(&expiring).unwrap();
    assert_eq!(serde_json::from_str::<super::State>(&stored).unwrap(), expiring, "{stored}");
    let plain =
        Run::of(&[sub("created", P1, json!({})), paid(P1, "in_1", "subscription_create", "price_pro", P1)])
            .account
            .state;
    // A customer that was not deleted is `null`.
    let plain = serde_json::to_string(&plain).unwrap().replace("\"cus_1\":null", "");
    for absent in ["spent", "refund", "false", "[]", "quantity", "null", "credited"] {
        assert!(!plain.contains(absent), "{absent}: {plain}");
    }
}

#[test]
fn purchases_are_kept_apart_up_to_the_maximum() {
    let packs = |count: i64| -> Vec<Step> {
        (0..count).map(|number| pack(P1 + number, &format!("cs_{number}"))).collect()
    };
    let most = i64::try_from(MAX_PURCHASES).unwrap();
    let lots = |steps: &[Step]| Run::of(steps).account.state.packs.len();
    assert_eq!(
        (lots(&packs(most)), lots(&packs(most + 1)), lots(&packs(most + 3))),
        (MAX_PURCHASES, MAX_PURCHASES, MAX_PURCHASES)
    );
    // A refund of a joined purchase takes what this purchase granted, before or after it was joined.
    for bought in [packs(most + 2), packs(most)] {
        let mut steps = [bought, vec![refunded(P1 + 50, "pi_cs_0", 1000)], packs(most + 2)].concat();
        steps.extend([refunded(P1 + 60, "pi_cs_0", 2000)]);
        let summary = Run::of(&steps).summary();
        assert!(summary.starts_with(&format!("free {} |", 1000 * (most + 1))), "{summary}");
    }
    let last = vec![refunded(P1 + 50, &format!("pi_cs_{}", most + 1), 2000)];
    let summary = Run::of(&[packs(most + 2), last].concat()).summary();
    assert!(summary.starts_with(&format!("free {} |", 1000 * (most + 1))), "{summary}");
    // What was spent before it was joined comes back to it.
    let spent = [packs(most), vec![Step::Spend(300)], packs(most + 2)].concat();
    let back = [spent, vec![Step::GiveBack(0, 300)]].concat();
    let summary = Run::of(&back).summary();
    assert!(summary.starts_with(&format!("free {} |", 1000 * (most + 2))), "{summary}");
    // A refund that failed after it was joined restores its credits.
    let pending = refund("created", P1 + 40, "pi_cs_0", "re_1", 2000, "succeeded");
    let failed = refund("failed", P1 + 50, "pi_cs_0", "re_1", 2000, "failed");
    let back = [packs(most), vec![pending], packs(most + 2), vec![failed]].concat();
    let summary = Run::of(&back).summary();
    assert!(summary.starts_with(&format!("free {} |", 1000 * (most + 2))), "{summary}");
    // A purchase without credits left is not listed.
    check(
        "spent",
        vec![pack(P1, "cs_1"), Step::Spend(1000)],
        "free 0 |  | session#cs_1 +1000, consume#1 -1000",
    );
}

/// The account keeps twelve packs without credits.
#[test]
fn a_refund_of_a_spent_pack_that_was_dropped_is_a_shortfall() {
    let bought = (0..14).flat_map(|number| [pack(P1 + number, &format!("cs_{number}")), Step::Spend(1000)]);
    let steps = bought.chain([refunded(P1 + DAY, "pi_cs_0", 500)]).collect::<Vec<_>>();
    let run = Run::of(&steps);
    let refund = run.ledger.values().find(|entry| entry.kind == EntryKind::Refund).unwrap();
    let seen = (refund.delta, refund.note, refund.shortfall.get());
    assert_eq!(seen, (0, Some(crate::ledger::Note::Shortfall), 250), "{}", run.summary());
}

#[test]
fn a_failed_refund_does_not_restore_credits_that_a_reset_has_ended() {
    let given = vec![
        pack(P1, "cs_1"),
        refund("created", P1 + 10, "pi_cs_1", "re_1", 2000, "succeeded"),
        paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
        refund("failed", P2 + 10, "pi_cs_1", "re_1", 2000, "failed"),
    ];
    let summary =
        "session#cs_1 +1000, refund#re_1#succeeded -1000, invoice#in_2 +5000, refund#re_1#failed +0";
    let run = Run::of(&given).summary();
    assert!(run.starts_with(&format!("pro until 5185000 5000 | sub_1=5000 | {summary}")), "{run}");
}

#[test]
fn a_plan_change_that_arrives_after_its_period_changes_nothing() {
    let given = vec![
        paid(P1, "in_1", "subscription_create", "price_pro", P1),
        paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
        changed(P1 + DAY, ("price_pro", 1), ("price_business", 1), P1),
    ];
    let summary = "invoice#in_1 +5000, invoice#in_2 +0";
    check("late", given, &format!("pro 5000 | sub_1=5000 | {summary}"));
}

#[test]
fn an_order_records_what_was_paid_for_it() {
    let order = session("completed", P1, "cs_1", json!({"mode": "dfy", "plan": "starter"}), json!({}));
    let run = Run::of(&[order]);
    let entry = &run.ledger[&LedgerKey::from_text("session#cs_1")];
    assert_eq!(
        (entry.kind, entry.payment.as_ref().map(|payment| payment.amount), run.orders.len()),
        (EntryKind::Order, Some(2000), 1)
    );
}

#[test]
fn only_subscriptions_that_ended_long_ago_are_dropped_except_the_last_ten() {
    let lives = |number: i64| {
        vec![sub("created", P1, json!({"id": format!("sub_{number:02}")})), over(number, P1 + number * DAY)]
    };
    fn over(number: i64, at: i64) -> Step {
        sub("deleted", at, json!({"id": format!("sub_{number:02}"), "status": "canceled", "ended_at": at}))
    }
    let all: Vec<Step> = (0..14).flat_map(lives).collect();
    let left = |at: i64| {
        let run = Run::of(&[all.clone(), vec![Step::At(at), Step::Signup]].concat());
        run.account.state.subscriptions.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(left(P1 + 14 * DAY).len(), 14, "within sixty days");
    assert_eq!(left(P1 + 60 * DAY).len(), 14, "and on the sixtieth");
    assert_eq!(left(P1 + 61 * DAY).len(), 13);
    assert_eq!(
        (left(P1 + 400 * DAY).len(), left(P1 + 400 * DAY)[0].as_str()),
        (10, "sub_04"),
        "the last ten stay"
    );
}

/// The earlier payment counts, whichever arrives first. A refund of the other one takes nothing from it.
#[test]
fn a_refund_of_the_second_payment_of_a_period_takes_nothing() {
    let late = paid(P1 + 10, "in_1", "subscription_create", "price_pro", P1);
    let early = paid(P1, "in_0", "subscription_create", "price_pro", P1);
    for (invoice, left) in [("pi_in_1", 5000), ("pi_in_0", 2500)] {
        let back = refunded(P1 + 20, invoice, 1000);
        for steps in [
            [&late, &back, &early],
            [&early, &late, &back],
            [&late, &early, &back],
            [&back, &late, &early],
            [&early, &back, &late],
        ] {
            let run = Run::of(&steps.map(Clone::clone));
            assert_eq!(run.balance().get(), left, "{invoice}: {}", run.summary());
        }
    }
    let summary = Run::of(&[early, late]).summary();
    assert!(summary.ends_with("invoice#in_0 +5000, invoice#in_1 +0 superseded"), "{summary}");
}

/// The events do not say which of two states of one second is newer. The later one in the life of a
/// subscription counts, in any order and with any repetition.
#[test]
fn of_two_states_of_one_second_the_later_status_in_its_life_counts() {
    let state = |status: &str, more: &Value| sub("created", P1 + 5, patched(json!({"status": status}), more));
    let summary = |steps: &[Step]| Subscription::clone(&Run::of(steps).account.state.subscriptions["sub_1"]);
    let order = [
        "incomplete",
        "trialing",
        "active",
        "unknown_status",
        "past_due",
        "unpaid",
        "paused",
        "incomplete_expired",
        "canceled",
    ];
    for pair in order.windows(2) {
        let (nearer, further) = (state(pair[0], &json!({})), state(pair[1], &json!({})));
        for steps in [vec![nearer.clone(), further.clone()], vec![further, nearer]] {
            assert_eq!(summary(&steps).snapshot.unwrap().status.as_str(), pair[1], "{pair:?}");
        }
    }
    let ends = |at: i64| {
        state(
            "active",
            &json!({"items": {"data": [{"price": {"id": "price_pro"}, "current_period_start": P1,
                "current_period_end": at}]}}),
        )
    };
    for steps in [vec![ends(P2), ends(P2 + DAY)], vec![ends(P2 + DAY), ends(P2)]] {
        let end = summary(&steps).snapshot.unwrap().items[0].end;
        assert_eq!(end, Some(Timestamp::from_unix(P2 + DAY)), "the later end");
    }
    let many: Vec<Step> = (0..12).map(|number| state("active", &json!({"cancel_at": P2 + number}))).collect();
    assert_eq!(
        summary(&[&many[..2], &many[..2]].concat()),
        summary(&many[..2]),
        "a repetition changes nothing"
    );
    assert_eq!(summary(&many), summary(&[&many[..], &many[..]].concat()));
    let kept = serde_json::to_value(summary(&many)).unwrap();
    assert_eq!(kept["rivals"].as_array().map(Vec::len), Some(7), "eight of one second are kept");
    // The digest is stored, so later versions must compute the same one.
    assert_eq!(super::snapshot::digest("x"), 0x2d711642);
}

/// The account joins packs beyond 24.
#[test]
fn a_refund_of_a_joined_pack_takes_no_more_than_its_payment_granted() {
    let bought: Vec<Step> = (0..26).map(|number| pack(P1 + number, &format!("cs_{number}"))).collect();
    let balance = |more: Vec<Step>| {
        let run = Run::of(&[vec![Step::KeepAddons], bought.clone(), more].concat());
        (run.account.state.packs.len(), run.balance().get())
    };
    assert_eq!(balance(Vec::new()), (24, 26_000));
    let joined = balance(vec![refunded(P1 + 100, "pi_cs_2", 2000)]);
    assert_eq!(joined, (24, 25_000), "cs_2 also holds cs_0 and cs_1");
}

#[test]
fn joined_packs_end_at_the_later_of_their_ends() {
    let expiring = Step::Edit(
        "credits = 1000\nprices = [\"price_p1000\"]",
        "credits = 1000\nexpires_days = 10\nprices = [\"price_p1000\"]",
    );
    let bought: Vec<Step> = (0..25).map(|number| pack(P1 + number * 60, &format!("cs_{number}"))).collect();
    let at = |at: i64| Run::of(&[vec![expiring.clone()], bought.clone(), vec![Step::At(at)]].concat());
    let end = P1 + 60 + 10 * DAY;
    assert_eq!(at(end - 1).balance().get(), 25_000);
    assert_eq!(at(end).balance().get(), 23_000, "the first two have ended");
}

#[test]
fn of_too_many_packs_those_with_the_nearest_ends_are_joined() {
    let expiring = Step::Edit(
        "credits = 1000\nprices = [\"price_p1000\"]",
        "credits = 1000\nexpires_days = 100\nprices = [\"price_p1000\"]",
    );
    // One pack a day, and a second one on day 12.
    let mut bought: Vec<Step> = (0..24).map(|day| pack(P1 + day * DAY, &format!("cs_{day}"))).collect();
    bought.push(pack(P1 + 12 * DAY + 60, "cs_again"));
    let at = |at: i64| Run::of(&[vec![expiring.clone()], bought.clone(), vec![Step::At(at)]].concat());
    assert_eq!(at(P1 + 100 * DAY).balance().get(), 24_000, "the first one ended alone");
    assert_eq!(at(P1 + 112 * DAY).balance().get(), 13_000, "the two of day 12 have not ended");
    assert_eq!(at(P1 + 112 * DAY + 60).balance().get(), 11_000);
}
