//! `health`: the health score.

use clap::Args;

use crate::api::DeploymentArgs;
use crate::output::{list, print_line, text};

/// Show the health score, why points were deducted and what to do
///
/// Exit code 1 when the score is below 80.
#[derive(Args)]
pub struct Health {
    #[command(flatten)]
    deployment: DeploymentArgs,
}

/// Below this score a person has to look.
const MIN_SCORE: u64 = 80;

impl Health {
    pub async fn run(self) -> anyhow::Result<bool> {
        let api = self.deployment.admin_api()?;
        let answer = api.get("/admin/stripe/subscription-health", &[]).await?;
        let in_order = answer["score"].as_u64().is_some_and(|score| score >= MIN_SCORE);
        if api.print_json(&answer)? {
            return Ok(in_order);
        }
        let counts = &answer["counts"];
        let success_rate = answer["success_rate"]
            .as_f64()
            .map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
        print_line(format_args!("score {} of 100", answer["score"]))?;
        print_line(format_args!(
            "last day: {} processed, {} ignored, success rate {success_rate}; open: {} parked, {} failed; \
             {} dead letters",
            counts["processed"],
            counts["ignored"],
            counts["parked"],
            counts["failed"],
            counts["dead_letters"]
        ))?;
        for deduction in list(&answer["deductions"]) {
            print_line(format_args!(
                "\n-{:<3} {}\n     {}",
                deduction["points"],
                text(&deduction["reason"]),
                text(&deduction["advice"])
            ))?;
        }
        Ok(in_order)
    }
}
