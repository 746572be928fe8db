//! An app in Rust that receives tallyhook's messages, as the apps of `examples/` do in other languages. It
//! verifies each message with the crate `standardwebhooks` and handles a repeated one once. `./check clients`
//! starts it and sends it the local stack's messages, forged ones and duplicates.
//!
//! `PORT` and `PROVISION_SECRET` are in the environment.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use standardwebhooks::Webhook;

struct App {
    webhook: Webhook,
    received: Mutex<Received>,
}

/// What the messages have said. In your app the ids are a table with a unique key, written in one transaction
/// with what a message does.
#[derive(Default)]
struct Received {
    ids: HashSet<String>,
    accounts: HashMap<String, Value>,
    welcomed: Vec<String>,
}

impl Received {
    fn handle(&mut self, message: &Value) {
        let data = &message["data"];
        let Some(user) = data["user_id"].as_str() else { return };
        let known = self.accounts.get(user).and_then(|account| account["version"].as_u64());
        if known <= data["version"].as_u64() {
            self.accounts.insert(user.to_owned(), data.clone());
        }
        if message["type"] == "payment.confirmed" {
            // Set the user up, send an e-mail.
            self.welcomed.push(user.to_owned());
        }
    }
}

async fn receive(State(app): State<Arc<App>>, headers: HeaderMap, body: String) -> StatusCode {
    if app.webhook.verify(body.as_bytes(), &headers).is_err() {
        return StatusCode::BAD_REQUEST;
    }
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok());
    let (Some(id), Ok(message)) = (id, serde_json::from_str::<Value>(&body)) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut received = app.received.lock().unwrap_or_else(PoisonError::into_inner);
    if received.ids.insert(id.to_owned()) {
        received.handle(&message);
    }
    StatusCode::NO_CONTENT
}

async fn me(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    let user = headers.get("x-user").and_then(|user| user.to_str().ok()).ok_or(StatusCode::UNAUTHORIZED)?;
    let received = app.received.lock().unwrap_or_else(PoisonError::into_inner);
    let account = received.accounts.get(user).unwrap_or(&Value::Null);
    let welcomes = received.welcomed.iter().filter(|name| name.as_str() == user).count();
    Ok(Json(json!({"tier": account["tier"], "credits": account["credits"], "welcomes": welcomes})))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let webhook = Webhook::new(&std::env::var("PROVISION_SECRET")?)?;
    let app = Arc::new(App { webhook, received: Mutex::default() });
    let router =
        Router::new().route("/webhooks/tallyhook", post(receive)).route("/me", get(me)).with_state(app);
    let port: u16 = std::env::var("PORT")?.parse()?;
    axum::serve(tokio::net::TcpListener::bind(("127.0.0.1", port)).await?, router).await?;
    Ok(())
}
