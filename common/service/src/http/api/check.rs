//! `GET /users/{id}/check`: whether a user may use a feature, or has credits. One read, no write.
//!
//! ```text
//! GET /users/user_123/check?feature=projects&used=7
//! {"allowed":true,"limit":10,"remaining":3,"because":"plan pro","until":"2026-01-05T10:00:00Z"}
//! GET /users/user_123/check?credits=200
//! {"allowed":true,"available":4800}
//! ```
//! `limit` is null for a switch, and `"unlimited"` without a limit; `remaining` is null for both. A feature
//! that the catalog does not name is refused, so that a misspelt name never allows anything.

use lambda_http::http::StatusCode;
use lambda_http::{Request, RequestExt};
use serde_json::{Value, json};

use super::{Api, no_user};
use crate::http::answer::{Problem, problem};
use tallyhook_aws::clock;
use tallyhook_core::account::State;
use tallyhook_core::catalog::FeatureValue;
use tallyhook_core::credits::Credits;
use tallyhook_core::ids::UserId;

impl Api {
    /// `GET …/check`.
    pub(super) async fn check(&self, user: &UserId, request: &Request) -> Result<Value, Problem> {
        let query = request.query_string_parameters();
        let catalog = &self.config.catalog;
        let number = |name: &'static str, code: &'static str| {
            let most = Credits::MAX_GRANT.get();
            let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number <= most);
            let wrong = || {
                let message = format!("{name} must be a whole number from 0 to {most}");
                problem(StatusCode::BAD_REQUEST, code, message)
            };
            query.first(name).map(|text| number(text).ok_or_else(wrong)).transpose()
        };
        match (query.first("feature"), number("credits", "invalid_credits")?) {
            (Some(name), None) => {
                let used = number("used", "invalid_used")?.unwrap_or(0);
                if !catalog.features.contains_key(name) {
                    return Err(problem(
                        StatusCode::BAD_REQUEST,
                        "unknown_feature",
                        "the catalog has no feature with this name",
                    ));
                }
                let state = self.state(user).await?;
                let feature = state.features(catalog, clock::now()).remove(name).ok_or_else(no_user)?;
                let allowance = feature.allows(used);
                Ok(json!({
                    "allowed": allowance.allowed,
                    "limit": match feature.value {
                        FeatureValue::Switch(_) => Value::Null,
                        limit @ (FeatureValue::Limit(_) | FeatureValue::Unlimited(_)) => json!(limit),
                    },
                    "remaining": allowance.remaining,
                    "because": feature.because,
                    "until": feature.until.map(|until| until.to_string()),
                }))
            }
            (None, Some(credits)) => {
                let state = self.state(user).await?;
                let (allowed, available) = state.allows_credits(Credits::new(credits), catalog, clock::now());
                Ok(json!({"allowed": allowed, "available": available}))
            }
            (Some(_), Some(_)) | (None, None) => Err(problem(
                StatusCode::BAD_REQUEST,
                "invalid_check",
                "ask for one of feature=<name> (and used=<number>) and credits=<number>",
            )),
        }
    }

    async fn state(&self, user: &UserId) -> Result<State, Problem> {
        let (account, _) = self.load(user).await?;
        if account.version == 0 { Err(no_user()) } else { Ok(account.state) }
    }
}
