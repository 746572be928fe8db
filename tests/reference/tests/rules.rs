//! Small lives for the rules that the shared cases do not cover, one paragraph of the rules each.

use reference::{Action, Step, World, judge, law_of_money};
use serde_json::{Value, json};

const CATALOG: &str = r#"
[tiers]
free = 0
basic = 1
pro = 2
biz = 3
[policy]
POLICY
[[plan]]
name = "basic"
tier = "basic"
credits = 1000
prices = ["basic"]
[[plan]]
name = "pro"
tier = "pro"
credits = 5000
trial_credits = 100
prices = ["pro", "pro_year"]
[[plan]]
name = "monthly"
tier = "pro"
credits = 3000
refill = "month"
rollover = { percent = 50, max = 2000, periods = 1 }
prices = ["monthly"]
[[plan]]
name = "biz"
tier = "biz"
credits = 20000
prices = ["biz"]
[[plan]]
name = "seats"
tier = "basic"
credits = 100
per = "seat"
prices = ["seat"]
[[pack]]
name = "pack"
credits = 1000
prices = ["pack"]
[[ignore]]
price = "foreign"
"#;

const DAY: i64 = 86_400;
/// 1 January 2026, 00:00 UTC.
const START: i64 = 1_767_225_600;

/// A life: what happened, one step after the other.
struct Life {
    policy: String,
    steps: Vec<Step>,
}

/// A line: its amount, price, whether it is a proration, its quantity and its period in days after the start.
struct L(i64, &'static str, bool, i64, (i64, i64));

impl Life {
    fn new(policy: &str) -> Life {
        Life { policy: policy.into(), steps: vec![] }
    }

    fn step(&mut self, day: i64, action: Action) -> &mut Self {
        self.steps.push(Step { at: START + day * DAY + 60, action });
        self
    }

    fn event(&mut self, day: i64, kind: &str, object: Value) -> &mut Self {
        let event = json!({"id": format!("evt_{}", self.steps.len()), "type": kind,
            "created": START + day * DAY,
            "data": {"object": object}});
        self.step(day, Action::Send(event))
    }

    fn put(&mut self, day: i64) -> &mut Self {
        self.step(day, Action::Put { user: "ann".into() })
    }

    fn spend(&mut self, day: i64, amount: i64) -> &mut Self {
        self.step(day, Action::Spend { user: "ann".into(), amount })
    }

    fn fix(&mut self, day: i64, body: Value) -> &mut Self {
        self.step(day, Action::Fix { user: "ann".into(), body })
    }

    /// A snapshot of `sub_1` with items (id, price, quantity, period in days).
    fn shows(&mut self, day: i64, status: &str, items: &[(&str, &str, i64, (i64, i64))]) -> &mut Self {
        let item = |(id, price, quantity, (start, end)): &(&str, &str, i64, (i64, i64))| {
            json!({"id": id, "price": {"id": price, "unit_amount": 900}, "quantity": quantity,
                "current_period_start": START + start * DAY, "current_period_end": START + end * DAY})
        };
        let items: Vec<Value> = items.iter().map(item).collect();
        let object = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status,
            "metadata": {"user_id": "ann"}, "items": {"data": items}});
        self.event(day, "customer.subscription.updated", object)
    }

    /// A paid invoice for item `si_1` of `sub_1`, paid by the payment `pi_<id>`.
    fn pays(&mut self, day: i64, id: &str, reason: &str, lines: &[L]) -> &mut Self {
        self.bills(day, id, "si_1", reason, lines)
    }

    fn bills(&mut self, day: i64, id: &str, item: &str, reason: &str, lines: &[L]) -> &mut Self {
        let line = |L(amount, price, proration, quantity, (start, end)): &L| {
            json!({"amount": amount, "quantity": quantity,
                "period": {"start": START + start * DAY, "end": START + end * DAY},
                "pricing": {"price_details": {"price": price}},
                "parent": {"subscription_item_details":
                    {"subscription": "sub_1", "subscription_item": item, "proration": proration}}})
        };
        let total: i64 = lines.iter().map(|l| l.0).sum();
        let lines: Vec<Value> = lines.iter().map(line).collect();
        let object = json!({"id": id, "object": "invoice", "customer": "cus_1", "billing_reason": reason,
            "total": total, "amount_paid": total.max(0), "created": START + day * DAY,
            "lines": {"data": lines},
            "parent": {"subscription_details": {"subscription": "sub_1", "metadata": {"user_id": "ann"}}}});
        self.event(day, "invoice.paid", object);
        let paid = json!({"id": format!("inpay_{id}"), "invoice": id, "amount_paid": total.max(0),
            "payment": {"type": "payment_intent", "payment_intent": format!("pi_{id}")}});
        self.event(day, "invoice_payment.paid", paid)
    }

    /// A paid session for packs, paid by `pi_<id>`.
    fn buys(&mut self, day: i64, id: &str, quantity: i64) -> &mut Self {
        let object = json!({"id": id, "object": "checkout.session", "mode": "payment",
            "payment_status": "paid",
            "customer": "cus_1", "payment_intent": format!("pi_{id}"), "amount_total": 1000 * quantity,
            "metadata": {"user_id": "ann", "pack": "pack", "quantity": quantity.to_string()}});
        self.event(day, "checkout.session.completed", object)
    }

    fn refunds(&mut self, day: i64, document: &str, amount: i64) -> &mut Self {
        let object = json!({"id": format!("re_{document}_{day}"), "object": "refund", "status": "succeeded",
            "amount": amount, "payment_intent": format!("pi_{document}")});
        self.event(day, "refund.created", object)
    }

    fn disputes(&mut self, day: i64, document: &str, amount: i64, status: &str) -> &mut Self {
        let object = json!({"id": format!("dp_{document}"), "object": "dispute", "status": status,
            "amount": amount, "payment_intent": format!("pi_{document}")});
        self.event(day, "charge.dispute.updated", object)
    }

    fn world(&self, day: i64) -> World {
        judge(&CATALOG.replace("POLICY", &self.policy), &self.steps, START + day * DAY)
    }

    /// Ann's tier and credits.
    fn reads(&self, day: i64) -> (String, i64) {
        let world = self.world(day);
        world.users.get("ann").map_or((String::new(), 0), |u| (u.tier.clone(), u.credits))
    }

    fn credits(&self, day: i64) -> i64 {
        self.reads(day).1
    }
}

