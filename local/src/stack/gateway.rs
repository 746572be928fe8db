//! The HTTP gateway: API Gateway's HTTP API with payload format 2.0.
//!
//! Each request becomes the JSON event of API Gateway, and the JSON answer of the function becomes the
//! response. As on AWS:
//! - The body is text if its type is `text/*`, `application/json`, `application/xml` or
//!   `application/javascript`. Otherwise, and without a type, it is base64.
//! - Header names are lower case. The values of a repeated header are joined by commas. Cookies are a
//!   separate list.
//! - `rawPath` is percent-decoded, `rawQueryString` is not.
//! - A body over 10 MB is answered with 413, a failing function with 500, and a timeout with 503. The answers
//!   do not say why.
//!
//! Unlike AWS, a body of a text type that is not UTF-8 is base64, too (AWS replaces the invalid bytes), and
//! the 404 of an unknown path has a message of this stack.

use std::collections::BTreeMap;
use std::convert::Infallible;
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
use futures_util::stream;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_core::signature::{Secret, verify};
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::config::{WebhookConfig, signing_secrets};
use tallyhook_service::http::webhook::is_endpoint;
use uuid::Uuid;

use super::lambda::{Function, InvokeError};
use super::process_usage::ProcessUsage;
use super::queue_activity::QueueActivity;
use super::schedule::Schedule;
use crate::fake_stripe::FakeStripe;

/// The maximum size of a body in API Gateway.
const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;

/// The first segment of a path and its function, as the routes of `template.yaml`.
const ROUTES: [(&str, &str); 8] = [
    ("webhooks", "stripe-webhook"),
    ("api", "stripe-webhook"),
    ("users", "api"),
    ("checkout-sessions", "api"),
    ("portal", "api"),
    ("catalog", "api"),
    ("openapi.json", "api"),
    ("admin", "admin"),
];

/// The functions behind the routes, and what the local routes need. Clones share everything.
#[derive(Clone)]
pub(super) struct Gateway {
    functions: BTreeMap<String, Function>,
    schedules: Arc<[Schedule]>,
    activity: QueueActivity,
    stripe: Option<StripeRecorder>,
}

/// Adds the events that the webhook receives to the fake Stripe.
#[derive(Clone)]
struct StripeRecorder {
    stripe: FakeStripe,
    secrets: Arc<[Secret]>,
    tolerance_seconds: u32,
}

impl Gateway {
    pub(super) fn new(functions: &[Function], schedules: Vec<Schedule>, activity: QueueActivity) -> Self {
        let functions =
            functions.iter().map(|function| (function.name().to_owned(), function.clone())).collect();
        Self { functions, schedules: schedules.into(), activity, stripe: None }
    }

    /// Adds every event with a valid signature to this fake Stripe, as if Stripe had sent it. Its API then
    /// knows events that were sent by hand, and an event that the webhook does not accept is undelivered.
    pub(super) fn with_stripe(self, stripe: Option<&FakeStripe>, env: &Env) -> Result<Self, ConfigError> {
        let Some(stripe) = stripe else { return Ok(self) };
        let (secrets, tolerance_seconds) =
            (signing_secrets(env)?, WebhookConfig::from_env(env)?.tolerance_seconds);
        Ok(Self {
            stripe: Some(StripeRecorder {
                stripe: stripe.clone(),
                secrets: secrets.into(),
                tolerance_seconds,
            }),
            ..self
        })
    }

    /// The routes. They must be served with the address of the client as [`ConnectInfo`].
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/local/status", get(status))
            .route("/local/schedules/{name}", post(trigger))
            .fallback(invoke)
            .with_state(self)
    }

    fn function(&self, path: &str) -> Option<&Function> {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let (_, name) = ROUTES.iter().find(|(start, _)| *start == first)?;
        self.functions.get(*name)
    }
}

