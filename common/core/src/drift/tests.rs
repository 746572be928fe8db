//! Differences between accounts and objects of Stripe, and who repairs them.

use serde_json::{Value, json};

use super::*;
use crate::decide::tests::{
    CATALOG, MONTH, P1, P2, Run, Step, changed, items, pack, paid, patched, refunded, reversal_after,
    session, sub,
};
use crate::event::read;
use crate::ids::UserId;

const DAY: i64 = 86_400;

fn event(step: &Step) -> Event {
    let Step::Event(body) = step else { panic!("{step:?} is not an event") };
    read(body.to_string().as_bytes()).unwrap()
}

fn catalog() -> Catalog {
    Catalog::parse(CATALOG).unwrap()
}

fn balance(state: &State) -> crate::credits::Credits {
    state.balance(&catalog().policy, time(P1 + 2 * DAY))
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_unix(seconds)
}

fn id() -> SubscriptionId {
    "sub_1".parse().unwrap()
}

fn empty() -> Account {
    Account::new(UserId::new("user_1").unwrap())
}

fn after(steps: &[Step]) -> Account {
    Run::of(steps).account
}

/// A user who has paid the first period of a subscription.
fn subscriber() -> Vec<Step> {
    vec![sub("created", P1, json!({})), paid(P1, "in_1", "subscription_create", "price_pro", P1)]
}

fn at_stripe(created: i64, patch: &Value) -> Step {
    sub("created", created, patch.clone())
}

/// `class remedy before > after` for each difference, with the named facts.
fn summary(found: &[Difference], facts: &[&str]) -> String {
    let one = |difference: &Difference| {
        let remedy = match &difference.remedy {
            Remedy::Repair => "repair".to_owned(),
            Remedy::Lowers => "lowers".to_owned(),
            Remedy::Person(why) => format!("person: {why}"),
        };
        let side = |of: &Facts| {
            facts.iter().map(|name| of.get(name).map_or("-", String::as_str)).collect::<Vec<_>>().join(" ")
        };
        format!(
            "{} {remedy} {} > {}",
            difference.class.as_str(),
            side(&difference.before),
            side(&difference.after)
        )
    };
    found.iter().map(one).collect::<Vec<_>>().join(" | ")
}

fn compared(account: &Account, step: &Step, since: i64, now: i64) -> Vec<Difference> {
    subscription(account, &event(step), &id(), &catalog(), time(since), time(now))
}

#[test]
fn a_subscription_is_compared_with_the_account() {
    let cancelled = json!({"status": "canceled", "ended_at": P1 + DAY});
    let waits_for_money =
        [vec![sub("created", P1, json!({"status": "past_due"}))], vec![Step::At(P1)]].concat();
    for (what, given, stripe, expect) in [
        ("alike", subscriber(), at_stripe(P1 + 9, &json!({})), ""),
        ("unknown here", vec![], at_stripe(P1, &json!({})), "missing_here repair - free 0 > active pro 0"),
        ("never paid at Stripe", vec![], at_stripe(P1, &json!({"status": "incomplete"})), ""),
        ("over before the time looked at", vec![], at_stripe(P1, &cancelled), ""),
        (
            "known by its invoice alone, in the paid period",
            vec![paid(P1, "in_1", "subscription_create", "price_pro", P1)],
            at_stripe(P1 + 9, &json!({})),
            "missing_here repair - pro 5000 > active pro 5000",
        ),
        (
            "another plan",
            subscriber(),
            at_stripe(P1 + 9, &json!({"items": items(&[("price_business", 1)], P1)})),
            "tier repair - pro 5000 > - business 20000",
        ),
        (
            "past due",
            subscriber(),
            at_stripe(P1 + 9, &json!({"status": "past_due"})),
            "status repair active pro 5000 > past_due pro 5000",
        ),
        (
            "will end",
            subscriber(),
            at_stripe(P1 + 9, &json!({"cancel_at": P1 + 5 * DAY})),
            "status repair - pro 5000 > - pro 5000",
        ),
        (
            "ended",
            subscriber(),
            at_stripe(P1 + DAY, &cancelled),
            "tier repair active pro 5000 > canceled free 5000",
        ),
        (
            "the next period",
            subscriber(),
            at_stripe(P2, &json!({"items": items(&[("price_pro", 1)], P2)})),
            "period repair - pro 5000 > - pro 5000",
        ),
        (
            "ended here, and not at Stripe",
            [subscriber(), vec![at_stripe(P1 + DAY, &cancelled)]].concat(),
            at_stripe(P1 + 2 * DAY, &json!({})),
            "status person: the subscription has ended here, but not at Stripe \
             canceled free 5000 > active free 5000",
        ),
        (
            "older than what is known",
            [subscriber(), vec![at_stripe(P1 + DAY, &json!({"status": "past_due"}))]].concat(),
            at_stripe(P1 + 9, &json!({"cancel_at": P1 + 9 * DAY})),
            "status lowers past_due pro 5000 > active pro 5000",
        ),
        (
            "unpaid here, active there",
            waits_for_money,
            at_stripe(P1 + 9, &json!({})),
            "status repair past_due pro 0 > active pro 0",
        ),
        (
            "with a price that is not sold, unknown here",
            vec![],
            at_stripe(P1, &json!({"items": items(&[("price_other", 1)], P1)})),
            "missing_here person: price price_other is not in the catalog - - - > - - -",
        ),
        (
            "with a price that is not sold, known here",
            subscriber(),
            at_stripe(P1 + 9, &json!({"items": items(&[("price_other", 1)], P1)})),
            "status person: price price_other is not in the catalog active - - > - - -",
        ),
    ] {
        let account = after(&given);
        let found = compared(&account, &stripe, P1 + 2 * DAY, P1 + 10);
        assert_eq!(summary(&found, &["status", "tier", "credits"]), expect, "{what}");
    }
    let recent = compared(&empty(), &at_stripe(P1, &cancelled), P1 + DAY, P2);
    assert_eq!(
        summary(&recent, &["status", "tier"]),
        "missing_here repair - free > canceled free",
        "a subscription that ended at `since` is reported"
    );
}

