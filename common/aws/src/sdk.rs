//! Clients of the AWS SDK, configured by hand: no profile files, no metadata service, one TLS stack, few
//! trusted roots.
//!
//! The configuration comes from the environment variables of a Lambda function: `AWS_REGION`, the
//! credentials, and `AWS_ENDPOINT_URL_<SERVICE>` or `AWS_ENDPOINT_URL` for the local stack or an emulator.
//! The loader chain of `aws-config` and the 145 roots of the system would double a function's start time. TLS
//! uses `ring`, because the first handshake of `aws-lc` collects entropy and takes 30 ms or more.

mod parameters;
mod queue_ages;
mod signed;

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_runtime::user_agent::UserAgentInterceptor;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_runtime_api::client::http::{
    HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_smithy_runtime_api::client::interceptors::{Intercept, disable_interceptor};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::client::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::region::Region;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use self::parameters::{resolve, resolve_existing};
pub use self::queue_ages::QueueAges;
use crate::env::{ConfigError, Env};
/// A client of DynamoDB, opaque outside this crate.
pub use aws_sdk_dynamodb::Client as DynamoDb;
/// A client of SQS, opaque outside this crate.
pub use aws_sdk_sqs::Client as Sqs;

/// The roots that AWS's endpoints chain to: Amazon Root CA 1 to 4 and the two Starfield G2 roots, as
/// published by Amazon Trust Services. The first of them expires in 2037. `AWS_TRUST=system` trusts the roots
/// of the system instead. `AWS_CA_BUNDLE` (as in every AWS SDK) trusts the roots in a file, for an emulator
/// or a proxy with its own certificate authority.
const AMAZON_ROOTS: &str = include_str!("sdk/amazon-roots.pem");

/// How long a function's init waits for the call that opens its connection: see `Queue::prewarm`.
pub const PREWARM_TIMEOUT: Duration = Duration::from_secs(1);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The clients of a function that uses both services.
///
/// # Errors
/// As [`sdk_configs`].
pub fn clients(env: &Env) -> Result<(aws_sdk_dynamodb::Client, aws_sdk_sqs::Client), ConfigError> {
    let (config_of_dynamodb, config_of_sqs) = sdk_configs(env)?;
    Ok((dynamodb(&config_of_dynamodb), sqs(&config_of_sqs)))
}

/// A client of DynamoDB.
pub fn dynamodb(config: &SdkConfig) -> aws_sdk_dynamodb::Client {
    aws_sdk_dynamodb::Client::from_conf(
        aws_sdk_dynamodb::config::Builder::from(config).interceptor(UserAgent).build(),
    )
}

/// A client of SQS.
pub fn sqs(config: &SdkConfig) -> aws_sdk_sqs::Client {
    aws_sdk_sqs::Client::from_conf(aws_sdk_sqs::config::Builder::from(config).interceptor(UserAgent).build())
}

/// Sends a constant user agent. The SDK's own takes two headers, a fifth of the header bytes of a request,
/// and computes them again for each call.
#[derive(Debug)]
struct UserAgent;

impl Intercept for UserAgent {
    fn name(&self) -> &'static str {
        "UserAgent"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        state: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        state.interceptor_state().store_put(disable_interceptor::<UserAgentInterceptor>("ours is sent"));
        Ok(())
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        context
            .request_mut()
            .headers_mut()
            .insert("user-agent", concat!("tallyhook/", env!("CARGO_PKG_VERSION")));
        Ok(())
    }
}

/// Configurations for DynamoDB and for SQS. They share one transport, because reading the trusted roots takes
/// a large part of a function's start.
///
/// # Errors
/// [`ConfigError`] when the region or the credentials are missing, or `AWS_CA_BUNDLE` has no certificates.
pub fn sdk_configs(env: &Env) -> Result<(SdkConfig, SdkConfig), ConfigError> {
    let http_client = http_client(env, &["DYNAMODB", "SQS"])?;
    let config = |service| sdk_config_with(env, endpoint(env, service), http_client.clone());
    Ok((config("DYNAMODB")?, config("SQS")?))
}

/// Configuration for one service (`DYNAMODB`, `SQS`).
///
/// # Errors
/// As [`sdk_configs`].
pub fn sdk_config(env: &Env, service: &str) -> Result<SdkConfig, ConfigError> {
    sdk_config_with(env, endpoint(env, service), http_client(env, &[service])?)
}

fn credentials(env: &Env) -> Result<Credentials, ConfigError> {
    Ok(Credentials::new(
        env.require("AWS_ACCESS_KEY_ID")?,
        env.require("AWS_SECRET_ACCESS_KEY")?,
        env.get("AWS_SESSION_TOKEN"),
        None,
        "environment",
    ))
}

/// Configuration with the given endpoint and transport. Tests pass a transport that injects faults.
///
/// # Errors
/// As [`sdk_config`].
pub fn sdk_config_with(
    env: &Env,
    endpoint: Option<String>,
    http_client: SharedHttpClient,
) -> Result<SdkConfig, ConfigError> {
    let credentials = credentials(env)?;
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(env.require("AWS_REGION")?))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(http_client)
        // DynamoDB and SQS answer small requests in milliseconds. The SDK retries an attempt that timed out,
        // and every write is safe to retry. A worker stops after two calls without an answer, so a table
        // that hangs does not use up the function's 30 s. The number of attempts limits a call, so no timer
        // for the whole call is needed.
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(Duration::from_secs(2))
                .build(),
        )
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(3)
                .with_initial_backoff(Duration::from_millis(100))
                .with_max_backoff(Duration::from_millis(500)),
        )
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(config.build())
}

