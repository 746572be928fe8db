//! `POST /admin/stripe/fix-user/{id}`: changes that an operator makes by hand. Each is written to the audit
//! before it is made.

use std::collections::BTreeSet;

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reconcile::GRACE_SECONDS;
use super::user::entry_view;
use super::{Admin, AdminToken, bad, deadline, forbidden, read_body, seconds, short, stripe_failed};
use crate::accounts::{AccountWrites, MAX_ATTEMPTS, load_account};
use crate::http::answer::{Problem, problem};
use crate::schedules::reconcile::{Options, Reconciler, Report};
use tallyhook_aws::clock;
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::{Condition, Write};
use tallyhook_core::account::fix::Fix;
use tallyhook_core::account::hand_over::MovedObject;
use tallyhook_core::account::{Cause, Fact};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::owner::StoredOwner;
use tallyhook_core::ids::{CustomerId, SessionId, SubscriptionId, UserId};
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::timestamp::Timestamp;

/// The body. `reason` is always required. A grant, a revocation or a complimentary plan also needs the header
/// `Idempotency-Key`, so that a repeated request makes one ledger entry. The same key with another body is
/// 409. Their credits are at most the token's `max_grant`.
///
/// ```json
/// {"action":"apply_stripe","actor":"ann","reason":"paid, not credited"}
/// {"action":"link_customer","customer":"cus_1","actor":"ann","reason":"ticket 12"}
/// {"action":"link_subscription","subscription":"sub_1","actor":"ann","reason":"ticket 12"}
/// {"action":"grant","credits":500,"actor":"ann","reason":"goodwill"}
/// {"action":"revoke","credits":500,"actor":"ann","reason":"granted by mistake"}
/// {"action":"complimentary","plan":"pro","until":"2026-12-31T00:00:00Z","credits":500,"actor":"ann",
///  "reason":"…"}
/// {"action":"move","subscription":"sub_1","to":"user_2","dry_run":false,"actor":"ann","reason":"…"}
/// {"action":"assign_session","session":"cs_1","actor":"ann","reason":"a guest who wrote to us"}
/// {"stripe_subscription_id":"sub_1","webhook_id":"evt_1"}
/// ```
/// `link_customer` also sends the events that wait for the customer. `link_subscription` reads the
/// subscription's customer from Stripe, links it and applies Stripe's state. Both refuse a user without an
/// account unless `"create":true` confirms the id.
///
/// The last form needs neither `action`, `actor` nor `reason`. It makes the user the owner of the
/// subscription, then sends the event again: see `link_and_send.rs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FixRequest {
    /// What to do.
    pub action: String,
    /// The customer to link or to move.
    pub customer: Option<String>,
    /// The subscription to link or to move.
    pub subscription: Option<String>,
    /// The number of credits.
    pub credits: Option<u64>,
    /// Whether linking, moving or assigning may create the account.
    pub create: bool,
    /// The user to move to.
    pub to: Option<String>,
    /// A move changes something only with `false`.
    pub dry_run: Option<bool>,
    /// The session of a guest to assign.
    pub session: Option<String>,
    /// The plan to give.
    pub plan: Option<String>,
    /// When the complimentary plan begins, as RFC 3339. Default: now.
    pub from: Option<String>,
    /// When the complimentary plan or the grant ends, as RFC 3339. Default: never.
    pub until: Option<String>,
    /// The subscription of the form without an action.
    pub stripe_subscription_id: Option<String>,
    /// The event of the form without an action.
    pub webhook_id: Option<String>,
    /// Who makes the change, if the token does not say it.
    pub actor: Option<String>,
    /// The reason for the change.
    pub reason: String,
}

