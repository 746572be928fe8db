//! The states of a subscription that its events show, and which of them is the newest.
//!
//! Events have times in whole seconds, and subscriptions have no version, so two states may have the same
//! second. All of them are kept. Their `previous_attributes` form a chain that shows which one is the newest.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::catalog::{Catalog, Offer, Per, Plan, Product, Refill, Rollover};
use crate::credits::Credits;
use crate::event::SubscriptionStatus;
use crate::ids::{ItemId, PriceId};
use crate::timestamp::Timestamp;

/// The maximum number of snapshots of the same second that are kept.
const MAX_RIVALS: usize = 8;

/// What a plan is worth, by the catalog at the time when its document was first applied. Later changes of the
/// catalog do not change the past.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Terms {
    /// The plan's name in the catalog.
    pub plan: String,
    /// Credits of a paid period, per subscription or per seat.
    pub credits: u64,
    /// Credits of a trial; absent when equal to `credits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<u64>,
    /// Whether `credits` and `trial` count for each seat.
    #[serde(default, skip_serializing_if = "is_false")]
    pub seats: bool,
    /// Whether it is a product: it gives no tier, and its payment ends neither add-ons nor signup credits.
    #[serde(default, skip_serializing_if = "is_false")]
    pub product: bool,
    /// Whether the credits are granted every month of the paid period.
    #[serde(default, skip_serializing_if = "is_false")]
    pub monthly: bool,
    /// What the next period takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollover: Option<Rollover>,
}

impl Terms {
    /// The terms of a plan today.
    pub fn of(plan: &Plan) -> Self {
        Self {
            plan: plan.name.clone(),
            credits: plan.credits,
            trial: (plan.trial_credits != plan.credits).then_some(plan.trial_credits),
            seats: plan.per == Per::Seat,
            product: false,
            monthly: plan.refill == Refill::Month,
            rollover: plan.rollover,
        }
    }

    /// The terms of a product today, as a subscription sells it.
    pub fn of_product(product: &Product) -> Self {
        Self {
            plan: product.name.clone(),
            credits: product.credits,
            trial: None,
            seats: false,
            product: true,
            monthly: false,
            rollover: None,
        }
    }

    /// The terms of the plan or product with this name today.
    pub fn named(name: &str, catalog: &Catalog) -> Option<Self> {
        let plan = catalog.plan(name).map(Self::of);
        plan.or_else(|| catalog.product(name).map(Self::of_product))
    }

    /// The terms with the present name of the plan. If the catalog does not have the stored name any more, it
    /// is the name of what the catalog sells for the price.
    pub(super) fn with_name_of(mut self, price: &PriceId, catalog: &Catalog) -> Self {
        if catalog.plan(&self.plan).is_some() || catalog.product(&self.plan).is_some() {
            let name = catalog.present_name(&self.plan);
            if name != self.plan {
                self.plan = name.to_owned();
            }
            return self;
        }
        match catalog.offer(price.as_str(), None, None) {
            Ok(Some(Offer::Plan(plan))) => self.plan = plan.name.clone(),
            Ok(Some(Offer::Product(product))) => self.plan = product.name.clone(),
            Ok(Some(Offer::Pack(_)) | None) | Err(_) => {}
        }
        self
    }

    /// Stands for the terms of a price that is not known yet.
    pub fn unknown() -> Self {
        Self {
            plan: String::new(),
            credits: 0,
            trial: None,
            seats: false,
            product: false,
            monthly: false,
            rollover: None,
        }
    }

    /// Whether they stand for the terms of a price that is not known yet.
    pub fn is_unknown(&self) -> bool {
        self.plan.is_empty()
    }

    /// Whether a paid period ends add-ons that were bought before it.
    pub(super) fn resets(&self) -> bool {
        !self.seats && !self.product
    }

    /// Credits of a paid period with this quantity.
    pub fn worth(&self, quantity: u64) -> Credits {
        self.times(self.credits, quantity)
    }

    /// Credits of a trial with this quantity.
    pub fn trial_worth(&self, quantity: u64) -> Credits {
        self.times(self.trial.unwrap_or(self.credits), quantity)
    }

    fn times(&self, credits: u64, quantity: u64) -> Credits {
        let units = if self.seats { quantity } else { 1 };
        Credits::new(credits).times(units).unwrap_or(Credits::MAX_GRANT)
    }
}

/// One item of a subscription in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotItem {
    /// `si_…`
    pub id: ItemId,
    /// Its price.
    pub price: PriceId,
    /// How many; left out when 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub quantity: u64,
    /// Start of its current period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// End of its current period, excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// What its plan is worth; absent for a price that the catalog does not name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
    /// The price's own amount is 0.
    #[serde(default, skip_serializing_if = "is_false")]
    pub free: bool,
    /// The catalog found the price by its lookup key or its Stripe product, not by its id.
    #[serde(default, skip_serializing_if = "is_false")]
    pub learnt: bool,
}

