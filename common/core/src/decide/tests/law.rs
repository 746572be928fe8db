//! The law of money: under `plan_change = "on_payment"` all credits come from payments that were not
//! refunded, or are free by the catalog. If every payment of a customer is refunded, only the free credits
//! are left.

use serde_json::{Value, json};

use super::random::Dice;
use super::shapes::{
    DAY, T, another_subscription, bill, flagged, item, line, month, pack_with_invoice, reordered, seats,
    shows, tie, times,
};
use super::{Run, Step, pack, refunded};

const ON_PAYMENT: Step = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");

/// A customer who pays every invoice, and the amount of each payment. Prorations are by the second, as Stripe
/// computes them (<https://docs.stripe.com/billing/subscriptions/prorations>).
struct Payer {
    dice: Dice,
    now: i64,
    price: &'static str,
    quantity: i64,
    start: i64,
    end: i64,
    boost: bool,
    /// Lines of a change that the next invoice bills.
    deferred: Vec<Value>,
    documents: i64,
    events: Vec<Step>,
    payments: Vec<(String, i64)>,
}

fn amount(price: &str) -> i64 {
    match price {
        "price_pro" => 2000,
        "price_pro_year" => 20_000,
        "price_business" => 8000,
        _ => 1000,
    }
}

impl Payer {
    fn new(seed: u64) -> Self {
        let dice = Dice::of(seed);
        let (price, boost) = ("price_pro", seed.is_multiple_of(3));
        let mut payer = Self {
            dice,
            now: T,
            price,
            quantity: 1,
            start: T,
            end: month(T),
            boost,
            deferred: Vec::new(),
            documents: 0,
            events: Vec::new(),
            payments: Vec::new(),
        };
        payer.show();
        payer.renew("subscription_create");
        payer
    }

    fn show(&mut self) {
        let mut items = vec![seats("si_1", self.price, self.quantity.unsigned_abs(), self.start, self.end)];
        if self.boost {
            items.push(item("si_2", "price_boost", self.start, self.end));
        }
        self.events.push(shows(self.now, "active", &items));
    }

    fn pay(&mut self, reason: &str, lines: &[Value]) {
        self.documents += 1;
        let id = format!("in_{}", self.documents);
        self.now += 1;
        self.events.push(bill(self.now, &id, reason, lines));
        self.events.push(tie(self.now, &id));
        let total = lines.iter().filter_map(|line| line["amount"].as_i64()).sum();
        self.payments.push((format!("pi_{id}"), total));
    }

    fn worth(&self) -> i64 {
        amount(self.price) * self.quantity
    }

    /// The price of the unused part of the running period.
    fn unused(&self) -> i64 {
        self.worth() * (self.end - self.now) / (self.end - self.start)
    }

    fn renew(&mut self, reason: &str) {
        let own = line("si_1", self.price, self.worth(), self.start, self.end);
        let mut lines = std::mem::take(&mut self.deferred);
        lines.push(times(self.quantity.unsigned_abs(), own));
        if self.boost {
            lines.push(line("si_2", "price_boost", 500, self.start, self.end));
        }
        self.pay(reason, &lines);
    }

    fn next(&mut self) {
        self.now += DAY + self.dice.below(6 * DAY);
        if self.now >= self.end {
            (self.now, self.start, self.end) = (self.end, self.end, month(self.end));
            self.show();
            return self.renew("subscription_cycle");
        }
        match self.dice.below(5) {
            0 | 1 => self.change(),
            2 => {
                let id = format!("cs_{}", self.now);
                self.events.push(pack(self.now, &id));
                self.payments.push((format!("pi_{id}"), 2000));
            }
            3 => self.buy_with_invoice(),
            _ => self.subscribe_again(),
        }
    }

    /// A change to something that costs more: within the period, charged at once or by the renewal
    /// (`proration_behavior`: `always_invoice` or `create_prorations`), or with a new period at once.
    fn change(&mut self) {
        if !self.deferred.is_empty() {
            return;
        }
        let (old, unused, at_once) = (self.price, self.unused(), self.dice.one_in(2));
        let before = self.quantity;
        (self.price, self.quantity) = match self.price {
            "price_pro" if at_once => ("price_pro_year", 1),
            "price_pro" => ("price_business", 1),
            "price_business" => ("price_team", 9 + self.dice.below(3)),
            "price_team" => ("price_team", self.quantity + 1 + self.dice.below(3)),
            _ => return,
        };
        let back = times(before.unsigned_abs(), flagged("si_1", old, -unused, self.now, self.end));
        let quantity = self.quantity.unsigned_abs();
        let lines = if at_once && !self.boost {
            (self.start, self.end) = (self.now, month(self.now));
            let full = line("si_1", self.price, self.worth(), self.start, self.end);
            [back, times(quantity, full)]
        } else {
            let rest = self.unused();
            [back, times(quantity, flagged("si_1", self.price, rest, self.now, self.end))]
        };
        self.show();
        if self.start != self.now && self.dice.one_in(3) {
            self.deferred.extend(lines);
        } else {
            self.pay("subscription_update", &lines);
        }
    }

    fn buy_with_invoice(&mut self) {
        let (events, payment) = pack_with_invoice(self.now, json!({}));
        self.events.extend(events);
        self.payments.push((payment, 2000));
    }

    fn subscribe_again(&mut self) {
        self.documents += 1;
        let [shown, paid, tied, canceled] = another_subscription(self.documents, self.now);
        self.events.extend([shown, paid, tied]);
        self.payments.push((format!("pi_in_{}", self.documents), 2000));
        if self.dice.one_in(2) {
            self.events.push(canceled);
        }
    }

    /// Everything so far, and every payment refunded in full.
    fn refunded(&self) -> Vec<Step> {
        let at = self.now + 4 * DAY;
        let back = self.payments.iter().map(|(payment, total)| refunded(at, payment, *total));
        self.events.iter().cloned().chain(back).collect()
    }
}

#[test]
fn refunds_of_every_payment_leave_nothing_after_every_step() {
    for seed in 0..60 {
        let mut payer = Payer::new(seed);
        for step in 0..7 {
            let given = [vec![ON_PAYMENT, Step::KeepAddons], payer.refunded()].concat();
            for order in [0, 1, 3] {
                let run = Run::of(&reordered(&given, order));
                let summary = || format!("life {seed}, step {step}, order {order}: {}", run.summary());
                assert_eq!(run.balance().get(), 0, "{}", summary());
                assert!(run.parked.is_empty(), "{}", summary());
            }
            payer.next();
        }
    }
}

/// The risk that `docs/money.md` describes: an unpaid upgrade grants its credits at once.
#[test]
fn at_once_gives_credits_for_an_unpaid_upgrade() {
    let life = [
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
        tie(T + 1, "in_1"),
        shows(T + DAY, "active", &[item("si_1", "price_business", T, month(T))]),
    ];
    let back = refunded(T + 2 * DAY, "pi_in_1", 2000);
    let balance = |steps: &[Step]| Run::of(steps).balance().get();
    assert_eq!(balance(&life), 20_000);
    assert_eq!(balance(&[&life[..], std::slice::from_ref(&back)].concat()), 15_000);
    let on_payment = [&[ON_PAYMENT], &life[..]].concat();
    assert_eq!(balance(&on_payment), 5000);
    assert_eq!(balance(&[&on_payment[..], &[back]].concat()), 0);
}
