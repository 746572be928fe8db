//! The worker of the queue `customer`: `customer.deleted`.
//!
//! It ends the access of a deleted customer. It also records, as ignored, the types that no family handles.
//! The rules: `common/core/src/decide/customer.rs`.

use lambda_runtime::{LambdaEvent, service_fn};
use tallyhook_core::event::Family;
use tallyhook_service::config::start;
use tallyhook_service::worker::Worker;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let worker = Worker::from_env(&env, Family::Customer).unwrap_or_else(start::refuse);
        worker.prewarm().await;
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| worker.handle(batch.payload))).await
    })
}
