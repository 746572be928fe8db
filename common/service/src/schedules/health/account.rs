//! Reads the Stripe account for the rules of [`tallyhook_core::stripe_account`], stores what is wrong, and
//! sends an alert for each new finding. `doctor` makes the same checks from the operator's machine.
//!
//! A run makes at most 10 requests for the rights of the key, 2 for endpoints and portal, 5 pages of prices,
//! 40 single prices, and 3 pages of subscriptions for each status: 66 requests and their retries.

use std::time::Duration;

use futures_util::future::{join_all, join4};
use serde_json::Value;
use tallyhook_aws::store::items::{self, StripeAccountReport};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::stripe::{RetryLimits, Stripe, StripeConfig, StripeError};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::ids::PriceId;
use tallyhook_core::stripe_account::{
    self, Deployment, Findings, LIVE, Level, List, PORTAL_PATH, READ, ReadFailure, endpoint,
};
use tallyhook_core::timestamp::Timestamp;
use tracing::warn;

use crate::alerts::{Alert, Alerts};

/// The function's time-out is 30 s, and it has other work.
const MAX_DURATION: Duration = Duration::from_secs(18);
const RETRY_LIMITS: RetryLimits = RetryLimits {
    attempts: 2,
    attempt_timeout: Duration::from_secs(6),
    call_timeout: Duration::from_secs(8),
    first_wait: Duration::from_millis(300),
};
/// The other paths of the webhook.
const PATHS: [&str; 2] = ["/api/webhook/stripe", "/api/webhooks/stripe"];
const MAX_PRICE_PAGES: usize = 5;
const MAX_SUBSCRIPTION_PAGES: usize = 3;
/// Prices that are read one by one, when the account has more than the pages.
const MAX_SINGLE_PRICES: usize = 40;
const SINGLE_PRICES_AT_ONCE: usize = 10;
/// Alerts of one run. Further findings are alerted by the next runs.
const MAX_ALERTS: usize = 5;

/// Checks the account of one Stripe key.
pub(super) struct AccountCheck {
    stripe: Stripe,
    /// Where Stripe posts; empty does not check the endpoint.
    urls: Vec<String>,
    prefix: String,
}

impl AccountCheck {
    /// The first of the URLs is the one for Stripe. The same paths on the other hosts are the same webhook.
    pub(super) fn new(stripe: StripeConfig, urls: &[String], prefix: String) -> Self {
        let path = |url: &String, path: &str| url.replacen("/webhooks/stripe", path, 1);
        let others = urls.iter().flat_map(|url| PATHS.map(|other| path(url, other)));
        let urls = urls.iter().cloned().chain(others).collect();
        Self { stripe: Stripe::of(stripe).with_retry_limits(RETRY_LIMITS), urls, prefix }
    }

