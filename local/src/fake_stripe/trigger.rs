//! What the Stripe CLI asks: a session and a websocket for `stripe listen`, and the requests of the fixtures
//! of `stripe trigger`.
//!
//! ```sh
//! stripe listen --all-snapshot --forward-to localhost:9000/webhooks/stripe \
//!     --api-key sk_test_tallyhook_local --api-base http://127.0.0.1:PORT
//! ```
//! The shapes are those of stripe/stripe-cli (`pkg/stripeauth/messages.go`,
//! `pkg/websocket/webhook_messages.go`, `pkg/fixtures/triggers`). Every event that a request fires goes to
//! all listeners. They sign it with the secret of their session, which is the local stack's default:
//! `whsec_local`.
//!
//! | fixture | events |
//! |---|---|
//! | `checkout.session.completed` | as [`FakeStripe::pay`] |
//! | `customer.subscription.created` | `customer.subscription.created`, `invoice.paid` |
//! | `invoice.paid` | `charge.succeeded`, `invoice.paid`: a manual invoice |
//! | `charge.refunded` | `payment_intent.succeeded`, `charge.succeeded`, `refund.created`, `charge.refunded` |
//! | `charge.dispute.created` | `payment_intent.succeeded`, `charge.succeeded`, `charge.dispute.created` |

use axum::extract::ws::{Message, WebSocket};
use cli::local_stack::WEBHOOK_SECRET;
use serde_json::{Value, json};
use tallyhook_core::event::API_VERSION;
use tallyhook_core::signature::{Secret, sign};
use tallyhook_core::timestamp::Timestamp;
use tokio::sync::mpsc;

use super::checkout::{FiredEvent, Payment, a_month_after, metadata, new_id, required};
use super::objects::ListQuery;
use super::request::StripeError;
use super::{FakeStripe, State};

/// A key that the Stripe CLI accepts. [`super::FakeStripe`] accepts it beside its own.
pub const CLI_KEY: &str = "sk_test_tallyhook_local";

/// The path of the websocket.
pub(super) const SOCKET_PATH: &str = "/v1/stripecli/socket";

