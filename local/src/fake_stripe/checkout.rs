//! The calls of an app that sells (`POST /v1/customers`, `/v1/checkout/sessions`,
//! `/v1/billing_portal/sessions`), and the events of a checkout.
//!
//! A page in place of Stripe's checkout uses this module so:
//!
//! ```
//! # fn example(stripe: &local::fake_stripe::FakeStripe, session: &str) -> anyhow::Result<()> {
//! use local::fake_stripe::Payment;
//!
//! // The open session: mode, amount_total, currency, success_url, cancel_url.
//! let shown = stripe.object(session).unwrap_or_default();
//! // Or `Payment::Later` and then `stripe.clear(session, true)`, or `stripe.expire(session)`.
//! let fired = stripe.pay(session, Payment::AtOnce)?;
//! for event in &fired {
//!     println!("{} {}", event.kind, event.body); // post the body, signed, to the webhook
//! }
//! # Ok(())
//! # }
//! ```
//! The events of [`FakeStripe::pay`], in the shapes of API versions since 2025-03-31.basil:
//!
//! | mode | events |
//! |---|---|
//! | `subscription` | `customer.created` (if the session named none), `checkout.session.completed`, `customer.subscription.created` (`trialing` with `subscription_data[trial_period_days]`), `invoice.paid` (`subscription_create`; amount 0 for a trial) |
//! | `payment` | `customer.created` (with `customer_creation=always`), `payment_intent.succeeded`, `charge.succeeded`, `checkout.session.completed`; for a total of zero only the last |
//! | `payment`, `Payment::Later` | `checkout.session.completed` (`unpaid`); then by [`FakeStripe::clear`] `payment_intent.succeeded`, `charge.succeeded`, `checkout.session.async_payment_succeeded`, or `checkout.session.async_payment_failed` |
//!
//! A fired event is undelivered until [`FakeStripe::mark_delivered`]. Metadata is copied as Stripe does: that
//! of the session stays on the session, `subscription_data[metadata]` goes to the subscription and its
//! invoice lines, `payment_intent_data[metadata]` to the payment intent and its charge.

use anyhow::{Context, ensure};
use jiff::ToSpan as _;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use tallyhook_core::catalog::{Catalog, Per, Refill, SoldAs};

use super::request::{StripeError, parse};
use super::{FakeStripe, State, parameters};

/// The name that Stripe gives to test clocks as objects.
const TEST_CLOCK: &str = "test_helpers.test_clock";

/// How a customer pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payment {
    /// By card: the session is paid at once.
    AtOnce,
    /// By a method that takes days (SEPA, ACH): the session is complete but unpaid.
    Later,
}

/// An event that Stripe would deliver to the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FiredEvent {
    /// `evt_…`
    pub id: String,
    /// `type`
    pub kind: String,
    /// The JSON text.
    pub body: String,
}

impl FakeStripe {
    /// Adds every price of a catalog, in US dollars: plans with `refill = "month"` are yearly, other plans
    /// are monthly, everything else is paid once. The amounts are made up. A price that exists stays as it
    /// is, and keeps its lookup key.
    pub fn sell(&self, catalog: &Catalog) {
        for plan in &catalog.plans {
            let amount = if plan.per == Per::Seat { 1_000 } else { 2_000 * i64::from(plan.rank.max(1)) };
            for (at, price) in plan.sold_as.prices.iter().enumerate().filter(|(_, price)| self.lacks(price)) {
                if plan.refill == Refill::Month {
                    self.put_yearly_price(price, amount.saturating_mul(10));
                    continue;
                }
                self.put_price(price, amount, true, self.free_key(&plan.sold_as, at));
            }
            self.sell_by_name(&plan.sold_as, amount, true);
        }
        for pack in &catalog.packs {
            let amount = i64::try_from(pack.credits).unwrap_or(i64::MAX);
            for (at, price) in pack.sold_as.prices.iter().enumerate().filter(|(_, price)| self.lacks(price)) {
                self.put_price(price, amount, false, self.free_key(&pack.sold_as, at));
            }
            self.sell_by_name(&pack.sold_as, amount, false);
        }
        let put_new = |prices: &[String], amount| {
            for price in prices.iter().filter(|price| self.lacks(price)) {
                self.put_price(price, amount, false, None);
            }
        };
        for plan in catalog.orders.iter().flat_map(|order| order.plans.values()) {
            put_new(&plan.prices, 49_900);
        }
        for product in &catalog.products {
            put_new(&product.sold_as.prices, 2_900);
            self.sell_by_name(&product.sold_as, 2_900, false);
        }
    }

    fn lacks(&self, price: &str) -> bool {
        self.object(price).is_none()
    }

