//! Stripe's endpoint: `POST /webhooks/stripe` and `GET /webhooks/stripe/health`.
//!
//! It verifies the signature and sends the event to its family's queue. It changes no account. See
//! `common/service/src/http/webhook.rs`.

use lambda_runtime::{LambdaEvent, service_fn};
use tallyhook_service::config::start;
use tallyhook_service::http::webhook::Webhook;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_runtime::Error> {
    start::run(async {
        let env = start::environment().await;
        let webhook = Webhook::from_env(&env).unwrap_or_else(start::refuse);
        webhook.prewarm().await;
        lambda_runtime::run(service_fn(|call: LambdaEvent<_>| webhook.handle(call.payload))).await
    })
}
