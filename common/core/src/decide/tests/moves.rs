//! A subscription that an operator moves from one user to another: both accounts are as if it had always
//! belonged to the second one.

use serde_json::json;

use super::shapes::{DAY, T, YEAR, bill, item, line, month, once, shows, shows_with};
use super::{Run, Step};
use crate::account::Account;
use crate::account::hand_over::{MoveSummary, MovedObject};
use crate::ids::UserId;
use crate::timestamp::Timestamp;

fn first(end_of: i64) -> Vec<Step> {
    vec![
        shows(T, "active", &[item("si_1", "price_pro", T, end_of)]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_pro", 2000, T, end_of), once("price_p1000", 900)],
        ),
    ]
}

/// Both accounts after `sub_1` was moved to a new user.
fn moved(run: &Run, at: i64) -> (Account, Account, MoveSummary) {
    let (to, now) = (Account::new(UserId::new("user_2").unwrap()), Timestamp::from_unix(at));
    let object = MovedObject::Subscription("sub_1".parse().unwrap());
    let (gives, takes, summary) =
        run.account.hand_over(&to, &object, "admin:ann", "move#1", &run.catalog, now);
    let balance = |change: &crate::account::Change| change.state.balance(&run.catalog.policy, now).get();
    let delta = |change: &crate::account::Change| change.entries.iter().map(|entry| entry.delta).sum::<i64>();
    let before = run.account.state.balance(&run.catalog.policy, now).get();
    assert_eq!(i64::try_from(balance(&gives)), Ok(i64::try_from(before).unwrap() + delta(&gives)));
    assert_eq!(i64::try_from(balance(&takes)), Ok(delta(&takes)));
    (run.account.after(&gives), to.after(&takes), summary)
}

#[test]
fn the_signup_credits_that_a_moved_subscription_ended_are_there_again() {
    let run = Run::of(&[vec![Step::At(T), Step::Signup], first(month(T)), vec![Step::Spend(400)]].concat());
    let (gives, takes, summary) = moved(&run, T + DAY);
    let balance =
        |account: &Account| account.state.balance(&run.catalog.policy, Timestamp::from_unix(T + DAY)).get();
    // The pack was sold by the subscription's invoice.
    assert_eq!((balance(&gives), balance(&takes)), (500, 4600 + 1000));
    assert_eq!(summary.credits.get(), 5600);
    let invoices: Vec<String> = summary.invoices.iter().map(ToString::to_string).collect();
    assert_eq!(invoices, ["in_1"]);
}

#[test]
fn the_first_trial_of_a_user_is_the_first_of_those_that_are_left() {
    let end_of = T + 14 * DAY;
    let run = Run::of(&[
        shows(T, "trialing", &[item("si_1", "price_pro", T, end_of)]),
        shows_with(T + DAY, "trialing", &[item("si_2", "price_pro", T, end_of)], json!({"id": "sub_2"})),
    ]);
    let (gives, takes, _) = moved(&run, T + 2 * DAY);
    for account in [gives, takes] {
        let balance = account.state.balance(&run.catalog.policy, Timestamp::from_unix(T + 2 * DAY));
        assert_eq!(balance.get(), 2000, "{}", account.user_id);
    }
}

#[test]
fn the_next_month_of_a_moved_subscription_is_due_for_its_new_user() {
    let monthly = Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n");
    let run = Run::of(&[vec![monthly], first(T + YEAR)].concat());
    let (gives, takes, _) = moved(&run, T + DAY);
    assert_eq!(gives.state.due_at, None);
    assert_eq!(takes.state.due_at, Some(Timestamp::from_unix(T).plus_months(1)));
}
