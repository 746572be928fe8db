//! An imported balance: the credits that a user had in another system.

use std::collections::BTreeSet;

use super::random::{Dice, random_life};
use serde_json::{Value, json};

use super::shapes::{
    DAY, T, YEAR, bill, bill_with, end, flagged, item, line, month, once, reordered, seats, shows,
    shows_with, tie, times,
};
use super::{MONTH, Run, Step, pack, patched, refunded};
use crate::account::import::ImportedBalance;
use crate::account::{Cause, Fact};
use crate::credits::Credits;
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

/// The end of the first period.
const T2: i64 = T + MONTH;

fn import(as_of: i64, credits: u64) -> Step {
    Step::Import { as_of, credits, with_signup: false, invoices: Vec::new() }
}

/// The first period of `pro`.
fn first() -> [Step; 3] {
    [
        shows(T, "active", &[item("si_1", "price_pro", T, T2)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, T2)]),
        tie(T + 1, "in_1"),
    ]
}

/// The second.
fn second() -> [Step; 3] {
    [
        shows(T2, "active", &[item("si_1", "price_pro", T2, month(T2))]),
        bill(T2 + 1, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, T2, month(T2))]),
        tie(T2 + 1, "in_2"),
    ]
}

/// The paid invoices among the steps.
fn invoices(steps: &[Step]) -> Vec<Value> {
    let events =
        steps.iter().filter_map(|step| if let Step::Event(event) = step { Some(event) } else { None });
    events.filter(|event| event["type"] == "invoice.paid").cloned().collect()
}

/// Imports before, between and after the events, in several orders of them.
#[track_caller]
fn check_at_any_place(what: &str, as_of: i64, credits: u64, events: &[Step], last: i64, expect: &str) {
    let import = Step::Import { as_of, credits, with_signup: false, invoices: invoices(events) };
    for order in 0..8 {
        let events = reordered(events, order);
        for place in 0..=events.len() {
            let mut steps = events.clone();
            steps.insert(place, import.clone());
            steps.push(Step::At(last));
            let run = Run::of(&steps);
            assert_eq!(end(&run), expect, "{what}, order {order}, place {place}: {}", run.summary());
        }
    }
}

#[test]
fn of_an_imported_balance_the_running_plan_holds_at_most_its_own_credits() {
    let at = T + 5 * DAY;
    let check = |what: &str, credits: u64, expect: &str| {
        check_at_any_place(what, at, credits, &first(), at + 1, expect);
    };
    check("less than the plan", 1200, "pro 1200 | opening=0 si_1=1200");
    check("more than the plan", 7000, "pro 7000 | opening=2000 si_1=5000");
    check("nothing", 0, "pro 0 | opening=0 si_1=0");
    let renewed = [first(), second()].concat();
    for (credits, expect) in
        [(1200, "pro 5000 | opening=0 si_1=5000"), (7000, "pro 7000 | opening=2000 si_1=5000")]
    {
        check_at_any_place("a renewal ends the plan's part", at, credits, &renewed, T2 + 2, expect);
    }
}

#[test]
fn of_a_paid_year_the_month_that_ran_holds_a_part_of_the_balance() {
    let months = |k: u32| Timestamp::from_unix(T).plus_months(k).unix();
    let year = [
        Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n"),
        shows(T, "active", &[item("si_1", "price_pro_year", T, T + YEAR)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 20_000, T, T + YEAR)]),
        tie(T + 1, "in_1"),
    ];
    let check = |what: &str, as_of: i64, credits: u64, last: i64, expect: &str| {
        check_at_any_place(what, as_of, credits, &year, last, expect);
    };
    let at = months(1) + 5 * DAY;
    check("less than the month", at, 1200, at + DAY, "pro 1200 | opening=0 si_1=1200");
    check("the next month", at, 7000, months(3), "pro 7000 | opening=2000 si_1=5000");
    let start = months(1);
    check("as a month begins", start, 1200, start + DAY, "pro 5000 | opening=0 si_1=5000");
}

#[test]
fn of_an_imported_balance_a_running_trial_holds_at_most_its_own_credits() {
    let (at, ends) = (T + 5 * DAY, T + 14 * DAY);
    let trial = |status: &str, at: i64| shows(at, status, &[item("si_1", "price_pro", T, ends)]);
    let zero = bill(T, "in_1", "subscription_create", &[line("si_1", "price_pro", 0, T, ends)]);
    let begun = vec![trial("trialing", T), zero];
    check_at_any_place("less than the trial", at, 1200, &begun, at + 1, "pro 1200 | opening=0 si_1=1200");
    check_at_any_place("more", at, 3000, &begun, at + 1, "pro 3000 | opening=1000 si_1=2000");
    let paid = [
        shows(ends, "active", &[item("si_1", "price_pro", ends, month(ends))]),
        bill(ends + 1, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, ends, month(ends))]),
    ];
    let paid = [&begun[..], &paid].concat();
    check_at_any_place("then paid", at, 3000, &paid, ends + 2, "pro 6000 | opening=1000 si_1=5000");
    let cancelled = [&begun[..], &[trial("canceled", T + 9 * DAY)]].concat();
    let expect = "free 1000 | opening=1000 si_1=0";
    check_at_any_place("then cancelled", at, 3000, &cancelled, T + 9 * DAY + 1, expect);
    let cancelled = [&begun[..], &[trial("canceled", at)]].concat();
    let expect = "free 3000 | opening=3000 si_1=0";
    check_at_any_place("cancelled in the second of the balance", at, 3000, &cancelled, at + DAY, expect);
    // Only the user's first trial grants credits.
    let second = [item("si_2", "price_pro", T + DAY, ends)];
    let two = [&begun[..], &[shows_with(T + DAY, "trialing", &second, json!({"id": "sub_2"}))]].concat();
    check_at_any_place("two trials", at, 3000, &two, at + 1, "pro 3000 | opening=1000 si_1=2000 si_2=0");
}

