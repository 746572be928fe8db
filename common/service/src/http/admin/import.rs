//! `POST /admin/import`: brings users of another system, a page of rows at a time.
//!
//! For each row: the account, the link of its customer and the opening balance are one transaction; then what
//! Stripe has of the customer is applied as reconciliation applies it. The opening balance is a fact of the
//! account (`account/import.rs` of the core), so webhooks of the same user may arrive at any time. Each step
//! may be repeated: a link is written once, and the balance has the ledger key `import#<batch>`.
//!
//! The first page of a batch stores the batch with the digest of its file and its time; every page stores the
//! number of its last row. So any machine with the file can continue:
//!
//! ```json
//! {"pk":"import#2026-11","file":"9f86d0…","as_of":1767600000,"rows":4200}
//! ```

use std::collections::BTreeSet;
use std::time::Instant;

use futures_util::future::join_all;
use lambda_http::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::reconcile::GRACE_SECONDS;
use super::{Admin, AdminToken, bad, deadline, forbidden, seconds};
use crate::http::answer::{Problem, problem};
use crate::schedules::reconcile::{Evidence, Options, Reconciler};
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::{Condition, StoreError, Write};
use tallyhook_aws::stripe::{Cursor, Filter, Stripe, StripeError};
use tallyhook_core::account::import::ImportedBalance;
use tallyhook_core::account::{Account, Cause, Fact, State};
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::owner::StoredOwner;
use tallyhook_core::decide::{Outcome, Parked, Payments, decide, state_of_documents};
use tallyhook_core::event::Event;
use tallyhook_core::ids::{CustomerId, UserId};
use tallyhook_core::ledger::{Entry, LedgerKey, Taken};
use tallyhook_core::timestamp::Timestamp;

/// The maximum number of rows of one request.
const MAX_ROWS: usize = 25;
/// Rows of one request that are handled at the same time.
const AT_ONCE: usize = 5;
/// The maximum number of ledger entries since the time of a balance that are read to find spends.
const MAX_ENTRIES_SINCE: usize = 500;
/// The running period of a plan began at most this long before the time of a balance.
const MAX_PERIOD_DAYS: i64 = 1200;

/// The body of `POST /admin/import`. Without `"dry_run":false` nothing is written.
///
/// ```json
/// {"batch":"2026-11","file":"9f86d0…","first_row":1,"dry_run":false,"actor":"ann","reason":"go-live",
///  "rows":[{"user_id":"user_1","customer_id":"cus_1","credits":7000,"as_of":"2026-11-27T00:00:00Z"}]}
/// ```
/// The answer has a result for each row that was handled. If the time was not enough for all rows, `next_row`
/// is the first of the others:
///
/// ```json
/// {"batch":"2026-11","dry_run":false,"next_row":2,
///  "rows":[{"row":1,"user_id":"user_1","customer_id":"cus_1","result":"created","why":[],
///           "tier":"pro","credits":7000}]}
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportRequest {
    /// The name of the import: 1 to 64 letters, digits, `_`, `-`, `.`.
    batch: String,
    /// A digest of the file, so that a batch has one file.
    file: String,
    /// The number of the first row of this page in the file, from 1.
    first_row: u64,
    /// At most [`MAX_ROWS`].
    rows: Vec<ImportRow>,
    /// Report without writing.
    dry_run: bool,
    /// Find the customer of a row without one by its e-mail address.
    match_email: bool,
    /// Give each user the signup credits beside the balance.
    signup_credits: bool,
    /// Who makes the change, if the token does not say it.
    actor: Option<String>,
    /// The reason.
    reason: Option<String>,
}

impl Default for ImportRequest {
    fn default() -> Self {
        Self {
            batch: String::new(),
            file: String::new(),
            first_row: 1,
            rows: Vec::new(),
            dry_run: true,
            match_email: false,
            signup_credits: false,
            actor: None,
            reason: None,
        }
    }
}

