//! What happens after the purchase: renewal, plan change, cancellation, refund.
//!
//! | | events |
//! |---|---|
//! | [`FakeStripe::pass_a_month`] | within a paid year `customer.subscription.updated` (its metadata), else those of `renew` |
//! | [`FakeStripe::renew`] | `customer.subscription.updated` (the new period), `invoice.paid` (`subscription_cycle`) |
//! | [`FakeStripe::change_plan`] | `customer.subscription.updated` (the new price; it is billed with the next period) |
//! | [`FakeStripe::upgrade`] | `customer.subscription.updated`, `invoice.paid` (`subscription_update`) for the difference |
//! | [`FakeStripe::cancel`] | `customer.subscription.deleted` |
//! | [`FakeStripe::refund`] | `refund.created`, `charge.refunded` |
//!
//! A renewal does not wait for the end of the month: the current period ends at the time of the call, so that
//! the times of all events are in order. A yearly subscription is on a test clock of Stripe instead, and
//! moves month by month. Stripe sends no event within a paid year, and tallyhook reads the time of a clock
//! from events, so each month also writes the date into the subscription's metadata.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::checkout::{FiredEvent, months_after, new_id, period_end};
use super::objects::ListQuery;
use super::{FakeStripe, State};

impl FakeStripe {
    /// The newest completed checkout session of this user (`client_reference_id`).
    pub fn session_of(&self, user: &str) -> Option<Value> {
        self.lock().newest("checkout.session", None, |value| {
            value["client_reference_id"] == user && value["status"] == "complete"
        })
    }

    /// The customer of the newest checkout session of this user.
    pub fn customer_of(&self, user: &str) -> Option<String> {
        let paid = |value: &Value| value["client_reference_id"] == user && value["customer"].is_string();
        Some(self.lock().newest("checkout.session", None, paid)?["customer"].as_str()?.to_owned())
    }

    /// The newest subscription of a customer that is not cancelled.
    pub fn subscription_of(&self, customer: &str) -> Option<Value> {
        self.lock().newest("subscription", Some(customer), |value| value["status"] != "canceled")
    }

    /// The newest charge of a customer that is not refunded.
    pub fn charge_of(&self, customer: &str) -> Option<Value> {
        self.lock().newest("charge", Some(customer), |value| value["refunded"] == false)
    }

    /// Lets one month pass. A monthly subscription renews. The test clock of a yearly one moves to the next
    /// month of the paid year, or to its end, where it renews.
    ///
    /// # Errors
    /// When there is no such subscription, or it is cancelled.
    pub fn pass_a_month(&self, subscription: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let mut state = self.lock();
        let mut value = state.active_subscription(subscription)?;
        let Some(clock) = value["test_clock"].as_str().map(str::to_owned) else {
            drop(state);
            return self.renew(subscription);
        };
        let item = &value["items"]["data"][0];
        let time = |name: &str| item[name].as_i64().unwrap_or_default();
        let (start, end) = (time("current_period_start"), time("current_period_end"));
        let now = state.time_of(&value["customer"]);
        let next = (1..=12).map(|month| months_after(start, month)).find(|at| *at > now);
        let next = next.unwrap_or(now).max(now + 1);
        state.set_clock(&clock, &value["customer"], next);
        if next >= end {
            drop(state);
            return self.renew(subscription);
        }
        let before = json!({ "metadata": value["metadata"] });
        let date = jiff::Timestamp::from_second(next)?.strftime("%Y-%m-%d").to_string();
        value["metadata"]["date"] = json!(date);
        let data = json!({ "object": value, "previous_attributes": before });
        Ok(vec![state.fire_data("customer.subscription.updated", &data, next)?])
    }

    /// Starts the next period and pays it.
    ///
    /// # Errors
    /// When there is no such subscription, or it is cancelled.
    pub fn renew(&self, subscription: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let mut state = self.lock();
        let mut value = state.active_subscription(subscription)?;
        let now = state.time_of(&value["customer"]);
        let before = json!({ "items": value["items"], "latest_invoice": value["latest_invoice"] });
        let item = &mut value["items"]["data"][0];
        let start = now.max(item["current_period_start"].as_i64().unwrap_or(0) + 1);
        let amount = item["price"]["unit_amount"]
            .as_i64()
            .unwrap_or(0)
            .saturating_mul(item["quantity"].as_i64().unwrap_or(1));
        item["current_period_start"] = json!(start);
        item["current_period_end"] = json!(period_end(&item["price"], start));
        value["status"] = json!("active");
        value["latest_invoice"] = json!(new_id("in"));
        let invoice = state.bill(&value, "subscription_cycle", amount, &Value::Null, now);
        Ok(vec![
            state.fire_data(
                "customer.subscription.updated",
                &json!({ "object": value, "previous_attributes": before }),
                now,
            )?,
            state.fire_data("invoice.paid", &json!({ "object": invoice }), now)?,
        ])
    }

