//! The type of every point in time.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point in time: whole seconds since the Unix epoch, without leap seconds. Stripe has the same resolution
/// (`created`, `t=`). In items and messages it is a number; `Display` writes RFC 3339 for HTTP answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Reads RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|time| Self(time.as_second()))
    }

    /// From seconds since the epoch. Every number is a valid time.
    pub const fn from_unix(seconds: i64) -> Self {
        Self(seconds)
    }

    /// Seconds since the epoch.
    pub const fn unix(self) -> i64 {
        self.0
    }

    /// This time plus `seconds`. The result stops at the ends of the range.
    #[must_use]
    pub const fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// This time plus `days` of 86,400 seconds.
    #[must_use]
    pub const fn plus_days(self, days: i64) -> Self {
        self.plus_seconds(days.saturating_mul(86_400))
    }

    /// This time plus calendar months, in UTC; a day that the month lacks becomes the month's last day.
    /// Outside the supported years the result is this time.
    #[must_use]
    pub fn plus_months(self, months: u32) -> Self {
        let added = || {
            let time = jiff::Timestamp::from_second(self.0).ok()?;
            let date = jiff::tz::TimeZone::UTC.to_datetime(time);
            let date = date.checked_add(jiff::Span::new().try_months(months).ok()?).ok()?;
            Some(Self(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second()))
        };
        added().unwrap_or(self)
    }

    /// Seconds from `earlier` to this time; negative when `earlier` is later.
    pub const fn seconds_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC (`2026-11-21T09:14:00Z`). A time outside the supported years is printed as a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc_3339_and_never_panics() {
        assert_eq!(Timestamp::from_unix(1_760_000_000).to_string(), "2025-10-09T08:53:20Z");
        assert_eq!(Timestamp::from_unix(i64::MAX).to_string(), i64::MAX.to_string());
        assert_eq!(Timestamp::from_unix(i64::MAX).plus_days(1).unix(), i64::MAX);
    }

    #[test]
    fn months_are_counted_from_the_first_day_and_end_with_the_month() {
        let start = Timestamp::parse("2028-01-31T23:59:59Z").unwrap();
        let months: Vec<String> = (0..4).map(|months| start.plus_months(months).to_string()).collect();
        assert_eq!(
            months,
            ["2028-01-31T23:59:59Z", "2028-02-29T23:59:59Z", "2028-03-31T23:59:59Z", "2028-04-30T23:59:59Z"]
        );
        assert_eq!(Timestamp::from_unix(i64::MAX).plus_months(1).unix(), i64::MAX);
    }
}
