//! The entries of a catalog file with their prices, as the file has them.
//!
//! The catalog that the functions read has no currency and no interval. A new price id is added to the text
//! of the file, so that its comments stay.

use std::fmt;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tallyhook_core::catalog::Catalog;
use toml::Spanned;

/// Currencies without minor units: <https://docs.stripe.com/currencies#zero-decimal>.
const ZERO_DECIMAL: [&str; 16] = [
    "bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof",
    "xpf",
];
/// Currencies with three decimals: <https://docs.stripe.com/currencies#three-decimal>.
const THREE_DECIMAL: [&str; 5] = ["bhd", "jod", "kwd", "omr", "tnd"];

/// The section of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    #[default]
    Plan,
    Pack,
    Product,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Pack => "pack",
            Self::Product => "product",
        }
    }
}

/// A plan, a pack or a product.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    #[serde(skip)]
    pub(super) kind: Kind,
    name: Spanned<String>,
    pub(super) tier: Option<String>,
    #[serde(default)]
    pub(super) credits: u64,
    prices: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    pub(super) lookup_keys: Vec<String>,
    #[serde(default)]
    pub(super) stripe_products: Vec<String>,
    amount: Option<u64>,
    currency: Option<String>,
    interval: Option<String>,
}

/// What an entry costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Price<'a> {
    pub(super) lookup_key: &'a str,
    /// In minor units.
    pub(super) amount: u64,
    pub(super) currency: &'a str,
    /// Of a plan.
    pub(super) interval: Option<&'a str>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    plan: Vec<Entry>,
    #[serde(default)]
    pack: Vec<Entry>,
    #[serde(default)]
    product: Vec<Entry>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.kind.as_str(), self.name())
    }
}

impl Entry {
    pub(super) fn name(&self) -> &str {
        self.name.get_ref()
    }

    pub(super) fn prices(&self) -> &[String] {
        self.prices.as_ref().map_or(&[], |prices| prices.get_ref())
    }

    /// The price of its first lookup key, if the entry has all fields of it.
    pub(super) fn price(&self) -> Option<Price<'_>> {
        let interval = self.interval.as_deref();
        Some(Price {
            lookup_key: self.lookup_keys.first()?,
            amount: self.amount?,
            currency: self.currency.as_deref()?,
            interval: if self.kind == Kind::Plan { Some(interval?) } else { None },
        })
    }

    /// The fields that a price with an amount lacks.
    pub(super) fn incomplete_price(&self) -> Option<String> {
        self.amount?;
        let lacks = [
            (self.lookup_keys.is_empty(), "lookup_keys"),
            (self.currency.is_none(), "currency"),
            (self.kind == Kind::Plan && self.interval.is_none(), "interval"),
        ];
        let lacks: Vec<&str> = lacks.into_iter().filter(|(lacks, _)| *lacks).map(|(_, name)| name).collect();
        let (last, others) = lacks.split_last()?;
        Some(if others.is_empty() { (*last).to_owned() } else { format!("{} and {last}", others.join(", ")) })
    }

    /// The price as people read it, such as `20.00 usd per month`.
    pub(super) fn price_text(&self) -> Option<String> {
        let amount = self.amount?;
        Some(match &self.currency {
            Some(currency) => price_text(amount, currency, self.interval.as_deref()),
            None => format!("{amount} in minor units"),
        })
    }
}

/// The plans, packs and products of a catalog that the core has checked, in the file's order.
pub(super) fn entries(text: &str) -> anyhow::Result<Vec<Entry>> {
    let file: File = toml::from_str(text)?;
    let of = |kind, entries: Vec<Entry>| entries.into_iter().map(move |entry| Entry { kind, ..entry });
    Ok(of(Kind::Plan, file.plan)
        .chain(of(Kind::Pack, file.pack))
        .chain(of(Kind::Product, file.product))
        .collect())
}

/// `20.00 usd per month`.
pub(super) fn price_text(amount: u64, currency: &str, interval: Option<&str>) -> String {
    let (unit, decimals) = if ZERO_DECIMAL.contains(&currency) {
        (1, 0)
    } else if THREE_DECIMAL.contains(&currency) {
        (1_000, 3)
    } else {
        (100, 2)
    };
    let amount = match decimals {
        0 => amount.to_string(),
        decimals => format!("{}.{:0decimals$}", amount / unit, amount % unit),
    };
    let interval = interval.map_or(String::new(), |interval| format!(" per {interval}"));
    format!("{amount} {currency}{interval}")
}

