//! `retry`: events of the log, sent to their queues again.

use clap::Args;
use serde_json::json;

use crate::api::{AuditArgs, DeploymentArgs};
use crate::output::{print_line, text};

/// Process events of the log again: one, those that match, or all that are due
#[derive(Args)]
pub struct Retry {
    /// The id of one event
    #[arg(conflicts_with_all = ["status", "type", "from", "to"])]
    id: Option<String>,
    /// parked or failed
    #[arg(long)]
    status: Option<String>,
    /// Stripe's event type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Received at or after this time
    #[arg(long)]
    from: Option<String>,
    /// Received before this time
    #[arg(long)]
    to: Option<String>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl Retry {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let mut body = json!({});
        for (name, value) in [
            ("id", &self.id),
            ("status", &self.status),
            ("type", &self.r#type),
            ("from", &self.from),
            ("to", &self.to),
        ] {
            if let Some(value) = value {
                body[name] = json!(value);
            }
        }
        let answer = api.post("/admin/stripe/retry-webhooks", &self.audit.add_to(body), None).await?;
        if api.print_json(&answer)? {
            return Ok(true);
        }
        let report = &answer["report"];
        if report.is_null() {
            let result = if answer["result"] == "finished" {
                "is already processed: nothing to send"
            } else {
                "is in its queue"
            };
            print_line(format_args!("{} {result}", text(&answer["id"])))?;
        } else {
            print_line(format_args!(
                "{} sent, {} waiting, {} could not be sent",
                report["sent"], report["waiting"], report["not_sent"]
            ))?;
            if report["more"] == true {
                print_line("There are more events. Run the command again.")?;
            }
        }
        Ok(true)
    }
}
