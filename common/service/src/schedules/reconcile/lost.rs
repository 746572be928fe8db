//! Lost events: undelivered events of Stripe that our log does not have.

use futures_util::future::join_all;

use super::report::ReportedRepair;
use super::{Evidence, MAX_DEFERRED, ReconcileRun, StepError, for_operator};
use crate::process::{EventOutcome, FoundAccount, Job, Repair, RepairKind};
use crate::worker::ask;
use tallyhook_core::decide::{Outcome, Parked, decide};
use tallyhook_core::drift::{Class, Facts};

impl ReconcileRun<'_> {
    /// Processes lost events. What they leave out is read from Stripe first, as for a webhook. An event that
    /// refers to something unknown waits for the end of the run.
    pub(super) async fn replay(&mut self, lost: Vec<Evidence>) -> Result<(), String> {
        let lost = self.complete(lost).await?;
        if lost.is_empty() {
            return Ok(());
        }
        let events: Vec<_> = lost.iter().map(|evidence| &evidence.event).collect();
        let accounts = self.processor.look(&events).await.map_err(|error| error.to_string())?;
        let mut due = Vec::new();
        for (evidence, found) in lost.iter().zip(accounts) {
            let event = &evidence.event;
            self.count_difference(Class::LostEvent, event.id.as_str());
            let parked = match found {
                Ok(FoundAccount::NoOwner(parked)) => Some(parked),
                Ok(FoundAccount::Account(account, payments)) => {
                    match decide(&account, event, &payments, &self.processor.accounts.catalog, self.now) {
                        Outcome::Park(parked) => Some(parked),
                        Outcome::Apply(_) | Outcome::Ignore(_) | Outcome::Tie => None,
                    }
                }
                Err(error) => {
                    self.note(event.id.as_str(), None, Err(error.into()))?;
                    continue;
                }
            };
            let waits = matches!(parked, Some(Parked::NoUser(_) | Parked::NoGrant(_)));
            if waits && self.deferred.len() < MAX_DEFERRED {
                self.deferred.push(event.id.clone());
            } else {
                due.push(evidence);
            }
        }
        self.run_lost(&due).await
    }

    /// Reads what these events leave out. Notes those for which Stripe does not answer, and drops them.
    async fn complete(&mut self, mut lost: Vec<Evidence>) -> Result<Vec<Evidence>, String> {
        let (stripe, catalog, prices) = (self.stripe, &self.processor.accounts.catalog, &self.prices);
        let complete = lost
            .iter_mut()
            .map(|evidence| ask::complete(stripe, catalog, prices, &mut evidence.event, &evidence.raw));
        let results = join_all(complete).await;
        let mut completed = Vec::new();
        for (evidence, result) in lost.into_iter().zip(results) {
            match result {
                Ok(()) => completed.push(evidence),
                Err(error) => self.note(evidence.event.id.as_str(), None, Err(StepError::Object(error)))?,
            }
        }
        Ok(completed)
    }

    async fn run_lost(&mut self, lost: &[&Evidence]) -> Result<(), String> {
        let remaining = usize::try_from(self.remaining_changes()).unwrap_or(usize::MAX);
        let cut = lost.len() > remaining;
        let lost = lost.get(..remaining).unwrap_or(lost);
        let note = "no endpoint took the event".to_owned();
        let kind = RepairKind::LostEvent;
        let repair = Repair { by: self.by(), note, kind, reversals: Vec::new() };
        let jobs: Vec<Job> = lost.iter().map(|evidence| self.job(evidence, repair.clone())).collect();
        if self.options.dry_run {
            lost.iter().for_each(|evidence| self.report_event(evidence, None, "to be processed"));
            return Ok(());
        }
        let outcomes = self.processor.run(&jobs, self.now).await;
        for (evidence, outcome) in lost.iter().zip(outcomes) {
            let id = evidence.event.id.as_str();
            let result = match outcome {
                Ok(EventOutcome::Processed(user, _)) => {
                    let user = user.map(|user| user.to_string());
                    self.report_event(evidence, user, "processed");
                    Ok(())
                }
                Ok(EventOutcome::Ignored(ignored)) => {
                    self.report_event(evidence, None, ignored.as_str());
                    Ok(())
                }
                Ok(EventOutcome::Parked(parked)) => {
                    let found = for_operator(Class::LostEvent, format!("parked: {parked}"));
                    self.report_difference(&found, id, None, evidence.event.customer());
                    Ok(())
                }
                // Its webhook arrived in the meantime.
                Ok(EventOutcome::Duplicate) => Ok(()),
                Ok(EventOutcome::NotYet) => Err(StepError::Object("no user is known yet".to_owned())),
                Err(error) => Err(error.into()),
            };
            self.note(id, evidence.event.customer().map(ToString::to_string), result)?;
        }
        if cut { Err(self.limit_reached()) } else { Ok(()) }
    }

    /// Processes the lost events that waited for the end of the run. What they refer to is known, or they are
    /// parked.
    pub(super) async fn run_deferred(&mut self) -> Result<(), String> {
        for id in std::mem::take(&mut self.deferred) {
            self.check_time()?;
            let evidence = match self.stripe.event(&id).await {
                Ok(object) => {
                    Evidence::of_event(&object).map_err(|error| StepError::Object(error.to_string()))
                }
                Err(error) => Err(error.into()),
            };
            match evidence {
                Ok(evidence) => {
                    let completed = self.complete(vec![evidence]).await?;
                    self.run_lost(&completed.iter().collect::<Vec<_>>()).await?;
                }
                Err(error) => self.note(id.as_str(), None, Err(error))?,
            }
        }
        Ok(())
    }

    fn report_event(&mut self, evidence: &Evidence, user_id: Option<String>, outcome: &str) {
        let event = &evidence.event;
        let after = Facts::from([("type", event.kind.to_string()), ("outcome", outcome.to_owned())]);
        self.report_repair(ReportedRepair {
            class: Class::LostEvent,
            object: event.id.to_string(),
            user_id,
            customer: event.customer().map(ToString::to_string),
            event_id: event.id.to_string(),
            before: Facts::new(),
            after,
        });
    }
}
