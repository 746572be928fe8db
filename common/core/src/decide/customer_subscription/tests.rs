//! The table of the rules for `customer.subscription.*`.

use serde_json::{Value, json};

use crate::decide::tests::{
    MONTH, P1, P2, Run, Step, changed, check, check_any_order, event, invoice, items, line, pack, paid,
    patched, session, sub, updated,
};

const BOUGHT: &str = "invoice#in_1 +5000";
const PRO: (&str, u64) = ("price_pro", 1);
const BUSINESS: (&str, u64) = ("price_business", 1);

fn bought() -> Vec<Step> {
    vec![sub("created", P1, json!({})), paid(P1, "in_1", "subscription_create", "price_pro", P1)]
}

fn after(steps: Vec<Step>) -> Vec<Step> {
    [bought(), steps].concat()
}

#[test]
fn a_status_gives_the_tier_or_not() {
    for (status, tier) in [
        ("active", "pro"),
        ("trialing", "pro"),
        ("incomplete", "free"),
        ("incomplete_expired", "free"),
        ("unpaid", "free"),
        ("paused", "free"),
        ("canceled", "free"),
        ("something_new", "free"),
    ] {
        let run = Run::of(&[sub("updated", P1, json!({"status": status, "latest_invoice": null}))]);
        assert!(run.summary().starts_with(tier), "{status}: {}", run.summary());
    }
}

