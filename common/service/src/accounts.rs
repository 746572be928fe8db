//! The one way to change an account: load → change → commit → notify → try again.
//!
//! Batches of events ([`crate::process`]), the app's calls, operators, schedules and repairs all use it.
//! [`AccountWrites`] is the only caller of the store's writer of accounts, so an account is never written
//! without its ledger entries and the jobs that notify the app.

use std::collections::HashMap;
use std::sync::Arc;

use tallyhook_aws::clock;
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::{Reason, Store, StoreError, Write};
use tallyhook_core::account::{Account, Change};
use tallyhook_core::ids::{EventId, SessionId, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey};
use tallyhook_core::timestamp::Timestamp;

use crate::catalog_cache::{CatalogCache, DecidingCatalog};
use crate::outbox::{AppView, JobMessage, Outbox};

/// The maximum number of attempts of a change within one call, if other writers change the same account.
pub const MAX_ATTEMPTS: u32 = 10;

/// The tables, the catalog and the outbox: what a change of an account needs.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The tables.
    pub store: Store,
    /// What is sold.
    pub catalog: Arc<DecidingCatalog>,
    /// Reads the stored catalog.
    pub catalog_cache: CatalogCache,
    /// Notifies the app.
    pub outbox: Outbox,
}

/// A change of one account that is tried until it is written: read, decide, commit; if another writer won the
/// race, read and decide again.
///
/// ```text
/// let mut change = accounts.change(&user, &keys, now);
/// loop {
///     let account = change.read().await?;
///     // Decide on `account`; return early where nothing is to be written.
///     if change.commit(&decided, beside).await? { break }
/// }
/// ```
pub struct AccountChange<'a> {
    accounts: &'a Accounts,
    user: UserId,
    keys: Vec<Key>,
    now: Timestamp,
    tried: u32,
    account: Account,
    /// Everything that was read, by key.
    pub items: HashMap<Key, Item>,
}

