//! A small Stripe: one customer's objects, what can happen to them, and what each happening fires.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tallyhook_core::catalog::{Catalog, Per, Plan};

use super::render::{self, Invoice, Line, LineKind, Subscription};
use super::{Act, Life, Options, Sent, Shape, Standing, Truth};

const DAY: i64 = 86_400;
const MONTH: i64 = 30 * DAY;
/// A price that no catalog knows, beside the plan's in some subscriptions.
const STRANGER: &str = "price_of_something_else";

pub(super) struct Stripe<'a> {
    rng: fastrand::Rng,
    catalog: &'a Catalog,
    options: Options,
    now: i64,
    serial: u32,
    customer: Option<String>,
    currency: &'static str,
    tells_payments: bool,
    subscriptions: Vec<Sold>,
    payments: Vec<Money>,
    delayed: Vec<Delayed>,
    life: Life,
}

/// A subscription and what Stripe remembers beside it.
struct Sold {
    it: Subscription,
    plan: usize,
    seats: u64,
    /// The states of the running second, so that none is ever met twice within it.
    seen: Vec<(i64, Subscription)>,
    /// An invoice that waits for its payment.
    owed: Option<Owed>,
    /// Lines for the next invoice.
    prorations: Vec<Line>,
    /// Whether its plan changed while it was unpaid.
    changed_unpaid: bool,
}

struct Owed {
    invoice: Invoice,
    truth: Truth,
}

/// A payment, for refunds and disputes.
struct Money {
    intent: String,
    charge: String,
    amount: i64,
    /// The ledger key that its events lead to; `None` where no event says so.
    key: Option<String>,
    invoice: Option<String>,
    customer: Option<String>,
    refunds: Vec<(String, i64, &'static str)>,
    dispute: Option<(String, i64, &'static str)>,
}

/// A session that was finished without its payment.
struct Delayed {
    id: String,
    intent: String,
    pack: usize,
    quantity: u64,
    customer: Option<String>,
}

/// How a subscription begins.
#[derive(Clone, Copy, Debug)]
enum Start {
    Paid,
    NothingToPay,
    Trial,
    TrialWithFee,
    Unpaid,
}

/// When a change of plan is billed.
#[derive(Clone, Copy, Debug)]
enum Billing {
    NextInvoice,
    AtOnce,
    AtOnceButFails,
    NewPeriod,
}

/// What can be done.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Subscribe,
    PayFirst(usize),
    Change(usize),
    Seats(usize),
    PlanEnd(usize),
    KeepOn(usize),
    CancelNow(usize),
    Recover(usize),
    GiveUp(usize),
    Resume(usize),
    Pack,
    Order,
    Abandon,
    Settle(usize),
    Refund(usize),
    SettleRefund(usize),
    Dispute(usize),
    MoveDispute(usize),
    DeleteCustomer,
}

impl<'a> Stripe<'a> {
    pub(super) fn new(seed: u64, catalog: &'a Catalog, options: Options) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = if rng.bool() { Shape::Old } else { Shape::New };
        let currency = if rng.u8(..4) == 0 { "jpy" } else { "usd" };
        let tells_payments = shape == Shape::Old || rng.u8(..4) > 0;
        let life = Life {
            seed,
            shape,
            user: format!("user_{seed:x}"),
            acts: Vec::new(),
            events: Vec::new(),
            truths: Vec::new(),
            standings: Vec::new(),
            invoices: BTreeMap::new(),
            end: 0,
        };
        let now = 1_767_600_000 + i64::from(rng.u16(..));
        let (subscriptions, payments, delayed) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            rng,
            catalog,
            options,
            now,
            serial: 0,
            customer: None,
            currency,
            tells_payments,
            subscriptions,
            payments,
            delayed,
            life,
        }
    }

    pub(super) fn live(mut self) -> Life {
        for _ in 0..self.options.acts {
            self.step();
        }
        let standing = |sold: &Sold| Standing {
            subscription: sold.it.id.clone(),
            status: sold.it.status,
            price: self.price(sold.plan),
            start: sold.it.start,
            ends: sold.it.cancel_at,
        };
        self.life.standings = self.subscriptions.iter().map(standing).collect();
        self.life.end = self.now + 1;
        self.life
    }

    /// Lets some time pass, and then does what is due or what the customer fancies.
    fn step(&mut self) {
        let gap = match self.rng.u8(..100) {
            0..8 => 0,
            8..20 => self.rng.i64(1..5),
            20..40 => self.rng.i64(5..7200),
            _ => self.rng.i64(7200..20 * DAY),
        };
        let then = self.now + gap;
        let due = |(index, sold): (usize, &Sold)| due(&sold.it).map(|at| (at, index));
        match self.subscriptions.iter().enumerate().filter_map(due).min() {
            Some((at, index)) if at <= then => {
                self.now = self.now.max(at);
                self.fall_due(index);
            }
            _ => {
                self.now = then;
                self.fancy();
            }
        }
    }

