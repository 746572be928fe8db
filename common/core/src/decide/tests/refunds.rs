//! Refunds and disputes, whichever document their payment paid.

use serde_json::{Value, json};

use super::shapes::{
    DAY, T, YEAR, bill, bill_with, check_life, flagged, item, line, month, once, seats, shows, tie, tie_by,
};
use super::{MONTH, Run, Step, dispute, event, patched, refund, refunded};
use crate::decide::{Outcome, Payments, add_reversals, decide};
use crate::ids::SessionId;
use crate::ledger::LedgerKey;
use crate::reversal::PaymentRecord;
use crate::timestamp::Timestamp;

fn plan(price: &str) -> Value {
    item("si_1", price, T, month(T))
}

/// One month of `price_pro` for 2000, tied to its payment.
fn opened() -> Vec<Step> {
    vec![
        shows(T, "active", &[plan("price_pro")]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        tie(T + 1, "in_1"),
    ]
}

/// A month of seats of `si_1`.
fn seat_line(quantity: u64, amount: i64, start: i64) -> Value {
    patched(line("si_1", "price_team", amount, start, month(start)), &json!({"quantity": quantity}))
}

/// An upgrade to `price_business` that an invoice of 7100 charges.
fn upgraded() -> Vec<Step> {
    let at = T + DAY;
    vec![
        shows(at, "active", &[plan("price_business")]),
        bill(
            at + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1900, at, month(T)),
                flagged("si_1", "price_business", 9000, at, month(T)),
            ],
        ),
        tie(at + 1, "in_2"),
    ]
}

const LATER: i64 = T + 3 * DAY;

/// At the start of an unpaid period the plan is changed. The invoice of the change credits the unpaid period
/// and not the one before it, so that its own payment paid for all of the new plan.
#[test]
fn a_period_that_has_ended_paid_for_nothing_of_the_next() {
    let next = month(T);
    let changed = |at: i64| {
        vec![
            shows(at, "active", &[item("si_1", "price_business", at, month(at))]),
            bill(
                at + 1,
                "in_3",
                "subscription_update",
                &[
                    flagged("si_1", "price_pro", -2000, at, month(at)),
                    flagged("si_1", "price_business", 10_000, at, month(at)),
                ],
            ),
            tie(at + 1, "in_3"),
        ]
    };
    for (what, at, back, expect) in [
        ("half", next, 4000, "business 10000 | si_1=10000"),
        ("all", next, 8000, "business 0 | si_1=0"),
        ("all, while the period before runs", next - 1, 8000, "business 4000 | si_1=4000"),
    ] {
        let given = [opened(), changed(at), vec![refunded(next + DAY, "pi_in_3", back)]].concat();
        check_life(what, &given, expect);
    }
}

/// An app swaps items and charges from the start of the period that was just paid (`proration_date`).
#[test]
fn a_swap_from_the_start_of_a_paid_period_credits_that_period() {
    let next = month(T);
    let lines = [
        flagged("si_1", "price_pro", -2000, next, month(next)),
        flagged("si_2", "price_business", 8000, next, month(next)),
    ];
    let given = vec![
        shows(next - 1, "active", &[plan("price_pro")]),
        bill(next, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, next, month(next))]),
        tie(next, "in_2"),
        shows(next + 600, "active", &[item("si_2", "price_business", next, month(next))]),
        bill(next + 601, "in_3", "subscription_update", &lines),
        tie(next + 601, "in_3"),
    ];
    let back = |payment: &str, amount: i64| refunded(next + DAY, payment, amount);
    for (what, steps, expect) in [
        ("nothing", vec![], "business 20000 | si_1=0 si_2=20000"),
        ("the renewal", vec![back("pi_in_2", 2000)], "business 15000 | si_1=0 si_2=15000"),
        ("the swap", vec![back("pi_in_3", 6000)], "business 5000 | si_1=0 si_2=5000"),
        ("both", vec![back("pi_in_2", 2000), back("pi_in_3", 6000)], "business 0 | si_1=0 si_2=0"),
        ("the month before", vec![back("pi_in_1", 2000)], "business 20000 | si_1=0 si_2=20000"),
    ] {
        check_life(what, &[opened(), given.clone(), steps].concat(), expect);
    }
}

/// The renewal is paid after the swap; items are swapped twice from the same second on; the period that began in
/// the second of the swap is not paid.
#[test]
fn each_payment_of_a_swap_from_the_start_of_a_period_pays_its_share() {
    let next = month(T);
    let of = |id: &str, price: &str, amount: i64| flagged(id, price, amount, next, month(next));
    let renewal = |at: i64| {
        let lines = [line("si_1", "price_pro", 2000, next, month(next))];
        let made = json!({"created": next});
        vec![bill_with(at, "in_2", "subscription_cycle", &lines, made), tie(at, "in_2")]
    };
    let swapped = |at: i64, bill_id: &str, old: Value, new: Value| {
        let id = new["parent"]["subscription_item_details"]["subscription_item"].as_str().unwrap();
        vec![
            shows(at, "active", &[item(id, "price_business", next, month(next))]),
            bill(at + 1, bill_id, "subscription_update", &[old, new.clone()]),
            tie(at + 1, bill_id),
        ]
    };
    let first =
        swapped(next + 600, "in_3", of("si_1", "price_pro", -2000), of("si_2", "price_business", 8000));
    let second = swapped(
        next + 1200,
        "in_4",
        of("si_2", "price_business", -8000),
        of("si_3", "price_business", 10_000),
    );
    let back = |payment: &str, amount: i64| vec![refunded(next + DAY, payment, amount)];
    let late = [first.clone(), renewal(next + 900)].concat();
    let twice = [renewal(next), first.clone(), second].concat();
    for (what, steps, expect) in [
        ("the late renewal", [late.clone(), back("pi_in_2", 2000)].concat(), 15_000),
        ("the swap before it", [late, back("pi_in_3", 6000)].concat(), 5000),
        ("the first of two swaps", [twice.clone(), back("pi_in_3", 6000)].concat(), 8000),
        ("the second of two swaps", [twice.clone(), back("pi_in_4", 2000)].concat(), 16_000),
        ("the renewal before both", [twice, back("pi_in_2", 2000)].concat(), 16_000),
        ("all of a swap from an unpaid period", [first, back("pi_in_3", 6000)].concat(), 0),
    ] {
        let shown = vec![shows(next - 1, "active", &[plan("price_pro")])];
        assert_eq!(Run::of(&[opened(), shown, steps].concat()).balance().get(), expect, "{what}");
    }
}

