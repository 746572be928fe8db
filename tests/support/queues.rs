//! The queues: what an event source does with them, and the functions that empty them.

use std::collections::BTreeMap;

use aws_lambda_events::event::sqs::{SqsBatchResponse, SqsEvent};
use serde_json::{Value, json};
use tallyhook_core::event::Family;
use tallyhook_service::config::{ProvisionConfig, queue_variable};
use tallyhook_service::outbox::provision::Provision;
use tallyhook_service::resend::retry::RetryReport;

use super::{World, now, pack};

impl World {
    /// Runs the workers until no message is visible.
    pub async fn drain(&self) {
        loop {
            let mut quiet = true;
            for family in Family::ALL {
                while self.messages(family.as_str()).0 > 0 && self.poll(family).await > 0 {
                    quiet = false;
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Lets every retry come due until the queues are empty: four times, longer than any delay.
    pub async fn settle(&self) {
        self.heal();
        self.drain().await;
        for _ in 0..4 {
            if Family::ALL.iter().all(|family| self.messages(family.as_str()) == (0, 0)) {
                return;
            }
            self.pass_seconds(1000);
            self.drain().await;
        }
    }

    /// How many messages of a queue are visible, and how many are in flight or delayed.
    pub fn messages(&self, queue: &str) -> (i64, i64) {
        let queues = self.wire.sqs.queues().unwrap();
        let queue = queues.iter().find(|status| status.name == queue).unwrap();
        (queue.visible, queue.in_flight + queue.delayed)
    }

    /// Receives one batch, has the worker handle it, and deletes what did not fail. Returns the batch's size.
    pub async fn poll(&self, family: Family) -> usize {
        let batch = self.receive(family).await;
        let size = batch.records.len();
        if size > 0 {
            let answer = self.worker(family).handle(batch.clone()).await.unwrap();
            self.delete(family, &batch, &answer).await;
        }
        size
    }

    /// One batch of a family's queue, as Lambda passes it to the worker.
    pub async fn receive(&self, family: Family) -> SqsEvent {
        self.receive_from(family.as_str()).await
    }

    /// A batch of ten packs, two for each of five users. The recorded calls are cleared.
    pub async fn ten_purchases(&self) -> SqsEvent {
        for number in 0..10 {
            let event = pack(&format!("d{number}"), &format!("user_{}", number % 5), 1);
            assert_eq!(self.deliver(event.to_string().as_bytes()).await.0, 200);
        }
        let batch = self.receive(Family::CheckoutSession).await;
        assert_eq!(batch.records.len(), 10);
        self.calls();
        batch
    }

    /// One batch of any queue.
    pub async fn receive_from(&self, queue: &str) -> SqsEvent {
        let url = self.url(queue);
        let answer = self
            .sqs
            .receive_message()
            .queue_url(&url)
            .max_number_of_messages(10)
            .message_attribute_names("All")
            .message_system_attribute_names(aws_sdk_sqs::types::MessageSystemAttributeName::All)
            .send()
            .await
            .unwrap();
        records(answer.messages(), queue)
    }

    /// Deletes the messages that the worker did not report as failed.
    pub async fn delete(&self, family: Family, batch: &SqsEvent, answer: &SqsBatchResponse) {
        self.delete_from(family.as_str(), batch, answer).await;
    }

    /// Likewise, from any queue.
    pub async fn delete_from(&self, queue: &str, batch: &SqsEvent, answer: &SqsBatchResponse) {
        for record in &batch.records {
            let failed = answer
                .batch_item_failures
                .iter()
                .any(|failure| Some(&failure.item_identifier) == record.message_id.as_ref());
            if !failed {
                let handle = record.receipt_handle.clone().unwrap();
                self.sqs
                    .delete_message()
                    .queue_url(self.url(queue))
                    .receipt_handle(handle)
                    .send()
                    .await
                    .unwrap();
            }
        }
    }

    pub fn queue_url(&self, family: Family) -> String {
        self.env.get(&queue_variable(family)).unwrap()
    }

    fn url(&self, queue: &str) -> String {
        self.env.get(&format!("QUEUE_URL_{}", queue.to_uppercase().replace('-', "_"))).unwrap()
    }

    /// Runs `dead-letter` until its queue is empty. Returns the number of messages.
    pub async fn drain_dead_letters(&self) -> usize {
        let mut drained = 0;
        loop {
            let batch = self.receive_from("dead-letter").await;
            if batch.records.is_empty() {
                return drained;
            }
            drained += batch.records.len();
            let answer = self.dead_letter.handle(batch.clone()).await.unwrap();
            self.delete_from("dead-letter", &batch, &answer).await;
        }
    }

    /// Receives and deletes all alerts.
    pub async fn alerts(&self) -> Vec<Value> {
        let mut alerts = Vec::new();
        loop {
            let batch = self.receive_from("notify").await;
            if batch.records.is_empty() {
                return alerts;
            }
            alerts.extend(
                batch
                    .records
                    .iter()
                    .map(|record| serde_json::from_str(record.body.as_ref().unwrap()).unwrap()),
            );
            self.delete_from("notify", &batch, &SqsBatchResponse::default()).await;
        }
    }

    /// Runs `notify` until its queue is empty. Returns the number of alerts that it could not post.
    pub async fn notify(&self) -> usize {
        let mut failed = 0;
        loop {
            let batch = self.receive_from("notify").await;
            if batch.records.is_empty() {
                return failed;
            }
            let answer = self.notify.handle(batch.clone()).await.unwrap();
            failed += answer.batch_item_failures.len();
            self.delete_from("notify", &batch, &answer).await;
        }
    }

    /// Runs `provision` until its queue has no visible message. Returns the number of jobs that failed.
    pub async fn provision(&self) -> usize {
        let (dynamodb, sqs) = self.clients("provision");
        let provision = Provision::new(ProvisionConfig::from_env(&self.env).unwrap(), dynamodb, sqs);
        let mut failed = 0;
        loop {
            let batch = self.receive_from("provision").await;
            if batch.records.is_empty() {
                return failed;
            }
            let answer = provision.handle(batch.clone()).await.unwrap();
            failed += answer.batch_item_failures.len();
            self.delete_from("provision", &batch, &answer).await;
        }
    }

    /// One run of `retry`, this many seconds from now.
    pub async fn retry_in(&self, seconds: i64) -> RetryReport {
        self.retry.run(now().plus_seconds(seconds)).await.unwrap()
    }
}

/// Received messages in the form in which Lambda passes them to a function.
pub fn records(messages: &[aws_sdk_sqs::types::Message], queue: &str) -> SqsEvent {
    let record = |message: &aws_sdk_sqs::types::Message| {
        let attributes: BTreeMap<_, _> =
            message.attributes().into_iter().flatten().map(|(name, value)| (name.as_str(), value)).collect();
        let sent: BTreeMap<_, _> = message
            .message_attributes()
            .into_iter()
            .flatten()
            .map(|(name, value)| {
                (name, json!({"dataType": value.data_type(), "stringValue": value.string_value()}))
            })
            .collect();
        json!({
            "messageId": message.message_id(),
            "receiptHandle": message.receipt_handle(),
            "body": message.body(),
            "attributes": attributes, "messageAttributes": sent, "md5OfBody": message.md5_of_body(),
            "eventSource": "aws:sqs",
            "eventSourceARN": format!("arn:aws:sqs:us-east-1:000000000000:{queue}"),
            "awsRegion": "us-east-1",
        })
    };
    let records: Vec<Value> = messages.iter().map(record).collect();
    serde_json::from_value(json!({"Records": records})).unwrap()
}
