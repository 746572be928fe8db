//! The system without its store: an account, its ledger and what waits, in memory.

use std::collections::{BTreeMap, BTreeSet};

use local::life::Standing;
use tallyhook_core::account::{Account, Cause, Change, Fact};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::{Outcome, Parked, PaymentRef, decide, ledger_keys, payment_refs};
use tallyhook_core::event::Event;
use tallyhook_core::ids::{CustomerId, EventId, UserId};
use tallyhook_core::ledger::{Entry, EntryKind, LedgerKey};
use tallyhook_core::reversal::Reversal;
use tallyhook_core::timestamp::Timestamp;

pub struct World<'a> {
    catalog: &'a Catalog,
    events: &'a [Event],
    worths: Option<&'a BTreeMap<String, u64>>,
    account: Account,
    ledger: BTreeMap<LedgerKey, Entry>,
    payments: BTreeMap<PaymentRef, LedgerKey>,
    reversals: BTreeMap<LedgerKey, Reversal>,
    links: BTreeSet<CustomerId>,
    owner: Option<UserId>,
    applied: BTreeSet<usize>,
    parked: BTreeMap<usize, Parked>,
    orders: BTreeSet<String>,
    /// Sum of all deltas.
    deltas: i64,
    spent: u64,
    spends: u64,
    /// Credits that all recorded grants are worth.
    granted: u64,
    late_addons: u64,
    now: Timestamp,
}

/// What can be seen of an account, and must not depend on the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    balance: u64,
    buckets: BTreeMap<String, u64>,
    pub addon: u64,
    subscriptions: BTreeMap<String, String>,
    access: Vec<String>,
    keys: BTreeSet<String>,
    parked: BTreeSet<EventId>,
    customers: BTreeMap<CustomerId, Option<Timestamp>>,
    first_paid_at: Option<Timestamp>,
    payment_failed_at: Option<Timestamp>,
    orders: BTreeSet<String>,
    /// Credits of add-ons that came after the reset that ended them.
    pub late_addons: u64,
}

impl Seen {
    /// The same without what late add-ons may change.
    pub fn without_addons(&self) -> Self {
        let mut seen = self.clone();
        seen.balance -= seen.addon;
        seen.buckets.remove("addon");
        Self { addon: 0, late_addons: 0, ..seen }
    }
}

impl<'a> World<'a> {
    pub fn new(catalog: &'a Catalog, events: &'a [Event], worths: Option<&'a BTreeMap<String, u64>>) -> Self {
        let owner = events.iter().find_map(|event| event.user_hint().unwrap());
        let now = events.iter().map(|event| event.created).max().unwrap_or_default().plus_days(1);
        Self {
            catalog,
            events,
            worths,
            account: Account::new(owner.clone().unwrap_or_else(|| UserId::new("nobody").unwrap())),
            ledger: BTreeMap::new(),
            payments: BTreeMap::new(),
            reversals: BTreeMap::new(),
            links: BTreeSet::new(),
            owner,
            applied: BTreeSet::new(),
            parked: BTreeMap::new(),
            orders: BTreeSet::new(),
            deltas: 0,
            spent: 0,
            spends: 0,
            granted: 0,
            late_addons: 0,
            now,
        }
    }

