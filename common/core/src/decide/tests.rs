//! Shared code of the case tables: builders of Stripe's events, and [`check`].
//!
//! Every event is read by `event::read`, so the tables test the readers too. The default objects belong to
//! one user: customer `cus_1`, subscription `sub_1` to `price_pro` with a period that began at second 1000. A
//! patch changes single fields.

mod access;
mod advance;
mod bounds;
mod changes;
mod edges;
mod edits;
mod imports;
mod items;
mod law;
mod moves;
mod over_time;
mod packs;
mod prices;
mod purchases;
mod random;
mod rare;
mod refunds;
pub mod shapes;
mod size;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Applied, Order, Outcome, Parked, Payments, decide, invoice_of_purchase, invoice_of_reversal, is_reversal,
    joined_payment, ledger_keys, payment_refs, state_of_documents,
};
use crate::account::fix::Fix;
use crate::account::import::ImportedBalance;
use crate::account::{Account, Cause, Change, Fact, Lot};
use crate::catalog::Catalog;
use crate::credits::Credits;
use crate::drift::{Difference, reversal};
use crate::event::{self, Event};
use crate::ids::UserId;
use crate::ledger::{Entry, LedgerKey, Note, Taken};
use crate::notice::{Notice, notices};
use crate::reversal::PaymentRecord;
use crate::timestamp::Timestamp;

/// Trials of `pro` grant less than its paid periods, so that a test tells them apart. The grace is not the
/// default.
pub const CATALOG: &str = r#"
[tiers]
free = 0
pro = 1
business = 2
[policy]
default_tier = "free"
signup_credits = 500
addons = "reset"
past_due_grace_days = 5
[[plan]]
name = "pro"
tier = "pro"
credits = 5000
trial_credits = 2000
prices = ["price_pro", "price_pro_year"]
[[plan]]
name = "business"
tier = "business"
credits = 20000
prices = ["price_business"]
[[plan]]
name = "team"
tier = "business"
credits = 1000
per = "seat"
prices = ["price_team"]
[[plan]]
name = "boost"
tier = "pro"
credits = 300
prices = ["price_boost"]
[[plan]]
name = "hobby"
tier = "pro"
credits = 50
prices = ["price_free"]
[[pack]]
name = "p1000"
credits = 1000
prices = ["price_p1000"]
[[order]]
mode = "dfy"
plans = { starter = { revisions = 2, deadline_days = 3 } }
"#;

/// 30 days.
pub const MONTH: i64 = 2_592_000;
/// Start of the first period.
pub const P1: i64 = 1000;
/// Start of the second.
pub const P2: i64 = P1 + MONTH;

/// A step of a row of a case table.
#[derive(Clone, Debug)]
pub enum Step {
    /// An event arrives.
    Event(Value),
    /// The app registers the user.
    Signup,
    /// The app spends credits.
    Spend(u64),
    /// The app gives back credits of its n-th spend, counted from 0.
    GiveBack(usize, u64),
    /// An operator gives credits by hand.
    Grant(u64),
    /// An operator takes credits.
    Revoke(u64),
    /// An operator gives a plan from now on, with credits.
    Complimentary { plan: &'static str, until: Option<i64>, credits: u64 },
    /// An import says that the user had these credits at this second. If the account has dropped the period
    /// of that time, the import reads these paid invoices.
    Import { as_of: i64, credits: u64, with_signup: bool, invoices: Vec<Value> },
    /// The catalog keeps add-ons, from the first step on.
    KeepAddons,
    /// From this step on, the catalog has the second text in place of the first.
    Edit(&'static str, &'static str),
    /// The account is read at this second, instead of after the last event.
    At(i64),
}

impl From<Value> for Step {
    fn from(event: Value) -> Self {
        Self::Event(event)
    }
}

/// Folds the steps and compares the result: `tier balance | buckets | ledger`, then what is parked.
///
/// A bucket is written `sub_1=5000`, a ledger entry `invoice#in_1 +5000`, with `superseded` or `shortfall N`
/// behind it.
#[track_caller]
pub fn check(what: &str, given: Vec<Step>, expect: &str) {
    let seen = Run::of(&given).summary();
    assert_eq!(seen, expect, "{what}");
}

/// Like [`check`], and again with the events in reverse order and with every event twice.
#[track_caller]
pub fn check_any_order(what: &str, given: Vec<Step>, expect: &str) {
    let end = |summary: &str| summary.split(" | ").take(2).map(str::to_owned).collect::<Vec<_>>();
    let is_event = |step: &&Step| matches!(step, Step::Event(_));
    let last = given
        .iter()
        .filter_map(|step| if let Step::Event(event) = step { event["created"].as_i64() } else { None })
        .max();
    let settings =
        given.iter().filter(|step| !is_event(step)).cloned().chain(last.map(|last| Step::At(last + 1)));
    let backwards: Vec<Step> = settings
        .chain(given.iter().rev().filter(is_event).flat_map(|step| [step.clone(), step.clone()]))
        .collect();
    let backwards = if let Some(Step::At(at)) = given.last() {
        [backwards, vec![Step::At(*at)]].concat()
    } else {
        backwards
    };
    check(what, given, expect);
    assert_eq!(end(&Run::of(&backwards).summary()), end(expect), "backwards and doubled: {what}");
}

/// An account with its ledger, orders and payments.
pub struct Run {
    text: String,
    pub catalog: Catalog,
    /// The account after the last step.
    pub account: Account,
    pub ledger: BTreeMap<LedgerKey, Entry>,
    deltas: i64,
    booked: Vec<LedgerKey>,
    payments: Payments,
    pub parked: Vec<(Event, Parked)>,
    pub orders: Vec<Order>,
    /// Whether the import needed the invoices.
    pub import_read_invoices: bool,
    now: Timestamp,
}

impl Run {
    #[track_caller]
    pub fn of(given: &[Step]) -> Self {
        let keep = given.iter().any(|step| matches!(step, Step::KeepAddons));
        let text = if keep {
            CATALOG.replace("addons = \"reset\"", "addons = \"keep\"")
        } else {
            CATALOG.to_owned()
        };
        let mut run = Self {
            catalog: Catalog::parse(&text).unwrap(),
            text,
            account: Account::new(UserId::new("user_1").unwrap()),
            ledger: BTreeMap::new(),
            deltas: 0,
            booked: Vec::new(),
            payments: BTreeMap::new(),
            parked: Vec::new(),
            orders: Vec::new(),
            import_read_invoices: false,
            now: Timestamp::from_unix(0),
        };
        given.iter().for_each(|step| run.step(step));
        run
    }

