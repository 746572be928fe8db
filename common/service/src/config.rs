//! The environment variables of the functions, in one place, and the start of a function ([`start`]).
//!
//! | variable | read by |
//! |---|---|
//! | `STRIPE_WEBHOOK_SECRET`, `…_TEST`, `…_LIVE` | stripe-webhook |
//! | `WEBHOOK_TOLERANCE_SECONDS` | stripe-webhook |
//! | `STRIPE_LIVEMODE`, `KEEP_PAYLOADS` | stripe-webhook and health (only the mode), workers, api, reconcile, admin |
//! | `QUEUE_URL_<FAMILY>` | stripe-webhook, reconcile, retry, admin, health; workers and api some of them |
//! | `QUEUE_URL_NOTIFY` | stripe-webhook, workers, provision, dead-letter, health, reconcile |
//! | `QUEUE_URL_DEAD_LETTER` | health, admin |
//! | `QUEUE_URL_PROVISION` | workers, api, reconcile, retry, admin, provision |
//! | `SLACK_WEBHOOK_URL`, `DISCORD_WEBHOOK_URL`, `NOTIFY_ALLOW_LOOPBACK` | notify |
//! | `ACCOUNTS_TABLE`, `EVENTS_TABLE` | all but stripe-webhook |
//! | `RETRY_DELAYS_SECONDS` | workers, provision |
//! | `CATALOG_FILE` | workers, api, provision, reconcile, retry, admin, health |
//! | `CATALOG_MAX_AGE_SECONDS` | workers, api, provision, reconcile, retry, admin |
//! | `STRIPE_SECRET_KEY`, `STRIPE_API_BASE` | workers, reconcile, admin, api |
//! | `APP_BASE_URL`, `SUPPORT_EMAIL`, `APP_API_TOKEN` | api |
//! | `ADMIN_API_TOKEN`, `ADMIN_API_TOKENS` | admin |
//! | `PROVISION_URL` | provision; workers, api, reconcile, retry and admin check whether it is set |
//! | `PROVISION_EVENTS` | workers, api, reconcile, retry, admin |
//! | `PROVISION_SECRET`, `PROVISION_ALLOW_LOOPBACK` | provision |
//! | `METRICS_NAMESPACE`, `LOG_LEVEL`, `AWS_…` | all |
//!
//! What they mean:
//!
//! - `STRIPE_WEBHOOK_SECRET`: signing secrets, separated by commas, of the mode in `STRIPE_LIVEMODE`.
//! - `STRIPE_WEBHOOK_SECRET_TEST`, `STRIPE_WEBHOOK_SECRET_LIVE`: signing secrets of one mode, separated by
//!   commas.
//! - `STRIPE_LIVEMODE`: `true` or `false`, the mode of this deployment. Events of the other mode are never
//!   applied. Default: both modes are applied.
//! - `KEEP_PAYLOADS`: `false` deletes the body of a finished event from the log. Default: `true`.
//! - `WEBHOOK_TOLERANCE_SECONDS`: the largest accepted age of a signature, 1 to 86400. Default: 300.
//! - `QUEUE_URL_<FAMILY>`: the queue of a family, such as `QUEUE_URL_INVOICE_PAID`. A worker requires its own
//!   queue, and uses the others to send events again that a new link frees.
//! - `QUEUE_URL_NOTIFY`: the queue of alerts. Default: alerts are only logged.
//! - `QUEUE_URL_DEAD_LETTER`: the dead-letter queue. Default: its messages are not counted.
//! - `QUEUE_URL_PROVISION`: the queue of `provision`. Default: changes are not reported to the app.
//! - `SLACK_WEBHOOK_URL`, `DISCORD_WEBHOOK_URL`: where alerts are posted; https and public addresses only.
//!   Default: alerts are not posted.
//! - `NOTIFY_ALLOW_LOOPBACK`, `PROVISION_ALLOW_LOOPBACK`: `true` also allows http to this machine, for the
//!   local stack. Default: `false`.
//! - `ACCOUNTS_TABLE`, `EVENTS_TABLE`: the names of the DynamoDB tables.
//! - `RETRY_DELAYS_SECONDS`: the delays after the first, second and third failure. Default: 300,600,900.
//! - `CATALOG_FILE`: a catalog to use while none is stored, for tests and for the local stack.
//! - `CATALOG_MAX_AGE_SECONDS`: how long a catalog is used before the stored one is read again. Default: 30.
//! - `STRIPE_SECRET_KEY`: a secret or restricted key of the deployment's mode. Permission to read is enough,
//!   except for api, which creates checkout and portal sessions.
//! - `STRIPE_API_BASE`: the address of Stripe's API. Default: `https://api.stripe.com`.
//! - `APP_BASE_URL`: the app's address, to which Stripe sends customers back. In live mode it must be https
//!   and not this machine. Default: no checkout.
//! - `SUPPORT_EMAIL`: the address on the status page that a customer can write to. Default: not shown.
//! - `APP_API_TOKEN`: the bearer token of the app. Default: every route that needs it refuses.
//! - `ADMIN_API_TOKENS`: the tokens of the operators, as a JSON list of
//!   `{"name","role","max_grant","sha256"}`; see [`admin_tokens`]. `ADMIN_API_TOKEN`: the bearer token of an
//!   admin named `admin`. Default: without either, every route of the admin API refuses.
//! - `PROVISION_URL`: the app's webhook; https and public addresses only. Default: jobs complete at once.
//! - `PROVISION_EVENTS`: the types of messages to `PROVISION_URL`, separated by commas, such as
//!   `payment.confirmed,order.paid`. Default: all.
//! - `PROVISION_SECRET`: signs the requests to `PROVISION_URL`: `whsec_` and base64, as in Standard Webhooks.
//! - `METRICS_NAMESPACE`: the CloudWatch namespace of the metrics; use another one for each deployment of an
//!   AWS account. Default: tallyhook.
//! - `LOG_LEVEL`: `error`, `warn` or `info`. Default: `info`.
//! - `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_CA_BUNDLE`, …: see [`tallyhook_aws::sdk`].
//!
//! Any value may be `ssm:/path`: [`tallyhook_aws::sdk::resolve`] replaces it with the value of the parameter
//! at start. `stripe-webhook` reads its signing secrets again when a signature matches none of them
//! (`http/webhook/secrets.rs`), and `admin` its tokens each minute in which it is used
//! (`http/admin/tokens.rs`).
//!
//! A function does not start when a required secret is missing or empty.

