//! The example shop of the start page, and pages in place of Stripe's checkout and billing portal.
//!
//! The shop is an app that uses the deployment: its backend calls the app's API with the app's token, and
//! receives the app's webhook. All of it goes over HTTP through the gateway:
//!
//! ```text
//! browser ─► POST /local/shop/ada/buy ─► POST /checkout-sessions ─► the fake Stripe makes a session
//!   ─► GET  /local/stripe/pay/cs_…       checkout; "Pay" sends the signed events of the purchase, shuffled,
//!   one of them twice ─► GET  /portal/status?session_id=…  the status page ─► GET  /
//!   the account, the events of Stripe, the ledger, the notifications of the app
//! ```
//! A yearly plan is on a test clock of the fake Stripe: "Let one month pass" moves it by a month.
//!
//! With the user's own Stripe (`STRIPE_SECRET_KEY`) the shop sells through that one, and checkout, renewal
//! and refund happen there.
//!
//! Requests that change something are refused from pages of other hosts.

mod pages;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cli::client::Client;
use cli::local_stack::ADMIN_TOKEN;
use cli::send::signed_request;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::EventType;
use tallyhook_core::signature::{Secret, SecretMode};
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::config::signing_secrets;
use tallyhook_service::outbox::provision::sign;
use tokio::sync::watch;
use uuid::Uuid;

use super::queue_activity::QueueActivity;
use crate::fake_stripe::{FakeStripe, FiredEvent, Payment};

/// The secret of the app's webhook when the shop is the app.
pub(super) const APP_WEBHOOK_SECRET: &str = "whsec_dGFsbHlob29rLWxvY2FsLXNob3Atd2ViaG9vaw==";
/// The path of the app's webhook when the shop is the app.
pub(super) const APP_WEBHOOK_PATH: &str = "/local/shop-webhook";
/// The maximum number of deliveries, and of notifications, that are kept.
const MAX_HISTORY: usize = 400;
/// The number of entries on the page.
const MAX_SHOWN: usize = 12;

/// The shop. Clones share everything.
#[derive(Clone)]
pub(super) struct Shop {
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    aws_url: String,
    client: Client,
    app_token: Option<String>,
    /// The token of the dashboard. `None` when it is the user's own and must not be shown.
    admin_token: Option<&'static str>,
    /// Whether the shop receives the app's webhook.
    is_app: bool,
    catalog: watch::Receiver<Catalog>,
    stripe: Option<FakeStripe>,
    secret: Option<Secret>,
    activity: QueueActivity,
    history: Mutex<History>,
}

/// What happened since the start, newest last.
#[derive(Default)]
struct History {
    deliveries: VecDeque<Delivery>,
    notifications: VecDeque<AppNotification>,
}

/// One delivery of an event by Stripe.
struct Delivery {
    user: String,
    event: String,
    kind: String,
    again: bool,
    status: u16,
}

/// One request to the app's webhook.
struct AppNotification {
    user: String,
    body: Value,
}

/// An error answer: the status, and a body with a code and a message.
struct ApiError(StatusCode, Value);

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self(StatusCode::CONFLICT, json!({ "error": "not_done", "message": format!("{error:#}") }))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

type Answer = Result<Json<Value>, ApiError>;

