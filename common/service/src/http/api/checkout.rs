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
//!  "customer":null,"expires_at":"…","warnings":[]}
//! ```
//! `trial` starts the plan's `trial_days`, once for each user. `adjustable_quantity`, `promotion_codes`,
//! `automatic_tax`, `tax_id`, `locale` and `payment_method_collection` are Stripe's options of the page;
//! their defaults are the catalog's `[checkout]`.
//!
//! `customer_reference` is a text of the customer's own, such as a purchase order, which the status page
//! shows. `warnings` name what the purchase ends, for example packs at the next renewal.
//!
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
use tallyhook_aws::stripe::{Object, Stripe, StripeError};
use tallyhook_core::account::{Lot, State};
use tallyhook_core::catalog::{Addons, Catalog, Checkout, Collection, MAX_QUANTITY, Per, SoldAs};
use tallyhook_core::credits::Credits;
use tallyhook_core::event::SubscriptionStatus;
use tallyhook_core::ids::{CustomerId, PriceId, SessionId, SubscriptionId, UserId};
use tallyhook_core::timestamp::Timestamp;

/// The status page. Stripe replaces the placeholder with the session's id.
const SUCCESS_PATH: &str = "/portal/status?session_id={CHECKOUT_SESSION_ID}";
const EXAMPLE: &str =
    r#"{"user_id": "user_123", "plan": "pro"}, or with "pack" and "quantity", or with "mode" and "plan""#;
/// The longest reference of a customer.
const MAX_REFERENCE: usize = 200;
/// The longest path that Stripe accepts.
const MAX_PATH: usize = 1_000;

/// The price that Stripe has in this mode, by the first price in the catalog.
#[derive(Debug, Default)]
pub(super) struct Prices(Mutex<BTreeMap<String, String>>);

impl Prices {
    fn get(&self, first: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(first).cloned()
    }

