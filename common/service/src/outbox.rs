//! Reports changes of accounts to the app. A job is written in the transaction of the change, a message about
//! it is queued after the commit, and the function `provision` does the job.
//!
//! | job | written when |
//! |---|---|
//! | `job#provision#<user>` | the first payment of a user is confirmed |
//! | `job#account#<user>` | the tier or the balance changes |
//! | `job#credits_low#<user>`, `…_depleted#…`, `…_restored#…` | the balance crosses thresholds of `low` |
//! | `job#access_ended#<user>` | the user is back in the default tier |
//! | `job#product_granted#<name>#<user>`, `…_revoked#…` | the user has a product, or has it no more |
//! | `job#order_paid#<cs_…>#<user>`, `…_refunded#…` | an order is paid, all of its payment went back |
//! | `job#<kind>#<cause>#<user>` | an event has this notice: see [`tallyhook_core::notice`] |
//!
//! `PROVISION_EVENTS` selects the kinds. Without `PROVISION_URL` only `provision` is written.
//!
//! The stored job decides what is done; the message only says that there is one. A message that is lost after
//! the commit is sent again when Stripe redelivers the event, and by `retry`, which finds every due job in
//! the index `by_status`. **Invariant:** an event that needs no job causes no read and no write here.

pub mod provision;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use crate::account_view::product_view;
use crate::config::OutboxConfig;
use tallyhook_aws::queue::Queue;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::log::{self, LogRecord, Range};
use tallyhook_aws::store::{Store, StoreError, Write};
use tallyhook_core::account::low::{self, LowKind, LowState};
use tallyhook_core::account::products::{ProductStatus, Purchased};
use tallyhook_core::account::{Account, State};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::{Applied, Payments};
use tallyhook_core::event::Event;
use tallyhook_core::ids::{SessionId, UserId};
use tallyhook_core::job::JobKind;
pub use tallyhook_core::job::JobMessage;
use tallyhook_core::notice;
use tallyhook_core::timestamp::Timestamp;

/// Jobs read with one query.
const PAGE_SIZE: i32 = 500;

/// Writes jobs and queues messages about them.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queue: Option<(Queue, String)>,
    selected: BTreeSet<JobKind>,
}

/// The part of an account that is reported to the app. When it changes, a job is needed.
#[derive(Clone, Debug)]
pub struct AppView {
    has_paid: bool,
    tier_and_balance: Option<(String, Credits)>,
    low: Vec<LowState>,
    products: Vec<Purchased>,
}

impl AppView {
    fn tier(&self) -> Option<&str> {
        self.tier_and_balance.as_ref().map(|(tier, _)| tier.as_str())
    }

    /// The active products by name.
    fn owned(&self) -> BTreeMap<&str, &Purchased> {
        let active = self.products.iter().filter(|product| product.status == ProductStatus::Active);
        active.map(|product| (product.name.as_str(), product)).collect()
    }
}

impl Outbox {
    /// Without a queue of `provision` in the configuration, no jobs are written.
    pub fn new(queue: Queue, config: OutboxConfig) -> Self {
        Self { queue: config.queue_url.map(|url| (queue, url)), selected: config.selected }
    }

    /// Whether the app gets messages of this kind.
    pub fn reports(&self, kind: JobKind) -> bool {
        self.queue.is_some() && self.selected.contains(&kind)
    }

    fn reports_any(&self, kinds: &[JobKind]) -> bool {
        kinds.iter().any(|kind| self.reports(*kind))
    }

