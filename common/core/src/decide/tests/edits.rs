//! Edits of the catalog between two events: what was sold before them stays as it was.

use serde_json::{Value, json};

use super::random::{Dice, random_life};
use super::shapes::{
    DAY, T, bill, bill_with, check_life, end, flagged, item, line, month, once, reordered, seats, shows,
    tie_by, times,
};
use super::{MONTH, Run, Step, pack, patched, session};
use crate::timestamp::Timestamp;

const PACK: &str = "credits = 1000\nprices = [\"price_p1000\"]";

fn pack_becomes(fields: &'static str) -> Step {
    Step::Edit(PACK, fields)
}

fn pro(start: i64) -> Value {
    item("si_1", "price_pro", start, month(T))
}

/// A paid month of `pro`, of which 1,000 credits are spent.
fn opened() -> Vec<Step> {
    vec![
        shows(T, "active", &[pro(T)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        Step::Spend(1000),
    ]
}

/// The price of `pro` moves to `business`.
fn price_moves() -> Vec<Step> {
    vec![
        Step::Edit("\"price_pro\", ", ""),
        Step::Edit("prices = [\"price_business\"]", "prices = [\"price_business\", \"price_pro\"]"),
    ]
}

#[test]
fn a_session_and_its_invoice_are_one_purchase_after_an_edit_of_the_pack() {
    let sold = session("completed", T, "cs_1", json!({"pack": "p1000"}), json!({}));
    let invoice = |patch: Value| {
        let patch = patched(json!({"parent": null}), &patch);
        bill_with(T + 5, "in_1", "manual", &[once("price_p1000", 2000)], patch)
    };
    let by_payment = invoice(json!({"payment_intent": "pi_cs_1"}));
    let tied = vec![invoice(json!({})), tie_by(T + 6, "in_1", "pi_cs_1")];
    let edits = [
        ("another expiry", "credits = 1000\nexpires_days = 40\nprices = [\"price_p1000\"]", 1000),
        ("more credits", "credits = 3000\nprices = [\"price_p1000\"]", 3000),
        ("fewer credits", "credits = 400\nexpires_days = 9\nprices = [\"price_p1000\"]", 400),
    ];
    for (what, fields, later) in edits {
        let edit = || vec![pack_becomes(fields)];
        let after_session = [vec![sold.clone()], edit(), vec![by_payment.clone()]].concat();
        check_life(&format!("{what}, the session first"), &after_session, "free 1000 | pack=1000");
        let after_session = [vec![sold.clone()], edit(), tied.clone()].concat();
        check_life(&format!("{what}, tied later"), &after_session, "free 1000 | pack=1000");
        let expect = format!("free {later} | pack={later}");
        let after_invoice = [vec![by_payment.clone()], edit(), vec![sold.clone()]].concat();
        check_life(&format!("{what}, the invoice first"), &after_invoice, &expect);
        let after_invoice = [vec![invoice(json!({}))], edit(), vec![sold.clone(), tied[1].clone()]].concat();
        check_life(&format!("{what}, the invoice first, tied later"), &after_invoice, &expect);
    }
}

#[test]
fn spends_of_an_invoices_pack_count_after_its_session_has_another_expiry() {
    let sold = session("completed", T, "cs_1", json!({"pack": "p1000"}), json!({}));
    let patch = json!({"parent": null, "payment_intent": "pi_cs_1"});
    let given = vec![
        bill_with(T + 5, "in_1", "manual", &[once("price_p1000", 2000)], patch),
        Step::Spend(600),
        pack_becomes("credits = 1000\nexpires_days = 40\nprices = [\"price_p1000\"]"),
        sold,
    ];
    check_life("600 of 1000", &given, "free 400 | pack=400");
}

#[test]
fn a_purchase_is_one_after_its_price_has_moved_from_a_pack_to_a_plan() {
    let lines = json!({"data": [{"id": "li_1", "quantity": 1, "price": {"id": "price_p1000"}}],
        "has_more": false});
    let sold = || session("completed", T, "cs_1", json!({}), json!({"line_items": lines}));
    let invoice = || {
        let patch = json!({"parent": null, "payment_intent": "pi_cs_1"});
        bill_with(T + 5, "in_1", "manual", &[once("price_p1000", 2000)], patch)
    };
    let edits = || {
        vec![
            pack_becomes("credits = 1000\nprices = [\"price_other\"]"),
            Step::Edit("prices = [\"price_boost\"]", "prices = [\"price_boost\", \"price_p1000\"]"),
        ]
    };
    let session_first = [vec![sold()], edits(), vec![invoice(), sold()]].concat();
    check_life("the session sold a pack", &session_first, "free 1000 | pack=1000");
    let invoice_first = [vec![invoice()], edits(), vec![sold(), invoice()]].concat();
    check_life("the session sold a plan for life", &invoice_first, "pro 300 | life=300");
}

#[test]
fn a_repeated_document_is_not_a_conflict_after_an_edit() {
    let edits = [
        ("credits", vec![pack_becomes("credits = 7\nprices = [\"price_p1000\"]")]),
        ("expiry", vec![pack_becomes("credits = 1000\nexpires_days = 3\nprices = [\"price_p1000\"]")]),
        ("name", vec![Step::Edit("name = \"p1000\"", "name = \"p_new\"")]),
        ("removed price", vec![pack_becomes("credits = 1000\nprices = [\"price_other\"]")]),
    ];
    for (what, edit) in edits {
        let manual = || bill_with(T, "in_1", "manual", &[once("price_p1000", 900)], json!({"parent": null}));
        let given = [vec![manual()], edit.clone(), vec![manual()]].concat();
        check_life(&format!("{what}, an invoice"), &given, "free 1000 | pack=1000");
        let given = [vec![pack(T, "cs_1")], edit, vec![pack(T, "cs_1")]].concat();
        check_life(&format!("{what}, a session"), &given, "free 1000 | pack=1000");
    }
}

#[test]
fn a_document_with_another_quantity_is_a_conflict_after_an_edit() {
    let of = |quantity: &str| {
        session("completed", T, "cs_1", json!({"pack": "p1000", "quantity": quantity}), json!({}))
    };
    let edit = pack_becomes("credits = 1500\nprices = [\"price_p1000\"]");
    let run = Run::of(&[of("1"), edit, of("3")]);
    assert_eq!(end(&run), "free 1000 | pack=1000");
    let parked: Vec<_> = run.parked.iter().map(|(_, why)| why.code()).collect();
    assert_eq!(parked, ["conflict"]);
    let listed = |quantity: u64| {
        let lines = json!({"data": [{"price": {"id": "price_p1000"}, "quantity": quantity}]});
        session("completed", T, "cs_1", json!({}), json!({"line_items": lines}))
    };
    let run = Run::of(&[listed(1), listed(3)]);
    let parked: Vec<_> = run.parked.iter().map(|(_, why)| why.code()).collect();
    assert_eq!(parked, ["conflict"], "by the line items");
    let billed = |quantity: u64| {
        let sold = super::shapes::times(quantity, once("price_p1000", 2000));
        bill_with(T, "in_1", "manual", &[sold], json!({"parent": null}))
    };
    let edit = pack_becomes("credits = 1500\nprices = [\"price_p1000\"]");
    let run = Run::of(&[billed(1), edit, billed(3)]);
    let parked: Vec<_> = run.parked.iter().map(|(_, why)| why.code()).collect();
    assert_eq!((end(&run).as_str(), &parked[..]), ("free 1000 | pack=1000", &["conflict"][..]));
}

#[test]
fn the_same_price_is_not_a_plan_change_after_its_plan_is_renamed() {
    let rename = || Step::Edit("name = \"pro\"", "name = \"gold\"");
    let again = || vec![shows(T + 2 * DAY, "active", &[pro(T)])];
    check_life("renamed", &[opened(), vec![rename()], again()].concat(), "pro 4000 | si_1=4000");
    let next = vec![
        shows(month(T), "active", &[item("si_1", "price_pro", month(T), month(month(T)))]),
        bill(
            month(T) + 1,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_pro", 2000, month(T), month(month(T)))],
        ),
    ];
    let renewed = [opened(), vec![rename()], again(), next].concat();
    check_life("renewed", &renewed, "pro 5000 | si_1=5000");
    let left_and_back = vec![
        shows(T + 2 * DAY, "active", &[item("si_1", "price_business", T, month(T))]),
        shows(T + 3 * DAY, "active", &[pro(T)]),
    ];
    let back = [opened(), vec![rename()], left_and_back].concat();
    check_life("left and back", &back, "pro 4000 | si_1=4000");
}

#[test]
fn another_price_of_a_plan_is_no_change_after_its_plan_is_renamed() {
    let rename = |to: &'static str| Step::Edit("name = \"pro\"", to);
    let named = || rename("name = \"gold\"\nformerly = [\"pro\"]");
    let other = |at| shows(at, "active", &[item("si_1", "price_pro_year", T, month(T))]);
    let charge = || {
        let line = flagged("si_1", "price_pro_year", 100, T + 2 * DAY, month(T));
        bill(T + 2 * DAY, "in_2", "subscription_update", &[line])
    };
    let events = || vec![other(T + 2 * DAY), charge()];
    let on_payment =
        || Step::Edit("past_due_grace_days = 5", "past_due_grace_days = 5\nplan_change = \"on_payment\"");
    let more = || Step::Edit("credits = 5000\n", "credits = 7000\n");
    let cases = [
        ("former name", vec![named()], "pro 4000 | si_1=4000"),
        ("former name and more credits", vec![named(), more()], "pro 4000 | si_1=4000"),
        ("former name, charged", vec![named(), on_payment()], "pro 4000 | si_1=4000"),
        ("only renamed", vec![rename("name = \"gold\"")], "pro 5000 | si_1=5000"),
    ];
    for (what, edits, expect) in cases {
        check_life(what, &[opened(), edits.clone(), events()].concat(), expect);
        let charge_first = [opened(), edits, vec![charge(), other(T + 2 * DAY)]].concat();
        check_life(&format!("{what}, the charge first"), &charge_first, expect);
    }
    // Only the invoice is known of the time before.
    let billed = [opened()[1..].to_vec(), vec![named(), other(T + 2 * DAY)]].concat();
    check_life("without a snapshot", &billed, "pro 4000 | si_1=4000");
    // The next period has the worth of the renamed plan, also if it begins early.
    for start in [month(T), T + 10 * DAY] {
        let next = vec![
            shows(start, "active", &[item("si_1", "price_pro_year", start, month(start))]),
            bill(
                start + 1,
                "in_3",
                "subscription_cycle",
                &[line("si_1", "price_pro_year", 2000, start, month(start))],
            ),
        ];
        let given = [opened(), vec![named(), more()], events(), next].concat();
        check_life("renewed", &given, "pro 7000 | si_1=7000");
    }
    // A trial keeps its credits, and without the former name, in a later catalog, nothing changes.
    let trial = |at, price| shows(at, "trialing", &[item("si_1", price, T, month(T))]);
    let given = vec![trial(T, "price_pro"), Step::Spend(500), named(), trial(T + DAY, "price_pro_year")];
    check_life("a trial", &given, "pro 1500 | si_1=1500");
    let removed = Step::Edit("formerly = [\"pro\"]\n", "");
    let given = [opened(), vec![named()], events(), vec![removed, other(T + 3 * DAY)]].concat();
    check_life("without the former name", &given, "pro 4000 | si_1=4000");
}

#[test]
fn a_renamed_plan_gives_its_tier_before_the_next_event() {
    let given = [opened(), vec![Step::Edit("name = \"pro\"", "name = \"gold\"")]].concat();
    check_life("no event yet", &given, "pro 4000 | si_1=4000");
}

#[test]
fn a_price_that_moves_to_another_plan_changes_no_running_period() {
    let again = vec![
        shows(T + 2 * DAY, "active", &[pro(T)]),
        bill(
            T + 2 * DAY,
            "in_2",
            "subscription_update",
            &[flagged("si_1", "price_pro", 100, T + 2 * DAY, month(T))],
        ),
    ];
    let moved = [opened(), price_moves()].concat();
    check_life("before the next event", &moved, "pro 4000 | si_1=4000");
    let moved = [opened(), price_moves(), again].concat();
    check_life("moved", &moved, "business 4000 | si_1=4000");
}

#[test]
fn a_running_trial_keeps_its_credits_after_an_edit() {
    let trial = |at| shows(at, "trialing", &[pro(T)]);
    for edit in ["trial_credits = 10\n", "trial_credits = 9000\n"] {
        let edit = || Step::Edit("trial_credits = 2000\n", edit);
        let given = vec![trial(T), Step::Spend(500), edit(), trial(T + DAY)];
        check_life("an edited trial", &given, "pro 1500 | si_1=1500");
        // The new end of a trial begins a new period.
        let extended = shows(T + DAY, "trialing", &[item("si_1", "price_pro", T + DAY, T + 40 * DAY)]);
        let given = vec![trial(T), Step::Spend(500), edit(), extended];
        check_life("extended", &given, "pro 1500 | si_1=1500");
    }
}

#[test]
fn a_plan_for_life_or_given_by_hand_follows_its_renamed_plan_by_its_former_name() {
    let life = || session("completed", T, "cs_1", json!({"plan": "pro"}), json!({}));
    let gift = || Step::Complimentary { plan: "pro", until: None, credits: 0 };
    let lost = || Step::Edit("name = \"pro\"", "name = \"gold\"");
    let kept = || Step::Edit("name = \"pro\"", "name = \"gold\"\nformerly = [\"pro\", \"starter\"]");
    for (what, step) in [("life", life()), ("gift", gift())] {
        let tier = |edit: Step| {
            let run = Run::of(&[step.clone(), edit]);
            run.account.state.access(&run.catalog, Timestamp::from_unix(T + DAY)).tier
        };
        assert_eq!((tier(lost()).as_str(), tier(kept()).as_str()), ("free", "pro"), "{what}");
    }
    // A session that names the former name sells the plan.
    let run = Run::of(&[kept(), life()]);
    assert_eq!(end(&run), "pro 5000 | life=5000", "{}", run.summary());
    let given = run.account.state.given(&run.catalog, Timestamp::from_unix(T + DAY));
    assert_eq!(given.iter().map(|one| one.plan.as_str()).collect::<Vec<_>>(), ["gold"]);
}

#[test]
fn a_changed_plan_keeps_its_credits_if_an_older_state_arrives_after_an_edit() {
    let business = |at| shows(at, "active", &[item("si_1", "price_business", T, month(T))]);
    let given = [
        opened(),
        vec![business(T + 3 * DAY), Step::Edit("credits = 20000", "credits = 30000"), business(T + 2 * DAY)],
    ]
    .concat();
    check_life("an older state", &given, "business 20000 | si_1=20000");
}

/// Edits of numbers and names, and of the plan of a price.
fn random_edits(dice: &mut Dice) -> Vec<Step> {
    let one = |from: &'static str, to: &'static str| vec![Step::Edit(from, to)];
    let groups = [
        vec![
            one("credits = 5000\n", "credits = 7000\n"),
            one("credits = 5000\n", "credits = 100\n"),
            one("credits = 5000\n", "credits = 5000\nper = \"seat\"\n"),
            one("credits = 5000\n", "credits = 4000\nrefill = \"month\"\n"),
        ],
        vec![
            one("trial_credits = 2000\n", "trial_credits = 50\n"),
            one("trial_credits = 2000\n", "trial_credits = 8000\n"),
        ],
        vec![
            one("name = \"pro\"", "name = \"gold\""),
            one("name = \"pro\"", "name = \"gold\"\nformerly = [\"pro\"]"),
            price_moves(),
        ],
        vec![one("credits = 20000\n", "credits = 30000\n"), one("name = \"business\"", "name = \"big\"")],
        vec![one("per = \"seat\"\n", ""), one("credits = 1000\nper", "credits = 900\nper")],
        vec![one("credits = 300\n", "credits = 310\nrollover = { percent = 90, max = 90000 }\n")],
        vec![
            one(PACK, "credits = 1500\nexpires_days = 400\nprices = [\"price_p1000\"]"),
            one(PACK, "credits = 10\nprices = [\"price_p1000\"]"),
        ],
    ];
    let mut edits = Vec::new();
    for group in groups {
        if dice.one_in(2) {
            let place = dice.below(i64::try_from(group.len()).unwrap());
            edits.extend(group[usize::try_from(place).unwrap()].clone());
        }
    }
    edits
}

/// The credits without the tier, which follows the catalog.
fn credits(run: &Run) -> String {
    let end = end(run);
    let (access, buckets) = end.split_once(" | ").unwrap();
    format!("{} | {buckets}", access.rsplit(' ').next().unwrap())
}

#[test]
fn events_that_arrive_again_after_random_edits_change_nothing() {
    for seed in 0..120 {
        let mut dice = Dice::of(seed + 7_000);
        let mut events = random_life(seed, MONTH);
        events.truncate(usize::try_from(1 + dice.below(i64::try_from(events.len()).unwrap())).unwrap());
        let before = [vec![Step::KeepAddons, Step::Signup], events.clone(), vec![Step::Spend(300)]].concat();
        let known = Run::of(&before);
        for order in 0..4 {
            let edits = random_edits(&mut dice);
            let again = [before.clone(), edits.clone(), reordered(&events, order)].concat();
            let run = Run::of(&again);
            let summary = format!("{edits:?}\n{}\n{}", known.summary(), run.summary());
            assert_eq!(credits(&run), credits(&known), "life {seed}, order {order}: {summary}");
            assert_eq!(run.ledger.len(), known.ledger.len(), "life {seed}, order {order}: {summary}");
            assert_eq!(run.parked.len(), known.parked.len(), "life {seed}, order {order}: {summary}");
        }
    }
}

#[test]
fn the_order_of_events_after_random_edits_does_not_matter() {
    for seed in 0..120 {
        let mut dice = Dice::of(seed + 9_000);
        let events = random_life(seed, MONTH);
        let cut = usize::try_from(dice.below(i64::try_from(events.len()).unwrap())).unwrap();
        let (before, after) = events.split_at(cut);
        let before =
            [vec![Step::KeepAddons, Step::Signup], before.to_vec(), random_edits(&mut dice)].concat();
        let in_order = Run::of(&[before.clone(), after.to_vec()].concat());
        for order in 1..5 {
            let mixed = [after.to_vec(), events[..cut].to_vec()].concat();
            let run = Run::of(&[before.clone(), reordered(&mixed, order)].concat());
            let summary = format!("{}\n{}", in_order.summary(), run.summary());
            assert_eq!(end(&run), end(&in_order), "life {seed}, order {order}: {summary}");
        }
    }
}

/// A change of a policy changes the buckets at once. The ledger follows with the account's next write, under
/// the cause of that write: nothing fell due.
#[test]
fn the_next_write_books_what_an_edit_of_the_policy_has_changed() {
    let given = [
        opened(),
        vec![
            shows(T + DAY, "active", &[item("si_1", "price_business", T, month(T))]),
            Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n"),
            Step::At(T + 2 * DAY),
        ],
    ]
    .concat();
    assert_eq!(end(&Run::of(&given)), "business 4000 | si_1=4000");
    let run = Run::of(&[given, vec![Step::Spend(10)]].concat());
    let last: Vec<_> =
        run.booked.iter().rev().take(2).map(|key| (key.as_str(), run.ledger[key].delta)).collect();
    assert_eq!(last, [("consume#3", -10), ("adjust#consume#3", -16_000)], "{}", run.summary());
}

/// Two invoices bill one period. The earlier one opens it, whichever arrives first.
#[test]
fn an_earlier_payment_of_a_period_that_arrives_after_an_edit_is_worth_what_the_later_one_was() {
    let paid = |at: i64, id: &str| {
        bill(at, id, "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))])
    };
    let edit = Step::Edit("credits = 5000\n", "credits = 7000\n");
    let run = Run::of(&[paid(T + 9, "in_2"), edit, paid(T + 1, "in_1")]);
    assert_eq!(run.balance().get(), 5000, "{}", run.summary());
}

/// The seats are not charged when they are added, but with the change to another price of the plan.
#[test]
fn a_charge_of_another_price_pays_for_the_seats_of_a_renamed_plan() {
    let team = |price: &str, quantity| seats("si_1", price, quantity, T, month(T));
    let two_prices = Step::Edit("\"price_team\"", "\"price_team\", \"price_team_b\"");
    let charge = |at: i64| {
        let line = times(3, flagged("si_1", "price_team_b", 900, at, month(T)));
        bill(at + 1, "in_2", "subscription_update", &[line])
    };
    let given = |at: i64| {
        vec![
            two_prices.clone(),
            Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n"),
            shows(T, "active", &[team("price_team", 1)]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_team", 700, T, month(T))]),
            shows(T + DAY, "active", &[team("price_team", 3)]),
            Step::Edit("name = \"team\"", "name = \"crew\"\nformerly = [\"team\"]"),
            shows(at, "active", &[team("price_team_b", 3)]),
            charge(at),
        ]
    };
    check_life("charged", &given(T + 2 * DAY), "business 3000 | si_1=3000");
    let uncharged = &given(T + 2 * DAY)[..7];
    check_life("not charged", uncharged, "business 1000 | si_1=1000");
}
