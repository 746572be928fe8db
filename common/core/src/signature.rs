//! Stripe's webhook signature: verifies who sent a request body, and when.
//!
//! ```text
//! Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=<hex>…][,v0=<hex>]
//! signed text = "<t>" "." <the raw body>
//! v1          = HMAC-SHA256(key = the whole secret with `whsec_`, signed text)
//! ```
//! Only `v1` counts. In test mode Stripe adds a `v0`, which proves nothing. While a secret is rolled, the
//! header has one `v1` for each secret.
//!
//! **Invariants:**
//!
//! - This module does no IO and reads no clock. No input makes it panic.
//! - The raw bytes are verified before they are parsed.
//! - The time is checked only after a signature matched, so a sender without a secret learns nothing about
//!   it.
//! - Signatures are compared in constant time.
//! - A secret is never blank.
//!
//! # Example with a known answer
//! ```
//! use tallyhook_core::signature::{Secret, sign, verify};
//! use tallyhook_core::timestamp::Timestamp;
//!
//! let body = br#"{"id":"evt_1","object":"event"}"#;
//! let secret = Secret::new("whsec_test").unwrap();
//! let t = Timestamp::from_unix(1_760_000_000);
//!
//! // printf '%s' '1760000000.{"id":"evt_1","object":"event"}' | openssl dgst -sha256 -hmac whsec_test
//! let header = "t=1760000000,v1=95a3fd7f0f6ce7693c04d0dc7b0e77234e7e0b588a980b80b26e094da8fcd88e";
//! assert_eq!(sign(body, &secret, t), header);
//!
//! let verified = verify(body, Some(header.as_bytes()), &[secret], t.plus_seconds(299), 300).unwrap();
//! assert_eq!((verified.secret_index, verified.timestamp), (0, t));
//! ```

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac, digest::CtOutput};
use sha2::Sha256;

use crate::timestamp::Timestamp;

mod diagnose;

pub use diagnose::diagnose;

/// The default tolerance of Stripe's libraries between signing and verifying. Stripe signs every retry again,
/// so the tolerance does not stop a late retry.
pub const DEFAULT_TOLERANCE_SECONDS: u32 = 300;

/// Which events a secret may verify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecretMode {
    /// Test mode and sandboxes: `livemode` is false.
    Test,
    /// Live mode: `livemode` is true.
    Live,
    /// Both modes: the configuration does not say.
    #[default]
    Any,
}

impl SecretMode {
    /// Its name in messages and in the event log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Live => "live",
            Self::Any => "any",
        }
    }

    /// The mode with this name.
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Test, Self::Live, Self::Any].into_iter().find(|mode| mode.as_str() == text)
    }

    /// Whether a secret of this mode may verify an event with this `livemode`.
    pub const fn allows(self, livemode: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Test => !livemode,
            Self::Live => livemode,
        }
    }
}

/// An endpoint's signing secret (`whsec_…`), stored as the state of an HMAC. Its text is not kept and never
/// printed.
#[derive(Clone)]
pub struct Secret {
    key: Hmac<Sha256>,
    mode: SecretMode,
}

/// A secret is empty or only whitespace. Anyone could sign with such a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a webhook signing secret is empty: copy it from the endpoint's page at Stripe (it begins with whsec_)"
)]
pub struct BlankSecret;

impl Secret {
    /// Creates a secret from its exact text. The whole text is the key, including any whitespace around it.
    ///
    /// # Errors
    /// [`BlankSecret`] when the text is empty or only whitespace.
    pub fn new(text: &str) -> Result<Self, BlankSecret> {
        if text.trim().is_empty() {
            return Err(BlankSecret);
        }
        Ok(Self { key: keyed(text.as_bytes()), mode: SecretMode::Any })
    }

    /// Sets the mode.
    #[must_use]
    pub fn with_mode(self, mode: SecretMode) -> Self {
        Self { mode, ..self }
    }

    /// Which events it may verify.
    pub const fn mode(&self) -> SecretMode {
        self.mode
    }

