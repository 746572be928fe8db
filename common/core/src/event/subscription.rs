//! The Subscription, before and after API version 2025-03-31.basil. Events: `customer.subscription.*`.

use super::{Fields, Metadata, Price, ReadError};
use crate::ids::{CustomerId, InvoiceId, ItemId, PriceId, SubscriptionId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `status` of a subscription.
    SubscriptionStatus {
        /// The first payment is pending, for at most 23 hours.
        Incomplete = "incomplete",
        /// The first payment was not made. Final.
        IncompleteExpired = "incomplete_expired",
        /// It is in its trial.
        Trialing = "trialing",
        /// It is active.
        Active = "active",
        /// An invoice is not paid. Stripe retries the payment.
        PastDue = "past_due",
        /// It has ended. Final.
        Canceled = "canceled",
        /// All payment retries failed, and the settings of the Stripe account keep the subscription.
        Unpaid = "unpaid",
        /// It was paused: by the Pause endpoint, or by a trial end without a payment method.
        /// `pause_collection` does not change the status.
        Paused = "paused",
    }
}

/// The fields of a Subscription that the rules need. A Subscription has no version and no time of its last
/// update.
///
/// ```json
/// {"id":"sub_1","object":"subscription","customer":"cus_1","status":"active","cancel_at":null,
///  "cancel_at_period_end":false,
///  "items":{"data":[{"id":"si_1","price":{"id":"price_1"},"quantity":1,
///    "current_period_start":1759312800,"current_period_end":1761904800}]}}
/// ```
/// Before basil, the subscription had the period (`current_period_start`, `current_period_end`), and in older
/// events also `plan` and `quantity`. Both are read into the items, so all shapes give equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// `sub_…`
    pub id: SubscriptionId,
    /// The customer.
    pub customer: Option<CustomerId>,
    /// Its status. Required.
    pub status: SubscriptionStatus,
    /// Its items. Under flexible billing, their periods may differ.
    pub items: Vec<SubscriptionItem>,
    /// Whether Stripe has more items than the event, which holds only the first ten.
    pub items_has_more: bool,
    /// The planned end. A planned cancellation is this **or** `cancel_at_period_end`.
    pub cancel_at: Option<Timestamp>,
    /// Whether it ends with the period.
    pub cancel_at_period_end: bool,
    /// When the cancellation was requested. The subscription may end later.
    pub canceled_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Whether Stripe ended it after failed payments: `cancellation_details.reason` is `payment_failed`.
    pub ended_unpaid: bool,
    /// Days in which the customer must pay an invoice, with `collection_method: send_invoice`.
    pub days_until_due: Option<u64>,
    /// Whether `pause_collection` is set: Stripe creates invoices and does not collect them.
    pub collection_paused: bool,
    /// Start of the trial, if there was one.
    pub trial_start: Option<Timestamp>,
    /// End of the trial.
    pub trial_end: Option<Timestamp>,
    /// The newest invoice.
    pub latest_invoice: Option<InvoiceId>,
    /// The subscription's metadata. A checkout sets it only by `subscription_data.metadata`.
    pub metadata: Metadata,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether `test_clock` is set: its time is moved by the merchant, in test mode.
    pub on_test_clock: bool,
    /// The values before an update; `None` in other events and from the API.
    pub previous: Option<PreviousAttributes>,
}

/// One item of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionItem {
    /// `si_…`. An item without an id gets `item-<n>`, and the item of an event without items (before 2018)
    /// `only`.
    pub id: ItemId,
    /// Whether the price's own amount is 0.
    pub is_free: bool,
    /// The price, or the plan in old events.
    pub price: Price,
    /// Number of seats; 1 when absent (metered prices).
    pub quantity: u64,
    /// Start of the current period (included).
    pub period_start: Option<Timestamp>,
    /// End of the current period (excluded).
    pub period_end: Option<Timestamp>,
}

/// `data.previous_attributes` of an update: the values **before** it, only of the changed fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousAttributes {
    /// The status before.
    pub status: Option<SubscriptionStatus>,
    /// The items before. In the old shape, `plan` and `quantity` of the only item.
    pub items: Option<Vec<PreviousItem>>,
    /// The planned end before; `Some(None)` when it was not set.
    pub cancel_at: Option<Option<Timestamp>>,
    /// The flag before.
    pub cancel_at_period_end: Option<bool>,
    /// The start of the period before. Set by a renewal, or by a plan change that moved the period.
    pub period_start: Option<Timestamp>,
}

/// An item before an update. A field that is `None` did not change or is not in the event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousItem {
    /// `si_…`, if the event has it.
    pub id: Option<ItemId>,
    /// The price before.
    pub price: Option<PriceId>,
    /// The quantity before.
    pub quantity: Option<u64>,
    /// The start of the period before.
    pub period_start: Option<Timestamp>,
    /// The end of the period before.
    pub period_end: Option<Timestamp>,
}

/// The fields of an item that may hold the price, newest shape first.
const PRICE: [&str; 2] = ["price", "plan"];

