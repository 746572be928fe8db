//! Event types and their families: the routing table.

open_enum! {
    /// `event.type`: the types that have a family. Any other type is `Other`: the webhook answers 200, and
    /// the event is recorded as ignored.
    EventType {
        /// A checkout was completed: paid, unpaid (delayed payment methods) or without a payment.
        CheckoutSessionCompleted = "checkout.session.completed",
        /// The delayed payment of a completed checkout succeeded.
        CheckoutSessionAsyncPaymentSucceeded = "checkout.session.async_payment_succeeded",
        /// The delayed payment of a completed checkout failed.
        CheckoutSessionAsyncPaymentFailed = "checkout.session.async_payment_failed",
        /// A checkout expired (after 24 h by default).
        CheckoutSessionExpired = "checkout.session.expired",
        /// A subscription was created. It may arrive after updates of the same subscription.
        CustomerSubscriptionCreated = "customer.subscription.created",
        /// A subscription changed. The only type here with `previous_attributes` that are used.
        CustomerSubscriptionUpdated = "customer.subscription.updated",
        /// A subscription ended. The object still exists with status `canceled`.
        CustomerSubscriptionDeleted = "customer.subscription.deleted",
        /// A subscription was paused: by the Pause endpoint, or by a trial end without a payment method.
        CustomerSubscriptionPaused = "customer.subscription.paused",
        /// A paused subscription runs again.
        CustomerSubscriptionResumed = "customer.subscription.resumed",
        /// A trial ends in three days, or earlier if it is shorter.
        CustomerSubscriptionTrialWillEnd = "customer.subscription.trial_will_end",
        /// A pending update was paid and took effect.
        CustomerSubscriptionPendingUpdateApplied = "customer.subscription.pending_update_applied",
        /// A pending update was not paid and expired.
        CustomerSubscriptionPendingUpdateExpired = "customer.subscription.pending_update_expired",
        /// An invoice is paid, also out of band or with an amount of 0.
        InvoicePaid = "invoice.paid",
        /// A payment paid an invoice.
        InvoicePaymentPaid = "invoice_payment.paid",
        /// A payment attempt failed.
        InvoicePaymentFailed = "invoice.payment_failed",
        /// A payment attempt needs an action of the customer.
        InvoicePaymentActionRequired = "invoice.payment_action_required",
        /// A charge was refunded, in part or completely. `amount_refunded` is cumulative.
        ChargeRefunded = "charge.refunded",
        /// A refund was created. It may be pending.
        RefundCreated = "refund.created",
        /// A refund changed, for example pending to succeeded.
        RefundUpdated = "refund.updated",
        /// A refund failed: the merchant has the money again.
        RefundFailed = "refund.failed",
        /// A dispute was opened. It can already be lost.
        ChargeDisputeCreated = "charge.dispute.created",
        /// A dispute changed.
        ChargeDisputeUpdated = "charge.dispute.updated",
        /// A dispute ended: `won`, `lost` or `warning_closed`.
        ChargeDisputeClosed = "charge.dispute.closed",
        /// The disputed money was withdrawn. This happens when the dispute is opened.
        ChargeDisputeFundsWithdrawn = "charge.dispute.funds_withdrawn",
        /// The disputed money was returned to the merchant.
        ChargeDisputeFundsReinstated = "charge.dispute.funds_reinstated",
        /// A customer was deleted at Stripe.
        CustomerDeleted = "customer.deleted",
    }
}

impl EventType {
    /// The family that handles the type, if there is one.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::CheckoutSessionCompleted
            | Self::CheckoutSessionAsyncPaymentSucceeded
            | Self::CheckoutSessionAsyncPaymentFailed
            | Self::CheckoutSessionExpired => Some(Family::CheckoutSession),
            Self::CustomerSubscriptionCreated
            | Self::CustomerSubscriptionUpdated
            | Self::CustomerSubscriptionDeleted
            | Self::CustomerSubscriptionPaused
            | Self::CustomerSubscriptionResumed
            | Self::CustomerSubscriptionTrialWillEnd
            | Self::CustomerSubscriptionPendingUpdateApplied
            | Self::CustomerSubscriptionPendingUpdateExpired => Some(Family::CustomerSubscription),
            Self::InvoicePaid | Self::InvoicePaymentPaid => Some(Family::InvoicePaid),
            Self::InvoicePaymentFailed | Self::InvoicePaymentActionRequired => {
                Some(Family::InvoicePaymentFailed)
            }
            Self::ChargeRefunded | Self::RefundCreated | Self::RefundUpdated | Self::RefundFailed => {
                Some(Family::Refund)
            }
            Self::ChargeDisputeCreated
            | Self::ChargeDisputeUpdated
            | Self::ChargeDisputeClosed
            | Self::ChargeDisputeFundsWithdrawn
            | Self::ChargeDisputeFundsReinstated => Some(Family::ChargeDispute),
            Self::CustomerDeleted => Some(Family::Customer),
            Self::Other(_) => None,
        }
    }
}

/// A group of event types. A family has one queue, one Lambda function and one rule file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `checkout.session.*`
    CheckoutSession,
    /// `customer.subscription.*`
    CustomerSubscription,
    /// `invoice.paid`, `invoice_payment.paid`
    InvoicePaid,
    /// `invoice.payment_failed`, `invoice.payment_action_required`
    InvoicePaymentFailed,
    /// `charge.refunded`, `refund.*`
    Refund,
    /// `charge.dispute.*`
    ChargeDispute,
    /// `customer.deleted`
    Customer,
}

impl Family {
    /// Every family, in the order of the routing table.
    pub const ALL: [Self; 7] = [
        Self::CheckoutSession,
        Self::CustomerSubscription,
        Self::InvoicePaid,
        Self::InvoicePaymentFailed,
        Self::Refund,
        Self::ChargeDispute,
        Self::Customer,
    ];

    /// The name of its folder, queue and function: `invoice-paid`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CheckoutSession => "checkout-session",
            Self::CustomerSubscription => "customer-subscription",
            Self::InvoicePaid => "invoice-paid",
            Self::InvoicePaymentFailed => "invoice-payment-failed",
            Self::Refund => "refund",
            Self::ChargeDispute => "charge-dispute",
            Self::Customer => "customer",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Family {
    type Err = UnknownFamily;
    fn from_str(name: &str) -> Result<Self, UnknownFamily> {
        Self::ALL.into_iter().find(|family| family.as_str() == name).ok_or(UnknownFamily)
    }
}

/// A text is not the name of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a family of events")]
pub struct UnknownFamily;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_has_a_family_and_reads_back() {
        for kind in EventType::KNOWN {
            assert!(kind.family().is_some(), "{kind}");
            assert_eq!(&EventType::from(kind.as_str()), kind);
        }
        assert_eq!(EventType::KNOWN.len(), 26);
        assert_eq!(EventType::from("invoice.upcoming").family(), None);
        assert_eq!(EventType::from("invoice.payment_succeeded").as_str(), "invoice.payment_succeeded");
        for family in Family::ALL {
            assert_eq!(
                (family.as_str().parse(), family.to_string()),
                (Ok(family), family.as_str().to_owned())
            );
            assert!(EventType::KNOWN.iter().any(|kind| kind.family() == Some(family)));
        }
    }
}
