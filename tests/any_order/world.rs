//! The system without its store: an account, its ledger and its waiting events, in memory.

use std::collections::{BTreeMap, BTreeSet};

use reference::{Action, Step};
use serde_json::Value;
use tallyhook_core::account::snapshot::Terms;
use tallyhook_core::account::{Account, Cause, Change, Fact, Lot};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::catalog::PlanChange;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::owner::{Links, StoredOwner, owner};
use tallyhook_core::decide::{
    Outcome, Parked, Payments, decide, invoice_of_purchase, invoice_of_reversal, is_reversal, joined_payment,
    ledger_keys, payment_refs,
};
use tallyhook_core::event::{Event, Object, SubscriptionStatus};
use tallyhook_core::ids::{CustomerId, EventId, PriceId, SubscriptionId, UserId};
use tallyhook_core::ledger::{Entry, EntryKind, LedgerKey};
use tallyhook_core::reversal::PaymentRecord;
use tallyhook_core::timestamp::Timestamp;

pub struct World<'a> {
    catalog: &'a Catalog,
    events: &'a [Event],
    account: Account,
    ledger: BTreeMap<LedgerKey, Entry>,
    payments: Payments,
    customers: BTreeSet<CustomerId>,
    subscriptions: BTreeSet<SubscriptionId>,
    owner: Option<UserId>,
    applied: BTreeSet<usize>,
    parked: BTreeMap<usize, Parked>,
    orders: BTreeSet<String>,
    /// What step, as the judge reads it; an event by its number.
    history: Vec<WorldStep>,
    /// Sum of all deltas.
    deltas: i64,
    spends: u64,
    late_addons: u64,
    /// The largest worth of a paid or free line and of a trial, by subscription.
    most: BTreeMap<SubscriptionId, Credits>,
    now: Timestamp,
}

#[derive(Clone, Copy)]
enum WorldStep {
    Event(usize),
    Signup,
    Spend(u64),
}

/// The visible parts of an account, which must not depend on the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisibleAccount {
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

impl VisibleAccount {
    /// The same without the parts that late add-ons may change.
    pub fn without_addons(&self) -> Self {
        let mut seen = self.clone();
        seen.balance -= seen.addon;
        seen.buckets.remove("addon");
        Self { addon: 0, late_addons: 0, ..seen }
    }

    /// Whether two orders end alike. An add-on may seem late until it is known that the period which ended it
    /// never begins.
    pub fn is_like(&self, other: &Self) -> bool {
        *self == Self { late_addons: self.late_addons, ..other.clone() }
    }
}

impl<'a> World<'a> {
    pub fn new(catalog: &'a Catalog, events: &'a [Event]) -> Self {
        let named = |event: &Event| event.named_user().unwrap().or(event.referenced_user().unwrap());
        let owner = events.iter().find_map(named);
        let now = events.iter().map(|event| event.created).max().unwrap_or_default().plus_days(1);
        Self {
            catalog,
            events,
            account: Account::new(owner.clone().unwrap_or_else(|| UserId::new("no-user").unwrap())),
            ledger: BTreeMap::new(),
            payments: BTreeMap::new(),
            customers: BTreeSet::new(),
            subscriptions: BTreeSet::new(),
            owner,
            applied: BTreeSet::new(),
            parked: BTreeMap::new(),
            orders: BTreeSet::new(),
            history: Vec::new(),
            deltas: 0,
            spends: 0,
            late_addons: 0,
            most: BTreeMap::new(),
            now,
        }
    }

