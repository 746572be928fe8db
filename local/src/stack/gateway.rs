//! The HTTP front: what API Gateway (an HTTP API with payload format 2.0) does in front of the functions.
//!
//! Each request becomes the JSON event that API Gateway would make of it, and the JSON that the function
//! answers becomes the response. Copied from AWS's behaviour:
//! - The body is text if its type is `text/*` or `application/json`, `…/xml` or `…/javascript`; else, and
//!   without a type, it is base64.
//! - Header names are lower case, values of a repeated header are joined by commas, cookies are a list of
//!   their own.
//! - `rawPath` is percent-decoded, `rawQueryString` is not.
//! - A body over 10 MB is answered 413; a function that fails 500, one that times out 503, both without
//!   saying why.
//!
//! Different here: a body that claims to be text and is not UTF-8 is base64, too (AWS replaces what it cannot
//! read), and a path that no function has is answered with this stack's own words.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::config::{ConfigError, Env, WebhookConfig, signing_secrets};
use common::domain::timestamp::Timestamp;
use common::signature::{Secret, verify};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Rest;
use super::lambda::{Failure, Function};
use super::schedule::Schedule;
use super::usage::Usage;
use crate::fake_stripe::FakeStripe;

/// API Gateway's limit for a body.
const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;

/// The first part of a path, and the function behind it: the routes of the template.
const ROUTES: [(&str, &str); 6] = [
    ("webhooks", "stripe-webhook"),
    ("users", "api"),
    ("checkout-sessions", "api"),
    ("portal", "api"),
    ("openapi.json", "api"),
    ("admin", "admin"),
];

/// What the front needs to answer.
#[derive(Clone)]
pub struct Front {
    functions: BTreeMap<String, Function>,
    schedules: Arc<[Schedule]>,
    rest: Rest,
    stripe: Option<Sender>,
}

/// The fake Stripe that the webhook's requests are taken to come from, and the secrets they are signed with.
#[derive(Clone)]
struct Sender {
    stripe: FakeStripe,
    secrets: Arc<[Secret]>,
    tolerance_seconds: u32,
}

impl Front {
    /// A front of these functions, by their names.
    pub(super) fn new(functions: &[Function], schedules: Vec<Schedule>, rest: Rest) -> Self {
        let functions =
            functions.iter().map(|function| (function.name().to_owned(), function.clone())).collect();
        Self { functions, schedules: schedules.into(), rest, stripe: None }
    }

    /// Tells this fake Stripe of every event that it could have sent: one with a valid signature. So whoever
    /// asks it finds what was sent by hand, and what the webhook did not take is undelivered.
    pub(super) fn with_stripe(
        self,
        stripe: Option<&(String, FakeStripe)>,
        env: &Env,
    ) -> Result<Self, ConfigError> {
        let Some((_, stripe)) = stripe else { return Ok(self) };
        let (secrets, tolerance_seconds) =
            (signing_secrets(env)?, WebhookConfig::from_env(env)?.tolerance_seconds);
        Ok(Self {
            stripe: Some(Sender { stripe: stripe.clone(), secrets: secrets.into(), tolerance_seconds }),
            ..self
        })
    }

    /// The front as routes. It must be served with the peer's address as [`ConnectInfo`].
    pub fn router(self) -> Router {
        Router::new()
            .route("/local/status", get(status))
            .route("/local/schedules/{name}", post(trigger))
            .fallback(gateway)
            .with_state(self)
    }

    fn function(&self, path: &str) -> Option<&Function> {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let (_, name) = ROUTES.iter().find(|(start, _)| *start == first)?;
        self.functions.get(*name)
    }
}

/// Every request that is for a function.
async fn gateway(
    State(front): State<Front>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(function) = front.function(parts.uri.path()) else {
        return refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            &format!("there is nothing at {} {}", parts.method, parts.uri.path()),
        );
    };
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "API Gateway takes bodies of at most 10 MB",
        );
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let sent = front
        .stripe
        .as_ref()
        .filter(|_| is_webhook(&parts))
        .and_then(|sender| sender.sends(&parts, &body, now));
    let event = event(
        &parts,
        &body,
        peer,
        &Uuid::new_v4().to_string(),
        i64::try_from(now.as_millis()).unwrap_or_default(),
    );
    let answer = function.invoke(&event).await.and_then(|answer| {
        serde_json::from_slice::<Answer>(&answer)
            .map_err(|error| Failure::Error(format!("its answer is not one of an HTTP API: {error}")))?
            .into_response()
            .map_err(Failure::Error)
    });
    if let (Some(sender), Some(id), Ok(answer)) = (&front.stripe, &sent, &answer)
        && answer.status().is_success()
    {
        sender.stripe.mark_delivered(id);
    }
    answer.unwrap_or_else(|failure| {
        tracing::error!(function = function.name(), %failure, "a request is not answered");
        let (status, message) = match failure {
            Failure::TooLarge => {
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "an invocation has at most 6 MB");
            }
            Failure::TimedOut => (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
            Failure::Error(_) | Failure::Crashed(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
            }
        };
        (status, Json(json!({ "message": message }))).into_response()
    })
}

