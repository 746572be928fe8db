//! Every key and every item of the two tables. Nothing else builds or reads one.
//!
//! **Accounts table** (`pk`, `sk`; nothing in it expires)
//!
//! | pk | sk | item |
//! |---|---|---|
//! | `user#<id>` | `account` | `tier` S, `tier_rank` N, `credits` N, `access_until` N (unix s, absent: open), `version` N, `updated_at` N, `state` M |
//! | `user#<id>` | `ledger#<ledger key>` | one [`Entry`]: `key`, `kind`, `delta`, `balance`, `cause`, `at`, `created`, `previous`, … |
//! | `invoice#<in_…>` | `entry` | the [`Entry`] of a paid invoice with `user_id` S; `payments` SS: payments tied to it before its own event arrived |
//! | `subscription#<sub_…>` | `link` | `user_id` S: its owner; `moved` BOOL; until it has one, `waiting` SS |
//! | `user#<id>` | `newcomer` | `waiting` SS: the parked events that wait until the app creates the user |
//! | `user#<id>` | `order#<cs_…>` | a one-time order; the app moves `status` on |
//! | `customer#<cus_…>` | `link` | `user_id` S: its owner; `moved`, `shared`, `by_reference` BOOL; until it has one, `waiting` SS: the parked events that wait for it |
//! | `user#<id>` | `portal` | `password_set_at` N (unix s): the app said that the user has a password |
//! | `session#<cs_…>` | `link` | `user_id` S, `payment` S ([`SessionPayment`]), `subscription` S: whose a checkout session is and how its payment stands |
//! | `payment#<pi_… or ch_…>` | `link` | `key` S: the document that it paid; `user_id` S; `reversal` M: its refunds and disputes; `revision` N; until the document is known, `waiting` SS |
//!
//! An app may read `tier`, `tier_rank`, `credits` and `access_until` of `user#<id>` / `account` directly;
//! `state` is ours and may change.
//!
//! `lapses` S (a day, `2026-11-21`) is on an account only while its tier will change by time alone: with
//! `access_until` it is the key of the index `by_lapse`, which is empty but for those.
//!
//! **Events table** (`pk` = `evt_…`; 90 days after `finished`, then `expires_at`)
//!
//! | attribute | |
//! |---|---|
//! | `outcome` S | `processed`, `ignored`, `parked`, `failed`; a duplicate writes nothing |
//! | `type` S, `created` N, `livemode` BOOL, `api_version` S | from the event |
//! | `received` N, `finished` N | unix ms; `attempts` N |
//! | `reason` S, `message` S | why parked, failed or ignored; `effect` S what processing did |
//! | `waits_for` S | what would free a parked event |
//! | `mode` S, `due` N, `redrives` N | only while parked or failed: mode of the secret that verified it; unix ms from which `retry` sends it again, and how often it did |
//! | `previous` S | the event of the same user that was recorded before this one, empty for the first; absent: not in the list of its user |
//! | `user_id` S, `objects` L | what it names |
//! | `digest` B, `payload` B | SHA-256 of the content; the body, see [`crate::payload`] |
//! | `day` S, `seen` N | key of index `by_day`: `2026-11-21#invoice-paid#0`, `received` |
//! | `open` S, `seen` N | key of index `by_status`, only while somebody should look: `parked#0`, `failed#3` |
//!
//! Notes beside the log, in the same table:
//!
//! | pk | item |
//! |---|---|
//! | `audit#<unix ms>#<random>` | a change by an operator: `actor`, `reason`, `act`, `target`, `at`; in `by_day` under the family `audit`; never expires |
//! | `alert#<destination>#<alert key>` | when it was last sent: `quiet_until` N (unix s; before then the same is not sent), `held` N (how many were not), `message` S (which one is being posted), `posted` S |
//! | `signal#bad_signatures` | the newest burst: `refused` N, `at` N (unix s) |
//! | `job#provision#<user id>`, `job#account#<user id>` | what the app is to be told, see `outbox`: `outcome` S (`queued`, `running`, `completed`, `failed`), `reason` S, `attempts` N, `open` S (`job#0`) until it is done; never expires |
//! | `ask#<cs_…>` | Stripe was asked for this session: `asked` N (unix s), `tries` N, `told` S; two days |
//! | `reconcile` | where an unfinished reconciliation stopped, see [`reconcile_place`]; one day |
//! | `report#reconcile` | what the last reconciliation found: `missing` N, `orphaned` N, `finished` N (unix ms) |

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Condition, StoreError, Write};
use tallyhook_core::account::{Account, State};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::owner::StoredOwner;
use tallyhook_core::decide::{Order, OrderPayment, PaymentRef};
use tallyhook_core::ids::{CustomerId, EventId, InvoiceId, SessionId, SubscriptionId, UserId};
use tallyhook_core::job::JobKind;
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::reversal::{PaymentRecord, Reversal};
use tallyhook_core::setup_status::SessionPayment;
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// An item as DynamoDB has it.
pub type Item = HashMap<String, AttributeValue>;

