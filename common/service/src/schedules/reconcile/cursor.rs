//! The position at which a run stopped, so that the next run can continue. It is one item of the events
//! table, which exists only while a run is unfinished ([`items::reconcile_place`]).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Pass;
use tallyhook_aws::store::items;
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::timestamp::Timestamp;

/// An older position is ignored, because what the run read before it is out of date.
const MAX_AGE_SECONDS: i64 = 86_400;

/// A position in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunPosition {
    /// When the run began.
    pub started: Timestamp,
    pub pass: Pass,
    /// The id of the last object that was handled.
    pub after: Option<String>,
}

impl RunPosition {
    /// The position as an opaque text for a report.
    pub(super) fn text(&self) -> String {
        let after = self.after.as_ref().map_or_else(String::new, |after| format!(" {after}"));
        URL_SAFE_NO_PAD.encode(format!("{} {}{after}", self.started.unix(), self.pass.name()))
    }

    /// Reads the text of a report.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = text.splitn(3, ' ');
        let started = Timestamp::from_unix(parts.next()?.parse().ok()?);
        let pass = Pass::from_name(parts.next()?)?;
        Some(Self { started, pass, after: parts.next().map(str::to_owned) })
    }
}

/// The stored position of the last run, if it is unfinished.
pub(super) async fn load(store: &Store, now: Timestamp) -> Result<Option<RunPosition>, StoreError> {
    let key = items::reconcile_place_key();
    let items = store.load([key.clone()]).await?;
    let Some(item) = items.get(&key) else { return Ok(None) };
    let started = items::read_number(item, "started").map(Timestamp::from_unix);
    let position = started.zip(items::read_text(item, "pass").and_then(|pass| Pass::from_name(&pass)));
    let fresh = |started: &Timestamp| now.seconds_since(*started) < MAX_AGE_SECONDS;
    Ok(position.filter(|(started, _)| fresh(started)).map(|(started, pass)| RunPosition {
        started,
        pass,
        after: items::read_text(item, "after"),
    }))
}

/// Stores a position.
pub(super) async fn save(store: &Store, position: &RunPosition) -> Result<(), StoreError> {
    let expires = position.started.plus_seconds(MAX_AGE_SECONDS);
    let write =
        items::reconcile_place(position.started, position.pass.name(), position.after.clone(), expires);
    store.commit(vec![write]).await
}

/// Deletes the stored position, because the run is complete.
pub(super) async fn clear(store: &Store) -> Result<(), StoreError> {
    store.delete(&items::reconcile_place_key()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_from_its_text_and_any_other_text_is_refused() {
        for (pass, after) in [(Pass::History, None), (Pass::Accounts, Some("user#a b\naccount".to_owned()))] {
            let position = RunPosition { started: Timestamp::from_unix(1_767_600_000), pass, after };
            assert_eq!(RunPosition::from_text(&position.text()), Some(position));
        }
        for text in ["", "x", "MTc2NyBub25l"] {
            assert_eq!(RunPosition::from_text(text), None, "{text}");
        }
    }
}
