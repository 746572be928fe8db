//! The head of an event: what the webhook needs to route it, in one pass that keeps nothing else.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use super::{EventType, ReadError};
use crate::domain::{
    ids::{EventId, IdError},
    timestamp::Timestamp,
};

/// What routes an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `evt_…`
    pub id: EventId,
    /// `type`
    pub kind: EventType,
    /// When Stripe made the event, in whole seconds; the epoch when absent (older than anything).
    pub created: Timestamp,
    /// Absent reads as `false`: an event moves live money only if it says that it may.
    pub livemode: bool,
}

/// Longest `type` taken; Stripe's longest is around 80.
const TYPE_MAX: usize = 255;

/// Reads the head of a snapshot event.
///
/// ```json
/// {"id":"evt_1","object":"event","type":"invoice.paid","created":1759312800,"livemode":false,"data":{"object":{…}},…}
/// ```
/// The whole body is walked as [`super::read`] walks it (nesting at most 128 deep, every text well-formed), so a body that has a head
/// is JSON to the end. A key of the envelope that is there twice is refused. `data.object` need not have an id (`invoice.upcoming`).
///
/// # Errors
/// Any [`ReadError`] but those about facts inside `data.object`.
pub fn read_head(payload: &[u8]) -> Result<Head, ReadError> {
    let text = std::str::from_utf8(payload).map_err(ReadError::NotUtf8)?;
    if !text.trim_start().starts_with('{') {
        let any: Result<Skim<'_>, _> = serde_json::from_str(text);
        return Err(any.map_or_else(ReadError::NotJson, |_| ReadError::NotAnObject));
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(ReadError::NotJson)?;
    match envelope.object.text() {
        Some("event") => {}
        Some("v2.core.event") => return Err(ReadError::Thin),
        _ if envelope.detail_type.text().is_some() && envelope.detail.is_object() => return Err(ReadError::EventBridge),
        _ => return Err(ReadError::NotAnEvent),
    }
    if !matches!(envelope.data, Skim::Object { holds_object: true }) {
        return Err(ReadError::Missing { path: "data.object".to_owned() });
    }
    let id = envelope.id.text().ok_or_else(|| ReadError::Missing { path: "id".to_owned() })?;
    let kind = envelope.kind.text().filter(|kind| !kind.is_empty()).ok_or_else(|| ReadError::Missing { path: "type".to_owned() })?;
    if kind.len() > TYPE_MAX || kind.contains(char::is_control) {
        return Err(ReadError::Wrong { path: "type".to_owned(), expected: "a type of event" });
    }
    Ok(Head {
        id: EventId::new(id).map_err(|source: IdError| ReadError::Id { path: "id".to_owned(), source })?,
        kind: EventType::from(kind),
        created: match envelope.created {
            Skim::Absent => Timestamp::default(),
            Skim::Whole(seconds) => Timestamp::from_unix(seconds),
            Skim::Bool(_) | Skim::Text(_) | Skim::Object { .. } | Skim::Something => {
                return Err(ReadError::Wrong { path: "created".to_owned(), expected: "a time in whole seconds" });
            }
        },
        livemode: match envelope.livemode {
            Skim::Absent => false,
            Skim::Bool(livemode) => livemode,
            Skim::Whole(_) | Skim::Text(_) | Skim::Object { .. } | Skim::Something => {
                return Err(ReadError::Wrong { path: "livemode".to_owned(), expected: "true or false" });
            }
        },
    })
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Skim<'a>,
    #[serde(borrow, default)]
    object: Skim<'a>,
    #[serde(borrow, default, rename = "type")]
    kind: Skim<'a>,
    #[serde(borrow, default)]
    created: Skim<'a>,
    #[serde(borrow, default)]
    livemode: Skim<'a>,
    #[serde(borrow, default)]
    data: Skim<'a>,
    #[serde(borrow, default, rename = "detail-type")]
    detail_type: Skim<'a>,
    #[serde(borrow, default)]
    detail: Skim<'a>,
}

/// Any JSON value, walked to its end but not kept. Unlike `IgnoredAny` it holds to serde_json's recursion limit.
#[derive(Default)]
enum Skim<'a> {
    #[default]
    Absent,
    Bool(bool),
    Whole(i64),
    Text(Cow<'a, str>),
    Object {
        /// Whether it has a key `object` with an object in it, as `data` must.
        holds_object: bool,
    },
    /// A list, or a number that is not an `i64`.
    Something,
}

impl Skim<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Bool(_) | Self::Whole(_) | Self::Object { .. } | Self::Something => None,
        }
    }

    fn is_object(&self) -> bool {
        matches!(self, Self::Object { .. })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Skim<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;

        impl<'de> Visitor<'de> for Walk {
            type Value = Skim<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_unit<E: Error>(self) -> Result<Skim<'de>, E> {
                Ok(Skim::Absent)
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Skim<'de>, E> {
                Ok(Skim::Bool(value))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Skim<'de>, E> {
                Ok(Skim::Whole(value))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Skim<'de>, E> {
                Ok(i64::try_from(value).map_or(Skim::Something, Skim::Whole))
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Skim<'de>, E> {
                Ok(Skim::Something)
            }
            fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Skim<'de>, E> {
                Ok(Skim::Text(Cow::Borrowed(value)))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Skim<'de>, E> {
                Ok(Skim::Text(Cow::Owned(value.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Skim<'de>, A::Error> {
                while list.next_element::<Skim<'de>>()?.is_some() {}
                Ok(Skim::Something)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Skim<'de>, A::Error> {
                let mut holds_object = false;
                while let Some((key, value)) = map.next_entry::<Skim<'de>, Skim<'de>>()? {
                    holds_object |= value.is_object() && key.text() == Some("object");
                }
                Ok(Skim::Object { holds_object })
            }
        }

        deserializer.deserialize_any(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(id: &str, rest: &str) -> String {
        format!(r#"{{"id":{id},"object":"event","type":"invoice.paid",{rest}}}"#)
    }

    #[test]
    fn a_head_is_read_whatever_stands_around_it() {
        let head = read_head(
            br#" {"data":{"object":{"object":"invoice"}},"x":[1.5,{"y":null}],"livemode":true,"created":1759312800,
            "type":"invoice\u002epaid","object":"event","id":"evt_1","pending_webhooks":18446744073709551615}"#,
        )
        .unwrap();
        assert_eq!(
            (head.id.as_str(), head.kind, head.created.unix(), head.livemode),
            ("evt_1", EventType::InvoicePaid, 1_759_312_800, true)
        );
        let head = read_head(body(r#""evt_1""#, r#""data":{"object":{}}"#).as_bytes()).unwrap();
        assert_eq!((head.created.unix(), head.livemode), (0, false));
        let head = read_head(body(r#""evt_1""#, r#""created":-5,"data":{"object":{}}"#).as_bytes()).unwrap();
        assert_eq!(head.created.unix(), -5);
    }

    #[test]
    fn a_type_is_a_word_that_fits_into_an_item() {
        let of =
            |kind: &str| read_head(format!(r#"{{"id":"evt_1","object":"event","type":"{kind}","data":{{"object":{{}}}}}}"#).as_bytes());
        assert!(of(&"x".repeat(TYPE_MAX)).is_ok());
        for kind in [&"x".repeat(TYPE_MAX + 1), "invoice\\u0000paid"] {
            assert_eq!(of(kind).map_err(|error| error.reason()), Err("wrong_shape"), "{kind}");
        }
    }

    #[test]
    fn what_is_not_a_snapshot_event_is_refused_with_its_reason() {
        let data = r#""data":{"object":{}}"#;
        let deep = |n: usize| format!(r#""data":{{"object":{{"a":{}{}}}}}"#, "[".repeat(n), "]".repeat(n));
        let rows: Vec<(String, &str)> = vec![
            (String::new(), "not_json"),
            ("[".repeat(5000), "not_json"),
            ("[]".into(), "not_an_object"),
            ("null".into(), "not_an_object"),
            ("\u{feff}{}".into(), "not_json"),
            ("{}".into(), "not_an_event"),
            (r#"{"object":"v2.core.event","id":"evt_1","created":"2025-10-01T10:00:00Z"}"#.into(), "thin_event"),
            (r#"{"version":"0","detail-type":"invoice.paid","detail":{"id":"evt_1","object":"event"}}"#.into(), "eventbridge_envelope"),
            (r#"{"version":"0","detail-type":"invoice.paid"}"#.into(), "not_an_event"),
            (r#"{"version":"0","detail":{"id":"evt_1","object":"event"}}"#.into(), "not_an_event"),
            (body("1", data), "missing"),
            (body("null", data), "missing"),
            (body(r#""in_1""#, data), "bad_id"),
            (body(r#""evt_a#b""#, data), "bad_id"),
            (body(r#""evt_1""#, r#""livemode":"true","data":{"object":{}}"#), "wrong_shape"),
            (body(r#""evt_1""#, r#""created":1.5,"data":{"object":{}}"#), "wrong_shape"),
            (body(r#""evt_1""#, r#""data":{"object":[]}"#), "missing"),
            (body(r#""evt_1""#, r#""data":[{"object":{}}]"#), "missing"),
            (body(r#""evt_1""#, r#""id":"evt_2","data":{"object":{}}"#), "not_json"),
            (body(r#""evt_1""#, &deep(200)), "not_json"),
            (body(r#""evt_1""#, r#""data":{"object":{"a":"\ud800"}}"#), "not_json"),
            (r#"{"id":"evt_1","object":"event","data":{"object":{}}}"#.into(), "missing"),
        ];
        for (body, reason) in rows {
            assert_eq!(read_head(body.as_bytes()).map_err(|e| e.reason()), Err(reason), "{body:.90}");
        }
        assert_eq!(read_head(b"{\"id\":\"\xff\"}").map_err(|e| e.reason()), Err("not_utf8"));
        assert!(read_head(body(r#""evt_1""#, &deep(100)).as_bytes()).is_ok());
    }
}