/// The endpoint that replaces AWS for a service, if one is set.
fn endpoint(env: &Env, service: &str) -> Option<String> {
    env.get(&format!("AWS_ENDPOINT_URL_{service}")).or_else(|| env.get("AWS_ENDPOINT_URL"))
}

/// One transport for these services. With the SDK's default transport, each client would read the roots when
/// it is created, and again at its first call.
fn http_client(env: &Env, services: &[&str]) -> Result<SharedHttpClient, ConfigError> {
    let plain = services
        .iter()
        .all(|service| endpoint(env, service).is_some_and(|endpoint| endpoint.starts_with("http://")));
    let connector = SharedHttpConnector::new(connector(env, plain)?);
    Ok(http_client_fn(move |_, _| connector.clone()))
}

/// Connects to `https://` and `http://`. With `plain` it connects to `http://` only and reads no roots.
fn connector(env: &Env, plain: bool) -> Result<Connector, ConfigError> {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let builder = Connector::builder().connector_settings(settings);
    Ok(if plain {
        builder.build_http()
    } else {
        builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls_context(env)?).build()
    })
}

fn tls_context(env: &Env) -> Result<TlsContext, ConfigError> {
    let mut trust = TrustStore::empty();
    if let Some(path) = env.get("AWS_CA_BUNDLE") {
        let wrong = || Env::wrong("AWS_CA_BUNDLE", "a file of certificates in PEM");
        let bundle = std::fs::read_to_string(path).map_err(|_| wrong())?;
        for certificate in certificates(&bundle) {
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| wrong())?;
            trust = trust.with_pem_certificate(certificate);
        }
        certificates(&bundle).next().ok_or_else(wrong)?;
    } else if env.get("AWS_TRUST").is_some_and(|trust| trust == "system") {
        trust = trust.with_native_roots(true);
    } else {
        for certificate in certificates(AMAZON_ROOTS) {
            trust = trust.with_pem_certificate(certificate);
        }
    }
    Ok(TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .expect("a trust store of certificates is a complete context"))
}

fn certificates(bundle: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    bundle.match_indices(BEGIN).filter_map(|(start, _)| {
        let rest = bundle.get(start..)?;
        rest.get(..rest.find(END)? + END.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_holds_six_roots_and_a_client_can_be_built_from_them() {
        assert_eq!(certificates(AMAZON_ROOTS).count(), 6);
        let env = Env::from([
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
        ]);
        assert!(sdk_config(&env, "SQS").unwrap().endpoint_url().is_none());
    }

    #[test]
    fn a_bundle_replaces_the_roots_and_must_hold_a_certificate() {
        let file = |text: &str| {
            let path = std::env::temp_dir().join(format!("tallyhook-bundle-{:016x}.pem", fastrand::u64(..)));
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let with = |bundle: &str| {
            let mut env = Env::from([
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ACCESS_KEY_ID", "id"),
                ("AWS_SECRET_ACCESS_KEY", "key"),
            ]);
            env.set("AWS_CA_BUNDLE", bundle);
            sdk_config(&env, "SQS").map(|_| ())
        };
        assert!(with(&file(AMAZON_ROOTS)).is_ok());
        for bundle in [
            file(""),
            file("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"),
            "/nowhere.pem".to_owned(),
        ] {
            assert!(
                matches!(with(&bundle), Err(ConfigError::Wrong { name, .. }) if name == "AWS_CA_BUNDLE"),
                "{bundle}"
            );
        }
    }

    #[test]
    fn an_endpoint_of_the_service_wins_over_the_general_one() {
        let env = Env::from([
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:2"),
        ]);
        assert_eq!(sdk_config(&env, "SQS").unwrap().endpoint_url(), Some("http://127.0.0.1:2"));
        assert_eq!(sdk_config(&env, "DYNAMODB").unwrap().endpoint_url(), Some("http://127.0.0.1:1"));
    }

    /// An emulator may replace one of the two services. The request carries our user agent, not the SDK's.
    #[tokio::test]
    async fn one_transport_reaches_services_over_http_and_https() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                std::io::Read::read_exact(&mut socket, &mut byte).unwrap();
                request.extend(byte);
            }
            String::from_utf8(request).unwrap()
        });
        let mut env = Env::from([
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
        ]);
        env.set("AWS_ENDPOINT_URL_SQS", format!("http://{address}"));
        let (_, sqs) = clients(&env).unwrap();
        let call = tokio::time::timeout(Duration::from_secs(5), sqs.list_queues().send());
        // The listener reads the head of the request and hangs up.
        assert!(call.await.is_ok_and(|answer| answer.is_err()));
        let request = server.join().unwrap();
        assert!(
            request.starts_with("POST / ") && request.contains("\r\nauthorization: AWS4-HMAC-SHA256 "),
            "{request}"
        );
        assert!(
            request.contains(concat!("\r\nuser-agent: tallyhook/", env!("CARGO_PKG_VERSION"), "\r\n")),
            "{request}"
        );
        assert!(!request.contains("x-amz-user-agent"), "{request}");
    }
}
