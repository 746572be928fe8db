//! `POST /checkout-sessions`: creates a session of Stripe Checkout, where a customer pays.
//!
//! ```json
//! {"user_id":"user_123","plan":"pro"}
//! {"user_id":"user_123","plan":"team","quantity":7,"customer_email":"jo@example.com"}
//! {"user_id":"user_123","pack":"credits_1000","quantity":3}
//! {"user_id":"user_123","packs":[{"pack":"credits_1000","quantity":2},{"pack":"credits_5000"}]}
//! {"user_id":"user_123","product":"break_and_enter"}
//! {"user_id":"user_123","mode":"dfy","plan":"starter","success_path":"/thanks?s={CHECKOUT_SESSION_ID}",
//!  "cancel_path":"/pricing"}
//! ```
//! ```json
//! {"session_id":"cs_test_1","url":"https://checkout.stripe.com/c/pay/cs_test_1","mode":"subscription",
//!  "customer":"cus_1","expires_at":"…","warnings":[]}
//! ```
//! `trial` starts the plan's `trial_days`, once for each user. `adjustable_quantity`, `promotion_codes`,
//! `automatic_tax`, `tax_id`, `locale` and `payment_method_collection` are Stripe's options of the page;
//! their defaults are the catalog's `[checkout]`. `packs` sells several packs in one payment.
//!
//! `customer_reference` is a text of the customer's own, such as a purchase order, which the status page
//! shows. `metadata` is the app's own; the keys that the rules read are refused in it. `warnings` name what
//! the purchase ends, for example packs at the next renewal.
//!
//! Names come from the catalog. Of the prices that the catalog has for a name, the session uses the one that
//! Stripe has in this mode. The user and the purchase are in the metadata of the session and of its
//! subscription or payment, because Stripe does not copy metadata between them.
//!
//! A user has one customer at Stripe. The first session creates it: see `api/customer.rs`.
//!
//! A user who has a subscription cannot buy a second one: the answer is 409 with the address of a Billing
//! Portal session, where the user can change the plan. A failure of Stripe is 502 with Stripe's message.
//!
//! The `Idempotency-Key` for Stripe is computed from the user, the account's version, all fields and the
//! hour. So a repeated request gets the same session, and a request after a purchase gets a new one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::billing_portal::portal_session;
use super::customer::{paying_customer, running_subscriptions};
use super::stripe_request::{Fields, error_text, is_missing_customer, path, stripe_error};
use super::{Api, read_body, user_id};
use crate::http::answer::{Problem, problem};
use tallyhook_aws::clock;
use tallyhook_aws::stripe::Stripe;
use tallyhook_core::account::access::Summary;
use tallyhook_core::account::{Lot, State};
use tallyhook_core::catalog::{Addons, Catalog, Checkout, Collection, MAX_QUANTITY, Pack, Per, SoldAs};
use tallyhook_core::credits::Credits;
use tallyhook_core::event::METADATA_KEYS;
use tallyhook_core::ids::{SessionId, SubscriptionId, UserId};
use tallyhook_core::timestamp::Timestamp;

/// The status page. Stripe replaces the placeholder with the session's id.
const SUCCESS_PATH: &str = "/portal/status?session_id={CHECKOUT_SESSION_ID}";
const EXAMPLE: &str =
    r#"{"user_id": "user_123", "plan": "pro"}, or with "pack" and "quantity", or with "mode" and "plan""#;
/// The longest reference of a customer.
const MAX_REFERENCE: usize = 200;

