//! The reference for `stripe-webhook`: it verifies, reads id and type, and makes one SendMessage.

use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use lambda_http::{Body, Error, Request, Response, service_fn};
use lean::{Secret, config, var};
use serde::Deserialize;

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: &'a str,
    #[serde(borrow, rename = "type")]
    kind: &'a str,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let sqs = aws_sdk_sqs::Client::new(&config());
    let (secret, queue) = (Secret::from_env(), var("QUEUE_URL_INVOICE_PAID"));
    let _ = sqs
        .get_queue_attributes()
        .queue_url(&queue)
        .attribute_names(QueueAttributeName::QueueArn)
        .send()
        .await;
    lambda_http::run(service_fn(|request: Request| {
        let (sqs, secret, queue) = (&sqs, &secret, &queue);
        async move {
            let (parts, body) = request.into_parts();
            let Body::Text(body) = body else { return Ok::<_, Error>(answer(400)) };
            let header = parts
                .headers
                .get("stripe-signature")
                .and_then(|header| header.to_str().ok())
                .unwrap_or_default();
            if !secret.verify(header, body.as_bytes()) {
                return Ok(answer(400));
            }
            let head: Head<'_> = serde_json::from_str(&body)?;
            if head.id.is_empty() || head.kind != "invoice.paid" {
                return Ok(answer(200));
            }
            let attribute = |kind: &str, value: &str| {
                MessageAttributeValue::builder().data_type(kind).string_value(value).build()
            };
            sqs.send_message()
                .queue_url(queue)
                .message_body(body)
                .message_attributes("received_at", attribute("Number", "1790000000000")?)
                .message_attributes("mode", attribute("String", "any")?)
                .send()
                .await?;
            Ok(answer(200))
        }
    }))
    .await
}

fn answer(status: u16) -> Response<Body> {
    let body = if status == 200 { r#"{"received":true}"# } else { r#"{"error":"invalid_signature"}"# };
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body.into())
        .expect("a literal answer is well formed")
}
