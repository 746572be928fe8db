//! `catalog pull`: a catalog of Stripe's active products and prices, or the catalog of a deployment.
//!
//! Prices with the same name in their metadata are one entry; other prices are one entry for each product.
//! What Stripe does not say is a value to fill in, which `catalog check` refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use super::check::BLANK;
use super::file::{Kind, price_text};
use super::prices::{CREDITS, RANK, TIER, name_key};
use super::{deployed, print_text, require_new, write};
use crate::api::UrlArgs;
use crate::output::{print_line, text};
use crate::stripe::{Stripe, parameter};

/// Write a catalog file from Stripe's active products and prices, or from a deployment
///
/// Reads the key from STRIPE_SECRET_KEY; it needs read access to products and prices. The metadata
/// tallyhook_plan (or tallyhook_pack, tallyhook_product), tallyhook_tier, tallyhook_rank and
/// tallyhook_credits of a price, else of its product, fill the file. What they do not say is FILL_IN: replace
/// it, then run `tallyhook catalog check`.
#[derive(Args)]
pub(super) struct Pull {
    /// Write to this file, not to the standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long, requires = "output")]
    force: bool,
    /// Read the catalog of the deployment, as it was pushed
    #[arg(long)]
    from_server: bool,
    #[command(flatten)]
    deployment: UrlArgs,
}

/// An active price of an active product.
struct Price {
    id: String,
    lookup_key: Option<String>,
    product: String,
    product_name: String,
    /// In minor units, if the price has one fixed amount.
    amount: Option<u64>,
    currency: String,
    interval: Option<Interval>,
    created: i64,
    /// Of the price, else of its product.
    metadata: BTreeMap<String, String>,
}

/// How often a price is billed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Interval {
    /// The order of `unit`.
    rank: usize,
    unit: String,
    count: u64,
}

/// What becomes one entry of the file.
struct Group {
    kind: Kind,
    name: String,
    /// Those with a lookup key first.
    prices: Vec<Price>,
}

impl Pull {
    pub(super) async fn run(self) -> anyhow::Result<bool> {
        if let Some(file) = &self.output {
            require_new(file, self.force)?;
        }
        let catalog = if self.from_server {
            let deployed = deployed(&self.deployment.admin_api()?).await?;
            let deployed = deployed.with_context(|| format!("{} has no catalog", self.deployment.url))?;
            deployed["toml"].as_str().context("the answer has no catalog")?.to_owned()
        } else {
            let stripe = Stripe::from_env()?.context(
                "set STRIPE_SECRET_KEY to a key with read access to products and prices; there is no flag for it, \
                 because other users of this machine can read command lines",
            )?;
            render(&groups(prices(&stripe).await?), stripe.mode())
        };
        let Some(file) = &self.output else {
            print_text(&catalog)?;
            return Ok(true);
        };
        write(file, &catalog)?;
        let shown = file.display();
        print_line(match catalog.lines().filter(|line| is_blank(line)).count() {
            0 => format!("{shown} is written. Next: tallyhook catalog check {shown}"),
            count => format!(
                "{shown} is written, with {count} x {BLANK} to replace. Next: tallyhook catalog check {shown}"
            ),
        })?;
        Ok(true)
    }
}

fn is_blank(line: &str) -> bool {
    line.split('#').next().unwrap_or_default().contains(BLANK)
}

/// The active prices of active products, in a fixed order.
async fn prices(stripe: &Stripe) -> anyhow::Result<Vec<Price>> {
    let active = [parameter("active", "true")];
    let products = stripe.list_all("/v1/products", &active).await?;
    let products: BTreeMap<&str, &Value> = products
        .iter()
        .filter(|product| product["active"] != false)
        .filter_map(|product| Some((product["id"].as_str()?, product)))
        .collect();
    let prices = stripe.list_all("/v1/prices", &active).await?;
    let mut prices: Vec<Price> = prices
        .iter()
        .filter(|price| price["active"] != false)
        .filter_map(|price| Some(Price::read(price, products.get(price["product"].as_str()?)?)))
        .collect();
    prices.sort_by(|a, b| a.order().cmp(&b.order()));
    Ok(prices)
}

