//! Tests of the endpoint with the AWS SDK over HTTP. The test moves the clock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Region};
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::operation::get_queue_url::GetQueueUrlError;
use aws_sdk_sqs::operation::send_message::SendMessageError;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message, MessageAttributeValue,
    MessageSystemAttributeName as System, QueueAttributeName as Attribute, SendMessageBatchRequestEntry,
};
use serde_json::json;

use super::{QueueStatus, Sqs};

const START_MS: i64 = 1_763_700_000_000;

/// An endpoint on a port of its own, a client for it, and its clock.
struct Stack {
    sqs: Sqs,
    client: Client,
    clock: Arc<AtomicI64>,
}

impl Stack {
    async fn start(path: Option<&Path>) -> Self {
        let clock = Arc::new(AtomicI64::new(START_MS));
        let hand = Arc::clone(&clock);
        let sqs = Sqs::open(path, Arc::new(move || hand.load(Ordering::SeqCst))).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, sqs.router()).into_future());
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("local", "local", None, None, "local"))
            .endpoint_url(endpoint)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        Self { sqs, client: Client::from_conf(config), clock }
    }

    async fn queue(&self, name: &str, attributes: &[(Attribute, &str)]) -> String {
        let mut create = self.client.create_queue().queue_name(name);
        for (name, value) in attributes {
            create = create.attributes(name.clone(), *value);
        }
        create.send().await.unwrap().queue_url.unwrap()
    }

    async fn send(&self, queue: &str, body: &str) -> String {
        self.client
            .send_message()
            .queue_url(queue)
            .message_body(body)
            .send()
            .await
            .unwrap()
            .message_id
            .unwrap()
    }

    /// Receives up to ten messages with all their attributes.
    async fn receive(&self, queue: &str) -> Vec<Message> {
        let receive = self.client.receive_message().queue_url(queue).max_number_of_messages(10);
        let receive = receive.message_system_attribute_names(System::All).message_attribute_names("All");
        receive.send().await.unwrap().messages.unwrap_or_default()
    }

    async fn receive_one(&self, queue: &str) -> Message {
        let mut messages = self.receive(queue).await;
        assert_eq!(messages.len(), 1);
        messages.remove(0)
    }

    async fn delete(&self, queue: &str, message: &Message) {
        self.client.delete_message().queue_url(queue).receipt_handle(handle(message)).send().await.unwrap();
    }

    fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1_000, Ordering::SeqCst);
        self.sqs.wake();
    }

    fn status(&self, queue: &str) -> QueueStatus {
        self.sqs.queues().unwrap().into_iter().find(|status| status.name == queue).unwrap()
    }
}

fn handle(message: &Message) -> &str {
    message.receipt_handle().unwrap()
}

fn attribute(message: &Message, name: System) -> Option<&str> {
    message.attributes().unwrap().get(&name).map(String::as_str)
}

fn bodies(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.body().unwrap()).collect()
}

fn text(data_type: &str, value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type(data_type).string_value(value).build().unwrap()
}

fn entry(id: &str, body: &str) -> SendMessageBatchRequestEntry {
    SendMessageBatchRequestEntry::builder().id(id).message_body(body).build().unwrap()
}

/// A temporary directory. It is removed when the value is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("sqs-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The error code of a failed call.
macro_rules! refused {
    ($call:expr) => {
        $call.await.unwrap_err().code().unwrap().to_string()
    };
}

#[tokio::test]
async fn a_received_message_is_hidden_until_its_visibility_timeout_ends() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[(Attribute::VisibilityTimeout, "60")]).await;
    let id = stack.send(&queue, "hello").await;

    stack.pass(5);
    let first = stack.receive_one(&queue).await;
    assert_eq!((first.message_id(), first.body()), (Some(id.as_str()), Some("hello")));
    assert_eq!(attribute(&first, System::ApproximateReceiveCount), Some("1"));
    assert_eq!(attribute(&first, System::SentTimestamp), Some(START_MS.to_string().as_str()));
    assert_eq!(attribute(&first, System::SenderId), Some("000000000000"));

    stack.pass(59);
    assert!(stack.receive(&queue).await.is_empty());
    stack.pass(1);
    let second = stack.receive_one(&queue).await;
    assert_eq!(second.message_id(), Some(id.as_str()));
    assert_eq!(attribute(&second, System::ApproximateReceiveCount), Some("2"));
    assert_eq!(
        attribute(&second, System::ApproximateFirstReceiveTimestamp),
        Some((START_MS + 5_000).to_string().as_str())
    );

    stack.delete(&queue, &second).await;
    stack.pass(3_600);
    assert!(stack.receive(&queue).await.is_empty());
}

