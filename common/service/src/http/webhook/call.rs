//! A request and its answer in payload format 2.0 of an HTTP API, which function URLs also use. Only the
//! fields that this function needs are read.
//!
//! `lambda_http`, which the functions with many routes use, builds a complete request and answer of the crate
//! `http`. That would cost a sixth of the CPU that this function uses for an event.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use tallyhook_core::event::KeyAs;

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

/// Stripe's header, in any letter case. API Gateway sends header names in lower case, other senders do not.
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
                while let Some(is_signature) =
                    map.next_key_seed(KeyAs(|name: &str| name.eq_ignore_ascii_case("stripe-signature")))?
                {
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
    /// The method and the path.
    pub(super) fn route(&self) -> (&str, &str) {
        (&self.request_context.http.method, &self.raw_path)
    }

    /// The header `Stripe-Signature`, and the body as it was sent. The body is `None` when it is marked as
    /// base64 and is not base64.
    pub(super) fn into_parts(self) -> (Option<String>, Option<Vec<u8>>) {
        let body = self.body.unwrap_or_default();
        let body = if self.is_base64_encoded { STANDARD.decode(body).ok() } else { Some(body.into_bytes()) };
        (self.headers.stripe_signature, body)
    }
}

/// ```json
/// {"statusCode":200,"headers":{"content-type":"application/json","cache-control":"no-store"},
///  "body":"{\"received\":true}"}
/// ```
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The HTTP status.
    pub status_code: u16,
    headers: AnswerHeaders,
    /// The body, as JSON.
    pub body: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct AnswerHeaders {
    content_type: &'static str,
    cache_control: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<&'static str>,
}

impl Answer {
    pub(super) fn new(status: StatusCode, body: &Value) -> Self {
        let headers =
            AnswerHeaders { content_type: "application/json", cache_control: "no-store", allow: None };
        Self { status_code: status.as_u16(), headers, body: body.to_string() }
    }

    /// 405. `allow` lists the methods of the path.
    pub(super) fn other_method(allow: &'static str) -> Self {
        let message = format!("the methods of this path are {allow}");
        let mut answer = Self::error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message);
        answer.headers.allow = Some(allow);
        answer
    }

    /// The same answer to `HEAD`.
    pub(super) fn without_body(self) -> Self {
        Self { body: String::new(), ..self }
    }

    /// An error: `{"error":"<code>","message":"…"}`, as on all routes.
    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::new(status, &json!({"error": code, "message": message}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(rest: &str) -> Call {
        let fixed = concat!(
            r#""version":"2.0","rawPath":"/webhooks/stripe","#,
            r#""requestContext":{"stage":"$default","http":{"method":"POST","path":"/"}}"#
        );
        serde_json::from_str(&format!("{{{fixed}{rest}}}")).unwrap()
    }

    #[test]
    fn optional_fields_of_a_request_may_be_missing() {
        for rest in [
            "",
            r#","headers":{}"#,
            r#","headers":{"host":"x"},"body":null"#,
            r#","body":"","isBase64Encoded":false,"cookies":["a=b"]"#,
        ] {
            let call = call(rest);
            assert_eq!(call.route(), ("POST", "/webhooks/stripe"), "{rest}");
            assert_eq!(call.into_parts(), (None, Some(Vec::new())), "{rest}");
        }
        assert!(
            serde_json::from_str::<Call>(r#"{"httpMethod":"POST","path":"/webhooks/stripe"}"#).is_err(),
            "payload format 1.0"
        );
    }

    #[test]
    fn the_body_is_read_as_sent_and_the_header_in_any_letter_case() {
        for name in ["stripe-signature", "Stripe-Signature", "STRIPE-SIGNATURE"] {
            let headers = format!(
                r#","headers":{{"x-stripe-signature":"no","{name}":"t=1,v1=\u0061","accept":"*/*"}}"#
            );
            let signature = Some("t=1,v1=a".to_owned());
            let sent = Some(b"{\r\n \"\xc3\xa9\"".to_vec());
            assert_eq!(
                call(&format!(r#"{headers},"body":"{{\r\n \"é\"""#)).into_parts(),
                (signature.clone(), sent.clone())
            );
            let packed = format!(r#"{headers},"body":"ew0KICLDqSI=","isBase64Encoded":true"#);
            assert_eq!(call(&packed).into_parts(), (signature.clone(), sent));
            let other = packed.replace("ew0K", "{\\r\\n");
            assert_eq!(call(&other).into_parts(), (signature, None));
        }
    }

    #[test]
    fn an_answer_is_json_that_must_not_be_cached() {
        let answer = serde_json::to_value(Answer::error(StatusCode::BAD_REQUEST, "no", "why")).unwrap();
        let headers = json!({"content-type": "application/json", "cache-control": "no-store"});
        assert_eq!(
            answer,
            json!({"statusCode": 400, "headers": headers, "body": r#"{"error":"no","message":"why"}"#})
        );
    }
}
