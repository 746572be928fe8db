//! Subscriptions of the rarer shapes (`docs.stripe.com/billing`): items with intervals of their own, billing
//! anchors, backdating, extended and goodwill trials, periods billed in advance, coupons, balance, payments
//! out of band, invoices sent by e-mail.

use serde_json::{Map, Value, json};
use tallyhook_core::catalog::Per;

use super::{DAY, MONTH, Stripe};
use crate::life::Shape;
use crate::life::render::{self, Line, LineKind};

const YEAR: i64 = 365 * DAY;

/// A subscription whose items have their own periods.
pub(super) struct Rare {
    id: String,
    customer: String,
    pub status: &'static str,
    items: Vec<Item>,
    created: i64,
    trial: Option<(i64, i64)>,
    /// `pause_collection` is set.
    paused: bool,
    /// `collection_method` is `send_invoice`.
    sends_invoices: bool,
    /// A coupon for ever, in percent.
    coupon: i64,
    /// `proration_discounts` is `itemized`: prorations show their discounts beside them, as other lines do.
    itemized: bool,
    /// An invoice that is not paid: its reason and its lines.
    open: Option<(&'static str, Vec<RareLine>)>,
    /// An invoice in advance whose payment takes days, and when it was made.
    clearing: Option<(i64, Vec<RareLine>)>,
    /// Prorations of the next invoice.
    prorations: Vec<RareLine>,
    /// The subscription as the last event showed it.
    shown: Value,
}

#[derive(Clone)]
struct Item {
    id: String,
    price: String,
    per_seat: bool,
    quantity: u64,
    amount: i64,
    interval: i64,
    start: i64,
    end: i64,
    /// Its next period is billed in advance.
    prebilled: bool,
}

#[derive(Clone)]
struct RareLine {
    item: String,
    price: String,
    quantity: u64,
    amount: i64,
    flagged: bool,
    start: i64,
    end: i64,
}

impl Item {
    fn total(&self) -> i64 {
        self.amount * i64::try_from(self.quantity).unwrap_or(1)
    }

    fn line(&self, start: i64, end: i64) -> RareLine {
        RareLine {
            item: self.id.clone(),
            price: self.price.clone(),
            quantity: self.quantity,
            amount: self.total(),
            flagged: false,
            start,
            end,
        }
    }

    /// A proration of what is left of the period.
    fn rest(&self, now: i64, sign: i64) -> RareLine {
        let amount = sign * (self.total() * (self.end - now).max(0) / (self.end - self.start).max(1)).max(1);
        RareLine { amount, flagged: true, ..self.line(now, self.end) }
    }

    /// Prorations of what is left of the time that is billed: also of a period that is billed in advance.
    fn rests(&self, now: i64, sign: i64) -> Vec<RareLine> {
        let ahead = RareLine {
            amount: sign * self.total(),
            flagged: true,
            ..self.line(self.end, self.end + self.interval)
        };
        [self.rest(now, sign)].into_iter().chain(self.prebilled.then_some(ahead)).collect()
    }
}

impl Stripe<'_> {
    fn rare_item(&mut self, subscription: &str, yearly: bool, interval: i64) -> Item {
        let place = if yearly { 0 } else { self.rng.usize(..self.catalog.plans.len()) };
        let plan = &self.catalog.plans[place];
        let prices = &plan.sold_as.prices;
        let price = if yearly { prices.last() } else { prices.first() }.cloned().unwrap_or_default();
        let per_seat = plan.per == Per::Seat;
        let quantity = if per_seat { self.rng.u64(1..6) } else { 1 };
        let amount = 1900 * i64::try_from(place + 1).unwrap_or(1) * (interval / MONTH).max(1);
        let (start, end) = (self.now, self.now + interval);
        // The order of items is that of their subscriptions.
        let id = self.id(&format!("si_{subscription}"));
        Item { id, price, per_seat, quantity, amount, interval, start, end, prebilled: false }
    }