    fn mac(&self, t: &[u8], payload: &[u8]) -> CtOutput<Hmac<Sha256>> {
        self.key.clone().chain_update(t).chain_update(b".").chain_update(payload).finalize()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("mode", &self.mode).finish_non_exhaustive()
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// The result of a valid signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Index of the secret that made the signature, for its mode and for the log.
    pub secret_index: usize,
    /// When Stripe signed this delivery. The event may be older.
    pub timestamp: Timestamp,
}

/// Why a delivery is refused. The sender gets only [`Refusal::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Stripe-Signature` header, or an empty one.
    #[error("there is no Stripe-Signature header")]
    NoHeader,
    /// The header has no `t`.
    #[error("the Stripe-Signature header has no t=")]
    NoTimestamp,
    /// `t` is not a plain decimal number of at most 18 digits.
    #[error("the t= of the Stripe-Signature header is not a unix time in whole seconds")]
    BadTimestamp,
    /// The header has more than one `t`, so it is unclear which one was signed.
    #[error("the Stripe-Signature header has more than one t=")]
    SeveralTimestamps,
    /// The header has no `v1`.
    #[error("the Stripe-Signature header has no v1 signature")]
    NoV1 {
        /// Whether it has a `v0`, which proves nothing.
        only_v0: bool,
    },
    /// No secret is configured.
    #[error("no webhook signing secret is configured")]
    NoSecret,
    /// No `v1` matches the body with any of the secrets.
    #[error("none of {signatures} v1 signature(s) matches this body with any of {secrets} secret(s)")]
    NoMatch {
        /// Number of `v1` in the header.
        signatures: usize,
        /// Number of secrets that were tried.
        secrets: usize,
    },
    /// The signature matches, but it is older than the tolerance.
    #[error("the signature is {age_seconds} s old")]
    TooOld {
        /// Age by this machine's clock.
        age_seconds: i64,
    },
    /// The signature matches, but it is further in the future than the tolerance.
    #[error("the signature is {ahead_seconds} s in the future")]
    TooNew {
        /// Seconds ahead of this machine's clock.
        ahead_seconds: i64,
    },
}

impl Refusal {
    /// The `error` of the 400 answer: `missing_signature`, `invalid_signature` or
    /// `timestamp_out_of_tolerance`.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoHeader => "missing_signature",
            Self::NoTimestamp
            | Self::BadTimestamp
            | Self::SeveralTimestamps
            | Self::NoV1 { .. }
            | Self::NoSecret
            | Self::NoMatch { .. } => "invalid_signature",
            Self::TooOld { .. } | Self::TooNew { .. } => "timestamp_out_of_tolerance",
        }
    }

    /// A hint for the operator; never sent to the sender. [`diagnose`] finds better hints, but needs the
    /// texts of the secrets.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoHeader => {
                "the request is not from Stripe, or a proxy removed the header Stripe-Signature; \
                 EventBridge events have no signature"
            }
            Self::NoTimestamp | Self::BadTimestamp => {
                "the header is cut off or changed: it must be t=…,v1=… exactly as Stripe sent it, \
                 without spaces or quotes"
            }
            Self::SeveralTimestamps => {
                "two Stripe-Signature headers were joined into one: a proxy added or repeated the header"
            }
            Self::NoV1 { only_v0: true } => {
                "a v0 signature proves nothing; Stripe always sends a v1 too, so the header was changed"
            }
            Self::NoV1 { only_v0: false } => {
                "the header is cut off, has spaces after its commas, or is from another service"
            }
            Self::NoSecret => "set STRIPE_WEBHOOK_SECRET to the endpoint's signing secret",
            Self::NoMatch { .. } => {
                "usually the secret is wrong: each endpoint has its own, test and live mode differ, and \
                 `stripe listen` prints another; otherwise the body was changed (parsed and written again, \
                 decoded, cut off)"
            }
            Self::TooOld { .. } => {
                "the clock of this machine is fast, or someone sent an old delivery again; Stripe signs \
                 every retry again"
            }
            Self::TooNew { .. } => "the clock of this machine is slow",
        }
    }
}

