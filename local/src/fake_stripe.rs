//! A small Stripe API with a store, for tests and the local stack: the calls of `tallyhook_aws::stripe`, over
//! HTTP.
//!
//! Its objects come from *events*. [`FakeStripe::ingest`] keeps an event for the list of events, and makes
//! `data.object` the current state of that object. Of two events about one object, the one with the later
//! `created` wins; if they are equal, the one that was ingested later. Customers and prices that an object
//! names exist too, and a paid invoice has an invoice payment.
//!
//! It also has the calls of an app that sells: customers, checkout sessions, the billing portal. Their
//! parameters are checked by Stripe's own description (`parameters`). A checkout session can be paid
//! ([`FakeStripe::pay`]), and a subscription renewed, changed, cancelled and refunded
//! ([`FakeStripe::renew`]).
//!
//! It has what `tallyhook setup`, `doctor` and `catalog` read and write: webhook endpoints, portal
//! configurations, products and prices. And the real Stripe CLI can listen to it and trigger events of it.
//!
//! It answers as Stripe does: lists newest first with `limit`, `starting_after`, `ending_before` and
//! `has_more`; Stripe's error bodies with 400, 401 and 404, also for unknown parameters; `Idempotency-Key`. A
//! test can make it fail ([`FakeStripe::fail`]).

mod billing;
mod checkout;
mod endpoints;
mod list;
mod objects;
mod parameters;
mod prices;
mod request;
mod routes;
mod trigger;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub use self::checkout::{FiredEvent, Payment};
use self::objects::Objects;
pub use self::trigger::CLI_KEY;

/// Stripe keeps events for 30 days.
const EVENT_SECONDS: i64 = 30 * 86_400;

/// The maximum number of requests that are kept for [`FakeStripe::requests`].
const MAX_REQUESTS: usize = 10_000;

/// The fake Stripe. Clones share everything.
#[derive(Clone, Default)]
pub struct FakeStripe {
    state: Arc<Mutex<State>>,
}

/// A failure that a test asked for.
#[derive(Clone, Debug)]
struct Fault {
    /// Requests whose path and query contain this text fail.
    on: String,
    /// The remaining number of such requests that are answered first.
    skip: u32,
    /// The remaining number of requests that fail.
    times: u32,
    what: Misbehaviour,
}

/// How a request fails.
#[derive(Clone, Debug)]
pub enum Misbehaviour {
    /// An error answer with this status, and a `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// The answer is late.
    Delay(Duration),
    /// The answer's body ends in the middle.
    Cut,
}

#[derive(Default)]
struct State {
    key: String,
    now: Option<i64>,
    pages: Option<String>,
    serial: i64,
    objects: Objects,
    broken: BTreeSet<String>,
    faults: Vec<Fault>,
    requests: VecDeque<String>,
    answers: BTreeMap<String, (String, Value)>,
    /// The Stripe CLIs that listen.
    listeners: Vec<mpsc::UnboundedSender<FiredEvent>>,
}

/// One object. Events are objects too.
struct Stored {
    kind: String,
    /// The `created` of the event that it comes from. A later event wins.
    updated: i64,
    /// The place in lists: the object's own `created`, then a serial number.
    place: (i64, i64),
    /// The JSON as it was received, byte for byte.
    text: String,
    value: Value,
    delivered: bool,
}

impl FakeStripe {
    /// A Stripe without objects that accepts this key.
    pub fn new(key: impl Into<String>) -> Self {
        let fake = Self::default();
        fake.lock().key = key.into();
        fake
    }

    /// Loads the objects of a file, and keeps all further objects there.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(&self, path: &std::path::Path) -> anyhow::Result<()> {
        let mut state = self.lock();
        state.objects = Objects::open(Some(path))?;
        state.serial = state.objects.last_serial();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routes of the API.
    pub fn router(&self) -> Router {
        routes::router(self.clone())
    }