/// A change to a cheaper plan within a period would take credits, so a person decides about the credits.
#[test]
fn a_repair_updates_the_state_and_never_lowers_the_balance() {
    let business = vec![
        sub("created", P1, json!({"items": items(&[("price_business", 1)], P1)})),
        paid(P1, "in_1", "subscription_create", "price_business", P1),
    ];
    let account = after(&business);
    let cheaper = changed(P1 + DAY, ("price_business", 1), ("price_pro", 1), P1);
    let found = compared(&account, &cheaper, P1, P1 + 2 * DAY);
    let expect = "tier repair business 20000 > pro 20000 | credits lowers - 20000 > - 5000";
    assert_eq!(summary(&found, &["tier", "credits"]), expect);
    let Outcome::Apply(allowed) = repair(&account, &event(&cheaper), &catalog(), time(P1 + 2 * DAY)) else {
        panic!("not applied")
    };
    assert_eq!((balance(&allowed.change.state), allowed.change.entries.len()), (balance(&account.state), 0));
    assert_eq!(
        allowed.change.state.summary(&id(), &catalog(), time(P1 + 2 * DAY)).unwrap().price.unwrap().as_str(),
        "price_pro"
    );

    // The second subscription was granted after the first one ended. Recording that end would lower the
    // balance.
    let other = |step: Step| {
        let Step::Event(body) = step else { panic!("not an event") };
        Step::Event(serde_json::from_str(&body.to_string().replace("sub_1", "sub_2")).unwrap())
    };
    let second = paid(P1 + 9 * DAY, "in_9", "subscription_create", "price_pro", P1 + 9 * DAY);
    let account = after(&[subscriber(), vec![other(second)]].concat());
    let ended = at_stripe(P1 + 2 * DAY, &json!({"status": "canceled", "ended_at": P1 + 2 * DAY}));
    let found = compared(&account, &ended, P1, P1 + 10 * DAY);
    assert_eq!(
        summary(&found, &["status", "credits"]),
        "status lowers active 10000 > canceled 10000 | credits lowers - 10000 > - 5000"
    );
    let Outcome::Apply(allowed) = repair(&account, &event(&ended), &catalog(), time(P1 + 10 * DAY)) else {
        panic!("not applied")
    };
    assert_eq!(
        (allowed.change.state, allowed.change.entries.len(), allowed.effect),
        (account.state, 0, super::super::decide::Effect::Nothing)
    );
}

#[test]
fn a_repair_that_grants_applies_the_whole_event() {
    let dearer = changed(P1 + DAY, ("price_pro", 1), ("price_business", 1), P1);
    let Outcome::Apply(allowed) =
        repair(&after(&subscriber()), &event(&dearer), &catalog(), time(P1 + 2 * DAY))
    else {
        panic!("not applied")
    };
    assert_eq!((balance(&allowed.change.state).get(), allowed.change.entries.len()), (20_000, 1));
    // An event that does not change the balance is applied too: its entry is written.
    let same = paid(P1, "in_0", "subscription_create", "price_pro", P1 - MONTH);
    let Outcome::Apply(allowed) =
        repair(&after(&subscriber()), &event(&same), &catalog(), time(P1 + 2 * DAY))
    else {
        panic!("not applied")
    };
    assert_eq!((balance(&allowed.change.state).get(), allowed.change.entries.len()), (5000, 1));
}