/// One user.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ImportRow {
    user_id: String,
    customer_id: Option<String>,
    email: Option<String>,
    /// The balance at `as_of`. Without it the account has no opening balance.
    credits: Option<u64>,
    /// A plan that Stripe does not bill, and its end: `pro 2027-01-01T00:00:00Z`.
    tier_until: Option<String>,
    /// The time of the balance. Default: when the batch began.
    as_of: Option<String>,
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum RowResult {
    /// The account is new.
    Created,
    /// The account existed, and the customer or the balance is new.
    Linked,
    /// The account, its customer and its balance existed.
    Unchanged,
    /// The customer belongs to another user. Nothing was written.
    BoundElsewhere,
    /// Stripe has no such customer. Nothing was written.
    NoCustomer,
    /// Stripe has several customers with this e-mail address. Nothing was written.
    DuplicateCustomer,
    /// The user is imported, and a price of the customer is not in the catalog.
    NoPrice,
    /// The user is imported, and something else about the customer needs an operator.
    NeedsOperator,
    /// The user has another opening balance already. Nothing was written.
    Conflict,
    /// The row cannot be read. Nothing was written.
    Invalid,
    /// Stripe or the store did not answer. Repeat the row.
    Failed,
}

#[derive(Debug, Serialize)]
struct RowReport {
    row: u64,
    user_id: String,
    customer_id: Option<String>,
    /// Whether the customer was found by the e-mail address.
    matched_by_email: bool,
    result: RowResult,
    why: Vec<String>,
    tier: Option<String>,
    credits: Option<Credits>,
}

/// Why a row was not imported.
struct Refused(RowResult, String);

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self(RowResult::Failed, error.to_string())
    }
}

impl From<StripeError> for Refused {
    fn from(error: StripeError) -> Self {
        Self(RowResult::Failed, error.to_string())
    }
}

/// A row after its texts were parsed.
struct ReadRow {
    user: UserId,
    customer: Option<CustomerId>,
    by_email: bool,
    credits: Option<Credits>,
    plan: Option<(String, Timestamp)>,
    as_of: Timestamp,
}

/// What all rows of a page share.
struct Page<'a> {
    request: &'a ImportRequest,
    stripe: &'a Stripe,
    key: LedgerKey,
    as_of: Timestamp,
    by: String,
    now: Timestamp,
}

impl Admin {
    /// How far the batch is imported: `{"batch":"2026-11","file":"9f86d0…","as_of":"…","rows":4200}`.
    pub(super) async fn import_progress(&self, batch: &str) -> Result<Value, Problem> {
        if !is_batch(batch) {
            return Err(invalid_batch());
        }
        let key = items::import_key(batch);
        let items = self.store.load([key.clone()]).await?;
        let item = items.get(&key);
        let as_of = item.and_then(|item| items::read_number(item, "as_of")).map(Timestamp::from_unix);
        Ok(json!({
            "batch": batch,
            "file": item.and_then(|item| items::read_text(item, "file")),
            "as_of": as_of.map(|as_of| as_of.to_string()),
            "rows": item.and_then(|item| items::read_number::<u64>(item, "rows")).unwrap_or(0),
        }))
    }

    pub(super) async fn import(
        &self,
        request: ImportRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        check(&request, operator)?;
        self.stripe()?;
        let (now, until) = (seconds(now_ms), deadline());
        let key = items::import_key(&request.batch);
        let stored = self.store.load([key.clone()]).await?.remove(&key);
        let (as_of, rows_before) = batch_of(stored.as_ref(), &request, now)?;
        if !request.dry_run {
            let (claimed, reason) = (request.actor.as_deref(), request.reason.as_deref());
            let last = request.first_row + request.rows.len() as u64 - 1;
            let target = format!("{} rows {} to {last}", request.batch, request.first_row);
            self.audit(operator, claimed, reason, "import", &target, now_ms).await?;
            if stored.is_none() {
                self.store.commit(vec![items::import(&request.batch, &request.file, as_of, 0)]).await?;
            }
        }
        let page = Page {
            request: &request,
            stripe: self.stripe()?,
            key: LedgerKey::import(&request.batch),
            as_of,
            by: format!("admin:{}", operator.name),
            now,
        };
        let mut reports = Vec::new();
        for rows in request.rows.chunks(AT_ONCE) {
            if !reports.is_empty() && until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            reports.extend(join_all(rows.iter().map(|row| self.import_row(row, &page))).await);
        }
        for (number, report) in (request.first_row..).zip(&mut reports) {
            report.row = number;
        }
        let next_row = request.first_row + reports.len() as u64;
        if !request.dry_run && next_row > rows_before + 1 {
            let rows = next_row - 1;
            self.store.commit(vec![items::import(&request.batch, &request.file, as_of, rows)]).await?;
        }
        Ok(json!({
            "batch": request.batch, "dry_run": request.dry_run, "next_row": next_row, "rows": reports,
        }))
    }

