//! What paid invoices grant.

use serde_json::json;

use crate::decide::tests::{
    MONTH, P1, P2, Run, Step, changed, check, check_any_order, invoice, line, pack, paid, patched, proration,
    sub,
};

fn first() -> Step {
    paid(P1, "in_1", "subscription_create", "price_pro", P1)
}

#[test]
fn a_new_subscription_sets_and_a_renewal_resets() {
    let renewal = || paid(P2 + 9, "in_2", "subscription_cycle", "price_pro", P2);
    check("the first grant", vec![first()], "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000");
    check(
        "the same invoice twice",
        vec![first(), first()],
        "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000",
    );
    check(
        "it ends signup credits and add-ons",
        vec![Step::Signup, pack(50, "cs_1"), first()],
        "pro until 2593000 5000 | sub_1=5000 signup=0 | signup +500, session#cs_1 +1000, invoice#in_1 +3500",
    );
    check(
        "and the signup that comes after it",
        vec![first(), Step::Signup],
        "pro until 2593000 5000 | sub_1=5000 signup=0 | invoice#in_1 +5000, signup +0 superseded",
    );
    check(
        "add-ons survive where the catalog says so",
        vec![Step::KeepAddons, Step::Signup, pack(50, "cs_1"), first(), renewal()],
        "pro until 5185000 6000 | sub_1=5000 signup=0 addon=1000 | signup +500, session#cs_1 +1000, \
         invoice#in_1 +4500, invoice#in_2 +0",
    );
    check(
        "a renewal replaces what is left, and add-ons too",
        vec![first(), pack(1500, "cs_1"), Step::Spend(1200), renewal()],
        "pro until 5185000 5000 | sub_1=5000 | invoice#in_1 +5000, session#cs_1 +1000, consume#2 -1200, \
         invoice#in_2 +200",
    );
    check(
        "an older one that comes late changes nothing",
        vec![renewal(), Step::Spend(1), first()],
        "pro until 5185000 4999 | sub_1=4999 | invoice#in_2 +5000, consume#1 -1, invoice#in_1 +0 superseded",
    );
}

#[test]
fn the_plans_line_decides_at_any_position() {
    let cycle =
        |lines: &[serde_json::Value], patch| invoice("paid", P1, "in_1", "subscription_cycle", lines, patch);
    let late =
        [proration("price_pro", -700), proration("price_business", 1100), line("price_business", 1, P1)];
    check(
        "prorations first",
        vec![cycle(&late, json!({}))],
        "business until 2593000 20000 | sub_1=20000 | invoice#in_1 +20000",
    );
    let second = json!({"parent": {"subscription_item_details": {"subscription_item": "si_2"}}});
    let of_second = patched(line("price_team", 3, P1), &second);
    let several = [line("price_unknown", 1, P1), line("price_pro", 1, P1), of_second];
    check(
        "several plans add up, the highest tier counts",
        vec![cycle(&several, json!({}))],
        "business until 2593000 8000 | sub_1=8000 | invoice#in_1 +8000",
    );
    check(
        "seats",
        vec![cycle(&[line("price_team", 7, P1)], json!({}))],
        "business until 2593000 7000 | sub_1=7000 | invoice#in_1 +7000",
    );
    let tiers = [line("price_pro", 5, P1), line("price_pro", 3, P1)];
    let tiers_of_seats = [line("price_team", 5, P1), line("price_team", 3, P1)];
    check(
        "seats billed in two tiers",
        vec![cycle(&tiers_of_seats, json!({}))],
        "business until 2593000 8000 | sub_1=8000 | invoice#in_1 +8000",
    );
    check(
        "one plan billed in two parts",
        vec![cycle(&tiers, json!({}))],
        "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000",
    );
    let no_subscription = json!({"parent": {"subscription_item_details": {"subscription": null}}});
    let of_none = invoice(
        "paid",
        P1,
        "in_1",
        "manual",
        &[patched(line("price_pro", 1, P1), &no_subscription)],
        json!({"parent": {"subscription_details": null}}),
    );
    check("an item of no subscription sells nothing for life", vec![of_none], "free 0 |  | invoice#in_1 +0");
    // Before 2025-03-31.basil a proration was of the type `invoiceitem`, and named its item.
    let old = json!({"type": "invoiceitem", "amount": 500, "proration": true, "subscription_item": "si_1",
        "price": {"id": "price_pro"}, "period": {"start": P1, "end": P2}});
    let of_none =
        invoice("paid", P1, "in_1", "manual", &[old], json!({"parent": {"subscription_details": null}}));
    check("nor does its proration", vec![of_none], "free 0 |  | invoice#in_1 +0");
    let unknown = [line("price_unknown", 1, P1)];
    check(
        "no known price",
        vec![cycle(&unknown, json!({}))],
        "free 0 |  |  | invoice.paid parked: unknown_price",
    );
    let ended =
        json!({"status": "canceled", "items": {"data": [{"id": "si_1", "price": {"id": "price_unknown"}}]}});
    let run = Run::of(&[sub("deleted", P1, ended), cycle(&unknown, json!({}))]);
    let parked: Vec<_> = run.parked.iter().map(|(event, why)| (event.kind.as_str(), why.code())).collect();
    assert_eq!(parked, [("invoice.paid", "unknown_price")], "of a subscription without a plan");
    let more = json!({"lines": {"has_more": true}});
    check(
        "the plan may be on the next page",
        vec![cycle(&unknown, more.clone())],
        "free 0 |  |  | invoice.paid parked: lines_missing",
    );
    check(
        "other items may be on the next page",
        vec![cycle(&[line("price_pro", 1, P1)], more)],
        "free 0 |  |  | invoice.paid parked: lines_missing",
    );
    check("no line at all", vec![cycle(&[], json!({}))], "free 0 |  | invoice#in_1 +0");
    check(
        "too many seats",
        vec![cycle(&[line("price_team", u64::MAX, P1)], json!({}))],
        "free 0 |  |  | invoice.paid parked: quantity",
    );
    let claims = json!({"metadata": {"credits": "999999", "tier": "business"}});
    check(
        "metadata grants nothing",
        vec![cycle(&[line("price_pro", 1, P1)], claims)],
        "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000",
    );
    let huge = json!({"amount_paid": i64::MAX, "currency": "jpy"});
    check(
        "nor does the amount",
        vec![cycle(&[line("price_pro", 1, P1)], huge)],
        "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000",
    );
}

