//! A type for each kind of id. An id is checked when it is created.
//!
//! **Invariant:** no id has a control character or more than 255 characters, so an id is safe in a log line.
//! Only customer and user ids may have a `#`; they are always the last part of a key (`user#<id>`).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};

/// Why a text is not an id. The error does not hold the text, because it comes from outside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id: {problem}")]
pub struct IdError {
    /// The kind of id: `event`, `payment intent`, `user`, …
    pub kind: &'static str,
    /// The rule that the text breaks.
    pub problem: IdProblem,
}

/// A rule that a text breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdProblem {
    /// The text is empty, or has nothing after the prefix.
    #[error("it is empty")]
    Empty,
    /// The text has more than 255 characters (128 for a user).
    #[error("it is longer than {0} characters")]
    TooLong(usize),
    /// The text has a character that this kind of id never has.
    #[error("it has a character that such an id never has")]
    Character,
    /// The prefix is missing, or it is of another kind of object.
    #[error("it does not begin with {0:?}")]
    Prefix(&'static [&'static str]),
    /// A user id ends like a path below `/users/{id}`, so its own path would be another user's.
    #[error("it ends like a path of the API")]
    Reserved,
}

/// The maximum length of Stripe's ids ("object ids are up to 255 characters", Stripe's upgrade guide).
const MAX_STRIPE_CHARS: usize = 255;
/// The maximum length of a user id. It is part of the account's partition key.
const MAX_USER_CHARS: usize = 128;

/// The ends of the paths below `/users/{id}`; `*` is any segment. A user id may contain a slash, and its path
/// is matched from the end. So no id may end like this: `/users/ann/ledger` is always the ledger of `ann`.
const PATH_ENDS: [&[&str]; 11] = [
    &["check"],
    &["credits", "consume"],
    &["credits", "holds"],
    &["credits", "holds", "*"],
    &["credits", "holds", "*", "commit"],
    &["credits", "holds", "*", "release"],
    &["credits", "refund"],
    &["ledger"],
    &["orders"],
    &["orders", "*"],
    &["portal"],
];

/// Declares one id: `Name, "kind", check`. In JSON and in items it is a text. Ids never change, and every new
/// state of an account copies them, so clones share the text.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text.
            ///
            /// # Errors
            /// [`IdError`] with the first rule that the text breaks.
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
    /// `evt_…`. It may have letters that are not ASCII, so that every event signed by Stripe is accepted.
    EventId, "event", |text| stripe(text, &["evt_"], |c| c.is_alphanumeric() || c == '_')
}
id! {
    /// `hold_…`: a hold of credits.
    HoldId, "hold", |text| stripe(text, &["hold_"], |c| c.is_ascii_alphanumeric() || c == '_')
}
id! {
    /// `cus_…`, or an id that the merchant chose, for example with `@ . + -` (stripe-node#968,
    /// stripe-node#125): 1 to 255 characters without control characters. Percent-encode it in calls to
    /// Stripe.
    CustomerId, "customer", |text| free(text, MAX_STRIPE_CHARS, |c| !c.is_control())
}
id! {
    /// `sub_…`, or `su_…` in accounts from before 2014.
    SubscriptionId, "subscription", |text| stripe(text, &["sub_", "su_"], word)
}
id! {
    /// `in_…`. The preview of `invoice.upcoming` has no id.
    InvoiceId, "invoice", |text| stripe(text, &["in_"], word)
}
id! {
    /// A checkout session: `cs_test_…`, `cs_live_…`.
    SessionId, "checkout session", |text| stripe(text, &["cs_"], word)
}
id! {
    /// `pi_…`
    PaymentIntentId, "payment intent", |text| stripe(text, &["pi_"], word)
}
id! {
    /// `ch_…`, or `py_…` for a payment that is not by card.
    ChargeId, "charge", |text| stripe(text, &["ch_", "py_"], word)
}
id! {
    /// `re_…`, or `pyr_…` for a refund of a `py_…`.
    RefundId, "refund", |text| stripe(text, &["re_", "pyr_"], word)
}
id! {
    /// `dp_…` (card) or `du_…`.
    DisputeId, "dispute", |text| stripe(text, &["dp_", "du_"], word)
}
id! {
    /// A subscription item (`si_…`). Items of events from before 2018 have no id;
    /// [`crate::event::SubscriptionItem::id`] says which id they get.
    ItemId, "subscription item", |text| free(text, MAX_STRIPE_CHARS, |c| !c.is_control() && c != '#')
}
id! {
    /// A price (`price_…`), or a legacy plan with an id that the merchant chose (`gold`,
    /// `silver-express-898`): 1 to 255 characters without control characters and `#`.
    PriceId, "price", |text| free(text, MAX_STRIPE_CHARS, |c| !c.is_control() && c != '#')
}
id! {
    /// The app's own id of a user: 1 to 128 characters without control characters, taken as it is. It does
    /// not end with a slash and a path of the API, such as `/ledger`.
    UserId, "user", user
}