    async fn import_row(&self, row: &ImportRow, page: &Page<'_>) -> RowReport {
        let mut report = RowReport {
            row: 0,
            user_id: row.user_id.clone(),
            customer_id: row.customer_id.clone(),
            matched_by_email: false,
            result: RowResult::Unchanged,
            why: Vec::new(),
            tier: None,
            credits: None,
        };
        if let Err(Refused(result, why)) = self.try_row(row, page, &mut report).await {
            report.result = result;
            report.why.push(why);
        }
        report
    }

    async fn try_row(&self, row: &ImportRow, page: &Page<'_>, report: &mut RowReport) -> Result<(), Refused> {
        let row = self.read_row(row, page).await?;
        report.customer_id = row.customer.as_ref().map(ToString::to_string);
        report.matched_by_email = row.by_email;
        if let Some(customer) = &row.customer {
            require_customer(page.stripe, customer).await?;
        }
        let (account, result) = self.open_account(&row, page).await?;
        report.result = result;
        let account = if page.request.dry_run {
            report.why = self.unknown_prices(&account, row.customer.as_ref(), page).await?;
            account
        } else {
            let reconciler = Reconciler::new(page.stripe.clone(), self.processor.clone());
            let options = Options {
                deadline: deadline(),
                grace_seconds: GRACE_SECONDS,
                imported_at: account.state.import.as_ref().map(|import| import.as_of),
                ..Options::default()
            };
            let found = reconciler.run_for(&row.user, &options, page.now).await;
            if let Some(stopped) = found.stopped {
                return Err(Refused(RowResult::Failed, stopped));
            }
            if let Some(failure) = found.failures.first() {
                return Err(Refused(RowResult::Failed, failure.error.clone()));
            }
            report.why = found.left.into_iter().map(|left| left.why).collect();
            self.processor.accounts.change(&row.user, &[], page.now).read().await?
        };
        if report.why.iter().any(|why| why.ends_with("is not in the catalog")) {
            report.result = RowResult::NoPrice;
        } else if !report.why.is_empty() {
            report.result = RowResult::NeedsOperator;
        }
        let catalog = &self.processor.accounts.catalog;
        report.tier = Some(account.state.access(catalog, page.now).tier);
        report.credits = Some(account.state.balance(&catalog.policy, page.now));
        Ok(())
    }