const MONTH: (i64, i64) = (0, 31);

/// `sub_1` on one plan, paid for January.
fn subscribed(policy: &str, price: &'static str, amount: i64, quantity: i64) -> Life {
    let mut life = Life::new(policy);
    life.shows(0, "active", &[("si_1", price, quantity, MONTH)]);
    life.pays(0, "in_1", "subscription_create", &[L(amount, price, false, quantity, MONTH)]);
    life
}

#[test]
fn a_paid_period_ends_signup_credits_and_a_trial_does_not() {
    let mut life = Life::new("");
    life.put(0);
    assert_eq!(life.reads(0), ("free".into(), 500));
    life.shows(1, "trialing", &[("si_1", "pro", 1, (1, 8))]);
    assert_eq!(life.reads(1), ("pro".into(), 600));
    life.pays(8, "in_1", "subscription_cycle", &[L(900, "pro", false, 1, (8, 39))]);
    assert_eq!(life.credits(8), 5000);
}

#[test]
fn a_renewal_resets_the_item_and_ends_older_packs() {
    let mut life = subscribed("", "pro", 900, 1);
    life.buys(5, "cs_old", 2).spend(6, 1000);
    assert_eq!(life.credits(6), 6000);
    life.pays(31, "in_2", "subscription_cycle", &[L(900, "pro", false, 1, (31, 59))]);
    life.buys(32, "cs_new", 1);
    assert_eq!(life.credits(33), 6000);
    // A pack that arrives after a newer reset is granted in full.
    life.buys(4, "cs_late", 1);
    assert_eq!(life.credits(33), 7000);
}

#[test]
fn a_prorated_line_of_a_pack_by_subscription_adds_nothing() {
    let mut life = subscribed("", "pro", 900, 1);
    life.bills(1, "in_2", "si_2", "subscription_update", &[L(50, "pack", true, 2, (1, 31))]);
    assert_eq!(life.credits(2), 5000);
    life.bills(1, "in_3", "si_2", "subscription_cycle", &[L(50, "pack", false, 2, (1, 31))]);
    assert_eq!(life.credits(2), 7000);
}

#[test]
fn seat_items_reset_no_packs() {
    let mut life = Life::new("");
    life.buys(0, "cs_1", 1);
    life.pays(1, "in_1", "subscription_create", &[L(900, "seat", false, 3, (1, 31))]);
    assert_eq!(life.reads(2), ("basic".into(), 1300));
}

#[test]
fn at_once_grants_each_plan_in_full_at_most_once_in_a_period() {
    let mut life = subscribed("", "basic", 900, 1);
    life.spend(1, 400).shows(2, "active", &[("si_1", "biz", 1, MONTH)]);
    assert_eq!(life.credits(2), 20_000);
    life.spend(3, 700).shows(4, "active", &[("si_1", "basic", 1, MONTH)]);
    assert_eq!(life.credits(4), 0);
    life.shows(5, "active", &[("si_1", "biz", 1, MONTH)]);
    assert_eq!(life.credits(5), 20_000 - 1100);
}

#[test]
fn at_once_breaks_the_law_of_money_and_on_payment_keeps_it() {
    for (policy, holds) in [("plan_change = \"at_once\"", false), ("plan_change = \"on_payment\"", true)] {
        let mut life = subscribed(policy, "basic", 900, 1);
        life.shows(2, "active", &[("si_1", "biz", 1, MONTH)]);
        assert_eq!(law_of_money(&life.world(3)).is_ok(), holds, "{policy}");
        assert_eq!(life.reads(3), ("biz".into(), if holds { 1000 } else { 20_000 }));
    }
}

