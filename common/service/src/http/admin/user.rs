//! `GET /admin/stripe/check-user/{id}`: explains a user.
//!
//! ```json
//! {"user_id":"user_1","found":true,
//!  "verdict":{"code":"differs","text":"Stripe has 2 things that …","act":"apply_stripe"},
//!  "account":{"tier":"free","credits":0,…},
//!  "because":[{"field":"bucket sub_1","value":"0","rule":"not_paid","why":"no paid invoice …",
//!              "event_id":null,"ledger_key":null,"at":null}],
//!  "ledger":{"entries":[…],"next":null},
//!  "events":[…], "open":[…],
//!  "stripe":{"configured":true,"error":null,"customers":[{"id":"cus_1","deleted":false}],
//!            "subscriptions":[…],"payments":[…]},
//!  "differences":[{"class":"credits","object":"in_1","customer":"cus_1","before":{…},"after":{…},
//!                  "repairable":true,"why":null}],
//!  "suggestions":[{"act":"link_customer","target":"cus_9","events":["evt_7"],"text":"…"}]}
//! ```
//! A user without an account has `"found":false`. The answer still contains what may be related to the user,
//! because an operator asks when something is missing.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::{join, join_all};
use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde_json::{Value, json};

use super::log::view;
use super::reconcile::GRACE_SECONDS;
use super::{Admin, deadline, limit, parameter, seconds};
use crate::account_view::{lots_view, payment_action_view, products_view};
use crate::accounts::load_account;
use crate::http::answer::{Problem, problem};
use crate::schedules::reconcile::{Options, Reconciler};
use tallyhook_aws::payload;
use tallyhook_aws::store::StoreError;
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::log::LogRecord;
use tallyhook_aws::stripe::{Cursor, Filter, ListPage, Object, Stripe, StripeError};
use tallyhook_core::account::explain::LoggedEvent;
use tallyhook_core::account::lots::Hold;
use tallyhook_core::account::{Account, Lot, State};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::ids::{CustomerId, EventId, HoldId, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::timestamp::Timestamp;

/// Events of the user's list that are read, one after the other.
const MAX_EVENTS: usize = 60;
/// Ledger entries on the first page.
const ENTRIES: usize = 20;
/// Customers of one user that are read from Stripe.
const MAX_CUSTOMERS: usize = 5;
/// Payments that are shown of each customer.
const PAYMENTS: usize = 10;
/// Parked events whose e-mail addresses are compared.
const MAX_COMPARED: usize = 100;

/// An event of the user's list.
struct UserEvent {
    record: LogRecord,
    logged: LoggedEvent,
    email: Option<String>,
}

impl Admin {
    pub(super) async fn check_user(&self, user: &UserId, now_ms: i64) -> Result<Value, Problem> {
        let now = seconds(now_ms);
        let key = Key::Account(user.clone());
        let items = self.store.load([key.clone()]).await?;
        let stored = items.get(&key);
        let mut account = match stored {
            Some(item) => items::read_account(user, item)?,
            None => Account::new(user.clone()),
        };
        let (entries, next) = self.entries(user, account.state.last_entry.clone(), ENTRIES).await?;
        let more: Vec<Key> = account
            .state
            .explaining_keys(&self.processor.accounts.catalog, now)
            .into_iter()
            .map(|entry| Key::entry(user, &entry))
            .collect();
        let more = self.store.load(more).await?;
        account.recorded.extend(load_account(user, &more)?.recorded);
        account.recorded.extend(entries.iter().map(|entry| (entry.key.clone(), entry.clone())));
        let events = self.events_of(&account).await?;
        let logged: Vec<LoggedEvent> = events.iter().map(|event| event.logged.clone()).collect();
        let mut complete = true;
        let open = self.open(&mut complete).await?;
        let customers: BTreeSet<String> = account.state.customers.keys().map(ToString::to_string).collect();
        let is_theirs = |record: &&LogRecord| {
            let waits = record.waits_for.as_deref().and_then(|waits_for| waits_for.strip_prefix("customer#"));
            record.user_id.as_deref() == Some(user.as_str())
                || waits.is_some_and(|customer| customers.contains(customer))
        };
        let theirs: Vec<&LogRecord> = open.iter().filter(is_theirs).collect();
        let orders = self.store.orders(user).await?;
        let mut emails: BTreeMap<String, String> = events
            .iter()
            .filter_map(|event| Some((event.email.clone()?, format!("event {}", event.record.id))))
            .collect();
        emails.extend(orders.iter().filter_map(|order| {
            let of = |name: &str| order.get(name).and_then(Value::as_str);
            Some((of("customer_email")?.to_lowercase(), format!("order {}", of("id")?)))
        }));
        if user.as_str().contains('@') {
            emails.insert(user.as_str().to_lowercase(), "the user id".to_owned());
        }
        let (suggestions, (stripe, differences)) =
            join(self.suggestions(&emails, &account, &open), self.ask_stripe(user, &account, now)).await;
        let suggestions = suggestions?;
        let catalog = &self.processor.accounts.catalog;
        let because = stored.map(|_| account.explain(&logged, catalog, now)).unwrap_or_default();
        Ok(json!({
            "user_id": user,
            "found": stored.is_some(),
            "verdict": verdict(stored.is_some(), &account, &theirs, &stripe, &differences, &suggestions),
            "account": stored.map(|item| self.account_view(&account, item, &orders, now)),
            "because": because,
            "ledger": {"entries": entries.iter().map(entry_view).collect::<Vec<_>>(), "next": next},
            "events": events.iter().map(|event| view(&event.record)).collect::<Vec<_>>(),
            "open": theirs.iter().map(|record| view(record)).collect::<Vec<_>>(),
            "open_complete": complete,
            "stripe": stripe,
            "differences": differences,
            "suggestions": suggestions,
        }))
    }

    pub(super) async fn ledger(&self, user: &UserId, request: &Request) -> Result<Value, Problem> {
        let limit = limit(request, 50, 100)?;
        let from = match parameter(request, "next") {
            Some(key) => {
                let key = LedgerKey::from_text(&key);
                let there =
                    key.as_str().len() <= 900 && self.processor.accounts.entry(user, &key).await?.is_some();
                if !there {
                    return Err(super::bad("invalid_next", "next must be what the last page gave"));
                }
                Some(key)
            }
            None => {
                let key = Key::Account(user.clone());
                let items = self.store.load([key.clone()]).await?;
                let unknown = || problem(StatusCode::NOT_FOUND, "user_not_found", "no account has this id");
                items::read_account(user, items.get(&key).ok_or_else(unknown)?)?.state.last_entry
            }
        };
        let (entries, next) = self.entries(user, from, limit).await?;
        Ok(json!({"entries": entries.iter().map(entry_view).collect::<Vec<_>>(), "next": next}))
    }

    /// Ledger entries from this one on, newest first, and the key of the next one.
    async fn entries(
        &self,
        user: &UserId,
        from: Option<LedgerKey>,
        limit: usize,
    ) -> Result<(Vec<Entry>, Option<LedgerKey>), StoreError> {
        let (mut entries, mut next) = (Vec::new(), from);
        while let Some(key) = next.take_if(|_| entries.len() < limit) {
            let Some(entry) = self.processor.accounts.entry(user, &key).await? else { break };
            next.clone_from(&entry.previous);
            entries.push(entry);
        }
        Ok((entries, next))
    }

    /// The user's list of events, newest first. It ends where the log has deleted an event.
    async fn events_of(&self, account: &Account) -> Result<Vec<UserEvent>, StoreError> {
        let (mut events, mut next) = (Vec::new(), account.state.last_event.clone());
        while let Some(id) = next.take_if(|_| events.len() < MAX_EVENTS) {
            let key = Key::event(&id);
            let items = self.store.load([key.clone()]).await?;
            let Some(item) = items.get(&key) else { break };
            next = items::read_text(item, "previous").and_then(|previous| EventId::new(previous).ok());
            let Some(record) = LogRecord::read(item) else { continue };
            let logged = LoggedEvent {
                id: record.id.clone(),
                created: record.created,
                kind: record.kind.clone(),
                objects: items::read_objects(item),
            };
            events.push(UserEvent { record, logged, email: email(item) });
        }
        Ok(events)
    }

    fn account_view(
        &self,
        account: &Account,
        item: &Item,
        orders: &[BTreeMap<String, Value>],
        now: Timestamp,
    ) -> Value {
        let (state, catalog) = (&account.state, &self.processor.accounts.catalog);
        let access = state.access(catalog, now);
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let buckets = state.buckets(&catalog.policy, now);
        let subscriptions = state.subscriptions.iter().filter_map(|(id, subscription)| {
            let one = state.summary(id, catalog, now)?;
            Some(json!({
                "id": id, "status": one.status, "customer": subscription.customer, "price": one.price,
                "plan": one.plan, "quantity": one.quantity, "period_start": time(one.start),
                "period_end": time(one.end), "credits": buckets.of_subscription(id),
                "cancel_at": time(one.ends),
            }))
        });
        let of_subscriptions: BTreeMap<_, _> =
            state.subscriptions.keys().map(|id| (id.as_str(), buckets.of_subscription(id))).collect();
        let customers =
            state.customers.iter().map(|(id, deleted)| json!({"id": id, "deleted_at": time(*deleted)}));
        json!({
            "tier": access.tier, "tier_rank": access.rank, "credits": buckets.balance(),
            "access_until": time(access.until),
            "buckets": {
                "signup": state.signup.as_ref().map(|_| buckets.sum(|lot| *lot == Lot::Signup)),
                "subscriptions": of_subscriptions,
                "items": buckets.by_item(),
                "lifetime": buckets.sum(|lot| matches!(lot, Lot::Lifetime(_))),
                "grant": buckets.sum(|lot| matches!(lot, Lot::Opening | Lot::Grant(_))),
                "addon": buckets.sum(|lot| matches!(lot, Lot::Pack(_))),
            },
            "subscriptions": subscriptions.collect::<Vec<_>>(),
            "customers": customers.collect::<Vec<_>>(),
            "orders": orders,
            "available": state.available(&catalog.policy, now), "held": state.held(now),
            "holds": open_holds(state, now),
            "lots": lots_view(state, &buckets),
            "next_grant_at": time(state.next_grant_at(&buckets, &catalog.policy, now)),
            "features": features_view(state, catalog, now),
            "products": products_view(state, catalog, now),
            "payment_action": payment_action_view(state, catalog, now),
            "created_at": state.created_at.to_string(), "updated_at": time(items::updated_at(item)),
            "version": account.version, "first_paid_at": time(state.first_paid_at),
            "payment_failed_at": time(state.payment_failed_at),
        })
    }

    /// What Stripe has of the user, and how it differs from the account. A failure of Stripe is in `error`.
    async fn ask_stripe(&self, user: &UserId, account: &Account, now: Timestamp) -> (Value, Vec<Value>) {
        let mut found = json!({
            "configured": self.stripe.is_some(), "error": null, "customers": [], "subscriptions": [],
            "payments": [],
        });
        let Some(stripe) = &self.stripe else { return (found, Vec::new()) };
        let customers = account.state.customers.keys().take(MAX_CUSTOMERS);
        let customers = customers.map(|customer| read_customer(stripe, customer));
        let reconciler = Reconciler::new(stripe.clone(), self.processor.clone());
        let options = Options {
            dry_run: true,
            deadline: deadline(),
            grace_seconds: GRACE_SECONDS,
            ..Options::default()
        };
        let (answers, report) = join(join_all(customers), reconciler.run_for(user, &options, now)).await;
        found["error"] = json!(report.stopped);
        for answer in answers {
            match answer {
                Ok(lists) => {
                    for (name, values) in lists {
                        if let Some(all) = found[name].as_array_mut() {
                            all.extend(values);
                        }
                    }
                }
                Err(error) => found["error"] = json!(error),
            }
        }
        if let Some(failure) = report.failures.first() {
            found["error"] = json!(format!("{}: {}", failure.object, failure.error));
        }
        let changes = report.changes.iter().map(|change| {
            json!({
                "class": change.class, "object": change.object, "customer": change.customer,
                "before": change.before, "after": change.after, "repairable": true, "why": null,
            })
        });
        let left = report.left.iter().map(|left| {
            json!({
                "class": left.class, "object": left.object, "customer": left.customer,
                "before": left.before, "after": left.after, "repairable": false, "why": left.why,
            })
        });
        (found, changes.chain(left).collect())
    }

    /// Customers without a user that have one of the user's e-mail addresses. They are only suggested, never
    /// linked automatically.
    async fn suggestions(
        &self,
        emails: &BTreeMap<String, String>,
        account: &Account,
        open: &[LogRecord],
    ) -> Result<Vec<Value>, Problem> {
        if emails.is_empty() {
            return Ok(Vec::new());
        }
        let mut found: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
        for (customer, event, email) in self.unlinked(open).await? {
            if let Some(known_by) = emails.get(&email) {
                found.entry(customer).or_insert_with(|| (known_by.clone(), Vec::new())).1.push(event);
            }
        }
        let known = |customer: &str| account.state.customers.keys().any(|known| known.as_str() == customer);
        let suggest = |(customer, (known_by, events)): (String, (String, Vec<String>))| {
            let text = format!(
                "{customer} has the same e-mail address as {known_by}. If this is the same person, link it."
            );
            json!({"act": "link_customer", "target": customer, "events": events, "text": text})
        };
        Ok(found.into_iter().filter(|(customer, _)| !known(customer)).map(suggest).collect())
    }

    /// Customers that parked events wait for, each with the event's id and the e-mail address in it.
    pub(super) async fn unlinked(
        &self,
        open: &[LogRecord],
    ) -> Result<Vec<(String, String, String)>, StoreError> {
        let waits = |record: &LogRecord| {
            let customer = record.waits_for.as_deref()?.strip_prefix("customer#")?.to_owned();
            Some((Key::Event(record.id.clone()), customer))
        };
        let waiting: BTreeMap<Key, String> = open.iter().filter_map(waits).take(MAX_COMPARED).collect();
        let items = self.store.load(waiting.keys().cloned()).await?;
        let with_email =
            |(key, customer): (Key, String)| Some((customer, key.partition(), email(items.get(&key)?)?));
        Ok(waiting.into_iter().filter_map(with_email).collect())
    }
}

/// Reads what an operator compares of one customer. The error is Stripe's message.
async fn read_customer(
    stripe: &Stripe,
    customer: &CustomerId,
) -> Result<Vec<(&'static str, Vec<Value>)>, String> {
    let filter = Filter { customer: Some(customer.clone()), ..Filter::default() };
    let newest = Cursor::Newest;
    let (one, subscriptions) = join(stripe.customer(customer), stripe.subscriptions(&filter, &newest)).await;
    let (invoices, sessions) =
        join(stripe.paid_invoices(&filter, &newest), stripe.finished_sessions(&filter, &newest)).await;
    let one = match one {
        Ok(object) => json!({"id": customer, "deleted": object.value()["deleted"] == true, "missing": false}),
        Err(error) if error.is_missing() => json!({"id": customer, "deleted": false, "missing": true}),
        Err(error) => return Err(error.to_string()),
    };
    let paid = |value: &Value| value["payment_status"] == "paid" && value["mode"] != "subscription";
    let mut payments: Vec<Value> = listed(invoices)?.iter().take(PAYMENTS).map(payment).collect();
    payments.extend(
        listed(sessions)?.iter().filter(|session| paid(&session.value())).take(PAYMENTS).map(payment),
    );
    Ok(vec![
        ("customers", vec![one]),
        ("subscriptions", listed(subscriptions)?.iter().map(subscription).collect()),
        ("payments", payments),
    ])
}

/// The objects of a list. Stripe refuses to list the objects of a missing customer; that counts as an empty
/// list, because the customer itself is shown as missing.
fn listed(page: Result<ListPage, StripeError>) -> Result<Vec<Object>, String> {
    match page {
        Ok(page) => Ok(page.objects),
        Err(error) if error.is_missing() => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}

fn at(value: &Value) -> Option<String> {
    value.as_i64().map(|unix| Timestamp::from_unix(unix).to_string())
}

fn subscription(object: &Object) -> Value {
    let value = object.value();
    let item = &value["items"]["data"][0];
    let of = |name: &str| at(&value[name]).or_else(|| at(&item[name]));
    json!({
        "id": value["id"], "status": value["status"], "customer": value["customer"],
        "price": item["price"]["id"], "quantity": item["quantity"],
        "period_start": of("current_period_start"), "period_end": of("current_period_end"),
        "cancel_at": at(&value["cancel_at"]), "cancel_at_period_end": value["cancel_at_period_end"],
        "created": at(&value["created"]),
    })
}

fn payment(object: &Object) -> Value {
    let value = object.value();
    let amount = if value["amount_paid"].is_null() { &value["amount_total"] } else { &value["amount_paid"] };
    json!({"id": value["id"], "object": value["object"], "amount": amount, "currency": value["currency"],
           "reason": value["billing_reason"], "created": at(&value["created"])})
}

/// The e-mail address in an event, in lower case.
fn email(item: &Item) -> Option<String> {
    let body = payload::unpack(items::read_payload(item)?)?;
    let event: Value = serde_json::from_slice(&body).ok()?;
    let object = &event["data"]["object"];
    let places =
        ["/customer_details/email", "/customer_email", "/billing_details/email", "/receipt_email", "/email"];
    places.into_iter().find_map(|place| object.pointer(place)?.as_str()).map(str::to_lowercase)
}

/// The most important finding about the user, and what to do about it.
fn verdict(
    found: bool,
    account: &Account,
    open: &[&LogRecord],
    stripe: &Value,
    differences: &[Value],
    suggestions: &[Value],
) -> Value {
    let repairable = differences.iter().filter(|difference| difference["repairable"] == true).count();
    let things = |count: usize| if count == 1 { "1 thing".to_owned() } else { format!("{count} things") };
    let (code, text, act) = if repairable > 0 {
        let text = format!(
            "Stripe has {} that this account does not. Applying Stripe's state repairs that.",
            things(repairable)
        );
        ("differs", text, Some("apply_stripe"))
    } else if let Some(first) = open.first() {
        let text = format!(
            "{} of this user's events wait or failed: {}.",
            open.len(),
            first.reason.as_deref().unwrap_or(&first.status)
        );
        ("open_events", text, None)
    } else if !suggestions.is_empty() {
        (
            "suggestion",
            "A customer without a user has this user's e-mail address.".to_owned(),
            Some("link_customer"),
        )
    } else if !found {
        let text = "No account has this id: the app has not created it (PUT /users/{id}), and no event named \
                    it. Check the spelling of the id.";
        ("unknown_user", text.to_owned(), None)
    } else if !differences.is_empty() {
        let text = format!(
            "Stripe and this account differ in {} that only an operator can decide.",
            things(differences.len())
        );
        ("person", text, None)
    } else if let Some(error) = stripe["error"].as_str() {
        (
            "stripe_silent",
            format!("Stripe did not answer ({error}), so this shows only what is stored here."),
            None,
        )
    } else if account.state.customers.is_empty() {
        let text = "No Stripe customer is linked to this user, so no payment can reach the account. If the \
                    user paid, find the customer and link it.";
        ("not_linked", text.to_owned(), Some("link_customer"))
    } else if stripe["configured"] == false {
        let text = "No event of this user waits here. Stripe was not asked, because no key is configured.";
        ("not_compared", text.to_owned(), None)
    } else {
        ("in_order", "Everything that Stripe has about this user is here.".to_owned(), None)
    };
    json!({"code": code, "text": text, "act": act})
}

/// The open holds, those that end first, first.
fn open_holds(state: &State, now: Timestamp) -> Vec<Value> {
    let mut open: Vec<_> = state.holds.iter().filter(|(_, hold)| hold.until > now).collect();
    open.sort_by_key(|(_, hold)| hold.until);
    let view = |(id, hold): (&HoldId, &Hold)| json!({"hold": id, "amount": hold.amount, "expires_at": hold.until.to_string()});
    open.into_iter().map(view).collect()
}

/// The features, each with what gives it.
fn features_view(state: &State, catalog: &Catalog, now: Timestamp) -> Vec<Value> {
    let features = state.features(catalog, now).into_iter().map(|(name, feature)| {
        json!({
            "name": name, "value": feature.value, "because": feature.because,
            "until": feature.until.map(|until| until.to_string()),
        })
    });
    features.collect()
}

pub(super) fn entry_view(entry: &Entry) -> Value {
    json!({
        "key": entry.key, "kind": entry.kind, "delta": entry.delta, "balance": entry.balance,
        "worth": entry.worth, "shortfall": entry.shortfall, "cause": entry.cause,
        "event_id": entry.cause.starts_with("evt_").then_some(&entry.cause),
        "reason": entry.reason, "note": entry.note, "at": entry.at.to_string(),
        "created": entry.created.to_string(),
    })
}