/// Checks a user id.
fn user(text: &str) -> Result<(), IdProblem> {
    free(text, MAX_USER_CHARS, |c| !c.is_control())?;
    let ends_like = |words: &&[&str]| {
        let mut segments = text.rsplit('/');
        words.iter().rev().all(|word| segments.next().is_some_and(|found| *word == "*" || *word == found))
            && segments.next().is_some()
    };
    if text.contains('/') && PATH_ENDS.iter().any(ends_like) { Err(IdProblem::Reserved) } else { Ok(()) }
}

/// `[A-Za-z0-9_]`: the characters of Stripe's ids.
fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Checks a Stripe id: one of the prefixes, then at least one more character; all characters are allowed.
fn stripe(text: &str, prefixes: &'static [&'static str], allowed: fn(char) -> bool) -> Result<(), IdProblem> {
    free(text, MAX_STRIPE_CHARS, allowed)?;
    match prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        None => Err(IdProblem::Prefix(prefixes)),
        Some("") => Err(IdProblem::Empty),
        Some(_) => Ok(()),
    }
}

/// Checks a text of 1 to `max` allowed characters.
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
    fn an_id_is_checked_when_it_is_created() {
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
    fn every_prefix_of_a_kind_is_accepted() {
        assert!(ChargeId::new("ch_1").is_ok() && ChargeId::new("py_1").is_ok());
        assert!(RefundId::new("re_1").is_ok() && RefundId::new("pyr_1").is_ok());
        assert!(DisputeId::new("dp_1").is_ok() && DisputeId::new("du_1").is_ok());
        assert!(SubscriptionId::new("su_00000000000000").is_ok());
        assert!(CustomerId::new("user_42-merchant.ann+b@example.com").is_ok());
        assert!(CustomerId::new("cus_\n").is_err());
        for text in ["in_1 ", "in_1/2", "in_1#2", "in_ü", "in_1\n"] {
            assert!(InvoiceId::new(text).is_err(), "{text:?}");
        }
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
    fn a_user_id_does_not_end_like_a_path_of_the_api() {
        for reserved in [
            "ann/check",
            "a/b/ledger",
            "ann//ledger",
            "/ledger",
            "ann/portal",
            "ann/orders",
            "ann/orders/cs_test_1",
            "ann/credits/consume",
            "ann/credits/refund",
            "ann/credits/holds",
            "ann/credits/holds/h1",
            "ann/credits/holds/h1/commit",
            "ann/credits/holds/h1/release",
        ] {
            assert_eq!(UserId::new(reserved).unwrap_err().problem, IdProblem::Reserved, "{reserved}");
        }
        for free in [
            "ledger",
            "credits/consume",
            "orders/cs_test_1",
            "ann/Ledger",
            "ann/ledger/",
            "ann/ledger/b",
            "ann/my-ledger",
            "ann/consume",
            "ann/credits/holds/h1/other",
            "ann/orders/1/2",
            "ann%2Fledger",
            "ann?x",
            "an%6e",
            "a b#c.",
            "..",
        ] {
            assert_eq!(UserId::new(free).map(|user| user.to_string()), Ok(free.to_owned()), "{free}");
        }
    }

    #[test]
    fn json_is_the_text_and_is_checked() {
        let id: InvoiceId = serde_json::from_str(r#""in_1""#).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), r#""in_1""#);
        assert!(serde_json::from_str::<InvoiceId>(r#""sub_1""#).is_err());
    }
}
