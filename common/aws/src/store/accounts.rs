//! Reads all accounts, or all ledger entries, page by page: for reconciliation, the sweep after a change of
//! the catalog, the preview of a catalog, and exports.
//!
//! The index `by_shard` holds the keys of the accounts and no other item, so ledger entries are not read to
//! find accounts. An index is eventually consistent: an account that was created a moment ago may be missing
//! from the list. The accounts themselves are read from the table, with consistent reads.
//!
//! Ledger entries are in no index. An export of the ledger scans the whole table.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::items::{self, Item, Key, Table};
use super::{Store, StoreError, failed};
use tallyhook_core::account::Account;
use tallyhook_core::ids::{InvoiceId, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::timestamp::Timestamp;

/// Items that one request of a scan reads.
const SCAN_PAGE: i32 = 500;
/// Accounts of a page: as many as one `BatchGetItem` reads.
const ACCOUNT_PAGE: usize = 100;

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
        let (page, next) = self.account_page(after).await?;
        let differs = |item: &Item| items::read_text(item, "catalog_digest").as_deref() != digest;
        let users = page.into_iter().filter(|(_, item)| differs(item)).map(|(user, _)| user);
        Ok(OtherCatalogs { users: users.collect(), next })
    }

    /// One page of accounts in arbitrary order. A page may be empty and still not be the last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn accounts(&self, after: Option<&str>) -> Result<Accounts, StoreError> {
        let (page, next) = self.account_page(after).await?;
        let read = |(user, item): (UserId, Item)| {
            let account = items::read_account(&user, &item);
            (user.as_str().to_owned(), account)
        };
        Ok(Accounts { accounts: page.into_iter().map(read).collect(), next })
    }

    /// The users of one page, each with the account's item, and the argument for the next page.
    async fn account_page(
        &self,
        after: Option<&str>,
    ) -> Result<(Vec<(UserId, Item)>, Option<String>), StoreError> {
        let (users, next) = self.account_keys(after).await?;
        let mut items: HashMap<Key, Item> = self.load(users.iter().cloned().map(Key::Account)).await?;
        let page = users.into_iter().filter_map(|user| {
            let item = items.remove(&Key::Account(user.clone()))?;
            Some((user, item))
        });
        Ok((page.collect(), next))
    }

    /// The user ids of one page of the index: shard by shard, and in a shard in the order of the keys.
    ///
    /// The argument for the next page is `<shard>\n<pk>`: the last key that was read of the shard, which is
    /// empty at its beginning. A key that is not a user id is skipped; no function writes one.
    async fn account_keys(&self, after: Option<&str>) -> Result<(Vec<UserId>, Option<String>), StoreError> {
        let (shard, mut last) = match after.and_then(|after| after.split_once('\n')) {
            Some((shard, pk)) => (shard.parse().unwrap_or_default(), Some(pk.to_owned())),
            None => (0, None),
        };
        let mut users = Vec::with_capacity(ACCOUNT_PAGE);
        for shard in shard..items::ACCOUNT_SHARDS {
            let value = AttributeValue::S(shard.to_string());
            while users.len() < ACCOUNT_PAGE {
                let start = last.take().filter(|pk| !pk.is_empty()).map(|pk| {
                    let mut key = items::key_attributes(Table::Accounts, &pk, "account");
                    key.insert("shard".to_owned(), value.clone());
                    key
                });
                let answer = self
                    .client
                    .query()
                    .table_name(self.table(Table::Accounts))
                    .index_name("by_shard")
                    .key_condition_expression("#shard = :shard")
                    .expression_attribute_names("#shard", "shard")
                    .expression_attribute_values(":shard", value.clone())
                    .limit(i32::try_from(ACCOUNT_PAGE - users.len()).unwrap_or(1))
                    .set_exclusive_start_key(start)
                    .send()
                    .await
                    .map_err(|error| failed("Query", &error))?;
                let user = |item: &Item| UserId::new(text(item, "pk").strip_prefix("user#")?).ok();
                users.extend(answer.items().iter().filter_map(user));
                last = answer.last_evaluated_key().filter(|key| !key.is_empty()).map(|key| text(key, "pk"));
                if last.is_none() {
                    break;
                }
            }
            if users.len() >= ACCOUNT_PAGE {
                let next = match last {
                    Some(pk) => Some(format!("{shard}\n{pk}")),
                    None => Some(shard + 1)
                        .filter(|next| *next < items::ACCOUNT_SHARDS)
                        .map(|next| format!("{next}\n")),
                };
                return Ok((users, next));
            }
        }
        Ok((users, None))
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
            .limit(SCAN_PAGE)
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
        return items::read_invoice_entry(&Key::Invoice(invoice), item);
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
