//! A simulation of Stripe with one customer: the objects, the random choices, and the events that they fire.

mod purchases;
mod rare;
mod refunds;
mod subscriptions;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tallyhook_core::catalog::{Catalog, Per, Plan};

use self::rare::Rare;
use super::render::{self, Invoice, Line, LineKind, Subscription};
use super::{Act, Life, LifeEvent, Options, Shape};

const DAY: i64 = 86_400;
const MONTH: i64 = 30 * DAY;
/// A price that is not in the catalog. Some subscriptions have an item with it beside the plan's.
const OTHER_PRICE: &str = "price_of_something_else";

/// One customer of one Stripe account.
pub(super) struct Stripe<'a> {
    rng: fastrand::Rng,
    catalog: &'a Catalog,
    options: Options,
    now: i64,
    serial: u32,
    customer: Option<String>,
    currency: &'static str,
    shows_payments: bool,
    subscriptions: Vec<SubscriptionState>,
    rare: Vec<Rare>,
    payments: Vec<Payment>,
    delayed: Vec<DelayedPayment>,
    life: Life,
}

/// A subscription, and what the simulation knows about it.
struct SubscriptionState {
    /// The subscription as Stripe shows it.
    it: Subscription,
    plan: usize,
    seats: u64,
    /// The states in the current second. None of them may occur twice in it.
    states: Vec<(i64, Subscription)>,
    /// An invoice that is not paid yet.
    open_invoice: Option<Invoice>,
    /// Proration lines of the next invoice.
    prorations: Vec<Line>,
}

/// A payment, for refunds and disputes.
struct Payment {
    intent: String,
    charge: String,
    amount: i64,
    invoice: Option<String>,
    customer: Option<String>,
    refunds: Vec<(String, i64, &'static str)>,
    dispute: Option<(String, i64, &'static str)>,
}

/// The payment of a session that is completed and unpaid.
struct DelayedPayment {
    id: String,
    intent: String,
    pack: usize,
    quantity: u64,
    customer: Option<String>,
}

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Subscribe,
    PayFirst(usize),
    Change(usize),
    Seats(usize),
    CancelAtEnd(usize),
    KeepSubscription(usize),
    CancelNow(usize),
    Recover(usize),
    StopCollecting(usize),
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
    StartRare,
    MoveRare(usize),
}

impl<'a> Stripe<'a> {
    pub(super) fn new(seed: u64, catalog: &'a Catalog, options: Options) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = if rng.bool() { Shape::Old } else { Shape::New };
        let currency = if rng.u8(..4) == 0 { "jpy" } else { "usd" };
        let shows_payments = shape == Shape::Old || rng.bool();
        let life = Life {
            seed,
            shape,
            user: format!("user_{seed:x}"),
            acts: Vec::new(),
            events: Vec::new(),
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
            shows_payments,
            subscriptions,
            rare: Vec::new(),
            payments,
            delayed,
            life,
        }
    }

    pub(super) fn run(mut self) -> Life {
        for _ in 0..self.options.acts {
            self.step();
        }
        self.life.end = self.now + 1;
        self.life
    }

    /// Lets some time pass. Then the next due change of a subscription happens, or else a random choice.
    fn step(&mut self) {
        let gap = match self.rng.u8(..100) {
            0..8 => 0,
            8..20 => self.rng.i64(1..5),
            20..40 => self.rng.i64(5..7200),
            _ => self.rng.i64(7200..20 * DAY),
        };
        let then = self.now + gap;
        let due = |(index, state): (usize, &SubscriptionState)| due(&state.it).map(|at| (at, index));
        match self.subscriptions.iter().enumerate().filter_map(due).min() {
            Some((at, index)) if at <= then => {
                self.now = self.now.max(at);
                self.fall_due(index);
            }
            _ => {
                self.now = then;
                self.choose();
            }
        }
    }