impl Admin {
    pub(super) async fn fix_user(
        &self,
        user: &UserId,
        request: &Request,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let body: FixRequest = read_body(request)?;
        let reason = short(body.reason.trim());
        if body.action.is_empty() && (body.stripe_subscription_id.is_some() || body.webhook_id.is_some()) {
            return self.link_and_send(user, &body, operator, now_ms).await;
        }
        if reason.is_empty() {
            return Err(bad("missing_reason", "reason is required; it is kept with the change"));
        }
        let body = FixRequest { reason, ..body };
        match body.action.as_str() {
            "apply_stripe" => {
                self.stripe()?;
                self.audit_fix(user, &body, operator, "", now_ms).await?;
                let report = self.apply(user, seconds(now_ms)).await?;
                Ok(json!({"action": body.action, "user_id": user, "report": report}))
            }
            "link_customer" => {
                let customer = body.customer.as_deref().map(CustomerId::new);
                let customer = customer
                    .and_then(Result::ok)
                    .ok_or_else(|| bad("invalid_customer", "customer must be an id like cus_…"))?;
                self.link(user, &customer, &body, operator, now_ms).await
            }
            "link_subscription" => {
                let subscription = body.subscription.as_deref().map(SubscriptionId::new).and_then(Result::ok);
                let subscription = subscription
                    .ok_or_else(|| bad("invalid_subscription", "subscription must be an id like sub_…"))?;
                let customer = self.customer_of(&subscription).await?;
                let mut answer = self.link(user, &customer, &body, operator, now_ms).await?;
                answer["report"] = json!(self.apply(user, seconds(now_ms)).await?);
                Ok(answer)
            }
            "grant" | "revoke" | "complimentary" => {
                let fix = fix_of(&body, &self.processor.accounts.catalog, seconds(now_ms))?;
                check_limit(&fix, operator)?;
                self.fix_ledger(user, fix, &body, operator, &idempotency_key(request)?, now_ms).await
            }
            "move" => self.move_owner(user, &body, operator, now_ms).await,
            "assign_session" => self.assign_session(user, &body, operator, now_ms).await,
            _ => Err(bad(
                "invalid_action",
                "action must be apply_stripe, link_customer, link_subscription, grant, revoke, \
                 complimentary, move or assign_session",
            )),
        }
    }

    /// Applies Stripe's state to one user, by the rules of reconciliation.
    async fn apply(&self, user: &UserId, now: Timestamp) -> Result<Report, Problem> {
        let reconciler = Reconciler::new(self.stripe()?.clone(), self.processor.clone());
        let options = Options { deadline: deadline(), grace_seconds: GRACE_SECONDS, ..Options::default() };
        let report = reconciler.run_for(user, &options, now).await;
        match &report.stopped {
            Some(why) if report.read.is_empty() && report.next.is_none() => {
                Err(problem(StatusCode::BAD_GATEWAY, "stripe_failed", why.clone()))
            }
            Some(_) | None => Ok(report),
        }
    }

    async fn customer_of(&self, subscription: &SubscriptionId) -> Result<CustomerId, Problem> {
        let object = match self.stripe()?.subscription(subscription).await {
            Ok(object) => object,
            Err(error) if error.is_missing() => {
                return Err(problem(
                    StatusCode::NOT_FOUND,
                    "subscription_not_found",
                    "Stripe has no subscription with this id",
                ));
            }
            Err(error) => return Err(stripe_failed(&error)),
        };
        let customer =
            object.value()["customer"].as_str().and_then(|customer| CustomerId::new(customer).ok());
        customer.ok_or_else(|| {
            problem(StatusCode::BAD_GATEWAY, "stripe_failed", "the subscription at Stripe names no customer")
        })
    }

