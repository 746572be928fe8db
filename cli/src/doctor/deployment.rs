//! The deployment: the webhook, the way of a probe event to the log, the clock, the queues, reconciliation.

use std::time::{Duration, Instant};

use tallyhook_core::signature::Secret;
use tallyhook_core::stripe_account::{Findings, MAX_CLOCK_SECONDS, TOLERANCE_SECONDS};

use super::seconds_ahead;
use crate::api::Api;
use crate::output::{list, text};
use crate::webhook::{Webhook, probe_event};

/// The pause between two looks into the event log.
const POLL: Duration = Duration::from_millis(100);

/// How often the health score is asked for, and the pause between.
const HEALTH_ATTEMPTS: u32 = 3;
const HEALTH_PAUSE: Duration = Duration::from_millis(500);

/// What is known about the deployment.
pub(super) struct Deployment<'a> {
    pub(super) webhook: &'a Webhook,
    /// `None` without an admin token.
    pub(super) api: Option<&'a Api>,
    /// Whether there is a Stripe key, so that the account was checked from here.
    pub(super) has_key: bool,
    /// The mode of the Stripe key.
    pub(super) livemode: Option<bool>,
    /// The signing secret.
    pub(super) secret: Option<String>,
    /// How long the probe event may take.
    pub(super) wait: Duration,
}

