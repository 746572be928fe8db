//! The few calls of Stripe's API that `setup`, `doctor` and `catalog` make.
//!
//! **Invariant:** the key is in no error and no output.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::{Method, Request, Uri};
use serde_json::Value;
use tallyhook_core::event::API_VERSION;
use uuid::Uuid;

use crate::api::encode;
use crate::client::{Client, is_local};
use crate::output::{list, text};

/// Stripe's address, unless `STRIPE_API_BASE` replaces it.
const DEFAULT_BASE: &str = "https://api.stripe.com";
/// Attempts of one call, and the pause after the first of them. Each further pause is twice as long.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Pages of a hundred objects that are read of one list.
const MAX_PAGES: usize = 10;
/// Pages of a list that must be complete.
const MAX_ALL_PAGES: usize = 200;

/// The parameters of a request.
pub type Parameters = Vec<(String, String)>;

/// One parameter.
pub fn parameter(name: impl Into<String>, value: impl Into<String>) -> (String, String) {
    (name.into(), value.into())
}

/// Stripe's API with the key of one account and mode.
pub struct Stripe {
    client: Client,
    base: String,
    key: String,
}

/// Why a call has no result.
#[derive(Debug)]
pub enum Failure {
    /// Stripe refused it.
    Refused {
        /// The HTTP status.
        status: u16,
        /// Stripe's message.
        message: String,
    },
    /// Stripe did not answer, or not with JSON.
    NoAnswer(String),
}

impl Failure {
    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::NoAnswer(_) => None,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { status, message } => write!(f, "Stripe answered {status}: {message}"),
            Self::NoAnswer(message) => write!(f, "Stripe has no answer: {message}"),
        }
    }
}

impl std::error::Error for Failure {}

impl Stripe {
    /// The API for the key in `STRIPE_SECRET_KEY`; `None` without a key.
    ///
    /// # Errors
    /// When the key cannot be a secret key, or `STRIPE_API_BASE` would send it unencrypted.
    pub fn from_env() -> anyhow::Result<Option<Self>> {
        let variable = |name| std::env::var(name).ok().map(|value| value.trim().to_owned());
        let Some(key) = variable("STRIPE_SECRET_KEY").filter(|key| !key.is_empty()) else {
            return Ok(None);
        };
        if key.starts_with("pk_") {
            bail!("STRIPE_SECRET_KEY is a publishable key (pk_...): use a secret or restricted key (rk_...)");
        }
        if !key.chars().all(|c| c.is_ascii_graphic()) {
            bail!("STRIPE_SECRET_KEY has characters that no key has");
        }
        let base = variable("STRIPE_API_BASE").filter(|base| !base.is_empty());
        let base = base.unwrap_or_else(|| DEFAULT_BASE.to_owned()).trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().with_context(|| format!("STRIPE_API_BASE: {base} is not a URL"))?;
        if uri.scheme_str() == Some("http") && !is_local(&uri) {
            bail!("STRIPE_API_BASE: {base} would send the key unencrypted: use https://");
        }
        Ok(Some(Self { client: Client::for_url(&base).context("STRIPE_API_BASE")?, base, key }))
    }

    /// Whether the key is a live key; `None` when its text does not say.
    pub fn livemode(&self) -> Option<bool> {
        if self.key.contains("_live_") { Some(true) } else { self.key.contains("_test_").then_some(false) }
    }

