//! `POST /users/{id}/portal`: a session of Stripe's customer portal, where a customer manages what was
//! bought.
//!
//! ```json
//! {"flow":"home"}
//! {"flow":"payment_method","return_path":"/settings"}
//! {"flow":"cancel"}
//! {"flow":"change_plan","plan":"business"}
//! {"flow":"change_plan","subscription":"sub_1","plan":"team","quantity":7}
//! ```
//! ```json
//! {"url":"https://billing.stripe.com/p/session/…","flow":"cancel","subscription":"sub_1"}
//! ```
//! | flow | the customer sees |
//! |---|---|
//! | `home` (the default) | the portal |
//! | `payment_method` | the form for a new payment method, then the app |
//! | `cancel` | the page that cancels the subscription, then the app |
//! | `change_plan` | the plans to choose from; with `plan` the page that confirms this plan |
//!
//! `cancel` and `change_plan` need a subscription that runs. With several, the request names one
//! (`subscription`); the answer of a request that does not is 409 with the list. Stripe changes only
//! subscriptions with one item there, and only to prices that the portal's configuration lists.
//!
//! **Invariant:** the URL lets everyone who has it in. It is valid for a short time, and it is neither stored
//! nor logged. Each request gets a new one.

use std::borrow::Cow;

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::customer::{paying_customer, running_subscriptions};
use super::stripe_request::{Fields, error_text, is_missing_customer, path, refusal_body, stripe_error};
use super::{Api, no_user, read_body};
use crate::http::answer::{Problem, problem};
use tallyhook_aws::clock;
use tallyhook_aws::stripe::{Stripe, StripeError};
use tallyhook_core::account::access::Summary;
use tallyhook_core::catalog::{MAX_QUANTITY, Per, Plan};
use tallyhook_core::ids::{SubscriptionId, UserId};

const EXAMPLE: &str = r#"{"flow": "home"}, or "payment_method", "cancel", or "change_plan" with "plan""#;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Flow {
    #[default]
    Home,
    PaymentMethod,
    Cancel,
    ChangePlan,
}