    /// The lookup key at a place, if no price has it: a lookup key belongs to one price.
    fn free_key<'a>(&self, sold_as: &'a SoldAs, place: usize) -> Option<&'a str> {
        let key = sold_as.lookup_keys.get(place)?;
        self.lock().holder(key).is_none().then_some(key)
    }

    /// Adds a price for each lookup key without a price id, and for each Stripe product.
    fn sell_by_name(&self, sold_as: &SoldAs, amount: i64, monthly: bool) {
        for place in sold_as.prices.len()..sold_as.lookup_keys.len() {
            if let Some(key) = self.free_key(sold_as, place) {
                self.put_price(&format!("price_{key}"), amount, monthly, Some(key));
            }
        }
        for product in &sold_as.stripe_products {
            let id = format!("price_of_{product}");
            if self.lacks(&id) {
                let mut value = price(&id, amount, "usd", monthly, None);
                value["product"] = json!(product);
                self.put(value);
            }
        }
    }

    /// Adds a price. The amount is in cents.
    pub fn put_price(&self, id: &str, amount: i64, monthly: bool, lookup_key: Option<&str>) {
        self.put(price(id, amount, "usd", monthly, lookup_key));
    }

    /// Adds a price that is paid once a year. The amount is in cents.
    pub fn put_yearly_price(&self, id: &str, amount: i64) {
        let mut value = price(id, amount, "usd", true, None);
        value["recurring"]["interval"] = json!("year");
        self.put(value);
    }

    /// Creates a checkout session, as an app does with `POST /v1/checkout/sessions`.
    ///
    /// # Errors
    /// When Stripe would refuse the form.
    pub fn checkout(&self, form: &str) -> anyhow::Result<Value> {
        let made = self.lock().create_session(&nested(form));
        made.map_err(|error| anyhow::anyhow!("the session is refused: {}", error.error["message"]))
    }

    /// The form that the app created a session with. The session shows only a part of it.
    pub fn form(&self, session: &str) -> Option<Value> {
        self.lock().form(session)
    }

    /// Completes an open session, as the customer does on the checkout page.
    ///
    /// # Errors
    /// When there is no such session, or it is not open.
    pub fn pay(&self, session: &str, how: Payment) -> anyhow::Result<Vec<FiredEvent>> {
        self.lock().pay(session, how)
    }

    /// Ends the payment of a session that was completed with [`Payment::Later`]: it arrives or fails.
    ///
    /// # Errors
    /// When there is no such session, or its payment is not pending.
    pub fn clear(&self, session: &str, arrived: bool) -> anyhow::Result<Vec<FiredEvent>> {
        let mut state = self.lock();
        let now = state.time();
        let mut value = state.session(session)?;
        ensure!(
            value["status"] == "complete" && value["payment_status"] == "unpaid",
            "the payment of {session} is not pending"
        );
        let data = state.form(session).unwrap_or_default();
        let mut fired = Vec::new();
        if arrived {
            value["payment_status"] = json!("paid");
            fired.extend(charged(&value, &data, now));
        }
        let kind = if arrived {
            "checkout.session.async_payment_succeeded"
        } else {
            "checkout.session.async_payment_failed"
        };
        fired.push((kind, value));
        fired.into_iter().map(|(kind, object)| state.fire(kind, object, now)).collect()
    }

    /// Expires an open session.
    ///
    /// # Errors
    /// When there is no such session, or it is not open.
    pub fn expire(&self, session: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let mut state = self.lock();
        let now = state.time();
        let mut value = state.open_session(session)?;
        value["status"] = json!("expired");
        Ok(vec![state.fire("checkout.session.expired", value, now)?])
    }
}

impl State {
    /// Completes an open session: see [`FakeStripe::pay`].
    pub(super) fn pay(&mut self, session: &str, how: Payment) -> anyhow::Result<Vec<FiredEvent>> {
        let mut value = self.open_session(session)?;
        let now = self.time_of(&value["customer"]);
        let data = self.form(session).unwrap_or_default();
        let mut fired = Vec::new();
        let payer = value["customer"].as_str().and_then(|id| self.objects.get(id));
        let known = payer.and_then(|customer| customer.value["email"].as_str().map(str::to_owned));
        let typed = value["customer_email"].as_str().unwrap_or("customer@example.com");
        let given = known.unwrap_or_else(|| typed.to_owned());
        value["customer_details"] = json!({ "email": given, "name": null, "phone": null, "address": null });
        value["status"] = json!("complete");
        if value["customer"].is_null()
            && (value["mode"] == "subscription" || data["customer_creation"] == "always")
        {
            let customer = customer(&new_id("cus"), &json!({ "email": given }), now);
            value["customer"] = customer["id"].clone();
            fired.push(("customer.created", customer));
        }
        if value["mode"] == "subscription" {
            let (subscription, invoice) = self.subscribe(session, &value, &data, now);
            value["payment_status"] = json!("paid");
            value["subscription"] = subscription["id"].clone();
            value["invoice"] = invoice["id"].clone();
            fired.push(("checkout.session.completed", value));
            fired.push(("customer.subscription.created", subscription));
            fired.push(("invoice.paid", invoice));
        } else if value["amount_total"] == 0 {
            value["payment_status"] = json!("no_payment_required");
            fired.push(("checkout.session.completed", value));
        } else {
            value["payment_intent"] = json!(new_id("pi"));
            if how == Payment::AtOnce {
                value["payment_status"] = json!("paid");
                fired.extend(charged(&value, &data, now));
            }
            fired.push(("checkout.session.completed", value));
        }
        fired.into_iter().map(|(kind, object)| self.fire(kind, object, now)).collect()
    }

