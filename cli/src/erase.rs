//! `erase`: deletes what identifies a person.

use clap::Args;
use serde_json::json;

use crate::api::{AuditArgs, DeploymentArgs, encode};
use crate::output::{list, print_line, text};

/// Delete what identifies a person: the customer at Stripe, payloads of events, e-mail addresses of orders
///
/// Stripe cancels the customer's subscriptions at once. The account and its ledger stay under the user's id.
/// Without --apply nothing is deleted.
///
/// Exit code 1 when events still need their payload, because they wait or have failed.
#[derive(Args)]
pub struct Erase {
    /// The app's id of the user
    user: String,
    /// Delete. It cannot be undone
    #[arg(long, requires = "reason")]
    apply: bool,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl Erase {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let path = format!("/admin/erase/{}", encode(&self.user));
        let body = self.audit.add_to(json!({"dry_run": !self.apply}));
        let mut answer = api.post(&path, &body, None).await?;
        let (mut payloads, mut orders) = (answer["payloads"].as_u64(), answer["orders"].as_u64());
        let customers = list(&answer["customers"]).to_vec();
        while self.apply && answer["complete"] == false {
            answer = api.post(&path, &body, None).await?;
            payloads = payloads.zip(answer["payloads"].as_u64()).map(|(sum, more)| sum + more);
            orders = orders.zip(answer["orders"].as_u64()).map(|(sum, more)| sum + more);
        }
        let waiting = list(&answer["waiting"]).to_vec();
        answer["customers"] = json!(customers);
        (answer["payloads"], answer["orders"]) = (json!(payloads), json!(orders));
        if api.print_json(&answer)? {
            return Ok(waiting.is_empty());
        }
        let deleted = if self.apply { "deleted" } else { "would be deleted" };
        print_line(format_args!(
            "{deleted} for {}: {} customers at Stripe, {} payloads, {} e-mail addresses of orders",
            text(&json!(self.user)),
            customers.len(),
            answer["payloads"],
            answer["orders"]
        ))?;
        for event in &waiting {
            print_line(format_args!("{} waits and keeps its payload: retry or dismiss it", text(event)))?;
        }
        if !self.apply {
            print_line("nothing was deleted; --apply --reason \"…\" deletes")?;
        }
        Ok(waiting.is_empty())
    }
}
