//! Holds: an app reserves credits for a job, then commits what the job used, or releases the hold. And spends
//! that are given back.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `POST /users/{id}/credits/holds` | `{"amount":100,"ttl_seconds":900}` | 201 `{"hold","amount","available","expires_at"}` |
//! | `POST /users/{id}/credits/holds/{hold}/commit` | `{"amount":80,"extend":false}` | 200 `{"user_id","hold","committed","credits","shortfall"}` |
//! | `POST /users/{id}/credits/holds/{hold}/release` | none | 200 `{"user_id","hold","released","credits"}` |
//! | `POST /users/{id}/credits/refund` | `{"spend":"job-17","amount":20}` | 200 `{"user_id","refunded","credits","shortfall"}` |
//!
//! Each makes one read and one transaction. The first and the last need an `Idempotency-Key`. A hold's commit
//! and release are the hold's own keys: a repeated request gets the same answer.

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, amount, idempotency_key, no_user, read_body};
use crate::http::answer::{Problem, problem};
use tallyhook_aws::clock;
use tallyhook_aws::store::items::{self, KnownHold};
use tallyhook_core::account::holds::{ExceedsSpend, HoldError, MAX_HOLDS, TTL_SECONDS, hold_id};
use tallyhook_core::account::lots::Hold;
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::{HoldId, UserId};
use tallyhook_core::ledger::{Entry, EntryKind, LedgerKey};

#[derive(Deserialize)]
struct HoldRequest {
    ttl_seconds: Option<Value>,
}

#[derive(Deserialize)]
struct CommitRequest {
    amount: Option<u64>,
    #[serde(default)]
    extend: bool,
}

#[derive(Deserialize)]
struct GiveBackRequest {
    spend: String,
}

