//! Which user an event belongs to.
//!
//! The first of: an operator's move of the subscription, else of the customer; the event's own metadata; the
//! stored owner of its subscription; the session's `client_reference_id`, as far as the policy allows; the
//! stored owner of its customer. A refund, a dispute or an invoice payment belongs to what its payment paid
//! for.

use super::Parked;
use crate::catalog::{ClientReference, Policy};
use crate::event::Event;
use crate::ids::{CustomerId, UserId};

/// The stored owner of a subscription or of a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOwner {
    /// The user.
    pub user: UserId,
    /// An operator moved it. A move outranks metadata.
    pub moved: bool,
    /// The owner is known from a `client_reference_id` only; metadata replaces it.
    pub by_reference: bool,
    /// Metadata named other users for the customer's subscriptions.
    pub shared: bool,
}

/// What is stored about the owner of what an event names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Of its subscription.
    pub subscription: Option<StoredOwner>,
    /// Of its customer.
    pub customer: Option<StoredOwner>,
    /// Whether the account that `client_reference_id` names exists.
    pub referenced_account_exists: bool,
}

/// How an owner was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: UserId,
    /// Whether a `client_reference_id` alone names the user.
    pub by_reference: bool,
}

/// Finds the owner of an event.
///
/// # Errors
/// [`Parked`] with the reason why there is no owner.
pub fn owner(event: &Event, links: &Links, policy: &Policy) -> Result<Owner, Parked> {
    let owner = |user: &UserId| Ok(Owner { user: user.clone(), by_reference: false });
    let moved = [&links.subscription, &links.customer].into_iter().flatten().find(|link| link.moved);
    let own_subscription = links.subscription.as_ref().filter(|link| !link.moved);
    // A subscription of another user stays with this user when its customer is moved.
    if let Some(moved) = moved.filter(|moved| own_subscription.is_none_or(|own| own.user == moved.user)) {
        return owner(&moved.user);
    }
    let stored = links.subscription.as_ref();
    match event.named_user() {
        Err(_) if stored.is_none() && links.customer.is_none() => return Err(Parked::InvalidUser),
        Ok(Some(user)) => {
            return match stored {
                Some(stored) if stored.user != user => Err(Parked::OwnerConflict(stored.user.clone(), user)),
                Some(_) | None => owner(&user),
            };
        }
        Ok(None) | Err(_) => {}
    }
    if let Some(stored) = stored {
        return owner(&stored.user);
    }
    if let Some(moved) = moved {
        return owner(&moved.user);
    }
    let customer = event.customer().cloned();
    match (policy.client_reference_id, event.referenced_user()) {
        (ClientReference::User, Ok(Some(user))) => return Ok(Owner { user, by_reference: true }),
        (ClientReference::KnownUser, Ok(Some(user))) => {
            if links.referenced_account_exists {
                return Ok(Owner { user, by_reference: true });
            }
            if links.customer.is_none() {
                return Err(Parked::UnknownReference(user));
            }
        }
        (ClientReference::User | ClientReference::KnownUser, Err(_)) if links.customer.is_none() => {
            return Err(Parked::InvalidUser);
        }
        (ClientReference::User | ClientReference::KnownUser | ClientReference::Ignore, _) => {}
    }
    match &links.customer {
        Some(link) if link.shared => Err(shared(customer)),
        Some(link) => owner(&link.user),
        None => Err(Parked::NoUser(customer)),
    }
}

fn shared(customer: Option<CustomerId>) -> Parked {
    customer.map_or(Parked::NoUser(None), Parked::SharedCustomer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    const CATALOG: &str = "[tiers]\nfree = 0\n[policy]\ndefault_tier = \"free\"\n";

    fn stored(user: &str) -> StoredOwner {
        StoredOwner { user: UserId::new(user).unwrap(), moved: false, by_reference: false, shared: false }
    }

    /// A session with these parts.
    fn session(metadata: &str, reference: &str) -> Event {
        let body = format!(
            r#"{{"id":"evt_1","object":"event","type":"checkout.session.completed","created":1,
                "livemode":false,"data":{{"object":{{"id":"cs_1","object":"checkout.session",
                "mode":"payment","customer":"cus_1",
                "client_reference_id":{reference},"metadata":{metadata}}}}}}}"#
        );
        crate::event::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_first_source_that_names_an_owner_decides() {
        let named = r#"{"user_id":"ann"}"#;
        let moved = |user| Some(StoredOwner { moved: true, ..stored(user) });
        let shared = Some(StoredOwner { shared: true, ..stored("cid") });
        let links =
            |subscription, customer| Links { subscription, customer, referenced_account_exists: false };
        let rows: Vec<(&str, &str, &str, Links, &str, &str)> = vec![
            ("metadata", named, r#""aff""#, links(None, Some(stored("cid"))), "user", "ann"),
            ("a moved customer outranks metadata", named, "null", links(None, moved("mo")), "user", "mo"),
            ("a moved subscription outranks metadata", named, "null", links(moved("mo"), None), "user", "mo"),
            (
                "a later subscription of a moved customer, whose metadata is as before",
                named,
                "null",
                links(Some(stored("mo")), moved("mo")),
                "user",
                "mo",
            ),
            (
                "another user's subscription of a moved customer",
                "{}",
                "null",
                links(Some(stored("bob")), moved("mo")),
                "user",
                "bob",
            ),
            (
                "another stored owner",
                named,
                "null",
                links(Some(stored("bob")), None),
                "user",
                "owner_conflict",
            ),
            ("the subscription's owner", "{}", r#""aff""#, links(Some(stored("bob")), None), "user", "bob"),
            ("the reference", "{}", r#""aff""#, links(None, Some(stored("cid"))), "user", "aff"),
            ("an unknown reference", "{}", r#""aff""#, links(None, None), "known_user", "unknown_reference"),
            ("a reference that does not count", "{}", r#""aff""#, links(None, None), "ignore", "no_user"),
            ("the customer's owner", "{}", "null", links(None, Some(stored("cid"))), "user", "cid"),
            ("a shared customer", "{}", "null", links(None, shared.clone()), "user", "shared_customer"),
            ("metadata on a shared customer", named, "null", links(None, shared), "user", "ann"),
            ("nothing", "{}", "null", links(None, None), "user", "no_user"),
            (
                "an unusable name",
                r#"{"user_id":"a\u0000"}"#,
                "null",
                links(None, None),
                "user",
                "invalid_user",
            ),
            (
                "an unusable name, and the customer's owner",
                r#"{"user_id":"a\u0000"}"#,
                "null",
                links(None, Some(stored("cid"))),
                "user",
                "cid",
            ),
            ("metadata as stored", named, "null", links(Some(stored("ann")), None), "user", "ann"),
            ("an unusable reference", "{}", r#""a\u0000""#, links(None, None), "user", "invalid_user"),
            (
                "an unusable reference, and the customer's owner",
                "{}",
                r#""a\u0000""#,
                links(None, Some(stored("cid"))),
                "user",
                "cid",
            ),
        ];
        for (what, metadata, reference, links, policy, expected) in rows {
            let catalog = Catalog::parse(&format!("{CATALOG}client_reference_id = \"{policy}\"\n")).unwrap();
            let found = owner(&session(metadata, reference), &links, &catalog.policy);
            let found = found.map_or_else(|parked| parked.code().to_owned(), |owner| owner.user.to_string());
            assert_eq!(found, expected, "{what}");
        }
    }
}
