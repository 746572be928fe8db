//! The worker of the queue `provision`: reports a user's first payment and every change of an account to the
//! app.
//!
//! It changes only its jobs. See `common/service/src/outbox/provision.rs`; the jobs:
//! `common/service/src/outbox.rs`.

use lambda_runtime::{LambdaEvent, service_fn};
use tallyhook_service::config::start;
use tallyhook_service::outbox::provision::Provision;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let provision = Provision::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| provision.handle(batch.payload))).await
    })
}