impl Flow {
    fn as_str(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::PaymentMethod => "payment_method",
            Self::Cancel => "cancel",
            Self::ChangePlan => "change_plan",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortalRequest {
    #[serde(default)]
    flow: Flow,
    /// The plan to change to.
    plan: Option<String>,
    /// Seats of that plan; default: those of today.
    quantity: Option<u64>,
    subscription: Option<String>,
    return_path: Option<String>,
}

impl Api {
    pub(super) async fn open_portal(&self, user: &UserId, request: &Request) -> Result<Value, Problem> {
        let body: PortalRequest = read_body(request, EXAMPLE)?;
        if (body.plan.is_some() || body.quantity.is_some()) && body.flow != Flow::ChangePlan
            || (body.quantity.is_some() && body.plan.is_none())
        {
            let message = "plan belongs to the flow change_plan, and quantity to a plan";
            return Err(problem(StatusCode::BAD_REQUEST, "invalid_body", message));
        }
        let catalog = &self.config.catalog;
        let plan = body.plan.as_deref().map(|name| {
            catalog.plan(name).ok_or_else(|| {
                let names: Vec<&str> = catalog.plans.iter().map(|plan| plan.name.as_str()).collect();
                let message = format!("the catalog has no such plan; it has: {}", names.join(", "));
                problem(StatusCode::BAD_REQUEST, "unknown_name", message)
            })
        });
        let plan = plan.transpose()?;
        let (stripe, base) = self.stripe_and_app()?;
        let back = format!("{base}{}", path(body.return_path.as_deref(), "/", "return_path")?);
        let (account, _) = self.load(user).await?;
        if account.version == 0 {
            return Err(no_user());
        }
        let running = running_subscriptions(&account.state, catalog, clock::now());
        let chosen = chosen(&body, &running)?;
        let customer = paying_customer(&account.state, chosen.map(|(id, _)| id)).ok_or_else(no_customer)?;
        let mut fields: Fields =
            vec![("customer".into(), customer.to_string()), ("return_url".into(), back.clone())];
        let mut add = |name: &str, value: String| {
            let name = format!("flow_data{name}");
            fields.push((Cow::Owned(name), value));
        };
        match (body.flow, chosen, plan) {
            (Flow::Home, ..) => {}
            (Flow::PaymentMethod, ..) => add("[type]", "payment_method_update".to_owned()),
            (Flow::Cancel, Some((id, _)), _) => {
                add("[type]", "subscription_cancel".to_owned());
                add("[subscription_cancel][subscription]", id.to_string());
            }
            (Flow::ChangePlan, Some((id, _)), None) => {
                add("[type]", "subscription_update".to_owned());
                add("[subscription_update][subscription]", id.to_string());
            }
            (Flow::ChangePlan, Some((id, _)), Some(plan)) => {
                let change = self.plan_change(stripe, id, plan, body.quantity).await?;
                add("[type]", "subscription_update_confirm".to_owned());
                add("[subscription_update_confirm][subscription]", id.to_string());
                for (name, value) in change {
                    add(&format!("[subscription_update_confirm][items][0][{name}]"), value);
                }
            }
            (Flow::Cancel | Flow::ChangePlan, None, _) => return Err(no_subscription()),
        }
        if body.flow != Flow::Home {
            add("[after_completion][type]", "redirect".to_owned());
            add("[after_completion][redirect][return_url]", back);
        }
        let url = portal_session(stripe, fields).await.map_err(|error| portal_error(&error))?;
        let id = chosen.map(|(id, _)| id).filter(|_| body.flow != Flow::Home);
        info!(user_id = user.as_str(), flow = body.flow.as_str(), "BILLING_PORTAL_CREATED");
        Ok(json!({"url": url, "flow": body.flow, "subscription": id}))
    }

    /// The item of the subscription with its new price and quantity, as Stripe has the subscription now.
    async fn plan_change(
        &self,
        stripe: &Stripe,
        id: &SubscriptionId,
        plan: &Plan,
        quantity: Option<u64>,
    ) -> Result<[(&'static str, String); 3], Problem> {
        let refused = |error: StripeError| stripe_error(&error, "BILLING_PORTAL_NOT_CREATED");
        let subscription = stripe.subscription(id).await.map_err(refused)?.value();
        let items = subscription["items"]["data"].as_array().map_or(&[][..], Vec::as_slice);
        let [item] = items else {
            let message = "the subscription has several items, so Stripe's portal cannot change it; \
                           change it at Stripe or by its API";
            return Err(problem(StatusCode::CONFLICT, "several_items", message));
        };
        let current = item["quantity"].as_u64().unwrap_or(1);
        let quantity = match plan.per {
            Per::Seat => quantity.unwrap_or(current),
            Per::Subscription => quantity.unwrap_or(1),
        };
        if !(1..=MAX_QUANTITY).contains(&quantity) || (quantity > 1 && plan.per == Per::Subscription) {
            let message =
                format!("quantity is 1 to {MAX_QUANTITY}, and more than 1 only for a plan by the seat");
            return Err(problem(StatusCode::BAD_REQUEST, "invalid_quantity", message));
        }
        let price = self.price(stripe, &plan.sold_as).await?;
        if item["price"]["id"] == price && current == quantity {
            let message = "the user has this plan with this quantity";
            return Err(problem(StatusCode::CONFLICT, "nothing_to_change", message));
        }
        let item = item["id"].as_str().unwrap_or_default().to_owned();
        Ok([("id", item), ("price", price), ("quantity", quantity.to_string())])
    }
}

/// The subscription of the flow: the named one, else the only one. `home` and `payment_method` take the
/// first.
fn chosen<'a>(
    body: &PortalRequest,
    running: &'a [(SubscriptionId, Summary)],
) -> Result<Option<(&'a SubscriptionId, &'a Summary)>, Problem> {
    let needed = matches!(body.flow, Flow::Cancel | Flow::ChangePlan);
    let found = match &body.subscription {
        Some(name) => Some(running.iter().find(|(id, _)| id.as_str() == name).ok_or_else(no_subscription)?),
        None if needed && running.len() > 1 => {
            let list: Vec<Value> = running
                .iter()
                .map(|(id, one)| json!({"subscription": id, "plan": one.plan, "status": one.status}))
                .collect();
            let body = json!({
                "error": "several_subscriptions",
                "message": "the user has several subscriptions; name one of them as subscription",
                "subscriptions": list,
            });
            return Err(Problem::Body(StatusCode::CONFLICT, body));
        }
        None => running.first(),
    };
    let Some((id, one)) = found else {
        return if needed { Err(no_subscription()) } else { Ok(None) };
    };
    if body.flow == Flow::Cancel
        && let Some(end) = one.ends
    {
        let message = format!("the subscription ends at {end}; the portal's home can renew it");
        return Err(problem(StatusCode::CONFLICT, "nothing_to_cancel", message));
    }
    Ok(Some((id, one)))
}

/// Creates a portal session, and returns its URL.
pub(super) async fn portal_session(stripe: &Stripe, fields: Fields) -> Result<String, StripeError> {
    // A portal session expires within minutes, so each request gets a new one.
    let key = format!("portal-{}-{:016x}", clock::now_ms(), fastrand::u64(..));
    let session = stripe.create("/v1/billing_portal/sessions", &fields, &key).await?;
    Ok(session.value()["url"].as_str().unwrap_or_default().to_owned())
}

/// The answer for a portal session that Stripe did not create. A missing configuration of the portal, or one
/// that does not allow the flow, has a code of its own.
fn portal_error(error: &StripeError) -> Problem {
    if is_missing_customer(error) {
        return no_customer();
    }
    let text = error_text(error);
    // Stripe has no code for it. Its text, as quoted in github.com/mozilla/fxa/issues/13245: "You can't
    // create a portal session in test mode until you save your customer portal settings in test mode at
    // https://…"; for a flow: "… is disabled in the portal configuration".
    let names = |words: &str| text.to_lowercase().contains(words);
    if !names("portal settings") && !names("portal configuration") && !names("no configuration provided") {
        return stripe_error(error, "BILLING_PORTAL_NOT_CREATED");
    }
    warn!(error = error.to_string(), "BILLING_PORTAL_NOT_CREATED");
    let message = format!(
        "Stripe's customer portal is not configured for this: save its settings at Stripe (Settings, Billing, \
         Customer portal) in the mode of the key. Stripe says: {text}"
    );
    Problem::Body(StatusCode::BAD_GATEWAY, refusal_body(error, "no_portal_configuration", &message))
}

fn no_customer() -> Problem {
    let message = "the user has no customer at Stripe, because nothing was bought";
    problem(StatusCode::CONFLICT, "no_customer", message)
}

fn no_subscription() -> Problem {
    let message = "the user has no such subscription that runs; sell one with POST /checkout-sessions";
    problem(StatusCode::CONFLICT, "no_subscription", message)
}
