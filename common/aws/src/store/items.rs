//! Keys and items of the two tables. Only this module builds and reads them.
//!
//! **Accounts table** (`pk`, `sk`; items never expire)
//!
//! | pk | sk | item |
//! |---|---|---|
//! | `user#<id>` | `account` | the account: see below |
//! | `user#<id>` | `ledger#<ledger key>` | one [`Entry`] |
//! | `user#<id>` | `newcomer` | `waiting` SS: events parked until the app creates the user |
//! | `user#<id>` | `order#<cs_…>` | a one-time order: see [`order`]; the app changes `status` |
//! | `user#<id>` | `portal` | `password_set_at` and `welcome_email_at` N (unix s): see [`portal`] |
//! | `invoice#<in_…>` | `entry` | the [`Entry`] of a paid invoice, and `user_id` S, `moved_to` S, `payments` SS |
//! | `customer#<cus_…>` | `link` | see [`StoredOwner`]; or `waiting` SS |
//! | `subscription#<sub_…>` | `link` | the same as of a customer |
//! | `session#<cs_…>` | `link` | see [`KnownSession`] |
//! | `payment#<pi_… or ch_…>` | `link` | see [`payment`] |
//! | `catalog` | `current`, `version#<number>` | the stored catalog and its versions: see [`catalog()`] |
//! | `catalog` | `learnt` | the learnt price ids: see [`learnt_prices`] |
//!
//! - An account has `tier` S, `tier_rank` N, `credits` N, `available` N (without open holds), `access_until`
//!   N (unix s; absent: no end), `version` N, `updated_at` N and `state` B. The app may read all but the last
//!   three directly. `state` is internal and may change: it is a [`State`] as JSON, see [`crate::payload`].
//! - If the catalog has features, an account has `features` M (each `BOOL`, `N`, or S `unlimited`) and
//!   `catalog_digest` S (of the catalog that they follow).
//! - `due_at` N (unix s) is on an account only while its tier or credits will change by time, without an
//!   event; until then `tier`, `credits` and `available` are right. With `due_day` S (`2026-11-21`) it is the
//!   key of the index `by_due`, which holds only these accounts.
//! - `shard` S is on every account and on no other item: a number below 16, from a hash of the user id. It is
//!   the key of the index `by_shard`, which lists the accounts, and never changes.
//! - The link of a customer or a subscription has `user_id` S (the owner) and `moved`, `shared`,
//!   `by_reference` BOOL. The link of a session has `user_id` S, `payment` S, `subscription` S and `assigned`
//!   BOOL.
//! - `payments` of an invoice are the payments linked to it before its own event arrived.
//! - `waiting` of a link are the parked events that wait until the customer, subscription or payment is
//!   linked.
//! - A payment has `key` S (ledger key of the document that it paid), `user_id` S, `reversal` M (its refunds
//!   and disputes), `revision` N and, while the document is unknown, `waiting` SS.
//!
//! **Events table** (`pk` = `evt_…`; an event expires 90 days after `finished`, at `expires_at`)
//!
//! | attribute | meaning |
//! |---|---|
//! | `outcome` S | `processed`, `ignored`, `parked`, `failed`, `dismissed`; a duplicate writes nothing |
//! | `type` S, `created` N, `livemode` BOOL, `api_version` S | from the event |
//! | `received` N, `finished` N | unix ms |
//! | `attempts` N | number of attempts over all deliveries |
//! | `reason` S, `message` S | why it is parked, failed or ignored, or what processing did |
//! | `waits_for` S | the key that a parked event waits for |
//! | `mode` S | only while parked, failed or dismissed: mode of the secret that verified the event |
//! | `catalog` S | the digest of the stored catalog that decided; absent while none is stored |
//! | `due` N | only while parked or failed: when `retry` sends it again (unix ms) |
//! | `redrives` N | only while parked, failed or dismissed: how often `retry` sent it again |
//! | `dismissed_by` S, `dismissed_reason` S, `dismissed_at` N (unix ms) | only while dismissed: [`Dismissal`] |
//! | `dismissed_from` S | only while dismissed: the outcome before, `parked` or `failed` |
//! | `previous` S | the user's event before this one; empty for the first; absent: in no user's list |
//! | `user_id` S, `objects` L | the user and the ids of Stripe's objects |
//! | `digest` B, `payload` B | SHA-256 of the content; the body, see [`crate::payload`] |
//! | `day` S, `seen` N | key of index `by_day`: `2026-11-21#invoice-paid#0`, `received` |
//! | `open` S, `seen` N | key of index `by_status`: `parked#0`, `failed#3`, `dismissed#1`; else absent |
//!
//! Other items in the same table:
//!
//! | pk | item |
//! |---|---|
//! | `audit#<unix ms>#<random>` | an operator's change: see [`audit`]; never expires |
//! | `import#<batch>` | how many rows of an import are done: see [`import`]; never expires |
//! | `alert#<destination>#<alert key>` | the last post of an alert |
//! | `signal#bad_signatures` | the newest burst of refused signatures: `refused` N, `at` N (unix s) |
//! | `job#provision#<user id>` | a call of the app's provisioning: see [`job`]; never expires |
//! | `job#account#<user id>` | a message to the app about an account; also `credits_low` and others |
//! | `job#order_paid#<cs_…>#<user id>` | a message to the app with its cause; also `subscription_renewed` … |
//! | `hold#<hold_…>#<user id>` | a hold of credits: see [`hold`]; until 7 days after its end |
//! | `sweep` | how far the sweep after a change of the catalog has come: see [`sweep()`]; never expires |
//! | `ask#<cs_…>` | a request to Stripe for a session: `asked` N (unix s), `tries` N, `answer` S; 30 days |
//! | `checkout#<user id>` | the customer that our checkout created: see [`CreatedCustomer`]; one year |
//! | `reconcile` | where an unfinished reconciliation stopped: see [`reconcile_place`]; one day |
//! | `report#reconcile` | result of the last complete reconciliation: see [`reconcile_report`] |
//!
//! - An audit item is in `by_day` under the family `audit`.
//! - Of an alert, `quiet_until` N (unix s) is the end of its quiet time, `held` N counts the alerts
//!   suppressed in it, `message` S is the message being posted, and `posted` S the message that was posted.
//! - A job has `outcome` S (`queued`, `running`, `completed`, `failed`), `reason` S, `attempts` N, `session`
//!   S (the checkout session that caused it), `data` S (see [`job`]), and `open` S (`job#0`) until it is
//!   completed.

