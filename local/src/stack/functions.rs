//! The functions of a deployment: the trigger of each, and how its handler is made from the environment.
//!
//! To add a function, add it to [`all`]. The stack then starts its handler or its shipped binary, and the
//! poller of its queue or its schedule.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use lambda_runtime::LambdaEvent;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_core::event::Family;
use tallyhook_service::alerts::notify::Notify;
use tallyhook_service::http::admin::Admin;
use tallyhook_service::http::api::Api;
use tallyhook_service::http::webhook::Webhook;
use tallyhook_service::outbox::provision::Provision;
use tallyhook_service::schedules::dead_letter::DeadLetter;
use tallyhook_service::schedules::health::HealthCheck;
use tallyhook_service::schedules::reconcile::Reconciler;
use tallyhook_service::schedules::retry::Retry;
use tallyhook_service::worker::Worker;

use super::lambda::{self, Handler, TIMEOUT};

/// The timeout of `retry`, as in `template.yaml`.
const RETRY_TIMEOUT: Duration = Duration::from_secs(300);
/// The timeout of `reconcile`, as in `template.yaml`.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(900);

/// What invokes a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// HTTP requests.
    Http,
    /// The queue `tallyhook-<name>`.
    Queue,
    /// A schedule with this period.
    Every(Duration),
}

type MakeHandler = Box<dyn Fn(&Env) -> anyhow::Result<Handler> + Send + Sync>;

/// A function of the deployment.
pub struct DeployedFunction {
    /// Its name: `invoice-paid`.
    pub name: &'static str,
    /// What invokes it.
    pub trigger: Trigger,
    /// The maximum duration of an invocation.
    pub timeout: Duration,
    make_handler: MakeHandler,
}

impl DeployedFunction {
    /// A handler that runs in this process.
    ///
    /// # Errors
    /// When a variable of the environment is missing or invalid.
    pub fn handler(&self, env: &Env) -> anyhow::Result<Handler> {
        (self.make_handler)(env)
    }
}

/// All functions.
pub fn all() -> Vec<DeployedFunction> {
    const MINUTE: u64 = 60;
    let worker = |family: Family| {
        let make = move |env: &Env| Worker::from_env(env, family);
        queue(family.as_str(), make, |worker, batch| async move { worker.handle(batch).await })
    };
    let mut all: Vec<DeployedFunction> = Family::ALL.into_iter().map(worker).collect();
    all.extend([
        runtime("stripe-webhook", Trigger::Http, TIMEOUT, Webhook::from_env, |webhook, event| async move {
            webhook.handle(event.payload).await
        }),
        http("api", Api::from_env, |api, request| async move { api.handle(request).await }),
        http("admin", Admin::from_env, |admin, request| async move { admin.handle(request).await }),
        queue("dead-letter", DeadLetter::from_env, |dead_letter, batch| async move {
            dead_letter.handle(batch).await
        }),
        queue(
            "provision",
            Provision::from_env,
            |provision, batch| async move { provision.handle(batch).await },
        ),
        queue("notify", Notify::from_env, |notify, batch| async move { notify.handle(batch).await }),
        schedule("retry", 15 * MINUTE, RETRY_TIMEOUT, Retry::from_env, |retry, event| async move {
            retry.handle(event.payload).await
        }),
        schedule("health", 60 * MINUTE, TIMEOUT, HealthCheck::from_env, |health, event| async move {
            health.handle(event.payload).await
        }),
        schedule(
            "reconcile",
            360 * MINUTE,
            RECONCILE_TIMEOUT,
            Reconciler::from_env,
            |reconciler, event| async move { reconciler.handle(event).await },
        ),
    ]);
    all
}

type FromEnv<T> = Result<T, ConfigError>;

fn http<T, A>(
    name: &'static str,
    make: impl Fn(&Env) -> FromEnv<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, lambda_http::Request) -> A + Clone + Send + Sync + 'static,
) -> DeployedFunction
where
    T: Send + Sync + 'static,
    A: Future<Output = Result<lambda_http::Response<lambda_http::Body>, lambda_http::Error>> + Send + 'static,
{
    let make = move |env: &Env| {
        let (function, handle) = (named(name, make(env))?, handle.clone());
        Ok(lambda::http(move |request| handle(Arc::clone(&function), request)))
    };
    DeployedFunction { name, trigger: Trigger::Http, timeout: TIMEOUT, make_handler: Box::new(make) }
}

fn queue<T, A>(
    name: &'static str,
    make: impl Fn(&Env) -> FromEnv<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, SqsEvent) -> A + Clone + Send + Sync + 'static,
) -> DeployedFunction
where
    T: Send + Sync + 'static,
    A: Future<Output = Result<SqsBatchResponse, lambda_runtime::Error>> + Send + 'static,
{
    runtime(name, Trigger::Queue, TIMEOUT, make, move |function, event| handle(function, event.payload))
}

fn schedule<T, A, R>(
    name: &'static str,
    seconds: u64,
    timeout: Duration,
    make: impl Fn(&Env) -> FromEnv<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, LambdaEvent<Value>) -> A + Clone + Send + Sync + 'static,
) -> DeployedFunction
where
    T: Send + Sync + 'static,
    R: Serialize + 'static,
    A: Future<Output = Result<R, lambda_runtime::Error>> + Send + 'static,
{
    runtime(name, Trigger::Every(Duration::from_secs(seconds)), timeout, make, handle)
}

/// A function that uses `lambda_runtime` directly.
fn runtime<T, E, A, R>(
    name: &'static str,
    trigger: Trigger,
    timeout: Duration,
    make: impl Fn(&Env) -> FromEnv<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, LambdaEvent<E>) -> A + Clone + Send + Sync + 'static,
) -> DeployedFunction
where
    T: Send + Sync + 'static,
    E: DeserializeOwned + Send + 'static,
    R: Serialize + 'static,
    A: Future<Output = Result<R, lambda_runtime::Error>> + Send + 'static,
{
    let make = move |env: &Env| {
        let (function, handle) = (named(name, make(env))?, handle.clone());
        Ok(lambda::runtime(timeout, move |event| handle(Arc::clone(&function), event)))
    };
    DeployedFunction { name, trigger, timeout, make_handler: Box::new(make) }
}

/// Adds the name of the function to an error.
fn named<T>(name: &str, result: FromEnv<T>) -> anyhow::Result<Arc<T>> {
    result.map(Arc::new).with_context(|| format!("the function {name} does not start"))
}
