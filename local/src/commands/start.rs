//! Starts the local stack and runs it until Ctrl-C.

use std::path::{Path, PathBuf};

use clap::Args;
use cli::local_stack;
use cli::output::print_line;
use local::stack::functions::{self, DeployedFunction, Trigger};
use local::stack::{FunctionSource, Options, STRIPE_KEY, Stack};
use tallyhook_aws::env::Env;
use tallyhook_core::catalog::Catalog;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The flags of `cargo run`.
#[derive(Args)]
pub struct Start {
    /// Keep nothing on disk: accounts, events and queues are lost when the stack stops
    #[arg(long, conflicts_with = "data")]
    memory: bool,
    /// The folder that keeps accounts, events and queues
    #[arg(long, value_name = "DIR", default_value = ".tallyhook")]
    data: PathBuf,
    /// Port of the webhook and the app's API; 0 takes a free port
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Port of DynamoDB and SQS; 0 takes a free port
    #[arg(long, default_value_t = 9001)]
    aws_port: u16,
    /// Run the shipped binaries behind a local Lambda Runtime API, instead of handlers in this process. They
    /// are built first
    #[arg(long)]
    real_binaries: bool,
    /// Run the shipped binaries of this folder and do not build them; implies --real-binaries
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// The catalog. It is stored at the start and whenever the file changes; a catalog that is pushed stands
    /// until then [default: CATALOG_FILE, else catalog.toml of the source tree]
    #[arg(long, value_name = "FILE")]
    catalog: Option<PathBuf>,
}

impl Start {
    pub async fn run(self) -> anyhow::Result<()> {
        // The signal handlers come first: a signal during the start then stops the stack in order.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut env = Env::of_process();
        start_logging(&env);
        if let Some(catalog) = self.catalog() {
            env.set("CATALOG_FILE", catalog.to_string_lossy());
        }
        let options = Options {
            data: (!self.memory).then(|| self.data.clone()),
            port: self.port,
            aws_port: self.aws_port,
            env: env.clone(),
            functions: self.function_source(),
            quiet: false,
            is_app: true,
            ..Options::default()
        };
        let stack = tokio::select! {
            stack = Stack::start(options) => stack?,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        if let Some((_, stripe)) = &stack.stripe {
            // So that `tallyhook doctor` finds the account in order, as after `tallyhook setup`.
            stripe.put_endpoint("we_local", &format!("{}/webhooks/stripe", stack.front_url), "tallyhook");
            stripe.put_portal("bpc_local", "always_invoice");
        }
        // A closed standard output does not stop the stack.
        let _ = print_line(self.welcome(&env, &stack));
        let catalog = env.get("CATALOG_FILE").and_then(|file| std::fs::read_to_string(file).ok());
        let catalog = catalog.and_then(|text| Catalog::parse(&text).ok());
        for warning in catalog.map(|catalog| catalog.warnings()).unwrap_or_default() {
            let _ = print_line(format!("catalog: {warning}\n"));
        }
        if stack.released > 0 {
            let _ = print_line(format!(
                "{} messages were in flight when the stack was killed; they are delivered again now.\n",
                stack.released
            ));
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        let _ = print_line("\nstopping: finishing the running batches first (Ctrl-C again stops at once)");
        tokio::select! {
            () = stack.stop() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    }

    fn catalog(&self) -> Option<PathBuf> {
        match &self.catalog {
            Some(catalog) => Some(catalog.clone()),
            None if Env::of_process().get("CATALOG_FILE").is_some() => None,
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../catalog.toml").canonicalize().ok(),
        }
    }

    fn function_source(&self) -> FunctionSource {
        match &self.binaries {
            Some(folder) => FunctionSource::Folder(folder.clone()),
            None if self.real_binaries => FunctionSource::Built,
            None => FunctionSource::InProcess,
        }
    }

    /// What the stack prints when it is ready: addresses, tokens, and commands to try.
    fn welcome(&self, env: &Env, stack: &Stack) -> String {
        // A secret from the environment is the user's own: print its name instead.
        let shown = |name: &str, default: &str| {
            if env.get(name).is_some() { format!("${name}") } else { default.to_owned() }
        };
        let (front, app) = (&stack.front_url, shown("APP_API_TOKEN", local_stack::APP_TOKEN));
        let url = if front == local_stack::URL { String::new() } else { format!(" --url {front}") };
        let data =
            if self.memory { "in memory".to_owned() } else { format!("kept in {}", self.data.display()) };
        let functions = match self.function_source() {
            FunctionSource::InProcess => "in this process",
            FunctionSource::Built | FunctionSource::Folder(_) => "the shipped binaries",
        };
        let stripe = match &stack.stripe {
            Some((url, _)) => {
                format!("{url}   a fake one, key {STRIPE_KEY}; it knows every event the webhook received")
            }
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
             \x20 cargo run -- demo{url}                  two customers, step by step\n\
             \x20 cargo run -- send invoice.paid{url}     one signed event\n\
             \x20 curl -H 'authorization: Bearer {app}' {front}/users/user_123\n\
             \x20 cargo run -- trigger reconcile{url}     run a scheduled function at once\n\
             \x20 stripe listen --all-snapshot --forward-to {}/webhooks/stripe\n\
             \x20     events of your own Stripe; first restart this with its secret as STRIPE_WEBHOOK_SECRET\n",
            shown("STRIPE_WEBHOOK_SECRET", local_stack::WEBHOOK_SECRET),
            shown("ADMIN_API_TOKEN", local_stack::ADMIN_TOKEN),
            stack.aws_url,
            function_names(|trigger| !matches!(trigger, Trigger::Every(_))),
            function_names(|trigger| matches!(trigger, Trigger::Every(_))),
            front.trim_start_matches("http://"),
        )
    }
}

/// The functions with these triggers, with the period of the scheduled ones.
fn function_names(is_listed: impl Fn(Trigger) -> bool) -> String {
    let name = |function: DeployedFunction| match function.trigger {
        Trigger::Every(period) if period.as_secs() % 3_600 == 0 => {
            format!("{} every {} h", function.name, period.as_secs() / 3_600)
        }
        Trigger::Every(period) => format!("{} every {} min", function.name, period.as_secs() / 60),
        Trigger::Http | Trigger::Queue => function.name.to_owned(),
    };
    let listed = functions::all().into_iter().filter(|function| is_listed(function.trigger));
    listed.map(name).collect::<Vec<_>>().join(", ")
}

/// Logs to the error output, in a format for people. Errors that the embedded database returns are left out:
/// the functions log them when they matter.
fn start_logging(env: &Env) {
    let level = env.get("LOG_LEVEL").and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let targets = Targets::new()
        .with_default(level)
        .with_targets([("dynoxide", LevelFilter::ERROR), ("hyper_util", LevelFilter::ERROR)]);
    let lines = tracing_subscriber::fmt().compact().with_target(false).with_writer(std::io::stderr);
    lines.with_max_level(level).finish().with(targets).init();
}
