//! The orders, for the operator.

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde_json::{Value, json};

use super::{Admin, bad, limit, parameter, user_id};
use crate::http::answer::{Problem, problem};
use crate::http::api::order_with_history;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_core::ids::SessionId;
use tallyhook_core::order::OrderStatus;

/// Orders that one request reads. A page that is not full by then has a `next`.
const MAX_READ: usize = 500;
const PAGE: i32 = 50;

impl Admin {
    /// ```json
    /// {"orders":[{"user_id":"user_1","id":"cs_1","tier":"STARTER","status":"NEW",…}],"next":null}
    /// ```
    /// Newest first. The orders of one `user` have no order and no `next`.
    pub(super) async fn list_orders(&self, request: &Request) -> Result<Value, Problem> {
        let limit = limit(request, 50, 200)?;
        let status = parameter(request, "status");
        if status.as_deref().is_some_and(|status| OrderStatus::from_text(status).is_none()) {
            return Err(bad(
                "invalid_status",
                "status must be NEW, IN_PROGRESS, DELIVERED, REVISION, DONE or REFUNDED",
            ));
        }
        let fits = |order: &Value| status.as_deref().is_none_or(|status| order["status"] == status);
        if let Some(user) = parameter(request, "user").as_deref().map(user_id).transpose()? {
            let mut orders: Vec<Value> =
                self.store.orders(&user).await?.into_iter().map(|order| json!(order)).filter(fits).collect();
            orders.iter_mut().for_each(|order| order["user_id"] = json!(user));
            return Ok(json!({"orders": orders, "next": null}));
        }
        let (mut orders, mut next, mut read) = (Vec::new(), parameter(request, "next"), 0);
        while orders.len() < limit && read < MAX_READ {
            let page = self.store.listed_orders(PAGE, next.as_deref()).await?;
            let (found, after) =
                page.ok_or_else(|| bad("invalid_next", "next must be what the last page gave"))?;
            read += found.len();
            next = after;
            let last = found.len().saturating_sub(1);
            for (at, order) in found.into_iter().enumerate() {
                let mut shown = json!(items::read_order(&order.item));
                shown["user_id"] = json!(order.user);
                orders.extend(Some(shown).filter(&fits));
                if orders.len() == limit && at < last {
                    next = order.place();
                    break;
                }
            }
            if next.is_none() {
                break;
            }
        }
        Ok(json!({"orders": orders, "next": next}))
    }

    /// One order with its `history`: see [`order_with_history`].
    pub(super) async fn show_order(&self, id: &str) -> Result<Value, Problem> {
        let unknown = || problem(StatusCode::NOT_FOUND, "order_not_found", "no order has this id");
        let session = SessionId::new(id).map_err(|_| unknown())?;
        let link = Key::Session(session.clone());
        let known = self.store.load([link.clone()]).await?;
        let known = known.get(&link).map(|item| items::read_session(&link, item)).transpose()?;
        let user = known.ok_or_else(unknown)?.user;
        let key = Key::Order(user.clone(), session);
        let item = self.store.load([key.clone()]).await?.remove(&key).ok_or_else(unknown)?;
        let mut order = order_with_history(&item);
        order["user_id"] = json!(user);
        Ok(json!({"order": order}))
    }
}
