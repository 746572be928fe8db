//! `charge.refunded`, `refund.*`: money went back, or did not after all.
//!
//! | event | rule | ledger key |
//! |---|---|---|
//! | `charge.refunded` | revoke in proportion to the cumulative amount, never more than the payment granted, never below 0 | `refund#ch_…#<cumulative>` |
//! | `refund.*`, `succeeded` | the same refund told one by one: no second revocation | `refund#re_…#succeeded` |
//! | `refund.*`, `failed` or `canceled`; `refund.failed` whatever its snapshot says | the money is back: what was revoked for it returns | `refund#re_…#failed` |
//! | `refund.*`, `pending` | nothing yet | `refund#re_…#pending` |
//!
//! A payment that granted nothing here yet parks the event until it does.

use super::{Parked, PaymentRef, Reading};
use crate::account::{Account, Fact};
use crate::event::{Charge, Event, EventType, Refund, RefundStatus};
use crate::ids::InvoiceId;
use crate::ledger::LedgerKey;
use crate::reversal::News;

pub(super) fn read_charge(
    charge: &Charge,
    account: &Account,
    payment: Option<&LedgerKey>,
) -> Result<Reading, Parked> {
    let known = paid(account, charge.invoice.as_ref());
    let name =
        || charge.payment_intent.as_ref().map_or(charge.id.as_str(), |intent| intent.as_str()).to_owned();
    let grant = known.as_ref().or(payment).ok_or_else(|| Parked::NoGrant(name()))?;
    let key = charge_key(charge);
    let facts = reversal(account, grant, News::Charge(charge.amount_refunded), key, name)?;
    // What the charge names is what later refunds and disputes of it will name.
    let intent = charge.payment_intent.clone().map(PaymentRef::Intent);
    let pointer = intent.unwrap_or_else(|| PaymentRef::Charge(charge.id.clone()));
    let payments = if payment.is_some() { Vec::new() } else { vec![(pointer, grant.clone())] };
    Ok(Reading { facts, payments, ..Reading::default() })
}

pub(super) fn read_refund(
    refund: &Refund,
    event: &Event,
    account: &Account,
    payment: Option<&LedgerKey>,
) -> Result<Reading, Parked> {
    let name = || {
        let intent = refund.payment_intent.as_ref().map(|intent| intent.as_str());
        intent
            .or(refund.charge.as_ref().map(|charge| charge.as_str()))
            .unwrap_or(refund.id.as_str())
            .to_owned()
    };
    let by_invoice = paid(account, refund.invoice.as_ref());
    let grant = payment.or(by_invoice.as_ref()).ok_or_else(|| Parked::NoGrant(name()))?;
    let news = News::Refund(refund.id.clone(), refund.amount, status(refund, event));
    let facts = reversal(account, grant, news, key(refund, event), name)?;
    Ok(Reading { facts, ..Reading::default() })
}

/// What was granted for an invoice, if it was.
pub(super) fn paid(account: &Account, invoice: Option<&InvoiceId>) -> Option<LedgerKey> {
    invoice.map(LedgerKey::invoice).filter(|key| account.recorded.contains_key(key))
}

/// The charge's own key, and that of the invoice it paid.
pub(super) fn charge_keys(charge: &Charge) -> Vec<LedgerKey> {
    std::iter::once(charge_key(charge)).chain(charge.invoice.as_ref().map(LedgerKey::invoice)).collect()
}

fn charge_key(charge: &Charge) -> LedgerKey {
    LedgerKey::refund_of_charge(&charge.id, charge.amount_refunded)
}

pub(super) fn key(refund: &Refund, event: &Event) -> LedgerKey {
    LedgerKey::refund(&refund.id, status(refund, event).as_str())
}

/// How far the refund is. The snapshot in an event may be older than what it tells: that a refund failed
/// stands in its type.
fn status(refund: &Refund, event: &Event) -> RefundStatus {
    if event.kind == EventType::RefundFailed { RefundStatus::Failed } else { refund.status.clone() }
}

