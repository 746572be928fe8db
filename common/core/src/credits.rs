//! Whole credits.

use std::fmt;
use std::iter::Sum;

use serde::{Deserialize, Serialize};

/// A number of credits, never negative. Sums stop at the largest `u64` and differences at zero, so arithmetic
/// on outside data cannot overflow. The catalog's limits keep every real sum far below that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Credits(u64);

impl Credits {
    /// No credits.
    pub const ZERO: Self = Self(0);
    /// The largest grant: 10^15, the catalog's largest amount times its largest quantity.
    pub const MAX_GRANT: Self = Self(1_000_000_000_000_000);

    /// From a plain number.
    pub const fn new(credits: u64) -> Self {
        Self(credits)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, at most the largest number.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self` × `quantity`; `None` above [`Credits::MAX_GRANT`].
    pub fn times(self, quantity: u64) -> Option<Self> {
        self.0.checked_mul(quantity).map(Self).filter(|product| *product <= Self::MAX_GRANT)
    }

    /// `self` × `part` ÷ `whole`, rounded down. A `part` above `whole` counts as `whole`. The result is zero
    /// when `part` is negative, or `whole` is zero or negative.
    #[must_use]
    pub fn share(self, part: i64, whole: i64) -> Self {
        let (Ok(part), Ok(whole)) = (u128::try_from(part), u128::try_from(whole)) else { return Self::ZERO };
        if whole == 0 {
            return Self::ZERO;
        }
        let share = u128::from(self.0) * part.min(whole) / whole;
        Self(u64::try_from(share).unwrap_or(u64::MAX))
    }

    /// The signed difference `self` − `before`.
    pub fn delta_from(self, before: Self) -> i64 {
        let signed = |credits: u64| i64::try_from(credits).unwrap_or(i64::MAX);
        if self >= before { signed(self.0 - before.0) } else { -signed(before.0 - self.0) }
    }
}

impl Sum for Credits {
    fn sum<I: Iterator<Item = Self>>(credits: I) -> Self {
        credits.fold(Self::ZERO, Self::plus)
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down_and_never_more_than_the_whole() {
        let grant = Credits::new(1000);
        for (part, whole, share) in [
            (500, 2000, 250),
            (1, 3, 333),
            (2000, 2000, 1000),
            (9000, 2000, 1000),
            (5, 0, 0),
            (-5, 10, 0),
            (5, -1, 0),
        ] {
            assert_eq!(grant.share(part, whole), Credits::new(share), "{part}/{whole}");
        }
        assert_eq!(Credits::new(u64::MAX).share(i64::MAX, i64::MAX), Credits::new(u64::MAX));
    }

    #[test]
    fn arithmetic_stops_at_the_limits() {
        assert_eq!(Credits::new(3).minus(Credits::new(5)), Credits::ZERO);
        assert_eq!(Credits::new(u64::MAX).plus(Credits::new(1)), Credits::new(u64::MAX));
        assert_eq!(Credits::new(1_000_000_000).times(1_000_000), Some(Credits::MAX_GRANT));
        assert_eq!(Credits::new(1_000_000_000).times(1_000_001), None);
        assert_eq!(Credits::new(2).delta_from(Credits::new(5)), -3);
    }
}
