//! A small stateful Stripe API for tests and the local stack: what `tallyhook_aws::stripe` calls, over HTTP, from a
//! store of its own.
//!
//! It is fed by *events*: [`FakeStripe::ingest`] takes an event as Stripe renders it, keeps it for the list
//! of events, and makes `data.object` the current state of that object (of two events the one with the later
//! `created` wins, the later told on a tie). So objects and events always agree, and whoever can render
//! events needs nothing else. Customers and prices that are only mentioned exist; what paid an invoice is
//! known as an invoice payment.
//!
//! It also takes what an app's shop calls and plays what comes of it ([`FakeStripe::pay`]): customers,
//! checkout sessions, the billing portal; and what a customer's later life is made of
//! ([`FakeStripe::renew`]).
//!
//! It answers as Stripe does: newest first, `limit`, `starting_after`, `ending_before`, `has_more`; 401, 404
//! and 400 with Stripe's error bodies, unknown parameters included; `Idempotency-Key`. And it can be told to
//! misbehave ([`Fault`]).

mod billing;
mod list;
mod objects;
mod routes;
mod shop;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::objects::Objects;
pub use self::shop::{Fired, Payment};

/// Stripe keeps events for 30 days.
const EVENT_SECONDS: i64 = 30 * 86_400;

/// So many of the last requests are remembered.
const REQUESTS: usize = 10_000;

/// The fake; clones are handles of the same one.
#[derive(Clone, Default)]
pub struct FakeStripe {
    state: Arc<Mutex<State>>,
}

/// What it does to requests instead of answering them.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Requests whose path and query hold this text, for example `/v1/invoices` or `starting_after`.
    pub on: String,
    /// How many of them; the fault is gone after that.
    pub times: u32,
    /// What happens.
    pub what: Misbehaviour,
}

/// Ways to misbehave.
#[derive(Clone, Debug)]
pub enum Misbehaviour {
    /// An error answer with this status, and a `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// The answer comes, but late.
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
}

/// One object; events are objects too.
struct Stored {
    kind: String,
    /// The `created` of the event that told it: a later one wins.
    told: i64,
    /// Place in lists: its own `created`, then the order in which it was first heard of.
    place: (i64, i64),
    /// As it was told, byte for byte.
    text: String,
    value: Value,
    delivered: bool,
}

impl FakeStripe {
    /// An empty one that takes this key.
    pub fn new(key: impl Into<String>) -> Self {
        let fake = Self::default();
        fake.lock().key = key.into();
        fake
    }

    /// Knows what is in a file, and keeps there what it is told from now on.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn remember(&self, path: &std::path::Path) -> anyhow::Result<()> {
        let mut state = self.lock();
        state.objects = Objects::open(Some(path))?;
        state.serial = state.objects.heard();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API, to be mounted or served.
    pub fn router(&self) -> Router {
        routes::router(self.clone())
    }

    /// Serves it on a free port of this machine, until the runtime ends.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start(&self) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port for the fake Stripe")?;
        let address = listener.local_addr()?;
        let router = self.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    /// Takes an event as Stripe renders it, and answers its id. `delivered` says whether a webhook has got
    /// it.
    ///
    /// # Errors
    /// When it is not an event with an object.
    pub fn ingest(&self, body: &str, delivered: bool) -> anyhow::Result<String> {
        self.lock().ingest(body, delivered)
    }

    /// Makes an object exist as given, whatever was told of it before.
    pub fn put(&self, object: Value) {
        let created = object["created"].as_i64().unwrap_or_default();
        let mut state = self.lock();
        state.mention(&object, created);
        state.pay(&object, created);
        state.store(object.to_string(), object, i64::MAX, true);
    }

    /// Says what is inside an object beyond what it shows: the lines of an invoice, the items of a
    /// subscription, the line items of a checkout session.
    pub fn put_inside(&self, id: &str, entries: Vec<Value>) {
        self.lock().objects.put_inside(id, entries);
    }

    /// Says that a payment paid an invoice, where no event does.
    pub fn put_payment(&self, intent: &str, invoice: &str) {
        self.lock().add_payment(intent, invoice, 0);
    }

    /// Removes an object, as a deleted sandbox does.
    pub fn remove(&self, id: &str) {
        self.lock().objects.remove(id);
    }

    /// A webhook took this event.
    pub fn mark_delivered(&self, event: &str) {
        self.lock().objects.deliver(event);
    }

