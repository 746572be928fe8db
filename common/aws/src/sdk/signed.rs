//! Signed calls of AWS services without a client of the SDK: one `POST` with JSON, signed with Signature
//! Version 4. The SDK's client of such a service would be the largest part of a binary.

use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::{HttpConnector as _, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;

use crate::env::{ConfigError, Env};

/// A service, and the limits of a call.
pub(super) struct Service {
    /// Its name in messages.
    pub name: &'static str,
    /// The last part of `AWS_ENDPOINT_URL_…`.
    pub variable: &'static str,
    /// The first part of its host, and its name in a signature.
    pub host: &'static str,
    pub content_type: &'static str,
    /// The maximum number of attempts.
    pub attempts: u32,
    /// The time limit of one attempt.
    pub attempt_timeout: Duration,
    /// No attempt starts after this time.
    pub call_timeout: Duration,
}

/// The wait after the first attempt. Each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Calls one service with the credentials of the environment.
pub(super) struct Caller {
    service: &'static Service,
    connector: SharedHttpConnector,
    endpoint: String,
    region: String,
    credentials: Credentials,
}

/// Why one attempt failed.
struct Failure {
    /// Whether another attempt may succeed.
    is_transient: bool,
    message: String,
}

impl Failure {
    fn transient(message: impl ToString) -> Self {
        Self { is_transient: true, message: message.to_string() }
    }

    fn permanent(message: impl ToString) -> Self {
        Self { is_transient: false, message: message.to_string() }
    }

    /// An answer that is not 200. AWS throttles with 400 and `ThrottlingException` or `Throttling`.
    fn refused(service: &str, status: u16, body: &[u8]) -> Self {
        let body = String::from_utf8_lossy(body);
        let throttles = ["Throttling", "TooManyRequests"].iter().any(|name| body.contains(name));
        Self {
            is_transient: status == 429 || status >= 500 || throttles,
            // The body of an error names the caller's role and the resource; it never holds a secret.
            message: format!("{service} answered {status}: {body}"),
        }
    }
}

impl Caller {
    /// `connector` replaces the transport in tests.
    ///
    /// # Errors
    /// [`ConfigError`] when the region or the credentials are missing, or `AWS_CA_BUNDLE` has no
    /// certificates.
    pub fn from_env(
        env: &Env,
        service: &'static Service,
        connector: Option<SharedHttpConnector>,
    ) -> Result<Self, ConfigError> {
        let region = env.require("AWS_REGION")?;
        let credentials = super::credentials(env)?;
        let endpoint = super::endpoint(env, service.variable)
            .unwrap_or_else(|| format!("https://{}", host(service.host, &region)));
        let connector = match connector {
            Some(connector) => connector,
            None => SharedHttpConnector::new(super::connector(env, endpoint.starts_with("http://"))?),
        };
        Ok(Self { service, connector, endpoint, region, credentials })
    }

    /// Calls until the service answers, or until a limit. Returns the body of the answer.
    ///
    /// # Errors
    /// The message of the last attempt.
    pub async fn call(&self, target: &str, body: &str) -> Result<Vec<u8>, String> {
        let started = Instant::now();
        let mut wait = FIRST_WAIT;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let answer = match self.request(target, body) {
                Ok(request) => self.send(request).await,
                Err(failure) => Err(failure),
            };
            let failure = match answer {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            // Half of the wait is jitter, so that instances that start together do not ask together again.
            let pause = wait.mul_f64(0.5 + fastrand::f64() / 2.0);
            let is_late = started.elapsed() + pause > self.service.call_timeout;
            if !failure.is_transient || attempt >= self.service.attempts || is_late {
                return Err(failure.message);
            }
            tokio::time::sleep(pause).await;
            wait *= 2;
        }
    }

    /// The signed request.
    fn request(&self, target: &str, body: &str) -> Result<HttpRequest, Failure> {
        let endpoint = self.endpoint.as_str();
        let host = endpoint.split("://").nth(1).unwrap_or_default().trim_end_matches('/');
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service.host)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(Failure::permanent)?
            .into();
        let headers = [("host", host), ("content-type", self.service.content_type), ("x-amz-target", target)];
        let signable =
            SignableRequest::new("POST", endpoint, headers.into_iter(), SignableBody::Bytes(body.as_bytes()))
                .map_err(Failure::permanent)?;
        let (instructions, _) = sign(signable, &parameters).map_err(Failure::permanent)?.into_parts();
        let mut request = http::Request::builder().method("POST").uri(endpoint);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut request = request.body(SdkBody::from(body)).map_err(Failure::permanent)?;
        instructions.apply_to_request_http1x(&mut request);
        request.try_into().map_err(Failure::permanent)
    }

    /// One attempt.
    async fn send(&self, request: HttpRequest) -> Result<Vec<u8>, Failure> {
        let service = self.service.name;
        let answered = tokio::time::timeout(self.service.attempt_timeout, self.connector.call(request)).await;
        let answer = answered
            .map_err(|_| Failure::transient(format!("{service} did not answer in time")))?
            .map_err(|error| Failure::transient(format!("{error:?}")))?;
        let status = answer.status().as_u16();
        let body = ByteStream::new(answer.into_body()).collect().await.map_err(Failure::transient)?;
        let body = body.into_bytes();
        if status != 200 {
            return Err(Failure::refused(service, status, &body));
        }
        Ok(body.to_vec())
    }
}

/// The host of a service. The domain depends on the partition, which the region's prefix names; it is the one
/// of the SDK's `partitions.json`.
fn host(service: &str, region: &str) -> String {
    let domains = [("cn-", "amazonaws.com.cn"), ("us-iso-", "c2s.ic.gov"), ("us-isob-", "sc2s.sgov.gov")];
    let of_partition = domains.iter().find(|(prefix, _)| region.starts_with(prefix));
    format!("{service}.{region}.{}", of_partition.map_or("amazonaws.com", |(_, domain)| domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_one_of_the_regions_partition() {
        for (region, expected) in [
            ("eu-central-1", "ssm.eu-central-1.amazonaws.com"),
            ("us-gov-west-1", "ssm.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "ssm.cn-north-1.amazonaws.com.cn"),
            ("us-iso-east-1", "ssm.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "ssm.us-isob-east-1.sc2s.sgov.gov"),
        ] {
            assert_eq!(host("ssm", region), expected);
        }
        assert_eq!(host("monitoring", "eu-west-1"), "monitoring.eu-west-1.amazonaws.com");
    }

    #[test]
    fn a_throttled_or_failing_call_is_tried_again_and_a_refused_one_is_not() {
        let throttled = br#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;
        let refused = br#"{"__type":"AccessDeniedException","message":"not authorized"}"#;
        for (status, body, expected) in
            [(400, &throttled[..], true), (429, b"", true), (503, b"", true), (400, &refused[..], false)]
        {
            assert_eq!(Failure::refused("SSM", status, body).is_transient, expected, "{status}");
        }
    }
}