mod catalog;
mod holds;
mod sweep;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use self::catalog::{
    MAX_CATALOG_BYTES, StoredCatalog, catalog, catalog_digest, learnt_prices, note_catalog, read_catalog,
    read_learnt_prices,
};
pub use self::holds::{KnownHold, hold, hold_key, read_hold};
pub use self::sweep::{SweepPlace, read_sweep, sweep, sweep_key};
use super::{Condition, StoreError, Write};
use crate::payload;
use tallyhook_core::account::{Account, State};
use tallyhook_core::catalog::{Catalog, FeatureValue};
use tallyhook_core::decide::owner::StoredOwner;
use tallyhook_core::decide::{Order, OrderPayment, PaymentRef};
use tallyhook_core::ids::{CustomerId, EventId, InvoiceId, SessionId, SubscriptionId, UserId};
use tallyhook_core::job::{JobMessage, JobScope};
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::order::OrderStatus;
use tallyhook_core::reversal::{PaymentRecord, Reversal};
use tallyhook_core::setup_status::{ProvisioningState, SessionPayment};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// An item of DynamoDB.
pub type Item = HashMap<String, AttributeValue>;

/// Days that an event stays in the log. Stripe can send an event again for 30 days.
pub const EVENT_DAYS: i64 = 90;
/// Index partitions for one day and family, and for one open status. They spread the writes of a burst.
pub const SHARDS: u8 = 4;

/// Initial capacity of an item's map: the largest number of attributes, so that the map never grows.
const MAX_ATTRIBUTES: usize = 24;

/// One of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Accounts, ledger entries, orders and links.
    Accounts,
    /// The event log. It also makes sure that an event is applied once.
    Events,
}

/// The key of an item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An account.
    Account(UserId),
    /// A ledger entry.
    Entry(UserId, LedgerKey),
    /// The ledger entry of a paid invoice, and the payments that are linked to it.
    Invoice(InvoiceId),
    /// A one-time order.
    Order(UserId, SessionId),
    /// The owner of a Stripe customer.
    Customer(CustomerId),
    /// The owner of a checkout session.
    Session(SessionId),
    /// What the app reported about a user's set-up.
    Portal(UserId),
    /// The owner of a subscription.
    Subscription(SubscriptionId),
    /// The events that are parked until the app creates a user.
    Newcomer(UserId),
    /// A payment, by `pi_…` or `ch_…`.
    Payment(String),
    /// The current catalog.
    Catalog,
    /// A version of the catalog.
    CatalogVersion(u64),
    /// The learnt price ids.
    LearntPrices,
    /// An event of the log, or another item of the events table: `audit#…`, `alert#…`, `job#…`.
    Event(String),
}

impl Key {
    /// An event by its id.
    pub fn event(id: &EventId) -> Self {
        Self::Event(id.to_string())
    }

    /// A ledger entry. The entry of an invoice has a key without the user. So an invoice is granted once over
    /// all users, and a payment of the invoice finds the user.
    pub fn entry(user: &UserId, key: &LedgerKey) -> Self {
        match key.invoice_id() {
            Some(invoice) => Self::Invoice(invoice),
            None => Self::Entry(user.clone(), key.clone()),
        }
    }

    /// A payment, by the id in a refund or dispute.
    pub fn payment(payment: &PaymentRef) -> Self {
        Self::Payment(payment.as_str().to_owned())
    }

