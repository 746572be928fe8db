//! Dismissing an open event, and opening a dismissed one again.
//!
//! A dismissed event keeps its body. No schedule reads its partition of `by_status`, and a redelivery of it
//! is a duplicate.

use std::collections::BTreeSet;

use tallyhook_core::timestamp::Timestamp;

use super::items::{self, Dismissal, EVENT_DAYS, EventState, Item, Key};
use super::log::{self, Range};
use super::notes::{number, send, text};
use super::{Store, StoreError};

/// Dismissed events that are read of each partition, newest first.
const MAX_READ: i32 = 500;

impl Store {
    /// The Stripe objects of the newest dismissed events: the object that each event is about.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn dismissed_objects(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut keys = Vec::new();
        for partition in log::open_partitions(EventState::Dismissed.as_str()) {
            let range = Range {
                index: "by_status",
                partition: &partition,
                from: 0,
                to: i64::MAX,
                newest_first: true,
            };
            let (found, _) = self.query(&range, Some(MAX_READ), None).await?;
            keys.extend(found.iter().filter_map(|item| items::read_text(item, "pk")).map(Key::Event));
        }
        let events = self.load(keys).await?;
        Ok(events.values().filter_map(|item| items::read_objects(item).into_iter().next()).collect())
    }

    /// Dismisses an event that is parked or failed. `false` when it is neither.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn dismiss(&self, key: &Key, item: &Item, dismissal: &Dismissal) -> Result<bool, StoreError> {
        let digest = item.get("digest").and_then(|digest| digest.as_b().ok());
        let digest = digest.map_or(&[][..], |digest| digest.as_ref());
        let dismissed = EventState::Dismissed.as_str();
        let expires = Timestamp::from_unix(dismissal.at_ms.div_euclid(1000)).plus_days(EVENT_DAYS).unix();
        // `open` is a reserved word.
        let request = self
            .update(key)
            .update_expression(
                "SET outcome = :dismissed, dismissed_from = outcome, dismissed_by = :actor, \
                 dismissed_reason = :reason, dismissed_at = :at, finished = :at, expires_at = :expires, \
                 #open = :open REMOVE due",
            )
            .condition_expression("outcome IN (:parked, :failed)")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":dismissed", text(dismissed))
            .expression_attribute_values(":actor", text(&dismissal.actor))
            .expression_attribute_values(":reason", text(&dismissal.reason))
            .expression_attribute_values(":at", number(dismissal.at_ms))
            .expression_attribute_values(":expires", number(expires))
            .expression_attribute_values(":open", text(&items::open_partition(dismissed, digest)))
            .expression_attribute_values(":parked", text(EventState::Parked.as_str()))
            .expression_attribute_values(":failed", text(EventState::Failed.as_str()));
        send(request).await
    }

    /// Gives a dismissed event the outcome that it had before. `false` when it is not dismissed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reopen(&self, key: &Key, item: &Item, now: Timestamp) -> Result<bool, StoreError> {
        let Some(outcome) = items::read_text(item, "dismissed_from") else { return Ok(false) };
        let digest = item.get("digest").and_then(|digest| digest.as_b().ok());
        let digest = digest.map_or(&[][..], |digest| digest.as_ref());
        let redrives = items::read_number(item, "redrives").unwrap_or(0);
        let due = now.plus_seconds(items::redrive_pause_seconds(redrives)).unix().saturating_mul(1000);
        let request = self
            .update(key)
            .update_expression(
                "SET outcome = :outcome, #open = :open, due = :due \
                 REMOVE dismissed_from, dismissed_by, dismissed_reason, dismissed_at",
            )
            .condition_expression("outcome = :dismissed")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":outcome", text(&outcome))
            .expression_attribute_values(":open", text(&items::open_partition(&outcome, digest)))
            .expression_attribute_values(":due", number(due))
            .expression_attribute_values(":dismissed", text(EventState::Dismissed.as_str()));
        send(request).await
    }
}
