//! An SQS endpoint with queues in SQLite. It speaks the AWS JSON 1.0 protocol (`POST /`, `X-Amz-Target:
//! AmazonSQS.SendMessage`) of the AWS SDKs, boto3 and AWS CLI v2. It also answers CloudWatch's
//! `GetMetricData` for the age of the oldest message.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let sqs = local::sqs::Sqs::open(Some("queues.db".as_ref()), local::sqs::system_clock())?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! axum::serve(listener, sqs.router()).await?; // or `sqs.handle(target, host, body)`, without a socket
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! - **An accepted message survives `kill -9`.** A send is answered after the commit (write-ahead log,
//!   `synchronous=NORMAL`: a power cut may lose the last commits, a killed process loses none). Receive
//!   counts and visibility are on disk too, so a message in flight becomes visible again when its visibility
//!   timeout ends.
//! - **A receipt handle belongs to one receive.** A delete always answers 200, and deletes nothing when the
//!   message was received again in between. AWS leaves both open. This choice turns a consumer's mistake into
//!   a redelivery.
//! - **Only the given clock counts.** After a test moves the clock, [`Sqs::wake`] makes long polls read it
//!   again.
//! - A message that was received `maxReceiveCount` times moves to the dead-letter queue at the next receive,
//!   with its id, body, attributes, age and receive count, and with `DeadLetterQueueSourceArn`.
//! - A redrive (`StartMessageMoveTask`) is finished when it answers. It moves the visible messages as new
//!   ones, with a new id and with age and receive count zero.
//!
//! # Not supported
//! FIFO queues (refused), signatures and policies (not checked), tags, `MaxNumberOfMessagesPerSecond` and
//! cancellation of a redrive, the 60 s wait after a purge or a deletion, the limit of 120,000 messages in
//! flight, the limit of 12 h for the visibility of a message. One process owns a file: a send of another
//! process does not wake the long polls of this one.
//!
//! # Schema
//! Times in milliseconds since the epoch, as integers.
//!
//! | table | columns |
//! |---|---|
//! | `queues` | `id`, `name`, `attributes` (JSON, only those that were set), `created_ms`, `modified_ms` |
//! | `messages` | `id`, `queue`, `message_id`, `body`, `attributes` and `system` (JSON), `sent_ms`, `visible_ms` (hidden until then: delayed, in flight if `in_flight` is 1, in flight and hidden by `ChangeMessageVisibility` if it is 2), `receives`, `first_received_ms`, `generation` (grows with each receive and move; a receipt handle contains it), `dead_letter_source` (queue name) |
//! | `move_tasks` | `id`, `source` and `destination` (queue names), `started_ms`, `found`, `moved` |

mod digests;
mod store;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

use store::{Delivery, NewMessage, Queue, ReceiptHandle, Store};
use wire::{
    BatchRequest, ErrorCode, ListQueuesRequest, MetricDataRequest, MoveTaskRequest, QueueNameRequest,
    QueueRequest, ReceiptRequest, ReceiveRequest, ReceivedMessage, SendRequest, SendResult, SqsError,
};

/// The time, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// An HTTP answer: status, JSON body, and the header `x-amzn-query-error` of an error.
pub type Answer = (u16, Vec<u8>, Option<String>);

/// The account of every queue.
const ACCOUNT: &str = "000000000000";

/// Fits a full batch even when JSON escapes every character.
const MAX_REQUEST_BYTES: usize = 8 * wire::MAX_BYTES;

/// The endpoint. Clones share the queues.
#[derive(Clone)]
pub struct Sqs {
    shared: Arc<Shared>,
    region: Arc<str>,
}

struct Shared {
    /// A statement takes microseconds, so the lock is held on the async thread, but never across an `await`.
    store: Mutex<Store>,
    clock: Clock,
    /// Wakes the long polls of a queue, by the queue's row.
    wakers: Mutex<HashMap<i64, Arc<Notify>>>,
    /// See [`QueueStatus::handed_out`], by the queue's row. Only used while the store is locked.
    handed_out: Mutex<HashMap<i64, u64>>,
}

/// The state of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueStatus {
    /// The queue's name.
    pub name: String,
    /// Messages that a receive can return.
    pub visible: i64,
    /// Messages that were received, and are neither deleted nor visible again.
    pub in_flight: i64,
    /// Messages whose delay has not ended.
    pub delayed: i64,
    /// The time since the oldest message was sent. `None` when the queue is empty.
    pub oldest_age_seconds: Option<i64>,
    /// The number of messages that all receives have returned since the queues were opened. A message that is
    /// received twice counts twice. A consumer that counts the messages it finished can compare: while the
    /// numbers differ, a message is being processed.
    pub handed_out: u64,
}

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
    })
}

