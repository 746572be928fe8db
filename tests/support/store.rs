//! What the tables and queues hold.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};

use super::World;

impl World {
    /// The item of an event in the event log, or of a note beside it.
    pub async fn event(&self, id: &str) -> Option<BTreeMap<String, String>> {
        let key = AttributeValue::S(id.to_owned());
        let item = self
            .dynamodb
            .get_item()
            .table_name("events")
            .key("pk", key)
            .consistent_read(true)
            .send()
            .await
            .unwrap()
            .item?;
        let text = |value: &AttributeValue| value.as_s().or(value.as_n()).ok().cloned();
        Some(item.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect())
    }

    /// All items and the size of every queue except that of alerts, to compare before and after.
    pub async fn everything(&self) -> Value {
        let mut all = Vec::new();
        for table in ["accounts", "events"] {
            let scan = self
                .wire
                .database
                .scan(serde_json::from_value(json!({"TableName": table})).unwrap())
                .unwrap();
            all.push(serde_json::to_value(scan).unwrap()["Items"].clone());
        }
        let queues: Vec<Value> = self
            .wire
            .sqs
            .queues()
            .unwrap()
            .iter()
            .filter(|queue| queue.name != "notify")
            .map(|queue| json!([queue.name, queue.visible, queue.in_flight, queue.delayed]))
            .collect();
        json!([all, queues])
    }
}
