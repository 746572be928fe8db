//! Runs every six hours: compares Stripe's subscriptions, paid invoices, finished sessions and undelivered
//! events with the accounts, and sets right what it may.
//!
//! It takes no input and answers with its report. The rules: `common/src/domain/drift.rs`; the run:
//! `common/src/reconcile.rs`.

use common::reconcile::Reconciler;
use common::start;
use lambda_runtime::service_fn;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let reconciler = Reconciler::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|event| reconciler.handle(event))).await
    })
}
