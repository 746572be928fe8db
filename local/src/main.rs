//! The command `tallyhook`: the local stack, and tools around it.
#![expect(clippy::print_stderr, reason = "a command says what went wrong to the person who started it")]

mod check_signature;
mod demo;
mod fuzz_order;
mod load;
mod operator;
mod send;
mod trigger;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use local::stack::functions::{self, Part, Trigger};
use local::stack::{ADMIN_TOKEN, APP_TOKEN, Functions, Options, STRIPE_KEY, Stack, WEBHOOK_SECRET};
use tallyhook_aws::env::Env;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where `cargo run` without flags listens.
const DEFAULT_URL: &str = "http://127.0.0.1:9000";

/// Stripe webhooks to exactly-once tier and credit updates: the whole deployment on this machine
///
/// Without a command it starts the local stack and stays: the webhook, the app's API, the queues, the
/// workers, the schedules, DynamoDB and SQS, and a Stripe to ask, in one process, without AWS, Docker or a
/// Stripe account. The functions' variables (STRIPE_WEBHOOK_SECRET, STRIPE_SECRET_KEY, RETRY_DELAYS_SECONDS,
/// APP_API_TOKEN, LOG_LEVEL, ...) are taken from the environment; those that say where AWS is are not.
#[derive(Parser)]
#[command(name = "tallyhook", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    start: Start,
}

#[derive(Subcommand)]
enum Command {
    Send(send::Send),
    Demo(demo::Demo),
    FuzzOrder(fuzz_order::FuzzOrder),
    Load(load::Load),
    Trigger(trigger::Trigger),
    CheckSignature(check_signature::CheckSignature),
    #[command(flatten)]
    Operator(operator::Operator),
}

