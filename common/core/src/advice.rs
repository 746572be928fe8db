//! Advice to the operator about a parked or failed event: one action for each reason.

use serde::Serialize;

/// What an operator does so that an event and all events that wait for the same can be applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What to do.
    pub act: OperatorAction,
    /// What the event waits for: a customer, a user, a price, a name of the catalog or a payment.
    pub target: Option<String>,
    /// The advice in words.
    pub text: String,
}

/// What an operator can do about a parked event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorAction {
    /// Link the customer to a user: `fix-user` with `link_customer`.
    LinkCustomer,
    /// Add it to the catalog and push the catalog. The waiting events are then sent again.
    AddToCatalog,
    /// Run reconciliation. It reads from Stripe what is missing in the event.
    Reconcile,
    /// Fix the cause, then send the event again.
    Retry,
    /// Read the event and decide. Sending it again without another change has no effect.
    Inspect,
}

/// The advice about a parked or failed event. `reason` is a code of [`super::decide::Parked`] or of the
/// dead-letter function. `waits_for` is the key that is stored with the event.
pub fn advice(status: &str, reason: Option<&str>, waits_for: Option<&str>) -> Advice {
    let waited = waits_for.and_then(|waits_for| waits_for.split_once('#'));
    let target = waited.map(|(_, target)| target.to_owned());
    let fixed = |act: OperatorAction, text: &str| (act, text.to_owned());
    let (act, text) = match (reason.unwrap_or_default(), waited) {
        ("no_user", Some(("customer", customer))) => (
            OperatorAction::LinkCustomer,
            format!("Link {customer} to its user. The events that wait for it are then sent again at once."),
        ),
        ("no_user" | "invalid_user", _) => fixed(
            OperatorAction::Inspect,
            "The event names no valid user and no customer. Set metadata.user_id where the checkout session \
             is created. Find the user by the payload, and repair the user from Stripe or with a grant.",
        ),
        ("owner_conflict", _) => fixed(
            OperatorAction::Inspect,
            "The event names another user than the owner of the subscription. If the event is right, move \
             the subscription (fix-user with the action move) and send the event again. If not, dismiss the \
             event.",
        ),
        ("unknown_reference", _) => (
            OperatorAction::Inspect,
            format!(
                "client_reference_id names {}, who has no account here. When the app creates the user, the \
                 event is sent again. If the reference is wrong, link the customer to its user and send the \
                 event again.",
                target.as_deref().map_or_else(|| "a user".to_owned(), |user| format!("the user {user}"))
            ),
        ),
        ("shared_customer", _) => fixed(
            OperatorAction::Inspect,
            "The customer pays for several users, and the event names none of them. Set metadata.user_id on \
             each subscription and checkout session. For this event, link or move the subscription to its \
             user, then send the event again.",
        ),
        ("no_catalog", _) => fixed(
            OperatorAction::AddToCatalog,
            "No catalog is stored. Store yours with: tallyhook catalog push catalog.toml --apply --reason \
             first. The events that wait for it are then sent again at once.",
        ),
        ("unknown_price" | "unknown_name", _) => (
            OperatorAction::AddToCatalog,
            format!(
                "Add {} to catalog.toml and push it: tallyhook catalog push catalog.toml --apply --reason … \
                 The events that wait for it are then sent again at once.",
                target.as_deref().unwrap_or("it")
            ),
        ),
        ("ambiguous_price", _) => fixed(
            OperatorAction::Inspect,
            "Two entries of the catalog match the price by different fields: its id, its lookup key, the lookup \
             key that it had before, or its Stripe product. Remove one of them, or name the price's id in the \
             prices of the right entry. The events that wait for it are sent again within 15 minutes.",
        ),
        ("unnamed_purchase", _) => fixed(
            OperatorAction::Reconcile,
            "The event does not say what was bought. A session with several line items needs \
             STRIPE_SECRET_KEY, so that they can be read, or metadata.pack, metadata.plan or metadata.mode. \
             Reconciliation reads the line items from Stripe.",
        ),
        ("lines_missing", _) => fixed(
            OperatorAction::Reconcile,
            "The event holds only the first lines or items. Set STRIPE_SECRET_KEY, so that the whole list \
             is read from Stripe. Reconciliation reads it for this event.",
        ),
        ("too_many_items", _) => fixed(
            OperatorAction::Inspect,
            "The account would have more than 50 subscription items, or dozens of items with dozens of changes \
             each, and nothing is added to it. Cancel subscriptions that are not needed, or move some to \
             another user, then send the event again.",
        ),
        ("too_many_products", _) => fixed(
            OperatorAction::Inspect,
            "The account would have more than 200 products, and none is added to it. Refund the purchase, or \
             sell to another user.",
        ),
        ("no_grant", _) => (
            OperatorAction::Reconcile,
            format!(
                "No grant is known for {}. Reconciliation finds the purchase if its event is missing. \
                 The refund or dispute is then sent again within the hour.",
                target.as_deref().map_or_else(|| "the payment".to_owned(), |id| format!("the payment {id}"))
            ),
        ),
        ("conflict", _) => fixed(
            OperatorAction::Inspect,
            "The same payment is in the ledger with another amount. Compare both, then grant or revoke the \
             difference.",
        ),
        ("payload_mismatch", _) => fixed(
            OperatorAction::Inspect,
            "The same event id arrived with another content. The first event is applied; this one never is.",
        ),
        ("quantity" | "no_period" | "message" | "unreadable", _) => fixed(
            OperatorAction::Inspect,
            "The rules cannot use the content of the event. Read the event and its message, and decide by \
             hand.",
        ),
        _ if status == "failed" => fixed(
            OperatorAction::Retry,
            "Every attempt failed. Fix the cause in its log lines, then send the event again.",
        ),
        _ => fixed(OperatorAction::Retry, "Fix the reason, then send the event again."),
    };
    Advice { act, target, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_one_act_and_the_text_names_the_target() {
        for (status, reason, waits_for, act, target) in [
            ("parked", "no_user", Some("customer#cus_1"), OperatorAction::LinkCustomer, Some("cus_1")),
            ("parked", "no_user", None, OperatorAction::Inspect, None),
            ("parked", "invalid_user", None, OperatorAction::Inspect, None),
            ("parked", "owner_conflict", None, OperatorAction::Inspect, None),
            ("parked", "unknown_reference", Some("user#ann#1"), OperatorAction::Inspect, Some("ann#1")),
            ("parked", "unknown_reference", None, OperatorAction::Inspect, None),
            ("parked", "shared_customer", None, OperatorAction::Inspect, None),
            ("parked", "no_catalog", None, OperatorAction::AddToCatalog, None),
            ("parked", "unknown_price", Some("price#price_x"), OperatorAction::AddToCatalog, Some("price_x")),
            ("parked", "unknown_name", Some("pack#gold#1"), OperatorAction::AddToCatalog, Some("gold#1")),
            ("parked", "ambiguous_price", None, OperatorAction::Inspect, None),
            ("parked", "unnamed_purchase", None, OperatorAction::Reconcile, None),
            ("parked", "lines_missing", None, OperatorAction::Reconcile, None),
            ("parked", "too_many_items", None, OperatorAction::Inspect, None),
            ("parked", "too_many_products", None, OperatorAction::Inspect, None),
            ("parked", "payload_mismatch", None, OperatorAction::Inspect, None),
            ("parked", "no_grant", Some("payment#pi_1"), OperatorAction::Reconcile, Some("pi_1")),
            ("parked", "conflict", None, OperatorAction::Inspect, None),
            ("failed", "retries_used_up", None, OperatorAction::Retry, None),
            ("failed", "unreadable", None, OperatorAction::Inspect, None),
            ("parked", "something_new", None, OperatorAction::Retry, None),
        ] {
            let found = advice(status, Some(reason), waits_for);
            assert_eq!((found.act, found.target.as_deref()), (act, target), "{reason}");
            assert!(target.is_none_or(|target| found.text.contains(target)), "{}", found.text);
        }
    }

    #[test]
    fn each_reason_has_its_own_text() {
        let text = |status: &str, reason: &str| advice(status, Some(reason), None).text;
        for (status, reason, words) in [
            ("parked", "owner_conflict", "action move"),
            ("parked", "owner_conflict", "dismiss"),
            ("parked", "unknown_reference", "the app creates the user"),
            ("parked", "unknown_reference", "link the customer"),
            ("parked", "shared_customer", "metadata.user_id on each subscription"),
            ("parked", "shared_customer", "link or move the subscription"),
            ("parked", "no_catalog", "tallyhook catalog push"),
            ("parked", "ambiguous_price", "Two entries of the catalog"),
            ("parked", "unnamed_purchase", "several line items"),
            ("parked", "lines_missing", "STRIPE_SECRET_KEY"),
            ("parked", "too_many_items", "50 subscription items"),
            ("parked", "payload_mismatch", "another content"),
            ("failed", "retries_used_up", "log lines"),
        ] {
            assert!(text(status, reason).contains(words), "{reason}: {}", text(status, reason));
        }
        assert!(!text("parked", "something_new").contains("log lines"));
    }

    #[test]
    fn every_parked_event_of_a_rule_has_advice_of_its_own() {
        use crate::decide::Parked;
        use crate::ids::{CustomerId, PriceId, UserId};
        let user = UserId::new("u").unwrap();
        let fallback = advice("parked", None, None).text;
        for parked in [
            Parked::NoCatalog,
            Parked::NoUser(None),
            Parked::InvalidUser,
            Parked::OwnerConflict(user.clone(), user.clone()),
            Parked::UnknownReference(user),
            Parked::SharedCustomer(CustomerId::new("cus_1").unwrap()),
            Parked::UnknownPrice(PriceId::new("price_x").unwrap(), None),
            Parked::UnknownName("pack", "gold".to_owned()),
            Parked::Unnamed,
            Parked::LinesMissing,
            Parked::TooManyItems,
            Parked::TooManyProducts,
            Parked::Quantity("x".to_owned()),
            Parked::NoPeriod,
            Parked::NoGrant("pi_1".to_owned()),
            Parked::PayloadMismatch,
            Parked::Message("x".to_owned()),
            Parked::Unreadable("x".to_owned()),
        ] {
            let found = advice("parked", Some(parked.code()), parked.waits_for().as_deref());
            assert_ne!(found.text, fallback, "{}", parked.code());
        }
    }
}
