//! Jobs of the function `provision` that used up their attempts, so that the app missed a change.

use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, AdminToken, bad, seconds, time, user_id};
use crate::http::answer::{Problem, problem};
use crate::outbox::{self, JobMessage};
use tallyhook_core::ids::SessionId;
use tallyhook_core::job::JobKind;

/// Jobs in one answer.
const MAX_SHOWN: usize = 200;

/// The body of `POST /admin/provisioning`:
///
/// ```json
/// {"job":"provision","user_id":"user_123","actor":"ann","reason":"the app is back"}
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunJobRequest {
    /// `provision`, `account`, `order_paid` and so on: see [`JobKind`].
    pub job: Option<JobKind>,
    /// The order of a job about one.
    pub order: Option<String>,
    /// What another job is about, as the list of jobs names it.
    pub about: Option<String>,
    /// The user of the job.
    pub user_id: String,
    /// Who makes the change, if the token does not say it.
    pub actor: Option<String>,
    /// The reason.
    pub reason: Option<String>,
}

impl Admin {
    /// ```json
    /// {"jobs":[{"job":"provision","event":"PAYMENT_CONFIRMED","order":null,"about":null,
    ///           "user_id":"user_123","status":"failed","attempts":4,"reason":"all attempts failed; the last one: the app answered 500","since":"…",
    ///           "finished_at":"…"}],
    ///  "waiting":0,"more":false}
    /// ```
    /// `jobs` are the failed jobs, oldest first. Other open jobs are retried automatically and only counted.
    pub(super) async fn jobs(&self) -> Result<Value, Problem> {
        let open = outbox::open_jobs(&self.store).await?;
        let (failed, waiting): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|record| record.status == "failed");
        let view = |record: &tallyhook_aws::store::log::LogRecord| {
            let message = outbox::job_message(record)?;
            Some(json!({
                "job": message.job,
                "event": record.kind,
                "order": message.order(),
                "about": message.about.as_ref().filter(|_| !message.job.is_about_order()),
                "user_id": message.user_id,
                "status": record.status,
                "attempts": record.attempts,
                "reason": record.reason,
                "since": time(record.received_ms),
                "finished_at": time(record.finished_ms),
            }))
        };
        let jobs: Vec<Value> = failed.iter().filter_map(view).take(MAX_SHOWN).collect();
        Ok(json!({"jobs": jobs, "waiting": waiting.len(), "more": failed.len() > MAX_SHOWN}))
    }

    /// Answers `{"job":"provision","user_id":"user_123","order":null,"about":null,"result":"queued"}`. The
    /// app gets the same message id as before, so it recognises a change that it already has.
    pub(super) async fn run_job(
        &self,
        body: RunJobRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let user_id = user_id(&body.user_id)?;
        let job =
            body.job.ok_or_else(|| bad("invalid_job", "job must be provision, account or of an order"))?;
        let order = body.order.filter(|order| SessionId::new(order.as_str()).is_ok());
        if order.is_some() != job.is_about_order() {
            return Err(bad(
                "invalid_order",
                "a job about an order needs its id, cs_…, and no other job does",
            ));
        }
        let about = body.about.filter(|about| !about.is_empty() && !about.contains('#'));
        let about = order.or(about);
        if about.is_some() != job.names_subject() {
            let message = "send about as the list of jobs has it, if it has one";
            return Err(bad("invalid_about", message));
        }
        let subject = about.as_ref().map_or_else(String::new, |about| format!("{about} "));
        let target = format!("{} {subject}{user_id}", job.as_str());
        let (claimed, reason) = (body.actor.as_deref(), body.reason.as_deref());
        self.audit(operator, claimed, reason, "provisioning", &target, now_ms).await?;
        let message = JobMessage { job, about, user_id, checkout_session_id: None };
        if !self.processor.accounts.outbox.run_again(&self.store, &message, seconds(now_ms)).await? {
            return Err(problem(StatusCode::NOT_FOUND, "job_not_found", "this user has no such job"));
        }
        Ok(json!({
            "job": job, "user_id": message.user_id, "order": message.order(),
            "about": message.about.filter(|_| !job.is_about_order()), "result": "queued",
        }))
    }
}
