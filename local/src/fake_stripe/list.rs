//! Lists: filters, order and pages.

use serde_json::Value;

use super::objects::{ListQuery, ListStart};
use super::request::{Params, StripeError, all, get};
use super::{State, Stored};

/// Parameters of every list.
const PAGING: [&str; 4] = ["limit", "starting_after", "ending_before", "expand[]"];
const CREATED: [&str; 5] = ["created", "created[gt]", "created[gte]", "created[lt]", "created[lte]"];

/// The filters of the list of a kind, besides time and paging.
pub(super) fn filters(kind: &str) -> &'static [&'static str] {
    match kind {
        "subscription" => &["status", "customer", "price"],
        "invoice" => &["status", "customer", "subscription"],
        "checkout.session" => &["status", "customer", "subscription", "payment_intent"],
        "event" => &["type", "types[]", "delivery_success"],
        "invoice_payment" => &["status", "invoice", "payment[type]", "payment[payment_intent]"],
        "customer" => &["email"],
        "price" => &["lookup_keys[]", "active", "product"],
        "product" => &["active"],
        "billing_portal.configuration" => &["active", "is_default"],
        "refund" | "charge" | "dispute" => &["charge", "payment_intent", "customer"],
        _ => &[],
    }
}

/// Refuses unknown parameters, as Stripe does.
pub(super) fn check(params: &Params, filters: &[&str], has_created: bool) -> Result<(), StripeError> {
    let known = |name: &str| {
        PAGING.contains(&name) || filters.contains(&name) || (has_created && CREATED.contains(&name))
    };
    match params.iter().find(|(name, _)| !known(name)) {
        Some((name, _)) => {
            Err(StripeError::bad("parameter_unknown", name, format!("Received unknown parameter: {name}")))
        }
        None if all(params, "types[]").len() > 20 => Err(StripeError::bad(
            "parameter_invalid",
            "types",
            "You can filter by at most 20 types".to_owned(),
        )),
        None if all(params, "lookup_keys[]").len() > 10 => Err(StripeError::bad(
            "parameter_invalid",
            "lookup_keys",
            "You can specify at most 10 lookup_keys".to_owned(),
        )),
        None => Ok(()),
    }
}

/// Whether an object matches the filters.
pub(super) fn matches_all(stored: &Stored, params: &Params) -> bool {
    let value = &stored.value;
    let created = |name: &str| get(params, name).map(|time| time.parse::<i64>().unwrap_or_default());
    let at = stored.place.0;
    let in_time = created("created").is_none_or(|time| at == time)
        && created("created[gt]").is_none_or(|time| at > time)
        && created("created[gte]").is_none_or(|time| at >= time)
        && created("created[lt]").is_none_or(|time| at < time)
        && created("created[lte]").is_none_or(|time| at <= time);
    in_time
        && params.iter().all(|(name, wanted)| matches(stored, value, name, wanted, params))
        && (stored.kind != "subscription" || get(params, "status").is_some() || value["status"] != "canceled")
}

fn matches(stored: &Stored, value: &Value, name: &str, wanted: &str, params: &Params) -> bool {
    match name {
        "status" if stored.kind == "subscription" => match wanted {
            "all" => true,
            "ended" => value["status"] == "canceled" || value["status"] == "incomplete_expired",
            status => value["status"] == status,
        },
        "status" | "customer" | "charge" | "payment_intent" | "email" | "invoice" | "product" => {
            value[name] == wanted
        }
        "active" | "is_default" => value[name] == (wanted == "true"),
        "subscription" => {
            let ids = [&value["subscription"], &value["parent"]["subscription_details"]["subscription"]];
            ids.into_iter().any(|id| id == wanted)
        }
        "price" => value["items"]["data"]
            .as_array()
            .is_some_and(|items| items.iter().any(|item| item["price"]["id"] == wanted)),
        "lookup_keys[]" => all(params, name).iter().any(|key| value["lookup_key"] == **key),
        "payment[type]" => value["payment"]["type"] == wanted,
        "payment[payment_intent]" => value["payment"]["payment_intent"] == wanted,
        "type" => value["type"] == wanted,
        "types[]" => all(params, name).iter().any(|kind| value["type"] == **kind),
        "delivery_success" => stored.delivered.to_string() == wanted,
        _ => true,
    }
}

