//! What an item keeps although its record is bounded.

use serde_json::{Value, json};

use super::shapes::{
    DAY, T, YEAR, bill, check_life, end, flagged, item, line, month, seats, shows, tie, times,
};
use super::{Run, Step, pack, refunded};

#[test]
fn a_paid_period_stays_open_however_many_periods_pass_without_an_invoice() {
    // Collection is paused: periods pass and nothing is invoiced. The line of a new full period may be a
    // proration, as in the invoice of pay-rails/pay (5b018bc) test_stripe_can_swap_a_subscription.yml. It opens
    // a period because a snapshot shows its start.
    let at = T + 86_400;
    let lines = [
        flagged("si_1", "price_pro", -1900, at, month(T)),
        flagged("si_1", "price_business", 9000, at, month(at)),
    ];
    let life = |periods| {
        let mut steps = vec![
            shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
            shows(at, "active", &[item("si_1", "price_business", at, month(at))]),
            bill(at + 1, "in_2", "subscription_update", &lines),
        ];
        let mut start = at;
        for _ in 0..periods {
            start = month(start);
            steps.push(shows(start + 1, "active", &[item("si_1", "price_business", start, month(start))]));
        }
        steps
    };
    check_life("a year", &life(12), "business 20000 | si_1=20000");
    assert_eq!(end(&Run::of(&life(40))), "business 20000 | si_1=20000", "as it happened");
}

/// The bounds are in ARCHITECTURE.md: the account item stays small with any history.
#[test]
fn each_list_is_kept_up_to_its_maximum() {
    let year = T + YEAR;
    let team = |count: u64| seats("si_1", "price_team", count, T, year);
    let mut steps = vec![Step::KeepAddons, shows(T, "active", &[team(1)])];
    steps.push(bill(T + 1, "in_0", "subscription_create", &[line("si_1", "price_team", 700, T, year)]));
    for number in 1..80 {
        let (at, count) = (T + number * DAY, u64::try_from(number).unwrap());
        let charge = times(count, flagged("si_1", "price_team", 10, at, year));
        steps.push(shows(at, "active", &[team(count)]));
        steps.push(bill(at + 1, &format!("in_{number}"), "subscription_update", &[charge]));
        steps.push(pack(at + 2, &format!("cs_{number}")));
    }
    let run = Run::of(&steps);
    let state = serde_json::to_value(&run.account.state).unwrap();
    let length = |list: &Value| list.as_array().map_or(0, Vec::len);
    let one = &state["subscriptions"]["sub_1"]["items"]["si_1"];
    assert_eq!((length(&one["lines"]), length(&one["sights"])), (64, 16));
    assert_eq!(one["lines"][0]["invoice"], "in_0", "the one that opens the period stays");
    let older = |pack: &Value| length(&pack["older"]);
    let packs = state["packs"].as_array().unwrap();
    assert_eq!((packs.len(), packs.iter().map(older).max()), (24, Some(20)));
    let is_empty = |part: &Value| part["left"] == 0;
    assert!(!packs.iter().flat_map(|pack| pack["older"].as_array()).flatten().any(is_empty));
    // A subscription that stays overdue goes on to further periods.
    let overdue = (0..40).map(|number| {
        let start = T + number * 30 * DAY;
        shows(start, "past_due", &[item("si_1", "price_pro", start, month(start))])
    });
    let run = Run::of(&overdue.collect::<Vec<_>>());
    let late = serde_json::to_value(&run.account.state.subscriptions["sub_1"].items["si_1"]).unwrap();
    assert_eq!((length(&late["overdue"]), &late["overdue"][0][0]), (16, &json!(T)), "the first one stays");
    // Spent packs are kept so that their credits can be given back.
    let packs = (0..20).map(|number| pack(T + number, &format!("cs_{number}"))).collect::<Vec<_>>();
    let spent = Run::of(&[packs, vec![Step::Spend(19_500), Step::Grant(1)]].concat());
    assert_eq!(spent.account.state.packs.len(), 12 + 1);
    // A refill of each month, which a late payment may take back.
    let free = Step::Edit("[policy]\n", "[policy]\nfree_credits = 100\nfree_refill = \"month\"\n");
    let months = (1..9).flat_map(|number| [Step::At(T + number * 31 * DAY), Step::Spend(1)]);
    let steps = [vec![free, Step::At(T), Step::Signup], months.collect()].concat();
    assert_eq!(Run::of(&steps).account.state.free.len(), 4);
    // Pauses of the newest month of a plan with monthly credits.
    let monthly = Step::Edit("per = \"seat\"\n", "per = \"seat\"\nrefill = \"month\"\n");
    let state = |at: i64, status: &str| shows(at, status, &[seats("si_1", "price_team", 1, T, month(T))]);
    let pauses = (0..70).flat_map(|hour| {
        let at = T + DAY + hour * 3600;
        [state(at, "paused"), state(at + 60, "active")]
    });
    let paid = bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_team", 700, T, month(T))]);
    let run = Run::of(&[vec![monthly, paid], pauses.collect()].concat());
    let one = serde_json::to_value(&run.account.state.subscriptions["sub_1"]).unwrap();
    assert_eq!(length(&one["phases"]), 120);
}

