//! Stripe's events, read into the few facts that the rules need.
//!
//! **Invariants.** Nothing in here does IO. Reading follows what Stripe's changelog says of both shapes,
//! before and after API version 2025-03-31.basil, and never the version's name. Enumerations are open, null
//! is absent, what we do not use is not looked at. A fact of a shape that Stripe never sent is an error with
//! its path, never "absent".

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
    invoice::{BillingReason, Invoice, InvoiceStatus, Line},
    invoice_payment::InvoicePayment,
    kind::{EventType, Family, UnknownFamily},
    refund::{Refund, RefundStatus},
    subscription::{Item, Previous, PreviousItem, Subscription, SubscriptionStatus},
};
use crate::ids::{CustomerId, EventId, IdError, SessionId, SubscriptionId, UserId};
use crate::timestamp::Timestamp;

/// Why a body is not an event that we can act on. No retry helps: at the edge it is a 400
/// (`malformed_event`), in a worker it is parked.
///
/// No message holds a value from the body, only where it stands.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes are no text.
    #[error("the body is not UTF-8")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// The text is no JSON, is nested too deep, or has a key of the envelope twice.
    #[error("the body is not well-formed JSON")]
    NotJson(#[source] serde_json::Error),
    /// JSON, but a list, text, number or null.
    #[error("the body is JSON, but not an object")]
    NotAnObject,
    /// `object` is `v2.core.event`: the destination is set to thin payloads, and this system reads snapshots.
    #[error(
        "the body is a thin event (v2.core.event): set the event destination's payload style to snapshot"
    )]
    Thin,
    /// The event is under `detail`: it came through EventBridge.
    #[error("the body is an EventBridge envelope: the event is its `detail`, and it has no signature")]
    EventBridge,
    /// `object` is not `event`.
    #[error("the body is a JSON object, but `object` is not `event`")]
    NotAnEvent,
    /// A fact that no rule can do without is not there.
    #[error("{path} is missing")]
    Missing {
        /// Dotted, from the top of the event: `data.object.lines.data[0].amount`.
        path: String,
    },
    /// A fact is there in a shape that Stripe never sent.
    #[error("{path} is not {expected}")]
    Wrong {
        /// Dotted, from the top of the event.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An id is not one.
    #[error("{path} is not an id")]
    Id {
        /// Dotted, from the top of the event.
        path: String,
        /// Which rule it breaks.
        #[source]
        source: IdError,
    },
}

impl ReadError {
    /// The kind of error as one word, for the log and for metrics.
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

/// One event, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `evt_…`; the same on every delivery.
    pub id: EventId,
    /// `type`
    pub kind: EventType,
    /// When Stripe made the event. Whole seconds: two events may share it, and it says nothing of the order
    /// of changes within one.
    pub created: Timestamp,
    /// Whether it is about real money.
    pub livemode: bool,
    /// The connected account it is about (`acct_…`), on Connect endpoints.
    pub account: Option<String>,
    /// The version that rendered the event. For the log: no rule looks at it.
    pub api_version: Option<String>,
    /// What it is about, as it was when the event was made.
    pub object: Object,
}

/// `data.object`, by the family of the event's type.
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
    /// A type that no family handles; the object is not looked at.
    Other,
}

/// Reads a whole event.
///
/// # Errors
/// Those of [`read_head`]; [`ReadError::Missing`], [`ReadError::Wrong`] and [`ReadError::Id`] for a fact
/// inside `data.object`.
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
    /// The user that the metadata of the event's object names, under `user_id` or `client_id`: for an invoice
    /// its subscription's metadata, then its own, then its lines'. A refund, a dispute and an invoice payment
    /// name none: they belong to what their payment paid for.
    ///
    /// An empty text is "not set" (Stripe's way to unset a metadata key), and the next place is looked at.
    ///
    /// # Errors
    /// [`IdError`] when the first text found is no user id: the event is parked, as another place may name
    /// somebody else.
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

    /// The session's `client_reference_id`. A buyer can set it in a Payment Link's address, and affiliate
    /// tools put ids of their own there: the catalog's policy says how far it counts.
    ///
    /// # Errors
    /// [`IdError`] when it is no user id.
    pub fn referenced_user(&self) -> Result<Option<UserId>, IdError> {
        let Object::CheckoutSession(session) = &self.object else { return Ok(None) };
        session.client_reference_id.as_deref().filter(|text| !text.is_empty()).map(UserId::new).transpose()
    }

    /// The customer that the event names; refunds and disputes name none.
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

    /// The subscription that the event is about or names.
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

    /// The checkout session that the event is about.
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

    /// Every id of Stripe's that the event names, the object's own first: what the event log is searched by.
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
