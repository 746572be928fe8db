//! A digest of an event's content. It shows whether a second event with the same id has the same content.

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// SHA-256 of an event's content: `type`, `created`, `livemode` and the text of `data`, without the
/// whitespace between tokens.
///
/// A redelivery has the same digest, although `pending_webhooks` and the formatting may differ. Another order
/// of keys, number format or escape inside `data` gives another digest: Stripe renders an event once. An
/// endpoint with another API version gets another rendering of the same event, so its digest differs. For
/// bytes that are not an event, the digest is of all bytes.
pub fn content_digest(raw: &[u8]) -> [u8; 32] {
    let Ok(content) = serde_json::from_slice::<Content<'_>>(raw) else { return Sha256::digest(raw).into() };
    let mut text = Vec::with_capacity(raw.len());
    // A line break separates the parts. No part has one: whitespace is removed, and texts escape it.
    for part in [content.kind, content.created, content.livemode, Some(content.data)].into_iter().flatten() {
        compact(part.get().as_bytes(), &mut text);
        text.push(b'\n');
    }
    Sha256::digest(text).into()
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    created: Option<&'a RawValue>,
    #[serde(borrow, default)]
    livemode: Option<&'a RawValue>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Appends a JSON text without its insignificant whitespace.
fn compact(json: &[u8], into: &mut Vec<u8>) {
    let (mut start, mut at) = (0, 0);
    while let Some(byte) = json.get(at) {
        at += 1;
        if *byte == b'"' {
            // Skip to the end of the text. A quote after a backslash does not end it.
            while let Some(length) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
                at += length + 1;
                if json[at - 1] == b'"' {
                    break;
                }
                at += 1;
            }
        } else if byte.is_ascii_whitespace() {
            into.extend_from_slice(&json[start..at - 1]);
            start = at;
        }
    }
    into.extend_from_slice(&json[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redelivery_has_the_same_digest_and_an_altered_body_another() {
        let first = br#"{"id":"evt_1","type":"x","created":1,"livemode":false,
            "data":{"object":{"a":"b \" c\\","n":[1,2]}},"pending_webhooks":2}"#;
        let again = b"{\n \"pending_webhooks\": 1, \"livemode\" : false,\n\t\"type\": \"x\", \"created\": 1,
            \"data\": { \"object\": {\r\n \"a\": \"b \\\" c\\\\\" , \"n\": [ 1, 2 ] } } }";
        assert_eq!(content_digest(first), content_digest(again));
        let text = String::from_utf8(first.to_vec()).unwrap();
        for (from, to) in [
            ("b \\\"", "b\\\""),
            ("[1,2]", "[12]"),
            ("\"x\"", "\"y\""),
            ("false", "true"),
            ("created\":1", "created\":2"),
        ] {
            assert_ne!(content_digest(first), content_digest(text.replace(from, to).as_bytes()), "{from}");
        }
    }

    #[test]
    fn bytes_that_are_not_an_event_have_a_digest() {
        assert_ne!(content_digest(b""), content_digest(b"{"));
    }
}