#[test]
fn on_payment_counts_more_seats_when_they_are_charged_and_fewer_at_once() {
    let mut life = subscribed("plan_change = \"on_payment\"", "seat", 300, 3);
    life.spend(1, 250).shows(2, "active", &[("si_1", "seat", 1000, MONTH)]);
    assert_eq!(life.credits(2), 50);
    life.pays(2, "in_2", "subscription_update", &[L(700, "seat", true, 10, (2, 31))]);
    life.shows(3, "active", &[("si_1", "seat", 10, MONTH)]);
    assert_eq!(life.credits(3), 750);
    life.shows(4, "active", &[("si_1", "seat", 1, MONTH)]);
    assert_eq!(life.credits(4), 0);
}

#[test]
fn seats_up_and_down_give_nothing() {
    let mut life = subscribed("", "seat", 100, 1);
    life.shows(1, "active", &[("si_1", "seat", 1000, MONTH)]).spend(2, 60_000);
    life.shows(3, "active", &[("si_1", "seat", 1, MONTH)]);
    assert_eq!(life.credits(3), 0);
    life.shows(4, "active", &[("si_1", "seat", 1000, MONTH)]);
    assert_eq!(life.credits(4), 40_000);
}

#[test]
fn refunding_the_opening_and_the_charge_leaves_nothing_in_any_order() {
    for policy in ["plan_change = \"at_once\"", "plan_change = \"on_payment\""] {
        let mut life = subscribed(policy, "basic", 1000, 1);
        life.shows(10, "active", &[("si_1", "biz", 1, MONTH)]);
        let lines = [L(-600, "basic", true, 1, (10, 31)), L(12_600, "biz", true, 1, (10, 31))];
        life.pays(10, "in_2", "subscription_update", &lines);
        assert_eq!(life.credits(10), 20_000);
        life.refunds(11, "in_2", 6000);
        assert_eq!(life.credits(11), 20_000 - 9500);
        life.refunds(12, "in_1", 1000);
        assert_eq!(life.credits(12), 9500);
        life.refunds(13, "in_2", 6000);
        assert_eq!(life.credits(13), 0);
    }
}

#[test]
fn a_period_that_opens_early_carries_what_was_spent_and_not_paid_again() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.spend(5, 3000);
    // A new period on day 10; half of it is paid by the balance.
    life.pays(10, "in_2", "subscription_update", &[L(1000, "pro", false, 1, (10, 41))]);
    let Action::Send(invoice) = &mut life.steps[4].action else { panic!("the invoice") };
    invoice["data"]["object"]["amount_paid"] = 500.into();
    assert_eq!(life.credits(11), 5000 - 1500);
}

#[test]
fn a_refund_of_an_older_period_is_superseded() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.pays(31, "in_2", "subscription_cycle", &[L(1000, "pro", false, 1, (31, 59))]);
    life.refunds(32, "in_1", 1000);
    assert_eq!(life.credits(32), 5000);
}

#[test]
fn a_dispute_nets_with_refunds_and_gives_back_when_won() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.refunds(1, "in_1", 400).disputes(2, "in_1", 1000, "needs_response");
    assert_eq!(life.credits(2), 0);
    life.disputes(3, "in_1", 1000, "won");
    assert_eq!(life.credits(3), 3000);
    life.disputes(4, "in_1", 1000, "lost");
    assert_eq!(life.credits(4), 3000);
}

#[test]
fn an_inquiry_and_a_prevented_dispute_take_nothing() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.disputes(1, "in_1", 1000, "warning_needs_response").disputes(2, "in_1", 1000, "prevented");
    assert_eq!(life.credits(2), 5000);
}

#[test]
fn the_newest_cumulative_refund_counts_less_what_failed() {
    let mut life = Life::new("");
    life.buys(0, "cs_1", 2);
    let charge =
        |sum: i64| json!({"id": "ch_1", "payment_intent": "pi_cs_1", "amount": 2000, "amount_refunded": sum});
    life.event(1, "charge.refunded", charge(1000));
    assert_eq!(life.credits(1), 1000);
    let failed = json!({"id": "re_1", "charge": "ch_1", "amount": 1000, "status": "failed"});
    life.event(2, "refund.failed", failed);
    assert_eq!(life.credits(2), 2000);
}

#[test]
fn a_pack_by_invoice_and_by_session_is_one_purchase() {
    let mut life = Life::new("addons = \"keep\"");
    let invoice = json!({"id": "in_1", "object": "invoice", "customer": "cus_1",
        "metadata": {"user_id": "ann"},
        "billing_reason": "manual", "total": 1000, "amount_paid": 1000,
        "lines": {"data": [{"amount": 1000, "pricing": {"price_details": {"price": "pack"}}}]}});
    life.event(0, "invoice.paid", invoice).spend(1, 400);
    assert_eq!(life.credits(1), 600);
    life.buys(0, "cs_1", 1);
    assert_eq!(life.credits(2), 1600);
    let paid = json!({"id": "inpay_1", "invoice": "in_1", "payment": {"payment_intent": "pi_cs_1"}});
    life.event(2, "invoice_payment.paid", paid);
    assert_eq!(life.credits(2), 600);
}

