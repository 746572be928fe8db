//! `admin`: the operators' API. Every route needs the bearer token of an operator with the role that the
//! route names (`route.rs`), except the dashboard's page and assets.
//!
//! | route | answer |
//! |---|---|
//! | `GET /admin/me` | the name and role of the token |
//! | `GET /admin/stripe/webhook-logs?status&type&user&id&from&to&limit&next` | events, newest first |
//! | `GET /admin/stripe/webhook-logs/{id}` | one event with its payload |
//! | `POST /admin/stripe/webhook-logs/{id}/dismiss` `{"reason":"…"}` | dismisses a parked or failed event |
//! | `GET /admin/stripe/event-counts?from&to&step` | the outcomes of events over time, for a chart |
//! | `GET /admin/stripe/parked` | parked and failed events, grouped by cause, with what frees each group |
//! | `POST /admin/stripe/retry-webhooks` | sends events of the log again, or processes Stripe's: see [`RetryRequest`] |
//! | `POST /admin/stripe/reconcile` | compares with Stripe and repairs: see [`ReconcileRequest`] |
//! | `GET /admin/stripe/gap?from&to` | which of Stripe's events the log does not have |
//! | `GET /admin/stripe/check-user/{id}` | explains a user: see `admin/user.rs` |
//! | `GET /admin/stripe/check-user/{id}/ledger?limit&next` | the user's ledger, newest first |
//! | `POST /admin/stripe/fix-user/{id}` | changes a user by hand: see [`FixRequest`] |
//! | `POST /admin/stripe/find` `{"text":"…"}` | finds a user by an id of any kind or an e-mail address |
//! | `GET /admin/stripe/subscription-health` | the health score, its deductions and the counts |
//! | `GET /admin/provisioning` | jobs for the app that used up their attempts |
//! | `POST /admin/provisioning` | runs a job again: see [`RunJobRequest`] |
//! | `GET /admin/orders?status&user&limit&next` | one-time orders, newest first |
//! | `GET /admin/orders/{cs}` | one order with its history |
//! | `GET /admin/catalog` | the stored catalog |
//! | `GET /admin/catalog/history?next` | the versions of the catalog, newest first |
//! | `GET /admin/catalog/history/{version}` | one version |
//! | `PUT /admin/catalog?apply&reason` | what a new catalog changes; with `apply=true` it replaces the stored |
//! | `GET /admin/audit?limit&next` | what operators did, newest first |
//! | `POST /admin/import` | brings users of another system: see [`ImportRequest`] |
//! | `GET /admin/import/{batch}` | how many rows of an import are done |
//! | `POST /admin/erase/{id}` | deletes what identifies a person: see [`EraseRequest`] |
//! | `GET /admin/export/users?next` | all accounts, page by page |
//! | `GET /admin/export/ledger?from&to&next` | all ledger entries, page by page |
//!
//! With `user`, the list of events starts with the user's open events. Counts and the gap cover the last day
//! by default, counts in steps of an hour. Reconciliation is a dry run by default. `GET /admin` and
//! `GET /admin/assets/{name}` serve the dashboard's page, style and script; they contain no data and need no
//! token.
//!
//! Times are RFC 3339 or a day (`2026-11-21`, meaning its start). **Invariant:** a change is written to the
//! audit before it is made, with the name of the token. **Invariant:** a failure of Stripe is part of an
//! answer, or the answer is 502.

mod audit;
mod catalog;
mod erase;
mod export;
mod find;
mod fix;
mod import;
mod link_and_send;
mod log;
mod orders;
mod page;
mod provisioning;
mod reconcile;
mod route;
mod tokens;
mod user;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lambda_http::http::{HeaderValue, Method, StatusCode};
use lambda_http::{Body, Request, RequestExt, Response};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

