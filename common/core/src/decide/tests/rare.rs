//! Lives that are rare: two changes of one second, several swaps, an edit of the catalog between two documents.

use serde_json::json;

use super::shapes::{
    DAY, T, YEAR, bill, bill_with, check_life, end, flagged, item, line, month, once, reordered, seats,
    shows, shows_with, times,
};
use super::{Run, Step, session};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

const MONTHLY: Step = Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n");

/// The k-th month after `T`.
fn months(k: u32) -> i64 {
    Timestamp::from_unix(T).plus_months(k).unix()
}

fn free_credits(policy: &'static str) -> Vec<Step> {
    vec![Step::Edit("[policy]\n", policy), Step::At(T), Step::Signup]
}

#[test]
fn a_trial_that_becomes_another_plan_in_its_second_keeps_its_own_credits() {
    let shown = |status: &str, price: &str| shows(T, status, &[item("si_1", price, T, month(T))]);
    let given = [shown("trialing", "price_pro"), shown("active", "price_business")];
    check_life("pro, then business", &given, "business 2000 | si_1=2000");
}

/// Each price keeps its own worth after any order of three of them in one second.
#[test]
fn a_trial_goes_back_to_the_worth_of_an_earlier_price() {
    let plan = |price: &str| item("si_1", price, T, month(T));
    let at = T + DAY;
    let prices = ["price_business", "price_boost", "price_free"];
    let change = |from: &str, to: &str| {
        let shown = |price: &str| json!({"data": [plan(price)]});
        super::updated(at, json!({"status": "trialing", "items": shown(to)}), json!({"items": shown(from)}))
    };
    for [one, two, three] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let names = [one, two, three].map(|place: usize| prices[place]);
        for (price, expect) in [
            ("price_pro", "pro 2000 | si_1=2000"),
            ("price_business", "business 20000 | si_1=20000"),
            ("price_boost", "pro 300 | si_1=300"),
            ("price_free", "pro 50 | si_1=50"),
        ] {
            let life = [
                shows(T, "trialing", &[plan("price_pro")]),
                change("price_pro", names[0]),
                change(names[0], names[1]),
                change(names[1], names[2]),
                shows(at + DAY, "trialing", &[plan(price)]),
            ];
            check_life(&format!("{names:?}, then {price}"), &life, expect);
        }
    }
}

/// The prorated line of another price starts as the period ends, so it belongs to the next one.
#[test]
fn a_line_at_the_end_of_a_period_has_the_terms_of_the_renamed_plan() {
    let next = month(T);
    let given = [
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, next)]),
        Step::Edit("name = \"pro\"", "name = \"gold\"\nformerly = [\"pro\"]"),
        Step::Edit("credits = 5000\n", "credits = 7000\n"),
        bill(
            next + 1,
            "in_2",
            "subscription_update",
            &[flagged("si_1", "price_pro_year", 2000, next, month(next))],
        ),
        shows(next + 1, "active", &[item("si_1", "price_pro_year", next, month(next))]),
    ];
    check_life("the next period", &given, "pro 7000 | si_1=7000");
}

/// The news of a pause comes after a spend of the month that it skips, and after that the item is swapped.
#[test]
fn what_was_spent_of_a_month_that_proves_paused_is_handed_over() {
    let (year, at) = (T + YEAR, months(1) + 5 * DAY);
    let shown = |at: i64, status: &str, id: &str| shows(at, status, &[item(id, "price_pro_year", T, year)]);
    let given = [
        MONTHLY,
        shown(T, "active", "si_1"),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 20_000, T, year)]),
        Step::At(months(1) + DAY),
        Step::Spend(700),
        shown(months(1) - DAY, "paused", "si_1"),
        shown(at, "paused", "si_2"),
        bill(
            at + 2,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro_year", -400, at, year),
                flagged("si_2", "price_pro_year", 900, at, year),
            ],
        ),
    ];
    assert_eq!(end(&Run::of(&given)), "free 4300 | si_1=0 si_2=4300");
}

