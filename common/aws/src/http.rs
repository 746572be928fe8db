//! HTTP to the world outside AWS: hyper over rustls on ring, the stack that the AWS SDK brings along anyway.
//!
//! The client is made at the first request, system roots and all, so a function that never makes one pays
//! nothing. Those we talk to chain to public authorities, not to Amazon's few roots; the system's bundle is
//! kept up to date by whoever runs the machine (AWS, for a function), and `SSL_CERT_FILE` replaces it.

mod guard;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

pub use self::guard::Reach;
use self::guard::Resolver;

/// An answer larger than this is refused: a hundred invoices with ten lines each take about 1 MB.
const MOST_BYTES: usize = 16 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Shorter than what servers and load balancers keep an idle connection for.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

type Connections = Client<HttpsConnector<HttpConnector<Resolver>>, String>;

/// A client; its clones share their connections.
#[derive(Clone, Default)]
pub struct Http {
    client: Arc<OnceLock<Connections>>,
    reach: Reach,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http")
    }
}

/// Why there is no answer. No message holds a header or a body.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The machine has no usable root certificates.
    #[error("no root certificates: {0}")]
    Roots(std::io::Error),
    /// The address is none that this client may reach. Nothing was sent.
    #[error("address refused: {0}")]
    Refused(String),
    /// No connection: name, route, TLS. Nothing was sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke before the whole answer was there. The request may have been carried out.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// No whole answer within the time given. The request may have been carried out.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The answer is larger than 16 MiB.
    #[error("the answer is too large")]
    TooLarge,
}

impl Http {
    /// A client that connects to nothing until it is used.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client that reaches no further than this.
    pub fn within(reach: Reach) -> Self {
        Self { reach, ..Self::default() }
    }

    /// Sends a request and reads the whole answer, whatever its status, within `timeout`. Redirects are not
    /// followed.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn send(
        &self,
        request: Request<String>,
        timeout: Duration,
    ) -> Result<Response<Vec<u8>>, HttpError> {
        self.reach.check(request.uri()).map_err(HttpError::Refused)?;
        let client = self.client()?;
        let exchange = async {
            let answer = client.request(request).await.map_err(|error| {
                let message = causes(&error);
                if error.is_connect() { HttpError::Connect(message) } else { HttpError::Broken(message) }
            })?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MOST_BYTES).collect().await.map_err(|error| {
                let too_large = error.is::<http_body_util::LengthLimitError>();
                if too_large { HttpError::TooLarge } else { HttpError::Broken(causes(error.as_ref())) }
            })?;
            Ok(Response::from_parts(head, body.to_bytes().into()))
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(HttpError::TimedOut(timeout)))
    }

    fn client(&self) -> Result<&Connections, HttpError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let mut tcp = HttpConnector::new_with_resolver(Resolver(self.reach));
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(HttpError::Roots)?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(self.client.get_or_init(|| client))
    }
}

/// An error and what caused it, in one line.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