#[tokio::test]
async fn a_receive_sets_the_visibility_and_a_later_call_changes_it() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[]).await;
    stack.send(&queue, "hello").await;
    let receive = || stack.client.receive_message().queue_url(&queue);
    let change = |message: &Message, seconds| {
        stack
            .client
            .change_message_visibility()
            .queue_url(&queue)
            .receipt_handle(handle(message))
            .visibility_timeout(seconds)
    };

    let message = receive().visibility_timeout(5).send().await.unwrap().messages.unwrap().remove(0);
    change(&message, 300).send().await.unwrap();
    stack.pass(299);
    assert!(stack.receive(&queue).await.is_empty());
    change(&message, 0).send().await.unwrap();
    let again = stack.receive_one(&queue).await;

    assert_eq!(refused!(change(&message, 10).send()), "InvalidParameterValue");
    assert_eq!(refused!(change(&again, 43_201).send()), "InvalidParameterValue");
    assert_eq!(refused!(receive().visibility_timeout(-1).send()), "InvalidParameterValue");
    assert_eq!(refused!(receive().max_number_of_messages(11).send()), "InvalidParameterValue");
    assert_eq!(refused!(receive().max_number_of_messages(0).send()), "InvalidParameterValue");
    assert_eq!(refused!(receive().wait_time_seconds(21).send()), "InvalidParameterValue");
}

#[tokio::test]
async fn a_receive_returns_a_message_once_with_a_visibility_of_zero() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[(Attribute::VisibilityTimeout, "0")]).await;
    stack.send(&queue, "hello").await;
    assert_eq!(attribute(&stack.receive_one(&queue).await, System::ApproximateReceiveCount), Some("1"));
    assert_eq!(attribute(&stack.receive_one(&queue).await, System::ApproximateReceiveCount), Some("2"));
}

#[tokio::test]
async fn an_old_receipt_handle_deletes_nothing_and_a_foreign_one_is_refused() {
    let stack = Stack::start(None).await;
    let (queue, other) = (stack.queue("work", &[]).await, stack.queue("other", &[]).await);
    stack.send(&queue, "hello").await;
    let stale = stack.receive_one(&queue).await;
    stack.pass(30);
    let current = stack.receive_one(&queue).await;
    stack.delete(&queue, &stale).await;
    assert_eq!(stack.status("work").in_flight, 1);

    let delete =
        |queue: &str, receipt: &str| stack.client.delete_message().queue_url(queue).receipt_handle(receipt);
    let error = delete(&queue, "garbage").send().await.unwrap_err().into_service_error();
    assert!(error.is_receipt_handle_is_invalid(), "{error:?}");
    assert_eq!(refused!(delete(&other, handle(&current)).send()), "ReceiptHandleIsInvalid");

    // A handle stays valid until the message is received again, even after the visibility timeout.
    stack.pass(30);
    stack.delete(&queue, &current).await;
    stack.delete(&queue, &current).await;
    let empty = stack.status("work");
    assert_eq!((empty.visible, empty.in_flight, empty.delayed, empty.oldest_age_seconds), (0, 0, 0, None));
}

#[tokio::test]
async fn a_delayed_message_appears_when_its_delay_ends() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[(Attribute::DelaySeconds, "10")]).await;
    stack.send(&queue, "queue's delay").await;
    let send = |seconds| {
        stack.client.send_message().queue_url(&queue).message_body("own delay").delay_seconds(seconds).send()
    };
    send(900).await.unwrap();
    assert_eq!(refused!(send(901)), "InvalidParameterValue");
    assert_eq!(stack.status("work").delayed, 2);

    stack.pass(9);
    assert!(stack.receive(&queue).await.is_empty());
    stack.pass(1);
    assert_eq!(bodies(&stack.receive(&queue).await), ["queue's delay"]);
    stack.pass(890);
    assert_eq!(bodies(&stack.receive(&queue).await), ["queue's delay", "own delay"]);
}

#[tokio::test]
async fn a_message_is_deleted_after_its_retention_period() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[(Attribute::MessageRetentionPeriod, "60")]).await;
    stack.send(&queue, "hello").await;
    stack.pass(59);
    assert_eq!(stack.status("work").oldest_age_seconds, Some(59));
    stack.pass(1);
    assert!(stack.receive(&queue).await.is_empty());
    assert_eq!(stack.status("work").visible, 0);
}

