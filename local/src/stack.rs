//! A whole deployment in this process: the AWS endpoint, the functions, the queues that feed them, and the
//! HTTP front.
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
//! HTTP ─► front ─JSON─► stripe-webhook, api, admin ─SDK─► aws ─► DynamoDB (dynoxide), SQS (crate::sqs)
//!                                                                │ poller, one for each queue with a function
//!                                                                └─JSON─► invoice-paid, dead-letter, notify, … ─SDK─► aws
//! time ─► schedule ─JSON─► retry, health, reconcile ─SDK─► aws
//! ```
//! The functions are handlers of this process, or the shipped binaries behind a Runtime API ([`lambda`]);
//! nothing else knows which.

pub mod aws;
pub mod front;
pub mod functions;
pub mod lambda;
pub mod poller;
pub mod schedule;
mod shop;
mod tokens;
mod usage;

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use dynoxide::Database;
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::sdk_config;
use tallyhook_aws::store::schema::create_tables;
use tallyhook_core::event::Family;
use tallyhook_service::config::{ApiConfig, queue_variable};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fake_stripe::FakeStripe;
use crate::sqs::{Clock, QueueStatus, Sqs, system_clock};
use front::Front;
use functions::{Part, Trigger};
use lambda::process::{self, Binary};
use lambda::{Function, REGION, host::Host};
use poller::{Finished, Poller};
use schedule::Schedule;
use shop::Shop;

/// The default of `STRIPE_WEBHOOK_SECRET`.
pub const WEBHOOK_SECRET: &str = "whsec_local";
/// The default of `APP_API_TOKEN`.
pub const APP_TOKEN: &str = "app-local";
/// The default of `ADMIN_API_TOKEN`.
pub const ADMIN_TOKEN: &str = "admin-local";
/// The key that the fake Stripe takes. It says no mode, so that it fits a stack of either.
pub const STRIPE_KEY: &str = "sk_local";
/// The queue that gets what failed too often.
pub const DEAD_LETTER_QUEUE: &str = "tallyhook-dead-letter";

/// Queues that no family has.
const OTHER_QUEUES: [&str; 2] = ["provision", "notify"];

/// Six times a function's time-out, as AWS asks for: a batch may be tried again inside Lambda before its
/// messages come back.
const VISIBILITY_SECONDS: u64 = 6 * lambda::TIMEOUT.as_secs();

/// The first attempt and a repetition for each of the three delays.
const MAX_RECEIVE_COUNT: u32 = 4;

/// How a stack is started.
pub struct Options {
    /// The folder that keeps accounts, events and queues; `None` keeps them in memory.
    pub data: Option<PathBuf>,
    /// The port of the HTTP front; 0 takes a free one.
    pub port: u16,
    /// The port of the AWS endpoint; 0 takes a free one.
    pub aws_port: u16,
    /// Variables for the functions, over the defaults. Those that say where AWS is are always the stack's
    /// own.
    pub env: Env,
    /// Where the functions come from.
    pub functions: Functions,
    /// What the queues take for the time. Whoever moves it calls [`Sqs::wake`].
    pub clock: Clock,
    /// How many batches of one queue are worked on at a time.
    pub concurrency: usize,
    /// Whether what the shipped binaries print is dropped.
    pub quiet: bool,
    /// Whether the shop of the start page gets the app's webhook, unless `PROVISION_URL` says who does.
    pub is_app: bool,
}

/// Where the functions come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Functions {
    /// Handlers of this process.
    #[default]
    InProcess,
    /// The shipped binaries, built beside this program.
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
            functions: Functions::InProcess,
            clock: system_clock(),
            concurrency: 2,
            quiet: true,
            is_app: false,
        }
    }
}

/// A running stack. Dropping it stops it in time; [`Stack::stop`] stops it in order.
pub struct Stack {
    /// Where the webhook and the app's API are: `http://127.0.0.1:9000`.
    pub front_url: String,
    /// Where DynamoDB and SQS are: `http://127.0.0.1:9001`.
    pub aws_url: String,
    /// The fake Stripe and where it is, unless the functions were told of another one (`STRIPE_SECRET_KEY`,
    /// `STRIPE_API_BASE`).
    pub stripe: Option<(String, FakeStripe)>,
    env: Env,
    sqs: Sqs,
    rest: Rest,
    pollers: Vec<Poller>,
    instances: Vec<JoinHandle<()>>,
    servers: Vec<JoinHandle<()>>,
    stop_work: watch::Sender<bool>,
    stop_rest: watch::Sender<bool>,
    _lock: Option<File>,
}

