//! Requests to the webhook, to the app's API and to the admin API, in the form in which AWS passes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lambda_http::{Body, Request, Response};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};
use tallyhook_core::signature::{Secret, sign};

use super::{ADMIN_TOKEN, APP_TOKEN, SECRET, World, now};

/// An entry point of a function. The two pass the path of a request differently.
#[derive(Clone, Copy, Debug)]
pub enum EntryPoint {
    /// An HTTP API with payload format 2.0: `rawPath` is decoded.
    HttpApi,
    /// A function URL: `rawPath` is as the client sent it.
    FunctionUrl,
}

/// What a client must encode in a query. A `%` is taken as encoded already.
const UNSAFE_IN_QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');

/// A request as this entry point passes it to a function. The path is percent-encoded, the query too.
pub fn request(
    entry_point: EntryPoint,
    headers: &[(&str, &str)],
    method: &str,
    path: &str,
    body: &Body,
) -> Request {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let raw_path = match entry_point {
        EntryPoint::HttpApi => percent_decode_str(path).decode_utf8_lossy().into_owned(),
        EntryPoint::FunctionUrl => path.to_owned(),
    };
    let mut call = call(method, &raw_path, None, "", false);
    call["rawQueryString"] = utf8_percent_encode(query, UNSAFE_IN_QUERY).to_string().into();
    call["requestContext"]["domainName"] = match entry_point {
        EntryPoint::HttpApi => "sjzepsqsu5.execute-api.us-west-2.amazonaws.com",
        EntryPoint::FunctionUrl => "2cxn22odiwguak4feg4jtt7cwm0ziblr.lambda-url.us-west-2.on.aws",
    }
    .into();
    for (name, value) in headers {
        call["headers"][*name] = (*value).into();
    }
    let bytes: &[u8] = body;
    (call["body"], call["isBase64Encoded"]) = (STANDARD.encode(bytes).into(), true.into());
    lambda_http::request::from_str(&call.to_string()).unwrap()
}

/// A body of JSON; none for `null`.
fn json_body(body: &Value) -> Body {
    if body.is_null() { Body::Empty } else { Body::Text(body.to_string()) }
}

impl World {
    /// Posts a body to the webhook with this signature header.
    pub async fn post(&self, body: &[u8], signature: Option<&str>) -> (u16, Value) {
        let packed = STANDARD.encode(body);
        let (body, base64) = std::str::from_utf8(body).map_or((packed.as_str(), true), |text| (text, false));
        let header = signature.map(|signature| ("stripe-signature", signature));
        self.call(&call("POST", "/webhooks/stripe", header, body, base64)).await
    }

    /// Passes the webhook a request in API Gateway's format.
    pub async fn call(&self, call: &Value) -> (u16, Value) {
        let answer = self.webhook.handle(serde_json::from_value(call.clone()).unwrap()).await.unwrap();
        let answer = serde_json::to_value(answer).unwrap();
        let mut headers = json!({"content-type": "application/json", "cache-control": "no-store"});
        if answer["statusCode"] == 405 {
            headers["allow"] = answer["headers"]["allow"].clone();
        }
        assert_eq!(answer["headers"], headers);
        let status = answer["statusCode"].as_u64().and_then(|status| status.try_into().ok()).unwrap();
        (status, serde_json::from_str(answer["body"].as_str().unwrap()).unwrap_or(Value::Null))
    }

    /// Signs a body as Stripe does and posts it to the webhook.
    pub async fn deliver(&self, body: &[u8]) -> (u16, Value) {
        self.post(body, Some(&signature(body))).await
    }

    /// Delivers an event and runs the workers until no message is visible.
    pub async fn process(&self, event: &Value) {
        assert_eq!(self.deliver(event.to_string().as_bytes()).await.0, 200);
        self.drain().await;
    }

