//! The Lambda Runtime API, for binaries that are built to run on AWS.
//!
//! | route, after `/{function}/{instance}/2018-06-01/runtime` | |
//! |---|---|
//! | `GET /invocation/next` | answers when there is an invocation: its event, and its id and deadline as headers |
//! | `POST /invocation/{id}/response` | the answer |
//! | `POST /invocation/{id}/error` | `{"errorType":"…","errorMessage":"…"}` instead of one |
//! | `POST /init/error` | the same, before the first invocation |
//!
//! The path names the instance, so that one port serves all of them and the host knows whose invocation is
//! lost when one dies. A binary takes its base from `AWS_LAMBDA_RUNTIME_API`, which must be a full URI as
//! soon as it has a path; [`Host::runtime_api`] makes it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::{Failure, MAX_PAYLOAD_BYTES, REGION};

/// A function's instance: its name and a number.
pub type Instance = (String, u32);

type Answer = oneshot::Sender<Result<Vec<u8>, Failure>>;

/// The Runtime API on a port of its own. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
}

struct Shared {
    address: String,
    functions: HashMap<String, Work>,
    state: Mutex<HashMap<Instance, Running>>,
    /// Rung when an instance is ready or says that it cannot start.
    changed: Notify,
}

/// A function's invocations that no instance has taken.
struct Work {
    send: mpsc::UnboundedSender<Invocation>,
    take: tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>,
}

struct Invocation {
    id: String,
    event: Vec<u8>,
    deadline_ms: u128,
    answer: Answer,
}

/// What an instance is doing.
#[derive(Default)]
struct Running {
    ready: bool,
    init_error: Option<String>,
    invocation: Option<(String, Answer)>,
    /// Rung when it must be stopped.
    stop: Arc<Notify>,
}