impl Subscription {
    /// Reads an object of Stripe's API.
    ///
    /// # Errors
    /// [`ReadError::Missing`] without an id, a status or an item's price; [`ReadError::Wrong`] or
    /// [`ReadError::Id`] for a field of an unexpected type.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        let object = serde_json::from_str(text).map_err(ReadError::NotJson)?;
        Self::from_fields(&Fields::new("subscription", &object), None)
    }

    pub(super) fn from_fields(object: &Fields<'_>, previous: Option<&Fields<'_>>) -> Result<Self, ReadError> {
        Ok(Self {
            id: object.need("id", object.id("id")?)?,
            customer: object.id("customer")?,
            status: object.need("status", object.text("status")?)?.into(),
            items: items(object)?,
            items_has_more: object.flag("items.has_more")?.unwrap_or(false),
            cancel_at: object.time("cancel_at")?,
            cancel_at_period_end: object.flag("cancel_at_period_end")?.unwrap_or(false),
            canceled_at: object.time("canceled_at")?,
            ended_at: object.time("ended_at")?,
            ended_unpaid: object.text("cancellation_details.reason")? == Some("payment_failed"),
            days_until_due: match object.text("collection_method")? {
                Some("send_invoice") => Some(object.count("days_until_due")?.unwrap_or(0)),
                _ => None,
            },
            collection_paused: object.names("pause_collection.behavior"),
            trial_start: object.time("trial_start")?,
            trial_end: object.time("trial_end")?,
            latest_invoice: object.id("latest_invoice")?,
            metadata: object.metadata("metadata"),
            created: object.time("created")?,
            on_test_clock: object.has("test_clock"),
            previous: previous.map(PreviousAttributes::from_fields).transpose()?,
        })
    }

    /// Start of the current period: the latest of all items. Rules that know the plan's item use the item's
    /// own period.
    pub fn period_start(&self) -> Option<Timestamp> {
        self.latest_item().and_then(|item| item.period_start)
    }

    /// End of the period that starts at [`Self::period_start`].
    pub fn period_end(&self) -> Option<Timestamp> {
        self.latest_item().and_then(|item| item.period_end)
    }

    fn latest_item(&self) -> Option<&SubscriptionItem> {
        self.items.iter().max_by_key(|item| (item.period_start, item.period_end))
    }
}

/// The items. For a subscription without a list of items (before 2018), its `plan` and `quantity` are the
/// item.
fn items(object: &Fields<'_>) -> Result<Vec<SubscriptionItem>, ReadError> {
    let start = object.time("current_period_start")?;
    let end = object.time("current_period_end")?;
    let item = |item: &Fields<'_>, id: ItemId| -> Result<SubscriptionItem, ReadError> {
        Ok(SubscriptionItem {
            id,
            is_free: super::invoice::is_free(item)?,
            price: item.need("price", Price::from_fields(item)?)?,
            quantity: item.count("quantity")?.unwrap_or(1),
            period_start: item.time("current_period_start")?.or(start),
            period_end: item.time("current_period_end")?.or(end),
        })
    };
    let mut items = Vec::new();
    for entry in object.list("items")? {
        let id = match entry.id("id")? {
            Some(id) => id,
            None => own_id(&format!("item-{}", items.len())),
        };
        items.push(item(&entry, id)?);
    }
    if items.is_empty() && object.id_text("plan")?.is_some() {
        items.push(item(object, own_id("only"))?);
    }
    Ok(items)
}

fn own_id(text: &str) -> ItemId {
    ItemId::new(text).expect("a short word is an id")
}

impl PreviousAttributes {
    fn from_fields(before: &Fields<'_>) -> Result<Self, ReadError> {
        let start = before.time("current_period_start")?;
        let end = before.time("current_period_end")?;
        let mut items = Vec::new();
        for entry in before.list("items")? {
            items.push(PreviousItem::from_fields(&entry)?);
        }
        if items.is_empty() && (before.names("plan") || before.names("quantity")) {
            items.push(PreviousItem::from_fields(before)?);
        }
        for item in &mut items {
            item.period_start = item.period_start.or(start);
            item.period_end = item.period_end.or(end);
        }
        Ok(Self {
            status: before.text("status")?.map(SubscriptionStatus::from),
            cancel_at: before.names("cancel_at").then(|| before.time("cancel_at")).transpose()?,
            cancel_at_period_end: before.flag("cancel_at_period_end")?,
            period_start: start.or_else(|| items.iter().filter_map(|item| item.period_start).max()),
            items: (!items.is_empty()).then_some(items),
        })
    }
}

impl PreviousItem {
    fn from_fields(before: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            id: if before.text("id")?.is_some_and(|id| id.starts_with("si_")) {
                before.id("id")?
            } else {
                None
            },
            price: before.first_id(&PRICE)?,
            quantity: before.count("quantity")?,
            period_start: before.time("current_period_start")?,
            period_end: before.time("current_period_end")?,
        })
    }
}
