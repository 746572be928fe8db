//! The workers of the families, and the app's side that they all write to.

use std::collections::BTreeMap;

use super::{catalog, keep_payloads, known_queues, livemode, queue_variable, retry_delays};
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::stripe::StripeConfig;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::Family;

/// What a family's worker needs.
pub struct WorkerConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The worker's own queue, for sending a failed record back with a delay.
    pub queue_url: String,
    /// The queues of the families, as far as they are known here: where freed events go.
    pub queues: BTreeMap<Family, String>,
    /// Where alerts go.
    pub notify_queue_url: Option<String>,
    /// The mode of this deployment; `None` applies both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of an event that is done.
    pub keep_payloads: bool,
    /// Seconds until the next attempt, after the first failure, the second, …
    pub retry_delays_seconds: Vec<u32>,
    /// What is sold.
    pub catalog: Catalog,
    /// Stripe, to be asked what an event leaves out; `None` asks nothing.
    pub stripe: Option<StripeConfig>,
    /// The app's side.
    pub outbox: OutboxConfig,
}

impl WorkerConfig {
    /// Reads it.
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

/// Where jobs for the app go.
#[derive(Clone, Debug, Default)]
pub struct OutboxConfig {
    /// The queue of `provision`; without one there are no jobs.
    pub queue_url: Option<String>,
    /// Whether the app is told of every change of an account: it has a `PROVISION_URL`.
    pub updates: bool,
}

impl OutboxConfig {
    pub(super) fn from_env(env: &Env) -> Self {
        Self { queue_url: env.get("QUEUE_URL_PROVISION"), updates: env.get("PROVISION_URL").is_some() }
    }
}
