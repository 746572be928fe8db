//! The stored catalog, and every version of it.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;

use super::{Condition, Item, Key, Write, new_item, number, read_number, read_text, text};
use crate::store::StoreError;
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
