//! Stripe's events, with the fields that the rules need.
//!
//! **Invariants:**
//!
//! - This module does no IO.
//! - The shapes from before and after API version 2025-03-31.basil are both read. The name of the version is
//!   never used.
//! - Enumerations are open, null is absent, and unused fields are skipped.
//! - A field of an unexpected type is an error with its path. It is never treated as absent.

#[macro_use]
mod open_enum;

mod charge;
mod checkout_session;
mod customer;
mod digest;
mod dispute;
mod fields;
mod head;
mod invoice;
mod invoice_payment;
mod json;
mod kind;
mod price;
mod refund;
mod subscription;

use self::fields::Fields;
use self::head::Envelope;
use self::json::Json;
pub use self::json::KeyAs;
pub use self::{
    charge::Charge,
    checkout_session::{CheckoutMode, CheckoutSession, PaymentStatus, SessionStatus, SoldLine},
    customer::Customer,
    digest::content_digest,
    dispute::{Dispute, DisputeStatus},
    fields::{METADATA_KEYS, Metadata},
    head::{Head, read_head},
    invoice::{BillingReason, Invoice, InvoiceLine, InvoiceStatus},
    invoice_payment::InvoicePayment,
    kind::{EventType, Family, UnknownFamily},
    price::Price,
    refund::{Refund, RefundStatus},
    subscription::{PreviousAttributes, PreviousItem, Subscription, SubscriptionItem, SubscriptionStatus},
};
use crate::ids::{CustomerId, EventId, IdError, SessionId, SubscriptionId, UserId};
use crate::timestamp::Timestamp;

/// The API version that tallyhook asks Stripe for: for the answers to its calls, and for the events of a
/// webhook endpoint that it creates. Events of every other version are read too.
pub const API_VERSION: &str = "2025-09-30.clover";

/// The date of the newest API version that Stripe documents and whose shapes the tests cover. Events of a
/// newer version are read as far as their fields have the known paths, and the operator is alerted once.
pub const NEWEST_KNOWN_VERSION: &str = "2026-10-28";

/// Why a body is not a readable event. A retry does not help: the webhook answers 400 (`malformed_event`),
/// and a worker parks the event.
///
/// Messages hold the path of a value, never the value.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// The text is not JSON, is nested too deeply, or has a duplicate key in the envelope.
    #[error("the body is not well-formed JSON")]
    NotJson(#[source] serde_json::Error),
    /// The JSON is a list, a text, a number, a boolean or null.
    #[error("the body is JSON, but not an object")]
    NotAnObject,
    /// `object` is `v2.core.event`: the event destination sends thin events. Only snapshot events are read.
    #[error(
        "the body is a thin event (v2.core.event): set the event destination's payload style to snapshot"
    )]
    Thin,
    /// The event is under `detail`: it was sent through EventBridge.
    #[error("the body is an EventBridge envelope: the event is its `detail`, and it has no signature")]
    EventBridge,
    /// `object` is not `event`.
    #[error("the body is a JSON object, but `object` is not `event`")]
    NotAnEvent,
    /// A required field is missing.
    #[error("{path} is missing")]
    Missing {
        /// Dotted path from the top of the event: `data.object.lines.data[0].amount`.
        path: String,
    },
    /// A field has an unexpected type.
    #[error("{path} is not {expected}")]
    Wrong {
        /// Dotted path from the top of the event.
        path: String,
        /// The expected type or value.
        expected: &'static str,
    },
    /// An id is invalid.
    #[error("{path} is not an id")]
    Id {
        /// Dotted path from the top of the event.
        path: String,
        /// The rule that it breaks.
        #[source]
        source: IdError,
    },
}

