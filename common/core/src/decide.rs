//! Decides what an event changes: reads facts from the event, and computes one change from the facts.
//!
//! ```text
//! Event ── decide/<family>.rs ──► Vec<Fact> ── Account::evolve ──► Change (next state, ledger entries)
//! ```
//! **Invariant:** a family's file only translates an event into facts, without the account's earlier facts.
//! Only `account.rs` combines facts.

mod charge_dispute;
mod checkout_session;
mod customer;
mod customer_subscription;
pub mod foreign;
mod invoice_paid;
mod invoice_payment_failed;
pub mod owner;
mod refund;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;

use crate::account::products::MAX_PRODUCTS;
use crate::account::{Account, Cause, Change, Conflict, Fact, Reversed};
use crate::catalog::{Catalog, Offer};
use crate::event::{Event, EventType, Invoice, Object, Price};
use crate::ids::{
    ChargeId, CustomerId, InvoiceId, PaymentIntentId, PriceId, SessionId, SubscriptionId, UserId,
};
use crate::ledger::{Entry, EntryKind, LedgerKey, Note};
use crate::reversal::{PaymentRecord, ReversalEvent};
use crate::timestamp::Timestamp;

/// What to do about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Write this change, the event's marker and the items beside it, in one transaction.
    Apply(Box<Applied>),
    /// The event has no effect on any account. It is recorded as `ignored`.
    Ignore(Ignored),
    /// An operator or a later event is needed. The event is recorded as `parked` and alerted. A retry alone
    /// does not help.
    Park(Parked),
    /// A payment paid an invoice without a known owner. The link is stored without an account.
    Tie,
}

/// A change and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The account's change.
    pub change: Change,
    /// Customers that this event links to the user for the first time.
    pub links: Vec<CustomerId>,
    /// Subscriptions that this event links to the user for the first time.
    pub subscriptions: Vec<SubscriptionId>,
    /// The payments that the event names or links to its document, after the event.
    pub payments: BTreeMap<String, PaymentRecord>,
    /// A one-time order that was paid and is not in the ledger yet.
    pub order: Option<Order>,
    /// The payment of an order that is already in the ledger.
    pub order_payment: Option<OrderPayment>,
    /// What the event did, for the log.
    pub effect: Effect,
    /// Prices in the event that have left the catalog and count as they did before.
    pub prices_not_in_catalog: Vec<PriceId>,
}

/// The payment of an order after a refund or a dispute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderPayment {
    /// The order.
    pub session: SessionId,
    /// The whole payment is refunded.
    pub refunded: bool,
    /// A dispute of it is open or lost.
    pub disputed: bool,
}

impl OrderPayment {
    fn new(session: &SessionId, total: i64, payment: &PaymentRecord) -> Self {
        Self {
            session: session.clone(),
            refunded: total > 0 && payment.reversal.refunded() >= total,
            disputed: payment.reversal.is_disputed(),
        }
    }
}

/// What an applied event did, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The account has new facts.
    Updated,
    /// The session or invoice is not paid (yet): nothing was granted.
    NotPaid,
    /// The event has no facts that the rules use.
    Nothing,
    /// The invoice is paid, and none of its lines is of a plan or pack of the catalog.
    NoKnownLine,
    /// The document's period is over, or another document granted it.
    Superseded,
    /// The invoice charges a plan change that counts already, or waits for a snapshot or for its period.
    NothingYet,
    /// Another document of the same purchase granted.
    OnePurchase,
    /// A price has left the catalog: it counts as it did before.
    PriceNotInCatalog,
    /// The session does not say how many were sold, and 1 was assumed.
    QuantityAssumed,
    /// A line bills a part of a period of a pack that is sold by subscription: it granted nothing.
    PackProrated,
}

impl Effect {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updated => "updated",
            Self::NotPaid => "not_paid",
            Self::Nothing => "no_effect",
            Self::NoKnownLine => "no_known_line",
            Self::Superseded => "superseded",
            Self::NothingYet => "nothing_yet",
            Self::OnePurchase => "one_purchase",
            Self::PriceNotInCatalog => "price_not_in_catalog",
            Self::QuantityAssumed => "quantity_assumed",
            Self::PackProrated => "pack_prorated",
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

/// A paid one-time order, as it is first written. The app changes its status from `NEW` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The session that paid it; also its id.
    pub session: SessionId,
    /// The order kind (`metadata.mode`).
    pub mode: String,
    /// Plan name in capitals.
    pub tier: String,
    /// Stripe's customer; `None` for a guest.
    pub customer: Option<CustomerId>,
    /// When the work is due; absent unless the catalog gives `deadline_days`.
    pub deadline: Option<Timestamp>,
    /// Revisions the customer has left.
    pub revisions_left: u32,
    /// The address of the customer; personal data.
    pub customer_email: Option<String>,
    /// The paid amount, in minor units of the currency.
    pub amount_total: i64,
    /// ISO code, lower case.
    pub currency: String,
    /// `metadata.upgraded_from`.
    pub upgraded_from: Option<String>,
    /// When it was paid.
    pub created_at: Timestamp,
}