#[tokio::test]
async fn a_send_a_moved_clock_and_a_shorter_visibility_wake_a_long_poll() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[]).await;
    let poll = || {
        let poll = stack.client.receive_message().queue_url(&queue).wait_time_seconds(20).send();
        tokio::spawn(async move { poll.await.unwrap().messages.unwrap_or_default() })
    };
    // A poll can only be woken after it has started to wait.
    let waiting = |count: usize| {
        let sqs = stack.sqs.clone();
        async move {
            while sqs.shared.wakers.lock().unwrap().values().map(Arc::strong_count).max().unwrap_or(0)
                <= count
            {
                tokio::task::yield_now().await;
            }
        }
    };
    let start = Instant::now();

    let polling = poll();
    waiting(1).await;
    stack.send(&queue, "sent").await;
    let message = polling.await.unwrap().remove(0);
    assert_eq!(message.body(), Some("sent"));

    let polling = poll();
    waiting(1).await;
    stack.pass(15);
    tokio::task::yield_now().await;
    stack
        .client
        .change_message_visibility()
        .queue_url(&queue)
        .receipt_handle(handle(&message))
        .visibility_timeout(0)
        .send()
        .await
        .unwrap();
    assert_eq!(polling.await.unwrap()[0].body(), Some("sent"));

    let polling = poll();
    waiting(1).await;
    stack.pass(19);
    stack.pass(1);
    assert!(polling.await.unwrap().is_empty(), "the wait is over before the message is visible again");

    let polling = poll();
    waiting(1).await;
    stack.pass(10);
    assert_eq!(bodies(&polling.await.unwrap()), ["sent"]);
    assert!(start.elapsed() < Duration::from_secs(10), "no poll slept: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_message_received_too_often_moves_to_the_dead_letter_queue() {
    let stack = Stack::start(None).await;
    let dead = stack.queue("dead", &[]).await;
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":"2"}"#;
    let queue = stack.queue("work", &[(Attribute::RedrivePolicy, policy)]).await;
    let send = stack
        .client
        .send_message()
        .queue_url(&queue)
        .message_body("poison")
        .message_attributes("kind", text("String", "bad"));
    let id = send.send().await.unwrap().message_id.unwrap();
    for _ in 0..2 {
        assert_eq!(stack.receive_one(&queue).await.message_id(), Some(id.as_str()));
        stack.pass(30);
    }
    assert_eq!((stack.status("work").visible, stack.status("dead").visible), (1, 0));
    let polling = stack.client.receive_message().queue_url(&dead).wait_time_seconds(20);
    let polling = polling.message_system_attribute_names(System::All).message_attribute_names("All").send();
    let polling = tokio::spawn(polling);
    stack.send(&queue, "healthy").await;
    assert_eq!(bodies(&stack.receive(&queue).await), ["healthy"], "the move makes room in the same receive");

    let moved = polling.await.unwrap().unwrap().messages.unwrap().remove(0);
    assert_eq!((moved.message_id(), moved.body()), (Some(id.as_str()), Some("poison")));
    assert_eq!(attribute(&moved, System::ApproximateReceiveCount), Some("3"));
    assert_eq!(
        attribute(&moved, System::DeadLetterQueueSourceArn),
        Some("arn:aws:sqs:us-east-1:000000000000:work")
    );
    assert_eq!(attribute(&moved, System::SentTimestamp), Some(START_MS.to_string().as_str()));
    assert_eq!(moved.message_attributes().unwrap()["kind"].string_value(), Some("bad"));
}

#[tokio::test]
async fn a_redrive_returns_messages_to_their_origin_as_new_ones() {
    let stack = Stack::start(None).await;
    let dead = stack.queue("dead", &[]).await;
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":1}"#;
    let queue = stack.queue("work", &[(Attribute::RedrivePolicy, policy)]).await;
    let id = stack.send(&queue, "poison").await;
    let received = stack.receive_one(&queue).await;
    stack.pass(30);
    assert!(stack.receive(&queue).await.is_empty());
    stack.send(&dead, "from nowhere").await;

    let (dead_arn, queue_arn) =
        ("arn:aws:sqs:us-east-1:000000000000:dead", "arn:aws:sqs:us-east-1:000000000000:work");
    let start = |source: &str| stack.client.start_message_move_task().source_arn(source);
    assert!(start(dead_arn).send().await.unwrap().task_handle.is_some());
    let again = stack.receive_one(&queue).await;
    assert_eq!(
        (again.body(), attribute(&again, System::ApproximateReceiveCount)),
        (Some("poison"), Some("1"))
    );
    assert_eq!(attribute(&again, System::DeadLetterQueueSourceArn), None);
    assert_ne!(again.message_id(), Some(id.as_str()));
    stack.delete(&queue, &received).await;
    assert_eq!(stack.status("work").in_flight, 1, "a handle from before the move names nothing");

    let tasks = stack.client.list_message_move_tasks().source_arn(dead_arn).send().await.unwrap();
    let task = &tasks.results()[0];
    assert_eq!((task.status(), task.approximate_number_of_messages_moved()), (Some("FAILED"), 1));
    assert_eq!(task.failure_reason(), Some("CouldNotDetermineMessageSource"));

    start(dead_arn).destination_arn(queue_arn).send().await.unwrap();
    assert_eq!(bodies(&stack.receive(&queue).await), ["from nowhere"]);
    let tasks =
        stack.client.list_message_move_tasks().source_arn(dead_arn).max_results(10).send().await.unwrap();
    assert_eq!(
        tasks.results().iter().map(|task| task.status().unwrap()).collect::<Vec<_>>(),
        ["COMPLETED", "FAILED"]
    );
    assert_eq!(refused!(start(queue_arn).send()), "InvalidParameterValue");
    assert_eq!(
        refused!(start("arn:aws:sqs:us-east-1:000000000000:none").send()),
        "ResourceNotFoundException"
    );
}

