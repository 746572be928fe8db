//! `health`, every hour: checks the Stripe account, computes the health score, writes metrics and sends alerts.

mod account;

use serde_json::Value;
use tracing::info;

use self::account::AccountCheck;
use crate::alerts::{Alert, Alerts};
use crate::catalog_cache::CatalogCache;
use crate::config::HealthConfig;
use crate::health::HealthReader;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk::{self, QueueAges};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::telemetry;
use tallyhook_core::health::{Counts, Health, LOW_SCORE, MANY_FAILED, OLD_SECONDS, RECONCILED_HOURS};
use tallyhook_core::timestamp::Timestamp;

/// The function `health`.
pub struct HealthCheck {
    reader: HealthReader,
    store: Store,
    catalog_cache: CatalogCache,
    is_live: bool,
    alerts: Alerts,
    /// `None` without a Stripe key.
    account: Option<AccountCheck>,
}

impl HealthCheck {
    /// Builds the function from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(HealthConfig::from_env(env)?, dynamodb, sqs, QueueAges::new(env)))
    }

    /// Builds the function with given clients.
    pub fn new(config: HealthConfig, dynamodb: sdk::DynamoDb, sqs: sdk::Sqs, ages: QueueAges) -> Self {
        let store = Store::new(dynamodb, config.accounts_table, config.events_table);
        let queue = Queue::new(sqs);
        let alerts = Alerts::new(queue.clone(), config.notify_queue_url);
        let needs_catalog = config.catalog.is_absent();
        let catalog_cache = CatalogCache::new(config.catalog);
        let dead_letters = config.dead_letter_queue_url;
        let has_key = config.stripe.is_some();
        let reader = HealthReader::new(
            store.clone(),
            queue,
            ages,
            config.queues,
            dead_letters,
            needs_catalog,
            has_key,
        );
        let (urls, prefix) = (config.webhook_urls, config.prefix);
        let account = config.stripe.map(|stripe| AccountCheck::new(stripe, &urls, prefix));
        Self { reader, store, catalog_cache, is_live: config.is_live, alerts, account }
    }

    /// Does one scheduled run; the content of the schedule's event does not matter.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn handle(&self, _: Value) -> Result<Health, lambda_runtime::Error> {
        let now = clock::now();
        let catalog = self.catalog_cache.fresh(&self.store).await;
        if let Some(account) = &self.account {
            // Boxed: it joins many requests, and its future is large.
            Box::pin(account.check(&catalog, &self.store, &self.alerts, now)).await?;
        }
        let (counts, health) = self.reader.read(now).await?;
        let quiet_hours = catalog.policy.quiet_hours;
        let is_quiet = self.is_quiet(quiet_hours, now).await?;
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
        ];
        // A figure that is not known has no data point.
        let figures = [
            ("Missing", counts.missing),
            ("Orphaned", counts.orphaned),
            ("PlansWithoutInvoice", counts.plans_without_invoice),
            ("Waiting", counts.queues.iter().map(|queue| queue.waiting).sum()),
        ];
        metrics.extend(figures.into_iter().filter_map(|(name, count)| Some((name, metric(count?)))));
        metrics.extend(is_quiet.map(|quiet| ("Quiet", f64::from(u8::from(quiet)))));
        metrics.extend(health.success_permille.map(|rate| ("SuccessRate", metric(rate) / 1000.0)));
        telemetry::metrics(&[], &metrics);
        for alert in alerts(&counts, &health) {
            self.alerts.send(&alert).await;
        }
        if is_quiet == Some(true) {
            self.alerts.send(&Alert::Quiet { hours: quiet_hours }).await;
        }
        // If no run was ever complete, there is no Stripe key, or `reconcile` has already sent an alert.
        let reconciled = self.reader.reconciled_at().await?;
        let hours = reconciled.map(|at| now.seconds_since(at).div_euclid(3600));
        if let Some(hours) = hours.filter(|hours| *hours >= RECONCILED_HOURS) {
            self.alerts.send(&Alert::NotReconciled { hours }).await;
        }
        Ok(health)
    }

    /// Whether no event arrived for the policy's `quiet_hours`. `None` outside live mode, and with 0 hours.
    async fn is_quiet(&self, quiet_hours: u64, now: Timestamp) -> Result<Option<bool>, StoreError> {
        let hours = i64::try_from(quiet_hours).ok().filter(|hours| *hours > 0 && self.is_live);
        let Some(hours) = hours else {
            return Ok(None);
        };
        let span = hours.saturating_mul(3_600_000);
        let until = now.unix().saturating_mul(1000);
        Ok(Some(self.store.outcomes(until - span, until, span).await?.steps.is_empty()))
    }
}

/// The alerts that the counts require.
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