    fn fancy(&mut self) {
        let mut deeds: Vec<(u32, Deed)> = vec![(3, Deed::Pack), (1, Deed::Order), (1, Deed::Abandon)];
        let live = self.subscriptions.iter().filter(|sold| !over(&sold.it)).count();
        match live {
            0 => deeds.push((14, Deed::Subscribe)),
            1 => deeds.push((2, Deed::Subscribe)),
            _ => {}
        }
        for (index, sold) in self.subscriptions.iter().enumerate() {
            match sold.it.status {
                "active" | "trialing" => {
                    deeds.extend([(5, Deed::Change(index)), (2, Deed::CancelNow(index))]);
                    deeds.push(if sold.it.cancel_at.is_some() {
                        (3, Deed::KeepOn(index))
                    } else {
                        (2, Deed::PlanEnd(index))
                    });
                    if self.plan(sold.plan).per == Per::Seat {
                        deeds.push((5, Deed::Seats(index)));
                    }
                }
                "past_due" => deeds.extend([
                    (8, Deed::Recover(index)),
                    (2, Deed::Change(index)),
                    (2, Deed::GiveUp(index)),
                ]),
                "unpaid" => deeds.extend([(3, Deed::Recover(index)), (2, Deed::CancelNow(index))]),
                "paused" => deeds.extend([(4, Deed::Resume(index)), (1, Deed::CancelNow(index))]),
                "incomplete" => deeds.push((6, Deed::PayFirst(index))),
                _ => {}
            }
        }
        deeds.extend((0..self.delayed.len()).map(|index| (4, Deed::Settle(index))));
        for (index, money) in self.payments.iter().enumerate() {
            let disputing = money.dispute.as_ref().is_some_and(|dispute| open(dispute.2));
            if money.refunds.iter().any(|refund| refund.2 == "pending") {
                deeds.push((4, Deed::SettleRefund(index)));
            } else if disputing {
                deeds.push((4, Deed::MoveDispute(index)));
            } else if money.refundable() > 0 {
                deeds.push((1, Deed::Refund(index)));
                if money.dispute.is_none() {
                    deeds.push((1, Deed::Dispute(index)));
                }
            }
        }
        if self.customer.is_some() && self.rng.u8(..12) == 0 {
            deeds.push((3, Deed::DeleteCustomer));
        }
        let mut ticket = self.rng.u32(..deeds.iter().map(|deed| deed.0).sum::<u32>());
        for (weight, deed) in deeds {
            match ticket.checked_sub(weight) {
                Some(left) => ticket = left,
                None => return self.perform(deed),
            }
        }
    }

    fn perform(&mut self, deed: Deed) {
        match deed {
            Deed::Subscribe => self.subscribe(),
            Deed::PayFirst(index) => self.pay_first(index),
            Deed::Change(index) => self.change(index),
            Deed::Seats(index) => {
                let seats = self.rng.u64(1..9);
                if seats != self.subscriptions[index].seats {
                    let plan = self.subscriptions[index].plan;
                    self.change_to(index, plan, seats);
                }
            }
            Deed::PlanEnd(index) => self.plan_end(index),
            Deed::KeepOn(index) => {
                self.act(index, "keeps the subscription after all");
                self.update(index, |it| {
                    (it.cancel_at, it.at_period_end, it.canceled_at) = (None, false, None)
                });
            }
            Deed::CancelNow(index) => {
                self.act(index, "cancels at once");
                self.end(index);
            }
            Deed::Recover(index) => self.recover(index),
            Deed::GiveUp(index) => self.give_up(index),
            Deed::Resume(index) => self.resume(index),
            Deed::Pack => self.buy_pack(),
            Deed::Order => self.buy_order(),
            Deed::Abandon => {
                self.tell("leaves a checkout".to_owned());
                let id = self.id("cs_test");
                let session = self.session(
                    &id,
                    "payment",
                    "unpaid",
                    json!({"pack": self.catalog.packs.first().map(|pack| &pack.name)}),
                );
                self.emit("checkout.session.expired", &session, None);
            }
            Deed::Settle(index) => self.settle(index),
            Deed::Refund(index) => self.refund(index),
            Deed::SettleRefund(index) => self.settle_refund(index),
            Deed::Dispute(index) => self.dispute(index),
            Deed::MoveDispute(index) => self.move_dispute(index),
            Deed::DeleteCustomer => self.delete_customer(),
        }
    }

    fn fall_due(&mut self, index: usize) {
        let it = &self.subscriptions[index].it;
        match it.status {
            "incomplete" => {
                self.act(index, "never pays the first invoice");
                let now = self.now;
                self.update(index, |it| (it.status, it.ended_at) = ("incomplete_expired", Some(now)));
                self.truth(Truth::Ended { subscription: self.subscriptions[index].it.id.clone(), at: now });
            }
            _ if it.cancel_at.is_some_and(|at| at <= self.now) => {
                self.act(index, "ends as planned");
                self.end(index);
            }
            "past_due" => self.give_up(index),
            "trialing" => match self.rng.u8(..10) {
                0 => {
                    self.act(index, "trial ends without a card: paused");
                    self.update(index, |it| it.status = "paused");
                    let object = render::subscription(&self.subscriptions[index].it, self.life.shape);
                    self.emit("customer.subscription.paused", &object, None);
                }
                1 => {
                    self.act(index, "trial ends without a card: canceled");
                    self.end(index);
                }
                _ => self.renew(index),
            },
            _ => self.renew(index),
        }
    }

    // Subscriptions.

