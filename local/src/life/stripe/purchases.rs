//! One-time payments: credit packs and orders.

use serde_json::{Value, json};

use super::{DelayedPayment, Stripe, pack_price};

impl Stripe<'_> {
    pub(super) fn buy_pack(&mut self) {
        if self.catalog.packs.is_empty() {
            return;
        }
        let pack = self.rng.usize(..self.catalog.packs.len());
        let quantity = self.rng.u64(1..4);
        let customer = if self.rng.u8(..5) == 0 { None } else { Some(self.customer()) };
        let how = self.rng.u8(..6);
        let id = self.id("cs_test");
        let name = self.catalog.packs[pack].name.clone();
        self.begin_act(format!(
            "buys {name} x{quantity}{}",
            ["", "", "", "", ", free", ", paid later"][usize::from(how)]
        ));
        let status = ["paid", "paid", "paid", "paid", "no_payment_required", "unpaid"][usize::from(how)];
        let mut session =
            self.session(&id, "payment", status, json!({"pack": name, "quantity": quantity.to_string()}));
        session["customer"] = json!(customer);
        session["amount_subtotal"] = json!(pack_price(quantity));
        session["amount_total"] =
            json!(if status == "no_payment_required" { 0 } else { pack_price(quantity) });
        let intent = self.id("pi");
        if status != "no_payment_required" {
            session["payment_intent"] = json!(intent);
        }
        self.emit("checkout.session.completed", &session, None);
        if status == "unpaid" {
            self.delayed.push(DelayedPayment { id, intent, pack, quantity, customer });
            return;
        }
        if status == "paid" {
            self.add_payment(intent, pack_price(quantity), None, customer);
        }
    }

    pub(super) fn settle(&mut self, index: usize) {
        let DelayedPayment { id, intent, pack, quantity, customer } = self.delayed.remove(index);
        let arrives = self.rng.u8(..4) > 0;
        self.begin_act(format!("the payment of {id} {}", if arrives { "arrives" } else { "fails" }));
        let metadata = json!({"pack": self.catalog.packs[pack].name, "quantity": quantity.to_string()});
        let mut session = self.session(&id, "payment", if arrives { "paid" } else { "unpaid" }, metadata);
        session["customer"] = json!(customer);
        session["amount_subtotal"] = json!(pack_price(quantity));
        session["amount_total"] = json!(pack_price(quantity));
        session["payment_intent"] = json!(intent);
        if arrives {
            self.emit("checkout.session.async_payment_succeeded", &session, None);
            self.add_payment(intent, pack_price(quantity), None, customer);
        } else {
            self.emit("checkout.session.async_payment_failed", &session, None);
        }
    }

    pub(super) fn buy_order(&mut self) {
        let Some((mode, plan)) = self
            .catalog
            .orders
            .first()
            .and_then(|order| Some((order.mode.clone(), order.plans.keys().next()?.clone())))
        else {
            return;
        };
        self.begin_act(format!("orders {mode} {plan}"));
        let (id, intent, customer) = (self.id("cs_test"), self.id("pi"), self.customer());
        let mut session = self.session(&id, "payment", "paid", json!({"mode": mode, "plan": plan}));
        session["customer"] = json!(customer);
        session["amount_subtotal"] = json!(49_000);
        session["amount_total"] = json!(49_000);
        session["payment_intent"] = json!(intent);
        self.emit("checkout.session.completed", &session, None);
        self.add_payment(intent, 49_000, None, Some(customer));
    }

    pub(super) fn session(&self, id: &str, mode: &str, payment_status: &str, metadata: Value) -> Value {
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
            "amount_subtotal": 1900,
            "currency_conversion": null,
            "amount_total": 1900,
            "currency": self.currency,
            "customer_details": {"email": "someone@example.com"},
            "customer_email": null,
            "payment_link": null,
            "created": self.now,
        })
    }
}
