//! Packs under `addons = "reset"`: which periods end them, in the order in which Stripe made the events and
//! in other orders.

use serde_json::json;

use super::advance::{HALF, NEXT, THIRD, advance, credits, opened};
use super::shapes::{
    DAY, T, YEAR, bill, bill_with, check_life, end, item, line, month, once, shows, shows_with, tie,
};
use super::{Run, Step, pack, patched, session};

const KEEP: Step = Step::Edit("addons = \"reset\"", "addons = \"keep\"");
const RESET: Step = Step::Edit("addons = \"keep\"", "addons = \"reset\"");

/// The day after the start of the month in advance.
fn later() -> Vec<Step> {
    vec![Step::At(NEXT + DAY)]
}

/// A month of another subscription to `pro`.
fn another(start: i64) -> Vec<Step> {
    let items = [item("si_x", "price_pro", start, month(start))];
    let parent = json!({"parent": {"subscription_item_details": {"subscription": "sub_x"}}});
    let lines = [patched(line("si_x", "price_pro", 2000, start, month(start)), &parent)];
    let of = json!({"parent": {"subscription_details": {"subscription": "sub_x"}}});
    vec![
        shows_with(start, "active", &items, json!({"id": "sub_x"})),
        bill_with(start + 1, "in_x", "subscription_create", &lines, of),
    ]
}

/// A change to a year at [`HALF`], which credits the month in advance.
fn year() -> Vec<Step> {
    let [first, second] = credits(HALF);
    let lines = [first, second, line("si_1", "price_pro_year", 20_000, HALF, HALF + YEAR)];
    vec![
        shows(HALF, "active", &[item("si_1", "price_pro_year", HALF, HALF + YEAR)]),
        bill(HALF + 1, "in_3", "subscription_update", &lines),
    ]
}

/// The month in advance with a pack on its invoice.
fn advance_with_pack() -> Vec<Step> {
    let lines = [line("si_1", "price_business", 10_000, NEXT, THIRD), once("price_p1000", 500)];
    vec![bill(T + 9, "in_2", "subscription_update", &lines)]
}

fn check(what: &str, life: &[Vec<Step>], expect: &str) {
    let run = Run::of(&life.concat());
    assert_eq!(end(&run), expect, "{what}: {}", run.summary());
}

/// The event of a pack arrives after a month in advance has begun, so that month does not end the pack. Then
/// a change to a year cancels the month. The year ends the pack if it began after the sale and its events
/// arrive after those of the pack.
#[test]
fn a_late_pack_counts_from_a_period_that_began() {
    let sold = |at: i64| vec![pack(at, "cs_1")];
    for (what, life, expect) in [
        ("late", vec![sold(HALF - DAY)], "business 21000 | pack=1000 si_1=20000"),
        ("before the year", vec![sold(HALF - DAY), year()], "pro 5000 | si_1=5000"),
        ("in the year", vec![sold(HALF + DAY), year()], "pro 6000 | pack=1000 si_1=5000"),
        ("after the year", vec![year(), sold(HALF - DAY)], "pro 6000 | pack=1000 si_1=5000"),
    ] {
        check(what, &[opened(), advance(), later(), life.concat(), later()], expect);
    }
}

/// The month does not end the pack that is sold on its own invoice. A year that replaces the month does.
#[test]
fn a_pack_on_the_invoice_of_a_month_in_advance_ends_with_a_period_that_begins_instead() {
    let begun = [opened(), advance_with_pack(), later()].concat();
    let kept = "business 21000 | pack=1000 si_1=20000";
    check_life("as it is", &begun, kept);
    check_life("after a spend", &[begun.clone(), vec![Step::Spend(0)]].concat(), kept);
    check_life("changed", &[begun, year(), later()].concat(), "pro 5000 | si_1=5000");
}

/// Another subscription's period begins after the sale of the pack and before the month in advance. It ends
/// the pack, unless its event arrives before the pack's.
#[test]
fn a_pack_on_the_invoice_of_a_month_in_advance_ends_with_a_period_before_that_month() {
    let (ended, stays) =
        ("business 25000 | si_1=20000 si_x=5000", "business 26000 | pack=1000 si_1=20000 si_x=5000");
    let (first, sold, between) = (opened(), advance_with_pack(), another(HALF));
    check("in order", &[first.clone(), sold.clone(), between.clone(), later()], ended);
    check("after the month began", &[first.clone(), sold.clone(), later(), between.clone(), later()], ended);
    check("before the first month", &[sold.clone(), between.clone(), first.clone(), later()], ended);
    check("all late", &[later(), first.clone(), sold.clone(), between.clone(), later()], ended);
    check("before the pack", &[between, sold, first, later()], stays);
}