    /// Answers a `POST`. `None` for an unknown path. A repeated idempotency key gets the first answer, or an
    /// error if the form is another one. `host` is this server's.
    pub(super) fn create(
        &mut self,
        path: &str,
        form: &str,
        idempotency_key: Option<&str>,
        host: &str,
    ) -> Option<Result<String, StripeError>> {
        if let Some(id) = path.strip_prefix("webhook_endpoints/") {
            return Some(self.update_endpoint(id, form).map(|endpoint| endpoint.to_string()));
        }
        for (collection, kind) in [("products/", "product"), ("prices/", "price")] {
            if let Some(id) = path.strip_prefix(collection) {
                return Some(self.update_sold(kind, id, form).map(|object| object.to_string()));
            }
        }
        if let Err(refused) = parameters::check(path, form, &nested(form)) {
            return Some(Err(refused));
        }
        if let Some(id) = path.strip_prefix("customers/") {
            return Some(self.update_customer(id, &nested(form)).map(|customer| customer.to_string()));
        }
        if let Some(id) = path.strip_prefix("subscriptions/") {
            let updated = self.update_metadata("subscription", id, &nested(form));
            return Some(updated.map(|subscription| subscription.to_string()));
        }
        if let Some(made) = self.create_for_trigger(path, &nested(form), host) {
            return Some(made.map(|object| object.to_string()));
        }
        let make = match path {
            "webhook_endpoints" => Self::create_endpoint,
            "products" => Self::create_product,
            "prices" => Self::create_price,
            "customers" => Self::create_customer,
            "checkout/sessions" => Self::create_session,
            "billing_portal/sessions" => Self::create_portal_session,
            _ => return None,
        };
        let sent = format!("{path} {form}");
        if let Some((known, answer)) = idempotency_key.and_then(|key| self.answers.get(key)) {
            let message = "Keys for idempotent requests can only be used with the same parameters they were first used with.";
            return Some(if *known == sent {
                Ok(answer.to_string())
            } else {
                Err(StripeError::idempotency(message))
            });
        }
        let made = make(self, &nested(form));
        if let (Some(key), Ok(object)) = (idempotency_key, &made) {
            self.answers.insert(key.to_owned(), (sent, object.clone()));
        }
        Some(made.map(|object| object.to_string()))
    }

    fn create_customer(&mut self, form: &Value) -> Result<Value, StripeError> {
        let now = self.time();
        let customer = customer(&new_id("cus"), form, now);
        self.store(customer.to_string(), customer.clone(), now, true);
        Ok(customer)
    }

    /// Sets the e-mail address, the name and metadata.
    fn update_customer(&mut self, id: &str, form: &Value) -> Result<Value, StripeError> {
        self.check_customer(id).map_err(|_| StripeError::missing("customer", id))?;
        let known = self.objects.get(id);
        let updated = known.as_ref().map_or(0, |known| known.updated).max(self.time());
        let mut customer = known.map(|known| known.value).unwrap_or_default();
        for name in ["email", "name"] {
            if form[name].is_string() {
                customer[name] = form[name].clone();
            }
        }
        for (key, value) in form["metadata"].as_object().into_iter().flatten() {
            customer["metadata"][key] = value.clone();
        }
        self.store(customer.to_string(), customer.clone(), updated, true);
        Ok(customer)
    }

    /// The request that `import --write-metadata` makes.
    fn update_metadata(&mut self, kind: &str, id: &str, form: &Value) -> Result<Value, StripeError> {
        let known = self.objects.get(id).ok_or_else(|| StripeError::missing(kind, id))?;
        let updated = known.updated.max(self.time());
        let mut object = known.value;
        for (key, value) in form["metadata"].as_object().into_iter().flatten() {
            object["metadata"][key] = value.clone();
        }
        self.store(object.to_string(), object.clone(), updated, true);
        Ok(object)
    }

