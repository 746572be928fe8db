//! Finds out why a signature does not match: undoes common mistakes and reports the one with which the
//! signature matches. For the operator only.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Refusal, Secret, only_t, verify};
use crate::event;
use crate::timestamp::Timestamp;

/// A body with one mistake undone, and the hint about the mistake.
type Variant = (Vec<u8>, Option<&'static str>);

/// The best hint for a refused delivery. It needs the texts of the secrets. Returns [`Refusal::hint`] when it
/// finds nothing better.
///
/// When no signature matched, it undoes common mistakes in the body and the secrets and verifies again. This
/// computes dozens of signatures, so call it for a person's request, not for every refused delivery. The hint
/// says what is wrong with a secret, but never holds a part of it.
pub fn diagnose(payload: &[u8], header: Option<&[u8]>, secrets: &[&str], refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoSecret if secrets.iter().any(|text| text.trim().is_empty()) => {
            "the secret is empty or only whitespace"
        }
        Refusal::NoMatch { .. } => header
            .and_then(|header| mistake(payload, header, secrets))
            .or_else(|| suspicion(payload, secrets))
            .unwrap_or(refusal.hint()),
        Refusal::NoHeader
        | Refusal::NoTimestamp
        | Refusal::BadTimestamp
        | Refusal::SeveralTimestamps
        | Refusal::NoV1 { .. }
        | Refusal::NoSecret
        | Refusal::TooOld { .. }
        | Refusal::TooNew { .. } => refusal.hint(),
    }
}

/// The mistake with which a signature matches when it is undone: in the body, in the secret, or one in each.
fn mistake(payload: &[u8], header: &[u8], secrets: &[&str]) -> Option<&'static str> {
    only_t(header).ok()?;
    let bodies = bodies(payload);
    let keys: Vec<(Secret, Option<&'static str>)> = secrets.iter().flat_map(|text| keys(text)).collect();
    let found = bodies.iter().find_map(|(body, body_hint)| {
        let matches = |secret: &Secret| {
            verify(body, Some(header), std::slice::from_ref(secret), Timestamp::default(), 0).is_ok()
        };
        keys.iter().find(|(secret, _)| matches(secret)).map(|(_, key_hint)| key_hint.or(*body_hint))
    });
    found.flatten()
}

/// The given secret, and what it may have been before a mistake, with the hint.
fn keys(text: &str) -> Vec<(Secret, Option<&'static str>)> {
    let trimmed = text.trim();
    let bare = trimmed.trim_matches(['"', '\'']);
    [
        (text.to_owned(), None),
        (
            trimmed.to_owned(),
            Some(
                "the secret has whitespace around it (often a line break from the file or the \
                 clipboard): remove it",
            ),
        ),
        (bare.to_owned(), Some("the secret has quotes around it: remove them")),
        (format!("whsec_{bare}"), Some("the secret lacks its first part: copy all of it, whsec_ included")),
    ]
    .into_iter()
    .filter_map(|(text, hint)| Some((Secret::new(&text).ok()?, hint)))
    .collect()
}

/// The given body, and what it may have been before a mistake, with the hint.
fn bodies(payload: &[u8]) -> Vec<Variant> {
    let reserialised = Some(
        "the body was parsed and written again before it was verified (only its formatting differs): \
         verify the raw bytes of the request",
    );
    let mut bodies: Vec<Variant> = vec![(payload.to_vec(), None)];
    let without_end = payload.trim_ascii_end();
    bodies.push((without_end.to_vec(), Some("a line break was added to the end of the body")));
    bodies.push(([without_end, b"\n"].concat(), Some("the line break at the end of the body was removed")));
    bodies.push((
        String::from_utf8_lossy(payload).replace("\r\n", "\n").into_bytes(),
        Some("the line breaks of the body were changed to CRLF"),
    ));
    if let Some(rest) = payload.strip_prefix(b"\xef\xbb\xbf") {
        bodies.push((rest.to_vec(), Some("a byte order mark was put before the body")));
    }
    if let Ok(decoded) = STANDARD.decode(without_end) {
        bodies.push((
            decoded,
            Some("the body is still base64: API Gateway sets isBase64Encoded, decode it before verifying"),
        ));
    }
    if let Ok(text) = serde_json::from_slice::<String>(payload) {
        bodies.push((
            text.into_bytes(),
            Some("the body is a JSON text that holds the event: it was encoded twice"),
        ));
    }
    if serde_json::from_slice::<&serde_json::value::RawValue>(payload).is_ok() {
        for style in [Style::Compact, Style::Spaced, Style::Indented] {
            bodies.push((rewritten(payload, style), reserialised));
        }
    }
    bodies.push((Vec::new(), Some("the signature is of an empty body: the request is not from Stripe")));
    bodies
}

