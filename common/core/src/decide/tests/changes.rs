//! Plan changes within a period, under both policies, and trials.

use serde_json::{Value, json};

use super::shapes::{
    DAY, T, YEAR, bill, bill_with, check_life, flagged, item, line, month, reordered, seats, shows,
    shows_with, tie, times,
};
use super::{MONTH, Run, Step, pack, patched, refunded, updated};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

const ON_PAYMENT: Step = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");
const EACH_TRIAL: Step = Step::Edit("[policy]\n", "[policy]\ntrials = \"each\"\n");

fn plan(price: &str) -> Value {
    item("si_1", price, T, month(T))
}

/// `sub_1` with one month of `price` paid.
fn opened(price: &str) -> Vec<Step> {
    vec![
        shows(T, "active", &[plan(price)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", price, 2000, T, month(T))]),
    ]
}

fn change(at: i64, price: &str) -> Step {
    shows(at, "active", &[plan(price)])
}

/// The invoice that charges a change from one price to another.
fn charge(at: i64, id: &str, from: (&str, i64), to: (&str, i64)) -> Step {
    bill(
        at,
        id,
        "subscription_update",
        &[flagged("si_1", from.0, -from.1, at, month(T)), flagged("si_1", to.0, to.1, at, month(T))],
    )
}

const PRO: (&str, i64) = ("price_pro", 1900);
const BUSINESS: (&str, i64) = ("price_business", 9000);

#[test]
fn another_price_of_the_same_plan_changes_nothing() {
    let given = [opened("price_pro"), vec![Step::Spend(4000), change(T + DAY, "price_pro_year")]].concat();
    check_life("in the same period", &given, "pro 1000 | si_1=1000");
    let run = Run::of(&given);
    let keys: Vec<_> = run.ledger.keys().map(LedgerKey::as_str).collect();
    assert_eq!(keys, ["consume#1", "invoice#in_1"], "no entry says that the plan has changed");
    let on_payment = [vec![ON_PAYMENT], given].concat();
    check_life("under on_payment", &on_payment, "pro 1000 | si_1=1000");
}

#[test]
fn at_once_a_plan_is_granted_in_full_once_per_period() {
    let up = |at| change(T + at * DAY, "price_business");
    let down = |at| change(T + at * DAY, "price_pro");
    let spend = Step::Spend;
    for (what, steps, expect) in [
        ("up", vec![spend(4000), up(1)], "business 20000 | si_1=20000"),
        ("up and down", vec![spend(4000), up(1), down(2)], "pro 1000 | si_1=1000"),
        ("up, spent, down", vec![spend(1000), up(1), spend(3000), down(2)], "pro 1000 | si_1=1000"),
        ("up, spent all, down", vec![up(1), spend(9000), down(2)], "pro 0 | si_1=0"),
        ("up, down, up", vec![up(1), spend(3000), down(2), up(3)], "business 17000 | si_1=17000"),
        (
            "another plan",
            vec![up(1), spend(3000), change(T + 2 * DAY, "price_team")],
            "business 1000 | si_1=1000",
        ),
    ] {
        check_life(what, &[opened("price_pro"), steps].concat(), expect);
    }
}

#[test]
fn on_payment_more_credits_count_when_an_invoice_has_charged_them() {
    let up = || change(T + DAY, "price_business");
    let paid = || charge(T + DAY + 1, "in_2", PRO, BUSINESS);
    let life = |steps: Vec<Step>| [vec![ON_PAYMENT], opened("price_pro"), steps].concat();
    check_life("not charged", &life(vec![up()]), "business 5000 | si_1=5000");
    check_life("charged", &life(vec![up(), paid()]), "business 20000 | si_1=20000");
    check_life("spent before", &life(vec![Step::Spend(4000), up(), paid()]), "business 16000 | si_1=16000");
    check_life(
        "and back",
        &life(vec![Step::Spend(4000), up(), paid(), change(T + 2 * DAY, "price_pro")]),
        "pro 1000 | si_1=1000",
    );
    let free = charge(T + DAY + 1, "in_2", ("price_pro", 1900), ("price_business", 0));
    check_life("fully discounted", &life(vec![up(), free]), "business 20000 | si_1=20000");
    let refunded =
        |amount| vec![up(), paid(), tie(T + DAY + 2, "in_2"), refunded(T + 2 * DAY, "pi_in_2", amount)];
    check_life("charged and refunded", &life(refunded(7100)), "business 5000 | si_1=5000");
    check_life("charged and half refunded", &life(refunded(3550)), "business 12500 | si_1=12500");
    let seen_later = [vec![ON_PAYMENT], opened("price_pro"), vec![paid()]].concat();
    check_life("charged without a snapshot of the new plan", &seen_later, "pro 5000 | si_1=5000");
    let to_team = |day: i64| change(T + day * DAY, "price_team");
    let down_and_up = |price| vec![up(), paid(), to_team(2), change(T + 3 * DAY, price)];
    check_life("charged, down, another up", &life(down_and_up("price_pro")), "pro 5000 | si_1=5000");
    check_life("charged, down, back", &life(down_and_up("price_business")), "business 20000 | si_1=20000");
    // An upgrade that was charged and reverted does not pay for another plan (docs/money.md).
    let more = shows(T + 3 * DAY, "active", &[seats("si_1", "price_team", 9, T, month(T))]);
    let another = vec![up(), paid(), to_team(2), more];
    check_life("charged, down, up to what is not charged", &life(another), "business 1000 | si_1=1000");
    let cut = T + 9 * DAY;
    let shown = |at: i64, price: &str| shows(at, "active", &[item("si_1", price, cut, month(cut))]);
    let lines = [
        flagged("si_1", "price_business", -6000, cut, month(T)),
        line("si_1", "price_pro", 2000, cut, month(cut)),
    ];
    let new_period = vec![shown(cut, "price_pro"), bill(cut + 1, "in_3", "subscription_update", &lines)];
    let again = [vec![up(), paid()], new_period, vec![shown(cut + DAY, "price_business")]].concat();
    check_life("charged in the period before", &life(again), "business 5000 | si_1=5000");
    let next = T + MONTH;
    let renewed = life(vec![
        up(),
        shows(next, "active", &[item("si_1", "price_business", next, month(next))]),
        bill(
            next + 1,
            "in_3",
            "subscription_cycle",
            &[
                line("si_1", "price_business", 9000, next, month(next)),
                flagged("si_1", "price_pro", -1900, T + DAY, next),
                flagged("si_1", "price_business", 8000, T + DAY, next),
            ],
        ),
    ]);
    check_life("create_prorations: the next period charges it", &renewed, "business 20000 | si_1=20000");
}

/// An item is added with `create_prorations`, so that its charge waits for the next invoice, and then changed
/// with `always_invoice`. <https://docs.stripe.com/billing/subscriptions/prorations>: "positive prorations
/// aren't immediately billed".
#[test]
fn one_invoice_opens_the_period_of_an_item_and_charges_its_change() {
    let of = |price: &str| item("si_2", price, T, month(T));
    let added = T + 5 * DAY;
    let changed = T + 10 * DAY;
    let both = |at: i64, price: &str| shows(at, "active", &[plan("price_pro"), of(price)]);
    let lines = [
        flagged("si_2", "price_pro", 1600, added, month(T)),
        flagged("si_2", "price_pro", -1300, changed, month(T)),
        flagged("si_2", "price_business", 6000, changed, month(T)),
    ];
    let life = vec![
        both(added, "price_pro"),
        both(changed, "price_business"),
        bill(changed + 1, "in_2", "subscription_update", &lines),
    ];
    let at_once = [opened("price_pro"), life].concat();
    let on_payment = [vec![ON_PAYMENT], at_once.clone()].concat();
    check_life("at_once", &at_once, "business 25000 | si_1=5000 si_2=20000");
    check_life("on_payment", &on_payment, "business 25000 | si_1=5000 si_2=20000");
    let refunded = |amount| vec![tie(changed + 2, "in_2"), refunded(changed + DAY, "pi_in_2", amount)];
    let half = [on_payment.clone(), refunded(3150)].concat();
    check_life("half refunded", &half, "business 15000 | si_1=5000 si_2=10000");
    check_life("refunded", &[on_payment, refunded(6300)].concat(), "business 5000 | si_1=5000 si_2=0");
}

#[test]
fn spent_seats_stay_spent() {
    let team = |quantity| seats("si_1", "price_team", quantity, T, month(T));
    let first = |quantity: u64| {
        vec![
            shows(T, "active", &[team(quantity)]),
            bill(
                T + 1,
                "in_1",
                "subscription_create",
                &[times(quantity, line("si_1", "price_team", 500, T, month(T)))],
            ),
        ]
    };
    let seats_at = |at: i64, quantity| shows(T + at, "active", &[team(quantity)]);
    for (what, steps, expect) in [
        ("more", vec![seats_at(9, 3)], "business 3000 | si_1=3000"),
        ("more after spending", vec![Step::Spend(900), seats_at(9, 3)], "business 2100 | si_1=2100"),
        ("1, 1000, 1", vec![seats_at(9, 1000), seats_at(10, 1)], "business 1000 | si_1=1000"),
        (
            "1, 1000, spent, 1",
            vec![seats_at(9, 1000), Step::Spend(4000), seats_at(10, 1)],
            "business 0 | si_1=0",
        ),
        (
            "1, 1000, spent, 1, 1000",
            vec![seats_at(9, 1000), Step::Spend(4000), seats_at(10, 1), seats_at(11, 1000)],
            "business 996000 | si_1=996000",
        ),
    ] {
        check_life(what, &[first(1), steps].concat(), expect);
    }
    let charged = |quantity| {
        bill(
            T + 10,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_team", -400, T + 9, month(T)),
                times(quantity, flagged("si_1", "price_team", 1300, T + 9, month(T))),
            ],
        )
    };
    let life = |steps: Vec<Step>| [vec![ON_PAYMENT], first(1), steps].concat();
    check_life("on_payment, not charged", &life(vec![seats_at(9, 3)]), "business 1000 | si_1=1000");
    check_life("on_payment, charged", &life(vec![seats_at(9, 3), charged(3)]), "business 3000 | si_1=3000");
}

#[test]
fn an_early_new_period_takes_over_the_spends_that_it_does_not_pay() {
    let at = T + 10 * DAY;
    let yearly = [vec![
        shows(T, "active", &[item("si_1", "price_pro_year", T, T + YEAR)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 20_000, T, T + YEAR)]),
        Step::Spend(4000),
        shows(at, "active", &[item("si_1", "price_pro", at, month(at))]),
    ]]
    .concat();
    let change = |credit: i64, patch: Value| {
        bill_with(
            at + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro_year", -credit, at, T + YEAR),
                line("si_1", "price_pro", 2000, at, month(at)),
            ],
            patch,
        )
    };
    for (what, invoice, expect) in [
        ("a total below zero", change(19_000, json!({})), "pro 1000 | si_1=1000"),
        ("a total of zero", change(2000, json!({})), "pro 1000 | si_1=1000"),
        ("paid in full", change(1000, json!({})), "pro 5000 | si_1=5000"),
        ("half by balance", change(1000, json!({"amount_paid": 500})), "pro 3000 | si_1=3000"),
        (
            "half out of band",
            change(1000, json!({"amount_paid": 500, "amount_paid_off_stripe": 250})),
            "pro 4000 | si_1=4000",
        ),
        ("all by balance", change(1000, json!({"amount_paid": 0})), "pro 1000 | si_1=1000"),
        (
            "no credit of unused time, half by balance",
            change(0, json!({"amount_paid": 1000})),
            "pro 3000 | si_1=3000",
        ),
    ] {
        check_life(what, &[yearly.clone(), vec![invoice]].concat(), expect);
    }
    let back = at + DAY;
    let hops = vec![
        change(19_000, json!({})),
        shows(back, "active", &[item("si_1", "price_pro_year", back, back + YEAR)]),
        bill_with(
            back + 1,
            "in_3",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1900, back, month(at)),
                line("si_1", "price_pro_year", 20_000, back, back + YEAR),
            ],
            json!({"amount_paid": 0}),
        ),
    ];
    check_life("back and forth", &[yearly, hops].concat(), "pro 1000 | si_1=1000");
}

