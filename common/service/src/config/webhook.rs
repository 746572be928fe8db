//! Configuration of `stripe-webhook`: signing secrets and queues.

use std::collections::BTreeMap;

use super::{livemode, queues};
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_core::event::Family;
use tallyhook_core::signature::{Secret, SecretMode};

/// Configuration of `stripe-webhook`.
pub struct WebhookConfig {
    /// All signing secrets, each with its mode.
    pub secrets: Vec<Secret>,
    /// The variables with `ssm:/path` not replaced, to read the secrets again; `None` when no signing secret
    /// is a parameter.
    pub secrets_source: Option<Env>,
    /// The largest accepted age of a signature, in seconds.
    pub tolerance_seconds: u32,
    /// The queue of each family.
    pub queues: BTreeMap<Family, String>,
    /// The queue of alerts; without it, alerts are only logged.
    pub notify_queue_url: Option<String>,
}

impl WebhookConfig {
    /// Reads the environment.
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
            secrets: signing_secrets(env)?,
            secrets_source: env.unresolved("STRIPE_WEBHOOK_SECRET"),
            tolerance_seconds,
            queues: queues(env)?,
            notify_queue_url: env.get("QUEUE_URL_NOTIFY"),
        })
    }
}

/// Reads the signing secrets, each with its mode; at least one.
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

#[cfg(test)]
mod tests {
    use super::super::queue_variable;
    use super::*;

    fn with_queues(mut env: Env) -> Env {
        for family in Family::ALL {
            env.set(queue_variable(family), "http://queue");
        }
        env
    }

    #[test]
    fn a_blank_or_missing_secret_stops_the_start() {
        assert!(matches!(WebhookConfig::from_env(&with_queues(Env::default())), Err(ConfigError::NoSecret)));
        assert!(matches!(
            WebhookConfig::from_env(&with_queues(Env::from([("STRIPE_WEBHOOK_SECRET", " ")]))),
            Err(ConfigError::NoSecret)
        ));
        let blank = with_queues(Env::from([("STRIPE_WEBHOOK_SECRET", "whsec_a, ,whsec_b")]));
        assert!(matches!(WebhookConfig::from_env(&blank), Err(ConfigError::BlankSecret(_))));
    }

    #[test]
    fn a_tolerance_that_would_switch_the_check_off_is_refused() {
        for tolerance in ["0", "-1", "86401", "x"] {
            let env = with_queues(Env::from([
                ("STRIPE_WEBHOOK_SECRET", "whsec_a"),
                ("WEBHOOK_TOLERANCE_SECONDS", tolerance),
            ]));
            assert!(matches!(WebhookConfig::from_env(&env), Err(ConfigError::Wrong { .. })), "{tolerance}");
        }
    }
}