/// Why an event is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// No family handles the type.
    Type,
    /// A test event in a live deployment, or the reverse.
    Livemode,
    /// An event of a connected account.
    Account,
    /// An event of another account, which the endpoint of an organization received.
    Context,
    /// An event of another product on the same Stripe account, by a rule of the catalog.
    Foreign,
}

impl Ignored {
    /// The word in the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Livemode => "livemode",
            Self::Account => "account",
            Self::Context => "context",
            Self::Foreign => "foreign",
        }
    }
}

/// Why an event waits for an operator or for a later fact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Parked {
    /// The event names no user, and its customer is not linked to a user.
    #[error("no user is known for customer {}", .0.as_ref().map_or("(none)", CustomerId::as_str))]
    NoUser(Option<CustomerId>),
    /// The user id that the app gave is empty, longer than 128 characters, or has control characters.
    #[error("the user id in the event is not valid")]
    InvalidUser,
    /// Metadata names another user than the subscription's stored owner. Move the subscription, or dismiss
    /// the event.
    #[error("the subscription belongs to user {0}, and the event names user {1}")]
    OwnerConflict(UserId, UserId),
    /// `client_reference_id` names a user that does not exist, and the policy asks for one.
    #[error("client_reference_id names user {0}, who does not exist")]
    UnknownReference(UserId),
    /// The customer pays for several users, and the event names none of them.
    #[error("customer {0} pays for several users, and the event names none")]
    SharedCustomer(CustomerId),
    /// No catalog is stored yet, so it is not known what was sold.
    #[error("no catalog is stored")]
    NoCatalog,
    /// The price is not in the catalog. Add it to `catalog.toml`. Holds also the subscription that the
    /// invoice bills: once its plan is known, the event is not parked any more.
    #[error("price {0} is not in the catalog")]
    UnknownPrice(PriceId, Option<SubscriptionId>),
    /// The catalog names the price twice: by its id, its lookup key or its Stripe product. Holds the two
    /// names.
    #[error("price {0} is {1} and {2} in the catalog")]
    AmbiguousPrice(PriceId, String, String),
    /// `metadata.plan`, `.pack` or `.mode` has a name that is not in the catalog.
    #[error("{0} \"{1}\" is not in the catalog")]
    UnknownName(&'static str, String),
    /// The session does not say what was bought (no metadata), and Stripe was not asked.
    #[error("the session does not say what was bought: no plan, pack or mode in its metadata")]
    Unnamed,
    /// Stripe sent only the first lines or items, and was not asked for the rest.
    #[error("the list of lines or items in the event is cut short")]
    LinesMissing,
    /// The account would have more subscription items than it can hold.
    #[error("the account would have more than 50 subscription items, or too many changes of them")]
    TooManyItems,
    /// The account would have more products than it can hold.
    #[error("the account would have more than 200 products")]
    TooManyProducts,
    /// A quantity or an amount is above the maximum.
    #[error("the quantity {0} is out of range")]
    Quantity(String),
    /// A paid invoice of a subscription has no line that says which period was paid.
    #[error("the invoice has no line with a plan's price and period")]
    NoPeriod,
    /// A refund or dispute of a payment that granted nothing here (yet).
    #[error("no grant is known for payment {0}")]
    NoGrant(String),
    /// A document has another content than when its ledger key was booked.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The same event id arrived with another content.
    #[error("this event id was seen before with another content")]
    PayloadMismatch,
    /// The message is not one of ours or holds no event of this queue's family.
    #[error("the message is not an event of this queue: {0}")]
    Message(String),
    /// The event is verified, but cannot be read.
    #[error("the event cannot be read: {0}")]
    Unreadable(String),
}

