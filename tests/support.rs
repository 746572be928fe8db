//! A whole deployment in one test: the real handlers over the real AWS SDK, whose transport ends in an
//! embedded DynamoDB and in the local stack's SQS instead of a socket. The transport counts the calls and can
//! be told to fail.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aws_lambda_events::event::sqs::{SqsBatchResponse, SqsEvent};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dynoxide::Database;
use lambda_http::{Body, Request, Response};
use local::sqs::Sqs;
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::sdk_config_with;
use tallyhook_aws::store::schema::create_tables;
use tallyhook_core::event::Family;
use tallyhook_core::signature::{Secret, sign};
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::alerts::notify::Notify;
use tallyhook_service::config::{
    AdminConfig, ApiConfig, DeadLetterConfig, HealthConfig, NotifyConfig, ProvisionConfig, RetryConfig,
    WebhookConfig, WorkerConfig, queue_variable,
};
use tallyhook_service::http::admin::Admin;
use tallyhook_service::http::api::Api;
use tallyhook_service::outbox::provision::Provision;
use tallyhook_service::resend::retry::RetryReport;
use tallyhook_service::schedules::dead_letter::DeadLetter;
use tallyhook_service::schedules::health::HealthCheck;
use tallyhook_service::schedules::retry::Retry;
use tallyhook_service::webhook::Webhook;
use tallyhook_service::worker::Worker;

pub const SECRET: &str = "whsec_test";
pub const APP_TOKEN: &str = "app-test";
pub const ADMIN_TOKEN: &str = "admin-test";

/// What the transport does with a call instead of, or besides, carrying it out.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An AWS error answer; nothing is carried out.
    Answer(u16, Value),
    /// Carried out, and the answer is lost.
    LoseReply,
    /// Not carried out, and no answer comes.
    LoseRequest,
    /// Not carried out, and the call never ends: see [`World::until_hung`].
    HangBefore,
    /// Carried out, and the call never ends.
    HangAfter,
    /// Of a `BatchGetItem` only the first key is read; the others come back as unprocessed.
    ReadFirst,
}

/// An error as DynamoDB and SQS write it.
pub fn aws_error(status: u16, kind: &str) -> Fault {
    Fault::Answer(
        status,
        json!({"__type": format!("com.amazonaws.test#{kind}"), "message": "made up for a test"}),
    )
}

/// A transaction that is cancelled for this reason, given for the writes that mention `what`.
pub fn cancelled(call: &Call, what: &str, code: &str) -> Fault {
    let writes = call.request["TransactItems"].as_array().cloned().unwrap_or_default();
    let code = |write: &Value| json!({"Code": if write.to_string().contains(what) { code } else { "None" }});
    let reasons: Vec<Value> = writes.iter().map(code).collect();
    let kind = "com.amazonaws.dynamodb.v20120810#TransactionCanceledException";
    Fault::Answer(400, json!({"__type": kind, "message": "cancelled", "CancellationReasons": reasons}))
}

/// One call as the transport saw it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who called; `None` is the test itself.
    pub function: Option<&'static str>,
    pub operation: String,
    pub request: Value,
    /// DynamoDB's capacity units, tables and indexes together; the embedded DynamoDB counts as AWS bills.
    pub units: f64,
    /// Length of the request's body.
    pub bytes: usize,
}

type FaultPlan = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