    fn keep(&self, prices: &[String], sold: &str) {
        if let Some(first) = prices.first() {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(first.clone(), sold.to_owned());
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckoutRequest {
    user_id: String,
    plan: Option<String>,
    pack: Option<String>,
    product: Option<String>,
    mode: Option<String>,
    quantity: Option<u64>,
    /// Starts the plan's trial.
    trial: Option<bool>,
    /// Whether the customer can change the quantity.
    adjustable_quantity: Option<bool>,
    promotion_codes: Option<bool>,
    automatic_tax: Option<bool>,
    tax_id: Option<bool>,
    locale: Option<String>,
    payment_method_collection: Option<Collection>,
    upgraded_from: Option<String>,
    /// The customer's own reference, which the status page shows.
    customer_reference: Option<String>,
    customer_email: Option<String>,
    success_path: Option<String>,
    cancel_path: Option<String>,
}

/// What is bought, according to the catalog.
#[derive(Debug, PartialEq, Eq)]
struct Purchase {
    subscription: bool,
    quantity: u64,
    sold_as: SoldAs,
    /// The metadata besides the user.
    metadata: Vec<(&'static str, String)>,
}

impl Api {
    pub(super) async fn create_checkout(&self, request: &Request) -> Result<Value, Problem> {
        let body: CheckoutRequest = read_body(request, EXAMPLE)?;
        let user = user_id(&body.user_id)?;
        let mut purchase = purchase(&body, &self.config.catalog)?;
        if let Some(reference) = &body.customer_reference {
            if reference.is_empty()
                || reference.chars().count() > MAX_REFERENCE
                || reference.contains(char::is_control)
            {
                let message = format!("customer_reference has 1 to {MAX_REFERENCE} characters, in one line");
                return Err(problem(StatusCode::BAD_REQUEST, "invalid_reference", message));
            }
            purchase.metadata.push(("customer_reference", reference.clone()));
        }
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
        let trial_days = trial_days(&body, &account.state, &self.config.catalog)?;
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
            fields.extend(body.customer_email.clone().map(|email| ("customer_email", email)));
            if !purchase.subscription {
                // Stripe creates a customer for every subscription, but not for a payment. Without a customer
                // the next purchase could not be linked to this one.
                fields.push(("customer_creation", "always".to_owned()));
            }
        }
        if let Some(days) = trial_days {
            fields.push(("subscription_data[trial_period_days]", days.to_string()));
        }
        fields.extend(options(
            &body,
            &self.config.catalog.checkout,
            purchase.subscription,
            customer.is_some(),
        )?);
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
        let warnings = warnings(&body, &account.state, &self.config.catalog, clock::now());
        info!(
            user_id = user.as_str(),
            checkout_session_id = id,
            warnings = warnings.len(),
            "CHECKOUT_CREATED"
        );
        Ok(json!({
            "session_id": id,
            "url": url,
            "mode": if purchase.subscription { "subscription" } else { "payment" },
            "customer": customer,
            "expires_at": session["expires_at"].as_i64().map(|at| Timestamp::from_unix(at).to_string()),
            "warnings": warnings,
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

    /// The price that Stripe has in the key's mode: the first active one of the catalog's ids, else the one
    /// with a lookup key, else the only one of a Stripe product. The catalog has the prices of both modes,
    /// and the id of a price does not show its mode.
    async fn price(&self, stripe: &Stripe, purchase: &Purchase) -> Result<String, Problem> {
        let SoldAs { prices, lookup_keys, stripe_products } = &purchase.sold_as;
        let refused = |error: StripeError| stripe_error(&error, "CHECKOUT_NOT_CREATED");
        if let Some(price) = prices.first().and_then(|first| self.prices.get(first)) {
            return Ok(price);
        }
        for price in prices {
            let Ok(id) = PriceId::new(price.as_str()) else { continue };
            match stripe.price(&id).await {
                Ok(found) if found.value()["active"] == Value::Bool(false) => {}
                Ok(_) => {
                    self.prices.keep(prices, price);
                    return Ok(price.clone());
                }
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(refused(error)),
            }
        }
        // A lookup key can move to another price, and a product can get another one: they are not remembered.
        if !lookup_keys.is_empty() {
            let found = stripe.prices_with(lookup_keys).await.map_err(refused)?;
            if let Some(price) = found.objects.first().and_then(Object::id) {
                return Ok(price.to_owned());
            }
        }
        for product in stripe_products {
            match stripe.prices_of(product).await {
                Ok(found) if found.objects.len() > 1 => {
                    let message = format!(
                        "{product} has several active prices at Stripe; name the one to sell in prices or \
                         lookup_keys of the catalog"
                    );
                    return Err(problem(StatusCode::CONFLICT, "no_price", message));
                }
                Ok(found) => {
                    if let Some(price) = found.objects.first().and_then(Object::id) {
                        return Ok(price.to_owned());
                    }
                }
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(refused(error)),
            }
        }
        let names: Vec<&str> =
            prices.iter().chain(lookup_keys).chain(stripe_products).map(String::as_str).collect();
        let message = if names.is_empty() {
            "the catalog has no price for this; add prices = [\"price_…\"] to it".to_owned()
        } else {
            format!("Stripe has none of these as an active price in this mode: {}", names.join(", "))
        };
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
        return Ok(Purchase { subscription: false, quantity, sold_as: product.sold_as.clone(), metadata });
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
            let (sold_as, metadata) = (plan.sold_as.clone(), vec![("plan", plan.name.clone())]);
            Ok(Purchase { subscription: true, quantity, sold_as, metadata })
        }
        (None, Some(name), None) => {
            let pack = catalog.pack(name).ok_or_else(|| {
                unknown("pack", name, catalog.packs.iter().map(|pack| pack.name.as_str()).collect())
            })?;
            let mut metadata = vec![("pack", pack.name.clone())];
            // The customer may change it: the session's line items say what was sold.
            if body.adjustable_quantity != Some(true) {
                metadata.push(("quantity", quantity.to_string()));
            }
            Ok(Purchase { subscription: false, quantity, sold_as: pack.sold_as.clone(), metadata })
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
            let sold_as = SoldAs { prices: plan.prices.clone(), ..SoldAs::default() };
            Ok(Purchase { subscription: false, quantity, sold_as, metadata })
        }
        _ => Err(unnamed()),
    }
}

/// The days of the trial that the request starts.
fn trial_days(body: &CheckoutRequest, state: &State, catalog: &Catalog) -> Result<Option<u64>, Problem> {
    if body.trial != Some(true) {
        return Ok(None);
    }
    let plan = body.plan.as_deref().filter(|_| body.mode.is_none()).and_then(|name| catalog.plan(name));
    let days = plan.map_or(0, |plan| plan.trial_days);
    if days == 0 {
        let message = "the plan has no trial; give it trial_days in the catalog";
        return Err(problem(StatusCode::BAD_REQUEST, "no_trial", message));
    }
    if state.first_trial.is_some() {
        let message = "the user has had a trial; leave trial out to sell the plan without one";
        return Err(problem(StatusCode::CONFLICT, "trial_used", message));
    }
    Ok(Some(days))
}

/// The options of a session: those of the request, else the catalog's.
/// <https://docs.stripe.com/api/checkout/sessions/create>
fn options(
    body: &CheckoutRequest,
    defaults: &Checkout,
    subscription: bool,
    has_customer: bool,
) -> Result<Vec<(&'static str, String)>, Problem> {
    let mut fields = Vec::new();
    let mut switch = |name: &'static str, on: bool| {
        if on {
            fields.push((name, "true".to_owned()));
        }
    };
    let automatic_tax = body.automatic_tax.unwrap_or(defaults.automatic_tax);
    let tax_id = body.tax_id.unwrap_or(defaults.tax_id);
    switch("allow_promotion_codes", body.promotion_codes.unwrap_or(defaults.promotion_codes));
    switch("automatic_tax[enabled]", automatic_tax);
    switch("tax_id_collection[enabled]", tax_id);
    switch("line_items[0][adjustable_quantity][enabled]", body.adjustable_quantity == Some(true));
    // Stripe refuses both for an existing customer unless the session may change the customer.
    if has_customer && automatic_tax {
        fields.push(("customer_update[address]", "auto".to_owned()));
    }
    if has_customer && tax_id {
        fields.push(("customer_update[name]", "auto".to_owned()));
    }
    let locale = body.locale.as_deref().unwrap_or(&defaults.locale);
    if locale.is_empty()
        || locale.len() > 10
        || !locale.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    {
        let message = "locale is auto, or one of Stripe's locales such as de or pt-BR";
        return Err(problem(StatusCode::BAD_REQUEST, "invalid_locale", message));
    }
    if locale != "auto" {
        fields.push(("locale", locale.to_owned()));
    }
    let collection = body.payment_method_collection.unwrap_or(defaults.payment_method_collection);
    if subscription && collection == Collection::IfRequired {
        fields.push(("payment_method_collection", "if_required".to_owned()));
    }
    Ok(fields)
}

/// What the app may want to say before the customer pays: a paid period ends the packs that were bought
/// before it.
fn warnings(body: &CheckoutRequest, state: &State, catalog: &Catalog, now: Timestamp) -> Vec<String> {
    if catalog.policy.addons != Addons::Reset {
        return Vec::new();
    }
    let packs = state.buckets(&catalog.policy, now).sum(|lot| matches!(lot, Lot::Pack(_)));
    let plan = body.plan.as_ref().filter(|_| body.mode.is_none()).and_then(|name| catalog.plan(name));
    let ends_packs = plan.is_some_and(|plan| plan.per == Per::Subscription) && packs > Credits::ZERO;
    let pack = body.pack.as_ref().filter(|_| !catalog.warnings().is_empty());
    let of_pack = pack.map(|_| {
        "addons = \"reset\": what is left of this pack ends when a subscription begins or renews".to_owned()
    });
    let of_plan = ends_packs
        .then(|| format!("addons = \"reset\": the first payment of this plan ends {packs} credits of packs"));
    of_pack.into_iter().chain(of_plan).collect()
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
    let now = state.time(now);
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
        ("customer_reference", true) => {
            ["metadata[customer_reference]", "subscription_data[metadata][customer_reference]"]
        }
        ("customer_reference", false) => {
            ["metadata[customer_reference]", "payment_intent_data[metadata][customer_reference]"]
        }
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