    fn subscribe(&mut self) {
        let plan = self.rng.usize(..self.catalog.plans.len());
        let seats = if self.plan(plan).per == Per::Seat { self.rng.u64(1..6) } else { 1 };
        let start = match self.rng.u8(..12) {
            0..6 => Start::Paid,
            6 => Start::NothingToPay,
            7..9 => Start::Trial,
            9 => Start::TrialWithFee,
            _ => Start::Unpaid,
        };
        let checkout = self.rng.u8(..8) > 0;
        let named = !checkout || matches!(start, Start::Unpaid) || self.rng.u8(..5) > 0;
        let customer = self.customer();
        let (id, invoice_id) = (self.id("sub"), self.id("in"));
        let trial = matches!(start, Start::Trial | Start::TrialWithFee);
        let end = self.now + if trial { 7 * DAY } else { MONTH };
        let mut items = vec![(self.price(plan), seats)];
        if self.rng.u8(..6) == 0 {
            items.insert(self.rng.usize(..2), (STRANGER.to_owned(), 1));
        }
        let is_legacy = self.life.shape == Shape::Old && matches!(start, Start::Paid);
        let it = Subscription {
            id,
            customer,
            status: if trial {
                "trialing"
            } else if is_legacy || matches!(start, Start::Unpaid) {
                "incomplete"
            } else {
                "active"
            },
            items,
            start: self.now,
            end,
            cancel_at: None,
            at_period_end: false,
            canceled_at: None,
            ended_at: None,
            trial: trial.then_some((self.now, end)),
            latest_invoice: Some(invoice_id.clone()),
            user: named.then(|| self.life.user.clone()),
            created: self.now,
        };
        let index = self.subscriptions.len();
        self.subscriptions.push(Sold {
            it,
            plan,
            seats,
            seen: Vec::new(),
            owed: None,
            prorations: Vec::new(),
            changed_unpaid: false,
        });
        self.act(
            index,
            &format!(
                "subscribes to {} x{seats}: {start:?}{}",
                self.plan(plan).name,
                if checkout { "" } else { " from the dashboard" }
            ),
        );

        let object = render::subscription(&self.subscriptions[index].it, self.life.shape);
        let first = (self.now, self.subscriptions[index].it.clone());
        self.subscriptions[index].seen.push(first);
        self.emit("customer.subscription.created", &object, None);
        let (credits, mut line) = (self.worth(index, trial), self.period_line(index));
        if trial {
            line.amount = 0;
            if self.rng.bool() {
                self.tick();
                self.emit("customer.subscription.trial_will_end", &object, None);
            }
        }
        let mut invoice = self.invoice(index, invoice_id, "subscription_create", vec![line]);
        if matches!(start, Start::TrialWithFee) {
            let fee = Line {
                price: "price_setup".to_owned(),
                quantity: 1,
                amount: 990,
                kind: LineKind::Once,
                start: self.now,
                end: self.now,
            };
            invoice.lines.insert(self.rng.usize(..2), fee);
        }
        invoice.paid = match start {
            Start::NothingToPay | Start::Trial => 0,
            Start::Paid | Start::TrialWithFee | Start::Unpaid => {
                invoice.lines.iter().map(|line| line.amount).sum()
            }
        };
        let truth = Truth::Opened {
            subscription: self.subscriptions[index].it.id.clone(),
            key: format!("invoice#{}", invoice.id),
            start: self.subscriptions[index].it.start,
            price: self.price(plan),
            credits,
            // A fee beside a trial did not buy the trial's credits.
            paid: if trial { 0 } else { invoice.paid },
            change: false,
        };
        self.tick();
        if matches!(start, Start::Unpaid) {
            self.emit_invoice("invoice.payment_failed", &invoice, "open");
            self.subscriptions[index].owed = Some(Owed { invoice, truth });
            return;
        }
        if is_legacy {
            self.update(index, |it| it.status = "active");
            self.tick();
        }
        self.pay(invoice, truth);
        if checkout {
            self.tick();
            let words: &[&str] =
                if invoice_is_free(start) { &["no_payment_required", "paid"] } else { &["paid"] };
            let paid = words[self.rng.usize(..words.len())];
            self.finish_checkout(index, paid);
        }
    }

    fn pay_first(&mut self, index: usize) {
        self.act(index, "pays the first invoice at last");
        self.settle_owed(index);
        self.tick();
        self.finish_checkout(index, "paid");
    }

    fn finish_checkout(&mut self, index: usize, payment_status: &str) {
        let id = self.id("cs_test");
        let it = &self.subscriptions[index].it;
        let mut session = self.session(
            &id,
            "subscription",
            payment_status,
            json!({"plan": self.plan(self.subscriptions[index].plan).name}),
        );
        session["customer"] = json!(it.customer);
        session["subscription"] = json!(it.id);
        session["invoice"] = json!(it.latest_invoice);
        self.emit("checkout.session.completed", &session, None);
    }

