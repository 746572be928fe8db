//! `fuzz-order`: lives of customers against a running stack, told in order and told shuffled and doubled,
//! must end in the same account.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use common::domain::catalog::Catalog;
use common::signature::{Secret, sign};
use local::client::Client;
use local::life::{Life, Options, Sent};
use local::stack::APP_TOKEN;
use serde_json::{Value, json};

use super::DEFAULT_URL;
use super::send::{default_secret, now, webhook_url};

/// How long the stack may take to work off what it was sent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Play customers' lives against the running stack, in order and shuffled, and compare the accounts
///
/// Each case is the life of one customer (buy, renew, upgrade, refund, dispute, cancel, ...), rendered as
/// Stripe would send it. It is told to two users: to one event by event, to the other all at once, shuffled,
/// with some events doubled. Both accounts must end alike: tier, subscriptions, plan credits, grants. A case
/// that does not is cut down to the fewest acts that still differ.
#[derive(clap::Args)]
pub struct FuzzOrder {
    /// How many lives
    #[arg(long, default_value_t = 20)]
    cases: u64,
    /// The first life's seed; a failing case prints its own
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The stack
    #[arg(long, default_value = DEFAULT_URL)]
    url: String,
    /// The webhook's signing secret [default: STRIPE_WEBHOOK_SECRET, else the local stack's]
    #[arg(long)]
    secret: Option<String>,
    /// The catalog that the stack sells by [default: catalog.toml of the source tree]
    #[arg(long, value_name = "FILE")]
    catalog: Option<String>,
}

struct Player {
    client: Client,
    url: String,
    webhook: String,
    secret: Secret,
    token: String,
    /// Tells the users of this run from those of earlier ones.
    run: String,
}

impl FuzzOrder {
    /// Plays all cases; false when one diverged.
    pub async fn run(self) -> anyhow::Result<bool> {
        let path = self
            .catalog
            .clone()
            .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml").to_owned());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let catalog = Catalog::parse(&text)?;
        let player = Player {
            client: Client::for_url(&self.url)?,
            url: self.url.trim_end_matches('/').to_owned(),
            webhook: webhook_url(&self.url)?,
            secret: Secret::new(&self.secret.clone().unwrap_or_else(default_secret))?,
            token: std::env::var("APP_API_TOKEN").unwrap_or_else(|_| APP_TOKEN.to_owned()),
            run: format!("{:x}", fastrand::u32(..)),
        };
        let mut progress = Progress { cases: self.cases, ..Progress::default() };
        for seed in self.seed..self.seed.saturating_add(self.cases) {
            let life = Life::new(seed, &catalog, Options { noise: false, ..Options::default() });
            let all: Vec<&Sent> = life.events.iter().collect();
            progress.events += all.len();
            let Some(difference) = player.difference(&life, &all).await? else {
                progress.step(false)?;
                continue;
            };
            progress.step(true)?;
            progress.end()?;
            super::say(format_args!(
                "life {seed} does not end alike; looking for the fewest events of its {} that show it",
                all.len()
            ))?;
            let (shortest, difference) = player.shorten(&life, all, difference).await?;
            super::say(format_args!("{difference}\nby these {} events:", shortest.len()))?;
            for sent in shortest {
                super::say(format_args!("{}", life.tell(sent)))?;
            }
            super::say(format_args!("again: fuzz-order --cases 1 --seed {seed} --url {}", self.url))?;
        }
        progress.end()?;
        super::say(format_args!(
            "{} lives end alike, {} do not",
            progress.done - progress.failed,
            progress.failed
        ))?;
        Ok(progress.failed == 0)
    }
}

/// How far it is: one line that is written over on a terminal, and every tenth case a line elsewhere.
#[derive(Default)]
struct Progress {
    cases: u64,
    done: u64,
    failed: u64,
    events: usize,
    open: bool,
}

impl Progress {
    fn step(&mut self, failed: bool) -> std::io::Result<()> {
        self.done += 1;
        self.failed += u64::from(failed);
        let told = format!(
            "{} of {} lives, {} events, {} not alike",
            self.done, self.cases, self.events, self.failed
        );
        let mut out = std::io::stdout();
        if out.is_terminal() {
            self.open = true;
            write!(out, "\r{told} ")?;
            return out.flush();
        }
        if self.done.is_multiple_of(10) || failed { super::say(format_args!("{told}")) } else { Ok(()) }
    }

    /// Leaves the line, so that something else can be written.
    fn end(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.open) { super::say(format_args!("")) } else { Ok(()) }
    }
}

