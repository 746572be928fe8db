//! `catalog push --stripe`: the products and prices at Stripe.
//!
//! Stripe cannot change the amount of a price. So a new price takes the lookup key, and the old one is
//! deactivated: its subscriptions stay as they are. The id of the old price is first added to the catalog
//! file, because it has no lookup key any more. Until that is done, metadata of the new price names the old
//! one, so that the next run completes what a stopped run has begun.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;
use tallyhook_core::catalog::Catalog;

use super::file::{Entry, Kind, Price, entries, price_text, with_price};
use super::write;
use crate::output::{print_line, text};
use crate::stripe::{Failure, Parameters, Stripe, parameter};

/// The metadata keys with what a price sells.
pub(super) const TIER: &str = "tallyhook_tier";
pub(super) const RANK: &str = "tallyhook_rank";
pub(super) const CREDITS: &str = "tallyhook_credits";
/// The metadata key of a new price with the id of the price that it replaces, until that one is deactivated.
const REPLACES: &str = "tallyhook_replaces";

/// Stripe takes at most this many lookup keys in one request.
const MAX_LOOKUP_KEYS: usize = 10;

/// The metadata key with the name of an entry.
pub(super) fn name_key(kind: Kind) -> &'static str {
    match kind {
        Kind::Plan => "tallyhook_plan",
        Kind::Pack => "tallyhook_pack",
        Kind::Product => "tallyhook_product",
    }
}

/// What is left to do for one entry, in this order.
struct Change<'a> {
    entry: &'a Entry,
    /// The price that has the lookup key.
    holder: Option<String>,
    /// Prices that are added to the file.
    keep: Vec<String>,
    create: Option<NewPrice<'a>>,
    /// Whether the holder is archived at Stripe and sold by the file.
    activate: bool,
    /// Active prices that are replaced.
    deactivate: Vec<String>,
    /// Whether the holder names a price that it replaces.
    is_unfinished: bool,
}

struct NewPrice<'a> {
    price: Price<'a>,
    product: Product,
    /// The price that has the lookup key.
    replaces: Option<Value>,
}

/// The Stripe product of a new price.
enum Product {
    Active(String),
    Archived(String),
    Missing,
}

/// What an account has at Stripe.
struct Account<'a> {
    stripe: &'a Stripe,
    /// Prices by their lookup key.
    holders: BTreeMap<String, Value>,
    /// All products; read when the first is needed.
    products: Option<Vec<Value>>,
}

/// Makes the prices at Stripe match the file. True when nothing is left to do.
pub(super) async fn push(file: &Path, mut toml: String, apply: bool) -> anyhow::Result<bool> {
    let stripe = Stripe::from_env()?.context(
        "set STRIPE_SECRET_KEY to a key with write access to products and prices; there is no flag for it, because \
         other users of this machine can read command lines",
    )?;
    print_line(format_args!("Stripe: {}", stripe.mode()))?;
    let catalog = Catalog::parse(&toml)?;
    let entries = entries(&toml)?;
    let mut account = Account { stripe: &stripe, holders: holders(&stripe, &entries).await?, products: None };
    let (mut is_complete, mut changes) = (true, Vec::new());
    for entry in &entries {
        let missing = entry.lookup_keys.iter().filter(|key| !account.holders.contains_key(*key));
        let can_create = |key: &str| entry.price().is_some_and(|price| price.lookup_key == key);
        for key in missing.filter(|key| !can_create(key)) {
            is_complete = false;
            print_line(format_args!(
                "missing  {entry}: Stripe has no price with the lookup key {key}, and the file has no amount \
                 for it"
            ))?;
        }
        if let Some(lacks) = entry.incomplete_price() {
            print_line(format_args!("note     {entry} is left alone: it has an amount and no {lacks}"))?;
        }
        changes.extend(account.change(entry).await?);
    }
    if changes.is_empty() {
        if is_complete {
            print_line("Stripe has every price of the file; nothing to do.")?;
        }
        return Ok(is_complete);
    }
    if !apply {
        changes.iter().try_for_each(|change| change.print(file))?;
        print_line("Nothing was changed. Repeat the command with --apply to do this.")?;
        return Ok(false);
    }
    let mut is_file_changed = false;
    for change in &changes {
        for price in &change.keep {
            toml = with_price(&toml, change.entry.kind, change.entry.name(), price)?;
            write(file, &toml)?;
            is_file_changed = true;
            print_line(format_args!(
                "wrote      {price} to the prices of {} in {}",
                change.entry,
                file.display()
            ))?;
        }
        change.carry_out(&stripe, &catalog).await?;
    }
    if is_file_changed {
        print_line(format_args!("The file has changed. Next: tallyhook catalog push {}", file.display()))?;
    }
    Ok(is_complete)
}