impl FakeStripe {
    /// Sends every event that is fired from now on to the Stripe CLI, until it closes the connection.
    pub(super) async fn feed(self, mut socket: WebSocket) {
        let (sender, mut events) = mpsc::unbounded_channel();
        self.lock().listeners.push(sender);
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    if socket.send(Message::text(webhook_event(&event))).await.is_err() {
                        return;
                    }
                }
                // Acknowledgements and answers. The gateway records what the webhook accepts.
                message = socket.recv() => {
                    if !matches!(message, Some(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }
}

/// The message that makes the Stripe CLI post an event.
fn webhook_event(event: &FiredEvent) -> String {
    let secret = Secret::new(WEBHOOK_SECRET).expect("the default secret is not blank");
    let now = Timestamp::from_unix(jiff::Timestamp::now().as_second());
    json!({
        "type": "webhook_event", "webhook_id": "wc_local", "webhook_conversation_id": new_id("wc"),
        "endpoint": {"api_version": null}, "event_payload": event.body,
        "http_headers": {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Stripe-Signature": sign(event.body.as_bytes(), &secret, now),
        },
    })
    .to_string()
}

impl State {
    /// Answers a `POST` of a fixture. `None` for an unknown path.
    pub(super) fn create_for_trigger(
        &mut self,
        path: &str,
        form: &Value,
        host: &str,
    ) -> Option<Result<Value, StripeError>> {
        let parts: Vec<&str> = path.split('/').collect();
        Some(match parts.as_slice() {
            ["stripecli", "sessions"] => Ok(session(host)),
            ["payment_methods"] => Ok(self.keep("pm", "payment_method", form)),
            ["payment_methods", id, "attach"] => {
                Ok(json!({"id": id, "object": "payment_method", "customer": form["customer"]}))
            }
            ["payment_pages", id, "confirm"] => self.confirm(id),
            ["subscriptions"] => self.create_subscription(form),
            ["invoiceitems"] => Ok(self.keep("ii", "invoiceitem", form)),
            ["invoices"] => self.create_invoice(form),
            ["invoices", id, "pay"] => self.pay_invoice(id),
            ["payment_intents"] => self.create_payment_intent(form),
            ["refunds"] => self.create_refund(form),
            _ => return None,
        })
    }

    /// Stores what the form describes, with an id of its own.
    fn keep(&mut self, prefix: &str, kind: &str, form: &Value) -> Value {
        let mut object = form.clone();
        let now = self.time();
        for (name, value) in [("id", json!(new_id(prefix))), ("object", json!(kind)), ("created", json!(now))]
        {
            object[name] = value;
        }
        self.store(object.to_string(), object.clone(), now, true);
        object
    }

    /// The checkout page: the customer pays by card.
    fn confirm(&mut self, session: &str) -> Result<Value, StripeError> {
        let fired = self.pay(session, Payment::AtOnce).map_err(|error| refused(&error))?;
        self.announce(fired);
        Ok(self.objects.get(session).map(|stored| stored.value).unwrap_or_default())
    }

    fn create_subscription(&mut self, form: &Value) -> Result<Value, StripeError> {
        let customer = required(form, "customer")?;
        self.check_customer(customer)?;
        let item = &form["items"][0];
        let Some(price) = item["price"].as_str().and_then(|id| self.objects.get(id)) else {
            let message = format!("No such price: '{}'", item["price"].as_str().unwrap_or_default());
            return Err(StripeError::bad("resource_missing", "items[0][price]", message));
        };
        let (price, now) = (price.value, self.time());
        let quantity = number(&item["quantity"]).unwrap_or(1);
        let amount = price["unit_amount"].as_i64().unwrap_or(0).saturating_mul(quantity);
        let subscription = subscription(customer, &price, quantity, &metadata(form), now);
        let invoice = self.bill(&subscription, "subscription_create", amount, &Value::Null, now);
        self.fire_to_listeners("customer.subscription.created", subscription.clone(), now)?;
        self.fire_to_listeners("invoice.paid", invoice, now)?;
        Ok(subscription)
    }

    /// A draft with the pending invoice items of the customer.
    fn create_invoice(&mut self, form: &Value) -> Result<Value, StripeError> {
        let customer = required(form, "customer")?.to_owned();
        let (id, now) = (new_id("in"), self.time());
        let mut pending = Vec::new();
        self.objects.visit(
            &ListQuery { subject: Some(&customer), ..ListQuery::of("invoiceitem") },
            |stored| {
                pending.push(stored.value);
                true
            },
        );
        pending.retain(|item| item["invoice"].is_null());
        let mut lines = Vec::new();
        for mut item in pending {
            lines.push(self.invoice_line(&id, &item, now)?);
            item["invoice"] = json!(id);
            self.store(item.to_string(), item, now, true);
        }
        let total: i64 = lines.iter().filter_map(|line| line["amount"].as_i64()).sum();
        let invoice = json!({
            "id": id, "object": "invoice", "amount_due": total, "amount_paid": 0, "amount_remaining": total,
            "billing_reason": "manual", "created": now, "currency": "usd", "customer": customer,
            "customer_email": null, "description": form["description"], "livemode": false,
            "metadata": metadata(form), "parent": null, "period_start": now, "period_end": now,
            "status": "draft", "subtotal": total, "total": total,
            "lines": {"object": "list", "has_more": false, "total_count": lines.len(), "data": lines},
        });
        self.store(invoice.to_string(), invoice.clone(), now, true);
        Ok(invoice)
    }

    /// A line has a price only if its invoice item has one.
    fn invoice_line(&self, invoice: &str, item: &Value, now: i64) -> Result<Value, StripeError> {
        let quantity = number(&item["quantity"]).unwrap_or(1);
        let price = match item["pricing"]["price"].as_str() {
            None => None,
            Some(id) => match self.objects.get(id).filter(|stored| stored.kind == "price") {
                Some(stored) => Some(stored.value),
                None => {
                    let message = format!("No such price: '{id}'");
                    return Err(StripeError::bad("resource_missing", "pricing[price]", message));
                }
            },
        };
        let amount = match &price {
            Some(price) => price["unit_amount"].as_i64().unwrap_or(0).saturating_mul(quantity),
            None => number(&item["amount"]).unwrap_or(0),
        };
        let pricing = price.map(|price| {
            json!({"type": "price_details", "unit_amount_decimal": price["unit_amount_decimal"],
                "price_details": {"price": price["id"], "product": price["product"]}})
        });
        Ok(json!({
            "id": new_id("il"), "object": "line_item", "amount": amount, "currency": "usd",
            "description": item["description"], "invoice": invoice, "livemode": false,
            "metadata": metadata(item), "period": {"start": now, "end": now}, "pricing": pricing,
            "quantity": quantity,
            "parent": {"type": "invoice_item_details", "subscription_item_details": null,
                "invoice_item_details": {"invoice_item": item["id"], "proration": false,
                    "proration_details": {"credited_items": null}, "subscription": null}},
        }))
    }

    fn pay_invoice(&mut self, id: &str) -> Result<Value, StripeError> {
        let stored = self.objects.get(id).filter(|stored| stored.kind == "invoice");
        let mut invoice = stored.ok_or_else(|| StripeError::missing("invoice", id))?.value;
        if invoice["status"] == "paid" {
            return Err(StripeError::bad("invoice_already_paid", "", "Invoice is already paid".to_owned()));
        }
        let now = self.time();
        let amount = invoice["total"].as_i64().unwrap_or(0);
        for (name, value) in
            [("status", json!("paid")), ("amount_paid", json!(amount)), ("amount_remaining", json!(0))]
        {
            invoice[name] = value;
        }
        if amount > 0 {
            let intent = new_id("pi");
            self.add_payment(&intent, id, now);
            let charge = charge(&intent, amount, &invoice["customer"], &json!({}), now);
            self.fire_to_listeners("charge.succeeded", charge, now)?;
        }
        self.fire_to_listeners("invoice.paid", invoice.clone(), now)?;
        Ok(invoice)
    }

    /// A payment that is confirmed at once. A test card opens a dispute of it.
    fn create_payment_intent(&mut self, form: &Value) -> Result<Value, StripeError> {
        let (now, intent) = (self.time(), new_id("pi"));
        let amount = number(&form["amount"]).ok_or_else(|| {
            StripeError::bad("parameter_missing", "amount", "Missing required param: amount.".to_owned())
        })?;
        let charge = charge(&intent, amount, &form["customer"], &metadata(form), now);
        let object = json!({
            "id": intent, "object": "payment_intent", "amount": amount, "amount_received": amount,
            "created": now, "currency": "usd", "customer": form["customer"], "latest_charge": charge["id"],
            "livemode": false, "metadata": metadata(form), "status": "succeeded",
        });
        self.fire_to_listeners("payment_intent.succeeded", object.clone(), now)?;
        self.fire_to_listeners("charge.succeeded", charge.clone(), now)?;
        let status = match form["payment_method"].as_str() {
            Some("pm_card_createDispute") => Some("needs_response"),
            Some("pm_card_createDisputeInquiry") => Some("warning_needs_response"),
            Some(_) | None => None,
        };
        if let Some(status) = status {
            let dispute = json!({
                "id": new_id("du"), "object": "dispute", "amount": amount, "balance_transaction": null,
                "balance_transactions": [], "charge": charge["id"], "created": now, "currency": "usd",
                "is_charge_refundable": status.starts_with("warning"), "livemode": false, "metadata": {},
                "payment_intent": intent, "reason": "fraudulent", "status": status,
            });
            self.fire_to_listeners("charge.dispute.created", dispute, now)?;
        }
        Ok(object)
    }

    fn create_refund(&mut self, form: &Value) -> Result<Value, StripeError> {
        let intent = required(form, "payment_intent")?;
        let paid = self.newest("charge", None, |charge| charge["payment_intent"] == intent);
        let charge = paid.ok_or_else(|| {
            let message = format!("No such payment_intent: '{intent}'");
            StripeError::bad("resource_missing", "payment_intent", message)
        })?;
        let fired = self.refund(charge["id"].as_str().unwrap_or_default()).map_err(|error| {
            StripeError::bad("charge_already_refunded", "payment_intent", error.to_string())
        })?;
        let refund =
            fired.first().map(|event| serde_json::from_str::<Value>(&event.body).unwrap_or_default());
        self.announce(fired);
        Ok(refund.map(|event| event["data"]["object"].clone()).unwrap_or_default())
    }

    fn fire_to_listeners(&mut self, kind: &str, object: Value, now: i64) -> Result<(), StripeError> {
        let fired = self.fire(kind, object, now).map_err(|error| refused(&error))?;
        self.announce(vec![fired]);
        Ok(())
    }

    /// Sends events to every listener, and forgets those that have closed their connection.
    fn announce(&mut self, fired: Vec<FiredEvent>) {
        for event in fired {
            self.listeners.retain(|listener| listener.send(event.clone()).is_ok());
        }
    }
}

fn session(host: &str) -> Value {
    json!({
        "websocket_url": format!("ws://{host}{SOCKET_PATH}"), "websocket_id": new_id("cliws"),
        "websocket_authorized_feature": "webhooks", "reconnect_delay": 86_400, "secret": WEBHOOK_SECRET,
        "default_version": API_VERSION, "latest_version": API_VERSION,
        "display_connect_filter_warning": false, "device_token": "",
    })
}

fn subscription(customer: &str, price: &Value, quantity: i64, metadata: &Value, now: i64) -> Value {
    let id = new_id("sub");
    json!({
        "id": id, "object": "subscription", "billing_cycle_anchor": now, "billing_mode": {"type": "flexible"},
        "cancel_at": null, "cancel_at_period_end": false, "canceled_at": null,
        "collection_method": "charge_automatically", "created": now, "currency": price["currency"],
        "customer": customer, "ended_at": null, "latest_invoice": new_id("in"), "livemode": false,
        "metadata": metadata, "start_date": now, "status": "active", "trial_start": null, "trial_end": null,
        "items": {"object": "list", "has_more": false, "total_count": 1, "data": [{
            "id": new_id("si"), "object": "subscription_item", "created": now, "current_period_start": now,
            "current_period_end": a_month_after(now), "metadata": {}, "price": price, "quantity": quantity,
            "subscription": id,
        }]},
    })
}

fn charge(intent: &str, amount: i64, customer: &Value, metadata: &Value, now: i64) -> Value {
    json!({
        "id": new_id("ch"), "object": "charge", "amount": amount, "amount_captured": amount,
        "amount_refunded": 0, "captured": true, "created": now, "currency": "usd", "customer": customer,
        "disputed": false, "livemode": false, "metadata": metadata, "paid": true, "payment_intent": intent,
        "refunded": false, "status": "succeeded",
    })
}

fn number(value: &Value) -> Option<i64> {
    value.as_str()?.parse().ok()
}

fn refused(error: &anyhow::Error) -> StripeError {
    StripeError::bad("parameter_invalid", "", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::request::Params;
    use super::*;

    fn post(stripe: &FakeStripe, path: &str, form: &str) -> Value {
        let mut state = stripe.lock();
        let made = state.create(path, form, None, "localhost").expect("the path is known");
        serde_json::from_str(&made.unwrap_or_else(|problem| panic!("{path}: {}", problem.error))).unwrap()
    }

    #[test]
    fn the_fixture_of_a_manual_invoice_has_a_price_only_if_its_item_has_one() {
        let stripe = FakeStripe::new("sk_test_1");
        stripe.put_price("price_pack", 900, false, None);
        for (item, price) in [("amount=2000", None), ("pricing[price]=price_pack", Some("price_pack"))] {
            let customer = post(&stripe, "customers", "");
            let customer = customer["id"].as_str().unwrap();
            post(&stripe, "invoiceitems", &format!("customer={customer}&currency=usd&{item}"));
            let invoice = post(&stripe, "invoices", &format!("customer={customer}&metadata[user_id]=ann"));
            let paid = post(&stripe, &format!("invoices/{}/pay", invoice["id"].as_str().unwrap()), "");
            let line = &paid["lines"]["data"][0];
            assert_eq!((&paid["status"], paid["lines"]["total_count"].as_i64()), (&json!("paid"), Some(1)));
            assert_eq!(line["pricing"]["price_details"]["price"].as_str(), price, "{paid}");
            assert_eq!(paid["amount_paid"], if price.is_some() { 900 } else { 2000 });
        }
    }

    #[test]
    fn a_payment_can_be_refunded_once_by_its_payment_intent() {
        let stripe = FakeStripe::new("sk_test_1");
        let intent = post(&stripe, "payment_intents", "amount=100&currency=usd");
        let form = format!("payment_intent={}", intent["id"].as_str().unwrap());
        assert_eq!(post(&stripe, "refunds", &form)["amount"], 100);
        let again = stripe.lock().create("refunds", &form, None, "localhost");
        assert_eq!(again.unwrap().unwrap_err().error["code"], "charge_already_refunded");
        let events: &Params = &[];
        assert_eq!(super::super::list::objects(&stripe.lock(), "event", events).unwrap().0.len(), 4);
    }
}
