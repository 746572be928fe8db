//! Stripe's API: the few calls we make.
//!
//! The API version is pinned ([`API_VERSION`]). Objects are returned as text, and `event::<View>::from_json`
//! reads the shapes of all versions.
//!
//! A call is retried on an error that may go away: no connection, 409, 429, 5xx. The wait is Stripe's
//! `Retry-After`, or else it doubles with each attempt; all attempts share one deadline. A call that creates
//! something carries an idempotency key made of our own ids, so it is safe to retry.
//!
//! **Invariant:** no key, body or e-mail address is in an error, a `Debug` text or a log line.

mod error;
mod page;

use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, Method, Request, Response};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

pub use self::error::{Refusal, StripeError};
pub use self::page::{Cursor, ListPage, Object};
use crate::env::{ConfigError, Env};
use crate::http::Http;
pub use tallyhook_core::event::API_VERSION;
use tallyhook_core::event::EventType;
use tallyhook_core::ids::{
    ChargeId, CustomerId, EventId, InvoiceId, PaymentIntentId, PriceId, SessionId, SubscriptionId,
};
use tallyhook_core::timestamp::Timestamp;

/// Stripe's address, unless `STRIPE_API_BASE` replaces it.
const DEFAULT_BASE: &str = "https://api.stripe.com";
/// Objects in one page: Stripe's maximum.
const PAGE_SIZE: &str = "100";
/// The maximum number of types in one filter of events.
pub const MAX_TYPES: usize = 20;
/// Pages read of a list inside one object. Stripe allows 250 items in an invoice and 20 in a subscription.
const MAX_INNER_PAGES: usize = 10;

/// The retry limits of a call.
#[derive(Clone, Copy, Debug)]
pub struct RetryLimits {
    /// The maximum number of attempts.
    pub attempts: u32,
    /// The time limit of one attempt.
    pub attempt_timeout: Duration,
    /// The time limit of all attempts together. A wait that would end after it is not started.
    pub call_timeout: Duration,
    /// The wait after the first attempt. Each further wait is twice as long, with jitter.
    pub first_wait: Duration,
}

impl Default for RetryLimits {
    /// Stripe takes one or two seconds for a page of a hundred objects.
    fn default() -> Self {
        Self {
            attempts: 4,
            attempt_timeout: Duration::from_secs(15),
            call_timeout: Duration::from_secs(40),
            first_wait: Duration::from_millis(400),
        }
    }
}

/// A client for the Stripe account of one secret key. Clones share connections. It opens no connection before
/// the first call.
#[derive(Clone)]
pub struct Stripe {
    http: Http,
    base: String,
    key: String,
    retry_limits: RetryLimits,
}

impl std::fmt::Debug for Stripe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stripe").field("base", &self.base).finish_non_exhaustive()
    }
}

/// Which objects a list returns. A list ignores the filters that Stripe does not offer for it.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only objects of this customer: for subscriptions, invoices, sessions.
    pub customer: Option<CustomerId>,
    /// Only objects of this subscription: for invoices, sessions.
    pub subscription: Option<SubscriptionId>,
    /// Only objects of this payment: for sessions, refunds, disputes.
    pub payment_intent: Option<PaymentIntentId>,
    /// Only objects of this charge: for refunds, disputes.
    pub charge: Option<ChargeId>,
    /// Only objects created at or after this time.
    pub from: Option<Timestamp>,
    /// Only objects created before this time.
    pub until: Option<Timestamp>,
}

/// Which events a list returns.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only these types, at most [`MAX_TYPES`]. Empty means all types.
    pub types: Vec<EventType>,
    /// Only events that Stripe could not deliver to at least one endpoint.
    pub undelivered: bool,
    /// Only events created at or after this time. Stripe lists events of the last 30 days.
    pub from: Option<Timestamp>,
    /// Only events created before this time.
    pub until: Option<Timestamp>,
}