    fn choose(&mut self) {
        let mut choices: Vec<(u32, Choice)> =
            vec![(3, Choice::Pack), (1, Choice::Order), (1, Choice::Abandon)];
        let live = self.subscriptions.iter().filter(|state| !is_over(&state.it)).count();
        match live {
            0 => choices.push((14, Choice::Subscribe)),
            1 => choices.push((2, Choice::Subscribe)),
            _ => {}
        }
        for (index, state) in self.subscriptions.iter().enumerate() {
            match state.it.status {
                "active" | "trialing" => {
                    choices.extend([(5, Choice::Change(index)), (2, Choice::CancelNow(index))]);
                    choices.push(if state.it.cancel_at.is_some() {
                        (3, Choice::KeepSubscription(index))
                    } else {
                        (2, Choice::CancelAtEnd(index))
                    });
                    if self.plan(state.plan).per == Per::Seat {
                        choices.push((5, Choice::Seats(index)));
                    }
                }
                "past_due" => choices.extend([
                    (8, Choice::Recover(index)),
                    (2, Choice::Change(index)),
                    (2, Choice::StopCollecting(index)),
                ]),
                "unpaid" => choices.extend([(3, Choice::Recover(index)), (2, Choice::CancelNow(index))]),
                "paused" => choices.extend([(4, Choice::Resume(index)), (1, Choice::CancelNow(index))]),
                "incomplete" => choices.push((6, Choice::PayFirst(index))),
                _ => {}
            }
        }
        choices.extend((0..self.delayed.len()).map(|index| (4, Choice::Settle(index))));
        for (index, payment) in self.payments.iter().enumerate() {
            let disputing = payment.dispute.as_ref().is_some_and(|dispute| is_open(dispute.2));
            if payment.refunds.iter().any(|refund| refund.2 == "pending") {
                choices.push((4, Choice::SettleRefund(index)));
            } else if disputing {
                choices.push((4, Choice::MoveDispute(index)));
            } else if payment.refundable() > 0 {
                choices.push((1, Choice::Refund(index)));
                if payment.dispute.is_none() {
                    choices.push((1, Choice::Dispute(index)));
                }
            }
        }
        if self.options.rare_shapes {
            let live = self.rare.iter().enumerate().filter(|(_, rare)| rare.status != "canceled");
            let moves: Vec<usize> = live.map(|(index, _)| index).collect();
            if moves.len() < 2 {
                choices.push((6, Choice::StartRare));
            }
            choices.extend(moves.into_iter().map(|index| (9, Choice::MoveRare(index))));
        }
        if self.customer.is_some() && self.rng.u8(..12) == 0 {
            choices.push((3, Choice::DeleteCustomer));
        }
        let mut ticket = self.rng.u32(..choices.iter().map(|choice| choice.0).sum::<u32>());
        for (weight, choice) in choices {
            match ticket.checked_sub(weight) {
                Some(left) => ticket = left,
                None => return self.perform(choice),
            }
        }
    }

    fn perform(&mut self, choice: Choice) {
        match choice {
            Choice::Subscribe => self.subscribe(),
            Choice::PayFirst(index) => self.pay_first(index),
            Choice::Change(index) => self.change(index),
            Choice::Seats(index) => {
                let seats = self.rng.u64(1..9);
                if seats != self.subscriptions[index].seats {
                    let plan = self.subscriptions[index].plan;
                    self.change_to(index, plan, seats);
                }
            }
            Choice::CancelAtEnd(index) => self.cancel_at_end(index),
            Choice::KeepSubscription(index) => {
                self.begin_subscription_act(index, "keeps the subscription after all");
                self.update(index, |it| {
                    (it.cancel_at, it.at_period_end, it.canceled_at) = (None, false, None)
                });
            }
            Choice::CancelNow(index) => {
                self.begin_subscription_act(index, "cancels at once");
                self.end(index);
            }
            Choice::Recover(index) => self.recover(index),
            Choice::StopCollecting(index) => self.stop_collecting(index),
            Choice::Resume(index) => self.resume(index),
            Choice::Pack => self.buy_pack(),
            Choice::Order => self.buy_order(),
            Choice::Abandon => {
                self.begin_act("leaves a checkout".to_owned());
                let id = self.id("cs_test");
                let session = self.session(
                    &id,
                    "payment",
                    "unpaid",
                    json!({"pack": self.catalog.packs.first().map(|pack| &pack.name)}),
                );
                self.emit("checkout.session.expired", &session, None);
            }
            Choice::Settle(index) => self.settle(index),
            Choice::Refund(index) => self.refund(index),
            Choice::SettleRefund(index) => self.settle_refund(index),
            Choice::Dispute(index) => self.dispute(index),
            Choice::MoveDispute(index) => self.move_dispute(index),
            Choice::DeleteCustomer => self.delete_customer(),
            Choice::StartRare => self.start_rare(),
            Choice::MoveRare(index) => self.move_rare(index),
        }
    }

    fn fall_due(&mut self, index: usize) {
        let it = &self.subscriptions[index].it;
        match it.status {
            "incomplete" => {
                self.begin_subscription_act(index, "never pays the first invoice");
                let now = self.now;
                self.update(index, |it| (it.status, it.ended_at) = ("incomplete_expired", Some(now)));
            }
            _ if it.cancel_at.is_some_and(|at| at <= self.now) => {
                self.begin_subscription_act(index, "ends as planned");
                self.end(index);
            }
            "past_due" => self.stop_collecting(index),
            "trialing" => match self.rng.u8(..10) {
                0 => {
                    self.begin_subscription_act(index, "trial ends without a card: paused");
                    self.update(index, |it| it.status = "paused");
                    let object = render::subscription(&self.subscriptions[index].it, self.life.shape);
                    self.emit("customer.subscription.paused", &object, None);
                }
                1 => {
                    self.begin_subscription_act(index, "trial ends without a card: canceled");
                    self.end(index);
                }
                _ => self.renew(index),
            },
            _ => self.renew(index),
        }
    }

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
        self.plan(plan).sold_as.prices.first().cloned().unwrap_or_default()
    }

