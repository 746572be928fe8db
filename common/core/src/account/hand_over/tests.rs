//! What moves with a subscription or a customer, and what stays.

use serde_json::json;

use super::*;
use crate::account::State;
use crate::decide::tests::shapes::{DAY, T, YEAR, another_subscription, bill, item, line, month, shows, tie};
use crate::decide::tests::{Run, Step, dispute, invoice, patched, refunded};
use crate::ids::UserId;

const PRODUCT: Step = Step::Edit(
    "[policy]\n",
    "[features]\nexport = \"switch\"\n[[product]]\nname = \"course\"\nfeatures = { export = true }\n\
     prices = [\"price_course\"]\n[policy]\n",
);

/// `sub_1` sells `pro` and a product; half of its payment is back, and another payment waits. `sub_2` is paid.
fn two_subscriptions() -> Run {
    let (end, items) = (month(T), ["price_pro", "price_course"]);
    let shown = [item("si_1", items[0], T, end), item("si_9", items[1], T, end)];
    let lines = [line("si_1", items[0], 2000, T, end), line("si_9", items[1], 500, T, end)];
    let mut steps = vec![PRODUCT, shows(T, "active", &shown)];
    steps.extend([bill(T + 1, "in_1", "subscription_create", &lines), tie(T + 1, "in_1")]);
    steps.extend(another_subscription(2, T)[..3].to_vec());
    steps.push(refunded(T + 9, "pi_in_1", 1250));
    steps.push(invoice("payment_action_required", T + 9, "in_9", "manual", &[], json!({})));
    Run::of(&steps)
}

fn empty() -> Account {
    Account::new(UserId::new("user_2").unwrap())
}

/// `subscriptions balance products actions refunds`.
fn seen(state: &State, run: &Run) -> String {
    let ids: Vec<&str> = state.subscriptions.keys().map(AsRef::as_ref).collect();
    let balance = state.balance(&run.catalog.policy, Timestamp::from_unix(T + 20));
    let counts = [state.products.len(), state.actions.len(), state.refunds.len(), state.refunded_since.len()];
    format!("{} {balance} {counts:?}", ids.join(","))
}

fn moved(run: &Run, to: &Account, object: &MovedObject) -> (Change, Change, MoveSummary) {
    run.account.hand_over(to, object, "admin:ann", "k", &run.catalog, Timestamp::from_unix(T + 20))
}

#[test]
fn a_subscription_moves_with_its_credits_refunds_products_and_payments_that_wait() {
    let run = two_subscriptions();
    let first = MovedObject::Subscription("sub_1".parse().unwrap());
    let (gives, takes, summary) = moved(&run, &empty(), &first);
    assert_eq!(seen(&gives.state, &run), "sub_2 5000 [0, 0, 0, 0]");
    assert_eq!(seen(&takes.state, &run), "sub_1 2500 [1, 1, 1, 1]");
    assert_eq!((summary.subscriptions.len(), summary.customers.len()), (1, 0));
    assert_eq!(summary.credits, Credits::new(2500));
    for (change, delta) in [(gives, -2500), (takes, 2500)] {
        let [entry] = &change.entries[..] else { panic!("{:?}", change.entries) };
        let seen = (entry.key.as_str(), entry.kind, entry.delta, entry.reason.as_deref());
        assert_eq!(seen, ("fix#k", EntryKind::Fix, delta, Some("moved")));
    }
    let second = MovedObject::Subscription("sub_2".parse().unwrap());
    let (gives, takes, _) = moved(&run, &empty(), &second);
    assert_eq!(seen(&gives.state, &run), "sub_1 2500 [1, 1, 1, 1]");
    assert_eq!(seen(&takes.state, &run), "sub_2 5000 [0, 0, 0, 0]");
}

#[test]
fn a_customer_moves_with_all_its_subscriptions() {
    let run = two_subscriptions();
    let customer = "cus_1".parse().unwrap();
    let (gives, takes, summary) = moved(&run, &empty(), &MovedObject::Customer(customer));
    assert_eq!(seen(&gives.state, &run), " 0 [0, 0, 0, 0]");
    assert_eq!(seen(&takes.state, &run), "sub_1,sub_2 7500 [1, 1, 1, 1]");
    assert_eq!((summary.subscriptions.len(), summary.customers.len()), (2, 1));
    assert_eq!((gives.state.customers.len(), takes.state.customers.len()), (0, 1));
    let other = MovedObject::Customer("cus_other".parse().unwrap());
    let (gives, takes, summary) = moved(&run, &empty(), &other);
    assert!(summary.is_empty());
    assert_eq!(seen(&gives.state, &run), "sub_1,sub_2 7500 [1, 1, 1, 1]");
    assert_eq!(takes.state.subscriptions.len(), 0);
}

#[test]
fn the_earliest_trial_of_both_accounts_counts_after_a_move() {
    let trial = |at: i64| Run::of(&[shows(at, "trialing", &[item("si_1", "price_pro", at, month(at))])]);
    let first = |of: i64, to: &Account| {
        let object = MovedObject::Subscription("sub_1".parse().unwrap());
        moved(&trial(of), to, &object).1.state.first_trial.map(|(at, _)| at.unix() - T)
    };
    assert_eq!(first(T, &empty()), Some(0));
    let mut other = empty();
    other.state.first_trial = Some((Timestamp::from_unix(T + 5), "sub_2".parse().unwrap()));
    assert_eq!((first(T, &other), first(T + 9, &other)), (Some(0), Some(5)));
}

/// No month begins while a dispute of the year is open, also after a move.
#[test]
fn the_disputes_of_a_subscription_move_with_it() {
    let (year, disputed) = (T + YEAR, Timestamp::from_unix(T).plus_months(1).unix() + DAY);
    let Step::Event(opened) = dispute("created", disputed, "pi_in_1", "needs_response") else {
        panic!("no event")
    };
    let run = Run::of(&[
        Step::Edit("trial_credits = 2000\n", "trial_credits = 2000\nrefill = \"month\"\n"),
        shows(T, "active", &[item("si_1", "price_pro_year", T, year)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro_year", 20_000, T, year)]),
        tie(T + 1, "in_1"),
        Step::Spend(1000),
        Step::Event(patched(opened, &json!({"data": {"object": {"amount": 5000}}}))),
    ]);
    let (object, now) =
        (MovedObject::Subscription("sub_1".parse().unwrap()), Timestamp::from_unix(disputed + 9));
    let (gives, takes, _) = run.account.hand_over(&empty(), &object, "admin:ann", "k", &run.catalog, now);
    let later = Timestamp::from_unix(T).plus_months(2);
    let held = |state: &State| state.balance(&run.catalog.policy, later).get();
    assert_eq!([held(&run.account.state), held(&takes.state), held(&gives.state)], [3750, 3750, 0]);
    assert_eq!((takes.state.disputes.len(), gives.state.disputes.len()), (1, 0));
}
