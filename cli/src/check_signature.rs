//! `check-signature`: why a webhook answers 400.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde_json::{Value, json};
use tallyhook_core::signature::{DEFAULT_TOLERANCE_SECONDS, Secret, diagnose, verify};
use tallyhook_core::timestamp::Timestamp;

use crate::output::print_line;
use crate::send::now;

/// Check a webhook's signature, and say why it is invalid
///
/// Reads the body from the standard input, byte for byte as it was received. Prints {"ok":true} or
/// {"ok":false,"error":"...","hint":"..."}. The exit code is 0 or 1.
#[derive(Args)]
pub struct CheckSignature {
    /// The endpoint's signing secret, whsec_...; repeat it while a secret is rolled
    #[arg(long = "secret", required = true, allow_hyphen_values = true)]
    secrets: Vec<String>,
    /// The value of the Stripe-Signature header
    #[arg(long, allow_hyphen_values = true)]
    header: Option<OsString>,
    /// The current time, in seconds since 1970 [default: the clock]
    #[arg(long, value_name = "UNIX", allow_hyphen_values = true, value_parser = whole_seconds)]
    now: Option<i64>,
    /// Maximum age of the signature; 0 switches the check off
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TOLERANCE_SECONDS)]
    tolerance: u32,
}

impl CheckSignature {
    /// True when the signature is valid.
    pub fn run(self) -> anyhow::Result<bool> {
        let mut body = Vec::new();
        std::io::stdin().read_to_end(&mut body)?;
        let verdict = self.verdict(&body);
        print_line(&verdict)?;
        Ok(verdict["ok"] == true)
    }

    fn verdict(&self, body: &[u8]) -> Value {
        // A blank secret is left out: anybody could sign with it.
        let secrets: Vec<Secret> =
            self.secrets.iter().filter_map(|secret| Secret::new(secret).ok()).collect();
        let header = self.header.as_deref().map(OsStrExt::as_bytes);
        let now = self.now.map_or_else(now, Timestamp::from_unix);
        match verify(body, header, &secrets, now, self.tolerance) {
            Ok(_) => json!({ "ok": true }),
            Err(refusal) => {
                let secrets: Vec<&str> = self.secrets.iter().map(String::as_str).collect();
                let hint = diagnose(body, header, &secrets, &refusal);
                json!({ "ok": false, "error": refusal.code(), "hint": hint })
            }
        }
    }
}

/// A time in seconds. A fraction is cut off.
fn whole_seconds(text: &str) -> Result<i64, std::num::ParseIntError> {
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|byte| byte.is_ascii_digit()) => whole.parse(),
        _ => text.parse(),
    }
}
