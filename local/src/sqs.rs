//! An SQS endpoint inside the local stack: the AWS JSON 1.0 protocol (`POST /`, `X-Amz-Target:
//! AmazonSQS.SendMessage`) that the AWS SDKs, boto3 and AWS CLI v2 speak, over queues kept in SQLite.
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
//! # What it keeps to
//! - **An accepted message survives `kill -9`.** The answer to a send leaves after the commit (write-ahead
//!   log, `synchronous=NORMAL`: a power cut may lose the last commits, a killed process loses none). Receive
//!   counts and visibility are on disk as well, so a message that was in flight returns when its visibility
//!   ends.
//! - **A receipt handle names one hand-out.** Deleting with a handle answers 200 always, and deletes nothing
//!   once the message was handed out again: AWS leaves both open, this is the choice that shows a consumer's
//!   mistake as a redelivery.
//! - **Time is the clock's.** Nothing sleeps past a moment that the clock has not reached; [`Sqs::wake`]
//!   makes long polls look at a clock that was moved.
//! - A message received `maxReceiveCount` times moves to the dead-letter queue on the receive that would
//!   exceed it, with its id, body, attributes, age and receive count, and with `DeadLetterQueueSourceArn`.
//! - A redrive (`StartMessageMoveTask`) is over when it answers. It moves what is visible, as new messages:
//!   new id, age and count zero.
//!
//! # What it leaves out
//! FIFO queues (refused), signatures and policies (not checked), tags, `MaxNumberOfMessagesPerSecond` of a
//! redrive and its cancellation, the 60 s waits after a purge or a deletion, the 120,000 in flight, the 12 h
//! total of visibility. One process owns a file: another one's sends do not wake the long polls of this one.
//!
//! # Schema
//! Times in milliseconds since the epoch, as integers.
//!
//! | table | columns |
//! |---|---|
//! | `queues` | `id`, `name`, `attributes` (JSON, those that were set), `created_ms`, `modified_ms` |
//! | `messages` | `id`, `queue`, `message_id`, `body`, `attributes` and `system` (JSON), `sent_ms`, `visible_ms` (hidden until then: delayed, or in flight if `in_flight` is 1), `receives`, `first_received_ms`, `generation` (grows with each hand-out and move; a receipt handle holds it), `dead_letter_source` (queue name) |
//! | `move_tasks` | `id`, `source` and `destination` (queue names), `started_ms`, `found`, `moved` |

mod md5;
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

use store::{Delivery, Handle, NewMessage, Queue, Store};
use wire::{
    Batch, Code, Fault, ListQueues, MoveTask, NamedQueue, OnQueue, Outgoing, Receipt, Receive, Received, Sent,
};

/// The time, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// An HTTP answer: status, JSON body, and the value of the `x-amzn-query-error` header if it is an error.
pub type Answer = (u16, Vec<u8>, Option<String>);

/// The account every queue belongs to.
const ACCOUNT: &str = "000000000000";

/// A full batch in its worst JSON spelling fits.
const MAX_REQUEST_BYTES: usize = 8 * wire::MAX_BYTES;

/// The endpoint. Clones share the queues.
#[derive(Clone)]
pub struct Sqs {
    shared: Arc<Shared>,
    region: Arc<str>,
}

struct Shared {
    /// A statement takes microseconds, so the lock is held on the async thread and never across an `await`.
    store: Mutex<Store>,
    clock: Clock,
    /// What the long polls of a queue sleep on, by the queue's row.
    bells: Mutex<HashMap<i64, Arc<Notify>>>,
    /// See [`QueueStatus::handed_out`], by the queue's row. Changed and read only while the store is locked.
    handed_out: Mutex<HashMap<i64, u64>>,
}

