//! A deployment with its own tables and queues.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use dynoxide::Database;
use local::sqs::Sqs;
use serde_json::json;
use tallyhook_aws::env::Env;
use tallyhook_aws::store::schema::create_tables;
use tallyhook_core::event::Family;
use tallyhook_service::alerts::notify::Notify;
use tallyhook_service::config::{
    AdminConfig, ApiConfig, DeadLetterConfig, HealthConfig, NotifyConfig, RetryConfig, WebhookConfig,
    WorkerConfig, queue_variable,
};
use tallyhook_service::http::admin::Admin;
use tallyhook_service::http::api::Api;
use tallyhook_service::http::webhook::Webhook;
use tallyhook_service::schedules::dead_letter::DeadLetter;
use tallyhook_service::schedules::health::HealthCheck;
use tallyhook_service::schedules::retry::Retry;
use tallyhook_service::worker::Worker;

use super::transport::{Call, Fault, Wire};
use super::{ADMIN_TOKEN, APP_TOKEN, SECRET};

const DEAD_LETTER_ARN: &str = "arn:aws:sqs:us-east-1:000000000000:dead-letter";

/// A deployment with its own tables and queues.
pub struct World {
    pub(super) wire: Wire,
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
    clock: Arc<AtomicI64>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With additional environment variables.
    pub async fn with(variables: &[(&str, &str)]) -> Self {
        let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let clock = Arc::new(AtomicI64::new(i64::try_from(start).unwrap()));
        let ticking = clock.clone();
        let sqs = Sqs::open(None, Arc::new(move || ticking.load(Ordering::SeqCst))).unwrap();
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
            ("CATALOG_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml")),
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
            let redrive = json!({"deadLetterTargetArn": DEAD_LETTER_ARN, "maxReceiveCount": "4"});
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
        crate::log_lines::compare_all();
        let world = Self::deploy(wire, env, dynamodb, sqs, clock, variables);
        world.calls();
        world
    }

    fn deploy(
        wire: Wire,
        mut env: Env,
        dynamodb: aws_sdk_dynamodb::Client,
        sqs: aws_sdk_sqs::Client,
        clock: Arc<AtomicI64>,
        variables: &[(&str, &str)],
    ) -> Self {
        for (name, value) in variables {
            env.set(*name, *value);
        }
        // Each function's calls are checked against its role in `template.yaml`.
        let clients = |function: &'static str| wire.clients(&env, Some(function));
        let ages = |function: &'static str| wire.queue_ages(&env, function);
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
            admin: Admin::new(AdminConfig::from_env(&env).unwrap(), &admin.0, &admin.1, ages("admin")),
            retry: Retry::new(RetryConfig::from_env(&env).unwrap(), retry.0, retry.1),
            dead_letter: DeadLetter::new(
                DeadLetterConfig::from_env(&env).unwrap(),
                dead_letter.0,
                dead_letter.1,
            ),
            health: HealthCheck::new(
                HealthConfig::from_env(&env).unwrap(),
                health.0,
                health.1,
                ages("health"),
            ),
            notify: Notify::new(NotifyConfig::from_env(&env).unwrap(), clients("notify").0),
            workers: Family::ALL.into_iter().map(worker).collect(),
            wire,
            env,
            dynamodb,
            sqs,
            clock,
        }
    }

    /// With the queue of `provision`, and additional environment variables.
    pub async fn provisioning(variables: &[(&str, &str)]) -> Self {
        let world = Self::new().await;
        let redrive = json!({"deadLetterTargetArn": DEAD_LETTER_ARN, "maxReceiveCount": "4"});
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

    /// The same tables and queues with changed environment variables.
    pub fn redeploy(self, variables: &[(&str, &str)]) -> Self {
        let Self { wire, env, dynamodb, sqs, clock, .. } = self;
        Self::deploy(wire, env, dynamodb, sqs, clock, variables)
    }

    /// Clients for this function. Their calls are recorded and checked against its role.
    pub fn clients(&self, function: &'static str) -> (aws_sdk_dynamodb::Client, aws_sdk_sqs::Client) {
        self.wire.clients(&self.env, Some(function))
    }

    pub fn worker(&self, family: Family) -> Arc<Worker> {
        self.workers[&family].clone()
    }

    /// Takes the calls recorded so far.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.wire.calls.lock().unwrap())
    }

    /// Records calls without their requests from here on, to save memory in tests with many calls.
    pub fn count_only(&self) {
        self.wire.counts_only.store(true, Ordering::Relaxed);
    }

    /// Takes the names of the calls recorded so far.
    pub fn operations(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.operation).collect()
    }

    /// From here on the plan decides which calls fail.
    pub fn fault(&self, plan: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        *self.wire.faults.lock().unwrap() = Some(Box::new(plan));
    }

    /// No call fails from here on.
    pub fn heal(&self) {
        *self.wire.faults.lock().unwrap() = None;
    }

    /// Runs a handler to its end, or drops it at a call that never ends, like an instance that is killed.
    pub async fn until_hung<T>(&self, handler: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.wire.hung.notified() => None,
            answer = handler => Some(answer),
        }
    }

    /// Moves the queues' clock forward and wakes long polls.
    pub fn pass_seconds(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1000, Ordering::SeqCst);
        self.wire.sqs.wake();
    }
}
