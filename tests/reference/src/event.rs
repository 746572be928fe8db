//! Stripe's events in both API shapes. Every field may be absent.

use serde_json::Value;

#[derive(Clone, Copy, PartialEq)]
pub enum Family {
    Session,
    Subscription,
    Invoice,
    /// `invoice_payment.paid`: a payment belongs to an invoice.
    Link,
    Charge,
    Refund,
    Dispute,
    Customer,
    Unknown,
}

/// One event. What the API shapes disagree about is read once; all else is read from `object`.
pub struct Event<'a> {
    pub id: String,
    pub created: i64,
    pub family: Family,
    /// A session or an invoice that this event says is paid.
    pub paid: bool,
    pub body: &'a Value,
    pub object: &'a Value,
    pub doc: String,
    pub user: Option<String>,
    pub customer: Option<String>,
    pub sub: Option<String>,
    /// The lines of an invoice or session, or the items of a subscription.
    pub lines: Vec<Line>,
}

/// A line, or a subscription item as a snapshot shows it.
pub struct Line {
    pub item: Option<String>,
    pub sub: Option<String>,
    pub price: String,
    pub lookup: String,
    pub product: String,
    /// The price's own amount.
    pub unit: Option<i64>,
    pub amount: i64,
    /// The amount after the discounts that Stripe lists beside it.
    pub net: i64,
    pub quantity: i64,
    pub flagged: bool,
    pub start: i64,
    pub end: i64,
}

impl Line {
    /// 2.6: A change that was changed again in the same second is charged and credited for the same period on
    /// one invoice. Stripe's lines are in reverse order of time, others are not, so neither of the two counts.
    fn takes_back(&self, other: &Line) -> bool {
        let of = |l: &Line| (l.item.clone(), l.price.clone(), l.quantity, l.start, l.end);
        self.flagged
            && other.flagged
            && self.amount.signum() * other.amount.signum() < 0
            && of(self) == of(other)
    }
}

/// A text, an id, or the id of an expanded object.
pub fn id(v: &Value) -> Option<String> {
    v.as_str().or_else(|| v["id"].as_str()).filter(|s| !s.is_empty()).map(String::from)
}

pub fn int(v: &Value) -> Option<i64> {
    v.as_i64().or_else(|| v.as_str()?.parse::<f64>().ok().map(|f| f as i64))
}

/// 2.4: `user_id`, else `client_id`; 1 to 128 characters, any but control characters.
fn user(metadata: &Value) -> Option<String> {
    id(&metadata["user_id"]).or_else(|| id(&metadata["client_id"])).filter(|u| is_valid(u))
}

pub fn is_valid(user: &str) -> bool {
    user.chars().count() <= 128 && !user.chars().any(char::is_control)
}

/// `stripe.md` §4: the price is `price`, older `plan`, since basil `pricing.price_details.price`; the item
/// and the flag are on the line, since basil in its `parent`; the period is the line's, the item's, or the
/// subscription's.
fn line(l: &Value, object: &Value) -> Line {
    let (pricing, parent) = (&l["pricing"], &l["parent"]);
    let (item, other) = (&parent["subscription_item_details"], &parent["invoice_item_details"]);
    let prices = [&l["price"], &l["plan"], &pricing["price_details"]["price"]];
    let price = prices.into_iter().find(|p| id(p).is_some()).unwrap_or(&Value::Null);
    let product = id(&price["product"]).or_else(|| id(&pricing["price_details"]["product"]));
    let unit = [&price["unit_amount"], &price["amount"], &pricing["unit_amount_decimal"]];
    let own = (object["object"] == "subscription").then(|| id(&l["id"])).flatten();
    let time = |k: &str, side: &str| {
        let times = [&l["period"][side], &l[k], &object[k]];
        times.into_iter().find_map(int).unwrap_or(0)
    };
    let amount = int(&l["amount"]).unwrap_or(0);
    let discounts = l["discount_amounts"].as_array().into_iter().flatten();
    let discount: i64 = discounts.filter_map(|d| int(&d["amount"])).map(i64::abs).sum();
    Line {
        item: own.or_else(|| id(&l["subscription_item"])).or_else(|| id(&item["subscription_item"])),
        sub: [l, item, other].into_iter().find_map(|v| id(&v["subscription"])),
        price: id(price).unwrap_or_default(),
        lookup: id(&price["lookup_key"]).unwrap_or_default(),
        product: product.unwrap_or_default(),
        unit: unit.into_iter().find_map(int),
        amount,
        net: amount.signum() * (amount.abs() - discount).max(0),
        quantity: int(&l["quantity"]).unwrap_or(1),
        flagged: [l, item, other].into_iter().any(|v| v["proration"] == true),
        start: time("current_period_start", "start"),
        end: time("current_period_end", "end"),
    }
}

