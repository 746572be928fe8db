//! `admin`: what an operator asks and does. Bearer token `ADMIN_API_TOKEN` on every route.
//!
//! | route | answer |
//! |---|---|
//! | `GET /admin/stripe/webhook-logs?status&type&user&id&from&to&limit&next` | events, newest first; with `user` what is open of theirs comes first |
//! | `GET /admin/stripe/webhook-logs/{id}` | one event with its payload |
//! | `POST /admin/stripe/retry-webhooks` | sends events of the log again: see [`Again`] |
//! | `GET /admin/stripe/subscription-health` | the score, its deductions, what was counted |
//!
//! Times are RFC 3339 or a day (`2026-11-21`, its start). **Invariant:** a change is in the audit before it is made.

use lambda_http::http::{Method, StatusCode};
use lambda_http::{Body, Request, RequestExt, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use crate::answer::{Problem, answer, percent_decode, problem};
use crate::aws::sdk_config;
use crate::clock;
use crate::config::{AdminConfig, ConfigError, Env};
use crate::domain::ids::UserId;
use crate::domain::timestamp::Timestamp;
use crate::health::HealthCheck;
use crate::redrive::Resent;
use crate::retry::Retry;
use crate::store::items::{self, Item, Key};
use crate::store::log::{self, Filter, Line, ListError};
use crate::store::{Store, payload};
use crate::token;

/// Events on a page, unless `limit` says otherwise.
const PAGE: usize = 50;

/// The admin API.
pub struct Admin {
    token: Option<String>,
    store: Store,
    retry: Retry,
    health: HealthCheck,
}

/// The body of `POST /admin/stripe/retry-webhooks`. With `id` that one event; with a type, status or time every parked and failed
/// event that fits, due or not; with none of them what is due, as the schedule would.
///
/// ```json
/// {"id":"evt_1","actor":"ann","reason":"customer linked"}
/// {"type":"invoice.paid","status":"failed","from":"2026-11-20","to":"2026-11-21T12:00:00Z"}
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Again {
    /// One event.
    pub id: Option<String>,
    /// Stripe's type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `parked` or `failed`; both, unless said.
    pub status: Option<String>,
    /// Received at or after.
    pub from: Option<String>,
    /// Received before.
    pub to: Option<String>,
    /// Who asks.
    pub actor: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl Admin {
    /// Builds it from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let dynamodb = aws_sdk_dynamodb::Client::new(&sdk_config(env, "DYNAMODB")?);
        let sqs = aws_sdk_sqs::Client::new(&sdk_config(env, "SQS")?);
        Ok(Self::new(AdminConfig::from_env(env)?, &dynamodb, &sqs))
    }

    /// The same over given clients.
    pub fn new(config: AdminConfig, dynamodb: &aws_sdk_dynamodb::Client, sqs: &aws_sdk_sqs::Client) -> Self {
        Self {
            token: config.admin_token,
            store: Store::new(dynamodb.clone(), config.retry.accounts_table.clone(), config.retry.events_table.clone()),
            retry: Retry::new(config.retry, dynamodb.clone(), sqs.clone()),
            health: HealthCheck::new(config.health, dynamodb.clone(), sqs.clone()),
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every failure is an answer.
    pub async fn handle(&self, request: Request) -> Result<Response<Body>, lambda_http::Error> {
        Ok(match self.route(&request).await {
            Ok(body) => answer(StatusCode::OK, &body),
            Err(problem) => problem.answer("ADMIN_FAILED"),
        })
    }

    async fn route(&self, request: &Request) -> Result<Value, Problem> {
        let path = request.uri().path().to_owned();
        // Before anything else: a route that is not there is not told to those who may not ask.
        token::check(request.headers(), self.token.as_deref()).map_err(|refusal| {
            warn!(code = refusal.code(), path, "ADMIN_REFUSED");
            problem(refusal.status(), refusal.code(), refusal.message("ADMIN_API_TOKEN"))
        })?;
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let ["admin", "stripe", parts @ ..] = parts.as_slice() else { return Err(not_found()) };
        let now = clock::now_ms();
        match (request.method(), parts) {
            (&Method::GET, ["webhook-logs"]) => self.list(request, now).await,
            (&Method::GET, ["webhook-logs", id]) => self.show(id).await,
            (&Method::POST, ["retry-webhooks"]) => self.retry(request, now).await,
            (&Method::GET, ["subscription-health"]) => self.health(now).await,
            (_, ["webhook-logs"] | ["webhook-logs", _] | ["retry-webhooks"] | ["subscription-health"]) => {
                Err(problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has another method"))
            }
            _ => Err(not_found()),
        }
    }

    async fn list(&self, request: &Request, now_ms: i64) -> Result<Value, Problem> {
        let query = request.query_string_parameters();
        let text = |name: &str| query.first(name).filter(|value| !value.is_empty()).map(str::to_owned);
        let limit = match text("limit") {
            None => PAGE,
            Some(limit) => limit.parse().ok().filter(|limit| (1..=log::MOST_LISTED).contains(limit)).ok_or_else(|| {
                problem(StatusCode::BAD_REQUEST, "invalid_limit", format!("limit must be a number from 1 to {}", log::MOST_LISTED))
            })?,
        };
        let user = text("user")
            .map(UserId::new)
            .transpose()
            .map_err(|error| problem(StatusCode::BAD_REQUEST, "invalid_user_id", error.to_string()))?;
        let (status, kind) = (text("status"), text("type"));
        let filter = filter(status, kind, user, text("from").as_deref(), text("to").as_deref())?;
        if let Some(id) = text("id") {
            let line = self.find(&id).await?.as_ref().and_then(Line::read);
            let events: Vec<Value> = line.iter().filter(|line| filter.takes(line)).map(view).collect();
            return Ok(json!({"events": events, "next": null}));
        }
        let now = Timestamp::from_unix(now_ms.div_euclid(1000));
        match log::list(&self.store, &filter, limit, text("next").as_deref(), now).await {
            Ok(page) => Ok(json!({"events": page.events.iter().map(view).collect::<Vec<_>>(), "next": page.next})),
            Err(error @ ListError::Cursor) => Err(problem(StatusCode::BAD_REQUEST, "invalid_next", error.to_string())),
            Err(ListError::Store(error)) => Err(error.into()),
        }
    }

    async fn show(&self, id: &str) -> Result<Value, Problem> {
        let item = match percent_decode(id) {
            Some(id) => self.find(&id).await?,
            None => None,
        };
        let unknown = || problem(StatusCode::NOT_FOUND, "event_not_found", "the log has no event with this id (it keeps them for 90 days)");
        let item = item.ok_or_else(unknown)?;
        let mut event = view(&Line::read(&item).ok_or_else(unknown)?);
        let body = item.get("payload").and_then(|payload| payload.as_b().ok()).and_then(|packed| payload::unpack(packed.as_ref()));
        // As it was received, unless it is not JSON.
        let payload = body.map(|body| serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body))));
        let objects: Vec<&String> =
            item.get("objects").and_then(|all| all.as_l().ok()).into_iter().flatten().filter_map(|id| id.as_s().ok()).collect();
        if let Some(event) = event.as_object_mut() {
            event.insert("message".to_owned(), json!(items::read_text(&item, "message")));
            event.insert("objects".to_owned(), json!(objects));
            event.insert("livemode".to_owned(), json!(item.get("livemode").and_then(|livemode| livemode.as_bool().ok())));
            event.insert("api_version".to_owned(), json!(items::read_text(&item, "api_version")));
        }
        info!(event_id = items::read_text(&item, "pk"), "ADMIN_PAYLOAD_SHOWN");
        Ok(json!({"event": event, "payload": payload}))
    }

    async fn retry(&self, request: &Request, now_ms: i64) -> Result<Value, Problem> {
        let bytes: &[u8] = request.body();
        let again: Again = match bytes {
            [] => Again::default(),
            // An object: serde would also take a list for the fields in their order.
            bytes => serde_json::from_slice::<Map<String, Value>>(bytes)
                .and_then(|body| Again::deserialize(Value::Object(body)))
                .map_err(|error| problem(StatusCode::BAD_REQUEST, "invalid_body", error.to_string()))?,
        };
        let filter = filter(again.status.clone(), again.kind.clone(), None, again.from.as_deref(), again.to.as_deref())?;
        if !matches!(filter.status.as_deref(), None | Some("parked" | "failed")) {
            return Err(problem(StatusCode::BAD_REQUEST, "invalid_status", "only parked and failed events can be sent again"));
        }
        if again.id.as_deref().is_some_and(|id| id.is_empty() || id.len() > 300) {
            return Err(problem(StatusCode::BAD_REQUEST, "invalid_id", "id must be an event's id"));
        }
        let target = match &again.id {
            Some(id) => id.clone(),
            None if filter == Filter::default() => "due".to_owned(),
            None => json!({"type": again.kind, "status": again.status, "from": again.from, "to": again.to}).to_string(),
        };
        self.audit(again.actor.as_deref(), again.reason.as_deref(), "retry-webhooks", &target, now_ms).await?;
        let now = Timestamp::from_unix(now_ms.div_euclid(1000));
        if let Some(id) = &again.id {
            return match self.retry.redrive_one(id).await? {
                Resent::Unknown => Err(problem(StatusCode::NOT_FOUND, "event_not_found", "the log has no event with this id")),
                Resent::NotSendable => {
                    let message = "this event cannot be sent again: its body was not kept, or it must not be applied";
                    Err(problem(StatusCode::CONFLICT, "not_sendable", message))
                }
                Resent::NotQueued => {
                    Err(problem(StatusCode::SERVICE_UNAVAILABLE, "queue_unavailable", "the queue did not take the event; try again"))
                }
                resent @ (Resent::Queued | Resent::Finished) => Ok(json!({"id": id, "result": resent})),
            };
        }
        let report = match filter == Filter::default() {
            true => self.retry.run(now).await?,
            false => self.retry.redrive_matching(&filter, now).await?,
        };
        Ok(json!({"report": report}))
    }

    async fn health(&self, now_ms: i64) -> Result<Value, Problem> {
        let (counts, health) = self.health.look(Timestamp::from_unix(now_ms.div_euclid(1000))).await?;
        let rate = health.success_permille.and_then(|rate| u16::try_from(rate).ok()).map(|rate| f64::from(rate) / 1000.0);
        Ok(json!({"score": health.score, "success_rate": rate, "deductions": health.deductions, "counts": counts}))
    }

    async fn find(&self, id: &str) -> Result<Option<Item>, Problem> {
        // What is longer is no key, and an empty one is refused by DynamoDB.
        if id.is_empty() || id.len() > 300 {
            return Ok(None);
        }
        let key = Key::Event(id.to_owned());
        Ok(self.store.load([key.clone()]).await?.remove(&key))
    }

    /// Who does what and why, before it is done.
    async fn audit(&self, actor: Option<&str>, reason: Option<&str>, act: &str, target: &str, now_ms: i64) -> Result<(), Problem> {
        let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(300).collect::<String>();
        let (actor, reason) = (short(actor.unwrap_or("admin")), short(reason.unwrap_or_default()));
        info!(actor, act, target, "ADMIN_CHANGE");
        Ok(self.store.commit(&[items::audit(&actor, &reason, act, target, now_ms)]).await?)
    }
}

fn not_found() -> Problem {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

fn filter(
    status: Option<String>,
    kind: Option<String>,
    user: Option<UserId>,
    from: Option<&str>,
    to: Option<&str>,
) -> Result<Filter, Problem> {
    const STATUSES: [&str; 5] = ["processed", "duplicate", "ignored", "parked", "failed"];
    if status.as_deref().is_some_and(|status| !STATUSES.contains(&status)) {
        return Err(problem(StatusCode::BAD_REQUEST, "invalid_status", format!("status must be one of {}", STATUSES.join(", "))));
    }
    let time = |name: &str, text: Option<&str>| {
        text.map(|text| {
            read_time_ms(text).ok_or_else(|| {
                problem(StatusCode::BAD_REQUEST, "invalid_time", format!("{name} must be like 2026-11-21T12:00:00Z or 2026-11-21"))
            })
        })
        .transpose()
    };
    Ok(Filter { status, kind, user, from_ms: time("from", from)?, to_ms: time("to", to)? })
}

fn read_time_ms(text: &str) -> Option<i64> {
    let midnight = format!("{text}T00:00:00Z");
    let time: jiff::Timestamp = text.parse().or_else(|_| midnight.parse()).ok()?;
    Some(time.as_millisecond())
}

fn view(line: &Line) -> Value {
    let time = |ms: i64| Timestamp::from_unix(ms.div_euclid(1000)).to_string();
    json!({
        "id": line.id,
        "type": line.kind,
        "status": line.status,
        "reason": line.reason,
        "user_id": line.user_id,
        "waits_for": line.waits_for,
        "attempts": line.attempts,
        "redrives": line.redrives,
        "created": line.created.to_string(),
        "received_at": time(line.received_ms),
        "finished_at": time(line.finished_ms),
        "due_at": line.due_ms.map(time),
    })
}
