//! Stripe's events in both API shapes, read by path. Every field may be absent.

use serde_json::Value;
use std::collections::BTreeMap;

/// One event with the part of its object that the rules read.
#[derive(Clone)]
pub struct Event {
    pub id: String,
    pub kind: String,
    pub created: i64,
    pub account: Option<String>,
    pub context: Option<String>,
    pub metadata: Value,
    pub fact: Fact,
}

/// What an event says.
#[derive(Clone)]
pub enum Fact {
    Session(Session),
    Snapshot(Snapshot),
    Invoice(Invoice),
    /// `invoice_payment.paid`: a payment belongs to an invoice.
    Link {
        invoice: String,
        payment: String,
        amount: Option<i64>,
    },
    /// `charge.refunded`: the cumulative sum of a charge.
    Charge {
        payment: Payment,
        refunded: i64,
        amount: Option<i64>,
        invoice: Option<String>,
    },
    Refund {
        payment: Payment,
        id: String,
        amount: i64,
        status: String,
    },
    Dispute {
        payment: Payment,
        id: String,
        amount: i64,
        status: String,
    },
    CustomerDeleted(String),
    /// A type that the system does not handle.
    Unknown,
}

/// A payment as refunds name it: by payment intent, by charge, or by both.
#[derive(Clone, Default)]
pub struct Payment {
    pub intent: Option<String>,
    pub charge: Option<String>,
}

#[derive(Clone)]
pub struct Session {
    pub id: String,
    pub mode: String,
    pub paid: bool,
    pub created: i64,
    pub customer: Option<String>,
    pub subscription: Option<String>,
    pub invoice: Option<String>,
    pub intent: Option<String>,
    pub reference: Option<String>,
    pub user: Option<String>,
    pub metadata: Value,
    pub total: i64,
    pub subtotal: Option<i64>,
    pub payment_link: bool,
    pub lines: Vec<Line>,
    pub cut: bool,
}

#[derive(Clone)]
pub struct Snapshot {
    pub event: String,
    pub created: i64,
    pub first: bool,
    pub sub: String,
    pub customer: Option<String>,
    pub user: Option<String>,
    pub status: String,
    pub items: Vec<SnapshotItem>,
    pub ended_at: Option<i64>,
    pub payment_failed: bool,
    pub collection_paused: bool,
    pub due_days: Option<i64>,
    pub test_clock: bool,
    pub cut: bool,
    pub object: Value,
    pub previous: Value,
}

#[derive(Clone)]
pub struct SnapshotItem {
    pub id: String,
    pub price: Price,
    pub quantity: i64,
    pub start: i64,
    pub end: i64,
}

#[derive(Clone, Default)]
pub struct Price {
    pub id: String,
    pub lookup: Option<String>,
    pub product: Option<String>,
    pub amount: Option<i64>,
}

#[derive(Clone)]
pub struct Invoice {
    pub id: String,
    pub paid: bool,
    /// When the invoice was made, and when the event that says it is paid was.
    pub created: i64,
    pub event_created: i64,
    pub customer: Option<String>,
    pub sub: Option<String>,
    pub user: Option<String>,
    pub reason: String,
    pub total: i64,
    pub amount_paid: i64,
    pub payment: Payment,
    pub lines: Vec<Line>,
    pub cut: bool,
}

#[derive(Clone)]
pub struct Line {
    pub amount: i64,
    pub quantity: i64,
    pub price: Option<Price>,
    pub item: Option<String>,
    pub sub: Option<String>,
    pub flagged: bool,
    pub start: i64,
    pub end: i64,
}

/// The value at a dotted path, or null.
pub fn get<'a>(v: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(v, |v, k| v.get(k).unwrap_or(&Value::Null))
}

fn text(v: &Value, path: &str) -> Option<String> {
    get(v, path).as_str().filter(|s| !s.is_empty()).map(String::from)
}

fn number(v: &Value, path: &str) -> Option<i64> {
    let v = get(v, path);
    v.as_i64().or_else(|| v.as_str()?.parse::<f64>().ok().map(|f| f as i64))
}

/// An id, or the id of an expanded object.
fn id(v: &Value, path: &str) -> Option<String> {
    text(v, path).or_else(|| text(get(v, path), "id"))
}

fn list<'a>(v: &'a Value, path: &str) -> &'a [Value] {
    get(v, path).as_array().map_or(&[], Vec::as_slice)
}

