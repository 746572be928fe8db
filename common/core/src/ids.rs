//! Newtypes for the ids that travel through the system, checked once where they enter.
//!
//! **Invariant:** no id holds `#`, a control character or more than 255 characters, so an id is safe as part
//! of a composite key (`invoice#in_…`) and in a log line. Prefixes follow Stripe's own objects; the comment
//! on a type names the exceptions.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};

/// Why a text is not an id. The text itself is left out: it came from outside and may be anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id: {problem}")]
pub struct IdError {
    /// What the id was to name, in Stripe's words: `event`, `payment intent`, `user`, …
    pub kind: &'static str,
    /// Which rule it broke.
    pub problem: IdProblem,
}

/// The rule an id broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdProblem {
    /// Nothing there, or nothing after the prefix.
    #[error("it is empty")]
    Empty,
    /// More characters than Stripe's 255 (128 for a user).
    #[error("it is longer than {0} characters")]
    TooLong(usize),
    /// A character that the kind of id does not have.
    #[error("it has a character that such an id never has")]
    Character,
    /// Another kind of object.
    #[error("it does not begin with {0:?}")]
    Prefix(&'static [&'static str]),
}

/// Longest id Stripe gives out ("object ids are up to 255 characters", its upgrade guide).
const STRIPE_MAX: usize = 255;
/// Longest user id we take; it is the partition key of the account.
const USER_MAX: usize = 128;

/// Declares one id: `Name, "kind", check`. As JSON and in items it is the plain text. Ids are handed on often
/// and never changed, so a copy shares the text: the next state of an account is a copy of the one before.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text and wraps it.
            ///
            /// # Errors
            /// [`IdError`] with the first rule it breaks.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self, IdError> {
                let text = text.into();
                let check: fn(&str) -> Result<(), IdProblem> = $check;
                match check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(problem) => Err(IdError { kind: $kind, problem }),
                }
            }

            /// The id as Stripe (or the app) wrote it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id! {
    /// `evt_…`. The one Stripe id that may hold letters beyond ASCII: an event that was signed by Stripe is
    /// taken, not argued with.
    EventId, "event", |text| stripe(text, &["evt_"], |c| c.is_alphanumeric() || c == '_')
}
id! {
    /// `cus_…`, or an id that the merchant chose when creating the customer, which may hold `@ . + -` and more
    /// (stripe-node#968, stripe-node#125): any text of 1 to 255 characters without a control character. Encode
    /// it in calls to Stripe.
    CustomerId, "customer", |text| free(text, STRIPE_MAX, |c| !c.is_control())
}
id! { /** `sub_…`; `su_…` in accounts that are older than 2014. */ SubscriptionId, "subscription", |text| stripe(text, &["sub_", "su_"], word) }
id! { /** `in_…`; a preview (`invoice.upcoming`) has none. */ InvoiceId, "invoice", |text| stripe(text, &["in_"], word) }
id! { /** Checkout session: `cs_test_…`, `cs_live_…`. */ SessionId, "checkout session", |text| stripe(text, &["cs_"], word) }
id! { /** `pi_…` */ PaymentIntentId, "payment intent", |text| stripe(text, &["pi_"], word) }
id! { /** `ch_…`, and `py_…` for payments that are not by card. */ ChargeId, "charge", |text| stripe(text, &["ch_", "py_"], word) }
id! { /** `re_…`, and `pyr_…` for refunds of a `py_…`. */ RefundId, "refund", |text| stripe(text, &["re_", "pyr_"], word) }
id! { /** `dp_…` (card) and `du_…`. */ DisputeId, "dispute", |text| stripe(text, &["dp_", "du_"], word) }
id! {
    /// A subscription item (`si_…`): what Stripe bills. Items of events before 2018 have no id and get one of
    /// ours (see `event::Subscription`).
    ItemId, "subscription item", |text| free(text, STRIPE_MAX, |c| !c.is_control() && c != '#')
}
id! {
    /// A price (`price_…`) or a legacy plan, whose id the merchant chose freely (`gold`,
    /// `silver-express-898`): any text of 1 to 255 characters without a control character or `#`.
    PriceId, "price", |text| free(text, STRIPE_MAX, |c| !c.is_control() && c != '#')
}
id! {
    /// The app's own id of a user: 1 to 128 characters, none of them a control character.
    UserId, "user", |text| free(text, USER_MAX, |c| !c.is_control())
}

/// `[A-Za-z0-9_]`: what Stripe's ids are made of.
fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A Stripe id: one of the prefixes, then at least one more character, every one of them allowed.
fn stripe(text: &str, prefixes: &'static [&'static str], allowed: fn(char) -> bool) -> Result<(), IdProblem> {
    free(text, STRIPE_MAX, allowed)?;
    match prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        None => Err(IdProblem::Prefix(prefixes)),
        Some("") => Err(IdProblem::Empty),
        Some(_) => Ok(()),
    }
}

/// 1 to `max` characters, every one of them allowed.
fn free(text: &str, max: usize, allowed: fn(char) -> bool) -> Result<(), IdProblem> {
    if text.is_empty() {
        Err(IdProblem::Empty)
    } else if text.chars().nth(max).is_some() {
        Err(IdProblem::TooLong(max))
    } else if !text.chars().all(allowed) {
        Err(IdProblem::Character)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_checked_where_it_enters() {
        let long = format!("evt_{}", "a".repeat(252));
        let rows: [(&str, Option<IdProblem>); 9] = [
            ("evt_1NG8Du2eZvKYlo2CUI79vXWy", None),
            ("evt_ü", None),
            ("", Some(IdProblem::Empty)),
            ("evt_", Some(IdProblem::Empty)),
            ("in_1", Some(IdProblem::Prefix(&["evt_"]))),
            ("evt_a#b", Some(IdProblem::Character)),
            ("evt_a\n", Some(IdProblem::Character)),
            (" evt_a", Some(IdProblem::Character)),
            (&long, Some(IdProblem::TooLong(255))),
        ];
        for (text, problem) in rows {
            assert_eq!(EventId::new(text).err().map(|e| e.problem), problem, "{text:?}");
        }
        assert!(EventId::new(&long[..255]).is_ok());
    }

    #[test]
    fn both_prefixes_of_a_kind_are_taken() {
        assert!(ChargeId::new("ch_1").is_ok() && ChargeId::new("py_1").is_ok());
        assert!(RefundId::new("re_1").is_ok() && RefundId::new("pyr_1").is_ok());
        assert!(DisputeId::new("dp_1").is_ok() && DisputeId::new("du_1").is_ok());
        assert!(SubscriptionId::new("su_00000000000000").is_ok());
        assert!(CustomerId::new("user_42-merchant.ann+b@example.com").is_ok());
        assert!(CustomerId::new("cus_\n").is_err());
    }

    #[test]
    fn free_form_ids_have_few_rules() {
        assert!(PriceId::new("silver express 898").is_ok());
        assert!(PriceId::new("a#b").is_err());
        assert!(UserId::new("ü".repeat(128)).is_ok());
        assert_eq!(UserId::new("u".repeat(129)).unwrap_err().problem, IdProblem::TooLong(128));
        assert_eq!(
            UserId::new("a\u{0}b").unwrap_err().to_string(),
            "not a user id: it has a character that such an id never has"
        );
    }

    #[test]
    fn json_is_the_plain_text_and_is_checked_too() {
        let id: InvoiceId = serde_json::from_str(r#""in_1""#).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), r#""in_1""#);
        assert!(serde_json::from_str::<InvoiceId>(r#""sub_1""#).is_err());
    }
}
