//! Differences between an account and Stripe, and which of them may be repaired: the planner of
//! reconciliation.
//!
//! Reconciliation turns an object of Stripe into an event (`schedules/reconcile/evidence.rs`), and [`decide`]
//! computes the account after this event. If the account does not change, there is no difference. So a
//! repaired difference is not found again. This module has no rules about credits or tiers; it only decides
//! what may be repaired without an operator ([`repair`]).

use std::collections::BTreeMap;

use serde::Serialize;

use super::account::access::Summary;
use super::account::{Account, State};
use super::catalog::Catalog;
use super::decide::{Applied, Outcome, Payments, decide, decide_status};
use super::ids::SubscriptionId;
use super::timestamp::Timestamp;
use crate::event::{Event, SubscriptionStatus};

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Stripe has a subscription, its state, or a link of a customer to a user, that is missing here.
    MissingHere,
    /// The account has a subscription that Stripe does not have.
    MissingAtStripe,
    /// The plan, the number of seats or the tier differs.
    Tier,
    /// The status or the planned end differs.
    Status,
    /// The billing period differs.
    Period,
    /// A payment was not granted, or cannot be granted.
    Credits,
    /// A paying customer without a known user.
    OrphanCustomer,
    /// A user pays for more than one subscription.
    DuplicateSubscriptions,
    /// A subscription is active with a plan, and no paid invoice of it is known.
    PlanWithoutInvoice,
    /// Stripe has an event that our endpoint did not accept.
    LostEvent,
}

impl Class {
    /// Its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MissingHere => "missing_here",
            Self::MissingAtStripe => "missing_at_stripe",
            Self::Tier => "tier",
            Self::Status => "status",
            Self::Period => "period",
            Self::Credits => "credits",
            Self::OrphanCustomer => "orphan_customer",
            Self::DuplicateSubscriptions => "duplicate_subscriptions",
            Self::PlanWithoutInvoice => "plan_without_invoice",
            Self::LostEvent => "lost_event",
        }
    }
}

/// Values that differ, by name: `{"tier":"free","credits":"500"}`.
pub type Facts = BTreeMap<&'static str, String>;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its kind.
    pub class: Class,
    /// The values in the account.
    pub before: Facts,
    /// The values at Stripe, or in the account after the repair.
    pub after: Facts,
    /// Who repairs it.
    pub remedy: Remedy,
}

/// Who repairs a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The event repairs it, with the rules of every event.
    Repair,
    /// An operator, because the state of a subscription would lower the balance. Later repairs of the same
    /// run may change that.
    Lowers,
    /// An operator, for this reason.
    Person(String),
}

/// The change that may be applied without an operator for an event that was made from the current state of a
/// subscription: the whole event; if that lowers the balance, only the subscription's state for access; if
/// that lowers the balance too, nothing.
///
/// **Invariant:** the returned change never lowers the balance.
pub fn repair(account: &Account, event: &Event, catalog: &Catalog, now: Timestamp) -> Outcome {
    let balance = |state: &State| state.balance(&catalog.policy, now);
    let lowers = |outcome: &Outcome| match outcome {
        Outcome::Apply(applied) => balance(&applied.change.state) < balance(&account.state),
        Outcome::Ignore(_) | Outcome::Park(_) | Outcome::Tie => false,
    };
    let whole = decide(account, event, &Payments::new(), catalog, now);
    if !lowers(&whole) {
        return whole;
    }
    let status_only = decide_status(account, event, catalog, now);
    if !lowers(&status_only) {
        return status_only;
    }
    let nothing = Applied {
        change: super::account::Change { state: account.state.clone(), entries: Vec::new() },
        links: Vec::new(),
        subscriptions: Vec::new(),
        payments: Payments::new(),
        order: None,
        order_payment: None,
        effect: super::decide::Effect::Nothing,
        prices_not_in_catalog: Vec::new(),
    };
    Outcome::Apply(Box::new(nothing))
}

