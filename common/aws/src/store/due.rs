//! Accounts that time alone changes: access or credits that end, months of a paid period that begin. They are
//! read from the index `by_due`.

use aws_sdk_dynamodb::types::AttributeValue;
use tallyhook_core::ids::UserId;
use tallyhook_core::timestamp::Timestamp;

use super::items::{self, Item, Table};
use super::{Store, StoreError, failed};

impl Store {
    /// One page of the users with an account that was due on the day `back` days ago and at or before `now`,
    /// and the start of the next page. The index is eventually consistent: load each account before you
    /// decide.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn due(
        &self,
        back: i64,
        now: Timestamp,
        start: Option<Item>,
    ) -> Result<(Vec<UserId>, Option<Item>), StoreError> {
        let day = items::day(now.plus_days(-back).unix().saturating_mul(1000));
        let answer = self
            .client
            .query()
            .table_name(self.table(Table::Accounts))
            .index_name("by_due")
            .key_condition_expression("due_day = :day AND due_at <= :now")
            .expression_attribute_values(":day", AttributeValue::S(day))
            .expression_attribute_values(":now", AttributeValue::N(now.unix().to_string()))
            .set_exclusive_start_key(start)
            .send()
            .await
            .map_err(|error| failed("Query", &error))?;
        let user = |item: &Item| UserId::new(items::read_text(item, "pk")?.strip_prefix("user#")?).ok();
        let users = answer.items().iter().filter_map(user).collect();
        Ok((users, answer.last_evaluated_key.filter(|key| !key.is_empty())))
    }
}