#[test]
fn a_trial_is_granted_once_per_user_and_ends_with_its_subscription() {
    let mut life = Life::new("");
    life.shows(0, "trialing", &[("si_1", "pro", 1, (0, 7))]).spend(1, 30);
    assert_eq!(life.credits(1), 70);
    life.shows(2, "trialing", &[("si_1", "pro", 1, (0, 14))]);
    assert_eq!(life.credits(2), 70);
    life.shows(3, "canceled", &[("si_1", "pro", 1, (0, 14))]);
    assert_eq!(life.reads(3), ("free".into(), 0));
}

#[test]
fn a_refund_of_a_swap_s_invoice_takes_the_share_that_its_payment_paid() {
    for (first, swap, left) in [(0, 4800, 5000), (2000, 0, 15_000), (0, 2400, 12_500), (2000, 4800, 0)] {
        let mut life = subscribed("", "pro", 2000, 1);
        life.shows(5, "active", &[("si_2", "biz", 1, MONTH)]);
        life.bills(5, "in_2", "si_2", "subscription_update", &[L(6400, "biz", true, 1, (5, 31))]);
        let place = life.steps.len() - 2;
        let Action::Send(event) = &mut life.steps[place].action else { panic!("an event") };
        let invoice = &mut event["data"]["object"];
        let mut credit = invoice["lines"]["data"][0].clone();
        credit["amount"] = json!(-1600);
        credit["pricing"]["price_details"]["price"] = json!("pro");
        credit["parent"]["subscription_item_details"]["subscription_item"] = json!("si_1");
        invoice["lines"]["data"].as_array_mut().unwrap().push(credit);
        (invoice["total"], invoice["amount_paid"]) = (json!(4800), json!(4800));
        life.refunds(6, "in_1", first);
        life.refunds(6, "in_2", swap);
        assert_eq!(life.credits(7), left, "{first} {swap}");
    }
}

#[test]
fn a_swap_within_a_trial_grants_no_second_trial() {
    let mut life = Life::new("");
    life.shows(0, "trialing", &[("si_1", "pro", 1, (0, 7))]).spend(1, 30);
    life.shows(2, "trialing", &[("si_2", "pro", 1, (0, 7))]).spend(2, 20);
    assert_eq!(life.credits(2), 50);
    life.shows(3, "trialing", &[("si_3", "pro", 1, (0, 7))]);
    assert_eq!(life.credits(3), 50);
    life.bills(7, "in_1", "si_3", "subscription_cycle", &[L(900, "pro", false, 1, (7, 38))]);
    assert_eq!(life.credits(8), 5000);
    let mut life = subscribed("", "biz", 2000, 1);
    life.shows(2, "trialing", &[("si_1", "biz", 1, (2, 9))]);
    life.shows(3, "trialing", &[("si_2", "pro", 1, (2, 9))]);
    assert_eq!(life.credits(4), 20_000);
}

#[test]
fn a_removed_item_keeps_its_credits_until_another_paid_period_starts() {
    let mut life = Life::new("");
    let both = [("si_1", "basic", 1, MONTH), ("si_2", "biz", 1, MONTH)];
    life.shows(0, "active", &both);
    life.pays(0, "in_1", "subscription_create", &[L(100, "basic", false, 1, MONTH)]);
    life.bills(0, "in_2", "si_2", "subscription_create", &[L(2000, "biz", false, 1, MONTH)]);
    assert_eq!(life.reads(0), ("biz".into(), 21_000));
    life.shows(5, "active", &both[..1]);
    assert_eq!(life.reads(5), ("basic".into(), 21_000));
    life.pays(31, "in_3", "subscription_cycle", &[L(100, "basic", false, 1, (31, 59))]);
    assert_eq!(life.credits(31), 1000);
    // Later proof that it was still there restores the bucket.
    life.bills(6, "in_4", "si_2", "manual", &[L(1, "unknown", false, 1, MONTH)]);
    assert_eq!(life.credits(31), 21_000);
}

#[test]
fn a_flagged_line_waits_for_the_snapshot_of_its_period() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.pays(10, "in_2", "subscription_update", &[L(1000, "pro", true, 1, (10, 41))]);
    life.spend(11, 4000);
    assert_eq!(life.credits(11), 1000);
    life.shows(10, "active", &[("si_1", "pro", 1, (10, 41))]);
    assert_eq!(life.credits(12), 5000);
}

#[test]
fn the_last_of_several_changes_in_one_second_is_the_one_that_no_line_takes_back() {
    let rest = (1, 31);
    let chain = || {
        let seats = |amount| L(amount, "seat", true, 3, rest);
        [L(-900, "biz", true, 1, rest), seats(300), seats(-300), L(400, "pro", true, 1, rest)]
    };
    let mut reversed = chain();
    reversed.reverse();
    for lines in [chain(), reversed] {
        let mut life = Life::new("");
        life.pays(0, "in_1", "subscription_create", &[L(2000, "biz", false, 1, MONTH)]);
        life.pays(1, "in_2", "subscription_update", &lines);
        assert_eq!(life.reads(2), ("pro".into(), 20_000));
    }
}

#[test]
fn a_line_that_starts_ahead_opens_one_hour_before_its_start() {
    let mut life = subscribed("", "basic", 100, 1);
    life.pays(20, "in_2", "manual", &[L(2000, "biz", false, 1, (31, 59))]);
    assert_eq!(life.credits(30), 1000);
    let at = |seconds| judge(&CATALOG.replace("POLICY", ""), &life.steps, START + 31 * DAY + seconds);
    assert_eq!(at(-3601).users["ann"].credits, 1000);
    assert_eq!(at(-3600).users["ann"].credits, 20_000);
}

