//! What an event means: from the event to facts, from the facts to the one change that is written.
//!
//! ```text
//! Event ── decide/<family>.rs ──► Vec<Fact> ── Account::evolve ──► Change (next state, ledger entries)
//! ```
//! **Invariant:** a family's file only translates; it never looks at what arrived before. What a fact does to
//! an account that knows other facts stands in one place, `account.rs`.

mod charge_dispute;
mod checkout_session;
mod customer;
mod customer_subscription;
mod invoice_paid;
mod invoice_payment_failed;
mod offer;
mod refund;
#[cfg(test)]
pub(super) mod tests;

use super::account::{Account, Cause, Change, Conflict, Fact};
use super::catalog::Catalog;
use super::ids::{ChargeId, CustomerId, PaymentIntentId, PriceId, SessionId};
use super::ledger::LedgerKey;
use super::timestamp::Timestamp;
use crate::event::{Event, Object};

/// What to do about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Write this change, the event's marker and the items beside it, in one transaction.
    Apply(Box<Applied>),
    /// The event is none of our business; it is recorded as `ignored`.
    Ignore(Ignored),
    /// A person or a later fact is needed; it is recorded as `parked` and alerted. No retry can help.
    Park(Parked),
}

/// A change and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The account's change.
    pub change: Change,
    /// Customers that this event binds to the user for the first time.
    pub links: Vec<CustomerId>,
    /// Payments that this event ties to a grant, so that a refund or a dispute that names only the payment
    /// finds it.
    pub payments: Vec<(PaymentRef, LedgerKey)>,
    /// A one-time order that was paid and is not in the ledger yet.
    pub order: Option<Order>,
    /// Why nothing was granted, where that needs saying.
    pub effect: Effect,
}

/// What an applied event did, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The account knows something new.
    Updated,
    /// The session or invoice is not paid (yet): nothing was granted.
    NotPaid,
    /// The event is of a routed type and says nothing that the rules use.
    Nothing,
}

impl Effect {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updated => "updated",
            Self::NotPaid => "not_paid",
            Self::Nothing => "no_effect",
        }
    }
}

/// How a refund or a dispute names the payment it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PaymentRef {
    /// `pi_…`
    Intent(PaymentIntentId),
    /// `ch_…` or `py_…`
    Charge(ChargeId),
}

impl PaymentRef {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Intent(id) => id.as_str(),
            Self::Charge(id) => id.as_str(),
        }
    }
}

/// A paid one-time order, as it is first written; the app moves it on from `NEW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The session that paid it; also its id.
    pub session: SessionId,
    /// The order kind (`metadata.mode`).
    pub mode: String,
    /// Plan name in capitals.
    pub tier: String,
    /// When the work is due.
    pub deadline: Timestamp,
    /// Revisions the customer has left.
    pub revisions_left: u32,
    /// Where the customer can be written to; personal data.
    pub customer_email: Option<String>,
    /// What was paid, in the currency's minor units.
    pub amount_total: i64,
    /// ISO code, lower case.
    pub currency: String,
    /// `metadata.upgraded_from`.
    pub upgraded_from: Option<String>,
    /// When it was paid.
    pub created_at: Timestamp,
}

/// Why an event was set aside for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// No family handles the type.
    Type,
    /// A test event in a live deployment, or the reverse.
    Livemode,
    /// An event of a connected account.
    Account,
}

impl Ignored {
    /// The word in the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Livemode => "livemode",
            Self::Account => "account",
        }
    }
}

/// Why an event waits for a person or for a later fact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Parked {
    /// Nothing in the event says whose it is, and its customer is bound to no user.
    #[error("no user is known for customer {}", .0.as_ref().map_or("(none)", CustomerId::as_str))]
    NoUser(Option<CustomerId>),
    /// The user id that the app gave is empty, longer than 128 characters, or has control characters.
    #[error("the user id in the event is not valid")]
    InvalidUser,
    /// No plan of the catalog sells under this price. Add it to `catalog.toml`.
    #[error("price {0} is not in the catalog")]
    UnknownPrice(PriceId),
    /// `metadata.plan`, `.pack` or `.mode` names something that the catalog does not.
    #[error("{0} \"{1}\" is not in the catalog")]
    UnknownName(&'static str, String),
    /// The session does not say what was bought (no metadata), and Stripe was not asked.
    #[error("the session does not say what was bought: no plan, pack or mode in its metadata")]
    Unnamed,
    /// Stripe sent only the first lines or items, and the plan's is not among them.
    #[error("the list in the event is cut short and the plan is not in what was sent")]
    Truncated,
    /// A quantity or an amount is beyond what the catalog can mean.
    #[error("the quantity {0} is out of range")]
    Quantity(String),
    /// A paid invoice of a subscription has no line that says which period was paid.
    #[error("the invoice has no line with a plan's price and period")]
    NoPeriod,
    /// A refund or dispute of a payment that granted nothing here (yet).
    #[error("no grant is known for payment {0}")]
    NoGrant(String),
    /// The same ledger key, another amount.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The same event id came with another content.
    #[error("this event id was seen before with another content")]
    PayloadMismatch,
    /// The message is not one of ours or holds no event of this queue's family.
    #[error("the message is not an event of this queue: {0}")]
    Message(String),
    /// Verified, but not readable as the event it says it is.
    #[error("the event cannot be read: {0}")]
    Unreadable(String),
}

