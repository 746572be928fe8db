//! THE straight path: load → decide → commit, for a batch of events at once.
//!
//! One `BatchGetItem` reads what all events of the batch need, `decide` folds the events of each account into
//! one change, and one `TransactWriteItems` writes everything: each event's marker, each account once on its
//! version, the ledger entries, the links. When the transaction does not hold, each account's events are done
//! again on their own, from fresh reads, a bounded number of times; a retry finds out by itself whether an
//! earlier write had happened after all.
//!
//! An event that names its user needs one read. One that names only its customer or its payment needs a
//! second, for the account.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;

use crate::outbox::{Before, Nudge, Outbox};
use crate::resend::redrive::Redrive;
use tallyhook_aws::payload;
use tallyhook_aws::store::items::{self, EventRecord, EventState, Item, Key, KnownEvent};
use tallyhook_aws::store::{Condition, Reason, Store, StoreError, Write};
use tallyhook_core::account::Account;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::decide::{Effect, Ignored, Outcome, Parked, decide, ledger_keys, payment_refs};
use tallyhook_core::drift;
use tallyhook_core::event::{CheckoutSession, Event, EventType, Object};
use tallyhook_core::ids::{CustomerId, EventId, UserId};
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::setup_status::SessionPayment;
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// How often the events of one account are tried within one invocation.
const ATTEMPTS: u32 = 8;

/// What the path needs besides its store.
#[derive(Clone, Debug)]
pub struct Processor {
    /// The tables.
    pub store: Store,
    /// What is sold.
    pub catalog: Catalog,
    /// The mode of this deployment; `None` applies both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of an event that is done.
    pub keep_payloads: bool,
    /// Where the events go that a new link or payment frees.
    pub redrive: Redrive,
    /// What the app is to be told.
    pub outbox: Outbox,
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
    /// Unix ms at which the webhook had it.
    pub received_ms: i64,
    /// Which events the verifying secret may vouch for.
    pub mode: SecretMode,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Who runs it, where no webhook brought it.
    pub repair: Option<Repair>,
}

/// Who runs a job that no webhook brought. It is the audit: the event's record and the ledger's entries carry
/// it, in the same transaction as what it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// `reconcile:<run>`
    pub by: String,
    /// What was found and what is to come of it.
    pub note: String,
    /// The event is Stripe's own, which was lost: it does all that it would have done. Otherwise it was made
    /// of an object that was read from Stripe: [`drift::repair`] says what it may do, and `by` is the cause
    /// of its entries.
    pub as_itself: bool,
}

/// Whose an event is, and how things stand before it.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The account, and the grant that the event's payment paid for.
    Account(Box<Account>, Option<LedgerKey>),
    /// Nobody's that we know.
    Nobody(Parked),
}

/// How an event ended. All but `NotYet` are durable when this is returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Its effects are written.
    Processed(UserId, Effect),
    /// It was finished before; nothing was written.
    Duplicate,
    /// Recorded as none of our business.
    Ignored(Ignored),
    /// Recorded as waiting.
    Parked(Parked),
    /// Its user is not known, which may be a matter of seconds: try once more before parking.
    NotYet,
}

/// What a batch came to, before it is written.
#[derive(Default)]
struct Plan {
    done: Vec<Done>,
    writes: Vec<Write>,
    places: HashMap<Key, usize>,
    /// Who begins to wait, by the customer or payment.
    waiting: BTreeMap<Key, BTreeSet<String>>,
    /// Who waited for what this binds.
    freed: BTreeSet<String>,
    /// Jobs that are written with it.
    nudges: BTreeSet<Nudge>,
}

impl Plan {
    fn planned(&self, key: &Key) -> Option<&Write> {
        self.places.get(key).and_then(|&place| self.writes.get(place))
    }

    /// Adds a write; a second one to the same item takes the first one's place, as a transaction has one
    /// write per item.
    fn write(&mut self, write: Write) {
        match self.places.get(&write.key) {
            Some(&place) => self.writes[place] = write,
            None => {
                self.places.insert(write.key.clone(), self.writes.len());
                self.writes.push(write);
            }
        }
    }