impl Host {
    /// Serves these functions on a free port of the loopback interface, for as long as the runtime lives.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(functions: &[&str]) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let work = |name: &&str| {
            let (send, take) = mpsc::unbounded_channel();
            ((*name).to_owned(), Work { send, take: tokio::sync::Mutex::new(take) })
        };
        let host = Self {
            shared: Arc::new(Shared {
                address: listener.local_addr()?.to_string(),
                functions: functions.iter().map(work).collect(),
                state: Mutex::default(),
                changed: Notify::new(),
            }),
        };
        let api = Router::new()
            .route("/{function}/{instance}/2018-06-01/runtime/invocation/next", get(next))
            .route("/{function}/{instance}/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/{function}/{instance}/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/{function}/{instance}/2018-06-01/runtime/init/error", post(init_error))
            .layer(DefaultBodyLimit::max(MAX_PAYLOAD_BYTES))
            .with_state(host.clone());
        tokio::spawn(async move { axum::serve(listener, api).await });
        Ok(host)
    }

    /// What an instance needs as `AWS_LAMBDA_RUNTIME_API`.
    pub fn runtime_api(&self, (function, number): &Instance) -> String {
        format!("http://{}/{function}/{number}", self.shared.address)
    }

    /// Hands an event to the first instance that asks.
    ///
    /// # Errors
    /// [`Failure`]. After a time-out the instance is to be stopped: see [`Host::must_stop`].
    pub async fn invoke(
        &self,
        function: &str,
        event: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let Some(work) = self.shared.functions.get(function) else {
            return Err(Failure::Crashed(format!("there is no function {function}")));
        };
        let (answer, answered) = oneshot::channel();
        let id = Uuid::new_v4().to_string();
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + timeout;
        let invocation = Invocation { id: id.clone(), event, deadline_ms: deadline.as_millis(), answer };
        if work.send.send(invocation).is_err() {
            return Err(Failure::Crashed("the host has stopped".into()));
        }
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::Crashed("the instance is gone".into())),
            Err(_) => {
                let state = self.state();
                if let Some(running) = state
                    .values()
                    .find(|running| running.invocation.as_ref().is_some_and(|(of, _)| *of == id))
                {
                    running.stop.notify_one();
                }
                Err(Failure::TimedOut)
            }
        }
    }

    /// Waits until the instance has to be stopped because its invocation timed out.
    pub async fn must_stop(&self, instance: &Instance) {
        let stop = Arc::clone(&self.state().entry(instance.clone()).or_default().stop);
        stop.notified().await;
    }

    /// Says that an instance's process has ended; what it was working on fails.
    pub fn lost(&self, instance: &Instance, how: &str) {
        let running = self.state().remove(instance);
        if let Some((_, answer)) = running.and_then(|running| running.invocation) {
            // Nobody listens when it timed out.
            let _ = answer.send(Err(Failure::Crashed(how.to_owned())));
        }
        self.shared.changed.notify_waiters();
    }

    /// Waits until the instance asks for its first invocation.
    ///
    /// # Errors
    /// What it reported instead.
    pub async fn ready(&self, instance: &Instance) -> Result<(), String> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(running) = self.state().get(instance) {
                if let Some(error) = &running.init_error {
                    return Err(error.clone());
                }
                if running.ready {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, HashMap<Instance, Running>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the invocation an instance is working on, if it is this one.
    fn finish(&self, instance: &Instance, id: &str, result: Result<Vec<u8>, Failure>) -> Response {
        let mut state = self.state();
        let invocation =
            state.get_mut(instance).and_then(|running| running.invocation.take_if(|(of, _)| of == id));
        match invocation {
            Some((_, answer)) => {
                // Nobody listens when it timed out.
                let _ = answer.send(result);
                (StatusCode::ACCEPTED, Json(json!({ "status": "OK" }))).into_response()
            }
            None => {
                let error = json!({ "errorType": "InvalidRequestID", "errorMessage": format!("{id} is not what this instance is working on") });
                (StatusCode::BAD_REQUEST, Json(error)).into_response()
            }
        }
    }
}

async fn next(State(host): State<Host>, Path(instance): Path<Instance>) -> Response {
    let Some(work) = host.shared.functions.get(&instance.0) else {
        let error = json!({ "errorType": "NotFound", "errorMessage": format!("there is no function {}", instance.0) });
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    };
    let unanswered = {
        let mut state = host.state();
        let running = state.entry(instance.clone()).or_default();
        running.ready = true;
        running.invocation.take()
    };
    if let Some((_, answer)) = unanswered {
        let _ = answer.send(Err(Failure::Crashed(
            "it asked for the next invocation without answering this one".into(),
        )));
    }
    host.shared.changed.notify_waiters();
    loop {
        let Some(invocation) = work.take.lock().await.recv().await else {
            return StatusCode::GONE.into_response();
        };
        if invocation.answer.is_closed() {
            continue; // It timed out before an instance was free.
        }
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("lambda-runtime-aws-request-id", invocation.id.clone()),
            ("lambda-runtime-deadline-ms", invocation.deadline_ms.to_string()),
            (
                "lambda-runtime-invoked-function-arn",
                format!("arn:aws:lambda:{REGION}:000000000000:function:{}", instance.0),
            ),
        ];
        host.state().entry(instance).or_default().invocation = Some((invocation.id, invocation.answer));
        return (headers, invocation.event).into_response();
    }
}

async fn response(
    State(host): State<Host>,
    Path((function, number, id)): Path<(String, u32, String)>,
    body: Bytes,
) -> Response {
    host.finish(&(function, number), &id, Ok(body.to_vec()))
}

async fn error(
    State(host): State<Host>,
    Path((function, number, id)): Path<(String, u32, String)>,
    body: Bytes,
) -> Response {
    host.finish(&(function, number), &id, Err(Failure::Error(reported(&body))))
}

async fn init_error(State(host): State<Host>, Path(instance): Path<Instance>, body: Bytes) -> Response {
    host.state().entry(instance).or_default().init_error = Some(reported(&body));
    host.shared.changed.notify_waiters();
    (StatusCode::ACCEPTED, Json(json!({ "status": "OK" }))).into_response()
}

