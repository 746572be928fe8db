//! Reading facts out of a JSON object by path, tolerantly: what is absent or null is `None`, what has another
//! shape than Stripe ever sent is an error that names the path.

use std::{collections::BTreeMap, str::FromStr};

use super::ReadError;
use super::json::Json;
use crate::ids::IdError;
use crate::timestamp::Timestamp;

/// The metadata the rules use, by key; see [`METADATA_KEYS`].
pub type Metadata = BTreeMap<String, String>;

/// The keys of [`Metadata`]. Everything else a merchant keeps in metadata is none of our business and is not
/// held.
pub const METADATA_KEYS: [&str; 8] =
    ["user_id", "client_id", "plan", "pack", "quantity", "mode", "upgraded_from", "tier"];

/// Stripe's own limit for a metadata value is 500 characters; what is longer is cut just above, where it is
/// still over every limit.
const METADATA_VALUE_MAX: usize = 512;

/// A JSON object and where it stands, for errors.
pub(super) struct Fields<'a> {
    at: String,
    value: &'a Json<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(at: impl Into<String>, value: &'a Json<'a>) -> Self {
        Self { at: at.into(), value }
    }

    /// The value at a dotted path below this object; absent, null, or below something that is not an object:
    /// `None`.
    fn find(&self, path: &str) -> Option<&'a Json<'a>> {
        self.value.at(path)?.some()
    }

    fn at(&self, path: &str) -> String {
        if self.at.is_empty() { path.to_owned() } else { format!("{}.{path}", self.at) }
    }

    /// Reads the value with `shape`; a value it does not take is an error.
    fn shaped<T>(
        &self,
        path: &str,
        expected: &'static str,
        shape: impl FnOnce(&'a Json<'a>) -> Option<T>,
    ) -> Result<Option<T>, ReadError> {
        match self.find(path) {
            None => Ok(None),
            Some(value) => {
                shape(value).map(Some).ok_or_else(|| ReadError::Wrong { path: self.at(path), expected })
            }
        }
    }

    /// Whether the path is there at all, null included: `previous_attributes` names what *was* null.
    pub(super) fn names(&self, path: &str) -> bool {
        self.value.at(path).is_some()
    }

    pub(super) fn text(&self, path: &str) -> Result<Option<&'a str>, ReadError> {
        self.shaped(path, "a text", Json::text)
    }

    pub(super) fn owned(&self, path: &str) -> Result<Option<String>, ReadError> {
        Ok(self.text(path)?.map(str::to_owned))
    }

    pub(super) fn flag(&self, path: &str) -> Result<Option<bool>, ReadError> {
        self.shaped(path, "true or false", Json::flag)
    }

    /// Money in minor units, which may be negative (a proration).
    pub(super) fn amount(&self, path: &str) -> Result<Option<i64>, ReadError> {
        self.shaped(path, "a whole number", Json::whole)
    }

    pub(super) fn count(&self, path: &str) -> Result<Option<u64>, ReadError> {
        self.shaped(path, "a whole number, not negative", Json::whole)
    }

    pub(super) fn time(&self, path: &str) -> Result<Option<Timestamp>, ReadError> {
        Ok(self.shaped(path, "a time in whole seconds", Json::whole)?.map(Timestamp::from_unix))
    }

    /// A word of an open enumeration; absent is `Other("")`.
    pub(super) fn word<T: From<&'a str>>(&self, path: &str) -> Result<T, ReadError> {
        Ok(T::from(self.text(path)?.unwrap_or_default()))
    }

    /// An expandable field: the id itself, or the object that has it.
    pub(super) fn id<T: FromStr<Err = IdError>>(&self, path: &str) -> Result<Option<T>, ReadError> {
        let text = self.shaped(path, "an id, or an object with one", |value| {
            value.text().or_else(|| value.get("id")?.text())
        })?;
        text.map(|text| text.parse().map_err(|source| ReadError::Id { path: self.at(path), source }))
            .transpose()
    }

    /// The first of several places that has the id: the shapes of different API versions.
    pub(super) fn first_id<T: FromStr<Err = IdError>>(&self, paths: &[&str]) -> Result<Option<T>, ReadError> {
        for path in paths {
            if let Some(id) = self.id(path)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The entries of one of Stripe's lists (`{"object":"list","data":[…]}`); absent is empty.
    pub(super) fn list(&self, path: &str) -> Result<Vec<Fields<'a>>, ReadError> {
        let path = format!("{path}.data");
        let entries = self.shaped(&path, "a list", Json::list)?.unwrap_or_default();
        let at = self.at(&path);
        Ok(entries
            .iter()
            .enumerate()
            .map(|(index, value)| Fields::new(format!("{at}[{index}]"), value))
            .collect())
    }

    /// What the rules use of a metadata object: known keys with text as value. Anything else in there is the
    /// merchant's.
    pub(super) fn metadata(&self, path: &str) -> Metadata {
        let Some(found) = self.find(path) else { return Metadata::new() };
        let known = METADATA_KEYS.iter().filter_map(|key| Some((*key, found.get(key)?.text()?)));
        known.map(|(key, text)| (key.to_owned(), text.chars().take(METADATA_VALUE_MAX).collect())).collect()
    }

    /// For what a rule cannot do without.
    pub(super) fn need<T>(&self, path: &str, found: Option<T>) -> Result<T, ReadError> {
        found.ok_or_else(|| ReadError::Missing { path: self.at(path) })
    }
}
