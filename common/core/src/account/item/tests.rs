//! The parts of an item's rules that need sights, periods or records of an exact shape.

use serde_json::json;

use super::*;

pub(in crate::account) fn at(second: i64) -> Timestamp {
    Timestamp::from_unix(second)
}

pub(in crate::account) fn terms(plan: &str, credits: u64) -> Terms {
    serde_json::from_value(json!({"plan": plan, "credits": credits})).unwrap()
}

/// A paid period that ends with the one that begins at second 0.
pub(in crate::account) fn period(start: i64, plan: &str, credits: u64) -> Period {
    Period {
        start: at(start),
        shown: at(0),
        end: Some(at(1000)),
        at: at(start),
        made: None,
        invoice: InvoiceId::new(format!("in_{start}")).unwrap(),
        price: PriceId::new(format!("price_{plan}")).unwrap(),
        quantity: 1,
        terms: terms(plan, credits),
        total: 2000,
        paid: 2000,
        costs: true,
        credited: 0,
        credits_time: false,
        credited_at: at(start),
        charged_before: 0,
        charged: 2000,
        moved: None,
        proven: true,
        resets: true,
    }
}

fn sight(second: i64, plan: &str, digest: u32) -> Sight {
    let price = PriceId::new(format!("price_{plan}")).unwrap();
    let terms = terms(plan, 5000);
    Sight {
        start: at(0),
        at: at(second),
        price,
        quantity: 1,
        terms,
        trialing: false,
        trial_end: None,
        digest,
        before: None,
    }
}

#[test]
fn the_newest_starts_after_the_oldest_pack_are_kept() {
    let starts = |from: i64, to: i64| (from..=to).map(at).collect::<BTreeSet<_>>();
    let pruned = |newest: i64, oldest_pack: Option<i64>| {
        let all = || starts(1, newest);
        let mut resets =
            Resets { periods: all(), shown: all(), charges: all(), openers: all(), unproven: all() };
        resets.prune(oldest_pack.map(at));
        let Resets { periods, shown, charges, openers, unproven } = resets;
        assert!([shown, charges, openers, unproven].iter().all(|starts| *starts == periods));
        periods
    };
    assert_eq!(pruned(9, None), starts(1, 0), "no pack");
    assert_eq!(pruned(9, Some(7)), starts(8, 9), "a period ends no pack of its first second");
    for (newest, oldest) in [(15, 1), (16, 1), (17, 2), (20, 5)] {
        assert_eq!(pruned(newest, Some(0)), starts(oldest, newest), "{newest} starts");
    }
}

#[test]
fn what_may_still_end_packs_is_stored() {
    let resets = Resets { charges: BTreeSet::from([at(7)]), ..Resets::default() };
    let item = Item { resets, ..Item::default() };
    let text = serde_json::to_string(&item).unwrap();
    assert_eq!(serde_json::from_str::<Item>(&text).unwrap(), item, "{text}");
    assert_eq!(serde_json::to_string(&Item::default()).unwrap(), "{}");
}

/// The line of a month that begins at second 50 and was billed in advance; the current period begins at second
/// 100. A credit matters if it closes that month, or if it lasts beyond the start of the current period.
#[test]
fn a_credit_is_kept_while_it_may_close_a_period() {
    let line = json!({
        "invoice": "in_2", "at": 5, "made": 5, "start": 50, "end": 80, "price": "price_pro",
        "terms": {"plan": "pro", "credits": 5000}, "amount": 2000, "total": 2000,
    });
    let is_kept = |start: i64, until: i64, in_advance: bool| {
        let mut line: Line = serde_json::from_value(line.clone()).unwrap();
        line.made = line.made.filter(|_| in_advance);
        let mut item = Item { lines: vec![line], ..Item::default() };
        let invoice = InvoiceId::new("in_3").unwrap();
        let credit = CreditAhead { billed_at: at(start), start: at(start), until: at(until), invoice };
        item.keep_credits_ahead(vec![credit], at(100));
        !item.credits_ahead.is_empty()
    };
    for (start, until, kept) in [
        (40, 60, true),
        (49, 51, true),
        (50, 60, false),
        (60, 70, false),
        (40, 50, false),
        (20, 40, false),
        (60, 100, false),
        (60, 101, true),
        (60, 500, true),
    ] {
        assert_eq!(is_kept(start, until, true), kept, "from {start} to {until}");
    }
    assert!(!is_kept(40, 60, false), "the month was billed at its start");
}

#[test]
fn the_newest_credits_ahead_are_kept() {
    for many in [7, 8, 9, 12] {
        let invoice = InvoiceId::new("in_3").unwrap();
        let credit = |second| CreditAhead {
            billed_at: at(second),
            start: at(second),
            until: at(1000),
            invoice: invoice.clone(),
        };
        let mut item = Item::default();
        item.keep_credits_ahead((0..many).map(credit).collect(), at(100));
        let kept: Vec<CreditAhead> = (0.max(many - 8)..many).map(credit).collect();
        assert_eq!(item.credits_ahead, kept, "of {many}");
    }
}

