//! `retry`, every 15 minutes: sends due events again and updates accounts that changed by time alone.
//!
//! | event | when it is sent again |
//! |---|---|
//! | parked, waits for a customer or a user | when the customer is linked or the user exists |
//! | parked, waits for a price or a name of the catalog | when the catalog has it, or the price is learnt |
//! | parked, waits for a payment | when the payment is known, or after its pause |
//! | parked for another reason | after its pause: 15 minutes, doubled each time, at most a day |
//! | parked as an unreadable message or as a second content | never |
//! | failed | after its pause, at most [`MAX_FAILED_REDRIVES`] times; then an operator decides |
//!
//! An event that was sent again and parked again always waits for its pause. Before a run sends an event, it
//! claims the event: it increments the count of redrives on condition that the count is unchanged. So two
//! concurrent runs never send an event twice. If the message of a claimed event is lost, the event waits one
//! pause longer. A run reads and sends a limited number of events; the next run continues.
//!
//! `retry` also sends the messages of due outbox jobs again: the first message was lost, or the function
//! ended.
//!
//! An account that time alone changes (the end of a grace or a cancellation, a month of a paid period that
//! begins, credits that expire) is in the index `by_due` until it is written. Other accounts are not in this
//! index, so a run without work costs eight queries of an empty index.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::future::join_all;
use serde::Serialize;
use tracing::{info, warn};

use crate::accounts::Accounts;
use crate::resend::redrive::{Redrive, RedriveOutcome};
use crate::resend::sweep::{self, SweepReport};
use tallyhook_aws::store::StoreError;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::log::{self, Filter, LogRecord, Range};
use tallyhook_core::account::Cause;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::ids::{CustomerId, UserId};
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::timestamp::Timestamp;

/// How often a failed event is sent again.
pub const MAX_FAILED_REDRIVES: u32 = 5;
/// Events that one request of an operator sends, within the half minute that API Gateway waits.
const MAX_SENT: usize = 500;
/// Events that one scheduled run sends, so that the events of a day of outage are sent within some hours.
const MAX_DUE: usize = 5_000;
/// Pages of 500 open events that one run reads.
const MAX_PAGES: usize = 100;
/// Accounts that one run writes.
const MAX_LAPSED: usize = 500;
/// How many days after the end of its access an account is still found.
const LAPSED_DAYS: i64 = 7;

/// The use case: finds what is due and sends it.
#[derive(Clone)]
pub struct Retrier {
    accounts: Accounts,
    redrive: Redrive,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetryReport {
    /// Open events that were read.
    pub looked_at: usize,
    /// Events that were sent to their queue.
    pub sent: usize,
    /// Events that wait: for something that is missing, for a later time, or for an operator.
    pub waiting: usize,
    /// Due events that could not be sent: no body in the log, or the queue did not take them.
    pub not_sent: usize,
    /// Accounts that were written because their access had ended.
    pub lapsed: usize,
    /// What the sweep after a change of the catalog did.
    #[serde(skip)]
    pub swept: SweepReport,
    /// Outbox jobs whose message was sent again.
    pub jobs: usize,
    /// Whether the run stopped at one of its limits.
    pub more: bool,
}

/// The customers, payments and users that events wait for and that exist, as `waits_for` names them.
struct Available {
    waits_for: HashSet<String>,
}

impl Retrier {
    /// A retrier for these accounts; it sends with `redrive`.
    pub fn new(accounts: Accounts, redrive: Redrive) -> Self {
        Self { accounts, redrive }
    }

    /// The same retrier with the stored catalog.
    #[must_use]
    pub async fn with_fresh_catalog(&self) -> Self {
        Self { accounts: self.accounts.with_fresh_catalog().await, redrive: self.redrive.clone() }
    }