/// Six changes, each with a period of its own: the first payment paid a part of the last period.
#[test]
fn the_first_payment_pays_a_share_of_a_period_after_six_changes() {
    let mut given = opened();
    for change in 1..=6 {
        let (at, id) = (T + change * DAY, format!("in_change_{change}"));
        let lines = [
            flagged("si_1", "price_pro", -1900, at, month(at - DAY)),
            line("si_1", "price_pro", 2000, at, month(at)),
        ];
        given.push(shows(at, "active", &[item("si_1", "price_pro", at, month(at))]));
        given.push(bill(at + 1, &id, "subscription_update", &lines));
        given.push(tie(at + 1, &id));
    }
    // Of 5000 credits, 0.95 to the sixth power are paid by the first payment, rounded down at each step.
    given.push(refunded(T + 10 * DAY, "pi_in_1", 2000));
    check_life("six changes", &given, "pro 1327 | si_1=1327");
}

#[test]
fn a_refund_takes_its_share_of_the_total() {
    for (what, steps, expect) in [
        ("half", vec![refunded(LATER, "pi_in_1", 1000)], "pro 2500 | si_1=2500"),
        ("all", vec![refunded(LATER, "pi_in_1", 2000)], "pro 0 | si_1=0"),
        ("a third is rounded down", vec![refunded(LATER, "pi_in_1", 667)], "pro 3333 | si_1=3333"),
        (
            "charge and refund are one",
            vec![
                refunded(LATER, "pi_in_1", 1000),
                refund("created", LATER, "pi_in_1", "re_1", 1000, "succeeded"),
            ],
            "pro 2500 | si_1=2500",
        ),
        (
            "cumulative",
            vec![refunded(LATER, "pi_in_1", 500), refunded(LATER + 9, "pi_in_1", 1500)],
            "pro 1250 | si_1=1250",
        ),
        (
            "failed",
            vec![
                refunded(LATER, "pi_in_1", 1000),
                refund("created", LATER, "pi_in_1", "re_1", 1000, "pending"),
                refund("failed", LATER + 9, "pi_in_1", "re_1", 1000, "failed"),
            ],
            "pro 5000 | si_1=5000",
        ),
        (
            "pending alone",
            vec![refund("created", LATER, "pi_in_1", "re_1", 1000, "pending")],
            "pro 5000 | si_1=5000",
        ),
        (
            "pending, and the charge counts it",
            vec![
                refunded(LATER, "pi_in_1", 1000),
                refund("created", LATER, "pi_in_1", "re_1", 1000, "pending"),
            ],
            "pro 2500 | si_1=2500",
        ),
    ] {
        check_life(what, &[opened(), steps].concat(), expect);
    }
}

#[test]
fn what_was_spent_or_paid_by_balance_is_not_taken() {
    let spent = [opened(), vec![Step::Spend(4000), refunded(LATER, "pi_in_1", 1000)]].concat();
    check_life("spent", &spent, "pro 0 | si_1=0");
    let run = Run::of(&spent);
    assert!(run.summary().contains("-1000 shortfall 1500"), "{}", run.summary());
    let by_balance = vec![
        shows(T, "active", &[plan("price_pro")]),
        bill_with(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, month(T))],
            json!({"amount_paid": 200}),
        ),
        tie(T + 1, "in_1"),
        refunded(LATER, "pi_in_1", 200),
    ];
    check_life("a tenth was paid in cash", &by_balance, "pro 4500 | si_1=4500");
}

/// A bank may dispute all of a charge of which a part is refunded. If the dispute is lost, no more than the rest
/// goes back
/// (<https://support.stripe.com/questions/dispute-for-full-charge-amount-after-a-partial-refund-was-issued>).
#[test]
fn a_refund_and_a_dispute_take_no_more_than_their_payment_paid() {
    let by_card = |payment: &str| tie_by(T + 1, "in_1", payment);
    let life = |status: &str| {
        vec![
            shows(T, "active", &[plan("price_pro")]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 4000, T, month(T))]),
            by_card("pi_1"),
            by_card("pi_2"),
            refunded(LATER, "pi_1", 1000),
            dispute("closed", LATER + 9, "pi_1", status),
        ]
    };
    // Two payments of 2000. The other one is neither refunded nor disputed.
    check_life("lost", &life("lost"), "pro 2500 | si_1=2500");
    check_life("won", &life("won"), "pro 3750 | si_1=3750");
    let both = [life("lost"), vec![refunded(LATER, "pi_2", 2000)]].concat();
    check_life("the other one is refunded too", &both, "pro 0 | si_1=0");
    // The customer's balance paid the other half. A refund alone does not say what its charge charged.
    let lines = [line("si_1", "price_pro", 4000, T, month(T))];
    let paid = bill_with(T + 1, "in_1", "subscription_create", &lines, json!({"amount_paid": 2000}));
    let back = refund("updated", LATER, "pi_1", "re_1", 2000, "succeeded");
    let shown = shows(T, "active", &[plan("price_pro")]);
    let life = vec![shown, paid, by_card("pi_1"), back, dispute("closed", LATER + 9, "pi_1", "lost")];
    check_life("half by the balance", &life, "pro 2500 | si_1=2500");
}

