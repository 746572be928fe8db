//! A JSON text with only the keys that the readers use. Other keys are skipped.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::ReadError;

/// The maximum nesting depth, which is also the limit of serde_json.
const MAX_DEPTH: usize = 128;

/// A value. An object holds only the keys in [`known_key`], in the order of the text.
#[derive(Default)]
pub(super) enum Json<'a> {
    #[default]
    Null,
    Bool(bool),
    /// A whole number: any `i64` or `u64`.
    Whole(i128),
    /// Any other number.
    Number,
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Vec<(&'static str, Json<'a>)>),
}

impl<'a> Json<'a> {
    /// The value of a key; the last one for a duplicate key. The key must be in [`known_key`].
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        debug_assert!(known_key(key).is_some(), "{key:?} is not in `keys!`");
        let Self::Object(entries) = self else { return None };
        entries.iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The value at a dotted path.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        // Check all parts of the path, also for an absent value: a skipped key would always be absent.
        debug_assert!(path.split('.').all(|key| known_key(key).is_some()), "{path:?} is not in `keys!`");
        path.split('.').try_fold(self, Self::get)
    }

    /// `None` for a value that is absent or null.
    pub(super) fn some(&self) -> Option<&Self> {
        if let Self::Null = self { None } else { Some(self) }
    }

    pub(super) fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(super) fn flag(&self) -> Option<bool> {
        if let Self::Bool(flag) = self { Some(*flag) } else { None }
    }

    pub(super) fn whole<T: TryFrom<i128>>(&self) -> Option<T> {
        if let Self::Whole(number) = self { T::try_from(*number).ok() } else { None }
    }

    pub(super) fn list(&self) -> Option<&[Json<'a>]> {
        if let Self::List(entries) = self { Some(entries) } else { None }
    }
}

macro_rules! keys {
    ($($key:literal)*) => {
        /// The key, if a reader uses it.
        fn known_key(key: &str) -> Option<&'static str> {
            match key {
                $($key => Some($key),)*
                _ => None,
            }
        }
    };
}