#[test]
fn the_plan_of_a_subscription_that_had_ended_adds_nothing_to_the_balance() {
    let at = T + 5 * DAY;
    for (ended, expect) in [
        (at - DAY, "free 300 | opening=300 si_1=0"),
        (at, "free 300 | opening=300 si_1=0"),
        (at + 1, "free 300 | opening=0 si_1=300"),
    ] {
        let ended = shows(ended, "canceled", &[item("si_1", "price_pro", T, T2)]);
        let events = [&first()[..], &[ended]].concat();
        check_at_any_place("it ended", at, 300, &events, at + DAY, expect);
    }
    // Its year had months, and it ended in the first.
    let year = [
        Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n"),
        shows(T, "active", &[item("si_1", "price_pro_year", T, T + YEAR)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 20_000, T, T + YEAR)]),
        shows(T + DAY, "canceled", &[item("si_1", "price_pro_year", T, T + YEAR)]),
    ];
    let (at, expect) = (T + 70 * DAY, "free 300 | opening=300 si_1=0");
    check_at_any_place("a year of months", at, 300, &year, at + DAY, expect);
}

/// Invoices before 2025-03-31.basil may name no item.
#[test]
fn the_item_of_a_line_has_one_share_whether_a_snapshot_has_shown_it_or_not() {
    let unnamed = json!({"parent": {"subscription_item_details": {"subscription_item": null}}});
    let unnamed = patched(line("si_1", "price_pro", 2000, T, T2), &unnamed);
    let events = [
        shows(T, "active", &[item("si_1", "price_pro", T, T2)]),
        bill(T + 1, "in_1", "subscription_create", &[unnamed]),
    ];
    let (at, expect) = (T + 5 * DAY, "pro 7000 | opening=2000 si_1=5000");
    check_at_any_place("one item", at, 7000, &events, at + 1, expect);
}

#[test]
fn an_import_adds_each_invoice_that_was_dropped_once() {
    let boost = |start: i64| item("si_2", "price_boost", start, month(start));
    let yearly = item("si_1", "price_pro_year", T, T + YEAR);
    let boost_line = |start: i64| line("si_2", "price_boost", 500, start, month(start));
    let mut given = vec![
        shows(T, "active", &[yearly.clone(), boost(T)]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro_year", 20_000, T, T + YEAR), boost_line(T)],
        ),
    ];
    for (number, start) in [T2, month(T2)].into_iter().enumerate() {
        given.push(shows(start, "active", &[yearly.clone(), boost(start)]));
        given.push(bill(
            start + 1,
            &format!("in_{}", number + 2),
            "subscription_cycle",
            &[boost_line(start)],
        ));
    }
    let import =
        Step::Import { as_of: T + DAY, credits: 5400, with_signup: false, invoices: invoices(&given) };
    let run = Run::of(&[&given[..], &[import]].concat());
    assert!(run.import_read_invoices);
    assert_eq!(end(&run), "pro 5400 | opening=100 si_1=5000 si_2=300");
    let items = serde_json::to_value(&run.account.state.subscriptions["sub_1"].items).unwrap();
    let lines = |item: &str| items[item]["lines"].as_array().map(Vec::len);
    assert_eq!((lines("si_1"), lines("si_2")), (Some(1), Some(2)), "{items:#}");
}

#[test]
fn what_was_granted_before_an_import_counts_for_nothing() {
    let at = T + 5 * DAY;
    let with_pack = |bought: i64| [&first()[..], &[pack(bought, "cs_1")]].concat();
    check_at_any_place(
        "a pack of before",
        at,
        300,
        &with_pack(T + DAY),
        at + DAY,
        "pro 300 | opening=0 pack=0 si_1=300",
    );
    let renewed = [first(), second()].concat();
    let late = Step::Import { as_of: at, credits: 300, with_signup: false, invoices: invoices(&renewed) };
    let run = Run::of(&[&renewed[..], &[pack(T + DAY, "cs_1"), late]].concat());
    let expect = "pro 5000 | opening=0 pack=0 si_1=5000";
    assert_eq!(end(&run), expect, "a pack of before that arrives after a reset: {}", run.summary());
    check_at_any_place(
        "a pack of later",
        at,
        300,
        &with_pack(at + 5),
        at + DAY,
        "pro 1300 | opening=0 pack=1000 si_1=300",
    );
    let late = month(T2);
    let third =
        bill(late, "in_3", "subscription_cycle", &[line("si_1", "price_pro", 2000, late, month(late))]);
    let run = Run::of(&[&[import(at, 300)][..], &first(), &[third], &second()].concat());
    assert!(run.summary().contains("invoice#in_2 +0 superseded"), "granted later: {}", run.summary());
    let run = Run::of(&[import(at, 300), Step::Signup]);
    assert_eq!(run.summary(), "free 300 | signup=0 other=300 | import#b +300, signup +0 imported");
    let run = Run::of(&[Step::At(T), Step::Signup, Step::Grant(50), import(at, 300)]);
    assert_eq!(run.summary(), "free 300 | signup=0 other=300 | signup +500, fix#1 +50, import#b -250");
    let steps = [&[import(at, 300)], &first()[..]].concat();
    let entries = "import#b +300, invoice#in_1 +0 imported";
    assert!(Run::of(&steps).summary().contains(entries), "{}", Run::of(&steps).summary());
}

