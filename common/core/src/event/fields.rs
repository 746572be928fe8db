//! Reads fields of a JSON object by path. An absent or null value is `None`. A value of an unexpected type is
//! an error that names the path.

use std::{collections::BTreeMap, str::FromStr};

use super::ReadError;
use super::json::Json;
use crate::ids::IdError;
use crate::timestamp::Timestamp;

/// The metadata that the rules use, by key: see [`METADATA_KEYS`].
pub type Metadata = BTreeMap<String, String>;

/// The keys of [`Metadata`]. Other metadata of the merchant is not kept.
pub const METADATA_KEYS: [&str; 11] = [
    "user_id",
    "client_id",
    "plan",
    "plan_code",
    "pack",
    "product",
    "quantity",
    "mode",
    "upgraded_from",
    "customer_reference",
    "tier",
];

/// A metadata value is cut to this length. It is above Stripe's limit of 500 characters, so a cut value is
/// still too long to be a user id.
const MAX_METADATA_CHARS: usize = 512;

/// A JSON object with its path, for errors.
pub(super) struct Fields<'a> {
    at: String,
    value: &'a Json<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(at: impl Into<String>, value: &'a Json<'a>) -> Self {
        Self { at: at.into(), value }
    }

    /// The value at a dotted path below this object; `None` when it is absent or null, or when a part of the
    /// path is not an object.
    fn find(&self, path: &str) -> Option<&'a Json<'a>> {
        self.value.at(path)?.some()
    }

    fn at(&self, path: &str) -> String {
        if self.at.is_empty() { path.to_owned() } else { format!("{}.{path}", self.at) }
    }

    /// Converts the value with `shape`. It is an error when `shape` returns `None`.
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

    /// Whether the path exists, also with null: in `previous_attributes`, null means that the field was not
    /// set.
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

    /// Money in minor units. It may be negative, for example for a proration.
    pub(super) fn amount(&self, path: &str) -> Result<Option<i64>, ReadError> {
        self.shaped(path, "a whole number", Json::whole)
    }

    pub(super) fn count(&self, path: &str) -> Result<Option<u64>, ReadError> {
        self.shaped(path, "a whole number, not negative", Json::whole)
    }

    pub(super) fn time(&self, path: &str) -> Result<Option<Timestamp>, ReadError> {
        Ok(self.shaped(path, "a time in whole seconds", Json::whole)?.map(Timestamp::from_unix))
    }

    /// A value of an open enumeration; `Other("")` when it is absent.
    pub(super) fn word<T: From<&'a str>>(&self, path: &str) -> Result<T, ReadError> {
        Ok(T::from(self.text(path)?.unwrap_or_default()))
    }

    /// The id in an expandable field, which holds the id or the whole object.
    pub(super) fn id<T: FromStr<Err = IdError>>(&self, path: &str) -> Result<Option<T>, ReadError> {
        let text = self.id_text(path)?;
        text.map(|text| text.parse().map_err(|source| ReadError::Id { path: self.at(path), source }))
            .transpose()
    }

    /// The text of the id in an expandable field.
    pub(super) fn id_text(&self, path: &str) -> Result<Option<&'a str>, ReadError> {
        self.shaped(path, "an id, or an object with one", |value| {
            value.text().or_else(|| value.get("id")?.text())
        })
    }

    /// The id at the first of several paths, which are of different API versions.
    pub(super) fn first_id<T: FromStr<Err = IdError>>(&self, paths: &[&str]) -> Result<Option<T>, ReadError> {
        for path in paths {
            if let Some(id) = self.id(path)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Whether the path exists and is not null.
    pub(super) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// The entries of a list (`{"object":"list","data":[…]}`); empty when it is absent.
    pub(super) fn list(&self, path: &str) -> Result<Vec<Fields<'a>>, ReadError> {
        self.entries(&format!("{path}.data"))
    }

    /// The entries of an array; empty when it is absent.
    pub(super) fn entries(&self, path: &str) -> Result<Vec<Fields<'a>>, ReadError> {
        let entries = self.shaped(path, "a list", Json::list)?.unwrap_or_default();
        let at = self.at(path);
        Ok(entries
            .iter()
            .enumerate()
            .map(|(index, value)| Fields::new(format!("{at}[{index}]"), value))
            .collect())
    }

    /// The known keys of a metadata object that have a text as value.
    pub(super) fn metadata(&self, path: &str) -> Metadata {
        let Some(found) = self.find(path) else { return Metadata::new() };
        let known = METADATA_KEYS.iter().filter_map(|key| Some((*key, found.get(key)?.text()?)));
        known.map(|(key, text)| (key.to_owned(), text.chars().take(MAX_METADATA_CHARS).collect())).collect()
    }

    /// The value of a required field, or an error when it is absent.
    pub(super) fn need<T>(&self, path: &str, found: Option<T>) -> Result<T, ReadError> {
        found.ok_or_else(|| ReadError::Missing { path: self.at(path) })
    }
}
