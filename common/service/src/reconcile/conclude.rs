//! The end of a run: what health is left to count, and whom to tell that webhooks did not arrive.

use std::time::Instant;

use tracing::{info, warn};

use super::{Gap, Reconciler, Report, gap};
use crate::alerts::Alert;
use tallyhook_aws::store::items;
use tallyhook_core::drift::Class;
use tallyhook_core::timestamp::Timestamp;

/// What is younger may still be in a queue, between two attempts.
const SETTLED_SECONDS: i64 = 3600;

impl Reconciler {
    /// After a run over everything that came to its end: compares the last day of Stripe's events with our
    /// log, which also finds what an endpoint was never asked to take, leaves the counts for `health`, and
    /// alerts if anything was missing. A failure is logged and fails nothing.
    pub async fn conclude(&self, report: &Report, deadline: Option<Instant>, now: Timestamp) {
        if report.dry_run || !report.complete {
            return;
        }
        let until = now.plus_seconds(-SETTLED_SECONDS);
        let gap =
            match gap(&self.stripe, &self.processor.accounts.store, until.plus_days(-1), until, deadline)
                .await
            {
                Ok(gap) => {
                    info!(
                        run = report.run,
                        listed = gap.listed,
                        held = gap.held,
                        complete = gap.complete,
                        "RECONCILE_GAP"
                    );
                    Some(gap)
                }
                Err(error) => {
                    warn!(run = report.run, error = error.to_string(), "RECONCILE_GAP_UNKNOWN");
                    None
                }
            };
        let (missing, repaired) = missing(report, gap.as_ref());
        let orphaned = report.found.get(&Class::OrphanCustomer).copied().unwrap_or(0);
        if let Err(error) =
            self.processor.accounts.store.commit(vec![items::reconcile_report(missing, orphaned, now)]).await
        {
            warn!(run = report.run, error = error.to_string(), "RECONCILE_NOT_NOTED");
        }
        if let Some(alerts) = self.alerts.as_ref().filter(|_| missing + repaired > 0) {
            alerts.send(&Alert::Missing { records: missing, repaired }).await;
        }
    }
}

/// How many records of Stripe are missing here, and how many were until this run.
fn missing(report: &Report, gap: Option<&Gap>) -> (u64, u64) {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let left = report.left.iter().filter(|left| left.class == Class::MissingHere).count();
    let unheard = gap.map_or(0, |gap| gap.listed.saturating_sub(gap.held));
    let brought = |class: Class| matches!(class, Class::MissingHere | Class::LostEvent | Class::Credits);
    let repaired = report.changes.iter().filter(|change| brought(change.class)).count();
    (unheard.saturating_add(count(left)), count(repaired))
}