/// How long an event stays in the log: Stripe can send it again for 30 days.
pub const EVENT_DAYS: i64 = 90;
/// The index partitions of one day and family, and of one open status: a burst is spread over them.
pub const SHARDS: u8 = 4;

/// As many attributes as an event's item has, so that none grows while it is filled.
const MOST_ATTRIBUTES: usize = 24;

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Accounts and all that belongs to a user.
    Accounts,
    /// The event log, which is also what makes an event happen once.
    Events,
}

/// What an item is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The account itself.
    Account(UserId),
    /// A ledger entry.
    Entry(UserId, LedgerKey),
    /// The entry of a paid invoice, and the payments that are tied to it.
    Invoice(InvoiceId),
    /// A one-time order.
    Order(UserId, SessionId),
    /// Whose a Stripe customer is.
    Customer(CustomerId),
    /// Whose a checkout session is.
    Session(SessionId),
    /// What the app said of a user's set-up.
    Portal(UserId),
    /// The owner of a subscription.
    Subscription(SubscriptionId),
    /// The events that wait until the app creates a user.
    Newcomer(UserId),
    /// What a payment paid for, by `pi_…` or `ch_…`.
    Payment(String),
    /// An event of the log, or a note beside it: `audit#…`, `alert#…`, `signal#…`, `report#…`.
    Event(String),
}

impl Key {
    /// An event by its id.
    pub fn event(id: &EventId) -> Self {
        Self::Event(id.to_string())
    }

    /// A ledger entry. That of an invoice has an item of its own, by which a payment of the invoice finds the
    /// user, and which makes it happen once over all users.
    pub fn entry(user: &UserId, key: &LedgerKey) -> Self {
        match key.invoice_id() {
            Some(invoice) => Self::Invoice(invoice),
            None => Self::Entry(user.clone(), key.clone()),
        }
    }

    /// A payment by what a refund or dispute names.
    pub fn payment(payment: &PaymentRef) -> Self {
        Self::Payment(payment.as_str().to_owned())
    }

    /// Its table.
    pub fn table(&self) -> Table {
        match self {
            Self::Event(_) => Table::Events,
            Self::Account(_)
            | Self::Entry(..)
            | Self::Invoice(_)
            | Self::Subscription(_)
            | Self::Newcomer(_)
            | Self::Order(..)
            | Self::Portal(_)
            | Self::Customer(_)
            | Self::Session(_)
            | Self::Payment(_) => Table::Accounts,
        }
    }

    /// Partition key.
    pub fn partition(&self) -> String {
        match self {
            Self::Account(user)
            | Self::Entry(user, _)
            | Self::Newcomer(user)
            | Self::Order(user, _)
            | Self::Portal(user) => {
                format!("user#{user}")
            }
            Self::Session(session) => format!("session#{session}"),
            Self::Invoice(invoice) => format!("invoice#{invoice}"),
            Self::Subscription(subscription) => format!("subscription#{subscription}"),
            Self::Customer(customer) => format!("customer#{customer}"),
            Self::Payment(payment) => format!("payment#{payment}"),
            Self::Event(id) => id.clone(),
        }
    }

    /// Sort key; empty in the events table, which has none.
    pub fn sort(&self) -> String {
        match self {
            Self::Account(_) => "account".to_owned(),
            Self::Entry(_, key) => format!("ledger#{key}"),
            Self::Invoice(_) => "entry".to_owned(),
            Self::Newcomer(_) => "newcomer".to_owned(),
            Self::Order(_, session) => format!("order#{session}"),
            Self::Portal(_) => "portal".to_owned(),
            Self::Customer(_) | Self::Session(_) | Self::Subscription(_) | Self::Payment(_) => {
                "link".to_owned()
            }
            Self::Event(_) => String::new(),
        }
    }

    fn corrupt(&self, message: impl ToString) -> StoreError {
        StoreError::Corrupt {
            key: format!("{} {}", self.partition(), self.sort()),
            message: message.to_string(),
        }
    }
}

/// The key attributes of an item.
pub fn key_attributes(table: Table, partition: &str, sort: &str) -> Item {
    with_key(Item::with_capacity(2), table, partition, sort)
}

fn new_item(key: &Key) -> Item {
    with_key(Item::with_capacity(MOST_ATTRIBUTES), key.table(), &key.partition(), &key.sort())
}

