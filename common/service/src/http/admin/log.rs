//! The event log: lists, single events, counts, open events and what frees them, sending events again,
//! dismissing events.

use std::collections::{BTreeMap, BTreeSet};

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::{
    Admin, AdminToken, bad, deadline, limit, parameter, range_ms, seconds, short, stripe_failed, time,
    time_ms, user_id,
};
use crate::http::answer::{Problem, problem};
use crate::resend::redrive::RedriveOutcome;
use crate::resend::replay::{ReplayError, Replayer, Selection};
use tallyhook_aws::payload;
use tallyhook_aws::store::items::{self, Dismissal, Item, Key};
use tallyhook_aws::store::log::{self, Filter, ListError, LogRecord, Range};
use tallyhook_aws::stripe::EventFilter;
use tallyhook_core::advice::advice;
use tallyhook_core::event::EventType;
use tallyhook_core::ids::{EventId, UserId};

/// The default number of events on a page.
const PAGE: usize = 50;
/// Steps of a chart.
const MAX_STEPS: i64 = 400;
/// Days of a chart; each day needs 32 queries.
const MAX_DAYS: i64 = 31;
/// Pages of 500 events that are read of each partition of open events.
const MAX_OPEN_PAGES: usize = 10;
/// Examples of a group.
const EXAMPLES: usize = 5;
/// Events of Stripe that one request processes.
const MAX_REPLAYED: usize = 500;

/// The body of `POST /admin/stripe/retry-webhooks`. With `id`, sends that event. With a type, status or time,
/// sends every parked and failed event that matches, due or not. Without any of them, sends what is due, as
/// the schedule does.
/// ```json
/// {"id":"evt_1","actor":"ann","reason":"customer linked"}
/// {"type":"invoice.paid","status":"failed","from":"2026-11-20","to":"2026-11-21T12:00:00Z"}
/// {"source":"stripe","type":"invoice.paid","from":"2026-11-20","undelivered":true,"limit":200,
///  "next":"evt_9"}
/// ```
/// With `"source":"stripe"`, the events are read from Stripe, which keeps them for 30 days, and processed at
/// once, oldest first; an event that was applied is not applied again. The answer's `report` has `next` when
/// there are more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryRequest {
    /// `log` or `stripe`. Default: `log`.
    pub source: Option<String>,
    /// The id of one event.
    pub id: Option<String>,
    /// Stripe's event type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `parked` or `failed`. Default: both. Only for the log.
    pub status: Option<String>,
    /// Received (at Stripe: created) at or after this time.
    pub from: Option<String>,
    /// Received (at Stripe: created) before this time.
    pub to: Option<String>,
    /// Only events that an endpoint did not take. Only for Stripe.
    pub undelivered: bool,
    /// The most events to process. Only for Stripe.
    pub limit: Option<usize>,
    /// Where the last answer stopped. Only for Stripe.
    pub next: Option<String>,
    /// Who makes the change, if the token does not say it.
    pub actor: Option<String>,
    /// The reason.
    pub reason: Option<String>,
}

/// The body of `POST /admin/stripe/webhook-logs/{id}/dismiss`: `{"reason":"of our other
/// shop","actor":"ann"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DismissRequest {
    /// Who makes the change, if the token does not say it.
    pub actor: Option<String>,
    /// Why the event does not concern this deployment.
    pub reason: String,
}

/// Events that wait for the same thing.
#[derive(Default)]
struct Group {
    events: u64,
    types: BTreeSet<String>,
    users: BTreeSet<String>,
    examples: Vec<String>,
    oldest_ms: Option<i64>,
    newest_ms: Option<i64>,
}