impl Player {
    /// Tells the events to two users, in order and shuffled; `None` when both accounts end alike.
    async fn difference(&self, life: &Life, events: &[&Sent]) -> anyhow::Result<Option<String>> {
        let mut rng = fastrand::Rng::with_seed(life.seed);
        let (ordered, shuffled) = (self.name(&mut rng), self.name(&mut rng));
        for sent in events {
            self.post(&told_to(life, sent, &ordered)).await?;
            self.settle(false).await?;
        }
        let mut mixed: Vec<&Sent> = events.to_vec();
        mixed.extend(events.iter().filter(|_| rng.u8(..4) == 0));
        rng.shuffle(&mut mixed);
        for sent in mixed {
            self.post(&told_to(life, sent, &shuffled)).await?;
        }
        self.settle(true).await?;
        let (one, other) = (self.account(life, &ordered).await?, self.account(life, &shuffled).await?);
        Ok((one != other).then(|| format!("in order {one:#}\nshuffled {other:#}")))
    }

    /// Leaves out one act after the other, then one event after the other, as long as the rest still differs.
    async fn shorten<'a>(
        &self,
        life: &Life,
        mut events: Vec<&'a Sent>,
        mut difference: String,
    ) -> anyhow::Result<(Vec<&'a Sent>, String)> {
        for act in 0..life.acts.len() {
            let fewer: Vec<&Sent> = events.iter().copied().filter(|sent| sent.act != act).collect();
            if fewer.len() < events.len()
                && let Some(still) = self.difference(life, &fewer).await?
            {
                (events, difference) = (fewer, still);
            }
        }
        for sent in events.clone() {
            let fewer: Vec<&Sent> = events.iter().copied().filter(|other| other.id != sent.id).collect();
            if !fewer.is_empty()
                && let Some(still) = self.difference(life, &fewer).await?
            {
                (events, difference) = (fewer, still);
            }
        }
        Ok((events, difference))
    }

    fn name(&self, rng: &mut fastrand::Rng) -> String {
        format!("{}x{:x}", self.run, rng.u32(..).wrapping_add(fastrand::u32(..)))
    }

    async fn post(&self, body: &str) -> anyhow::Result<()> {
        let request = Request::post(&self.webhook)
            .header("content-type", "application/json; charset=utf-8")
            .header("stripe-signature", sign(body.as_bytes(), &self.secret, now()))
            .body(Body::from(body.to_owned()))?;
        let (status, answer) = self.client.send(request).await?;
        if !status.is_success() {
            bail!("the webhook answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }

    /// Waits until nothing is under way; with `delayed` also for what waits a few seconds for its next
    /// attempt.
    async fn settle(&self, delayed: bool) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let (status, body) = self
                .client
                .send(Request::get(format!("{}/local/status", self.url)).body(Body::empty())?)
                .await?;
            if status != StatusCode::OK {
                bail!("{} is no local stack: /local/status answers {status}", self.url);
            }
            let told: Value = serde_json::from_slice(&body)?;
            let waiting = |queue: &Value| {
                ["in_flight", "delayed"].iter().any(|count| queue[count].as_i64().unwrap_or(0) > 0)
            };
            let waits = delayed && told["queues"].as_array().into_iter().flatten().any(waiting);
            if told["at_rest"] == json!(true) && !waits {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the stack did not come to rest within {} s", PATIENCE.as_secs())
    }

    /// What must be equal of an account, in the life's own names. Packs are left out: one that is told after
    /// a newer renewal is granted in full on purpose.
    async fn account(&self, life: &Life, name: &str) -> anyhow::Result<Value> {
        let user = life.user.replace(&seed_of(life), name);
        let Some(account) = self.get(&format!("/users/{user}")).await? else { return Ok(Value::Null) };
        let mut grants = BTreeSet::new();
        let mut next = Some(String::new());
        while let Some(cursor) = next {
            let page = self.get(&format!("/users/{user}/ledger{cursor}")).await?.unwrap_or_default();
            let entries = page["entries"].as_array().cloned().unwrap_or_default();
            grants.extend(
                entries
                    .iter()
                    .filter(|entry| entry["kind"] != "adjust")
                    .filter_map(|entry| entry["key"].as_str().map(str::to_owned)),
            );
            next = page["next"].as_str().map(|key| format!("?next={}", key.replace('#', "%23")));
        }
        let told = json!({
            "tier": account["tier"], "access_until": account["access_until"], "subscriptions": account["subscriptions"],
            "signup": account["buckets"]["signup"], "plans": account["buckets"]["subscriptions"], "grants": grants,
        });
        Ok(serde_json::from_str(&told.to_string().replace(name, &seed_of(life)))?)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let request = Request::get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        let (status, body) = self.client.send(request.body(Body::empty())?).await?;
        match status {
            StatusCode::OK => Ok(Some(serde_json::from_slice(&body)?)),
            StatusCode::NOT_FOUND => Ok(None),
            other => bail!("GET {path} answered {other}"),
        }
    }
}

/// The part of every id of a life that is its own: `sub_<seed>_1`, `user_<seed>`.
fn seed_of(life: &Life) -> String {
    format!("{:x}", life.seed)
}

/// The event as it would be told of another user with the same life.
fn told_to(life: &Life, sent: &Sent, name: &str) -> String {
    let seed = seed_of(life);
    sent.body
        .replace(&format!("_{seed}_"), &format!("_{name}_"))
        .replace(&life.user, &life.user.replace(&seed, name))
}
