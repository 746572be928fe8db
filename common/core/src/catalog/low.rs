//! Thresholds of the balance at which the app is notified.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Spanned;

use super::{CatalogError, Checker, MAX_CREDITS};

/// A number of credits, or a share of what the running periods granted. In TOML and JSON: `500` or `"20%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Threshold {
    /// This many credits.
    Credits(u64),
    /// This share in percent, 1 to 99.
    Percent(u8),
}

impl Threshold {
    /// The text that names it: `500` or `20%`.
    pub fn name(self) -> String {
        match self {
            Self::Credits(credits) => credits.to_string(),
            Self::Percent(percent) => format!("{percent}%"),
        }
    }

    fn percent(text: &str) -> Option<Self> {
        let percent = text.strip_suffix('%')?.parse().ok()?;
        (1..=99).contains(&percent).then_some(Self::Percent(percent))
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Credits(credits) => serializer.serialize_u64(*credits),
            Self::Percent(_) => serializer.serialize_str(&self.name()),
        }
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Stored {
            Credits(u64),
            Percent(String),
        }
        match Stored::deserialize(deserializer)? {
            Stored::Credits(credits) => Ok(Self::Credits(credits)),
            Stored::Percent(text) => {
                Self::percent(&text).ok_or_else(|| serde::de::Error::custom("no percentage"))
            }
        }
    }
}

impl Checker<'_> {
    pub(super) fn low(&self, file: &[Spanned<toml::Value>]) -> Result<Vec<Threshold>, CatalogError> {
        let mut all = Vec::new();
        for value in file {
            let threshold = match value.get_ref() {
                toml::Value::Integer(credits) => {
                    let credits = u64::try_from(*credits).ok().filter(|credits| *credits <= MAX_CREDITS);
                    credits.map(Threshold::Credits)
                }
                toml::Value::String(text) => Threshold::percent(text),
                toml::Value::Float(_)
                | toml::Value::Boolean(_)
                | toml::Value::Datetime(_)
                | toml::Value::Array(_)
                | toml::Value::Table(_) => None,
            };
            let threshold = threshold.ok_or_else(|| {
                self.error(value, format!("low has numbers from 0 to {MAX_CREDITS}, or \"1%\" to \"99%\""))
            })?;
            all.push(threshold);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }
}