#[test]
fn a_document_is_compared_with_the_ledger() {
    let paid_for = paid(P1, "in_1", "subscription_create", "price_pro", P1);
    let recorded = |account: &Account, keys: &[(&str, &Run)]| {
        let mut account = account.clone();
        for (key, run) in keys {
            let entry = run.ledger[&crate::ledger::LedgerKey::from_text(key)].clone();
            account.recorded.insert(entry.key.clone(), entry);
        }
        account
    };
    let run = Run::of(&subscriber());
    let known = recorded(&run.account, &[("invoice#in_1", &run)]);
    let seen = |account: &Account, step: &Step| {
        let found = document(account, &event(step), &Payments::new(), &catalog(), time(P1 + 10));
        summary(&found.into_iter().collect::<Vec<_>>(), &["credits", "entry", "customer"])
    };
    assert_eq!(seen(&known, &paid_for), "");
    assert_eq!(seen(&empty(), &paid_for), "credits repair 0 - - > 5000 invoice#in_1 cus_1");
    let mut strange = known.clone();
    strange.state.customers.clear();
    assert_eq!(seen(&strange, &paid_for), "missing_here repair 5000 - - > 5000 - cus_1");
    let unsold = paid(P1, "in_1", "subscription_create", "price_other", P1);
    assert_eq!(
        seen(&empty(), &unsold),
        "credits person: price price_other is not in the catalog 0 - - > - - -"
    );
    assert_eq!(seen(&known, &pack(P1 + 5, "cs_1")), "credits repair 5000 - - > 6000 session#cs_1 -");
    // The renewal ends the packs before it, as its webhook would have.
    let rich = after(
        &[subscriber(), (0..6).map(|number| pack(P1 + number, &format!("cs_{number}"))).collect()].concat(),
    );
    let renewal = paid(P2, "in_2", "subscription_cycle", "price_pro", P2);
    assert_eq!(seen(&rich, &renewal), "credits repair 11000 - - > 5000 invoice#in_2 -");
}

#[test]
fn an_opening_is_missing_only_if_the_running_period_has_none() {
    let opened = |given: &[Step], stripe: &Step| {
        has_opening(&after(given), &event(stripe), &id(), &catalog(), time(P2 + 10))
    };
    let next = at_stripe(P2, &json!({"items": items(&[("price_pro", 1)], P2)}));
    assert!(opened(&subscriber(), &at_stripe(P1 + 9, &json!({}))), "of this period");
    assert!(!opened(&subscriber(), &next), "of the next one");
    assert!(!opened(&[sub("created", P1, json!({}))], &at_stripe(P1, &json!({}))), "never paid");
    let renewed = [subscriber(), vec![paid(P2, "in_2", "subscription_cycle", "price_pro", P2)]].concat();
    assert!(
        opened(&renewed, &next) && opened(&renewed, &at_stripe(P1 + 9, &json!({}))),
        "of this or a later one"
    );
    assert!(
        opened(&[], &at_stripe(P1, &json!({"items": items(&[("price_other", 1)], P1)}))),
        "a price that is not in the catalog has no opening"
    );
    let timeless = at_stripe(
        P1,
        &json!({"items": {"data": [{"id": "si_1", "price": {"id": "price_pro"}, "quantity": 1}]}}),
    );
    assert!(opened(&[], &timeless), "a period without times has no opening");
}

#[test]
fn subscriptions_that_give_access_are_counted() {
    let with = |status: &str, name: &str, customer: &str| {
        sub("created", P1, patched(json!({"id": name, "customer": customer}), &json!({"status": status})))
    };
    let lives = |given: &[Step]| {
        let account = after(given);
        live(&account, &catalog(), time(P2)).iter().map(|id| id.as_str()).collect::<Vec<_>>().join(" ")
    };
    let all = ["active", "trialing", "past_due", "incomplete", "canceled", "unpaid", "paused"];
    let of_all: Vec<Step> = all
        .iter()
        .enumerate()
        .map(|(number, status)| with(status, &format!("sub_{number}"), "cus_1"))
        .collect();
    assert_eq!(lives(&of_all), "sub_0 sub_1 sub_2");
    let gone = json!({"id": "cus_2", "object": "customer", "metadata": {"user_id": "user_1"}});
    let deleted = Step::Event(crate::decide::tests::event("customer.deleted", P1 + 9, &gone, None));
    let two = vec![with("active", "sub_1", "cus_1"), with("active", "sub_2", "cus_2")];
    assert_eq!(lives(&[two.clone(), vec![deleted]].concat()), "sub_1");
    let found = duplicates(&after(&two), &catalog(), time(P2)).unwrap();
    assert_eq!(
        (found.class, found.before["subscriptions"].as_str()),
        (Class::DuplicateSubscriptions, "sub_1 sub_2")
    );
    assert_eq!(duplicates(&after(&two[..1]), &catalog(), time(P2)), None);
}

