//! What a run did, for a person and for the dashboard.
//!
//! ```json
//! {"run":"20261121T101700Z-3f","dry_run":false,"complete":true,"stopped":null,"next":null,"read":{"invoices":12},"found":{"credits":1},"changed":1,
//!  "changes":[{"class":"credits","object":"in_1","user_id":"user_1","customer":"cus_1","event_id":"evt_reconcile_in_1_…",
//!              "before":{"credits":"500"},"after":{"credits":"5000","entry":"invoice#in_1"}}],
//!  "left":[],"failures":[],"omitted":0}
//! ```

use std::collections::BTreeMap;

use serde::Serialize;

use tallyhook_core::drift::{Class, Facts};

/// Longer lists are cut; the counts are whole.
const MOST_LISTED: usize = 200;

/// What a run did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The run's id: `reconcile:<run>` is the cause of what it changed.
    pub run: String,
    /// Whether nothing was to be written.
    pub dry_run: bool,
    /// Whether it came to its end.
    pub complete: bool,
    /// Why not. The next run goes on from there.
    pub stopped: Option<String>,
    /// There when the time was up: where the next run goes on.
    pub next: Option<String>,
    /// Objects and accounts read, by kind.
    pub read: BTreeMap<&'static str, u64>,
    /// Differences, by class.
    pub found: BTreeMap<Class, u64>,
    /// How many repairs were made; in a dry run, would be.
    pub changed: u64,
    /// The repairs.
    pub changes: Vec<Change>,
    /// What a person must decide.
    pub left: Vec<Left>,
    /// What could not be read or written.
    pub failures: Vec<Failure>,
    /// Entries that the lists have no room for.
    pub omitted: u64,
}

/// One repair.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// What was different.
    pub class: Class,
    /// The object at Stripe.
    pub object: String,
    /// Whose.
    pub user_id: Option<String>,
    /// Stripe's customer.
    pub customer: Option<String>,
    /// Its record in the event log.
    pub event_id: String,
    /// As it was here.
    pub before: Facts,
    /// As it is now.
    pub after: Facts,
}

/// One difference that was left as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Left {
    /// What is different.
    pub class: Class,
    /// The object at Stripe, or the user.
    pub object: String,
    /// Whose.
    pub user_id: Option<String>,
    /// Stripe's customer.
    pub customer: Option<String>,
    /// Why a person must decide.
    pub why: String,
    /// As it is here.
    pub before: Facts,
    /// As it is at Stripe, or would be.
    pub after: Facts,
}

/// Something that one run could not do.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The object, or the user.
    pub object: String,
    /// Stripe's customer, as far as known.
    pub customer: Option<String>,
    /// What went wrong.
    pub error: String,
}

impl Report {
    pub(super) fn read(&mut self, what: &'static str, count: usize) {
        *self.read.entry(what).or_default() += u64::try_from(count).unwrap_or(u64::MAX);
    }

    pub(super) fn list<T>(omitted: &mut u64, list: &mut Vec<T>, entry: T) {
        if list.len() < MOST_LISTED { list.push(entry) } else { *omitted += 1 }
    }
}