impl Summary {
    fn is_over(&self) -> bool {
        matches!(self.status, Some(SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired))
    }

    fn facts(&self) -> Facts {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let all = [
            ("status", self.status.as_ref().map(ToString::to_string)),
            ("price", self.price.as_ref().map(ToString::to_string)),
            ("quantity", Some(self.quantity.to_string())),
            ("period_start", time(self.start)),
            ("period_end", time(self.end)),
            ("ends", time(self.ends)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Compares the subscription in `event` with the account. A subscription that ended before `since` and is
/// unknown here is not reported.
pub fn subscription(
    account: &Account,
    event: &Event,
    id: &SubscriptionId,
    catalog: &Catalog,
    since: Timestamp,
    now: Timestamp,
) -> Vec<Difference> {
    let ours = account.state.summary(id, catalog, now);
    let whole = match decide(account, event, &Payments::new(), catalog, now) {
        Outcome::Apply(applied) => applied,
        Outcome::Ignore(_) | Outcome::Tie => return Vec::new(),
        Outcome::Park(parked) => {
            let class = if ours.is_some() { Class::Status } else { Class::MissingHere };
            let before = ours.as_ref().map(Summary::facts).unwrap_or_default();
            return vec![Difference {
                class,
                before,
                after: Facts::new(),
                remedy: Remedy::Person(parked.to_string()),
            }];
        }
    };
    let alone = Account::new(account.user_id.clone());
    let theirs = match decide(&alone, event, &Payments::new(), catalog, now) {
        Outcome::Apply(applied) => applied.change.state.summary(id, catalog, now),
        Outcome::Ignore(_) | Outcome::Park(_) | Outcome::Tie => None,
    };
    let Some(theirs) = theirs else { return Vec::new() };
    if ours.is_none() && whole.change.entries.is_empty() && is_history(&theirs, &whole, event, id, since) {
        return Vec::new();
    }
    let Outcome::Apply(allowed) = repair(account, event, catalog, now) else { return Vec::new() };
    let mut found = Vec::new();
    let tier = |state: &State| state.access(catalog, now).tier;
    if ours.as_ref() != Some(&theirs) || tier(&account.state) != tier(&allowed.change.state) {
        found.push(subscription_difference(account, ours.as_ref(), &theirs, &allowed, id, catalog, now));
    }
    let (balance, due) =
        (account.state.balance(&catalog.policy, now), whole.change.state.balance(&catalog.policy, now));
    let moves = !whole.change.entries.is_empty();
    if moves && allowed.change.state.balance(&catalog.policy, now) != due {
        let (before, after) = (credits(balance), credits(due));
        found.push(Difference { class: Class::Credits, before, after, remedy: Remedy::Lowers });
    } else if moves && found.is_empty() {
        found.push(Difference {
            class: Class::Credits,
            before: credits(balance),
            after: credits(due),
            remedy: Remedy::Repair,
        });
    }
    found
}

/// Whether a missing subscription is not reported, because no action follows from it: it never started, or it
/// ended before `since`.
fn is_history(
    theirs: &Summary,
    whole: &Applied,
    event: &Event,
    id: &SubscriptionId,
    since: Timestamp,
) -> bool {
    let never_began =
        matches!(theirs.status, Some(SubscriptionStatus::Incomplete | SubscriptionStatus::IncompleteExpired));
    let known = whole.change.state.subscriptions.get(id);
    let ended = known.and_then(|subscription| subscription.ended_at()).unwrap_or(event.created);
    // An account deletes subscriptions that ended long ago, and would delete this one again.
    never_began || known.is_none() || (theirs.is_over() && ended < since)
}

fn subscription_difference(
    account: &Account,
    ours: Option<&Summary>,
    theirs: &Summary,
    allowed: &Applied,
    id: &SubscriptionId,
    catalog: &Catalog,
    now: Timestamp,
) -> Difference {
    let (access, access_after) =
        (account.state.access(catalog, now), allowed.change.state.access(catalog, now));
    let class = match ours {
        None | Some(Summary { status: None, .. }) => Class::MissingHere,
        Some(ours)
            if access.tier != access_after.tier
                || (&ours.price, ours.quantity) != (&theirs.price, theirs.quantity) =>
        {
            Class::Tier
        }
        Some(ours) if (&ours.status, ours.ends) != (&theirs.status, theirs.ends) => Class::Status,
        Some(_) => Class::Period,
    };
    let mut before = ours.map(Summary::facts).unwrap_or_default();
    let mut after = theirs.facts();
    let same: Vec<&str> = before
        .iter()
        .filter(|(name, value)| after.get(*name) == Some(value))
        .map(|(name, _)| *name)
        .collect();
    for name in same {
        before.remove(name);
        after.remove(name);
    }
    before.insert("tier", access.tier);
    after.insert("tier", access_after.tier);
    before.extend(credits(account.state.balance(&catalog.policy, now)));
    after.extend(credits(allowed.change.state.balance(&catalog.policy, now)));
    let becomes = allowed.change.state.summary(id, catalog, now);
    let remedy = if becomes.as_ref() == Some(theirs) {
        Remedy::Repair
    } else if becomes.as_ref() == ours && ours.is_some_and(Summary::is_over) {
        Remedy::Person("the subscription has ended here, but not at Stripe".to_owned())
    } else if becomes.as_ref() == ours {
        Remedy::Lowers
    } else {
        Remedy::Person("the state at Stripe is older than the state here".to_owned())
    };
    Difference { class, before, after, remedy }
}

/// Compares the paid invoice or the finished session in `event` with the account. `payments` are the stored
/// payments that the event names.
///
/// A document is repaired with all its effects, even if they lower the balance: a renewal that ends packs
/// ends them whether its webhook arrived or not.
pub fn document(
    account: &Account,
    event: &Event,
    payments: &Payments,
    catalog: &Catalog,
    now: Timestamp,
) -> Option<Difference> {
    let balance = account.state.balance(&catalog.policy, now);
    let whole = match decide(account, event, payments, catalog, now) {
        Outcome::Apply(applied) => applied,
        Outcome::Ignore(_) | Outcome::Tie => return None,
        Outcome::Park(parked) => {
            let remedy = Remedy::Person(parked.to_string());
            return Some(Difference {
                class: Class::Credits,
                before: credits(balance),
                after: Facts::new(),
                remedy,
            });
        }
    };
    let class = match (whole.change.entries.is_empty(), whole.links.is_empty()) {
        (true, true) => return None,
        (true, false) => Class::MissingHere,
        (false, _) => Class::Credits,
    };
    let mut after = credits(whole.change.state.balance(&catalog.policy, now));
    if let Some(entry) = whole.change.entries.first() {
        after.insert("entry", entry.key.to_string());
    }
    if let Some(customer) = whole.links.first() {
        after.insert("customer", customer.to_string());
    }
    Some(Difference { class, before: credits(balance), after, remedy: Remedy::Repair })
}

/// Compares the refund or dispute in `event` with the account. It is a difference if its event would change
/// the balance, the tier, a feature or an order. Like the event of a lost refund, it may lower the balance.
pub fn reversal(
    account: &Account,
    event: &Event,
    payments: &Payments,
    catalog: &Catalog,
    now: Timestamp,
) -> Option<Difference> {
    let Outcome::Apply(applied) = decide(account, event, payments, catalog, now) else { return None };
    let (ours, theirs) = (&account.state, &applied.change.state);
    let gives = |state: &State| {
        let features = state.features(catalog, now).into_iter().map(|(name, feature)| (name, feature.value));
        (state.access(catalog, now).tier, features.collect::<BTreeMap<_, _>>())
    };
    let entry = applied.change.entries.first()?;
    let moves = applied.change.entries.iter().any(|entry| entry.delta != 0);
    if !moves && applied.order_payment.is_none() && gives(ours) == gives(theirs) {
        return None;
    }
    let mut after = credits(theirs.balance(&catalog.policy, now));
    after.insert("entry", entry.key.to_string());
    let before = credits(ours.balance(&catalog.policy, now));
    Some(Difference { class: Class::Credits, before, after, remedy: Remedy::Repair })
}

/// Whether a payment or a trial has opened the running period of the subscription in `event`.
pub fn has_opening(
    account: &Account,
    event: &Event,
    id: &SubscriptionId,
    catalog: &Catalog,
    now: Timestamp,
) -> bool {
    let alone = Account::new(account.user_id.clone());
    let Outcome::Apply(applied) = decide(&alone, event, &Payments::new(), catalog, now) else { return true };
    let Some(theirs) = applied.change.state.summary(id, catalog, now) else { return true };
    let buckets = account.state.buckets(&catalog.policy, now);
    let opened = |start: Timestamp| {
        let of_it = buckets.items.iter().filter(|((of, _), _)| of == id).map(|(_, bucket)| bucket);
        of_it
            .into_iter()
            .any(|bucket| bucket.trial || bucket.period.as_ref().is_some_and(|period| period.start >= start))
    };
    theirs.plan.is_none() || theirs.start.is_none_or(opened)
}

/// The difference for a user with several subscriptions that give access.
pub fn duplicates(account: &Account, catalog: &Catalog, now: Timestamp) -> Option<Difference> {
    let paying = live(account, catalog, now);
    let ids: Vec<&str> = paying.iter().map(|id| id.as_str()).collect();
    let (true, ids) = (paying.len() > 1, ids.join(" ")) else { return None };
    let remedy = Remedy::Person("the user pays for more than one subscription".to_owned());
    let before = Facts::from([("subscriptions", ids)]);
    Some(Difference { class: Class::DuplicateSubscriptions, before, after: Facts::new(), remedy })
}

/// The subscriptions with a status that gives access, and those with a running paid period and no known
/// status.
pub fn live<'a>(account: &'a Account, catalog: &Catalog, now: Timestamp) -> Vec<&'a SubscriptionId> {
    let live = |id: &&SubscriptionId| {
        let Some(summary) = account.state.summary(id, catalog, now) else { return false };
        let gives_access = matches!(
            summary.status,
            Some(SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::PastDue)
        );
        gives_access || summary.runs_by_invoice(now)
    };
    account.state.subscriptions.keys().filter(live).collect()
}

/// The difference for a subscription that is active with a plan and has no paid invoice.
pub fn plan_without_invoice(
    account: &Account,
    id: &SubscriptionId,
    catalog: &Catalog,
    now: Timestamp,
) -> Difference {
    let why =
        "the subscription is active with a plan, and no paid invoice of it is known: it has granted nothing";
    for_a_person(Class::PlanWithoutInvoice, why, account, id, catalog, now)
}

/// The difference for a subscription that Stripe does not have.
pub fn missing_at_stripe(
    account: &Account,
    id: &SubscriptionId,
    catalog: &Catalog,
    now: Timestamp,
) -> Difference {
    let why =
        "Stripe does not have this subscription: it is of the other mode or of another account, or deleted";
    for_a_person(Class::MissingAtStripe, why, account, id, catalog, now)
}

/// A difference that only an operator can resolve.
fn for_a_person(
    class: Class,
    why: &str,
    account: &Account,
    id: &SubscriptionId,
    catalog: &Catalog,
    now: Timestamp,
) -> Difference {
    let before = account.state.summary(id, catalog, now).map(|summary| summary.facts()).unwrap_or_default();
    Difference { class, before, after: Facts::new(), remedy: Remedy::Person(why.to_owned()) }
}

fn credits(balance: super::credits::Credits) -> Facts {
    Facts::from([("credits", balance.to_string())])
}

#[cfg(test)]
mod tests;
