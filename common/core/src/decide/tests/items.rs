//! Items, lines and periods: what opens a period, what ends a bucket.

use serde_json::{Value, json};

use super::shapes::{
    DAY, T, YEAR, another_subscription, bill, bill_with, check_life, end, flagged, item, line, month, once,
    seats, shows, shows_with, tie, times,
};
use super::{MONTH, Run, Step, pack, patched, refunded};
use crate::credits::Credits;
use crate::ids::{CustomerId, UserId};
use crate::ledger::EntryKind;
use crate::timestamp::Timestamp;

const YEARLY: &str = "price_pro_year";

fn yearly() -> Value {
    item("si_1", YEARLY, T, T + YEAR)
}

fn yearly_line() -> Value {
    line("si_1", YEARLY, 20_000, T, T + YEAR)
}

fn boost(start: i64) -> Value {
    item("si_2", "price_boost", start, month(start))
}

fn boost_line(start: i64) -> Value {
    line("si_2", "price_boost", 500, start, month(start))
}

/// A yearly plan with a monthly item.
fn mixed() -> Vec<Step> {
    vec![
        shows(T, "active", &[yearly(), boost(T)]),
        bill(T + 1, "in_1", "subscription_create", &[yearly_line(), boost_line(T)]),
    ]
}

#[test]
fn each_item_of_a_subscription_has_its_own_period_and_bucket() {
    check_life("both items are paid", &mixed(), "pro 5300 | si_1=5000 si_2=300");
    let second = T + MONTH;
    let renewed = vec![
        Step::Spend(5100),
        shows(second, "active", &[yearly(), boost(second)]),
        bill(second + 60, "in_2", "subscription_cycle", &[boost_line(second)]),
    ];
    let given = [mixed(), renewed].concat();
    check_life("the monthly item renews alone", &given, "pro 500 | si_1=200 si_2=300");
    let unseen =
        [mixed(), vec![bill(second + 60, "in_2", "subscription_cycle", &[boost_line(second)])]].concat();
    check_life("its invoice comes without a snapshot", &unseen, "pro 5300 | si_1=5000 si_2=300");
    let both = vec![
        shows(
            T,
            "active",
            &[item("si_1", "price_pro", T, month(T)), item("si_2", "price_team", T, month(T))],
        ),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[
                line("si_1", "price_pro", 2000, T, month(T)),
                times(3, line("si_2", "price_team", 600, T, month(T))),
            ],
        ),
    ];
    check_life(
        "the highest plan among all items gives the tier",
        &both,
        "business 6000 | si_1=5000 si_2=1000",
    );
}

#[test]
fn a_paid_item_without_a_snapshot_gives_access_until_its_period_ends() {
    let paid =
        || vec![bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))])];
    check_life("within it", &paid(), "pro until day 30 5000 | si_1=5000");
    check_life("after it", &[paid(), vec![Step::At(month(T))]].concat(), "free 5000 | si_1=5000");
    let added = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        bill(
            T + DAY,
            "in_2",
            "subscription_update",
            &[line("si_2", "price_business", 9000, T + DAY, T + 31 * DAY)],
        ),
    ];
    let expect = "business until day 31 25000 | si_1=5000 si_2=20000";
    check_life("an item that the newest snapshot does not know", &added, expect);
}

/// A proration line covers the time from the change to the end of the period
/// (<https://docs.stripe.com/changelog/2015-04-07/updates-ending-periods-prorated-invoice-line-items>). Before
/// 2025-03-31.basil an item has no period but the subscription's
/// (<https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end>).
#[test]
fn the_prorated_line_of_an_item_added_within_the_period_opens_its_period() {
    let (added, end) = (T + 10 * DAY, month(T));
    let first = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, end)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, end)]),
        tie(T + 1, "in_1"),
    ];
    let with = |second: Value, charge: Value| {
        let after = vec![
            shows(added, "active", &[item("si_1", "price_pro", T, end), second]),
            bill(added + 1, "in_2", "subscription_update", &[charge]),
            tie(added + 1, "in_2"),
        ];
        [first.clone(), after].concat()
    };
    let boost = item("si_2", "price_boost", T, end);
    let given = with(boost, flagged("si_2", "price_boost", 400, added, end));
    check_life("the prorated line is paid", &given, "pro 5300 | si_1=5000 si_2=300");
    let back = [given, vec![refunded(added + DAY, "pi_in_2", 200)]].concat();
    check_life("half of it is refunded", &back, "pro 5150 | si_1=5000 si_2=150");

    let charge = times(2, flagged("si_2", "price_team", 800, added, end));
    // The price that an unpaid item had before says nothing about the period that is paid now.
    let before = vec![shows(T + DAY, "active", &[item("si_2", "price_boost", T, end)])];
    let paid = vec![bill(
        added + 1,
        "in_3",
        "subscription_update",
        &[flagged("si_2", "price_pro", 1300, added, end)],
    )];
    check_life("an old snapshot shows another price", &[before, paid].concat(), "pro 5000 | si_2=5000");

    let more = vec![
        shows(
            added + DAY,
            "active",
            &[item("si_1", "price_pro", T, end), seats("si_2", "price_team", 5, T, end)],
        ),
        Step::At(added + 2 * DAY),
    ];
    let given = [with(seats("si_2", "price_team", 2, T, end), charge), more].concat();
    check_life("more seats of it are shown later", &given, "business 10000 | si_1=5000 si_2=5000");

    // The change is made before the first invoice of the item, which then bears both.
    let later = added + DAY;
    let both = vec![
        shows(added, "active", &[item("si_1", "price_pro", T, end), seats("si_2", "price_team", 2, T, end)]),
        shows(later, "active", &[item("si_1", "price_pro", T, end), seats("si_2", "price_team", 5, T, end)]),
        bill(
            later + 1,
            "in_2",
            "subscription_update",
            &[
                times(2, flagged("si_2", "price_team", 800, added, end)),
                times(2, flagged("si_2", "price_team", -760, later, end)),
                times(5, flagged("si_2", "price_team", 1900, later, end)),
            ],
        ),
        tie(later + 1, "in_2"),
    ];
    let given = [first.clone(), both].concat();
    check_life("added and changed on one invoice", &given, "business 10000 | si_1=5000 si_2=5000");

    let replaced = vec![
        shows(added, "active", &[item("si_2", "price_business", T, end)]),
        bill(
            added + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1300, added, end),
                flagged("si_2", "price_business", 4000, added, end),
            ],
        ),
    ];
    check_life(
        "it replaces the only item",
        &[first, replaced].concat(),
        "business 20000 | si_1=0 si_2=20000",
    );

    // The invoice credits the item itself, so this charges a change of an item whose period is not paid.
    let unpaid = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, end)]),
        shows(added, "active", &[item("si_1", "price_business", T, end)]),
        bill(
            added + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1300, added, end),
                flagged("si_1", "price_business", 4000, added, end),
            ],
        ),
    ];
    check_life("an upgrade within an unpaid period", &unpaid, "business 0 | ");
}

#[test]
fn the_bucket_of_a_removed_item_ends_with_another_paid_period_after_it() {
    let removed = T + 10 * DAY;
    let given = [mixed(), vec![shows(removed, "active", &[yearly()])]].concat();
    check_life("what it granted stays at first", &given, "pro 5300 | si_1=5000 si_2=300");
    let added = item("si_3", "price_business", removed + DAY, month(removed + DAY));
    let third = vec![
        shows(removed + DAY, "active", &[yearly(), added]),
        bill(
            removed + DAY + 1,
            "in_3",
            "subscription_update",
            &[line("si_3", "price_business", 9000, removed + DAY, month(removed + DAY))],
        ),
    ];
    let given = [given, third].concat();
    check_life(
        "another item's period started after it",
        &given,
        "business 25000 | si_1=5000 si_2=0 si_3=20000",
    );
    let before = [
        mixed(),
        vec![
            shows(
                T + 2 * DAY,
                "active",
                &[yearly(), boost(T), item("si_3", "price_business", T + 2 * DAY, month(T + 2 * DAY))],
            ),
            bill(
                T + 2 * DAY + 1,
                "in_3",
                "subscription_update",
                &[line("si_3", "price_business", 9000, T + 2 * DAY, month(T + 2 * DAY))],
            ),
            shows(
                removed,
                "active",
                &[yearly(), item("si_3", "price_business", T + 2 * DAY, month(T + 2 * DAY))],
            ),
        ],
    ]
    .concat();
    let expect = "business 25300 | si_1=5000 si_2=300 si_3=20000";
    check_life("the other item's period started before it", &before, expect);
    let proven = [
        given,
        vec![bill(removed + 40 * DAY, "in_4", "subscription_cycle", &[boost_line(removed + 39 * DAY)])],
    ]
    .concat();
    let expect = "business until day 79 25300 | si_1=5000 si_2=300 si_3=20000";
    let run = Run::of(&proven);
    assert_eq!(
        super::shapes::end(&run).split(" | ").nth(1),
        expect.split(" | ").nth(1),
        "a later invoice restores it"
    );
}

