//! Reads from Stripe what the rules need and an event leaves out, before the decision.
//!
//! | the event | what is read |
//! |---|---|
//! | a paid checkout session whose metadata does not name what was sold and the quantity | its line items |
//! | an invoice or a subscription with a truncated list | the complete list |
//! | an invoice with a price that the catalog may name by its lookup key | the price, until it is learnt |
//! | a refund or a dispute, which do not name the paid invoice | the invoice |
//!
//! Since 2025-03-31.basil a charge does not name its invoice either.
//!
//! Without a Stripe key nothing is read, and such an event is parked. The log keeps the event as it was
//! received. When Stripe does not answer, the record fails and SQS redelivers it. When Stripe refuses (the
//! object is deleted, the key may not read it), the event is parked as without a key. A refund or a dispute
//! does not wait for an answer: the payment is usually known here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tracing::warn;

use crate::accounts::Accounts;
use crate::process::Job;
use tallyhook_aws::stripe::{self, Cursor, Stripe, StripeError};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::decide::leaves_out;
use tallyhook_core::event::{
    CheckoutSession, Event, EventType, Invoice, Object, Price, SoldLine, Subscription,
};
use tallyhook_core::ids::{CustomerId, InvoiceId, PaymentIntentId, PriceId};

/// The limit for all pages of one list.
const TIMEOUT: Duration = Duration::from_secs(12);

/// The most prices that an instance remembers.
const MAX_PRICES: usize = 1_000;

/// Prices that were read from Stripe.
#[derive(Default)]
pub(crate) struct Prices(Mutex<HashMap<PriceId, Price>>);

impl Prices {
    /// A price with its lookup key. `None` when Stripe does not have it.
    async fn read(&self, stripe: &Stripe, id: &PriceId) -> Result<Option<Price>, StripeError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let price = match stripe.price(id).await {
            Ok(price) => Price::from_json(price.text()).unwrap_or_else(|_| Price::of_id(id.clone())),
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        };
        if !price.is_complete {
            return Ok(Some(price));
        }
        let mut prices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if prices.len() >= MAX_PRICES {
            prices.clear();
        }
        prices.insert(id.clone(), price.clone());
        Ok(Some(price))
    }

    /// Whether Stripe is asked for a price of this event.
    fn lack_one_of(&self, event: &Event, catalog: &Catalog) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unknown_prices(event, catalog).any(|price| !known.contains_key(&price.id))
    }

    /// Completes the prices of an invoice's lines that the catalog does not name.
    async fn complete(
        &self,
        stripe: &Stripe,
        invoice: &mut Invoice,
        catalog: &Catalog,
    ) -> Result<(), StripeError> {
        for line in &mut invoice.lines {
            if let Some(price) = line.price.as_mut().filter(|price| is_unknown(price, catalog))
                && let Some(read) = self.read(stripe, &price.id).await?
            {
                *price = read;
            }
        }
        Ok(())
    }
}

fn is_unknown(price: &Price, catalog: &Catalog) -> bool {
    !price.is_complete
        && catalog.has_lookup_keys()
        && matches!(catalog.offer(price.id.as_str(), None, price.product.as_deref()), Ok(None))
}

/// The prices of a paid invoice that the catalog may name by a lookup key, which the invoice does not show.
fn unknown_prices<'a>(event: &'a Event, catalog: &'a Catalog) -> impl Iterator<Item = &'a Price> {
    let prices = if event.kind == EventType::InvoicePaid { event.prices() } else { Vec::new() };
    prices.into_iter().filter(|price| is_unknown(price, catalog))
}

/// Reads what these events leave out, at the same time. An error means that a later attempt may succeed.
pub(crate) async fn complete_all(
    stripe: &Stripe,
    accounts: &Accounts,
    prices: &Prices,
    jobs: &mut [Job],
) -> Vec<Result<(), String>> {
    let Accounts { store, catalog_cache, .. } = accounts;
    let mut catalog = catalog_cache.current();
    // Another function may have learnt the price since the catalog was read.
    if jobs.iter().any(|job| prices.lack_one_of(&job.event, &catalog)) {
        catalog_cache.read_again(store).await;
        catalog = catalog_cache.current();
    }
    let complete = jobs.iter_mut().map(|job| complete(stripe, &catalog, prices, &mut job.event, &job.raw));
    join_all(complete).await
}

