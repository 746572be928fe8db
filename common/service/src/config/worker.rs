//! Configuration of the workers, and of the outbox that several functions write to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{catalog, keep_payloads, known_queues, livemode, queue_variable, retry_delays};
use crate::catalog_cache::DecidingCatalog;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::stripe::StripeConfig;
use tallyhook_core::event::Family;
use tallyhook_core::job::JobKind;

/// Configuration of a family's worker.
pub struct WorkerConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The worker's own queue, to delay a failed record.
    pub queue_url: String,
    /// The queues of the families that are configured here, to send freed events again.
    pub queues: BTreeMap<Family, String>,
    /// The queue of alerts; without it, alerts are only logged.
    pub notify_queue_url: Option<String>,
    /// The mode of this deployment; `None` applies events of both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of a finished event.
    pub keep_payloads: bool,
    /// The seconds until the next attempt after the first failure, the second, …
    pub retry_delays_seconds: Vec<u32>,
    /// The plans, packs and orders that are sold.
    pub catalog: Arc<DecidingCatalog>,
    /// Stripe, to read what an event leaves out; `None` without a key.
    pub stripe: Option<StripeConfig>,
    /// How changes are reported to the app.
    pub outbox: OutboxConfig,
}

impl WorkerConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env, family: Family) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            queue_url: env.require(&queue_variable(family))?,
            queues: known_queues(env),
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
            livemode: livemode(env)?,
            keep_payloads: keep_payloads(env)?,
            retry_delays_seconds: retry_delays(env)?,
            catalog: catalog(env)?,
            stripe: StripeConfig::from_env(env)?,
            outbox: OutboxConfig::from_env(env)?,
        })
    }
}

/// Configuration of the outbox.
#[derive(Clone, Debug, Default)]
pub struct OutboxConfig {
    /// The queue of `provision`; without one there are no jobs.
    pub queue_url: Option<String>,
    /// The messages that the app gets. Without `PROVISION_URL` that is only the first payment, whose job
    /// completes without a call.
    pub selected: BTreeSet<JobKind>,
}

impl OutboxConfig {
    pub(super) fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let mut selected = selected(env)?;
        if env.get("PROVISION_URL").is_none() {
            selected.retain(|kind| *kind == JobKind::Provision);
        }
        Ok(Self { queue_url: env.get("QUEUE_URL_PROVISION"), selected })
    }
}

/// The types in `PROVISION_EVENTS`. Default: all.
fn selected(env: &Env) -> Result<BTreeSet<JobKind>, ConfigError> {
    let Some(text) = env.get("PROVISION_EVENTS").filter(|text| !text.trim().is_empty()) else {
        return Ok(JobKind::ALL.into());
    };
    let kind = |name: &str| JobKind::ALL.into_iter().find(|kind| kind.message_type() == name.trim());
    let kinds: Option<BTreeSet<JobKind>> = text.split(',').map(kind).collect();
    kinds.ok_or_else(|| {
        let all: Vec<&str> = JobKind::ALL.into_iter().map(JobKind::message_type).collect();
        let want = format!("types separated by commas, each one of: {}", all.join(", "));
        Env::wrong("PROVISION_EVENTS", &want)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_gets_the_selected_types_and_without_a_url_only_the_first_payment() {
        let read = |events: &str, url: &str| {
            let env = Env::from([("PROVISION_EVENTS", events), ("PROVISION_URL", url)]);
            OutboxConfig::from_env(&env).map(|config| config.selected.into_iter().collect::<Vec<_>>())
        };
        let url = "https://app.example.com/hook";
        assert_eq!(read("", url).unwrap().len(), JobKind::ALL.len());
        assert_eq!(
            read("order.paid, payment.confirmed", url).unwrap(),
            [JobKind::Provision, JobKind::OrderPaid]
        );
        assert_eq!(read("order.paid,payment.confirmed", "").unwrap(), [JobKind::Provision]);
        assert_eq!(read("order.paid", "").unwrap(), []);
        let error = read("order.payed", url).unwrap_err().to_string();
        assert!(error.contains("PROVISION_EVENTS") && error.contains("order.paid"), "{error}");
    }
}
