//! Random lives: every order of arrival must give the same account.

use serde_json::{Value, json};

use super::shapes::{
    DAY, T, another_subscription, bill, end, flagged, item, line, pack_with_invoice, reordered, seats,
    shows_with, tie, times,
};
use super::{MONTH, Run, Step, event, pack, refunded};

/// A fixed sequence of numbers.
pub struct Dice(u64);

impl Dice {
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1)
    }

    pub fn below(&mut self, sides: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(self.0 >> 33).unwrap() % sides
    }

    pub fn one_in(&mut self, sides: i64) -> bool {
        self.below(sides) == 0
    }
}

struct Life {
    dice: Dice,
    now: i64,
    status: &'static str,
    /// Price, quantity, start and end of `si_1`, and of `si_2` if it exists.
    plan: (&'static str, i64, i64, i64),
    boost: Option<(i64, i64)>,
    invoices: i64,
    /// Length of a period in seconds.
    length: i64,
    events: Vec<Step>,
}

impl Life {
    fn new(seed: u64, length: i64) -> Self {
        let mut dice = Dice::of(seed);
        let price = ["price_pro", "price_team", "price_free"][usize::try_from(dice.below(3)).unwrap()];
        let plan = (price, 1, T, T + length);
        let mut life = Self {
            dice,
            now: T,
            status: "active",
            plan,
            boost: None,
            invoices: 0,
            length,
            events: Vec::new(),
        };
        if life.dice.one_in(2) {
            life.boost = Some((T, T + length));
        }
        if life.dice.one_in(3) {
            life.status = "trialing";
            life.plan.3 = T + 9 * DAY;
        }
        life.show();
        life.renew("subscription_create");
        for _ in 0..6 {
            life.next();
        }
        life
    }

    fn items(&self) -> Vec<Value> {
        let (price, quantity, start, end) = self.plan;
        let mut items = vec![seats("si_1", price, quantity.unsigned_abs(), start, end)];
        items.extend(self.boost.map(|(start, end)| item("si_2", "price_boost", start, end)));
        items
    }

    fn show(&mut self) {
        let step = shows_with(self.now, self.status, &self.items(), json!({}));
        self.events.push(step);
    }

    fn bill(&mut self, reason: &str, lines: &[Value]) {
        self.invoices += 1;
        let id = format!("in_{}", self.invoices);
        self.now += 1;
        self.events.push(bill(self.now, &id, reason, lines));
        self.events.push(tie(self.now, &id));
        if self.dice.one_in(5) {
            let amount = 100 + self.dice.below(900);
            self.events.push(refunded(self.now + self.dice.below(40 * DAY), &format!("pi_{id}"), amount));
        }
    }

    fn own_line(&self) -> Value {
        let (price, quantity, start, end) = self.plan;
        let amount = if price == "price_free" || self.status == "trialing" { 0 } else { 2000 };
        times(quantity.unsigned_abs(), line("si_1", price, amount, start, end))
    }

    fn renew(&mut self, reason: &str) {
        let mut lines = vec![self.own_line()];
        lines.extend(self.boost.map(|(start, end)| {
            line("si_2", "price_boost", if self.status == "trialing" { 0 } else { 500 }, start, end)
        }));
        self.bill(reason, &lines);
    }

    fn next(&mut self) {
        self.now += DAY + self.dice.below(self.length / 5);
        match self.dice.below(12) {
            0 | 1 => {
                // The next period of both items.
                self.now = self.plan.3;
                self.status = "active";
                self.plan = (self.plan.0, self.plan.1, self.now, self.now + self.length);
                self.boost = self.boost.map(|_| (self.now, self.now + self.length));
                self.show();
                if !self.dice.one_in(4) {
                    self.renew("subscription_cycle");
                }
            }
            2 | 3 => {
                let old = self.plan;
                self.plan.0 = ["price_pro", "price_business", "price_team", "price_free"]
                    [usize::try_from(self.dice.below(4)).unwrap()];
                self.plan.1 = 1 + self.dice.below(3);
                self.show();
                if self.dice.one_in(2) {
                    let to = times(
                        self.plan.1.unsigned_abs(),
                        flagged("si_1", self.plan.0, 1500, self.now, self.plan.3),
                    );
                    self.bill("subscription_update", &[flagged("si_1", old.0, -500, self.now, old.3), to]);
                }
            }
            4 => {
                // A change that starts a new period at once.
                let old = self.plan;
                self.plan = (
                    ["price_pro_year", "price_business"][usize::try_from(self.dice.below(2)).unwrap()],
                    1,
                    self.now,
                    self.now + self.length,
                );
                self.show();
                let (price, _, start, end) = self.plan;
                let full = if self.dice.one_in(2) { line } else { flagged };
                self.bill(
                    "subscription_update",
                    &[flagged("si_1", old.0, -500, self.now, old.3), full("si_1", price, 2500, start, end)],
                );
            }
            5 => {
                self.boost = match self.boost {
                    Some(_) => None,
                    None => Some((self.now, self.now + self.length)),
                };
                self.show();
                if let Some((start, end)) = self.boost {
                    self.bill("subscription_update", &[line("si_2", "price_boost", 500, start, end)]);
                }
            }
            6 => {
                self.status =
                    ["past_due", "unpaid", "paused", "active"][usize::try_from(self.dice.below(4)).unwrap()];
                self.show();
            }
            7 if self.dice.one_in(2) => self.events.push(pack(self.now, &format!("cs_{}", self.now))),
            7 => self.buy_with_invoice(),
            8 => {
                self.status = "trialing";
                self.plan.2 = self.now;
                self.plan.3 = self.now + 8 * DAY;
                self.show();
                let (price, _, start, end) = self.plan;
                self.bill("subscription_update", &[line("si_1", price, 0, start, end)]);
            }
            9 if self.dice.one_in(3) => {
                let ended = shows_with(self.now, "canceled", &self.items(), json!({}));
                self.events.push(ended);
            }
            10 if self.dice.one_in(6) => {
                let gone = json!({"id": "cus_1", "object": "customer"});
                self.events.push(event("customer.deleted", self.now, &gone, None).into());
            }
            10 => self.subscribe_again(),
            _ => self.show(),
        }
    }