    /// Delivers an event, then whatever waits for as long as something comes of it.
    pub fn deliver(&mut self, index: usize) -> Result<(), String> {
        if !self.process(index)? {
            return Ok(());
        }
        loop {
            let waiting: Vec<usize> = self.parked.keys().copied().collect();
            let mut moved = false;
            for index in waiting {
                moved |= self.process(index)?;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// Whether the event was applied.
    fn process(&mut self, index: usize) -> Result<bool, String> {
        let event = &self.events[index];
        let payment = payment_refs(event).iter().find_map(|payment| self.payments.get(payment)).cloned();
        let bound = event.customer().is_some_and(|customer| self.links.contains(customer));
        let named = event.user_hint().map_err(|error| error.to_string())?;
        if named.is_some() && named != self.owner {
            return Err(format!("foreign: {} names {named:?}", event.id));
        }
        if payment.is_none() && !bound && named.is_none() {
            let parked = if event.customer().is_some() {
                Parked::NoUser(event.customer().cloned())
            } else {
                Parked::NoGrant(String::new())
            };
            self.parked.insert(index, parked);
            return Ok(false);
        }
        let mut keys: Vec<LedgerKey> = ledger_keys(event).into_iter().chain(payment.clone()).collect();
        let mut outcome = self.decide(event, &keys, payment.as_ref());
        if let Outcome::Apply(applied) = &outcome {
            // An entry that was not asked for is there: the store refuses, and the event is decided again
            // with it.
            let there: Vec<LedgerKey> = applied
                .change
                .entries
                .iter()
                .map(|entry| entry.key.clone())
                .filter(|key| self.ledger.contains_key(key))
                .collect();
            if !there.is_empty() {
                keys.extend(there);
                outcome = self.decide(event, &keys, payment.as_ref());
            }
        }
        match outcome {
            Outcome::Ignore(_) => Ok(false),
            Outcome::Park(parked) => {
                if !matches!(parked, Parked::NoGrant(_)) {
                    return Err(format!("parked: {parked}\n at {}", event.id));
                }
                if self.applied.contains(&index) {
                    return Err(format!("parked after it was applied: {parked}\n at {}", event.id));
                }
                self.parked.insert(index, parked);
                Ok(false)
            }
            Outcome::Apply(applied) => {
                let again = !self.applied.insert(index);
                self.parked.remove(&index);
                if again
                    && (!applied.change.entries.is_empty()
                        || applied.change.state.balance() != self.account.state.balance())
                {
                    return Err(format!(
                        "not idempotent: {} moves something when it comes again\n {:?}",
                        event.id, applied.change.entries
                    ));
                }
                if applied.change.entries.iter().any(|entry| entry.cause != event.id.as_str()) {
                    return Err(format!("cause: an entry of {} names another cause", event.id));
                }
                if applied.links.iter().any(|link| event.customer() != Some(link)) {
                    return Err(format!("owner: {} binds a customer that it does not name", event.id));
                }
                if let Some(order) = &applied.order
                    && !self.orders.insert(order.session.to_string())
                {
                    return Err(format!("order: {} makes an order again", event.id));
                }
                self.links.extend(applied.links);
                self.payments.extend(applied.payments);
                for (grant, reversal) in &applied.change.reversals {
                    let worth = self.ledger.get(grant).map_or(0, |entry| entry.worth.get());
                    if reversal.due.get() > worth || reversal.taken.get() > worth {
                        return Err(format!("reversal: {grant} is worth {worth}, {reversal:?}"));
                    }
                }
                self.commit(applied.change)?;
                Ok(!again)
            }
        }
    }

    fn decide(&mut self, event: &Event, keys: &[LedgerKey], payment: Option<&LedgerKey>) -> Outcome {
        self.account.recorded =
            keys.iter().filter_map(|key| Some((key.clone(), self.ledger.get(key)?.clone()))).collect();
        self.account.reversals =
            keys.iter().filter_map(|key| Some((key.clone(), self.reversals.get(key)?.clone()))).collect();
        decide(&self.account, event, payment, self.catalog, self.now)
    }

    pub fn sign_up(&mut self) -> Result<(), String> {
        let key = LedgerKey::signup();
        self.account.recorded =
            self.ledger.get(&key).map(|entry| (key.clone(), entry.clone())).into_iter().collect();
        let cause = Cause { by: "app".to_owned(), adjust_key: key, created: self.now };
        let change = self
            .account
            .evolve(vec![Fact::Signup], &cause, self.catalog, self.now)
            .map_err(|conflict| conflict.to_string())?;
        self.commit(change)
    }

    pub fn spend(&mut self, part: u64) -> Result<(), String> {
        self.spend_some(part).map(|_| ())
    }

    /// Spends a part of the balance, in hundredths; returns how much that was.
    pub fn spend_some(&mut self, part: u64) -> Result<u64, String> {
        let amount = self.account.state.balance().get() * part / 100;
        let too_much = Credits::new(self.account.state.balance().get() + 1);
        if self.account.consume(too_much, LedgerKey::consume("too_much"), self.now).is_some() {
            return Err("spend: more than the balance was spent".to_owned());
        }
        if amount > 0 {
            self.spends += 1;
            let key = LedgerKey::consume(&self.spends.to_string());
            let change = self
                .account
                .consume(Credits::new(amount), key, self.now)
                .ok_or("spend: the balance cannot be spent")?;
            self.spent += amount;
            self.commit(change)?;
        }
        Ok(amount)
    }

    /// Writes a change as the store would, and checks what must hold after every commit.
    fn commit(&mut self, change: Change) -> Result<(), String> {
        self.account.version += 1;
        let before = std::mem::replace(&mut self.account.state, change.state);
        let last = change.entries.last().map(|entry| entry.balance);
        for entry in change.entries {
            self.deltas += entry.delta;
            if entry.kind == EntryKind::AddOn && entry.filed_at > Some(entry.created) {
                self.late_addons += entry.worth.get();
            }
            if let Some(worths) = self.worths
                && is_grant(&entry)
            {
                let Some(worth) = worths.get(entry.key.as_str()) else {
                    return Err(format!("conservation: nobody paid for {}", entry.key));
                };
                if entry.worth.get() > *worth {
                    return Err(format!("conservation: {} is worth {worth}, not {}", entry.key, entry.worth));
                }
                self.granted += worth;
            }
            if let Some(known) = self.ledger.insert(entry.key.clone(), entry) {
                return Err(format!("once: {} is written twice\n {known:?}", known.key));
            }
        }
        self.reversals.extend(change.reversals);
        let state = &self.account.state;
        let balance = state.balance();
        if i64::try_from(balance.get()) != Ok(self.deltas) {
            return Err(format!("balance: {balance}, but the entries add up to {}", self.deltas));
        }
        if last.is_some_and(|last| last != balance) {
            return Err(format!("balance: {balance}, but the last entry says {last:?}"));
        }
        if self.worths.is_some() && balance.get() + self.spent > self.granted {
            return Err(format!(
                "conservation: {balance} left and {} spent of {} granted",
                self.spent, self.granted
            ));
        }
        for (id, was) in &before.subscriptions {
            let Some(is) = state.subscriptions.get(id) else { return Err(format!("forgotten: {id}")) };
            if was.ended_at().is_some() && (is.ended_at() != was.ended_at() || is.status() != was.status()) {
                return Err(format!("terminal: {id} left {:?} for {:?}", was.status(), is.status()));
            }
            let version = |of: &tallyhook_core::account::subscription::Subscription| {
                of.snapshot
                    .as_ref()
                    .map(|snapshot| (snapshot.is_terminal(), snapshot.start, snapshot.created))
            };
            if version(is) < version(was)
                || is.period.as_ref().map(|period| period.start)
                    < was.period.as_ref().map(|period| period.start)
            {
                return Err(format!("version: {id} went back from {:?} to {:?}", version(was), version(is)));
            }
        }
        Ok(())
    }

    pub fn seen(&self) -> Seen {
        let state = &self.account.state;
        let told = |subscription: &tallyhook_core::account::subscription::Subscription| {
            let ends = subscription.snapshot.as_ref().and_then(|snapshot| snapshot.cancel_at);
            let status = subscription.status().map_or_else(String::new, |status| status.to_string());
            format!(
                "{status} {:?} {:?} ends {ends:?}, ended {:?}",
                subscription.price(),
                subscription.current_period(),
                subscription.ended_at()
            )
        };
        let later = |days: i64| format!("{:?}", state.access(self.catalog, self.now.plus_days(days)));
        Seen {
            balance: state.balance().get(),
            buckets: self.buckets(),
            addon: state.addon().get(),
            subscriptions: state
                .subscriptions
                .iter()
                .map(|(id, subscription)| (id.to_string(), told(subscription)))
                .collect(),
            access: [-2, 0, 5, 8, 40].map(later).to_vec(),
            keys: self.grant_keys(),
            parked: self.parked.keys().map(|&index| self.events[index].id.clone()).collect(),
            customers: state.customers.clone(),
            first_paid_at: state.first_paid_at,
            payment_failed_at: state.payment_failed_at,
            orders: self.orders.clone(),
            late_addons: self.late_addons,
        }
    }

    /// `signup`, each subscription that has any, `addon`.
    pub fn buckets(&self) -> BTreeMap<String, u64> {
        let state = &self.account.state;
        let subscriptions = state.subscriptions.keys().map(|id| (id.to_string(), state.bucket(id).get()));
        let others = [
            ("signup".to_owned(), state.signup.unwrap_or_default().get()),
            ("addon".to_owned(), state.addon().get()),
        ];
        subscriptions.chain(others).filter(|(_, credits)| *credits > 0).collect()
    }

    /// The keys of all documents that grant or record; movements, spends and money that went back are left
    /// out.
    pub fn grant_keys(&self) -> BTreeSet<String> {
        let document =
            |entry: &&Entry| is_grant(entry) || matches!(entry.kind, EntryKind::Order | EntryKind::NoGrant);
        self.ledger.values().filter(document).map(|entry| entry.key.to_string()).collect()
    }

    pub fn is_waiting_for_a_user(&self) -> bool {
        self.parked.values().any(|parked| matches!(parked, Parked::NoUser(_)))
    }

    /// Compares a subscription with what Stripe has.
    pub fn agrees_with(&self, standing: &Standing) -> Result<(), String> {
        let found =
            self.account.state.subscriptions.iter().find(|(id, _)| id.as_str() == standing.subscription);
        let Some((_, subscription)) = found else { return Err(format!("unknown: {standing:?}")) };
        let status = subscription.status().map(|status| status.to_string());
        let price = subscription.price().map(|price| price.as_str());
        let ends =
            subscription.snapshot.as_ref().and_then(|snapshot| snapshot.cancel_at).map(Timestamp::unix);
        let start = subscription.current_period().0.map(Timestamp::unix);
        if (status.as_deref(), price, ends, start)
            != (Some(standing.status), Some(standing.price.as_str()), standing.ends, Some(standing.start))
        {
            return Err(format!(
                "Stripe has {standing:?}, the account {status:?} {price:?} {start:?} ends {ends:?}"
            ));
        }
        Ok(())
    }
}

fn is_grant(entry: &Entry) -> bool {
    match entry.kind {
        EntryKind::Signup
        | EntryKind::Subscription
        | EntryKind::Trial
        | EntryKind::Renewal
        | EntryKind::PlanChange
        | EntryKind::AddOn => true,
        EntryKind::Order
        | EntryKind::Refund
        | EntryKind::Dispute
        | EntryKind::Spend
        | EntryKind::Fix
        | EntryKind::Adjust
        | EntryKind::NoGrant => false,
    }
}