/// Two months within the paid month, each with a period of its own: what was spent before the last cut counts
/// once, in the month that was running then.
#[test]
fn a_month_that_was_cut_short_passes_on_its_own_spends_alone() {
    let yearly = |start: i64| shows(start, "active", &[item("si_1", "price_pro_year", start, start + YEAR)]);
    let unpaid = |start: i64, id: &str| {
        let credit = flagged("si_1", "price_pro", -20_000, start, start + MONTH);
        let whole = line("si_1", "price_pro_year", 20_000, start, start + YEAR);
        bill(start + 1, id, "subscription_update", &[credit, whole])
    };
    let (first, second) = (T + 10 * DAY, T + 50 * DAY);
    let given = [
        vec![Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n")],
        opened("price_pro"),
        vec![Step::Spend(4000), yearly(first), unpaid(first, "in_2")],
    ]
    .concat();
    check_life("in the first month", &given, "pro 1000 | si_1=1000");
    let later = vec![Step::At(T + 45 * DAY), Step::Spend(100), yearly(second), unpaid(second, "in_3")];
    check_life("in the second", &[given, later].concat(), "pro 4900 | si_1=4900");
}

/// `customer.subscription.updated` from one price to another.
fn changes(at: i64, status: &str, from: &str, to: &str) -> Step {
    let shown = |price: &str| json!({"data": [plan(price)]});
    updated(at, json!({"status": status, "items": shown(to)}), json!({"items": shown(from)}))
}

/// Stripe's times are seconds; `previous_attributes` says which of two states of one second is the later one.
#[test]
fn of_two_changes_in_one_second_the_one_that_continues_the_other_counts() {
    let at = T + DAY;
    for (first, second, expect) in [
        ("price_business", "price_boost", "pro 300 | si_1=300"),
        ("price_boost", "price_business", "business 20000 | si_1=20000"),
    ] {
        let two =
            |status: &str| vec![changes(at, status, "price_pro", first), changes(at, status, first, second)];
        check_life("of a paid plan", &[opened("price_pro"), two("active")].concat(), expect);
        let trial = shows(T, "trialing", &[plan("price_pro")]);
        let trial = [vec![trial], two("trialing")].concat();
        check_life("of a trial", &trial, expect);
        // A third event of that second shows the last state again, and names no predecessor.
        let again = json!({"status": "trialing", "items": {"data": [plan(second)]}});
        let again = [trial, vec![super::sub("trial_will_end", at, again)]].concat();
        check_life("of a trial that is shown again", &again, expect);
    }
    // An event without `previous_attributes`, such as `customer.subscription.resumed`, continues nothing.
    let shown = |at: i64| super::sub("resumed", at, json!({"items": {"data": [plan("price_pro")]}}));
    let back = vec![
        shown(T),
        changes(at, "active", "price_pro", "price_business"),
        Step::Spend(1000),
        shown(at + DAY),
    ];
    check_life("shown again later", &[opened("price_pro"), back].concat(), "pro 4000 | si_1=4000");
}

/// Two of three states do not tell their order: the one between arrives last in some of the orders.
#[test]
fn the_last_of_several_states_of_a_trial_in_one_second_counts() {
    let at = T + DAY;
    let prices = ["price_business", "price_boost", "price_free"];
    let worth = |price: &str| match price {
        "price_business" => "business 20000 | si_1=20000",
        "price_boost" => "pro 300 | si_1=300",
        _ => "pro 50 | si_1=50",
    };
    for [one, two, three] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let names = [one, two, three].map(|place: usize| prices[place]);
        let life = [
            shows(T, "trialing", &[plan("price_pro")]),
            changes(at, "trialing", "price_pro", names[0]),
            changes(at, "trialing", names[0], names[1]),
            changes(at, "trialing", names[1], names[2]),
        ];
        check_life("prices", &life, worth(names[2]));
    }
    let team = |count: u64| json!({"data": [seats("si_1", "price_team", count, T, month(T))]});
    let seats_change = |from: u64, to: u64| {
        updated(at, json!({"status": "trialing", "items": team(to)}), json!({"items": team(from)}))
    };
    for (one, two, three) in [(5, 3, 4), (5, 4, 3), (3, 5, 4), (4, 3, 5)] {
        let life = [
            shows(T, "trialing", &[seats("si_1", "price_team", 2, T, month(T))]),
            seats_change(2, one),
            seats_change(one, two),
            seats_change(two, three),
        ];
        check_life("seats", &life, &format!("business {three}000 | si_1={three}000"));
    }
}

