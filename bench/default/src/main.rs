//! A first version of the webhook: every default, the loader chain, a full parse.

use aws_config::BehaviorVersion;
use hmac::{Hmac, KeyInit, Mac};
use lambda_http::{Body, Error, Request, RequestExt as _, Response, run, service_fn};
use serde_json::Value;
use sha2::Sha256;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let sqs = aws_sdk_sqs::Client::new(&aws_config::load_defaults(BehaviorVersion::latest()).await);
    run(service_fn(|request: Request| handle(sqs.clone(), request))).await
}

async fn handle(sqs: aws_sdk_sqs::Client, request: Request) -> Result<Response<Body>, Error> {
    let _ = request.lambda_context();
    let header = request
        .headers()
        .get("stripe-signature")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let body = std::str::from_utf8(request.body().as_ref())?.to_owned();
    if !verify(&std::env::var("STRIPE_WEBHOOK_SECRET")?, &header, &body) {
        return Ok(Response::builder().status(400).body("invalid signature".into())?);
    }
    let event: Value = serde_json::from_str(&body)?;
    if event["type"] == "invoice.paid" {
        sqs.send_message()
            .queue_url(std::env::var("QUEUE_URL_INVOICE_PAID")?)
            .message_body(body)
            .send()
            .await?;
    }
    Ok(Response::builder()
        .status(200)
        .header("content-type", "application/json")
        .body(r#"{"received":true}"#.into())?)
}

fn verify(secret: &str, header: &str, body: &str) -> bool {
    let part = |name: &str| header.split(',').find_map(|part| part.strip_prefix(name));
    let (Some(t), Some(v1)) = (part("t="), part("v1=")) else { return false };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
    mac.update(format!("{t}.{body}").as_bytes());
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let fresh = t.parse::<u64>().is_ok_and(|t| now.abs_diff(t) <= 300);
    fresh && hex::decode(v1).is_ok_and(|v1| mac.verify_slice(&v1).is_ok())
}
