//! Measures the release binaries beside the alternatives. `bench/run` builds everything and starts this
//! program.
//!
//! One process is both Lambda (a Runtime API) and AWS (SQS and DynamoDB over TLS). It starts each arm and
//! sends a first event and then many, one at a time. The arms take turns in rounds, and ratios are computed
//! within a round, so that other load on the machine affects all arms. CPU times are the kernel's account of
//! the process, in nanoseconds. Do not trust wall times of a shared machine.
//!
//! Everything runs on one core. Lambda gives a seventh of a core to 256 MB. On a virtual machine, waking a
//! process on another core costs about 20 µs of the host, which counts as CPU time of the function. With two
//! cores, this cost hides the differences between the arms.

mod event;
mod lambda;
mod stub;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use hyper::body::Bytes;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::lambda::{Function, Runtime};
use crate::stub::{Requests, Stub};

/// Starts of each arm in a round, and events after the first.
const COLD: usize = 3;
const WARM: u32 = 300;
/// The delay of AWS's responses in the measurement of batches.
const DELAY: Duration = Duration::from_millis(5);

/// The kind of event that a function receives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Webhook,
    Worker,
}

/// One implementation of the job.
struct Arm {
    name: &'static str,
    kind: Kind,
    command: Vec<String>,
    /// The deployed file, if it is one file.
    artifact: Option<PathBuf>,
    /// Whether it trusts only the roots that it needs, and not all roots of the system.
    few_roots: bool,
}

/// The measurements of an arm in one round.
#[derive(Clone, Debug, Default)]
pub struct Measurement {
    pub cold_ms: f64,
    pub init_cpu_ms: f64,
    pub first_cpu_ms: f64,
    pub limited_first_ms: Option<f64>,
    pub warm_cpu_us: f64,
    pub p50_us: f64,
    pub peak_mb: f64,
    pub own_mb: f64,
    pub batch_cpu_us: Option<f64>,
    pub late_batch: Option<f64>,
    pub calls: f64,
    pub body_bytes: f64,
    pub header_bytes: f64,
    pub init_calls: BTreeMap<String, u32>,
}

/// A share of one CPU, as Lambda gives to 256 MB: a cgroup.
pub struct Limit(PathBuf);

impl Limit {
    const SHARE: f64 = 0.145;

    /// `None` if cgroups cannot be created, for example without root.
    fn new() -> Option<Self> {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        let period = 20_000.0;
        let quota = (period * Self::SHARE).round();
        if v1.is_dir() {
            let group = v1.join(format!("bench-{}", std::process::id()));
            std::fs::create_dir(&group).ok()?;
            std::fs::write(group.join("cpu.cfs_period_us"), format!("{period}")).ok()?;
            std::fs::write(group.join("cpu.cfs_quota_us"), format!("{quota}")).ok()?;
            return Some(Self(group));
        }
        let group = v2.join(format!("bench-{}", std::process::id()));
        std::fs::create_dir(&group).ok()?;
        std::fs::write(group.join("cpu.max"), format!("{quota} {period}")).ok()?;
        Some(Self(group))
    }

    fn put(&self, pid: Pid) -> anyhow::Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).context("the process cannot be limited")
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

struct Bench {
    runtime: Runtime,
    stub: Stub,
    env: Vec<(String, String)>,
    /// Files of trusted roots: the few that are needed, and all of the system.
    roots: [PathBuf; 2],
    limit: Option<Limit>,
    number: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    const USAGE: &str = "usage: harness ROUNDS|guard DIRECTORY [ARM...]";
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().context(USAGE)?;
    let built = PathBuf::from(arguments.next().context(USAGE)?);
    let only: Vec<String> = arguments.collect();
    let mut arms = arms(&built)?;
    stay_on_one_core()?;
    let mut bench = Bench::new().await?;
    if rounds == "guard" {
        return bench.guard(&arms).await;
    }
    let rounds: usize = rounds.parse().context(USAGE)?;
    arms.retain(|arm| only.is_empty() || only.iter().any(|name| arm.name.contains(name.as_str())));
    let mut taken: Vec<Vec<Measurement>> = vec![Vec::new(); arms.len()];
    for round in 0..rounds {
        // Alternate the direction: an arm that runs later in a round finds the machine as the others left it,
        // which alone changes its CPU by 3 to 10 %.
        let mut turns: Vec<_> = arms.iter().zip(&mut taken).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for (arm, taken) in turns {
            taken.push(bench.measure(arm).await.with_context(|| arm.name)?);
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    for (kind, title) in [
        (Kind::Webhook, "webhook: verify, one SendMessage"),
        (Kind::Worker, "worker: one read, one transaction"),
    ] {
        let columns: Vec<table::Column> = arms
            .iter()
            .zip(&taken)
            .filter(|(arm, _)| arm.kind == kind)
            .map(|(arm, taken)| arm.column(taken))
            .collect::<Result<_, _>>()?;
        table::print(title, &columns);
    }
    Ok(())
}

/// Pins this process and its children to the last core it may use.
fn stay_on_one_core() -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|core| allowed.is_set(*core).unwrap_or(false))
        .context("no core to run on")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    Ok(sched_setaffinity(this, &one)?)
}