    #[track_caller]
    fn step(&mut self, step: &Step) {
        match step {
            Step::Event(body) => {
                let event = event::read(body.to_string().as_bytes()).unwrap();
                self.now = self.now.max(event.created.plus_seconds(1));
                self.deliver(event);
            }
            Step::Signup => {
                let key = LedgerKey::signup();
                let cause = Cause { by: "app".to_owned(), adjust_key: key.clone(), created: self.now };
                let account = self.loaded(&[key]);
                let change = account.evolve(vec![Fact::Signup], &cause, &self.catalog, self.now).unwrap();
                self.commit(&change);
            }
            Step::Spend(amount) => {
                let key = LedgerKey::consume(&self.booked.len().to_string());
                let account = self.loaded(&[]);
                if let Some(change) = account.consume(Credits::new(*amount), key, &self.catalog, self.now) {
                    self.commit(&change);
                }
            }
            Step::GiveBack(number, amount) => self.give_back(*number, *amount),
            Step::Grant(credits) => self.fix(Fix::Grant(Credits::new(*credits), None)),
            Step::Revoke(credits) => self.fix(Fix::Revoke(Credits::new(*credits))),
            Step::Complimentary { plan, until, credits } => self.fix(Fix::Complimentary {
                plan: (*plan).to_owned(),
                from: self.now,
                until: until.map(Timestamp::from_unix),
                credits: Credits::new(*credits),
            }),
            Step::Import { as_of, credits, with_signup, invoices } => {
                self.import(*as_of, *credits, *with_signup, invoices);
            }
            Step::KeepAddons => {}
            Step::Edit(old, new) => {
                assert!(self.text.contains(old), "{old} is not in the catalog");
                self.text = self.text.replacen(old, new, 1);
                self.catalog = Catalog::parse(&self.text).unwrap();
            }
            Step::At(at) => self.now = Timestamp::from_unix(*at),
        }
    }

    fn fix(&mut self, fix: Fix) {
        let key = LedgerKey::fix(&self.booked.len().to_string());
        let account = self.loaded(&[]);
        let change = account.fix(fix, key, "admin:ann", "a gift", &self.catalog, self.now);
        self.commit(&change);
    }

    #[track_caller]
    fn give_back(&mut self, number: usize, amount: u64) {
        let spends = self.booked.iter().filter(|key| key.as_str().starts_with("consume#"));
        let spend = spends.clone().nth(number).and_then(|key| self.ledger.get(key)).unwrap().clone();
        let key = LedgerKey::unspend(spend.key.as_str(), &self.booked.len().to_string());
        let account = self.loaded(&[]);
        let back = account.give_back(&spend, Credits::new(amount), key, &self.catalog, self.now);
        let (change, spend) = back.unwrap();
        self.commit(&change);
        self.ledger.insert(spend.key.clone(), spend);
    }

    #[track_caller]
    fn import(&mut self, as_of: i64, credits: u64, with_signup: bool, invoices: &[Value]) {
        let as_of = Timestamp::from_unix(as_of);
        self.now = self.now.max(as_of.plus_seconds(1));
        let (policy, now) = (&self.catalog.policy, self.now);
        let documents = self.account.state.lacks_period_at(as_of, policy, now).then(|| {
            let events = invoices.iter().map(|body| event::read(body.to_string().as_bytes()).unwrap());
            let (user, events) = (&self.account.user_id, events.collect::<Vec<_>>());
            Box::new(state_of_documents(user, &events, as_of, &self.catalog, now))
        });
        self.import_read_invoices |= documents.is_some();
        let since = || self.ledger.values().filter(|entry| entry.created >= as_of);
        let balance = ImportedBalance {
            batch: "b".to_owned(),
            as_of,
            credits: Credits::new(credits),
            with_signup,
            plan: None,
            spent_since: since().flat_map(still_spent).collect(),
            entries_since: since().map(|entry| entry.key.clone()).collect(),
            documents,
        };
        let key = LedgerKey::import("b");
        let account = self.loaded(std::slice::from_ref(&key));
        let cause = Cause { by: "admin:ann".to_owned(), adjust_key: key.adjusted(), created: now };
        let facts = vec![Fact::Imported(Box::new(balance))];
        let change = account.evolve(facts, &cause, &self.catalog, now).unwrap();
        self.commit(&change);
    }