impl Shop {
    /// The shop of a stack that answers at `url`.
    pub(super) fn new(
        env: &Env,
        url: &str,
        aws_url: &str,
        stripe: Option<&FakeStripe>,
        activity: QueueActivity,
        catalog: watch::Receiver<Catalog>,
    ) -> anyhow::Result<Self> {
        let secrets = signing_secrets(env)?;
        let shared = Shared {
            url: url.to_owned(),
            aws_url: aws_url.to_owned(),
            client: Client::for_url(url)?,
            app_token: env
                .get("APP_API_TOKEN")
                .and_then(|list| Some(list.split(',').next()?.trim().to_owned())),
            admin_token: (env.get("ADMIN_API_TOKEN").as_deref() == Some(ADMIN_TOKEN)).then_some(ADMIN_TOKEN),
            is_app: env.get("PROVISION_URL").is_some_and(|url| url.ends_with(APP_WEBHOOK_PATH)),
            catalog,
            stripe: stripe.cloned(),
            // The fake Stripe is in test mode.
            secret: secrets.into_iter().find(|secret| secret.mode() != SecretMode::Live),
            activity,
            history: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The routes of the shop.
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/", get(async |State(shop): State<Self>| pages::start(&shop.shared)))
            .route("/local/pricing", get(async || pages::pricing()))
            .route("/local/shop/{user}", get(show))
            .route("/local/shop/{user}/{button}", post(press))
            .route("/local/stripe/pay/{session}", get(pay_page).post(pay))
            .route("/local/stripe/billing/{customer}", get(billing_page).post(bill))
            .route(APP_WEBHOOK_PATH, post(app_webhook))
            .with_state(self)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.shared.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self) -> anyhow::Result<&FakeStripe> {
        self.shared.stripe.as_ref().context("this stack uses your own Stripe: do it there")
    }

    /// Calls the app's API, as the app's backend does.
    async fn app(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.shared.url))
            .header(
                "authorization",
                format!("Bearer {}", self.shared.app_token.as_deref().unwrap_or_default()),
            )
            .header("content-type", "application/json")
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(body.map_or_else(Vec::new, |body| body.to_string().into_bytes()));
        let (status, answer) = self.shared.client.send(request.context("cannot build the request")?).await?;
        let answer = serde_json::from_slice(&answer)
            .unwrap_or_else(|_| json!({ "error": "unreadable", "message": "the answer is not JSON" }));
        if status.is_success() { Ok(answer) } else { Err(ApiError(status, answer)) }
    }

    /// Calls a route of one user.
    async fn user(
        &self,
        method: Method,
        user: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, ApiError> {
        self.app(method, &format!("/users/{}{path}", utf8_percent_encode(user, NON_ALPHANUMERIC)), body).await
    }

    /// Delivers events as Stripe does: signed, in any order, at least once. Events of types that no family
    /// handles are left out, because an endpoint does not subscribe to them.
    async fn deliver(&self, user: &str, fired: Vec<FiredEvent>) -> anyhow::Result<()> {
        let secret =
            self.shared.secret.as_ref().context(
                "the fake Stripe is in test mode, and STRIPE_WEBHOOK_SECRET is for live mode only",
            )?;
        let (mut events, unhandled): (Vec<FiredEvent>, Vec<FiredEvent>) =
            fired.into_iter().partition(|event| EventType::from(event.kind.as_str()).family().is_some());
        if let Some(stripe) = &self.shared.stripe {
            unhandled.iter().for_each(|event| stripe.mark_delivered(&event.id));
        }
        fastrand::shuffle(&mut events);
        if let Some(again) = fastrand::choice(&events).cloned() {
            events.insert(fastrand::usize(..=events.len()), again);
        }
        let url = format!("{}/webhooks/stripe", self.shared.url);
        for event in events {
            let (status, _) = self
                .shared
                .client
                .send(signed_request(&url, event.body.as_bytes(), secret).context("the webhook's URL")?)
                .await?;
            let mut history = self.history();
            let again = history.deliveries.iter().any(|delivery| delivery.event == event.id);
            keep(
                &mut history.deliveries,
                Delivery {
                    user: user.to_owned(),
                    event: event.id,
                    kind: event.kind,
                    again,
                    status: status.as_u16(),
                },
            );
        }
        Ok(())
    }

    /// Everything that the page shows of a user.
    async fn show(&self, user: &str) -> Answer {
        let account = match self.user(Method::GET, user, "", None).await {
            Ok(account) => account,
            Err(ApiError(StatusCode::NOT_FOUND, _)) => {
                return Ok(Json(json!({ "user": user, "account": null })));
            }
            Err(error) => return Err(error),
        };
        let ledger = self.user(Method::GET, user, &format!("/ledger?limit={MAX_SHOWN}"), None).await?;
        let session = self.shared.stripe.as_ref().and_then(|stripe| stripe.session_of(user));
        let setup = match session.as_ref().and_then(|session| session["id"].as_str()) {
            Some(session) => {
                self.app(Method::GET, &format!("/portal/setup-status?session_id={session}"), None).await.ok()
            }
            None => None,
        };
        let customer =
            self.shared.stripe.as_ref().and_then(|stripe| Some((stripe, stripe.customer_of(user)?)));
        let subscription = customer.as_ref().and_then(|(stripe, customer)| stripe.subscription_of(customer));
        let charge = customer.as_ref().and_then(|(stripe, customer)| stripe.charge_of(customer));
        let payment_is_pending =
            session.as_ref().is_some_and(|session| session["payment_status"] == "unpaid");
        let clock = subscription.as_ref().filter(|one| one["test_clock"].is_string());
        let date = clock.and_then(|one| one["metadata"]["date"].as_str().map(str::to_owned));
        let history = self.history();
        let deliveries = history.deliveries.iter().rev().filter(|delivery| delivery.user == user);
        let sent: Vec<Value> = deliveries
            .take(MAX_SHOWN)
            .map(|delivery| {
                json!({
                    "event": delivery.event,
                    "type": delivery.kind,
                    "again": delivery.again,
                    "status": delivery.status,
                })
            })
            .collect();
        let notifications =
            history.notifications.iter().rev().filter(|notification| notification.user == user);
        let shown: Vec<&Value> =
            notifications.take(MAX_SHOWN).map(|notification| &notification.body).collect();
        Ok(Json(json!({
            "user": user,
            "account": account,
            "ledger": ledger["entries"],
            "setup": setup,
            "sent": sent,
            "notifications": shown,
            "at_rest": self.shared.activity.is_at_rest(),
            "yearly": clock.is_some(),
            "date": date,
            "can": {
                "renew": subscription.is_some(),
                "cancel": subscription.is_some(),
                "portal": subscription.is_some(),
                "refund": charge.map(|charge| pages::money(&charge["amount"], &charge["currency"])),
                "arrive": payment_is_pending,
            },
        })))
    }

    /// Does what a button of the shop stands for.
    async fn press(&self, user: &str, button: &str, body: &Value) -> Answer {
        let answer = match button {
            "sign-up" => self.user(Method::PUT, user, "", None).await?,
            "buy" => {
                let mut order = body.clone();
                order["user_id"] = json!(user);
                return self.app(Method::POST, "/checkout-sessions", Some(order)).await.map(Json);
            }
            "spend" => self.user(Method::POST, user, "/credits/consume", Some(body.clone())).await?,
            "portal" => self.user(Method::POST, user, "/portal", Some(body.clone())).await?,
            "password" => {
                self.app(Method::POST, "/portal/password-set", Some(json!({ "user_id": user }))).await?
            }
            "renew" | "cancel" | "refund" | "arrive" => {
                let fired = self.fire(user, button)?;
                self.deliver(user, fired).await?;
                json!({})
            }
            _ => {
                return Err(ApiError(
                    StatusCode::NOT_FOUND,
                    json!({ "error": "not_found", "message": "the shop has no such button" }),
                ));
            }
        };
        Ok(Json(answer))
    }

    /// The events that Stripe fires when time passes, or when the customer or the merchant does something.
    fn fire(&self, user: &str, button: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let stripe = self.stripe()?;
        if button == "arrive" {
            let session = stripe.session_of(user).context("the user has bought nothing")?;
            return stripe.clear(id(&session)?, true);
        }
        let customer = stripe.customer_of(user).context("the user has bought nothing")?;
        if button == "refund" {
            return stripe
                .refund(id(&stripe.charge_of(&customer).context("there is no payment to refund")?)?);
        }
        let subscription = stripe.subscription_of(&customer).context("there is no subscription")?;
        let subscription = id(&subscription)?;
        if button == "renew" { stripe.pass_a_month(subscription) } else { stripe.cancel(subscription) }
    }
}

