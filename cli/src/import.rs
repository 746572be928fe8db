//! `import`: users of another system, with their customers and their credits.

mod metadata;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::api::{Api, AuditArgs, DeploymentArgs, at_least_one};
use crate::output::{clear_progress, list, print_line, show_progress, text};

/// Rows of one request; the server takes no more.
const PAGE: usize = 25;
/// The waits before a request is repeated.
const WAITS_SECONDS: [u64; 5] = [1, 2, 5, 10, 20];

/// Bring the users of another system: link their customers, apply what Stripe says, set their credits
///
/// FILE is CSV with the columns user_id, customer_id and, if you have them, email, credits, tier_until and
/// as_of in any order. Without --apply nothing changes. The server remembers how far a batch is, so the same
/// command continues after an interruption, also on another machine.
///
/// Exit code 1 when a row needs an operator.
#[derive(Args)]
pub struct Import {
    /// CSV with a user in each row
    file: PathBuf,
    /// The name of the import. A user has one opening balance, under this name [default: the file's name]
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Write. Without it the command reports what it would do
    #[arg(long, requires = "reason")]
    apply: bool,
    /// Begin with the first row again, and not where the batch was interrupted
    #[arg(long)]
    from_start: bool,
    /// Stop after this many rows
    #[arg(long, value_name = "ROWS", default_value_t = 100_000, value_parser = at_least_one::<u64>)]
    cap: u64,
    /// Find the customer of a row without customer_id by its e-mail address. The report lists each match
    #[arg(long)]
    match_email: bool,
    /// Give each user the signup credits beside the imported ones
    #[arg(long)]
    signup_credits: bool,
    /// Import nothing. Write the user id into the metadata of each customer and its live subscriptions at
    /// Stripe, with the key in STRIPE_SECRET_KEY. What Stripe has already is not written again
    #[arg(long, conflicts_with_all = ["match_email", "signup_credits", "from_start", "batch"])]
    write_metadata: bool,
    /// Requests to Stripe in a second. Stripe allows 25 with a test key
    #[arg(long, value_name = "REQUESTS", default_value_t = 20, requires = "write_metadata",
        value_parser = at_least_one::<u32>)]
    rate: u32,
    /// Begin with this row
    #[arg(long, value_name = "ROW", default_value_t = 1, requires = "write_metadata",
        value_parser = at_least_one::<u64>)]
    first_row: u64,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

/// A row of the file.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Row {
    user_id: String,
    #[serde(default, skip_serializing_if = "is_empty")]
    customer_id: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credits: Option<u64>,
    #[serde(default, skip_serializing_if = "is_empty")]
    tier_until: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    as_of: Option<String>,
}

#[allow(clippy::ref_option, reason = "serde passes a reference")]
fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().is_none_or(str::is_empty)
}

/// What the first reading of the file finds.
struct FileFacts {
    digest: String,
    rows: u64,
}

