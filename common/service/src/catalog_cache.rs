//! The catalog that decides: the stored one. While none is stored, the file in `CATALOG_FILE`; without this
//! file there is no catalog, and events of purchases are parked (`no_catalog`).
//!
//! A function holds the catalog and reads it again at most every [`MAX_AGE`] while it works. A worker reads
//! it in the call that reads its batch's items; the other functions make a call for it.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tallyhook_aws::sdk::PREWARM_TIMEOUT;
use tallyhook_aws::store::Store;
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_core::catalog::Catalog;
use tracing::{info, warn};

/// How long a catalog is used before it is read again.
pub const MAX_AGE: Duration = Duration::from_secs(30);

/// An event whose price is not in the catalog makes a function read the catalog again, if the last read is
/// older.
const MIN_AGE: Duration = Duration::from_secs(1);

/// A catalog with the digest of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidingCatalog {
    catalog: Catalog,
    digest: Option<String>,
    max_age: Duration,
}

impl DecidingCatalog {
    /// The digest of the stored catalog; `None` for one that is not stored.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// A catalog that is not stored. The stored one is read at most every `max_age`.
    pub fn not_stored(catalog: Catalog, max_age: Duration) -> Self {
        Self { catalog, digest: None, max_age }
    }
}

impl From<Catalog> for DecidingCatalog {
    fn from(catalog: Catalog) -> Self {
        Self::not_stored(catalog, MAX_AGE)
    }
}

impl Deref for DecidingCatalog {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        &self.catalog
    }
}

/// The catalog of a function. Clones share it.
#[derive(Clone, Debug)]
pub struct CatalogCache {
    cached: Arc<Mutex<CachedCatalog>>,
    max_age: Duration,
}

#[derive(Debug)]
struct CachedCatalog {
    catalog: Arc<DecidingCatalog>,
    read_at: Option<Instant>,
}

impl CatalogCache {
    /// Starts with a catalog that is not stored. The first read replaces it if one is stored.
    pub fn new(catalog: Arc<DecidingCatalog>) -> Self {
        let max_age = catalog.max_age;
        Self { cached: Arc::new(Mutex::new(CachedCatalog { catalog, read_at: None })), max_age }
    }

    /// The catalog that was read last.
    pub fn current(&self) -> Arc<DecidingCatalog> {
        Arc::clone(&self.cached.lock().unwrap_or_else(PoisonError::into_inner).catalog)
    }

    /// The key of the stored catalog, if it is time to read it again.
    pub fn due(&self) -> Option<Key> {
        let read_at = self.cached.lock().unwrap_or_else(PoisonError::into_inner).read_at;
        read_at.is_none_or(|at| at.elapsed() >= self.max_age).then_some(Key::Catalog)
    }

    /// Takes the stored catalog from the items of a read that asked for it. If it is invalid, the cached one
    /// stays.
    pub fn update(&self, items: &HashMap<Key, Item>) {
        let stored = items.get(&Key::Catalog).map(|item| items::read_catalog(&Key::Catalog, item));
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.read_at = Some(Instant::now());
        let stored = match stored {
            None => return,
            Some(Ok(stored)) if cached.catalog.digest() == Some(stored.digest.as_str()) => return,
            Some(Ok(stored)) => stored,
            Some(Err(error)) => return warn!(error = error.to_string(), "CATALOG_NOT_READ"),
        };
        match Catalog::parse(&stored.toml) {
            Ok(catalog) => {
                info!(digest = stored.digest, version = stored.version, "CATALOG_CHANGED");
                cached.catalog =
                    Arc::new(DecidingCatalog { catalog, digest: Some(stored.digest), max_age: self.max_age });
            }
            Err(error) => warn!(error = error.to_string(), "CATALOG_NOT_READ"),
        }
    }

    /// Reads the catalog again, unless it was read within the last second.
    pub async fn read_again(&self, store: &Store) {
        let read_at = self.cached.lock().unwrap_or_else(PoisonError::into_inner).read_at;
        if read_at.is_none_or(|at| at.elapsed() >= MIN_AGE.min(self.max_age)) {
            self.read_now(store).await;
        }
    }

    /// Reads the catalog in a function's init, where the CPU is not limited, so that the first event does not
    /// wait for the TLS handshake. Without an answer the function starts anyway.
    pub async fn prewarm(&self, store: &Store) {
        let _ = tokio::time::timeout(PREWARM_TIMEOUT, self.read_now(store)).await;
    }

    /// Reads the catalog.
    pub async fn read_now(&self, store: &Store) {
        // Boxed, because the compiler limits how deep futures may nest.
        match store.load([Key::Catalog]).boxed().await {
            Ok(items) => self.update(&items),
            Err(error) => warn!(error = error.to_string(), "CATALOG_NOT_READ"),
        }
    }

    /// Reads the catalog if it is time, and returns it. Without an answer, the one that is cached stays in use.
    pub async fn fresh(&self, store: &Store) -> Arc<DecidingCatalog> {
        if self.due().is_some() {
            self.read_now(store).await;
        }
        self.current()
    }
}
