//! The operator's commands: the admin API from a terminal, of the local stack or of a deployment.
//!
//! Exit codes: 0 done, or in order; 1 looked at, and something needs a person (`health` below 80,
//! `check-user`, `reconcile` and `compare` with differences); 2 it could not be done, with a sentence on the
//! error output that says what to do.

mod compare;
mod events;
mod reconcile;
mod table;
mod users;

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context, anyhow, bail};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, Uri};
use clap::{Args, Subcommand};
use local::client::Client;
use local::stack::ADMIN_TOKEN;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::DEFAULT_URL;

/// What need not be encoded in a part of a path or in a parameter.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A command of the operator's.
#[derive(Subcommand)]
pub enum Operator {
    Logs(events::Logs),
    Retry(events::Retry),
    Replay(events::Replay),
    Health(events::Health),
    Reconcile(reconcile::Reconcile),
    CheckUser(users::CheckUser),
    FixUser(users::FixUser),
    Compare(compare::Compare),
}

/// Whom to ask, and how to answer.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// The deployment: the local stack, or the address of a deployed API. Its token is taken from
    /// ADMIN_API_TOKEN (for compare: APP_API_TOKEN)
    #[arg(long, env = "TALLYHOOK_URL", default_value = DEFAULT_URL)]
    url: String,
    /// Print the API's JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Who changes something, and why: both are kept in the audit.
#[derive(Args, Clone, Debug)]
pub struct Who {
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Your name, for the audit
    #[arg(long, env = "USER", default_value = "operator")]
    actor: String,
}

impl Operator {
    /// Runs it. Whether all is in order.
    pub async fn run(self) -> anyhow::Result<bool> {
        match self {
            Self::Logs(command) => command.run().await,
            Self::Retry(command) => command.run().await,
            Self::Replay(command) => command.run().await,
            Self::Health(command) => command.run().await,
            Self::Reconcile(command) => command.run().await,
            Self::CheckUser(command) => command.run().await,
            Self::FixUser(command) => command.run().await,
            Self::Compare(command) => command.run().await,
        }
    }
}

/// The admin API (of `compare` the app's) of one deployment.
struct Api {
    client: Client,
    url: String,
    token: String,
    /// Where the token is taken from.
    variable: &'static str,
    json: bool,
}

impl Target {
    fn api(&self) -> anyhow::Result<Api> {
        self.api_with("ADMIN_API_TOKEN", ADMIN_TOKEN)
    }

    /// With the token of this variable; the local stack has one of its own.
    fn api_with(&self, variable: &'static str, local: &str) -> anyhow::Result<Api> {
        let url = self.url.trim_end_matches('/').to_owned();
        let uri: Uri = url.parse().with_context(|| format!("{url} is no url"))?;
        let here = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if uri.scheme_str() == Some("http") && !here {
            bail!("{url} would carry the token in the clear: use https://");
        }
        let token = match std::env::var(variable) {
            Ok(token) if !token.trim().is_empty() => token.trim().to_owned(),
            Ok(_) | Err(_) if here => local.to_owned(),
            Ok(_) | Err(_) => {
                bail!(
                    "set {variable} to the token of {url}; it is not taken from the command line, where others can read it"
                )
            }
        };
        Ok(Api { client: Client::for_url(&url)?, url, token, variable, json: self.json })
    }
}

impl Api {
    async fn get(&self, path: &str, parameters: &[(&str, Option<&str>)]) -> anyhow::Result<Value> {
        let pairs =
            parameters.iter().filter_map(|(name, value)| Some(format!("{name}={}", encode((*value)?))));
        let query = pairs.collect::<Vec<_>>().join("&");
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        self.ask(Method::GET, &path, None, None).await
    }

    async fn post(&self, path: &str, body: &Value, idempotency_key: Option<&str>) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, Some(body), idempotency_key).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, path, body, idempotency_key).await?;
        self.read(status, answer)
    }

    async fn send(
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
        let request = request
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
            .context("the request")?;
        let (status, answer) = self.client.send(request).await?;
        Ok((status, serde_json::from_slice(&answer).ok()))
    }

    /// The answer, or why there is none.
    fn read(&self, status: StatusCode, answer: Option<Value>) -> anyhow::Result<Value> {
        match (status, answer) {
            (StatusCode::OK, Some(answer)) => Ok(answer),
            (StatusCode::UNAUTHORIZED, _) => Err(anyhow!(
                "{} does not take this token: set {} to the one of the deployment",
                self.url,
                self.variable
            )),
            (status, Some(answer)) if answer["message"].is_string() => {
                let code = answer["error"].as_str().map_or_else(|| status.as_str().to_owned(), str::to_owned);
                Err(anyhow!("{} ({code})", text(&answer["message"])))
            }
            (status, _) => Err(anyhow!(
                "{} answered {status} without a reason: is this a tallyhook deployment?",
                self.url
            )),
        }
    }

    /// With `--json` the answer as it is; else nothing is printed, and `false` says that a person wants
    /// tables.
    fn printed(&self, answer: &Value) -> anyhow::Result<bool> {
        if self.json {
            say(&serde_json::to_string_pretty(answer)?)?;
        }
        Ok(self.json)
    }
}

fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// How far long work is, for whoever looks at the terminal.
fn progress(line: &str) {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[2K{line}");
        let _ = io::stderr().flush();
    }
}

fn progress_done() {
    progress("");
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// A value as a person reads it: control characters of foreign text do nothing to a terminal.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(all) => {
            all.iter().map(|(name, value)| format!("{name} {}", text(value))).collect::<Vec<_>>().join(", ")
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The body of a change: what, by whom, why.
fn change(who: &Who, mut body: Value) -> Value {
    body["actor"] = json!(who.actor);
    if let Some(reason) = &who.reason {
        body["reason"] = json!(reason);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target { url: url.to_owned(), json: false }
    }

    #[test]
    fn a_token_never_travels_in_the_clear_and_foreign_text_does_nothing_to_a_terminal() {
        assert!(
            target("http://example.com").api().err().is_some_and(|error| error.to_string().contains("https"))
        );
        assert!(target("http://127.0.0.1:1/").api().is_ok_and(|api| api.url == "http://127.0.0.1:1"));
        assert_eq!(text(&json!("a\u{1b}[2Jb\n")), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(text(&json!({"tier": "pro", "credits": 5})), "credits 5, tier pro");
        assert_eq!(encode("a b/#ü"), "a%20b%2F%23%C3%BC");
    }
}
