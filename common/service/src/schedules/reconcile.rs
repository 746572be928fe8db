//! Reconciliation: finds what differs between Stripe and the accounts, and repairs it with the rules that
//! apply to events.
//!
//! A run has several passes:
//!
//! | pass | finds | repaired by |
//! |---|---|---|
//! | history | undelivered events of the last 30 days that our log does not have | the event itself |
//! | | paid invoices, finished sessions and refunds that are not in the ledger | a synthetic event |
//! | subscriptions | another plan, status, period or end; a period without a payment | a synthetic event |
//! | accounts | subscriptions that Stripe does not have, several of one user, plans without invoice | an operator |
//!
//! The history is merged by time and handled oldest first (`history.rs`), because the order in which packs
//! and renewals arrive decides what is left of a pack.
//!
//! ```text
//! Stripe's list ─► evidence.rs: an event for each object ─► drift.rs: what differs (pure)
//!               ─► Processor::run: decides and commits, as for any event
//! ```
//! **Invariant:** a repair goes through `process`. The ledger key and the account's version guard it like any
//! event, so it may run at the same time as webhooks or another run. **Invariant:** what is repaired is not
//! found again, and a run that finds nothing writes nothing. **Invariant:** a repair from the current
//! state of a subscription never lowers the balance; a difference that would lower it is left to an operator.
//! A lost event, a paid invoice, a finished session and a refund may lower it, as they would have on arrival.
//! **Invariant:** an object that cannot be read or written is reported, and the run continues. **Invariant:**
//! an answer of Stripe is dated by the start of its request, and a single object is read again before it is
//! repaired, because a webhook may have arrived after the list was read.
//!
//! A complete scheduled run stores the counts that `health` reads. A scheduled run sends alerts about
//! webhooks that did not arrive, about what it found and did not repair, and about an error that stopped it
//! (`conclude.rs`). A run that stops early (its deadline, its maximum of changes, an error of Stripe) stores
//! its position, and the next run continues there.

mod accounts;
mod conclude;
mod cursor;
mod documents;
mod evidence;
mod gap;
mod history;
mod lost;
mod repair;
mod report;

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lambda_runtime::LambdaEvent;
use tracing::{info, warn};

use self::cursor::RunPosition;
pub use self::evidence::Evidence;
pub use self::gap::{Gap, GapError, MissingEvent, gap};
pub use self::report::{Report, ReportedDifference, ReportedFailure, ReportedRepair};
use crate::accounts::Accounts;
use crate::alerts::Alerts;
use crate::config::ReconcileConfig;
use crate::outbox::Outbox;
use crate::process::Processor;
use crate::resend::redrive::Redrive;
use crate::worker::ask;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::stripe::{Cursor, EventFilter, Filter, ListPage, MAX_TYPES, Stripe, StripeError};
use tallyhook_core::drift::{Class, Difference, Facts, Remedy};
use tallyhook_core::event::EventType;
use tallyhook_core::ids::{EventId, SubscriptionId, UserId};
use tallyhook_core::timestamp::Timestamp;

/// After this many consecutive failures, assume that Stripe or DynamoDB is down and stop the run.
const MAX_CONSECUTIVE_FAILURES: u32 = 10;
/// Subscriptions of a run that are remembered, as hashes. Others are read from Stripe one by one.
const MAX_SEEN: usize = 1_000_000;
/// Lost events that wait for the end of the run, because it may still find what they refer to.
const MAX_DEFERRED: usize = 10_000;
/// Repairs that would lower a balance and are checked again at the end of the run.
const MAX_POSTPONED: usize = 10_000;
/// Lost events that are processed together.
const BATCH: usize = 10;

/// The reason of a run that stopped at its deadline; the next run continues.
const TIME_IS_UP: &str = "the time is up";

/// The run stops this long before Lambda ends the function: one call of Stripe with its retries is the
/// longest step.
const MARGIN: Duration = Duration::from_secs(60);

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Report differences without repairing them.
    pub dry_run: bool,
    /// Stop after this many repairs.
    pub max_changes: u64,
    /// How many days back invoices, sessions and ended subscriptions are read.
    pub days: i64,
    /// Younger objects are not reported as missing, because their webhook may still arrive.
    pub grace_seconds: i64,
    /// When to stop.
    pub deadline: Option<Instant>,
    /// The time of the user's imported balance.
    pub imported_at: Option<Timestamp>,
    /// Where a dry run continues: [`Report::next`] of the one before. The position of other runs is stored.
    pub resume: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dry_run: false,
            max_changes: 500,
            days: 90,
            grace_seconds: 600,
            deadline: None,
            imported_at: None,
            resume: None,
        }
    }
}

