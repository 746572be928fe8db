//! The schedule of every hour: counts, scores, writes metrics and alerts by the rules.
//!
//! The rules: `common/src/domain/health.rs`; what is counted: `common/src/health.rs`.

use common::{health::HealthCheck, start};
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let health = HealthCheck::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|event: LambdaEvent<_>| health.handle(event.payload))).await
    })
}
