//! Reads all accounts page by page. Only reconciliation does this.
//!
//! The table also holds the ledger entries, and a scan reads and bills the whole table. The scan uses
//! eventually consistent reads, which cost half. Reconciliation loads an account with a consistent read
//! before it decides.

use aws_sdk_dynamodb::types::AttributeValue;

use super::items::{self, Item, Table};
use super::{Store, StoreError, failed};
use tallyhook_core::account::Account;
use tallyhook_core::ids::UserId;

/// Items read in one request.
const PAGE: i32 = 500;

/// One page of accounts, each with its user id.
pub struct Accounts {
    /// Accounts by user id. An account that cannot be read is an error in its place.
    pub accounts: Vec<(String, Result<Account, StoreError>)>,
    /// The argument for the next page; `None` at the end.
    pub next: Option<String>,
}

impl Store {
    /// One page of accounts in arbitrary order. A page may be empty and still not be the last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn accounts(&self, after: Option<&str>) -> Result<Accounts, StoreError> {
        let start: Option<Item> = after
            .and_then(|after| after.split_once('\n'))
            .map(|(pk, sk)| items::key_attributes(Table::Accounts, pk, sk));
        let answer = self
            .client
            .scan()
            .table_name(self.table(Table::Accounts))
            .limit(PAGE)
            .filter_expression("sk = :account")
            .expression_attribute_values(":account", AttributeValue::S("account".to_owned()))
            .set_exclusive_start_key(start)
            .send()
            .await
            .map_err(|error| failed("Scan", &error))?;
        let text = |item: &Item, name: &str| {
            item.get(name).and_then(|value| value.as_s().ok()).cloned().unwrap_or_default()
        };
        let next = answer.last_evaluated_key().map(|key| format!("{}\n{}", text(key, "pk"), text(key, "sk")));
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
}