#[test]
fn a_change_of_plan_and_a_refund_count_by_their_time() {
    let at = T + 5 * DAY;
    let upgrade = |when: i64| {
        [
            &first()[..],
            &[
                shows(when, "active", &[item("si_1", "price_business", T, T2)]),
                bill(
                    when + 1,
                    "in_up",
                    "subscription_update",
                    &[flagged("si_1", "price_business", 6000, when, T2)],
                ),
                tie(when + 1, "in_up"),
            ],
        ]
        .concat()
    };
    let end = T + 9 * DAY;
    let before = "business 9000 | opening=0 si_1=9000";
    check_at_any_place("an upgrade of before", at, 9000, &upgrade(T + DAY), end, before);
    let later = "business 20000 | opening=0 si_1=20000";
    check_at_any_place("an upgrade of later", at, 900, &upgrade(at + DAY), end, later);
    let half = |when: i64| [&first()[..], &[refunded(when, "pi_in_1", 1000)]].concat();
    let before = "pro 2500 | opening=0 si_1=2500";
    check_at_any_place("a refund of before", at, 2500, &half(T + DAY), end, before);
    let later = "pro 1500 | opening=0 si_1=1500";
    check_at_any_place("a refund of later", at, 4000, &half(at + DAY), end, later);
}

#[test]
fn a_spend_of_before_the_import_is_not_counted_twice() {
    let at = T + 5 * DAY;
    for (spent_at, left) in [(at - DAY, 3000), (at + DAY, 2600)] {
        for import_first in [true, false] {
            let given = import(at, 3000);
            let mut steps = first().to_vec();
            if import_first && spent_at > at {
                steps.extend([given, Step::At(spent_at), Step::Spend(400)]);
            } else {
                steps.extend([Step::At(spent_at), Step::Spend(400), Step::At(at + 2 * DAY), given]);
            }
            let run = Run::of(&steps);
            assert_eq!(run.balance().get(), left, "{}", run.summary());
        }
    }
    // The plan arrives after a spend of the whole balance. What was spent of it does not come back.
    let steps = [&[import(at, 5400), Step::Spend(800)], &first()[..]].concat();
    let run = Run::of(&steps);
    assert_eq!(end(&run), "pro 4600 | opening=0 si_1=4600", "{}", run.summary());
    let run = Run::of(&[steps, second().to_vec()].concat());
    assert_eq!(end(&run), "pro 5000 | opening=0 si_1=5000", "{}", run.summary());
}

#[test]
fn a_spend_of_after_the_balance_is_taken_from_the_plan_it_was_taken_from() {
    let at = T + 5 * DAY;
    let spent = [Step::At(at + DAY), Step::Spend(400), Step::At(at + 2 * DAY), import(at, 7000)];
    let run = Run::of(&[&first()[..], &spent].concat());
    assert_eq!(end(&run), "pro 6600 | opening=2000 si_1=4600", "{}", run.summary());
    let both = [item("si_1", "price_pro", T, T2), item("si_2", "price_pro", T, T2)];
    let lines = ["si_1", "si_2"].map(|id| line(id, "price_pro", 2000, T, T2));
    let given = [shows(T, "active", &both), bill(T + 1, "in_1", "subscription_create", &lines)];
    let spent = [Step::At(at + DAY), Step::Spend(6000), Step::At(at + 2 * DAY), import(at, 10_000)];
    let run = Run::of(&[&given[..], &spent].concat());
    assert_eq!(end(&run), "pro 4000 | opening=0 si_1=0 si_2=4000", "{}", run.summary());
}

#[test]
fn a_spend_of_carried_credits_counts_by_the_time_at_which_they_were_carried_over() {
    let half = Step::Edit(
        "trial_credits = 2000\n",
        "trial_credits = 2000\nrollover = { percent = 50, max = 2000, periods = 1 }\n",
    );
    let given = [&[half][..], &first(), &second(), &[Step::At(T2 + 9 * DAY), Step::Spend(6000)]].concat();
    for (what, as_of, expect) in [
        ("carried over before the balance", T2 + 5 * DAY, "pro 1000 | opening=1000 si_1=0"),
        ("carried over later", T + 5 * DAY, "pro 3000 | carried:si_1=1000 opening=2000 si_1=0"),
        ("carried over in its second", T2, "pro 3000 | carried:si_1=1000 opening=2000 si_1=0"),
    ] {
        let run = Run::of(&[&given[..], &[import(as_of, 7000)]].concat());
        assert_eq!(end(&run), expect, "{what}: {}", run.summary());
    }
}

