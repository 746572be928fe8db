//! `invoice.payment_failed`, `invoice.payment_action_required`: a payment did not come through.
//!
//! Neither moves tier or credits: the subscription's own status (`past_due`, `incomplete`) does, with its
//! grace. The time of a failure is kept for the setup status.

use super::Reading;
use crate::account::Fact;
use crate::event::{Event, EventType, Invoice};

pub(super) fn read(_invoice: &Invoice, event: &Event) -> Reading {
    if event.kind != EventType::InvoicePaymentFailed {
        return Reading { not_paid: true, ..Reading::default() };
    }
    Reading { facts: vec![Fact::PaymentFailed(event.created)], not_paid: true, ..Reading::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::decide::tests::{P1, Run, check, invoice, line, paid};

    #[test]
    fn a_failed_payment_is_remembered_and_changes_nothing() {
        let failed = |kind: &str| {
            invoice(
                kind,
                1500,
                "in_2",
                "subscription_cycle",
                &[line("price_pro", 1, 1500)],
                json!({"status": "open"}),
            )
        };
        let bought = paid(P1, "in_1", "subscription_create", "price_pro", P1);
        for kind in ["payment_failed", "payment_action_required"] {
            check(
                kind,
                vec![bought.clone(), failed(kind)],
                "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000",
            );
            let remembered = Run::of(&[failed(kind)]).account.state.payment_failed_at.is_some();
            assert_eq!(remembered, kind == "payment_failed");
        }
    }
}