#[tokio::test]
async fn a_batch_has_one_to_ten_entries_with_distinct_ids_and_a_total_size() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[]).await;
    let send =
        |entries| stack.client.send_message_batch().queue_url(&queue).set_entries(Some(entries)).send();
    let error = send(vec![]).await.unwrap_err().into_service_error();
    assert!(error.is_empty_batch_request(), "{error:?}");
    let error =
        send((0..11).map(|n| entry(&n.to_string(), "x")).collect()).await.unwrap_err().into_service_error();
    assert!(error.is_too_many_entries_in_batch_request(), "{error:?}");
    let error = send(vec![entry("a", "x"), entry("a", "y")]).await.unwrap_err().into_service_error();
    assert!(error.is_batch_entry_ids_not_distinct(), "{error:?}");
    let error = send(vec![entry("a:b", "x")]).await.unwrap_err().into_service_error();
    assert!(error.is_invalid_batch_entry_id(), "{error:?}");
    let half = "x".repeat(524_288);
    let error = send(vec![entry("a", &half), entry("b", &half), entry("c", "x")])
        .await
        .unwrap_err()
        .into_service_error();
    assert!(error.is_batch_request_too_long(), "{error:?}");
    assert_eq!(stack.status("work").visible, 0, "a refused batch sends nothing");
    send(vec![entry("a", &half), entry("b", &half)]).await.unwrap();
    assert_eq!(stack.status("work").visible, 2);
}

#[tokio::test]
async fn the_valid_entries_of_a_batch_succeed_and_the_others_are_named() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[]).await;
    let send = stack
        .client
        .send_message_batch()
        .queue_url(&queue)
        .entries(entry("good", "one"))
        .entries(entry("bad", "\u{1}"));
    let answer = send.entries(entry("also-good", "two")).send().await.unwrap();
    assert_eq!(answer.successful().iter().map(|sent| sent.id()).collect::<Vec<_>>(), ["good", "also-good"]);
    assert_eq!(answer.successful()[0].md5_of_message_body(), "f97c5d29941bfb1b2fdab0874906ab82");
    let failed = &answer.failed()[0];
    assert_eq!((failed.id(), failed.code(), failed.sender_fault()), ("bad", "InvalidMessageContents", true));

    let messages = stack.receive(&queue).await;
    assert_eq!(bodies(&messages), ["one", "two"]);
    let change = |id: &str, receipt: &str, seconds| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id).receipt_handle(receipt);
        entry.visibility_timeout(seconds).build().unwrap()
    };
    let changes = vec![
        change("a", handle(&messages[0]), 600),
        change("b", handle(&messages[1]), 99_999),
        change("c", "garbage", 0),
    ];
    let answer = stack
        .client
        .change_message_visibility_batch()
        .queue_url(&queue)
        .set_entries(Some(changes))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.successful().iter().map(|done| done.id()).collect::<Vec<_>>(), ["a"]);
    let codes: Vec<_> = answer.failed().iter().map(|failed| (failed.id(), failed.code())).collect();
    assert_eq!(codes, [("b", "InvalidParameterValue"), ("c", "ReceiptHandleIsInvalid")]);

    let delete = |id: &str, receipt: &str| {
        DeleteMessageBatchRequestEntry::builder().id(id).receipt_handle(receipt).build().unwrap()
    };
    let deletes =
        vec![delete("a", handle(&messages[0])), delete("b", handle(&messages[1])), delete("c", "garbage")];
    let answer = stack
        .client
        .delete_message_batch()
        .queue_url(&queue)
        .set_entries(Some(deletes))
        .send()
        .await
        .unwrap();
    assert_eq!((answer.successful().len(), answer.failed().len()), (2, 1));
    assert_eq!(stack.status("work").in_flight, 0);
}

