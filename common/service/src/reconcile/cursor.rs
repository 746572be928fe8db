//! Where a run stopped, so that the next one goes on: one item of the events table, there only while a run is
//! unfinished ([`items::reconcile_place`]).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Pass;
use tallyhook_aws::store::items;
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::timestamp::Timestamp;

/// A run that stopped longer ago is not gone on with: what it had looked at is old.
const GOOD_FOR_SECONDS: i64 = 86_400;

/// A place in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// When the run began.
    pub started: Timestamp,
    pub pass: Pass,
    /// The last thing that was done.
    pub after: Option<String>,
}

impl Place {
    /// For a report: opaque to whoever carries it.
    pub(super) fn text(&self) -> String {
        let after = self.after.as_ref().map_or_else(String::new, |after| format!(" {after}"));
        URL_SAFE_NO_PAD.encode(format!("{} {}{after}", self.started.unix(), self.pass.name()))
    }

    /// Back from a report.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = text.splitn(3, ' ');
        let started = Timestamp::from_unix(parts.next()?.parse().ok()?);
        let pass = Pass::from_name(parts.next()?)?;
        Some(Self { started, pass, after: parts.next().map(str::to_owned) })
    }
}

/// Where the last run stopped, if it did.
pub(super) async fn load(store: &Store, now: Timestamp) -> Result<Option<Place>, StoreError> {
    let key = items::reconcile_place_key();
    let items = store.load([key.clone()]).await?;
    let Some(item) = items.get(&key) else { return Ok(None) };
    let started = items::read_number(item, "started").map(Timestamp::from_unix);
    let place = started.zip(items::read_text(item, "pass").and_then(|pass| Pass::from_name(&pass)));
    let fresh = |started: &Timestamp| now.seconds_since(*started) < GOOD_FOR_SECONDS;
    Ok(place.filter(|(started, _)| fresh(started)).map(|(started, pass)| Place {
        started,
        pass,
        after: items::read_text(item, "after"),
    }))
}

/// Remembers a place.
pub(super) async fn save(store: &Store, place: &Place) -> Result<(), StoreError> {
    let expires = place.started.plus_seconds(GOOD_FOR_SECONDS);
    let write = items::reconcile_place(place.started, place.pass.name(), place.after.clone(), expires);
    store.commit(vec![write]).await
}

/// Forgets it: the run came to its end.
pub(super) async fn clear(store: &Store) -> Result<(), StoreError> {
    store.delete(&items::reconcile_place_key()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_from_a_report_and_anything_else_is_refused() {
        for (pass, after) in [(Pass::Invoices, None), (Pass::Accounts, Some("user#a b\naccount".to_owned()))]
        {
            let place = Place { started: Timestamp::from_unix(1_767_600_000), pass, after };
            assert_eq!(Place::from_text(&place.text()), Some(place));
        }
        for text in ["", "x", "MTc2NyBub25l"] {
            assert_eq!(Place::from_text(text), None, "{text}");
        }
    }
}
