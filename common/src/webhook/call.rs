//! A request and its answer as Lambda has them: payload format 2.0 of an HTTP API, which a function's own URL has too. Of a request only
//! what is looked at is read.
//!
//! `lambda_http`, which the functions with many routes use, reads all of it into a request of the crate `http`, and writes such an answer: a
//! twelfth of what this function's event costs.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::event::KeyAs;

/// ```json
/// {"version":"2.0","rawPath":"/webhooks/stripe","headers":{"stripe-signature":"t=…,v1=…"},
///  "requestContext":{"http":{"method":"POST"}},"body":"{…}","isBase64Encoded":false}
/// ```
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    raw_path: String,
    request_context: Context,
    #[serde(default)]
    headers: Headers,
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: bool,
}

#[derive(Deserialize)]
struct Context {
    http: Http,
}

#[derive(Deserialize)]
struct Http {
    method: String,
}

/// Of the headers Stripe's, whatever the case of its name: API Gateway writes all in lower case, others do not.
#[derive(Default)]
struct Headers {
    stripe_signature: Option<String>,
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("headers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Headers::default();
                while let Some(is_signature) = map.next_key_seed(KeyAs(|name: &str| name.eq_ignore_ascii_case("stripe-signature")))? {
                    if is_signature {
                        headers.stripe_signature = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(headers)
            }
        }

        deserializer.deserialize_map(Read)
    }
}

impl Call {
    /// Method and path.
    pub(super) fn route(&self) -> (&str, &str) {
        (&self.request_context.http.method, &self.raw_path)
    }

    /// The header `Stripe-Signature`, and the body as it was sent; `None` for one that is not the base64 which it is said to be.
    pub(super) fn into_parts(self) -> (Option<String>, Option<Vec<u8>>) {
        let body = self.body.unwrap_or_default();
        let body = if self.is_base64_encoded { STANDARD.decode(body).ok() } else { Some(body.into_bytes()) };
        (self.headers.stripe_signature, body)
    }
}

/// ```json
/// {"statusCode":200,"headers":{"content-type":"application/json","cache-control":"no-store"},"body":"{\"received\":true}"}
/// ```
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The status.
    pub status_code: u16,
    headers: Told,
    /// JSON.
    pub body: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Told {
    content_type: &'static str,
    cache_control: &'static str,
}

impl Answer {
    pub(super) fn new(status: StatusCode, body: &Value) -> Self {
        let headers = Told { content_type: "application/json", cache_control: "no-store" };
        Self { status_code: status.as_u16(), headers, body: body.to_string() }
    }

    /// An error in the one shape that all routes use.
    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::new(status, &json!({"error": code, "message": message}))
    }
}
