//! What holds exactly at a boundary: at a moment, in one second, with equal amounts.

use serde_json::json;

use super::shapes::{DAY, T, YEAR, bill, item, line, month, shows, shows_with};
use super::{Outcome, P1, P2, Run, Step, beside, invoice, pack, paid, refunded};
use crate::account::hand_over::MoveSummary;
use crate::credits::Credits;
use crate::event;
use crate::ids::HoldId;
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

const MONTHLY: Step = Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n");

fn year_of_months() -> Vec<Step> {
    vec![
        MONTHLY,
        shows(T, "active", &[item("si_1", "price_pro", T, T + YEAR)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, T + YEAR)]),
    ]
}

#[test]
fn a_plan_gives_access_until_its_end_and_not_at_it() {
    let until = T + 10 * DAY;
    let run = Run::of(&[Step::At(T), Step::Complimentary { plan: "pro", until: Some(until), credits: 0 }]);
    let tier = |at| run.account.state.access(&run.catalog, Timestamp::from_unix(at)).tier;
    assert_eq!([until - 1, until, until + 1].map(tier), ["pro", "free", "free"]);
    let (state, now) = (&run.account.state, Timestamp::from_unix(T + 1));
    let access = state.access(&run.catalog, now);
    assert_eq!(access.tier, "pro");
    assert_eq!(state.next_change(&access, now), Some(Timestamp::from_unix(until)));
    let start = Timestamp::from_unix(T);
    assert_eq!(state.next_change(&access, start), Some(Timestamp::from_unix(until)), "it has begun");
}

#[test]
fn a_payment_in_the_second_of_a_snapshot_does_not_replace_what_it_shows() {
    let renewed = month(T);
    let given = [
        shows(T, "active", &[item("si_1", "price_pro", T, renewed)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, renewed)]),
        shows(renewed + 1, "active", &[item("si_1", "price_business", T, renewed)]),
        bill(
            renewed + 1,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_pro", 2000, renewed, month(renewed))],
        ),
    ];
    let run = Run::of(&given);
    assert_eq!(run.account.state.access(&run.catalog, Timestamp::from_unix(renewed + 2)).tier, "business");
    // The change is one of the first period.
    assert_eq!(run.balance(), Credits::new(5000));
}

#[test]
fn eight_payments_that_wait_for_the_customer_are_kept_and_the_ninth_replaces_the_oldest() {
    let action = |number: i64| {
        invoice("payment_action_required", P1 + number, &format!("in_{number}"), "manual", &[], json!({}))
    };
    let steps: Vec<Step> = (1..=9).map(action).collect();
    let kept = |steps: &[Step]| {
        let actions = Run::of(steps).account.state.actions;
        (actions.len(), actions.first().map(|action| action.invoice.to_string()))
    };
    assert_eq!(kept(&steps[..8]), (8, Some("in_1".to_owned())));
    assert_eq!(kept(&steps), (8, Some("in_2".to_owned())));
}

#[test]
fn a_month_that_runs_is_explained_by_its_number_and_a_first_month_is_not() {
    let why_at = |at| {
        let run = Run::of(&[year_of_months(), vec![Step::At(at), Step::Spend(1)]].concat());
        let all = run.account.explain(&[], &run.catalog, Timestamp::from_unix(at));
        all.into_iter().find(|one| one.field == "bucket si_1").map(|one| one.why).unwrap_or_default()
    };
    assert!(!why_at(T + DAY).contains("its month"), "{}", why_at(T + DAY));
    assert!(why_at(T + 35 * DAY).contains("its month 2 began"), "{}", why_at(T + 35 * DAY));
}

