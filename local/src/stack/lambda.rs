//! Functions, and how one is invoked: with JSON in and JSON out, as Lambda does it.
//!
//! A [`Function`] is either a handler of this process, or a binary that runs as a child process and asks for
//! its invocations over the Runtime API ([`host`]). Whoever invokes does not see which. An in-process handler
//! is never given a Rust value: its event is written as JSON and read again, its answer too, so that what
//! works here does not depend on types that JSON does not carry.

pub mod host;
pub mod process;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lambda_http::request::LambdaRequest;
use lambda_http::{Adapter, Context, LambdaEvent, Service, service_fn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long an invocation may take, as `Timeout` in the template.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The largest event and the largest answer of an invocation, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 6 * 1024 * 1024;

/// The region everything claims to be in.
pub const REGION: &str = "us-east-1";

/// What an in-process function does with an event. The error is what it would have reported to Lambda.
pub type Handler =
    Arc<dyn Fn(Vec<u8>) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>> + Send + Sync>;

/// Why an invocation has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The function answered with an error.
    #[error("the function failed: {0}")]
    Error(String),
    /// The function panicked, or its process ended.
    #[error("the function crashed: {0}")]
    Crashed(String),
    /// It took longer than its time-out.
    #[error("the function timed out")]
    TimedOut,
    /// The event is larger than an invocation may be.
    #[error("the event is larger than an invocation may be")]
    TooLarge,
}

/// A function that can be invoked. Clones are the same function.
#[derive(Clone)]
pub struct Function {
    name: Arc<str>,
    run: Run,
    timeout: Duration,
}

#[derive(Clone)]
enum Run {
    InProcess(Handler),
    Hosted(host::Host),
}

impl Function {
    /// A function that is a handler of this process.
    pub fn in_process(name: &str, handler: Handler) -> Self {
        Self { name: name.into(), run: Run::InProcess(handler), timeout: TIMEOUT }
    }

    /// A function whose instances ask this host for work.
    pub fn hosted(name: &str, host: host::Host) -> Self {
        Self { name: name.into(), run: Run::Hosted(host), timeout: TIMEOUT }
    }

    /// The same function with another time-out.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Its name: `invoice-paid`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Invokes it and answers what it answered, byte for byte.
    ///
    /// # Errors
    /// [`Failure`]. A function that timed out was stopped; it may have done its work all the same.
    pub async fn invoke(&self, event: &Value) -> Result<Vec<u8>, Failure> {
        let event = event.to_string().into_bytes();
        if event.len() > MAX_PAYLOAD_BYTES {
            return Err(Failure::TooLarge);
        }
        match &self.run {
            Run::InProcess(handler) => self.invoke_in_process(handler, event).await,
            Run::Hosted(host) => host.invoke(&self.name, event, self.timeout).await,
        }
    }

    /// In a task of its own: a panic ends this invocation and nothing else, and a caller who stops waiting
    /// does not stop it.
    async fn invoke_in_process(&self, handler: &Handler, event: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let mut task = tokio::spawn(handler(event));
        match tokio::time::timeout(self.timeout, &mut task).await {
            Ok(Ok(answer)) => answer.map_err(Failure::Error),
            Ok(Err(ended)) => Err(Failure::Crashed(ended.to_string())),
            Err(_) => {
                task.abort();
                Err(Failure::TimedOut)
            }
        }
    }
}

/// A handler of HTTP requests, as `lambda_http::run` would call it.
pub fn http<F, A>(handle: F) -> Handler
where
    F: Fn(lambda_http::Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<lambda_http::Response<lambda_http::Body>, lambda_http::Error>> + Send + 'static,
{
    Arc::new(move |event| {
        let handle = handle.clone();
        Box::pin(async move {
            let request: LambdaRequest = serde_json::from_slice(&event).map_err(|error| error.to_string())?;
            let event = LambdaEvent::new(request, Context::default());
            let answer =
                Adapter::from(service_fn(handle)).call(event).await.map_err(|error| error.to_string())?;
            serde_json::to_vec(&answer).map_err(|error| error.to_string())
        })
    })
}

/// A handler of any events, as `lambda_runtime::run` would call it; `timeout` becomes the deadline in their
/// context.
pub fn runtime<E, F, A, R>(timeout: Duration, handle: F) -> Handler
where
    E: DeserializeOwned + Send + 'static,
    F: Fn(LambdaEvent<E>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<R, lambda_runtime::Error>> + Send + 'static,
    R: Serialize + 'static,
{
    Arc::new(move |event| {
        let handle = handle.clone();
        Box::pin(async move {
            let event: E = serde_json::from_slice(&event).map_err(|error| error.to_string())?;
            let mut context = Context::default();
            let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + timeout;
            context.deadline = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            let answer = handle(LambdaEvent::new(event, context)).await.map_err(|error| error.to_string())?;
            serde_json::to_vec(&answer).map_err(|error| error.to_string())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(handler: fn() -> Result<Vec<u8>, String>) -> Function {
        Function::in_process("f", Arc::new(move |_| Box::pin(async move { handler() })))
    }

    #[tokio::test]
    async fn an_error_a_panic_and_a_time_out_end_the_invocation_and_nothing_else() {
        assert_eq!(function(|| Ok(b"{}".to_vec())).invoke(&Value::Null).await, Ok(b"{}".to_vec()));
        assert_eq!(
            function(|| Err("no".into())).invoke(&Value::Null).await,
            Err(Failure::Error("no".into()))
        );
        assert!(matches!(
            function(|| panic!("on purpose")).invoke(&Value::Null).await,
            Err(Failure::Crashed(_))
        ));
        let slow: Handler = Arc::new(|_| Box::pin(std::future::pending()));
        let slow = Function::in_process("slow", slow).with_timeout(Duration::from_millis(10));
        assert_eq!(slow.invoke(&Value::Null).await, Err(Failure::TimedOut));
    }

    #[tokio::test]
    async fn an_event_larger_than_lambda_takes_is_not_handed_over() {
        let event = Value::String("x".repeat(MAX_PAYLOAD_BYTES));
        assert_eq!(function(|| Ok(Vec::new())).invoke(&event).await, Err(Failure::TooLarge));
    }
}
