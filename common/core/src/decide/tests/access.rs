//! The tier: every row of the table of access, and the effect of edits of the catalog.

use serde_json::{Value, json};

use super::shapes::{DAY, T, YEAR, bill, check_life, flagged, item, line, month, shows, shows_with};
use super::{Step, patched};

const NEXT: i64 = T + super::MONTH;
/// Days of grace in the catalog of the tests.
const GRACE: i64 = 5;

fn plan(price: &str, start: i64) -> Value {
    item("si_1", price, start, month(start))
}

fn opened(price: &str) -> Vec<Step> {
    vec![
        shows(T, "active", &[plan(price, T)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", price, 2000, T, month(T))]),
    ]
}

/// After a paid month: this status of the next, unpaid one.
fn unpaid(status: &str, at: i64, patch: Value) -> Vec<Step> {
    [
        opened("price_pro"),
        vec![
            shows(NEXT, "active", &[plan("price_pro", NEXT)]),
            shows_with(NEXT + 60, status, &[plan("price_pro", NEXT)], patch),
            Step::At(at),
        ],
    ]
    .concat()
}

#[test]
fn each_status_without_a_payment_gives_its_row_of_the_table() {
    for (status, tier) in [
        ("active", "pro"),
        ("trialing", "pro"),
        ("incomplete", "free"),
        ("incomplete_expired", "free"),
        ("unpaid", "free"),
        ("canceled", "free"),
        ("paused", "free"),
        ("something_new", "free"),
    ] {
        let run = super::Run::of(&[shows(T, status, &[plan("price_pro", T)])]);
        let access = run.account.state.access(&run.catalog, run.now);
        assert_eq!(access.tier, tier, "{status}");
    }
}

#[test]
fn past_due_has_a_grace_from_the_start_of_the_unpaid_period() {
    let of = |days: i64| unpaid("past_due", NEXT + days * DAY, json!({}));
    check_life("within it", &of(GRACE - 1), "pro until day 35 5000 | si_1=5000");
    check_life("after it", &of(GRACE), "free 5000 | si_1=5000");
    let invoiced = |days: i64| {
        unpaid(
            "past_due",
            NEXT + days * DAY,
            json!({"collection_method": "send_invoice", "days_until_due": 14}),
        )
    };
    check_life(
        "send_invoice, in the days_until_due",
        &invoiced(14 + GRACE - 1),
        "pro until day 49 5000 | si_1=5000",
    );
    check_life("send_invoice, after them and the grace", &invoiced(14 + GRACE), "free 5000 | si_1=5000");
}

/// Stripe sets `past_due` when the invoice is not paid by its due date
/// (<https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses>). An invoice that is due in
/// 30 days falls due when the next period has begun.
#[test]
fn an_invoice_that_falls_due_in_the_next_period_gives_no_period_of_grace_more() {
    let third = NEXT + super::MONTH;
    let sent = json!({"collection_method": "send_invoice", "days_until_due": 30});
    let status =
        |at: i64, status: &str, start: i64| shows_with(at, status, &[plan("price_pro", start)], sent.clone());
    let paid = [opened("price_pro"), vec![status(NEXT, "active", NEXT)]].concat();
    let late = vec![
        status(third, "active", third),
        status(third + 3600, "past_due", third),
        status(third + 9 * DAY, "past_due", third),
    ];
    let unpaid = |more: &[Step], day| [&paid, late.as_slice(), more, &[Step::At(T + day * DAY)]].concat();
    check_life("within the grace", &unpaid(&[], 64), "pro until day 65 5000 | si_1=5000");
    check_life("after it", &unpaid(&[], 70), "free 5000 | si_1=5000");
    // Nothing was paid at all.
    let never =
        [vec![status(T, "active", T), status(NEXT + 3600, "past_due", NEXT)], vec![Step::At(NEXT + 4 * DAY)]];
    check_life("the first invoice", &never.concat(), "pro until day 35 0 | ");
    // The second invoice was voided, and the third one is late.
    let fourth = third + super::MONTH;
    let voided = vec![
        status(third, "active", third),
        status(fourth, "active", fourth),
        status(fourth + 3600, "past_due", fourth),
        Step::At(T + 94 * DAY),
    ];
    check_life("a voided one before", &[paid, voided].concat(), "pro until day 95 5000 | si_1=5000");
    // The days are raised when the first invoice after a trial is late. The trial had nothing to pay.
    let after_trial = |at: i64, status: &str, start: i64, days: i64| {
        let items = [item("si_1", "price_pro", start, start + 14 * DAY)];
        let sent = json!({"collection_method": "send_invoice", "days_until_due": days});
        shows_with(T + at * DAY, status, &items, sent)
    };
    let raised = vec![
        after_trial(0, "trialing", T, 3),
        after_trial(14, "active", T + 14 * DAY, 3),
        after_trial(17, "past_due", T + 14 * DAY, 10),
        Step::At(T + 20 * DAY),
    ];
    check_life("after a trial", &raised, "pro until day 29 2000 | si_1=2000");
}

/// A payment fails and is made again in one second: the period is in order then.
#[test]
fn a_period_that_was_paid_in_the_second_of_its_failure_is_not_overdue() {
    let third = NEXT + super::MONTH;
    let shown = |at: i64, status: &str, start: i64| shows(at, status, &[plan("price_pro", start)]);
    let late = vec![
        shown(NEXT + 3600, "past_due", NEXT),
        shown(NEXT + 3600, "active", NEXT),
        shown(third + 3600, "past_due", third),
        Step::At(third + 2 * DAY),
    ];
    check_life(
        "in the next period",
        &[opened("price_pro"), late].concat(),
        "pro until day 65 5000 | si_1=5000",
    );
}

/// Stripe makes an invoice for each period, also while the one before it is unpaid. With the setting "leave
/// the subscription past-due", or with retries for longer than a period, the status stays `past_due`
/// (<https://support.stripe.com/questions/retry-schedules-longer-than-a-subscription-s-billing-period>).
#[test]
fn the_grace_of_past_due_does_not_begin_again_with_each_unpaid_period() {
    let third = NEXT + super::MONTH;
    let fourth = third + super::MONTH;
    let overdue = |start: i64| shows(start, "past_due", &[plan("price_pro", start)]);
    let at = |steps: Vec<Step>, at: i64| [steps, vec![Step::At(at)]].concat();
    let second = at(unpaid("past_due", third, json!({})), third);
    let life = [second, vec![overdue(third)]].concat();
    check_life("in the second unpaid period", &at(life.clone(), third + DAY), "free 5000 | si_1=5000");
    let life = [life, vec![overdue(fourth)]].concat();
    check_life("in the third", &at(life.clone(), fourth + DAY), "free 5000 | si_1=5000");
    let paid =
        bill(third + 9, "in_3", "subscription_cycle", &[line("si_1", "price_pro", 2000, third, fourth)]);
    let late = [life.clone(), vec![paid]].concat();
    check_life("a later period is paid", &at(late, fourth + DAY), "pro until day 95 5000 | si_1=5000");
    // The invoice of the second period is void: it is active again, and the third one begins a new grace.
    let void = [
        unpaid("past_due", third, json!({})),
        vec![
            shows(NEXT + 20 * DAY, "active", &[plan("price_pro", NEXT)]),
            shows(third, "active", &[plan("price_pro", third)]),
            shows(third + 60, "past_due", &[plan("price_pro", third)]),
        ],
    ]
    .concat();
    check_life("a void invoice", &at(void, third + DAY), "pro until day 65 5000 | si_1=5000");
    // After a trial nothing was ever paid.
    let trial = vec![
        shows(T, "trialing", &[plan("price_pro", T)]),
        shows(NEXT, "past_due", &[plan("price_pro", NEXT)]),
    ];
    check_life("after a trial", &at(trial.clone(), NEXT + DAY), "pro until day 35 2000 | si_1=2000");
    let trial = [trial, vec![overdue(third)]].concat();
    check_life("and in the next period", &at(trial, third + DAY), "free 2000 | si_1=2000");
}

#[test]
fn unpaid_canceled_paused_and_incomplete_give_nothing_beyond_the_paid_period() {
    let failed = json!({"cancellation_details": {"reason": "payment_failed"}});
    for (status, patch) in [
        ("unpaid", json!({})),
        ("canceled", failed),
        ("canceled", json!({})),
        ("paused", json!({})),
        ("incomplete", json!({})),
    ] {
        check_life(status, &unpaid(status, NEXT + DAY, patch), "free 5000 | si_1=5000");
    }
}

/// A yearly plan that is paid, and a monthly item of another plan that is not.
fn dunned(status: &str, patch: Value) -> Vec<Step> {
    let items = |start| {
        [item("si_1", "price_pro_year", T, T + YEAR), item("si_2", "price_business", start, month(start))]
    };
    vec![
        shows(T, "active", &items(T)),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[
                line("si_1", "price_pro_year", 20_000, T, T + YEAR),
                line("si_2", "price_business", 9000, T, month(T)),
            ],
        ),
        shows_with(NEXT + 60, status, &items(NEXT), patch),
    ]
}

#[test]
fn one_dunning_covers_all_items_and_each_keeps_its_own_paid_period() {
    let failed = || json!({"cancellation_details": {"reason": "payment_failed"}});
    let at = |days: i64, steps: Vec<Step>| [steps, vec![Step::At(NEXT + days * DAY)]].concat();
    let buckets = "25000 | si_1=5000 si_2=20000";
    let past_due = at(1, dunned("past_due", json!({})));
    check_life(
        "past_due, in the grace of the monthly item",
        &past_due,
        &format!("business until day 35 {buckets}"),
    );
    let past_due = at(9, dunned("past_due", json!({})));
    check_life("past_due, after it", &past_due, &format!("pro until day 365 {buckets}"));
    check_life("unpaid", &at(1, dunned("unpaid", json!({}))), &format!("pro until day 365 {buckets}"));
    check_life(
        "canceled unpaid",
        &at(1, dunned("canceled", failed())),
        &format!("pro until day 365 {buckets}"),
    );
    check_life("canceled by the customer", &at(1, dunned("canceled", json!({}))), &format!("free {buckets}"));
}

#[test]
fn a_declined_upgrade_keeps_the_plan_that_was_paid_for() {
    for status in ["past_due", "unpaid"] {
        let upgraded = shows(T + 20 * DAY, status, &[plan("price_business", T)]);
        let given =
            |days: i64| [opened("price_pro"), vec![upgraded.clone(), Step::At(T + days * DAY)]].concat();
        check_life(status, &given(21), "pro until day 30 5000 | si_1=5000");
        check_life(status, &given(36), "free 5000 | si_1=5000");
    }
    let down = [opened("price_business"), vec![shows(T + DAY, "past_due", &[plan("price_pro", T)])]].concat();
    check_life("the lower of the two plans", &down, "pro until day 30 20000 | si_1=20000");
    let paid = [
        opened("price_pro"),
        vec![
            shows(T + DAY, "past_due", &[plan("price_business", T)]),
            bill(
                T + 2 * DAY,
                "in_2",
                "subscription_update",
                &[
                    flagged("si_1", "price_pro", -1900, T + DAY, month(T)),
                    flagged("si_1", "price_business", 9000, T + DAY, month(T)),
                ],
            ),
            shows(T + 2 * DAY, "active", &[plan("price_business", T)]),
        ],
    ]
    .concat();
    check_life("paid later", &paid, "business 20000 | si_1=20000");
}

#[test]
fn pause_collection_keeps_access_or_ends_it_with_the_paid_period() {
    let paused = json!({"pause_collection": {"behavior": "void", "resumes_at": null}});
    let given = |days: i64| {
        [
            opened("price_pro"),
            vec![
                shows_with(T + DAY, "active", &[plan("price_pro", T)], paused.clone()),
                Step::At(T + days * DAY),
            ],
        ]
        .concat()
    };
    let until = Step::Edit("[policy]\n", "[policy]\npause_collection = \"until_period_end\"\n");
    check_life("keep", &given(40), "pro 5000 | si_1=5000");
    let ends = |days| [vec![until.clone()], given(days)].concat();
    check_life("until_period_end, within it", &ends(20), "pro until day 30 5000 | si_1=5000");
    check_life("until_period_end, after it", &ends(30), "free 5000 | si_1=5000");
}

#[test]
fn a_pause_cuts_the_period_and_opens_none() {
    let cut = T + 9 * DAY;
    let resumed = cut + 10 * DAY;
    let given = [
        opened("price_pro"),
        vec![Step::Spend(4000), shows(cut, "paused", &[item("si_1", "price_pro", T, cut)])],
    ]
    .concat();
    check_life("paused", &given, "free 1000 | si_1=1000");
    let unpaid = [given.clone(), vec![shows(resumed, "active", &[plan("price_pro", resumed)])]].concat();
    check_life("resumed without a payment", &unpaid, "pro 1000 | si_1=1000");
    let paid = [
        unpaid,
        vec![bill(
            resumed + 1,
            "in_2",
            "subscription_update",
            &[line("si_1", "price_pro", 2000, resumed, month(resumed))],
        )],
    ]
    .concat();
    check_life("resumed and paid", &paid, "pro 5000 | si_1=5000");
}

#[test]
fn both_ways_of_cancelling_end_access_at_their_time() {
    let of = |patch: Value| {
        [opened("price_pro"), vec![shows_with(T + DAY, "active", &[plan("price_pro", T)], patch)]].concat()
    };
    check_life(
        "cancel_at_period_end",
        &of(json!({"cancel_at_period_end": true})),
        "pro until day 30 5000 | si_1=5000",
    );
    check_life("cancel_at", &of(json!({"cancel_at": T + 9 * DAY})), "pro until day 9 5000 | si_1=5000");
    let over = [of(json!({"cancel_at": T + 9 * DAY})), vec![Step::At(T + 9 * DAY)]].concat();
    check_life("at its time", &over, "free 5000 | si_1=5000");
}

#[test]
fn a_complimentary_plan_joins_access_like_a_subscription() {
    let gift =
        |days: i64| Step::Complimentary { plan: "business", until: Some(T + days * DAY), credits: 100 };
    let given = |days: i64| [opened("price_pro"), vec![gift(5), Step::At(T + days * DAY)]].concat();
    check_life("while it runs", &given(2), "business until day 5 5100 | grant=100 si_1=5000");
    check_life("after its end", &given(6), "pro 5000 | grant=0 si_1=5000");
    let endless =
        vec![Step::Complimentary { plan: "business", until: None, credits: 0 }, Step::At(T + 900 * DAY)];
    check_life("without an end", &endless, "business 0 | ");
}

#[test]
fn a_customer_who_was_deleted_has_no_access() {
    let gone = || {
        super::event("customer.deleted", T + DAY, &json!({"id": "cus_1", "object": "customer"}), None).into()
    };
    check_life(
        "its subscription is still shown as active",
        &[opened("price_pro"), vec![gone()]].concat(),
        "free 5000 | si_1=5000",
    );
    let late =
        [opened("price_pro"), vec![gone(), shows(T + 2 * DAY, "active", &[plan("price_pro", T)])]].concat();
    check_life("a later event restores nothing", &late, "free 5000 | si_1=5000");
    let invoice_only = [vec![opened("price_pro")[1].clone()], vec![gone()]].concat();
    check_life("known by an invoice only", &invoice_only, "free 5000 | si_1=5000");
    let other = patched(json!({"id": "sub_2", "customer": "cus_2"}), &json!({}));
    let second = [
        opened("price_pro"),
        vec![gone(), shows_with(T + DAY, "active", &[item("si_2", "price_boost", T, month(T))], other)],
    ]
    .concat();
    check_life("another customer of the user keeps its own", &second, "pro 5000 | si_1=5000");
}

#[test]
fn an_edit_of_the_catalog_does_not_change_the_past() {
    let business = || shows(T + DAY, "active", &[plan("price_business", T)]);
    let lower = Step::Edit("credits = 5000", "credits = 3000");
    let next = vec![
        shows(NEXT, "active", &[plan("price_pro", NEXT)]),
        bill(NEXT + 1, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, NEXT, month(NEXT))]),
    ];
    check_life(
        "a running period keeps its worth",
        &[opened("price_pro"), vec![lower.clone()], vec![shows(T + 9, "active", &[plan("price_pro", T)])]]
            .concat(),
        "pro 5000 | si_1=5000",
    );
    check_life(
        "the next one has the new worth",
        &[opened("price_pro"), vec![lower.clone()], next.clone()].concat(),
        "pro 3000 | si_1=3000",
    );
    check_life(
        "a return to the plan has the stored worth",
        &[
            opened("price_pro"),
            vec![lower, business(), shows(T + 2 * DAY, "active", &[plan("price_pro", T)])],
        ]
        .concat(),
        "pro 5000 | si_1=5000",
    );
    let resold =
        || bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]);
    let again =
        [opened("price_pro"), vec![Step::Edit("credits = 5000", "credits = 9000"), resold()]].concat();
    check_life("the same invoice again is no conflict", &again, "pro 5000 | si_1=5000");
}

#[test]
fn a_price_that_left_the_catalog_keeps_its_worth() {
    let gone = Step::Edit("\"price_pro\", ", "");
    let next = vec![
        Step::Spend(4000),
        shows(NEXT, "active", &[plan("price_pro", NEXT)]),
        bill(NEXT + 1, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, NEXT, month(NEXT))]),
    ];
    let given = [opened("price_pro"), vec![gone], next].concat();
    check_life("a renewal grants what the last period was worth", &given, "pro 5000 | si_1=5000");
}
