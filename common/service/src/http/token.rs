//! Checks the bearer tokens of the app and of the operator.

use hmac::{Hmac, KeyInit, Mac};
use lambda_http::http::{HeaderMap, StatusCode};
use sha2::Sha256;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// The deployment has no token, so the route refuses every request.
    NotConfigured,
    /// The request has no token, or not as `Authorization: Bearer …`.
    Missing,
    /// The request has another token.
    Wrong,
}

impl TokenRefusal {
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotConfigured => StatusCode::SERVICE_UNAVAILABLE,
            Self::Missing | Self::Wrong => StatusCode::UNAUTHORIZED,
        }
    }

    /// The error code.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotConfigured => "token_not_configured",
            Self::Missing | Self::Wrong => "unauthorized",
        }
    }

    /// What the caller should do; `variable` is the environment variable of the token.
    pub fn message(self, variable: &str) -> String {
        match self {
            Self::NotConfigured => format!("{variable} is not set, so this route refuses every request"),
            Self::Missing => format!("send the header Authorization: Bearer <{variable}>"),
            Self::Wrong => "the bearer token is not the configured one".to_owned(),
        }
    }
}

/// The token in `Authorization: Bearer …`.
///
/// # Errors
/// [`TokenRefusal::Missing`].
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&[u8], TokenRefusal> {
    let header = headers.get("authorization").map(|value| value.as_bytes()).ok_or(TokenRefusal::Missing)?;
    header.strip_prefix(b"Bearer ").or_else(|| header.strip_prefix(b"bearer ")).ok_or(TokenRefusal::Missing)
}

/// Compares two secrets. Two MACs with the same key are compared in the same time for texts of any length.
pub(crate) fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mac = |text: &[u8]| {
        Hmac::<Sha256>::new_from_slice(b"token").expect("HMAC takes a key of any length").chain_update(text)
    };
    mac(one).verify(&mac(other).finalize().into_bytes()).is_ok()
}
