//! The Refund. Events: `refund.created`, `refund.updated`, `refund.failed`.

use super::{Fields, Metadata, ReadError};
use crate::ids::{ChargeId, CustomerId, InvoiceId, PaymentIntentId, RefundId};

open_enum! {
    /// `status` of a refund.
    RefundStatus {
        /// It is in progress.
        Pending = "pending",
        /// It waits for an action of the customer, such as bank details.
        RequiresAction = "requires_action",
        /// The customer has the money.
        Succeeded = "succeeded",
        /// It failed: the merchant has the money again.
        Failed = "failed",
        /// It was cancelled.
        Canceled = "canceled",
    }
}

/// The fields of a Refund that the rules need.
///
/// ```json
/// {"id":"re_1","object":"refund","charge":"ch_1","payment_intent":"pi_1","amount":500,
///  "status":"succeeded","metadata":{}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// `re_…` or `pyr_…`
    pub id: RefundId,
    /// The refunded charge.
    pub charge: Option<ChargeId>,
    /// The refunded payment.
    pub payment_intent: Option<PaymentIntentId>,
    /// The invoice that the payment paid. It is never read from the event, only from a call to Stripe.
    pub invoice: Option<InvoiceId>,
    /// The customer of the invoice, from the same call.
    pub customer: Option<CustomerId>,
    /// Minor units of **this** refund.
    pub amount: i64,
    /// Its status.
    pub status: RefundStatus,
    /// The refund's metadata.
    pub metadata: Metadata,
}

impl Refund {
    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            id: object.need("id", object.id("id")?)?,
            charge: object.id("charge")?,
            payment_intent: object.id("payment_intent")?,
            invoice: None,
            customer: None,
            amount: object.need("amount", object.amount("amount")?)?,
            status: object.word("status")?,
            metadata: object.metadata("metadata"),
        })
    }
}
