//! Queues that feed functions: what an event source mapping of Lambda does.
//!
//! | what the function does | what becomes of the batch |
//! |---|---|
//! | answers nothing, `null`, `{}`, or with an empty or absent list of failures | all messages are deleted |
//! | answers `{"batchItemFailures":[{"itemIdentifier":"<message id>"}]}` | the others are deleted |
//! | names an id that is not of the batch, an empty one, or none | nothing is deleted |
//! | answers what is not JSON, or an error; crashes; times out | nothing is deleted |
//!
//! What is not deleted comes back when its visibility ends, which the function may have changed. A batch has
//! at most ten messages and at most what fits an invocation. The poller uses the queues of this process
//! without a socket: on AWS this part is not ours either, and it is the same JSON. The functions themselves
//! reach the queues with the SDK over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::lambda::{Function, MAX_PAYLOAD_BYTES, REGION};
use super::stopped;
use crate::sqs::Sqs;

/// The most messages of one batch.
const BATCH: usize = 10;

/// A queue being polled.
pub struct Poller {
    finished: Finished,
    tasks: Vec<JoinHandle<()>>,
}

/// How many messages of a queue its poller has received and is done with.
#[derive(Clone)]
pub struct Finished {
    queue: Arc<str>,
    messages: Arc<AtomicU64>,
}

impl Finished {
    /// The queue's name, and the number so far.
    pub fn count(&self) -> (&str, u64) {
        (&self.queue, self.messages.load(Ordering::SeqCst))
    }
}

impl Poller {
    /// Invokes the function with what comes into the queue, up to `concurrency` batches at a time, until
    /// `stop` becomes true.
    pub fn start(
        sqs: &Sqs,
        queue: &str,
        function: &Function,
        concurrency: usize,
        stop: &watch::Receiver<bool>,
    ) -> Self {
        let finished = Finished { queue: queue.into(), messages: Arc::default() };
        let source = || Source {
            sqs: sqs.clone(),
            queue: queue.to_owned(),
            function: function.clone(),
            finished: finished.clone(),
        };
        let tasks = (0..concurrency).map(|_| tokio::spawn(source().poll(stop.clone()))).collect();
        Self { finished, tasks }
    }

    /// What counts the messages it is done with.
    pub fn finished(&self) -> Finished {
        self.finished.clone()
    }

    /// Waits until the batches that were being worked on are done, once it was told to stop.
    pub async fn stopped(self) {
        for task in self.tasks {
            // A panic of the poller has been printed.
            let _ = task.await;
        }
    }
}

struct Source {
    sqs: Sqs,
    queue: String,
    function: Function,
    finished: Finished,
}