/// Each spend is made after the balance.
#[test]
fn what_a_later_spend_took_of_a_lot_of_before_is_taken_from_the_balance() {
    let at = T + 33 * DAY;
    let free = Step::Edit("[policy]\n", "[policy]\nfree_credits = 100\nfree_refill = \"month\"\n");
    let grant = |when: i64, credits: u64| [Step::At(when), Step::Grant(credits)];
    let grants = (0..20).flat_map(|number| grant(at + number * DAY, 1)).collect::<Vec<_>>();
    for (what, given, spent, left) in [
        ("a refill", vec![free, Step::At(T), Step::Signup], 40, 260),
        ("a grant, with another of later", [grant(T, 50), grant(at + DAY, 70)].concat(), 30, 340),
        ("a grant of the second of the balance", grant(at, 50).to_vec(), 20, 330),
        (
            "signup credits beside grants that were joined",
            [vec![Step::At(T), Step::Signup], grants].concat(),
            200,
            120,
        ),
    ] {
        let later = [Step::At(at + 40 * DAY), Step::Spend(spent)];
        let later = if what == "a refill" { [Step::At(at + DAY), Step::Spend(spent)] } else { later };
        let run = Run::of(&[&given[..], &later, &[import(at, 300)]].concat());
        assert_eq!(run.balance().get(), left, "{what}: {}", run.summary());
    }
}

#[test]
fn what_an_operator_revoked_after_the_balance_stays_revoked() {
    let at = T + 5 * DAY;
    for (revoked_at, left) in [(at - DAY, 3000), (at + DAY, 2600)] {
        let given = import(at, 3000);
        let revoke = [Step::At(revoked_at), Step::Revoke(400), Step::At(at + 2 * DAY)];
        let run = Run::of(&[&first()[..], &revoke, std::slice::from_ref(&given)].concat());
        assert_eq!(run.balance().get(), left, "{}", run.summary());
        if revoked_at > at {
            let run = Run::of(&[&first()[..], &[given], &revoke].concat());
            assert_eq!(run.balance().get(), left, "{}", run.summary());
        }
    }
}

#[test]
fn signup_credits_beside_the_balance_are_without_the_free_refills_of_before_it() {
    let free = Step::Edit("[policy]\n", "[policy]\nfree_credits = 100\nfree_refill = \"month\"\n");
    let beside = |as_of: i64| Step::Import { as_of, credits: 300, with_signup: true, invoices: Vec::new() };
    let ran = |days: i64| {
        let as_of = T + days * DAY;
        Run::of(&[free.clone(), Step::At(T), Step::Signup, beside(as_of), Step::At(as_of + DAY)])
    };
    assert_eq!(ran(5).balance().get(), 300 + 500, "{}", ran(5).summary());
    // A refill has replaced the signup credits, and the balance includes it.
    assert_eq!(ran(40).balance().get(), 300, "{}", ran(40).summary());
    let later = [free.clone(), Step::At(T), Step::Signup, beside(T + 40 * DAY), Step::At(T + 70 * DAY)];
    let later = Run::of(&later);
    assert_eq!(later.balance().get(), 300 + 100, "{}", later.summary());
}

#[test]
fn the_same_import_with_another_number_is_a_conflict() {
    let run = Run::of(&[import(T, 300)]);
    let again = |batch: &str, credits: u64| {
        let balance = ImportedBalance {
            batch: batch.to_owned(),
            as_of: Timestamp::from_unix(T),
            credits: Credits::new(credits),
            with_signup: false,
            plan: None,
            spent_since: Vec::new(),
            entries_since: BTreeSet::new(),
            documents: None,
        };
        let key = LedgerKey::import(batch);
        let cause = Cause { by: "admin:ann".to_owned(), adjust_key: key.adjusted(), created: run.now };
        let account = run.loaded(&[key]);
        let facts = vec![Fact::Imported(Box::new(balance))];
        account.evolve(facts, &cause, &run.catalog, run.now).map(|change| change.entries.len())
    };
    assert_eq!(again("b", 300).ok(), Some(0));
    let conflict = again("b", 301).unwrap_err();
    let at = Timestamp::from_unix(T);
    assert_eq!(
        (conflict.key.as_str(), conflict.known, conflict.says),
        ("import#b", format!("300 credits at {at}"), format!("301 credits at {at}"))
    );
    assert!(again("c", 300).is_err());
}

