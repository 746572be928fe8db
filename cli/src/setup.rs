//! `setup`: the webhook endpoint at Stripe, and its signing secret.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use http::Uri;
use tallyhook_core::event::API_VERSION;
use tallyhook_core::signature::Secret;
use tallyhook_core::stripe_account::endpoint::{
    self, Endpoint, PATH, PREFIX_KEY, REPLACED_KEY, routed_types,
};

use crate::client::is_local;
use crate::output::{print_line, text};
use crate::send::webhook_url;
use crate::ssm::ParameterStore;
use crate::stripe::{Parameters, Stripe, parameter};
use crate::webhook::{Webhook, probe_event};

/// Create or update the webhook endpoint at Stripe, and store its signing secret
///
/// Reads the key from STRIPE_SECRET_KEY; it needs write access to webhook endpoints. Without --apply, it only
/// prints what it would do. It may be repeated: a complete endpoint is left as it is. Exit code 1 when
/// something is left to do.
///
/// Stripe shows a signing secret only when it creates an endpoint. --roll creates a second endpoint, stores
/// both secrets, waits until the deployment accepts the new one, and disables the first endpoint.
#[derive(Args)]
pub struct Setup {
    /// The deployment (output WebhookUrl, or ApiUrl). A URL without a path means /webhooks/stripe there
    #[arg(long, env = "TALLYHOOK_URL")]
    url: String,
    /// The prefix of the deployment, which the endpoint's metadata names
    #[arg(long, default_value = "tallyhook", value_parser = NonEmptyStringValueParser::new())]
    prefix: String,
    /// Store the signing secret in this parameter of SSM. Needs AWS_REGION and AWS credentials in the
    /// environment. Without it, the secret is printed once
    #[arg(long, value_name = "/PATH")]
    ssm: Option<String>,
    /// Replace the endpoint by a new one with a new secret
    #[arg(long)]
    roll: bool,
    /// Make the changes
    #[arg(long)]
    apply: bool,
}

/// How often the webhook is asked whether it accepts a new secret, and the time between. It reads its
/// parameter again at the first signature that does not match, at most every 30 s. Five refused signatures
/// would raise an alert.
const ACCEPT_ATTEMPTS: u32 = 4;
const ACCEPT_PAUSE: Duration = Duration::from_secs(20);

/// What is left to do, in this order.
#[derive(Debug, Default)]
struct SetupPlan {
    create: bool,
    update: Option<Update>,
    disable: Vec<Endpoint>,
}

/// Fields of an existing endpoint that differ.
#[derive(Debug)]
struct Update {
    id: String,
    reasons: Vec<String>,
    fields: Parameters,
}

/// The parameter of SSM with the signing secrets.
struct SecretParameter {
    store: ParameterStore,
    name: String,
    /// The signing secrets that it has, the newest first.
    secrets: Vec<String>,
}

impl Setup {
    pub async fn run(self) -> anyhow::Result<bool> {
        let stripe = Stripe::from_env()?.context(
            "set STRIPE_SECRET_KEY to a key with write access to webhook endpoints; there is no flag for it, \
             because other users of this machine can read command lines",
        )?;
        let url = webhook_url(&self.url)?;
        let uri: Uri = url.parse()?;
        ensure!(
            uri.scheme_str() == Some("https") || is_local(&uri),
            "{url}: Stripe posts to https:// addresses only"
        );
        let parameter = match &self.ssm {
            Some(name) => Some(SecretParameter::read(name).await?),
            None => None,
        };
        let (objects, _) = stripe.list(PATH, &[]).await?;
        let ours = endpoint::of_deployment(&objects, &self.prefix, |endpoint| endpoint.posts_to(&url));
        let plan = SetupPlan::new(&ours, &url, &self.prefix, self.roll);
        print_line(format_args!("Stripe: {}. Webhook endpoint: {url}", stripe.mode()))?;
        let mut in_order = true;
        if !plan.create {
            for endpoint in
                ours.iter().filter(|it| it.api_version.as_deref() != Some(API_VERSION)).rev().take(1)
            {
                print_line(format_args!(
                    "note     {} sends events of API version {}, which Stripe cannot change; --roll replaces it \
                     by one with {API_VERSION}",
                    endpoint.id,
                    endpoint.api_version.as_deref().unwrap_or("of the account's default")
                ))?;
            }
            if let Some(parameter) = parameter.as_ref().filter(|parameter| parameter.secrets.is_empty()) {
                in_order = false;
                print_line(format_args!(
                    "missing  {} has no signing secret, and Stripe shows a secret only once; --roll replaces \
                     the endpoint by one with a new secret",
                    parameter.name
                ))?;
            }
        }
        if plan.is_empty() {
            if in_order {
                print_line("The endpoint is complete; nothing to do.")?;
            }
            return Ok(in_order);
        }
        if !self.apply {
            plan.print(&url, &self.prefix, self.ssm.as_deref())?;
            print_line("Nothing was changed. Repeat the command with --apply to do this.")?;
            return Ok(false);
        }
        Ok(self.carry_out(&stripe, plan, &url, parameter).await? && in_order)
    }

