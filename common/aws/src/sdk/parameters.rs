//! Secrets from SSM Parameter Store: a variable with the value `ssm:/path` gets the value of that parameter.
//!
//! This takes one `GetParameters` call at start. The request is signed and sent without the SDK's SSM client,
//! which would be the largest part of the binary.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use serde::Deserialize;

use crate::env::{ConfigError, Env};

const PREFIX: &str = "ssm:";
/// The limit of one `GetParameters` call.
const MAX_NAMES: usize = 10;
const TIMEOUT: Duration = Duration::from_secs(5);

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

async fn get(env: &Env, names: &[&str]) -> Result<Vec<Parameter>, ConfigError> {
    let first = names.first().copied().unwrap_or_default();
    let region = env.require("AWS_REGION")?;
    let endpoint =
        super::endpoint(env, "SSM").unwrap_or_else(|| format!("https://ssm.{region}.amazonaws.com"));
    let host = endpoint.split("://").nth(1).unwrap_or_default().trim_end_matches('/').to_owned();
    let body = serde_json::json!({"Names": names, "WithDecryption": true}).to_string();

    let credentials = Credentials::new(
        env.require("AWS_ACCESS_KEY_ID")?,
        env.require("AWS_SECRET_ACCESS_KEY")?,
        env.get("AWS_SESSION_TOKEN"),
        None,
        "environment",
    );
    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(&region)
        .name("ssm")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| problem(first, error))?
        .into();
    let headers = [
        ("host", host.as_str()),
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "AmazonSSM.GetParameters"),
    ];
    let signable = SignableRequest::new(
        "POST",
        endpoint.as_str(),
        headers.into_iter(),
        SignableBody::Bytes(body.as_bytes()),
    )
    .map_err(|error| problem(first, error))?;
    let (instructions, _) = sign(signable, &parameters).map_err(|error| problem(first, error))?.into_parts();
    let mut request = http::Request::builder().method("POST").uri(endpoint.as_str());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut request = request.body(SdkBody::from(body)).map_err(|error| problem(first, error))?;
    instructions.apply_to_request_http1x(&mut request);

    let request: HttpRequest = request.try_into().map_err(|error| problem(first, error))?;
    let connector = super::connector(env, endpoint.starts_with("http://"))?;
    let answered = tokio::time::timeout(TIMEOUT, connector.call(request)).await;
    let answer = answered
        .map_err(|_| problem(first, "SSM did not answer in time"))?
        .map_err(|error| problem(first, format!("{error:?}")))?;
    let status = answer.status().as_u16();
    let body = ByteStream::new(answer.into_body())
        .collect()
        .await
        .map_err(|error| problem(first, error))?
        .into_bytes();
    if status != 200 {
        // The body of an error names the caller's role and the parameter; it never holds a value.
        return Err(problem(first, format!("SSM answered {status}: {}", String::from_utf8_lossy(&body))));
    }
    let answer: Answer = serde_json::from_slice(&body).map_err(|error| problem(first, error))?;
    Ok(answer.parameters)
}