/// The state of a subscription as one event shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The event's `created`.
    pub created: Timestamp,
    /// Stripe's status.
    pub status: SubscriptionStatus,
    /// All its items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<SnapshotItem>,
    /// The planned end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_at: Option<Timestamp>,
    /// Whether each item will end with its period.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel_at_period_end: bool,
    /// When it ended; only with a terminal status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// It ended because all retries of a payment failed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ended_unpaid: bool,
    /// Days that the customer has to pay an invoice, with `collection_method: send_invoice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days_until_due: Option<i64>,
    /// `pause_collection` is set.
    #[serde(default, skip_serializing_if = "is_false")]
    pub collection_paused: bool,
    /// Digest of what the event shows.
    pub digest: u32,
    /// Digest of the state before it (`previous_attributes`), if it names anything that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u32>,
}

pub(super) fn one() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_one(quantity: &u64) -> bool {
    *quantity == 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_false(flag: &bool) -> bool {
    !*flag
}

/// The short digest that matches a snapshot with the `previous_attributes` of its successor.
pub fn digest(text: &str) -> u32 {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(4).fold(0, |digest, &byte| (digest << 8) | u32::from(byte))
}

/// `canceled` and `incomplete_expired` are final.
pub fn is_terminal(status: &SubscriptionStatus) -> bool {
    matches!(status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
}

impl Snapshot {
    /// Whether the status is final.
    pub fn is_terminal(&self) -> bool {
        is_terminal(&self.status)
    }

    /// The item with this id.
    pub fn item(&self, id: &ItemId) -> Option<&SnapshotItem> {
        self.items.iter().find(|item| item.id == *id)
    }

    /// The planned end of an item.
    pub fn ends(&self, item: &SnapshotItem) -> Option<Timestamp> {
        self.cancel_at.or_else(|| item.end.filter(|_| self.cancel_at_period_end))
    }

    /// Whether both show the same state. The terms that the catalog gave their prices do not matter.
    fn shows_the_same(&self, other: &Self) -> bool {
        let bare = |snapshot: &Self| {
            let mut bare = snapshot.clone();
            for item in &mut bare.items {
                (item.terms, item.learnt) = (None, false);
            }
            bare
        };
        bare(self) == bare(other)
    }

    /// Takes over the terms of prices that the catalog did not name before.
    fn complete(&mut self, other: Self) {
        for (item, other) in self.items.iter_mut().zip(other.items) {
            if item.terms.is_none() {
                (item.terms, item.learnt) = (other.terms, other.learnt);
            }
        }
    }

    /// Which of two snapshots of different seconds is newer: the one with a final status, else the later one.
    fn age(&self, other: &Self) -> Ordering {
        (self.is_terminal(), self.created).cmp(&(other.is_terminal(), other.created))
    }

    /// Ranks snapshots of the same second that `previous_attributes` do not order.
    fn tie_rank(&self) -> impl Ord + '_ {
        let start = self.items.iter().filter_map(|item| item.start).max();
        let end = self.items.iter().filter_map(|item| item.end).max();
        let price = self.items.iter().map(|item| &item.price).max();
        let quantity = self.items.iter().map(|item| item.quantity).max().unwrap_or(0);
        (start, lifecycle_rank(&self.status), price, quantity, end, self.cancel_at, self.digest)
    }
}

fn lifecycle_rank(status: &SubscriptionStatus) -> u8 {
    match status {
        SubscriptionStatus::Incomplete => 0,
        SubscriptionStatus::Trialing => 1,
        SubscriptionStatus::Active => 2,
        SubscriptionStatus::Other(_) => 3,
        SubscriptionStatus::PastDue => 4,
        SubscriptionStatus::Unpaid => 5,
        SubscriptionStatus::Paused => 6,
        SubscriptionStatus::IncompleteExpired => 7,
        SubscriptionStatus::Canceled => 8,
    }
}

/// Joins a snapshot with the newest known one and the others of the same second.
pub(super) fn join(newest: &mut Option<Snapshot>, rivals: &mut Vec<Snapshot>, snapshot: Snapshot) {
    let Some(current) = newest else {
        *newest = Some(snapshot);
        return;
    };
    match snapshot.age(current) {
        Ordering::Less => {}
        Ordering::Greater => {
            *current = snapshot;
            rivals.clear();
        }
        Ordering::Equal => {
            let mut all = std::iter::once(&mut *current).chain(rivals.iter_mut());
            if let Some(known) = all.find(|known| known.shows_the_same(&snapshot)) {
                known.complete(snapshot);
                return;
            }
            if rivals.len() + 1 >= MAX_RIVALS {
                return;
            }
            rivals.push(snapshot);
            rivals.push(current.clone());
            rivals.sort_by_key(|rival| (rival.digest, rival.before));
            let last = last_of_a_second(rivals);
            *current = rivals.remove(last);
        }
    }
}

/// The newest of several snapshots of one second: the one that no other names as its predecessor. If there
/// are several such snapshots, the content decides.
fn last_of_a_second(rivals: &[Snapshot]) -> usize {
    let precedes = |candidate: &Snapshot| {
        rivals.iter().any(|other| other.digest != candidate.digest && other.before == Some(candidate.digest))
    };
    let mut last = 0;
    for (place, candidate) in rivals.iter().enumerate() {
        let best = &rivals[last];
        if (!precedes(candidate), candidate.tie_rank()) > (!precedes(best), best.tie_rank()) {
            last = place;
        }
    }
    last
}