impl ReadError {
    /// The kind of error, for the log and for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotUtf8(_) => "not_utf8",
            Self::NotJson(_) => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::Thin => "thin_event",
            Self::EventBridge => "eventbridge_envelope",
            Self::NotAnEvent => "not_an_event",
            Self::Missing { .. } => "missing",
            Self::Wrong { .. } => "wrong_shape",
            Self::Id { .. } => "bad_id",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `evt_…`; the same on every delivery.
    pub id: EventId,
    /// `type`
    pub kind: EventType,
    /// When Stripe created the event, in whole seconds. Two events may have the same time, so it does not
    /// give the order of changes within a second.
    pub created: Timestamp,
    /// Whether it is a live event.
    pub livemode: bool,
    /// The connected account (`acct_…`), on Connect endpoints.
    pub account: Option<String>,
    /// The account of the event (`acct_…`, or a path of ids joined by `/`), if an organization receives it.
    pub context: Option<String>,
    /// The API version that rendered the event. Only for the log: no rule uses it.
    pub api_version: Option<String>,
    /// The object, as it was when the event was created.
    pub object: Object,
}

/// `data.object`, by the event's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `checkout.session.*`
    CheckoutSession(CheckoutSession),
    /// `customer.subscription.*`
    Subscription(Subscription),
    /// `invoice.paid`, `invoice.payment_failed`, `invoice.payment_action_required`
    Invoice(Invoice),
    /// `invoice_payment.paid`
    InvoicePayment(InvoicePayment),
    /// `charge.refunded`
    Charge(Charge),
    /// `refund.*`
    Refund(Refund),
    /// `charge.dispute.*`
    Dispute(Dispute),
    /// `customer.deleted`
    Customer(Customer),
    /// The object of a type without a family. It is not read.
    Other,
}

/// Reads a whole event.
///
/// # Errors
/// The errors of [`read_head`], and [`ReadError::Missing`], [`ReadError::Wrong`] and [`ReadError::Id`] for a
/// field of `data.object`.
pub fn read(payload: &[u8]) -> Result<Event, ReadError> {
    let envelope: Envelope<'_, Json<'_>> = Envelope::read(payload)?;
    let part = |name| envelope.data.get(name).filter(|part| part.is_object());
    let object = part("object");
    let head = envelope.head(object.is_some())?;
    let before = part("previous_attributes").map(|before| Fields::new("data.previous_attributes", before));
    let text = |path, value: &Json<'_>| match value.some() {
        None => Ok(None),
        Some(value) => value
            .text()
            .map(|text| Some(text.to_owned()))
            .ok_or_else(|| ReadError::Wrong { path: String::from(path), expected: "a text" }),
    };
    Ok(Event {
        account: text("account", &envelope.account)?,
        context: text("context", &envelope.context)?,
        api_version: text("api_version", &envelope.api_version)?,
        object: Object::read(&head.kind, object.unwrap_or(&Json::Null), before.as_ref())?,
        id: head.id,
        kind: head.kind,
        created: head.created,
        livemode: head.livemode,
    })
}

impl Object {
    fn read<'a>(
        kind: &EventType,
        object: &'a Json<'a>,
        before: Option<&Fields<'_>>,
    ) -> Result<Self, ReadError> {
        let object = Fields::new("data.object", object);
        let expect = |name: &'static str| match object.text("object")? {
            Some(other) if other != name => {
                Err(ReadError::Wrong { path: "data.object.object".to_owned(), expected: name })
            }
            _ => Ok(()),
        };
        let Some(family) = kind.family() else { return Ok(Self::Other) };
        match family {
            Family::CheckoutSession => {
                expect("checkout.session")?;
                CheckoutSession::from_fields(&object).map(Self::CheckoutSession)
            }
            Family::CustomerSubscription => {
                expect("subscription")?;
                Subscription::from_fields(&object, before).map(Self::Subscription)
            }
            Family::InvoicePaid if *kind == EventType::InvoicePaymentPaid => {
                expect("invoice_payment")?;
                InvoicePayment::from_fields(&object).map(Self::InvoicePayment)
            }
            Family::InvoicePaid | Family::InvoicePaymentFailed => {
                expect("invoice")?;
                Invoice::from_fields(&object).map(Self::Invoice)
            }
            Family::Refund if *kind == EventType::ChargeRefunded => {
                expect("charge")?;
                Charge::from_fields(&object).map(Self::Charge)
            }
            Family::Refund => {
                expect("refund")?;
                Refund::from_fields(&object).map(Self::Refund)
            }
            Family::ChargeDispute => {
                expect("dispute")?;
                Dispute::from_fields(&object).map(Self::Dispute)
            }
            Family::Customer => {
                expect("customer")?;
                Customer::from_fields(&object).map(Self::Customer)
            }
        }
    }
}

