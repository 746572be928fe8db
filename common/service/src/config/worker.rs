//! Configuration of the workers, and of the outbox that several functions write to.

use std::collections::BTreeMap;

use super::{catalog, keep_payloads, known_queues, livemode, queue_variable, retry_delays};
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::stripe::StripeConfig;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::Family;

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
    pub catalog: Catalog,
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
            outbox: OutboxConfig::from_env(env),
        })
    }
}

/// Configuration of the outbox.
#[derive(Clone, Debug, Default)]
pub struct OutboxConfig {
    /// The queue of `provision`; without one there are no jobs.
    pub queue_url: Option<String>,
    /// Whether every change of an account is reported, which is so when `PROVISION_URL` is set.
    pub updates: bool,
}

impl OutboxConfig {
    pub(super) fn from_env(env: &Env) -> Self {
        Self { queue_url: env.get("QUEUE_URL_PROVISION"), updates: env.get("PROVISION_URL").is_some() }
    }
}
