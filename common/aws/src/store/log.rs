//! Lists the event log in pages, newest first.
//!
//! | filter | source |
//! |---|---|
//! | an id | the item |
//! | `parked`, `failed` or `dismissed` | index `by_status`: its partitions, merged |
//! | a user | the user's open events from `by_status`, then the linked list of the user's events |
//! | anything else | index `by_day`, one day at a time: the partitions of one or all families |
//! | no type, many days | the whole index `by_day` if it is small, in one read; else one day at a time |
//!
//! The linked list starts at the account's last event and follows `previous`, one item per read. It costs no
//! extra write; an index by user would cost one write unit more for each event.
//!
//! **Invariant:** a page continues the one before without a gap, also among events of the same millisecond.

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

/// The maximum number of events in one page.
pub const MAX_LISTED: usize = 200;
/// Partitions of `by_day` read in one request: a month of one family, four days of all. A page that is not
/// full by then has a cursor for the next day.
const MAX_PARTITIONS: usize = 31 * 4;
/// Entries of `by_day` that are read at once. The index of a quiet deployment has fewer, and its days are
/// mostly empty: a walk over them would take a thousand queries.
const MAX_SCANNED: i32 = 1000;
/// Events of a user's linked list that are read in one request.
const MAX_STEPS: usize = 400;
/// How many days back a list goes. Events expire 90 days after they finished, and an event may have waited
/// before that.
const OLDEST_DAYS: i64 = 120;
/// The clock of the machine that received an event may be ahead of ours by this.
const MAX_CLOCK_SKEW_SECONDS: i64 = 300;
const DAY_MS: i64 = 86_400_000;

/// Which events to list. `None` accepts any value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `processed`, `ignored`, `parked`, `failed` or `dismissed`. `duplicate` matches nothing: a duplicate
    /// writes no item.
    pub status: Option<String>,
    /// Stripe's event type.
    pub kind: Option<String>,
    /// The user.
    pub user: Option<UserId>,
    /// Received at or after this unix ms.
    pub from_ms: Option<i64>,
    /// Received before this unix ms.
    pub to_ms: Option<i64>,
}

impl Filter {
    /// Whether an event matches the filter.
    pub fn takes(&self, record: &LogRecord) -> bool {
        self.status.as_ref().is_none_or(|status| *status == record.status)
            && self.kind.as_ref().is_none_or(|kind| *kind == record.kind)
            && self.user.as_ref().is_none_or(|user| record.user_id.as_deref() == Some(user.as_str()))
            && self.from_ms.is_none_or(|from| record.received_ms >= from)
            && self.to_ms.is_none_or(|to| record.received_ms < to)
    }
}

/// An event or job of the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// `evt_…`
    pub id: String,
    /// Stripe's event type.
    pub kind: String,
    /// Its outcome.
    pub status: String,
    /// The reason code of the outcome.
    pub reason: Option<String>,
    /// The user, if known.
    pub user_id: Option<String>,
    /// The key that the parked event waits for.
    pub waits_for: Option<String>,
    /// Number of attempts.
    pub attempts: u32,
    /// How often `retry` sent it to its queue again.
    pub redrives: u32,
    /// When Stripe created it.
    pub created: Timestamp,
    /// When we received it, unix ms.
    pub received_ms: i64,
    /// When it ended, unix ms.
    pub finished_ms: i64,
    /// When `retry` sends it again, unix ms. Only parked and failed events have it.
    pub due_ms: Option<i64>,
}

impl LogRecord {
    /// Reads an item of the events table or of one of its indexes.
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
pub struct LogPage {
    /// Newest first.
    pub events: Vec<LogRecord>,
    /// The cursor of the next page; `None` at the end. A page with fewer events than `limit` may still not be
    /// the last.
    pub next: Option<String>,
}

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The cursor does not come from a page of the same query.
    #[error("next must be what the last page of the same query gave")]
    Cursor,
    /// A read failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where a page begins. Its text form is base64 of a letter for the variant and the variant's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cursor {
    /// After the event with this `received` time and id.
    After(i64, String),
    /// At this event of a user's linked list.
    UserEvent(EventId),
}