    pub(super) fn start_rare(&mut self) {
        let how = self.rng.u8(..8);
        let what = [
            "yearly and monthly items",
            "yearly and monthly items",
            "up to a billing anchor",
            "up to a billing anchor, without proration",
            "backdated",
            "with a trial",
            "with invoices by e-mail",
            "by a quote",
        ][usize::from(how)];
        let (id, customer) = (self.id("sub"), self.customer());
        self.begin_act(format!("{id} begins: {what}"));
        let mut items = vec![self.rare_item(&id, how < 2, if how < 2 { YEAR } else { MONTH })];
        if how < 2 {
            items.push(self.rare_item(&id, false, MONTH));
        }
        let mut rare = Rare {
            id,
            customer,
            status: "active",
            items,
            created: self.now,
            trial: None,
            paused: false,
            sends_invoices: how == 6,
            coupon: if self.rng.u8(..8) == 0 { 25 } else { 0 },
            itemized: self.rng.bool(),
            open: None,
            clearing: None,
            prorations: Vec::new(),
            shown: Value::Null,
        };
        let mut lines: Vec<RareLine> =
            rare.items.iter().map(|item| item.line(item.start, item.end)).collect();
        let reason = if how == 7 { "quote_accept" } else { "subscription_create" };
        match how {
            2 | 3 => {
                let item = &mut rare.items[0];
                item.end = self.now + self.rng.i64(DAY..MONTH);
                lines = vec![RareLine {
                    amount: (item.total() * (item.end - item.start) / MONTH).max(1),
                    flagged: self.rng.bool(),
                    ..item.line(item.start, item.end)
                }];
            }
            4 => {
                let item = &mut rare.items[0];
                item.start = self.now - self.rng.i64(DAY..MONTH - DAY);
                item.end = item.start + MONTH;
                let months = self.rng.i64(0..3);
                lines = (0..=months)
                    .rev()
                    .map(|month| item.line(item.start - month * MONTH, item.end - month * MONTH))
                    .collect();
            }
            5 => {
                let item = &mut rare.items[0];
                item.end = self.now + 7 * DAY;
                rare.trial = Some((self.now, item.end));
                rare.status = "trialing";
                lines = vec![RareLine { amount: 0, ..item.line(item.start, item.end) }];
            }
            _ => {}
        }
        let first = self.rng.bool();
        if first {
            self.show_rare(&mut rare);
        }
        match how {
            3 => {}
            6 => rare.open = Some((reason, lines)),
            _ => self.bill_rare(&rare, reason, &lines, how != 5),
        }
        if !first {
            self.show_rare(&mut rare);
        }
        self.rare.push(rare);
    }

    pub(super) fn move_rare(&mut self, index: usize) {
        // No second is shared with an earlier act, so that no state returns within a second.
        self.now += 3;
        let mut rare = self.rare.swap_remove(index);
        self.begin_act(format!("{} continues", rare.id));
        self.next_of_rare(&mut rare);
        self.rare.push(rare);
        let last = self.rare.len() - 1;
        self.rare.swap(index, last);
    }

    fn say(&mut self, what: &str) {
        if let Some(act) = self.life.acts.last_mut() {
            act.what = act.what.replace("continues", what);
        }
    }

