//! What must hold in the tables and queues at any time. `docs/faults.md` has the numbers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::World;

/// Both tables, with plain JSON for items.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// By `pk` and `sk`.
    pub accounts: BTreeMap<(String, String), Value>,
    /// By event id.
    pub events: BTreeMap<String, Value>,
}

/// Our own times and counts: they may differ between two equivalent runs.
const OURS: [&str; 8] = ["updated_at", "received", "finished", "attempts", "seen", "day", "expires_at", "at"];
/// The order of arrival: it may differ between two equivalent runs.
const ORDER: [&str; 6] = ["previous", "balance", "last_entry", "last_event", "version", "revision"];
/// Ours only in the event log, where `due` is a time. In a reversal `due` is an amount.
const OURS_IN_THE_LOG: [&str; 1] = ["due"];

impl Tables {
    pub async fn read(world: &World) -> Self {
        let all = world.everything().await;
        let mut tables = Self::default();
        for item in all[0][0].as_array().unwrap() {
            let item = plain_item(item);
            tables.accounts.insert((text(&item["pk"]), text(&item["sk"])), item);
        }
        for item in all[0][1].as_array().unwrap() {
            let item = plain_item(item);
            tables.events.insert(text(&item["pk"]), item);
        }
        tables
    }

    /// Without the times and counts of our own, and without the order of arrival.
    pub fn meaning(&self) -> Self {
        let mut tables = self.clone();
        tables.accounts.values_mut().chain(tables.events.values_mut()).for_each(forget_ours);
        let log = tables.events.values_mut().filter_map(Value::as_object_mut);
        log.for_each(|item| item.retain(|name, _| !OURS_IN_THE_LOG.contains(&name.as_str())));
        tables
    }

    /// Panics with the items that differ.
    pub fn must_be(&self, expected: &Self, when: &str) {
        let differ = |one: &BTreeMap<_, Value>, two: &BTreeMap<_, Value>| -> Vec<String> {
            let keys: std::collections::BTreeSet<_> = one.keys().chain(two.keys()).collect();
            let keys = keys.into_iter().filter(|key| one.get(*key) != two.get(*key));
            keys.map(|key: &(String, String)| {
                format!("{key:?}\n  is {:?}\n  not {:?}", one.get(key), two.get(key))
            })
            .collect()
        };
        let keyed = |events: &BTreeMap<String, Value>| {
            events.iter().map(|(id, item)| ((id.clone(), String::new()), item.clone())).collect()
        };
        let mut found = differ(&self.accounts, &expected.accounts);
        found.extend(differ(&keyed(&self.events), &keyed(&expected.events)));
        assert!(found.is_empty(), "{when}: {}", found.join("\n"));
    }

    pub fn users(&self) -> Vec<String> {
        let users = self.accounts.keys().filter(|(pk, _)| pk.starts_with("user#")).map(|(pk, _)| pk.clone());
        let mut users: Vec<_> = users.collect();
        users.dedup();
        users
    }

    pub fn credits(&self, user: &str) -> i64 {
        self.accounts
            .get(&(format!("user#{user}"), "account".to_owned()))
            .and_then(|item| item["credits"].as_i64())
            .unwrap_or(0)
    }

