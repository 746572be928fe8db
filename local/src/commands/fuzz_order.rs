//! `fuzz-order`: the events of random customers, sent in order and sent shuffled with duplicates, must lead
//! to the same account.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::http::{Request, StatusCode};
use cli::client::Client;
use cli::local_stack;
use cli::output::print_line;
use cli::send::{default_secret, signed_request, webhook_url};
use local::life::{Life, LifeEvent, Options};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::signature::Secret;

/// The maximum time for the events of one case.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// Send the events of random customers in order and shuffled, and compare the accounts
///
/// Each case is the life of one customer (buy, renew, upgrade, refund, dispute, cancel, ...) as events that
/// Stripe would send. One user gets the events in order. Another user gets them all at once, shuffled, some
/// of them twice. Both accounts must be equal in the end: tier, subscriptions, plan credits, grants. A
/// failing case is reduced to the fewest events that still fail.
#[derive(clap::Args)]
pub struct FuzzOrder {
    /// Number of customers
    #[arg(long, default_value_t = 20)]
    cases: u64,
    /// The seed of the first customer; a failing case prints its own seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The local stack
    #[arg(long, default_value = local_stack::URL)]
    url: String,
    /// The webhook's signing secret [default: STRIPE_WEBHOOK_SECRET, else the local stack's]
    #[arg(long)]
    secret: Option<String>,
    /// The catalog of the local stack [default: catalog.toml of the source tree]
    #[arg(long, value_name = "FILE")]
    catalog: Option<String>,
}

struct Player {
    client: Client,
    url: String,
    webhook: String,
    secret: Secret,
    token: String,
    /// Part of every user id of this run, so that runs do not share users.
    run: String,
}

impl FuzzOrder {
    /// True when the accounts of every case are equal.
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
            token: std::env::var("APP_API_TOKEN").unwrap_or_else(|_| local_stack::APP_TOKEN.to_owned()),
            run: format!("{:x}", fastrand::u32(..)),
        };
        let mut progress = Progress { cases: self.cases, ..Progress::default() };
        for seed in self.seed..self.seed.saturating_add(self.cases) {
            let life = Life::new(seed, &catalog, Options { noise: false, ..Options::default() });
            let all: Vec<&LifeEvent> = life.events.iter().collect();
            progress.events += all.len();
            let Some(difference) = player.difference(&life, &all).await? else {
                progress.step(false)?;
                continue;
            };
            progress.step(true)?;
            progress.end()?;
            print_line(format_args!(
                "customer {seed}: the accounts differ; reducing the {} events",
                all.len()
            ))?;
            let (shortest, difference) = player.shorten(&life, all, difference).await?;
            print_line(format_args!("{difference}\nafter these {} events:", shortest.len()))?;
            for sent in shortest {
                print_line(format_args!("{}", life.describe(sent)))?;
            }
            print_line(format_args!("repeat with: fuzz-order --cases 1 --seed {seed} --url {}", self.url))?;
        }
        progress.end()?;
        print_line(format_args!(
            "{} customers: the accounts are equal; {} differ",
            progress.done - progress.failed,
            progress.failed
        ))?;
        Ok(progress.failed == 0)
    }
}

/// The progress: on a terminal one line that is overwritten, elsewhere a line for every tenth case.
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
        let line = format!(
            "{} of {} customers, {} events, {} differ",
            self.done, self.cases, self.events, self.failed
        );
        let mut out = std::io::stdout();
        if out.is_terminal() {
            self.open = true;
            write!(out, "\r{line} ")?;
            return out.flush();
        }
        if self.done.is_multiple_of(10) || failed { print_line(line) } else { Ok(()) }
    }

    /// Ends the overwritten line, so that another line can be printed.
    fn end(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.open) { print_line("") } else { Ok(()) }
    }
}

