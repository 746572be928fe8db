//! The pass over the accounts, and a run over one of them.

use super::{Pass, Place, Run, Trouble, hash};
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::stripe::{Cursor, Filter};
use tallyhook_core::account::Account;
use tallyhook_core::drift;
use tallyhook_core::ids::UserId;

impl Run<'_> {
    /// A page of accounts: what only a look at all of them can tell.
    pub(super) async fn accounts(&mut self, place: &mut Place) -> Result<bool, String> {
        let page = self
            .processor
            .accounts
            .store
            .accounts(place.after.as_deref())
            .await
            .map_err(|error| error.to_string())?;
        self.report.read("accounts", page.accounts.len());
        for (user, account) in page.accounts {
            self.check_time()?;
            let done = match account {
                Ok(account) => self.one_account(&account).await,
                Err(error) => Err(error.into()),
            };
            self.note(&user, None, done)?;
        }
        place.after = page.next;
        Ok(place.after.is_some())
    }

    async fn one_account(&mut self, account: &Account) -> Result<(), Trouble> {
        let catalog = self.processor.accounts.catalog.clone();
        if let Some(found) = drift::duplicates(account, &catalog, self.now) {
            self.leave(&found, account.user_id.as_str(), Some(&account.user_id), None);
        }
        for id in drift::live(account, &catalog, self.now) {
            if self.seen.contains(&hash(id)) {
                continue;
            }
            match self.stripe.subscription(id).await {
                Ok(object) => {
                    let evidence = self
                        .evidence(Pass::Subscriptions, &object)
                        .map_err(|error| Trouble::Object(error.to_string()))?;
                    let seen = self.look(&evidence).await?;
                    self.subscription(&object, evidence, seen).await?;
                }
                Err(error) if error.is_missing() => {
                    let found = drift::missing_at_stripe(account, id, &catalog, self.now);
                    let customer = account
                        .state
                        .subscriptions
                        .get(id)
                        .and_then(|subscription| subscription.customer.as_ref());
                    self.leave(&found, id.as_str(), Some(&account.user_id), customer);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// All passes that have a filter by customer, for the customers of one user.
    pub(super) async fn everything_of(&mut self, user: &UserId) -> Result<(), Trouble> {
        let key = Key::Account(user.clone());
        let items = self.processor.accounts.store.load([key.clone()]).await?;
        let Some(item) = items.get(&key) else { return Ok(()) };
        let account = items::read_account(user, item)?;
        for customer in account.state.customers.keys() {
            for pass in [Pass::Subscriptions, Pass::Invoices, Pass::Sessions] {
                let filter = Filter {
                    customer: Some(customer.clone()),
                    from: Some(self.since()),
                    ..Filter::default()
                };
                let mut place = Place { started: self.now, pass, after: None };
                loop {
                    let page = self.fetch(pass, &filter, &Cursor::after(place.after.as_deref())).await?;
                    self.objects(&mut place, &page).await.map_err(Trouble::Stop)?;
                    if !page.has_more || page.last_id().is_none() {
                        break;
                    }
                }
            }
        }
        let items = self.processor.accounts.store.load([key.clone()]).await?;
        match items.get(&key) {
            Some(item) => self.one_account(&items::read_account(user, item)?).await?,
            None => return Ok(()),
        }
        self.held().await.map_err(Trouble::Stop)
    }
}