    /// Delivers an event. Each applied event also delivers the waiting events again.
    fn deliver(&mut self, event: Event) {
        let mut queue = vec![event];
        while let Some(event) = queue.pop() {
            match self.decided(&event) {
                Outcome::Apply(applied) => {
                    let Applied { change, payments, order, .. } = *applied;
                    self.payments.extend(payments);
                    self.orders.extend(order);
                    self.commit(&change);
                    queue.extend(std::mem::take(&mut self.parked).into_iter().map(|(event, _)| event));
                }
                Outcome::Park(parked) => {
                    if let Some((payment, record)) = joined_payment(&event, &self.payments) {
                        self.payments.insert(payment, record);
                    }
                    if self.parked.iter().all(|(other, _)| other.id != event.id) {
                        self.parked.push((event, parked));
                    }
                }
                Outcome::Ignore(_) | Outcome::Tie => {}
            }
        }
    }

    fn decided(&mut self, event: &Event) -> Outcome {
        let mut keys = ledger_keys(event);
        let document = keys.first().cloned();
        if let (true, Some(invoice)) = (is_reversal(event), invoice_of_reversal(event))
            && self.ledger.contains_key(&invoice)
            && let Some(payment) = payment_refs(event).first()
        {
            self.payments.entry(payment.as_str().to_owned()).or_default().document.get_or_insert(invoice);
        }
        let of_event = |(payment, record): &(&String, &PaymentRecord)| {
            payment_refs(event).iter().any(|named| named.as_str() == payment.as_str())
                || (document.is_some() && record.document == document)
        };
        let payments: Payments = self
            .payments
            .iter()
            .filter(of_event)
            .map(|(payment, record)| (payment.clone(), record.clone()))
            .collect();
        keys.extend(invoice_of_purchase(event).as_ref().map(LedgerKey::invoice));
        keys.extend(payments.values().filter_map(|record| record.document.clone()));
        decide(&self.loaded(&keys), event, &payments, &self.catalog, self.now)
    }

    fn loaded(&self, keys: &[LedgerKey]) -> Account {
        let mut account = self.account.clone();
        // Like the processor: if an entry exists that was not read, the event is decided again with it.
        let again = ["slice#", "rollover#", "free#", "expire#", "plan#", "refund#"];
        let found = self.ledger.keys().filter(|key| again.iter().any(|kind| key.as_str().starts_with(kind)));
        account.recorded =
            found.chain(keys).filter_map(|key| Some((key.clone(), self.ledger.get(key)?.clone()))).collect();
        account
    }

    fn commit(&mut self, change: &Change) {
        for entry in &change.entries {
            assert!(
                self.ledger.insert(entry.key.clone(), entry.clone()).is_none(),
                "{} is written twice",
                entry.key
            );
            self.booked.push(entry.key.clone());
            self.deltas += entry.delta;
        }
        self.account = Account { recorded: BTreeMap::new(), ..self.account.after(change) };
        let balance = self.account.state.balance(&self.catalog.policy, self.now);
        assert_eq!(i64::try_from(balance.get()), Ok(self.deltas), "the balance is the sum of the deltas");
    }

    /// The balance after the last step.
    pub fn balance(&self) -> Credits {
        self.account.state.balance(&self.catalog.policy, self.now)
    }