#[test]
fn a_paid_invoice_for_a_period_grants_whatever_its_billing_reason() {
    let of = |reason: &str, patch| invoice("paid", P1, "in_1", reason, &[line("price_pro", 1, P1)], patch);
    let full = "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000";
    for (what, reason, patch, expect) in [
        ("not paid", "subscription_create", json!({"status": "open"}), "free 0 |  | "),
        ("a full discount", "subscription_create", json!({"amount_paid": 0}), full),
        ("by hand", "manual", json!({}), full),
        ("a threshold", "subscription_threshold", json!({}), full),
        ("an unknown reason", "subscription_whatever", json!({}), full),
        ("before May 2018", "subscription", json!({}), full),
    ] {
        check(what, vec![of(reason, patch)], expect);
    }
}

#[test]
fn an_update_grants_only_if_it_begins_a_period() {
    let update =
        |lines: &[serde_json::Value]| invoice("paid", 1500, "in_2", "subscription_update", lines, json!({}));
    check(
        "prorations only: no snapshot shows the change yet",
        vec![first(), update(&[proration("price_pro", -700), proration("price_business", 1100)])],
        "business until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000, invoice#in_2 +0",
    );
    let whole = || update(&[proration("price_pro", -700), line("price_business", 1, 1500)]);
    check(
        "a new period, which ends add-ons",
        vec![first(), pack(1200, "cs_1"), whole()],
        "business until 2593500 20000 | sub_1=20000 | invoice#in_1 +5000, session#cs_1 +1000, invoice#in_2 \
         +14000",
    );
}

#[test]
fn seats_changed_in_a_period_that_a_change_began_are_no_conflict() {
    let seats = |quantity| line("price_team", quantity, 1500);
    let given = vec![
        first(),
        invoice("paid", 1500, "in_2", "subscription_update", &[seats(1)], json!({})),
        changed(1600, ("price_team", 1), ("price_team", 3), 1500),
        paid(1500 + MONTH, "in_3", "subscription_cycle", "price_team", 1500 + MONTH),
    ];
    let summary = "invoice#in_1 +5000, invoice#in_2 -4000, plan#si_1#1500#team#1 +2000, invoice#in_3 -2000";
    check_any_order(
        "backwards the seats are booked first",
        given,
        &format!("business 1000 | sub_1=1000 | {summary}"),
    );
}