#[test]
fn a_refill_says_how_many_before_it_were_skipped() {
    let spends = [35, 95].map(|days| [Step::At(T + days * DAY), Step::Spend(1)]).concat();
    let run = Run::of(&[year_of_months(), spends].concat());
    let skipped: Vec<u32> = run
        .ledger
        .values()
        .filter(|entry| entry.key.as_str().starts_with("slice#"))
        .map(|entry| entry.skipped)
        .collect();
    assert_eq!(skipped, [0, 1], "months 2 and 4 are booked");
    // An item that was added in the fourth month has months of its own.
    let start = |months: u32| Timestamp::from_unix(T).plus_months(months).unix();
    let added = [
        Step::At(start(3)),
        Step::Spend(1),
        bill(start(3) + 1, "in_2", "manual", &[line("si_2", "price_pro", 2000, start(3), start(3) + YEAR)]),
        Step::At(start(6) + DAY),
        Step::Spend(1),
    ];
    let two = Run::of(&[year_of_months(), added.to_vec()].concat());
    let skipped = |key: &str| two.ledger[&LedgerKey::from_text(key)].skipped;
    assert_eq!(["slice#in_1#si_1#6", "slice#in_2#si_2#3"].map(skipped), [2, 2], "{}", two.summary());
    // The refill explains the credits of an invoice that arrives in a later month.
    let late = Run::of(&[&[Step::At(T + 40 * DAY)], &year_of_months()[..]].concat());
    let delta = |key: &str| late.ledger[&LedgerKey::from_text(key)].delta;
    assert_eq!(["invoice#in_1", "slice#in_1#si_1#1"].map(delta), [0, 5000], "{}", late.summary());
    for entry in run.ledger.values() {
        let stored = serde_json::to_value(entry).unwrap();
        assert_eq!(stored.get("skipped").is_some(), entry.skipped > 0, "{stored}");
        assert_eq!(&serde_json::from_value::<crate::ledger::Entry>(stored).unwrap(), entry);
    }
}

#[test]
fn the_balance_of_an_import_is_explained_as_its_own_bucket() {
    let run = Run::of(&[
        Step::Signup,
        Step::Import { as_of: T, credits: 300, with_signup: false, invoices: Vec::new() },
    ]);
    let all = run.account.explain(&[], &run.catalog, Timestamp::from_unix(T + 2));
    let import = all.into_iter().find(|one| one.field == "bucket import").unwrap();
    assert_eq!(import.value, "300");
    let why = "import#b says that the user had 300 credits at ";
    assert!(import.why.starts_with(why), "{}", import.why);
}

#[test]
fn what_moves_without_customers_and_subscriptions_is_empty() {
    assert!(MoveSummary::default().is_empty());
    assert!(!MoveSummary { customers: vec!["cus_1".parse().unwrap()], ..MoveSummary::default() }.is_empty());
}

#[test]
fn a_hold_that_ended_takes_all_that_is_left_and_not_one_credit_more() {
    let run = Run::of(&[Step::Signup]);
    let (hold, now) = (HoldId::new("hold_1").unwrap(), Timestamp::from_unix(T));
    let commit = |amount| {
        let amount = Credits::new(amount);
        run.account.commit_hold(&hold, amount, amount, false, &run.catalog, now)
    };
    let change = commit(500).unwrap();
    assert_eq!(change.state.balance(&run.catalog.policy, now), Credits::ZERO);
    assert!(commit(501).is_err());
}

#[test]
fn a_late_pack_is_filed_with_the_reset_that_came_before_it() {
    let given = [paid(P2 + 1, "in_2", "subscription_cycle", "price_pro", P2), pack(P1 + 5, "cs_1")];
    let run = Run::of(&given);
    let entry = &run.ledger[&LedgerKey::session(&"cs_1".parse().unwrap())];
    assert_eq!(entry.filed_at, run.account.state.reset_at);
    assert!(entry.filed_at.is_some_and(|at| at > entry.created), "{entry:?}");
}