    /// Does one run.
    ///
    /// # Errors
    /// [`StoreError`]; what was done before stays done.
    pub async fn run(&self, now: Timestamp) -> Result<RetryReport, StoreError> {
        let mut report = RetryReport::default();
        self.redrive_due(now, &mut report).await?;
        self.write_lapsed(now, &mut report).await?;
        report.swept = sweep::run(&self.accounts, now).await?;
        report.jobs = self.accounts.outbox.send_due(&self.accounts.store, now).await?;
        info!(
            looked_at = report.looked_at,
            sent = report.sent,
            waiting = report.waiting,
            not_sent = report.not_sent,
            lapsed = report.lapsed,
            jobs = report.jobs,
            more = report.more,
            "RETRY_DONE"
        );
        Ok(report)
    }

    /// Sends every open event that a filter selects, due or not, oldest first, for an operator.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn redrive_matching(&self, filter: &Filter, now: Timestamp) -> Result<RetryReport, StoreError> {
        let mut found = Vec::new();
        for state in ["failed", "parked"] {
            if filter.status.as_deref().is_none_or(|status| status == state) {
                let partitions = log::open_partitions(state);
                let partitions = partitions.iter().map(|partition| self.oldest(partition, filter));
                for records in join_all(partitions).await {
                    found.extend(records?);
                }
            }
        }
        found.sort_by(|a, b| (a.created, a.received_ms, &a.id).cmp(&(b.created, b.received_ms, &b.id)));
        let mut report = RetryReport { more: found.len() > MAX_SENT, ..RetryReport::default() };
        found.truncate(MAX_SENT);
        report.looked_at = found.len();
        self.send(&found, now, &mut report).await?;
        Ok(report)
    }