#[tokio::test]
async fn a_message_with_its_attributes_has_at_most_one_mebibyte() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[]).await;
    let send =
        |bytes: usize| stack.client.send_message().queue_url(&queue).message_body("é".repeat(bytes / 2));
    send(1_048_576).send().await.unwrap();
    assert_eq!(stack.receive_one(&queue).await.body().unwrap().len(), 1_048_576);
    assert_eq!(refused!(send(1_048_578).send()), "InvalidParameterValue");
    // Name 1 + type 6 + value 1: eight bytes.
    send(1_048_568).message_attributes("k", text("String", "v")).send().await.unwrap();
    assert_eq!(
        refused!(send(1_048_570).message_attributes("k", text("String", "v")).send()),
        "InvalidParameterValue"
    );

    let set = stack
        .client
        .set_queue_attributes()
        .queue_url(&queue)
        .attributes(Attribute::MaximumMessageSize, "1024");
    set.send().await.unwrap();
    send(1_024).send().await.unwrap();
    assert_eq!(refused!(send(1_026).send()), "InvalidParameterValue");
}

#[tokio::test]
async fn attributes_are_stored_and_returned_as_requested() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[(Attribute::VisibilityTimeout, "0")]).await;
    let send = || stack.client.send_message().queue_url(&queue).message_body("msg");
    let kenobi = send()
        .message_attributes("Hello", text("String", "There"))
        .message_attributes("General", text("String", "Kenobi"));
    let sent = kenobi.message_attributes("Help.Me", text("String", "Me")).send().await.unwrap();
    assert_eq!(sent.md5_of_message_body(), Some("6e2baaf3b97dbeef01c0043275f9a0e7"));
    assert_eq!(sent.md5_of_message_attributes(), Some("4c360f3fdafd970e05fae2f149d997f5"));

    let digest = async |names: &[&str]| {
        let receive = stack.client.receive_message().queue_url(&queue);
        let receive =
            receive.set_message_attribute_names(Some(names.iter().map(ToString::to_string).collect()));
        let message = receive.send().await.unwrap().messages.unwrap().remove(0);
        assert!(message.attributes().is_none(), "no system attribute was asked for");
        message.md5_of_message_attributes
    };
    assert_eq!(digest(&["All"]).await.as_deref(), Some("4c360f3fdafd970e05fae2f149d997f5"));
    assert_eq!(digest(&["Hello", "General"]).await.as_deref(), Some("fca026605781cb4126a1e9044df24232"));
    assert_eq!(digest(&["Hello", "Foo"]).await.as_deref(), Some("a311262e065454b75da111d535b8dacd"));
    assert_eq!(digest(&["Hel.*"]).await.as_deref(), Some("83fee93c1bcd8b9a5a923ffacdc636c7"));
    assert_eq!(digest(&[]).await, None);

    let other = stack.queue("other", &[]).await;
    let bytes = MessageAttributeValue::builder()
        .data_type("Binary.png")
        .binary_value(Blob::new([0, 159, 146, 150]))
        .build()
        .unwrap();
    let send = stack
        .client
        .send_message()
        .queue_url(&other)
        .message_body("msg")
        .message_attributes("image", bytes.clone());
    send.message_attributes("size", text("Number", "-1.5e3")).send().await.unwrap();
    let message = stack.receive_one(&other).await;
    let attributes = message.message_attributes().unwrap();
    assert_eq!((&attributes["image"], attributes["size"].string_value()), (&bytes, Some("-1.5e3")));
}