/// An item takes over what was spent of the one that it replaced, and its own period is cut short by a paid year
/// for which nothing was charged.
#[test]
fn what_an_item_took_over_counts_in_the_period_that_cuts_its_first_one_short() {
    let (at, cut, next) = (T + 5 * DAY, T + 10 * DAY, month(T));
    let given = [
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, next)]),
        Step::Spend(1000),
        shows(at, "active", &[item("si_2", "price_pro", T, next)]),
        bill(
            at + 2,
            "in_2",
            "subscription_update",
            &[flagged("si_1", "price_pro", -400, at, next), flagged("si_2", "price_pro", 400, at, next)],
        ),
        shows(cut, "active", &[item("si_2", "price_pro_year", cut, cut + YEAR)]),
        bill(
            cut + 2,
            "in_3",
            "subscription_update",
            &[
                flagged("si_2", "price_pro", -2000, cut, next),
                line("si_2", "price_pro_year", 2000, cut, cut + YEAR),
            ],
        ),
    ];
    assert_eq!(end(&Run::of(&given)), "pro 4000 | si_1=0 si_2=4000");
}

/// A pause skips the start of a month. The item is removed in the month, and the pause ends then or later.
#[test]
fn a_pause_that_ends_after_an_item_was_removed_grants_it_no_month() {
    let (year, removed) = (T + YEAR, months(1) + 2 * DAY);
    let one = || item("si_1", "price_pro_year", T, year);
    let other = || item("si_2", "price_boost", T, year);
    let begun = || {
        let lines =
            [line("si_1", "price_pro_year", 20_000, T, year), line("si_2", "price_boost", 500, T, year)];
        vec![
            MONTHLY,
            Step::Edit("credits = 300\n", "credits = 300\nrefill = \"month\"\n"),
            shows(T, "active", &[one(), other()]),
            bill(T + 1, "in_1", "subscription_create", &lines),
            Step::Spend(4000),
            shows(months(1) - DAY, "paused", &[one(), other()]),
        ]
    };
    let end_of = |steps: &[Step]| end(&Run::of(&[begun(), steps.to_vec()].concat()));
    let without = |at: i64, status: &str| shows(at, status, &[other()]);
    let later = [without(removed, "paused"), without(removed + DAY, "active")];
    assert_eq!(end_of(&later), "pro 1300 | si_1=1000 si_2=300", "the pause ends later");
    assert_eq!(end_of(&[without(removed, "active")]), "pro 1300 | si_1=1000 si_2=300", "in one update");
    let before = [shows(removed, "active", &[one(), other()]), without(removed + DAY, "active")];
    assert_eq!(end_of(&before), "pro 5300 | si_1=5000 si_2=300", "before it is removed");
}

#[test]
fn free_credits_that_are_booked_keep_their_number_after_an_edit() {
    let given = [
        free_credits("[policy]\nfree_credits = 200\n"),
        vec![
            Step::At(months(1) + 1),
            Step::Spend(50),
            Step::Edit("free_credits = 200\n", "free_credits = 70\n"),
        ],
    ]
    .concat();
    assert_eq!(end(&Run::of(&given)), "free 150 | signup=150");
    let next = [given, vec![Step::At(months(2) + 1)]].concat();
    assert_eq!(end(&Run::of(&next)), "free 70 | signup=70", "the next month");
}

/// No free credits fall due in a month that began within the grace, a trial or the life of an item.
/// A snapshot that still shows the period before is of that period, also if it was made after the next one began.
#[test]
fn a_plan_that_is_shown_in_the_period_before_is_no_change_of_the_next() {
    let next = month(T);
    let paid = |id: &str, start: i64| {
        bill(start + 1, id, "subscription_cycle", &[line("si_1", "price_pro", 2000, start, month(start))])
    };
    let life = [
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        paid("in_1", T),
        paid("in_2", next),
        shows(next + 10, "active", &[item("si_1", "price_business", T, next)]),
    ];
    let run = Run::of(&life);
    assert_eq!(run.balance().get(), 5000, "{}", run.summary());
}

