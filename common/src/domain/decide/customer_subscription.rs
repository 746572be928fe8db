//! `customer.subscription.*`: the state of a subscription, and the plan changes and trial starts that it proves.
//!
//! | what the event shows | rule | ledger key |
//! |---|---|---|
//! | any state | snapshot: status, price, period, planned end | – |
//! | `trialing` | the trial's start opens its period with `trial_credits` | that of `latest_invoice`, the trial's zero invoice |
//! | another plan or number of seats within the same period, `active` or `trialing` | RESET to the plan, at most once a period | `plan#sub_…#price_…#<period start>` |
//! | the same while `past_due`, `unpaid` or `paused` | recorded; the plan counts once it is seen `active` in a paid period | the same, 0 |
//! | another plan with a new period | nothing here: the invoice that opens the period grants | – |
//! | `deleted` | the subscription has ended; its credits stay until spent | – |
//!
//! A price that the catalog does not know parks the event, unless the subscription gives no access anyway.

use super::offer::{Offer, offer};
use super::{Parked, Reading};
use crate::domain::account::subscription::{Evidence, Opening, PlanChange, Snapshot, digest, is_terminal};
use crate::domain::account::{Fact, OpeningKind};
use crate::domain::catalog::Catalog;
use crate::domain::ids::PriceId;
use crate::domain::ledger::LedgerKey;
use crate::domain::timestamp::Timestamp;
use crate::event::{Event, EventType, Item, Previous, Subscription, SubscriptionStatus};

pub(super) fn read(subscription: &Subscription, event: &Event, catalog: &Catalog) -> Result<Reading, Parked> {
    let deleted = event.kind == EventType::CustomerSubscriptionDeleted && !is_terminal(&subscription.status);
    let status = if deleted { SubscriptionStatus::Canceled } else { subscription.status.clone() };
    let gives_access = matches!(status, SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::PastDue);
    let offer = match offer(subscription.items.iter().map(|item| (&item.price, item.quantity)), catalog) {
        Ok(offer) => offer,
        Err(Parked::UnknownPrice(_)) if gives_access && subscription.items_has_more => return Err(Parked::Truncated),
        Err(parked) if gives_access => return Err(parked),
        Err(_) => None,
    };
    let item = offer.as_ref().and_then(|offer| subscription.items.iter().find(|item| item.price == offer.price));
    let start = item.and_then(|item| item.period_start).or_else(|| subscription.period_start());
    let end = item.and_then(|item| item.period_end).or_else(|| subscription.period_end());

    let mut facts = vec![snapshot(subscription, event, &status, offer.as_ref(), start, end)];
    if let (false, Some(offer), Some(start)) = (is_terminal(&status), offer, start) {
        let trialing = status == SubscriptionStatus::Trialing;
        let before = previous_offer(subscription, catalog);
        if trialing {
            // The plan that the trial began with: the one before the change, if this event is one.
            let begun_with = before.clone().unwrap_or_else(|| offer.clone());
            let key = subscription.latest_invoice.as_ref().map_or_else(|| LedgerKey::trial(&subscription.id, start), LedgerKey::invoice);
            let opening = Opening { start, end, at: event.created, price: begun_with.price, credits: begun_with.trial_credits, key };
            facts.push(Fact::Opening(subscription.id.clone(), OpeningKind::Trial, opening, None));
        }
        let worth = |offer: &Offer| if trialing { offer.trial_credits } else { offer.credits };
        let told = before.as_ref().is_some_and(|before| (&before.price, worth(before)) != (&offer.price, worth(&offer)));
        let evidence = match (told, status == SubscriptionStatus::Active || trialing) {
            _ if moved_period(subscription, start) => None,
            (true, true) => Some(Evidence::Told),
            (true, false) => Some(Evidence::Unpaid),
            (false, true) => Some(Evidence::Seen),
            (false, false) => None,
        };
        if let Some(evidence) = evidence {
            let change = PlanChange {
                price: offer.price.clone(),
                credits: worth(&offer),
                at: event.created,
                from: before.filter(|_| told).map(|before| before.price),
            };
            facts.push(Fact::PlanChange { subscription: subscription.id.clone(), start, change, evidence });
        }
    }
    Ok(Reading { facts, ..Reading::default() })
}

