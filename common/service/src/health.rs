//! Counts events and messages and computes the health score ([`tallyhook_core::health`]), for the function
//! `health` and the admin API.
//!
//! The counts come from the indexes of the log and from one `GetQueueAttributes` per queue. A page of an
//! index holds thousands of events, so a day of 100,000 events needs some dozens of queries. While
//! queues hold messages, one call of CloudWatch reads how old the oldest are, because SQS does not report
//! it.

use futures_util::future::{join, join_all};
use tracing::warn;

use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk::QueueAges;
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::log::{self, Range};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::event::Family;
use tallyhook_core::health::{
    CHECKED_HOURS, Counts, Health, QueueCount, RECONCILED_HOURS, StripeAccount, health,
};
use tallyhook_core::timestamp::Timestamp;

const HOUR: i64 = 3600;
/// Pages of up to 1 MB that are counted of one partition. A count that stops here is a lower bound.
const MAX_PAGES: usize = 50;

/// Reads the counts and the score.
pub struct HealthReader {
    store: Store,
    queue: Queue,
    ages: QueueAges,
    queues: Vec<(Family, String)>,
    dead_letter_queue_url: Option<String>,
    needs_catalog: bool,
    checks_stripe: bool,
}

impl HealthReader {
    /// Counts the log of this store and these queues. `needs_catalog`: without a stored catalog the functions
    /// have none. `checks_stripe`: there is a Stripe key, so the function `health` checks the account.
    pub fn new(
        store: Store,
        queue: Queue,
        ages: QueueAges,
        queues: impl IntoIterator<Item = (Family, String)>,
        dead_letter_queue_url: Option<String>,
        needs_catalog: bool,
        checks_stripe: bool,
    ) -> Self {
        let queues = queues.into_iter().collect();
        Self { store, queue, ages, queues, dead_letter_queue_url, needs_catalog, checks_stripe }
    }

    /// Reads the counts and computes the score.
    ///
    /// # Errors
    /// [`StoreError`]. A queue that does not answer has no counts, and a log line reports it.
    pub async fn read(&self, now: Timestamp) -> Result<(Counts, Health), StoreError> {
        let (from_log, from_queues) = join(self.count_log(now), self.count_queues(now)).await;
        let mut counts = from_log?;
        (counts.queues, counts.dead_letters, counts.ages_unknown) = from_queues;
        let health = health(&counts);
        Ok((counts, health))
    }