#[test]
fn a_zero_line_of_a_cycle_opens_unless_a_trial_runs() {
    let mut life = subscribed("", "basic", 100, 1);
    life.spend(1, 1000).pays(31, "in_2", "subscription_cycle", &[L(0, "basic", false, 1, (31, 59))]);
    assert_eq!(life.credits(31), 1000);
    life.shows(31, "trialing", &[("si_1", "basic", 1, (31, 59))]);
    assert_eq!(life.credits(32), 0);
}

#[test]
fn a_sent_invoice_that_falls_due_in_the_next_period_gives_no_period_of_grace_more() {
    let mut life = subscribed("past_due_grace_days = 3", "pro", 1000, 1);
    let sent = |life: &mut Life, day, status, period| {
        life.shows(day, status, &[("si_1", "pro", 1, period)]);
        let step = life.steps.last_mut().unwrap();
        let Action::Send(event) = &mut step.action else { panic!("an event") };
        event["data"]["object"]["collection_method"] = json!("send_invoice");
        event["data"]["object"]["days_until_due"] = json!(28);
    };
    sent(&mut life, 31, "active", (31, 59));
    sent(&mut life, 59, "past_due", (59, 90));
    assert_eq!(life.reads(61).0, "pro");
    assert_eq!(life.reads(62).0, "free");
}

#[test]
fn past_due_keeps_the_paid_period_and_then_the_grace() {
    let mut life = subscribed("past_due_grace_days = 3", "pro", 1000, 1);
    life.shows(31, "past_due", &[("si_1", "pro", 1, (31, 59))]);
    assert_eq!(life.reads(33).0, "pro");
    assert_eq!(life.reads(34).0, "free");
    life.shows(35, "unpaid", &[("si_1", "pro", 1, (31, 59))]);
    assert_eq!(life.reads(32).0, "free");
}

#[test]
fn a_complimentary_plan_gives_its_tier_and_a_lot_that_ends_with_it() {
    let mut life = Life::new("");
    let body = json!({"action": "complimentary", "plan": "biz", "credits": 50,
        "from": "2026-01-03T00:00:00Z", "until": "2026-01-05T00:00:00Z"});
    life.put(0).fix(1, body);
    assert_eq!(life.reads(1), ("free".into(), 500));
    assert_eq!(life.reads(3), ("biz".into(), 550));
    assert_eq!(life.reads(4), ("free".into(), 500));
}

#[test]
fn a_lifetime_plan_has_a_bucket_of_its_own_and_a_tier_until_refunded() {
    let mut life = Life::new("");
    let object = json!({"id": "cs_1", "object": "checkout.session", "mode": "payment",
            "payment_status": "paid",
        "payment_intent": "pi_cs_1", "amount_total": 9000, "metadata": {"user_id": "ann", "plan": "biz"}});
    life.put(0).event(1, "checkout.session.completed", object);
    assert_eq!(life.reads(1), ("biz".into(), 20_500));
    life.refunds(2, "cs_1", 4500);
    assert_eq!(life.reads(2), ("biz".into(), 10_500));
    life.refunds(3, "cs_1", 4500);
    assert_eq!(life.reads(3), ("free".into(), 500));
}

#[test]
fn refunded_access_end_takes_the_tier_when_all_is_refunded() {
    let mut life = subscribed("refunded_access = \"end\"", "pro", 1000, 1);
    life.refunds(1, "in_1", 999);
    assert_eq!(life.reads(1), ("pro".into(), 5));
    life.refunds(2, "in_1", 1);
    assert_eq!(life.reads(2), ("free".into(), 0));
}

#[test]
fn slices_reset_each_month_and_a_half_rolls_over() {
    let mut life = Life::new("");
    let year = (30, 395);
    life.shows(30, "active", &[("si_1", "monthly", 1, year)]);
    life.pays(30, "in_1", "subscription_create", &[L(12_000, "monthly", false, 1, year)]);
    life.spend(31, 2000);
    assert_eq!(life.credits(57), 1000);
    // 31 January → 28 February: 500 of the 1,000 left are carried for one slice.
    assert_eq!(life.credits(58), 3500);
    life.spend(59, 3500);
    assert_eq!(life.credits(88), 0);
    assert_eq!(life.credits(89), 3000);
    // A refund takes the same share of the running slice and of each later one.
    life.refunds(90, "in_1", 6000);
    assert_eq!(life.credits(90), 1500);
    life.shows(91, "canceled", &[("si_1", "monthly", 1, year)]);
    assert_eq!(life.credits(300), 1500);
}

#[test]
fn free_refills_come_each_month_while_no_plan_gives_access() {
    let mut life = Life::new("free_credits = 50\nfree_refill = \"month\"");
    life.put(0).spend(1, 480);
    assert_eq!(life.credits(31), 20);
    assert_eq!(life.credits(32), 50);
    life.spend(33, 10);
    // A paid period ends the bucket. No refill is due on day 59, inside it; the next one is on day 90.
    life.pays(35, "in_1", "subscription_create", &[L(100, "basic", false, 1, (35, 66))]);
    assert_eq!(life.credits(36), 1000);
    assert_eq!(life.reads(60), ("basic".into(), 1000));
    assert_eq!(life.reads(91), ("free".into(), 1050));
}