    fn next_of_rare(&mut self, rare: &mut Rare) {
        let now = self.now;
        if let Some((reason, lines)) = rare.open.take() {
            return match self.rng.u8(..4) {
                0 if rare.status == "active" => {
                    self.say("is past due");
                    rare.status = "past_due";
                    rare.open = Some((reason, lines));
                    self.show_rare(rare);
                }
                0 | 1 => {
                    self.say("never pays");
                    self.end_rare(rare, Some("payment_failed"));
                }
                _ => {
                    self.say("pays what is open");
                    self.bill_rare(rare, reason, &lines, true);
                    if rare.status != "active" {
                        rare.status = "active";
                        self.tick();
                        self.show_rare(rare);
                    }
                }
            };
        }
        if self.rng.bool()
            && let Some((made, lines)) = rare.clearing.take()
        {
            self.say("pays what was billed in advance");
            return self.bill_rare_made(rare, made, "subscription_update", &lines, true);
        }
        if rare.items.iter().any(|item| item.end <= now) {
            return self.renew_rare(rare);
        }
        match self.rng.u8(..12) {
            0 | 1 if rare.items.iter().any(|item| item.per_seat) => {
                self.say("changes its seats");
                let place = rare.items.iter().position(|item| item.per_seat).unwrap_or(0);
                let item = &mut rare.items[place];
                let mut lines = item.rests(now, -1);
                item.quantity = if item.quantity > 3 { self.rng.u64(1..3) } else { item.quantity + 2 };
                lines.extend(item.rests(now, 1));
                self.show_rare(rare);
                self.prorate(rare, lines);
            }
            2 if rare.items.len() > 1 => {
                self.say("loses an item");
                let place = self.rng.usize(..rare.items.len());
                let gone = rare.items.remove(place);
                self.show_rare(rare);
                self.prorate(rare, gone.rests(now, -1));
            }
            2 | 3 if rare.items.len() == 1 && rare.status == "active" => {
                self.say("gains an item");
                let item = self.rare_item(&rare.id, false, MONTH);
                let line = item.line(item.start, item.end);
                rare.items.push(item);
                self.show_rare(rare);
                let lines = with_prorations(rare, vec![line]);
                self.bill_rare(rare, "subscription_update", &lines, true);
            }
            4 | 5 if rare.status == "trialing" => {
                self.say("has its trial extended");
                self.extend_trial(rare);
            }
            4 if rare.status == "active" => {
                self.say("is given a trial");
                rare.status = "trialing";
                let mut lines = Vec::new();
                for item in &mut rare.items {
                    if std::mem::take(&mut item.prebilled) {
                        let ahead = Item { prebilled: true, ..item.clone() };
                        lines.extend(ahead.rests(now, -1));
                    }
                    (item.start, item.end) = (now, now + 30 * DAY);
                }
                rare.trial = Some((now, now + 30 * DAY));
                self.show_rare(rare);
                let zero = |item: &Item| RareLine { amount: 0, ..item.line(item.start, item.end) };
                lines.extend(rare.items.iter().map(zero));
                self.tick();
                self.bill_rare(rare, "subscription_update", &lines, false);
            }
            5 | 6 if rare.status == "active" && rare.items.iter().any(|item| !item.prebilled) => {
                self.say("is billed in advance");
                let mut lines = Vec::new();
                let all = self.rng.bool();
                for item in rare.items.iter_mut().filter(|item| !item.prebilled) {
                    if all || lines.is_empty() {
                        item.prebilled = true;
                        lines.push(item.line(item.end, item.end + item.interval));
                    }
                }
                let lines = if self.rng.bool() { with_prorations(rare, lines) } else { lines };
                if rare.clearing.is_none() && self.rng.u8(..4) == 0 {
                    rare.clearing = Some((now, lines));
                } else {
                    self.bill_rare(rare, "subscription_update", &lines, true);
                }
            }
            7 => {
                self.say("is cancelled");
                self.end_rare(rare, None);
            }
            8 if rare.status == "active" && have_one_period(&rare.items) => {
                self.say("swaps its items");
                self.swap_items(rare);
            }
            9 | 10 if rare.status == "active" => {
                self.say("changes to another interval");
                let place = self.rng.usize(..rare.items.len());
                let item = &rare.items[place];
                let mut lines = item.rests(now, -1);
                let (id, interval) = (item.id.clone(), if item.interval == YEAR { MONTH } else { YEAR });
                rare.items[place] = Item { id, ..self.rare_item(&rare.id, interval == YEAR, interval) };
                lines.push(rare.items[place].line(now, now + interval));
                let lines = with_prorations(rare, lines);
                self.show_rare(rare);
                self.tick();
                self.bill_rare(rare, "subscription_update", &lines, true);
            }
            _ => {
                self.say("pauses or resumes collection");
                rare.paused = !rare.paused;
                self.show_rare(rare);
            }
        }
    }

    fn renew_rare(&mut self, rare: &mut Rare) {
        self.say("renews");
        let now = self.now;
        let mut lines = Vec::new();
        for item in rare.items.iter_mut().filter(|item| item.end <= now) {
            (item.start, item.end) = (item.end, item.end + item.interval);
            if !std::mem::take(&mut item.prebilled) {
                lines.push(item.line(item.start, item.end));
            }
        }
        let lines = if lines.is_empty() { lines } else { with_prorations(rare, lines) };
        rare.status = "active";
        self.show_rare(rare);
        self.tick();
        if rare.sends_invoices && self.rng.bool() && !lines.is_empty() {
            rare.open = Some(("subscription_cycle", lines));
        } else if !lines.is_empty() {
            self.bill_rare(rare, "subscription_cycle", &lines, true);
        }
    }

    /// One update removes all items and adds another one, as `swap` of Laravel Cashier does.
    fn swap_items(&mut self, rare: &mut Rare) {
        let now = self.now;
        let mut lines: Vec<RareLine> = rare.items.iter().flat_map(|item| item.rests(now, -1)).collect();
        let (start, end, interval) = (rare.items[0].start, rare.items[0].end, rare.items[0].interval);
        let item = self.rare_item(&rare.id, interval == YEAR, interval);
        let item = Item { start, end, ..item };
        lines.push(item.rest(now, 1));
        rare.items = vec![item];
        let lines = with_prorations(rare, lines);
        self.show_rare(rare);
        self.tick();
        self.bill_rare(rare, "subscription_update", &lines, true);
    }