#[test]
fn free_credits_fall_due_in_the_second_in_which_access_ends() {
    let due = |steps: &[Step], at: i64| {
        let run = Run::of(&[steps, &[Step::At(at), Step::Grant(1)]].concat());
        run.ledger.keys().filter(|key| key.as_str().starts_with("free#")).count()
    };
    // The grace is five days.
    let unpaid = |start: i64| {
        let shown =
            |at: i64, status: &str| shows(at, status, &[item("si_1", "price_pro", at, at + 10 * DAY)]);
        let free = free_credits("[policy]\nfree_credits = 200\n");
        [free, vec![shown(T, "active"), shown(start, "past_due")]].concat()
    };
    let (one, two) = (months(1), months(1) + 1);
    assert_eq!(due(&unpaid(one - 5 * DAY), two), 1, "the grace ends as the month begins");
    assert_eq!(due(&unpaid(one - 5 * DAY + 1), two), 0, "a second later");
    for policy in ["[policy]\nfree_credits = 200\n", UNTIL_PERIOD_END] {
        let shown = |at: i64, status: &str| shows(at, status, &[item("si_1", "price_pro", T, T + 60 * DAY)]);
        let trial = [free_credits(policy), vec![shown(T, "trialing"), shown(one + DAY, "canceled")]].concat();
        assert_eq!(due(&trial, one + 2 * DAY), 0, "a trial that ended later");
    }
    // The paid item is removed while payments are not collected, and another one stays.
    let paused = |removed: i64| {
        let pause = json!({"pause_collection": {"behavior": "void"}});
        let paid = || item("si_1", "price_pro_year", T, T + YEAR);
        let other = || item("si_2", "price_boost", T, T + YEAR);
        let steps = vec![
            shows_with(T, "active", &[paid(), other()], pause.clone()),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 9, T, T + YEAR)]),
            shows_with(removed, "active", &[other()], pause),
        ];
        [free_credits(UNTIL_PERIOD_END), steps].concat()
    };
    assert_eq!(due(&paused(one), one + 2), 1, "removed as the month begins");
    assert_eq!(due(&paused(one + 1), one + 2), 0, "a second later");
}

const UNTIL_PERIOD_END: &str = "[policy]\nfree_credits = 200\npause_collection = \"until_period_end\"\n";

/// An invoice and its session sell one plan for life. The payment links them after a spend.
#[test]
fn what_was_spent_of_an_invoice_s_plan_for_life_counts_for_its_session_s() {
    let sold = json!({"line_items": {"data": [{"price": {"id": "price_pro"}, "quantity": 1}]}});
    let given = [
        bill_with(
            T,
            "in_1",
            "manual",
            &[once("price_pro", 2000)],
            json!({"parent": null,
            "metadata": {"user_id": "user_1"}}),
        ),
        Step::Spend(700),
        session("completed", T + 4, "cs_1", json!({}), sold),
        super::shapes::tie_by(T + 5, "in_1", "pi_cs_1"),
    ];
    let run = Run::of(&given);
    assert_eq!(end(&run), "pro 4300 | life=4300", "{}", run.summary());
    assert_eq!(run.account.state.packs.len(), 0);
}

#[test]
fn neither_a_spent_grant_nor_the_starts_of_periods_that_are_over_are_kept() {
    let spent = Run::of(&[Step::At(T), Step::Grant(100), Step::Spend(100), super::pack(T + DAY, "cs_1")]);
    assert_eq!(spent.account.state.grants.len(), 0);
    let renewed = |start: i64, id: &str| {
        [
            shows(start, "active", &[item("si_1", "price_pro", start, month(start))]),
            bill(start + 1, id, "subscription_cycle", &[line("si_1", "price_pro", 9, start, month(start))]),
        ]
    };
    let next = month(T);
    let run = Run::of(&[renewed(T, "in_1"), renewed(next, "in_2"), renewed(month(next), "in_3")].concat());
    let state = serde_json::to_value(&run.account.state).unwrap();
    let item = &state["subscriptions"]["sub_1"]["items"]["si_1"];
    assert_eq!(item["starts"], json!(null), "{item}");
}

/// A document that was read by an earlier catalog sells nothing else by a later one.
#[test]
fn a_product_s_invoice_that_comes_again_after_the_product_was_replaced_sells_nothing_more() {
    let catalog =
        Step::Edit("[[pack]]\n", "[[product]]\nname = \"course\"\nprices = [\"price_course\"]\n[[pack]]\n");
    let replaced = Step::Edit(
        "name = \"course\"\nprices = [\"price_course\"]\n",
        "name = \"course\"\nprices = [\"price_old\"]\n[[product]]\nname = \"book\"\nprices = [\"price_course\"]\n",
    );
    let sold = || {
        bill_with(
            T,
            "in_1",
            "manual",
            &[once("price_course", 500)],
            json!({"parent": null,
        "metadata": {"user_id": "user_1"}}),
        )
    };
    let run = Run::of(&[catalog, sold(), replaced, sold()]);
    let names: Vec<_> = run.account.state.products.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["course"], "{}", run.summary());
}