/// Laravel Cashier's `swap` deletes the old item and adds one of the new price. A proration starts at its
/// `proration_date`, which is that of a preview if the amount shall be the same
/// (<https://docs.stripe.com/billing/subscriptions/prorations#preview-proration>), so the new item is billed from
/// some time before the snapshot that shows it.
#[test]
fn an_item_that_replaces_another_ends_it_when_the_change_was_previewed() {
    let (end, previewed, changed) = (month(T), T + 10 * DAY, T + 10 * DAY + 300);
    let boost = || item("si_0", "price_boost", T, end);
    let first = vec![
        shows(T + 5, "active", &[item("si_1", "price_pro", T, end), boost()]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, end), line("si_0", "price_boost", 500, T, end)],
        ),
        Step::Spend(1000),
    ];
    let swap = vec![
        shows(changed, "active", &[item("si_2", "price_business", T, end), boost()]),
        bill(
            changed + 2,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1300, previewed, end),
                flagged("si_2", "price_business", 6000, previewed, end),
            ],
        ),
    ];
    let given = [first.clone(), swap.clone()].concat();
    check_life("swapped", &given, "business 20000 | si_0=0 si_1=0 si_2=20000");
    // The other item was there before: it replaces nothing.
    let removed = vec![shows(changed, "active", &[boost()])];
    let removed = [first, removed].concat();
    check_life("only removed", &removed, "pro 4300 | si_0=0 si_1=4300");
    let back = vec![
        shows(changed + DAY, "active", &[item("si_3", "price_pro", T, end), boost()]),
        bill(
            changed + DAY + 2,
            "in_3",
            "subscription_update",
            &[
                flagged("si_2", "price_business", -5800, changed + DAY - 60, end),
                flagged("si_3", "price_pro", 1200, changed + DAY - 60, end),
            ],
        ),
    ];
    check_life("and back", &[given, back].concat(), "pro 4300 | si_0=0 si_1=0 si_2=0 si_3=4300");
}

/// A bank debit takes days. The invoice of a removed item that is paid then was made while the item was there.
#[test]
fn a_late_payment_does_not_bring_a_removed_item_back() {
    let (end, swapped, paid) = (month(T), T + 3 * DAY, T + 5 * DAY);
    let given = vec![
        shows(T, "active", &[item("si_1", "price_business", T, end)]),
        shows(swapped, "active", &[item("si_2", "price_pro", T, end)]),
        bill(
            swapped + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_business", -8100, swapped, end),
                flagged("si_2", "price_pro", 1800, swapped, end),
            ],
        ),
        bill_with(
            paid,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_business", 9000, T, end)],
            json!({"created": T}),
        ),
    ];
    check_life("paid after the swap", &given, "pro 5000 | si_1=0 si_2=5000");
}

const ON_PAYMENT: Step = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");

/// One swap of items that Laravel Cashier's `swap` makes: it sends `{id, deleted: true}` for each item whose
/// price goes, and the new prices without an id, in one update
/// (`mergeItemsThatShouldBeDeletedDuringSwap` in
/// <https://github.com/laravel/cashier-stripe/blob/15.x/src/Subscription.php>). Stripe credits the old item and
/// charges the new one to the end of the period. `items` are (id, price, quantity).
fn swap(at: i64, end: i64, invoice: &str, old: &[(&str, &str)], new: &[(&str, &str, u64)]) -> Vec<Step> {
    let items: Vec<Value> = new.iter().map(|(id, price, count)| seats(id, price, *count, T, end)).collect();
    let credits = old.iter().map(|(id, price)| flagged(id, price, -400, at, end));
    let charges = new.iter().map(|(id, price, count)| times(*count, flagged(id, price, 900, at, end)));
    let lines: Vec<Value> = credits.chain(charges).collect();
    vec![shows(at, "active", &items), bill(at + 2, invoice, "subscription_update", &lines)]
}

/// A month of `pro` of which 4,900 of 5,000 credits are spent.
fn spent_pro() -> Vec<Step> {
    let end = month(T);
    vec![
        shows(T, "active", &[item("si_1", "price_pro", T, end)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, end)]),
        Step::Spend(4900),
    ]
}

/// Both policies, each with what is expected.
#[track_caller]
fn check_both(what: &str, given: &[Step], at_once: &str, on_payment: &str) {
    check_life(what, given, at_once);
    check_life(&format!("{what}, on_payment"), &[&[ON_PAYMENT], given].concat(), on_payment);
}

#[test]
fn a_swap_and_back_does_not_fill_a_spent_plan() {
    let end = month(T);
    let there = swap(T + DAY, end, "in_2", &[("si_1", "price_pro")], &[("si_2", "price_business", 1)]);
    let back = swap(T + DAY + 60, end, "in_3", &[("si_2", "price_business")], &[("si_3", "price_pro", 1)]);
    let upgraded = [spent_pro(), there.clone()].concat();
    check_both(
        "an upgrade",
        &upgraded,
        "business 20000 | si_1=0 si_2=20000",
        "business 15100 | si_1=0 si_2=15100",
    );
    let given = [upgraded.clone(), back.clone()].concat();
    check_both("and back", &given, "pro 100 | si_1=0 si_2=0 si_3=100", "pro 100 | si_1=0 si_2=0 si_3=100");
    let given = [upgraded, vec![Step::Spend(60)], back.clone()].concat();
    check_both(
        "with spends of both",
        &given,
        "pro 40 | si_1=0 si_2=0 si_3=40",
        "pro 40 | si_1=0 si_2=0 si_3=40",
    );
    // The user spends the rest before the news of the swaps arrives.
    let late = [spent_pro(), vec![Step::Spend(100)], there, back].concat();
    check_both("late news", &late, "pro 0 | si_1=0 si_2=0 si_3=0", "pro 0 | si_1=0 si_2=0 si_3=0");
    let renewed = vec![
        shows(end, "active", &[item("si_3", "price_pro", end, month(end))]),
        bill(end + 1, "in_5", "subscription_cycle", &[line("si_3", "price_pro", 2000, end, month(end))]),
    ];
    let given = [given, renewed].concat();
    check_life("the next period", &given, "pro 5000 | si_1=0 si_2=0 si_3=5000");
}

/// A subscription may have items with different intervals
/// (<https://docs.stripe.com/billing/subscriptions/mixed-interval>). The invoice charges less than it credits.
#[test]
fn what_a_new_item_took_over_stays_taken_when_another_one_renews() {
    let (end, at) = (month(T), T + 10 * DAY);
    let yearly = item("si_3", "price_business", at, at + YEAR);
    let boost = |start: i64| item("si_2", "price_boost", start, month(start));
    let mut given = spent_pro();
    given.extend([
        shows(at, "active", &[boost(at), yearly.clone()]),
        bill(
            at + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1300, at, end),
                boost_line(at),
                line("si_3", "price_business", 700, at, at + YEAR),
            ],
        ),
    ]);
    let expect = "business 15400 | si_1=0 si_2=300 si_3=15100";
    check_life("swapped", &given, expect);
    let mut start = at;
    for invoice in ["in_3", "in_4", "in_5"] {
        start = month(start);
        given.extend([
            shows(start, "active", &[boost(start), yearly.clone()]),
            bill(start + 1, invoice, "subscription_cycle", &[boost_line(start)]),
        ]);
        check_life("the monthly item is renewed", &given, expect);
    }
}

#[test]
fn a_swap_to_another_price_of_the_plan_fills_nothing() {
    let given = [
        spent_pro(),
        swap(T + DAY, month(T), "in_2", &[("si_1", "price_pro")], &[("si_2", "price_pro_year", 1)]),
    ]
    .concat();
    check_both("another price", &given, "pro 100 | si_1=0 si_2=100", "pro 100 | si_1=0 si_2=100");
}

/// The invoice of a swap charges what is left of the new price, less what was paid for the old one.
#[test]
fn a_refund_of_a_swap_s_invoice_takes_the_share_that_its_payment_paid() {
    let (end, at) = (month(T), T + DAY);
    let swapped = |old: &[(&str, &str)]| {
        let before: Vec<Value> = old.iter().map(|(id, price)| item(id, price, T, end)).collect();
        let paid: Vec<Value> = old.iter().map(|(id, price)| line(id, price, 2000, T, end)).collect();
        let credits = old.iter().map(|(id, price)| flagged(id, price, -1600, at, end));
        let charge = flagged("si_9", "price_business", 6400, at, end);
        let lines: Vec<Value> = credits.chain([charge]).collect();
        vec![
            Step::Edit("[policy]\n", "[policy]\nrefunded_access = \"end\"\n"),
            shows(T, "active", &before),
            bill(T + 1, "in_1", "subscription_create", &paid),
            tie(T + 2, "in_1"),
            shows(at, "active", &[item("si_9", "price_business", T, end)]),
            bill(at + 1, "in_2", "subscription_update", &lines),
            tie(at + 2, "in_2"),
        ]
    };
    let back = |invoice: &str, amount| refunded(at + 9, &format!("pi_{invoice}"), amount);
    let one = swapped(&[("si_1", "price_pro")]);
    let left = |steps: &[Step], expect: &str| {
        check_both("refunded", &[&one, steps].concat(), expect, expect);
    };
    left(&[back("in_2", 4800)], "business 5000 | si_1=0 si_9=5000");
    left(&[back("in_2", 2400)], "business 12500 | si_1=0 si_9=12500");
    left(&[back("in_1", 2000)], "business 15000 | si_1=0 si_9=15000");
    left(&[back("in_1", 2000), back("in_2", 4800)], "free 0 | si_1=0 si_9=0");
    let again = [
        shows(at + 60, "active", &[item("si_10", "price_pro", T, end)]),
        bill(
            at + 61,
            "in_3",
            "subscription_update",
            &[
                flagged("si_9", "price_business", -6300, at + 60, end),
                flagged("si_10", "price_pro", 1600, at + 60, end),
            ],
        ),
    ];
    let chain = [&again[..], &[back("in_2", 4800)]].concat();
    left(&chain, "pro 1250 | si_10=1250 si_1=0 si_9=0");
    left(&[&chain[..], &[back("in_1", 2000)]].concat(), "free 0 | si_10=0 si_1=0 si_9=0");
    let two = swapped(&[("si_1", "price_pro"), ("si_2", "price_boost")]);
    let given = [two, vec![back("in_2", 3200)]].concat();
    check_life("of two items", &given, "business 10000 | si_1=0 si_2=0 si_9=10000");
}