#[test]
fn one_invoice_with_two_amounts_is_a_conflict() {
    let other = paid(P1 + 5, "in_1", "subscription_create", "price_business", P1);
    check(
        "a corrected catalog",
        vec![first(), other],
        "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000 | invoice.paid parked: conflict",
    );
    let two = |first: &str| {
        let lines = [line(first, 1, P1), line("price_business", 1, P2)];
        invoice("paid", P1, "in_1", "manual", &lines, json!({}))
    };
    let run = Run::of(&[two("price_pro"), two("price_business")]);
    let parked: Vec<_> = run.parked.iter().map(|(_, why)| why.code()).collect();
    assert_eq!(parked, ["conflict"], "a price that another of its lines has");
    let seats =
        |quantity| invoice("paid", P1, "in_1", "manual", &[line("price_team", quantity, P1)], json!({}));
    check(
        "other seats",
        vec![seats(2), seats(3)],
        "business until 2593000 2000 | sub_1=2000 | invoice#in_1 +2000 | invoice.paid parked: conflict",
    );
    check(
        "a quantity, before the plan had seats",
        vec![
            Step::Edit("per = \"seat\"\n", ""),
            seats(2),
            Step::Edit("name = \"team\"\n", "name = \"team\"\nper = \"seat\"\n"),
            seats(3),
        ],
        "business until 2593000 1000 | sub_1=1000 | invoice#in_1 +1000",
    );
}

#[test]
fn the_shapes_before_basil_mean_the_same() {
    let gone = json!({"parent": null, "payments": null, "status": null, "paid": true, "subscription": "sub_1",
        "payment_intent": "pi_9", "charge": "ch_9"});
    let lines = |price| {
        let old = json!({"type": "subscription", "subscription": "sub_1", "amount": 2000,
            "period": {"start": P1, "end": P2}});
        let part = json!({"type": "invoiceitem", "proration": true, "amount": -5,
            "plan": {"id": "price_business"}, "period": {"start": P1, "end": P2}});
        [part, patched(old, &price)]
    };
    for price in [
        json!({"price": {"id": "price_pro"}}),
        json!({"plan": {"id": "price_pro"}}),
        json!({"price": "price_pro"}),
    ] {
        let given = vec![invoice("paid", P1, "in_1", "subscription_create", &lines(price), gone.clone())];
        check("old", given, "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000");
    }
}

#[test]
fn a_setup_fee_beside_a_trial_does_not_make_it_a_paid_period() {
    let fee = json!({"amount": 990, "parent": {"type": "invoice_item_details"},
        "pricing": {"price_details": {"price": "price_setup"}}});
    let mut free = line("price_pro", 1, P1);
    free["amount"] = json!(0);
    let given = vec![
        sub("created", P1, json!({"status": "trialing"})),
        invoice("paid", P1 + 1, "in_1", "subscription_create", &[fee, free], json!({"amount_paid": 990})),
    ];
    check_any_order(
        "a trial with a fee",
        given,
        "pro 2000 | sub_1=2000 | trial#sub_1#si_1 +2000, invoice#in_1 +0",
    );
}

#[test]
fn a_payment_is_confirmed_by_a_paid_line_of_the_catalog_above_zero() {
    let confirmed = |amount: i64, line_amount: i64| {
        let mut own = line("price_pro", 1, P1);
        own["amount"] = json!(line_amount);
        let given =
            [invoice("paid", P1, "in_1", "subscription_create", &[own], json!({"amount_paid": amount}))];
        Run::of(&given).account.state.first_paid_at.is_some()
    };
    assert!(!confirmed(0, 0), "a trial");
    assert!(!confirmed(990, 0), "a trial beside which something unknown was paid");
    assert!(confirmed(2000, 2000), "a period");
    assert!(confirmed(0, 2000), "a period at a discount of all");
}

