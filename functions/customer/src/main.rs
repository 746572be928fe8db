//! The worker of the queue `customer`: `customer.deleted`.
//!
//! It ends the access of a deleted customer; also records, as ignored, the types that no family handles. The
//! rules: `common/src/domain/decide/customer.rs`.

use common::event::Family;
use common::start;
use common::worker::Worker;
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let worker = Worker::from_env(&env, Family::Customer).unwrap_or_else(start::refuse);
        worker.prewarm().await;
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| worker.handle(batch.payload))).await
    })
}
