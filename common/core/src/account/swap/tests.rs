//! Which new item takes over what.

use super::super::item::tests::{at, period};
use super::*;

fn id(id: &str) -> ItemId {
    ItemId::new(id).unwrap()
}

fn taker(item: &ItemId, period: Period) -> Taker<'_> {
    Taker { item, period, handed: Handed::default(), may_be_older: false, is_dropped: false }
}

#[test]
fn an_item_came_within_a_period_that_ends_later_and_began_earlier_if_it_may_be_older() {
    let item = id("si_2");
    let came = |start: i64, may_be_older: bool, end: Option<i64>| {
        let taker = Taker { may_be_older, ..taker(&item, period(start, "pro", 100)) };
        let mut old = period(100, "pro", 100);
        old.end = end.map(at);
        taker.came_within(&old)
    };
    for (start, may_be_older, end, expect) in [
        (200, false, Some(201), true),
        (200, false, Some(200), false),
        (200, false, None, true),
        (50, false, Some(200), true),
        (50, true, Some(200), false),
        (100, true, Some(200), false),
        (101, true, Some(200), true),
        (101, true, None, true),
        (300, true, Some(200), false),
    ] {
        assert_eq!(came(start, may_be_older, end), expect, "{start}, {may_be_older}, {end:?}");
    }
}

/// The spends of a plan that is still sold fill its item before those of other plans do.
#[test]
fn the_spends_of_a_plan_that_is_sold_are_divided_first() {
    let spent = |plans: &[(&str, u64)]| -> BTreeMap<String, Credits> {
        plans.iter().map(|(plan, credits)| ((*plan).to_owned(), Credits::new(*credits))).collect()
    };
    let hands_over = Handed { spent: spent(&[("gold", 100), ("pro", 80)]), ..Handed::default() };
    let old = Bucket { period: Some(period(100, "gold", 500)), hands_over, ..Bucket::default() };
    let (one, other) = (id("si_2"), id("si_3"));
    let mut takers = [taker(&one, period(200, "pro", 100)), taker(&other, period(200, "boost", 50))];
    hand_over(std::iter::once(&old), &mut takers);
    takers.sort_by_key(|taker| taker.item);
    let of = |place: usize| takers[place].handed.spent.clone();
    assert_eq!([of(0), of(1)], [spent(&[("gold", 50), ("pro", 80)]), spent(&[("gold", 50)])]);
}