fn is_webhook(request: &Parts) -> bool {
    request.method == Method::POST && request.uri.path() == "/webhooks/stripe"
}

impl Sender {
    /// Makes the event known at Stripe, before the webhook gets it; its id. `None` for what Stripe cannot
    /// have sent.
    fn sends(&self, request: &Parts, body: &Bytes, now: Duration) -> Option<String> {
        let header = request.headers.get("stripe-signature").map(HeaderValue::as_bytes);
        let now = Timestamp::from_unix(i64::try_from(now.as_secs()).ok()?);
        verify(body, header, &self.secrets, now, self.tolerance_seconds).ok()?;
        self.stripe.ingest(std::str::from_utf8(body).ok()?, false).ok()
    }
}

/// The event API Gateway makes of a request.
fn event(request: &Parts, body: &Bytes, peer: SocketAddr, id: &str, now_ms: i64) -> Value {
    let mut headers: BTreeMap<&str, String> = BTreeMap::new();
    let mut cookies = Vec::new();
    for (name, value) in &request.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if name == header::COOKIE {
            cookies.extend(value.split("; ").map(str::to_owned));
            continue;
        }
        headers
            .entry(name.as_str())
            .and_modify(|joined| *joined = format!("{joined},{value}"))
            .or_insert_with(|| value.into_owned());
    }
    let host = headers.get("host").cloned().unwrap_or_default();
    let agent = headers.get("user-agent").cloned().unwrap_or_default();
    let text = is_text(headers.get("content-type").map(String::as_str).unwrap_or_default());
    let text = std::str::from_utf8(body).ok().filter(|_| text);
    headers.insert("x-forwarded-for", peer.ip().to_string());
    headers.insert("x-forwarded-proto", "http".to_owned());
    let path = percent_decode_str(request.uri.path()).decode_utf8_lossy();
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": request.uri.query().unwrap_or_default(),
        "headers": headers,
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "local",
            "domainName": host,
            "domainPrefix": "local",
            "http": {
                "method": request.method.as_str(),
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": peer.ip().to_string(),
                "userAgent": agent,
            },
            "requestId": id,
            "routeKey": "$default",
            "stage": "$default",
            "time": jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string(),
            "timeEpoch": now_ms,
        },
        "isBase64Encoded": text.is_none() && !body.is_empty(),
    });
    if !body.is_empty() {
        event["body"] = text.map_or_else(|| STANDARD.encode(body), str::to_owned).into();
    }
    if !cookies.is_empty() {
        event["cookies"] = json!(cookies);
    }
    let query = query(request.uri.query().unwrap_or_default());
    if !query.is_empty() {
        event["queryStringParameters"] = Value::Object(query);
    }
    event
}

/// Whether API Gateway hands over a body of this type as text. A missing type and a form are not.
fn is_text(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || ["application/json", "application/xml", "application/javascript"].contains(&essence.as_str())
}

/// Decoded, with the values of a repeated name joined by commas.
fn query(raw: &str) -> Map<String, Value> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut joined: BTreeMap<String, String> = BTreeMap::new();
    for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        joined.entry(decode(name)).and_modify(|all| *all = format!("{all},{value}")).or_insert(value);
    }
    joined.into_iter().map(|(name, value)| (name, Value::String(value))).collect()
}

/// `{"statusCode":200,"headers":{"content-type":"application/json"},"cookies":[],"body":"{}","isBase64Encoded":false}`
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status_code: u16,
    #[serde(default)]
    headers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    cookies: Option<Vec<String>>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: bool,
}

