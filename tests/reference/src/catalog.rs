//! The catalog: one TOML text that names tiers, policies and what is sold.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// One second-based day.
pub const DAY: i64 = 86_400;

/// The parts of the catalog that the money rules read. Unknown fields are allowed.
#[derive(Deserialize)]
pub struct Catalog {
    pub tiers: BTreeMap<String, i64>,
    pub policy: Policy,
    #[serde(default)]
    pub plan: Vec<Plan>,
    #[serde(default)]
    pub pack: Vec<Pack>,
    #[serde(default)]
    pub product: Vec<Pack>,
    #[serde(default)]
    pub order: Vec<Order>,
    #[serde(default)]
    pub ignore: Vec<Ignore>,
}

/// `[policy]`, with the defaults of the documented catalog.
#[derive(Deserialize)]
#[serde(default)]
pub struct Policy {
    pub default_tier: String,
    pub signup_credits: i64,
    pub signup_expires_days: i64,
    pub free_credits: i64,
    pub free_refill: String,
    pub addons: String,
    pub plan_change: String,
    pub trials: String,
    pub spend_order: String,
    pub past_due_grace_days: i64,
    pub pause_collection: String,
    pub refunded_access: String,
    pub client_reference_id: String,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            default_tier: "free".into(),
            signup_credits: 500,
            signup_expires_days: 0,
            free_credits: 0,
            free_refill: "month".into(),
            addons: "reset".into(),
            plan_change: "at_once".into(),
            trials: "once".into(),
            spend_order: "plan_first".into(),
            past_due_grace_days: 7,
            pause_collection: "keep".into(),
            refunded_access: "keep".into(),
            client_reference_id: "user".into(),
        }
    }
}

/// `[[plan]]`.
#[derive(Deserialize)]
pub struct Plan {
    pub name: String,
    pub tier: String,
    pub credits: i64,
    #[serde(default)]
    pub per: String,
    pub trial_credits: Option<i64>,
    #[serde(default)]
    pub refill: String,
    #[serde(default)]
    pub rollover: Rollover,
    pub amount: Option<i64>,
    #[serde(default)]
    pub prices: Vec<String>,
    #[serde(default)]
    pub lookup_keys: Vec<String>,
    #[serde(default)]
    pub stripe_products: Vec<String>,
}

/// `rollover = { percent, max, periods }`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Rollover {
    pub percent: i64,
    pub max: i64,
    pub periods: Option<usize>,
}

/// `[[pack]]` and `[[product]]`.
#[derive(Deserialize)]
pub struct Pack {
    pub name: String,
    #[serde(default)]
    pub credits: i64,
    #[serde(default)]
    pub expires_days: i64,
    pub amount: Option<i64>,
    #[serde(default)]
    pub prices: Vec<String>,
    #[serde(default)]
    pub lookup_keys: Vec<String>,
    #[serde(default)]
    pub stripe_products: Vec<String>,
}

/// `[[order]]`: only the mode matters here.
#[derive(Deserialize)]
pub struct Order {
    pub mode: String,
}

/// `[[ignore]]`: every key of a rule must match.
#[derive(Deserialize)]
pub struct Ignore {
    pub price: Option<String>,
    pub product: Option<String>,
    pub metadata: Option<BTreeMap<String, Value>>,
    pub account: Option<String>,
    pub context: Option<String>,
}

/// What a price sells.
#[derive(Clone, Copy)]
pub enum Sold<'a> {
    Plan(&'a Plan),
    Pack(&'a Pack),
}

impl Plan {
    fn times(&self, credits: i64, quantity: i64) -> i64 {
        if self.per == "seat" { credits * quantity } else { credits }
    }

    /// The full amount of one period or slice.
    pub fn worth(&self, quantity: i64) -> i64 {
        self.times(self.credits, quantity)
    }

    /// 2.7: `trial_credits` (default: the plan's `credits`; `per = "seat"` multiplies).
    pub fn trial(&self, quantity: i64) -> i64 {
        self.times(self.trial_credits.unwrap_or(self.credits), quantity)
    }
}

impl Catalog {
    /// What a price sells: it matches by its id, its lookup key or its Stripe product.
    pub fn sold(&self, price: &str, lookup: Option<&str>, product: Option<&str>) -> Option<Sold<'_>> {
        let has = |prices: &[String], keys: &[String], products: &[String]| {
            prices.iter().any(|p| p == price)
                || lookup.is_some_and(|l| keys.iter().any(|k| k == l))
                || product.is_some_and(|p| products.iter().any(|k| k == p))
        };
        let plan = self.plan.iter().find(|p| has(&p.prices, &p.lookup_keys, &p.stripe_products));
        let packs = || self.pack.iter().chain(&self.product);
        let pack = || packs().find(|p| has(&p.prices, &p.lookup_keys, &p.stripe_products));
        plan.map(Sold::Plan).or_else(|| pack().map(Sold::Pack))
    }

    /// The rank of a tier; an unknown one ranks lowest.
    pub fn rank(&self, tier: &str) -> i64 {
        self.tiers.get(tier).copied().unwrap_or(i64::MIN)
    }
}