/// `GET /local/shop/{user}`
async fn show(State(shop): State<Shop>, Path(user): Path<String>) -> Answer {
    shop.show(&user).await
}

/// `POST /local/shop/{user}/{button}`
async fn press(
    State(shop): State<Shop>,
    Path((user, button)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    shop.press(&user, &button, &read(&headers, &body)?).await
}

/// `GET /local/stripe/pay/{session}`: the checkout page.
async fn pay_page(State(shop): State<Shop>, Path(session): Path<String>) -> Response {
    let found = shop.shared.stripe.as_ref().and_then(|stripe| stripe.object(&session));
    pages::pay(&shop.shared, found.filter(|found| found["object"] == "checkout.session").as_ref())
}

/// `POST /local/stripe/pay/{session}`: `{"how":"now"}`, `"later"` or `"back"`. The answer holds the
/// next page.
async fn pay(
    State(shop): State<Shop>,
    Path(session): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let choice = read(&headers, &body)?;
    let stripe = shop.stripe()?;
    let shown = stripe.object(&session).context("there is no such session")?;
    if choice["how"] == "back" {
        return Ok(Json(json!({ "next": shown["cancel_url"] })));
    }
    let how = if choice["how"] == "later" { Payment::Later } else { Payment::AtOnce };
    let fired = stripe.pay(&session, how)?;
    shop.deliver(shown["client_reference_id"].as_str().unwrap_or_default(), fired).await?;
    let next = shown["success_url"].as_str().unwrap_or("/").replace("{CHECKOUT_SESSION_ID}", &session);
    Ok(Json(json!({ "next": next })))
}

/// `GET /local/stripe/billing/{customer}`: the billing portal.
async fn billing_page(State(shop): State<Shop>, Path(customer): Path<String>) -> Response {
    let subscription = shop.shared.stripe.as_ref().and_then(|stripe| stripe.subscription_of(&customer));
    pages::billing(&shop.shared, &customer, subscription.as_ref())
}

/// `POST /local/stripe/billing/{customer}`: `{"plan":"business"}` changes the plan, `{"plan":null}`
/// cancels it.
async fn bill(
    State(shop): State<Shop>,
    Path(customer): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let choice = read(&headers, &body)?;
    let stripe = shop.stripe()?;
    let subscription = stripe.subscription_of(&customer).context("there is no subscription")?;
    let fired = match choice["plan"].as_str() {
        None => stripe.cancel(id(&subscription)?)?,
        Some(name) => {
            let catalog = shop.shared.catalog.borrow();
            let plan = catalog.plan(name).with_context(|| format!("the catalog has no plan {name}"))?;
            stripe.change_plan(
                id(&subscription)?,
                plan.sold_as.prices.first().context("the plan has no price")?,
            )?
        }
    };
    shop.deliver(subscription["metadata"]["user_id"].as_str().unwrap_or_default(), fired).await?;
    Ok(Json(json!({ "next": "/" })))
}

/// The app's webhook: checks the signature as an app must, and keeps the notification.
async fn app_webhook(State(shop): State<Shop>, headers: HeaderMap, body: String) -> Response {
    let refuse = |why: &str| {
        (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_request", "message": why }))).into_response()
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let time = text("webhook-timestamp").parse().map(Timestamp::from_unix);
    let secret = STANDARD.decode(APP_WEBHOOK_SECRET.trim_start_matches("whsec_"));
    let (Ok(time), Ok(secret)) = (time, secret) else { return refuse("webhook-timestamp is not a time") };
    if sign(&secret, text("webhook-id"), time, &body) != text("webhook-signature") {
        return refuse("the signature does not match");
    }
    let Ok(body) = serde_json::from_str::<Value>(&body) else { return refuse("the body is not JSON") };
    let user = body["data"]["user_id"].as_str().unwrap_or_default().to_owned();
    keep(&mut shop.history().notifications, AppNotification { user, body });
    StatusCode::NO_CONTENT.into_response()
}

/// The body of a request that changes something. Fails when the request comes from a page of another host.
fn read(headers: &HeaderMap, body: &Bytes) -> Result<Value, ApiError> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(header::ORIGIN).map(|origin| origin.trim_start_matches("http://"));
    if origin.is_some() && origin != text(header::HOST) {
        return Err(ApiError(
            StatusCode::FORBIDDEN,
            json!({ "error": "forbidden", "message": "this route is for pages of this stack only" }),
        ));
    }
    if body.is_empty() {
        return Ok(json!({}));
    }
    let body: Value = serde_json::from_slice(body).context("the body is not JSON")?;
    if !body.is_object() {
        return Err(anyhow::anyhow!("the body is not a JSON object").into());
    }
    Ok(body)
}

fn id(object: &Value) -> anyhow::Result<&str> {
    object["id"].as_str().context("the object has no id")
}

/// Adds an entry. The oldest one is dropped when there are [`MAX_HISTORY`].
fn keep<T>(list: &mut VecDeque<T>, entry: T) {
    if list.len() == MAX_HISTORY {
        list.pop_front();
    }
    list.push_back(entry);
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Stack};
    use super::*;

    async fn ask(
        stack: &Stack,
        method: Method,
        path: &str,
        body: &str,
        origin: Option<&str>,
    ) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", stack.front_url));
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let client = Client::for_url(&stack.front_url).unwrap();
        let (status, answer) = client.send(request.body(body.as_bytes().to_vec()).unwrap()).await.unwrap();
        (status.as_u16(), serde_json::from_slice(&answer).unwrap_or_default())
    }

    #[tokio::test]
    async fn a_purchase_in_the_shop_is_credited_once_and_reported_to_the_app() {
        let stack = Stack::start(Options { is_app: true, ..Options::default() }).await.unwrap();
        let own = Some(stack.front_url.as_str());
        assert_eq!(ask(&stack, Method::POST, "/local/shop/a%20b/sign-up", "{}", own).await.0, 200);
        let (_, session) = ask(&stack, Method::POST, "/local/shop/a%20b/buy", r#"{"plan":"pro"}"#, own).await;
        let page = session["url"].as_str().unwrap().strip_prefix(&stack.front_url).unwrap().to_owned();
        let (status, next) = ask(&stack, Method::POST, &page, r#"{"how":"now"}"#, own).await;
        let expected = format!(
            "{}/portal/status?session_id={}",
            stack.front_url,
            session["session_id"].as_str().unwrap()
        );
        assert_eq!((status, next["next"].as_str().unwrap()), (200, expected.as_str()));
        stack.idle().await;

        let (_, page) = ask(&stack, Method::GET, "/local/shop/a%20b", "", None).await;
        assert_eq!(
            (&page["account"]["tier"], &page["account"]["credits"]),
            (&json!("pro"), &json!(5_000)),
            "{page:#}"
        );
        assert_eq!(
            (&page["setup"]["payment_state"], &page["setup"]["provisioning_state"]),
            (&json!("paid"), &json!("completed"))
        );
        let sent = page["sent"].as_array().unwrap();
        assert_eq!(
            (sent.len(), sent.iter().filter(|sent| sent["again"] == true).count()),
            (4, 1),
            "{page:#}"
        );
        let notifications = page["notifications"].as_array().unwrap();
        assert_eq!(
            notifications.iter().filter(|job| job["type"] == "payment.confirmed").count(),
            1,
            "{page:#}"
        );
        assert_eq!(notifications[0]["data"]["credits"], 5_000, "{page:#}");

        let flow = r#"{"flow":"change_plan","plan":"business"}"#;
        let (status, opened) = ask(&stack, Method::POST, "/local/shop/a%20b/portal", flow, own).await;
        assert_eq!((status, opened["url"].as_str().is_some()), (200, true), "{opened}");

        // A second subscription is not sold: the plan is changed in the billing portal.
        let (status, portal) =
            ask(&stack, Method::POST, "/local/shop/a%20b/buy", r#"{"plan":"business"}"#, own).await;
        assert_eq!(status, 409);
        let portal =
            portal["portal_url"].as_str().unwrap().strip_prefix(&stack.front_url).unwrap().to_owned();
        assert_eq!(ask(&stack, Method::POST, &portal, r#"{"plan":"business"}"#, own).await.0, 200);
        stack.idle().await;
        assert_eq!(
            ask(&stack, Method::GET, "/local/shop/a%20b", "", None).await.1["account"]["credits"],
            20_000
        );
        stack.stop().await;
    }

    #[tokio::test]
    async fn the_shop_sells_a_product_and_its_refund_takes_it_back() {
        let file = std::env::temp_dir().join(format!("tallyhook-shop-{}.toml", std::process::id()));
        let catalog = include_str!("../../../catalog.toml");
        let product = "[features]\nexport = \"switch\"\n[[product]]\nname = \"course\"\n\
                       features = { export = true }\nprices = [\"price_course\"]\n";
        std::fs::write(&file, format!("{catalog}{product}")).unwrap();
        let mut env = Env::default();
        env.set("CATALOG_FILE", file.to_string_lossy());
        let stack = Stack::start(Options { is_app: true, env, ..Options::default() }).await.unwrap();
        let own = Some(stack.front_url.as_str());
        let shows = async || {
            stack.idle().await;
            let (_, page) = ask(&stack, Method::GET, "/local/shop/ada", "", None).await;
            let notifications = page["notifications"].as_array().unwrap().iter();
            let types: Vec<String> =
                notifications.map(|one| one["type"].as_str().unwrap().to_owned()).collect();
            (page["account"]["products"][0]["status"].clone(), page["account"]["features"].clone(), types)
        };
        assert_eq!(ask(&stack, Method::POST, "/local/shop/ada/sign-up", "{}", own).await.0, 200);
        let buy = r#"{"product":"course"}"#;
        let (status, session) = ask(&stack, Method::POST, "/local/shop/ada/buy", buy, own).await;
        assert_eq!(status, 200, "{session:#}");
        let page = session["url"].as_str().unwrap().strip_prefix(&stack.front_url).unwrap().to_owned();
        assert_eq!(ask(&stack, Method::POST, &page, r#"{"how":"now"}"#, own).await.0, 200);
        let (product, features, types) = shows().await;
        assert_eq!((product, &features["export"]), (json!("active"), &json!(true)));
        assert!(types.contains(&"product.granted".to_owned()), "{types:?}");
        assert_eq!(ask(&stack, Method::POST, "/local/shop/ada/refund", "{}", own).await.0, 200);
        let (product, features, types) = shows().await;
        assert_eq!((product, &features["export"]), (json!("refunded"), &json!(false)));
        assert!(types.contains(&"product.revoked".to_owned()), "{types:?}");
        stack.stop().await;
        std::fs::remove_file(&file).unwrap();
    }

    #[tokio::test]
    async fn pages_of_other_hosts_and_unsigned_notifications_change_nothing() {
        let stack = Stack::start(Options { is_app: true, ..Options::default() }).await.unwrap();
        for foreign in ["https://evil.example", "null", "http://127.0.0.1:1"] {
            assert_eq!(
                ask(&stack, Method::POST, "/local/shop/eve/sign-up", "{}", Some(foreign)).await.0,
                403,
                "{foreign}"
            );
        }
        assert_eq!(ask(&stack, Method::GET, "/local/shop/eve", "", None).await.1["account"], Value::Null);
        let notification = r#"{"type":"account.updated","data":{"user_id":"eve"}}"#;
        assert_eq!(ask(&stack, Method::POST, APP_WEBHOOK_PATH, notification, None).await.0, 400);
        for (path, body) in [
            ("/local/shop/eve/dance", "{}"),
            ("/local/shop/eve/renew", "{}"),
            ("/local/stripe/pay/cs_none", "{}"),
        ] {
            assert!((400..500).contains(&ask(&stack, Method::POST, path, body, None).await.0), "{path}");
        }
        assert_eq!(ask(&stack, Method::POST, "/local/shop/eve/spend", "not json", None).await.0, 409);
        stack.stop().await;
    }
}
