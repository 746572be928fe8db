//! 214 deliveries and the verdicts of Stripe's own libraries (stripe-node and stripe-python). Our webhook
//! must answer like them, or like the stricter one if they differ. `data/signature-vectors.jsonl`, a case a
//! line; `want_status` is what the webhook must answer.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tallyhook_core::event::read_head;
use tallyhook_core::signature::{Secret, diagnose, verify};
use tallyhook_core::timestamp::Timestamp;

#[derive(Deserialize)]
struct Case {
    id: String,
    note: String,
    payload_b64: String,
    header: Option<String>,
    secrets: Vec<String>,
    now: f64,
    tolerance: u32,
    want_signature_ok: String,
    want_status: u16,
    also_ok_status: Vec<u16>,
}

fn cases() -> Vec<Case> {
    include_str!("data/signature-vectors.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_vector_is_answered_as_stripes_libraries_do() {
    let cases = cases();
    assert_eq!(cases.len(), 214);
    for case in &cases {
        let payload = STANDARD.decode(&case.payload_b64).unwrap();
        let header = case.header.as_ref().map(String::as_bytes);
        let secrets: Vec<Secret> = case.secrets.iter().filter_map(|text| Secret::new(text).ok()).collect();
        let now = Timestamp::from_unix(format!("{:.0}", case.now.floor()).parse().unwrap());

        let verified = verify(&payload, header, &secrets, now, case.tolerance);
        let status = if verified.is_ok() && read_head(&payload).is_ok() { 200 } else { 400 };
        let named = format!("{} {}: {verified:?}, {:?}", case.id, case.note, read_head(&payload));
        assert!(status == case.want_status || case.also_ok_status.contains(&status), "{status}, {named}");
        match case.want_signature_ok.as_str() {
            "yes" => assert!(verified.is_ok(), "{named}"),
            "no" => assert!(verified.is_err(), "{named}"),
            _ => {}
        }
        if let Err(refusal) = verified {
            let texts: Vec<&str> = case.secrets.iter().map(String::as_str).collect();
            assert!(!diagnose(&payload, header, &texts, &refusal).is_empty(), "{named}");
        }
    }
}

#[test]
fn every_body_the_webhook_accepts_is_valid_json() {
    for case in cases() {
        let payload = STANDARD.decode(&case.payload_b64).unwrap();
        if read_head(&payload).is_ok() {
            assert!(serde_json::from_slice::<serde_json::Value>(&payload).is_ok(), "{}", case.id);
        }
    }
}
