//! The signing secrets in use, and how they come up to date when one is rolled: without a deploy, and with
//! nothing dropped.
//!
//! Secrets that are `ssm:/path` are read at start and kept. When a signature matches none of them, they may
//! have been rolled since: they are read again, at most every [`REREAD_MS`], and the request is verified once
//! more. A request that verifies costs no call, and one who signs wrongly on purpose can cause two calls a
//! minute and instance.
//!
//! While Stripe rolls a secret it signs with both for as long as one chose, so the order is: roll in Stripe
//! with an overlap, put `new,old` into the parameter, and take `old` out when the overlap has ended. An
//! instance that knew `old` may take it until Lambda ends the instance, some hours at most.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::config::signing_secrets;
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::resolve;
use tallyhook_core::signature::Secret;

/// Milliseconds from one reading to the next.
const REREAD_MS: i64 = 30_000;

/// Signing secrets that can be read again.
pub(super) struct Secrets {
    current: RwLock<Arc<[Secret]>>,
    /// The variables with their `ssm:/path` as they were given; `None` when no signing secret is one.
    source: Option<Env>,
    /// When they were last read again, in Unix ms. Held while reading, so that requests at the same moment
    /// wait for one answer.
    read_ms: Mutex<Option<i64>>,
}

impl Secrets {
    /// The secrets in use, and the variables to read them from again.
    pub(super) fn new(secrets: Vec<Secret>, source: Option<Env>) -> Self {
        Self { current: RwLock::new(secrets.into()), source, read_ms: Mutex::default() }
    }

    /// Those to verify with.
    pub(super) fn current(&self) -> Arc<[Secret]> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Newer ones than `seen`, which did not do; `None` when there is nothing to try again with. What cannot
    /// be read leaves those in use.
    pub(super) async fn newer(&self, seen: &Arc<[Secret]>, now_ms: i64) -> Option<Arc<[Secret]>> {
        let source = self.source.as_ref()?;
        let mut read_ms = self.read_ms.lock().await;
        let current = self.current();
        if !Arc::ptr_eq(&current, seen) {
            return Some(current);
        }
        if read_ms.is_some_and(|last| now_ms - last < REREAD_MS) {
            return None;
        }
        *read_ms = Some(now_ms);
        match resolve(source.clone()).await.and_then(|env| signing_secrets(&env)) {
            Ok(secrets) => {
                info!(secrets = secrets.len(), "SECRETS_REREAD");
                let newer: Arc<[Secret]> = secrets.into();
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&newer);
                Some(newer)
            }
            Err(error) => {
                warn!(error = %error, "SECRETS_NOT_REREAD");
                None
            }
        }
    }
}