    /// Changes the price for the rest of the period.
    ///
    /// # Errors
    /// When there is no such subscription or price, or the subscription is cancelled.
    pub fn change_plan(&self, subscription: &str, price: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let mut state = self.lock();
        let mut value = state.active_subscription(subscription)?;
        let now = state.time_of(&value["customer"]);
        let price = state
            .objects
            .get(price)
            .filter(|stored| stored.kind == "price")
            .with_context(|| format!("there is no price {price}"))?;
        let before = json!({ "items": { "data": value["items"]["data"] } });
        value["items"]["data"][0]["price"] = price.value;
        Ok(vec![state.fire_data(
            "customer.subscription.updated",
            &json!({ "object": value, "previous_attributes": before }),
            now,
        )?])
    }

    /// Changes the price within the period, and bills the difference for the rest of it at once.
    ///
    /// # Errors
    /// When there is no such subscription or price, or the subscription is cancelled.
    pub fn upgrade(&self, subscription: &str, price: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let mut fired = self.change_plan(subscription, price)?;
        let mut state = self.lock();
        let mut value = state.active_subscription(subscription)?;
        let now = state.time_of(&value["customer"]);
        let changed: Value = serde_json::from_str(&fired.first().context("a change fires an event")?.body)?;
        let old = &changed["data"]["previous_attributes"]["items"]["data"][0]["price"];
        let item = value["items"]["data"][0].clone();
        let time = |name: &str| item[name].as_i64().unwrap_or_default();
        let (start, end) = (time("current_period_start"), time("current_period_end"));
        let rest_of = |price: &Value| {
            let amount = price["unit_amount"].as_i64().unwrap_or_default();
            amount.saturating_mul(end - now) / (end - start).max(1)
        };
        let (unused, rest) = (-rest_of(old), rest_of(&item["price"]));
        value["latest_invoice"] = json!(new_id("in"));
        let mut invoice = state.bill(&value, "subscription_update", rest + unused, &Value::Null, now);
        let line = |price: &Value, amount: i64| {
            let mut line = invoice["lines"]["data"][0].clone();
            line["id"] = json!(new_id("il"));
            line["amount"] = json!(amount);
            line["period"]["start"] = json!(now);
            line["parent"]["subscription_item_details"]["proration"] = json!(true);
            line["pricing"]["price_details"] = json!({ "price": price["id"], "product": price["product"] });
            line
        };
        let lines = [line(old, unused), line(&item["price"], rest)];
        invoice["lines"]["data"] = json!(lines);
        invoice["lines"]["total_count"] = json!(2);
        fired.push(state.fire("invoice.paid", invoice, now)?);
        Ok(fired)
    }

    /// Cancels a subscription at once.
    ///
    /// # Errors
    /// When there is no such subscription, or it is cancelled.
    pub fn cancel(&self, subscription: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let mut state = self.lock();
        let mut value = state.active_subscription(subscription)?;
        let now = state.time_of(&value["customer"]);
        for (name, to) in
            [("status", json!("canceled")), ("canceled_at", json!(now)), ("ended_at", json!(now))]
        {
            value[name] = to;
        }
        Ok(vec![state.fire_data("customer.subscription.deleted", &json!({ "object": value }), now)?])
    }

    /// The event that says which invoice the payment of a charge paid.
    ///
    /// # Errors
    /// When the charge paid no invoice.
    pub fn payment_of(&self, charge: &Value) -> anyhow::Result<FiredEvent> {
        let mut state = self.lock();
        let id = format!("inpay_{}", charge["payment_intent"].as_str().unwrap_or_default());
        let payment = state.objects.get(&id).context("the charge paid no invoice")?.value;
        let now = state.time_of(&charge["customer"]);
        state.fire("invoice_payment.paid", payment, now)
    }

    /// Refunds a charge in full.
    ///
    /// # Errors
    /// When there is no such charge, or it is refunded.
    pub fn refund(&self, charge: &str) -> anyhow::Result<Vec<FiredEvent>> {
        self.lock().refund(charge)
    }
}

impl State {
    /// Refunds a charge in full.
    pub(super) fn refund(&mut self, charge: &str) -> anyhow::Result<Vec<FiredEvent>> {
        let found = self.objects.get(charge).filter(|stored| stored.kind == "charge");
        let mut charge = found.with_context(|| format!("there is no charge {charge}"))?.value;
        let now = self.time_of(&charge["customer"]);
        ensure!(charge["refunded"] == false, "the charge is already refunded");
        let refund = json!({
            "id": new_id("re"), "object": "refund", "amount": charge["amount"], "charge": charge["id"],
            "created": now,
            "currency": charge["currency"], "metadata": {}, "payment_intent": charge["payment_intent"],
            "reason": "requested_by_customer",
            "status": "succeeded",
        });
        charge["amount_refunded"] = charge["amount"].clone();
        charge["refunded"] = json!(true);
        let before = json!({ "amount_refunded": 0, "refunded": false });
        Ok(vec![
            self.fire_data("refund.created", &json!({ "object": refund }), now)?,
            self.fire_data(
                "charge.refunded",
                &json!({ "object": charge, "previous_attributes": before }),
                now,
            )?,
        ])
    }

