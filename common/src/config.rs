//! What the functions read from their environment, in one place.
//!
//! | variable | read by | meaning | default |
//! |---|---|---|---|
//! | `STRIPE_WEBHOOK_SECRET` | stripe-webhook | signing secrets, separated by commas; the mode comes from `STRIPE_LIVEMODE` | – |
//! | `STRIPE_WEBHOOK_SECRET_TEST`, `…_LIVE` | stripe-webhook | signing secrets of one mode each, separated by commas | – |
//! | `STRIPE_LIVEMODE` | stripe-webhook, workers | `true`, `false`: the mode of this deployment; an event of the other is never applied | both |
//! | `WEBHOOK_TOLERANCE_SECONDS` | stripe-webhook | how far a signature's time may be off, 1 to 86400 | 300 |
//! | `QUEUE_URL_<FAMILY>` | stripe-webhook, reconcile, retry, admin, health (all); a worker (its own must be there, the others it sends freed events to) | for example `QUEUE_URL_INVOICE_PAID` | – |
//! | `QUEUE_URL_NOTIFY` | stripe-webhook, workers, dead-letter, retry, health, reconcile | where alerts go; without one they are only logged | – |
//! | `QUEUE_URL_DEAD_LETTER` | health, admin | the dead-letter queue, to count what is in it | not counted |
//! | `SLACK_WEBHOOK_URL`, `DISCORD_WEBHOOK_URL` | notify | where alerts are posted: https, public addresses only | not posted |
//! | `NOTIFY_ALLOW_LOOPBACK` | notify | `true` also allows http to this machine, for the local stack | false |
//! | `ACCOUNTS_TABLE`, `EVENTS_TABLE` | all but stripe-webhook | DynamoDB table names | – |
//! | `RETRY_DELAYS_SECONDS` | workers | delays after the first, second, third failure | 300,600,900 |
//! | `CATALOG_FILE` | workers, api, retry, admin | a catalog to use instead of the one built in | – |
//! | `STRIPE_SECRET_KEY` | workers, reconcile, admin, api | a secret or restricted key of the deployment's mode; reading is enough but for api, which makes checkout and portal sessions | – |
//! | `STRIPE_API_BASE` | workers, reconcile, admin, api | where Stripe's API is | `https://api.stripe.com` |
//! | `APP_BASE_URL` | api | where the app is: customers come back there from Stripe; https and not this machine in live mode | no checkout |
//! | `SUPPORT_EMAIL` | api | whom a customer can write to, shown on the status page | not shown |
//! | `QUEUE_URL_PROVISION` | workers, api, reconcile, retry, admin, provision | the queue of `provision`; without one nothing is provisioned | – |
//! | `PROVISION_URL` | provision; the others only look whether it is set | the app's webhook: https, public addresses only | jobs are done at once |
//! | `PROVISION_SECRET` | provision | what requests to it are signed with: `whsec_` and base64, as Standard Webhooks has it | – |
//! | `PROVISION_ALLOW_LOOPBACK` | provision | `true` also allows http to this machine, for the local stack | false |
//! | `APP_API_TOKEN` | api | the app's bearer token; without one every route refuses | – |
//! | `ADMIN_API_TOKEN` | admin | the operator's bearer token; without one every route refuses | – |
//! | `METRICS_NAMESPACE` | all | what the metrics are filed under in CloudWatch: one for each deployment of an AWS account | tallyhook |
//! | `LOG_LEVEL` | all | `error`, `warn`, `info`, `debug` | info |
//! | `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_CA_BUNDLE`, … | all | see [`crate::aws`] | – |
//!
//! Any value may instead be `ssm:/path`: [`crate::aws::resolve`] puts the parameter's value in its place at start, and `stripe-webhook`
//! reads its signing secrets again when a signature matches none ([`Secrets`]).
//!
//! A missing or empty secret stops the start: a function never runs open.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::domain::catalog::{Catalog, CatalogError};
use crate::event::Family;
use crate::http::Reach;
use crate::signature::{Secret, SecretMode};
use crate::stripe::{Patience, Stripe};
use crate::webhook::Secrets;

/// The variables a function was started with. The local stack and the tests make their own instead of changing the process's.
#[derive(Clone, Default)]
pub struct Env {
    values: BTreeMap<String, String>,
    /// The `ssm:/path` of those whose value came from a parameter.
    given: BTreeMap<String, String>,
}