    pub fn summary(&self) -> String {
        let state = &self.account.state;
        let access = state.access(&self.catalog, self.now);
        let until = access.until.map_or_else(String::new, |until| format!(" until {}", until.unix()));
        let all = state.buckets(&self.catalog.policy, self.now);
        let mut buckets: Vec<String> =
            state.subscriptions.keys().map(|id| format!("{id}={}", all.of_subscription(id))).collect();
        let signup = all.sum(|lot| *lot == Lot::Signup);
        buckets.extend(state.signup.as_ref().map(|_| format!("signup={signup}")));
        let addon = all.sum(|lot| matches!(lot, Lot::Pack(_)));
        buckets.extend((addon > Credits::ZERO).then(|| format!("addon={addon}")));
        let other = all.sum(|lot| matches!(lot, Lot::Lifetime(_) | Lot::Opening | Lot::Grant(_)));
        buckets.extend((other > Credits::ZERO).then(|| format!("other={other}")));
        let entry = |key: &LedgerKey| {
            let entry = &self.ledger[key];
            let note = match entry.note {
                Some(Note::Superseded) => " superseded".to_owned(),
                Some(Note::OnePurchase) => " one_purchase".to_owned(),
                Some(Note::Shortfall) => format!(" shortfall {}", entry.shortfall),
                Some(Note::Imported) => " imported".to_owned(),
                Some(Note::LotEnded) => " lot_ended".to_owned(),
                None => String::new(),
            };
            // The ids of events are generated and have no meaning.
            let key = if key.as_str().starts_with("adjust#") { "adjust" } else { key.as_str() };
            format!("{key} {:+}{note}", entry.delta)
        };
        let entries: Vec<String> = self.booked.iter().map(entry).collect();
        let mut summary = format!(
            "{}{until} {} | {} | {}",
            access.tier,
            all.balance(),
            buckets.join(" "),
            entries.join(", ")
        );
        for (event, parked) in &self.parked {
            summary += &format!(" | {} parked: {}", event.kind, parked.code());
        }
        summary
    }
}

/// What a spend took and was not given back, as the import reads it from the ledger.
fn still_spent(entry: &Entry) -> Vec<Taken> {
    let mut back = entry.given_back;
    let mut taken = entry.from.clone();
    for one in taken.iter_mut().rev() {
        let part = back.min(one.credits);
        (back, one.credits) = (back.minus(part), one.credits.minus(part));
    }
    taken
}

/// How the account differs from a refund or a dispute after these steps.
pub fn reversal_after(given: &[Step], step: &Step) -> Option<Difference> {
    let run = Run::of(given);
    let Step::Event(body) = step else { panic!("{step:?} is no event") };
    let event = event::read(body.to_string().as_bytes()).unwrap();
    let keys: Vec<LedgerKey> = run.ledger.keys().cloned().collect();
    reversal(&run.loaded(&keys), &event, &run.payments, &run.catalog, event.created.plus_seconds(1))
}

/// The messages to the app about an event that comes after these steps.
pub fn notices_of(given: &[Step], step: &Step) -> Vec<Notice> {
    let mut run = Run::of(given);
    let Step::Event(body) = step else { panic!("{step:?} is no event") };
    let event = event::read(body.to_string().as_bytes()).unwrap();
    run.now = run.now.max(event.created.plus_seconds(1));
    let Outcome::Apply(applied) = run.decided(&event) else { return Vec::new() };
    notices(&event, &run.loaded(&ledger_keys(&event)), &applied, &run.payments, &run.catalog, run.now)
}

/// RFC 7386: `patch` laid over `base`; null removes.
pub fn patched(base: Value, patch: &Value) -> Value {
    match (base, patch) {
        (Value::Object(mut base), Value::Object(patch)) => {
            for (name, value) in patch {
                let value = patched(base.remove(name).unwrap_or(Value::Null), value);
                if !value.is_null() {
                    base.insert(name.clone(), value);
                }
            }
            Value::Object(base)
        }
        (_, patch) => patch.clone(),
    }
}

/// An event with an id made from its content, so that two events never have the same id.
pub fn event(kind: &str, created: i64, object: &Value, previous: Option<&Value>) -> Value {
    let mut data = json!({"object": object});
    if let Some(previous) = previous {
        data["previous_attributes"] = previous.clone();
    }
    let id = crate::account::snapshot::digest(&format!("{kind} {created} {data}"));
    json!({"id": format!("evt_{id:x}"), "object": "event", "type": kind, "created": created,
        "livemode": false, "data": data})
}

/// The items `si_1`, `si_2`, … of a subscription: price, quantity, in the period that begins at `start`.
pub fn items(prices: &[(&str, u64)], start: i64) -> Value {
    let item = |(place, (price, quantity)): (usize, &(&str, u64))| {
        json!({
            "id": format!("si_{}", place + 1), "price": {"id": price}, "quantity": quantity,
            "current_period_start": start, "current_period_end": start + MONTH,
        })
    };
    json!({"data": prices.iter().enumerate().map(item).collect::<Vec<_>>()})
}

fn subscription(patch: &Value) -> Value {
    let base = json!({
        "id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active",
        "items": items(&[("price_pro", 1)], P1),
        "latest_invoice": "in_1", "metadata": {"user_id": "user_1"}, "cancel_at_period_end": false,
    });
    patched(base, patch)
}

/// `customer.subscription.created` (or any but `updated`).
pub fn sub(kind: &str, created: i64, patch: Value) -> Step {
    event(&format!("customer.subscription.{kind}"), created, &subscription(&patch), None).into()
}

/// `customer.subscription.updated` with the attributes as they were before.
pub fn updated(created: i64, patch: Value, previous: Value) -> Step {
    event("customer.subscription.updated", created, &subscription(&patch), Some(&previous)).into()
}

/// A plan change within the period that began at `start`.
pub fn changed(created: i64, from: (&str, u64), to: (&str, u64), start: i64) -> Step {
    updated(created, json!({"items": items(&[to], start)}), json!({"items": items(&[from], start)}))
}

/// A line of an invoice for a whole period of `si_1`.
pub fn line(price: &str, quantity: u64, start: i64) -> Value {
    json!({
        "amount": 2000, "quantity": quantity, "period": {"start": start, "end": start + MONTH},
        "parent": {"type": "subscription_item_details", "subscription_item_details": {
            "subscription": "sub_1", "subscription_item": "si_1", "proration": false,
        }},
        "pricing": {"price_details": {"price": price}},
    })
}

/// A line for a part of a period.
pub fn proration(price: &str, amount: i64) -> Value {
    json!({
        "amount": amount, "quantity": 1, "period": {"start": P1 + 500, "end": P2},
        "parent": {"type": "subscription_item_details", "subscription_item_details": {
            "subscription": "sub_1", "subscription_item": "si_1", "proration": true,
        }},
        "pricing": {"price_details": {"price": price}},
    })
}

/// `invoice.*` of `sub_1`, paid 2000 by `pi_<id>`.
pub fn invoice(kind: &str, created: i64, id: &str, reason: &str, lines: &[Value], patch: Value) -> Step {
    let base = json!({
        "id": id, "object": "invoice", "customer": "cus_1", "status": "paid", "billing_reason": reason,
        "amount_paid": 2000, "currency": "usd",
        "lines": {"data": lines, "has_more": false},
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_1",
            "metadata": {"user_id": "user_1"}}},
        "payments": {"data": [{"status": "paid", "payment": {"type": "payment_intent",
            "payment_intent": format!("pi_{id}")}}]},
    });
    event(&format!("invoice.{kind}"), created, &patched(base, &patch), None).into()
}