    /// The newest object of a kind and a customer that satisfies a condition.
    pub(super) fn newest(
        &self,
        kind: &str,
        customer: Option<&str>,
        condition: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        let mut newest = None;
        self.objects.visit(&ListQuery { subject: customer, ..ListQuery::of(kind) }, |stored| {
            newest = Some(stored.value).filter(&condition);
            newest.is_none()
        });
        newest
    }

    fn active_subscription(&self, subscription: &str) -> anyhow::Result<Value> {
        let found = self.objects.get(subscription).filter(|stored| stored.kind == "subscription");
        let value = found.with_context(|| format!("there is no subscription {subscription}"))?.value;
        ensure!(value["status"] != "canceled", "the subscription {subscription} is cancelled");
        Ok(value)
    }

    /// The invoice of the current period, with the id `latest_invoice`. Also stores its charge and its
    /// invoice payment, because an event about an invoice does not name them.
    pub(super) fn bill(
        &mut self,
        subscription: &Value,
        reason: &str,
        paid: i64,
        email: &Value,
        now: i64,
    ) -> Value {
        let [line, intent, charge] = ["il", "pi", "ch"].map(new_id);
        let (id, customer, metadata) =
            (&subscription["latest_invoice"], &subscription["customer"], &subscription["metadata"]);
        let (item, currency) = (&subscription["items"]["data"][0], &subscription["currency"]);
        if paid != 0 {
            self.add_payment(&intent, id.as_str().unwrap_or_default(), now);
            let charge = json!({
                "id": charge, "object": "charge", "amount": paid, "amount_captured": paid,
                "amount_refunded": 0, "captured": true,
                "created": now, "currency": currency, "customer": customer, "disputed": false,
                "livemode": false, "metadata": {},
                "paid": true, "payment_intent": intent, "refunded": false, "status": "succeeded",
            });
            self.store(charge.to_string(), charge, now, true);
        }
        let mut invoice = json!({
            "id": id, "object": "invoice", "amount_due": paid, "amount_paid": paid, "amount_remaining": 0,
            "billing_reason": reason,
            "created": now, "currency": currency, "customer": customer, "customer_email": email,
            "livemode": false, "metadata": {},
            "period_start": now, "period_end": now, "status": "paid", "subtotal": paid, "total": paid,
            "parent": { "type": "subscription_details", "quote_details": null,
                "subscription_details": { "metadata": metadata, "subscription": subscription["id"] } },
            "lines": { "object": "list", "has_more": false, "total_count": 1, "data": [{
                "id": line, "object": "line_item", "amount": paid, "currency": currency, "invoice": id,
                "livemode": false,
                "metadata": metadata, "quantity": item["quantity"],
                "period": { "start": item["current_period_start"], "end": item["current_period_end"] },
                "parent": { "type": "subscription_item_details", "invoice_item_details": null,
                "subscription_item_details": {
                    "proration": false, "subscription": subscription["id"],
                    "subscription_item": item["id"] } },
                "pricing": { "type": "price_details",
                    "price_details": { "price": item["price"]["id"], "product": item["price"]["product"] } },
            }] },
        });
        invoice["test_clock"] = subscription["test_clock"].clone();
        invoice
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payment;
    use super::super::checkout::tests::{MONTHLY, create, stripe_with_prices};
    use super::*;

    fn objects(fired: &[FiredEvent]) -> Vec<(String, Value)> {
        let object = |event: &FiredEvent| {
            tallyhook_core::event::read(event.body.as_bytes()).unwrap();
            serde_json::from_str::<Value>(&event.body).unwrap()["data"].clone()
        };
        fired.iter().map(|event| (event.kind.clone(), object(event))).collect()
    }

    #[test]
    fn a_subscription_can_be_renewed_changed_and_cancelled_once() {
        let fake = stripe_with_prices();
        fake.put_price("price_business_test", 4_000, true, None);
        fake.pay(create(&fake, MONTHLY, None).unwrap()["id"].as_str().unwrap(), Payment::AtOnce).unwrap();
        let customer = fake.customer_of("ann").unwrap();
        let id = fake.subscription_of(&customer).unwrap()["id"].as_str().unwrap().to_owned();
        let first = fake.object(&id).unwrap()["items"]["data"][0]["current_period_start"].as_i64().unwrap();

        let renewed = objects(&fake.renew(&id).unwrap());
        assert_eq!(
            (renewed[0].0.as_str(), renewed[1].0.as_str()),
            ("customer.subscription.updated", "invoice.paid")
        );
        let start = renewed[0].1["object"]["items"]["data"][0]["current_period_start"].as_i64().unwrap();
        assert!(
            start > first
                && renewed[0].1["previous_attributes"]["items"]["data"][0]["current_period_start"] == first
        );
        let invoice = &renewed[1].1["object"];
        assert_eq!(
            (&invoice["billing_reason"], &invoice["amount_paid"]),
            (&json!("subscription_cycle"), &json!(2_000))
        );
        assert_eq!(
            (&invoice["lines"]["data"][0]["period"]["start"], &invoice["id"]),
            (&json!(start), &fake.object(&id).unwrap()["latest_invoice"])
        );

        let changed = objects(&fake.change_plan(&id, "price_business_test").unwrap());
        assert_eq!(changed[0].1["object"]["items"]["data"][0]["price"]["id"], "price_business_test");
        assert_eq!(changed[0].1["previous_attributes"]["items"]["data"][0]["price"]["id"], "price_pro_test");
        assert!(fake.change_plan(&id, "price_gone").is_err());

        assert_eq!(objects(&fake.cancel(&id).unwrap())[0].1["object"]["status"], "canceled");
        assert!(
            fake.cancel(&id).is_err()
                && fake.renew(&id).is_err()
                && fake.subscription_of(&customer).is_none()
        );
    }

    #[test]
    fn the_months_of_a_year_pass_on_a_test_clock_to_its_renewal() {
        let fake = stripe_with_prices();
        fake.put_yearly_price("price_year", 20_000);
        fake.put_yearly_price("price_larger", 40_000);
        let form = MONTHLY.replace("price_pro_test", "price_year");
        let session = fake.checkout(&form).unwrap();
        let bought = objects(&fake.pay(session["id"].as_str().unwrap(), Payment::AtOnce).unwrap());
        let subscription =
            &bought.iter().find(|(kind, _)| kind == "customer.subscription.created").unwrap().1;
        let id = subscription["object"]["id"].as_str().unwrap();
        assert!(subscription["object"]["test_clock"].is_string());
        let item = |fake: &FakeStripe| fake.object(id).unwrap()["items"]["data"][0].clone();
        let start = item(&fake)["current_period_start"].as_i64().unwrap();
        assert_eq!(item(&fake)["current_period_end"], months_after(start, 12));

        for month in 1..12 {
            let passed = fake.pass_a_month(id).unwrap();
            let event: Value = serde_json::from_str(&passed[0].body).unwrap();
            assert_eq!((passed.len(), &event["created"]), (1, &json!(months_after(start, month))));
            assert_eq!(event["data"]["previous_attributes"]["items"], Value::Null);
        }
        let upgraded = objects(&fake.upgrade(id, "price_larger").unwrap());
        let lines = &upgraded[1].1["object"]["lines"]["data"];
        let (unused, rest) = (lines[0]["amount"].as_i64().unwrap(), lines[1]["amount"].as_i64().unwrap());
        assert!(unused < 0 && rest >= -2 * unused && upgraded[1].1["object"]["amount_paid"] == rest + unused);

        let renewed = fake.pass_a_month(id).unwrap();
        assert_eq!(
            renewed.iter().map(|event| &event.kind).collect::<Vec<_>>(),
            ["customer.subscription.updated", "invoice.paid"]
        );
        assert_eq!(item(&fake)["current_period_start"], months_after(start, 12));
        assert_eq!(item(&fake)["current_period_end"], months_after(start, 24));
    }

    #[test]
    fn charges_are_refunded_once_newest_first() {
        let fake = stripe_with_prices();
        fake.pay(create(&fake, MONTHLY, None).unwrap()["id"].as_str().unwrap(), Payment::AtOnce).unwrap();
        let customer = fake.customer_of("ann").unwrap();
        fake.renew(fake.subscription_of(&customer).unwrap()["id"].as_str().unwrap()).unwrap();
        let newest = || fake.charge_of(&customer).map(|charge| charge["id"].as_str().unwrap().to_owned());
        let (second, events) = (newest().unwrap(), objects(&fake.refund(&newest().unwrap()).unwrap()));
        assert_eq!(
            (&events[0].1["object"]["amount"], &events[1].1["object"]["amount_refunded"]),
            (&json!(2_000), &json!(2_000))
        );
        assert!(fake.refund(&second).is_err());
        assert_ne!(newest().unwrap(), second);
        fake.refund(&newest().unwrap()).unwrap();
        assert_eq!(newest(), None);
    }
}
