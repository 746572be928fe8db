//! `api`: the app's API, and the pages for customers who return from checkout. Routes need the bearer token
//! `APP_API_TOKEN` unless noted.
//!
//! | route | answer |
//! |---|---|
//! | `PUT /users/{id}` | creates the account with its signup credits, or returns the existing account |
//! | `GET /users/{id}` | the account; 404 without an account |
//! | `GET /users/{id}/ledger?limit&next` | entries, newest first |
//! | `POST /users/{id}/credits/consume` | spends credits |
//! | `POST /checkout-sessions` | creates a checkout session: see `api/checkout.rs` |
//! | `GET /openapi.json` | no token: this API and the operator's as OpenAPI 3.1 |
//! | `GET /portal/setup-status?session_id` | no token: the state of payment and setup: see `api/portal.rs` |
//! | `POST /portal/password-set` `{"user_id":"…"}` | stores that the user has a password |
//! | `GET /portal/status?session_id` | no token: the status page |
//!
//! Consuming takes `{"amount":10}` and the header `Idempotency-Key`. It answers 200 with the balance, 402
//! when the balance is too low, and 409 when the key was used with another amount.

mod checkout;
mod portal;

use std::collections::BTreeMap;
use std::time::Duration;

use lambda_http::http::{Method, StatusCode};
use lambda_http::{Body, Request, RequestExt, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::accounts::{Accounts, load_account};
use crate::alerts::Alerts;
use crate::config::ApiConfig;
use crate::http::answer::{Problem, answer, percent_decode, problem, raw_answer};
use crate::http::token;
use crate::outbox::Outbox;
use crate::process::Processor;
use crate::resend::redrive::Redrive;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::stripe::{Patience, Stripe};
use tallyhook_core::account::{Account, Cause, Fact, Lot};
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::UserId;
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::timestamp::Timestamp;

/// The limits for one call of Stripe, while a customer or the app waits for our answer.
const PATIENCE: Patience = Patience {
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
pub struct Api {
    config: ApiConfig,
    store: Store,
    processor: Processor,
    stripe: Option<Stripe>,
    stripe_reads: portal::StripeReads,
    prices: checkout::Prices,
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
        let accounts = Accounts { store: store.clone(), catalog, outbox };
        let processor = Processor { accounts, livemode, keep_payloads, redrive, alerts };
        let stripe = config.stripe.clone().map(|stripe| Stripe::of(stripe).with_patience(PATIENCE));
        Self {
            config,
            stripe,
            store,
            processor,
            stripe_reads: portal::StripeReads::default(),
            prices: checkout::Prices::default(),
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every failure becomes an answer.
    pub async fn handle(&self, request: Request) -> Result<Response<Body>, lambda_http::Error> {
        Ok(match self.route(&request).await {
            Ok(answer) => answer,
            Err(problem) => problem.answer("API_FAILED"),
        })
    }

    async fn route(&self, request: &Request) -> Result<Response<Body>, Problem> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let body = match (parts.as_slice(), request.method()) {
            (["portal", "status"], &Method::GET) => return Ok(self.status_page(request)),
            (["openapi.json"], &Method::GET) => return Ok(raw_answer(OPENAPI)),
            (["portal", "setup-status"], &Method::GET) => self.setup_status(request).await?,
            (["portal", "password-set"], &Method::POST) => {
                self.check_token(request)?;
                self.password_set(request).await?
            }
            (["checkout-sessions"], &Method::POST) => {
                self.check_token(request)?;
                self.create_checkout(request).await?
            }
            (
                ["portal", "status" | "setup-status" | "password-set"]
                | ["checkout-sessions" | "openapi.json"],
                _,
            ) => {
                return Err(other_method());
            }
            (["users", id, rest @ ..], _) => {
                self.check_token(request)?;
                self.users(request, id, rest).await?
            }
            _ => return Err(not_found()),
        };
        Ok(answer(StatusCode::OK, &body))
    }

    fn check_token(&self, request: &Request) -> Result<(), Problem> {
        token::check(request.headers(), self.config.app_token.as_deref())
            .map_err(|refusal| problem(refusal.status(), refusal.code(), refusal.message("APP_API_TOKEN")))
    }

    async fn users(&self, request: &Request, id: &str, rest: &[&str]) -> Result<Value, Problem> {
        let id = percent_decode(id).and_then(|id| UserId::new(id).ok());
        let user = id.ok_or_else(invalid_user)?;
        match (request.method(), rest) {
            (&Method::PUT, []) => self.sign_up(&user).await,
            (&Method::GET, []) => self.show(&user).await,
            (&Method::GET, ["ledger"]) => self.ledger(&user, request).await,
            (&Method::POST, ["credits", "consume"]) => self.consume(&user, request).await,
            (_, [] | ["ledger"] | ["credits", "consume"]) => Err(other_method()),
            _ => Err(not_found()),
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
        Ok(self.view(&account, updated_at, &orders))
    }

    fn view(
        &self,
        account: &Account,
        updated_at: Option<Timestamp>,
        orders: &[BTreeMap<String, Value>],
    ) -> Value {
        let state = &account.state;
        let (catalog, now) = (&self.config.catalog, clock::now());
        let access = state.access(catalog, now);
        let buckets = state.buckets(&catalog.policy, now);
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let mut of_subscriptions = BTreeMap::new();
        let mut subscriptions = Vec::new();
        for id in state.subscriptions.keys() {
            of_subscriptions.insert(id.as_str(), buckets.of_subscription(id));
            let Some(one) = state.summary(id, catalog, now) else { continue };
            subscriptions.push(json!({
                "id": id,
                "status": one.status,
                "plan": one.plan,
                "price": one.price,
                "quantity": one.quantity,
                "period_start": time(one.start),
                "period_end": time(one.end),
                "cancelling": one.ends.is_some(),
                "cancel_at": time(one.ends),
            }));
        }
        let of_items: BTreeMap<_, _> = buckets
            .lots
            .iter()
            .filter_map(|(lot, left)| match lot {
                Lot::Item(_, item) => Some((item.as_str(), left)),
                Lot::Lifetime(_) | Lot::Signup | Lot::Grant(_) | Lot::Pack(_) => None,
            })
            .collect();
        json!({
            "user_id": account.user_id,
            "tier": access.tier,
            "tier_rank": access.rank,
            "credits": buckets.balance(),
            "buckets": {
                "signup": buckets.sum(|lot| *lot == Lot::Signup),
                "subscriptions": of_subscriptions,
                "items": of_items,
                "lifetime": buckets.sum(|lot| matches!(lot, Lot::Lifetime(_))),
                "grant": buckets.sum(|lot| matches!(lot, Lot::Grant(_))),
                "addon": buckets.sum(|lot| matches!(lot, Lot::Pack(_))),
            },
            "subscriptions": subscriptions,
            "access_until": time(access.until),
            "orders": orders,
            "updated_at": time(updated_at),
        })
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
        let mut next = match query.first("next") {
            // DynamoDB would refuse a longer key.
            Some(key) if key.len() > 900 => return Err(no_entry()),
            Some(key) => Some(LedgerKey::from_text(key)),
            None => {
                let (account, _) = self.load(user).await?;
                if account.version == 0 {
                    return Err(no_user());
                }
                account.state.last_entry
            }
        };
        let mut entries = Vec::new();
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
                let balance = account.state.balance(&accounts.catalog.policy, now);
                let message = format!("{balance} credits are left, {amount} are needed");
                return Err(problem(StatusCode::PAYMENT_REQUIRED, "insufficient_credits", message));
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

fn other_method() -> Problem {
    problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has another method")
}

fn no_user() -> Problem {
    problem(StatusCode::NOT_FOUND, "user_not_found", "no account has this id; PUT /users/{id} creates it")
}

fn no_entry() -> Problem {
    problem(StatusCode::BAD_REQUEST, "invalid_next", "next must be what the last page gave")
}

fn invalid_user() -> Problem {
    problem(
        StatusCode::BAD_REQUEST,
        "invalid_user_id",
        "a user id has 1 to 128 characters and no control characters",
    )
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
        problem(
            StatusCode::BAD_REQUEST,
            "invalid_amount",
            "the body must be {\"amount\": <whole number of credits, at least 1>}",
        )
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
        ("note", entry.note.map(|note| json!(note))),
        ("reason", entry.reason.as_ref().map(|reason| json!(reason))),
    ];
    for (name, value) in optional {
        if let (Some(value), Some(object)) = (value, view.as_object_mut()) {
            object.insert(name.to_owned(), value);
        }
    }
    view
}