    /// Sets its clock, for the `Date` of answers and the age of events; without it events never age.
    pub fn set_now(&self, now: i64) {
        self.lock().now = Some(now);
    }

    /// Says where the pages are that play Stripe's own: checkout sessions then have the address
    /// `<here>/pay/<session>`, billing portal sessions `<here>/billing/<customer>`.
    pub fn set_pages(&self, here: &str) {
        self.lock().pages = Some(here.to_owned());
    }

    /// Objects of this customer come in a shape that Stripe never sends.
    pub fn break_customer(&self, customer: &str) {
        self.lock().broken.insert(customer.to_owned());
    }

    /// Adds a fault.
    pub fn fail(&self, on: &str, times: u32, what: Misbehaviour) {
        self.lock().faults.push(Fault { on: on.to_owned(), times, what });
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.broken.clear();
    }

    /// An object as it is now.
    pub fn object(&self, id: &str) -> Option<Value> {
        self.lock().objects.get(id).map(|stored| stored.value)
    }

    /// The requests since the last time it was asked: method, path and query.
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
        self.mention(&object, created);
        if event["type"] == "customer.deleted" {
            object = json!({"id": object["id"], "object": "customer", "deleted": true, "created": object["created"]});
        }
        self.pay(&object, created);
        // A preview (`invoice.upcoming`) has no id and is not kept.
        if object["id"].is_string() {
            let text = object.to_string();
            self.store(text, object, created, delivered);
        }
        self.store(body.to_owned(), event, created, delivered);
        self.objects.commit();
        Ok(id)
    }

    fn store(&mut self, text: String, value: Value, told: i64, delivered: bool) {
        let Some(id) = value["id"].as_str().map(str::to_owned) else { return };
        self.serial += 1;
        let created = value["created"].as_i64().unwrap_or(if told == i64::MAX { 0 } else { told });
        let known = self.objects.place(&id);
        if known.is_some_and(|(known, _)| known > told) {
            return;
        }
        let place = known.map_or((created, self.serial), |(_, place)| place);
        let kind = value["object"].as_str().unwrap_or("unknown").to_owned();
        self.objects.put(&id, &Stored { kind, told, place, text, value, delivered });
    }

    /// Customers and prices that an object names exist, even if no event was about them.
    fn mention(&mut self, object: &Value, created: i64) {
        let customer = object["customer"]
            .as_str()
            .map(|id| json!({"id": id, "object": "customer", "created": created, "metadata": {}}));
        let lists = [&object["items"]["data"], &object["lines"]["data"]];
        let entries = lists.into_iter().filter_map(Value::as_array).flatten();
        let price = |entry: &Value| {
            let told = [
                &entry["price"]["id"],
                &entry["price"],
                &entry["plan"]["id"],
                &entry["pricing"]["price_details"]["price"],
            ];
            let id = told.into_iter().find_map(Value::as_str)?;
            Some(
                json!({"id": id, "object": "price", "created": 0, "active": true, "lookup_key": null, "type": "recurring"}),
            )
        };
        let mentioned: Vec<Value> = customer.into_iter().chain(entries.filter_map(price)).collect();
        for value in mentioned {
            if value["id"].as_str().is_some_and(|id| self.objects.place(id).is_none()) {
                self.store(value.to_string(), value, i64::MIN, true);
            }
        }
    }

    /// A paid invoice that names its payment has an invoice payment.
    fn pay(&mut self, object: &Value, created: i64) {
        let (Some("invoice"), Some(invoice)) = (object["object"].as_str(), object["id"].as_str()) else {
            return;
        };
        if object["status"] == "paid" {
            let told =
                [&object["payment_intent"], &object["payments"]["data"][0]["payment"]["payment_intent"]];
            if let Some(intent) = told.into_iter().find_map(Value::as_str) {
                self.add_payment(intent, invoice, created);
            }
        }
    }

    fn add_payment(&mut self, intent: &str, invoice: &str, created: i64) {
        let payment = json!({
            "id": format!("inpay_{intent}"), "object": "invoice_payment", "created": created, "invoice": invoice, "status": "paid",
            "is_default": true, "payment": {"type": "payment_intent", "payment_intent": intent},
        });
        self.store(payment.to_string(), payment, created, true);
    }

    /// Whether an object can still be had: events only for 30 days.
    fn is_kept(&self, stored: &Stored) -> bool {
        stored.kind != "event" || self.now.is_none_or(|now| stored.place.0 >= now - EVENT_SECONDS)
    }
}
