//! Payments that wait for the customer: the bank asks for 3D Secure, or for another confirmation.
//!
//! Stripe announces one with `invoice.payment_action_required`. It is over when the invoice is paid, or when
//! the subscription has ended.

use serde::{Deserialize, Serialize};

use super::State;
use crate::catalog::Catalog;
use crate::event::SubscriptionStatus;
use crate::ids::{InvoiceId, SubscriptionId};
use crate::timestamp::Timestamp;

/// The maximum number of actions that an account remembers. Beyond it the oldest is dropped.
const MAX_ACTIONS: usize = 8;

/// A payment that waits for the customer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PaymentAction {
    /// `created` of the newest event that says so.
    pub at: Timestamp,
    /// The invoice that is to be paid.
    pub invoice: InvoiceId,
    /// The subscription that it bills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<SubscriptionId>,
    /// Stripe's page on which the customer confirms the payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted_invoice_url: Option<String>,
}

impl State {
    pub(super) fn fold_action(&mut self, action: PaymentAction) {
        match self.actions.iter_mut().find(|known| known.invoice == action.invoice) {
            Some(known) if known.at >= action.at => return,
            Some(known) => *known = action,
            None => self.actions.push(action),
        }
        self.actions.sort();
        if self.actions.len() > MAX_ACTIONS {
            self.actions.remove(0);
        }
    }

    /// The newest payment that waits for the customer.
    pub fn payment_action(&self, catalog: &Catalog, now: Timestamp) -> Option<&PaymentAction> {
        let has_ended = |action: &&PaymentAction| {
            let summary = action.subscription.as_ref().and_then(|id| self.summary(id, catalog, now));
            summary.and_then(|summary| summary.status).is_some_and(|status| {
                matches!(status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
            })
        };
        self.actions.iter().rev().find(|action| !has_ended(action))
    }
}