    /// The table of the item.
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
            | Self::Payment(_)
            | Self::Catalog
            | Self::CatalogVersion(_)
            | Self::LearntPrices => Table::Accounts,
        }
    }

    /// The partition key.
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
            Self::Catalog | Self::CatalogVersion(_) | Self::LearntPrices => "catalog".to_owned(),
            Self::Event(id) => id.clone(),
        }
    }

    /// The sort key; empty in the events table, which has no sort key.
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
            Self::Catalog => "current".to_owned(),
            Self::CatalogVersion(version) => format!("version#{version:08}"),
            Self::LearntPrices => "learnt".to_owned(),
            Self::Event(_) => String::new(),
        }
    }

    /// The error for an item of this key that cannot be read.
    pub fn corrupt(&self, message: impl ToString) -> StoreError {
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
    with_key(Item::with_capacity(MAX_ATTRIBUTES), key.table(), &key.partition(), &key.sort())
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

/// The day in the index key of a time: `2026-11-21`.
pub fn day(ms: i64) -> String {
    Timestamp::from_unix(ms.div_euclid(1000)).to_string().chars().take(10).collect()
}

/// Writes an account, on condition that it did not change since it was loaded.
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
    let due = account.state.next_change(&access, now);
    let mut item = new_item(&key);
    item.insert("shard".to_owned(), text(account_shard(&account.user_id).to_string()));
    item.insert("tier".to_owned(), text(access.tier));
    item.insert("tier_rank".to_owned(), number(access.rank));
    let credits = account.state.balance(&catalog.policy, now);
    item.insert("credits".to_owned(), number(credits));
    item.insert("available".to_owned(), number(credits.minus(account.state.held(now))));
    if let Some(until) = access.until {
        item.insert("access_until".to_owned(), number(until.unix()));
    }
    if let Some(due) = due {
        item.insert("due_at".to_owned(), number(due.unix()));
        item.insert("due_day".to_owned(), text(day(due.unix().saturating_mul(1000))));
    }
    if let Some(digest) = catalog.features_digest() {
        let features = account.state.features(catalog, now);
        let features: BTreeMap<&String, FeatureValue> =
            features.iter().map(|(name, feature)| (name, feature.value)).collect();
        let features = serde_dynamo::to_attribute_value(features).map_err(|error| key.corrupt(error))?;
        item.insert("features".to_owned(), features);
        item.insert("catalog_digest".to_owned(), text(digest));
    }
    item.insert("version".to_owned(), number(account.version));
    item.insert("updated_at".to_owned(), number(now.unix()));
    let state = serde_json::to_vec(&account.state).map_err(|error| key.corrupt(error))?;
    let packed = payload::pack(&state);
    if packed.is_empty() {
        return Err(key.corrupt("the state cannot be compressed"));
    }
    item.insert("state".to_owned(), AttributeValue::B(Blob::new(packed)));
    Ok(Write { key, item: Some(item), condition: Condition::Version(loaded_version) })
}

/// Number of key values of the index `by_shard`. DynamoDB writes at most 1,000 units per second to one key
/// value, and a new account writes one.
pub const ACCOUNT_SHARDS: u8 = 16;

/// The shard of an account in the index `by_shard`. It is stored, so it must not change.
pub fn account_shard(user: &UserId) -> u8 {
    Sha256::digest(user.as_str()).first().copied().unwrap_or(0) % ACCOUNT_SHARDS
}

/// Reads an account back.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_account(user_id: &UserId, item: &Item) -> Result<Account, StoreError> {
    let key = Key::Account(user_id.clone());
    let version = read_number(item, "version");
    let packed =
        item.get("state").and_then(|state| state.as_b().ok()).ok_or_else(|| key.corrupt("no state"))?;
    let state =
        payload::unpack(packed.as_ref()).ok_or_else(|| key.corrupt("its state cannot be unpacked"))?;
    let state: State = serde_json::from_slice(&state).map_err(|error| key.corrupt(error))?;
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

/// Writes a ledger entry, on condition that no entry with its key exists. `invoice` is the item of the
/// entry's invoice as it was read: the payments linked to it are kept.
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

/// Writes the entry of a spend again after a part of the spend was given back. It has no condition of its
/// own: the account's version in the same transaction protects it.
///
/// # Errors
/// [`StoreError::Corrupt`] if it cannot be written as an item.
pub fn entry_again(user: &UserId, entry: &Entry) -> Result<Write, StoreError> {
    put(Key::entry(user, &entry.key), entry, Condition::Anything)
}

/// Gives the refunds and payments of an invoice to another user, to whom its subscription was moved. The entry
/// stays in the ledger of the user who had it. The versions of both accounts in the same transaction protect
/// the write.
pub fn moved_invoice(invoice: &InvoiceId, item: &Item, to: &UserId) -> Write {
    let mut item = item.clone();
    item.insert("moved_to".to_owned(), text(to.as_str()));
    Write { key: Key::Invoice(invoice.clone()), item: Some(item), condition: Condition::Anything }
}

/// The user to whom an invoice belongs, and its entry; `None` while only payments of the invoice are known.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_invoice(key: &Key, item: &Item) -> Result<Option<(UserId, Entry)>, StoreError> {
    let Some((user, entry)) = read_invoice_entry(key, item)? else { return Ok(None) };
    let moved = read_text(item, "moved_to").map(UserId::new).transpose();
    Ok(Some((moved.map_err(|error| key.corrupt(error))?.unwrap_or(user), entry)))
}

/// The user whose ledger has the entry of an invoice, and the entry.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_invoice_entry(key: &Key, item: &Item) -> Result<Option<(UserId, Entry)>, StoreError> {
    let Some(user) = read_text(item, "user_id") else { return Ok(None) };
    let user = UserId::new(user).map_err(|error| key.corrupt(error))?;
    Ok(Some((user, read(key, item)?)))
}