keys! {
    // The envelope.
    "account" "api_version" "created" "data" "id" "livemode" "object" "previous_attributes" "type"
    // The objects, in all API versions.
    "amount" "amount_due" "amount_paid" "amount_paid_off_stripe" "amount_refunded" "amount_subtotal"
    "amount_total" "attempt_count" "behavior" "billing_reason" "cancel_at" "cancel_at_period_end"
    "canceled_at" "cancellation_details" "charge" "client_reference_id" "collection_method" "credited_items"
    "currency" "currency_conversion" "current_period_end" "current_period_start" "customer"
    "customer_details" "customer_email" "date" "days_until_due" "discount_amounts" "email" "end" "ended_at"
    "has_more" "hosted_invoice_url" "invoice" "invoice_item_details" "items" "latest_invoice" "line_items" "lines"
    "lookup_key" "metadata" "mode" "next_payment_attempt" "paid" "paid_out_of_band" "parent"
    "pause_collection" "payment" "payment_intent" "payment_link" "payment_status" "payments" "period" "plan"
    "price" "price_details" "pricing" "proration" "proration_details" "quantity" "reason" "source_currency"
    "start" "status" "subscription" "subscription_details" "subscription_item" "subscription_item_details"
    "subtotal" "test_clock" "total" "trial_end" "trial_start" "unit_amount"
    // Metadata keys that are not above.
    "client_id" "customer_reference" "pack" "plan_code" "product" "tier" "upgraded_from" "user_id"
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keep;

        impl<'de> Visitor<'de> for Keep {
            type Value = Json<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_unit<E: Error>(self) -> Result<Json<'de>, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Json<'de>, E> {
                Ok(Json::Bool(value))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Json<'de>, E> {
                Ok(Json::Whole(value.into()))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Json<'de>, E> {
                Ok(Json::Whole(value.into()))
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Json<'de>, E> {
                Ok(Json::Number)
            }
            fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Json<'de>, E> {
                Ok(Json::Text(Cow::Borrowed(value)))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Json<'de>, E> {
                Ok(Json::Text(Cow::Owned(value.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    entries.push(entry);
                }
                Ok(Json::List(entries))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key_seed(KeyAs(known_key))? {
                    match key {
                        Some(key) => entries.push((key, map.next_value()?)),
                        None => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(Json::Object(entries))
            }
        }

        deserializer.deserialize_any(Keep)
    }
}

/// A seed for `next_key_seed`: converts an object's key with a function, without copying the key.
pub struct KeyAs<F>(pub F);

impl<'de, T, F: FnOnce(&str) -> T> DeserializeSeed<'de> for KeyAs<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for KeyAs<F> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<T, E> {
        Ok(self.0(key))
    }
}

/// The text of a payload, with a check of the parts that [`Json`] and [`Shape`] skip: nested at most 128
/// levels deep, every escape a valid character. This check is slow, so it runs only on a text with many
/// brackets or with a surrogate: no other text can fail it.
pub(super) fn checked_text(payload: &[u8]) -> Result<&str, ReadError> {
    // The sum of a chunk fits into a byte, so the compiler can count sixteen bytes at a time.
    let opened =
        |chunk: &[u8]| chunk.iter().map(|byte| u8::from(*byte == b'{') + u8::from(*byte == b'[')).sum::<u8>();
    let text = std::str::from_utf8(payload).map_err(ReadError::NotUtf8)?;
    let brackets: usize = payload.chunks(255).map(|chunk| usize::from(opened(chunk))).sum();
    if brackets >= MAX_DEPTH || text.contains("\\u") && (text.contains("\\ud") || text.contains("\\uD")) {
        serde_json::from_str::<Shape<true>>(text).map_err(ReadError::NotJson)?;
    }
    Ok(text)
}

/// The shape of a value, which is read to its end and not kept. With `STRICT`, every nested value is checked
/// too, including serde_json's limit of depth.
#[derive(Default)]
pub(super) struct Shape<const STRICT: bool> {
    pub(super) is_object: bool,
    /// Whether it has a key `object` that holds an object, as `data` must.
    pub(super) holds_object: bool,
}

impl<'de, const STRICT: bool> Deserialize<'de> for Shape<STRICT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk<const STRICT: bool>;

        impl<'de, const STRICT: bool> Visitor<'de> for Walk<STRICT> {
            type Value = Shape<STRICT>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_unit<E: Error>(self) -> Result<Shape<STRICT>, E> {
                Ok(Shape::default())
            }
            fn visit_bool<E: Error>(self, _: bool) -> Result<Shape<STRICT>, E> {
                Ok(Shape::default())
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Shape<STRICT>, E> {
                Ok(Shape::default())
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Shape<STRICT>, E> {
                Ok(Shape::default())
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Shape<STRICT>, E> {
                Ok(Shape::default())
            }
            fn visit_str<E: Error>(self, _: &str) -> Result<Shape<STRICT>, E> {
                Ok(Shape::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape<STRICT>, A::Error> {
                if STRICT {
                    while list.next_element::<Shape<STRICT>>()?.is_some() {}
                } else {
                    while list.next_element::<IgnoredAny>()?.is_some() {}
                }
                Ok(Shape::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape<STRICT>, A::Error> {
                let mut holds_object = false;
                if STRICT {
                    while map.next_entry::<Shape<STRICT>, Shape<STRICT>>()?.is_some() {}
                } else {
                    while let Some(named) = map.next_key_seed(KeyAs(|key: &str| key == "object"))? {
                        if named {
                            holds_object |= map.next_value::<&RawValue>()?.get().starts_with('{');
                        } else {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Shape { is_object: true, holds_object })
            }
        }

        deserializer.deserialize_any(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_kept_and_the_last_of_a_duplicate_counts() {
        let text = r#"{"id":"in_1","footer":{"id":"x","deep":[1e400]},
            "lines":{"data":[{"amount":-5},{"amount":1.5}]},"paid":true,
            "metadata":{"plan":"pr\u006f","theirs":"x"},"total":9223372036854775808,
            "customer":null,"id":"in_2"}"#;
        let json: Json<'_> = serde_json::from_str(text).unwrap();
        let Json::Object(entries) = &json else { panic!("an object") };
        assert_eq!(
            entries.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            ["id", "lines", "paid", "metadata", "total", "customer", "id"]
        );
        let of = |path: &str| json.at(path);
        assert_eq!(of("id").and_then(Json::text), Some("in_2"));
        assert_eq!(of("metadata.plan").and_then(Json::text), Some("pro"));
        assert_eq!(of("paid").and_then(Json::flag), Some(true));
        let amounts: Vec<_> = of("lines.data")
            .and_then(Json::list)
            .unwrap()
            .iter()
            .map(|line| line.get("amount").and_then(Json::whole::<i64>))
            .collect();
        assert_eq!(amounts, [Some(-5), None]);
        assert!(
            of("total")
                .is_some_and(|total| total.whole::<i64>().is_none() && total.whole() == Some(1_u64 << 63))
        );
        assert!(of("customer").is_some_and(|customer| customer.some().is_none()) && of("status").is_none());
    }

    #[test]
    fn depth_and_escapes_are_checked_in_skipped_values() {
        let of = |inner: &str| {
            checked_text(format!(r#"{{"theirs":{inner}}}"#).as_bytes())
                .map(str::len)
                .map_err(|error| error.reason())
        };
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        // Many brackets are not always deep, and a pair of surrogates is a valid character.
        for good in [
            &nested(126),
            &format!("[{}1]", "[],{},".repeat(300)),
            r#""\ud83d\ude00""#,
            r#""\uD83D\uDE00""#,
            r#""\u00e9""#,
        ] {
            assert!(of(good).is_ok(), "{good:.60}");
        }
        for bad in [&nested(127), &nested(5000), r#""\ud83d""#, r#""\uDE00""#, r#""\ud83dx""#] {
            assert_eq!(of(bad), Err("not_json"), "{bad:.60}");
        }
        assert_eq!(checked_text(b"\xff").map_err(|error| error.reason()), Err("not_utf8"));
    }
}
