//! Reads all accounts, or all ledger entries, page by page. Only reconciliation does this, the sweep after a
//! change of the catalog, and exports.
//!
//! The table also holds the ledger entries, and a scan reads and bills the whole table. The scan uses
//! eventually consistent reads, which cost half. Reconciliation loads an account with a consistent read
//! before it decides.

use aws_sdk_dynamodb::types::AttributeValue;

use super::items::{self, Item, Key, Table};
use super::{Store, StoreError, failed};
use tallyhook_core::account::Account;
use tallyhook_core::ids::{InvoiceId, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::timestamp::Timestamp;

/// Items read in one request.
const PAGE: i32 = 500;

/// One page of accounts, each with its user id.
pub struct Accounts {
    /// Accounts by user id. An account that cannot be read is an error in its place.
    pub accounts: Vec<(String, Result<Account, StoreError>)>,
    /// The argument for the next page; `None` at the end.
    pub next: Option<String>,
}

/// One page of ledger entries in arbitrary order, each with its user.
pub struct Entries {
    /// The entries.
    pub entries: Vec<(UserId, Entry)>,
    /// The argument for the next page; `None` at the end.
    pub next: Option<String>,
}

/// One page of the users whose accounts were written with another catalog.
pub struct OtherCatalogs {
    /// The users.
    pub users: Vec<UserId>,
    /// The argument for the next page; `None` at the end.
    pub next: Option<String>,
}

impl Store {
    /// One page of the users whose accounts do not have this digest of the catalog. A page may be empty and
    /// still not be the last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn accounts_of_other_catalogs(
        &self,
        digest: Option<&str>,
        after: Option<&str>,
    ) -> Result<OtherCatalogs, StoreError> {
        let filter = match digest {
            Some(_) => {
                "sk = :account AND (attribute_not_exists(catalog_digest) OR catalog_digest <> :digest)"
            }
            None => "sk = :account AND attribute_exists(catalog_digest)",
        };
        let digest = digest.map(|digest| (":digest".to_owned(), AttributeValue::S(digest.to_owned())));
        let account = (":account".to_owned(), AttributeValue::S("account".to_owned()));
        let answer = self
            .client
            .scan()
            .table_name(self.table(Table::Accounts))
            .limit(PAGE)
            .projection_expression("pk, sk")
            .filter_expression(filter)
            .set_expression_attribute_values(Some(digest.into_iter().chain([account]).collect()))
            .set_exclusive_start_key(start_key(after))
            .send()
            .await
            .map_err(|error| failed("Scan", &error))?;
        let user = |item: &Item| UserId::new(text(item, "pk").strip_prefix("user#")?).ok();
        let users = answer.items().iter().filter_map(user).collect();
        Ok(OtherCatalogs { users, next: next_key(answer.last_evaluated_key()) })
    }

    /// One page of accounts in arbitrary order. A page may be empty and still not be the last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn accounts(&self, after: Option<&str>) -> Result<Accounts, StoreError> {
        let answer = self
            .client
            .scan()
            .table_name(self.table(Table::Accounts))
            .limit(PAGE)
            .filter_expression("sk = :account")
            .expression_attribute_values(":account", AttributeValue::S("account".to_owned()))
            .set_exclusive_start_key(start_key(after))
            .send()
            .await
            .map_err(|error| failed("Scan", &error))?;
        let next = next_key(answer.last_evaluated_key());
        let read = |item: &Item| {
            let user = text(item, "pk").strip_prefix("user#").unwrap_or_default().to_owned();
            let account = UserId::new(user.as_str())
                .map_err(|error| StoreError::Corrupt {
                    key: format!("user#{user}"),
                    message: error.to_string(),
                })
                .and_then(|user| items::read_account(&user, item));
            (user, account)
        };
        Ok(Accounts { accounts: answer.items().iter().map(read).collect(), next })
    }

    /// One page of ledger entries that were booked at or after `from` and before `to`. A page may be empty
    /// and still not be the last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn entries(
        &self,
        from: Timestamp,
        to: Timestamp,
        after: Option<&str>,
    ) -> Result<Entries, StoreError> {
        let second = |time: Timestamp| AttributeValue::N(time.unix().to_string());
        let answer = self
            .client
            .scan()
            .table_name(self.table(Table::Accounts))
            .limit(PAGE)
            .filter_expression(
                "(begins_with(sk, :ledger) OR (sk = :entry AND attribute_exists(user_id))) \
                 AND #at >= :from AND #at < :to",
            )
            .expression_attribute_names("#at", "at")
            .expression_attribute_values(":ledger", AttributeValue::S("ledger#".to_owned()))
            .expression_attribute_values(":entry", AttributeValue::S("entry".to_owned()))
            .expression_attribute_values(":from", second(from))
            .expression_attribute_values(":to", second(to))
            .set_exclusive_start_key(start_key(after))
            .send()
            .await
            .map_err(|error| failed("Scan", &error))?;
        let next = next_key(answer.last_evaluated_key());
        let mut entries = Vec::new();
        for item in answer.items() {
            entries.extend(owned_entry(item)?);
        }
        Ok(Entries { entries, next })
    }
}

fn owned_entry(item: &Item) -> Result<Option<(UserId, Entry)>, StoreError> {
    let (pk, sk) = (text(item, "pk"), text(item, "sk"));
    let corrupt = |message: String| StoreError::Corrupt { key: format!("{pk} {sk}"), message };
    if let Some(invoice) = pk.strip_prefix("invoice#") {
        let invoice = InvoiceId::new(invoice).map_err(|error| corrupt(error.to_string()))?;
        return items::read_invoice(&Key::Invoice(invoice), item);
    }
    let (Some(user), Some(key)) = (pk.strip_prefix("user#"), sk.strip_prefix("ledger#")) else {
        return Ok(None);
    };
    let user = UserId::new(user).map_err(|error| corrupt(error.to_string()))?;
    let key = Key::Entry(user.clone(), LedgerKey::from_text(key));
    Ok(Some((user, items::read(&key, item)?)))
}

fn text(item: &Item, name: &str) -> String {
    items::read_text(item, name).unwrap_or_default()
}

fn start_key(after: Option<&str>) -> Option<Item> {
    let (pk, sk) = after?.split_once('\n')?;
    Some(items::key_attributes(Table::Accounts, pk, sk))
}

fn next_key(last: Option<&Item>) -> Option<String> {
    last.filter(|key| !key.is_empty()).map(|key| format!("{}\n{}", text(key, "pk"), text(key, "sk")))
}