    /// A request to the admin API with its token.
    pub async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.ask_as(Some(&format!("Bearer {ADMIN_TOKEN}")), method, path, body).await
    }

    /// `fix-user` as an operator.
    pub async fn fix(&self, user: &str, idempotency_key: Option<&str>, body: Value) -> (u16, Value) {
        let token = format!("Bearer {ADMIN_TOKEN}");
        let key = idempotency_key.map(|key| ("idempotency-key", key));
        let headers: Vec<_> = [("authorization", token.as_str())].into_iter().chain(key).collect();
        self.ask_with(&headers, "POST", &format!("/admin/stripe/fix-user/{user}"), body).await
    }

    /// A request to the admin API with this `Authorization` header.
    pub async fn ask_as(
        &self,
        authorization: Option<&str>,
        method: &str,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
        self.ask_with(&headers, method, path, body).await
    }

    /// A page of the admin function, without a token.
    pub async fn page(&self, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        self.admin.handle(request(EntryPoint::HttpApi, headers, "GET", path, &Body::Empty)).await.unwrap()
    }

    /// A request to the admin API with these headers.
    pub async fn ask_with(
        &self,
        headers: &[(&str, &str)],
        method: &str,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let request = request(EntryPoint::HttpApi, headers, method, path, &json_body(&body));
        let (status, body) = read_answer(self.admin.handle(request).await.unwrap());
        crate::openapi::check(method, path, status, &body);
        (status, body)
    }

    /// A request to the app's API with its token.
    pub async fn app(
        &self,
        method: &str,
        path: &str,
        body: Value,
        idempotency_key: Option<&str>,
    ) -> (u16, Value) {
        let token = format!("Bearer {APP_TOKEN}");
        let key = idempotency_key.map(|key| ("idempotency-key", key));
        let headers: Vec<_> = [("authorization", token.as_str())].into_iter().chain(key).collect();
        let request = request(EntryPoint::HttpApi, &headers, method, path, &json_body(&body));
        let (status, body) = read_answer(self.api.handle(request).await.unwrap());
        crate::openapi::check(method, path, status, &body);
        (status, body)
    }

    /// A request to the app's API with this `Authorization` header and these bytes.
    pub async fn visit(
        &self,
        authorization: Option<&str>,
        method: &str,
        path: &str,
        body: Body,
    ) -> Response<Body> {
        let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
        let request = request(EntryPoint::HttpApi, &headers, method, path, &body);
        let answer = self.api.handle(request).await.unwrap();
        if answer.headers().get("content-type").is_some_and(|kind| kind == "application/json") {
            let (bytes, status): (&[u8], _) = (answer.body(), answer.status().as_u16());
            crate::openapi::check(method, path, status, &serde_json::from_slice(bytes).unwrap());
        }
        answer
    }

    /// The setup status of a session.
    pub async fn setup_status(&self, session: &str) -> (u16, Value) {
        read_answer(
            self.visit(None, "GET", &format!("/portal/setup-status?session_id={session}"), Body::Empty).await,
        )
    }

    pub async fn sign_up(&self, user: &str) -> Value {
        self.app("PUT", &format!("/users/{user}"), Value::Null, None).await.1
    }

    pub async fn account(&self, user: &str) -> Value {
        self.app("GET", &format!("/users/{user}"), Value::Null, None).await.1
    }

    pub async fn ledger(&self, user: &str) -> Vec<Value> {
        let mut entries = Vec::new();
        let mut next = None::<String>;
        loop {
            let query = next.map_or_else(String::new, |next| format!("?next={}", next.replace('#', "%23")));
            let (status, page) =
                self.app("GET", &format!("/users/{user}/ledger{query}"), Value::Null, None).await;
            assert_eq!(status, 200, "{page}");
            entries.extend(page["entries"].as_array().unwrap().clone());
            match page["next"].as_str() {
                Some(key) => next = Some(key.to_owned()),
                None => return entries,
            }
        }
    }
}

/// Stripe's signature header of a body, with the test secret and the current time.
pub fn signature(body: &[u8]) -> String {
    sign(body, &Secret::new(SECRET).unwrap(), now())
}

/// A request in API Gateway's payload format 2.0.
pub fn call(method: &str, path: &str, header: Option<(&str, &str)>, body: &str, base64: bool) -> Value {
    let mut call = json!({
        "version": "2.0", "routeKey": format!("{method} {path}"), "rawPath": path, "rawQueryString": "a=1",
        "headers": {"content-type": "application/json; charset=utf-8"},
        "requestContext": {
            "accountId": "000000000000", "apiId": "api", "domainName": "front", "domainPrefix": "front",
            "requestId": "1", "routeKey": "$default",
            "stage": "$default", "time": "21/Nov/2026:00:00:00 +0000", "timeEpoch": 1_795_219_200_000_u64,
            "http": {
                "method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1",
                "userAgent": "Stripe/1.0",
            },
        },
        "body": body, "isBase64Encoded": base64,
    });
    if let Some((name, value)) = header {
        call["headers"][name] = value.into();
    }
    call
}

pub fn read_answer(answer: Response<Body>) -> (u16, Value) {
    let bytes: &[u8] = answer.body();
    (answer.status().as_u16(), serde_json::from_slice(bytes).unwrap_or(Value::Null))
}
