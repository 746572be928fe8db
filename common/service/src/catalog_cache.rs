//! The catalog that decides: the stored one. While none is stored, the file in `CATALOG_FILE`; without this
//! file there is no catalog, and events of purchases are parked (`no_catalog`).
//!
//! A function holds the catalog and reads it again at most every [`MAX_AGE`] while it works. A worker reads
//! it in the call that reads its batch's items; the other functions make a call for it. The learnt price ids
//! are read with it. The first event that shows a price with its lookup key or its Stripe product adds the
//! price's id to them.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tallyhook_aws::clock;
use tallyhook_aws::sdk::PREWARM_TIMEOUT;
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::catalog::{Catalog, LearntPrice, learn};
use tracing::{info, warn};

/// How long a catalog is used before it is read again.
pub const MAX_AGE: Duration = Duration::from_secs(30);

/// An event whose price is not in the catalog makes a function read the catalog again, if the last read is
/// older.
const MIN_AGE: Duration = Duration::from_secs(1);

/// The items of the catalog, which are read together.
const KEYS: [Key; 2] = [Key::Catalog, Key::LearntPrices];

/// The maximum number of attempts to store learnt prices, if other functions store some at the same time.
const MAX_ATTEMPTS: u32 = 5;
/// The maximum number of price ids that an instance remembers as stored.
const MAX_REMEMBERED: usize = 10_000;

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
    /// The price ids that this instance has stored, with what they sold. It stores them once, also if more
    /// than the maximum are in use and drop each other.
    stored_prices: HashSet<(String, String)>,
}

impl CatalogCache {
    /// Starts with a catalog that is not stored. The first read replaces it if one is stored.
    pub fn new(catalog: Arc<DecidingCatalog>) -> Self {
        let max_age = catalog.max_age;
        let cached = CachedCatalog { catalog, read_at: None, stored_prices: HashSet::new() };
        Self { cached: Arc::new(Mutex::new(cached)), max_age }
    }

    /// The catalog that was read last.
    pub fn current(&self) -> Arc<DecidingCatalog> {
        Arc::clone(&self.cached.lock().unwrap_or_else(PoisonError::into_inner).catalog)
    }

    /// The keys of the stored catalog, if it is time to read it again.
    pub fn due(&self) -> Option<[Key; 2]> {
        let read_at = self.cached.lock().unwrap_or_else(PoisonError::into_inner).read_at;
        read_at.is_none_or(|at| at.elapsed() >= self.max_age).then_some(KEYS)
    }

    /// Takes the stored catalog and the learnt prices from the items of a read that asked for them. What is
    /// invalid is not taken, and the cached one stays.
    pub fn update(&self, items: &HashMap<Key, Item>) {
        let invalid = |error: &dyn std::error::Error| warn!(error = error.to_string(), "CATALOG_NOT_READ");
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.read_at = Some(Instant::now());
        let mut next = DecidingCatalog::clone(&cached.catalog);
        let stored = items.get(&Key::Catalog).map(|item| items::read_catalog(&Key::Catalog, item));
        match stored {
            None => {}
            Some(Ok(stored)) if next.digest() == Some(stored.digest.as_str()) => {}
            Some(Ok(stored)) => match Catalog::parse(&stored.toml) {
                Ok(catalog) => {
                    info!(digest = stored.digest, version = stored.version, "CATALOG_CHANGED");
                    next.catalog = catalog.with_learnt(next.learnt().values().cloned());
                    next.digest = Some(stored.digest);
                }
                Err(error) => invalid(&error),
            },
            Some(Err(error)) => invalid(&error),
        }
        match items::read_learnt_prices(items.get(&Key::LearntPrices)) {
            Ok((learnt, _)) => next.catalog = next.catalog.with_learnt(learnt),
            Err(error) => invalid(&error),
        }
        if next != *cached.catalog {
            cached.catalog = Arc::new(next);
        }
    }

    /// Stores price ids that events have shown with their lookup keys or Stripe products, once for each id.
    /// The other functions know them with their next read of the catalog. If they cannot be stored, a later
    /// event with the price stores them.
    pub async fn learn(&self, store: &Store, mut shown: Vec<LearntPrice>) {
        {
            let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
            shown.retain(|price| !cached.stored_prices.contains(&(price.id.clone(), price.sold.clone())));
        }
        if shown.is_empty() {
            return;
        }
        let mut tried = 0;
        loop {
            tried += 1;
            // Boxed, because the compiler limits how deep futures may nest.
            match self.store_learnt(store, &shown).boxed().await {
                Ok(()) => break,
                Err(StoreError::Cancelled(_)) if tried < MAX_ATTEMPTS => clock::pause(tried).await,
                Err(error) => return warn!(error = error.to_string(), "PRICES_NOT_LEARNT"),
            }
        }
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.stored_prices.len() + shown.len() > MAX_REMEMBERED {
            cached.stored_prices.clear();
        }
        for price in shown {
            info!(price_id = price.id, "PRICE_LEARNT");
            cached.stored_prices.insert((price.id, price.sold));
        }
    }

    /// Adds prices to the stored ones, and takes the result.
    async fn store_learnt(&self, store: &Store, shown: &[LearntPrice]) -> Result<(), StoreError> {
        let mut found = store.load(KEYS).await?;
        let (mut known, revision) = items::read_learnt_prices(found.get(&Key::LearntPrices))?;
        // Another function may have stored them since this one read the catalog.
        self.update(&found);
        let catalog = self.current();
        let mut changed = false;
        for price in shown.iter().filter(|price| !catalog.sells(&price.id, &price.sold)) {
            changed |= learn(&mut known, price.clone());
        }
        if changed {
            let write = items::learnt_prices(&known, revision)?;
            found.extend(write.item.clone().map(|item| (Key::LearntPrices, item)));
            store.commit(vec![write]).await?;
            self.update(&found);
        }
        Ok(())
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
        match store.load(KEYS).boxed().await {
            Ok(items) => self.update(&items),
            Err(error) => warn!(error = error.to_string(), "CATALOG_NOT_READ"),
        }
    }

    /// Reads the catalog if it is time, and returns it. Without an answer, the one that is cached stays in
    /// use.
    pub async fn fresh(&self, store: &Store) -> Arc<DecidingCatalog> {
        if self.due().is_some() {
            self.read_now(store).await;
        }
        self.current()
    }
}