    /// I1 to I3, I8's shape, I12, I18 and I20: what holds after every single write, crashed or not.
    pub fn check(&self, when: &str) {
        for pk in self.users() {
            let user = pk.strip_prefix("user#").unwrap_or_default();
            let account = self.accounts.get(&(pk.clone(), "account".to_owned()));
            let account = account.unwrap_or_else(|| panic!("{when}: {pk} has items and no account"));
            let credits = account["credits"].as_i64().unwrap();
            assert!(credits >= 0, "{when}: {account}");

            let range = (pk.clone(), "ledger#".to_owned())..(pk.clone(), "ledger$".to_owned());
            let mut entries: BTreeMap<&str, &Value> = self
                .accounts
                .range(range)
                .map(|((_, sk), entry)| (sk.trim_start_matches("ledger#"), entry))
                .collect();
            // The entry of an invoice is the invoice's own item.
            let invoices = self
                .accounts
                .iter()
                .filter(|((pk, _), entry)| pk.starts_with("invoice#") && entry["user_id"] == user);
            entries.extend(invoices.map(|((pk, _), entry)| (pk.as_str(), entry)));
            let deltas: i64 = entries.values().map(|entry| entry["delta"].as_i64().unwrap()).sum();
            assert_eq!(deltas, credits, "{when}: I2, the entries of {user} do not add up: {entries:#?}");

            // The list from the newest entry on visits every entry once, and is a running balance.
            let (mut next, mut balance, mut visited) = (account["state"]["last_entry"].as_str(), credits, 0);
            while let Some(key) = next {
                let entry =
                    entries.get(key).unwrap_or_else(|| panic!("{when}: I3, {user} has no entry {key}"));
                assert_eq!(entry["key"], key, "{when}");
                assert_eq!(entry["balance"].as_i64(), Some(balance), "{when}: I2 at {key} of {user}");
                balance -= entry["delta"].as_i64().unwrap();
                next = entry["previous"].as_str();
                visited += 1;
                assert!(visited <= entries.len(), "{when}: the entries of {user} form a ring");
            }
            assert_eq!(
                (visited, balance),
                (entries.len(), 0),
                "{when}: I1, entries beside the list of {user}"
            );

            for (key, entry) in &entries {
                assert!(entry["expires_at"].is_null(), "{when}: {key} would expire");
                let cause = entry["cause"].as_str().unwrap();
                if cause.starts_with("evt_") {
                    let event = self
                        .events
                        .get(cause)
                        .unwrap_or_else(|| panic!("{when}: I3, {key} without its marker {cause}"));
                    assert_eq!(
                        (text(&event["outcome"]), text(&event["user_id"])),
                        ("processed".into(), user.into()),
                        "{when}: I3, {key}"
                    );
                }
            }
            for (customer, _) in account["state"]["customers"].as_object().into_iter().flatten() {
                // A customer that pays for several users keeps the first as its owner.
                let link = self.accounts.get(&(format!("customer#{customer}"), "link".to_owned()));
                let owner = link.map(|link| text(&link["user_id"]));
                let shared = link.is_some_and(|link| link["shared"].as_bool() == Some(true));
                assert!(owner.as_deref() == Some(user) || shared, "{when}: I20, {customer}: {link:?}");
            }
        }
        for ((pk, _), link) in self.accounts.iter().filter(|((_, sk), _)| sk == "link") {
            if link["user_id"].is_null() {
                // Not linked to a user yet: the item lists the events that wait for it.
                continue;
            }
            let account =
                self.accounts.get(&(format!("user#{}", text(&link["user_id"])), "account".to_owned()));
            let account =
                account.unwrap_or_else(|| panic!("{when}: I3, {pk} links to a user without an account"));
            if let Some(customer) = pk.strip_prefix("customer#") {
                assert!(
                    account["state"]["customers"].get(customer).is_some(),
                    "{when}: I20, {pk} is not among {account}"
                );
            }
        }
        for (id, event) in &self.events {
            let outcome = text(&event["outcome"]);
            assert!(
                ["processed", "ignored", "parked", "failed", "dismissed"].contains(&outcome.as_str()),
                "{when}: {id} is {outcome}"
            );
            assert_eq!(
                event["open"].is_string(),
                ["parked", "failed", "dismissed"].contains(&outcome.as_str()),
                "{when}: {event}"
            );
            // A payment is linked to an invoice without a known user.
            let is_tie = event["type"] == "invoice_payment.paid" && event["user_id"].is_null();
            if outcome == "processed" && !is_tie {
                let user = (format!("user#{}", text(&event["user_id"])), "account".to_owned());
                assert!(
                    self.accounts.contains_key(&user),
                    "{when}: I3, {id} is processed and its user has no account"
                );
            }
        }
    }
}

/// I4, I5: the queues are empty and each of these events has an outcome.
pub async fn check_quiet(world: &World, events: &[Value], when: &str) -> Tables {
    let tables = Tables::read(world).await;
    tables.check(when);
    for queue in world.everything().await[1].as_array().unwrap() {
        assert_eq!(
            (&queue[1], &queue[2], &queue[3]),
            (&json!(0), &json!(0), &json!(0)),
            "{when}: I5, {queue}"
        );
    }
    for event in events {
        let id = event["id"].as_str().unwrap();
        assert!(tables.events.contains_key(id), "{when}: I5, {id} is lost");
    }
    for pk in tables.users() {
        let account = world.account(pk.strip_prefix("user#").unwrap_or_default()).await;
        let buckets = &account["buckets"];
        let plans: i64 =
            buckets["subscriptions"].as_object().unwrap().values().filter_map(Value::as_i64).sum();
        let others = ["signup", "lifetime", "grant", "addon"].map(|name| buckets[name].as_i64().unwrap());
        let sum = plans + others.iter().sum::<i64>();
        assert_eq!(Some(sum), account["credits"].as_i64(), "{when}: {account:#}");
    }
    tables
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn plain_item(item: &Value) -> Value {
    Value::Object(
        item.as_object().unwrap().iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
    )
}

/// DynamoDB's JSON as JSON.
fn plain(value: &Value) -> Value {
    let (kind, value) = value.as_object().and_then(|map| map.iter().next()).unwrap();
    match kind.as_str() {
        "N" => serde_json::from_str(value.as_str().unwrap()).unwrap(),
        "M" => plain_item(value),
        "L" => value.as_array().unwrap().iter().map(plain).collect(),
        "NULL" => Value::Null,
        _ => value.clone(),
    }
}

fn forget_ours(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, _| !OURS.contains(&name.as_str()) && !ORDER.contains(&name.as_str()));
            // These have no event of Stripe, so `created` is our own time.
            if map.get("cause").is_some_and(|cause| cause == "app")
                || map.get("reason").is_some_and(|reason| reason == "message")
            {
                map.remove("created");
            }
            if let Some(state) = map.get_mut("state").and_then(Value::as_object_mut) {
                let is_ours = |name: &str| name == "created_at" || name == "as_of";
                state.retain(|name, _| !is_ours(name) && !ORDER.contains(&name.as_str()));
                // The app's request has no time of its own.
                if let Some(signup) = state.get_mut("signup").and_then(Value::as_object_mut) {
                    signup.remove("since");
                }
            }
            let taken = map.get_mut("from").and_then(Value::as_array_mut).into_iter().flatten();
            for lot in taken.filter_map(Value::as_object_mut).filter(|lot| lot["lot"] == "signup") {
                lot.remove("since");
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {}
    }
}
