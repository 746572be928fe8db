//! How a function starts.

use crate::aws;
use crate::config::{ConfigError, Env};
use crate::telemetry;

/// The variables of the process, with `ssm:/path` resolved and logging started. Ends the process when a parameter cannot be read.
pub async fn environment() -> Env {
    let env = Env::of_process();
    telemetry::init(&env);
    aws::resolve(env).await.unwrap_or_else(refuse)
}

/// Ends a function that cannot start, with a line that says why: a missing secret must never leave it running.
#[expect(clippy::needless_pass_by_value, reason = "it is what `unwrap_or_else` hands over")]
pub fn refuse<T>(error: ConfigError) -> T {
    tracing::error!(error = error.to_string(), "START_REFUSED");
    std::process::exit(1)
}