/// `invoice.paid` for a whole period of `price`.
pub fn paid(created: i64, id: &str, reason: &str, price: &str, start: i64) -> Step {
    invoice("paid", created, id, reason, &[line(price, 1, start)], json!({}))
}

/// `checkout.session.*`, one-time and paid 2000 unless patched.
pub fn session(kind: &str, created: i64, id: &str, metadata: Value, patch: Value) -> Step {
    let base = json!({
        "id": id, "object": "checkout.session", "mode": "payment", "status": "complete",
        "payment_status": "paid", "customer": "cus_1",
        "client_reference_id": "user_1", "amount_total": 2000, "currency": "usd",
        "payment_intent": format!("pi_{id}"),
        "customer_details": {"email": "a@example.com"}, "metadata": metadata,
    });
    event(&format!("checkout.session.{kind}"), created, &patched(base, &patch), None).into()
}

/// A paid pack of 1000 credits.
pub fn pack(created: i64, id: &str) -> Step {
    session("completed", created, id, json!({"pack": "p1000"}), json!({}))
}

/// `charge.refunded` of a payment of 2000.
pub fn refunded(created: i64, intent: &str, cumulative: i64) -> Step {
    let object = json!({
        "id": format!("ch_{intent}"), "object": "charge", "customer": "cus_1", "payment_intent": intent,
        "amount": 2000,
        "amount_refunded": cumulative, "currency": "usd",
    });
    event("charge.refunded", created, &object, None).into()
}

/// `refund.*`.
pub fn refund(kind: &str, created: i64, intent: &str, id: &str, amount: i64, status: &str) -> Step {
    let object = json!({
        "id": id, "object": "refund", "charge": format!("ch_{intent}"), "payment_intent": intent,
        "amount": amount, "status": status,
    });
    event(&format!("refund.{kind}"), created, &object, None).into()
}

/// `charge.dispute.*` over the whole payment.
pub fn dispute(kind: &str, created: i64, intent: &str, status: &str) -> Step {
    let object = json!({
        "id": "dp_1", "object": "dispute", "charge": format!("ch_{intent}"), "payment_intent": intent,
        "amount": 2000, "status": status,
    });
    event(&format!("charge.dispute.{kind}"), created, &object, None).into()
}

