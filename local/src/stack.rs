//! A whole deployment in this process: the AWS endpoint, the functions, their triggers, and the HTTP gateway.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use local::stack::{Options, Stack};
//!
//! let stack = Stack::start(Options::default()).await?; // in memory, on free ports
//! // … requests to stack.front_url …
//! stack.at_rest().await;
//! stack.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//! HTTP ─► gateway ─JSON─► stripe-webhook, api, admin ─SDK─► aws ─► DynamoDB (dynoxide), SQS (crate::sqs)
//!   │ poller, one for each queue with a function └─JSON─► invoice-paid, dead-letter, notify, … ─SDK─► aws
//!   time ─► schedule ─JSON─► retry, health, reconcile ─SDK─► aws
//! ```
//! A function is a handler in this process, or the shipped binary behind a Lambda Runtime API. Only
//! [`lambda`] knows which.

pub mod functions;
pub mod lambda;

mod aws;
mod catalog_file;
mod data_folder;
mod environment;
mod gateway;
mod poller;
mod process_usage;
mod queue_activity;
mod queues;
mod schedule;
mod shop;
mod shutdown;
mod transaction_tokens;

use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dynoxide::Database;
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::sdk_config;
use tallyhook_aws::store::schema::create_tables;
use tallyhook_core::catalog::Catalog;
use tallyhook_service::config::ApiConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fake_stripe::FakeStripe;
use crate::sqs::{Clock, Sqs, system_clock};
use catalog_file::CatalogFile;
use functions::{DeployedFunction, Trigger};
use gateway::Gateway;
use lambda::process::{self, Binary};
use lambda::{Function, REGION, runtime_api::RuntimeApi};
use poller::Poller;
use queue_activity::QueueActivity;
pub use queues::DEAD_LETTER_QUEUE;
use schedule::Schedule;
use shop::Shop;
use shutdown::stopped;

/// The key of the fake Stripe. It names no mode, so that it fits a stack in test mode and in live mode.
pub const STRIPE_KEY: &str = "sk_local";

/// How a stack is started.
pub struct Options {
    /// The folder that keeps accounts, events and queues. `None` keeps them in memory.
    pub data: Option<PathBuf>,
    /// The port of the HTTP gateway. 0 takes a free port.
    pub port: u16,
    /// The port of the AWS endpoint. 0 takes a free port.
    pub aws_port: u16,
    /// Variables for the functions. They replace the defaults, except the addresses and credentials of AWS.
    pub env: Env,
    /// Where the functions come from.
    pub functions: FunctionSource,
    /// The clock of the queues. A test that moves it calls [`Sqs::wake`].
    pub clock: Clock,
    /// Maximum number of batches of one queue that are processed at the same time.
    pub concurrency: usize,
    /// Whether the output of the shipped binaries is discarded.
    pub quiet: bool,
    /// Whether the shop of the start page receives the app's webhook. `PROVISION_URL` goes first.
    pub is_app: bool,
}

/// Where the functions come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FunctionSource {
    /// Handlers in this process.
    #[default]
    InProcess,
    /// The shipped binaries, built with cargo into the folder of this program.
    Built,
    /// The shipped binaries in a folder.
    Folder(PathBuf),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data: None,
            port: 0,
            aws_port: 0,
            env: Env::default(),
            functions: FunctionSource::InProcess,
            clock: system_clock(),
            concurrency: 2,
            quiet: true,
            is_app: false,
        }
    }
}

/// A running stack. [`Stack::stop`] finishes the running batches first; dropping the stack does not wait.
pub struct Stack {
    /// Where the webhook and the app's API are: `http://127.0.0.1:9000`.
    pub front_url: String,
    /// Where DynamoDB and SQS are: `http://127.0.0.1:9001`.
    pub aws_url: String,
    /// The URL of the fake Stripe, and the fake Stripe itself. `None` when `STRIPE_SECRET_KEY` or
    /// `STRIPE_API_BASE` names another one.
    pub stripe: Option<(String, FakeStripe)>,
    /// The messages that the functions of an earlier process held when it was killed. They are delivered at
    /// once.
    pub released: usize,
    env: Env,
    sqs: Sqs,
    activity: QueueActivity,
    pollers: Vec<Poller>,
    instances: Vec<JoinHandle<()>>,
    servers: Vec<JoinHandle<()>>,
    stop_work: watch::Sender<bool>,
    stop_servers: watch::Sender<bool>,
    _lock: Option<File>,
}