/// What a status page shows of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueStatus {
    /// The queue's name.
    pub name: String,
    /// Messages a receive would get.
    pub visible: i64,
    /// Messages handed out, neither deleted nor visible again.
    pub in_flight: i64,
    /// Messages sent with a delay that has not ended.
    pub delayed: i64,
    /// Since the oldest message was sent, whatever its state; `None` when the queue is empty.
    pub oldest_age_seconds: Option<i64>,
    /// How many messages receives have handed out since the queues were opened, one received twice counting
    /// twice. A consumer that counts what it is done with knows by it whether any message is still being
    /// worked on.
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
    /// Opens the queues in a file, which is created when absent; without a path they live in memory, as long
    /// as this value or a clone.
    pub fn open(path: Option<&Path>, clock: Clock) -> anyhow::Result<Self> {
        let shared = Shared {
            store: Mutex::new(Store::open(path)?),
            clock,
            bells: Mutex::default(),
            handed_out: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), region: "us-east-1".into() })
    }

    /// The same queues with ARNs in another region than `us-east-1`.
    #[must_use]
    pub fn in_region(mut self, region: &str) -> Self {
        self.region = region.into();
        self
    }

    /// Answers one request. `target` is the `X-Amz-Target` header, `host` the `Host` header, from which queue
    /// urls are made.
    pub async fn handle(&self, target: &str, host: &str, body: &[u8]) -> Answer {
        match self.dispatch(target.strip_prefix("AmazonSQS.").unwrap_or_default(), host, body).await {
            Ok(answer) => (200, answer.to_string().into_bytes(), None),
            Err(fault) => fault.answer(),
        }
    }

    /// The endpoint as routes: `/`, and the path of a queue url, to which older clients post.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/", post(serve))
            .route("/{account}/{queue}", post(serve))
            .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
            .with_state(self.clone())
    }

    /// Makes every long poll look again. For whoever moves the clock.
    pub fn wake(&self) {
        self.bells().values().for_each(|bell| bell.notify_waiters());
    }

    /// All queues by name, with what is in them.
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

    async fn dispatch(&self, action: &str, host: &str, body: &[u8]) -> Result<Value, Fault> {
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
            "GetQueueAttributes" => self.get_queue_attributes(&parse(body)?),
            "SetQueueAttributes" => self.set_queue_attributes(parse(body)?),
            "StartMessageMoveTask" => self.start_message_move_task(&parse(body)?),
            "ListMessageMoveTasks" => self.list_message_move_tasks(&parse(body)?),
            "" => Err(Code::UnsupportedOperation
                .because("no action: this endpoint speaks the AWS JSON 1.0 protocol (X-Amz-Target: AmazonSQS.<Action>), not the older query protocol")),
            other => Err(Code::UnsupportedOperation.because(format!("{other} is not part of the local SQS endpoint"))),
        }
    }

    // ------------------------------------------------------------------------------------------------------------------------
    // messages

    fn send_message(&self, message: Outgoing) -> Result<Value, Fault> {
        let mut store = self.store();
        let queue = find(&store, &message.queue_url)?;
        let now_ms = self.now_ms();
        let (new, sent) = accept(message, &queue, now_ms)?;
        store.send(queue.id, &[new], now_ms)?;
        self.ring(queue.id);
        Ok(json!(sent))
    }

    fn send_message_batch(&self, batch: Batch<Outgoing>) -> Result<Value, Fault> {
        let mut store = self.store();
        let queue = find(&store, &batch.queue_url)?;
        wire::check_batch(batch.entries.iter().map(|entry| &entry.id))?;
        let (bytes, most) = (batch.entries.iter().map(Outgoing::bytes).sum::<usize>(), wire::MAX_BYTES);
        if bytes > most {
            let why =
                format!("Batch requests cannot be longer than {most} bytes. You have sent {bytes} bytes.");
            return Err(Code::BatchRequestTooLong.because(why));
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
        self.ring(queue.id);
        Ok(wire::batch_answer(results))
    }

    /// Answers as soon as there is a message: at once, when one is sent or becomes visible, or empty-handed
    /// when the wait is over.
    async fn receive_message(&self, request: Receive) -> Result<Value, Fault> {
        let most = wire::between("MaxNumberOfMessages", request.max_number_of_messages, 1, 1, 10)?;
        let most = usize::try_from(most).unwrap_or(1);
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
        let bell = self.bell(queue.id);
        loop {
            // Listening starts before looking, so that a message sent in between rings.
            let mut rung = pin!(bell.notified());
            rung.as_mut().enable();
            let now_ms = self.now_ms();
            let (deliveries, next_visible_ms) = self.take(&request, now_ms, most)?;
            if !deliveries.is_empty() {
                let messages: Vec<_> = deliveries
                    .into_iter()
                    .map(|delivery| self.hand_out(delivery, &request, &names))
                    .collect();
                return Ok(json!({ "Messages": messages }));
            }
            if now_ms >= deadline_ms {
                return Ok(json!({}));
            }
            let until_ms = next_visible_ms.map_or(deadline_ms, |next_ms| next_ms.min(deadline_ms));
            let pause = Duration::from_millis(u64::try_from(until_ms - now_ms).unwrap_or(0));
            // Both outcomes mean "look again"; which it was does not matter.
            let _ = tokio::time::timeout(pause, rung).await;
        }
    }

    /// One look into the queue: what was taken, or else when there may be something to take.
    fn take(
        &self,
        request: &Receive,
        now_ms: i64,
        most: usize,
    ) -> Result<(Vec<Delivery>, Option<i64>), Fault> {
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
                let (arn, limit) = wire::parse_redrive_policy(policy)?;
                // A dead-letter queue that was deleted since, or the queue itself, is no place to move to:
                // the message stays.
                store
                    .queue(name_in(&arn))?
                    .filter(|target| target.id != queue.id)
                    .map(|target| (target, limit))
            }
            None => None,
        };
        let target = redrive.as_ref().map(|(target, limit)| (target, *limit));
        let (deliveries, moved) = store.receive(&queue, target, now_ms, now_ms + hidden * 1_000, most)?;
        if let Some((target, _)) = target.filter(|_| moved > 0) {
            self.ring(target.id);
        }
        if let Ok(taken @ 1..) = u64::try_from(deliveries.len()) {
            *self.handed_out().entry(queue.id).or_default() += taken;
        }
        let next_visible_ms =
            if deliveries.is_empty() { store.next_visible(queue.id, now_ms)? } else { None };
        Ok((deliveries, next_visible_ms))
    }

    /// A delivery as the receiver asked to see it.
    fn hand_out(&self, delivery: Delivery, request: &Receive, names: &BTreeSet<&str>) -> Received {
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
        Received {
            receipt_handle: to_text(&delivery.handle),
            message_id: delivery.handle.message_id,
            md5_of_body: md5::of_body(&delivery.body),
            body: delivery.body,
            attributes: system,
            md5_of_attributes: md5::of_attributes(&attributes),
            message_attributes: attributes,
        }
    }

    /// Applies `act` to one message, by its receipt.
    fn on_receipt(
        &self,
        receipt: &Receipt,
        act: fn(&Self, &Store, &Queue, &Receipt) -> Result<(), Fault>,
    ) -> Result<Value, Fault> {
        let store = self.store();
        act(self, &store, &find(&store, &receipt.queue_url)?, receipt)?;
        Ok(json!({}))
    }

    /// Applies `act` to each message of a batch; one that fails does not stop the others.
    fn on_receipts(
        &self,
        batch: Batch<Receipt>,
        act: fn(&Self, &Store, &Queue, &Receipt) -> Result<(), Fault>,
    ) -> Result<Value, Fault> {
        let store = self.store();
        let queue = find(&store, &batch.queue_url)?;
        wire::check_batch(batch.entries.iter().map(|entry| &entry.id))?;
        let results = batch.entries.into_iter().map(|entry| {
            let done = act(self, &store, &queue, &entry).map(|()| json!({ "Id": entry.id }));
            (entry.id, done)
        });
        Ok(wire::batch_answer(results.collect()))
    }

    fn delete(&self, store: &Store, queue: &Queue, receipt: &Receipt) -> Result<(), Fault> {
        Ok(store.delete(&from_text(&receipt.receipt_handle, queue)?)?)
    }

    fn hide(&self, store: &Store, queue: &Queue, receipt: &Receipt) -> Result<(), Fault> {
        let handle = from_text(&receipt.receipt_handle, queue)?;
        if receipt.visibility_timeout.is_none() {
            wire::required("VisibilityTimeout", "")?;
        }
        let seconds = wire::between("VisibilityTimeout", receipt.visibility_timeout, 0, 0, 43_200)?;
        if !store.hide(&handle, self.now_ms() + seconds * 1_000)? {
            let why = format!(
                "Value {} for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.",
                receipt.receipt_handle
            );
            return Err(Code::InvalidParameterValue.because(why));
        }
        self.ring(queue.id);
        Ok(())
    }

    // --------------------------------------------------------------------------------------------------------------------------
    // queues

    /// Answers the url of an existing queue too, if no attribute asked for differs from what it has.
    fn create_queue(&self, request: NamedQueue, host: &str) -> Result<Value, Fault> {
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
                    return Err(Code::QueueNameExists.because(why));
                }
            }
        }
        Ok(json!({ "QueueUrl": url(host, &request.queue_name) }))
    }

    fn get_queue_url(&self, request: &NamedQueue, host: &str) -> Result<Value, Fault> {
        let name = wire::required("QueueName", &request.queue_name)?;
        Ok(json!({ "QueueUrl": url(host, &find(&self.store(), name)?.name) }))
    }

    fn list_queues(&self, request: &ListQueues, host: &str) -> Result<Value, Fault> {
        let most = wire::between("MaxResults", request.max_results, 1_000, 1, 1_000)?;
        let most = usize::try_from(most).unwrap_or(1_000);
        let mut names: Vec<String> = self.store().queues()?.into_iter().map(|queue| queue.name).collect();
        names.retain(|name| {
            name.starts_with(&request.queue_name_prefix)
                && request.next_token.as_ref().is_none_or(|last| name > last)
        });
        let more = names.len() > most;
        names.truncate(most);
        let mut answer = json!({ "QueueUrls": names.iter().map(|name| url(host, name)).collect::<Vec<_>>() });
        if let Some(last) = names.last().filter(|_| more) {
            answer["NextToken"] = json!(last);
        }
        Ok(answer)
    }

    fn delete_queue(&self, request: &OnQueue) -> Result<Value, Fault> {
        let mut store = self.store();
        let queue = find(&store, &request.queue_url)?;
        store.delete_queue(queue.id)?;
        self.ring(queue.id);
        self.bells().remove(&queue.id);
        Ok(json!({}))
    }

    fn purge_queue(&self, request: &OnQueue) -> Result<Value, Fault> {
        let store = self.store();
        store.purge(find(&store, &request.queue_url)?.id)?;
        Ok(json!({}))
    }

    fn get_queue_attributes(&self, request: &OnQueue) -> Result<Value, Fault> {
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
            return Err(Code::InvalidAttributeName.because(format!("Unknown Attribute {name}.")));
        }
        if !request.attribute_names.iter().any(|name| name == "All") {
            attributes.retain(|name, _| request.attribute_names.contains(name));
        }
        Ok(if attributes.is_empty() { json!({}) } else { json!({ "Attributes": attributes }) })
    }

    fn set_queue_attributes(&self, request: OnQueue) -> Result<Value, Fault> {
        let changes = wire::check_queue_attributes(request.attributes)?;
        let store = self.store();
        let mut queue = find(&store, &request.queue_url)?;
        check_dead_letter_target(&store, &changes)?;
        queue.attributes.extend(changes);
        queue.attributes.retain(|_, value| !value.is_empty());
        store.set_attributes(queue.id, &queue.attributes, self.now_ms())?;
        self.ring(queue.id);
        Ok(json!({}))
    }

    fn start_message_move_task(&self, request: &MoveTask) -> Result<Value, Fault> {
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
            return Err(Code::InvalidParameterValue
                .because("Source queue must be configured as a Dead Letter Queue."));
        }
        let task = store.redrive(&source, destination.as_ref(), self.now_ms())?;
        self.wake();
        Ok(json!({ "TaskHandle": URL_SAFE_NO_PAD.encode(format!("{task}:{}", request.source_arn)) }))
    }

    fn list_message_move_tasks(&self, request: &MoveTask) -> Result<Value, Fault> {
        let most = wire::between("MaxResults", request.max_results, 1, 1, 10)?;
        let store = self.store();
        let source = find_by_arn(&store, "SourceArn", wire::required("SourceArn", &request.source_arn)?)?;
        let tasks = store.move_tasks(&source.name, most)?.into_iter().map(|task| {
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

    /// A queue's attributes but for the counts.
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

    // -------------------------------------------------------------------------------------------------------------------------
    // helpers

    fn arn(&self, name: &str) -> String {
        format!("arn:aws:sqs:{}:{ACCOUNT}:{name}", self.region)
    }

    fn now_ms(&self) -> i64 {
        (self.shared.clock)()
    }

    /// A panic while the lock was held leaves no half change: its transaction rolled back.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bells(&self) -> MutexGuard<'_, HashMap<i64, Arc<Notify>>> {
        self.shared.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handed_out(&self) -> MutexGuard<'_, HashMap<i64, u64>> {
        self.shared.handed_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bell(&self, queue: i64) -> Arc<Notify> {
        Arc::clone(self.bells().entry(queue).or_default())
    }

    fn ring(&self, queue: i64) {
        if let Some(bell) = self.bells().get(&queue) {
            bell.notify_waiters();
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

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body)
        .map_err(|error| Code::Serialization.because(format!("request body: {error}")))
}

/// Checks a message and makes what the store keeps of it and what the sender hears.
fn accept(message: Outgoing, queue: &Queue, now_ms: i64) -> Result<(NewMessage, Sent), Fault> {
    message.check(queue.number("MaximumMessageSize"))?;
    let delay = wire::between("DelaySeconds", message.delay_seconds, queue.number("DelaySeconds"), 0, 900)?;
    let message_id = Uuid::new_v4().to_string();
    let sent = Sent {
        id: message.id,
        message_id: message_id.clone(),
        md5_of_body: md5::of_body(&message.message_body),
        md5_of_attributes: md5::of_attributes(&message.message_attributes),
        md5_of_system_attributes: md5::of_attributes(&message.message_system_attributes),
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

/// The queue a url, or a bare name, ends in.
fn find(store: &Store, queue_url: &str) -> Result<Queue, Fault> {
    let name =
        wire::required("QueueUrl", queue_url)?.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    store.queue(name)?.ok_or_else(|| Code::QueueDoesNotExist.because("The specified queue does not exist."))
}

fn find_by_arn(store: &Store, parameter: &str, arn: &str) -> Result<Queue, Fault> {
    let missing = || {
        Code::ResourceNotFound
            .because(format!("The resource that you specified for the {parameter} parameter doesn't exist."))
    };
    store.queue(name_in(arn))?.ok_or_else(missing)
}

fn check_dead_letter_target(store: &Store, attributes: &BTreeMap<String, String>) -> Result<(), Fault> {
    let Some(policy) = attributes.get("RedrivePolicy").filter(|policy| !policy.is_empty()) else {
        return Ok(());
    };
    if store.queue(name_in(&wire::parse_redrive_policy(policy)?.0))?.is_none() {
        let why = format!(
            "Value {policy} for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist."
        );
        return Err(Code::InvalidParameterValue.because(why));
    }
    Ok(())
}

fn name_in(arn: &str) -> &str {
    arn.rsplit(':').next().unwrap_or_default()
}

fn url(host: &str, name: &str) -> String {
    format!("http://{host}/{ACCOUNT}/{name}")
}

/// A receipt handle: opaque to clients, as they should take it.
fn to_text(handle: &Handle) -> String {
    URL_SAFE_NO_PAD
        .encode(format!("{}:{}:{}:{}", handle.queue, handle.row, handle.generation, handle.message_id))
}

fn from_text(text: &str, queue: &Queue) -> Result<Handle, Fault> {
    let wrong = || {
        Code::ReceiptHandleIsInvalid
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
    Ok(Handle { queue: of_queue, row, generation, message_id })
}