pub use self::erase::EraseRequest;
pub use self::fix::FixRequest;
pub use self::import::ImportRequest;
pub use self::log::{DismissRequest, RetryRequest};
pub use self::provisioning::RunJobRequest;
pub use self::reconcile::ReconcileRequest;
use self::route::Route;
pub use self::tokens::Tokens;
use crate::accounts::Accounts;
use crate::alerts::Alerts;
use crate::config::{AdminConfig, AdminToken};
use crate::health::HealthReader;
use crate::http::answer::{self, Problem, answer, problem};
use crate::http::path::{decoded_path, user_in_path};
use crate::outbox::Outbox;
use crate::process::Processor;
use crate::resend::redrive::Redrive;
use crate::resend::retry::Retrier;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk::{self, QueueAges};
use tallyhook_aws::store::{Store, items};
use tallyhook_aws::stripe::{RetryLimits, Stripe, StripeError};
use tallyhook_core::ids::{IdError, UserId};
use tallyhook_core::timestamp::Timestamp;

/// API Gateway waits 29 seconds for an answer. Work over many objects stops after this time, and the answer
/// says where to continue.
const TIME: Duration = Duration::from_secs(12);
/// The limits for one call of Stripe with its retries, well within API Gateway's limit.
const RETRY_LIMITS: RetryLimits = RetryLimits {
    attempts: 2,
    attempt_timeout: Duration::from_secs(6),
    call_timeout: Duration::from_secs(10),
    first_wait: Duration::from_millis(300),
};

/// The admin API.
#[derive(Clone)]
pub struct Admin {
    tokens: Arc<Tokens>,
    store: Store,
    retrier: Retrier,
    health: Arc<HealthReader>,
    /// `None` without a key; routes that need Stripe then answer with an error.
    stripe: Option<Stripe>,
    processor: Processor,
}