/// Stripe's lines of prorations are in reverse order of time
/// (<https://docs.stripe.com/api/invoices/object#invoice_object-lines>); other sources keep the order.
#[test]
fn the_last_of_several_changes_in_one_second_is_the_one_that_no_line_takes_back() {
    let seats = |count: u64, amount| patched(proration("price_team", amount), &json!({"quantity": count}));
    let chain = |lines: &[serde_json::Value]| {
        let mut lines = lines.to_vec();
        let order = [(0, 0), (0, 1), (1, 2), (2, 3), (0, 3), (1, 3)];
        let mut orders = vec![lines.clone()];
        for (one, other) in order {
            lines.swap(one, other);
            orders.push(lines.clone());
        }
        orders
    };
    let first = || paid(P1, "in_1", "subscription_create", "price_business", P1);
    let change = |lines: &[serde_json::Value]| {
        invoice("paid", P1 + 501, "in_2", "subscription_update", lines, json!({}))
    };
    let to_pro =
        [proration("price_business", -7900), seats(3, 2900), seats(3, -2900), proration("price_pro", 1900)];
    for lines in chain(&to_pro) {
        check_any_order(
            "business, team, pro",
            vec![first(), change(&lines)],
            "pro until 2593000 20000 | sub_1=20000 | invoice#in_1 +20000, invoice#in_2 +0",
        );
    }
    let and_back = [
        proration("price_business", -7900),
        seats(3, 2900),
        seats(3, -2900),
        proration("price_business", 7900),
    ];
    for lines in chain(&and_back) {
        check_any_order(
            "business, team, business",
            vec![first(), change(&lines)],
            "business until 2593000 20000 | sub_1=20000 | invoice#in_1 +20000, invoice#in_2 +0",
        );
    }
    let paid_seats =
        invoice("paid", P1, "in_1", "subscription_create", &[line("price_team", 2, P1)], json!({}));
    let team = |at, count| changed(at, ("price_team", 2), ("price_team", count), P1);
    let more = [seats(2, -1900), seats(9, 8900), seats(9, -8900), seats(4, 3900)];
    for lines in chain(&more) {
        let on_payment = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");
        check_any_order(
            "2 seats, 9, 4; and 9 again, which were not paid",
            vec![on_payment, paid_seats.clone(), team(P1 + 500, 4), change(&lines), team(P1 + 900, 9)],
            "business 4000 | sub_1=4000 | invoice#in_1 +2000, plan#si_1#1000#team#1 +0, invoice#in_2 +2000, \
             plan#si_1#1000#team#2 +0",
        );
    }
}

/// Two prorations of one invoice take each other back only if they are the same but for the sign. A change within
/// a trial has prorations of 0.
#[test]
fn a_charge_is_taken_back_only_by_a_credit_of_the_same() {
    use crate::event::{Object, read};
    let lasting = |amounts: [i64; 2], patch: &serde_json::Value| {
        let [one, other] = amounts.map(|amount| proration("price_pro", amount));
        let lines = [one, patched(other, patch)];
        let Step::Event(body) = invoice("paid", P1 + 501, "in_2", "subscription_update", &lines, json!({}))
        else {
            panic!("no event")
        };
        let Object::Invoice(invoice) = read(body.to_string().as_bytes()).unwrap().object else {
            panic!("no invoice")
        };
        super::lasting_lines(&invoice).len()
    };
    let same = json!({});
    let of = |details: serde_json::Value| json!({"parent": {"subscription_item_details": details}});
    let credits = of(
        json!({"proration_details": {"credited_items": {"invoice": "in_1", "invoice_line_items": ["il_1"]}}}),
    );
    for (what, amounts, patch, expect) in [
        ("a credit of the same", [900, -900], same.clone(), 0),
        ("the credit comes first, and is less", [-800, 900], same.clone(), 0),
        ("two charges", [900, 900], same.clone(), 2),
        ("two of 0", [0, 0], same.clone(), 2),
        ("0 and a credit", [0, -900], same.clone(), 2),
        ("a credit and 0", [-900, 0], same, 2),
        ("0 and its credit", [0, 0], credits.clone(), 0),
        ("a charge, and a credit of 0", [900, 0], credits.clone(), 1),
        ("a credit that names what it credits", [900, -900], credits, 0),
        ("another quantity", [900, -900], json!({"quantity": 2}), 2),
        ("another item", [900, -900], of(json!({"subscription_item": "si_2"})), 2),
        ("another subscription", [900, -900], of(json!({"subscription": "sub_2"})), 2),
        ("a whole period", [900, -900], of(json!({"proration": false})), 2),
        ("another start", [900, -900], json!({"period": {"start": P1 + 600}}), 2),
        ("another end", [900, -900], json!({"period": {"end": P2 + 1}}), 2),
        ("another price", [900, -900], json!({"pricing": {"price_details": {"price": "price_team"}}}), 2),
    ] {
        assert_eq!(lasting(amounts, &patch), expect, "{what}");
    }
}

