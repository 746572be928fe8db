//! Reconciliation on demand, and what is missing in the log.

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, bad, deadline, parameter, seconds, stripe_failed, time_ms, user_id};
use crate::http::answer::{Problem, problem};
use crate::reconcile::{GapError, Options, Reconciler, gap};

/// So many repairs are the most that one request may ask for.
const MOST_CHANGES: u64 = 5000;
const DAY_MS: i64 = 86_400_000;
/// An operator who looks wants to see what happened a minute ago; applying it twice is harmless.
pub(super) const GRACE_SECONDS: i64 = 60;

/// The body of `POST /admin/stripe/reconcile`. Without one it is a dry run over everything.
///
/// ```json
/// {"dry_run":false,"user":"user_1","cap":100,"actor":"ann","reason":"webhook was down"}
/// ```
/// The answer is `{"report":…}`, see [`crate::reconcile::Report`]. A run that ran out of time has `next` in
/// its report: the same body with that `next` goes on from there.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comparison {
    /// Find, and change nothing.
    pub dry_run: bool,
    /// Only what Stripe has of this user.
    pub user: Option<String>,
    /// Stop after so many repairs.
    pub cap: u64,
    /// Where the last run stopped.
    pub next: Option<String>,
    /// Who asks.
    pub actor: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self { dry_run: true, user: None, cap: 500, next: None, actor: None, reason: None }
    }
}

impl Admin {
    pub(super) async fn reconcile(&self, asked: Comparison, now_ms: i64) -> Result<Value, Problem> {
        let stripe = self.stripe()?.clone();
        if !(1..=MOST_CHANGES).contains(&asked.cap) {
            return Err(bad("invalid_cap", format!("cap must be a number from 1 to {MOST_CHANGES}")));
        }
        let only = asked.user.as_deref().map(user_id).transpose()?;
        if !asked.dry_run {
            let target = only.as_ref().map_or_else(|| "everything".to_owned(), ToString::to_string);
            self.audit(asked.actor.as_deref(), asked.reason.as_deref(), "reconcile", &target, now_ms).await?;
        }
        let reconciler = Reconciler::new(stripe, self.processor.clone());
        let options = Options {
            dry_run: asked.dry_run,
            most_changes: asked.cap,
            deadline: deadline(),
            resume: asked.next,
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
        // Nothing read and nothing found is no report, but the reason for having none.
        if report.read.is_empty() && report.stopped.is_some() && report.next.is_none() {
            let why = report.stopped.unwrap_or_default();
            return Err(problem(StatusCode::BAD_GATEWAY, "stripe_failed", why));
        }
        Ok(json!({"report": report}))
    }

    /// Stripe's events of our types against our log; of the last day unless said.
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
            "from": found.from.to_string(), "to": found.until.to_string(), "listed": found.listed, "held": found.held,
            "complete": found.complete, "missing": missing,
        }))
    }
}