/// A line whose price was unknown when the document was read sells nothing later either.
#[test]
fn a_line_whose_price_was_unknown_sells_no_product_when_its_invoice_comes_again() {
    let catalog =
        Step::Edit("[[pack]]\n", "[[product]]\nname = \"course\"\nprices = [\"price_course\"]\n[[pack]]\n");
    let added =
        Step::Edit("[[pack]]\n", "[[product]]\nname = \"book\"\nprices = [\"price_book\"]\n[[pack]]\n");
    let sold = || {
        let lines = [once("price_course", 500), once("price_book", 300)];
        bill_with(T, "in_1", "manual", &lines, json!({"parent": null, "metadata": {"user_id": "user_1"}}))
    };
    let run = Run::of(&[catalog, sold(), added, sold()]);
    let names: Vec<_> = run.account.state.products.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["course"], "{}", run.summary());
}

/// What an invoice of a change charged is in the bucket, beside the invoice of the period.
#[test]
fn a_bucket_counts_the_invoices_that_opened_its_period_and_charged_its_changes() {
    let at = T + DAY;
    let run = Run::of(&[
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        shows(at, "active", &[item("si_1", "price_business", T, month(T))]),
        bill(
            at + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1900, at, month(T)),
                flagged("si_1", "price_business", 9000, at, month(T)),
            ],
        ),
    ]);
    let all = run.account.state.buckets(&run.catalog.policy, run.now);
    let counts = |key: &str| all.counts(&LedgerKey::from_text(key), &run.account.state);
    assert_eq!(["invoice#in_1", "invoice#in_2", "invoice#in_3"].map(counts), [true, true, false]);
}

/// Three items of a trial: the second, which is removed later, takes over before the third, which stays.
#[test]
fn of_a_trial_an_item_that_was_removed_at_once_takes_nothing_over() {
    let shown = |at: i64, items: &[(&str, &str)]| {
        let items: Vec<_> = items.iter().map(|(id, price)| item(id, price, T, month(T))).collect();
        shows(at, "trialing", &items)
    };
    let later = [
        shown(T, &[("si_1", "price_pro")]),
        Step::Spend(1500),
        shown(T + DAY, &[("si_2", "price_business"), ("si_3", "price_boost")]),
        shown(T + 2 * DAY, &[("si_3", "price_boost")]),
    ];
    check_life("removed later", &later, "pro 300 | si_1=0 si_2=0 si_3=300");
    let together = [
        shown(T, &[("si_2", "price_pro")]),
        Step::Spend(1500),
        shown(T + DAY, &[("si_2", "price_pro"), ("si_1", "price_business")]),
        shown(T + 2 * DAY, &[("si_3", "price_pro")]),
    ];
    check_life("removed together", &together, "pro 500 | si_1=0 si_2=0 si_3=500");
}

/// An item that came in place of another shows its own start, or that of the subscription's period. Of a yearly
/// plan the period of a monthly one ends earlier.
#[test]
fn an_item_with_a_prorated_first_period_takes_over_whatever_start_it_shows() {
    let at = T + 5 * DAY;
    for (what, price, old_end, shown) in [
        ("its own start", "price_pro", month(T), at),
        ("the period's start", "price_pro", month(T), T),
        ("a month of a year", "price_pro_year", T + YEAR, T),
    ] {
        let given = [
            shows(T, "active", &[item("si_1", price, T, old_end)]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", price, 2000, T, old_end)]),
            Step::Spend(4900),
            shows(at, "active", &[item("si_2", "price_pro", shown, month(T))]),
            bill(
                at + 2,
                "in_2",
                "subscription_update",
                &[flagged("si_1", price, -400, at, old_end), flagged("si_2", "price_pro", 900, at, month(T))],
            ),
        ];
        assert_eq!(end(&Run::of(&given)), "pro 100 | si_1=0 si_2=100", "{what}");
    }
}

/// A metered price is billed at the end of its period, from the period's start on, and may cost nothing.
#[test]
fn the_zero_line_of_an_item_that_came_later_does_not_date_the_removal_back() {
    let (at, next) = (T + 10 * DAY, month(T));
    let run = Run::of(&[
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, next)]),
        shows(at, "active", &[item("si_2", "price_team", T, next)]),
        bill(next + 1, "in_2", "subscription_cycle", &[line("si_2", "price_team", 0, T, next)]),
    ]);
    let (subscription, item) = ("sub_1".parse().unwrap(), "si_1".parse().unwrap());
    let ended = run.account.state.item_ended_at(&subscription, &item);
    assert_eq!(ended, Some(Timestamp::from_unix(at)));
}

