//! What comes back: objects as Stripe wrote them, and pages of them.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use tallyhook_core::timestamp::Timestamp;

/// One object, its text untouched: an event must keep the bytes that it is told by, and one odd object must
/// not spoil its page.
#[derive(Clone, Debug)]
pub struct Object {
    text: Box<RawValue>,
    id: Option<String>,
    /// Stripe's clock when it answered, where the answer said.
    pub read_at: Option<Timestamp>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The objects, newest first; with [`Cursor::Before`] too, within the page.
    pub objects: Vec<Object>,
    /// Whether the list goes on in the direction that was asked for.
    pub has_more: bool,
}

/// Where a page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cursor {
    /// With the newest object.
    #[default]
    Newest,
    /// With the next older object than this one.
    After(String),
    /// With the objects that are just newer than this one.
    Before(String),
}

impl Cursor {
    /// After this object; from the start without one.
    pub fn after(id: Option<&str>) -> Self {
        id.map_or(Self::Newest, |id| Self::After(id.to_owned()))
    }
}

impl Object {
    pub(super) fn new(text: Box<RawValue>, read_at: Option<Timestamp>) -> Self {
        #[derive(Deserialize)]
        struct Id {
            id: Option<String>,
        }
        let id = serde_json::from_str::<Id>(text.get()).ok().and_then(|object| object.id);
        Self { text, id, read_at }
    }

    /// An object that is known from elsewhere: from an event.
    pub fn of(value: &Value) -> Option<Self> {
        let text = serde_json::value::to_raw_value(value).ok().filter(|_| value.is_object())?;
        Some(Self::new(text, None))
    }

    /// Its id; absent in what is no object of Stripe's.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The JSON as Stripe wrote it.
    pub fn text(&self) -> &str {
        self.text.get()
    }

    /// The JSON, read.
    pub fn value(&self) -> Value {
        serde_json::from_str(self.text.get()).unwrap_or(Value::Null)
    }
}

impl Page {
    /// The id to continue after.
    pub fn last_id(&self) -> Option<&str> {
        self.objects.iter().rev().find_map(Object::id)
    }
}