#[derive(Clone)]
struct Wire {
    function: Option<&'static str>,
    database: Arc<Database>,
    sqs: Sqs,
    calls: Arc<Mutex<Vec<Call>>>,
    /// Whether what a call asked for is forgotten.
    counts_only: Arc<AtomicBool>,
    faults: Arc<Mutex<Option<FaultPlan>>>,
    hung: Arc<tokio::sync::Notify>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpClient for Wire {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let wire = self.clone();
        HttpConnectorFuture::new(async move {
            let target = request.headers().get("x-amz-target").unwrap_or_default().to_owned();
            let body = request.body().bytes().unwrap_or(b"{}").to_vec();
            let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
            let read = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let mut call =
                Call { function: wire.function, operation, request: read, units: 0.0, bytes: body.len() };
            if let Some(function) = call.function {
                crate::permissions::check(function, &call);
            }
            // Whoever runs beside this caller goes first now and then, as over a network.
            tokio::task::yield_now().await;
            let fault = wire.faults.lock().unwrap().as_mut().and_then(|plan| plan(&call));
            let mut unprocessed = None;
            if let Some(Fault::ReadFirst) = fault {
                unprocessed = Some(keep_first_key(&mut call.request));
            }
            let body = if target.starts_with("DynamoDB") && call.operation != "CreateTable" {
                let mut request = call.request.clone();
                request["ReturnConsumedCapacity"] = json!("TOTAL");
                request.to_string().into_bytes()
            } else {
                body
            };
            let lost = || ConnectorError::io("the connection was reset".into());
            match fault {
                Some(Fault::Answer(status, body)) => {
                    wire.calls.lock().unwrap().push(call);
                    return Ok(response(status, body.to_string().into_bytes(), None));
                }
                Some(Fault::LoseRequest) => {
                    wire.calls.lock().unwrap().push(call);
                    return Err(lost());
                }
                Some(Fault::HangBefore) => {
                    wire.calls.lock().unwrap().push(call);
                    wire.hung.notify_one();
                    return std::future::pending().await;
                }
                Some(Fault::LoseReply | Fault::HangAfter | Fault::ReadFirst) | None => {}
            }
            let mut answer = wire.carry_out(&target, &call.operation, &body).await;
            let told: Value = answer
                .body()
                .bytes()
                .and_then(|body| serde_json::from_slice(body).ok())
                .unwrap_or(Value::Null);
            let per_table = told["ConsumedCapacity"].as_array().into_iter().flatten();
            call.units = per_table.filter_map(|table| table["CapacityUnits"].as_f64()).sum();
            if wire.counts_only.load(Ordering::Relaxed) {
                call.request = Value::Null;
            }
            wire.calls.lock().unwrap().push(call);
            if let Some(unprocessed) = unprocessed {
                let mut told = told;
                told["UnprocessedKeys"] = unprocessed;
                answer = response(200, told.to_string().into_bytes(), None);
            }
            match fault {
                Some(Fault::LoseReply) => return Err(lost()),
                Some(Fault::HangAfter) => {
                    wire.hung.notify_one();
                    return std::future::pending().await;
                }
                Some(Fault::Answer(..) | Fault::LoseRequest | Fault::HangBefore | Fault::ReadFirst)
                | None => {}
            }
            tokio::task::yield_now().await;
            Ok(answer)
        })
    }
}

impl Wire {
    /// Clients that call in the name of a function, or of the test.
    fn clients(
        &self,
        env: &Env,
        function: Option<&'static str>,
    ) -> (aws_sdk_dynamodb::Client, aws_sdk_sqs::Client) {
        let wire = Self { function, ..self.clone() };
        let config =
            sdk_config_with(env, Some("http://aws.test".to_owned()), SharedHttpClient::new(wire)).unwrap();
        (tallyhook_aws::sdk::dynamodb(&config), tallyhook_aws::sdk::sqs(&config))
    }

    async fn carry_out(&self, target: &str, operation: &str, body: &[u8]) -> HttpResponse {
        if target.starts_with("AmazonSQS") {
            let (status, body, error) = self.sqs.handle(target, "sqs.test", body).await;
            return response(status, body, error);
        }
        let database = &self.database;
        macro_rules! run {
            ($method:ident) => {
                serde_json::from_slice(body)
                    .map_err(|error| {
                        format!("{{\"__type\":\"SerializationException\",\"message\":\"{error}\"}}")
                    })
                    .and_then(|request| database.$method(request).map_err(|error| error.to_json()))
                    .map(|answer| serde_json::to_vec(&answer).unwrap())
            };
        }
        let answer = match operation {
            "CreateTable" => run!(create_table),
            "BatchGetItem" => run!(batch_get_item),
            "GetItem" => run!(get_item),
            "PutItem" => run!(put_item),
            "UpdateItem" => run!(update_item),
            "DeleteItem" => run!(delete_item),
            "BatchWriteItem" => run!(batch_write_item),
            "Query" => run!(query),
            "Scan" => run!(scan),
            "TransactWriteItems" => run!(transact_write_items),
            other => Err(format!("{{\"__type\":\"UnknownOperationException\",\"message\":\"{other}\"}}")),
        };
        match answer {
            Ok(body) => response(200, body, None),
            Err(body) => response(400, body.into_bytes(), None),
        }
    }
}

