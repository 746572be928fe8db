//! Periods that are billed in advance (<https://docs.stripe.com/billing/subscriptions/prebilling>), and what
//! the invoices say that credit them again: a change of what is billed in advance is always prorated.

use serde_json::{Value, json};

use super::shapes::{
    DAY, T, YEAR, bill, bill_with, check_life, flagged, item, line, month, shows, tie, tie_by,
};
use super::{Run, Step, pack, refunded};

const ON_PAYMENT: Step = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");
/// When the first month ends, and the second one.
pub const NEXT: i64 = T + 30 * DAY;
pub const THIRD: i64 = NEXT + 30 * DAY;
/// Half way through the first month.
pub const HALF: i64 = T + 15 * DAY;

pub fn plan(price: &str, start: i64) -> Value {
    item("si_1", price, start, month(start))
}

/// A month of `business`, paid with `pi_in_1`.
pub fn opened() -> Vec<Step> {
    vec![
        shows(T, "active", &[plan("price_business", T)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_business", 10_000, T, NEXT)]),
        tie(T + 1, "in_1"),
    ]
}

/// The second month, paid in advance with `pi_in_2`.
pub fn advance() -> Vec<Step> {
    let lines = [line("si_1", "price_business", 10_000, NEXT, THIRD)];
    vec![bill(T + 9, "in_2", "subscription_update", &lines), tie(T + 9, "in_2")]
}

/// Credits the first month from `at` on, and the whole second month.
pub fn credits(at: i64) -> [Value; 2] {
    [
        flagged("si_1", "price_business", -5000, at, NEXT),
        flagged("si_1", "price_business", -10_000, NEXT, THIRD),
    ]
}

fn back(at: i64, payments: &[(&str, i64)]) -> Vec<Step> {
    payments.iter().map(|(payment, amount)| refunded(at, payment, *amount)).collect()
}

/// The invoice in advance is made in the first month and paid later, by bank debit, or made in the last hour
/// of that month. What is credited of the first month pays for the third one either way.
#[test]
fn an_invoice_in_advance_counts_from_when_it_was_made() {
    let end = month(THIRD);
    let renewal = [
        flagged("si_1", "price_business", -5000, HALF, NEXT),
        flagged("si_1", "price_pro", 500, HALF, NEXT),
        line("si_1", "price_pro", 1000, THIRD, end),
    ];
    let life = |made: i64, paid: i64, refunds: &[(&str, i64)]| {
        let lines = [line("si_1", "price_business", 10_000, NEXT, THIRD)];
        let rest = vec![
            shows(HALF, "active", &[plan("price_pro", T)]),
            bill_with(paid, "in_2", "subscription_update", &lines, json!({"created": made})),
            tie(paid, "in_2"),
            shows(NEXT, "active", &[plan("price_pro", NEXT)]),
            shows(THIRD, "active", &[plan("price_pro", THIRD)]),
            bill(THIRD + 1, "in_3", "subscription_cycle", &renewal),
            tie(THIRD + 1, "in_3"),
        ];
        [opened(), rest, back(THIRD + DAY, refunds)].concat()
    };
    for (what, made, paid) in [
        ("paid at once", T + 9, T + 10),
        ("paid in the second month", T + 9, NEXT + 5 * DAY),
        ("paid in the third month", T + 9, THIRD + 3600),
        ("made in the last hour", NEXT - 1800, NEXT - 1790),
    ] {
        for (refunds, left) in [
            (&[][..], 5000),
            (&[("pi_in_1", 5000)], 2500),
            (&[("pi_in_1", 10_000)], 0),
            (&[("pi_in_2", 10_000)], 5000),
        ] {
            check_life(what, &life(made, paid, refunds), &format!("pro {left} | si_1={left}"));
        }
    }
}

/// An invoice that is made up to a minute before its period is the one of the period's start.
#[test]
fn an_invoice_is_in_advance_if_it_is_made_more_than_a_minute_before_its_period() {
    for (before, in_advance) in [(0, false), (59, false), (60, false), (61, true), (3600, true)] {
        let lines = [line("si_1", "price_business", 10_000, NEXT, THIRD)];
        let run = Run::of(&[bill(NEXT - before, "in_2", "subscription_update", &lines)]);
        let item = serde_json::to_value(&run.account.state.subscriptions["sub_1"].items["si_1"]).unwrap();
        let made = item["lines"][0].get("made").and_then(Value::as_i64);
        assert_eq!(made, Some(NEXT - before).filter(|_| in_advance), "{before} seconds before");
    }
}

/// Two items are billed a month in advance. What one of them is credited of the first month waits for the
/// renewal of both after that and leaves nothing to pay: it pays for both.
#[test]
fn a_credit_that_waits_during_a_month_in_advance_pays_for_the_other_item() {
    let end = month(THIRD);
    let items =
        |price: &str, start: i64| [plan(price, start), item("si_2", "price_boost", start, month(start))];
    let both = |start: i64| {
        [
            line("si_1", "price_business", 10_000, start, month(start)),
            line("si_2", "price_boost", 500, start, month(start)),
        ]
    };
    let renewal = [
        flagged("si_1", "price_business", -5000, HALF, NEXT),
        flagged("si_1", "price_pro", 500, HALF, NEXT),
        line("si_1", "price_pro", 1000, THIRD, end),
        line("si_2", "price_boost", 500, THIRD, end),
    ];
    let life = |refunds: &[(&str, i64)]| {
        let events = vec![
            shows(T, "active", &items("price_business", T)),
            bill(T + 1, "in_1", "subscription_create", &both(T)),
            tie(T + 1, "in_1"),
            bill(T + 9, "in_2", "subscription_update", &both(NEXT)),
            tie(T + 9, "in_2"),
            shows(HALF, "active", &items("price_pro", T)),
            shows(NEXT, "active", &items("price_pro", NEXT)),
            shows(THIRD, "active", &items("price_pro", THIRD)),
            bill(THIRD + 1, "in_3", "subscription_cycle", &renewal),
        ];
        [events, back(THIRD + DAY, refunds)].concat()
    };
    check_life("nothing", &life(&[]), "pro 5300 | si_1=5000 si_2=300");
    check_life("the first", &life(&[("pi_in_1", 10_500)]), "pro 0 | si_1=0 si_2=0");
    check_life("the second", &life(&[("pi_in_2", 10_500)]), "pro 5300 | si_1=5000 si_2=300");
}

/// The interval or the anchor changes in the first month: one invoice credits the rest of it and the months
/// in advance, and opens a period now. The months in advance never begin, and their payments paid for the new
/// period.
#[test]
fn a_month_in_advance_never_begins_if_a_newer_invoice_bills_its_time() {
    let year = HALF + YEAR;
    let changed = |price: &str, amount: i64, end: i64| {
        let [first, second] = credits(HALF);
        vec![
            shows(HALF, "active", &[item("si_1", price, HALF, end)]),
            bill(
                HALF + 1,
                "in_3",
                "subscription_update",
                &[first, second, line("si_1", price, amount, HALF, end)],
            ),
            tie(HALF + 1, "in_3"),
        ]
    };
    let later = |price: &str, start: i64| {
        vec![shows(NEXT + DAY, "active", &[item("si_1", price, start, start)]), Step::At(NEXT + DAY)]
    };
    let to_year = || [opened(), advance(), changed("price_pro_year", 20_000, year)].concat();
    check_life("a year", &[to_year(), vec![Step::At(HALF + DAY)]].concat(), "pro 5000 | si_1=5000");
    check_life("a year, later", &[to_year(), later("price_pro_year", HALF)].concat(), "pro 5000 | si_1=5000");
    for (refunds, left) in [
        (&[("pi_in_2", 10_000)][..], 1250),
        (&[("pi_in_3", 5000)], 3750),
        (&[("pi_in_2", 10_000), ("pi_in_3", 5000)], 0),
    ] {
        let life = [to_year(), back(NEXT + DAY, refunds)].concat();
        check_life("a year, refunded", &life, &format!("pro {left} | si_1={left}"));
    }
    // The rest is credited to the customer's balance.
    let cheaper = || [opened(), advance(), changed("price_pro", 1000, month(HALF))].concat();
    check_life("a new anchor", &[cheaper(), later("price_pro", HALF)].concat(), "pro 5000 | si_1=5000");
    let refunds = back(NEXT + DAY, &[("pi_in_1", 10_000), ("pi_in_2", 10_000)]);
    check_life("a new anchor, refunded", &[cheaper(), refunds].concat(), "pro 0 | si_1=0");
}

/// Two years in advance, then a change to months. The first of these months is long over when the years would
/// begin.
#[test]
fn a_year_in_advance_that_is_credited_never_begins_also_after_many_months() {
    let (next, last) = (T + YEAR, T + 2 * YEAR);
    let mut given = vec![
        shows(T, "active", &[item("si_1", "price_pro_year", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 20_000, T, next)]),
        bill(T + 9, "in_2", "subscription_update", &[line("si_1", "price_pro_year", 20_000, next, last)]),
    ];
    let lines = [
        flagged("si_1", "price_pro_year", -19_000, HALF, next),
        flagged("si_1", "price_pro_year", -20_000, next, last),
        line("si_1", "price_business", 10_000, HALF, month(HALF)),
    ];
    given.push(shows(HALF, "active", &[plan("price_business", HALF)]));
    given.push(bill(HALF + 1, "in_3", "subscription_update", &lines));
    let mut start = HALF;
    for number in 4..17 {
        start = month(start);
        given.push(shows(start, "active", &[plan("price_business", start)]));
        let lines = [line("si_1", "price_business", 10_000, start, month(start))];
        given.push(bill(start + 1, &format!("in_{number}"), "subscription_cycle", &lines));
    }
    assert!(start > next + DAY);
    check_life("the year would run", &given, "business 20000 | si_1=20000");
}

/// The same if the subscription goes on for four months and then has no more invoices, as while its
/// collection is paused. By then the account has dropped the line of the invoice that credits the year. It
/// keeps the credit apart, so the year still does not begin.
#[test]
fn a_credit_of_a_year_in_advance_outlives_the_line_of_its_invoice() {
    let (next, last) = (T + YEAR, T + 2 * YEAR);
    let lines = [
        flagged("si_1", "price_pro_year", -19_000, HALF, next),
        flagged("si_1", "price_pro_year", -20_000, next, last),
        line("si_1", "price_business", 10_000, HALF, month(HALF)),
    ];
    let mut given = vec![
        shows(T, "active", &[item("si_1", "price_pro_year", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 20_000, T, next)]),
        bill(T + 9, "in_2", "subscription_update", &[line("si_1", "price_pro_year", 20_000, next, last)]),
        shows(HALF, "active", &[plan("price_business", HALF)]),
        bill(HALF + 1, "in_3", "subscription_update", &lines),
    ];
    for number in 4..8 {
        let start = HALF + (number - 3) * 30 * DAY;
        let lines = [line("si_1", "price_boost", 500, start, month(start))];
        given.push(shows(start, "active", &[plan("price_boost", start)]));
        given.push(bill(start + 1, &format!("in_{number}"), "subscription_cycle", &lines));
    }
    check_life("the year would run", &[given, vec![Step::At(next + DAY)]].concat(), "pro 300 | si_1=300");
}

/// A trial ends exactly where a month in advance would begin, so its invoice credits that month. The renewal
/// at the end of the trial bills it again: a void month does not take the renewal's place.
#[test]
fn a_renewal_begins_at_the_start_of_a_month_in_advance_that_was_credited() {
    let [first, second] = credits(HALF);
    let zero = [first, second, line("si_1", "price_business", 0, HALF, NEXT)];
    let renewal = [line("si_1", "price_business", 10_000, NEXT, THIRD)];
    let life = |renewed: bool, refunds: &[(&str, i64)]| {
        let mut events = vec![
            shows(HALF, "trialing", &[item("si_1", "price_business", HALF, NEXT)]),
            bill(HALF + 1, "in_3", "subscription_update", &zero),
            shows(NEXT, "active", &[plan("price_business", NEXT)]),
        ];
        if renewed {
            events.push(bill(NEXT + 3600, "in_4", "subscription_cycle", &renewal));
            events.push(tie(NEXT + 3600, "in_4"));
        }
        [opened(), advance(), events, back(NEXT + DAY, refunds)].concat()
    };
    check_life("renewed", &life(true, &[]), "business 20000 | si_1=20000");
    check_life("the renewal is refunded", &life(true, &[("pi_in_4", 5000)]), "business 10000 | si_1=10000");
    check_life("the month in advance", &life(true, &[("pi_in_2", 10_000)]), "business 20000 | si_1=20000");
}

/// A credit closes only what was billed before it and begins after its own period began: not a month that is
/// billed in advance later, not a month that has begun, and not one that begins when the newer invoice's
/// period ends.
#[test]
fn a_credit_leaves_months_in_advance_alone_that_it_does_not_credit() {
    // A new anchor; then the month after it is billed in advance, within the time that was credited.
    let anchor = |price: &str, amount: i64| {
        let [first, second] = credits(HALF);
        let lines = [first, second, line("si_1", price, amount, HALF, month(HALF))];
        vec![
            shows(HALF, "active", &[plan(price, HALF)]),
            bill(HALF + 1, "in_3", "subscription_update", &lines),
        ]
    };
    let again = [line("si_1", "price_business", 10_000, month(HALF), month(month(HALF)))];
    let again = bill(HALF + 5 * DAY, "in_4", "subscription_update", &again);
    let later = Step::At(month(HALF) + DAY);
    let life = [opened(), advance(), anchor("price_pro", 1000), vec![again, later]].concat();
    check_life("billed later", &life, "business 20000 | si_1=20000");
    // Two months in advance; in the first of them a new anchor, which is paid. What was spent of it is not
    // carried over.
    let (at, end) = (NEXT + 15 * DAY, month(THIRD));
    let both = [line("si_1", "price_pro", 1000, NEXT, THIRD), line("si_1", "price_pro", 1000, THIRD, end)];
    let lines = [
        flagged("si_1", "price_pro", -500, at, THIRD),
        flagged("si_1", "price_pro", -1000, THIRD, end),
        line("si_1", "price_business", 10_000, at, month(at)),
    ];
    let begun = vec![
        bill(T + 9, "in_2", "subscription_update", &both),
        shows(NEXT, "active", &[plan("price_pro", NEXT)]),
        Step::At(NEXT + DAY),
        Step::Spend(1000),
        shows(at, "active", &[plan("price_business", at)]),
        bill(at + 1, "in_3", "subscription_update", &lines),
    ];
    check_life("begun", &[opened(), begun].concat(), "business 20000 | si_1=20000");
    // The third month is billed in advance, and the second one at its start.
    let skipped = vec![
        bill(T + 9, "in_2", "subscription_update", &[line("si_1", "price_business", 10_000, THIRD, end)]),
        shows(NEXT, "active", &[plan("price_pro", NEXT)]),
        bill(NEXT + 1, "in_3", "subscription_cycle", &[line("si_1", "price_pro", 1000, NEXT, THIRD)]),
        shows(THIRD, "active", &[plan("price_business", THIRD)]),
    ];
    check_life("the month after the next", &[opened(), skipped].concat(), "business 20000 | si_1=20000");
    // A week takes the place of the rest of the first month: its credit ends where the second month begins.
    let lines = [
        flagged("si_1", "price_business", -5000, HALF, NEXT),
        line("si_1", "price_pro", 300, HALF, HALF + 7 * DAY),
    ];
    let week = vec![bill(HALF + 1, "in_3", "subscription_update", &lines), Step::At(NEXT + DAY)];
    check_life("a week", &[opened(), advance(), week].concat(), "business 20000 | si_1=20000");
}

/// A year takes the place of a month in advance; in that month the year is credited for a new anchor. The
/// payments of the year paid for the new month: its own, and through its credits the one in advance.
#[test]
fn a_credit_within_a_closed_month_is_one_of_the_period_that_runs() {
    let (year, at) = (HALF + YEAR, NEXT + DAY);
    let [first, second] = credits(HALF);
    let change = [first, second, line("si_1", "price_pro_year", 20_000, HALF, year)];
    let lines = [
        flagged("si_1", "price_pro_year", -15_000, at, year),
        line("si_1", "price_business", 10_000, at, month(at)),
    ];
    let life = |refunds: &[(&str, i64)]| {
        let events = vec![
            shows(HALF, "active", &[item("si_1", "price_pro_year", HALF, year)]),
            bill(HALF + 1, "in_3", "subscription_update", &change),
            tie(HALF + 1, "in_3"),
            shows(at, "active", &[plan("price_business", at)]),
            bill(at + 1, "in_4", "subscription_update", &lines),
        ];
        [opened(), advance(), events, back(at + DAY, refunds)].concat()
    };
    for (refunds, left) in [
        (&[][..], 20_000),
        (&[("pi_in_2", 10_000)], 5000),
        (&[("pi_in_3", 5000)], 15_000),
        (&[("pi_in_2", 10_000), ("pi_in_3", 5000)], 0),
    ] {
        check_life("a new anchor", &life(refunds), &format!("business {left} | si_1={left}"));
    }
}

/// Of an item that is removed, or whose subscription ends, no month begins that was paid in advance. The
/// payment in advance pays for what its credit pays for.
#[test]
fn no_month_in_advance_begins_after_the_end_of_its_item() {
    let year = T + YEAR;
    let beside = || item("si_2", "price_pro_year", T, year);
    let started = || {
        let first = [
            line("si_1", "price_business", 10_000, T, NEXT),
            line("si_2", "price_pro_year", 20_000, T, year),
        ];
        let events = vec![
            shows(T, "active", &[plan("price_business", T), beside()]),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
        ];
        [events, advance()].concat()
    };
    let removed = shows(HALF, "active", &[beside()]);
    let credited = bill(HALF + 1, "in_3", "subscription_update", &credits(HALF));
    let later = Step::At(NEXT + DAY);
    let life = |rest: &[Step]| [started(), rest.to_vec()].concat();
    check_life("as it is", &life(std::slice::from_ref(&later)), "business 25000 | si_1=20000 si_2=5000");
    let spent = [Step::Spend(12_000), removed.clone(), credited.clone(), later.clone()];
    check_life(
        "removed",
        &life(&[removed.clone(), credited.clone(), later.clone()]),
        "pro 25000 | si_1=20000 si_2=5000",
    );
    check_life("spent, then removed", &life(&spent), "pro 13000 | si_1=8000 si_2=5000");
    check_life("only shown", &life(&[removed, later.clone()]), "pro 25000 | si_1=20000 si_2=5000");
    let ended = shows(HALF, "canceled", &[plan("price_business", T)]);
    let life = [opened(), advance(), vec![Step::Spend(12_000), ended, later]].concat();
    check_life("cancelled", &life, "free 8000 | si_1=8000");
}

/// An invoice that arrives only after the month in advance has begun: what was spent of that month was spent
/// of the year, and packs from before it are there again.
#[test]
fn a_month_in_advance_that_began_by_mistake_gives_its_spends_and_packs_back() {
    let year = HALF + YEAR;
    let [first, second] = credits(HALF);
    let lines = [first, second, line("si_1", "price_pro_year", 20_000, HALF, year)];
    let change = vec![
        shows(HALF, "active", &[item("si_1", "price_pro_year", HALF, year)]),
        bill(HALF + 1, "in_3", "subscription_update", &lines),
    ];
    let begun = [opened(), advance(), vec![pack(HALF + DAY, "cs_1"), Step::At(NEXT + DAY)]].concat();
    check_life("as it seemed", &begun, "business 20000 | si_1=20000");
    let life = [begun, vec![Step::Spend(1500)], change.clone(), vec![Step::At(NEXT + DAY)]].concat();
    for (what, policy, left) in [("at once", vec![], 3500), ("on payment", vec![ON_PAYMENT], 3500)] {
        let life = [policy, life.clone()].concat();
        check_life(what, &life, &format!("pro {} | pack=1000 si_1={left}", left + 1000));
    }
}

/// An item is changed and then removed, or swapped, in one month. Both wait for the renewal, which leaves
/// nothing to pay: the first payment paid for what is renewed. Stripe bills both changes as prorations
/// (<https://docs.stripe.com/billing/subscriptions/prorations>).
#[test]
fn the_credit_of_an_item_that_was_changed_and_then_removed_pays_for_the_others() {
    let (at, end) = (T + 20 * DAY, month(NEXT));
    let other = |start: i64| item("si_2", "price_pro", start, month(start));
    let first = [line("si_1", "price_pro", 9000, T, NEXT), line("si_2", "price_pro", 1000, T, NEXT)];
    let changes = || {
        vec![
            flagged("si_1", "price_pro", -4500, HALF, NEXT),
            flagged("si_1", "price_business", 6000, HALF, NEXT),
            flagged("si_1", "price_business", -4000, at, NEXT),
        ]
    };
    let life = |lines: Vec<Value>, came: &[Value], refunds: &[(&str, i64)]| {
        let mut events = vec![
            shows(T, "active", &[plan("price_pro", T), other(T)]),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
            shows(HALF, "active", &[plan("price_business", T), other(T)]),
            shows(at, "active", &[&[other(T)], came].concat()),
            bill(NEXT + 1, "in_2", "subscription_cycle", &lines),
        ];
        let renewed = came.iter().map(|one| item(one["id"].as_str().unwrap(), "price_boost", NEXT, end));
        events.push(shows(NEXT, "active", &[other(NEXT)].into_iter().chain(renewed).collect::<Vec<_>>()));
        [events, back(NEXT + DAY, refunds)].concat()
    };
    let removed = [changes(), vec![line("si_2", "price_pro", 1000, NEXT, end)]].concat();
    for (refunds, left) in [(&[][..], 5000), (&[("pi_in_1", 5000)], 2500), (&[("pi_in_1", 10_000)], 0)] {
        check_life(
            "removed",
            &life(removed.clone(), &[], refunds),
            &format!("pro {left} | si_1=0 si_2={left}"),
        );
    }
    let came = [item("si_3", "price_boost", T, NEXT)];
    let swapped = [
        changes(),
        vec![
            flagged("si_3", "price_boost", 200, at, NEXT),
            line("si_2", "price_pro", 1000, NEXT, end),
            line("si_3", "price_boost", 500, NEXT, end),
        ],
    ]
    .concat();
    check_life("swapped", &life(swapped.clone(), &came, &[]), "pro 5300 | si_1=0 si_2=5000 si_3=300");
    let refunds = [("pi_in_1", 10_000)];
    check_life("swapped, refunded", &life(swapped, &came, &refunds), "pro 0 | si_1=0 si_2=0 si_3=0");
}

/// A year's item is changed to a plan that costs less; the credit leaves nothing to pay for the month of
/// another item, which ends within the credited year.
#[test]
fn a_credit_that_outlasts_the_charged_period_pays_for_it() {
    let (year, at) = (T + YEAR, T + 20 * DAY);
    let items = |price: &str, start: i64| {
        [item("si_1", price, T, year), item("si_2", "price_boost", start, month(start))]
    };
    let first = [line("si_1", "price_business", 100_000, T, year), line("si_2", "price_boost", 500, T, NEXT)];
    let renewal = [
        flagged("si_1", "price_business", -94_000, at, year),
        flagged("si_1", "price_pro_year", 18_000, at, year),
        line("si_2", "price_boost", 500, NEXT, THIRD),
    ];
    let life = |refunds: &[(&str, i64)]| {
        let events = vec![
            shows(T, "active", &items("price_business", T)),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
            shows(at, "active", &items("price_pro_year", T)),
            shows(NEXT, "active", &items("price_pro_year", NEXT)),
            bill(NEXT + 1, "in_2", "subscription_cycle", &renewal),
        ];
        [events, back(NEXT + DAY, refunds)].concat()
    };
    check_life("nothing", &life(&[]), "pro 5300 | si_1=5000 si_2=300");
    check_life("the first", &life(&[("pi_in_1", 100_500)]), "pro 0 | si_1=0 si_2=0");
}

/// An item is added and its proration waits; ten days later another item is downgraded, and one invoice bills
/// both. The charge that waited starts before the credit, and both end with the month.
#[test]
fn a_credit_pays_for_a_charge_that_waited_since_before_it() {
    let (at, added) = (T + 15 * DAY, T + 5 * DAY);
    let items = |price: &str| [plan(price, T), item("si_2", "price_boost", T, NEXT)];
    let lines = [
        flagged("si_2", "price_boost", 400, added, NEXT),
        flagged("si_1", "price_business", -5000, at, NEXT),
        flagged("si_1", "price_pro", 500, at, NEXT),
    ];
    let life = |refunds: &[(&str, i64)]| {
        let events = vec![
            shows(added, "active", &items("price_business")),
            shows(at, "active", &items("price_pro")),
            bill(at + 1, "in_2", "subscription_update", &lines),
        ];
        [opened(), events, back(at + DAY, refunds)].concat()
    };
    check_life("nothing", &life(&[]), "pro 5300 | si_1=5000 si_2=300");
    check_life("the first", &life(&[("pi_in_1", 10_000)]), "pro 0 | si_1=0 si_2=0");
}

/// Four months are billed in advance, then downgraded; the credits wait for the invoice of another item,
/// whose period is longer than the running month and ends before the last month in advance.
#[test]
fn credits_for_several_months_in_advance_pay_for_a_longer_period() {
    let starts: Vec<i64> = (0..6).map(|month| T + month * 30 * DAY).collect();
    let months = |price: &'static str, from: usize| {
        starts[from..5].iter().map(move |start| line("si_1", price, 10_000, *start, month(*start)))
    };
    let long = |start: i64| item("si_2", "price_boost", start, start + 92 * DAY);
    let (at, added) = (T + 5 * DAY, T + 10 * DAY);
    let mut lines = vec![
        flagged("si_1", "price_business", -8000, at, NEXT),
        flagged("si_1", "price_pro", 800, at, NEXT),
        line("si_2", "price_boost", 5000, added, added + 92 * DAY),
    ];
    for start in &starts[1..5] {
        lines.push(flagged("si_1", "price_business", -10_000, *start, month(*start)));
        lines.push(flagged("si_1", "price_pro", 1000, *start, month(*start)));
    }
    let life = |refunds: &[(&str, i64)]| {
        let events = vec![
            shows(T, "active", &[plan("price_business", T)]),
            bill(T + 1, "in_1", "subscription_create", &months("price_business", 0).collect::<Vec<_>>()),
            tie(T + 1, "in_1"),
            shows(at, "active", &[plan("price_pro", T)]),
            shows(added, "active", &[plan("price_pro", T), long(added)]),
            bill(added + 1, "in_2", "subscription_update", &lines),
        ];
        [events, back(added + DAY, refunds)].concat()
    };
    check_life("nothing", &life(&[]), "pro 5300 | si_1=5000 si_2=300");
    check_life("the first", &life(&[("pi_in_1", 50_000)]), "pro 0 | si_1=0 si_2=0");
}

/// A coupon for ever takes 60 percent off. The line of a period has the list price and its discount beside it
/// (`discount_amounts`, <https://docs.stripe.com/api/invoice-line-item/object>). A proration has the discount
/// in its amount, or beside it as well with `proration_discounts = "itemized"`
/// (<https://docs.stripe.com/changelog/clover/2025-09-30/itemize-proration-discount-amounts>).
#[test]
fn discounts_are_taken_off_before_a_credit_is_compared_with_a_charge() {
    let end = month(NEXT);
    let off = |line: Value| {
        let amount = line["amount"].as_i64().unwrap() * 6 / 10;
        super::patched(line, &json!({"discount_amounts": [{"amount": amount, "discount": "di_1"}]}))
    };
    let billed = |at: i64, id: &str, reason: &str, lines: &[Value]| {
        let net = |line: &Value| {
            line["amount"].as_i64().unwrap() - line["discount_amounts"][0]["amount"].as_i64().unwrap_or(0)
        };
        let total: i64 = lines.iter().map(net).sum();
        bill_with(at, id, reason, lines, json!({"total": total, "amount_paid": total.max(0)}))
    };
    let life = |itemized: bool, credit: i64, refunds: &[(&str, i64)]| {
        let prorated = |price: &str, amount: i64| {
            if itemized {
                return off(flagged("si_1", price, amount, HALF, NEXT));
            }
            flagged("si_1", price, amount * 4 / 10, HALF, NEXT)
        };
        let renewal = [
            prorated("price_business", -credit),
            prorated("price_pro", 500),
            off(line("si_1", "price_pro", 1000, NEXT, end)),
        ];
        let events = vec![
            shows(T, "active", &[plan("price_business", T)]),
            billed(
                T + 1,
                "in_1",
                "subscription_create",
                &[off(line("si_1", "price_business", 10_000, T, NEXT))],
            ),
            tie(T + 1, "in_1"),
            shows(HALF, "active", &[plan("price_pro", T)]),
            shows(NEXT, "active", &[plan("price_pro", NEXT)]),
            billed(NEXT + 1, "in_2", "subscription_cycle", &renewal),
            tie(NEXT + 1, "in_2"),
        ];
        [events, back(NEXT + DAY, refunds)].concat()
    };
    for itemized in [false, true] {
        for (what, credit, refunds, left) in [
            ("all is credit", 5000, &[("pi_in_1", 4000)][..], 0),
            ("to the cent", 1500, &[("pi_in_1", 4000)], 0),
            // Of 400 minor units, 240 are credit, and 160 are paid.
            ("a part: the first", 1100, &[("pi_in_1", 4000)], 2000),
            ("a part: the second", 1100, &[("pi_in_2", 160)], 3000),
            ("a part: both", 1100, &[("pi_in_1", 4000), ("pi_in_2", 160)], 0),
        ] {
            check_life(what, &life(itemized, credit, refunds), &format!("pro {left} | si_1={left}"));
        }
    }
}

/// The credits that an invoice takes off other items are after discounts too.
#[test]
fn a_discounted_credit_pays_for_other_items_after_its_discount() {
    let off = |line: Value, amount: i64| {
        super::patched(line, &json!({"discount_amounts": [{"amount": amount, "discount": "di_1"}]}))
    };
    // 1000 of 2000 are credited, less half; they pay for half of the new item.
    let lines = [
        off(flagged("si_1", "price_business", -1000, HALF, NEXT), -500),
        flagged("si_2", "price_pro", 1000, HALF, NEXT),
    ];
    let life = |refunds: &[(&str, i64)]| {
        let first = [off(line("si_1", "price_business", 2000, T, NEXT), 1000)];
        let events = vec![
            shows(T, "active", &[plan("price_business", T)]),
            bill_with(
                T + 1,
                "in_1",
                "subscription_create",
                &first,
                json!({"total": 1000, "amount_paid": 1000}),
            ),
            tie_by(T + 1, "in_1", "pi_1"),
            shows(HALF, "active", &[item("si_2", "price_pro", T, NEXT)]),
            bill_with(
                HALF + 1,
                "in_2",
                "subscription_update",
                &lines,
                json!({"total": 500, "amount_paid": 500}),
            ),
            tie_by(HALF + 1, "in_2", "pi_2"),
        ];
        [events, back(HALF + DAY, refunds)].concat()
    };
    check_life("nothing", &life(&[]), "pro 5000 | si_1=0 si_2=5000");
    check_life("the first", &life(&[("pi_1", 1000)]), "pro 2500 | si_1=0 si_2=2500");
    check_life("both", &life(&[("pi_1", 1000), ("pi_2", 500)]), "pro 0 | si_1=0 si_2=0");
}

/// Twelve months are billed in advance, with one invoice at the start or one by one. What is credited of the
/// first month waits for the thirteenth.
#[test]
fn a_credit_waits_for_the_end_of_twelve_months_in_advance() {
    let starts: Vec<i64> = (0..14).map(|month| T + month * 30 * DAY).collect();
    let months: Vec<Value> = starts[..12]
        .iter()
        .map(|start| line("si_1", "price_business", 10_000, *start, month(*start)))
        .collect();
    let renewal = [
        flagged("si_1", "price_business", -5000, HALF, NEXT),
        flagged("si_1", "price_pro", 500, HALF, NEXT),
        line("si_1", "price_pro", 1000, starts[12], starts[13]),
    ];
    let life = |at_once: bool, refunds: &[(&str, i64)]| {
        let mut given = vec![shows(T, "active", &[plan("price_business", T)])];
        if at_once {
            given.push(bill(T + 1, "in_1", "subscription_create", &months));
        } else {
            given.push(bill(T + 1, "in_1", "subscription_create", &months[..1]));
            let one = |(n, month): (usize, &Value)| {
                bill(T + 9, &format!("in_1{n}"), "subscription_update", std::slice::from_ref(month))
            };
            given.extend(months[1..].iter().enumerate().map(one));
        }
        given.push(tie(T + 1, "in_1"));
        given.push(shows(HALF, "active", &[plan("price_pro", T)]));
        given.extend(starts[1..13].iter().map(|start| shows(*start, "active", &[plan("price_pro", *start)])));
        given.push(bill(starts[12] + 1, "in_2", "subscription_cycle", &renewal));
        [given, back(starts[12] + DAY, refunds)].concat()
    };
    for (at_once, paid) in [(true, 120_000), (false, 10_000)] {
        check_life("nothing", &life(at_once, &[]), "pro 5000 | si_1=5000");
        check_life("the first", &life(at_once, &[("pi_in_1", paid)]), "pro 0 | si_1=0");
    }
}

/// A year is paid by months in advance and changes twice, up and down. All lines are known, and each payment
/// has its share.
#[test]
fn a_year_by_months_in_advance_changes_twice() {
    let starts: Vec<i64> = (0..13).map(|month| T + month * 30 * DAY).collect();
    let all = |price: &'static str, amount: i64, from: i64| {
        let first = flagged("si_1", price, amount, from, NEXT);
        let ahead =
            starts[1..12].iter().map(move |start| flagged("si_1", price, amount, *start, month(*start)));
        [vec![first], ahead.collect()].concat()
    };
    let first: Vec<Value> =
        starts[..12].iter().map(|start| line("si_1", "price_boost", 1000, *start, month(*start))).collect();
    let (up, down) = (T + 5 * DAY, T + 6 * DAY);
    let raised = [all("price_boost", -1000, up), all("price_business", 10_000, up)].concat();
    let lowered = [all("price_business", -10_000, down), all("price_pro", 5000, down)].concat();
    let life = |refunds: &[(&str, i64)]| {
        let events = vec![
            shows(T, "active", &[plan("price_boost", T)]),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
            shows(up, "active", &[plan("price_business", T)]),
            bill(up + 1, "in_2", "subscription_update", &raised),
            tie(up + 1, "in_2"),
            shows(down, "active", &[plan("price_pro", T)]),
            bill(down + 1, "in_3", "subscription_update", &lowered),
            shows(NEXT, "active", &[plan("price_pro", NEXT)]),
        ];
        [events, back(NEXT + DAY, refunds)].concat()
    };
    check_life("nothing", &life(&[]), "pro 5000 | si_1=5000");
    check_life("the first", &life(&[("pi_in_1", 12_000)]), "pro 4700 | si_1=4700");
    check_life("both", &life(&[("pi_in_1", 12_000), ("pi_in_2", 108_000)]), "pro 0 | si_1=0");
}

/// A coupon of 100 percent, listed beside the prorations. The credit is worth nothing, but it shows that the
/// item was there before: the charge opens no period of its own, and without a snapshot it changes nothing.
#[test]
fn a_credit_of_time_that_cost_nothing_is_a_credit() {
    let free = |line: Value| {
        let amount = line["amount"].clone();
        super::patched(line, &json!({"discount_amounts": [{"amount": amount, "discount": "di_1"}]}))
    };
    let lines = [
        free(flagged("si_1", "price_pro", -1000, HALF, NEXT)),
        free(flagged("si_1", "price_business", 5000, HALF, NEXT)),
    ];
    let given = [
        shows(T, "active", &[plan("price_pro", T)]),
        bill_with(HALF + 1, "in_2", "subscription_update", &lines, json!({"total": 0, "amount_paid": 0})),
    ];
    check_life("of all invoices only that of the change arrives", &given, "pro 0 | ");
}