/// The text with one more price id in the `prices` of an entry.
pub(super) fn with_price(text: &str, kind: Kind, name: &str, price: &str) -> anyhow::Result<String> {
    let by_hand = || format!("add \"{price}\" to the prices of {} \"{name}\" by hand", kind.as_str());
    let entries = entries(text)?;
    let entry =
        entries.iter().find(|entry| entry.kind == kind && entry.name() == name).with_context(by_hand)?;
    let changed = match &entry.prices {
        Some(prices) => in_list(text, prices.span(), price),
        None => after_line(text, entry.name.span().end, &format!("prices = [\"{price}\"]")),
    };
    let added = self::entries(&changed).ok().is_some_and(|entries| {
        let found = entries.iter().find(|entry| entry.kind == kind && entry.name() == name);
        found.is_some_and(|entry| entry.prices().last().is_some_and(|last| last == price))
    });
    ensure!(added && Catalog::parse(&changed).is_ok(), by_hand());
    Ok(changed)
}

/// Adds a text after the last entry of a list.
fn in_list(text: &str, list: std::ops::Range<usize>, value: &str) -> String {
    let end = list.end.saturating_sub(1);
    let inner = &text[list.start + 1..end];
    // A text after a comment would be part of the comment, so it goes directly after the last value.
    let last = inner.rfind('"').map_or(0, |at| at + 1);
    let rest = &inner[last..];
    let after_comma = rest.trim_start().strip_prefix(',');
    let at = list.start + 1 + last;
    match (last, after_comma) {
        (0, _) => format!("{}\"{value}\"{}", &text[..at], &text[at..]),
        (_, Some(after)) => {
            let at = end - after.len();
            format!("{} \"{value}\",{}", &text[..at], &text[at..])
        }
        (_, None) => format!("{}, \"{value}\"{}", &text[..at], &text[at..]),
    }
}

/// Adds a line after the line of a position.
fn after_line(text: &str, position: usize, line: &str) -> String {
    let end = text[position..].find('\n').map_or(text.len(), |at| position + at);
    format!("{}\n{line}{}", &text[..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(plan: &str) -> String {
        format!(
            "[tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n[[plan]]\nname = \"pro\" # ours\n\
             tier = \"pro\"\ncredits = 1\n{plan}\n"
        )
    }

    #[test]
    fn a_price_is_added_behind_the_others_and_the_rest_of_the_text_stays() {
        for (before, after) in [
            ("prices = [\"price_a\"] # a", "prices = [\"price_a\", \"price_new\"] # a"),
            ("prices = [\"price_a\",]", "prices = [\"price_a\", \"price_new\",]"),
            (
                "prices = [\n  \"price_a\", # first\n  \"price_b\", # second\n]",
                "prices = [\n  \"price_a\", # first\n  \"price_b\", \"price_new\", # second\n]",
            ),
            ("lookup_keys = [\"k\"]\nprices = []", "lookup_keys = [\"k\"]\nprices = [\"price_new\"]"),
        ] {
            let changed = with_price(&catalog(before), Kind::Plan, "pro", "price_new").unwrap();
            assert_eq!(changed, catalog(after));
        }
        let without = catalog("lookup_keys = [\"k\"]");
        let changed = with_price(&without, Kind::Plan, "pro", "price_new").unwrap();
        assert_eq!(changed, without.replace("# ours\n", "# ours\nprices = [\"price_new\"]\n"));
    }

    #[test]
    fn a_text_that_cannot_be_edited_is_left_for_a_person() {
        let inline = "plan = [{ name = \"pro\", tier = \"pro\", credits = 1, lookup_keys = [\"k\"] }]\n\
            [tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n";
        assert!(Catalog::parse(inline).is_ok());
        let error = with_price(inline, Kind::Plan, "pro", "price_new").unwrap_err().to_string();
        assert_eq!(error, "add \"price_new\" to the prices of plan \"pro\" by hand");
        assert!(with_price(&catalog("prices = [\"price_a\"]"), Kind::Pack, "pro", "price_new").is_err());
    }

    #[test]
    fn an_amount_is_shown_in_the_units_of_its_currency() {
        assert_eq!(price_text(2005, "usd", Some("month")), "20.05 usd per month");
        assert_eq!(price_text(2005, "jpy", None), "2005 jpy");
        assert_eq!(price_text(2005, "kwd", None), "2.005 kwd");
    }
}
