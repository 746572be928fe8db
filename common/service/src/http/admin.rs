//! `admin`: what an operator asks and does. Bearer token `ADMIN_API_TOKEN` on every route but the dashboard's
//! own page.
//!
//! | route | answer |
//! |---|---|
//! | `GET /admin/stripe/webhook-logs?status&type&user&id&from&to&limit&next` | events, newest first; with `user` what is open of theirs comes first |
//! | `GET /admin/stripe/webhook-logs/{id}` | one event with its payload |
//! | `GET /admin/stripe/event-counts?from&to&step` | how events ended over time, for a chart; the last day by the hour unless said |
//! | `GET /admin/stripe/parked` | what is parked or failed, by cause, with the one act that frees each group |
//! | `POST /admin/stripe/retry-webhooks` | sends events again, of the log or of Stripe's: see [`Again`] |
//! | `POST /admin/stripe/reconcile` | compares with Stripe, and repairs unless it is a dry run, which it is unless said: see [`Comparison`] |
//! | `GET /admin/stripe/gap?from&to` | how many events Stripe lists and how many of them the log has, and which it has not; the last day unless said |
//! | `GET /admin/stripe/check-user/{id}` | explains a user: see `admin/user.rs` |
//! | `GET /admin/stripe/check-user/{id}/ledger?limit&next` | the user's ledger, newest first |
//! | `POST /admin/stripe/fix-user/{id}` | sets a user right: see [`FixRequest`] |
//! | `POST /admin/stripe/find` `{"text":"…"}` | who that is: a user, `cus_…`, `sub_…`, `evt_…` or an e-mail address |
//! | `GET /admin/stripe/subscription-health` | the score, its deductions, what was counted |
//! | `GET /admin/provisioning` | what the app could not be told: jobs that used up their attempts |
//! | `POST /admin/provisioning` | has one done again: see [`RunAgain`] |
//! | `GET /admin/audit?limit&next` | what operators did, newest first |
//!
//! `GET /admin` and `GET /admin/assets/{name}` are the dashboard's page, style and script: no token, as they
//! show nothing.
//!
//! Times are RFC 3339 or a day (`2026-11-21`, its start). **Invariant:** a change is in the audit before it
//! is made. **Invariant:** that Stripe does not answer is part of an answer, or a 502; never a crash.

mod audit;
mod find;
mod fix;
mod log;
mod page;
mod provisioning;
mod reconcile;
mod user;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lambda_http::http::{Method, StatusCode};
use lambda_http::{Body, Request, RequestExt, Response};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tracing::{info, warn};

pub use self::fix::FixRequest;
pub use self::log::Again;
pub use self::provisioning::RunAgain;
pub use self::reconcile::Comparison;
use crate::accounts::Accounts;
use crate::config::AdminConfig;
use crate::health::HealthReader;
use crate::http::answer::{Problem, answer, percent_decode, problem};
use crate::http::token;
use crate::outbox::Outbox;
use crate::process::Processor;
use crate::resend::redrive::Redrive;
use crate::resend::retry::Retrier;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::{Store, items};
use tallyhook_aws::stripe::{Patience, Stripe, StripeError};
use tallyhook_core::event::Family;
use tallyhook_core::ids::UserId;
use tallyhook_core::timestamp::Timestamp;

/// API Gateway waits 29 seconds for an answer: work over many objects stops after this and says where to go
/// on.
const TIME: Duration = Duration::from_secs(12);
/// One call of Stripe's, with its repetitions, has to end well before that.
const PATIENCE: Patience = Patience {
    attempts: 2,
    attempt_timeout: Duration::from_secs(6),
    call_timeout: Duration::from_secs(10),
    first_wait: Duration::from_millis(300),
};

/// The admin API.
pub struct Admin {
    token: Option<String>,
    store: Store,
    retrier: Retrier,
    health: HealthReader,
    /// `None` without a key: what needs Stripe then says so.
    stripe: Option<Stripe>,
    processor: Processor,
    queue: Queue,
    queues: BTreeMap<Family, String>,
}

