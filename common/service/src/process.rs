//! The straight path: load → decide → commit, for a batch of events at once.
//!
//! One `BatchGetItem` reads what all events of the batch need, `decide` folds the events of each account into
//! one change, and one `TransactWriteItems` writes everything: each event's marker, each account once (on
//! condition of its version), the ledger entries, the links. If the transaction is cancelled, each account's
//! events are tried again separately, with fresh reads, a bounded number of times. The fresh reads show
//! whether an earlier write took effect.
//!
//! An event with its user in its metadata needs one read. An event that names only its customer, subscription
//! or payment needs a second read, for the account.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::future::join_all;
use tracing::warn;

use crate::accounts::{AccountWrites, Accounts, load_account};
use crate::alerts::{Alert, Alerts};
use crate::outbox::JobMessage;
use crate::resend::redrive::Redrive;
use tallyhook_aws::clock;
use tallyhook_aws::payload;
use tallyhook_aws::store::items::{self, EventRecord, EventState, Item, Key, KnownEvent, KnownPayment};
use tallyhook_aws::store::{Condition, Reason, StoreError, Write};
use tallyhook_aws::telemetry;
use tallyhook_core::account::{Account, Lot};
use tallyhook_core::catalog::{Catalog, LearntPrice};
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::owner::{Links, StoredOwner, owner};
use tallyhook_core::decide::{
    Applied, Effect, Ignored, Outcome, Parked, Payments, add_reversals, decide, foreign, invoice_of_purchase,
    invoice_of_reversal, is_reversal, joined_payment, ledger_keys, of_another_account, payment_refs,
};
use tallyhook_core::drift;
use tallyhook_core::event::{CheckoutSession, Event, EventType, InvoicePayment, Object};
use tallyhook_core::ids::{CustomerId, EventId, PriceId, SubscriptionId, UserId};
use tallyhook_core::job::JobKind;
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::order::OrderStatus;
use tallyhook_core::reversal::PaymentRecord;
use tallyhook_core::setup_status::SessionPayment;
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// The maximum number of attempts for the events of one account within one invocation.
const MAX_ATTEMPTS: u32 = 8;
/// The maximum number of subscriptions that one alert names.
const MAX_NAMED: usize = 10;
/// The maximum number of reads of one attempt: the event, its links, its payment's document, its account.
const MAX_READS: u32 = 5;

/// Processes events, with what that needs.
#[derive(Clone, Debug)]
pub struct Processor {
    /// The accounts.
    pub accounts: Accounts,
    /// The mode of this deployment; `None` accepts both modes.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of a finished event.
    pub keep_payloads: bool,
    /// Sends the events again that a new link or payment frees.
    pub redrive: Redrive,
    /// Sends alerts to the operator.
    pub alerts: Alerts,
}

/// One event to process.
#[derive(Clone, Debug)]
pub struct Job {
    /// The event.
    pub event: Event,
    /// Its body as received, for the log.
    pub raw: Vec<u8>,
    /// SHA-256 of its content.
    pub digest: [u8; 32],
    /// Unix ms at which the webhook received it.
    pub received_ms: i64,
    /// The mode of the secret that verified it.
    pub mode: SecretMode,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// Who runs it, if it does not come from the webhook.
    pub repair: Option<Repair>,
}

/// Who runs a job that does not come from the webhook. The event's record and the ledger entries name it, in
/// the same transaction as the change. This is the audit of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// `reconcile:<run>`
    pub by: String,
    /// The difference that was found, and the intended change.
    pub note: String,
    /// What the event is. The cause of its ledger entries is `by`, except for a lost event.
    pub kind: RepairKind,
    /// The refunds and disputes of the payments of a document. They are applied in the transaction that
    /// grants it.
    pub reversals: Vec<Event>,
}

/// What the event of a repair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairKind {
    /// A lost event of Stripe. It has all its effects, and is the cause of its ledger entries.
    LostEvent,
    /// Made from a paid invoice, a finished session or a refund. It has all the effects of Stripe's event.
    Document,
    /// Made from the current state of a subscription. [`drift::repair`] limits its effects.
    State,
}

/// The account that an event belongs to, as it is before the event.
#[derive(Clone, Debug)]
pub enum FoundAccount {
    /// The account, and the stored payments that the event names.
    Account(Box<Account>, Payments),
    /// No owner is known.
    NoOwner(Parked),
}

/// The outcome of an event. It is stored when this is returned, except for `NotYet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventOutcome {
    /// Its effects are written. A link of a payment to an invoice needs no user.
    Processed(Option<UserId>, Effect),
    /// It was finished before; nothing was written.
    Duplicate,
    /// It has no effect on any account, and is recorded as ignored.
    Ignored(Ignored),
    /// It waits, and is recorded as parked.
    Parked(Parked),
    /// Its user or subscription is not known yet. It may be known within seconds, so the event is tried once
    /// more before it is parked.
    NotYet,
}

/// The result of a batch before it is written.
#[derive(Default)]
struct BatchPlan {
    writes: Vec<Write>,
    places: HashMap<Key, usize>,
    /// Events that start to wait, by the key that they wait for.
    waiting: BTreeMap<Key, BTreeSet<String>>,
    /// Events that waited for a link of this batch.
    freed: BTreeSet<String>,
    /// Payments after the events planned so far.
    payments: BTreeMap<String, KnownPayment>,
    /// Accounts after the events planned so far.
    accounts: BTreeMap<UserId, AccountWrites>,
    /// Jobs that report steps of orders and notices of events.
    messages: BTreeSet<JobMessage>,
    /// Orders that are written for the first time.
    new_orders: u32,
    /// Prices that have left the catalog, each with the first event that bills it.
    prices_not_in_catalog: BTreeMap<PriceId, EventId>,
    /// Customers that now pay for several users, each with its owner and another user.
    newly_shared: BTreeMap<CustomerId, (UserId, UserId)>,
}

