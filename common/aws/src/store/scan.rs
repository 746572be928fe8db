//! Walking over all accounts, page by page: for reconciliation only.
//!
//! The table holds every ledger entry as well, and a scan reads and pays for all of it. It is read without
//! consistency, which is half the price: what is found is looked at again, consistently, before anything is
//! decided.

use aws_sdk_dynamodb::types::AttributeValue;

use super::items::{self, Item, Table};
use super::{Store, StoreError, failed};
use tallyhook_core::account::Account;
use tallyhook_core::ids::UserId;

/// Items looked at in one request.
const PAGE: i32 = 500;

/// Some accounts, each with its user, and where to go on.
pub struct Accounts {
    /// An account that cannot be read is an error of its own.
    pub accounts: Vec<(String, Result<Account, StoreError>)>,
    /// What to ask for next; `None` at the end.
    pub next: Option<String>,
}

impl Store {
    /// The next accounts, in no order that means anything. A page may be empty and not the last.
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