impl std::fmt::Debug for Env {
    /// Names only: values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Env {
    /// The variables that a function starts with: those of its process, with `ssm:/path` resolved and logging started. Ends the
    /// process when a parameter cannot be read.
    pub async fn at_start() -> Self {
        let env = Self::of_process();
        crate::telemetry::init(&env);
        crate::aws::resolve(env).await.unwrap_or_else(|error| crate::telemetry::refuse_start(&error))
    }

    /// The variables of this process; those that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self { values: std::env::vars_os().filter_map(utf8).collect(), given: BTreeMap::new() }
    }

    /// A variable's value; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).filter(|value| !value.trim().is_empty()).cloned()
    }

    /// A variable that must be there.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn require(&self, name: &str) -> Result<String, ConfigError> {
        self.get(name).ok_or_else(|| ConfigError::Missing(name.to_owned()))
    }

    /// Sets a variable.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.insert(name.into(), value.into());
    }

    /// Puts a parameter's value in the place of its `ssm:/path`, which is remembered.
    pub(crate) fn set_from_parameter(&mut self, name: &str, value: String) {
        if let Some(path) = self.values.insert(name.to_owned(), value) {
            self.given.insert(name.to_owned(), path);
        }
    }

    /// Whether a variable whose name begins so was an `ssm:/path`.
    pub(crate) fn came_from_parameter(&self, prefix: &str) -> bool {
        self.given.keys().any(|name| name.starts_with(prefix))
    }

    /// The variables with every `ssm:/path` of a signing secret as it was given, to be resolved again. The others keep their values.
    pub(crate) fn as_given(&self) -> Self {
        let mut values = self.values.clone();
        values.extend(self.given.clone().into_iter().filter(|(name, _)| name.starts_with("STRIPE_WEBHOOK_SECRET")));
        Self { values, given: BTreeMap::new() }
    }

    /// All variables, for starting a child process.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.values.iter()
    }

    pub(crate) fn wrong(name: &str, want: &str) -> ConfigError {
        ConfigError::Wrong { name: name.to_owned(), want: want.to_owned() }
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(variables: [(&str, &str); N]) -> Self {
        let values = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { values, given: BTreeMap::new() }
    }
}

/// Why a function does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable is not set, or empty.
    #[error("environment variable {0} is missing or empty")]
    Missing(String),
    /// A variable's value makes no sense. The value is left out: it may be a secret.
    #[error("environment variable {name} must be {want}")]
    Wrong {
        /// Which.
        name: String,
        /// What it must be.
        want: String,
    },
    /// No signing secret at all.
    #[error(
        "no webhook signing secret: set STRIPE_WEBHOOK_SECRET, or STRIPE_WEBHOOK_SECRET_TEST and _LIVE (Stripe shows it beside the endpoint, whsec_…)"
    )]
    NoSecret,
    /// A signing secret that cannot be one.
    #[error("environment variable {0} holds a blank signing secret: an empty key would let anyone sign")]
    BlankSecret(String),
    /// A variable is `ssm:/path`, and the parameter was not to be had.
    #[error("SSM parameter {name}: {message}")]
    Parameter {
        /// Its name.
        name: String,
        /// What SSM said.
        message: String,
    },
    /// The catalog that is built in is wrong.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The catalog file cannot be read, or is wrong: its path, the line, what is wrong.
    #[error("CATALOG_FILE {0}")]
    CatalogFile(String),
}

/// What `stripe-webhook` needs.
pub struct WebhookConfig {
    /// All signing secrets, each with the mode it is for.
    pub secrets: Secrets,
    /// How far a signature's time may be off, in seconds.
    pub tolerance_seconds: u32,
    /// The queue of each family.
    pub queues: BTreeMap<Family, String>,
    /// Where alerts go.
    pub notify_queue_url: Option<String>,
}

impl WebhookConfig {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let want = "a number of seconds from 1 to 86400 (0 would switch the check off)";
        let tolerance_seconds = match env.get("WEBHOOK_TOLERANCE_SECONDS") {
            None => 300,
            Some(text) => text
                .trim()
                .parse()
                .ok()
                .filter(|seconds| (1..=86_400).contains(seconds))
                .ok_or_else(|| Env::wrong("WEBHOOK_TOLERANCE_SECONDS", want))?,
        };
        Ok(Self {
            secrets: Secrets::from_env(env)?,
            tolerance_seconds,
            queues: queues(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
        })
    }
}