impl BatchPlan {
    /// Adds a job that reports a step of an order or a notice.
    fn report(&mut self, job: Option<(JobMessage, Write)>) {
        if let Some((message, write)) = job {
            self.write(write);
            self.messages.insert(message);
        }
    }

    fn planned(&self, key: &Key) -> Option<&Write> {
        self.places.get(key).and_then(|&place| self.writes.get(place))
    }

    /// Adds a write. It replaces an earlier write of the same item, because a transaction has one write per
    /// item.
    fn write(&mut self, write: Write) {
        match self.places.get(&write.key) {
            Some(&place) => self.writes[place] = write,
            None => {
                self.places.insert(write.key.clone(), self.writes.len());
                self.writes.push(write);
            }
        }
    }

    /// Adds a link and frees the events that wait for it. If the item was not read, the condition of the
    /// write fails when events wait, and the next attempt reads it. So a link without waiting events needs no
    /// read.
    fn tie(&mut self, write: Write, item: Option<&Item>) {
        let waiting = item.map(items::waiting).unwrap_or_default();
        if waiting.is_empty() {
            return self.write(write);
        }
        self.freed.extend(waiting.iter().cloned());
        self.write(Write { condition: Condition::Waiting(waiting), ..write });
    }

    /// Links a customer or a subscription to an owner.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`] when two users of one batch claim it. The events are then tried separately,
    /// and the second one reads the owner.
    fn link(
        &mut self,
        key: &Key,
        user: &UserId,
        by_reference: bool,
        items: &HashMap<Key, Item>,
    ) -> Result<(), StoreError> {
        let item = items.get(key);
        let known = item.map(|item| items::read_owner(key, item)).transpose()?.flatten();
        let new = StoredOwner { user: user.clone(), moved: false, by_reference, shared: false };
        let (owner, known) = match known {
            None => (new, None),
            Some(known) if known.user == *user => return Ok(()),
            Some(known) if known.by_reference && !by_reference => (new, Some(known)),
            Some(known) if by_reference || known.shared => return Ok(()),
            // Metadata names another user for this customer, so the customer pays for several users.
            Some(known) => {
                if let Key::Customer(customer) = key {
                    let users = (known.user.clone(), user.clone());
                    self.newly_shared.entry(customer.clone()).or_insert(users);
                }
                (StoredOwner { shared: true, ..known.clone() }, Some(known))
            }
        };
        let write = match key {
            Key::Customer(customer) => items::customer(customer, &owner, known.as_ref()),
            Key::Subscription(subscription) => items::subscription(subscription, &owner, known.as_ref()),
            Key::Account(_)
            | Key::Entry(..)
            | Key::Invoice(_)
            | Key::Newcomer(_)
            | Key::Order(..)
            | Key::Portal(_)
            | Key::Session(_)
            | Key::Payment(_)
            | Key::Catalog
            | Key::CatalogVersion(_)
            | Key::LearntPrices
            | Key::Event(_) => return Ok(()),
        };
        if self.planned(key).is_some_and(|planned| planned.item != write.item) {
            return Err(StoreError::Cancelled(vec![(0, Reason::Conflict)]));
        }
        self.tie(write, item);
        Ok(())
    }

    /// Stores the owner of a checkout session and the most final known state of its payment.
    fn session(
        &mut self,
        session: &CheckoutSession,
        kind: &EventType,
        user: &UserId,
        items: &HashMap<Key, Item>,
    ) -> Result<(), StoreError> {
        let key = Key::Session(session.id.clone());
        let known = self.planned(&key).and_then(|write| write.item.as_ref()).or(items.get(&key));
        let known = known.map(|item| items::read_session(&key, item)).transpose()?;
        let shown = SessionPayment::of_event(session, kind);
        let joined = items::KnownSession {
            user: user.clone(),
            payment: known.as_ref().map_or(shown, |known| known.payment.max(shown)),
            subscription: known
                .as_ref()
                .and_then(|known| known.subscription.clone())
                .or_else(|| session.subscription.clone()),
            assigned: known.as_ref().is_some_and(|known| known.assigned),
            reference: known
                .as_ref()
                .and_then(|known| known.reference.clone())
                .or_else(|| session.customer_reference()),
        };
        if known.as_ref() != Some(&joined) {
            self.write(items::session(&session.id, &joined));
        }
        Ok(())
    }

    /// Stores a payment. A link to its document frees the events that wait for it. An event that starts to
    /// wait (`waits`) frees none: the document itself has not arrived yet.
    fn payment(
        &mut self,
        payment: &str,
        record: PaymentRecord,
        waits: Option<&str>,
        items: &HashMap<Key, Item>,
    ) -> Result<(), StoreError> {
        let key = Key::Payment(payment.to_owned());
        let loaded = match items.get(&key) {
            Some(item) => items::read_payment(&key, item)?,
            None => KnownPayment::default(),
        };
        let mut waiting = self.payments.get(payment).map_or(loaded.waiting, |known| known.waiting.clone());
        waiting.extend(waits.map(str::to_owned));
        if waits.is_none() && record.document.is_some() {
            self.freed.append(&mut waiting);
        }
        let known = KnownPayment { record, waiting, revision: loaded.revision };
        self.write(items::payment(payment, &known, loaded.revision)?);
        self.payments.insert(payment.to_owned(), known);
        Ok(())
    }

    /// The known payments of an event, with the changes by earlier events of the batch.
    fn payments_of(&self, event: &Event, items: &HashMap<Key, Item>) -> Result<Payments, StoreError> {
        let mut all = payments_of(event, items)?;
        for (payment, record) in &mut all {
            if let Some(known) = self.payments.get(payment) {
                *record = known.record.clone();
            }
        }
        Ok(all)
    }

    /// Stores each waiting event with the item that it waits for.
    fn place_waiting(&mut self, items: &HashMap<Key, Item>) {
        for (key, events) in std::mem::take(&mut self.waiting) {
            let item = items.get(&key);
            let known = item.map(items::waiting).unwrap_or_default();
            if self.planned(&key).is_some() {
                // Another event of this batch links it.
                self.freed.extend(events);
            } else if item.is_none() || !known.is_empty() {
                self.write(items::wait(key, known, events));
            }
            // Otherwise it is linked and something else is missing. `retry` sends the event again later.
        }
    }