impl AccountChange<'_> {
    /// Reads the account, a new one if none is stored, with its items.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(&mut self) -> Result<Account, StoreError> {
        self.tried += 1;
        let all = self.keys.iter().cloned().chain([Key::Account(self.user.clone())]);
        self.items = self.accounts.store.load(all).await?;
        self.account = load_account(&self.user, &self.items)?;
        Ok(self.account.clone())
    }

    /// Writes a change of the account that was read, and these items with it. `false`: another writer won the
    /// race; read and decide again.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer or the race was lost [`MAX_ATTEMPTS`] times.
    pub async fn commit(&mut self, change: &Change, beside: Vec<Write>) -> Result<bool, StoreError> {
        let mut writes = AccountWrites::new(self.accounts, &self.account, self.now);
        writes.apply(change);
        let (mut all, messages) = writes.finish(self.accounts, &self.items)?;
        all.extend(beside);
        let written: Vec<Key> = all.iter().map(|write| write.key.clone()).collect();
        match self.accounts.store.commit(all).await {
            Ok(()) => {
                self.accounts.outbox.send(&messages).await;
                Ok(true)
            }
            Err(error) if self.tried < MAX_ATTEMPTS && error.is_transient() => {
                if let StoreError::Cancelled(reasons) = &error {
                    // An entry exists that was not read: another write has booked what fell due by time.
                    let failed = reasons.iter().filter(|(_, reason)| *reason == Reason::Condition);
                    let failed = failed.filter_map(|(place, _)| written.get(*place));
                    self.keys.extend(failed.filter(|key| matches!(key, Key::Entry(..))).cloned());
                }
                clock::pause(self.tried).await;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Accounts {
    /// Starts with a catalog that is not stored.
    pub fn new(store: Store, catalog: Arc<DecidingCatalog>, outbox: Outbox) -> Self {
        let catalog_cache = CatalogCache::new(Arc::clone(&catalog));
        Self { store, catalog, catalog_cache, outbox }
    }

    /// The same accounts with the catalog that was read last.
    #[must_use]
    pub fn with_current_catalog(&self) -> Self {
        Self { catalog: self.catalog_cache.current(), ..self.clone() }
    }

    /// Whether another catalog was read since these accounts took theirs.
    pub fn has_other_catalog(&self) -> bool {
        !Arc::ptr_eq(&self.catalog, &self.catalog_cache.current())
    }

    /// The same accounts with the stored catalog, which is read if it is time.
    pub async fn with_fresh_catalog(&self) -> Self {
        Self { catalog: self.catalog_cache.fresh(&self.store).await, ..self.clone() }
    }

    /// Begins a change of one account; `keys` are read with it.
    pub fn change(&self, user: &UserId, keys: &[Key], now: Timestamp) -> AccountChange<'_> {
        AccountChange {
            accounts: self,
            user: user.clone(),
            keys: keys.to_vec(),
            now,
            tried: 0,
            account: Account::new(user.clone()),
            items: HashMap::new(),
        }
    }

    /// One entry of a user's ledger.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn entry(&self, user: &UserId, key: &LedgerKey) -> Result<Option<Entry>, StoreError> {
        let item = Key::entry(user, key);
        let items = self.store.load([item]).await?;
        Ok(load_account(user, &items)?.recorded.remove(key))
    }
}

/// The writes about one account in one transaction: the account, its new ledger entries, and the jobs that
/// notify the app.
pub struct AccountWrites {
    account: Account,
    loaded_version: u64,
    before: AppView,
    entries: Vec<Entry>,
    changed: bool,
    session: Option<SessionId>,
    now: Timestamp,
}

impl AccountWrites {
    /// Starts with an account as it was loaded.
    pub fn new(accounts: &Accounts, account: &Account, now: Timestamp) -> Self {
        let at = account.state.as_of.max(Timestamp::from_unix(0));
        // The app knows the tier of the last write, even if the access has ended by now.
        let before = accounts.outbox.view(&account.state, &accounts.catalog, at.min(now));
        Self {
            account: account.clone(),
            loaded_version: account.version,
            before,
            entries: Vec::new(),
            changed: false,
            session: None,
            now,
        }
    }

    /// The account after all changes so far.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Applies a change that was decided on [`AccountWrites::account`].
    pub fn apply(&mut self, change: &Change) {
        self.account = self.account.after(change);
        self.entries.extend(change.entries.iter().cloned());
        self.changed = true;
    }

    /// Makes an event the newest of the user's list; returns the one before it, empty for the first.
    pub fn enlist(&mut self, event: &EventId) -> String {
        self.changed = true;
        let previous = self.account.state.last_event.replace(event.clone());
        previous.map_or_else(String::new, |previous| previous.to_string())
    }

    /// Sets the checkout session of the change. Its jobs name this session too.
    pub fn paid_by(&mut self, session: SessionId) {
        self.session = Some(session);
    }

    /// Whether the account is stored, or will be.
    pub fn is_stored(&self) -> bool {
        self.loaded_version > 0 || self.changed
    }

    /// The writes, and the jobs to send after the commit. Nothing for an account that did not change.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if something cannot be written as an item.
    pub fn finish(
        self,
        accounts: &Accounts,
        items: &HashMap<Key, Item>,
    ) -> Result<(Vec<Write>, Vec<JobMessage>), StoreError> {
        let Self { mut account, loaded_version, before, entries, changed, session, now } = self;
        if !changed {
            return Ok((Vec::new(), Vec::new()));
        }
        let user = account.user_id.clone();
        let mut writes = Vec::new();
        for entry in &entries {
            writes.push(items::entry(&user, entry, items.get(&Key::entry(&user, &entry.key)))?);
        }
        let jobs =
            accounts.outbox.jobs(&user, session.as_ref(), &before, &account.state, &accounts.catalog, now);
        let (messages, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        writes.extend(jobs);
        account.version = loaded_version + 1;
        writes.push(items::account(&account, loaded_version, &accounts.catalog, now)?);
        Ok((writes, messages))
    }
}

/// The account of a user and its ledger entries, from items that were read.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn load_account(user: &UserId, items: &HashMap<Key, Item>) -> Result<Account, StoreError> {
    let key = Key::Account(user.clone());
    let mut account = match items.get(&key) {
        Some(item) => items::read_account(user, item)?,
        None => Account::new(user.clone()),
    };
    for (key, item) in items {
        match key {
            Key::Entry(owner, entry) if owner == user => {
                account.recorded.insert(entry.clone(), items::read(key, item)?);
            }
            Key::Invoice(invoice) => {
                // The entry of a moved invoice is in the ledger of the user who had it before.
                let owner = items::read_invoice(key, item)?.map(|(owner, _)| owner);
                if let Some((of_ledger, entry)) = items::read_invoice_entry(key, item)?
                    && (of_ledger == *user || owner.as_ref() == Some(user))
                {
                    account.recorded.insert(LedgerKey::invoice(invoice), entry);
                }
            }
            Key::Entry(..)
            | Key::Account(_)
            | Key::Subscription(_)
            | Key::Newcomer(_)
            | Key::Order(..)
            | Key::Portal(_)
            | Key::Customer(_)
            | Key::Session(_)
            | Key::Payment(_)
            | Key::Catalog
            | Key::CatalogVersion(_)
            | Key::LearntPrices
            | Key::Event(_) => {}
        }
    }
    Ok(account)
}