/// A hint from the body and the secrets alone, when nothing matches.
fn suspicion(payload: &[u8], secrets: &[&str]) -> Option<&'static str> {
    if payload.is_empty() {
        return Some("the body is empty: other code has read it before it was verified");
    }
    if secrets.iter().any(|text| ["sk_", "rk_", "pk_"].iter().any(|prefix| text.trim().starts_with(prefix))) {
        return Some(
            "this is an API key: the signing secret begins with whsec_ and is on the endpoint's page",
        );
    }
    if secrets.iter().any(|text| text.trim().starts_with("we_")) {
        return Some("this is the endpoint's id: its signing secret begins with whsec_");
    }
    match event::read_head(payload) {
        Err(event::ReadError::NotJson(error)) if error.is_eof() => {
            Some("the body is cut off: its JSON has no end")
        }
        Err(event::ReadError::NotJson(_) | event::ReadError::NotUtf8(_)) => {
            Some("the body is not JSON: it is compressed, encoded, or not from Stripe")
        }
        Ok(head) if head.livemode => Some(
            "the body is a well-formed live event: usually the secret is of another endpoint or of test \
             mode, or was rolled; otherwise the body was edited or re-serialised",
        ),
        Ok(_) => Some(
            "the body is a well-formed test event: usually the secret is of another endpoint, of live \
             mode, or of `stripe listen` (which has its own); otherwise the body was edited or re-serialised",
        ),
        Err(_) => None,
    }
}

/// The common ways to write JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `{"a":[1,2]}`: the default of JavaScript and serde.
    Compact,
    /// `{"a": [1, 2]}`: the default of Python.
    Spaced,
    /// Two spaces for each level, as Stripe sends it.
    Indented,
}