    /// Delivers an event, then the waiting events again and again, until a round applies none of them.
    pub fn deliver(&mut self, index: usize) -> Result<(), String> {
        self.history.push(WorldStep::Event(index));
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

    /// Whether the event was applied or tied a payment for the first time.
    fn process(&mut self, index: usize) -> Result<bool, String> {
        let event = &self.events[index];
        match self.outcome(event)? {
            Outcome::Ignore(_) => Ok(false),
            Outcome::Tie => {
                let Object::InvoicePayment(it) = &event.object else {
                    return Err(format!("tie: {} is no payment of an invoice", event.id));
                };
                let document = LedgerKey::invoice(&it.invoice);
                let mut is_new = false;
                for payment in payment_refs(event) {
                    let record = self.payments.entry(payment.as_str().to_owned()).or_default();
                    is_new |= record.document.is_none();
                    record.document.get_or_insert_with(|| document.clone());
                }
                Ok(is_new)
            }
            Outcome::Park(parked) => {
                if !matches!(parked, Parked::NoGrant(_) | Parked::NoUser(_)) {
                    return Err(format!("parked: {parked}\n at {}", event.id));
                }
                if self.applied.contains(&index) {
                    return Err(format!("parked after it was applied: {parked}\n at {}", event.id));
                }
                if let Some((payment, record)) = joined_payment(event, &self.payments_of(event)) {
                    self.payments.insert(payment, record);
                }
                self.parked.insert(index, parked);
                Ok(false)
            }
            Outcome::Apply(applied) => {
                let again = !self.applied.insert(index);
                self.parked.remove(&index);
                let before = self.account.state.balance(&self.catalog.policy, self.now);
                let after = applied.change.state.balance(&self.catalog.policy, self.now);
                if again && (!applied.change.entries.is_empty() || before != after) {
                    return Err(format!(
                        "not idempotent: {} moves something when it comes again\n {:?}",
                        event.id, applied.change.entries
                    ));
                }
                if applied.change.entries.iter().any(|entry| entry.cause != event.id.as_str()) {
                    return Err(format!("cause: an entry of {} names another cause", event.id));
                }
                if applied.links.iter().any(|link| event.customer() != Some(link)) {
                    return Err(format!("owner: {} links a customer that it does not name", event.id));
                }
                if let Some(order) = &applied.order
                    && !self.orders.insert(order.session.to_string())
                {
                    return Err(format!("order: {} makes an order again", event.id));
                }
                self.customers.extend(applied.links);
                self.subscriptions.extend(applied.subscriptions);
                self.payments.extend(applied.payments);
                self.note_worth(event);
                self.commit(applied.change)?;
                Ok(!again)
            }
        }
    }

    fn outcome(&mut self, event: &Event) -> Result<Outcome, String> {
        let payments = self.payments_of(event);
        if is_reversal(event) || matches!(event.object, Object::InvoicePayment(_)) {
            let of_ledger = |record: &PaymentRecord| {
                record.user.is_some()
                    || record.document.as_ref().is_some_and(|document| self.ledger.contains_key(document))
            };
            let knows_document = ledger_keys(event).iter().any(|key| self.ledger.contains_key(key));
            let is_owned = payments.values().any(of_ledger) || (!is_reversal(event) && knows_document);
            if !is_owned {
                let name = payment_refs(event).first().map_or("", |payment| payment.as_str()).to_owned();
                return Ok(if is_reversal(event) {
                    Outcome::Park(Parked::NoGrant(name))
                } else {
                    Outcome::Tie
                });
            }
        } else {
            let stored = |is_known: bool| {
                let user = self.owner.clone().filter(|_| is_known)?;
                Some(StoredOwner { user, moved: false, by_reference: false, shared: false })
            };
            let links = Links {
                subscription: stored(
                    event.subscription_id().is_some_and(|id| self.subscriptions.contains(id)),
                ),
                customer: stored(event.customer().is_some_and(|id| self.customers.contains(id))),
                referenced_account_exists: true,
            };
            match owner(event, &links, &self.catalog.policy) {
                Ok(found) if Some(&found.user) == self.owner.as_ref() => {}
                Ok(found) => return Err(format!("owner: {} belongs to {}", event.id, found.user)),
                Err(parked) => return Ok(Outcome::Park(parked)),
            }
        }
        let mut keys = ledger_keys(event);
        keys.extend(invoice_of_purchase(event).as_ref().map(LedgerKey::invoice));
        keys.extend(payments.values().filter_map(|record| record.document.clone()));
        let mut outcome = self.decide(event, &keys, &payments);
        if let Outcome::Apply(applied) = &outcome {
            // An entry exists that was not read: the store refuses the write, and the event is decided again
            // with it.
            let keys_of_change = applied.change.entries.iter().map(|entry| entry.key.clone());
            let existing: Vec<LedgerKey> =
                keys_of_change.filter(|key| self.ledger.contains_key(key)).collect();
            if !existing.is_empty() {
                keys.extend(existing);
                outcome = self.decide(event, &keys, &payments);
            }
        }
        Ok(outcome)
    }

    /// What is known of the payments that an event names, and of those of its invoice.
    fn payments_of(&self, event: &Event) -> Payments {
        let refs = payment_refs(event);
        let document = ledger_keys(event).into_iter().next();
        let is_of_event = |(payment, record): &(&String, &PaymentRecord)| {
            refs.iter().any(|named| named.as_str() == payment.as_str())
                || (document.is_some() && record.document == document)
        };
        let mut payments: Payments = self
            .payments
            .iter()
            .filter(is_of_event)
            .map(|(payment, record)| (payment.clone(), record.clone()))
            .collect();
        if let Some(invoice) = invoice_of_reversal(event)
            && self.ledger.contains_key(&invoice)
            && payments.values().all(|record| record.document.is_none())
            && let Some(payment) = refs.first()
        {
            payments.entry(payment.as_str().to_owned()).or_default().document = Some(invoice);
        }
        payments
    }

    fn decide(&mut self, event: &Event, keys: &[LedgerKey], payments: &Payments) -> Outcome {
        self.account.recorded =
            keys.iter().filter_map(|key| Some((key.clone(), self.ledger.get(key)?.clone()))).collect();
        decide(&self.account, event, payments, self.catalog, self.now)
    }

    pub fn sign_up(&mut self) -> Result<(), String> {
        self.history.push(WorldStep::Signup);
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

    /// Spends a part of the balance, in hundredths.
    pub fn spend(&mut self, part: u64) -> Result<(), String> {
        let balance = self.account.state.balance(&self.catalog.policy, self.now).get();
        let amount = balance * part / 100;
        let consume = |account: &Account, amount: u64, key: LedgerKey| {
            account.consume(Credits::new(amount), key, self.catalog, self.now)
        };
        if consume(&self.account, balance + 1, LedgerKey::consume("too_much")).is_some() {
            return Err("spend: more than the balance was spent".to_owned());
        }
        if amount > 0 {
            self.spends += 1;
            let key = LedgerKey::consume(&self.spends.to_string());
            let change = consume(&self.account, amount, key).ok_or("spend: the balance cannot be spent")?;
            self.history.push(WorldStep::Spend(amount));
            self.commit(change)?;
        }
        Ok(())
    }

    /// Writes a change as the store does, and checks the invariants of every commit.
    fn commit(&mut self, change: Change) -> Result<(), String> {
        self.account.version += 1;
        let before = std::mem::replace(&mut self.account.state, change.state);
        let last = change.entries.last().map(|entry| entry.balance);
        for entry in change.entries {
            self.deltas += entry.delta;
            if entry.kind == EntryKind::AddOn && entry.filed_at > Some(entry.created) {
                self.late_addons += entry.worth.get();
            }
            if let Some(known) = self.ledger.insert(entry.key.clone(), entry) {
                return Err(format!("once: {} is written twice\n {known:?}", known.key));
            }
        }
        let state = &self.account.state;
        let buckets = state.buckets(&self.catalog.policy, self.now);
        let balance = buckets.balance();
        if self.catalog.policy.plan_change == PlanChange::OnPayment {
            for one in &buckets.lots {
                let Lot::Item(subscription, item) = &one.lot else { continue };
                let most = self.most.get(subscription).copied().unwrap_or_default();
                if one.left > most {
                    return Err(format!(
                        "law of money of the account: {item} holds {}, no line is worth more than {most}",
                        one.left
                    ));
                }
            }
        }
        if i64::try_from(balance.get()) != Ok(self.deltas) {
            return Err(format!("balance: {balance}, but the entries add up to {}", self.deltas));
        }
        if last.is_some_and(|last| last != balance) {
            return Err(format!("balance: {balance}, but the last entry says {last:?}"));
        }
        for (id, was) in &before.subscriptions {
            let Some(is) = state.subscriptions.get(id) else { return Err(format!("forgotten: {id}")) };
            let version = |of: &tallyhook_core::account::subscription::Subscription| {
                of.snapshot.as_ref().map(|snapshot| (snapshot.is_terminal(), snapshot.created))
            };
            if version(is) < version(was) {
                return Err(format!("version: {id} went back from {:?} to {:?}", version(was), version(is)));
            }
        }
        Ok(())
    }

    /// Remembers what an event that was applied may grant at most under `on_payment`.
    fn note_worth(&mut self, event: &Event) {
        let worth = |price: &PriceId, quantity: u64, trial: bool| {
            let terms = Terms::of(self.catalog.plan_of_price(price.as_str())?);
            Some(if trial { terms.trial_worth(quantity) } else { terms.worth(quantity) })
        };
        let (subscription, worth) = if let Object::Invoice(invoice) = &event.object
            && invoice.paid
        {
            let lines = invoice.lines.iter().filter(|line| line.amount >= 0);
            let worth = lines.filter_map(|line| worth(&line.price.as_ref()?.id, line.quantity, false)).max();
            (invoice.subscription.clone(), worth)
        } else if let Object::Subscription(it) = &event.object
            && it.status == SubscriptionStatus::Trialing
        {
            let worth = it.items.iter().filter_map(|item| worth(&item.price.id, item.quantity, true)).max();
            (Some(it.id.clone()), worth)
        } else {
            return;
        };
        if let (Some(subscription), Some(worth)) = (subscription, worth) {
            let most = self.most.entry(subscription).or_default();
            *most = worth.max(*most);
        }
    }

    /// Under `on_payment` an item holds nothing once every payment of its subscription is refunded. Items are
    /// left out that had a period for nothing: by a coupon, by the customer's balance or in a trial.
    pub fn refunds_leave_nothing(&self, bodies: &[Value]) -> Result<(), String> {
        let mut back: BTreeMap<&str, BTreeMap<&str, i64>> = BTreeMap::new();
        let (mut payments, mut invoices) = (BTreeMap::new(), Vec::new());
        let delivered: BTreeSet<usize> = self
            .history
            .iter()
            .filter_map(|step| if let WorldStep::Event(index) = step { Some(*index) } else { None })
            .collect();
        for index in delivered {
            let object = &bodies[index]["data"]["object"];
            match object["object"].as_str() {
                Some("invoice_payment") => {
                    payments.insert(object["invoice"].as_str(), &object["payment"]["payment_intent"]);
                }
                Some("refund") if object["status"] == "succeeded" && self.applied.contains(&index) => {
                    let of_payment = back.entry(object["payment_intent"].as_str().unwrap_or_default());
                    let id = object["id"].as_str().unwrap_or_default();
                    of_payment.or_default().insert(id, object["amount"].as_i64().unwrap_or(0));
                }
                Some("invoice") if object["status"] == "paid" && self.applied.contains(&index) => {
                    invoices.push((index, object));
                }
                _ => {}
            }
        }
        // What an invoice credits was paid by an earlier one, which may be unknown: that of the newest period
        // before the credit, which must not be over. A period in advance may have the very start of the credit.
        let mut charged: Vec<(String, &str, i64, i64)> = Vec::new();
        for object in invoices.iter().map(|(_, object)| *object) {
            for line in lines_of(object).filter(|line| line_amount(line) > 0) {
                let made = object["created"].as_i64().unwrap_or(0);
                let start = line_time(line, "start");
                let is_ahead = made < start;
                charged.push((
                    line_item(line).to_owned(),
                    object["id"].as_str().unwrap_or_default(),
                    start - i64::from(is_ahead),
                    line_time(line, "end"),
                ));
            }
        }
        let was_charged = |by: &Value, line: &Value| {
            let at = line_time(line, "start");
            let earlier = charged.iter().filter(|(item, invoice, start, _)| {
                item == line_item(line) && by["id"] != *invoice && *start < at
            });
            earlier.max_by_key(|(_, _, start, end)| (start, end)).is_some_and(|(.., end)| at < *end)
        };
        let is_back = |object: &Value| {
            let shown = &object["payments"]["data"][0]["payment"]["payment_intent"];
            let tied = payments.get(&object["id"].as_str()).copied();
            let intent = [Some(&object["payment_intent"]), Some(shown), tied].into_iter().flatten();
            let intent = intent.filter_map(Value::as_str).next().unwrap_or_default();
            let total = object["total"].as_i64().unwrap_or(0);
            let lines = lines_of(object);
            lines.clone().all(|line| line["amount"] != 0)
                && !(total <= 0 && pays_another_period(object))
                && lines
                    .filter(|line| line["amount"].as_i64() < Some(0))
                    .all(|line| was_charged(object, line))
                && object["subtotal"] == total + lines_of(object).map(line_discount).sum::<i64>()
                && (total <= 0
                    || back.get(intent).is_some_and(|refunds| refunds.values().sum::<i64>() >= total))
        };
        let mut unpaid: BTreeSet<SubscriptionId> = BTreeSet::new();
        for (index, object) in invoices {
            if let (Some(subscription), false) = (self.events[index].subscription_id(), is_back(object)) {
                unpaid.insert(subscription.clone());
            }
        }
        for ((subscription, item), bucket) in self.account.state.buckets(&self.catalog.policy, self.now).items
        {
            if bucket.period.is_some() && !unpaid.contains(&subscription) && bucket.left > Credits::ZERO {
                return Err(format!(
                    "law of money of the account: {item} holds {} after every payment was refunded",
                    bucket.left
                ));
            }
        }
        Ok(())
    }

    pub fn visible_account(&self) -> VisibleAccount {
        let state = &self.account.state;
        let describe = |subscription: &tallyhook_core::account::subscription::Subscription| {
            let snapshot = subscription.snapshot.as_ref();
            let ended_at = state.ended_at(subscription);
            let Some(snapshot) = snapshot else { return format!("no snapshot, ended {ended_at:?}") };
            let items: Vec<_> = snapshot
                .items
                .iter()
                .map(|item| (&item.id, &item.price, item.quantity, item.start))
                .collect();
            let (status, ends) = (&snapshot.status, snapshot.cancel_at);
            format!("{status} {items:?} ends {ends:?}, ended {ended_at:?}")
        };
        let later = |days: i64| format!("{:?}", state.access(self.catalog, self.now.plus_days(days)));
        let buckets = self.buckets();
        VisibleAccount {
            balance: state.balance(&self.catalog.policy, self.now).get(),
            addon: buckets.get("addon").copied().unwrap_or_default(),
            buckets,
            subscriptions: state
                .subscriptions
                .iter()
                .map(|(id, subscription)| (id.to_string(), describe(subscription)))
                .collect(),
            access: [-2, 0, 5, 8, 40].map(later).to_vec(),
            keys: self.document_keys(),
            parked: self.parked.keys().map(|&index| self.events[index].id.clone()).collect(),
            customers: state.customers.clone(),
            first_paid_at: state.first_paid_at,
            payment_failed_at: state.payment_failed_at,
            orders: self.orders.clone(),
            late_addons: self.late_addons,
        }
    }

    /// `signup`, `addon`, `grant` and each item that holds any, by the names that the judge uses.
    fn buckets(&self) -> BTreeMap<String, u64> {
        let mut buckets = BTreeMap::new();
        for one in self.account.state.buckets(&self.catalog.policy, self.now).lots {
            let name = match one.lot {
                // Until a snapshot shows the item of a line, both name it by its plan.
                Lot::Item(subscription, item) => match item.as_str().strip_prefix("plan:") {
                    Some(plan) => format!("{subscription}/{plan}"),
                    None => item.to_string(),
                },
                Lot::Carry(_, item, _) => format!("{item} carried"),
                Lot::Signup => "signup".to_owned(),
                Lot::Pack(_) => "addon".to_owned(),
                Lot::Opening | Lot::Grant(_) => "grant".to_owned(),
                Lot::Lifetime(place) => format!("lifetime {place}"),
            };
            *buckets.entry(name).or_default() += one.left.get();
        }
        buckets.retain(|_, left| *left > 0);
        buckets
    }

    /// The keys of all documents that are recorded under their own name. Which key a line that counts later
    /// or a plan change is booked under depends on what arrived first.
    fn document_keys(&self) -> BTreeSet<String> {
        let is_document = |key: &&LedgerKey| {
            let name = key.as_str();
            name == "signup"
                || name.starts_with("session#")
                || name.matches('#').count() == 1 && name.starts_with("invoice#")
        };
        self.ledger.keys().filter(is_document).map(ToString::to_string).collect()
    }

    /// Compares tier, balance and buckets with the result of the judge for the same history. With `law`, the
    /// judge's world must keep the law of money.
    pub fn agrees_with_the_judge(&self, catalog: &str, bodies: &[Value], law: bool) -> Result<(), String> {
        let Some(owner) = &self.owner else { return Ok(()) };
        let at = self.now.unix();
        let user = owner.to_string();
        let step = |step: &WorldStep| {
            let action = match *step {
                WorldStep::Event(index) => Action::Send(bodies[index].clone()),
                WorldStep::Signup => Action::Put { user: user.clone() },
                WorldStep::Spend(amount) => {
                    Action::Spend { user: user.clone(), amount: i64::try_from(amount).unwrap() }
                }
            };
            Step { at, action }
        };
        let steps: Vec<Step> = self.history.iter().map(step).collect();
        let world = reference::judge(catalog, &steps, at);
        if law {
            reference::law_of_money(&world).map_err(|error| format!("law of money: {error}"))?;
        }
        let tier = self.account.state.access(self.catalog, self.now).tier.to_string();
        let balance =
            i64::try_from(self.account.state.balance(&self.catalog.policy, self.now).get()).unwrap();
        let buckets: BTreeMap<String, i64> =
            self.buckets().into_iter().map(|(name, left)| (name, i64::try_from(left).unwrap())).collect();
        let (mut expected_tier, mut credits, mut expected) =
            (self.catalog.policy.default_tier.to_string(), 0, BTreeMap::new());
        if let Some(judged) = world.users.get(&user) {
            (expected_tier, credits) = (judged.tier.clone(), judged.credits);
            expected.extend(
                judged
                    .buckets
                    .iter()
                    .filter(|(_, left)| **left > 0)
                    .map(|(name, left)| (name.clone(), *left)),
            );
        }
        let same_tier = tier == expected_tier;
        if !same_tier || (balance, &buckets) != (credits, &expected) {
            let differs: Vec<&String> = buckets
                .keys()
                .chain(expected.keys())
                .filter(|name| buckets.get(*name) != expected.get(*name))
                .collect();
            let what = if same_tier { "" } else { " the tier" };
            return Err(format!(
                "the judge disagrees about{what} {differs:?}\n account: {tier} {balance} {buckets:?}\n judge:   {expected_tier} {credits} {expected:?}"
            ));
        }
        Ok(())
    }
}

/// Whether an invoice that leaves nothing to pay credits an item that stays, and charges another one for a
/// period that lasts longer than the credit and is not renewed with it. Such a credit pays for nothing of the
/// other item (docs/faults.md).
fn pays_another_period(invoice: &Value) -> bool {
    let lines: Vec<&Value> = lines_of(invoice).collect();
    let at = line_time;
    let mut net: BTreeMap<&str, i64> = BTreeMap::new();
    for line in &lines {
        *net.entry(line_item(line)).or_default() += line_amount(line) - line_discount(line);
    }
    let pays_for = |item: &str, line: &Value| {
        let own = || lines.iter().filter(|other| line_item(other) == item);
        let credits = own().filter(|other| line_amount(other) < 0);
        let newest = credits.max_by_key(|credit| (at(credit, "start"), at(credit, "end")));
        let charges = || own().filter(|other| line_amount(other) >= 0);
        newest.is_some_and(|credit| {
            let renews = |other: &&Value| {
                at(other, "start") == at(line, "start") && at(other, "end") >= at(line, "end")
            };
            let is_gone = charges().all(|charge| at(charge, "start") < at(credit, "start"));
            let is_renewed = at(credit, "end") <= at(line, "start") && charges().any(renews);
            is_gone || is_renewed || at(credit, "end") >= at(line, "end")
        })
    };
    let charged = lines.iter().filter(|line| net[line_item(line)] > 0);
    let credited = || net.iter().filter(|(_, net)| **net < 0);
    charged.clone().any(|line| credited().any(|(item, _)| !pays_for(item, line)))
}

fn line_amount(line: &Value) -> i64 {
    line["amount"].as_i64().unwrap_or(0)
}

/// The start or end of the period of a line.
fn line_time(line: &Value, side: &str) -> i64 {
    line["period"][side].as_i64().unwrap_or(0)
}

/// What the discounts beside a line take off.
fn line_discount(line: &Value) -> i64 {
    let parts = line["discount_amounts"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["amount"].as_i64()).sum()
}

fn lines_of(invoice: &Value) -> impl Iterator<Item = &Value> + Clone {
    invoice["lines"]["data"].as_array().into_iter().flatten()
}

/// The subscription item of a line of an invoice.
fn line_item(line: &Value) -> &str {
    let of_parent = &line["parent"]["subscription_item_details"]["subscription_item"];
    of_parent.as_str().or(line["subscription_item"].as_str()).unwrap_or_default()
}