#[test]
fn a_line_shows_an_item_if_it_bills_time_that_is_not_over_and_no_later_credit_follows() {
    use crate::event::{Object, read};
    use crate::ids::ItemId;
    let shows = |second: &serde_json::Value, made: i64| {
        let lines = [proration("price_pro", 900), second.clone()];
        let Step::Event(body) = invoice("paid", P1 + 501, "in_2", "subscription_update", &lines, json!({}))
        else {
            panic!("no event")
        };
        let event = read(body.to_string().as_bytes()).unwrap();
        let Object::Invoice(invoice) = &event.object else { panic!("no invoice") };
        let run = Run::of(&[first()]);
        let sold = super::Sold::read(invoice, &event, 900, &run.account, &run.catalog).ok().unwrap();
        let (item, line, _) = &sold.lines[0];
        let all: Vec<_> = invoice.lines.iter().collect();
        let item = item.clone().unwrap_or_else(|| ItemId::new("si_1").unwrap());
        super::shows(line, &item, &all, crate::timestamp::Timestamp::from_unix(made))
    };
    let credit = |patch: serde_json::Value| patched(proration("price_team", -300), &patch);
    let from = |start: i64| json!({"period": {"start": start}});
    let start = proration("price_pro", 900)["period"]["start"].as_i64().unwrap();
    let later = credit(from(start + 1));
    for (what, second, made, expect) in [
        ("its time is not over", credit(from(start)), P2 - 1, true),
        ("its time is over", credit(from(start)), P2, false),
        ("a credit from before", credit(from(start - 1)), P2 - 1, true),
        ("a credit from later", later.clone(), P2 - 1, false),
        ("a later charge", patched(later.clone(), &json!({"amount": 300})), P2 - 1, true),
        ("a later zero line", patched(later.clone(), &json!({"amount": 0})), P2 - 1, true),
        (
            "a later credit of another item",
            patched(later, &json!({"parent": {"subscription_item_details": {"subscription_item": "si_2"}}})),
            P2 - 1,
            true,
        ),
    ] {
        assert_eq!(shows(&second, made), expect, "{what}");
    }
}

/// The invoice of a trial grants nothing itself.
#[test]
fn the_entry_of_a_trial_has_its_credits_and_not_the_invoice() {
    let zero = patched(line("price_pro", 1, P1), &json!({"amount": 0}));
    let bill = invoice("paid", P1, "in_1", "subscription_create", &[zero], json!({}));
    let run = Run::of(&[bill]);
    let deltas: Vec<_> =
        run.ledger.values().map(|entry| (entry.key.as_str().to_owned(), entry.delta)).collect();
    let expect = [("invoice#in_1".to_owned(), 0), ("trial#sub_1#si_1".to_owned(), 2000)];
    assert_eq!(deltas, expect, "{}", run.summary());
}

/// The ledger shows what an invoice was for.
#[test]
fn the_kind_of_an_entry_follows_from_the_lines_and_the_reason() {
    use crate::ledger::{EntryKind, LedgerKey};
    let zero = || patched(line("price_pro", 1, P1), &json!({"amount": 0}));
    let free = || patched(zero(), &json!({"price": {"id": "price_free", "unit_amount": 0}, "pricing": null}));
    for (what, reason, line, kind) in [
        ("a first period", "subscription_create", line("price_pro", 1, P1), EntryKind::Subscription),
        ("a renewal", "subscription_cycle", line("price_pro", 1, P1), EntryKind::Renewal),
        ("a trial", "subscription_create", zero(), EntryKind::NoGrant),
        ("a renewal at a discount of all", "subscription_cycle", zero(), EntryKind::Renewal),
        ("a free plan", "subscription_create", free(), EntryKind::Subscription),
        ("a period of a change", "subscription_update", line("price_pro", 1, P1), EntryKind::PlanChange),
        ("only a proration", "manual", proration("price_pro", 500), EntryKind::PlanChange),
        ("a period by hand", "manual", line("price_pro", 1, P1), EntryKind::Subscription),
    ] {
        let run = Run::of(&[invoice("paid", P1, "in_1", reason, &[line], json!({}))]);
        assert_eq!(run.ledger[&LedgerKey::from_text("invoice#in_1")].kind, kind, "{what}");
    }
}