/// The signing secrets, each with the mode it is for; at least one.
///
/// # Errors
/// [`ConfigError`] naming the variable.
pub fn signing_secrets(env: &Env) -> Result<Vec<Secret>, ConfigError> {
    let general = match livemode(env)? {
        Some(true) => SecretMode::Live,
        Some(false) => SecretMode::Test,
        None => SecretMode::Any,
    };
    let mut secrets = Vec::new();
    for (name, mode) in [
        ("STRIPE_WEBHOOK_SECRET", general),
        ("STRIPE_WEBHOOK_SECRET_TEST", SecretMode::Test),
        ("STRIPE_WEBHOOK_SECRET_LIVE", SecretMode::Live),
    ] {
        let Some(list) = env.get(name) else { continue };
        for text in list.split(',') {
            let secret = Secret::new(text.trim()).map_err(|_| ConfigError::BlankSecret(name.to_owned()))?;
            secrets.push(secret.with_mode(mode));
        }
    }
    if secrets.is_empty() {
        return Err(ConfigError::NoSecret);
    }
    Ok(secrets)
}

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
    /// Seconds until the next attempt, after the first failure, the second, …
    pub retry_delays_seconds: Vec<u32>,
    /// What is sold.
    pub catalog: Catalog,
    /// Stripe, to be asked what an event leaves out; `None` asks nothing.
    pub stripe: Option<Stripe>,
    /// The app's side.
    pub outbox: OutboxConfig,
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
    fn from_env(env: &Env) -> Self {
        Self { queue_url: env.get("QUEUE_URL_PROVISION"), updates: env.get("PROVISION_URL").is_some() }
    }
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
            retry_delays_seconds: retry_delays(env)?,
            catalog: catalog(env)?,
            stripe: Stripe::from_env(env)?.map(|stripe| stripe.with_patience(WORKER_WAITS)),
            outbox: OutboxConfig::from_env(env),
        })
    }
}

fn retry_delays(env: &Env) -> Result<Vec<u32>, ConfigError> {
    let delays = env.get("RETRY_DELAYS_SECONDS").unwrap_or_else(|| "300,600,900".to_owned());
    let delays: Option<Vec<u32>> = delays.split(',').map(|delay| delay.trim().parse().ok().filter(|seconds| *seconds <= 43_200)).collect();
    let want = "whole seconds separated by commas, each at most 43200 (SQS's limit), such as 300,600,900";
    delays.ok_or_else(|| Env::wrong("RETRY_DELAYS_SECONDS", want))
}

/// What `provision` needs.
pub struct ProvisionConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// Its own queue, for sending a failed job back with a delay.
    pub queue_url: String,
    /// Where the app is called; without it there is nothing to call, and jobs are done at once.
    pub url: Option<String>,
    /// What requests are signed with; empty without a URL.
    pub secret: Vec<u8>,
    /// Where the app may be.
    pub reach: Reach,
    /// Seconds until the next attempt, after the first failure, the second, …
    pub retry_delays_seconds: Vec<u32>,
    /// Where alerts go.
    pub notify_queue_url: Option<String>,
    /// What is sold.
    pub catalog: Catalog,
}

impl ProvisionConfig {
    /// Reads it.
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
                secret.filter(|secret| (24..=64).contains(&secret.len())).ok_or_else(|| Env::wrong("PROVISION_SECRET", want))?
            }
        };
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            queue_url: env.require("QUEUE_URL_PROVISION")?,
            url,
            secret,
            reach: reach(env, "PROVISION_ALLOW_LOOPBACK")?,
            retry_delays_seconds: retry_delays(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
            catalog: catalog(env)?,
        })
    }
}

/// Where a client may go; a variable set to `true` also allows http to this machine.
fn reach(env: &Env, variable: &str) -> Result<Reach, ConfigError> {
    match env.get(variable).as_deref() {
        None | Some("false") => Ok(Reach::Public),
        Some("true") => Ok(Reach::PublicOrLoopback),
        Some(_) => Err(Env::wrong(variable, "true or false")),
    }
}