    fn renew(&mut self, index: usize) {
        let was_trial = self.subscriptions[index].it.status == "trialing";
        let scheduled = !was_trial && self.rng.u8(..10) == 0;
        if scheduled {
            let plan = self.rng.usize(..self.catalog.plans.len());
            self.subscriptions[index].plan = plan;
            self.subscriptions[index].seats = 1;
        }
        self.act(index, if scheduled { "renews with the scheduled plan" } else { "renews" });
        let invoice_id = self.id("in");
        let (start, named) = (self.subscriptions[index].it.end, invoice_id.clone());
        let items = self.items(index);
        self.update(index, |it| {
            (it.start, it.end, it.status) = (start, start + MONTH, "active");
            it.latest_invoice = Some(named);
            it.items = items;
        });
        let mut lines = std::mem::take(&mut self.subscriptions[index].prorations);
        lines.push(self.period_line(index));
        let mut invoice = self.invoice(index, invoice_id, "subscription_cycle", lines);
        invoice.paid = invoice.lines.iter().map(|line| line.amount).sum::<i64>().max(0);
        let truth = Truth::Opened {
            subscription: self.subscriptions[index].it.id.clone(),
            key: format!("invoice#{}", invoice.id),
            start,
            price: self.price(self.subscriptions[index].plan),
            credits: self.worth(index, false),
            paid: invoice.paid,
            change: false,
        };
        self.noise("invoice.created", &invoice, "draft");
        if self.rng.u8(..8) == 0 {
            self.now += self.rng.i64(0..1800);
            self.change_plan(index, Billing::NextInvoice);
        }
        if self.rng.u8(..4) > 0 {
            self.now += 3600;
        }
        self.tick();
        if self.rng.u8(..7) == 0 {
            self.emit_invoice("invoice.payment_failed", &invoice, "open");
            self.tick();
            self.update(index, |it| it.status = "past_due");
            self.subscriptions[index].owed = Some(Owed { invoice, truth });
        } else {
            self.pay(invoice, truth);
        }
    }

    fn recover(&mut self, index: usize) {
        self.act(index, "pays what is overdue");
        self.settle_owed(index);
    }

    /// The owed invoice is paid and the subscription active again; either may be told first.
    fn settle_owed(&mut self, index: usize) {
        let Some(Owed { invoice, truth }) = self.subscriptions[index].owed.take() else { return };
        if self.rng.bool() {
            self.pay(invoice, truth);
            self.tick();
            self.update(index, |it| it.status = "active");
        } else {
            self.update(index, |it| it.status = "active");
            self.tick();
            self.pay(invoice, truth);
        }
        if std::mem::take(&mut self.subscriptions[index].changed_unpaid) {
            let (price, credits) = (self.price(self.subscriptions[index].plan), self.worth(index, false));
            let it = &self.subscriptions[index].it;
            let (subscription, start) = (it.id.clone(), it.start);
            self.truth(Truth::InForce { subscription, start, price, credits });
        }
    }

    fn give_up(&mut self, index: usize) {
        if self.rng.u8(..3) == 0 && self.subscriptions[index].it.end > self.now {
            self.act(index, "never pays: unpaid");
            self.update(index, |it| it.status = "unpaid");
        } else {
            self.act(index, "never pays: canceled");
            self.end(index);
        }
    }

    fn resume(&mut self, index: usize) {
        self.act(index, "resumes");
        let invoice_id = self.id("in");
        let (now, named) = (self.now, invoice_id.clone());
        self.update(index, |it| {
            (it.status, it.start, it.end, it.latest_invoice) = ("active", now, now + MONTH, Some(named))
        });
        let object = render::subscription(&self.subscriptions[index].it, self.life.shape);
        self.emit("customer.subscription.resumed", &object, None);
        let lines = vec![self.period_line(index)];
        let mut invoice = self.invoice(index, invoice_id, "subscription_cycle", lines);
        invoice.paid = invoice.lines.iter().map(|line| line.amount).sum();
        let truth = Truth::Opened {
            subscription: invoice.subscription.clone(),
            key: format!("invoice#{}", invoice.id),
            start: self.subscriptions[index].it.start,
            price: self.price(self.subscriptions[index].plan),
            credits: self.worth(index, false),
            paid: invoice.paid,
            change: false,
        };
        self.tick();
        self.pay(invoice, truth);
    }

    fn plan_end(&mut self, index: usize) {
        self.act(index, "cancels at the end");
        let (flag, now) = (self.rng.bool(), self.now);
        let early = !flag && self.rng.u8(..4) == 0;
        self.update(index, |it| {
            let at = if early { now + (it.end - now) / 2 + 1 } else { it.end };
            (it.cancel_at, it.at_period_end, it.canceled_at) = (Some(at), flag, Some(now));
        });
    }

    fn end(&mut self, index: usize) {
        let canceled = Subscription { status: "canceled", ..self.subscriptions[index].it.clone() };
        self.settle_second(index, &canceled);
        let now = self.now;
        let sold = &mut self.subscriptions[index];
        (sold.it.status, sold.it.ended_at) = ("canceled", Some(now));
        sold.it.canceled_at.get_or_insert(now);
        sold.owed = None;
        sold.seen.push((now, sold.it.clone()));
        let (object, subscription) = (render::subscription(&sold.it, self.life.shape), sold.it.id.clone());
        self.emit("customer.subscription.deleted", &object, None);
        self.truth(Truth::Ended { subscription, at: now });
    }

    fn change(&mut self, index: usize) {
        let others: Vec<usize> =
            (0..self.catalog.plans.len()).filter(|&plan| plan != self.subscriptions[index].plan).collect();
        if others.is_empty() {
            return;
        }
        let plan = others[self.rng.usize(..others.len())];
        let seats = if self.plan(plan).per == Per::Seat { self.rng.u64(1..6) } else { 1 };
        self.change_to(index, plan, seats);
    }

    fn change_to(&mut self, index: usize, plan: usize, seats: u64) {
        let sold = &mut self.subscriptions[index];
        let billing = match (sold.it.status, self.rng.u8(..8)) {
            ("active", 0..2) => Billing::AtOnce,
            ("active", 2) => Billing::AtOnceButFails,
            ("active", 3..5) if sold.it.cancel_at.is_none() => Billing::NewPeriod,
            _ => Billing::NextInvoice,
        };
        (sold.plan, sold.seats) = (plan, seats);
        let name = self.plan(plan).name.clone();
        self.act(index, &format!("changes to {name} x{seats}: {billing:?}"));
        self.bill_change(index, billing);
    }

