//! Reconciliation: what Stripe has and we do not, found and set right under the rules that every event is
//! under.
//!
//! A run makes passes, each over one of Stripe's lists, page by page:
//!
//! | pass | what is looked for | repaired by |
//! |---|---|---|
//! | events | events of our types that no endpoint took and that our log does not have (Stripe keeps 30 days) | the event itself |
//! | subscriptions | another plan, status, period or end than ours; a period that no payment opened here | an event made of the object |
//! | invoices | paid, and not in the ledger | likewise |
//! | sessions | finished, and not in the ledger | likewise |
//! | accounts | subscriptions of ours that Stripe does not have, several for one user | a person |
//!
//! ```text
//! Stripe's list ─► evidence.rs (as an event) ─► drift.rs (what differs, pure) ─► Processor::run (the same decide and commit)
//! ```
//! **Invariant:** a repair goes through `process`, so the ledger key and the account's version guard it like
//! any event: it may meet webhooks, another run or itself. **Invariant:** what is repaired is not found
//! again; a run that finds nothing writes nothing. **Invariant:** credits are never taken: a repair whose
//! balance would fall is left to a person, except that a lost event does what it would have done.
//! **Invariant:** one object that cannot be read or written is reported, and the run goes on.
//!
//! A scheduled run that comes to its end leaves what health counts, and says so if webhooks did not arrive
//! (`conclude.rs`). A run that ends early (its time, its cap of changes, Stripe not answering) leaves a
//! cursor, and the next one goes on from there.

mod accounts;
mod conclude;
mod cursor;
mod documents;
mod evidence;
mod gap;
mod lost;
mod report;
mod settle;

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lambda_runtime::LambdaEvent;
use tracing::{info, warn};

use self::cursor::Place;
pub use self::evidence::Evidence;
pub use self::gap::{Gap, GapError, MissingEvent, gap};
pub use self::report::{Change, Failure, Left, Report};
use crate::accounts::Accounts;
use crate::alerts::Alerts;
use crate::config::ReconcileConfig;
use crate::outbox::Outbox;
use crate::process::Processor;
use crate::resend::redrive::Redrive;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::stripe::{Cursor, EventFilter, Filter, MOST_TYPES, Page, Stripe, StripeError};
use tallyhook_core::drift::{Class, Difference, Facts, Remedy};
use tallyhook_core::event::EventType;
use tallyhook_core::ids::{EventId, SubscriptionId, UserId};
use tallyhook_core::timestamp::Timestamp;

/// So many failures in a row are no longer single objects.
const MOST_FAILURES_IN_A_ROW: u32 = 10;
/// Subscriptions that were seen in a run are remembered as hashes, at most so many; the others are asked for
/// one by one.
const MOST_SEEN: usize = 1_000_000;
/// Lost events that wait for the end of the run, because what they refer to may still come up.
const MOST_DEFERRED: usize = 10_000;
/// Repairs that would lower a balance, and are looked at again at the end of the run.
const MOST_HELD: usize = 10_000;
/// Lost events are processed so many at a time.
const BATCH: usize = 10;

/// Why a run stopped that only has to be gone on with.
const TIME_IS_UP: &str = "the time is up";

/// A call to Stripe may take this long with all its repetitions; one is the longest step of a run.
const MARGIN: Duration = Duration::from_secs(60);

/// How a run is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Find, and change nothing.
    pub dry_run: bool,
    /// Stop after so many repairs.
    pub most_changes: u64,
    /// Invoices, sessions and ended subscriptions are looked at for so many days.
    pub days: i64,
    /// What is younger may still be on its way to us, and is not called missing.
    pub grace_seconds: i64,
    /// When to stop.
    pub deadline: Option<Instant>,
    /// Where a dry run goes on: [`Report::next`] of the one before. Another run's place is in the store.
    pub resume: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { dry_run: false, most_changes: 500, days: 90, grace_seconds: 600, deadline: None, resume: None }
    }
}

/// Reads Stripe and the accounts, and sets right what it may.
#[derive(Clone, Debug)]
pub struct Reconciler {
    stripe: Stripe,
    processor: Processor,
    alerts: Option<Alerts>,
}

/// A pass over one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Of the types of this chunk: one list takes twenty.
    Events(usize),
    Subscriptions,
    Invoices,
    Sessions,
    Accounts,
}

impl Pass {
    const ALL: [Self; 6] = [
        Self::Events(0),
        Self::Events(1),
        Self::Subscriptions,
        Self::Invoices,
        Self::Sessions,
        Self::Accounts,
    ];

    fn name(self) -> String {
        match self {
            Self::Events(chunk) => format!("events-{chunk}"),
            Self::Subscriptions => "subscriptions".to_owned(),
            Self::Invoices => "invoices".to_owned(),
            Self::Sessions => "sessions".to_owned(),
            Self::Accounts => "accounts".to_owned(),
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pass| pass.name() == name)
    }
}