/// The maximum number of packs in one session.
const MAX_PACKS: usize = 20;
/// Stripe's limits of metadata: <https://docs.stripe.com/api/metadata>
const MAX_METADATA: usize = 50;
const MAX_METADATA_KEY: usize = 40;
const MAX_METADATA_VALUE: usize = 500;
/// The longest `Idempotency-Key`, as on the other routes.
const MAX_KEY: usize = 255;
/// How often a session is tried with another customer, if Stripe does not have the user's.
const MAX_CUSTOMERS: usize = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckoutRequest {
    user_id: String,
    plan: Option<String>,
    pack: Option<String>,
    /// Several packs.
    packs: Option<Vec<PackLine>>,
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
    /// The app's own metadata.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    success_path: Option<String>,
    cancel_path: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PackLine {
    pack: String,
    quantity: Option<u64>,
}

/// What is bought, according to the catalog.
#[derive(Debug, PartialEq, Eq)]
struct Purchase {
    subscription: bool,
    /// What is sold, with its quantity.
    lines: Vec<(SoldAs, u64)>,
    /// The metadata besides the user.
    metadata: Vec<(Cow<'static, str>, String)>,
}

impl Purchase {
    fn payment(sold_as: SoldAs, quantity: u64, metadata: Vec<(Cow<'static, str>, String)>) -> Self {
        Self { subscription: false, lines: vec![(sold_as, quantity)], metadata }
    }
}

impl Api {
    pub(super) async fn create_checkout(&self, request: &Request) -> Result<Value, Problem> {
        let body: CheckoutRequest = read_body(request, EXAMPLE)?;
        let user = user_id(&body.user_id)?;
        let own_key = own_key(request)?;
        let mut purchase = purchase(&body, &self.config.catalog)?;
        if let Some(reference) = &body.customer_reference {
            if reference.is_empty()
                || reference.chars().count() > MAX_REFERENCE
                || reference.contains(char::is_control)
            {
                let message = format!("customer_reference has 1 to {MAX_REFERENCE} characters, in one line");
                return Err(problem(StatusCode::BAD_REQUEST, "invalid_reference", message));
            }
            purchase.metadata.push(("customer_reference".into(), reference.clone()));
        }
        check_metadata(&body.metadata, purchase.metadata.len() + 1)?;
        purchase.metadata.extend(body.metadata.clone().into_iter().map(|(key, value)| (key.into(), value)));
        let (stripe, base) = self.stripe_and_app()?;
        let success = path(body.success_path.as_deref(), SUCCESS_PATH, "success_path")?;
        let cancel = path(body.cancel_path.as_deref(), "/", "cancel_path")?;
        let (account, mut created) = self.load_with_customer(&user).await?;
        let back = format!("{base}{cancel}");
        if purchase.subscription
            && let Some(running) =
                running_subscriptions(&account.state, &self.config.catalog, clock::now()).into_iter().next()
        {
            return Err(self.already_subscribed(stripe, &account.state, running, back).await);
        }
        let trial_days = trial_days(&body, &account.state, &self.config.catalog)?;
        let mut fields: Fields = vec![
            ("mode".into(), if purchase.subscription { "subscription" } else { "payment" }.to_owned()),
            ("success_url".into(), format!("{base}{success}")),
            ("cancel_url".into(), back),
            ("client_reference_id".into(), user.to_string()),
        ];
        for (place, (sold_as, quantity)) in purchase.lines.iter().enumerate() {
            let price = self.price(stripe, sold_as).await?;
            fields.push((format!("line_items[{place}][price]").into(), price));
            fields.push((format!("line_items[{place}][quantity]").into(), quantity.to_string()));
            if body.adjustable_quantity == Some(true) {
                let name = format!("line_items[{place}][adjustable_quantity][enabled]");
                fields.push((name.into(), "true".to_owned()));
            }
        }
        if let Some(days) = trial_days {
            fields.push(("subscription_data[trial_period_days]".into(), days.to_string()));
        }
        fields.extend(options(&body, &self.config.catalog.checkout, purchase.subscription)?);
        let of_payment = if purchase.subscription { "subscription_data" } else { "payment_intent_data" };
        for (name, value) in std::iter::once(("user_id".into(), user.to_string())).chain(purchase.metadata) {
            fields.push((format!("metadata[{name}]").into(), value.clone()));
            fields.push((format!("{of_payment}[metadata][{name}]").into(), value));
        }
        let mut tries = 0;
        let (customer, session) = loop {
            tries += 1;
            let email = body.customer_email.as_deref();
            let customer = self.customer(stripe, &user, &account.state, &mut created, email).await?;
            let mut fields = fields.clone();
            fields.push(("customer".into(), customer.to_string()));
            let key = idempotency_key(&user, account.version, &fields, own_key, clock::now());
            match stripe.create("/v1/checkout/sessions", &fields, &key).await {
                Ok(session) => break (customer, session.value()),
                // The customer was deleted at Stripe, and the event about it has not arrived.
                Err(error) if is_missing_customer(&error) && tries < MAX_CUSTOMERS => {
                    created.missing.insert(customer.to_string());
                }
                Err(error) => return Err(stripe_error(&error, "CHECKOUT_NOT_CREATED")),
            }
        };
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

    /// The client of Stripe and the app's address; a problem if one of them is not configured.
    pub(super) fn stripe_and_app(&self) -> Result<(&Stripe, &str), Problem> {
        let missing = |variable: &str| {
            let message = format!("{variable} is not set, so there is no checkout and no billing portal");
            problem(StatusCode::SERVICE_UNAVAILABLE, "checkout_not_configured", message)
        };
        let stripe = self.stripe.as_ref().ok_or_else(|| missing("STRIPE_SECRET_KEY"))?;
        let base = self.config.app_base_url.as_deref().ok_or_else(|| missing("APP_BASE_URL"))?;
        Ok((stripe, base))
    }

    /// 409 with the address where the user can change the plan. If Stripe creates no such session, the
    /// message has the reason.
    async fn already_subscribed(
        &self,
        stripe: &Stripe,
        state: &State,
        (id, running): (SubscriptionId, Summary),
        back: String,
    ) -> Problem {
        let mut body = json!({
            "error": "already_subscribed",
            "message": "the user has a subscription; plans are changed in Stripe's billing portal",
            "subscription": id,
            "plan": running.plan,
            "portal_url": null,
        });
        if let Some(customer) = paying_customer(state, Some(&id)) {
            let fields = vec![("customer".into(), customer.to_string()), ("return_url".into(), back)];
            match portal_session(stripe, fields).await {
                Ok(url) => body["portal_url"] = json!(url),
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
}

/// Finds in the catalog what is to be bought.
fn purchase(body: &CheckoutRequest, catalog: &Catalog) -> Result<Purchase, Problem> {
    let unknown = |what: &str, name: &str, known: Vec<&str>| {
        let message = format!("the catalog has no {what} \"{}\"; it has: {}", shown(name), known.join(", "));
        problem(StatusCode::BAD_REQUEST, "unknown_name", message)
    };
    let quantity = body.quantity.unwrap_or(1);
    let out_of_range = |message: &str| Err(problem(StatusCode::BAD_REQUEST, "invalid_quantity", message));
    if !(1..=MAX_QUANTITY).contains(&quantity) {
        return out_of_range(&format!("quantity must be a whole number from 1 to {MAX_QUANTITY}"));
    }
    let is_many = quantity > 1 || body.adjustable_quantity == Some(true);
    if let (Some(name), None, None, None) = (&body.product, &body.plan, &body.pack, &body.mode) {
        let product = catalog.product(name).ok_or_else(|| {
            unknown("product", name, catalog.products.iter().map(|one| one.name.as_str()).collect())
        })?;
        if is_many {
            return out_of_range("a product is bought once; leave quantity out");
        }
        let metadata = vec![("product".into(), product.name.clone())];
        return Ok(Purchase::payment(product.sold_as.clone(), quantity, metadata));
    }
    let pack_named = |name: &str| {
        let known = || catalog.packs.iter().map(|pack| pack.name.as_str()).collect();
        catalog.pack(name).ok_or_else(|| unknown("pack", name, known()))
    };
    if let Some(packs) = &body.packs {
        return several_packs(body, packs, pack_named);
    }
    match (body.plan.as_deref(), body.pack.as_deref(), body.mode.as_deref()) {
        _ if body.product.is_some() => Err(unnamed()),
        (Some(name), None, None) => {
            let plan = catalog.plan(name).ok_or_else(|| {
                unknown("plan", name, catalog.plans.iter().map(|plan| plan.name.as_str()).collect())
            })?;
            if is_many && plan.per != Per::Seat {
                return out_of_range("this plan is not sold by the seat; leave quantity out");
            }
            let metadata = vec![("plan".into(), plan.name.clone())];
            Ok(Purchase { subscription: true, lines: vec![(plan.sold_as.clone(), quantity)], metadata })
        }
        (None, Some(name), None) => {
            let pack = pack_named(name)?;
            let mut metadata = vec![("pack".into(), pack.name.clone())];
            // The customer may change it: the session's line items say what was sold.
            if body.adjustable_quantity != Some(true) {
                metadata.push(("quantity".into(), quantity.to_string()));
            }
            Ok(Purchase::payment(pack.sold_as.clone(), quantity, metadata))
        }
        (Some(name), None, Some(mode)) => {
            let kind = catalog.order(mode);
            let kind = kind.ok_or_else(|| {
                unknown("order mode", mode, catalog.orders.iter().map(|order| order.mode.as_str()).collect())
            })?;
            let plan = kind.plans.get(name).ok_or_else(|| {
                unknown("plan of this order", name, kind.plans.keys().map(String::as_str).collect())
            })?;
            if is_many {
                return out_of_range("an order is bought once; leave quantity out");
            }
            let mut metadata = vec![("mode".into(), mode.to_owned()), ("plan".into(), name.to_owned())];
            metadata.extend(body.upgraded_from.clone().map(|from| ("upgraded_from".into(), from)));
            let sold_as = SoldAs { prices: plan.prices.clone(), ..SoldAs::default() };
            Ok(Purchase::payment(sold_as, quantity, metadata))
        }
        _ => Err(unnamed()),
    }
}

/// Several packs in one payment. The metadata names none of them: the session's line items say what was sold.
fn several_packs<'a>(
    body: &CheckoutRequest,
    packs: &[PackLine],
    pack_named: impl Fn(&str) -> Result<&'a Pack, Problem>,
) -> Result<Purchase, Problem> {
    let bad = |code: &'static str, message: String| Err(problem(StatusCode::BAD_REQUEST, code, message));
    let others = [&body.plan, &body.pack, &body.product, &body.mode];
    if others.iter().any(|other| other.is_some()) || body.quantity.is_some() {
        return bad(
            "invalid_body",
            "packs cannot be combined with other fields of the purchase; each entry has its own quantity"
                .to_owned(),
        );
    }
    if packs.is_empty() || packs.len() > MAX_PACKS {
        return bad("invalid_body", format!("packs has 1 to {MAX_PACKS} entries"));
    }
    let mut names = BTreeSet::new();
    let mut lines = Vec::new();
    for PackLine { pack, quantity } in packs {
        let quantity = quantity.unwrap_or(1);
        if !(1..=MAX_QUANTITY).contains(&quantity) {
            return bad(
                "invalid_quantity",
                format!("quantity must be a whole number from 1 to {MAX_QUANTITY}"),
            );
        }
        let pack = pack_named(pack)?;
        if !names.insert(pack.name.as_str()) {
            return bad("invalid_quantity", format!("packs has {} twice; add the quantities", pack.name));
        }
        lines.push((pack.sold_as.clone(), quantity));
    }
    Ok(Purchase { subscription: false, lines, metadata: Vec::new() })
}

/// Checks the app's own metadata. `own` is the number of our keys.
fn check_metadata(metadata: &BTreeMap<String, String>, own: usize) -> Result<(), Problem> {
    let bad = |message: String| Err(problem(StatusCode::BAD_REQUEST, "invalid_metadata", message));
    if metadata.len() + own > MAX_METADATA {
        return bad(format!("metadata has at most {} keys here", MAX_METADATA - own));
    }
    for (key, value) in metadata {
        if METADATA_KEYS.contains(&key.as_str()) || key.starts_with("tallyhook") {
            return bad(format!("metadata cannot set {}: tallyhook reads this key", shown(key)));
        }
        let chars = key.chars().count();
        if chars == 0
            || chars > MAX_METADATA_KEY
            || key.contains(|c: char| c.is_control() || "[]".contains(c))
        {
            return bad(format!(
                "a key of metadata has 1 to {MAX_METADATA_KEY} characters, and no brackets: {}",
                shown(key)
            ));
        }
        if value.is_empty() || value.chars().count() > MAX_METADATA_VALUE {
            return bad(format!(
                "a value of metadata has 1 to {MAX_METADATA_VALUE} characters: {}",
                shown(key)
            ));
        }
    }
    Ok(())
}

/// A text of the request for a message: short, without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
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
fn options(body: &CheckoutRequest, defaults: &Checkout, subscription: bool) -> Result<Fields, Problem> {
    let mut fields: Fields = Vec::new();
    let mut switch = |name: &'static str, on: bool| {
        if on {
            fields.push((name.into(), "true".to_owned()));
        }
    };
    let automatic_tax = body.automatic_tax.unwrap_or(defaults.automatic_tax);
    let tax_id = body.tax_id.unwrap_or(defaults.tax_id);
    switch("allow_promotion_codes", body.promotion_codes.unwrap_or(defaults.promotion_codes));
    switch("automatic_tax[enabled]", automatic_tax);
    switch("tax_id_collection[enabled]", tax_id);
    // Stripe refuses both for an existing customer unless the session may change the customer.
    if automatic_tax {
        fields.push(("customer_update[address]".into(), "auto".to_owned()));
    }
    if tax_id {
        fields.push(("customer_update[name]".into(), "auto".to_owned()));
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
        fields.push(("locale".into(), locale.to_owned()));
    }
    let collection = body.payment_method_collection.unwrap_or(defaults.payment_method_collection);
    if subscription && collection == Collection::IfRequired {
        fields.push(("payment_method_collection".into(), "if_required".to_owned()));
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
    let is_pack = (body.pack.is_some() || body.packs.is_some()) && !catalog.warnings().is_empty();
    let of_pack = is_pack.then(|| {
        "addons = \"reset\": what is left of this pack ends when a subscription begins or renews".to_owned()
    });
    let of_plan = ends_packs
        .then(|| format!("addons = \"reset\": the first payment of this plan ends {packs} credits of packs"));
    of_pack.into_iter().chain(of_plan).collect()
}

fn unnamed() -> Problem {
    problem(StatusCode::BAD_REQUEST, "invalid_body", format!("say what is bought: {EXAMPLE}"))
}

/// The `Idempotency-Key` of the app, which it need not send.
fn own_key(request: &Request) -> Result<&[u8], Problem> {
    let key = request.headers().get("idempotency-key").map(|key| key.as_bytes()).unwrap_or_default();
    if key.len() > MAX_KEY {
        let message = format!("an Idempotency-Key has at most {MAX_KEY} characters");
        return Err(problem(StatusCode::BAD_REQUEST, "invalid_idempotency_key", message));
    }
    Ok(key)
}

fn idempotency_key(user: &UserId, version: u64, fields: &Fields, own: &[u8], now: Timestamp) -> String {
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
