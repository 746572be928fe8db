//! `reconcile`: every account, compared with Stripe.

use clap::Args;
use serde_json::{Value, json};

use crate::api::{AuditArgs, DeploymentArgs, at_least_one};
use crate::output::{clear_progress, list, print_line, show_progress, text};
use crate::table::{column, table};

/// Compare all accounts with Stripe, and repair differences with --apply
///
/// Exit code 1 when there is a difference that was not repaired.
#[derive(Args)]
pub struct Reconcile {
    /// Report differences and change nothing. This is the default
    #[arg(long, conflicts_with = "apply")]
    dry_run: bool,
    /// Repair what the policy of the catalog allows
    #[arg(long, requires = "reason")]
    apply: bool,
    /// Only what Stripe has of this user
    #[arg(long)]
    user: Option<String>,
    /// Maximum number of repairs
    #[arg(long, default_value_t = 500, value_parser = at_least_one::<u64>)]
    cap: u64,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl Reconcile {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let mut total: Option<Value> = None;
        let mut next: Option<String> = None;
        // One request covers a part of Stripe's objects. `next` is where the following request continues.
        loop {
            let mut body = json!({"dry_run": !self.apply, "cap": self.cap});
            for (name, value) in [("user", &self.user), ("next", &next)] {
                if let Some(value) = value {
                    body[name] = json!(value);
                }
            }
            let answer = api.post("/admin/stripe/reconcile", &self.audit.add_to(body), None).await?;
            next = answer["report"]["next"].as_str().map(str::to_owned);
            let report = add(total.take(), &answer["report"]);
            show_progress(&format!("read {}; {} to repair", text(&report["read"]), report["changed"]));
            total = Some(report);
            if next.is_none() {
                break;
            }
        }
        clear_progress();
        let report = total.unwrap_or_default();
        let not_repaired = if self.apply { 0 } else { report["changed"].as_u64().unwrap_or(0) };
        let in_order = not_repaired == 0
            && list(&report["left"]).is_empty()
            && list(&report["failures"]).is_empty()
            && report["complete"] == true;
        if !api.print_json(&json!({"report": report}))? {
            print_report(&report, self.apply)?;
        }
        Ok(in_order)
    }
}

fn print_report(report: &Value, applied: bool) -> anyhow::Result<()> {
    print_line(format_args!("read {}", text(&report["read"])))?;
    if let Some(why) = report["stopped"].as_str() {
        print_line(format_args!("stopped early: {why}; run the command again to continue"))?;
    }
    let found = report["found"].as_object().is_some_and(|found| !found.is_empty());
    print_line(if found {
        format!("differences: {}", text(&report["found"]))
    } else {
        "no differences".to_owned()
    })?;
    let changes = list(&report["changes"]);
    if !changes.is_empty() {
        print_line(if applied { "\nrepaired" } else { "\nwould be repaired (with --apply --reason TEXT)" })?;
        let columns = [
            column("CLASS", "class"),
            column("OBJECT", "object"),
            column("USER", "user_id"),
            column("HERE", "before"),
            column("AT STRIPE", "after"),
        ];
        print_line(table(&columns, changes))?;
    }
    let left = list(&report["left"]);
    if !left.is_empty() {
        let columns = [
            column("CLASS", "class"),
            column("OBJECT", "object"),
            column("USER", "user_id"),
            column("WHY", "why"),
        ];
        print_line("\nneeds a person")?;
        print_line(table(&columns, left))?;
    }
    let failures = list(&report["failures"]);
    if !failures.is_empty() {
        print_line("\ncould not be compared")?;
        print_line(table(&[column("OBJECT", "object"), column("WHY", "error")], failures))?;
    }
    Ok(())
}

/// Adds the report of one request to the report of the requests before it.
fn add(total: Option<Value>, part: &Value) -> Value {
    let Some(mut total) = total else { return part.clone() };
    for name in ["changes", "left", "failures"] {
        if let (Some(all), Some(more)) = (total[name].as_array_mut(), part[name].as_array()) {
            all.extend(more.iter().cloned());
        }
    }
    for name in ["read", "found"] {
        for (key, count) in part[name].as_object().into_iter().flatten() {
            total[name][key] = json!(total[name][key].as_u64().unwrap_or(0) + count.as_u64().unwrap_or(0));
        }
    }
    for name in ["changed", "omitted"] {
        total[name] = json!(total[name].as_u64().unwrap_or(0) + part[name].as_u64().unwrap_or(0));
    }
    for name in ["complete", "stopped", "next"] {
        total[name] = part[name].clone();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reports_of_several_requests_add_up() {
        let part = |changed: u64, next: Value| {
            json!({
                "read": {"invoices": 2}, "found": {"credits": changed}, "changed": changed, "omitted": 0,
                "changes": [{"object": "in_1"}], "left": [], "failures": [], "complete": next.is_null(),
                "stopped": null, "next": next,
            })
        };
        let total = add(Some(add(None, &part(1, json!("x")))), &part(2, Value::Null));
        assert_eq!(
            (&total["read"]["invoices"], &total["found"]["credits"], &total["changed"]),
            (&json!(4), &json!(3), &json!(3))
        );
        assert_eq!((list(&total["changes"]).len(), &total["complete"]), (2, &json!(true)));
    }
}
