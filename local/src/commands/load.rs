//! `load`: posts many signed purchases, shuffled and some of them twice, and checks that each counts once.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::http::{Request, StatusCode, Uri};
use clap::Args;
use cli::at_least_one;
use cli::client::Client;
use cli::local_stack;
use cli::output::print_line;
use cli::sample::Sample;
use cli::send::{default_secret, now, signed_request, webhook_url};
use futures_util::future::try_join_all;
use local::stack::DEAD_LETTER_QUEUE;
use serde::Deserialize;
use serde_json::{Value, json};
use tallyhook_core::signature::Secret;

/// The credits of the sample's pack.
const PACK_CREDITS: u64 = 1000;
/// Without progress for this time, the command fails.
const MAX_STANDSTILL: Duration = Duration::from_secs(60);

/// Post many purchases, wait until all queues are empty, and check every balance
///
/// Each purchase is a paid pack with ids of its own, for one of the users in turn. The purchases are sent in
/// a shuffled order, and some of them twice: the same event again, or another event about the same purchase.
/// In the end the credits of each user must have grown by exactly what the user bought. The exit code is 1
/// when a purchase is lost or applied twice, or a message went to the dead-letter queue.
#[derive(Args)]
pub struct Load {
    /// Number of purchases
    #[arg(long, value_name = "N", default_value_t = 3000, conflicts_with = "seconds", value_parser = at_least_one::<u32>)]
    events: u32,
    /// Send purchases for this number of seconds, instead of a fixed number
    #[arg(long, value_name = "S", value_parser = at_least_one::<u64>)]
    seconds: Option<u64>,
    /// Maximum number of requests in a second
    #[arg(long, value_name = "N", value_parser = at_least_one::<u32>)]
    rate: Option<u32>,
    /// Percentage of the purchases that are sent twice
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    duplicates: u32,
    /// Number of purchases among which the next request is chosen at random
    #[arg(long, value_name = "N", default_value_t = 100)]
    shuffle: usize,
    /// Number of users
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one::<u32>)]
    users: u32,
    /// Maximum number of requests at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one::<u32>)]
    concurrency: u32,
    /// The deployment
    #[arg(long, default_value = local_stack::URL)]
    url: String,
    /// Sign with this secret [default: the first of STRIPE_WEBHOOK_SECRET, else whsec_local]
    #[arg(long, allow_hyphen_values = true)]
    secret: Option<String>,
    /// The app's token
    #[arg(long, env = "APP_API_TOKEN", default_value = local_stack::APP_TOKEN, hide_env_values = true)]
    token: String,
}

