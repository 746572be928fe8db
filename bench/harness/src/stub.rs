//! A stub of the parts of SQS and DynamoDB that the functions use, over TLS. It counts calls, can delay
//! responses, and accepts every request.
//!
//! A read finds what a transaction has put, so that an account has a history. Conditions are ignored.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The requests since the last call of [`Stub::take_requests`].
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Calls by operation.
    pub calls: BTreeMap<String, u32>,
    /// Bytes of the bodies.
    pub body_bytes: usize,
    /// Bytes of the request lines and headers, as HTTP/1.1 writes them.
    pub header_bytes: usize,
    /// TLS handshakes.
    pub handshakes: u32,
}

#[derive(Default)]
struct State {
    requests: Requests,
    items: HashMap<String, Value>,
    delay: Duration,
}

/// The stub. Clones share their state.
#[derive(Clone)]
pub struct Stub {
    state: Arc<Mutex<State>>,
    /// `https://localhost:PORT`
    pub url: String,
    /// The certificate authority of its certificate.
    pub ca_pem: String,
}

impl Stub {
    /// Serves on a free port of the loopback interface.
    pub async fn start() -> anyhow::Result<Self> {
        let ca_key = rcgen::KeyPair::generate()?;
        let mut ca = rcgen::CertificateParams::new(vec![])?;
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "bench");
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate()?;
        let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &issuer)?;
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];

        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let stub = Self {
            state: Arc::default(),
            url: format!("https://localhost:{}", listener.local_addr()?.port()),
            ca_pem,
        };
        let (serving, acceptor) = (stub.clone(), TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let (stub, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(socket) = acceptor.accept(socket).await else { return };
                    stub.with(|state| state.requests.handshakes += 1);
                    let answer = service_fn(|request| stub.answer(request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), answer)
                        .await;
                });
            }
        });
        Ok(stub)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The requests since the last call of this function.
    pub fn take_requests(&self) -> Requests {
        self.with(|state| std::mem::take(&mut state.requests))
    }

    /// Deletes all items.
    pub fn forget(&self) {
        self.with(|state| state.items.clear());
    }

    /// Delays every response from now on.
    pub fn delay(&self, delay: Duration) {
        self.with(|state| state.delay = delay);
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let target =
            parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let line = format!("{} {} HTTP/1.1\r\n", parts.method, parts.uri.path()).len() + 2;
        let headers: usize =
            parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (answer, delay) = self.with(|state| {
            *state.requests.calls.entry(operation.clone()).or_default() += 1;
            state.requests.body_bytes += body.len();
            state.requests.header_bytes += line + headers;
            (state.execute(&operation, &asked), state.delay)
        });
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let response = Response::builder()
            .header("content-type", "application/x-amz-json-1.0")
            .body(Full::new(Bytes::from(answer.to_string())));
        Ok(response.unwrap_or_default())
    }
}

impl State {
    fn execute(&mut self, operation: &str, asked: &Value) -> Value {
        match operation {
            "SendMessage" => {
                let md5 = Md5::digest(asked["MessageBody"].as_str().unwrap_or_default());
                let hex: String = md5.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({"MessageId": "5fea7756-0ea4-451a-a703-a558b933e274", "MD5OfMessageBody": hex})
            }
            "GetQueueAttributes" => {
                json!({"Attributes": {"QueueArn": "arn:aws:sqs:us-east-1:000000000000:bench"}})
            }
            "GetItem" => json!({}),
            "BatchGetItem" => {
                let tables = asked["RequestItems"].as_object().into_iter().flatten();
                let found = |(table, wanted): (&String, &Value)| {
                    let keys = wanted["Keys"].as_array().into_iter().flatten();
                    let items: Vec<&Value> =
                        keys.filter_map(|key| self.items.get(&place(table, key))).collect();
                    (table.clone(), json!(items))
                };
                let responses: serde_json::Map<String, Value> = tables.map(found).collect();
                json!({"Responses": responses, "UnprocessedKeys": {}})
            }
            "TransactWriteItems" => {
                for write in asked["TransactItems"].as_array().into_iter().flatten() {
                    let (table, item) =
                        (write["Put"]["TableName"].as_str().unwrap_or_default(), &write["Put"]["Item"]);
                    self.items.insert(place(table, item), item.clone());
                }
                json!({})
            }
            _ => json!({}),
        }
    }
}

fn place(table: &str, key: &Value) -> String {
    format!("{table}|{}|{}", key["pk"]["S"], key["sk"]["S"])
}
