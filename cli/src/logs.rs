//! `logs`, `retry`, `replay`, `health`.

use clap::Args;
use serde_json::{Value, json};

use super::table::{field, table};
use super::{Api, Target, Who, change, encode, list, progress, progress_done, say, text};

/// The event log: a list, or one event with its payload
#[derive(Args)]
pub struct Logs {
    /// One event, with its payload
    id: Option<String>,
    /// processed, parked, failed or ignored
    #[arg(long)]
    status: Option<String>,
    /// Stripe's type, such as invoice.paid
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Whose
    #[arg(long)]
    user: Option<String>,
    /// Received at or after: 2026-11-21 or 2026-11-21T12:00:00Z
    #[arg(long)]
    from: Option<String>,
    /// Received before
    #[arg(long)]
    to: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    target: Target,
}

/// Send events of the log again: one, those that fit, or without either all that are due
#[derive(Args)]
pub struct Retry {
    /// One event
    id: Option<String>,
    /// parked or failed
    #[arg(long)]
    status: Option<String>,
    /// Stripe's type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Received at or after
    #[arg(long)]
    from: Option<String>,
    /// Received before
    #[arg(long)]
    to: Option<String>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    target: Target,
}

/// Send events again as Stripe has them (it keeps them for 30 days): one, or those of a type or time
///
/// What an event did already it does not do again.
#[derive(Args)]
pub struct Replay {
    /// One event
    id: Option<String>,
    /// Stripe's type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Made at or after
    #[arg(long)]
    from: Option<String>,
    /// Made before
    #[arg(long)]
    to: Option<String>,
    /// Only what an endpoint did not take
    #[arg(long)]
    undelivered: bool,
    /// At most so many
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    target: Target,
}

/// The health score, where points were lost and what to do; exit code 1 below 80
#[derive(Args)]
pub struct Health {
    #[command(flatten)]
    target: Target,
}

/// Events in one request.
const PAGE: usize = 200;
/// A score below this needs somebody.
const LOW_SCORE: u64 = 80;

impl Logs {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.target.api()?;
        if let Some(id) = &self.id {
            return one(&api, id).await;
        }
        let mut events: Vec<Value> = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let limit = (self.limit - events.len()).clamp(1, PAGE).to_string();
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
            progress(&format!("{} events", events.len()));
            if next.is_none() || events.len() >= self.limit {
                break;
            }
        }
        progress_done();
        events.truncate(self.limit);
        if api.printed(&json!({"events": events, "next": next}))? {
            return Ok(true);
        }
        say(&lines(&events))?;
        if next.is_some() {
            say(&format!("\nthe first {}; more with --limit", events.len()))?;
        }
        Ok(true)
    }
}

/// Lines of the log.
pub fn lines(events: &[Value]) -> String {
    if events.is_empty() {
        return "no event".to_owned();
    }
    let (received, id, kind, status, user) =
        (field("received_at"), field("id"), field("type"), field("status"), field("user_id"));
    let reason = |row: &Value| if row["reason"] == "updated" { String::new() } else { text(&row["reason"]) };
    let columns: [super::table::Column; 6] = [
        ("RECEIVED", &received),
        ("STATUS", &status),
        ("TYPE", &kind),
        ("ID", &id),
        ("USER", &user),
        ("REASON", &reason),
    ];
    table(&columns, events)
}

async fn one(api: &Api, id: &str) -> anyhow::Result<bool> {
    let answer = api.get(&format!("/admin/stripe/webhook-logs/{}", encode(id)), &[]).await?;
    if api.printed(&answer)? {
        return Ok(true);
    }
    let event = &answer["event"];
    for name in [
        "id",
        "type",
        "status",
        "reason",
        "message",
        "user_id",
        "waits_for",
        "created",
        "received_at",
        "finished_at",
        "attempts",
        "objects",
    ] {
        if !event[name].is_null() {
            say(&format!("{name:<12} {}", text(&event[name])))?;
        }
    }
    if let Some(advice) = event["advice"]["text"].as_str() {
        say(&format!("\n{advice}"))?;
    }
    say(&format!("\n{}", serde_json::to_string_pretty(&answer["payload"])?))?;
    Ok(true)
}

impl Retry {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.target.api()?;
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
        let answer = api.post("/admin/stripe/retry-webhooks", &change(&self.who, body), None).await?;
        if api.printed(&answer)? {
            return Ok(true);
        }
        let report = &answer["report"];
        if report.is_null() {
            let done = if answer["result"] == "finished" {
                "was done before: nothing to send"
            } else {
                "is in its queue"
            };
            say(&format!("{} {done}", text(&answer["id"])))?;
        } else {
            say(&format!(
                "{} sent, {} wait, {} could not be sent",
                report["sent"], report["waiting"], report["not_sent"]
            ))?;
            if report["more"] == true {
                say("there are more: run it again")?;
            }
        }
        Ok(true)
    }
}

impl Replay {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.target.api()?;
        let (mut sent, mut skipped) = (Vec::new(), Vec::new());
        let mut next: Option<String> = None;
        loop {
            let mut body = json!({"source": "stripe", "undelivered": self.undelivered, "limit": (self.limit - sent.len()).clamp(1, PAGE)});
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
            let answer = api.post("/admin/stripe/retry-webhooks", &change(&self.who, body), None).await?;
            sent.extend(list(&answer["report"]["sent"]).iter().cloned());
            skipped.extend(list(&answer["report"]["skipped"]).iter().cloned());
            next = answer["report"]["next"].as_str().map(str::to_owned);
            progress(&format!("{} sent", sent.len()));
            if next.is_none() || sent.len() >= self.limit {
                break;
            }
        }
        progress_done();
        if api.printed(&json!({"report": {"sent": sent, "skipped": skipped, "next": next}}))? {
            return Ok(true);
        }
        say(&format!("{} sent, {} skipped", sent.len(), skipped.len()))?;
        for skip in &skipped {
            say(&format!("  {}", text(skip)))?;
        }
        if next.is_some() {
            say("there are more: raise --limit")?;
        }
        Ok(true)
    }
}

impl Health {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.target.api()?;
        let answer = api.get("/admin/stripe/subscription-health", &[]).await?;
        let fine = answer["score"].as_u64().is_some_and(|score| score >= LOW_SCORE);
        if api.printed(&answer)? {
            return Ok(fine);
        }
        let counts = &answer["counts"];
        say(&format!("score {} of 100", answer["score"]))?;
        let rate = answer["success_rate"]
            .as_f64()
            .map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
        say(&format!(
            "last day: {} processed, {} ignored, success {rate}; open: {} parked, {} failed; {} dead letters",
            counts["processed"],
            counts["ignored"],
            counts["parked"],
            counts["failed"],
            counts["dead_letters"]
        ))?;
        for deduction in list(&answer["deductions"]) {
            say(&format!(
                "\n-{:<3} {}\n     {}",
                deduction["points"],
                text(&deduction["reason"]),
                text(&deduction["advice"])
            ))?;
        }
        Ok(fine)
    }
}
