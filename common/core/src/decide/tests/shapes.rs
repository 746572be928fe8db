//! Objects in the shapes that Stripe sends, and [`check_life`], which plays a life in several orders and in
//! both API shapes.
//!
//! Events are written in the shape of 2025-03-31.basil and later: items have their own periods, lines name
//! their item under `parent`, an invoice names no payment and `invoice_payment.paid` ties it.
//! [`before_basil`] rewrites them into the older shape.

use serde_json::{Value, json};

use super::{MONTH, Run, Step, event, patched, session};
use crate::account::Lot;

pub const DAY: i64 = 86_400;
/// 365 days.
pub const YEAR: i64 = 365 * DAY;
/// Start of the first period.
pub const T: i64 = 1_760_000_000;

/// A subscription item in a period.
pub fn item(id: &str, price: &str, start: i64, end: i64) -> Value {
    seats(id, price, 1, start, end)
}

/// A subscription item with a quantity.
pub fn seats(id: &str, price: &str, quantity: u64, start: i64, end: i64) -> Value {
    let amount = if price.starts_with("price_free") { 0 } else { 2000 };
    json!({
        "id": id, "object": "subscription_item", "quantity": quantity,
        "price": {"id": price, "object": "price", "type": "recurring", "unit_amount": amount},
        "current_period_start": start, "current_period_end": end,
    })
}

/// A `customer.subscription.updated` of `sub_1` that shows these items.
pub fn shows(created: i64, status: &str, items: &[Value]) -> Step {
    shows_with(created, status, items, json!({}))
}

/// The same with a patch; a patched `id` names another subscription.
pub fn shows_with(created: i64, status: &str, items: &[Value], patch: Value) -> Step {
    let base = json!({
        "id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status,
        "items": {"object": "list", "has_more": false, "data": items}, "metadata": {"user_id": "user_1"},
        "cancel_at_period_end": false, "cancel_at": null, "collection_method": "charge_automatically",
    });
    let kind = if status == "canceled" { "deleted" } else { "updated" };
    let ended = if status == "canceled" { json!({"ended_at": created}) } else { json!({}) };
    let object = patched(patched(base, &ended), &patch);
    event(&format!("customer.subscription.{kind}"), created, &object, Some(&json!({}))).into()
}

/// An ordinary line for a period of an item.
pub fn line(item: &str, price: &str, amount: i64, start: i64, end: i64) -> Value {
    json!({
        "id": format!("il_{item}_{price}_{start}_{amount}"), "object": "line_item",
        "amount": amount, "quantity": 1, "period": {"start": start, "end": end},
        "metadata": {"user_id": "user_1"},
        "parent": {"type": "subscription_item_details", "subscription_item_details": {
            "subscription": "sub_1", "subscription_item": item, "invoice_item": null, "proration": false,
        }},
        "pricing": {"type": "price_details", "price_details": {"price": price}},
    })
}

/// A proration line of an item.
pub fn flagged(item: &str, price: &str, amount: i64, start: i64, end: i64) -> Value {
    let details = json!({"invoice_item": "ii_1", "proration": true});
    patched(line(item, price, amount, start, end), &json!({"parent": {"subscription_item_details": details}}))
}

/// A line with a quantity.
pub fn times(quantity: u64, line: Value) -> Value {
    patched(line, &json!({"quantity": quantity}))
}

/// A line of a one-time price.
pub fn once(price: &str, amount: i64) -> Value {
    json!({
        "id": format!("il_{price}"), "object": "line_item", "amount": amount, "quantity": 1,
        "period": {"start": T, "end": T}, "metadata": {},
        "parent": {"type": "invoice_item_details", "invoice_item_details": {
            "invoice_item": "ii_2", "proration": false,
        }},
        "pricing": {"type": "price_details", "price_details": {"price": price}},
    })
}

/// `invoice.paid` of `sub_1`; the total is the sum of the lines.
pub fn bill(created: i64, id: &str, reason: &str, lines: &[Value]) -> Step {
    bill_with(created, id, reason, lines, json!({}))
}

/// The same with a patch.
pub fn bill_with(created: i64, id: &str, reason: &str, lines: &[Value], patch: Value) -> Step {
    let total: i64 = lines.iter().filter_map(|line| line["amount"].as_i64()).sum();
    let base = json!({
        "id": id, "object": "invoice", "customer": "cus_1", "status": "paid", "billing_reason": reason,
        "amount_paid": total.max(0), "total": total, "currency": "usd", "created": created,
        "lines": {"object": "list", "data": lines, "has_more": false},
        "parent": {"type": "subscription_details", "quote_details": null, "subscription_details": {
            "subscription": "sub_1", "metadata": {"user_id": "user_1"},
        }},
    });
    event("invoice.paid", created, &patched(base, &patch), None).into()
}