/// Month to year in the first month: the invoice credits 1900 of what `in_1` paid.
fn yearly() -> Vec<Step> {
    let at = T + DAY;
    vec![
        shows(at, "active", &[item("si_1", "price_pro_year", at, at + YEAR)]),
        bill(
            at + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1900, at, month(T)),
                line("si_1", "price_pro_year", 19_000, at, at + YEAR),
            ],
        ),
        tie(at + 1, "in_2"),
    ]
}

#[test]
fn refunded_access_ends_when_all_that_paid_for_the_period_is_refunded() {
    let end = Step::Edit("[policy]\n", "[policy]\nrefunded_access = \"end\"\n");
    let life = |steps: Vec<Step>| [vec![end.clone()], opened(), yearly(), steps].concat();
    // A tenth of the year was paid by in_1.
    let second = vec![refunded(LATER, "pi_in_2", 17_100)];
    check_life("the year alone", &life(second.clone()), "pro 500 | si_1=500");
    let first = vec![refunded(LATER + 9, "pi_in_1", 2000)];
    check_life("the first month alone", &life(first.clone()), "pro 4500 | si_1=4500");
    check_life("both", &life([second, first.clone()].concat()), "free 0 | si_1=0");
    // A smaller plan, which the unused time covers: its own invoice is paid by nothing.
    let smaller = vec![
        end.clone(),
        shows(T, "active", &[item("si_1", "price_business", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_business", 9000, T, month(T))]),
        tie(T + 1, "in_1"),
        shows(T + DAY, "active", &[item("si_1", "price_pro", T + DAY, month(T + DAY))]),
        bill(
            T + DAY,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_business", -8700, T + DAY, month(T)),
                line("si_1", "price_pro", 2000, T + DAY, month(T + DAY)),
            ],
        ),
    ];
    check_life("a smaller plan", &smaller, "pro 5000 | si_1=5000");
    let back = [smaller, vec![refunded(LATER, "pi_in_1", 9000)]].concat();
    check_life("and what paid for it is refunded", &back, "free 0 | si_1=0");
    // The state of the subscription has not arrived.
    let unseen = [vec![end], opened()[1..].to_vec(), vec![refunded(LATER, "pi_in_1", 2000)]].concat();
    check_life("known by its invoice alone", &unseen, "free 0 | si_1=0");
}

#[test]
fn refunds_of_an_opening_and_of_an_upgrade_take_their_own_parts() {
    let all = |steps: Vec<Step>| [opened(), upgraded(), steps].concat();
    let on_payment = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");
    for policy in [vec![], vec![on_payment]] {
        let all = |steps| [policy.clone(), all(steps)].concat();
        check_life("the upgrade", &all(vec![refunded(LATER, "pi_in_2", 7100)]), "business 5000 | si_1=5000");
        check_life(
            "the opening",
            &all(vec![refunded(LATER, "pi_in_1", 2000)]),
            "business 15000 | si_1=15000",
        );
        check_life(
            "half of the upgrade",
            &all(vec![refunded(LATER, "pi_in_2", 3550)]),
            "business 12500 | si_1=12500",
        );
        let both = vec![refunded(LATER, "pi_in_1", 2000), refunded(LATER + 9, "pi_in_2", 7100)];
        check_life("both", &all(both.clone()), "business 0 | si_1=0");
        check_life(
            "both after spending",
            &[all(vec![Step::Spend(3000)]), both].concat(),
            "business 0 | si_1=0",
        );
    }
    let unpaid = [
        opened(),
        vec![shows(T + DAY, "active", &[plan("price_business")]), refunded(LATER, "pi_in_1", 2000)],
    ]
    .concat();
    check_life("an upgrade that was not charged stays", &unpaid, "business 15000 | si_1=15000");
}

#[test]
fn a_refund_of_a_period_that_is_over_changes_nothing() {
    let next = T + MONTH;
    let given = [
        opened(),
        vec![
            shows(next, "active", &[item("si_1", "price_pro", next, month(next))]),
            bill(
                next + 1,
                "in_2",
                "subscription_cycle",
                &[line("si_1", "price_pro", 2000, next, month(next))],
            ),
            tie(next + 1, "in_2"),
            refunded(next + DAY, "pi_in_1", 2000),
        ],
    ]
    .concat();
    check_life("superseded", &given, "pro 5000 | si_1=5000");
    assert!(
        Run::of(&given).summary().contains("refund#ch_pi_in_1#2000 +0 superseded"),
        "{}",
        Run::of(&given).summary()
    );
    let own = [given, vec![refunded(next + DAY, "pi_in_2", 500)]].concat();
    check_life("its own refund counts", &own, "pro 3750 | si_1=3750");
}

#[test]
fn an_opening_that_credits_unused_time_shares_its_refund_with_the_credited_payment() {
    let at = T + 10 * DAY;
    let changed = || {
        [
            opened(),
            vec![
                shows(at, "active", &[item("si_1", "price_pro_year", at, at + YEAR)]),
                bill(
                    at + 1,
                    "in_2",
                    "subscription_update",
                    &[
                        flagged("si_1", "price_pro", -1000, at, month(T)),
                        line("si_1", "price_pro_year", 20_000, at, at + YEAR),
                    ],
                ),
                tie(at + 1, "in_2"),
            ],
        ]
        .concat()
    };
    let day = at + DAY;
    for (what, steps, expect) in [
        // A twentieth of the opening was paid by the first payment.
        ("the first payment", vec![refunded(day, "pi_in_1", 2000)], "pro 4750 | si_1=4750"),
        ("half of the first payment", vec![refunded(day, "pi_in_1", 1000)], "pro 4875 | si_1=4875"),
        ("the second payment", vec![refunded(day, "pi_in_2", 19_000)], "pro 250 | si_1=250"),
        ("both", vec![refunded(day, "pi_in_1", 2000), refunded(day, "pi_in_2", 19_000)], "pro 0 | si_1=0"),
    ] {
        check_life(what, &[changed(), steps].concat(), expect);
    }
}

/// The second period is paid in part by unused time of the first, and the third by unused time of the second.
/// The first period had ended before the third began.
#[test]
fn unused_time_that_unused_time_paid_for_was_paid_by_the_first_payment() {
    let period = |start: i64, id: &str, credit: i64| {
        vec![
            shows(start, "active", &[item("si_1", "price_pro", start, month(start))]),
            bill(
                start + 1,
                id,
                "subscription_update",
                &[
                    flagged("si_1", "price_pro", -credit, start, month(T)),
                    line("si_1", "price_pro", 2000, start, month(start)),
                ],
            ),
            tie(start + 1, id),
        ]
    };
    let given = [opened(), period(T + 20 * DAY, "in_2", 1000), period(T + 40 * DAY, "in_3", 500)].concat();
    let day = T + 41 * DAY;
    let back = |id: &str, amount: i64| refunded(day, id, amount);
    let (first, second, third) = (back("pi_in_1", 2000), back("pi_in_2", 1000), back("pi_in_3", 1500));
    // A quarter of 5000 was credited, and half of that before.
    for (what, steps, expect) in [
        ("the first payment", vec![first.clone()], "pro 4375 | si_1=4375"),
        ("the second", vec![second.clone()], "pro 4375 | si_1=4375"),
        ("the third", vec![third.clone()], "pro 1250 | si_1=1250"),
        ("all", vec![first, second, third], "pro 0 | si_1=0"),
    ] {
        check_life(what, &[given.clone(), steps].concat(), expect);
    }
}

#[test]
fn disputes_hold_and_give_back_and_net_with_refunds() {
    let of = |status: &str, at: i64| dispute("updated", LATER + at, "pi_in_1", status);
    for (what, steps, expect) in [
        ("open", vec![of("needs_response", 0)], "pro 0 | si_1=0"),
        ("lost", vec![of("needs_response", 0), of("lost", 9)], "pro 0 | si_1=0"),
        ("won", vec![of("needs_response", 0), of("won", 9)], "pro 5000 | si_1=5000"),
        ("an inquiry", vec![of("warning_needs_response", 0)], "pro 5000 | si_1=5000"),
        ("prevented", vec![of("prevented", 0)], "pro 5000 | si_1=5000"),
        (
            "an inquiry that becomes a dispute",
            vec![of("warning_under_review", 0), of("under_review", 9)],
            "pro 0 | si_1=0",
        ),
        ("with a refund", vec![of("needs_response", 0), refunded(LATER, "pi_in_1", 500)], "pro 0 | si_1=0"),
        (
            "won, and refunded",
            vec![of("needs_response", 0), of("won", 9), refunded(LATER, "pi_in_1", 500)],
            "pro 3750 | si_1=3750",
        ),
    ] {
        check_life(what, &[opened(), steps].concat(), expect);
    }
}

#[test]
fn an_invoice_may_have_several_payments() {
    let given = |steps: Vec<Step>| [opened(), vec![tie_by(T + 2, "in_1", "pi_second")], steps].concat();
    let both = vec![refunded(LATER, "pi_in_1", 500), refunded(LATER, "pi_second", 500)];
    let run = Run::of(&given(both));
    assert_eq!(super::shapes::end(&run), "pro 2500 | si_1=2500");
}

#[test]
fn a_refund_waits_until_its_payment_is_linked_in_any_order() {
    let back = || refunded(LATER, "pi_in_1", 2000);
    let [shown, bill, tie] = opened().try_into().unwrap();
    let parked = Run::of(&[shown.clone(), bill.clone(), back()]);
    assert_eq!(parked.parked.iter().map(|(_, why)| why.code()).collect::<Vec<_>>(), ["no_grant"]);
    for steps in [
        [shown.clone(), bill.clone(), tie.clone(), back()],
        [shown.clone(), bill.clone(), back(), tie.clone()],
        [shown.clone(), back(), bill.clone(), tie.clone()],
        [shown.clone(), back(), tie.clone(), bill.clone()],
        [shown.clone(), tie.clone(), back(), bill.clone()],
        [back(), tie, bill, shown],
    ] {
        let run = Run::of(&steps);
        assert_eq!(super::shapes::end(&run), "pro 0 | si_1=0", "{}", run.summary());
        assert!(run.parked.is_empty(), "{:?}", run.parked);
    }
}

#[test]
fn refunds_stored_with_a_payment_are_booked_once() {
    let back = || refunded(LATER, "pi_in_1", 2000);
    let old = bill_with(
        T + 1,
        "in_1",
        "subscription_create",
        &[line("si_1", "price_pro", 2000, T, month(T))],
        json!({
            "payment_intent": "pi_in_1",
        }),
    );
    // The invoice names its payment, and so does `invoice_payment.paid`, before and after the refund.
    let given = vec![
        shows(T, "active", &[plan("price_pro")]),
        old,
        tie(T + 1, "in_1"),
        back(),
        tie(LATER + 9, "in_1"),
    ];
    check_life("one refund, several ties", &given, "pro 0 | si_1=0");
    let twice = Run::of(&[vec![back()], given.clone(), given].concat());
    assert_eq!(super::shapes::end(&twice), "pro 0 | si_1=0", "{}", twice.summary());
}

/// Reconcile applies a refund together with the document that it grants. The payment may be stored already,
/// with its document and its user, as after the session of the same purchase.
#[test]
fn a_refund_that_comes_with_its_document_is_stored_with_the_payment() {
    let read = |step: Step| {
        let Step::Event(event) = step else { panic!("{step:?}") };
        crate::event::read(event.to_string().as_bytes()).unwrap()
    };
    let bill = read(bill_with(
        T + 1,
        "in_1",
        "subscription_create",
        &[line("si_1", "price_pro", 2000, T, month(T))],
        json!({"payment_intent": "pi_in_1"}),
    ));
    let run = Run::of(&[shows(T, "active", &[plan("price_pro")])]);
    let stored = PaymentRecord {
        document: Some(LedgerKey::session(&SessionId::new("cs_1").unwrap())),
        user: Some(run.account.user_id.clone()),
        ..PaymentRecord::default()
    };
    let mut payments = Payments::from([("pi_in_1".to_owned(), stored)]);
    add_reversals(&mut payments, &bill, &[read(refunded(LATER, "pi_in_1", 2000))]);
    let now = Timestamp::from_unix(LATER);
    let Outcome::Apply(applied) = decide(&run.account, &bill, &payments, &run.catalog, now) else {
        panic!("the invoice grants")
    };
    assert_eq!(applied.payments["pi_in_1"].reversal.amount(), 2000);
}

/// Of a dispute that was won before its payment is linked, the link keeps when it was open: no month began then.
#[test]
fn a_dispute_that_was_won_before_its_payment_is_linked_still_stops_the_months() {
    let read = |step: &Step| {
        let Step::Event(event) = step else { panic!("{step:?}") };
        crate::event::read(event.to_string().as_bytes()).unwrap()
    };
    let months = |k: u32| Timestamp::from_unix(T).plus_months(k).unix();
    let run = Run::of(&[
        Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n"),
        shows(T, "active", &[item("si_1", "price_pro", T, T + YEAR)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 20_000, T, T + YEAR)]),
        Step::Spend(4000),
    ]);
    let opened = dispute("created", months(1) - DAY, "pi_in_1", "needs_response");
    let won = dispute("closed", months(1) + 9 * DAY, "pi_in_1", "won");
    let left = |disputes: &[&Step]| {
        let mut record = PaymentRecord::default();
        for step in disputes {
            let event = read(step);
            record = crate::decide::joined_payment(&event, &Payments::from([("pi_in_1".to_owned(), record)]))
                .unwrap()
                .1;
        }
        let payments = Payments::from([("pi_in_1".to_owned(), record)]);
        let now = Timestamp::from_unix(months(1) + 10 * DAY);
        let Outcome::Apply(applied) =
            decide(&run.account, &read(&tie(T + 1, "in_1")), &payments, &run.catalog, now)
        else {
            panic!("the payment is linked")
        };
        let state = &applied.change.state;
        let since = state.buckets(&run.catalog.policy, now).lots.iter().filter_map(|lot| lot.since).max();
        since.map(|since| since.unix() - T)
    };
    assert_eq!(left(&[]), Some(months(1) - T));
    assert_eq!(left(&[&opened, &won]), Some(months(1) + 9 * DAY - T), "granted when it was won");
}

#[test]
fn refunded_access_ends_the_tier_when_all_of_the_period_is_back() {
    let end = Step::Edit("[policy]\n", "[policy]\nrefunded_access = \"end\"\n");
    let life = |steps: Vec<Step>| [vec![end.clone()], opened(), steps].concat();
    let of = |status: &str| dispute("updated", LATER, "pi_in_1", status);
    check_life("half", &life(vec![refunded(LATER, "pi_in_1", 1000)]), "pro 2500 | si_1=2500");
    check_life("all", &life(vec![refunded(LATER, "pi_in_1", 2000)]), "free 0 | si_1=0");
    check_life("disputed", &life(vec![of("needs_response")]), "free 0 | si_1=0");
    check_life("won", &life(vec![of("needs_response"), of("won")]), "pro 5000 | si_1=5000");
    let upgrade_only = life([upgraded(), vec![refunded(LATER, "pi_in_2", 7100)]].concat());
    check_life("of two payments one", &upgrade_only, "business 5000 | si_1=5000");
    let opening_only = life([upgraded(), vec![refunded(LATER, "pi_in_1", 2000)]].concat());
    check_life("of two payments the first", &opening_only, "business 15000 | si_1=15000");
    let both = vec![refunded(LATER, "pi_in_1", 2000), refunded(LATER, "pi_in_2", 7100)];
    check_life("of two payments both", &life([upgraded(), both].concat()), "free 0 | si_1=0");
}

#[test]
fn a_refunded_order_is_marked_as_refunded() {
    let order = super::session("completed", T, "cs_1", json!({"mode": "dfy", "plan": "starter"}), json!({}));
    let outcome = |step: Step| {
        let mut run = Run::of(std::slice::from_ref(&order));
        let Step::Event(body) = &step else { panic!("no event") };
        let event = crate::event::read(body.to_string().as_bytes()).unwrap();
        let super::Outcome::Apply(applied) = run.decided(&event) else { panic!("not applied") };
        applied.order_payment.map(|payment| (payment.refunded, payment.disputed))
    };
    assert_eq!(outcome(refunded(LATER, "pi_cs_1", 2000)), Some((true, false)));
    assert_eq!(outcome(refunded(LATER, "pi_cs_1", 500)), Some((false, false)));
    assert_eq!(outcome(dispute("created", LATER, "pi_cs_1", "needs_response")), Some((false, true)));
}

#[test]
fn a_refund_never_belongs_to_a_customer() {
    let object = json!({
        "id": "ch_9", "object": "charge", "customer": "cus_1", "payment_intent": "pi_9", "amount": 2000,
        "amount_refunded": 2000,
    });
    let run = Run::of(&[opened(), vec![event("charge.refunded", LATER, &object, None).into()]].concat());
    assert_eq!(run.balance().get(), 5000);
    assert_eq!(run.parked.iter().map(|(_, why)| why.code()).collect::<Vec<_>>(), ["no_grant"]);
}

/// `proration_behavior=create_prorations`: the renewal also bills the lines of a change in the period before
/// (<https://docs.stripe.com/billing/subscriptions/prorations>). The credited unused time pays for the change
/// in that period, so the payment pays for the whole new period.
#[test]
fn a_renewal_that_bills_the_lines_of_a_change_pays_for_its_whole_period() {
    let (at, next) = (T + 20 * DAY, month(T));
    let business = || item("si_1", "price_business", next, month(next));
    let lines = [
        flagged("si_1", "price_pro", -700, at, next),
        flagged("si_1", "price_business", 1100, at, next),
        line("si_1", "price_business", 3800, next, month(next)),
    ];
    let life = |back: Vec<Step>| {
        let renewal =
            [shows(next, "active", &[business()]), bill(next + 1, "in_2", "subscription_cycle", &lines)];
        let change = [shows(at, "active", &[plan("price_business")])];
        [&opened()[..], &change, &renewal, &[tie(next + 1, "in_2")], &back[..]].concat()
    };
    check_life("none", &life(vec![]), "business 20000 | si_1=20000");
    let half = refunded(next + DAY, "pi_in_1", 1000);
    check_life("half of the first", &life(vec![half]), "business 20000 | si_1=20000");
    let half = refunded(next + DAY, "pi_in_2", 2100);
    check_life("half of the second", &life(vec![half]), "business 10000 | si_1=10000");
    let both = vec![refunded(next + DAY, "pi_in_1", 2000), refunded(next + DAY, "pi_in_2", 4200)];
    check_life("both in full", &life(both), "business 0 | si_1=0");
}

/// A downgrade half way through the month, and the renewal that bills it. Stripe's example: -50 USD for the unused
/// time at 100 USD, +5 USD for the rest of the month at 10 USD
/// (<https://support.stripe.com/questions/refunding-credit-balance-to-customer-after-subscription-downgrade-or-cancellation>).
/// What is left of the credit pays for the new month, whatever the invoice's `total`.
#[test]
fn a_credit_that_waits_for_the_renewal_pays_for_the_next_period() {
    let (at, next) = (T + 15 * DAY, month(T));
    let first = [line("si_1", "price_business", 10_000, T, next)];
    let life = |credit: i64, rest: i64, back: &[(&str, i64)]| {
        let lines = [
            flagged("si_1", "price_business", credit, at, next),
            flagged("si_1", "price_pro", rest, at, next),
            line("si_1", "price_pro", 1000, next, month(next)),
        ];
        let mut given = vec![
            shows(T, "active", &[plan("price_business")]),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
            shows(at, "active", &[plan("price_pro")]),
            shows(next, "active", &[item("si_1", "price_pro", next, month(next))]),
            bill(next + 1, "in_2", "subscription_cycle", &lines),
            tie(next + 1, "in_2"),
        ];
        given.extend(back.iter().map(|(payment, amount)| refunded(next + DAY, payment, *amount)));
        given
    };
    for (what, credit, rest, back, expect) in [
        ("all is credit", -5000, 500, &[][..], 5000),
        ("half of the first", -5000, 500, &[("pi_in_1", 5000)], 2500),
        ("all of the first", -5000, 500, &[("pi_in_1", 10_000)], 0),
        ("the credit is used up", -1500, 500, &[("pi_in_1", 10_000)], 0),
        // Of 1000 minor units, 600 are credit, and 400 are paid.
        ("a part is credit: the first", -1100, 500, &[("pi_in_1", 10_000)], 2000),
        ("a part is credit: the second", -1100, 500, &[("pi_in_2", 400)], 3000),
        ("a part is credit: both", -1100, 500, &[("pi_in_1", 10_000), ("pi_in_2", 400)], 0),
        ("no credit is left: the first", -400, 500, &[("pi_in_1", 10_000)], 5000),
        ("no credit is left: the second", -400, 500, &[("pi_in_2", 1100)], 0),
    ] {
        check_life(what, &life(credit, rest, back), &format!("pro {expect} | si_1={expect}"));
    }
}

/// The second month is billed in advance (<https://docs.stripe.com/billing/subscriptions/prebilling>). What the
/// customer gets back of the first month after that waits for the third month, long after the first one is over.
/// The payment of the first month paid for the third.
#[test]
fn a_credit_that_waits_during_a_month_billed_in_advance_pays_for_the_month_after_it() {
    let (at, next) = (T + 15 * DAY, month(T));
    let (third, end) = (month(next), month(month(next)));
    let first = [line("si_1", "price_business", 10_000, T, next)];
    let advance = [line("si_1", "price_business", 10_000, next, third)];
    let renewal = [
        flagged("si_1", "price_business", -5000, at, next),
        flagged("si_1", "price_pro", 500, at, next),
        line("si_1", "price_pro", 1000, third, end),
    ];
    let life = |back: &[(&str, i64)]| {
        let mut given = vec![
            shows(T, "active", &[plan("price_business")]),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
            bill(T + 9, "in_2", "subscription_update", &advance),
            tie(T + 9, "in_2"),
            shows(at, "active", &[plan("price_pro")]),
            shows(next, "active", &[item("si_1", "price_pro", next, third)]),
            shows(third, "active", &[item("si_1", "price_pro", third, end)]),
            bill(third + 1, "in_3", "subscription_cycle", &renewal),
            tie(third + 1, "in_3"),
        ];
        given.extend(back.iter().map(|(payment, amount)| refunded(third + DAY, payment, *amount)));
        given
    };
    for (what, back, expect) in [
        ("nothing is refunded", &[][..], 5000),
        ("half of the first", &[("pi_in_1", 5000)], 2500),
        ("all of the first", &[("pi_in_1", 10_000)], 0),
        ("all of the second", &[("pi_in_2", 10_000)], 5000),
    ] {
        check_life(what, &life(back), &format!("pro {expect} | si_1={expect}"));
    }
}

/// Two items; seats of the one are given back, and the credit waits for the renewal of both. The invoice leaves
/// nothing to pay, so the first payment paid for the second month of both. If something is to be paid, the
/// invoice's own payment paid for the other item. Stripe: credits that wait are billed with the next invoice
/// (<https://docs.stripe.com/billing/subscriptions/prorations>).
#[test]
fn a_waiting_credit_pays_for_other_items_of_an_invoice_that_leaves_nothing_to_pay() {
    let (at, next) = (T + 15 * DAY, month(T));
    let both = |seats_now: u64, start: i64| {
        let seats = seats("si_1", "price_team", seats_now, start, month(start));
        [seats, item("si_2", "price_pro", start, month(start))]
    };
    let life = |credit: i64, back: &[(&str, i64)]| {
        let lines = [
            patched(flagged("si_1", "price_team", credit, at, next), &json!({"quantity": 10})),
            flagged("si_1", "price_team", 500, at, next),
            line("si_1", "price_team", 1000, next, month(next)),
            line("si_2", "price_pro", 2000, next, month(next)),
        ];
        let first = [seat_line(10, 10_000, T), line("si_2", "price_pro", 2000, T, next)];
        let mut given = vec![
            shows(T, "active", &both(10, T)),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
            shows(at, "active", &both(1, T)),
            shows(next, "active", &both(1, next)),
            bill(next + 1, "in_2", "subscription_cycle", &lines),
            tie(next + 1, "in_2"),
        ];
        given.extend(back.iter().map(|(payment, amount)| refunded(next + DAY, payment, *amount)));
        given
    };
    for (what, credit, back, expect) in [
        ("nothing", -5000, &[][..], "business 6000 | si_1=1000 si_2=5000"),
        ("half of the first", -5000, &[("pi_in_1", 6000)], "business 3000 | si_1=500 si_2=2500"),
        ("all", -5000, &[("pi_in_1", 12_000)], "business 0 | si_1=0 si_2=0"),
        ("the credit pays for all to the cent", -3500, &[("pi_in_1", 12_000)], "business 0 | si_1=0 si_2=0"),
        ("500 are paid: the first", -3000, &[("pi_in_1", 12_000)], "business 5000 | si_1=0 si_2=5000"),
        ("500 are paid: the second", -3000, &[("pi_in_2", 500)], "business 1000 | si_1=1000 si_2=0"),
    ] {
        check_life(what, &life(credit, back), expect);
    }
}

/// The other item is paid for a year from the renewal on. The payment for the seats is forgotten when the year goes
/// on, so a refund of it takes nothing of the year, and nothing comes back later.
#[test]
fn a_credit_for_monthly_seats_pays_for_nothing_of_a_year() {
    let (at, next) = (T + 15 * DAY, month(T));
    let items = |number: u64, start: i64| {
        let team = seats("si_1", "price_team", number, start, month(start));
        [team, item("si_2", "price_pro_year", next, next + YEAR)]
    };
    let lines = [
        patched(flagged("si_1", "price_team", -25_000, at, next), &json!({"quantity": 50})),
        flagged("si_1", "price_team", 500, at, next),
        line("si_1", "price_team", 1000, next, month(next)),
        line("si_2", "price_pro_year", 20_000, next, next + YEAR),
    ];
    let mut given = vec![
        shows(T, "active", &[seats("si_1", "price_team", 50, T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[seat_line(50, 50_000, T)]),
        tie(T + 1, "in_1"),
        shows(at, "active", &[seats("si_1", "price_team", 1, T, next)]),
        shows(next, "active", &items(1, next)),
        bill(next + 1, "in_2", "subscription_cycle", &lines),
        tie(next + 1, "in_2"),
        refunded(next + DAY, "pi_in_1", 50_000),
    ];
    check_life("refunded", &given, "business 5000 | si_1=0 si_2=5000");
    given.push(shows(month(next), "active", &items(1, month(next))));
    given.push(bill(month(next) + 1, "in_3", "subscription_cycle", &[seat_line(1, 1000, month(next))]));
    check_life("a month later", &given, "business 6000 | si_1=1000 si_2=5000");
}

/// One update upgrades an item and gives seats of another one back. The credit for the seats pays for the
/// upgrade, and goes with the payment that paid for the seats.
#[test]
fn a_credit_for_seats_pays_for_the_upgrade_of_another_item() {
    let at = T + 15 * DAY;
    let lines = [
        patched(flagged("si_1", "price_team", -5000, at, month(T)), &json!({"quantity": 10})),
        flagged("si_1", "price_team", 500, at, month(T)),
        flagged("si_2", "price_pro", -1000, at, month(T)),
        flagged("si_2", "price_business", 4500, at, month(T)),
    ];
    let first = [seat_line(10, 10_000, T), line("si_2", "price_pro", 2000, T, month(T))];
    let items = |number: u64, price: &str| {
        [seats("si_1", "price_team", number, T, month(T)), item("si_2", price, T, month(T))]
    };
    let life = |back: i64| {
        vec![
            shows(T, "active", &items(10, "price_pro")),
            bill(T + 1, "in_1", "subscription_create", &first),
            tie(T + 1, "in_1"),
            shows(at, "active", &items(1, "price_business")),
            bill(at + 1, "in_2", "subscription_update", &lines),
            tie(at + 1, "in_2"),
            refunded(at + DAY, "pi_in_1", back),
        ]
    };
    check_life("half", &life(6000), "business 10500 | si_1=500 si_2=10000");
    check_life("all", &life(12_000), "business 0 | si_1=0 si_2=0");
}

/// A change to a plan that costs less and grants more. What the invoice credits paid for it if nothing is left to
/// pay; else its own payment did. A change at a discount of all was paid by nobody.
#[test]
fn a_change_to_more_credits_for_less_is_paid_by_what_it_credits() {
    let at = T + DAY;
    let life = |lines: &[Value], back: &[(&str, i64)]| {
        let mut given = opened();
        given.push(shows(at, "active", &[plan("price_business")]));
        given.push(bill(at + 1, "in_2", "subscription_update", lines));
        given.push(tie(at + 1, "in_2"));
        given.extend(back.iter().map(|(payment, amount)| refunded(at + DAY, payment, *amount)));
        given
    };
    let part = |price: &str, amount: i64| flagged("si_1", price, amount, at, month(T));
    let cheaper = [part("price_pro", -1900), part("price_business", 1500)];
    let even = [part("price_pro", -1900), part("price_business", 1900)];
    let paid = [part("price_pro", -1900), part("price_business", 1500), once("price_other", 800)];
    let free = [part("price_business", 0)];
    for (what, lines, back, expect) in [
        ("cheaper, half", &cheaper[..], &[("pi_in_1", 1000)][..], 10_000),
        ("cheaper, all", &cheaper, &[("pi_in_1", 2000)], 0),
        ("to the cent, all", &even, &[("pi_in_1", 2000)], 0),
        ("with something to pay, the first", &paid, &[("pi_in_1", 2000)], 15_000),
        ("with something to pay, the second", &paid, &[("pi_in_2", 400)], 5000),
        ("at a discount of all", &free, &[("pi_in_1", 2000)], 15_000),
    ] {
        check_life(what, &life(lines, back), &format!("business {expect} | si_1={expect}"));
    }
}

/// Two invoices of one second, each of which credits the item that the other one bills. The later one is paid by
/// the earlier one, and not the other way round.
#[test]
fn two_swaps_there_and_back_in_one_second_do_not_pay_for_each_other() {
    let part = |id: &str, amount: i64| flagged(id, "price_pro", amount, T, month(T));
    let shown = |id: &str| shows(T, "active", &[item(id, "price_pro", T, month(T))]);
    let life = |back: &[(&str, i64)]| {
        let mut given = vec![
            shown("si_1"),
            bill(T + 1, "in_1", "subscription_update", &[part("si_2", -500), part("si_1", 2000)]),
            tie(T + 1, "in_1"),
            bill(T + 2, "in_2", "subscription_update", &[part("si_1", -500), part("si_2", 2000)]),
            tie(T + 2, "in_2"),
            shows(T + 3, "active", &[item("si_2", "price_pro", T, month(T))]),
        ];
        given.extend(back.iter().map(|(payment, amount)| refunded(T + DAY, payment, *amount)));
        Run::of(&given)
    };
    let left = |run: &Run| super::shapes::end(run);
    assert_eq!(left(&life(&[])), "pro 5000 | si_1=0 si_2=5000");
    assert_eq!(left(&life(&[("pi_in_1", 1500)])), "pro 3750 | si_1=0 si_2=3750");
    assert_eq!(left(&life(&[("pi_in_2", 1500)])), "pro 1250 | si_1=0 si_2=1250");
}

/// Two changes in one period, the second with a new period at once, each with the credit of unused time that
/// Stripe bills beside it (a recorded upgrade: -1986 and +2482;
/// <https://docs.stripe.com/billing/subscriptions/prorations>): the upgrade's payment paid the credit of the last invoice, except for the share that the first payment had paid.
#[test]
fn a_credited_charge_passes_on_the_share_that_an_earlier_payment_paid() {
    let at = T + 10 * DAY;
    let last = [
        shows(at, "active", &[item("si_1", "price_pro_year", at, at + YEAR)]),
        bill(
            at + 1,
            "in_3",
            "subscription_update",
            &[
                flagged("si_1", "price_business", -8000, at, month(T)),
                line("si_1", "price_pro_year", 20_000, at, at + YEAR),
            ],
        ),
        tie(at + 1, "in_3"),
    ];
    let life = |back: &[Step]| [&opened()[..], &upgraded(), &last, back].concat();
    let day = at + DAY;
    let first = refunded(day, "pi_in_1", 2000);
    let second = refunded(day, "pi_in_2", 7100);
    let third = refunded(day, "pi_in_3", 12_000);
    // Two fifths of 5000 were credited; of these, 1900 of 9000 were paid by the first payment.
    check_life("the first", &life(std::slice::from_ref(&first)), "pro 4578 | si_1=4578");
    check_life("the second", &life(std::slice::from_ref(&second)), "pro 3422 | si_1=3422");
    check_life("the third", &life(std::slice::from_ref(&third)), "pro 2000 | si_1=2000");
    check_life("all", &life(&[first, second, third]), "pro 0 | si_1=0");
}

/// A payment that is detached from one invoice can be attached to another
/// (<https://docs.stripe.com/changelog/clover/2026-01-28/detach-payment-from-invoice>).
#[test]
fn a_payment_stays_with_the_invoice_that_granted_credits() {
    let other = vec![
        bill_with(T + 9, "in_2", "manual", &[once("price_other", 2000)], json!({"parent": null})),
        tie_by(T + 9, "in_2", "pi_in_1"),
    ];
    // Before 2025-03-31.basil the invoice itself names its payment.
    let patch = json!({"parent": null, "payment_intent": "pi_in_1"});
    let named = vec![bill_with(T + 9, "in_2", "manual", &[once("price_other", 2000)], patch)];
    let back = || vec![refunded(LATER, "pi_in_1", 1000)];
    for other in [other, named] {
        for given in [
            [opened(), other.clone(), back()],
            [other.clone(), opened(), back()],
            [back(), opened(), other.clone()],
        ] {
            let run = Run::of(&given.concat());
            assert_eq!(super::shapes::end(&run), "pro 2500 | si_1=2500", "{}", run.summary());
        }
    }
}

/// A refund waits for the order of its payment. The order is then refunded from the start.
#[test]
fn an_order_that_arrives_after_its_refund_is_marked_as_refunded() {
    let order = super::session("completed", T, "cs_1", json!({"mode": "dfy", "plan": "starter"}), json!({}));
    let Step::Event(body) = &order else { panic!("no event") };
    let order = crate::event::read(body.to_string().as_bytes()).unwrap();
    let after = |steps: &[Step]| {
        let super::Outcome::Apply(applied) = Run::of(steps).decided(&order) else { panic!("not applied") };
        applied.order_payment.map(|payment| (payment.refunded, payment.disputed))
    };
    assert_eq!(after(&[]), None);
    assert_eq!(after(&[refunded(T, "pi_cs_1", 2000)]), Some((true, false)));
    assert_eq!(after(&[refunded(T, "pi_cs_1", 500)]), Some((false, false)));
    assert_eq!(after(&[dispute("created", T, "pi_cs_1", "needs_response")]), Some((false, true)));
}
