//! `compare`: an export of another billing system, compared with the accounts here.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Api, DeploymentArgs, at_least_one, encode};
use crate::output::{clear_progress, print_line, show_progress};
use crate::table::{column, table};

/// Requests at the same time.
const CONCURRENCY: usize = 8;

/// Compare the users of another system with the accounts here
///
/// Use it while tallyhook runs beside an existing integration, as a second endpoint of the same Stripe
/// account. FILE is an export of the existing system: CSV with the columns user_id, tier and credits in any
/// order. Other columns are ignored, and an empty cell is not compared. The command changes nothing.
///
/// Exit code 1 when something differs.
#[derive(Args)]
pub struct Compare {
    /// CSV with the columns user_id, tier, credits
    file: PathBuf,
    /// Maximum number of differences
    #[arg(long, default_value_t = 1000, value_parser = at_least_one::<usize>)]
    limit: usize,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

/// A user in the export of the existing system.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct ExportedUser {
    user_id: String,
    #[serde(default)]
    tier: Option<String>,
    #[serde(default)]
    credits: Option<i64>,
}

impl Compare {
    pub async fn run(self) -> anyhow::Result<bool> {
        let users = read_export(&self.file)?;
        let api = self.deployment.app_api()?;
        let (mut compared, mut differences) = (0, Vec::new());
        for chunk in users.chunks(CONCURRENCY) {
            let accounts = join_all(chunk.iter().map(|user| account(&api, &user.user_id))).await;
            for (user, account) in chunk.iter().zip(accounts) {
                differences.extend(difference_rows(user, account?.as_ref()));
            }
            compared += chunk.len();
            show_progress(&format!("{compared} of {} users; {} differences", users.len(), differences.len()));
            if differences.len() >= self.limit {
                break;
            }
        }
        clear_progress();
        let in_order = differences.is_empty();
        let not_compared = users.len() - compared;
        if api.print_json(&json!({"users": users.len(), "compared": compared, "differences": differences}))? {
            return Ok(in_order);
        }
        if !in_order {
            let columns = [
                column("USER", "user_id"),
                column("DIFFERS", "field"),
                column("THERE", "there"),
                column("HERE", "here"),
            ];
            print_line(table(&columns, &differences))?;
        }
        print_line(format_args!("{compared} users compared, {} differences", differences.len()))?;
        if not_compared > 0 {
            print_line(format_args!("{not_compared} users were not compared: raise --limit"))?;
        }
        Ok(in_order)
    }
}

/// Reads the whole export before the first request, so that a mistake in it is reported at once.
fn read_export(file: &Path) -> anyhow::Result<Vec<ExportedUser>> {
    let name = file.display();
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(file)
        .with_context(|| format!("cannot read {name}"))?;
    let titles = reader.headers().with_context(|| format!("cannot read {name}"))?;
    let has = |title: &str| titles.iter().any(|other| other == title);
    if !has("user_id") || !(has("tier") || has("credits")) {
        bail!(
            "the first line of {name} must name the columns, separated by commas: user_id and \
             tier, credits or both"
        );
    }
    let mut users = Vec::new();
    for (place, user) in reader.deserialize::<ExportedUser>().enumerate() {
        let user = user.with_context(|| format!("{name}, user {}", place + 1))?;
        if user.user_id.is_empty() {
            bail!("{name}, user {}: user_id is empty", place + 1);
        }
        users.push(user);
    }
    if users.is_empty() {
        bail!("{name} has no users");
    }
    Ok(users)
}

/// `GET /users/{id}`. `None` when tallyhook has no account of this user.
async fn account(api: &Api, user: &str) -> anyhow::Result<Option<Value>> {
    let (status, answer) = api.send(Method::GET, &format!("/users/{}", encode(user)), None, None).await?;
    if status == StatusCode::NOT_FOUND
        && answer.as_ref().is_some_and(|answer| answer["error"] == "user_not_found")
    {
        return Ok(None);
    }
    api.require_ok(status, answer).map(Some).map_err(|error| anyhow!("user {user}: {error}"))
}

/// One row for each difference: `{"user_id":"u1","field":"credits","there":5000,"here":4000}`.
fn difference_rows(user: &ExportedUser, account: Option<&Value>) -> Vec<Value> {
    let row = |field: &str, there: Value, here: Value| {
        json!({"user_id": user.user_id, "field": field,
        "there": there, "here": here})
    };
    let Some(account) = account else { return vec![row("user", json!("exists"), json!("no account"))] };
    let tier = user.tier.as_ref().filter(|tier| !tier.is_empty()).map(|tier| ("tier", json!(tier)));
    let credits = user.credits.map(|credits| ("credits", json!(credits)));
    let different = tier.into_iter().chain(credits).filter(|(field, there)| account[*field] != *there);
    different.map(|(field, there)| row(field, there, account[field].clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(user_id: &str, tier: Option<&str>, credits: Option<i64>) -> ExportedUser {
        ExportedUser { user_id: user_id.to_owned(), tier: tier.map(str::to_owned), credits }
    }

    #[test]
    fn an_export_with_a_mistake_is_refused_with_its_place() {
        let file = |name: &str, text: &str| {
            let file =
                std::env::temp_dir().join(format!("tallyhook-compare-{name}-{}.csv", std::process::id()));
            std::fs::write(&file, text).unwrap();
            file
        };
        let text = "email,user_id,tier,credits\nx@example.com,u1,pro,5000\n,\"u,2\",free,\n, u3 ,,7\n";
        let users = read_export(&file("good", text)).unwrap();
        let expected = [
            exported("u1", Some("pro"), Some(5000)),
            exported("u,2", Some("free"), None),
            exported("u3", None, Some(7)),
        ];
        assert_eq!(users, expected);
        for (name, text, message) in [
            ("titles", "id,plan\nu1,pro\n", "must name the columns"),
            ("number", "user_id,credits\nu1,5\nu2,many\n", "user 2"),
            ("short", "user_id,tier,credits\nu1,pro\n", "user 1"),
            ("blank", "user_id,tier\n,pro\n", "user_id is empty"),
            ("empty", "user_id,tier\n", "has no users"),
        ] {
            let error = format!("{:#}", read_export(&file(name, text)).unwrap_err());
            assert!(error.contains(message), "{name}: {error}");
        }
    }

    #[test]
    fn only_values_that_both_systems_have_are_compared() {
        let account = json!({"tier": "pro", "credits": 5000});
        let rows = |tier, credits| difference_rows(&exported("u1", tier, credits), Some(&account));
        assert_eq!(rows(Some("pro"), Some(5000)), [] as [Value; 0]);
        assert_eq!(rows(None, None), [] as [Value; 0]);
        assert_eq!(
            rows(Some("free"), Some(1)),
            [
                json!({"user_id": "u1", "field": "tier", "there": "free", "here": "pro"}),
                json!({"user_id": "u1", "field": "credits", "there": 1, "here": 5000}),
            ]
        );
        let missing = difference_rows(&exported("u1", Some("free"), None), None);
        assert_eq!(missing[0]["here"], "no account");
    }
}
