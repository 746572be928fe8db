//! What a life is worth, computed slowly and in order, from what happened instead of from events.

use std::collections::{BTreeMap, BTreeSet};

use local::life::Truth;
use tallyhook_core::account::subscription::digest;

#[derive(Default)]
pub struct Model {
    keep_addons: bool,
    /// Every document that is recorded.
    pub keys: BTreeSet<String>,
    signup: u64,
    subscribed: bool,
    subscriptions: BTreeMap<String, Sold>,
    lots: Vec<Lot>,
    paid: BTreeMap<String, (u64, i64)>,
}

#[derive(Default)]
struct Sold {
    ended: Option<i64>,
    period: Option<Period>,
    /// Plan changes of a period that is not paid yet.
    early: Vec<(i64, String, u64, bool)>,
}

#[derive(Default)]
struct Period {
    key: String,
    start: i64,
    price: String,
    credits: u64,
    /// Plans in the order in which they were taken up, what they are worth, and what had been spent by then.
    taken: Vec<(String, u64, u64)>,
    spent: u64,
    reversed: u64,
}

struct Lot {
    key: String,
    at: i64,
    left: u64,
    taken: u64,
}

impl Model {
    pub fn new(keep_addons: bool) -> Self {
        Self { keep_addons, signup: 500, keys: BTreeSet::from(["signup".to_owned()]), ..Self::default() }
    }

    pub fn fold(&mut self, truth: &Truth) {
        match truth {
            Truth::Opened { subscription, key, start, price, credits, paid, change } => {
                self.keys.insert(key.clone());
                self.paid.insert(key.clone(), (*credits, *paid));
                (self.signup, self.subscribed) = (0, true);
                if !self.keep_addons && !change {
                    self.lots.retain(|lot| lot.at >= *start);
                }
                let sold = self.subscriptions.entry(subscription.clone()).or_default();
                let (key, price) = (key.clone(), price.clone());
                sold.period =
                    Some(Period { key, start: *start, price, credits: *credits, ..Period::default() });
                for (then, price, credits, counts) in std::mem::take(&mut sold.early) {
                    self.keys.insert(format!("plan#{subscription}#{price}#{then}"));
                    if then == *start && counts {
                        sold.take(&price, credits);
                    }
                }
            }
            Truth::Took { subscription, start, price, credits, counts } => {
                let sold = self.subscriptions.entry(subscription.clone()).or_default();
                let is_open = sold.period.as_ref().is_some_and(|period| period.start == *start);
                if is_open {
                    self.keys.insert(format!("plan#{subscription}#{price}#{start}"));
                }
                match (is_open, counts) {
                    (true, true) => sold.take(price, *credits),
                    (true, false) => {}
                    (false, _) => sold.early.push((*start, price.clone(), *credits, *counts)),
                }
            }
            Truth::InForce { subscription, price, credits, .. } => {
                let sold = self.subscriptions.entry(subscription.clone()).or_default();
                let current = sold.period.as_ref().map(Period::plan);
                if current != Some((price, *credits)) {
                    sold.take(price, *credits);
                }
            }
            Truth::Ended { subscription, at } => {
                self.subscriptions.entry(subscription.clone()).or_default().ended.get_or_insert(*at);
            }
            Truth::Bought { key, credits, at, paid } => {
                self.keys.insert(key.clone());
                self.paid.insert(key.clone(), (*credits, *paid));
                self.lots.push(Lot { key: key.clone(), at: *at, left: *credits, taken: 0 });
                // Nobody knows which of one second was first; the account has an order of its own.
                self.lots.sort_by_key(|lot| (lot.at, digest(&lot.key)));
            }
            Truth::Recorded { key } => {
                self.keys.insert(key.clone());
            }
            Truth::Reversed { key, amount } => self.reverse(key, *amount),
        }
        // Keys of changes that waited for a payment.
        for (id, sold) in &self.subscriptions {
            if let Some(period) = &sold.period {
                self.keys.extend(
                    period.taken.iter().map(|taken| format!("plan#{id}#{}#{}", taken.0, period.start)),
                );
            }
        }
    }

    fn reverse(&mut self, key: &str, amount: i64) {
        let Some((worth, paid)) = self.paid.get(key).copied() else { return };
        if paid == 0 {
            return;
        }
        let due = worth * u64::try_from(amount.min(paid)).unwrap() / u64::try_from(paid).unwrap();
        if let Some(period) = self
            .subscriptions
            .values_mut()
            .filter_map(|sold| sold.period.as_mut())
            .find(|period| period.key == *key)
        {
            period.reversed = due;
        }
        if let Some(lot) = self.lots.iter_mut().find(|lot| lot.key == *key) {
            let unspent = lot.left + lot.taken;
            lot.taken = due.min(unspent);
            lot.left = unspent - lot.taken;
        }
    }

    /// Spends what the account says was spent, from subscriptions, then signup, then the oldest add-ons.
    pub fn spend(&mut self, amount: u64) {
        let mut left = amount;
        let ids: Vec<String> = self.subscriptions.keys().cloned().collect();
        for id in ids {
            let part = self.bucket(&id).min(left);
            left -= part;
            if let Some(period) = self.subscriptions.get_mut(&id).and_then(|sold| sold.period.as_mut()) {
                period.spent += part;
            }
        }
        let part = self.signup.min(left);
        self.signup -= part;
        left -= part;
        for lot in &mut self.lots {
            let part = lot.left.min(left);
            lot.left -= part;
            left -= part;
        }
        assert_eq!(left, 0, "the model has less to spend");
    }

    fn bucket(&self, id: &str) -> u64 {
        let Some(Sold { ended, period: Some(period), .. }) = self.subscriptions.get(id) else { return 0 };
        let after = |end: i64| {
            let mut others = self.subscriptions.iter().filter(|(other, _)| *other != id);
            others.any(|(_, other)| other.period.as_ref().is_some_and(|period| period.start >= end))
        };
        if ended.is_some_and(after) { 0 } else { period.bucket() }
    }

    /// `signup`, each subscription that has any, `addon`.
    pub fn buckets(&self) -> BTreeMap<String, u64> {
        let subscriptions = self.subscriptions.keys().map(|id| (id.clone(), self.bucket(id)));
        let others = [
            ("signup".to_owned(), self.signup),
            ("addon".to_owned(), self.lots.iter().map(|lot| lot.left).sum()),
        ];
        subscriptions.chain(others).filter(|(_, credits)| *credits > 0).collect()
    }
}

impl Sold {
    fn take(&mut self, price: &str, credits: u64) {
        if let Some(period) = &mut self.period {
            period.taken.push((price.to_owned(), credits, period.spent));
        }
    }
}

impl Period {
    fn plan(&self) -> (&String, u64) {
        self.taken.last().map_or((&self.price, self.credits), |taken| (&taken.0, taken.1))
    }

    fn bucket(&self) -> u64 {
        let Some((price, credits, _)) = self.taken.last() else {
            return self.credits.saturating_sub(self.spent).saturating_sub(self.reversed);
        };
        if *price == self.price {
            return credits.saturating_sub(self.spent).saturating_sub(self.reversed);
        }
        let first = self.taken.iter().position(|taken| taken.0 == *price).unwrap();
        let was_left = self.taken[first..].iter().any(|taken| taken.0 != *price);
        let forgiven = if was_left { 0 } else { self.taken[first].2 };
        credits.saturating_sub(self.spent - forgiven)
    }
}
