//! The place of the sweep that follows a change of the catalog.

use super::{Condition, Item, Key, Write, new_item, read_text, text};

/// How far the sweep has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepPlace {
    /// The digest of the catalog that the accounts are written with; `None` for a catalog without features.
    pub digest: Option<String>,
    /// Where the next run continues; `None` at the beginning and at the end.
    pub after: Option<String>,
    /// Whether a page was done.
    pub started: bool,
}

impl SweepPlace {
    /// The beginning.
    pub fn start(digest: Option<String>) -> Self {
        Self { digest, after: None, started: false }
    }

    /// Whether all accounts were seen.
    pub fn is_done(&self) -> bool {
        self.started && self.after.is_none()
    }
}

/// The key of the place.
pub fn sweep_key() -> Key {
    Key::Event("sweep".to_owned())
}

/// Writes the place. Two runs at the same time write the same accounts, which does no harm.
///
/// ```json
/// {"pk":"sweep","digest":"9f86d081884c7d65","after":"3\nuser#user_123"}
/// ```
pub fn sweep(place: &SweepPlace) -> Write {
    let key = sweep_key();
    let mut item = new_item(&key);
    for (name, value) in [("digest", &place.digest), ("after", &place.after)] {
        if let Some(value) = value {
            item.insert(name.to_owned(), text(value.clone()));
        }
    }
    Write { key, item: Some(item), condition: Condition::Anything }
}

/// Reads the place. A stored place always has `started`.
pub fn read_sweep(item: &Item) -> SweepPlace {
    SweepPlace { digest: read_text(item, "digest"), after: read_text(item, "after"), started: true }
}
