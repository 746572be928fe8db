//! Shared code of the reference functions: a hand-written client configuration, and the signature check.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_runtime_api::client::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_types::SdkConfig;
use aws_types::region::Region;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A variable of the environment.
pub fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Uses ring, the roots of one file, and region and credentials from the environment.
pub fn config() -> SdkConfig {
    let roots = std::fs::read(var("AWS_CA_BUNDLE")).expect("the bundle can be read");
    let trust = TrustStore::empty().with_pem_certificate(roots);
    let tls =
        TlsContext::builder().with_trust_store(trust).build().expect("a trust store is a complete context");
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https();
    let credentials =
        Credentials::new(var("AWS_ACCESS_KEY_ID"), var("AWS_SECRET_ACCESS_KEY"), None, None, "environment");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(var("AWS_REGION")))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(http)
        .endpoint_url(var("AWS_ENDPOINT_URL"))
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build()
}

/// A keyed HMAC that is created once.
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// Reads `STRIPE_WEBHOOK_SECRET`.
    pub fn from_env() -> Self {
        Self(
            Hmac::new_from_slice(var("STRIPE_WEBHOOK_SECRET").as_bytes())
                .expect("HMAC takes a key of any length"),
        )
    }

    /// Whether the header signs the body within five minutes of now.
    pub fn verify(&self, header: &str, body: &[u8]) -> bool {
        let part = |name: &str| header.split(',').find_map(|part| part.strip_prefix(name));
        let (Some(t), Some(v1)) = (part("t="), part("v1=")) else { return false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let fresh = t.parse::<u64>().is_ok_and(|t| now.abs_diff(t) <= 300);
        let nibble = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let bytes: Option<Vec<u8>> = v1
            .as_bytes()
            .chunks(2)
            .map(|pair| Some(nibble(pair[0])? << 4 | nibble(*pair.get(1)?)?))
            .collect();
        let mac = self.0.clone().chain_update(t).chain_update(b".").chain_update(body);
        fresh && bytes.is_some_and(|bytes| mac.verify_slice(&bytes).is_ok())
    }
}