#[test]
fn stripe_is_asked_only_for_what_an_event_leaves_out() {
    let with = |step: &Step, patch: Value| {
        let Step::Event(event) = step else { panic!("{step:?} is no event") };
        Step::Event(patched(event.clone(), &patch))
    };
    let object = |step: &Step, patch: Value| with(step, json!({"data": {"object": patch}}));
    let cut_off = json!({"lines": {"has_more": true}});
    let other = items(&[("price_other", 1)], P1);
    let unnamed = session("completed", P1, "cs_1", json!({}), json!({}));
    let (charge, refund, dispute) = (
        refunded(P1, "pi_1", 100),
        refund("created", P1, "pi_1", "re_1", 100, "succeeded"),
        dispute("created", P1, "pi_1", "lost"),
    );
    let rows = [
        ("an invoice with its lines", paid(P1, "in_1", "subscription_create", "price_pro", P1), false),
        (
            "one cut off before the line that counts",
            invoice("paid", P1, "in_1", "subscription_cycle", &[], cut_off.clone()),
            true,
        ),
        (
            "one cut off after it",
            object(&paid(P1, "in_1", "subscription_cycle", "price_pro", P1), cut_off.clone()),
            true,
        ),
        ("an unpaid one", invoice("payment_failed", P1, "in_1", "subscription_cycle", &[], cut_off), false),
        ("a subscription with its items", sub("created", P1, json!({})), false),
        ("one with an unknown price", sub("created", P1, json!({"items": other})), false),
        (
            "one cut off before its plan",
            object(&sub("created", P1, json!({"items": other})), json!({"items": {"has_more": true}})),
            true,
        ),
        ("a session that names its pack, without a quantity", pack(P1, "cs_1"), true),
        (
            "a session that names its pack and quantity",
            session("completed", P1, "cs_1", json!({"pack": "p1000", "quantity": "2"}), json!({})),
            false,
        ),
        (
            "a session that names its order",
            session("completed", P1, "cs_1", json!({"mode": "dfy", "plan": "starter"}), json!({})),
            false,
        ),
        (
            "a session that names its product",
            session("completed", P1, "cs_1", json!({"product": "course"}), json!({})),
            false,
        ),
        (
            "a payment link's, which has one name for all its prices",
            session(
                "completed",
                P1,
                "cs_1",
                json!({"product": "course"}),
                json!({"payment_link": "plink_1"}),
            ),
            true,
        ),
        ("one that names nothing", unnamed.clone(), true),
        (
            "one that names nothing and is not paid",
            object(&unnamed, json!({"payment_status": "unpaid"})),
            false,
        ),
        ("one of a connected account", with(&unnamed, json!({"account": "acct_1"})), false),
        ("one of an organization's account", with(&unnamed, json!({"context": "acct_1"})), false),
        ("a charge that may be of an invoice", charge.clone(), true),
        ("one that names its invoice", object(&charge, json!({"invoice": "in_1"})), false),
        ("one without a customer", object(&charge, json!({"customer": null})), false),
        ("one without a payment intent", object(&charge, json!({"payment_intent": null})), false),
        ("one of a pack", object(&charge, json!({"metadata": {"pack": "p1000"}})), false),
        ("a refund", refund.clone(), true),
        ("one without a payment intent", object(&refund, json!({"payment_intent": null})), false),
        ("a dispute", dispute.clone(), true),
        ("one without a payment intent", object(&dispute, json!({"payment_intent": null})), false),
    ];
    for (what, step, asks) in rows {
        let Step::Event(event) = step else { panic!("{what} is no event") };
        let event = event::read(event.to_string().as_bytes()).unwrap();
        assert_eq!(super::leaves_out(&event), asks, "{what}");
        let is_reversal = ["charge.", "refund."].iter().any(|kind| event.kind.as_str().starts_with(kind));
        assert_eq!(super::is_reversal(&event), is_reversal, "{what}");
    }
}

/// Stripe lists the first lines of a long invoice in the event.
#[test]
fn a_document_that_was_applied_before_is_parked_for_its_missing_lines() {
    let cut_off = invoice(
        "paid",
        P1,
        "in_1",
        "subscription_create",
        &[line("price_pro", 1, P1)],
        json!({"lines": {"has_more": true}}),
    );
    let run = Run::of(&[paid(P1, "in_1", "subscription_create", "price_pro", P1), cut_off]);
    assert_eq!(run.parked.iter().map(|(_, why)| why.code()).collect::<Vec<_>>(), ["lines_missing"]);
}

#[test]
fn a_parked_event_names_what_it_waits_for() {
    let waits = |parked: Parked| parked.waits_for();
    assert_eq!(waits(Parked::NoUser(Some("cus_1".parse().unwrap()))).as_deref(), Some("customer#cus_1"));
    assert_eq!(waits(Parked::UnknownName("pack", "gold".to_owned())).as_deref(), Some("pack#gold"));
    assert_eq!(waits(Parked::NoUser(None)), None);
    assert_eq!(waits(Parked::LinesMissing), None);
}

/// The effects of an event besides the account, after these steps: `effect | links | payments | order`.
fn beside(given: &[Step], step: &Step) -> String {
    let run = Run::of(given);
    let Step::Event(body) = step else { panic!("{step:?} is no event") };
    let event = event::read(body.to_string().as_bytes()).unwrap();
    let mut run = run;
    run.now = Timestamp::from_unix(P2);
    let Outcome::Apply(applied) = run.decided(&event) else { return "not applied".to_owned() };
    let document =
        |record: &PaymentRecord| record.document.as_ref().map_or("-".to_owned(), ToString::to_string);
    let payments = applied
        .payments
        .iter()
        .map(|(payment, record)| format!("{payment}={}", document(record)))
        .collect::<Vec<_>>();
    let links = applied.links.iter().map(ToString::to_string).collect::<Vec<_>>();
    let order = applied.order.as_ref().map_or("-", |order| order.session.as_str());
    format!("{} | {} | {} | {order}", applied.effect.as_str(), links.join(" "), payments.join(" "))
}