/// The payments that were linked to an invoice before its own event arrived.
pub fn payments_of_invoice(item: &Item) -> BTreeSet<String> {
    item.get("payments").and_then(|payments| payments.as_ss().ok()).into_iter().flatten().cloned().collect()
}

/// Links payments to an invoice, on condition that the invoice's own event has not arrived.
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

/// Reads an item that was written from a Rust value, such as a ledger entry.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read<T: DeserializeOwned>(key: &Key, item: &Item) -> Result<T, StoreError> {
    serde_dynamo::from_item(item.clone()).map_err(|error| key.corrupt(error))
}

/// Links a customer to its owner. `known` is the stored owner that was read. The condition is that the
/// customer still has this owner, or, without one, that it has no other owner.
pub fn customer(customer: &CustomerId, owner: &StoredOwner, known: Option<&StoredOwner>) -> Write {
    link(Key::Customer(customer.clone()), owner, known)
}

/// Links a subscription to its owner, with the same condition as [`customer`].
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

/// The stored owner of a customer or a subscription; `None` while it has no owner and events wait for it.
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

/// Records events that wait for a customer, a subscription or a new user, on condition that it has no owner.
/// `known` are the events that waited when the item was read. The write that links the owner reads them.
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

/// A payment item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownPayment {
    /// The document, the user and the reversals of the payment.
    pub record: PaymentRecord,
    /// The parked events that wait for its document.
    pub waiting: BTreeSet<String>,
    /// How often the item was written; the condition of the next write.
    pub revision: u64,
}

/// Writes a payment, on condition that its item still has the revision that was read. Of two concurrent
/// refunds the second one fails and reads the item again.
///
/// ```json
/// {"pk":"payment#pi_1","sk":"link","user_id":"u","key":"invoice#in_1","reversal":{…},"revision":2}
/// ```
///
/// # Errors
/// [`StoreError::Corrupt`] if the reversal cannot be written as an attribute.
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

/// Reads a payment.
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

/// The owner of a session, a customer or a payment; `None` while it has no owner.
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

/// A checkout session item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSession {
    /// Its owner.
    pub user: UserId,
    /// The state of its payment.
    pub payment: SessionPayment,
    /// The subscription that it created.
    pub subscription: Option<SubscriptionId>,
    /// Whether an operator assigned the owner.
    pub assigned: bool,
    /// The customer's own reference: `customer_reference` of the metadata.
    pub reference: Option<String>,
}

/// Writes a checkout session. It has no condition of its own: the account's version in the same transaction
/// protects it.
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
    if let Some(reference) = &known.reference {
        item.insert("reference".to_owned(), text(reference));
    }
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// Writes the owner that an operator assigned to a guest's session, on condition that it has none.
pub fn assigned_session(id: &SessionId, user: &UserId) -> Write {
    let known = KnownSession {
        user: user.clone(),
        payment: SessionPayment::Confirming,
        subscription: None,
        assigned: true,
        reference: None,
    };
    Write { condition: Condition::Absent, ..session(id, &known) }
}

/// Reads a checkout session.
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
    let reference = read_text(item, "reference");
    Ok(KnownSession { user, payment, subscription, assigned, reference })
}

/// What the app reported about the set-up of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortalRecord {
    /// When the user got a password.
    pub password_set_at: Option<Timestamp>,
    /// When the app sent the welcome e-mail.
    pub welcome_email_at: Option<Timestamp>,
    /// The state of provisioning, in the app's words.
    pub reported: Option<ProvisioningState>,
    /// How often it was written; the condition of the next write.
    pub revision: u64,
}

/// Writes what the app reported, on condition that nothing was reported since it was read.
pub fn portal(user: &UserId, record: &PortalRecord) -> Write {
    let key = Key::Portal(user.clone());
    let mut item = new_item(&key);
    let times = [("password_set_at", record.password_set_at), ("welcome_email_at", record.welcome_email_at)];
    for (name, at) in times {
        item.extend(at.map(|at| (name.to_owned(), number(at.unix()))));
    }
    item.extend(record.reported.map(|state| ("provisioning".to_owned(), text(state.as_str()))));
    item.insert("revision".to_owned(), number(record.revision + 1));
    Write { key, item: Some(item), condition: Condition::Revision(record.revision) }
}

/// Reads the item of [`portal`].
pub fn read_portal(item: &Item) -> PortalRecord {
    let time = |name: &str| read_number(item, name).map(Timestamp::from_unix);
    PortalRecord {
        password_set_at: time("password_set_at"),
        welcome_email_at: time("welcome_email_at"),
        reported: read_text(item, "provisioning").and_then(|state| ProvisioningState::from_text(&state)),
        revision: read_number(item, "revision").unwrap_or(0),
    }
}

/// A job of the outbox, in the events table.
pub fn job_key(job: &JobMessage) -> Key {
    Key::Event(format!("job#{}", job.text()))
}