    /// Prorations are billed at once, with the next invoice, or not at all, as `proration_behavior` says.
    /// Those of time that is billed in advance are always billed.
    fn prorate(&mut self, rare: &mut Rare, lines: Vec<RareLine>) {
        if rare.status != "active" {
            return;
        }
        let ahead = lines.iter().any(|line| line.start > self.now);
        match self.rng.u8(..if ahead { 2 } else { 3 }) {
            0 => {
                let lines = with_prorations(rare, lines);
                self.bill_rare(rare, "subscription_update", &lines, true);
            }
            1 => rare.prorations.extend(lines),
            _ => {}
        }
    }

    fn extend_trial(&mut self, rare: &mut Rare) {
        for item in &mut rare.items {
            item.end += 7 * DAY;
        }
        rare.trial = rare.trial.map(|(start, end)| (start, end + 7 * DAY));
        self.show_rare(rare);
        if self.rng.bool() {
            let now = self.now;
            let zero = |item: &Item| RareLine { amount: 0, ..item.line(now, item.end) };
            let lines: Vec<RareLine> = rare.items.iter().map(zero).collect();
            self.tick();
            self.bill_rare(rare, "subscription_update", &lines, false);
        }
    }

    pub(super) fn end_all_rare(&mut self) {
        let mut all = std::mem::take(&mut self.rare);
        for rare in all.iter_mut().filter(|rare| rare.status != "canceled") {
            self.end_rare(rare, None);
        }
        self.rare = all;
    }

    fn end_rare(&mut self, rare: &mut Rare, reason: Option<&str>) {
        rare.status = "canceled";
        let mut object = self.rare_object(rare);
        object["cancellation_details"]["reason"] = json!(reason.unwrap_or("cancellation_requested"));
        object["ended_at"] = json!(self.now);
        self.emit("customer.subscription.deleted", &object, None);
    }

    fn show_rare(&mut self, rare: &mut Rare) {
        let object = self.rare_object(rare);
        let mut previous = Map::new();
        if let (Value::Object(was), Value::Object(is)) = (&rare.shown, &object) {
            for (name, value) in was.iter().filter(|(name, value)| is.get(*name) != Some(*value)) {
                let value = if name == "items" { json!({"data": value["data"]}) } else { value.clone() };
                previous.insert(name.clone(), value);
            }
        }
        let is_new = rare.shown["id"].is_null();
        let kind = if is_new { "customer.subscription.created" } else { "customer.subscription.updated" };
        let previous = Value::Object(previous);
        self.emit(kind, &object, (!is_new).then_some(&previous));
        rare.shown = object;
    }

    fn rare_object(&self, rare: &Rare) -> Value {
        let is_new = self.life.shape == Shape::New;
        let item = |it: &Item| {
            let period = (it.start, it.end);
            render::item_of(&it.id, &rare.id, &it.price, it.quantity, period, self.life.shape)
        };
        let items: Vec<Value> = rare.items.iter().map(item).collect();
        let mut object = json!({
            "id": rare.id, "object": "subscription", "customer": rare.customer, "status": rare.status,
            "created": rare.created, "items": {"object": "list", "data": items, "has_more": false},
            "cancel_at": null, "cancel_at_period_end": false, "canceled_at": null, "ended_at": null,
            "cancellation_details": {"comment": null, "feedback": null, "reason": null},
            "latest_invoice": null, "test_clock": null,
            "trial_start": rare.trial.map(|trial| trial.0), "trial_end": rare.trial.map(|trial| trial.1),
            "collection_method": if rare.sends_invoices { "send_invoice" } else { "charge_automatically" },
            "days_until_due": if rare.sends_invoices { Some(14) } else { None },
            "pause_collection": rare.paused.then(|| json!({"behavior": "void", "resumes_at": null})),
            "metadata": {"user_id": self.life.user},
        });
        if !is_new {
            // Before basil a subscription has one period: the latest start and the earliest end of its items.
            object["current_period_start"] = json!(rare.items.iter().map(|item| item.start).max());
            object["current_period_end"] = json!(rare.items.iter().map(|item| item.end).min());
        }
        object
    }

