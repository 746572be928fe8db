//! Products and prices (`/v1/products`, `/v1/prices`), as `tallyhook catalog` and the fixtures of the Stripe
//! CLI create them.
//!
//! A lookup key belongs to one price, also if that price is archived. `transfer_lookup_key` takes it from
//! the other price, which stays active. The default price of a product cannot be archived. An amount cannot
//! be changed.

use serde_json::{Value, json};

use super::State;
use super::checkout::{metadata, new_id, price, required};
use super::endpoints::set_metadata;
use super::objects::ListQuery;
use super::request::{StripeError, parse};

/// The parameters that a new price takes here. Stripe has more.
const PRICE: [&str; 9] = [
    "product",
    "unit_amount",
    "currency",
    "recurring",
    "lookup_key",
    "transfer_lookup_key",
    "metadata",
    "nickname",
    "tax_behavior",
];

impl State {
    /// Adds the product of a price that a test stores.
    pub(super) fn add_product(&mut self, price: &Value) {
        let Some(id) = price["product"].as_str().filter(|_| price["object"] == "price") else { return };
        if self.objects.place(id).is_none() {
            let product = product(id, &json!({"name": id.trim_start_matches("prod_")}), 0);
            self.store(product.to_string(), product, i64::MAX, true);
        }
    }

    pub(super) fn create_product(&mut self, form: &Value) -> Result<Value, StripeError> {
        required(form, "name")?;
        let product = product(&new_id("prod"), form, self.time());
        self.store(product.to_string(), product.clone(), i64::MAX, true);
        Ok(product)
    }

    pub(super) fn create_price(&mut self, form: &Value) -> Result<Value, StripeError> {
        let unknown =
            form.as_object().and_then(|form| form.keys().find(|name| !PRICE.contains(&name.as_str())));
        if let Some(name) = unknown {
            return Err(unknown_parameter(name));
        }
        let product = required(form, "product")?;
        if self.objects.get(product).is_none_or(|stored| stored.kind != "product") {
            return Err(StripeError::bad(
                "resource_missing",
                "product",
                format!("No such product: '{product}'"),
            ));
        }
        let amount = form["unit_amount"].as_str().and_then(|amount| amount.parse().ok()).unwrap_or(0);
        let key = form["lookup_key"].as_str();
        if let Some(mut holder) = key.and_then(|key| self.holder(key)) {
            if form["transfer_lookup_key"] != "true" {
                return Err(StripeError::taken_key(&holder));
            }
            holder["lookup_key"] = Value::Null;
            self.store(holder.to_string(), holder, i64::MAX, true);
        }
        let recurring = form["recurring"]["interval"].as_str();
        let id = new_id("price");
        let mut price = price(&id, amount, required(form, "currency")?, recurring.is_some(), key);
        if let Some(interval) = recurring {
            price["recurring"]["interval"] = json!(interval);
        }
        price["product"] = json!(product);
        price["metadata"] = metadata(form);
        price["nickname"] = form["nickname"].clone();
        price["tax_behavior"] = json!(form["tax_behavior"].as_str().unwrap_or("unspecified"));
        price["created"] = json!(self.time());
        self.store(price.to_string(), price.clone(), i64::MAX, true);
        Ok(price)
    }

    /// Changes a product or a price.
    pub(super) fn update_sold(&mut self, kind: &str, id: &str, form: &str) -> Result<Value, StripeError> {
        let found = self.objects.get(id).filter(|stored| stored.kind == kind);
        let mut object = found.ok_or_else(|| StripeError::missing(kind, id))?.value;
        for (name, value) in parse(form) {
            match (kind, name.as_str()) {
                (_, "active") => object["active"] = json!(value == "true"),
                ("product", "name" | "default_price") | ("price", "nickname") => object[name] = json!(value),
                _ => match name.strip_prefix("metadata[").and_then(|name| name.strip_suffix(']')) {
                    Some(key) => set_metadata(&mut object, key, value),
                    None => return Err(unknown_parameter(&name)),
                },
            }
        }
        let product = object["product"].as_str().and_then(|product| self.objects.get(product));
        if object["active"] == false && product.is_some_and(|product| product.value["default_price"] == id) {
            let message = "This price cannot be archived because it is the default price of its product.";
            return Err(StripeError::bad("", "", message.to_owned()));
        }
        self.store(object.to_string(), object.clone(), i64::MAX, true);
        Ok(object)
    }

    /// The price with a lookup key, active or not.
    pub(super) fn holder(&self, key: &str) -> Option<Value> {
        let mut holder = None;
        self.objects.visit(&ListQuery::of("price"), |stored| {
            if stored.value["lookup_key"] == key {
                holder = Some(stored.value);
            }
            holder.is_none()
        });
        holder
    }
}

impl StripeError {
    fn taken_key(holder: &Value) -> Self {
        let holder = holder["id"].as_str().unwrap_or_default();
        Self::bad("", "lookup_key", format!("A price (`{holder}`) already uses that lookup key."))
    }
}

fn unknown_parameter(name: &str) -> StripeError {
    StripeError::bad("parameter_unknown", name, format!("Received unknown parameter: {name}"))
}

fn product(id: &str, form: &Value, now: i64) -> Value {
    json!({
        "id": id, "object": "product", "active": true, "created": now, "default_price": null,
        "description": form["description"], "livemode": false, "metadata": metadata(form), "name": form["name"],
        "type": "service", "updated": now,
    })
}
