//! What we rely on in DynamoDB and SQS, tested against AWS or an emulator.
//!
//! `cargo test` tests the embedded ones over HTTP. The same command tests any other endpoint:
//! `AWS_ENDPOINT_URL`, or `AWS_ENDPOINT_URL_DYNAMODB` and `AWS_ENDPOINT_URL_SQS`, with `AWS_REGION` and
//! credentials:
//!
//! ```text
//! AWS_ENDPOINT_URL=http://127.0.0.1:4566 cargo test -p tests conformance
//! ```
//! Tables and queues get names of their own and are deleted at the end. `docs/emulators.md` lists what
//! differs where.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aws_lambda_events::event::sqs::SqsEvent;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{AttributeValue, ConditionCheck, KeysAndAttributes, Put, TransactWriteItem};
use aws_sdk_sqs::types::{MessageSystemAttributeName, QueueAttributeName};
use futures_util::future::join_all;
use lambda_http::Body;
use local::stack::{Options, Stack};
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_aws::queue::{Envelope, Queue};
use tallyhook_aws::sdk;
use tallyhook_aws::store::schema::create_tables;
use tallyhook_core::event::Family;
use tallyhook_core::signature::SecretMode;
use tallyhook_service::config::{ApiConfig, WebhookConfig, WorkerConfig, queue_variable};
use tallyhook_service::http::api::Api;
use tallyhook_service::http::webhook::Webhook;
use tallyhook_service::worker::Worker;

use crate::support::{
    APP_TOKEN, EntryPoint, SECRET, call, pack, records, request, sample, signature, with_id,
};

type Item = HashMap<String, AttributeValue>;

/// An endpoint that answers as AWS does, with two tables and a set of queues of this run.
struct Backend {
    env: Env,
    dynamodb: aws_sdk_dynamodb::Client,
    sqs: aws_sdk_sqs::Client,
    run: String,
    queues: BTreeMap<Family, String>,
    dead_letters: String,
    embedded: Option<Stack>,
}

impl Backend {
    async fn start() -> Self {
        let mut env = Env::of_process();
        let other = ["", "_DYNAMODB", "_SQS"]
            .iter()
            .any(|service| env.get(&format!("AWS_ENDPOINT_URL{service}")).is_some());
        let embedded = if other { None } else { Some(Stack::start(Options::default()).await.unwrap()) };
        if let Some(stack) = &embedded {
            env.set("AWS_ENDPOINT_URL", stack.aws_url.clone());
            env.set("AWS_REGION", "us-east-1");
            env.set("AWS_ACCESS_KEY_ID", "conformance");
            env.set("AWS_SECRET_ACCESS_KEY", "conformance");
        }
        let run = format!("tallyhook-conformance-{:08x}", fastrand::u32(..));
        env.set("ACCOUNTS_TABLE", format!("{run}-accounts"));
        env.set("EVENTS_TABLE", format!("{run}-events"));
        env.set("STRIPE_WEBHOOK_SECRET", SECRET);
        env.set("APP_API_TOKEN", APP_TOKEN);
        env.set("CATALOG_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml"));
        let dynamodb = sdk::dynamodb(&sdk::sdk_config(&env, "DYNAMODB").unwrap());
        let sqs = sdk::sqs(&sdk::sdk_config(&env, "SQS").unwrap());
        create_tables(&dynamodb, &format!("{run}-accounts"), &format!("{run}-events")).await.unwrap();
        for table in ["accounts", "events"] {
            while dynamodb
                .describe_table()
                .table_name(format!("{run}-{table}"))
                .send()
                .await
                .unwrap()
                .table
                .unwrap()
                .table_status
                != Some(aws_sdk_dynamodb::types::TableStatus::Active)
            {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        let mut backend =
            Self { env, dynamodb, sqs, run, queues: BTreeMap::new(), dead_letters: String::new(), embedded };
        backend.dead_letters = backend.queue("dead", &[]).await;
        for family in Family::ALL {
            let url = backend.queue(family.as_str(), &[]).await;
            backend.env.set(queue_variable(family), url.clone());
            backend.queues.insert(family, url);
        }
        backend
    }

    async fn stop(self) {
        for table in ["accounts", "events"] {
            self.dynamodb.delete_table().table_name(format!("{}-{table}", self.run)).send().await.unwrap();
        }
        let listed = self.sqs.list_queues().queue_name_prefix(&self.run).send().await.unwrap();
        for url in listed.queue_urls() {
            self.sqs.delete_queue().queue_url(url).send().await.unwrap();
        }
    }

    async fn queue(&self, name: &str, attributes: &[(QueueAttributeName, String)]) -> String {
        let mut request = self.sqs.create_queue().queue_name(format!("{}-{name}", self.run));
        for (name, value) in attributes {
            request = request.attributes(name.clone(), value);
        }
        request.send().await.unwrap().queue_url.unwrap()
    }

    /// Up to ten messages. A queue that is spread over servers is waited for; the embedded one says at once
    /// that it is empty.
    async fn receive(&self, url: &str) -> Vec<aws_sdk_sqs::types::Message> {
        // Shorter than the client's time limit of one attempt.
        let wait = if self.embedded.is_some() { 0 } else { 1 };
        let request =
            self.sqs.receive_message().queue_url(url).max_number_of_messages(10).wait_time_seconds(wait);
        let request = request
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All);
        request.send().await.unwrap().messages.unwrap_or_default()
    }

