//! The end of a run: stores the counts for `health`, and sends alerts about what was missing, what is left to
//! an operator, and a run that stopped.

use std::collections::BTreeMap;
use std::time::Instant;

use sha2::{Digest, Sha256};

use tracing::{info, warn};

use super::{Gap, Reconciler, Report, gap};
use crate::alerts::Alert;
use tallyhook_aws::store::items;
use tallyhook_aws::telemetry;
use tallyhook_core::drift::Class;
use tallyhook_core::timestamp::Timestamp;

/// Younger events may still be in a queue, between two attempts.
const SETTLED_SECONDS: i64 = 3600;

impl Reconciler {
    /// Ends a run over everything. Sends alerts about what the run left to an operator, and about an error
    /// that stopped it. After a complete run, also compares Stripe's events of the last day with our log,
    /// which finds events of types that no endpoint receives; stores the counts for `health`; and sends an
    /// alert if anything was missing. A failure is only logged.
    pub async fn conclude(&self, report: &Report, deadline: Option<Instant>, now: Timestamp) {
        if report.dry_run {
            return;
        }
        if let Some(alerts) = &self.alerts {
            if let Some(alert) = unrepaired(report) {
                alerts.send(&alert).await;
            }
            if report.failed {
                alerts.send(&Alert::ReconcileStopped).await;
            }
        }
        if !report.complete {
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
        let found = |class: Class| report.found.get(&class).copied().unwrap_or(0);
        let (orphaned, unpaid) = (found(Class::OrphanCustomer), found(Class::PlanWithoutInvoice));
        // The alarm on it also notices 12 hours without a complete run.
        let found_missing = u32::try_from(missing.saturating_add(repaired)).unwrap_or(u32::MAX);
        telemetry::metrics(&[], &[("FoundMissing", f64::from(found_missing))]);
        let note = items::reconcile_report(missing, orphaned, unpaid, now);
        if let Err(error) = self.processor.accounts.store.commit(vec![note]).await {
            warn!(run = report.run, error = error.to_string(), "RECONCILE_NOT_NOTED");
        }
        if let Some(alerts) = self.alerts.as_ref().filter(|_| missing + repaired > 0) {
            alerts.send(&Alert::Missing { records: missing, repaired }).await;
        }
    }
}

/// The alert about what a run left to an operator.
fn unrepaired(report: &Report) -> Option<Alert> {
    if report.left.is_empty() && report.failures.is_empty() {
        return None;
    }
    let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
    let mut objects: Vec<String> = Vec::new();
    for left in &report.left {
        *classes.entry(left.class.as_str()).or_default() += 1;
        objects.push(format!("{} {}", left.class.as_str(), left.object));
    }
    objects.extend(report.failures.iter().map(|failure| failure.object.clone()));
    objects.sort_unstable();
    let digest = Sha256::digest(objects.join("\n"));
    Some(Alert::Unrepaired {
        left: classes.iter().map(|(class, count)| format!("{count} {class}")).collect(),
        failures: u64::try_from(report.failures.len()).unwrap_or(u64::MAX),
        digest: digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// How many records of Stripe are missing here, and how many this run added.
fn missing(report: &Report, gap: Option<&Gap>) -> (u64, u64) {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let unrepaired = report.left.iter().filter(|left| left.class == Class::MissingHere).count();
    let not_logged = gap.map_or(0, |gap| gap.listed.saturating_sub(gap.held));
    let adds = |class: Class| matches!(class, Class::MissingHere | Class::LostEvent | Class::Credits);
    let repaired = report.changes.iter().filter(|change| adds(change.class)).count();
    (not_logged.saturating_add(count(unrepaired)), count(repaired))
}