impl Admin {
    /// Builds it from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(AdminConfig::from_env(env)?, &dynamodb, &sqs))
    }

    /// The same over given clients.
    pub fn new(config: AdminConfig, dynamodb: &sdk::DynamoDb, sqs: &sdk::Sqs) -> Self {
        let store = Store::new(dynamodb.clone(), config.retry.accounts_table, config.retry.events_table);
        let (queue, queues) = (Queue::new(sqs.clone()), config.retry.queues);
        let redrive = Redrive::new(queue.clone(), queues.clone());
        let outbox = Outbox::new(queue.clone(), config.retry.outbox);
        let catalog = config.retry.catalog;
        let accounts = Accounts { store: store.clone(), catalog, outbox };
        let retrier = Retrier::new(accounts.clone(), redrive.clone());
        let health = HealthReader::new(
            store.clone(),
            queue.clone(),
            config.health.queues,
            config.health.dead_letter_queue_url,
        );
        Self {
            token: config.admin_token,
            processor: Processor {
                accounts,
                livemode: config.livemode,
                keep_payloads: config.keep_payloads,
                redrive,
            },
            store,
            retrier,
            health,
            stripe: config.stripe.map(|stripe| Stripe::of(stripe).with_patience(PATIENCE)),
            queue,
            queues,
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every failure is an answer.
    pub async fn handle(&self, request: Request) -> Result<Response<Body>, lambda_http::Error> {
        if let Some(page) = page::answer(&request) {
            return Ok(page);
        }
        Ok(match self.route(&request).await {
            Ok(body) => answer(StatusCode::OK, &body),
            Err(problem) => problem.answer("ADMIN_FAILED"),
        })
    }

    async fn route(&self, request: &Request) -> Result<Value, Problem> {
        let path = request.uri().path().to_owned();
        // Before anything else: a route that is not there is not told to those who may not ask.
        token::check(request.headers(), self.token.as_deref()).map_err(|refusal| {
            warn!(code = refusal.code(), path, "ADMIN_REFUSED");
            problem(refusal.status(), refusal.code(), refusal.message("ADMIN_API_TOKEN"))
        })?;
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let ["admin", parts @ ..] = parts.as_slice() else { return Err(not_found()) };
        let now = clock::now_ms();
        match (request.method(), parts) {
            (&Method::GET, ["stripe", "webhook-logs"]) => self.list(request, now).await,
            (&Method::GET, ["stripe", "webhook-logs", id]) => self.show(id).await,
            (&Method::GET, ["stripe", "event-counts"]) => self.event_counts(request, now).await,
            (&Method::GET, ["stripe", "parked"]) => self.parked().await,
            (&Method::POST, ["stripe", "retry-webhooks"]) => self.retry(read_body(request)?, now).await,
            (&Method::POST, ["stripe", "reconcile"]) => self.reconcile(read_body(request)?, now).await,
            (&Method::GET, ["stripe", "gap"]) => self.gap(request, now).await,
            // API Gateway hands the path over decoded: a user id may have a slash.
            (&Method::GET, ["stripe", "check-user", id @ .., "ledger"]) if !id.is_empty() => {
                self.ledger(&user(id)?, request).await
            }
            (&Method::GET, ["stripe", "check-user", id @ ..]) => self.check_user(&user(id)?, now).await,
            (&Method::POST, ["stripe", "fix-user", id @ ..]) => self.fix_user(&user(id)?, request, now).await,
            (&Method::POST, ["stripe", "find"]) => self.find_user(read_body(request)?).await,
            (&Method::GET, ["stripe", "subscription-health"]) => self.health(now).await,
            (&Method::GET, ["provisioning"]) => self.jobs().await,
            (&Method::POST, ["provisioning"]) => self.run_job(read_body(request)?, now).await,
            (&Method::GET, ["audit"]) => self.audits(request, now).await,
            (
                _,
                [
                    "stripe",
                    "webhook-logs"
                    | "event-counts"
                    | "parked"
                    | "retry-webhooks"
                    | "reconcile"
                    | "gap"
                    | "find"
                    | "subscription-health",
                ]
                | ["stripe", "webhook-logs", _]
                | ["stripe", "check-user" | "fix-user", ..]
                | ["audit" | "provisioning"],
            ) => Err(problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path has another method",
            )),
            _ => Err(not_found()),
        }
    }

    async fn health(&self, now_ms: i64) -> Result<Value, Problem> {
        let (counts, health) = self.health.look(seconds(now_ms)).await?;
        let rate = health
            .success_permille
            .and_then(|rate| u16::try_from(rate).ok())
            .map(|rate| f64::from(rate) / 1000.0);
        Ok(
            serde_json::json!({"score": health.score, "success_rate": rate, "deductions": health.deductions, "counts": counts}),
        )
    }

    /// Who does what and why, before it is done.
    async fn audit(
        &self,
        actor: Option<&str>,
        reason: Option<&str>,
        act: &str,
        target: &str,
        now_ms: i64,
    ) -> Result<(), Problem> {
        let (actor, reason) = (short(actor.unwrap_or("admin")), short(reason.unwrap_or_default()));
        // Who it was is in the audit: a name or an address does not belong into a log.
        info!(act, target, "ADMIN_CHANGE");
        Ok(self.store.commit(vec![items::audit(&actor, &reason, act, target, now_ms)]).await?)
    }

    fn stripe(&self) -> Result<&Stripe, Problem> {
        let message = "STRIPE_SECRET_KEY is not set, so Stripe cannot be asked (a restricted key that may read is enough)";
        self.stripe
            .as_ref()
            .ok_or_else(|| problem(StatusCode::SERVICE_UNAVAILABLE, "stripe_not_configured", message))
    }
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

/// One line of at most 300 characters.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn not_found() -> Problem {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

fn bad(code: &'static str, message: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, code, message)
}

fn stripe_failed(error: &StripeError) -> Problem {
    problem(StatusCode::BAD_GATEWAY, "stripe_failed", error.to_string())
}

/// The user that the rest of a path names.
fn user(parts: &[&str]) -> Result<UserId, Problem> {
    user_id(&percent_decode(&parts.join("/")).unwrap_or_default())
}

fn user_id(text: &str) -> Result<UserId, Problem> {
    UserId::new(text)
        .map_err(|_| bad("invalid_user_id", "a user id has 1 to 128 characters and no control characters"))
}

/// A body of JSON; none is an empty object.
fn read_body<T: DeserializeOwned + Default>(request: &Request) -> Result<T, Problem> {
    let bytes: &[u8] = request.body();
    match bytes {
        [] => Ok(T::default()),
        // An object: serde would also take a list for the fields in their order.
        bytes => serde_json::from_slice::<Map<String, Value>>(bytes)
            .and_then(|body| T::deserialize(Value::Object(body)))
            .map_err(|error| bad("invalid_body", error.to_string())),
    }
}

/// A parameter of the query that is not empty.
fn parameter(request: &Request, name: &str) -> Option<String> {
    request.query_string_parameters_ref()?.first(name).filter(|value| !value.is_empty()).map(str::to_owned)
}

fn limit(request: &Request, default: usize, most: usize) -> Result<usize, Problem> {
    match parameter(request, "limit") {
        None => Ok(default),
        Some(limit) => limit
            .parse()
            .ok()
            .filter(|limit| (1..=most).contains(limit))
            .ok_or_else(|| bad("invalid_limit", format!("limit must be a number from 1 to {most}"))),
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
