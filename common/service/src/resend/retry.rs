//! `retry`, every 15 minutes: sends again what is due, and writes what time alone has changed.
//!
//! | event | when it is sent again |
//! |---|---|
//! | parked, waits for a customer | when the customer is bound: read again at every run |
//! | parked, waits for a price or a name of the catalog | when the catalog has it: so the first run after a deploy frees it |
//! | parked, waits for a payment | when the payment is known, or after its pause |
//! | parked for another reason | after its pause: a quarter of an hour, doubled each time, at most a day |
//! | parked as a message or a second content that must not be applied | never |
//! | failed | after its pause, [`MOST_FAILED_REDRIVES`] times; then a person decides |
//!
//! What was sent once and is parked again waits for its pause, whatever it waits for. A run claims an event
//! by raising its count of redrives, on condition that nobody else did, before it sends it: two runs at once
//! send nothing twice. A claim whose message is lost costs a pause. A run looks at a bounded number of events
//! and sends a bounded number; the next one goes on.
//!
//! Jobs of the outbox that are due get their message sent again: it was lost, or the function was killed.
//!
//! An account whose access has ended by time (the grace of an unpaid period, a cancellation) is in the index
//! `by_lapse` until it is written again; nothing else is, so a run with nothing to do costs eight queries of
//! an empty index.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::future::join_all;
use serde::Serialize;
use tracing::{info, warn};

use crate::accounts::Accounts;
use crate::resend::redrive::{Redrive, Resent};
use tallyhook_aws::store::StoreError;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::log::{self, Filter, Line, Range};
use tallyhook_core::account::Cause;
use tallyhook_core::ids::{CustomerId, UserId};
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::timestamp::Timestamp;

/// A failed event is sent again so often.
pub const MOST_FAILED_REDRIVES: u32 = 5;
/// What an operator asks for sends so many, within the half minute that API Gateway waits.
const MOST_SENT: usize = 500;
/// A run of the schedule sends so many: what a day of outage left is gone in some hours.
const MOST_DUE: usize = 5_000;
/// One run reads so many pages of open events, of 500 each.
const MOST_PAGES: usize = 100;
/// One run writes so many accounts.
const MOST_LAPSED: usize = 500;
/// An account is found for so many days after its access ended.
const LAPSED_DAYS: i64 = 7;

/// The function.
pub struct Retrier {
    accounts: Accounts,
    redrive: Redrive,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetryReport {
    /// Open events that were looked at.
    pub looked_at: usize,
    /// Of those, sent to their queue.
    pub sent: usize,
    /// Those that wait for something that is not there yet, for a later time, or for a person.
    pub waiting: usize,
    /// Those that were due and could not be sent: no body in the log, or a queue that did not take it.
    pub not_sent: usize,
    /// Accounts whose access had ended and was written.
    pub lapsed: usize,
    /// Jobs of the outbox whose message was sent again.
    pub jobs: usize,
    /// Whether the run stopped at one of its bounds.
    pub more: bool,
}

/// What the run knows of the things events wait for.
struct Known {
    bound: HashSet<String>,
}

impl Retrier {
    /// Over the store, the queues and what is sold.
    pub fn new(accounts: Accounts, redrive: Redrive) -> Self {
        Self { accounts, redrive }
    }

    /// One run.
    ///
    /// # Errors
    /// [`StoreError`]; what was done until then stands.
    pub async fn run(&self, now: Timestamp) -> Result<RetryReport, StoreError> {
        let mut report = RetryReport::default();
        self.redrive_due(now, &mut report).await?;
        self.write_lapsed(now, &mut report).await?;
        report.jobs = self.accounts.outbox.nudge_due(&self.accounts.store, now).await?;
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

    /// Sends every open event that a filter takes, due or not: what an operator asks for.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn redrive_matching(&self, filter: &Filter, now: Timestamp) -> Result<RetryReport, StoreError> {
        let mut report = RetryReport::default();
        for state in ["failed", "parked"] {
            if filter.status.as_deref().is_some_and(|status| status != state) {
                continue;
            }
            let filter = Filter { status: Some(state.to_owned()), ..filter.clone() };
            let mut next = None;
            loop {
                let page =
                    match log::list(&self.accounts.store, &filter, log::MOST_LISTED, next.as_deref(), now)
                        .await
                    {
                        Ok(page) => page,
                        Err(log::ListError::Store(error)) => return Err(error),
                        Err(log::ListError::Cursor) => break,
                    };
                report.looked_at += page.events.len();
                self.send(&page.events, now, &mut report).await?;
                next = page.next;
                if next.is_none() {
                    break;
                }
                if report.sent + report.not_sent >= MOST_SENT {
                    report.more = true;
                    return Ok(report);
                }
            }
        }
        Ok(report)
    }

    /// Sends these events, whatever their state, by id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn redrive_one(&self, id: &str) -> Result<Resent, StoreError> {
        Ok(self
            .redrive
            .send(&self.accounts.store, &[id.to_owned()])
            .await?
            .into_iter()
            .next()
            .unwrap_or(Resent::Unknown))
    }

