//! The errors of a catalog file with their lines, and what the file sells.

use std::path::Path;

use serde_json::{Value, json};
use tallyhook_core::catalog::{Catalog, CatalogError, SoldAs};

use super::file::{Entry, entries};
use crate::output::print_line;
use crate::table::{column, number, table};

/// Stands for a value that a person must fill in.
pub(super) const BLANK: &str = "FILL_IN";

/// Sections that the rest of the file refers to.
const SHARED: [&str; 4] = ["tiers", "policy", "features", "default_features"];

/// The catalog of a text. Prints its errors, if it has any, and returns `None`.
pub(super) fn parse(text: &str, file: &Path) -> anyhow::Result<Option<Catalog>> {
    let errors = match read(text) {
        Ok(catalog) => return Ok(Some(catalog)),
        Err(errors) => errors,
    };
    for error in &errors {
        print_line(error.of_file(&file.display().to_string()))?;
        if let Some(line) = error.line.checked_sub(1).and_then(|at| text.lines().nth(at)) {
            print_line(format_args!("    {}", line.trim()))?;
        }
    }
    let count = if errors.len() == 1 { "1 error".to_owned() } else { format!("{} errors", errors.len()) };
    print_line(format_args!("{} has {count}.", file.display()))?;
    Ok(None)
}

/// Parses a catalog, or returns the first error of every section. The parser stops at the first error, so the
/// section with the error is left out and the rest is parsed again.
fn read(text: &str) -> Result<Catalog, Vec<CatalogError>> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut errors = blanks(&mut lines);
    loop {
        match Catalog::parse(&lines.join("\n")) {
            Ok(catalog) if errors.is_empty() => return Ok(catalog),
            Ok(_) => break,
            Err(error) => {
                let at = error.line.checked_sub(1);
                let is_new = !errors.contains(&error);
                if is_new {
                    errors.push(error);
                }
                if !is_new || !at.is_some_and(|at| leave_out(&mut lines, at)) {
                    break;
                }
            }
        }
    }
    errors.sort_by_key(|error| error.line);
    Err(errors)
}

/// Reports each line with a value to fill in, and leaves out its section.
fn blanks(lines: &mut [String]) -> Vec<CatalogError> {
    let is_blank = |line: &String| line.split('#').next().unwrap_or_default().contains(BLANK);
    let at: Vec<usize> = (0..lines.len()).filter(|at| is_blank(&lines[*at])).collect();
    for at in &at {
        if !leave_out(lines, *at) {
            lines[*at] = lines[*at].replace(&format!("\"{BLANK}\""), "0");
        }
    }
    let message = || "a value is missing: fill it in".to_owned();
    at.into_iter().map(|at| CatalogError { line: at + 1, message: message() }).collect()
}

/// Empties the section of a line. False when other sections need it.
fn leave_out(lines: &mut [String], at: usize) -> bool {
    let headers = lines.iter().enumerate().take(at + 1).rev();
    let Some((start, name)) = headers.into_iter().find_map(|(at, line)| Some((at, section(line)?))) else {
        return false;
    };
    let name = name.to_owned();
    if SHARED.contains(&name.as_str()) {
        return false;
    }
    let inner = format!("{name}.");
    let is_next = |line: &String| section(line).is_some_and(|name| !name.starts_with(&inner));
    let end = (start + 1..lines.len()).find(|at| is_next(&lines[*at])).unwrap_or(lines.len());
    lines[start..end].iter_mut().for_each(String::clear);
    true
}

/// The name in a line such as `[[plan]]` or `[tiers]`.
fn section(line: &str) -> Option<&str> {
    let name = line.trim_start().trim_start_matches('[');
    let is_header = line.trim_start().starts_with('[') && name.starts_with(|c: char| c.is_ascii_lowercase());
    name.split(']').next().filter(|_| is_header).map(str::trim)
}

/// Prints what a catalog sells, and warnings.
pub(super) fn print(catalog: &Catalog, text: &str) -> anyhow::Result<()> {
    let entries = entries(text)?;
    let price = |kind: &str, name: &str| {
        let entry = entries.iter().find(|entry| entry.kind.as_str() == kind && entry.name() == name);
        entry.and_then(Entry::price_text).unwrap_or_default()
    };
    let row = |kind: &str, name: &str, tier: &str, credits: u64, sold_as: &SoldAs| {
        json!({"kind": kind, "name": name, "tier": tier, "credits": credits, "price": price(kind, name),
            "sold_by": sold_by(sold_as)})
    };
    let plans = catalog.plans.iter().map(|it| row("plan", &it.name, &it.tier, it.credits, &it.sold_as));
    let packs = catalog.packs.iter().map(|it| row("pack", &it.name, "", it.credits, &it.sold_as));
    let products = catalog.products.iter().map(|it| row("product", &it.name, "", it.credits, &it.sold_as));
    let orders = catalog.orders.iter().flat_map(|order| {
        order.plans.iter().map(|(name, plan)| {
            let sold_as = SoldAs { prices: plan.prices.clone(), ..SoldAs::default() };
            json!({"kind": "order", "name": format!("{} {name}", order.mode), "tier": "", "credits": "",
                "price": "", "sold_by": sold_by(&sold_as)})
        })
    });
    let rows: Vec<Value> = plans.chain(packs).chain(products).chain(orders).collect();
    let columns = [
        column("KIND", "kind"),
        column("NAME", "name"),
        column("TIER", "tier"),
        number("CREDITS", "credits"),
        number("PRICE", "price"),
        column("SOLD BY", "sold_by"),
    ];
    print_line(table(&columns, &rows))?;
    for warning in catalog.warnings().into_iter().chain(warnings(catalog, &entries)) {
        print_line(format_args!("warning  {warning}"))?;
    }
    Ok(())
}

