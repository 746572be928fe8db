//! Events of other products on the same Stripe account, by the `[[ignore]]` rules of the catalog.

use serde_json::Value;

use crate::catalog::{Catalog, IgnoreRule};

/// Whether an event is another product's: a rule matches every line and object in it, and none of its prices
/// is known to the catalog.
pub fn is_foreign(payload: &[u8], catalog: &Catalog) -> bool {
    if catalog.ignore.is_empty() {
        return false;
    }
    let Ok(event) = serde_json::from_slice::<Value>(payload) else { return false };
    let object = &event["data"]["object"];
    let lines: Vec<&Value> = ["lines", "items", "line_items"]
        .iter()
        .filter_map(|list| object[*list]["data"].as_array())
        .flatten()
        .collect();
    let known = |line: &&Value| {
        let lookup_key = line["price"]["lookup_key"].as_str();
        price(line).is_some_and(|price| !matches!(catalog.offer(price, lookup_key, product(line)), Ok(None)))
    };
    if lines.iter().any(known) {
        return false;
    }
    catalog.ignore.iter().any(|rule| matches(rule, &event, object, &lines))
}

fn matches(rule: &IgnoreRule, event: &Value, object: &Value, lines: &[&Value]) -> bool {
    let is = |wanted: &Option<String>, found: &Value| {
        wanted.as_ref().is_none_or(|wanted| found.as_str() == Some(wanted.as_str()))
    };
    let of_lines = |wanted: &Option<String>, part: fn(&Value) -> Option<&str>| {
        wanted.as_ref().is_none_or(|wanted| {
            !lines.is_empty() && lines.iter().all(|line| part(line) == Some(wanted.as_str()))
        })
    };
    let metadata = |(key, value): (&String, &String)| {
        let places = [
            &object["metadata"],
            &object["parent"]["subscription_details"]["metadata"],
            &object["subscription_details"]["metadata"],
        ];
        let on_object = places.iter().any(|place| place[key] == value.as_str());
        on_object || (!lines.is_empty() && lines.iter().all(|line| line["metadata"][key] == value.as_str()))
    };
    is(&rule.account, &event["account"])
        && is(&rule.context, &event["context"])
        && of_lines(&rule.price, price)
        && of_lines(&rule.product, product)
        && rule.metadata.iter().all(metadata)
}

/// The id of a line's or item's price, in both shapes.
fn price(line: &Value) -> Option<&str> {
    let pricing = &line["pricing"]["price_details"]["price"];
    [pricing, &pricing["id"], &line["price"]["id"], &line["price"], &line["plan"]["id"]]
        .into_iter()
        .find_map(Value::as_str)
}

fn product(line: &Value) -> Option<&str> {
    [&line["pricing"]["price_details"]["product"], &line["price"]["product"], &line["plan"]["product"]]
        .into_iter()
        .find_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CATALOG: &str = "[tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n\
        [[plan]]\nname = \"pro\"\ntier = \"pro\"\ncredits = 10\nprices = [\"price_pro\"]\n";

    #[test]
    fn an_event_is_foreign_only_if_all_of_it_matches_and_no_line_is_known() {
        let other = json!({"pricing": {"price_details": {"price": "price_other", "product": "prod_other"}}});
        let pro = json!({"price": {"id": "price_pro"}});
        let invoice =
            |lines: Value| json!({"data": {"object": {"lines": {"data": lines}, "metadata": {"app": "b"}}}});
        let rows = [
            ("price = \"price_other\"", invoice(json!([other])), true),
            ("price = \"price_other\"", invoice(json!([other, pro])), false),
            ("price = \"price_other\"", invoice(json!([])), false),
            ("product = \"prod_other\"", invoice(json!([other])), true),
            ("metadata = { app = \"b\" }", invoice(json!([other])), true),
            ("metadata = { app = \"b\" }", invoice(json!([pro])), false),
            ("metadata = { app = \"c\" }", invoice(json!([other])), false),
            ("metadata = { app = \"c\" }", invoice(json!([])), false),
            ("metadata = { app = \"c\" }", invoice(json!([{"metadata": {"app": "c"}}])), true),
            ("account = \"acct_1\"", json!({"account": "acct_1", "data": {"object": {}}}), true),
            ("context = \"a/b\"", json!({"context": "a/b", "data": {"object": {}}}), true),
            ("context = \"a/b\"", json!({"context": "a/c", "data": {"object": {}}}), false),
            ("context = \"a\"", json!({"context": "a/b", "data": {"object": {}}}), false),
            ("context = \"a\"", json!({"context": null, "data": {"object": {}}}), false),
        ];
        for (rule, event, foreign) in rows {
            let catalog = Catalog::parse(&format!("{CATALOG}[[ignore]]\n{rule}\n")).unwrap();
            assert_eq!(is_foreign(event.to_string().as_bytes(), &catalog), foreign, "{rule}: {event}");
        }
    }
}