/// Writes a job that the outbox will do. It replaces an earlier one with the same key. `open` is removed when
/// the job is completed. `session` is the checkout session that caused it. `data` S is JSON: what the message
/// has beside the account. A job that names its cause expires with its event, unless it is about an order.
pub fn job(job: &JobMessage, data: &Map<String, Value>, now: Timestamp) -> Write {
    let key = job_key(job);
    let user = &job.user_id;
    let shard = Sha256::digest(user.as_str()).first().copied().unwrap_or(0) % SHARDS;
    let ms = now.unix().saturating_mul(1000);
    let mut item = new_item(&key);
    item.extend([
        ("outcome".to_owned(), text("queued")),
        ("type".to_owned(), text(job.job.event())),
        ("user_id".to_owned(), text(user.as_str())),
        ("created".to_owned(), number(now.unix())),
        ("finished".to_owned(), number(ms)),
        ("attempts".to_owned(), number(0)),
        ("redrives".to_owned(), number(0)),
        ("due".to_owned(), number(ms + redrive_pause_seconds(0) * 1000)),
        // The random part tells this job apart from one that was written in the same second.
        ("seen".to_owned(), number(ms + i64::from(fastrand::u16(..1000)))),
        ("open".to_owned(), text(format!("job#{shard}"))),
    ]);
    if let Some(session) = &job.checkout_session_id {
        item.insert("session".to_owned(), text(session.as_str()));
    }
    if !data.is_empty() {
        item.insert("data".to_owned(), text(Value::Object(data.clone()).to_string()));
    }
    if job.job.scope() == JobScope::Cause && !job.job.is_about_order() {
        item.insert("expires_at".to_owned(), number(now.plus_days(EVENT_DAYS).unix()));
    }
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// What the message of a job has beside the account.
pub fn data_of_job(item: &Item) -> Map<String, Value> {
    read_text(item, "data").and_then(|data| serde_json::from_str(&data).ok()).unwrap_or_default()
}

/// The checkout session that caused a job.
pub fn session_of_job(item: &Item) -> Option<SessionId> {
    SessionId::new(read_text(item, "session")?).ok()
}

/// Writes a new order:
///
/// ```json
/// {"pk":"user#u","sk":"order#cs_1","mode":"dfy","tier":"STARTER","status":"NEW","deadline":1768000000,
///  "revisions_left":1,"checklist_status":"PENDING","customer_email":"…","amount_total":9900,
///  "currency":"usd","created_at":1767600000,"updated_at":1767600000,
///  "history":[{"at":1767600000,"step":"NEW"}],"due_day":"order","due_at":1767600000}
/// ```
/// `due_day` and `due_at` are the key of the index `by_due`, which lists all orders by time.
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
        ("status".to_owned(), text(OrderStatus::New.as_str())),
        ("revisions_left".to_owned(), number(order.revisions_left)),
        ("checklist_status".to_owned(), text("PENDING")),
        ("amount_total".to_owned(), number(order.amount_total)),
        ("currency".to_owned(), text(order.currency.clone())),
        ("created_at".to_owned(), number(order.created_at.unix())),
        ("updated_at".to_owned(), number(order.created_at.unix())),
        ("due_day".to_owned(), text(ORDERS)),
        ("due_at".to_owned(), number(order.created_at.unix())),
    ]);
    add_step(&mut item, OrderStatus::New.as_str(), order.created_at.unix());
    for (name, value) in optional {
        if let Some(value) = value {
            item.insert(name.to_owned(), text(value.clone()));
        }
    }
    Write { key, item: Some(item), condition: Condition::Absent }
}

/// Writes an order after a refund or a dispute of its payment, on condition that the order did not change
/// since it was read. `None` when the refund or dispute changes nothing.
pub fn order_after(user: &UserId, paid: &OrderPayment, item: &Item, now: Timestamp) -> Option<OrderChange> {
    let mut change = OrderChange::new(user, &paid.session, item, now);
    if paid.refunded {
        change.set_status(OrderStatus::Refunded);
    }
    change.set_disputed(paid.disputed);
    change.is_any().then_some(change)
}

/// The value of `due_day` of every order.
pub(super) const ORDERS: &str = "order";
/// The maximum number of steps kept of an order. Beyond it, the oldest step after the first is dropped.
const MAX_STEPS: usize = 100;

/// Adds a step to the history of an order.
fn add_step(order: &mut Item, step: &str, at: i64) {
    let mut steps = match order.remove("history") {
        Some(AttributeValue::L(steps)) => steps,
        Some(_) | None => Vec::new(),
    };
    if steps.len() >= MAX_STEPS {
        steps.remove(1);
    }
    let step = [("at".to_owned(), number(at)), ("step".to_owned(), text(step))];
    steps.push(AttributeValue::M(step.into()));
    order.insert("history".to_owned(), AttributeValue::L(steps));
}

/// A change of a stored order, written on condition that the order did not change since it was read.
pub struct OrderChange {
    key: Key,
    before: Item,
    after: Item,
    read_at: i64,
    at: i64,
}

impl OrderChange {
    /// Starts a change of an order as it was read.
    pub fn new(user: &UserId, session: &SessionId, item: &Item, now: Timestamp) -> Self {
        let read_at = read_number(item, "updated_at").unwrap_or(0);
        let key = Key::Order(user.clone(), session.clone());
        // `updated_at` always grows, so that it tells two changes of one second apart.
        Self { key, before: item.clone(), after: item.clone(), read_at, at: now.unix().max(read_at + 1) }
    }

    /// Moves the order to this status, and adds the step to its history.
    pub fn set_status(&mut self, status: OrderStatus) {
        if read_text(&self.after, "status").as_deref() != Some(status.as_str()) {
            self.after.insert("status".to_owned(), text(status.as_str()));
            add_step(&mut self.after, status.as_str(), self.at);
        }
    }

