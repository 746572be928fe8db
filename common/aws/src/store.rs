//! DynamoDB: two tables, their keys and items in [`items`], one read before a decision and one transaction
//! after it.
//!
//! **Invariant:** every write of an account, a ledger entry, an order, a link or an event is part of one
//! `TransactWriteItems`. Its conditions make it safe to repeat. Nothing is marked as done before it is done.
//! Only `notes` writes outside a transaction, one item at a time: notes and jobs in the events table, and the
//! redrive count of an open event.
//!
//! **Invariant:** no DynamoDB client leaves this folder, and an [`items::Item`] is opaque outside of it.
//!
//! **Invariant:** decisions use consistent reads by primary key, never an index.

pub mod accounts;
pub mod counts;
mod dismiss;
mod due;
pub mod items;
pub mod log;
mod notes;
pub mod orders;
pub mod schema;

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, Put, TransactWriteItem};

use self::items::{Item, Key, Table};

/// The limit of one `TransactWriteItems`.
const MAX_WRITES: usize = 100;
/// The limit of one `BatchGetItem`.
const MAX_READS: usize = 100;
/// Attempts of a batch read that leaves keys unprocessed.
const MAX_READ_ATTEMPTS: u32 = 5;

/// Access to the two tables.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    accounts: String,
    events: String,
}

/// Why a read or a write failed. [`StoreError::is_transient`] says whether to retry.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// DynamoDB could not be reached, was too slow, or throttled the request. A write may still have been
    /// executed; repeating it is safe.
    #[error("dynamodb {operation} did not answer: {message}")]
    Unavailable {
        /// The operation.
        operation: &'static str,
        /// The SDK's error.
        message: String,
    },
    /// DynamoDB refused the request as invalid or forbidden. Repeating it does not help.
    #[error("dynamodb {operation} refused: {message}")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// DynamoDB's error.
        message: String,
    },
    /// DynamoDB cancelled the transaction; nothing was written. Holds the position and reason of each write
    /// that failed.
    #[error("transaction cancelled: {}", joined(.0))]
    Cancelled(Vec<(usize, Reason)>),
    /// The transaction has more writes than DynamoDB allows.
    #[error("{0} writes do not fit in one transaction")]
    TooMany(usize),
    /// An item does not have the form that this version writes. It is never treated as missing.
    #[error("item {key} cannot be read: {message}")]
    Corrupt {
        /// Key of the item.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

/// Why one write of a transaction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its condition failed.
    Condition,
    /// Another transaction held the item.
    Conflict,
    /// Too many requests for the table or the item.
    Throttled,
    /// DynamoDB does not accept the item, for example because it is too large.
    Invalid,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Condition => "condition failed",
            Self::Conflict => "conflict",
            Self::Throttled => "throttled",
            Self::Invalid => "invalid item",
        }
    }
}

impl StoreError {
    /// Whether the same work may succeed later. Only an invalid request or item never does.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Cancelled(reasons) => reasons.iter().all(|(_, reason)| *reason != Reason::Invalid),
            Self::Refused { .. } | Self::TooMany(_) | Self::Corrupt { .. } => false,
        }
    }
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub struct Write {
    /// What it writes.
    pub key: Key,
    /// The whole item to put. `None` reserves the position in a plan until the item is known.
    pub item: Option<Item>,
    /// The condition of the write.
    pub condition: Condition,
}

/// The condition of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// None: the write replaces any item.
    Anything,
    /// The item does not exist.
    Absent,
    /// The account still has the version it was loaded with.
    Version(u64),
    /// The customer or subscription has this owner, or its item does not exist.
    BoundTo(String),
    /// The customer or subscription still has this owner.
    OwnedBy(String),
    /// It has no owner, and exactly these events wait for it.
    Waiting(BTreeSet<String>),
    /// The payment's item still has the revision that was read. 0 means that it does not exist.
    Revision(u64),
    /// The invoice's own event has not arrived, and exactly these payments are linked to it.
    Payments(BTreeSet<String>),
    /// The order still has this `updated_at`.
    UpdatedAt(i64),
    /// The event is not finished: its item does not exist, or it is parked or failed.
    Unfinished,
}

impl Store {
    /// Uses this client and these two tables.
    pub fn new(client: Client, accounts: impl Into<String>, events: impl Into<String>) -> Self {
        Self { client, accounts: accounts.into(), events: events.into() }
    }

    fn table(&self, table: Table) -> &str {
        match table {
            Table::Accounts => &self.accounts,
            Table::Events => &self.events,
        }
    }