fn with_key(mut item: Item, table: Table, partition: &str, sort: &str) -> Item {
    item.insert("pk".to_owned(), text(partition));
    if table == Table::Accounts {
        item.insert("sk".to_owned(), text(sort));
    }
    item
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// The day of a time, as the index has it.
pub fn day(ms: i64) -> String {
    Timestamp::from_unix(ms.div_euclid(1000)).to_string().chars().take(10).collect()
}

/// The account after a change, on condition that nobody changed it since it was loaded.
///
/// # Errors
/// [`StoreError::Corrupt`] if the state cannot be written as an item.
pub fn account(
    account: &Account,
    loaded_version: u64,
    catalog: &Catalog,
    now: Timestamp,
) -> Result<Write, StoreError> {
    let key = Key::Account(account.user_id.clone());
    let access = account.state.access(catalog, now);
    let mut item = new_item(&key);
    item.insert("tier".to_owned(), text(access.tier));
    item.insert("tier_rank".to_owned(), number(access.rank));
    item.insert("credits".to_owned(), number(account.state.balance(&catalog.policy, now)));
    if let Some(until) = access.until {
        item.insert("access_until".to_owned(), number(until.unix()));
        item.insert("lapses".to_owned(), text(day(until.unix().saturating_mul(1000))));
    }
    item.insert("version".to_owned(), number(account.version));
    item.insert("updated_at".to_owned(), number(now.unix()));
    let state: AttributeValue =
        serde_dynamo::to_attribute_value(&account.state).map_err(|error| key.corrupt(error))?;
    item.insert("state".to_owned(), state);
    Ok(Write { key, item: Some(item), condition: Condition::Version(loaded_version) })
}

/// Reads an account back.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_account(user_id: &UserId, item: &Item) -> Result<Account, StoreError> {
    let key = Key::Account(user_id.clone());
    let version = read_number(item, "version");
    let state = item.get("state").ok_or_else(|| key.corrupt("no state"))?.clone();
    let state: State = serde_dynamo::from_attribute_value(state).map_err(|error| key.corrupt(error))?;
    Ok(Account {
        user_id: user_id.clone(),
        version: version.ok_or_else(|| key.corrupt("no version"))?,
        state,
        recorded: BTreeMap::new(),
    })
}

/// When an account was last written.
pub fn updated_at(item: &Item) -> Option<Timestamp> {
    Some(Timestamp::from_unix(item.get("updated_at")?.as_n().ok()?.parse().ok()?))
}

/// A ledger entry, on condition that none with its key exists. `invoice` is the item of an entry's invoice as
/// it was read: payments that are tied to it stay.
///
/// # Errors
/// [`StoreError::Corrupt`] if it cannot be written as an item.
pub fn entry(user: &UserId, entry: &Entry, invoice: Option<&Item>) -> Result<Write, StoreError> {
    let key = Key::entry(user, &entry.key);
    if !matches!(key, Key::Invoice(_)) {
        return put(key, entry, Condition::Absent);
    }
    let payments = invoice.map(payments_of_invoice).unwrap_or_default();
    let condition =
        if payments.is_empty() { Condition::Absent } else { Condition::Payments(payments.clone()) };
    let mut write = put(key, entry, condition)?;
    if let Some(item) = &mut write.item {
        item.insert("user_id".to_owned(), text(user.as_str()));
        if !payments.is_empty() {
            item.insert("payments".to_owned(), texts(payments));
        }
    }
    Ok(write)
}

/// The entry of an invoice with the user whose it is; `None` while only payments of the invoice are known.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_invoice(key: &Key, item: &Item) -> Result<Option<(UserId, Entry)>, StoreError> {
    let Some(user) = read_text(item, "user_id") else { return Ok(None) };
    let user = UserId::new(user).map_err(|error| key.corrupt(error))?;
    Ok(Some((user, read(key, item)?)))
}

/// The payments that are tied to an invoice before its own event arrived.
pub fn payments_of_invoice(item: &Item) -> BTreeSet<String> {
    item.get("payments").and_then(|payments| payments.as_ss().ok()).into_iter().flatten().cloned().collect()
}

/// Ties payments to an invoice whose own event has not arrived, on condition that it still has not.
pub fn invoice_payments(invoice: &InvoiceId, known: &BTreeSet<String>, payments: BTreeSet<String>) -> Write {
    let key = Key::Invoice(invoice.clone());
    let mut item = new_item(&key);
    let all: BTreeSet<String> = known.iter().cloned().chain(payments).collect();
    item.insert("payments".to_owned(), texts(all));
    let condition = if known.is_empty() { Condition::Absent } else { Condition::Payments(known.clone()) };
    Write { key, item: Some(item), condition }
}

fn texts(values: BTreeSet<String>) -> AttributeValue {
    AttributeValue::Ss(values.into_iter().collect())
}

