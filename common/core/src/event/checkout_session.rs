//! The Checkout Session, which has the same shape in every API version. Events: `checkout.session.*`.

use super::{Fields, Metadata, Price, ReadError};
use crate::ids::{CustomerId, InvoiceId, PaymentIntentId, SessionId, SubscriptionId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `mode`: what the checkout is for.
    CheckoutMode {
        /// A one-time payment.
        Payment = "payment",
        /// The start of a subscription. `invoice.paid` reports its payment.
        Subscription = "subscription",
        /// A payment method is saved, and nothing is bought.
        Setup = "setup",
    }
}

open_enum! {
    /// `payment_status`: whether the session is paid. **The status `complete` does not mean that it is
    /// paid.**
    PaymentStatus {
        /// It is paid.
        Paid = "paid",
        /// There is nothing to pay: a trial or a full discount.
        NoPaymentRequired = "no_payment_required",
        /// It is not paid. A delayed payment may still be pending.
        Unpaid = "unpaid",
    }
}

open_enum! {
    /// `status` of the checkout itself.
    SessionStatus {
        /// The customer has not completed it.
        Open = "open",
        /// The customer completed it. The payment may still be pending.
        Complete = "complete",
        /// It expired.
        Expired = "expired",
    }
}

/// The fields of a Checkout Session that the rules need. Events never have the line items.
///
/// ```json
/// {"id":"cs_test_1","object":"checkout.session","mode":"payment","payment_status":"paid",
///  "status":"complete","customer":"cus_1","client_reference_id":"user_42",
///  "metadata":{"pack":"credits_1000","quantity":"2"},"subscription":null,"payment_intent":"pi_1",
///  "invoice":null,"amount_total":2000,"currency":"usd","customer_details":{"email":"…"},
///  "created":1759312800}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckoutSession {
    /// `cs_…`
    pub id: SessionId,
    /// Its purpose.
    pub mode: CheckoutMode,
    /// Whether it is paid.
    pub payment_status: PaymentStatus,
    /// Whether the customer completed it.
    pub status: SessionStatus,
    /// The customer; `None` for a guest in payment mode.
    pub customer: Option<CustomerId>,
    /// The app's user id, or any other text: it is not checked. See [`super::Event::referenced_user`].
    pub client_reference_id: Option<String>,
    /// The session's own metadata. Stripe does not copy it to the subscription or the payment.
    pub metadata: Metadata,
    /// The subscription that it created, in subscription mode.
    pub subscription: Option<SubscriptionId>,
    /// The payment; `None` in subscription mode and when there is nothing to pay.
    pub payment_intent: Option<PaymentIntentId>,
    /// The invoice, in subscription mode or with `invoice_creation`.
    pub invoice: Option<InvoiceId>,
    /// Minor units, after taxes and discounts; `None` in setup mode.
    pub amount_total: Option<i64>,
    /// Minor units before discounts and taxes, in the session's `currency`.
    pub amount_subtotal: Option<i64>,
    /// The subtotal in the currency of the price, and that currency, if Adaptive Pricing converted the session
    /// into the currency of the customer (`currency_conversion`; sessions from before 2025-03-31).
    pub converted_from: Option<(i64, String)>,
    /// Whether a Payment Link created it. The link's metadata is the same for every buyer, so it has no
    /// quantity.
    pub payment_link: bool,
    /// The line items, if a call to Stripe returned them. Events never have them.
    pub line_items: Option<Vec<SoldLine>>,
    /// ISO code in lower case.
    pub currency: Option<String>,
    /// The address that the customer typed (`customer_details.email`), or else the app's (`customer_email`).
    /// It never proves the identity of the customer.
    pub customer_email: Option<String>,
    /// When the session was created.
    pub created: Option<Timestamp>,
}

impl CheckoutSession {
    /// The customer's own reference, which the status page shows: `metadata.customer_reference`.
    pub fn customer_reference(&self) -> Option<String> {
        let reference = self.metadata.get("customer_reference")?;
        let plain: String = reference.chars().filter(|c| !c.is_control()).collect();
        Some(plain.trim().to_owned()).filter(|reference| !reference.is_empty())
    }
}

/// The expanded line items; `None` when they are not expanded, as in all events.
fn sold(object: &Fields<'_>) -> Result<Option<Vec<SoldLine>>, ReadError> {
    if !object.names("line_items.data") {
        return Ok(None);
    }
    let mut lines = Vec::new();
    for line in object.list("line_items")? {
        if let Some(price) = Price::from_fields(&line)? {
            lines.push(SoldLine {
                price,
                quantity: line.count("quantity")?.unwrap_or(1),
                amount: line.amount("amount_total")?,
            });
        }
    }
    Ok(Some(lines))
}

/// A line item of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoldLine {
    /// The price.
    pub price: Price,
    /// The quantity.
    pub quantity: u64,
    /// Minor units, after discounts and taxes (`amount_total`).
    pub amount: Option<i64>,
}

impl CheckoutSession {
    /// Reads an object of Stripe's API.
    ///
    /// # Errors
    /// [`ReadError::NotJson`]; [`ReadError::Missing`] without an id; [`ReadError::Wrong`] or
    /// [`ReadError::Id`] for a field of an unexpected type.
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
            converted_from: object
                .amount("currency_conversion.amount_subtotal")?
                .zip(object.owned("currency_conversion.source_currency")?),
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