#[test]
fn a_refund_of_a_period_that_is_over_is_superseded() {
    let given = [
        paid(P1, "in_1", "subscription_create", "price_pro", P1),
        paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
        refunded(P2 + 5, "pi_in_1", 2000),
    ];
    let summary = Run::of(&given).summary();
    assert!(summary.contains("sub_1=5000"), "{summary}");
    assert!(summary.contains("refund#ch_pi_in_1#2000 +0 superseded"), "{summary}");
}

#[test]
fn a_test_clock_moves_only_accounts_that_have_one() {
    let clock = |patch| {
        let run = Run::of(&[shows_with(T, "active", &[item("si_1", "price_pro", T, month(T))], patch)]);
        run.account.state.clock
    };
    assert_eq!(clock(json!({"test_clock": "clock_1"})), Some(Timestamp::from_unix(T)));
    assert_eq!(clock(json!({})), None);
}

#[test]
fn the_effect_of_an_older_invoice_is_that_it_is_superseded() {
    let newer = paid(P2, "in_2", "subscription_cycle", "price_pro", P2);
    let older = paid(P1, "in_1", "subscription_create", "price_pro", P1);
    assert_eq!(beside(&[newer], &older), "superseded |  | pi_in_1=invoice#in_1 | -");
}

#[test]
fn of_two_events_about_one_payment_that_waits_the_newer_one_counts() {
    let action = |at: i64, url: &str| {
        invoice("payment_action_required", at, "in_1", "manual", &[], json!({"hosted_invoice_url": url}))
    };
    let (old, new) =
        (action(P1, "https://invoice.stripe.com/i/old"), action(P1 + 9, "https://invoice.stripe.com/i/new"));
    for steps in [[old.clone(), new.clone()], [new, old]] {
        let run = Run::of(&steps);
        let shown = run.account.state.payment_action(&run.catalog, Timestamp::from_unix(P1 + 10));
        let url = shown.and_then(|action| action.hosted_invoice_url.as_deref());
        assert_eq!(url, Some("https://invoice.stripe.com/i/new"));
    }
}

#[test]
fn a_subscription_that_only_an_invoice_shows_runs_until_the_end_of_its_period() {
    let run = Run::of(&[bill(
        T + 1,
        "in_1",
        "subscription_create",
        &[line("si_1", "price_pro", 2000, T, month(T))],
    )]);
    let id = "sub_1".parse().unwrap();
    let runs = |at| {
        let now = Timestamp::from_unix(at);
        run.account.state.summary(&id, &run.catalog, now).is_some_and(|one| one.runs_by_invoice(now))
    };
    assert_eq!([T + 2, month(T) - 1, month(T)].map(runs), [true, true, false]);
}

/// An operator adds the price of a second item to the catalog, and Stripe sends the same event again.
#[test]
fn a_price_that_the_catalog_learns_counts_when_its_event_is_sent_again() {
    let items = [item("si_1", "price_pro", T, month(T)), item("si_2", "price_new", T, month(T))];
    let shown = shows(T, "active", &items);
    let added = Step::Edit("prices = [\"price_business\"]", "prices = [\"price_business\", \"price_new\"]");
    let run = Run::of(&[shown.clone(), added, shown]);
    let now = Timestamp::from_unix(T + 1);
    assert_eq!(run.account.state.access(&run.catalog, now).tier, "business");
}

#[test]
fn each_lot_names_its_bucket() {
    let life = json!({"line_items": {"data": [{"price": {"id": "price_pro"}, "quantity": 1}]}});
    let run = Run::of(&[
        Step::At(T),
        Step::Signup,
        Step::Grant(70),
        pack(T, "cs_1"),
        super::session("completed", T, "cs_2", json!({}), life),
        shows(T, "trialing", &[item("si_1", "price_pro", T, month(T))]),
    ]);
    let all = run.account.state.buckets(&run.catalog.policy, run.now);
    let mut named: Vec<(String, u64)> =
        all.lots.iter().map(|one| (one.lot.bucket(), one.left.get())).collect();
    named.sort();
    let expect = [("addon", 1000), ("grant", 70), ("lifetime", 5000), ("si_1", 2000), ("signup", 500)];
    assert_eq!(named, expect.map(|(name, left)| (name.to_owned(), left)));
    let by_item: Vec<_> = all.by_item().into_iter().collect();
    assert_eq!(by_item, [("si_1", Credits::new(2000))]);
}

