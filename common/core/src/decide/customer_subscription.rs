//! `customer.subscription.*`: the state of a subscription, and the plan changes and trial starts that it
//! proves.
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
use crate::account::subscription::{Evidence, Opening, PlanChange, Snapshot, digest, is_terminal};
use crate::account::{Fact, OpeningKind};
use crate::catalog::Catalog;
use crate::event::{Event, EventType, Item, Previous, Subscription, SubscriptionStatus};
use crate::ids::PriceId;
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

pub(super) fn read(subscription: &Subscription, event: &Event, catalog: &Catalog) -> Result<Reading, Parked> {
    let deleted = event.kind == EventType::CustomerSubscriptionDeleted && !is_terminal(&subscription.status);
    let status = if deleted { SubscriptionStatus::Canceled } else { subscription.status.clone() };
    let gives_access = matches!(
        status,
        SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::PastDue
    );
    let offer = match offer(subscription.items.iter().map(|item| (&item.price, item.quantity)), catalog) {
        Ok(offer) => offer,
        Err(Parked::UnknownPrice(_)) if gives_access && subscription.items_has_more => {
            return Err(Parked::Truncated);
        }
        Err(parked) if gives_access => return Err(parked),
        Err(_) => None,
    };
    let item =
        offer.as_ref().and_then(|offer| subscription.items.iter().find(|item| item.price == offer.price));
    let start = item.and_then(|item| item.period_start).or_else(|| subscription.period_start());
    let end = item.and_then(|item| item.period_end).or_else(|| subscription.period_end());

    let mut facts = vec![snapshot(subscription, event, &status, offer.as_ref(), start, end)];
    if let (false, Some(offer), Some(start)) = (is_terminal(&status), offer, start) {
        let trialing = status == SubscriptionStatus::Trialing;
        let before = previous_offer(subscription, catalog);
        if trialing {
            // The plan that the trial began with: the one before the change, if this event is one.
            let begun_with = before.clone().unwrap_or_else(|| offer.clone());
            let key = subscription
                .latest_invoice
                .as_ref()
                .map_or_else(|| LedgerKey::trial(&subscription.id, start), LedgerKey::invoice);
            let opening = Opening {
                start,
                end,
                at: event.created,
                price: begun_with.price,
                credits: begun_with.trial_credits,
                key,
            };
            facts.push(Fact::Opening(subscription.id.clone(), OpeningKind::Trial, opening, None));
        }
        let worth = |offer: &Offer| if trialing { offer.trial_credits } else { offer.credits };
        let told = before
            .as_ref()
            .is_some_and(|before| (&before.price, worth(before)) != (&offer.price, worth(&offer)));
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
    let named = subscription
        .previous
        .as_ref()
        .is_some_and(|previous| previous.items.is_some() || previous.status.is_some());
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
    let items: Vec<(&PriceId, u64)> =
        subscription.items.iter().map(|item| (&item.price, item.quantity)).collect();
    let now =
        digest(&facts(status, &items, subscription.cancel_at, subscription.cancel_at_period_end, start));
    let before = subscription.previous.as_ref().map(|previous| {
        let items_before = items_before(&subscription.items, previous);
        let items_before: Vec<(&PriceId, u64)> =
            items_before.iter().map(|item| (&item.price, item.quantity)).collect();
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
        let Some(price) = item.price.clone().or_else(|| same.map(|same| same.price.clone())) else {
            continue;
        };
        restored.push(Item {
            price,
            quantity: item.quantity.or_else(|| same.map(|same| same.quantity)).unwrap_or(1),
            period_start: item.period_start,
            period_end: item.period_end,
        });
    }
    restored
}

/// What was sold before an update that names the items; `None` when it does not, or when the catalog knew
/// none of them.
fn previous_offer(subscription: &Subscription, catalog: &Catalog) -> Option<Offer> {
    let previous = subscription.previous.as_ref().filter(|previous| previous.items.is_some())?;
    let items = items_before(&subscription.items, previous);
    offer(items.iter().map(|item| (&item.price, item.quantity)), catalog).ok().flatten()
}

/// Whether the update also began this period: then the period's invoice grants what the plan is worth.
fn moved_period(subscription: &Subscription, start: Timestamp) -> bool {
    subscription
        .previous
        .as_ref()
        .and_then(|previous| previous.period_start)
        .is_some_and(|before| before != start)
}

#[cfg(test)]
mod tests;
