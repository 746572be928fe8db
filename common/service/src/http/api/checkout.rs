//! `POST /checkout-sessions`: creates a session of Stripe Checkout, where a customer pays.
//!
//! ```json
//! {"user_id":"user_123","plan":"pro"}
//! {"user_id":"user_123","plan":"team","quantity":7,"customer_email":"jo@example.com"}
//! {"user_id":"user_123","pack":"credits_1000","quantity":3}
//! {"user_id":"user_123","product":"break_and_enter"}
//! {"user_id":"user_123","mode":"dfy","plan":"starter","success_path":"/thanks?s={CHECKOUT_SESSION_ID}",
//!  "cancel_path":"/pricing"}
//! ```
//! ```json
//! {"session_id":"cs_test_1","url":"https://checkout.stripe.com/c/pay/cs_test_1","mode":"subscription",
//!  "customer":null,"expires_at":"…"}
//! ```
//! Names come from the catalog. Of the prices that the catalog has for a name, the session uses the one that
//! Stripe has in this mode. The user and the purchase are in the metadata of the session and of its
//! subscription or payment, because Stripe does not copy metadata between them.
//!
//! A user who has a subscription cannot buy a second one: the answer is 409 with the address of a Billing
//! Portal session, where the user can change the plan. A failure of Stripe is 502 with Stripe's message.
//!
//! The `Idempotency-Key` for Stripe is computed from the user, the account's version, all fields and the
//! hour. So a repeated request gets the same session, and a request after a purchase gets a new one.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{Api, read_body, user_id};
use crate::http::answer::{Problem, problem};
use tallyhook_aws::clock;
use tallyhook_aws::stripe::{Stripe, StripeError};
use tallyhook_core::account::State;
use tallyhook_core::catalog::{Catalog, MAX_QUANTITY, Per};
use tallyhook_core::event::SubscriptionStatus;
use tallyhook_core::ids::{CustomerId, PriceId, SessionId, SubscriptionId, UserId};
use tallyhook_core::timestamp::Timestamp;

/// The status page. Stripe replaces the placeholder with the session's id.
const SUCCESS_PATH: &str = "/portal/status?session_id={CHECKOUT_SESSION_ID}";
const EXAMPLE: &str =
    r#"{"user_id": "user_123", "plan": "pro"}, or with "pack" and "quantity", or with "mode" and "plan""#;
/// The longest path that Stripe accepts.
const MAX_PATH: usize = 1_000;

