//! The worker of the dead-letter queue: writes the events that failed on every attempt to the event log.
//!
//! It changes no account. See `common/service/src/schedules/dead_letter.rs`.

use lambda_runtime::{LambdaEvent, service_fn};
use tallyhook_service::config::start;
use tallyhook_service::schedules::dead_letter::DeadLetter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let dead_letter = DeadLetter::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| dead_letter.handle(batch.payload))).await
    })
}
