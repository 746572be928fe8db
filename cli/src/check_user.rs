//! `check-user` and `fix-user`.

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use super::events::lines;
use super::table::{field, table};
use super::{Target, Who, change, encode, list, say, text};

/// Explain a user: the account, what set each field, what Stripe says, what differs, what waits
///
/// Exit code 1 when something differs or waits.
#[derive(Args)]
pub struct CheckUser {
    /// The app's id of the user
    user: String,
    #[command(flatten)]
    target: Target,
}

/// Set a user right: apply Stripe's truth, link a customer or subscription, grant or revoke credits
#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct FixUser {
    /// The app's id of the user
    user: String,
    /// Apply what Stripe says, as reconciliation would
    #[arg(long, group = "what")]
    apply_stripe: bool,
    /// Link a customer; what is parked for it is applied at once
    #[arg(long, group = "what", value_name = "cus_…")]
    link_customer: Option<String>,
    /// Ask Stripe whose a subscription is, link that customer and apply what Stripe says
    #[arg(long, group = "what", value_name = "sub_…")]
    link_subscription: Option<String>,
    /// Grant credits
    #[arg(long, group = "what", value_name = "CREDITS")]
    grant: Option<u64>,
    /// Revoke credits; never below zero
    #[arg(long, group = "what", value_name = "CREDITS")]
    revoke: Option<u64>,
    /// Let linking create the account: the id is right
    #[arg(long)]
    create: bool,
    /// Makes a repeated grant one grant [default: a new one for each run]
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    target: Target,
}

impl CheckUser {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.target.api()?;
        let answer = api.get(&format!("/admin/stripe/check-user/{}", encode(&self.user)), &[]).await?;
        let verdict = &answer["verdict"];
        let fine = matches!(verdict["code"].as_str(), Some("in_order" | "not_compared"));
        if api.printed(&answer)? {
            return Ok(fine);
        }
        say(&format!("{}: {}", self.user, text(&verdict["text"])))?;
        for suggestion in list(&answer["suggestions"]) {
            say(&format!("  {}", text(&suggestion["text"])))?;
        }
        let account = &answer["account"];
        if !account.is_null() {
            let customers: Vec<String> =
                list(&account["customers"]).iter().map(|customer| text(&customer["id"])).collect();
            let customers = if customers.is_empty() { "none".to_owned() } else { customers.join(", ") };
            say(&format!(
                "\ntier {}, credits {}, customer {customers}",
                text(&account["tier"]),
                account["credits"]
            ))?;
            let (name, value, why) = (field("field"), field("value"), field("why"));
            let by = |row: &Value| {
                if row["event_id"].is_null() { text(&row["ledger_key"]) } else { text(&row["event_id"]) }
            };
            say(&format!(
                "\n{}",
                table(
                    &[("FIELD", &name), ("VALUE", &value), ("SET BY", &by), ("BECAUSE", &why)],
                    list(&answer["because"])
                )
            ))?;
        }
        if !list(&answer["differences"]).is_empty() {
            let (class, object, before, after) =
                (field("class"), field("object"), field("before"), field("after"));
            let repair = |row: &Value| {
                if row["repairable"] == true { "--apply-stripe".to_owned() } else { text(&row["why"]) }
            };
            let columns: [super::table::Column; 5] = [
                ("DIFFERS", &class),
                ("OBJECT", &object),
                ("HERE", &before),
                ("AT STRIPE", &after),
                ("REPAIR", &repair),
            ];
            say(&format!("\n{}", table(&columns, list(&answer["differences"]))))?;
        }
        if let Some(error) = answer["stripe"]["error"].as_str() {
            say(&format!("\nStripe: {error}"))?;
        }
        if !list(&answer["open"]).is_empty() {
            say(&format!("\nwaiting or failed\n{}", lines(list(&answer["open"]))))?;
            for event in list(&answer["open"]) {
                say(&format!("  {}: {}", text(&event["id"]), text(&event["advice"]["text"])))?;
            }
        }
        if !list(&answer["ledger"]["entries"]).is_empty() {
            let (at, key, delta, balance, cause) =
                (field("at"), field("key"), field("delta"), field("balance"), field("cause"));
            let columns: [super::table::Column; 5] =
                [("AT", &at), ("LEDGER", &key), ("CHANGE>", &delta), ("BALANCE>", &balance), ("BY", &cause)];
            say(&format!("\n{}", table(&columns, list(&answer["ledger"]["entries"]))))?;
        }
        Ok(fine)
    }
}

impl FixUser {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.target.api()?;
        let mut body = if let Some(customer) = &self.link_customer {
            json!({"action": "link_customer", "customer": customer})
        } else if let Some(subscription) = &self.link_subscription {
            json!({"action": "link_subscription", "subscription": subscription})
        } else if let Some(credits) = self.grant {
            json!({"action": "grant", "credits": credits})
        } else if let Some(credits) = self.revoke {
            json!({"action": "revoke", "credits": credits})
        } else {
            json!({"action": "apply_stripe"})
        };
        if self.create {
            body["create"] = json!(true);
        }
        let key = self.idempotency_key.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
        let answer = api
            .post(
                &format!("/admin/stripe/fix-user/{}", encode(&self.user)),
                &change(&self.who, body),
                Some(&key),
            )
            .await?;
        let fine = answer["report"].is_null()
            || (answer["report"]["complete"] == true && list(&answer["report"]["left"]).is_empty());
        if api.printed(&answer)? {
            return Ok(fine);
        }
        match answer["action"].as_str().unwrap_or_default() {
            "grant" | "revoke" => say(&format!(
                "{}: {:+} credits, {} now",
                self.user,
                answer["entry"]["delta"].as_i64().unwrap_or(0),
                answer["balance"]
            ))?,
            _ => {
                if !answer["customer"].is_null() {
                    let linked = if answer["result"] == "linked" { "is linked" } else { "was linked before" };
                    say(&format!(
                        "{} {linked} to {}; {} parked events were sent again",
                        text(&answer["customer"]),
                        self.user,
                        list(&answer["freed"]).len()
                    ))?;
                }
                if !answer["report"].is_null() {
                    say(&format!(
                        "{} things were repaired, {} are left to a person",
                        answer["report"]["changed"],
                        list(&answer["report"]["left"]).len()
                    ))?;
                }
            }
        }
        Ok(fine)
    }
}
