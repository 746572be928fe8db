//! `GET /catalog`: what is sold, for a page with prices. The route needs no token and may be cached.
//!
//! ```json
//! {"tiers":{"free":0,"pro":1},"features":{"sso":"switch"},"default_features":{},
//!  "plans":[{"name":"pro","tier":"pro","tier_rank":1,"credits":5000,"per":"subscription","refill":"period",
//!    "trial_days":14,"trial_credits":5000,"features":{"sso":true},"per_seat":[],
//!    "price":{"amount":2000,"currency":"usd","interval":"month","interval_count":1}}],
//!  "packs":[{"name":"credits_1000","credits":1000,"expires_days":0,"price":{…}}],
//!  "products":[{"name":"course","credits":0,"features":{"sso":true},"price":{…}}],
//!  "amounts_at":"2026-11-27T01:00:00Z","warnings":[]}
//! ```
//! `price` is the price at Stripe that `POST /checkout-sessions` sells for the name, in minor units. It is
//! null if Stripe has none in this mode. Its `amount` is null for a price without a fixed amount, such as a
//! tiered one. `amounts_at` says when Stripe was asked. It is null, and so is every `price`, if Stripe did
//! not answer or there is no key; `warnings` says which.
//!
//! **Invariant:** an instance asks Stripe at most [`MAX_PAGES`] times in [`FRESH_SECONDS`], and after a
//! failure once in [`RETRY_SECONDS`], no matter how many clients ask. No request writes anything.