/// An update that moves only the end does not say which of two states is the later one: the later end counts.
#[test]
fn the_end_of_a_trial_is_that_of_the_last_state_of_its_second() {
    let at = T + DAY;
    let items = |(price, days): (&str, i64)| json!({"data": [item("si_1", price, T, T + days * DAY)]});
    let state = |of: (&str, i64)| json!({"status": "trialing", "items": items(of)});
    let (pro, business, boost) = ("price_pro", "price_business", "price_boost");
    for (first, second, expect) in [
        ((pro, 5), (pro, 20), 20),
        ((pro, 20), (pro, 5), 20),
        ((business, 20), (boost, 5), 5),
        ((boost, 20), (business, 5), 5),
        ((business, 5), (boost, 20), 20),
        ((boost, 5), (business, 20), 20),
    ] {
        let life = [
            shows(T, "trialing", &[item("si_1", pro, T, T + 10 * DAY)]),
            updated(at, state(first), json!({"items": items((pro, 10))})),
            updated(at, state(second), json!({"items": items(first)})),
            // It shows the last state again, and names no predecessor.
            super::sub("trial_will_end", at, state(second)),
        ];
        for order in 0..8 {
            let run = Run::of(&reordered(&life, order));
            let lots = run.account.state.buckets(&run.catalog.policy, Timestamp::from_unix(at + 1)).lots;
            let end = lots.first().and_then(|lot| lot.until).map(Timestamp::unix);
            assert_eq!(end, Some(T + expect * DAY), "{first:?}, then {second:?}, order {order}");
        }
    }
    let year = "price_pro_year";
    for states in [[(year, 20), (business, 5), (boost, 9)], [(boost, 5), (year, 20), (business, 9)]] {
        let befores = [(pro, 10), states[0], states[1]];
        let change = |(before, after)| updated(at, state(after), json!({"items": items(before)}));
        let mut life = vec![shows(T, "trialing", &[item("si_1", pro, T, T + 10 * DAY)])];
        life.extend(befores.into_iter().zip(states).map(change));
        for order in 0..16 {
            let run = Run::of(&reordered(&life, order));
            let lots = run.account.state.buckets(&run.catalog.policy, Timestamp::from_unix(at + 1)).lots;
            let end = lots.first().and_then(|lot| lot.until).map(Timestamp::unix);
            assert_eq!(end, Some(T + states[2].1 * DAY), "{states:?}, order {order}");
        }
    }
}