fn free_credits() -> Vec<Step> {
    let edit = Step::Edit("[policy]\n", "[policy]\nfree_credits = 100\nfree_refill = \"month\"\n");
    vec![edit, Step::At(T), Step::Signup]
}

/// A free refill stays until the next one, or until a paid period begins. It need not be booked for that.
#[test]
fn free_credits_of_a_pause_are_found_after_months_with_a_plan() {
    let day = |day: i64| T + day * DAY;
    let plan = |status: &str, at: i64| shows(at, status, &[item("si_1", "price_pro", day(1), day(366))]);
    let paused = |until: i64| {
        let year = [line("si_1", "price_pro_year", 20_000, day(1), day(366))];
        let bought = bill(day(1), "in_1", "subscription_create", &year);
        vec![plan("active", day(1)), bought, plan("paused", day(20)), plan("active", day(until))]
    };
    let later = |steps: Vec<Step>, ticks: &[i64]| {
        let ticks = ticks.iter().flat_map(|at| [Step::At(day(*at)), Step::Spend(1)]);
        let run = Run::of(&[free_credits(), steps, ticks.collect(), vec![Step::At(day(300))]].concat());
        run.account.state.balance(&run.catalog.policy, Timestamp::from_unix(day(300))).get()
    };
    assert_eq!(later(paused(28), &[]), 5000, "no month began in the pause");
    assert_eq!(later(paused(45), &[]), 5100, "nothing was booked for nine months");
    assert_eq!(later(paused(45), &[40]), 5099, "booked in the pause");
    assert_eq!(later(paused(45), &[40, 290]), 5098, "and looked at again");
}

