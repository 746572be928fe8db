//! What the tables and queues hold.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tallyhook_aws::payload;

use super::World;

/// The text of a packed state of an account after a change.
pub fn change_packed(state: &AttributeValue, change: impl FnOnce(String) -> String) -> AttributeValue {
    let text = String::from_utf8(payload::unpack(state.as_b().unwrap().as_ref()).unwrap()).unwrap();
    AttributeValue::B(Blob::new(payload::pack(change(text).as_bytes())))
}

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

    /// All items and the size of every queue except that of alerts, to compare before and after. The state of
    /// an account is the JSON that it packs.
    pub async fn everything(&self) -> Value {
        let mut all = Vec::new();
        for table in ["accounts", "events"] {
            let scan = self
                .wire
                .database
                .scan(serde_json::from_value(json!({"TableName": table})).unwrap())
                .unwrap();
            let mut items = serde_json::to_value(scan).unwrap()["Items"].take();
            for item in items.as_array_mut().unwrap().iter_mut().filter(|item| item["state"]["B"].is_string())
            {
                let packed = STANDARD.decode(item["state"]["B"].as_str().unwrap()).unwrap();
                item["state"]["B"] = serde_json::from_slice(&payload::unpack(&packed).unwrap()).unwrap();
            }
            all.push(items);
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
