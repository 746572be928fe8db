//! `catalog push`: the catalog of a deployment, or with `--stripe` the prices at Stripe.

use std::path::PathBuf;

use clap::Args;
use http::StatusCode;
use serde_json::Value;

use super::{check, deployed, prices, read};
use crate::api::{Api, AuditArgs, DeploymentArgs, encode};
use crate::output::{list, print_line, text};

/// Replace the catalog of a deployment, or create the prices of the file at Stripe
///
/// Without --apply, it only prints what would change. Exit code 1 when something is left to do.
///
/// With --stripe, it changes Stripe in place of the deployment: it creates the products and prices of plans
/// and packs that have amount, currency, lookup_keys and, for a plan, interval. A price with another amount
/// is replaced: the new price takes the lookup key, the old one is deactivated and added to the file's
/// prices. It reads the key from STRIPE_SECRET_KEY, which needs write access to products and prices. It may
/// be repeated.
#[derive(Args)]
pub(super) struct Push {
    file: PathBuf,
    /// Make the changes
    #[arg(long)]
    apply: bool,
    /// Create and replace prices at Stripe
    #[arg(long, conflicts_with_all = ["reason", "replaces", "json"])]
    stripe: bool,
    /// Change the catalog only if this is the digest of the deployment's, as `catalog history` shows it
    #[arg(long, value_name = "DIGEST")]
    replaces: Option<String>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

/// The most names that a line of the list shows.
const MAX_NAMED: usize = 10;

/// The fields of an answer's `changes`, with what they mean.
const CHANGES: [(&str, &str); 6] = [
    ("plans_added", "add      plan"),
    ("plans_removed", "remove   plan"),
    ("prices_added", "add      price"),
    ("prices_removed", "remove   price"),
    ("lookup_keys_added", "add      lookup key"),
    ("lookup_keys_removed", "remove   lookup key"),
];

impl Push {
    pub(super) async fn run(self) -> anyhow::Result<bool> {
        let file = read(&self.file)?;
        if check::parse(&file, &self.file)?.is_none() {
            return Ok(false);
        }
        if self.stripe {
            return prices::push(&self.file, file, self.apply).await;
        }
        let api = self.deployment.admin_api()?;
        let known = match &self.replaces {
            Some(digest) => Some(digest.clone()),
            None => deployed(&api).await?.map(|deployed| text(&deployed["digest"])),
        };
        if self.apply && self.audit.reason.is_none() {
            anyhow::bail!("--apply needs --reason: it is kept with the version and in the audit");
        }
        let answer = self.send(&api, &file, known.as_deref()).await?;
        let is_done = answer["applied"] == true || known.is_some_and(|digest| answer["digest"] == *digest);
        if !api.print_json(&answer)? {
            self.print(&answer, is_done)?;
        }
        Ok(is_done)
    }

    async fn send(&self, api: &Api, file: &str, known: Option<&str>) -> anyhow::Result<Value> {
        let mut query = format!("?actor={}", encode(&self.audit.actor));
        if self.apply {
            query += "&apply=true";
        }
        if let Some(reason) = &self.audit.reason {
            query += &format!("&reason={}", encode(reason));
        }
        let mut headers = vec![("content-type", "application/toml".to_owned())];
        headers.extend(known.map(|digest| ("if-match", format!("\"{digest}\""))));
        let (status, answer) = api.put_text(&format!("/admin/catalog{query}"), file, &headers).await?;
        if status == StatusCode::PRECONDITION_FAILED {
            if let Some(digest) = &self.replaces {
                anyhow::bail!(
                    "the catalog of the deployment does not have the digest {digest} (digest_mismatch): nothing \
                     was changed. `tallyhook catalog history` shows the digests, the newest first"
                );
            }
            anyhow::bail!(
                "another push changed the catalog of the deployment (digest_mismatch): nothing was changed. \
                 Look at `tallyhook catalog history` and `catalog diff`, then push again"
            );
        }
        api.require_ok(status, answer)
    }

    fn print(&self, answer: &Value, is_done: bool) -> anyhow::Result<()> {
        let changes = &answer["changes"];
        for (field, what) in CHANGES {
            for name in list(&changes[field]) {
                print_line(format_args!("{what} {}", text(name)))?;
            }
        }
        changed_lines(list(&changes["changed"])).iter().try_for_each(print_line)?;
        let removed = &answer["accounts_on_removed_prices"];
        if removed["count"].as_u64().is_some_and(|count| count > 0) {
            print_line(format_args!(
                "warning  {}{} live on a price that is removed: {}. Their renewals grant what the price was \
                 worth, and new subscriptions on it are parked",
                if removed["at_least"] == true { "at least " } else { "" },
                counted(&removed["count"], "account"),
                named(&removed["users"])
            ))?;
        }
        let freed = &answer["parked_freed"];
        if freed["count"].as_u64().is_some_and(|count| count > 0) {
            print_line(format_args!(
                "send     {} again: {}",
                counted(&freed["count"], "parked event"),
                named(&freed["events"])
            ))?;
        }
        if answer["applied"] == true {
            print_line(format_args!(
                "The catalog is version {}. Every function reads it within 30 s.",
                text(&answer["version"])
            ))?;
        } else if is_done {
            print_line("The deployment has this catalog; nothing to do.")?;
        } else {
            print_line("Nothing was changed. Repeat the command with --apply and --reason to do this.")?;
        }
        Ok(())
    }
}

/// A line for each changed field, and one for each entry that is added or removed as a whole.
fn changed_lines(changed: &[Value]) -> Vec<String> {
    let is_key = |change: &&Value| {
        let name = text(&change["name"]);
        let key = if name.starts_with("order ") { "mode" } else { "name" };
        change["field"] == key && name.contains(' ')
    };
    let mut lines = Vec::new();
    let mut whole = Vec::new();
    for change in changed.iter().filter(is_key) {
        let what = if change["from"].is_null() { "add     " } else { "remove  " };
        whole.push(&change["name"]);
        lines.push(format!("{what} {}", text(&change["name"])));
    }
    for change in changed.iter().filter(|change| !whole.contains(&&change["name"])) {
        let [name, field, from, to] = ["name", "field", "from", "to"].map(|part| text(&change[part]));
        lines.push(format!("change   {name}: {field} {from} → {to}"));
    }
    lines
}

fn counted(count: &Value, what: &str) -> String {
    format!("{} {what}{}", text(count), if *count == 1 { "" } else { "s" })
}

fn named(names: &Value) -> String {
    let names = list(names);
    let shown = names.iter().take(MAX_NAMED).map(text).collect::<Vec<_>>().join(", ");
    if names.len() > MAX_NAMED { format!("{shown}, …") } else { shown }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_changed_field_is_a_line_and_so_is_a_whole_entry() {
        let change = |name: &str, field: &str, from: Value, to: Value| -> Value {
            json!({"name": name, "field": field, "from": from, "to": to})
        };
        let changed = [
            change("order dfy", "mode", json!("dfy"), Value::Null),
            change("order dfy", "plans", json!({"starter": {"revisions": 1}}), Value::Null),
            change("pack c50", "credits", Value::Null, json!(50)),
            change("pack c50", "name", Value::Null, json!("c50")),
            change("plan pro", "credits", json!(5000), json!(6000)),
            change("tiers", "team", Value::Null, json!(2)),
        ];
        let lines = [
            "remove   order dfy",
            "add      pack c50",
            "change   plan pro: credits 5000 → 6000",
            "change   tiers: team - → 2",
        ];
        assert_eq!(changed_lines(&changed), lines);
    }
}
