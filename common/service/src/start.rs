//! How a function starts.
//!
//! Each binary sets mimalloc as its allocator, because a library must not. An event is thousands of small
//! allocations, JSON to items to JSON: with the C library's allocator a worker uses a seventh more CPU, and
//! the local stack, whose threads share it, a third more.

use lambda_runtime::Error;
use tokio::runtime::LocalRuntime;
use tokio::task::spawn_local;

use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::sdk;
use tallyhook_aws::telemetry;

/// Runs a function for as long as Lambda lets it, on this one thread. It is a task: what `block_on` itself
/// runs is woken through the I/O driver, by one more look for events, and a worker's event took 21 system
/// calls instead of 16.
///
/// The seven workers' functions differ in one word and yet are written out: what they instantiate of
/// `lambda_runtime` is built for size in their own crates, and 0.24 MB larger in this one, which is built for
/// speed.
///
/// # Errors
/// What the function ends with, or that the runtime does not start.
pub fn run(function: impl Future<Output = Result<(), Error>> + 'static) -> Result<(), Error> {
    LocalRuntime::new()?.block_on(async { spawn_local(function).await? })
}

/// The variables of the process, with `ssm:/path` resolved and logging started. Ends the process when a
/// parameter cannot be read.
pub async fn environment() -> Env {
    let env = Env::of_process();
    telemetry::init(&env);
    sdk::resolve(env).await.unwrap_or_else(refuse)
}

/// Ends a function that cannot start, with a line that says why: a missing secret must never leave it
/// running.
#[expect(clippy::needless_pass_by_value, reason = "it is what `unwrap_or_else` hands over")]
pub fn refuse<T>(error: ConfigError) -> T {
    tracing::error!(error = error.to_string(), "START_REFUSED");
    std::process::exit(1)
}