impl Admin {
    /// Builds the API from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(AdminConfig::from_env(env)?, &dynamodb, &sqs, QueueAges::new(env)))
    }

    /// Builds the API with given clients.
    pub fn new(config: AdminConfig, dynamodb: &sdk::DynamoDb, sqs: &sdk::Sqs, ages: QueueAges) -> Self {
        let store = Store::new(dynamodb.clone(), config.retry.accounts_table, config.retry.events_table);
        let queue = Queue::new(sqs.clone());
        let redrive = Redrive::new(queue.clone(), config.retry.queues);
        let outbox = Outbox::new(queue.clone(), config.retry.outbox);
        let catalog = config.retry.catalog;
        let accounts = Accounts::new(store.clone(), catalog, outbox);
        let retrier = Retrier::new(accounts.clone(), redrive.clone());
        let health = HealthReader::new(
            store.clone(),
            queue.clone(),
            ages,
            config.health.queues,
            config.health.dead_letter_queue_url,
            config.health.catalog.is_absent(),
            config.health.stripe.is_some(),
        );
        Self {
            tokens: Arc::new(Tokens::new(config.tokens, config.tokens_source)),
            processor: Processor {
                accounts,
                livemode: config.livemode,
                keep_payloads: config.keep_payloads,
                redrive,
                alerts: Alerts::new(queue, config.health.notify_queue_url),
            },
            store,
            retrier,
            health: Arc::new(health),
            stripe: config.stripe.map(|stripe| Stripe::of(stripe).with_retry_limits(RETRY_LIMITS)),
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every failure becomes an answer.
    pub async fn handle(&self, request: Request) -> Result<Response<Body>, lambda_http::Error> {
        let answer = match page::answer(&request) {
            Some(page) => page,
            None => match self.route(&request).await {
                Ok(body) => with_etag(&request, answer(StatusCode::OK, &body), &body),
                Err(problem) => problem.answer("ADMIN_FAILED"),
            },
        };
        Ok(answer::without_body_for_head(request.method() == Method::HEAD, answer))
    }

    async fn with_fresh_catalog(&self) -> Self {
        let processor = self.processor.with_fresh_catalog().await;
        let retrier = Retrier::new(processor.accounts.clone(), processor.redrive.clone());
        Self { processor, retrier, ..self.clone() }
    }

    async fn route(&self, request: &Request) -> Result<Value, Problem> {
        let now = clock::now_ms();
        // Check the token first, so that a caller without it cannot find out which routes exist.
        let operator = self.tokens.find(request.headers(), now).await.map_err(|refusal| {
            warn!(code = refusal.code(), path = request.uri().path(), "ADMIN_REFUSED");
            problem(refusal.status(), refusal.code(), refusal.message("ADMIN_API_TOKEN"))
        })?;
        let path = decoded_path(request);
        let route = Route::find(answer::method(request), &path)?;
        if operator.role < route.role() {
            warn!(code = "forbidden", path = request.uri().path(), "ADMIN_REFUSED");
            let (needed, has) = (route.role().as_str(), operator.role.as_str());
            return Err(forbidden(format!("this needs the role {needed}; your token has the role {has}")));
        }
        let user = |id: &str| user_in_path(id).map_err(|error| invalid_user(&error));
        let current = self.with_fresh_catalog().await;
        match route {
            Route::Me => Ok(json!({
                "name": operator.name, "role": operator.role.as_str(), "max_grant": operator.max_grant,
            })),
            Route::ListEvents => current.list(request, now).await,
            Route::ShowEvent(id) => current.show(id).await,
            Route::DismissEvent(id) => current.dismiss(id, read_body(request)?, &operator, now).await,
            Route::CountEvents => current.event_counts(request, now).await,
            Route::Parked => current.parked().await,
            Route::Retry => current.retry(read_body(request)?, &operator, now).await,
            Route::Reconcile => current.reconcile(read_body(request)?, &operator, now).await,
            Route::Gap => current.gap(request, now).await,
            Route::CheckUser(id) => current.check_user(&user(id)?, now).await,
            Route::Ledger(id) => current.ledger(&user(id)?, request).await,
            Route::FixUser(id) => current.fix_user(&user(id)?, request, &operator, now).await,
            Route::Find => current.find_user(read_body(request)?).await,
            Route::Health => current.health(now).await,
            Route::ListJobs => current.jobs().await,
            Route::RunJob => current.run_job(read_body(request)?, &operator, now).await,
            Route::ListOrders => current.list_orders(request).await,
            Route::ShowOrder(id) => current.show_order(id).await,
            Route::Audits => current.audits(request, now).await,
            Route::Catalog => current.show_catalog().await,
            Route::CatalogVersions => current.catalog_versions(request).await,
            Route::CatalogVersion(version) => current.catalog_version(version).await,
            Route::PutCatalog => current.put_catalog(request, &operator, now).await,
            Route::Import => current.import(read_body(request)?, &operator, now).await,
            Route::ImportProgress(batch) => current.import_progress(batch).await,
            Route::Erase(id) => current.erase(&user(id)?, read_body(request)?, &operator, now).await,
            Route::ExportUsers => current.export_users(request, now).await,
            Route::ExportLedger => current.export_ledger(request).await,
        }
    }

    async fn health(&self, now_ms: i64) -> Result<Value, Problem> {
        let (counts, health) = self.health.read(seconds(now_ms)).await?;
        let rate = health
            .success_permille
            .and_then(|rate| u16::try_from(rate).ok())
            .map(|rate| f64::from(rate) / 1000.0);
        Ok(json!({
            "score": health.score, "success_rate": rate, "deductions": health.deductions, "counts": counts,
        }))
    }

    /// Writes who makes a change and why. Called before the change is made. A request may name an actor; if
    /// it is not the token's name, it is kept as what the request claims.
    async fn audit(
        &self,
        operator: &AdminToken,
        claimed: Option<&str>,
        reason: Option<&str>,
        act: &str,
        target: &str,
        now_ms: i64,
    ) -> Result<(), Problem> {
        let (claimed, reason) =
            (short(claimed.unwrap_or_default().trim()), short(reason.unwrap_or_default()));
        let claimed = Some(claimed).filter(|claimed| !claimed.is_empty() && *claimed != operator.name);
        // The log line has no actor: names and addresses do not belong into a log, and the audit has them.
        info!(act, target, "ADMIN_CHANGE");
        let audit = items::audit(&operator.name, claimed.as_deref(), &reason, act, target, now_ms);
        Ok(self.store.commit(vec![audit]).await?)
    }

    fn stripe(&self) -> Result<&Stripe, Problem> {
        let message = "STRIPE_SECRET_KEY is not set, so Stripe cannot be asked (a restricted key that may \
                       read is enough)";
        self.stripe
            .as_ref()
            .ok_or_else(|| problem(StatusCode::SERVICE_UNAVAILABLE, "stripe_not_configured", message))
    }
}

/// Adds the header `ETag` to an answer with a catalog.
fn with_etag(request: &Request, mut response: Response<Body>, body: &Value) -> Response<Body> {
    let digest = body["digest"].as_str().filter(|_| {
        answer::method(request) == Method::GET && request.uri().path().starts_with("/admin/catalog")
    });
    if let Some(etag) = digest.and_then(|digest| HeaderValue::from_str(&format!("\"{digest}\"")).ok()) {
        response.headers_mut().insert("etag", etag);
    }
    response
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + TIME)
}