/// The first month after the signup begins on day 31: from 9 October to 9 November 2025.
#[test]
fn free_credits_fall_due_in_a_month_that_begins_without_a_plan() {
    let day = |day: i64| T + day * DAY;
    let life = |at: i64| {
        let lines = json!({"line_items": {"data": [{"price": {"id": "price_pro"}, "quantity": 1}]}});
        super::session("completed", at, "cs_1", json!({}), lines)
    };
    let gift = |at: i64, until: Option<i64>| {
        vec![Step::At(at), Step::Complimentary { plan: "pro", until, credits: 0 }]
    };
    let plan = |status: &str, at: i64| shows(at, status, &[item("si_1", "price_pro", day(1), day(400))]);
    // The grace of the catalog is five days.
    let unpaid = |status: &str, start: i64| {
        let until = day(start) + 10 * DAY;
        vec![
            plan("active", day(1)),
            shows(day(start), status, &[item("si_1", "price_pro", day(start), until)]),
        ]
    };
    let collects_not = |policy: &'static str| {
        let paused = json!({"pause_collection": {"behavior": "void"}});
        let items = [item("si_1", "price_pro", day(1), day(400))];
        vec![
            Step::Edit("[policy]\n", policy),
            plan("active", day(1)),
            shows_with(day(20), "active", &items, paused),
        ]
    };
    let back = |policy: &str, at: i64| {
        let policy = if policy == "end" { "[policy]\nrefunded_access = \"end\"\n" } else { "[policy]\n" };
        let lines = [super::shapes::line("si_1", "price_pro", 2000, day(1), day(400))];
        vec![
            Step::Edit("[policy]\n", policy),
            plan("active", day(1)),
            super::shapes::bill(day(1), "in_1", "subscription_create", &lines),
            super::shapes::tie(day(1), "in_1"),
            refunded(day(at), "pi_in_1", 2000),
        ]
    };
    for (what, steps, due) in [
        ("no plan", vec![], true),
        ("a plan for life", vec![life(day(1))], false),
        ("one that is bought later", vec![life(day(32))], true),
        ("one that is refunded in part", vec![life(day(1)), refunded(day(2), "pi_cs_1", 1999)], false),
        ("one that is refunded", vec![life(day(1)), refunded(day(2), "pi_cs_1", 2000)], true),
        ("one that is refunded later", vec![life(day(1)), refunded(day(33), "pi_cs_1", 2000)], false),
        ("a gift without an end", gift(day(1), None), false),
        ("one that ends within the month", gift(day(1), Some(day(33))), false),
        ("one that ends as the month begins", gift(day(1), Some(day(31))), true),
        ("one that is given later", gift(day(32), None), true),
        ("a subscription", vec![plan("active", day(1))], false),
        ("one that begins later", vec![plan("active", day(32))], true),
        (
            "one that only its invoice shows",
            vec![bill(
                day(2),
                "in_1",
                "subscription_create",
                &[line("si_1", "price_pro", 2000, day(1), day(400))],
            )],
            false,
        ),
        ("one that ended before", vec![plan("active", day(1)), plan("canceled", day(20))], true),
        ("one that ends later", vec![plan("active", day(1)), plan("canceled", day(33))], false),
        (
            "one that ended within its paid period",
            vec![
                bill(
                    day(1),
                    "in_1",
                    "subscription_create",
                    &[line("si_1", "price_pro", 9, day(1), day(400))],
                ),
                plan("canceled", day(20)),
            ],
            true,
        ),
        ("one that is paused", vec![plan("active", day(1)), plan("paused", day(20))], true),
        ("a payment that is overdue, in its grace", unpaid("past_due", 28), false),
        ("one whose grace is over", unpaid("past_due", 25), true),
        ("one that Stripe has given up", unpaid("unpaid", 28), true),
        ("no collection, which ends nothing", collects_not("[policy]\n"), false),
        (
            "no collection, which ends with the paid period",
            collects_not("[policy]\npause_collection = \"until_period_end\"\n"),
            true,
        ),
        ("one whose payment is refunded, which ends nothing", back("keep", 20), false),
        ("one whose payment is refunded, which ends it", back("end", 20), true),
        ("one whose payment is refunded later", back("end", 33), false),
        ("one that is paused later", vec![plan("active", day(1)), plan("paused", day(33))], false),
    ] {
        let run = Run::of(&[free_credits(), steps, vec![Step::At(day(40)), Step::Spend(1)]].concat());
        let refills = run.ledger.keys().filter(|key| key.as_str().starts_with("free#")).count();
        assert_eq!(refills, usize::from(due), "{what}: {}", run.summary());
    }
}

#[test]
fn the_next_free_credits_are_those_of_the_next_month_without_a_plan() {
    let next = |steps: Vec<Step>, at: i64| {
        let run = Run::of(&steps);
        let next = run.account.state.next_free_refill(&run.catalog.policy, Timestamp::from_unix(at));
        next.map(|next| (next.unix() - T) / DAY)
    };
    assert_eq!(next(free_credits(), T + DAY), Some(31));
    assert_eq!(next(free_credits(), T + 31 * DAY - 1), Some(31));
    assert_eq!(next(free_credits(), T + 31 * DAY), Some(61));
    assert_eq!(next(free_credits(), T + 84 * DAY), Some(92));
    let plan = shows(T + 1, "active", &[item("si_1", "price_pro", T, T + YEAR)]);
    assert_eq!(next([free_credits(), vec![plan]].concat(), T + DAY), None);
    assert_eq!(next(vec![Step::At(T), Step::Signup], T + DAY), None, "the policy gives none");
}