    /// Links a customer to a user and sends the events that wait for it.
    async fn link(
        &self,
        user: &UserId,
        customer: &CustomerId,
        body: &FixRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let link_key = Key::Customer(customer.clone());
        let now = seconds(now_ms);
        let answer = |result: &str, freed: &BTreeSet<String>| {
            json!({
                "action": body.action, "user_id": user, "customer": customer, "result": result,
                "freed": freed,
            })
        };
        let catalog = &self.processor.accounts.catalog;
        let mut audited = false;
        let mut change = self.processor.accounts.change(user, std::slice::from_ref(&link_key), now);
        let (result, freed) = loop {
            let account = change.read().await?;
            if account.version == 0 && !body.create {
                let message = "no account has this id. If it is spelt correctly, let the app create it (PUT \
                               /users/{id}) or send \"create\":true";
                return Err(problem(StatusCode::NOT_FOUND, "user_not_found", message));
            }
            let link = change.items.get(&link_key);
            let owner = link.map(|item| items::read_owner(&link_key, item)).transpose()?.flatten();
            match &owner {
                Some(owner) if owner.user != *user => {
                    let other = &owner.user;
                    let message = format!(
                        "{customer} belongs to user {other}; to move it, send the action \"move\" for {other}"
                    );
                    return Err(problem(StatusCode::CONFLICT, "customer_bound", message));
                }
                Some(_) if account.state.customers.contains_key(customer) => {
                    break ("already_linked", BTreeSet::new());
                }
                Some(_) | None => {}
            }
            let waiting = link.map(items::waiting).unwrap_or_default();
            if !audited {
                self.audit_fix(user, body, operator, customer.as_str(), now_ms).await?;
                audited = true;
            }
            let adjust_key = LedgerKey::fix(&format!("{customer}#{now_ms}"));
            let cause = Cause { by: by(operator), adjust_key, created: now };
            let linked = account
                .evolve(vec![Fact::Customer(customer.clone())], &cause, catalog, now)
                .map_err(|conflict| problem(StatusCode::CONFLICT, "conflict", conflict.to_string()))?;
            let new = StoredOwner {
                user: user.clone(),
                moved: false,
                by_reference: false,
                shared: owner.as_ref().is_some_and(|owner| owner.shared),
            };
            let mut link_write = items::customer(customer, &new, owner.as_ref());
            if !waiting.is_empty() {
                link_write = Write { condition: Condition::Waiting(waiting.clone()), ..link_write };
            }
            if change.commit(&linked, vec![link_write]).await? {
                break ("linked", waiting);
            }
        };
        self.processor.redrive.send_freed(&self.store, &freed).await;
        Ok(answer(result, &freed))
    }

    /// Makes a grant, a revocation or a complimentary plan, with one ledger entry per key.
    async fn fix_ledger(
        &self,
        user: &UserId,
        fix: Fix,
        body: &FixRequest,
        operator: &AdminToken,
        idempotency_key: &str,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let key = match fix {
            Fix::Complimentary { .. } => LedgerKey::complimentary(idempotency_key),
            Fix::Grant(..) | Fix::Revoke(_) => LedgerKey::fix(idempotency_key),
        };
        let now = seconds(now_ms);
        let catalog = &self.processor.accounts.catalog;
        let mut audited = false;
        let mut change = self.processor.accounts.change(user, &[Key::entry(user, &key)], now);
        let entry = loop {
            let account = change.read().await?;
            if account.version == 0 {
                let message = "no account has this id; PUT /users/{id} creates it";
                return Err(problem(StatusCode::NOT_FOUND, "user_not_found", message));
            }
            if let Some(entry) = account.recorded.get(&key) {
                if fix.is_recorded_as(entry, &by(operator), &body.reason) {
                    break entry.clone();
                }
                let message = "this Idempotency-Key was used for another change of this user; a new change \
                               needs a new key";
                return Err(problem(StatusCode::CONFLICT, "idempotency_key_reused", message));
            }
            check_end(&fix, now)?;
            if !audited {
                self.audit_fix(user, body, operator, &fix.credits().to_string(), now_ms).await?;
                audited = true;
            }
            let fixed = account.fix(fix.clone(), key.clone(), &by(operator), &body.reason, catalog, now);
            let entry = fixed.entries.iter().find(|entry| entry.key == key).cloned().ok_or_else(busy)?;
            if change.commit(&fixed, Vec::new()).await? {
                break entry;
            }
        };
        Ok(json!({
            "action": body.action, "user_id": user, "credits": fix.credits(), "balance": entry.balance,
            "entry": entry_view(&entry),
        }))
    }

