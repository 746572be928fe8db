//! `invoice.paid`, `invoice.payment_failed`, `invoice.payment_action_required`: the Invoice, before and after
//! 2025-03-31.basil.

use super::{Fields, Metadata, ReadError};
use crate::ids::{ChargeId, CustomerId, InvoiceId, PaymentIntentId, PriceId, SubscriptionId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `status` of an invoice.
    InvoiceStatus {
        /// May still change.
        Draft = "draft",
        /// Finalised, waiting for its payment.
        Open = "open",
        /// Paid.
        Paid = "paid",
        /// Given up.
        Uncollectible = "uncollectible",
        /// Annulled.
        Void = "void",
    }
}

open_enum! {
    /// `billing_reason`: why the invoice was made.
    BillingReason {
        /// The first invoice of a subscription, also of a trial.
        SubscriptionCreate = "subscription_create",
        /// A renewal.
        SubscriptionCycle = "subscription_cycle",
        /// A change of plan or quantity that is billed at once.
        SubscriptionUpdate = "subscription_update",
        /// A usage threshold was reached.
        SubscriptionThreshold = "subscription_threshold",
        /// Any of a subscription's, before May 2018.
        Subscription = "subscription",
        /// Made by hand or by `invoice_creation` of a checkout.
        Manual = "manual",
        /// A quote was accepted.
        QuoteAccept = "quote_accept",
        /// Pending items, collected automatically.
        AutomaticPendingInvoiceItemInvoice = "automatic_pending_invoice_item_invoice",
        /// A preview.
        Upcoming = "upcoming",
    }
}

/// What the rules need of an Invoice.
///
/// ```json
/// {"id":"in_1","object":"invoice","customer":"cus_1","status":"paid","billing_reason":"subscription_cycle","amount_paid":2000,
///  "parent":{"type":"subscription_details","subscription_details":{"subscription":"sub_1","metadata":{"user_id":"user_42"}}},
///  "lines":{"has_more":false,"data":[{"amount":2000,"quantity":1,"period":{"start":1759312800,"end":1761904800},
///    "parent":{"type":"subscription_item_details","subscription_item_details":{"subscription":"sub_1","proration":false}},
///    "pricing":{"price_details":{"price":"price_1"}}}]}}
/// ```
/// Before basil: `subscription`, `subscription_details.metadata`, `paid`, `payment_intent`, `charge` on the
/// invoice; `price` (or `plan`), `proration`, `type`, `subscription` on the line. The invoice's own
/// `period_start`/`period_end` are the time in which its items were collected, **never** the period of
/// service: that is the line's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoice {
    /// `in_…`
    pub id: InvoiceId,
    /// Who pays.
    pub customer: Option<CustomerId>,
    /// `status` is `paid`; the old `paid: true` counts only where there is no status.
    pub paid: bool,
    /// Where the invoice stands.
    pub status: InvoiceStatus,
    /// Why it was made.
    pub billing_reason: BillingReason,
    /// The subscription it bills, wherever the version puts it (the lines come last).
    pub subscription: Option<SubscriptionId>,
    /// What is billed.
    pub lines: Vec<Line>,
    /// The event holds the first ten lines only; the rest is at Stripe.
    pub lines_has_more: bool,
    /// Minor units. 0 for trials, full discounts, and what the customer's balance paid.
    pub amount_paid: i64,
    /// Minor units, before discounts and taxes.
    pub subtotal: Option<i64>,
    /// Minor units, after discounts and taxes.
    pub total: Option<i64>,
    /// ISO code, lower case.
    pub currency: Option<String>,
    /// What paid it, if the event tells: since basil only where `payments` is expanded.
    pub payment_intent: Option<PaymentIntentId>,
    /// Likewise.
    pub charge: Option<ChargeId>,
    /// The invoice's own metadata.
    pub metadata: Metadata,
    /// The subscription's metadata when the invoice was made, frozen at finalisation.
    pub subscription_metadata: Metadata,
    /// When it was made (`date` before 2019).
    pub created: Option<Timestamp>,
    /// How often payment was tried.
    pub attempt_count: u64,
    /// When it is tried next; `None`: it is not.
    pub next_payment_attempt: Option<Timestamp>,
}

/// One line of an invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What is billed; `None` for amounts without a price.
    pub price: Option<PriceId>,
    /// 1 where Stripe gives none.
    pub quantity: u64,
    /// Minor units; negative for the credit of a proration.
    pub amount: i64,
    /// Part of a period, because of a change in it: never the plan's own line.
    pub proration: bool,
    /// A line of a subscription item (not an invoice item).
    pub is_subscription: bool,
    /// Begin of the service (included).
    pub period_start: Option<Timestamp>,
    /// End of the service (excluded).
    pub period_end: Option<Timestamp>,
    /// The subscription the line is for.
    pub subscription: Option<SubscriptionId>,
    /// The subscription's current metadata, or the invoice item's.
    pub metadata: Metadata,
}

impl Invoice {
    /// Reads the object as Stripe's API answers it.
    ///
    /// # Errors
    /// [`ReadError::NotJson`]; [`ReadError::Missing`] without an id, `amount_paid` or a line's amount;
    /// [`ReadError::Wrong`] or [`ReadError::Id`] for a fact of another shape.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        let object = serde_json::from_str(text).map_err(ReadError::NotJson)?;
        Self::from_fields(&Fields::new("invoice", &object))
    }

    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        let status: InvoiceStatus = object.word("status")?;
        let mut lines = Vec::new();
        for line in object.list("lines")? {
            lines.push(Line::from_fields(&line)?);
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
        })
    }
}

impl Line {
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
        // Until 2019 the id of a subscription's line was the id of the subscription.
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
        Ok(Self {
            price: line.first_id(&["pricing.price_details.price", "price", "plan"])?,
            quantity: line.count("quantity")?.unwrap_or(1),
            amount: line.need("amount", line.amount("amount")?)?,
            proration: proration.contains(&Some(true)),
            is_subscription,
            period_start: line.time("period.start")?,
            period_end: line.time("period.end")?,
            subscription,
            metadata: line.metadata("metadata"),
        })
    }
}

/// What paid the invoice: of several payments (new shape) the paid one, else the first.
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
