//! The parameters of a request, and the errors that answer it.

use axum::http::StatusCode;
use serde_json::{Value, json};

/// The parameters of a request, decoded, in order.
pub(super) type Params = [(String, String)];

/// The parameters of a query string or a form.
pub(super) fn parse(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// Decodes percent-encoding.
pub(super) fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

pub(super) fn get<'a>(params: &'a Params, name: &str) -> Option<&'a str> {
    params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

pub(super) fn all<'a>(params: &'a Params, name: &str) -> Vec<&'a str> {
    params.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
}

/// An error answer of Stripe.
#[derive(Debug)]
pub(super) struct StripeError {
    pub(super) status: StatusCode,
    pub(super) error: Value,
}

impl StripeError {
    pub(super) fn bad(code: &str, param: &str, message: String) -> Self {
        let error =
            json!({"type": "invalid_request_error", "code": code, "param": param, "message": message});
        Self { status: StatusCode::BAD_REQUEST, error }
    }

    pub(super) fn idempotency(message: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error: json!({"type": "idempotency_error", "message": message}),
        }
    }

    pub(super) fn missing_place(cursor: &str, what: &str, id: &str) -> Self {
        Self::bad("resource_missing", cursor, format!("No such {what}: '{id}'"))
    }

    pub(super) fn both_cursors() -> Self {
        Self::bad(
            "parameter_invalid",
            "ending_before",
            "only one of starting_after and ending_before".to_owned(),
        )
    }

    pub(super) fn missing(what: &str, id: &str) -> Self {
        let bad = Self::bad("resource_missing", "id", format!("No such {what}: '{id}'"));
        Self { status: StatusCode::NOT_FOUND, ..bad }
    }
}