impl Parked {
    /// Its name in the log, in filters and alerts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoUser(_) => "no_user",
            Self::InvalidUser => "invalid_user",
            Self::OwnerConflict(..) => "owner_conflict",
            Self::UnknownReference(_) => "unknown_reference",
            Self::SharedCustomer(_) => "shared_customer",
            Self::NoCatalog => "no_catalog",
            Self::UnknownPrice(..) => "unknown_price",
            Self::AmbiguousPrice(..) => "ambiguous_price",
            Self::UnknownName(..) => "unknown_name",
            Self::Unnamed => "unnamed_purchase",
            Self::LinesMissing => "lines_missing",
            Self::TooManyItems => "too_many_items",
            Self::TooManyProducts => "too_many_products",
            Self::Quantity(_) => "quantity",
            Self::NoPeriod => "no_period",
            Self::NoGrant(_) => "no_grant",
            Self::Conflict(_) => "conflict",
            Self::PayloadMismatch => "payload_mismatch",
            Self::Message(_) => "message",
            Self::Unreadable(_) => "unreadable",
        }
    }

    /// Whether the catalog does not say, or says twice, what the event sells.
    fn is_about_the_catalog(&self) -> bool {
        matches!(self, Self::UnknownPrice(..) | Self::AmbiguousPrice(..) | Self::UnknownName(..))
    }

    /// The key of what it waits for: `customer#cus_…`, `price#price_…`, `payment#pi_…`. Events that wait for
    /// the same have the same key.
    pub fn waits_for(&self) -> Option<String> {
        match self {
            Self::NoUser(Some(customer)) => Some(format!("customer#{customer}")),
            Self::UnknownReference(user) => Some(format!("user#{user}")),
            Self::NoCatalog => Some("catalog#any".to_owned()),
            Self::UnknownPrice(price, _) | Self::AmbiguousPrice(price, ..) => Some(format!("price#{price}")),
            Self::UnknownName(what, name) => Some(format!("{what}#{name}")),
            Self::NoGrant(payment) => Some(format!("payment#{payment}")),
            Self::NoUser(None)
            | Self::InvalidUser
            | Self::Unnamed
            | Self::OwnerConflict(..)
            | Self::SharedCustomer(_)
            | Self::LinesMissing
            | Self::TooManyItems
            | Self::TooManyProducts
            | Self::Quantity(_)
            | Self::NoPeriod
            | Self::Conflict(_)
            | Self::PayloadMismatch
            | Self::Message(_)
            | Self::Unreadable(_) => None,
        }
    }
}

/// What the catalog sells for a price.
fn offer<'a>(price: &Price, catalog: &'a Catalog) -> Result<Option<Offer<'a>>, Parked> {
    catalog
        .offer(price.id.as_str(), price.lookup_key.as_deref(), price.product.as_deref())
        .map_err(|(one, other)| Parked::AmbiguousPrice(price.id.clone(), one.to_string(), other.to_string()))
}

/// What a family's file reads from an event: facts about the account, and more.
#[derive(Default)]
struct EventFacts {
    facts: Vec<Fact>,
    order: Option<Order>,
    not_paid: bool,
    prices_not_in_catalog: Vec<PriceId>,
    quantity_assumed: bool,
    pack_prorated: bool,
}

/// Known payments, by id.
pub type Payments = BTreeMap<String, PaymentRecord>;

/// Decides what an event does to an account. The same arguments give the same outcome.
///
/// `account` holds its state and the existing ledger entries of [`ledger_keys`]. `payments` holds the known
/// payments of [`payment_refs`], and the payments that are linked to the event's invoice.
pub fn decide(
    account: &Account,
    event: &Event,
    payments: &Payments,
    catalog: &Catalog,
    now: Timestamp,
) -> Outcome {
    decide_facts(account, event, payments, catalog, now, Some)
}

/// The state that the documents from before `as_of` make alone, for
/// [`crate::account::import::ImportedBalance`].
pub fn state_of_documents(
    user: &UserId,
    events: &[Event],
    as_of: Timestamp,
    catalog: &Catalog,
    now: Timestamp,
) -> crate::account::State {
    let mut account = Account::new(user.clone());
    for event in events.iter().filter(|event| event.created < as_of) {
        if let Outcome::Apply(applied) = decide(&account, event, &Payments::new(), catalog, now) {
            account = account.after(&applied.change);
        }
    }
    account.state
}