impl Source {
    async fn poll(self, stop: watch::Receiver<bool>) {
        loop {
            // Dropping the receive loses nothing: messages are taken in the very poll that answers.
            let received = tokio::select! {
                biased;
                () = stopped(&stop) => return,
                received = self.receive() => received,
            };
            match received {
                Ok(messages) => {
                    let taken = u64::try_from(messages.len()).unwrap_or_default();
                    for batch in batches(&messages) {
                        self.work_on(batch).await;
                    }
                    self.finished.messages.fetch_add(taken, Ordering::SeqCst);
                }
                Err(error) => {
                    tracing::error!(queue = self.queue, error, "cannot receive");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn work_on(&self, batch: &[Value]) {
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
                "a whole batch failed; its messages come back"
            );
            ids.iter().map(|id| (*id).to_owned()).collect()
        });
        let done: Vec<&Value> = batch
            .iter()
            .filter(|message| !failed.iter().any(|id| Some(id.as_str()) == message["MessageId"].as_str()))
            .collect();
        if let Err(error) = self.delete(&done).await {
            tracing::error!(queue = self.queue, error, "cannot delete; the messages come back");
        }
    }

    async fn receive(&self) -> Result<Vec<Value>, String> {
        let request = json!({
            "QueueUrl": self.queue,
            "MaxNumberOfMessages": BATCH,
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
        let entry = |(at, message): (usize, &&Value)| json!({ "Id": at.to_string(), "ReceiptHandle": message["ReceiptHandle"] });
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

/// Received messages in parts that each fit an invocation.
fn batches(messages: &[Value]) -> Vec<&[Value]> {
    // What an event has around a message, generously: ids, attributes, and the ARN.
    const AROUND: usize = 2_048;
    let size = |message: &Value| message.to_string().len() + AROUND;
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

/// The event a function gets for these messages.
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

/// The ids of the messages that failed; an error when all of them did because the answer makes no sense.
fn failures(answer: &[u8], ids: &[&str]) -> Result<Vec<String>, String> {
    if answer.is_empty() {
        return Ok(Vec::new());
    }
    let answer: Value =
        serde_json::from_slice(answer).map_err(|error| format!("its answer is not JSON: {error}"))?;
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
    fn an_answer_that_makes_no_sense_fails_the_whole_batch() {
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
    fn messages_that_do_not_fit_one_invocation_are_handed_over_in_several() {
        let message = |megabytes: usize| json!({ "MessageId": "a", "Body": "x".repeat(megabytes << 20) });
        let messages = [message(1), message(1), message(1), message(1), message(1), message(1), message(1)];
        assert_eq!(batches(&messages).iter().map(|batch| batch.len()).collect::<Vec<_>>(), [5, 2]);
        assert_eq!(batches(&messages[..3]).len(), 1);
        assert!(batches(&[]).is_empty());
    }

    /// A queue with a poller whose function answers what `answer` makes of the event's records.
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
            let seen = Arc::clone(&events);
            let handler: Handler = Arc::new(move |event| {
                let seen = Arc::clone(&seen);
                Box::pin(async move {
                    let event: Value = serde_json::from_slice(&event).unwrap();
                    let records = event["Records"].as_array().unwrap().clone();
                    seen.lock().unwrap().push(event);
                    answer(&records).map(|answer| answer.to_string().into_bytes())
                })
            });
            let (stop, stopped) = watch::channel(false);
            let function = Function::in_process("f", handler).with_timeout(Duration::from_millis(500));
            let poller = Poller::start(&sqs, "work", &function, 2, &stopped);
            Self { sqs, poller, stop, events }
        }

        /// What is left once every message was worked on: visible, in flight.
        async fn left(self, messages: u64) -> (i64, i64) {
            let finished = self.poller.finished();
            while finished.count().1 < messages {
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
    async fn a_function_gets_messages_as_lambda_hands_them_over() {
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
        let mode = json!({ "stringValue": "test", "stringListValues": [], "binaryListValues": [], "dataType": "String" });
        assert_eq!(record["messageAttributes"]["mode"], mode);
        let parsed: aws_lambda_events::sqs::SqsEvent =
            serde_json::from_value(events.lock().unwrap()[0].clone()).unwrap();
        assert_eq!(parsed.records[0].message_attributes["mode"].string_value.as_deref(), Some("test"));
    }

    #[tokio::test]
    async fn only_what_did_not_fail_is_deleted() {
        let poison = |records: &[Value]| {
            let failed = records.iter().filter(|record| record["body"] == "poison");
            let failed: Vec<Value> =
                failed.map(|record| json!({ "itemIdentifier": record["messageId"] })).collect();
            Ok(json!({ "batchItemFailures": failed }))
        };
        assert_eq!(Queue::start(&["1", "2", "poison", "4"], poison).await.left(4).await, (0, 1));
    }

    #[tokio::test]
    async fn an_error_a_panic_and_nonsense_leave_the_whole_batch_in_the_queue() {
        let error = |_: &[Value]| Err("no".to_owned());
        assert_eq!(Queue::start(&["1", "2"], error).await.left(2).await, (0, 2));
        let panic = |_: &[Value]| -> Result<Value, String> { panic!("on purpose") };
        assert_eq!(Queue::start(&["1", "2"], panic).await.left(2).await, (0, 2));
        let stranger = |_: &[Value]| Ok(json!({ "batchItemFailures": [{ "itemIdentifier": "stranger" }] }));
        assert_eq!(Queue::start(&["1", "2"], stranger).await.left(2).await, (0, 2));
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
