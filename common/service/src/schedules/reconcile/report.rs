//! The report of a run, for operators and the dashboard.
//!
//! ```json
//! {"run":"20261121T101700Z-3f","dry_run":false,"complete":true,"stopped":null,"next":null,
//!  "read":{"invoices":12},"found":{"credits":1},"changed":1,
//!  "changes":[{"class":"credits","object":"in_1","user_id":"user_1","customer":"cus_1",
//!              "event_id":"evt_reconcile_in_1_…",
//!              "before":{"credits":"500"},"after":{"credits":"5000","entry":"invoice#in_1"}}],
//!  "left":[],"failures":[],"omitted":0}
//! ```

use std::collections::BTreeMap;

use serde::Serialize;

use tallyhook_core::drift::{Class, Facts};

/// The most entries of a list; the counts include all.
const MAX_LISTED: usize = 200;

/// The report of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The run's id. Its changes have the cause `reconcile:<run>`.
    pub run: String,
    /// Whether the run only reported differences.
    pub dry_run: bool,
    /// Whether the run is complete.
    pub complete: bool,
    /// Why the run stopped early. The next run continues there.
    pub stopped: Option<String>,
    /// Whether an error stopped the run, and not its deadline or its maximum of changes.
    #[serde(skip)]
    pub failed: bool,
    /// Where the next run continues, when the deadline stopped this one.
    pub next: Option<String>,
    /// The number of objects and accounts read, by kind.
    pub read: BTreeMap<&'static str, u64>,
    /// The number of differences, by class.
    pub found: BTreeMap<Class, u64>,
    /// The number of repairs; in a dry run, of those that would be made.
    pub changed: u64,
    /// The repairs.
    pub changes: Vec<ReportedRepair>,
    /// Differences that an operator must decide.
    pub left: Vec<ReportedDifference>,
    /// Objects that could not be read or written.
    pub failures: Vec<ReportedFailure>,
    /// The number of entries that the lists left out.
    pub omitted: u64,
}
/// A repair.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedRepair {
    /// The class of the difference.
    pub class: Class,
    /// The id of Stripe's object.
    pub object: String,
    /// The user of the account.
    pub user_id: Option<String>,
    /// The customer at Stripe.
    pub customer: Option<String>,
    /// The id of the repair in the event log.
    pub event_id: String,
    /// The facts here before the repair.
    pub before: Facts,
    /// The facts here after the repair.
    pub after: Facts,
}

/// A difference that was not repaired.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedDifference {
    /// The class of the difference.
    pub class: Class,
    /// The id of Stripe's object, or the user id.
    pub object: String,
    /// The user of the account.
    pub user_id: Option<String>,
    /// The customer at Stripe.
    pub customer: Option<String>,
    /// Why an operator must decide.
    pub why: String,
    /// The facts here.
    pub before: Facts,
    /// The facts at Stripe, or the facts here after a repair.
    pub after: Facts,
}

/// An object that could not be read or written.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedFailure {
    /// The id of Stripe's object, or the user id.
    pub object: String,
    /// The customer at Stripe, if known.
    pub customer: Option<String>,
    /// The error.
    pub error: String,
}

impl Report {
    pub(super) fn read(&mut self, what: &'static str, count: usize) {
        *self.read.entry(what).or_default() += u64::try_from(count).unwrap_or(u64::MAX);
    }

    pub(super) fn list<T>(omitted: &mut u64, list: &mut Vec<T>, entry: T) {
        if list.len() < MAX_LISTED { list.push(entry) } else { *omitted += 1 }
    }
}