/// The price that Stripe has in this mode, by the first price in the catalog.
#[derive(Debug, Default)]
pub(super) struct Prices(Mutex<BTreeMap<String, String>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckoutRequest {
    user_id: String,
    plan: Option<String>,
    pack: Option<String>,
    product: Option<String>,
    mode: Option<String>,
    quantity: Option<u64>,
    upgraded_from: Option<String>,
    customer_email: Option<String>,
    success_path: Option<String>,
    cancel_path: Option<String>,
}

/// What is bought, according to the catalog.
#[derive(Debug, PartialEq, Eq)]
struct Purchase {
    subscription: bool,
    quantity: u64,
    prices: Vec<String>,
    /// The metadata besides the user.
    metadata: Vec<(&'static str, String)>,
}

impl Api {
    pub(super) async fn create_checkout(&self, request: &Request) -> Result<Value, Problem> {
        let body: CheckoutRequest = read_body(request, EXAMPLE)?;
        let user = user_id(&body.user_id)?;
        let purchase = purchase(&body, &self.config.catalog)?;
        let missing = |variable: &str| {
            let message = format!("{variable} is not set, so there is no checkout");
            problem(StatusCode::SERVICE_UNAVAILABLE, "checkout_not_configured", message)
        };
        let stripe = self.stripe.as_ref().ok_or_else(|| missing("STRIPE_SECRET_KEY"))?;
        let base = self.config.app_base_url.as_deref().ok_or_else(|| missing("APP_BASE_URL"))?;
        let success = path(body.success_path.as_deref(), SUCCESS_PATH, "success_path")?;
        let cancel = path(body.cancel_path.as_deref(), "/", "cancel_path")?;
        let (account, _) = self.load(&user).await?;
        if purchase.subscription
            && let Some((id, plan)) = running_subscription(&account.state, &self.config.catalog, clock::now())
        {
            return Err(self
                .already_subscribed(stripe, &account.state, &id, plan.as_deref(), &format!("{base}{cancel}"))
                .await);
        }
        let price = self.price(stripe, &purchase).await?;
        let customer = customer(&account.state, None);
        let mut fields = vec![
            ("mode", if purchase.subscription { "subscription" } else { "payment" }.to_owned()),
            ("success_url", format!("{base}{success}")),
            ("cancel_url", format!("{base}{cancel}")),
            ("client_reference_id", user.to_string()),
            ("line_items[0][price]", price),
            ("line_items[0][quantity]", purchase.quantity.to_string()),
        ];
        if let Some(customer) = customer {
            fields.push(("customer", customer.to_string()));
        } else {
            fields.extend(body.customer_email.map(|email| ("customer_email", email)));
            if !purchase.subscription {
                // Stripe creates a customer for every subscription, but not for a payment. Without a customer
                // the next purchase could not be linked to this one.
                fields.push(("customer_creation", "always".to_owned()));
            }
        }
        for (name, value) in std::iter::once(("user_id", user.to_string())).chain(purchase.metadata.clone()) {
            for field in metadata_fields(name, purchase.subscription) {
                fields.push((field, value.clone()));
            }
        }
        let own_key =
            request.headers().get("idempotency-key").map(|key| key.as_bytes().to_vec()).unwrap_or_default();
        let key = idempotency_key(&user, account.version, &fields, &own_key, clock::now());
        let session = stripe
            .create("/v1/checkout/sessions", &fields, &key)
            .await
            .map_err(|error| stripe_error(&error, "CHECKOUT_NOT_CREATED"))?;
        let session = session.value();
        let (Some(id), Some(url)) = (session["id"].as_str(), session["url"].as_str()) else {
            return Err(problem(
                StatusCode::BAD_GATEWAY,
                "stripe_error",
                "Stripe answered with a session that has no id or no url",
            ));
        };
        if let Ok(id) = SessionId::new(id) {
            self.store.note_created_session(&id, clock::now()).await?;
        }
        info!(user_id = user.as_str(), checkout_session_id = id, "CHECKOUT_CREATED");
        Ok(json!({
            "session_id": id,
            "url": url,
            "mode": if purchase.subscription { "subscription" } else { "payment" },
            "customer": customer,
            "expires_at": session["expires_at"].as_i64().map(|at| Timestamp::from_unix(at).to_string()),
        }))
    }

    /// 409 with the address where the user can change the plan. If Stripe creates no such session, the
    /// message has the reason.
    async fn already_subscribed(
        &self,
        stripe: &Stripe,
        state: &State,
        id: &SubscriptionId,
        plan: Option<&str>,
        back: &str,
    ) -> Problem {
        let mut body = json!({
            "error": "already_subscribed",
            "message": "the user has a subscription; plans are changed in Stripe's billing portal",
            "subscription": id,
            "plan": plan,
            "portal_url": null,
        });
        if let Some(customer) = customer(state, Some(id)) {
            let fields = [("customer", customer.to_string()), ("return_url", back.to_owned())];
            // A portal session expires within minutes, so each request gets a new one.
            let key = format!("portal-{customer}-{}-{:08x}", clock::now_ms(), fastrand::u32(..));
            match stripe.create("/v1/billing_portal/sessions", &fields, &key).await {
                Ok(portal) => body["portal_url"] = portal.value()["url"].clone(),
                Err(error) => {
                    warn!(error = error.to_string(), "BILLING_PORTAL_NOT_CREATED");
                    body["message"] = json!(format!(
                        "the user has a subscription, and Stripe made no billing portal session: {}",
                        error_text(&error)
                    ));
                }
            }
        }
        Problem::Body(StatusCode::CONFLICT, body)
    }

    /// The price that Stripe has in the key's mode. The catalog has the prices of both modes, and the id of a
    /// price does not show its mode.
    async fn price(&self, stripe: &Stripe, purchase: &Purchase) -> Result<String, Problem> {
        let [first, ..] = purchase.prices.as_slice() else {
            let message = "the catalog has no price for this; add prices = [\"price_…\"] to it";
            return Err(problem(StatusCode::CONFLICT, "no_price", message));
        };
        if let Some(price) = self.prices.0.lock().unwrap_or_else(PoisonError::into_inner).get(first) {
            return Ok(price.clone());
        }
        for price in &purchase.prices {
            let Ok(id) = PriceId::new(price.as_str()) else { continue };
            match stripe.price(&id).await {
                Ok(found) if found.value()["active"] == Value::Bool(false) => {}
                Ok(_) => {
                    self.prices
                        .0
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(first.clone(), price.clone());
                    return Ok(price.clone());
                }
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(stripe_error(&error, "CHECKOUT_NOT_CREATED")),
            }
        }
        let message = format!(
            "Stripe has none of these as an active price in this mode: {}",
            purchase.prices.join(", ")
        );
        Err(problem(StatusCode::CONFLICT, "no_price", message))
    }
}

/// Finds in the catalog what is to be bought.
fn purchase(body: &CheckoutRequest, catalog: &Catalog) -> Result<Purchase, Problem> {
    let unknown = |what: &str, name: &str, known: Vec<&str>| {
        let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        let message = format!("the catalog has no {what} \"{name}\"; it has: {}", known.join(", "));
        problem(StatusCode::BAD_REQUEST, "unknown_name", message)
    };
    let quantity = body.quantity.unwrap_or(1);
    let out_of_range = |message: &str| Err(problem(StatusCode::BAD_REQUEST, "invalid_quantity", message));
    if !(1..=MAX_QUANTITY).contains(&quantity) {
        return out_of_range(&format!("quantity must be a whole number from 1 to {MAX_QUANTITY}"));
    }
    if let (Some(name), None, None, None) = (&body.product, &body.plan, &body.pack, &body.mode) {
        let product = catalog.product(name).ok_or_else(|| {
            unknown("product", name, catalog.products.iter().map(|one| one.name.as_str()).collect())
        })?;
        if quantity > 1 {
            return out_of_range("a product is bought once; leave quantity out");
        }
        let metadata = vec![("product", product.name.clone())];
        return Ok(Purchase { subscription: false, quantity, prices: product.prices.clone(), metadata });
    }
    match (body.plan.as_deref(), body.pack.as_deref(), body.mode.as_deref()) {
        _ if body.product.is_some() => Err(unnamed()),
        (Some(name), None, None) => {
            let plan = catalog.plan(name).ok_or_else(|| {
                unknown("plan", name, catalog.plans.iter().map(|plan| plan.name.as_str()).collect())
            })?;
            if quantity > 1 && plan.per != Per::Seat {
                return out_of_range("this plan is not sold by the seat; leave quantity out");
            }
            let prices = plan.prices.clone();
            Ok(Purchase { subscription: true, quantity, prices, metadata: vec![("plan", plan.name.clone())] })
        }
        (None, Some(name), None) => {
            let pack = catalog.pack(name).ok_or_else(|| {
                unknown("pack", name, catalog.packs.iter().map(|pack| pack.name.as_str()).collect())
            })?;
            let metadata = vec![("pack", pack.name.clone()), ("quantity", quantity.to_string())];
            Ok(Purchase { subscription: false, quantity, prices: pack.prices.clone(), metadata })
        }
        (Some(name), None, Some(mode)) => {
            let kind = catalog.order(mode);
            let kind = kind.ok_or_else(|| {
                unknown("order mode", mode, catalog.orders.iter().map(|order| order.mode.as_str()).collect())
            })?;
            let plan = kind.plans.get(name).ok_or_else(|| {
                unknown("plan of this order", name, kind.plans.keys().map(String::as_str).collect())
            })?;
            if quantity > 1 {
                return out_of_range("an order is bought once; leave quantity out");
            }
            let mut metadata = vec![("mode", mode.to_owned()), ("plan", name.to_owned())];
            metadata.extend(body.upgraded_from.clone().map(|from| ("upgraded_from", from)));
            Ok(Purchase { subscription: false, quantity, prices: plan.prices.clone(), metadata })
        }
        _ => Err(unnamed()),
    }
}

fn unnamed() -> Problem {
    problem(StatusCode::BAD_REQUEST, "invalid_body", format!("say what is bought: {EXAMPLE}"))
}

/// A subscription that has not ended at Stripe, with the plan's name. It may give no access at the moment.
fn running_subscription(
    state: &State,
    catalog: &Catalog,
    now: Timestamp,
) -> Option<(SubscriptionId, Option<String>)> {
    use SubscriptionStatus as Status;
    let is_running = |status: &Status| match status {
        Status::Active | Status::Trialing | Status::PastDue | Status::Unpaid | Status::Paused => true,
        Status::Incomplete | Status::IncompleteExpired | Status::Canceled | Status::Other(_) => false,
    };
    state.subscriptions.keys().find_map(|id| {
        let one = state.summary(id, catalog, now)?;
        let runs = one.status.as_ref().is_some_and(is_running) || one.runs_by_invoice(now);
        runs.then(|| (id.clone(), one.plan))
    })
}

/// The user's customer at Stripe: the one that pays for this subscription, otherwise one that is not deleted.
fn customer<'a>(state: &'a State, of: Option<&SubscriptionId>) -> Option<&'a CustomerId> {
    let paying =
        of.and_then(|id| state.subscriptions.get(id)).and_then(|subscription| subscription.customer.as_ref());
    paying.or_else(|| {
        state.customers.iter().find(|(_, deleted)| deleted.is_none()).map(|(customer, _)| customer)
    })
}