/// The fact, if the grant that the payment is said to be for is really in the ledger.
pub(super) fn reversal(
    account: &Account,
    grant: &LedgerKey,
    news: News,
    key: LedgerKey,
    payment: impl FnOnce() -> String,
) -> Result<Vec<Fact>, Parked> {
    if !account.recorded.contains_key(grant) {
        return Err(Parked::NoGrant(payment()));
    }
    Ok(vec![Fact::Reversal(grant.clone(), news, key)])
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
        let told = "invoice#in_1 +5000, refund#ch_pi_in_1#500 -1250, refund#ch_pi_in_1#1500 -2500, refund#ch_pi_in_1#2000 -1250";
        check_any_order("500, 1500, 2000 of 2000", given, &format!("pro 0 | sub_1=0 | {told}"));
        check(
            "one was lost, one comes late",
            vec![bought(), refunded(1300, PI, 1500), refunded(1200, PI, 500)],
            "pro 1250 | sub_1=1250 | invoice#in_1 +5000, refund#ch_pi_in_1#1500 -3750, refund#ch_pi_in_1#500 +0",
        );
        check(
            "a third is rounded down",
            vec![bought(), refunded(1300, PI, 1)],
            "pro 4998 | sub_1=4998 | invoice#in_1 +5000, refund#ch_pi_in_1#1 -2",
        );
    }

    #[test]
    fn a_refund_and_its_charge_are_one() {
        let given =
            vec![bought(), refund("created", 1100, PI, "re_1", 1000, "succeeded"), refunded(1100, PI, 1000)];
        let told = "invoice#in_1 +5000, refund#re_1#succeeded -2500, refund#ch_pi_in_1#1000 +0";
        check_any_order("half", given, &format!("pro 2500 | sub_1=2500 | {told}"));
    }

    #[test]
    fn what_is_pending_or_failed_takes_nothing_in_the_end() {
        let pending = || refund("created", 1100, PI, "re_1", 1000, "pending");
        let told = "invoice#in_1 +5000, refund#re_1#pending +0";
        check("pending", vec![bought(), pending()], &format!("pro 5000 | sub_1=5000 | {told}"));
        let arrives = vec![
            bought(),
            pending(),
            refunded(1101, PI, 1000),
            refund("updated", 1200, PI, "re_1", 1000, "succeeded"),
        ];
        let told = "invoice#in_1 +5000, refund#re_1#pending +0, refund#ch_pi_in_1#1000 +0, refund#re_1#succeeded -2500";
        check_any_order("it arrives", arrives, &format!("pro 2500 | sub_1=2500 | {told}"));
        let fails =
            vec![bought(), refunded(1101, PI, 1000), refund("failed", 1200, PI, "re_1", 1000, "failed")];
        let told = "invoice#in_1 +5000, refund#ch_pi_in_1#1000 -2500, refund#re_1#failed +2500";
        check_any_order("it fails", fails, &format!("pro 5000 | sub_1=5000 | {told}"));
    }

    #[test]
    fn a_refund_that_failed_takes_nothing_whatever_its_snapshot_says() {
        for status in ["pending", "requires_action", "succeeded", "failed", "canceled", "unheard_of"] {
            let told = "invoice#in_1 +5000, refund#re_1#failed +0";
            let failed = refund("failed", 1200, PI, "re_1", 1000, status);
            check(status, vec![bought(), failed.clone()], &format!("pro 5000 | sub_1=5000 | {told}"));
            let told = "invoice#in_1 +5000, refund#re_1#succeeded -2500, refund#re_1#failed +2500";
            let given = vec![bought(), refund("created", 1100, PI, "re_1", 1000, "succeeded"), failed];
            check_any_order(status, given, &format!("pro 5000 | sub_1=5000 | {told}"));
        }
    }

    #[test]
    fn a_refund_before_its_grant_waits_for_it() {
        let alone = vec![refunded(1100, PI, 2000)];
        check("alone", alone, "free 0 |  |  | charge.refunded parked: no_grant");
        let given = vec![refunded(1100, PI, 2000), bought()];
        check("then the grant", given, "pro 0 | sub_1=0 | invoice#in_1 +5000, refund#ch_pi_in_1#2000 -5000");
    }

    #[test]
    fn what_was_spent_or_replaced_is_a_shortfall() {
        check(
            "spent",
            vec![bought(), Step::Spend(4000), refunded(1100, PI, 1000)],
            "pro 0 | sub_1=0 | invoice#in_1 +5000, consume#1 -4000, refund#ch_pi_in_1#1000 -1000 shortfall 1500",
        );
        check_any_order(
            "of a period that is over",
            vec![
                bought(),
                paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
                refunded(P2 + 9, PI, 2000),
            ],
            "pro 5000 | sub_1=5000 | invoice#in_1 +5000, invoice#in_2 +0, refund#ch_pi_in_1#2000 +0 shortfall 5000",
        );
        check(
            "of a pack that a renewal ended",
            vec![
                pack(P1, "cs_1"),
                paid(P2, "in_2", "subscription_cycle", "price_pro", P2),
                refunded(P2 + 9, "pi_cs_1", 2000),
            ],
            "pro 5000 | sub_1=5000 | session#cs_1 +1000, invoice#in_2 +4000, refund#ch_pi_cs_1#2000 +0 shortfall 1000",
        );
    }

    #[test]
    fn a_pack_pays_for_its_own_refund_only() {
        let told = "session#cs_1 +1000, consume#1 -1000, session#cs_2 +1000, refund#ch_pi_cs_1#2000 +0 shortfall 1000";
        check(
            "another pack is not taken for one that was spent",
            vec![pack(10, "cs_1"), Step::Spend(1000), pack(20, "cs_2"), refunded(30, "pi_cs_1", 2000)],
            &format!("free 1000 | addon=1000 | {told}"),
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
            assert!(run.told().starts_with("free 1000 | addon=1000 |"), "{}", run.told());
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
            "pro 3334 | sub_1=3334 | invoice#in_1 +5000, refund#ch_pi_in_1#1 -1666",
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
        let told = "invoice#in_1 +5000, dispute#dp_1#needs_response -5000, dispute#dp_1#won +5000, refund#ch_pi_in_1#1000 -2500";
        check_any_order("net of what came back", won, &format!("pro 2500 | sub_1=2500 | {told}"));
    }
}
