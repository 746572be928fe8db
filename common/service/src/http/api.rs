//! `api`: the app's API, and the pages for customers who return from checkout. Routes need the bearer token
//! `APP_API_TOKEN` unless noted.
//!
//! | route | answer |
//! |---|---|
//! | `PUT /users/{id}` | creates the account with its signup credits, or returns the existing account |
//! | `GET /users/{id}` | the account; 404 without an account |
//! | `GET /users/{id}/check?feature&used&credits` | whether a feature or a spend is allowed: see `api/check.rs` |
//! | `GET /users/{id}/ledger?limit&next` | entries, newest first |
//! | `POST /users/{id}/credits/consume` | spends credits |
//! | `GET /users/{id}/orders/{cs}` | one order with its history |
//! | `PATCH /users/{id}/orders/{cs}` | changes an order: see `api/orders.rs` |
//! | `POST /users/{id}/credits/holds` | reserves credits: see `api/holds.rs` |
//! | `POST /users/{id}/credits/holds/{hold}/commit` | spends credits of a hold |
//! | `POST /users/{id}/credits/holds/{hold}/release` | ends a hold without a spend |
//! | `POST /users/{id}/credits/refund` | gives a spend back |
//! | `POST /users/{id}/portal` | creates a session of Stripe's customer portal: see `api/billing_portal.rs` |
//! | `POST /checkout-sessions` | creates a checkout session: see `api/checkout.rs` |
//! | `GET /catalog` | no token: what is sold, with Stripe's amounts: see `api/catalog.rs` |
//! | `GET /openapi.json` | no token: this API and the operator's as OpenAPI 3.1 |
//! | `GET /portal/setup-status?session_id` | no token: the state of payment and setup: see `api/setup_status.rs` |
//! | `POST /portal/password-set` `{"user_id":"…"}` | stores that the user has a password |
//! | `POST /portal/provisioning` `{"user_id":"…","state":"…"}` | stores how far the app has set a user up |
//! | `GET /portal/status?session_id` | no token: the status page |
//!
//! Consuming takes `{"amount":10}` and the header `Idempotency-Key`. It answers 200 with the balance, 402
//! when the balance is too low, and 409 when the key was used with another amount.

mod billing_portal;
mod catalog;
mod check;
mod checkout;
mod customer;
mod holds;
mod orders;
mod prices;
mod setup_status;
mod stripe_request;
mod tokens;

pub(crate) use self::orders::order_with_history;
pub use self::tokens::AppTokens;

use std::sync::Arc;
use std::time::Duration;