impl Import {
    /// The rows after `skip` up to `last`, each with its number.
    fn rows(
        &self,
        skip: u64,
        last: u64,
    ) -> anyhow::Result<impl Iterator<Item = anyhow::Result<(u64, Row)>> + '_> {
        let rows = (1..).zip(reader(&self.file)?.into_deserialize::<Row>());
        Ok(rows.take_while(move |(number, _)| *number <= last).filter(move |(number, _)| *number > skip).map(
            |(number, row)| {
                let row = row.with_context(|| format!("{}, row {number}", self.file.display()))?;
                Ok((number, row))
            },
        ))
    }

    pub async fn run(self) -> anyhow::Result<bool> {
        let facts = check_file(&self.file, self.match_email)?;
        if self.write_metadata {
            return self.write_metadata(&facts).await;
        }
        let batch = self.batch_name()?;
        let api = self.deployment.admin_api()?;
        let progress = api.get(&format!("/admin/import/{batch}"), &[]).await?;
        if progress["file"].as_str().is_some_and(|file| file != facts.digest) {
            bail!("batch {batch} was begun with another file: name a new batch with --batch");
        }
        let done = progress["rows"].as_u64().unwrap_or(0);
        let skip = if self.from_start || !self.apply { 0 } else { done.min(facts.rows) };
        let is_done = skip >= facts.rows;
        if !self.deployment.json && skip > 0 {
            let then = if is_done { "--from-start imports them again" } else { "continuing after them" };
            print_line(format_args!("{skip} of {} rows are done; {then}", facts.rows))?;
        }
        let mut results: BTreeMap<String, u64> = BTreeMap::new();
        let mut page: Vec<Row> = Vec::with_capacity(PAGE);
        let mut first = skip + 1;
        let last = facts.rows.min(skip.saturating_add(self.cap));
        for row in self.rows(skip, last)? {
            let (_, row) = row?;
            page.push(row);
            if page.len() == PAGE {
                self.send(&api, &batch, &facts, &mut first, &mut page, &mut results).await?;
                show_progress(&format!("{} of {} rows; {}", first - 1, facts.rows, counts(&results)));
            }
        }
        self.send(&api, &batch, &facts, &mut first, &mut page, &mut results).await?;
        clear_progress();
        let in_order = results.keys().all(|result| is_in_order(result));
        let rows = json!({"batch": batch, "dry_run": !self.apply, "rows": facts.rows, "done": first - 1,
            "results": results});
        if api.print_json(&rows)? || is_done {
            return Ok(in_order);
        }
        let would = if self.apply { "" } else { "a dry run: " };
        print_line(format_args!("{would}{} of {} rows: {}", first - 1, facts.rows, counts(&results)))?;
        if !self.apply {
            print_line(format_args!("nothing was written; --apply --reason \"…\" writes"))?;
        }
        if last < facts.rows {
            print_line(format_args!("stopped by --cap; the same command continues"))?;
        }
        Ok(in_order)
    }

    /// Sends the rows of a page until all are handled. The server stops when its time is up.
    async fn send(
        &self,
        api: &Api,
        batch: &str,
        facts: &FileFacts,
        first: &mut u64,
        page: &mut Vec<Row>,
        results: &mut BTreeMap<String, u64>,
    ) -> anyhow::Result<()> {
        while !page.is_empty() {
            let body = self.audit.add_to(json!({
                "batch": batch, "file": facts.digest, "first_row": *first, "rows": page,
                "dry_run": !self.apply, "match_email": self.match_email,
                "signup_credits": self.signup_credits,
            }));
            let answer = patiently(api, &body).await?;
            let reports = list(&answer["rows"]);
            if reports.is_empty() {
                bail!("the server handled no row: {answer}");
            }
            for report in reports {
                let result = report["result"].as_str().unwrap_or("failed").to_owned();
                if !self.deployment.json && (!is_in_order(&result) || report["matched_by_email"] == true) {
                    clear_progress();
                    print_line(problem_line(report))?;
                }
                *results.entry(result).or_default() += 1;
            }
            *first += reports.len() as u64;
            page.drain(..reports.len().min(page.len()));
        }
        Ok(())
    }

    fn batch_name(&self) -> anyhow::Result<String> {
        let stem = || self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = self.batch.clone().or_else(stem).unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            bail!("name the batch with --batch: 1 to 64 letters, digits, '_', '-' or '.'");
        }
        Ok(name)
    }
}

/// Whether no operator must look at a row with this result.
fn is_in_order(result: &str) -> bool {
    matches!(result, "created" | "linked" | "unchanged")
}

fn problem_line(report: &Value) -> String {
    let customer = report["customer_id"].as_str().map_or_else(String::new, |id| format!(" {id}"));
    let why = list(&report["why"]).iter().map(text).collect::<Vec<_>>().join("; ");
    let by_email = if report["matched_by_email"] == true { " (found by the e-mail address)" } else { "" };
    let line = format!(
        "row {}: {}{customer}{by_email}: {} {why}",
        report["row"],
        text(&report["user_id"]),
        text(&report["result"]).replace('_', " ")
    );
    line.trim_end().to_owned()
}

fn counts(results: &BTreeMap<String, u64>) -> String {
    let counts: Vec<String> =
        results.iter().map(|(result, count)| format!("{count} {}", result.replace('_', " "))).collect();
    counts.join(", ")
}