fn put(key: Key, value: &impl serde::Serialize, condition: Condition) -> Result<Write, StoreError> {
    let mut item: Item = serde_dynamo::to_item(value).map_err(|error| key.corrupt(error))?;
    item.extend(new_item(&key));
    Ok(Write { key, item: Some(item), condition })
}

/// Reads an entry or a reversal back.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read<T: DeserializeOwned>(key: &Key, item: &Item) -> Result<T, StoreError> {
    serde_dynamo::from_item(item.clone()).map_err(|error| key.corrupt(error))
}

/// Ties a customer to its owner. `known` is the stored owner as it was read: without one the customer must
/// belong to no other user; with one it must still belong to that one.
pub fn customer(customer: &CustomerId, owner: &StoredOwner, known: Option<&StoredOwner>) -> Write {
    link(Key::Customer(customer.clone()), owner, known)
}

/// Ties a subscription to its owner, in the same way.
pub fn subscription(id: &SubscriptionId, owner: &StoredOwner, known: Option<&StoredOwner>) -> Write {
    link(Key::Subscription(id.clone()), owner, known)
}

fn link(key: Key, owner: &StoredOwner, known: Option<&StoredOwner>) -> Write {
    let mut item = new_item(&key);
    item.insert("user_id".to_owned(), text(owner.user.as_str()));
    let flags = [("moved", owner.moved), ("by_reference", owner.by_reference), ("shared", owner.shared)];
    for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
        item.insert(name.to_owned(), AttributeValue::Bool(true));
    }
    let condition = match known {
        Some(known) => Condition::OwnedBy(known.user.to_string()),
        None => Condition::BoundTo(owner.user.to_string()),
    };
    Write { key, item: Some(item), condition }
}

/// The stored owner of a customer or a subscription; `None` while it has none and events wait for it.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_owner(key: &Key, item: &Item) -> Result<Option<StoredOwner>, StoreError> {
    let flag = |name: &str| item.get(name).and_then(|flag| flag.as_bool().ok()).copied().unwrap_or(false);
    Ok(read_user(key, item)?.map(|user| StoredOwner {
        user,
        moved: flag("moved"),
        by_reference: flag("by_reference"),
        shared: flag("shared"),
    }))
}

/// Has events wait for a customer, a subscription or a new user, on condition that it has no owner yet:
/// whoever ties it reads them. `known` is who waited when it was read.
pub fn wait(key: Key, known: BTreeSet<String>, events: BTreeSet<String>) -> Write {
    let mut item = new_item(&key);
    let all = known.iter().cloned().chain(events).collect::<BTreeSet<String>>();
    item.insert("waiting".to_owned(), texts(all));
    let condition = if known.is_empty() { Condition::Absent } else { Condition::Waiting(known) };
    Write { key, item: Some(item), condition }
}

/// The events that wait for a customer, a subscription, a payment or a new user.
pub fn waiting(item: &Item) -> BTreeSet<String> {
    item.get("waiting").and_then(|waiting| waiting.as_ss().ok()).into_iter().flatten().cloned().collect()
}

/// A payment as it was read: what is known of it, who waits for its document, and the revision of the item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownPayment {
    /// What is known of it.
    pub record: PaymentRecord,
    /// The parked events that wait for its document.
    pub waiting: BTreeSet<String>,
    /// How often the item was written.
    pub revision: u64,
}

/// What is known of a payment, on condition that the item has the revision that was read: of two refunds at
/// once the second one reads what the first one wrote.
///
/// # Errors
/// [`StoreError::Corrupt`] if it cannot be written as an item.
pub fn payment(payment: &str, known: &KnownPayment, loaded_revision: u64) -> Result<Write, StoreError> {
    let key = Key::Payment(payment.to_owned());
    let mut item = new_item(&key);
    if let Some(user) = &known.record.user {
        item.insert("user_id".to_owned(), text(user.as_str()));
    }
    if let Some(document) = &known.record.document {
        item.insert("key".to_owned(), text(document.as_str()));
    }
    if !known.record.reversal.is_empty() {
        let reversal = serde_dynamo::to_attribute_value(&known.record.reversal);
        item.insert("reversal".to_owned(), reversal.map_err(|error| key.corrupt(error))?);
    }
    if !known.waiting.is_empty() {
        item.insert("waiting".to_owned(), texts(known.waiting.clone()));
    }
    item.insert("revision".to_owned(), number(loaded_revision + 1));
    Ok(Write { key, item: Some(item), condition: Condition::Revision(loaded_revision) })
}