/// Leaves the first key of a `BatchGetItem` in the request and gives back the others.
fn keep_first_key(request: &mut Value) -> Value {
    let mut rest = request["RequestItems"].clone();
    let tables: Vec<String> = rest.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    for (place, table) in tables.iter().enumerate() {
        let mut keys = rest[table]["Keys"].as_array().cloned().unwrap_or_default();
        if place == 0 {
            request["RequestItems"][table]["Keys"] = json!([keys.remove(0)]);
            rest[table]["Keys"] = json!(keys);
        } else if let Some(wanted) = request["RequestItems"].as_object_mut() {
            wanted.remove(table);
        }
        if let Some(left) = rest.as_object_mut().filter(|left| left[table]["Keys"] == json!([])) {
            left.remove(table);
        }
    }
    rest
}

fn response(status: u16, body: Vec<u8>, query_error: Option<String>) -> HttpResponse {
    let mut response = lambda_http::http::Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.0");
    if let Some(error) = query_error {
        response = response.header("x-amzn-query-error", error);
    }
    response.body(SdkBody::from(body)).unwrap().try_into().unwrap()
}

/// A deployment with its own tables and queues.
pub struct World {
    wire: Wire,
    pub env: Env,
    pub dynamodb: aws_sdk_dynamodb::Client,
    pub sqs: aws_sdk_sqs::Client,
    pub webhook: Webhook,
    pub api: Api,
    pub admin: Admin,
    pub retry: Retry,
    pub dead_letter: DeadLetter,
    pub health: HealthCheck,
    pub notify: Notify,
    workers: BTreeMap<Family, Arc<Worker>>,
    clock: Arc<std::sync::atomic::AtomicI64>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With variables besides the usual ones.
    pub async fn with(variables: &[(&str, &str)]) -> Self {
        let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let clock = Arc::new(std::sync::atomic::AtomicI64::new(i64::try_from(start).unwrap()));
        let ticking = clock.clone();
        let sqs =
            Sqs::open(None, Arc::new(move || ticking.load(std::sync::atomic::Ordering::SeqCst))).unwrap();
        let wire = Wire {
            function: None,
            database: Arc::new(Database::memory().unwrap()),
            sqs,
            calls: Arc::default(),
            counts_only: Arc::default(),
            faults: Arc::default(),
            hung: Arc::default(),
        };
        let mut env = Env::from([
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("STRIPE_WEBHOOK_SECRET", SECRET),
            ("APP_API_TOKEN", APP_TOKEN),
            ("ADMIN_API_TOKEN", ADMIN_TOKEN),
            ("ACCOUNTS_TABLE", "accounts"),
            ("EVENTS_TABLE", "events"),
        ]);
        let (dynamodb, sqs) = wire.clients(&env, None);
        create_tables(&dynamodb, "accounts", "events").await.unwrap();
        for name in ["dead-letter", "notify"] {
            let queue = sqs.create_queue().queue_name(name).send().await.unwrap();
            env.set(
                format!("QUEUE_URL_{}", name.to_uppercase().replace('-', "_")),
                queue.queue_url().unwrap(),
            );
        }
        for family in Family::ALL {
            let redrive = json!({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:dead-letter", "maxReceiveCount": "4"});
            let queue = sqs
                .create_queue()
                .queue_name(family.as_str())
                .attributes(aws_sdk_sqs::types::QueueAttributeName::VisibilityTimeout, "180")
                .attributes(aws_sdk_sqs::types::QueueAttributeName::RedrivePolicy, redrive.to_string())
                .send()
                .await
                .unwrap();
            env.set(queue_variable(family), queue.queue_url().unwrap());
        }
        // `LOG_LEVEL=info cargo test … -- --nocapture` shows what the functions log.
        if let Some(level) = Env::of_process().get("LOG_LEVEL") {
            env.set("LOG_LEVEL", level);
            tallyhook_aws::telemetry::init(&env);
        }
        let world = Self::deploy(wire, env, dynamodb, sqs, clock, variables);
        world.calls();
        world
    }

    fn deploy(
        wire: Wire,
        mut env: Env,
        dynamodb: aws_sdk_dynamodb::Client,
        sqs: aws_sdk_sqs::Client,
        clock: Arc<std::sync::atomic::AtomicI64>,
        variables: &[(&str, &str)],
    ) -> Self {
        for (name, value) in variables {
            env.set(*name, *value);
        }
        // Each calls in its own name, and may do what its role may.
        let clients = |function: &'static str| wire.clients(&env, Some(function));
        let worker = |family: Family| {
            let config = WorkerConfig::from_env(&env, family).unwrap();
            let (dynamodb, sqs) = clients(family.as_str());
            (family, Arc::new(Worker::new(config, family, dynamodb, tallyhook_aws::queue::Queue::new(sqs))))
        };
        let [api, admin, retry, dead_letter, health] =
            ["api", "admin", "retry", "dead-letter", "health"].map(clients);
        Self {
            webhook: Webhook::new(WebhookConfig::from_env(&env).unwrap(), clients("stripe-webhook").1),
            api: Api::new(ApiConfig::from_env(&env).unwrap(), api.0, api.1),
            admin: Admin::new(AdminConfig::from_env(&env).unwrap(), &admin.0, &admin.1),
            retry: Retry::new(RetryConfig::from_env(&env).unwrap(), retry.0, retry.1),
            dead_letter: DeadLetter::new(
                DeadLetterConfig::from_env(&env).unwrap(),
                dead_letter.0,
                dead_letter.1,
            ),
            health: HealthCheck::new(HealthConfig::from_env(&env).unwrap(), health.0, health.1),
            notify: Notify::new(NotifyConfig::from_env(&env).unwrap(), clients("notify").0),
            workers: Family::ALL.into_iter().map(worker).collect(),
            wire,
            env,
            dynamodb,
            sqs,
            clock,
        }
    }

    /// With a queue of `provision`, and variables besides.
    pub async fn provisioning(variables: &[(&str, &str)]) -> Self {
        let world = Self::new().await;
        let redrive = json!({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:dead-letter", "maxReceiveCount": "4"});
        let queue = world
            .sqs
            .create_queue()
            .queue_name("provision")
            .attributes(aws_sdk_sqs::types::QueueAttributeName::VisibilityTimeout, "180")
            .attributes(aws_sdk_sqs::types::QueueAttributeName::RedrivePolicy, redrive.to_string());
        let url = queue.send().await.unwrap().queue_url.unwrap();
        let mut all = vec![("QUEUE_URL_PROVISION", url.as_str())];
        all.extend(variables);
        let world = world.redeploy(&all);
        world.calls();
        world
    }

    /// Has the function `provision` do what is in its queue at this moment. Returns how many jobs are to come
    /// back.
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

    /// Clients that call in the name of a function.
    pub fn clients(&self, function: &'static str) -> (aws_sdk_dynamodb::Client, aws_sdk_sqs::Client) {
        self.wire.clients(&self.env, Some(function))
    }

    /// The same tables and queues with other variables.
    pub fn redeploy(self, variables: &[(&str, &str)]) -> Self {
        let Self { wire, env, dynamodb, sqs, clock, .. } = self;
        Self::deploy(wire, env, dynamodb, sqs, clock, variables)
    }

    pub fn worker(&self, family: Family) -> Arc<Worker> {
        self.workers[&family].clone()
    }

    /// The calls since the last time it was asked.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.wire.calls.lock().unwrap())
    }

    /// From here on a call is counted, and what it asked for is not kept: there will be many.
    pub fn count_only(&self) {
        self.wire.counts_only.store(true, Ordering::Relaxed);
    }

    /// Their names.
    pub fn operations(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.operation).collect()
    }

    /// From here on the plan decides about every call.
    pub fn fault(&self, plan: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        *self.wire.faults.lock().unwrap() = Some(Box::new(plan));
    }

    /// All is well again.
    pub fn heal(&self) {
        *self.wire.faults.lock().unwrap() = None;
    }

    /// Runs a handler to its end, or drops it where a call of its never ends: the instance is killed there.
    pub async fn until_hung<T>(&self, handler: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.wire.hung.notified() => None,
            answer = handler => Some(answer),
        }
    }

    /// Moves the queues' clock; long polls look again.
    pub fn pass_seconds(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1000, std::sync::atomic::Ordering::SeqCst);
        self.wire.sqs.wake();
    }