impl Parked {
    /// The word in the log, in filters and alerts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoUser(_) => "no_user",
            Self::InvalidUser => "invalid_user",
            Self::UnknownPrice(_) => "unknown_price",
            Self::UnknownName(..) => "unknown_name",
            Self::Unnamed => "unnamed_purchase",
            Self::Truncated => "truncated_list",
            Self::Quantity(_) => "quantity",
            Self::NoPeriod => "no_period",
            Self::NoGrant(_) => "no_grant",
            Self::Conflict(_) => "conflict",
            Self::PayloadMismatch => "payload_mismatch",
            Self::Message(_) => "message",
            Self::Unreadable(_) => "unreadable",
        }
    }

    /// What would free it, as the key of those who wait for the same: `customer#cus_…`, `price#price_…`,
    /// `payment#pi_…`.
    pub fn waits_for(&self) -> Option<String> {
        match self {
            Self::NoUser(Some(customer)) => Some(format!("customer#{customer}")),
            Self::UnknownPrice(price) => Some(format!("price#{price}")),
            Self::UnknownName(what, name) => Some(format!("{what}#{name}")),
            Self::NoGrant(payment) => Some(format!("payment#{payment}")),
            Self::NoUser(None)
            | Self::InvalidUser
            | Self::Unnamed
            | Self::Truncated
            | Self::Quantity(_)
            | Self::NoPeriod
            | Self::Conflict(_)
            | Self::PayloadMismatch
            | Self::Message(_)
            | Self::Unreadable(_) => None,
        }
    }
}

/// What a family makes of an event: facts about the account, and what goes beside them.
#[derive(Default)]
struct Reading {
    facts: Vec<Fact>,
    payments: Vec<(PaymentRef, LedgerKey)>,
    order: Option<Order>,
    not_paid: bool,
}

/// Decides what an event does to an account. Pure: the same arguments give the same outcome.
///
/// `account` holds, besides its state, the ledger entries that [`ledger_keys`] names, as far as they exist;
/// with `payment` the grant that the store knows for the payment of a refund or dispute.
pub fn decide(
    account: &Account,
    event: &Event,
    payment: Option<&LedgerKey>,
    catalog: &Catalog,
    now: Timestamp,
) -> Outcome {
    decide_facts(account, event, payment, catalog, now, |_| true)
}

/// As [`decide`], but only what the event says of who the customer is and how the subscription stands:
/// nothing is granted.
pub fn decide_standing(account: &Account, event: &Event, catalog: &Catalog, now: Timestamp) -> Outcome {
    let standing = |fact: &Fact| match fact {
        Fact::Customer(_) | Fact::CustomerDeleted(..) | Fact::Snapshot(..) => true,
        Fact::Signup
        | Fact::Opening(..)
        | Fact::PlanChange { .. }
        | Fact::AddOn { .. }
        | Fact::Reversal(..)
        | Fact::Recorded(..)
        | Fact::Paid(_)
        | Fact::PaymentFailed(_) => false,
    };
    match decide_facts(account, event, None, catalog, now, standing) {
        Outcome::Apply(applied) => {
            Outcome::Apply(Box::new(Applied { payments: Vec::new(), order: None, ..*applied }))
        }
        other @ (Outcome::Ignore(_) | Outcome::Park(_)) => other,
    }
}

/// Whether an event leaves out what its rule needs and what Stripe's API would tell: what was bought in a
/// session that names nothing, the rest of a list that was cut short before the line that counts.
pub fn leaves_out(event: &Event, catalog: &Catalog) -> bool {
    if event.account.is_some() {
        return false;
    }
    let reading = match &event.object {
        Object::CheckoutSession(session) => checkout_session::read(session, event, catalog),
        Object::Invoice(invoice)
            if invoice.lines_has_more && event.kind == crate::event::EventType::InvoicePaid =>
        {
            invoice_paid::read(invoice, event, catalog)
        }
        Object::Subscription(subscription) if subscription.items_has_more => {
            customer_subscription::read(subscription, event, catalog)
        }
        // Which invoice a payment paid. What our own checkout sold says what it is.
        Object::Charge(charge) => {
            let sold = ["pack", "mode"].iter().any(|name| charge.metadata.contains_key(*name));
            return charge.invoice.is_none()
                && charge.customer.is_some()
                && charge.payment_intent.is_some()
                && !sold;
        }
        Object::Refund(refund) => return refund.invoice.is_none() && refund.payment_intent.is_some(),
        Object::Dispute(dispute) => return dispute.invoice.is_none() && dispute.payment_intent.is_some(),
        Object::Subscription(_) | Object::Invoice(_) | Object::Customer(_) | Object::Other => return false,
    };
    matches!(reading, Err(Parked::Unnamed | Parked::Truncated))
}