    /// Whether the change leads to this status from another one.
    pub fn moves_to(&self, status: OrderStatus) -> bool {
        let is = |item: &Item| read_text(item, "status").as_deref() == Some(status.as_str());
        is(&self.after) && !is(&self.before)
    }

    fn set_disputed(&mut self, disputed: bool) {
        match (disputed, self.after.contains_key("disputed")) {
            (true, false) => {
                self.after.insert("disputed".to_owned(), AttributeValue::Bool(true));
                add_step(&mut self.after, "disputed", self.at);
            }
            (false, true) => {
                self.after.remove("disputed");
                add_step(&mut self.after, "dispute over", self.at);
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Sets a text, or removes it.
    pub fn set_text(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.after.insert(name.to_owned(), text(value)),
            None => self.after.remove(name),
        };
    }

    /// Sets a number, or removes it.
    pub fn set_number(&mut self, name: &str, value: Option<i64>) {
        match value {
            Some(value) => self.after.insert(name.to_owned(), number(value)),
            None => self.after.remove(name),
        };
    }

    fn is_any(&self) -> bool {
        self.after != self.before
    }

    /// The order after the change.
    pub fn write(mut self) -> Write {
        self.after.insert("updated_at".to_owned(), number(self.at));
        Write { key: self.key, item: Some(self.after), condition: Condition::UpdatedAt(self.read_at) }
    }
}

/// The last request to Stripe for a checkout session, and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionRequest {
    /// Unix seconds of the last request; 0 when there was none.
    pub asked: i64,
    /// Number of requests.
    pub tries: u32,
    /// Stripe's answer: a [`SessionPayment`], or `missing`.
    pub answer: Option<String>,
    /// The customer's own reference, if the session at Stripe has one.
    pub reference: Option<String>,
    /// Whether this deployment created the session.
    pub is_ours: bool,
}

/// The key of the item about requests to Stripe for a session.
pub fn session_request_key(session: &SessionId) -> Key {
    Key::Event(format!("ask#{session}"))
}

/// Reads the item of [`session_request_key`].
pub fn read_session_request(item: &Item) -> SessionRequest {
    SessionRequest {
        asked: read_number(item, "asked").unwrap_or(0),
        tries: read_number(item, "tries").unwrap_or(0),
        answer: read_text(item, "answer"),
        reference: read_text(item, "customer_reference"),
        is_ours: item.contains_key("ours"),
    }
}

/// The customer that `POST /checkout-sessions` created for a user. The events of a purchase link it to the
/// user. Until then, this item lets the next checkout use it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreatedCustomer {
    /// The customer that was created last.
    pub customer: Option<CustomerId>,
    /// How many were created before it.
    pub earlier: u32,
    /// Customers of the user that do not exist at Stripe, as its answers said.
    pub missing: BTreeSet<String>,
}

/// The key of the item of a [`CreatedCustomer`].
pub fn created_customer_key(user: &UserId) -> Key {
    Key::Event(format!("checkout#{user}"))
}

/// Reads the item of [`created_customer_key`].
pub fn read_created_customer(item: &Item) -> CreatedCustomer {
    let missing = item.get("gone").and_then(|missing| missing.as_ss().ok());
    CreatedCustomer {
        customer: read_text(item, "customer_id").and_then(|id| CustomerId::new(id).ok()),
        earlier: read_number(item, "earlier").unwrap_or(0),
        missing: missing.into_iter().flatten().cloned().collect(),
    }
}

/// The key of the count of requests to Stripe for sessions.
pub fn session_budget_key() -> Key {
    Key::Event("budget#sessions".to_owned())
}

/// The key of the item about an alert's last post to a destination.
pub fn alert_key(destination: &str, alert: &str) -> Key {
    Key::Event(format!("alert#{destination}#{alert}"))
}

/// The key of the item about the newest burst of refused signatures.
pub fn bad_signatures_key() -> Key {
    Key::Event("signal#bad_signatures".to_owned())
}

/// The key of the last reconciliation's report.
pub fn reconcile_report_key() -> Key {
    Key::Event("report#reconcile".to_owned())
}

/// The key of what `health` found in the Stripe account.
pub fn stripe_account_key() -> Key {
    Key::Event("report#stripe_account".to_owned())
}

/// What was found in the Stripe account, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StripeAccountReport {
    /// The findings as JSON.
    pub findings: String,
    /// The keys of the findings of which an alert was sent.
    pub alerted: Vec<String>,
    /// When the account was read, in unix ms.
    pub checked_ms: i64,
}

