//! The Invoice, before and after API version 2025-03-31.basil. Events: `invoice.paid`,
//! `invoice.payment_failed`, `invoice.payment_action_required`.

use super::{Fields, Metadata, Price, ReadError};
use crate::ids::{ChargeId, CustomerId, InvoiceId, ItemId, PaymentIntentId, SubscriptionId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `status` of an invoice.
    InvoiceStatus {
        /// It may still change.
        Draft = "draft",
        /// It is finalised and not paid.
        Open = "open",
        /// It is paid.
        Paid = "paid",
        /// The merchant does not expect a payment.
        Uncollectible = "uncollectible",
        /// It was cancelled.
        Void = "void",
    }
}

open_enum! {
    /// `billing_reason`: why the invoice was created.
    BillingReason {
        /// The first invoice of a subscription, also with a trial.
        SubscriptionCreate = "subscription_create",
        /// A renewal.
        SubscriptionCycle = "subscription_cycle",
        /// A change of a subscription that is billed at once, also the start of a trial on a running
        /// subscription.
        SubscriptionUpdate = "subscription_update",
        /// A usage threshold was reached.
        SubscriptionThreshold = "subscription_threshold",
        /// Any invoice of a subscription from before May 2018.
        Subscription = "subscription",
        /// Created by hand, or by `invoice_creation` of a checkout.
        Manual = "manual",
        /// A quote was accepted.
        QuoteAccept = "quote_accept",
        /// Pending invoice items that are billed automatically.
        AutomaticPendingInvoiceItemInvoice = "automatic_pending_invoice_item_invoice",
        /// A preview.
        Upcoming = "upcoming",
    }
}

/// The fields of an Invoice that the rules need.
///
/// ```json
/// {"id":"in_1","object":"invoice","customer":"cus_1","status":"paid","billing_reason":"subscription_cycle",
///  "amount_paid":2000,
///  "parent":{"type":"subscription_details",
///    "subscription_details":{"subscription":"sub_1","metadata":{"user_id":"user_42"}}},
///  "lines":{"has_more":false,"data":[{
///    "amount":2000,"quantity":1,"period":{"start":1759312800,"end":1761904800},
///    "parent":{"type":"subscription_item_details","subscription_item_details":{
///      "subscription":"sub_1","subscription_item":"si_1","proration":false}},
///    "pricing":{"price_details":{"price":"price_1"}}}]}}
/// ```
/// Before basil, the invoice had `subscription`, `subscription_details.metadata`, `paid`, `payment_intent`
/// and `charge`, and the line had `price` (or `plan`), `proration`, `type` and `subscription`. The period of
/// service is the line's `period`. The invoice's own `period_start` and `period_end` are **never** the period
/// of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoice {
    /// `in_…`
    pub id: InvoiceId,
    /// The customer.
    pub customer: Option<CustomerId>,
    /// Whether `status` is `paid`. The old `paid: true` counts only without a status.
    pub paid: bool,
    /// Its status.
    pub status: InvoiceStatus,
    /// Why it was created.
    pub billing_reason: BillingReason,
    /// The subscription that it bills: from the invoice in either shape, else from its lines.
    pub subscription: Option<SubscriptionId>,
    /// Its lines.
    pub lines: Vec<InvoiceLine>,
    /// Whether Stripe has more lines than the event, which holds only the first ten.
    pub lines_has_more: bool,
    /// Minor units. 0 for a trial, a full discount, and a payment from the customer's balance.
    pub amount_paid: i64,
    /// Minor units paid outside Stripe: `amount_paid_off_stripe` (since 2026-05-27), or the total if an older
    /// version has `paid_out_of_band`.
    pub paid_off_stripe: i64,
    /// Minor units, before discounts and taxes.
    pub subtotal: Option<i64>,
    /// Minor units, after discounts and taxes.
    pub total: Option<i64>,
    /// ISO code in lower case.
    pub currency: Option<String>,
    /// The payment intent that paid it. Since basil, only objects with expanded `payments` have it.
    pub payment_intent: Option<PaymentIntentId>,
    /// The charge that paid it, as for `payment_intent`.
    pub charge: Option<ChargeId>,
    /// The invoice's own metadata.
    pub metadata: Metadata,
    /// A copy of the subscription's metadata from when the invoice was created.
    pub subscription_metadata: Metadata,
    /// When it was created (`date` before 2019).
    pub created: Option<Timestamp>,
    /// Number of payment attempts.
    pub attempt_count: u64,
    /// The time of the next payment attempt, if there is one.
    pub next_payment_attempt: Option<Timestamp>,
    /// Whether `test_clock` is set: its time is moved by the merchant, in test mode.
    pub on_test_clock: bool,
    /// Minor units that are to be paid.
    pub amount_due: Option<i64>,
    /// The page on which the customer can pay it or authenticate the payment.
    pub hosted_invoice_url: Option<String>,
}