/// Reads a payment back.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_payment(key: &Key, item: &Item) -> Result<KnownPayment, StoreError> {
    let user = read_text(item, "user_id").map(UserId::new).transpose().map_err(|error| key.corrupt(error))?;
    let reversal = match item.get("reversal") {
        Some(reversal) => {
            serde_dynamo::from_attribute_value(reversal.clone()).map_err(|error| key.corrupt(error))?
        }
        None => Reversal::default(),
    };
    let document = read_text(item, "key").map(|document| LedgerKey::from_text(&document));
    Ok(KnownPayment {
        record: PaymentRecord { document, user, reversal },
        waiting: waiting(item),
        revision: read_number(item, "revision").ok_or_else(|| key.corrupt("no revision"))?,
    })
}

/// Whose a session, a customer or a payment is; `None` while it has no owner and events wait for it.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_user(key: &Key, item: &Item) -> Result<Option<UserId>, StoreError> {
    match item.get("user_id").and_then(|user| user.as_s().ok()) {
        Some(user) => Ok(Some(UserId::new(user.as_str()).map_err(|error| key.corrupt(error))?)),
        None if item.contains_key("waiting") || item.contains_key("revision") => Ok(None),
        None => Err(key.corrupt("no user_id")),
    }
}

/// A checkout session as far as it is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSession {
    /// Whose it is.
    pub user: UserId,
    /// How its payment stands.
    pub payment: SessionPayment,
    /// The subscription that came of it.
    pub subscription: Option<SubscriptionId>,
    /// An operator named its owner.
    pub assigned: bool,
}

/// Whose a checkout session is and how its payment stands; the account's version guards it.
pub fn session(id: &SessionId, known: &KnownSession) -> Write {
    let key = Key::Session(id.clone());
    let mut item = new_item(&key);
    item.insert("user_id".to_owned(), text(known.user.as_str()));
    item.insert("payment".to_owned(), text(known.payment.as_str()));
    if let Some(subscription) = &known.subscription {
        item.insert("subscription".to_owned(), text(subscription.as_str()));
    }
    if known.assigned {
        item.insert("assigned".to_owned(), AttributeValue::Bool(true));
    }
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// The owner that an operator names for a guest's session, on condition that it has none.
pub fn assigned_session(id: &SessionId, user: &UserId) -> Write {
    let known = KnownSession {
        user: user.clone(),
        payment: SessionPayment::Confirming,
        subscription: None,
        assigned: true,
    };
    Write { condition: Condition::Absent, ..session(id, &known) }
}

/// Reads a checkout session back.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_session(key: &Key, item: &Item) -> Result<KnownSession, StoreError> {
    let user = read_user(key, item)?.ok_or_else(|| key.corrupt("no user_id"))?;
    let payment = read_text(item, "payment").and_then(|word| SessionPayment::from_text(&word));
    let subscription = read_text(item, "subscription")
        .map(SubscriptionId::new)
        .transpose()
        .map_err(|error| key.corrupt(error))?;
    let assigned = item.get("assigned").and_then(|flag| flag.as_bool().ok()).copied().unwrap_or(false);
    let payment = payment.ok_or_else(|| key.corrupt("no payment"))?;
    Ok(KnownSession { user, payment, subscription, assigned })
}