/// `{"errorType":"…","errorMessage":"…"}` as one line.
fn reported(body: &[u8]) -> String {
    let report: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |field: &str| report.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    match (text("errorType"), text("errorMessage")) {
        (_, message) if message.is_empty() => String::from_utf8_lossy(body).into_owned(),
        (kind, message) => format!("{kind}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;

    use super::*;
    use crate::client::Client;

    const SECOND: Duration = Duration::from_secs(1);

    /// An instance that speaks the Runtime API by hand.
    struct Runtime {
        base: String,
        client: Client,
    }

    impl Runtime {
        fn of(host: &Host, instance: &Instance) -> Self {
            let base = format!("{}/2018-06-01/runtime", host.runtime_api(instance));
            Self { client: Client::for_url(&base).unwrap(), base }
        }

        /// The id and the event.
        async fn next(&self) -> (String, String) {
            let Client::Plain(client) = &self.client else { unreachable!("the host speaks plain http") };
            let request = Request::get(format!("{}/invocation/next", self.base)).body(Body::empty()).unwrap();
            let answer = client.request(request).await.unwrap();
            let id = answer.headers()["lambda-runtime-aws-request-id"].to_str().unwrap().to_owned();
            assert!(answer.headers()["lambda-runtime-deadline-ms"].to_str().unwrap().parse::<u64>().is_ok());
            let body = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await.unwrap();
            (id, String::from_utf8(body.to_vec()).unwrap())
        }

        async fn post(&self, path: &str, body: &str) -> u16 {
            let request =
                Request::post(format!("{}{path}", self.base)).body(Body::from(body.to_owned())).unwrap();
            self.client.send(request).await.unwrap().0.as_u16()
        }
    }

    async fn host() -> (Host, Instance, Runtime) {
        let host = Host::start(&["paid"]).await.unwrap();
        let instance = ("paid".to_owned(), 1);
        let runtime = Runtime::of(&host, &instance);
        (host, instance, runtime)
    }

    fn invoke(
        host: &Host,
        event: &str,
        timeout: Duration,
    ) -> tokio::task::JoinHandle<Result<Vec<u8>, Failure>> {
        let (host, event) = (host.clone(), event.as_bytes().to_vec());
        tokio::spawn(async move { host.invoke("paid", event, timeout).await })
    }

    #[tokio::test]
    async fn an_instance_gets_events_and_its_answers_come_back() {
        let (host, instance, runtime) = host().await;
        let answer = invoke(&host, "{}", SECOND);
        let (id, event) = runtime.next().await;
        assert_eq!(event, "{}");
        host.ready(&instance).await.unwrap();
        assert_eq!(runtime.post("/invocation/another/response", "1").await, 400);
        assert_eq!(runtime.post(&format!("/invocation/{id}/response"), "null").await, 202);
        assert_eq!(answer.await.unwrap(), Ok(b"null".to_vec()));

        let answer = invoke(&host, "{}", SECOND);
        let (id, _) = runtime.next().await;
        let error = r#"{"errorType":"Oops","errorMessage":"no","stackTrace":[]}"#;
        assert_eq!(runtime.post(&format!("/invocation/{id}/error"), error).await, 202);
        assert_eq!(answer.await.unwrap(), Err(Failure::Error("Oops: no".into())));
        assert_eq!(runtime.post(&format!("/invocation/{id}/response"), "late").await, 400);
    }

    #[tokio::test]
    async fn an_instance_that_dies_fails_its_invocation_at_once() {
        let (host, instance, runtime) = host().await;
        let answer = invoke(&host, "{}", Duration::from_secs(60));
        runtime.next().await;
        host.lost(&instance, "signal: 9");
        assert_eq!(answer.await.unwrap(), Err(Failure::Crashed("signal: 9".into())));
    }

    #[tokio::test]
    async fn an_instance_that_takes_too_long_has_to_be_stopped() {
        let (host, instance, runtime) = host().await;
        let answer = invoke(&host, "{}", Duration::from_millis(100));
        runtime.next().await;
        host.must_stop(&instance).await;
        assert_eq!(answer.await.unwrap(), Err(Failure::TimedOut));
    }

    #[tokio::test]
    async fn an_invocation_nobody_takes_times_out_and_is_not_handed_out_late() {
        let (host, _, runtime) = host().await;
        assert_eq!(
            host.invoke("paid", b"old".to_vec(), Duration::from_millis(20)).await,
            Err(Failure::TimedOut)
        );
        let answer = invoke(&host, "new", SECOND);
        let (id, event) = runtime.next().await;
        assert_eq!(event, "new");
        runtime.post(&format!("/invocation/{id}/response"), "1").await;
        assert_eq!(answer.await.unwrap(), Ok(b"1".to_vec()));
    }

    #[tokio::test]
    async fn what_stops_an_instance_from_starting_is_told() {
        let (host, instance, runtime) = host().await;
        assert_eq!(
            runtime.post("/init/error", r#"{"errorType":"Runtime.Init","errorMessage":"no secret"}"#).await,
            202
        );
        assert_eq!(host.ready(&instance).await, Err("Runtime.Init: no secret".to_owned()));
    }
}
