//! `charge.refunded`, `refund.*`: a refund, or a refund that failed.
//!
//! | event | rule | ledger key |
//! |---|---|---|
//! | `charge.refunded` | revokes in proportion to the cumulative amount | `refund#ch_…#<cumulative>` |
//! | `refund.*`, `succeeded` | the same refund: does not revoke twice | `refund#re_…#succeeded` |
//! | `refund.*`, `failed` or `canceled` | returns what was revoked for it | `refund#re_…#failed` |
//! | `refund.*`, `pending` | revokes nothing itself | `refund#re_…#pending` |
//!
//! - A refund revokes at most what the payment granted, and a balance never falls below 0.
//! - `refund.failed` counts as failed, also if its object has another status.
//! - The charge's newest `amount_refunded` counts a pending refund.
//! - A refund belongs to the document of its payment, never to a customer. If the payment is not linked to a
//!   document yet, the event is parked, and the refund is stored with the payment until the link arrives.

use crate::event::{Charge, Event, EventType, Refund, RefundStatus};
use crate::ledger::LedgerKey;

pub(super) fn charge_key(charge: &Charge) -> LedgerKey {
    LedgerKey::refund_of_charge(&charge.id, charge.amount_refunded)
}

pub(super) fn key(refund: &Refund, event: &Event) -> LedgerKey {
    LedgerKey::refund(&refund.id, status(refund, event).as_str())
}

/// The status of the refund. The object in an event may be older than the event, so `refund.failed` always
/// counts as failed.
pub(super) fn status(refund: &Refund, event: &Event) -> RefundStatus {
    if event.kind == EventType::RefundFailed { RefundStatus::Failed } else { refund.status.clone() }
}

#[cfg(test)]
mod tests {
    use crate::decide::tests::{P1, P2, Step, check, check_any_order, dispute, pack, paid, refund, refunded};

    const PI: &str = "pi_in_1";

    fn bought() -> Step {
        paid(P1, "in_1", "subscription_create", "price_pro", P1)
    }

    #[test]
    fn the_cumulative_amount_counts_in_any_order_and_number() {
        let given =
            vec![bought(), refunded(1100, PI, 500), refunded(1200, PI, 1500), refunded(1300, PI, 2000)];
        let summary = "invoice#in_1 +5000, refund#ch_pi_in_1#500 -1250, refund#ch_pi_in_1#1500 -2500, \
            refund#ch_pi_in_1#2000 -1250";
        check_any_order(
            "500, 1500, 2000 of 2000",
            given,
            &format!("pro until 2593000 0 | sub_1=0 | {summary}"),
        );
        check(
            "one is lost, one arrives late",
            vec![bought(), refunded(1300, PI, 1500), refunded(1200, PI, 500)],
            "pro until 2593000 1250 | sub_1=1250 | invoice#in_1 +5000, refund#ch_pi_in_1#1500 -3750, \
             refund#ch_pi_in_1#500 +0",
        );
        check(
            "a third is rounded down",
            vec![bought(), refunded(1300, PI, 1)],
            "pro until 2593000 4998 | sub_1=4998 | invoice#in_1 +5000, refund#ch_pi_in_1#1 -2",
        );
    }

    #[test]
    fn a_refund_and_its_charge_are_one() {
        let given =
            vec![bought(), refund("created", 1100, PI, "re_1", 1000, "succeeded"), refunded(1100, PI, 1000)];
        let summary = "invoice#in_1 +5000, refund#re_1#succeeded -2500, refund#ch_pi_in_1#1000 +0";
        check_any_order("half", given, &format!("pro until 2593000 2500 | sub_1=2500 | {summary}"));
    }

    #[test]
    fn a_pending_refund_counts_only_in_its_charge_and_a_failed_one_not_at_all() {
        let pending = || refund("created", 1100, PI, "re_1", 1000, "pending");
        let summary = "invoice#in_1 +5000, refund#re_1#pending +0";
        check(
            "pending",
            vec![bought(), pending()],
            &format!("pro until 2593000 5000 | sub_1=5000 | {summary}"),
        );
        let arrives = vec![
            bought(),
            pending(),
            refunded(1101, PI, 1000),
            refund("updated", 1200, PI, "re_1", 1000, "succeeded"),
        ];
        let summary = "invoice#in_1 +5000, refund#re_1#pending +0, refund#ch_pi_in_1#1000 -2500, \
            refund#re_1#succeeded +0";
        check_any_order("it arrives", arrives, &format!("pro until 2593000 2500 | sub_1=2500 | {summary}"));
        let fails =
            vec![bought(), refunded(1101, PI, 1000), refund("failed", 1200, PI, "re_1", 1000, "failed")];
        let summary = "invoice#in_1 +5000, refund#ch_pi_in_1#1000 -2500, refund#re_1#failed +2500";
        check_any_order("it fails", fails, &format!("pro until 2593000 5000 | sub_1=5000 | {summary}"));
    }

