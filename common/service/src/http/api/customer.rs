//! The user's customer at Stripe, and the subscriptions that run.
//!
//! The first checkout session of a user creates the customer, under an idempotency key that is made of the
//! user's id alone. So two sessions at once, and a retry after a lost answer, get the same customer. The
//! e-mail address is set afterwards: it may differ between the two, and Stripe refuses a key with other
//! fields.
//!
//! The events of a purchase link the customer to the user, as for every customer: the session, the
//! subscription and the payment carry the user's id. Until then an item of the events table
//! ([`CreatedCustomer`]) remembers the customer, so that a checkout that was not paid does not lead to
//! another one. If Stripe does not have the customer any more, the next one has a new key.

use std::borrow::Cow;

use sha2::{Digest, Sha256};
use tracing::info;

use super::Api;
use super::stripe_request::{Fields, stripe_error};
use crate::accounts::load_account;
use crate::http::answer::{Problem, problem};
use lambda_http::http::StatusCode;
use tallyhook_aws::clock;
use tallyhook_aws::store::StoreError;
use tallyhook_aws::store::items::{self, CreatedCustomer, Key};
use tallyhook_aws::stripe::{Stripe, StripeError};
use tallyhook_core::account::access::Summary;
use tallyhook_core::account::{Account, State};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::SubscriptionStatus;
use tallyhook_core::ids::{CustomerId, SubscriptionId, UserId};
use tallyhook_core::timestamp::Timestamp;

impl Api {
    /// The account, and the customer that an earlier session created.
    pub(super) async fn load_with_customer(
        &self,
        user: &UserId,
    ) -> Result<(Account, CreatedCustomer), StoreError> {
        let key = items::created_customer_key(user);
        let items = self.store.load([Key::Account(user.clone()), key.clone()]).await?;
        let created = items.get(&key).map(items::read_created_customer).unwrap_or_default();
        Ok((load_account(user, &items)?, created))
    }

    /// The customer for a session: the one of the user's purchases, else the one of an earlier session, else
    /// a new one with this e-mail address.
    pub(super) async fn customer(
        &self,
        stripe: &Stripe,
        user: &UserId,
        state: &State,
        created: &mut CreatedCustomer,
        email: Option<&str>,
    ) -> Result<CustomerId, Problem> {
        let is_there = |customer: &&CustomerId| {
            !created.missing.contains(customer.as_str())
                && state.customers.get(*customer).is_none_or(Option::is_none)
        };
        let known = state.customers.keys().chain(created.customer.as_ref()).find(is_there);
        if let Some(customer) = known {
            return Ok(customer.clone());
        }
        let refused = |error: StripeError| stripe_error(&error, "CHECKOUT_NOT_CREATED");
        if created.customer.is_some() {
            created.earlier = created.earlier.saturating_add(1);
        }
        let key = format!("customer-{}-{}", created.earlier, short_digest(user.as_str()));
        let fields: Fields = vec![(Cow::Borrowed("metadata[user_id]"), user.to_string())];
        let made = stripe.create("/v1/customers", &fields, &key).await.map_err(refused)?;
        let customer = made.id().and_then(|id| CustomerId::new(id).ok()).ok_or_else(|| {
            let message = "Stripe answered with a customer that has no id";
            problem(StatusCode::BAD_GATEWAY, "stripe_error", message)
        })?;
        if let Some(email) = email {
            let key = format!("customer-email-{customer}-{}", short_digest(email));
            let fields: Fields = vec![(Cow::Borrowed("email"), email.to_owned())];
            stripe.create(&format!("/v1/customers/{customer}"), &fields, &key).await.map_err(refused)?;
        }
        created.customer = Some(customer.clone());
        self.store.note_created_customer(user, created, clock::now()).await?;
        info!(user_id = user.as_str(), customer_id = customer.as_str(), "CUSTOMER_CREATED");
        Ok(customer)
    }
}

/// The user's customer at Stripe: the one that pays for this subscription, otherwise one that is not deleted.
pub(super) fn paying_customer<'a>(state: &'a State, of: Option<&SubscriptionId>) -> Option<&'a CustomerId> {
    let paying =
        of.and_then(|id| state.subscriptions.get(id)).and_then(|subscription| subscription.customer.as_ref());
    paying.or_else(|| {
        state.customers.iter().find(|(_, deleted)| deleted.is_none()).map(|(customer, _)| customer)
    })
}

/// The subscriptions that have not ended at Stripe. They may give no access at the moment.
pub(super) fn running_subscriptions(
    state: &State,
    catalog: &Catalog,
    now: Timestamp,
) -> Vec<(SubscriptionId, Summary)> {
    use SubscriptionStatus as Status;
    let is_running = |status: &Status| match status {
        Status::Active | Status::Trialing | Status::PastDue | Status::Unpaid | Status::Paused => true,
        Status::Incomplete | Status::IncompleteExpired | Status::Canceled | Status::Other(_) => false,
    };
    let now = state.time(now);
    let running = |id: &SubscriptionId| {
        let one = state.summary(id, catalog, now)?;
        let runs = one.status.as_ref().is_some_and(is_running) || one.runs_by_invoice(now);
        runs.then(|| (id.clone(), one))
    };
    state.subscriptions.keys().filter_map(running).collect()
}

/// The first 32 hexadecimal digits of the SHA-256 of a text.
fn short_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