impl Event {
    /// The event's API version, if it is newer than [`NEWEST_KNOWN_VERSION`] or does not begin with a date.
    pub fn unknown_version(&self) -> Option<&str> {
        let version = self.api_version.as_deref()?;
        let is_date = |date: &str| {
            date.bytes().enumerate().all(|(place, byte)| match place {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            })
        };
        let is_known = version
            .get(..NEWEST_KNOWN_VERSION.len())
            .is_some_and(|date| is_date(date) && date <= NEWEST_KNOWN_VERSION);
        (!is_known).then_some(version)
    }

    /// The user in the metadata of the event's object, under `user_id` or `client_id`. For an invoice: the
    /// subscription's metadata, then the invoice's own, then its lines'. Charges, refunds, disputes and
    /// invoice payments name no user: they belong to the document of their payment.
    ///
    /// An empty text counts as absent, because Stripe unsets a metadata key with it. The next place is then
    /// used.
    ///
    /// # Errors
    /// [`IdError`] when the first text found is not a valid user id. The event is then parked, because the
    /// next place may name another user.
    pub fn named_user(&self) -> Result<Option<UserId>, IdError> {
        let mut places: Vec<&Metadata> = Vec::new();
        match &self.object {
            Object::CheckoutSession(session) => places.push(&session.metadata),
            Object::Subscription(subscription) => places.push(&subscription.metadata),
            Object::Invoice(invoice) => {
                places.push(&invoice.subscription_metadata);
                places.push(&invoice.metadata);
                places.extend(invoice.lines.iter().map(|line| &line.metadata));
            }
            Object::Customer(customer) => places.push(&customer.metadata),
            Object::InvoicePayment(_)
            | Object::Charge(_)
            | Object::Refund(_)
            | Object::Dispute(_)
            | Object::Other => {}
        }
        places
            .into_iter()
            .flat_map(|place| [place.get("user_id"), place.get("client_id")])
            .flatten()
            .find(|text| !text.is_empty())
            .map(|text| UserId::new(text.as_str()))
            .transpose()
    }

    /// The session's `client_reference_id`. A buyer can set it in the URL of a Payment Link, and affiliate
    /// tools put their own ids there. The catalog's policy decides whether it counts.
    ///
    /// # Errors
    /// [`IdError`] when it is not a valid user id.
    pub fn referenced_user(&self) -> Result<Option<UserId>, IdError> {
        let Object::CheckoutSession(session) = &self.object else { return Ok(None) };
        session.client_reference_id.as_deref().filter(|text| !text.is_empty()).map(UserId::new).transpose()
    }

    /// The customer of the event's object. Events about refunds and disputes usually have none.
    pub fn customer(&self) -> Option<&CustomerId> {
        match &self.object {
            Object::CheckoutSession(session) => session.customer.as_ref(),
            Object::Subscription(subscription) => subscription.customer.as_ref(),
            Object::Invoice(invoice) => invoice.customer.as_ref(),
            Object::Charge(charge) => charge.customer.as_ref(),
            Object::Customer(customer) => Some(&customer.id),
            Object::Refund(refund) => refund.customer.as_ref(),
            Object::Dispute(dispute) => dispute.customer.as_ref(),
            Object::InvoicePayment(_) | Object::Other => None,
        }
    }

