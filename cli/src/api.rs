//! The admin API and the app's API of one deployment, and the arguments that name it.

use std::num::ParseIntError;
use std::str::FromStr;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use http::{Method, Request, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::client::{Client, is_local};
use crate::local_stack;
use crate::output::{print_line, text};

/// Every character that a path segment or a query value does not carry as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Which deployment to call.
#[derive(Args, Clone, Debug)]
pub struct UrlArgs {
    /// The deployment: the local stack, or the URL of a deployed API. The token is read from ADMIN_API_TOKEN
    #[arg(long, env = "TALLYHOOK_URL", default_value = local_stack::URL)]
    pub url: String,
}

/// Which deployment to call, and how to print its answer.
#[derive(Args, Clone, Debug)]
pub struct DeploymentArgs {
    /// The deployment: the local stack, or the URL of a deployed API. The token is read from ADMIN_API_TOKEN
    /// (compare: APP_API_TOKEN)
    #[arg(long, env = "TALLYHOOK_URL", default_value = local_stack::URL)]
    pub url: String,
    /// Print the API's JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// What the audit keeps of a change.
#[derive(Args, Clone, Debug)]
pub struct AuditArgs {
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Your name, for the audit
    #[arg(long, env = "USER", default_value = "operator")]
    pub actor: String,
}

impl AuditArgs {
    /// Adds actor and reason to the body of a request.
    pub fn add_to(&self, mut body: Value) -> Value {
        body["actor"] = json!(self.actor);
        if let Some(reason) = &self.reason {
            body["reason"] = json!(reason);
        }
        body
    }
}

/// One API of a deployment, and the token to call it with.
pub struct Api {
    client: Client,
    url: String,
    token: String,
    token_variable: &'static str,
    json: bool,
}

impl UrlArgs {
    pub fn admin_api(&self) -> anyhow::Result<Api> {
        DeploymentArgs { url: self.url.clone(), json: false }.admin_api()
    }
}

impl DeploymentArgs {
    pub fn admin_api(&self) -> anyhow::Result<Api> {
        self.api("ADMIN_API_TOKEN", local_stack::ADMIN_TOKEN)
    }

    pub fn app_api(&self) -> anyhow::Result<Api> {
        self.api("APP_API_TOKEN", local_stack::APP_TOKEN)
    }

    /// `local_token` is used for a deployment on this machine when the variable is not set.
    fn api(&self, token_variable: &'static str, local_token: &str) -> anyhow::Result<Api> {
        let url = self.url.trim_end_matches('/').to_owned();
        ensure!(!url.is_empty(), "--url or TALLYHOOK_URL is empty: set it to the deployment's output ApiUrl");
        let client = Client::for_url(&url)?;
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        let is_local = is_local(&uri);
        if uri.scheme_str() == Some("http") && !is_local {
            bail!("{url} would send the token unencrypted: use https://");
        }
        let token = match std::env::var(token_variable) {
            Ok(token) if !token.trim().is_empty() => token.trim().to_owned(),
            Ok(_) | Err(_) if is_local => local_token.to_owned(),
            Ok(_) | Err(_) => {
                bail!(
                    "set {token_variable} to the token of {url}; there is no flag for it, because other users \
                     of this machine can read command lines"
                )
            }
        };
        ensure!(
            token.chars().all(|c| c.is_ascii_graphic()),
            "{token_variable} has characters that no token has"
        );
        Ok(Api { client, url, token, token_variable, json: self.json })
    }
}

impl Api {
    /// `GET`. A parameter without a value is left out.
    pub async fn get(&self, path: &str, parameters: &[(&str, Option<&str>)]) -> anyhow::Result<Value> {
        let pairs =
            parameters.iter().filter_map(|(name, value)| Some(format!("{name}={}", encode((*value)?))));
        let query = pairs.collect::<Vec<_>>().join("&");
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let (status, answer) = self.send(Method::GET, &path, None, None).await?;
        self.require_ok(status, answer)
    }

    pub async fn post(
        &self,
        path: &str,
        body: &Value,
        idempotency_key: Option<&str>,
    ) -> anyhow::Result<Value> {
        let (status, answer) = self.send(Method::POST, path, Some(body), idempotency_key).await?;
        self.require_ok(status, answer)
    }

    /// The status, and the body if it is JSON.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> anyhow::Result<(StatusCode, Option<Value>)> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json");
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let request = request.body(body).context("cannot build the request")?;
        let (status, answer) = self.client.send(request).await?;
        Ok((status, serde_json::from_slice(&answer).ok()))
    }

    /// Sends a text with the given headers.
    pub async fn put_text(
        &self,
        path: &str,
        text: &str,
        headers: &[(&str, String)],
    ) -> anyhow::Result<(StatusCode, Option<Value>)> {
        let mut request = Request::builder()
            .method(Method::PUT)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(text.as_bytes().to_vec()).context("cannot build the request")?;
        let (status, answer) = self.client.send(request).await?;
        Ok((status, serde_json::from_slice(&answer).ok()))
    }

    /// The JSON of a 200. Any other answer becomes an error with the API's message.
    pub fn require_ok(&self, status: StatusCode, answer: Option<Value>) -> anyhow::Result<Value> {
        match (status, answer) {
            (StatusCode::OK, Some(answer)) => Ok(answer),
            (StatusCode::UNAUTHORIZED, _) => Err(anyhow!(
                "{} does not accept this token: set {} to the token of the deployment",
                self.url,
                self.token_variable
            )),
            (_, Some(answer)) if answer["error"] == "not_found" => {
                Err(anyhow!("{} is not the URL of a deployment's API: use its output ApiUrl", self.url))
            }
            (status, Some(answer)) if answer["message"].is_string() => {
                let code = answer["error"].as_str().map_or_else(|| status.as_str().to_owned(), str::to_owned);
                Err(anyhow!("{} ({code})", text(&answer["message"])))
            }
            (status, _) => Err(anyhow!(
                "{} answered {status} without a message: is it a tallyhook deployment?",
                self.url
            )),
        }
    }

    /// With `--json`, prints the answer and returns true. The caller then prints no tables.
    pub fn print_json(&self, answer: &Value) -> anyhow::Result<bool> {
        if self.json {
            print_line(serde_json::to_string_pretty(answer)?)?;
        }
        Ok(self.json)
    }
}

/// Reads a number of a flag that is at least 1.
pub fn at_least_one<N>(text: &str) -> Result<N, String>
where
    N: FromStr<Err = ParseIntError> + PartialOrd + From<u8>,
{
    match text.parse() {
        Ok(number) if number >= N::from(1) => Ok(number),
        Ok(_) => Err("it must be at least 1".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Percent-encodes a path segment or a query value.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(url: &str) -> DeploymentArgs {
        DeploymentArgs { url: url.to_owned(), json: false }
    }

    #[test]
    fn a_token_is_only_sent_encrypted_or_to_this_machine() {
        let error = deployment("http://example.com").admin_api().err().unwrap().to_string();
        assert!(error.contains("https"), "{error}");
        assert!(
            deployment("http://127.0.0.1:1/").admin_api().is_ok_and(|api| api.url == "http://127.0.0.1:1")
        );
    }

    #[test]
    fn a_path_segment_is_percent_encoded() {
        assert_eq!(encode("a b/#ü"), "a%20b%2F%23%C3%BC");
    }
}