#[test]
fn a_swap_within_a_trial_grants_no_second_trial() {
    let end = month(T);
    let trial = |at, items: &[(&str, &str)]| {
        let items: Vec<Value> = items.iter().map(|(id, price)| item(id, price, T, end)).collect();
        shows(at, "trialing", &items)
    };
    let zero = bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 0, T, end)]);
    let begun = vec![trial(T, &[("si_1", "price_pro")]), zero, Step::Spend(1500)];
    let swapped = [begun.clone(), vec![trial(T + DAY, &[("si_2", "price_pro")])]].concat();
    check_life("swapped", &swapped, "pro 500 | si_1=0 si_2=500");
    let two = trial(T + DAY, &[("si_2", "price_pro"), ("si_3", "price_boost")]);
    check_life("to two", &[begun.clone(), vec![two]].concat(), "pro 800 | si_1=0 si_2=500 si_3=300");
    let again = vec![Step::Spend(200), trial(T + 2 * DAY, &[("si_3", "price_pro")])];
    let again = [swapped, again].concat();
    check_life("and again", &again, "pro 300 | si_1=0 si_2=0 si_3=300");
    // By the API of subscription items a plan is changed in two updates.
    let both = trial(T + DAY, &[("si_1", "price_pro"), ("si_2", "price_pro")]);
    let added = [begun.clone(), vec![both, Step::Spend(500)]].concat();
    check_life("one more", &added, "pro 2000 | si_1=0 si_2=2000");
    let added = [added, vec![trial(T + DAY + 60, &[("si_2", "price_pro")])]].concat();
    check_life("and the first is removed", &added, "pro 0 | si_1=0 si_2=0");
    let beside = vec![
        trial(T, &[("si_1", "price_pro"), ("si_2", "price_boost")]),
        Step::Spend(2100),
        trial(T + DAY, &[("si_2", "price_boost")]),
    ];
    check_life("beside an item from the start", &beside, "pro 200 | si_1=0 si_2=200");
    let paid = vec![
        shows(end, "active", &[item("si_3", "price_pro", end, month(end))]),
        bill(end + 1, "in_2", "subscription_cycle", &[line("si_3", "price_pro", 2000, end, month(end))]),
    ];
    check_life("paid at the end", &[again, paid].concat(), "pro 5000 | si_1=0 si_2=0 si_3=5000");
}

#[test]
fn a_swap_within_a_trial_on_a_paid_subscription_grants_no_trial() {
    let (end, moved) = (month(T), T + 10 * DAY);
    let swap = |old: &str, amount: i64| {
        vec![
            shows(T, "active", &[item("si_1", old, T, end)]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", old, amount, T, end)]),
            shows(T + DAY, "trialing", &[item("si_1", old, T + DAY, moved)]),
            shows(T + 2 * DAY, "trialing", &[item("si_2", "price_pro", T + DAY, moved)]),
            shows(T + 3 * DAY, "trialing", &[item("si_3", "price_pro", T + DAY, moved)]),
        ]
    };
    check_life(
        "a plan that costs something",
        &swap("price_business", 8000),
        "pro 20000 | si_1=20000 si_2=0 si_3=0",
    );
    let unpaid = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, end)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, end)]),
        shows(T + DAY, "active", &[item("si_2", "price_business", T, end)]),
        shows(T + 2 * DAY, "trialing", &[item("si_3", "price_pro", T + 2 * DAY, moved)]),
    ];
    check_life("after an unpaid swap", &unpaid, "pro 5000 | si_1=5000 si_3=0");
    check_life("a free plan", &swap("price_free", 0), "pro 2050 | si_1=50 si_2=0 si_3=2000");
}

#[test]
fn a_swap_of_seats_keeps_what_was_spent() {
    let end = month(T);
    let given = [
        vec![
            shows(T, "active", &[seats("si_1", "price_team", 3, T, end)]),
            bill(T + 1, "in_1", "subscription_create", &[times(3, line("si_1", "price_team", 900, T, end))]),
            Step::Spend(2900),
        ],
        swap(T + DAY, end, "in_2", &[("si_1", "price_team")], &[("si_2", "price_business", 1)]),
        swap(T + 2 * DAY, end, "in_3", &[("si_2", "price_business")], &[("si_3", "price_team", 5)]),
    ]
    .concat();
    check_both(
        "five seats",
        &given,
        "business 2100 | si_1=0 si_2=0 si_3=2100",
        "business 2100 | si_1=0 si_2=0 si_3=2100",
    );
}

#[test]
fn an_added_or_removed_item_takes_nothing_over() {
    let end = month(T);
    let both = || [item("si_1", "price_pro", T, end), item("si_2", "price_business", T, end)];
    let added = vec![
        shows(T + DAY, "active", &both()),
        bill(
            T + DAY + 2,
            "in_2",
            "subscription_update",
            &[flagged("si_2", "price_business", 900, T + DAY, end)],
        ),
    ];
    let given = [spent_pro(), added].concat();
    check_both(
        "added",
        &given,
        "business 20100 | si_1=100 si_2=20000",
        "business 20100 | si_1=100 si_2=20000",
    );
    let removed = vec![shows(T + 2 * DAY, "active", &[item("si_2", "price_business", T, end)])];
    let given = [given, removed].concat();
    check_both(
        "the other one is removed",
        &given,
        "business 20100 | si_1=100 si_2=20000",
        "business 20100 | si_1=100 si_2=20000",
    );
}

/// As within one item: what was paid in full is full.
#[test]
fn a_swap_to_a_paid_period_of_its_own_takes_over_only_what_is_not_paid() {
    let (at, end) = (T + DAY, T + DAY + YEAR);
    let yearly = |credit: i64, paid: i64| {
        let lines =
            [flagged("si_1", "price_pro", -credit, at, month(T)), line("si_2", YEARLY, 20_000, at, end)];
        let bill = bill_with(at + 2, "in_2", "subscription_update", &lines, json!({"amount_paid": paid}));
        [spent_pro(), vec![shows(at, "active", &[item("si_2", YEARLY, at, end)]), bill]].concat()
    };
    for (what, credit, paid, expect) in [
        ("paid in full", 1900, 18_100, "pro 5000 | si_1=0 si_2=5000"),
        ("paid by half", 2000, 9000, "pro 2550 | si_1=0 si_2=2550"),
        ("paid by the unused time", 20_000, 0, "pro 100 | si_1=0 si_2=100"),
    ] {
        check_both(what, &yearly(credit, paid), expect, expect);
    }
}

#[test]
fn two_items_hand_over_to_two_others_once() {
    let end = month(T);
    let lines = [line("si_1", "price_pro", 2000, T, end), line("si_2", "price_boost", 500, T, end)];
    let given = [
        vec![
            shows(T, "active", &[item("si_1", "price_pro", T, end), item("si_2", "price_boost", T, end)]),
            bill(T + 1, "in_1", "subscription_create", &lines),
            Step::Spend(4900),
            Step::Spend(250),
        ],
        swap(
            T + DAY,
            end,
            "in_2",
            &[("si_1", "price_pro"), ("si_2", "price_boost")],
            &[("si_3", "price_team", 2), ("si_4", "price_pro_year", 1)],
        ),
    ]
    .concat();
    // All of `pro` is spent, and 150 of `boost`. What `pro` cannot hold counts against the other new item.
    check_both(
        "two for two",
        &given,
        "business 2000 | si_1=0 si_2=0 si_3=2000 si_4=0",
        "business 1850 | si_1=0 si_2=0 si_3=1850 si_4=0",
    );
}

