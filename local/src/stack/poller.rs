//! Invokes a function with the messages of its queue, as an event source mapping of Lambda does.
//!
//! | the function | the batch |
//! |---|---|
//! | answers nothing, `null`, `{}`, or an empty or missing list of failures | all messages are deleted |
//! | answers `{"batchItemFailures":[{"itemIdentifier":"<message id>"}]}` | all other messages are deleted |
//! | answers with an id that is not in the batch, an empty one, or none | no message is deleted |
//! | answers something that is not JSON, returns an error, crashes, or times out | no message is deleted |
//!
//! A message that is not deleted becomes visible again when its visibility timeout ends, which the function
//! may have changed. A batch has at most ten messages and fits the payload of an invocation. The poller calls
//! the queues directly, with the JSON of SQS but without HTTP: on AWS the event source mapping does this
//! part. The functions themselves use the SDK over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::lambda::{Function, MAX_PAYLOAD_BYTES, REGION};
use super::shutdown::stopped;
use crate::sqs::Sqs;

/// The maximum number of messages in a batch.
const MAX_BATCH: usize = 10;

/// The tasks that poll one queue.
pub struct Poller {
    processed: ProcessedCount,
    tasks: Vec<JoinHandle<()>>,
}

/// The number of messages of a queue that the poller has received and finished.
#[derive(Clone)]
pub struct ProcessedCount {
    queue: Arc<str>,
    messages: Arc<AtomicU64>,
}

impl ProcessedCount {
    /// The name of the queue, and the number so far.
    pub fn get(&self) -> (&str, u64) {
        (&self.queue, self.messages.load(Ordering::SeqCst))
    }
}

impl Poller {
    /// Invokes the function with the messages of the queue until `stop` becomes true. At most `concurrency`
    /// batches are processed at the same time.
    pub fn start(
        sqs: &Sqs,
        queue: &str,
        function: &Function,
        concurrency: usize,
        stop: &watch::Receiver<bool>,
    ) -> Self {
        let processed = ProcessedCount { queue: queue.into(), messages: Arc::default() };
        let reader = || QueueReader {
            sqs: sqs.clone(),
            queue: queue.to_owned(),
            function: function.clone(),
            processed: processed.clone(),
        };
        let tasks = (0..concurrency).map(|_| tokio::spawn(reader().poll(stop.clone()))).collect();
        Self { processed, tasks }
    }

    /// The counter of processed messages.
    pub fn processed(&self) -> ProcessedCount {
        self.processed.clone()
    }

    /// Waits until the running batches are finished. Call it after `stop` became true.
    pub async fn stopped(self) {
        for task in self.tasks {
            // The panic of a task is already printed.
            let _ = task.await;
        }
    }
}

struct QueueReader {
    sqs: Sqs,
    queue: String,
    function: Function,
    processed: ProcessedCount,
}