impl Player {
    /// Sends the events for two users, in order and shuffled. `None` when both accounts are equal.
    async fn difference(&self, life: &Life, events: &[&LifeEvent]) -> anyhow::Result<Option<String>> {
        let mut rng = fastrand::Rng::with_seed(life.seed);
        let (ordered, shuffled) = (self.name(&mut rng), self.name(&mut rng));
        for sent in events {
            self.post(&about_user(life, sent, &ordered)).await?;
            self.wait_until_idle(false).await?;
        }
        let mut mixed: Vec<&LifeEvent> = events.to_vec();
        mixed.extend(events.iter().filter(|_| rng.u8(..4) == 0));
        rng.shuffle(&mut mixed);
        for sent in mixed {
            self.post(&about_user(life, sent, &shuffled)).await?;
        }
        self.wait_until_idle(true).await?;
        let (one, other) = (self.account(life, &ordered).await?, self.account(life, &shuffled).await?);
        Ok((one != other).then(|| format!("in order {one:#}\nshuffled {other:#}")))
    }

    /// Removes acts, then single events, as long as the accounts still differ.
    async fn shorten<'a>(
        &self,
        life: &Life,
        mut events: Vec<&'a LifeEvent>,
        mut difference: String,
    ) -> anyhow::Result<(Vec<&'a LifeEvent>, String)> {
        for act in 0..life.acts.len() {
            let fewer: Vec<&LifeEvent> = events.iter().copied().filter(|sent| sent.act != act).collect();
            if fewer.len() < events.len()
                && let Some(still) = self.difference(life, &fewer).await?
            {
                (events, difference) = (fewer, still);
            }
        }
        for sent in events.clone() {
            let fewer: Vec<&LifeEvent> = events.iter().copied().filter(|other| other.id != sent.id).collect();
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
        let request = signed_request(&self.webhook, body.as_bytes(), &self.secret)?;
        let (status, answer) = self.client.send(request).await?;
        if !status.is_success() {
            bail!("the webhook answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }

    /// Waits until no message is visible or being processed. With `delayed`, also waits for messages that
    /// become visible later.
    async fn wait_until_idle(&self, delayed: bool) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < CASE_TIMEOUT {
            let (status, body) = self
                .client
                .send(Request::get(format!("{}/local/status", self.url)).body(Vec::new())?)
                .await?;
            if status != StatusCode::OK {
                bail!("{} is not a local stack: /local/status answers {status}", self.url);
            }
            let stack: Value = serde_json::from_slice(&body)?;
            let waiting = |queue: &Value| {
                ["in_flight", "delayed"].iter().any(|count| queue[count].as_i64().unwrap_or(0) > 0)
            };
            let waits = delayed && stack["queues"].as_array().into_iter().flatten().any(waiting);
            if stack["at_rest"] == json!(true) && !waits {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the queues are not empty after {} s", CASE_TIMEOUT.as_secs())
    }

    /// The part of an account that must not depend on the order, with the ids of the life. Packs are left
    /// out: a pack that arrives after a newer renewal is granted in full on purpose.
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
        let compared = json!({
            "tier": account["tier"],
            "access_until": account["access_until"],
            "subscriptions": account["subscriptions"],
            "signup": account["buckets"]["signup"],
            "plans": account["buckets"]["subscriptions"],
            "grants": grants,
        });
        Ok(serde_json::from_str(&compared.to_string().replace(name, &seed_of(life)))?)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let request = Request::get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        let (status, body) = self.client.send(request.body(Vec::new())?).await?;
        match status {
            StatusCode::OK => Ok(Some(serde_json::from_slice(&body)?)),
            StatusCode::NOT_FOUND => Ok(None),
            other => bail!("GET {path} answered {other}"),
        }
    }
}

/// The seed as every id of a life contains it: `sub_<seed>_1`, `user_<seed>`.
fn seed_of(life: &Life) -> String {
    format!("{:x}", life.seed)
}

/// The event with the ids of another user.
fn about_user(life: &Life, sent: &LifeEvent, name: &str) -> String {
    let seed = seed_of(life);
    sent.body
        .replace(&format!("_{seed}_"), &format!("_{name}_"))
        .replace(&life.user, &life.user.replace(&seed, name))
}