    fn buy_with_invoice(&mut self) {
        let names_invoice = self.dice.one_in(2);
        let patch = if names_invoice { json!({"invoice": format!("in_of_{}", self.now)}) } else { json!({}) };
        let (events, payment) = pack_with_invoice(self.now, patch);
        self.events.extend(events);
        if self.dice.one_in(2) {
            self.events.push(refunded(self.now + DAY, &payment, 700));
        }
    }

    fn subscribe_again(&mut self) {
        self.invoices += 1;
        let [shown, paid, _, canceled] = another_subscription(self.invoices, self.now);
        self.events.extend([shown, paid]);
        if self.dice.one_in(2) {
            self.events.push(canceled);
        }
    }
}

/// The events of a random life.
pub fn random_life(seed: u64, length: i64) -> Vec<Step> {
    Life::new(seed, length).events
}

#[test]
fn random_lives_give_the_same_account_in_every_order() {
    let on_payment = Step::Edit("[policy]\n", "[policy]\nplan_change = \"on_payment\"\n");
    for seed in 0..60 {
        // Packs that arrive after a newer reset are a documented exception.
        let mut steps = vec![Step::KeepAddons, Step::Signup];
        steps.extend(Life::new(seed, MONTH).events);
        for policy in [vec![], vec![on_payment.clone()]] {
            let given = [policy, steps.clone()].concat();
            let in_order = Run::of(&given);
            for order in 1..8 {
                let run = Run::of(&reordered(&given, order));
                let summary =
                    || format!("life {seed}, order {order}\n{}\n{}", in_order.summary(), run.summary());
                assert_eq!(end(&run), end(&in_order), "{}", summary());
            }
        }
    }
}

#[test]
fn random_lives_give_the_same_account_whenever_the_schedule_runs() {
    let edits = [
        Step::Edit(
            "trial_credits = 2000\n",
            "trial_credits = 2000\nrefill = \"month\"\nrollover = { percent = 50, max = 900, periods = 2 }\n",
        ),
        Step::Edit("per = \"seat\"\n", "per = \"seat\"\nrefill = \"month\"\n"),
        Step::Edit("credits = 300\n", "credits = 300\nrollover = { percent = 90, max = 90000 }\n"),
        Step::Edit(
            "credits = 1000\nprices = [\"price_p1000\"]",
            "credits = 1000\nexpires_days = 40\nprices = [\"price_p1000\"]",
        ),
        Step::Edit("signup_credits = 500\n", "signup_credits = 500\nfree_credits = 70\n"),
        Step::Edit("[policy]\n", "[policy]\npause_collection = \"until_period_end\"\n"),
    ];
    for seed in 0..30 {
        let mut given = vec![Step::KeepAddons];
        given.extend(edits.clone());
        given.extend([Step::At(T), Step::Signup]);
        given.extend(Life::new(seed, 4 * MONTH).events);
        for days in [150, 290, 700] {
            let with_end = |steps: Vec<Step>| [steps, vec![Step::At(T + days * DAY)]].concat();
            let in_order = Run::of(&with_end(given.clone()));
            for order in 1..6 {
                let mut dice = Dice::of(seed * 100 + order);
                let mut arrived = Vec::new();
                for step in reordered(&given, order) {
                    arrived.push(step);
                    // The schedule books what is due.
                    if dice.one_in(3) {
                        arrived.push(Step::Spend(0));
                    }
                }
                let run = Run::of(&with_end(arrived));
                let summary =
                    || format!("life {seed}, order {order}\n{}\n{}", in_order.summary(), run.summary());
                assert_eq!(end(&run), end(&in_order), "{}", summary());
            }
        }
    }
}
