//! The schedule of every 15 minutes: sends parked and failed events again when they are due, and writes
//! access that ended by time.
//!
//! What is due, and when: `common/src/retry.rs`.

use common::{retry::Retry, start};
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let retry = Retry::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|event: LambdaEvent<_>| retry.handle(event.payload))).await
    })
}