/// The two fields for one value of metadata: on the session, and on its subscription or payment.
fn metadata_fields(name: &'static str, subscription: bool) -> [&'static str; 2] {
    match (name, subscription) {
        ("user_id", true) => ["metadata[user_id]", "subscription_data[metadata][user_id]"],
        ("user_id", false) => ["metadata[user_id]", "payment_intent_data[metadata][user_id]"],
        ("plan", true) => ["metadata[plan]", "subscription_data[metadata][plan]"],
        ("plan", false) => ["metadata[plan]", "payment_intent_data[metadata][plan]"],
        ("product", _) => ["metadata[product]", "payment_intent_data[metadata][product]"],
        ("pack", _) => ["metadata[pack]", "payment_intent_data[metadata][pack]"],
        ("quantity", _) => ["metadata[quantity]", "payment_intent_data[metadata][quantity]"],
        ("mode", _) => ["metadata[mode]", "payment_intent_data[metadata][mode]"],
        (_, _) => ["metadata[upgraded_from]", "payment_intent_data[metadata][upgraded_from]"],
    }
}

/// Checks a path on the app's host. Full addresses are refused, because a caller of the app could use them to
/// send its customers to another site.
fn path<'a>(path: Option<&'a str>, default: &'a str, name: &str) -> Result<&'a str, Problem> {
    let path = path.unwrap_or(default);
    let plain = |c: char| c.is_ascii_graphic() && c != '\\';
    if !path.starts_with('/') || path.starts_with("//") || path.len() > MAX_PATH || !path.chars().all(plain) {
        let message =
            format!("{name} must be a path on APP_BASE_URL, such as /thanks?session={{CHECKOUT_SESSION_ID}}");
        return Err(problem(StatusCode::BAD_REQUEST, "invalid_path", message));
    }
    Ok(path)
}

fn idempotency_key(
    user: &UserId,
    version: u64,
    fields: &[(&'static str, String)],
    own: &[u8],
    now: Timestamp,
) -> String {
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    };
    add(user.as_str().as_bytes());
    add(own);
    add(&now.unix().div_euclid(3600).to_be_bytes());
    fields.iter().for_each(|(name, value)| {
        add(name.as_bytes());
        add(value.as_bytes());
    });
    let hex: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("checkout-{version}-{hex}")
}

/// 502 with Stripe's message.
fn stripe_error(error: &StripeError, log: &'static str) -> Problem {
    warn!(error = error.to_string(), "{log}");
    let mut body = json!({"error": "stripe_error", "message": error_text(error)});
    if let Some(refusal) = error.refusal() {
        body["stripe"] = json!({
            "status": refusal.status, "type": refusal.kind, "code": refusal.code, "param": refusal.param,
            "request_id": refusal.request_id,
        });
    }
    Problem::Body(StatusCode::BAD_GATEWAY, body)
}

/// Stripe's message, or that it did not answer.
fn error_text(error: &StripeError) -> String {
    error
        .refusal()
        .map_or_else(|| "Stripe did not answer; try again".to_owned(), |refusal| refusal.message.clone())
}
