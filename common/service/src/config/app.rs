//! Configuration of `api`, which the app and its customers call, and of `provision`, which calls the app.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{OutboxConfig, allowed_addresses, catalog, keep_payloads, known_queues, livemode, retry_delays};
use crate::catalog_cache::DecidingCatalog;
use crate::http::api::AppTokens;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::http::AllowedAddresses;
use tallyhook_aws::stripe::StripeConfig;
use tallyhook_core::event::Family;

/// Configuration of `api`.
#[derive(Clone)]
pub struct ApiConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The app's bearer tokens; without one, every route that needs it refuses.
    pub tokens: Arc<AppTokens>,
    /// The plans, packs and orders that are sold.
    pub catalog: Arc<DecidingCatalog>,
    /// The mode of this deployment; `None` applies events of both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of a finished event.
    pub keep_payloads: bool,
    /// Stripe, to create checkout sessions and to read sessions before their webhook arrives.
    pub stripe: Option<StripeConfig>,
    /// The app's address, without a slash at the end.
    pub app_base_url: Option<String>,
    /// The address that a customer can write to.
    pub support_email: Option<String>,
    /// The queues of the families that are configured here, to send freed events again.
    pub queues: BTreeMap<Family, String>,
    /// How changes are reported to the app.
    pub outbox: OutboxConfig,
    /// The queue of alerts; without it, alerts are only logged.
    pub notify_queue_url: Option<String>,
}

impl ApiConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            tokens: Arc::new(AppTokens::from_env(env)),
            catalog: catalog(env)?,
            livemode: livemode(env)?,
            keep_payloads: keep_payloads(env)?,
            stripe: StripeConfig::from_env(env)?,
            app_base_url: app_base_url(env)?,
            support_email: env.get("SUPPORT_EMAIL"),
            queues: known_queues(env),
            outbox: OutboxConfig::from_env(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
        })
    }
}

/// Reads `APP_BASE_URL`. Customers are sent there, so in live mode it must be https and not this machine.
fn app_base_url(env: &Env) -> Result<Option<String>, ConfigError> {
    let Some(text) = env.get("APP_BASE_URL") else { return Ok(None) };
    let text = text.trim().trim_end_matches('/');
    let wrong = |want: &str| Err(Env::wrong("APP_BASE_URL", want));
    let uri: Option<http::Uri> = text.parse().ok();
    let scheme = uri.as_ref().and_then(http::Uri::scheme_str).unwrap_or_default();
    let host = uri
        .as_ref()
        .and_then(http::Uri::host)
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_ascii_lowercase();
    if !matches!(scheme, "http" | "https") || host.is_empty() || text.contains(['?', '#', '@']) {
        return wrong("an address such as https://app.example.com");
    }
    let address: Option<std::net::IpAddr> = host.parse().ok();
    let here = host == "localhost"
        || host.ends_with(".localhost")
        || address.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified());
    let live = livemode(env)? == Some(true)
        || env.get("STRIPE_SECRET_KEY").is_some_and(|key| key.contains("_live_"));
    if live && (here || scheme != "https") {
        return wrong("https and not this machine in live mode: customers who have paid are sent there");
    }
    Ok(Some(text.to_owned()))
}

/// Configuration of `provision`.
pub struct ProvisionConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The function's own queue, to delay a failed job.
    pub queue_url: String,
    /// The app's webhook; without it, jobs complete at once.
    pub url: Option<String>,
    /// Signs the requests; empty without a URL.
    pub secret: Vec<u8>,
    /// The addresses that may be called.
    pub allowed_addresses: AllowedAddresses,
    /// The seconds until the next attempt after the first failure, the second, …
    pub retry_delays_seconds: Vec<u32>,
    /// The queue of alerts; without it, alerts are only logged.
    pub notify_queue_url: Option<String>,
    /// The plans, packs and orders that are sold.
    pub catalog: Arc<DecidingCatalog>,
}

impl ProvisionConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let url = env.get("PROVISION_URL");
        let secret = match &url {
            None => Vec::new(),
            Some(_) => {
                let text = env.require("PROVISION_SECRET")?;
                let text = text.trim();
                let secret = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).ok();
                let want = "a Standard Webhooks secret: whsec_ and the base64 of 24 to 64 random bytes";
                secret
                    .filter(|secret| (24..=64).contains(&secret.len()))
                    .ok_or_else(|| Env::wrong("PROVISION_SECRET", want))?
            }
        };
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            queue_url: env.require("QUEUE_URL_PROVISION")?,
            url,
            secret,
            allowed_addresses: allowed_addresses(env, "PROVISION_ALLOW_LOOPBACK")?,
            retry_delays_seconds: retry_delays(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
            catalog: catalog(env)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customers_are_never_sent_to_this_machine_in_live_mode() {
        let read = |url: &str, mode: &str| {
            app_base_url(&Env::from([("APP_BASE_URL", url), ("STRIPE_LIVEMODE", mode)]))
        };
        assert_eq!(read("https://app.example.com/x/", "true").unwrap().unwrap(), "https://app.example.com/x");
        assert_eq!(read("http://127.0.0.1:9000", "false").unwrap().unwrap(), "http://127.0.0.1:9000");
        assert_eq!(read("", "true").unwrap(), None);
        for url in [
            "http://app.example.com",
            "https://localhost",
            "https://a.localhost",
            "https://127.0.0.1:1",
            "https://[::1]",
            "https://0.0.0.0",
        ] {
            assert!(read(url, "true").is_err(), "{url}");
        }
        for url in
            ["app.example.com", "/x", "javascript:alert(1)", "https://a@b", "https://a/?b", "https:///x"]
        {
            assert!(read(url, "false").is_err(), "{url}");
        }
        assert!(
            app_base_url(&Env::from([
                ("APP_BASE_URL", "http://localhost"),
                ("STRIPE_SECRET_KEY", "rk_live_1")
            ]))
            .is_err()
        );
    }
}