    async fn read_row(&self, row: &ImportRow, page: &Page<'_>) -> Result<ReadRow, Refused> {
        let invalid = |why: &str| Refused(RowResult::Invalid, why.to_owned());
        let user = UserId::new(row.user_id.as_str()).map_err(|error| invalid(&error.to_string()))?;
        let as_of = match given(row.as_of.as_deref()) {
            None => page.as_of,
            Some(text) => read_time(text).ok_or_else(|| {
                invalid("as_of must be a time like 2026-11-27T00:00:00Z or a day like 2026-11-27")
            })?,
        };
        if as_of > page.now {
            return Err(invalid("as_of must not be in the future"));
        }
        let credits = row.credits.map(Credits::new);
        if credits.is_some_and(|credits| credits > Credits::MAX_GRANT) {
            return Err(invalid("credits is above the maximum"));
        }
        let plan = match given(row.tier_until.as_deref()) {
            None => None,
            Some(_) if credits.is_none() => return Err(invalid("tier_until needs credits in the same row")),
            Some(text) => {
                let catalog = &self.processor.accounts.catalog;
                let plan = text.split_once(' ').and_then(|(plan, until)| {
                    Some((catalog.plan(plan)?.name.clone(), read_time(until.trim())?))
                });
                let wrong = "tier_until must be a plan of the catalog and a time: pro 2027-01-01";
                Some(plan.ok_or_else(|| invalid(wrong))?)
            }
        };
        let mut customer = match given(row.customer_id.as_deref()) {
            None => None,
            Some(id) => Some(CustomerId::new(id).map_err(|error| invalid(&error.to_string()))?),
        };
        let email = given(row.email.as_deref()).filter(|_| page.request.match_email && customer.is_none());
        if let Some(email) = email {
            let found = page.stripe.customers_with_email(email).await?;
            let ids: Vec<&str> = found.objects.iter().filter_map(|object| object.id()).collect();
            match ids[..] {
                [] => {}
                [only] => customer = CustomerId::new(only).ok(),
                _ => {
                    let why = format!("{} customers have this e-mail address", ids.len());
                    return Err(Refused(RowResult::DuplicateCustomer, why));
                }
            }
        }
        let by_email = email.is_some() && customer.is_some();
        Ok(ReadRow { user, customer, by_email, credits, plan, as_of })
    }

    /// Creates the account, links the customer and sets the balance, in one transaction. A dry run returns
    /// the account as it would be.
    async fn open_account(&self, row: &ReadRow, page: &Page<'_>) -> Result<(Account, RowResult), Refused> {
        let link = row.customer.clone().map(Key::Customer);
        let newcomer = Key::Newcomer(row.user.clone());
        let keys: Vec<Key> =
            [Key::entry(&row.user, &page.key), Key::entry(&row.user, &LedgerKey::signup()), newcomer.clone()]
                .into_iter()
                .chain(link.clone())
                .collect();
        let accounts = &self.processor.accounts;
        let mut change = accounts.change(&row.user, &keys, page.now);
        let (account, result, freed) = loop {
            let account = change.read().await?;
            let mut freed = change.items.get(&newcomer).map(items::waiting).unwrap_or_default();
            let mut facts = Vec::new();
            let mut beside = Vec::new();
            if let (Some(customer), Some(link)) = (&row.customer, &link) {
                let item = change.items.get(link);
                let owner = item.map(|item| items::read_owner(link, item)).transpose()?.flatten();
                if let Some(owner) = owner.as_ref().filter(|owner| owner.user != row.user) {
                    let why = format!("{customer} belongs to user {}", owner.user);
                    return Err(Refused(RowResult::BoundElsewhere, why));
                }
                if owner.is_none() || !account.state.customers.contains_key(customer) {
                    let waiting = item.map(items::waiting).unwrap_or_default();
                    facts.push(Fact::Customer(customer.clone()));
                    beside.push(link_to(&row.user, customer, owner.as_ref(), &waiting));
                    freed.extend(waiting);
                }
            }
            if page.request.signup_credits && account.state.signup.is_none() {
                facts.push(Fact::Signup);
            }
            if let Some(balance) = self.balance_of(row, page, &account).await? {
                facts.push(Fact::Imported(Box::new(balance)));
            }
            let cause = Cause { by: page.by.clone(), adjust_key: page.key.adjusted(), created: page.now };
            let changed = account
                .evolve(facts, &cause, &accounts.catalog, page.now)
                .map_err(|conflict| Refused(RowResult::Conflict, conflict.to_string()))?;
            let is_new = account.version == 0;
            if !is_new && beside.is_empty() && changed.entries.is_empty() {
                break (account, RowResult::Unchanged, BTreeSet::new());
            }
            let result = if is_new { RowResult::Created } else { RowResult::Linked };
            if page.request.dry_run {
                break (account.after(&changed), result, BTreeSet::new());
            }
            if change.commit(&changed, beside).await? {
                break (account.after(&changed), result, freed);
            }
        };
        self.processor.redrive.send_freed(&self.store, &freed).await;
        Ok((account, result))
    }

