//! Stripe's endpoint: `POST /webhooks/stripe` and `GET /webhooks/stripe/health`.
//!
//! It verifies the signature and hands the event to its family's queue; it changes nothing itself. See `common/src/webhook.rs`.

use common::{start, webhook::Webhook};
use lambda_http::service_fn;

fn main() -> Result<(), lambda_http::Error> {
    start::run(async {
        let env = start::environment().await;
        let webhook = Webhook::from_env(&env).unwrap_or_else(start::refuse);
        webhook.prewarm().await;
        lambda_http::run(service_fn(|request| webhook.handle(request))).await
    })
}
