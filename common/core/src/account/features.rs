//! The features that a user has at a moment: the best of all that gives access.

use std::collections::BTreeMap;

use super::State;
use super::access::PlanAccess;
use super::products::ProductStatus;
use crate::catalog::{Catalog, FeatureValue, Features};
use crate::credits::Credits;
use crate::event::SubscriptionStatus;
use crate::timestamp::Timestamp;

/// A feature that a user has or lacks, and what gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The best value.
    pub value: FeatureValue,
    /// What gives it: `plan pro`, `product p` or `default`.
    pub because: String,
    /// The end, excluded; absent without a known end.
    pub until: Option<Timestamp>,
}

/// Whether a user may use a feature once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Whether it is allowed.
    pub allowed: bool,
    /// What is left of a limit; absent for a switch and without a limit.
    pub remaining: Option<u64>,
}

impl Feature {
    /// Whether the feature may be used if `used` of its limit are in use.
    pub fn allows(&self, used: u64) -> Allowance {
        match self.value {
            FeatureValue::Switch(on) => Allowance { allowed: on, remaining: None },
            FeatureValue::Limit(limit) => {
                Allowance { allowed: used < limit, remaining: Some(limit.saturating_sub(used)) }
            }
            FeatureValue::Unlimited(_) => Allowance { allowed: true, remaining: None },
        }
    }

    /// Joins another source. If the values are equal, the later end counts. No end is later than every end.
    fn join(&mut self, other: Self) {
        let later = |a: Option<Timestamp>, b: Option<Timestamp>| a.zip(b).map(|(a, b)| a.max(b));
        match other.value.cmp(&self.value) {
            std::cmp::Ordering::Greater => *self = other,
            std::cmp::Ordering::Equal if later(self.until, other.until) != self.until => *self = other,
            std::cmp::Ordering::Equal | std::cmp::Ordering::Less => {}
        }
    }
}

impl State {
    /// Every feature of the catalog, as this account has it.
    pub fn features(&self, catalog: &Catalog, now: Timestamp) -> BTreeMap<String, Feature> {
        let now = self.time(now);
        let mut all = BTreeMap::new();
        for (name, kind) in &catalog.features {
            let value =
                catalog.default_features.get(name).copied().unwrap_or_else(|| FeatureValue::none(*kind));
            all.insert(name.clone(), Feature { value, because: "default".to_owned(), until: None });
        }
        if all.is_empty() {
            return all;
        }
        let mut add = |features: &Features, because: &str, until, times: &dyn Fn(&str) -> u64| {
            for (name, value) in features {
                let value = value.times(times(name));
                if let Some(known) = all.get_mut(name) {
                    known.join(Feature { value, because: because.to_owned(), until });
                }
            }
        };
        for given in self.given(catalog, now) {
            if given.until.is_some_and(|until| until <= now) {
                continue;
            }
            if let Some(plan) = catalog.plan(&given.plan) {
                let seats = self.seats(&given);
                let times = |name: &str| if plan.per_seat.iter().any(|one| one == name) { seats } else { 1 };
                add(&plan.features, &format!("plan {}", plan.name), given.until, &times);
            } else if let Some(product) = catalog.product(&given.plan)
                && !self.is_reversed(&given, catalog)
            {
                add(&product.features, &format!("product {}", product.name), given.until, &|_| 1);
            }
        }
        for bought in self.products.iter().filter(|one| one.subscription.is_none()) {
            if self.product_status(bought) == ProductStatus::Active
                && let Some(product) = catalog.product(bought.present_name(catalog))
            {
                add(&product.features, &format!("product {}", product.name), None, &|_| 1);
            }
        }
        all
    }

    /// Whether a spend or hold of this many credits would succeed, and what is available.
    pub fn allows_credits(&self, amount: Credits, catalog: &Catalog, now: Timestamp) -> (bool, Credits) {
        let available = self.available(&catalog.policy, now);
        (available >= amount, available)
    }

    /// Whether the newest payment of a subscription's product was refunded or disputed.
    fn is_reversed(&self, given: &PlanAccess, catalog: &Catalog) -> bool {
        let subscription = given.by.as_ref().map(|(subscription, _)| subscription);
        self.products.iter().any(|one| {
            one.subscription.as_ref() == subscription
                && subscription.is_some()
                && one.present_name(catalog) == given.plan
                && self.product_status(one) != ProductStatus::Active
        })
    }

    /// How many seats a subscription's item has; while a payment is overdue, not more than were paid for.
    fn seats(&self, given: &PlanAccess) -> u64 {
        let Some((id, item)) = &given.by else { return 1 };
        let Some(subscription) = self.subscriptions.get(id) else { return 1 };
        let paid = subscription.items.get(item).and_then(super::item::Item::paid_quantity);
        let Some(snapshot) = &subscription.snapshot else { return paid.unwrap_or(1) };
        let overdue = !matches!(snapshot.status, SubscriptionStatus::Active | SubscriptionStatus::Trialing);
        match (snapshot.item(item).map(|item| item.quantity), paid) {
            (Some(shown), Some(paid)) if overdue => shown.min(paid),
            (shown, paid) => shown.or(paid).unwrap_or(1),
        }
    }
}

#[cfg(test)]
mod tests;