    /// Keeps the place of an account, which is written once the last event of it is folded in.
    fn reserve(&mut self, user: &UserId) {
        let key = Key::Account(user.clone());
        if !self.places.contains_key(&key) {
            self.write(Write { key, item: None, condition: Condition::Anything });
        }
    }

    /// Binds a customer or a payment. Where events are known to wait for it, they are freed; where they are
    /// not known, the write's condition fails and the next attempt knows them. So nobody is asked on the way
    /// of an event that nobody waits for.
    fn bind(&mut self, write: Write, items: &HashMap<Key, Item>) {
        let waiting = items.get(&write.key).map(items::waiting).unwrap_or_default();
        if waiting.is_empty() {
            return self.write(write);
        }
        self.freed.extend(waiting.iter().cloned());
        self.write(Write { condition: Condition::Waiting(waiting), ..write });
    }

    /// Notes whose a checkout session is and how its payment stands: of all that was heard of it the most
    /// final word.
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
        let told = SessionPayment::told(session, kind);
        let joined = items::KnownSession {
            user: user.clone(),
            payment: known.as_ref().map_or(told, |known| known.payment.max(told)),
            subscription: known
                .as_ref()
                .and_then(|known| known.subscription.clone())
                .or_else(|| session.subscription.clone()),
        };
        if known.as_ref() != Some(&joined) {
            self.write(items::session(&session.id, &joined));
        }
        Ok(())
    }

    /// Places those who wait, each with what it waits for.
    fn place_waiting(&mut self, items: &HashMap<Key, Item>) {
        for (key, events) in std::mem::take(&mut self.waiting) {
            let item = items.get(&key);
            let known = item.map(items::waiting).unwrap_or_default();
            if self.planned(&key).is_some() {
                // Bound by another event of this very batch.
                self.freed.extend(events);
            } else if item.is_none() || !known.is_empty() {
                self.write(items::wait(key, known, events));
            }
            // Else it is bound and something else is missing: the schedule of `retry` looks again.
        }
    }

    /// The first content of an event stands; another one is kept beside it under an id of its own.
    fn mismatch(&mut self, job: &Job, user: Option<&UserId>, now: Timestamp) -> Done {
        let parked = Parked::PayloadMismatch;
        let mut record = parked_record(job, None, &parked, user, now);
        record.id = items::mismatch_id(&job.event.id, &job.digest);
        self.write(items::event(&record));
        Done::Parked(parked)
    }
}