/// The trial of another plan begins in the second in which the paid period ends.
#[test]
fn a_trial_at_the_end_of_a_paid_period_is_no_change_of_it() {
    let next = month(T);
    let trial = shows(next, "trialing", &[item("si_1", "price_business", next, next + 14 * DAY)]);
    check_life("at its end", &[opened("price_pro"), vec![trial]].concat(), "business 5000 | si_1=5000");
}

#[test]
fn the_invoice_that_charges_a_change_counts_beside_the_one_of_the_period() {
    let at = T + DAY;
    let life = [
        opened("price_pro"),
        vec![change(at, "price_business"), charge(at + 1, "in_2", PRO, BUSINESS), tie(at + 1, "in_2")],
    ];
    let run = Run::of(&life.concat());
    let entry = &run.ledger[&LedgerKey::from_text("invoice#in_2")];
    assert_eq!(entry.note, None, "{}", run.summary());
    let payment = entry.payment.as_ref().map(|payment| (payment.amount, payment.currency.as_str()));
    assert_eq!(payment, Some((BUSINESS.1 - PRO.1, "usd")));
}

/// A coupon may cover the whole charge of a change. It paid for nothing that a later invoice credits.
#[test]
fn unused_time_of_a_change_without_a_charge_was_paid_by_the_first_payment() {
    let year = T + 20 * DAY + YEAR;
    let free = bill(
        T + 10 * DAY,
        "in_2",
        "subscription_update",
        &[flagged("si_1", "price_business", 0, T + 10 * DAY, month(T))],
    );
    let yearly = [
        flagged("si_1", "price_pro", -1000, T + 20 * DAY, month(T)),
        line("si_1", "price_pro_year", 20_000, T + 20 * DAY, year),
    ];
    let life = [
        opened("price_pro"),
        vec![
            tie(T + 1, "in_1"),
            change(T + 10 * DAY, "price_business"),
            free,
            shows(T + 20 * DAY, "active", &[item("si_1", "price_pro_year", T + 20 * DAY, year)]),
            bill(T + 20 * DAY + 1, "in_3", "subscription_update", &yearly),
            refunded(T + 21 * DAY, "pi_in_1", 2000),
        ],
    ];
    // 1000 of 20000 were paid with what the first payment had paid.
    check_life("refunded", &life.concat(), "pro 4750 | si_1=4750");
}

