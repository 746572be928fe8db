//! What is wrong in the Stripe account of a deployment: key, clock, endpoint, prices, subscriptions, portal.
//!
//! `doctor` and the function `health` read the account and give these rules what they read. Each problem is a
//! [`Finding`] with its fix.

pub mod endpoint;
mod finding;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use self::endpoint::{Endpoint, PREFIX_KEY};
pub use self::finding::{Finding, Findings, Level};
use crate::catalog::{Catalog, IgnoreRule, PlanChange, SoldAs};
use crate::event::API_VERSION;
use crate::timestamp::Timestamp;

/// What a deployment reads at Stripe, with the path of each list.
pub const READ: [(&str, &str); 10] = [
    ("subscriptions", "/v1/subscriptions"),
    ("invoices", "/v1/invoices"),
    ("checkout sessions", "/v1/checkout/sessions"),
    ("customers", "/v1/customers"),
    ("prices", "/v1/prices"),
    ("events", "/v1/events"),
    ("invoice payments", "/v1/invoice_payments"),
    ("charges", "/v1/charges"),
    ("refunds", "/v1/refunds"),
    ("disputes", "/v1/disputes"),
];

/// The path of portal configurations in Stripe's API.
pub const PORTAL_PATH: &str = "/v1/billing_portal/configurations";

/// The status of subscriptions that give access or may give it again.
pub const LIVE: [&str; 3] = ["active", "trialing", "past_due"];

/// A larger difference of two clocks is a finding.
pub const MAX_CLOCK_SECONDS: i64 = 30;
/// The webhook refuses signatures that differ more.
pub const TOLERANCE_SECONDS: i64 = 300;

/// The most types that a line names.
const MAX_NAMED: usize = 6;

/// Why a list was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFailure {
    /// The HTTP status of Stripe's refusal; `None` without an answer.
    pub status: Option<u16>,
    /// The cause in words, without the key.
    pub message: String,
}

/// The objects of a list, newest first, and whether these are all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct List {
    /// The objects that were read.
    pub objects: Vec<Value>,
    /// Whether the list has no more.
    pub is_complete: bool,
    /// Whether also the prices of [`unlisted_prices`] were not all read.
    pub is_partial: bool,
}

/// The deployment that the account belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Deployment<'a> {
    /// Where Stripe posts.
    pub url: &'a str,
    /// Other addresses of the same webhook.
    pub other_urls: &'a [String],
    /// The prefix in the metadata of its endpoint.
    pub prefix: &'a str,
    /// The mode of the key; `None` when its text does not say.
    pub livemode: Option<bool>,
}

/// A mode in words.
pub fn mode(livemode: Option<bool>) -> &'static str {
    match livemode {
        Some(true) => "live mode",
        Some(false) => "test mode",
        None => "a mode that the key does not name",
    }
}

impl ReadFailure {
    /// Whether Stripe did not answer, or asks for patience. Then the reading says nothing about the account.
    pub fn is_outage(&self) -> bool {
        self.status.is_none_or(|status| matches!(status, 409 | 429 | 500..))
    }
}

/// Whether the catalog sells anything. Without a stored catalog, there is nothing to compare.
pub fn sells(catalog: &Catalog) -> bool {
    !sold(catalog).is_empty()
}

/// Checks the rights of the key by one answer for each list of [`READ`], and the clock by the time at which
/// Stripe answered. False when Stripe does not accept the key or does not answer.
pub fn check_key(
    answers: &[Result<Option<Timestamp>, ReadFailure>],
    now: Timestamp,
    findings: &mut Findings,
) -> bool {
    if let Some(stripe_now) = answers.iter().find_map(|answer| answer.as_ref().ok()) {
        check_clock(stripe_now.map(|stripe_now| now.seconds_since(stripe_now)), findings);
    }
    let refused = |status: u16| {
        let names = READ.iter().zip(answers).filter_map(move |((name, _), answer)| {
            answer.as_ref().is_err_and(|failure| failure.status == Some(status)).then_some(*name)
        });
        names.collect::<Vec<_>>()
    };
    if !refused(401).is_empty() {
        let fix = "copy a key of this account and mode again (Developers, API keys)";
        findings.error("key", "Stripe does not accept the key in STRIPE_SECRET_KEY", fix);
        return false;
    }
    if refused(404).len() == READ.len() {
        let problem = "STRIPE_API_BASE has none of Stripe's routes";
        findings.error("stripe", problem, "unset it, or set it to the address of a Stripe API");
        return false;
    }
    let forbidden = refused(403);
    if !forbidden.is_empty() {
        findings.error(
            "key",
            format!("the key may not read {}", forbidden.join(", ")),
            "give the restricted key read access to them at Stripe (Developers, API keys)",
        );
    }
    let unanswered = answers.iter().find_map(|answer| match answer {
        Err(failure) if !matches!(failure.status, Some(403 | 404)) => Some(failure),
        Ok(_) | Err(_) => None,
    });
    if let Some(failure) = unanswered {
        findings.error(
            "stripe",
            failure.message.clone(),
            "check the network and STRIPE_API_BASE, then run this again",
        );
        return false;
    }
    true
}