#[test]
fn a_swap_within_a_month_of_a_year_takes_over_what_was_spent_in_that_month() {
    let (at, end) = (T + 45 * DAY, T + YEAR);
    let given = vec![
        Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n"),
        Step::Edit("credits = 20000\n", "credits = 20000\nrefill = \"month\"\n"),
        shows(T, "active", &[yearly()]),
        bill(T + 1, "in_1", "subscription_create", &[yearly_line()]),
        Step::Spend(3000),
        Step::At(T + 40 * DAY),
        Step::Spend(4900),
    ];
    let swaps = [
        swap(at, end, "in_2", &[("si_1", YEARLY)], &[("si_2", "price_business", 1)]),
        swap(at + 60, end, "in_3", &[("si_2", "price_business")], &[("si_3", YEARLY, 1)]),
    ]
    .concat();
    let given = [given, swaps].concat();
    check_both(
        "in the second month",
        &given,
        "pro 100 | si_1=0 si_2=0 si_3=100",
        "pro 100 | si_1=0 si_2=0 si_3=100",
    );
    let later = [given, vec![Step::At(at + 35 * DAY)]].concat();
    check_both(
        "the next month",
        &later,
        "pro 5000 | si_1=0 si_2=0 si_3=5000",
        "pro 5000 | si_1=0 si_2=0 si_3=5000",
    );
}

/// More swaps than the account remembers sets of items, and later than it forgets removed items.
#[test]
fn many_swaps_lose_nothing_that_was_spent() {
    let end_of_year = T + YEAR;
    let mut given = vec![
        shows(T, "active", &[yearly()]),
        bill(T + 1, "in_0", "subscription_create", &[yearly_line()]),
        Step::Spend(4900),
    ];
    let mut old = ("si_1".to_owned(), YEARLY);
    for n in 1..=24_i64 {
        let price = if n % 2 == 0 { YEARLY } else { "price_business" };
        let (new, invoice) = (format!("si_{}", n + 1), format!("in_{n}"));
        let replaced = [(old.0.as_str(), old.1)];
        given.extend(swap(T + n * DAY, end_of_year, &invoice, &replaced, &[(&new, price, 1)]));
        old = (new, price);
    }
    let later = T + 100 * DAY;
    given.extend([pack(later, "cs_1"), shows(later, "active", &[item(&old.0, YEARLY, T, end_of_year)])]);
    for policy in [vec![], vec![ON_PAYMENT]] {
        let run = Run::of(&[policy, given.clone()].concat());
        let balance = run.account.state.balance(&run.catalog.policy, run.now).get();
        assert_eq!(balance, 100 + 1000, "{}", run.summary());
    }
}

#[test]
fn the_end_of_a_removed_item_is_the_earliest_snapshot_without_it() {
    let plan = |start: i64| item("si_1", "price_pro", start, month(start));
    let next = T + MONTH;
    let given = vec![
        shows(T, "active", &[plan(T)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        shows(T + 5 * DAY, "active", &[plan(T), boost(T + 5 * DAY)]),
        bill(T + 5 * DAY, "in_2", "subscription_update", &[boost_line(T + 5 * DAY)]),
        shows(T + 9 * DAY, "active", &[plan(T)]),
        shows(next, "active", &[plan(next)]),
        bill(next + 60, "in_3", "subscription_cycle", &[line("si_1", "price_pro", 2000, next, month(next))]),
        // A later snapshot after the renewal does not move the end.
        shows(next + 90, "active", &[plan(next)]),
        shows(next + DAY, "active", &[plan(next)]),
    ];
    check_life("a later snapshot does not move it", &given, "pro 5000 | si_1=5000 si_2=0");
}

/// The account remembers 16 times at which a set of items was seen.
#[test]
fn the_end_of_a_removed_item_stays_however_many_snapshots_follow() {
    let plan = |start: i64| item("si_1", "price_pro", start, month(start));
    let next = T + 2 * DAY;
    let mut given = vec![
        shows(T, "active", &[plan(T), boost(T)]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, month(T)), boost_line(T)],
        ),
        shows(T + DAY, "active", &[plan(T)]),
        shows(next, "active", &[plan(next)]),
        bill(next + 1, "in_2", "subscription_update", &[line("si_1", "price_pro", 2000, next, month(next))]),
    ];
    given.extend((1..40).map(|hour| shows(next + hour * 3600, "active", &[plan(next)])));
    let run = Run::of(&given);
    assert_eq!(super::shapes::end(&run), "pro 5000 | si_1=5000 si_2=0", "{}", run.summary());
}

#[test]
fn an_item_that_an_invoice_of_the_same_second_names_is_not_removed() {
    let plan = |start: i64| item("si_1", "price_pro", start, month(start));
    let (at, next) = (T + DAY, T + 2 * DAY);
    let given = |removed: i64| {
        vec![
            shows(T, "active", &[plan(T), boost(T)]),
            bill(
                at,
                "in_1",
                "subscription_create",
                &[line("si_1", "price_pro", 2000, T, month(T)), boost_line(T)],
            ),
            shows(removed, "active", &[plan(T)]),
            shows(next, "active", &[plan(T), boost(T)]),
            bill(
                next + 1,
                "in_2",
                "subscription_update",
                &[line("si_1", "price_pro", 2000, next, month(next))],
            ),
        ]
    };
    let without = |mut steps: Vec<Step>| {
        steps.remove(3);
        steps
    };
    check_life("in the same second", &without(given(at)), "pro 5300 | si_1=5000 si_2=300");
    check_life("a second later", &without(given(at + 1)), "pro 5000 | si_1=5000 si_2=0");
    let business = |at: i64| line("si_2", "price_business", 9000, at, month(T));
    let tier = |shown: i64| {
        let run = Run::of(&[
            shows(T, "active", &[plan(T)]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
            shows(shown, "active", &[plan(T)]),
            bill(at, "in_2", "subscription_update", &[business(at)]),
        ]);
        run.account.state.access(&run.catalog, Timestamp::from_unix(at + 9)).tier
    };
    assert_eq!([at, at + 1].map(tier), ["business", "pro"], "its plan gives access");
}

#[test]
fn removed_items_are_forgotten_after_sixty_days_except_the_last_ten() {
    let all = |from: i64| -> Vec<Value> {
        (from..14).map(|number| item(&format!("si_{number:02}"), "price_boost", T, month(T))).collect()
    };
    let steps: Vec<Step> = (0..14).map(|number| shows(T + number * DAY, "active", &all(number))).collect();
    let left = |at: i64| {
        let run = Run::of(&[steps.clone(), vec![Step::At(at), Step::Signup]].concat());
        let items = &run.account.state.subscriptions["sub_1"].items;
        (items.len(), items.keys().next().map(ToString::to_string))
    };
    let first = |number: u32| Some(format!("si_{number:02}"));
    assert_eq!(left(T + 61 * DAY), (14, first(0)), "the first was removed on day 1");
    assert_eq!(left(T + 61 * DAY + 1), (13, first(1)));
    assert_eq!(left(T + 62 * DAY), (13, first(1)), "the second was removed on day 2");
    assert_eq!(left(T + 400 * DAY), (11, first(3)), "one is not removed");
}

#[test]
fn a_removed_item_gives_no_access() {
    let business = item("si_2", "price_business", T, month(T));
    let given = vec![
        shows(T, "active", &[yearly(), business]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[yearly_line(), line("si_2", "price_business", 9000, T, month(T))],
        ),
        shows(T + DAY, "active", &[yearly()]),
    ];
    check_life("the later snapshot wins", &given, "pro 25000 | si_1=5000 si_2=20000");
    let second = T + MONTH;
    let renewed_first = vec![
        shows(T, "active", &[yearly(), boost(T)]),
        bill(T + 1, "in_1", "subscription_create", &[yearly_line(), boost_line(T)]),
        shows(second, "active", &[yearly(), boost(second)]),
        bill(second + 1, "in_2", "subscription_cycle", &[boost_line(second)]),
        shows(second + DAY, "active", &[yearly()]),
    ];
    check_life("also over a snapshot with a later period", &renewed_first, "pro 5300 | si_1=5000 si_2=300");
}

#[test]
fn a_backdated_start_opens_the_latest_period_of_several_lines() {
    let (first, second) = (T - 2 * MONTH, T - MONTH);
    let lines = [first, second, T].map(|start| line("si_1", "price_pro", 2000, start, month(start)));
    let given = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &lines),
    ];
    check_life("one line for each past period", &given, "pro 5000 | si_1=5000");
    let classic = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, month(T)), flagged("si_1", "price_pro", 4000, first, T)],
        ),
    ];
    check_life("one line for all of it", &classic, "pro 5000 | si_1=5000");
    let upgrade = vec![
        shows(T + DAY, "active", &[item("si_1", "price_business", T, month(T))]),
        bill(
            T + DAY + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1900, T + DAY, month(T)),
                flagged("si_1", "price_business", 8000, T + DAY, month(T)),
            ],
        ),
    ];
    check_life("then an upgrade", &[given, upgrade].concat(), "business 20000 | si_1=20000");
}

