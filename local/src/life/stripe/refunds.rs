//! Refunds, disputes, and the deletion of the customer.

use serde_json::json;

use super::{Stripe, is_over};
use crate::life::Shape;

impl Stripe<'_> {
    pub(super) fn refund(&mut self, index: usize) {
        let left = self.payments[index].refundable();
        let amount = if self.rng.bool() { left } else { self.rng.i64(1..=left) };
        let pending = self.rng.u8(..3) == 0;
        let status = if pending { "pending" } else { "succeeded" };
        self.begin_act(format!(
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
    }

    pub(super) fn settle_refund(&mut self, index: usize) {
        let Some(which) = self.payments[index].refunds.iter().position(|refund| refund.2 == "pending") else {
            return;
        };
        let arrives = self.rng.bool();
        self.payments[index].refunds[which].2 = if arrives { "succeeded" } else { "failed" };
        self.begin_act(format!(
            "the refund {} {}",
            self.payments[index].refunds[which].0,
            if arrives { "arrives" } else { "fails" }
        ));
        if !arrives {
            self.emit_refund("refund.failed", index, which);
            self.tick();
        }
        self.emit_refund("refund.updated", index, which);
    }

    fn emit_refund(&mut self, kind: &'static str, index: usize, which: usize) {
        let payment = &self.payments[index];
        let (id, amount, status) = &payment.refunds[which];
        let object = json!({
            "id": id, "object": "refund", "charge": payment.charge, "payment_intent": payment.intent,
            "amount": amount,
            "currency": self.currency, "status": status, "metadata": {},
        });
        self.emit(kind, &object, None);
    }

    fn emit_charge(&mut self, index: usize) {
        let payment = &self.payments[index];
        let mut object = json!({
            "id": payment.charge, "object": "charge", "customer": payment.customer,
            "payment_intent": payment.intent, "amount": payment.amount,
            "amount_refunded": payment.refunded(), "refunded": payment.refunded() == payment.amount,
            "currency": self.currency, "metadata": {},
        });
        if self.life.shape == Shape::Old {
            object["invoice"] = json!(payment.invoice);
        }
        self.emit("charge.refunded", &object, None);
    }

    pub(super) fn dispute(&mut self, index: usize) {
        let amount = self.payments[index].refundable();
        let status =
            ["needs_response", "needs_response", "warning_needs_response", "lost"][self.rng.usize(..4)];
        self.begin_act(format!("disputes {amount} of {}: {status}", self.payments[index].intent));
        let id = self.id("dp");
        self.payments[index].dispute = Some((id, amount, status));
        self.emit_dispute("charge.dispute.created", index);
        if !status.starts_with("warning") {
            self.tick();
            self.emit_dispute("charge.dispute.funds_withdrawn", index);
        }
    }

    pub(super) fn move_dispute(&mut self, index: usize) {
        let choice = self.rng.usize(..3);
        let Some(dispute) = &mut self.payments[index].dispute else { return };
        dispute.2 = match dispute.2 {
            "warning_needs_response" => ["warning_closed", "needs_response", "warning_under_review"][choice],
            "warning_under_review" => ["warning_closed", "needs_response", "warning_closed"][choice],
            "needs_response" => ["under_review", "won", "lost"][choice],
            _ => ["won", "lost", "won"][choice],
        };
        let (id, status) = (dispute.0.clone(), dispute.2);
        self.begin_act(format!("the dispute {id} is {status}"));
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
    }

    fn emit_dispute(&mut self, kind: &'static str, index: usize) {
        let payment = &self.payments[index];
        let Some((id, amount, status)) = &payment.dispute else { return };
        let object = json!({
            "id": id, "object": "dispute", "charge": payment.charge, "payment_intent": payment.intent,
            "amount": amount,
            "currency": self.currency, "status": status, "metadata": {}, "created": self.now,
        });
        self.emit(kind, &object, None);
    }

    pub(super) fn delete_customer(&mut self) {
        let Some(customer) = self.customer.take() else { return };
        self.begin_act(format!("{customer} is deleted"));
        let object = json!({"id": customer, "object": "customer", "deleted": true, "metadata": {}});
        let first = self.rng.bool();
        if first {
            self.emit("customer.deleted", &object, None);
        }
        let live: Vec<usize> =
            (0..self.subscriptions.len()).filter(|&index| !is_over(&self.subscriptions[index].it)).collect();
        for index in live {
            self.end(index);
        }
        self.end_all_rare();
        if !first {
            self.emit("customer.deleted", &object, None);
        }
    }
}
