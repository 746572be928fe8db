//! The Lambda Runtime API, for binaries that are built to run on AWS.
//!
//! | route, after `/{function}/{instance}/2018-06-01/runtime` | |
//! |---|---|
//! | `GET /invocation/next` | waits for an invocation; the body is the event, and headers hold its id and deadline |
//! | `POST /invocation/{id}/response` | the answer of the function |
//! | `POST /invocation/{id}/error` | the error of the function: `{"errorType":"…","errorMessage":"…"}` |
//! | `POST /init/error` | an error before the first invocation |
//!
//! The path names the instance. So one port serves all instances, and when an instance ends, its invocation
//! is known. The environment variable `AWS_LAMBDA_RUNTIME_API` holds the base address, as a full URI because
//! it has a path: see [`RuntimeApi::address_for`].

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

use super::{InvokeError, MAX_PAYLOAD_BYTES, REGION};

/// An instance of a function: the name of the function, and a number.
pub type Instance = (String, u32);

type Answer = oneshot::Sender<Result<Vec<u8>, InvokeError>>;

/// The Runtime API on a port of its own. Clones share the port.
#[derive(Clone)]
pub struct RuntimeApi {
    shared: Arc<Shared>,
}

struct Shared {
    address: String,
    functions: HashMap<String, Invocations>,
    instances: Mutex<HashMap<Instance, InstanceState>>,
    /// Notified when an instance becomes ready, reports that it cannot start, or ends.
    changed: Notify,
}