/// Like [`decide`], but uses only the customer and the state of the subscription. It grants nothing.
pub fn decide_status(account: &Account, event: &Event, catalog: &Catalog, now: Timestamp) -> Outcome {
    let status_facts = |fact: Fact| match fact {
        Fact::Customer(_) | Fact::CustomerDeleted(..) | Fact::Status(..) => Some(fact),
        Fact::Snapshot(id, customer, snapshot) => Some(Fact::Status(id, customer, snapshot)),
        Fact::Signup
        | Fact::Invoice(_)
        | Fact::Purchase(..)
        | Fact::Product(_)
        | Fact::PaymentOfInvoice(..)
        | Fact::Reversed(_)
        | Fact::Won(..)
        | Fact::Recorded(..)
        | Fact::Paid(_)
        | Fact::PaymentFailed(_)
        | Fact::ActionRequired(_)
        | Fact::ActionDone(_)
        | Fact::Imported(_)
        | Fact::Erased(_) => None,
        Fact::Clock(_) => Some(fact),
    };
    match decide_facts(account, event, &Payments::new(), catalog, now, status_facts) {
        Outcome::Apply(applied) => {
            Outcome::Apply(Box::new(Applied { payments: Payments::new(), order: None, ..*applied }))
        }
        other @ (Outcome::Ignore(_) | Outcome::Park(_) | Outcome::Tie) => other,
    }
}

/// Why an event of a connected account, or of another account of an organization, is ignored: its ids belong
/// to that account.
pub fn of_another_account(event: &Event) -> Option<Ignored> {
    if event.account.is_some() {
        return Some(Ignored::Account);
    }
    event.context.is_some().then_some(Ignored::Context)
}

/// Whether an event lacks something that its rule needs and that Stripe's API has: what a session sold, the
/// rest of a truncated list, the invoice that a refunded payment paid.
pub fn leaves_out(event: &Event) -> bool {
    if of_another_account(event).is_some() {
        return false;
    }
    match &event.object {
        Object::CheckoutSession(session) => checkout_session::leaves_out(session),
        Object::Invoice(invoice) => invoice.lines_has_more && event.kind == EventType::InvoicePaid,
        Object::Subscription(subscription) => subscription.items_has_more,
        // Our own checkout names the purchase in the metadata, so no request is needed.
        Object::Charge(charge) => {
            let sold = ["pack", "product", "mode"].iter().any(|name| charge.metadata.contains_key(*name));
            charge.invoice.is_none() && charge.customer.is_some() && charge.payment_intent.is_some() && !sold
        }
        Object::Refund(refund) => refund.invoice.is_none() && refund.payment_intent.is_some(),
        Object::Dispute(dispute) => dispute.invoice.is_none() && dispute.payment_intent.is_some(),
        Object::InvoicePayment(_) | Object::Customer(_) | Object::Other => false,
    }
}