#[tokio::test]
async fn characters_and_attributes_that_sqs_refuses_are_refused() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[]).await;
    let send = |body: &str| stack.client.send_message().queue_url(&queue).message_body(body);
    for body in ["\u{0}", "a\u{b}b", "\u{1f}", "\u{fffe}", "\u{ffff}"] {
        let error = send(body).send().await.unwrap_err().into_service_error();
        assert!(matches!(error, SendMessageError::InvalidMessageContents(_)), "{body:?}: {error:?}");
    }
    send("tab\t line\n return\r \u{7f} \u{d7ff} \u{e000} \u{fffd} 🦀").send().await.unwrap();
    assert_eq!(refused!(send("").send()), "MissingParameter");
    assert_eq!(refused!(send("x").message_deduplication_id("1").send()), "InvalidParameterValue");
    let bad = [
        ("", "String", "v"),
        ("AWS.k", "String", "v"),
        ("k..k", "String", "v"),
        ("k", "Text", "v"),
        ("k", "String", ""),
        ("k", "Number", "1x"),
    ];
    for (name, data_type, value) in bad {
        assert_eq!(
            refused!(send("x").message_attributes(name, text(data_type, value)).send()),
            "InvalidParameterValue",
            "{name} {value}"
        );
    }
    assert_eq!(
        refused!(send("x").message_attributes("k", text("String", "\u{1}")).send()),
        "InvalidMessageContents"
    );
    let eleven =
        (0..11).fold(send("x"), |send, n| send.message_attributes(n.to_string(), text("String", "v")));
    assert_eq!(refused!(eleven.send()), "InvalidParameterValue");
}

#[tokio::test]
async fn an_unknown_queue_is_a_typed_error_of_the_sdk() {
    let stack = Stack::start(None).await;
    let error =
        stack.client.get_queue_url().queue_name("none").send().await.unwrap_err().into_service_error();
    assert!(matches!(error, GetQueueUrlError::QueueDoesNotExist(_)), "{error:?}");
    assert_eq!(error.message(), Some("The specified queue does not exist."));
    let send =
        stack.client.send_message().queue_url("https://sqs.eu-west-1.amazonaws.com/1/none").message_body("x");
    let error = send.send().await.unwrap_err().into_service_error();
    assert!(matches!(error, SendMessageError::QueueDoesNotExist(_)), "{error:?}");
}

#[tokio::test]
async fn queues_are_created_found_listed_changed_purged_and_deleted() {
    let stack = Stack::start(None).await;
    let queue = stack.queue("work", &[(Attribute::VisibilityTimeout, "90")]).await;
    assert!(queue.starts_with("http://127.0.0.1:") && queue.ends_with("/000000000000/work"), "{queue}");
    assert_eq!(stack.queue("work", &[(Attribute::VisibilityTimeout, "90")]).await, queue);
    let create = |name: &str| stack.client.create_queue().queue_name(name);
    let error = create("work")
        .attributes(Attribute::VisibilityTimeout, "91")
        .send()
        .await
        .unwrap_err()
        .into_service_error();
    assert!(error.is_queue_name_exists(), "{error:?}");
    let error = create("work.fifo")
        .attributes(Attribute::FifoQueue, "true")
        .send()
        .await
        .unwrap_err()
        .into_service_error();
    assert!(error.is_unsupported_operation(), "{error:?}");
    assert_eq!(refused!(create("a queue").send()), "InvalidParameterValue");
    assert_eq!(
        refused!(create("q").attributes(Attribute::VisibilityTimeout, "43201").send()),
        "InvalidAttributeValue"
    );
    assert_eq!(
        refused!(create("q").attributes(Attribute::from("Nonsense"), "1").send()),
        "InvalidAttributeName"
    );
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:none","maxReceiveCount":4}"#;
    assert_eq!(
        refused!(create("q").attributes(Attribute::RedrivePolicy, policy).send()),
        "InvalidParameterValue"
    );

    for name in ["worker", "other"] {
        stack.queue(name, &[]).await;
    }
    assert_eq!(
        stack.client.get_queue_url().queue_name("work").send().await.unwrap().queue_url(),
        Some(queue.as_str())
    );
    let page = stack.client.list_queues().queue_name_prefix("work").max_results(1).send().await.unwrap();
    assert_eq!(page.queue_urls(), std::slice::from_ref(&queue));
    let page = stack
        .client
        .list_queues()
        .queue_name_prefix("work")
        .set_next_token(page.next_token)
        .send()
        .await
        .unwrap();
    assert!(
        page.queue_urls().len() == 1
            && page.queue_urls()[0].ends_with("/worker")
            && page.next_token.is_none()
    );

    stack.send(&queue, "one").await;
    stack.send(&queue, "two").await;
    let received = stack.client.receive_message().queue_url(&queue).send().await.unwrap();
    assert_eq!(bodies(received.messages()), ["one"]);
    let set = stack.client.set_queue_attributes().queue_url(&queue).attributes(Attribute::DelaySeconds, "7");
    set.send().await.unwrap();
    let get = stack
        .client
        .get_queue_attributes()
        .queue_url(&queue)
        .attribute_names(Attribute::All)
        .send()
        .await
        .unwrap();
    let has = |name: Attribute| get.attributes().unwrap()[&name].clone();
    assert_eq!((has(Attribute::VisibilityTimeout), has(Attribute::DelaySeconds)), ("90".into(), "7".into()));
    assert_eq!(has(Attribute::QueueArn), "arn:aws:sqs:us-east-1:000000000000:work");
    assert_eq!(has(Attribute::ApproximateNumberOfMessages), "1");
    assert_eq!(has(Attribute::ApproximateNumberOfMessagesNotVisible), "1");
    assert_eq!(has(Attribute::MaximumMessageSize), "1048576");

    stack.client.purge_queue().queue_url(&queue).send().await.unwrap();
    assert_eq!(stack.status("work").visible + stack.status("work").in_flight, 0);
    stack.client.delete_queue().queue_url(&queue).send().await.unwrap();
    assert_eq!(
        refused!(stack.client.receive_message().queue_url(&queue).send()),
        "AWS.SimpleQueueService.NonExistentQueue"
    );
}

