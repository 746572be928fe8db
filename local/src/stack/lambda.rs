//! Functions, invoked with JSON as on Lambda.
//!
//! A [`Function`] is a handler in this process, or a binary in a child process that gets its invocations from
//! the Runtime API ([`runtime_api`]). The caller sees no difference. A handler in this process gets its event
//! as JSON text too and returns JSON text, so that it cannot depend on a Rust type that JSON does not carry.

pub mod process;
pub mod runtime_api;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lambda_http::request::LambdaRequest;
use lambda_http::{Adapter, Context, LambdaEvent, Service, service_fn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The timeout of most functions, as in `template.yaml`.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum size of an event and of an answer, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 6 * 1024 * 1024;

/// The region in every ARN.
pub const REGION: &str = "us-east-1";

/// A function in this process: from the event to the answer. The error is what Lambda would receive.
pub type Handler =
    Arc<dyn Fn(Vec<u8>) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>> + Send + Sync>;

/// Why an invocation has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    /// The function returned an error.
    #[error("the function failed: {0}")]
    Returned(String),
    /// The function panicked, or its process ended.
    #[error("the function crashed: {0}")]
    Crashed(String),
    /// The invocation took longer than the timeout.
    #[error("the function timed out")]
    TimedOut,
    /// The event is larger than [`MAX_PAYLOAD_BYTES`].
    #[error("the event is larger than 6 MB")]
    TooLarge,
}

/// A function that can be invoked. Clones invoke the same function.
#[derive(Clone)]
pub struct Function {
    name: Arc<str>,
    runner: Runner,
    timeout: Duration,
}

#[derive(Clone)]
enum Runner {
    InProcess(Handler),
    Binary(runtime_api::RuntimeApi),
}

impl Function {
    /// A function that is a handler in this process.
    pub fn in_process(name: &str, handler: Handler) -> Self {
        Self { name: name.into(), runner: Runner::InProcess(handler), timeout: TIMEOUT }
    }

    /// A function with binaries that get their invocations from this Runtime API.
    pub fn with_binary(name: &str, runtime_api: runtime_api::RuntimeApi) -> Self {
        Self { name: name.into(), runner: Runner::Binary(runtime_api), timeout: TIMEOUT }
    }

    /// The same function with another timeout.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The name: `invoice-paid`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Invokes the function and returns its answer, byte for byte.
    ///
    /// # Errors
    /// [`InvokeError`]. A function that timed out was stopped. It may have done its work before.
    pub async fn invoke(&self, event: &Value) -> Result<Vec<u8>, InvokeError> {
        let event = event.to_string().into_bytes();
        if event.len() > MAX_PAYLOAD_BYTES {
            return Err(InvokeError::TooLarge);
        }
        match &self.runner {
            Runner::InProcess(handler) => self.invoke_in_process(handler, event).await,
            Runner::Binary(runtime_api) => runtime_api.invoke(&self.name, event, self.timeout).await,
        }
    }

    /// Runs the handler in a task of its own: a panic ends only this invocation, and the handler continues
    /// when the caller stops waiting.
    async fn invoke_in_process(&self, handler: &Handler, event: Vec<u8>) -> Result<Vec<u8>, InvokeError> {
        let mut task = tokio::spawn(handler(event));
        match tokio::time::timeout(self.timeout, &mut task).await {
            Ok(Ok(answer)) => answer.map_err(InvokeError::Returned),
            Ok(Err(panic)) => Err(InvokeError::Crashed(panic.to_string())),
            Err(_) => {
                task.abort();
                Err(InvokeError::TimedOut)
            }
        }
    }
}

/// A handler of HTTP requests. It is called as `lambda_http::run` calls it.
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

/// A handler of any event. It is called as `lambda_runtime::run` calls it, with a deadline `timeout` from the
/// start of the invocation.
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
    async fn an_error_a_panic_and_a_timeout_end_only_the_invocation() {
        assert_eq!(function(|| Ok(b"{}".to_vec())).invoke(&Value::Null).await, Ok(b"{}".to_vec()));
        assert_eq!(
            function(|| Err("no".into())).invoke(&Value::Null).await,
            Err(InvokeError::Returned("no".into()))
        );
        assert!(matches!(
            function(|| panic!("on purpose")).invoke(&Value::Null).await,
            Err(InvokeError::Crashed(_))
        ));
        let slow: Handler = Arc::new(|_| Box::pin(std::future::pending()));
        let slow = Function::in_process("slow", slow).with_timeout(Duration::from_millis(10));
        assert_eq!(slow.invoke(&Value::Null).await, Err(InvokeError::TimedOut));
    }

    #[tokio::test]
    async fn an_event_that_is_too_large_is_refused() {
        let event = Value::String("x".repeat(MAX_PAYLOAD_BYTES));
        assert_eq!(function(|| Ok(Vec::new())).invoke(&event).await, Err(InvokeError::TooLarge));
    }
}