/// One line of an invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvoiceLine {
    /// The price; `None` for an amount without a price.
    pub price: Option<Price>,
    /// The quantity; 1 when absent.
    pub quantity: u64,
    /// Minor units. Negative for the credit of a proration. Before discounts, but for prorations with
    /// `proration_discounts = "included"`.
    pub amount: i64,
    /// Minor units of the discounts that `amount` does not include (`discount_amounts`), with the sign of
    /// `amount` and at most as large.
    pub discount: i64,
    /// Stripe's proration flag. It does not say whether the line covers a whole period: compare the periods.
    pub proration: bool,
    /// Whether it credits unused time: it names the lines that it credits. A credit of what cost nothing, as
    /// with a coupon of 100 percent, has the amount 0.
    pub credits_unused_time: bool,
    /// Whether it is the line of a subscription item and not of an invoice item.
    pub is_subscription: bool,
    /// The subscription item that the line bills (`si_…`).
    pub item: Option<ItemId>,
    /// Whether the price's own amount is 0. Known only in versions that embed the price.
    pub price_is_free: bool,
    /// Start of the period of service (included).
    pub period_start: Option<Timestamp>,
    /// End of the period of service (excluded).
    pub period_end: Option<Timestamp>,
    /// The subscription of the line.
    pub subscription: Option<SubscriptionId>,
    /// The subscription's current metadata, or the metadata of the invoice item.
    pub metadata: Metadata,
}

impl Invoice {
    /// Reads an object of Stripe's API.
    ///
    /// # Errors
    /// [`ReadError::NotJson`]; [`ReadError::Missing`] without an id, `amount_paid` or a line's amount;
    /// [`ReadError::Wrong`] or [`ReadError::Id`] for a field of an unexpected type.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        let object = serde_json::from_str(text).map_err(ReadError::NotJson)?;
        Self::from_fields(&Fields::new("invoice", &object))
    }

    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        let status: InvoiceStatus = object.word("status")?;
        let mut lines = Vec::new();
        for line in object.list("lines")? {
            lines.push(InvoiceLine::from_fields(&line)?);
        }
        let named = object.first_id(&[
            "parent.subscription_details.subscription",
            "subscription",
            "subscription_details.subscription",
        ])?;
        let subscription = named.or_else(|| lines.iter().find_map(|line| line.subscription.clone()));
        let mut subscription_metadata = object.metadata("parent.subscription_details.metadata");
        if subscription_metadata.is_empty() {
            subscription_metadata = object.metadata("subscription_details.metadata");
        }
        let (payment_intent, charge) = payment(object)?;
        Ok(Self {
            id: object.need("id", object.id("id")?)?,
            customer: object.id("customer")?,
            paid: match &status {
                InvoiceStatus::Paid => true,
                InvoiceStatus::Other(word) if word.is_empty() => object.flag("paid")?.unwrap_or(false),
                InvoiceStatus::Draft
                | InvoiceStatus::Open
                | InvoiceStatus::Uncollectible
                | InvoiceStatus::Void
                | InvoiceStatus::Other(_) => false,
            },
            status,
            billing_reason: object.word("billing_reason")?,
            subscription,
            lines,
            lines_has_more: object.flag("lines.has_more")?.unwrap_or(false),
            amount_paid: object.need("amount_paid", object.amount("amount_paid")?)?,
            paid_off_stripe: match object.amount("amount_paid_off_stripe")? {
                Some(amount) => amount,
                None if object.flag("paid_out_of_band")?.unwrap_or(false) => {
                    object.amount("total")?.unwrap_or(0)
                }
                None => 0,
            },
            subtotal: object.amount("subtotal")?,
            total: object.amount("total")?,
            currency: object.owned("currency")?,
            payment_intent,
            charge,
            metadata: object.metadata("metadata"),
            subscription_metadata,
            created: match object.time("created")? {
                Some(created) => Some(created),
                None => object.time("date")?,
            },
            attempt_count: object.count("attempt_count")?.unwrap_or(0),
            next_payment_attempt: object.time("next_payment_attempt")?,
            on_test_clock: object.has("test_clock"),
            amount_due: object.amount("amount_due")?,
            hosted_invoice_url: object.owned("hosted_invoice_url")?,
        })
    }
}