impl Sqs {
    /// Opens the queues in a file, which is created if it does not exist. Without a path the queues are in
    /// memory.
    pub fn open(path: Option<&Path>, clock: Clock) -> anyhow::Result<Self> {
        let shared = Shared {
            store: Mutex::new(Store::open(path)?),
            clock,
            wakers: Mutex::default(),
            handed_out: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), region: "us-east-1".into() })
    }

    /// Makes the messages visible that the consumers of an earlier process held when it ended, and returns
    /// their number. Messages that wait for a retry keep waiting. Call it before a consumer receives.
    pub fn release_in_flight(&self) -> anyhow::Result<usize> {
        Ok(self.store().release((self.shared.clock)())?)
    }

    /// The same queues with ARNs in another region. The default is `us-east-1`.
    #[must_use]
    pub fn in_region(mut self, region: &str) -> Self {
        self.region = region.into();
        self
    }

    /// Answers one request. `target` is the header `X-Amz-Target`. `host` is the header `Host`; queue URLs
    /// contain it.
    pub async fn handle(&self, target: &str, host: &str, body: &[u8]) -> Answer {
        match self.dispatch(action(target), host, body).await {
            Ok(answer) => (200, answer.to_string().into_bytes(), None),
            Err(error) => error.answer(),
        }
    }

    /// The routes: `/`, and the path of a queue URL, to which older clients post.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/", post(serve))
            .route("/{account}/{queue}", post(serve))
            .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
            .with_state(self.clone())
    }

    /// Makes every long poll check its queue again. A test calls it after moving the clock.
    pub fn wake(&self) {
        self.wakers().values().for_each(|waker| waker.notify_waiters());
    }

    /// The state of all queues, by name.
    pub fn queues(&self) -> anyhow::Result<Vec<QueueStatus>> {
        let (store, now_ms) = (self.store(), self.now_ms());
        let status = |queue: Queue| {
            let counts = store.counts(&queue, now_ms)?;
            Ok(QueueStatus {
                name: queue.name,
                visible: counts.visible,
                in_flight: counts.in_flight,
                delayed: counts.delayed,
                oldest_age_seconds: counts.oldest_sent_ms.map(|sent_ms| (now_ms - sent_ms).max(0) / 1_000),
                handed_out: self.handed_out().get(&queue.id).copied().unwrap_or(0),
            })
        };
        store.queues()?.into_iter().map(status).collect()
    }

    async fn dispatch(&self, action: &str, host: &str, body: &[u8]) -> Result<Value, SqsError> {
        match action {
            "SendMessage" => self.send_message(parse(body)?),
            "SendMessageBatch" => self.send_message_batch(parse(body)?),
            "ReceiveMessage" => self.receive_message(parse(body)?).await,
            "DeleteMessage" => self.on_receipt(&parse(body)?, Self::delete),
            "DeleteMessageBatch" => self.on_receipts(parse(body)?, Self::delete),
            "ChangeMessageVisibility" => self.on_receipt(&parse(body)?, Self::hide),
            "ChangeMessageVisibilityBatch" => self.on_receipts(parse(body)?, Self::hide),
            "CreateQueue" => self.create_queue(parse(body)?, host),
            "GetQueueUrl" => self.get_queue_url(&parse(body)?, host),
            "ListQueues" => self.list_queues(&parse(body)?, host),
            "DeleteQueue" => self.delete_queue(&parse(body)?),
            "PurgeQueue" => self.purge_queue(&parse(body)?),
            "GetMetricData" => self.get_metric_data(&parse(body)?),
            "GetQueueAttributes" => self.get_queue_attributes(&parse(body)?),
            "SetQueueAttributes" => self.set_queue_attributes(parse(body)?),
            "StartMessageMoveTask" => self.start_message_move_task(&parse(body)?),
            "ListMessageMoveTasks" => self.list_message_move_tasks(&parse(body)?),
            "" => Err(ErrorCode::UnsupportedOperation
                .because("no action: this endpoint supports the AWS JSON 1.0 protocol (X-Amz-Target: AmazonSQS.<Action>), not the older query protocol")),
            other => Err(ErrorCode::UnsupportedOperation.because(format!("{other} is not part of the local SQS endpoint"))),
        }
    }

    // Messages.

    fn send_message(&self, message: SendRequest) -> Result<Value, SqsError> {
        let mut store = self.store();
        let queue = find(&store, &message.queue_url)?;
        let now_ms = self.now_ms();
        let (new, sent) = accept(message, &queue, now_ms)?;
        store.send(queue.id, &[new], now_ms)?;
        self.wake_queue(queue.id);
        Ok(json!(sent))
    }

    fn send_message_batch(&self, batch: BatchRequest<SendRequest>) -> Result<Value, SqsError> {
        let mut store = self.store();
        let queue = find(&store, &batch.queue_url)?;
        wire::check_batch(batch.entries.iter().map(|entry| &entry.id))?;
        let (bytes, max) = (batch.entries.iter().map(SendRequest::bytes).sum::<usize>(), wire::MAX_BYTES);
        if bytes > max {
            let why =
                format!("Batch requests cannot be longer than {max} bytes. You have sent {bytes} bytes.");
            return Err(ErrorCode::BatchRequestTooLong.because(why));
        }
        let now_ms = self.now_ms();
        let (mut accepted, mut results) = (Vec::new(), Vec::new());
        for entry in batch.entries {
            let id = entry.id.clone();
            let result = accept(entry, &queue, now_ms).map(|(new, sent)| {
                accepted.push(new);
                sent
            });
            results.push((id, result));
        }
        store.send(queue.id, &accepted, now_ms)?;
        self.wake_queue(queue.id);
        Ok(wire::batch_answer(results))
    }

    /// Answers as soon as there is a message: at once, or when one is sent or becomes visible. Answers
    /// without messages when the wait time ends.
    async fn receive_message(&self, request: ReceiveRequest) -> Result<Value, SqsError> {
        let limit = wire::between("MaxNumberOfMessages", request.max_number_of_messages, 1, 1, 10)?;
        let limit = usize::try_from(limit).unwrap_or(1);
        let queue = find(&self.store(), &request.queue_url)?;
        let wait = wire::between(
            "WaitTimeSeconds",
            request.wait_time_seconds,
            queue.number("ReceiveMessageWaitTimeSeconds"),
            0,
            20,
        )?;
        let names = request.system_names()?;
        let deadline_ms = self.now_ms() + wait * 1_000;
        let waker = self.waker(queue.id);
        loop {
            // Register before checking the queue: a message that is sent in between then wakes this poll.
            let mut woken = pin!(waker.notified());
            woken.as_mut().enable();
            let now_ms = self.now_ms();
            let (deliveries, next_visible_ms) = self.take(&request, now_ms, limit)?;
            if !deliveries.is_empty() {
                let messages: Vec<_> = deliveries
                    .into_iter()
                    .map(|delivery| self.received_message(delivery, &request, &names))
                    .collect();
                return Ok(json!({ "Messages": messages }));
            }
            if now_ms >= deadline_ms {
                return Ok(json!({}));
            }
            let until_ms = next_visible_ms.map_or(deadline_ms, |next_ms| next_ms.min(deadline_ms));
            let pause = Duration::from_millis(u64::try_from(until_ms - now_ms).unwrap_or(0));
            // After a wake-up and after a timeout, check the queue again.
            let _ = tokio::time::timeout(pause, woken).await;
        }
    }

    /// Checks the queue once. Returns the received messages, or else the time at which the next one may
    /// become visible.
    fn take(
        &self,
        request: &ReceiveRequest,
        now_ms: i64,
        limit: usize,
    ) -> Result<(Vec<Delivery>, Option<i64>), SqsError> {
        let mut store = self.store();
        let queue = find(&store, &request.queue_url)?;
        let hidden = wire::between(
            "VisibilityTimeout",
            request.visibility_timeout,
            queue.number("VisibilityTimeout"),
            0,
            43_200,
        )?;
        let redrive = match queue.attributes.get("RedrivePolicy") {
            Some(policy) => {
                let (arn, max_receives) = wire::parse_redrive_policy(policy)?;
                // The message stays when the dead-letter queue does not exist any more or is this queue.
                store
                    .queue(name_in(&arn))?
                    .filter(|target| target.id != queue.id)
                    .map(|target| (target, max_receives))
            }
            None => None,
        };
        let target = redrive.as_ref().map(|(target, max_receives)| (target, *max_receives));
        let (deliveries, moved) = store.receive(&queue, target, now_ms, now_ms + hidden * 1_000, limit)?;
        if let Some((target, _)) = target.filter(|_| moved > 0) {
            self.wake_queue(target.id);
        }
        if let Ok(taken @ 1..) = u64::try_from(deliveries.len()) {
            *self.handed_out().entry(queue.id).or_default() += taken;
        }
        let next_visible_ms =
            if deliveries.is_empty() { store.next_visible(queue.id, now_ms)? } else { None };
        Ok((deliveries, next_visible_ms))
    }

    /// A message with the attributes that the receiver asked for.
    fn received_message(
        &self,
        delivery: Delivery,
        request: &ReceiveRequest,
        names: &BTreeSet<&str>,
    ) -> ReceivedMessage {
        let mut system = delivery.system;
        system.insert("SenderId".into(), ACCOUNT.into());
        system.insert("SentTimestamp".into(), delivery.sent_ms.to_string());
        system.insert("ApproximateReceiveCount".into(), delivery.receives.to_string());
        system.insert("ApproximateFirstReceiveTimestamp".into(), delivery.first_received_ms.to_string());
        if let Some(source) = delivery.dead_letter_source {
            system.insert("DeadLetterQueueSourceArn".into(), self.arn(&source));
        }
        system.retain(|name, _| names.contains(name.as_str()));
        let mut attributes = delivery.attributes;
        attributes.retain(|name, _| request.wants(name));
        ReceivedMessage {
            receipt_handle: handle_to_text(&delivery.handle),
            message_id: delivery.handle.message_id,
            md5_of_body: digests::of_body(&delivery.body),
            body: delivery.body,
            attributes: system,
            md5_of_attributes: digests::of_attributes(&attributes),
            message_attributes: attributes,
        }
    }

    /// Applies `act` to one message, by its receipt.
    fn on_receipt(
        &self,
        receipt: &ReceiptRequest,
        act: fn(&Self, &Store, &Queue, &ReceiptRequest) -> Result<(), SqsError>,
    ) -> Result<Value, SqsError> {
        let store = self.store();
        act(self, &store, &find(&store, &receipt.queue_url)?, receipt)?;
        Ok(json!({}))
    }

    /// Applies `act` to each message of a batch; one that fails does not stop the others.
    fn on_receipts(
        &self,
        batch: BatchRequest<ReceiptRequest>,
        act: fn(&Self, &Store, &Queue, &ReceiptRequest) -> Result<(), SqsError>,
    ) -> Result<Value, SqsError> {
        let store = self.store();
        let queue = find(&store, &batch.queue_url)?;
        wire::check_batch(batch.entries.iter().map(|entry| &entry.id))?;
        let results = batch.entries.into_iter().map(|entry| {
            let done = act(self, &store, &queue, &entry).map(|()| json!({ "Id": entry.id }));
            (entry.id, done)
        });
        Ok(wire::batch_answer(results.collect()))
    }

    fn delete(&self, store: &Store, queue: &Queue, receipt: &ReceiptRequest) -> Result<(), SqsError> {
        Ok(store.delete(&handle_from_text(&receipt.receipt_handle, queue)?)?)
    }

    fn hide(&self, store: &Store, queue: &Queue, receipt: &ReceiptRequest) -> Result<(), SqsError> {
        let handle = handle_from_text(&receipt.receipt_handle, queue)?;
        if receipt.visibility_timeout.is_none() {
            wire::required("VisibilityTimeout", "")?;
        }
        let seconds = wire::between("VisibilityTimeout", receipt.visibility_timeout, 0, 0, 43_200)?;
        if !store.hide(&handle, self.now_ms() + seconds * 1_000)? {
            let why = format!(
                "Value {} for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.",
                receipt.receipt_handle
            );
            return Err(ErrorCode::InvalidParameterValue.because(why));
        }
        self.wake_queue(queue.id);
        Ok(())
    }

    // Queues.

    /// Also answers with the URL of an existing queue, if it has the same attributes.
    fn create_queue(&self, request: QueueNameRequest, host: &str) -> Result<Value, SqsError> {
        wire::check_queue_name(&request.queue_name)?;
        let mut attributes = wire::check_queue_attributes(request.attributes)?;
        attributes.retain(|_, value| !value.is_empty());
        let store = self.store();
        check_dead_letter_target(&store, &attributes)?;
        match store.queue(&request.queue_name)? {
            None => store.create_queue(&request.queue_name, &attributes, self.now_ms())?,
            Some(queue) => {
                let has = self.settings(&queue);
                if let Some((name, _)) = attributes.iter().find(|(name, value)| has.get(*name) != Some(value))
                {
                    let why = format!(
                        "A queue already exists with the same name and a different value for attribute {name}"
                    );
                    return Err(ErrorCode::QueueNameExists.because(why));
                }
            }
        }
        Ok(json!({ "QueueUrl": url(host, &request.queue_name) }))
    }

    fn get_queue_url(&self, request: &QueueNameRequest, host: &str) -> Result<Value, SqsError> {
        let name = wire::required("QueueName", &request.queue_name)?;
        Ok(json!({ "QueueUrl": url(host, &find(&self.store(), name)?.name) }))
    }

    fn list_queues(&self, request: &ListQueuesRequest, host: &str) -> Result<Value, SqsError> {
        let limit = wire::between("MaxResults", request.max_results, 1_000, 1, 1_000)?;
        let limit = usize::try_from(limit).unwrap_or(1_000);
        let mut names: Vec<String> = self.store().queues()?.into_iter().map(|queue| queue.name).collect();
        names.retain(|name| {
            name.starts_with(&request.queue_name_prefix)
                && request.next_token.as_ref().is_none_or(|last| name > last)
        });
        let more = names.len() > limit;
        names.truncate(limit);
        let mut answer = json!({ "QueueUrls": names.iter().map(|name| url(host, name)).collect::<Vec<_>>() });
        if let Some(last) = names.last().filter(|_| more) {
            answer["NextToken"] = json!(last);
        }
        Ok(answer)
    }

    fn delete_queue(&self, request: &QueueRequest) -> Result<Value, SqsError> {
        let mut store = self.store();
        let queue = find(&store, &request.queue_url)?;
        store.delete_queue(queue.id)?;
        self.wake_queue(queue.id);
        self.wakers().remove(&queue.id);
        Ok(json!({}))
    }

    fn purge_queue(&self, request: &QueueRequest) -> Result<Value, SqsError> {
        let store = self.store();
        store.purge(find(&store, &request.queue_url)?.id)?;
        Ok(json!({}))
    }

    /// CloudWatch's `GetMetricData` for `ApproximateAgeOfOldestMessage` of queues, as of now. As in AWS, a
    /// message that was received three times or more does not count, and an empty queue has no value.
    fn get_metric_data(&self, request: &MetricDataRequest) -> Result<Value, SqsError> {
        let (store, now_ms) = (self.store(), self.now_ms());
        let mut results = Vec::new();
        for query in &request.queries {
            let Some(name) = query.stat.queue_of_age() else {
                let message = "this endpoint has only AWS/SQS ApproximateAgeOfOldestMessage by QueueName";
                return Err(ErrorCode::InvalidParameterValue.because(message));
            };
            let sent_ms = match store.queue(name)? {
                Some(queue) => store.counts(&queue, now_ms)?.oldest_rated_sent_ms,
                None => None,
            };
            let values = Vec::from_iter(sent_ms.map(|sent_ms| (now_ms - sent_ms).max(0) / 1_000));
            let times = vec![now_ms / 1_000; values.len()];
            results.push(json!({
                "Id": query.id, "Label": name, "StatusCode": "Complete", "Timestamps": times, "Values": values,
            }));
        }
        Ok(json!({ "MetricDataResults": results, "Messages": [] }))
    }

    fn get_queue_attributes(&self, request: &QueueRequest) -> Result<Value, SqsError> {
        let store = self.store();
        let queue = find(&store, &request.queue_url)?;
        let counts = store.counts(&queue, self.now_ms())?;
        let mut attributes = self.settings(&queue);
        attributes.insert("ApproximateNumberOfMessages".into(), counts.visible.to_string());
        attributes.insert("ApproximateNumberOfMessagesNotVisible".into(), counts.in_flight.to_string());
        attributes.insert("ApproximateNumberOfMessagesDelayed".into(), counts.delayed.to_string());
        const MAY_BE_ABSENT: [&str; 6] = [
            "All",
            "Policy",
            "RedrivePolicy",
            "RedriveAllowPolicy",
            "KmsMasterKeyId",
            "KmsDataKeyReusePeriodSeconds",
        ];
        let known = |name: &String| attributes.contains_key(name) || MAY_BE_ABSENT.contains(&name.as_str());
        if let Some(name) = request.attribute_names.iter().find(|name| !known(name)) {
            return Err(ErrorCode::InvalidAttributeName.because(format!("Unknown Attribute {name}.")));
        }
        if !request.attribute_names.iter().any(|name| name == "All") {
            attributes.retain(|name, _| request.attribute_names.contains(name));
        }
        Ok(if attributes.is_empty() { json!({}) } else { json!({ "Attributes": attributes }) })
    }

    fn set_queue_attributes(&self, request: QueueRequest) -> Result<Value, SqsError> {
        let changes = wire::check_queue_attributes(request.attributes)?;
        let store = self.store();
        let mut queue = find(&store, &request.queue_url)?;
        check_dead_letter_target(&store, &changes)?;
        queue.attributes.extend(changes);
        queue.attributes.retain(|_, value| !value.is_empty());
        store.set_attributes(queue.id, &queue.attributes, self.now_ms())?;
        self.wake_queue(queue.id);
        Ok(json!({}))
    }

    fn start_message_move_task(&self, request: &MoveTaskRequest) -> Result<Value, SqsError> {
        let mut store = self.store();
        let source = find_by_arn(&store, "SourceArn", wire::required("SourceArn", &request.source_arn)?)?;
        let destination = request
            .destination_arn
            .as_deref()
            .map(|arn| find_by_arn(&store, "DestinationArn", arn))
            .transpose()?;
        let mut is_dead_letter_queue = false;
        for policy in store.queues()?.iter().filter_map(|queue| queue.attributes.get("RedrivePolicy")) {
            is_dead_letter_queue |= name_in(&wire::parse_redrive_policy(policy)?.0) == source.name;
        }
        if !is_dead_letter_queue {
            return Err(ErrorCode::InvalidParameterValue
                .because("Source queue must be configured as a Dead Letter Queue."));
        }
        let task = store.redrive(&source, destination.as_ref(), self.now_ms())?;
        self.wake();
        Ok(json!({ "TaskHandle": URL_SAFE_NO_PAD.encode(format!("{task}:{}", request.source_arn)) }))
    }

    fn list_message_move_tasks(&self, request: &MoveTaskRequest) -> Result<Value, SqsError> {
        let limit = wire::between("MaxResults", request.max_results, 1, 1, 10)?;
        let store = self.store();
        let source = find_by_arn(&store, "SourceArn", wire::required("SourceArn", &request.source_arn)?)?;
        let tasks = store.move_tasks(&source.name, limit)?.into_iter().map(|task| {
            let mut shown = json!({
                "SourceArn": self.arn(&source.name),
                "StartedTimestamp": task.started_ms,
                "ApproximateNumberOfMessagesToMove": task.found,
                "ApproximateNumberOfMessagesMoved": task.moved,
                "Status": if task.moved == task.found { "COMPLETED" } else { "FAILED" },
            });
            if let Some(destination) = task.destination {
                shown["DestinationArn"] = json!(self.arn(&destination));
            }
            if task.moved != task.found {
                shown["FailureReason"] = json!("CouldNotDetermineMessageSource");
            }
            shown
        });
        Ok(json!({ "Results": tasks.collect::<Vec<_>>() }))
    }

    /// The attributes of a queue without the message counts.
    fn settings(&self, queue: &Queue) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::from([
            ("QueueArn".to_string(), self.arn(&queue.name)),
            ("CreatedTimestamp".to_string(), (queue.created_ms / 1_000).to_string()),
            ("LastModifiedTimestamp".to_string(), (queue.modified_ms / 1_000).to_string()),
            (
                "SqsManagedSseEnabled".to_string(),
                (!queue.attributes.contains_key("KmsMasterKeyId")).to_string(),
            ),
        ]);
        settings.extend(wire::number_names().map(|name| (name.to_string(), queue.number(name).to_string())));
        settings.extend(queue.attributes.clone());
        settings
    }

    // Helpers.

    fn arn(&self, name: &str) -> String {
        format!("arn:aws:sqs:{}:{ACCOUNT}:{name}", self.region)
    }

    fn now_ms(&self) -> i64 {
        (self.shared.clock)()
    }

    /// A panic while the lock was held cannot leave half a change: SQLite rolls the transaction back.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakers(&self) -> MutexGuard<'_, HashMap<i64, Arc<Notify>>> {
        self.shared.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handed_out(&self) -> MutexGuard<'_, HashMap<i64, u64>> {
        self.shared.handed_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waker(&self, queue: i64) -> Arc<Notify> {
        Arc::clone(self.wakers().entry(queue).or_default())
    }

    fn wake_queue(&self, queue: i64) {
        if let Some(waker) = self.wakers().get(&queue) {
            waker.notify_waiters();
        }
    }
}

