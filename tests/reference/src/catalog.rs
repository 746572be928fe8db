//! The catalog: one TOML text that names tiers, policies and what is sold.

use crate::event::Line;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The parts of the catalog that the money rules read. Unknown fields are allowed.
#[derive(Deserialize)]
pub struct Catalog {
    tiers: BTreeMap<String, i64>,
    policy: Value,
    #[serde(default)]
    pub plan: Vec<Goods>,
    #[serde(default)]
    pub pack: Vec<Goods>,
    #[serde(default)]
    pub product: Vec<Goods>,
    #[serde(default)]
    pub order: Vec<Value>,
    #[serde(default)]
    pub ignore: Vec<Value>,
}

/// A plan (it has a tier), a pack or a product.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Goods {
    pub name: String,
    pub tier: String,
    credits: i64,
    per: String,
    trial_credits: Option<i64>,
    pub refill: String,
    rollover: BTreeMap<String, i64>,
    pub expires_days: i64,
    pub amount: Option<i64>,
    pub currency: Option<String>,
    prices: Vec<String>,
    lookup_keys: Vec<String>,
    stripe_products: Vec<String>,
}

impl Goods {
    pub fn is_plan(&self) -> bool {
        !self.tier.is_empty()
    }

    pub fn is_seat(&self) -> bool {
        self.per == "seat"
    }

    /// The full amount of one period or slice, or of a purchase.
    pub fn worth(&self, quantity: i64) -> i64 {
        self.credits * if self.is_seat() || !self.is_plan() { quantity } else { 1 }
    }

    /// 2.7: `trial_credits` (default: the plan's `credits`; `per = "seat"` multiplies).
    pub fn trial(&self, quantity: i64) -> i64 {
        self.trial_credits.unwrap_or(self.credits) * if self.is_seat() { quantity } else { 1 }
    }

    pub fn rollover(&self, field: &str, default: i64) -> i64 {
        self.rollover.get(field).copied().unwrap_or(default)
    }
}

impl Catalog {
    pub fn policy(&self, field: &str, default: &'static str) -> &str {
        self.policy[field].as_str().unwrap_or(default)
    }

    pub fn number(&self, field: &str, default: i64) -> i64 {
        self.policy[field].as_i64().unwrap_or(default)
    }

    /// What a line's price sells: it matches by id, lookup key or Stripe product.
    pub fn sold(&self, line: &Line) -> Option<&Goods> {
        let has = |list: &[String], id: &str| !id.is_empty() && list.iter().any(|l| l == id);
        self.plan.iter().chain(&self.pack).chain(&self.product).find(|g| {
            has(&g.prices, &line.price)
                || has(&g.lookup_keys, &line.lookup)
                || has(&g.stripe_products, &line.product)
        })
    }

    /// The rank of a plan's tier.
    pub fn rank(&self, plan: &Goods) -> i64 {
        self.tiers.get(&plan.tier).copied().unwrap_or(0)
    }
}
