//! `fix-user`: one repair of one user's account.

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{AuditArgs, DeploymentArgs, encode};
use crate::output::{list, print_line, text};

/// Repair a user's account: apply what Stripe says, link a customer or subscription, grant or revoke credits
#[derive(Args)]
#[command(group = clap::ArgGroup::new("action").required(true))]
pub struct FixUser {
    /// The app's id of the user
    user: String,
    /// Apply what Stripe says, as reconciliation does
    #[arg(long, group = "action")]
    apply_stripe: bool,
    /// Link a customer to the user. Events that are parked for the customer are processed at once
    #[arg(long, group = "action", value_name = "cus_…")]
    link_customer: Option<String>,
    /// Ask Stripe for the customer of a subscription, link that customer and apply what Stripe says
    #[arg(long, group = "action", value_name = "sub_…")]
    link_subscription: Option<String>,
    /// Grant credits
    #[arg(long, group = "action", value_name = "CREDITS")]
    grant: Option<u64>,
    /// Revoke credits. The balance does not go below zero
    #[arg(long, group = "action", value_name = "CREDITS")]
    revoke: Option<u64>,
    /// Create the account if the user has none. Check the id first
    #[arg(long)]
    create: bool,
    /// Repeat the command with the same key, and the credits are granted once [default: a new key]
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl FixUser {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let key = self.idempotency_key.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
        let path = format!("/admin/stripe/fix-user/{}", encode(&self.user));
        let answer = api.post(&path, &self.audit.add_to(self.body()), Some(&key)).await?;
        let report = &answer["report"];
        let in_order = report.is_null() || (report["complete"] == true && list(&report["left"]).is_empty());
        if api.print_json(&answer)? {
            return Ok(in_order);
        }
        if matches!(answer["action"].as_str(), Some("grant" | "revoke")) {
            print_line(format_args!(
                "{}: {:+} credits, the balance is {}",
                self.user,
                answer["entry"]["delta"].as_i64().unwrap_or(0),
                answer["balance"]
            ))?;
            return Ok(in_order);
        }
        if !answer["customer"].is_null() {
            let linked = if answer["result"] == "linked" { "is linked" } else { "was already linked" };
            print_line(format_args!(
                "{} {linked} to {}; {} parked events were sent again",
                text(&answer["customer"]),
                self.user,
                list(&answer["freed"]).len()
            ))?;
        }
        if !report.is_null() {
            print_line(format_args!(
                "{} differences were repaired, {} need a person",
                report["changed"],
                list(&report["left"]).len()
            ))?;
        }
        Ok(in_order)
    }

    fn body(&self) -> Value {
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
        body
    }
}