/// A subscription that changes its period, its items and its prices in every snapshot, and a line with a price
/// that no snapshot shows, again and again.
#[test]
fn a_subscription_is_kept_small_however_often_it_changes() {
    let by_key =
        Step::Edit("prices = [\"price_pro\", \"price_pro_year\"]", "lookup_keys = [\"pro_monthly\"]");
    let mut steps = vec![by_key];
    for number in 0..40 {
        let at = T + number * DAY;
        let mut pro = item("si_1", &format!("price_{number}"), at, month(at));
        pro["price"]["lookup_key"] = json!("pro_monthly");
        let other = item(&format!("si_{}", 2 + number % 3), "price_boost", at, month(at));
        steps.push(shows(at, "active", &[pro, other]));
        let (known, waits) = ("price_boost", format!("price_later_{number}"));
        let lines = [line("si_2", known, 10, at, month(at)), line("si_1", &waits, 10, at, month(at))];
        steps.push(bill(at + 1, &format!("in_{number}"), "manual", &lines));
    }
    let run = Run::of(&steps);
    let one = serde_json::to_value(&run.account.state.subscriptions["sub_1"]).unwrap();
    let length = |list: &Value| list.as_array().map_or(0, Vec::len);
    let seen: usize = one["sets"].as_array().unwrap().iter().map(|set| length(&set["seen"])).sum();
    let learnt = one["learnt"].as_object().map_or(0, serde_json::Map::len);
    let starts = length(&one["items"]["si_1"]["starts"]);
    assert_eq!((seen, learnt, starts, length(&one["unpriced"])), (16, 32, 16, 32));
}

#[test]
fn the_spends_of_one_period_are_one_record() {
    let half = "trial_credits = 2000\nrollover = { percent = 50, max = 2000, periods = 1 }\n";
    let period = |start: i64, id: &str| {
        bill(start + 1, id, "subscription_cycle", &[line("si_1", "price_pro", 2000, start, month(start))])
    };
    let opened = [Step::Edit("trial_credits = 2000\n", half), period(T, "in_1"), period(month(T), "in_2")];
    let run = Run::of(&[&opened[..], &vec![Step::Spend(100); 60]].concat());
    assert_eq!(end(&run), "pro until day 60 1000 | carried:si_1=1000 si_1=0");
    let item = serde_json::to_value(&run.account.state.subscriptions["sub_1"].items["si_1"]).unwrap();
    assert_eq!(item["spent"].as_array().map(Vec::len), Some(2), "one of the credits that were carried over");
}

/// A refund may arrive before the import or after it.
#[test]
fn nothing_is_stored_for_credits_that_were_not_spent_or_came_back() {
    let paid = [
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        tie(T + 1, "in_1"),
    ];
    let half = refunded(T + DAY, "pi_in_1", 1000);
    let import = Step::Import { as_of: T + 5 * DAY, credits: 2500, with_signup: false, invoices: Vec::new() };
    for more in [
        vec![Step::Spend(100), Step::GiveBack(0, 100)],
        vec![half.clone(), import.clone()],
        vec![import, half],
    ] {
        let run = Run::of(&[paid.to_vec(), more].concat());
        let item = serde_json::to_value(&run.account.state.subscriptions["sub_1"].items["si_1"]).unwrap();
        assert_eq!(item.get("spent"), None, "{}", run.summary());
    }
}

/// The period that ran at the time of the balance says what its plan was worth then.
#[test]
fn after_an_import_an_item_keeps_its_period_and_the_current_one() {
    let mut start = T;
    let mut steps = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_0", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        Step::Import { as_of: T + 5 * DAY, credits: 300, with_signup: false, invoices: Vec::new() },
    ];
    for number in 1..6 {
        start = month(start);
        steps.push(shows(start, "active", &[item("si_1", "price_pro", start, month(start))]));
        let renewal = line("si_1", "price_pro", 2000, start, month(start));
        steps.push(bill(start + 1, &format!("in_{number}"), "subscription_cycle", &[renewal]));
        steps.push(Step::Spend(100));
    }
    let state = serde_json::to_value(&Run::of(&steps).account.state).unwrap();
    let item = &state["subscriptions"]["sub_1"]["items"]["si_1"];
    let starts = |list: &str| -> Vec<i64> {
        item[list].as_array().into_iter().flatten().filter_map(|one| one["start"].as_i64()).collect()
    };
    assert_eq!(starts("lines"), [T, start], "{item:#}");
    assert_eq!(starts("sights"), [T, start], "{item:#}");
    assert_eq!(starts("spent"), [T, start], "{item:#}");
}

/// The account stores pauses for plans with monthly credits and for free refills.
#[test]
fn pauses_are_stored_only_if_they_decide_about_credits() {
    let state = |at: i64, status: &str| shows(at, status, &[item("si_1", "price_pro", T, month(T))]);
    let paused = [state(T, "active"), state(T + DAY, "paused"), state(T + 2 * DAY, "active")];
    let phases = |edit: Option<Step>| {
        let run = Run::of(&[edit.into_iter().collect(), paused.to_vec()].concat());
        let one = serde_json::to_value(&run.account.state.subscriptions["sub_1"]).unwrap();
        one["phases"].as_array().map_or(0, Vec::len)
    };
    let free = Step::Edit("[policy]\n", "[policy]\nfree_credits = 100\nfree_refill = \"month\"\n");
    let monthly = Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n");
    assert_eq!([None, Some(free), Some(monthly)].map(phases), [0, 3, 3]);
}
