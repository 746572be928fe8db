//! The head of an event: the fields that the webhook needs to route it, read in one pass.

use serde::Deserialize;

use super::json::{Json, Shape, checked_text};
use super::{EventType, ReadError};
use crate::ids::{EventId, IdError};
use crate::timestamp::Timestamp;

/// The fields that route an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `evt_…`
    pub id: EventId,
    /// `type`
    pub kind: EventType,
    /// When Stripe created the event, in whole seconds; 0 when absent.
    pub created: Timestamp,
    /// Whether it is a live event; `false` when absent.
    pub livemode: bool,
}

/// The maximum length of `type`. Stripe's longest has about 80 characters.
const MAX_TYPE_BYTES: usize = 255;

/// Reads the head of a snapshot event.
///
/// ```json
/// {"id":"evt_1","object":"event","type":"invoice.paid","created":1759312800,"livemode":false,
///  "data":{"object":{…}},…}
/// ```
/// The whole body is checked: it is JSON, nested at most 128 levels deep, and every escape is a valid
/// character. A duplicate key in the envelope is refused. `data.object` may have no id (`invoice.upcoming`).
///
/// # Errors
/// Any [`ReadError`], except for fields of `data.object`.
pub fn read_head(payload: &[u8]) -> Result<Head, ReadError> {
    let envelope: Envelope<'_, Shape<false>> = Envelope::read(payload)?;
    envelope.head(envelope.data.holds_object)
}

/// The keys of an event. `D` is the type of `data`.
#[derive(Deserialize)]
#[serde(bound(deserialize = "D: Deserialize<'de> + Default"))]
pub(super) struct Envelope<'a, D> {
    #[serde(borrow, default)]
    id: Json<'a>,
    #[serde(borrow, default)]
    object: Json<'a>,
    #[serde(borrow, default, rename = "type")]
    kind: Json<'a>,
    #[serde(borrow, default)]
    created: Json<'a>,
    #[serde(borrow, default)]
    livemode: Json<'a>,
    #[serde(borrow, default)]
    pub(super) account: Json<'a>,
    #[serde(borrow, default)]
    pub(super) context: Json<'a>,
    #[serde(borrow, default)]
    pub(super) api_version: Json<'a>,
    #[serde(default)]
    pub(super) data: D,
    #[serde(borrow, default, rename = "detail-type")]
    detail_type: Json<'a>,
    #[serde(default)]
    detail: Shape<false>,
}

impl<'a, D: Deserialize<'a> + Default> Envelope<'a, D> {
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, ReadError> {
        let text = checked_text(payload)?;
        if !text.trim_start().starts_with('{') {
            let any: Result<Shape<true>, _> = serde_json::from_str(text);
            return Err(any.map_or_else(ReadError::NotJson, |_| ReadError::NotAnObject));
        }
        serde_json::from_str(text).map_err(ReadError::NotJson)
    }

    /// The head, if this is an event. `holds_object` says whether `data` has an object.
    pub(super) fn head(&self, holds_object: bool) -> Result<Head, ReadError> {
        match self.object.text() {
            Some("event") => {}
            Some("v2.core.event") => return Err(ReadError::Thin),
            _ if self.detail_type.text().is_some() && self.detail.is_object => {
                return Err(ReadError::EventBridge);
            }
            _ => return Err(ReadError::NotAnEvent),
        }
        let missing = |path: &str| ReadError::Missing { path: path.to_owned() };
        let wrong = |path: &str, expected| ReadError::Wrong { path: path.to_owned(), expected };
        if !holds_object {
            return Err(missing("data.object"));
        }
        let id = self.id.text().ok_or_else(|| missing("id"))?;
        let kind = self.kind.text().filter(|kind| !kind.is_empty()).ok_or_else(|| missing("type"))?;
        if kind.len() > MAX_TYPE_BYTES || kind.contains(char::is_control) {
            return Err(wrong("type", "a type of event"));
        }
        let of_created =
            |created: &Json<'_>| created.whole().ok_or_else(|| wrong("created", "a time in whole seconds"));
        let of_livemode =
            |livemode: &Json<'_>| livemode.flag().ok_or_else(|| wrong("livemode", "true or false"));
        Ok(Head {
            id: EventId::new(id)
                .map_err(|source: IdError| ReadError::Id { path: "id".to_owned(), source })?,
            kind: EventType::from(kind),
            created: self
                .created
                .some()
                .map(of_created)
                .transpose()?
                .map_or_else(Timestamp::default, Timestamp::from_unix),
            livemode: self.livemode.some().map(of_livemode).transpose()?.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(id: &str, rest: &str) -> String {
        format!(r#"{{"id":{id},"object":"event","type":"invoice.paid",{rest}}}"#)
    }

    #[test]
    fn a_head_is_read_among_other_fields() {
        let head = read_head(
            br#" {"data":{"object":{"object":"invoice"}},"x":[1.5,{"y":null}],"livemode":true,
            "created":1759312800,"type":"invoice\u002epaid","object":"event","id":"evt_1",
            "pending_webhooks":18446744073709551615}"#,
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
    fn a_type_is_short_and_has_no_control_characters() {
        let of = |kind: &str| {
            read_head(
                format!(r#"{{"id":"evt_1","object":"event","type":"{kind}","data":{{"object":{{}}}}}}"#)
                    .as_bytes(),
            )
        };
        assert!(of(&"x".repeat(MAX_TYPE_BYTES)).is_ok());
        for kind in [&"x".repeat(MAX_TYPE_BYTES + 1), "invoice\\u0000paid"] {
            assert_eq!(of(kind).map_err(|error| error.reason()), Err("wrong_shape"), "{kind}");
        }
    }

    #[test]
    fn other_bodies_are_refused_with_a_reason() {
        let data = r#""data":{"object":{}}"#;
        let deep = |n: usize| format!(r#""data":{{"object":{{"a":{}{}}}}}"#, "[".repeat(n), "]".repeat(n));
        let rows: Vec<(String, &str)> = vec![
            (String::new(), "not_json"),
            ("[".repeat(5000), "not_json"),
            ("[]".into(), "not_an_object"),
            ("null".into(), "not_an_object"),
            ("\u{feff}{}".into(), "not_json"),
            ("{}".into(), "not_an_event"),
            (
                r#"{"object":"v2.core.event","id":"evt_1","created":"2025-10-01T10:00:00Z"}"#.into(),
                "thin_event",
            ),
            (
                r#"{"version":"0","detail-type":"invoice.paid","detail":{"id":"evt_1","object":"event"}}"#
                    .into(),
                "eventbridge_envelope",
            ),
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
