//! The app's tokens in use: `APP_API_TOKEN`, or several separated by commas while one replaces the other.
//!
//! A value given as `ssm:/path` is read at start. It is read again when a token is not known, at most every
//! [`REREAD_MS`], so that a new token works at once, and when the last reading is older than
//! [`MAX_AGE_MS`], so that a removed token is refused after that time. A value without a token, or a deleted
//! parameter, withdraws every token. If SSM does not answer, the known tokens stay in use.

use std::sync::Arc;

use lambda_http::http::HeaderMap;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::http::token::{TokenRefusal, bearer, is_same};
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::resolve_existing;

/// The variable.
pub(super) const VARIABLE: &str = "APP_API_TOKEN";
/// The shortest time between two readings.
const REREAD_MS: i64 = 30_000;
/// The longest time between two readings while requests come.
const MAX_AGE_MS: i64 = 300_000;

/// The tokens, and how to read them again.
pub struct AppTokens {
    /// Locked while reading, so that concurrent requests wait for one answer.
    state: Mutex<State>,
    /// The variables with `ssm:/path` not replaced; `None` when the token is no parameter.
    source: Option<Env>,
}

struct State {
    tokens: Arc<[String]>,
    /// When the tokens were last read, in Unix ms; `None` until the first request.
    read_ms: Option<i64>,
}

impl AppTokens {
    /// Reads the tokens from the environment.
    pub fn from_env(env: &Env) -> Self {
        let state = State { tokens: tokens(env), read_ms: None };
        Self { state: Mutex::new(state), source: env.unresolved(VARIABLE) }
    }

    /// Compares the request's token with every token, each in constant time.
    ///
    /// # Errors
    /// [`TokenRefusal`].
    pub async fn check(&self, headers: &HeaderMap, now_ms: i64) -> Result<(), TokenRefusal> {
        let mut state = self.state.lock().await;
        state.read_ms.get_or_insert(now_ms);
        self.read_after(MAX_AGE_MS, &mut state, now_ms).await;
        let found = matches(&state.tokens, headers);
        if !matches!(found, Err(TokenRefusal::Wrong | TokenRefusal::NotConfigured)) {
            return found;
        }
        self.read_after(REREAD_MS, &mut state, now_ms).await;
        matches(&state.tokens, headers)
    }

    /// Reads the tokens if the last reading is this old.
    async fn read_after(&self, age_ms: i64, state: &mut State, now_ms: i64) {
        let is_due = state.read_ms.is_none_or(|read_ms| now_ms - read_ms >= age_ms);
        let Some(source) = self.source.as_ref().filter(|_| is_due) else { return };
        state.read_ms = Some(now_ms);
        match resolve_existing(source.clone()).await {
            Ok((env, _)) => {
                let read = tokens(&env);
                if *read != *state.tokens {
                    info!(tokens = read.len(), "APP_TOKENS_CHANGED");
                    state.tokens = read;
                }
            }
            Err(error) => warn!(error = %error, "APP_TOKENS_NOT_REREAD"),
        }
    }
}

fn tokens(env: &Env) -> Arc<[String]> {
    let list = env.get(VARIABLE).unwrap_or_default();
    list.split(',').map(str::trim).filter(|token| !token.is_empty()).map(str::to_owned).collect()
}

fn matches(tokens: &[String], headers: &HeaderMap) -> Result<(), TokenRefusal> {
    if tokens.is_empty() {
        return Err(TokenRefusal::NotConfigured);
    }
    let sent = bearer(headers)?;
    // Every token is compared, so that the time does not show which one is near.
    let found = tokens.iter().fold(false, |found, token| is_same(sent, token.as_bytes()) | found);
    if found { Ok(()) } else { Err(TokenRefusal::Wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", value.parse().unwrap());
        headers
    }

    #[tokio::test]
    async fn only_a_configured_token_passes_and_without_one_no_request_passes() {
        let tokens = AppTokens::from_env(&Env::from([(VARIABLE, "right, next ,")]));
        for right in ["Bearer right", "bearer next"] {
            assert_eq!(tokens.check(&with(right), 0).await, Ok(()), "{right}");
        }
        for wrong in ["Bearer wrong", "Bearer righ", "Bearer rightt", "Bearer right, next", "Bearer "] {
            assert_eq!(tokens.check(&with(wrong), 0).await, Err(TokenRefusal::Wrong), "{wrong}");
        }
        assert_eq!(tokens.check(&with("right"), 0).await, Err(TokenRefusal::Missing));
        assert_eq!(tokens.check(&HeaderMap::new(), 0).await, Err(TokenRefusal::Missing));
        for none in ["", " , "] {
            let tokens = AppTokens::from_env(&Env::from([(VARIABLE, none)]));
            assert_eq!(tokens.check(&with("Bearer "), 0).await, Err(TokenRefusal::NotConfigured));
        }
    }
}
