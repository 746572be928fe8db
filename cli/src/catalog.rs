//! `catalog`: the catalog file, the catalog of a deployment, and the prices at Stripe.

mod check;
mod diff;
mod file;
mod prices;
mod pull;
mod push;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::api::{Api, DeploymentArgs, UrlArgs};
use crate::output::{list, print_line, text};
use crate::table::{column, number, table};

/// Check the catalog, compare it with a deployment or with Stripe, and change them
#[derive(Args)]
pub struct CatalogCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Check(Check),
    Diff(Diff),
    Push(push::Push),
    Pull(pull::Pull),
    History(History),
}

/// Check a catalog file, without a deployment
///
/// Prints what the file sells, or each error with its line. Exit code 1 when there is an error.
#[derive(Args)]
struct Check {
    file: PathBuf,
}

/// Compare a catalog file with the catalog of a deployment
///
/// Lines with - are only in the deployment, lines with + only in the file. Exit code 1 when they differ.
#[derive(Args)]
struct Diff {
    file: PathBuf,
    #[command(flatten)]
    deployment: UrlArgs,
}

/// List the versions of a deployment's catalog, the newest first, or print one of them
#[derive(Args)]
struct History {
    /// Print the catalog of this version
    version: Option<u64>,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl CatalogCommand {
    pub async fn run(self) -> anyhow::Result<bool> {
        match self.action {
            Action::Check(command) => command.run(),
            Action::Diff(command) => command.run().await,
            Action::Push(command) => command.run().await,
            Action::Pull(command) => command.run().await,
            Action::History(command) => command.run().await,
        }
    }
}

impl Check {
    fn run(self) -> anyhow::Result<bool> {
        let text = read(&self.file)?;
        let Some(catalog) = check::parse(&text, &self.file)? else { return Ok(false) };
        check::print(&catalog, &text)?;
        Ok(true)
    }
}

impl Diff {
    async fn run(self) -> anyhow::Result<bool> {
        let file = read(&self.file)?;
        let Some(deployed) = deployed(&self.deployment.admin_api()?).await? else {
            print_line(format_args!(
                "{} has no catalog; `tallyhook catalog push` sets one",
                self.deployment.url
            ))?;
            return Ok(false);
        };
        let old = deployed["toml"].as_str().context("the answer has no catalog")?;
        let lines = diff::lines(old, &file);
        if lines.is_empty() {
            print_line(format_args!("{} is the catalog of the deployment.", self.file.display()))?;
            return Ok(true);
        }
        print_line(format_args!("--- {} version {}", self.deployment.url, text(&deployed["version"])))?;
        print_line(format_args!("+++ {}", self.file.display()))?;
        lines.iter().try_for_each(print_line)?;
        Ok(false)
    }
}

impl History {
    async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        if let Some(version) = self.version {
            let answer = api.get(&format!("/admin/catalog/history/{version}"), &[]).await?;
            if !api.print_json(&answer)? {
                print_text(answer["toml"].as_str().context("the answer has no catalog")?)?;
            }
            return Ok(true);
        }
        let (mut versions, mut next) = (Vec::new(), None::<String>);
        loop {
            let answer = api.get("/admin/catalog/history", &[("next", next.as_deref())]).await?;
            versions.extend(list(&answer["versions"]).iter().cloned());
            next = answer["next"].as_str().map(str::to_owned);
            if next.is_none() {
                break;
            }
        }
        if !api.print_json(&Value::Array(versions.clone()))? {
            let columns = [
                number("VERSION", "version"),
                column("APPLIED AT", "applied_at"),
                column("ACTOR", "actor"),
                column("REASON", "reason"),
                column("DIGEST", "digest"),
            ];
            print_line(table(&columns, &versions))?;
        }
        Ok(true)
    }
}

/// The catalog of a deployment, with its digest and version; `None` when it has none.
pub(crate) async fn deployed(api: &Api) -> anyhow::Result<Option<Value>> {
    let (status, answer) = api.send(Method::GET, "/admin/catalog", None, None).await?;
    let has_none = answer.as_ref().is_some_and(|answer| answer["error"] == "no_catalog");
    if status == StatusCode::NOT_FOUND && has_none {
        return Ok(None);
    }
    api.require_ok(status, answer).map(Some)
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Writes a file as a whole: a reader, or the next run, sees the old text or the new one.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let mut name = target.file_name().with_context(|| format!("{} is no file", file.display()))?.to_owned();
    name.push(".new");
    let new = target.with_file_name(name);
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &target));
    written.with_context(|| format!("cannot write {}", file.display()))
}

/// An existing file is replaced only with `force`.
fn require_new(file: &Path, force: bool) -> anyhow::Result<()> {
    ensure!(force || !file.exists(), "{} exists; --force replaces it", file.display());
    Ok(())
}

/// Prints a text as it is.
fn print_text(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