/// Writes what was found in the Stripe account:
///
/// ```json
/// {"pk":"report#stripe_account","findings":"[{\"level\":\"error\",…}]","alerted":["error#endpoint#5f2b81aa"],
///  "checked":1767600000000}
/// ```
pub fn stripe_account(report: &StripeAccountReport) -> Write {
    let key = stripe_account_key();
    let mut item = new_item(&key);
    item.extend([
        ("findings".to_owned(), text(&report.findings)),
        ("checked".to_owned(), number(report.checked_ms)),
        ("alerted".to_owned(), AttributeValue::L(report.alerted.iter().map(text).collect())),
    ]);
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// Reads the item of [`stripe_account_key`].
pub fn read_stripe_account(item: &Item) -> StripeAccountReport {
    let alerted = item.get("alerted").and_then(|alerted| alerted.as_l().ok());
    let alerted = alerted.into_iter().flatten().filter_map(|key| key.as_s().ok().cloned());
    StripeAccountReport {
        findings: read_text(item, "findings").unwrap_or_default(),
        alerted: alerted.collect(),
        checked_ms: read_number(item, "checked").unwrap_or(0),
    }
}

/// The key of the position of an unfinished reconciliation.
pub fn reconcile_place_key() -> Key {
    Key::Event("reconcile".to_owned())
}

/// Writes the position of an unfinished reconciliation:
///
/// ```json
/// {"pk":"reconcile","started":1767600000,"pass":"subscriptions","after":"sub_1","expires_at":1767686400}
/// ```
pub fn reconcile_place(started: Timestamp, pass: &str, after: Option<String>, expires: Timestamp) -> Write {
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

/// The key of the progress of an import.
pub fn import_key(batch: &str) -> Key {
    Key::Event(format!("import#{batch}"))
}

/// Writes how many rows of an import are done:
///
/// ```json
/// {"pk":"import#2026-11","file":"9f86d0…","as_of":1767600000,"rows":4200}
/// ```
pub fn import(batch: &str, file: &str, as_of: Timestamp, rows: u64) -> Write {
    let key = import_key(batch);
    let mut item = new_item(&key);
    item.insert("file".to_owned(), text(file));
    item.insert("as_of".to_owned(), number(as_of.unix()));
    item.insert("rows".to_owned(), number(rows));
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventState {
    /// Its effects are in the account.
    Processed,
    /// It has no effect on any account.
    Ignored,
    /// It waits for a person or for a later event.
    Parked,
    /// All attempts failed.
    Failed,
    /// It was parked or failed, and an operator dismissed it.
    Dismissed,
}

impl EventState {
    /// The value of `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processed => "processed",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
            Self::Failed => "failed",
            Self::Dismissed => "dismissed",
        }
    }
}

/// The partition of `by_status` for an event in this state.
pub(super) fn open_partition(state: &str, digest: &[u8]) -> String {
    format!("{state}#{}", digest.first().copied().unwrap_or(0) % SHARDS)
}

/// What an operator said about a dismissed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dismissal {
    /// The operator.
    pub actor: String,
    /// The reason.
    pub reason: String,
    /// When, in unix ms.
    pub at_ms: i64,
}

/// The dismissal of an event; `None` while it is not dismissed.
pub fn read_dismissal(item: &Item) -> Option<Dismissal> {
    Some(Dismissal {
        actor: read_text(item, "dismissed_by")?,
        reason: read_text(item, "dismissed_reason")?,
        at_ms: read_number(item, "dismissed_at")?,
    })
}

/// One event of the log.
#[derive(Clone, Debug)]
pub struct EventRecord {
    /// `evt_…`
    pub id: String,
    /// Stripe's event type.
    pub kind: String,
    /// The family that handles it; `other` for a type without a family.
    pub family: &'static str,
    /// Its outcome.
    pub state: EventState,
    /// The reason code of parking, ignoring or failing, or what processing did.
    pub reason: Option<String>,
    /// The reason in words. It may hold ids and names from the catalog, never personal data.
    pub message: Option<String>,
    /// The key that a parked event waits for.
    pub waits_for: Option<String>,
    /// The user, if known.
    pub user: Option<UserId>,
    /// Ids of the Stripe objects that it names.
    pub objects: Vec<String>,
    /// When Stripe created it.
    pub created: Timestamp,
    /// When we received it, unix ms.
    pub received_ms: i64,
    /// When it ended, unix ms.
    pub finished_ms: i64,
    /// Number of attempts over all deliveries.
    pub attempts: u32,
    /// How often `retry` sent it to its queue again.
    pub redrives: u32,
    /// The user's event that was recorded before this one; empty for the first. `None` keeps the event out of
    /// the user's list.
    pub previous: Option<String>,
    /// Mode of the secret that verified it.
    pub mode: SecretMode,
    /// Whether it is a live event.
    pub livemode: bool,
    /// The API version that rendered it.
    pub api_version: Option<String>,
    /// SHA-256 of its content.
    pub digest: [u8; 32],
    /// The compressed body; `None` when it is not stored.
    pub payload: Option<Vec<u8>>,
}

/// The stored record of an event that was received before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownEvent {
    /// Whether it was processed, ignored or dismissed.
    pub finished: bool,
    /// SHA-256 of its content.
    pub digest: Vec<u8>,
    /// The API version that rendered it.
    pub api_version: Option<String>,
    /// Number of attempts so far.
    pub attempts: u32,
    /// How often `retry` sent it to its queue again.
    pub redrives: u32,
    /// The event before it in its user's list, if it is in one.
    pub previous: Option<String>,
}

/// Seconds until `retry` sends an event again after `redrives` redrives: 15 minutes, doubled with each
/// redrive, at most a day.
pub fn redrive_pause_seconds(redrives: u32) -> i64 {
    (900_i64 << redrives.min(7)).min(86_400)
}