    async fn delete(&self, url: &str, messages: &[aws_sdk_sqs::types::Message]) {
        for message in messages {
            self.sqs
                .delete_message()
                .queue_url(url)
                .receipt_handle(message.receipt_handle().unwrap())
                .send()
                .await
                .unwrap();
        }
    }

    fn account(&self, key: &str, fields: &[(&str, AttributeValue)]) -> Item {
        let mut item: Item = [("pk", key), ("sk", "account")]
            .map(|(name, value)| (name.to_owned(), AttributeValue::S(value.to_owned())))
            .into();
        item.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        item
    }

    fn put(&self, item: Item, condition: &str, values: &[(&str, AttributeValue)]) -> TransactWriteItem {
        let values: Item = values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let put = Put::builder()
            .table_name(format!("{}-accounts", self.run))
            .set_item(Some(item))
            .condition_expression(condition)
            .set_expression_attribute_values((!values.is_empty()).then_some(values));
        TransactWriteItem::builder().put(put.build().unwrap()).build()
    }

    async fn read(&self, keys: &[&str]) -> Vec<Item> {
        let table = format!("{}-accounts", self.run);
        let keys = keys.iter().map(|key| self.account(key, &[]));
        let wanted = KeysAndAttributes::builder()
            .consistent_read(true)
            .set_keys(Some(keys.collect()))
            .build()
            .unwrap();
        let answer = self.dynamodb.batch_get_item().request_items(&table, wanted).send().await.unwrap();
        answer.responses.unwrap_or_default().remove(&table).unwrap_or_default()
    }
}