    /// Reads items by key with consistent reads: one `BatchGetItem` for each hundred keys. The result has no
    /// entry for an item that does not exist.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Refused`].
    pub async fn load(&self, keys: impl IntoIterator<Item = Key>) -> Result<HashMap<Key, Item>, StoreError> {
        let mut keys: Vec<(Table, String, String, Key)> =
            keys.into_iter().map(|key| (key.table(), key.partition(), key.sort(), key)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut found = HashMap::with_capacity(keys.len());
        for chunk in keys.chunks(MAX_READS) {
            let mut request: HashMap<String, KeysAndAttributes> = HashMap::new();
            for table in [Table::Accounts, Table::Events] {
                let of_table: Vec<Item> = chunk
                    .iter()
                    .filter(|(of, ..)| *of == table)
                    .map(|(_, pk, sk, _)| items::key_attributes(table, pk, sk))
                    .collect();
                if of_table.is_empty() {
                    continue;
                }
                let wanted =
                    KeysAndAttributes::builder().set_keys(Some(of_table)).consistent_read(true).build();
                let wanted = wanted.map_err(|error| refused("BatchGetItem", &error))?;
                request.insert(self.table(table).to_owned(), wanted);
            }
            for attempt in 0..MAX_READ_ATTEMPTS {
                if request.is_empty() {
                    break;
                }
                if attempt > 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(20 << attempt)).await;
                }
                let answer = self
                    .client
                    .batch_get_item()
                    .set_request_items(Some(request))
                    .send()
                    .await
                    .map_err(|error| failed("BatchGetItem", &error))?;
                for (name, items) in answer.responses.unwrap_or_default() {
                    let table = if name == self.accounts { Table::Accounts } else { Table::Events };
                    for item in items {
                        let text = |name: &str| {
                            item.get(name).and_then(|value| value.as_s().ok()).map_or("", String::as_str)
                        };
                        let asked = chunk.binary_search_by(|(of, pk, sk, _)| {
                            (*of, pk.as_str(), sk.as_str()).cmp(&(table, text("pk"), text("sk")))
                        });
                        if let Some((.., key)) = asked.ok().and_then(|place| chunk.get(place)) {
                            found.insert(key.clone(), item);
                        }
                    }
                }
                request = answer.unprocessed_keys.unwrap_or_default();
            }
            if !request.is_empty() {
                return Err(StoreError::Unavailable {
                    operation: "BatchGetItem",
                    message: "keys stayed unprocessed".to_owned(),
                });
            }
        }
        Ok(found)
    }

    /// Writes everything or nothing.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`] with the position and reason of each write that failed. After
    /// [`StoreError::Unavailable`] the transaction may have been executed: load the items and decide again.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        if writes.len() > MAX_WRITES {
            return Err(StoreError::TooMany(writes.len()));
        }
        let requests = writes.into_iter().map(|write| self.request(write)).collect::<Result<Vec<_>, _>>()?;
        match self.client.transact_write_items().set_transact_items(Some(requests)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(cancelled(&error).unwrap_or_else(|| failed("TransactWriteItems", &error))),
        }
    }

    fn request(&self, write: Write) -> Result<TransactWriteItem, StoreError> {
        let message = || format!("the write of {:?} has no item", write.key);
        let item = write
            .item
            .ok_or_else(|| StoreError::Refused { operation: "TransactWriteItems", message: message() })?;
        let mut put = Put::builder().table_name(self.table(write.key.table())).set_item(Some(item));
        let (text, values) = condition(&write.condition);
        if let Some(text) = text {
            put = put.condition_expression(text).set_expression_attribute_values(values);
        }
        let put = put.build().map_err(|error| refused("TransactWriteItems", &error))?;
        Ok(TransactWriteItem::builder().put(put).build())
    }
}

