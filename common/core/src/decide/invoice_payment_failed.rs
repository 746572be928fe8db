//! `invoice.payment_failed`, `invoice.payment_action_required`: a payment did not come through.
//!
//! Neither moves tier or credits: the subscription's own status (`past_due`, `incomplete`) does, with its
//! grace. The time of a failure is kept for the setup status. A payment that waits for the customer is kept
//! until its invoice is paid.

use super::EventFacts;
use crate::account::actions::PaymentAction;
use crate::account::{Account, Fact};
use crate::event::{Event, EventType, Invoice};
use crate::ledger::LedgerKey;

pub(super) fn read(invoice: &Invoice, event: &Event, account: &Account) -> EventFacts {
    let fact = if event.kind == EventType::InvoicePaymentFailed {
        Some(Fact::PaymentFailed(event.created))
    } else {
        let is_paid = account.recorded.contains_key(&LedgerKey::invoice(&invoice.id));
        (!is_paid).then(|| {
            Fact::ActionRequired(PaymentAction {
                at: event.created,
                invoice: invoice.id.clone(),
                subscription: invoice.subscription.clone(),
                hosted_invoice_url: invoice.hosted_invoice_url.clone(),
            })
        })
    };
    EventFacts { facts: fact.into_iter().collect(), not_paid: true, ..EventFacts::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::decide::tests::{P1, P2, Run, Step, check, invoice, line, paid, sub};
    use crate::timestamp::Timestamp;

    /// The shape of `events/invoice.payment_action_required.json`.
    fn waiting(kind: &str, id: &str) -> Step {
        invoice(
            kind,
            1500,
            id,
            "subscription_cycle",
            &[line("price_pro", 1, 1500)],
            json!({"status": "open", "hosted_invoice_url": format!("https://invoice.stripe.com/i/{id}")}),
        )
    }

    #[test]
    fn a_failed_payment_is_remembered_and_changes_nothing() {
        let bought = paid(P1, "in_1", "subscription_create", "price_pro", P1);
        for kind in ["payment_failed", "payment_action_required"] {
            check(
                kind,
                vec![bought.clone(), waiting(kind, "in_2")],
                "pro until 2593000 5000 | sub_1=5000 | invoice#in_1 +5000",
            );
            let remembered = Run::of(&[waiting(kind, "in_2")]).account.state.payment_failed_at.is_some();
            assert_eq!(remembered, kind == "payment_failed");
        }
    }

    #[test]
    fn a_payment_waits_for_the_customer_until_it_is_paid_or_the_subscription_ends() {
        let waits = |steps: &[Step]| {
            let run = Run::of(steps);
            let action = run.account.state.payment_action(&run.catalog, Timestamp::from_unix(P2 + 9));
            action.map(|action| (action.invoice.to_string(), action.hosted_invoice_url.clone()))
        };
        let url = |id: &str| Some((id.to_owned(), Some(format!("https://invoice.stripe.com/i/{id}"))));
        let first = || paid(P1, "in_1", "subscription_create", "price_pro", P1);
        let renewal = || paid(P2, "in_2", "subscription_cycle", "price_pro", P2);
        let action = |id: &str| waiting("payment_action_required", id);
        assert_eq!(waits(&[first()]), None);
        assert_eq!(waits(&[first(), action("in_2")]), url("in_2"));
        assert_eq!(waits(&[first(), action("in_2"), renewal()]), None, "paid later");
        assert_eq!(waits(&[first(), renewal(), action("in_2")]), None, "the payment arrived first");
        assert_eq!(waits(&[first(), action("in_3"), action("in_2"), renewal()]), url("in_3"));
        let ended = sub("deleted", P2 + 1, json!({"status": "canceled", "ended_at": P2 + 1}));
        assert_eq!(waits(&[first(), action("in_2"), ended]), None, "the subscription has ended");
    }
}
