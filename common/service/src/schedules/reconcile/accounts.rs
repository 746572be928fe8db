//! The pass over the accounts, and the comparison of one user.

use super::{List, Pass, ReconcileRun, RunPosition, StepError, hash};
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::stripe::{Cursor, Filter};
use tallyhook_core::account::Account;
use tallyhook_core::drift::{self, Class};
use tallyhook_core::ids::UserId;

/// The invoice of a younger state of a subscription may still arrive.
const INVOICE_SECONDS: i64 = 3600;

impl ReconcileRun<'_> {
    /// Checks a page of accounts for what no list of Stripe shows.
    pub(super) async fn accounts(&mut self, position: &mut RunPosition) -> Result<bool, String> {
        let page = self
            .processor
            .accounts
            .store
            .accounts(position.after.as_deref())
            .await
            .map_err(|error| error.to_string())?;
        self.report.read("accounts", page.accounts.len());
        for (user, account) in page.accounts {
            self.check_time()?;
            let result = match account {
                Ok(account) => self.account(&account).await,
                Err(error) => Err(error.into()),
            };
            self.note(&user, None, result)?;
        }
        position.after = page.next;
        Ok(position.after.is_some())
    }

    async fn account(&mut self, account: &Account) -> Result<(), StepError> {
        let catalog = self.processor.accounts.catalog.clone();
        if let Some(found) = drift::duplicates(account, &catalog, self.now) {
            self.report_difference(&found, account.user_id.as_str(), Some(&account.user_id), None);
        }
        self.plans_without_invoice(account);
        for id in drift::live(account, &catalog, self.now) {
            if self.seen.contains(&hash(id)) {
                continue;
            }
            match self.stripe.subscription(id).await {
                Ok(object) => {
                    let evidence = self
                        .evidence(List::Subscriptions, &object)
                        .map_err(|error| StepError::Object(error.to_string()))?;
                    let found = self.find_account(&evidence).await?;
                    self.subscription(&object, evidence, found).await?;
                }
                Err(error) if error.is_missing() => {
                    let found = drift::missing_at_stripe(account, id, &catalog, self.now);
                    let customer = account
                        .state
                        .subscriptions
                        .get(id)
                        .and_then(|subscription| subscription.customer.as_ref());
                    self.report_difference(&found, id.as_str(), Some(&account.user_id), customer);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reports active plans without a paid invoice, except where this run adds the invoice.
    fn plans_without_invoice(&mut self, account: &Account) {
        let catalog = self.processor.accounts.catalog.clone();
        let user = account.user_id.as_str();
        let is_repaired = self
            .report
            .changes
            .iter()
            .any(|change| change.class == Class::Credits && change.user_id.as_deref() == Some(user));
        if is_repaired {
            return;
        }
        let since = self.now.plus_seconds(-INVOICE_SECONDS);
        for id in account.state.plans_without_invoice(&catalog, since, self.now) {
            let found = drift::plan_without_invoice(account, id, &catalog, self.now);
            let subscription = account.state.subscriptions.get(id);
            let customer = subscription.and_then(|subscription| subscription.customer.as_ref());
            self.report_difference(&found, id.as_str(), Some(&account.user_id), customer);
        }
    }

    /// Runs the passes that can be filtered by customer, for the customers of one user.
    pub(super) async fn everything_of(&mut self, user: &UserId) -> Result<(), StepError> {
        self.dismissed = self.processor.accounts.store.dismissed_objects().await?;
        let key = Key::Account(user.clone());
        let items = self.processor.accounts.store.load([key.clone()]).await?;
        let Some(item) = items.get(&key) else { return Ok(()) };
        let account = items::read_account(user, item)?;
        let customers: Vec<_> = account.state.customers.keys().cloned().collect();
        self.history_of(&customers).await.map_err(StepError::Stop)?;
        for customer in customers {
            let filter = Filter { customer: Some(customer), ..Filter::default() };
            let mut position = RunPosition { started: self.now, pass: Pass::Subscriptions, after: None };
            loop {
                let cursor = Cursor::after(position.after.as_deref());
                let page = self.fetch(List::Subscriptions, &filter, &cursor).await?;
                self.subscriptions(&mut position, &page).await.map_err(StepError::Stop)?;
                if !page.has_more || page.last_id().is_none() {
                    break;
                }
            }
        }
        let items = self.processor.accounts.store.load([key.clone()]).await?;
        match items.get(&key) {
            Some(item) => self.account(&items::read_account(user, item)?).await?,
            None => return Ok(()),
        }
        self.recheck_postponed().await.map_err(StepError::Stop)
    }
}