impl Deployment<'_> {
    pub(super) async fn check(&self, findings: &mut Findings) {
        if self.check_webhook(findings).await && self.check_bad_signature(findings).await {
            self.check_probe(findings).await;
        }
        if let Some(api) = self.api {
            check_health(api, self.has_key, findings).await;
        }
    }

    /// True when the webhook answers and is of the key's mode.
    async fn check_webhook(&self, findings: &mut Findings) -> bool {
        let url = &self.webhook.url;
        let answer = match self.webhook.health().await {
            Ok(answer) => answer,
            Err(error) => {
                let fix = "check the address (output WebhookUrl), its DNS name and its certificate";
                findings.error("webhook", format!("{url} does not answer from here: {error:#}"), fix);
                return false;
            }
        };
        if answer.status != 200 || answer.body["service"] != "stripe-webhook" {
            findings.error(
                "webhook",
                format!("{url} answers {}, but is not tallyhook's webhook", answer.status),
                "use the output WebhookUrl of the deployment, for --webhook and at Stripe",
            );
            return false;
        }
        if let Some(ahead) = seconds_ahead(answer.date.as_deref()).filter(|it| it.abs() > MAX_CLOCK_SECONDS) {
            let problem =
                format!("the clocks of the webhook and of this machine differ by {} s", ahead.abs());
            findings.warning("clock", problem, "synchronise the clock of this machine (NTP)");
        }
        let count = |mode: &str| answer.body["secrets"][mode].as_u64().unwrap_or_default();
        let mode = self.livemode.map(|livemode| if livemode { "live" } else { "test" });
        if let Some(mode) = mode.filter(|mode| count(mode) + count("any") == 0) {
            findings.error(
                "secret",
                format!(
                    "the webhook has no signing secret of {mode} mode, which the key in STRIPE_SECRET_KEY has"
                ),
                "use a key of the deployment's mode, or the other deployment",
            );
            return false;
        }
        true
    }

    /// True when a bad signature is refused.
    async fn check_bad_signature(&self, findings: &mut Findings) -> bool {
        let url = &self.webhook.url;
        let (_, event) = probe_event(self.livemode.unwrap_or_default());
        match self.webhook.post_badly_signed(&event).await {
            Ok(answer) if answer.status == 400 => true,
            Ok(answer) if answer.status < 300 => {
                let problem =
                    format!("{url} accepts an event with a wrong signature, so anybody can send one");
                findings.error("signature", problem, "do not give it to Stripe; use the output WebhookUrl");
                false
            }
            Ok(answer) => {
                let problem = format!("{url} answers {} to a wrong signature, not 400", answer.status);
                findings.error("signature", problem, "look at the log of the function stripe-webhook");
                false
            }
            Err(error) => {
                let fix = "look at the log of the function stripe-webhook";
                findings.error("signature", format!("{url} does not answer a POST: {error:#}"), fix);
                false
            }
        }
    }

    /// Sends a signed event and looks for it in the event log.
    async fn check_probe(&self, findings: &mut Findings) {
        let Some(Ok(secret)) = self.secret.as_deref().map(Secret::new) else { return };
        let (id, event) = probe_event(self.livemode.unwrap_or_default());
        let answer = match self.webhook.post(&event, &secret).await {
            Ok(answer) => answer,
            Err(error) => {
                findings.error(
                    "probe",
                    format!("{error:#}"),
                    "look at the log of the function stripe-webhook",
                );
                return;
            }
        };
        match answer.status {
            200 => {}
            400 if answer.body["error"] == "timestamp_out_of_tolerance" => {
                let problem = format!("the clock of the webhook differs by more than {TOLERANCE_SECONDS} s");
                findings.error("probe", problem, "synchronise the clock of this machine (NTP)");
                return;
            }
            400 => {
                findings.error(
                    "probe",
                    format!("the webhook refuses the signing secret known here ({})", text(&answer.body["error"])),
                    "store the secret of the endpoint at Stripe in the deployment: tallyhook setup --ssm ... --roll \
                     --apply makes a new one",
                );
                return;
            }
            status => {
                let problem = format!("the webhook answers {status} ({})", text(&answer.body["error"]));
                let fix = "it cannot write the queue: look at the log of the function stripe-webhook";
                findings.error("probe", problem, fix);
                return;
            }
        }
        let Some(api) = self.api else { return };
        match self.is_in_log(api, &id).await {
            Ok(true) => {}
            Ok(false) => findings.error(
                "probe",
                format!(
                    "the webhook took the probe event {id}, and after {} s the event log lacks it",
                    self.wait.as_secs()
                ),
                "look at the log of the function customer and at its queue; --wait gives it more time",
            ),
            // `check_health` reports that the admin API does not answer.
            Err(_) => {}
        }
    }

    async fn is_in_log(&self, api: &Api, id: &str) -> anyhow::Result<bool> {
        let started = Instant::now();
        loop {
            let answer = api.get("/admin/stripe/webhook-logs", &[("id", Some(id))]).await?;
            if !list(&answer["events"]).is_empty() {
                return Ok(true);
            }
            if started.elapsed() >= self.wait {
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The deductions of the health score. What the deployment found in the Stripe account is only reported if
/// the account was not checked from here.
async fn check_health(api: &Api, has_key: bool, findings: &mut Findings) {
    let mut health = api.get("/admin/stripe/subscription-health", &[]).await;
    // Do not report a cold start, or a table that throttles for a moment.
    for _ in 1..HEALTH_ATTEMPTS {
        if health.is_ok() {
            break;
        }
        tokio::time::sleep(HEALTH_PAUSE).await;
        health = api.get("/admin/stripe/subscription-health", &[]).await;
    }
    let health = match health {
        Ok(health) => health,
        Err(error) => {
            findings.error("admin", format!("{error:#}"), "check --url and ADMIN_API_TOKEN");
            return;
        }
    };
    for deduction in list(&health["deductions"]) {
        let code = text(&deduction["code"]);
        let (problem, fix) = (text(&deduction["reason"]), text(&deduction["advice"]));
        match code.as_str() {
            "not_reconciled" => findings.error("reconcile", problem, fix),
            "missing" => findings.error("reconcile", problem, fix),
            "orphaned" | "plans_without_invoice" => findings.warning("reconcile", problem, fix),
            "stripe_account" if has_key => {}
            // The function `health` did not run yet. If it stops, its alarm reports it.
            "stripe_not_checked" => {}
            "dead_letters" | "old_message" => findings.error("queues", problem, fix),
            "not_counted" | "ages_unknown" | "backlog" => findings.warning("queues", problem, fix),
            "failed" => findings.error("events", problem, fix),
            _ => findings.warning("events", problem, fix),
        }
    }
}