    /// Makes the changes. True when nothing is left to do.
    async fn carry_out(
        &self,
        stripe: &Stripe,
        plan: SetupPlan,
        url: &str,
        mut parameter: Option<SecretParameter>,
    ) -> anyhow::Result<bool> {
        if let Some(update) = &plan.update {
            stripe.post(&format!("{PATH}/{}", update.id), &update.fields).await?;
            print_line(format_args!("updated  {}: {}", update.id, update.reasons.join(", ")))?;
        }
        if plan.create {
            let (id, secret) = create(stripe, url, &self.prefix).await?;
            print_line(format_args!("created  {id} with {} event types", routed_types().count()))?;
            match &mut parameter {
                Some(parameter) => {
                    // An endpoint without its secret is of no use.
                    if let Err(error) = parameter.add(secret).await {
                        stripe.delete(&format!("{PATH}/{id}")).await?;
                        return Err(error.context(format!("{id} is deleted again")));
                    }
                    print_line(format_args!("stored   its signing secret in {}", parameter.name))?;
                }
                None => {
                    print_line("Stripe shows its signing secret only now:")?;
                    print_line(format_args!("STRIPE_WEBHOOK_SECRET={secret}"))?;
                    if !plan.disable.is_empty() {
                        print_line(
                            "Set both secrets in the deployment, the new one first, separated by a comma. Then \
                             run `tallyhook setup --apply` with this variable: it disables the old endpoint.",
                        )?;
                        return Ok(false);
                    }
                }
            }
        }
        if plan.disable.is_empty() {
            return Ok(true);
        }
        let secret = match &parameter {
            Some(parameter) => parameter.secrets.first().cloned(),
            None => {
                std::env::var("STRIPE_WEBHOOK_SECRET").ok().and_then(|list| secrets(&list).into_iter().next())
            }
        };
        let secret = secret.context(
            "set STRIPE_WEBHOOK_SECRET to the secret of the newest endpoint: the older one is disabled when the \
             deployment accepts it",
        )?;
        wait_until_accepted(url, &secret, stripe.livemode()).await?;
        for endpoint in &plan.disable {
            let fields = [
                parameter_disabled(),
                parameter_named(PREFIX_KEY, ""),
                parameter_named(REPLACED_KEY, &self.prefix),
            ];
            stripe.post(&format!("{PATH}/{}", endpoint.id), &fields).await?;
            print_line(format_args!("disabled {}: the deployment accepts the new secret", endpoint.id))?;
        }
        if let Some(parameter) = &parameter {
            parameter.store.put(&parameter.name, &secret).await?;
            print_line(format_args!("stored   the new secret alone in {}", parameter.name))?;
        }
        Ok(true)
    }
}

