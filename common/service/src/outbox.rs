//! Reports changes of accounts to the app. A job is written in the transaction of the change, a message about
//! it is queued after the commit, and the function `provision` does the job.
//!
//! | job | written when | reported as |
//! |---|---|---|
//! | `job#provision#<user>` | the first payment of a user is confirmed | `payment.confirmed` |
//! | `job#account#<user>` | tier or balance change and `PROVISION_URL` is set | `account.updated` |
//! | `job#order_paid#<cs_…>#<user>` | an order is paid and `PROVISION_URL` is set | `order.paid` |
//! | `job#order_refunded#<cs_…>#<user>` | its whole payment is refunded and `PROVISION_URL` is set | `order.refunded` |
//! | `job#credits_low#<user>` | the balance falls below a threshold of `low`, likewise | `credits.low` |
//! | `job#credits_depleted#<user>` | the balance falls to 0, likewise | `credits.depleted` |
//! | `job#credits_restored#<user>` | the balance reaches a threshold again, likewise | `credits.restored` |
//!
//! The stored job decides what is done; the message only says that there is one. A message that is lost after
//! the commit is sent again when Stripe redelivers the event, and by `retry`, which finds every due job in
//! the index `by_status`. **Invariant:** an event that needs no job causes no read and no write here.

pub mod provision;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tracing::{info, warn};

use crate::config::OutboxConfig;
use tallyhook_aws::queue::Queue;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::log::{self, Line, Range};
use tallyhook_aws::store::{Store, StoreError, Write};
use tallyhook_core::account::State;
use tallyhook_core::account::low::{self, LowKind, LowState};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::{SessionId, UserId};
use tallyhook_core::job::JobKind;
pub use tallyhook_core::job::JobMessage;
use tallyhook_core::timestamp::Timestamp;

/// Jobs read with one query.
const PAGE_SIZE: i32 = 500;

/// Writes jobs and queues messages about them.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queue: Option<(Queue, String)>,
    updates: bool,
}

/// The part of an account that is reported to the app. When it changes, a job is needed.
#[derive(Clone, Debug)]
pub struct AppView {
    has_paid: bool,
    tier_and_balance: Option<(String, Credits)>,
    low: Vec<LowState>,
}

impl Outbox {
    /// Without a queue of `provision` in the configuration, no jobs are written.
    pub fn new(queue: Queue, config: OutboxConfig) -> Self {
        Self { queue: config.queue_url.map(|url| (queue, url)), updates: config.updates }
    }

    /// The part of an account in this state that is reported to the app.
    pub fn view(&self, state: &State, catalog: &Catalog, now: Timestamp) -> AppView {
        let is_told = self.updates && self.queue.is_some();
        let tier_and_balance =
            is_told.then(|| (state.access(catalog, now).tier, state.balance(&catalog.policy, now)));
        // An account that was never written has no balance that could cross a threshold.
        let is_new = state.as_of == Timestamp::default();
        let low = if is_told && !is_new { state.low(catalog, now) } else { Vec::new() };
        AppView { has_paid: state.first_paid_at.is_some(), tier_and_balance, low }
    }