/// What of an invoice's credits pays for the charge of an item from its start on: the minor units that it credits
/// other items, and what it charges for those that they pay for. A line is an item, an amount, and the days at
/// which its period starts and ends.
fn moved_in_time(
    item: Option<&str>,
    (start, end): (i64, i64),
    lines: &[(&str, i64, i64, i64)],
) -> Option<(Vec<(String, i64)>, i64)> {
    let total = lines.iter().map(|(_, amount, ..)| amount).sum();
    let day = |day: i64| P1 + day * 86_400;
    let lines = lines.iter().map(|(item, amount, start, end)| {
        let of_item = json!({
            "parent": {"subscription_item_details": {"subscription_item": item}},
            "period": {"start": day(*start), "end": day(*end)},
        });
        patched(proration("price_pro", *amount), &of_item)
    });
    let step = invoice("paid", P1, "in_1", "subscription_update", &lines.collect::<Vec<_>>(), json!({}));
    let Step::Event(body) = step else { panic!("no event") };
    let event = crate::event::read(body.to_string().as_bytes()).unwrap();
    let crate::event::Object::Invoice(invoice) = &event.object else { panic!("no invoice") };
    let lines: Vec<_> = invoice.lines.iter().collect();
    let item = item.map(|id| crate::ids::ItemId::new(id).unwrap());
    let time = |at: i64| crate::timestamp::Timestamp::from_unix(day(at));
    let moved = super::moved(&item?, (time(start), Some(time(end))), total, &lines)?;
    Some((
        moved.credits.iter().map(|credit| (credit.item.to_string(), credit.amount)).collect(),
        moved.charged,
    ))
}

/// The same for lines (item, amount) that have one period.
fn moved_to(item: Option<&str>, lines: &[(&str, i64)]) -> Option<(Vec<(String, i64)>, i64)> {
    let lines: Vec<_> = lines.iter().map(|(item, amount)| (*item, *amount, 9, 30)).collect();
    moved_in_time(item, (9, 30), &lines)
}

#[test]
fn an_invoice_replaces_the_items_that_it_only_credits_by_those_that_it_only_charges() {
    let some = |credits: &[(&str, i64)], charged: i64| {
        Some((credits.iter().map(|(id, amount)| ((*id).to_owned(), *amount)).collect::<Vec<_>>(), charged))
    };
    let swap = [("si_1", -500), ("si_2", 800)];
    assert_eq!(moved_to(Some("si_2"), &swap), some(&[("si_1", 500)], 800));
    assert_eq!(moved_to(Some("si_1"), &swap), None, "the item that is credited");
    assert_eq!(moved_to(None, &swap), None, "a line without an item");
    let free = [("si_1", -500), ("si_2", 0)];
    assert_eq!(moved_to(Some("si_2"), &free), None, "nothing pays for an item that costs nothing");
    let beside = [("si_1", -500), ("si_2", 800), ("si_3", -200), ("si_3", 300), ("si_4", 40)];
    assert_eq!(
        moved_to(Some("si_2"), &beside),
        some(&[("si_1", 500)], 840),
        "beside an item that changes, and one more that comes"
    );
    let two = [("si_9", -50), ("si_1", -500), ("si_1", -100), ("si_2", 800)];
    assert_eq!(moved_to(Some("si_2"), &two), some(&[("si_1", 600), ("si_9", 50)], 800), "two items");
    assert_eq!(moved_to(Some("si_2"), &[("si_1", 500), ("si_2", 800)]), None, "nothing is credited");
    let tiers = [("si_1", -500), ("si_2", 0), ("si_2", 800)];
    assert_eq!(moved_to(Some("si_2"), &tiers), some(&[("si_1", 500)], 800), "two lines of one price");
    let with_free = [("si_1", -500), ("si_2", 800), ("si_3", 0)];
    assert_eq!(moved_to(Some("si_3"), &with_free), some(&[("si_1", 500)], 800), "one that costs nothing");
    let later = [("si_1", -500, 9, 30), ("si_2", 800, 12, 30)];
    assert_eq!(moved_in_time(Some("si_2"), (12, 30), &later), None, "from another moment on");
}