impl Answer {
    fn into_response(self) -> Result<Response, String> {
        let text = self.body.unwrap_or_default();
        let body = if self.is_base64_encoded {
            STANDARD.decode(text).map_err(|error| format!("its body is not base64: {error}"))?
        } else {
            text.into_bytes()
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(self.status_code)
            .map_err(|_| format!("{} is no status", self.status_code))?;
        let cookies =
            self.cookies.into_iter().flatten().map(|cookie| (header::SET_COOKIE.to_string(), cookie));
        for (name, value) in self.headers.into_iter().flatten().chain(cookies) {
            let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
            // The length and the connection are this server's to say.
            if [header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING].contains(&name) {
                continue;
            }
            response
                .headers_mut()
                .append(name, HeaderValue::try_from(value).map_err(|error| error.to_string())?);
        }
        Ok(response)
    }
}

fn refuse(status: StatusCode, error: &str, message: &str) -> Response {
    (status, Json(json!({ "error": error, "message": message }))).into_response()
}

/// `{"at_rest":true,"queues":[{"name":"tallyhook-invoice-paid","visible":0,"in_flight":0,"delayed":0,"oldest_age_seconds":null,…}]}`:
/// `at_rest` is true when nothing is waiting or being worked on but what has to wait for a later time.
async fn status(State(front): State<Front>) -> Response {
    let queues = front.rest.queues().unwrap_or_default();
    Json(json!({ "at_rest": front.rest.holds(), "queues": queues, "process": Usage::now() })).into_response()
}

/// `POST /local/schedules/retry`: runs what a schedule runs, at once, and answers what it answers. Not for a
/// web page's scripts.
async fn trigger(State(front): State<Front>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if headers.contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "forbidden", "this is not for web pages");
    }
    let Some(schedule) = front.schedules.iter().find(|schedule| schedule.name() == name) else {
        let names: Vec<&str> = front.schedules.iter().map(Schedule::name).collect();
        return refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            &format!("there is no schedule {name}; there are {}", names.join(", ")),
        );
    };
    match schedule.run().await {
        Ok(answer) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Err(failure) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "failed", &failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: axum::http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn made(request: axum::http::request::Builder, body: &'static [u8]) -> Value {
        event(
            &parts(request),
            &Bytes::from_static(body),
            "127.0.0.1:50000".parse().unwrap(),
            "id",
            1_767_607_206_000,
        )
    }

    #[test]
    fn a_request_becomes_the_event_of_an_http_api() {
        let request = axum::http::Request::post("/webhooks/stripe?a=1&b=x%20y&a=2")
            .header("Host", "localhost:9000")
            .header("Content-Type", "application/json; charset=utf-8")
            .header("Stripe-Signature", "t=1,v1=ab")
            .header("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
            .header("X-Twice", "one")
            .header("X-Twice", "two")
            .header("Cookie", "a=1; b=2");
        let expected = json!({
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": "/webhooks/stripe",
            "rawQueryString": "a=1&b=x%20y&a=2",
            "cookies": ["a=1", "b=2"],
            "headers": {
                "content-type": "application/json; charset=utf-8",
                "host": "localhost:9000",
                "stripe-signature": "t=1,v1=ab",
                "user-agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
                "x-forwarded-for": "127.0.0.1",
                "x-forwarded-proto": "http",
                "x-twice": "one,two",
            },
            "queryStringParameters": { "a": "1,2", "b": "x y" },
            "requestContext": {
                "accountId": "000000000000",
                "apiId": "local",
                "domainName": "localhost:9000",
                "domainPrefix": "local",
                "http": {
                    "method": "POST",
                    "path": "/webhooks/stripe",
                    "protocol": "HTTP/1.1",
                    "sourceIp": "127.0.0.1",
                    "userAgent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
                },
                "requestId": "id",
                "routeKey": "$default",
                "stage": "$default",
                "time": "05/Jan/2026:10:00:06 +0000",
                "timeEpoch": 1_767_607_206_000_i64,
            },
            "body": "{\"a\": \"\u{e9}\"}",
            "isBase64Encoded": false,
        });
        assert_eq!(made(request, "{\"a\": \"\u{e9}\"}".as_bytes()), expected);
    }

    #[test]
    fn a_body_is_base64_unless_its_type_is_text_to_api_gateway() {
        for (content_type, base64) in [
            ("application/json", false),
            ("Application/JSON;charset=utf-8", false),
            ("text/plain", false),
            ("application/xml", false),
            ("application/x-www-form-urlencoded", true),
            ("application/octet-stream", true),
            ("application/vnd.api+json", true),
        ] {
            let event = made(axum::http::Request::post("/users").header("content-type", content_type), b"{}");
            assert_eq!(event["isBase64Encoded"], base64, "{content_type}");
            assert_eq!(event["body"], if base64 { "e30=" } else { "{}" });
        }
        assert_eq!(made(axum::http::Request::post("/users"), b"{}")["isBase64Encoded"], true);
        let not_utf8 =
            made(axum::http::Request::post("/users").header("content-type", "application/json"), b"\xff");
        assert_eq!((&not_utf8["isBase64Encoded"], &not_utf8["body"]), (&json!(true), &json!("/w==")));
    }

    #[test]
    fn a_path_is_decoded_and_a_query_is_not() {
        let event = made(axum::http::Request::get("/users/auth0%7C1?cursor=a%2Fb"), b"");
        assert_eq!(
            (&event["rawPath"], &event["rawQueryString"]),
            (&json!("/users/auth0|1"), &json!("cursor=a%2Fb"))
        );
        assert_eq!(event.get("body"), None);
        assert_eq!(event["isBase64Encoded"], false);
    }

    #[tokio::test]
    async fn an_answer_becomes_the_response() {
        let answer = json!({
            "statusCode": 201,
            "headers": { "content-type": "application/json", "content-length": "999" },
            "multiValueHeaders": {},
            "cookies": ["a=1", "b=2"],
            "body": "e30=",
            "isBase64Encoded": true,
        });
        let response = serde_json::from_value::<Answer>(answer).unwrap().into_response().unwrap();
        assert_eq!(response.status(), 201);
        assert_eq!(response.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!(response.headers().get("content-length"), None);
        assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "{}");
    }
}
