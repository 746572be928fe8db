//! Reads the Stripe account for the rules of [`tallyhook_core::stripe_account`].

use futures_util::future::{join, join_all};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::stripe_account::{
    self, Deployment, Findings, LIVE, List, PORTAL_PATH, READ, ReadFailure, endpoint,
};
use tallyhook_core::timestamp::Timestamp;

use crate::stripe::{Failure, Parameters, Stripe, parameter};

pub(super) async fn check(
    stripe: &Stripe,
    deployment: &Deployment<'_>,
    catalog: Option<&Catalog>,
    findings: &mut Findings,
) {
    let probe = async |path: &str| stripe.probe(path).await.map(time).map_err(read_failure);
    let answers = join_all(READ.iter().map(|(_, path)| probe(path))).await;
    if !stripe_account::check_key(&answers, crate::send::now(), findings) {
        return;
    }
    let no_parameters = Parameters::new();
    stripe_account::check_endpoint(&list(stripe, endpoint::PATH, &no_parameters).await, deployment, findings);
    let configurations = list(stripe, PORTAL_PATH, &[parameter("active", "true")]).await;
    stripe_account::check_portal(&configurations, catalog, findings);
    let Some(catalog) = catalog else { return };
    let live = LIVE.map(|status| [parameter("status", status)]);
    let subscriptions = join_all(live.iter().map(|parameters| list(stripe, "/v1/subscriptions", parameters)));
    let (prices, subscriptions) = join(prices(stripe, catalog), subscriptions).await;
    stripe_account::check_prices(&prices, catalog, deployment.livemode, findings);
    stripe_account::check_subscriptions(&subscriptions, catalog, findings);
}

/// The prices of the account, with all of the catalog.
async fn prices(stripe: &Stripe, catalog: &Catalog) -> Result<List, ReadFailure> {
    let mut prices = list(stripe, "/v1/prices", &[]).await?;
    if !prices.is_complete {
        for id in stripe_account::unlisted_prices(catalog, &prices) {
            let price = stripe.get(&format!("/v1/prices/{}", crate::api::encode(&id)), &[]).await;
            prices.objects.extend(price.ok());
        }
    }
    Ok(prices)
}

async fn list(stripe: &Stripe, path: &str, parameters: &[(String, String)]) -> Result<List, ReadFailure> {
    let (objects, is_complete) = stripe.list(path, parameters).await.map_err(read_failure)?;
    Ok(List { objects, is_complete, is_partial: false })
}

fn read_failure(failure: Failure) -> ReadFailure {
    ReadFailure { status: failure.status(), message: failure.to_string() }
}

/// The time in a header `Date`.
pub(super) fn time(date: Option<String>) -> Option<Timestamp> {
    let date = jiff::fmt::rfc2822::parse(&date?).ok()?;
    Some(Timestamp::from_unix(date.timestamp().as_second()))
}