/// Posts a page, and repeats it while the deployment is busy. A repeated row changes nothing.
async fn patiently(api: &Api, body: &Value) -> anyhow::Result<Value> {
    for seconds in WAITS_SECONDS {
        match api.send(Method::POST, "/admin/import", Some(body), None).await {
            Ok((status, _)) if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {}
            Ok((status, answer)) => return api.require_ok(status, answer),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    api.post("/admin/import", body, None).await
}

fn reader(file: &Path) -> anyhow::Result<csv::Reader<File>> {
    csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(file)
        .with_context(|| format!("cannot read {}", file.display()))
}

/// Reads the whole file once, so that a mistake in it is reported before the first request. Keeps only
/// hashes.
fn check_file(path: &Path, match_email: bool) -> anyhow::Result<FileFacts> {
    let name = path.display();
    let mut all = reader(path)?;
    let titles = all.headers().with_context(|| format!("cannot read {name}"))?.clone();
    let has = |title: &str| titles.iter().any(|other| other == title);
    if !has("user_id") || !(has("customer_id") || has("email") || has("credits")) {
        bail!(
            "the first line of {name} must name the columns, separated by commas: user_id, and \
             customer_id, email or credits"
        );
    }
    let (mut users, mut customers, mut emails) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut rows = 0;
    for row in all.deserialize::<Row>() {
        rows += 1;
        let row = row.with_context(|| format!("{name}, row {rows}"))?;
        if row.user_id.is_empty() {
            bail!("{name}, row {rows}: user_id is empty");
        }
        if !users.insert(hash(&row.user_id)) && row.credits.is_some() {
            bail!("{name}, row {rows}: user {} has credits in two rows", row.user_id);
        }
        let customer = row.customer_id.filter(|id| !id.is_empty());
        if let Some(customer) = &customer
            && !customers.insert(hash(customer))
        {
            bail!("{name}, row {rows}: customer {customer} is in two rows");
        }
        let email = row.email.filter(|email| !email.is_empty() && match_email && customer.is_none());
        if email.is_some_and(|email| !emails.insert(hash(&email.to_lowercase()))) {
            bail!("{name}, row {rows}: its e-mail address is in two rows without a customer");
        }
    }
    if rows == 0 {
        bail!("{name} has no users");
    }
    let mut digest = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut part = [0; 8192];
    loop {
        let length = file.read(&mut part).with_context(|| format!("cannot read {name}"))?;
        let Some(read) = part.get(..length).filter(|read| !read.is_empty()) else { break };
        digest.update(read);
    }
    let digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileFacts { digest, rows })
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_a_mistake_is_refused_with_its_row() {
        let file = |name: &str, text: &str| {
            let file =
                std::env::temp_dir().join(format!("tallyhook-import-{name}-{}.csv", std::process::id()));
            std::fs::write(&file, text).unwrap();
            file
        };
        let good = "credits,user_id,customer_id,email\n5,u1,cus_1,\n,u2,,a@example.com\n,u1,cus_2,\n";
        let facts = check_file(&file("good", good), true).unwrap();
        assert_eq!((facts.rows, facts.digest.len()), (3, 64));
        for (name, text, message) in [
            ("titles", "user_id,plan\nu1,pro\n", "must name the columns"),
            ("number", "user_id,credits\nu1,5\nu2,-1\n", "row 2"),
            ("blank", "user_id,credits\n,5\n", "user_id is empty"),
            ("twice", "user_id,credits\nu1,5\nu1,6\n", "user u1 has credits in two rows"),
            ("customer", "user_id,customer_id\nu1,cus_1\nu2,cus_1\n", "customer cus_1 is in two rows"),
            ("email", "user_id,email\nu1,a@x.com\nu2,A@x.com\n", "e-mail address is in two rows"),
            ("empty", "user_id,credits\n", "has no users"),
        ] {
            let error = format!("{:#}", check_file(&file(name, text), true).err().unwrap());
            assert!(error.contains(message), "{name}: {error}");
        }
    }

    #[test]
    fn a_row_that_needs_an_operator_is_one_line() {
        let report = json!({"row": 7, "user_id": "u\u{1b}7", "customer_id": "cus_7", "result": "no_price",
            "matched_by_email": false, "why": ["price price_x is not in the catalog"]});
        let line = "row 7: u\u{fffd}7 cus_7: no price price price_x is not in the catalog";
        assert_eq!(problem_line(&report), line);
    }
}
