//! `export`: users, ledger entries, events or a monthly summary as CSV.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, ensure};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::Value;

use crate::api::{Api, UrlArgs};
use crate::output::{clear_progress, list, print_error, show_progress};

/// Export users, ledger entries, events or a monthly summary of credits as CSV
///
/// Rows are written as they are read. Users and ledger entries come in arbitrary order. A text that a
/// spreadsheet would read as a formula gets a leading apostrophe. A summary has whole months, in UTC.
#[derive(Args)]
pub struct Export {
    /// What to export
    #[arg(value_enum)]
    what: ExportKind,
    /// Only entries or events at or after this time or day
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only entries or events before this time or day
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Write to this file, not to the standard output. An existing file is replaced when the export is
    /// complete
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    deployment: UrlArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportKind {
    /// A row for each account
    Users,
    /// A row for each ledger entry
    Ledger,
    /// A row for each event of the log, newest first
    Events,
    /// For each month and kind of entry: credits granted, spent, expired, revoked, and outstanding at its end
    Summary,
}

impl ExportKind {
    fn path(self) -> &'static str {
        match self {
            Self::Users => "/admin/export/users",
            Self::Ledger | Self::Summary => "/admin/export/ledger",
            Self::Events => "/admin/stripe/webhook-logs",
        }
    }

    /// The field of an answer that has its rows.
    fn rows(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Ledger | Self::Summary => "entries",
            Self::Events => "events",
        }
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Users => {
                &["user_id", "created_at", "tier", "access_until", "credits", "customers", "subscriptions"]
            }
            Self::Ledger => {
                &["user_id", "at", "key", "kind", "delta", "balance", "worth", "note", "cause", "reason"]
            }
            Self::Events => &["id", "type", "status", "reason", "user_id", "created", "attempts"],
            Self::Summary => &["month", "source", "granted", "spent", "expired", "revoked", "outstanding"],
        }
    }
}

impl Export {
    pub async fn run(self) -> anyhow::Result<bool> {
        let first_month = self.first_month()?;
        let api = self.deployment.admin_api()?;
        // The first page is read before the file is begun: a wrong token leaves nothing behind.
        let first_page = self.page(&api, None).await?;
        let Some(path) = &self.output else {
            return self.write(&api, first_page, first_month.as_deref(), io::stdout()).await;
        };
        let context = || format!("cannot write {}", path.display());
        let is_replaced = fs::metadata(path).map_or(true, |known| known.is_file());
        if !is_replaced {
            // A pipe or a device, such as /dev/null.
            let file = File::create(path).with_context(context)?;
            return self.write(&api, first_page, first_month.as_deref(), file).await;
        }
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        let mut part = target.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).with_context(context)?;
        match self.write(&api, first_page, first_month.as_deref(), file).await {
            Ok(in_order) => {
                fs::rename(&part, &target).with_context(context)?;
                Ok(in_order)
            }
            Err(error) => {
                let _ = fs::remove_file(&part);
                Err(error)
            }
        }
    }

    /// Checks the times that the API does not check. Returns the first month of a summary.
    fn first_month(&self) -> anyhow::Result<Option<String>> {
        if self.what == ExportKind::Users {
            ensure!(
                self.from.is_none() && self.to.is_none(),
                "an export of users has no time: it shows each account as it is. Leave out --from and --to"
            );
        }
        if self.what != ExportKind::Summary {
            return Ok(None);
        }
        let [from, to] = [("--from", &self.from), ("--to", &self.to)]
            .map(|(name, text)| text.as_deref().map(|text| time(name, text)).transpose());
        let (from, to) = (from?, to?);
        ensure!(from.zip(to).is_none_or(|(from, to)| from < to), "--from must be before --to");
        Ok(from.map(|from| from.strftime("%Y-%m").to_string()))
    }

    /// Writes all pages. True when every account can be read.
    async fn write(
        &self,
        api: &Api,
        first_page: Value,
        first_month: Option<&str>,
        output: impl Write,
    ) -> anyhow::Result<bool> {
        let mut writer = csv::Writer::from_writer(output);
        writer.write_record(self.what.columns())?;
        let mut summary = Summary::default();
        let mut page = Some(first_page);
        let (mut rows, mut unreadable): (u64, u64) = (0, 0);
        while let Some(answer) = page.take() {
            for row in list(&answer[self.what.rows()]) {
                rows += 1;
                if self.what == ExportKind::Summary {
                    summary.add(row);
                } else {
                    writer.write_record(self.what.columns().iter().map(|name| cell(&row[*name])))?;
                }
            }
            writer.flush()?;
            for user in list(&answer["unreadable"]) {
                unreadable += 1;
                print_error(&anyhow!("the account of {user} cannot be read"));
            }
            show_progress(&format!("{rows} rows"));
            if let Some(next) = answer["next"].as_str() {
                page = Some(self.page(api, Some(next)).await?);
            }
        }
        for row in summary.rows(first_month) {
            writer.write_record(&row)?;
        }
        writer.flush()?;
        clear_progress();
        Ok(unreadable == 0)
    }

    async fn page(&self, api: &Api, next: Option<&str>) -> anyhow::Result<Value> {
        // A summary needs all earlier entries, to compute what is outstanding.
        let from = self.from.as_deref().filter(|_| self.what != ExportKind::Summary);
        let (from, to) = match self.what {
            ExportKind::Users => (None, None),
            ExportKind::Ledger | ExportKind::Events | ExportKind::Summary => (from, self.to.as_deref()),
        };
        let limit = (self.what == ExportKind::Events).then_some("200");
        api.get(self.what.path(), &[("from", from), ("to", to), ("limit", limit), ("next", next)]).await
    }
}

