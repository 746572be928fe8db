//! An account as JSON: what the app reads and is sent, and parts of what the operator reads.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use tallyhook_core::account::products::Purchased;
use tallyhook_core::account::{Account, Buckets, Lot, LotBalance, State};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::notice::subscription_view;
use tallyhook_core::timestamp::Timestamp;

/// The whole account, without its orders.
pub fn account_view(account: &Account, catalog: &Catalog, now: Timestamp) -> Value {
    let state = &account.state;
    let access = state.access(catalog, now);
    let buckets = state.buckets(&catalog.policy, now);
    let mut of_subscriptions = BTreeMap::new();
    let mut subscriptions = Vec::new();
    for id in state.subscriptions.keys() {
        of_subscriptions.insert(id.as_str(), buckets.of_subscription(id));
        let one = state.summary(id, catalog, now);
        subscriptions.extend(one.map(|one| subscription_view(id, &one)));
    }
    json!({
        "user_id": account.user_id,
        "tier": access.tier,
        "tier_rank": access.rank,
        "credits": buckets.balance(),
        "available": buckets.balance().minus(state.held(now)),
        "held": state.held(now),
        "buckets": {
            "signup": buckets.sum(|lot| *lot == Lot::Signup),
            "subscriptions": of_subscriptions,
            "items": buckets.by_item(),
            "lifetime": buckets.sum(|lot| matches!(lot, Lot::Lifetime(_))),
            "grant": buckets.sum(|lot| matches!(lot, Lot::Opening | Lot::Grant(_))),
            "addon": buckets.sum(|lot| matches!(lot, Lot::Pack(_))),
        },
        "lots": lots_view(state, &buckets),
        "next_grant_at": time(state.next_grant_at(&buckets, &catalog.policy, now)),
        "subscriptions": subscriptions,
        "features": features_view(state, catalog, now),
        "products": products_view(state, catalog, now),
        "access_until": time(access.until),
        "payment_action": payment_action_view(state, catalog, now),
    })
}

/// All credits by what granted them, in the order in which they are spent.
pub fn lots_view(state: &State, buckets: &Buckets) -> Vec<Value> {
    let view = |one: &LotBalance| {
        json!({
            "key": state.lot_key(&one.lot, buckets),
            "bucket": one.lot.bucket(),
            "granted": one.granted,
            "left": one.left,
            "since": time(one.since),
            "until": time(one.until),
        })
    };
    buckets.lots.iter().map(view).collect()
}

/// The value of every feature of the catalog.
fn features_view(state: &State, catalog: &Catalog, now: Timestamp) -> Value {
    let features = state.features(catalog, now);
    features.into_iter().map(|(name, feature)| (name, json!(feature.value))).collect()
}

/// The products that the user bought.
pub fn products_view(state: &State, catalog: &Catalog, now: Timestamp) -> Value {
    state.purchased(catalog, now).into_iter().map(product_view).collect()
}

/// One product that a user bought.
pub fn product_view(product: Purchased) -> Value {
    let (amount, currency) = product.paid.unzip();
    let once = product.subscription.is_none();
    json!({
        "name": product.name,
        "price": product.price,
        "amount": amount,
        "currency": currency,
        "status": product.status,
        "payment_intent": product.payment.filter(|payment| payment.starts_with("pi_")),
        "subscription": product.subscription,
        "purchase_type": if once { "one_time" } else { "subscription" },
        "at": time(product.at),
    })
}

/// The payment that waits for the customer; `null` for none.
pub fn payment_action_view(state: &State, catalog: &Catalog, now: Timestamp) -> Value {
    let action = state.payment_action(catalog, now).map(|action| {
        json!({
            "invoice": action.invoice,
            "subscription": action.subscription,
            "hosted_invoice_url": action.hosted_invoice_url,
            "at": action.at.to_string(),
        })
    });
    json!(action)
}

fn time(time: Option<Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}
