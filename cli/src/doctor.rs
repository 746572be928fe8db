//! `doctor`: why events do not arrive, or do not count.

mod account;
mod deployment;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde_json::json;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::stripe_account::{self, Findings, Level};

use crate::api::{Api, DeploymentArgs};
use crate::catalog::deployed;
use crate::client::is_local;
use crate::local_stack;
use crate::output::print_line;
use crate::setup::secrets;
use crate::ssm::ParameterStore;
use crate::stripe::Stripe;
use crate::webhook::Webhook;

/// Check Stripe, the webhook and the deployment, and print one line with its fix for each problem
///
/// It checks the Stripe key, the webhook endpoint, prices, subscriptions and portal at Stripe; that the
/// webhook answers, refuses a bad signature and takes a signed probe event; that the probe comes out in the
/// event log; the clocks, the queues and the last reconciliation. The probe changes no account.
///
/// Reads STRIPE_SECRET_KEY, ADMIN_API_TOKEN and STRIPE_WEBHOOK_SECRET. Exit code 1 when there is an error.
#[derive(Args)]
pub struct Doctor {
    /// Where Stripe posts (output WebhookUrl) [default: /webhooks/stripe of --url]
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// The prefix of the deployment, which the endpoint's metadata names
    #[arg(long, default_value = "tallyhook", value_parser = NonEmptyStringValueParser::new())]
    prefix: String,
    /// The catalog to compare with Stripe [default: the one that the deployment has, else catalog.toml of the
    /// current folder]
    #[arg(long, value_name = "FILE")]
    catalog: Option<PathBuf>,
    /// Read the signing secret of the probe event from this parameter of SSM instead of STRIPE_WEBHOOK_SECRET
    #[arg(long, value_name = "/PATH")]
    ssm: Option<String>,
    /// How long the probe event may take to the event log
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

impl Doctor {
    /// True when there is no error.
    pub async fn run(self) -> anyhow::Result<bool> {
        let webhook = Webhook::new(self.webhook.as_ref().unwrap_or(&self.deployment.url))?;
        let mut findings = Findings::default();
        let api = self.deployment.admin_api();
        let catalog = self.catalog(api.as_ref().ok(), &mut findings).await;
        let stripe = match Stripe::from_env() {
            Ok(Some(stripe)) => Some(stripe),
            Ok(None) => {
                let fix = if self.is_local() {
                    "for the fake Stripe of the local stack, set STRIPE_SECRET_KEY=sk_local and STRIPE_API_BASE \
                     to the address that `cargo run` prints"
                } else {
                    "set it to a restricted key (rk_...) that may read"
                };
                findings.error("key", "STRIPE_SECRET_KEY is not set, so nothing at Stripe was checked", fix);
                None
            }
            Err(error) => {
                findings.error("key", format!("{error:#}"), "correct the variable");
                None
            }
        };
        if let Some(stripe) = &stripe {
            let deployment = stripe_account::Deployment {
                url: &webhook.url,
                other_urls: &[],
                prefix: &self.prefix,
                livemode: stripe.livemode(),
            };
            account::check(stripe, &deployment, catalog.as_ref(), &mut findings).await;
        }
        let (has_key, livemode) = (stripe.is_some(), stripe.as_ref().and_then(Stripe::livemode));
        let secret = self.signing_secret(&mut findings).await;
        let api = match api {
            Ok(api) => Some(api),
            Err(error) => {
                let problem = "the event log, the queues and the last reconciliation were not checked";
                findings.note("admin", problem, format!("{error:#}"));
                None
            }
        };
        let wait = Duration::from_secs(self.wait);
        let deployment =
            deployment::Deployment { webhook: &webhook, api: api.as_ref(), has_key, livemode, secret, wait };
        deployment.check(&mut findings).await;
        self.print(&findings)?;
        Ok(findings.count(Level::Error) == 0)
    }

    fn is_local(&self) -> bool {
        self.deployment.url.parse().is_ok_and(|uri| is_local(&uri))
    }

    async fn catalog(&self, api: Option<&Api>, findings: &mut Findings) -> Option<Catalog> {
        // `check_health` reports a deployment that has none or does not answer.
        if self.catalog.is_none()
            && let Some(api) = api
            && let Ok(Some(deployed)) = deployed(api).await
            && let Some(catalog) = deployed["toml"].as_str().and_then(|toml| Catalog::parse(toml).ok())
        {
            return Some(catalog);
        }
        let file = self.catalog.clone().unwrap_or_else(|| PathBuf::from("catalog.toml"));
        if self.catalog.is_none() && !file.is_file() {
            let fix = "set ADMIN_API_TOKEN, or name a file with --catalog";
            findings.note(
                "catalog",
                "prices, subscriptions and portal were not compared with a catalog",
                fix,
            );
            return None;
        }
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()));
        let name = file.display().to_string();
        let catalog = text.and_then(|text| {
            Catalog::parse(&text).map_err(|error| anyhow::anyhow!("{}", error.of_file(&name)))
        });
        catalog
            .map_err(|error| {
                findings.error(
                    "catalog",
                    format!("{error:#}"),
                    "correct the file, or name another one with --catalog",
                );
            })
            .ok()
    }

    /// The secret that signs the probe event.
    async fn signing_secret(&self, findings: &mut Findings) -> Option<String> {
        let from_ssm = async |name: &str| -> anyhow::Result<Option<String>> {
            let value = ParameterStore::from_env()?.get(name).await?;
            let first = secrets(&value.unwrap_or_default()).into_iter().next();
            ensure!(first.is_some(), "{name} has no signing secret");
            Ok(first)
        };
        if let Some(name) = &self.ssm {
            return from_ssm(name).await.unwrap_or_else(|error| {
                let fix =
                    format!("tallyhook setup --url {} --ssm {name} --roll --apply", self.deployment.url);
                findings.error("secret", format!("{error:#}"), fix);
                None
            });
        }
        let from_env = std::env::var("STRIPE_WEBHOOK_SECRET").ok();
        let first = from_env.and_then(|list| Some(list.split(',').next()?.trim().to_owned()));
        let secret = first
            .filter(|secret| !secret.is_empty())
            .or_else(|| self.is_local().then(|| local_stack::WEBHOOK_SECRET.to_owned()));
        if secret.is_none() {
            let fix = "set STRIPE_WEBHOOK_SECRET, or name the parameter with --ssm";
            findings.note("probe", "no signed probe event was sent", fix);
        }
        secret
    }

    fn print(&self, findings: &Findings) -> anyhow::Result<()> {
        if self.deployment.json {
            let each = findings.0.iter().map(|finding| {
                json!({"level": finding.level.as_str(), "check": finding.check, "problem": finding.problem,
                    "fix": finding.fix})
            });
            let report = json!({"errors": findings.count(Level::Error),
                "warnings": findings.count(Level::Warning), "findings": each.collect::<Vec<_>>()});
            return Ok(print_line(serde_json::to_string_pretty(&report)?)?);
        }
        for finding in &findings.0 {
            print_line(finding)?;
        }
        let counts = [Level::Error, Level::Warning, Level::Note].map(|level| findings.count(level));
        Ok(match counts {
            [0, 0, 0] => print_line("Everything is in order."),
            [errors, warnings, notes] => {
                print_line(format_args!("errors: {errors}, warnings: {warnings}, notes: {notes}"))
            }
        }?)
    }
}

/// The seconds by which our clock is ahead of the time in a header `Date`.
fn seconds_ahead(date: Option<&str>) -> Option<i64> {
    Some(crate::send::now().seconds_since(account::time(date.map(str::to_owned))?))
}