impl Admin {
    pub(super) async fn list(&self, request: &Request, now_ms: i64) -> Result<Value, Problem> {
        let text = |name: &str| parameter(request, name);
        let limit = limit(request, PAGE, log::MAX_LISTED)?;
        let user = text("user").as_deref().map(user_id).transpose()?;
        let filter =
            filter(text("status"), text("type"), user, text("from").as_deref(), text("to").as_deref())?;
        if let Some(id) = text("id") {
            let record = self.find(&id).await?.as_ref().and_then(LogRecord::read);
            let events: Vec<Value> = record.iter().filter(|record| filter.takes(record)).map(view).collect();
            return Ok(json!({"events": events, "next": null}));
        }
        match log::list(&self.store, &filter, limit, text("next").as_deref(), seconds(now_ms)).await {
            Ok(page) => {
                Ok(json!({"events": page.events.iter().map(view).collect::<Vec<_>>(), "next": page.next}))
            }
            Err(error @ ListError::Cursor) => Err(bad("invalid_next", error.to_string())),
            Err(ListError::Store(error)) => Err(error.into()),
        }
    }

    pub(super) async fn show(&self, id: &str) -> Result<Value, Problem> {
        let item = self.find(id).await?;
        let item = item.ok_or_else(unknown_event)?;
        let mut event = view(&LogRecord::read(&item).ok_or_else(unknown_event)?);
        let body = items::read_payload(&item).and_then(payload::unpack);
        // The payload as it was received. A body that is not JSON is shown as text.
        let payload = body.map(|body| {
            serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)))
        });
        if let Some(event) = event.as_object_mut() {
            event.insert("message".to_owned(), json!(items::read_text(&item, "message")));
            event.insert("objects".to_owned(), json!(items::read_objects(&item)));
            event.insert(
                "livemode".to_owned(),
                json!(item.get("livemode").and_then(|livemode| livemode.as_bool().ok())),
            );
            event.insert("api_version".to_owned(), json!(items::read_text(&item, "api_version")));
            event.insert("catalog".to_owned(), json!(items::read_text(&item, "catalog")));
            let dismissal = items::read_dismissal(&item);
            event.insert("dismissed".to_owned(), json!(dismissal.as_ref().map(dismissal_view)));
        }
        info!(event_id = items::read_text(&item, "pk"), "ADMIN_PAYLOAD_SHOWN");
        Ok(json!({"event": event, "payload": payload}))
    }

    /// ```json
    /// {"from":"2026-11-20T10:00:00Z","to":"2026-11-21T10:00:00Z","step_seconds":3600,"complete":true,
    ///  "steps":[{"at":"2026-11-20T10:00:00Z","processed":12,"ignored":3,"parked":1,"failed":0}],
    ///  "totals":{"processed":12,…}}
    /// ```
    pub(super) async fn event_counts(&self, request: &Request, now_ms: i64) -> Result<Value, Problem> {
        let step = parameter(request, "step");
        let step_ms = step_ms(step.as_deref().unwrap_or("1h"))
            .ok_or_else(|| bad("invalid_step", "step must be like 15m, 1h or 1d, at least a minute"))?;
        let to = time_ms("to", parameter(request, "to").as_deref())?
            .unwrap_or(now_ms - now_ms.rem_euclid(step_ms) + step_ms);
        let from = time_ms("from", parameter(request, "from").as_deref())?.unwrap_or(to - 24 * 3_600_000);
        let steps = (to - from).div_euclid(step_ms) + i64::from((to - from).rem_euclid(step_ms) > 0);
        if !(1..=MAX_STEPS).contains(&steps) || to - from > MAX_DAYS * 86_400_000 {
            let message = format!(
                "from must be before to, at most {MAX_DAYS} days and {MAX_STEPS} steps: take a longer step \
                 or a shorter time"
            );
            return Err(bad("invalid_range", message));
        }
        let counts = self.store.outcomes(from, to, step_ms).await?;
        let mut totals: BTreeMap<&str, u64> = OUTCOMES.iter().map(|outcome| (*outcome, 0)).collect();
        let rows: Vec<Value> = (0..steps)
            .map(|step| {
                let counted = counts.steps.get(&step);
                let mut row = json!({"at": time(from + step * step_ms)});
                for outcome in OUTCOMES {
                    let count = counted.and_then(|counted| counted.get(outcome)).copied().unwrap_or(0);
                    *totals.entry(outcome).or_default() += count;
                    row[outcome] = json!(count);
                }
                row
            })
            .collect();
        Ok(json!({
            "from": time(from), "to": time(to), "step_seconds": step_ms / 1000, "complete": counts.complete,
            "steps": rows, "totals": totals,
        }))
    }

    /// ```json
    /// {"groups":[{"status":"parked","reason":"no_user","waits_for":"customer#cus_1","events":3,
    ///             "types":["invoice.paid"],"users":[],"examples":["evt_1"],"oldest":"…","newest":"…",
    ///             "advice":{"act":"link_customer","target":"cus_1","text":"Link …"}}],
    ///  "complete":true}
    /// ```
    pub(super) async fn parked(&self) -> Result<Value, Problem> {
        let mut groups: BTreeMap<(String, String, String), Group> = BTreeMap::new();
        let mut complete = true;
        for record in self.open(&mut complete).await? {
            let key = (
                record.status.clone(),
                record.reason.clone().unwrap_or_default(),
                record.waits_for.clone().unwrap_or_default(),
            );
            let group = groups.entry(key).or_default();
            group.events += 1;
            group.oldest_ms =
                Some(group.oldest_ms.map_or(record.received_ms, |oldest| oldest.min(record.received_ms)));
            group.newest_ms = group.newest_ms.max(Some(record.received_ms));
            group.types.insert(record.kind);
            if group.examples.len() < EXAMPLES {
                group.examples.push(record.id);
            }
            if group.users.len() < EXAMPLES {
                group.users.extend(record.user_id);
            }
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.events));
        let view = |((status, reason, waits_for), group): ((String, String, String), Group)| {
            let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            json!({
                "status": status,
                "reason": some(&reason),
                "waits_for": some(&waits_for),
                "events": group.events,
                "types": group.types,
                "users": group.users,
                "examples": group.examples,
                "oldest": group.oldest_ms.map(time),
                "newest": group.newest_ms.map(time),
                "advice": advice(&status, some(&reason).as_deref(), some(&waits_for).as_deref()),
            })
        };
        Ok(json!({"groups": groups.into_iter().map(view).collect::<Vec<_>>(), "complete": complete}))
    }

    /// Reads all parked and failed events. Sets `complete` to false when it stops at a limit.
    pub(super) async fn open(&self, complete: &mut bool) -> Result<Vec<LogRecord>, Problem> {
        let mut records = Vec::new();
        for partition in ["parked", "failed"].into_iter().flat_map(log::open_partitions) {
            let mut start: Option<Item> = None;
            for page in 1.. {
                let range = Range {
                    index: "by_status",
                    partition: &partition,
                    from: 0,
                    to: i64::MAX,
                    newest_first: true,
                };
                let (found, more) = self.store.query(&range, Some(500), start).await?;
                records.extend(found.iter().filter_map(LogRecord::read));
                start = more;
                if start.is_none() {
                    break;
                }
                if page == MAX_OPEN_PAGES {
                    *complete = false;
                    break;
                }
            }
        }
        Ok(records)
    }

    pub(super) async fn retry(
        &self,
        body: RetryRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        if let Some(kind) = body.kind.as_deref().filter(|kind| EventType::from(*kind).family().is_none()) {
            let message =
                format!("no event of the type {kind:?} is processed: use a type such as invoice.paid");
            return Err(bad("invalid_type", message));
        }
        match body.source.as_deref() {
            None | Some("log") => self.retry_from_log(body, operator, now_ms).await,
            Some("stripe") => self.replay(body, operator, now_ms).await,
            Some(_) => Err(bad("invalid_source", "source must be log or stripe")),
        }
    }

    async fn retry_from_log(
        &self,
        body: RetryRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        if body.undelivered || body.limit.is_some() || body.next.is_some() {
            return Err(bad("invalid_body", "undelivered, limit and next are for \"source\":\"stripe\""));
        }
        let filter =
            filter(body.status.clone(), body.kind.clone(), None, body.from.as_deref(), body.to.as_deref())?;
        if !matches!(filter.status.as_deref(), None | Some("parked" | "failed")) {
            return Err(bad("invalid_status", "only parked and failed events can be sent again"));
        }
        if body.id.as_deref().is_some_and(|id| !items::is_event(id)) {
            return Err(bad("invalid_id", "id must be an event's id"));
        }
        self.audit_retry(&body, operator, filter == Filter::default(), now_ms).await?;
        let now = seconds(now_ms);
        if let Some(id) = &body.id {
            return match self.retrier.redrive_one(id, now).await? {
                RedriveOutcome::Unknown => Err(problem(
                    StatusCode::NOT_FOUND,
                    "event_not_found",
                    "the log has no event with this id",
                )),
                RedriveOutcome::NotSendable => {
                    let message =
                        "this event cannot be sent again: its body was not kept, or it must not be applied";
                    Err(problem(StatusCode::CONFLICT, "not_sendable", message))
                }
                RedriveOutcome::NotQueued => Err(problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "queue_unavailable",
                    "the queue did not take the event; try again",
                )),
                outcome @ (RedriveOutcome::Queued | RedriveOutcome::Finished) => {
                    Ok(json!({"id": id, "result": outcome}))
                }
            };
        }
        let report = match filter == Filter::default() {
            true => self.retrier.run(now).await?,
            false => self.retrier.redrive_matching(&filter, now).await?,
        };
        Ok(json!({"report": report}))
    }

    /// Processes events of Stripe: one by id, or those with a type and time.
    async fn replay(&self, body: RetryRequest, operator: &AdminToken, now_ms: i64) -> Result<Value, Problem> {
        let stripe = self.stripe()?.clone();
        let limit = body.limit.unwrap_or(100);
        if !(1..=MAX_REPLAYED).contains(&limit) {
            return Err(bad("invalid_limit", format!("limit must be a number from 1 to {MAX_REPLAYED}")));
        }
        if body.status.is_some() {
            return Err(bad(
                "invalid_status",
                "Stripe does not know the outcomes of our events: status is for \"source\":\"log\"",
            ));
        }
        let (from, until) = range_ms(body.from.as_deref(), body.to.as_deref())?;
        let (from, until) = (from.map(seconds), until.map(seconds));
        let id = body
            .id
            .as_deref()
            .map(EventId::new)
            .transpose()
            .map_err(|error| bad("invalid_id", error.to_string()))?;
        let selection = match id {
            Some(id) => Selection::One(id),
            None if body.kind.is_none() && from.is_none() => {
                return Err(bad(
                    "invalid_body",
                    "select events of Stripe with an id, a type, or a start time (from)",
                ));
            }
            None => {
                let types = body.kind.as_deref().map(EventType::from).into_iter().collect();
                Selection::Listed(EventFilter { types, undelivered: body.undelivered, from, until })
            }
        };
        self.audit_retry(&body, operator, false, now_ms).await?;
        let replayer = Replayer::new(stripe, self.processor.clone());
        match replayer.replay(&selection, limit, body.next.as_deref(), deadline(), seconds(now_ms)).await {
            Ok(report) => Ok(json!({"report": report})),
            Err(ReplayError::Stripe(error)) if error.is_missing() => Err(problem(
                StatusCode::NOT_FOUND,
                "event_not_found",
                "Stripe has no event with this id (it keeps them for 30 days)",
            )),
            Err(ReplayError::Stripe(error)) => Err(stripe_failed(&error)),
            Err(error @ ReplayError::Position) => Err(bad("invalid_next", error.to_string())),
            Err(ReplayError::Incomplete(why)) => Err(problem(StatusCode::BAD_GATEWAY, "stripe_failed", why)),
            Err(ReplayError::Store(error)) => Err(error.into()),
        }
    }

    /// Dismisses an open event. To dismiss it a second time changes nothing.
    pub(super) async fn dismiss(
        &self,
        id: &str,
        body: DismissRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let reason = short(body.reason.trim());
        if reason.is_empty() {
            return Err(bad("missing_reason", "reason is required; it is kept with the event"));
        }
        let key = Key::Event(id.to_owned());
        let mut item = self.find(id).await?.ok_or_else(unknown_event)?;
        if is_open(&item) {
            self.audit(operator, body.actor.as_deref(), Some(&reason), "dismiss", id, now_ms).await?;
            let dismissal = Dismissal { actor: operator.name.clone(), reason, at_ms: now_ms };
            self.store.dismiss(&key, &item, &dismissal).await?;
            // Another request or the event's own worker may have been faster.
            item = self.find(id).await?.ok_or_else(unknown_event)?;
        }
        let status = items::read_text(&item, "outcome");
        let Some(dismissal) = items::read_dismissal(&item) else {
            let message = format!(
                "the event is {}; only a parked or failed event can be dismissed",
                status.as_deref().unwrap_or("unknown")
            );
            return Err(problem(StatusCode::CONFLICT, "event_finished", message));
        };
        Ok(json!({"id": id, "status": status, "dismissed": dismissal_view(&dismissal)}))
    }

    async fn audit_retry(
        &self,
        body: &RetryRequest,
        operator: &AdminToken,
        due: bool,
        now_ms: i64,
    ) -> Result<(), Problem> {
        let target = match &body.id {
            Some(id) => id.clone(),
            None if due => "due".to_owned(),
            None => json!({
                "source": body.source, "type": body.kind, "status": body.status, "from": body.from,
                "to": body.to,
            })
            .to_string(),
        };
        let (claimed, reason) = (body.actor.as_deref(), body.reason.as_deref());
        self.audit(operator, claimed, reason, "retry-webhooks", &target, now_ms).await
    }

    pub(super) async fn find(&self, id: &str) -> Result<Option<Item>, Problem> {
        if !items::is_event(id) {
            return Ok(None);
        }
        let key = Key::Event(id.to_owned());
        Ok(self.store.load([key.clone()]).await?.remove(&key))
    }
}

