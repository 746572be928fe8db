//! Subscriptions, paid invoices and finished sessions. Each object is turned into the event that Stripe would
//! have sent about it, and compared with the account.

use super::{Evidence, List, MAX_SEEN, ReconcileRun, RunPosition, StepError, hash};
use crate::process::{FoundAccount, RepairKind};
use tallyhook_aws::stripe::{Cursor, Filter, ListPage, Object};
use tallyhook_core::account::Account;
use tallyhook_core::decide::{Parked, Payments, add_reversals, leaves_out};
use tallyhook_core::drift::{self, Remedy};
use tallyhook_core::event::{self, Event, Subscription, SubscriptionStatus};
use tallyhook_core::ids::SubscriptionId;

/// A run may end between the grant of a document and the refunds of its payment in the history. The next run
/// starts within this time and reads these refunds, or the grant includes them.
const MAX_DAYS_TO_NEXT_RUN: i64 = 7;

impl ReconcileRun<'_> {
    /// Does one page of subscriptions: reads the accounts of all of them at once, then compares each one.
    pub(super) async fn subscriptions(
        &mut self,
        position: &mut RunPosition,
        page: &ListPage,
    ) -> Result<(), String> {
        let list = List::Subscriptions;
        self.report.read(list.name(), page.objects.len());
        let evidence: Vec<_> = page.objects.iter().map(|object| self.evidence(list, object)).collect();
        let events: Vec<_> =
            evidence.iter().filter_map(|evidence| Some(&evidence.as_ref().ok()?.event)).collect();
        let mut accounts = self.processor.look(&events).await.map_err(|error| error.to_string())?.into_iter();
        let changed = self.report.changed;
        for (object, evidence) in page.objects.iter().zip(evidence) {
            self.check_time()?;
            let id = object.id().unwrap_or("(no id)").to_owned();
            let customer = object.value()["customer"].as_str().map(str::to_owned);
            let result = match evidence {
                Ok(evidence) => match accounts.next() {
                    // A repair on this page may have changed the same account, so read it again.
                    Some(_) if self.report.changed > changed => match self.find_account(&evidence).await {
                        Ok(found) => self.subscription(object, evidence, found).await,
                        Err(error) => Err(error),
                    },
                    Some(Ok(found)) => self.subscription(object, evidence, found).await,
                    Some(Err(error)) => Err(error.into()),
                    None => Ok(()),
                },
                Err(error) => Err(StepError::Object(error.to_string())),
            };
            self.note(&id, customer, result)?;
            position.after = object.id().map(str::to_owned).or(position.after.take());
        }
        Ok(())
    }

    fn livemode(&self) -> bool {
        self.processor.livemode.or(self.stripe.livemode()).unwrap_or(false)
    }

    pub(super) fn evidence(&self, list: List, object: &Object) -> Result<Evidence, event::ReadError> {
        let livemode = self.livemode();
        match list {
            List::Events(_) => Evidence::of_event(object),
            List::Subscriptions => {
                Evidence::of_subscription(object, livemode, self.now, self.options.imported_at)
            }
            List::Invoices => Evidence::of_invoice(object, livemode),
            List::Sessions => Evidence::of_session(object, livemode, None),
            List::Refunds => Evidence::of_refund(object, livemode, self.now),
            List::Disputes => Evidence::of_dispute(object, livemode, self.now),
        }
    }

    /// Compares a paid invoice or a finished session that is old enough.
    pub(super) async fn paid(
        &mut self,
        list: List,
        object: &Object,
        evidence: Evidence,
        found: FoundAccount,
    ) -> Result<(), StepError> {
        let newest = self.now.plus_seconds(-self.options.grace_seconds);
        if evidence.event.created > newest {
            return Ok(());
        }
        match list {
            List::Invoices => self.invoice(object, evidence, found).await,
            List::Sessions => self.session(object, evidence, found).await,
            List::Events(_) | List::Subscriptions | List::Refunds | List::Disputes => Ok(()),
        }
    }

    pub(super) async fn subscription(
        &mut self,
        object: &Object,
        mut evidence: Evidence,
        mut found: FoundAccount,
    ) -> Result<(), StepError> {
        let listed = evidence.subscription().map(|(id, listed)| (id.clone(), listed.clone()));
        let Some((id, listed)) = listed else {
            return Ok(());
        };
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(hash(&id));
        }
        let newest = self.now.plus_seconds(-self.options.grace_seconds);
        if listed.created.is_some_and(|created| created > newest) {
            return Ok(());
        }
        if listed.items_has_more {
            let whole = self.stripe.complete(object.clone()).await?;
            evidence = self
                .evidence(List::Subscriptions, &whole)
                .map_err(|error| StepError::Object(error.to_string()))?;
        }
        if matches!(found, FoundAccount::NoOwner(Parked::NoUser(_))) && gives_access(&listed) {
            let filter = Filter { subscription: Some(id.clone()), ..Filter::default() };
            self.link_customer_by_session(&filter).await?;
            found = self.find_account(&evidence).await?;
        }
        let account = match found {
            FoundAccount::Account(account, _) => account,
            FoundAccount::NoOwner(parked) => {
                if gives_access(&listed) {
                    self.report_orphan(&parked, id.as_str(), listed.customer.as_ref());
                }
                return Ok(());
            }
        };
        let repaired = self.repair_subscription(&account, &evidence, &id).await?;
        let account = self.account_after_repair(repaired, account, &evidence).await?;
        let Some(account) = account else { return Ok(()) };
        let may_be_paid = match listed.status {
            SubscriptionStatus::Active
            | SubscriptionStatus::PastDue
            | SubscriptionStatus::Unpaid
            | SubscriptionStatus::Paused => true,
            SubscriptionStatus::Canceled => listed.ended_at.is_some_and(|ended| ended >= self.since()),
            SubscriptionStatus::Trialing
            | SubscriptionStatus::Incomplete
            | SubscriptionStatus::IncompleteExpired
            | SubscriptionStatus::Other(_) => false,
        };
        if !may_be_paid
            || drift::has_opening(&account, &evidence.event, &id, &self.processor.accounts.catalog, self.now)
        {
            return Ok(());
        }
        // The payment of the current period may be older than the invoices that the pass over invoices reads,
        // for example that of a yearly plan.
        let from = listed.period_start().map_or(self.since(), |start| start.plus_days(-1).min(self.since()));
        let filter = Filter { subscription: Some(id.clone()), from: Some(from), ..Filter::default() };
        let page = self.stripe.paid_invoices(&filter, &Cursor::Newest).await?;
        let mut repaired = false;
        for invoice in page.objects.iter().rev() {
            let evidence = self
                .evidence(List::Invoices, invoice)
                .map_err(|error| StepError::Object(error.to_string()))?;
            let found = self.find_account(&evidence).await?;
            let before = self.report.changed;
            self.invoice(invoice, evidence, found).await?;
            repaired |= self.report.changed > before;
        }
        if repaired && let Some(account) = self.account_after_repair(true, account, &evidence).await? {
            // A change of plan within the period can only be applied after the payment opened the period.
            self.repair_subscription(&account, &evidence, &id).await?;
        }
        Ok(())
    }

    pub(super) async fn repair_subscription(
        &mut self,
        account: &Account,
        evidence: &Evidence,
        id: &SubscriptionId,
    ) -> Result<bool, StepError> {
        let differences = |account: &Account, evidence: &Evidence| {
            let catalog = &self.processor.accounts.catalog;
            drift::subscription(account, &evidence.event, id, catalog, self.since(), self.now)
        };
        let found = differences(account, evidence);
        if self.options.dry_run || found.iter().all(|difference| difference.remedy != Remedy::Repair) {
            return self.repair_or_report(found, evidence, id.as_str(), account).await;
        }
        let Some((evidence, account, _)) = self.read_again(evidence).await? else { return Ok(false) };
        let found = differences(&account, &evidence);
        self.repair_or_report(found, &evidence, id.as_str(), &account).await
    }

    /// Compares an invoice or a session with its account, and repairs or reports what differs.
    pub(super) async fn repair_document(
        &mut self,
        account: &Account,
        payments: &Payments,
        evidence: &Evidence,
        id: &str,
    ) -> Result<(), StepError> {
        let (catalog, now) = (self.processor.accounts.catalog.clone(), self.now);
        let difference = |account: &Account, payments: &Payments, evidence: &Evidence| {
            drift::document(account, &evidence.event, payments, &catalog, now)
        };
        let Some(found) = difference(account, payments, evidence) else { return Ok(()) };
        if let Remedy::Person(_) = found.remedy {
            self.report_difference(&found, id, Some(&account.user_id), evidence.event.customer());
            return Ok(());
        }
        if self.options.dry_run {
            return self.repair(vec![found], evidence, id, account, RepairKind::Document).await.map(|_| ());
        }
        let Some((mut evidence, account, mut payments)) = self.read_again(evidence).await? else {
            return Ok(());
        };
        // The pass over the history reads the refunds and disputes of younger documents. Those of this one
        // are applied in the transaction that grants it, because no later run reads them.
        if evidence.event.created < self.since().plus_days(MAX_DAYS_TO_NEXT_RUN) {
            evidence.reversals = self.reversals_of_document(&evidence).await?;
            add_reversals(&mut payments, &evidence.event, &evidence.reversals);
        }
        let Some(found) = difference(&account, &payments, &evidence) else { return Ok(()) };
        self.repair(vec![found], &evidence, id, &account, RepairKind::Document).await.map(|_| ())
    }

    /// The refunds and disputes of a document.
    async fn reversals_of_document(&mut self, evidence: &Evidence) -> Result<Vec<Event>, StepError> {
        let payments = if let event::Object::Invoice(invoice) = &evidence.event.object {
            self.stripe.payments_of_invoice(&invoice.id).await?
        } else if let event::Object::CheckoutSession(session) = &evidence.event.object {
            let of = |intent| Filter { payment_intent: Some(intent), ..Filter::default() };
            session.payment_intent.clone().map(of).into_iter().collect()
        } else {
            Vec::new()
        };
        let mut found = Vec::new();
        for payment in payments {
            let reversals = self.reversals_of(&payment).await?;
            found.extend(reversals.into_iter().map(|(_, evidence)| evidence.event));
        }
        Ok(found)
    }

    /// Reads the single object from Stripe, and then its account. The list that it came from may be minutes
    /// old, and its webhook may have arrived since. `None` if the object or its owner is gone, or if it is no
    /// longer paid or finished.
    async fn read_again(
        &self,
        evidence: &Evidence,
    ) -> Result<Option<(Evidence, Box<Account>, Payments)>, StepError> {
        let (list, read) = match &evidence.event.object {
            event::Object::Subscription(it) => (List::Subscriptions, self.stripe.subscription(&it.id).await),
            event::Object::Invoice(it) => (List::Invoices, self.stripe.invoice(&it.id).await),
            event::Object::CheckoutSession(it) => (List::Sessions, self.stripe.session(&it.id).await),
            event::Object::InvoicePayment(_)
            | event::Object::Charge(_)
            | event::Object::Refund(_)
            | event::Object::Dispute(_)
            | event::Object::Customer(_)
            | event::Object::Other => return Ok(None),
        };
        let object = match read {
            Ok(object) => self.stripe.complete(object).await?,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let status = object.value()["status"].as_str().map(str::to_owned);
        let finished = match list {
            List::Invoices => Some("paid"),
            List::Sessions => Some("complete"),
            List::Subscriptions | List::Events(_) | List::Refunds | List::Disputes => None,
        };
        if finished.is_some_and(|finished| status.as_deref() != Some(finished)) {
            return Ok(None);
        }
        let mut paid_at = None;
        if let event::Object::CheckoutSession(session) = &evidence.event.object
            && let Some(intent) = &session.payment_intent
        {
            paid_at = self.stripe.paid_at(intent).await?;
        }
        let evidence = if list == List::Sessions {
            Evidence::of_session(&object, self.livemode(), paid_at)
        } else {
            self.evidence(list, &object)
        };
        let evidence = evidence.map_err(|error| StepError::Object(error.to_string()))?;
        match self.find_account(&evidence).await? {
            FoundAccount::Account(account, payments) => Ok(Some((evidence, account, payments))),
            FoundAccount::NoOwner(_) => Ok(None),
        }
    }

    async fn invoice(
        &mut self,
        object: &Object,
        mut evidence: Evidence,
        found: FoundAccount,
    ) -> Result<(), StepError> {
        if object.value().pointer("/lines/has_more").and_then(serde_json::Value::as_bool) == Some(true) {
            let whole = self.stripe.complete(object.clone()).await?;
            evidence = self
                .evidence(List::Invoices, &whole)
                .map_err(|error| StepError::Object(error.to_string()))?;
        }
        self.document(object, evidence, found).await
    }

    async fn session(
        &mut self,
        object: &Object,
        mut evidence: Evidence,
        found: FoundAccount,
    ) -> Result<(), StepError> {
        if matches!(found, FoundAccount::Account(..))
            && leaves_out(&evidence.event)
            && let event::Object::CheckoutSession(session) = &evidence.event.object
        {
            let items = self.stripe.line_items(&session.id, &Cursor::Newest).await?;
            let whole = Evidence::of_session_with(object, &items.objects, evidence.event.livemode);
            evidence = whole.map_err(|error| StepError::Object(error.to_string()))?;
        }
        if matches!(found, FoundAccount::NoOwner(_)) && !evidence.is_paid_purchase() {
            return Ok(());
        }
        self.document(object, evidence, found).await
    }

    async fn document(
        &mut self,
        object: &Object,
        evidence: Evidence,
        mut found: FoundAccount,
    ) -> Result<(), StepError> {
        let id = object.id().unwrap_or_default().to_owned();
        let customer = evidence.event.customer().cloned();
        if matches!(found, FoundAccount::NoOwner(Parked::NoUser(_)))
            && let Some(customer) = &customer
            && !self.orphans.contains(customer.as_str())
        {
            let filter = Filter { customer: Some(customer.clone()), ..Filter::default() };
            self.link_customer_by_session(&filter).await?;
            found = self.find_account(&evidence).await?;
        }
        match found {
            FoundAccount::NoOwner(parked) => self.report_orphan(&parked, &id, customer.as_ref()),
            FoundAccount::Account(account, payments) => {
                self.repair_document(&account, &payments, &evidence, &id).await?;
            }
        }
        Ok(())
    }

    /// Reads the customer's finished sessions. A session may be the only object that names the user
    /// (`client_reference_id`); applying it links the customer.
    async fn link_customer_by_session(&mut self, filter: &Filter) -> Result<(), StepError> {
        let page = self.stripe.finished_sessions(filter, &Cursor::Newest).await?;
        for object in page.objects.iter().rev() {
            let evidence = self
                .evidence(List::Sessions, object)
                .map_err(|error| StepError::Object(error.to_string()))?;
            let FoundAccount::Account(account, payments) = self.find_account(&evidence).await? else {
                continue;
            };
            self.repair_document(&account, &payments, &evidence, object.id().unwrap_or_default()).await?;
        }
        Ok(())
    }

    pub(super) async fn find_account(&self, evidence: &Evidence) -> Result<FoundAccount, StepError> {
        let found = self.processor.look(&[&evidence.event]).await?.into_iter().next();
        found.unwrap_or(Ok(FoundAccount::NoOwner(Parked::NoUser(None)))).map_err(StepError::from)
    }

    /// The account as it is after a repair.
    async fn account_after_repair(
        &self,
        repaired: bool,
        account: Box<Account>,
        evidence: &Evidence,
    ) -> Result<Option<Box<Account>>, StepError> {
        if !repaired || self.options.dry_run {
            return Ok(Some(account));
        }
        match self.find_account(evidence).await? {
            FoundAccount::Account(account, _) => Ok(Some(account)),
            FoundAccount::NoOwner(_) => Ok(None),
        }
    }
}

fn gives_access(subscription: &Subscription) -> bool {
    matches!(
        subscription.status,
        SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::PastDue
    )
}