impl Stack {
    /// Starts everything. When it returns, the stack accepts requests.
    ///
    /// # Errors
    /// With a message for the person who started it: a port or the data folder is in use, a variable or the
    /// catalog is invalid, a binary does not start.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let front = bind(options.port, "--port").await?;
        let aws = bind(options.aws_port, "--aws-port").await?;
        let (front_url, aws_url) = (url(&front)?, url(&aws)?);
        let lock = options.data.as_deref().map(|folder| data_folder::lock(folder, &front_url)).transpose()?;
        let (stop_work, work) = watch::channel(false);
        let (stop_servers, end) = watch::channel(false);

        let file = |name: &str| options.data.as_ref().map(|folder| folder.join(name));
        let sqs = Sqs::open(file("queues.db").as_deref(), Arc::clone(&options.clock))?.in_region(REGION);
        let released = sqs.release_in_flight()?;
        let database = match file("dynamodb.db") {
            Some(path) => Database::new(&path.to_string_lossy()),
            None => Database::memory(),
        };
        let database = database.map_err(|error| anyhow!("cannot open the database: {error}"))?;
        // A commit survives `kill -9` with and without this call. Without it, SQLite waits for the disk at
        // every commit.
        database.disable_bulk_loading().map_err(|error| anyhow!("cannot set up the database: {error}"))?;
        let (dynamodb, dynamodb_server) = aws::serve_dynamodb(database, stopped(&end)).await?;
        let mut servers = vec![dynamodb_server, serve(aws, aws::router(&sqs, dynamodb), stopped(&end))];

        let mut env = environment::environment(&options.env, &front_url, &aws_url);
        if options.is_app && options.env.get("PROVISION_URL").is_none() {
            env.set("PROVISION_URL", format!("{front_url}{}", shop::APP_WEBHOOK_PATH));
            env.set("PROVISION_SECRET", shop::APP_WEBHOOK_SECRET);
        }
        let stripe = match (options.env.get("STRIPE_SECRET_KEY"), options.env.get("STRIPE_API_BASE")) {
            (None, None) => {
                let fake = FakeStripe::new(STRIPE_KEY);
                if let Some(path) = file("stripe.db") {
                    fake.open(&path)?;
                }
                fake.set_pages(&format!("{front_url}/local/stripe"));
                fake.put_portal("bpc_local", "always_invoice");
                let url = format!("http://{}", fake.start().await?);
                env.set("STRIPE_API_BASE", &url);
                env.set("STRIPE_SECRET_KEY", STRIPE_KEY);
                Some((url, fake))
            }
            (None, Some(_)) => {
                env.set("STRIPE_SECRET_KEY", STRIPE_KEY);
                None
            }
            (Some(_), _) => None,
        };
        queues::create_queues(&sqs, &aws_url).await?;
        let client = tallyhook_aws::sdk::dynamodb(&sdk_config(&env, "DYNAMODB")?);
        create_tables(&client, &env.require("ACCOUNTS_TABLE")?, &env.require("EVENTS_TABLE")?)
            .await
            .context("cannot create the tables")?;
        let catalog = Catalog::clone(&ApiConfig::from_env(&env)?.catalog);
        if let Some((_, fake)) = &stripe {
            fake.sell(&catalog);
        }
        let fake = stripe.as_ref().map(|(_, fake)| fake);
        let catalog = CatalogFile::open(&env, catalog, fake.cloned()).await?;