#[test]
fn an_outcome_has_the_effect_links_payments_and_order_of_an_event() {
    let bought = || paid(P1, "in_1", "subscription_create", "price_pro", P1);
    let unpaid =
        |kind: &str| session(kind, P1, "cs_1", json!({"pack": "p1000"}), json!({"payment_status": "unpaid"}));
    let mode = |mode: &str, status: &str| {
        session(
            "completed",
            P1,
            "cs_1",
            json!({}),
            json!({"mode": mode, "payment_status": status, "payment_intent": null}),
        )
    };
    let order = || session("completed", P1, "cs_1", json!({"mode": "dfy", "plan": "starter"}), json!({}));
    let by = |payments: Value| {
        invoice("paid", P1, "in_1", "subscription_create", &[line("price_pro", 1, P1)], payments)
    };
    let of_charge = by(json!({"payments": null, "charge": "ch_1"}));
    let pack_by_invoice = || {
        let patch = json!({"parent": {"subscription_details": null}, "payments": null,
            "payment_intent": "pi_cs_1", "metadata": {"user_id": "user_1"}});
        invoice("paid", P1 + 5, "in_1", "manual", &[shapes::once("price_p1000", 2000)], patch)
    };
    let trial_line = patched(line("price_pro", 1, P1), &json!({"amount": 0}));
    // https://docs.stripe.com/api/invoice-payment/object: `payment.type` may be `payment_record`.
    let record = json!({"id": "inpay_1", "object": "invoice_payment", "invoice": "in_1", "status": "paid",
        "payment": {"type": "payment_record", "payment_record": "pr_1"}});
    let by_record = event("invoice_payment.paid", P1 + 9, &record, None);
    let deleted =
        event("customer.deleted", P1, &json!({"id": "cus_9", "metadata": {"user_id": "user_1"}}), None);
    let charge = |patch: Value| {
        let Step::Event(event) = refunded(P1 + 9, "pi_in_1", 100) else { panic!("no event") };
        Step::Event(patched(event, &json!({"data": {"object": patch}})))
    };
    for (what, given, step, expect) in [
        ("a first payment", vec![], bought(), "updated | cus_1 | pi_in_1=invoice#in_1 | -"),
        (
            "of a customer who is known",
            vec![sub("created", P1, json!({}))],
            bought(),
            "updated |  | pi_in_1=invoice#in_1 | -",
        ),
        ("named by a charge", vec![], of_charge, "updated | cus_1 | ch_1=invoice#in_1 | -"),
        ("an invoice that is open", vec![], by(json!({"status": "open"})), "not_paid | cus_1 |  | -"),
        (
            "a manual invoice",
            vec![],
            paid(P1, "in_1", "manual", "price_pro", P1),
            "updated | cus_1 | pi_in_1=invoice#in_1 | -",
        ),
        (
            "a payment that failed",
            vec![],
            invoice("payment_failed", P1, "in_1", "subscription_cycle", &[], json!({})),
            "not_paid | cus_1 |  | -",
        ),
        (
            "one to be confirmed",
            vec![],
            invoice("payment_action_required", P1, "in_1", "manual", &[], json!({})),
            "not_paid | cus_1 |  | -",
        ),
        (
            "a part of a period of a pack",
            vec![bought()],
            invoice("paid", P1, "in_2", "manual", &[proration("price_p1000", 900)], json!({})),
            "pack_prorated |  | pi_in_2=invoice#in_2 | -",
        ),
        (
            "of one that costs nothing",
            vec![bought()],
            invoice("paid", P1, "in_2", "manual", &[proration("price_p1000", 0)], json!({})),
            "no_known_line |  | pi_in_2=invoice#in_2 | -",
        ),
        ("a pack", vec![], pack(P1, "cs_1"), "quantity_assumed | cus_1 | pi_cs_1=session#cs_1 | -"),
        (
            "a pack with its quantity",
            vec![],
            session("completed", P1, "cs_1", json!({"pack": "p1000", "quantity": "1"}), json!({})),
            "updated | cus_1 | pi_cs_1=session#cs_1 | -",
        ),
        ("a pack that is not paid", vec![], unpaid("completed"), "not_paid | cus_1 |  | -"),
        ("one that failed", vec![], unpaid("async_payment_failed"), "not_paid | cus_1 |  | -"),
        ("one that expired", vec![], unpaid("expired"), "not_paid | cus_1 |  | -"),
        ("a subscription's session", vec![], mode("subscription", "paid"), "updated | cus_1 |  | -"),
        ("one that is not paid", vec![], mode("subscription", "unpaid"), "not_paid | cus_1 |  | -"),
        ("a set-up", vec![], mode("setup", "no_payment_required"), "updated | cus_1 |  | -"),
        ("an order", vec![], order(), "updated | cus_1 | pi_cs_1=session#cs_1 | cs_1"),
        ("the same again", vec![order()], order(), "updated |  |  | -"),
        (
            "one that names its plan by the other name",
            vec![],
            session("completed", P1, "cs_1", json!({"mode": "dfy", "plan_code": "starter"}), json!({})),
            "updated | cus_1 | pi_cs_1=session#cs_1 | cs_1",
        ),
        (
            "a line that the catalog does not name, of a subscription that it knows",
            vec![sub("created", P1, json!({}))],
            paid(P1, "in_9", "subscription_cycle", "price_unknown", P1),
            "no_known_line |  | pi_in_9=invoice#in_9 | -",
        ),
        (
            "an upgrade whose snapshot has not arrived",
            vec![bought()],
            invoice(
                "paid",
                P1 + 500,
                "in_up",
                "subscription_update",
                &[proration("price_business", 1100)],
                json!({}),
            ),
            "nothing_yet |  | pi_in_up=invoice#in_up | -",
        ),
        (
            "a session whose invoice sold the pack",
            vec![pack_by_invoice()],
            pack(P1, "cs_1"),
            "quantity_assumed |  | pi_cs_1=session#cs_1 | -",
        ),
        (
            "a price that has left the catalog",
            vec![bought(), Step::Edit("\"price_pro\", ", "")],
            paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
            "price_not_in_catalog |  | pi_in_2=invoice#in_2 | -",
        ),
        (
            "a plan for life without its quantity",
            vec![],
            session("completed", P1, "cs_1", json!({"plan": "pro"}), json!({})),
            "quantity_assumed | cus_1 | pi_cs_1=session#cs_1 | -",
        ),
        (
            "a subscription to a price that has left the catalog",
            vec![bought(), Step::Edit("\"price_pro\", ", "")],
            sub("created", P1, json!({})),
            "price_not_in_catalog |  |  | -",
        ),
        (
            "the zero line of a trial",
            vec![],
            invoice("paid", P1, "in_1", "subscription_create", &[trial_line], json!({})),
            "updated | cus_1 | pi_in_1=invoice#in_1 | -",
        ),
        ("a payment record without a payment", vec![bought()], by_record.into(), "no_effect |  |  | -"),
        (
            "the invoice of a session that sold the pack",
            vec![pack(P1, "cs_1")],
            pack_by_invoice(),
            "one_purchase |  |  | -",
        ),
        (
            "a refund of another customer's card",
            vec![bought()],
            charge(json!({"customer": "cus_other"})),
            "updated |  | pi_in_1=invoice#in_1 | -",
        ),
        ("a subscription", vec![], sub("created", P1, json!({})), "updated | cus_1 |  | -"),
        ("a customer who was deleted", vec![], deleted.into(), "updated | cus_9 |  | -"),
        (
            "a refund whose payment is known",
            vec![bought()],
            charge(json!({})),
            "updated |  | pi_in_1=invoice#in_1 | -",
        ),
        (
            "a refund that names its invoice",
            vec![bought()],
            charge(json!({"invoice": "in_1", "payment_intent": "pi_x", "id": "ch_x"})),
            "updated |  | pi_x=invoice#in_1 | -",
        ),
        (
            "one without a payment intent",
            vec![bought()],
            charge(json!({"invoice": "in_1", "payment_intent": null, "id": "ch_x"})),
            "updated |  | ch_x=invoice#in_1 | -",
        ),
    ] {
        assert_eq!(beside(&given, &step), expect, "{what}");
    }
}

