//! `charge.dispute.*`: a chargeback or an inquiry by the customer's bank.
//!
//! | status | rule | ledger key |
//! |---|---|---|
//! | `needs_response`, `under_review`, `lost` | takes the grant, less refunds | `dispute#dp_…#<status>` |
//! | `won` | returns exactly the credits that were taken | `dispute#dp_…#won` |
//! | `warning_*`, `prevented` | no money was withdrawn: no credits move | `dispute#dp_…#<status>` |
//!
//! The rule uses the status and not the event's type: `funds_withdrawn` arrives when the dispute is opened,
//! and in `created` the status may already be `lost`.

use crate::event::Dispute;
use crate::ledger::LedgerKey;
use crate::reversal::ReversalEvent;

pub(super) fn news(dispute: &Dispute) -> ReversalEvent {
    ReversalEvent::Dispute(dispute.id.clone(), dispute.amount, dispute.status.clone(), dispute.created)
}

pub(super) fn key(dispute: &Dispute) -> LedgerKey {
    LedgerKey::dispute(&dispute.id, dispute.status.as_str())
}

#[cfg(test)]
mod tests {
    use crate::decide::tests::{P1, Step, check, check_any_order, dispute, pack, paid, refunded};

    const PI: &str = "pi_in_1";

    fn bought() -> Step {
        paid(P1, "in_1", "subscription_create", "price_pro", P1)
    }

    #[test]
    fn a_dispute_takes_the_grant_until_it_is_won() {
        let opened = || dispute("created", 1100, PI, "needs_response");
        let closed = |status: &str| dispute("closed", 1300, PI, status);
        let held = "invoice#in_1 +5000, dispute#dp_1#needs_response -5000";
        for (what, given, expect) in [
            (
                "opened",
                vec![bought(), opened(), dispute("funds_withdrawn", 1101, PI, "needs_response")],
                format!("pro until 2593000 0 | sub_1=0 | {held}"),
            ),
            (
                "lost",
                vec![bought(), opened(), closed("lost")],
                format!("pro until 2593000 0 | sub_1=0 | {held}, dispute#dp_1#lost +0"),
            ),
            (
                "won",
                vec![bought(), opened(), closed("won"), dispute("funds_reinstated", 1301, PI, "won")],
                format!("pro until 2593000 5000 | sub_1=5000 | {held}, dispute#dp_1#won +5000"),
            ),
            (
                "lost at once",
                vec![bought(), dispute("created", 1100, PI, "lost")],
                "pro until 2593000 0 | sub_1=0 | invoice#in_1 +5000, dispute#dp_1#lost -5000".to_owned(),
            ),
        ] {
            check_any_order(what, given, &expect);
        }
    }

    #[test]
    fn an_inquiry_takes_nothing_unless_it_becomes_a_dispute() {
        let asked = || dispute("created", 1100, PI, "warning_needs_response");
        let summary = "invoice#in_1 +5000, dispute#dp_1#warning_needs_response +0";
        let over = vec![bought(), asked(), dispute("closed", 1300, PI, "warning_closed")];
        check_any_order(
            "closed",
            over,
            &format!("pro until 2593000 5000 | sub_1=5000 | {summary}, dispute#dp_1#warning_closed +0"),
        );
        let worse = vec![bought(), asked(), dispute("updated", 1300, PI, "needs_response")];
        check_any_order(
            "escalated",
            worse,
            &format!("pro until 2593000 0 | sub_1=0 | {summary}, dispute#dp_1#needs_response -5000"),
        );
    }

    #[test]
    fn refund_and_dispute_together_take_no_more_than_was_granted() {
        let given = vec![bought(), refunded(1100, PI, 500), dispute("created", 1200, PI, "needs_response")];
        let summary = "invoice#in_1 +5000, refund#ch_pi_in_1#500 -1250, dispute#dp_1#needs_response -3750";
        check_any_order("both", given, &format!("pro until 2593000 0 | sub_1=0 | {summary}"));
    }

    #[test]
    fn what_was_spent_stays_spent_when_a_dispute_is_won() {
        let given = vec![
            pack(10, "cs_1"),
            Step::Spend(400),
            dispute("created", 20, "pi_cs_1", "needs_response"),
            dispute("closed", 30, "pi_cs_1", "won"),
        ];
        let summary = "session#cs_1 +1000, consume#1 -400, dispute#dp_1#needs_response -600 shortfall 400, \
            dispute#dp_1#won +600";
        check("600 were left", given, &format!("free 600 | addon=600 | {summary}"));
    }

    #[test]
    fn a_dispute_before_its_grant_waits_for_it() {
        let given = vec![dispute("created", 1200, PI, "needs_response")];
        check("alone", given, "free 0 |  |  | charge.dispute.created parked: no_grant");
    }
}
