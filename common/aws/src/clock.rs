//! The system clock. `tallyhook-core` never reads it: its functions take the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use tallyhook_core::timestamp::Timestamp;

/// The current time in unix milliseconds.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The current time in whole seconds.
pub fn now() -> Timestamp {
    Timestamp::from_unix(now_ms().div_euclid(1000))
}