impl Stack {
    /// Starts everything and answers when requests can be sent.
    ///
    /// # Errors
    /// With a sentence for the person who started it: a port or the data folder is taken, a variable or the
    /// catalog makes no sense, a binary does not start.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let front = bind(options.port, "--port").await?;
        let aws = bind(options.aws_port, "--aws-port").await?;
        let (front_url, aws_url) = (url(&front)?, url(&aws)?);
        let lock = options.data.as_deref().map(|folder| lock(folder, &front_url)).transpose()?;
        let (stop_work, work) = watch::channel(false);
        let (stop_rest, rest) = watch::channel(false);

        let file = |name: &str| options.data.as_ref().map(|folder| folder.join(name));
        let sqs = Sqs::open(file("queues.db").as_deref(), Arc::clone(&options.clock))?.in_region(REGION);
        let database = match file("dynamodb.db") {
            Some(path) => Database::new(&path.to_string_lossy()),
            None => Database::memory(),
        };
        let database = database.map_err(|error| anyhow!("cannot open the database: {error}"))?;
        // What it commits survives the process either way; without this SQLite also waits for the disk at
        // every commit.
        database.disable_bulk_loading().map_err(|error| anyhow!("cannot set up the database: {error}"))?;
        let (dynamodb, dynamodb_server) = aws::serve_dynamodb(database, stopped(&rest)).await?;
        let mut servers = vec![dynamodb_server, serve(aws, aws::router(&sqs, dynamodb), stopped(&rest))];

