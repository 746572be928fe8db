//! Where an account and Stripe differ, and what may be done about it: the planner of reconciliation.
//!
//! What is read from Stripe becomes an event (`reconcile/evidence.rs`), and `decide` is asked what the
//! account would be after it. Where that is the account as it is, there is no difference, so a repaired one
//! is never found again. There are no rules of credits or tiers in here, only the question what a repair
//! without a person may do ([`repair`]).

use std::collections::BTreeMap;

use serde::Serialize;

use super::account::access::Summary;
use super::account::{Account, State};
use super::catalog::Catalog;
use super::decide::{Applied, Outcome, Payments, decide, decide_standing};
use super::ids::SubscriptionId;
use super::timestamp::Timestamp;
use crate::event::{Event, SubscriptionStatus};

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Stripe has a subscription, or the tie of a customer to a user, that we do not.
    MissingHere,
    /// We have a subscription that Stripe does not.
    MissingAtStripe,
    /// Another plan, another number of seats, or another tier comes of it.
    Tier,
    /// Another status, or another planned end.
    Status,
    /// Another billing period.
    Period,
    /// A payment that was not granted, or one that cannot be.
    Credits,
    /// Somebody pays, and no user is known for the customer.
    OrphanCustomer,
    /// One user pays for more than one subscription.
    DuplicateSubscriptions,
    /// Stripe has an event that no endpoint of ours took.
    LostEvent,
}

impl Class {
    /// The word in reports.
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
            Self::LostEvent => "lost_event",
        }
    }
}

/// What differs, by name: `{"tier":"free","credits":"500"}`.
pub type Facts = BTreeMap<&'static str, String>;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its kind.
    pub class: Class,
    /// As it is here.
    pub before: Facts,
    /// As it is at Stripe, or as it will be.
    pub after: Facts,
    /// Who sets it right.
    pub remedy: Remedy,
}

/// Who sets a difference right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The event does, under the same rules as every event.
    Repair,
    /// A person, because the balance would fall. It may not any more once the rest of the run is done.
    Lowers,
    /// A person decides; this is why.
    Person(String),
}

/// What an event that was made of an object may do without a person: all that it means, unless the balance
/// would fall; then how the subscription stands, without the credits; unless the balance would fall even so.
///
/// **Invariant:** what this allows never lowers a balance.
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
    let standing = decide_standing(account, event, catalog, now);
    if !lowers(&standing) {
        return standing;
    }
    let nothing = Applied {
        change: super::account::Change { state: account.state.clone(), entries: Vec::new() },
        links: Vec::new(),
        subscriptions: Vec::new(),
        payments: Payments::new(),
        order: None,
        order_payment: None,
        effect: super::decide::Effect::Nothing,
    };
    Outcome::Apply(Box::new(nothing))
}

/// A subscription as an account has it.
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

/// Compares a subscription, as `event` tells it, with the account. What ended before `since` and is unknown
/// here is history.
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
    // Without a snapshot an invoice alone gives access, and only while its period runs.
    let tier = |state: &State| state.access(catalog, now).tier;
    if ours.as_ref() != Some(&theirs) || tier(&account.state) != tier(&allowed.change.state) {
        found.push(standing_difference(account, ours.as_ref(), &theirs, &allowed, id, catalog, now));
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

/// Nobody is better off for hearing of a subscription that never began, or of one that was over before the
/// time looked at.
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
    // An account forgets what ended long ago; learning it anew would be forgotten again.
    never_began || known.is_none() || (theirs.is_over() && ended < since)
}

fn standing_difference(
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
        None => Class::MissingHere,
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
        Remedy::Person("it has ended here and not at Stripe".to_owned())
    } else if becomes.as_ref() == ours {
        Remedy::Lowers
    } else {
        Remedy::Person("what Stripe says now is older than what is known here".to_owned())
    };
    Difference { class, before, after, remedy }
}

/// Compares a paid invoice or a finished session, as `event` tells it, with the account.
pub fn document(account: &Account, event: &Event, catalog: &Catalog, now: Timestamp) -> Option<Difference> {
    let balance = account.state.balance(&catalog.policy, now);
    let whole = match decide(account, event, &Payments::new(), catalog, now) {
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
    let lowers = whole.change.state.balance(&catalog.policy, now) < balance;
    let remedy = if lowers { Remedy::Lowers } else { Remedy::Repair };
    Some(Difference { class, before: credits(balance), after, remedy })
}

/// Whether the running period of a subscription, as `event` tells it, was opened here by a payment or a
/// trial.
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

/// Several subscriptions that all give access.
pub fn duplicates(account: &Account, catalog: &Catalog, now: Timestamp) -> Option<Difference> {
    let paying = live(account, catalog, now);
    let ids: Vec<&str> = paying.iter().map(|id| id.as_str()).collect();
    let (true, ids) = (paying.len() > 1, ids.join(" ")) else { return None };
    let remedy = Remedy::Person("the user pays for more than one subscription".to_owned());
    let before = Facts::from([("subscriptions", ids)]);
    Some(Difference { class: Class::DuplicateSubscriptions, before, after: Facts::new(), remedy })
}

/// The subscriptions that give access, as far as their status says.
pub fn live<'a>(account: &'a Account, catalog: &Catalog, now: Timestamp) -> Vec<&'a SubscriptionId> {
    let live = |id: &&SubscriptionId| {
        let status = account.state.summary(id, catalog, now).and_then(|summary| summary.status);
        matches!(
            status,
            Some(SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::PastDue)
        )
    };
    account.state.subscriptions.keys().filter(live).collect()
}

/// A subscription of ours that Stripe does not have.
pub fn missing_at_stripe(
    account: &Account,
    id: &SubscriptionId,
    catalog: &Catalog,
    now: Timestamp,
) -> Difference {
    let before = account.state.summary(id, catalog, now).map(|standing| standing.facts()).unwrap_or_default();
    let remedy = Remedy::Person(
        "Stripe has no such subscription: it is another mode's or account's, or was deleted".to_owned(),
    );
    Difference { class: Class::MissingAtStripe, before, after: Facts::new(), remedy }
}

fn credits(balance: super::credits::Credits) -> Facts {
    Facts::from([("credits", balance.to_string())])
}

#[cfg(test)]
mod tests;