impl Cursor {
    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(match self {
            Self::After(ms, id) => format!("t{ms} {id}"),
            Self::UserEvent(id) => format!("u{id}"),
        })
    }

    fn read(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        if let Some(id) = text.strip_prefix('u') {
            return Some(Self::UserEvent(EventId::new(id).ok()?));
        }
        let (ms, id) = text.strip_prefix('t')?.split_once(' ')?;
        Some(Self::After(ms.parse().ok()?, id.to_owned()))
    }
}

/// Reads one page of the events that match a filter.
///
/// # Errors
/// [`ListError`].
pub async fn list(
    store: &Store,
    filter: &Filter,
    limit: usize,
    next: Option<&str>,
    now: Timestamp,
) -> Result<LogPage, ListError> {
    let limit = limit.clamp(1, MAX_LISTED);
    let cursor = next.map(|text| Cursor::read(text).ok_or(ListError::Cursor)).transpose()?;
    let open = matches!(filter.status.as_deref(), Some("parked" | "failed" | "dismissed"));
    match (&filter.user, cursor) {
        (Some(user), Some(Cursor::UserEvent(id))) if !open => {
            Ok(of_user(store, user, filter, limit, Some(id)).await?)
        }
        (Some(user), None) if !open => Ok(of_user(store, user, filter, limit, None).await?),
        (Some(_), Some(_)) if !open => Err(ListError::Cursor),
        (_, Some(Cursor::UserEvent(_))) => Err(ListError::Cursor),
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
) -> Result<LogPage, StoreError> {
    let status = filter.status.as_deref();
    let from = filter.from_ms.unwrap_or_else(|| now.plus_days(-OLDEST_DAYS).unix().saturating_mul(1000));
    let to = filter
        .to_ms
        .map_or(i64::MAX, |to| to.saturating_sub(1))
        .min(before.0)
        .min(now.plus_seconds(MAX_CLOCK_SKEW_SECONDS).unix().saturating_mul(1000));
    let mut found: Vec<LogRecord> = Vec::new();
    let mut next = None;
    if let Some(state @ ("parked" | "failed" | "dismissed")) = status {
        found = merged(store, "by_status", open_partitions(state), filter, (from, to), &before, limit + 1)
            .await?;
    } else if status != Some("duplicate") {
        let family =
            filter.kind.as_deref().map(|kind| EventType::from(kind).family().map_or("other", Family::as_str));
        let mut begins = to.div_euclid(DAY_MS) * DAY_MS;
        let partitions = day_partitions("", family).len();
        let days = (begins - from) / DAY_MS;
        if usize::try_from(days).is_ok_and(|days| family.is_none() && days * partitions > MAX_PARTITIONS)
            && let Some(mut all) = store.small_log().await?
        {
            all.retain(|record| {
                filter.takes(record)
                    && (from..=to).contains(&record.received_ms)
                    && record.order() < (before.0, before.1.as_str())
            });
            all.sort_by(|a, b| b.order().cmp(&a.order()));
            (found, begins) = (all, from - DAY_MS);
        }
        for looked in 1.. {
            if begins + DAY_MS <= from || found.len() > limit {
                break;
            }
            if looked * partitions > MAX_PARTITIONS {
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
    Ok(LogPage { events: found, next: next.map(|next| next.text()) })
}

/// The newest events of these partitions, newest first. Has at least `limit` events if they exist.
async fn merged(
    store: &Store,
    index: &str,
    partitions: Vec<String>,
    filter: &Filter,
    range: (i64, i64),
    before: &(i64, String),
    limit: usize,
) -> Result<Vec<LogRecord>, StoreError> {
    let each =
        partitions.into_iter().map(|partition| newest(store, index, partition, filter, range, before, limit));
    let mut all = Vec::new();
    for records in join_all(each).await {
        all.extend(records?);
    }
    all.sort_by(|a: &LogRecord, b: &LogRecord| b.order().cmp(&a.order()));
    Ok(all)
}

/// The newest events of one partition. DynamoDB does not define the order of entries with the same time, so
/// all entries of the last millisecond are read.
async fn newest(
    store: &Store,
    index: &str,
    partition: String,
    filter: &Filter,
    (from, to): (i64, i64),
    before: &(i64, String),
    limit: usize,
) -> Result<Vec<LogRecord>, StoreError> {
    let mut found: Vec<LogRecord> = Vec::new();
    let mut start = None;
    loop {
        let range = Range { index, partition: &partition, from, to, newest_first: true };
        let (items, more) = store.query(&range, i32::try_from(limit.max(100)).ok(), start).await?;
        let records = items.iter().filter_map(LogRecord::read);
        found.extend(
            records.filter(|record| filter.takes(record) && record.order() < (before.0, before.1.as_str())),
        );
        found.sort_by_key(|record| Reverse((record.received_ms, record.id.clone())));
        let Some(more) = more else { return Ok(found) };
        let reached: Option<i64> = items::read_number(&more, "seen");
        if found.get(limit - 1).is_some_and(|last| reached.is_some_and(|reached| reached < last.received_ms))
        {
            return Ok(found);
        }
        start = Some(more);
    }
}

/// The user's open events, then the user's linked list. The first page has all open events and up to `limit`
/// others.
async fn of_user(
    store: &Store,
    user: &UserId,
    filter: &Filter,
    limit: usize,
    start: Option<EventId>,
) -> Result<LogPage, StoreError> {
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
                MAX_LISTED,
            )
            .await?;
            events.truncate(MAX_LISTED);
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
    for _ in 0..MAX_STEPS {
        let Some(id) = next.take_if(|_| events.len() < first + limit) else { break };
        let key = Key::event(&id);
        let items = store.load([key.clone()]).await?;
        // The rest of the list has expired.
        let Some(item) = items.get(&key) else { break };
        next = items::read_text(item, "previous").and_then(|previous| EventId::new(previous).ok());
        // Without a status filter, open events are already at the start of the first page.
        let shown = |record: &LogRecord| {
            filter.takes(record)
                && (filter.status.is_some() || !matches!(record.status.as_str(), "parked" | "failed"))
        };
        events.extend(LogRecord::read(item).filter(shown));
    }
    Ok(LogPage { events, next: next.map(|id| Cursor::UserEvent(id).text()) })
}

/// A time range of one index partition.
#[derive(Clone, Copy, Debug)]
pub struct Range<'a> {
    /// `by_day` or `by_status`.
    pub index: &'a str,
    /// The partition.
    pub partition: &'a str,
    /// First unix ms.
    pub from: i64,
    /// Last unix ms (included).
    pub to: i64,
    /// Whether the newest entries come first.
    pub newest_first: bool,
}

impl Store {
    /// Every event of the index `by_day`, in no order. `None` if one read does not reach the end.
    async fn small_log(&self) -> Result<Option<Vec<LogRecord>>, StoreError> {
        let answer = self
            .client
            .scan()
            .table_name(self.table(Table::Events))
            .index_name("by_day")
            .limit(MAX_SCANNED)
            .send()
            .await
            .map_err(|error| super::failed("Scan", &error))?;
        if answer.last_evaluated_key().is_some_and(|key| !key.is_empty()) {
            return Ok(None);
        }
        // The audit is in the same index.
        let is_event =
            |item: &&Item| items::read_text(item, "pk").is_some_and(|id| items::is_event(id.as_str()));
        Ok(Some(answer.items().iter().filter(is_event).filter_map(LogRecord::read).collect()))
    }

    /// One page of an index of the events table, and the start of the next page. Indexes are eventually
    /// consistent: never decide from them.
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
    fn a_cursor_is_read_back_and_other_texts_are_refused() {
        for cursor in [
            Cursor::After(1_763_000_000_123, "evt_1~ab".to_owned()),
            Cursor::UserEvent(EventId::new("evt_1").unwrap()),
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
    fn a_day_has_four_partitions_for_each_family() {
        assert_eq!(items::day(1_795_219_200_000), "2026-11-21");
        assert_eq!(day_partitions("2026-11-21", None).len(), 8 * 4);
        assert_eq!(day_partitions("2026-11-21", Some("other"))[3], "2026-11-21#other#3");
    }
}
