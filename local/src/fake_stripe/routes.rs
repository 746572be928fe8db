//! The HTTP side: routes and faults.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::any;
use serde_json::{Value, json};

use super::endpoints::forbidden;
use super::list;
use super::objects::ListQuery;
use super::request::{Params, StripeError, decode, get, parse};
use super::trigger::{CLI_KEY, SOCKET_PATH};
use super::{FakeStripe, MAX_REQUESTS, Misbehaviour, State, Stored};

/// The collections: path, kind, and whether `created` filters the list.
const COLLECTIONS: [(&str, &str, bool); 13] = [
    ("subscriptions", "subscription", true),
    ("invoices", "invoice", true),
    ("checkout/sessions", "checkout.session", true),
    ("events", "event", true),
    ("invoice_payments", "invoice_payment", false),
    ("customers", "customer", true),
    ("prices", "price", true),
    ("products", "product", true),
    ("refunds", "refund", true),
    ("charges", "charge", true),
    ("disputes", "dispute", true),
    ("webhook_endpoints", "webhook_endpoint", false),
    ("billing_portal/configurations", "billing_portal.configuration", false),
];

pub(super) fn router(fake: FakeStripe) -> Router {
    Router::new().route(SOCKET_PATH, any(listen)).fallback(handle).with_state(fake)
}

/// The websocket of `stripe listen`.
async fn listen(Shared(fake): Shared<FakeStripe>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.protocols(["stripecli-devproxy-v1"]).on_upgrade(|socket| fake.feed(socket))
}

