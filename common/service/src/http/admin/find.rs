//! Who that is: from what a customer writes to support, to users.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, bad, stripe_failed};
use crate::http::answer::Problem;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_core::ids::{CustomerId, SubscriptionId, UserId};

/// A text that is longer names nobody.
const LONGEST: usize = 300;

/// The body of `POST /admin/stripe/find`; a body, because an e-mail address does not belong into an access
/// log.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Search {
    text: String,
}

impl Admin {
    /// ```json
    /// {"users":[{"user_id":"user_1","because":"cus_1 is bound to this user"}],
    ///  "customers":[{"id":"cus_9","because":"Stripe has this e-mail address for it","events":["evt_1"]}],"event_id":null,"stripe_asked":true}
    /// ```
    /// `customers` are those that are nobody's yet.
    pub(super) async fn find_user(&self, search: Search) -> Result<Value, Problem> {
        let text = search.text.trim();
        if text.is_empty() || text.len() > LONGEST || text.chars().any(char::is_control) {
            return Err(bad(
                "invalid_text",
                "text must be a user id, cus_…, sub_…, evt_… or an e-mail address",
            ));
        }
        let mut users: BTreeMap<String, String> = BTreeMap::new();
        let mut customers: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
        let mut event_id = None;
        if let Ok(user) = UserId::new(text) {
            let key = Key::Account(user);
            if self.store.load([key.clone()]).await?.contains_key(&key) {
                users.insert(text.to_owned(), "the id itself".to_owned());
            }
        }
        if let Some(item) = self.find(text).await? {
            event_id = Some(text);
            if let Some(user) = items::read_text(&item, "user_id") {
                users.insert(user, format!("{text} is about this user"));
            }
            if let Some(customer) = items::read_text(&item, "waits_for")
                .and_then(|waits| Some(waits.strip_prefix("customer#")?.to_owned()))
            {
                customers
                    .entry(customer)
                    .or_insert_with(|| (format!("{text} is about it"), BTreeSet::new()))
                    .1
                    .insert(text.to_owned());
            }
        }
        let mut named: Vec<(CustomerId, String)> = Vec::new();
        if let Ok(customer) = CustomerId::new(text) {
            named.push((customer, "the id itself".to_owned()));
        }
        if let (Ok(subscription), Some(stripe)) = (SubscriptionId::new(text), &self.stripe) {
            match stripe.subscription(&subscription).await {
                Ok(object) => {
                    let customer =
                        object.value()["customer"].as_str().and_then(|id| CustomerId::new(id).ok());
                    named.extend(customer.map(|customer| (customer, format!("{text} is its subscription"))));
                }
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(stripe_failed(&error)),
            }
        }
        if text.contains('@') {
            let mut complete = true;
            let open = self.open(&mut complete).await?;
            for (customer, event, email) in self.unlinked(&open).await? {
                if email == text.to_lowercase() {
                    let because = "a parked event has this e-mail address".to_owned();
                    customers.entry(customer).or_insert_with(|| (because, BTreeSet::new())).1.insert(event);
                }
            }
            if let Some(stripe) = &self.stripe {
                let page = stripe.customers_with_email(text).await.map_err(|error| stripe_failed(&error))?;
                let ids = page.objects.iter().filter_map(|object| CustomerId::new(object.id()?).ok());
                named.extend(
                    ids.map(|customer| (customer, "Stripe has this e-mail address for it".to_owned())),
                );
            }
        }
        let links =
            self.store.load(named.iter().map(|(customer, _)| Key::Customer(customer.clone()))).await?;
        for (customer, because) in named {
            let key = Key::Customer(customer.clone());
            let link = links.get(&key);
            match link.map(|item| items::read_user(&key, item)).transpose()?.flatten() {
                Some(user) if customer.as_str() == text => {
                    users.insert(
                        user.to_string(),
                        "the customer with this id is bound to this user".to_owned(),
                    );
                }
                Some(user) => {
                    users.insert(user.to_string(), format!("{customer} is bound to this user ({because})"));
                }
                // Merchants may choose customer ids, so any text could be one.
                None if customer.as_str() == text && link.is_none() && !text.starts_with("cus_") => {}
                None => {
                    let waiting = link.map(items::waiting).unwrap_or_default();
                    customers
                        .entry(customer.to_string())
                        .or_insert_with(|| (because, BTreeSet::new()))
                        .1
                        .extend(waiting);
                }
            }
        }
        let users: Vec<Value> =
            users.into_iter().map(|(id, because)| json!({"user_id": id, "because": because})).collect();
        let customers: Vec<Value> = customers
            .into_iter()
            .map(|(id, (because, events))| json!({"id": id, "because": because, "events": events}))
            .collect();
        Ok(
            json!({"users": users, "customers": customers, "event_id": event_id, "stripe_asked": self.stripe.is_some()}),
        )
    }
}