/// A page of entries that are in Stripe's order, newest first, and whether there are more.
pub(super) fn page<T>(
    entries: Vec<T>,
    params: &Params,
    id: impl Fn(&T) -> String,
    what: &str,
) -> Result<(Vec<T>, bool), StripeError> {
    let limit = limit(params)?;
    let place = |name: &str| -> Result<Option<usize>, StripeError> {
        let Some(wanted) = get(params, name) else { return Ok(None) };
        let found = entries.iter().position(|entry| id(entry) == wanted);
        found.map(Some).ok_or_else(|| StripeError::missing_place(name, what, wanted))
    };
    let (start, end, has_more) = match (place("starting_after")?, place("ending_before")?) {
        (Some(_), Some(_)) => return Err(StripeError::both_cursors()),
        (_, Some(before)) => (before.saturating_sub(limit), before, before > limit),
        (after, None) => {
            let start = after.map_or(0, |place| place + 1);
            let end = entries.len().min(start + limit);
            (start, end, end < entries.len())
        }
    };
    Ok((entries.into_iter().skip(start).take(end - start).collect(), has_more))
}

/// A page of the objects of a kind, newest first, and whether there are more. The object of a cursor need not
/// match the filters.
pub(super) fn objects(
    state: &State,
    kind: &str,
    params: &Params,
) -> Result<(Vec<Stored>, bool), StripeError> {
    let limit = limit(params)?;
    let place = |name: &str| -> Result<Option<(i64, i64)>, StripeError> {
        let Some(wanted) = get(params, name) else { return Ok(None) };
        let found = state.objects.get(wanted).filter(|stored| stored.kind == kind && state.is_kept(stored));
        found.map(|stored| Some(stored.place)).ok_or_else(|| StripeError::missing_place(name, kind, wanted))
    };
    let (after, before) = (place("starting_after")?, place("ending_before")?);
    let time = |name: &str| get(params, name).map(|time| time.parse::<i64>().unwrap_or_default());
    let subject = if kind == "invoice_payment" { "invoice" } else { "customer" };
    let mut query = ListQuery::of(kind);
    query.subject = get(params, subject);
    query.delivered = get(params, "delivery_success").map(|wanted| wanted == "true");
    for name in ["created", "created[gt]", "created[gte]"] {
        query.within.0 = time(name).map_or(query.within.0, |time| query.within.0.max(time));
    }
    for name in ["created", "created[lt]", "created[lte]"] {
        query.within.1 = time(name).map_or(query.within.1, |time| query.within.1.min(time));
    }
    query.from = match (after, before) {
        (Some(_), Some(_)) => return Err(StripeError::both_cursors()),
        (Some(place), None) => ListStart::Before(place),
        (None, Some(place)) => ListStart::After(place),
        (None, None) => query.from,
    };
    let (mut page, mut has_more) = (Vec::new(), false);
    state.objects.visit(&query, |stored| {
        if state.is_kept(&stored) && matches_all(&stored, params) {
            has_more = page.len() == limit;
            if !has_more {
                page.push(stored);
            }
        }
        !has_more
    });
    if before.is_some() {
        page.reverse();
    }
    Ok((page, has_more))
}

fn limit(params: &Params) -> Result<usize, StripeError> {
    match get(params, "limit").map(str::parse::<usize>) {
        None => Ok(10),
        Some(Ok(limit @ 1..=100)) => Ok(limit),
        Some(_) => Err(StripeError::bad(
            "parameter_invalid_integer",
            "limit",
            "Invalid integer: limit must be 1 to 100".to_owned(),
        )),
    }
}
