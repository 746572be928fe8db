//! A small HTTP client, for the commands that talk to a stack.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Longer than API Gateway waits for a function.
const TIMEOUT: Duration = Duration::from_secs(40);

/// More than any answer of the routes.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Connections to one server, by its scheme. Clones share them.
#[derive(Clone)]
pub enum Client {
    /// `http://`
    Plain(Pool<HttpConnector, Body>),
    /// `https://`, with the system's roots: a deployed stack.
    Tls(Pool<HttpsConnector<HttpConnector>, Body>),
}

impl Client {
    /// A client for the server of this url.
    ///
    /// # Errors
    /// When it is no http url, or the system has no root certificates.
    pub fn for_url(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no url"))?;
        Ok(match uri.scheme_str() {
            Some("http") => Self::Plain(Pool::builder(TokioExecutor::new()).build_http()),
            Some("https") => {
                let connector =
                    HttpsConnectorBuilder::new().with_native_roots()?.https_only().enable_http1().build();
                Self::Tls(Pool::builder(TokioExecutor::new()).build(connector))
            }
            _ => bail!("{url} is no http:// or https:// url"),
        })
    }

    /// Sends a request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, request: Request<Body>) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send_within(request, TIMEOUT).await
    }

    /// The same, with a time of the caller's own for the answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send_within(
        &self,
        request: Request<Body>,
        timeout: Duration,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let uri = request.uri().clone();
        let answer = async {
            let answer = match self {
                Self::Plain(pool) => pool.request(request).await,
                Self::Tls(pool) => pool.request(request).await,
            };
            let answer = answer.map_err(|error| {
                if error.is_connect() {
                    anyhow!("nothing answers at {uri}: is the stack running? (cargo run)")
                } else {
                    anyhow!(error)
                }
            })?;
            let status = answer.status();
            Ok((status, to_bytes(Body::new(answer.into_body()), MAX_ANSWER_BYTES).await?))
        };
        tokio::time::timeout(timeout, answer)
            .await
            .with_context(|| format!("{uri} did not answer within {} s", timeout.as_secs()))?
    }
}