/// Reads one event. `None`: it has no id.
pub fn parse(body: &Value) -> Option<Event<'_>> {
    let object = &body["data"]["object"];
    let kind = body["type"].as_str().unwrap_or_default();
    let doc = id(&object["id"]).unwrap_or_default();
    let family = match kind.rsplit_once('.').map_or("", |k| k.0) {
        _ if doc.is_empty() => Family::Unknown,
        "checkout.session" => Family::Session,
        "customer.subscription" => Family::Subscription,
        "invoice" if matches!(kind, "invoice.paid" | "invoice.payment_failed") => Family::Invoice,
        "invoice" if kind == "invoice.payment_action_required" => Family::Invoice,
        "invoice_payment" if kind == "invoice_payment.paid" => Family::Link,
        "charge" if kind == "charge.refunded" => Family::Charge,
        "refund" => Family::Refund,
        "charge.dispute" => Family::Dispute,
        "customer" if kind == "customer.deleted" => Family::Customer,
        _ => Family::Unknown,
    };
    let list = |k: &str| object[k]["data"].as_array().into_iter().flatten();
    let lists = || list("lines").chain(list("items")).chain(list("line_items"));
    let mut lines: Vec<Line> = Vec::new();
    for l in lists().map(|l| line(l, object)) {
        match lines.iter().position(|other| family == Family::Invoice && l.takes_back(other)) {
            Some(place) => drop(lines.remove(place)),
            None => lines.push(l),
        }
    }
    let details = &object["parent"]["subscription_details"];
    let own = (family == Family::Subscription).then(|| doc.clone());
    let sub = own.or_else(|| id(&object["subscription"])).or_else(|| id(&details["subscription"]));
    let metadata = [details, &object["subscription_details"], object].into_iter().chain(list("lines"));
    let settled = matches!(object["payment_status"].as_str(), Some("paid" | "no_payment_required"));
    let complete = matches!(kind, "checkout.session.completed" | "checkout.session.async_payment_succeeded");
    Some(Event {
        id: id(&body["id"])?,
        created: int(&body["created"]).unwrap_or(0),
        family,
        paid: kind == "invoice.paid" || settled && complete,
        user: metadata.into_iter().find_map(|m| user(&m["metadata"])),
        customer: id(&object["customer"]).or_else(|| (family == Family::Customer).then(|| doc.clone())),
        sub: sub.or_else(|| lines.iter().find_map(|l| l.sub.clone())),
        lines,
        doc,
        object,
        body,
    })
}

impl Event<'_> {
    pub fn status(&self) -> &str {
        self.object["status"].as_str().unwrap_or_default()
    }

    pub fn int(&self, field: &str) -> i64 {
        int(&self.object[field]).unwrap_or(0)
    }

    /// When an invoice was made: its event may come days later.
    pub fn made(&self) -> i64 {
        int(&self.object["created"]).unwrap_or(self.created)
    }

    /// `total` of an invoice, `amount_total` of a session.
    pub fn total(&self) -> i64 {
        int(&self.object["total"]).unwrap_or_else(|| self.int("amount_total"))
    }

    /// An item as a snapshot shows it.
    pub fn item(&self, id: &str) -> Option<&Line> {
        self.lines.iter().find(|l| l.item.as_deref() == Some(id))
    }

    /// A list inside the object was cut short.
    pub fn is_cut(&self) -> bool {
        ["lines", "items", "line_items"].iter().any(|k| self.object[*k]["has_more"] == true)
    }
}