fn decide_facts(
    account: &Account,
    event: &Event,
    payment: Option<&LedgerKey>,
    catalog: &Catalog,
    now: Timestamp,
    counts: impl Fn(&Fact) -> bool,
) -> Outcome {
    if event.account.is_some() {
        return Outcome::Ignore(Ignored::Account);
    }
    let reading = match &event.object {
        Object::CheckoutSession(session) => checkout_session::read(session, event, catalog),
        Object::Subscription(subscription) => customer_subscription::read(subscription, event, catalog),
        Object::Invoice(invoice) if event.kind == crate::event::EventType::InvoicePaid => {
            invoice_paid::read(invoice, event, catalog)
        }
        Object::Invoice(invoice) => Ok(invoice_payment_failed::read(invoice, event)),
        Object::Charge(charge) => refund::read_charge(charge, account, payment),
        Object::Refund(refund) => refund::read_refund(refund, event, account, payment),
        Object::Dispute(dispute) => charge_dispute::read(dispute, account, payment),
        Object::Customer(customer) => Ok(customer::read(customer, event)),
        Object::Other => return Outcome::Ignore(Ignored::Type),
    };
    let Reading { mut facts, payments, order, not_paid } = match reading {
        Ok(reading) => reading,
        Err(parked) => return Outcome::Park(parked),
    };
    // An order is made once, with its ledger entry: the app may have moved it on since.
    let order = order.filter(|order| !account.recorded.contains_key(&LedgerKey::session(&order.session)));
    let mut links = Vec::new();
    if let Some(customer) = event.customer() {
        if !account.state.customers.contains_key(customer) {
            links.push(customer.clone());
        }
        facts.insert(0, Fact::Customer(customer.clone()));
    }
    facts.retain(counts);
    let effect = match (not_paid, facts.is_empty()) {
        (true, _) => Effect::NotPaid,
        (false, true) => Effect::Nothing,
        (false, false) => Effect::Updated,
    };
    let cause =
        Cause { by: event.id.to_string(), adjust_key: LedgerKey::adjust(&event.id), created: event.created };
    match account.evolve(facts, &cause, catalog, now) {
        Ok(change) => Outcome::Apply(Box::new(Applied { change, links, payments, order, effect })),
        Err(conflict) => Outcome::Park(Parked::Conflict(conflict)),
    }
}

/// The ledger keys that an event may be booked under, as far as the event alone tells them: what to load
/// before deciding. Several events share one: a dispute's opening comes as `created` and as
/// `funds_withdrawn`.
pub fn ledger_keys(event: &Event) -> Vec<LedgerKey> {
    match &event.object {
        Object::CheckoutSession(session) => vec![LedgerKey::session(&session.id)],
        Object::Subscription(subscription) => customer_subscription::ledger_keys(subscription),
        Object::Invoice(invoice) => invoice_paid::ledger_keys(invoice),
        Object::Charge(charge) => refund::charge_keys(charge),
        Object::Refund(refund) => std::iter::once(refund::key(refund, event))
            .chain(refund.invoice.as_ref().map(LedgerKey::invoice))
            .collect(),
        Object::Dispute(dispute) => std::iter::once(charge_dispute::key(dispute))
            .chain(dispute.invoice.as_ref().map(LedgerKey::invoice))
            .collect(),
        Object::Customer(_) | Object::Other => Vec::new(),
    }
}

/// The payment that a refund or a dispute is about: what to look up before deciding. The payment intent comes
/// first.
pub fn payment_refs(event: &Event) -> Vec<PaymentRef> {
    let (intent, charge) = match &event.object {
        Object::Charge(charge) => (charge.payment_intent.clone(), Some(charge.id.clone())),
        Object::Refund(refund) => (refund.payment_intent.clone(), refund.charge.clone()),
        Object::Dispute(dispute) => (dispute.payment_intent.clone(), dispute.charge.clone()),
        Object::CheckoutSession(_)
        | Object::Subscription(_)
        | Object::Invoice(_)
        | Object::Customer(_)
        | Object::Other => (None, None),
    };
    intent.map(PaymentRef::Intent).into_iter().chain(charge.map(PaymentRef::Charge)).collect()
}