/// Verifies that one of `secrets` signed `payload`, at most `tolerance_seconds` before or after `now`.
///
/// `payload` is the body byte for byte; decode the base64 of an API Gateway body first. `header` is the value
/// of `Stripe-Signature`; `None` and an empty header are the same. This is stricter than Stripe's libraries:
/// the header must have exactly one `t` in plain decimals, and a time in the future is refused too.
///
/// A tolerance of 0 switches the time check off, as in Stripe's libraries. Only tools and tests use 0: the
/// configuration of the functions refuses it.
///
/// # Errors
/// A [`Refusal`]. [`Refusal::TooOld`] and [`Refusal::TooNew`] only when a signature matched.
pub fn verify(
    payload: &[u8],
    header: Option<&[u8]>,
    secrets: &[Secret],
    now: Timestamp,
    tolerance_seconds: u32,
) -> Result<Verified, Refusal> {
    let header = header.filter(|header| !header.is_empty()).ok_or(Refusal::NoHeader)?;
    let t = only_t(header)?;
    let timestamp = unix_time(t).ok_or(Refusal::BadTimestamp)?;
    let signatures = values(header, b"v1").count();
    if signatures == 0 {
        return Err(Refusal::NoV1 { only_v0: values(header, b"v0").next().is_some() });
    }
    if secrets.is_empty() {
        return Err(Refusal::NoSecret);
    }
    let matched = secrets.iter().position(|secret| {
        let expected = secret.mac(t, payload);
        values(header, b"v1").filter_map(hex).any(|signature| CtOutput::new(signature.into()) == expected)
    });
    let secret_index = matched.ok_or(Refusal::NoMatch { signatures, secrets: secrets.len() })?;

    let (age_seconds, tolerance) = (now.seconds_since(timestamp), i64::from(tolerance_seconds));
    match tolerance {
        0 => Ok(Verified { secret_index, timestamp }),
        _ if age_seconds > tolerance => Err(Refusal::TooOld { age_seconds }),
        _ if age_seconds < -tolerance => Err(Refusal::TooNew { ahead_seconds: age_seconds.saturating_neg() }),
        _ => Ok(Verified { secret_index, timestamp }),
    }
}

/// The value of `Stripe-Signature` for `payload` at `t`, for tests and the local sender.
pub fn sign(payload: &[u8], secret: &Secret, t: Timestamp) -> String {
    use std::fmt::Write as _;
    let t = t.unix().to_string();
    let mut header = format!("t={t},v1=");
    for byte in secret.mac(t.as_bytes(), payload).into_bytes() {
        write!(header, "{byte:02x}").expect("writing to a string cannot fail");
    }
    header
}

/// The values of `key`. Keys are compared exactly, including spaces, as in Stripe's libraries.
fn values<'a>(header: &'a [u8], key: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
    header.split(|byte| *byte == b',').filter_map(move |part| part.strip_prefix(key)?.strip_prefix(b"="))
}

fn only_t(header: &[u8]) -> Result<&[u8], Refusal> {
    let mut found = values(header, b"t");
    let t = found.next().ok_or(Refusal::NoTimestamp)?;
    if found.next().is_some() { Err(Refusal::SeveralTimestamps) } else { Ok(t) }
}

/// Parses 1 to 18 decimal digits without sign and leading zero: exactly the text that was signed.
fn unix_time(t: &[u8]) -> Option<Timestamp> {
    let canonical =
        (1..=18).contains(&t.len()) && t.iter().all(u8::is_ascii_digit) && (t[0] != b'0' || t.len() == 1);
    let seconds = std::str::from_utf8(t).ok().filter(|_| canonical)?.parse().ok()?;
    Some(Timestamp::from_unix(seconds))
}

