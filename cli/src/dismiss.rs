//! `dismiss`: marks one parked or failed event as no concern of this deployment.

use clap::Args;
use serde_json::json;

use crate::api::{DeploymentArgs, encode};
use crate::output::{print_line, text};

/// Dismiss a parked or failed event: it is not applied, not retried and not alerted again
#[derive(Args)]
pub struct Dismiss {
    /// The id of the event
    id: String,
    /// Why the event does not concern this deployment. The event and the audit keep the reason
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Your name, for the audit
    #[arg(long, env = "USER", default_value = "operator")]
    actor: String,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl Dismiss {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let path = format!("/admin/stripe/webhook-logs/{}/dismiss", encode(&self.id));
        let answer = api.post(&path, &json!({"reason": self.reason, "actor": self.actor}), None).await?;
        if !api.print_json(&answer)? {
            print_line(format_args!(
                "{} is dismissed; `tallyhook retry {}` sends it again",
                text(&answer["id"]),
                text(&answer["id"])
            ))?;
        }
        Ok(true)
    }
}