/// A payment fails and is paid in the second in which the plan changes.
#[test]
fn a_past_due_state_between_two_plans_of_a_second_keeps_their_order() {
    let at = T + DAY;
    let shown = |price: &str| json!({"data": [plan(price)]});
    let state = |status: &str, price: &str| json!({"status": status, "items": shown(price)});
    for (first, second, expect) in [
        ("price_business", "price_boost", "pro 300 | si_1=300"),
        ("price_boost", "price_business", "business 20000 | si_1=20000"),
    ] {
        let between = vec![
            changes(at, "active", "price_pro", first),
            updated(at, state("past_due", second), state("active", first)),
            updated(at, state("active", second), json!({"status": "past_due"})),
        ];
        check_life("a past_due state", &[opened("price_pro"), between].concat(), expect);
    }
}

/// Stripe sends `customer.subscription.updated` for any change, such as one of the metadata.
#[test]
fn states_that_repeat_do_not_crowd_out_a_change_of_plan() {
    let monthly = Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n");
    for settings in [vec![], vec![monthly]] {
        let repeated = (0..20).map(|hour| change(T + 3 * DAY + hour * 3600, "price_pro"));
        let changed = vec![
            Step::Spend(1000),
            change(T + DAY, "price_business"),
            Step::Spend(3000),
            change(T + 2 * DAY, "price_pro"),
        ];
        let given = [settings, opened("price_pro"), changed, repeated.collect()].concat();
        check_life("up, spent, down", &given, "pro 1000 | si_1=1000");
    }
}

