//! What frees a parked or failed event: one act for each cause, in words for an operator.

use serde::Serialize;

/// The act that frees events, and those that wait for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What to do.
    pub act: Act,
    /// What it is about: a customer, a price, a name of the catalog, a payment.
    pub target: Option<String>,
    /// In a sentence.
    pub text: String,
}

/// An act of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Link the customer to a user: `fix-user` with `link_customer`.
    LinkCustomer,
    /// Name it in `catalog.toml` and deploy; the next run of `retry` frees what waits.
    AddToCatalog,
    /// Run reconciliation: it reads at Stripe what the event does not say.
    Reconcile,
    /// Mend the cause, then send it again.
    Retry,
    /// Read the event and decide; sending it again as it is changes nothing.
    Inspect,
}

/// What to do about an event that is parked or failed. `reason` is a code of [`super::decide::Parked`] or of
/// the dead-letter function, `waits_for` what is stored with it. Pure.
pub fn advice(status: &str, reason: Option<&str>, waits_for: Option<&str>) -> Advice {
    let waited = waits_for.and_then(|waits_for| waits_for.split_once('#'));
    let target = waited.map(|(_, target)| target.to_owned());
    let name = target.as_deref().unwrap_or("it");
    let (act, text) = match (reason.unwrap_or_default(), waited) {
        ("no_user", Some(("customer", customer))) => {
            (Act::LinkCustomer, format!("Link {customer} to its user; what waits for it is applied at once."))
        }
        ("no_user" | "invalid_user", _) => (
            Act::Inspect,
            "The event names no user that can be used and no customer. Set metadata.user_id where the checkout is made, find the user \
             by the payload, and repair the user from Stripe or by a grant."
                .to_owned(),
        ),
        ("unknown_price" | "unknown_name", _) => {
            (Act::AddToCatalog, format!("Add {name} to catalog.toml and deploy; what waits for it is applied within 15 minutes."))
        }
        ("unnamed_purchase", _) => {
            (Act::Reconcile, "The session does not say what was bought. Reconcile reads its line items at Stripe.".to_owned())
        }
        ("truncated_list", _) => (Act::Reconcile, "Stripe cut the list in the event short. Reconcile reads the whole of it.".to_owned()),
        ("no_grant", _) => (
            Act::Reconcile,
            format!(
                "The payment {name} granted nothing here yet. Reconcile finds what it bought, if that is missing; the refund or dispute follows by itself within the hour."
            ),
        ),
        ("conflict", _) => (
            Act::Inspect,
            "The same payment is in the ledger with another amount. Compare the two, then grant or revoke the difference.".to_owned(),
        ),
        ("payload_mismatch", _) => {
            (Act::Inspect, "The same event id came with another content. The first one stands; this one is never applied.".to_owned())
        }
        ("quantity" | "no_period" | "message" | "unreadable", _) => {
            (Act::Inspect, "The event says something that the rules cannot use. Read it and its message, and decide by hand.".to_owned())
        }
        _ if status == "failed" => (Act::Retry, "Every attempt failed. Mend what its log lines name, then send it again.".to_owned()),
        _ => (Act::Retry, "Send it again once its reason is gone.".to_owned()),
    };
    Advice { act, target, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_the_one_act_that_frees_it_and_names_its_target() {
        for (status, reason, waits_for, act, target) in [
            ("parked", "no_user", Some("customer#cus_1"), Act::LinkCustomer, Some("cus_1")),
            ("parked", "no_user", None, Act::Inspect, None),
            ("parked", "invalid_user", None, Act::Inspect, None),
            ("parked", "unknown_price", Some("price#price_x"), Act::AddToCatalog, Some("price_x")),
            ("parked", "unknown_name", Some("pack#gold#1"), Act::AddToCatalog, Some("gold#1")),
            ("parked", "unnamed_purchase", None, Act::Reconcile, None),
            ("parked", "truncated_list", None, Act::Reconcile, None),
            ("parked", "payload_mismatch", None, Act::Inspect, None),
            ("parked", "no_grant", Some("payment#pi_1"), Act::Reconcile, Some("pi_1")),
            ("parked", "conflict", None, Act::Inspect, None),
            ("failed", "retries_used_up", None, Act::Retry, None),
            ("failed", "unreadable", None, Act::Inspect, None),
            ("parked", "something_new", None, Act::Retry, None),
        ] {
            let found = advice(status, Some(reason), waits_for);
            assert_eq!((found.act, found.target.as_deref()), (act, target), "{reason}");
            assert!(target.is_none_or(|target| found.text.contains(target)), "{}", found.text);
        }
        let text = |status: &str, reason: &str| advice(status, Some(reason), None).text;
        assert!(
            text("failed", "retries_used_up").contains("log lines")
                && !text("parked", "something_new").contains("log lines")
        );
        assert!(text("parked", "payload_mismatch").contains("another content"));
    }
}
