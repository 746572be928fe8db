//! `checkout.session.*`: the Checkout Session, alike in every API version.

use super::{Fields, Metadata, ReadError};
use crate::ids::{CustomerId, InvoiceId, PaymentIntentId, PriceId, SessionId, SubscriptionId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `mode`: what the checkout is for.
    CheckoutMode {
        /// A one-time payment.
        Payment = "payment",
        /// The start of a subscription; its money is told by `invoice.paid`.
        Subscription = "subscription",
        /// A card is saved, nothing is bought.
        Setup = "setup",
    }
}

open_enum! {
    /// `payment_status`: whether the money is there. **`complete` as status does not say so.**
    PaymentStatus {
        /// The payment is there.
        Paid = "paid",
        /// Nothing to pay: a trial, a full discount.
        NoPaymentRequired = "no_payment_required",
        /// Not yet (delayed methods), or never.
        Unpaid = "unpaid",
    }
}

open_enum! {
    /// `status` of the checkout itself.
    SessionStatus {
        /// The customer is at it.
        Open = "open",
        /// The customer finished; the payment may still be on its way.
        Complete = "complete",
        /// It ran out.
        Expired = "expired",
    }
}

/// What the rules need of a Checkout Session. Line items are never part of the event.
///
/// ```json
/// {"id":"cs_test_1","object":"checkout.session","mode":"payment","payment_status":"paid","status":"complete","customer":"cus_1",
///  "client_reference_id":"user_42","metadata":{"pack":"credits_1000","quantity":"2"},"subscription":null,"payment_intent":"pi_1",
///  "invoice":null,"amount_total":2000,"currency":"usd","customer_details":{"email":"…"},"created":1759312800}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckoutSession {
    /// `cs_…`
    pub id: SessionId,
    /// What it is for.
    pub mode: CheckoutMode,
    /// Whether the money is there.
    pub payment_status: PaymentStatus,
    /// How far the customer got.
    pub status: SessionStatus,
    /// Null for guests in payment mode.
    pub customer: Option<CustomerId>,
    /// The app's user id, as the app gave it when it made the session; unchecked.
    pub client_reference_id: Option<String>,
    /// The session's own metadata; Stripe does not copy it to the subscription or the payment.
    pub metadata: Metadata,
    /// The subscription that came of it, in subscription mode.
    pub subscription: Option<SubscriptionId>,
    /// Null in subscription mode and when there was nothing to pay.
    pub payment_intent: Option<PaymentIntentId>,
    /// Subscription mode, or `invoice_creation` is on.
    pub invoice: Option<InvoiceId>,
    /// Minor units, taxes and discounts included; null in setup mode.
    pub amount_total: Option<i64>,
    /// Minor units before discounts and taxes.
    pub amount_subtotal: Option<i64>,
    /// A Payment Link sold it: its metadata says the same for every buyer, so no quantity.
    pub payment_link: bool,
    /// What was sold, as far as it is known: events have no line items, Stripe is asked for them.
    pub line_items: Option<Vec<SoldLine>>,
    /// ISO code, lower case.
    pub currency: Option<String>,
    /// What the customer typed in (`customer_details.email`), else what the app gave (`customer_email`).
    /// Never proves who it is.
    pub customer_email: Option<String>,
    /// When the session was made.
    pub created: Option<Timestamp>,
}

/// The line items, where they are expanded: the API does that on request, events never.
fn sold(object: &Fields<'_>) -> Result<Option<Vec<SoldLine>>, ReadError> {
    if !object.names("line_items.data") {
        return Ok(None);
    }
    let mut lines = Vec::new();
    for line in object.list("line_items")? {
        if let Some(price) = line.id("price")? {
            lines.push(SoldLine { price, quantity: line.count("quantity")?.unwrap_or(1) });
        }
    }
    Ok(Some(lines))
}

/// One line of what a session sold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoldLine {
    /// The price.
    pub price: PriceId,
    /// How many.
    pub quantity: u64,
}

impl CheckoutSession {
    /// Reads the object as Stripe's API answers it.
    ///
    /// # Errors
    /// [`ReadError::NotJson`]; [`ReadError::Missing`] without an id; [`ReadError::Wrong`] or
    /// [`ReadError::Id`] for a fact of another shape.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        let object = serde_json::from_str(text).map_err(ReadError::NotJson)?;
        Self::from_fields(&Fields::new("checkout.session", &object))
    }

    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            id: object.need("id", object.id("id")?)?,
            mode: object.word("mode")?,
            payment_status: object.word("payment_status")?,
            status: object.word("status")?,
            customer: object.id("customer")?,
            client_reference_id: object.owned("client_reference_id")?,
            metadata: object.metadata("metadata"),
            subscription: object.id("subscription")?,
            payment_intent: object.id("payment_intent")?,
            invoice: object.id("invoice")?,
            amount_total: object.amount("amount_total")?,
            amount_subtotal: object.amount("amount_subtotal")?,
            payment_link: object.names("payment_link.id")
                || object.text("payment_link").is_ok_and(|id| id.is_some()),
            line_items: sold(object)?,
            currency: object.owned("currency")?,
            customer_email: match object.owned("customer_details.email")? {
                Some(email) => Some(email),
                None => object.owned("customer_email")?,
            },
            created: object.time("created")?,
        })
    }
}