/// Whether a text is [`Report::next`] of a run.
pub fn is_position(text: &str) -> bool {
    RunPosition::from_text(text).is_some()
}

/// Compares Stripe with the accounts and repairs differences.
#[derive(Clone, Debug)]
pub struct Reconciler {
    stripe: Stripe,
    processor: Processor,
    alerts: Option<Alerts>,
}

/// A pass of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    History,
    Subscriptions,
    Accounts,
}

impl Pass {
    const ALL: [Self; 3] = [Self::History, Self::Subscriptions, Self::Accounts];

    fn name(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Subscriptions => "subscriptions",
            Self::Accounts => "accounts",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pass| pass.name() == name)
    }
}

/// A list of Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// The undelivered events of one chunk of types; Stripe's list takes twenty types.
    Events(usize),
    Subscriptions,
    Invoices,
    Sessions,
    Refunds,
    Disputes,
}

impl List {
    /// Its name in reports.
    fn name(self) -> &'static str {
        match self {
            Self::Events(_) => "events",
            Self::Subscriptions => "subscriptions",
            Self::Invoices => "invoices",
            Self::Sessions => "sessions",
            Self::Refunds => "refunds",
            Self::Disputes => "disputes",
        }
    }
}

/// One chunk of the event types that we handle, as many as Stripe's list takes.
fn types(chunk: usize) -> Vec<EventType> {
    EventType::KNOWN.iter().skip(chunk * MAX_TYPES).take(MAX_TYPES).cloned().collect()
}

/// Why a step of the run failed.
enum StepError {
    /// It concerns one object; the run continues.
    Object(String),
    /// The run must stop.
    Stop(String),
}

impl From<StripeError> for StepError {
    fn from(error: StripeError) -> Self {
        if error.is_refused_key() { Self::Stop(error.to_string()) } else { Self::Object(error.to_string()) }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self::Object(error.to_string())
    }
}

/// The state of one run.
struct ReconcileRun<'a> {
    stripe: &'a Stripe,
    processor: &'a Processor,
    options: &'a Options,
    now: Timestamp,
    report: Report,
    consecutive_failures: u32,
    /// Hashes of the subscriptions that the run has read.
    seen: HashSet<u64>,
    /// Whether the run continues after subscriptions that only an earlier run read.
    seen_is_incomplete: bool,
    /// Customers without a user that are reported already.
    orphans: BTreeSet<String>,
    /// Objects of events that an operator dismissed: what differs about them is not reported.
    dismissed: BTreeSet<String>,
    /// Differences that are counted already.
    counted: BTreeSet<(Class, String)>,
    /// Repairs that would lower a balance.
    postponed: Vec<Evidence>,
    /// Lost events that wait for the end of the run.
    deferred: Vec<EventId>,
    /// Prices that were read for lost events.
    prices: ask::Prices,
}

