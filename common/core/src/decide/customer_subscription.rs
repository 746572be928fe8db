//! `customer.subscription.*`: the state of a subscription and of its items.
//!
//! | what the event shows | rule | ledger key |
//! |---|---|---|
//! | any state | the newest snapshot decides access | – |
//! | `trialing` | the trial grants `trial_credits`, once per subscription item | `trial#sub_…#si_…` |
//! | another plan or number of seats | a plan change, by the policy | `plan#si_…#<period start>#<plan>#<n>` |
//! | the start of an item's period | a line that waits for it opens the period | `invoice#in_…#si_…` |
//! | `deleted` | the subscription has ended; its credits stay until spent or replaced | – |
//!
//! A plan change needs a paid period and the status `active` or `trialing`. The policy `plan_change` decides
//! when it counts.
//!
//! A price that is not in the catalog parks the event if the catalog has none of the items' prices and the
//! subscription gives access.

use super::{EventFacts, Parked, offer};
use crate::account::snapshot::{Snapshot, SnapshotItem, Terms, digest, is_terminal};
use crate::account::state::MAX_ITEMS;
use crate::account::{Account, Fact};
use crate::catalog::{Catalog, MAX_QUANTITY, Offer};
use crate::event::{
    Event, EventType, PreviousAttributes, Price, Subscription, SubscriptionItem, SubscriptionStatus,
};
use crate::ids::{ItemId, SubscriptionId};
use crate::timestamp::Timestamp;

pub(super) fn read(
    subscription: &Subscription,
    event: &Event,
    account: &Account,
    catalog: &Catalog,
) -> Result<EventFacts, Parked> {
    let deleted = event.kind == EventType::CustomerSubscriptionDeleted && !is_terminal(&subscription.status);
    let status = if deleted { SubscriptionStatus::Canceled } else { subscription.status.clone() };
    let gives_access = matches!(
        status,
        SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::PastDue
    );
    if subscription.items_has_more {
        return Err(Parked::LinesMissing);
    }
    let shown = subscription.items.iter().map(|item| &item.id);
    if !is_terminal(&status) && account.state.live_items_with(&subscription.id, shown) > MAX_ITEMS {
        return Err(Parked::TooManyItems);
    }
    let mut items = Vec::new();
    let mut prices_not_in_catalog = Vec::new();
    for item in &subscription.items {
        let place = Place {
            subscription: &subscription.id,
            item: Some(&item.id),
            start: item.period_start,
            flagged: false,
        };
        let PriceTerms { terms, learnt, in_catalog } = price_terms(&item.price, &place, account, catalog)?;
        if !in_catalog {
            prices_not_in_catalog.push(item.price.id.clone());
        }
        if terms.is_some() && item.quantity > MAX_QUANTITY {
            return Err(Parked::Quantity(item.quantity.to_string()));
        }
        items.push(SnapshotItem {
            id: item.id.clone(),
            price: item.price.id.clone(),
            quantity: item.quantity,
            start: item.period_start,
            end: item.period_end,
            learnt,
            terms,
            free: item.is_free,
        });
    }
    if gives_access
        && items.iter().all(|item| item.terms.is_none())
        && let Some(item) = items.first()
    {
        return Err(Parked::UnknownPrice(item.price.clone(), None));
    }
    items.sort_by(|a, b| a.id.cmp(&b.id));
    let snapshot = snapshot(subscription, event, status, items);
    let fact = Fact::Snapshot(subscription.id.clone(), subscription.customer.clone(), snapshot);
    Ok(EventFacts { facts: vec![fact], prices_not_in_catalog, ..EventFacts::default() })
}

/// Where an event shows a price.
pub(super) struct Place<'a> {
    pub subscription: &'a SubscriptionId,
    /// `None` for a line that names no item.
    pub item: Option<&'a ItemId>,
    /// The start of the period or of the line.
    pub start: Option<Timestamp>,
    /// Whether it is a flagged line of an invoice.
    pub flagged: bool,
}

/// The terms of a price, and where they come from.
pub(super) struct PriceTerms {
    /// The plan's or product's; `None` for a price of which nothing is known.
    pub terms: Option<Terms>,
    /// Whether the catalog knows the price by its lookup key or its Stripe product, and not by its id.
    pub learnt: bool,
    /// Whether the catalog still names the price, or nothing is known of it.
    pub in_catalog: bool,
}