/// The app's word that a user has a password.
pub fn password_set(user: &UserId, now: Timestamp) -> Write {
    let key = Key::Portal(user.clone());
    let mut item = new_item(&key);
    item.insert("password_set_at".to_owned(), number(now.unix()));
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// A job of the outbox, in the events table.
pub fn job_key(kind: JobKind, user: &UserId) -> Key {
    Key::Event(format!("job#{}#{user}", kind.as_str()))
}

/// A job that is to be done, in place of what an earlier one of its kind came to. `open` is gone once it is
/// done; nothing of it expires.
pub fn job(kind: JobKind, user: &UserId, now: Timestamp) -> Write {
    let key = job_key(kind, user);
    let shard = Sha256::digest(user.as_str()).first().copied().unwrap_or(0) % SHARDS;
    let ms = now.unix().saturating_mul(1000);
    let mut item = new_item(&key);
    item.extend([
        ("outcome".to_owned(), text("queued")),
        ("type".to_owned(), text(kind.event())),
        ("user_id".to_owned(), text(user.as_str())),
        ("created".to_owned(), number(now.unix())),
        ("finished".to_owned(), number(ms)),
        ("attempts".to_owned(), number(0)),
        ("redrives".to_owned(), number(0)),
        ("due".to_owned(), number(ms + redrive_pause_seconds(0) * 1000)),
        // To the millisecond and beyond: what is written anew is told from what was read.
        ("seen".to_owned(), number(ms + i64::from(fastrand::u16(..1000)))),
        ("open".to_owned(), text(format!("job#{shard}"))),
    ]);
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// A new order:
///
/// ```json
/// {"pk":"user#u","sk":"order#cs_1","mode":"dfy","tier":"STARTER","status":"NEW","deadline":1768000000,"revisions_left":1,
///  "checklist_status":"PENDING","customer_email":"…","amount_total":9900,"currency":"usd","created_at":1767600000,"updated_at":1767600000}
/// ```
pub fn order(user: &UserId, order: &Order) -> Write {
    let key = Key::Order(user.clone(), order.session.clone());
    let mut item = new_item(&key);
    let customer = order.customer.as_ref().map(ToString::to_string);
    let optional = [
        ("customer_id", &customer),
        ("customer_email", &order.customer_email),
        ("upgraded_from", &order.upgraded_from),
    ];
    if let Some(deadline) = order.deadline {
        item.insert("deadline".to_owned(), number(deadline.unix()));
    }
    item.extend([
        ("mode".to_owned(), text(order.mode.clone())),
        ("tier".to_owned(), text(order.tier.clone())),
        ("status".to_owned(), text("NEW")),
        ("revisions_left".to_owned(), number(order.revisions_left)),
        ("checklist_status".to_owned(), text("PENDING")),
        ("amount_total".to_owned(), number(order.amount_total)),
        ("currency".to_owned(), text(order.currency.clone())),
        ("created_at".to_owned(), number(order.created_at.unix())),
        ("updated_at".to_owned(), number(order.created_at.unix())),
    ]);
    for (name, value) in optional {
        if let Some(value) = value {
            item.insert(name.to_owned(), text(value.clone()));
        }
    }
    Write { key, item: Some(item), condition: Condition::Absent }
}

/// An order after a refund or a dispute of its payment, on condition that it is as it was read. `None` when
/// nothing changes.
pub fn order_after(user: &UserId, paid: &OrderPayment, item: &Item, now: Timestamp) -> Option<Write> {
    let mut after = item.clone();
    if paid.refunded {
        after.insert("status".to_owned(), text("REFUNDED"));
    }
    if paid.disputed {
        after.insert("disputed".to_owned(), AttributeValue::Bool(true));
    } else {
        after.remove("disputed");
    }
    if after == *item {
        return None;
    }
    let read = read_number(item, "updated_at").unwrap_or(0);
    after.insert("updated_at".to_owned(), number(now.unix()));
    let key = Key::Order(user.clone(), paid.session.clone());
    Some(Write { key, item: Some(after), condition: Condition::UpdatedAt(read) })
}

/// What is known of Stripe's word about a checkout session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// When Stripe was last asked, unix s.
    pub asked: i64,
    /// How often it was asked.
    pub tries: u32,
    /// What it said: a [`SessionPayment`], or `missing`.
    pub told: Option<String>,
}

/// The note that Stripe was asked for a session.
pub fn question_key(session: &SessionId) -> Key {
    Key::Event(format!("ask#{session}"))
}

/// Reads that note.
pub fn read_question(item: &Item) -> Question {
    Question {
        asked: read_number(item, "asked").unwrap_or(0),
        tries: read_number(item, "tries").unwrap_or(0),
        told: read_text(item, "told"),
    }
}

/// The note about when an alert was last posted to a destination.
pub fn alert_key(destination: &str, alert: &str) -> Key {
    Key::Event(format!("alert#{destination}#{alert}"))
}

/// The note about the newest burst of refused signatures.
pub fn bad_signatures_key() -> Key {
    Key::Event("signal#bad_signatures".to_owned())
}

/// What the last reconciliation found.
pub fn reconcile_report_key() -> Key {
    Key::Event("report#reconcile".to_owned())
}

/// Where a reconciliation stopped.
pub fn reconcile_place_key() -> Key {
    Key::Event("reconcile".to_owned())
}

/// A place in an unfinished reconciliation:
///
/// ```json
/// {"pk":"reconcile","started":1767600000,"pass":"invoices","after":"in_1","expires_at":1767686400}
/// ```
pub fn reconcile_place(started: Timestamp, pass: String, after: Option<String>, expires: Timestamp) -> Write {
    let key = reconcile_place_key();
    let mut item = new_item(&key);
    item.insert("started".to_owned(), number(started.unix()));
    item.insert("pass".to_owned(), text(pass));
    item.insert("expires_at".to_owned(), number(expires.unix()));
    if let Some(after) = after {
        item.insert("after".to_owned(), text(after));
    }
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventState {
    /// Its effects are in the account.
    Processed,
    /// None of our business.
    Ignored,
    /// Waits for a person or a later fact.
    Parked,
    /// Retries are used up.
    Failed,
}

impl EventState {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processed => "processed",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
            Self::Failed => "failed",
        }
    }
}

