//! The passes over subscriptions, paid invoices and finished sessions: each as the event that would have told
//! it.

use super::{Evidence, MOST_SEEN, Pass, Place, Run, Trouble, hash};
use crate::process::FoundAccount;
use tallyhook_aws::stripe::{Cursor, Filter, Object, Page};
use tallyhook_core::account::Account;
use tallyhook_core::decide::{Parked, leaves_out};
use tallyhook_core::drift;
use tallyhook_core::event::{self, Subscription, SubscriptionStatus};
use tallyhook_core::ids::SubscriptionId;

impl Run<'_> {
    /// One page: everything that deciding takes is read at once, then each object is looked at on its own.
    pub(super) async fn documents(&mut self, place: &mut Place, page: &Page) -> Result<(), String> {
        let pass = place.pass;
        self.report.read(what(pass), page.objects.len());
        let evidence: Vec<_> = page.objects.iter().map(|object| self.evidence(pass, object)).collect();
        let events: Vec<_> =
            evidence.iter().filter_map(|evidence| Some(&evidence.as_ref().ok()?.event)).collect();
        let mut seen = self.processor.look(&events).await.map_err(|error| error.to_string())?.into_iter();
        let changed = self.report.changed;
        for (object, evidence) in page.objects.iter().zip(evidence) {
            self.check_time()?;
            let id = object.id().unwrap_or("(no id)").to_owned();
            let customer = object.value()["customer"].as_str().map(str::to_owned);
            let done = match evidence {
                Ok(evidence) => match seen.next() {
                    // A repair on this page may have been of the same account.
                    Some(_) if self.report.changed > changed => match self.look(&evidence).await {
                        Ok(seen) => self.one(pass, object, evidence, seen).await,
                        Err(trouble) => Err(trouble),
                    },
                    Some(Ok(seen)) => self.one(pass, object, evidence, seen).await,
                    Some(Err(error)) => Err(error.into()),
                    None => Ok(()),
                },
                Err(error) => Err(Trouble::Object(error.to_string())),
            };
            self.note(&id, customer, done)?;
            place.after = object.id().map(str::to_owned).or(place.after.take());
        }
        Ok(())
    }

    pub(super) fn evidence(&self, pass: Pass, object: &Object) -> Result<Evidence, event::ReadError> {
        let livemode = self.processor.livemode.or(self.stripe.livemode()).unwrap_or(false);
        match pass {
            Pass::Invoices => Evidence::of_invoice(object, livemode),
            Pass::Sessions => Evidence::of_session(object, livemode),
            Pass::Events(_) | Pass::Subscriptions | Pass::Accounts => {
                Evidence::of_subscription(object, livemode, self.now)
            }
        }
    }

    async fn one(
        &mut self,
        pass: Pass,
        object: &Object,
        evidence: Evidence,
        seen: FoundAccount,
    ) -> Result<(), Trouble> {
        let young = self.now.plus_seconds(-self.options.grace_seconds);
        match pass {
            Pass::Invoices if evidence.event.created <= young => self.invoice(object, evidence, seen).await,
            Pass::Sessions if evidence.event.created <= young => self.session(object, evidence, seen).await,
            Pass::Subscriptions => self.subscription(object, evidence, seen).await,
            Pass::Invoices | Pass::Sessions | Pass::Events(_) | Pass::Accounts => Ok(()),
        }
    }

    pub(super) async fn subscription(
        &mut self,
        object: &Object,
        mut evidence: Evidence,
        mut seen: FoundAccount,
    ) -> Result<(), Trouble> {
        let Some((id, told)) = evidence.subscription().map(|(id, told)| (id.clone(), told.clone())) else {
            return Ok(());
        };
        if self.seen.len() < MOST_SEEN {
            self.seen.insert(hash(&id));
        }
        let young = self.now.plus_seconds(-self.options.grace_seconds);
        if told.created.is_some_and(|created| created > young) {
            return Ok(());
        }
        if told.items_has_more {
            let whole = self.stripe.complete(object.clone()).await?;
            evidence = self
                .evidence(Pass::Subscriptions, &whole)
                .map_err(|error| Trouble::Object(error.to_string()))?;
        }
        if matches!(seen, FoundAccount::NoOwner(Parked::NoUser(_))) && gives_access(&told) {
            let filter = Filter { subscription: Some(id.clone()), ..Filter::default() };
            self.learn_user(&filter).await?;
            seen = self.look(&evidence).await?;
        }
        let account = match seen {
            FoundAccount::Account(account, _) => account,
            FoundAccount::NoOwner(parked) => {
                if gives_access(&told) {
                    self.orphan(&parked, id.as_str(), told.customer.as_ref());
                }
                return Ok(());
            }
        };
        let repaired = self.repair_subscription(&account, &evidence, &id).await?;
        let Some(account) = self.account(repaired, account, &evidence).await? else { return Ok(()) };
        let payable = match told.status {
            SubscriptionStatus::Active
            | SubscriptionStatus::PastDue
            | SubscriptionStatus::Unpaid
            | SubscriptionStatus::Paused => true,
            SubscriptionStatus::Canceled => told.ended_at.is_some_and(|ended| ended >= self.since()),
            SubscriptionStatus::Trialing
            | SubscriptionStatus::Incomplete
            | SubscriptionStatus::IncompleteExpired
            | SubscriptionStatus::Other(_) => false,
        };
        if !payable
            || drift::has_opening(&account, &evidence.event, &id, &self.processor.accounts.catalog, self.now)
        {
            return Ok(());
        }
        // The payment of the running period may be older than what the pass over invoices looks at: a yearly
        // plan's is.
        let from = told.period_start().map_or(self.since(), |start| start.plus_days(-1).min(self.since()));
        let filter = Filter { subscription: Some(id.clone()), from: Some(from), ..Filter::default() };
        let page = self.stripe.paid_invoices(&filter, &Cursor::Newest).await?;
        let mut repaired = false;
        for invoice in page.objects.iter().rev() {
            let evidence =
                self.evidence(Pass::Invoices, invoice).map_err(|error| Trouble::Object(error.to_string()))?;
            let seen = self.look(&evidence).await?;
            let before = self.report.changed;
            self.invoice(invoice, evidence, seen).await?;
            repaired |= self.report.changed > before;
        }
        if repaired && let Some(account) = self.account(true, account, &evidence).await? {
            // A change of plan within the period counts once the period is open.
            self.repair_subscription(&account, &evidence, &id).await?;
        }
        Ok(())
    }

    pub(super) async fn repair_subscription(
        &mut self,
        account: &Account,
        evidence: &Evidence,
        id: &SubscriptionId,
    ) -> Result<bool, Trouble> {
        let catalog = &self.processor.accounts.catalog;
        let found = drift::subscription(account, &evidence.event, id, catalog, self.since(), self.now);
        self.settle(found, evidence, id.as_str(), account).await
    }

    async fn invoice(
        &mut self,
        object: &Object,
        mut evidence: Evidence,
        seen: FoundAccount,
    ) -> Result<(), Trouble> {
        if object.value().pointer("/lines/has_more").and_then(serde_json::Value::as_bool) == Some(true) {
            let whole = self.stripe.complete(object.clone()).await?;
            evidence =
                self.evidence(Pass::Invoices, &whole).map_err(|error| Trouble::Object(error.to_string()))?;
        }
        self.document(object, evidence, seen).await
    }

    async fn session(
        &mut self,
        object: &Object,
        mut evidence: Evidence,
        seen: FoundAccount,
    ) -> Result<(), Trouble> {
        if matches!(seen, FoundAccount::Account(..))
            && leaves_out(&evidence.event)
            && let event::Object::CheckoutSession(session) = &evidence.event.object
        {
            let items = self.stripe.line_items(&session.id, &Cursor::Newest).await?;
            let whole = Evidence::of_session_with(object, &items.objects, evidence.event.livemode);
            evidence = whole.map_err(|error| Trouble::Object(error.to_string()))?;
        }
        if matches!(seen, FoundAccount::NoOwner(_)) && !evidence.is_paid_purchase() {
            return Ok(());
        }
        self.document(object, evidence, seen).await
    }

    async fn document(
        &mut self,
        object: &Object,
        evidence: Evidence,
        mut seen: FoundAccount,
    ) -> Result<(), Trouble> {
        let id = object.id().unwrap_or_default().to_owned();
        let customer = evidence.event.customer().cloned();
        if matches!(seen, FoundAccount::NoOwner(Parked::NoUser(_)))
            && let Some(customer) = &customer
            && !self.orphans.contains(customer.as_str())
        {
            self.learn_user(&Filter { customer: Some(customer.clone()), ..Filter::default() }).await?;
            seen = self.look(&evidence).await?;
        }
        match seen {
            FoundAccount::NoOwner(parked) => self.orphan(&parked, &id, customer.as_ref()),
            FoundAccount::Account(account, _) => {
                let found =
                    drift::document(&account, &evidence.event, &self.processor.accounts.catalog, self.now);
                self.settle(found.into_iter().collect(), &evidence, &id, &account).await?;
            }
        }
        Ok(())
    }

    /// A finished session may be the only thing that names the user (`client_reference_id`): it binds the
    /// customer.
    async fn learn_user(&mut self, filter: &Filter) -> Result<(), Trouble> {
        let page = self.stripe.finished_sessions(filter, &Cursor::Newest).await?;
        for object in &page.objects {
            let evidence =
                self.evidence(Pass::Sessions, object).map_err(|error| Trouble::Object(error.to_string()))?;
            let FoundAccount::Account(account, _) = self.look(&evidence).await? else { continue };
            let found =
                drift::document(&account, &evidence.event, &self.processor.accounts.catalog, self.now);
            let id = object.id().unwrap_or_default();
            self.settle(found.into_iter().collect(), &evidence, id, &account).await?;
        }
        Ok(())
    }

    pub(super) async fn look(&self, evidence: &Evidence) -> Result<FoundAccount, Trouble> {
        let seen = self.processor.look(&[&evidence.event]).await?.into_iter().next();
        seen.unwrap_or(Ok(FoundAccount::NoOwner(Parked::NoUser(None)))).map_err(Trouble::from)
    }

    /// The account as it is after a repair.
    async fn account(
        &self,
        repaired: bool,
        account: Box<Account>,
        evidence: &Evidence,
    ) -> Result<Option<Box<Account>>, Trouble> {
        if !repaired || self.options.dry_run {
            return Ok(Some(account));
        }
        match self.look(evidence).await? {
            FoundAccount::Account(account, _) => Ok(Some(account)),
            FoundAccount::NoOwner(_) => Ok(None),
        }
    }
}

fn what(pass: Pass) -> &'static str {
    match pass {
        Pass::Events(_) => "events",
        Pass::Subscriptions => "subscriptions",
        Pass::Invoices => "invoices",
        Pass::Sessions => "sessions",
        Pass::Accounts => "accounts",
    }
}

fn gives_access(subscription: &Subscription) -> bool {
    matches!(
        subscription.status,
        SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::PastDue
    )
}