/// Two items of one plan take over from one, and the first of them renews until its first period is dropped. Of a
/// yearly plan the period of a monthly item ends earlier, and snapshots may show the start of the old period.
#[test]
fn what_an_item_took_over_stays_with_it_after_its_first_period_is_dropped() {
    let (at, year) = (T + 5 * DAY, T + YEAR);
    let (yearly, monthly) = (("price_pro_year", 1), ("price_pro", 1));
    for (what, old, first, later, other, expect) in [
        ("the same plan", yearly, monthly, monthly, yearly, "si_3=5000"),
        ("another plan later", yearly, monthly, ("price_free", 1), yearly, "si_3=5000"),
        (
            "fewer seats later",
            ("price_team", 5),
            ("price_team", 5),
            ("price_team", 1),
            ("price_team", 3),
            "si_3=3000",
        ),
    ] {
        let of =
            |id: &str, (price, count): (&str, u64), start: i64, end: i64| seats(id, price, count, start, end);
        let charge =
            |id: &str, (price, count): (&str, u64), end: i64| times(count, flagged(id, price, 9000, at, end));
        let bought = times(old.1, line("si_1", old.0, 20_000, T, year));
        let mut given = vec![
            shows(T, "active", &[of("si_1", old, T, year)]),
            bill(T + 1, "in_1", "subscription_create", &[bought]),
            Step::Spend(4900),
            shows(at, "active", &[of("si_2", first, T, month(T)), of("si_3", other, T, year)]),
            bill(
                at + 2,
                "in_2",
                "subscription_update",
                &[
                    flagged("si_1", old.0, -15_000, at, year),
                    charge("si_2", first, month(T)),
                    charge("si_3", other, year),
                ],
            ),
        ];
        let mut start = T;
        for id in ["in_3", "in_4", "in_5"] {
            start = month(start);
            let renewed = times(later.1, line("si_2", later.0, 2000, start, month(start)));
            let shown = [of("si_2", later, start, month(start)), of("si_3", other, T, year)];
            given.push(shows(start, "active", &shown));
            given.push(bill(start + 1, id, "subscription_cycle", &[renewed]));
            for order in 0..3 {
                let run = Run::of(&reordered(&given, order));
                let all = end(&run);
                assert!(all.ends_with(expect), "{what}, {id}, order {order}: {all}: {}", run.summary());
            }
        }
    }
}

/// The invoice of the swap charges nothing, so what was spent counts in whichever item takes it over.
#[test]
fn what_the_rest_of_a_month_took_over_is_not_taken_from_a_year_once_that_month_is_dropped() {
    let (at, next) = (T + 10 * DAY, month(T));
    let yearly = || item("si_3", "price_business", at, at + YEAR);
    let monthly = |start: i64, end: i64| item("si_2", "price_pro", start, end);
    let mut given = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, next)]),
        Step::Spend(4900),
        shows(at, "active", &[monthly(at, next), yearly()]),
        bill(
            at + 2,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1300, at, next),
                flagged("si_2", "price_pro", 500, at, next),
                line("si_3", "price_business", 700, at, at + YEAR),
            ],
        ),
    ];
    assert_eq!(end(&Run::of(&given)), "business 20100 | si_1=0 si_2=100 si_3=20000");
    let mut start = T;
    for id in ["in_3", "in_4", "in_5"] {
        start = month(start);
        given.push(shows(start, "active", &[monthly(start, month(start)), yearly()]));
        let renewed = line("si_2", "price_pro", 2000, start, month(start));
        given.push(bill(start + 1, id, "subscription_cycle", &[renewed]));
        for order in 0..3 {
            let run = Run::of(&reordered(&given, order));
            assert_eq!(end(&run), "business 25000 | si_1=0 si_2=5000 si_3=20000", "{id}, order {order}");
        }
    }
}