impl Price {
    fn read(price: &Value, product: &Value) -> Self {
        let recurring = &price["recurring"];
        let units = ["day", "week", "month", "year"];
        let interval = recurring["interval"].as_str().map(|unit| Interval {
            rank: units.iter().position(|known| *known == unit).unwrap_or(units.len()),
            unit: unit.to_owned(),
            count: recurring["interval_count"].as_u64().unwrap_or(1),
        });
        let metadata =
            [&product["metadata"], &price["metadata"]].into_iter().filter_map(Value::as_object).flatten();
        let is_fixed = price["billing_scheme"] != "tiered" && recurring["usage_type"] != "metered";
        Self {
            id: text(&price["id"]),
            lookup_key: price["lookup_key"].as_str().map(str::to_owned),
            product: text(&product["id"]),
            product_name: product["name"].as_str().unwrap_or_default().to_owned(),
            amount: price["unit_amount"].as_u64().filter(|_| is_fixed),
            currency: text(&price["currency"]),
            interval,
            created: price["created"].as_i64().unwrap_or_default(),
            metadata: metadata
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .filter(|(_, value)| !value.is_empty())
                .collect(),
        }
    }

    /// Prices with a lookup key come first, then the shortest interval and the lowest amount.
    fn order(&self) -> impl Ord + '_ {
        (self.lookup_key.is_none(), &self.interval, self.amount, self.created, &self.id)
    }

    /// Its section and name in the metadata.
    fn named(&self) -> Option<(Kind, &str)> {
        [Kind::Plan, Kind::Pack, Kind::Product]
            .into_iter()
            .find_map(|kind| Some((kind, self.metadata.get(name_key(kind))?.as_str())))
    }

    /// The price in words, for a comment in the file.
    fn describe(&self) -> String {
        let interval = self.interval.as_ref().map(|interval| match interval.count {
            1 => interval.unit.clone(),
            count => format!("{count} {}s", interval.unit),
        });
        match self.amount {
            Some(amount) => price_text(amount, &self.currency, interval.as_deref()),
            None => format!("no fixed amount, {}", self.currency),
        }
    }
}

/// The entries, in a fixed order: by section, then the cheapest first.
fn groups(prices: Vec<Price>) -> Vec<Group> {
    let mut named: BTreeMap<(Kind, String), Vec<Price>> = BTreeMap::new();
    let mut others: BTreeMap<(Kind, String), Vec<Price>> = BTreeMap::new();
    for price in prices {
        let key = price.named().map(|(kind, name)| (kind, name.to_owned()));
        match key {
            Some(key) => named.entry(key).or_default().push(price),
            None => {
                let kind = if price.interval.is_some() { Kind::Plan } else { Kind::Pack };
                others.entry((kind, price.product.clone())).or_default().push(price);
            }
        }
    }
    let mut names: BTreeSet<String> = named.keys().map(|(_, name)| name.clone()).collect();
    let mut groups: Vec<Group> =
        named.into_iter().map(|((kind, name), prices)| Group { kind, name, prices }).collect();
    for ((kind, _), prices) in others {
        let wanted = prices.first().map(|price| slug(&price.product_name)).filter(|name| !name.is_empty());
        let wanted = wanted.unwrap_or_else(|| kind.as_str().to_owned());
        let numbered = (2..).map(|number| format!("{wanted}_{number}"));
        let name = [wanted.clone()].into_iter().chain(numbered).find(|name| !names.contains(name));
        let name = name.unwrap_or(wanted);
        names.insert(name.clone());
        groups.push(Group { kind, name, prices });
    }
    let cheapest = |group: &Group| group.prices.iter().filter_map(|price| price.amount).min();
    groups.sort_by(|a, b| (a.kind, cheapest(a), &a.name).cmp(&(b.kind, cheapest(b), &b.name)));
    groups
}

/// A name of the catalog: `Pro Plan (EU)` is `pro_plan_eu`.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut slug = words.collect::<Vec<_>>().join("_").to_ascii_lowercase();
    slug.truncate(48);
    slug
}

