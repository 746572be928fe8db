//! Runs every six hours: compares Stripe's subscriptions, paid invoices, finished sessions and undelivered
//! events with the accounts, and repairs differences.
//!
//! It takes no input and returns its report. The rules: `common/core/src/drift.rs`; the run:
//! `common/service/src/schedules/reconcile.rs`.

use lambda_runtime::service_fn;
use tallyhook_service::config::start;
use tallyhook_service::schedules::reconcile::Reconciler;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let reconciler = Reconciler::from_env(&env).unwrap_or_else(start::refuse);
        lambda_runtime::run(service_fn(|event| reconciler.handle(event))).await
    })
}
