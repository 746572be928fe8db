//! The worker of the queue `charge-dispute`: `charge.dispute.*`.
//!
//! It holds what a disputed payment granted, and gives it back when the dispute is won. The rules: `common/src/domain/decide/charge_dispute.rs`.

use common::config::Env;
use common::event::Family;
use common::telemetry;
use common::worker::Worker;
use lambda_runtime::{LambdaEvent, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    let env = Env::at_start().await;
    let worker = Worker::from_env(&env, Family::ChargeDispute).unwrap_or_else(|error| telemetry::refuse_start(&error));
    worker.prewarm().await;
    lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| worker.handle(batch.payload))).await
}
