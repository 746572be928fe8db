//! `check-user`: one user's account, compared with Stripe.

use clap::Args;
use serde_json::Value;

use crate::api::{DeploymentArgs, encode};
use crate::logs::event_table;
use crate::output::{list, print_line, text};
use crate::table::{column, computed, number, table};

/// Explain a user's account: what set each field, what Stripe says, differences, and open events
///
/// Exit code 1 when something differs or an event is parked or failed.
#[derive(Args)]
pub struct CheckUser {
    /// The app's id of the user
    user: String,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl CheckUser {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let answer = api.get(&format!("/admin/stripe/check-user/{}", encode(&self.user)), &[]).await?;
        let verdict = &answer["verdict"];
        let in_order = matches!(verdict["code"].as_str(), Some("in_order" | "not_compared"));
        if api.print_json(&answer)? {
            return Ok(in_order);
        }
        print_line(format_args!("{}: {}", self.user, text(&verdict["text"])))?;
        for suggestion in list(&answer["suggestions"]) {
            print_line(format_args!("  {}", text(&suggestion["text"])))?;
        }
        if !answer["account"].is_null() {
            print_account(&answer)?;
        }
        print_differences(list(&answer["differences"]))?;
        if let Some(error) = answer["stripe"]["error"].as_str() {
            print_line(format_args!("\nStripe: {error}"))?;
        }
        print_open_events(list(&answer["open"]))?;
        print_ledger(list(&answer["ledger"]["entries"]))?;
        Ok(in_order)
    }
}

fn print_account(answer: &Value) -> anyhow::Result<()> {
    let account = &answer["account"];
    let customers: Vec<String> =
        list(&account["customers"]).iter().map(|customer| text(&customer["id"])).collect();
    let customers = if customers.is_empty() { "none".to_owned() } else { customers.join(", ") };
    print_line(format_args!(
        "\ntier {}, credits {}, customer {customers}",
        text(&account["tier"]),
        account["credits"]
    ))?;
    let set_by = |row: &Value| {
        if row["event_id"].is_null() { text(&row["ledger_key"]) } else { text(&row["event_id"]) }
    };
    let columns = [
        column("FIELD", "field"),
        column("VALUE", "value"),
        computed("SET BY", set_by),
        column("BECAUSE", "why"),
    ];
    print_line(format_args!("\n{}", table(&columns, list(&answer["because"]))))?;
    Ok(())
}

fn print_differences(differences: &[Value]) -> anyhow::Result<()> {
    if differences.is_empty() {
        return Ok(());
    }
    let repair = |row: &Value| {
        if row["repairable"] == true { "--apply-stripe".to_owned() } else { text(&row["why"]) }
    };
    let columns = [
        column("DIFFERS", "class"),
        column("OBJECT", "object"),
        column("HERE", "before"),
        column("AT STRIPE", "after"),
        computed("REPAIR", repair),
    ];
    print_line(format_args!("\n{}", table(&columns, differences)))?;
    Ok(())
}

fn print_open_events(events: &[Value]) -> anyhow::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    print_line(format_args!("\nparked or failed events\n{}", event_table(events)))?;
    for event in events {
        print_line(format_args!("  {}: {}", text(&event["id"]), text(&event["advice"]["text"])))?;
    }
    Ok(())
}

fn print_ledger(entries: &[Value]) -> anyhow::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let columns = [
        column("AT", "at"),
        column("LEDGER", "key"),
        number("CHANGE", "delta"),
        number("BALANCE", "balance"),
        column("BY", "cause"),
    ];
    print_line(format_args!("\n{}", table(&columns, entries)))?;
    Ok(())
}