impl Reconciler {
    /// Builds the function from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let config = ReconcileConfig::from_env(env)?;
        let ReconcileConfig {
            accounts_table,
            events_table,
            livemode,
            catalog,
            keep_payloads,
            outbox,
            stripe,
            queues,
            notify_queue_url,
        } = config;
        let (dynamodb, sqs) = sdk::clients(env)?;
        let store = Store::new(dynamodb, accounts_table, events_table);
        let queue = Queue::new(sqs);
        let alerts = Alerts::new(queue.clone(), notify_queue_url);
        let (redrive, outbox) = (Redrive::new(queue.clone(), queues), Outbox::new(queue, outbox));
        let accounts = Accounts::new(store, catalog, outbox);
        let processor = Processor { accounts, livemode, keep_payloads, redrive, alerts: alerts.clone() };
        Ok(Self::new(Stripe::of(stripe), processor).with_alerts(alerts))
    }

    /// Does the scheduled run. It takes no input and stops before Lambda ends the function.
    ///
    /// # Errors
    /// None: failures are in the report, and the next run continues.
    pub async fn handle(
        &self,
        event: LambdaEvent<serde_json::Value>,
    ) -> Result<Report, lambda_runtime::Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let remaining =
            Duration::from_millis(event.context.deadline).saturating_sub(now).saturating_sub(MARGIN);
        let options = Options { deadline: Some(Instant::now() + remaining), ..Options::default() };
        let now = Timestamp::from_unix(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let processor = self.processor.with_fresh_catalog().await;
        let current = Self { stripe: self.stripe.clone(), processor, alerts: self.alerts.clone() };
        let report = current.run(&options, now).await;
        self.conclude(&report, options.deadline, now).await;
        Ok(report)
    }

    /// Reads with a client of Stripe and repairs with `processor`.
    pub fn new(stripe: Stripe, processor: Processor) -> Self {
        Self { stripe, processor, alerts: None }
    }

    /// Sends alerts at the end of a run.
    #[must_use]
    pub fn with_alerts(self, alerts: Alerts) -> Self {
        Self { alerts: Some(alerts), ..self }
    }

    /// Compares everything, starting where the last run stopped.
    pub async fn run(&self, options: &Options, now: Timestamp) -> Report {
        let mut run = self.begin(options, now);
        if let Err(reason) = run.everything().await {
            run.report.failed = reason != TIME_IS_UP && run.remaining_changes() > 0;
            run.report.stopped = Some(reason);
        }
        run.finish()
    }

    /// Compares one user: what Stripe has of the customers that are linked to the user.
    pub async fn run_for(&self, user: &UserId, options: &Options, now: Timestamp) -> Report {
        let mut run = self.begin(options, now);
        match run.everything_of(user).await {
            Ok(()) => run.report.complete = true,
            Err(StepError::Object(reason) | StepError::Stop(reason)) => run.report.stopped = Some(reason),
        }
        run.finish()
    }

    fn begin<'a>(&'a self, options: &'a Options, now: Timestamp) -> ReconcileRun<'a> {
        let started = now.to_string().replace(['-', ':'], "");
        let report = Report {
            run: format!("{started}-{:04x}", fastrand::u16(..)),
            dry_run: options.dry_run,
            ..Report::default()
        };
        ReconcileRun {
            stripe: &self.stripe,
            processor: &self.processor,
            options,
            now,
            report,
            consecutive_failures: 0,
            seen: HashSet::new(),
            seen_is_incomplete: false,
            orphans: BTreeSet::new(),
            dismissed: BTreeSet::new(),
            counted: BTreeSet::new(),
            postponed: Vec::new(),
            deferred: Vec::new(),
            prices: ask::Prices::default(),
        }
    }
}

