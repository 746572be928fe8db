//! A small HTTP client for `http://` and `https://`.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Longer than API Gateway waits for a function.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Larger than any response of tallyhook's routes.
const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;

const HINT: &str = " (is it running? `cargo run` starts the local stack)";

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub struct Client {
    pool: Connections,
}

#[derive(Clone)]
enum Connections {
    Http(Pool<HttpConnector, Full<Bytes>>),
    /// With the root certificates of the operating system.
    Https(Pool<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Client {
    /// A client for the scheme of this URL.
    ///
    /// # Errors
    /// When it is not an `http://` or `https://` URL, or the system has no root certificates.
    pub fn for_url(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        let pool = match uri.scheme_str() {
            Some("http") => Connections::Http(Pool::builder(TokioExecutor::new()).build_http()),
            Some("https") => {
                let connector =
                    HttpsConnectorBuilder::new().with_native_roots()?.https_only().enable_http1().build();
                Connections::Https(Pool::builder(TokioExecutor::new()).build(connector))
            }
            _ => bail!("{url} is not an http:// or https:// URL"),
        };
        Ok(Self { pool })
    }

    /// Sends a request and reads the whole response, of any status.
    ///
    /// # Errors
    /// When no response arrives within 40 seconds.
    pub async fn exchange(&self, request: Request<Vec<u8>>) -> anyhow::Result<Response<Bytes>> {
        self.exchange_within(request, TIMEOUT).await
    }

    /// The status and the body of [`Client::exchange`].
    ///
    /// # Errors
    /// When no response arrives within 40 seconds.
    pub async fn send(&self, request: Request<Vec<u8>>) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send_within(request, TIMEOUT).await
    }

    /// The same with another time limit.
    ///
    /// # Errors
    /// When no response arrives in time.
    pub async fn send_within(
        &self,
        request: Request<Vec<u8>>,
        timeout: Duration,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let response = self.exchange_within(request, timeout).await?;
        Ok((response.status(), response.into_body()))
    }

    async fn exchange_within(
        &self,
        request: Request<Vec<u8>>,
        timeout: Duration,
    ) -> anyhow::Result<Response<Bytes>> {
        let uri = request.uri().clone();
        let request = request.map(|body| Full::new(Bytes::from(body)));
        let response = async {
            let response = match &self.pool {
                Connections::Http(pool) => pool.request(request).await,
                Connections::Https(pool) => pool.request(request).await,
            };
            let response = response.map_err(|error| {
                if error.is_connect() {
                    let hint = if is_local(&uri) { HINT } else { "" };
                    anyhow!("cannot connect to {uri}: {}{hint}", cause(&error))
                } else {
                    anyhow!(error)
                }
            })?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
            Ok(Response::from_parts(head, body.map_err(|error| anyhow!(error))?.to_bytes()))
        };
        tokio::time::timeout(timeout, response)
            .await
            .with_context(|| format!("{uri} did not answer within {} s", timeout.as_secs()))?
    }
}

/// Whether the address is this machine, so that nothing leaves it unencrypted.
pub(crate) fn is_local(uri: &Uri) -> bool {
    matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

/// The innermost error, for example "connection refused".
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
