//! `GET` and `PATCH /users/{id}/orders/{cs}`: one order, and what the app does with it.
//!
//! ```json
//! {"status":"DELIVERED","final_package_url":"https://example.com/p.zip"}
//! ```
//! A `PATCH` needs the header `If-Match` with the order's `updated_at`, so that two changes at once cannot
//! overwrite each other. It answers the order after the change. A field that is absent stays, and `null`
//! removes a URL or the deadline.

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tracing::info;

use super::{Api, read_body};
use crate::http::answer::{Problem, problem};
use tallyhook_aws::clock;
use tallyhook_aws::store::items::{self, Item, Key, OrderChange};
use tallyhook_aws::store::{Reason, StoreError};
use tallyhook_core::ids::{SessionId, UserId};
use tallyhook_core::order::{OrderStatus, StepRefusal};

/// The longest URL of an order.
const MAX_URL: usize = 2048;
/// The longest `checklist_status`.
const MAX_CHECKLIST_STATUS: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchBody {
    status: Option<String>,
    #[serde(default, deserialize_with = "present")]
    files_url: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    final_package_url: Option<Option<String>>,
    checklist_status: Option<String>,
    #[serde(default, deserialize_with = "present")]
    deadline: Option<Option<String>>,
}

/// Tells `null` from an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Api {
    pub(super) async fn show_order(&self, user: &UserId, order: &str) -> Result<Value, Problem> {
        let session = SessionId::new(order).map_err(|_| no_order())?;
        Ok(order_with_history(&self.load_order(user, &session).await?))
    }

    pub(super) async fn change_order(
        &self,
        user: &UserId,
        order: &str,
        request: &Request,
    ) -> Result<Value, Problem> {
        let example = r#"{"status": "IN_PROGRESS", "files_url": "https://…"}"#;
        let body: PatchBody = read_body(request, example)?;
        let session = SessionId::new(order).map_err(|_| no_order())?;
        let item = self.load_order(user, &session).await?;
        check_if_match(request, &item)?;
        let mut change = OrderChange::new(user, &session, &item, clock::now());
        apply(&body, &item, &mut change)?;
        let write = change.write();
        let after = write.item.clone().unwrap_or_default();
        match self.store.commit(vec![write]).await {
            Ok(()) => {}
            Err(StoreError::Cancelled(reasons))
                if reasons
                    .iter()
                    .all(|(_, reason)| matches!(reason, Reason::Condition | Reason::Conflict)) =>
            {
                return Err(changed());
            }
            Err(error) => return Err(error.into()),
        }
        let status = items::read_text(&after, "status");
        info!(user_id = user.as_str(), checkout_session_id = session.as_str(), status, "ORDER_CHANGED");
        Ok(order_with_history(&after))
    }

    async fn load_order(&self, user: &UserId, session: &SessionId) -> Result<Item, Problem> {
        let key = Key::Order(user.clone(), session.clone());
        self.store.load([key.clone()]).await?.remove(&key).ok_or_else(no_order)
    }
}

/// An order as the app reads it, and `history`: `[{"at":"…","step":"NEW"}]`, oldest first.
pub(crate) fn order_with_history(item: &Item) -> Value {
    let mut order = json!(items::read_order(item));
    let history = items::order_history(item).into_iter();
    order["history"] = history.map(|(at, step)| json!({"at": at.to_string(), "step": step})).collect();
    order
}

/// Compares `If-Match` with `updated_at`. Quotation marks, as around an entity tag, are left out.
fn check_if_match(request: &Request, item: &Item) -> Result<(), Problem> {
    let header = request.headers().get("if-match").and_then(|value| value.to_str().ok());
    let Some(expected) = header.map(|header| header.trim().trim_matches('"')) else {
        let message = "send the header If-Match with the updated_at of the order that you read";
        return Err(problem(StatusCode::PRECONDITION_REQUIRED, "missing_if_match", message));
    };
    let order = items::read_order(item);
    if order.get("updated_at").and_then(Value::as_str) == Some(expected) { Ok(()) } else { Err(changed()) }
}

/// Takes the fields of the body over into the change.
fn apply(body: &PatchBody, item: &Item, change: &mut OrderChange) -> Result<(), Problem> {
    let invalid = |message: &str| problem(StatusCode::BAD_REQUEST, "invalid_order", message);
    let PatchBody { status, files_url, final_package_url, checklist_status, deadline } = body;
    if status.is_none()
        && checklist_status.is_none()
        && [files_url, final_package_url, deadline].into_iter().all(Option::is_none)
    {
        return Err(invalid("name at least one field to change"));
    }
    if let Some(status) = status {
        let to = OrderStatus::from_text(status).ok_or_else(|| {
            invalid("status must be NEW, IN_PROGRESS, DELIVERED, REVISION, DONE or REFUNDED")
        })?;
        let from = items::read_text(item, "status").and_then(|status| OrderStatus::from_text(&status));
        let left = items::read_number(item, "revisions_left").unwrap_or(0);
        let step = from.ok_or(StepRefusal::NotAllowed).and_then(|from| from.step(to, left));
        let left = step.map_err(|refusal| {
            let from = from.map_or("unknown", OrderStatus::as_str);
            let (code, message) = match refusal {
                StepRefusal::NotAllowed => {
                    ("step_not_allowed", format!("an order that is {from} does not become {}", to.as_str()))
                }
                StepRefusal::NoRevisionsLeft => {
                    ("no_revisions_left", "the customer has no revision left".to_owned())
                }
            };
            problem(StatusCode::CONFLICT, code, message)
        })?;
        change.set_status(to);
        change.set_number("revisions_left", Some(left.into()));
    }
    for (name, url) in [("files_url", files_url), ("final_package_url", final_package_url)] {
        let Some(url) = url else { continue };
        let is_url = |url: &str| {
            (url.starts_with("https://") || url.starts_with("http://"))
                && url.len() <= MAX_URL
                && url.chars().all(|c| c.is_ascii_graphic())
        };
        if url.as_deref().is_some_and(|url| !is_url(url)) {
            return Err(invalid("a URL begins with https:// or http:// and has at most 2,048 characters"));
        }
        change.set_text(name, url.as_deref());
    }
    if let Some(status) = checklist_status {
        if status.is_empty() || status.len() > MAX_CHECKLIST_STATUS || status.chars().any(char::is_control) {
            return Err(invalid("checklist_status has 1 to 64 characters"));
        }
        change.set_text("checklist_status", Some(status));
    }
    if let Some(deadline) = deadline {
        let read = |text: &String| text.parse::<jiff::Timestamp>().ok().map(|time| time.as_second());
        let seconds = deadline.as_ref().map(|text| {
            read(text).ok_or_else(|| invalid("deadline must be like 2026-11-21T12:00:00Z, or null"))
        });
        change.set_number("deadline", seconds.transpose()?);
    }
    Ok(())
}

fn no_order() -> Problem {
    problem(StatusCode::NOT_FOUND, "order_not_found", "the user has no order with this id")
}

fn changed() -> Problem {
    let message = "the order changed since you read it: read it again and decide again";
    problem(StatusCode::PRECONDITION_FAILED, "order_changed", message)
}