impl QueueReader {
    async fn poll(self, stop: watch::Receiver<bool>) {
        loop {
            // Dropping the receive loses no message: a receive takes messages only when it returns.
            let received = tokio::select! {
                biased;
                () = stopped(&stop) => return,
                received = self.receive() => received,
            };
            match received {
                Ok(messages) => {
                    let count = u64::try_from(messages.len()).unwrap_or_default();
                    for batch in batches(&messages) {
                        self.process(batch).await;
                    }
                    self.processed.messages.fetch_add(count, Ordering::SeqCst);
                }
                Err(error) => {
                    tracing::error!(queue = self.queue, error, "cannot receive messages");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn process(&self, batch: &[Value]) {
        let event = event(&self.queue, batch);
        let ids: Vec<&str> = batch.iter().filter_map(|message| message.get("MessageId")?.as_str()).collect();
        let failed = match self.function.invoke(&event).await {
            Ok(answer) => failures(&answer, &ids),
            Err(failure) => Err(failure.to_string()),
        };
        let failed = failed.unwrap_or_else(|why| {
            tracing::warn!(
                function = self.function.name(),
                messages = batch.len(),
                why,
                "a whole batch failed; SQS redelivers its messages"
            );
            ids.iter().map(|id| (*id).to_owned()).collect()
        });
        let succeeded: Vec<&Value> = batch
            .iter()
            .filter(|message| !failed.iter().any(|id| Some(id.as_str()) == message["MessageId"].as_str()))
            .collect();
        if let Err(error) = self.delete(&succeeded).await {
            tracing::error!(queue = self.queue, error, "cannot delete messages; SQS redelivers them");
        }
    }

    async fn receive(&self) -> Result<Vec<Value>, String> {
        let request = json!({
            "QueueUrl": self.queue,
            "MaxNumberOfMessages": MAX_BATCH,
            "WaitTimeSeconds": 20,
            "MessageSystemAttributeNames": ["All"],
            "MessageAttributeNames": ["All"],
        });
        let mut answer = self.call("ReceiveMessage", &request).await?;
        Ok(match answer.get_mut("Messages").map(Value::take) {
            Some(Value::Array(messages)) => messages,
            _ => Vec::new(),
        })
    }

    async fn delete(&self, messages: &[&Value]) -> Result<(), String> {
        if messages.is_empty() {
            return Ok(());
        }
        let entry = |(at, message): (usize, &&Value)| {
            json!({ "Id": at.to_string(),
            "ReceiptHandle": message["ReceiptHandle"] })
        };
        let entries: Vec<Value> = messages.iter().enumerate().map(entry).collect();
        let answer =
            self.call("DeleteMessageBatch", &json!({ "QueueUrl": self.queue, "Entries": entries })).await?;
        match answer["Failed"].as_array() {
            Some(failed) if !failed.is_empty() => Err(answer["Failed"].to_string()),
            _ => Ok(()),
        }
    }

    async fn call(&self, action: &str, request: &Value) -> Result<Value, String> {
        let (status, answer, _) = self
            .sqs
            .handle(&format!("AmazonSQS.{action}"), "localhost", request.to_string().as_bytes())
            .await;
        if status != 200 {
            return Err(String::from_utf8_lossy(&answer).into_owned());
        }
        serde_json::from_slice(&answer).map_err(|error| error.to_string())
    }
}

/// Splits messages into parts that each fit the payload of an invocation.
fn batches(messages: &[Value]) -> Vec<&[Value]> {
    // More than the event adds to a message: ids, attributes, and the ARN.
    const OVERHEAD_BYTES: usize = 2_048;
    let size = |message: &Value| message.to_string().len() + OVERHEAD_BYTES;
    let (mut batches, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, message) in messages.iter().enumerate() {
        if at > start && bytes + size(message) > MAX_PAYLOAD_BYTES {
            batches.push(&messages[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += size(message);
    }
    if start < messages.len() {
        batches.push(&messages[start..]);
    }
    batches
}

/// The event of an invocation with these messages.
///
/// ```json
/// {"Records":[{
///   "messageId":"059f36b4-…","receiptHandle":"AQEB…","body":"{…}",
///   "attributes":{"ApproximateReceiveCount":"1","SentTimestamp":"1545082649183","SenderId":"…","ApproximateFirstReceiveTimestamp":"…"},
///   "messageAttributes":{"mode":{"stringValue":"test","stringListValues":[],"binaryListValues":[],"dataType":"String"}},
///   "md5OfMessageAttributes":"…","md5OfBody":"…",
///   "eventSource":"aws:sqs","eventSourceARN":"arn:aws:sqs:us-east-1:000000000000:tallyhook-invoice-paid","awsRegion":"us-east-1"}]}
/// ```
fn event(queue: &str, messages: &[Value]) -> Value {
    let arn = format!("arn:aws:sqs:{REGION}:000000000000:{queue}");
    let attribute = |(name, value): (&String, &Value)| {
        let mut of = Map::new();
        for (from, to) in [("StringValue", "stringValue"), ("BinaryValue", "binaryValue")] {
            if let Some(value) = value.get(from) {
                of.insert(to.to_owned(), value.clone());
            }
        }
        of.insert("stringListValues".to_owned(), json!([]));
        of.insert("binaryListValues".to_owned(), json!([]));
        of.insert("dataType".to_owned(), value["DataType"].clone());
        (name.clone(), Value::Object(of))
    };
    let record = |message: &Value| {
        let attributes: Map<String, Value> =
            message["MessageAttributes"].as_object().into_iter().flatten().map(attribute).collect();
        let mut record = json!({
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message.get("Attributes").unwrap_or(&json!({})),
            "messageAttributes": attributes,
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": arn,
            "awsRegion": REGION,
        });
        if let Some(md5) = message.get("MD5OfMessageAttributes") {
            record["md5OfMessageAttributes"] = md5.clone();
        }
        record
    };
    json!({ "Records": messages.iter().map(record).collect::<Vec<_>>() })
}

/// The ids of the failed messages. The error says why the whole batch failed.
fn failures(answer: &[u8], ids: &[&str]) -> Result<Vec<String>, String> {
    if answer.is_empty() {
        return Ok(Vec::new());
    }
    let answer: Value =
        serde_json::from_slice(answer).map_err(|error| format!("the answer is not JSON: {error}"))?;
    let list = match answer.get("batchItemFailures") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(list) => list.as_array().ok_or_else(|| "batchItemFailures is not a list".to_owned())?,
    };
    let id = |failure: &Value| match failure.get("itemIdentifier").and_then(Value::as_str) {
        None | Some("") => Err(format!("a failure has no itemIdentifier: {failure}")),
        Some(id) if !ids.contains(&id) => Err(format!("itemIdentifier {id} is not a message of the batch")),
        Some(id) => Ok(id.to_owned()),
    };
    list.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::stack::lambda::Handler;

    const IDS: [&str; 2] = ["a", "b"];

    fn failed(answer: &str) -> Result<Vec<String>, String> {
        failures(answer.as_bytes(), &IDS)
    }

    #[test]
    fn an_answer_without_failures_is_success() {
        for answer in
            ["", "null", "\"\"", "[]", "{}", r#"{"batchItemFailures":[]}"#, r#"{"batchItemFailures":null}"#]
        {
            assert_eq!(failed(answer), Ok(Vec::new()), "{answer}");
        }
    }

    #[test]
    fn an_invalid_answer_fails_the_whole_batch() {
        for answer in [
            "{",
            "no json",
            r#"{"batchItemFailures":{}}"#,
            r#"{"batchItemFailures":"a"}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":null}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":7}]}"#,
            r#"{"batchItemFailures":[{"id":"a"}]}"#,
            r#"{"batchItemFailures":["a"]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":"a"},{"itemIdentifier":"c"}]}"#,
        ] {
            assert!(failed(answer).is_err(), "{answer}");
        }
        assert_eq!(failed(r#"{"batchItemFailures":[{"itemIdentifier":"b"}]}"#), Ok(vec!["b".to_owned()]));
    }

    #[test]
    fn messages_that_do_not_fit_one_invocation_are_split() {
        let message = |megabytes: usize| json!({ "MessageId": "a", "Body": "x".repeat(megabytes << 20) });
        let messages = [message(1), message(1), message(1), message(1), message(1), message(1), message(1)];
        assert_eq!(batches(&messages).iter().map(|batch| batch.len()).collect::<Vec<_>>(), [5, 2]);
        assert_eq!(batches(&messages[..3]).len(), 1);
        assert!(batches(&[]).is_empty());
    }

    /// A queue with a poller. `answer` is the function: from the records of an event to the answer.
    struct Queue {
        sqs: Sqs,
        poller: Poller,
        stop: watch::Sender<bool>,
        events: Arc<Mutex<Vec<Value>>>,
    }

    impl Queue {
        async fn start(bodies: &[&str], answer: fn(&[Value]) -> Result<Value, String>) -> Self {
            let sqs = Sqs::open(None, crate::sqs::system_clock()).unwrap();
            call(
                &sqs,
                "CreateQueue",
                json!({ "QueueName": "work", "Attributes": { "VisibilityTimeout": "100" } }),
            )
            .await;
            for body in bodies {
                let attributes = json!({ "mode": { "DataType": "String", "StringValue": "test" } });
                call(
                    &sqs,
                    "SendMessage",
                    json!({ "QueueUrl": "work", "MessageBody": body, "MessageAttributes": attributes }),
                )
                .await;
            }
            let events: Arc<Mutex<Vec<Value>>> = Arc::default();
            let received = Arc::clone(&events);
            let handler: Handler = Arc::new(move |event| {
                let received = Arc::clone(&received);
                Box::pin(async move {
                    let event: Value = serde_json::from_slice(&event).unwrap();
                    let records = event["Records"].as_array().unwrap().clone();
                    received.lock().unwrap().push(event);
                    answer(&records).map(|answer| answer.to_string().into_bytes())
                })
            });
            let (stop, stopped) = watch::channel(false);
            let function = Function::in_process("f", handler).with_timeout(Duration::from_millis(500));
            let poller = Poller::start(&sqs, "work", &function, 2, &stopped);
            Self { sqs, poller, stop, events }
        }

        /// The visible messages and those in flight, after `messages` messages were processed.
        async fn left(self, messages: u64) -> (i64, i64) {
            let processed = self.poller.processed();
            while processed.get().1 < messages {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.stop.send_replace(true);
            self.poller.stopped().await;
            let queues = self.sqs.queues().unwrap();
            assert_eq!(queues[0].handed_out, messages);
            (queues[0].visible, queues[0].in_flight)
        }
    }

    async fn call(sqs: &Sqs, action: &str, request: Value) -> Value {
        let (status, answer, _) =
            sqs.handle(&format!("AmazonSQS.{action}"), "localhost", request.to_string().as_bytes()).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap()
    }

    #[tokio::test]
    async fn the_event_has_the_shape_of_lambda() {
        let queue = Queue::start(&["{}"], |_| Ok(json!({ "batchItemFailures": [] }))).await;
        let events = Arc::clone(&queue.events);
        assert_eq!(queue.left(1).await, (0, 0));
        let record = events.lock().unwrap()[0]["Records"][0].clone();
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            (text("body"), text("eventSource"), text("awsRegion")),
            ("{}".into(), "aws:sqs".into(), REGION.into())
        );
        assert_eq!(text("eventSourceARN"), "arn:aws:sqs:us-east-1:000000000000:work");
        assert_eq!(text("md5OfBody"), "99914b932bd37a50b983c5e7c90ae93b");
        assert_eq!(text("md5OfMessageAttributes").len(), 32);
        assert!(!text("messageId").is_empty() && !text("receiptHandle").is_empty());
        assert_eq!(record["attributes"]["ApproximateReceiveCount"], "1");
        let mode = json!({ "stringValue": "test", "stringListValues": [], "binaryListValues": [],
            "dataType": "String" });
        assert_eq!(record["messageAttributes"]["mode"], mode);
        let parsed: aws_lambda_events::sqs::SqsEvent =
            serde_json::from_value(events.lock().unwrap()[0].clone()).unwrap();
        assert_eq!(parsed.records[0].message_attributes["mode"].string_value.as_deref(), Some("test"));
    }

    #[tokio::test]
    async fn a_failed_message_is_not_deleted() {
        let poison = |records: &[Value]| {
            let failed = records.iter().filter(|record| record["body"] == "poison");
            let failed: Vec<Value> =
                failed.map(|record| json!({ "itemIdentifier": record["messageId"] })).collect();
            Ok(json!({ "batchItemFailures": failed }))
        };
        assert_eq!(Queue::start(&["1", "2", "poison", "4"], poison).await.left(4).await, (0, 1));
    }

    #[tokio::test]
    async fn an_error_a_panic_and_an_unknown_id_keep_the_whole_batch() {
        let error = |_: &[Value]| Err("no".to_owned());
        assert_eq!(Queue::start(&["1", "2"], error).await.left(2).await, (0, 2));
        let panic = |_: &[Value]| -> Result<Value, String> { panic!("on purpose") };
        assert_eq!(Queue::start(&["1", "2"], panic).await.left(2).await, (0, 2));
        let unknown = |_: &[Value]| Ok(json!({ "batchItemFailures": [{ "itemIdentifier": "unknown" }] }));
        assert_eq!(Queue::start(&["1", "2"], unknown).await.left(2).await, (0, 2));
    }

    #[tokio::test]
    async fn a_batch_has_at_most_ten_messages() {
        let bodies: Vec<String> = (0..23).map(|at| at.to_string()).collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let queue = Queue::start(&bodies, |_| Ok(Value::Null)).await;
        let events = Arc::clone(&queue.events);
        assert_eq!(queue.left(23).await, (0, 0));
        let sizes: Vec<usize> =
            events.lock().unwrap().iter().map(|event| event["Records"].as_array().unwrap().len()).collect();
        assert!(sizes.iter().all(|size| *size <= 10) && sizes.iter().sum::<usize>() == 23, "{sizes:?}");
    }
}
