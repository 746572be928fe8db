//! The transport under the AWS SDK: it ends in an embedded DynamoDB and in the local stack's SQS, records the
//! calls, and fails those that a test chooses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use dynoxide::Database;
use local::sqs::Sqs;
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::{QueueAges, sdk_config_with};

/// How the transport fails a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers this status and body; the call has no effect.
    Answer(u16, Value),
    /// The call has its effect, and its answer is lost.
    LoseReply,
    /// The call has no effect, and the connection is reset.
    LoseRequest,
    /// The call has no effect and never ends: see [`World::until_hung`](super::World::until_hung).
    HangBefore,
    /// The call has its effect and never ends.
    HangAfter,
    /// A `BatchGetItem` reads only its first key and returns the others as unprocessed.
    ReadFirst,
}

/// An error as DynamoDB and SQS write it.
pub fn aws_error(status: u16, kind: &str) -> Fault {
    Fault::Answer(
        status,
        json!({"__type": format!("com.amazonaws.test#{kind}"), "message": "made up for a test"}),
    )
}

/// Cancels a transaction with this reason for the writes that contain `what`.
pub fn cancelled(call: &Call, what: &str, code: &str) -> Fault {
    let writes = call.request["TransactItems"].as_array().cloned().unwrap_or_default();
    let code = |write: &Value| json!({"Code": if write.to_string().contains(what) { code } else { "None" }});
    let reasons: Vec<Value> = writes.iter().map(code).collect();
    let kind = "com.amazonaws.dynamodb.v20120810#TransactionCanceledException";
    Fault::Answer(400, json!({"__type": kind, "message": "cancelled", "CancellationReasons": reasons}))
}

/// One recorded call.
#[derive(Clone, Debug)]
pub struct Call {
    /// The function that called; `None` is the test itself.
    pub function: Option<&'static str>,
    pub operation: String,
    pub request: Value,
    /// DynamoDB's capacity units of tables and indexes together, as AWS bills them.
    pub units: f64,
    /// Length of the request's body in bytes.
    pub bytes: usize,
}

type FaultPlan = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

#[derive(Clone)]
pub(super) struct Wire {
    pub(super) function: Option<&'static str>,
    pub(super) database: Arc<Database>,
    pub(super) sqs: Sqs,
    pub(super) calls: Arc<Mutex<Vec<Call>>>,
    /// Whether requests are dropped from the recorded calls.
    pub(super) counts_only: Arc<AtomicBool>,
    pub(super) faults: Arc<Mutex<Option<FaultPlan>>>,
    pub(super) hung: Arc<tokio::sync::Notify>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpClient for Wire {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let wire = self.clone();
        HttpConnectorFuture::new(async move {
            let target = request.headers().get("x-amz-target").unwrap_or_default().to_owned();
            let body = request.body().bytes().unwrap_or(b"{}").to_vec();
            let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
            let read = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let mut call =
                Call { function: wire.function, operation, request: read, units: 0.0, bytes: body.len() };
            if let Some(function) = call.function {
                crate::permissions::check(function, &call);
            }
            // Lets concurrent tasks run here, as they would during a network call.
            tokio::task::yield_now().await;
            let fault = wire.faults.lock().unwrap().as_mut().and_then(|plan| plan(&call));
            let mut unprocessed = None;
            if let Some(Fault::ReadFirst) = fault {
                unprocessed = Some(keep_first_key(&mut call.request));
            }
            let body = if target.starts_with("DynamoDB") && call.operation != "CreateTable" {
                let mut request = call.request.clone();
                request["ReturnConsumedCapacity"] = json!("TOTAL");
                request.to_string().into_bytes()
            } else {
                body
            };
            let lost = || ConnectorError::io("the connection was reset".into());
            match fault {
                Some(Fault::Answer(status, body)) => {
                    wire.calls.lock().unwrap().push(call);
                    return Ok(response(status, body.to_string().into_bytes(), None));
                }
                Some(Fault::LoseRequest) => {
                    wire.calls.lock().unwrap().push(call);
                    return Err(lost());
                }
                Some(Fault::HangBefore) => {
                    wire.calls.lock().unwrap().push(call);
                    wire.hung.notify_one();
                    return std::future::pending().await;
                }
                Some(Fault::LoseReply | Fault::HangAfter | Fault::ReadFirst) | None => {}
            }
            let mut answer = wire.carry_out(&target, &call.operation, &body).await;
            let answered: Value = answer
                .body()
                .bytes()
                .and_then(|body| serde_json::from_slice(body).ok())
                .unwrap_or(Value::Null);
            // A list of tables, or one table for a call that reads one.
            let consumed = &answered["ConsumedCapacity"];
            let per_table = consumed.as_array().map_or(std::slice::from_ref(consumed), Vec::as_slice);
            call.units = per_table.iter().filter_map(|table| table["CapacityUnits"].as_f64()).sum();
            if wire.counts_only.load(Ordering::Relaxed) {
                call.request = Value::Null;
            }
            wire.calls.lock().unwrap().push(call);
            if let Some(unprocessed) = unprocessed {
                let mut answered = answered;
                answered["UnprocessedKeys"] = unprocessed;
                answer = response(200, answered.to_string().into_bytes(), None);
            }
            match fault {
                Some(Fault::LoseReply) => return Err(lost()),
                Some(Fault::HangAfter) => {
                    wire.hung.notify_one();
                    return std::future::pending().await;
                }
                Some(Fault::Answer(..) | Fault::LoseRequest | Fault::HangBefore | Fault::ReadFirst)
                | None => {}
            }
            tokio::task::yield_now().await;
            Ok(answer)
        })
    }
}