    /// Serves the API on a free port of this machine, until the process ends.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(&self) -> anyhow::Result<SocketAddr> {
        let listener =
            TcpListener::bind("127.0.0.1:0").await.context("cannot bind a port for the fake Stripe")?;
        let address = listener.local_addr()?;
        let router = self.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    /// Stores an event and its object, and returns the id of the event. `delivered` says whether a webhook
    /// has received it.
    ///
    /// # Errors
    /// When the text is not an event with an object.
    pub fn ingest(&self, body: &str, delivered: bool) -> anyhow::Result<String> {
        self.lock().ingest(body, delivered)
    }

    /// Stores an object. No event changes it afterwards.
    pub fn put(&self, object: Value) {
        let created = object["created"].as_i64().unwrap_or_default();
        let mut state = self.lock();
        state.add_mentioned(&object, created);
        state.add_invoice_payment(&object, created);
        state.add_product(&object);
        state.store(object.to_string(), object, i64::MAX, true);
    }

    /// Sets the full list inside an object, of which the object shows a part: the lines of an invoice, the
    /// items of a subscription, the line items of a checkout session.
    pub fn put_inside(&self, id: &str, entries: Vec<Value>) {
        self.lock().objects.put_inside(id, entries);
    }

    /// Adds an invoice payment that no event shows.
    pub fn put_payment(&self, intent: &str, invoice: &str) {
        self.lock().add_payment(intent, invoice, 0);
    }

    /// Removes an object, as if its sandbox was deleted.
    pub fn remove(&self, id: &str) {
        self.lock().objects.remove(id);
    }

    /// Marks an event as delivered to a webhook.
    pub fn mark_delivered(&self, event: &str) {
        self.lock().objects.deliver(event);
    }

    /// Sets the clock: the `Date` of answers, and the age of events. Without it, events do not expire.
    pub fn set_now(&self, now: i64) {
        self.lock().now = Some(now);
    }

    /// Sets the address of the pages in place of Stripe's own: the URL of a checkout session is then
    /// `<base>/pay/<session>`, that of a billing portal session `<base>/billing/<customer>`.
    pub fn set_pages(&self, base: &str) {
        self.lock().pages = Some(base.to_owned());
    }

    /// Returns the objects of this customer in a shape that Stripe never sends.
    pub fn break_customer(&self, customer: &str) {
        self.lock().broken.insert(customer.to_owned());
    }

    /// Makes the next `times` requests fail that have `on` in their path and query, for example
    /// `/v1/invoices`.
    pub fn fail(&self, on: &str, times: u32, what: Misbehaviour) {
        self.lock().faults.push(Fault { on: on.to_owned(), skip: 0, times, what });
    }

    /// Answers this many further requests, and refuses all others. A test uses it to stop a caller at each of
    /// its requests.
    pub fn refuse_after(&self, requests: u32) {
        let what = Misbehaviour::Status(400, None);
        self.lock().faults.push(Fault { on: String::new(), skip: requests, times: u32::MAX, what });
    }

    /// Ends all failures.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.broken.clear();
    }

    /// The current state of an object.
    pub fn object(&self, id: &str) -> Option<Value> {
        self.lock().objects.get(id).map(|stored| stored.value)
    }

    /// The number of objects of a kind, such as `customer`.
    pub fn count(&self, kind: &str) -> usize {
        let mut count = 0;
        self.lock().objects.visit(&objects::ListQuery::of(kind), |_| {
            count += 1;
            true
        });
        count
    }

    /// The requests since the last call: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests).into()
    }
}