type Params = Vec<(&'static str, String)>;

/// A secret key and Stripe's address. [`Stripe::of`] makes a client of it.
#[derive(Clone)]
pub struct StripeConfig {
    key: String,
    base: String,
}

impl StripeConfig {
    /// Reads the key and the address from the environment; `None` when no key is set.
    ///
    /// # Errors
    /// [`ConfigError`] when the key is of the other mode, or `STRIPE_API_BASE` is not an http(s) address.
    pub fn from_env(env: &Env) -> Result<Option<Self>, ConfigError> {
        let Some(key) = env.get("STRIPE_SECRET_KEY") else { return Ok(None) };
        let wrong =
            |name: &str, want: &str| ConfigError::Wrong { name: name.to_owned(), want: want.to_owned() };
        let key = key.trim();
        let mode = env.get("STRIPE_LIVEMODE").and_then(|mode| mode.parse::<bool>().ok());
        let of_key =
            if key.contains("_live_") { Some(true) } else { key.contains("_test_").then_some(false) };
        if key.contains(|c: char| !c.is_ascii_graphic())
            || mode.is_some_and(|mode| of_key.is_some_and(|of_key| of_key != mode))
        {
            return Err(wrong(
                "STRIPE_SECRET_KEY",
                "a secret or restricted key of the deployment's mode (STRIPE_LIVEMODE)",
            ));
        }
        let base = env.get("STRIPE_API_BASE").unwrap_or_else(|| DEFAULT_BASE.to_owned());
        if !base.starts_with("https://") && !base.starts_with("http://") {
            return Err(wrong("STRIPE_API_BASE", "an address such as https://api.stripe.com"));
        }
        Ok(Some(Self { key: key.to_owned(), base }))
    }
}

impl Stripe {
    /// Creates a client from its configuration.
    pub fn of(config: StripeConfig) -> Self {
        Self::new(config.key, config.base)
    }

    /// Creates a client with this key and address.
    pub fn new(key: impl Into<String>, base: impl Into<String>) -> Self {
        let base = base.into().trim_end_matches('/').to_owned();
        Self { http: Http::new(), base, key: key.into(), retry_limits: RetryLimits::default() }
    }

    /// Replaces the retry limits.
    #[must_use]
    pub fn with_retry_limits(self, retry_limits: RetryLimits) -> Self {
        Self { retry_limits, ..self }
    }

    /// Whether the key is a live key; `None` when its text does not say.
    pub fn livemode(&self) -> Option<bool> {
        if self.key.contains("_live_") { Some(true) } else { self.key.contains("_test_").then_some(false) }
    }

    /// Subscriptions, also ended ones (`GET /v1/subscriptions?status=all`).
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn subscriptions(&self, filter: &Filter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        let mut params = filter.params(&["customer"]);
        params.push(("status", "all".to_owned()));
        self.list("/v1/subscriptions", params, cursor).await
    }

    /// One subscription. [`Stripe::complete`] reads the items beyond the first page.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn subscription(&self, id: &SubscriptionId) -> Result<Object, StripeError> {
        self.get(&format!("/v1/subscriptions/{id}"), Vec::new()).await
    }

    /// Paid invoices with their payments (`GET /v1/invoices?status=paid`).
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn paid_invoices(&self, filter: &Filter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        let mut params = filter.params(&["customer", "subscription"]);
        params.extend([("status", "paid".to_owned()), ("expand[]", "data.payments".to_owned())]);
        self.list("/v1/invoices", params, cursor).await
    }

    /// One invoice with its payments.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn invoice(&self, id: &InvoiceId) -> Result<Object, StripeError> {
        self.get(&format!("/v1/invoices/{id}"), vec![("expand[]", "payments".to_owned())]).await
    }

    /// Completed checkout sessions (`GET /v1/checkout/sessions?status=complete`).
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn finished_sessions(&self, filter: &Filter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        let mut params = filter.params(&["customer", "subscription", "payment_intent"]);
        params.push(("status", "complete".to_owned()));
        self.list("/v1/checkout/sessions", params, cursor).await
    }

    /// One checkout session with the first page of its line items.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn session(&self, id: &SessionId) -> Result<Object, StripeError> {
        self.get(&format!("/v1/checkout/sessions/{id}"), vec![("expand[]", "line_items".to_owned())]).await
    }

    /// Refunds (`GET /v1/refunds`). Stripe offers no filter by customer.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn refunds(&self, filter: &Filter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        self.list("/v1/refunds", filter.params(&["payment_intent", "charge"]), cursor).await
    }

    /// Disputes (`GET /v1/disputes`). Stripe offers no filter by customer.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn disputes(&self, filter: &Filter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        self.list("/v1/disputes", filter.params(&["payment_intent", "charge"]), cursor).await
    }

    /// Charges, each with the amount that was refunded of it (`GET /v1/charges`).
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn charges(&self, filter: &Filter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        self.list("/v1/charges", filter.params(&["customer", "payment_intent"]), cursor).await
    }

    /// When a payment was made: the `created` of its charge that was paid. `None` if no charge was.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn paid_at(&self, intent: &PaymentIntentId) -> Result<Option<Timestamp>, StripeError> {
        let filter = Filter { payment_intent: Some(intent.clone()), ..Filter::default() };
        let page = self.charges(&filter, &Cursor::Newest).await?;
        let mut charges = page.objects.iter().map(Object::value);
        let paid = charges.find(|charge| charge["paid"] == true);
        Ok(paid.and_then(|charge| charge["created"].as_i64()).map(Timestamp::from_unix))
    }

    /// The line items of a checkout session.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn line_items(&self, session: &SessionId, cursor: &Cursor) -> Result<ListPage, StripeError> {
        self.list(&format!("/v1/checkout/sessions/{session}/line_items"), Vec::new(), cursor).await
    }

    /// Events of the last 30 days (`GET /v1/events`).
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn events(&self, filter: &EventFilter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        let mut params = created(filter.from, filter.until);
        params.extend(filter.types.iter().take(MAX_TYPES).map(|kind| ("types[]", kind.to_string())));
        if filter.undelivered {
            params.push(("delivery_success", "false".to_owned()));
        }
        self.list("/v1/events", params, cursor).await
    }

    /// One event, rendered as when it was created.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn event(&self, id: &EventId) -> Result<Object, StripeError> {
        self.get(&format!("/v1/events/{id}"), Vec::new()).await
    }

    /// The invoice that a payment paid, and the invoice's customer. Since 2025-03-31.basil, charges and
    /// payment intents do not name their invoice.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn invoice_of_payment(
        &self,
        intent: &PaymentIntentId,
    ) -> Result<Option<(InvoiceId, Option<CustomerId>)>, StripeError> {
        let path = "/v1/invoice_payments";
        let params = vec![
            ("payment[type]", "payment_intent".to_owned()),
            ("payment[payment_intent]", intent.to_string()),
            ("expand[]", "data.invoice".to_owned()),
        ];
        let page = self.list(path, params, &Cursor::Newest).await?;
        let invoice = |payment: &Object| {
            let invoice = payment.value()["invoice"].take();
            let customer = invoice["customer"].as_str().and_then(|id| id.parse().ok());
            Some((invoice["id"].as_str()?.parse().ok()?, customer))
        };
        Ok(page.objects.iter().find_map(invoice))
    }

    /// The payments of an invoice, each as a filter for its refunds and disputes
    /// (`GET /v1/invoice_payments`).
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn payments_of_invoice(&self, invoice: &InvoiceId) -> Result<Vec<Filter>, StripeError> {
        let params = vec![("invoice", invoice.to_string())];
        let page = self.list("/v1/invoice_payments", params, &Cursor::Newest).await?;
        let filter = |payment: &Object| {
            let payment = payment.value()["payment"].take();
            let payment_intent = payment["payment_intent"].as_str().and_then(|id| id.parse().ok());
            let charge = payment["charge"].as_str().and_then(|id| id.parse().ok());
            let filter = Filter { payment_intent, charge, ..Filter::default() };
            (filter.payment_intent.is_some() || filter.charge.is_some()).then_some(filter)
        };
        Ok(page.objects.iter().filter_map(filter).collect())
    }

    /// One customer. For a deleted customer Stripe returns `{"id":"cus_…","deleted":true}`.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn customer(&self, id: &CustomerId) -> Result<Object, StripeError> {
        self.get(&format!("/v1/customers/{id}"), Vec::new()).await
    }

    /// Deletes a customer (`DELETE /v1/customers/{id}`). Stripe also cancels its subscriptions at once.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn delete_customer(&self, id: &CustomerId) -> Result<Object, StripeError> {
        self.object(Method::DELETE, &format!("/v1/customers/{id}"), &Params::new(), None).await
    }

    /// The customers with exactly this e-mail address (`GET /v1/customers?email=`).
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn customers_with_email(&self, email: &str) -> Result<ListPage, StripeError> {
        self.list("/v1/customers", vec![("email", email.to_owned())], &Cursor::Newest).await
    }

    /// One price.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn price(&self, id: &PriceId) -> Result<Object, StripeError> {
        self.get(&format!("/v1/prices/{}", encode(id.as_str())), Vec::new()).await
    }

    /// The active prices with one of these lookup keys, at most ten.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn prices_with(&self, lookup_keys: &[String]) -> Result<ListPage, StripeError> {
        let keys = lookup_keys.iter().take(10).map(|key| ("lookup_keys[]", key.clone()));
        let params = keys.chain([("active", "true".to_owned())]).collect();
        self.list("/v1/prices", params, &Cursor::Newest).await
    }

    /// The active prices of a Stripe product.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn prices_of(&self, product: &str) -> Result<ListPage, StripeError> {
        let params = vec![("product", product.to_owned()), ("active", "true".to_owned())];
        self.list("/v1/prices", params, &Cursor::Newest).await
    }

    /// The active prices, newest first.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn active_prices(&self, cursor: &Cursor) -> Result<ListPage, StripeError> {
        self.list("/v1/prices", vec![("active", "true".to_owned())], cursor).await
    }

    /// Whether the key may read a list, and when Stripe was asked.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn probe(&self, path: &str) -> Result<Option<Timestamp>, StripeError> {
        Ok(self.get(path, vec![("limit", "1".to_owned())]).await?.read_at)
    }

    /// The objects of a list, newest first, at most `max_pages` pages, and whether these are all.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn read_list(
        &self,
        path: &str,
        params: &[(&'static str, &str)],
        max_pages: usize,
    ) -> Result<(Vec<Value>, bool), StripeError> {
        let params: Params = params.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let (mut objects, mut cursor) = (Vec::new(), Cursor::Newest);
        for _ in 0..max_pages {
            let page = self.list(path, params.clone(), &cursor).await?;
            cursor = Cursor::after(page.last_id());
            objects.extend(page.objects.iter().map(Object::value));
            if !page.has_more || cursor == Cursor::Newest {
                return Ok((objects, true));
            }
        }
        Ok((objects, false))
    }

    /// Completes an invoice or a subscription with all lines or items. Objects hold only the first ten.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn complete(&self, object: Object) -> Result<Object, StripeError> {
        let mut value = object.value();
        let id = object.id().unwrap_or_default().to_owned();
        let (list, path, params): (&str, String, Params) = match value["object"].as_str() {
            Some("invoice") => ("lines", format!("/v1/invoices/{}/lines", encode(&id)), Vec::new()),
            Some("subscription") => {
                ("items", "/v1/subscription_items".to_owned(), vec![("subscription", id)])
            }
            _ => return Ok(object),
        };
        if value[list]["has_more"] != Value::Bool(true) {
            return Ok(object);
        }
        let mut entries = Vec::new();
        let mut cursor = Cursor::Newest;
        for _ in 0..MAX_INNER_PAGES {
            let page = self.list(&path, params.clone(), &cursor).await?;
            cursor = Cursor::after(page.last_id());
            entries.extend(page.objects.iter().map(Object::value));
            if !page.has_more || cursor == Cursor::Newest {
                value[list]["has_more"] = Value::Bool(false);
                break;
            }
        }
        value[list]["data"] = Value::Array(entries);
        let text = serde_json::value::to_raw_value(&value);
        let text = text.map_err(|_| StripeError::Unreadable {
            operation: format!("GET {path}"),
            message: "the list cannot be written as JSON".to_owned(),
        })?;
        Ok(Object::new(text, object.read_at))
    }

    /// Creates an object (`POST`). Build the idempotency key from our own ids, so that it identifies the
    /// object. For at least 24 hours, Stripe returns the same answer for the same key, and refuses the key
    /// with different fields.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn create(
        &self,
        path: &str,
        fields: &[(impl AsRef<str>, String)],
        idempotency_key: &str,
    ) -> Result<Object, StripeError> {
        self.object(Method::POST, path, fields, Some(idempotency_key)).await
    }

    async fn get(&self, path: &str, params: Params) -> Result<Object, StripeError> {
        self.object(Method::GET, path, &params, None).await
    }

    async fn object(
        &self,
        method: Method,
        path: &str,
        params: &[(impl AsRef<str>, String)],
        idempotency_key: Option<&str>,
    ) -> Result<Object, StripeError> {
        let read = |answer: &Response<Vec<u8>>, read_at: Option<Timestamp>| {
            let text: Box<RawValue> =
                serde_json::from_slice(answer.body()).map_err(|error| error.to_string())?;
            if text.get().starts_with('{') {
                Ok(Object::new(text, read_at))
            } else {
                Err("it is not a JSON object".to_owned())
            }
        };
        self.call(method, path, params, idempotency_key, read).await
    }

    async fn list(&self, path: &str, mut params: Params, cursor: &Cursor) -> Result<ListPage, StripeError> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Box<RawValue>>,
            #[serde(default)]
            has_more: bool,
        }
        params.push(("limit", PAGE_SIZE.to_owned()));
        match cursor {
            Cursor::Newest => {}
            Cursor::After(id) => params.push(("starting_after", id.clone())),
            Cursor::Before(id) => params.push(("ending_before", id.clone())),
        }
        let read = |answer: &Response<Vec<u8>>, read_at: Option<Timestamp>| {
            let List { data, has_more } =
                serde_json::from_slice(answer.body()).map_err(|error| error.to_string())?;
            Ok(ListPage {
                objects: data.into_iter().map(|text| Object::new(text, read_at)).collect(),
                has_more,
            })
        };
        self.call(Method::GET, path, &params, None, read).await
    }

    /// Repeats a call until it succeeds, fails for good, or reaches a limit.
    async fn call<T>(
        &self,
        method: Method,
        path: &str,
        params: &[(impl AsRef<str>, String)],
        idempotency_key: Option<&str>,
        read: impl Fn(&Response<Vec<u8>>, Option<Timestamp>) -> Result<T, String>,
    ) -> Result<T, StripeError> {
        let started = Instant::now();
        let mut wait = self.retry_limits.first_wait;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let error = match self.attempt(&method, path, params, idempotency_key, &read).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let asked = error.refusal().and_then(|refusal| refusal.retry_after);
            // Half of the wait is jitter, so that refused callers do not retry at the same moment.
            let pause = asked.unwrap_or_else(|| wait.mul_f64(0.5 + fastrand::f64() / 2.0));
            let late = started.elapsed() + pause > self.retry_limits.call_timeout;
            if !error.is_transient() || attempt >= self.retry_limits.attempts || late {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            wait *= 2;
        }
    }

    async fn attempt<T>(
        &self,
        method: &Method,
        path: &str,
        params: &[(impl AsRef<str>, String)],
        idempotency_key: Option<&str>,
        read: impl Fn(&Response<Vec<u8>>, Option<Timestamp>) -> Result<T, String>,
    ) -> Result<T, StripeError> {
        let operation = || format!("{method} {path}");
        let form = params
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name.as_ref()), encode(value)))
            .collect::<Vec<_>>()
            .join("&");
        let mut request = Request::builder()
            .method(method)
            .header(AUTHORIZATION, format!("Bearer {}", self.key))
            .header("stripe-version", API_VERSION)
            .header(USER_AGENT, concat!("tallyhook/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let request = if *method == Method::GET {
            let query = if form.is_empty() { String::new() } else { format!("?{form}") };
            request.uri(format!("{}{path}{query}", self.base)).body(String::new())
        } else {
            request
                .uri(format!("{}{path}", self.base))
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form)
        };
        // The builder's own message may hold the value that it refused.
        let request = request.map_err(|_| StripeError::Unsendable {
            operation: operation(),
            message: "the address, the key or the idempotency key has characters that HTTP does not carry"
                .to_owned(),
        })?;
        let begun = Instant::now();
        let answer = self.http.send(request, self.retry_limits.attempt_timeout).await;
        let answer = answer.map_err(|source| StripeError::NoAnswer { operation: operation(), source })?;
        if !answer.status().is_success() {
            let refusal = Refusal::read(answer.status(), answer.headers(), answer.body(), &self.key);
            if refusal.is_foreign_404() {
                let message =
                    "404 without Stripe's error, as of a proxy or a wrong STRIPE_API_BASE".to_owned();
                return Err(StripeError::Unreadable { operation: operation(), message });
            }
            return Err(StripeError::Refused { operation: operation(), refusal });
        }
        let read_at = date(answer.headers()).map(|answered| start_of(answered, begun.elapsed()));
        read(&answer, read_at).map_err(|message| StripeError::Unreadable { operation: operation(), message })
    }
}