#[test]
fn owners_are_the_metadatas_before_the_references() {
    let session = |id: &str, metadata: Value, customer: &str| {
        json!({"id": id, "object": "checkout.session", "mode": "payment",
            "payment_status": "paid",
            "customer": customer, "client_reference_id": "aff", "metadata": metadata, "amount_total": 1000})
    };
    let pack = json!({"pack": "pack"});
    let mut life = Life::new("client_reference_id = \"known_user\"");
    life.event(0, "checkout.session.completed", session("cs_1", pack.clone(), "cus_9"));
    let parked = &life.world(0).outcomes["evt_0"];
    assert_eq!((parked.status, parked.reason), ("parked", "unknown_reference"));
    life.step(1, Action::Put { user: "aff".into() });
    assert_eq!(life.world(1).users["aff"].credits, 1500);

    let mut life = Life::new("client_reference_id = \"ignore\"");
    life.event(0, "checkout.session.completed", session("cs_1", pack, "cus_1"));
    assert_eq!(life.world(0).outcomes["evt_0"].reason, "no_user");
    life.buys(1, "cs_2", 1);
    assert_eq!(life.credits(1), 2000);
}

#[test]
fn a_document_of_another_user_is_parked_until_the_subscription_is_moved() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.pays(31, "in_2", "subscription_cycle", &[L(1000, "pro", false, 1, (31, 59))]);
    let Action::Send(invoice) = &mut life.steps[3].action else { panic!("the invoice") };
    invoice["data"]["object"]["parent"]["subscription_details"]["metadata"]["user_id"] = "bob".into();
    life.spend(32, 1000);
    assert_eq!(life.world(32).outcomes["evt_3"].reason, "owner_conflict");
    assert_eq!(life.credits(32), 4000);
    life.fix(33, json!({"action": "move", "subscription": "sub_1", "to": "bob"}));
    let world = life.world(33);
    assert_eq!((world.users["ann"].credits, world.users["bob"].credits), (0, 5000));
}

#[test]
fn a_shared_customer_parks_documents_without_metadata() {
    let mut life = Life::new("");
    life.buys(0, "cs_1", 1).buys(1, "cs_2", 1).buys(2, "cs_3", 1);
    for (step, metadata) in [(1, json!({"user_id": "bob", "pack": "pack"})), (2, json!({"pack": "pack"}))] {
        let Action::Send(session) = &mut life.steps[step].action else { panic!("the session") };
        session["data"]["object"]["metadata"] = metadata;
    }
    let world = life.world(3);
    assert_eq!(world.outcomes["evt_2"].reason, "shared_customer");
    assert_eq!((world.users["ann"].credits, world.users["bob"].credits), (1000, 1000));
}

#[test]
fn an_invoice_with_foreign_lines_alone_is_ignored() {
    let mut life = Life::new("");
    life.pays(0, "in_1", "subscription_create", &[L(100, "foreign", false, 1, MONTH)]);
    life.pays(1, "in_2", "manual", &[L(1, "foreign", false, 1, MONTH), L(9, "pro", false, 1, MONTH)]);
    let outcomes = life.world(2).outcomes;
    assert_eq!((outcomes["evt_0"].reason, outcomes["evt_2"].status), ("foreign", "processed"));
    assert_eq!(life.credits(2), 5000);
}

#[test]
fn the_last_snapshot_of_a_chain_in_one_second_wins() {
    let mut life = subscribed("", "basic", 100, 1);
    // Pro, then biz, then basic again: by price alone, pro would win.
    for (price, before) in [("basic", "biz"), ("biz", "pro"), ("pro", "basic")] {
        life.shows(5, "active", &[("si_1", price, 1, MONTH)]);
        let Some(Step { action: Action::Send(event), .. }) = life.steps.last_mut() else {
            panic!("an event")
        };
        event["data"]["previous_attributes"] = json!({"items": {"data": [{"price": {"id": before}}]}});
    }
    assert_eq!(life.reads(6), ("basic".into(), 1000));
}

#[test]
fn unused_time_was_paid_by_the_payment_of_the_credited_period() {
    let opened = || {
        let mut life = subscribed("", "pro", 5000, 1);
        // An upgrade inside January is charged: 4,000 of its 19,000 were paid by the first payment.
        let lines = [L(-4000, "pro", true, 1, (10, 31)), L(19_000, "biz", true, 1, (10, 31))];
        life.shows(10, "active", &[("si_1", "biz", 1, MONTH)]).pays(
            10,
            "in_2",
            "subscription_update",
            &lines,
        );
        // A new period of 20,000, half of which is unused time of the one before it.
        let lines = [L(-10_000, "biz", true, 1, (20, 31)), L(20_000, "biz", false, 1, (20, 51))];
        life.pays(20, "in_3", "subscription_update", &lines);
        life
    };
    assert_eq!(opened().credits(21), 20_000);
    assert_eq!(opened().refunds(21, "in_3", 10_000).credits(21), 10_000);
    // The newest charge paid 10,000 × 15/19 of it, and the opening before it the rest.
    assert_eq!(opened().refunds(21, "in_2", 15_000).credits(21), 20_000 - 7895);
    assert_eq!(opened().refunds(21, "in_1", 5000).credits(21), 20_000 - 2105);
    let mut life = opened();
    life.refunds(21, "in_1", 5000).refunds(21, "in_2", 15_000).refunds(21, "in_3", 10_000);
    assert_eq!(life.credits(21), 0);
}

