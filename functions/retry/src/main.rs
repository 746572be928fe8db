//! Runs every 15 minutes: sends parked and failed events again when they are due, and updates accounts that
//! time alone has changed.
//!
//! What is due, and when: `common/service/src/resend/retry.rs`.

use lambda_runtime::{LambdaEvent, service_fn};
use tallyhook_service::config::start;
use tallyhook_service::schedules::retry::Retry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let retry = Retry::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|event: LambdaEvent<_>| retry.handle(event.payload))).await
    })
}
