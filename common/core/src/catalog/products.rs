//! Features and products: what a user may do, beside tier and credits.
//!
//! ```toml
//! [features]                     # "switch": on or off; "limit": a number or "unlimited"
//! sso = "switch"
//! projects = "limit"
//!
//! [default_features]             # of every user
//! projects = 1
//!
//! [[plan]]
//! features = { sso = true, projects = 10 }
//! per_seat = ["projects"]        # limits that count for each seat
//!
//! [[product]]                    # gives features, and no tier
//! name = "break_and_enter"
//! features = { sso = true }
//! credits = 0                    # bought once: like a pack; by subscription: of each period
//! prices = ["price_…"]
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Catalog, CatalogError, Checker, MAX_CREDITS, Names, Place, SoldAs};

/// The largest number of a limit.
const MAX_LIMIT: u64 = 1_000_000_000;

/// The kind of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureKind {
    /// On or off.
    Switch,
    /// A number, or unlimited.
    Limit,
}

/// The word `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlimited {
    /// No limit.
    Unlimited,
}

/// What a plan or a product gives of a feature. In JSON: `true`, `10` or `"unlimited"`. Of two values the
/// greater one is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(untagged)]
pub enum FeatureValue {
    /// Of a switch.
    Switch(bool),
    /// Of a limit.
    Limit(u64),
    /// Of a limit: no limit.
    Unlimited(Unlimited),
}

impl FeatureValue {
    /// What nothing gives: off, or 0.
    pub fn none(kind: FeatureKind) -> Self {
        match kind {
            FeatureKind::Switch => Self::Switch(false),
            FeatureKind::Limit => Self::Limit(0),
        }
    }

    /// A limit for this many seats.
    #[must_use]
    pub fn times(self, seats: u64) -> Self {
        match self {
            Self::Limit(limit) => Self::Limit(limit.saturating_mul(seats)),
            Self::Switch(_) | Self::Unlimited(_) => self,
        }
    }
}

/// Features with what is given of each.
pub type Features = BTreeMap<String, FeatureValue>;

/// What is bought once or by subscription and gives features.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Product {
    /// Its name in a session's metadata (`product`) and in the account.
    pub name: String,
    /// The names that it had before. What is kept by one of them belongs to this product.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formerly: Vec<String>,
    /// What it gives.
    pub features: Features,
    /// Credits of one purchase, or of each period of a subscription.
    pub credits: u64,
    /// Its prices at Stripe.
    pub sold_as: SoldAs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileProduct {
    name: Spanned<String>,
    #[serde(default)]
    formerly: Vec<Spanned<String>>,
    #[serde(default)]
    features: FileFeatures,
    credits: Option<Spanned<i64>>,
    prices: Option<Names>,
    lookup_keys: Option<Names>,
    stripe_products: Option<Names>,
}

pub(super) type FileFeatures = BTreeMap<Spanned<String>, Spanned<toml::Value>>;
pub(super) type FileKinds = BTreeMap<Spanned<String>, Spanned<String>>;

/// The features that a catalog declares.
pub(super) type Kinds = BTreeMap<String, FeatureKind>;

impl Catalog {
    /// A product by its name, else by a name that it had before.
    pub fn product(&self, name: &str) -> Option<&Product> {
        let formerly = || self.products.iter().find(|product| product.formerly.iter().any(|one| one == name));
        self.products.iter().find(|product| product.name == name).or_else(formerly)
    }

    /// A digest of what decides tiers and features; `None` for a catalog without features. An account with
    /// another digest was written with another catalog.
    pub fn features_digest(&self) -> Option<String> {
        if self.features.is_empty() {
            return None;
        }
        let plans: Vec<_> = self
            .plans
            .iter()
            .map(|plan| (&plan.name, &plan.formerly, &plan.tier, plan.rank, &plan.features, &plan.per_seat))
            .collect();
        let all = (
            &self.tiers,
            &self.policy.default_tier,
            &self.features,
            &self.default_features,
            plans,
            &self.products,
        );
        let text = serde_json::to_string(&all).unwrap_or_default();
        // FNV-1a: the digest finds changes and protects nothing.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Some(format!("{hash:016x}"))
    }
}