fn arms(built: &Path) -> anyhow::Result<Vec<Arm>> {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("bench/")?.to_path_buf();
    let binary = |name, kind, profile: &str, file: &str| {
        let path = built.join(profile).join(file);
        Arm {
            name,
            kind,
            command: vec![path.display().to_string()],
            artifact: Some(path),
            few_roots: profile == "release",
        }
    };
    let node = |name, kind, file: &str| {
        let path = bench.join("peers/node/dist").join(file);
        Arm {
            name,
            kind,
            command: vec!["node".to_owned(), "--no-warnings".to_owned(), path.display().to_string()],
            artifact: Some(path),
            few_roots: false,
        }
    };
    let python = |name, kind, file: &str| {
        let interpreter = bench.join("peers/python/.venv/bin/python").display().to_string();
        Arm {
            name,
            kind,
            command: vec![interpreter, bench.join("peers/python").join(file).display().to_string()],
            artifact: None,
            few_roots: false,
        }
    };
    let all = vec![
        binary("floor", Kind::Webhook, "release", "floor"),
        binary("reference", Kind::Webhook, "release", "lean-webhook"),
        binary("tallyhook", Kind::Webhook, "release", "stripe-webhook"),
        binary("default Rust", Kind::Webhook, "plain", "default-webhook"),
        node("Node", Kind::Webhook, "webhook.mjs"),
        python("Python", Kind::Webhook, "webhook.py"),
        binary("floor", Kind::Worker, "release", "floor"),
        binary("reference", Kind::Worker, "release", "lean-worker"),
        binary("tallyhook", Kind::Worker, "release", "invoice-paid"),
        node("Node", Kind::Worker, "worker.mjs"),
        python("Python", Kind::Worker, "worker.py"),
    ];
    // An arm that is not built is left out with a message, so that Node and Python are optional.
    let (there, missing): (Vec<Arm>, Vec<Arm>) = all
        .into_iter()
        .partition(|arm| arm.command.iter().all(|part| !part.contains('/') || Path::new(part).exists()));
    for arm in missing {
        eprintln!("left out: {} ({})", arm.name, arm.command.join(" "));
    }
    Ok(there)
}

