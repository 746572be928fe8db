//! The environment variables of the functions.

use std::path::Path;

use cli::local_stack::{ADMIN_TOKEN, APP_TOKEN, WEBHOOK_SECRET};
use tallyhook_aws::env::Env;
use tallyhook_core::event::Family;
use tallyhook_service::config::queue_variable;

use super::lambda::REGION;
use super::queues::{OTHER_QUEUES, queue_url};

/// The variables of the functions. `given` replaces the defaults, but not the addresses and credentials of
/// AWS.
pub(super) fn environment(given: &Env, front_url: &str, aws_url: &str) -> Env {
    let mut env = Env::from([
        ("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ("STRIPE_LIVEMODE", "false"),
        ("APP_API_TOKEN", APP_TOKEN),
        ("ADMIN_API_TOKEN", ADMIN_TOKEN),
        ("ACCOUNTS_TABLE", "tallyhook-accounts"),
        ("EVENTS_TABLE", "tallyhook-events"),
        // Alerts and the app's webhook may go to a receiver on this machine.
        ("NOTIFY_ALLOW_LOOPBACK", "true"),
        ("PROVISION_ALLOW_LOOPBACK", "true"),
        ("APP_BASE_URL", front_url),
        ("SUPPORT_EMAIL", "support@example.com"),
        // So that a change of the catalog is seen soon.
        ("CATALOG_MAX_AGE_SECONDS", "1"),
    ]);
    let catalog = concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml");
    if Path::new(catalog).is_file() {
        env.set("CATALOG_FILE", catalog);
    }
    // With a signing secret of one mode, the default must go: it would accept test events beside it.
    if ["STRIPE_WEBHOOK_SECRET_TEST", "STRIPE_WEBHOOK_SECRET_LIVE"]
        .iter()
        .any(|name| given.get(name).is_some())
    {
        env.set("STRIPE_WEBHOOK_SECRET", "");
    }
    // The user's own AWS account must not be used: leave out its keys, profile, region and addresses.
    for (name, value) in given
        .iter()
        .filter(|(name, _)| !["AWS_", "QUEUE_URL_", "_"].iter().any(|start| name.starts_with(start)))
    {
        env.set(name, value);
    }
    env.set("AWS_REGION", REGION);
    env.set("AWS_ACCESS_KEY_ID", "local");
    env.set("AWS_SECRET_ACCESS_KEY", "local");
    env.set("AWS_ENDPOINT_URL", aws_url);
    for family in Family::ALL {
        env.set(queue_variable(family), queue_url(aws_url, family.as_str()));
    }
    for queue in OTHER_QUEUES {
        env.set(format!("QUEUE_URL_{}", queue.to_uppercase()), queue_url(aws_url, queue));
    }
    env.set("QUEUE_URL_DEAD_LETTER", queue_url(aws_url, "dead-letter"));
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aws_account_of_the_user_does_not_reach_the_functions() {
        let given = Env::from([
            ("AWS_ACCESS_KEY_ID", "AKIAREAL"),
            ("AWS_SESSION_TOKEN", "real"),
            ("AWS_PROFILE", "prod"),
            ("AWS_ENDPOINT_URL_SQS", "https://sqs.eu-central-1.amazonaws.com"),
            ("QUEUE_URL_INVOICE_PAID", "https://sqs.eu-central-1.amazonaws.com/1/live"),
            ("RETRY_DELAYS_SECONDS", "1,2,3"),
        ]);
        let env = environment(&given, "http://127.0.0.1:9000", "http://127.0.0.1:9001");
        assert_eq!(env.get("AWS_ACCESS_KEY_ID").as_deref(), Some("local"));
        assert_eq!(
            (env.get("AWS_SESSION_TOKEN"), env.get("AWS_PROFILE"), env.get("AWS_ENDPOINT_URL_SQS")),
            (None, None, None)
        );
        assert_eq!(
            env.get("QUEUE_URL_INVOICE_PAID").as_deref(),
            Some("http://127.0.0.1:9001/000000000000/tallyhook-invoice-paid")
        );
        assert_eq!(env.get("RETRY_DELAYS_SECONDS").as_deref(), Some("1,2,3"));
    }
}