/// A condition expression and its values.
fn condition(condition: &Condition) -> (Option<&'static str>, Option<HashMap<String, AttributeValue>>) {
    let values = |values: &[(&str, AttributeValue)]| {
        Some(values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    };
    match condition {
        Condition::Anything => (None, None),
        Condition::Absent | Condition::Version(0) => (Some("attribute_not_exists(pk)"), None),
        Condition::Version(version) => {
            (Some("version = :version"), values(&[(":version", AttributeValue::N(version.to_string()))]))
        }
        Condition::BoundTo(user) => (
            Some("attribute_not_exists(pk) OR user_id = :user"),
            values(&[(":user", AttributeValue::S(user.clone()))]),
        ),
        Condition::OwnedBy(user) => {
            (Some("user_id = :user"), values(&[(":user", AttributeValue::S(user.clone()))]))
        }
        Condition::Revision(0) => (Some("attribute_not_exists(pk)"), None),
        Condition::Revision(revision) => {
            (Some("revision = :revision"), values(&[(":revision", AttributeValue::N(revision.to_string()))]))
        }
        Condition::Payments(payments) => {
            let payments = AttributeValue::Ss(payments.iter().cloned().collect());
            (
                Some("attribute_not_exists(user_id) AND payments = :payments"),
                values(&[(":payments", payments)]),
            )
        }
        Condition::UpdatedAt(at) => {
            (Some("updated_at = :at"), values(&[(":at", AttributeValue::N(at.to_string()))]))
        }
        Condition::Waiting(events) => {
            let events = AttributeValue::Ss(events.iter().cloned().collect());
            (Some("attribute_not_exists(user_id) AND waiting = :events"), values(&[(":events", events)]))
        }
        Condition::Unfinished => {
            let text = |text: &str| AttributeValue::S(text.to_owned());
            // `outcome`: `status` and `state` are reserved words.
            (
                Some("attribute_not_exists(pk) OR outcome IN (:parked, :failed)"),
                values(&[(":parked", text("parked")), (":failed", text("failed"))]),
            )
        }
    }
}

/// The reasons in one text.
fn joined(reasons: &[(usize, Reason)]) -> String {
    reasons.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>().join(", ")
}

/// The reasons of a cancelled transaction, by position.
fn cancelled<R>(error: &SdkError<TransactWriteItemsError, R>) -> Option<StoreError> {
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = error.as_service_error()? else {
        return None;
    };
    let reason = |code: &str| match code {
        "ConditionalCheckFailed" => Some(Reason::Condition),
        "TransactionConflict" => Some(Reason::Conflict),
        "ProvisionedThroughputExceeded" | "ThrottlingError" => Some(Reason::Throttled),
        "ItemCollectionSizeLimitExceeded" | "ValidationError" => Some(Reason::Invalid),
        // The code `None` means that the condition of this write held.
        _ => None,
    };
    let reasons = cancelled.cancellation_reasons().iter().enumerate();
    let reasons: Vec<_> =
        reasons.filter_map(|(place, cause)| Some((place, reason(cause.code()?)?))).collect();
    // A cancellation without a known reason is retried like a conflict.
    Some(StoreError::Cancelled(if reasons.is_empty() { vec![(0, Reason::Conflict)] } else { reasons }))
}

fn refused(operation: &'static str, error: &dyn std::error::Error) -> StoreError {
    StoreError::Refused { operation, message: error.to_string() }
}

/// Separates invalid or forbidden requests from transient errors. An unknown error counts as transient: an
/// unnecessary retry is harmless, but a missing retry moves an event to the dead-letter queue.
fn failed<E, R>(operation: &'static str, error: &SdkError<E, R>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    let message = match error.as_service_error() {
        Some(service) => {
            format!("{}: {}", code.unwrap_or("error"), service.message().unwrap_or("no message"))
        }
        None => aws_smithy_types::error::display::DisplayErrorContext(error).to_string(),
    };
    match code {
        Some(
            "ValidationException"
            | "AccessDeniedException"
            | "UnrecognizedClientException"
            | "ItemCollectionSizeLimitExceededException",
        ) => StoreError::Refused { operation, message },
        Some(_) | None => StoreError::Unavailable { operation, message },
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::CancellationReason;
    use aws_sdk_dynamodb::types::error::TransactionCanceledException;

    use super::*;

    fn error_of(codes: &[&str]) -> StoreError {
        let reasons = codes.iter().map(|code| CancellationReason::builder().code(*code).build()).collect();
        let error = TransactionCanceledException::builder().set_cancellation_reasons(Some(reasons)).build();
        cancelled(&SdkError::service_error(TransactWriteItemsError::TransactionCanceledException(error), ()))
            .unwrap()
    }

    #[test]
    fn a_cancellation_names_the_failed_writes_and_whether_to_retry() {
        for (codes, words, transient) in [
            (&["None", "ConditionalCheckFailed"][..], "transaction cancelled: condition failed", true),
            (&["TransactionConflict"], "transaction cancelled: conflict", true),
            (
                &["ProvisionedThroughputExceeded", "ThrottlingError"],
                "transaction cancelled: throttled, throttled",
                true,
            ),
            (
                &["TransactionConflict", "ValidationError"],
                "transaction cancelled: conflict, invalid item",
                false,
            ),
            (&["ItemCollectionSizeLimitExceeded"], "transaction cancelled: invalid item", false),
            (&["None", "SomethingNew"], "transaction cancelled: conflict", true),
        ] {
            let error = error_of(codes);
            assert_eq!((error.to_string().as_str(), error.is_transient()), (words, transient), "{codes:?}");
        }
        let StoreError::Cancelled(reasons) = error_of(&["None", "ConditionalCheckFailed"]) else {
            panic!("not a cancellation")
        };
        assert_eq!(reasons, [(1, Reason::Condition)]);
        let other = SdkError::service_error(TransactWriteItemsError::unhandled("x"), ());
        assert!(cancelled(&other).is_none());
        let corrupt = StoreError::Corrupt { key: "k".to_owned(), message: "m".to_owned() };
        assert!(!StoreError::TooMany(101).is_transient() && !corrupt.is_transient());
        assert!(StoreError::Unavailable { operation: "Query", message: String::new() }.is_transient());
    }
}
