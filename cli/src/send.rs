//! `tallyhook send`: signs an event as Stripe does and posts it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::body::Body;
use axum::http::{Request, Uri};
use clap::Args;
use common::domain::timestamp::Timestamp;
use common::signature::{Secret, sign};
use local::client::Client;
use local::sample::Sample;
use local::stack::WEBHOOK_SECRET;

/// Sign an event as Stripe does and post it
///
/// The event is sent as it is, so a second time it is a duplicate. Its signature is made anew each time. Ends
/// with 1 if any answer is not 2xx.
#[derive(Args)]
pub struct Send {
    /// A file, or a sample's name: invoice.paid for events/invoice.paid.json
    #[arg(value_name = "EVENT.JSON | TYPE")]
    event: String,
    /// Make it about this user. A sample then gets ids of its own too (event, customer, subscription, ...),
    /// the same ones every time
    #[arg(long)]
    user: Option<String>,
    /// Give the event this id
    #[arg(long, value_name = "EVT", conflicts_with = "fresh")]
    id: Option<String>,
    /// Give the event a new id each time: another event about the same facts, not a duplicate
    #[arg(long)]
    fresh: bool,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 1)]
    times: u32,
    /// All at once
    #[arg(long)]
    concurrent: bool,
    /// Where to; without a path, to /webhooks/stripe there
    #[arg(long, default_value = super::DEFAULT_URL)]
    url: String,
    /// Sign with this secret [default: the first of STRIPE_WEBHOOK_SECRET, else whsec_local]
    #[arg(long, allow_hyphen_values = true)]
    secret: Option<String>,
}

impl Send {
    /// Sends and prints; whether all answers are 2xx.
    pub async fn run(self) -> anyhow::Result<bool> {
        let mut sample = Sample::find(&self.event)?;
        if let Some(user) = &self.user {
            sample = sample.about(user)?;
        }
        if let Some(id) = &self.id {
            sample = sample.with_id(id)?;
        }
        let url = webhook_url(&self.url)?;
        let secret = Secret::new(&self.secret.unwrap_or_else(default_secret))?;
        let client = Client::for_url(&url)?;
        let mut sending = Vec::new();
        let mut all_taken = true;
        for _ in 0..self.times {
            let sample = if self.fresh { sample.fresh()? } else { sample.clone() };
            let send = tokio::spawn(send(client.clone(), url.clone(), sample, secret.clone()));
            if self.concurrent {
                sending.push(send);
            } else {
                all_taken &= send.await??;
            }
        }
        for send in sending {
            all_taken &= send.await??;
        }
        Ok(all_taken)
    }
}

async fn send(client: Client, url: String, sample: Sample, secret: Secret) -> anyhow::Result<bool> {
    let started = Instant::now();
    let (status, answer) = client.send(signed(&url, &sample, &secret)?).await?;
    super::say(format_args!(
        "{status} {} {} {} ({} ms)",
        String::from_utf8_lossy(&answer).trim_end(),
        sample.field("type"),
        sample.field("id"),
        started.elapsed().as_millis()
    ))?;
    Ok(status.is_success())
}

/// The request that Stripe would make, signed now.
pub fn signed(url: &str, sample: &Sample, secret: &Secret) -> anyhow::Result<Request<Body>> {
    Ok(Request::post(url)
        .header("content-type", "application/json; charset=utf-8")
        .header("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
        .header("stripe-signature", sign(sample.body(), secret, now()))
        .body(Body::from(sample.body().to_vec()))?)
}

pub fn now() -> Timestamp {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Timestamp::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX))
}

pub fn default_secret() -> String {
    let first =
        |list: String| Some(list.split(',').next()?.trim().to_owned()).filter(|secret| !secret.is_empty());
    std::env::var("STRIPE_WEBHOOK_SECRET").ok().and_then(first).unwrap_or_else(|| WEBHOOK_SECRET.to_owned())
}

pub fn webhook_url(url: &str) -> anyhow::Result<String> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is no url"))?;
    Ok(if uri.path() == "/" {
        format!("{}/webhooks/stripe", url.trim_end_matches('/'))
    } else {
        url.to_owned()
    })
}