#[tokio::test]
async fn a_killed_process_loses_no_message_and_no_receive_count() {
    let (live, after) = (Scratch::new(), Scratch::new());
    let stack = Stack::start(Some(&live.0.join("queues.db"))).await;
    let queue = stack.queue("work", &[(Attribute::VisibilityTimeout, "60")]).await;
    stack.send(&queue, "in flight").await;
    let received = stack.receive_one(&queue).await;
    stack.send(&queue, "waiting").await;

    // A copy of the files of a running process equals the files after `kill -9`: nothing was closed or
    // checkpointed.
    for file in std::fs::read_dir(&live.0).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), after.0.join(file.file_name())).unwrap();
    }
    let stack = Stack::start(Some(&after.0.join("queues.db"))).await;
    assert_eq!((stack.status("work").visible, stack.status("work").in_flight), (1, 1));
    assert_eq!(bodies(&stack.receive(&queue).await), ["waiting"]);
    stack.pass(60);
    let again = stack.receive(&queue).await;
    assert_eq!(bodies(&again), ["in flight", "waiting"]);
    assert_eq!(again[0].message_id(), received.message_id());
    assert_eq!(attribute(&again[0], System::ApproximateReceiveCount), Some("2"));
    stack.delete(&queue, &again[0]).await;
}