/// An invoice may bill two periods of an item at once, as after a backdated start, or a period in advance. Of those
/// that open at once, the latest counts, and nothing is left of the other that it could take over.
#[test]
fn of_two_periods_of_one_invoice_the_one_that_has_begun_last_opens() {
    let half = Step::Edit(
        "trial_credits = 2000\n",
        "trial_credits = 2000\nrollover = { percent = 50, max = 2000, periods = 1 }\n",
    );
    let (next, after) = (month(T), month(month(T)));
    let lines = [line("si_1", "price_pro", 2000, T, next), line("si_1", "price_pro", 2000, next, after)];
    let billed = |at: i64, now: i64| {
        let start = if now < next { T } else { next };
        let shown = shows(T, "active", &[item("si_1", "price_pro", start, month(start))]);
        let given = [half.clone(), shown, bill(at, "in_1", "subscription_create", &lines), Step::At(now)];
        end(&Run::of(&given))
    };
    let backdated = "pro 5000 | si_1=5000";
    assert_eq!(billed(next + 1, next + 2), backdated, "both have begun");
    assert_eq!(billed(next - 3600, next + 2), backdated, "the second opens at once");
    assert_eq!(billed(T + 1, T + 2), backdated, "the second is in advance");
    assert_eq!(billed(T + 1, next), "pro 7000 | carried:si_1=2000 si_1=5000", "and follows the first");
    assert_eq!(
        billed(next - 3601, next),
        "pro 7000 | carried:si_1=2000 si_1=5000",
        "a second before it opens"
    );
}

/// `billing_cycle_anchor = now` without a proration: the invoice credits nothing, and the customer's balance pays it.
/// What was spent of the period that it cuts short counts in the new one.
#[test]
fn a_period_that_was_cut_short_without_a_credit_still_counts_after_the_next_event() {
    let cut = T + 10 * DAY;
    let shown = |at: i64| shows(at, "active", &[item("si_1", "price_pro", cut, month(cut))]);
    let given = [
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        Step::Spend(1000),
        shown(cut),
        bill_with(
            cut + 1,
            "in_2",
            "subscription_update",
            &[line("si_1", "price_pro", 2000, cut, month(cut))],
            json!({"amount_paid": 0}),
        ),
        shown(cut + DAY),
        shown(cut + 2 * DAY),
    ];
    assert_eq!(end(&Run::of(&given)), "pro 4000 | si_1=4000");
}

/// Of three periods, each begins before the one before it ends. The invoice of the second arrives last, and its
/// payment paid a share of the third.
#[test]
fn a_credited_period_that_arrives_last_still_paid_its_share() {
    let period = |start: i64, id: &str, credit: i64| {
        let charged = line("si_1", "price_pro", 2000, start, month(start));
        let credited = flagged("si_1", "price_pro", -credit, start, month(start) - 10 * DAY);
        let lines = if credit == 0 { vec![charged] } else { vec![credited, charged] };
        let reason = if credit == 0 { "subscription_create" } else { "subscription_update" };
        [
            shows(start, "active", &[item("si_1", "price_pro", start, month(start))]),
            bill(start + 1, id, reason, &lines),
            super::shapes::tie(start + 1, id),
        ]
    };
    let [one, two, three] =
        [period(T, "in_1", 0), period(T + 20 * DAY, "in_2", 1300), period(T + 40 * DAY, "in_3", 1000)];
    let back = [super::refunded(T + 41 * DAY, "pi_in_2", 700)];
    let given = [&one[..], &two, &three, &back].concat();
    assert_eq!(end(&Run::of(&given)), "pro 4125 | si_1=4125");
    let late = [&one[..], &three, &two, &back].concat();
    assert_eq!(end(&Run::of(&late)), "pro 4125 | si_1=4125", "the second arrives last");
}