#[test]
fn an_import_at_any_place_of_a_random_life_ends_alike() {
    let monthly = [
        Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n"),
        Step::Edit("credits = 300\n", "credits = 300\nrollover = { percent = 90, max = 90000 }\n"),
    ];
    let mut compared = 0;
    for seed in 0..20 {
        let mut dice = Dice::of(seed);
        let (length, edits) = if seed % 3 == 2 { (4 * MONTH, &monthly[..]) } else { (MONTH, &[][..]) };
        let events = random_life(seed, length);
        let as_of = T + dice.below(2 * length) + 3;
        let credits = u64::try_from(dice.below(4) * 2500).unwrap();
        let with_signup = seed % 2 == 1;
        let import = Step::Import { as_of, credits, with_signup, invoices: invoices(&events) };
        let settings = [&[Step::KeepAddons][..], edits].concat();
        let played = |order: u64, place: usize| {
            let mut steps = reordered(&events, order);
            steps.insert(place.min(steps.len()), import.clone());
            Run::of(&[settings.clone(), steps, vec![Step::At(T + 700 * DAY)]].concat())
        };
        let first = played(0, 0);
        for order in 0..5 {
            for place in [0, events.len() / 3, 2 * events.len() / 3, 2 * events.len()] {
                let run = played(order, place);
                // The account has dropped the period. Of its refunds and plan changes, the invoices show only
                // those that were billed.
                if run.import_read_invoices {
                    continue;
                }
                compared += 1;
                let both = || format!("{}\n{}", first.summary(), run.summary());
                assert_eq!(end(&run), end(&first), "life {seed}, order {order}, place {place}\n{}", both());
            }
        }
    }
    assert!(compared > 200, "{compared} of 400 runs");
}