#[test]
fn the_names_of_the_kinds_of_differences_are_stable() {
    let words = [
        (Class::MissingHere, "missing_here"),
        (Class::MissingAtStripe, "missing_at_stripe"),
        (Class::Tier, "tier"),
        (Class::Status, "status"),
        (Class::Period, "period"),
        (Class::Credits, "credits"),
        (Class::OrphanCustomer, "orphan_customer"),
        (Class::DuplicateSubscriptions, "duplicate_subscriptions"),
        (Class::PlanWithoutInvoice, "plan_without_invoice"),
        (Class::LostEvent, "lost_event"),
    ];
    for (class, word) in words {
        assert_eq!((class.as_str(), serde_json::to_value(class).unwrap()), (word, json!(word)));
    }
    let found = missing_at_stripe(&after(&subscriber()), &id(), &catalog(), time(P2));
    assert_eq!(
        (found.class, found.before["status"].as_str(), found.before["quantity"].as_str()),
        (Class::MissingAtStripe, "active", "1")
    );
    assert!(missing_at_stripe(&empty(), &id(), &catalog(), time(P2)).before.is_empty());
}

#[test]
fn an_active_plan_without_any_paid_invoice_is_found() {
    let free = json!({"items": {"object": "list", "data": [{"id": "si_1", "quantity": 1,
        "price": {"id": "price_pro", "unit_amount": 0}, "current_period_start": P1,
        "current_period_end": P1 + MONTH}]}});
    for (what, steps, found) in [
        ("never paid", vec![at_stripe(P1, &json!({}))], 1),
        ("paid", subscriber(), 0),
        ("paid, its state unknown", subscriber()[1..].to_vec(), 0),
        ("past due", vec![at_stripe(P1, &json!({"status": "past_due"}))], 0),
        ("a trial", vec![at_stripe(P1, &json!({"status": "trialing"}))], 0),
        ("a free price", vec![at_stripe(P1, &free)], 0),
    ] {
        let state = after(&steps).state;
        let count = |since: i64| state.plans_without_invoice(&catalog(), time(since), time(P1 + DAY)).len();
        assert_eq!((count(P1), count(P1 - 1)), (found, 0), "{what}");
    }
    let account = after(&[at_stripe(P1, &json!({}))]);
    let difference = plan_without_invoice(&account, &id(), &catalog(), time(P1 + DAY));
    assert_eq!(difference.class.as_str(), "plan_without_invoice");
    assert!(matches!(&difference.remedy, Remedy::Person(why) if why.contains("no paid invoice")));
}

#[test]
fn a_refund_that_was_not_applied_is_a_difference_and_one_that_was_is_none() {
    let half = refunded(P1 + 9, "pi_cs_1", 1000);
    let bought = [pack(P1, "cs_1")];
    let found = reversal_after(&bought, &half).unwrap();
    assert_eq!((found.before["credits"].as_str(), found.after["credits"].as_str()), ("1000", "500"));
    assert_eq!(reversal_after(&[pack(P1, "cs_1"), half.clone()], &half), None);
    // Of a pack that is spent, nothing can be taken.
    let spent = [pack(P1, "cs_1"), Step::Spend(1000)];
    assert_eq!(reversal_after(&spent, &half), None);
    // The refund of all that a plan for life cost ends its tier, also if its credits are spent.
    let life = json!({"line_items": {"data": [{"price": {"id": "price_pro"}, "quantity": 1}]}});
    let sold = session("completed", P1, "cs_2", json!({}), life);
    let all = refunded(P1 + 9, "pi_cs_2", 2000);
    assert!(reversal_after(&[sold.clone(), Step::Spend(5000)], &all).is_some());
    assert_eq!(reversal_after(&[sold, Step::Spend(5000), all.clone()], &all), None);
}