/// Chooses the next request: purchases enter a window in order and leave it at random.
struct EventPlan {
    max_purchases: u32,
    until: Option<Instant>,
    duplicates: u32,
    shuffle: usize,
    rng: fastrand::Rng,
    /// Number of purchases that have entered the window.
    started: u32,
    window: Vec<Delivery>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Delivery {
    purchase: u32,
    /// 0 is the first event about the purchase, 1 another one.
    event: u32,
}

/// The answer of `GET /local/status`.
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
struct SendStatistics {
    accepted: AtomicU32,
    rejected: AtomicU32,
    done: AtomicBool,
    /// The time to the answer of each accepted request.
    latencies: Mutex<Vec<Duration>>,
}

impl Load {
    /// True when every purchase was applied once and no message is a dead letter.
    pub async fn run(self) -> anyhow::Result<bool> {
        ensure!(self.duplicates <= 100, "--duplicates must be at most 100");
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
        let max_purchases = if until.is_some() { u32::MAX } else { self.events };
        let plan = EventPlan {
            max_purchases,
            until,
            duplicates: self.duplicates,
            shuffle: self.shuffle.max(1),
            rng: fastrand::Rng::new(),
            started: 0,
            window: Vec::new(),
        };
        let (plan, sent, rate) = (Arc::new(Mutex::new(plan)), Arc::new(SendStatistics::default()), self.rate);
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
                        let due =
                            started + Duration::from_secs_f64(f64::from(sent.accepted()) / f64::from(rate));
                        tokio::time::sleep_until(due.into()).await;
                    }
                    sent.deliver(&client, &url, &purchase, &secret).await?;
                }
            })
        });
        let senders: Vec<_> = senders.collect();
        let sending = async {
            try_join_all(senders.into_iter().map(|sender| async move { sender.await? })).await?;
            let (count, seconds) = (sent.accepted(), started.elapsed().as_secs_f64());
            let (rate, rejected) = (f64::from(count) / seconds, sent.rejected.load(Ordering::Relaxed));
            print_line(format_args!(
                "{count} events accepted in {seconds:.1} s: {rate:.0}/s; {rejected} requests had to be repeated"
            ))?;
            let latencies = sent.sorted_latencies();
            let [median, p99, max] =
                [50, 99, 100].map(|percent| percentile(&latencies, percent).as_secs_f64() * 1000.0);
            print_line(format_args!(
                "latency {median:.1} ms (p50), {p99:.1} ms (p99), {max:.1} ms (maximum)"
            ))?;
            sent.done.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let purchases = || plan.lock().unwrap_or_else(PoisonError::into_inner).started;
        tokio::try_join!(sending, self.watch(&client, &sent, &before, purchases, started))?;
        let (purchases, seconds, last) =
            (purchases(), started.elapsed().as_secs_f64(), self.status(&client).await?);
        print_line(format_args!(
            "{purchases} purchases processed in {seconds:.1} s: {:.0}/s",
            f64::from(purchases) / seconds
        ))?;
        if let (Some(first), Some(last)) = (&first.process, &last.process) {
            let cpu_ms = f64::from(last.cpu_ms - first.cpu_ms) / f64::from(sent.accepted().max(1));
            let (before, after) = (first.memory_bytes >> 20, last.memory_bytes >> 20);
            print_line(format_args!(
                "the stack's process: {cpu_ms:.2} ms of CPU per event, {before} MB before, {after} MB after"
            ))?;
        }
        let dead = last.dead_letters().saturating_sub(first.dead_letters());
        if dead > 0 {
            print_line(format_args!("{dead} messages went to the dead-letter queue"))?;
        }
        Ok(self.check_balances(&client, &before, purchases).await? && dead == 0)
    }

    /// True when the balance of each user grew by exactly what the user bought.
    async fn check_balances(&self, client: &Client, before: &[u64], purchases: u32) -> anyhow::Result<bool> {
        let after = self.credits(client).await?;
        let mut wrong = 0;
        for ((number, before), after) in (0..self.users).zip(before).zip(&after) {
            let bought =
                u64::from(purchases / self.users + u32::from(number < purchases % self.users)) * PACK_CREDITS;
            if *after != before + bought {
                wrong += 1;
                print_line(format_args!(
                    "{} had {before} credits, bought {bought} and has {after}",
                    user(number)
                ))?;
            }
        }
        let (had, has) = (before.iter().sum::<u64>(), after.iter().sum::<u64>());
        let bought = u64::from(purchases) * PACK_CREDITS;
        print_line(format_args!(
            "{} credits granted, {bought} bought; {wrong} balances are wrong",
            has.saturating_sub(had)
        ))?;
        Ok(wrong == 0)
    }

    /// Prints the progress until everything is sent and processed.
    async fn watch(
        &self,
        client: &Client,
        sent: &SendStatistics,
        before: &[u64],
        purchases: impl Fn() -> u32,
        started: Instant,
    ) -> anyhow::Result<()> {
        let (mut progress, mut progress_at) = ((0, 0, 0), Instant::now());
        let (mut printed_at, mut printed_count) = (Instant::now(), 0);
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let status = self.status(client).await?;
            let (accepted, waiting) = (sent.accepted(), status.waiting());
            let is_local = !status.queues.is_empty();
            let granted = if is_local { 0 } else { self.credits(client).await?.iter().sum::<u64>() };
            let is_done = if is_local {
                waiting == 0
            } else {
                granted >= before.iter().sum::<u64>() + u64::from(purchases()) * PACK_CREDITS
            };
            if is_done && sent.done.load(Ordering::Relaxed) {
                return Ok(());
            }
            let current = (accepted, status.handed_out(), granted);
            if progress != current {
                (progress, progress_at) = (current, Instant::now());
            } else if progress_at.elapsed() > MAX_STANDSTILL {
                bail!(
                    "no progress for {} s: {accepted} events accepted, {waiting} messages in queues",
                    MAX_STANDSTILL.as_secs()
                );
            }
            if printed_at.elapsed() >= Duration::from_secs(10) {
                let processed = accepted.saturating_sub(waiting);
                let rate =
                    f64::from(processed.saturating_sub(printed_count)) / printed_at.elapsed().as_secs_f64();
                let memory = status
                    .process
                    .map_or_else(String::new, |process| format!(", {} MB", process.memory_bytes >> 20));
                let seconds = started.elapsed().as_secs();
                print_line(format_args!(
                    "{seconds:>4} s: {accepted} sent, {waiting} in queues, {rate:.0}/s processed{memory}"
                ))?;
                (printed_at, printed_count) = (Instant::now(), processed);
            }
        }
    }

    /// The status of a local stack. Without queues for a deployment on AWS, which has no such route.
    async fn status(&self, client: &Client) -> anyhow::Result<Status> {
        let request = Request::get(format!("{}/local/status", self.front()?)).body(Vec::new())?;
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
                .body(Vec::new())?;
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
            uri.authority().context("--url has no host")?
        ))
    }
}