/// What `api` needs.
pub struct ApiConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The app's bearer token; `None` refuses every route that needs it.
    pub app_token: Option<String>,
    /// What is sold.
    pub catalog: Catalog,
    /// The mode of this deployment; `None` applies both.
    pub livemode: Option<bool>,
    /// Stripe, for checkout and for asking about a session whose webhook has not come; `None` without a key.
    pub stripe: Option<Stripe>,
    /// Where the app is, without a slash at the end.
    pub app_base_url: Option<String>,
    /// Whom a customer can write to.
    pub support_email: Option<String>,
    /// The queues of the families, as far as they are known here: where freed events go.
    pub queues: BTreeMap<Family, String>,
    /// The app's own webhook.
    pub outbox: OutboxConfig,
}

impl ApiConfig {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            accounts_table: env.require("ACCOUNTS_TABLE")?,
            events_table: env.require("EVENTS_TABLE")?,
            app_token: env.get("APP_API_TOKEN"),
            catalog: catalog(env)?,
            livemode: livemode(env)?,
            stripe: Stripe::from_env(env)?.map(|stripe| stripe.with_patience(SOMEBODY_WAITS)),
            app_base_url: app_base_url(env)?,
            support_email: env.get("SUPPORT_EMAIL"),
            queues: known_queues(env),
            outbox: OutboxConfig::from_env(env),
        })
    }
}

/// A batch waits for this: all questions of a batch are asked at once, and the function's 30 s must do for DynamoDB too.
const WORKER_WAITS: Patience = Patience {
    attempts: 2,
    attempt_timeout: Duration::from_secs(4),
    call_timeout: Duration::from_secs(9),
    first_wait: Duration::from_millis(300),
};

/// A customer or the app waits for the answer.
const SOMEBODY_WAITS: Patience = Patience {
    attempts: 2,
    attempt_timeout: Duration::from_secs(8),
    call_timeout: Duration::from_secs(12),
    first_wait: Duration::from_millis(300),
};

/// `APP_BASE_URL`, which customers are sent back to: in live mode never this machine, never in the clear.
fn app_base_url(env: &Env) -> Result<Option<String>, ConfigError> {
    let Some(text) = env.get("APP_BASE_URL") else { return Ok(None) };
    let text = text.trim().trim_end_matches('/');
    let wrong = |want: &str| Err(Env::wrong("APP_BASE_URL", want));
    let uri: Option<http::Uri> = text.parse().ok();
    let scheme = uri.as_ref().and_then(http::Uri::scheme_str).unwrap_or_default();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
    if !matches!(scheme, "http" | "https") || host.is_empty() || text.contains(['?', '#', '@']) {
        return wrong("an address such as https://app.example.com");
    }
    let address: Option<std::net::IpAddr> = host.parse().ok();
    let here = host == "localhost" || host.ends_with(".localhost") || address.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified());
    let live = livemode(env)? == Some(true) || env.get("STRIPE_SECRET_KEY").is_some_and(|key| key.contains("_live_"));
    if live && (here || scheme != "https") {
        return wrong("https and not this machine in live mode: customers who have paid are sent there");
    }
    Ok(Some(text.to_owned()))
}

/// What `reconcile` needs.
pub struct ReconcileConfig {
    /// The accounts table.
    pub accounts_table: String,
    /// The events table.
    pub events_table: String,
    /// The mode of this deployment; `None` applies both.
    pub livemode: Option<bool>,
    /// What is sold.
    pub catalog: Catalog,
    /// The app's side.
    pub outbox: OutboxConfig,
    /// Stripe, as the key's account.
    pub stripe: Stripe,
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
            catalog: catalog(env)?,
            outbox: OutboxConfig::from_env(env),
            stripe: Stripe::from_env(env)?.ok_or_else(|| ConfigError::Missing("STRIPE_SECRET_KEY".to_owned()))?,
            queues: queues(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
        })
    }
}

/// The queues of all families.
fn queues(env: &Env) -> Result<BTreeMap<Family, String>, ConfigError> {
    Family::ALL.iter().map(|&family| Ok((family, env.require(&queue_variable(family))?))).collect()
}

