//! `fix-user`: one repair of one user's account.

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{AuditArgs, DeploymentArgs, encode};
use crate::output::{list, print_line, text};

/// Repair a user's account: apply what Stripe says, link or move a customer or subscription, grant or revoke
/// credits, give a plan
///
/// Each action needs --reason. A move only prints what it would move until --apply. Exit code 1 when something
/// is left to do.
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
    /// Give a plan without a subscription, with --credits, --from and --until
    #[arg(long, group = "action", value_name = "PLAN")]
    complimentary: Option<String>,
    /// Move a customer or a subscription of the user, with what it granted, to the user of --to
    #[arg(long, group = "action", value_name = "cus_… | sub_…", requires = "to")]
    r#move: Option<String>,
    /// Assign the checkout session of a guest to the user. Its parked events are processed at once
    #[arg(long, group = "action", value_name = "cs_…")]
    assign_session: Option<String>,
    /// Credits that the complimentary plan grants [default: 0]
    #[arg(long, value_name = "CREDITS", requires = "complimentary")]
    credits: Option<u64>,
    /// When the complimentary plan begins: 2026-12-31T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", requires = "complimentary")]
    from: Option<String>,
    /// When the complimentary plan or the granted credits end [default: never]
    #[arg(long, value_name = "TIME", conflicts_with_all = [
        "apply_stripe", "link_customer", "link_subscription", "revoke", "move", "assign_session",
    ])]
    until: Option<String>,
    /// The user to move to
    #[arg(long, value_name = "USER", requires = "move")]
    to: Option<String>,
    /// Make the move
    #[arg(long, requires = "move")]
    apply: bool,
    /// Create the account if the user, or the user of --to, has none. Check the id first
    #[arg(long, conflicts_with_all = ["apply_stripe", "grant", "revoke", "complimentary"])]
    create: bool,
    /// Repeat the command with the same key, and the credits are granted once [default: a new key]
    #[arg(long, value_name = "KEY", conflicts_with_all = [
        "apply_stripe", "link_customer", "link_subscription", "move", "assign_session",
    ])]
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
        if self.grant.is_some() || self.revoke.is_some() || self.complimentary.is_some() {
            let plan = self.complimentary.as_ref().map_or_else(String::new, |plan| format!("plan {plan}, "));
            print_line(format_args!(
                "{}: {plan}{:+} credits, the balance is {}",
                self.user,
                answer["entry"]["delta"].as_i64().unwrap_or(0),
                answer["balance"]
            ))?;
            return Ok(in_order);
        }
        if self.r#move.is_some() {
            let moved = [&answer["customers"], &answer["subscriptions"]].map(list).concat();
            let objects = moved.iter().map(text).collect::<Vec<_>>().join(", ");
            print_line(format_args!(
                "{} {objects} with {} credits from {} to {}",
                if self.apply { "moved" } else { "would move" },
                text(&answer["credits"]),
                self.user,
                text(&answer["to"])
            ))?;
            if !self.apply {
                print_line("Nothing was changed. Repeat the command with --apply to do this.")?;
            }
            return Ok(self.apply);
        }
        if self.assign_session.is_some() {
            print_line(format_args!(
                "{} is assigned to {}; {} parked events were sent again",
                text(&answer["session"]),
                self.user,
                list(&answer["freed"]).len()
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
        } else if let Some(plan) = &self.complimentary {
            json!({"action": "complimentary", "plan": plan, "credits": self.credits.unwrap_or(0)})
        } else if let Some(object) = &self.r#move {
            let kind = if object.starts_with("sub_") { "subscription" } else { "customer" };
            json!({"action": "move", kind: object, "to": self.to, "dry_run": !self.apply})
        } else if let Some(session) = &self.assign_session {
            json!({"action": "assign_session", "session": session})
        } else {
            json!({"action": "apply_stripe"})
        };
        for (name, time) in [("from", &self.from), ("until", &self.until)] {
            if let Some(time) = time {
                body[name] = json!(time);
            }
        }
        if self.create {
            body["create"] = json!(true);
        }
        body
    }
}