    /// A portal session needs a default configuration, and a flow needs a subscription of the customer.
    fn create_portal_session(&mut self, form: &Value) -> Result<Value, StripeError> {
        let customer = required(form, "customer")?;
        self.check_customer(customer)?;
        let is_default = |configuration: &Value| configuration["is_default"] == true;
        if self.newest("billing_portal.configuration", None, is_default).is_none() {
            // Stripe's text, as quoted in github.com/mozilla/fxa/issues/13245.
            let message = "You can’t create a portal session in test mode until you save your customer portal \
                           settings in test mode at https://dashboard.stripe.com/test/settings/billing/portal.";
            return Err(StripeError::bad("", "", message.to_owned()));
        }
        self.check_flow(&form["flow_data"], customer)?;
        let id = new_id("bps");
        Ok(json!({
            "id": id, "object": "billing_portal.session", "created": self.time(), "customer": customer,
            "livemode": false,
            "return_url": form["return_url"], "url": self.page("https://billing.stripe.test/p/session", &id,
            "billing", customer),
        }))
    }

    /// Checks the subscription of a flow. <https://docs.stripe.com/customer-management/portal-deep-links>
    fn check_flow(&self, flow: &Value, customer: &str) -> Result<(), StripeError> {
        let kind = flow["type"].as_str().unwrap_or_default();
        if !kind.starts_with("subscription_") {
            return Ok(());
        }
        let param = format!("flow_data[{kind}][subscription]");
        let id = flow[kind]["subscription"].as_str().unwrap_or_default();
        let found = self.objects.get(id).filter(|stored| stored.kind == "subscription");
        let Some(subscription) = found.map(|stored| stored.value) else {
            let message = format!("No such subscription: '{id}'");
            return Err(StripeError::bad("resource_missing", &param, message));
        };
        let bad = |message: &str| Err(StripeError::bad("", &param, message.to_owned()));
        if subscription["customer"] != customer {
            return bad("The subscription does not belong to the customer.");
        }
        if subscription["status"] == "canceled" {
            return bad("The subscription is canceled.");
        }
        if kind == "subscription_cancel" && subscription["cancel_at_period_end"] == true {
            return bad("The subscription is already set to be canceled at period end.");
        }
        if kind == "subscription_update_confirm" {
            let items = subscription["items"]["data"].as_array().map_or(&[][..], Vec::as_slice);
            let [item] = items else {
                return bad("This subscription cannot be updated because it contains multiple items.");
            };
            let asked = &flow[kind]["items"][0];
            if asked["id"] != item["id"] {
                return bad("The item is not of this subscription.");
            }
            self.line_item(0, asked)?;
        }
        Ok(())
    }

    fn create_session(&mut self, form: &Value) -> Result<Value, StripeError> {
        let mode = required(form, "mode")?;
        check_session(form, mode)?;
        if !["payment", "subscription", "setup"].contains(&mode) {
            return Err(StripeError::bad(
                "parameter_invalid_string_enum",
                "mode",
                format!("Invalid mode: must be one of payment, setup, or subscription, not {mode}"),
            ));
        }
        if let Some(customer) = form["customer"].as_str() {
            self.check_customer(customer)?;
        }
        required(form, "success_url")?;
        let items = match form["line_items"].as_array() {
            Some(items) => items
                .iter()
                .enumerate()
                .map(|(at, item)| self.line_item(at, item))
                .collect::<Result<Vec<_>, _>>()?,
            None => Vec::new(),
        };
        if items.is_empty() && mode != "setup" {
            return Err(StripeError::bad(
                "parameter_missing",
                "line_items",
                "Missing required param: line_items.".to_owned(),
            ));
        }
        // A price without a type, which a test added, fits every mode.
        let of_type = |kind: &str| {
            items.iter().any(|item| item["price"]["type"] == kind || item["price"]["type"].is_null())
        };
        if !of_type("one_time") && mode == "payment" {
            let message = "You specified `payment` mode but passed a recurring price. Either switch to `subscription` mode or use only one-time prices.";
            return Err(StripeError::bad("", "mode", message.to_owned()));
        }
        if !of_type("recurring") && mode == "subscription" {
            let message =
                "You must provide at least one recurring price in `subscription` mode when using prices.";
            return Err(StripeError::bad("", "mode", message.to_owned()));
        }
        let (id, now) = (new_id("cs_test"), self.time());
        let total: i64 = items.iter().filter_map(|item| item["amount_total"].as_i64()).sum();
        let trial = form["subscription_data"]["trial_period_days"].as_str().is_some();
        let total = if trial { 0 } else { total };
        let session = json!({
            "id": id, "object": "checkout.session", "amount_subtotal": total, "amount_total": total,
            "cancel_url": form["cancel_url"], "client_reference_id": form["client_reference_id"],
            "created": now,
            "currency": items.first().map_or(&Value::Null, |item| &item["currency"]),
            "customer": form["customer"],
            "customer_details": null, "customer_email": form["customer_email"], "expires_at": now + 86_400,
            "invoice": null,
            "livemode": false, "metadata": metadata(form), "mode": mode, "payment_intent": null,
            "payment_status": "unpaid",
            "status": "open", "subscription": null, "success_url": form["success_url"], "ui_mode": "hosted",
            "url": self.page("https://checkout.stripe.test/c/pay", &id, "pay", &id),
        });
        self.objects.put_inside(&id, items);
        self.objects.put_inside(&form_of(&id), vec![form.clone()]);
        self.store(session.to_string(), session.clone(), now, true);
        Ok(session)
    }