/// One event of the log.
#[derive(Clone, Debug)]
pub struct EventRecord {
    /// `evt_…`
    pub id: String,
    /// Stripe's type.
    pub kind: String,
    /// The family that handles it; `other` for types that none does.
    pub family: &'static str,
    /// How it ended.
    pub state: EventState,
    /// Why, as a code: the reason for parking or ignoring, or what processing did.
    pub reason: Option<String>,
    /// Why, for a person. Holds ids and names from the catalog, never personal data.
    pub message: Option<String>,
    /// What would free it.
    pub waits_for: Option<String>,
    /// Whose it is, as far as known.
    pub user: Option<UserId>,
    /// Stripe's ids of the objects it names.
    pub objects: Vec<String>,
    /// When Stripe made it.
    pub created: Timestamp,
    /// When we received it, unix ms.
    pub received_ms: i64,
    /// When it ended, unix ms.
    pub finished_ms: i64,
    /// How often it was tried, over all its deliveries.
    pub attempts: u32,
    /// How often `retry` sent it again.
    pub redrives: u32,
    /// The event of the same user that was recorded before this one, empty for the first; `None` leaves it
    /// out of its user's list.
    pub previous: Option<String>,
    /// Mode of the secret that verified it.
    pub mode: SecretMode,
    /// Live or test.
    pub livemode: bool,
    /// The version it was rendered in.
    pub api_version: Option<String>,
    /// SHA-256 of its content.
    pub digest: [u8; 32],
    /// The body as received, compressed; `None` keeps none.
    pub payload: Option<Vec<u8>>,
}

/// What is known of an event that came before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownEvent {
    /// Whether it is done with: processed or ignored.
    pub finished: bool,
    /// Its content.
    pub digest: Vec<u8>,
    /// The version it was rendered in.
    pub api_version: Option<String>,
    /// How often it was tried until then.
    pub attempts: u32,
    /// How often `retry` sent it again.
    pub redrives: u32,
    /// Its place in its user's list, if it has one.
    pub previous: Option<String>,
}

/// The pause before `retry` sends an event again that it already sent so often: a quarter of an hour, doubled
/// each time, at most a day.
pub fn redrive_pause_seconds(redrives: u32) -> i64 {
    (900_i64 << redrives.min(7)).min(86_400)
}

/// Records an event, on condition that it was not finished before.
pub fn event(record: &EventRecord) -> Write {
    let key = Key::Event(record.id.clone());
    let mut item = new_item(&key);
    let shard = record.digest.first().copied().unwrap_or(0) % SHARDS;
    let day = day(record.received_ms);
    item.extend([
        ("outcome".to_owned(), text(record.state.as_str())),
        ("type".to_owned(), text(record.kind.clone())),
        ("created".to_owned(), number(record.created.unix())),
        ("received".to_owned(), number(record.received_ms)),
        ("finished".to_owned(), number(record.finished_ms)),
        ("attempts".to_owned(), number(record.attempts)),
        ("livemode".to_owned(), AttributeValue::Bool(record.livemode)),
        ("digest".to_owned(), AttributeValue::B(Blob::new(record.digest))),
        (
            "expires_at".to_owned(),
            number(Timestamp::from_unix(record.finished_ms.div_euclid(1000)).plus_days(EVENT_DAYS).unix()),
        ),
        ("day".to_owned(), text(format!("{day}#{}#{shard}", record.family))),
        ("seen".to_owned(), number(record.received_ms)),
    ]);
    if matches!(record.state, EventState::Parked | EventState::Failed) {
        item.insert("open".to_owned(), text(format!("{}#{shard}", record.state.as_str())));
        item.insert("mode".to_owned(), text(record.mode.as_str()));
        item.insert(
            "due".to_owned(),
            number(record.finished_ms + redrive_pause_seconds(record.redrives) * 1000),
        );
        item.insert("redrives".to_owned(), number(record.redrives));
    }
    let user = record.user.as_ref().map(ToString::to_string);
    for (name, value) in [
        ("reason", &record.reason),
        ("message", &record.message),
        ("waits_for", &record.waits_for),
        ("user_id", &user),
        ("api_version", &record.api_version),
        ("previous", &record.previous),
    ] {
        if let Some(value) = value {
            item.insert(name.to_owned(), text(value.clone()));
        }
    }
    if !record.objects.is_empty() {
        item.insert("objects".to_owned(), AttributeValue::L(record.objects.iter().map(text).collect()));
    }
    if let Some(payload) = &record.payload {
        item.insert("payload".to_owned(), AttributeValue::B(Blob::new(payload.clone())));
    }
    Write { key, item: Some(item), condition: Condition::Unfinished }
}

