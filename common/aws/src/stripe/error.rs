//! Errors of calls to Stripe's API.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::http::HttpError;

/// Why a call to Stripe failed, after all retries. [`StripeError::is_transient`] says whether a later call
/// may succeed. No text holds the key, a header or a body.
#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    /// Stripe could not be reached, or the answer did not arrive in time.
    #[error("stripe {operation}: {source}")]
    NoAnswer {
        /// Method and path.
        operation: String,
        /// The HTTP client's error.
        source: HttpError,
    },
    /// Stripe answered with an error.
    #[error("stripe {operation}: {refusal}")]
    Refused {
        /// Method and path.
        operation: String,
        /// Stripe's error.
        refusal: Refusal,
    },
    /// The status is success or 404, but the body is not the JSON that Stripe documents. A proxy may have
    /// answered. Such a 404 does not mean that Stripe has no such object.
    #[error("stripe {operation}: the answer is not what Stripe documents: {message}")]
    Unreadable {
        /// Method and path.
        operation: String,
        /// What is wrong with the body; never a value from it.
        message: String,
    },
    /// The request cannot be built: the address, the key or the idempotency key has invalid characters.
    #[error("stripe {operation}: {message}")]
    Unsendable {
        /// Method and path.
        operation: String,
        /// What is wrong.
        message: String,
    },
}

/// An error answer: `{"error":{"type":"invalid_request_error","code":"resource_missing","message":"No such
/// …","param":"id"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// `error.type`.
    pub kind: String,
    /// `error.code`.
    pub code: Option<String>,
    /// `error.message`, cut at 300 characters, without addresses.
    pub message: String,
    /// `error.param`.
    pub param: Option<String>,
    /// Stripe's id of the request, for its support and its log in the Dashboard.
    pub request_id: Option<String>,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// `Stripe-Should-Retry`, if Stripe sent it.
    pub should_retry: Option<bool>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.kind)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(param) = &self.param {
            write!(f, " ({param})")?;
        }
        if let Some(request_id) = &self.request_id {
            write!(f, ", request {request_id}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl StripeError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { source, .. } => match source {
                HttpError::Connect(_) | HttpError::Broken(_) | HttpError::TimedOut(_) => true,
                HttpError::Roots(_) | HttpError::TooLarge | HttpError::Refused(_) => false,
            },
            // 409: another request with the same idempotency key is in progress. 429: too many requests, or
            // the object was locked for too long.
            Self::Refused { refusal, .. } => refusal
                .should_retry
                .unwrap_or(matches!(refusal.status, 409 | 424 | 429) || refusal.status >= 500),
            Self::Unreadable { .. } => true,
            Self::Unsendable { .. } => false,
        }
    }

    /// Whether Stripe does not have the requested object: it never existed, or it belongs to the other mode.
    pub fn is_missing(&self) -> bool {
        self.refusal().is_some_and(|refusal| refusal.status == 404)
    }

    /// Whether Stripe does not know the object after which a list should continue. Restart the list then.
    pub fn is_lost_cursor(&self) -> bool {
        let cursor =
            |refusal: &Refusal| matches!(refusal.param.as_deref(), Some("starting_after" | "ending_before"));
        self.refusal().is_some_and(|refusal| matches!(refusal.status, 400 | 404) && cursor(refusal))
    }

    /// Whether the key is invalid, revoked or lacks a permission. Other calls will then fail too.
    pub fn is_refused_key(&self) -> bool {
        self.refusal().is_some_and(|refusal| matches!(refusal.status, 401 | 403))
    }

    /// Stripe's error, if Stripe answered.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            Self::NoAnswer { .. } | Self::Unreadable { .. } | Self::Unsendable { .. } => None,
        }
    }
}

/// [`Refusal::kind`] of an answer that is not Stripe's error.
const NO_STRIPE_ERROR: &str = "no_stripe_error";