    /// A change within another act.
    fn change_plan(&mut self, index: usize, billing: Billing) {
        let plan = (self.subscriptions[index].plan + 1) % self.catalog.plans.len();
        let seats = if self.plan(plan).per == Per::Seat { 2 } else { 1 };
        (self.subscriptions[index].plan, self.subscriptions[index].seats) = (plan, seats);
        self.bill_change(index, billing);
    }

    fn bill_change(&mut self, index: usize, billing: Billing) {
        let items = self.items(index);
        let trialing = self.subscriptions[index].it.status == "trialing";
        let in_good_standing = matches!(self.subscriptions[index].it.status, "active" | "trialing");
        let old_price = self.plan_price_of(&self.subscriptions[index].it);
        let part = |amount: i64, price: String, stripe: &Self| Line {
            price,
            quantity: 1,
            amount,
            kind: LineKind::Proration,
            start: stripe.now,
            end: stripe.subscriptions[index].it.end,
        };
        let credit = part(-700, old_price, self);
        let charge = part(1100, self.price(self.subscriptions[index].plan), self);
        let took = |stripe: &Self, counts: bool| Truth::Took {
            subscription: stripe.subscriptions[index].it.id.clone(),
            start: stripe.subscriptions[index].it.start,
            price: stripe.price(stripe.subscriptions[index].plan),
            credits: stripe.worth(index, trialing),
            counts,
        };
        match billing {
            Billing::NextInvoice => {
                self.update(index, |it| it.items = items);
                if !trialing {
                    self.subscriptions[index].prorations.extend([credit, charge]);
                }
                self.subscriptions[index].changed_unpaid |= !in_good_standing;
                self.truth(took(self, in_good_standing));
            }
            Billing::AtOnce | Billing::AtOnceButFails => {
                let fails = matches!(billing, Billing::AtOnceButFails);
                let invoice_id = self.id("in");
                let named = invoice_id.clone();
                self.update(index, |it| {
                    it.items = items;
                    it.latest_invoice = Some(named);
                    if fails {
                        it.status = "past_due";
                    }
                });
                self.truth(took(self, !fails));
                let lines = if self.rng.bool() { vec![credit, charge] } else { vec![charge, credit] };
                let mut invoice = self.invoice(index, invoice_id, "subscription_update", lines);
                invoice.paid = 400;
                let truth = Truth::Recorded { key: format!("invoice#{}", invoice.id) };
                self.tick();
                if fails {
                    self.emit_invoice("invoice.payment_failed", &invoice, "open");
                    self.subscriptions[index].owed = Some(Owed { invoice, truth });
                    self.subscriptions[index].changed_unpaid = true;
                } else {
                    self.pay(invoice, truth);
                }
            }
            Billing::NewPeriod => {
                self.now = self.now.max(self.subscriptions[index].it.start + 1);
                let invoice_id = self.id("in");
                let named = invoice_id.clone();
                let changed = Subscription { items: items.clone(), ..self.subscriptions[index].it.clone() };
                self.settle_second(index, &changed);
                let now = self.now;
                self.update(index, |it| {
                    it.items = items;
                    (it.start, it.end, it.latest_invoice) = (now, now + MONTH, Some(named));
                });
                let lines = vec![credit, self.period_line(index)];
                let mut invoice = self.invoice(index, invoice_id, "subscription_update", lines);
                invoice.paid = invoice.lines.iter().map(|line| line.amount).sum::<i64>().max(0);
                let (subscription, price) =
                    (invoice.subscription.clone(), self.price(self.subscriptions[index].plan));
                let truth = Truth::Opened {
                    key: format!("plan#{subscription}#{price}#{now}"),
                    subscription,
                    start: now,
                    price,
                    credits: self.worth(index, false),
                    paid: invoice.paid,
                    change: true,
                };
                self.tick();
                self.pay(invoice, truth);
            }
        }
    }

    /// Moves on to the next second if this state was met in the running one.
    fn settle_second(&mut self, index: usize, after: &Subscription) {
        let sold = &self.subscriptions[index];
        let before = &sold.it;
        let key = |it: &Subscription| (it.status, it.items.clone(), it.cancel_at, it.at_period_end, it.start);
        let prices = |it: &Subscription| it.items.iter().map(|item| item.0.clone()).collect::<Vec<_>>();
        let met = |seen: &Subscription| {
            key(seen) == key(after) || (after.items != before.items && prices(seen) == prices(after))
        };
        if sold.seen.iter().any(|(second, seen)| *second == self.now && met(seen)) {
            self.now += 1;
        }
    }

    fn update(&mut self, index: usize, change: impl FnOnce(&mut Subscription)) {
        let before = self.subscriptions[index].it.clone();
        let mut after = before.clone();
        change(&mut after);
        self.settle_second(index, &after);
        let previous = render::previous(&before, &after, self.life.shape);
        let object = render::subscription(&after, self.life.shape);
        let now = self.now;
        self.subscriptions[index].it = after.clone();
        self.subscriptions[index].seen.retain(|(second, _)| *second == now);
        self.subscriptions[index].seen.extend([(now, before), (now, after)]);
        self.emit("customer.subscription.updated", &object, Some(&previous));
    }

    // One-time payments.

