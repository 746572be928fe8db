//! `fuzz-order`: the events of random customers, sent in order and sent shuffled with duplicates, must lead
//! to the same account.

use std::collections::BTreeSet;

use anyhow::Context;
use axum::http::Method;
use cli::at_least_one;
use cli::local_stack;
use cli::output::{clear_progress, print_line, show_progress};
use cli::send::default_secret;
use local::life::{Life, LifeEvent, Options};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;

use super::running_stack::{RunningStack, app_token};

/// Send the events of random customers in order and shuffled, and compare the accounts
///
/// Each case is the life of one customer (buy, renew, upgrade, refund, dispute, cancel, ...) as events that
/// Stripe would send. One user gets the events in order. Another user gets them all at once, shuffled, some
/// of them twice. Both accounts must be equal in the end: tier, subscriptions, plan credits, paid documents.
/// A failing case is reduced to the fewest events that still fail.
#[derive(clap::Args)]
pub struct FuzzOrder {
    /// Number of customers
    #[arg(long, default_value_t = 20, value_parser = at_least_one::<u64>)]
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
    stack: RunningStack,
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
            stack: RunningStack::new(
                &self.url,
                app_token(),
                &self.secret.clone().unwrap_or_else(default_secret),
            )?,
            run: format!("{:x}", fastrand::u32(..)),
        };
        let (mut done, mut failed) = (0, 0);
        for seed in self.seed..self.seed.saturating_add(self.cases) {
            let life = Life::new(seed, &catalog, Options { noise: false, ..Options::default() });
            let all: Vec<&LifeEvent> = life.events.iter().collect();
            let difference = player.difference(&life, &all).await?;
            done += 1;
            show_progress(&format!("{done} of {} customers, {failed} differ", self.cases));
            let Some(difference) = difference else { continue };
            failed += 1;
            clear_progress();
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
        clear_progress();
        print_line(format_args!("{} customers: the accounts are equal; {failed} differ", done - failed))?;
        Ok(failed == 0)
    }
}

impl Player {
    /// Sends the events for two users, in order and shuffled. `None` when both accounts are equal.
    async fn difference(&self, life: &Life, events: &[&LifeEvent]) -> anyhow::Result<Option<String>> {
        let mut rng = fastrand::Rng::with_seed(life.seed);
        let (ordered, shuffled) = (self.name(&mut rng), self.name(&mut rng));
        for sent in events {
            self.stack.post(about_user(life, sent, &ordered).as_bytes()).await?;
            self.stack.wait_until_idle(false).await?;
        }
        let mut mixed: Vec<&LifeEvent> = events.to_vec();
        mixed.extend(events.iter().filter(|_| rng.u8(..4) == 0));
        rng.shuffle(&mut mixed);
        for sent in mixed {
            self.stack.post(about_user(life, sent, &shuffled).as_bytes()).await?;
        }
        self.stack.wait_until_idle(true).await?;
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

    /// The part of an account that must not depend on the order, with the ids of the life. Packs are left
    /// out: a pack that arrives after a newer renewal is granted in full on purpose. Of the ledger, the paid
    /// documents are compared. Trials, plan changes and refunds depend on the order: an entry that a newer
    /// fact has already replaced is not written.
    async fn account(&self, life: &Life, name: &str) -> anyhow::Result<Value> {
        let user = life.user.replace(&seed_of(life), name);
        let Some(account) = self.stack.account(&user).await? else { return Ok(Value::Null) };
        let is_document = |key: &&str| key.starts_with("invoice#") || key.starts_with("session#");
        let mut documents = BTreeSet::new();
        let mut next = Some(String::new());
        while let Some(cursor) = next {
            let page = self.stack.app(Method::GET, &format!("{user}/ledger{cursor}"), None).await?;
            let entries = page["entries"].as_array().into_iter().flatten();
            let keys = entries.filter_map(|entry| entry["key"].as_str());
            documents.extend(keys.filter(is_document).map(str::to_owned));
            next = page["next"].as_str().map(|key| format!("?next={}", key.replace('#', "%23")));
        }
        let compared = json!({
            "tier": account["tier"],
            "access_until": account["access_until"],
            "subscriptions": account["subscriptions"],
            "signup": account["buckets"]["signup"],
            "plans": account["buckets"]["subscriptions"],
            "documents": documents,
        });
        Ok(serde_json::from_str(&compared.to_string().replace(name, &seed_of(life)))?)
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