    fn line_item(&self, at: usize, item: &Value) -> Result<Value, StripeError> {
        let quantity: i64 = item["quantity"].as_str().and_then(|quantity| quantity.parse().ok()).unwrap_or(1);
        let price = match (item["price"].as_str(), &item["price_data"]) {
            (Some(id), _) => match self.objects.get(id).filter(|stored| stored.kind == "price") {
                Some(stored) => stored.value,
                None => {
                    let param = format!("line_items[{at}][price]");
                    return Err(StripeError::bad(
                        "resource_missing",
                        &param,
                        format!("No such price: '{id}'"),
                    ));
                }
            },
            (None, data) if data.is_object() => {
                let amount = data["unit_amount"].as_str().and_then(|amount| amount.parse().ok()).unwrap_or(0);
                price(
                    &new_id("price"),
                    amount,
                    data["currency"].as_str().unwrap_or("usd"),
                    data["recurring"].is_object(),
                    None,
                )
            }
            (None, _) => {
                let param = format!("line_items[{at}][price]");
                return Err(StripeError::bad(
                    "parameter_missing",
                    &param,
                    format!("Missing required param: {param}."),
                ));
            }
        };
        let amount = price["unit_amount"].as_i64().unwrap_or(0).saturating_mul(quantity);
        Ok(json!({
            "id": new_id("li"), "object": "item", "amount_discount": 0, "amount_subtotal": amount,
            "amount_tax": 0, "amount_total": amount,
            "currency": price["currency"], "description": item["price_data"]["product_data"]["name"],
            "price": price, "quantity": quantity,
        }))
    }

    /// The URL of a hosted page: made up, unless [`FakeStripe::set_pages`] was called.
    fn page(&self, made_up: &str, id: &str, page: &str, about: &str) -> String {
        self.pages
            .as_ref()
            .map_or_else(|| format!("{made_up}/{id}"), |pages| format!("{pages}/{page}/{about}"))
    }

    fn form(&self, session: &str) -> Option<Value> {
        self.objects.inside(&form_of(session))?.into_iter().next()
    }

    pub(super) fn check_customer(&self, id: &str) -> Result<(), StripeError> {
        let known = self
            .objects
            .get(id)
            .is_some_and(|stored| stored.kind == "customer" && stored.value["deleted"] != true);
        if known {
            Ok(())
        } else {
            Err(StripeError::bad("resource_missing", "customer", format!("No such customer: '{id}'")))
        }
    }

    fn session(&self, id: &str) -> anyhow::Result<Value> {
        let found = self.objects.get(id).filter(|stored| stored.kind == "checkout.session");
        Ok(found.with_context(|| format!("there is no checkout session {id}"))?.value)
    }

    fn open_session(&self, id: &str) -> anyhow::Result<Value> {
        let session = self.session(id)?;
        ensure!(
            session["status"] == "open",
            "the checkout session {id} is {}, not open",
            session["status"].as_str().unwrap_or_default()
        );
        Ok(session)
    }

    /// The subscription of a session, and its first invoice, which is paid.
    fn subscribe(&mut self, session: &str, value: &Value, data: &Value, now: i64) -> (Value, Value) {
        let [subscription_id, invoice_id, item_id] = ["sub", "in", "si"].map(new_id);
        let items = self.objects.inside(session).unwrap_or_default();
        let bought = items.into_iter().find(|item| item["price"]["type"] != "one_time").unwrap_or_default();
        let data = &data["subscription_data"];
        let trial_days: Option<i64> = data["trial_period_days"].as_str().and_then(|days| days.parse().ok());
        let (customer, price, quantity) = (&value["customer"], &bought["price"], &bought["quantity"]);
        let end = trial_days.map_or_else(|| period_end(price, now), |days| now + days * 86_400);
        let clock = is_yearly(price).then(|| self.start_clock(customer, now));
        let (paid, metadata) = (value["amount_total"].clone(), metadata(data));
        let mut subscription = json!({
            "id": subscription_id, "object": "subscription", "billing_cycle_anchor": end,
            "billing_mode": { "type": "flexible" },
            "cancel_at": null, "cancel_at_period_end": false, "canceled_at": null,
            "collection_method": "charge_automatically",
            "created": now, "currency": bought["currency"], "customer": customer, "ended_at": null,
            "latest_invoice": invoice_id,
            "livemode": false, "metadata": metadata, "start_date": now,
            "status": if trial_days.is_some() { "trialing" } else { "active" },
            "trial_start": trial_days.map(|_| now), "trial_end": trial_days.map(|_| end),
            "items": { "object": "list", "has_more": false, "total_count": 1, "data": [{
                "id": item_id, "object": "subscription_item", "created": now, "current_period_start": now,
                "current_period_end": end,
                "metadata": {}, "price": price, "quantity": quantity, "subscription": subscription_id,
            }] },
        });
        subscription["test_clock"] = json!(clock);
        let email = &value["customer_details"]["email"];
        let invoice = self.bill(&subscription, "subscription_create", paid.as_i64().unwrap_or(0), email, now);
        (subscription, invoice)
    }