impl ReconcileRun<'_> {
    fn finish(self) -> Report {
        let report = self.report;
        info!(
            run = report.run,
            dry_run = report.dry_run,
            complete = report.complete,
            stopped = report.stopped,
            changed = report.changed,
            left = report.left.len(),
            failures = report.failures.len(),
            "RECONCILE_FINISHED"
        );
        report
    }

    /// Does every pass, starting where the last run stopped. The error says why this run stopped.
    async fn everything(&mut self) -> Result<(), String> {
        let store = self.processor.accounts.store.clone();
        self.dismissed = store.dismissed_objects().await.map_err(|error| error.to_string())?;
        let stored = match &self.options.resume {
            Some(text) if self.options.dry_run => {
                Some(RunPosition::from_text(text).ok_or("the position to continue from is not valid")?)
            }
            None if self.options.dry_run => None,
            Some(_) | None => cursor::load(&store, self.now).await.map_err(|error| error.to_string())?,
        };
        let mut has_cursor = stored.is_some() && !self.options.dry_run;
        let mut position =
            stored.unwrap_or(RunPosition { started: self.now, pass: Pass::History, after: None });
        let first = Pass::ALL.iter().position(|pass| *pass == position.pass).unwrap_or(0);
        self.seen_is_incomplete = match position.pass {
            Pass::History => false,
            Pass::Subscriptions => position.after.is_some(),
            Pass::Accounts => true,
        };
        for pass in Pass::ALL.into_iter().skip(first) {
            if pass != position.pass {
                position = RunPosition { pass, after: None, ..position };
            }
            loop {
                let done = self.page(&mut position).await;
                let (more, stopped) = match done {
                    Ok(more) => (more, None),
                    Err(reason) => (true, Some(reason)),
                };
                // A run that may be interrupted between two pages stores its position.
                if more && !self.options.dry_run {
                    cursor::save(&store, &position).await.map_err(|error| error.to_string())?;
                    has_cursor = true;
                }
                if let Some(reason) = stopped {
                    self.report.next = (reason == TIME_IS_UP).then(|| position.text());
                    return Err(reason);
                }
                if !more {
                    break;
                }
            }
        }
        self.run_deferred().await?;
        self.recheck_postponed().await?;
        if has_cursor {
            cursor::clear(&store).await.map_err(|error| error.to_string())?;
        }
        self.report.complete = true;
        Ok(())
    }

    /// Does one page of a pass and advances `position`. Returns whether the pass has more pages. The error
    /// says why the run must stop.
    async fn page(&mut self, position: &mut RunPosition) -> Result<bool, String> {
        self.check_time()?;
        match position.pass {
            Pass::History => return self.history(position).await,
            Pass::Accounts => {
                if std::mem::take(&mut self.seen_is_incomplete) {
                    self.list_subscription_ids().await?;
                }
                return self.accounts(position).await;
            }
            Pass::Subscriptions => {}
        }
        // All subscriptions: one that began years ago may have changed today.
        let filter = Filter::default();
        let mut page =
            self.fetch(List::Subscriptions, &filter, &Cursor::after(position.after.as_deref())).await;
        if position.after.is_some() && page.as_ref().is_err_and(StripeError::is_lost_cursor) {
            position.after = None;
            page = self.fetch(List::Subscriptions, &filter, &Cursor::Newest).await;
        }
        let page = page.map_err(|error| error.to_string())?;
        self.subscriptions(position, &page).await?;
        Ok(page.has_more && page.last_id().is_some())
    }

    /// Lists the subscriptions again, only for their ids, so that the pass over the accounts needs one call
    /// for a hundred subscriptions and not one call for each. It takes at most half of the remaining time, so
    /// that a continued run always makes progress.
    async fn list_subscription_ids(&mut self) -> Result<(), String> {
        let half = self
            .options
            .deadline
            .map(|deadline| deadline - deadline.saturating_duration_since(Instant::now()) / 2);
        let mut after = None;
        while self.seen.len() < MAX_SEEN && half.is_none_or(|half| Instant::now() < half) {
            let page =
                self.fetch(List::Subscriptions, &Filter::default(), &Cursor::after(after.as_deref())).await;
            let page = page.map_err(|error| error.to_string())?;
            self.seen
                .extend(page.objects.iter().filter_map(|object| Some(hash(&object.id()?.parse().ok()?))));
            after = page.last_id().map(str::to_owned);
            if !page.has_more || after.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn fetch(&self, list: List, filter: &Filter, cursor: &Cursor) -> Result<ListPage, StripeError> {
        match list {
            List::Events(chunk) => {
                let (types, from, until) = (types(chunk), filter.from, filter.until);
                let filter = EventFilter { types, undelivered: true, from, until };
                self.stripe.events(&filter, cursor).await
            }
            List::Subscriptions => self.stripe.subscriptions(filter, cursor).await,
            List::Invoices => self.stripe.paid_invoices(filter, cursor).await,
            List::Sessions => self.stripe.finished_sessions(filter, cursor).await,
            List::Refunds => self.stripe.refunds(filter, cursor).await,
            List::Disputes => self.stripe.disputes(filter, cursor).await,
        }
    }

    fn check_time(&self) -> Result<(), String> {
        match self.options.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(TIME_IS_UP.to_owned()),
            Some(_) | None => Ok(()),
        }
    }

    /// Records the result for one object. The error says that the run must stop.
    fn note(
        &mut self,
        object: &str,
        customer: Option<String>,
        result: Result<(), StepError>,
    ) -> Result<(), String> {
        let error = match result {
            Ok(()) => {
                self.consecutive_failures = 0;
                return Ok(());
            }
            Err(StepError::Stop(reason)) => return Err(reason),
            Err(StepError::Object(error)) => error,
        };
        warn!(run = self.report.run, object_id = object, customer_id = customer, error, "RECONCILE_FAILED");
        let failure = ReportedFailure { object: object.to_owned(), customer, error };
        Report::list(&mut self.report.omitted, &mut self.report.failures, failure);
        self.consecutive_failures += 1;
        let stop = self.consecutive_failures >= MAX_CONSECUTIVE_FAILURES;
        if stop { Err(format!("{MAX_CONSECUTIVE_FAILURES} failures in a row")) } else { Ok(()) }
    }
}

/// A difference that an operator must decide.
fn for_operator(class: Class, why: String) -> Difference {
    Difference { class, before: Facts::new(), after: Facts::new(), remedy: Remedy::Person(why) }
}

fn hash(id: &SubscriptionId) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