fn decide_facts(
    account: &Account,
    event: &Event,
    payments: &Payments,
    catalog: &Catalog,
    now: Timestamp,
    counts: impl Fn(Fact) -> Option<Fact>,
) -> Outcome {
    if let Some(ignored) = of_another_account(event) {
        return Outcome::Ignore(ignored);
    }
    let may_sell =
        matches!(event.object, Object::CheckoutSession(_) | Object::Subscription(_) | Object::Invoice(_));
    if catalog.is_absent() && may_sell {
        return Outcome::Park(Parked::NoCatalog);
    }
    let event_facts = match &event.object {
        Object::CheckoutSession(session) => checkout_session::read(session, event, payments, catalog),
        Object::Subscription(subscription) => {
            customer_subscription::read(subscription, event, account, catalog)
        }
        Object::Invoice(invoice) if event.kind == EventType::InvoicePaid => {
            invoice_paid::read(invoice, event, account, catalog)
        }
        Object::Invoice(invoice) => Ok(invoice_payment_failed::read(invoice, event, account)),
        Object::InvoicePayment(_) | Object::Charge(_) | Object::Refund(_) | Object::Dispute(_) => {
            Ok(EventFacts::default())
        }
        Object::Customer(customer) => Ok(customer::read(customer, event)),
        Object::Other => return Outcome::Ignore(Ignored::Type),
    };
    let event_facts = match event_facts {
        Ok(event_facts) => event_facts,
        Err(parked) if parked.is_about_the_catalog() && is_recorded(account, event) => EventFacts::default(),
        Err(parked) => return Outcome::Park(parked),
    };
    let EventFacts { mut facts, order, not_paid, prices_not_in_catalog, quantity_assumed, pack_prorated } =
        event_facts;
    let sells = facts.iter().any(Fact::sells);
    let mut payment_facts = PaymentFacts { sells, ..PaymentFacts::default() };
    if let Err(parked) = payment_facts.read(account, event, payments, not_paid) {
        return Outcome::Park(parked);
    }
    facts.extend(payment_facts.facts);
    if let Object::Invoice(invoice) = &event.object
        && event.kind == EventType::InvoicePaid
        && !not_paid
        && account.state.actions.iter().any(|action| action.invoice == invoice.id)
    {
        facts.push(Fact::ActionDone(invoice.id.clone()));
    }
    // A refund of an order may be known before the order.
    if let Some(order) = &order
        && let Object::CheckoutSession(session) = &event.object
        && let Some(intent) = &session.payment_intent
        && let Some(known) = payments.get(intent.as_str()).filter(|known| !known.reversal.is_empty())
    {
        payment_facts.order_payment = Some(OrderPayment::new(&order.session, order.amount_total, known));
    }
    // An order is created once, with its ledger entry. The app may have changed it since then.
    let order = order.filter(|order| !account.recorded.contains_key(&LedgerKey::session(&order.session)));
    let mut links = Vec::new();
    if let Some(customer) = event.customer().filter(|_| names_owner(event)) {
        if !account.state.customers.contains_key(customer) {
            links.push(customer.clone());
        }
        facts.insert(0, Fact::Customer(customer.clone()));
    }
    if !event.livemode && (event.is_on_test_clock() || account.state.clock.is_some()) {
        facts.insert(0, Fact::Clock(event.created));
    }
    let facts: Vec<Fact> = facts.into_iter().filter_map(counts).collect();
    let cause =
        Cause { by: event.id.to_string(), adjust_key: LedgerKey::adjust(&event.id), created: event.created };
    let has_facts = !facts.is_empty();
    let change = match account.evolve(facts, &cause, catalog, now) {
        Ok(change) => change,
        Err(conflict) => return Outcome::Park(Parked::Conflict(conflict)),
    };
    if change.state.is_too_large() {
        return Outcome::Park(Parked::TooManyItems);
    }
    if change.state.products.len() > MAX_PRODUCTS {
        return Outcome::Park(Parked::TooManyProducts);
    }
    let effect = match (not_paid, prices_not_in_catalog.is_empty(), quantity_assumed) {
        (true, ..) => Effect::NotPaid,
        (_, false, _) => Effect::PriceNotInCatalog,
        (.., true) => Effect::QuantityAssumed,
        _ if pack_prorated => Effect::PackProrated,
        _ if !has_facts => Effect::Nothing,
        _ => effect(event, &change.entries),
    };
    let subscriptions = event
        .subscription_id()
        .filter(|id| !account.state.subscriptions.contains_key(*id))
        .filter(|_| matches!(event.object, Object::Subscription(_) | Object::Invoice(_)))
        .cloned()
        .into_iter()
        .collect();
    Outcome::Apply(Box::new(Applied {
        change,
        links,
        subscriptions,
        payments: payment_facts.payments,
        order,
        order_payment: payment_facts.order_payment,
        effect,
        prices_not_in_catalog,
    }))
}

/// Whether the document of a session or a paid invoice was applied before. If an edit of the catalog took its
/// price or name away since then, there is nothing to wait for.
fn is_recorded(account: &Account, event: &Event) -> bool {
    let document = match &event.object {
        Object::CheckoutSession(session) => LedgerKey::session(&session.id),
        Object::Invoice(invoice) => LedgerKey::invoice(&invoice.id),
        Object::Subscription(_)
        | Object::InvoicePayment(_)
        | Object::Charge(_)
        | Object::Refund(_)
        | Object::Dispute(_)
        | Object::Customer(_)
        | Object::Other => return false,
    };
    account.recorded.contains_key(&document)
}

/// Whether the customer of an event belongs to the event's user. A refund or a dispute belongs to the
/// document of its payment instead.
fn names_owner(event: &Event) -> bool {
    match event.object {
        Object::CheckoutSession(_) | Object::Subscription(_) | Object::Invoice(_) | Object::Customer(_) => {
            true
        }
        Object::InvoicePayment(_)
        | Object::Charge(_)
        | Object::Refund(_)
        | Object::Dispute(_)
        | Object::Other => false,
    }
}

