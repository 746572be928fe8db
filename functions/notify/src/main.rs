//! The worker of the queue `notify`: posts alerts to Slack and Discord, each once.
//!
//! No other function waits for it. See `common/service/src/alerts/notify.rs`; the texts:
//! `common/service/src/alerts.rs`.

use lambda_runtime::{LambdaEvent, service_fn};
use tallyhook_service::alerts::notify::Notify;
use tallyhook_service::config::start;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let notify = Notify::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| notify.handle(batch.payload))).await
    })
}