/// One invoice sells seats of the next month and a pack. Another invoice renews the plan in the second in
/// which these seats begin: it ends the pack.
#[test]
fn a_renewal_ends_a_pack_on_an_invoice_that_bills_another_item_from_then_on() {
    let lines = [line("si_2", "price_team", 100, NEXT, THIRD), once("price_p1000", 500)];
    let seats = vec![bill(T + 20, "in_s", "subscription_update", &lines)];
    let renewed = [line("si_1", "price_business", 10_000, NEXT, THIRD)];
    let renewal = vec![bill(NEXT, "in_3", "subscription_cycle", &renewed)];
    let life = [opened(), seats.clone(), vec![Step::At(NEXT - DAY)]];
    check("before", &life, "business 21000 | pack=1000 si_1=20000 si_2=0");
    check_life(
        "renewed",
        &[opened(), seats, renewal, later()].concat(),
        "business 21000 | si_1=20000 si_2=1000",
    );
}

/// A month in advance has begun and ended a pack. Then the invoice of a trial arrives, which cancels the
/// month: the pack is there again. No other period of the item is known.
#[test]
fn a_trial_that_credits_a_month_in_advance_gives_packs_back() {
    let trial = [&credits(HALF)[..], &[line("si_1", "price_business", 0, HALF, month(HALF))]].concat();
    let life = [vec![pack(T + 5, "cs_1")], advance(), later()].concat();
    check_life("as it seemed", &life, "business until day 60 20000 | si_1=20000");
    let given = vec![bill(HALF + 1, "in_3", "subscription_update", &trial)];
    check_life("as it is", &[life, given, later()].concat(), "free 1000 | pack=1000");
}

/// An item is removed before the month that was paid for it in advance: the month never begins and ends no
/// pack, whether the pack's event arrives before the month's start or after it.
#[test]
fn a_month_in_advance_of_a_removed_item_ends_no_pack() {
    let beside = item("si_2", "price_pro_year", T, T + YEAR);
    let items = [item("si_1", "price_business", T, NEXT), beside.clone()];
    let lines =
        [line("si_1", "price_business", 1, T, NEXT), line("si_2", "price_pro_year", 20_000, T, T + YEAR)];
    let started = vec![shows(T, "active", &items), bill(T + 1, "in_1", "subscription_create", &lines)];
    let removed = vec![shows(HALF + DAY, "active", &[beside])];
    let before = [started, advance(), removed].concat();
    let sold = vec![pack(HALF, "cs_1")];
    let spend = vec![Step::Spend(0)];
    let left = "pro 26000 | pack=1000 si_1=20000 si_2=5000";
    for rest in [vec![sold.clone(), later()], vec![later(), sold]] {
        let life = [before.clone(), rest.concat()].concat();
        check_life("as it is", &life, left);
        check_life("after a spend", &[life, spend.clone(), later()].concat(), left);
    }
}

/// A month in advance has begun and ended a pack. Then a change to seats arrives, which cancels the month. The
/// pack is there again, also when the account has dropped the lines of that time.
#[test]
fn a_month_that_a_change_cancelled_ends_no_pack_when_its_line_is_dropped() {
    let [first, second] = credits(HALF);
    let seats = |start: i64| line("si_1", "price_team", 700, start, month(start));
    let shown = |start: i64| shows(start, "active", &[item("si_1", "price_team", start, month(start))]);
    let begun = [opened(), vec![pack(T + 5, "cs_1")], advance(), later(), vec![Step::Spend(0)]].concat();
    check("as it seemed", std::slice::from_ref(&begun), "business 20000 | si_1=20000");
    let mut life = begun;
    life.extend([shown(HALF), bill(HALF + 1, "in_3", "subscription_update", &[first, second, seats(HALF)])]);
    let mut start = HALF;
    for number in 4..8 {
        start = month(start);
        life.push(shown(start));
        life.push(bill(start + 1, &format!("in_{number}"), "subscription_cycle", &[seats(start)]));
    }
    check("as it is", &[life], "business 2000 | pack=1000 si_1=1000");
}

