//! Finds the price of a plan, pack or product that Stripe has in the key's mode.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use lambda_http::http::StatusCode;
use serde_json::Value;

use super::Api;
use super::stripe_request::stripe_error;
use crate::catalog_cache::MAX_AGE;
use crate::http::answer::{Problem, problem};
use tallyhook_aws::stripe::{Object, Stripe, StripeError};
use tallyhook_core::catalog::SoldAs;
use tallyhook_core::ids::PriceId;

/// The price that Stripe had in this mode, and when, by the prices that the catalog has for the same thing.
/// It is used as long as a catalog is, so that a price that was replaced is not offered for long.
#[derive(Debug, Default)]
pub(super) struct Prices(Mutex<BTreeMap<Vec<String>, (String, Instant)>>);

impl Prices {
    fn get(&self, prices: &[String], now: Instant) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (sold, found_at) = known.get(prices)?;
        (now.duration_since(*found_at) < MAX_AGE).then(|| sold.clone())
    }

    fn keep(&self, prices: &[String], sold: &str, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(prices.to_vec(), (sold.to_owned(), now));
    }
}

impl Api {
    /// The price that Stripe has in the key's mode: the first active one of the catalog's ids, else the one
    /// with a lookup key, else the only one of a Stripe product. The catalog has the prices of both modes,
    /// and the id of a price does not show its mode.
    pub(super) async fn price(&self, stripe: &Stripe, sold_as: &SoldAs) -> Result<String, Problem> {
        let SoldAs { prices, lookup_keys, stripe_products } = sold_as;
        let refused = |error: StripeError| stripe_error(&error, "CHECKOUT_NOT_CREATED");
        if let Some(price) = self.prices.get(prices, Instant::now()) {
            return Ok(price);
        }
        for price in prices {
            let Ok(id) = PriceId::new(price.as_str()) else { continue };
            match stripe.price(&id).await {
                Ok(found) if found.value()["active"] == Value::Bool(false) => {}
                Ok(_) => {
                    self.prices.keep(prices, price, Instant::now());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_remembered_for_as_long_as_a_catalog_and_only_for_its_prices() {
        let (prices, now) = (Prices::default(), Instant::now());
        let sold_as = ["price_new".to_owned(), "price_old".to_owned()];
        prices.keep(&sold_as, "price_old", now);
        assert_eq!(prices.get(&sold_as, now + MAX_AGE / 2).as_deref(), Some("price_old"));
        assert_eq!(prices.get(&sold_as[..1], now), None);
        assert_eq!(prices.get(&sold_as, now + MAX_AGE), None);
    }
}