        let deployed = functions::all();
        let (functions, instances) = start_functions(&deployed, &options, &env, &end).await?;
        let (mut pollers, mut schedules) = (Vec::new(), Vec::new());
        for (DeployedFunction { name, trigger, .. }, function) in deployed.iter().zip(&functions) {
            match *trigger {
                Trigger::Http => {}
                Trigger::Queue => {
                    pollers.push(Poller::start(
                        &sqs,
                        &format!("tallyhook-{name}"),
                        function,
                        options.concurrency,
                        &work,
                    ));
                }
                Trigger::Every(period) => schedules.push(Schedule::new(function, period)),
            }
        }
        let activity = QueueActivity::new(sqs.clone(), pollers.iter().map(Poller::processed).collect());
        let scheduled = schedules.iter().map(|schedule| schedule.start(&work));
        let scheduled: Vec<JoinHandle<()>> = scheduled.collect();
        let shop = Shop::new(&env, &front_url, &aws_url, fake, activity.clone(), catalog.current())?;
        let routes = Gateway::new(&functions, schedules, activity.clone()).with_stripe(fake, &env)?.router();
        let front = serve(front, routes.merge(shop.router()), stopped(&work));
        servers.extend(scheduled.into_iter().chain([front, catalog.follow(&work)]));
        Ok(Self {
            front_url,
            aws_url,
            stripe,
            released,
            env,
            sqs,
            activity,
            pollers,
            instances,
            servers,
            stop_work,
            stop_servers,
            _lock: lock,
        })
    }

    /// The environment variables of the functions.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The queues.
    pub fn sqs(&self) -> &Sqs {
        &self.sqs
    }

    /// Waits until no message is visible or being processed. It does not wait for messages that become
    /// visible later, such as those that a worker delayed. It does not return while another consumer keeps
    /// receiving from one of the polled queues.
    pub async fn at_rest(&self) {
        while !self.activity.is_at_rest() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the polled queues are empty, including messages that become visible later.
    pub async fn idle(&self) {
        while !self.activity.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Accepts no more requests, finishes the running batches, and stops everything else.
    pub async fn stop(self) {
        self.stop_work.send_replace(true);
        for poller in self.pollers {
            poller.stopped().await;
        }
        self.stop_servers.send_replace(true);
        for task in self.instances.into_iter().chain(self.servers) {
            // Do not wait longer for a client that keeps its connection open.
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
    }
}

/// The functions in the order of `deployed`, ready to be invoked, and the tasks that supervise their
/// processes.
async fn start_functions(
    deployed: &[DeployedFunction],
    options: &Options,
    env: &Env,
    stop: &watch::Receiver<bool>,
) -> anyhow::Result<(Vec<Function>, Vec<JoinHandle<()>>)> {
    // Handlers are made even for shipped binaries: a mistake in the environment is then reported once and as
    // text, not by every binary as JSON.
    let in_process = |function: &DeployedFunction| {
        let handler = function.handler(env)?;
        Ok(Function::in_process(function.name, handler).with_timeout(function.timeout))
    };
    let in_process = deployed.iter().map(in_process).collect::<anyhow::Result<Vec<Function>>>()?;
    let folder = match &options.functions {
        FunctionSource::InProcess => return Ok((in_process, Vec::new())),
        FunctionSource::Built => process::build().await?,
        FunctionSource::Folder(folder) => folder.clone(),
    };
    let names: Vec<&str> = deployed.iter().map(|function| function.name).collect();
    let runtime_api = RuntimeApi::start(&names).await?;
    let env: Vec<(String, String)> = env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut instances = Vec::new();
    for function in deployed {
        let binary = Binary::find(&folder, function.name, env.clone(), options.quiet)?;
        let count = if function.trigger == Trigger::Queue { options.concurrency } else { 1 };
        for number in 1..=u32::try_from(count)? {
            let instance = (function.name.to_owned(), number);
            instances.push(process::start(&runtime_api, instance, binary.clone(), stop.clone()).await?);
        }
    }
    let with_binary = |function: &DeployedFunction| {
        Function::with_binary(function.name, runtime_api.clone()).with_timeout(function.timeout)
    };
    Ok((deployed.iter().map(with_binary).collect(), instances))
}

async fn bind(port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        if error.kind() == ErrorKind::AddrInUse {
            anyhow!(
                "port {port} is in use by another program: choose another one with {flag} (0 takes a free one)"
            )
        } else {
            anyhow!("cannot bind port {port}: {error}; choose another one with {flag}")
        }
    })
}

fn url(listener: &TcpListener) -> anyhow::Result<String> {
    Ok(format!("http://{}", listener.local_addr()?))
}

