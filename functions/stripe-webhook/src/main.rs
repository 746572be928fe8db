//! Stripe's endpoint: `POST /webhooks/stripe` and `GET /webhooks/stripe/health`.
//!
//! It verifies the signature and hands the event to its family's queue; it changes nothing itself. See
//! `common/src/webhook.rs`.

use common::start;
use common::webhook::Webhook;
use lambda_runtime::{LambdaEvent, service_fn};

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let webhook = Webhook::from_env(&env).unwrap_or_else(start::refuse);
        webhook.prewarm().await;
        lambda_runtime::run(service_fn(|call: LambdaEvent<_>| webhook.handle(call.payload))).await
    })
}
