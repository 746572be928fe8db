//! The InvoicePayment: the link of a payment to the invoice that it paid, since 2025-03-31.basil. Event:
//! `invoice_payment.paid`.

use super::{Fields, ReadError};
use crate::ids::{ChargeId, InvoiceId, PaymentIntentId};

/// The fields of an InvoicePayment that the rules need.
///
/// ```json
/// {"id":"inpay_1","object":"invoice_payment","invoice":"in_1","status":"paid","amount_paid":2000,
///  "payment":{"type":"payment_intent","payment_intent":"pi_1"}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvoicePayment {
    /// The invoice.
    pub invoice: InvoiceId,
    /// The payment, if it is a payment intent.
    pub payment_intent: Option<PaymentIntentId>,
    /// The payment, if it is a charge without a payment intent.
    pub charge: Option<ChargeId>,
}

impl InvoicePayment {
    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            invoice: object.need("invoice", object.id("invoice")?)?,
            payment_intent: object.id("payment.payment_intent")?,
            charge: object.id("payment.charge")?,
        })
    }
}