async fn serve(State(sqs): State<Sqs>, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (status, answer, query_error) = sqs.handle(header("x-amz-target"), header("host"), &body).await;
    let mut headers = vec![
        (HeaderName::from_static("content-type"), "application/x-amz-json-1.0".to_string()),
        (HeaderName::from_static("x-amzn-requestid"), Uuid::new_v4().to_string()),
    ];
    headers.extend(query_error.map(|error| (HeaderName::from_static("x-amzn-query-error"), error)));
    let mut response =
        (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), answer).into_response();
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The action of a target: `AmazonSQS.SendMessage`, or the one of CloudWatch.
fn action(target: &str) -> &str {
    if target == "GraniteServiceVersion20100801.GetMetricData" {
        return "GetMetricData";
    }
    target.strip_prefix("AmazonSQS.").filter(|action| *action != "GetMetricData").unwrap_or_default()
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, SqsError> {
    serde_json::from_slice(body)
        .map_err(|error| ErrorCode::Serialization.because(format!("request body: {error}")))
}

/// Checks a message. Returns the message for the store, and the answer to the sender.
fn accept(message: SendRequest, queue: &Queue, now_ms: i64) -> Result<(NewMessage, SendResult), SqsError> {
    message.check(queue.number("MaximumMessageSize"))?;
    let delay = wire::between("DelaySeconds", message.delay_seconds, queue.number("DelaySeconds"), 0, 900)?;
    let message_id = Uuid::new_v4().to_string();
    let sent = SendResult {
        id: message.id,
        message_id: message_id.clone(),
        md5_of_body: digests::of_body(&message.message_body),
        md5_of_attributes: digests::of_attributes(&message.message_attributes),
        md5_of_system_attributes: digests::of_attributes(&message.message_system_attributes),
    };
    let traced = message
        .message_system_attributes
        .into_iter()
        .filter_map(|(name, attribute)| Some((name, attribute.string_value?)));
    let grouped = message.message_group_id.map(|group| ("MessageGroupId".to_string(), group));
    let new = NewMessage {
        message_id,
        body: message.message_body,
        attributes: message.message_attributes,
        system: traced.chain(grouped).collect(),
        visible_ms: now_ms + delay * 1_000,
    };
    Ok((new, sent))
}

/// The queue of a URL or a name.
fn find(store: &Store, queue_url: &str) -> Result<Queue, SqsError> {
    let name =
        wire::required("QueueUrl", queue_url)?.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    store
        .queue(name)?
        .ok_or_else(|| ErrorCode::QueueDoesNotExist.because("The specified queue does not exist."))
}

fn find_by_arn(store: &Store, parameter: &str, arn: &str) -> Result<Queue, SqsError> {
    let missing = || {
        ErrorCode::ResourceNotFound
            .because(format!("The resource that you specified for the {parameter} parameter doesn't exist."))
    };
    store.queue(name_in(arn))?.ok_or_else(missing)
}

fn check_dead_letter_target(store: &Store, attributes: &BTreeMap<String, String>) -> Result<(), SqsError> {
    let Some(policy) = attributes.get("RedrivePolicy").filter(|policy| !policy.is_empty()) else {
        return Ok(());
    };
    if store.queue(name_in(&wire::parse_redrive_policy(policy)?.0))?.is_none() {
        let why = format!(
            "Value {policy} for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist."
        );
        return Err(ErrorCode::InvalidParameterValue.because(why));
    }
    Ok(())
}

fn name_in(arn: &str) -> &str {
    arn.rsplit(':').next().unwrap_or_default()
}

fn url(host: &str, name: &str) -> String {
    format!("http://{host}/{ACCOUNT}/{name}")
}

/// The text of a receipt handle. Clients must treat it as opaque.
fn handle_to_text(handle: &ReceiptHandle) -> String {
    URL_SAFE_NO_PAD
        .encode(format!("{}:{}:{}:{}", handle.queue, handle.row, handle.generation, handle.message_id))
}

fn handle_from_text(text: &str, queue: &Queue) -> Result<ReceiptHandle, SqsError> {
    let wrong = || {
        ErrorCode::ReceiptHandleIsInvalid
            .because(format!("The input receipt handle \"{text}\" is not a valid receipt handle."))
    };
    let bytes = URL_SAFE_NO_PAD.decode(wire::required("ReceiptHandle", text)?).map_err(|_| wrong())?;
    let plain = String::from_utf8(bytes).map_err(|_| wrong())?;
    let mut parts = plain.splitn(4, ':');
    let mut number = || parts.next()?.parse::<i64>().ok();
    let (Some(of_queue), Some(row), Some(generation)) = (number(), number(), number()) else {
        return Err(wrong());
    };
    let message_id = parts.next().ok_or_else(wrong)?.to_string();
    if of_queue != queue.id {
        return Err(wrong());
    }
    Ok(ReceiptHandle { queue: of_queue, row, generation, message_id })
}