/// 2.4: `user_id`, else `client_id`; 1 to 128 characters, any but control characters.
fn user(metadata: &Value) -> Option<String> {
    let name = text(metadata, "user_id").or_else(|| text(metadata, "client_id"));
    name.filter(|u| valid(u))
}

fn valid(u: &str) -> bool {
    u.chars().count() <= 128 && !u.chars().any(char::is_control)
}

fn price(v: &Value, path: &str) -> Option<Price> {
    let amount = number(get(v, path), "unit_amount").or_else(|| number(get(v, path), "amount"));
    let (lookup, product) = (text(get(v, path), "lookup_key"), id(get(v, path), "product"));
    id(v, path).map(|id| Price { id, lookup, product, amount })
}

/// `stripe.md` §4: old `lines.data[].price.id`, older `.plan.id`, new `.pricing.price_details.price`.
fn line_price(l: &Value) -> Option<Price> {
    let new = || {
        let p = price(l, "pricing.price_details.price")?;
        let amount = p.amount.or_else(|| number(l, "pricing.unit_amount_decimal"));
        let product = p.product.clone().or_else(|| id(l, "pricing.price_details.product"));
        Some(Price { amount, product, ..p })
    };
    price(l, "price").or_else(|| price(l, "plan")).or_else(new)
}

fn line(l: &Value) -> Line {
    let item = get(l, "parent.subscription_item_details");
    let other = get(l, "parent.invoice_item_details");
    let flag = |v: &Value| get(v, "proration").as_bool() == Some(true);
    let sub = id(l, "subscription").or_else(|| id(item, "subscription"));
    Line {
        amount: number(l, "amount").unwrap_or(0),
        quantity: number(l, "quantity").unwrap_or(1),
        price: line_price(l),
        item: id(l, "subscription_item").or_else(|| id(item, "subscription_item")),
        sub: sub.or_else(|| id(other, "subscription")),
        flagged: flag(l) || flag(item) || flag(other),
        start: number(l, "period.start").unwrap_or(0),
        end: number(l, "period.end").unwrap_or(0),
    }
}

fn cut(o: &Value, path: &str) -> bool {
    get(get(o, path), "has_more").as_bool() == Some(true)
}

fn session(e: &Value, o: &Value, id_: String) -> Session {
    Session {
        id: id_,
        mode: text(o, "mode").unwrap_or_default(),
        paid: matches!(get(o, "payment_status").as_str(), Some("paid" | "no_payment_required"))
            && matches!(
                get(e, "type").as_str(),
                Some("checkout.session.completed" | "checkout.session.async_payment_succeeded")
            ),
        created: number(e, "created").unwrap_or(0),
        customer: id(o, "customer"),
        subscription: id(o, "subscription"),
        invoice: id(o, "invoice"),
        intent: id(o, "payment_intent"),
        reference: text(o, "client_reference_id").filter(|u| valid(u)),
        user: user(get(o, "metadata")),
        metadata: get(o, "metadata").clone(),
        total: number(o, "amount_total").unwrap_or(0),
        subtotal: number(o, "amount_subtotal"),
        payment_link: id(o, "payment_link").is_some(),
        lines: list(o, "line_items.data").iter().map(line).collect(),
        cut: cut(o, "line_items"),
    }
}

fn snapshot(e: &Value, o: &Value, id_: String) -> Snapshot {
    let item = |i: &Value| {
        let time = |k: &str| number(i, k).or_else(|| number(o, k)).unwrap_or(0);
        Some(SnapshotItem {
            id: id(i, "id")?,
            price: price(i, "price").or_else(|| price(i, "plan")).unwrap_or_default(),
            quantity: number(i, "quantity").unwrap_or(1),
            start: time("current_period_start"),
            end: time("current_period_end"),
        })
    };
    let invoiced = get(o, "collection_method").as_str() == Some("send_invoice");
    Snapshot {
        event: text(e, "id").unwrap_or_default(),
        created: number(e, "created").unwrap_or(0),
        first: get(e, "type").as_str() == Some("customer.subscription.created"),
        sub: id_,
        customer: id(o, "customer"),
        user: user(get(o, "metadata")),
        status: text(o, "status").unwrap_or_default(),
        items: list(o, "items.data").iter().filter_map(item).collect(),
        ended_at: number(o, "ended_at"),
        payment_failed: get(o, "cancellation_details.reason").as_str() == Some("payment_failed"),
        collection_paused: get(o, "pause_collection").is_object(),
        due_days: invoiced.then(|| number(o, "days_until_due").unwrap_or(0)),
        test_clock: id(o, "test_clock").is_some(),
        cut: cut(o, "items"),
        object: o.clone(),
        previous: get(e, "data.previous_attributes").clone(),
    }
}