/// The queue of a function: invocations that no instance has taken yet.
struct Invocations {
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
struct InstanceState {
    ready: bool,
    init_error: Option<String>,
    invocation: Option<(String, Answer)>,
    /// Notified when the instance must be stopped.
    stop: Arc<Notify>,
}

impl RuntimeApi {
    /// Serves these functions on a free port of the loopback interface, until the process ends.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(functions: &[&str]) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let queue = |name: &&str| {
            let (send, take) = mpsc::unbounded_channel();
            ((*name).to_owned(), Invocations { send, take: tokio::sync::Mutex::new(take) })
        };
        let runtime_api = Self {
            shared: Arc::new(Shared {
                address: listener.local_addr()?.to_string(),
                functions: functions.iter().map(queue).collect(),
                instances: Mutex::default(),
                changed: Notify::new(),
            }),
        };
        let api = Router::new()
            .route("/{function}/{instance}/2018-06-01/runtime/invocation/next", get(next))
            .route("/{function}/{instance}/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/{function}/{instance}/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/{function}/{instance}/2018-06-01/runtime/init/error", post(init_error))
            .layer(DefaultBodyLimit::max(MAX_PAYLOAD_BYTES))
            .with_state(runtime_api.clone());
        tokio::spawn(async move { axum::serve(listener, api).await });
        Ok(runtime_api)
    }

    /// The value of `AWS_LAMBDA_RUNTIME_API` for an instance.
    pub fn address_for(&self, (function, number): &Instance) -> String {
        format!("http://{}/{function}/{number}", self.shared.address)
    }

    /// Gives an event to the first instance that asks for an invocation.
    ///
    /// # Errors
    /// [`InvokeError`]. After a timeout the instance must be stopped: see [`RuntimeApi::must_stop`].
    pub async fn invoke(
        &self,
        function: &str,
        event: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, InvokeError> {
        let Some(invocations) = self.shared.functions.get(function) else {
            return Err(InvokeError::Crashed(format!("there is no function {function}")));
        };
        let (answer, answered) = oneshot::channel();
        let id = Uuid::new_v4().to_string();
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + timeout;
        let invocation = Invocation { id: id.clone(), event, deadline_ms: deadline.as_millis(), answer };
        if invocations.send.send(invocation).is_err() {
            return Err(InvokeError::Crashed("the Runtime API has stopped".into()));
        }
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(InvokeError::Crashed("the instance ended".into())),
            Err(_) => {
                let instances = self.instances();
                let has_invocation = |state: &&InstanceState| {
                    state.invocation.as_ref().is_some_and(|(invocation, _)| *invocation == id)
                };
                if let Some(state) = instances.values().find(has_invocation) {
                    state.stop.notify_one();
                }
                Err(InvokeError::TimedOut)
            }
        }
    }

    /// Waits until the instance must be stopped because its invocation timed out.
    pub async fn must_stop(&self, instance: &Instance) {
        let stop = Arc::clone(&self.instances().entry(instance.clone()).or_default().stop);
        stop.notified().await;
    }

    /// Records that the process of an instance has ended. Its invocation fails.
    pub fn instance_ended(&self, instance: &Instance, how: &str) {
        let state = self.instances().remove(instance);
        if let Some((_, answer)) = state.and_then(|state| state.invocation) {
            // Sending fails when the invocation timed out before.
            let _ = answer.send(Err(InvokeError::Crashed(how.to_owned())));
        }
        self.shared.changed.notify_waiters();
    }

    /// Waits until the instance asks for its first invocation.
    ///
    /// # Errors
    /// The error that the instance reported instead.
    pub async fn ready(&self, instance: &Instance) -> Result<(), String> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(state) = self.instances().get(instance) {
                if let Some(error) = &state.init_error {
                    return Err(error.clone());
                }
                if state.ready {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    fn instances(&self) -> MutexGuard<'_, HashMap<Instance, InstanceState>> {
        self.shared.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the current invocation of an instance. The answer is 400 when the id is another one.
    fn finish(&self, instance: &Instance, id: &str, result: Result<Vec<u8>, InvokeError>) -> Response {
        let mut instances = self.instances();
        let invocation = instances
            .get_mut(instance)
            .and_then(|state| state.invocation.take_if(|(invocation, _)| invocation == id));
        match invocation {
            Some((_, answer)) => {
                // Sending fails when the invocation timed out before.
                let _ = answer.send(result);
                (StatusCode::ACCEPTED, Json(json!({ "status": "OK" }))).into_response()
            }
            None => {
                let error = json!({
                    "errorType": "InvalidRequestID",
                    "errorMessage": format!("{id} is not the current invocation of this instance"),
                });
                (StatusCode::BAD_REQUEST, Json(error)).into_response()
            }
        }
    }
}

async fn next(State(runtime_api): State<RuntimeApi>, Path(instance): Path<Instance>) -> Response {
    let Some(invocations) = runtime_api.shared.functions.get(&instance.0) else {
        let message = format!("there is no function {}", instance.0);
        let error = json!({ "errorType": "NotFound", "errorMessage": message });
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    };
    let unanswered = {
        let mut instances = runtime_api.instances();
        let state = instances.entry(instance.clone()).or_default();
        state.ready = true;
        state.invocation.take()
    };
    if let Some((_, answer)) = unanswered {
        let _ = answer.send(Err(InvokeError::Crashed(
            "the instance asked for the next invocation without answering this one".into(),
        )));
    }
    runtime_api.shared.changed.notify_waiters();
    loop {
        let Some(invocation) = invocations.take.lock().await.recv().await else {
            return StatusCode::GONE.into_response();
        };
        if invocation.answer.is_closed() {
            continue; // The invocation timed out before an instance was free.
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
        runtime_api.instances().entry(instance).or_default().invocation =
            Some((invocation.id, invocation.answer));
        return (headers, invocation.event).into_response();
    }
}

async fn response(
    State(runtime_api): State<RuntimeApi>,
    Path((function, number, id)): Path<(String, u32, String)>,
    body: Bytes,
) -> Response {
    runtime_api.finish(&(function, number), &id, Ok(body.to_vec()))
}

async fn error(
    State(runtime_api): State<RuntimeApi>,
    Path((function, number, id)): Path<(String, u32, String)>,
    body: Bytes,
) -> Response {
    runtime_api.finish(&(function, number), &id, Err(InvokeError::Returned(error_text(&body))))
}

async fn init_error(
    State(runtime_api): State<RuntimeApi>,
    Path(instance): Path<Instance>,
    body: Bytes,
) -> Response {
    runtime_api.instances().entry(instance).or_default().init_error = Some(error_text(&body));
    runtime_api.shared.changed.notify_waiters();
    (StatusCode::ACCEPTED, Json(json!({ "status": "OK" }))).into_response()
}

/// `{"errorType":"…","errorMessage":"…"}` as one line.
fn error_text(body: &[u8]) -> String {
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
    use hyper_util::client::legacy::Client;
    use hyper_util::client::legacy::connect::HttpConnector;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// An instance in place of a process: the test makes its requests one by one.
    struct TestInstance {
        base: String,
        client: Client<HttpConnector, Body>,
    }

    impl TestInstance {
        fn new(runtime_api: &RuntimeApi, instance: &Instance) -> Self {
            let base = format!("{}/2018-06-01/runtime", runtime_api.address_for(instance));
            Self { client: Client::builder(TokioExecutor::new()).build_http(), base }
        }

        /// The id and the event.
        async fn next(&self) -> (String, String) {
            let request = Request::get(format!("{}/invocation/next", self.base)).body(Body::empty()).unwrap();
            let answer = self.client.request(request).await.unwrap();
            let id = answer.headers()["lambda-runtime-aws-request-id"].to_str().unwrap().to_owned();
            assert!(answer.headers()["lambda-runtime-deadline-ms"].to_str().unwrap().parse::<u64>().is_ok());
            let body = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await.unwrap();
            (id, String::from_utf8(body.to_vec()).unwrap())
        }

        async fn post(&self, path: &str, body: &str) -> u16 {
            let request =
                Request::post(format!("{}{path}", self.base)).body(Body::from(body.to_owned())).unwrap();
            self.client.request(request).await.unwrap().status().as_u16()
        }
    }

    async fn start() -> (RuntimeApi, Instance, TestInstance) {
        let runtime_api = RuntimeApi::start(&["paid"]).await.unwrap();
        let instance = ("paid".to_owned(), 1);
        let client = TestInstance::new(&runtime_api, &instance);
        (runtime_api, instance, client)
    }

    fn invoke(
        runtime_api: &RuntimeApi,
        event: &str,
        timeout: Duration,
    ) -> tokio::task::JoinHandle<Result<Vec<u8>, InvokeError>> {
        let (runtime_api, event) = (runtime_api.clone(), event.as_bytes().to_vec());
        tokio::spawn(async move { runtime_api.invoke("paid", event, timeout).await })
    }

    #[tokio::test]
    async fn the_answer_of_an_instance_is_returned_to_the_caller() {
        let (runtime_api, instance, client) = start().await;
        let answer = invoke(&runtime_api, "{}", SECOND);
        let (id, event) = client.next().await;
        assert_eq!(event, "{}");
        runtime_api.ready(&instance).await.unwrap();
        assert_eq!(client.post("/invocation/another/response", "1").await, 400);
        assert_eq!(client.post(&format!("/invocation/{id}/response"), "null").await, 202);
        assert_eq!(answer.await.unwrap(), Ok(b"null".to_vec()));

        let answer = invoke(&runtime_api, "{}", SECOND);
        let (id, _) = client.next().await;
        let error = r#"{"errorType":"Oops","errorMessage":"no","stackTrace":[]}"#;
        assert_eq!(client.post(&format!("/invocation/{id}/error"), error).await, 202);
        assert_eq!(answer.await.unwrap(), Err(InvokeError::Returned("Oops: no".into())));
        assert_eq!(client.post(&format!("/invocation/{id}/response"), "late").await, 400);
    }

    #[tokio::test]
    async fn an_invocation_fails_at_once_when_its_instance_ends() {
        let (runtime_api, instance, client) = start().await;
        let answer = invoke(&runtime_api, "{}", Duration::from_secs(60));
        client.next().await;
        runtime_api.instance_ended(&instance, "signal: 9");
        assert_eq!(answer.await.unwrap(), Err(InvokeError::Crashed("signal: 9".into())));
    }

    #[tokio::test]
    async fn an_instance_whose_invocation_timed_out_must_be_stopped() {
        let (runtime_api, instance, client) = start().await;
        let answer = invoke(&runtime_api, "{}", Duration::from_millis(100));
        client.next().await;
        runtime_api.must_stop(&instance).await;
        assert_eq!(answer.await.unwrap(), Err(InvokeError::TimedOut));
    }

    #[tokio::test]
    async fn an_invocation_that_timed_out_is_not_given_to_an_instance() {
        let (runtime_api, _, client) = start().await;
        assert_eq!(
            runtime_api.invoke("paid", b"old".to_vec(), Duration::from_millis(20)).await,
            Err(InvokeError::TimedOut)
        );
        let answer = invoke(&runtime_api, "new", SECOND);
        let (id, event) = client.next().await;
        assert_eq!(event, "new");
        client.post(&format!("/invocation/{id}/response"), "1").await;
        assert_eq!(answer.await.unwrap(), Ok(b"1".to_vec()));
    }

    #[tokio::test]
    async fn an_error_before_the_first_invocation_is_reported() {
        let (runtime_api, instance, client) = start().await;
        assert_eq!(
            client.post("/init/error", r#"{"errorType":"Runtime.Init","errorMessage":"no secret"}"#).await,
            202
        );
        assert_eq!(runtime_api.ready(&instance).await, Err("Runtime.Init: no secret".to_owned()));
    }
}
