//! Plays lives on the rules alone, without a store: one life per line of JSON in, one account per line out.
//!
//! `tests/judge/play.py --core` uses it. Input: `{"catalog","steps":[{"at":seconds,…}],"users":[…]}`, where a
//! step is one of `send`, `user`, `spend`, `hold`, `commit`, `release`, `give_back` and `fix`, as
//! `tests/judge/judge.py` plays them. Output: `{"answers":[…],"users":{…}}` or `{"error":"…"}`.

#![expect(clippy::disallowed_methods, reason = "a program reads and prints; the library does no IO")]

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use serde_json::{Value, json};
use tallyhook_core::account::fix::Fix;
use tallyhook_core::account::holds::{HoldError, hold_id};
use tallyhook_core::account::lots::Hold;
use tallyhook_core::account::{Account, Cause, Change, Fact};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::owner::{Links, StoredOwner, owner};
use tallyhook_core::decide::{
    Outcome, Parked, Payments, decide, invoice_of_purchase, invoice_of_reversal, is_reversal, joined_payment,
    ledger_keys, payment_refs,
};
use tallyhook_core::event::{Event, Object, read};
use tallyhook_core::ids::{CustomerId, SubscriptionId, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::timestamp::Timestamp;

struct User {
    account: Account,
    ledger: BTreeMap<LedgerKey, Entry>,
}

struct World {
    catalog: Catalog,
    users: BTreeMap<UserId, User>,
    subscriptions: BTreeMap<SubscriptionId, UserId>,
    customers: BTreeMap<CustomerId, UserId>,
    payments: Payments,
    parked: Vec<Event>,
    now: Timestamp,
}

impl World {
    fn deliver(&mut self, event: Event) -> Result<(), String> {
        if self.process(event)? {
            loop {
                let mut moved = false;
                for event in std::mem::take(&mut self.parked) {
                    moved |= self.process(event)?;
                }
                if !moved {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether something changed that other events may wait for.
    fn process(&mut self, event: Event) -> Result<bool, String> {
        let payments = self.payments_of(&event);
        let user = match self.owner_of(&event, &payments) {
            Ok(user) => user,
            Err(Some(parked)) => {
                if !matches!(parked, Parked::NoGrant(_) | Parked::NoUser(_)) {
                    return Err(format!("{} is parked: {parked}", event.id));
                }
                self.park(event, &payments);
                return Ok(false);
            }
            Err(None) => return Ok(self.tie(&event)),
        };
        let mut keys = ledger_keys(&event);
        keys.extend(invoice_of_purchase(&event).as_ref().map(LedgerKey::invoice));
        keys.extend(payments.values().filter_map(|record| record.document.clone()));
        let catalog = self.catalog.clone();
        let now = self.now;
        let owned = self
            .users
            .entry(user.clone())
            .or_insert_with(|| User { account: Account::new(user.clone()), ledger: BTreeMap::new() });
        let mut outcome = owned.decide(&event, &keys, &payments, &catalog, now);
        if let Outcome::Apply(applied) = &outcome {
            // The store refuses an entry that exists, and the event is decided again with it.
            let made = applied.change.entries.iter().map(|entry| entry.key.clone());
            let existing: Vec<LedgerKey> = made.filter(|key| owned.ledger.contains_key(key)).collect();
            if !existing.is_empty() {
                keys.extend(existing);
                outcome = owned.decide(&event, &keys, &payments, &catalog, now);
            }
        }
        match outcome {
            Outcome::Ignore(_) => Ok(false),
            Outcome::Tie => Ok(self.tie(&event)),
            Outcome::Park(parked) => {
                if !matches!(parked, Parked::NoGrant(_) | Parked::NoUser(_)) {
                    return Err(format!("{} is parked: {parked}", event.id));
                }
                self.park(event, &payments);
                Ok(false)
            }
            Outcome::Apply(applied) => {
                owned.commit(applied.change, &catalog, now)?;
                self.customers.extend(applied.links.into_iter().map(|link| (link, user.clone())));
                let subscriptions = applied.subscriptions.into_iter();
                self.subscriptions.extend(subscriptions.map(|id| (id, user.clone())));
                self.payments.extend(applied.payments);
                Ok(true)
            }
        }
    }

    fn park(&mut self, event: Event, payments: &Payments) {
        if let Some((payment, record)) = joined_payment(&event, payments) {
            self.payments.insert(payment, record);
        }
        if self.parked.iter().all(|other| other.id != event.id) {
            self.parked.push(event);
        }
    }

    fn tie(&mut self, event: &Event) -> bool {
        let Object::InvoicePayment(it) = &event.object else { return false };
        let document = LedgerKey::invoice(&it.invoice);
        let mut is_new = false;
        for payment in payment_refs(event) {
            let record = self.payments.entry(payment.as_str().to_owned()).or_default();
            is_new |= record.document.is_none();
            record.document.get_or_insert_with(|| document.clone());
        }
        is_new
    }

    /// The user of an event; `Err(None)` for the payment of an invoice that has no owner yet.
    fn owner_of(&self, event: &Event, payments: &Payments) -> Result<UserId, Option<Parked>> {
        let of_document = |key: &LedgerKey| {
            self.users.iter().find(|(_, user)| user.ledger.contains_key(key)).map(|(id, _)| id.clone())
        };
        if is_reversal(event) || matches!(event.object, Object::InvoicePayment(_)) {
            let mut users = payments
                .values()
                .filter_map(|record| record.user.clone().or_else(|| of_document(record.document.as_ref()?)));
            let own = || ledger_keys(event).iter().find_map(of_document);
            let found = users.next().or_else(|| if is_reversal(event) { None } else { own() });
            return found.ok_or_else(|| {
                let name = payment_refs(event).first().map_or("", |payment| payment.as_str()).to_owned();
                is_reversal(event).then_some(Parked::NoGrant(name))
            });
        }
        let stored = |user: Option<&UserId>| {
            let user = user?.clone();
            Some(StoredOwner { user, moved: false, by_reference: false, shared: false })
        };
        let links = Links {
            subscription: stored(event.subscription_id().and_then(|id| self.subscriptions.get(id))),
            customer: stored(event.customer().and_then(|id| self.customers.get(id))),
            referenced_account_exists: true,
        };
        owner(event, &links, &self.catalog.policy).map(|found| found.user).map_err(Some)
    }

    fn payments_of(&self, event: &Event) -> Payments {
        let refs = payment_refs(event);
        let document = ledger_keys(event).into_iter().next();
        let mut payments: Payments = self
            .payments
            .iter()
            .filter(|(payment, record)| {
                refs.iter().any(|named| named.as_str() == payment.as_str())
                    || (document.is_some() && record.document == document)
            })
            .map(|(payment, record)| (payment.clone(), record.clone()))
            .collect();
        if let Some(invoice) = invoice_of_reversal(event)
            && self.users.values().any(|user| user.ledger.contains_key(&invoice))
            && payments.values().all(|record| record.document.is_none())
            && let Some(payment) = refs.first()
        {
            payments.entry(payment.as_str().to_owned()).or_default().document = Some(invoice);
        }
        payments
    }

    /// What the app or an operator does; the answer is the HTTP status of the same call.
    fn act(&mut self, step: &Value, user: &UserId) -> Result<Value, String> {
        let (catalog, now) = (self.catalog.clone(), self.now);
        let owned = self
            .users
            .entry(user.clone())
            .or_insert_with(|| User { account: Account::new(user.clone()), ledger: BTreeMap::new() });
        let number = |name: &str| Credits::new(step[name].as_u64().unwrap_or(0));
        let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
        let (status, change) = if step.get("user").is_some() {
            let key = LedgerKey::signup();
            let known = owned.ledger.get(&key).map(|entry| (key.clone(), entry.clone()));
            owned.account.recorded = known.into_iter().collect();
            let cause = Cause { by: "app".to_owned(), adjust_key: key, created: now };
            let change = owned.account.evolve(vec![Fact::Signup], &cause, &catalog, now);
            (200, Some(change.map_err(|conflict| conflict.to_string())?))
        } else if step.get("spend").is_some() {
            let key = LedgerKey::consume(&text("key"));
            let change = owned.account.consume(number("spend"), key, &catalog, now);
            (if change.is_some() { 200 } else { 402 }, change)
        } else if step.get("hold").is_some() {
            let seconds = step["ttl"].as_i64().unwrap_or(900);
            let hold = Hold { amount: number("hold"), until: Timestamp::from_unix(now.unix() + seconds) };
            match owned.account.hold(hold_id(user, &text("key")), hold, &catalog, now) {
                Ok(change) => (201, Some(change)),
                Err(_) => (402, None),
            }
        } else if step.get("commit").is_some() {
            let (id, held) = (hold_id(user, &text("commit")), number("held"));
            match owned.account.commit_hold(&id, held, number("amount"), false, &catalog, now) {
                Ok(change) => (200, Some(change)),
                Err(HoldError::Exceeds(..)) => (400, None),
                Err(_) => (402, None),
            }
        } else if step.get("release").is_some() {
            let (id, held) = (hold_id(user, &text("release")), number("held"));
            (200, Some(owned.account.release_hold(&id, held, &catalog, now)))
        } else if step.get("give_back").is_some() {
            let name = text("give_back");
            let keys = [LedgerKey::consume(&name), LedgerKey::hold(&hold_id(user, &name))];
            let Some(spend) = keys.iter().find_map(|key| owned.ledger.get(key)).cloned() else {
                return Ok(json!(404));
            };
            let key = LedgerKey::unspend(&name, &text("key"));
            match owned.account.give_back(&spend, number("amount"), key, &catalog, now) {
                Ok((change, spend)) => {
                    owned.ledger.insert(spend.key.clone(), spend);
                    (200, Some(change))
                }
                Err(_) => (409, None),
            }
        } else if let Some(fix) = step.get("fix") {
            let until = fix["until"].as_str().and_then(Timestamp::parse);
            let credits = Credits::new(fix["credits"].as_u64().unwrap_or(0));
            let plan = fix["plan"].as_str().unwrap_or_default().to_owned();
            let (fix, key) = if fix["action"] == "grant" {
                (Fix::Grant(credits, until), LedgerKey::fix(&text("key")))
            } else {
                let from = fix["from"].as_str().and_then(Timestamp::parse).unwrap_or(now);
                (Fix::Complimentary { plan, from, until, credits }, LedgerKey::complimentary(&text("key")))
            };
            (200, Some(owned.account.fix(fix, key, "admin:judge", "judge", &catalog, now)))
        } else {
            return Err(format!("unknown step {step}"));
        };
        if let Some(change) = change {
            owned.commit(change, &catalog, now)?;
        }
        Ok(json!(status))
    }

    fn state(&self, user: &UserId) -> Value {
        let policy = &self.catalog.policy;
        let Some(owned) = self.users.get(user) else {
            return json!({"tier": policy.default_tier, "credits": 0, "available": 0, "lots": []});
        };
        let state = &owned.account.state;
        let buckets = state.buckets(policy, self.now);
        let mut lots: Vec<(String, u64)> = buckets
            .lots
            .iter()
            .filter(|one| one.left > Credits::ZERO)
            .map(|one| (one.lot.bucket(), one.left.get()))
            .collect();
        lots.sort();
        json!({
            "tier": state.access(&self.catalog, self.now).tier,
            "credits": buckets.balance().get(),
            "available": state.available(policy, self.now).get(),
            "lots": lots,
        })
    }
}

impl User {
    fn decide(
        &mut self,
        event: &Event,
        keys: &[LedgerKey],
        payments: &Payments,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Outcome {
        self.account.recorded =
            keys.iter().filter_map(|key| Some((key.clone(), self.ledger.get(key)?.clone()))).collect();
        decide(&self.account, event, payments, catalog, now)
    }

    fn commit(&mut self, change: Change, catalog: &Catalog, now: Timestamp) -> Result<(), String> {
        self.account.version += 1;
        self.account.state = change.state;
        for entry in change.entries {
            let key = entry.key.clone();
            if self.ledger.insert(key.clone(), entry).is_some() {
                return Err(format!("{key} is written twice"));
            }
        }
        let sum: i64 = self.ledger.values().map(|entry| entry.delta).sum();
        let balance = self.account.state.balance(&catalog.policy, now).get();
        if i64::try_from(balance) != Ok(sum) {
            return Err(format!("the entries add up to {sum}, the balance is {balance}"));
        }
        Ok(())
    }
}

fn play(life: &Value) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut world = World {
        catalog: Catalog::parse(&text(&life["catalog"])).map_err(|error| error.to_string())?,
        users: BTreeMap::new(),
        subscriptions: BTreeMap::new(),
        customers: BTreeMap::new(),
        payments: BTreeMap::new(),
        parked: Vec::new(),
        now: Timestamp::default(),
    };
    let users: Vec<UserId> = life["users"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|user| UserId::new(text(user)).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let mut answers = Vec::new();
    for step in life["steps"].as_array().into_iter().flatten() {
        world.now = Timestamp::from_unix(step["at"].as_i64().unwrap_or_default());
        if let Some(events) = step["send"].as_array() {
            for event in events {
                let event = read(event.to_string().as_bytes()).map_err(|error| error.to_string())?;
                world.deliver(event)?;
            }
            answers.push(Value::Null);
        } else {
            answers.push(world.act(step, &users[0])?);
        }
    }
    let states: BTreeMap<String, Value> =
        users.iter().map(|user| (user.to_string(), world.state(user))).collect();
    Ok(json!({"answers": answers, "users": states}))
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = serde_json::from_str::<Value>(&line?)
            .map_err(|error| error.to_string())
            .and_then(|life| play(&life))
            .unwrap_or_else(|error| json!({"error": error}));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
