//! Everything that happens to a subscription: start, renewal, changes, failed payments, end.

use serde_json::json;
use tallyhook_core::catalog::Per;

use super::{DAY, MONTH, OTHER_PRICE, Stripe, SubscriptionState, plan_item};
use crate::life::Shape;
use crate::life::render::{self, Line, LineKind, Subscription};

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

impl Stripe<'_> {
    pub(super) fn subscribe(&mut self) {
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
            items.insert(self.rng.usize(..2), (OTHER_PRICE.to_owned(), 1));
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
        self.subscriptions.push(SubscriptionState {
            it,
            plan,
            seats,
            states: Vec::new(),
            open_invoice: None,
            prorations: Vec::new(),
        });
        self.begin_subscription_act(
            index,
            &format!(
                "subscribes to {} x{seats}: {start:?}{}",
                self.plan(plan).name,
                if checkout { "" } else { " from the dashboard" }
            ),
        );

        let object = render::subscription(&self.subscriptions[index].it, self.life.shape);
        let first = (self.now, self.subscriptions[index].it.clone());
        self.subscriptions[index].states.push(first);
        self.emit("customer.subscription.created", &object, None);
        let mut line = self.period_line(index);
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
                item: 0,
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
        self.tick();
        if matches!(start, Start::Unpaid) {
            self.emit_invoice("invoice.payment_failed", &invoice, "open");
            self.subscriptions[index].open_invoice = Some(invoice);
            return;
        }
        if is_legacy {
            self.update(index, |it| it.status = "active");
            self.tick();
        }
        self.pay(invoice);
        if checkout {
            self.tick();
            let statuses: &[&str] =
                if invoice_is_free(start) { &["no_payment_required", "paid"] } else { &["paid"] };
            let paid = statuses[self.rng.usize(..statuses.len())];
            self.finish_checkout(index, paid);
        }
    }

    pub(super) fn pay_first(&mut self, index: usize) {
        self.begin_subscription_act(index, "pays the first invoice at last");
        self.pay_open_invoice(index);
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

    pub(super) fn renew(&mut self, index: usize) {
        let was_trial = self.subscriptions[index].it.status == "trialing";
        let scheduled = !was_trial && self.rng.u8(..10) == 0;
        if scheduled {
            let plan = self.rng.usize(..self.catalog.plans.len());
            self.subscriptions[index].plan = plan;
            self.subscriptions[index].seats = 1;
        }
        self.begin_subscription_act(
            index,
            if scheduled { "renews with the scheduled plan" } else { "renews" },
        );
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
        self.noise("invoice.created", &invoice, "draft");
        if self.rng.u8(..8) == 0 && self.subscriptions[index].it.end > self.now + 1800 {
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
            self.subscriptions[index].open_invoice = Some(invoice);
        } else {
            self.pay(invoice);
        }
    }

    pub(super) fn recover(&mut self, index: usize) {
        self.begin_subscription_act(index, "pays what is overdue");
        self.pay_open_invoice(index);
    }

    /// Pays the open invoice and makes the subscription active. Either event may come first.
    fn pay_open_invoice(&mut self, index: usize) {
        let Some(invoice) = self.subscriptions[index].open_invoice.take() else {
            return;
        };
        if self.rng.bool() {
            self.pay(invoice);
            self.tick();
            self.update(index, |it| it.status = "active");
        } else {
            self.update(index, |it| it.status = "active");
            self.tick();
            self.pay(invoice);
        }
    }

    pub(super) fn stop_collecting(&mut self, index: usize) {
        if self.rng.u8(..3) == 0 && self.subscriptions[index].it.end > self.now {
            self.begin_subscription_act(index, "never pays: unpaid");
            self.update(index, |it| it.status = "unpaid");
        } else {
            self.begin_subscription_act(index, "never pays: canceled");
            self.end(index);
        }
    }

    pub(super) fn resume(&mut self, index: usize) {
        self.begin_subscription_act(index, "resumes");
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
        self.tick();
        self.pay(invoice);
    }

    pub(super) fn cancel_at_end(&mut self, index: usize) {
        self.begin_subscription_act(index, "cancels at the end");
        let (flag, now) = (self.rng.bool(), self.now);
        let early = !flag && self.rng.u8(..4) == 0;
        self.update(index, |it| {
            let at = if early { now + (it.end - now) / 2 + 1 } else { it.end };
            (it.cancel_at, it.at_period_end, it.canceled_at) = (Some(at), flag, Some(now));
        });
    }

    pub(super) fn end(&mut self, index: usize) {
        let canceled = Subscription { status: "canceled", ..self.subscriptions[index].it.clone() };
        self.settle_second(index, &canceled);
        let now = self.now;
        let state = &mut self.subscriptions[index];
        (state.it.status, state.it.ended_at) = ("canceled", Some(now));
        state.it.canceled_at.get_or_insert(now);
        state.open_invoice = None;
        state.states.push((now, state.it.clone()));
        let object = render::subscription(&state.it, self.life.shape);
        self.emit("customer.subscription.deleted", &object, None);
    }

    pub(super) fn change(&mut self, index: usize) {
        let others: Vec<usize> =
            (0..self.catalog.plans.len()).filter(|&plan| plan != self.subscriptions[index].plan).collect();
        if others.is_empty() {
            return;
        }
        let plan = others[self.rng.usize(..others.len())];
        let seats = if self.plan(plan).per == Per::Seat { self.rng.u64(1..6) } else { 1 };
        self.change_to(index, plan, seats);
    }

    pub(super) fn change_to(&mut self, index: usize, plan: usize, seats: u64) {
        let state = &mut self.subscriptions[index];
        // Stripe begins the next period when the last one ends, and bills a later change in it.
        if state.it.end <= self.now {
            return;
        }
        let billing = match (state.it.status, self.rng.u8(..8)) {
            ("active", 0..2) => Billing::AtOnce,
            ("active", 2) => Billing::AtOnceButFails,
            ("active", 3..5) if state.it.cancel_at.is_none() => Billing::NewPeriod,
            _ => Billing::NextInvoice,
        };
        (state.plan, state.seats) = (plan, seats);
        let name = self.plan(plan).name.clone();
        self.begin_subscription_act(index, &format!("changes to {name} x{seats}: {billing:?}"));
        self.bill_change(index, billing);
    }

    /// Changes the plan as part of another act.
    fn change_plan(&mut self, index: usize, billing: Billing) {
        let plan = (self.subscriptions[index].plan + 1) % self.catalog.plans.len();
        let seats = if self.plan(plan).per == Per::Seat { 2 } else { 1 };
        (self.subscriptions[index].plan, self.subscriptions[index].seats) = (plan, seats);
        self.bill_change(index, billing);
    }

    /// Any invoice of the subscription bills the prorations that wait for the next one.
    fn bill_change(&mut self, index: usize, billing: Billing) {
        let items = self.items(index);
        let trialing = self.subscriptions[index].it.status == "trialing";
        let (old_price, old_seats) = self.plan_of(&self.subscriptions[index].it);
        let part = |amount: i64, price: String, quantity: u64, stripe: &Self| Line {
            price,
            quantity,
            amount,
            kind: LineKind::Proration,
            item: plan_item(&stripe.subscriptions[index].it),
            start: stripe.now,
            end: stripe.subscriptions[index].it.end,
        };
        let credit = part(-700, old_price, old_seats, self);
        let seats = self.subscriptions[index].seats;
        let charge = part(1100, self.price(self.subscriptions[index].plan), seats, self);
        match billing {
            Billing::NextInvoice => {
                self.update(index, |it| it.items = items);
                if !trialing {
                    self.subscriptions[index].prorations.extend([credit, charge]);
                }
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
                let mut lines = std::mem::take(&mut self.subscriptions[index].prorations);
                lines.extend(if self.rng.bool() { [credit, charge] } else { [charge, credit] });
                let mut invoice = self.invoice(index, invoice_id, "subscription_update", lines);
                invoice.paid = invoice.lines.iter().map(|line| line.amount).sum::<i64>().max(0);
                self.tick();
                if fails {
                    self.emit_invoice("invoice.payment_failed", &invoice, "open");
                    self.subscriptions[index].open_invoice = Some(invoice);
                } else {
                    self.pay(invoice);
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
                let mut lines = std::mem::take(&mut self.subscriptions[index].prorations);
                lines.extend([credit, self.period_line(index)]);
                let mut invoice = self.invoice(index, invoice_id, "subscription_update", lines);
                invoice.paid = invoice.lines.iter().map(|line| line.amount).sum::<i64>().max(0);
                self.tick();
                self.pay(invoice);
            }
        }
    }

    /// Moves to the next second if the new state already occurred in the current one.
    fn settle_second(&mut self, index: usize, after: &Subscription) {
        let state = &self.subscriptions[index];
        let before = &state.it;
        let key = |it: &Subscription| (it.status, it.items.clone(), it.cancel_at, it.at_period_end, it.start);
        let prices = |it: &Subscription| it.items.iter().map(|item| item.0.clone()).collect::<Vec<_>>();
        let equals_after = |earlier: &Subscription| {
            key(earlier) == key(after) || (after.items != before.items && prices(earlier) == prices(after))
        };
        if state.states.iter().any(|(second, earlier)| *second == self.now && equals_after(earlier)) {
            self.now += 1;
        }
    }

    pub(super) fn update(&mut self, index: usize, change: impl FnOnce(&mut Subscription)) {
        let before = self.subscriptions[index].it.clone();
        let mut after = before.clone();
        change(&mut after);
        self.settle_second(index, &after);
        let previous = render::previous(&before, &after, self.life.shape);
        let object = render::subscription(&after, self.life.shape);
        let now = self.now;
        self.subscriptions[index].it = after.clone();
        self.subscriptions[index].states.retain(|(second, _)| *second == now);
        self.subscriptions[index].states.extend([(now, before), (now, after)]);
        self.emit("customer.subscription.updated", &object, Some(&previous));
    }
}

fn invoice_is_free(start: Start) -> bool {
    matches!(start, Start::NothingToPay | Start::Trial)
}