/// The terms of a price in the catalog, else those that the subscription last had.
///
/// An invoice line since basil shows no lookup key. If a snapshot of the subscription showed the price with
/// one, its plan counts, with its worth in the present catalog. This also holds after the lookup key has
/// moved to another price.
///
/// A period keeps its terms under the name that its plan had when it began. Another price of the renamed plan
/// gets these terms too, so that it is no plan change.
pub(super) fn price_terms(
    price: &Price,
    place: &Place<'_>,
    account: &Account,
    catalog: &Catalog,
) -> Result<PriceTerms, Parked> {
    let by_id = catalog.names_price(price.id.as_str());
    let known = account.state.subscriptions.get(place.subscription);
    let before_rename = |terms: Terms| {
        let stored = known.zip(place.start).and_then(|(known, start)| {
            known.terms_before_rename(&terms.plan, place.item, start, place.flagged, catalog)
        });
        stored.cloned().unwrap_or(terms)
    };
    let terms = match offer(price, catalog)? {
        Some(Offer::Plan(plan)) => Some(Terms::of(plan)),
        Some(Offer::Product(product)) => Some(Terms::of_product(product)),
        Some(Offer::Pack(_)) | None => None,
    };
    if let Some(terms) = terms {
        return Ok(PriceTerms { terms: Some(before_rename(terms)), learnt: !by_id, in_catalog: true });
    }
    let Some(known) = known else {
        return Ok(PriceTerms { terms, learnt: false, in_catalog: true });
    };
    if let Some(terms) = known.learnt(&price.id).and_then(|plan| Terms::named(plan, catalog)) {
        return Ok(PriceTerms { terms: Some(before_rename(terms)), learnt: true, in_catalog: true });
    }
    let stored = known.terms_of(&price.id).cloned();
    Ok(PriceTerms { in_catalog: stored.is_none(), terms: stored, learnt: false })
}

fn snapshot(
    subscription: &Subscription,
    event: &Event,
    status: SubscriptionStatus,
    items: Vec<SnapshotItem>,
) -> Snapshot {
    let shown =
        shown(&status, &subscription.items, subscription.cancel_at, subscription.cancel_at_period_end);
    let now = digest(&shown);
    let before = subscription.previous.as_ref().map(|previous| {
        digest(&self::shown(
            previous.status.as_ref().unwrap_or(&subscription.status),
            &items_before(&subscription.items, previous),
            previous.cancel_at.unwrap_or(subscription.cancel_at),
            previous.cancel_at_period_end.unwrap_or(subscription.cancel_at_period_end),
        ))
    });
    let terminal = is_terminal(&status);
    Snapshot {
        created: event.created,
        items,
        cancel_at: subscription.cancel_at.filter(|_| !terminal),
        cancel_at_period_end: subscription.cancel_at_period_end && !terminal,
        ended_at: terminal.then(|| subscription.ended_at.unwrap_or(event.created)),
        ended_unpaid: terminal && subscription.ended_unpaid,
        days_until_due: subscription.days_until_due.and_then(|days| i64::try_from(days).ok()),
        collection_paused: subscription.collection_paused,
        status,
        digest: now,
        before: before.filter(|before| *before != now),
    }
}

/// The parts of a state by which an update is matched with its successor, as one text.
fn shown(
    status: &SubscriptionStatus,
    items: &[SubscriptionItem],
    cancel_at: Option<Timestamp>,
    at_period_end: bool,
) -> String {
    let mut items: Vec<_> = items
        .iter()
        .map(|item| {
            (item.id.as_str(), item.price.id.as_str(), item.quantity, item.period_start.map(Timestamp::unix))
        })
        .collect();
    items.sort();
    format!("{status}|{items:?}|{:?}|{at_period_end}", cancel_at.map(Timestamp::unix))
}

/// The items before an update. Parts that the update does not name did not change. Stripe lists either all
/// items, or only their changed parts in the same order.
fn items_before(items: &[SubscriptionItem], previous: &PreviousAttributes) -> Vec<SubscriptionItem> {
    let start = previous.period_start;
    let Some(before) = &previous.items else {
        let moved = |item: &SubscriptionItem| SubscriptionItem {
            period_start: start.or(item.period_start),
            ..item.clone()
        };
        return items.iter().map(moved).collect();
    };
    let mut restored = Vec::new();
    for (index, item) in before.iter().enumerate() {
        let named = item.id.as_ref().and_then(|id| items.iter().find(|one| one.id == *id));
        let same = named.or_else(|| items.get(index).filter(|_| item.id.is_none()));
        let before = item.price.clone().map(Price::of_id);
        let Some(price) = before.or_else(|| same.map(|same| same.price.clone())) else {
            continue;
        };
        let Some(id) = item.id.clone().or_else(|| same.map(|same| same.id.clone())) else { continue };
        restored.push(SubscriptionItem {
            id,
            is_free: false,
            price,
            quantity: item.quantity.or_else(|| same.map(|same| same.quantity)).unwrap_or(1),
            period_start: item.period_start.or_else(|| same.and_then(|same| same.period_start)),
            period_end: item.period_end,
        });
    }
    restored
}

#[cfg(test)]
mod tests;