/// Writes an event, on condition that it is not finished.
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
        item.insert("open".to_owned(), text(open_partition(record.state.as_str(), &record.digest)));
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

/// Writes the audit item of an operator's change. It is written before the change, so no change is made
/// without one. `claimed` is another name that the request gave.
pub fn audit(actor: &str, claimed: Option<&str>, reason: &str, act: &str, target: &str, at_ms: i64) -> Write {
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
    item.extend(claimed.map(|claimed| ("claimed".to_owned(), text(claimed))));
    Write { key, item: Some(item), condition: Condition::Absent }
}

/// Writes the report of a complete reconciliation, for the health score. It never expires, so that `health`
/// knows when the last complete one ended.
pub fn reconcile_report(missing: u64, orphaned: u64, plans_without_invoice: u64, at: Timestamp) -> Write {
    let key = reconcile_report_key();
    let mut item = new_item(&key);
    item.extend([
        ("missing".to_owned(), number(missing)),
        ("orphaned".to_owned(), number(orphaned)),
        ("plans_without_invoice".to_owned(), number(plans_without_invoice)),
        ("finished".to_owned(), number(at.unix().saturating_mul(1000))),
    ]);
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// The id under which an event with a known id but different content is stored. No Stripe id has this form.
pub fn mismatch_id(event: &EventId, digest: &[u8; 32]) -> String {
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{event}~{hex}")
}

/// Whether a text can be the id of an event in the log: a Stripe id, a [`mismatch_id`], or `msg_…` for a
/// message that held no event. Other items of the table have no such id.
pub fn is_event(id: &str) -> bool {
    let of_message = |id: &str| id.len() <= 100 && id.chars().all(|c| c.is_ascii_alphanumeric());
    match id.split_once('~') {
        Some((event, digest)) => EventId::new(event).is_ok() && of_message(digest),
        None => EventId::new(id).is_ok() || id.strip_prefix("msg_").is_some_and(of_message),
    }
}

/// Reads the attributes that decide whether an event is a duplicate.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_event(key: &Key, item: &Item) -> Result<KnownEvent, StoreError> {
    let state =
        item.get("outcome").and_then(|state| state.as_s().ok()).ok_or_else(|| key.corrupt("no outcome"))?;
    let digest =
        item.get("digest").and_then(|digest| digest.as_b().ok()).ok_or_else(|| key.corrupt("no digest"))?;
    Ok(KnownEvent {
        finished: matches!(state.as_str(), "processed" | "ignored" | "dismissed"),
        digest: digest.as_ref().to_vec(),
        api_version: read_text(item, "api_version"),
        attempts: read_number(item, "attempts").unwrap_or(0),
        redrives: read_number(item, "redrives").unwrap_or(0),
        previous: read_text(item, "previous"),
    })
}

/// A text attribute of an item.
pub fn read_text(item: &Item, name: &str) -> Option<String> {
    item.get(name)?.as_s().ok().cloned()
}

/// The ids of the Stripe objects that an event's item names.
pub fn read_objects(item: &Item) -> Vec<String> {
    let objects = item.get("objects").and_then(|all| all.as_l().ok()).into_iter().flatten();
    objects.filter_map(|id| id.as_s().ok()).cloned().collect()
}

/// The compressed body of an event's item.
pub fn read_payload(item: &Item) -> Option<&[u8]> {
    Some(item.get("payload")?.as_b().ok()?.as_ref())
}

/// A number attribute of an item.
pub fn read_number<N: std::str::FromStr>(item: &Item, name: &str) -> Option<N> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

/// An order as JSON fields for the app. An optional field that is absent is null. Times are RFC 3339.
pub fn read_order(item: &Item) -> BTreeMap<String, serde_json::Value> {
    let optional =
        ["customer_id", "customer_email", "deadline", "files_url", "final_package_url", "upgraded_from"];
    let mut order: BTreeMap<String, serde_json::Value> =
        optional.iter().map(|name| ((*name).to_owned(), serde_json::Value::Null)).collect();
    for (name, value) in item {
        let name = match name.as_str() {
            "pk" | "due_day" | "due_at" => continue,
            "sk" => "id",
            name => name,
        };
        let value = match (value.as_s(), value.as_n(), value.as_bool()) {
            (Ok(text), ..) => text.strip_prefix("order#").filter(|_| name == "id").unwrap_or(text).into(),
            (_, Ok(number), _) if matches!(name, "deadline" | "created_at" | "updated_at") => {
                number.parse().ok().map(|at| Timestamp::from_unix(at).to_string()).into()
            }
            (_, Ok(number), _) => serde_json::from_str(number).unwrap_or(serde_json::Value::Null),
            (.., Ok(flag)) => serde_json::Value::from(*flag),
            (Err(_), Err(_), Err(_)) => continue,
        };
        order.insert(name.to_owned(), value);
    }
    order
}

/// The steps of an order, oldest first: when, and the status or `disputed`, `dispute over`.
pub fn order_history(item: &Item) -> Vec<(Timestamp, String)> {
    let steps = item.get("history").and_then(|steps| steps.as_l().ok()).map_or(&[][..], Vec::as_slice);
    let read = |step: &AttributeValue| {
        let step = step.as_m().ok()?;
        Some((Timestamp::from_unix(read_number(step, "at")?), read_text(step, "step")?))
    };
    steps.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests;