    /// Moves a subscription, or a customer with its subscriptions, to another user, together with the credits
    /// that they granted. A dry run unless `"dry_run":false` is sent.
    async fn move_owner(
        &self,
        user: &UserId,
        body: &FixRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let to = body.to.as_deref().and_then(|to| UserId::new(to).ok()).filter(|to| to != user);
        let to = to.ok_or_else(|| bad("invalid_to", "to must be another user's id"))?;
        let object = moved_object(body)?;
        let now = seconds(now_ms);
        let accounts = &self.processor.accounts;
        let link = match &object {
            MovedObject::Customer(customer) => Key::Customer(customer.clone()),
            MovedObject::Subscription(subscription) => Key::Subscription(subscription.clone()),
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let all = [link.clone(), Key::Account(user.clone()), Key::Account(to.clone())];
            let items = self.store.load(all).await?;
            let (from_account, to_account) = (load_account(user, &items)?, load_account(&to, &items)?);
            if from_account.version == 0 || (to_account.version == 0 && !body.create) {
                let message = "no account has this id; send \"create\":true to create the account to move to";
                return Err(problem(StatusCode::NOT_FOUND, "user_not_found", message));
            }
            let key = format!("move#{now_ms}");
            let (from_change, to_change, moved) =
                from_account.hand_over(&to_account, &object, &by(operator), &key, &accounts.catalog, now);
            if moved.is_empty() {
                let message = "the user has no such subscription or customer";
                return Err(problem(StatusCode::NOT_FOUND, "nothing_to_move", message));
            }
            let answer = json!({
                "action": body.action, "user_id": user, "to": to, "dry_run": body.dry_run.unwrap_or(true),
                "subscriptions": moved.subscriptions, "customers": moved.customers,
                "credits": moved.credits,
            });
            if body.dry_run.unwrap_or(true) {
                return Ok(answer);
            }
            if attempts == 1 {
                self.audit_fix(user, body, operator, &format!("to {to}"), now_ms).await?;
            }
            let mut writes = Vec::new();
            let mut messages = Vec::new();
            for (account, change) in [(&from_account, &from_change), (&to_account, &to_change)] {
                let mut account_writes = AccountWrites::new(accounts, account, now);
                account_writes.apply(change);
                let (more, jobs) = account_writes.finish(accounts, &items)?;
                writes.extend(more);
                messages.extend(jobs);
            }
            let owner = StoredOwner { user: to.clone(), moved: true, by_reference: false, shared: false };
            for customer in &moved.customers {
                let key = Key::Customer(customer.clone());
                let known = items.get(&key).map(|item| items::read_owner(&key, item)).transpose()?.flatten();
                writes.push(items::customer(customer, &owner, known.as_ref()));
            }
            for subscription in &moved.subscriptions {
                let key = Key::Subscription(subscription.clone());
                let known = items.get(&key).map(|item| items::read_owner(&key, item)).transpose()?.flatten();
                let known = known.unwrap_or_else(|| StoredOwner { user: user.clone(), ..owner.clone() });
                writes.push(items::subscription(subscription, &owner, Some(&known)));
            }
            let invoices = self.store.load(moved.invoices.iter().cloned().map(Key::Invoice)).await?;
            for (key, item) in &invoices {
                if let Key::Invoice(invoice) = key {
                    writes.push(items::moved_invoice(invoice, item, &to));
                }
            }
            match self.store.commit(writes).await {
                Ok(()) => {
                    accounts.outbox.send(&messages).await;
                    return Ok(answer);
                }
                Err(error) if attempts < MAX_ATTEMPTS && error.is_transient() => clock::pause(attempts).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Assigns the session of a guest to a user. The session's event is parked because it names no user; it
    /// is sent again.
    async fn assign_session(
        &self,
        user: &UserId,
        body: &FixRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let session = body.session.as_deref().and_then(|session| SessionId::new(session).ok());
        let session = session.ok_or_else(|| bad("invalid_session", "session must be an id like cs_…"))?;
        let key = Key::Session(session.clone());
        let items = self.store.load([key.clone(), Key::Account(user.clone())]).await?;
        if !items.contains_key(&Key::Account(user.clone())) && !body.create {
            let message = "no account has this id; send \"create\":true to create it";
            return Err(problem(StatusCode::NOT_FOUND, "user_not_found", message));
        }
        if let Some(item) = items.get(&key) {
            let known = items::read_session(&key, item)?;
            if known.user != *user {
                let message = format!("the session belongs to user {}", known.user);
                return Err(problem(StatusCode::CONFLICT, "session_bound", message));
            }
        }
        self.audit_fix(user, body, operator, session.as_str(), now_ms).await?;
        if !items.contains_key(&key) {
            self.store.commit(vec![items::assigned_session(&session, user)]).await?;
        }
        let mut complete = true;
        let parked = self.open(&mut complete).await?;
        let keys = parked.iter().map(|line| Key::Event(line.id.clone()));
        let events = self.store.load(keys).await?;
        let names = |item: &Item| items::read_objects(item).iter().any(|object| object == session.as_str());
        let freed: BTreeSet<String> =
            events.iter().filter(|(_, item)| names(item)).map(|(key, _)| key.partition()).collect();
        self.processor.redrive.send_freed(&self.store, &freed).await;
        Ok(json!({
            "action": body.action, "user_id": user, "session": session, "freed": freed, "complete": complete,
        }))
    }

    async fn audit_fix(
        &self,
        user: &UserId,
        request: &FixRequest,
        operator: &AdminToken,
        what: &str,
        now_ms: i64,
    ) -> Result<(), Problem> {
        let target = format!("{user} {what}");
        let (claimed, reason) = (request.actor.as_deref(), Some(request.reason.as_str()));
        self.audit(operator, claimed, reason, &request.action, target.trim_end(), now_ms).await
    }
}

fn by(operator: &AdminToken) -> String {
    format!("admin:{}", operator.name)
}

/// Refuses a change of more credits than the token may change at once.
fn check_limit(fix: &Fix, operator: &AdminToken) -> Result<(), Problem> {
    match operator.max_grant {
        Some(max) if fix.credits() > Credits::new(max) => Err(forbidden(format!(
            "your token may change at most {max} credits at once; more needs the role admin without max_grant"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Refuses credits or a plan that would end before they begin.
fn check_end(fix: &Fix, now: Timestamp) -> Result<(), Problem> {
    let (from, until) = match fix {
        Fix::Grant(_, until) => (now, *until),
        Fix::Complimentary { from, until, .. } => (now.max(*from), *until),
        Fix::Revoke(_) => return Ok(()),
    };
    match until {
        Some(until) if until <= from => {
            Err(bad("invalid_range", "until must be in the future, and after from if that is given"))
        }
        Some(_) | None => Ok(()),
    }
}

fn busy() -> Problem {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "too many requests change the account at the same time; try again",
    )
}

fn idempotency_key(request: &Request) -> Result<String, Problem> {
    let header =
        request.headers().get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header.is_empty() || header.len() > 255 || header.chars().any(|c| c.is_control()) {
        let message =
            "send an Idempotency-Key of 1 to 255 characters: it makes a repeated request one change";
        return Err(bad("missing_idempotency_key", message));
    }
    Ok(header.to_owned())
}

/// The change of the ledger that the request asks for.
fn fix_of(body: &FixRequest, catalog: &Catalog, now: Timestamp) -> Result<Fix, Problem> {
    let least = if body.action == "complimentary" { 0 } else { 1 };
    let credits = Credits::new(body.credits.unwrap_or(0));
    if !(Credits::new(least)..=Credits::MAX_GRANT).contains(&credits) {
        let message = format!("credits must be a whole number from {least} to {}", Credits::MAX_GRANT);
        return Err(bad("invalid_credits", message));
    }
    let time = |text: &Option<String>, name: &str| match text.as_deref() {
        None => Ok(None),
        Some(text) => Timestamp::parse(text)
            .map(Some)
            .ok_or_else(|| bad("invalid_time", format!("{name} must be a time like 2026-12-31T00:00:00Z"))),
    };
    Ok(match body.action.as_str() {
        "grant" => Fix::Grant(credits, time(&body.until, "until")?),
        "revoke" => Fix::Revoke(credits),
        _ => {
            let plan = body.plan.as_deref().and_then(|plan| catalog.plan(plan));
            let plan = plan.ok_or_else(|| bad("invalid_plan", "plan must name a plan of the catalog"))?;
            Fix::Complimentary {
                plan: plan.name.clone(),
                from: time(&body.from, "from")?.unwrap_or(now),
                until: time(&body.until, "until")?,
                credits,
            }
        }
    })
}

/// The customer or the subscription that the request moves.
fn moved_object(body: &FixRequest) -> Result<MovedObject, Problem> {
    let customer = body.customer.as_deref().and_then(|customer| CustomerId::new(customer).ok());
    let subscription = body.subscription.as_deref().and_then(|id| SubscriptionId::new(id).ok());
    match (customer, subscription) {
        (Some(customer), None) => Ok(MovedObject::Customer(customer)),
        (None, Some(subscription)) => Ok(MovedObject::Subscription(subscription)),
        (Some(_), Some(_)) | (None, None) => {
            Err(bad("invalid_move", "name either a customer or a subscription to move"))
        }
    }
}