/// Parses 64 lower-case hex digits. Any other signature matches nothing.
fn hex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_chunks::<2>();
    let mut bytes = [0; 32];
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;
    const NOW: Timestamp = Timestamp::from_unix(1_760_000_000);

    fn secret(text: &str) -> Secret {
        Secret::new(text).unwrap()
    }

    #[test]
    fn a_mode_allows_its_own_events_and_is_read_back() {
        for (mode, text, live, test) in [
            (SecretMode::Test, "test", false, true),
            (SecretMode::Live, "live", true, false),
            (SecretMode::Any, "any", true, true),
        ] {
            assert_eq!((mode.as_str(), SecretMode::from_text(text)), (text, Some(mode)));
            assert_eq!((mode.allows(true), mode.allows(false)), (live, test), "{text}");
        }
        assert_eq!(SecretMode::from_text("Live"), None);
    }

    #[test]
    fn every_refusal_has_a_hint() {
        let check = |refusal: Refusal, word: &str| {
            assert!(refusal.hint().contains(word), "{refusal}: {}", refusal.hint())
        };
        check(Refusal::NoHeader, "Stripe-Signature");
        check(Refusal::BadTimestamp, "cut off");
        check(Refusal::NoV1 { only_v0: true }, "v0");
        check(Refusal::TooOld { age_seconds: 301 }, "fast");
        check(Refusal::TooNew { ahead_seconds: 301 }, "slow");
    }

    #[test]
    fn a_signature_is_checked_before_its_time() {
        let old = sign(BODY, &secret("whsec_a"), NOW.plus_days(-1));
        let check = |header: &str, secrets: &[Secret]| {
            verify(BODY, Some(header.as_bytes()), secrets, NOW, 300).map_err(|r| r.code())
        };
        assert_eq!(check(&old, &[secret("whsec_b")]), Err("invalid_signature"));
        assert_eq!(check(&old, &[secret("whsec_a")]), Err("timestamp_out_of_tolerance"));
    }

    #[test]
    fn the_tolerance_applies_to_the_past_and_the_future() {
        let rows = [
            (-301, Err(Refusal::TooOld { age_seconds: 301 })),
            (-300, Ok(())),
            (300, Ok(())),
            (301, Err(Refusal::TooNew { ahead_seconds: 301 })),
        ];
        for (seconds, expect) in rows {
            let header = sign(BODY, &secret("whsec_a"), NOW.plus_seconds(seconds));
            assert_eq!(
                verify(BODY, Some(header.as_bytes()), &[secret("whsec_a")], NOW, 300).map(|_| ()),
                expect,
                "{seconds}"
            );
            assert!(verify(BODY, Some(header.as_bytes()), &[secret("whsec_a")], NOW, 0).is_ok());
        }
    }

    #[test]
    fn while_a_secret_is_rolled_both_secrets_verify() {
        let secrets = [secret("whsec_new").with_mode(SecretMode::Live), secret("whsec_old")];
        let header = sign(BODY, &secret("whsec_old"), NOW);
        let verified = verify(BODY, Some(header.as_bytes()), &secrets, NOW, 300).unwrap();
        assert_eq!(verified, Verified { secret_index: 1, timestamp: NOW });
        assert!(!secrets[0].mode().allows(false) && secrets[1].mode().allows(false));
    }

    #[test]
    fn each_defect_of_the_header_has_its_own_refusal() {
        let rows: [(Option<&[u8]>, Refusal); 9] = [
            (None, Refusal::NoHeader),
            (Some(b""), Refusal::NoHeader),
            (Some(b"v1=00"), Refusal::NoTimestamp),
            (Some(b"t=,v1=00"), Refusal::BadTimestamp),
            (Some(b"t=9999999999999999999,v1=00"), Refusal::BadTimestamp),
            (Some(b"t=1,t=2,v1=00"), Refusal::SeveralTimestamps),
            (Some(b"t=1,v0=00"), Refusal::NoV1 { only_v0: true }),
            (Some(b"t=1, v1=00"), Refusal::NoV1 { only_v0: false }),
            (Some(b"t=1,v1=\xff\xff,v1"), Refusal::NoMatch { signatures: 1, secrets: 1 }),
        ];
        for (header, refusal) in rows {
            assert_eq!(verify(BODY, header, &[secret("whsec_a")], NOW, 300), Err(refusal));
        }
        assert_eq!(verify(BODY, Some(b"t=1,v1=00"), &[], NOW, 300), Err(Refusal::NoSecret));
    }

    #[test]
    fn a_signature_has_64_digits_and_a_time_has_no_leading_zero() {
        let check = |header: &str| {
            verify(BODY, Some(header.as_bytes()), &[secret("whsec_a")], NOW, 300)
                .map_err(|refusal| refusal.code())
        };
        let good = sign(BODY, &secret("whsec_a"), NOW);
        assert!(check(&good).is_ok());
        for wrong in [
            format!("{good}00"),
            format!("{good}0"),
            good[..good.len() - 2].to_owned(),
            good[..good.len() - 1].to_owned(),
        ] {
            assert_eq!(check(&wrong), Err("invalid_signature"), "{wrong}");
        }
        // Zero is a valid time, only too old. A number with a leading zero is refused.
        assert_eq!(
            check(&sign(BODY, &secret("whsec_a"), Timestamp::from_unix(0))),
            Err("timestamp_out_of_tolerance")
        );
        assert_eq!(check(&good.replacen("t=", "t=0", 1)), Err("invalid_signature"));
        let padded =
            verify(BODY, Some(good.replacen("t=", "t=0", 1).as_bytes()), &[secret("whsec_a")], NOW, 300);
        assert_eq!(padded, Err(Refusal::BadTimestamp));
    }

    #[test]
    fn a_blank_secret_is_refused_and_no_secret_is_printed() {
        for blank in ["", "   ", "\n"] {
            assert_eq!(Secret::new(blank).err(), Some(BlankSecret));
        }
        assert_eq!(format!("{:?}", secret("whsec_a")), "Secret { mode: Any, .. }");
    }
}