pub(super) fn ledger_keys(subscription: &Subscription) -> Vec<LedgerKey> {
    let mut keys = Vec::new();
    // A change of the items is a grant; a return to good standing may make one count that was unpaid.
    let named = subscription.previous.as_ref().is_some_and(|previous| previous.items.is_some() || previous.status.is_some());
    for item in &subscription.items {
        if let (true, Some(start)) = (named, item.period_start) {
            keys.push(LedgerKey::plan(&subscription.id, &item.price, start));
        }
    }
    if subscription.status == SubscriptionStatus::Trialing {
        match (&subscription.latest_invoice, subscription.period_start()) {
            (Some(invoice), _) => keys.push(LedgerKey::invoice(invoice)),
            (None, Some(start)) => keys.push(LedgerKey::trial(&subscription.id, start)),
            (None, None) => {}
        }
    }
    keys
}

fn snapshot(
    subscription: &Subscription,
    event: &Event,
    status: &SubscriptionStatus,
    offer: Option<&Offer>,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
) -> Fact {
    let ends = |at: Option<Timestamp>, at_period_end: bool| at.or_else(|| end.filter(|_| at_period_end));
    let items: Vec<(&PriceId, u64)> = subscription.items.iter().map(|item| (&item.price, item.quantity)).collect();
    let now = digest(&facts(status, &items, subscription.cancel_at, subscription.cancel_at_period_end, start));
    let before = subscription.previous.as_ref().map(|previous| {
        let items_before = items_before(&subscription.items, previous);
        let items_before: Vec<(&PriceId, u64)> = items_before.iter().map(|item| (&item.price, item.quantity)).collect();
        digest(&facts(
            previous.status.as_ref().unwrap_or(status),
            &items_before,
            previous.cancel_at.unwrap_or(subscription.cancel_at),
            previous.cancel_at_period_end.unwrap_or(subscription.cancel_at_period_end),
            previous.period_start.or(start),
        ))
    });
    let ended_at = is_terminal(status).then(|| subscription.ended_at.unwrap_or(event.created));
    Fact::Snapshot(
        subscription.id.clone(),
        subscription.customer.clone(),
        Snapshot {
            created: event.created,
            status: status.clone(),
            start,
            end,
            price: offer.map(|offer| offer.price.clone()),
            quantity: offer.map_or(1, |offer| offer.quantity),
            cancel_at: ends(subscription.cancel_at, subscription.cancel_at_period_end),
            ended_at,
            digest: now,
            before: before.filter(|before| *before != now),
        },
    )
}

/// All that one update is matched with the next by.
fn facts(
    status: &SubscriptionStatus,
    items: &[(&PriceId, u64)],
    cancel_at: Option<Timestamp>,
    at_period_end: bool,
    start: Option<Timestamp>,
) -> String {
    format!("{status}|{items:?}|{cancel_at:?}|{at_period_end}|{start:?}")
}

/// The items as they were before an update that names them; parts it does not name did not change.
fn items_before(items: &[Item], previous: &Previous) -> Vec<Item> {
    let Some(before) = &previous.items else { return items.to_vec() };
    let mut restored = Vec::new();
    for (index, item) in before.iter().enumerate() {
        let same = items.get(index);
        let Some(price) = item.price.clone().or_else(|| same.map(|same| same.price.clone())) else { continue };
        restored.push(Item {
            price,
            quantity: item.quantity.or_else(|| same.map(|same| same.quantity)).unwrap_or(1),
            period_start: item.period_start,
            period_end: item.period_end,
        });
    }
    restored
}

/// What was sold before an update that names the items; `None` when it does not, or when the catalog knew none of them.
fn previous_offer(subscription: &Subscription, catalog: &Catalog) -> Option<Offer> {
    let previous = subscription.previous.as_ref().filter(|previous| previous.items.is_some())?;
    let items = items_before(&subscription.items, previous);
    offer(items.iter().map(|item| (&item.price, item.quantity)), catalog).ok().flatten()
}