    fn buy_pack(&mut self) {
        if self.catalog.packs.is_empty() {
            return;
        }
        let pack = self.rng.usize(..self.catalog.packs.len());
        let quantity = self.rng.u64(1..4);
        let customer = if self.rng.u8(..5) == 0 { None } else { Some(self.customer()) };
        let how = self.rng.u8(..6);
        let id = self.id("cs_test");
        let (name, credits) =
            (self.catalog.packs[pack].name.clone(), self.catalog.packs[pack].credits * quantity);
        self.tell(format!(
            "buys {name} x{quantity}{}",
            ["", "", "", "", ", free", ", paid later"][usize::from(how)]
        ));
        let status = ["paid", "paid", "paid", "paid", "no_payment_required", "unpaid"][usize::from(how)];
        let mut session =
            self.session(&id, "payment", status, json!({"pack": name, "quantity": quantity.to_string()}));
        session["customer"] = json!(customer);
        session["amount_total"] =
            json!(if status == "no_payment_required" { 0 } else { pack_price(quantity) });
        let intent = self.id("pi");
        if status != "no_payment_required" {
            session["payment_intent"] = json!(intent);
        }
        self.emit("checkout.session.completed", &session, None);
        if status == "unpaid" {
            self.delayed.push(Delayed { id, intent, pack, quantity, customer });
            return;
        }
        let paid = if status == "paid" { pack_price(quantity) } else { 0 };
        let key = format!("session#{id}");
        self.truth(Truth::Bought { key: key.clone(), credits, at: self.now, paid });
        if paid > 0 {
            self.money(intent, paid, Some(key), None, customer);
        }
    }

    fn settle(&mut self, index: usize) {
        let Delayed { id, intent, pack, quantity, customer } = self.delayed.remove(index);
        let arrives = self.rng.u8(..4) > 0;
        self.tell(format!("the payment of {id} {}", if arrives { "arrives" } else { "fails" }));
        let metadata = json!({"pack": self.catalog.packs[pack].name, "quantity": quantity.to_string()});
        let mut session = self.session(&id, "payment", if arrives { "paid" } else { "unpaid" }, metadata);
        session["customer"] = json!(customer);
        session["amount_total"] = json!(pack_price(quantity));
        session["payment_intent"] = json!(intent);
        if arrives {
            self.emit("checkout.session.async_payment_succeeded", &session, None);
            let key = format!("session#{id}");
            let credits = self.catalog.packs[pack].credits * quantity;
            self.truth(Truth::Bought { key: key.clone(), credits, at: self.now, paid: pack_price(quantity) });
            self.money(intent, pack_price(quantity), Some(key), None, customer);
        } else {
            self.emit("checkout.session.async_payment_failed", &session, None);
        }
    }

    fn buy_order(&mut self) {
        let Some((mode, plan)) = self
            .catalog
            .orders
            .first()
            .and_then(|order| Some((order.mode.clone(), order.plans.keys().next()?.clone())))
        else {
            return;
        };
        self.tell(format!("orders {mode} {plan}"));
        let (id, intent, customer) = (self.id("cs_test"), self.id("pi"), self.customer());
        let mut session = self.session(&id, "payment", "paid", json!({"mode": mode, "plan": plan}));
        session["customer"] = json!(customer);
        session["amount_total"] = json!(49_000);
        session["payment_intent"] = json!(intent);
        self.emit("checkout.session.completed", &session, None);
        let key = format!("session#{id}");
        self.truth(Truth::Recorded { key: key.clone() });
        self.money(intent, 49_000, Some(key), None, Some(customer));
    }

    fn session(&self, id: &str, mode: &str, payment_status: &str, metadata: Value) -> Value {
        json!({
            "id": id,
            "object": "checkout.session",
            "mode": mode,
            "status": "complete",
            "payment_status": payment_status,
            "customer": null,
            "client_reference_id": self.life.user,
            "metadata": metadata,
            "subscription": null,
            "payment_intent": null,
            "invoice": null,
            "amount_total": 1900,
            "currency": self.currency,
            "customer_details": {"email": "someone@example.com"},
            "created": self.now,
        })
    }

    // Money that goes back.

    fn refund(&mut self, index: usize) {
        let left = self.payments[index].refundable();
        let amount = if self.rng.bool() { left } else { self.rng.i64(1..=left) };
        let pending = self.rng.u8(..3) == 0;
        let status = if pending { "pending" } else { "succeeded" };
        self.tell(format!(
            "is refunded {amount} of {} ({}): {status}",
            self.payments[index].amount, self.payments[index].intent
        ));
        let id = self.id("re");
        self.payments[index].refunds.push((id, amount, status));
        let last = self.payments[index].refunds.len() - 1;
        self.emit_refund("refund.created", index, last);
        self.tick();
        self.emit_charge(index);
        if !pending && self.rng.bool() {
            self.tick();
            self.emit_refund("refund.updated", index, last);
        }
        self.reversed(index);
    }

    fn settle_refund(&mut self, index: usize) {
        let Some(which) = self.payments[index].refunds.iter().position(|refund| refund.2 == "pending") else {
            return;
        };
        let arrives = self.rng.bool();
        self.payments[index].refunds[which].2 = if arrives { "succeeded" } else { "failed" };
        self.tell(format!(
            "the refund {} {}",
            self.payments[index].refunds[which].0,
            if arrives { "arrives" } else { "fails" }
        ));
        if !arrives {
            self.emit_refund("refund.failed", index, which);
            self.tick();
        }
        self.emit_refund("refund.updated", index, which);
        self.reversed(index);
    }

