//! Lambda's side of a function: the Runtime API, the process, its CPU time and memory.

use std::convert::Infallible;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

enum Step {
    Next(oneshot::Sender<Vec<u8>>),
    Response(Bytes, Instant),
    Failed(Bytes),
}

/// The Runtime API, for one function at a time.
pub struct Runtime {
    address: String,
    steps: mpsc::UnboundedReceiver<Step>,
}

/// The cost of a start: until the function requests its first event, and until it requests the second.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub cold: Duration,
    pub init_cpu: Duration,
    pub first: Duration,
    pub first_cpu: Duration,
}

/// A running function that waits for an event.
pub struct Function {
    child: Child,
    pid: Pid,
    next: oneshot::Sender<Vec<u8>>,
}

impl Runtime {
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?.to_string();
        let (send, steps) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let send = send.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| serve(request, send.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), answer)
                        .await;
                });
            }
        });
        Ok(Self { address, steps })
    }

    async fn step(&mut self) -> anyhow::Result<Step> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.steps.recv())
            .await
            .context("the function does not answer")?
            .context("the Runtime API ended")?
        {
            Step::Failed(error) => bail!("the function failed: {}", String::from_utf8_lossy(&error)),
            step => Ok(step),
        }
    }

    async fn next(&mut self) -> anyhow::Result<oneshot::Sender<Vec<u8>>> {
        match self.step().await? {
            Step::Next(next) => Ok(next),
            Step::Response(..) | Step::Failed(_) => {
                bail!("the function answered without an event")
            }
        }
    }

    async fn response(&mut self) -> anyhow::Result<(Bytes, Instant)> {
        match self.step().await? {
            Step::Response(body, at) => Ok((body, at)),
            Step::Next(_) | Step::Failed(_) => {
                bail!("the function requested another event before it answered the first")
            }
        }
    }

    /// Starts a function and sends it one event. `limit`, if any, applies after the start and before the
    /// event.
    pub async fn cold(
        &mut self,
        command: &[String],
        env: &[(String, String)],
        event: Vec<u8>,
        limit: Option<&crate::Limit>,
    ) -> anyhow::Result<(Function, Start, Bytes)> {
        while self.steps.try_recv().is_ok() {}
        let began = Instant::now();
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env("AWS_LAMBDA_RUNTIME_API", &self.address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(if std::env::var_os("BENCH_STDERR").is_some() { Stdio::inherit() } else { Stdio::null() })
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", command[0]))?;
        let pid = Pid::from_raw(i32::try_from(child.id().context("the function has ended")?)?);
        let next = tokio::select! {
            next = self.next() => next?,
            ended = child.wait() => bail!("{} ended in its init: {ended:?}", command[0]),
        };
        let init_cpu = cpu(pid)?;
        if let Some(limit) = limit {
            limit.put(pid)?;
        }
        let given = Instant::now();
        let _ = next.send(event);
        let (answer, answered) = self.response().await?;
        let next = self.next().await?;
        let start = Start {
            cold: answered - began,
            init_cpu,
            first: answered - given,
            first_cpu: cpu(pid)? - init_cpu,
        };
        Ok((Function { child, pid, next }, start, answer))
    }

    /// Sends the function another event. Returns its response and the time it took.
    pub async fn invoke(
        &mut self,
        function: Function,
        event: Vec<u8>,
    ) -> anyhow::Result<(Function, Bytes, Duration)> {
        let Function { child, pid, next } = function;
        let given = Instant::now();
        let _ = next.send(event);
        let (answer, answered) = self.response().await?;
        let next = self.next().await?;
        Ok((Function { child, pid, next }, answer, answered - given))
    }
}

impl Function {
    /// CPU time of all its threads, including ended ones.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu(self.pid)
    }

    /// Peak memory in KiB. It contains the pages of the binary that the kernel has mapped, which differ by
    /// half a megabyte with the machine's page cache.
    pub fn peak_kib(&self) -> anyhow::Result<u64> {
        self.status_kib("VmHWM:")
    }

    /// The memory in KiB that the process allocated itself: its heap, stack and written data, without the
    /// pages of the binary. It differs little between runs and machines.
    pub fn own_kib(&self) -> anyhow::Result<u64> {
        self.status_kib("RssAnon:")
    }

    fn status_kib(&self, name: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.with_context(|| format!("no {name} in the status of the process"))?;
        Ok(value.trim().trim_end_matches(" kB").parse()?)
    }

    pub async fn end(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

fn cpu(pid: Pid) -> anyhow::Result<Duration> {
    let time = clock_gettime(ClockId::pid_cpu_clock_id(pid)?)?;
    Ok(Duration::from(time))
}

async fn serve(
    request: Request<Incoming>,
    steps: mpsc::UnboundedSender<Step>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    if request.method() == Method::GET && path.ends_with("/invocation/next") {
        let (send, event) = oneshot::channel();
        let _ = steps.send(Step::Next(send));
        // Without an event, the function is about to be stopped.
        let event = match event.await {
            Ok(event) => event,
            Err(_) => std::future::pending().await,
        };
        let response = Response::builder()
            .header("content-type", "application/json")
            .header("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd")
            .header("lambda-runtime-deadline-ms", "4102444800000")
            .header(
                "lambda-runtime-invoked-function-arn",
                "arn:aws:lambda:us-east-1:000000000000:function:bench",
            )
            .header(
                "lambda-runtime-trace-id",
                "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0",
            )
            .body(Full::new(Bytes::from(event)));
        return Ok(response.unwrap_or_default());
    }
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let answered = Instant::now();
    let _ = steps.send(if path.ends_with("/response") {
        Step::Response(body, answered)
    } else {
        Step::Failed(body)
    });
    Ok(Response::builder().status(202).body(Full::default()).unwrap_or_default())
}
