//! Moving a subscription, or a customer with its subscriptions, from one account to another.

use super::actions::PaymentAction;
use super::products::BoughtProduct;
use super::{Account, Cause, Change, NewEntry};
use crate::catalog::Catalog;
use crate::credits::Credits;
use crate::ids::{CustomerId, SubscriptionId};
use crate::ledger::{EntryKind, LedgerKey};
use crate::timestamp::Timestamp;

/// What moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MovedObject {
    /// A customer and all its subscriptions.
    Customer(CustomerId),
    /// One subscription.
    Subscription(SubscriptionId),
}

/// What was moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveSummary {
    /// Customers.
    pub customers: Vec<CustomerId>,
    /// Subscriptions, with their periods and credits.
    pub subscriptions: Vec<SubscriptionId>,
    /// The credits that were moved with them.
    pub credits: Credits,
}

impl MoveSummary {
    /// Whether nothing moves.
    pub fn is_empty(&self) -> bool {
        self.customers.is_empty() && self.subscriptions.is_empty()
    }
}

impl Account {
    /// The changes that move a part of this account to another one: of this account, and of the other. Both
    /// are booked under keys made of `key`.
    pub fn hand_over(
        &self,
        to: &Account,
        object: &MovedObject,
        by: &str,
        key: &str,
        catalog: &Catalog,
        now: Timestamp,
    ) -> (Change, Change, MoveSummary) {
        let policy = &catalog.policy;
        let now = self.state.time(to.state.time(now));
        let unchanged = |account: &Account| Change { state: account.state.clone(), entries: Vec::new() };
        let cause =
            Cause { by: by.to_owned(), adjust_key: LedgerKey::fix(&format!("{key}#due")), created: now };
        let due = |account: &Account| {
            account.evolve(Vec::new(), &cause, catalog, now).unwrap_or_else(|_| unchanged(account))
        };
        let (mut gives, mut takes) = (due(self), due(to));
        let before = gives.state.balance(policy, now);
        let mut moved = MoveSummary::default();
        for (id, subscription) in &self.state.subscriptions {
            let moves = match object {
                MovedObject::Subscription(subscription) => subscription == id,
                MovedObject::Customer(customer) => subscription.customer.as_ref() == Some(customer),
            };
            if moves {
                moved.subscriptions.push(id.clone());
                gives.state.subscriptions.remove(id);
                takes.state.subscriptions.insert(id.clone(), subscription.clone());
                let documents = self.state.refunds.iter().filter(|(key, _)| subscription.names_document(key));
                for (key, back) in documents {
                    let since = &self.state.refunded_since;
                    let since = back.keys().filter_map(|payment| since.get_key_value(payment));
                    let since = since.map(|(payment, steps)| (payment.clone(), steps.clone()));
                    takes.state.refunded_since.extend(since);
                    takes.state.refunds.insert(key.clone(), back.clone());
                }
                let of_it = |product: &BoughtProduct| product.subscription.as_ref() == Some(id);
                takes.state.products.extend(self.state.products.iter().filter(|one| of_it(one)).cloned());
                gives.state.products.retain(|product| !of_it(product));
                let waits = |action: &PaymentAction| action.subscription.as_ref() == Some(id);
                takes.state.actions.extend(self.state.actions.iter().filter(|one| waits(one)).cloned());
                takes.state.actions.sort();
                gives.state.actions.retain(|action| !waits(action));
                if let Some(at) = subscription.trial_at {
                    let this = (at, id.clone());
                    let known = takes.state.first_trial.take();
                    takes.state.first_trial = Some(known.map_or(this.clone(), |known| known.min(this)));
                }
            }
        }
        if let MovedObject::Customer(customer) = object
            && let Some(deleted) = gives.state.customers.remove(customer)
        {
            moved.customers.push(customer.clone());
            takes.state.customers.insert(customer.clone(), deleted);
        }
        gives.state.settle(policy, now);
        takes.state.settle(policy, now);
        moved.credits = before.minus(gives.state.balance(policy, now));
        for (account, change) in [(self, &mut gives), (to, &mut takes)] {
            let after = change.state.buckets(policy, now);
            let entry = NewEntry::new(LedgerKey::fix(key), EntryKind::Fix, moved.credits);
            let mut entries =
                account.entries(&mut change.state, &after, vec![entry], &change.entries, &cause, now);
            entries.iter_mut().for_each(|entry| entry.reason = Some("moved".to_owned()));
            change.entries.extend(entries);
        }
        (gives, takes, moved)
    }
}
