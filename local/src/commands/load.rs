//! `tallyhook load`: many signed events at a stack, some of them twice and all of them shuffled, and whether
//! each took effect once.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::body::Body;
use axum::http::{Request, StatusCode, Uri};
use clap::Args;
use common::signature::Secret;
use futures_util::future::try_join_all;
use local::client::Client;
use local::sample::Sample;
use local::stack::{APP_TOKEN, DEAD_LETTER_QUEUE};
use serde::Deserialize;
use serde_json::{Value, json};

use super::send::{default_secret, now, signed, webhook_url};

/// What the pack of the sample is worth.
const PACK_CREDITS: u64 = 1000;
/// So long nothing may happen before it counts as stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Post many purchases, wait until all queues are empty, and count
///
/// Each is a paid pack with ids of its own, for one of the users in turn. They are sent in a shuffled order,
/// and some a second time: the same event again, or another event about the same purchase. In the end the
/// credits of each user must have grown by exactly what the user bought; a purchase that is lost or applied
/// twice, or anything left in a queue, ends this with 1.
#[derive(Args)]
pub struct Load {
    /// How many purchases
    #[arg(long, value_name = "N", default_value_t = 3000, conflicts_with = "seconds")]
    events: u32,
    /// As many as can be sent in so many seconds
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// At most so many in a second
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// So many in a hundred are sent again
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    duplicates: u32,
    /// Each is sent at random among so many others
    #[arg(long, value_name = "N", default_value_t = 100)]
    shuffle: usize,
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

/// What is sent next: purchases from a window that is filled in order and emptied at random.
struct Plan {
    /// How many purchases at most.
    most: u32,
    until: Option<Instant>,
    duplicates: u32,
    shuffle: usize,
    rng: fastrand::Rng,
    /// Purchases that have entered the window.
    begun: u32,
    window: Vec<Delivery>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Delivery {
    purchase: u32,
    /// 1 is another event about the same purchase.
    event: u32,
}

/// What `GET /local/status` says of a stack on this machine.
#[derive(Default, Deserialize)]
struct Status {
    queues: Vec<Queue>,
    process: Option<Process>,
}

#[derive(Deserialize)]
struct Queue {
    name: String,
    visible: u32,
    in_flight: u32,
    delayed: u32,
    handed_out: u32,
}

#[derive(Deserialize)]
struct Process {
    memory_bytes: u64,
    cpu_ms: u32,
}

/// What the senders have done so far.
#[derive(Default)]
struct Sent {
    answered: AtomicU32,
    refused: AtomicU32,
    done: AtomicBool,
    /// How long each request that was taken waited for its answer.
    waits: Mutex<Vec<Duration>>,
}

impl Load {
    /// Sends, waits, counts and prints; whether everything was applied once and nothing is left.
    pub async fn run(self) -> anyhow::Result<bool> {
        ensure!(self.users > 0 && self.concurrency > 0, "--users and --concurrency must be at least 1");
        ensure!(
            self.rate != Some(0) && self.duplicates <= 100,
            "--rate must be at least 1, --duplicates at most 100"
        );
        let url = webhook_url(&self.url)?;
        let client = Client::for_url(&url)?;
        let secret = Secret::new(&self.secret.clone().unwrap_or_else(default_secret))?;
        let pack = Sample::find("checkout.session.completed.pack")?;
        let packs: Vec<Value> = (0..self.users)
            .map(|number| Ok(serde_json::from_slice(pack.about(&user(number))?.body())?))
            .collect::<anyhow::Result<_>>()?;
        let (packs, run) = (Arc::new(packs), now().unix());
        let (before, first) = (self.credits(&client).await?, self.status(&client).await?);
        let started = Instant::now();

        let until = self.seconds.map(|seconds| started + Duration::from_secs(seconds));
        let most = if until.is_some() { u32::MAX } else { self.events };
        let plan = Plan {
            most,
            until,
            duplicates: self.duplicates,
            shuffle: self.shuffle.max(1),
            rng: fastrand::Rng::new(),
            begun: 0,
            window: Vec::new(),
        };
        let (plan, sent, rate) = (Arc::new(Mutex::new(plan)), Arc::new(Sent::default()), self.rate);
        let senders = (0..self.concurrency).map(|_| {
            let (packs, plan, sent, client, url, secret) = (
                Arc::clone(&packs),
                Arc::clone(&plan),
                Arc::clone(&sent),
                client.clone(),
                url.clone(),
                secret.clone(),
            );
            tokio::spawn(async move {
                loop {
                    let next = plan.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(delivery) = next else { return anyhow::Ok(()) };
                    let place = usize::try_from(delivery.purchase)? % packs.len();
                    let purchase = delivery.sample(packs.get(place).context("a user")?.clone(), run)?;
                    if let Some(rate) = rate {
                        let due = started
                            + Duration::from_secs_f64(
                                f64::from(sent.answered.load(Ordering::Relaxed)) / f64::from(rate),
                            );
                        tokio::time::sleep_until(due.into()).await;
                    }
                    sent.deliver(&client, &url, &purchase, &secret).await?;
                }
            })
        });
        let senders: Vec<_> = senders.collect();
        let sending = async {
            try_join_all(senders.into_iter().map(|sender| async move { sender.await? })).await?;
            let (count, seconds) = (sent.answered(), started.elapsed().as_secs_f64());
            let (rate, refused) = (f64::from(count) / seconds, sent.refused.load(Ordering::Relaxed));
            super::say(format_args!(
                "{count} events answered 200 in {seconds:.1} s: {rate:.0}/s; {refused} times one had to be sent again"
            ))?;
            let waits = sent.waits();
            let [half, most, last] =
                [50, 99, 100].map(|percent| percentile(&waits, percent).as_secs_f64() * 1000.0);
            super::say(format_args!(
                "an answer took {half:.1} ms (p50), {most:.1} ms (p99), {last:.1} ms at most"
            ))?;
            sent.done.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let begun = || plan.lock().unwrap_or_else(PoisonError::into_inner).begun;
        tokio::try_join!(sending, self.watch(&client, &sent, &before, begun, started))?;
        let (purchases, seconds, last) =
            (begun(), started.elapsed().as_secs_f64(), self.status(&client).await?);
        super::say(format_args!(
            "{purchases} purchases worked off in {seconds:.1} s: {:.0}/s",
            f64::from(purchases) / seconds
        ))?;
        if let (Some(first), Some(last)) = (&first.process, &last.process) {
            let cpu_ms = f64::from(last.cpu_ms - first.cpu_ms) / f64::from(sent.answered().max(1));
            let (before, after) = (first.memory_bytes >> 20, last.memory_bytes >> 20);
            super::say(format_args!(
                "the stack's process: {cpu_ms:.2} ms of CPU an event, {before} MB before, {after} MB after"
            ))?;
        }
        let dead = last.dead_letters().saturating_sub(first.dead_letters());
        if dead > 0 {
            super::say(format_args!("{dead} messages went to the dead-letter queue"))?;
        }
        Ok(self.count(&client, &before, purchases).await? && dead == 0)
    }

    /// Whether each user has what the user bought, no more and no less.
    async fn count(&self, client: &Client, before: &[u64], purchases: u32) -> anyhow::Result<bool> {
        let after = self.credits(client).await?;
        let mut wrong = 0;
        for ((number, before), after) in (0..self.users).zip(before).zip(&after) {
            let bought =
                u64::from(purchases / self.users + u32::from(number < purchases % self.users)) * PACK_CREDITS;
            if *after != before + bought {
                wrong += 1;
                super::say(format_args!(
                    "{} had {before} credits, bought {bought} and has {after}",
                    user(number)
                ))?;
            }
        }
        let (had, has) = (before.iter().sum::<u64>(), after.iter().sum::<u64>());
        let bought = u64::from(purchases) * PACK_CREDITS;
        super::say(format_args!(
            "{} credits granted, {bought} bought; {wrong} balances are wrong",
            has.saturating_sub(had)
        ))?;
        Ok(wrong == 0)
    }

    /// Tells how far it is, until all is sent and worked off.
    async fn watch(
        &self,
        client: &Client,
        sent: &Sent,
        before: &[u64],
        begun: impl Fn() -> u32,
        started: Instant,
    ) -> anyhow::Result<()> {
        let (mut known, mut moved, mut told) = ((0, 0, 0), Instant::now(), (Instant::now(), 0));
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let status = self.status(client).await?;
            let (answered, waiting) = (sent.answered(), status.waiting());
            let is_local = !status.queues.is_empty();
            let granted = if is_local { 0 } else { self.credits(client).await?.iter().sum::<u64>() };
            let is_done = if is_local {
                waiting == 0
            } else {
                granted >= before.iter().sum::<u64>() + u64::from(begun()) * PACK_CREDITS
            };
            if is_done && sent.done.load(Ordering::Relaxed) {
                return Ok(());
            }
            if known != (answered, status.handed_out(), granted) {
                (known, moved) = ((answered, status.handed_out(), granted), Instant::now());
            } else if moved.elapsed() > STUCK {
                bail!(
                    "{answered} were answered, {waiting} wait in queues, and nothing happened for {} s",
                    STUCK.as_secs()
                );
            }
            if told.0.elapsed() >= Duration::from_secs(10) {
                let done = answered.saturating_sub(waiting);
                let rate = f64::from(done.saturating_sub(told.1)) / told.0.elapsed().as_secs_f64();
                let memory = status
                    .process
                    .map_or_else(String::new, |process| format!(", {} MB", process.memory_bytes >> 20));
                let seconds = started.elapsed().as_secs();
                super::say(format_args!(
                    "{seconds:>4} s: {answered} sent, {waiting} in queues, {rate:.0}/s worked off{memory}"
                ))?;
                told = (Instant::now(), done);
            }
        }
    }

