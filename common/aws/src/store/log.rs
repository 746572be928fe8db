//! Listing the event log: newest first, in pages.
//!
//! | asked for | read from |
//! |---|---|
//! | an id | the item |
//! | `parked` or `failed` | index `by_status`, its few partitions merged: it holds only what is open |
//! | a time, a type, anything else | index `by_day`, a day at a time: the partitions of its families (of one, where the type tells) merged |
//! | a user | what is open of the user's from `by_status`; then the list that each event's `previous` makes, beginning at the account |
//!
//! The list by user is free: an index by user would be one write unit more for every event. It is read an
//! item at a time, as an operator reads it. **Invariant:** a page follows the last one without a gap, also
//! among events of one millisecond.

use std::cmp::Reverse;

use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;

use super::items::{self, Item, Key, SHARDS, Table};
use super::{Store, StoreError};
use tallyhook_core::event::{EventType, Family};
use tallyhook_core::ids::{EventId, UserId};
use tallyhook_core::timestamp::Timestamp;

/// The most events of one page.
pub const MOST_LISTED: usize = 200;
/// One request looks at so many days; a page that is not full by then says where to go on.
const MOST_DAYS: usize = 31;
/// One request follows a user's list so far.
const MOST_STEPS: usize = 400;
/// Nothing older than this is looked for: events expire after 90 days, and one that waited long may have come
/// before.
const OLDEST_DAYS: i64 = 120;
/// The clock that received an event may be ahead of the one that lists it.
const CLOCKS_APART_SECONDS: i64 = 300;
const DAY_MS: i64 = 86_400_000;

/// Which events. All that is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `processed`, `ignored`, `parked`, `failed` (or `duplicate`, which writes nothing, so there are none).
    pub status: Option<String>,
    /// Stripe's type.
    pub kind: Option<String>,
    /// Whose.
    pub user: Option<UserId>,
    /// Received at or after, unix ms.
    pub from_ms: Option<i64>,
    /// Received before, unix ms.
    pub to_ms: Option<i64>,
}

impl Filter {
    /// Whether an event is one of those asked for.
    pub fn takes(&self, line: &Line) -> bool {
        self.status.as_ref().is_none_or(|status| *status == line.status)
            && self.kind.as_ref().is_none_or(|kind| *kind == line.kind)
            && self.user.as_ref().is_none_or(|user| line.user_id.as_deref() == Some(user.as_str()))
            && self.from_ms.is_none_or(|from| line.received_ms >= from)
            && self.to_ms.is_none_or(|to| line.received_ms < to)
    }
}

/// An event as the list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `evt_…`
    pub id: String,
    /// Stripe's type.
    pub kind: String,
    /// How it ended.
    pub status: String,
    /// Why.
    pub reason: Option<String>,
    /// Whose, as far as known.
    pub user_id: Option<String>,
    /// What would free it.
    pub waits_for: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// How often `retry` sent it again.
    pub redrives: u32,
    /// When Stripe made it.
    pub created: Timestamp,
    /// When we received it, unix ms.
    pub received_ms: i64,
    /// When it ended, unix ms.
    pub finished_ms: i64,
    /// When `retry` sends it again, unix ms; only while parked or failed.
    pub due_ms: Option<i64>,
}

impl Line {
    /// Reads an item of the table or of one of its indexes.
    pub fn read(item: &Item) -> Option<Self> {
        let text = |name: &str| items::read_text(item, name);
        Some(Self {
            id: text("pk")?,
            kind: text("type")?,
            status: text("outcome")?,
            reason: text("reason"),
            user_id: text("user_id"),
            waits_for: text("waits_for"),
            attempts: items::read_number(item, "attempts").unwrap_or(0),
            redrives: items::read_number(item, "redrives").unwrap_or(0),
            created: Timestamp::from_unix(items::read_number(item, "created")?),
            received_ms: items::read_number(item, "seen")?,
            finished_ms: items::read_number(item, "finished")?,
            due_ms: items::read_number(item, "due"),
        })
    }

    fn order(&self) -> (i64, &str) {
        (self.received_ms, &self.id)
    }
}

/// A page of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Newest first.
    pub events: Vec<Line>,
    /// Where the next page begins; `None` at the end. A page may have fewer events than asked for and still
    /// not be the last.
    pub next: Option<String>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The cursor is none that a page of this query gave.
    #[error("next must be what the last page of the same query gave")]
    Cursor,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where a page begins. As text it is opaque: base64 of the variant's letter and its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cursor {
    /// After this time and id.
    After(i64, String),
    /// At this event of the user's list.
    Of(EventId),
}

impl Cursor {
    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(match self {
            Self::After(ms, id) => format!("t{ms} {id}"),
            Self::Of(id) => format!("u{id}"),
        })
    }

    fn read(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        if let Some(id) = text.strip_prefix('u') {
            return Some(Self::Of(EventId::new(id).ok()?));
        }
        let (ms, id) = text.strip_prefix('t')?.split_once(' ')?;
        Some(Self::After(ms.parse().ok()?, id.to_owned()))
    }
}

