//! `charge.refunded`: the Charge.

use super::{Fields, Metadata, ReadError};
use crate::ids::{ChargeId, CustomerId, InvoiceId, PaymentIntentId};

/// What the rules need of a Charge.
///
/// ```json
/// {"id":"ch_1","object":"charge","customer":"cus_1","payment_intent":"pi_1","amount":2000,"amount_refunded":500,"currency":"usd"}
/// ```
/// `refunds` is not in events since 2022-11-15, `invoice` not since 2025-03-31.basil.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// `ch_…` or `py_…`
    pub id: ChargeId,
    /// Who paid, if it was no guest.
    pub customer: Option<CustomerId>,
    /// The payment it belongs to; what was granted is found by it.
    pub payment_intent: Option<PaymentIntentId>,
    /// The invoice it paid: old versions say so, else Stripe was asked.
    pub invoice: Option<InvoiceId>,
    /// Minor units that were charged.
    pub amount: i64,
    /// Minor units that went back, **all refunds together**.
    pub amount_refunded: i64,
    /// ISO code, lower case.
    pub currency: Option<String>,
    /// Copied by Stripe from the payment intent.
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
