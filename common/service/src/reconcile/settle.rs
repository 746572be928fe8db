//! What comes of a difference: a repair, or a line for a person.

use tracing::{info, warn};

use super::report::{Change, Left};
use super::{Evidence, MOST_HELD, Report, Run, Trouble, person};
use crate::process::{EventOutcome, FoundAccount, Job, Repair};
use tallyhook_core::account::Account;
use tallyhook_core::decide::Parked;
use tallyhook_core::drift::{self, Class, Difference, Facts, Remedy};
use tallyhook_core::event;
use tallyhook_core::ids::{CustomerId, UserId};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

impl Run<'_> {
    /// Repairs what may be repaired, in one job, and lists the rest. Whether something was repaired.
    pub(super) async fn settle(
        &mut self,
        found: Vec<Difference>,
        evidence: &Evidence,
        object: &str,
        account: &Account,
    ) -> Result<bool, Trouble> {
        let user = Some(&account.user_id);
        let mut repairs = Vec::new();
        for difference in found {
            match &difference.remedy {
                Remedy::Person(_) => self.leave(&difference, object, user, evidence.event.customer()),
                Remedy::Lowers => {
                    self.leave(&difference, object, user, evidence.event.customer());
                    if self.held.len() < MOST_HELD {
                        self.held.push(evidence.clone());
                    }
                }
                Remedy::Repair => repairs.push(difference),
            }
        }
        // In a dry run nothing has changed when an object comes up a second time.
        repairs.retain(|difference| {
            !self.options.dry_run || !self.told.contains(&(difference.class, object.to_owned()))
        });
        let Some(first) = repairs.first() else { return Ok(false) };
        repairs.iter().for_each(|difference| self.found(difference.class, object));
        if self.room() == 0 {
            return Err(Trouble::Stop(self.cap()));
        }
        let note = repairs.iter().map(|difference| difference.class.as_str()).collect::<Vec<_>>().join(", ");
        let note = format!("{note}: {} -> {}", words(&first.before), words(&first.after));
        let evidence =
            &evidence.for_version(account.version).map_err(|error| Trouble::Object(error.to_string()))?;
        if !self.options.dry_run {
            let job = self.job(evidence, Repair { by: self.by(), note, as_itself: false });
            let done = self.processor.run(&[job], self.now).await.into_iter().next();
            match done {
                Some(Ok(EventOutcome::Processed(..))) => {}
                // Another run was faster.
                Some(Ok(EventOutcome::Duplicate)) => return Ok(true),
                Some(Ok(EventOutcome::Ignored(_) | EventOutcome::NotYet)) | None => return Ok(false),
                Some(Ok(EventOutcome::Parked(parked))) => {
                    self.leave(
                        &person(first.class, parked.to_string()),
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
            self.change(Change {
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

    pub(super) fn change(&mut self, change: Change) {
        info!(
            run = self.report.run,
            dry_run = self.report.dry_run,
            class = change.class.as_str(),
            object_id = change.object,
            event_id = change.event_id,
            user_id = change.user_id,
            customer_id = change.customer,
            before = words(&change.before),
            after = words(&change.after),
            "RECONCILE_CHANGED"
        );
        self.report.changed += 1;
        self.report.left.retain(|left| left.class != change.class || left.object != change.object);
        Report::list(&mut self.report.omitted, &mut self.report.changes, change);
    }

    pub(super) fn leave(
        &mut self,
        difference: &Difference,
        object: &str,
        user: Option<&UserId>,
        customer: Option<&CustomerId>,
    ) {
        let why = match &difference.remedy {
            Remedy::Person(why) => why.clone(),
            Remedy::Lowers => "it would lower the balance, which a person decides".to_owned(),
            Remedy::Repair => String::new(),
        };
        self.found(difference.class, object);
        self.report.left.retain(|left| left.class != difference.class || left.object != object);
        let left = Left {
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

    /// Counts a difference, once for each object and class.
    pub(super) fn found(&mut self, class: Class, object: &str) {
        if self.told.insert((class, object.to_owned())) {
            *self.report.found.entry(class).or_default() += 1;
        }
    }

    /// Looks again at what would have lowered a balance: later repairs may have made that untrue, and nothing
    /// of that kind is to be left for the next run.
    pub(super) async fn held(&mut self) -> Result<(), String> {
        while !self.held.is_empty() && !self.options.dry_run {
            let before = self.report.changed;
            for evidence in std::mem::take(&mut self.held) {
                self.check_time()?;
                let done = self.again(&evidence).await;
                self.note(
                    evidence.event.id.as_str(),
                    evidence.event.customer().map(ToString::to_string),
                    done,
                )?;
            }
            if self.report.changed == before {
                break;
            }
        }
        Ok(())
    }

    async fn again(&mut self, evidence: &Evidence) -> Result<(), Trouble> {
        let FoundAccount::Account(account, _) = self.look(evidence).await? else { return Ok(()) };
        if let Some((id, _)) = evidence.subscription() {
            return self.repair_subscription(&account, evidence, &id.clone()).await.map(|_| ());
        }
        let found = drift::document(&account, &evidence.event, &self.processor.accounts.catalog, self.now);
        let object = evidence.event.object_ids().first().map(|id| (*id).to_owned()).unwrap_or_default();
        self.settle(found.into_iter().collect(), evidence, &object, &account).await.map(|_| ())
    }

    /// Once for each customer.
    pub(super) fn orphan(&mut self, parked: &Parked, object: &str, customer: Option<&CustomerId>) {
        let name = customer.map_or(object, CustomerId::as_str);
        if self.orphans.insert(name.to_owned()) {
            let found = person(Class::OrphanCustomer, parked.to_string());
            self.leave(&found, object, None, customer);
        }
    }

    /// How many more changes this run may make.
    pub(super) fn room(&self) -> u64 {
        if self.options.dry_run {
            u64::MAX
        } else {
            self.options.most_changes.saturating_sub(self.report.changed)
        }
    }

    pub(super) fn cap(&self) -> String {
        format!("{} changes are the most for one run", self.options.most_changes)
    }

    pub(super) fn job(&self, evidence: &Evidence, repair: Repair) -> Job {
        Job {
            event: evidence.event.clone(),
            digest: event::content_digest(&evidence.raw),
            raw: evidence.raw.clone(),
            received_ms: self.now.unix().saturating_mul(1000),
            mode: SecretMode::Any,
            // Nobody will bring it again: what is not known is recorded as such.
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

fn words(facts: &Facts) -> String {
    facts.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}