/// Writes the tokens of a JSON text in another style.
fn rewritten(json: &[u8], style: Style) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut depth, mut in_text, mut escaped) = (0, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        if style == Style::Indented {
            out.push(b'\n');
            out.resize(out.len() + 2 * depth, b' ');
        }
    };
    let mut opened = false;
    for &byte in json {
        if in_text {
            out.push(byte);
            in_text = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(byte, b'}' | b']');
        if opened && !closes {
            line(&mut out, depth);
        }
        if closes {
            depth = depth.saturating_sub(1);
            if !opened {
                line(&mut out, depth);
            }
        }
        out.push(byte);
        opened = matches!(byte, b'{' | b'[');
        match byte {
            b'{' | b'[' => depth += 1,
            b',' if style == Style::Spaced => out.push(b' '),
            b',' => line(&mut out, depth),
            b':' if style != Style::Compact => out.push(b' '),
            b'"' => in_text = true,
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::sign;

    const PRETTY: &str = r#"{
  "id": "evt_1",
  "object": "event",
  "type": "x",
  "e": {},
  "l": [],
  "data": {
    "object": {
      "a": [
        1,
        "{ ,:\" }"
      ]
    }
  }
}"#;

    /// The hint for `body` and `secret` when Stripe signed `signed` with `whsec_right`.
    fn hint(signed: &str, body: &str, secret: &str) -> &'static str {
        let t = Timestamp::from_unix(1_760_000_000);
        let header = sign(signed.as_bytes(), &Secret::new("whsec_right").unwrap(), t);
        let secrets: Vec<Secret> = Secret::new(secret).into_iter().collect();
        let refusal = verify(body.as_bytes(), Some(header.as_bytes()), &secrets, t, 300).unwrap_err();
        diagnose(body.as_bytes(), Some(header.as_bytes()), &[secret], &refusal)
    }

    #[test]
    fn a_common_mistake_is_named() {
        let compact = String::from_utf8(rewritten(PRETTY.as_bytes(), Style::Compact)).unwrap();
        let spaced = String::from_utf8(rewritten(PRETTY.as_bytes(), Style::Spaced)).unwrap();
        let rows = [
            (PRETTY, compact.as_str(), "whsec_right", "parsed and written again"),
            (PRETTY, &spaced, "whsec_right", "parsed and written again"),
            (&compact, PRETTY, "whsec_right", "parsed and written again"),
            (&spaced, PRETTY, "whsec_right", "parsed and written again"),
            (PRETTY, &format!("{PRETTY}\n"), "whsec_right", "line break was added"),
            (&format!("{PRETTY}\n"), PRETTY, "whsec_right", "line break at the end"),
            (PRETTY, &PRETTY.replace('\n', "\r\n"), "whsec_right", "CRLF"),
            (PRETTY, &STANDARD.encode(PRETTY), "whsec_right", "base64"),
            (PRETTY, &serde_json::to_string(PRETTY).unwrap(), "whsec_right", "encoded twice"),
            (PRETTY, PRETTY, "whsec_right\n", "whitespace around"),
            (PRETTY, PRETTY, "\"whsec_right\"", "quotes"),
            (PRETTY, PRETTY, "right", "whsec_ included"),
            (PRETTY, &compact, " whsec_right", "whitespace around"),
            (PRETTY, PRETTY, "whsec_wrong", "well-formed test event"),
            (PRETTY, PRETTY, "sk_test_1", "API key"),
            (PRETTY, PRETTY, "  ", "only whitespace"),
            (PRETTY, &PRETTY[..60], "whsec_right", "cut off"),
            (PRETTY, "", "whsec_right", "body is empty"),
            (PRETTY, "id=evt_1&object=event", "whsec_right", "not JSON"),
            (
                PRETTY,
                &PRETTY.replace("\"type\"", "\"livemode\": true,\n  \"type\""),
                "whsec_right",
                "well-formed live event",
            ),
        ];
        for (signed, body, secret, words) in rows {
            let hint = hint(signed, body, secret);
            assert!(hint.contains(words), "{words}: {hint}");
        }
    }

    #[test]
    fn a_blank_secret_has_its_own_hint() {
        let of = |secrets: &[&str]| diagnose(b"{}", Some(b"t=1,v1=00"), secrets, &Refusal::NoSecret);
        assert_eq!(
            (of(&[]), of(&["\n"])),
            (Refusal::NoSecret.hint(), "the secret is empty or only whitespace")
        );
    }

    #[test]
    fn json_is_rewritten_in_each_style() {
        let value = r#"{"a":[1,{"b":"c, d: \"e\""}],"f":{},"g":[]}"#;
        let spaced = r#"{"a": [1, {"b": "c, d: \"e\""}], "f": {}, "g": []}"#;
        let indented =
            serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(value).unwrap()).unwrap();
        for from in [value, spaced, &indented] {
            let to = |style| String::from_utf8(rewritten(from.as_bytes(), style)).unwrap();
            assert_eq!(
                [to(Style::Compact), to(Style::Spaced), to(Style::Indented)],
                [value, spaced, &indented],
                "{from}"
            );
        }
    }

    #[test]
    fn every_header_gets_a_hint() {
        let refusal = Refusal::NoMatch { signatures: 1, secrets: 1 };
        for header in [None, Some(&b"t=1,v1=00"[..]), Some(b""), Some(b"\xff")] {
            assert!(!diagnose(b"\xff{", header, &["a"], &refusal).is_empty());
        }
    }
}