    /// How the stack is; empty for one that is not on this machine.
    async fn status(&self, client: &Client) -> anyhow::Result<Status> {
        let request = Request::get(format!("{}/local/status", self.front()?)).body(Body::empty())?;
        let (status, answer) = client.send(request).await?;
        Ok(if status == StatusCode::OK { serde_json::from_slice(&answer)? } else { Status::default() })
    }

    /// The credits of each user.
    async fn credits(&self, client: &Client) -> anyhow::Result<Vec<u64>> {
        let front = self.front()?;
        let mut credits = Vec::new();
        for number in 0..self.users {
            let request = Request::get(format!("{front}/users/{}", user(number)))
                .header("authorization", format!("Bearer {}", self.token))
                .body(Body::empty())?;
            let (status, answer) = client.send(request).await?;
            credits.push(match status {
                StatusCode::NOT_FOUND => 0,
                StatusCode::OK => {
                    serde_json::from_slice::<Value>(&answer)?["credits"].as_u64().context("no credits")?
                }
                _ => bail!("GET /users/{}: {status} {}", user(number), String::from_utf8_lossy(&answer)),
            });
        }
        Ok(credits)
    }

    fn front(&self) -> anyhow::Result<String> {
        let uri: Uri = self.url.parse()?;
        Ok(format!(
            "{}://{}",
            uri.scheme_str().unwrap_or("http"),
            uri.authority().context("--url names no host")?
        ))
    }
}

impl Sent {
    /// Sends until it is taken, as Stripe does; what is wrong with a request for good ends all.
    async fn deliver(
        &self,
        client: &Client,
        url: &str,
        event: &Sample,
        secret: &Secret,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let request = signed(url, event, secret)?;
            let sent = Instant::now();
            let (status, answer) = client.send(request).await?;
            if status.is_success() {
                self.waits.lock().unwrap_or_else(PoisonError::into_inner).push(sent.elapsed());
                self.answered.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            let passes = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            ensure!(passes && started.elapsed() < STUCK, "{status} {}", String::from_utf8_lossy(&answer));
            self.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn answered(&self) -> u32 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Sorted.
    fn waits(&self) -> Vec<Duration> {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits.sort_unstable();
        waits
    }
}

/// The least of `sorted` that so many in a hundred do not exceed; zero if there are none.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

impl Status {
    /// Messages that are not worked off; dead letters are counted by themselves.
    fn waiting(&self) -> u32 {
        let queues = self.queues.iter().filter(|queue| queue.name != DEAD_LETTER_QUEUE);
        queues.map(|queue| queue.visible + queue.in_flight + queue.delayed).sum()
    }

    fn handed_out(&self) -> u32 {
        self.queues.iter().map(|queue| queue.handed_out).sum()
    }

    /// All there ever were: a function takes them out again.
    fn dead_letters(&self) -> u32 {
        let queues = self.queues.iter().filter(|queue| queue.name == DEAD_LETTER_QUEUE);
        queues.map(|queue| queue.handed_out + queue.visible + queue.delayed).sum()
    }
}

impl Iterator for Plan {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        let goes_on = self.until.is_none_or(|until| Instant::now() < until);
        while goes_on && self.begun < self.most && self.window.len() < self.shuffle {
            self.window.push(Delivery { purchase: self.begun, event: 0 });
            if self.rng.u32(..100) < self.duplicates {
                self.window.push(Delivery { purchase: self.begun, event: self.rng.u32(..2) });
            }
            self.begun += 1;
        }
        if self.window.is_empty() {
            None
        } else {
            Some(self.window.swap_remove(self.rng.usize(..self.window.len())))
        }
    }
}

impl Delivery {
    /// The pack once more, with ids of its own.
    fn sample(self, mut pack: Value, run: i64) -> anyhow::Result<Sample> {
        let own = format!("load{run}n{}", self.purchase);
        pack["id"] = json!(format!("evt_{own}e{}", self.event));
        pack["data"]["object"]["id"] = json!(format!("cs_test_{own}"));
        pack["data"]["object"]["payment_intent"] = json!(format!("pi_{own}"));
        Ok(Sample::of(serde_json::to_vec_pretty(&pack)?))
    }
}

fn user(number: u32) -> String {
    format!("load_{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purchase_is_sent_some_twice_and_none_in_order() {
        let rng = fastrand::Rng::with_seed(1);
        let plan =
            Plan { most: 1_000, until: None, duplicates: 20, shuffle: 50, rng, begun: 0, window: Vec::new() };
        let sent: Vec<Delivery> = plan.collect();
        let mut purchases: Vec<u32> =
            sent.iter().filter(|delivery| delivery.event == 0).map(|delivery| delivery.purchase).collect();
        assert!(!purchases.is_sorted() && (1_150..1_250).contains(&sent.len()), "{}", sent.len());
        assert!(sent.iter().any(|delivery| delivery.event == 1) && purchases.len() > 1_000);
        purchases.sort_unstable();
        purchases.dedup();
        assert_eq!(purchases, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_percentile_is_one_of_the_waits() {
        let waits: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&waits, percent).as_millis()), [100, 198, 200]);
        assert_eq!((percentile(&waits[..1], 99).as_millis(), percentile(&[], 50)), (1, Duration::ZERO));
    }

    #[test]
    fn when_the_time_is_over_nothing_begins_and_what_began_is_sent() {
        let rng = fastrand::Rng::with_seed(1);
        let window = vec![Delivery { purchase: 0, event: 0 }; 3];
        let plan = Plan {
            most: u32::MAX,
            until: Some(Instant::now()),
            duplicates: 0,
            shuffle: 50,
            rng,
            begun: 1,
            window,
        };
        assert_eq!(plan.count(), 3);
    }
}