/// A time or the first moment of a day, as the API reads them.
fn time(name: &str, text: &str) -> anyhow::Result<Timestamp> {
    let midnight = format!("{text}T00:00:00Z");
    let time = text.parse().or_else(|_| midnight.parse());
    time.map_err(|_| anyhow!("{name} must be like 2026-11-21T12:00:00Z or 2026-11-21"))
}

/// A value as the text of a cell. A spreadsheet reads a text that begins with one of `=+-@` as a formula.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => safe(text),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(" "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn safe(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

/// Credits by month and kind of entry.
///
/// The `outstanding` of a month is that of the month before, plus `granted`, less `spent`, `expired` and
/// `revoked`.
#[derive(Default)]
struct Summary {
    months: BTreeMap<String, BTreeMap<String, Sums>>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    granted: i64,
    spent: i64,
    expired: i64,
    revoked: i64,
}

impl Sums {
    fn plus(self, other: Self) -> Self {
        Self {
            granted: self.granted + other.granted,
            spent: self.spent + other.spent,
            expired: self.expired + other.expired,
            revoked: self.revoked + other.revoked,
        }
    }

    fn change(self) -> i64 {
        self.granted - self.spent - self.expired - self.revoked
    }
}

impl Summary {
    fn add(&mut self, entry: &Value) {
        let (kind, delta) =
            (entry["kind"].as_str().unwrap_or("unknown"), entry["delta"].as_i64().unwrap_or(0));
        let month = entry["at"].as_str().and_then(|at| at.get(..7)).unwrap_or("unknown");
        let mut sums = Sums::default();
        match kind {
            "spend" | "give_back" => sums.spent = -delta,
            // Negative if credits were given back, for example after a dispute that is won.
            "refund" | "dispute" => sums.revoked = -delta,
            "fix" | "adjust" | "import" if delta < 0 => sums.revoked = -delta,
            // A renewal replaces what was left.
            _ if delta < 0 => sums.expired = -delta,
            _ => sums.granted = delta,
        }
        let known = self.months.entry(month.to_owned()).or_default().entry(kind.to_owned()).or_default();
        *known = known.plus(sums);
    }

    /// A row `all` for each month from this one on, then a row for each kind of entry.
    fn rows(&self, from: Option<&str>) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let mut outstanding = 0;
        for (month, kinds) in &self.months {
            let all = kinds.values().copied().fold(Sums::default(), Sums::plus);
            outstanding += all.change();
            if from.is_some_and(|from| month.as_str() < from) {
                continue;
            }
            let row = |source: &str, sums: Sums, outstanding: String| {
                let numbers = [sums.granted, sums.spent, sums.expired, sums.revoked];
                let numbers = numbers.map(|number| number.to_string());
                [month.clone(), source.to_owned()].into_iter().chain(numbers).chain([outstanding]).collect()
            };
            rows.push(row("all", all, outstanding.to_string()));
            rows.extend(kinds.iter().map(|(kind, sums)| row(kind, *sums, String::new())));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_from_outside_is_not_a_formula_in_a_spreadsheet() {
        for (value, text) in [
            (json!("=1+1"), "'=1+1"),
            (json!("@x"), "'@x"),
            (json!("-1"), "'-1"),
            (json!(-1), "-1"),
            (json!("user=1"), "user=1"),
            (json!(["a", "-b"]), "a '-b"),
            (json!(null), ""),
        ] {
            assert_eq!(cell(&value), text, "{value}");
        }
    }

    #[test]
    fn a_summary_adds_up_from_month_to_month() {
        let mut summary = Summary::default();
        for (at, kind, delta) in [
            ("2026-01-05T00:00:00Z", "signup", 500),
            ("2026-01-06T00:00:00Z", "subscription", 4500),
            ("2026-01-07T00:00:00Z", "spend", -1200),
            ("2026-02-05T00:00:00Z", "renewal", 1200),
            ("2026-02-06T00:00:00Z", "refund", -2500),
            ("2026-02-07T00:00:00Z", "give_back", 100),
            ("2026-02-08T00:00:00Z", "expire", -50),
        ] {
            summary.add(&json!({"at": at, "kind": kind, "delta": delta}));
        }
        let rows: Vec<String> =
            summary.rows(None).iter().filter(|row| row[1] == "all").map(|row| row.join(",")).collect();
        assert_eq!(rows, ["2026-01,all,5000,1200,0,0,3800", "2026-02,all,1200,-100,50,2500,2550"]);
        assert_eq!(summary.rows(Some("2026-02"))[0], rows[1].split(',').collect::<Vec<_>>());
    }
}
