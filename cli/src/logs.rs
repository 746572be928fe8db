//! `logs`: the event log.

use clap::Args;
use serde_json::{Value, json};

use crate::api::{Api, DeploymentArgs, at_least_one, encode};
use crate::output::{clear_progress, list, print_line, show_progress, text};
use crate::table::{column, computed, table};

/// Show the event log: a list, or one event with its payload
#[derive(Args)]
pub struct Logs {
    /// The id of one event, to see it with its payload
    #[arg(conflicts_with_all = ["status", "type", "user", "from", "to"])]
    id: Option<String>,
    /// processed, parked, failed, ignored or dismissed
    #[arg(long)]
    status: Option<String>,
    /// Stripe's event type, for example invoice.paid
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Events of this user
    #[arg(long)]
    user: Option<String>,
    /// Received at or after this time: 2026-11-21 or 2026-11-21T12:00:00Z
    #[arg(long)]
    from: Option<String>,
    /// Received before this time
    #[arg(long)]
    to: Option<String>,
    /// Maximum number of events
    #[arg(long, default_value_t = 50, value_parser = at_least_one::<usize>)]
    limit: usize,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

/// Events in one response of the API.
const MAX_PAGE: usize = 200;

impl Logs {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        if let Some(id) = &self.id {
            return show_event(&api, id).await;
        }
        let mut events: Vec<Value> = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let limit = (self.limit - events.len()).clamp(1, MAX_PAGE).to_string();
            let parameters = [
                ("status", self.status.as_deref()),
                ("type", self.r#type.as_deref()),
                ("user", self.user.as_deref()),
                ("from", self.from.as_deref()),
                ("to", self.to.as_deref()),
                ("limit", Some(limit.as_str())),
                ("next", next.as_deref()),
            ];
            let page = api.get("/admin/stripe/webhook-logs", &parameters).await?;
            events.extend(list(&page["events"]).iter().cloned());
            next = page["next"].as_str().map(str::to_owned);
            show_progress(&format!("{} events", events.len()));
            if next.is_none() || events.len() >= self.limit {
                break;
            }
        }
        clear_progress();
        events.truncate(self.limit);
        if api.print_json(&json!({"events": events, "next": next}))? {
            return Ok(true);
        }
        print_line(event_table(&events))?;
        if next.is_some() {
            print_line(format_args!("\nThese are the first {}. See more with --limit.", events.len()))?;
        }
        Ok(true)
    }
}

/// Events of the log, one in a row.
pub fn event_table(events: &[Value]) -> String {
    if events.is_empty() {
        return "no events".to_owned();
    }
    // `updated` is the reason of nearly every processed event.
    let reason = |row: &Value| if row["reason"] == "updated" { String::new() } else { text(&row["reason"]) };
    let columns = [
        column("RECEIVED", "received_at"),
        column("STATUS", "status"),
        column("TYPE", "type"),
        column("ID", "id"),
        column("USER", "user_id"),
        computed("REASON", reason),
    ];
    table(&columns, events)
}

async fn show_event(api: &Api, id: &str) -> anyhow::Result<bool> {
    const FIELDS: [&str; 14] = [
        "id",
        "type",
        "status",
        "reason",
        "message",
        "dismissed",
        "user_id",
        "waits_for",
        "created",
        "received_at",
        "finished_at",
        "attempts",
        "catalog",
        "objects",
    ];
    let answer = api.get(&format!("/admin/stripe/webhook-logs/{}", encode(id)), &[]).await?;
    if api.print_json(&answer)? {
        return Ok(true);
    }
    let event = &answer["event"];
    for field in FIELDS.into_iter().filter(|field| !event[*field].is_null()) {
        print_line(format_args!("{field:<12} {}", text(&event[field])))?;
    }
    if let Some(advice) = event["advice"]["text"].as_str() {
        print_line(format_args!("\n{advice}"))?;
    }
    print_line(format_args!("\n{}", serde_json::to_string_pretty(&answer["payload"])?))?;
    Ok(true)
}
