//! The AWS endpoint: DynamoDB and SQS on one port. The header `X-Amz-Target` tells them apart.
//!
//! SQS is this crate's own and answers directly. DynamoDB is dynoxide. Its HTTP layer checks requests as AWS
//! does, but can only serve a listener of its own: it gets a free port, and requests are forwarded there. The
//! tokens of transactions are kept here (`transaction_tokens.rs`).
//!
//! Signatures are not checked, so everyone who can connect may do everything. Therefore the endpoint listens
//! on the loopback interface only, and refuses requests with an `Origin`, because they come from a web page.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header, uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use dynoxide::Database;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::transaction_tokens::TransactionTokens;
use crate::sqs::Sqs;

/// Requests and answers of DynamoDB have at most 16 MB.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;

#[derive(Clone)]
struct DynamoDb {
    address: SocketAddr,
    client: Client<HttpConnector, Body>,
    tokens: TransactionTokens,
}

/// Serves DynamoDB on a port of its own until `stopped` ends.
///
/// # Errors
/// When no port can be bound.
pub(super) async fn serve_dynamodb(
    database: Database,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot bind a port for DynamoDB")?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move {
        if let Err(error) = dynoxide::server::serve_with_shutdown(listener, database, stopped).await {
            tracing::error!(error, "DynamoDB stopped");
        }
    });
    Ok((address, server))
}

/// The routes of the endpoint. `dynamodb` is the address of the DynamoDB server.
pub(super) fn router(sqs: &Sqs, dynamodb: SocketAddr) -> Router {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    sqs.router().layer(from_fn_with_state(
        DynamoDb { address: dynamodb, client, tokens: TransactionTokens::default() },
        dispatch,
    ))
}

async fn dispatch(State(dynamodb): State<DynamoDb>, request: Request, next: Next) -> Response {
    if request.headers().contains_key("origin") {
        return (StatusCode::FORBIDDEN, "this endpoint is not for web pages\n").into_response();
    }
    let target =
        request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    if target == "DynamoDB_20120810.TransactWriteItems" {
        return dynamodb.transact(request).await;
    }
    if target.starts_with("DynamoDB") {
        return dynamodb.forward(request).await;
    }
    if request.method() == Method::GET {
        let host =
            request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1:9001");
        return help(host).into_response();
    }
    next.run(request).await
}

impl DynamoDb {
    /// Runs a transaction once for its token. It runs in a task of its own: a caller that stops waiting and
    /// tries again gets the answer of the same transaction.
    async fn transact(self, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
            return (StatusCode::PAYLOAD_TOO_LARGE, "a request to DynamoDB has at most 16 MB\n")
                .into_response();
        };
        let Some(transaction) = self.tokens.take(&body) else {
            return self.forward(Request::from_parts(parts, body.into())).await;
        };
        let task = tokio::spawn(async move {
            parts.headers.remove(header::CONTENT_LENGTH);
            let request = Request::from_parts(parts, transaction.body.clone().into());
            let answer = transaction.once(|| self.answer(request)).await;
            answer.unwrap_or_else(|refused| refused)
        });
        task.await
            .unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response())
    }

    /// The body of a 200. Any other answer is the error.
    async fn answer(&self, request: Request) -> Result<Bytes, Response> {
        let answer = self.forward(request).await;
        if answer.status() != StatusCode::OK {
            return Err(answer);
        }
        let incomplete = |error: axum::Error| {
            (StatusCode::BAD_GATEWAY, format!("the embedded DynamoDB stopped answering: {error}\n"))
                .into_response()
        };
        to_bytes(answer.into_body(), MAX_BODY_BYTES).await.map_err(incomplete)
    }

    async fn forward(&self, mut request: Request) -> Response {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let to = uri::Builder::new().scheme("http").authority(self.address.to_string()).path_and_query(path);
        *request.uri_mut() = to.build().expect("an address and the path of a uri are a uri");
        match self.client.request(request).await {
            Ok(answer) => answer.map(Body::new),
            Err(error) => {
                (StatusCode::BAD_GATEWAY, format!("the embedded DynamoDB does not answer: {error}\n"))
                    .into_response()
            }
        }
    }
}

fn help(host: &str) -> String {
    format!(
        "tallyhook's local AWS endpoint: DynamoDB and SQS.\n\n\
         export AWS_ENDPOINT_URL=http://{host} AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local\n\
         aws dynamodb list-tables\n\
         aws sqs list-queues\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::Credentials;

    async fn endpoint() -> (String, Sqs) {
        let sqs = Sqs::open(None, crate::sqs::system_clock()).unwrap();
        let (dynamodb, _) =
            serve_dynamodb(Database::memory().unwrap(), std::future::pending()).await.unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = router(&sqs, dynamodb);
        tokio::spawn(async move { axum::serve(listener, app).await });
        (url, sqs)
    }

    #[tokio::test]
    async fn one_port_serves_both_dynamodb_and_sqs_to_the_aws_sdk() {
        let (url, _) = endpoint().await;
        let credentials = Credentials::new("id", "key", None, None, "test");
        let http = aws_smithy_http_client::Builder::new().build_http();
        let sqs = aws_sdk_sqs::Client::from_conf(
            aws_sdk_sqs::Config::builder()
                .region(aws_sdk_sqs::config::Region::new("us-east-1"))
                .credentials_provider(credentials.clone())
                .http_client(http.clone())
                .endpoint_url(&url)
                .build(),
        );
        let dynamodb = aws_sdk_dynamodb::Client::from_conf(
            aws_sdk_dynamodb::Config::builder()
                .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
                .credentials_provider(credentials)
                .http_client(http)
                .endpoint_url(&url)
                .build(),
        );
        let queue = sqs.create_queue().queue_name("work").send().await.unwrap();
        assert_eq!(queue.queue_url(), Some(format!("{url}/000000000000/work").as_str()));
        assert!(dynamodb.list_tables().send().await.unwrap().table_names().is_empty());
        let missing = dynamodb
            .get_item()
            .table_name("none")
            .key("pk", aws_sdk_dynamodb::types::AttributeValue::S("a".into()))
            .send()
            .await;
        assert!(missing.unwrap_err().into_service_error().is_resource_not_found_exception());
    }

    #[tokio::test]
    async fn a_request_of_a_web_page_is_refused() {
        let (url, _) = endpoint().await;
        let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
        for target in ["DynamoDB_20120810.ListTables", "AmazonSQS.ListQueues"] {
            let request = Request::post(&url)
                .header("origin", "https://example.com")
                .header("x-amz-target", target)
                .body(Body::from("{}"))
                .unwrap();
            assert_eq!(client.request(request).await.unwrap().status(), 403);
        }
    }
}
