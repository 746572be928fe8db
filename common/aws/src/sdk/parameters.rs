//! Secrets from SSM Parameter Store: a variable with the value `ssm:/path` gets the value of that parameter.
//!
//! This takes one `GetParameters` call at start. SSM throttles when many instances start at once, so a call
//! that may succeed later is tried again, with jitter.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::signed::{Caller, Service};
use crate::env::{ConfigError, Env};

const PREFIX: &str = "ssm:";
/// The limit of one `GetParameters` call.
const MAX_NAMES: usize = 10;
/// A function's init has 10 s, and a request to the webhook waits for a reading of the signing secrets.
const SSM: Service = Service {
    name: "SSM",
    variable: "SSM",
    host: "ssm",
    content_type: "application/x-amz-json-1.1",
    attempts: 4,
    attempt_timeout: Duration::from_secs(3),
    call_timeout: Duration::from_secs(4),
};

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
pub async fn resolve(env: Env) -> Result<Env, ConfigError> {
    let (env, missing) = resolve_existing(env).await?;
    match missing.first() {
        None => Ok(env),
        Some(name) => {
            Err(problem(name, "there is no such parameter, or this function's role may not read it"))
        }
    }
}

/// Replaces every `ssm:/path` with the value of the parameter, and with nothing if SSM answers that there is
/// no such parameter. Returns the paths of those.
///
/// # Errors
/// [`ConfigError::Parameter`] when SSM does not answer.
pub async fn resolve_existing(mut env: Env) -> Result<(Env, Vec<String>), ConfigError> {
    let wanted: Vec<(String, String)> = env
        .iter()
        .filter_map(|(variable, value)| Some((variable.clone(), value.strip_prefix(PREFIX)?.to_owned())))
        .collect();
    let mut names: Vec<&str> = wanted.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut values = Vec::new();
    if !names.is_empty() {
        let ssm = Caller::from_env(&env, &SSM, None)?;
        for chunk in names.chunks(MAX_NAMES) {
            values.extend(get(&ssm, chunk).await?);
        }
    }
    let mut missing = Vec::new();
    for (variable, name) in wanted {
        let found = values.iter().find(|parameter| parameter.name == name);
        env.set_from_parameter(&variable, found.map_or_else(String::new, |found| found.value.clone()));
        if found.is_none() {
            missing.push(name);
        }
    }
    Ok((env, missing))
}

fn problem(name: &str, message: impl ToString) -> ConfigError {
    ConfigError::Parameter { name: name.to_owned(), message: message.to_string() }
}

/// The parameters that exist among these.
async fn get(ssm: &Caller, names: &[&str]) -> Result<Vec<Parameter>, ConfigError> {
    let body = json!({"Names": names, "WithDecryption": true}).to_string();
    let first = names.first().copied().unwrap_or_default();
    let answer =
        ssm.call("AmazonSSM.GetParameters", &body).await.map_err(|message| problem(first, message))?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| problem(first, error))?;
    Ok(answer.parameters)
}
