//! The MD5 digests in the answers of SQS. A client compares them with its own.

use std::collections::BTreeMap;

use md5::{Digest, Md5};

use super::wire::MessageAttribute;

/// `MD5OfMessageBody`, and `MD5OfBody` on receipt: the digest of the text's UTF-8 bytes.
pub(super) fn of_body(body: &str) -> String {
    hex(&Md5::digest(body))
}

/// `MD5OfMessageAttributes`, or `None` without attributes. The digest covers the attributes in the order of
/// their names: for each the name, the data type, one byte (1 for text, 2 for bytes) and the value. Name,
/// type and value have their length before them, as four bytes, big-endian.
pub(super) fn of_attributes<'a>(
    attributes: impl IntoIterator<Item = (&'a String, &'a MessageAttribute)>,
) -> Option<String> {
    let sorted: BTreeMap<_, _> = attributes.into_iter().collect();
    if sorted.is_empty() {
        return None;
    }
    let mut digest = Md5::new();
    let mut add = |tag: &[u8], bytes: &[u8]| {
        digest.update(tag);
        digest.update(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        digest.update(bytes);
    };
    for (name, attribute) in sorted {
        add(&[], name.as_bytes());
        add(&[], attribute.data_type.as_bytes());
        add(&[if attribute.is_binary() { 2 } else { 1 }], attribute.value());
    }
    Some(hex(&digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqs::wire::Blob;

    fn text(data_type: &str, value: &str) -> MessageAttribute {
        MessageAttribute { data_type: data_type.into(), string_value: Some(value.into()), binary_value: None }
    }

    fn digest(attributes: Vec<(&str, MessageAttribute)>) -> Option<String> {
        let attributes: Vec<_> =
            attributes.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        of_attributes(attributes.iter().map(|(name, value)| (name, value)))
    }

    #[test]
    fn a_body_has_the_digest_of_aws() {
        assert_eq!(of_body("msg"), "6e2baaf3b97dbeef01c0043275f9a0e7");
        assert_eq!(of_body("a"), "0cc175b9c0f1b6a831c399e269772661");
    }

    #[test]
    fn attributes_have_the_digest_of_aws_in_any_order() {
        let kenobi = || {
            vec![
                ("Hello", text("String", "There")),
                ("Help.Me", text("String", "Me")),
                ("General", text("String", "Kenobi")),
            ]
        };
        assert_eq!(digest(kenobi()).as_deref(), Some("4c360f3fdafd970e05fae2f149d997f5"));
        assert_eq!(
            digest(kenobi().into_iter().rev().collect()).as_deref(),
            Some("4c360f3fdafd970e05fae2f149d997f5")
        );
        assert_eq!(
            digest(kenobi().into_iter().take(1).collect()).as_deref(),
            Some("a311262e065454b75da111d535b8dacd")
        );
        assert_eq!(digest(vec![]), None);
    }

    #[test]
    fn a_binary_attribute_has_the_digest_of_aws() {
        let trace = b"traceparent\x1e00-774062d6c37081a5a0b9b5b88e30627c-2d2482211f6489da-01".to_vec();
        let attribute = MessageAttribute {
            data_type: "Binary".into(),
            string_value: None,
            binary_value: Some(Blob(trace)),
        };
        assert_eq!(digest(vec![("attr1", attribute)]).as_deref(), Some("8cbe4db156db8a94db8b801b7addb984"));
    }
}
