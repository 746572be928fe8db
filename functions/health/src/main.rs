//! Runs every hour: counts events and messages, computes the health score, writes metrics and sends alerts.
//!
//! The rules: `common/core/src/health.rs`; the counts: `common/service/src/health.rs`.

use lambda_runtime::{LambdaEvent, service_fn};
use tallyhook_service::config::start;
use tallyhook_service::schedules::health::HealthCheck;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let health = HealthCheck::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|event: LambdaEvent<_>| health.handle(event.payload))).await
    })
}