/// Items of an invoice that leaves nothing to pay. The credits that wait are billed with the next invoice
/// (<https://docs.stripe.com/billing/subscriptions/prorations>).
#[test]
fn what_is_credited_pays_for_other_items_if_nothing_is_to_be_paid() {
    let some = |credited: i64, charged: i64| Some((vec![("si_1".to_owned(), credited)], charged));
    let even = [("si_1", -500), ("si_2", -100), ("si_2", 600)];
    assert_eq!(moved_to(Some("si_2"), &even), some(500, 500), "an upgrade, to the cent");
    assert_eq!(moved_to(Some("si_1"), &even), None, "the item that is credited");
    let seats = [("si_1", -900, 9, 30), ("si_1", 100, 9, 30)];
    let beside = |start: i64, end: i64| {
        let lines = [&seats[..], &[("si_2", 300, start, end)]].concat();
        moved_in_time(Some("si_2"), (start, end), &lines)
    };
    let renewal = |until: i64| {
        let lines = [&seats[..], &[("si_1", 50, 30, until), ("si_2", 300, 30, 60)]].concat();
        moved_in_time(Some("si_2"), (30, 60), &lines)
    };
    assert_eq!([60, 90].map(renewal), [some(750, 300), some(750, 300)], "a renewal of both");
    assert_eq!(renewal(59), None, "the other one ends earlier");
    assert_eq!(beside(30, 60), None, "only one of them is renewed");
    assert_eq!(beside(12, 30), some(800, 300), "a charge that ends with the credit");
    assert_eq!(beside(12, 42), None, "a period of its own");
    assert_eq!(beside(5, 30), some(800, 300), "a charge that begins before the credit");
    let gone = [("si_1", -900, 9, 30), ("si_2", 300, 12, 42)];
    assert_eq!(moved_in_time(Some("si_2"), (12, 42), &gone), some(900, 300), "of an item that is removed");
    let free = [("si_1", -900, 9, 30), ("si_1", 0, 9, 30), ("si_2", 300, 12, 42)];
    assert_eq!(moved_in_time(Some("si_2"), (12, 42), &free), None, "of an item that costs nothing now");
    let renewed = [("si_1", -900, 9, 30), ("si_1", 0, 12, 60), ("si_2", 300, 12, 30)];
    assert_eq!(moved_in_time(Some("si_2"), (12, 30), &renewed), some(900, 300), "by its newest credit");
    let longer = [("si_1", -900, 9, 30), ("si_1", 0, 20, 50), ("si_2", 300, 12, 42)];
    assert_eq!(moved_in_time(Some("si_2"), (12, 42), &longer), None, "a line of 0 is no credit");
}

/// What an invoice charges for an item is the sum of its lines. A credit of its unused time was paid for by
/// that share of the sum.
#[test]
fn a_line_knows_what_its_invoice_charges_for_its_item() {
    let charged = |lines: &[serde_json::Value]| {
        let given = invoice("paid", P1, "in_1", "subscription_update", lines, json!({}));
        let account = serde_json::to_value(&Run::of(&[given]).account.state).unwrap();
        let lines = account["subscriptions"]["sub_1"]["items"]["si_1"]["lines"].as_array().unwrap().clone();
        lines.iter().map(|line| line["charged"].as_i64()).collect::<Vec<_>>()
    };
    assert_eq!(charged(&[line("price_pro", 1, P1)]), [None], "the amount of the line itself");
    let two =
        [line("price_pro", 1, P1), patched(proration("price_pro", 700), &json!({"period": {"start": P1}}))];
    assert_eq!(charged(&two), [Some(2700), Some(2700)]);
}

/// The line of an item always names the item, or its type is `subscription`: before 2025-03-31.basil the line of
/// a subscription without `subscription_item`, and that of an invoice item with it.
#[test]
fn the_zero_line_of_a_pack_that_an_item_sells_grants_nothing() {
    let zero = |patch: serde_json::Value| {
        let base = json!({"id": "il_1", "amount": 0, "quantity": 1, "price": {"id": "price_p1000"},
            "period": {"start": P1, "end": P2}});
        let lines = [line("price_pro", 1, P1), patched(base, &patch)];
        Run::of(&[invoice("paid", P1, "in_1", "subscription_create", &lines, json!({}))]).balance().get()
    };
    assert_eq!(zero(json!({"type": "subscription"})), 5000, "of a subscription");
    assert_eq!(zero(json!({"type": "invoiceitem", "subscription_item": "si_2"})), 5000, "of an item");
    assert_eq!(zero(json!({"type": "invoiceitem"})), 6000, "of no item: a pack for nothing");
}