    /// The balance of a row; `None` without credits.
    async fn balance_of(
        &self,
        row: &ReadRow,
        page: &Page<'_>,
        account: &Account,
    ) -> Result<Option<ImportedBalance>, Refused> {
        let Some(credits) = row.credits else { return Ok(None) };
        let mut balance = ImportedBalance {
            batch: page.request.batch.clone(),
            as_of: row.as_of,
            credits,
            with_signup: page.request.signup_credits,
            plan: row.plan.clone(),
            spent_since: Vec::new(),
            documents: None,
        };
        if account.state.import.is_none() && account.version > 0 {
            balance.spent_since = self.spent_since(account, row.as_of).await?;
            let policy = &self.processor.accounts.catalog.policy;
            if account.state.lacks_period_at(row.as_of, policy, page.now) {
                balance.documents = Some(Box::new(self.documents_of(account, row, page).await?));
            }
        }
        Ok(Some(balance))
    }

    /// What was spent here, or revoked by an operator, at or after a time and was not given back.
    async fn spent_since(&self, account: &Account, as_of: Timestamp) -> Result<Vec<Taken>, Refused> {
        let (mut spent, mut next, mut read) = (Vec::new(), account.state.last_entry.clone(), 0);
        while let Some(key) = next {
            let Some(entry) = self.processor.accounts.entry(&account.user_id, &key).await? else { break };
            // Entries follow each other as they were written. What fell due by time has its due time, which
            // may be older than the entry before it; a spend has the time at which it was written.
            let takes = !entry.from.is_empty();
            if takes && entry.at < as_of {
                break;
            }
            read += 1;
            if read > MAX_ENTRIES_SINCE {
                let why = format!("the ledger has more than {MAX_ENTRIES_SINCE} entries since as_of");
                return Err(Refused(RowResult::Invalid, why));
            }
            if takes {
                spent.extend(still_spent(&entry));
            }
            next = entry.previous;
        }
        Ok(spent)
    }

    /// Stripe's paid invoices of the user's customers from before the time of the balance.
    async fn documents_of(
        &self,
        account: &Account,
        row: &ReadRow,
        page: &Page<'_>,
    ) -> Result<State, Refused> {
        let mut events: Vec<Event> = Vec::new();
        let customers: BTreeSet<&CustomerId> = account.state.customers.keys().chain(&row.customer).collect();
        let livemode = self.processor.livemode.unwrap_or(false);
        for customer in customers {
            let filter = Filter {
                customer: Some(customer.clone()),
                from: Some(row.as_of.plus_days(-MAX_PERIOD_DAYS)),
                ..Filter::default()
            };
            for object in page.stripe.paid_invoices(&filter, &Cursor::Newest).await?.objects {
                events.extend(Evidence::of_invoice(&object, livemode).map(|evidence| evidence.event));
            }
        }
        events.sort_by_key(|event| event.created);
        let catalog = &self.processor.accounts.catalog;
        Ok(state_of_documents(&row.user, &events, row.as_of, catalog, page.now))
    }

    /// The prices that the customer pays and the catalog does not have.
    async fn unknown_prices(
        &self,
        account: &Account,
        customer: Option<&CustomerId>,
        page: &Page<'_>,
    ) -> Result<Vec<String>, Refused> {
        let Some(customer) = customer else { return Ok(Vec::new()) };
        let filter = Filter { customer: Some(customer.clone()), ..Filter::default() };
        let livemode = self.processor.livemode.unwrap_or(false);
        let mut unknown = Vec::new();
        for object in page.stripe.subscriptions(&filter, &Cursor::Newest).await?.objects {
            let evidence = Evidence::of_subscription(&object, livemode, page.now, None)
                .map_err(|error| Refused(RowResult::Failed, error.to_string()))?;
            let catalog = &self.processor.accounts.catalog;
            match decide(account, &evidence.event, &Payments::new(), catalog, page.now) {
                Outcome::Park(parked @ (Parked::UnknownPrice(..) | Parked::AmbiguousPrice(..))) => {
                    unknown.push(parked.to_string());
                }
                Outcome::Apply(_) | Outcome::Ignore(_) | Outcome::Park(_) | Outcome::Tie => {}
            }
        }
        Ok(unknown)
    }
}