    /// A paid invoice. `may_vary`: it may be paid by balance, by a coupon or out of band.
    fn bill_rare(&mut self, rare: &Rare, reason: &'static str, lines: &[RareLine], may_vary: bool) {
        self.bill_rare_made(rare, self.now, reason, lines, may_vary);
    }

    /// The same for an invoice that was made earlier.
    fn bill_rare_made(
        &mut self,
        rare: &Rare,
        made: i64,
        reason: &'static str,
        lines: &[RareLine],
        may_vary: bool,
    ) {
        // Each line with its discount.
        let discounted = |line: &RareLine| {
            let off = line.amount * rare.coupon / 100;
            let included = if line.flagged && !rare.itemized { off } else { 0 };
            (RareLine { amount: line.amount - included, ..line.clone() }, off - included)
        };
        let lines: Vec<(RareLine, i64)> = lines.iter().map(discounted).collect();
        let subtotal: i64 = lines.iter().map(|(line, _)| line.amount).sum();
        let net = subtotal - lines.iter().map(|(_, off)| off).sum::<i64>();
        let how = if may_vary { self.rng.u8(..8) } else { 7 };
        let total = if how == 0 { net.min(0) } else { net };
        let due = total.max(0);
        let (paid, outside) = match how {
            1 => (0, due),
            2 => (0, 0),
            3 => (due / 2, 0),
            _ => (due, 0),
        };
        let (id, intent, charge) = (self.id("in"), self.id("pi"), self.id("ch"));
        let is_new = self.life.shape == Shape::New;
        let line = |(place, (it, off)): (usize, &(RareLine, i64))| {
            let line = Line {
                price: it.price.clone(),
                quantity: it.quantity,
                amount: it.amount,
                kind: if it.flagged { LineKind::Proration } else { LineKind::Period },
                item: 0,
                start: it.start,
                end: it.end,
            };
            let (shape, user) = (self.life.shape, Some(&self.life.user));
            let mut line = render::line_of(&id, place, &rare.id, &it.item, &line, user, shape);
            if *off != 0 {
                line["discount_amounts"] = json!([{"amount": off, "discount": "di_1"}]);
            }
            line
        };
        let lines: Vec<Value> = lines.iter().enumerate().map(line).collect();
        let mut object = json!({
            "id": id, "object": "invoice", "customer": rare.customer, "status": "paid",
            "billing_reason": reason, "amount_due": due, "amount_paid": paid, "subtotal": subtotal,
            "total": total, "currency": self.currency, "created": made, "period_start": self.now,
            "period_end": self.now, "attempt_count": 1, "next_payment_attempt": null, "metadata": {},
            "hosted_invoice_url": format!("https://invoice.stripe.com/i/{id}"), "test_clock": null,
            "lines": {"object": "list", "data": lines, "has_more": false},
        });
        if is_new {
            object["parent"] = json!({
                "type": "subscription_details",
                "quote_details": null,
                "subscription_details": {"subscription": rare.id, "metadata": {"user_id": self.life.user}},
            });
            object["amount_paid_off_stripe"] = json!(outside);
        } else {
            object["subscription"] = json!(rare.id);
            object["subscription_details"] = json!({"metadata": {"user_id": self.life.user}});
            object["paid"] = json!(true);
            object["paid_out_of_band"] = json!(outside > 0);
            object["payment_intent"] = json!((paid > 0).then_some(&intent));
            object["charge"] = json!((paid > 0).then_some(&charge));
        }
        self.emit("invoice.paid", &object, None);
        if paid == 0 {
            return;
        }
        if is_new {
            let payment = json!({
                "id": id.replacen("in_", "inpay_", 1), "object": "invoice_payment", "invoice": id,
                "amount_paid": paid, "amount_requested": paid, "currency": self.currency,
                "created": self.now, "is_default": true, "status": "paid",
                "payment": {"type": "payment_intent", "payment_intent": intent},
            });
            self.emit("invoice_payment.paid", &payment, None);
        }
        self.add_payment(intent, paid, Some(id), Some(rare.customer.clone()));
        if let Some(payment) = self.payments.last_mut() {
            payment.charge = charge;
        }
    }
}

/// The lines of an invoice after the prorations that wait for it.
fn with_prorations(rare: &mut Rare, lines: Vec<RareLine>) -> Vec<RareLine> {
    let waiting = std::mem::take(&mut rare.prorations);
    waiting.into_iter().chain(lines).collect()
}

fn have_one_period(items: &[Item]) -> bool {
    items.iter().all(|item| (item.start, item.end) == (items[0].start, items[0].end))
}