    /// The price and the quantity of the plan that a subscription shows.
    fn plan_of(&self, it: &Subscription) -> (String, u64) {
        it.items.get(plan_item(it)).cloned().unwrap_or_default()
    }

    /// The items with the current plan and seats.
    fn items(&self, index: usize) -> Vec<(String, u64)> {
        let state = &self.subscriptions[index];
        let plan = (self.price(state.plan), state.seats);
        state
            .it
            .items
            .iter()
            .map(|item| if item.0 == OTHER_PRICE { item.clone() } else { plan.clone() })
            .collect()
    }

    fn period_line(&self, index: usize) -> Line {
        let state = &self.subscriptions[index];
        let amount =
            1900 * i64::try_from((u64::try_from(state.plan).unwrap_or(0) + 1) * state.seats).unwrap_or(1);
        Line {
            price: self.price(state.plan),
            quantity: state.seats,
            amount,
            kind: LineKind::Period,
            item: plan_item(&state.it),
            start: state.it.start,
            end: state.it.end,
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
            shows_payment: self.shows_payments,
        }
    }

    fn pay(&mut self, mut invoice: Invoice) {
        if invoice.paid == 0 {
            invoice.payment = None;
        }
        self.emit_invoice("invoice.paid", &invoice, "paid");
        self.noise("invoice.payment_succeeded", &invoice, "paid");
        if self.life.shape == Shape::New && invoice.payment.is_some() {
            let object = render::invoice_payment(&invoice, self.now);
            self.emit("invoice_payment.paid", &object, None);
        }
        if let Some((intent, _)) = &invoice.payment {
            self.life.invoices.insert(intent.clone(), invoice.id.clone());
            self.add_payment(
                intent.clone(),
                invoice.paid,
                Some(invoice.id.clone()),
                Some(invoice.customer.clone()),
            );
            if let (Some(payment), Some((_, charge))) = (self.payments.last_mut(), invoice.payment) {
                payment.charge = charge;
            }
        }
    }

    fn add_payment(
        &mut self,
        intent: String,
        amount: i64,
        invoice: Option<String>,
        customer: Option<String>,
    ) {
        let charge = self.id("ch");
        self.payments.push(Payment {
            intent,
            charge,
            amount,
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
        self.life.events.push(LifeEvent { id, kind, created: self.now, act, body });
    }

    fn begin_subscription_act(&mut self, subscription: usize, what: &str) {
        let what = format!("{} {what}", self.subscriptions[subscription].it.id);
        self.begin_act(what);
    }

    fn begin_act(&mut self, what: String) {
        self.life.acts.push(Act { at: self.now, what });
    }

    fn tick(&mut self) {
        self.now += [0, 0, 0, 1, 1, 2][self.rng.usize(..6)];
    }

    fn id(&mut self, prefix: &str) -> String {
        self.serial += 1;
        format!("{prefix}_{:x}_{}", self.life.seed, self.serial)
    }
}

impl Payment {
    /// `amount_refunded`: all refunds that did not fail.
    fn refunded(&self) -> i64 {
        self.refunds.iter().filter(|refund| refund.2 != "failed").map(|refund| refund.1).sum()
    }

    /// What can still be refunded or disputed.
    fn refundable(&self) -> i64 {
        let disputed =
            self.dispute.as_ref().filter(|dispute| is_withheld(dispute.2)).map_or(0, |dispute| dispute.1);
        self.amount - self.refunded() - disputed
    }
}

/// The place of the item that sells the plan.
fn plan_item(it: &Subscription) -> usize {
    it.items.iter().position(|item| item.0 != OTHER_PRICE).unwrap_or(0)
}

fn is_withheld(dispute: &str) -> bool {
    matches!(dispute, "needs_response" | "under_review" | "lost")
}

fn is_open(dispute: &str) -> bool {
    !matches!(dispute, "won" | "lost" | "warning_closed")
}

fn is_over(it: &Subscription) -> bool {
    matches!(it.status, "canceled" | "incomplete_expired")
}

/// When the next thing happens to a subscription without a choice.
fn due(it: &Subscription) -> Option<i64> {
    match it.status {
        "active" | "trialing" => Some(it.cancel_at.map_or(it.end, |at| at.min(it.end))),
        "past_due" => Some(it.end),
        "incomplete" => Some(it.created + 23 * 3600),
        _ => None,
    }
}

fn pack_price(quantity: u64) -> i64 {
    i64::try_from(quantity).unwrap_or(1) * 1000
}