/// An operator's change, for the audit. It is written before the change is made: a change that is not audited
/// is not made.
pub fn audit(actor: &str, reason: &str, act: &str, target: &str, at_ms: i64) -> Write {
    let key = Key::Event(format!("audit#{at_ms}#{:08x}", fastrand::u32(..)));
    let mut item = new_item(&key);
    item.extend([
        ("actor".to_owned(), text(actor)),
        ("reason".to_owned(), text(reason)),
        ("act".to_owned(), text(act)),
        ("target".to_owned(), text(target)),
        ("at".to_owned(), number(at_ms.div_euclid(1000))),
        ("day".to_owned(), text(format!("{}#audit#0", day(at_ms)))),
        ("seen".to_owned(), number(at_ms)),
    ]);
    Write { key, item: Some(item), condition: Condition::Absent }
}

/// What a reconciliation leaves for health. It is gone after a week without another one.
pub fn reconcile_report(missing: u64, orphaned: u64, at: Timestamp) -> Write {
    let key = reconcile_report_key();
    let mut item = new_item(&key);
    item.extend([
        ("missing".to_owned(), number(missing)),
        ("orphaned".to_owned(), number(orphaned)),
        ("finished".to_owned(), number(at.unix().saturating_mul(1000))),
        ("expires_at".to_owned(), number(at.plus_days(7).unix())),
    ]);
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// The id under which a second content of an event is kept: no event of Stripe's can have it.
pub fn mismatch_id(event: &EventId, digest: &[u8; 32]) -> String {
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{event}~{hex}")
}

/// Whether a text can be the key of an event in the log: Stripe's id, with the digest of a second content
/// behind it where it has one, or that of a message which held no event. What stands beside the log in the
/// same table is none.
pub fn is_event(id: &str) -> bool {
    let of_message = |id: &str| id.len() <= 100 && id.chars().all(|c| c.is_ascii_alphanumeric());
    match id.split_once('~') {
        Some((event, digest)) => EventId::new(event).is_ok() && of_message(digest),
        None => EventId::new(id).is_ok() || id.strip_prefix("msg_").is_some_and(of_message),
    }
}

/// Reads what decides about a repetition.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_event(key: &Key, item: &Item) -> Result<KnownEvent, StoreError> {
    let state =
        item.get("outcome").and_then(|state| state.as_s().ok()).ok_or_else(|| key.corrupt("no outcome"))?;
    let digest =
        item.get("digest").and_then(|digest| digest.as_b().ok()).ok_or_else(|| key.corrupt("no digest"))?;
    Ok(KnownEvent {
        finished: matches!(state.as_str(), "processed" | "ignored"),
        digest: digest.as_ref().to_vec(),
        api_version: read_text(item, "api_version"),
        attempts: read_number(item, "attempts").unwrap_or(0),
        redrives: read_number(item, "redrives").unwrap_or(0),
        previous: read_text(item, "previous"),
    })
}

/// A text of an item.
pub fn read_text(item: &Item, name: &str) -> Option<String> {
    item.get(name)?.as_s().ok().cloned()
}

/// The ids of the objects that an event's item names.
pub fn read_objects(item: &Item) -> Vec<String> {
    let objects = item.get("objects").and_then(|all| all.as_l().ok()).into_iter().flatten();
    objects.filter_map(|id| id.as_s().ok()).cloned().collect()
}

/// The compressed body of an event's item.
pub fn read_payload(item: &Item) -> Option<&[u8]> {
    Some(item.get("payload")?.as_b().ok()?.as_ref())
}

/// A number of an item.
pub fn read_number<N: std::str::FromStr>(item: &Item, name: &str) -> Option<N> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

/// An order as the app sees it.
pub fn read_order(item: &Item) -> BTreeMap<String, serde_json::Value> {
    let optional =
        ["customer_id", "customer_email", "deadline", "files_url", "final_package_url", "upgraded_from"];
    let mut order: BTreeMap<String, serde_json::Value> =
        optional.iter().map(|name| ((*name).to_owned(), serde_json::Value::Null)).collect();
    for (name, value) in item {
        let value = match (value.as_s(), value.as_n(), value.as_bool()) {
            (Ok(text), ..) => serde_json::Value::from(text.as_str()),
            (_, Ok(number), _) => serde_json::from_str(number).unwrap_or(serde_json::Value::Null),
            (.., Ok(flag)) => serde_json::Value::from(*flag),
            (Err(_), Err(_), Err(_)) => continue,
        };
        match name.as_str() {
            "pk" => {}
            "sk" => {
                let id = value.as_str().and_then(|sort| sort.strip_prefix("order#")).unwrap_or_default();
                order.insert("id".to_owned(), serde_json::Value::from(id));
            }
            other => {
                order.insert(other.to_owned(), value);
            }
        }
    }
    order
}

/// Credits as an item attribute has them.
pub fn read_credits(item: &Item) -> Option<Credits> {
    item.get("credits")?.as_n().ok()?.parse().ok().map(Credits::new)
}

#[cfg(test)]
mod tests;