fn serve(
    listener: TcpListener,
    app: axum::Router,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
            tracing::error!(%error, "an HTTP server stopped");
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use cli::client::Client;
    use cli::local_stack::{APP_TOKEN, WEBHOOK_SECRET};
    use cli::sample::Sample;
    use cli::send::signed_request;
    use serde_json::{Value, json};
    use tallyhook_core::signature::Secret;

    use super::*;

    #[tokio::test]
    async fn the_error_about_a_port_in_use_names_its_flag() {
        let taken = bind(0, "--port").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Stack::start(Options { port, ..Options::default() }).await.err().unwrap().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        let error =
            Stack::start(Options { aws_port: port, ..Options::default() }).await.err().unwrap().to_string();
        assert!(error.contains("--aws-port"), "{error}");
    }

    #[tokio::test]
    async fn a_signed_event_goes_from_http_to_the_account() {
        let stack = Stack::start(Options::default()).await.unwrap();
        let client = Client::for_url(&stack.front_url).unwrap();
        let secret = Secret::new(WEBHOOK_SECRET).unwrap();
        let webhook = format!("{}/webhooks/stripe", stack.front_url);
        for name in
            ["customer.subscription.created", "invoice.paid", "checkout.session.completed", "invoice.paid"]
        {
            let event = Sample::find(name).unwrap();
            let request = signed_request(&webhook, event.body(), &secret).unwrap();
            assert_eq!(client.send(request).await.unwrap().0, 200);
        }
        stack.idle().await;
        let request = Request::get(format!("{}/users/user_123", stack.front_url))
            .header("authorization", format!("Bearer {APP_TOKEN}"));
        let (status, account) = client.send(request.body(Vec::new()).unwrap()).await.unwrap();
        let account: Value = serde_json::from_slice(&account).unwrap();
        assert_eq!(
            (status.as_u16(), &account["tier"], &account["credits"]),
            (200, &json!("pro"), &json!(5_000))
        );
        stack.stop().await;
    }

    #[tokio::test]
    async fn every_scheduled_function_can_be_run_at_once() {
        let stack = Stack::start(Options::default()).await.unwrap();
        let client = Client::for_url(&stack.front_url).unwrap();
        let run = async |name: &str| {
            let request = Request::post(format!("{}/local/schedules/{name}", stack.front_url))
                .body(Vec::new())
                .unwrap();
            let (status, answer) = client.send(request).await.unwrap();
            (status.as_u16(), serde_json::from_slice::<Value>(&answer).unwrap())
        };
        let secret = Secret::new(WEBHOOK_SECRET).unwrap();
        let webhook = format!("{}/webhooks/stripe", stack.front_url);
        let event = Sample::find("invoice.paid").unwrap();
        let request = signed_request(&webhook, event.body(), &secret).unwrap();
        assert_eq!(client.send(request).await.unwrap().0, 200);
        stack.idle().await;

        // The fake Stripe has the invoice, but no subscription.
        let (status, report) = run("reconcile").await;
        assert_eq!((status, &report["complete"]), (200, &json!(true)), "{report:#}");
        assert_eq!(report["changed"], 0, "{report:#}");
        let (status, report) = run("retry").await;
        assert_eq!((status, &report["sent"]), (200, &json!(0)), "{report:#}");
        let (status, health) = run("health").await;
        assert_eq!((status, &health["score"]), (200, &json!(100)), "{health:#}");
        assert_eq!(run("payday").await.0, 404);

        let logs = Request::get(format!("{}/admin/stripe/webhook-logs", stack.front_url))
            .header("authorization", "Bearer admin-local");
        let (status, logs) = client.send(logs.body(Vec::new()).unwrap()).await.unwrap();
        let logs: Value = serde_json::from_slice(&logs).unwrap();
        assert_eq!((status.as_u16(), &logs["events"][0]["status"]), (200, &json!("processed")), "{logs:#}");
        stack.stop().await;
    }

    #[tokio::test]
    async fn accounts_messages_and_stripe_objects_survive_a_restart() {
        let folder = std::env::temp_dir().join(format!("tallyhook-test-{}", uuid::Uuid::new_v4()));
        let options = || Options { data: Some(folder.clone()), ..Options::default() };
        let user = |stack: &Stack, method: &str| {
            let request = Request::builder().method(method).uri(format!("{}/users/ann", stack.front_url));
            request.header("authorization", format!("Bearer {APP_TOKEN}")).body(Vec::new()).unwrap()
        };
        let stack = Stack::start(options()).await.unwrap();
        let client = Client::for_url(&stack.front_url).unwrap();
        assert_eq!(client.send(user(&stack, "PUT")).await.unwrap().0, 200);
        let queue =
            json!({ "QueueUrl": DEAD_LETTER_QUEUE, "MessageBody": "kept", "DelaySeconds": 900 }).to_string();
        stack.sqs().handle("AmazonSQS.SendMessage", "localhost", queue.as_bytes()).await;
        stack.stripe.as_ref().unwrap().1.put(json!({ "id": "cus_kept", "object": "customer" }));
        stack.stop().await;
        let stack = Stack::start(options()).await.unwrap();
        assert_eq!(client.send(user(&stack, "GET")).await.unwrap().0, 200);
        assert!(stack.stripe.as_ref().unwrap().1.object("cus_kept").is_some());
        let dead =
            stack.sqs().queues().unwrap().into_iter().find(|queue| queue.name == DEAD_LETTER_QUEUE).unwrap();
        assert_eq!(dead.delayed, 1);
        stack.stop().await;
        std::fs::remove_dir_all(folder).unwrap();
    }
}