impl Checker<'_> {
    pub(super) fn kinds(&self, file: FileKinds) -> Result<Kinds, CatalogError> {
        let mut kinds = Kinds::new();
        for (name, kind) in file {
            self.name("feature", &name)?;
            let kind = match kind.get_ref().as_str() {
                "switch" => FeatureKind::Switch,
                "limit" => FeatureKind::Limit,
                other => {
                    let message = format!("feature kind \"{other}\" must be \"switch\" or \"limit\"");
                    return Err(self.error(&kind, message));
                }
            };
            kinds.insert(name.into_inner(), kind);
        }
        Ok(kinds)
    }

    pub(super) fn features(&self, file: FileFeatures, kinds: &Kinds) -> Result<Features, CatalogError> {
        let mut features = Features::new();
        for (name, value) in file {
            let kind = self.kind_of(&name, kinds)?;
            let checked = match (kind, value.get_ref()) {
                (FeatureKind::Switch, toml::Value::Boolean(on)) => Some(FeatureValue::Switch(*on)),
                (FeatureKind::Limit, toml::Value::Integer(limit)) => {
                    u64::try_from(*limit).ok().filter(|limit| *limit <= MAX_LIMIT).map(FeatureValue::Limit)
                }
                (FeatureKind::Limit, toml::Value::String(word)) if word == "unlimited" => {
                    Some(FeatureValue::Unlimited(Unlimited::Unlimited))
                }
                _ => None,
            };
            let checked = checked.ok_or_else(|| {
                let allowed = match kind {
                    FeatureKind::Switch => "a switch: true or false".to_owned(),
                    FeatureKind::Limit => format!("a limit: 0 to {MAX_LIMIT}, or \"unlimited\""),
                };
                self.error(&value, format!("feature \"{}\" is {allowed}", name.get_ref()))
            })?;
            features.insert(name.into_inner(), checked);
        }
        Ok(features)
    }

    pub(super) fn per_seat(
        &self,
        file: Vec<Spanned<String>>,
        features: &Features,
        kinds: &Kinds,
    ) -> Result<Vec<String>, CatalogError> {
        let mut names = Vec::new();
        for name in file {
            let kind = self.kind_of(&name, kinds)?;
            if kind != FeatureKind::Limit || !features.contains_key(name.get_ref()) {
                let message = format!("per_seat \"{}\" must be a limit that the plan gives", name.get_ref());
                return Err(self.error(&name, message));
            }
            names.push(name.into_inner());
        }
        Ok(names)
    }

    fn kind_of(&self, name: &Spanned<String>, kinds: &Kinds) -> Result<FeatureKind, CatalogError> {
        kinds.get(name.get_ref()).copied().ok_or_else(|| {
            let known = kinds.keys().cloned().collect::<Vec<_>>().join(", ");
            let message =
                format!("feature \"{}\" is not under [features] (known features: {known})", name.get_ref());
            self.error(name, message)
        })
    }

    pub(super) fn products(
        &mut self,
        file: Vec<FileProduct>,
        kinds: &Kinds,
        plans: &[super::Plan],
    ) -> Result<Vec<Product>, CatalogError> {
        let mut products: Vec<Product> = Vec::new();
        for product in file {
            self.name("product", &product.name)?;
            let name = product.name.get_ref();
            if products.iter().any(|other| other.name == *name) {
                return Err(self.error(&product.name, format!("product \"{name}\" occurs twice")));
            }
            if plans.iter().any(|plan| plan.name == *name) {
                return Err(self.error(&product.name, format!("product \"{name}\" has the name of a plan")));
            }
            let checked = Product {
                credits: self.number_or("credits", product.credits.as_ref(), MAX_CREDITS, 0)?,
                features: self.features(product.features, kinds)?,
                formerly: self.formerly(product.formerly)?,
                sold_as: self.sold_as(
                    &product.name,
                    product.prices,
                    product.lookup_keys,
                    product.stripe_products,
                )?,
                name: product.name.into_inner(),
            };
            self.index.add(&checked.sold_as, Place::Product(products.len()));
            products.push(checked);
        }
        Ok(products)
    }
}
