//! The life of a one-time order after it is paid.
//!
//! ```text
//! NEW → IN_PROGRESS → DELIVERED → DONE
//!            ↑            ↓
//!            └──────── REVISION      takes one of `revisions_left`
//! ```
//! The app makes these steps. `REFUNDED` is set from any status when the whole payment is refunded, and is
//! final.

/// The status of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderStatus {
    /// Paid.
    New,
    /// The work has begun.
    InProgress,
    /// The customer has the result.
    Delivered,
    /// The customer wants a change.
    Revision,
    /// The customer accepted the result.
    Done,
    /// The whole payment was refunded.
    Refunded,
}

/// Why a step is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepRefusal {
    /// No step leads from the current status to the new one.
    NotAllowed,
    /// No revision is left.
    NoRevisionsLeft,
}

impl OrderStatus {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::New, Self::InProgress, Self::Delivered, Self::Revision, Self::Done, Self::Refunded];

    /// The value of `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::InProgress => "IN_PROGRESS",
            Self::Delivered => "DELIVERED",
            Self::Revision => "REVISION",
            Self::Done => "DONE",
            Self::Refunded => "REFUNDED",
        }
    }

    /// Reads a value of `status`.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// The revisions that are left after a step of the app.
    ///
    /// # Errors
    /// [`StepRefusal`] if the step is not allowed.
    pub fn step(self, to: Self, revisions_left: u32) -> Result<u32, StepRefusal> {
        match (self, to) {
            (Self::New | Self::Revision, Self::InProgress)
            | (Self::InProgress, Self::Delivered)
            | (Self::Delivered, Self::Done) => Ok(revisions_left),
            (Self::Delivered, Self::Revision) => {
                revisions_left.checked_sub(1).ok_or(StepRefusal::NoRevisionsLeft)
            }
            _ => Err(StepRefusal::NotAllowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drawn_steps_are_allowed_and_a_revision_takes_one() {
        use OrderStatus::{Delivered, Done, InProgress, New, Revision};
        let allowed = [
            (New, InProgress),
            (InProgress, Delivered),
            (Delivered, Revision),
            (Delivered, Done),
            (Revision, InProgress),
        ];
        for from in OrderStatus::ALL {
            for to in OrderStatus::ALL {
                let expected = match allowed.contains(&(from, to)) {
                    true => Ok(if to == Revision { 1 } else { 2 }),
                    false => Err(StepRefusal::NotAllowed),
                };
                assert_eq!(from.step(to, 2), expected, "{from:?} → {to:?}");
            }
            assert_eq!(OrderStatus::from_text(from.as_str()), Some(from));
        }
        assert_eq!(Delivered.step(Revision, 0), Err(StepRefusal::NoRevisionsLeft));
        assert_eq!(OrderStatus::from_text("new"), None);
    }
}
