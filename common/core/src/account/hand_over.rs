//! Moving a subscription, or a customer with its subscriptions, from one account to another.

use std::collections::BTreeSet;

use super::actions::PaymentAction;
use super::lots::Purchase;
use super::products::BoughtProduct;
use super::{Account, Cause, Change, Lot, NewEntry};
use crate::catalog::Catalog;
use crate::credits::Credits;
use crate::ids::{CustomerId, InvoiceId, SubscriptionId};
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
    /// The invoices that granted them. A refund of one of them belongs to the other account from now on.
    pub invoices: BTreeSet<InvoiceId>,
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
        let before = gives.state.buckets(policy, now);
        let mut moved = MoveSummary::default();
        for (id, subscription) in &self.state.subscriptions {
            let moves = match object {
                MovedObject::Subscription(subscription) => subscription == id,
                MovedObject::Customer(customer) => subscription.customer.as_ref() == Some(customer),
            };
            if moves {
                moved.subscriptions.push(id.clone());
                moved.invoices.extend(subscription.invoices().cloned());
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
                let disputes = self.state.disputes.iter().filter(|(key, _)| subscription.names_document(key));
                takes.state.disputes.extend(disputes.map(|(key, of)| (key.clone(), of.clone())));
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
        // An invoice of the subscription may have sold packs, too.
        let is_with_it = |pack: &Purchase| {
            let invoice = pack.invoice.as_ref().filter(|_| pack.session.is_none());
            invoice.is_some_and(|invoice| moved.invoices.contains(invoice))
        };
        let packs = gives.state.packs.clone();
        gives.state.packs.retain(|pack| !is_with_it(pack));
        takes.state.packs.extend(packs.iter().filter(|pack| is_with_it(pack)).cloned());
        let credits = before.sum(|lot| match lot {
            Lot::Item(id, _) | Lot::Carry(id, ..) => moved.subscriptions.contains(id),
            Lot::Pack(place) => packs.get(*place).is_some_and(is_with_it),
            Lot::Lifetime(_) | Lot::Signup | Lot::Opening | Lot::Grant(_) => false,
        });
        moved.credits = credits;
        // What follows from the subscriptions that are left is computed from them again.
        if gives.state.first_trial.as_ref().is_some_and(|(_, id)| moved.subscriptions.contains(id)) {
            let left = gives.state.subscriptions.iter();
            gives.state.first_trial = left.filter_map(|(id, one)| Some((one.trial_at?, id.clone()))).min();
        }
        // A paid period of an older subscription, which the account may have dropped, still ends the signup
        // credits.
        let moved_since = moved.subscriptions.iter().filter_map(|id| self.state.subscriptions.get(id));
        if moved_since.filter_map(|one| one.known_since()).min() <= gives.state.paid_since {
            gives.state.paid_since = None;
        }
        takes.state.clock = takes.state.clock.max(gives.state.clock);
        gives.state.settle(policy, now);
        takes.state.settle(policy, now);
        for (account, change) in [(self, &mut gives), (to, &mut takes)] {
            let after = change.state.buckets(policy, now);
            change.state.due_at = after.next;
            let entry = NewEntry::new(LedgerKey::fix(key), EntryKind::Fix, moved.credits);
            let mut entries =
                account.entries(&mut change.state, &after, vec![entry], &change.entries, &cause, now);
            entries.iter_mut().for_each(|entry| entry.reason = Some("moved".to_owned()));
            change.entries.extend(entries);
        }
        (gives, takes, moved)
    }
}

#[cfg(test)]
mod tests;
