//! Configuration of the scheduled functions, `dead-letter` and `notify`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{OutboxConfig, allowed_addresses, catalog, keep_payloads, livemode, queues};
use crate::catalog_cache::DecidingCatalog;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::http::AllowedAddresses;
use tallyhook_aws::stripe::StripeConfig;
use tallyhook_core::event::Family;

/// Configuration of `retry`.
pub struct RetryConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The queue of each family.
    pub queues: BTreeMap<Family, String>,
    /// The plans, packs and orders that are sold.
    pub catalog: Arc<DecidingCatalog>,
    /// How changes are reported to the app.
    pub outbox: OutboxConfig,
}

impl RetryConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            queues: queues(env)?,
            catalog: catalog(env)?,
            outbox: OutboxConfig::from_env(env)?,
        })
    }
}

/// Configuration of `reconcile`.
pub struct ReconcileConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The mode of this deployment; `None` applies events of both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of a finished event.
    pub keep_payloads: bool,
    /// The plans, packs and orders that are sold.
    pub catalog: Arc<DecidingCatalog>,
    /// How changes are reported to the app.
    pub outbox: OutboxConfig,
    /// Stripe's API and the key.
    pub stripe: StripeConfig,
    /// The queue of each family, to send events again that a repair frees.
    pub queues: BTreeMap<Family, String>,
    /// The queue of alerts; without it, alerts are only logged.
    pub notify_queue_url: Option<String>,
}

impl ReconcileConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            livemode: livemode(env)?,
            keep_payloads: keep_payloads(env)?,
            catalog: catalog(env)?,
            outbox: OutboxConfig::from_env(env)?,
            stripe: StripeConfig::from_env(env)?
                .ok_or_else(|| ConfigError::Missing("STRIPE_SECRET_KEY".to_owned()))?,
            queues: queues(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
        })
    }
}

/// Configuration of `dead-letter`.
pub struct DeadLetterConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The queue of alerts; without it, alerts are only logged.
    pub notify_queue_url: Option<String>,
}

impl DeadLetterConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
        })
    }
}

/// Configuration of `health`.
pub struct HealthConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The queue of each family.
    pub queues: BTreeMap<Family, String>,
    /// The dead-letter queue.
    pub dead_letter_queue_url: Option<String>,
    /// The queue of alerts; without it, alerts are only logged.
    pub notify_queue_url: Option<String>,
    /// The catalog while none is stored. Its policy has the `quiet_hours`.
    pub catalog: Arc<DecidingCatalog>,
    /// Whether it serves live mode, where silence is a fault.
    pub is_live: bool,
    /// Stripe's API and the key, to check the account.
    pub stripe: Option<StripeConfig>,
    /// Where Stripe posts, the address to give to Stripe first; empty does not check the endpoint.
    pub webhook_urls: Vec<String>,
    /// The prefix of the deployment, which the endpoint's metadata names.
    pub prefix: String,
}

impl HealthConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            queues: queues(env)?,
            dead_letter_queue_url: env.get("QUEUE_URL_DEAD_LETTER"),
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
            catalog: catalog(env)?,
            is_live: livemode(env)? == Some(true),
            stripe: StripeConfig::from_env(env)?,
            webhook_urls: env
                .get("ENDPOINT_URL")
                .map(|urls| urls.split(',').map(|url| url.trim().to_owned()).collect())
                .unwrap_or_default(),
            prefix: env.get("PREFIX").unwrap_or_else(|| "tallyhook".to_owned()),
        })
    }
}

/// Configuration of `notify`.
pub struct NotifyConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// Slack's incoming webhook.
    pub slack_url: Option<String>,
    /// Discord's webhook.
    pub discord_url: Option<String>,
    /// The addresses that may be called.
    pub allowed_addresses: AllowedAddresses,
}

impl NotifyConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            slack_url: env.get("SLACK_WEBHOOK_URL"),
            discord_url: env.get("DISCORD_WEBHOOK_URL"),
            allowed_addresses: allowed_addresses(env, "NOTIFY_ALLOW_LOOPBACK")?,
        })
    }
}
