//! The worker of the queue `checkout-session`: `checkout.session.*`.
//!
//! It adds packs and orders that were paid once and binds a customer to its user. The rules:
//! `common/src/domain/decide/checkout_session.rs`.

use common::event::Family;
use common::start;
use common::worker::Worker;
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let worker = Worker::from_env(&env, Family::CheckoutSession).unwrap_or_else(start::refuse);
        worker.prewarm().await;
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| worker.handle(batch.payload))).await
    })
}