impl Bench {
    async fn new() -> anyhow::Result<Self> {
        let (runtime, stub) = (Runtime::start().await?, Stub::start().await?);
        let folder = std::env::temp_dir();
        let file = |name: &str, text: String| -> anyhow::Result<PathBuf> {
            let path = folder.join(format!("bench-{}-{name}.pem", std::process::id()));
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let amazon = include_str!("../../../common/aws/src/sdk/amazon-roots.pem");
        let system = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt")
            .context("the system's roots (package ca-certificates)")?;
        let roots = [
            file("few", format!("{amazon}\n{}", stub.ca_pem))?,
            file("all", format!("{system}\n{}", stub.ca_pem))?,
        ];
        let mut env: Vec<(String, String)> = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", "/tmp"),
            ("AWS_LAMBDA_FUNCTION_NAME", "bench"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "bench"),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "bench"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "bench"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("STRIPE_WEBHOOK_SECRET", event::SECRET),
            ("CATALOG_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/../../catalog.toml")),
            ("ACCOUNTS_TABLE", "tallyhook-accounts"),
            ("EVENTS_TABLE", "tallyhook-events"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        env.push(("AWS_ENDPOINT_URL".to_owned(), stub.url.clone()));
        for family in [
            "checkout-session",
            "customer-subscription",
            "invoice-paid",
            "invoice-payment-failed",
            "refund",
            "charge-dispute",
            "customer",
        ] {
            let name = format!("QUEUE_URL_{}", family.to_uppercase().replace('-', "_"));
            env.push((name, format!("{}/000000000000/tallyhook-{family}", stub.url)));
        }
        Ok(Self { runtime, stub, env, roots, limit: Limit::new(), number: 0 })
    }

    /// The environment of an arm: AWS_CA_BUNDLE is read by tallyhook, the references and boto3, SSL_CERT_FILE
    /// by rustls with the system's roots, NODE_EXTRA_CA_CERTS by Node.
    fn env(&self, arm: &Arm) -> Vec<(String, String)> {
        let [few, all] = &self.roots;
        let roots = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
        let bundle = roots("AWS_CA_BUNDLE", if arm.few_roots { few } else { all });
        let extra = [bundle, roots("SSL_CERT_FILE", all), roots("NODE_EXTRA_CA_CERTS", few)];
        self.env.iter().cloned().chain(extra).collect()
    }

    fn event(&mut self, kind: Kind) -> Vec<u8> {
        self.number += 1;
        let body = event::body(1, self.number);
        match kind {
            Kind::Webhook => event::request(&body),
            Kind::Worker => event::batch(&[body]),
        }
    }

    fn batch_of_ten(&mut self) -> Vec<u8> {
        self.number += 1;
        let bodies: Vec<String> = (0..10).map(|user| event::body(100 + user, self.number)).collect();
        event::batch(&bodies)
    }

    async fn measure(&mut self, arm: &Arm) -> anyhow::Result<Measurement> {
        let env = self.env(arm);
        self.stub.forget();
        self.number = 0;
        let mut limited = None;
        if let Some(limit) = self.limit.take() {
            let event = self.event(arm.kind);
            let (function, start, answer) =
                self.runtime.cold(&arm.command, &env, event, Some(&limit)).await?;
            check(&answer)?;
            limited = Some(ms(start.first));
            function.end().await?;
            self.limit = Some(limit);
        }
        let (mut starts, mut running, mut init) = (Vec::new(), None::<Function>, Requests::default());
        for _ in 0..COLD {
            if let Some(function) = running.take() {
                function.end().await?;
            }
            self.stub.take_requests();
            let event = self.event(arm.kind);
            let (function, start, answer) = self.runtime.cold(&arm.command, &env, event, None).await?;
            check(&answer)?;
            init = self.stub.take_requests();
            starts.push(start);
            running = Some(function);
        }
        let mut function = running.context("at least one start")?;

        let events: Vec<Vec<u8>> = (0..WARM).map(|_| self.event(arm.kind)).collect();
        let before = function.cpu()?;
        let mut walls = Vec::new();
        for event in events {
            let (same, answer, wall) = self.runtime.invoke(function, event).await?;
            check(&answer)?;
            walls.push(wall.as_secs_f64() * 1e6);
            function = same;
        }
        let warm_cpu = (function.cpu()? - before).as_secs_f64() * 1e6 / f64::from(WARM);
        let warm = self.stub.take_requests();
        let mut taken = Measurement {
            cold_ms: median(starts.iter().map(|start| ms(start.cold))),
            init_cpu_ms: median(starts.iter().map(|start| ms(start.init_cpu))),
            first_cpu_ms: median(starts.iter().map(|start| ms(start.first_cpu))),
            limited_first_ms: limited,
            warm_cpu_us: warm_cpu,
            p50_us: median(walls.into_iter()),
            calls: f64::from(warm.calls.values().sum::<u32>()) / f64::from(WARM),
            body_bytes: whole(warm.body_bytes) / f64::from(WARM),
            header_bytes: whole(warm.header_bytes) / f64::from(WARM),
            init_calls: init.calls,
            ..Measurement::default()
        };
        taken.peak_mb = whole(usize::try_from(function.peak_kib()?)?) / 1024.0;
        taken.own_mb = whole(usize::try_from(function.own_kib()?)?) / 1024.0;
        if arm.kind == Kind::Worker {
            function = self.batches(function, &mut taken).await?;
        }
        function.end().await?;
        Ok(taken)
    }

    /// Fails if a release binary has another number of calls, more memory, or a first event above 5 ms of
    /// CPU. The first event takes less than 2 ms. The entropy of aws-lc or a TLS handshake outside init would
    /// take more than 5 ms.
    async fn guard(&mut self, arms: &[Arm]) -> anyhow::Result<()> {
        let shipped: Vec<&Arm> = arms.iter().filter(|arm| arm.name == "tallyhook").collect();
        ensure!(shipped.len() == 2, "build stripe-webhook and invoice-paid with --release first");
        for arm in shipped {
            let taken = self.measure(arm).await?;
            let calls: Vec<String> =
                taken.init_calls.iter().map(|(name, count)| format!("{count} {name}")).collect();
            let (wanted, first, most_mb) = match arm.kind {
                Kind::Webhook => (1.0, "1 GetQueueAttributes, 1 SendMessage", 1.5),
                Kind::Worker => (2.0, "2 BatchGetItem, 1 TransactWriteItems", 2.0),
            };
            println!(
                "{}: {} calls per event, {:.0} + {:.0} bytes; {} until the first answer; \
                 first event {:.2} ms of CPU; {:.2} MB of its own, {:.1} MB with its binary",
                arm.command.join(" "),
                taken.calls,
                taken.body_bytes,
                taken.header_bytes,
                calls.join(", "),
                taken.first_cpu_ms,
                taken.own_mb,
                taken.peak_mb
            );
            ensure!((taken.calls - wanted).abs() < 1e-9, "{wanted} calls per event are expected");
            ensure!(calls.join(", ") == first, "until the first answer {first} are expected");
            ensure!(taken.first_cpu_ms < 5.0, "the first event must cost less than 5 ms of CPU");
            ensure!(taken.own_mb < most_mb, "memory without the binary must stay below {most_mb} MB");
        }
        Ok(())
    }

    /// Batches of ten: CPU of one, and its time compared with a single event when AWS answers late.
    async fn batches(&mut self, mut function: Function, taken: &mut Measurement) -> anyhow::Result<Function> {
        const BATCHES: u32 = 30;
        let before = function.cpu()?;
        for _ in 0..BATCHES {
            let batch = self.batch_of_ten();
            let (same, answer, _) = self.runtime.invoke(function, batch).await?;
            check(&answer)?;
            function = same;
        }
        taken.batch_cpu_us = Some((function.cpu()? - before).as_secs_f64() * 1e6 / f64::from(BATCHES));
        self.stub.delay(DELAY);
        let (mut single, mut ten) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let (one, many) = (self.event(Kind::Worker), self.batch_of_ten());
            for (batch, walls) in [(one, &mut single), (many, &mut ten)] {
                let (same, answer, wall) = self.runtime.invoke(function, batch).await?;
                check(&answer)?;
                walls.push(ms(wall));
                function = same;
            }
        }
        self.stub.delay(Duration::ZERO);
        taken.late_batch = Some(median(ten.into_iter()) / median(single.into_iter()));
        Ok(function)
    }
}

impl Arm {
    fn column(&self, taken: &[Measurement]) -> anyhow::Result<table::Column> {
        let (mut size, mut zip) = (None, None);
        if let Some(artifact) = &self.artifact {
            let bytes = std::fs::read(artifact)?;
            let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut packed, &bytes)?;
            (size, zip) = (Some(whole(bytes.len()) / 1e6), Some(whole(packed.finish()?.len()) / 1e6));
        }
        Ok(table::Column { name: self.name, taken: taken.to_vec(), size_mb: size, zip_mb: zip })
    }
}

/// Fails if the function did not do its job: an answer 400 would look fast.
fn check(answer: &Bytes) -> anyhow::Result<()> {
    let answer: serde_json::Value = serde_json::from_slice(answer)?;
    let failed = answer["batchItemFailures"].as_array().is_some_and(|failures| !failures.is_empty());
    ensure!(
        !failed && (answer["statusCode"] == 200 || answer["batchItemFailures"].is_array()),
        "the answer was {answer}"
    );
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn whole(number: usize) -> f64 {
    number as f64
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(values.len() / 2), at(values.len().saturating_sub(1) / 2))
}