fn render(groups: &[Group], mode: &str) -> String {
    let mut out = format!(
        "# Written by `tallyhook catalog pull` from the active products and prices of Stripe, {mode}. Replace each\n\
         # \"{BLANK}\", then run `tallyhook catalog check`. Put the price ids of the other mode beside these.\n\
         # docs/catalog.md lists every field.\n\n\
         [tiers]  # name = rank; of several plans the one with the highest rank wins\n"
    );
    let mut tiers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([("free", BTreeSet::new())]);
    for price in groups.iter().flat_map(|group| &group.prices) {
        if let Some(tier) = price.metadata.get(TIER) {
            tiers.entry(tier).or_default().extend(price.metadata.get(RANK).map(String::as_str));
        }
    }
    let mut ranked: Vec<(Option<u64>, &str)> =
        tiers.iter().map(|(tier, ranks)| (rank(tier, ranks), *tier)).collect();
    ranked.sort_by_key(|(rank, tier)| (rank.unwrap_or(u64::MAX), *tier));
    for (rank, tier) in ranked {
        let name = if tier.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
            tier.to_owned()
        } else {
            quoted(tier)
        };
        match rank {
            Some(rank) => out += &format!("{name} = {rank}\n"),
            None => out += &format!("{name} = \"{BLANK}\"  # a whole number; {RANK} of the prices\n"),
        }
    }
    out += "\n[policy]\ndefault_tier = \"free\"\n";
    groups.iter().for_each(|group| group.render(&mut out));
    out
}

/// The rank that all prices of a tier have in their metadata. The tier of a user without a plan has 0.
fn rank(tier: &str, ranks: &BTreeSet<&str>) -> Option<u64> {
    let mut ranks = ranks.iter();
    match (ranks.next(), ranks.next()) {
        (Some(rank), None) => rank.parse().ok(),
        (None, _) if tier == "free" => Some(0),
        _ => None,
    }
}

impl Group {
    fn render(&self, out: &mut String) {
        let mut line = |line: String| {
            let _ = writeln!(out, "{line}");
        };
        line(String::new());
        let products: BTreeSet<(&str, &str)> =
            self.prices.iter().map(|price| (price.product_name.as_str(), price.product.as_str())).collect();
        for (name, id) in products {
            line(format!("# {} ({id})", text(&name.into())));
        }
        for price in &self.prices {
            line(format!("#   {}: {}", price.id, price.describe()));
        }
        line(format!("[[{}]]", self.kind.as_str()));
        line(format!("name = {}", quoted(&self.name)));
        if self.kind == Kind::Plan {
            let comment = format!("one of [tiers], where you add it; {TIER} of the price");
            line(self.field("tier", TIER, |tier| Some(quoted(tier)), &comment));
        }
        let comment = match self.kind {
            Kind::Plan => "of each billing period",
            Kind::Pack => "of one pack; make it a [[product]] or an [[order]] if it is none",
            Kind::Product => "0 if it gives none",
        };
        let credits = |credits: &str| credits.parse::<u64>().ok().map(|credits| credits.to_string());
        line(self.field("credits", CREDITS, credits, &format!("{comment}; {CREDITS} of the price")));
        // The amount of an entry is that of its first lookup key. It may be wrong for its other prices.
        if let Some(first) = self.prices.first().filter(|_| self.kind != Kind::Product) {
            let same = |price: &Price| (price.amount, &price.currency) == (first.amount, &first.currency);
            if let (Some(amount), true) = (first.amount, self.prices.iter().all(same)) {
                line(format!("amount = {amount}"));
                line(format!("currency = {}", quoted(&first.currency)));
                let interval = first.interval.as_ref().filter(|interval| interval.count == 1);
                if let Some(interval) = interval.filter(|_| self.kind == Kind::Plan) {
                    line(format!("interval = {}", quoted(&interval.unit)));
                }
            }
        }
        let list =
            |names: Vec<&String>| names.into_iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        line(format!("prices = [{}]", list(self.prices.iter().map(|price| &price.id).collect())));
        let keys: Vec<&String> = self.prices.iter().filter_map(|price| price.lookup_key.as_ref()).collect();
        if !keys.is_empty() {
            line(format!("lookup_keys = [{}]", list(keys)));
        }
    }

    /// A field with the value that all prices have in their metadata, else to be filled in.
    fn field(&self, field: &str, key: &str, toml: impl Fn(&str) -> Option<String>, comment: &str) -> String {
        let values: BTreeSet<&String> =
            self.prices.iter().filter_map(|price| price.metadata.get(key)).collect();
        let value = values.first().filter(|_| values.len() == 1).and_then(|value| toml(value));
        match value {
            Some(value) => format!("{field} = {value}"),
            None => format!("{field} = \"{BLANK}\"  # {comment}"),
        }
    }
}