async fn require_customer(stripe: &Stripe, customer: &CustomerId) -> Result<(), Refused> {
    let missing = |why: &str| Err(Refused(RowResult::NoCustomer, format!("{customer} {why}")));
    match stripe.customer(customer).await {
        Ok(object) if object.value()["deleted"] == true => missing("was deleted at Stripe"),
        Ok(_) => Ok(()),
        Err(error) if error.is_missing() => missing("does not exist at Stripe"),
        Err(error) => Err(error.into()),
    }
}

fn check(request: &ImportRequest, operator: &AdminToken) -> Result<(), Problem> {
    if !is_batch(&request.batch) {
        return Err(invalid_batch());
    }
    if request.file.len() != 64 || !request.file.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad("invalid_file", "file must be the SHA-256 of the file in hexadecimal digits"));
    }
    if !(1..=MAX_ROWS).contains(&request.rows.len()) {
        return Err(bad("invalid_rows", format!("rows must have 1 to {MAX_ROWS} rows")));
    }
    if !(1..=1_000_000_000).contains(&request.first_row) {
        return Err(bad("invalid_first_row", "first_row must be the number of a row, from 1"));
    }
    let most = request.rows.iter().filter_map(|row| row.credits).max().unwrap_or(0);
    match operator.max_grant {
        Some(max) if most > max => Err(forbidden(format!(
            "your token may give a user at most {max} credits at once; more needs the role admin without \
             max_grant"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn invalid_batch() -> Problem {
    bad("invalid_batch", "batch must be 1 to 64 letters, digits, '_', '-' or '.'")
}

/// Whether a text can name a batch.
fn is_batch(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=64).contains(&text.len()) && text.chars().all(plain)
}

/// The time of the batch and the number of its rows that are imported.
fn batch_of(
    stored: Option<&Item>,
    request: &ImportRequest,
    now: Timestamp,
) -> Result<(Timestamp, u64), Problem> {
    let Some(item) = stored else { return Ok((now, 0)) };
    let file = items::read_text(item, "file").unwrap_or_default();
    if file != request.file {
        let message = format!("batch {} was begun with another file; name a new batch", request.batch);
        return Err(problem(StatusCode::CONFLICT, "batch_of_another_file", message));
    }
    let as_of = items::read_number(item, "as_of").map_or(now, Timestamp::from_unix);
    Ok((as_of, items::read_number(item, "rows").unwrap_or(0)))
}

fn link_to(
    user: &UserId,
    customer: &CustomerId,
    owner: Option<&StoredOwner>,
    waiting: &BTreeSet<String>,
) -> Write {
    let new = StoredOwner {
        user: user.clone(),
        moved: false,
        by_reference: false,
        shared: owner.is_some_and(|owner| owner.shared),
    };
    let write = items::customer(customer, &new, owner);
    if waiting.is_empty() {
        return write;
    }
    Write { condition: Condition::Waiting(waiting.clone()), ..write }
}

/// What a spend took from each lot, less what was given back, which returns to the last lot first.
fn still_spent(entry: &Entry) -> Vec<Taken> {
    let mut back = entry.given_back.minus(entry.shortfall);
    let mut taken = entry.from.clone();
    for one in taken.iter_mut().rev() {
        let part = back.min(one.credits);
        back = back.minus(part);
        one.credits = one.credits.minus(part);
    }
    taken.retain(|one| one.credits > Credits::ZERO);
    taken
}

/// The text of a cell; `None` if it is empty.
fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn read_time(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).or_else(|| Timestamp::parse(&format!("{text}T00:00:00Z")))
}
