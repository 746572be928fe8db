//! Secrets from SSM Parameter Store: a variable with the value `ssm:/path` gets the value of that parameter.
//!
//! This takes one `GetParameters` call at start. The request is signed and sent without the SDK's SSM client,
//! which would be the largest part of the binary. SSM throttles when many instances start at once, so a call
//! that may succeed later is tried again, with jitter.

use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use serde::Deserialize;

use crate::env::{ConfigError, Env};

const PREFIX: &str = "ssm:";
/// The limit of one `GetParameters` call.
const MAX_NAMES: usize = 10;
/// The time limit of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 4;
/// No attempt starts after this time. A function's init has 10 s, and a request to the webhook waits for a
/// reading of the signing secrets.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// The wait after the first attempt. Each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Parameters", default)]
    parameters: Vec<Parameter>,
}

#[derive(Deserialize)]
struct Parameter {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Value")]
    value: String,
}

/// Replaces every `ssm:/path` with the value of the parameter. Makes no call when no variable has one.
///
/// # Errors
/// [`ConfigError::Parameter`] names the first parameter that does not exist or that the role may not read.
pub async fn resolve(mut env: Env) -> Result<Env, ConfigError> {
    let wanted: Vec<(String, String)> = env
        .iter()
        .filter_map(|(variable, value)| Some((variable.clone(), value.strip_prefix(PREFIX)?.to_owned())))
        .collect();
    let mut names: Vec<&str> = wanted.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut values = Vec::new();
    for chunk in names.chunks(MAX_NAMES) {
        values.extend(get(&env, chunk).await?);
    }
    for (variable, name) in wanted {
        let found = values.iter().find(|parameter| parameter.name == name);
        let parameter = found.ok_or_else(|| {
            problem(&name, "there is no such parameter, or this function's role may not read it")
        })?;
        env.set_from_parameter(&variable, parameter.value.clone());
    }
    Ok(env)
}

fn problem(name: &str, message: impl ToString) -> ConfigError {
    ConfigError::Parameter { name: name.to_owned(), message: message.to_string() }
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

    /// An answer that is not 200. SSM throttles with 400 and `ThrottlingException`.
    fn refused(status: u16, body: &[u8]) -> Self {
        let body = String::from_utf8_lossy(body);
        let throttles = ["ThrottlingException", "TooManyRequests"].iter().any(|name| body.contains(name));
        Self {
            is_transient: status == 429 || status >= 500 || throttles,
            // The body of an error names the caller's role and the parameter; it never holds a value.
            message: format!("SSM answered {status}: {body}"),
        }
    }
}

/// Asks until SSM answers, or until a limit.
async fn get(env: &Env, names: &[&str]) -> Result<Vec<Parameter>, ConfigError> {
    let region = env.require("AWS_REGION")?;
    let credentials = Credentials::new(
        env.require("AWS_ACCESS_KEY_ID")?,
        env.require("AWS_SECRET_ACCESS_KEY")?,
        env.get("AWS_SESSION_TOKEN"),
        None,
        "environment",
    );
    let endpoint = super::endpoint(env, "SSM").unwrap_or_else(|| format!("https://{}", host(&region)));
    let connector = super::connector(env, endpoint.starts_with("http://"))?;
    let started = Instant::now();
    let mut wait = FIRST_WAIT;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let answer = match request(&endpoint, &region, &credentials, names) {
            Ok(request) => ask(&connector, request).await,
            Err(failure) => Err(failure),
        };
        let failure = match answer {
            Ok(parameters) => return Ok(parameters),
            Err(failure) => failure,
        };
        // Half of the wait is jitter, so that instances that start together do not ask together again.
        let pause = wait.mul_f64(0.5 + fastrand::f64() / 2.0);
        if !failure.is_transient || attempt >= ATTEMPTS || started.elapsed() + pause > CALL_TIMEOUT {
            return Err(problem(names.first().copied().unwrap_or_default(), failure.message));
        }
        tokio::time::sleep(pause).await;
        wait *= 2;
    }
}

/// SSM's host. The domain depends on the partition, which the region's prefix names; it is the one of the
/// SDK's `partitions.json`.
fn host(region: &str) -> String {
    let domains = [("cn-", "amazonaws.com.cn"), ("us-iso-", "c2s.ic.gov"), ("us-isob-", "sc2s.sgov.gov")];
    let of_partition = domains.iter().find(|(prefix, _)| region.starts_with(prefix));
    format!("ssm.{region}.{}", of_partition.map_or("amazonaws.com", |(_, domain)| domain))
}

/// The signed request.
fn request(
    endpoint: &str,
    region: &str,
    credentials: &Credentials,
    names: &[&str],
) -> Result<HttpRequest, Failure> {
    let host = endpoint.split("://").nth(1).unwrap_or_default().trim_end_matches('/').to_owned();
    let body = serde_json::json!({"Names": names, "WithDecryption": true}).to_string();
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ssm")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(Failure::permanent)?
        .into();
    let headers = [
        ("host", host.as_str()),
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "AmazonSSM.GetParameters"),
    ];
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
async fn ask(connector: &Connector, request: HttpRequest) -> Result<Vec<Parameter>, Failure> {
    let answered = tokio::time::timeout(ATTEMPT_TIMEOUT, connector.call(request)).await;
    let answer = answered
        .map_err(|_| Failure::transient("SSM did not answer in time"))?
        .map_err(|error| Failure::transient(format!("{error:?}")))?;
    let status = answer.status().as_u16();
    let body = ByteStream::new(answer.into_body()).collect().await.map_err(Failure::transient)?.into_bytes();
    if status != 200 {
        return Err(Failure::refused(status, &body));
    }
    let answer: Answer = serde_json::from_slice(&body).map_err(Failure::permanent)?;
    Ok(answer.parameters)
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
            assert_eq!(host(region), expected);
        }
    }

    #[test]
    fn a_throttled_or_failing_call_is_tried_again_and_a_refused_one_is_not() {
        let throttled = br#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;
        let refused = br#"{"__type":"AccessDeniedException","message":"not authorized"}"#;
        for (status, body, expected) in
            [(400, &throttled[..], true), (429, b"", true), (503, b"", true), (400, &refused[..], false)]
        {
            assert_eq!(Failure::refused(status, body).is_transient, expected, "{status}");
        }
    }
}