/// The prices with a lookup key of the file, archived ones too.
async fn holders(stripe: &Stripe, entries: &[Entry]) -> anyhow::Result<BTreeMap<String, Value>> {
    let keys: Vec<&String> = entries.iter().flat_map(|entry| &entry.lookup_keys).collect();
    let mut holders = BTreeMap::new();
    for keys in keys.chunks(MAX_LOOKUP_KEYS) {
        let parameters: Parameters =
            keys.iter().map(|key| parameter("lookup_keys[]", key.as_str())).collect();
        for price in stripe.list_all("/v1/prices", &parameters).await? {
            let Some(key) = price["lookup_key"].as_str() else { continue };
            // An emulator of Stripe that ignores the filter answers with other prices.
            if keys.iter().any(|wanted| *wanted == key) {
                holders.insert(key.to_owned(), price);
            }
        }
    }
    Ok(holders)
}

impl Account<'_> {
    async fn change<'a>(&mut self, entry: &'a Entry) -> anyhow::Result<Option<Change<'a>>> {
        let Some(price) = entry.price() else { return Ok(None) };
        let holder = self.holders.get(price.lookup_key).cloned();
        let mut change = Change {
            entry,
            holder: holder.as_ref().map(|holder| text(&holder["id"])),
            keep: Vec::new(),
            create: None,
            activate: false,
            deactivate: Vec::new(),
            is_unfinished: false,
        };
        if let Some(holder) = &holder {
            if let Some(why) = unsupported(holder) {
                print_line(format_args!("note     {entry} is left alone: {} {why}", text(&holder["id"])))?;
                return Ok(None);
            }
            if let Some(id) = holder["metadata"][REPLACES].as_str() {
                change.is_unfinished = true;
                self.finish(id, &mut change).await?;
            }
        }
        match holder {
            Some(holder) if is_price(&holder, &price) => change.activate = holder["active"] == false,
            holder => {
                if let Some(holder) = &holder {
                    let id = text(&holder["id"]);
                    change.retire(&id, holder);
                }
                let product = self.product(entry, holder.as_ref()).await?;
                change.create = Some(NewPrice { price, product, replaces: holder });
            }
        }
        let is_empty =
            change.keep.is_empty() && change.create.is_none() && !change.activate && !change.is_unfinished;
        Ok((!is_empty).then_some(change))
    }

    /// Completes the replacement of a price that a stopped run has begun.
    async fn finish(&self, replaced: &str, change: &mut Change<'_>) -> anyhow::Result<()> {
        match self.stripe.get(&format!("/v1/prices/{replaced}"), &[]).await {
            Ok(price) if price["lookup_key"].is_null() => change.retire(replaced, &price),
            // The price has another lookup key by now and is still sold.
            Ok(_) => {}
            Err(failure) if failure.status() == Some(404) => {}
            Err(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    /// The Stripe product of an entry: that of its old price, else one that the file names, else one with its
    /// name in the metadata.
    async fn product(&mut self, entry: &Entry, holder: Option<&Value>) -> anyhow::Result<Product> {
        let state = |product: &Value| {
            let id = text(&product["id"]);
            if product["active"] == false { Product::Archived(id) } else { Product::Active(id) }
        };
        if let Some(id) = holder.and_then(|holder| holder["product"].as_str()) {
            let product = self.stripe.get(&format!("/v1/products/{id}"), &[]).await?;
            return Ok(state(&product));
        }
        if self.products.is_none() {
            self.products = Some(self.stripe.list_all("/v1/products", &[]).await?);
        }
        let products = self.products.iter().flatten();
        let is_named = |product: &&Value| entry.stripe_products.iter().any(|id| product["id"] == **id);
        let is_ours = |product: &&Value| product["metadata"][name_key(entry.kind)] == entry.name();
        let found = products.clone().find(is_named).or_else(|| products.clone().find(is_ours));
        Ok(found.map_or(Product::Missing, state))
    }
}

/// Why the file cannot describe a price; `None` if it can.
fn unsupported(price: &Value) -> Option<&'static str> {
    let recurring = &price["recurring"];
    if price["billing_scheme"] == "tiered" {
        Some("has tiers")
    } else if !price["unit_amount"].is_u64() {
        Some("has no fixed amount in whole minor units")
    } else if recurring["usage_type"] == "metered" {
        Some("is metered")
    } else if recurring["interval_count"].as_u64().is_some_and(|count| count > 1) {
        Some("is billed every few intervals")
    } else if price["transform_quantity"].is_object() {
        Some("transforms the quantity")
    } else {
        None
    }
}

fn is_price(found: &Value, price: &Price<'_>) -> bool {
    found["unit_amount"] == price.amount
        && found["currency"] == price.currency
        && found["recurring"]["interval"].as_str() == price.interval
}

impl Change<'_> {
    /// Plans the end of a replaced price: the file gets its id, and Stripe deactivates it.
    fn retire(&mut self, id: &str, price: &Value) {
        if !self.entry.prices().iter().any(|known| known == id) {
            self.keep.push(id.to_owned());
        }
        if price["active"] != false {
            self.deactivate.push(id.to_owned());
        }
    }

    fn print(&self, file: &Path) -> anyhow::Result<()> {
        let entry = self.entry;
        for price in &self.keep {
            print_line(format_args!("write      {price} to the prices of {entry} in {}", file.display()))?;
        }
        if let Some(new) = &self.create {
            match &new.product {
                Product::Active(_) => {}
                Product::Archived(id) => print_line(format_args!("activate   product {id} of {entry}"))?,
                Product::Missing => print_line(format_args!("create     product for {entry}"))?,
            }
            print_line(format_args!("create     {}", new.describe(entry)))?;
        }
        if let Some(price) = self.holder.as_ref().filter(|_| self.activate) {
            print_line(format_args!("activate   price {price} of {entry}"))?;
        }
        for price in &self.deactivate {
            print_line(format_args!("deactivate price {price} of {entry}; its subscriptions stay"))?;
        }
        if self.deactivate.is_empty() && self.is_unfinished {
            print_line(format_args!("finish     the replacement of a price of {entry}"))?;
        }
        Ok(())
    }

    async fn carry_out(&self, stripe: &Stripe, catalog: &Catalog) -> anyhow::Result<()> {
        let entry = self.entry;
        let mut current = self.holder.clone();
        if let Some(new) = &self.create {
            let product = new.product(stripe, entry).await?;
            let created = stripe.create("/v1/prices", &new.parameters(entry, &product, catalog)).await?;
            let id = text(&created["id"]);
            if created["lookup_key"] != new.price.lookup_key {
                bail!("Stripe created {id} without the lookup key {}", new.price.lookup_key);
            }
            print_line(format_args!("created    {}: {id}", new.describe(entry)))?;
            current = Some(id);
        }
        let Some(current) = current else { return Ok(()) };
        let path = format!("/v1/prices/{current}");
        if self.activate {
            stripe.post(&path, &[parameter("active", "true")]).await?;
            print_line(format_args!("activated  price {current} of {entry}"))?;
        }
        for price in &self.deactivate {
            deactivate(stripe, price, &current).await?;
            print_line(format_args!("deactivated price {price} of {entry}; its subscriptions stay"))?;
        }
        let is_marked = self.create.as_ref().map_or(self.is_unfinished, |new| new.replaces.is_some());
        if is_marked {
            stripe.post(&path, &[parameter(format!("metadata[{REPLACES}]"), "")]).await?;
            print_line(format_args!("finished   the replacement of a price of {entry}"))?;
        }
        Ok(())
    }
}

