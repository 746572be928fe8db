//! `import --write-metadata`: writes the user id of each row into the metadata of its customer and of the
//! customer's live subscriptions at Stripe. Every later event of a subscription then names its user.
//!
//! What Stripe has already is not written again, so a run that is repeated writes only what is missing.
//! Stripe sends a `customer.subscription.updated` for each subscription that is written; it changes no
//! account.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{FileFacts, Import, Row, counts};
use crate::api::encode;
use crate::output::{clear_progress, print_line, show_progress, text};
use crate::stripe::{Failure, Stripe, parameter};

/// What was found for a row, in the order in which a row is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The row names no customer.
    WithoutCustomer,
    /// Stripe had the user id everywhere.
    Unchanged,
    /// The user id was missing somewhere, and is written with `--apply`.
    Written,
    /// The customer's metadata names another user. Nothing is written.
    BoundElsewhere,
    /// Stripe does not have the customer.
    NoCustomer,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::WithoutCustomer => "without a customer",
            Self::Unchanged => "unchanged",
            Self::Written => "written",
            Self::BoundElsewhere => "bound elsewhere",
            Self::NoCustomer => "no customer",
        }
    }
}

/// Stripe's API with at most a number of requests in a second.
struct Slowly {
    stripe: Stripe,
    interval: Duration,
    next: Instant,
}

impl Slowly {
    async fn turn(&mut self) -> &Stripe {
        sleep_until(self.next).await;
        self.next = Instant::now() + self.interval;
        &self.stripe
    }
}

impl Import {
    /// Writes the metadata of the file's customers.
    pub(super) async fn write_metadata(&self, facts: &FileFacts) -> anyhow::Result<bool> {
        let stripe =
            Stripe::from_env()?.context("set STRIPE_SECRET_KEY: --write-metadata writes to Stripe")?;
        let mode = stripe.mode();
        let interval = Duration::from_secs(1) / self.rate;
        let mut stripe = Slowly { stripe, interval, next: Instant::now() };
        let mut results: BTreeMap<String, u64> = BTreeMap::new();
        let skip = self.first_row.saturating_sub(1);
        ensure!(
            skip < facts.rows,
            "--first-row {}: the last row of the file is {}",
            self.first_row,
            facts.rows
        );
        let last = facts.rows.min(skip.saturating_add(self.cap));
        for row in self.rows(skip, last)? {
            let (number, row) = row?;
            let outcome = self.write_row(&mut stripe, &row, number).await.with_context(|| {
                format!("stopped at row {number}; the same command with --first-row {number} continues")
            })?;
            *results.entry(outcome.as_str().to_owned()).or_default() += 1;
            show_progress(&format!("{number} of {} rows; {}", facts.rows, counts(&results)));
        }
        clear_progress();
        let done = last - skip.min(last);
        let in_order =
            results.keys().all(|result| !matches!(result.as_str(), "bound elsewhere" | "no customer"));
        if self.deployment.json {
            let all = json!({"dry_run": !self.apply, "mode": mode, "rows": facts.rows, "done": done,
                "results": results});
            print_line(serde_json::to_string_pretty(&all)?)?;
            return Ok(in_order);
        }
        let would = if self.apply { "" } else { "a dry run: " };
        print_line(format_args!("{would}{done} rows in {mode}: {}", counts(&results)))?;
        if !self.apply {
            print_line(format_args!("nothing was written; --apply --reason \"…\" writes"))?;
        }
        if last < facts.rows {
            print_line(format_args!("stopped by --cap; --first-row {} continues", last + 1))?;
        }
        Ok(in_order)
    }

    async fn write_row(&self, stripe: &mut Slowly, row: &Row, number: u64) -> anyhow::Result<Outcome> {
        let Some(customer) = row.customer_id.as_deref().filter(|id| !id.is_empty()) else {
            return Ok(Outcome::WithoutCustomer);
        };
        let path = format!("/v1/customers/{}", encode(customer));
        let found = match stripe.turn().await.get(&path, &[]).await {
            Ok(found) if found["deleted"] == true => None,
            Ok(found) => Some(found),
            Err(Failure::Refused { status: 404, .. }) => None,
            Err(failure) => return Err(failure.into()),
        };
        let Some(found) = found else {
            self.print_row(number, row, "Stripe does not have the customer, or it was deleted")?;
            return Ok(Outcome::NoCustomer);
        };
        let owner = named_user(&found);
        if let Some(other) = owner.filter(|owner| *owner != row.user_id) {
            self.print_row(number, row, &format!("the customer's metadata names the user {other}"))?;
            return Ok(Outcome::BoundElsewhere);
        }
        let mut missing = Vec::new();
        if owner.is_none() {
            missing.push(path);
        }
        let of_customer = [parameter("customer", customer)];
        let (subscriptions, is_complete) =
            stripe.turn().await.list("/v1/subscriptions", &of_customer).await?;
        ensure!(is_complete, "{customer} has more than 1,000 subscriptions");
        for subscription in &subscriptions {
            // A subscription whose metadata names another user belongs to that user.
            if named_user(subscription).is_none() {
                let id = subscription["id"].as_str().context("a subscription without an id")?;
                missing.push(format!("/v1/subscriptions/{}", encode(id)));
            }
        }
        if self.apply {
            for path in &missing {
                stripe.turn().await.post(path, &[parameter("metadata[user_id]", &row.user_id)]).await?;
            }
        }
        Ok(if missing.is_empty() { Outcome::Unchanged } else { Outcome::Written })
    }

    fn print_row(&self, number: u64, row: &Row, why: &str) -> anyhow::Result<()> {
        if self.deployment.json {
            return Ok(());
        }
        clear_progress();
        let customer = row.customer_id.as_deref().unwrap_or_default();
        let line = json!(format!("row {number}: {} {customer}: {why}", row.user_id));
        Ok(print_line(text(&line))?)
    }
}

/// The user in an object's metadata, as events read it.
fn named_user(object: &Value) -> Option<&str> {
    let metadata = &object["metadata"];
    let named = |key: &str| metadata[key].as_str().filter(|user| !user.is_empty());
    named("user_id").or_else(|| named("client_id"))
}
