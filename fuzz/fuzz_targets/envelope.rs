//! The SQS envelope. The input is a record of a batch as Lambda passes it on, or anything else.
//!
//! No record makes the worker's reader panic. An accepted record has the attributes that only the webhook
//! sets.
#![no_main]

use aws_lambda_events::event::sqs::SqsMessage;
use base64::Engine as _;
use libfuzzer_sys::fuzz_target;
use tallyhook_aws::payload;
use tallyhook_aws::queue::Envelope;
use tallyhook_core::event::{content_digest, read, read_head};

fuzz_target!(|data: &[u8]| {
    // The packed form: any bytes are unpacked or refused, and packed bytes are unpacked unchanged.
    let _ = payload::unpack(data);
    assert_eq!(payload::unpack(&payload::pack(data)).as_deref(), Some(data));

    if let Ok(message) = serde_json::from_slice::<SqsMessage>(data)
        && let Ok(envelope) = Envelope::read(&message)
    {
        assert!(
            message.message_attributes.contains_key("received_at")
                && message.message_attributes.contains_key("mode")
        );
        let _ = (read_head(&envelope.body), read(&envelope.body), content_digest(&envelope.body));
    }
    // The input as the body of a well-formed record, plain and packed.
    for (body, encoding) in [
        (String::from_utf8_lossy(data).into_owned(), None),
        (base64::engine::general_purpose::STANDARD.encode(data), Some("packed+base64")),
    ] {
        let mut record = serde_json::json!({
            "messageId": "m", "receiptHandle": "r", "body": body,
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {
                "received_at": {"dataType": "Number", "stringValue": "1760000000000"},
                "mode": {"dataType": "String", "stringValue": "test"},
            },
        });
        if let Some(encoding) = encoding {
            record["messageAttributes"]["encoding"] =
                serde_json::json!({"dataType": "String", "stringValue": encoding});
        }
        let message: SqsMessage = serde_json::from_value(record).expect("a valid record");
        if let Ok(envelope) = Envelope::read(&message) {
            let _ = read(&envelope.body);
        }
    }
});
