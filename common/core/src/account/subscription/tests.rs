use super::*;

const PAID: i64 = 100;

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_unix(seconds)
}

fn price(name: &str) -> PriceId {
    name.parse().unwrap()
}

/// A subscription whose period was paid for `price_b`: it began at 10, and the event is of `at`.
fn opened(at: i64) -> Subscription {
    let mut subscription = Subscription::default();
    subscription.fold_opening(opening(at));
    subscription
}

fn opening(at: i64) -> Opening {
    let credits = Credits::new(PAID.unsigned_abs());
    let key = LedgerKey::from_text("invoice#in_1");
    Opening { start: time(10), end: Some(time(20)), at: time(at), price: price("price_b"), credits, key }
}

fn change(name: &str, credits: u64, at: i64) -> PlanChange {
    PlanChange { price: price(name), credits: Credits::new(credits), at: time(at), from: None }
}

fn snapshot(start: i64, end: i64) -> Snapshot {
    Snapshot {
        created: time(5),
        status: SubscriptionStatus::Active,
        start: Some(time(start)),
        end: Some(time(end)),
        price: Some(price("price_b")),
        quantity: 1,
        cancel_at: None,
        ended_at: None,
        digest: 1,
        before: None,
    }
}

#[test]
fn an_earlier_word_of_the_same_document_leaves_what_was_refunded() {
    let mut subscription = opened(12);
    subscription.period.as_mut().unwrap().reversed = Credits::new(40);
    subscription.fold_opening(opening(11));
    let period = subscription.period.unwrap();
    assert_eq!((period.at, period.reversed, period.bucket()), (time(11), Credits::new(40), Credits::new(60)));
}

#[test]
fn the_current_period_is_the_later_one_of_those_told_and_paid_and_as_told_where_they_are_the_same() {
    for ((start, end), expect) in [((9, 10), (10, 20)), ((10, 25), (10, 25)), ((20, 30), (20, 30))] {
        let mut subscription = opened(12);
        subscription.fold_snapshot(snapshot(start, end));
        assert_eq!(subscription.current_period(), (Some(time(expect.0)), Some(time(expect.1))), "{start}");
    }
    assert_eq!(opened(12).current_period(), (Some(time(10)), Some(time(20))));
    assert_eq!(Subscription::default().current_period(), (None, None));
}

#[test]
fn one_plan_that_is_seen_often_waits_once_and_as_many_as_fit_wait() {
    let mut subscription = Subscription::default();
    for at in [3, 5, 4] {
        subscription.fold_plan_change(time(10), Evidence::Seen, change("price_a", 7, at));
    }
    assert_eq!(subscription.waiting.iter().map(|waiting| waiting.change.at).collect::<Vec<_>>(), [time(5)]);
    for _ in 0..2 {
        subscription.fold_plan_change(time(10), Evidence::Told, change("price_a", 7, 6));
    }
    assert_eq!(subscription.waiting.len(), 2);
    let told = |subscription: &mut Subscription, at: usize| {
        subscription.fold_plan_change(
            time(10),
            Evidence::Told,
            change("price_c", 7, i64::try_from(at).unwrap()),
        );
    };
    (10..8 + MOST_WAITING).for_each(|at| told(&mut subscription, at));
    assert_eq!((subscription.waiting.len(), subscription.waiting[0].change.at), (MOST_WAITING, time(5)));
    told(&mut subscription, 100);
    assert_eq!((subscription.waiting.len(), subscription.waiting[0].change.at), (MOST_WAITING, time(6)));
}

#[test]
fn when_the_plan_paid_for_gets_other_seats_its_last_sight_goes_into_their_run() {
    let mut period = opened(12).period.unwrap();
    assert!(!period.fold_change(&change("price_b", PAID.unsigned_abs(), 13), false));
    assert_eq!((period.seen, period.runs.len()), (Some(time(13)), 0));
    assert!(period.fold_change(&change("price_b", 200, 15), true));
    let [run] = &period.runs[..] else { panic!("{period:?}") };
    assert_eq!(
        (period.seen, run.first, run.last, run.credits),
        (None, time(13), time(15), Credits::new(200))
    );
    assert_eq!((period.bucket(), period.changed_to()), (Credits::new(200), None));
}

#[test]
fn of_two_plans_of_one_second_the_same_is_in_force_whichever_was_paid_for() {
    for (other, in_force) in [("price_a", None), ("price_c", Some("price_c"))] {
        let mut period = opened(12).period.unwrap();
        period.fold_change(&change("price_b", PAID.unsigned_abs(), 15), false);
        period.fold_change(&change(other, 7, 15), true);
        assert_eq!(period.changed_to().map(PriceId::as_str), in_force);
    }
}
