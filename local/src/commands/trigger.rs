//! `trigger`: runs a scheduled function at once.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use cli::client::Client;
use cli::local_stack;
use cli::output::print_line;
use serde_json::Value;

/// The longest timeout of a scheduled function.
const TIMEOUT: Duration = Duration::from_secs(900);

/// Run a scheduled function at once in the running local stack, and print its answer
///
/// retry sends the events that are due again (it runs every 15 minutes), health computes the health score
/// (every hour), reconcile compares Stripe with the accounts and repairs differences (every 6 hours).
#[derive(Args)]
pub struct Trigger {
    /// retry, reconcile or health
    schedule: String,
    /// The local stack
    #[arg(long, default_value = local_stack::URL)]
    url: String,
}

impl Trigger {
    /// True when the function succeeded.
    pub async fn run(self) -> anyhow::Result<bool> {
        let client = Client::for_url(&self.url)?;
        let uri = format!("{}/local/schedules/{}", self.url.trim_end_matches('/'), self.schedule);
        let request = axum::http::Request::post(&uri)
            .body(Vec::new())
            .with_context(|| format!("{} is not a schedule", self.schedule))?;
        let (status, answer) = client.send_within(request, TIMEOUT).await?;
        let answer: Value = serde_json::from_slice(&answer)
            .with_context(|| format!("{uri} answers {status} without JSON"))?;
        print_line(format_args!("{answer:#}"))?;
        Ok(status.is_success())
    }
}
