//! The functions of a deployment, in one list: what each is invoked by, and how it is made from its
//! environment.
//!
//! A new function is a line of [`all`]; the stack does the rest: an instance in this process or as its
//! shipped binary, the poller of its queue, its schedule.

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
use tallyhook_service::outbox::provision::Provision;
use tallyhook_service::reconcile::Reconciler;
use tallyhook_service::schedules::dead_letter::DeadLetter;
use tallyhook_service::schedules::health::HealthCheck;
use tallyhook_service::schedules::retry::Retry;
use tallyhook_service::webhook::Webhook;
use tallyhook_service::worker::Worker;

use super::lambda::{self, Handler, TIMEOUT};

/// How long `retry` may take, as `Timeout` in the template.
const RETRY_TIMEOUT: Duration = Duration::from_secs(300);
/// The same for `reconcile`.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(900);

/// What invokes a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Requests of the front.
    Http,
    /// The queue `tallyhook-<name>`.
    Queue,
    /// The time.
    Every(Duration),
}

type Make = Box<dyn Fn(&Env) -> anyhow::Result<Handler> + Send + Sync>;

/// A function of the deployment.
pub struct Part {
    /// Its name: `invoice-paid`.
    pub name: &'static str,
    /// What invokes it.
    pub trigger: Trigger,
    /// How long an invocation may take.
    pub timeout: Duration,
    make: Make,
}

impl Part {
    /// Its handler, in this process.
    ///
    /// # Errors
    /// When its environment makes no sense.
    pub fn handler(&self, env: &Env) -> anyhow::Result<Handler> {
        (self.make)(env)
    }
}

/// All of them.
pub fn all() -> Vec<Part> {
    const MINUTE: u64 = 60;
    let worker = |family: Family| {
        let make = move |env: &Env| Worker::from_env(env, family);
        queue(family.as_str(), make, |worker, batch| async move { worker.handle(batch).await })
    };
    let mut all: Vec<Part> = Family::ALL.into_iter().map(worker).collect();
    all.extend([
        runtime("stripe-webhook", Trigger::Http, TIMEOUT, Webhook::from_env, |it, call| async move {
            it.handle(call.payload).await
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

type Made<T> = Result<T, ConfigError>;

fn http<T, A>(
    name: &'static str,
    make: impl Fn(&Env) -> Made<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, lambda_http::Request) -> A + Clone + Send + Sync + 'static,
) -> Part
where
    T: Send + Sync + 'static,
    A: Future<Output = Result<lambda_http::Response<lambda_http::Body>, lambda_http::Error>> + Send + 'static,
{
    let make = move |env: &Env| {
        let (function, handle) = (made(name, make(env))?, handle.clone());
        Ok(lambda::http(move |request| handle(Arc::clone(&function), request)))
    };
    Part { name, trigger: Trigger::Http, timeout: TIMEOUT, make: Box::new(make) }
}

fn queue<T, A>(
    name: &'static str,
    make: impl Fn(&Env) -> Made<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, SqsEvent) -> A + Clone + Send + Sync + 'static,
) -> Part
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
    make: impl Fn(&Env) -> Made<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, LambdaEvent<Value>) -> A + Clone + Send + Sync + 'static,
) -> Part
where
    T: Send + Sync + 'static,
    R: Serialize + 'static,
    A: Future<Output = Result<R, lambda_runtime::Error>> + Send + 'static,
{
    runtime(name, Trigger::Every(Duration::from_secs(seconds)), timeout, make, handle)
}

/// A function over `lambda_runtime` itself.
fn runtime<T, E, A, R>(
    name: &'static str,
    trigger: Trigger,
    timeout: Duration,
    make: impl Fn(&Env) -> Made<T> + Send + Sync + 'static,
    handle: impl Fn(Arc<T>, LambdaEvent<E>) -> A + Clone + Send + Sync + 'static,
) -> Part
where
    T: Send + Sync + 'static,
    E: DeserializeOwned + Send + 'static,
    R: Serialize + 'static,
    A: Future<Output = Result<R, lambda_runtime::Error>> + Send + 'static,
{
    let make = move |env: &Env| {
        let (function, handle) = (made(name, make(env))?, handle.clone());
        Ok(lambda::runtime(timeout, move |event| handle(Arc::clone(&function), event)))
    };
    Part { name, trigger, timeout, make: Box::new(make) }
}

fn made<T>(name: &str, made: Made<T>) -> anyhow::Result<Arc<T>> {
    made.map(Arc::new).with_context(|| format!("the function {name} does not start"))
}
