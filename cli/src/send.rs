//! `send`: signs an event as Stripe does and posts it to a webhook.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::Args;
use http::{Request, Uri};
use tallyhook_core::signature::{Secret, sign};
use tallyhook_core::timestamp::Timestamp;

use crate::api::at_least_one;
use crate::client::Client;
use crate::local_stack;
use crate::output::print_line;
use crate::sample::Sample;

/// Sign an event as Stripe does and post it
///
/// The same event sent twice is a duplicate: it keeps its id, and its signature is new. The exit code is 1
/// when an answer is not 2xx.
#[derive(Args)]
pub struct Send {
    /// A file, or the name of a sample: invoice.paid means events/invoice.paid.json
    #[arg(value_name = "EVENT.JSON | TYPE", required_unless_present = "list")]
    event: Option<String>,
    /// Print the names of all samples, and send nothing. Names that begin with `old/` have Stripe's shapes
    /// before API version 2025-03-31.basil; events/README.md tells what each one is
    #[arg(long, conflicts_with_all = ["event", "user", "id", "fresh"])]
    list: bool,
    /// Put this user into the event. A sample also gets ids of its own (event, customer, subscription, ...),
    /// always the same for the same user
    #[arg(long)]
    user: Option<String>,
    /// Give the event this id
    #[arg(long, value_name = "EVT", conflicts_with = "fresh")]
    id: Option<String>,
    /// Give the event a new id each time: another event about the same facts, not a duplicate
    #[arg(long)]
    fresh: bool,
    /// Number of requests
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one::<u32>)]
    times: u32,
    /// Send all requests at the same time
    #[arg(long)]
    concurrent: bool,
    /// The webhook. A URL without a path means /webhooks/stripe there
    #[arg(long, default_value = local_stack::URL)]
    url: String,
    /// Sign with this secret [default: the first of STRIPE_WEBHOOK_SECRET, else whsec_local]
    #[arg(long, allow_hyphen_values = true)]
    secret: Option<String>,
}

impl Send {
    /// True when all answers are 2xx.
    pub async fn run(self) -> anyhow::Result<bool> {
        let Some(event) = &self.event else {
            for name in Sample::list()? {
                print_line(name)?;
            }
            return Ok(true);
        };
        let mut sample = Sample::find(event)?;
        if let Some(user) = &self.user {
            sample = sample.about(user)?;
        }
        if let Some(id) = &self.id {
            sample = sample.with_id(id)?;
        }
        let url = webhook_url(&self.url)?;
        let secret = Secret::new(&self.secret.unwrap_or_else(default_secret))?;
        let client = Client::for_url(&url)?;
        let mut tasks = Vec::new();
        let mut all_accepted = true;
        for _ in 0..self.times {
            let sample = if self.fresh { sample.fresh()? } else { sample.clone() };
            let task = tokio::spawn(post(client.clone(), url.clone(), sample, secret.clone()));
            if self.concurrent {
                tasks.push(task);
            } else {
                all_accepted &= task.await??;
            }
        }
        for task in tasks {
            all_accepted &= task.await??;
        }
        Ok(all_accepted)
    }
}

/// Posts one event and prints the answer. True when it is 2xx.
async fn post(client: Client, url: String, sample: Sample, secret: Secret) -> anyhow::Result<bool> {
    let started = Instant::now();
    let (status, answer) = client.send(signed_request(&url, sample.body(), &secret)?).await?;
    print_line(format_args!(
        "{status} {} {} {} ({} ms)",
        String::from_utf8_lossy(&answer).trim_end(),
        sample.field("type"),
        sample.field("id"),
        started.elapsed().as_millis()
    ))?;
    Ok(status.is_success())
}

/// The request that Stripe makes for this event, signed at the current time.
///
/// # Errors
/// When `url` is not a URL.
pub fn signed_request(url: &str, event: &[u8], secret: &Secret) -> http::Result<Request<Vec<u8>>> {
    Request::post(url)
        .header("content-type", "application/json; charset=utf-8")
        .header("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
        .header("stripe-signature", sign(event, secret, now()))
        .body(event.to_vec())
}

/// The current time, in whole seconds.
pub fn now() -> Timestamp {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Timestamp::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// The first of `STRIPE_WEBHOOK_SECRET`, or the local stack's.
pub fn default_secret() -> String {
    let first =
        |list: String| Some(list.split(',').next()?.trim().to_owned()).filter(|secret| !secret.is_empty());
    std::env::var("STRIPE_WEBHOOK_SECRET")
        .ok()
        .and_then(first)
        .unwrap_or_else(|| local_stack::WEBHOOK_SECRET.to_owned())
}

/// The webhook of a deployment. A URL with a path is the webhook already.
///
/// # Errors
/// When `url` is not a URL.
pub fn webhook_url(url: &str) -> anyhow::Result<String> {
    ensure!(!url.is_empty(), "--url or TALLYHOOK_URL is empty: set it to the deployment's output WebhookUrl");
    let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
    Ok(if uri.path() == "/" {
        format!("{}/webhooks/stripe", url.trim_end_matches('/'))
    } else {
        url.to_owned()
    })
}
