//! Answers of Stripe's API: objects, and pages of objects.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use tallyhook_core::timestamp::Timestamp;

/// One object with its original JSON text. An event must keep its exact bytes, and one unexpected object must
/// not make the rest of its page unreadable.
#[derive(Clone, Debug)]
pub struct Object {
    text: Box<RawValue>,
    id: Option<String>,
    /// When the request began, by Stripe's clock; `None` without a `Date` header. What changes while Stripe
    /// answers may not be in the answer, so the answer says nothing about a later time.
    pub read_at: Option<Timestamp>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct ListPage {
    /// The objects, newest first. This order also holds inside a page read with [`Cursor::Before`].
    pub objects: Vec<Object>,
    /// Whether the list has more objects in the requested direction.
    pub has_more: bool,
}

/// Where a page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cursor {
    /// With the newest object.
    #[default]
    Newest,
    /// With the next object that is older than this one.
    After(String),
    /// With the objects that are next newer than this one.
    Before(String),
}

impl Cursor {
    /// The page after this object; the first page when `id` is `None`.
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

    /// Wraps an object that was not read from the API, such as the object of an event.
    pub fn of(value: &Value) -> Option<Self> {
        let text = serde_json::value::to_raw_value(value).ok().filter(|_| value.is_object())?;
        Some(Self::new(text, None))
    }

    /// Its id, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The JSON as Stripe wrote it.
    pub fn text(&self) -> &str {
        self.text.get()
    }

    /// The parsed JSON.
    pub fn value(&self) -> Value {
        serde_json::from_str(self.text.get()).unwrap_or(Value::Null)
    }
}

impl ListPage {
    /// The id after which the next page begins.
    pub fn last_id(&self) -> Option<&str> {
        self.objects.iter().rev().find_map(Object::id)
    }
}