fn sold_by(sold_as: &SoldAs) -> String {
    let price = |count: usize| if count == 1 { "price" } else { "prices" };
    let count =
        |names: &[String]| (!names.is_empty()).then(|| format!("{} {}", names.len(), price(names.len())));
    let names =
        |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")));
    let parts = [
        count(&sold_as.prices),
        names("key", &sold_as.lookup_keys),
        names("product", &sold_as.stripe_products),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn warnings(catalog: &Catalog, entries: &[Entry]) -> Vec<String> {
    let mut warnings = Vec::new();
    for plan in catalog.plans.iter().filter(|plan| plan.rank <= catalog.default_rank()) {
        warnings.push(format!(
            "plan \"{}\" gives tier \"{}\", which does not rank above the default tier",
            plan.name, plan.tier
        ));
    }
    for entry in entries {
        for price in entry.prices().iter().filter(|price| price.starts_with("prod_")) {
            warnings.push(format!("{entry}: {price} is a product of Stripe; name it in stripe_products"));
        }
        if let Some(missing) = entry.incomplete_price() {
            warnings.push(format!("{entry} has an amount and no {missing}; `push --stripe` leaves it alone"));
        }
    }
    for order in &catalog.orders {
        for name in order.plans.iter().filter(|(_, plan)| plan.prices.is_empty()).map(|(name, _)| name) {
            warnings.push(format!(
                "order \"{}\": plan \"{name}\" has no prices, so POST /checkout-sessions cannot sell it",
                order.mode
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n\
        [[plan]]\nname = \"pro\"\ntier = \"pro\"\ncredits = 5000\nprices = [\"price_a\"]\n\
        [[pack]]\nname = \"p\"\ncredits = 10\nprices = [\"price_b\"]\n";

    fn lines(text: &str) -> Vec<usize> {
        read(text).map_or_else(|errors| errors.iter().map(|error| error.line).collect(), |_| Vec::new())
    }

    #[test]
    fn each_section_shows_its_first_error() {
        assert!(lines(GOOD).is_empty());
        let wrong =
            GOOD.replace("tier = \"pro\"\n", "tier = \"gold\"\n").replace("credits = 10", "credits = -1");
        assert_eq!(lines(&wrong), [8, 13]);
        let features = "[features]\nsso = \"switch\"\n".to_owned()
            + &wrong.replace("[[pack]]", "[plan.features]\nsso = true\n[[pack]]");
        assert_eq!(lines(&features), [10, 17], "a table inside a plan belongs to the plan");
        assert_eq!(lines(&wrong.replace("pro = 1", "pro = -1")), [3], "the rest depends on the tiers");
        assert_eq!(lines(&GOOD.replace("credits = 5000", "credits = ")), [9], "the syntax is wrong");
        assert_eq!(lines(&GOOD.replace("[tiers]\n", "")), [1]);
    }

    #[test]
    fn every_value_to_fill_in_is_an_error_with_its_line() {
        let blank = GOOD
            .replace("pro = 1", "pro = \"FILL_IN\"")
            .replace(
                "tier = \"pro\"\ncredits = 5000",
                "tier = \"FILL_IN\"\ncredits = \"FILL_IN\" # of a period",
            )
            .replace("credits = 10", "credits = -1 # FILL_IN is a comment");
        assert_eq!(lines(&blank), [3, 8, 9, 13]);
        assert!(Catalog::parse(&blank).is_err());
    }

    #[test]
    fn what_may_surprise_is_a_warning() {
        let text =
            GOOD.replace("tier = \"pro\"\n", "tier = \"free\"\namount = 2000\n").replace("price_b", "prod_b")
                + "[[order]]\nmode = \"dfy\"\nplans = { starter = {} }\n";
        let catalog = Catalog::parse(&text).unwrap();
        let warnings = warnings(&catalog, &entries(&text).unwrap());
        let [tier, amount, product, order] = warnings.as_slice() else { panic!("{warnings:?}") };
        assert!(tier.contains("plan \"pro\" gives tier \"free\""), "{tier}");
        assert!(amount.contains("no lookup_keys, currency and interval"), "{amount}");
        assert!(product.contains("pack \"p\": prod_b"), "{product}");
        assert!(order.contains("plan \"starter\" has no prices"), "{order}");
    }
}