use lambda_http::http::{Method, StatusCode};
use lambda_http::{Body, Request, RequestExt, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::account_view::account_view;
use crate::accounts::{Accounts, load_account};
use crate::alerts::Alerts;
use crate::config::ApiConfig;
use crate::http::answer::{self, Problem, answer, problem, raw_answer};
use crate::http::path::{UserRoute, decoded_path, user_in_path, user_route};
use crate::outbox::Outbox;
use crate::process::Processor;
use crate::resend::redrive::Redrive;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::stripe::{RetryLimits, Stripe};
use tallyhook_core::account::{Account, Cause, Fact};
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::{IdError, IdProblem, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey, Taken};
use tallyhook_core::timestamp::Timestamp;

/// The limits for one call of Stripe, while a customer or the app waits for our answer.
const RETRY_LIMITS: RetryLimits = RetryLimits {
    attempts: 2,
    attempt_timeout: Duration::from_secs(8),
    call_timeout: Duration::from_secs(12),
    first_wait: Duration::from_millis(300),
};

/// The most ledger entries on a page, and the default.
const PAGE: usize = 50;

/// The largest body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The answer of `/openapi.json`.
pub const OPENAPI: &str = include_str!("api/openapi.json");

/// The app's API.
#[derive(Clone)]
pub struct Api {
    config: ApiConfig,
    store: Store,
    processor: Processor,
    stripe: Option<Stripe>,
    prices: Arc<prices::Prices>,
    amounts: Arc<catalog::Amounts>,
}

impl Api {
    /// Builds the API from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(ApiConfig::from_env(env)?, dynamodb, sqs))
    }

    /// Builds the API with given clients.
    pub fn new(config: ApiConfig, dynamodb: sdk::DynamoDb, sqs: sdk::Sqs) -> Self {
        let store = Store::new(dynamodb, config.accounts_table.clone(), config.events_table.clone());
        let queue = Queue::new(sqs);
        let outbox = Outbox::new(queue.clone(), config.outbox.clone());
        let redrive = Redrive::new(queue.clone(), config.queues.clone());
        let alerts = Alerts::new(queue, config.notify_queue_url.clone());
        let (catalog, livemode, keep_payloads) =
            (config.catalog.clone(), config.livemode, config.keep_payloads);
        let accounts = Accounts::new(store.clone(), catalog, outbox);
        let processor = Processor { accounts, livemode, keep_payloads, redrive, alerts };
        let stripe = config.stripe.clone().map(|stripe| Stripe::of(stripe).with_retry_limits(RETRY_LIMITS));
        Self { config, stripe, store, processor, prices: Arc::default(), amounts: Arc::default() }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every failure becomes an answer.
    pub async fn handle(&self, request: Request) -> Result<Response<Body>, lambda_http::Error> {
        let answer = match self.route(&request).await {
            Ok(answer) => answer,
            Err(problem) => problem.answer("API_FAILED"),
        };
        Ok(answer::without_body_for_head(request.method() == Method::HEAD, answer))
    }

    async fn with_fresh_catalog(&self) -> Self {
        let processor = self.processor.with_fresh_catalog().await;
        let config = ApiConfig { catalog: Arc::clone(&processor.accounts.catalog), ..self.config.clone() };
        Self { config, processor, ..self.clone() }
    }

    /// The same with the catalog that is in force.
    async fn with_catalog(&self) -> Result<Self, Problem> {
        let current = self.with_fresh_catalog().await;
        if current.config.catalog.is_absent() {
            let message = "no catalog is stored: tallyhook catalog push catalog.toml --apply --reason first";
            return Err(problem(StatusCode::SERVICE_UNAVAILABLE, "no_catalog", message));
        }
        Ok(current)
    }

    async fn route(&self, request: &Request) -> Result<Response<Body>, Problem> {
        let path = decoded_path(request);
        let method = answer::method(request);
        if let Some(rest) = path.strip_prefix("/users/") {
            self.check_token(request).await?;
            let makes = matches!(user_route(rest).1, UserRoute::Holds);
            let status = if makes { StatusCode::CREATED } else { StatusCode::OK };
            return Ok(answer(status, &self.with_catalog().await?.users(request, method, rest).await?));
        }
        let body = match (path.trim_matches('/'), method) {
            ("portal/status", &Method::GET) => return Ok(self.status_page(request)),
            ("openapi.json", &Method::GET) => return Ok(raw_answer(OPENAPI)),
            ("catalog", &Method::GET) => {
                return Ok(self.with_catalog().await?.show_catalog(request).await);
            }
            ("portal/setup-status", &Method::GET) => self.setup_status(request).await?,
            ("portal/password-set", &Method::POST) => {
                self.check_token(request).await?;
                self.password_set(request).await?
            }
            ("portal/provisioning", &Method::POST) => {
                self.check_token(request).await?;
                self.report_provisioning(request).await?
            }
            ("checkout-sessions", &Method::POST) => {
                self.check_token(request).await?;
                self.with_catalog().await?.create_checkout(request).await?
            }
            ("portal/status" | "portal/setup-status" | "openapi.json" | "catalog", _) => {
                return Err(Problem::Method("GET, HEAD"));
            }
            ("portal/password-set" | "portal/provisioning" | "checkout-sessions", _) => {
                return Err(Problem::Method("POST"));
            }
            _ => return Err(not_found()),
        };
        Ok(answer(StatusCode::OK, &body))
    }

    async fn check_token(&self, request: &Request) -> Result<(), Problem> {
        let checked = self.config.tokens.check(request.headers(), clock::now_ms()).await;
        checked
            .map_err(|refusal| problem(refusal.status(), refusal.code(), refusal.message(tokens::VARIABLE)))
    }

    /// Answers a request for `/users/` and `path`.
    async fn users(&self, request: &Request, method: &Method, path: &str) -> Result<Value, Problem> {
        let user = |id: &str| user_in_path(id).map_err(|error| invalid_user(&error));
        if method == Method::PUT {
            // The whole rest of the path is the id, so an id that ends like a route is refused by name.
            return self.sign_up(&user(path)?).await;
        }
        let (id, route) = user_route(path);
        let user = user(id)?;
        match (route, method) {
            (UserRoute::Account, &Method::GET) => self.show(&user).await,
            (UserRoute::Ledger, &Method::GET) => self.ledger(&user, request).await,
            (UserRoute::Consume, &Method::POST) => self.consume(&user, request).await,
            (UserRoute::Order(order), &Method::GET) => self.show_order(&user, order).await,
            (UserRoute::Order(order), &Method::PATCH) => self.change_order(&user, order, request).await,
            (UserRoute::Order(_), _) => Err(Problem::Method("GET, HEAD, PATCH")),
            (UserRoute::Check, &Method::GET) => self.check(&user, request).await,
            (UserRoute::Holds, &Method::POST) => self.open_hold(&user, request).await,
            (UserRoute::CommitHold(hold), &Method::POST) => self.commit_hold(&user, hold, request).await,
            (UserRoute::ReleaseHold(hold), &Method::POST) => self.release_hold(&user, hold).await,
            (UserRoute::GiveBack, &Method::POST) => self.give_back(&user, request).await,
            (UserRoute::Portal, &Method::POST) => self.open_portal(&user, request).await,
            (UserRoute::Account, _) => Err(Problem::Method("GET, HEAD, PUT")),
            (UserRoute::Ledger | UserRoute::Check, _) => Err(Problem::Method("GET, HEAD")),
            (
                UserRoute::Consume
                | UserRoute::Holds
                | UserRoute::CommitHold(_)
                | UserRoute::ReleaseHold(_)
                | UserRoute::GiveBack
                | UserRoute::Portal,
                _,
            ) => Err(Problem::Method("POST")),
        }
    }

    async fn sign_up(&self, user: &UserId) -> Result<Value, Problem> {
        let key = LedgerKey::signup();
        let newcomer = Key::Newcomer(user.clone());
        let keys = [Key::entry(user, &key), newcomer.clone()];
        let now = clock::now();
        let accounts = &self.processor.accounts;
        let mut change = accounts.change(user, &keys, now);
        let freed = loop {
            let account = change.read().await?;
            let waiting = change.items.get(&newcomer).map(items::waiting).unwrap_or_default();
            if account.recorded.contains_key(&key) {
                break waiting;
            }
            let cause = Cause { by: "app".to_owned(), adjust_key: key.adjusted(), created: now };
            let signed_up = account
                .evolve(vec![Fact::Signup], &cause, &accounts.catalog, now)
                .map_err(|conflict| problem(StatusCode::CONFLICT, "conflict", conflict.to_string()))?;
            if change.commit(&signed_up, Vec::new()).await? {
                break waiting;
            }
        };
        self.processor.redrive.send_freed(&self.store, &freed).await;
        self.show(user).await
    }

    async fn show(&self, user: &UserId) -> Result<Value, Problem> {
        let (account, updated_at) = self.load(user).await?;
        if account.version == 0 {
            return Err(no_user());
        }
        let orders = self.store.orders(user).await?;
        let mut view = account_view(&account, &self.config.catalog, clock::now());
        view["orders"] = json!(orders);
        view["updated_at"] = json!(updated_at.map(|at| at.to_string()));
        Ok(view)
    }

    async fn ledger(&self, user: &UserId, request: &Request) -> Result<Value, Problem> {
        let query = request.query_string_parameters();
        let limit = match query.first("limit") {
            None => PAGE,
            Some(text) => text.parse().ok().filter(|limit| (1..=PAGE).contains(limit)).ok_or_else(|| {
                problem(
                    StatusCode::BAD_REQUEST,
                    "invalid_limit",
                    format!("limit must be a number from 1 to {PAGE}"),
                )
            })?,
        };
        let now = clock::now();
        let mut entries = Vec::new();
        let mut next = match query.first("next") {
            // DynamoDB would refuse a longer key.
            Some(key) if key.len() > 900 => return Err(no_entry()),
            Some(key) => Some(LedgerKey::from_text(key)),
            None => {
                let (account, _) = self.load(user).await?;
                if account.version == 0 {
                    return Err(no_user());
                }
                // What time alone has changed is in the ledger before it is written.
                let due = LedgerKey::due(now);
                let cause = Cause { by: "schedule".to_owned(), adjust_key: due, created: now };
                let catalog = &self.processor.accounts.catalog;
                let due = account.evolve(Vec::new(), &cause, catalog, now).map(|change| change.entries);
                entries.extend(due.unwrap_or_default().iter().rev().map(entry_view));
                account.state.last_entry
            }
        };
        while let Some(key) = next.take_if(|_| entries.len() < limit) {
            let Some(entry) = self.processor.accounts.entry(user, &key).await? else {
                return Err(no_entry());
            };
            next.clone_from(&entry.previous);
            entries.push(entry_view(&entry));
        }
        Ok(json!({"entries": entries, "next": next}))
    }

    async fn consume(&self, user: &UserId, request: &Request) -> Result<Value, Problem> {
        let key = idempotency_key(request)?;
        let amount = amount(request)?;
        let key = LedgerKey::consume(&key);
        let now = clock::now();
        let accounts = &self.processor.accounts;
        let mut change = accounts.change(user, &[Key::entry(user, &key)], now);
        let answer = |credits| json!({"user_id": user, "consumed": amount, "credits": credits});
        loop {
            let account = change.read().await?;
            if account.version == 0 {
                return Err(no_user());
            }
            if let Some(entry) = account.recorded.get(&key) {
                if entry.worth != amount {
                    let message = format!("this Idempotency-Key was used for {} credits", entry.worth);
                    return Err(problem(StatusCode::CONFLICT, "idempotency_key_reused", message));
                }
                return Ok(answer(entry.balance));
            }
            let Some(spent) = account.consume(amount, key.clone(), &accounts.catalog, now) else {
                return Err(insufficient(account.state.available(&accounts.catalog.policy, now), amount));
            };
            if change.commit(&spent, Vec::new()).await? {
                return Ok(answer(spent.state.booked));
            }
        }
    }

    async fn load(&self, user: &UserId) -> Result<(Account, Option<Timestamp>), StoreError> {
        let key = Key::Account(user.clone());
        let items = self.store.load([key.clone()]).await?;
        let updated_at = items.get(&key).and_then(items::updated_at);
        Ok((load_account(user, &items)?, updated_at))
    }
}

fn not_found() -> Problem {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

fn no_user() -> Problem {
    problem(StatusCode::NOT_FOUND, "user_not_found", "no account has this id; PUT /users/{id} creates it")
}

fn insufficient(available: Credits, needed: Credits) -> Problem {
    let message = format!("{available} credits are available, {needed} are needed");
    problem(StatusCode::PAYMENT_REQUIRED, "insufficient_credits", message)
}

fn no_entry() -> Problem {
    problem(StatusCode::BAD_REQUEST, "invalid_next", "next must be what the last page gave")
}

fn user_id(text: &str) -> Result<UserId, Problem> {
    UserId::new(text).map_err(|error| invalid_user(&error))
}

fn invalid_user(error: &IdError) -> Problem {
    let (code, message) = match error.problem {
        IdProblem::Reserved => (
            "reserved_id",
            "a user id does not end with a slash and a path of this API, such as /ledger or /check",
        ),
        IdProblem::Empty | IdProblem::TooLong(_) | IdProblem::Character | IdProblem::Prefix(_) => {
            ("invalid_user_id", "a user id has 1 to 128 characters and no control characters")
        }
    };
    problem(StatusCode::BAD_REQUEST, code, message)
}

/// Reads a JSON body. `example` is shown in the error message.
fn read_body<T: DeserializeOwned>(request: &Request, example: &str) -> Result<T, Problem> {
    let bytes: &[u8] = request.body();
    if bytes.len() > MAX_BODY_BYTES {
        return Err(problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("a body has at most {MAX_BODY_BYTES} bytes"),
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // The parser's message may contain a value of the body, so control characters are removed and the
        // message is shortened.
        let why: String = error.to_string().chars().filter(|c| !c.is_control()).take(120).collect();
        problem(
            StatusCode::BAD_REQUEST,
            "invalid_body",
            format!("the body must be JSON like {example}: {why}"),
        )
    })
}

fn idempotency_key(request: &Request) -> Result<String, Problem> {
    let header =
        request.headers().get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header.is_empty() || header.len() > 255 || header.chars().any(|c| c.is_control()) {
        let message =
            "send an Idempotency-Key of 1 to 255 characters: it makes a repeated request spend once";
        return Err(problem(StatusCode::BAD_REQUEST, "missing_idempotency_key", message));
    }
    Ok(header.to_owned())
}

fn amount(request: &Request) -> Result<Credits, Problem> {
    let body: Option<Value> = match read_body(request, "{\"amount\": 10}") {
        Err(Problem::Answer(status @ StatusCode::PAYLOAD_TOO_LARGE, code, message)) => {
            return Err(problem(status, code, message));
        }
        body => body.ok(),
    };
    let amount = body.as_ref().and_then(|body| body.get("amount")).and_then(Value::as_u64).map(Credits::new);
    amount.filter(|amount| (Credits::new(1)..=Credits::MAX_GRANT).contains(amount)).ok_or_else(|| {
        let most = Credits::MAX_GRANT;
        let message = format!("the body must be {{\"amount\": <whole number of credits from 1 to {most}>}}");
        problem(StatusCode::BAD_REQUEST, "invalid_amount", message)
    })
}

fn entry_view(entry: &Entry) -> Value {
    let mut view = json!({
        "key": entry.key,
        "kind": entry.kind,
        "delta": entry.delta,
        "balance": entry.balance,
        "cause": entry.cause,
        "event_id": entry.cause.starts_with("evt_").then_some(&entry.cause),
        "at": entry.at.to_string(),
        "created": entry.created.to_string(),
    });
    let optional = [
        ("worth", (entry.worth > Credits::ZERO).then(|| json!(entry.worth))),
        ("shortfall", (entry.shortfall > Credits::ZERO).then(|| json!(entry.shortfall))),
        ("skipped", (entry.skipped > 0).then(|| json!(entry.skipped))),
        ("note", entry.note.map(|note| json!(note))),
        ("reason", entry.reason.as_ref().map(|reason| json!(reason))),
        (
            "from",
            (!entry.from.is_empty()).then(|| json!(entry.from.iter().map(taken_view).collect::<Vec<_>>())),
        ),
        ("given_back", (entry.given_back > Credits::ZERO).then(|| json!(entry.given_back))),
        ("of", entry.of.as_ref().map(|spend| json!(spend))),
    ];
    for (name, value) in optional {
        if let (Some(value), Some(object)) = (value, view.as_object_mut()) {
            object.insert(name.to_owned(), value);
        }
    }
    view
}

fn taken_view(taken: &Taken) -> Value {
    json!({"lot": taken.lot, "credits": taken.credits})
}
