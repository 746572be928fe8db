//! What the app could not be told: jobs of the function `provision` that used up their attempts.

use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, bad, seconds, time, user_id};
use crate::http::answer::{Problem, problem};
use crate::outbox::{self, Nudge};
use tallyhook_core::job::JobKind;

/// So many are shown.
const MOST_SHOWN: usize = 200;

/// `POST /admin/provisioning`: `{"job":"provision","user_id":"user_123","actor":"ann","reason":"the app is
/// back"}`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunAgain {
    /// `provision` or `account`.
    pub job: Option<JobKind>,
    /// Whose.
    pub user_id: String,
    /// Who asks.
    pub actor: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl Admin {
    /// `{"jobs":[{"job":"provision","event":"PAYMENT_CONFIRMED","user_id":"user_123","status":"failed","attempts":4,
    /// "reason":"all attempts failed; the last one: the app answered
    /// 500","since":"…","finished_at":"…"}],"waiting":0,"more":false}`: those that failed for good, oldest
    /// first; the others are only counted, as they are tried again by themselves.
    pub(super) async fn jobs(&self) -> Result<Value, Problem> {
        let open = outbox::open_jobs(&self.store).await?;
        let (failed, waiting): (Vec<_>, Vec<_>) = open.into_iter().partition(|line| line.status == "failed");
        let view = |line: &tallyhook_aws::store::log::Line| {
            let nudge = outbox::nudge(line)?;
            Some(json!({
                "job": nudge.job,
                "event": line.kind,
                "user_id": nudge.user_id,
                "status": line.status,
                "attempts": line.attempts,
                "reason": line.reason,
                "since": time(line.received_ms),
                "finished_at": time(line.finished_ms),
            }))
        };
        let jobs: Vec<Value> = failed.iter().filter_map(view).take(MOST_SHOWN).collect();
        Ok(json!({"jobs": jobs, "waiting": waiting.len(), "more": failed.len() > MOST_SHOWN}))
    }

    /// `{"job":"provision","user_id":"user_123","result":"queued"}`: the app is told under the same id as
    /// before, so one that had it knows it.
    pub(super) async fn run_job(&self, again: RunAgain, now_ms: i64) -> Result<Value, Problem> {
        let user_id = user_id(&again.user_id)?;
        let job = again.job.ok_or_else(|| bad("invalid_job", "job must be provision or account"))?;
        let target = format!("{} {user_id}", job.as_str());
        self.audit(again.actor.as_deref(), again.reason.as_deref(), "provisioning", &target, now_ms).await?;
        let nudge = Nudge { job, user_id };
        if !self.processor.accounts.outbox.run_again(&self.store, &nudge, seconds(now_ms)).await? {
            return Err(problem(StatusCode::NOT_FOUND, "job_not_found", "there is no such job of this user"));
        }
        Ok(json!({"job": nudge.job, "user_id": nudge.user_id, "result": "queued"}))
    }
}
