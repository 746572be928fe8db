//! Starts a function: reads its environment, starts logging, runs it.
//!
//! Each binary sets mimalloc as its allocator, because a library must not set one. Processing an event makes
//! thousands of small allocations (JSON to items to JSON). With the C library's allocator a worker uses a
//! seventh more CPU; in the local stack, where threads share the allocator, it uses a third more.

use lambda_runtime::Error;
use tokio::runtime::LocalRuntime;
use tokio::task::spawn_local;

use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::sdk;
use tallyhook_aws::telemetry;

/// Runs a function on this one thread until Lambda ends it.
///
/// The function runs as a spawned task. If `block_on` ran it directly, each wake-up would poll the I/O driver
/// once more, and a worker would need 21 system calls for an event instead of 16.
///
/// The `main.rs` files of the seven workers differ in one word. They are not shared here because
/// `lambda_runtime` would then be compiled for speed in this crate, and each binary would be 0.24 MB larger.
///
/// # Errors
/// The error that the function returns, or the reason why the runtime does not start.
pub fn run(function: impl Future<Output = Result<(), Error>> + 'static) -> Result<(), Error> {
    LocalRuntime::new()?.block_on(async { spawn_local(function).await? })
}

/// Reads the variables of the process, replaces `ssm:/path` values and starts logging. Ends the process when
/// a parameter cannot be read.
pub async fn environment() -> Env {
    let env = Env::of_process();
    telemetry::init(&env);
    sdk::resolve(env).await.unwrap_or_else(refuse)
}

/// Logs why a function cannot start and ends the process, so that a function with a missing secret never
/// runs.
#[expect(clippy::needless_pass_by_value, reason = "`unwrap_or_else` passes the error by value")]
pub fn refuse<T>(error: ConfigError) -> T {
    tracing::error!(error = error.to_string(), "START_REFUSED");
    std::process::exit(1)
}