mod admin;
mod app;
pub mod start;
mod upkeep;
mod webhook;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tallyhook_aws::env::{ConfigError, Env};

use crate::catalog_cache::{DecidingCatalog, MAX_AGE};
use tallyhook_aws::http::AllowedAddresses;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::Family;

pub use self::admin::{AdminConfig, AdminToken, Role, admin_tokens};
pub use self::app::{ApiConfig, ProvisionConfig};
pub use self::upkeep::{DeadLetterConfig, HealthConfig, NotifyConfig, ReconcileConfig, RetryConfig};
pub use self::webhook::{WebhookConfig, signing_secrets};
pub use self::worker::{OutboxConfig, WorkerConfig};

/// The variable that holds a family's queue: `QUEUE_URL_INVOICE_PAID`.
pub fn queue_variable(family: Family) -> String {
    format!("QUEUE_URL_{}", family.as_str().to_uppercase().replace('-', "_"))
}

/// The queues of all families.
fn queues(env: &Env) -> Result<BTreeMap<Family, String>, ConfigError> {
    Family::ALL.iter().map(|&family| Ok((family, env.require(&queue_variable(family))?))).collect()
}

/// The queues of the families that have one in this environment.
fn known_queues(env: &Env) -> BTreeMap<Family, String> {
    Family::ALL.iter().filter_map(|&family| Some((family, env.get(&queue_variable(family))?))).collect()
}

fn retry_delays(env: &Env) -> Result<Vec<u32>, ConfigError> {
    let delays = env.get("RETRY_DELAYS_SECONDS").unwrap_or_else(|| "300,600,900".to_owned());
    let delays: Option<Vec<u32>> = delays
        .split(',')
        .map(|delay| delay.trim().parse().ok().filter(|seconds| *seconds <= 43_200))
        .collect();
    let want = "whole seconds separated by commas, each at most 43200 (SQS's limit), such as 300,600,900";
    delays.ok_or_else(|| Env::wrong("RETRY_DELAYS_SECONDS", want))
}

/// Whether the log keeps the body of a finished event.
fn keep_payloads(env: &Env) -> Result<bool, ConfigError> {
    Ok(flag(env, "KEEP_PAYLOADS")?.unwrap_or(true))
}

/// The addresses that a client may call; a variable set to `true` also allows http to this machine.
fn allowed_addresses(env: &Env, variable: &str) -> Result<AllowedAddresses, ConfigError> {
    Ok(if flag(env, variable)? == Some(true) {
        AllowedAddresses::PublicOrLoopback
    } else {
        AllowedAddresses::Public
    })
}

/// The catalog named by `CATALOG_FILE`. Without it, there is none until one is stored.
fn catalog(env: &Env) -> Result<Arc<DecidingCatalog>, ConfigError> {
    let catalog = match env.get("CATALOG_FILE") {
        None => Catalog::absent(),
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| ConfigError::CatalogFile(format!("{path}: {error}")))?;
            Catalog::parse(&text).map_err(|error| ConfigError::CatalogFile(error.of_file(&path)))?
        }
    };
    let max_age = match env.get("CATALOG_MAX_AGE_SECONDS") {
        None => MAX_AGE,
        Some(text) => text
            .parse()
            .map(Duration::from_secs)
            .map_err(|_| Env::wrong("CATALOG_MAX_AGE_SECONDS", "a number of seconds"))?,
    };
    Ok(Arc::new(DecidingCatalog::not_stored(catalog, max_age)))
}

fn livemode(env: &Env) -> Result<Option<bool>, ConfigError> {
    flag(env, "STRIPE_LIVEMODE")
}

/// Reads a variable that must be `true` or `false`.
fn flag(env: &Env, variable: &str) -> Result<Option<bool>, ConfigError> {
    env.get(variable).map(|text| text.parse().map_err(|_| Env::wrong(variable, "true or false"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_there_is_no_catalog() {
        assert!(catalog(&Env::default()).unwrap().is_absent());
        assert!(!Catalog::parse(include_str!("../../../catalog.toml")).unwrap().is_absent());
    }

    #[test]
    fn an_error_in_a_catalog_file_names_its_path_and_line_once() {
        let file = std::env::temp_dir().join(format!("tallyhook-config-{}.toml", std::process::id()));
        let path = file.to_string_lossy().into_owned();
        let error = || catalog(&Env::from([("CATALOG_FILE", path.as_str())])).unwrap_err();
        let absent = error();
        assert!(
            absent.to_string().starts_with(&format!("CATALOG_FILE {path}: "))
                && std::error::Error::source(&absent).is_none()
        );
        std::fs::write(&file, "[tiers]\nfree = 0\n[policy]\ndefault_tier = \"nope\"\n").unwrap();
        let wrong = error().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(
            wrong.starts_with(&format!("CATALOG_FILE {path} line 4: tier"))
                && wrong.matches(&path).count() == 1,
            "{wrong}"
        );
    }
}
