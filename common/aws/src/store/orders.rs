//! One-time orders: those of a user, and all of them by time, from the index `by_due`.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tallyhook_core::ids::{SessionId, UserId};

use super::items::{self, Item, Key, ORDERS, Table};
use super::{Store, StoreError, failed};

/// An order with its owner.
pub struct OwnedOrder {
    /// The user.
    pub user: UserId,
    /// The session that paid it.
    pub session: SessionId,
    /// The item.
    pub item: Item,
}

impl OwnedOrder {
    /// The start of a page that begins after this order.
    pub fn place(&self) -> Option<String> {
        place(&self.item)
    }
}

impl Store {
    /// The orders of a user, as [`items::read_order`] reads them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn orders(&self, user: &UserId) -> Result<Vec<BTreeMap<String, Value>>, StoreError> {
        let query = self
            .client
            .query()
            .table_name(self.table(Table::Accounts))
            .key_condition_expression("pk = :user AND begins_with(sk, :orders)")
            .expression_attribute_values(":user", AttributeValue::S(Key::Account(user.clone()).partition()))
            .expression_attribute_values(":orders", AttributeValue::S("order#".to_owned()));
        let found = query.into_paginator().items().send().try_collect().await;
        Ok(found.map_err(|error| failed("Query", &error))?.iter().map(items::read_order).collect())
    }

    /// One page of all orders, newest first, and the start of the next page. The index is eventually
    /// consistent; the orders are read consistently. `None`: `start` is not of an earlier page.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn listed_orders(
        &self,
        limit: i32,
        start: Option<&str>,
    ) -> Result<Option<(Vec<OwnedOrder>, Option<String>)>, StoreError> {
        let start = match start.map(read_place) {
            Some(None) => return Ok(None),
            Some(place) => place,
            None => None,
        };
        let answer = self
            .client
            .query()
            .table_name(self.table(Table::Accounts))
            .index_name("by_due")
            .key_condition_expression("due_day = :orders")
            .expression_attribute_values(":orders", AttributeValue::S(ORDERS.to_owned()))
            .scan_index_forward(false)
            .limit(limit)
            .set_exclusive_start_key(start)
            .send()
            .await
            .map_err(|error| failed("Query", &error))?;
        let next = answer.last_evaluated_key().and_then(place);
        let key = |item: &Item| {
            let user = UserId::new(items::read_text(item, "pk")?.strip_prefix("user#")?).ok()?;
            Some((user, SessionId::new(items::read_text(item, "sk")?.strip_prefix("order#")?).ok()?))
        };
        let keys: Vec<(UserId, SessionId)> = answer.items().iter().filter_map(key).collect();
        let mut whole =
            self.load(keys.iter().map(|(user, session)| Key::Order(user.clone(), session.clone()))).await?;
        let owned = |(user, session): (UserId, SessionId)| {
            let item = whole.remove(&Key::Order(user.clone(), session.clone()))?;
            Some(OwnedOrder { user, session, item })
        };
        Ok(Some((keys.into_iter().filter_map(owned).collect(), next)))
    }
}

/// A place in the index as an opaque text.
fn place(key: &Item) -> Option<String> {
    let (at, sort) = (items::read_number::<i64>(key, "due_at")?, items::read_text(key, "sk")?);
    Some(URL_SAFE_NO_PAD.encode(format!("{at} {sort} {}", items::read_text(key, "pk")?)))
}

fn read_place(text: &str) -> Option<Item> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let mut parts = text.splitn(3, ' ');
    let at: i64 = parts.next()?.parse().ok()?;
    let sort = parts.next().filter(|sort| sort.starts_with("order#"))?;
    let partition = parts.next().filter(|partition| partition.starts_with("user#"))?;
    let mut key = items::key_attributes(Table::Accounts, partition, sort);
    key.insert("due_day".to_owned(), AttributeValue::S(ORDERS.to_owned()));
    key.insert("due_at".to_owned(), AttributeValue::N(at.to_string()));
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_and_other_texts_are_refused() {
        let mut key = items::key_attributes(Table::Accounts, "user#a b#c", "order#cs_1");
        key.insert("due_day".to_owned(), AttributeValue::S(ORDERS.to_owned()));
        key.insert("due_at".to_owned(), AttributeValue::N("17".to_owned()));
        assert_eq!(read_place(&place(&key).unwrap()), Some(key));
        for text in ["", "x", &URL_SAFE_NO_PAD.encode("17 account user#a"), &URL_SAFE_NO_PAD.encode("17")] {
            assert_eq!(read_place(text), None, "{text}");
        }
    }
}