    /// The jobs that a change needs, to be written with it, and the messages to send with [`Outbox::send`]
    /// after the commit.
    pub fn jobs(
        &self,
        user: &UserId,
        session: Option<&SessionId>,
        before: &AppView,
        after: &State,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Vec<(JobMessage, Write)> {
        let after = self.view(after, catalog, now);
        let first_payment = self.queue.is_some() && !before.has_paid && after.has_paid;
        let changed = before.tier_and_balance != after.tier_and_balance;
        let kinds = [first_payment.then_some(JobKind::Provision), changed.then_some(JobKind::Account)];
        let job = |kind| {
            let job = JobMessage::of_user(kind, user).caused_by(session);
            let write = items::job(&job, now);
            (job, write)
        };
        let mut jobs: Vec<_> = kinds.into_iter().flatten().map(job).collect();
        let mut crossed: BTreeMap<LowKind, Vec<String>> = BTreeMap::new();
        for (kind, threshold) in low::crossed(&before.low, &after.low) {
            crossed.entry(kind).or_default().push(threshold.name());
        }
        for (kind, thresholds) in crossed {
            let job = JobMessage::of_user(JobKind::from(kind), user).caused_by(session);
            let write = items::low_job(&job, &thresholds, now);
            jobs.push((job, write));
        }
        jobs
    }

    /// The job that reports a step of an order, to be written with the step. `None` if the app is not called.
    pub fn order_job(
        &self,
        kind: JobKind,
        order: &SessionId,
        user: &UserId,
        now: Timestamp,
    ) -> Option<(JobMessage, Write)> {
        let job = JobMessage::of_order(kind, order, user);
        let write = items::job(&job, now);
        (self.updates && self.queue.is_some()).then_some((job, write))
    }

    /// Queues messages about jobs. A failure is logged; `retry` sends the message later, since the job is
    /// stored.
    pub async fn send<'a>(&self, messages: impl IntoIterator<Item = &'a JobMessage>) {
        let Some((queue, url)) = &self.queue else { return };
        let each = messages.into_iter().map(async |message| {
            let (job, user_id) = (message.job.as_str(), message.user_id.as_str());
            let (job_id, session) = (message.id(), message.checkout_session_id.as_ref());
            let body = serde_json::to_string(message).unwrap_or_default();
            match queue.send_text(url, body).await {
                Ok(()) => info!(
                    job,
                    job_id,
                    user_id,
                    client_id = user_id,
                    checkout_session_id = session.map(|session| session.as_str()),
                    "PROVISIONING_ENQUEUED"
                ),
                Err(error) => warn!(job, user_id, error = error.to_string(), "PROVISIONING_NOT_ENQUEUED"),
            }
        });
        join_all(each).await;
    }

    /// Queues the messages of an event that is delivered again although it is finished: the function may have
    /// ended after the commit and before the message was sent.
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
        let jobs: Vec<(JobMessage, Key)> = users
            .into_iter()
            .map(|user| JobMessage::of_user(JobKind::Provision, &user))
            .map(|job| (job.clone(), items::job_key(&job)))
            .collect();
        let items = store.load(jobs.iter().map(|(_, key)| key.clone())).await?;
        let queued = |key: &Key| {
            items
                .get(key)
                .and_then(|item| items::read_text(item, "outcome"))
                .is_some_and(|state| state == "queued")
        };
        let messages: Vec<JobMessage> = jobs
            .into_iter()
            .filter(|(_, key)| queued(key))
            .map(|(job, key)| job.caused_by(items.get(&key).and_then(items::session_of_job).as_ref()))
            .collect();
        self.send(&messages).await;
        Ok(())
    }

    /// Sends the messages of all due jobs. Each job is claimed first by moving its `due`. Failed jobs wait
    /// for an operator. Returns how many messages were sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn send_due(&self, store: &Store, now: Timestamp) -> Result<usize, StoreError> {
        if self.queue.is_none() {
            return Ok(0);
        }
        let mut messages = Vec::new();
        let ms = now.unix().saturating_mul(1000);
        for line in open_jobs(store).await? {
            let Some(message) = job_message(&line)
                .filter(|_| line.status != "failed" && line.due_ms.is_none_or(|due| due <= ms))
            else {
                continue;
            };
            if store.claim_redrive(&line, now).await? {
                messages.push(message);
            }
        }
        self.send(&messages).await;
        Ok(messages.len())
    }

    /// Queues a job again for an operator, in any state of the job. The app gets the same message id as
    /// before. `false` when there is no such job.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn run_again(
        &self,
        store: &Store,
        message: &JobMessage,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let key = items::job_key(message);
        let items = store.load([key.clone()]).await?;
        let Some(item) = items.get(&key) else { return Ok(false) };
        let message = message.clone().caused_by(items::session_of_job(item).as_ref());
        store.commit(vec![items::job(&message, now)]).await?;
        self.send([&message]).await;
        Ok(true)
    }
}

/// All jobs that are not completed: queued, running and failed ones. `type` names the job, `reason` the
/// result of the last attempt.
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
            let (found, more) = store.query(&range, Some(PAGE_SIZE), start).await?;
            lines.extend(found.iter().filter_map(Line::read));
            start = more;
            if start.is_none() {
                break;
            }
        }
    }
    Ok(lines)
}

/// The message about a listed job.
pub fn job_message(line: &Line) -> Option<JobMessage> {
    JobMessage::from_text(line.id.strip_prefix("job#")?)
}
