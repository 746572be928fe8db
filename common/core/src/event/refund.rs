//! `refund.created`, `refund.updated`, `refund.failed`: the Refund.

use super::{Fields, Metadata, ReadError};
use crate::ids::{ChargeId, CustomerId, InvoiceId, PaymentIntentId, RefundId};

open_enum! {
    /// `status` of a refund.
    RefundStatus {
        /// On its way.
        Pending = "pending",
        /// Waits for the customer's bank details.
        RequiresAction = "requires_action",
        /// Done.
        Succeeded = "succeeded",
        /// Came back; the merchant has the money again.
        Failed = "failed",
        /// Withdrawn.
        Canceled = "canceled",
    }
}

/// What the rules need of a Refund.
///
/// ```json
/// {"id":"re_1","object":"refund","charge":"ch_1","payment_intent":"pi_1","amount":500,"status":"succeeded","metadata":{}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// `re_…` or `pyr_…`
    pub id: RefundId,
    /// The charge it takes back.
    pub charge: Option<ChargeId>,
    /// The payment it belongs to.
    pub payment_intent: Option<PaymentIntentId>,
    /// The invoice that the payment paid. No event says so: Stripe was asked.
    pub invoice: Option<InvoiceId>,
    /// Who paid it, likewise.
    pub customer: Option<CustomerId>,
    /// Minor units of **this** refund.
    pub amount: i64,
    /// How far it is.
    pub status: RefundStatus,
    /// The refund's own.
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