impl Filter {
    /// The query parameters for a list that supports the filters in `has`.
    fn params(&self, has: &[&str]) -> Params {
        let mut params = created(self.from, self.until);
        let ids = [
            ("customer", self.customer.as_ref().map(ToString::to_string)),
            ("subscription", self.subscription.as_ref().map(ToString::to_string)),
            ("payment_intent", self.payment_intent.as_ref().map(ToString::to_string)),
            ("charge", self.charge.as_ref().map(ToString::to_string)),
        ];
        params.extend(
            ids.into_iter().filter(|(name, _)| has.contains(name)).filter_map(|(name, id)| Some((name, id?))),
        );
        params
    }
}

fn created(from: Option<Timestamp>, until: Option<Timestamp>) -> Params {
    let bounds = [("created[gte]", from), ("created[lt]", until)];
    bounds.into_iter().filter_map(|(name, time)| Some((name, time?.unix().to_string()))).collect()
}

/// The `Date` header of an answer: Stripe's clock in whole seconds.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get("date")?.to_str().ok()?;
    let zoned = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(Timestamp::from_unix(zoned.timestamp().as_second()))
}

/// When a request began, by Stripe's clock: Stripe's time of the answer, less the time that the answer took,
/// rounded up, because Stripe's time is rounded down.
fn start_of(answered: Timestamp, took: Duration) -> Timestamp {
    let seconds = i64::try_from(took.as_secs()).unwrap_or(i64::MAX);
    answered.plus_seconds(-seconds.saturating_add(1))
}