    /// Fires an event with the new state of an object. It is undelivered.
    pub(super) fn fire(&mut self, kind: &str, object: Value, now: i64) -> anyhow::Result<FiredEvent> {
        self.fire_data(kind, &json!({ "object": object }), now)
    }

    /// The same with all of `data`, which for an update includes the previous attributes.
    pub(super) fn fire_data(&mut self, kind: &str, data: &Value, now: i64) -> anyhow::Result<FiredEvent> {
        let event = json!({
            "id": new_id("evt"), "object": "event", "api_version": "2026-03-25.dahlia", "created": now,
            "data": data,
            "livemode": false, "pending_webhooks": 1, "request": { "id": null, "idempotency_key": null },
            "type": kind,
        });
        let body = event.to_string();
        let id = self.ingest(&body, false)?;
        Ok(FiredEvent { id, kind: kind.to_owned(), body })
    }

    /// The current time: the one that a test set, else the real one.
    pub(super) fn time(&self) -> i64 {
        self.now.unwrap_or_else(|| jiff::Timestamp::now().as_second())
    }

    /// The current time of a customer, who may be on a test clock.
    pub(super) fn time_of(&self, customer: &Value) -> i64 {
        let clock = customer.as_str().and_then(|id| self.newest(TEST_CLOCK, Some(id), |_| true));
        let frozen = clock.and_then(|clock| clock["frozen_time"].as_i64());
        frozen.map_or_else(|| self.time(), |frozen| frozen.max(self.time()))
    }

    /// Puts a customer on a test clock of its own. Returns the clock's id.
    fn start_clock(&mut self, customer: &Value, now: i64) -> String {
        let id = new_id("clock");
        self.set_clock(&id, customer, now);
        id
    }

    /// Moves a test clock. Unlike Stripe's, it names its only customer.
    pub(super) fn set_clock(&mut self, id: &str, customer: &Value, to: i64) {
        let clock = json!({ "id": id, "object": TEST_CLOCK, "created": to, "customer": customer,
            "frozen_time": to, "livemode": false, "status": "ready" });
        self.store(clock.to_string(), clock, to, true);
    }
}

/// Refuses what Stripe documents as not allowed together.
/// <https://docs.stripe.com/api/checkout/sessions/create>
fn check_session(form: &Value, mode: &str) -> Result<(), StripeError> {
    let has_customer = form["customer"].is_string();
    let taxes = form["automatic_tax"]["enabled"] == "true";
    let tax_ids = form["tax_id_collection"]["enabled"] == "true";
    let wrong = [
        (has_customer && form["customer_email"].is_string(), "customer_email", "with `customer`"),
        (has_customer && form["customer_creation"].is_string(), "customer_creation", "with `customer`"),
        (!has_customer && form["customer_update"].is_object(), "customer_update", "without `customer`"),
        (mode != "payment" && form["customer_creation"].is_string(), "customer_creation", "in this mode"),
        (
            mode != "subscription" && form["payment_method_collection"].is_string(),
            "payment_method_collection",
            "in this mode",
        ),
        (
            mode != "subscription" && form["subscription_data"].is_object(),
            "subscription_data",
            "in this mode",
        ),
        (mode != "payment" && form["payment_intent_data"].is_object(), "payment_intent_data", "in this mode"),
        (
            has_customer && taxes && form["customer_update"]["address"] != "auto",
            "automatic_tax",
            "for a customer without an address and without `customer_update[address]`",
        ),
        (
            has_customer && tax_ids && form["customer_update"]["name"] != "auto",
            "tax_id_collection",
            "for a customer without `customer_update[name]`",
        ),
    ];
    if let Some((_, param, why)) = wrong.into_iter().find(|(is_wrong, _, _)| *is_wrong) {
        return Err(StripeError::bad("", param, format!("`{param}` is not allowed {why}.")));
    }
    let all = [form, &form["subscription_data"], &form["payment_intent_data"]];
    for metadata in all.into_iter().filter_map(|of| of["metadata"].as_object()) {
        let fits = |(key, value): (&String, &Value)| {
            key.chars().count() <= 40 && value.as_str().is_some_and(|value| value.chars().count() <= 500)
        };
        if metadata.len() > 50 || !metadata.iter().all(fits) {
            let message = "Metadata has at most 50 keys of 40 characters with values of 500 characters.";
            return Err(StripeError::bad("", "metadata", message.to_owned()));
        }
    }
    Ok(())
}