        let mut env = environment(&options.env, &front_url, &aws_url);
        if options.is_app && options.env.get("PROVISION_URL").is_none() {
            env.set("PROVISION_URL", format!("{front_url}{}", shop::APP_WEBHOOK_PATH));
            env.set("PROVISION_SECRET", shop::APP_WEBHOOK_SECRET);
        }
        let stripe = match (options.env.get("STRIPE_SECRET_KEY"), options.env.get("STRIPE_API_BASE")) {
            (None, None) => {
                let fake = FakeStripe::new(STRIPE_KEY);
                if let Some(path) = file("stripe.db") {
                    fake.remember(&path)?;
                }
                fake.set_pages(&format!("{front_url}/local/stripe"));
                fake.sell(&ApiConfig::from_env(&env)?.catalog);
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
        create_queues(&sqs, &aws_url).await?;
        let client = tallyhook_aws::sdk::dynamodb(&sdk_config(&env, "DYNAMODB")?);
        create_tables(&client, &env.require("ACCOUNTS_TABLE")?, &env.require("EVENTS_TABLE")?)
            .await
            .context("cannot create the tables")?;

        let parts = functions::all();
        let (functions, instances) = start_functions(&parts, &options, &env, &rest).await?;
        let (mut pollers, mut schedules) = (Vec::new(), Vec::new());
        for (part, function) in parts.iter().zip(&functions) {
            match part.trigger {
                Trigger::Http => {}
                Trigger::Queue => {
                    pollers.push(Poller::start(
                        &sqs,
                        &format!("tallyhook-{}", part.name),
                        function,
                        options.concurrency,
                        &work,
                    ));
                }
                Trigger::Every(period) => schedules.push(Schedule::new(function, period)),
            }
        }
        let rest = Rest { sqs: sqs.clone(), finished: pollers.iter().map(Poller::finished).collect() };
        let scheduled = schedules.iter().map(|schedule| schedule.start(&work));
        let scheduled: Vec<JoinHandle<()>> = scheduled.collect();
        let shop =
            Shop::new(&env, &front_url, &aws_url, stripe.as_ref().map(|(_, fake)| fake), rest.clone())?;
        let routes =
            Front::new(&functions, schedules, rest.clone()).with_stripe(stripe.as_ref(), &env)?.router();
        let front = serve(front, routes.merge(shop.router()), stopped(&work));
        servers.extend(scheduled.into_iter().chain([front]));
        Ok(Self {
            front_url,
            aws_url,
            stripe,
            env,
            sqs,
            rest,
            pollers,
            instances,
            servers,
            stop_work,
            stop_rest,
            _lock: lock,
        })
    }

    /// The variables the functions run with.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The queues.
    pub fn sqs(&self) -> &Sqs {
        &self.sqs
    }

    /// Waits until every message has been worked on. Messages that wait for a later time, such as those a
    /// worker sent back with a delay, are not waited for. It never ends while somebody else receives from one
    /// of the polled queues without end.
    pub async fn at_rest(&self) {
        while !self.rest.holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the queues that functions are fed from are empty, however long their messages have to
    /// wait.
    pub async fn idle(&self) {
        while !self.rest.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Takes no more requests, finishes the batches that are being worked on, and stops the rest.
    pub async fn stop(self) {
        self.stop_work.send_replace(true);
        for poller in self.pollers {
            poller.stopped().await;
        }
        self.stop_rest.send_replace(true);
        for task in self.instances.into_iter().chain(self.servers) {
            // A client that keeps its request open does not keep the stack running.
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
    }
}

/// Knows whether anything is being worked on.
#[derive(Clone)]
struct Rest {
    sqs: Sqs,
    finished: Vec<Finished>,
}

impl Rest {
    fn queues(&self) -> anyhow::Result<Vec<QueueStatus>> {
        self.sqs.queues()
    }

    /// Whether no message is waiting or being worked on, but for those that wait for a later time.
    fn holds(&self) -> bool {
        self.each(|queue| queue.visible == 0)
    }

    fn is_empty(&self) -> bool {
        self.each(|queue| queue.visible == 0 && queue.in_flight == 0 && queue.delayed == 0)
    }

    /// The counts of what is finished are read first: if they then equal what was handed out, nothing was in
    /// between at that moment.
    fn each(&self, holds: impl Fn(&QueueStatus) -> bool) -> bool {
        let finished: Vec<(&str, u64)> = self.finished.iter().map(Finished::count).collect();
        let Ok(queues) = self.queues() else { return false };
        finished.into_iter().all(|(name, finished)| {
            queues
                .iter()
                .find(|queue| queue.name == name)
                .is_none_or(|queue| queue.handed_out == finished && holds(queue))
        })
    }
}

/// Everything the functions read from their environment.
fn environment(over: &Env, front_url: &str, aws_url: &str) -> Env {
    let mut env = Env::from([
        ("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ("STRIPE_LIVEMODE", "false"),
        ("APP_API_TOKEN", APP_TOKEN),
        ("ADMIN_API_TOKEN", ADMIN_TOKEN),
        ("ACCOUNTS_TABLE", "tallyhook-accounts"),
        ("EVENTS_TABLE", "tallyhook-events"),
        // Alerts may go to a receiver on this machine.
        ("NOTIFY_ALLOW_LOOPBACK", "true"),
        // So may what the app is told.
        ("PROVISION_ALLOW_LOOPBACK", "true"),
        ("APP_BASE_URL", front_url),
        ("SUPPORT_EMAIL", "support@example.com"),
    ]);
    // A signing secret of either mode takes the place of the default, which would vouch for test events
    // beside it.
    if ["STRIPE_WEBHOOK_SECRET_TEST", "STRIPE_WEBHOOK_SECRET_LIVE"]
        .iter()
        .any(|name| over.get(name).is_some())
    {
        env.set("STRIPE_WEBHOOK_SECRET", "");
    }
    // Never somebody's AWS account: not its keys, profile, region or addresses.
    for (name, value) in over
        .iter()
        .filter(|(name, _)| !["AWS_", "QUEUE_URL_", "_"].iter().any(|start| name.starts_with(start)))
    {
        env.set(name, value);
    }
    env.set("AWS_REGION", REGION);
    env.set("AWS_ACCESS_KEY_ID", "local");
    env.set("AWS_SECRET_ACCESS_KEY", "local");
    env.set("AWS_ENDPOINT_URL", aws_url);
    for family in Family::ALL {
        env.set(queue_variable(family), queue_url(aws_url, family.as_str()));
    }
    for queue in OTHER_QUEUES {
        env.set(format!("QUEUE_URL_{}", queue.to_uppercase()), queue_url(aws_url, queue));
    }
    env.set("QUEUE_URL_DEAD_LETTER", queue_url(aws_url, "dead-letter"));
    env
}

fn queue_url(aws_url: &str, name: &str) -> String {
    format!("{aws_url}/000000000000/tallyhook-{name}")
}

/// Creates the queues that are missing and gives all of them the settings of the template.
async fn create_queues(sqs: &Sqs, aws_url: &str) -> anyhow::Result<()> {
    let call = async |action: &str, request: Value| -> anyhow::Result<()> {
        let (status, answer, _) =
            sqs.handle(&format!("AmazonSQS.{action}"), "localhost", request.to_string().as_bytes()).await;
        ensure!(status == 200, "{action}: {}", String::from_utf8_lossy(&answer));
        Ok(())
    };
    call("CreateQueue", json!({ "QueueName": DEAD_LETTER_QUEUE })).await?;
    let attributes =
        json!({ "VisibilityTimeout": VISIBILITY_SECONDS.to_string(), "MessageRetentionPeriod": "1209600" });
    call("SetQueueAttributes", json!({ "QueueUrl": DEAD_LETTER_QUEUE, "Attributes": attributes })).await?;
    let redrive = json!({
        "deadLetterTargetArn": format!("arn:aws:sqs:{REGION}:000000000000:{DEAD_LETTER_QUEUE}"),
        "maxReceiveCount": MAX_RECEIVE_COUNT,
    });
    for name in Family::ALL.iter().map(|family| family.as_str()).chain(OTHER_QUEUES) {
        let attributes = json!({
            "VisibilityTimeout": VISIBILITY_SECONDS.to_string(),
            "MessageRetentionPeriod": "1209600",
            "RedrivePolicy": redrive.to_string(),
        });
        call("CreateQueue", json!({ "QueueName": format!("tallyhook-{name}") })).await?;
        call("SetQueueAttributes", json!({ "QueueUrl": queue_url(aws_url, name), "Attributes": attributes }))
            .await?;
    }
    Ok(())
}

/// All functions, ready to be invoked, in the order of `parts`, and what keeps their processes running.
async fn start_functions(
    parts: &[Part],
    options: &Options,
    env: &Env,
    stop: &watch::Receiver<bool>,
) -> anyhow::Result<(Vec<Function>, Vec<JoinHandle<()>>)> {
    // With shipped binaries too: they would say what is wrong with the environment each for itself, and in
    // JSON.
    let in_process =
        |part: &Part| Ok(Function::in_process(part.name, part.handler(env)?).with_timeout(part.timeout));
    let in_process = parts.iter().map(in_process).collect::<anyhow::Result<Vec<Function>>>()?;
    let folder = match &options.functions {
        Functions::InProcess => return Ok((in_process, Vec::new())),
        Functions::Built => process::build().await?,
        Functions::Folder(folder) => folder.clone(),
    };
    let host = Host::start(&parts.iter().map(|part| part.name).collect::<Vec<_>>()).await?;
    let env: Vec<(String, String)> = env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut instances = Vec::new();
    for part in parts {
        let binary = Binary::find(&folder, part.name, env.clone(), options.quiet)?;
        let wanted = if part.trigger == Trigger::Queue { options.concurrency } else { 1 };
        for number in 1..=u32::try_from(wanted)? {
            instances.push(
                process::start(&host, (part.name.to_owned(), number), binary.clone(), stop.clone()).await?,
            );
        }
    }
    let hosted = |part: &Part| Function::hosted(part.name, host.clone()).with_timeout(part.timeout);
    Ok((parts.iter().map(hosted).collect(), instances))
}

async fn bind(port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        if error.kind() == ErrorKind::AddrInUse {
            anyhow!("port {port} is taken by another program: choose another one with {flag} (0 takes any free one)")
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
            tracing::error!(%error, "a server stopped");
        }
    })
}

/// Ends when the stack is told to stop, or is dropped.
fn stopped(stop: &watch::Receiver<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut stop = stop.clone();
    async move {
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// Takes the data folder for this process, until the answer is dropped.
fn lock(folder: &Path, front_url: &str) -> anyhow::Result<File> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the data folder {}", folder.display()))?;
    let path = folder.join("lock");
    let mut file = File::options().create(true).read(true).write(true).truncate(false).open(&path);
    let file = file.as_mut().map_err(|error| anyhow!("cannot open {}: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            bail!(
                "the data folder {} is in use by another running stack ({}): stop that one, or take another folder with --data DIR or --memory",
                folder.display(),
                owner.trim()
            );
        }
        Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
    }
    let mut file = file.try_clone()?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {}, {front_url}", std::process::id())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tallyhook_core::signature::{Secret, sign};
    use tallyhook_core::timestamp::Timestamp;

    use super::*;
    use crate::client::Client;
    use crate::sample::Sample;

    #[test]
    fn nothing_of_a_persons_aws_account_reaches_the_functions() {
        let person = Env::from([
            ("AWS_ACCESS_KEY_ID", "AKIAREAL"),
            ("AWS_SESSION_TOKEN", "real"),
            ("AWS_PROFILE", "prod"),
            ("AWS_ENDPOINT_URL_SQS", "https://sqs.eu-central-1.amazonaws.com"),
            ("QUEUE_URL_INVOICE_PAID", "https://sqs.eu-central-1.amazonaws.com/1/live"),
            ("RETRY_DELAYS_SECONDS", "1,2,3"),
        ]);
        let env = environment(&person, "http://127.0.0.1:9000", "http://127.0.0.1:9001");
        assert_eq!(env.get("AWS_ACCESS_KEY_ID").as_deref(), Some("local"));
        assert_eq!(
            (env.get("AWS_SESSION_TOKEN"), env.get("AWS_PROFILE"), env.get("AWS_ENDPOINT_URL_SQS")),
            (None, None, None)
        );
        assert_eq!(
            env.get("QUEUE_URL_INVOICE_PAID").as_deref(),
            Some("http://127.0.0.1:9001/000000000000/tallyhook-invoice-paid")
        );
        assert_eq!(env.get("RETRY_DELAYS_SECONDS").as_deref(), Some("1,2,3"));
    }

    #[tokio::test]
    async fn a_taken_port_and_a_taken_data_folder_are_named() {
        let taken = bind(0, "--port").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Stack::start(Options { port, ..Options::default() }).await.err().unwrap().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        let error =
            Stack::start(Options { aws_port: port, ..Options::default() }).await.err().unwrap().to_string();
        assert!(error.contains("--aws-port"), "{error}");

        let folder = std::env::temp_dir().join(format!("tallyhook-test-{}", uuid::Uuid::new_v4()));
        let first = lock(&folder, "http://127.0.0.1:9000").unwrap();
        let error = lock(&folder, "http://127.0.0.1:1").unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:9000") && error.contains("--data"), "{error}");
        drop(first);
        drop(lock(&folder, "http://127.0.0.1:1").unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }
    #[tokio::test]
    async fn a_signed_event_goes_from_http_to_the_account() {
        let stack = Stack::start(Options::default()).await.unwrap();
        let client = Client::for_url(&stack.front_url).unwrap();
        let secret = Secret::new(WEBHOOK_SECRET).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let now = Timestamp::from_unix(i64::try_from(now).unwrap());
        for name in
            ["customer.subscription.created", "invoice.paid", "checkout.session.completed", "invoice.paid"]
        {
            let event = Sample::find(name).unwrap();
            let request = Request::post(format!("{}/webhooks/stripe", stack.front_url))
                .header("stripe-signature", sign(event.body(), &secret, now))
                .body(Body::from(event.body().to_vec()))
                .unwrap();
            assert_eq!(client.send(request).await.unwrap().0, 200);
        }
        stack.idle().await;
        let request = Request::get(format!("{}/users/user_123", stack.front_url))
            .header("authorization", format!("Bearer {APP_TOKEN}"));
        let (status, account) = client.send(request.body(Body::empty()).unwrap()).await.unwrap();
        let account: Value = serde_json::from_slice(&account).unwrap();
        assert_eq!(
            (status.as_u16(), &account["tier"], &account["credits"]),
            (200, &json!("pro"), &json!(5_000))
        );
        stack.stop().await;
    }

    #[tokio::test]
    async fn every_function_runs_and_a_schedule_runs_when_it_is_told_to() {
        let stack = Stack::start(Options::default()).await.unwrap();
        let client = Client::for_url(&stack.front_url).unwrap();
        let run = async |name: &str| {
            let request = Request::post(format!("{}/local/schedules/{name}", stack.front_url))
                .body(Body::empty())
                .unwrap();
            let (status, answer) = client.send(request).await.unwrap();
            (status.as_u16(), serde_json::from_slice::<Value>(&answer).unwrap())
        };
        let secret = Secret::new(WEBHOOK_SECRET).unwrap();
        let send = async |body: &[u8]| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let signature = sign(body, &secret, Timestamp::from_unix(i64::try_from(now).unwrap()));
            let request = Request::post(format!("{}/webhooks/stripe", stack.front_url))
                .header("stripe-signature", signature);
            client.send(request.body(Body::from(body.to_vec())).unwrap()).await.unwrap().0
        };
        assert_eq!(send(Sample::find("invoice.paid").unwrap().body()).await, 200);
        stack.idle().await;

        // The fake Stripe was told of the invoice, but not of a subscription.
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
        let (status, logs) = client.send(logs.body(Body::empty()).unwrap()).await.unwrap();
        let logs: Value = serde_json::from_slice(&logs).unwrap();
        assert_eq!((status.as_u16(), &logs["events"][0]["status"]), (200, &json!("processed")), "{logs:#}");
        stack.stop().await;
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_a_restart() {
        let folder = std::env::temp_dir().join(format!("tallyhook-test-{}", uuid::Uuid::new_v4()));
        let options = || Options { data: Some(folder.clone()), ..Options::default() };
        let user = |stack: &Stack, method: &str| {
            let request = Request::builder().method(method).uri(format!("{}/users/ann", stack.front_url));
            request.header("authorization", format!("Bearer {APP_TOKEN}")).body(Body::empty()).unwrap()
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