    #[test]
    fn a_failed_refund_takes_nothing_whatever_its_object_says() {
        for status in ["pending", "requires_action", "succeeded", "failed", "canceled", "unheard_of"] {
            let summary = "invoice#in_1 +5000, refund#re_1#failed +0";
            let failed = refund("failed", 1200, PI, "re_1", 1000, status);
            check(
                status,
                vec![bought(), failed.clone()],
                &format!("pro until 2593000 5000 | sub_1=5000 | {summary}"),
            );
            let summary = "invoice#in_1 +5000, refund#re_1#succeeded -2500, refund#re_1#failed +2500";
            let given = vec![bought(), refund("created", 1100, PI, "re_1", 1000, "succeeded"), failed];
            check_any_order(status, given, &format!("pro until 2593000 5000 | sub_1=5000 | {summary}"));
        }
    }

    #[test]
    fn a_refund_before_its_grant_waits_for_it() {
        let alone = vec![refunded(1100, PI, 2000)];
        check("alone", alone, "free 0 |  |  | charge.refunded parked: no_grant");
        let given = vec![refunded(1100, PI, 2000), bought()];
        check(
            "then the grant",
            given,
            "pro until 2593000 0 | sub_1=0 | invoice#in_1 +5000, refund#pi_in_1#2000 -5000, \
             refund#ch_pi_in_1#2000 +0",
        );
    }

    #[test]
    fn spent_credits_are_a_shortfall_and_an_older_period_changes_nothing() {
        check(
            "spent",
            vec![bought(), Step::Spend(4000), refunded(1100, PI, 1000)],
            "pro until 2593000 0 | sub_1=0 | invoice#in_1 +5000, consume#1 -4000, refund#ch_pi_in_1#1000 \
             -1000 shortfall 1500",
        );
        check_any_order(
            "of a period that is over",
            vec![
                bought(),
                paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
                refunded(P2 + 9, PI, 2000),
            ],
            "pro until 5185000 5000 | sub_1=5000 | invoice#in_1 +5000, invoice#in_2 +0, \
             refund#ch_pi_in_1#2000 +0 superseded",
        );
        check(
            "of a pack that a renewal ended",
            vec![
                pack(P1, "cs_1"),
                paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
                refunded(P2 + 9, "pi_cs_1", 2000),
            ],
            "pro until 5185000 5000 | sub_1=5000 | session#cs_1 +1000, invoice#in_2 +4000, \
             refund#ch_pi_cs_1#2000 +0 superseded",
        );
    }

    #[test]
    fn a_pack_pays_for_its_own_refund_only() {
        let summary = "session#cs_1 +1000, consume#1 -1000, session#cs_2 +1000, refund#ch_pi_cs_1#2000 +0 \
            shortfall 1000";
        check(
            "another pack is not taken for one that was spent",
            vec![pack(10, "cs_1"), Step::Spend(1000), pack(20, "cs_2"), refunded(30, "pi_cs_1", 2000)],
            &format!("free 1000 | addon=1000 | {summary}"),
        );
        // The failed refund of one pack gives back what that pack had left, whatever was taken from the
        // other.
        let one = [refunded(30, "pi_cs_1", 2000)];
        let other = [refunded(40, "pi_cs_2", 2000), refund("failed", 50, "pi_cs_2", "re_2", 2000, "failed")];
        for back in [
            [&one[..], &other[..]].concat(),
            [&other[..1], &one[..], &other[1..]].concat(),
            [&other[..], &one[..]].concat(),
        ] {
            let given = [vec![pack(10, "cs_1"), pack(20, "cs_2"), Step::Spend(300)], back].concat();
            let run = crate::decide::tests::Run::of(&given);
            assert!(run.summary().starts_with("free 1000 | addon=1000 |"), "{}", run.summary());
        }
    }

    #[test]
    fn amounts_are_minor_units_of_any_currency() {
        let yen = crate::decide::tests::invoice(
            "paid",
            P1,
            "in_1",
            "subscription_create",
            &[crate::decide::tests::line("price_pro", 1, P1)],
            serde_json::json!({"currency": "jpy", "amount_paid": 3}),
        );
        check(
            "yen have no minor unit",
            vec![yen, refunded(1100, PI, 1)],
            "pro until 2593000 3334 | sub_1=3334 | invoice#in_1 +5000, refund#ch_pi_in_1#1 -1666",
        );
    }

    #[test]
    fn a_refund_after_a_won_dispute_counts_in_full() {
        let won = vec![
            bought(),
            dispute("created", 1100, PI, "needs_response"),
            dispute("closed", 1200, PI, "won"),
            refunded(1300, PI, 1000),
        ];
        let summary = "invoice#in_1 +5000, dispute#dp_1#needs_response -5000, dispute#dp_1#won +5000, \
            refund#ch_pi_in_1#1000 -2500";
        check_any_order(
            "less what was given back",
            won,
            &format!("pro until 2593000 2500 | sub_1=2500 | {summary}"),
        );
    }
}