/// The effect of a paid document, for the log. For a payment that grants nothing it is the reason.
fn effect(event: &Event, entries: &[Entry]) -> Effect {
    let document = match &event.object {
        Object::Invoice(invoice) if event.kind == EventType::InvoicePaid => LedgerKey::invoice(&invoice.id),
        Object::CheckoutSession(session) => LedgerKey::session(&session.id),
        Object::Invoice(_)
        | Object::InvoicePayment(_)
        | Object::Subscription(_)
        | Object::Charge(_)
        | Object::Refund(_)
        | Object::Dispute(_)
        | Object::Customer(_)
        | Object::Other => return Effect::Updated,
    };
    let Some(entry) = entries.iter().find(|entry| entry.key == document) else { return Effect::Updated };
    match (entry.note, entry.kind, entry.delta) {
        (Some(Note::Superseded), ..) => Effect::Superseded,
        (Some(Note::OnePurchase), ..) => Effect::OnePurchase,
        // The entry of a trial that a zero line starts is booked in addition to the invoice's.
        (_, EntryKind::NoGrant, 0) if entries.iter().all(|entry| entry.key == document) => {
            Effect::NoKnownLine
        }
        (_, EntryKind::PlanChange, 0) => Effect::NothingYet,
        _ => Effect::Updated,
    }
}

/// What an event says about payments: the paid document, refunds and disputes.
#[derive(Default)]
struct PaymentFacts {
    /// Whether the event's document sells something.
    sells: bool,
    facts: Vec<Fact>,
    payments: Payments,
    order_payment: Option<OrderPayment>,
}

impl PaymentFacts {
    fn read(
        &mut self,
        account: &Account,
        event: &Event,
        payments: &Payments,
        not_paid: bool,
    ) -> Result<(), Parked> {
        match &event.object {
            Object::CheckoutSession(session) if !not_paid => {
                if let Some(intent) = &session.payment_intent {
                    let document = LedgerKey::session(&session.id);
                    let is_new = !account.recorded.contains_key(&document);
                    self.tie(account, intent.as_str(), document, is_new, payments);
                }
            }
            Object::Invoice(invoice) if event.kind == EventType::InvoicePaid && !not_paid => {
                let document = LedgerKey::invoice(&invoice.id);
                let is_new = !account.recorded.contains_key(&document);
                let named = payment_of_invoice(invoice);
                let tied = payments.iter().filter(|(_, record)| record.document.as_ref() == Some(&document));
                let all = named.iter().chain(tied.map(|(payment, _)| payment));
                for payment in all.collect::<std::collections::BTreeSet<_>>() {
                    self.tie(account, payment, document.clone(), is_new, payments);
                }
            }
            Object::InvoicePayment(it) => {
                let intent = it.payment_intent.as_ref().map(ToString::to_string);
                if let Some(payment) = intent.or_else(|| it.charge.as_ref().map(ToString::to_string)) {
                    self.facts.push(Fact::PaymentOfInvoice(it.invoice.clone(), payment.clone()));
                    self.tie(account, &payment, LedgerKey::invoice(&it.invoice), false, payments);
                }
            }
            Object::Charge(charge) => {
                let news = ReversalEvent::Charge(event.created, charge.amount_refunded, charge.amount);
                self.reverse(account, event, news, refund::charge_key(charge), payments)?;
            }
            Object::Refund(refund) => {
                let news =
                    ReversalEvent::Refund(refund.id.clone(), refund.amount, refund::status(refund, event));
                self.reverse(account, event, news, refund::key(refund, event), payments)?;
            }
            Object::Dispute(dispute) => {
                let key = charge_dispute::key(dispute);
                self.reverse(account, event, charge_dispute::news(dispute), key, payments)?;
            }
            Object::CheckoutSession(_)
            | Object::Invoice(_)
            | Object::Subscription(_)
            | Object::Customer(_)
            | Object::Other => {}
        }
        Ok(())
    }