fn trial(at: i64, end: i64) -> Step {
    shows(at, "trialing", &[item("si_1", "price_pro", at, end)])
}

fn zero(at: i64, id: &str, reason: &str, end: i64) -> Step {
    bill(at, id, reason, &[line("si_1", "price_pro", 0, at, end)])
}

#[test]
fn a_trial_grants_once_per_subscription_and_extending_it_refills_nothing() {
    let end = T + 14 * DAY;
    let begun = || vec![trial(T, end), zero(T, "in_1", "subscription_create", end)];
    check_life("begun", &begun(), "pro 2000 | si_1=2000");
    let extended = vec![
        Step::Spend(1500),
        trial(T + DAY, end + 7 * DAY),
        zero(T + DAY, "in_2", "subscription_update", end + 7 * DAY),
        trial(T + 2 * DAY, end + 14 * DAY),
        zero(T + 2 * DAY, "in_3", "subscription_update", end + 14 * DAY),
    ];
    check_life("extended twice", &[begun(), extended].concat(), "pro 500 | si_1=500");
    let changed = vec![shows(T + DAY, "trialing", &[item("si_1", "price_business", T, end)])];
    check_life(
        "the latest trialing snapshot's plan",
        &[begun(), changed].concat(),
        "business 20000 | si_1=20000",
    );
    let paid = vec![
        Step::Spend(1500),
        shows(end, "active", &[item("si_1", "price_pro", end, month(end))]),
        bill(end + 1, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, end, month(end))]),
    ];
    check_life("then paid", &[begun(), paid].concat(), "pro 5000 | si_1=5000");
    let cancelled = vec![shows(end, "canceled", &[item("si_1", "price_pro", T, end)])];
    check_life("cancelled unpaid", &[begun(), cancelled].concat(), "free 0 | si_1=0");
}

