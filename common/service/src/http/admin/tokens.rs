//! The operators' tokens in use. A token that is added or removed takes effect without a deployment.
//!
//! Tokens given as `ssm:/path` are read at start, and again by the first request after [`REREAD_MS`]. So a
//! new token works and a removed one is refused within that time, and requests with wrong tokens cause at
//! most one call in that time. To replace a token, add the new entry, change to it, and remove the old entry.
//!
//! A list without entries, or a deleted parameter, withdraws every token. If SSM does not answer, or the list
//! is not valid, the known tokens stay in use.

use std::sync::Arc;

use lambda_http::http::HeaderMap;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::config::{AdminToken, admin_tokens};
use crate::http::token::{TokenRefusal, bearer, is_same};
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::resolve_existing;

/// The time after which the tokens are read again.
const REREAD_MS: i64 = 30_000;

/// The tokens, and how to read them again.
pub struct Tokens {
    /// Locked while reading, so that concurrent requests wait for one answer.
    state: Mutex<TokenState>,
    /// The variables with `ssm:/path` not replaced; `None` when no token is a parameter.
    source: Option<Env>,
}

struct TokenState {
    tokens: Arc<[AdminToken]>,
    /// When the tokens were last read, in Unix ms; `None` until the first request.
    read_ms: Option<i64>,
}

impl Tokens {
    /// Starts with these tokens; `source` allows reading them again.
    pub fn new(tokens: Vec<AdminToken>, source: Option<Env>) -> Self {
        Self { state: Mutex::new(TokenState { tokens: tokens.into(), read_ms: None }), source }
    }

    /// The entry of the request's token. Every entry is compared, each in constant time.
    ///
    /// # Errors
    /// [`TokenRefusal`].
    pub async fn find(&self, headers: &HeaderMap, now_ms: i64) -> Result<AdminToken, TokenRefusal> {
        let tokens = self.current(now_ms).await;
        if tokens.is_empty() {
            return Err(TokenRefusal::NotConfigured);
        }
        let sha256 = Sha256::digest(bearer(headers)?);
        let mut found = None;
        for token in tokens.iter() {
            if is_same(&sha256, &token.sha256) {
                found = Some(token);
            }
        }
        found.cloned().ok_or(TokenRefusal::Wrong)
    }

    /// The tokens, read again if that is due.
    async fn current(&self, now_ms: i64) -> Arc<[AdminToken]> {
        let mut state = self.state.lock().await;
        let read_ms = *state.read_ms.get_or_insert(now_ms);
        if let Some(source) = self.source.as_ref().filter(|_| now_ms - read_ms >= REREAD_MS) {
            state.read_ms = Some(now_ms);
            match resolve_existing(source.clone()).await.and_then(|(env, _)| admin_tokens(&env)) {
                Ok(tokens) if *tokens != *state.tokens => {
                    info!(tokens = tokens.len(), "ADMIN_TOKENS_CHANGED");
                    state.tokens = tokens.into();
                }
                Ok(_) => {}
                Err(error) => warn!(error = %error, "ADMIN_TOKENS_NOT_REREAD"),
            }
        }
        Arc::clone(&state.tokens)
    }
}