/// The types of the events that we act on, as many at a time as one list takes.
fn types(chunk: usize) -> Vec<EventType> {
    EventType::KNOWN.iter().skip(chunk * MOST_TYPES).take(MOST_TYPES).cloned().collect()
}

/// Why something was not done.
enum Trouble {
    /// This object only.
    Object(String),
    /// The run.
    Stop(String),
}

impl From<StripeError> for Trouble {
    fn from(error: StripeError) -> Self {
        if error.is_refused_key() { Self::Stop(error.to_string()) } else { Self::Object(error.to_string()) }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Object(error.to_string())
    }
}

/// One run.
struct Run<'a> {
    stripe: &'a Stripe,
    processor: &'a Processor,
    options: &'a Options,
    now: Timestamp,
    report: Report,
    failures_in_a_row: u32,
    seen: HashSet<u64>,
    /// Whether an earlier run saw subscriptions that this one goes on without having seen.
    missed: bool,
    orphans: BTreeSet<String>,
    told: BTreeSet<(Class, String)>,
    held: Vec<Evidence>,
    deferred: Vec<EventId>,
}

impl Reconciler {
    /// With clients made from the environment.
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
        Ok(Self::new(
            Stripe::of(stripe),
            Processor { accounts: Accounts { store, catalog, outbox }, livemode, keep_payloads, redrive },
        )
        .with_alerts(alerts))
    }

    /// The scheduled run. It takes no input, and stops in time before the function's.
    ///
    /// # Errors
    /// None: what went wrong is in the report, and the next run goes on.
    pub async fn handle(
        &self,
        event: LambdaEvent<serde_json::Value>,
    ) -> Result<Report, lambda_runtime::Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_millis(event.context.deadline).saturating_sub(now).saturating_sub(MARGIN);
        let options = Options { deadline: Some(Instant::now() + left), ..Options::default() };
        let now = Timestamp::from_unix(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let report = self.run(&options, now).await;
        self.conclude(&report, options.deadline, now).await;
        Ok(report)
    }

    /// Over a client and the path of events.
    pub fn new(stripe: Stripe, processor: Processor) -> Self {
        Self { stripe, processor, alerts: None }
    }

    /// One that says so when webhooks did not arrive.
    #[must_use]
    pub fn with_alerts(self, alerts: Alerts) -> Self {
        Self { alerts: Some(alerts), ..self }
    }

    /// A run over everything, or the rest of the last one.
    pub async fn run(&self, options: &Options, now: Timestamp) -> Report {
        let mut run = self.begin(options, now);
        if let Err(why) = run.everything().await {
            run.report.stopped = Some(why);
        }
        run.finish()
    }

    /// A run over what Stripe has of one user: of the customers that are bound to the user.
    pub async fn run_for(&self, user: &UserId, options: &Options, now: Timestamp) -> Report {
        let mut run = self.begin(options, now);
        match run.everything_of(user).await {
            Ok(()) => run.report.complete = true,
            Err(Trouble::Object(why) | Trouble::Stop(why)) => run.report.stopped = Some(why),
        }
        run.finish()
    }

    fn begin<'a>(&'a self, options: &'a Options, now: Timestamp) -> Run<'a> {
        let started = now.to_string().replace(['-', ':'], "");
        let report = Report {
            run: format!("{started}-{:04x}", fastrand::u16(..)),
            dry_run: options.dry_run,
            ..Report::default()
        };
        Run {
            stripe: &self.stripe,
            processor: &self.processor,
            options,
            now,
            report,
            failures_in_a_row: 0,
            seen: HashSet::new(),
            missed: false,
            orphans: BTreeSet::new(),
            told: BTreeSet::new(),
            held: Vec::new(),
            deferred: Vec::new(),
        }
    }
}