    /// Reads the account, stores the findings and sends alerts. When Stripe does not answer, the findings of
    /// the last run stay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn check(
        &self,
        catalog: &Catalog,
        store: &Store,
        alerts: &Alerts,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let findings = match tokio::time::timeout(MAX_DURATION, self.read(catalog, now)).await {
            Ok(Ok(findings)) => findings.0,
            Ok(Err(failure)) => {
                warn!(error = failure.message, "STRIPE_ACCOUNT_NOT_READ");
                return Ok(());
            }
            Err(_) => {
                warn!(error = "Stripe did not answer in time", "STRIPE_ACCOUNT_NOT_READ");
                return Ok(());
            }
        };
        let key = items::stripe_account_key();
        let known = store.load([key.clone()]).await?.get(&key).map(items::read_stripe_account);
        let known = known.unwrap_or_default().alerted;
        let (mut alerted, mut sent) = (Vec::new(), 0);
        for finding in findings.iter().filter(|finding| finding.level != Level::Note) {
            let key = finding.key();
            if !known.contains(&key) {
                if sent == MAX_ALERTS {
                    continue;
                }
                let (problem, fix) = (finding.problem.clone(), finding.fix.clone());
                alerts.send(&Alert::StripeAccount { key: key.clone(), problem, fix }).await;
                sent += 1;
            }
            alerted.push(key);
        }
        let report = StripeAccountReport {
            findings: serde_json::to_string(&findings).unwrap_or_default(),
            alerted,
            checked_ms: now.unix().saturating_mul(1000),
        };
        store.commit(vec![items::stripe_account(&report)]).await
    }

    async fn read(&self, catalog: &Catalog, now: Timestamp) -> Result<Findings, ReadFailure> {
        let mut findings = Findings::default();
        let answers = join_all(READ.map(|(_, path)| self.probe(path))).await;
        no_outage(&answers)?;
        if !stripe_account::check_key(&answers, now, &mut findings) {
            return Ok(findings);
        }
        let live = LIVE
            .map(|status| self.list("/v1/subscriptions", vec![("status", status)], MAX_SUBSCRIPTION_PAGES));
        let (endpoints, configurations, prices, subscriptions) = join4(
            self.list(endpoint::PATH, Vec::new(), 1),
            self.list(PORTAL_PATH, vec![("active", "true")], 1),
            self.prices(catalog),
            join_all(live),
        )
        .await;
        no_outage([&endpoints, &configurations, &prices])?;
        no_outage(&subscriptions)?;
        let livemode = self.stripe.livemode();
        if let Some((url, other_urls)) = self.urls.split_first() {
            let deployment = Deployment { url, other_urls, prefix: &self.prefix, livemode };
            stripe_account::check_endpoint(&endpoints, &deployment, &mut findings);
        }
        let is_sold = stripe_account::sells(catalog);
        stripe_account::check_portal(&configurations, is_sold.then_some(catalog), &mut findings);
        if is_sold {
            stripe_account::check_prices(&prices, catalog, livemode, &mut findings);
            stripe_account::check_subscriptions(&subscriptions, catalog, &mut findings);
        }
        Ok(findings)
    }

    /// The newest prices of the account, and those of the catalog.
    async fn prices(&self, catalog: &Catalog) -> Result<List, ReadFailure> {
        let mut prices = self.list("/v1/prices", Vec::new(), MAX_PRICE_PAGES).await?;
        if !prices.is_complete {
            let ids = stripe_account::unlisted_prices(catalog, &prices);
            prices.is_partial = ids.len() > MAX_SINGLE_PRICES;
            for ids in ids.get(..MAX_SINGLE_PRICES).unwrap_or(&ids).chunks(SINGLE_PRICES_AT_ONCE) {
                let reads: Vec<_> = ids.iter().map(|id| self.price(id.clone())).collect();
                prices.objects.extend(join_all(reads).await.into_iter().flatten());
            }
        }
        Ok(prices)
    }

    async fn price(&self, id: String) -> Option<Value> {
        let price = self.stripe.price(&PriceId::new(id).ok()?).await.ok()?;
        Some(price.value())
    }

    async fn probe(&self, path: &'static str) -> Result<Option<Timestamp>, ReadFailure> {
        self.stripe.probe(path).await.map_err(|error| read_failure(&error))
    }

    async fn list(
        &self,
        path: &'static str,
        parameters: Vec<(&'static str, &'static str)>,
        max_pages: usize,
    ) -> Result<List, ReadFailure> {
        let (objects, is_complete) = self
            .stripe
            .read_list(path, &parameters, max_pages)
            .await
            .map_err(|error| read_failure(&error))?;
        Ok(List { objects, is_complete, is_partial: false })
    }
}

fn read_failure(error: &StripeError) -> ReadFailure {
    ReadFailure { status: error.refusal().map(|refusal| refusal.status), message: error.to_string() }
}

/// The failure that says nothing about the account, because Stripe does not answer for a moment.
fn no_outage<'a, T: 'a>(
    answers: impl IntoIterator<Item = &'a Result<T, ReadFailure>>,
) -> Result<(), ReadFailure> {
    let mut failures = answers.into_iter().filter_map(|answer| answer.as_ref().err());
    failures.find(|failure| failure.is_outage()).map_or(Ok(()), |outage| Err(outage.clone()))
}