/// A page of the events that a filter takes.
///
/// # Errors
/// [`ListError`].
pub async fn list(
    store: &Store,
    filter: &Filter,
    limit: usize,
    next: Option<&str>,
    now: Timestamp,
) -> Result<Page, ListError> {
    let limit = limit.clamp(1, MOST_LISTED);
    let cursor = next.map(|text| Cursor::read(text).ok_or(ListError::Cursor)).transpose()?;
    let open = matches!(filter.status.as_deref(), Some("parked" | "failed"));
    match (&filter.user, cursor) {
        (Some(user), Some(Cursor::Of(id))) if !open => {
            Ok(of_user(store, user, filter, limit, Some(id)).await?)
        }
        (Some(user), None) if !open => Ok(of_user(store, user, filter, limit, None).await?),
        (Some(_), Some(_)) if !open => Err(ListError::Cursor),
        (_, Some(Cursor::Of(_))) => Err(ListError::Cursor),
        (_, Some(Cursor::After(ms, id))) => Ok(by_time(store, filter, limit, (ms, id), now).await?),
        (_, None) => Ok(by_time(store, filter, limit, (i64::MAX, String::new()), now).await?),
    }
}

/// The partitions of `by_status` for one state.
pub fn open_partitions(state: &str) -> Vec<String> {
    (0..SHARDS).map(|shard| format!("{state}#{shard}")).collect()
}

/// The partitions of `by_day` for one day, `2026-11-21`, and one family or all.
pub fn day_partitions(day: &str, family: Option<&str>) -> Vec<String> {
    let all = Family::ALL.iter().map(|family| family.as_str()).chain(["other"]);
    let families = all.filter(|name| family.is_none_or(|family| family == *name));
    families.flat_map(|family| (0..SHARDS).map(move |shard| format!("{day}#{family}#{shard}"))).collect()
}

async fn by_time(
    store: &Store,
    filter: &Filter,
    limit: usize,
    before: (i64, String),
    now: Timestamp,
) -> Result<Page, StoreError> {
    let status = filter.status.as_deref();
    let from = filter.from_ms.unwrap_or_else(|| now.plus_days(-OLDEST_DAYS).unix().saturating_mul(1000));
    let to = filter
        .to_ms
        .map_or(i64::MAX, |to| to.saturating_sub(1))
        .min(before.0)
        .min(now.plus_seconds(CLOCKS_APART_SECONDS).unix().saturating_mul(1000));
    let mut found: Vec<Line> = Vec::new();
    let mut next = None;
    if let Some(state @ ("parked" | "failed")) = status {
        found = merged(store, "by_status", open_partitions(state), filter, (from, to), &before, limit + 1)
            .await?;
    } else if status != Some("duplicate") {
        let family =
            filter.kind.as_deref().map(|kind| EventType::from(kind).family().map_or("other", Family::as_str));
        let mut begins = to.div_euclid(DAY_MS) * DAY_MS;
        for looked in 1.. {
            if begins + DAY_MS <= from || found.len() > limit {
                break;
            }
            if looked > MOST_DAYS {
                next = Some(Cursor::After(begins + DAY_MS, String::new()));
                break;
            }
            let range = (from.max(begins), to.min(begins + DAY_MS - 1));
            found.extend(
                merged(
                    store,
                    "by_day",
                    day_partitions(&items::day(begins), family),
                    filter,
                    range,
                    &before,
                    limit + 1,
                )
                .await?,
            );
            begins -= DAY_MS;
        }
    }
    if found.len() > limit {
        found.truncate(limit);
        next = found.last().map(|last| Cursor::After(last.received_ms, last.id.clone()));
    }
    Ok(Page { events: found, next: next.map(|next| next.text()) })
}

/// The newest events of some partitions, in order, at least `limit` of them if there are so many.
async fn merged(
    store: &Store,
    index: &str,
    partitions: Vec<String>,
    filter: &Filter,
    range: (i64, i64),
    before: &(i64, String),
    limit: usize,
) -> Result<Vec<Line>, StoreError> {
    let each =
        partitions.into_iter().map(|partition| newest(store, index, partition, filter, range, before, limit));
    let mut all = Vec::new();
    for lines in join_all(each).await {
        all.extend(lines?);
    }
    all.sort_by(|a: &Line, b: &Line| b.order().cmp(&a.order()));
    Ok(all)
}