fn invoice(e: &Value, o: &Value, id_: String) -> Invoice {
    let details = get(o, "parent.subscription_details");
    let lines: Vec<Line> = list(o, "lines.data").iter().map(line).collect();
    let total = number(o, "total").unwrap_or(0);
    let outside = get(o, "paid_out_of_band").as_bool() == Some(true);
    let off_stripe = number(o, "amount_paid_off_stripe").unwrap_or(0);
    let own = [get(details, "metadata"), get(o, "subscription_details.metadata"), get(o, "metadata")];
    let of_lines = list(o, "lines.data").iter().map(|l| get(l, "metadata"));
    let of_line = || lines.iter().find_map(|l| l.sub.clone());
    Invoice {
        id: id_,
        paid: get(e, "type").as_str() == Some("invoice.paid"),
        created: number(o, "created").or_else(|| number(e, "created")).unwrap_or(0),
        event_created: number(e, "created").unwrap_or(0),
        customer: id(o, "customer"),
        sub: id(o, "subscription").or_else(|| id(details, "subscription")).or_else(of_line),
        user: own.into_iter().chain(of_lines).find_map(user),
        reason: text(o, "billing_reason").unwrap_or_default(),
        total,
        amount_paid: if outside { total } else { number(o, "amount_paid").unwrap_or(0) + off_stripe },
        payment: payment(o),
        cut: cut(o, "lines"),
        lines,
    }
}

fn payment(o: &Value) -> Payment {
    Payment { intent: id(o, "payment_intent"), charge: id(o, "charge") }
}

/// Reads one event. `None`: it has no id.
pub fn parse(e: &Value) -> Option<Event> {
    let o = get(e, "data.object");
    let kind = text(e, "type").unwrap_or_default();
    let amount = number(o, "amount").unwrap_or(0);
    let status = text(o, "status").unwrap_or_default();
    let fact = match (id(o, "id"), kind.as_str()) {
        (Some(id), k) if k.starts_with("checkout.session.") => Fact::Session(session(e, o, id)),
        (Some(id), k) if k.starts_with("customer.subscription.") => Fact::Snapshot(snapshot(e, o, id)),
        (Some(id), "invoice.paid" | "invoice.payment_failed" | "invoice.payment_action_required") => {
            Fact::Invoice(invoice(e, o, id))
        }
        (Some(_), "invoice_payment.paid") => {
            let paid_by = id(o, "payment.payment_intent").or_else(|| id(o, "payment.charge"));
            match (id(o, "invoice"), paid_by) {
                (Some(invoice), Some(payment)) => {
                    Fact::Link { invoice, payment, amount: number(o, "amount_paid") }
                }
                _ => Fact::Unknown,
            }
        }
        (Some(id_), "charge.refunded") => Fact::Charge {
            payment: Payment { charge: Some(id_), ..payment(o) },
            refunded: number(o, "amount_refunded").unwrap_or(0),
            amount: number(o, "amount"),
            invoice: id(o, "invoice"),
        },
        (Some(id), k) if k.starts_with("refund.") => Fact::Refund { payment: payment(o), id, amount, status },
        (Some(id), k) if k.starts_with("charge.dispute.") => {
            Fact::Dispute { payment: payment(o), id, amount, status }
        }
        (Some(id), "customer.deleted") => Fact::CustomerDeleted(id),
        _ => Fact::Unknown,
    };
    Some(Event {
        id: text(e, "id")?,
        kind,
        created: number(e, "created").unwrap_or(0),
        account: text(e, "account"),
        context: text(e, "context"),
        metadata: get(o, "metadata").clone(),
        fact,
    })
}

/// 2.12, `[[ignore]]`: the metadata of a rule is a part of the object's.
pub fn contains(object: &Value, part: &BTreeMap<String, Value>) -> bool {
    part.iter().all(|(k, v)| object.get(k) == Some(v))
}