impl Run<'_> {
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

    /// Every pass, from where the last run stopped. The error says why this one did.
    async fn everything(&mut self) -> Result<(), String> {
        let store = self.processor.accounts.store.clone();
        let stored = match &self.options.resume {
            Some(text) if self.options.dry_run => {
                Some(Place::from_text(text).ok_or("the place to go on from is not one of a report")?)
            }
            None if self.options.dry_run => None,
            Some(_) | None => cursor::load(&store, self.now).await.map_err(|error| error.to_string())?,
        };
        let mut has_cursor = stored.is_some() && !self.options.dry_run;
        let mut place = stored.unwrap_or(Place { started: self.now, pass: Pass::Events(0), after: None });
        let first = Pass::ALL.iter().position(|pass| *pass == place.pass).unwrap_or(0);
        self.missed = match place.pass {
            Pass::Events(_) => false,
            Pass::Subscriptions => place.after.is_some(),
            Pass::Invoices | Pass::Sessions | Pass::Accounts => true,
        };
        for pass in Pass::ALL.into_iter().skip(first) {
            if pass != place.pass {
                place = Place { pass, after: None, ..place };
            }
            loop {
                let done = self.page(&mut place).await;
                let (more, stopped) = match done {
                    Ok(more) => (more, None),
                    Err(why) => (true, Some(why)),
                };
                // A run of few pages leaves no trace. One that a killed function may cut off in the middle
                // does.
                if more && !self.options.dry_run {
                    cursor::save(&store, &place).await.map_err(|error| error.to_string())?;
                    has_cursor = true;
                }
                if let Some(why) = stopped {
                    self.report.next = (why == TIME_IS_UP).then(|| place.text());
                    return Err(why);
                }
                if !more {
                    break;
                }
            }
        }
        self.deferred().await?;
        self.held().await?;
        if has_cursor {
            cursor::clear(&store).await.map_err(|error| error.to_string())?;
        }
        self.report.complete = true;
        Ok(())
    }

    /// One page of a pass; `place` follows what is done. Whether the pass goes on, or why the run does not.
    async fn page(&mut self, place: &mut Place) -> Result<bool, String> {
        self.check_time()?;
        if place.pass == Pass::Accounts {
            if std::mem::take(&mut self.missed) {
                self.recall().await?;
            }
            return self.accounts(place).await;
        }
        let from = place.started.plus_days(-self.options.days);
        let filter = Filter { from: Some(from), ..Filter::default() };
        let mut page = self.fetch(place.pass, &filter, &Cursor::after(place.after.as_deref())).await;
        if place.after.is_some() && page.as_ref().is_err_and(StripeError::is_lost_cursor) {
            place.after = None;
            page = self.fetch(place.pass, &filter, &Cursor::Newest).await;
        }
        let page = page.map_err(|error| error.to_string())?;
        self.objects(place, &page).await?;
        Ok(page.has_more && page.last_id().is_some())
    }

    /// Lists the subscriptions once more, for their ids alone: the accounts are looked at with a call for a
    /// hundred of them instead of one each. It takes at most half of the time that is left, so that a run
    /// that was gone on with always gets further.
    async fn recall(&mut self) -> Result<(), String> {
        let half = self
            .options
            .deadline
            .map(|deadline| deadline - deadline.saturating_duration_since(Instant::now()) / 2);
        let mut after = None;
        while self.seen.len() < MOST_SEEN && half.is_none_or(|half| Instant::now() < half) {
            let page =
                self.fetch(Pass::Subscriptions, &Filter::default(), &Cursor::after(after.as_deref())).await;
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

    async fn fetch(&self, pass: Pass, filter: &Filter, cursor: &Cursor) -> Result<Page, StripeError> {
        match pass {
            Pass::Events(chunk) => {
                let filter = EventFilter { types: types(chunk), undelivered: true, ..EventFilter::default() };
                self.stripe.events(&filter, cursor).await
            }
            // Of subscriptions all: one that began years ago may have changed today.
            Pass::Subscriptions => {
                self.stripe.subscriptions(&Filter { from: None, ..filter.clone() }, cursor).await
            }
            Pass::Invoices => self.stripe.paid_invoices(filter, cursor).await,
            Pass::Sessions => self.stripe.finished_sessions(filter, cursor).await,
            Pass::Accounts => Ok(Page { objects: Vec::new(), has_more: false }),
        }
    }

    /// The objects of a page, each on its own.
    async fn objects(&mut self, place: &mut Place, page: &Page) -> Result<(), String> {
        match place.pass {
            Pass::Events(_) => self.events(place, page).await,
            Pass::Subscriptions | Pass::Invoices | Pass::Sessions => self.documents(place, page).await,
            Pass::Accounts => Ok(()),
        }
    }

    fn check_time(&self) -> Result<(), String> {
        match self.options.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(TIME_IS_UP.to_owned()),
            Some(_) | None => Ok(()),
        }
    }

    /// Takes note of how an object went. The error says that the run cannot go on.
    fn note(
        &mut self,
        object: &str,
        customer: Option<String>,
        done: Result<(), Trouble>,
    ) -> Result<(), String> {
        let error = match done {
            Ok(()) => {
                self.failures_in_a_row = 0;
                return Ok(());
            }
            Err(Trouble::Stop(why)) => return Err(why),
            Err(Trouble::Object(error)) => error,
        };
        warn!(run = self.report.run, object_id = object, customer_id = customer, error, "RECONCILE_FAILED");
        let failure = Failure { object: object.to_owned(), customer, error };
        Report::list(&mut self.report.omitted, &mut self.report.failures, failure);
        self.failures_in_a_row += 1;
        let stop = self.failures_in_a_row >= MOST_FAILURES_IN_A_ROW;
        if stop { Err(format!("{MOST_FAILURES_IN_A_ROW} failures in a row")) } else { Ok(()) }
    }
}

fn person(class: Class, why: String) -> Difference {
    Difference { class, before: Facts::new(), after: Facts::new(), remedy: Remedy::Person(why) }
}

fn hash(id: &SubscriptionId) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