    /// The mode in words.
    pub fn mode(&self) -> &'static str {
        tallyhook_core::stripe_account::mode(self.livemode())
    }

    /// Objects of a list, newest first, and whether these are all.
    pub async fn list(
        &self,
        path: &str,
        parameters: &[(String, String)],
    ) -> Result<(Vec<Value>, bool), Failure> {
        self.pages(path, parameters, MAX_PAGES).await
    }

    /// All objects of a list, newest first.
    ///
    /// # Errors
    /// [`Failure`], or more than 20,000 objects.
    pub async fn list_all(&self, path: &str, parameters: &[(String, String)]) -> anyhow::Result<Vec<Value>> {
        let (objects, is_complete) = self.pages(path, parameters, MAX_ALL_PAGES).await?;
        ensure!(is_complete, "{path} has more than {} objects", MAX_ALL_PAGES * 100);
        Ok(objects)
    }

    async fn pages(
        &self,
        path: &str,
        parameters: &[(String, String)],
        max_pages: usize,
    ) -> Result<(Vec<Value>, bool), Failure> {
        let (mut objects, mut last) = (Vec::new(), None);
        for _ in 0..max_pages {
            let mut page = parameters.to_vec();
            page.push(parameter("limit", "100"));
            page.extend(last.take().map(|id: String| parameter("starting_after", id)));
            let answer = self.get(path, &page).await?;
            objects.extend(list(&answer["data"]).iter().cloned());
            last = objects.last().map(|object| text(&object["id"]));
            if answer["has_more"] != true {
                return Ok((objects, true));
            }
        }
        Ok((objects, false))
    }

    /// `GET`.
    pub async fn get(&self, path: &str, parameters: &[(String, String)]) -> Result<Value, Failure> {
        Ok(self.call(Method::GET, path, parameters, None).await?.0)
    }

    /// `POST`. All attempts carry one idempotency key.
    pub async fn post(&self, path: &str, parameters: &[(String, String)]) -> Result<Value, Failure> {
        Ok(self.call(Method::POST, path, parameters, None).await?.0)
    }

    /// `POST` of a new object. The idempotency key is computed from the request, so that two runs at once
    /// create one object.
    pub async fn create(&self, path: &str, parameters: &[(String, String)]) -> Result<Value, Failure> {
        let request = format!("{path}?{}", form(parameters));
        let key = Uuid::new_v5(&Uuid::NAMESPACE_URL, request.as_bytes()).to_string();
        Ok(self.call(Method::POST, path, parameters, Some(key)).await?.0)
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        Ok(self.call(Method::DELETE, path, &[], None).await?.0)
    }

    /// Whether a list can be read, and the time of Stripe's clock: the `Date` of the answer.
    pub async fn probe(&self, path: &str) -> Result<Option<String>, Failure> {
        Ok(self.call(Method::GET, path, &[parameter("limit", "1")], None).await?.1)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        parameters: &[(String, String)],
        idempotency_key: Option<String>,
    ) -> Result<(Value, Option<String>), Failure> {
        let idempotency_key = idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let answer = self.attempt(&method, path, parameters, &idempotency_key).await;
            let is_transient = |failure: &Failure| match failure {
                Failure::Refused { status, .. } => matches!(status, 409 | 429 | 500..),
                Failure::NoAnswer(_) => true,
            };
            match answer {
                Err(failure) if is_transient(&failure) && attempt < ATTEMPTS => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                answer => return answer,
            }
        }
        Err(Failure::NoAnswer("no attempt was made".to_owned()))
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        parameters: &[(String, String)],
        idempotency_key: &str,
    ) -> Result<(Value, Option<String>), Failure> {
        let form = form(parameters);
        let mut request = Request::builder()
            .method(method)
            .header("authorization", format!("Bearer {}", self.key))
            .header("stripe-version", API_VERSION)
            .header("user-agent", concat!("tallyhook/", env!("CARGO_PKG_VERSION")));
        let request = if *method == Method::POST {
            request = request
                .uri(format!("{}{path}", self.base))
                .header("content-type", "application/x-www-form-urlencoded")
                .header("idempotency-key", idempotency_key);
            request.body(form.into_bytes())
        } else {
            let query = if form.is_empty() { form } else { format!("?{form}") };
            request.uri(format!("{}{path}{query}", self.base)).body(Vec::new())
        };
        let no_answer = |message: String| Failure::NoAnswer(self.without_key(&message));
        let request = request.map_err(|error| no_answer(error.to_string()))?;
        let answer = self.client.exchange(request).await.map_err(|error| no_answer(format!("{error:#}")))?;
        let date = answer.headers().get("date").and_then(|date| date.to_str().ok()).map(str::to_owned);
        let status = answer.status();
        let Ok(body) = serde_json::from_slice::<Value>(answer.body()) else {
            let message = format!("{status} without JSON, as of a proxy or a wrong STRIPE_API_BASE");
            return Err(match status.as_u16() {
                404 => Failure::Refused { status: 404, message },
                _ => no_answer(message),
            });
        };
        if status.is_success() {
            return Ok((body, date));
        }
        let message = self.without_key(&text(&body["error"]["message"]));
        Err(Failure::Refused { status: status.as_u16(), message })
    }

    fn without_key(&self, message: &str) -> String {
        message.replace(&self.key, "the key")
    }
}

fn form(parameters: &[(String, String)]) -> String {
    let pairs = parameters.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    pairs.collect::<Vec<_>>().join("&")
}