    /// Links a payment to the document that it paid, and applies the refunds and disputes stored with the
    /// payment. If a session and an invoice have the same payment, they are one purchase, and the session is
    /// its document. A payment stays with an invoice that granted something if the other one did not.
    ///
    /// `is_new` says that the event is the document itself and the ledger does not have it yet.
    fn tie(
        &mut self,
        account: &Account,
        payment: &str,
        document: LedgerKey,
        is_new: bool,
        payments: &Payments,
    ) {
        let mut record = payments.get(payment).cloned().unwrap_or_default();
        let its_own = document.clone();
        let known = record.document.take();
        if let Some(invoice) = known.as_ref().and_then(LedgerKey::invoice_id)
            && !document.is_invoice(&invoice)
        {
            self.facts.push(Fact::PaymentOfInvoice(invoice, payment.to_owned()));
        }
        let grants = self.sells || account.state.knows(&document);
        let stays =
            |known: &LedgerKey| known.session_id().is_some() || (!grants && account.state.knows(known));
        record.document = Some(known.filter(stays).unwrap_or(document));
        record.user = Some(account.user_id.clone());
        let amount = record.reversal.amount();
        if amount > 0
            && let Some(document) = record.document.clone()
            && is_due(account, &document, payment, amount, is_new && document == its_own)
        {
            let key = LedgerKey::refund_of_payment(payment, amount);
            self.facts.push(Fact::Reversed(Reversed {
                document,
                payment: payment.to_owned(),
                amount,
                steps: record.reversal.steps(),
                disputes: record.reversal.open_disputes(),
                disputed: record.reversal.is_disputed(),
                key,
                kind: EntryKind::Refund,
            }));
        }
        let disputes = record.reversal.open_disputes();
        if amount == 0
            && !disputes.is_empty()
            && let Some(document) = record.document.clone()
        {
            self.facts.push(Fact::Won(document, payment.to_owned(), disputes));
        }
        // Reconcile adds reversals to `payments` that are not stored yet.
        if !record.reversal.is_empty() || payments.get(payment) != Some(&record) {
            self.payments.insert(payment.to_owned(), record);
        }
    }

    fn reverse(
        &mut self,
        account: &Account,
        event: &Event,
        news: ReversalEvent,
        key: LedgerKey,
        payments: &Payments,
    ) -> Result<(), Parked> {
        let kind =
            if matches!(news, ReversalEvent::Dispute(..)) { EntryKind::Dispute } else { EntryKind::Refund };
        let (payment, mut record) = joined(event, news, payments);
        record.user = Some(account.user_id.clone());
        let Some(document) = record.document.clone() else { return Err(Parked::NoGrant(payment)) };
        let amount = record.reversal.amount();
        if let (Some(session), Some(entry)) = (document.session_id(), account.recorded.get(&document))
            && entry.kind == EntryKind::Order
        {
            let total = entry.payment.as_ref().map_or(0, |payment| payment.amount);
            self.order_payment = Some(OrderPayment::new(&session, total, &record));
        }
        let disputed = record.reversal.is_disputed();
        let (steps, disputes) = (record.reversal.steps(), record.reversal.open_disputes());
        self.facts.push(Fact::Reversed(Reversed {
            document,
            payment: payment.clone(),
            amount,
            steps,
            disputed,
            disputes,
            key,
            kind,
        }));
        self.payments.insert(payment, record);
        Ok(())
    }
}

/// Whether the refunds and disputes stored with a payment must be booked now: the document is new or known to
/// the account, and the account has another amount for the payment.
fn is_due(account: &Account, document: &LedgerKey, payment: &str, amount: i64, is_new: bool) -> bool {
    // A session and an invoice of one purchase have the same payment. It is booked under one of them.
    let booked = account.state.refunds.values().filter_map(|payments| payments.get(payment)).max();
    (is_new || account.state.knows(document)) && booked != Some(&amount)
}

/// The refunded or disputed payment after the event, and the id under which it is stored: the intent or
/// charge with a known document, else the intent.
pub fn joined_payment(event: &Event, payments: &Payments) -> Option<(String, PaymentRecord)> {
    let news = match &event.object {
        Object::Charge(charge) => ReversalEvent::Charge(event.created, charge.amount_refunded, charge.amount),
        Object::Refund(refund) => {
            ReversalEvent::Refund(refund.id.clone(), refund.amount, refund::status(refund, event))
        }
        Object::Dispute(dispute) => charge_dispute::news(dispute),
        Object::CheckoutSession(_)
        | Object::Subscription(_)
        | Object::Invoice(_)
        | Object::InvoicePayment(_)
        | Object::Customer(_)
        | Object::Other => return None,
    };
    Some(joined(event, news, payments))
}

