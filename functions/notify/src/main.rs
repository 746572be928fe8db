//! The worker of the queue `notify`: alerts to Slack and Discord, each once.
//!
//! Nothing waits for it. See `common/src/notify.rs`; what is said: `common/src/alert.rs`.

use common::{notify::Notify, start};
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let notify = Notify::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| notify.handle(batch.payload))).await
    })
}
