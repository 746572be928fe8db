//! The pretend shop of the start page, and the pages that play Stripe's own.
//!
//! The shop is what an app is to a deployment: its backend calls the app's API with the app's token and gets
//! the app's webhook. Everything goes over HTTP through the front, as it would from outside:
//!
//! ```text
//! browser ─► POST /local/shop/ada/buy ─► POST /checkout-sessions ─► the fake Stripe makes a session
//!         ─► GET  /local/stripe/pay/cs_…       its page; "Pay" fires the events of the purchase, signed, in any order, one of them twice
//!         ─► GET  /portal/status?session_id=…  the status page
//!         ─► GET  /                            the shop shows the account, what Stripe sent, the ledger, what the app was told
//! ```
//! With a Stripe of the person's own (`STRIPE_SECRET_KEY`) the shop sells through that one, and what comes
//! after happens there.
//!
//! Requests that change something are answered to pages of this host only.

mod pages;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::EventType;
use tallyhook_core::signature::{Secret, SecretMode};
use tallyhook_core::timestamp::Timestamp;
use tallyhook_service::config::{ApiConfig, signing_secrets};
use tallyhook_service::outbox::provision::sign;
use uuid::Uuid;

use super::{ADMIN_TOKEN, Rest};
use crate::client::Client;
use crate::fake_stripe::{FakeStripe, Fired, Payment};

/// The secret of the app's webhook, if the shop is the app.
pub(super) const APP_WEBHOOK_SECRET: &str = "whsec_dGFsbHlob29rLWxvY2FsLXNob3Atd2ViaG9vaw==";
/// Where the shop is told.
pub(super) const APP_WEBHOOK_PATH: &str = "/local/shop-webhook";
/// How much of what was sent and told is remembered.
const REMEMBERED: usize = 400;
/// How much of it is shown.
const SHOWN: usize = 12;

/// The shop; clones are handles of the same one.
#[derive(Clone)]
pub(super) struct Shop {
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    aws_url: String,
    client: Client,
    app_token: Option<String>,
    /// What the admin's page asks for, if it may be shown.
    admin_token: Option<&'static str>,
    /// Whether the app's webhook is the shop's.
    is_app: bool,
    catalog: Catalog,
    stripe: Option<FakeStripe>,
    secret: Option<Secret>,
    rest: Rest,
    seen: Mutex<Seen>,
}

/// What went by since the start, newest last.
#[derive(Default)]
struct Seen {
    sent: VecDeque<Sent>,
    told: VecDeque<Told>,
}

/// One delivery of Stripe's.
struct Sent {
    user: String,
    event: String,
    kind: String,
    again: bool,
    status: u16,
}

/// One request to the app's webhook.
struct Told {
    user: String,
    body: Value,
}

/// Why a request is not done: its status, a code and a sentence.
struct Refused(StatusCode, Value);

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self(StatusCode::CONFLICT, json!({ "error": "not_done", "message": format!("{error:#}") }))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

type Answer = Result<Json<Value>, Refused>;

