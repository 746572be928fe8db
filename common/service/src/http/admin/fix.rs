//! `POST /admin/stripe/fix-user/{id}`: what a person sets right, on record before it is done.

use std::time::Duration;

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reconcile::GRACE_SECONDS;
use super::user::entry_view;
use super::{Admin, bad, deadline, read_body, seconds, short, stripe_failed};
use crate::http::answer::{Problem, problem};
use crate::reconcile::{Options, Reconciler, Report};
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::{Condition, StoreError, Write};
use tallyhook_core::account::fix::Fix;
use tallyhook_core::account::{Account, Cause, Fact};
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::{CustomerId, SubscriptionId, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::timestamp::Timestamp;

/// A change is tried so often against concurrent changes of the same account.
const ATTEMPTS: u32 = 10;

/// The body. `actor` and `reason` are asked for always; a grant or a revocation also takes the header
/// `Idempotency-Key`, which makes a repeated request one entry of the ledger: the same key with another body
/// is 409.
///
/// ```json
/// {"action":"apply_stripe","actor":"ann","reason":"paid, not credited"}
/// {"action":"link_customer","customer":"cus_1","actor":"ann","reason":"ticket 12"}
/// {"action":"link_subscription","subscription":"sub_1","actor":"ann","reason":"ticket 12"}
/// {"action":"grant","credits":500,"actor":"ann","reason":"goodwill"}
/// {"action":"revoke","credits":500,"actor":"ann","reason":"granted by mistake"}
/// ```
/// `link_customer` frees what is parked for the customer at once. `link_subscription` asks Stripe whose the
/// subscription is, links that customer and applies Stripe's truth. Both refuse a user without an account
/// unless `"create":true` says that the id is right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mend {
    /// What to do.
    pub action: String,
    /// Whom to link.
    pub customer: Option<String>,
    /// What to link.
    pub subscription: Option<String>,
    /// How many.
    pub credits: Option<u64>,
    /// Whether linking may create the account.
    pub create: bool,
    /// Who does it.
    pub actor: String,
    /// Why.
    pub reason: String,
}

impl Admin {
    pub(super) async fn fix_user(
        &self,
        user: &UserId,
        request: &Request,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let mend: Mend = read_body(request)?;
        let (actor, reason) = (short(mend.actor.trim()), short(mend.reason.trim()));
        if actor.is_empty() || reason.is_empty() {
            return Err(bad(
                "missing_reason",
                "say who does this (actor) and why (reason): both are kept with the change",
            ));
        }
        let mend = Mend { actor, reason, ..mend };
        match mend.action.as_str() {
            "apply_stripe" => {
                self.stripe()?;
                self.audit_fix(user, &mend, "", now_ms).await?;
                let report = self.apply(user, seconds(now_ms)).await?;
                Ok(json!({"action": mend.action, "user_id": user, "report": report}))
            }
            "link_customer" => {
                let customer = mend.customer.as_deref().map(CustomerId::new);
                let customer = customer
                    .and_then(Result::ok)
                    .ok_or_else(|| bad("invalid_customer", "customer must be an id like cus_…"))?;
                self.link(user, &customer, &mend, now_ms).await
            }
            "link_subscription" => {
                let subscription = mend.subscription.as_deref().map(SubscriptionId::new).and_then(Result::ok);
                let subscription = subscription
                    .ok_or_else(|| bad("invalid_subscription", "subscription must be an id like sub_…"))?;
                let customer = self.customer_of(&subscription).await?;
                let mut answer = self.link(user, &customer, &mend, now_ms).await?;
                answer["report"] = json!(self.apply(user, seconds(now_ms)).await?);
                Ok(answer)
            }
            "grant" | "revoke" => {
                let credits = mend
                    .credits
                    .map(Credits::new)
                    .filter(|credits| (Credits::new(1)..=Credits::MAX_GRANT).contains(credits));
                let credits = credits
                    .ok_or_else(|| bad("invalid_credits", "credits must be a whole number, at least 1"))?;
                let fix = if mend.action == "grant" { Fix::Grant(credits) } else { Fix::Revoke(credits) };
                self.book(user, fix, &mend, &idempotency_key(request)?, now_ms).await
            }
            _ => Err(bad(
                "invalid_action",
                "action must be apply_stripe, link_customer, link_subscription, grant or revoke",
            )),
        }
    }

    /// Stripe's truth for one user, under the rules of reconciliation.
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