    /// When the last complete reconciliation ended; `None` if none did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reconciled_at(&self) -> Result<Option<Timestamp>, StoreError> {
        let key = items::reconcile_report_key();
        let notes = self.store.load([key.clone()]).await?;
        let finished: Option<i64> = notes.get(&key).and_then(|report| items::read_number(report, "finished"));
        Ok(finished.map(|ms| Timestamp::from_unix(ms.div_euclid(1000))))
    }

    async fn count_log(&self, now: Timestamp) -> Result<Counts, StoreError> {
        let open = |state: &'static str| async move {
            let each = log::open_partitions(state)
                .into_iter()
                .map(|partition| self.count("by_status", partition, 0));
            let mut count = 0;
            for outcomes in join_all(each).await {
                count += outcomes?.iter().map(|(_, count)| count).sum::<u64>();
            }
            Ok::<u64, StoreError>(count)
        };
        let from = now.plus_days(-1).unix().saturating_mul(1000);
        let days = [items::day(from), items::day(now.unix().saturating_mul(1000))];
        let recent = days
            .iter()
            .flat_map(|day| log::day_partitions(day, None))
            .map(|partition| self.count("by_day", partition, from));
        let mut counts =
            Counts { parked: open("parked").await?, failed: open("failed").await?, ..Counts::default() };
        for outcomes in join_all(recent).await {
            for (outcome, count) in outcomes? {
                match outcome.as_str() {
                    "processed" => counts.processed += count,
                    "ignored" | "dismissed" => counts.ignored += count,
                    _ => counts.unsuccessful += count,
                }
            }
        }
        let (report, signal) = (items::reconcile_report_key(), items::bad_signatures_key());
        let account = items::stripe_account_key();
        let wanted = [report.clone(), signal.clone(), Key::Catalog];
        let account_wanted = self.checks_stripe.then(|| account.clone());
        let notes = self.store.load(wanted.into_iter().chain(account_wanted)).await?;
        counts.stripe_account = self.checks_stripe.then(|| stripe_account(notes.get(&account), now));
        counts.no_catalog = self.needs_catalog && !notes.contains_key(&Key::Catalog);
        let oldest = now.plus_seconds(-RECONCILED_HOURS * HOUR).unix().saturating_mul(1000);
        let is_recent = |report: &&Item| {
            items::read_number(report, "finished").is_some_and(|finished: i64| finished >= oldest)
        };
        if let Some(report) = notes.get(&report).filter(is_recent) {
            counts.missing = items::read_number(report, "missing");
            counts.orphaned = items::read_number(report, "orphaned");
            counts.plans_without_invoice = items::read_number(report, "plans_without_invoice");
        }
        if let Some(signal) = notes.get(&signal) {
            let recent = items::read_number(signal, "at").is_some_and(|at: i64| at > now.unix() - HOUR);
            counts.refused_signatures = items::read_number(signal, "refused").filter(|_| recent).unwrap_or(0);
        }
        Ok(counts)
    }

    /// Counts the events of one partition since a time, by outcome.
    async fn count(
        &self,
        index: &str,
        partition: String,
        from: i64,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let mut counts = std::collections::BTreeMap::new();
        let mut start = None;
        for _ in 0..MAX_PAGES {
            let range = Range { index, partition: &partition, from, to: i64::MAX, newest_first: true };
            let (found, more) = self.store.query(&range, None, start).await?;
            for outcome in found.iter().filter_map(|item| items::read_text(item, "outcome")) {
                *counts.entry(outcome).or_insert(0) += 1;
            }
            start = more;
            if start.is_none() {
                break;
            }
        }
        Ok(counts.into_iter().collect())
    }

    async fn count_queues(&self, now: Timestamp) -> (Vec<QueueCount>, Option<u64>, bool) {
        let each = self.queues.iter().map(|(family, url)| async move {
            let depth = self.depth(url).await;
            QueueCount {
                queue: family.as_str().to_owned(),
                waiting: depth.map(|[waiting, ..]| waiting),
                in_flight: depth.map(|[_, in_flight, delayed]| in_flight + delayed),
                oldest_seconds: None,
            }
        });
        let dead = async {
            match &self.dead_letter_queue_url {
                Some(url) => self.depth(url).await.map(|depth| depth.iter().sum()),
                None => Some(0),
            }
        };
        let (mut queues, dead) = join(join_all(each), dead).await;
        let ages_unknown = !self.read_ages(&mut queues, now).await;
        (queues, dead, ages_unknown)
    }

    /// Reads the age of the oldest message of each queue that holds messages. False if CloudWatch did not
    /// answer.
    async fn read_ages(&self, queues: &mut [QueueCount], now: Timestamp) -> bool {
        let holds_messages =
            |queue: &QueueCount| queue.waiting.unwrap_or(0) + queue.in_flight.unwrap_or(0) > 0;
        let (used, urls): (Vec<&mut QueueCount>, Vec<&str>) = queues
            .iter_mut()
            .zip(&self.queues)
            .filter(|(queue, _)| holds_messages(queue))
            .map(|(queue, (_, url))| (queue, url.as_str()))
            .unzip();
        if urls.is_empty() {
            return true;
        }
        match self.ages.read(&urls, now).await {
            Ok(ages) => {
                for (queue, age) in used.into_iter().zip(ages) {
                    queue.oldest_seconds = age;
                }
                true
            }
            Err(error) => {
                warn!(error, "QUEUE_AGE_NOT_READ");
                false
            }
        }
    }

    async fn depth(&self, queue_url: &str) -> Option<[u64; 3]> {
        let depth = self.queue.depth(queue_url).await;
        depth.map_err(|error| warn!(error, queue_url, "QUEUE_NOT_COUNTED")).ok()
    }
}

/// What `health` found in the Stripe account. What was found long ago is not known any more.
fn stripe_account(item: Option<&Item>, now: Timestamp) -> StripeAccount {
    let Some(item) = item else { return StripeAccount::default() };
    let report = items::read_stripe_account(item);
    let checked_at = Timestamp::from_unix(report.checked_ms.div_euclid(1000));
    let is_recent = now.seconds_since(checked_at) < CHECKED_HOURS * HOUR;
    let findings = is_recent.then(|| serde_json::from_str(&report.findings).ok()).flatten();
    StripeAccount { findings, checked_at: Some(checked_at.to_string()) }
}