async fn handle(
    Shared(fake): Shared<FakeStripe>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path_and_query = uri.path_and_query().map_or("", |it| it.as_str());
    let query = decode(path_and_query);
    let fault = {
        let mut state = fake.lock();
        if state.requests.len() == MAX_REQUESTS {
            state.requests.pop_front();
        }
        state.requests.push_back(format!("{method} {query}"));
        let fault = state.faults.iter_mut().find(|fault| fault.times > 0 && query.contains(&fault.on));
        fault.and_then(|fault| {
            if fault.skip > 0 {
                fault.skip -= 1;
                return None;
            }
            fault.times -= 1;
            Some(fault.what.clone())
        })
    };
    if let Some(Misbehaviour::Delay(time)) = fault {
        tokio::time::sleep(time).await;
    }
    let mut state = fake.lock();
    state.serial += 1;
    let (status, mut body) = match fault {
        Some(Misbehaviour::Status(403, _)) => {
            (StatusCode::FORBIDDEN, json!({"error": forbidden("resource")}).to_string())
        }
        Some(Misbehaviour::Status(status, _)) => {
            let kind = if status == 429 { "rate_limit" } else { "api_error" };
            let error =
                json!({"error": {"type": kind, "code": kind, "message": "this failure was requested"}});
            (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error.to_string())
        }
        Some(Misbehaviour::Delay(_) | Misbehaviour::Cut) | None => {
            match state.answer(&method, &uri, &headers, &body) {
                Ok(text) => (StatusCode::OK, text),
                Err(problem) => (problem.status, json!({"error": problem.error}).to_string()),
            }
        }
    };
    if matches!(fault, Some(Misbehaviour::Cut)) {
        body.truncate(body.len() / 2);
    }
    let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    response = response.header("request-id", format!("req_{}", state.serial));
    if let Some(now) = state.now {
        response = response.header(header::DATE, http_date(now));
    }
    if let Some(Misbehaviour::Status(_, Some(seconds))) = fault {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    response.body(Body::from(body)).unwrap_or_default()
}

impl State {
    fn answer(
        &mut self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<String, StripeError> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let key = header("authorization").and_then(|header| header.strip_prefix("Bearer "));
        if key != Some(&self.key) && key != Some(CLI_KEY) {
            let message = "Invalid API Key provided: sk_test_****".to_owned();
            let bad = StripeError::bad("api_key_invalid", "", message);
            return Err(StripeError { status: StatusCode::UNAUTHORIZED, ..bad });
        }
        let path = uri.path();
        let params = parse(uri.query().unwrap_or_default());
        let unknown = || StripeError {
            status: StatusCode::NOT_FOUND,
            error: json!({"type": "invalid_request_error",
                "message": format!("Unrecognized request URL ({method}: {path})")}),
        };
        let rest = path.strip_prefix("/v1/").ok_or_else(unknown)?;
        if *method == Method::POST {
            let form = String::from_utf8_lossy(body).into_owned();
            let host = header("host").unwrap_or_default();
            let made = self.create(rest, &form, header("idempotency-key"), host);
            return made.unwrap_or_else(|| Err(unknown()));
        }
        if *method == Method::DELETE {
            return self.delete(rest).unwrap_or_else(|| Err(unknown()));
        }
        if let Some(session) = rest.strip_prefix("payment_pages/") {
            return self.retrieve("checkout.session", session, &params);
        }
        if rest == "subscription_items" {
            return self.inside(
                get(&params, "subscription").unwrap_or_default(),
                "items",
                "subscription",
                &params,
            );
        }
        for (collection, kind, has_created) in COLLECTIONS {
            match rest.strip_prefix(collection).map(|rest| rest.trim_start_matches('/')) {
                Some("") => return self.list(path, kind, has_created, &params),
                Some(rest) => match rest.split_once('/') {
                    None => return self.retrieve(kind, &decode(rest), &params),
                    Some((id, "lines")) => return self.inside(id, "lines", kind, &params),
                    Some((id, "line_items")) => return self.inside(id, "line_items", kind, &params),
                    Some(_) => return Err(unknown()),
                },
                None => {}
            }
        }
        Err(unknown())
    }

    fn list(
        &self,
        path: &str,
        kind: &str,
        has_created: bool,
        params: &Params,
    ) -> Result<String, StripeError> {
        list::check(params, list::filters(kind), has_created)?;
        let (page, has_more) = list::objects(self, kind, params)?;
        let expands = list_expands(params, "data.");
        let data: Vec<String> = page.into_iter().map(|stored| self.render(stored, &expands)).collect();
        // Not with serde_json, so that every object keeps its bytes.
        Ok(format!(r#"{{"object":"list","url":"{path}","has_more":{has_more},"data":[{}]}}"#, data.join(",")))
    }

    fn retrieve(&self, kind: &str, id: &str, params: &Params) -> Result<String, StripeError> {
        let found = self.objects.get(id).filter(|stored| stored.kind == kind && self.is_kept(stored));
        let stored = found.ok_or_else(|| StripeError::missing(kind, id))?;
        Ok(self.render(stored, &list_expands(params, "")))
    }

    /// The list inside an object: the full one if it was set, else the one in the object.
    fn inside(&self, id: &str, list: &str, kind: &str, params: &Params) -> Result<String, StripeError> {
        let stored = self.objects.get(id).ok_or_else(|| StripeError::missing(kind, id))?;
        let shown = || stored.value[list]["data"].as_array().cloned().unwrap_or_default();
        let entries = self.objects.inside(id).unwrap_or_else(shown);
        let name = |entry: &Value| entry["id"].as_str().unwrap_or_default().to_owned();
        let (page, has_more) = list::page(entries, params, name, "item")?;
        Ok(json!({"object": "list", "has_more": has_more, "data": page}).to_string())
    }

    /// The JSON of an object: the bytes as they were received, unless the object is broken on purpose or has
    /// expanded fields.
    fn render(&self, stored: Stored, expands: &[&str]) -> String {
        let id = stored.value["id"].as_str().unwrap_or_default();
        let customer = stored.value["customer"].as_str().unwrap_or(id);
        if self.broken.contains(customer) {
            let broken = json!({"id": id, "object": stored.kind, "customer": customer,
                "created": stored.place.0,
                "status": 7, "items": "broken", "lines": {"data": 7}, "mode": [], "payment_status": {}});
            return broken.to_string();
        }
        let mut value = None;
        if stored.kind == "invoice" && expands.contains(&"payments") && stored.value["payments"].is_null() {
            let mut payments = Vec::new();
            self.objects.visit(
                &ListQuery { subject: Some(id), ..ListQuery::of("invoice_payment") },
                |payment| {
                    payments.push(payment.value);
                    true
                },
            );
            let payments = json!({"object": "list", "data": payments, "has_more": false});
            value.get_or_insert_with(|| stored.value.clone())["payments"] = payments;
        }
        if stored.kind == "invoice_payment"
            && expands.contains(&"invoice")
            && let Some(invoice) = stored.value["invoice"].as_str().and_then(|id| self.objects.get(id))
        {
            value.get_or_insert_with(|| stored.value.clone())["invoice"] = invoice.value;
        }
        if stored.kind == "checkout.session" && expands.contains(&"line_items") {
            let items = self.objects.inside(id).unwrap_or_default();
            value.get_or_insert_with(|| stored.value.clone())["line_items"] =
                json!({"object": "list", "data": items, "has_more": false});
        }
        value.map_or(stored.text, |value| value.to_string())
    }
}

fn list_expands<'a>(params: &'a Params, prefix: &str) -> Vec<&'a str> {
    params
        .iter()
        .filter(|(name, _)| name == "expand[]")
        .filter_map(|(_, value)| value.strip_prefix(prefix))
        .collect()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(now: i64) -> String {
    let time = jiff::Timestamp::from_second(now).unwrap_or_default();
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default()
}
