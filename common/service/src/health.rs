//! `health`, every hour: counts, judges ([`tallyhook_core::health`]), writes the numbers as metrics and alerts
//! by the rules.
//!
//! The counts come from the log's indexes (a page of a day's partition holds thousands of events, so a day of
//! a hundred thousand events is some dozens of queries) and from one `GetQueueAttributes` for each queue. SQS
//! does not tell the age of its oldest message; an alarm on CloudWatch's `ApproximateAgeOfOldestMessage`
//! watches that (`template.yaml`), and reaches `notify` through EventBridge.

use aws_sdk_sqs::types::QueueAttributeName;
use futures_util::future::{join, join_all};
use serde_json::Value;
use tracing::{info, warn};

use crate::alerts::{Alert, Alerts};
use crate::config::HealthConfig;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::log::{self, Range};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::telemetry;
use tallyhook_core::event::Family;
use tallyhook_core::health::{Counts, Health, LOW_SCORE, MANY_FAILED, OLD_SECONDS, QueueCount, health};
use tallyhook_core::timestamp::Timestamp;

const HOUR: i64 = 3600;
/// Of one partition so many pages of up to 1 MB are counted; a count that stops there is a lower bound.
const MOST_PAGES: usize = 50;

/// The function.
pub struct HealthCheck {
    store: Store,
    sqs: aws_sdk_sqs::Client,
    queues: Vec<(Family, String)>,
    dead_letter_queue_url: Option<String>,
    alerts: Alerts,
}

impl HealthCheck {
    /// Builds it from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(HealthConfig::from_env(env)?, dynamodb, sqs))
    }

    /// The same over given clients.
    pub fn new(config: HealthConfig, dynamodb: aws_sdk_dynamodb::Client, sqs: aws_sdk_sqs::Client) -> Self {
        Self {
            store: Store::new(dynamodb, config.accounts_table, config.events_table),
            alerts: Alerts::new(Queue::new(sqs.clone()), config.notify_queue_url),
            sqs,
            queues: config.queues.into_iter().collect(),
            dead_letter_queue_url: config.dead_letter_queue_url,
        }
    }

    /// The schedule's invocation; what it sends does not matter.
    ///
    /// # Errors
    /// The store's.
    pub async fn handle(&self, _: Value) -> Result<Health, lambda_runtime::Error> {
        let (counts, health) = self.look(clock::now()).await?;
        info!(
            score = health.score,
            parked = counts.parked,
            failed = counts.failed,
            dead_letters = counts.dead_letters,
            "HEALTH"
        );
        let metric = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let mut metrics = vec![
            ("HealthScore", f64::from(health.score)),
            ("Parked", metric(counts.parked)),
            ("Failed", metric(counts.failed)),
            ("Missing", metric(counts.missing.unwrap_or(0))),
            ("Orphaned", metric(counts.orphaned.unwrap_or(0))),
            ("Waiting", counts.queues.iter().map(|queue| metric(queue.waiting)).sum()),
        ];
        metrics.extend(health.success_permille.map(|rate| ("SuccessRate", metric(rate) / 1000.0)));
        telemetry::metrics(&[], &metrics);
        for alert in alerts(&counts, &health) {
            self.alerts.send(&alert).await;
        }
        Ok(health)
    }

    /// Counts and judges.
    ///
    /// # Errors
    /// [`StoreError`]. A queue that does not answer counts as empty, with a line in the log.
    pub async fn look(&self, now: Timestamp) -> Result<(Counts, Health), StoreError> {
        let (from_log, from_queues) = join(self.count_log(now), self.count_queues()).await;
        let mut counts = from_log?;
        (counts.queues, counts.dead_letters) = from_queues;
        let health = health(&counts);
        Ok((counts, health))
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
                    "ignored" => counts.ignored += count,
                    _ => counts.unsuccessful += count,
                }
            }
        }
        let (report, signal) =
            (Key::Event("report#reconcile".to_owned()), Key::Event("signal#bad_signatures".to_owned()));
        let notes = self.store.load([report.clone(), signal.clone()]).await?;
        if let Some(report) = notes.get(&report) {
            counts.missing = items::read_number(report, "missing");
            counts.orphaned = items::read_number(report, "orphaned");
        }
        if let Some(signal) = notes.get(&signal) {
            let recent = items::read_number(signal, "at").is_some_and(|at: i64| at > now.unix() - HOUR);
            counts.refused_signatures = items::read_number(signal, "refused").filter(|_| recent).unwrap_or(0);
        }
        Ok(counts)
    }

    /// The events of one partition since a time, by outcome.
    async fn count(
        &self,
        index: &str,
        partition: String,
        from: i64,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let mut counts = std::collections::BTreeMap::new();
        let mut start = None;
        for _ in 0..MOST_PAGES {
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

    async fn count_queues(&self) -> (Vec<QueueCount>, u64) {
        let each = self.queues.iter().map(|(family, url)| async move {
            let [waiting, in_flight, delayed] = self.depth(url).await;
            QueueCount {
                queue: family.as_str().to_owned(),
                waiting,
                in_flight: in_flight + delayed,
                oldest_seconds: None,
            }
        });
        let dead = async {
            match &self.dead_letter_queue_url {
                Some(url) => self.depth(url).await.iter().sum(),
                None => 0,
            }
        };
        join(join_all(each), dead).await
    }

    async fn depth(&self, queue_url: &str) -> [u64; 3] {
        use QueueAttributeName::{
            ApproximateNumberOfMessages, ApproximateNumberOfMessagesDelayed,
            ApproximateNumberOfMessagesNotVisible,
        };
        let names = [
            ApproximateNumberOfMessages,
            ApproximateNumberOfMessagesNotVisible,
            ApproximateNumberOfMessagesDelayed,
        ];
        let request =
            self.sqs.get_queue_attributes().queue_url(queue_url).set_attribute_names(Some(names.to_vec()));
        match request.send().await {
            Ok(answer) => {
                let read =
                    |name| answer.attributes().and_then(|all| all.get(name)?.parse().ok()).unwrap_or(0);
                names.each_ref().map(read)
            }
            Err(error) => {
                let error = aws_smithy_types::error::display::DisplayErrorContext(error).to_string();
                warn!(error, queue_url, "QUEUE_NOT_COUNTED");
                [0; 3]
            }
        }
    }
}

/// The alerts that the counts call for.
fn alerts(counts: &Counts, health: &Health) -> Vec<Alert> {
    let mut alerts = Vec::new();
    if health.score < LOW_SCORE {
        alerts.push(Alert::Score { score: health.score, deductions: health.deductions.clone() });
    }
    if counts.failed > MANY_FAILED {
        alerts.push(Alert::Failed { events: counts.failed });
    }
    if let Some(records) = counts.missing.filter(|missing| *missing > 0) {
        alerts.push(Alert::Missing { records, repaired: 0 });
    }
    for queue in &counts.queues {
        if let Some(seconds) = queue.oldest_seconds.filter(|age| *age > OLD_SECONDS) {
            alerts.push(Alert::OldMessage { queue: queue.queue.clone(), seconds });
        }
    }
    alerts
}