    /// Posts a body with this signature header.
    pub async fn post(&self, body: &[u8], signature: Option<&str>) -> (u16, Value) {
        let packed = STANDARD.encode(body);
        let (body, base64) = std::str::from_utf8(body).map_or((packed.as_str(), true), |text| (text, false));
        let header = signature.map(|signature| ("stripe-signature", signature));
        self.call(&call("POST", "/webhooks/stripe", header, body, base64)).await
    }

    /// Hands the webhook what API Gateway made of a request.
    pub async fn call(&self, call: &Value) -> (u16, Value) {
        let answer = self.webhook.handle(serde_json::from_value(call.clone()).unwrap()).await.unwrap();
        let answer = serde_json::to_value(answer).unwrap();
        assert_eq!(
            answer["headers"],
            json!({"content-type": "application/json", "cache-control": "no-store"})
        );
        let status = answer["statusCode"].as_u64().and_then(|status| status.try_into().ok()).unwrap();
        (status, serde_json::from_str(answer["body"].as_str().unwrap()).unwrap())
    }

    /// Signs a body as Stripe does and posts it.
    pub async fn deliver(&self, body: &[u8]) -> (u16, Value) {
        self.post(body, Some(&signature(body))).await
    }

    /// Delivers an event and lets the workers finish.
    pub async fn process(&self, event: &Value) {
        assert_eq!(self.deliver(event.to_string().as_bytes()).await.0, 200);
        self.drain().await;
    }

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

