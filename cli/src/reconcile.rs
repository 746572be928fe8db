//! `reconcile`.

use clap::Args;
use serde_json::{Value, json};

use super::table::{field, table};
use super::{Target, Who, change, list, progress, progress_done, say, text};

/// Compare everything with Stripe; changes nothing unless --apply says so
///
/// Exit code 1 when something differs that was not repaired.
#[derive(Args)]
pub struct Reconcile {
    /// Find, and change nothing: what happens without --apply
    #[arg(long, conflicts_with = "apply")]
    dry_run: bool,
    /// Repair what may be repaired
    #[arg(long, requires = "reason")]
    apply: bool,
    /// Only what Stripe has of this user
    #[arg(long)]
    user: Option<String>,
    /// Stop after so many repairs
    #[arg(long, default_value_t = 500)]
    cap: u64,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    target: Target,
}

impl Reconcile {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.target.api()?;
        let mut whole: Option<Value> = None;
        let mut next: Option<String> = None;
        loop {
            let mut body = json!({"dry_run": !self.apply, "cap": self.cap});
            for (name, value) in [("user", &self.user), ("next", &next)] {
                if let Some(value) = value {
                    body[name] = json!(value);
                }
            }
            let answer = api.post("/admin/stripe/reconcile", &change(&self.who, body), None).await?;
            next = answer["report"]["next"].as_str().map(str::to_owned);
            let report = merge(whole.take(), &answer["report"]);
            progress(&format!("read {}; {} to repair", text(&report["read"]), report["changed"]));
            whole = Some(report);
            if next.is_none() {
                break;
            }
        }
        progress_done();
        let report = whole.unwrap_or_default();
        let open = if self.apply { 0 } else { report["changed"].as_u64().unwrap_or(0) };
        let fine = open == 0
            && list(&report["left"]).is_empty()
            && list(&report["failures"]).is_empty()
            && report["complete"] == true;
        if api.printed(&json!({"report": report}))? {
            return Ok(fine);
        }
        say(&format!("looked at {}", text(&report["read"])))?;
        if let Some(why) = report["stopped"].as_str() {
            say(&format!("stopped early: {why}; run it again to go on"))?;
        }
        let found = report["found"].as_object().is_some_and(|found| !found.is_empty());
        say(&if found {
            format!("differs: {}", text(&report["found"]))
        } else {
            "nothing differs".to_owned()
        })?;
        let (class, object, user) = (field("class"), field("object"), field("user_id"));
        let (before, after, why, error) = (field("before"), field("after"), field("why"), field("error"));
        if !list(&report["changes"]).is_empty() {
            say(if self.apply { "\nrepaired" } else { "\nwould be repaired (with --apply --reason TEXT)" })?;
            let columns: [super::table::Column; 5] = [
                ("CLASS", &class),
                ("OBJECT", &object),
                ("USER", &user),
                ("HERE", &before),
                ("AT STRIPE", &after),
            ];
            say(&table(&columns, list(&report["changes"])))?;
        }
        if !list(&report["left"]).is_empty() {
            say("\nleft to a person")?;
            say(&table(
                &[("CLASS", &class), ("OBJECT", &object), ("USER", &user), ("WHY", &why)],
                list(&report["left"]),
            ))?;
        }
        if !list(&report["failures"]).is_empty() {
            say("\ncould not be looked at")?;
            say(&table(&[("OBJECT", &object), ("WHY", &error)], list(&report["failures"])))?;
        }
        Ok(fine)
    }
}

/// The report of a run that took several requests.
fn merge(whole: Option<Value>, part: &Value) -> Value {
    let Some(mut whole) = whole else { return part.clone() };
    for name in ["changes", "left", "failures"] {
        if let (Some(all), Some(more)) = (whole[name].as_array_mut(), part[name].as_array()) {
            all.extend(more.iter().cloned());
        }
    }
    for name in ["read", "found"] {
        for (key, count) in part[name].as_object().into_iter().flatten() {
            whole[name][key] = json!(whole[name][key].as_u64().unwrap_or(0) + count.as_u64().unwrap_or(0));
        }
    }
    for name in ["changed", "omitted"] {
        whole[name] = json!(whole[name].as_u64().unwrap_or(0) + part[name].as_u64().unwrap_or(0));
    }
    for name in ["complete", "stopped", "next"] {
        whole[name] = part[name].clone();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reports_of_a_run_add_up() {
        let part = |changed: u64, next: Value| {
            json!({"read": {"invoices": 2}, "found": {"credits": changed}, "changed": changed, "omitted": 0, "changes": [{"object": "in_1"}],
                   "left": [], "failures": [], "complete": next.is_null(), "stopped": null, "next": next})
        };
        let whole = merge(Some(merge(None, &part(1, json!("x")))), &part(2, Value::Null));
        assert_eq!(
            (&whole["read"]["invoices"], &whole["found"]["credits"], &whole["changed"]),
            (&json!(4), &json!(3), &json!(3))
        );
        assert_eq!((list(&whole["changes"]).len(), &whole["complete"]), (2, &json!(true)));
    }
}