impl Shop {
    /// The shop of a stack that answers at `url`.
    pub(super) fn new(
        env: &Env,
        url: &str,
        aws_url: &str,
        stripe: Option<&FakeStripe>,
        rest: Rest,
    ) -> anyhow::Result<Self> {
        let secrets = signing_secrets(env)?;
        let shared = Shared {
            url: url.to_owned(),
            aws_url: aws_url.to_owned(),
            client: Client::for_url(url)?,
            app_token: env.get("APP_API_TOKEN"),
            admin_token: (env.get("ADMIN_API_TOKEN").as_deref() == Some(ADMIN_TOKEN)).then_some(ADMIN_TOKEN),
            is_app: env.get("PROVISION_URL").is_some_and(|told| told.ends_with(APP_WEBHOOK_PATH)),
            catalog: ApiConfig::from_env(env).map(|config| config.catalog)?,
            stripe: stripe.cloned(),
            // The fake Stripe lives in test mode.
            secret: secrets.into_iter().find(|secret| secret.mode() != SecretMode::Live),
            rest,
            seen: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Its routes.
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/", get(async |State(shop): State<Self>| pages::start(&shop.shared)))
            .route("/local/shop/{user}", get(look))
            .route("/local/shop/{user}/{act}", post(act))
            .route("/local/stripe/pay/{session}", get(pay_page).post(pay))
            .route("/local/stripe/billing/{customer}", get(billing_page).post(bill))
            .route(APP_WEBHOOK_PATH, post(told))
            .with_state(self)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self) -> anyhow::Result<&FakeStripe> {
        self.shared.stripe.as_ref().context("this stack asks a Stripe of your own: do it there")
    }

    /// Calls the app's API, as the app's backend does.
    async fn app(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Refused> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.shared.url))
            .header(
                "authorization",
                format!("Bearer {}", self.shared.app_token.as_deref().unwrap_or_default()),
            )
            .header("content-type", "application/json")
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())));
        let (status, answer) = self.shared.client.send(request.context("a path")?).await?;
        let answer = serde_json::from_slice(&answer)
            .unwrap_or_else(|_| json!({ "error": "unreadable", "message": "no JSON" }));
        if status.is_success() { Ok(answer) } else { Err(Refused(status, answer)) }
    }

    /// The same, of one user.
    async fn user(
        &self,
        method: Method,
        user: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, Refused> {
        self.app(method, &format!("/users/{}{path}", utf8_percent_encode(user, NON_ALPHANUMERIC)), body).await
    }

    /// Delivers events as Stripe does: signed, in no order, at least once. Those that no endpoint would ask
    /// for are left out.
    async fn deliver(&self, user: &str, fired: Vec<Fired>) -> anyhow::Result<()> {
        let secret = self
            .shared
            .secret
            .as_ref()
            .context("STRIPE_WEBHOOK_SECRET is for live mode only; the fake Stripe has none")?;
        let (mut events, rest): (Vec<Fired>, Vec<Fired>) =
            fired.into_iter().partition(|event| EventType::from(event.kind.as_str()).family().is_some());
        rest.iter().for_each(|event| {
            if let Some(stripe) = &self.shared.stripe {
                stripe.mark_delivered(&event.id)
            }
        });
        fastrand::shuffle(&mut events);
        if let Some(again) = fastrand::choice(&events).cloned() {
            events.insert(fastrand::usize(..=events.len()), again);
        }
        let url = format!("{}/webhooks/stripe", self.shared.url);
        for event in events {
            let (status, _) = self.shared.client.send(event.request(&url, secret, now())?).await?;
            let mut seen = self.seen();
            let again = seen.sent.iter().any(|sent| sent.event == event.id);
            remember(
                &mut seen.sent,
                Sent {
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

    /// What is to be seen of a user.
    async fn look(&self, user: &str) -> Answer {
        let account = match self.user(Method::GET, user, "", None).await {
            Ok(account) => account,
            Err(Refused(StatusCode::NOT_FOUND, _)) => {
                return Ok(Json(json!({ "user": user, "account": null })));
            }
            Err(refused) => return Err(refused),
        };
        let ledger = self.user(Method::GET, user, &format!("/ledger?limit={SHOWN}"), None).await?;
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
        let waits = session.as_ref().is_some_and(|session| session["payment_status"] == "unpaid");
        let seen = self.seen();
        let sent = seen.sent.iter().rev().filter(|sent| sent.user == user).take(SHOWN);
        let sent: Vec<Value> =
            sent.map(|sent| json!({ "event": sent.event, "type": sent.kind, "again": sent.again, "status": sent.status })).collect();
        let told: Vec<&Value> = seen
            .told
            .iter()
            .rev()
            .filter(|told| told.user == user)
            .take(SHOWN)
            .map(|told| &told.body)
            .collect();
        Ok(Json(json!({
            "user": user,
            "account": account,
            "ledger": ledger["entries"],
            "setup": setup,
            "sent": sent,
            "told": told,
            "at_rest": self.shared.rest.holds(),
            "can": {
                "renew": subscription.is_some(),
                "cancel": subscription.is_some(),
                "refund": charge.map(|charge| pages::money(&charge["amount"], &charge["currency"])),
                "arrive": waits,
            },
        })))
    }

    /// What a button of the shop does.
    async fn act(&self, user: &str, act: &str, body: &Value) -> Answer {
        let done = match act {
            "sign-up" => self.user(Method::PUT, user, "", None).await?,
            "buy" => {
                let mut wish = body.clone();
                wish["user_id"] = json!(user);
                return self.app(Method::POST, "/checkout-sessions", Some(wish)).await.map(Json);
            }
            "spend" => self.user(Method::POST, user, "/credits/consume", Some(body.clone())).await?,
            "password" => {
                self.app(Method::POST, "/portal/password-set", Some(json!({ "user_id": user }))).await?
            }
            "renew" | "cancel" | "refund" | "arrive" => {
                let fired = self.happen(user, act)?;
                self.deliver(user, fired).await?;
                json!({})
            }
            _ => {
                return Err(Refused(
                    StatusCode::NOT_FOUND,
                    json!({ "error": "not_found", "message": "the shop has no such button" }),
                ));
            }
        };
        Ok(Json(done))
    }

    /// What the passing of time or a merchant's click makes Stripe fire.
    fn happen(&self, user: &str, act: &str) -> anyhow::Result<Vec<Fired>> {
        let stripe = self.stripe()?;
        if act == "arrive" {
            let session = stripe.session_of(user).context("nothing was bought")?;
            return stripe.clear(id(&session)?, true);
        }
        let customer = stripe.customer_of(user).context("nothing was bought")?;
        if act == "refund" {
            return stripe
                .refund(id(&stripe.charge_of(&customer).context("there is no payment to give back")?)?);
        }
        let subscription = stripe.subscription_of(&customer).context("there is no subscription")?;
        if act == "renew" { stripe.renew(id(&subscription)?) } else { stripe.cancel(id(&subscription)?) }
    }
}

/// `GET /local/shop/{user}`
async fn look(State(shop): State<Shop>, Path(user): Path<String>) -> Answer {
    shop.look(&user).await
}

/// `POST /local/shop/{user}/{act}`
async fn act(
    State(shop): State<Shop>,
    Path((user, act)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    shop.act(&user, &act, &read(&headers, &body)?).await
}

/// `GET /local/stripe/pay/{session}`: what the customer sees at Stripe.
async fn pay_page(State(shop): State<Shop>, Path(session): Path<String>) -> Response {
    let found = shop.shared.stripe.as_ref().and_then(|stripe| stripe.object(&session));
    pages::pay(&shop.shared, found.filter(|found| found["object"] == "checkout.session").as_ref())
}

/// `POST /local/stripe/pay/{session}`: `{"how":"now"}`, `"later"` or `"back"`; answers where the customer is
/// sent.
async fn pay(
    State(shop): State<Shop>,
    Path(session): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let wish = read(&headers, &body)?;
    let stripe = shop.stripe()?;
    let shown = stripe.object(&session).context("there is no such session")?;
    if wish["how"] == "back" {
        return Ok(Json(json!({ "next": shown["cancel_url"] })));
    }
    let how = if wish["how"] == "later" { Payment::Later } else { Payment::AtOnce };
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

/// `POST /local/stripe/billing/{customer}`: `{"plan":"business"}` or `{"plan":null}`, which ends it.
async fn bill(
    State(shop): State<Shop>,
    Path(customer): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let wish = read(&headers, &body)?;
    let stripe = shop.stripe()?;
    let subscription = stripe.subscription_of(&customer).context("there is no subscription")?;
    let fired = match wish["plan"].as_str() {
        None => stripe.cancel(id(&subscription)?)?,
        Some(name) => {
            let plan =
                shop.shared.catalog.plan(name).with_context(|| format!("the catalog has no plan {name}"))?;
            stripe.change_plan(id(&subscription)?, plan.prices.first().context("the plan has no price")?)?
        }
    };
    shop.deliver(subscription["metadata"]["user_id"].as_str().unwrap_or_default(), fired).await?;
    Ok(Json(json!({ "next": "/" })))
}

/// The app's webhook: checks the signature as an app has to, and keeps what it was told.
async fn told(State(shop): State<Shop>, headers: HeaderMap, body: String) -> Response {
    let refuse = |why: &str| {
        (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_request", "message": why }))).into_response()
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let time = text("webhook-timestamp").parse().map(Timestamp::from_unix);
    let secret = STANDARD.decode(APP_WEBHOOK_SECRET.trim_start_matches("whsec_"));
    let (Ok(time), Ok(secret)) = (time, secret) else { return refuse("webhook-timestamp is no time") };
    if sign(&secret, text("webhook-id"), time, &body) != text("webhook-signature") {
        return refuse("the signature does not fit");
    }
    let Ok(body) = serde_json::from_str::<Value>(&body) else { return refuse("the body is not JSON") };
    let user = body["data"]["user_id"].as_str().unwrap_or_default().to_owned();
    remember(&mut shop.seen().told, Told { user, body });
    StatusCode::NO_CONTENT.into_response()
}

/// The body of a request that changes something: only from a page of this host, or from no page.
fn read(headers: &HeaderMap, body: &Bytes) -> Result<Value, Refused> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(header::ORIGIN).map(|origin| origin.trim_start_matches("http://"));
    if origin.is_some() && origin != text(header::HOST) {
        return Err(Refused(
            StatusCode::FORBIDDEN,
            json!({ "error": "forbidden", "message": "this is for pages of this stack only" }),
        ));
    }
    if body.is_empty() {
        return Ok(json!({}));
    }
    let read: Value = serde_json::from_slice(body).context("the body is not JSON")?;
    if !read.is_object() {
        return Err(anyhow::anyhow!("the body is no JSON object").into());
    }
    Ok(read)
}

fn id(object: &Value) -> anyhow::Result<&str> {
    object["id"].as_str().context("it has no id")
}

fn remember<T>(list: &mut VecDeque<T>, entry: T) {
    if list.len() == REMEMBERED {
        list.pop_front();
    }
    list.push_back(entry);
}

fn now() -> Timestamp {
    Timestamp::from_unix(jiff::Timestamp::now().as_second())
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
        let (status, answer) = client.send(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
        (status.as_u16(), serde_json::from_slice(&answer).unwrap_or_default())
    }

    #[tokio::test]
    async fn what_is_bought_in_the_shop_is_paid_credited_once_and_told_to_the_app() {
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

        let (_, seen) = ask(&stack, Method::GET, "/local/shop/a%20b", "", None).await;
        assert_eq!(
            (&seen["account"]["tier"], &seen["account"]["credits"]),
            (&json!("pro"), &json!(5_000)),
            "{seen:#}"
        );
        assert_eq!(
            (&seen["setup"]["payment_state"], &seen["setup"]["provisioning_state"]),
            (&json!("paid"), &json!("completed"))
        );
        let sent = seen["sent"].as_array().unwrap();
        assert_eq!(
            (sent.len(), sent.iter().filter(|sent| sent["again"] == true).count()),
            (4, 1),
            "{seen:#}"
        );
        let told = seen["told"].as_array().unwrap();
        assert_eq!(told.iter().filter(|told| told["type"] == "payment.confirmed").count(), 1, "{seen:#}");
        assert_eq!(told[0]["data"]["credits"], 5_000, "{seen:#}");

        // The second plan is changed at Stripe, not sold.
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
    async fn pages_of_other_hosts_and_unsigned_news_change_nothing() {
        let stack = Stack::start(Options { is_app: true, ..Options::default() }).await.unwrap();
        for foreign in ["https://evil.example", "null", "http://127.0.0.1:1"] {
            assert_eq!(
                ask(&stack, Method::POST, "/local/shop/eve/sign-up", "{}", Some(foreign)).await.0,
                403,
                "{foreign}"
            );
        }
        assert_eq!(ask(&stack, Method::GET, "/local/shop/eve", "", None).await.1["account"], Value::Null);
        let news = r#"{"type":"account.updated","data":{"user_id":"eve"}}"#;
        assert_eq!(ask(&stack, Method::POST, APP_WEBHOOK_PATH, news, None).await.0, 400);
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