fn seconds(now_ms: i64) -> Timestamp {
    Timestamp::from_unix(now_ms.div_euclid(1000))
}

fn time(ms: i64) -> String {
    seconds(ms).to_string()
}

/// Removes control characters and shortens the text to 300 characters.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn not_found() -> Problem {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

fn forbidden(message: impl Into<String>) -> Problem {
    problem(StatusCode::FORBIDDEN, "forbidden", message)
}

fn bad(code: &'static str, message: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, code, message)
}

fn stripe_failed(error: &StripeError) -> Problem {
    problem(StatusCode::BAD_GATEWAY, "stripe_failed", error.to_string())
}

fn user_id(text: &str) -> Result<UserId, Problem> {
    UserId::new(text).map_err(|error| invalid_user(&error))
}

fn invalid_user(error: &IdError) -> Problem {
    bad("invalid_user_id", error.to_string())
}

/// Reads a JSON body; an empty body counts as an empty object.
fn read_body<T: DeserializeOwned + Default>(request: &Request) -> Result<T, Problem> {
    let bytes: &[u8] = request.body();
    match bytes {
        [] => Ok(T::default()),
        // Only an object: serde would also accept a list with the fields in order.
        bytes => serde_json::from_slice::<Map<String, Value>>(bytes)
            .and_then(|body| T::deserialize(Value::Object(body)))
            .map_err(|error| bad("invalid_body", error.to_string())),
    }
}

/// A query parameter that is not empty.
fn parameter(request: &Request, name: &str) -> Option<String> {
    request.query_string_parameters_ref()?.first(name).filter(|value| !value.is_empty()).map(str::to_owned)
}

fn limit(request: &Request, default: usize, max: usize) -> Result<usize, Problem> {
    match parameter(request, "limit") {
        None => Ok(default),
        Some(limit) => limit
            .parse()
            .ok()
            .filter(|limit| (1..=max).contains(limit))
            .ok_or_else(|| bad("invalid_limit", format!("limit must be a number from 1 to {max}"))),
    }
}

/// The times `from` and `to` in milliseconds, which select from the first to before the second.
fn range_ms(from: Option<&str>, to: Option<&str>) -> Result<(Option<i64>, Option<i64>), Problem> {
    let (from, to) = (time_ms("from", from)?, time_ms("to", to)?);
    match from.zip(to) {
        Some((from, to)) if from >= to => Err(bad("invalid_range", "from must be before to")),
        Some(_) | None => Ok((from, to)),
    }
}

fn time_ms(name: &str, text: Option<&str>) -> Result<Option<i64>, Problem> {
    let read = |text: &str| {
        let midnight = format!("{text}T00:00:00Z");
        let time: jiff::Timestamp = text.parse().or_else(|_| midnight.parse()).ok()?;
        Some(time.as_millisecond())
    };
    let wrong = || bad("invalid_time", format!("{name} must be like 2026-11-21T12:00:00Z or 2026-11-21"));
    text.map(|text| read(text).ok_or_else(wrong)).transpose()
}
