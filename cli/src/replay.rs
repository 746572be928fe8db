//! `replay`: events read from Stripe and processed, oldest first.

use clap::Args;
use serde_json::json;

use crate::api::{AuditArgs, DeploymentArgs, at_least_one};
use crate::output::{clear_progress, list, print_line, show_progress, text};

/// Read events from Stripe and process them: one, or those of a type or time
///
/// Stripe keeps events for 30 days. An event that was processed before changes nothing.
#[derive(Args)]
pub struct Replay {
    /// The id of one event
    #[arg(conflicts_with_all = ["type", "from", "to", "undelivered"])]
    id: Option<String>,
    /// Stripe's event type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Created at or after this time
    #[arg(long)]
    from: Option<String>,
    /// Created before this time
    #[arg(long)]
    to: Option<String>,
    /// Only events that an endpoint has not received
    #[arg(long)]
    undelivered: bool,
    /// Maximum number of events
    #[arg(long, default_value_t = 1000, value_parser = at_least_one::<usize>)]
    limit: usize,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

/// Events in one request to the API.
const MAX_PAGE: usize = 200;

impl Replay {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let (mut processed, mut parked, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        let (mut next, mut done): (Option<String>, usize) = (None, 0);
        loop {
            let limit = (self.limit - done).clamp(1, MAX_PAGE);
            let mut body = json!({"source": "stripe", "undelivered": self.undelivered, "limit": limit});
            for (name, value) in [
                ("id", &self.id),
                ("type", &self.r#type),
                ("from", &self.from),
                ("to", &self.to),
                ("next", &next),
            ] {
                if let Some(value) = value {
                    body[name] = json!(value);
                }
            }
            let answer = api.post("/admin/stripe/retry-webhooks", &self.audit.add_to(body), None).await?;
            let report = &answer["report"];
            processed.extend(list(&report["processed"]).iter().cloned());
            parked.extend(list(&report["parked"]).iter().cloned());
            skipped.extend(list(&report["skipped"]).iter().cloned());
            done = processed.len() + parked.len() + skipped.len();
            next = report["next"].as_str().map(str::to_owned);
            show_progress(&format!("{done} events"));
            if next.is_none() || done >= self.limit {
                break;
            }
        }
        clear_progress();
        let report = json!({"processed": processed, "parked": parked, "skipped": skipped, "next": next});
        if api.print_json(&json!({"report": report}))? {
            return Ok(true);
        }
        let counts = (processed.len(), parked.len(), skipped.len());
        print_line(format_args!("{} processed, {} parked, {} skipped", counts.0, counts.1, counts.2))?;
        for event in parked.iter().chain(&skipped) {
            print_line(format_args!("  {}", text(event)))?;
        }
        if next.is_some() {
            print_line("There are more events. Process more with --limit.")?;
        }
        Ok(true)
    }
}
