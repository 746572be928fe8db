//! The clock, for the shell; the core is given the time.

use std::time::{SystemTime, UNIX_EPOCH};

use tallyhook_core::timestamp::Timestamp;

/// Unix ms.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// In whole seconds.
pub fn now() -> Timestamp {
    Timestamp::from_unix(now_ms().div_euclid(1000))
}
