//! `POST /admin/erase/{id}`: deletes what identifies a person. The account, its ledger and its sums stay
//! under the user's id.

use std::time::Instant;

use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, AdminToken, bad, deadline, seconds, stripe_failed};
use crate::http::answer::{Problem, problem};
use tallyhook_aws::store::items::{self, Key, OrderChange};
use tallyhook_core::account::{Account, Cause, Fact};
use tallyhook_core::ids::{CustomerId, EventId, SessionId, UserId};
use tallyhook_core::ledger::LedgerKey;

/// The body. Without `"dry_run":false` nothing is deleted.
///
/// ```json
/// {"dry_run":false,"actor":"ann","reason":"request of 27 November"}
/// ```
/// ```json
/// {"user_id":"user_1","dry_run":false,"customers":["cus_1"],"payloads":12,"orders":1,"waiting":[],
///  "complete":true}
/// ```
/// `customers` are deleted at Stripe. `payloads` and `orders` are the events and orders that held personal
/// data. `waiting` are parked and failed events: their payload is needed until they are applied or dismissed.
/// With `"complete":false` the time was not enough; the same request continues.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EraseRequest {
    dry_run: bool,
    actor: Option<String>,
    reason: Option<String>,
}

impl Default for EraseRequest {
    fn default() -> Self {
        Self { dry_run: true, actor: None, reason: None }
    }
}

impl Admin {
    pub(super) async fn erase(
        &self,
        user: &UserId,
        body: EraseRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        if !body.dry_run && body.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) {
            return Err(bad("missing_reason", "reason is required; it is kept with the change"));
        }
        let until = deadline();
        let mut change = self.processor.accounts.change(user, &[], seconds(now_ms));
        let account = loop {
            let account = change.read().await?;
            if account.version == 0 {
                return Err(problem(StatusCode::NOT_FOUND, "user_not_found", "no account has this id"));
            }
            if body.dry_run || account.state.erased_at.is_some() {
                break account;
            }
            let (claimed, reason) = (body.actor.as_deref(), body.reason.as_deref());
            self.audit(operator, claimed, reason, "erase", user.as_str(), now_ms).await?;
            // After this write, no event stores an e-mail address or a payload of this user.
            let now = seconds(now_ms);
            let adjust_key = LedgerKey::fix(&format!("erase#{now_ms}"));
            let cause = Cause { by: format!("admin:{}", operator.name), adjust_key, created: now };
            let catalog = &self.processor.accounts.catalog;
            let erased = account
                .evolve(vec![Fact::Erased(now)], &cause, catalog, now)
                .map_err(|conflict| problem(StatusCode::CONFLICT, "conflict", conflict.to_string()))?;
            if change.commit(&erased, Vec::new()).await? {
                break account;
            }
        };
        let customers = self.erase_customers(&account, body.dry_run).await?;
        let orders = self.erase_orders(user, body.dry_run, now_ms).await?;
        let (payloads, waiting, complete) = self.erase_payloads(&account, body.dry_run, until).await?;
        Ok(json!({
            "user_id": user, "dry_run": body.dry_run, "customers": customers, "payloads": payloads,
            "orders": orders, "waiting": waiting, "complete": complete,
        }))
    }

    /// Deletes the customers at Stripe that are not deleted yet.
    async fn erase_customers(&self, account: &Account, dry_run: bool) -> Result<Vec<CustomerId>, Problem> {
        let mut customers = Vec::new();
        for customer in account.state.customers.keys() {
            let stripe = self.stripe()?;
            let there = match stripe.customer(customer).await {
                Ok(object) => object.value()["deleted"] != true,
                Err(error) if error.is_missing() => false,
                Err(error) => return Err(stripe_failed(&error)),
            };
            if there && !dry_run {
                match stripe.delete_customer(customer).await {
                    Ok(_) => {}
                    Err(error) if error.is_missing() => {}
                    Err(error) => return Err(stripe_failed(&error)),
                }
            }
            customers.extend(there.then(|| customer.clone()));
        }
        Ok(customers)
    }

    /// Removes the e-mail addresses of orders.
    async fn erase_orders(&self, user: &UserId, dry_run: bool, now_ms: i64) -> Result<u64, Problem> {
        let mut count = 0;
        for order in self.store.orders(user).await? {
            let session = order.get("id").and_then(Value::as_str).and_then(|id| SessionId::new(id).ok());
            let Some(session) = session else { continue };
            let key = Key::Order(user.clone(), session.clone());
            let found = self.store.load([key.clone()]).await?;
            let with_email =
                found.get(&key).filter(|item| items::read_text(item, "customer_email").is_some());
            let Some(item) = with_email else { continue };
            count += 1;
            if !dry_run {
                let mut change = OrderChange::new(user, &session, item, seconds(now_ms));
                change.set_text("customer_email", None);
                self.store.commit(vec![change.write()]).await?;
            }
        }
        Ok(count)
    }

    /// Removes the payloads of the user's events, newest first. Returns their number, the events that still
    /// need theirs, and whether the end of the list was reached.
    async fn erase_payloads(
        &self,
        account: &Account,
        dry_run: bool,
        until: Option<Instant>,
    ) -> Result<(u64, Vec<EventId>, bool), Problem> {
        let (mut count, mut waiting) = (0, Vec::new());
        let mut next = account.state.last_event.clone();
        while let Some(id) = next {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok((count, waiting, false));
            }
            let key = Key::event(&id);
            let found = self.store.load([key.clone()]).await?;
            let Some(item) = found.get(&key) else { break };
            next = items::read_text(item, "previous").and_then(|previous| EventId::new(previous).ok());
            if items::read_payload(item).is_none() {
                continue;
            }
            if matches!(items::read_text(item, "outcome").as_deref(), Some("parked" | "failed")) {
                waiting.push(id);
                continue;
            }
            count += 1;
            if !dry_run {
                self.store.remove_payload(&key).await?;
            }
        }
        Ok((count, waiting, true))
    }
}