fn check_clock(seconds_ahead: Option<i64>, findings: &mut Findings) {
    let Some(ahead) = seconds_ahead.filter(|ahead| ahead.abs() > MAX_CLOCK_SECONDS) else { return };
    let problem = format!(
        "the clock of this machine is {} s {} Stripe's",
        ahead.abs(),
        if ahead > 0 { "ahead of" } else { "behind" }
    );
    let fix = "synchronise the clock (NTP)";
    let level = if ahead.abs() > TOLERANCE_SECONDS { Level::Error } else { Level::Warning };
    findings.add(level, "clock", problem, fix);
    findings.about("clock");
}

fn not_checked(check: &'static str, what: &str, failure: &ReadFailure, findings: &mut Findings) {
    match failure.status {
        Some(403) => findings.warning(
            check,
            format!("the key may not read {what}, so they were not checked"),
            "give the key read access to them, or run this once with another key",
        ),
        Some(404) => findings.note(
            check,
            format!("this Stripe has no {what}, so they were not checked"),
            "run this against Stripe's own API",
        ),
        _ => findings.error(check, failure.message.clone(), "run this again"),
    }
}

/// Checks the endpoint of the deployment among all endpoints of the account.
pub fn check_endpoint(
    endpoints: &Result<List, ReadFailure>,
    deployment: &Deployment<'_>,
    findings: &mut Findings,
) {
    let Deployment { url, other_urls, prefix, livemode } = *deployment;
    let posts_here = |endpoint: &Endpoint| {
        endpoint.posts_to(url) || other_urls.iter().any(|other| endpoint.posts_to(other))
    };
    let endpoints = match endpoints {
        Ok(list) => endpoint::of_deployment(&list.objects, prefix, posts_here),
        Err(failure) => return not_checked("endpoint", "webhook endpoints", failure, findings),
    };
    let mode = mode(livemode);
    let setup = format!("tallyhook setup --url {url} --prefix {prefix} --apply");
    let enabled: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.is_enabled).collect();
    let Some(current) = enabled.last().copied().or_else(|| endpoints.last()) else {
        let problem = format!("no webhook endpoint at Stripe in {mode} posts to {url}, so no event arrives");
        findings.error("endpoint", problem, setup);
        return;
    };
    let id = &current.id;
    if !current.is_enabled {
        findings.error("endpoint", format!("{id} is disabled, so Stripe sends no event"), &setup);
    }
    if !posts_here(current) {
        findings.error("endpoint", format!("{id} posts to {}, not to {url}", current.url), &setup);
    }
    let missing = current.missing_types();
    if !missing.is_empty() {
        findings.error("endpoint", format!("{id} does not send {}", named(&missing)), &setup);
    }
    let superfluous = current.superfluous_types();
    if !superfluous.is_empty() {
        let problem = format!("{id} sends {}, which tallyhook ignores", named(&superfluous));
        findings.warning("endpoint", problem, &setup);
    }
    if current.api_version.as_deref() != Some(API_VERSION) {
        let version = current.api_version.as_deref().unwrap_or("of the account's default");
        let problem = format!("{id} sends events of API version {version}, not {API_VERSION}");
        let fix = format!("tallyhook setup --url {url} --prefix {prefix} --roll --apply");
        findings.warning("endpoint", problem, fix);
    }
    if current.prefix.is_none() {
        let problem =
            format!("{id} has no metadata {PREFIX_KEY}={prefix}, so a move of the URL would lose it");
        findings.warning("endpoint", problem, &setup);
    }
    if let [.., older, _] = enabled.as_slice() {
        let problem = format!("{} and {id} both send every event", older.id);
        let fix = format!("tallyhook setup --url {url} --prefix {prefix} --apply disables the older one");
        findings.warning("endpoint", problem, fix);
    }
}

