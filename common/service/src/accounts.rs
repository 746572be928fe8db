//! The one way to change an account: load → change → commit → notify → try again.
//!
//! Events in batches ([`crate::process`]), the app's calls, operators, schedules and repairs all come here.
//! [`AccountWrites`] is the only caller of the store's writer of accounts, so an account is never written
//! without its ledger entries and the jobs that notify the app.

use std::collections::HashMap;
use std::time::Duration;

use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::{Store, StoreError, Write};
use tallyhook_core::account::{Account, Change};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::ids::UserId;
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::timestamp::Timestamp;

use crate::outbox::{Before, Nudge, Outbox};

/// How often a change is tried against concurrent writers of the same account, within one call.
pub const MAX_ATTEMPTS: u32 = 10;

/// Where accounts are kept, what is sold, and how the app is notified.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The tables.
    pub store: Store,
    /// What is sold.
    pub catalog: Catalog,
    /// Notifies the app.
    pub outbox: Outbox,
}

/// What one change asks for.
pub enum Step<T> {
    /// Write this change and these items with it, then answer.
    Write(Box<Change>, Vec<Write>, T),
    /// Write nothing and answer.
    Answer(T),
}

/// What a change was given to decide on.
pub struct Loaded<'a> {
    /// The account; a new one if none is stored.
    pub account: Account,
    /// Everything that was read, by key.
    pub items: &'a HashMap<Key, Item>,
}

impl Accounts {
    /// Changes one account: reads it with `keys`, lets `decide` say what to do, and writes that in one
    /// transaction. If another writer won the race, it starts again from a fresh read.
    ///
    /// # Errors
    /// What `decide` says; [`StoreError`] when the store did not answer or the race was lost
    /// [`MAX_ATTEMPTS`] times.
    pub async fn change<T, E: From<StoreError>>(
        &self,
        user: &UserId,
        keys: &[Key],
        now: Timestamp,
        mut decide: impl AsyncFnMut(Loaded<'_>) -> Result<Step<T>, E>,
    ) -> Result<T, E> {
        let mut tried = 0;
        loop {
            tried += 1;
            let account_key = Key::Account(user.clone());
            let all = keys.iter().cloned().chain([account_key]);
            let items = self.store.load(all).await?;
            let account = load_account(user, &items)?;
            let mut writes = AccountWrites::new(self, &account, now);
            let (change, beside, answer) = match decide(Loaded { account, items: &items }).await? {
                Step::Write(change, beside, answer) => (change, beside, answer),
                Step::Answer(answer) => return Ok(answer),
            };
            writes.apply(&change);
            let (mut all, nudges) = writes.finish(self, &items)?;
            all.extend(beside);
            match self.store.commit(all).await {
                Ok(()) => {
                    self.outbox.send(&nudges).await;
                    return Ok(answer);
                }
                Err(error) if tried < MAX_ATTEMPTS && error.is_transient() => pause(tried).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The account of a user with the ledger entries of these keys; whether it is stored comes with it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self, user: &UserId, entries: &[LedgerKey]) -> Result<(Account, bool), StoreError> {
        let key = Key::Account(user.clone());
        let keys = entries.iter().map(|entry| Key::entry(user, entry)).chain([key.clone()]);
        let items = self.store.load(keys).await?;
        Ok((load_account(user, &items)?, items.contains_key(&key)))
    }
}

/// Waits a random moment that grows with the attempts.
pub async fn pause(attempt: u32) {
    let jitter = fastrand::u64(0..(10 << attempt.min(6)));
    tokio::time::sleep(Duration::from_millis(5 + jitter)).await;
}

/// What is written of one account in one transaction: the account, its new ledger entries, and the jobs that
/// notify the app.
pub struct AccountWrites {
    account: Account,
    loaded_version: u64,
    before: Before,
    entries: Vec<tallyhook_core::ledger::Entry>,
    changed: bool,
    now: Timestamp,
}

impl AccountWrites {
    /// Of an account as it was loaded.
    pub fn new(accounts: &Accounts, account: &Account, now: Timestamp) -> Self {
        let at = account.state.as_of.max(Timestamp::from_unix(0));
        // Until its access ended, the account was written with the tier of that time.
        let before = accounts.outbox.before(&account.state, &accounts.catalog, at.min(now));
        Self {
            account: account.clone(),
            loaded_version: account.version,
            before,
            entries: Vec::new(),
            changed: false,
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
    pub fn enlist(&mut self, event: &tallyhook_core::ids::EventId) -> String {
        self.changed = true;
        let previous = self.account.state.last_event.replace(event.clone());
        previous.map_or_else(String::new, |previous| previous.to_string())
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
    ) -> Result<(Vec<Write>, Vec<Nudge>), StoreError> {
        let Self { mut account, loaded_version, before, entries, changed, now } = self;
        if !changed {
            return Ok((Vec::new(), Vec::new()));
        }
        let user = account.user_id.clone();
        let mut writes = Vec::new();
        for entry in &entries {
            writes.push(items::entry(&user, entry, items.get(&Key::entry(&user, &entry.key)))?);
        }
        let jobs = accounts.outbox.jobs(&user, &before, &account.state, &accounts.catalog, now);
        let (nudges, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        writes.extend(jobs);
        account.version = loaded_version + 1;
        writes.push(items::account(&account, loaded_version, &accounts.catalog, now)?);
        Ok((writes, nudges))
    }
}

/// The account of a user among items that were read, with its ledger entries among them.
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
                if let Some((owner, entry)) = items::read_invoice(key, item)?
                    && owner == *user
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
            | Key::Event(_) => {}
        }
    }
    Ok(account)
}
