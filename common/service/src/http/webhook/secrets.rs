//! The signing secrets in use. A rolled secret takes effect without a deployment and without losing events.
//!
//! Secrets given as `ssm:/path` are read at start and kept. When a signature matches none of them, they are
//! read again, at most every [`REREAD_MS`], and the request is verified once more. A request that verifies
//! costs no call. Wrong signatures can cause at most two calls per minute and instance.
//!
//! While a secret is rolled, Stripe signs with the old and the new one for a time that the operator chooses.
//! So: roll in Stripe with an overlap, put `new,old` into the parameter, and remove `old` when the overlap
//! has ended. An instance that knows `old` may accept it until Lambda ends the instance, within some hours.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::config::signing_secrets;
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::resolve;
use tallyhook_core::signature::Secret;

/// The shortest time between two reads.
const REREAD_MS: i64 = 30_000;

/// The signing secrets, and how to read them again.
pub(super) struct Secrets {
    current: RwLock<Arc<[Secret]>>,
    /// The variables with `ssm:/path` not replaced; `None` when no signing secret is a parameter.
    source: Option<Env>,
    /// When the secrets were last read again, in Unix ms. Locked while reading, so that concurrent requests
    /// wait for one answer.
    read_ms: Mutex<Option<i64>>,
}

impl Secrets {
    /// Starts with these secrets; `source` allows reading them again.
    pub(super) fn new(secrets: Vec<Secret>, source: Option<Env>) -> Self {
        Self { current: RwLock::new(secrets.into()), source, read_ms: Mutex::default() }
    }

    /// The secrets to verify with.
    pub(super) fn current(&self) -> Arc<[Secret]> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Secrets newer than `tried`, which did not match. `None` when there are none, or when they cannot be
    /// read; the current secrets then stay in use.
    pub(super) async fn newer(&self, tried: &Arc<[Secret]>, now_ms: i64) -> Option<Arc<[Secret]>> {
        let source = self.source.as_ref()?;
        let mut read_ms = self.read_ms.lock().await;
        let current = self.current();
        if !Arc::ptr_eq(&current, tried) {
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