#[test]
fn a_first_invoice_prorated_to_the_anchor_opens_the_period() {
    let anchor = T + 12 * DAY;
    let shown = shows(T, "active", &[item("si_1", "price_pro", T, anchor)]);
    for part in [line("si_1", "price_pro", 800, T, anchor), flagged("si_1", "price_pro", 800, T, anchor)] {
        let given = vec![shown.clone(), bill(T + 1, "in_1", "subscription_create", &[part])];
        check_life("the plan's full amount counts", &given, "pro 5000 | si_1=5000");
        let cycle = vec![
            Step::Spend(4000),
            shows(anchor, "active", &[item("si_1", "price_pro", anchor, month(anchor))]),
            bill(
                anchor + 1,
                "in_2",
                "subscription_cycle",
                &[line("si_1", "price_pro", 2000, anchor, month(anchor))],
            ),
        ];
        check_life("then the first full period", &[given, cycle].concat(), "pro 5000 | si_1=5000");
    }
    let waits = vec![shown, shows(anchor, "active", &[item("si_1", "price_pro", anchor, month(anchor))])];
    check_life("proration_behavior none: credits wait for the anchor", &waits, "pro 0 | ");
}

#[test]
fn a_flagged_line_opens_the_period_that_a_snapshot_shows() {
    let at = T + 10 * DAY;
    let opened = || {
        vec![
            shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        ]
    };
    let charged = bill(
        at + 1,
        "in_2",
        "subscription_update",
        &[
            flagged("si_1", "price_pro", -1300, at, month(T)),
            flagged("si_1", "price_business", 9000, at, month(at)),
        ],
    );
    let given = [
        opened(),
        vec![
            Step::Spend(1000),
            shows(at, "active", &[item("si_1", "price_business", at, month(at))]),
            charged.clone(),
        ],
    ]
    .concat();
    check_life("anchor=now: the line of the new period is flagged", &given, "business 20000 | si_1=20000");
    let bought =
        vec![pack(T + DAY, "cs_1"), shows(at, "active", &[item("si_1", "price_business", at, month(at))])];
    let reset = Run::of(&[opened(), bought, vec![charged.clone()]].concat());
    assert_eq!(super::shapes::end(&reset), "business 20000 | si_1=20000", "it ends the packs of before");
    let unseen = [opened(), vec![charged]].concat();
    check_life("without the snapshot it waits", &unseen, "pro 5000 | si_1=5000");
    let same = [
        opened(),
        vec![
            shows(T + 2, "active", &[item("si_1", "price_business", T, month(T))]),
            bill(
                T + 3,
                "in_2",
                "subscription_update",
                &[flagged("si_1", "price_business", 7000, T, month(T))],
            ),
        ],
    ]
    .concat();
    check_life("of an open period it is a plan change", &same, "business 20000 | si_1=20000");
}

#[test]
fn the_billing_reason_does_not_matter() {
    let reasons = [
        "subscription_create",
        "subscription_cycle",
        "subscription_update",
        "subscription_threshold",
        "subscription",
        "quote_accept",
        "automatic_pending_invoice_item_invoice",
        "manual",
        "something_new",
        "",
    ];
    for reason in reasons {
        let given = vec![
            shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
            bill(T + 1, "in_1", reason, &[line("si_1", "price_pro", 2000, T, month(T))]),
        ];
        check_life(reason, &given, "pro 5000 | si_1=5000");
    }
}

#[test]
fn a_metered_line_beside_a_plan_grants_nothing_and_is_not_parked() {
    let metered = |start| line("si_9", "price_metered", 731, start, month(start));
    let given = vec![
        shows(T, "active", &[yearly(), item("si_9", "price_metered", T, month(T))]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[yearly_line(), patched(metered(T), &json!({"amount": 0}))],
        ),
        Step::Spend(1200),
        shows(T + MONTH, "active", &[yearly(), item("si_9", "price_metered", T + MONTH, month(T + MONTH))]),
        bill(T + MONTH + 1, "in_2", "subscription_cycle", &[metered(T)]),
    ];
    check_life("on a subscription whose plan is known", &given, "pro 3800 | si_1=3800");
}

#[test]
fn an_item_takes_over_the_spends_of_a_period_only_if_it_came_within_it() {
    let pro = |id: &str| line(id, "price_pro", 2000, T, month(T));
    let first = bill(T + 1, "in_1", "subscription_create", &[pro("si_1")]);
    let next = month(T);
    let renewed = [
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        first.clone(),
        Step::Spend(4900),
        shows(next, "active", &[item("si_2", "price_free", next, month(next))]),
        bill(next + 1, "in_2", "subscription_cycle", &[line("si_2", "price_free", 0, next, month(next))]),
    ];
    assert_eq!(end(&Run::of(&renewed)), "pro 50 | si_1=0 si_2=50", "it came at the end");
    // No snapshot of before the change is known.
    let changed = swap(T + 5 * DAY, next, "in_2", &[("si_1", "price_pro")], &[("si_2", "price_pro", 1)]);
    let late = [vec![first, Step::Spend(4900)], changed].concat();
    assert_eq!(end(&Run::of(&late)), "pro 100 | si_1=0 si_2=100", "it came within");
    let both = [
        bill(T + 1, "in_1", "subscription_create", &[pro("si_1"), pro("si_2")]),
        Step::Spend(4900),
        shows(T + 5 * DAY, "active", &[item("si_2", "price_pro", T, next)]),
    ];
    assert_eq!(end(&Run::of(&both)), "pro 5000 | si_1=0 si_2=5000", "it was there before");
}

/// Stripe prorates an item that is added within the period, also at a price of 0.
#[test]
fn a_proration_of_0_opens_no_period() {
    let first = [
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
    ];
    let added = T + 5 * DAY;
    for price in ["price_free", "price_business"] {
        let both = [item("si_1", "price_pro", T, month(T)), item("si_2", price, T, month(T))];
        let zero = flagged("si_2", price, 0, added, month(T));
        let free = vec![
            shows(added, "active", &both),
            bill(added + 1, "in_2", "subscription_update", std::slice::from_ref(&zero)),
        ];
        let run = Run::of(&[first.to_vec(), free].concat());
        assert_eq!(run.balance(), Credits::new(5000), "{price}");
    }
}

/// A change at the start of a period may be billed beside the plan that it replaced.
#[test]
fn of_two_plans_of_one_item_and_period_the_one_with_the_most_credits_counts() {
    let [pro, business] = [("price_pro", 2000), ("price_business", 9000)]
        .map(|(price, amount)| line("si_1", price, amount, T, month(T)));
    for lines in [[pro.clone(), business.clone()], [business.clone(), pro.clone()]] {
        let run = Run::of(&[bill(T + 1, "in_1", "subscription_cycle", &lines)]);
        assert_eq!(run.balance(), Credits::new(20_000));
    }
    // A proration beside it is no part of it, whatever it is worth.
    let charge = flagged("si_1", "price_business", 9000, T, month(T));
    let run = Run::of(&[bill(T + 1, "in_1", "subscription_cycle", &[pro, charge])]);
    assert_eq!(run.balance(), Credits::new(5000));
}

#[test]
fn a_zero_line_opens_a_period_only_for_a_free_price_or_a_renewal() {
    let free = item("si_1", "price_free", T, month(T));
    let zero = |price| line("si_1", price, 0, T, month(T));
    let given =
        vec![shows(T, "active", &[free]), bill(T + 1, "in_1", "subscription_create", &[zero("price_free")])];
    check_life("a free price", &given, "pro 50 | si_1=50");
    let up = shows(T + DAY, "active", &[item("si_1", "price_pro", T, month(T))]);
    check_life("which was changed since", &[given, vec![up]].concat(), "pro 5000 | si_1=5000");
    let second = T + MONTH;
    let cycle = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        Step::Spend(4000),
        shows(second, "active", &[item("si_1", "price_pro", second, month(second))]),
        bill(
            second + 1,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_pro", 0, second, month(second))],
        ),
    ];
    check_life("a renewal with a full discount", &cycle, "pro 5000 | si_1=5000");
    let trial = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        Step::Spend(4000),
        shows(second, "trialing", &[item("si_1", "price_pro", second, second + 9 * DAY)]),
        bill(
            second + 1,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_pro", 0, second, second + 9 * DAY)],
        ),
    ];
    check_life("a renewal of a period that is a trial", &trial, "pro 1000 | si_1=1000");
    let with_pack = |mut steps: Vec<Step>| {
        steps.insert(2, pack(T + DAY, "cs_1"));
        steps
    };
    check_life("which leaves packs alone", &with_pack(trial), "pro 2000 | pack=1000 si_1=1000");
    check_life("the renewal ends them", &with_pack(cycle.clone()), "pro 5000 | si_1=5000");
    let first = vec![
        Step::Signup,
        shows(T, "trialing", &[item("si_1", "price_pro", T, T + 9 * DAY)]),
        bill(T + 1, "in_1", "subscription_cycle", &[line("si_1", "price_pro", 0, T, T + 9 * DAY)]),
    ];
    check_life(
        "a trial whose invoice says cycle ends no signup credits",
        &first,
        "pro 2500 | si_1=2000 signup=500",
    );
    let moved = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        Step::Spend(4000),
        bill(T + DAY, "in_2", "subscription_update", &[line("si_1", "price_pro", 0, T + DAY, T + 9 * DAY)]),
    ];
    check_life("an update of a running subscription", &moved, "pro 1000 | si_1=1000");
    let downgraded = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, second)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, second)]),
        bill(second + 1, "in_2", "manual", &[line("si_1", "price_free", 0, second, month(second))]),
        shows(second, "active", &[item("si_1", "price_free", second, month(second))]),
    ];
    check_life("a free price after a paid one", &downgraded, "pro 50 | si_1=50");
}