/// Answers a request with the function of its path.
async fn invoke(
    State(gateway): State<Gateway>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(function) = gateway.function(parts.uri.path()) else {
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
    let recorded = gateway
        .stripe
        .as_ref()
        .filter(|_| is_webhook(&parts))
        .and_then(|recorder| recorder.record(&parts, &body, now));
    let event = event(
        &parts,
        &body,
        peer,
        &Uuid::new_v4().to_string(),
        i64::try_from(now.as_millis()).unwrap_or_default(),
    );
    let answer = function.invoke(&event).await.and_then(|answer| {
        serde_json::from_slice::<HttpAnswer>(&answer)
            .map_err(|error| InvokeError::Returned(format!("the answer is not one of an HTTP API: {error}")))?
            .into_response()
            .map_err(InvokeError::Returned)
    });
    if let (Some(recorder), Some(id), Ok(answer)) = (&gateway.stripe, &recorded, &answer)
        && answer.status().is_success()
    {
        recorder.stripe.mark_delivered(id);
    }
    let answer =
        answer.map(|response| if parts.method == Method::HEAD { for_head(response) } else { response });
    answer.unwrap_or_else(|error| {
        tracing::error!(function = function.name(), %error, "the function has no answer to a request");
        let (status, message) = match error {
            InvokeError::TooLarge => {
                return refuse(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "too_large",
                    "an invocation takes at most 6 MB",
                );
            }
            InvokeError::TimedOut => (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
            InvokeError::Returned(_) | InvokeError::Crashed(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
            }
        };
        (status, Json(json!({ "message": message }))).into_response()
    })
}

/// The answer to `HEAD` with a body of unknown size, so that axum does not add `content-length: 0`: the header
/// would have to be that of `GET`, which the function does not say.
fn for_head(response: Response) -> Response {
    response.map(|_| Body::from_stream(stream::empty::<Result<Bytes, Infallible>>()))
}

fn is_webhook(request: &Parts) -> bool {
    request.method == Method::POST && is_endpoint(request.uri.path())
}

impl StripeRecorder {
    /// Adds the event of a request to the fake Stripe and returns its id. `None` without a valid signature.
    fn record(&self, request: &Parts, body: &Bytes, now: Duration) -> Option<String> {
        let header = request.headers.get("stripe-signature").map(HeaderValue::as_bytes);
        let now = Timestamp::from_unix(i64::try_from(now.as_secs()).ok()?);
        verify(body, header, &self.secrets, now, self.tolerance_seconds).ok()?;
        self.stripe.ingest(std::str::from_utf8(body).ok()?, false).ok()
    }
}

/// The event that API Gateway makes of a request.
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

/// Whether API Gateway passes a body of this type as text.
fn is_text(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || ["application/json", "application/xml", "application/javascript"].contains(&essence.as_str())
}

/// The decoded query parameters. The values of a repeated name are joined by commas.
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
struct HttpAnswer {
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

impl HttpAnswer {
    fn into_response(self) -> Result<Response, String> {
        let text = self.body.unwrap_or_default();
        let body = if self.is_base64_encoded {
            STANDARD.decode(text).map_err(|error| format!("the body is not base64: {error}"))?
        } else {
            text.into_bytes()
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(self.status_code)
            .map_err(|_| format!("{} is not a status", self.status_code))?;
        let cookies =
            self.cookies.into_iter().flatten().map(|cookie| (header::SET_COOKIE.to_string(), cookie));
        for (name, value) in self.headers.into_iter().flatten().chain(cookies) {
            let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
            // This server sets these headers itself.
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
/// `at_rest` is true when no message is visible or being processed. Messages that become visible later do not
/// count.
async fn status(State(gateway): State<Gateway>) -> Response {
    let queues = gateway.activity.queues().unwrap_or_default();
    Json(
        json!({ "at_rest": gateway.activity.is_at_rest(), "queues": queues, "process": ProcessUsage::now() }),
    )
    .into_response()
}

/// `POST /local/schedules/retry`: runs a scheduled function at once and returns its answer. A request of a
/// web page is refused.
async fn trigger(State(gateway): State<Gateway>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if headers.contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "forbidden", "this route is not for web pages");
    }
    let Some(schedule) = gateway.schedules.iter().find(|schedule| schedule.name() == name) else {
        let names: Vec<&str> = gateway.schedules.iter().map(Schedule::name).collect();
        return refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            &format!("there is no schedule {name}; there are {}", names.join(", ")),
        );
    };
    match schedule.run().await {
        Ok(answer) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "failed", &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn parts(request: axum::http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn event_of(request: axum::http::request::Builder, body: &'static [u8]) -> Value {
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
        assert_eq!(event_of(request, "{\"a\": \"\u{e9}\"}".as_bytes()), expected);
    }

    #[test]
    fn a_body_is_base64_unless_its_type_is_text() {
        for (content_type, base64) in [
            ("application/json", false),
            ("Application/JSON;charset=utf-8", false),
            ("text/plain", false),
            ("application/xml", false),
            ("application/x-www-form-urlencoded", true),
            ("application/octet-stream", true),
            ("application/vnd.api+json", true),
        ] {
            let event =
                event_of(axum::http::Request::post("/users").header("content-type", content_type), b"{}");
            assert_eq!(event["isBase64Encoded"], base64, "{content_type}");
            assert_eq!(event["body"], if base64 { "e30=" } else { "{}" });
        }
        assert_eq!(event_of(axum::http::Request::post("/users"), b"{}")["isBase64Encoded"], true);
        let not_utf8 =
            event_of(axum::http::Request::post("/users").header("content-type", "application/json"), b"\xff");
        assert_eq!((&not_utf8["isBase64Encoded"], &not_utf8["body"]), (&json!(true), &json!("/w==")));
    }

    #[test]
    fn a_path_is_decoded_and_a_query_is_not() {
        let event = event_of(axum::http::Request::get("/users/auth0%7C1?cursor=a%2Fb"), b"");
        assert_eq!(
            (&event["rawPath"], &event["rawQueryString"]),
            (&json!("/users/auth0|1"), &json!("cursor=a%2Fb"))
        );
        assert_eq!(event.get("body"), None);
        assert_eq!(event["isBase64Encoded"], false);
    }

    #[tokio::test]
    async fn an_answer_to_head_does_not_say_that_the_body_is_empty() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(async || for_head(Response::new(Body::empty())));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        connection.write_all(request).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("content-length"), "{answer}");
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
        let response = serde_json::from_value::<HttpAnswer>(answer).unwrap().into_response().unwrap();
        assert_eq!(response.status(), 201);
        assert_eq!(response.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!(response.headers().get("content-length"), None);
        assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "{}");
    }
}