    /// Parks a second content of a known event id under an id of its own. The first content stays in effect.
    /// After an operator has dismissed the second one, its redelivery is a duplicate; its item is read after
    /// its write has failed.
    fn mismatch(
        &mut self,
        job: &Job,
        user: Option<&UserId>,
        items: &HashMap<Key, Item>,
        now: Timestamp,
    ) -> Result<EventOutcome, StoreError> {
        let id = items::mismatch_id(&job.event.id, &job.digest);
        let key = Key::Event(id.clone());
        let known = items.get(&key).map(|item| items::read_event(&key, item)).transpose()?;
        if known.is_some_and(|known| known.finished) {
            return Ok(EventOutcome::Duplicate);
        }
        let parked = Parked::PayloadMismatch;
        let record = EventRecord { id, ..parked_record(job, None, &parked, user, now) };
        self.write(items::event(&record));
        Ok(EventOutcome::Parked(parked))
    }
}

impl Processor {
    /// The same processor with the stored catalog.
    #[must_use]
    pub async fn with_fresh_catalog(&self) -> Self {
        Self { accounts: self.accounts.with_fresh_catalog().await, ..self.clone() }
    }

    /// Processes a batch. The results are in the order of the jobs. After an error the effects of the job may
    /// or may not be written, and the job must be tried again.
    pub async fn run(&self, jobs: &[Job], now: Timestamp) -> Vec<Result<EventOutcome, StoreError>> {
        let all: Vec<&Job> = jobs.iter().collect();
        let mut extra = BTreeSet::new();
        if let Ok(outcomes) = self.attempt(&all, &mut extra, now).await {
            return outcomes.into_iter().map(Ok).collect();
        }
        let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (place, job) in jobs.iter().enumerate() {
            groups.entry(account_hint(&job.event)).or_default().push(place);
        }
        let outcomes = join_all(groups.into_values().map(|places| {
            let extra = extra.clone();
            async move {
                let group: Vec<&Job> = places.iter().filter_map(|&place| jobs.get(place)).collect();
                places.into_iter().zip(self.persist(&group, extra, now).await).collect::<Vec<_>>()
            }
        }));
        let mut answers: Vec<(usize, Result<EventOutcome, StoreError>)> =
            outcomes.await.into_iter().flatten().collect();
        answers.sort_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Tries the events of one account until they are written. If one of them cannot be written, the others
    /// still are.
    async fn persist(
        &self,
        group: &[&Job],
        mut extra: BTreeSet<Key>,
        now: Timestamp,
    ) -> Vec<Result<EventOutcome, StoreError>> {
        let mut tried = 0;
        let error = loop {
            tried += 1;
            match self.attempt(group, &mut extra, now).await {
                Ok(outcomes) => return outcomes.into_iter().map(Ok).collect(),
                // Retry at once only when another writer won the race. If DynamoDB did not answer, the SDK
                // has already retried and our time is limited: let SQS redeliver.
                Err(error)
                    if tried >= MAX_ATTEMPTS
                        || !matches!(error, StoreError::Cancelled(_))
                        || !error.is_transient() =>
                {
                    break error;
                }
                Err(_) => clock::pause(tried).await,
            }
        };
        if group.len() == 1 || error.is_transient() {
            let message = error.to_string();
            let same =
                |_: &&Job| Err(StoreError::Unavailable { operation: "process", message: message.clone() });
            let mut answers: Vec<_> = group.iter().map(same).collect();
            if let Some(first) = answers.first_mut() {
                *first = Err(error);
            }
            return answers;
        }
        let mut answers = Vec::new();
        for job in group {
            answers.push(match self.attempt(&[job], &mut extra, now).await {
                Ok(outcomes) => outcomes.into_iter().next().ok_or(StoreError::TooMany(0)),
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// Makes an attempt with the catalog that was read last, and starts again if the attempt reads another
    /// one. So one catalog decides about everything that a transaction writes.
    async fn attempt(
        &self,
        jobs: &[&Job],
        extra: &mut BTreeSet<Key>,
        now: Timestamp,
    ) -> Result<Vec<EventOutcome>, StoreError> {
        loop {
            let renewed;
            let current = if self.accounts.has_other_catalog() {
                renewed = Self { accounts: self.accounts.with_current_catalog(), ..self.clone() };
                &renewed
            } else {
                self
            };
            if let Some(outcomes) = current.attempt_with_one_catalog(jobs, extra, now).await? {
                return Ok(outcomes);
            }
        }
    }

    /// Makes one read (more if an owner is known only by a link or a payment), one decision for each event,
    /// and one transaction. `extra` collects the keys of writes that failed, to be read by the next attempt.
    /// `None`: another catalog was read, and nothing was written.
    async fn attempt_with_one_catalog(
        &self,
        jobs: &[&Job],
        extra: &mut BTreeSet<Key>,
        now: Timestamp,
    ) -> Result<Option<Vec<EventOutcome>>, StoreError> {
        let events: Vec<&Event> = jobs.iter().map(|job| &job.event).collect();
        let due = self.accounts.catalog_cache.due();
        let items = self.read(&events, extra.iter().cloned().chain(due.iter().flatten().cloned())).await?;
        if due.is_some() {
            self.accounts.catalog_cache.update(&items);
            if self.accounts.has_other_catalog() {
                return Ok(None);
            }
        }
        let mut plan = BatchPlan::default();
        let mut outcomes: Vec<EventOutcome> = Vec::with_capacity(jobs.len());
        for (place, job) in jobs.iter().enumerate() {
            let earlier = jobs.iter().take(place).find(|other| other.event.id == job.event.id);
            outcomes.push(self.plan(&mut plan, job, earlier.copied(), &items, now)?);
        }
        // Before an event is parked because the catalog lacks what was sold, read the newest catalog.
        if outcomes.iter().any(lacks_something_sold) {
            self.accounts.catalog_cache.read_again(&self.accounts.store).await;
            if self.accounts.has_other_catalog() {
                return Ok(None);
            }
        }
        self.resume(jobs, &outcomes, &items).await?;
        let messages = self.finish(&mut plan, &items)?;
        if plan.writes.is_empty() {
            return Ok(Some(outcomes));
        }
        if let Some(digest) = self.accounts.catalog.digest() {
            let records: HashSet<Key> = jobs.iter().map(|job| Key::event(&job.event.id)).collect();
            let records = plan.writes.iter_mut().filter(|write| records.contains(&write.key));
            records.for_each(|record| items::note_catalog(record, digest));
        }
        let keys: Vec<Key> = plan.writes.iter().map(|write| write.key.clone()).collect();
        match self.accounts.store.commit(plan.writes).await {
            Ok(()) => {
                self.redrive.send_freed(&self.accounts.store, &plan.freed).await;
                self.accounts.outbox.send(&messages).await;
                if plan.new_orders > 0 {
                    telemetry::metrics(&[], &[("OrdersCreated", f64::from(plan.new_orders))]);
                }
                for (price, event) in &plan.prices_not_in_catalog {
                    let (price, event_id) = (price.to_string(), event.to_string());
                    self.alerts.send(&Alert::PriceNotInCatalog { price, event_id }).await;
                }
                for (customer, users) in &plan.newly_shared {
                    self.alert_shared(customer, users, now).await;
                }
                self.learn_prices(jobs, &outcomes, now).await;
                Ok(Some(outcomes))
            }
            Err(error) => {
                if let StoreError::Cancelled(reasons) = &error {
                    // A condition fails because an entry exists that was not read, a customer or subscription
                    // has another owner, events wait for a link, or payments are linked to the invoice. (The
                    // account and the event's marker are read again anyway.)
                    let failed = reasons.iter().filter(|(_, reason)| *reason == Reason::Condition);
                    extra.extend(failed.filter_map(|(place, _)| keys.get(*place)).cloned());
                }
                Err(error)
            }
        }
    }

    /// Stores the ids of prices that processed events show with a lookup key or a Stripe product of the
    /// catalog.
    async fn learn_prices(&self, jobs: &[&Job], outcomes: &[EventOutcome], now: Timestamp) {
        let processed = jobs.iter().zip(outcomes);
        let processed = processed.filter(|(_, outcome)| matches!(outcome, EventOutcome::Processed(..)));
        let shown: BTreeMap<String, LearntPrice> = processed
            .flat_map(|(job, _)| job.event.prices())
            .filter_map(|price| self.accounts.catalog.to_learn(price, now))
            .map(|price| (price.id.clone(), price))
            .collect();
        if !shown.is_empty() {
            self.accounts.catalog_cache.learn(&self.accounts.store, shown.into_values().collect()).await;
        }
    }

    /// Sends the alert that a customer pays for several users, with what the customer gave its owner before.
    async fn alert_shared(&self, customer: &CustomerId, (owner, user): &(UserId, UserId), now: Timestamp) {
        let mut granted = Vec::new();
        match self.accounts.store.load([Key::Account(owner.clone())]).await {
            Ok(items) => {
                if let Ok(account) = load_account(owner, &items) {
                    granted = granted_by(&account, customer, &self.accounts.catalog, now);
                }
            }
            Err(error) => warn!(error = error.to_string(), "ALERT_INCOMPLETE"),
        }
        let alert = Alert::SharedCustomer {
            customer: customer.to_string(),
            owner: owner.to_string(),
            user: user.to_string(),
            granted,
        };
        self.alerts.send(&alert).await;
    }

    /// Reads the items that the decisions about events need. It reads again while the items show that more
    /// are needed.
    async fn read(
        &self,
        events: &[&Event],
        extra: impl Iterator<Item = Key>,
    ) -> Result<HashMap<Key, Item>, StoreError> {
        let mut asked: HashSet<Key> = extra.collect();
        let mut missing: HashSet<Key> = asked.clone();
        missing.extend(events.iter().flat_map(|event| first_keys(event)));
        let mut items = HashMap::new();
        for _ in 0..MAX_READS {
            asked.extend(missing.iter().cloned());
            items.extend(self.accounts.store.load(missing.drain()).await?);
            for event in events {
                missing.extend(self.needed(event, &items)?.into_iter().filter(|key| !asked.contains(key)));
            }
            if missing.is_empty() {
                break;
            }
        }
        Ok(items)
    }

    /// The keys that an event needs, by the items read so far.
    fn needed(&self, event: &Event, items: &HashMap<Key, Item>) -> Result<Vec<Key>, StoreError> {
        let mut keys = first_keys(event);
        if let Some(invoice) = invoice_of_reversal(event).and_then(|key| key.invoice_id()) {
            keys.push(Key::Invoice(invoice));
        }
        if let Object::Invoice(invoice) = &event.object
            && let Some(item) = items.get(&Key::Invoice(invoice.id.clone()))
        {
            keys.extend(items::payments_of_invoice(item).into_iter().map(Key::Payment));
        }
        let payments = payments_of(event, items)?;
        let documents: Vec<LedgerKey> =
            payments.values().filter_map(|record| record.document.clone()).collect();
        keys.extend(documents.iter().filter_map(LedgerKey::invoice_id).map(Key::Invoice));
        if let Ok(user) = self.owner(event, items)?.map(|owner| owner.user) {
            keys.push(Key::Account(user.clone()));
            keys.extend(ledger_keys(event).iter().chain(&documents).map(|key| Key::entry(&user, key)));
            if is_reversal(event) {
                let orders = documents.iter().filter_map(LedgerKey::session_id);
                keys.extend(orders.map(|session| Key::Order(user.clone(), session)));
            }
        }
        Ok(keys)
    }

    /// The owner of an event, by the items read so far.
    fn owner(&self, event: &Event, items: &HashMap<Key, Item>) -> Result<Result<Owner, Parked>, StoreError> {
        if is_reversal(event) || matches!(event.object, Object::InvoicePayment(_)) {
            return owner_of_payment(event, items);
        }
        if let Object::CheckoutSession(session) = &event.object {
            let key = Key::Session(session.id.clone());
            if let Some(known) = items.get(&key).map(|item| items::read_session(&key, item)).transpose()?
                && known.assigned
            {
                return Ok(Ok(Owner { user: known.user, by_reference: false }));
            }
        }
        let stored = |key: Option<Key>| -> Result<Option<StoredOwner>, StoreError> {
            let Some(key) = key else { return Ok(None) };
            Ok(items.get(&key).map(|item| items::read_owner(&key, item)).transpose()?.flatten())
        };
        let referenced = event.referenced_user().ok().flatten();
        let links = Links {
            subscription: stored(event.subscription_id().cloned().map(Key::Subscription))?,
            customer: stored(event.customer().cloned().map(Key::Customer))?,
            referenced_account_exists: referenced.is_some_and(|user| items.contains_key(&Key::Account(user))),
        };
        let found = owner(event, &links, &self.accounts.catalog.policy);
        Ok(found.map(|owner| Owner { user: owner.user, by_reference: owner.by_reference }))
    }

    /// Queues the jobs of redelivered events that are already finished: the first attempt may have ended
    /// between the commit and the message about its job.
    async fn resume(
        &self,
        jobs: &[&Job],
        outcomes: &[EventOutcome],
        items: &HashMap<Key, Item>,
    ) -> Result<(), StoreError> {
        let pays = |event: &Event| matches!(event.object, Object::CheckoutSession(_) | Object::Invoice(_));
        let mut users = BTreeSet::new();
        for (job, outcome) in jobs.iter().zip(outcomes) {
            if job.attempt > 1 && *outcome == EventOutcome::Duplicate && pays(&job.event) {
                users.extend(self.owner(&job.event, items)?.ok().map(|owner| owner.user));
            }
        }
        if users.is_empty() {
            return Ok(());
        }
        self.accounts.outbox.resume(&self.accounts.store, users).await
    }

    /// Reads the account of each event, and writes nothing. The links of an event are read even if its
    /// metadata names a user.
    ///
    /// # Errors
    /// [`StoreError`] for all events when the tables cannot be read; for one event when an item of its
    /// account cannot be read.
    pub async fn look(&self, events: &[&Event]) -> Result<Vec<Result<FoundAccount, StoreError>>, StoreError> {
        let links = events.iter().flat_map(|event| link_keys(event)).collect::<Vec<_>>();
        let items = self.read(events, links.into_iter()).await?;
        let found = |event: &Event| match self.owner(event, &items)? {
            Ok(owner) => {
                let account = load_account(&owner.user, &items)?;
                Ok(FoundAccount::Account(Box::new(account), payments_of(event, &items)?))
            }
            Err(parked) => Ok(FoundAccount::NoOwner(parked)),
        };
        Ok(events.iter().map(|event| found(event)).collect())
    }

    /// Plans one event of a batch; `earlier` is a job of the same event before it.
    fn plan(
        &self,
        plan: &mut BatchPlan,
        job: &Job,
        earlier: Option<&Job>,
        items: &HashMap<Key, Item>,
        now: Timestamp,
    ) -> Result<EventOutcome, StoreError> {
        let owner = self.owner(&job.event, items)?;
        let user = owner.as_ref().ok().map(|owner| &owner.user);
        if let Some(earlier) = earlier {
            let differs = earlier.digest != job.digest && earlier.event.api_version == job.event.api_version;
            return if differs { plan.mismatch(job, user, items, now) } else { Ok(EventOutcome::Duplicate) };
        }
        let marker = Key::event(&job.event.id);
        let known = items.get(&marker).map(|item| items::read_event(&marker, item)).transpose()?;
        if let Some(known) = &known {
            if known.digest != job.digest && known.api_version == job.event.api_version {
                return plan.mismatch(job, user, items, now);
            }
            if known.finished {
                return Ok(EventOutcome::Duplicate);
            }
        }
        let known = known.as_ref();
        match self.decide(plan, job, &owner, items, now)? {
            Outcome::Park(parked) if job.attempt == 1 && may_resolve_soon(&parked) => {
                Ok(EventOutcome::NotYet)
            }
            Outcome::Park(parked) => self.park(plan, job, known, user, parked, items, now),
            Outcome::Ignore(ignored) => {
                let record = record(job, known, EventState::Ignored, ignored.as_str(), user, now);
                plan.write(items::event(&record));
                Ok(EventOutcome::Ignored(ignored))
            }
            Outcome::Apply(applied) => match owner {
                Ok(owner) => self.apply(plan, job, known, &owner, *applied, items, now),
                Err(_) => Ok(EventOutcome::NotYet),
            },
            Outcome::Tie => {
                if let Object::InvoicePayment(payment) = &job.event.object {
                    tie_payment(plan, payment, items)?;
                }
                let record = record(job, known, EventState::Processed, Effect::Updated.as_str(), None, now);
                plan.write(items::event(&record));
                Ok(EventOutcome::Processed(None, Effect::Updated))
            }
        }
    }

    fn decide(
        &self,
        plan: &mut BatchPlan,
        job: &Job,
        owner: &Result<Owner, Parked>,
        items: &HashMap<Key, Item>,
        now: Timestamp,
    ) -> Result<Outcome, StoreError> {
        let catalog = &self.accounts.catalog;
        if self.wrong_mode(job) {
            return Ok(Outcome::Ignore(Ignored::Livemode));
        }
        if foreign::is_foreign(&job.raw, catalog) {
            return Ok(Outcome::Ignore(Ignored::Foreign));
        }
        let owner = match owner {
            Ok(owner) => owner,
            Err(_) if matches!(job.event.kind, EventType::Other(_)) => {
                return Ok(Outcome::Ignore(Ignored::Type));
            }
            Err(parked) => {
                let tie = matches!(job.event.object, Object::InvoicePayment(_)).then_some(Outcome::Tie);
                let ignored = of_another_account(&job.event).map(Outcome::Ignore);
                return Ok(ignored.or(tie).unwrap_or_else(|| Outcome::Park(parked.clone())));
            }
        };
        for key in ledger_keys(&job.event) {
            let key = Key::entry(&owner.user, &key);
            if let (Key::Invoice(_), Some(item)) = (&key, items.get(&key))
                && let Some((other, _)) = items::read_invoice(&key, item)?
                && other != owner.user
            {
                return Ok(Outcome::Park(Parked::OwnerConflict(other, owner.user.clone())));
            }
        }
        let mut payments = plan.payments_of(&job.event, items)?;
        if let Some(repair) = &job.repair {
            add_reversals(&mut payments, &job.event, &repair.reversals);
        }
        let account = self.account(plan, &owner.user, items, now)?.account();
        Ok(match &job.repair {
            Some(repair) if repair.kind == RepairKind::State => {
                drift::repair(account, &job.event, catalog, now)
            }
            Some(_) | None => decide(account, &job.event, &payments, catalog, now),
        })
    }

    /// The account of a user after the events of the batch planned so far.
    fn account<'a>(
        &self,
        plan: &'a mut BatchPlan,
        user: &UserId,
        items: &HashMap<Key, Item>,
        now: Timestamp,
    ) -> Result<&'a mut AccountWrites, StoreError> {
        if !plan.accounts.contains_key(user) {
            let account = load_account(user, items)?;
            plan.accounts.insert(user.clone(), AccountWrites::new(&self.accounts, &account, now));
        }
        plan.accounts.get_mut(user).ok_or(StoreError::TooMany(0))
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one event's plan")]
    fn park(
        &self,
        plan: &mut BatchPlan,
        job: &Job,
        known: Option<&KnownEvent>,
        user: Option<&UserId>,
        parked: Parked,
        items: &HashMap<Key, Item>,
        now: Timestamp,
    ) -> Result<EventOutcome, StoreError> {
        let id = job.event.id.to_string();
        if let Parked::NoGrant(_) = &parked {
            // The refund or dispute is stored with the payment, and applied when the document is known.
            let payments = plan.payments_of(&job.event, items)?;
            if let Some((payment, record)) = joined_payment(&job.event, &payments) {
                plan.payment(&payment, record, Some(&id), items)?;
            }
        } else if let Some(key) = waited_for(&parked) {
            plan.waiting.entry(key).or_default().insert(id);
        }
        let mut record = parked_record(job, known, &parked, user, now);
        // It joins its user's list, unless that would create an account only for a parked event.
        if let Some(user) = user.filter(|_| record.previous.is_none()) {
            let account = self.account(plan, user, items, now)?;
            if account.is_stored() {
                record.previous = Some(account.enlist(&job.event.id));
            }
        }
        plan.write(items::event(&record));
        Ok(EventOutcome::Parked(parked))
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one event's plan")]
    fn apply(
        &self,
        plan: &mut BatchPlan,
        job: &Job,
        known: Option<&KnownEvent>,
        owner: &Owner,
        mut applied: Applied,
        items: &HashMap<Key, Item>,
        now: Timestamp,
    ) -> Result<EventOutcome, StoreError> {
        let user = &owner.user;
        for price in std::mem::take(&mut applied.prices_not_in_catalog) {
            plan.prices_not_in_catalog.entry(price).or_insert_with(|| job.event.id.clone());
        }
        if let Some(repair) = job.repair.as_ref().filter(|repair| repair.kind != RepairKind::LostEvent) {
            applied.change.entries.iter_mut().for_each(|entry| entry.cause.clone_from(&repair.by));
        }
        let payments = plan.payments_of(&job.event, items)?;
        let outbox = &self.accounts.outbox;
        let account = self.account(plan, user, items, now)?;
        let catalog = &self.accounts.catalog;
        let notices = outbox.notices(&job.event, account.account(), &applied, &payments, catalog, now);
        account.apply(&applied.change);
        let mut record = record(job, known, EventState::Processed, applied.effect.as_str(), Some(user), now);
        let erased = account.account().state.erased_at.is_some();
        if let Some(order) = applied.order.as_mut().filter(|_| erased) {
            order.customer_email = None;
        }
        record.payload = if self.keep_payloads && !erased { payload::keep(&job.raw) } else { None };
        if record.previous.is_none() {
            record.previous = Some(account.enlist(&job.event.id));
        }
        for customer in applied.links {
            plan.link(&Key::Customer(customer), user, owner.by_reference, items)?;
        }
        for subscription in applied.subscriptions {
            plan.link(&Key::Subscription(subscription), user, owner.by_reference, items)?;
        }
        for (payment, record) in applied.payments {
            plan.payment(&payment, record, None, items)?;
        }
        notices.into_iter().for_each(|notice| plan.report(Some(notice)));
        if let Some(order) = &applied.order {
            plan.write(items::order(user, order));
            plan.new_orders += 1;
            plan.report(outbox.order_job(JobKind::OrderPaid, &order.session, user, now));
        }
        if let Some(paid) = &applied.order_payment {
            let key = Key::Order(user.clone(), paid.session.clone());
            // An earlier event of the batch may have created or changed the order.
            let planned =
                plan.planned(&key).and_then(|write| Some((write.item.clone()?, write.condition.clone())));
            let stored = items.get(&key).cloned().map(|item| (item, None));
            let known = planned.map(|(item, condition)| (item, Some(condition))).or(stored);
            let change = known
                .and_then(|(item, condition)| Some((items::order_after(user, paid, &item, now)?, condition)));
            if let Some((change, condition)) = change {
                if change.moves_to(OrderStatus::Refunded) {
                    plan.report(outbox.order_job(JobKind::OrderRefunded, &paid.session, user, now));
                }
                let write = change.write();
                let condition = condition.unwrap_or_else(|| write.condition.clone());
                plan.write(Write { condition, ..write });
            }
        }
        if let Object::CheckoutSession(session) = &job.event.object {
            plan.session(session, &job.event.kind, user, items)?;
            if let Some(account) = plan.accounts.get_mut(user) {
                account.paid_by(session.id.clone());
            }
        }
        plan.write(items::event(&record));
        Ok(EventOutcome::Processed(Some(user.clone()), applied.effect))
    }

    /// Adds the writes of all accounts, and returns the jobs to send after the commit.
    fn finish(
        &self,
        plan: &mut BatchPlan,
        items: &HashMap<Key, Item>,
    ) -> Result<BTreeSet<JobMessage>, StoreError> {
        plan.place_waiting(items);
        let mut all = std::mem::take(&mut plan.messages);
        for (_, account) in std::mem::take(&mut plan.accounts) {
            let (writes, messages) = account.finish(&self.accounts, items)?;
            writes.into_iter().for_each(|write| plan.write(write));
            all.extend(messages);
        }
        Ok(all)
    }

    fn wrong_mode(&self, job: &Job) -> bool {
        !job.mode.allows(job.event.livemode)
            || self.livemode.is_some_and(|livemode| livemode != job.event.livemode)
    }
}

/// The owner of an event, and whether only a `client_reference_id` names it.
struct Owner {
    user: UserId,
    by_reference: bool,
}

/// What a customer gave its owner: its subscriptions, and the owner's packs if the owner has no other
/// customer.
fn granted_by(account: &Account, customer: &CustomerId, catalog: &Catalog, now: Timestamp) -> Vec<String> {
    let buckets = account.state.buckets(&catalog.policy, now);
    let of_customer = account
        .state
        .subscriptions
        .iter()
        .filter(|(_, subscription)| subscription.customer.as_ref() == Some(customer));
    let gives = |id: &SubscriptionId| {
        let plan = account.state.summary(id, catalog, now).and_then(|summary| summary.plan);
        let plan = plan.unwrap_or_else(|| "no plan".to_owned());
        format!("{id}: {plan}, {} credits left", buckets.of_subscription(id))
    };
    let mut granted: Vec<String> = of_customer.take(MAX_NAMED).map(|(id, _)| gives(id)).collect();
    let packs = buckets.sum(|lot| matches!(lot, Lot::Pack(_)));
    if packs > Credits::ZERO && account.state.customers.len() == 1 {
        granted.push(format!("packs: {packs} credits left"));
    }
    granted
}

/// Whether what an event waits for usually arrives within seconds.
fn may_resolve_soon(parked: &Parked) -> bool {
    match parked {
        Parked::NoUser(_) | Parked::UnknownPrice(_, Some(_)) => true,
        Parked::UnknownPrice(_, None)
        | Parked::InvalidUser
        | Parked::NoCatalog
        | Parked::OwnerConflict(..)
        | Parked::UnknownReference(_)
        | Parked::SharedCustomer(_)
        | Parked::AmbiguousPrice(..)
        | Parked::UnknownName(..)
        | Parked::Unnamed
        | Parked::LinesMissing
        | Parked::TooManyItems
        | Parked::TooManyProducts
        | Parked::Quantity(_)
        | Parked::NoPeriod
        | Parked::NoGrant(_)
        | Parked::Conflict(_)
        | Parked::PayloadMismatch
        | Parked::Message(_)
        | Parked::Unreadable(_) => false,
    }
}

/// Whether an event is parked because the catalog does not have what was sold.
fn lacks_something_sold(outcome: &EventOutcome) -> bool {
    let lacks = |parked: &Parked| {
        matches!(parked, Parked::NoCatalog | Parked::UnknownPrice(..) | Parked::UnknownName(..))
    };
    matches!(outcome, EventOutcome::Parked(parked) if lacks(parked))
}

/// A text that is equal for events that probably belong to the same account.
fn account_hint(event: &Event) -> String {
    match (event.named_user(), event.customer()) {
        (Ok(Some(user)), _) => user.to_string(),
        (_, Some(customer)) => customer.to_string(),
        (_, None) => payment_refs(event)
            .first()
            .map_or_else(|| event.id.to_string(), |payment| payment.as_str().to_owned()),
    }
}

/// The keys of the first read. Links are read only if the metadata names no user. Otherwise the account knows
/// its customers and subscriptions, and a new link fails in the transaction if another user owns it.
fn first_keys(event: &Event) -> Vec<Key> {
    let mut keys = vec![Key::event(&event.id)];
    match event.named_user() {
        Ok(Some(user)) => {
            keys.push(Key::Account(user.clone()));
            keys.extend(ledger_keys(event).iter().map(|key| Key::entry(&user, key)));
        }
        Ok(None) | Err(_) => {
            keys.extend(link_keys(event));
            keys.extend(event.referenced_user().ok().flatten().map(Key::Account));
        }
    }
    keys.extend(payment_refs(event).iter().map(Key::payment));
    match &event.object {
        Object::CheckoutSession(session) => {
            keys.push(Key::Session(session.id.clone()));
            keys.extend(invoice_of_purchase(event).map(Key::Invoice));
        }
        Object::InvoicePayment(payment) => keys.push(Key::Invoice(payment.invoice.clone())),
        Object::Subscription(_)
        | Object::Invoice(_)
        | Object::Charge(_)
        | Object::Refund(_)
        | Object::Dispute(_)
        | Object::Customer(_)
        | Object::Other => {}
    }
    keys
}

/// The links that may name the owner of an event.
fn link_keys(event: &Event) -> Vec<Key> {
    if is_reversal(event) {
        return Vec::new();
    }
    let customer = event.customer().cloned().map(Key::Customer);
    customer.into_iter().chain(event.subscription_id().cloned().map(Key::Subscription)).collect()
}

/// The owner of the document that a payment paid.
fn owner_of_payment(event: &Event, items: &HashMap<Key, Item>) -> Result<Result<Owner, Parked>, StoreError> {
    let owned = |user: UserId| Ok(Ok(Owner { user, by_reference: false }));
    // If the invoice has arrived, its owner is the owner of a payment that an `invoice_payment` links to it.
    if let Object::InvoicePayment(it) = &event.object {
        let key = Key::Invoice(it.invoice.clone());
        let invoice = items.get(&key).map(|item| items::read_invoice(&key, item)).transpose()?.flatten();
        if let Some((user, _)) = invoice {
            return owned(user);
        }
    }
    let payments = payments_of(event, items)?;
    for record in payments.values() {
        let invoice = record.document.as_ref().and_then(LedgerKey::invoice_id);
        let Some(key) = invoice.map(Key::Invoice) else { continue };
        if let Some(item) = items.get(&key)
            && let Some((user, _)) = items::read_invoice(&key, item)?
        {
            return owned(user);
        }
    }
    if let Some(user) = payments.values().find_map(|record| record.user.clone()) {
        return owned(user);
    }
    let name = payment_refs(event).first().map_or(event.id.as_str(), |payment| payment.as_str()).to_owned();
    Ok(Err(Parked::NoGrant(name)))
}

/// The known payments that an event names or that are linked to its invoice. A refund or a dispute that names
/// its invoice links its payment to this invoice, if the invoice is known.
fn payments_of(event: &Event, items: &HashMap<Key, Item>) -> Result<Payments, StoreError> {
    let mut names: BTreeSet<String> =
        payment_refs(event).iter().map(|payment| payment.as_str().to_owned()).collect();
    if let Object::Invoice(invoice) = &event.object
        && let Some(item) = items.get(&Key::Invoice(invoice.id.clone()))
    {
        names.extend(items::payments_of_invoice(item));
    }
    let mut payments = Payments::new();
    for name in names {
        let key = Key::Payment(name.clone());
        if let Some(item) = items.get(&key) {
            payments.insert(name, items::read_payment(&key, item)?.record);
        }
    }
    if let Some(document) = invoice_of_reversal(event)
        && payments.values().all(|record| record.document.is_none())
        && let Some(invoice) = document.invoice_id()
        && items.contains_key(&Key::Invoice(invoice))
        && let Some(payment) = payment_refs(event).first()
    {
        payments.entry(payment.as_str().to_owned()).or_default().document = Some(document);
    }
    Ok(payments)
}

/// Links a payment to an invoice before the invoice's own event arrives.
fn tie_payment(
    plan: &mut BatchPlan,
    it: &InvoicePayment,
    items: &HashMap<Key, Item>,
) -> Result<(), StoreError> {
    let intent = it.payment_intent.as_ref().map(ToString::to_string);
    let Some(payment) = intent.or_else(|| it.charge.as_ref().map(ToString::to_string)) else {
        return Ok(());
    };
    let key = Key::Payment(payment.clone());
    let mut record = match (plan.payments.get(&payment), items.get(&key)) {
        (Some(known), _) => known.record.clone(),
        (None, Some(item)) => items::read_payment(&key, item)?.record,
        (None, None) => PaymentRecord::default(),
    };
    record.document.get_or_insert_with(|| LedgerKey::invoice(&it.invoice));
    let key = Key::Invoice(it.invoice.clone());
    let planned = plan.planned(&key).and_then(|write| write.item.clone());
    let stored = items.get(&key).map(items::payments_of_invoice).unwrap_or_default();
    let mut all = planned.as_ref().map(items::payments_of_invoice).unwrap_or_default();
    all.insert(payment.clone());
    plan.write(items::invoice_payments(&it.invoice, &stored, all));
    plan.payment(&payment, record, None, items)
}

/// The item that frees a parked event when it is linked.
fn waited_for(parked: &Parked) -> Option<Key> {
    match parked {
        Parked::NoUser(Some(customer)) => Some(Key::Customer(customer.clone())),
        Parked::UnknownPrice(_, Some(subscription)) => Some(Key::Subscription(subscription.clone())),
        Parked::UnknownReference(user) => Some(Key::Newcomer(user.clone())),
        Parked::NoUser(None)
        | Parked::InvalidUser
        | Parked::NoCatalog
        | Parked::OwnerConflict(..)
        | Parked::SharedCustomer(_)
        | Parked::UnknownPrice(_, None)
        | Parked::AmbiguousPrice(..)
        | Parked::UnknownName(..)
        | Parked::Unnamed
        | Parked::LinesMissing
        | Parked::TooManyItems
        | Parked::TooManyProducts
        | Parked::Quantity(_)
        | Parked::NoPeriod
        | Parked::NoGrant(_)
        | Parked::Conflict(_)
        | Parked::PayloadMismatch
        | Parked::Message(_)
        | Parked::Unreadable(_) => None,
    }
}

fn record(
    job: &Job,
    known: Option<&KnownEvent>,
    state: EventState,
    reason: &str,
    user: Option<&UserId>,
    now: Timestamp,
) -> EventRecord {
    let event = &job.event;
    EventRecord {
        id: event.id.to_string(),
        kind: event.kind.as_str().to_owned(),
        family: event.kind.family().map_or("other", |family| family.as_str()),
        state,
        reason: Some(reason.to_owned()),
        message: job.repair.as_ref().map(|repair| format!("{}: {}", repair.by, repair.note)),
        waits_for: None,
        user: user.cloned(),
        objects: event.object_ids().into_iter().map(str::to_owned).collect(),
        created: event.created,
        received_ms: job.received_ms,
        finished_ms: now.unix().saturating_mul(1000),
        attempts: known.map_or(0, |known| known.attempts) + job.attempt,
        redrives: known.map_or(0, |known| known.redrives),
        previous: known.and_then(|known| known.previous.clone()),
        mode: job.mode,
        livemode: event.livemode,
        api_version: event.api_version.clone(),
        digest: job.digest,
        payload: None,
    }
}

fn parked_record(
    job: &Job,
    known: Option<&KnownEvent>,
    parked: &Parked,
    user: Option<&UserId>,
    now: Timestamp,
) -> EventRecord {
    let record = record(job, known, EventState::Parked, parked.code(), user, now);
    EventRecord {
        message: Some(parked.to_string()),
        waits_for: parked.waits_for(),
        payload: payload::keep(&job.raw),
        ..record
    }
}