    /// The part of an account in this state that is reported to the app.
    pub fn view(&self, state: &State, catalog: &Catalog, now: Timestamp) -> AppView {
        use JobKind::{AccessEnded, Account, CreditsDepleted, CreditsLow, CreditsRestored};
        use JobKind::{ProductGranted, ProductRevoked};
        let tier_and_balance = self
            .reports_any(&[Account, AccessEnded])
            .then(|| (state.access(catalog, now).tier, state.balance(&catalog.policy, now)));
        // An account that was never written has no balance that could cross a threshold.
        let is_new = state.as_of == Timestamp::default();
        let reports_low = !is_new && self.reports_any(&[CreditsLow, CreditsDepleted, CreditsRestored]);
        let low = if reports_low { state.low(catalog, now) } else { Vec::new() };
        let reports_products =
            !catalog.products.is_empty() && self.reports_any(&[ProductGranted, ProductRevoked]);
        let products = if reports_products { state.purchased(catalog, now) } else { Vec::new() };
        AppView { has_paid: state.first_paid_at.is_some(), tier_and_balance, low, products }
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
        let mut reported: Vec<(JobMessage, Map<String, Value>)> = Vec::new();
        if !before.has_paid && after.has_paid {
            reported.push((JobMessage::of_user(JobKind::Provision, user), Map::new()));
        }
        if before.tier_and_balance != after.tier_and_balance {
            reported.push((JobMessage::of_user(JobKind::Account, user), Map::new()));
        }
        let default_tier = catalog.policy.default_tier.as_str();
        if let Some(tier) = before.tier()
            && tier != default_tier
            && after.tier() == Some(default_tier)
        {
            let data = Map::from_iter([("ended_tier".to_owned(), json!(tier))]);
            reported.push((JobMessage::of_user(JobKind::AccessEnded, user), data));
        }
        let mut crossed: BTreeMap<LowKind, Vec<String>> = BTreeMap::new();
        for (kind, threshold) in low::crossed(&before.low, &after.low) {
            crossed.entry(kind).or_default().push(threshold.name());
        }
        for (kind, thresholds) in crossed {
            let data = Map::from_iter([("thresholds".to_owned(), json!(thresholds))]);
            reported.push((JobMessage::of_user(JobKind::from(kind), user), data));
        }
        reported.extend(product_jobs(user, before, &after));
        reported.retain(|(job, _)| self.reports(job.job));
        reported.into_iter().map(|(job, data)| written(job.caused_by(session), &data, now)).collect()
    }

    /// The jobs of an event that was decided: `before` is the account before it.
    pub fn notices(
        &self,
        event: &Event,
        before: &Account,
        applied: &Applied,
        payments: &Payments,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Vec<(JobMessage, Write)> {
        let reports_any = self.selected.iter().any(|kind| kind.is_notice_of_event());
        if self.queue.is_none() || !reports_any {
            return Vec::new();
        }
        let notices = notice::notices(event, before, applied, payments, catalog, now);
        let reported = notices.into_iter().filter(|notice| self.reports(notice.kind));
        let session = event.checkout_session_id();
        reported
            .map(|notice| {
                let job = JobMessage::about(notice.kind, &notice.about, &before.user_id).caused_by(session);
                written(job, &notice.data, now)
            })
            .collect()
    }

    /// The job that reports a step of an order, to be written with the step. `None` if the app gets no such
    /// message.
    pub fn order_job(
        &self,
        kind: JobKind,
        order: &SessionId,
        user: &UserId,
        now: Timestamp,
    ) -> Option<(JobMessage, Write)> {
        let job = JobMessage::about(kind, order.as_str(), user);
        self.reports(kind).then(|| written(job, &Map::new(), now))
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
        for record in open_jobs(store).await? {
            let Some(message) = job_message(&record)
                .filter(|_| record.status != "failed" && record.due_ms.is_none_or(|due| due <= ms))
            else {
                continue;
            };
            if store.claim_redrive(&record, now).await? {
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
        store.commit(vec![items::job(&message, &items::data_of_job(item), now)]).await?;
        self.send([&message]).await;
        Ok(true)
    }
}

fn written(job: JobMessage, data: &Map<String, Value>, now: Timestamp) -> (JobMessage, Write) {
    let write = items::job(&job, data, now);
    (job, write)
}

/// The products that a user has only now, and those that the user has no more. Of a product that was bought
/// twice, the refund of one changes nothing.
fn product_jobs(user: &UserId, before: &AppView, after: &AppView) -> Vec<(JobMessage, Map<String, Value>)> {
    let (was, is) = (before.owned(), after.owned());
    let job = |kind, product: &Purchased| {
        let data = Map::from_iter([("product".to_owned(), product_view(product.clone()))]);
        (JobMessage::about(kind, &product.name, user), data)
    };
    let granted = is.iter().filter(|(name, _)| !was.contains_key(*name));
    let mut jobs: Vec<_> = granted.map(|(_, product)| job(JobKind::ProductGranted, product)).collect();
    for (name, product) in was.iter().filter(|(name, _)| !is.contains_key(*name)) {
        let now_refunded = after.products.iter().rev().find(|product| product.name == **name);
        jobs.push(job(JobKind::ProductRevoked, now_refunded.unwrap_or(product)));
    }
    jobs
}

/// All jobs that are not completed: queued, running and failed ones. `type` names the job, `reason` the
/// result of the last attempt.
///
/// # Errors
/// [`StoreError`].
pub async fn open_jobs(store: &Store) -> Result<Vec<LogRecord>, StoreError> {
    let mut records = Vec::new();
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
            records.extend(found.iter().filter_map(LogRecord::read));
            start = more;
            if start.is_none() {
                break;
            }
        }
    }
    Ok(records)
}

/// The message about a listed job.
pub fn job_message(record: &LogRecord) -> Option<JobMessage> {
    JobMessage::from_text(record.id.strip_prefix("job#")?)
}
