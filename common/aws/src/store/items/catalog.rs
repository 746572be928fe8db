//! The stored catalog, and every version of it.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;

use super::{Condition, Item, Key, Write, new_item, number, read_number, read_text, text};
use crate::store::StoreError;
use tallyhook_core::catalog::LearntPrice;
use tallyhook_core::timestamp::Timestamp;

/// The largest catalog, in bytes. An item of DynamoDB has at most 400 KB.
pub const MAX_CATALOG_BYTES: usize = 350 * 1024;

/// A catalog as it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCatalog {
    /// Its text.
    pub toml: String,
    /// The digest of its text: see [`catalog_digest`].
    pub digest: String,
    /// Its number, from 1.
    pub version: u64,
    /// When it was applied.
    pub applied_at: Timestamp,
    /// The name of the token that applied it.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// The first 16 hexadecimal digits of the SHA-256 of a catalog's text.
pub fn catalog_digest(toml: &str) -> String {
    let hash = Sha256::digest(toml.as_bytes());
    hash.iter().take(8).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Writes a catalog twice: as the current one, on condition that the current one is the version before it;
/// and as a version, which is kept.
///
/// ```json
/// {"pk":"catalog","sk":"current","toml":"[tiers]…","digest":"9f86d081884c7d65","version":3,
///  "applied_at":1795651200,"actor":"ann","reason":"a new plan"}
/// ```
/// The kept version has the sort key `version#00000003`.
pub fn catalog(catalog: &StoredCatalog) -> [Write; 2] {
    let write = |key: Key, condition| {
        let mut item = new_item(&key);
        item.insert("toml".to_owned(), text(catalog.toml.clone()));
        item.insert("digest".to_owned(), text(catalog.digest.clone()));
        item.insert("version".to_owned(), number(catalog.version));
        item.insert("applied_at".to_owned(), number(catalog.applied_at.unix()));
        item.insert("actor".to_owned(), text(catalog.actor.clone()));
        item.insert("reason".to_owned(), text(catalog.reason.clone()));
        Write { key, item: Some(item), condition }
    };
    [
        write(Key::Catalog, Condition::Version(catalog.version.saturating_sub(1))),
        write(Key::CatalogVersion(catalog.version), Condition::Absent),
    ]
}

/// Writes the learnt prices, in the order in which they were learnt, on condition that no other writer changed
/// them. They are an item of their own beside the catalog, so that the catalog can be replaced at the same
/// time, and have the item's 400 KB for themselves.
///
/// ```json
/// {"pk":"catalog","sk":"learnt","revision":7,
///  "prices":"[{\"id\":\"price_1A\",\"lookup_key\":\"pro_monthly\",\"product\":\"prod_1\",\"at\":1795651200}]"}
/// ```
///
/// # Errors
/// [`StoreError::Corrupt`] if they cannot be written as JSON.
pub fn learnt_prices(prices: &[LearntPrice], read: u64) -> Result<Write, StoreError> {
    let key = Key::LearntPrices;
    let mut item = new_item(&key);
    let json = serde_json::to_string(prices).map_err(|error| key.corrupt(error))?;
    item.insert("prices".to_owned(), text(json));
    item.insert("revision".to_owned(), number(read.saturating_add(1)));
    Ok(Write { key, item: Some(item), condition: Condition::Revision(read) })
}

/// Reads the learnt prices with their revision. Revision 0: none are stored.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_learnt_prices(item: Option<&Item>) -> Result<(Vec<LearntPrice>, u64), StoreError> {
    let Some(item) = item else { return Ok((Vec::new(), 0)) };
    let key = Key::LearntPrices;
    let json = read_text(item, "prices").ok_or_else(|| key.corrupt("no prices"))?;
    let prices = serde_json::from_str(&json).map_err(|error| key.corrupt(error))?;
    Ok((prices, read_number(item, "revision").ok_or_else(|| key.corrupt("no revision"))?))
}

/// Writes the digest of the catalog that decided about an event into the event's record.
pub fn note_catalog(record: &mut Write, digest: &str) {
    if let Some(item) = &mut record.item {
        item.insert("catalog".to_owned(), text(digest));
    }
}

/// Reads a catalog or a version of it.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_catalog(key: &Key, item: &Item) -> Result<StoredCatalog, StoreError> {
    let missing = |name: &str| key.corrupt(format!("no {name}"));
    let read = |name: &str| read_text(item, name).ok_or_else(|| missing(name));
    let applied_at: Option<i64> = read_number(item, "applied_at");
    Ok(StoredCatalog {
        toml: read("toml")?,
        digest: read("digest")?,
        version: read_number(item, "version").ok_or_else(|| missing("version"))?,
        applied_at: Timestamp::from_unix(applied_at.ok_or_else(|| missing("applied_at"))?),
        actor: read("actor")?,
        reason: read("reason")?,
    })
}
