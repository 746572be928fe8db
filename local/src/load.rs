//! `tallyhook load`: many signed events at a stack, and whether all of them were applied, once each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::body::Body;
use axum::http::{Request, StatusCode, Uri};
use clap::Args;
use common::signature::Secret;
use local::client::Client;
use local::sample::Sample;
use local::stack::APP_TOKEN;
use serde_json::{Value, json};

use super::send::{default_secret, now, signed, webhook_url};

/// What the pack of the sample is worth.
const PACK_CREDITS: u64 = 1000;
/// So long nothing may be applied before it counts as stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Post many purchases at once, and wait until the accounts show every one of them
///
/// Each is a paid pack with ids of its own, for one of the users in turn. The credits of all users together must have grown by exactly
/// what was bought: an event that is lost or applied twice ends this with 1.
#[derive(Args)]
pub struct Load {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 3000)]
    events: u32,
    /// Bought by so many users
    #[arg(long, value_name = "N", default_value_t = 20)]
    users: u32,
    /// So many requests at a time
    #[arg(long, value_name = "N", default_value_t = 16)]
    concurrency: u32,
    /// The stack
    #[arg(long, default_value = super::DEFAULT_URL)]
    url: String,
    /// Sign with this secret [default: the first of STRIPE_WEBHOOK_SECRET, else whsec_local]
    #[arg(long, allow_hyphen_values = true)]
    secret: Option<String>,
    /// The app's token
    #[arg(long, env = "APP_API_TOKEN", default_value = APP_TOKEN, hide_env_values = true)]
    token: String,
}

impl Load {
    /// Sends, waits and prints; whether everything was applied once.
    pub async fn run(self) -> anyhow::Result<bool> {
        ensure!(self.users > 0 && self.concurrency > 0, "--users and --concurrency must be at least 1");
        let url = webhook_url(&self.url)?;
        let client = Client::for_url(&url)?;
        let secret = Secret::new(&self.secret.clone().unwrap_or_else(default_secret))?;
        let pack = Sample::find("checkout.session.completed.pack")?;
        let packs: Vec<Value> =
            (0..self.users).map(|number| Ok(serde_json::from_slice(pack.about(&user(number))?.body())?)).collect::<anyhow::Result<_>>()?;
        let (packs, run) = (Arc::new(packs), now().unix());
        let before = self.credits(&client).await?;
        let started = Instant::now();

        let next = Arc::new(AtomicU32::new(0));
        let mut senders = Vec::new();
        for _ in 0..self.concurrency {
            let (packs, next, client, url, secret, events) =
                (Arc::clone(&packs), Arc::clone(&next), client.clone(), url.clone(), secret.clone(), self.events);
            senders.push(tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= events {
                        return anyhow::Ok(());
                    }
                    let place = usize::try_from(number)? % packs.len();
                    let purchase = purchase(packs.get(place).context("a user")?.clone(), run, number)?;
                    let (status, answer) = client.send(signed(&url, &purchase, &secret)?).await?;
                    ensure!(status.is_success(), "{status} {}", String::from_utf8_lossy(&answer));
                }
            }));
        }
        let watching = self.watch(&client, before, started);
        let sending = async {
            for sender in senders {
                sender.await??;
            }
            let took = started.elapsed();
            super::say(format_args!("{} answered 200 in {:.1} s: {:.0}/s", self.events, took.as_secs_f64(), self.rate(took)))?;
            anyhow::Ok(())
        };
        let ((), applied) = tokio::try_join!(sending, watching)?;
        Ok(applied)
    }

    /// Looks at the accounts until all is applied, and a little longer, in case something is applied twice.
    async fn watch(&self, client: &Client, before: u64, started: Instant) -> anyhow::Result<bool> {
        let wanted = u64::from(self.events) * PACK_CREDITS;
        let (mut known, mut moved, mut told) = (0, Instant::now(), Instant::now());
        loop {
            let granted = self.credits(client).await?.saturating_sub(before);
            let took = started.elapsed();
            if granted >= wanted {
                super::say(format_args!("{} applied in {:.1} s: {:.0}/s", self.events, took.as_secs_f64(), self.rate(took)))?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                let granted = self.credits(client).await?.saturating_sub(before);
                super::say(format_args!("{granted} credits granted, {wanted} bought"))?;
                return Ok(granted == wanted);
            }
            if granted > known {
                (known, moved) = (granted, Instant::now());
            } else if moved.elapsed() > STUCK {
                bail!("{} of {} were applied, and nothing for {} s", granted / PACK_CREDITS, self.events, STUCK.as_secs());
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                super::say(format_args!("{:>4} s: {} applied", took.as_secs(), granted / PACK_CREDITS))?;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// The credits of all users together.
    async fn credits(&self, client: &Client) -> anyhow::Result<u64> {
        let uri: Uri = self.url.parse()?;
        let front = format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.authority().context("--url names no host")?);
        let mut credits = 0;
        for number in 0..self.users {
            let request = Request::get(format!("{front}/users/{}", user(number)))
                .header("authorization", format!("Bearer {}", self.token))
                .body(Body::empty())?;
            let (status, answer) = client.send(request).await?;
            match status {
                StatusCode::NOT_FOUND => {}
                StatusCode::OK => credits += serde_json::from_slice::<Value>(&answer)?["credits"].as_u64().context("no credits")?,
                _ => bail!("GET /users/{}: {status} {}", user(number), String::from_utf8_lossy(&answer)),
            }
        }
        Ok(credits)
    }

    fn rate(&self, took: Duration) -> f64 {
        f64::from(self.events) / took.as_secs_f64()
    }
}

fn user(number: u32) -> String {
    format!("load_{number}")
}

/// The pack once more, with ids of its own.
fn purchase(mut event: Value, run: i64, number: u32) -> anyhow::Result<Sample> {
    let own = format!("load{run}n{number}");
    event["id"] = json!(format!("evt_{own}"));
    event["data"]["object"]["id"] = json!(format!("cs_test_{own}"));
    event["data"]["object"]["payment_intent"] = json!(format!("pi_{own}"));
    Ok(Sample::of(serde_json::to_vec_pretty(&event)?))
}