fn joined(event: &Event, news: ReversalEvent, payments: &Payments) -> (String, PaymentRecord) {
    let refs = payment_refs(event);
    let known = |payment: &&PaymentRef| {
        payments.get(payment.as_str()).is_some_and(|record| record.document.is_some())
    };
    let payment = refs.iter().find(known).or(refs.first()).map_or(event.id.as_str(), PaymentRef::as_str);
    let mut record = payments.get(payment).cloned().unwrap_or_default();
    record.reversal.fold(event.created, news);
    (payment.to_owned(), record)
}

/// Adds refunds and disputes of the payments that paid a document to the known payments. The decision about
/// the document then applies them together with its grant.
pub fn add_reversals(payments: &mut Payments, document: &Event, reversals: &[Event]) {
    let Some(key) = ledger_keys(document).into_iter().next() else { return };
    for reversal in reversals {
        if let Some((payment, mut record)) = joined_payment(reversal, payments) {
            record.document.get_or_insert_with(|| key.clone());
            payments.insert(payment, record);
        }
    }
}

/// The payment that an invoice names: its intent, else its charge. Since 2025-03-31.basil an invoice names no
/// payment.
fn payment_of_invoice(invoice: &Invoice) -> Option<String> {
    let intent = invoice.payment_intent.as_ref().map(ToString::to_string);
    intent.or_else(|| invoice.charge.as_ref().map(ToString::to_string))
}

/// The ledger keys that follow from the event alone, to be loaded before the decision. Several events may
/// have the same key: the opening of a dispute arrives as `created` and as `funds_withdrawn`.
pub fn ledger_keys(event: &Event) -> Vec<LedgerKey> {
    match &event.object {
        Object::CheckoutSession(session) => vec![LedgerKey::session(&session.id)],
        Object::Subscription(_) => Vec::new(),
        Object::Invoice(invoice) => vec![LedgerKey::invoice(&invoice.id)],
        Object::InvoicePayment(it) => vec![LedgerKey::invoice(&it.invoice)],
        Object::Charge(charge) => vec![refund::charge_key(charge)],
        Object::Refund(refund) => vec![refund::key(refund, event)],
        Object::Dispute(dispute) => vec![charge_dispute::key(dispute)],
        Object::Customer(_) | Object::Other => Vec::new(),
    }
}

/// The invoice that a session of a purchase made. Its entry is loaded before the decision, because it may
/// have granted the purchase.
pub fn invoice_of_purchase(event: &Event) -> Option<InvoiceId> {
    let Object::CheckoutSession(session) = &event.object else { return None };
    session.invoice.clone().filter(|_| session.subscription.is_none())
}

/// The payments that an event names, the intent before the charge, to be loaded before the decision.
pub fn payment_refs(event: &Event) -> Vec<PaymentRef> {
    let (intent, charge) = match &event.object {
        Object::Charge(charge) => (charge.payment_intent.clone(), Some(charge.id.clone())),
        Object::Refund(refund) => (refund.payment_intent.clone(), refund.charge.clone()),
        Object::Dispute(dispute) => (dispute.payment_intent.clone(), dispute.charge.clone()),
        Object::CheckoutSession(session) => (session.payment_intent.clone(), None),
        Object::InvoicePayment(it) => (it.payment_intent.clone(), it.charge.clone()),
        // One of the two is enough, because refunds and disputes name both.
        Object::Invoice(invoice) => {
            let charge = invoice.charge.clone().filter(|_| invoice.payment_intent.is_none());
            (invoice.payment_intent.clone(), charge)
        }
        Object::Subscription(_) | Object::Customer(_) | Object::Other => (None, None),
    };
    intent.map(PaymentRef::Intent).into_iter().chain(charge.map(PaymentRef::Charge)).collect()
}

/// Whether an event is about a refund or a dispute.
pub fn is_reversal(event: &Event) -> bool {
    matches!(event.object, Object::Charge(_) | Object::Refund(_) | Object::Dispute(_))
}

/// The invoice that a refunded or disputed payment paid, if the event names it: before 2025-03-31.basil, or
/// after a request to Stripe.
pub fn invoice_of_reversal(event: &Event) -> Option<LedgerKey> {
    let invoice = match &event.object {
        Object::Charge(charge) => charge.invoice.as_ref(),
        Object::Refund(refund) => refund.invoice.as_ref(),
        Object::Dispute(dispute) => dispute.invoice.as_ref(),
        Object::CheckoutSession(_)
        | Object::Subscription(_)
        | Object::Invoice(_)
        | Object::InvoicePayment(_)
        | Object::Customer(_)
        | Object::Other => None,
    };
    invoice.map(LedgerKey::invoice)
}