#[test]
fn a_full_discount_or_the_balance_pays_as_money_does() {
    let shown = || shows(T, "active", &[item("si_1", "price_pro", T, month(T))]);
    let of = |patch: Value| {
        bill_with(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, month(T))],
            patch,
        )
    };
    for (what, patch) in [
        ("by balance", json!({"amount_paid": 0, "amount_due": 0, "total": 2000})),
        ("a coupon of 100 %", json!({"amount_paid": 0, "total": 0})),
        ("out of band", json!({"amount_paid": 2000, "amount_paid_off_stripe": 2000})),
    ] {
        check_life(what, &[shown(), of(patch)], "pro 5000 | si_1=5000");
    }
    check_life("an open invoice grants nothing", &[shown(), of(json!({"status": "open"}))], "pro 0 | ");
}

#[test]
fn a_line_that_lies_ahead_opens_its_period_one_hour_before_it_starts() {
    let next = T + MONTH;
    let given = || {
        vec![
            shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
            Step::Spend(4000),
            bill(
                T + 20 * DAY,
                "in_2",
                "subscription_update",
                &[line("si_1", "price_pro", 2000, next, month(next))],
            ),
        ]
    };
    check_life("ahead", &[given(), vec![Step::At(next - 3601)]].concat(), "pro 1000 | si_1=1000");
    check_life("an hour before", &[given(), vec![Step::At(next - 3600)]].concat(), "pro 5000 | si_1=5000");
    check_life("within it", &[given(), vec![Step::At(next + DAY)]].concat(), "pro 5000 | si_1=5000");
}

#[test]
fn a_first_invoice_for_a_period_that_lies_ahead_grants_nothing_before_it() {
    let start = T + 10 * DAY;
    let ahead =
        bill(T, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, start, month(start))]);
    let at = |at: i64| Run::of(&[ahead.clone(), Step::At(at)]);
    assert_eq!(end(&at(T + DAY)), "free 0 | si_1=0");
    assert_eq!(at(start).balance().get(), 5000);
    // The account is due when the period opens, also in a trial.
    let due = |steps: &[Step]| {
        let run = Run::of(steps);
        let now = Timestamp::from_unix(T + DAY);
        let access = run.account.state.access(&run.catalog, now);
        run.account.state.next_change(&access, now).map(Timestamp::unix)
    };
    assert_eq!(due(std::slice::from_ref(&ahead)), Some(start - 3600));
    let trial = shows(T, "trialing", &[item("si_1", "price_pro", T, start)]);
    assert_eq!(due(&[trial, ahead]), Some(start - 3600));
}

#[test]
fn an_opening_counts_from_its_periods_start_whenever_it_is_paid() {
    let upgraded = T + 2 * DAY;
    let given = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        shows(upgraded, "active", &[item("si_1", "price_business", T, month(T))]),
        bill(T + 6 * DAY, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
    ];
    check_life("a late first payment comes before the change", &given, "business 20000 | si_1=20000");
    let slow = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        shows(T + MONTH, "active", &[item("si_1", "price_pro", T + MONTH, month(T + MONTH))]),
        bill(
            T + MONTH + 1,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_pro", 2000, T + MONTH, month(T + MONTH))],
        ),
        bill(
            T + MONTH + 2 * DAY,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, month(T))],
        ),
    ];
    check_life("an older period that is paid later is superseded", &slow, "pro 5000 | si_1=5000");
}

#[test]
fn the_bucket_of_an_ended_subscription_ends_with_another_paid_period() {
    let of = |patch: Value| patched(json!({"id": "sub_2", "customer": "cus_1"}), &patch);
    let first = || {
        vec![
            shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
            shows(T + 5 * DAY, "canceled", &[item("si_1", "price_pro", T, month(T))]),
        ]
    };
    let second = |start: i64| {
        let parent = json!({"parent": {"subscription_item_details": {"subscription": "sub_2"}}});
        let bills = json!({"parent": {"subscription_details": {"subscription": "sub_2"}}});
        vec![
            shows_with(start, "active", &[item("si_2", "price_boost", start, month(start))], of(json!({}))),
            bill_with(
                start + 1,
                "in_2",
                "subscription_create",
                &[patched(boost_line(start), &parent)],
                bills,
            ),
        ]
    };
    check_life("ended", &first(), "free 5000 | si_1=5000");
    check_life("at its end", &[first(), second(T + 5 * DAY)].concat(), "pro 300 | si_1=0 si_2=300");
    check_life("before its end", &[first(), second(T + 4 * DAY)].concat(), "pro 5300 | si_1=5000 si_2=300");
}

#[test]
fn openings_of_plans_reset_packs_and_those_of_seats_do_not() {
    let (plan, team) = (item("si_1", "price_pro", T, month(T)), seats("si_2", "price_team", 2, T, month(T)));
    let next = T + MONTH;
    let opened = || {
        vec![
            shows(T, "active", std::slice::from_ref(&plan)),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        ]
    };
    let bought = || pack(next - DAY, "cs_1");
    let renewal =
        bill(next + 9, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, next, month(next))]);
    let at_start = [opened(), vec![pack(next, "cs_1"), renewal.clone()]].concat();
    check_life("bought at the start", &at_start, "pro 6000 | pack=1000 si_1=5000");
    let free = line("si_1", "price_pro", 0, next, month(next));
    let free = bill(next + 9, "in_2", "subscription_cycle", &[free]);
    let at_start = [opened(), vec![pack(next, "cs_1"), free]].concat();
    check_life("of a period at a discount of all", &at_start, "pro 6000 | pack=1000 si_1=5000");
    let before = Run::of(&[opened(), vec![bought(), renewal]].concat());
    assert_eq!(before.balance().get(), 5000, "bought before the start");
    let of_seats = vec![
        shows(T, "active", &[team]),
        bill(T + 1, "in_1", "subscription_create", &[times(2, line("si_2", "price_team", 400, T, month(T)))]),
        bought(),
        bill(
            next + 9,
            "in_2",
            "subscription_cycle",
            &[times(2, line("si_2", "price_team", 400, next, month(next)))],
        ),
    ];
    check_life("a renewal of seats", &of_seats, "business 3000 | pack=1000 si_2=2000");
    let free = times(2, line("si_2", "price_team", 0, next, month(next)));
    let discounted = [&of_seats[..3], &[bill(next + 9, "in_2", "subscription_cycle", &[free])]].concat();
    check_life("at a discount of all", &discounted, "business 3000 | pack=1000 si_2=2000");
}

/// A charge in the second in which a period begins ends packs as an opening does, because either invoice may
/// arrive first. It may also arrive when that period is over.
#[test]
fn a_charge_in_the_second_of_an_opening_ends_packs_also_when_the_period_is_over() {
    // The next period follows, or there is a month between.
    let start = T + MONTH;
    for next in [T + 2 * MONTH, T + 3 * MONTH] {
        let seats_of = |id: &str, start: i64| {
            let line = times(2, line("si_1", "price_team", 400, start, month(start)));
            bill(start + 1, id, "subscription_cycle", &[line])
        };
        let charge = |start: i64| {
            let lines = [flagged("si_1", "price_business", 7000, start, month(T + MONTH))];
            bill(start + 2, "in_change", "subscription_update", &lines)
        };
        let shown = shows(start, "active", &[item("si_1", "price_business", start, month(start))]);
        let (opening, renewal) = (|| seats_of("in_1", start), || seats_of("in_2", next));
        let ended =
            |steps: &[Step]| Run::of(&[vec![pack(T, "cs_1")], steps.to_vec()].concat()).balance().get();
        let (gone, kept) = (2000, 3000);
        for (what, steps, expect) in [
            ("in time", vec![charge(start), opening(), renewal()], gone),
            ("after the next period", vec![opening(), renewal(), charge(start)], gone),
            ("the opening after both", vec![renewal(), charge(start), opening()], gone),
            ("a second later", vec![opening(), renewal(), charge(start + 1)], kept),
            ("a snapshot shows the start, in time", vec![shown.clone(), charge(start), renewal()], gone),
            ("the snapshot last", vec![charge(start), renewal(), shown.clone()], gone),
            ("the snapshot first, the charge last", vec![shown.clone(), renewal(), charge(start)], gone),
            ("no snapshot", vec![charge(start), renewal()], kept),
        ] {
            let first = bill(
                T - MONTH,
                "in_0",
                "subscription_create",
                &[line("si_1", "price_pro", 2000, T - MONTH, T)],
            );
            assert_eq!(ended(&steps), expect, "{what}");
            assert_eq!(ended(&[vec![first], steps].concat()), expect, "{what}, after a first period");
        }
        let bought = [opening(), pack(start + DAY, "cs_2"), renewal(), charge(start)];
        assert_eq!(ended(&bought), kept, "a pack that was bought after the start stays");
    }
}