impl Api {
    /// `POST …/credits/holds`.
    pub(super) async fn open_hold(&self, user: &UserId, request: &Request) -> Result<Value, Problem> {
        let key = idempotency_key(request)?;
        let amount = amount(request)?;
        let asked: HoldRequest = read_body(request, r#"{"amount": 100, "ttl_seconds": 900}"#)?;
        let ttl_seconds = asked
            .ttl_seconds
            .and_then(|ttl| u32::try_from(ttl.as_u64()?).ok())
            .filter(|ttl| TTL_SECONDS.contains(ttl))
            .ok_or_else(invalid_ttl)?;
        let id = hold_id(user, &key);
        let now = clock::now();
        let (item, entry) = (items::hold_key(user, &id), LedgerKey::hold(&id));
        let accounts = &self.processor.accounts;
        let mut change = accounts.change(user, &[item.clone(), items::Key::entry(user, &entry)], now);
        let answer = |known: &KnownHold| {
            json!({
                "hold": id,
                "amount": known.hold.amount,
                "available": known.available,
                "expires_at": known.hold.until.to_string(),
            })
        };
        loop {
            let account = change.read().await?;
            if account.version == 0 {
                return Err(no_user());
            }
            if let Some(stored) = change.items.get(&item) {
                let known = items::read_hold(&item, stored)?;
                if (known.hold.amount, known.ttl_seconds) != (amount, ttl_seconds) {
                    return Err(key_reused(&known));
                }
                return Ok(answer(&known));
            }
            if account.recorded.contains_key(&entry) {
                let message = "this Idempotency-Key made a hold that ended long ago";
                return Err(problem(StatusCode::CONFLICT, "idempotency_key_reused", message));
            }
            // On a test clock, the account's time is ahead of ours.
            let until = account.state.time(now).plus_seconds(i64::from(ttl_seconds));
            let hold = Hold { amount, until };
            let held = account
                .hold(id.clone(), hold, &accounts.catalog, now)
                .map_err(|error| refusal(error, amount))?;
            let available = held.state.available(&accounts.catalog.policy, now);
            let known = KnownHold { hold, ttl_seconds, available };
            if change.commit(&held, vec![items::hold(user, &id, &known)]).await? {
                return Ok(answer(&known));
            }
        }
    }

    /// `POST …/credits/holds/{hold}/commit`.
    pub(super) async fn commit_hold(
        &self,
        user: &UserId,
        hold: &str,
        request: &Request,
    ) -> Result<Value, Problem> {
        let asked: CommitRequest = read_body(request, r#"{"amount": 80}"#)?;
        let amount = asked.amount.map(Credits::new).filter(|amount| *amount <= Credits::MAX_GRANT);
        let amount = amount.ok_or_else(|| {
            let message =
                format!("amount must be a whole number of credits from 0 to {}", Credits::MAX_GRANT);
            problem(StatusCode::BAD_REQUEST, "invalid_amount", message)
        })?;
        let spent = |entry: &Entry| {
            json!({
                "user_id": user,
                "hold": hold,
                "committed": entry.worth,
                "credits": entry.balance,
                "shortfall": entry.shortfall,
            })
        };
        let entry = self.end_hold(user, hold, EndOfHold::Commit { amount, extend: asked.extend }).await?;
        Ok(spent(&entry))
    }

    /// `POST …/credits/holds/{hold}/release`.
    pub(super) async fn release_hold(&self, user: &UserId, hold: &str) -> Result<Value, Problem> {
        let entry = self.end_hold(user, hold, EndOfHold::Release).await?;
        Ok(json!({
            "user_id": user,
            "hold": hold,
            "released": entry.worth,
            "credits": entry.balance,
        }))
    }

    async fn end_hold(&self, user: &UserId, hold: &str, end: EndOfHold) -> Result<Entry, Problem> {
        let id = HoldId::new(hold).map_err(|_| no_hold())?;
        let now = clock::now();
        let (item, key) = (items::hold_key(user, &id), LedgerKey::hold(&id));
        let accounts = &self.processor.accounts;
        let mut change = accounts.change(user, &[item.clone(), items::Key::entry(user, &key)], now);
        loop {
            let account = change.read().await?;
            if account.version == 0 {
                return Err(no_user());
            }
            if let Some(entry) = account.recorded.get(&key) {
                return end.same_as(entry);
            }
            let stored = change.items.get(&item).map(|stored| items::read_hold(&item, stored)).transpose()?;
            let known = account.state.open_hold(&id, now).copied().or(stored.map(|stored| stored.hold));
            let held = known.ok_or_else(no_hold)?.amount;
            let ended = match end {
                EndOfHold::Commit { amount, extend } => account
                    .commit_hold(&id, held, amount, extend, &accounts.catalog, now)
                    .map_err(|error| refusal(error, amount))?,
                EndOfHold::Release => account.release_hold(&id, held, &accounts.catalog, now),
            };
            if change.commit(&ended, Vec::new()).await?
                && let Some(entry) = ended.entries.into_iter().find(|entry| entry.key == key)
            {
                return Ok(entry);
            }
        }
    }

    /// `POST …/credits/refund`.
    pub(super) async fn give_back(&self, user: &UserId, request: &Request) -> Result<Value, Problem> {
        let key = idempotency_key(request)?;
        let amount = amount(request)?;
        let asked: GiveBackRequest = read_body(request, r#"{"spend": "job-17", "amount": 20}"#)?;
        // An Idempotency-Key is not longer, and DynamoDB would refuse a longer key.
        if asked.spend.is_empty() || asked.spend.len() > 255 {
            return Err(no_spend());
        }
        let of_hold = HoldId::new(asked.spend.as_str()).ok().map(|id| LedgerKey::hold(&id));
        let spends: Vec<LedgerKey> = [LedgerKey::consume(&asked.spend)].into_iter().chain(of_hold).collect();
        let key = LedgerKey::unspend(&asked.spend, &key);
        let keys: Vec<_> = spends.iter().chain([&key]).map(|key| items::Key::entry(user, key)).collect();
        let now = clock::now();
        let accounts = &self.processor.accounts;
        let mut change = accounts.change(user, &keys, now);
        let answer = |entry: &Entry| {
            json!({
                "user_id": user,
                "refunded": entry.worth.minus(entry.shortfall),
                "credits": entry.balance,
                "shortfall": entry.shortfall,
                "note": entry.note,
            })
        };
        loop {
            let account = change.read().await?;
            if account.version == 0 {
                return Err(no_user());
            }
            let spend = spends.iter().find_map(|key| account.recorded.get(key));
            let spend = spend.ok_or_else(no_spend)?;
            if let Some(entry) = account.recorded.get(&key) {
                if entry.worth != amount || entry.of.as_ref() != Some(&spend.key) {
                    let message = format!("this Idempotency-Key gave back {} credits", entry.worth);
                    return Err(problem(StatusCode::CONFLICT, "idempotency_key_reused", message));
                }
                return Ok(answer(entry));
            }
            let (given, spend) = account
                .give_back(spend, amount, key.clone(), &accounts.catalog, now)
                .map_err(|ExceedsSpend(left)| {
                    let message = format!("{left} credits of this spend can still be given back");
                    problem(StatusCode::CONFLICT, "exceeds_spend", message)
                })?;
            if change.commit(&given, vec![items::entry_again(user, &spend)?]).await?
                && let Some(entry) = given.entries.iter().find(|entry| entry.key == key)
            {
                return Ok(answer(entry));
            }
        }
    }
}

/// How a hold ends.
#[derive(Clone, Copy)]
enum EndOfHold {
    Commit { amount: Credits, extend: bool },
    Release,
}

impl EndOfHold {
    /// The entry of a hold that has ended, if it ended so.
    fn same_as(self, entry: &Entry) -> Result<Entry, Problem> {
        let released = entry.kind == EntryKind::Release;
        match self {
            Self::Commit { .. } if released => {
                Err(problem(StatusCode::CONFLICT, "hold_released", "the hold was released"))
            }
            Self::Commit { amount, .. } if amount != entry.worth => {
                let message = format!("the hold was committed with {} credits", entry.worth);
                Err(problem(StatusCode::CONFLICT, "hold_committed", message))
            }
            Self::Release if !released => {
                Err(problem(StatusCode::CONFLICT, "hold_committed", "the hold was committed"))
            }
            Self::Commit { .. } | Self::Release => Ok(entry.clone()),
        }
    }
}

fn refusal(error: HoldError, needed: Credits) -> Problem {
    match error {
        HoldError::Insufficient(available) => super::insufficient(available, needed),
        HoldError::TooMany => problem(
            StatusCode::CONFLICT,
            "too_many_holds",
            format!("the user has {MAX_HOLDS} open holds: commit or release one first"),
        ),
        HoldError::Exceeds(held, available) => problem(
            StatusCode::BAD_REQUEST,
            "exceeds_hold",
            format!(
                "{held} credits are held and {available} more are available; more than the hold needs \
                 \"extend\": true"
            ),
        ),
    }
}

fn invalid_ttl() -> Problem {
    let (least, most) = (TTL_SECONDS.start(), TTL_SECONDS.end());
    let message = format!("ttl_seconds must be a whole number from {least} to {most}");
    problem(StatusCode::BAD_REQUEST, "invalid_ttl", message)
}

fn key_reused(known: &KnownHold) -> Problem {
    let message = format!(
        "this Idempotency-Key made a hold of {} credits for {} seconds",
        known.hold.amount, known.ttl_seconds
    );
    problem(StatusCode::CONFLICT, "idempotency_key_reused", message)
}

fn no_hold() -> Problem {
    problem(StatusCode::NOT_FOUND, "hold_not_found", "the user has no hold with this id")
}

fn no_spend() -> Problem {
    problem(
        StatusCode::NOT_FOUND,
        "spend_not_found",
        "spend must be the Idempotency-Key of a consume, or the id of a committed hold",
    )
}