/// `invoice_payment.paid`: `pi_<invoice>` paid the invoice.
pub fn tie(created: i64, invoice: &str) -> Step {
    tie_by(created, invoice, &format!("pi_{invoice}"))
}

/// The same for a payment with another id.
pub fn tie_by(created: i64, invoice: &str, payment: &str) -> Step {
    let object = json!({
        "id": format!("inpay_{invoice}"), "object": "invoice_payment", "invoice": invoice, "status": "paid",
        "payment": {"type": "payment_intent", "payment_intent": payment},
    });
    event("invoice_payment.paid", created, &object, None).into()
}

/// A pack by a session with `invoice_creation`: one purchase of two documents. Returns also the payment's id.
pub fn pack_with_invoice(now: i64, session_patch: Value) -> ([Step; 3], String) {
    let (session_id, invoice) = (format!("cs_{now}"), format!("in_of_{now}"));
    let payment = format!("pi_{session_id}");
    let lines = [once("price_p1000", 2000)];
    let events = [
        session("completed", now, &session_id, json!({"pack": "p1000"}), session_patch),
        bill_with(now + 4, &invoice, "manual", &lines, json!({"parent": null})),
        tie_by(now + 5, &invoice, &payment),
    ];
    (events, payment)
}

/// The events of a subscription `sub_<number>` for a month of `pro`: its state, its paid invoice, the
/// payment, and its end three days later.
pub fn another_subscription(number: i64, start: i64) -> [Step; 4] {
    let (id, of, invoice) = (format!("sub_{number}"), format!("si_of_{number}"), format!("in_{number}"));
    let end = month(start);
    let items = [item(&of, "price_pro", start, end)];
    let parent = json!({"parent": {"subscription_item_details": {"subscription": id}}});
    let line = patched(line(&of, "price_pro", 2000, start, end), &parent);
    let bills = json!({"parent": {"subscription_details": {"subscription": id}}});
    [
        shows_with(start, "active", &items, json!({"id": id})),
        bill_with(start + 1, &invoice, "subscription_create", &[line], bills),
        tie(start + 1, &invoice),
        shows_with(start + 3 * DAY, "canceled", &items, json!({"id": id})),
    ]
}

/// The shape before 2025-03-31.basil. `None` if that shape cannot express the event: items with different
/// periods.
pub fn before_basil(steps: &[Step]) -> Option<Vec<Step>> {
    let ties: Vec<(String, String)> = steps
        .iter()
        .filter_map(|step| if let Step::Event(event) = step { Some(event) } else { None })
        .filter(|event| event["type"] == "invoice_payment.paid")
        .map(|event| {
            let object = &event["data"]["object"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&object["invoice"]), text(&object["payment"]["payment_intent"]))
        })
        .collect();
    let mut old = Vec::new();
    for step in steps {
        let Step::Event(event) = step else {
            old.push(step.clone());
            continue;
        };
        let mut event = event.clone();
        let object = &mut event["data"]["object"];
        match object["object"].as_str().unwrap_or_default() {
            "subscription" => old_subscription(object)?,
            "invoice" => old_invoice(object, &ties),
            "charge" => {
                let paid = ties.iter().find(|(_, payment)| object["payment_intent"] == payment.as_str());
                if let Some((invoice, _)) = paid {
                    object["invoice"] = json!(invoice);
                }
            }
            "invoice_payment" => continue,
            _ => {}
        }
        old.push(Step::Event(event));
    }
    Some(old)
}

fn old_subscription(object: &mut Value) -> Option<()> {
    let items = object["items"]["data"].as_array_mut()?;
    let period = |item: &Value| (item["current_period_start"].clone(), item["current_period_end"].clone());
    let first = items.first().map(period)?;
    if items.iter().any(|item| period(item) != first) {
        return None;
    }
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("current_period_start");
        item.remove("current_period_end");
    }
    (object["current_period_start"], object["current_period_end"]) = first;
    Some(())
}