/// A renewal at a discount of all ends packs for good, also when seats replace the plan afterwards.
#[test]
fn a_renewal_that_cost_nothing_ends_packs_for_good() {
    let (end, next) = (T + MONTH, T + 2 * MONTH);
    let plan = |start: i64| item("si_1", "price_business", start, month(start));
    let team = |id: &str, amount: i64, start: i64| {
        let lines = [times(2, line("si_1", "price_team", amount, start, month(start)))];
        let shown = seats("si_1", "price_team", 2, start, month(start));
        vec![shows(start, "active", &[shown]), bill(start + 1, id, "subscription_cycle", &lines)]
    };
    let paid = line("si_1", "price_business", 8000, T, end);
    let free = line("si_1", "price_business", 0, end, next);
    let given = [
        vec![shows(T, "active", &[plan(T)]), bill(T + 1, "in_1", "subscription_create", &[paid])],
        vec![pack(T + DAY, "cs_1")],
        vec![shows(end, "active", &[plan(end)]), bill(end + 1, "in_2", "subscription_cycle", &[free])],
    ];
    let trial = shows(end + 5, "trialing", &[plan(end)]);
    for (what, steps, expect) in [
        ("while it runs", vec![], 20_000),
        ("seats are paid", team("in_3", 2000, next), 2000),
        ("seats at the same discount", team("in_3", 0, next), 2000),
        ("two months of seats", [team("in_3", 2000, next), team("in_4", 2000, month(next))].concat(), 2000),
        ("it was a trial, heard in time", [vec![trial.clone()], team("in_3", 2000, next)].concat(), 3000),
        ("it was a trial, heard late", [team("in_3", 2000, next), vec![trial.clone()]].concat(), 3000),
        ("then a spend", [team("in_3", 2000, next), vec![trial.clone(), Step::Spend(0)]].concat(), 3000),
        ("an older pack arrives last", [team("in_3", 2000, next), vec![pack(T + 2, "cs_2")]].concat(), 3000),
    ] {
        assert_eq!(Run::of(&[given.concat(), steps].concat()).balance().get(), expect, "{what}");
    }
    let unheard = [given[1..].concat(), vec![trial], team("in_3", 2000, next), vec![Step::Spend(0)]].concat();
    assert_eq!(Run::of(&unheard).balance().get(), 3000, "a trial, and the period before it is not heard");
}

/// A change waits from the second in which a period began, and an invoice bills it beside the first line of a
/// newer period. Only the newer one opens, so it is the only one that may end packs; a plan of seats does not.
#[test]
fn a_charge_that_a_newer_line_of_its_invoice_supersedes_ends_no_packs() {
    let (change, end) = (T + 14 * DAY, T + MONTH);
    let lines = [
        flagged("si_1", "price_business", -700, T, end),
        flagged("si_1", "price_pro", 1100, T, end),
        flagged("si_1", "price_pro", -700, change, end),
        times(4, line("si_1", "price_team", 22_800, change, month(change))),
    ];
    let given = [
        shows(T + 1, "active", &[item("si_1", "price_pro", T, end)]),
        pack(T - DAY, "cs_1"),
        bill(change + 2, "in_1", "subscription_update", &lines),
    ];
    check_life("once and again", &given, "business 5000 | pack=1000 si_1=4000");
    let paid = bill(T + 2, "in_2", "subscription_cycle", &[line("si_1", "price_business", 8000, T, end)]);
    // A pack that is heard after the period that ends it stays, so the order counts.
    assert_eq!(Run::of(&[&given[..], &[paid]].concat()).balance().get(), 4000, "the period was paid");
}

/// An invoice bills the next period in advance at a discount of all. The period ends packs when it begins, also if
/// no event arrives then.
#[test]
fn a_renewal_that_costs_nothing_ends_packs_when_it_begins() {
    let end = T + MONTH;
    let plan = item("si_1", "price_business", T, end);
    let given = [
        vec![shows(T, "active", &[plan]), pack(T + DAY, "cs_1")],
        vec![bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_business", 8000, T, end)])],
        vec![bill(
            end - DAY,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_business", 0, end, month(end))],
        )],
    ];
    let balance = |at: i64| Run::of(&[given.concat(), vec![Step::At(at)]].concat()).balance().get();
    assert_eq!([end - 2 * 3600, end].map(balance), [21_000, 20_000]);
}

/// A changed item is removed before an invoice bills the change. The invoice credits the item from its removal
/// on, or bills time that is over, so it does not show that the item is still there.
#[test]
fn an_invoice_that_bills_the_past_of_a_removed_item_does_not_bring_it_back() {
    let (change, removal, sweep, end) = (T + 3 * DAY, T + 4 * DAY, T + 20 * DAY, T + MONTH);
    let pro = |start: i64| item("si_1", "price_pro", start, month(start));
    let given = vec![
        shows(T, "active", &[pro(T), item("si_2", "price_boost", T, end)]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, end), line("si_2", "price_boost", 300, T, end)],
        ),
        shows(change, "active", &[pro(T), item("si_2", "price_business", T, end)]),
        shows(removal, "active", &[pro(T)]),
    ];
    let changed = || {
        vec![
            flagged("si_2", "price_boost", -270, change, end),
            flagged("si_2", "price_business", 7200, change, end),
        ]
    };
    let credit = || vec![flagged("si_2", "price_business", -6934, removal, end)];
    let renewal = |lines: Vec<Value>| {
        let own = vec![line("si_1", "price_pro", 2000, end, month(end))];
        let bill = bill(end + 1, "in_2", "subscription_cycle", &[lines, own].concat());
        vec![shows(end, "active", &[pro(end)]), bill]
    };
    for (what, steps, expect) in [
        ("the renewal", renewal([changed(), credit()].concat()), "pro 5000 | si_1=5000 si_2=0"),
        ("the renewal, without the credit", renewal(changed()), "pro 5000 | si_1=5000 si_2=0"),
        (
            "an invoice within the period",
            vec![bill(sweep, "in_2", "subscription_update", &[changed(), credit()].concat())],
            "pro 25000 | si_1=5000 si_2=20000",
        ),
    ] {
        check_life(what, &[given.clone(), steps].concat(), expect);
    }
}

#[test]
fn an_unknown_setup_fee_confirms_no_payment() {
    let confirmed = |lines: &[Value]| {
        Run::of(&[bill(T + 1, "in_1", "subscription_create", lines)]).account.state.first_paid_at.is_some()
    };
    let plan = |amount| line("si_1", "price_pro", amount, T, month(T));
    assert!(!confirmed(&[plan(0), once("price_setup", 990)]), "a trial with an unknown fee");
    assert!(confirmed(&[plan(2000)]), "a paid plan");
    assert!(confirmed(&[plan(0), once("price_p1000", 990)]), "a trial with a pack");
    assert!(!confirmed(&[plan(0)]), "a trial");
}

#[test]
fn the_fifty_first_item_parks() {
    let many = |count: usize, id: &str| {
        let items: Vec<Value> =
            (0..count).map(|n| item(&format!("si_{id}{n}"), "price_team", T, month(T))).collect();
        shows_with(T, "active", &items, json!({"id": id}))
    };
    let parked = |steps: &[Step]| Run::of(steps).parked.iter().map(|(_, why)| why.code()).collect::<Vec<_>>();
    assert_eq!(parked(&[many(30, "sub_1"), many(20, "sub_2")]), Vec::<&str>::new());
    assert_eq!(parked(&[many(30, "sub_1"), many(21, "sub_2")]), ["too_many_items"]);
    assert_eq!(parked(&[many(30, "sub_1"), many(51, "sub_1")]), ["too_many_items"]);
    let lines: Vec<Value> =
        (0..51).map(|n| line(&format!("si_{n}"), "price_team", 100, T, month(T))).collect();
    assert_eq!(parked(&[bill(T, "in_1", "subscription_cycle", &lines)]), ["too_many_items"]);
    assert_eq!(parked(&[bill(T, "in_1", "subscription_cycle", &lines[..50])]), Vec::<&str>::new());
    // A price that the catalog does not have is no reason to park if nothing is charged for it.
    let free = line("si_1", "price_metered", 0, T, month(T));
    assert_eq!(parked(&[bill(T, "in_1", "subscription_cycle", &[free])]), Vec::<&str>::new());
}

#[test]
fn neither_ended_subscriptions_nor_the_same_items_count_twice_against_the_fifty() {
    let many = |count: i64| -> Vec<Value> {
        (0..count).map(|number| item(&format!("si_{number}"), "price_team", T, month(T))).collect()
    };
    let parked = |steps: Vec<Step>| Run::of(&steps).parked.len();
    let ended = vec![shows(T, "active", &many(50)), shows(T + DAY, "canceled", &many(50))];
    let next = another_subscription(2, T + 2 * DAY)[..2].to_vec();
    assert_eq!(parked([ended.clone(), next.clone()].concat()), 0);
    assert_eq!(parked([ended[..1].to_vec(), next].concat()), 2);
    assert_eq!(parked(vec![shows(T, "active", &many(30)), shows(T + DAY, "active", &many(30))]), 0);
}

