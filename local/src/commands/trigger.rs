//! `tallyhook trigger`: runs what a schedule runs, at once, in the stack that runs.

use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use axum::http::Request;
use clap::Args;
use local::client::Client;
use serde_json::Value;

use super::DEFAULT_URL;

/// As long as the longest of the functions may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// Run a schedule's function at once in the running stack, and print what it did
///
/// retry sends again what is due (every 15 minutes by itself), health scores the deployment (every hour),
/// reconcile compares Stripe with the accounts and repairs what it may (every 6 hours).
#[derive(Args)]
pub struct Trigger {
    /// retry, reconcile or health
    schedule: String,
    /// The stack
    #[arg(long, default_value = DEFAULT_URL)]
    url: String,
}

impl Trigger {
    /// Runs it and prints its answer; whether it went well.
    pub async fn run(self) -> anyhow::Result<bool> {
        let client = Client::for_url(&self.url)?;
        let uri = format!("{}/local/schedules/{}", self.url.trim_end_matches('/'), self.schedule);
        let request = Request::post(&uri)
            .body(Body::empty())
            .with_context(|| format!("{} is no schedule", self.schedule))?;
        let (status, answer) = client.send_within(request, PATIENCE).await?;
        let answer: Value = serde_json::from_slice(&answer)
            .with_context(|| format!("{uri} answers {status}, and no JSON"))?;
        super::say(format_args!("{answer:#}"))?;
        Ok(status.is_success())
    }
}
