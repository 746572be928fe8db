//! The signature header. The input is the header, a line break, and the body.
//!
//! No bytes make it panic. It accepts only the one right signature of exactly these bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallyhook_core::signature::{Secret, diagnose, sign, verify};
use tallyhook_core::timestamp::Timestamp;

const NOW: Timestamp = Timestamp::from_unix(1_760_000_000);
const SECRETS: [&str; 2] = ["whsec_new", "whsec_old"];

fuzz_target!(|data: &[u8]| {
    let secrets: Vec<Secret> =
        SECRETS.iter().map(|text| Secret::new(text).expect("a secret that is not blank")).collect();
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (header, body) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    match verify(body, Some(header), &secrets, NOW, 300) {
        Ok(verified) => {
            let right = sign(body, &secrets[verified.secret_index], verified.timestamp);
            let right = right.split_once("v1=").map_or("", |(_, hex)| hex).as_bytes();
            assert!(
                header.windows(right.len()).any(|part| part == right),
                "verified without the right signature"
            );
            assert!(NOW.seconds_since(verified.timestamp).abs() <= 300);
        }
        Err(refusal) => {
            diagnose(body, Some(header), &SECRETS, &refusal);
            assert!(!refusal.to_string().is_empty());
        }
    }
    // Our own signature is accepted for every body, and refused for another body.
    let signed = sign(body, &secrets[1], NOW);
    assert!(
        verify(body, Some(signed.as_bytes()), &secrets, NOW, 300)
            .is_ok_and(|verified| verified.secret_index == 1)
    );
    assert!(verify(data, Some(signed.as_bytes()), &secrets, NOW, 300).is_err() || data == body);
});