/// The queues of the families that have one here.
fn known_queues(env: &Env) -> BTreeMap<Family, String> {
    Family::ALL.iter().filter_map(|&family| Some((family, env.get(&queue_variable(family))?))).collect()
}

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
    /// Stripe, as the key's account; `None` without a key.
    pub stripe: Option<Stripe>,
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
            stripe: Stripe::from_env(env)?,
            retry: RetryConfig::from_env(env)?,
            health: HealthConfig::from_env(env)?,
        })
    }
}

/// The variable that holds a family's queue: `QUEUE_URL_INVOICE_PAID`.
pub fn queue_variable(family: Family) -> String {
    format!("QUEUE_URL_{}", family.as_str().to_uppercase().replace('-', "_"))
}

/// The catalog named by `CATALOG_FILE`, else the one that was built in.
fn catalog(env: &Env) -> Result<Catalog, ConfigError> {
    match env.get("CATALOG_FILE") {
        None => Ok(Catalog::parse(include_str!("../../catalog.toml"))?),
        Some(path) => {
            let text = std::fs::read_to_string(&path).map_err(|error| ConfigError::CatalogFile(format!("{path}: {error}")))?;
            Catalog::parse(&text).map_err(|error| ConfigError::CatalogFile(error.of_file(&path)))
        }
    }
}

fn livemode(env: &Env) -> Result<Option<bool>, ConfigError> {
    match env.get("STRIPE_LIVEMODE").as_deref() {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(Env::wrong("STRIPE_LIVEMODE", "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(mut env: Env) -> Env {
        for family in Family::ALL {
            env.set(queue_variable(family), "http://queue");
        }
        env
    }

    #[test]
    fn a_blank_or_missing_secret_stops_the_start() {
        assert!(matches!(WebhookConfig::from_env(&queues(Env::default())), Err(ConfigError::NoSecret)));
        assert!(matches!(WebhookConfig::from_env(&queues(Env::from([("STRIPE_WEBHOOK_SECRET", " ")]))), Err(ConfigError::NoSecret)));
        let blank = queues(Env::from([("STRIPE_WEBHOOK_SECRET", "whsec_a, ,whsec_b")]));
        assert!(matches!(WebhookConfig::from_env(&blank), Err(ConfigError::BlankSecret(_))));
    }

    #[test]
    fn a_tolerance_that_would_switch_the_check_off_is_refused() {
        for tolerance in ["0", "-1", "86401", "x"] {
            let env = queues(Env::from([("STRIPE_WEBHOOK_SECRET", "whsec_a"), ("WEBHOOK_TOLERANCE_SECONDS", tolerance)]));
            assert!(matches!(WebhookConfig::from_env(&env), Err(ConfigError::Wrong { .. })), "{tolerance}");
        }
    }

    #[test]
    fn customers_who_paid_are_never_sent_to_this_machine() {
        let read = |url: &str, mode: &str| app_base_url(&Env::from([("APP_BASE_URL", url), ("STRIPE_LIVEMODE", mode)]));
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
        for url in ["app.example.com", "/x", "javascript:alert(1)", "https://a@b", "https://a/?b", "https:///x"] {
            assert!(read(url, "false").is_err(), "{url}");
        }
        assert!(app_base_url(&Env::from([("APP_BASE_URL", "http://localhost"), ("STRIPE_SECRET_KEY", "rk_live_1")])).is_err());
    }

    #[test]
    fn an_environment_never_prints_its_values() {
        let env = Env::from([("STRIPE_WEBHOOK_SECRET", "whsec_canary")]);
        assert!(!format!("{env:?}").contains("canary"));
    }

    #[test]
    fn what_is_wrong_with_a_catalog_file_is_said_once_with_its_path_and_line() {
        let file = std::env::temp_dir().join(format!("tallyhook-config-{}.toml", std::process::id()));
        let path = file.to_string_lossy().into_owned();
        let told = || catalog(&Env::from([("CATALOG_FILE", path.as_str())])).unwrap_err();
        let absent = told();
        assert!(absent.to_string().starts_with(&format!("CATALOG_FILE {path}: ")) && std::error::Error::source(&absent).is_none());
        std::fs::write(&file, "[tiers]\nfree = 0\n[policy]\ndefault_tier = \"nope\"\n").unwrap();
        let wrong = told().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(wrong.starts_with(&format!("CATALOG_FILE {path} line 4: tier")) && wrong.matches(&path).count() == 1, "{wrong}");
    }
}