#[test]
fn past_due_has_a_grace_from_the_start_of_the_unpaid_period() {
    let unpaid = || {
        after(vec![
            updated(P2, json!({"items": items(&[PRO], P2)}), json!({"items": items(&[PRO], P1)})),
            updated(
                P2 + 60,
                json!({"items": items(&[PRO], P2), "status": "past_due"}),
                json!({"status": "active"}),
            ),
        ])
    };
    let grace = P2 + 5 * 86_400;
    let at = |at, more: Vec<Step>| [unpaid(), more, vec![Step::At(at)]].concat();
    check_any_order(
        "in it",
        at(grace - 1, vec![]),
        &format!("pro until {grace} 5000 | sub_1=5000 | {BOUGHT}"),
    );
    check_any_order("after it", at(grace, vec![]), &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
    let recovered = vec![
        paid(grace + 9, "in_2", "subscription_cycle", "price_pro", P2),
        updated(grace + 9, json!({"items": items(&[PRO], P2)}), json!({"status": "past_due"})),
    ];
    check_any_order(
        "recovered",
        at(grace + 20, recovered),
        &format!("pro 5000 | sub_1=5000 | {BOUGHT}, invoice#in_2 +0"),
    );
    let lost = vec![sub(
        "deleted",
        grace + 9,
        json!({"items": items(&[PRO], P2), "status": "canceled", "ended_at": grace + 9}),
    )];
    check_any_order("given up", at(grace + 20, lost), &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
}

#[test]
fn an_event_that_announces_or_repeats_a_state_changes_nothing() {
    let summary = format!("pro 5000 | sub_1=5000 | {BOUGHT}");
    for kind in ["trial_will_end", "pending_update_applied", "pending_update_expired", "resumed", "paused"] {
        check_any_order(kind, after(vec![sub(kind, 1200, json!({}))]), &summary);
    }
    let collection = json!({"pause_collection": {"behavior": "void"}});
    check_any_order(
        "collection paused",
        after(vec![updated(1200, collection, json!({"pause_collection": null}))]),
        &summary,
    );
    let resumed = || vec![sub("paused", 1200, json!({"status": "paused"})), sub("resumed", 1300, json!({}))];
    check_any_order("paused and resumed", after(resumed()), &summary);
    check_any_order("paused", after(resumed()[..1].to_vec()), &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
}

#[test]
fn each_item_has_its_own_period_and_the_plans_decides() {
    let mut list = items(&[("price_support", 1), PRO, ("price_storage", 9)], P1);
    list["data"][0]["current_period_start"] = json!(P1 - 900);
    list["data"][2]["current_period_end"] = json!(P2 + 11 * MONTH);
    let cancelled = updated(
        1200,
        json!({"items": list, "cancel_at_period_end": true}),
        json!({"cancel_at_period_end": false}),
    );
    check_any_order(
        "items of other periods",
        after(vec![cancelled]),
        &format!("pro until {P2} 5000 | sub_1=5000 | {BOUGHT}"),
    );
}

#[test]
fn credits_are_spent_from_subscriptions_then_signup_then_add_ons() {
    let spends = |steps: Vec<Step>, amount| Run::of(&[steps, vec![Step::Spend(amount)]].concat()).summary();
    let buckets = |summary: &str| summary.split(" | ").nth(1).map(str::to_owned).unwrap_or_default();
    let free = || vec![Step::Signup, pack(50, "cs_1")];
    assert_eq!(buckets(&spends(free(), 400)), "signup=100 addon=1000");
    assert_eq!(buckets(&spends(free(), 700)), "signup=0 addon=800");
    assert_eq!(buckets(&spends(free(), 1501)), "signup=500 addon=1000", "more than there is takes nothing");
    let subscribed = || [bought(), vec![pack(P1 + 50, "cs_1")]].concat();
    assert_eq!(buckets(&spends(subscribed(), 5000)), "sub_1=0 addon=1000");
    assert_eq!(buckets(&spends(subscribed(), 5001)), "sub_1=0 addon=999");
}

#[test]
fn a_payment_proves_an_older_failure_out_of_date() {
    let failed = |at| updated(at, json!({"status": "past_due"}), json!({"status": "active"}));
    check(
        "failed in the second of the payment",
        after(vec![failed(P1), Step::At(P1 + MONTH)]),
        &format!("free 5000 | sub_1=5000 | {BOUGHT}"),
    );
    let incomplete = sub("created", P1, json!({"status": "incomplete"}));
    check_any_order(
        "incomplete in the second of the payment",
        vec![incomplete, paid(P1, "in_1", "subscription_create", "price_pro", P1)],
        &format!("pro 5000 | sub_1=5000 | {BOUGHT}"),
    );
}

#[test]
fn cancelling_keeps_access_until_the_end() {
    let patch = |cancel: Value| {
        after(vec![updated(1100, cancel, json!({"cancel_at": null, "cancel_at_period_end": false}))])
    };
    check_any_order(
        "the flag",
        patch(json!({"cancel_at_period_end": true})),
        &format!("pro until {P2} 5000 | sub_1=5000 | {BOUGHT}"),
    );
    check_any_order(
        "a date",
        patch(json!({"cancel_at": 9000})),
        &format!("pro until 9000 5000 | sub_1=5000 | {BOUGHT}"),
    );
    let over = [patch(json!({"cancel_at": 9000})), vec![Step::At(9000)]].concat();
    check_any_order("the date has come", over, &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
    let undone = updated(1200, json!({}), json!({"cancel_at": 9000}));
    check_any_order(
        "undone",
        [patch(json!({"cancel_at": 9000})), vec![undone]].concat(),
        &format!("pro 5000 | sub_1=5000 | {BOUGHT}"),
    );
    let ended =
        after(vec![sub("deleted", 1300, json!({"status": "canceled", "ended_at": 1300})), Step::Spend(100)]);
    check(
        "ended: credits stay until spent",
        ended,
        &format!("free 4900 | sub_1=4900 | {BOUGHT}, consume#1 -100"),
    );
}

#[test]
fn a_change_of_plan_resets_at_once_and_once_a_period() {
    let up = || changed(1100, PRO, BUSINESS, P1);
    let down = || changed(1200, BUSINESS, PRO, P1);
    let up_again = || changed(1300, PRO, BUSINESS, P1);
    let up_told = format!("{BOUGHT}, plan#si_1#1000#business#1 +15000");
    check_any_order("up", after(vec![up()]), &format!("business 20000 | sub_1=20000 | {up_told}"));
    check(
        "the same invoice twice",
        after(vec![up(), up()]),
        &format!("business 20000 | sub_1=20000 | {up_told}"),
    );
    check(
        "what was spent before is forgiven once",
        after(vec![Step::Spend(4000), up(), Step::Spend(1000)]),
        &format!(
            "business 19000 | sub_1=19000 | {BOUGHT}, consume#1 -4000, plan#si_1#1000#business#1 +19000, \
             consume#3 -1000"
        ),
    );
    check_any_order(
        "back and forth",
        after(vec![up(), down(), up_again()]),
        &format!(
            "business 20000 | sub_1=20000 | {up_told}, plan#si_1#1000#pro#1 -15000, \
             plan#si_1#1000#business#2 +15000"
        ),
    );
    check(
        "never refills",
        after(vec![Step::Spend(3000), up(), Step::Spend(500), down(), up_again()]),
        &format!(
            "business 16500 | sub_1=16500 | {BOUGHT}, consume#1 -3000, plan#si_1#1000#business#1 +18000, \
             consume#3 -500, plan#si_1#1000#pro#1 -18000, plan#si_1#1000#business#2 +15000"
        ),
    );
    check_any_order(
        "of a period that is over",
        after(vec![up(), paid(P2, "in_2", "subscription_cycle", "price_business", P2)]),
        &format!("business 20000 | sub_1=20000 | {up_told}, invoice#in_2 +0"),
    );
}

#[test]
fn a_plan_that_is_left_and_taken_again_in_one_second_is_not_refilled() {
    let given = vec![
        changed(1100, PRO, BUSINESS, P1),
        changed(1100, BUSINESS, ("price_team", 2), P1),
        changed(1101, ("price_team", 2), BUSINESS, P1),
    ];
    let given = [bought(), vec![Step::Spend(3000)], given].concat();
    assert!(Run::of(&given).summary().starts_with("business 17000 "), "{}", Run::of(&given).summary());
}

#[test]
fn seats_are_a_change_of_their_own_plan() {
    let team = |quantity| ("price_team", quantity);
    let first =
        || invoice("paid", P1, "in_1", "subscription_create", &[line("price_team", 3, P1)], json!({}));
    let summary = "invoice#in_1 +3000, plan#si_1#1000#team#1";
    check_any_order(
        "more",
        vec![first(), changed(1100, team(3), team(5), P1)],
        &format!("business 5000 | sub_1=5000 | {summary} +2000"),
    );
    check_any_order(
        "fewer",
        vec![first(), changed(1100, team(3), team(2), P1)],
        &format!("business 2000 | sub_1=2000 | {summary} -1000"),
    );
    check(
        "what was spent stays spent",
        vec![first(), Step::Spend(2500), changed(1100, team(3), team(5), P1)],
        "business 2500 | sub_1=2500 | invoice#in_1 +3000, consume#1 -2500, plan#si_1#1000#team#1 +2000",
    );
    // A later state with the new seats may come before the change itself.
    let later = updated(
        1200,
        json!({"items": items(&[team(5)], P1), "cancel_at_period_end": true}),
        json!({"cancel_at_period_end": false}),
    );
    check_any_order(
        "seen before it is summary",
        vec![first(), later, changed(1100, team(3), team(5), P1)],
        &format!("business until {P2} 5000 | sub_1=5000 | {summary} +2000"),
    );
}

#[test]
fn a_change_waits_for_the_payment_of_its_period() {
    let renewed = || updated(P2, json!({"items": items(&[PRO], P2)}), json!({"items": items(&[PRO], P1)}));
    let up = || changed(P2 + 60, PRO, BUSINESS, P2);
    check("not paid yet", after(vec![renewed(), up()]), &format!("business 5000 | sub_1=5000 | {BOUGHT}"));
    check_any_order(
        "paid",
        after(vec![renewed(), up(), paid(P2 + 3600, "in_2", "subscription_cycle", "price_pro", P2)]),
        &format!(
            "business 20000 | sub_1=20000 | {BOUGHT}, invoice#in_2 +15000, plan#si_1#{P2}#business#1 +0"
        ),
    );
}

#[test]
fn a_change_that_begins_a_period_leaves_the_grant_to_its_invoice() {
    let up =
        || updated(1500, json!({"items": items(&[BUSINESS], 1500)}), json!({"items": items(&[PRO], P1)}));
    check("not paid yet", after(vec![up()]), &format!("business 5000 | sub_1=5000 | {BOUGHT}"));
    let invoice =
        invoice("paid", 1501, "in_2", "subscription_update", &[line("price_business", 1, 1500)], json!({}));
    check_any_order(
        "paid",
        after(vec![up(), invoice]),
        &format!("business 20000 | sub_1=20000 | {BOUGHT}, invoice#in_2 +15000"),
    );
}

#[test]
fn a_plan_changed_while_past_due_counts_once_it_is_paid() {
    let business = items(&[BUSINESS], P2);
    let pro = items(&[PRO], P2);
    let down = |status: &str| json!({"status": status, "items": pro});
    let given = vec![
        sub("created", P1, json!({"items": items(&[BUSINESS], P1)})),
        paid(P1, "in_1", "subscription_create", "price_business", P1),
        updated(P2, json!({"items": business}), json!({"items": items(&[BUSINESS], P1)})),
        updated(P2 + 60, json!({"items": business, "status": "past_due"}), json!({"status": "active"})),
        updated(P2 + 90, down("past_due"), json!({"items": business})),
        // Both in one second, in either order.
        updated(P2 + 99, down("active"), json!({"status": "past_due"})),
        paid(P2 + 99, "in_2", "subscription_cycle", "price_business", P2),
    ];
    check_any_order(
        "down while past due",
        given,
        "pro 5000 | sub_1=5000 | invoice#in_1 +20000, invoice#in_2 -15000, plan#si_1#2593000#pro#1 +0",
    );
    let never_paid = after(vec![updated(
        1100,
        json!({"items": items(&[BUSINESS], P1), "status": "past_due"}),
        json!({"items": items(&[PRO], P1), "status": "active"}),
    )]);
    check_any_order(
        "never paid",
        [never_paid, vec![Step::At(P2)]].concat(),
        &format!("free 5000 | sub_1=5000 | {BOUGHT}"),
    );
}

#[test]
fn an_unpaid_return_to_the_plan_that_was_paid_for_counts_once_it_is_seen_active() {
    let (pro, business) = (items(&[PRO], P1), items(&[BUSINESS], P1));
    let given = vec![
        paid(P1, "in_1", "subscription_create", "price_pro", P1),
        changed(P1 + 10, PRO, BUSINESS, P1),
        updated(
            P1 + 20,
            json!({"items": pro, "status": "past_due"}),
            json!({"items": business, "status": "active"}),
        ),
        updated(P1 + 30, json!({"items": pro}), json!({"status": "past_due"})),
    ];
    let summary = format!("{BOUGHT}, plan#si_1#1000#business#1 +15000, plan#si_1#1000#pro#1 -15000");
    check_any_order("there and back, unpaid", given, &format!("pro 5000 | sub_1=5000 | {summary}"));
}

#[test]
fn a_trial_opens_with_its_own_credits() {
    let trial = |patch: Value| sub("created", P1, patched(json!({"status": "trialing"}), &patch));
    let mut free = line("price_pro", 1, P1);
    free["amount"] = json!(0);
    let zero = || {
        invoice(
            "paid",
            P1 + 1,
            "in_1",
            "subscription_create",
            std::slice::from_ref(&free),
            json!({"amount_paid": 0, "payments": null}),
        )
    };
    check_any_order(
        "summary by both",
        vec![trial(json!({})), zero()],
        "pro 2000 | sub_1=2000 | trial#sub_1#si_1 +2000, invoice#in_1 +0",
    );
    let unnamed = sub("created", P1, json!({"status": "trialing", "latest_invoice": null}));
    check("without an invoice", vec![unnamed], "pro 2000 | sub_1=2000 | trial#sub_1#si_1 +2000");
    assert!(
        Run::of(&[trial(json!({})), zero()]).account.state.first_paid_at.is_none(),
        "a trial is no payment"
    );
    let up = updated(
        1100,
        json!({"status": "trialing", "items": items(&[BUSINESS], P1)}),
        json!({"items": items(&[PRO], P1)}),
    );
    check_any_order(
        "another plan in the trial",
        vec![trial(json!({})), zero(), up],
        "business 20000 | sub_1=20000 | trial#sub_1#si_1 +2000, invoice#in_1 +0, adjust +18000",
    );
    let paid_for = vec![
        updated(
            P2,
            json!({"items": items(&[PRO], P2), "latest_invoice": "in_2"}),
            json!({"status": "trialing", "items": items(&[PRO], P1)}),
        ),
        paid(P2 + 9, "in_2", "subscription_cycle", "price_pro", P2),
    ];
    let summary = "pro 5000 | sub_1=5000 | trial#sub_1#si_1 +2000, invoice#in_1 +0, invoice#in_2 +3000";
    check_any_order("then paid", [vec![trial(json!({})), zero()], paid_for].concat(), summary);
    let paused = updated(P2, json!({"status": "paused"}), json!({"status": "trialing"}));
    check_any_order(
        "or paused",
        vec![trial(json!({})), zero(), paused],
        "free 2000 | sub_1=2000 | trial#sub_1#si_1 +2000, invoice#in_1 +0",
    );
}

#[test]
fn spends_before_all_events_of_a_trial_arrived_are_taken_from_the_trial() {
    // The trial began with `team`, but its first event arrives after the change to `pro`.
    let late = updated(
        1200,
        json!({"status": "trialing", "cancel_at_period_end": true}),
        json!({"cancel_at_period_end": false}),
    );
    let first = sub("created", P1, json!({"status": "trialing", "items": items(&[("price_team", 1)], P1)}));
    check(
        "spent once",
        vec![late, Step::Spend(300), first],
        &format!("pro until {P2} 1700 | sub_1=1700 | trial#sub_1#si_1 +2000, consume#1 -300"),
    );
}

#[test]
fn a_stale_state_never_wins() {
    let ended = || sub("deleted", 1500, json!({"status": "canceled", "ended_at": 1500}));
    let active = |at| updated(at, json!({"cancel_at": 9000}), json!({"cancel_at": null}));
    check_any_order(
        "active after deleted",
        after(vec![ended(), active(1400)]),
        &format!("free 5000 | sub_1=5000 | {BOUGHT}"),
    );
    check_any_order(
        "even a newer one",
        after(vec![ended(), active(1600)]),
        &format!("free 5000 | sub_1=5000 | {BOUGHT}"),
    );
    let incomplete = sub("created", P1, json!({"status": "incomplete"}));
    let turned_active = || updated(P1, json!({}), json!({"status": "incomplete"}));
    check_any_order(
        "created after updated, in one second",
        vec![turned_active(), incomplete.clone()],
        "pro 0 | sub_1=0 | ",
    );
    check_any_order(
        "created a second before",
        vec![updated(P1 + 1, json!({}), json!({"status": "incomplete"})), incomplete],
        "pro 0 | sub_1=0 | ",
    );
    let later = vec![
        updated(P2, json!({"items": items(&[PRO], P2)}), json!({"items": items(&[PRO], P1)})),
        updated(P2 + 1, json!({"cancel_at": 9000}), json!({"cancel_at": null})),
    ];
    let summary = format!("free 5000 | sub_1=5000 | {BOUGHT}");
    check_any_order("the later snapshot wins, also with an older period", after(later), &summary);
}

#[test]
fn two_updates_of_one_second_give_one_result_in_any_order() {
    let first = updated(1100, json!({"cancel_at": 9000}), json!({"cancel_at": null}));
    let second = updated(
        1100,
        json!({"cancel_at": 9000, "items": items(&[BUSINESS], P1)}),
        json!({"items": items(&[PRO], P1)}),
    );
    let summary = format!("{BOUGHT}, plan#si_1#1000#business#1 +15000");
    check_any_order(
        "the successor wins",
        after(vec![first, second]),
        &format!("business until 9000 20000 | sub_1=20000 | {summary}"),
    );
}

/// `previous_attributes` names the items by their id, and of each only what has changed.
#[test]
fn of_two_updates_of_one_second_the_one_that_names_the_other_as_its_past_is_newer() {
    let both = |team: u64, other: &str| json!({"items": items(&[("price_team", team), (other, 1)], P1)});
    let first = updated(
        P1 + 9,
        both(3, "price_pro"),
        json!({"items": {"data": [{"id": "si_1"}, {"id": "si_2", "price": {"id": "price_boost"}}]}}),
    );
    let second = updated(
        P1 + 9,
        both(2, "price_pro"),
        json!({"items": {"data": [{"id": "si_1", "quantity": 3}, {"id": "si_2"}]}}),
    );
    let created = sub("created", P1, both(3, "price_boost"));
    for news in [[first.clone(), second.clone()], [second, first]] {
        let run = Run::of(&[&[created.clone()][..], &news].concat());
        let known = run.account.state.subscriptions.values().next().unwrap();
        let shown = known.snapshot.as_ref().unwrap();
        let quantities: Vec<u64> = shown.items.iter().map(|item| item.quantity).collect();
        assert_eq!(quantities, [2, 1]);
    }
}

#[test]
fn a_destructive_event_acts_on_its_own_subscription() {
    let other = |patch: Value| {
        patched(json!({"id": "sub_2", "items": items(&[BUSINESS], 2000), "latest_invoice": "in_2"}), &patch)
    };
    let of_other = json!({"parent": {"subscription_details": {"subscription": "sub_2"}}});
    let second = || {
        vec![
            sub("created", 2000, other(json!({}))),
            invoice(
                "paid",
                2000,
                "in_2",
                "subscription_create",
                &[line("price_business", 1, 2000)],
                of_other.clone(),
            ),
        ]
    };
    let summary = format!("{BOUGHT}, invoice#in_2 +20000");
    check_any_order(
        "two at once",
        [bought(), second()].concat(),
        &format!("business 25000 | sub_1=5000 sub_2=20000 | {summary}"),
    );
    let old_ends = |at: i64| sub("deleted", at, json!({"status": "canceled", "ended_at": at}));
    check_any_order(
        "the old one ends while the new one runs",
        [bought(), second(), vec![old_ends(2500)]].concat(),
        &format!("business 25000 | sub_1=5000 sub_2=20000 | {summary}"),
    );
    check_any_order(
        "a new one after the end of the old: its bucket is void",
        [bought(), vec![old_ends(1900)], second()].concat(),
        &format!("business 20000 | sub_1=0 sub_2=20000 | {BOUGHT}, invoice#in_2 +15000"),
    );
    let new_ends = sub("deleted", 2500, other(json!({"status": "canceled", "ended_at": 2500})));
    check_any_order(
        "the new one ends",
        [bought(), second(), vec![new_ends]].concat(),
        &format!("pro 25000 | sub_1=5000 sub_2=20000 | {summary}"),
    );
}

#[test]
fn an_unknown_price_parks_a_subscription_only_if_it_decides_access() {
    let unknown = |status: &str, more: bool| {
        let mut list = items(&[("price_unknown", 1)], P1);
        list["has_more"] = json!(more);
        vec![sub("created", P1, json!({"status": status, "items": list}))]
    };
    check(
        "active",
        unknown("active", false),
        "free 0 |  |  | customer.subscription.created parked: unknown_price",
    );
    check(
        "the plan may be on the next page",
        unknown("active", true),
        "free 0 |  |  | customer.subscription.created parked: lines_missing",
    );
    check("over anyway", unknown("canceled", false), "free 0 | sub_1=0 | ");
    let several = vec![sub(
        "created",
        P1,
        json!({"items": items(&[("price_unknown", 1), PRO, ("price_team", 2)], P1)}),
    )];
    check("among several", several, "business 0 | sub_1=0 | ");
}

#[test]
fn the_shapes_before_basil_mean_the_same() {
    let old = |price: &str, status: &str| {
        json!({
            "items": null, "plan": {"id": price}, "quantity": 1, "current_period_start": P1,
            "current_period_end": P2, "status": status,
        })
    };
    let old_line = json!({
        "type": "subscription", "subscription": "sub_1", "amount": 2000, "plan": {"id": "price_pro"},
        "period": {"start": P1, "end": P2},
    });
    let given = vec![
        sub("created", P1, old("price_pro", "incomplete")),
        updated(P1, old("price_pro", "active"), json!({"status": "incomplete"})),
        // Its line names no item.
        invoice("paid", P1, "in_1", "subscription_create", &[old_line], json!({})),
        updated(1100, old("price_business", "active"), json!({"plan": {"id": "price_pro"}})),
    ];
    check_any_order(
        "up",
        given,
        &format!("business 20000 | sub_1=20000 | {BOUGHT}, plan#only#1000#business#1 +15000"),
    );
}

/// A signup whose events were recorded in two orders. `subscription.created` still says `incomplete`.
fn recorded_signup(order: &[&str]) -> Vec<Step> {
    let at = |name: &str| P1 + i64::from(matches!(name, "invoice.paid" | "checkout.session.completed"));
    let step = |name: &&str| match *name {
        "subscription.created" => sub("created", P1, json!({"status": "incomplete"})),
        "subscription.updated" => updated(P1, json!({}), json!({"status": "incomplete"})),
        "invoice.paid" => paid(at(name), "in_1", "subscription_create", "price_pro", P1),
        "checkout.session.completed" => session(
            "completed",
            at(name),
            "cs_1",
            json!({}),
            json!({"mode": "subscription", "subscription": "sub_1", "payment_intent": null}),
        ),
        other => event(other, P1, &json!({"id": "x_1"}), None).into(),
    };
    order.iter().map(step).collect()
}

#[test]
fn a_recorded_signup_in_the_usual_order() {
    let given = recorded_signup(&[
        "charge.succeeded",
        "payment_method.attached",
        "invoice.created",
        "subscription.created",
        "invoice.updated",
        "invoice.updated",
        "invoice.finalized",
        "subscription.updated",
        "invoice.paid",
        "invoice.updated",
        "invoice.payment_succeeded",
        "payment_intent.created",
        "payment_intent.succeeded",
        "checkout.session.completed",
    ]);
    check("good", given, &format!("pro 5000 | sub_1=5000 | {BOUGHT}"));
}

#[test]
fn a_recorded_signup_in_the_unusual_order() {
    let given = recorded_signup(&[
        "charge.succeeded",
        "checkout.session.completed",
        "invoice.created",
        "payment_method.attached",
        "invoice.updated",
        "invoice.updated",
        "subscription.updated",
        "payment_intent.succeeded",
        "subscription.created",
        "invoice.payment_succeeded",
        "invoice.updated",
        "invoice.paid",
        "invoice.finalized",
        "payment_intent.created",
    ]);
    check("bad", given, &format!("pro 5000 | sub_1=5000 | {BOUGHT}"));
}

#[test]
fn a_deleted_subscription_has_ended_even_if_the_event_shows_another_status() {
    let bought =
        || vec![sub("created", P1, json!({})), paid(P1, "in_1", "subscription_create", "price_pro", P1)];
    for status in ["active", "past_due", "trialing", "canceled"] {
        let given = [bought(), vec![sub("deleted", P1 + 500, json!({"status": status}))]].concat();
        check(status, given, "free 5000 | sub_1=5000 | invoice#in_1 +5000");
    }
}