#[test]
fn the_status_of_a_subscription_alone_buys_pays_and_orders_nothing() {
    let catalog = Catalog::parse(CATALOG).unwrap();
    let account = Run::of(&[]).account;
    let orders = session("completed", P1, "cs_1", json!({"mode": "dfy", "plan": "starter"}), json!({}));
    for step in [
        orders,
        pack(P1, "cs_2"),
        paid(P1, "in_1", "subscription_create", "price_pro", P1),
        sub("created", P1, json!({})),
    ] {
        let Step::Event(body) = &step else { panic!("no event") };
        let event = event::read(body.to_string().as_bytes()).unwrap();
        let Outcome::Apply(applied) =
            super::decide_status(&account, &event, &catalog, Timestamp::from_unix(P1))
        else {
            panic!("{step:?}")
        };
        assert_eq!(
            (applied.payments.len(), applied.order.as_ref(), applied.change.entries.len()),
            (0, None, 0),
            "{step:?}"
        );
        assert_eq!(applied.links.len(), 1, "the customer is linked");
    }
}

#[test]
fn without_a_catalog_what_may_sell_waits_for_one() {
    let account = Run::of(&[]).account;
    let none = BTreeMap::new();
    let code = |step: &Step, catalog: &Catalog| {
        let Step::Event(body) = step else { panic!("{step:?} is no event") };
        let event = event::read(body.to_string().as_bytes()).unwrap();
        match decide(&account, &event, &none, catalog, Timestamp::from_unix(P2)) {
            Outcome::Park(parked) => parked.code(),
            Outcome::Apply(_) | Outcome::Ignore(_) | Outcome::Tie => "",
        }
    };
    let customer = json!({"id": "cus_1", "metadata": {"user_id": "user_1"}});
    let sold = Catalog::parse(CATALOG).unwrap();
    for (step, without) in [
        (pack(P1, "cs_1"), "no_catalog"),
        (sub("created", P1, json!({})), "no_catalog"),
        (paid(P1, "in_1", "subscription_create", "price_pro", P1), "no_catalog"),
        (event("customer.deleted", P1, &customer, None).into(), ""),
    ] {
        assert_eq!((code(&step, &Catalog::absent()), code(&step, &sold)), (without, ""), "{step:?}");
    }
}

#[test]
fn the_names_in_the_log_are_stable() {
    use super::{Effect, Ignored};
    assert_eq!(
        [Effect::Updated, Effect::NotPaid, Effect::Nothing].map(Effect::as_str),
        ["updated", "not_paid", "no_effect"]
    );
    assert_eq!(
        [Ignored::Type, Ignored::Livemode, Ignored::Account, Ignored::Context, Ignored::Foreign]
            .map(|why| why.as_str()),
        ["type", "livemode", "account", "context", "foreign"]
    );
}
