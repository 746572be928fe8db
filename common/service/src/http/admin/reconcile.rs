//! Reconciliation on demand, and the events of Stripe that the log does not have.

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, AdminToken, bad, deadline, parameter, seconds, stripe_failed, time_ms, user_id};
use crate::http::answer::{Problem, problem};
use crate::schedules::reconcile::{GapError, Options, Reconciler, gap, is_position};

/// Repairs that one request may ask for.
const MAX_CHANGES: u64 = 5000;
const DAY_MS: i64 = 86_400_000;
/// Shorter than in the scheduled run: an operator wants to see what happened a minute ago, and applying an
/// event twice is harmless.
pub(super) const GRACE_SECONDS: i64 = 60;

/// The body of `POST /admin/stripe/reconcile`. Without a body it is a dry run over everything.
///
/// ```json
/// {"dry_run":false,"user":"user_1","cap":100,"actor":"ann","reason":"webhook was down"}
/// ```
/// The answer is `{"report":…}`, see [`crate::schedules::reconcile::Report`]. A run that stopped at its
/// deadline has `next` in its report; the same body with that `next` continues it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReconcileRequest {
    /// Report differences without repairing them.
    pub dry_run: bool,
    /// Compare only this user.
    pub user: Option<String>,
    /// Stop after this many repairs.
    pub cap: u64,
    /// Where the last run stopped.
    pub next: Option<String>,
    /// Who makes the change, if the token does not say it.
    pub actor: Option<String>,
    /// The reason.
    pub reason: Option<String>,
}

impl Default for ReconcileRequest {
    fn default() -> Self {
        Self { dry_run: true, user: None, cap: 500, next: None, actor: None, reason: None }
    }
}

impl Admin {
    pub(super) async fn reconcile(
        &self,
        body: ReconcileRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let stripe = self.stripe()?.clone();
        if !(1..=MAX_CHANGES).contains(&body.cap) {
            return Err(bad("invalid_cap", format!("cap must be a number from 1 to {MAX_CHANGES}")));
        }
        if body.next.as_deref().is_some_and(|next| !is_position(next)) {
            return Err(bad("invalid_next", "next must be what the last report gave"));
        }
        let only = body.user.as_deref().map(user_id).transpose()?;
        if !body.dry_run {
            let target = only.as_ref().map_or_else(|| "everything".to_owned(), ToString::to_string);
            let (claimed, reason) = (body.actor.as_deref(), body.reason.as_deref());
            self.audit(operator, claimed, reason, "reconcile", &target, now_ms).await?;
        }
        let reconciler = Reconciler::new(stripe, self.processor.clone());
        let options = Options {
            dry_run: body.dry_run,
            max_changes: body.cap,
            deadline: deadline(),
            resume: body.next,
            grace_seconds: GRACE_SECONDS,
            ..Options::default()
        };
        let now = seconds(now_ms);
        let report = match &only {
            Some(user) => reconciler.run_for(user, &options, now).await,
            None => {
                let report = reconciler.run(&options, now).await;
                reconciler.conclude(&report, options.deadline, now).await;
                report
            }
        };
        // A run that stopped before it read anything has no report, only the reason.
        if report.read.is_empty() && report.stopped.is_some() && report.next.is_none() {
            let why = report.stopped.unwrap_or_default();
            return Err(problem(StatusCode::BAD_GATEWAY, "stripe_failed", why));
        }
        Ok(json!({"report": report}))
    }

    /// Compares Stripe's events of our types with our log, by default those of the last day.
    ///
    /// ```json
    /// {"from":"…","to":"…","listed":120,"held":118,"complete":true,
    ///  "missing":[{"id":"evt_1","type":"invoice.paid","created":"2026-11-21T10:17:00Z"}]}
    /// ```
    pub(super) async fn gap(&self, request: &Request, now_ms: i64) -> Result<Value, Problem> {
        let to = time_ms("to", parameter(request, "to").as_deref())?.unwrap_or(now_ms);
        let from = time_ms("from", parameter(request, "from").as_deref())?.unwrap_or(to - DAY_MS);
        if from >= to || from < now_ms - 30 * DAY_MS {
            return Err(bad(
                "invalid_range",
                "from must be before to and within the 30 days that Stripe keeps events",
            ));
        }
        let found = gap(self.stripe()?, &self.store, seconds(from), seconds(to), deadline()).await;
        let found = found.map_err(|error| match error {
            GapError::Stripe(error) => stripe_failed(&error),
            GapError::Store(error) => error.into(),
        })?;
        let missing: Vec<Value> = found
            .missing
            .iter()
            .map(|event| json!({"id": event.id, "type": event.kind, "created": event.created.to_string()}))
            .collect();
        Ok(json!({
            "from": found.from.to_string(), "to": found.until.to_string(), "listed": found.listed,
            "held": found.held, "complete": found.complete, "missing": missing,
        }))
    }
}