/// Whether the update also began this period: then the period's invoice grants what the plan is worth.
fn moved_period(subscription: &Subscription, start: Timestamp) -> bool {
    subscription.previous.as_ref().and_then(|previous| previous.period_start).is_some_and(|before| before != start)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::domain::decide::tests::{
        MONTH, P1, P2, Run, Step, changed, check, check_any_order, event, invoice, items, line, paid, patched, session, sub, updated,
    };

    const BOUGHT: &str = "invoice#in_1 +5000";
    const PRO: (&str, u64) = ("price_pro", 1);
    const BUSINESS: (&str, u64) = ("price_business", 1);

    fn bought() -> Vec<Step> {
        vec![sub("created", P1, json!({})), paid(P1, "in_1", "subscription_create", "price_pro", P1)]
    }

    fn after(steps: Vec<Step>) -> Vec<Step> {
        [bought(), steps].concat()
    }

    #[test]
    fn a_status_gives_the_tier_or_not() {
        for (status, tier) in [
            ("active", "pro"),
            ("trialing", "pro"),
            ("incomplete", "free"),
            ("incomplete_expired", "free"),
            ("unpaid", "free"),
            ("paused", "free"),
            ("canceled", "free"),
            ("something_new", "free"),
        ] {
            let run = Run::of(&[sub("updated", P1, json!({"status": status, "latest_invoice": null}))]);
            assert!(run.told().starts_with(tier), "{status}: {}", run.told());
        }
    }

    #[test]
    fn past_due_has_a_grace_from_the_start_of_the_unpaid_period() {
        let unpaid = || {
            after(vec![
                updated(P2, json!({"items": items(&[PRO], P2)}), json!({"items": items(&[PRO], P1)})),
                updated(P2 + 60, json!({"items": items(&[PRO], P2), "status": "past_due"}), json!({"status": "active"})),
            ])
        };
        let grace = P2 + 7 * 86_400;
        let at = |at, more: Vec<Step>| [unpaid(), more, vec![Step::At(at)]].concat();
        check_any_order("in it", at(grace - 1, vec![]), &format!("pro until {grace} 5000 | sub_1=5000 | {BOUGHT}"));
        check_any_order("after it", at(grace, vec![]), &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
        let recovered = vec![
            paid(grace + 9, "in_2", "subscription_cycle", "price_pro", P2),
            updated(grace + 9, json!({"items": items(&[PRO], P2)}), json!({"status": "past_due"})),
        ];
        check_any_order("recovered", at(grace + 20, recovered), &format!("pro 5000 | sub_1=5000 | {BOUGHT}, invoice#in_2 +0"));
        let lost = vec![sub("deleted", grace + 9, json!({"items": items(&[PRO], P2), "status": "canceled", "ended_at": grace + 9}))];
        check_any_order("given up", at(grace + 20, lost), &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
    }

    #[test]
    fn a_payment_proves_an_older_failure_out_of_date() {
        let failed = |at| updated(at, json!({"status": "past_due"}), json!({"status": "active"}));
        check(
            "failed in the second of the payment",
            after(vec![failed(P1), Step::At(P1 + MONTH)]),
            &format!("free 5000 | sub_1=5000 | {BOUGHT}"),
        );
        let incomplete = sub("created", P1, json!({"status": "incomplete"}));
        check_any_order(
            "incomplete in the second of the payment",
            vec![incomplete, paid(P1, "in_1", "subscription_create", "price_pro", P1)],
            &format!("pro 5000 | sub_1=5000 | {BOUGHT}"),
        );
    }

    #[test]
    fn cancelling_keeps_access_until_the_end() {
        let patch = |cancel: Value| after(vec![updated(1100, cancel, json!({"cancel_at": null, "cancel_at_period_end": false}))]);
        check_any_order("the flag", patch(json!({"cancel_at_period_end": true})), &format!("pro until {P2} 5000 | sub_1=5000 | {BOUGHT}"));
        check_any_order("a date", patch(json!({"cancel_at": 9000})), &format!("pro until 9000 5000 | sub_1=5000 | {BOUGHT}"));
        let over = [patch(json!({"cancel_at": 9000})), vec![Step::At(9000)]].concat();
        check_any_order("the date has come", over, &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
        let undone = updated(1200, json!({}), json!({"cancel_at": 9000}));
        check_any_order("undone", [patch(json!({"cancel_at": 9000})), vec![undone]].concat(), &format!("pro 5000 | sub_1=5000 | {BOUGHT}"));
        let ended = after(vec![sub("deleted", 1300, json!({"status": "canceled", "ended_at": 1300})), Step::Spend(100)]);
        check("ended: credits stay until spent", ended, &format!("free 4900 | sub_1=4900 | {BOUGHT}, consume#1 -100"));
    }

    #[test]
    fn a_change_of_plan_resets_at_once_and_once_a_period() {
        let up = || changed(1100, PRO, BUSINESS, P1);
        let down = || changed(1200, BUSINESS, PRO, P1);
        let up_again = || changed(1300, PRO, BUSINESS, P1);
        let up_told = format!("{BOUGHT}, plan#sub_1#price_business#1000 +15000");
        check_any_order("up", after(vec![up()]), &format!("business 20000 | sub_1=20000 | {up_told}"));
        check("told twice", after(vec![up(), up()]), &format!("business 20000 | sub_1=20000 | {up_told}"));
        check(
            "what was spent before is forgiven once",
            after(vec![Step::Spend(4000), up(), Step::Spend(1000)]),
            &format!("business 19000 | sub_1=19000 | {BOUGHT}, consume#1 -4000, plan#sub_1#price_business#1000 +19000, consume#3 -1000"),
        );
        check_any_order(
            "back and forth",
            after(vec![up(), down(), up_again()]),
            &format!("business 20000 | sub_1=20000 | {up_told}, plan#sub_1#price_pro#1000 -15000, adjust +15000"),
        );
        check(
            "never refills",
            after(vec![Step::Spend(3000), up(), Step::Spend(500), down(), up_again()]),
            &format!(
                "business 16500 | sub_1=16500 | {BOUGHT}, consume#1 -3000, plan#sub_1#price_business#1000 +18000, consume#3 -500, plan#sub_1#price_pro#1000 -18000, adjust +15000"
            ),
        );
        check_any_order(
            "of a period that is over",
            after(vec![up(), paid(P2, "in_2", "subscription_cycle", "price_business", P2)]),
            &format!("business 20000 | sub_1=20000 | {up_told}, invoice#in_2 +0"),
        );
    }

    #[test]
    fn a_plan_left_within_the_second_it_was_taken_up_in_is_returned_to_without_a_refill() {
        let given = vec![
            changed(1100, PRO, BUSINESS, P1),
            changed(1100, BUSINESS, ("price_team", 2), P1),
            changed(1101, ("price_team", 2), BUSINESS, P1),
        ];
        let given = [bought(), vec![Step::Spend(3000)], given].concat();
        assert!(Run::of(&given).told().starts_with("business 17000 "), "{}", Run::of(&given).told());
    }

    #[test]
    fn seats_are_a_change_of_their_own_plan() {
        let team = |quantity| ("price_team", quantity);
        let first = || invoice("paid", P1, "in_1", "subscription_create", &[line("price_team", 3, P1)], json!({}));
        let told = "invoice#in_1 +3000, plan#sub_1#price_team#1000";
        check_any_order("more", vec![first(), changed(1100, team(3), team(5), P1)], &format!("business 5000 | sub_1=5000 | {told} +2000"));
        check_any_order("fewer", vec![first(), changed(1100, team(3), team(2), P1)], &format!("business 2000 | sub_1=2000 | {told} -1000"));
        check(
            "what was spent stays spent",
            vec![first(), Step::Spend(2500), changed(1100, team(3), team(5), P1)],
            "business 2500 | sub_1=2500 | invoice#in_1 +3000, consume#1 -2500, plan#sub_1#price_team#1000 +2000",
        );
        // A later state with the new seats may come before the change itself.
        let later =
            updated(1200, json!({"items": items(&[team(5)], P1), "cancel_at_period_end": true}), json!({"cancel_at_period_end": false}));
        check_any_order(
            "seen before it is told",
            vec![first(), later, changed(1100, team(3), team(5), P1)],
            &format!("business until {P2} 5000 | sub_1=5000 | {told} +2000"),
        );
    }

    #[test]
    fn a_change_waits_for_the_payment_of_its_period() {
        let renewed = || updated(P2, json!({"items": items(&[PRO], P2)}), json!({"items": items(&[PRO], P1)}));
        let up = || changed(P2 + 60, PRO, BUSINESS, P2);
        check("not paid yet", after(vec![renewed(), up()]), &format!("business 5000 | sub_1=5000 | {BOUGHT}"));
        check_any_order(
            "paid",
            after(vec![renewed(), up(), paid(P2 + 3600, "in_2", "subscription_cycle", "price_pro", P2)]),
            &format!("business 20000 | sub_1=20000 | {BOUGHT}, invoice#in_2 +15000, plan#sub_1#price_business#{P2} +0"),
        );
    }

    #[test]
    fn a_change_that_begins_a_period_leaves_the_grant_to_its_invoice() {
        let up = || updated(1500, json!({"items": items(&[BUSINESS], 1500)}), json!({"items": items(&[PRO], P1)}));
        check("not paid yet", after(vec![up()]), &format!("business 5000 | sub_1=5000 | {BOUGHT}"));
        let invoice = invoice("paid", 1501, "in_2", "subscription_update", &[line("price_business", 1, 1500)], json!({}));
        check_any_order(
            "paid",
            after(vec![up(), invoice]),
            &format!("business 20000 | sub_1=20000 | {BOUGHT}, plan#sub_1#price_business#1500 +15000"),
        );
    }

    #[test]
    fn a_plan_changed_while_past_due_counts_once_it_is_paid() {
        let business = items(&[BUSINESS], P2);
        let pro = items(&[PRO], P2);
        let down = |status: &str| json!({"status": status, "items": pro});
        let given = vec![
            sub("created", P1, json!({"items": items(&[BUSINESS], P1)})),
            paid(P1, "in_1", "subscription_create", "price_business", P1),
            updated(P2, json!({"items": business}), json!({"items": items(&[BUSINESS], P1)})),
            updated(P2 + 60, json!({"items": business, "status": "past_due"}), json!({"status": "active"})),
            updated(P2 + 90, down("past_due"), json!({"items": business})),
            // In one second, and told in either order.
            updated(P2 + 99, down("active"), json!({"status": "past_due"})),
            paid(P2 + 99, "in_2", "subscription_cycle", "price_business", P2),
        ];
        check_any_order(
            "down while past due",
            given,
            "pro 5000 | sub_1=5000 | invoice#in_1 +20000, invoice#in_2 -15000, plan#sub_1#price_pro#2593000 +0",
        );
        let never_paid = after(vec![updated(
            1100,
            json!({"items": items(&[BUSINESS], P1), "status": "past_due"}),
            json!({"items": items(&[PRO], P1), "status": "active"}),
        )]);
        check_any_order(
            "never paid",
            [never_paid, vec![Step::At(P2)]].concat(),
            &format!("free 5000 | sub_1=5000 | {BOUGHT}, plan#sub_1#price_business#1000 +0"),
        );
    }

    #[test]
    fn an_unpaid_return_to_the_plan_that_was_paid_for_counts_once_it_is_seen_active() {
        let (pro, business) = (items(&[PRO], P1), items(&[BUSINESS], P1));
        let given = vec![
            paid(P1, "in_1", "subscription_create", "price_pro", P1),
            changed(P1 + 10, PRO, BUSINESS, P1),
            updated(P1 + 20, json!({"items": pro, "status": "past_due"}), json!({"items": business, "status": "active"})),
            updated(P1 + 30, json!({"items": pro}), json!({"status": "past_due"})),
        ];
        let told = format!("{BOUGHT}, plan#sub_1#price_business#1000 +15000, plan#sub_1#price_pro#1000 +0, adjust -15000");
        check_any_order("there and back, unpaid", given, &format!("pro 5000 | sub_1=5000 | {told}"));
    }

    #[test]
    fn a_trial_opens_with_its_own_credits() {
        let trial = |patch: Value| sub("created", P1, patched(json!({"status": "trialing"}), &patch));
        let mut free = line("price_pro", 1, P1);
        free["amount"] = json!(0);
        let zero = || {
            invoice("paid", P1 + 1, "in_1", "subscription_create", std::slice::from_ref(&free), json!({"amount_paid": 0, "payments": null}))
        };
        check_any_order("told by both", vec![trial(json!({})), zero()], "pro 2000 | sub_1=2000 | invoice#in_1 +2000");
        let unnamed = sub("created", P1, json!({"status": "trialing", "latest_invoice": null}));
        check("without an invoice", vec![unnamed], "pro 2000 | sub_1=2000 | trial#sub_1#1000 +2000");
        assert!(Run::of(&[trial(json!({})), zero()]).account.state.first_paid_at.is_none(), "a trial is no payment");
        let up = updated(1100, json!({"status": "trialing", "items": items(&[BUSINESS], P1)}), json!({"items": items(&[PRO], P1)}));
        check_any_order(
            "another plan in the trial",
            vec![trial(json!({})), zero(), up],
            "business 20000 | sub_1=20000 | invoice#in_1 +2000, plan#sub_1#price_business#1000 +18000",
        );
        let paid_for = vec![
            updated(
                P2,
                json!({"items": items(&[PRO], P2), "latest_invoice": "in_2"}),
                json!({"status": "trialing", "items": items(&[PRO], P1)}),
            ),
            paid(P2 + 9, "in_2", "subscription_cycle", "price_pro", P2),
        ];
        let told = "pro 5000 | sub_1=5000 | invoice#in_1 +2000, invoice#in_2 +3000";
        check_any_order("then paid", [vec![trial(json!({})), zero()], paid_for].concat(), told);
        let paused = updated(P2, json!({"status": "paused"}), json!({"status": "trialing"}));
        check_any_order("or paused", vec![trial(json!({})), zero(), paused], "free 2000 | sub_1=2000 | invoice#in_1 +2000");
    }

    #[test]
    fn what_is_spent_before_a_trial_is_known_whole_is_spent_from_it() {
        // The trial began with `team`, but is first heard of after the change to `pro`.
        let late = updated(1200, json!({"status": "trialing", "cancel_at_period_end": true}), json!({"cancel_at_period_end": false}));
        let first = sub("created", P1, json!({"status": "trialing", "items": items(&[("price_team", 1)], P1)}));
        check(
            "spent once",
            vec![late, Step::Spend(300), first],
            &format!("pro until {P2} 1700 | sub_1=1700 | invoice#in_1 +2000, consume#1 -300"),
        );
    }

    #[test]
    fn a_stale_state_never_wins() {
        let ended = || sub("deleted", 1500, json!({"status": "canceled", "ended_at": 1500}));
        let active = |at| updated(at, json!({"cancel_at": 9000}), json!({"cancel_at": null}));
        check_any_order("active after deleted", after(vec![ended(), active(1400)]), &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
        check_any_order("even a newer one", after(vec![ended(), active(1600)]), &format!("free 5000 | sub_1=5000 | {BOUGHT}"));
        let incomplete = sub("created", P1, json!({"status": "incomplete"}));
        let turned_active = || updated(P1, json!({}), json!({"status": "incomplete"}));
        check_any_order("created after updated, in one second", vec![turned_active(), incomplete.clone()], "pro 0 | sub_1=0 | ");
        check_any_order(
            "created a second before",
            vec![updated(P1 + 1, json!({}), json!({"status": "incomplete"})), incomplete],
            "pro 0 | sub_1=0 | ",
        );
        let later = vec![
            updated(P2, json!({"items": items(&[PRO], P2)}), json!({"items": items(&[PRO], P1)})),
            updated(P2 + 1, json!({"cancel_at": 9000}), json!({"cancel_at": null})),
        ];
        check_any_order("a later period wins", after(later), &format!("pro 5000 | sub_1=5000 | {BOUGHT}"));
    }

    #[test]
    fn two_updates_of_one_second_end_alike() {
        let first = updated(1100, json!({"cancel_at": 9000}), json!({"cancel_at": null}));
        let second = updated(1100, json!({"cancel_at": 9000, "items": items(&[BUSINESS], P1)}), json!({"items": items(&[PRO], P1)}));
        let told = format!("{BOUGHT}, plan#sub_1#price_business#1000 +15000");
        check_any_order("the successor wins", after(vec![first, second]), &format!("business until 9000 20000 | sub_1=20000 | {told}"));
    }

    #[test]
    fn a_destructive_event_acts_on_its_own_subscription() {
        let other = |patch: Value| patched(json!({"id": "sub_2", "items": items(&[BUSINESS], 2000), "latest_invoice": "in_2"}), &patch);
        let of_other = json!({"parent": {"subscription_details": {"subscription": "sub_2"}}});
        let second = || {
            vec![
                sub("created", 2000, other(json!({}))),
                invoice("paid", 2000, "in_2", "subscription_create", &[line("price_business", 1, 2000)], of_other.clone()),
            ]
        };
        let told = format!("{BOUGHT}, invoice#in_2 +20000");
        check_any_order("two at once", [bought(), second()].concat(), &format!("business 25000 | sub_1=5000 sub_2=20000 | {told}"));
        let old_ends = |at: i64| sub("deleted", at, json!({"status": "canceled", "ended_at": at}));
        check_any_order(
            "the old one ends while the new one runs",
            [bought(), second(), vec![old_ends(2500)]].concat(),
            &format!("business 25000 | sub_1=5000 sub_2=20000 | {told}"),
        );
        check_any_order(
            "a new one after the end of the old: its bucket is void",
            [bought(), vec![old_ends(1900)], second()].concat(),
            &format!("business 20000 | sub_1=0 sub_2=20000 | {BOUGHT}, invoice#in_2 +15000"),
        );
        let new_ends = sub("deleted", 2500, other(json!({"status": "canceled", "ended_at": 2500})));
        check_any_order(
            "the new one ends",
            [bought(), second(), vec![new_ends]].concat(),
            &format!("pro 25000 | sub_1=5000 sub_2=20000 | {told}"),
        );
    }

    #[test]
    fn an_unknown_price_is_parked_where_it_matters() {
        let unknown = |status: &str, more: bool| {
            let mut list = items(&[("price_unknown", 1)], P1);
            list["has_more"] = json!(more);
            vec![sub("created", P1, json!({"status": status, "items": list}))]
        };
        check("active", unknown("active", false), "free 0 |  |  | customer.subscription.created parked: unknown_price");
        check(
            "the plan may be on the next page",
            unknown("active", true),
            "free 0 |  |  | customer.subscription.created parked: truncated_list",
        );
        check("over anyway", unknown("canceled", false), "free 0 | sub_1=0 | ");
        let several = vec![sub("created", P1, json!({"items": items(&[("price_unknown", 1), PRO, ("price_team", 2)], P1)}))];
        check("among several", several, "business 0 | sub_1=0 | ");
    }

    #[test]
    fn the_shapes_before_basil_mean_the_same() {
        let old = |price: &str, status: &str| {
            json!({
                "items": null, "plan": {"id": price}, "quantity": 1, "current_period_start": P1, "current_period_end": P2, "status": status,
            })
        };
        let given = vec![
            sub("created", P1, old("price_pro", "incomplete")),
            updated(P1, old("price_pro", "active"), json!({"status": "incomplete"})),
            paid(P1, "in_1", "subscription_create", "price_pro", P1),
            updated(1100, old("price_business", "active"), json!({"plan": {"id": "price_pro"}})),
        ];
        check_any_order("up", given, &format!("business 20000 | sub_1=20000 | {BOUGHT}, plan#sub_1#price_business#1000 +15000"));
    }

    /// One signup of which both orders were seen in the wild; `subscription.created` still says `incomplete`.
    fn signup_seen_in_the_wild(order: &[&str]) -> Vec<Step> {
        let at = |name: &str| P1 + i64::from(matches!(name, "invoice.paid" | "checkout.session.completed"));
        let step = |name: &&str| match *name {
            "subscription.created" => sub("created", P1, json!({"status": "incomplete"})),
            "subscription.updated" => updated(P1, json!({}), json!({"status": "incomplete"})),
            "invoice.paid" => paid(at(name), "in_1", "subscription_create", "price_pro", P1),
            "checkout.session.completed" => session(
                "completed",
                at(name),
                "cs_1",
                json!({}),
                json!({"mode": "subscription", "subscription": "sub_1", "payment_intent": null}),
            ),
            other => event(other, P1, &json!({"id": "x_1"}), None).into(),
        };
        order.iter().map(step).collect()
    }

    #[test]
    fn a_signup_in_the_good_order_seen_in_the_wild() {
        let given = signup_seen_in_the_wild(&[
            "charge.succeeded",
            "payment_method.attached",
            "invoice.created",
            "subscription.created",
            "invoice.updated",
            "invoice.updated",
            "invoice.finalized",
            "subscription.updated",
            "invoice.paid",
            "invoice.updated",
            "invoice.payment_succeeded",
            "payment_intent.created",
            "payment_intent.succeeded",
            "checkout.session.completed",
        ]);
        check("good", given, &format!("pro 5000 | sub_1=5000 | {BOUGHT}"));
    }

    #[test]
    fn a_signup_in_the_bad_order_seen_in_the_wild() {
        let given = signup_seen_in_the_wild(&[
            "charge.succeeded",
            "checkout.session.completed",
            "invoice.created",
            "payment_method.attached",
            "invoice.updated",
            "invoice.updated",
            "subscription.updated",
            "payment_intent.succeeded",
            "subscription.created",
            "invoice.payment_succeeded",
            "invoice.updated",
            "invoice.paid",
            "invoice.finalized",
            "payment_intent.created",
        ]);
        check("bad", given, &format!("pro 5000 | sub_1=5000 | {BOUGHT}"));
    }
}
