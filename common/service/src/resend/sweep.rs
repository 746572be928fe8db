//! After a change of the catalog: writes the accounts with the `tier` and `features` of an older catalog.
//!
//! Every read of the API follows the catalog at once. The sweep is for apps that read the table. It runs with
//! `retry`, every 15 minutes. A run reads and writes a limited number of accounts, and keeps its place, so
//! that the next run continues; ten thousand accounts take less than an hour. Without a change of the catalog
//! a run costs one read of the place.

use futures_util::StreamExt;
use futures_util::stream;
use tracing::{info, warn};

use crate::accounts::Accounts;
use tallyhook_aws::store::StoreError;
use tallyhook_aws::store::items::{self, SweepPlace};
use tallyhook_core::account::Cause;
use tallyhook_core::ids::UserId;
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::timestamp::Timestamp;

/// Accounts that one run writes, except for the rest of a page.
const MAX_WRITTEN: usize = 4_000;
/// Pages of 100 accounts that one run reads.
const MAX_PAGES: usize = 400;
/// Accounts that are written at the same time.
const CONCURRENCY: usize = 8;

/// What a run of the sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Accounts that were written.
    pub written: usize,
    /// Whether accounts are left for the next run.
    pub more: bool,
}

/// Does one run.
///
/// # Errors
/// [`StoreError`]; what was done before stays done, and the next run continues there.
pub async fn run(accounts: &Accounts, now: Timestamp) -> Result<SweepReport, StoreError> {
    let mut report = SweepReport::default();
    let store = &accounts.store;
    let digest = accounts.catalog.features_digest();
    let key = items::sweep_key();
    let known = store.load([key.clone()]).await?.get(&key).map(items::read_sweep);
    let place = match known {
        None if digest.is_none() => return Ok(report),
        Some(place) if place.digest == digest && place.is_done() => return Ok(report),
        Some(place) if place.digest == digest => place,
        Some(_) | None => SweepPlace::start(digest.clone()),
    };
    let mut after = place.after;
    for _ in 0..MAX_PAGES {
        if report.written >= MAX_WRITTEN {
            break;
        }
        let page = store.accounts_of_other_catalogs(digest.as_deref(), after.as_deref()).await?;
        let written = stream::iter(page.users).map(|user| async move { write(accounts, &user, now).await });
        let written: Vec<Result<bool, StoreError>> = written.buffer_unordered(CONCURRENCY).collect().await;
        for written in written {
            report.written += usize::from(written?);
        }
        after = page.next;
        let place = SweepPlace { digest: digest.clone(), after: after.clone(), started: true };
        store.commit(vec![items::sweep(&place)]).await?;
        if after.is_none() {
            info!(written = report.written, more = false, "FEATURES_WRITTEN");
            return Ok(report);
        }
    }
    report.more = true;
    info!(written = report.written, more = true, "FEATURES_WRITTEN");
    Ok(report)
}

/// Writes one account as it is now. `false` when it does not exist any more or cannot be read.
async fn write(accounts: &Accounts, user: &UserId, now: Timestamp) -> Result<bool, StoreError> {
    let mut change = accounts.change(user, &[], now);
    loop {
        let account = match change.read().await {
            Ok(account) => account,
            Err(error @ StoreError::Corrupt { .. }) => {
                warn!(user_id = user.as_str(), error = error.to_string(), "FEATURES_NOT_WRITTEN");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let cause = Cause { by: "schedule".to_owned(), adjust_key: LedgerKey::due(now), created: now };
        let due = account.evolve(Vec::new(), &cause, &accounts.catalog, now);
        let Some(due) = due.ok().filter(|_| account.version > 0) else { return Ok(false) };
        if change.commit(&due, Vec::new()).await? {
            return Ok(true);
        }
    }
}
