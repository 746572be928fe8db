//! The item of a hold, in the events table, where items expire.

use super::{Condition, Item, Key, StoreError, Write, new_item, number, read_number};
use tallyhook_core::account::holds::HOLD_DAYS;
use tallyhook_core::account::lots::Hold;
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::{HoldId, UserId};
use tallyhook_core::timestamp::Timestamp;

/// A hold as it was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownHold {
    /// Amount and end.
    pub hold: Hold,
    /// The requested duration.
    pub ttl_seconds: u32,
    /// The available credits after it was created.
    pub available: Credits,
}

/// The key of a hold's item.
pub fn hold_key(user: &UserId, id: &HoldId) -> Key {
    Key::Event(format!("hold#{id}#{user}"))
}

/// Writes a new hold, on condition that there is none with its id:
///
/// ```json
/// {"pk":"hold#hold_5f…#user_123","amount":100,"ttl_seconds":900,"until":1767600900,"available":4900,
///  "expires_at":1768205700}
/// ```
pub fn hold(user: &UserId, id: &HoldId, known: &KnownHold) -> Write {
    let key = hold_key(user, id);
    let mut item = new_item(&key);
    let until = known.hold.until;
    item.extend([
        ("amount".to_owned(), number(known.hold.amount)),
        ("ttl_seconds".to_owned(), number(known.ttl_seconds)),
        ("until".to_owned(), number(until.unix())),
        ("available".to_owned(), number(known.available)),
        ("expires_at".to_owned(), number(until.plus_days(HOLD_DAYS).unix())),
    ]);
    Write { key, item: Some(item), condition: Condition::Absent }
}

/// Reads a hold.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub fn read_hold(key: &Key, item: &Item) -> Result<KnownHold, StoreError> {
    let need = |name: &str| read_number(item, name).ok_or_else(|| key.corrupt(format!("no {name}")));
    let until = read_number(item, "until").ok_or_else(|| key.corrupt("no until"))?;
    let ttl_seconds = read_number(item, "ttl_seconds").ok_or_else(|| key.corrupt("no ttl_seconds"))?;
    Ok(KnownHold {
        hold: Hold { amount: Credits::new(need("amount")?), until: Timestamp::from_unix(until) },
        ttl_seconds,
        available: Credits::new(need("available")?),
    })
}
