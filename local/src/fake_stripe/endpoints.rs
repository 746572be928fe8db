//! Webhook endpoints (`/v1/webhook_endpoints`) and configurations of the customer portal.
//!
//! The shapes are those of Stripe's API reference: a webhook endpoint shows its `secret` only in the answer
//! that creates it, and its `api_version` cannot be changed. This Stripe posts no event to an endpoint: the
//! local stack and the tests do.

use serde_json::{Value, json};
use tallyhook_core::event::{API_VERSION, EventType};

use super::checkout::new_id;
use super::request::{StripeError, parse};
use super::{FakeStripe, State};

impl FakeStripe {
    /// Adds an enabled webhook endpoint with every type that the router routes, as `tallyhook setup` creates
    /// it.
    pub fn put_endpoint(&self, id: &str, url: &str, prefix: &str) {
        let types: Vec<&str> = EventType::KNOWN.iter().map(EventType::as_str).collect();
        self.put(json!({
            "id": id, "object": "webhook_endpoint", "api_version": API_VERSION, "application": null,
            "created": 1_760_000_000, "description": "tallyhook", "enabled_events": types, "livemode": false,
            "metadata": { "tallyhook": prefix }, "status": "enabled", "url": url,
        }));
    }

    /// Adds a default portal configuration that changes plans with this proration behavior.
    pub fn put_portal(&self, id: &str, proration_behavior: &str) {
        self.put(json!({
            "id": id, "object": "billing_portal.configuration", "active": true, "application": null,
            "created": 1_760_000_000, "is_default": true, "livemode": false, "metadata": {},
            "features": {
                "invoice_history": { "enabled": true }, "payment_method_update": { "enabled": true },
                "subscription_cancel": { "enabled": true, "mode": "at_period_end",
                    "proration_behavior": "none" },
                "subscription_update": { "enabled": true, "default_allowed_updates": ["price"],
                    "proration_behavior": proration_behavior, "products": [] },
            },
        }));
    }
}

impl State {
    pub(super) fn create_endpoint(&mut self, form: &Value) -> Result<Value, StripeError> {
        let missing = |name: &str| {
            StripeError::bad("parameter_missing", name, format!("Missing required param: {name}."))
        };
        let url = form["url"].as_str().ok_or_else(|| missing("url"))?;
        let types = form["enabled_events"].as_array().ok_or_else(|| missing("enabled_events"))?;
        let now = self.time();
        let endpoint = json!({
            "id": new_id("we"), "object": "webhook_endpoint", "api_version": form["api_version"],
            "application": null, "created": now, "description": form["description"], "enabled_events": types,
            "livemode": false, "metadata": form["metadata"].as_object().cloned().unwrap_or_default(),
            "status": "enabled", "url": url,
        });
        self.store(endpoint.to_string(), endpoint.clone(), i64::MAX, true);
        let mut shown = endpoint;
        shown["secret"] = json!(format!("whsec_{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)));
        Ok(shown)
    }

    pub(super) fn update_endpoint(&mut self, id: &str, form: &str) -> Result<Value, StripeError> {
        let mut endpoint = self.endpoint(id)?;
        let mut types = Vec::new();
        for (name, value) in parse(form) {
            match name.as_str() {
                "url" | "description" => endpoint[name] = json!(value),
                "disabled" => {
                    endpoint["status"] = json!(if value == "true" { "disabled" } else { "enabled" });
                }
                _ if name.starts_with("enabled_events[") => types.push(value),
                _ => match name.strip_prefix("metadata[").and_then(|name| name.strip_suffix(']')) {
                    Some(key) => set_metadata(&mut endpoint, key, value),
                    None => {
                        let message = format!("Received unknown parameter: {name}");
                        return Err(StripeError::bad("parameter_unknown", &name, message));
                    }
                },
            }
        }
        if !types.is_empty() {
            endpoint["enabled_events"] = json!(types);
        }
        self.store(endpoint.to_string(), endpoint.clone(), i64::MAX, true);
        Ok(endpoint)
    }

    /// Answers a `DELETE`. `None` for an unknown path.
    pub(super) fn delete(&mut self, path: &str) -> Option<Result<String, StripeError>> {
        if let Some(id) = path.strip_prefix("customers/") {
            return Some(self.delete_customer(id));
        }
        let id = path.strip_prefix("webhook_endpoints/")?;
        Some(self.endpoint(id).map(|endpoint| {
            self.objects.remove(id);
            json!({ "id": endpoint["id"], "object": "webhook_endpoint", "deleted": true }).to_string()
        }))
    }

    fn delete_customer(&mut self, id: &str) -> Result<String, StripeError> {
        let found = self.objects.get(id).filter(|stored| stored.kind == "customer");
        let live = found.filter(|stored| stored.value["deleted"] != true);
        live.ok_or_else(|| StripeError::missing("customer", id))?;
        let deleted = json!({"id": id, "object": "customer", "deleted": true});
        self.store(deleted.to_string(), deleted.clone(), i64::MAX, true);
        Ok(deleted.to_string())
    }

    fn endpoint(&self, id: &str) -> Result<Value, StripeError> {
        let found = self.objects.get(id).filter(|stored| stored.kind == "webhook_endpoint");
        found.map(|stored| stored.value).ok_or_else(|| StripeError::missing("webhook endpoint", id))
    }
}

/// An empty value removes the key.
pub(super) fn set_metadata(object: &mut Value, key: &str, value: String) {
    if value.is_empty() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove(key);
        }
    } else {
        object["metadata"][key] = json!(value);
    }
}

/// The error of a restricted key without the right to read.
pub(super) fn forbidden(kind: &str) -> Value {
    json!({
        "type": "invalid_request_error",
        "message": format!(
            "The provided key 'rk_test_****' does not have the required permissions for this endpoint. Having the \
             'rak_{kind}_read' permission would allow this request to continue."
        ),
    })
}