/// A text as a basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tallyhook_core::catalog::Catalog;

    use super::*;

    fn catalog(prices: &[Value]) -> String {
        let product =
            |price: &Value| json!({"id": price["product"], "name": price["product_name"], "active": true});
        let mut prices: Vec<Price> = prices.iter().map(|price| Price::read(price, &product(price))).collect();
        prices.sort_by(|a, b| a.order().cmp(&b.order()));
        render(&groups(prices), "test mode")
    }

    fn price(id: &str, name: &str, more: Value) -> Value {
        let mut price = json!({"id": id, "product": format!("prod_{name}"), "product_name": name, "currency": "usd",
            "unit_amount": 2000, "recurring": {"interval": "month", "interval_count": 1}, "active": true});
        for (name, value) in more.as_object().into_iter().flatten() {
            price[name] = value.clone();
        }
        price
    }

    #[test]
    fn prices_of_one_product_are_one_plan_with_values_to_fill_in() {
        let text = catalog(&[
            price("price_m", "Pro \"X\"\n[[plan]]", json!({"lookup_key": "pro_monthly"})),
            price(
                "price_y",
                "Pro \"X\"\n[[plan]]",
                json!({"unit_amount": 20_000, "recurring": {"interval": "year"}}),
            ),
            price("price_p", "Pro \"X\"\n[[plan]]", json!({"recurring": null})),
        ]);
        assert_eq!(text.matches("\n[[plan]]\n").count(), 1, "a name cannot add a section: {text}");
        assert!(
            text.contains("prices = [\"price_m\", \"price_y\"]\nlookup_keys = [\"pro_monthly\"]"),
            "{text}"
        );
        assert!(text.contains("#   price_y: 200.00 usd per year"), "{text}");
        let plan = text.split("[[plan]]\n").last().unwrap();
        assert!(!plan.split("[[pack]]").next().unwrap().contains("amount ="), "the amounts differ: {text}");
        assert!(text.contains("name = \"pro_x_plan_2\"\ncredits = \"FILL_IN\""), "{text}");
        assert!(Catalog::parse(&text).is_err());
        let filled = text
            .replacen("free = 0", "free = 0\npro = 1", 1)
            .replacen("tier = \"FILL_IN\"", "tier = \"pro\"", 1)
            .replace("credits = \"FILL_IN\"", "credits = 5");
        let catalog = Catalog::parse(&filled).unwrap();
        assert_eq!((catalog.plans.len(), catalog.packs[0].amount), (1, Some(2000)));
    }

    #[test]
    fn metadata_fills_the_file_and_differing_metadata_does_not() {
        let metadata = json!({"tallyhook_plan": "team", "tallyhook_tier": "pro", "tallyhook_rank": "2",
            "tallyhook_credits": "100"});
        let named = |id: &str, product: &str| price(id, product, json!({"metadata": metadata}));
        let text = catalog(&[named("price_1", "A"), named("price_2", "B")]);
        let read = Catalog::parse(&text).unwrap();
        assert_eq!(
            (read.plans[0].name.as_str(), read.plans[0].credits, read.plans[0].rank),
            ("team", 100, 2)
        );
        assert_eq!(read.plans[0].sold_as.prices, ["price_1", "price_2"]);
        let mut other = named("price_2", "B");
        other["metadata"]["tallyhook_credits"] = json!("lots");
        other["metadata"]["tallyhook_rank"] = json!("3");
        let text = catalog(&[named("price_1", "A"), other]);
        assert!(text.contains("credits = \"FILL_IN\"") && text.contains("\npro = \"FILL_IN\""), "{text}");
    }

    #[test]
    fn a_price_without_a_fixed_amount_is_listed_by_its_id() {
        let text = catalog(&[
            price("price_t", "A", json!({"billing_scheme": "tiered", "unit_amount": null})),
            price("price_q", "B", json!({"recurring": {"interval": "month", "interval_count": 3}})),
        ]);
        assert!(text.contains("price_t: no fixed amount, usd") && text.contains("per 3 months"), "{text}");
        assert_eq!((text.matches("amount =").count(), text.matches("interval =").count()), (1, 0), "{text}");
    }
}