#[test]
fn every_line_of_a_long_invoice_counts() {
    let ids: Vec<String> = (0..14).map(|number| format!("si_{number}")).collect();
    let items: Vec<Value> = ids.iter().map(|id| item(id, "price_boost", T, month(T))).collect();
    let lines: Vec<Value> = ids.iter().map(|id| line(id, "price_boost", 500, T, month(T))).collect();
    let run = Run::of(&[shows(T, "active", &items), bill(T + 1, "in_1", "subscription_create", &lines)]);
    assert_eq!(run.balance().get(), 14 * 300, "{}", run.summary());
}

#[test]
fn removed_items_are_forgotten_once_they_hold_nothing() {
    let mut steps = Vec::new();
    for number in 0..40 {
        let start = T + number * MONTH;
        let id = format!("si_{number}");
        steps.push(shows(start, "active", &[item(&id, "price_pro", start, month(start))]));
        let lines = [line(&id, "price_pro", 2000, start, month(start))];
        steps.push(bill(start + 1, &format!("in_{number}"), "subscription_update", &lines));
    }
    let run = Run::of(&steps);
    let known = run.account.state.subscriptions["sub_1"].items.len();
    assert!(run.balance().get() == 5000 && known <= 14, "{known} items, {}", run.summary());
}

#[test]
fn a_list_that_is_cut_short_parks() {
    let lines = [line("si_1", "price_pro", 2000, T, month(T))];
    let cut = bill_with(T, "in_1", "subscription_create", &lines, json!({"lines": {"has_more": true}}));
    let parked: Vec<_> = Run::of(&[cut]).parked.iter().map(|(_, why)| why.code()).collect();
    assert_eq!(parked, ["lines_missing"]);
}

#[test]
fn a_line_without_an_items_id_belongs_to_the_only_item_or_to_that_of_its_plan() {
    let bare = |line: Value| {
        patched(line, &json!({"parent": {"subscription_item_details": {"subscription_item": null}}}))
    };
    let one = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[bare(line("si_1", "price_pro", 2000, T, month(T)))]),
    ];
    check_life("the only item", &one, "pro 5000 | si_1=5000");
    let two = vec![
        shows(
            T,
            "active",
            &[item("si_1", "price_pro", T, month(T)), item("si_2", "price_boost", T, month(T))],
        ),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[bare(line("si_1", "price_pro", 2000, T, month(T))), bare(boost_line(T))],
        ),
    ];
    check_life("the item of its plan", &two, "pro 5300 | si_1=5000 si_2=300");
    let other_price = [
        shows(
            T,
            "active",
            &[item("si_1", "price_boost", T, month(T)), item("si_2", "price_pro_year", T, month(T))],
        ),
        bill(T + 1, "in_1", "subscription_create", &[bare(line("si_2", "price_pro", 2000, T, month(T)))]),
    ];
    for steps in [other_price.to_vec(), other_price.iter().rev().cloned().collect()] {
        let run = Run::of(&steps);
        assert_eq!(end(&run), "pro 5000 | si_2=5000", "another price of the plan: {}", run.summary());
    }
}

#[test]
fn a_deleted_customer_keeps_its_buckets_until_another_paid_period() {
    let gone = super::event("customer.deleted", T + DAY, &json!({"id": "cus_1", "object": "customer"}), None);
    let given = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        tie(T + 1, "in_1"),
        gone.into(),
        shows(T + DAY, "canceled", &[item("si_1", "price_pro", T, month(T))]),
    ];
    check_life("as at a cancellation", &given, "free 5000 | si_1=5000");
    let known = Run::of(&given).account;
    assert!(known.state.customers.contains_key(&CustomerId::new("cus_1").unwrap()));
    assert_eq!(known.user_id, UserId::new("user_1").unwrap());
}

/// An item may have the quantity 0: Stripe then bills 0 every period
/// (<https://github.com/stripe/stripe-node/issues/1279>).
#[test]
fn a_line_of_the_quantity_0_grants_nothing() {
    let second = month(T);
    let none = |at: i64| times(0, line("si_1", "price_pro", 0, at, month(at)));
    let begun = vec![
        shows(T, "active", &[seats("si_1", "price_pro", 0, T, second)]),
        bill(T + 1, "in_1", "subscription_create", &[none(T)]),
    ];
    check_life("from the start", &begun, "pro 0 | ");
    let renewed = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, second)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, second)]),
        Step::Spend(4000),
        shows(second, "active", &[seats("si_1", "price_pro", 0, second, month(second))]),
        bill(second + 1, "in_2", "subscription_cycle", &[none(second)]),
    ];
    check_life("from a renewal on", &renewed, "pro 1000 | si_1=1000");
}

/// A line without an item's id: Stripe's `line_item.subscription_item` is null for lines of older invoices.
#[test]
fn a_line_without_an_items_id_belongs_to_the_item_of_its_price_before_that_of_its_plan() {
    let unnamed = patched(
        line("si_1", "price_pro_year", 20_000, T, T + YEAR),
        &json!({"parent": {"subscription_item_details": {"subscription_item": null}}}),
    );
    let given = [
        bill(T + 1, "in_1", "subscription_create", &[unnamed]),
        shows(
            T + 2,
            "active",
            &[item("si_1", "price_pro", T, month(T)), item("si_2", "price_pro_year", T, T + YEAR)],
        ),
    ];
    for steps in [given.to_vec(), given.iter().rev().cloned().collect()] {
        let run = Run::of(&steps);
        assert_eq!(end(&run), "pro 5000 | si_2=5000", "{}", run.summary());
    }
}

#[test]
fn a_price_that_left_the_catalog_is_known_by_its_earlier_invoice() {
    let left = Step::Edit("\"price_pro\", \"price_pro_year\"", "\"price_pro_year\"");
    let month_of = |start: i64, id: &str, reason: &str| {
        bill(start + 1, id, reason, &[line("si_1", "price_pro", 2000, start, month(start))])
    };
    let run = Run::of(&[
        month_of(T, "in_1", "subscription_create"),
        Step::Spend(700),
        left,
        month_of(month(T), "in_2", "subscription_cycle"),
    ]);
    assert_eq!(end(&run), "pro until day 60 5000 | si_1=5000", "{}", run.summary());
}

/// `billing_reason` of the first invoice of a subscription that a quote starts is `quote_accept`
/// (<https://docs.stripe.com/api/invoices/object#invoice_object-billing_reason>).
#[test]
fn the_first_invoice_of_a_quote_starts_the_subscription_and_a_later_one_renews_it() {
    let of = |start: i64, id: &str, reason: &str| {
        bill(start + 1, id, reason, &[line("si_1", "price_pro", 2000, start, month(start))])
    };
    let run = Run::of(&[of(T, "in_1", "quote_accept"), of(month(T), "in_2", "subscription_threshold")]);
    let kinds: Vec<_> = run.ledger.values().map(|entry| (entry.key.as_str(), entry.kind)).collect();
    assert_eq!(kinds, [("invoice#in_1", EntryKind::Subscription), ("invoice#in_2", EntryKind::Renewal)]);
    let shown = shows(T, "active", &[item("si_1", "price_pro", T, month(T))]);
    let run = Run::of(&[shown, of(T, "in_1", "quote_accept")]);
    assert_eq!(
        run.ledger[&crate::ledger::LedgerKey::from_text("invoice#in_1")].kind,
        EntryKind::Subscription
    );
}

/// The next period is billed before the invoice of the running one arrives.
#[test]
fn an_invoice_is_superseded_neither_while_its_period_runs_nor_before_it() {
    let next = month(T);
    let run = Run::of(&[
        bill(T + 5, "in_2", "manual", &[line("si_1", "price_pro", 2000, next, month(next))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, next)]),
        Step::At(T + 10),
    ]);
    let notes: Vec<_> = run.ledger.values().map(|entry| (entry.key.as_str(), entry.note)).collect();
    assert_eq!(notes, [("invoice#in_1", None), ("invoice#in_2", None)], "{}", run.summary());
}

/// A month, then a year, then a renewal that cuts the year short. The result is the same if the year's
/// invoice arrives last. Half of the year and nothing of the renewal was paid for, so that share of what was
/// spent in the month still counts as spent: half of 1,400.
#[test]
fn a_period_that_fills_a_gap_is_heard_late() {
    let (change, next) = (T + 15 * DAY, T + 45 * DAY);
    let month_end = T + 30 * DAY;
    let first = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month_end)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month_end)]),
        Step::Spend(1400),
    ];
    let lines = [
        flagged("si_1", "price_pro", -1000, change, month_end),
        line("si_1", YEARLY, 20_000, change, change + YEAR),
    ];
    let half = json!({"amount_paid": 9500});
    let year = vec![bill_with(change + 1, "in_2", "subscription_update", &lines, half)];
    let lines = [line("si_1", YEARLY, 20_000, next, next + YEAR)];
    let free = json!({"total": 0, "amount_paid": 0});
    let renewal = vec![bill_with(next + 1, "in_3", "subscription_cycle", &lines, free)];
    for life in [[first.clone(), year.clone(), renewal.clone()], [first, renewal, year]] {
        let run = Run::of(&life.concat());
        assert_eq!(end(&run), "pro 4300 | si_1=4300", "{}", run.summary());
    }
}
