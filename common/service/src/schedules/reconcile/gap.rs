//! Counts the events of our types that Stripe lists in a time range, and how many of them our log has.

use std::time::Instant;

use serde::Serialize;

use super::types;
use tallyhook_aws::store::items::Key;
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_aws::stripe::{Cursor, EventFilter, MAX_TYPES, Object, Stripe, StripeError};
use tallyhook_core::event::EventType;
use tallyhook_core::timestamp::Timestamp;

/// The most events that are listed; the counts include all.
const MAX_LISTED: usize = 200;

/// Stripe's events in a time range, compared with our log.
///
/// ```json
/// {"from":1767600000,"until":1767686400,"listed":120,"held":118,"complete":true,
///  "missing":[{"id":"evt_1","type":"invoice.paid","created":1767600100}]}
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Gap {
    /// The start of the range.
    pub from: Timestamp,
    /// The end of the range, exclusive.
    pub until: Timestamp,
    /// Events of our types that Stripe lists, delivered or not.
    pub listed: u64,
    /// How many of these events our log has, with any outcome.
    pub held: u64,
    /// The events that our log does not have, newest first, at most 200.
    pub missing: Vec<MissingEvent>,
    /// Whether all events were read before the deadline.
    pub complete: bool,
}

/// An event that our log does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingEvent {
    /// `evt_…`
    pub id: String,
    /// Stripe's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// When the event was created at Stripe.
    pub created: Timestamp,
}

/// Why the comparison failed.
#[derive(Debug, thiserror::Error)]
pub enum GapError {
    /// Stripe did not answer.
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// The event log could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Compares Stripe's list of events with our log. Writes nothing.
///
/// # Errors
/// [`GapError`].
pub async fn gap(
    stripe: &Stripe,
    store: &Store,
    from: Timestamp,
    until: Timestamp,
    deadline: Option<Instant>,
) -> Result<Gap, GapError> {
    let mut gap = Gap { from, until, listed: 0, held: 0, missing: Vec::new(), complete: true };
    for chunk in 0..EventType::KNOWN.len().div_ceil(MAX_TYPES) {
        let filter =
            EventFilter { types: types(chunk), undelivered: false, from: Some(from), until: Some(until) };
        let mut cursor = Cursor::Newest;
        loop {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                gap.complete = false;
                return Ok(gap);
            }
            let page = stripe.events(&filter, &cursor).await?;
            let key = |object: &Object| Some(Key::Event(object.id()?.to_owned()));
            let known = store.load(page.objects.iter().filter_map(key)).await?;
            for object in &page.objects {
                gap.listed += 1;
                if key(object).is_some_and(|key| known.contains_key(&key)) {
                    gap.held += 1;
                } else if gap.missing.len() < MAX_LISTED {
                    let value = object.value();
                    gap.missing.push(MissingEvent {
                        id: object.id().unwrap_or_default().to_owned(),
                        kind: value["type"].as_str().unwrap_or_default().to_owned(),
                        created: Timestamp::from_unix(value["created"].as_i64().unwrap_or_default()),
                    });
                }
            }
            match page.last_id() {
                Some(last) if page.has_more => cursor = Cursor::After(last.to_owned()),
                Some(_) | None => break,
            }
        }
    }
    Ok(gap)
}
