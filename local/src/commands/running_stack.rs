//! A local stack that runs: its webhook, the app's API, and its status.

use std::time::{Duration, Instant};

use anyhow::ensure;
use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode};
use cli::client::Client;
use cli::local_stack;
use cli::send::signed_request;
use serde_json::Value;
use tallyhook_core::signature::Secret;
use uuid::Uuid;

/// The maximum time until all queues are empty.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A stack. Clones share the connections.
#[derive(Clone)]
pub struct RunningStack {
    pub url: String,
    token: String,
    secret: Secret,
    client: Client,
}

impl RunningStack {
    /// The stack at this URL, whose webhook accepts this signing secret.
    pub fn new(url: &str, token: String, secret: &str) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { client: Client::for_url(&url)?, url, token, secret: Secret::new(secret)? })
    }

    /// Signs an event as Stripe does and posts it.
    pub async fn post(&self, event: &[u8]) -> anyhow::Result<()> {
        let request = signed_request(&format!("{}/webhooks/stripe", self.url), event, &self.secret)?;
        let (status, answer) = self.client.send(request).await?;
        ensure!(status.is_success(), "the webhook answers {status} {}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    /// Calls the app's API. `path` follows `/users/`.
    pub async fn app(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, &format!("/users/{path}"), body).await?;
        ensure!(
            status.is_success(),
            "{}/users/{path} answers {status} {}",
            self.url,
            String::from_utf8_lossy(&answer)
        );
        Ok(serde_json::from_slice(&answer)?)
    }

    /// The account of a user; `None` when it does not exist.
    pub async fn account(&self, user: &str) -> anyhow::Result<Option<Value>> {
        let (status, answer) = self.send(Method::GET, &format!("/users/{user}"), None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(status == StatusCode::OK, "GET /users/{user} answers {status}");
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Waits until no message is visible or being processed. With `delayed`, also waits for messages that
    /// become visible later.
    pub async fn wait_until_idle(&self, delayed: bool) -> anyhow::Result<()> {
        let started = Instant::now();
        let waiting = |queue: &Value| {
            ["in_flight", "delayed"].iter().any(|count| queue[count].as_i64().unwrap_or(0) > 0)
        };
        loop {
            let status = self.status().await?;
            let waits = delayed && status["queues"].as_array().into_iter().flatten().any(waiting);
            if status["at_rest"] == true && !waits {
                return Ok(());
            }
            ensure!(
                started.elapsed() < IDLE_TIMEOUT,
                "the queues are not empty after {} s",
                IDLE_TIMEOUT.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The answer of `GET /local/status`.
    pub async fn status(&self) -> anyhow::Result<Value> {
        let (status, answer) = self.send(Method::GET, "/local/status", None).await?;
        ensure!(
            status == StatusCode::OK,
            "{} is not a local stack: /local/status answers {status}",
            self.url
        );
        Ok(serde_json::from_slice(&answer)?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(body.map_or_else(Vec::new, |body| body.to_string().into_bytes()))?;
        self.client.send(request).await
    }
}

/// The app's token, from the environment or the local stack's.
pub fn app_token() -> String {
    std::env::var("APP_API_TOKEN").unwrap_or_else(|_| local_stack::APP_TOKEN.to_owned())
}
