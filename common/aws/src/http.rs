//! HTTP requests to servers outside AWS: hyper with rustls and ring, which the AWS SDK uses too.
//!
//! The client is created at the first request, when it reads the system's roots. A function that sends no
//! request has no cost. These servers have certificates of public authorities, so the system's roots are
//! trusted and not only Amazon's. AWS keeps the roots of a function up to date; `SSL_CERT_FILE` replaces
//! them.

mod guard;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

pub use self::guard::AllowedAddresses;
use self::guard::Resolver;

/// The largest answer that is read. A hundred invoices with ten lines each take about 1 MB.
const MAX_BYTES: usize = 16 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Shorter than the idle time-out of common servers and load balancers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

type Connections = Client<HttpsConnector<HttpConnector<Resolver>>, String>;

/// An HTTP client. Clones share connections.
#[derive(Clone, Default)]
pub struct Http {
    client: Arc<OnceLock<Connections>>,
    allowed: AllowedAddresses,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http")
    }
}

/// Why a request got no answer. Messages never hold a header or a body.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The machine has no usable root certificates.
    #[error("no root certificates: {0}")]
    Roots(std::io::Error),
    /// This client may not connect to the address. Nothing was sent.
    #[error("address refused: {0}")]
    Refused(String),
    /// The name lookup, the connection or the TLS handshake failed. Nothing was sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke before the whole answer arrived. The server may have executed the request.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The answer did not arrive in time. The server may have executed the request.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The answer is larger than 16 MiB.
    #[error("the answer is too large")]
    TooLarge,
}

impl Http {
    /// A client that may connect to any address. It opens no connection before the first request.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client that connects only to the addresses that `allowed` contains.
    pub fn allowing(allowed: AllowedAddresses) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// Sends a request and reads the whole answer within `timeout`. An answer with any status is a success.
    /// Redirects are not followed.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn send(
        &self,
        request: Request<String>,
        timeout: Duration,
    ) -> Result<Response<Vec<u8>>, HttpError> {
        self.allowed.check(request.uri()).map_err(HttpError::Refused)?;
        let client = self.client()?;
        let exchange = async {
            let answer = client.request(request).await.map_err(|error| {
                let message = causes(&error);
                if error.is_connect() { HttpError::Connect(message) } else { HttpError::Broken(message) }
            })?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_BYTES).collect().await.map_err(|error| {
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
        let mut tcp = HttpConnector::new_with_resolver(Resolver(self.allowed));
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

/// The text of an error and of its causes, in one line.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
