//! `customer.deleted`: Stripe cancels the customer's subscriptions at once; later events of them restore
//! nothing.

use super::EventFacts;
use crate::account::Fact;
use crate::event::{Customer, Event};

pub(super) fn read(customer: &Customer, event: &Event) -> EventFacts {
    EventFacts {
        facts: vec![Fact::CustomerDeleted(customer.id.clone(), event.created)],
        ..EventFacts::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::decide::tests::{P1, check_any_order, event, paid, sub, updated};

    #[test]
    fn a_deleted_customer_has_no_tier_and_keeps_its_credits() {
        let deleted = event(
            "customer.deleted",
            1100,
            &json!({"id": "cus_1", "object": "customer", "deleted": true, "metadata": {"user_id": "user_1"}}),
            None,
        );
        let given = vec![
            sub("created", P1, json!({})),
            paid(P1, "in_1", "subscription_create", "price_pro", P1),
            deleted.into(),
            // Later events of the subscription restore nothing.
            updated(1200, json!({"cancel_at_period_end": true}), json!({"cancel_at_period_end": false})),
        ];
        check_any_order("late events too", given, "free 5000 | sub_1=5000 | invoice#in_1 +5000");
    }
}