#[tokio::test]
async fn a_reopened_file_has_its_queues_and_accepts_earlier_receipt_handles() {
    let scratch = Scratch::new();
    let path = scratch.0.join("queues.db");
    let clock: super::Clock = Arc::new(|| START_MS);
    let call = async |sqs: &Sqs, action: &str, body: &str| {
        let (status, answer, _) =
            sqs.handle(&format!("AmazonSQS.{action}"), "127.0.0.1:9", body.as_bytes()).await;
        assert_eq!(status, 200);
        serde_json::from_slice::<serde_json::Value>(&answer).unwrap()
    };
    let sqs = Sqs::open(Some(&path), Arc::clone(&clock)).unwrap();
    call(&sqs, "CreateQueue", r#"{"QueueName":"work"}"#).await;
    call(&sqs, "SendMessage", r#"{"QueueUrl":"work","MessageBody":"hello"}"#).await;
    let received = call(&sqs, "ReceiveMessage", r#"{"QueueUrl":"work"}"#).await;
    drop(sqs);
    let sqs = Sqs::open(Some(&path), clock).unwrap();
    assert_eq!(sqs.queues().unwrap()[0].in_flight, 1);
    let delete =
        serde_json::json!({ "QueueUrl": "work", "ReceiptHandle": received["Messages"][0]["ReceiptHandle"] });
    call(&sqs, "DeleteMessage", &delete.to_string()).await;
    assert_eq!(sqs.queues().unwrap()[0].in_flight, 0);
}

#[tokio::test]
async fn messages_in_flight_are_released_and_those_that_wait_for_a_retry_are_not() {
    let scratch = Scratch::new();
    let path = scratch.0.join("queues.db");
    let clock: super::Clock = Arc::new(|| START_MS);
    let call = async |sqs: &Sqs, action: &str, body: serde_json::Value| {
        let (status, answer, _) =
            sqs.handle(&format!("AmazonSQS.{action}"), "127.0.0.1:9", body.to_string().as_bytes()).await;
        assert_eq!(status, 200);
        serde_json::from_slice::<serde_json::Value>(&answer).unwrap_or_default()
    };
    let sqs = Sqs::open(Some(&path), Arc::clone(&clock)).unwrap();
    call(&sqs, "CreateQueue", json!({"QueueName": "work"})).await;
    for body in ["one", "two", "three"] {
        call(&sqs, "SendMessage", json!({"QueueUrl": "work", "MessageBody": body})).await;
    }
    let receive = json!({"QueueUrl": "work", "MaxNumberOfMessages": 10, "AttributeNames": ["All"]});
    let received = call(&sqs, "ReceiveMessage", receive.clone()).await;
    let handle = &received["Messages"][1]["ReceiptHandle"];
    call(
        &sqs,
        "ChangeMessageVisibility",
        json!({"QueueUrl": "work", "ReceiptHandle": handle, "VisibilityTimeout": 300}),
    )
    .await;
    drop(sqs);
    let sqs = Sqs::open(Some(&path), clock).unwrap();
    assert_eq!(sqs.release_in_flight().unwrap(), 2);
    // A function of the killed stack asks for a retry in 300 s.
    let late = json!({"QueueUrl": "work", "ReceiptHandle": received["Messages"][0]["ReceiptHandle"],
        "VisibilityTimeout": 300});
    let (status, ..) =
        sqs.handle("AmazonSQS.ChangeMessageVisibility", "127.0.0.1:9", late.to_string().as_bytes()).await;
    assert_eq!(status, 400);
    assert_eq!((sqs.queues().unwrap()[0].visible, sqs.queues().unwrap()[0].in_flight), (2, 1));
    let again = call(&sqs, "ReceiveMessage", receive).await;
    let again: Vec<_> = again["Messages"].as_array().unwrap().iter().collect();
    assert_eq!(again.iter().map(|message| &message["Body"]).collect::<Vec<_>>(), ["one", "three"]);
    assert!(again.iter().all(|message| message["Attributes"]["ApproximateReceiveCount"] == "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_receivers_never_receive_the_same_message() {
    let stack = Arc::new(Stack::start(None).await);
    let queue = stack.queue("work", &[]).await;
    let receivers: Vec<_> = (0..8)
        .map(|_| {
            let (stack, queue) = (Arc::clone(&stack), queue.clone());
            tokio::spawn(async move {
                let mut got = Vec::new();
                loop {
                    let poll = stack
                        .client
                        .receive_message()
                        .queue_url(&queue)
                        .max_number_of_messages(3)
                        .wait_time_seconds(20);
                    let messages = poll.send().await.unwrap().messages.unwrap_or_default();
                    if messages.is_empty() {
                        return got;
                    }
                    for message in &messages {
                        stack.delete(&queue, message).await;
                    }
                    got.extend(messages.into_iter().map(|message| message.message_id.unwrap()));
                }
            })
        })
        .collect();
    let mut sent = BTreeSet::new();
    for batch in 0..20 {
        let entries = (0..10).map(|n| entry(&n.to_string(), &format!("{batch}-{n}"))).collect();
        let answer = stack
            .client
            .send_message_batch()
            .queue_url(&queue)
            .set_entries(Some(entries))
            .send()
            .await
            .unwrap();
        sent.extend(answer.successful.into_iter().map(|sent| sent.message_id));
    }
    while stack.status("work").oldest_age_seconds.is_some() {
        tokio::task::yield_now().await;
    }
    stack.pass(20);
    let mut got = Vec::new();
    for receiver in receivers {
        while !receiver.is_finished() {
            stack.pass(20);
            tokio::task::yield_now().await;
        }
        got.extend(receiver.await.unwrap());
    }
    assert_eq!(got.len(), 200);
    assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), sent);
}

#[tokio::test]
async fn a_request_of_another_protocol_is_refused_with_a_reason() {
    let sqs = Sqs::open(None, super::system_clock()).unwrap();
    let answer = async |target: &str, body: &str| {
        let (status, body, error) = sqs.handle(target, "127.0.0.1:9", body.as_bytes()).await;
        (status, String::from_utf8(body).unwrap(), error.unwrap())
    };
    let (status, body, error) = answer("AmazonSQS.GetQueueUrl", r#"{"QueueName":"none"}"#).await;
    assert_eq!((status, error.as_str()), (400, "AWS.SimpleQueueService.NonExistentQueue;Sender"));
    assert_eq!(
        body,
        r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}"#
    );
    assert_eq!(answer("AmazonSQS.SendMessage", "{").await.2, "SerializationException;Sender");
    assert_eq!(answer("AmazonSQS.SendMessage", "{}").await.2, "MissingParameter;Sender");
    assert_eq!(
        answer("AmazonSQS.TagQueue", "{}").await.2,
        "AWS.SimpleQueueService.UnsupportedOperation;Sender"
    );
    assert!(answer("", "Action=SendMessage").await.1.contains("query protocol"));
}