/// A few names, and how many more there are.
fn named(names: &[&str]) -> String {
    let shown = names.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MAX_NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// Checks the active configurations of the customer portal.
pub fn check_portal(
    configurations: &Result<List, ReadFailure>,
    catalog: Option<&Catalog>,
    findings: &mut Findings,
) {
    let configurations = match configurations {
        Ok(list) => &list.objects,
        Err(failure) => return not_checked("portal", "portal configurations", failure, findings),
    };
    if configurations.is_empty() {
        findings.warning(
            "portal",
            "there is no configuration of the customer portal, so no customer can open it",
            "save the settings of the customer portal once at Stripe (Settings, Billing, Customer portal)",
        );
    }
    if catalog.is_none_or(|catalog| catalog.policy.plan_change != PlanChange::AtOnce) {
        return;
    }
    for configuration in configurations {
        let update = &configuration["features"]["subscription_update"];
        if update["enabled"] == true && update["proration_behavior"] != "always_invoice" {
            findings.error(
                "portal",
                format!(
                    "the portal configuration {} changes plans with {}: under plan_change = \"at_once\" a customer \
                     gets the credits of a larger plan before it is paid",
                    text(&configuration["id"]),
                    text(&update["proration_behavior"])
                ),
                "choose \"Invoice immediately\" for prorations in the portal's settings, or set \
                 plan_change = \"on_payment\" in the catalog",
            );
        }
    }
}

/// What the catalog sells, by name, with its prices at Stripe.
fn sold(catalog: &Catalog) -> Vec<(String, SoldAs)> {
    let plans = catalog.plans.iter().map(|plan| (format!("plan {}", plan.name), plan.sold_as.clone()));
    let packs = catalog.packs.iter().map(|pack| (format!("pack {}", pack.name), pack.sold_as.clone()));
    let products = catalog.products.iter().map(|one| (format!("product {}", one.name), one.sold_as.clone()));
    let orders = catalog.orders.iter().flat_map(|order| {
        order.plans.iter().map(|(name, plan)| {
            let sold_as = SoldAs { prices: plan.prices.clone(), ..SoldAs::default() };
            (format!("order {} {name}", order.mode), sold_as)
        })
    });
    plans.chain(packs).chain(products).chain(orders).collect()
}

/// The ids of the plans, packs, products and orders that have no price in a list. When the list is not
/// complete, read them one by one.
pub fn unlisted_prices(catalog: &Catalog, prices: &List) -> Vec<String> {
    let listed: BTreeSet<&str> = prices.objects.iter().filter_map(|price| price["id"].as_str()).collect();
    let is_unlisted = |sold_as: &SoldAs| !sold_as.prices.iter().any(|id| listed.contains(id.as_str()));
    let unlisted = sold(catalog).into_iter().map(|(_, sold_as)| sold_as).filter(is_unlisted);
    unlisted.flat_map(|sold_as| sold_as.prices).collect()
}

/// Checks the prices of the catalog. The catalog holds the prices of both modes, so of each product one price
/// must exist in the key's mode.
pub fn check_prices(
    prices: &Result<List, ReadFailure>,
    catalog: &Catalog,
    livemode: Option<bool>,
    findings: &mut Findings,
) {
    let List { objects, is_complete, is_partial } = match prices {
        Ok(prices) => prices,
        // `check_key` has said that the key may not read prices.
        Err(failure) if failure.status == Some(403) => return,
        Err(failure) => return not_checked("prices", "prices", failure, findings),
    };
    let by_id: BTreeMap<String, &Value> = objects.iter().map(|price| (text(&price["id"]), price)).collect();
    if *is_partial {
        let problem = "the account has too many prices, so those of the catalog were not all compared";
        return findings.note("prices", problem, "`tallyhook doctor` compares all");
    }
    let mode = mode(livemode);
    for (name, sold_as) in sold(catalog) {
        let SoldAs { prices, lookup_keys, stripe_products } = &sold_as;
        let found: Vec<&Value> = prices.iter().filter_map(|id| by_id.get(id).copied()).collect();
        let has_key = |key: &String| by_id.values().any(|price| price["lookup_key"] == key.as_str());
        let has_product = |id: &String| by_id.values().any(|price| price["product"] == id.as_str());
        let is_found = lookup_keys.iter().any(has_key) || stripe_products.iter().any(has_product);
        // The rest of the list may have them.
        let is_by_id = lookup_keys.is_empty() && stripe_products.is_empty();
        let is_unsure = !is_complete && !is_by_id;
        if found.is_empty() && !is_found && is_unsure {
            continue;
        }
        if found.is_empty() && !is_found && sold_as != SoldAs::default() {
            let all = prices.iter().chain(lookup_keys).chain(stripe_products);
            let ids = all.map(String::as_str).collect::<Vec<_>>();
            findings.error(
                "prices",
                format!("{name}: Stripe has none of its prices ({}) in {mode}", named(&ids)),
                "create the price at Stripe, or write the right id into the catalog",
            );
            continue;
        }
        // A price that a lookup key or a product finds is sold in place of those that are deactivated.
        let is_sold = by_id.values().filter(|price| price["active"] != false).any(|price| {
            lookup_keys.iter().any(|key| price["lookup_key"] == key.as_str())
                || stripe_products.iter().any(|id| price["product"] == id.as_str())
        });
        if !found.is_empty() && !is_sold && !is_unsure && found.iter().all(|price| price["active"] == false) {
            let ids: Vec<String> = found.iter().map(|price| text(&price["id"])).collect();
            findings.warning(
                "prices",
                format!("{name}: {} is deactivated at Stripe, so it cannot be bought", ids.join(", ")),
                "activate it, or add the price that replaces it to the catalog",
            );
        }
        for key in lookup_keys.iter().filter(|key| *is_complete && !has_key(key)) {
            findings.warning(
                "prices",
                format!("{name}: no price at Stripe has the lookup key {key}"),
                "give the key to a price at Stripe, or remove it from the catalog",
            );
        }
    }
}

/// Checks the live subscriptions, one list for each status of [`LIVE`].
pub fn check_subscriptions(lists: &[Result<List, ReadFailure>], catalog: &Catalog, findings: &mut Findings) {
    let mut unknown: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut is_complete, mut compared) = (true, 0);
    for list in lists {
        let subscriptions = match list {
            Ok(subscriptions) => subscriptions,
            Err(failure) if failure.status == Some(403) => return,
            Err(failure) => return not_checked("subscriptions", "subscriptions", failure, findings),
        };
        is_complete &= subscriptions.is_complete;
        compared += subscriptions.objects.len();
        for subscription in &subscriptions.objects {
            for item in subscription["items"]["data"].as_array().into_iter().flatten() {
                let price = &item["price"];
                if !is_known(catalog, price) && !is_ignored(&catalog.ignore, price, &subscription["metadata"])
                {
                    unknown.entry(text(&price["id"])).or_default().push(text(&subscription["id"]));
                }
            }
        }
    }
    for (price, subscriptions) in unknown {
        findings.error(
            "subscriptions",
            format!(
                "{} live {} on {price}, which the catalog lacks, for example {}; their events are parked",
                subscriptions.len(),
                if subscriptions.len() == 1 { "subscription is" } else { "subscriptions are" },
                subscriptions.first().map_or("", String::as_str)
            ),
            format!("add {price} to a plan of the catalog, or to [[ignore]]"),
        );
        findings.about(price);
    }
    if !is_complete {
        let problem = format!("only the newest {compared} live subscriptions were compared with the catalog");
        findings.note("subscriptions", problem, "`tallyhook reconcile` compares all");
        findings.about("bounded");
    }
}

fn is_known(catalog: &Catalog, price: &Value) -> bool {
    let product = price["product"].as_str().or(price["product"]["id"].as_str());
    let offer = catalog.offer(&text(&price["id"]), price["lookup_key"].as_str(), product);
    !matches!(offer, Ok(None))
}

fn is_ignored(rules: &[IgnoreRule], price: &Value, metadata: &Value) -> bool {
    let is = |field: &Value, wanted: &Option<String>| wanted.as_ref().is_none_or(|it| field == it.as_str());
    rules.iter().any(|rule| {
        // A rule for an account or a context does not match the account of this key.
        rule.account.is_none()
            && rule.context.is_none()
            && is(&price["id"], &rule.price)
            && is(&price["product"], &rule.product)
            && rule.metadata.iter().all(|(key, value)| metadata[key] == value.as_str())
    })
}

/// An id or a text of Stripe.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