/// The newer snapshot counts. Of two snapshots of one second the one that names the other as the state before it
/// counts, else the price and the quantity decide.
#[test]
fn the_newer_of_two_states_of_a_trial_counts() {
    let trial = |second: i64, price: &str, digest: u32, before: Option<u32>| Trial {
        at: at(second),
        price: PriceId::new(price).unwrap(),
        quantity: 1,
        terms: terms("pro", 5000),
        end: Some(at(100)),
        digest,
        before,
    };
    let longer = |one: Trial| Trial { end: Some(at(200)), ..one };
    let (a, b) = (|before| trial(5, "price_a", 1, before), |before| trial(5, "price_b", 2, before));
    for (what, newer, older) in [
        ("a later second", trial(6, "price_a", 1, None), b(Some(1))),
        ("it names the other one", a(Some(2)), b(None)),
        ("it names the other one, which names a third", a(Some(2)), b(Some(9))),
        ("neither names the other", b(None), a(None)),
        ("both name a third", b(Some(9)), a(Some(9))),
        ("each names the other", b(Some(1)), a(Some(2))),
        ("one plan, and one knows its predecessor", a(Some(9)), a(None)),
        ("one plan with two ends", longer(a(None)), a(None)),
        ("one plan, a predecessor counts more than the end", a(Some(9)), longer(a(None))),
    ] {
        assert!(follows(&newer, &older), "{what}");
        assert!(!follows(&older, &newer), "{what}, the other way round");
    }
}

/// The digests of the sights that are left of these, each with its second and its plan.
fn compressed(sights: &[(i64, &str)], monthly: bool) -> Vec<u32> {
    let mut all: Vec<Sight> =
        sights.iter().zip(0..).map(|((second, plan), place)| sight(*second, plan, place)).collect();
    all.iter_mut().for_each(|sight| sight.terms.monthly = monthly);
    compress_sights(&mut all);
    all.iter().map(|sight| sight.digest).collect()
}

#[test]
fn of_many_sights_those_between_two_that_show_the_same_plan_are_dropped() {
    let days = |days: &[i64]| days.iter().map(|day| (day * 86_400, "pro")).collect::<Vec<_>>();
    assert_eq!(compressed(&days(&[0, 1, 2, 3, 4, 5, 6, 7]), false), [0, 1, 2, 3, 4, 5, 6, 7], "eight stay");
    assert_eq!(compressed(&days(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), false), [0, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(compressed(&days(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), false), [0, 3, 4, 5, 6, 7, 8, 9]);
    let mut back = days(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    back[2].1 = "boost";
    assert_eq!(compressed(&back, false), [0, 1, 2, 3, 6, 7, 8, 9], "beside a change of plan");
    let twice = days(&[0, 1, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(compressed(&twice, false), [0, 1, 3, 4, 5, 6, 7, 8], "the first of one second stays");
    // The second month of the period begins on day 31.
    let months = days(&[0, 30, 32, 33, 34, 35, 36, 37, 38]);
    assert_eq!(compressed(&months, true), [0, 1, 3, 4, 5, 6, 7, 8], "the last one before a month stays");
}

#[test]
fn a_state_between_two_sights_counts_only_in_its_second_and_for_the_sight_that_names_it() {
    let order = |between: Between, before: Option<u32>| {
        let mut second = [Sight { before, ..sight(7, "pro", 1) }, sight(7, "boost", 2)];
        chain(&mut second, &[between]);
        second.map(|sight| sight.digest)
    };
    let between = |second: i64| Between { at: at(second), digest: 5, before: 2 };
    assert_eq!(order(between(7), Some(5)), [2, 1], "it names the state, which names the other one");
    assert_eq!(order(between(6), Some(5)), [1, 2], "the state is of another second");
    assert_eq!(order(between(7), Some(6)), [1, 2], "it names another state");
    assert_eq!(order(between(7), None), [1, 2], "it names none");
}

#[test]
fn the_period_of_an_import_had_begun_and_was_paid_before_it() {
    let periods = [period(10, "pro", 5000), period(50, "pro", 5000)];
    let late = [periods[0].clone(), Period { at: at(150), ..periods[1].clone() }];
    let (min, max) = (at(i64::MIN), at(i64::MAX));
    assert_eq!(imported_period(at(100), &periods), (at(50), max));
    assert_eq!(imported_period(at(100), &late), (at(10), at(50)), "the second was paid later");
    assert_eq!(imported_period(at(5), &periods), (min, at(10)), "none had begun");
}