/// The events of a payment beside the event of the session.
fn charged(session: &Value, data: &Value, now: i64) -> [(&'static str, Value); 2] {
    let (intent, charge) = (&session["payment_intent"], new_id("ch"));
    let metadata = metadata(&data["payment_intent_data"]);
    let common = json!({ "amount": session["amount_total"], "created": now, "currency": session["currency"],
        "customer": session["customer"], "livemode": false, "metadata": metadata, "status": "succeeded" });
    let with = |more: Value| -> Value {
        let all = [&common, &more].into_iter().filter_map(Value::as_object).flatten();
        Value::Object(all.map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    [
        (
            "payment_intent.succeeded",
            with(json!({ "id": intent, "object": "payment_intent", "latest_charge": charge,
            "amount_received": session["amount_total"] })),
        ),
        (
            "charge.succeeded",
            with(json!({ "id": charge, "object": "charge", "payment_intent": intent, "paid": true,
                    "captured": true,
            "amount_captured": session["amount_total"], "amount_refunded": 0, "refunded": false,
            "disputed": false })),
        ),
    ]
}

fn customer(id: &str, form: &Value, now: i64) -> Value {
    json!({ "id": id, "object": "customer", "created": now, "email": form["email"], "name": form["name"],
        "livemode": false,
        "metadata": metadata(form) })
}

pub(super) fn price(id: &str, amount: i64, currency: &str, monthly: bool, lookup_key: Option<&str>) -> Value {
    json!({
        "id": id, "object": "price", "active": true, "billing_scheme": "per_unit", "created": 0,
        "currency": currency, "livemode": false,
        "lookup_key": lookup_key, "metadata": {},
        "product": format!("prod_{}", id.trim_start_matches("price_")),
        "recurring": monthly.then(|| json!({ "interval": "month", "interval_count": 1,
        "usage_type": "licensed" })),
        "type": if monthly { "recurring" } else { "one_time" }, "unit_amount": amount,
        "unit_amount_decimal": amount.to_string(),
    })
}

pub(super) fn metadata(of: &Value) -> Value {
    of["metadata"].as_object().map_or_else(|| json!({}), |metadata| Value::Object(metadata.clone()))
}

pub(super) fn required<'a>(form: &'a Value, param: &str) -> Result<&'a str, StripeError> {
    let value = form[param].as_str().filter(|value| !value.is_empty());
    value.ok_or_else(|| {
        StripeError::bad("parameter_missing", param, format!("Missing required param: {param}."))
    })
}

/// The id under which the form of a session is stored.
fn form_of(session: &str) -> String {
    format!("{session}#form")
}

pub(super) fn new_id(kind: &str) -> String {
    format!("{kind}_{:016x}{:08x}", fastrand::u64(..), fastrand::u32(..))
}

pub(super) fn a_month_after(now: i64) -> i64 {
    months_after(now, 1)
}

/// The same day and time some months later, or the last day of that month.
pub(super) fn months_after(start: i64, months: i32) -> i64 {
    let at = jiff::Timestamp::from_second(start).unwrap_or_default().to_zoned(TimeZone::UTC);
    at.checked_add(months.months()).map_or(start, |at| at.timestamp().as_second())
}

/// The end of a period of this price that starts now.
pub(super) fn period_end(price: &Value, start: i64) -> i64 {
    months_after(start, if is_yearly(price) { 12 } else { 1 })
}

fn is_yearly(price: &Value) -> bool {
    price["recurring"]["interval"] == "year"
}

/// A form as an object: `a[b][0]=1` is `{"a":{"b":["1"]}}`. Empty values are left out, as at Stripe.
pub(super) fn nested(form: &str) -> Value {
    fn put(object: &mut Map<String, Value>, path: &[&str], value: String) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            object.insert((*first).to_owned(), Value::String(value));
            return;
        }
        let inner = object.entry(*first).or_insert_with(|| json!({}));
        if let Value::Object(inner) = inner {
            put(inner, rest, value);
        }
    }
    fn lists(value: Value) -> Value {
        let Value::Object(object) = value else { return value };
        let is_list =
            !object.is_empty() && object.keys().all(|key| key.bytes().all(|byte| byte.is_ascii_digit()));
        let mut entries: Vec<(String, Value)> =
            object.into_iter().map(|(key, value)| (key, lists(value))).collect();
        if !is_list {
            return Value::Object(entries.into_iter().collect());
        }
        entries.sort_by_key(|(key, _)| key.parse::<usize>().unwrap_or(usize::MAX));
        Value::Array(entries.into_iter().map(|(_, value)| value).collect())
    }
    let mut object = Map::new();
    for (name, value) in parse(form).into_iter().filter(|(_, value)| !value.is_empty()) {
        let path: Vec<&str> = name.split('[').map(|part| part.trim_end_matches(']')).collect();
        put(&mut object, &path, value);
    }
    lists(Value::Object(object))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const MONTHLY: &str = "mode=subscription&success_url=https://app.test/ok&client_reference_id=ann&metadata[user_id]=ann\
        &line_items[0][price]=price_pro_test&line_items[0][quantity]=1&subscription_data[metadata][user_id]=ann";

    pub(in super::super) fn stripe_with_prices() -> FakeStripe {
        let fake = FakeStripe::new("sk_test_1");
        fake.set_now(1_767_607_200);
        fake.put_price("price_pro_test", 2_000, true, Some("pro_monthly"));
        fake.put_price("price_pack", 900, false, None);
        fake
    }

    pub(in super::super) fn create(fake: &FakeStripe, form: &str, key: Option<&str>) -> Result<Value, Value> {
        let made = fake.lock().create("checkout/sessions", form, key, "localhost").unwrap();
        made.map(|text| serde_json::from_str(&text).unwrap()).map_err(|problem| problem.error)
    }

    fn kinds(fired: &[FiredEvent]) -> Vec<&str> {
        fired.iter().map(|event| event.kind.as_str()).collect()
    }

    #[test]
    fn a_subscription_checkout_can_be_paid_once() {
        let fake = stripe_with_prices();
        let session = create(&fake, MONTHLY, None).unwrap();
        let id = session["id"].as_str().unwrap();
        assert_eq!(
            (&session["status"], &session["amount_total"], &session["metadata"]["user_id"]),
            (&json!("open"), &json!(2_000), &json!("ann"))
        );
        let fired = fake.pay(id, Payment::AtOnce).unwrap();
        let expected = [
            "customer.created",
            "checkout.session.completed",
            "customer.subscription.created",
            "invoice.paid",
        ];
        assert_eq!(kinds(&fired), expected);
        for event in &fired {
            tallyhook_core::event::read(event.body.as_bytes()).unwrap();
        }
        let invoice: Value = serde_json::from_str(&fired[3].body).unwrap();
        let line = &invoice["data"]["object"]["lines"]["data"][0];
        assert_eq!(
            (&line["metadata"]["user_id"], &line["period"]["end"]),
            (&json!("ann"), &json!(1_770_285_600))
        );
        assert!(fake.pay(id, Payment::AtOnce).is_err());
        assert_eq!(fake.object(id).unwrap()["payment_status"], "paid");
    }

    #[test]
    fn a_delayed_payment_is_unpaid_until_it_arrives() {
        let fake = stripe_with_prices();
        let form = "mode=payment&success_url=s&line_items[0][price]=price_pack&line_items[0][quantity]=3&payment_intent_data[metadata][pack]=p";
        let session = create(&fake, form, None).unwrap();
        let id = session["id"].as_str().unwrap();
        assert_eq!(kinds(&fake.pay(id, Payment::Later).unwrap()), ["checkout.session.completed"]);
        assert_eq!(fake.object(id).unwrap()["payment_status"], "unpaid");
        let fired = fake.clear(id, true).unwrap();
        assert_eq!(
            kinds(&fired),
            ["payment_intent.succeeded", "charge.succeeded", "checkout.session.async_payment_succeeded"]
        );
        let charge: Value = serde_json::from_str(&fired[1].body).unwrap();
        assert_eq!(
            (&charge["data"]["object"]["amount"], &charge["data"]["object"]["metadata"]["pack"]),
            (&json!(2_700), &json!("p"))
        );
        assert!(fake.clear(id, true).is_err() && fake.expire(id).is_err());
    }

    #[test]
    fn an_invalid_session_is_refused_with_the_parameter() {
        let fake = stripe_with_prices();
        for (form, param) in [
            ("", "mode"),
            ("mode=payment", "success_url"),
            ("mode=payment&success_url=s", "line_items"),
            ("mode=payment&success_url=s&line_items[0][price]=price_gone", "line_items[0][price]"),
            ("mode=payment&success_url=s&line_items[0][price]=price_pro_test", "mode"),
            ("mode=subscription&success_url=s&line_items[0][price]=price_pack", "mode"),
            ("mode=payment&success_url=s&customer=cus_gone&line_items[0][price]=price_pack", "customer"),
        ] {
            assert_eq!(create(&fake, form, None).unwrap_err()["param"], param, "{form}");
        }
    }

    #[test]
    fn an_idempotency_key_creates_one_session() {
        let fake = stripe_with_prices();
        let first = create(&fake, MONTHLY, Some("checkout#1")).unwrap();
        assert_eq!(create(&fake, MONTHLY, Some("checkout#1")).unwrap(), first);
        assert_ne!(create(&fake, MONTHLY, Some("checkout#2")).unwrap()["id"], first["id"]);
        assert_eq!(
            create(&fake, &format!("{MONTHLY}&locale=de"), Some("checkout#1")).unwrap_err()["type"],
            "idempotency_error"
        );
    }
}