    fn emit_refund(&mut self, kind: &'static str, index: usize, which: usize) {
        let money = &self.payments[index];
        let (id, amount, status) = &money.refunds[which];
        let object = json!({
            "id": id, "object": "refund", "charge": money.charge, "payment_intent": money.intent, "amount": amount,
            "currency": self.currency, "status": status, "metadata": {},
        });
        self.emit(kind, &object, None);
    }

    fn emit_charge(&mut self, index: usize) {
        let money = &self.payments[index];
        let mut object = json!({
            "id": money.charge, "object": "charge", "customer": money.customer, "payment_intent": money.intent, "amount": money.amount,
            "amount_refunded": money.refunded(), "refunded": money.refunded() == money.amount, "currency": self.currency, "metadata": {},
        });
        if self.life.shape == Shape::Old {
            object["invoice"] = json!(money.invoice);
        }
        self.emit("charge.refunded", &object, None);
    }

    fn dispute(&mut self, index: usize) {
        let amount = self.payments[index].refundable();
        let status =
            ["needs_response", "needs_response", "warning_needs_response", "lost"][self.rng.usize(..4)];
        self.tell(format!("disputes {amount} of {}: {status}", self.payments[index].intent));
        let id = self.id("dp");
        self.payments[index].dispute = Some((id, amount, status));
        self.emit_dispute("charge.dispute.created", index);
        if !status.starts_with("warning") {
            self.tick();
            self.emit_dispute("charge.dispute.funds_withdrawn", index);
        }
        self.reversed(index);
    }

    fn move_dispute(&mut self, index: usize) {
        let choice = self.rng.usize(..3);
        let Some(dispute) = &mut self.payments[index].dispute else { return };
        dispute.2 = match dispute.2 {
            "warning_needs_response" => ["warning_closed", "needs_response", "warning_under_review"][choice],
            "warning_under_review" => ["warning_closed", "needs_response", "warning_closed"][choice],
            "needs_response" => ["under_review", "won", "lost"][choice],
            _ => ["won", "lost", "won"][choice],
        };
        let (id, status) = (dispute.0.clone(), dispute.2);
        self.tell(format!("the dispute {id} is {status}"));
        match status {
            "won" | "lost" | "warning_closed" => {
                self.emit_dispute("charge.dispute.closed", index);
                if status == "won" {
                    self.tick();
                    self.emit_dispute("charge.dispute.funds_reinstated", index);
                }
            }
            _ => self.emit_dispute("charge.dispute.updated", index),
        }
        self.reversed(index);
    }

    fn emit_dispute(&mut self, kind: &'static str, index: usize) {
        let money = &self.payments[index];
        let Some((id, amount, status)) = &money.dispute else { return };
        let object = json!({
            "id": id, "object": "dispute", "charge": money.charge, "payment_intent": money.intent, "amount": amount,
            "currency": self.currency, "status": status, "metadata": {}, "created": self.now,
        });
        self.emit(kind, &object, None);
    }

    fn reversed(&mut self, index: usize) {
        let money = &self.payments[index];
        if let Some(key) = money.key.clone() {
            let amount = money.gone();
            self.truth(Truth::Reversed { key, amount });
        }
    }

    fn delete_customer(&mut self) {
        let Some(customer) = self.customer.take() else { return };
        self.tell(format!("{customer} is deleted"));
        let object = json!({"id": customer, "object": "customer", "deleted": true, "metadata": {}});
        let first = self.rng.bool();
        if first {
            self.emit("customer.deleted", &object, None);
        }
        let live: Vec<usize> =
            (0..self.subscriptions.len()).filter(|&index| !over(&self.subscriptions[index].it)).collect();
        for index in live {
            self.end(index);
        }
        if !first {
            self.emit("customer.deleted", &object, None);
        }
    }

    // What all acts use.

    fn customer(&mut self) -> String {
        if self.customer.is_none() {
            self.customer = Some(self.id("cus"));
        }
        self.customer.clone().unwrap_or_default()
    }

    fn plan(&self, index: usize) -> &Plan {
        &self.catalog.plans[index]
    }

    fn price(&self, plan: usize) -> String {
        self.plan(plan).prices.first().cloned().unwrap_or_default()
    }

    fn plan_price_of(&self, it: &Subscription) -> String {
        it.items.iter().find(|item| item.0 != STRANGER).map(|item| item.0.clone()).unwrap_or_default()
    }

    /// The items with the plan and seats that the subscription has from here on.
    fn items(&self, index: usize) -> Vec<(String, u64)> {
        let sold = &self.subscriptions[index];
        let plan = (self.price(sold.plan), sold.seats);
        sold.it
            .items
            .iter()
            .map(|item| if item.0 == STRANGER { item.clone() } else { plan.clone() })
            .collect()
    }

    fn worth(&self, index: usize, trial: bool) -> u64 {
        let sold = &self.subscriptions[index];
        let plan = self.plan(sold.plan);
        let credits = if trial { plan.trial_credits } else { plan.credits };
        if plan.per == Per::Seat { credits * sold.seats } else { credits }
    }

    fn period_line(&self, index: usize) -> Line {
        let sold = &self.subscriptions[index];
        let amount =
            1900 * i64::try_from((u64::try_from(sold.plan).unwrap_or(0) + 1) * sold.seats).unwrap_or(1);
        Line {
            price: self.price(sold.plan),
            quantity: sold.seats,
            amount,
            kind: LineKind::Period,
            start: sold.it.start,
            end: sold.it.end,
        }
    }

