//! Stripe's objects as JSON, in the shapes of old and new API versions.

use serde_json::{Map, Value, json};

use super::Shape;

/// The Stripe product of all prices.
const PRODUCT: &str = "prod_life";

/// A subscription at Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub id: String,
    pub customer: String,
    pub status: &'static str,
    /// Price and quantity of each item. One of them is the plan's.
    pub items: Vec<(String, u64)>,
    pub start: i64,
    pub end: i64,
    pub cancel_at: Option<i64>,
    pub at_period_end: bool,
    pub canceled_at: Option<i64>,
    pub ended_at: Option<i64>,
    pub trial: Option<(i64, i64)>,
    pub latest_invoice: Option<String>,
    pub user: Option<String>,
    pub created: i64,
}

/// An invoice at Stripe.
#[derive(Clone, Debug)]
pub(super) struct Invoice {
    pub id: String,
    pub customer: String,
    pub subscription: String,
    pub reason: &'static str,
    pub lines: Vec<Line>,
    pub paid: i64,
    pub currency: &'static str,
    /// Payment intent and charge, if money moved.
    pub payment: Option<(String, String)>,
    pub user: Option<String>,
    /// Whether the new shape shows `payments`, as Stripe does when it is expanded.
    pub shows_payment: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub price: String,
    pub quantity: u64,
    pub amount: i64,
    pub kind: LineKind,
    /// The place of its subscription item.
    pub item: usize,
    pub start: i64,
    pub end: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineKind {
    /// A whole period of a subscription item.
    Period,
    /// Part of a period, because of a change in it.
    Proration,
    /// A one-time item beside the subscription.
    Once,
}

fn metadata(user: Option<&String>) -> Value {
    user.map_or_else(|| json!({}), |user| json!({"user_id": user}))
}

pub(super) fn subscription(it: &Subscription, shape: Shape) -> Value {
    let items: Vec<Value> = it.items.iter().enumerate().map(|(index, _)| item(it, index, shape)).collect();
    let mut object = json!({
        "id": it.id,
        "object": "subscription",
        "customer": it.customer,
        "status": it.status,
        "created": it.created,
        "items": {"object": "list", "data": items, "has_more": false},
        "cancel_at": it.cancel_at,
        "cancel_at_period_end": it.at_period_end,
        "canceled_at": it.canceled_at,
        "cancellation_details": {"comment": null, "feedback": null, "reason": null},
        "collection_method": "charge_automatically",
        "days_until_due": null,
        "ended_at": it.ended_at,
        "pause_collection": null,
        "test_clock": null,
        "trial_start": it.trial.map(|trial| trial.0),
        "trial_end": it.trial.map(|trial| trial.1),
        "latest_invoice": it.latest_invoice,
        "metadata": metadata(it.user.as_ref()),
    });
    if shape == Shape::Old {
        object["current_period_start"] = json!(it.start);
        object["current_period_end"] = json!(it.end);
        if let [(price, quantity)] = it.items.as_slice() {
            object["plan"] = plan(price);
            object["quantity"] = json!(quantity);
        }
    }
    object
}

fn item(it: &Subscription, index: usize, shape: Shape) -> Value {
    let (price, quantity) = &it.items[index];
    item_of(&item_id(&it.id, index), &it.id, price, *quantity, (it.start, it.end), shape)
}

/// An item of a subscription, with its period.
pub(super) fn item_of(
    id: &str,
    subscription: &str,
    sold_as: &str,
    quantity: u64,
    (start, end): (i64, i64),
    shape: Shape,
) -> Value {
    let mut item = json!({
        "id": id,
        "object": "subscription_item",
        "plan": plan(sold_as),
        "price": price(sold_as),
        "quantity": quantity,
        "subscription": subscription,
    });
    if shape == Shape::New {
        item["current_period_start"] = json!(start);
        item["current_period_end"] = json!(end);
    }
    item
}

/// A price, as items and old invoice lines embed it. Nothing depends on the amount, except that it is not 0.
fn price(id: &str) -> Value {
    json!({"id": id, "object": "price", "lookup_key": null, "product": PRODUCT, "unit_amount": 1900})
}

/// The plan that Stripe shows beside a price.
fn plan(id: &str) -> Value {
    json!({"id": id, "object": "plan", "amount": 1900, "product": PRODUCT})
}

/// The id of a subscription's item, by its place.
fn item_id(subscription: &str, place: usize) -> String {
    format!("si_{subscription}_{place}")
}

/// The attributes of `before` that differ in `after`, as `previous_attributes` names them.
pub(super) fn previous(before: &Subscription, after: &Subscription, shape: Shape) -> Value {
    let (was, is) = (subscription(before, shape), subscription(after, shape));
    let mut previous = Map::new();
    if let (Value::Object(was), Value::Object(is)) = (was, is) {
        for (name, value) in was {
            if is.get(&name) != Some(&value) {
                let value = if name == "items" { json!({"data": value["data"]}) } else { value };
                previous.insert(name, value);
            }
        }
    }
    Value::Object(previous)
}

pub(super) fn invoice(it: &Invoice, shape: Shape, status: &str, created: i64) -> Value {
    let lines: Vec<Value> =
        it.lines.iter().enumerate().map(|(index, entry)| line(it, index, entry, shape)).collect();
    let total: i64 = it.lines.iter().map(|line| line.amount).sum();
    let mut object = json!({
        "id": it.id,
        "object": "invoice",
        "customer": it.customer,
        "status": status,
        "billing_reason": it.reason,
        "amount_due": total.max(0),
        "amount_paid": if status == "paid" { it.paid } else { 0 },
        "subtotal": total,
        "total": total,
        "currency": it.currency,
        "created": created,
        // Not the service period: Stripe writes the time in which it collected the invoice items.
        "period_start": created,
        "period_end": created,
        "attempt_count": 1,
        "hosted_invoice_url": format!("https://invoice.stripe.com/i/{}", it.id),
        "next_payment_attempt": null,
        "test_clock": null,
        "metadata": {},
        "lines": {"object": "list", "data": lines, "has_more": false},
    });
    match shape {
        Shape::New => {
            object["parent"] = json!({
                "type": "subscription_details",
                "quote_details": null,
                "subscription_details": {"subscription": it.subscription,
                "metadata": metadata(it.user.as_ref())},
            });
            if let (Some((intent, _)), true) = (&it.payment, it.shows_payment) {
                object["payments"] = json!({"object": "list", "data": [
                    {"object": "invoice_payment", "status": status, "payment": {"type": "payment_intent",
                    "payment_intent": intent}},
                ]});
            }
        }
        Shape::Old => {
            object["subscription"] = json!(it.subscription);
            object["subscription_details"] = json!({"metadata": metadata(it.user.as_ref())});
            object["paid"] = json!(status == "paid");
            object["paid_out_of_band"] = json!(false);
            object["payment_intent"] = json!(it.payment.as_ref().map(|payment| &payment.0));
            object["charge"] = json!(it.payment.as_ref().map(|payment| &payment.1));
        }
    }
    object
}

/// The payment of an invoice, since 2025-03-31.basil.
pub(super) fn invoice_payment(it: &Invoice, created: i64) -> Value {
    json!({
        "id": it.id.replacen("in_", "inpay_", 1),
        "object": "invoice_payment",
        "invoice": it.id,
        "amount_paid": it.paid,
        "amount_requested": it.paid,
        "currency": it.currency,
        "created": created,
        "is_default": true,
        "status": "paid",
        "payment": {
            "type": "payment_intent",
            "payment_intent": it.payment.as_ref().map(|payment| &payment.0),
        },
    })
}

fn line(invoice: &Invoice, index: usize, line: &Line, shape: Shape) -> Value {
    let item = item_id(&invoice.subscription, line.item);
    line_of(&invoice.id, index, &invoice.subscription, &item, line, invoice.user.as_ref(), shape)
}

/// A line of an invoice. The shapes were recorded: tests/data/shapes.toml.
pub(super) fn line_of(
    invoice: &str,
    index: usize,
    subscription: &str,
    item: &str,
    line: &Line,
    user: Option<&String>,
    shape: Shape,
) -> Value {
    let mut object = json!({
        "id": format!("il_{invoice}_{index}"),
        "object": "line_item",
        "amount": line.amount,
        "discount_amounts": [],
        "quantity": line.quantity,
        "period": {"start": line.start, "end": line.end},
        "metadata": metadata(user),
    });
    let (is_once, is_proration) = (line.kind == LineKind::Once, line.kind == LineKind::Proration);
    let invoice_item = (line.kind != LineKind::Period).then(|| format!("ii_{invoice}_{index}"));
    match shape {
        Shape::New => {
            let mut details = json!({
                "invoice_item": invoice_item,
                "proration": is_proration,
                "proration_details": {"credited_items": null},
                "subscription": subscription,
            });
            object["parent"] = if is_once {
                json!({
                    "type": "invoice_item_details",
                    "invoice_item_details": details,
                    "subscription_item_details": null,
                })
            } else {
                details["subscription_item"] = json!(item);
                json!({
                    "type": "subscription_item_details",
                    "invoice_item_details": null,
                    "subscription_item_details": details,
                })
            };
            object["pricing"] = json!({
                "type": "price_details",
                "price_details": {"price": line.price, "product": PRODUCT},
            });
        }
        Shape::Old => {
            object["type"] =
                json!(if line.kind == LineKind::Period { "subscription" } else { "invoiceitem" });
            object["invoice_item"] = json!(invoice_item);
            object["subscription"] = json!(subscription);
            if !is_once {
                object["subscription_item"] = json!(item);
            }
            object["proration"] = json!(is_proration);
            object["price"] = price(&line.price);
            object["plan"] = if is_once { Value::Null } else { plan(&line.price) };
        }
    }
    object
}

/// The event around an object.
pub(super) fn event(
    id: &str,
    kind: &str,
    created: i64,
    shape: Shape,
    object: &Value,
    previous: Option<&Value>,
) -> String {
    let mut data = json!({"object": object});
    if let Some(previous) = previous {
        data["previous_attributes"] = previous.clone();
    }
    let version = match shape {
        Shape::Old => "2024-06-20",
        Shape::New => "2025-09-30.clover",
    };
    json!({
        "id": id,
        "object": "event",
        "api_version": version,
        "created": created,
        "livemode": false,
        "type": kind,
        "data": data,
        "pending_webhooks": 1,
        "request": {"id": null, "idempotency_key": null},
    })
    .to_string()
}