impl SetupPlan {
    fn new(ours: &[Endpoint], url: &str, prefix: &str, roll: bool) -> Self {
        let enabled: Vec<&Endpoint> = ours.iter().filter(|endpoint| endpoint.is_enabled).collect();
        // A second enabled endpoint means that the secret is being rolled: the plan is to complete that.
        if ours.is_empty() || (roll && enabled.len() < 2) {
            return Self { create: true, update: None, disable: enabled.into_iter().cloned().collect() };
        }
        let Some(current) = enabled.last().copied().or_else(|| ours.last()) else { return Self::default() };
        let is_older_of_ours =
            |endpoint: &&&Endpoint| endpoint.id != current.id && endpoint.prefix.as_deref() == Some(prefix);
        Self {
            create: false,
            update: Update::of(current, url, prefix),
            disable: enabled.iter().filter(is_older_of_ours).map(|endpoint| (*endpoint).clone()).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        !self.create && self.update.is_none() && self.disable.is_empty()
    }

    fn print(&self, url: &str, prefix: &str, ssm: Option<&str>) -> anyhow::Result<()> {
        if let Some(update) = &self.update {
            print_line(format_args!("update   {}: {}", update.id, update.reasons.join(", ")))?;
        }
        if self.create {
            print_line(format_args!(
                "create   an endpoint at {url} with {} event types, API version {API_VERSION}, metadata \
                 {PREFIX_KEY}={prefix}",
                routed_types().count()
            ))?;
            match ssm {
                Some(name) => print_line(format_args!("store    its signing secret in {name}"))?,
                None => print_line("print    its signing secret")?,
            }
        }
        for endpoint in &self.disable {
            print_line(format_args!(
                "disable  {}, when the deployment accepts the secret of the newer endpoint",
                endpoint.id
            ))?;
        }
        Ok(())
    }
}

impl Update {
    fn of(endpoint: &Endpoint, url: &str, prefix: &str) -> Option<Self> {
        let (mut reasons, mut fields) = (Vec::new(), Parameters::new());
        if !endpoint.posts_to(url) {
            reasons.push(format!("posts to {}", endpoint.url));
            fields.push(parameter("url", url));
        }
        let (missing, superfluous) = (endpoint.missing_types(), endpoint.superfluous_types());
        if !missing.is_empty() || !superfluous.is_empty() {
            for (names, word) in [(missing, "lacks"), (superfluous, "has superfluous")] {
                if !names.is_empty() {
                    reasons.push(format!("{word} {}", names.join(", ")));
                }
            }
            fields.extend(types());
        }
        if !endpoint.is_enabled {
            reasons.push("is disabled".to_owned());
            fields.push(parameter("disabled", "false"));
        }
        if endpoint.prefix.as_deref() != Some(prefix) {
            reasons.push(format!("has no metadata {PREFIX_KEY}={prefix}"));
            fields.push(parameter_named(PREFIX_KEY, prefix));
        }
        (!fields.is_empty()).then(|| Self { id: endpoint.id.clone(), reasons, fields })
    }
}

impl SecretParameter {
    async fn read(name: &str) -> anyhow::Result<Self> {
        ensure!(
            name.starts_with('/'),
            "--ssm needs the path of a parameter, such as /tallyhook/stripe-webhook-secret"
        );
        let store = ParameterStore::from_env()?;
        let value = store.get(name).await?.unwrap_or_default();
        Ok(Self { store, name: name.to_owned(), secrets: secrets(&value) })
    }

    /// Stores a new secret before the one that was the newest.
    async fn add(&mut self, secret: String) -> anyhow::Result<()> {
        self.secrets.insert(0, secret);
        self.secrets.truncate(2);
        self.store.put(&self.name, &self.secrets.join(",")).await
    }
}

/// The signing secrets in the value of a variable or parameter. A placeholder is not one: anybody could sign
/// with a text from the documentation.
pub(crate) fn secrets(value: &str) -> Vec<String> {
    let is_secret = |text: &&str| text.strip_prefix("whsec_").is_some_and(|rest| rest.len() >= 24);
    value.split(',').map(str::trim).filter(is_secret).map(str::to_owned).collect()
}

async fn create(stripe: &Stripe, url: &str, prefix: &str) -> anyhow::Result<(String, String)> {
    let mut fields = vec![
        parameter("url", url),
        parameter("api_version", API_VERSION),
        parameter("description", "tallyhook"),
        parameter_named(PREFIX_KEY, prefix),
    ];
    fields.extend(types());
    let endpoint = stripe.post(PATH, &fields).await?;
    let secret = endpoint["secret"].as_str().context("Stripe's answer has no signing secret")?;
    Ok((text(&endpoint["id"]), secret.to_owned()))
}

fn types() -> impl Iterator<Item = (String, String)> {
    routed_types().enumerate().map(|(at, kind)| parameter(format!("enabled_events[{at}]"), kind))
}

fn parameter_disabled() -> (String, String) {
    parameter("disabled", "true")
}

/// Sets a metadata key. An empty value removes it.
fn parameter_named(key: &str, value: &str) -> (String, String) {
    parameter(format!("metadata[{key}]"), value)
}

/// Posts probe events until the deployment accepts this secret.
async fn wait_until_accepted(url: &str, secret: &str, livemode: Option<bool>) -> anyhow::Result<()> {
    let webhook = Webhook::new(url)?;
    let secret = Secret::new(secret)?;
    let mut answered = String::new();
    for attempt in 1..=ACCEPT_ATTEMPTS {
        let (_, event) = probe_event(livemode.unwrap_or_default());
        let answer = webhook.post(&event, &secret).await?;
        if answer.status == 200 {
            return Ok(());
        }
        answered = format!("{} {}", answer.status, text(&answer.body["error"]));
        if answer.status != 400 {
            break;
        }
        if attempt < ACCEPT_ATTEMPTS {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
    bail!(
        "{url} does not accept the new secret ({answered}), so both endpoints stay enabled. Set both secrets in \
         the deployment and repeat the command. If the new secret is lost, delete the newest endpoint at Stripe \
         and use --roll again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_not_a_secret() {
        assert!(secrets("whsec_placeholder").is_empty());
        assert!(secrets("whsec_later, ,").is_empty());
        let real = "whsec_0123456789abcdef0123456789abcdef";
        assert_eq!(secrets(&format!("{real}, whsec_placeholder")), [real]);
    }
}