/// `sub_1` on the yearly plan with monthly credits, from 1 January; the slices start on days 31, 59, 90, …
fn yearly(policy: &str) -> Life {
    let mut life = Life::new(policy);
    life.shows(0, "active", &[("si_1", "monthly", 1, (0, 365))]);
    life.pays(0, "in_1", "subscription_create", &[L(12_000, "monthly", false, 1, (0, 365))]);
    life.spend(1, 3000);
    life
}

#[test]
fn a_slice_skipped_by_a_pause_is_granted_at_the_resume_if_it_still_runs() {
    let mut life = yearly("");
    life.shows(30, "paused", &[("si_1", "monthly", 1, (0, 365))]);
    assert_eq!(life.reads(40), ("free".into(), 0));
    life.shows(70, "active", &[("si_1", "monthly", 1, (0, 365))]);
    assert_eq!(life.reads(70), ("pro".into(), 3000));
    assert_eq!(life.spend(71, 3000).credits(89), 0);
    assert_eq!(life.credits(90), 3000);
}

#[test]
fn a_slice_waits_while_the_payment_is_disputed() {
    let mut life = yearly("");
    life.disputes(20, "in_1", 12_000, "needs_response");
    assert_eq!(life.credits(40), 0);
    life.disputes(45, "in_1", 12_000, "won");
    assert_eq!(life.credits(45), 3000);
}

#[test]
fn a_slice_after_an_end_that_arrives_late_is_undone() {
    let mut life = yearly("");
    assert_eq!(life.spend(40, 500).credits(41), 2500);
    let ended = json!({"id": "sub_1", "object": "subscription", "status": "canceled",
        "metadata": {"user_id": "ann"},
        "ended_at": START + 20 * DAY, "items": {"data": []}});
    life.event(42, "customer.subscription.deleted", ended);
    assert_eq!(life.reads(43), ("free".into(), 0));
}

#[test]
fn a_test_clock_moves_time_to_the_newest_event() {
    let mut life = Life::new("");
    life.pays(0, "in_1", "subscription_create", &[L(12_000, "monthly", false, 1, (0, 365))]);
    let clock = json!({"id": "sub_1", "object": "subscription", "status": "active", "test_clock": "clock_1",
        "metadata": {"user_id": "ann"}, "items": {"data": [{"id": "si_1", "price": {"id": "monthly"},
        "current_period_start": START, "current_period_end": START + 365 * DAY}]}});
    life.spend(1, 2000).event(31, "customer.subscription.updated", clock);
    // The second slice is due by the clock: 3,000 and half of the 1,000 that was left.
    assert_eq!(life.credits(2), 3500);
}

#[test]
fn a_deleted_customer_ends_access_and_keeps_the_bucket() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.event(5, "customer.deleted", json!({"id": "cus_1", "object": "customer"}));
    assert_eq!(life.reads(5), ("free".into(), 5000));
}

#[test]
fn a_subscription_that_unpaid_bills_ended_keeps_its_paid_period() {
    let mut life = subscribed("", "pro", 1000, 1);
    let ended = json!({"id": "sub_1", "object": "subscription", "status": "canceled",
        "ended_at": START + 9 * DAY,
        "cancellation_details": {"reason": "payment_failed"}, "metadata": {"user_id": "ann"},
        "items": {"data": [{"id": "si_1", "price": {"id": "basic"}, "current_period_start": START,
        "current_period_end": START + 31 * DAY}]}});
    life.event(9, "customer.subscription.deleted", ended);
    assert_eq!(life.reads(30), ("basic".into(), 5000));
    assert_eq!(life.reads(31), ("free".into(), 5000));
}

#[test]
fn a_paused_collection_keeps_access_to_the_end_of_the_paid_period() {
    for (policy, tier) in [("", "pro"), ("pause_collection = \"until_period_end\"", "free")] {
        let mut life = subscribed(policy, "pro", 1000, 1);
        let paused = json!({"id": "sub_1", "object": "subscription", "status": "active",
            "pause_collection": {"behavior": "void"}, "metadata": {"user_id": "ann"},
            "items": {"data": [{"id": "si_1", "price": {"id": "pro"}, "current_period_start": START,
            "current_period_end": START + 31 * DAY}]}});
        life.event(5, "customer.subscription.updated", paused);
        assert_eq!(life.reads(30).0, "pro", "{policy}");
        assert_eq!(life.reads(31).0, tier, "{policy}");
    }
}