impl InvoiceLine {
    /// Minor units after its discounts.
    pub fn net(&self) -> i64 {
        self.amount.saturating_sub(self.discount)
    }

    fn from_fields(line: &Fields<'_>) -> Result<Self, ReadError> {
        let is_subscription = match line.text("parent.type")? {
            Some(parent) => parent == "subscription_item_details",
            None => line.text("type")? == Some("subscription"),
        };
        let mut subscription = line.first_id(&[
            "parent.subscription_item_details.subscription",
            "parent.invoice_item_details.subscription",
            "subscription",
        ])?;
        // Before 2019, the id of a subscription's line was the id of the subscription.
        if subscription.is_none()
            && is_subscription
            && line.text("id")?.is_some_and(|id| id.starts_with("sub_"))
        {
            subscription = line.id("id")?;
        }
        let proration = [
            line.flag("parent.subscription_item_details.proration")?,
            line.flag("parent.invoice_item_details.proration")?,
            line.flag("proration")?,
        ];
        let amount = line.need("amount", line.amount("amount")?)?;
        let mut discount: u64 = 0;
        for part in line.entries("discount_amounts")? {
            discount = discount.saturating_add(part.amount("amount")?.unwrap_or(0).unsigned_abs());
        }
        let discount = i64::try_from(discount).unwrap_or(i64::MAX).min(amount.saturating_abs());
        Ok(Self {
            price: Price::from_fields(line)?,
            quantity: line.count("quantity")?.unwrap_or(1),
            amount,
            discount: discount * amount.signum(),
            proration: proration.contains(&Some(true)),
            credits_unused_time: [
                "parent.subscription_item_details.proration_details.credited_items",
                "parent.invoice_item_details.proration_details.credited_items",
                "proration_details.credited_items",
            ]
            .into_iter()
            .any(|path| line.has(path)),
            is_subscription,
            item: line.first_id(&[
                "parent.subscription_item_details.subscription_item",
                "parent.invoice_item_details.subscription_item",
                "subscription_item",
            ])?,
            price_is_free: is_free(line)?,
            period_start: line.time("period.start")?,
            period_end: line.time("period.end")?,
            subscription,
            metadata: line.metadata("metadata"),
        })
    }
}

/// Whether the embedded price (or old plan) has the amount 0. Tiered prices have no amount.
pub(super) fn is_free(line: &Fields<'_>) -> Result<bool, ReadError> {
    Ok(line.amount("price.unit_amount")? == Some(0) || line.amount("plan.amount")? == Some(0))
}

/// The payment of the invoice. Of several payments (new shape), the first paid one, else the first.
fn payment(object: &Fields<'_>) -> Result<(Option<PaymentIntentId>, Option<ChargeId>), ReadError> {
    let (mut intent, mut charge) = (object.id("payment_intent")?, object.id("charge")?);
    if intent.is_none() && charge.is_none() {
        let payments = object.list("payments")?;
        let mut chosen = payments.first();
        for payment in &payments {
            if payment.text("status")? == Some("paid") {
                chosen = Some(payment);
                break;
            }
        }
        if let Some(chosen) = chosen {
            (intent, charge) = (chosen.id("payment.payment_intent")?, chosen.id("payment.charge")?);
        }
    }
    Ok((intent, charge))
}
