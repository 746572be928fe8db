//! The worker of the queue `charge-dispute`: `charge.dispute.*`.
//!
//! It holds what a disputed payment granted, and gives it back when the dispute is won. The rules:
//! `common/src/domain/decide/charge_dispute.rs`.

use common::event::Family;
use common::start;
use common::worker::Worker;
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let worker = Worker::from_env(&env, Family::ChargeDispute).unwrap_or_else(start::refuse);
        worker.prewarm().await;
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| worker.handle(batch.payload))).await
    })
}
