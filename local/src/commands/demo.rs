//! `tallyhook demo`: a customer's life through the running stack, and what the account looks like after each
//! step.
//!
//! The story of the start page, told in a terminal: Stripe's events come in another order each time, one of
//! each step comes twice, and the account is the same.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use clap::Args;
use common::signature::Secret;
use local::client::Client;
use local::sample::Sample;
use local::stack::{APP_TOKEN, Options, Stack, WEBHOOK_SECRET};
use serde_json::{Value, json};
use uuid::Uuid;

use super::DEFAULT_URL;
use super::send::{default_secret, signed};

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Play a customer's life and show the account after each step
///
/// Signup, buy, duplicate, renewal, upgrade, add-on, spend, refund, cancel: signed events from the folder
/// events and calls of the app's API, through the stack that runs, or through one in memory if none does. The
/// events of a step come in any order and one of them twice. Every run has a user of its own.
#[derive(Args)]
pub struct Demo {
    /// The stack to play it through [default: http://127.0.0.1:9000 if one runs there, else one in memory]
    #[arg(long)]
    url: Option<String>,
}

/// What happens in a step.
enum Act {
    /// The app registers the user.
    Register,
    /// Stripe sends these in any order, one of them twice.
    Events(&'static [&'static str]),
    /// Stripe sends this so many times at once.
    AtOnce(&'static str, u32),
    /// The app spends credits.
    Spend(u32),
}

const LIFE: [(&str, &str, Act); 10] = [
    ("signup", "the app: PUT /users/{id}", Act::Register),
    (
        "buy",
        "Stripe: a subscription to pro, its first invoice, its checkout",
        Act::Events(&["customer.subscription.created", "invoice.paid", "checkout.session.completed"]),
    ),
    ("duplicate", "Stripe: the invoice ten times more, all at once", Act::AtOnce("invoice.paid", 10)),
    ("spend", "the app: POST /users/{id}/credits/consume, 1200", Act::Spend(1_200)),
    (
        "renewal",
        "Stripe: the next period and its invoice",
        Act::Events(&["customer.subscription.updated", "invoice.paid.renewal"]),
    ),
    (
        "upgrade",
        "Stripe: to business, and the invoice for the difference",
        Act::Events(&["customer.subscription.updated.upgrade", "invoice.paid.proration"]),
    ),
    ("add-on", "Stripe: a checkout of 1000 credits", Act::Events(&["checkout.session.completed.pack"])),
    ("spend", "the app: POST /users/{id}/credits/consume, 1500", Act::Spend(1_500)),
    ("refund", "Stripe: 40 % of the add-on's price is given back", Act::Events(&["charge.refunded"])),
    (
        "cancel",
        "Stripe: cancelled, then over at the end of the period",
        Act::Events(&["customer.subscription.updated.cancel", "customer.subscription.deleted"]),
    ),
];

impl Demo {
    /// Plays it.
    pub async fn run(self) -> anyhow::Result<bool> {
        let url = self.url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned());
        let token = std::env::var("APP_API_TOKEN").unwrap_or_else(|_| APP_TOKEN.to_owned());
        let mut player = Player::new(url.trim_end_matches('/').to_owned(), token, &default_secret())?;
        let own = match player.at_rest().await {
            Ok(_) => None,
            Err(error) if self.url.is_some() => return Err(error),
            Err(_) => Some(Stack::start(Options::default()).await?),
        };
        if let Some(stack) = &own {
            super::say(format_args!("No stack runs at {url}, so this is one in memory.\n"))?;
            player = Player::new(stack.front_url.clone(), APP_TOKEN.to_owned(), WEBHOOK_SECRET)?;
        }
        let played = player.play().await;
        if played.is_ok() && own.is_none() {
            super::say(format_args!(
                "\nWhat set each field of it: {0}/admin#/users/{1}, or cargo run -- check-user {1}{2}",
                player.url,
                player.user,
                if player.url == DEFAULT_URL { String::new() } else { format!(" --url {}", player.url) }
            ))?;
        }
        if let Some(stack) = own {
            stack.stop().await;
        }
        played.map(|()| true)
    }
}

struct Player {
    url: String,
    token: String,
    secret: Secret,
    client: Client,
    user: String,
}

impl Player {
    fn new(url: String, token: String, secret: &str) -> anyhow::Result<Self> {
        let own = Uuid::new_v4().simple().to_string();
        let user = format!("demo_{}", own.get(..8).unwrap_or_default());
        Ok(Self { client: Client::for_url(&url)?, url, token, secret: Secret::new(secret)?, user })
    }

