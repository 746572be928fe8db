//! The system clock, and waiting. `tallyhook-core` never reads it: its functions take the time as an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Waits a random time before the next attempt. Its maximum doubles with each attempt.
pub async fn pause(attempt: u32) {
    let jitter = fastrand::u64(0..(10 << attempt.min(6)));
    tokio::time::sleep(Duration::from_millis(5 + jitter)).await;
}
