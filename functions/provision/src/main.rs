//! The worker of the queue `provision`: tells the app of a user's first payment and of every change of an
//! account.
//!
//! It changes its jobs and nothing else. See `common/src/provision.rs`; which jobs there are:
//! `common/src/outbox.rs`.

use common::{provision::Provision, start};
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let provision = Provision::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|batch: LambdaEvent<_>| provision.handle(batch.payload))).await
    })
}