#[derive(Deserialize, Default)]
struct ErrorBody {
    #[serde(default)]
    error: ErrorFields,
}

#[derive(Deserialize, Default)]
struct ErrorFields {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    param: Option<String>,
}

impl Refusal {
    /// Whether this is a 404 of something other than Stripe's API.
    pub(super) fn is_foreign_404(&self) -> bool {
        self.status == 404 && self.kind == NO_STRIPE_ERROR
    }

    /// Reads an error answer. When it is not JSON, such as a proxy's error page, only the status is kept.
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, body: &[u8], key: &str) -> Self {
        let ErrorBody { error } = serde_json::from_slice(body).unwrap_or_default();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let short = |text: String| clean(&text, key);
        Self {
            status: status.as_u16(),
            kind: error.kind.map_or_else(|| NO_STRIPE_ERROR.to_owned(), short),
            code: error.code.map(short),
            message: error.message.map_or_else(|| without_message(status), short),
            param: error.param.map(short),
            request_id: header("request-id").map(|id| clean(id, key)),
            retry_after: header("retry-after")
                .and_then(|seconds| seconds.trim().parse().ok())
                .map(Duration::from_secs),
            should_retry: header("stripe-should-retry").and_then(|flag| flag.parse().ok()),
        }
    }
}

/// Says what to do about an answer that has no message of Stripe's.
fn without_message(status: StatusCode) -> String {
    format!("Stripe answered {} without a message; try again", status.as_u16())
}

/// Shortens a text to one line of at most 300 characters, and removes the key and e-mail addresses.
fn clean(text: &str, key: &str) -> String {
    let text = if key.is_empty() { text.to_owned() } else { text.replace(key, "[key]") };
    let word = |word: &str| if word.contains('@') { "[address]".to_owned() } else { word.to_owned() };
    let line: Vec<String> = text.split_whitespace().map(word).collect();
    line.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, should_retry: Option<bool>) -> StripeError {
        let status = StatusCode::from_u16(status).unwrap();
        let refusal = Refusal { should_retry, ..Refusal::read(status, &HeaderMap::new(), b"<html>", "") };
        StripeError::Refused { operation: "GET /v1/x".to_owned(), refusal }
    }

    #[test]
    fn transient_errors_differ_from_permanent_ones() {
        for (status, transient) in [
            (400, false),
            (401, false),
            (402, false),
            (403, false),
            (404, false),
            (409, true),
            (429, true),
            (500, true),
            (503, true),
        ] {
            assert_eq!(refused(status, None).is_transient(), transient, "{status}");
        }
        assert!(refused(400, Some(true)).is_transient() && !refused(500, Some(false)).is_transient());
        let no_answer = |source| StripeError::NoAnswer { operation: String::new(), source };
        assert!(
            no_answer(HttpError::TimedOut(Duration::ZERO)).is_transient()
                && !no_answer(HttpError::TooLarge).is_transient()
        );
    }

    #[test]
    fn an_answer_without_a_message_says_what_to_do() {
        let error = refused(502, None).to_string();
        let text = "stripe GET /v1/x: 502 no_stripe_error: Stripe answered 502 without a message; try again";
        assert_eq!(error, text);
    }

    #[test]
    fn a_refusal_keeps_stripes_message_without_key_and_addresses() {
        let body = br#"{"error":{"type":"invalid_request_error","code":"resource_missing","param":"id",
            "message":"No such customer: 'cus_1'\n for jo@example.com with sk_test_canary"}}"#;
        let mut headers = HeaderMap::new();
        headers.insert("request-id", "req_1".parse().unwrap());
        headers.insert("retry-after", "7".parse().unwrap());
        let refusal = Refusal::read(StatusCode::NOT_FOUND, &headers, body, "sk_test_canary");
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(
            refusal.to_string(),
            "404 invalid_request_error resource_missing (id), request req_1: \
             No such customer: 'cus_1' for [address] with [key]"
        );
    }
}