/// Percent-encodes all characters that are not unreserved. The result is valid in paths, queries and forms.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_other_mode_or_an_invalid_address_is_an_error() {
        let env = |key: &str, mode: &str| Env::from([("STRIPE_SECRET_KEY", key), ("STRIPE_LIVEMODE", mode)]);
        assert!(StripeConfig::from_env(&Env::default()).unwrap().is_none());
        assert_eq!(
            StripeConfig::from_env(&env("rk_live_1", "true")).unwrap().map(Stripe::of).unwrap().livemode(),
            Some(true)
        );
        assert!(
            StripeConfig::from_env(&env("sk_test_1", "true")).is_err()
                && StripeConfig::from_env(&env("sk_live_1", "false")).is_err()
        );
        assert!(StripeConfig::from_env(&env("sk_test_1\u{e9}", "")).is_err());
        assert!(
            StripeConfig::from_env(&Env::from([("STRIPE_SECRET_KEY", "k"), ("STRIPE_API_BASE", "stripe")]))
                .is_err()
        );
    }

    #[test]
    fn a_client_never_prints_its_key() {
        assert!(!format!("{:?}", Stripe::new("sk_test_canary", "http://127.0.0.1:1")).contains("canary"));
    }

    #[test]
    fn parameters_are_encoded_and_the_date_header_is_read() {
        assert_eq!(encode("created[gte]"), "created%5Bgte%5D");
        assert_eq!(encode("silver é/&"), "silver%20%C3%A9%2F%26");
        let mut headers = HeaderMap::new();
        headers.insert("date", "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        assert_eq!(date(&headers), Some(Timestamp::from_unix(784_111_777)));
        let answered = Timestamp::from_unix(784_111_777);
        for (millis, earlier) in [(0, 1), (900, 1), (1000, 2), (14_200, 15)] {
            let begun = start_of(answered, Duration::from_millis(millis));
            assert_eq!(answered.seconds_since(begun), earlier, "{millis} ms");
        }
    }
}
