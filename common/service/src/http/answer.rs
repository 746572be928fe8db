//! What the HTTP handlers share: JSON answers and errors.

use lambda_http::http::{HeaderValue, Method, StatusCode};
use lambda_http::{Body, Request, Response};
use serde_json::json;
use tracing::error;

use tallyhook_aws::store::StoreError;

/// An error answer, or a failure of the store.
pub(crate) enum Problem {
    /// Status, code and message.
    Answer(StatusCode, &'static str, String),
    /// Status and a body with more fields than code and message.
    Body(StatusCode, serde_json::Value),
    /// 405: the path has other methods, which the header `Allow` lists.
    Method(&'static str),
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
    /// The problem as text.
    pub(crate) fn message(self) -> String {
        match self {
            Self::Answer(_, _, message) => message,
            Self::Body(_, body) => body["message"].as_str().unwrap_or_default().to_owned(),
            Self::Method(allow) => format!("the methods of this path are {allow}"),
            Self::Store(error) => error.to_string(),
        }
    }

    /// The answer for this problem. `log_name` names the log line for a failure of the store.
    pub(crate) fn answer(self, log_name: &'static str) -> Response<Body> {
        match self {
            Self::Answer(status, code, message) => error_answer(status, code, &message),
            Self::Body(status, body) => answer(status, &body),
            Self::Method(allow) => {
                let mut response = error_answer(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method_not_allowed",
                    &format!("the methods of this path are {allow}"),
                );
                response.headers_mut().insert("allow", HeaderValue::from_static(allow));
                response
            }
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

/// The method that selects the route: `HEAD` is answered like `GET`.
pub(crate) fn method(request: &Request) -> &Method {
    if request.method() == Method::HEAD { &Method::GET } else { request.method() }
}

/// Removes the body of an answer to `HEAD`.
pub(crate) fn without_body_for_head(is_head: bool, mut response: Response<Body>) -> Response<Body> {
    if is_head {
        *response.body_mut() = Body::Empty;
    }
    response
}