/// A paid year with monthly credits begins on day 1, so its months begin a day after those of the free credits.
#[test]
fn of_many_pauses_those_that_decide_about_free_credits_and_months_are_kept() {
    let day = |day: i64| T + day * DAY;
    let state = |at: i64, status: &str| shows(at, status, &[item("si_1", "price_pro", day(1), day(366))]);
    let pauses = |from: i64| -> Vec<Step> {
        (0..20)
            .flat_map(|hour| [state(from + hour * 3600, "paused"), state(from + hour * 3600 + 60, "active")])
            .collect()
    };
    let year = vec![
        MONTHLY,
        state(day(1), "active"),
        bill(day(1) + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, day(1), day(366))]),
        Step::Spend(4000),
    ];
    let paused = |from: i64, to: i64| {
        let decide = vec![state(from, "paused"), state(to, "active"), state(day(42), "paused")];
        [decide, pauses(day(3)), pauses(day(10))].concat()
    };
    let last = vec![Step::At(day(45)), Step::Spend(0)];
    let run = Run::of(&[year.clone(), paused(day(30), day(40)), last.clone()].concat());
    assert_eq!(super::shapes::end(&run), "free 5000 | si_1=5000", "the month began when the pause ended");
    let state = serde_json::to_value(&run.account.state.subscriptions["sub_1"]).unwrap();
    let phases = state["phases"].as_array().map(Vec::len);
    assert!(phases.is_some_and(|phases| phases <= 30), "{phases:?} of 83");
    let run = Run::of(&[free_credits(), year, paused(day(30), day(31) + 3600), last].concat());
    assert_eq!(
        super::shapes::end(&run),
        "free 5100 | si_1=5000 signup=100",
        "the free month began in the pause"
    );
}

#[test]
fn an_event_links_a_subscription_that_the_account_does_not_know() {
    let linked = |given: &[Step], step: &Step| {
        let mut run = Run::of(given);
        let Step::Event(body) = step else { panic!("no event") };
        let Outcome::Apply(applied) = run.decided(&event::read(body.to_string().as_bytes()).unwrap()) else {
            panic!("not applied")
        };
        applied.subscriptions.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let bought = paid(P1, "in_1", "subscription_create", "price_pro", P1);
    let renewed = paid(P2, "in_2", "subscription_cycle", "price_pro", P2);
    assert_eq!(linked(&[], &bought), ["sub_1"]);
    assert_eq!(linked(&[bought], &renewed), Vec::<String>::new());
}

/// Two periods of an overdue subscription: the grace follows the paid one at once.
#[test]
fn the_grace_begins_in_the_second_in_which_the_paid_period_ends() {
    let next = month(T);
    let run = Run::of(&[
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, next)]),
        shows(next, "past_due", &[item("si_1", "price_pro", next, month(next))]),
    ]);
    let tier = |at: i64| run.account.state.access(&run.catalog, Timestamp::from_unix(at)).tier;
    assert_eq!([next - 1, next, next + 5 * DAY - 1, next + 5 * DAY].map(tier), ["pro", "pro", "pro", "free"]);
}

/// The pause skips the month that began in it. It ends as the month after it begins.
#[test]
fn a_pause_that_ends_with_a_month_grants_nothing_of_it() {
    let start = |months: u32| Timestamp::from_unix(T).plus_months(months).unix();
    let state = |at: i64, status: &str| shows(at, status, &[item("si_1", "price_pro", T, T + YEAR)]);
    let half = "trial_credits = 2000\nrefill = \"month\"\nrollover = { percent = 50, max = 2000 }\n";
    let run = Run::of(&[
        Step::Edit("trial_credits = 2000\n", half),
        state(T, "active"),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, T + YEAR)]),
        Step::Spend(4000),
        state(start(1) - DAY, "paused"),
        state(start(2), "active"),
    ]);
    // Half of the 1,000 that were left of the first month.
    assert_eq!(run.balance().get(), 5500, "{}", run.summary());
}