/// The outcomes that a chart counts. A duplicate is not among them, because it writes nothing.
const OUTCOMES: [&str; 5] = ["processed", "ignored", "parked", "failed", "dismissed"];

fn unknown_event() -> Problem {
    let message = "the log has no event with this id (it keeps them for 90 days)";
    problem(StatusCode::NOT_FOUND, "event_not_found", message)
}

fn is_open(item: &Item) -> bool {
    matches!(items::read_text(item, "outcome").as_deref(), Some("parked" | "failed"))
}

fn dismissal_view(dismissal: &Dismissal) -> Value {
    json!({"actor": dismissal.actor, "reason": dismissal.reason, "at": time(dismissal.at_ms)})
}

fn step_ms(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let minutes = match unit {
        "m" => 1,
        "h" => 60,
        "d" => 1440,
        _ => return None,
    };
    let number: i64 = number.parse().ok().filter(|number| (1..=10_000).contains(number))?;
    Some(number * minutes * 60_000)
}

fn filter(
    status: Option<String>,
    kind: Option<String>,
    user: Option<UserId>,
    from: Option<&str>,
    to: Option<&str>,
) -> Result<Filter, Problem> {
    const STATUSES: [&str; 6] = ["processed", "duplicate", "ignored", "parked", "failed", "dismissed"];
    if status.as_deref().is_some_and(|status| !STATUSES.contains(&status)) {
        return Err(bad("invalid_status", format!("status must be one of {}", STATUSES.join(", "))));
    }
    let (from_ms, to_ms) = range_ms(from, to)?;
    Ok(Filter { status, kind, user, from_ms, to_ms })
}

/// A record of the log as JSON. An open event has `advice`.
pub(super) fn view(record: &LogRecord) -> Value {
    let open = matches!(record.status.as_str(), "parked" | "failed");
    json!({
        "id": record.id,
        "type": record.kind,
        "status": record.status,
        "reason": record.reason,
        "user_id": record.user_id,
        "waits_for": record.waits_for,
        "attempts": record.attempts,
        "redrives": record.redrives,
        "created": record.created.to_string(),
        "received_at": time(record.received_ms),
        "finished_at": time(record.finished_ms),
        "due_at": record.due_ms.map(time),
        "advice": open.then(|| advice(&record.status, record.reason.as_deref(), record.waits_for.as_deref())),
    })
}
