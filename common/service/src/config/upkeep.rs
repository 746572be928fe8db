//! What keeps the deployment in order: the schedules, the dead-letter queue, alerts, and the operator.

use std::collections::BTreeMap;

use super::{OutboxConfig, catalog, keep_payloads, livemode, queues, reach};
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::http::Reach;
use tallyhook_aws::stripe::StripeConfig;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::Family;

/// What `retry` needs.
pub struct RetryConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The queue of each family.
    pub queues: BTreeMap<Family, String>,
    /// What is sold.
    pub catalog: Catalog,
    /// The app's side.
    pub outbox: OutboxConfig,
}

impl RetryConfig {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            queues: queues(env)?,
            catalog: catalog(env)?,
            outbox: OutboxConfig::from_env(env),
        })
    }
}

/// What `reconcile` needs.
pub struct ReconcileConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The mode of this deployment; `None` applies both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of an event that is done.
    pub keep_payloads: bool,
    /// What is sold.
    pub catalog: Catalog,
    /// The app's side.
    pub outbox: OutboxConfig,
    /// Stripe, as the key's account.
    pub stripe: StripeConfig,
    /// The queue of each family: what a repair frees goes back there.
    pub queues: BTreeMap<Family, String>,
    /// Where alerts go; without it they are only logged.
    pub notify_queue_url: Option<String>,
}

impl ReconcileConfig {
    /// Reads it.
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
            outbox: OutboxConfig::from_env(env),
            stripe: StripeConfig::from_env(env)?
                .ok_or_else(|| ConfigError::Missing("STRIPE_SECRET_KEY".to_owned()))?,
            queues: queues(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
        })
    }
}

/// What `dead-letter` needs.
pub struct DeadLetterConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// Where alerts go.
    pub notify_queue_url: Option<String>,
}

impl DeadLetterConfig {
    /// Reads it.
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

/// What `health` needs.
pub struct HealthConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The queue of each family.
    pub queues: BTreeMap<Family, String>,
    /// The dead-letter queue.
    pub dead_letter_queue_url: Option<String>,
    /// Where alerts go.
    pub notify_queue_url: Option<String>,
}

impl HealthConfig {
    /// Reads it.
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
        })
    }
}

/// What `notify` needs.
pub struct NotifyConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// Slack's incoming webhook.
    pub slack_url: Option<String>,
    /// Discord's webhook.
    pub discord_url: Option<String>,
    /// Where the two may be.
    pub reach: Reach,
}

impl NotifyConfig {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            slack_url: env.get("SLACK_WEBHOOK_URL"),
            discord_url: env.get("DISCORD_WEBHOOK_URL"),
            reach: reach(env, "NOTIFY_ALLOW_LOOPBACK")?,
        })
    }
}

/// What `admin` needs beside what its parts do.
pub struct AdminConfig {
    /// The operator's bearer token; `None` refuses every route.
    pub admin_token: Option<String>,
    /// The mode of this deployment; `None` applies both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of an event that is done.
    pub keep_payloads: bool,
    /// Stripe, as the key's account; `None` without a key.
    pub stripe: Option<StripeConfig>,
    /// For what it sends again.
    pub retry: RetryConfig,
    /// For the health route.
    pub health: HealthConfig,
}

impl AdminConfig {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            admin_token: env.get("ADMIN_API_TOKEN"),
            livemode: livemode(env)?,
            keep_payloads: keep_payloads(env)?,
            stripe: StripeConfig::from_env(env)?,
            retry: RetryConfig::from_env(env)?,
            health: HealthConfig::from_env(env)?,
        })
    }
}