/// One seat becomes ten, which is paid, before the balance of 10,000; then the seats change so often that the
/// item drops facts.
#[test]
fn many_changes_after_an_import_do_not_drop_what_it_was_computed_from() {
    let team = |quantity: u64, start: i64, end: i64| seats("si_1", "price_team", quantity, start, end);
    let paid = times(10, flagged("si_1", "price_team", 6300, T + DAY, T2));
    let before = vec![
        shows(T, "active", &[team(1, T, T2)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_team", 700, T, T2)]),
        tie(T + 1, "in_1"),
        shows(T + DAY, "active", &[team(10, T, T2)]),
        bill(T + DAY + 1, "in_up", "subscription_update", &[paid]),
        import(T + 5 * DAY, 10_000),
    ];
    let at = |change: i64| T + 5 * DAY + change * 3600;
    let shown =
        (1..=40).map(|change| shows(at(change), "active", &[team(10 + u64::from(change % 2 == 1), T, T2)]));
    let charged = (1..=40).map(|change| {
        let charge = times(10, flagged("si_1", "price_team", 10, at(change), T2));
        bill(at(change) + 1, &format!("in_c{change}"), "subscription_update", &[charge])
    });
    let next = month(T2);
    let renewal = vec![
        shows(T2, "active", &[team(10, T2, next)]),
        bill(T2 + 1, "in_2", "subscription_cycle", &[times(10, line("si_1", "price_team", 7000, T2, next))]),
        Step::At(T2 + 10),
    ];
    let on_payment = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");
    let lives = [
        [before.clone(), shown.collect(), renewal.clone()].concat(),
        [vec![on_payment], before, charged.collect(), renewal].concat(),
    ];
    for life in lives {
        let run = Run::of(&life);
        assert_eq!(run.balance().get(), 10_000, "{}", run.summary());
    }
}

/// The account keeps at most 24 packs apart. A joined one holds credits from before and after the balance.
#[test]
fn packs_that_were_joined_count_by_the_time_at_which_each_was_bought() {
    let at = T + 100 * DAY;
    for (before, after) in [(30, 0), (30, 1), (30, 26), (1, 30), (0, 30)] {
        let old = (0..before).map(|number| pack(T + number * DAY, &format!("cs_a{number}")));
        let new = (0..after).map(|number| pack(at + number * DAY, &format!("cs_b{number}")));
        let last = at + 40 * DAY;
        let bought: Vec<Step> = old.chain(new).collect();
        for order in 0..4 {
            let bought = if order == 0 { bought.clone() } else { reordered(&bought, order) };
            let steps = [bought, vec![Step::At(last), import(at, 300)]].concat();
            let run = Run::of(&[vec![Step::KeepAddons], steps].concat());
            let expect = 300 + 1000 * u64::try_from(after).unwrap();
            assert_eq!(run.balance().get(), expect, "{before} {after} {order}: {}", run.summary());
        }
    }
}

/// 20 packs of before the balance and 10 of later. The first 5 of them are spent before the balance.
#[test]
fn spends_of_joined_packs_count_by_the_time_of_the_balance() {
    let at = T + 100 * DAY;
    for (spent_before, spent_after, left) in
        [(5_500, 0, 24_500), (5_500, 200, 24_300), (5_500, 14_600, 9_900), (5_500, 20_000, 4_500)]
    {
        let old = (0..20).map(|number| pack(T + number * DAY, &format!("cs_a{number}")));
        let new = (0..10).map(|number| pack(at + number * DAY, &format!("cs_b{number}")));
        let steps = [
            vec![Step::KeepAddons],
            old.collect(),
            vec![Step::At(at - DAY), Step::Spend(spent_before)],
            new.collect(),
            vec![Step::At(at + 40 * DAY), Step::Spend(spent_after), import(at, 20_000 - spent_before)],
        ]
        .concat();
        let run = Run::of(&steps);
        assert_eq!(run.balance().get(), left, "{spent_after}: {}", run.summary());
    }
}

#[test]
fn a_grant_of_later_that_was_spent_before_the_import_takes_nothing_of_the_balance() {
    let at = T + 5 * DAY;
    for (granted_at, left) in [(at - DAY, 250), (at + DAY, 300)] {
        let grant = [Step::At(granted_at), Step::Grant(50)];
        // The second spend takes nothing, and the account drops the empty grant.
        let spent = [Step::At(at + 2 * DAY), Step::Spend(50), Step::Spend(0)];
        let steps = [&grant[..], &spent, &[import(at, 300)]].concat();
        let run = Run::of(&steps);
        assert_eq!(run.balance().get(), left, "{}", run.summary());
    }
}

/// The account keeps at most 16 grants by hand apart. 20 of before the balance and 10 of later, of 100 each.
#[test]
fn joined_grants_by_hand_count_by_the_time_at_which_each_was_given() {
    let at = T + 100 * DAY;
    let give = |time: i64| [Step::At(time), Step::Grant(100)];
    for (spent_before, spent_after, left) in
        [(0, 0, 3000), (550, 0, 2450), (550, 1460, 990), (550, 2000, 450)]
    {
        let steps = [
            (0..20).flat_map(|number| give(T + number * DAY)).collect(),
            vec![Step::At(at - DAY), Step::Spend(spent_before)],
            (0..10).flat_map(|number| give(at + number * DAY)).collect(),
            vec![Step::At(at + 40 * DAY), Step::Spend(spent_after), import(at, 2000 - spent_before)],
        ]
        .concat();
        let run = Run::of(&steps);
        assert_eq!(run.balance().get(), left, "{spent_before} {spent_after}: {}", run.summary());
    }
}

/// One lot joins lots of before the balance with later ones, of which the first has its second. Of what is spent of
/// it, the credits of before come first.
#[test]
fn a_joined_lot_of_before_and_after_the_balance_is_counted_by_its_parts() {
    let at = T + 100 * DAY;
    let times =
        |before: i64| (0..before).map(|day| T + day * DAY).chain((0..24).map(move |day| at + day * DAY));
    let packs = |before: i64| -> Vec<Step> {
        times(before).enumerate().map(|(number, at)| pack(at, &format!("cs_{number}"))).collect()
    };
    let grants = || -> Vec<Step> { times(2).flat_map(|at| [Step::At(at), Step::Grant(100)]).collect() };
    for (what, given, spent, expect) in [
        ("packs", packs(2), 0, 9000 + 24_000),
        ("packs, spent", packs(2), 2500, 7000 + 23_500),
        ("packs, of which the newest is of the second", packs(1), 1500, 8000 + 23_500),
        ("grants", grants(), 0, 9000 + 2400),
        ("grants, spent", grants(), 250, 8800 + 2350),
    ] {
        let later = [Step::At(at + 40 * DAY), Step::Spend(spent), import(at, 9000)];
        let run = Run::of(&[&[Step::KeepAddons], &given[..], &later].concat());
        assert_eq!(run.balance().get(), expect, "{what}: {}", run.summary());
    }
}

/// A balance of another system includes what was granted before it, less what was spent before it.
#[test]
fn what_a_spend_gives_back_counts_by_the_time_of_the_spend() {
    let at = T + 5 * DAY;
    for (lot, granted) in [
        ("a grant", vec![Step::At(T), Step::Grant(100)]),
        ("signup credits", vec![Step::At(T), Step::Signup]),
        ("a pack", vec![pack(T, "cs_1")]),
        ("a month of a plan", first().to_vec()),
    ] {
        for amount in [100, 60] {
            let spent = |when: i64| [&granted[..], &[Step::At(when), Step::Spend(amount)]].concat();
            let back = [Step::At(at + 3 * DAY), Step::GiveBack(0, amount)];
            let late = [Step::At(at + 2 * DAY), import(at, 300)];
            let before = Run::of(&[&spent(T + DAY)[..], &late, &back].concat());
            assert_eq!(before.balance().get(), 300, "{lot}, spent before: {}", before.summary());
            let after = spent(at + DAY);
            let first = Run::of(&[&after[..], &back, &late].concat());
            assert_eq!(first.balance().get(), 300, "{lot}, given back first: {}", first.summary());
            let last = Run::of(&[&after[..], &late, &back].concat());
            assert_eq!(last.balance().get(), 300, "{lot}, given back last: {}", last.summary());
        }
    }
    // Two spends of one slice, before and after the balance: only the later one comes back.
    let spends = [Step::At(T + DAY), Step::Spend(10), Step::At(at + DAY), Step::Spend(20)];
    let late = [Step::At(at + 2 * DAY), import(at, 300), Step::GiveBack(0, 10)];
    let run = Run::of(&[&first()[..], &spends, &late].concat());
    assert_eq!(run.balance().get(), 280, "{}", run.summary());
}

#[test]
fn a_grant_that_comes_back_counts_from_the_time_at_which_it_was_given() {
    let steps = [Step::At(T), Step::Grant(100), Step::Spend(100), Step::At(T + DAY), Step::Grant(30)];
    let run = Run::of(&[&steps[..], &[Step::At(T + 2 * DAY), Step::GiveBack(0, 100)]].concat());
    let grants: Vec<_> =
        run.account.state.grants.iter().map(|one| (one.since.unix(), one.left.get())).collect();
    assert_eq!(grants, [(T, 100), (T + DAY, 30)], "the older one is spent first, as before");
}

/// The balance is that of the moment before the second of `as_of`.
#[test]
fn what_is_bought_or_granted_in_the_second_of_the_balance_comes_on_top_of_it() {
    let at = T + 5 * DAY;
    let free = || Step::Edit("[policy]\n", "[policy]\nfree_credits = 100\nfree_refill = \"month\"\n");
    for (second, more) in [(at - 1, 0), (at, 1000), (at + 1, 1000)] {
        let run = Run::of(&[pack(second, "cs_1"), Step::At(at + DAY), import(at, 300)]);
        assert_eq!(run.balance().get(), 300 + more, "a pack at {}: {}", second - at, run.summary());
    }
    for (second, more) in [(at - 1, 0), (at, 50), (at + 1, 50)] {
        let run = Run::of(&[Step::At(second), Step::Grant(50), Step::At(at + DAY), import(at, 300)]);
        assert_eq!(run.balance().get(), 300 + more, "a grant at {}: {}", second - at, run.summary());
    }
    // A spend since then is taken from what comes on top of the balance. The first month after the signup
    // begins on day 31.
    for (given, as_of, more) in
        [(vec![pack(at, "cs_1")], at, 1000), (vec![free(), Step::At(T), Step::Signup], T + 31 * DAY, 100)]
    {
        let spent = [Step::At(as_of + DAY), Step::Spend(20), import(as_of, 300)];
        let run = Run::of(&[&given[..], &spent].concat());
        assert_eq!(run.balance().get(), 300 + more - 20, "{}", run.summary());
    }
    let signup = [free(), Step::At(T), Step::Signup, Step::At(T + 40 * DAY)];
    for (as_of, more) in [(T + 31 * DAY, 100), (T + 31 * DAY + 1, 0)] {
        let run = Run::of(&[&signup[..], &[import(as_of, 300)]].concat());
        assert_eq!(run.balance().get(), 300 + more, "a free refill: {}", run.summary());
    }
}

/// A grant by hand of after the balance is spent before the packs, of which the account has joined two.
#[test]
fn a_spend_counts_by_the_lot_that_it_took_from_beside_joined_packs() {
    let at = T + 100 * DAY;
    let packs = (0..25).map(|number| pack(T + number * DAY, &format!("cs_{number}")));
    let later = [Step::At(at + DAY), Step::Grant(50), Step::Spend(30), import(at, 300)];
    let run = Run::of(&[vec![Step::KeepAddons], packs.collect(), later.to_vec()].concat());
    assert_eq!(run.balance().get(), 320, "{}", run.summary());
}

/// A renewal has ended the pack before the import arrives.
#[test]
fn what_a_later_spend_took_of_a_pack_that_is_gone_is_taken_from_the_balance() {
    let at = T + 5 * DAY;
    let invoice = bill_with(T + DAY, "in_p", "manual", &[once("price_p1000", 900)], json!({"parent": null}));
    for bought in [pack(T + DAY, "cs_1"), invoice] {
        let spent = [bought, Step::At(at + DAY), Step::Spend(5500)];
        let steps = [&first()[..], &spent, &second()].concat();
        let import =
            Step::Import { as_of: at, credits: 7000, with_signup: false, invoices: invoices(&steps) };
        let run = Run::of(&[&steps[..], &[import]].concat());
        assert_eq!(end(&run), "pro 6500 | opening=1500 si_1=5000", "{}", run.summary());
    }
}

/// Eleven items are removed at once. After sixty days the account forgets the first of them.
#[test]
fn an_item_that_is_forgotten_keeps_its_share_of_the_balance() {
    let at = T + 5 * DAY;
    let boosts: Vec<String> = (0..11).map(|number| format!("si_b{number:02}")).collect();
    let all = |of: &dyn Fn(&str, &str) -> Value| -> Vec<Value> {
        let boosts = boosts.iter().map(|id| of(id, "price_boost"));
        std::iter::once(of("si_1", "price_pro")).chain(boosts).collect()
    };
    let items = all(&|id, price| item(id, price, T, T2));
    let given = [
        shows(T, "active", &items),
        bill(T + 1, "in_1", "subscription_create", &all(&|id, price| line(id, price, 500, T, T2))),
        import(at, 10_000),
        shows(at + DAY, "active", &items[..1]),
    ];
    let run = Run::of(&given);
    assert!(end(&run).starts_with("pro 10000 | opening=1700 si_1=5000"), "{}", run.summary());
    let renewed =
        |days: i64| Run::of(&[&given[..], &second(), &[Step::At(T + days * DAY), Step::Grant(1)]].concat());
    let items = renewed(90).account.state.subscriptions["sub_1"].items.len();
    assert_eq!(items, 12, "its period ended sixty days before, and no more");
    let run = renewed(91);
    assert_eq!(run.account.state.subscriptions["sub_1"].items.len(), 11, "one is forgotten");
    assert!(end(&run).contains(" opening=1700 "), "{}", run.summary());
}

#[test]
fn what_is_paid_or_carried_over_in_the_second_of_the_balance_is_no_part_of_it() {
    // The renewal refills a whole bucket, so it moves no credits.
    let run = Run::of(&[&first()[..], &[import(T2 + 1, 5000)], &second()].concat());
    let renewal = &run.ledger[&LedgerKey::from_text("invoice#in_2")];
    assert_eq!((renewal.delta, renewal.note), (0, None), "{}", run.summary());
    let half = Step::Edit(
        "trial_credits = 2000\n",
        "trial_credits = 2000\nrollover = { percent = 50, max = 2000, periods = 1 }\n",
    );
    for (as_of, expect) in
        [(T2, "pro 6500 | carried:si_1=1500 opening=0 si_1=5000"), (T2 + 2, "pro 3000 | opening=0 si_1=3000")]
    {
        let given = [std::slice::from_ref(&half), &first(), &second(), &[import(as_of, 3000)]].concat();
        assert_eq!(end(&Run::of(&given)), expect);
    }
}

/// The signup credits are beside the balance, and all other lots of before it are a part of it.
#[test]
fn a_spend_of_signup_credits_beside_the_balance_comes_back() {
    let at = T + 5 * DAY;
    let beside = Step::Import { as_of: at, credits: 300, with_signup: true, invoices: Vec::new() };
    for (granted, left, back) in [(Step::Signup, 700, 800), (Step::Grant(500), 300, 300)] {
        let given = [Step::At(T), granted, Step::Spend(100), Step::At(at + DAY), beside.clone()];
        assert_eq!(Run::of(&given).balance().get(), left);
        let run = Run::of(&[&given[..], &[Step::GiveBack(0, 100)]].concat());
        assert_eq!(run.balance().get(), back, "{}", run.summary());
    }
}

#[test]
fn a_joined_pack_of_before_the_balance_is_listed_with_what_it_granted() {
    let packs = (0..25).map(|number| pack(T + number * DAY, &format!("cs_{number}")));
    let later = [Step::At(T + 50 * DAY), import(T + 2 * DAY, 300)];
    let run = Run::of(&[vec![Step::KeepAddons], packs.collect(), later.to_vec()].concat());
    let buckets = run.account.state.buckets(&run.catalog.policy, run.now);
    let packs = buckets.lots.iter().filter(|one| matches!(one.lot, crate::account::Lot::Pack(_)));
    let listed: Vec<_> = packs.map(|one| (one.granted.get(), one.left.get())).take(2).collect();
    assert_eq!(listed, [(2000, 0), (1000, 1000)], "{}", run.summary());
}

/// What is paid, spent or begun in the second of the balance comes after it.
#[test]
fn in_the_second_of_the_balance_nothing_has_run_yet() {
    let balance = |steps: &[Step]| {
        let run = Run::of(steps);
        (run.balance().get(), run.summary())
    };
    let [shown, bill, tie] = first();
    let paid_then = [shown.clone(), bill.clone(), tie.clone(), import(T + 1, 300)];
    assert_eq!(balance(&paid_then).0, 5300, "{}", balance(&paid_then).1);
    let spent_since = [shown, bill, tie, Step::Spend(100), import(T, 300)];
    assert_eq!(balance(&spent_since).0, 5200, "{}", balance(&spent_since).1);
    let trial = shows(T, "trialing", &[item("si_1", "price_pro", T, T + 14 * DAY)]);
    assert_eq!(balance(&[trial.clone(), import(T, 300)]).0, 2300);
    assert_eq!(balance(&[trial, import(T + 1, 300)]).0, 300);
}

/// A pack of the second of the balance comes on top of it, and so does what a spend of it gives back. A product
/// of before has no credits that the balance could include.
#[test]
fn only_credits_of_before_the_balance_are_a_part_of_it() {
    let at = T + 5 * DAY;
    let spent = [pack(at, "cs_1"), Step::At(at + DAY), Step::Spend(100), import(at, 300)];
    let run = Run::of(&[&spent[..], &[Step::GiveBack(0, 100)]].concat());
    assert_eq!(run.balance().get(), 1300, "{}", run.summary());
    let products = Step::Edit(
        "[policy]\n",
        "[features]\nexport = \"switch\"\n[[product]]\nname = \"course\"\nfeatures = { export = true }\n\
         prices = [\"price_course\"]\n[policy]\n",
    );
    let billed = bill_with(T, "in_1", "manual", &[once("price_course", 500)], json!({"parent": null}));
    let run = Run::of(&[products, import(at, 300), billed]);
    assert_eq!(run.ledger[&LedgerKey::from_text("invoice#in_1")].note, None, "{}", run.summary());
}

/// The account has joined the first two packs. The older one was bought in the second of the balance.
#[test]
fn a_spend_of_a_joined_pack_of_the_second_of_the_balance_takes_nothing_of_it() {
    let at = T + 5 * DAY;
    let packs = (0..23).map(|day| pack(at + (day + 1) * DAY, &format!("cs_{day}")));
    let bought = [pack(at, "cs_a"), pack(at + 60, "cs_b")].into_iter().chain(packs);
    let later = [Step::At(at + 40 * DAY), Step::Spend(200), import(at, 300)];
    let run = Run::of(&[vec![Step::KeepAddons], bought.collect(), later.to_vec()].concat());
    assert_eq!(run.balance().get(), 300 + 25_000 - 200, "{}", run.summary());
}
