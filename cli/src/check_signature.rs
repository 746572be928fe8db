//! `tallyhook check-signature`: why a webhook answers 400.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use common::domain::timestamp::Timestamp;
use common::signature::{DEFAULT_TOLERANCE_SECONDS, Secret, diagnose, verify};
use serde_json::{Value, json};

/// Say whether a signature holds, and if not, why
///
/// Reads the body, byte for byte as it was received, from the standard input and prints {"ok":true} or
/// {"ok":false,"error":"...","hint":"..."}. Ends with 0 or 1.
#[derive(Args)]
pub struct CheckSignature {
    /// The endpoint's signing secret, whsec_...; several while one is rolled
    #[arg(long = "secret", required = true, allow_hyphen_values = true)]
    secrets: Vec<String>,
    /// The value of the Stripe-Signature header
    #[arg(long, allow_hyphen_values = true)]
    header: Option<OsString>,
    /// The time to judge by, in seconds since 1970 [default: the clock's]
    #[arg(long, value_name = "UNIX", allow_hyphen_values = true, value_parser = whole_seconds)]
    now: Option<i64>,
    /// How far the signature's time may be off; 0 switches that check off
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TOLERANCE_SECONDS)]
    tolerance: u32,
}

impl CheckSignature {
    /// Judges and prints; whether the signature holds.
    pub fn run(self) -> anyhow::Result<bool> {
        let mut body = Vec::new();
        std::io::stdin().read_to_end(&mut body)?;
        let verdict = self.judge(&body);
        super::say(format_args!("{verdict}"))?;
        Ok(verdict["ok"] == true)
    }

    fn judge(&self, body: &[u8]) -> Value {
        // A blank one is no secret: with it, anybody could sign.
        let secrets: Vec<Secret> =
            self.secrets.iter().filter_map(|secret| Secret::new(secret).ok()).collect();
        let header = self.header.as_deref().map(OsStrExt::as_bytes);
        let now = self.now.map_or_else(super::send::now, Timestamp::from_unix);
        match verify(body, header, &secrets, now, self.tolerance) {
            Ok(_) => json!({ "ok": true }),
            Err(refusal) => {
                let texts: Vec<&str> = self.secrets.iter().map(String::as_str).collect();
                json!({ "ok": false, "error": refusal.code(), "hint": diagnose(body, header, &texts, &refusal) })
            }
        }
    }
}

/// A time in seconds; what is after the point is cut off, as the functions' clock does.
fn whole_seconds(text: &str) -> Result<i64, std::num::ParseIntError> {
    match text.split_once('.') {
        Some((whole, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => whole.parse(),
        _ => text.parse(),
    }
}
