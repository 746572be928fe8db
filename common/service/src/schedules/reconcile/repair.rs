//! Handles a difference: repairs it, or reports it to an operator.

use tracing::{info, warn};

use super::report::{ReportedDifference, ReportedRepair};
use super::{Evidence, MAX_POSTPONED, ReconcileRun, Report, StepError, for_operator};
use crate::process::{EventOutcome, FoundAccount, Job, Repair, RepairKind};
use tallyhook_core::account::Account;
use tallyhook_core::decide::Parked;
use tallyhook_core::drift::{Class, Difference, Facts, Remedy};
use tallyhook_core::event;
use tallyhook_core::ids::{CustomerId, UserId};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

impl ReconcileRun<'_> {
    /// Repairs what may be repaired of a subscription, in one job, and reports the other differences. Returns
    /// whether something was repaired.
    pub(super) async fn repair_or_report(
        &mut self,
        found: Vec<Difference>,
        evidence: &Evidence,
        object: &str,
        account: &Account,
    ) -> Result<bool, StepError> {
        let user = Some(&account.user_id);
        let mut repairs = Vec::new();
        for difference in found {
            match &difference.remedy {
                Remedy::Person(_) => {
                    self.report_difference(&difference, object, user, evidence.event.customer());
                }
                Remedy::Lowers => {
                    self.report_difference(&difference, object, user, evidence.event.customer());
                    if self.postponed.len() < MAX_POSTPONED {
                        self.postponed.push(evidence.clone());
                    }
                }
                Remedy::Repair => repairs.push(difference),
            }
        }
        self.repair(repairs, evidence, object, account, RepairKind::State).await
    }

    /// Applies the event that repairs these differences, and reports them. Returns whether something was
    /// repaired.
    pub(super) async fn repair(
        &mut self,
        mut repairs: Vec<Difference>,
        evidence: &Evidence,
        object: &str,
        account: &Account,
        kind: RepairKind,
    ) -> Result<bool, StepError> {
        let user = Some(&account.user_id);
        // A dry run changes nothing, so it finds the same difference again when it reads an object twice.
        repairs.retain(|difference| {
            !self.options.dry_run || !self.counted.contains(&(difference.class, object.to_owned()))
        });
        let Some(first) = repairs.first() else { return Ok(false) };
        repairs.iter().for_each(|difference| self.count_difference(difference.class, object));
        if self.remaining_changes() == 0 {
            return Err(StepError::Stop(self.limit_reached()));
        }
        let note = repairs.iter().map(|difference| difference.class.as_str()).collect::<Vec<_>>().join(", ");
        let note = format!("{note}: {} -> {}", fact_list(&first.before), fact_list(&first.after));
        let evidence =
            &evidence.for_version(account.version).map_err(|error| StepError::Object(error.to_string()))?;
        if !self.options.dry_run {
            let reversals = evidence.reversals.clone();
            let job = self.job(evidence, Repair { by: self.by(), note, kind, reversals });
            let outcome = self.processor.run(&[job], self.now).await.into_iter().next();
            match outcome {
                Some(Ok(EventOutcome::Processed(..))) => {}
                // Another run made the same repair.
                Some(Ok(EventOutcome::Duplicate)) => return Ok(true),
                Some(Ok(EventOutcome::Ignored(_) | EventOutcome::NotYet)) | None => return Ok(false),
                Some(Ok(EventOutcome::Parked(parked))) => {
                    self.report_difference(
                        &for_operator(first.class, parked.to_string()),
                        object,
                        user,
                        evidence.event.customer(),
                    );
                    return Ok(false);
                }
                Some(Err(error)) => return Err(error.into()),
            }
        }
        for difference in repairs {
            self.report_repair(ReportedRepair {
                class: difference.class,
                object: object.to_owned(),
                user_id: user.map(ToString::to_string),
                customer: evidence.event.customer().map(ToString::to_string),
                event_id: evidence.event.id.to_string(),
                before: difference.before,
                after: difference.after,
            });
        }
        Ok(true)
    }

    pub(super) fn report_repair(&mut self, change: ReportedRepair) {
        info!(
            run = self.report.run,
            dry_run = self.report.dry_run,
            class = change.class.as_str(),
            object_id = change.object,
            event_id = change.event_id,
            user_id = change.user_id,
            customer_id = change.customer,
            before = fact_list(&change.before),
            after = fact_list(&change.after),
            "RECONCILE_CHANGED"
        );
        self.report.changed += 1;
        self.report.left.retain(|left| left.class != change.class || left.object != change.object);
        Report::list(&mut self.report.omitted, &mut self.report.changes, change);
    }

    pub(super) fn report_difference(
        &mut self,
        difference: &Difference,
        object: &str,
        user: Option<&UserId>,
        customer: Option<&CustomerId>,
    ) {
        if self.dismissed.contains(object) {
            return;
        }
        let why = match &difference.remedy {
            Remedy::Person(why) => why.clone(),
            Remedy::Lowers => "it would lower the balance, which only an operator may do".to_owned(),
            Remedy::Repair => String::new(),
        };
        self.count_difference(difference.class, object);
        self.report.left.retain(|left| left.class != difference.class || left.object != object);
        let left = ReportedDifference {
            class: difference.class,
            object: object.to_owned(),
            user_id: user.map(ToString::to_string),
            customer: customer.map(ToString::to_string),
            why,
            before: difference.before.clone(),
            after: difference.after.clone(),
        };
        warn!(
            run = self.report.run,
            class = left.class.as_str(),
            object_id = left.object,
            user_id = left.user_id,
            customer_id = left.customer,
            why = left.why,
            "RECONCILE_LEFT"
        );
        Report::list(&mut self.report.omitted, &mut self.report.left, left);
    }

    /// Counts a difference once for each object and class.
    pub(super) fn count_difference(&mut self, class: Class, object: &str) {
        if self.counted.insert((class, object.to_owned())) {
            *self.report.found.entry(class).or_default() += 1;
        }
    }

    /// Checks again the repairs that would have lowered a balance: after later repairs they may no longer
    /// lower it. Repeats until nothing changes, so that nothing of this kind is left for the next run.
    pub(super) async fn recheck_postponed(&mut self) -> Result<(), String> {
        while !self.postponed.is_empty() && !self.options.dry_run {
            let before = self.report.changed;
            for evidence in std::mem::take(&mut self.postponed) {
                self.check_time()?;
                let result = self.recheck(&evidence).await;
                self.note(
                    evidence.event.id.as_str(),
                    evidence.event.customer().map(ToString::to_string),
                    result,
                )?;
            }
            if self.report.changed == before {
                break;
            }
        }
        Ok(())
    }

    async fn recheck(&mut self, evidence: &Evidence) -> Result<(), StepError> {
        let FoundAccount::Account(account, _) = self.find_account(evidence).await? else { return Ok(()) };
        let Some((id, _)) = evidence.subscription() else { return Ok(()) };
        self.repair_subscription(&account, evidence, &id.clone()).await.map(|_| ())
    }

    /// Reports a customer without a user, once for each customer.
    pub(super) fn report_orphan(&mut self, parked: &Parked, object: &str, customer: Option<&CustomerId>) {
        let name = customer.map_or(object, CustomerId::as_str);
        if !self.dismissed.contains(object) && self.orphans.insert(name.to_owned()) {
            let found = for_operator(Class::OrphanCustomer, parked.to_string());
            self.report_difference(&found, object, None, customer);
        }
    }

    /// How many more changes this run may make.
    pub(super) fn remaining_changes(&self) -> u64 {
        if self.options.dry_run {
            u64::MAX
        } else {
            self.options.max_changes.saturating_sub(self.report.changed)
        }
    }

    pub(super) fn limit_reached(&self) -> String {
        format!("the run reached its maximum of {} changes", self.options.max_changes)
    }

    pub(super) fn job(&self, evidence: &Evidence, repair: Repair) -> Job {
        Job {
            event: evidence.event.clone(),
            digest: event::content_digest(&evidence.raw),
            raw: evidence.raw.clone(),
            received_ms: self.now.unix().saturating_mul(1000),
            mode: SecretMode::Any,
            // SQS does not redeliver this event, so an unknown user parks it at once.
            attempt: 2,
            repair: Some(repair),
        }
    }

    pub(super) fn by(&self) -> String {
        format!("reconcile:{}", self.report.run)
    }

    pub(super) fn since(&self) -> Timestamp {
        self.now.plus_days(-self.options.days)
    }
}

fn fact_list(facts: &Facts) -> String {
    facts.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}