    /// Time passes until nothing is left to be done: longer than any delay, as often as there are attempts.
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

    /// How many messages of a queue can be received, and how many cannot yet.
    pub fn messages(&self, queue: &str) -> (i64, i64) {
        let queues = self.wire.sqs.queues().unwrap();
        let queue = queues.iter().find(|status| status.name == queue).unwrap();
        (queue.visible, queue.in_flight + queue.delayed)
    }

    /// Receives one batch, as the event source does, and deletes what did not fail. Returns its size.
    pub async fn poll(&self, family: Family) -> usize {
        let batch = self.receive(family).await;
        let size = batch.records.len();
        if size > 0 {
            let answer = self.worker(family).handle(batch.clone()).await.unwrap();
            self.delete(family, &batch, &answer).await;
        }
        size
    }

    /// One batch, as Lambda hands it over.
    pub async fn receive(&self, family: Family) -> SqsEvent {
        self.receive_from(family.as_str()).await
    }

    /// A batch of ten packs, two for each of five users; what it took to get here is not among the calls.
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

    /// Deletes what a worker did not name as failed.
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

    /// Has the function `dead-letter` empty its queue. Returns how many messages there were.
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

    /// Takes the alerts off their queue.
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

    /// Has the function `notify` post what is in its queue. Returns how many alerts it could not post.
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

    /// One run of `retry`, so many seconds from now.
    pub async fn retry_in(&self, seconds: i64) -> RetryReport {
        self.retry.run(now().plus_seconds(seconds)).await.unwrap()
    }