use lambda_http::http::{HeaderValue, StatusCode};
use lambda_http::{Body, Request, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tracing::warn;

use super::{Api, RETRY_LIMITS};
use crate::http::answer::raw_answer;
use tallyhook_aws::clock;
use tallyhook_aws::stripe::{Cursor, Object, RetryLimits, Stripe};
use tallyhook_core::catalog::{Catalog, SoldAs};
use tallyhook_core::timestamp::Timestamp;

/// How long amounts are kept, here and in caches.
const FRESH_SECONDS: i64 = 300;
/// The pause after Stripe did not answer.
const RETRY_SECONDS: i64 = 30;
/// Pages of a hundred prices that are read.
const MAX_PAGES: u32 = 5;
/// A page with prices waits at most this long for Stripe.
const AMOUNTS_RETRY_LIMITS: RetryLimits = RetryLimits {
    attempts: 1,
    attempt_timeout: std::time::Duration::from_secs(2),
    call_timeout: std::time::Duration::from_secs(2),
    ..RETRY_LIMITS
};

/// The active prices of Stripe, as they were last read.
#[derive(Debug, Default)]
pub(super) struct Amounts(Mutex<Option<StripePrices>>);

#[derive(Clone, Debug)]
struct StripePrices {
    /// The newest first.
    prices: Vec<Value>,
    /// When Stripe answered; `None` if it never did.
    at: Option<Timestamp>,
    /// Stripe is not asked again before this time.
    next: Timestamp,
    warnings: Vec<String>,
}

impl Api {
    /// Answers `GET /catalog`, with 304 if the client has this answer.
    pub(super) async fn show_catalog(&self, request: &Request) -> Response<Body> {
        let at_stripe = match &self.stripe {
            Some(stripe) => self.amounts.current(stripe, clock::now()).await,
            None => StripePrices::without_key(),
        };
        let body = view(&self.config.catalog, &at_stripe).to_string();
        let digest = Sha256::digest(body.as_bytes());
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let tag = format!("\"{hex}\"");
        let known = request.headers().get("if-none-match").and_then(|value| value.to_str().ok());
        let is_known = known.is_some_and(|known| {
            known
                .split(',')
                .map(|one| one.trim().trim_start_matches("W/"))
                .any(|one| one == tag || one == "*")
        });
        let mut response = if is_known { Response::new(Body::Empty) } else { raw_answer(body) };
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        // Cache an answer without amounts only for a short time.
        let seconds = if at_stripe.at.is_some() { FRESH_SECONDS } else { RETRY_SECONDS };
        let headers = response.headers_mut();
        for (name, value) in [
            ("cache-control", format!("public, max-age={seconds}")),
            ("etag", tag),
            // The page with prices may be on another host than the API.
            ("access-control-allow-origin", "*".to_owned()),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }
}

impl Amounts {
    /// The prices, read again if they are too old. Concurrent requests wait for one read.
    async fn current(&self, stripe: &Stripe, now: Timestamp) -> StripePrices {
        let mut kept = self.0.lock().await;
        if let Some(at_stripe) = kept.as_ref().filter(|at_stripe| now < at_stripe.next) {
            return at_stripe.clone();
        }
        let at_stripe = match read_prices(&stripe.clone().with_retry_limits(AMOUNTS_RETRY_LIMITS)).await {
            Ok((prices, warnings)) => {
                StripePrices { prices, at: Some(now), next: now.plus_seconds(FRESH_SECONDS), warnings }
            }
            Err(error) => {
                warn!(error = error.to_string(), "AMOUNTS_NOT_READ");
                let next = now.plus_seconds(RETRY_SECONDS);
                match kept.take() {
                    // Keep the last prices while Stripe does not answer.
                    Some(at_stripe) if at_stripe.at.is_some() => StripePrices { next, ..at_stripe },
                    Some(_) | None => StripePrices { next, ..StripePrices::without_answer() },
                }
            }
        };
        *kept = Some(at_stripe.clone());
        at_stripe
    }
}

impl StripePrices {
    fn none(warning: &str) -> Self {
        let next = Timestamp::from_unix(0);
        Self { prices: Vec::new(), at: None, next, warnings: vec![warning.to_owned()] }
    }

    fn without_key() -> Self {
        Self::none("STRIPE_SECRET_KEY is not set, so prices are missing")
    }

    fn without_answer() -> Self {
        Self::none("Stripe did not answer, so prices are missing")
    }

    /// The price that is sold, by the same rule as for a checkout session.
    fn price(&self, sold_as: &SoldAs) -> Option<&Value> {
        let SoldAs { prices, lookup_keys, stripe_products } = sold_as;
        let by_id = prices.iter().find_map(|id| self.prices.iter().find(|price| price["id"] == **id));
        let by_key =
            || self.prices.iter().find(|price| lookup_keys.iter().any(|key| price["lookup_key"] == **key));
        let by_product = || {
            stripe_products.iter().find_map(|product| {
                let mut of_product = self.prices.iter().filter(|price| price["product"] == **product);
                of_product.next().filter(|_| of_product.next().is_none())
            })
        };
        by_id.or_else(by_key).or_else(by_product)
    }
}

async fn read_prices(
    stripe: &Stripe,
) -> Result<(Vec<Value>, Vec<String>), tallyhook_aws::stripe::StripeError> {
    let (mut prices, mut cursor) = (Vec::new(), Cursor::Newest);
    for _ in 0..MAX_PAGES {
        let page = stripe.active_prices(&cursor).await?;
        prices.extend(page.objects.iter().map(Object::value));
        cursor = Cursor::after(page.last_id());
        if !page.has_more || cursor == Cursor::Newest {
            return Ok((prices, Vec::new()));
        }
    }
    let message =
        format!("Stripe has more active prices than the newest {}, so some are missing", prices.len());
    Ok((prices, vec![message]))
}

fn view(catalog: &Catalog, at_stripe: &StripePrices) -> Value {
    let price = |sold_as: &SoldAs| {
        at_stripe.price(sold_as).map(|price| {
            json!({
                "amount": price["unit_amount"],
                "currency": price["currency"],
                "interval": price["recurring"]["interval"],
                "interval_count": price["recurring"]["interval_count"],
            })
        })
    };
    let plans = catalog.plans.iter().map(|plan| {
        json!({
            "name": plan.name, "tier": plan.tier, "tier_rank": plan.rank, "credits": plan.credits,
            "per": plan.per, "refill": plan.refill, "trial_days": plan.trial_days,
            "trial_credits": plan.trial_credits, "features": plan.features, "per_seat": plan.per_seat,
            "price": price(&plan.sold_as),
        })
    });
    let packs = catalog.packs.iter().map(|pack| {
        json!({
            "name": pack.name, "credits": pack.credits, "expires_days": pack.expires_days,
            "price": price(&pack.sold_as),
        })
    });
    let products = catalog.products.iter().map(|product| {
        json!({
            "name": product.name, "credits": product.credits, "features": product.features,
            "price": price(&product.sold_as),
        })
    });
    json!({
        "tiers": catalog.tiers,
        "features": catalog.features,
        "default_features": catalog.default_features,
        "plans": plans.collect::<Vec<_>>(),
        "packs": packs.collect::<Vec<_>>(),
        "products": products.collect::<Vec<_>>(),
        "amounts_at": at_stripe.at.map(|at| at.to_string()),
        "warnings": at_stripe.warnings,
    })
}