impl State {
    fn ingest(&mut self, body: &str, delivered: bool) -> anyhow::Result<String> {
        let event: Value = serde_json::from_str(body).context("an event is JSON")?;
        let id = event["id"].as_str().context("an event has an id")?.to_owned();
        let created = event["created"].as_i64().context("an event has a time")?;
        let object = event["data"]["object"].as_object().context("an event has an object")?;
        let mut object = Value::Object(object.clone());
        self.objects.begin();
        self.add_mentioned(&object, created);
        if event["type"] == "customer.deleted" {
            object = json!({"id": object["id"], "object": "customer", "deleted": true,
                "created": object["created"]});
        }
        self.add_invoice_payment(&object, created);
        // A preview (`invoice.upcoming`) has no id and is not kept.
        if object["id"].is_string() {
            let text = object.to_string();
            self.store(text, object, created, delivered);
        }
        self.store(body.to_owned(), event, created, delivered);
        self.objects.commit();
        Ok(id)
    }

    fn store(&mut self, text: String, value: Value, updated: i64, delivered: bool) {
        let Some(id) = value["id"].as_str().map(str::to_owned) else { return };
        self.serial += 1;
        let created = value["created"].as_i64().unwrap_or(if updated == i64::MAX { 0 } else { updated });
        let known = self.objects.place(&id);
        if known.is_some_and(|(known, _)| known > updated) {
            return;
        }
        let place = known.map_or((created, self.serial), |(_, place)| place);
        let kind = value["object"].as_str().unwrap_or("unknown").to_owned();
        self.objects.put(&id, &Stored { kind, updated, place, text, value, delivered });
    }

    /// Adds the customers and prices that an object names, even if no event was about them.
    fn add_mentioned(&mut self, object: &Value, created: i64) {
        let customer = object["customer"]
            .as_str()
            .map(|id| json!({"id": id, "object": "customer", "created": created, "metadata": {}}));
        let lists = [&object["items"]["data"], &object["lines"]["data"]];
        let entries = lists.into_iter().filter_map(Value::as_array).flatten();
        let price = |entry: &Value| {
            let ids = [
                &entry["price"]["id"],
                &entry["price"],
                &entry["plan"]["id"],
                &entry["pricing"]["price_details"]["price"],
            ];
            let id = ids.into_iter().find_map(Value::as_str)?;
            let mut shown = json!({"id": id, "object": "price", "created": 0, "active": true,
                    "type": "recurring"});
            for (name, value) in entry["price"].as_object().into_iter().flatten() {
                shown[name] = value.clone();
            }
            Some(shown)
        };
        let mentioned: Vec<Value> = customer.into_iter().chain(entries.filter_map(price)).collect();
        for value in mentioned {
            let Some(id) = value["id"].as_str() else { continue };
            // An event that shows the price object knows more than one that names only its id.
            let partial = |known: &Value| known["object"] == "price" && known.get("lookup_key").is_none();
            let known = self.objects.place(id).is_some();
            if !known
                || (value.get("lookup_key").is_some()
                    && self.objects.get(id).is_some_and(|known| partial(&known.value)))
            {
                self.store(value.to_string(), value, i64::MIN, true);
            }
        }
    }

    /// Adds the invoice payment of a paid invoice that names its payment.
    fn add_invoice_payment(&mut self, object: &Value, created: i64) {
        let (Some("invoice"), Some(invoice)) = (object["object"].as_str(), object["id"].as_str()) else {
            return;
        };
        if object["status"] == "paid" {
            let intents =
                [&object["payment_intent"], &object["payments"]["data"][0]["payment"]["payment_intent"]];
            if let Some(intent) = intents.into_iter().find_map(Value::as_str) {
                self.add_payment(intent, invoice, created);
            }
        }
    }

    fn add_payment(&mut self, intent: &str, invoice: &str, created: i64) {
        let payment = json!({
            "id": format!("inpay_{intent}"), "object": "invoice_payment", "created": created,
            "invoice": invoice, "status": "paid",
            "is_default": true, "payment": {"type": "payment_intent", "payment_intent": intent},
        });
        self.store(payment.to_string(), payment, created, true);
    }

    /// Whether an object still exists: events exist for 30 days.
    fn is_kept(&self, stored: &Stored) -> bool {
        stored.kind != "event" || self.now.is_none_or(|now| stored.place.0 >= now - EVENT_SECONDS)
    }
}