    async fn redrive_due(&self, now: Timestamp, report: &mut RetryReport) -> Result<(), StoreError> {
        let mut partitions: Vec<String> =
            ["failed", "parked"].into_iter().flat_map(log::open_partitions).collect();
        // A run that ends at a bound does not always end at the same one.
        fastrand::shuffle(&mut partitions);
        let mut pages = 0;
        for partition in &partitions {
            let mut start = None;
            loop {
                if pages == MOST_PAGES || report.sent >= MOST_DUE {
                    report.more = true;
                    return Ok(());
                }
                pages += 1;
                let range =
                    Range { index: "by_status", partition, from: 0, to: i64::MAX, newest_first: false };
                let (found, more) = self.accounts.store.query(&range, Some(500), start).await?;
                let lines: Vec<Line> = found.iter().filter_map(Line::read).collect();
                report.looked_at += lines.len();
                let known = self.know(&lines).await?;
                let (due, waiting): (Vec<Line>, Vec<Line>) =
                    lines.into_iter().partition(|line| self.is_due(line, &known, now));
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

    /// Which of the customers and payments that these events wait for are somebody's: one consistent read for
    /// all.
    async fn know(&self, lines: &[Line]) -> Result<Known, StoreError> {
        let keys: BTreeMap<Key, &str> = lines
            .iter()
            .filter_map(|line| {
                let waits_for = line.waits_for.as_deref()?;
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
        let bound = keys.into_iter().filter(|(key, _)| {
            found.get(key).is_some_and(|item| {
                matches!(key, Key::Account(_)) || matches!(items::read_user(key, item), Ok(Some(_)))
            })
        });
        Ok(Known { bound: bound.map(|(_, waits_for)| waits_for.to_owned()).collect() })
    }

    fn is_due(&self, line: &Line, known: &Known, now: Timestamp) -> bool {
        if matches!(line.reason.as_deref(), Some("message" | "payload_mismatch")) {
            return false;
        }
        let rested = line.due_ms.is_none_or(|due| due <= now.unix().saturating_mul(1000));
        if line.status == "failed" {
            return rested && line.redrives < MOST_FAILED_REDRIVES;
        }
        let waits_for = line.waits_for.as_deref().and_then(|waits_for| waits_for.split_once('#'));
        let there = match waits_for {
            None => return rested,
            Some(("payment", _)) if rested => return true,
            Some(("customer" | "payment" | "user", _)) => {
                line.waits_for.as_ref().is_some_and(|waits_for| known.bound.contains(waits_for))
            }
            Some(("price", price)) => {
                self.accounts.catalog.plan_of_price(price).is_some()
                    || self.accounts.catalog.pack_of_price(price).is_some()
            }
            Some(("pack", name)) => self.accounts.catalog.pack(name).is_some(),
            Some(("mode", name)) => self.accounts.catalog.order(name).is_some(),
            Some(("plan", name)) => {
                self.accounts.catalog.orders.iter().any(|order| order.plans.contains_key(name))
            }
            Some(_) => return rested,
        };
        there && (line.redrives == 0 || rested)
    }

    /// Claims and sends, so many at a time as a function keeps apart easily.
    async fn send(&self, due: &[Line], now: Timestamp, report: &mut RetryReport) -> Result<(), StoreError> {
        for chunk in due.chunks(25) {
            let claims =
                join_all(chunk.iter().map(|line| self.accounts.store.claim_redrive(line, now))).await;
            let mut ids = Vec::new();
            for (line, claimed) in chunk.iter().zip(claims) {
                if claimed? {
                    ids.push(line.id.clone());
                }
            }
            if ids.is_empty() {
                continue;
            }
            for resent in self.redrive.send(&self.accounts.store, &ids).await? {
                match resent {
                    Resent::Queued => report.sent += 1,
                    Resent::Finished => {}
                    Resent::Unknown | Resent::NotSendable | Resent::NotQueued => report.not_sent += 1,
                }
            }
        }
        Ok(())
    }

    async fn write_lapsed(&self, now: Timestamp, report: &mut RetryReport) -> Result<(), StoreError> {
        for back in 0..=LAPSED_DAYS {
            let mut start = None;
            loop {
                let (users, next) = self.accounts.store.lapsed(back, now, start).await?;
                for user in users {
                    if report.lapsed >= MOST_LAPSED {
                        report.more = true;
                        return Ok(());
                    }
                    if self.write_access(&user, now).await? {
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

    /// Writes an account as it stands at this time; `false` when somebody else just did, or when it cannot
    /// be.
    async fn write_access(&self, user: &UserId, now: Timestamp) -> Result<bool, StoreError> {
        let written = async {
            let mut change = self.accounts.change(user, &[], now);
            loop {
                let account = change.read().await?;
                let item = change.items.get(&Key::Account(user.clone()));
                let until = item.and_then(|item| items::read_number(item, "access_until"));
                if !until.is_some_and(|until: i64| until <= now.unix()) {
                    return Ok(false);
                }
                let cause =
                    Cause { by: "schedule".to_owned(), adjust_key: LedgerKey::due(now), created: now };
                let Ok(due) = account.evolve(Vec::new(), &cause, &self.accounts.catalog, now) else {
                    return Ok(false);
                };
                if change.commit(&due, Vec::new()).await? {
                    return Ok(true);
                }
            }
        };
        match written.await {
            Ok(true) => {
                info!(user_id = user.as_str(), "ACCESS_ENDED");
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(StoreError::Cancelled(_)) => Ok(false),
            Err(error @ StoreError::Unavailable { .. }) => Err(error),
            Err(error) => {
                warn!(user_id = user.as_str(), error = error.to_string(), "ACCESS_NOT_WRITTEN");
                Ok(false)
            }
        }
    }
}