#[derive(clap::Args)]
struct Start {
    /// Keep nothing: accounts, events and queues are gone when it stops
    #[arg(long, conflicts_with = "data")]
    memory: bool,
    /// The folder that keeps accounts, events and queues
    #[arg(long, value_name = "DIR", default_value = ".tallyhook")]
    data: PathBuf,
    /// Port of the webhook and the app's API; 0 takes a free one
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Port of DynamoDB and SQS; 0 takes a free one
    #[arg(long, default_value_t = 9001)]
    aws_port: u16,
    /// Run the binaries that are shipped, behind Lambda's Runtime API, instead of handlers in this process.
    /// They are built if need be
    #[arg(long)]
    real_binaries: bool,
    /// Take these binaries from a folder instead of building them; implies --real-binaries
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// What is sold [default: CATALOG_FILE, else catalog.toml of the source tree]
    #[arg(long, value_name = "FILE")]
    catalog: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let operates = matches!(cli.command, Some(Command::Operator(_)));
    let done = match cli.command {
        None => start(cli.start).await.map(|()| true),
        Some(Command::Send(send)) => send.run().await,
        Some(Command::Demo(demo)) => demo.run().await,
        Some(Command::FuzzOrder(fuzz)) => fuzz.run().await,
        Some(Command::Load(load)) => load.run().await,
        Some(Command::Trigger(trigger)) => trigger.run().await,
        Some(Command::CheckSignature(check)) => check.run(),
        Some(Command::Operator(operator)) => operator.run().await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever read the output has seen enough: `tallyhook demo | head`.
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tallyhook: {error:#}");
            // An operator's scripts tell "not in order" (1) from "could not be done".
            if operates { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Prints a line.
fn say(line: std::fmt::Arguments) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

async fn start(start: Start) -> anyhow::Result<()> {
    // Before anything runs, so that no signal finds a half-started stack that it would leave behind.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut env = Env::of_process();
    log(&env);
    if let Some(catalog) = start.catalog() {
        env.set("CATALOG_FILE", catalog.to_string_lossy());
    }
    let options = Options {
        data: (!start.memory).then(|| start.data.clone()),
        port: start.port,
        aws_port: start.aws_port,
        env: env.clone(),
        functions: start.functions(),
        quiet: false,
        is_app: true,
        ..Options::default()
    };
    let stack = tokio::select! {
        stack = Stack::start(options) => stack?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    // It runs on without a reader.
    let _ = say(format_args!("{}", welcome(&start, &env, &stack)));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let _ = say(format_args!(
        "\nstopping: what is being worked on is finished first (once more to stop at once)"
    ));
    tokio::select! {
        () = stack.stop() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

impl Start {
    fn catalog(&self) -> Option<PathBuf> {
        let of_source = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../catalog.toml");
        match &self.catalog {
            Some(catalog) => Some(catalog.clone()),
            None if Env::of_process().get("CATALOG_FILE").is_some() => None,
            None => Some(of_source()).filter(|file| file.is_file()),
        }
    }

    fn functions(&self) -> Functions {
        match &self.binaries {
            Some(folder) => Functions::Folder(folder.clone()),
            None if self.real_binaries => Functions::Built,
            None => Functions::InProcess,
        }
    }
}

/// What a person needs to know to use it.
fn welcome(start: &Start, env: &Env, stack: &Stack) -> String {
    // A secret of the person's own is not for the screen.
    let shown = |name: &str, default: &str| {
        if env.get(name).is_some() { format!("${name}") } else { default.to_owned() }
    };
    let (front, app) = (&stack.front_url, shown("APP_API_TOKEN", APP_TOKEN));
    let url = if front == DEFAULT_URL { String::new() } else { format!(" --url {front}") };
    let data =
        if start.memory { "in memory".to_owned() } else { format!("kept in {}", start.data.display()) };
    let functions = match start.functions() {
        Functions::InProcess => "in this process",
        Functions::Built | Functions::Folder(_) => "the shipped binaries",
    };
    let stripe = match &stack.stripe {
        Some((url, _)) => format!("{url}   a fake one, key {STRIPE_KEY}; it knows what the webhook got"),
        None => "$STRIPE_API_BASE with $STRIPE_SECRET_KEY".to_owned(),
    };
    format!(
        "tallyhook is running; Ctrl-C stops it. Open {front} and buy something.\n\n\
         \x20 webhook    {front}/webhooks/stripe   secret {}\n\
         \x20 app's API  {front}/users/{{id}}   bearer token {app}\n\
         \x20 admin      {front}/admin   bearer token {}\n\
         \x20 AWS        {}   DynamoDB and SQS, any credentials\n\
         \x20 Stripe     {stripe}\n\
         \x20 data       {data}\n\
         \x20 functions  {functions}: {}\n\
         \x20 schedules  {}\n\n\
         Try, in another terminal:\n\
         \x20 cargo run -- demo{url}                  a customer's life, step by step\n\
         \x20 cargo run -- send invoice.paid{url}     one signed event\n\
         \x20 curl -H 'authorization: Bearer {app}' {front}/users/user_123\n\
         \x20 cargo run -- trigger reconcile{url}     what a schedule does, at once\n\
         \x20 stripe listen --forward-to {}/webhooks/stripe   then start this with STRIPE_WEBHOOK_SECRET set to the secret it prints\n",
        shown("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET),
        shown("ADMIN_API_TOKEN", ADMIN_TOKEN),
        stack.aws_url,
        named(|trigger| !matches!(trigger, Trigger::Every(_))),
        named(|trigger| matches!(trigger, Trigger::Every(_))),
        front.trim_start_matches("http://"),
    )
}

/// The functions with such a trigger, and the period of those that have one.
fn named(of: impl Fn(Trigger) -> bool) -> String {
    let name = |part: Part| match part.trigger {
        Trigger::Every(period) if period.as_secs() % 3_600 == 0 => {
            format!("{} every {} h", part.name, period.as_secs() / 3_600)
        }
        Trigger::Every(period) => format!("{} every {} min", part.name, period.as_secs() / 60),
        Trigger::Http | Trigger::Queue => part.name.to_owned(),
    };
    functions::all().into_iter().filter(|part| of(part.trigger)).map(name).collect::<Vec<_>>().join(", ")
}

/// Logs to the error output, for a person to read. What the embedded database refuses is the functions'
/// business.
fn log(env: &Env) {
    let level = env.get("LOG_LEVEL").and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let heard = Targets::new()
        .with_default(level)
        .with_targets([("dynoxide", LevelFilter::ERROR), ("hyper_util", LevelFilter::ERROR)]);
    let lines = tracing_subscriber::fmt().compact().with_target(false).with_writer(std::io::stderr);
    lines.with_max_level(level).finish().with(heard).init();
}