    /// Asks the admin API, with its token.
    pub async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.ask_as(Some(&format!("Bearer {ADMIN_TOKEN}")), method, path, body).await
    }

    /// Sets a user right, as an operator.
    pub async fn fix(&self, user: &str, idempotency_key: Option<&str>, body: Value) -> (u16, Value) {
        let token = format!("Bearer {ADMIN_TOKEN}");
        let key = idempotency_key.map(|key| ("idempotency-key", key));
        let headers: Vec<_> = [("authorization", token.as_str())].into_iter().chain(key).collect();
        self.ask_with(&headers, "POST", &format!("/admin/stripe/fix-user/{user}"), body).await
    }

    /// Likewise, with this `Authorization` header.
    pub async fn ask_as(
        &self,
        authorization: Option<&str>,
        method: &str,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
        self.ask_with(&headers, method, path, body).await
    }

    /// A page of the admin function, without a token.
    pub async fn page(&self, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = lambda_http::http::Request::builder().uri(format!("http://front{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.admin.handle(request.body(Body::Empty).unwrap()).await.unwrap()
    }

    async fn ask_with(
        &self,
        headers: &[(&str, &str)],
        method: &str,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let mut request =
            lambda_http::http::Request::builder().method(method).uri(format!("http://front{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::Empty } else { Body::Text(body.to_string()) };
        let (status, body) =
            read_answer(self.admin.handle(with_query(request.body(body).unwrap(), path)).await.unwrap());
        crate::openapi::check(method, path, status, &body);
        (status, body)
    }

    /// Asks the app's API.
    pub async fn app(
        &self,
        method: &str,
        path: &str,
        body: Value,
        idempotency_key: Option<&str>,
    ) -> (u16, Value) {
        let mut request = lambda_http::http::Request::builder()
            .method(method)
            .uri(format!("http://front{path}"))
            .header("authorization", format!("Bearer {APP_TOKEN}"));
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let body = if body.is_null() { Body::Empty } else { Body::Text(body.to_string()) };
        let request: Request = request.body(body).unwrap();
        let (status, body) = read_answer(self.api.handle(request).await.unwrap());
        crate::openapi::check(method, path, status, &body);
        (status, body)
    }

    /// Asks the app's API with this `Authorization` header and these bytes.
    pub async fn visit(
        &self,
        authorization: Option<&str>,
        method: &str,
        path: &str,
        body: Body,
    ) -> Response<Body> {
        let bare = path.split('?').next().unwrap_or_default();
        let mut request =
            lambda_http::http::Request::builder().method(method).uri(format!("http://front{bare}"));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let answer = self.api.handle(with_query(request.body(body).unwrap(), path)).await.unwrap();
        if answer.headers().get("content-type").is_some_and(|kind| kind == "application/json") {
            let (bytes, status): (&[u8], _) = (answer.body(), answer.status().as_u16());
            crate::openapi::check(method, path, status, &serde_json::from_slice(bytes).unwrap());
        }
        answer
    }

    /// What a customer who comes back with this session is told.
    pub async fn setup_status(&self, session: &str) -> (u16, Value) {
        read_answer(
            self.visit(None, "GET", &format!("/portal/setup-status?session_id={session}"), Body::Empty).await,
        )
    }

    pub async fn sign_up(&self, user: &str) -> Value {
        self.app("PUT", &format!("/users/{user}"), Value::Null, None).await.1
    }

    pub async fn account(&self, user: &str) -> Value {
        self.app("GET", &format!("/users/{user}"), Value::Null, None).await.1
    }

    pub async fn ledger(&self, user: &str) -> Vec<Value> {
        let mut entries = Vec::new();
        let mut next = None::<String>;
        loop {
            let query = next.map_or_else(String::new, |next| format!("?next={}", next.replace('#', "%23")));
            let request = lambda_http::http::Request::builder()
                .uri(format!("http://front/users/{user}/ledger{query}"))
                .header("authorization", format!("Bearer {APP_TOKEN}"));
            let parameters = query.strip_prefix("?next=").map(|next| next.replace("%23", "#"));
            let mut request: Request = request.body(Body::Empty).unwrap();
            if let Some(next) = parameters {
                let map = std::collections::HashMap::from([("next".to_owned(), vec![next])]);
                request = lambda_http::RequestExt::with_query_string_parameters(request, map);
            }
            let (status, page) = read_answer(self.api.handle(request).await.unwrap());
            assert_eq!(status, 200, "{page}");
            entries.extend(page["entries"].as_array().unwrap().clone());
            match page["next"].as_str() {
                Some(key) => next = Some(key.to_owned()),
                None => return entries,
            }
        }
    }

    /// The event log's item.
    pub async fn event(&self, id: &str) -> Option<BTreeMap<String, String>> {
        let key = aws_sdk_dynamodb::types::AttributeValue::S(id.to_owned());
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
        let text =
            |value: &aws_sdk_dynamodb::types::AttributeValue| value.as_s().or(value.as_n()).ok().cloned();
        Some(item.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect())
    }

    /// Everything in the tables and queues, to compare before and after; alerts are no state of the system.
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

/// Received messages as Lambda hands them over.
pub fn records(messages: &[aws_sdk_sqs::types::Message], queue: &str) -> SqsEvent {
    let record = |message: &aws_sdk_sqs::types::Message| {
        let attributes: BTreeMap<_, _> =
            message.attributes().into_iter().flatten().map(|(name, value)| (name.as_str(), value)).collect();
        let told: BTreeMap<_, _> = message
            .message_attributes()
            .into_iter()
            .flatten()
            .map(|(name, value)| {
                (name, json!({"dataType": value.data_type(), "stringValue": value.string_value()}))
            })
            .collect();
        json!({
            "messageId": message.message_id(), "receiptHandle": message.receipt_handle(), "body": message.body(),
            "attributes": attributes, "messageAttributes": told, "md5OfBody": message.md5_of_body(),
            "eventSource": "aws:sqs", "eventSourceARN": format!("arn:aws:sqs:us-east-1:000000000000:{queue}"), "awsRegion": "us-east-1",
        })
    };
    let records: Vec<Value> = messages.iter().map(record).collect();
    serde_json::from_value(json!({"Records": records})).unwrap()
}

pub fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    Timestamp::from_unix(i64::try_from(now).unwrap())
}

/// Stripe's header over a body, signed with the test secret at this moment.
pub fn signature(body: &[u8]) -> String {
    sign(body, &Secret::new(SECRET).unwrap(), now())
}

/// Lambda hands the query over decoded.
fn with_query(request: Request, path: &str) -> Request {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let map: std::collections::HashMap<_, _> =
        pairs.map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).collect();
    lambda_http::RequestExt::with_query_string_parameters(request, map)
}

/// What API Gateway makes of a request, in payload format 2.0.
pub fn call(method: &str, path: &str, header: Option<(&str, &str)>, body: &str, base64: bool) -> Value {
    let mut call = json!({
        "version": "2.0", "routeKey": format!("{method} {path}"), "rawPath": path, "rawQueryString": "a=1",
        "headers": {"content-type": "application/json; charset=utf-8"},
        "requestContext": {
            "accountId": "000000000000", "apiId": "api", "domainName": "front", "domainPrefix": "front", "requestId": "1", "routeKey": "$default",
            "stage": "$default", "time": "21/Nov/2026:00:00:00 +0000", "timeEpoch": 1_795_219_200_000_u64,
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "Stripe/1.0"},
        },
        "body": body, "isBase64Encoded": base64,
    });
    if let Some((name, value)) = header {
        call["headers"][name] = value.into();
    }
    call
}

pub fn read_answer(answer: Response<Body>) -> (u16, Value) {
    let bytes: &[u8] = answer.body();
    (answer.status().as_u16(), serde_json::from_slice(bytes).unwrap_or(Value::Null))
}

/// A sample event from `events/`, for this user.
pub fn sample(name: &str, user: &str) -> Value {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../events").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text.replace("user_123", user)).unwrap()
}

/// The same event under another event id.
pub fn with_id(mut event: Value, id: &str) -> Value {
    event["id"] = json!(id);
    event
}

/// A paid pack for a user: event and session named by `name`.
pub fn pack(name: &str, user: &str, quantity: u32) -> Value {
    let mut event = with_id(sample("checkout.session.completed.pack", user), &format!("evt_{name}"));
    let session = &mut event["data"]["object"];
    session["id"] = json!(format!("cs_test_{name}"));
    session["payment_intent"] = json!(format!("pi_{name}"));
    session["customer"] = json!(format!("cus_{}", user.replace('_', "")));
    session["metadata"] = json!({"user_id": user, "pack": "credits_1000", "quantity": quantity.to_string()});
    event
}