/// Reads what an event leaves out; `raw` is the event as it was received. An error means that a later attempt
/// may succeed.
pub(crate) async fn complete(
    stripe: &Stripe,
    catalog: &Catalog,
    prices: &Prices,
    event: &mut Event,
    raw: &[u8],
) -> Result<(), String> {
    if !leaves_out(event) && unknown_prices(event, catalog).next().is_none() {
        return Ok(());
    }
    let reading = async {
        match &mut event.object {
            Object::CheckoutSession(session) => sold_lines(stripe, session).await,
            Object::Invoice(invoice) => {
                if invoice.lines_has_more {
                    let object = complete_object(stripe, raw).await?;
                    if let Some(whole) = object.and_then(|object| Invoice::from_json(object.text()).ok()) {
                        *invoice = whole;
                    }
                }
                prices.complete(stripe, invoice, catalog).await
            }
            Object::Subscription(subscription) => {
                let object = complete_object(stripe, raw).await?;
                if let Some(whole) = object.and_then(|object| Subscription::from_json(object.text()).ok()) {
                    *subscription = whole;
                }
                Ok(())
            }
            reversal @ (Object::Charge(_) | Object::Refund(_) | Object::Dispute(_)) => {
                name_invoice(stripe, reversal).await;
                Ok(())
            }
            Object::InvoicePayment(_) | Object::Customer(_) | Object::Other => Ok(()),
        }
    };
    let error = match tokio::time::timeout(TIMEOUT, reading).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if error.is_transient() => error.to_string(),
        Ok(Err(error)) => {
            warn!(event_id = event.id.as_str(), error = error.to_string(), "STRIPE_REFUSED");
            return Ok(());
        }
        Err(_) => format!("Stripe did not answer within {} s", TIMEOUT.as_secs()),
    };
    Err(error)
}

/// Reads the invoice that the payment of a refund or a dispute paid.
pub(crate) async fn name_invoice(stripe: &Stripe, reversal: &mut Object) {
    match reversal {
        Object::Charge(charge) => {
            charge.invoice =
                paid_invoice(stripe, charge.payment_intent.as_ref()).await.map(|(invoice, _)| invoice);
        }
        Object::Refund(refund) => {
            (refund.invoice, refund.customer) =
                invoice_and_customer(paid_invoice(stripe, refund.payment_intent.as_ref()).await);
        }
        Object::Dispute(dispute) => {
            (dispute.invoice, dispute.customer) =
                invoice_and_customer(paid_invoice(stripe, dispute.payment_intent.as_ref()).await);
        }
        Object::CheckoutSession(_)
        | Object::Subscription(_)
        | Object::Invoice(_)
        | Object::InvoicePayment(_)
        | Object::Customer(_)
        | Object::Other => {}
    }
}

/// Reads the line items of a session into it.
async fn sold_lines(stripe: &Stripe, session: &mut CheckoutSession) -> Result<(), StripeError> {
    let items = stripe.line_items(&session.id, &Cursor::Newest).await?;
    session.line_items = Some(items.objects.iter().filter_map(|item| sold_line(&item.value())).collect());
    Ok(())
}

/// Reads one line item of a session, in the shape of Stripe's API.
pub(crate) fn sold_line(item: &Value) -> Option<SoldLine> {
    let price = item.get("price")?;
    let price = match price.as_str() {
        Some(id) => Price::of_id(PriceId::new(id).ok()?),
        None => Price::from_json(&price.to_string()).ok()?,
    };
    let quantity = item["quantity"].as_u64().unwrap_or(1);
    let amount = item["amount_total"].as_i64();
    Some(SoldLine { price, quantity, amount })
}

/// The invoice that a payment paid, with its customer. `None` when Stripe does not answer.
async fn paid_invoice(
    stripe: &Stripe,
    payment: Option<&PaymentIntentId>,
) -> Option<(InvoiceId, Option<CustomerId>)> {
    match stripe.invoice_of_payment(payment?).await {
        Ok(invoice) => invoice,
        Err(error) => {
            warn!(error = error.to_string(), "STRIPE_NOT_ASKED");
            None
        }
    }
}

fn invoice_and_customer(
    invoice: Option<(InvoiceId, Option<CustomerId>)>,
) -> (Option<InvoiceId>, Option<CustomerId>) {
    invoice.map_or((None, None), |(invoice, customer)| (Some(invoice), customer))
}

/// The event's object with its complete list.
async fn complete_object(stripe: &Stripe, raw: &[u8]) -> Result<Option<stripe::Object>, StripeError> {
    let event: Value = serde_json::from_slice(raw).unwrap_or_default();
    let Some(object) = stripe::Object::of(&event["data"]["object"]) else { return Ok(None) };
    Ok(Some(stripe.complete(object).await?))
}