/// The next month is named only while nothing stops it, and the first month's credits end with that month.
#[test]
fn the_next_month_is_announced_unless_a_pause_a_dispute_or_a_refund_stops_it() {
    let year = T + YEAR;
    let shown = |at: i64, status: &str| shows(at, status, &[item("si_1", "price_pro_year", T, year)]);
    let after = |step: Option<Step>| {
        let mut given = vec![
            MONTHLY,
            shown(T, "active"),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 2000, T, year)]),
            super::shapes::tie(T + 1, "in_1"),
        ];
        given.extend(step);
        let run = Run::of(&given);
        let all = run.account.state.buckets(&run.catalog.policy, run.now);
        let until = all.lots.first().and_then(|lot| lot.until).map(Timestamp::unix);
        assert_eq!(until, Some(months(1)), "the first month");
        run.account.state.next_grant_at(&all, &run.catalog.policy, run.now).map(Timestamp::unix)
    };
    let Step::Event(dispute) = super::dispute("created", T + DAY, "pi_in_1", "needs_response") else {
        panic!("no event")
    };
    let dispute = super::patched(dispute, &json!({"data": {"object": {"amount": 500}}}));
    assert_eq!(after(None), Some(months(1)));
    assert_eq!(after(Some(super::refunded(T + DAY, "pi_in_1", 500))), Some(months(1)), "a part");
    assert_eq!(after(Some(super::refunded(T + DAY, "pi_in_1", 2000))), None, "all of it");
    assert_eq!(after(Some(Step::Event(dispute))), None, "a dispute of a part");
    assert_eq!(after(Some(shown(T + DAY, "paused"))), None);
    assert_eq!(after(Some(shown(T + DAY, "canceled"))), None);
}

/// Of the states without access between two plans the newest four are kept.
#[test]
fn the_newest_four_states_between_two_plans_are_kept() {
    let shown = |price: &str| json!({"data": [item("si_1", price, T, month(T))]});
    let overdue = |day: i64, from: &str, to: &str| {
        super::updated(
            T + day * DAY,
            json!({"status": "past_due", "items": shown(to)}),
            json!({"items": shown(from)}),
        )
    };
    let mut given = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
    ];
    for (day, kept) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 4), (7, 4)] {
        let prices = if day % 2 == 0 { ["price_boost", "price_pro"] } else { ["price_pro", "price_boost"] };
        given.push(overdue(day, prices[0], prices[1]));
        let state = serde_json::to_value(&Run::of(&given).account.state).unwrap();
        let between = state["subscriptions"]["sub_1"]["items"]["si_1"]["between"].as_array().unwrap();
        assert_eq!(
            (between.len(), between.last().unwrap()["at"].as_i64()),
            (kept, Some(T + day * DAY)),
            "{state}"
        );
    }
}

#[test]
fn free_credits_that_were_switched_off_come_back_in_the_month_that_runs() {
    let given = [
        free_credits("[policy]\nfree_credits = 200\n"),
        vec![
            Step::At(months(1) + 1),
            Step::Spend(50),
            Step::Edit("free_credits = 200\n", "free_credits = 0\n"),
            Step::At(months(2) + 1),
            Step::Grant(1),
        ],
    ]
    .concat();
    assert_eq!(end(&Run::of(&given)), "free 1 | grant=1 signup=0");
    let again =
        [given, vec![Step::Edit("free_credits = 0\n", "free_credits = 70\n"), Step::Grant(1)]].concat();
    assert_eq!(end(&Run::of(&again)), "free 72 | grant=1 grant=1 signup=70");
}

/// A period cuts another one short, and an invoice charges a change within it.
#[test]
fn a_charge_counts_in_the_period_that_cut_another_one_short() {
    let (cut, changed) = (T + 10 * DAY, T + 12 * DAY);
    let year = |price: &str| item("si_1", price, cut, cut + YEAR);
    let given = [
        Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n"),
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        shows(cut, "active", &[year("price_pro_year")]),
        bill(
            cut + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1300, cut, month(T)),
                line("si_1", "price_pro_year", 20_000, cut, cut + YEAR),
            ],
        ),
        shows(changed, "active", &[year("price_business")]),
        bill(
            changed + 1,
            "in_3",
            "subscription_update",
            &[
                flagged("si_1", "price_pro_year", -19_000, changed, cut + YEAR),
                flagged("si_1", "price_business", 90_000, changed, cut + YEAR),
            ],
        ),
    ];
    assert_eq!(end(&Run::of(&given)), "business 20000 | si_1=20000");
}