    /// Binds a customer to a user and sends what waited for it.
    async fn link(
        &self,
        user: &UserId,
        customer: &CustomerId,
        mend: &Mend,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let (account_key, link_key) = (Key::Account(user.clone()), Key::Customer(customer.clone()));
        let mut audited = false;
        for attempt in 0..ATTEMPTS {
            let items = self.store.load([account_key.clone(), link_key.clone()]).await?;
            let account = match items.get(&account_key) {
                Some(item) => items::read_account(user, item)?,
                None if mend.create => Account::new(user.clone()),
                None => {
                    let message = "no account has this id. If it is spelt right, let the app create it (PUT /users/{id}) or send \"create\":true";
                    return Err(problem(StatusCode::NOT_FOUND, "user_not_found", message));
                }
            };
            let link = items.get(&link_key);
            let bound = link.map(|item| items::read_user(&link_key, item)).transpose()?.flatten();
            let answer = |result: &str, freed: Vec<String>| {
                Ok(
                    json!({"action": mend.action, "user_id": user, "customer": customer, "result": result, "freed": freed}),
                )
            };
            match bound {
                Some(other) if other != *user => {
                    let message = format!(
                        "{customer} is bound to user {other}; a customer is never moved from one user to another"
                    );
                    return Err(problem(StatusCode::CONFLICT, "customer_bound", message));
                }
                Some(_) if account.state.customers.contains_key(customer) => {
                    return answer("already_linked", Vec::new());
                }
                Some(_) | None => {}
            }
            if !audited {
                self.audit_fix(user, mend, customer.as_str(), now_ms).await?;
                audited = true;
            }
            let now = seconds(now_ms);
            let cause = Cause {
                by: by(mend),
                adjust_key: LedgerKey::fix(&format!("{customer}#{now_ms}")),
                created: now,
            };
            let change = account
                .evolve(vec![Fact::Customer(customer.clone())], &cause, &self.processor.catalog, now)
                .map_err(|conflict| problem(StatusCode::CONFLICT, "conflict", conflict.to_string()))?;
            let waiting = link.map(items::waiting).unwrap_or_default();
            let mut bind = items::customer(customer, user);
            if !waiting.is_empty() {
                bind = Write { condition: Condition::Waiting(waiting.clone()), ..bind };
            }
            let after = account.after(&change);
            let mut writes =
                vec![items::account(&after, account.version, &self.processor.catalog, now)?, bind];
            for entry in &change.entries {
                writes.push(items::entry(user, entry)?);
            }
            match self.store.commit(writes).await {
                Ok(()) => {
                    self.processor.redrive.freed(&self.store, &waiting).await;
                    return answer("linked", waiting.into_iter().collect());
                }
                Err(error) => again(error, attempt).await?,
            }
        }
        Err(busy())
    }

    /// A grant or a revocation: one entry for one key.
    async fn book(
        &self,
        user: &UserId,
        fix: Fix,
        mend: &Mend,
        idempotency_key: &str,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let key = LedgerKey::fix(idempotency_key);
        let (account_key, entry_key) = (Key::Account(user.clone()), Key::Entry(user.clone(), key.clone()));
        let mut audited = false;
        for attempt in 0..ATTEMPTS {
            let items = self.store.load([account_key.clone(), entry_key.clone()]).await?;
            let Some(item) = items.get(&account_key) else {
                return Err(problem(
                    StatusCode::NOT_FOUND,
                    "user_not_found",
                    "no account has this id; PUT /users/{id} creates it",
                ));
            };
            let account = items::read_account(user, item)?;
            let answer = |entry: &Entry| json!({"action": mend.action, "user_id": user, "credits": fix.credits(), "balance": entry.balance, "entry": entry_view(entry)});
            if let Some(item) = items.get(&entry_key) {
                let entry: Entry = items::read(&entry_key, item)?;
                if fix.is_recorded_as(&entry, &by(mend), &mend.reason) {
                    return Ok(answer(&entry));
                }
                let message = "this Idempotency-Key was used for another change of this user; a new change needs a new key";
                return Err(problem(StatusCode::CONFLICT, "idempotency_key_reused", message));
            }
            if !audited {
                self.audit_fix(user, mend, &fix.credits().to_string(), now_ms).await?;
                audited = true;
            }
            let now = seconds(now_ms);
            let change = account.fix(fix, key.clone(), &by(mend), &mend.reason, now);
            let mut writes =
                vec![items::account(&account.after(&change), account.version, &self.processor.catalog, now)?];
            for entry in &change.entries {
                writes.push(items::entry(user, entry)?);
            }
            let (outbox, catalog) = (&self.processor.outbox, &self.processor.catalog);
            let before = outbox.before(&account.state, catalog, now);
            let (nudges, jobs): (Vec<_>, Vec<_>) =
                outbox.jobs(user, &before, &change.state, catalog, now).into_iter().unzip();
            writes.extend(jobs);
            match (self.store.commit(writes).await, change.entries.first()) {
                (Ok(()), Some(entry)) => {
                    outbox.send(&nudges).await;
                    return Ok(answer(entry));
                }
                (Ok(()), None) => return Err(busy()),
                (Err(error), _) => again(error, attempt).await?,
            }
        }
        Err(busy())
    }

    async fn audit_fix(&self, user: &UserId, mend: &Mend, what: &str, now_ms: i64) -> Result<(), Problem> {
        let target = format!("{user} {what}");
        self.audit(Some(&mend.actor), Some(&mend.reason), &mend.action, target.trim_end(), now_ms).await
    }
}

fn by(mend: &Mend) -> String {
    format!("admin:{}", mend.actor)
}

fn busy() -> Problem {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "the account is being changed by many at once; try again",
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

/// Waits a moment before the next try, or gives up on what no further try can mend.
async fn again(error: StoreError, attempt: u32) -> Result<(), StoreError> {
    if !error.is_transient() || attempt + 1 == ATTEMPTS {
        return Err(error);
    }
    tokio::time::sleep(Duration::from_millis(5 + fastrand::u64(0..(10 << attempt.min(6))))).await;
    Ok(())
}