fn old_invoice(object: &mut Value, ties: &[(String, String)]) {
    let details = object["parent"]["subscription_details"].clone();
    for line in object["lines"]["data"].as_array_mut().into_iter().flatten() {
        let of_item = line["parent"]["subscription_item_details"].clone();
        let proration = of_item["proration"].as_bool().unwrap_or(false);
        let is_subscription = of_item.is_object() && !proration;
        line["type"] = json!(if is_subscription { "subscription" } else { "invoiceitem" });
        line["price"] = json!({"id": line["pricing"]["price_details"]["price"], "object": "price"});
        line["proration"] = json!(proration);
        for name in ["subscription", "subscription_item"] {
            line[name] = of_item[name].clone();
        }
        if let Some(line) = line.as_object_mut() {
            line.remove("parent");
            line.remove("pricing");
        }
    }
    object["subscription"] = details["subscription"].clone();
    object["subscription_details"] = json!({"metadata": details["metadata"]});
    object["paid"] = json!(object["status"] == "paid");
    let paid = ties.iter().find(|(invoice, _)| object["id"] == invoice.as_str());
    if let Some((_, payment)) = paid {
        object["payment_intent"] = json!(payment);
    }
    if let Some(object) = object.as_object_mut() {
        object.remove("parent");
    }
}

/// Plays a life and compares the end: `tier credits | buckets`.
///
/// Spends and edits of the catalog keep their place. The events between two of them arrive as written,
/// reversed, doubled and shuffled, in both API shapes. At the end no event may be parked.
#[track_caller]
pub fn check_life(what: &str, given: &[Step], expect: &str) {
    let later = look_at(&Run::of(given));
    for (shape, steps) in [("basil", Some(given.to_vec())), ("before basil", before_basil(given))] {
        let Some(steps) = steps else { continue };
        for order in 0..8 {
            let run = Run::of(&reordered(&steps, order));
            assert_eq!(end(&run), expect, "{what}, {shape}, order {order}: {}", run.summary());
            assert_eq!(look_at(&run), later, "{what}, {shape}, order {order}: access later");
            let parked: Vec<_> =
                run.parked.iter().map(|(event, why)| (event.kind.clone(), why.code())).collect();
            assert!(parked.is_empty(), "{what}, {shape}, order {order}: {parked:?}");
        }
    }
}

/// Tier, end of access, balance and buckets: `pro until 1767600000 5000 | si_1=5000 addon=1000`.
pub fn end(run: &Run) -> String {
    let state = &run.account.state;
    let all = state.buckets(&run.catalog.policy, run.now);
    let access = state.access(&run.catalog, run.now);
    let until = access.until.map_or_else(String::new, |until| format!(" until {}", written(until.unix())));
    let mut buckets = Vec::new();
    for one in &all.lots {
        let name = match &one.lot {
            Lot::Item(_, item) => item.to_string(),
            Lot::Carry(_, item, _) => format!("carried:{item}"),
            Lot::Lifetime(_) => "life".to_owned(),
            Lot::Signup => "signup".to_owned(),
            Lot::Opening => "opening".to_owned(),
            Lot::Grant(_) => "grant".to_owned(),
            Lot::Pack(_) => "pack".to_owned(),
        };
        buckets.push(format!("{name}={}", one.left));
    }
    buckets.sort();
    format!("{}{until} {} | {}", access.tier, all.balance(), buckets.join(" "))
}

/// A time as `T+<days>d<seconds>`, which is easier to compare than a timestamp.
fn written(at: i64) -> String {
    let (days, seconds) = ((at - T).div_euclid(DAY), (at - T).rem_euclid(DAY));
    if seconds == 0 { format!("day {days}") } else { format!("day {days} +{seconds}s") }
}

/// The tier at later times.
fn look_at(run: &Run) -> Vec<String> {
    let later = |days: i64| run.account.state.access(&run.catalog, run.now.plus_days(days)).tier;
    [1, 5, 12, 35, 400].into_iter().map(later).collect()
}

pub fn reordered(steps: &[Step], order: u64) -> Vec<Step> {
    let mut all = Vec::new();
    for part in steps.chunk_by(|a, b| matches!((a, b), (Step::Event(_), Step::Event(_)))) {
        let mut part = part.to_vec();
        if matches!(part.first(), Some(Step::Event(_))) {
            match order {
                0 => {}
                1 => part.reverse(),
                2 => part = part.iter().rev().flat_map(|step| [step.clone(), step.clone()]).collect(),
                _ => shuffle(&mut part, order),
            }
        }
        all.extend(part);
    }
    all
}

/// Shuffles with a fixed sequence. Every third event arrives twice.
fn shuffle(part: &mut Vec<Step>, seed: u64) {
    let again: Vec<Step> = part.iter().step_by(3).cloned().collect();
    part.extend(again);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for place in (1..part.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from((state >> 33) % (u64::try_from(place).unwrap() + 1)).unwrap();
        part.swap(place, other);
    }
}

/// The period of one month from a start.
pub fn month(start: i64) -> i64 {
    start + MONTH
}
