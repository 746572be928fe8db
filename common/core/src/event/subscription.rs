//! `customer.subscription.*`: the Subscription, in the shapes before and after 2025-03-31.basil.

use super::{Fields, Metadata, ReadError};
use crate::ids::{CustomerId, InvoiceId, ItemId, PriceId, SubscriptionId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `status` of a subscription.
    SubscriptionStatus {
        /// The first payment has not arrived (for at most 23 hours).
        Incomplete = "incomplete",
        /// The first payment never arrived. Terminal.
        IncompleteExpired = "incomplete_expired",
        /// In its trial.
        Trialing = "trialing",
        /// In good standing.
        Active = "active",
        /// A renewal is not paid, Stripe is trying again.
        PastDue = "past_due",
        /// Ended. Terminal.
        Canceled = "canceled",
        /// Stripe gave up trying, and the account's setting keeps the subscription.
        Unpaid = "unpaid",
        /// The trial ended without a payment method. Has nothing to do with `pause_collection`.
        Paused = "paused",
    }
}

/// What the rules need of a Subscription. There is no version and no `updated` in it.
///
/// ```json
/// {"id":"sub_1","object":"subscription","customer":"cus_1","status":"active","cancel_at":null,"cancel_at_period_end":false,
///  "items":{"data":[{"price":{"id":"price_1"},"quantity":1,"current_period_start":1759312800,"current_period_end":1761904800}]}}
/// ```
/// Before basil the period stood on the subscription (`current_period_start`, `_end`); before that `plan` and
/// `quantity` did too. Both are read into the items, so old and new twins are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// `sub_…`
    pub id: SubscriptionId,
    /// Whose it is.
    pub customer: Option<CustomerId>,
    /// Never absent: an event without it is refused.
    pub status: SubscriptionStatus,
    /// What is subscribed to. Under flexible billing the periods may differ.
    pub items: Vec<Item>,
    /// The event holds the first ten items only; the rest is at Stripe.
    pub items_has_more: bool,
    /// Ends then. Cancelling is this **or** `cancel_at_period_end`.
    pub cancel_at: Option<Timestamp>,
    /// Ends with the period.
    pub cancel_at_period_end: bool,
    /// When cancelling was asked for, not when it ends.
    pub canceled_at: Option<Timestamp>,
    /// When it really ended.
    pub ended_at: Option<Timestamp>,
    /// `cancellation_details.reason` is `payment_failed`: Stripe ended it because retries ran out.
    pub ended_unpaid: bool,
    /// With `collection_method: send_invoice`, the days a customer has to pay an invoice.
    pub days_until_due: Option<u64>,
    /// `pause_collection` is set: invoices are made and not collected.
    pub collection_paused: bool,
    /// Begin of the trial, if there was one.
    pub trial_start: Option<Timestamp>,
    /// End of the trial.
    pub trial_end: Option<Timestamp>,
    /// The newest invoice.
    pub latest_invoice: Option<InvoiceId>,
    /// Set only if the checkout set `subscription_data.metadata`.
    pub metadata: Metadata,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// What an update changed; `None` on every other type of event and from the API.
    pub previous: Option<Previous>,
}

/// One item of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// `si_…`; `only` for an event of before 2018 without items, and `item-<n>` for an item without an id.
    pub id: ItemId,
    /// The price's own amount is 0.
    pub is_free: bool,
    /// `price.id`, or `plan.id` in old events.
    pub price: PriceId,
    /// Seats; 1 where Stripe gives none (metered prices).
    pub quantity: u64,
    /// Begin of the running period (included).
    pub period_start: Option<Timestamp>,
    /// End of the running period (excluded).
    pub period_end: Option<Timestamp>,
}

/// `data.previous_attributes` of an update: the values **before** it, and only of what changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// The status before.
    pub status: Option<SubscriptionStatus>,
    /// The items before. Old shape: `plan`, `quantity` of the only item.
    pub items: Option<Vec<PreviousItem>>,
    /// `Some(None)`: it was not set before.
    pub cancel_at: Option<Option<Timestamp>>,
    /// The flag before.
    pub cancel_at_period_end: Option<bool>,
    /// The period's begin before; set when the update is a renewal (or a plan change that moved the period).
    pub period_start: Option<Timestamp>,
}

/// An item before an update; a part that is `None` did not change or was not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousItem {
    /// `si_…`, where the event names it.
    pub id: Option<ItemId>,
    /// The price before.
    pub price: Option<PriceId>,
    /// The quantity before.
    pub quantity: Option<u64>,
    /// The period's begin before.
    pub period_start: Option<Timestamp>,
    /// The period's end before.
    pub period_end: Option<Timestamp>,
}

/// Where the price of an item or a line may be, newest shape first; each may be an id or the expanded object.
const PRICE: [&str; 2] = ["price", "plan"];

impl Subscription {
    /// Reads the object as it is in an answer of the API.
    ///
    /// # Errors
    /// [`ReadError::Missing`] without an id, a status or an item's price; [`ReadError::Wrong`] or
    /// [`ReadError::Id`] for a fact of another shape.
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
            previous: previous.map(Previous::from_fields).transpose()?,
        })
    }

    /// Begin of the running period: the latest of the items', as items may differ. Rules that know the plan's
    /// item use the item's own.
    pub fn period_start(&self) -> Option<Timestamp> {
        self.latest_item().and_then(|item| item.period_start)
    }

    /// End of the period that [`Self::period_start`] begins.
    pub fn period_end(&self) -> Option<Timestamp> {
        self.latest_item().and_then(|item| item.period_end)
    }

    fn latest_item(&self) -> Option<&Item> {
        self.items.iter().max_by_key(|item| (item.period_start, item.period_end))
    }
}

/// The items; a subscription without a list (before 2018) is its own only item.
fn items(object: &Fields<'_>) -> Result<Vec<Item>, ReadError> {
    let start = object.time("current_period_start")?;
    let end = object.time("current_period_end")?;
    let item = |item: &Fields<'_>, id: ItemId, price: PriceId| -> Result<Item, ReadError> {
        Ok(Item {
            id,
            is_free: super::invoice::is_free(item)?,
            price,
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
        items.push(item(&entry, id, entry.need("price", entry.first_id(&PRICE)?)?)?);
    }
    if items.is_empty()
        && let Some(plan) = object.id("plan")?
    {
        items.push(item(object, own_id("only"), plan)?);
    }
    Ok(items)
}

fn own_id(text: &str) -> ItemId {
    ItemId::new(text).expect("a short word is an id")
}

impl Previous {
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