/// The newest events of one partition. DynamoDB leaves the order within one millisecond open, so reading
/// stops only behind a whole one.
async fn newest(
    store: &Store,
    index: &str,
    partition: String,
    filter: &Filter,
    (from, to): (i64, i64),
    before: &(i64, String),
    limit: usize,
) -> Result<Vec<Line>, StoreError> {
    let mut found: Vec<Line> = Vec::new();
    let mut start = None;
    loop {
        let range = Range { index, partition: &partition, from, to, newest_first: true };
        let (items, more) = store.query(&range, i32::try_from(limit.max(100)).ok(), start).await?;
        let lines = items.iter().filter_map(Line::read);
        found.extend(lines.filter(|line| filter.takes(line) && line.order() < (before.0, before.1.as_str())));
        found.sort_by_key(|line| Reverse((line.received_ms, line.id.clone())));
        let Some(more) = more else { return Ok(found) };
        let reached: Option<i64> = items::read_number(&more, "seen");
        if found.get(limit - 1).is_some_and(|last| reached.is_some_and(|reached| reached < last.received_ms))
        {
            return Ok(found);
        }
        start = Some(more);
    }
}

/// What is open of a user's, then the user's list. The open ones are on the first page, beyond its limit.
async fn of_user(
    store: &Store,
    user: &UserId,
    filter: &Filter,
    limit: usize,
    start: Option<EventId>,
) -> Result<Page, StoreError> {
    let mut events = Vec::new();
    let mut next = start;
    if next.is_none() {
        if filter.status.is_none() {
            let partitions = ["parked", "failed"].into_iter().flat_map(open_partitions).collect();
            events = merged(
                store,
                "by_status",
                partitions,
                filter,
                (0, i64::MAX),
                &(i64::MAX, String::new()),
                MOST_LISTED,
            )
            .await?;
            events.truncate(MOST_LISTED);
        }
        let key = Key::Account(user.clone());
        let account = store.load([key.clone()]).await?;
        next = account
            .get(&key)
            .map(|item| items::read_account(user, item))
            .transpose()?
            .and_then(|account| account.state.last_event);
    }
    let first = events.len();
    for _ in 0..MOST_STEPS {
        let Some(id) = next.take_if(|_| events.len() < first + limit) else { break };
        let key = Key::event(&id);
        let items = store.load([key.clone()]).await?;
        // The list ends where it has expired.
        let Some(item) = items.get(&key) else { break };
        next = items::read_text(item, "previous").and_then(|previous| EventId::new(previous).ok());
        // An open one was shown first, unless the filter asks for a state.
        let shown = |line: &Line| {
            filter.takes(line)
                && (filter.status.is_some() || !matches!(line.status.as_str(), "parked" | "failed"))
        };
        events.extend(Line::read(item).filter(shown));
    }
    Ok(Page { events, next: next.map(|id| Cursor::Of(id).text()) })
}

/// A part of one partition of an index.
#[derive(Clone, Copy, Debug)]
pub struct Range<'a> {
    /// `by_day` or `by_status`.
    pub index: &'a str,
    /// The partition.
    pub partition: &'a str,
    /// From this unix ms.
    pub from: i64,
    /// To this unix ms, included.
    pub to: i64,
    /// In which direction.
    pub newest_first: bool,
}

impl Store {
    /// One page of an index of the events table, and where the next begins. Indexes lag behind by moments:
    /// nothing is decided from them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn query(
        &self,
        range: &Range<'_>,
        limit: Option<i32>,
        start: Option<Item>,
    ) -> Result<(Vec<Item>, Option<Item>), StoreError> {
        let partition = if range.index == "by_day" { "day" } else { "open" };
        let number = |ms: i64| AttributeValue::N(ms.to_string());
        let answer = self
            .client
            .query()
            .table_name(self.table(Table::Events))
            .index_name(range.index)
            .key_condition_expression("#partition = :partition AND seen BETWEEN :from AND :to")
            .expression_attribute_names("#partition", partition)
            .expression_attribute_values(":partition", AttributeValue::S(range.partition.to_owned()))
            .expression_attribute_values(":from", number(range.from))
            .expression_attribute_values(":to", number(range.to.max(range.from)))
            .scan_index_forward(!range.newest_first)
            .set_limit(limit)
            .set_exclusive_start_key(start)
            .send()
            .await
            .map_err(|error| super::failed("Query", &error))?;
        Ok((answer.items.unwrap_or_default(), answer.last_evaluated_key.filter(|key| !key.is_empty())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_and_anything_else_is_refused() {
        for cursor in [
            Cursor::After(1_763_000_000_123, "evt_1~ab".to_owned()),
            Cursor::Of(EventId::new("evt_1").unwrap()),
        ] {
            assert_eq!(Cursor::read(&cursor.text()), Some(cursor));
        }
        for text in [
            "",
            "x",
            "dA",
            &URL_SAFE_NO_PAD.encode("t1"),
            &URL_SAFE_NO_PAD.encode("uin_1"),
            &URL_SAFE_NO_PAD.encode("tx evt_1"),
        ] {
            assert_eq!(Cursor::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_day_has_a_few_partitions_for_each_family_and_a_type_narrows_them_to_one() {
        assert_eq!(items::day(1_795_219_200_000), "2026-11-21");
        assert_eq!(day_partitions("2026-11-21", None).len(), 8 * 4);
        assert_eq!(day_partitions("2026-11-21", Some("other"))[3], "2026-11-21#other#3");
    }
}