#[test]
fn a_trial_ends_neither_packs_nor_signup_credits() {
    let end = T + 14 * DAY;
    let given =
        vec![Step::Signup, pack(T - DAY, "cs_1"), trial(T, end), zero(T, "in_1", "subscription_create", end)];
    check_life("both stay", &given, "pro 3500 | pack=1000 si_1=2000 signup=500");
    // A renewal by a coupon of 100 % is a paid period.
    let renewed = vec![
        Step::Signup,
        trial(T, end),
        shows(end, "active", &[item("si_1", "price_pro", end, month(end))]),
        bill(end + 1, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 0, end, month(end))]),
    ];
    check_life("a paid period does", &renewed, "pro 5000 | si_1=5000");
}

#[test]
fn a_trial_on_a_paid_item_leaves_the_paid_bucket_alone() {
    let at = T + 5 * DAY;
    let goodwill = vec![
        Step::Spend(1000),
        trial(at, at + 20 * DAY),
        zero(at, "in_2", "subscription_update", at + 20 * DAY),
    ];
    check_life("goodwill", &[opened("price_pro"), goodwill].concat(), "pro 4000 | si_1=4000");
    let slow = vec![
        shows(T, "active", &[plan("price_pro")]),
        trial(T + 2 * DAY, T + 12 * DAY),
        bill(T + 5 * DAY, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
    ];
    check_life("a slow first payment", &slow, "pro 5000 | si_1=5000");
}

/// A trial on a paid item moves the item's period at Stripe, and may change its plan.
#[test]
fn the_plan_of_a_trial_counts_in_the_paid_period_in_which_it_begins() {
    let trial = |at: i64| shows(at, "trialing", &[item("si_1", "price_business", at, at + 20 * DAY)]);
    let within = [opened("price_pro"), vec![Step::Spend(1000), trial(T + 5 * DAY)]].concat();
    check_life("within", &within, "business 20000 | si_1=20000");
    let after = [opened("price_pro"), vec![Step::Spend(1000), trial(month(T) + DAY)]].concat();
    check_life("after it", &after, "business 4000 | si_1=4000");
}

/// Two trials of one user, on two subscriptions.
fn two_trials(second_at: i64) -> Vec<Step> {
    let end = second_at + 14 * DAY;
    let bill_of_second = json!({"parent": {"subscription_details": {"subscription": "sub_2"}}});
    let of_second = json!({"parent": {"subscription_item_details": {"subscription": "sub_2"}}});
    vec![
        trial(T, T + 14 * DAY),
        zero(T, "in_1", "subscription_create", T + 14 * DAY),
        shows_with(
            second_at,
            "trialing",
            &[item("si_2", "price_pro", second_at, end)],
            json!({"id": "sub_2"}),
        ),
        bill_with(
            second_at,
            "in_2",
            "subscription_create",
            &[patched(line("si_2", "price_pro", 0, second_at, end), &of_second)],
            bill_of_second,
        ),
    ]
}

#[test]
fn under_once_only_the_users_earliest_trial_grants() {
    check_life("once", &two_trials(T + DAY), "pro 2000 | si_1=2000 si_2=0");
    check_life("in one second the smaller id", &two_trials(T), "pro 2000 | si_1=2000 si_2=0");
    check_life("each", &[vec![EACH_TRIAL], two_trials(T + DAY)].concat(), "pro 4000 | si_1=2000 si_2=2000");
    let [first, first_bill, second, second_bill] = two_trials(T + DAY).try_into().unwrap();
    let late = Run::of(&[second, second_bill, Step::Spend(700), first, first_bill]);
    assert_eq!(super::shapes::end(&late), "pro 2000 | si_1=2000 si_2=0", "an earlier one becomes known");
}

#[test]
fn a_trial_grants_its_own_amount_for_each_seat_and_item() {
    let end = T + 9 * DAY;
    let given = vec![shows(
        T,
        "trialing",
        &[seats("si_1", "price_team", 3, T, end), item("si_2", "price_pro", T, end)],
    )];
    check_life("per item and seat", &given, "business 5000 | si_1=3000 si_2=2000");
}

/// `previous_attributes` tell the order of three states of a second
/// (<https://docs.stripe.com/api/events/object#event_object-data-previous_attributes>).
#[test]
fn a_trial_grants_the_last_plan_of_a_second_also_if_the_status_changed_between() {
    let shown = |price: &str| [item("si_1", price, T, T + 14 * DAY)];
    let then = |status: &str, price: &str, before: (&str, &str)| {
        let Step::Event(event) = shows(T + DAY, status, &shown(price)) else { panic!("no event") };
        let items = json!({"object": "list", "has_more": false, "data": shown(before.1)});
        let previous = json!({"data": {"previous_attributes": {"status": before.0, "items": items}}});
        let id = json!({"id": format!("evt_{status}_{price}_{}", before.0)});
        Step::Event(patched(patched(event, &previous), &id))
    };
    for (first, last, expect) in [
        ("price_business", "price_pro", "pro 2000 | si_1=2000"),
        ("price_pro", "price_business", "business 20000 | si_1=20000"),
    ] {
        let given = [
            shows(T, "trialing", &shown("price_boost")),
            then("trialing", first, ("trialing", "price_boost")),
            then("past_due", first, ("trialing", first)),
            then("trialing", last, ("past_due", first)),
        ];
        check_life("trialing, past_due, trialing", &given, expect);
    }
}

/// A trial grants the plans in its latest snapshot. Stripe swaps a plan also by removing the item and adding
/// another (<https://docs.stripe.com/billing/subscriptions/multiple-products#modify-existing>).
#[test]
fn an_item_that_is_removed_within_its_trial_has_no_credits() {
    let end = T + 9 * DAY;
    let removed = vec![
        shows(T, "trialing", &[item("si_1", "price_pro", T, end), item("si_2", "price_business", T, end)]),
        shows(T + DAY, "trialing", &[item("si_1", "price_pro", T, end)]),
    ];
    check_life("the second one", &removed, "pro 2000 | si_1=2000 si_2=0");
    let swapped = vec![
        shows(T, "trialing", &[item("si_1", "price_pro", T, end)]),
        shows(T + DAY, "trialing", &[item("si_2", "price_pro", T + DAY, end)]),
        shows(T + 2 * DAY, "trialing", &[item("si_3", "price_pro", T + 2 * DAY, end)]),
    ];
    check_life("swapped twice", &swapped, "pro 2000 | si_1=0 si_2=0 si_3=2000");
}

#[test]
fn on_payment_an_uncharged_change_keeps_what_counted_before_it() {
    let shown = |at: i64, price: &str, quantity: u64| {
        shows(at, "active", &[seats("si_1", price, quantity, T, month(T))])
    };
    let first = times(8, line("si_1", "price_team", 8000, T, month(T)));
    let paid = || {
        vec![
            ON_PAYMENT,
            shown(T, "price_team", 8),
            bill(T + 1, "in_1", "subscription_create", std::slice::from_ref(&first)),
        ]
    };
    let life = |steps: Vec<Step>| [paid(), steps].concat();
    let fewer = || shown(T + DAY, "price_team", 7);
    check_life("fewer seats", &life(vec![fewer()]), "business 7000 | si_1=7000");
    let uncharged = || shown(T + 2 * DAY, "price_business", 1);
    check_life(
        "then a plan that is not charged",
        &life(vec![fewer(), uncharged()]),
        "business 7000 | si_1=7000",
    );
    let back = shown(T + 3 * DAY, "price_team", 8);
    check_life(
        "then back to what was paid",
        &life(vec![fewer(), uncharged(), back]),
        "business 8000 | si_1=8000",
    );
}