fn number(value: i64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

#[tokio::test]
async fn what_we_rely_on_in_dynamodb_and_sqs_holds() {
    let backend = Backend::start().await;
    a_transaction_is_all_or_nothing_and_says_which_condition_failed(&backend).await;
    a_repeated_token_applies_once_and_another_content_under_it_is_refused(&backend).await;
    two_actions_on_one_item_and_items_beyond_400_kb_are_refused(&backend).await;
    twenty_writers_of_one_version_lose_nothing(&backend).await;
    a_message_is_received_as_it_was_sent_until_it_is_deleted(&backend).await;
    a_message_of_a_megabyte_travels_and_a_larger_one_is_refused(&backend).await;
    a_failed_message_waits_for_its_delay_and_ends_in_the_dead_letter_queue(&backend).await;
    a_customers_life_ends_in_the_account_that_the_rules_say(&backend).await;
    backend.stop().await;
}

async fn a_transaction_is_all_or_nothing_and_says_which_condition_failed(backend: &Backend) {
    let transact = |writes: Vec<TransactWriteItem>| {
        backend.dynamodb.transact_write_items().set_transact_items(Some(writes)).send()
    };
    transact(vec![backend.put(
        backend.account("all#1", &[("version", number(1))]),
        "attribute_not_exists(pk)",
        &[],
    )])
    .await
    .unwrap();
    let check = ConditionCheck::builder()
        .table_name(format!("{}-accounts", backend.run))
        .set_key(Some(backend.account("all#1", &[])))
        .condition_expression("version = :version")
        .expression_attribute_values(":version", number(1));
    let writes = vec![
        backend.put(backend.account("all#2", &[]), "attribute_not_exists(pk)", &[]),
        backend.put(
            backend.account("all#1", &[("version", number(9))]),
            "version = :version",
            &[(":version", number(7))],
        ),
        backend.put(
            backend.account("all#3", &[]),
            "attribute_not_exists(pk) OR user_id = :user",
            &[(":user", AttributeValue::S("u".into()))],
        ),
    ];
    let error = transact(writes).await.unwrap_err().into_service_error();
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = error else { panic!("{error:?}") };
    let reasons: Vec<_> =
        cancelled.cancellation_reasons().iter().map(|reason| reason.code().unwrap_or("None")).collect();
    assert_eq!(reasons, ["None", "ConditionalCheckFailed", "None"]);
    let found = backend.read(&["all#1", "all#2", "all#3"]).await;
    assert_eq!(found.len(), 1, "no write of the transaction was applied: {found:?}");
    assert_eq!(found[0]["version"], number(1));
    // A condition alone takes part, and holds.
    let check = TransactWriteItem::builder().condition_check(check.build().unwrap()).build();
    transact(vec![check, backend.put(backend.account("all#2", &[]), "attribute_not_exists(pk)", &[])])
        .await
        .unwrap();
    assert_eq!(
        backend.read(&["all#1", "all#2", "all#none"]).await.len(),
        2,
        "a consistent read returns new items and omits missing ones"
    );
}

async fn a_repeated_token_applies_once_and_another_content_under_it_is_refused(backend: &Backend) {
    let token = format!("{:032x}", fastrand::u128(..));
    let write = |key: &str| {
        let put = backend.put(backend.account(key, &[]), "attribute_not_exists(pk)", &[]);
        backend.dynamodb.transact_write_items().transact_items(put).client_request_token(&token).send()
    };
    write("token#1").await.unwrap();
    write("token#1")
        .await
        .expect("a repeated request gets the first answer, although its condition no longer holds");
    let error = write("token#2").await.unwrap_err();
    assert_eq!(error.code(), Some("IdempotentParameterMismatchException"));
}

async fn two_actions_on_one_item_and_items_beyond_400_kb_are_refused(backend: &Backend) {
    let once = backend.put(backend.account("one#1", &[]), "attribute_not_exists(pk)", &[]);
    let twice = backend
        .dynamodb
        .transact_write_items()
        .transact_items(once.clone())
        .transact_items(once)
        .send()
        .await
        .unwrap_err();
    assert_eq!(twice.code(), Some("ValidationException"));
    let large = AttributeValue::S("x".repeat(410_000));
    let put = backend.put(backend.account("one#2", &[("payload", large)]), "attribute_not_exists(pk)", &[]);
    let error = backend.dynamodb.transact_write_items().transact_items(put).send().await.unwrap_err();
    // AWS reports the size as a validation error of the request or as the reason of the cancelled
    // transaction.
    assert!(
        matches!(error.code(), Some("ValidationException" | "TransactionCanceledException")),
        "{error:?}"
    );
    assert!(backend.read(&["one#1", "one#2"]).await.is_empty());
}

async fn twenty_writers_of_one_version_lose_nothing(backend: &Backend) {
    let first =
        backend.put(backend.account("hot#1", &[("version", number(0))]), "attribute_not_exists(pk)", &[]);
    backend.dynamodb.transact_write_items().transact_items(first).send().await.unwrap();
    let writers = (0..20).map(|_| async {
        loop {
            let version: i64 = backend.read(&["hot#1"]).await[0]["version"].as_n().unwrap().parse().unwrap();
            let item = backend.account("hot#1", &[("version", number(version + 1))]);
            let put = backend.put(item, "version = :seen", &[(":seen", number(version))]);
            match backend.dynamodb.transact_write_items().transact_items(put).send().await {
                Ok(_) => return,
                Err(error) if error.code() == Some("TransactionCanceledException") => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    join_all(writers).await;
    assert_eq!(backend.read(&["hot#1"]).await[0]["version"], number(20));
}

async fn a_message_is_received_as_it_was_sent_until_it_is_deleted(backend: &Backend) {
    let url = backend.queue("message", &[]).await;
    let body = "{\"id\":\"evt_1\", \"text\":\"é €😀 \\u0000 \\\" <&>\"}\n";
    let envelope =
        Envelope { body: body.as_bytes().to_vec(), received_ms: 1_767_607_205_123, mode: SecretMode::Test };
    Queue::new(backend.sqs.clone()).send(&url, envelope.clone()).await.unwrap();
    let messages = backend.receive(&url).await;
    assert_eq!(messages.len(), 1);
    let event: SqsEvent = records(&messages, "message");
    assert_eq!(Envelope::read(&event.records[0]).unwrap(), envelope);
    assert_eq!(messages[0].attributes().unwrap()[&MessageSystemAttributeName::ApproximateReceiveCount], "1");
    backend.delete(&url, &messages).await;
    assert!(backend.receive(&url).await.is_empty());
}

async fn a_message_of_a_megabyte_travels_and_a_larger_one_is_refused(backend: &Backend) {
    let url = backend.queue("large", &[]).await;
    let send =
        |bytes: usize| backend.sqs.send_message().queue_url(&url).message_body("x".repeat(bytes)).send();
    send(1_048_576).await.unwrap();
    let messages = backend.receive(&url).await;
    assert_eq!(messages[0].body().unwrap().len(), 1_048_576);
    send(1_048_577).await.expect_err("a byte more than 1 MiB");
}

async fn a_failed_message_waits_for_its_delay_and_ends_in_the_dead_letter_queue(backend: &Backend) {
    let arn = backend
        .sqs
        .get_queue_attributes()
        .queue_url(&backend.dead_letters)
        .attribute_names(QueueAttributeName::QueueArn)
        .send();
    let arn = arn.await.unwrap().attributes.unwrap().remove(&QueueAttributeName::QueueArn).unwrap();
    let redrive = json!({"deadLetterTargetArn": arn, "maxReceiveCount": 2}).to_string();
    let url = backend.queue("failing", &[(QueueAttributeName::RedrivePolicy, redrive)]).await;
    backend.sqs.send_message().queue_url(&url).message_body("poison").send().await.unwrap();
    // Longer than `receive` waits.
    let seconds = if backend.embedded.is_some() { 1 } else { 4 };
    for attempt in ["1", "2"] {
        let messages = backend.receive(&url).await;
        assert_eq!(
            messages[0].attributes().unwrap()[&MessageSystemAttributeName::ApproximateReceiveCount],
            attempt
        );
        let again = backend
            .sqs
            .change_message_visibility()
            .queue_url(&url)
            .receipt_handle(messages[0].receipt_handle().unwrap());
        again.visibility_timeout(seconds).send().await.unwrap();
        assert!(backend.receive(&url).await.is_empty(), "it is hidden for its visibility timeout");
        tokio::time::sleep(Duration::from_secs(seconds.unsigned_abs().into()) + Duration::from_millis(100))
            .await;
    }
    assert!(backend.receive(&url).await.is_empty(), "it was received `maxReceiveCount` times");
    let dead = backend.receive(&backend.dead_letters).await;
    assert_eq!(dead[0].body(), Some("poison"));
}

/// The shipped handlers, from the signed request to the app's answer.
async fn a_customers_life_ends_in_the_account_that_the_rules_say(backend: &Backend) {
    let (env, dynamodb, sqs) = (&backend.env, &backend.dynamodb, &backend.sqs);
    let webhook = Webhook::new(WebhookConfig::from_env(env).unwrap(), sqs.clone());
    let api = Api::new(ApiConfig::from_env(env).unwrap(), dynamodb.clone(), sqs.clone());
    let ask = |method: &'static str, path: &str| {
        let token = format!("Bearer {APP_TOKEN}");
        let request = request(EntryPoint::HttpApi, &[("authorization", &token)], method, path, &Body::Empty);
        let api = &api;
        async move {
            let answer = api.handle(request).await.unwrap();
            serde_json::from_slice::<Value>(answer.body()).unwrap()
        }
    };
    ask("PUT", "/users/user_1").await;
    let mut events = vec![
        sample("checkout.session.completed", "user_1"),
        sample("customer.subscription.created", "user_1"),
        sample("invoice.paid", "user_1"),
        with_id(sample("invoice.paid", "user_1"), "evt_TheSameInvoiceAgain"),
        sample("product.updated", "user_1"),
    ];
    let start = events[2]["created"].as_i64().unwrap();
    events.extend((0..12).map(|number| {
        let mut event = pack(&format!("many{number}"), "user_1", 1);
        event["created"] = json!(start + 60 + number);
        event["data"]["object"]["created"] = json!(start + 60 + number);
        event
    }));
    let twice = events.clone();
    for event in events.iter().chain(&twice) {
        let body = event.to_string();
        let call = call(
            "POST",
            "/webhooks/stripe",
            Some(("stripe-signature", &signature(body.as_bytes()))),
            &body,
            false,
        );
        assert_eq!(webhook.handle(serde_json::from_value(call).unwrap()).await.unwrap().status_code, 200);
    }
    for (family, url) in &backend.queues {
        let worker = Worker::new(
            WorkerConfig::from_env(env, *family).unwrap(),
            *family,
            dynamodb.clone(),
            Queue::new(sqs.clone()),
        );
        loop {
            let messages = backend.receive(url).await;
            if messages.is_empty() {
                break;
            }
            let answer = worker.handle(records(&messages, family.as_str())).await.unwrap();
            assert!(answer.batch_item_failures.is_empty(), "{family:?}: {answer:?}");
            backend.delete(url, &messages).await;
        }
    }
    let account = ask("GET", "/users/user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(5000 + 12_000)), "{account}");
    let ledger = ask("GET", "/users/user_1/ledger").await;
    let sum: i64 =
        ledger["entries"].as_array().unwrap().iter().map(|entry| entry["delta"].as_i64().unwrap()).sum();
    assert_eq!(sum, 17_000, "{ledger}");
}
