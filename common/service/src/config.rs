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
//! | `LOG_LEVEL` | all | `error`, `warn`, `info` | info |
//! | `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_CA_BUNDLE`, … | all | see [`tallyhook_aws::sdk`] | – |
//!
//! Any value may instead be `ssm:/path`: [`tallyhook_aws::sdk::resolve`] puts the parameter's value in its place at
//! start, and `stripe-webhook` reads its signing secrets again when a signature matches none
//! (`webhook/secrets.rs`).
//!
//! A missing or empty secret stops the start: a function never runs open.

mod app;
mod upkeep;
mod webhook;
mod worker;

use std::collections::BTreeMap;

use tallyhook_aws::env::{ConfigError, Env};

use tallyhook_aws::http::Reach;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::Family;

pub use self::app::{ApiConfig, ProvisionConfig};
pub use self::upkeep::{
    AdminConfig, DeadLetterConfig, HealthConfig, NotifyConfig, ReconcileConfig, RetryConfig,
};
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

/// The queues of the families that have one here.
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

/// Whether the log keeps the body of an event that is done: yes, unless `KEEP_PAYLOADS` is `false`.
fn keep_payloads(env: &Env) -> Result<bool, ConfigError> {
    Ok(flag(env, "KEEP_PAYLOADS")?.unwrap_or(true))
}

/// Where a client may go; a variable set to `true` also allows http to this machine.
fn reach(env: &Env, variable: &str) -> Result<Reach, ConfigError> {
    Ok(if flag(env, variable)? == Some(true) { Reach::PublicOrLoopback } else { Reach::Public })
}

/// The catalog named by `CATALOG_FILE`, else the one that was built in.
fn catalog(env: &Env) -> Result<Catalog, ConfigError> {
    match env.get("CATALOG_FILE") {
        None => Ok(built_in()),
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| ConfigError::CatalogFile(format!("{path}: {error}")))?;
            Catalog::parse(&text).map_err(|error| ConfigError::CatalogFile(error.of_file(&path)))
        }
    }
}

/// `catalog.toml`, as `build.rs` read and checked it.
fn built_in() -> Catalog {
    serde_json::from_str(include_str!(concat!(env!("OUT_DIR"), "/catalog.json")))
        .expect("build.rs wrote it from a catalog")
}

fn livemode(env: &Env) -> Result<Option<bool>, ConfigError> {
    flag(env, "STRIPE_LIVEMODE")
}

/// A variable that says `true` or `false`, if it is set.
fn flag(env: &Env, variable: &str) -> Result<Option<bool>, ConfigError> {
    env.get(variable).map(|text| text.parse().map_err(|_| Env::wrong(variable, "true or false"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_that_is_built_in_is_the_file() {
        assert_eq!(built_in(), Catalog::parse(include_str!("../../../catalog.toml")).unwrap());
    }

    #[test]
    fn what_is_wrong_with_a_catalog_file_is_said_once_with_its_path_and_line() {
        let file = std::env::temp_dir().join(format!("tallyhook-config-{}.toml", std::process::id()));
        let path = file.to_string_lossy().into_owned();
        let told = || catalog(&Env::from([("CATALOG_FILE", path.as_str())])).unwrap_err();
        let absent = told();
        assert!(
            absent.to_string().starts_with(&format!("CATALOG_FILE {path}: "))
                && std::error::Error::source(&absent).is_none()
        );
        std::fs::write(&file, "[tiers]\nfree = 0\n[policy]\ndefault_tier = \"nope\"\n").unwrap();
        let wrong = told().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(
            wrong.starts_with(&format!("CATALOG_FILE {path} line 4: tier"))
                && wrong.matches(&path).count() == 1,
            "{wrong}"
        );
    }
}
