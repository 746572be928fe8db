//! The parameters that Stripe's API has, from `tests/data/stripe_requests.json`: a request with an unknown
//! name, a value of another type, or without a required parameter is refused.

use std::sync::LazyLock;

use serde_json::Value;

use super::request::{StripeError, parse};

/// By path: the parameters of a `POST`, in the notation that the file describes.
static REQUESTS: LazyLock<Value> = LazyLock::new(|| {
    let file = include_str!("../../../tests/data/stripe_requests.json");
    let mut file: Value = serde_json::from_str(file).expect("the file is JSON");
    file["requests"].take()
});

/// Checks the form of a `POST`. A path that the file does not describe accepts every form.
pub(super) fn check(path: &str, form: &str, nested: &Value) -> Result<(), StripeError> {
    let described = match path.strip_prefix("customers/") {
        Some(_) => "/v1/customers/{customer}".to_owned(),
        None => format!("/v1/{path}"),
    };
    let Some(parameters) = REQUESTS.get(&described) else { return Ok(()) };
    for (name, value) in parse(form) {
        let mut kind = Some(parameters);
        for part in name.split('[').map(|part| part.trim_end_matches(']')) {
            kind = kind.and_then(|kind| inside(kind, part));
        }
        let Some(kind) = kind else {
            let message = format!("Received unknown parameter: {name}");
            return Err(StripeError::bad("parameter_unknown", &name, message));
        };
        if !has_type(kind, &value) {
            let message = format!("Invalid {name}: {value:?} is not {kind}");
            return Err(StripeError::bad("parameter_invalid", &name, message));
        }
    }
    check_required(parameters, nested, "")
}

/// The description of a named parameter, or of an entry of a list.
fn inside<'a>(kind: &'a Value, part: &str) -> Option<&'a Value> {
    if kind == "object" {
        return Some(kind);
    }
    if let Some(entry) = kind.as_array() {
        return entry.first().filter(|_| part.bytes().all(|byte| byte.is_ascii_digit()));
    }
    let named = kind.as_object()?;
    named.get(part).or_else(|| named.get(&format!("{part}!"))).or_else(|| named.get("*"))
}

fn has_type(kind: &Value, value: &str) -> bool {
    // An empty value removes what is set.
    let Some(kinds) = kind.as_str() else { return value.is_empty() };
    value.is_empty()
        || kinds.split('|').any(|kind| match kind {
            "string" | "object" => true,
            "integer" => value.parse::<i64>().is_ok(),
            "number" => value.parse::<f64>().is_ok(),
            "boolean" => value == "true" || value == "false",
            name => name == value,
        })
}

fn check_required(kind: &Value, value: &Value, at: &str) -> Result<(), StripeError> {
    match (kind, value) {
        (Value::Object(named), Value::Object(_)) => named.iter().try_for_each(|(name, kind)| {
            let plain = name.trim_end_matches('!');
            let at = if at.is_empty() { plain.to_owned() } else { format!("{at}[{plain}]") };
            if name.ends_with('!') && value[plain].is_null() {
                let message = format!("Missing required param: {at}.");
                return Err(StripeError::bad("parameter_missing", &at, message));
            }
            check_required(kind, &value[plain], &at)
        }),
        (Value::Array(kind), Value::Array(entries)) => entries
            .iter()
            .enumerate()
            .try_for_each(|(place, entry)| check_required(&kind[0], entry, &format!("{at}[{place}]"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::checkout::nested;
    use super::*;

    fn refused(path: &str, form: &str) -> Option<String> {
        let error = check(path, form, &nested(form)).err()?.error;
        Some(format!("{} {}", error["code"].as_str().unwrap(), error["param"].as_str().unwrap()))
    }

    #[test]
    fn unknown_badly_typed_and_missing_parameters_are_refused() {
        let session = "checkout/sessions";
        let portal = "billing_portal/sessions";
        for (path, form, expected) in [
            (
                session,
                "mode=payment&line_items[0][price]=p&metadata[any]=x&payment_method_options[card]=x",
                None,
            ),
            (session, "mode=pay", Some("parameter_invalid mode")),
            (session, "trial=true", Some("parameter_unknown trial")),
            (session, "line_items[0][count]=1", Some("parameter_unknown line_items[0][count]")),
            (session, "line_items[a][price]=p", Some("parameter_unknown line_items[a][price]")),
            (session, "line_items[0][quantity]=1.5", Some("parameter_invalid line_items[0][quantity]")),
            (session, "automatic_tax[enabled]=yes", Some("parameter_invalid automatic_tax[enabled]")),
            (
                session,
                "automatic_tax[liability][type]=self",
                Some("parameter_missing automatic_tax[enabled]"),
            ),
            (session, "automatic_tax=true", Some("parameter_invalid automatic_tax")),
            (portal, "customer=cus_1&flow_data[type]=home", Some("parameter_invalid flow_data[type]")),
            (portal, "return_url=u", Some("parameter_missing customer")),
            ("customers", "email=a@b&metadata[user_id]=u", None),
            ("customers/cus_1", "email=", None),
            ("customers/cus_1", "created=1", Some("parameter_unknown created")),
            ("webhook_endpoints", "anything=1", None),
        ] {
            assert_eq!(refused(path, form).as_deref(), expected, "{form}");
        }
    }
}