/// Stripe does not deactivate the default price of a product, so the product gets the current one first.
async fn deactivate(stripe: &Stripe, price: &str, current: &str) -> Result<(), Failure> {
    let path = format!("/v1/prices/{price}");
    let product = format!("/v1/products/{}", text(&stripe.get(&path, &[]).await?["product"]));
    if stripe.get(&product, &[]).await?["default_price"] == price {
        stripe.post(&product, &[parameter("default_price", current)]).await?;
    }
    stripe.post(&path, &[parameter("active", "false")]).await?;
    Ok(())
}

impl NewPrice<'_> {
    fn describe(&self, entry: &Entry) -> String {
        let Price { lookup_key, amount, currency, interval } = self.price;
        let new = price_text(amount, currency, interval);
        let instead = self.replaces.as_ref().map_or(String::new(), |old| {
            let amount = old["unit_amount"].as_u64().unwrap_or_default();
            let interval = old["recurring"]["interval"].as_str();
            let old_price = price_text(amount, old["currency"].as_str().unwrap_or_default(), interval);
            format!(" in place of {} ({old_price})", text(&old["id"]))
        });
        format!("price of {entry}, {new}, lookup key {lookup_key}{instead}")
    }

    /// The id of its product, which is created or activated if it must be.
    async fn product(&self, stripe: &Stripe, entry: &Entry) -> Result<String, Failure> {
        match &self.product {
            Product::Active(id) => Ok(id.clone()),
            Product::Archived(id) => {
                stripe.post(&format!("/v1/products/{id}"), &[parameter("active", "true")]).await?;
                Ok(id.clone())
            }
            Product::Missing => {
                let fields = [
                    parameter("name", entry.name()),
                    parameter(format!("metadata[{}]", name_key(entry.kind)), entry.name()),
                ];
                Ok(text(&stripe.create("/v1/products", &fields).await?["id"]))
            }
        }
    }

    fn parameters(&self, entry: &Entry, product: &str, catalog: &Catalog) -> Parameters {
        let Price { lookup_key, amount, currency, interval } = self.price;
        let mut fields = vec![
            parameter("product", product),
            parameter("unit_amount", amount.to_string()),
            parameter("currency", currency),
            parameter("lookup_key", lookup_key),
        ];
        fields.extend(interval.map(|interval| parameter("recurring[interval]", interval)));
        let mut metadata = vec![(name_key(entry.kind), entry.name().to_owned())];
        if let Some(tier) = &entry.tier {
            metadata.push((TIER, tier.clone()));
            metadata.extend(catalog.tiers.get(tier).map(|rank| (RANK, rank.to_string())));
        }
        metadata.push((CREDITS, entry.credits.to_string()));
        if let Some(old) = &self.replaces {
            fields.push(parameter("transfer_lookup_key", "true"));
            metadata.push((REPLACES, text(&old["id"])));
            for name in ["tax_behavior", "nickname"] {
                let value = old[name].as_str().filter(|value| *value != "unspecified" && !value.is_empty());
                fields.extend(value.map(|value| parameter(name, value)));
            }
        }
        fields
            .extend(metadata.into_iter().map(|(name, value)| parameter(format!("metadata[{name}]"), value)));
        fields
    }
}