    /// The oldest events of a partition that a filter selects: one more than a request sends, if there are so
    /// many.
    async fn oldest(&self, partition: &str, filter: &Filter) -> Result<Vec<LogRecord>, StoreError> {
        let from = filter.from_ms.unwrap_or(0);
        let to = filter.to_ms.unwrap_or(i64::MAX);
        let range = Range { index: "by_status", partition, from, to, newest_first: false };
        let (mut found, mut start): (Vec<LogRecord>, _) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let (items, more) = self.accounts.store.query(&range, Some(500), start).await?;
            found.extend(items.iter().filter_map(LogRecord::read).filter(|record| filter.takes(record)));
            start = more;
            if start.is_none() || found.len() > MAX_SENT {
                break;
            }
        }
        Ok(found)
    }

    /// The parked events that wait for something that this catalog has and `before` does not have, and
    /// whether there may be more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn freed_by_catalog(
        &self,
        before: &Catalog,
        now: Timestamp,
    ) -> Result<(Vec<LogRecord>, bool), StoreError> {
        let filter = Filter { status: Some("parked".to_owned()), ..Filter::default() };
        let (mut freed, mut next) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let store = &self.accounts.store;
            let page = match log::list(store, &filter, log::MAX_LISTED, next.as_deref(), now).await {
                Ok(page) => page,
                Err(log::ListError::Store(error)) => return Err(error),
                Err(log::ListError::Cursor) => break,
            };
            freed.extend(page.events.into_iter().filter(|record| {
                let waits_for = record.waits_for.as_deref().and_then(|waits_for| waits_for.split_once('#'));
                waits_for.is_some_and(|waits_for| {
                    sells(&self.accounts.catalog, waits_for) && !sells(before, waits_for)
                })
            }));
            next = page.next;
            if next.is_none() || freed.len() >= MAX_SENT {
                break;
            }
        }
        Ok((freed, next.is_some()))
    }

    /// Sends these events now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn send_records(
        &self,
        records: &[LogRecord],
        now: Timestamp,
    ) -> Result<RetryReport, StoreError> {
        let mut report = RetryReport::default();
        self.send(records, now, &mut report).await?;
        Ok(report)
    }

    /// Sends the event with this id, unless it is processed or ignored. A dismissed event is opened again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn redrive_one(&self, id: &str, now: Timestamp) -> Result<RedriveOutcome, StoreError> {
        self.redrive.reopen(&self.accounts.store, id, now).await?;
        Ok(self
            .redrive
            .send(&self.accounts.store, &[id.to_owned()])
            .await?
            .into_iter()
            .next()
            .unwrap_or(RedriveOutcome::Unknown))
    }

    async fn redrive_due(&self, now: Timestamp, report: &mut RetryReport) -> Result<(), StoreError> {
        let mut partitions: Vec<String> =
            ["failed", "parked"].into_iter().flat_map(log::open_partitions).collect();
        // In a random order, so that runs that stop at a limit do not always leave out the same events.
        fastrand::shuffle(&mut partitions);
        let mut pages = 0;
        for partition in &partitions {
            let mut start = None;
            loop {
                if pages == MAX_PAGES || report.sent >= MAX_DUE {
                    report.more = true;
                    return Ok(());
                }
                pages += 1;
                let range =
                    Range { index: "by_status", partition, from: 0, to: i64::MAX, newest_first: false };
                let (found, more) = self.accounts.store.query(&range, Some(500), start).await?;
                let records: Vec<LogRecord> = found.iter().filter_map(LogRecord::read).collect();
                report.looked_at += records.len();
                let available = self.available(&records).await?;
                let (due, waiting): (Vec<LogRecord>, Vec<LogRecord>) =
                    records.into_iter().partition(|record| self.is_due(record, &available, now));
                report.waiting += waiting.len();
                self.send(&due, now, report).await?;
                start = more;
                if start.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Finds which of the customers, payments and users that these events wait for exist, with one consistent
    /// read.
    async fn available(&self, records: &[LogRecord]) -> Result<Available, StoreError> {
        let keys: BTreeMap<Key, &str> = records
            .iter()
            .filter_map(|record| {
                let waits_for = record.waits_for.as_deref()?;
                let key = match waits_for.split_once('#')? {
                    ("customer", id) => Key::Customer(CustomerId::new(id).ok()?),
                    ("payment", id) => Key::Payment(id.to_owned()),
                    ("user", id) => Key::Account(UserId::new(id).ok()?),
                    _ => return None,
                };
                Some((key, waits_for))
            })
            .collect();
        let found = if keys.is_empty() {
            HashMap::new()
        } else {
            self.accounts.store.load(keys.keys().cloned()).await?
        };
        let existing = keys.into_iter().filter(|(key, _)| {
            found.get(key).is_some_and(|item| {
                matches!(key, Key::Account(_)) || matches!(items::read_user(key, item), Ok(Some(_)))
            })
        });
        Ok(Available { waits_for: existing.map(|(_, waits_for)| waits_for.to_owned()).collect() })
    }

    fn is_due(&self, record: &LogRecord, available: &Available, now: Timestamp) -> bool {
        if matches!(record.reason.as_deref(), Some("message" | "payload_mismatch")) {
            return false;
        }
        let rested = record.due_ms.is_none_or(|due| due <= now.unix().saturating_mul(1000));
        if record.status == "failed" {
            return rested && record.redrives < MAX_FAILED_REDRIVES;
        }
        let waits_for = record.waits_for.as_deref().and_then(|waits_for| waits_for.split_once('#'));
        let exists = match waits_for {
            None => return rested,
            Some(("payment", _)) if rested => return true,
            Some(("customer" | "payment" | "user", _)) => {
                record.waits_for.as_ref().is_some_and(|waits_for| available.waits_for.contains(waits_for))
            }
            Some(("price", price)) => {
                let catalog = &self.accounts.catalog;
                let learnt_ms = catalog.learnt().get(price).map(|one| one.at.unix().saturating_mul(1000));
                // It was parked before the price was learnt.
                if learnt_ms.is_some_and(|learnt_ms| learnt_ms >= record.finished_ms) {
                    return sells(catalog, ("price", price));
                }
                // A snapshot of the subscription may have shown the lookup key of the price.
                sells(catalog, ("price", price)) || catalog.has_lookup_keys()
            }
            Some(name @ ("pack" | "product" | "mode" | "plan", _)) => sells(&self.accounts.catalog, name),
            Some(_) => return rested,
        };
        exists && (record.redrives == 0 || rested)
    }

    /// Claims and sends these events, 25 at a time.
    async fn send(
        &self,
        due: &[LogRecord],
        now: Timestamp,
        report: &mut RetryReport,
    ) -> Result<(), StoreError> {
        for chunk in due.chunks(25) {
            let claims =
                join_all(chunk.iter().map(|record| self.accounts.store.claim_redrive(record, now))).await;
            let mut ids = Vec::new();
            for (record, claimed) in chunk.iter().zip(claims) {
                if claimed? {
                    ids.push(record.id.clone());
                }
            }
            if ids.is_empty() {
                continue;
            }
            for outcome in self.redrive.send(&self.accounts.store, &ids).await? {
                match outcome {
                    RedriveOutcome::Queued => report.sent += 1,
                    RedriveOutcome::Finished => {}
                    RedriveOutcome::Unknown | RedriveOutcome::NotSendable | RedriveOutcome::NotQueued => {
                        report.not_sent += 1;
                    }
                }
            }
        }
        Ok(())
    }

    async fn write_lapsed(&self, now: Timestamp, report: &mut RetryReport) -> Result<(), StoreError> {
        for back in 0..=LAPSED_DAYS {
            let mut start = None;
            loop {
                let (users, next) = self.accounts.store.due(back, now, start).await?;
                for user in users {
                    if report.lapsed >= MAX_LAPSED {
                        report.more = true;
                        return Ok(());
                    }
                    if self.write_due(&user, now).await? {
                        report.lapsed += 1;
                    }
                }
                start = next;
                if start.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes the state of an account at this time. `false` when another writer already did, or when the
    /// account cannot be written.
    async fn write_due(&self, user: &UserId, now: Timestamp) -> Result<bool, StoreError> {
        let written = async {
            let mut change = self.accounts.change(user, &[], now);
            loop {
                let account = change.read().await?;
                let item = change.items.get(&Key::Account(user.clone()));
                let due_at = item.and_then(|item| items::read_number(item, "due_at"));
                if due_at.is_none_or(|due_at: i64| due_at > now.unix()) {
                    return Ok(None);
                }
                let tier = item.and_then(|item| items::read_text(item, "tier"));
                let cause =
                    Cause { by: "schedule".to_owned(), adjust_key: LedgerKey::due(now), created: now };
                let catalog = &self.accounts.catalog;
                let Ok(due) = account.evolve(Vec::new(), &cause, catalog, now) else {
                    return Ok(None);
                };
                if change.commit(&due, Vec::new()).await? {
                    let after = due.state.access(catalog, now).tier;
                    return Ok(Some((tier.as_ref() != Some(&after), due.entries.len())));
                }
            }
        };
        match written.await {
            Ok(Some((tier_changed, entries))) => {
                if tier_changed {
                    info!(user_id = user.as_str(), "ACCESS_ENDED");
                }
                if entries > 0 {
                    info!(user_id = user.as_str(), entries, "CREDITS_DUE");
                }
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(StoreError::Cancelled(_)) => Ok(false),
            Err(error @ StoreError::Unavailable { .. }) => Err(error),
            Err(error) => {
                warn!(user_id = user.as_str(), error = error.to_string(), "ACCESS_NOT_WRITTEN");
                Ok(false)
            }
        }
    }
}

/// Whether a catalog has what an event waits for.
fn sells(catalog: &Catalog, waits_for: (&str, &str)) -> bool {
    match waits_for {
        ("catalog", _) => !catalog.is_absent(),
        ("price", price) => !matches!(catalog.offer(price, None, None), Ok(None)),
        ("pack", name) => catalog.pack(name).is_some(),
        ("product", name) => catalog.product(name).is_some(),
        ("mode", name) => catalog.order(name).is_some(),
        ("plan", name) => catalog.orders.iter().any(|order| order.plans.contains_key(name)),
        _ => false,
    }
}
