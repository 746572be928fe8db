//! What the app is to be told: jobs that are written in the transaction of what they tell, queued after it,
//! and done by `provision`.
//!
//! | job | written when | told as |
//! |---|---|---|
//! | `job#provision#<user>` | the first payment of a user is confirmed | `payment.confirmed` |
//! | `job#account#<user>` | the tier or the balance changes, and a `PROVISION_URL` is configured | `account.updated` |
//!
//! The job is the truth, the message on the queue only a nudge. A message that is lost after the commit is
//! sent again when the event is delivered again, and by `retry`, which finds every job that is due in the
//! index `by_status`. **Invariant:** nothing here is written or read for an event that calls for no job.

pub mod provision;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::config::OutboxConfig;
use tallyhook_aws::queue::Queue;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::log::{self, Line, Range};
use tallyhook_aws::store::{Store, StoreError, Write};
use tallyhook_core::account::State;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::UserId;
use tallyhook_core::job::JobKind;
use tallyhook_core::timestamp::Timestamp;

/// The jobs of one run of `retry`, and of one list, from each partition.
const MOST_JOBS: i32 = 500;

/// A message on the queue of `provision`: `{"job":"provision","user_id":"user_123"}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Nudge {
    /// What is to be done.
    pub job: JobKind,
    /// For whom.
    pub user_id: UserId,
}

/// Where jobs go.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queue: Option<(Queue, String)>,
    updates: bool,
}

/// How an account stood before it changed, as far as jobs depend on it.
#[derive(Clone, Debug)]
pub struct Before {
    paid: bool,
    told: Option<(String, Credits)>,
}

impl Outbox {
    /// As configured; without a queue of `provision` there are no jobs.
    pub fn new(queue: Queue, config: OutboxConfig) -> Self {
        Self { queue: config.queue_url.map(|url| (queue, url)), updates: config.updates }
    }

    /// Remembers how an account stands before it is changed.
    pub fn before(&self, state: &State, catalog: &Catalog, now: Timestamp) -> Before {
        Before { paid: state.first_paid_at.is_some(), told: self.told(state, catalog, now) }
    }

    fn told(&self, state: &State, catalog: &Catalog, now: Timestamp) -> Option<(String, Credits)> {
        (self.updates && self.queue.is_some())
            .then(|| (state.access(catalog, now).tier, state.balance(&catalog.policy, now)))
    }

    /// The jobs that a change calls for, to be written with it; [`Outbox::send`] their nudges after the
    /// commit.
    pub fn jobs(
        &self,
        user: &UserId,
        before: &Before,
        after: &State,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Vec<(Nudge, Write)> {
        let first_payment = self.queue.is_some() && !before.paid && after.first_paid_at.is_some();
        let changed = before.told != self.told(after, catalog, now);
        let kinds = [first_payment.then_some(JobKind::Provision), changed.then_some(JobKind::Account)];
        let job = |kind| (Nudge { job: kind, user_id: user.clone() }, items::job(kind, user, now));
        kinds.into_iter().flatten().map(job).collect()
    }

    /// Puts nudges on the queue. A failure is logged and left to `retry`: the job is written.
    pub async fn send<'a>(&self, nudges: impl IntoIterator<Item = &'a Nudge>) {
        let Some((queue, url)) = &self.queue else { return };
        let each = nudges.into_iter().map(async |nudge| {
            let (job, user_id) = (nudge.job.as_str(), nudge.user_id.as_str());
            let body = serde_json::to_string(nudge).unwrap_or_default();
            match queue.send_text(url, body).await {
                Ok(()) => info!(job, user_id, "PROVISIONING_ENQUEUED"),
                Err(error) => warn!(job, user_id, error = error.to_string(), "PROVISIONING_NOT_ENQUEUED"),
            }
        });
        join_all(each).await;
    }

    /// For an event that came again although it was done: its commit may have been the last thing that the
    /// first attempt did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resume(
        &self,
        store: &Store,
        users: impl IntoIterator<Item = UserId>,
    ) -> Result<(), StoreError> {
        if self.queue.is_none() {
            return Ok(());
        }
        let keys: Vec<(UserId, Key)> =
            users.into_iter().map(|user| (user.clone(), items::job_key(JobKind::Provision, &user))).collect();
        let items = store.load(keys.iter().map(|(_, key)| key.clone())).await?;
        let queued = |key: &Key| {
            items
                .get(key)
                .and_then(|item| items::read_text(item, "outcome"))
                .is_some_and(|state| state == "queued")
        };
        let nudges: Vec<Nudge> = keys
            .into_iter()
            .filter(|(_, key)| queued(key))
            .map(|(user_id, _)| Nudge { job: JobKind::Provision, user_id })
            .collect();
        self.send(&nudges).await;
        Ok(())
    }

    /// Sends the nudges of all jobs that are due, each claimed first by moving its `due`. Those that failed
    /// for good wait for a person. Returns how many were sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn nudge_due(&self, store: &Store, now: Timestamp) -> Result<usize, StoreError> {
        if self.queue.is_none() {
            return Ok(0);
        }
        let mut nudges = Vec::new();
        let ms = now.unix().saturating_mul(1000);
        for line in open_jobs(store).await? {
            let Some(nudge) =
                nudge(&line).filter(|_| line.status != "failed" && line.due_ms.is_none_or(|due| due <= ms))
            else {
                continue;
            };
            if store.claim_redrive(&line, now).await? {
                nudges.push(nudge);
            }
        }
        self.send(&nudges).await;
        Ok(nudges.len())
    }

    /// Has a job done again, whatever became of it: what an operator asks for. The app is told under the same
    /// id. `false` when there is no such job.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn run_again(&self, store: &Store, nudge: &Nudge, now: Timestamp) -> Result<bool, StoreError> {
        let key = items::job_key(nudge.job, &nudge.user_id);
        if !store.load([key.clone()]).await?.contains_key(&key) {
            return Ok(false);
        }
        store.commit(vec![items::job(nudge.job, &nudge.user_id, now)]).await?;
        self.send([nudge]).await;
        Ok(true)
    }
}

/// All jobs that are not done: queued, running and failed ones; `type` says which, `reason` what the last
/// attempt came to.
///
/// # Errors
/// [`StoreError`].
pub async fn open_jobs(store: &Store) -> Result<Vec<Line>, StoreError> {
    let mut lines = Vec::new();
    for partition in log::open_partitions("job") {
        let mut start = None;
        loop {
            let range = Range {
                index: "by_status",
                partition: &partition,
                from: 0,
                to: i64::MAX,
                newest_first: false,
            };
            let (found, more) = store.query(&range, Some(MOST_JOBS), start).await?;
            lines.extend(found.iter().filter_map(Line::read));
            start = more;
            if start.is_none() {
                break;
            }
        }
    }
    Ok(lines)
}

/// The nudge of a listed job.
pub fn nudge(line: &Line) -> Option<Nudge> {
    let rest = line.id.strip_prefix("job#")?;
    let (kind, user) = rest.split_once('#')?;
    let job = [JobKind::Provision, JobKind::Account].into_iter().find(|job| job.as_str() == kind)?;
    Some(Nudge { job, user_id: UserId::new(user).ok()? })
}