impl Processor {
    /// Processes a batch; the answers are in the order of the jobs. An error is a job whose effects may or
    /// may not have been written and which must be done again.
    pub async fn run(&self, jobs: &[Job], now: Timestamp) -> Vec<Result<Done, StoreError>> {
        let all: Vec<&Job> = jobs.iter().collect();
        let mut extra = BTreeSet::new();
        if let Ok(done) = self.attempt(&all, &mut extra, now).await {
            return done.into_iter().map(Ok).collect();
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
        let mut answers: Vec<(usize, Result<Done, StoreError>)> =
            outcomes.await.into_iter().flatten().collect();
        answers.sort_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Tries the events of one account until they are written. One that cannot be written is told from the
    /// others.
    async fn persist(
        &self,
        group: &[&Job],
        mut extra: BTreeSet<Link>,
        now: Timestamp,
    ) -> Vec<Result<Done, StoreError>> {
        let mut tried = 0;
        let error = loop {
            tried += 1;
            match self.attempt(group, &mut extra, now).await {
                Ok(done) => return done.into_iter().map(Ok).collect(),
                // Losing a race is mended by another try at once. An absence is not: the SDK has repeated the
                // call by then, and the function's time is bounded. The queue brings the event back.
                Err(error)
                    if tried >= ATTEMPTS
                        || !matches!(error, StoreError::Cancelled(_))
                        || !error.is_transient() =>
                {
                    break error;
                }
                Err(_) => {
                    let jitter = fastrand::u64(0..(10 << tried.min(6)));
                    tokio::time::sleep(Duration::from_millis(5 + jitter)).await;
                }
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
                Ok(done) => done.into_iter().next().ok_or(StoreError::TooMany(0)),
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// One read (two, where an owner is told only by a link), one decision for each event, one transaction.
    /// `extra` collects the keys that a cancelled transaction has shown to matter.
    async fn attempt(
        &self,
        jobs: &[&Job],
        extra: &mut BTreeSet<Link>,
        now: Timestamp,
    ) -> Result<Vec<Done>, StoreError> {
        let first: HashSet<Key> =
            jobs.iter().flat_map(|job| first_keys(&job.event)).chain(extra.iter().map(Link::key)).collect();
        let mut items = self.store.load(first.iter().cloned()).await?;
        let owners: Vec<Owner> =
            jobs.iter().map(|job| owner(&job.event, &items)).collect::<Result<_, _>>()?;
        let needed = jobs.iter().zip(&owners).flat_map(|(job, owner)| owner.keys(&job.event));
        let more: Vec<Key> = needed.filter(|key| !first.contains(key)).collect();
        if !more.is_empty() {
            items.extend(self.store.load(more).await?);
        }
        let plan = self.plan(jobs, &owners, &items, now)?;
        self.resume(jobs, &owners, &plan).await?;
        if plan.writes.is_empty() {
            return Ok(plan.done);
        }
        let keys: Vec<Key> = plan.writes.iter().map(|write| write.key.clone()).collect();
        match self.store.commit(plan.writes).await {
            Ok(()) => {
                self.redrive.freed(&self.store, &plan.freed).await;
                self.outbox.send(&plan.nudges).await;
                Ok(plan.done)
            }
            Err(error) => {
                if let StoreError::Cancelled(reasons) = &error {
                    for (place, reason) in reasons {
                        // By position: an account's version moved or an event's marker is there (a fresh read
                        // tells), an entry exists that was not asked for, a customer is bound to another
                        // user, events wait for what is bound.
                        let failed = keys.get(*place).filter(|_| *reason == Reason::Condition);
                        extra.extend(failed.and_then(Link::of));
                    }
                }
                Err(error)
            }
        }
    }

    /// A redelivered event that turns out to be done: its first attempt may have ended between the commit and
    /// the nudge of its job.
    async fn resume(&self, jobs: &[&Job], owners: &[Owner], plan: &Plan) -> Result<(), StoreError> {
        let pays = |event: &Event| matches!(event.object, Object::CheckoutSession(_) | Object::Invoice(_));
        let again = jobs.iter().zip(owners).zip(&plan.done);
        let again =
            again.filter(|((job, _), done)| job.attempt > 1 && **done == Done::Duplicate && pays(&job.event));
        let users: BTreeSet<UserId> = again.filter_map(|((_, owner), _)| owner.user().cloned()).collect();
        if users.is_empty() { Ok(()) } else { self.outbox.resume(&self.store, users).await }
    }

    /// Reads what deciding about each event takes, and writes nothing. The link of an event's customer is
    /// looked at even where the event names a user, because the link goes first.
    ///
    /// # Errors
    /// [`StoreError`] for all when the tables cannot be read, for one when an item of its account cannot.
    pub async fn look(&self, events: &[&Event]) -> Result<Vec<Result<Seen, StoreError>>, StoreError> {
        let link = |event: &Event| event.customer().cloned().map(Key::Customer);
        let first: HashSet<Key> =
            events.iter().flat_map(|event| first_keys(event).into_iter().chain(link(event))).collect();
        let mut items = self.store.load(first.iter().cloned()).await?;
        let owners: Vec<Result<Owner, StoreError>> =
            events.iter().map(|event| owner(event, &items)).collect();
        let told =
            events.iter().zip(&owners).filter_map(|(event, owner)| Some((event, owner.as_ref().ok()?)));
        let more: HashSet<Key> =
            told.flat_map(|(event, owner)| owner.keys(event)).filter(|key| !first.contains(key)).collect();
        if !more.is_empty() {
            items.extend(self.store.load(more).await?);
        }
        let seen = |owner: Result<Owner, StoreError>| match owner? {
            Owner::User(user, grant) => Ok(Seen::Account(Box::new(load_account(&user, &items)?), grant)),
            Owner::Nobody(parked) => Ok(Seen::Nobody(parked)),
        };
        Ok(owners.into_iter().map(seen).collect())
    }

    fn plan(
        &self,
        jobs: &[&Job],
        owners: &[Owner],
        items: &HashMap<Key, Item>,
        now: Timestamp,
    ) -> Result<Plan, StoreError> {
        let mut plan = Plan::default();
        let mut accounts: BTreeMap<UserId, (Account, u64, Before)> = BTreeMap::new();
        for (job, owner) in jobs.iter().zip(owners) {
            let marker = Key::event(&job.event.id);
            if plan.places.contains_key(&marker) {
                let first = jobs.iter().find(|other| other.event.id == job.event.id);
                let differs = first.is_some_and(|first| {
                    first.digest != job.digest && first.event.api_version == job.event.api_version
                });
                let done = if differs { plan.mismatch(job, owner.user(), now) } else { Done::Duplicate };
                plan.done.push(done);
                continue;
            }
            let known = items.get(&marker).map(|item| items::read_event(&marker, item)).transpose()?;
            if let Some(known) = &known {
                if known.digest != job.digest && known.api_version == job.event.api_version {
                    let parked = plan.mismatch(job, owner.user(), now);
                    plan.done.push(parked);
                    continue;
                }
                if known.finished {
                    plan.done.push(Done::Duplicate);
                    continue;
                }
            }
            let outcome = match (self.wrong_mode(job), owner) {
                (true, _) => Outcome::Ignore(Ignored::Livemode),
                (false, Owner::Nobody(_)) if matches!(job.event.kind, EventType::Other(_)) => {
                    Outcome::Ignore(Ignored::Type)
                }
                (false, Owner::Nobody(parked)) => Outcome::Park(parked.clone()),
                (false, Owner::User(user, grant)) => {
                    if !accounts.contains_key(user) {
                        let account = load_account(user, items)?;
                        let (version, before) =
                            (account.version, self.outbox.before(&account.state, &self.catalog, now));
                        accounts.insert(user.clone(), (account, version, before));
                    }
                    match accounts.get(user) {
                        Some((account, ..)) => match &job.repair {
                            Some(repair) if !repair.as_itself => {
                                drift::repair(account, &job.event, &self.catalog, now)
                            }
                            Some(_) | None => decide(account, &job.event, grant.as_ref(), &self.catalog, now),
                        },
                        None => Outcome::Park(Parked::NoUser(None)),
                    }
                }
            };
            match outcome {
                Outcome::Park(Parked::NoUser(_)) if job.attempt == 1 => plan.done.push(Done::NotYet),
                Outcome::Park(parked) => {
                    if let Some(key) = waited_for(&parked) {
                        plan.waiting.entry(key).or_default().insert(job.event.id.to_string());
                    }
                    let mut record = parked_record(job, known.as_ref(), &parked, owner.user(), now);
                    // It joins its user's list, unless parking it would be all that makes the account.
                    let stored = |account: &Account| {
                        account.version > 0
                            || plan.places.contains_key(&Key::Account(account.user_id.clone()))
                    };
                    let account =
                        owner.user().and_then(|user| accounts.get_mut(user)).map(|(account, ..)| account);
                    if let Some(account) =
                        account.filter(|account| stored(account) && record.previous.is_none())
                    {
                        record.previous = Some(enlist(account, &job.event.id));
                        plan.reserve(&account.user_id);
                    }
                    plan.write(items::event(&record));
                    plan.done.push(Done::Parked(parked));
                }
                Outcome::Ignore(ignored) => {
                    let record =
                        record(job, known.as_ref(), EventState::Ignored, ignored.as_str(), owner.user(), now);
                    plan.write(items::event(&record));
                    plan.done.push(Done::Ignored(ignored));
                }
                Outcome::Apply(mut applied) => {
                    if let Some(repair) = job.repair.as_ref().filter(|repair| !repair.as_itself) {
                        applied
                            .change
                            .entries
                            .iter_mut()
                            .for_each(|entry| entry.cause.clone_from(&repair.by));
                    }
                    let Some((user, (account, ..))) =
                        owner.user().and_then(|user| Some((user, accounts.get_mut(user)?)))
                    else {
                        continue;
                    };
                    *account = account.after(&applied.change);
                    for entry in &applied.change.entries {
                        plan.write(items::entry(user, entry)?);
                    }
                    for (grant, reversal) in &applied.change.reversals {
                        plan.write(items::reversal(user, grant, reversal)?);
                    }
                    for customer in &applied.links {
                        let link = items::customer(customer, user);
                        // Two users claim one customer in one batch: done one after the other, the second
                        // finds whose it is.
                        if plan.planned(&link.key).is_some_and(|planned| planned.item != link.item) {
                            return Err(StoreError::Cancelled(vec![(0, Reason::Conflict)]));
                        }
                        plan.bind(link, items);
                    }
                    for (payment, grant) in &applied.payments {
                        plan.bind(items::payment(payment, user, grant), items);
                    }
                    if let Some(order) = &applied.order {
                        plan.write(items::order(user, order));
                    }
                    if let Object::CheckoutSession(session) = &job.event.object {
                        plan.session(session, &job.event.kind, user, items)?;
                    }
                    let mut record = record(
                        job,
                        known.as_ref(),
                        EventState::Processed,
                        applied.effect.as_str(),
                        Some(user),
                        now,
                    );
                    record.payload = if self.keep_payloads { payload::keep(&job.raw) } else { None };
                    record.previous.get_or_insert_with(|| enlist(account, &job.event.id));
                    plan.write(items::event(&record));
                    plan.reserve(user);
                    plan.done.push(Done::Processed(user.clone(), applied.effect));
                }
            }
        }
        plan.place_waiting(items);
        for (user, (mut account, loaded_version, before)) in accounts {
            if plan.places.contains_key(&Key::Account(user.clone())) {
                for (nudge, job) in self.outbox.jobs(&user, &before, &account.state, &self.catalog, now) {
                    plan.write(job);
                    plan.nudges.insert(nudge);
                }
                account.version = loaded_version + 1;
                plan.write(items::account(&account, loaded_version, &self.catalog, now)?);
            }
        }
        Ok(plan)
    }

    fn wrong_mode(&self, job: &Job) -> bool {
        !job.mode.allows(job.event.livemode)
            || self.livemode.is_some_and(|livemode| livemode != job.event.livemode)
    }
}

/// A key that a cancelled transaction has shown to matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Customer(CustomerId),
    Payment(String),
    Entry(UserId, LedgerKey),
}

impl Link {
    fn of(key: &Key) -> Option<Self> {
        match key {
            Key::Customer(customer) => Some(Self::Customer(customer.clone())),
            Key::Payment(payment) => Some(Self::Payment(payment.clone())),
            Key::Entry(user, entry) => Some(Self::Entry(user.clone(), entry.clone())),
            Key::Account(_)
            | Key::Reversal(..)
            | Key::Order(..)
            | Key::Portal(_)
            | Key::Session(_)
            | Key::Event(_) => None,
        }
    }

    fn key(&self) -> Key {
        match self {
            Self::Customer(customer) => Key::Customer(customer.clone()),
            Self::Payment(payment) => Key::Payment(payment.clone()),
            Self::Entry(user, entry) => Key::Entry(user.clone(), entry.clone()),
        }
    }
}

/// Whose an event is, and the grant that its payment paid for.
enum Owner {
    User(UserId, Option<LedgerKey>),
    Nobody(Parked),
}

impl Owner {
    fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user, _) => Some(user),
            Self::Nobody(_) => None,
        }
    }

    /// What must be loaded to decide for this owner.
    fn keys(&self, event: &Event) -> Vec<Key> {
        let Self::User(user, grant) = self else { return Vec::new() };
        let mut keys = account_keys(user, event);
        if let Some(grant) = grant {
            keys.push(Key::Entry(user.clone(), grant.clone()));
            keys.push(Key::Reversal(user.clone(), grant.clone()));
        }
        keys
    }
}

/// Groups what is likely to touch the same account.
fn account_hint(event: &Event) -> String {
    match (event.user_hint(), event.customer()) {
        (Ok(Some(user)), _) => user.to_string(),
        (_, Some(customer)) => customer.to_string(),
        (_, None) => payment_refs(event)
            .first()
            .map_or_else(|| event.id.to_string(), |payment| payment.as_str().to_owned()),
    }
}

/// What the first read asks for. A customer's link is read only where the event names no user: where it does,
/// the account knows its customers, and binding a new one fails in the transaction if it is another user's.
fn first_keys(event: &Event) -> Vec<Key> {
    let mut keys = vec![Key::event(&event.id)];
    match event.user_hint() {
        Ok(Some(user)) => keys.extend(account_keys(&user, event)),
        Ok(None) | Err(_) => keys.extend(event.customer().cloned().map(Key::Customer)),
    }
    keys.extend(payment_refs(event).iter().map(Key::payment));
    if let Object::CheckoutSession(session) = &event.object {
        keys.push(Key::Session(session.id.clone()));
    }
    keys
}

fn account_keys(user: &UserId, event: &Event) -> Vec<Key> {
    let mut keys = vec![Key::Account(user.clone())];
    for key in ledger_keys(event) {
        if payment_refs(event).is_empty() {
            keys.push(Key::Entry(user.clone(), key));
        } else {
            keys.push(Key::Reversal(user.clone(), key.clone()));
            keys.push(Key::Entry(user.clone(), key));
        }
    }
    keys
}

/// The first of: the user the customer is bound to, the user the payment is known for, the user the event
/// names.
fn owner(event: &Event, items: &HashMap<Key, Item>) -> Result<Owner, StoreError> {
    let mut grant = None;
    let mut payer = None;
    for payment in payment_refs(event) {
        let key = Key::payment(&payment);
        let Some(item) = items.get(&key) else { continue };
        payer = items::read_user(&key, item)?;
        if payer.is_some() {
            grant = Some(items::read_grant(&key, item)?);
            break;
        }
    }
    let link = event.customer().cloned().map(Key::Customer);
    let bound = match link.as_ref().and_then(|key| Some((key, items.get(key)?))) {
        Some((key, item)) => items::read_user(key, item)?,
        None => None,
    };
    let named = match event.user_hint() {
        Ok(named) => named,
        Err(_) if bound.is_none() && payer.is_none() => return Ok(Owner::Nobody(Parked::InvalidUser)),
        Err(_) => None,
    };
    Ok(match payer.or(bound).or(named) {
        Some(user) => Owner::User(user, grant),
        None => Owner::Nobody(match payment_refs(event).first() {
            Some(payment) if event.customer().is_none() => Parked::NoGrant(payment.as_str().to_owned()),
            _ => Parked::NoUser(event.customer().cloned()),
        }),
    })
}

fn load_account(user: &UserId, items: &HashMap<Key, Item>) -> Result<Account, StoreError> {
    let key = Key::Account(user.clone());
    let mut account = match items.get(&key) {
        Some(item) => items::read_account(user, item)?,
        None => Account::new(user.clone()),
    };
    for (key, item) in items {
        match key {
            Key::Entry(owner, entry) if owner == user => {
                account.recorded.insert(entry.clone(), items::read(key, item)?);
            }
            Key::Reversal(owner, grant) if owner == user => {
                account.reversals.insert(grant.clone(), items::read(key, item)?);
            }
            Key::Entry(..)
            | Key::Reversal(..)
            | Key::Account(_)
            | Key::Order(..)
            | Key::Portal(_)
            | Key::Customer(_)
            | Key::Session(_)
            | Key::Payment(_)
            | Key::Event(_) => {}
        }
    }
    Ok(account)
}

/// The customer or payment that a parked event waits for.
fn waited_for(parked: &Parked) -> Option<Key> {
    match parked {
        Parked::NoUser(Some(customer)) => Some(Key::Customer(customer.clone())),
        Parked::NoGrant(payment) => Some(Key::Payment(payment.clone())),
        Parked::NoUser(None)
        | Parked::InvalidUser
        | Parked::UnknownPrice(_)
        | Parked::UnknownName(..)
        | Parked::Unnamed
        | Parked::Truncated
        | Parked::Quantity(_)
        | Parked::NoPeriod
        | Parked::Conflict(_)
        | Parked::PayloadMismatch
        | Parked::Message(_)
        | Parked::Unreadable(_) => None,
    }
}

/// Makes an event the newest of its user's list; returns the one before it, empty for the first.
fn enlist(account: &mut Account, event: &EventId) -> String {
    account.state.last_event.replace(event.clone()).map_or_else(String::new, |previous| previous.to_string())
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