    async fn play(&self) -> anyhow::Result<()> {
        super::say(format_args!("The life of {}:\n", self.user))?;
        super::say(format_args!(
            "{:<10} {:<9} {:>7}  {:>6} {:>6} {:>6}  {:<12} what happened",
            "step", "tier", "credits", "plan", "add-on", "signup", "subscription"
        ))?;
        for (step, what, act) in &LIFE {
            let came = self.act(act).await.with_context(|| format!("step {step}"))?;
            self.settled().await?;
            super::say(format_args!("{}  {what}", row(step, &self.account().await?)))?;
            if !came.is_empty() {
                super::say(format_args!("{:11}came as {}", "", came.join(", ")))?;
            }
        }
        super::say(format_args!("\nThe ledger, which the balance is the sum of:\n"))?;
        super::say(format_args!("{:>8} {:>8}  key", "change", "balance"))?;
        let ledger = self.app(Method::GET, "/ledger", None).await?;
        for entry in ledger["entries"].as_array().into_iter().flatten().rev() {
            super::say(format_args!(
                "{:>+8} {:>8}  {}",
                entry["delta"].as_i64().unwrap_or_default(),
                text(&entry["balance"]),
                text(&entry["key"])
            ))?;
        }
        Ok(())
    }

    /// Does it; in which order Stripe's events came, where there are some to order.
    async fn act(&self, act: &Act) -> anyhow::Result<Vec<String>> {
        match act {
            Act::Register => drop(self.app(Method::PUT, "", None).await?),
            Act::Spend(amount) => {
                drop(self.app(Method::POST, "/credits/consume", Some(json!({ "amount": amount }))).await?)
            }
            Act::Events(names) => {
                let mut came: Vec<&str> = names.to_vec();
                came.extend(fastrand::choice(*names));
                fastrand::shuffle(&mut came);
                let mut told: Vec<String> = Vec::new();
                for name in came {
                    self.event(name).await?;
                    let again = told.iter().any(|told| told == name);
                    told.push(if again { format!("{name} (again)") } else { name.to_owned() });
                }
                return Ok(told);
            }
            Act::AtOnce(name, times) => {
                let mut sending = tokio::task::JoinSet::new();
                for _ in 0..*times {
                    let (client, request) = (self.client.clone(), self.signed(name)?);
                    sending.spawn(async move { taken(client.send(request).await?) });
                }
                for taken in sending.join_all().await {
                    taken?;
                }
            }
        }
        Ok(Vec::new())
    }

    async fn event(&self, name: &str) -> anyhow::Result<()> {
        taken(self.client.send(self.signed(name)?).await?).with_context(|| name.to_owned())
    }

    fn signed(&self, name: &str) -> anyhow::Result<Request<Body>> {
        signed(
            &format!("{}/webhooks/stripe", self.url),
            &Sample::find(name)?.about(&self.user)?,
            &self.secret,
        )
    }

    /// Waits until the workers are done.
    async fn settled(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while !self.at_rest().await? {
            ensure!(started.elapsed() < PATIENCE, "the queues are not empty after {} s", PATIENCE.as_secs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn at_rest(&self) -> anyhow::Result<bool> {
        let request = Request::get(format!("{}/local/status", self.url)).body(Body::empty())?;
        let (status, answer) = self.client.send(request).await?;
        ensure!(status == StatusCode::OK, "{} is no local stack: /local/status answers {status}", self.url);
        Ok(serde_json::from_slice::<Value>(&answer)?["at_rest"] == true)
    }

    async fn account(&self) -> anyhow::Result<Value> {
        self.app(Method::GET, "", None).await
    }

    /// Calls the app's API.
    async fn app(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let uri = format!("{}/users/{}{path}", self.url, self.user);
        let request = Request::builder()
            .method(method)
            .uri(&uri)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))?;
        let (status, answer) = self.client.send(request).await?;
        if !status.is_success() {
            bail!("{uri} answers {status} {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}

fn taken((status, answer): (StatusCode, axum::body::Bytes)) -> anyhow::Result<()> {
    ensure!(status.is_success(), "the webhook answers {status} {}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn row(step: &str, account: &Value) -> String {
    let buckets = &account["buckets"];
    let of_plans: i64 = buckets["subscriptions"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, credits)| credits.as_i64())
        .sum();
    let subscription = account["subscriptions"]
        .as_array()
        .and_then(|all| all.last())
        .map_or_else(|| "-".to_owned(), |last| text(&last["status"]));
    format!(
        "{step:<10} {:<9} {:>7}  {of_plans:>6} {:>6} {:>6}  {subscription:<12}",
        text(&account["tier"]),
        text(&account["credits"]),
        text(&buckets["addon"]),
        text(&buckets["signup"]),
    )
}

/// A value without quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