impl SendStatistics {
    /// Sends an event until it is accepted, as Stripe does. Fails on an answer that a repetition cannot
    /// change.
    async fn deliver(
        &self,
        client: &Client,
        url: &str,
        event: &Sample,
        secret: &Secret,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let request = signed_request(url, event.body(), secret)?;
            let sent = Instant::now();
            let (status, answer) = client.send(request).await?;
            if status.is_success() {
                self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(sent.elapsed());
                self.accepted.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            let is_transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            ensure!(
                is_transient && started.elapsed() < MAX_STANDSTILL,
                "{status} {}",
                String::from_utf8_lossy(&answer)
            );
            self.rejected.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::Relaxed)
    }

    fn sorted_latencies(&self) -> Vec<Duration> {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        latencies.sort_unstable();
        latencies
    }
}

/// The smallest of `sorted` that `percent` of them do not exceed. Zero without values.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

impl Status {
    /// Messages that are not processed yet, without dead letters.
    fn waiting(&self) -> u32 {
        let queues = self.queues.iter().filter(|queue| queue.name != DEAD_LETTER_QUEUE);
        queues.map(|queue| queue.visible + queue.in_flight + queue.delayed).sum()
    }

    fn handed_out(&self) -> u32 {
        self.queues.iter().map(|queue| queue.handed_out).sum()
    }

    /// All dead letters since the start. The function `dead-letter` takes them out of the queue.
    fn dead_letters(&self) -> u32 {
        let queues = self.queues.iter().filter(|queue| queue.name == DEAD_LETTER_QUEUE);
        queues.map(|queue| queue.handed_out + queue.visible + queue.delayed).sum()
    }
}

impl Iterator for EventPlan {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        let is_open = self.until.is_none_or(|until| Instant::now() < until);
        while is_open && self.started < self.max_purchases && self.window.len() < self.shuffle {
            self.window.push(Delivery { purchase: self.started, event: 0 });
            if self.rng.u32(..100) < self.duplicates {
                self.window.push(Delivery { purchase: self.started, event: self.rng.u32(..2) });
            }
            self.started += 1;
        }
        if self.window.is_empty() {
            None
        } else {
            Some(self.window.swap_remove(self.rng.usize(..self.window.len())))
        }
    }
}

impl Delivery {
    /// The sample with the ids of this purchase.
    fn sample(self, mut pack: Value, run: i64) -> anyhow::Result<Sample> {
        let suffix = format!("load{run}n{}", self.purchase);
        pack["id"] = json!(format!("evt_{suffix}e{}", self.event));
        pack["data"]["object"]["id"] = json!(format!("cs_test_{suffix}"));
        pack["data"]["object"]["payment_intent"] = json!(format!("pi_{suffix}"));
        Ok(Sample::from_body(serde_json::to_vec_pretty(&pack)?))
    }
}

fn user(number: u32) -> String {
    format!("load_{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purchase_is_sent_and_some_are_sent_twice() {
        let rng = fastrand::Rng::with_seed(1);
        let plan = EventPlan {
            max_purchases: 1_000,
            until: None,
            duplicates: 20,
            shuffle: 50,
            rng,
            started: 0,
            window: Vec::new(),
        };
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
    fn a_percentile_is_one_of_the_values() {
        let latencies: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&latencies, percent).as_millis()), [100, 198, 200]);
        assert_eq!((percentile(&latencies[..1], 99).as_millis(), percentile(&[], 50)), (1, Duration::ZERO));
    }

    #[test]
    fn after_the_time_limit_only_started_purchases_are_sent() {
        let rng = fastrand::Rng::with_seed(1);
        let window = vec![Delivery { purchase: 0, event: 0 }; 3];
        let plan = EventPlan {
            max_purchases: u32::MAX,
            until: Some(Instant::now()),
            duplicates: 0,
            shuffle: 50,
            rng,
            started: 1,
            window,
        };
        assert_eq!(plan.count(), 3);
    }
}
