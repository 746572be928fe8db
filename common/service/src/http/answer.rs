//! What the HTTP handlers share: JSON answers, errors, decoding of paths.

use lambda_http::http::{HeaderValue, StatusCode};
use lambda_http::{Body, Response};
use serde_json::json;
use tracing::error;

use tallyhook_aws::store::StoreError;

/// An error answer, or a failure of the store.
pub(crate) enum Problem {
    /// Status, code and message.
    Answer(StatusCode, &'static str, String),
    /// Status and a body with more fields than code and message.
    Body(StatusCode, serde_json::Value),
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(crate) fn problem(status: StatusCode, code: &'static str, message: impl Into<String>) -> Problem {
    Problem::Answer(status, code, message.into())
}

impl Problem {
    /// The answer for this problem. `log_name` names the log line for a failure of the store.
    pub(crate) fn answer(self, log_name: &'static str) -> Response<Body> {
        match self {
            Self::Answer(status, code, message) => error_answer(status, code, &message),
            Self::Body(status, body) => answer(status, &body),
            Self::Store(error) => {
                error!(error = error.to_string(), "{log_name}");
                error_answer(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store_unavailable",
                    "the database did not answer; try again",
                )
            }
        }
    }
}

/// A JSON answer that must not be cached.
pub(crate) fn answer(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = raw_answer(body.to_string());
    *response.status_mut() = status;
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-store"));
    response
}

/// A JSON answer that may be cached.
pub(crate) fn raw_answer(json: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Body::Text(json.into()));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

/// An error answer: `{"error":"<code>","message":"…"}`, as on all routes.
pub(crate) fn error_answer(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    answer(status, &json!({"error": code, "message": message}))
}

/// Decodes the percent encoding of a path segment. `None` when it is truncated or not UTF-8.
pub(crate) fn percent_decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}