#[test]
fn a_spend_takes_plans_first_or_what_expires_first() {
    for (order, buckets) in [
        ("plan_first", [("addon", 1000), ("grant", 50)]),
        ("expiring_first", [("addon", 1000), ("si_1", 50)]),
    ] {
        let mut life = subscribed(&format!("spend_order = \"{order}\""), "basic", 1000, 1);
        life.buys(1, "cs_1", 1);
        life.fix(1, json!({"action": "grant", "credits": 50, "expires": "2026-03-01T00:00:00Z"}));
        life.spend(2, 1000);
        let held = &life.world(3).users["ann"].buckets;
        assert_eq!(held.iter().map(|(k, v)| (k.as_str(), *v)).collect::<Vec<_>>(), buckets);
    }
}

#[test]
fn a_line_that_names_no_item_belongs_to_the_only_item() {
    let mut life = Life::new("");
    let invoice = json!({"id": "in_1", "object": "invoice", "subscription": "sub_1", "customer": "cus_1",
        "metadata": {"user_id": "ann"}, "billing_reason": "subscription_create",
        "total": 900, "amount_paid": 900,
        "lines": {"data": [{"amount": 900, "price": {"id": "pro"},
            "period": {"start": START, "end": START + 31 * DAY}}]}});
    life.event(0, "invoice.paid", invoice).spend(1, 700);
    assert_eq!(life.credits(1), 4300);
    // The snapshot names the item: the period and what was spent of it are the item's.
    life.shows(0, "active", &[("si_1", "pro", 1, MONTH)]);
    assert_eq!(life.world(2).users["ann"].buckets["si_1"], 4300);
}

#[test]
fn a_cut_list_is_parked() {
    let mut life = subscribed("", "pro", 1000, 1);
    let Action::Send(invoice) = &mut life.steps[1].action else { panic!("the invoice") };
    invoice["data"]["object"]["lines"]["has_more"] = true.into();
    assert_eq!(life.world(1).outcomes["evt_1"].reason, "lines_missing");
    assert_eq!(life.reads(1), ("pro".into(), 0));
}

#[test]
fn a_period_that_another_one_replaced_gives_no_access_after_it() {
    let mut life = Life::new("");
    life.pays(0, "in_1", "subscription_create", &[L(50_000, "pro_year", false, 1, (0, 365))]);
    let lines = [L(-40_000, "pro_year", true, 1, (10, 365)), L(1000, "pro", false, 1, (10, 41))];
    life.pays(10, "in_2", "subscription_update", &lines);
    life.shows(42, "unpaid", &[("si_1", "pro", 1, (41, 72))]);
    assert_eq!(life.reads(42), ("free".into(), 5000));
}

#[test]
fn an_item_whose_price_is_unknown_keeps_what_was_paid_for() {
    let mut life = subscribed("", "pro", 1000, 1);
    life.shows(5, "active", &[("si_1", "mistyped", 1, MONTH)]);
    assert_eq!(life.reads(30), ("pro".into(), 5000));
    assert_eq!(life.reads(31), ("free".into(), 5000));
}

#[test]
fn refunding_every_payment_of_a_life_leaves_nothing_that_was_paid() {
    for seed in 0..30_i64 {
        let choice = |n: i64, of: i64| (seed * 7919 + n * 104_729 + seed * n * 31) % of;
        let mut life = Life::new("plan_change = \"on_payment\"\naddons = \"keep\"");
        let (mut day, mut paid, mut prices) = (0, Vec::new(), ["basic", "pro", "biz"].into_iter().cycle());
        for n in 0..4 {
            let (id, price) = (format!("in_{n}"), prices.next().expect("a price"));
            // A period opens, early and with a credit for unused time, or at the end of the one before it.
            let credit = if n > 0 && choice(n, 2) == 0 { -300 } else { 0 };
            let mut lines = vec![L(1000 * (n + 1), price, false, 1, (day, day + 31))];
            if credit < 0 {
                lines.push(L(credit, price, true, 1, (day, day + 10)));
            }
            life.shows(day, "active", &[("si_1", price, 1, (day, day + 31))]);
            life.pays(day, &id, "subscription_cycle", &lines);
            paid.push((id, 1000 * (n + 1) + credit));
            if choice(n, 3) == 0 {
                let (id, next) = (format!("in_{n}_up"), if price == "basic" { "pro" } else { "biz" });
                life.shows(day + 5, "active", &[("si_1", next, 1, (day, day + 31))]);
                let lines = [
                    L(-200, price, true, 1, (day + 5, day + 31)),
                    L(900, next, true, 1, (day + 5, day + 31)),
                ];
                life.pays(day + 5, &id, "subscription_update", &lines);
                paid.push((id, 700));
            }
            life.buys(day + 6, &format!("cs_{n}"), 1).spend(day + 7, 40 * choice(n, 5));
            paid.push((format!("cs_{n}"), 1000));
            day += if choice(n, 2) == 0 { 10 } else { 31 };
        }
        assert!(life.credits(day) > 0, "seed {seed}");
        for (id, total) in paid {
            assert_eq!(law_of_money(&life.world(day)), Ok(()), "seed {seed}");
            life.refunds(day, &id, total);
        }
        assert_eq!(life.credits(day), 0, "seed {seed}");
    }
}