    /// The subscription of the event's object.
    pub fn subscription_id(&self) -> Option<&SubscriptionId> {
        match &self.object {
            Object::CheckoutSession(session) => session.subscription.as_ref(),
            Object::Subscription(subscription) => Some(&subscription.id),
            Object::Invoice(invoice) => invoice.subscription.as_ref(),
            Object::InvoicePayment(_)
            | Object::Charge(_)
            | Object::Refund(_)
            | Object::Dispute(_)
            | Object::Customer(_)
            | Object::Other => None,
        }
    }

    /// The prices of its items or lines.
    pub fn prices(&self) -> Vec<&Price> {
        match &self.object {
            Object::CheckoutSession(session) => {
                session.line_items.iter().flatten().map(|line| &line.price).collect()
            }
            Object::Subscription(subscription) => subscription.items.iter().map(|item| &item.price).collect(),
            Object::Invoice(invoice) => invoice.lines.iter().filter_map(|line| line.price.as_ref()).collect(),
            Object::InvoicePayment(_)
            | Object::Charge(_)
            | Object::Refund(_)
            | Object::Dispute(_)
            | Object::Customer(_)
            | Object::Other => Vec::new(),
        }
    }

    /// Whether its object is on one of Stripe's test clocks.
    pub fn is_on_test_clock(&self) -> bool {
        match &self.object {
            Object::Subscription(subscription) => subscription.on_test_clock,
            Object::Invoice(invoice) => invoice.on_test_clock,
            Object::CheckoutSession(_)
            | Object::InvoicePayment(_)
            | Object::Charge(_)
            | Object::Refund(_)
            | Object::Dispute(_)
            | Object::Customer(_)
            | Object::Other => false,
        }
    }

    /// The id of the event's checkout session.
    pub fn checkout_session_id(&self) -> Option<&SessionId> {
        match &self.object {
            Object::CheckoutSession(session) => Some(&session.id),
            Object::Subscription(_)
            | Object::Invoice(_)
            | Object::InvoicePayment(_)
            | Object::Charge(_)
            | Object::Refund(_)
            | Object::Dispute(_)
            | Object::Customer(_)
            | Object::Other => None,
        }
    }

    /// All ids of Stripe objects in the event, the object's own first. The event log stores them.
    pub fn object_ids(&self) -> Vec<&str> {
        fn all<'a>(own: &'a str, named: &[Option<&'a str>]) -> Vec<&'a str> {
            std::iter::once(own).chain(named.iter().copied().flatten()).collect()
        }
        fn text<T: AsRef<str>>(id: &Option<T>) -> Option<&str> {
            id.as_ref().map(AsRef::as_ref)
        }
        match &self.object {
            Object::CheckoutSession(it) => all(
                it.id.as_str(),
                &[text(&it.customer), text(&it.subscription), text(&it.payment_intent), text(&it.invoice)],
            ),
            Object::Subscription(it) => all(it.id.as_str(), &[text(&it.customer), text(&it.latest_invoice)]),
            Object::Invoice(it) => all(
                it.id.as_str(),
                &[text(&it.customer), text(&it.subscription), text(&it.payment_intent), text(&it.charge)],
            ),
            Object::InvoicePayment(it) => {
                all(it.invoice.as_str(), &[text(&it.payment_intent), text(&it.charge)])
            }
            Object::Charge(it) => {
                all(it.id.as_str(), &[text(&it.customer), text(&it.payment_intent), text(&it.invoice)])
            }
            Object::Refund(it) => all(it.id.as_str(), &[text(&it.charge), text(&it.payment_intent)]),
            Object::Dispute(it) => all(it.id.as_str(), &[text(&it.charge), text(&it.payment_intent)]),
            Object::Customer(it) => all(it.id.as_str(), &[]),
            Object::Other => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
