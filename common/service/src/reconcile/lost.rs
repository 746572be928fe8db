//! The pass over undelivered events: what our log does not have is replayed as itself.

use super::report::Change;
use super::{BATCH, Evidence, MOST_DEFERRED, Place, Run, Trouble, person};
use crate::process::{EventOutcome, FoundAccount, Job, Repair};
use tallyhook_aws::store::items::Key;
use tallyhook_aws::stripe::{Object, Page};
use tallyhook_core::decide::{Outcome, Parked, decide};
use tallyhook_core::drift::{Class, Facts};

impl Run<'_> {
    /// Undelivered events that our log does not have, newest first.
    pub(super) async fn events(&mut self, place: &mut Place, page: &Page) -> Result<(), String> {
        self.report.read("events", page.objects.len());
        let ids = page.objects.iter().filter_map(Object::id);
        let known = self
            .processor
            .accounts
            .store
            .load(ids.map(|id| Key::Event(id.to_owned())))
            .await
            .map_err(|error| error.to_string())?;
        let young = self.now.plus_seconds(-self.options.grace_seconds);
        let mut lost = Vec::new();
        for object in &page.objects {
            let Some(id) = object.id() else { continue };
            if known.contains_key(&Key::Event(id.to_owned())) {
                continue;
            }
            match Evidence::of_event(object) {
                Ok(evidence) if evidence.event.created <= young => lost.push(evidence),
                Ok(_) => {}
                Err(error) => self.note(id, None, Err(Trouble::Object(error.to_string())))?,
            }
        }
        for batch in lost.chunks(BATCH) {
            self.check_time()?;
            self.replay(batch).await?;
            if let Some(last) = batch.last() {
                place.after = Some(last.event.id.to_string());
            }
        }
        place.after = page.last_id().map(str::to_owned).or(place.after.take());
        Ok(())
    }

    /// Does what lost events would have done. One that refers to something unknown waits for the end of the
    /// run.
    async fn replay(&mut self, lost: &[Evidence]) -> Result<(), String> {
        let events: Vec<_> = lost.iter().map(|evidence| &evidence.event).collect();
        let seen = self.processor.look(&events).await.map_err(|error| error.to_string())?;
        let mut due = Vec::new();
        for (evidence, seen) in lost.iter().zip(seen) {
            let event = &evidence.event;
            self.found(Class::LostEvent, event.id.as_str());
            let parked = match seen {
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
            if waits && self.deferred.len() < MOST_DEFERRED {
                self.deferred.push(event.id.clone());
            } else {
                due.push(evidence);
            }
        }
        self.run_lost(&due).await
    }

    async fn run_lost(&mut self, lost: &[&Evidence]) -> Result<(), String> {
        let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
        let cut = lost.len() > room;
        let lost = lost.get(..room).unwrap_or(lost);
        let note = "no endpoint took the event".to_owned();
        let repair = Repair { by: self.by(), note, as_itself: true };
        let jobs: Vec<Job> = lost.iter().map(|evidence| self.job(evidence, repair.clone())).collect();
        if self.options.dry_run {
            lost.iter().for_each(|evidence| self.changed_by_event(evidence, None, "to be processed"));
            return Ok(());
        }
        let done = self.processor.run(&jobs, self.now).await;
        for (evidence, done) in lost.iter().zip(done) {
            let id = evidence.event.id.as_str();
            let done = match done {
                Ok(EventOutcome::Processed(user, _)) => {
                    let user = user.map(|user| user.to_string());
                    self.changed_by_event(evidence, user, "processed");
                    Ok(())
                }
                Ok(EventOutcome::Ignored(ignored)) => {
                    self.changed_by_event(evidence, None, ignored.as_str());
                    Ok(())
                }
                Ok(EventOutcome::Parked(parked)) => {
                    let found = person(Class::LostEvent, format!("parked: {parked}"));
                    self.leave(&found, id, None, evidence.event.customer());
                    Ok(())
                }
                // It came by itself in the meantime.
                Ok(EventOutcome::Duplicate) => Ok(()),
                Ok(EventOutcome::NotYet) => Err(Trouble::Object("no user is known yet".to_owned())),
                Err(error) => Err(error.into()),
            };
            self.note(id, evidence.event.customer().map(ToString::to_string), done)?;
        }
        if cut { Err(self.cap()) } else { Ok(()) }
    }

    /// The lost events that had to wait: what they refer to is known by now, or they are parked.
    pub(super) async fn deferred(&mut self) -> Result<(), String> {
        let mut waiting = std::mem::take(&mut self.deferred);
        // They were found newest first.
        waiting.reverse();
        for id in waiting {
            self.check_time()?;
            let read = match self.stripe.event(&id).await {
                Ok(object) => Evidence::of_event(&object).map_err(|error| Trouble::Object(error.to_string())),
                Err(error) => Err(error.into()),
            };
            match read {
                Ok(evidence) => self.run_lost(&[&evidence]).await?,
                Err(trouble) => self.note(id.as_str(), None, Err(trouble))?,
            }
        }
        Ok(())
    }

    fn changed_by_event(&mut self, evidence: &Evidence, user_id: Option<String>, what: &str) {
        let event = &evidence.event;
        let after = Facts::from([("type", event.kind.to_string()), ("outcome", what.to_owned())]);
        self.change(Change {
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