impl Wire {
    /// Clients for this function, or for the test itself. Their calls are recorded, and a function's are
    /// checked against its role.
    pub(super) fn clients(
        &self,
        env: &Env,
        function: Option<&'static str>,
    ) -> (aws_sdk_dynamodb::Client, aws_sdk_sqs::Client) {
        let wire = Self { function, ..self.clone() };
        let config =
            sdk_config_with(env, Some("http://aws.test".to_owned()), SharedHttpClient::new(wire)).unwrap();
        (tallyhook_aws::sdk::dynamodb(&config), tallyhook_aws::sdk::sqs(&config))
    }

    /// Reads the age of the oldest messages for this function.
    pub(super) fn queue_ages(&self, env: &Env, function: &'static str) -> QueueAges {
        let wire = Self { function: Some(function), ..self.clone() };
        QueueAges::new(env).with_connector(SharedHttpConnector::new(wire))
    }

    async fn carry_out(&self, target: &str, operation: &str, body: &[u8]) -> HttpResponse {
        if !target.starts_with("DynamoDB") {
            let (status, body, error) = self.sqs.handle(target, "sqs.test", body).await;
            return response(status, body, error);
        }
        let database = &self.database;
        macro_rules! run {
            ($method:ident) => {
                serde_json::from_slice(body)
                    .map_err(|error| {
                        format!("{{\"__type\":\"SerializationException\",\"message\":\"{error}\"}}")
                    })
                    .and_then(|request| database.$method(request).map_err(|error| error.to_json()))
                    .map(|answer| serde_json::to_vec(&answer).unwrap())
            };
        }
        let answer = match operation {
            "CreateTable" => run!(create_table),
            "BatchGetItem" => run!(batch_get_item),
            "GetItem" => run!(get_item),
            "PutItem" => run!(put_item),
            "UpdateItem" => run!(update_item),
            "DeleteItem" => run!(delete_item),
            "BatchWriteItem" => run!(batch_write_item),
            "Query" => run!(query),
            "Scan" => run!(scan),
            "TransactWriteItems" => run!(transact_write_items),
            other => Err(format!("{{\"__type\":\"UnknownOperationException\",\"message\":\"{other}\"}}")),
        };
        match answer {
            Ok(body) => response(200, body, None),
            Err(body) => response(400, body.into_bytes(), None),
        }
    }
}

/// Keeps the first key of a `BatchGetItem` in the request and returns the others.
fn keep_first_key(request: &mut Value) -> Value {
    let mut rest = request["RequestItems"].clone();
    let tables: Vec<String> = rest.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    for (place, table) in tables.iter().enumerate() {
        let mut keys = rest[table]["Keys"].as_array().cloned().unwrap_or_default();
        if place == 0 {
            request["RequestItems"][table]["Keys"] = json!([keys.remove(0)]);
            rest[table]["Keys"] = json!(keys);
        } else if let Some(wanted) = request["RequestItems"].as_object_mut() {
            wanted.remove(table);
        }
        if let Some(left) = rest.as_object_mut().filter(|left| left[table]["Keys"] == json!([])) {
            left.remove(table);
        }
    }
    rest
}

fn response(status: u16, body: Vec<u8>, query_error: Option<String>) -> HttpResponse {
    let mut response = lambda_http::http::Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.0");
    if let Some(error) = query_error {
        response = response.header("x-amzn-query-error", error);
    }
    response.body(SdkBody::from(body)).unwrap().try_into().unwrap()
}
