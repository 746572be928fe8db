//! What the requests to Stripe have in common: their fields, the paths to which Stripe sends the customer
//! back, and the answer to the app if Stripe refuses.

use std::borrow::Cow;

use lambda_http::http::StatusCode;
use serde_json::{Value, json};
use tallyhook_aws::stripe::StripeError;
use tracing::warn;

use crate::http::answer::{Problem, problem};

/// The longest path that Stripe accepts.
const MAX_PATH: usize = 1_000;

/// The fields of a request to Stripe.
pub(super) type Fields = Vec<(Cow<'static, str>, String)>;

/// Checks a path on the app's host. Full addresses are refused, because a caller of the app could use them to
/// send its customers to another site.
pub(super) fn path<'a>(path: Option<&'a str>, default: &'a str, name: &str) -> Result<&'a str, Problem> {
    let path = path.unwrap_or(default);
    let plain = |c: char| c.is_ascii_graphic() && c != '\\';
    if !path.starts_with('/') || path.starts_with("//") || path.len() > MAX_PATH || !path.chars().all(plain) {
        let message =
            format!("{name} must be a path on APP_BASE_URL, such as /thanks?session={{CHECKOUT_SESSION_ID}}");
        return Err(problem(StatusCode::BAD_REQUEST, "invalid_path", message));
    }
    Ok(path)
}

/// 502 with Stripe's message.
pub(super) fn stripe_error(error: &StripeError, log: &'static str) -> Problem {
    warn!(error = error.to_string(), "{log}");
    Problem::Body(StatusCode::BAD_GATEWAY, refusal_body(error, "stripe_error", &error_text(error)))
}

/// The body of an error answer with what Stripe said.
pub(super) fn refusal_body(error: &StripeError, code: &str, message: &str) -> Value {
    let mut body = json!({"error": code, "message": message});
    if let Some(refusal) = error.refusal() {
        body["stripe"] = json!({
            "status": refusal.status, "type": refusal.kind, "code": refusal.code, "param": refusal.param,
            "request_id": refusal.request_id,
        });
    }
    body
}

/// Stripe's message, or that it did not answer.
pub(super) fn error_text(error: &StripeError) -> String {
    error
        .refusal()
        .map_or_else(|| "Stripe did not answer; try again".to_owned(), |refusal| refusal.message.clone())
}

/// Whether Stripe does not have the customer that a request names.
pub(super) fn is_missing_customer(error: &StripeError) -> bool {
    error.refusal().is_some_and(|refusal| {
        refusal.code.as_deref() == Some("resource_missing") && refusal.param.as_deref() == Some("customer")
    })
}