/// `addons = "keep"` ends no pack, also none that arrived after a month in advance.
#[test]
fn an_edit_to_keep_ends_no_pack() {
    let late = vec![pack(HALF - DAY, "cs_1")];
    let life = [opened(), advance(), later(), late, another(HALF), later()].concat();
    let left = "business 26000 | pack=1000 si_1=20000 si_x=5000";
    check("reset", std::slice::from_ref(&life), left);
    check("keep", &[life.clone(), vec![KEEP]], left);
    check("keep, then reset", &[life, vec![KEEP, Step::Spend(0), RESET, Step::Spend(0)]], left);
    let kept = [vec![Step::KeepAddons], opened(), vec![pack(T + DAY, "cs_1")], advance(), later()];
    check("kept from the start", &kept, "business 21000 | pack=1000 si_1=20000");
    let bought = [vec![Step::KeepAddons], opened(), advance_with_pack(), later(), vec![RESET]];
    check("on the invoice", &bought, "business 21000 | pack=1000 si_1=20000");
}

/// The account keeps at most 24 packs apart. One that a month in advance ended is joined with no other.
#[test]
fn a_pack_that_ended_is_not_joined_with_one_that_did_not() {
    let packs = |from: i64, many: i64| -> Vec<Step> {
        (0..many).map(|n| pack(from + n * 3600, &format!("cs_{from}_{n}"))).collect()
    };
    for (ended, new) in [(1, 23), (1, 24), (1, 26), (3, 24), (24, 1), (24, 3), (26, 26)] {
        let life = [opened(), advance(), packs(HALF + DAY, ended), later(), packs(NEXT + DAY, new)];
        let run = Run::of(&[life.concat(), vec![Step::At(NEXT + 3 * DAY)]].concat());
        let left = run.balance().get();
        assert_eq!(left, 20_000 + 1000 * u64::try_from(new).unwrap(), "{ended} and {new}: {}", end(&run));
        let back = Run::of(&[life.concat(), year(), vec![Step::At(NEXT + 3 * DAY)]].concat());
        let all = 5000 + 1000 * u64::try_from(ended + new).unwrap();
        assert_eq!(back.balance().get(), all, "{ended} and {new}: {}", end(&back));
    }
}

/// A checkout sells a pack and makes an invoice. The invoice's event arrives first and grants the pack, then
/// a period ends the pack, then the session's event arrives: it grants nothing. The session names the
/// invoice, or only the payment of both is the same.
#[test]
fn a_session_grants_nothing_again_after_its_invoices_pack_ended() {
    let sold = || json!({"pack": "p1000"});
    let patch = json!({"parent": null});
    let invoice = bill_with(HALF - DAY + 4, "in_p", "manual", &[once("price_p1000", 2000)], patch);
    let named = session("completed", HALF - DAY, "cs_1", sold(), json!({"invoice": "in_p"}));
    let tied = session("completed", HALF - DAY, "cs_1", sold(), json!({"payment_intent": "pi_in_p"}));
    let renewal = bill(NEXT, "in_2", "subscription_cycle", &[line("si_1", "price_business", 1, NEXT, THIRD)]);
    let left = "business 20001 | grant=1 si_1=20000";
    for (what, period) in [("renewed", vec![renewal]), ("in advance", advance())] {
        for checkout in [&named, &tied] {
            for spent in [0, 500, 21_000] {
                let heard = vec![invoice.clone(), tie(HALF - DAY + 5, "in_p"), Step::Spend(spent)];
                let life = [opened(), heard, period.clone(), later(), vec![Step::Grant(1), checkout.clone()]];
                let all = [life.concat(), later()].concat();
                check(&format!("{what}, {spent}"), std::slice::from_ref(&all), left);
            }
        }
    }
}

/// A checkout sells both and makes an invoice. The result is the same whichever event arrives first.
#[test]
fn a_plan_for_life_beside_a_pack_stays_if_their_invoice_is_heard_first() {
    let lines = [once("price_p1000", 2000), once("price_business", 9000)];
    let invoice = bill_with(T + 4, "in_p", "manual", &lines, json!({"parent": null}));
    let sold = json!({"data": [
        {"id": "li_1", "quantity": 1, "price": {"id": "price_p1000"}},
        {"id": "li_2", "quantity": 1, "price": {"id": "price_business"}},
    ]});
    let checkout = session("completed", T, "cs_1", json!({}), json!({"invoice": "in_p", "line_items": sold}));
    for life in [[invoice.clone(), checkout.clone()], [checkout, invoice]] {
        check("both", &[life.to_vec()], "business 21000 | life=20000 pack=1000");
    }
}
