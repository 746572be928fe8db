//! The Charge. Event: `charge.refunded`.

use super::{Fields, Metadata, ReadError};
use crate::ids::{ChargeId, CustomerId, InvoiceId, PaymentIntentId};

/// The fields of a Charge that the rules need.
///
/// ```json
/// {"id":"ch_1","object":"charge","customer":"cus_1","payment_intent":"pi_1","amount":2000,
///  "amount_refunded":500,"currency":"usd"}
/// ```
/// Events have no `refunds` since 2022-11-15, and no `invoice` since 2025-03-31.basil.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// `ch_…` or `py_…`
    pub id: ChargeId,
    /// The customer; `None` for a guest.
    pub customer: Option<CustomerId>,
    /// The payment. The grant is found by it.
    pub payment_intent: Option<PaymentIntentId>,
    /// The invoice that it paid: from an old version of the event, or from a call to Stripe.
    pub invoice: Option<InvoiceId>,
    /// Charged minor units.
    pub amount: i64,
    /// Refunded minor units, **of all refunds together**.
    pub amount_refunded: i64,
    /// ISO code in lower case.
    pub currency: Option<String>,
    /// Metadata, which Stripe copies from the payment intent.
    pub metadata: Metadata,
}

impl Charge {
    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            id: object.need("id", object.id("id")?)?,
            customer: object.id("customer")?,
            payment_intent: object.id("payment_intent")?,
            invoice: object.id("invoice")?,
            amount: object.need("amount", object.amount("amount")?)?,
            amount_refunded: object.need("amount_refunded", object.amount("amount_refunded")?)?,
            currency: object.owned("currency")?,
            metadata: object.metadata("metadata"),
        })
    }
}