    fn invoice(&mut self, index: usize, id: String, reason: &'static str, lines: Vec<Line>) -> Invoice {
        let payment = Some((self.id("pi"), self.id("ch")));
        let it = &self.subscriptions[index].it;
        Invoice {
            id,
            customer: it.customer.clone(),
            subscription: it.id.clone(),
            reason,
            lines,
            paid: 0,
            currency: self.currency,
            payment,
            user: it.user.clone(),
            tells_payment: self.tells_payments,
        }
    }

    fn pay(&mut self, mut invoice: Invoice, truth: Truth) {
        if invoice.paid == 0 {
            invoice.payment = None;
        }
        let key = match &truth {
            Truth::Opened { key, .. } | Truth::Recorded { key } => key.clone(),
            Truth::Took { .. }
            | Truth::InForce { .. }
            | Truth::Ended { .. }
            | Truth::Bought { .. }
            | Truth::Reversed { .. } => String::new(),
        };
        self.truth(truth);
        self.emit_invoice("invoice.paid", &invoice, "paid");
        self.noise("invoice.payment_succeeded", &invoice, "paid");
        if let Some((intent, _)) = &invoice.payment {
            self.life.invoices.insert(intent.clone(), invoice.id.clone());
            let known = invoice.tells_payment.then_some(key);
            self.money(
                intent.clone(),
                invoice.paid,
                known,
                Some(invoice.id.clone()),
                Some(invoice.customer.clone()),
            );
            if let (Some(money), Some((_, charge))) = (self.payments.last_mut(), invoice.payment) {
                money.charge = charge;
            }
        }
    }

    fn money(
        &mut self,
        intent: String,
        amount: i64,
        key: Option<String>,
        invoice: Option<String>,
        customer: Option<String>,
    ) {
        let charge = self.id("ch");
        self.payments.push(Money {
            intent,
            charge,
            amount,
            key,
            invoice,
            customer,
            refunds: Vec::new(),
            dispute: None,
        });
    }

    fn noise(&mut self, kind: &'static str, invoice: &Invoice, status: &str) {
        if self.options.noise {
            self.emit_invoice(kind, invoice, status);
        }
    }

    fn emit_invoice(&mut self, kind: &'static str, invoice: &Invoice, status: &str) {
        let object = render::invoice(invoice, self.life.shape, status, self.now);
        self.emit(kind, &object, None);
    }

    fn emit(&mut self, kind: &'static str, object: &Value, previous: Option<&Value>) {
        let id = self.id("evt");
        let body = render::event(&id, kind, self.now, self.life.shape, object, previous);
        let act = self.life.acts.len().saturating_sub(1);
        self.life.events.push(Sent { id, kind, created: self.now, act, body });
    }

    fn act(&mut self, subscription: usize, what: &str) {
        let what = format!("{} {what}", self.subscriptions[subscription].it.id);
        self.tell(what);
    }

    fn tell(&mut self, what: String) {
        self.life.acts.push(Act { at: self.now, what });
    }

    fn truth(&mut self, truth: Truth) {
        let act = self.life.acts.len().saturating_sub(1);
        self.life.truths.push((act, truth));
    }

    fn tick(&mut self) {
        self.now += [0, 0, 0, 1, 1, 2][self.rng.usize(..6)];
    }

    fn id(&mut self, prefix: &str) -> String {
        self.serial += 1;
        format!("{prefix}_{:x}_{}", self.life.seed, self.serial)
    }
}

impl Money {
    /// `amount_refunded`: what was not refunded in vain.
    fn refunded(&self) -> i64 {
        self.refunds.iter().filter(|refund| refund.2 != "failed").map(|refund| refund.1).sum()
    }

    /// What can still be refunded or disputed.
    fn refundable(&self) -> i64 {
        let disputed = self.dispute.as_ref().filter(|dispute| held(dispute.2)).map_or(0, |dispute| dispute.1);
        self.amount - self.refunded() - disputed
    }

    /// What is not with the merchant.
    fn gone(&self) -> i64 {
        let refunded: i64 =
            self.refunds.iter().filter(|refund| refund.2 == "succeeded").map(|refund| refund.1).sum();
        refunded + self.dispute.as_ref().filter(|dispute| held(dispute.2)).map_or(0, |dispute| dispute.1)
    }
}

fn held(dispute: &str) -> bool {
    matches!(dispute, "needs_response" | "under_review" | "lost")
}

fn open(dispute: &str) -> bool {
    !matches!(dispute, "won" | "lost" | "warning_closed")
}

fn over(it: &Subscription) -> bool {
    matches!(it.status, "canceled" | "incomplete_expired")
}

/// When something happens to a subscription by time alone.
fn due(it: &Subscription) -> Option<i64> {
    match it.status {
        "active" | "trialing" => Some(it.cancel_at.map_or(it.end, |at| at.min(it.end))),
        "past_due" => Some(it.end),
        "incomplete" => Some(it.created + 23 * 3600),
        _ => None,
    }
}

fn invoice_is_free(start: Start) -> bool {
    matches!(start, Start::NothingToPay | Start::Trial)
}

fn pack_price(quantity: u64) -> i64 {
    i64::try_from(quantity).unwrap_or(1) * 1000
}
