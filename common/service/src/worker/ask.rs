//! What Stripe is asked where an event leaves out what decides about it: on the way from read to decide, and
//! only then.
//!
//! | the event | what is asked |
//! |---|---|
//! | a paid checkout session whose metadata does not say what and how many were sold | its line items |
//! | an invoice or a subscription whose list was cut short before the line that counts | the whole list |
//! | a refund or a dispute, which do not name the invoice that was paid (since 2025-03-31.basil a charge does not either) | the invoice |
//!
//! Without a key nothing is asked, and such an event is parked. The log keeps the event as it came. Stripe
//! not answering is as passing as DynamoDB not answering: the record fails and comes back. A refusal (the
//! object is gone, the key may not read it) parks the event as if there were no key. For a refund or a
//! dispute no answer is no reason to wait: most payments are known here without it.

use std::time::Duration;

use serde_json::Value;
use tracing::warn;

use crate::process::Job;
use tallyhook_aws::stripe::{self, Cursor, Stripe, StripeError};
use tallyhook_core::decide::leaves_out;
use tallyhook_core::event::{CheckoutSession, Invoice, Object, SoldLine, Subscription};
use tallyhook_core::ids::{CustomerId, InvoiceId, PaymentIntentId, PriceId};

/// For all pages of one answer.
const TIMEOUT: Duration = Duration::from_secs(12);

/// Completes an event that leaves something out. The error is one that another time may mend.
pub(super) async fn complete(stripe: &Stripe, job: &mut Job) -> Result<(), String> {
    if !leaves_out(&job.event) {
        return Ok(());
    }
    let asked = async {
        match &mut job.event.object {
            Object::CheckoutSession(session) => sold_lines(stripe, session).await,
            Object::Invoice(invoice) => {
                if let Some(whole) =
                    whole(stripe, &job.raw).await?.and_then(|whole| Invoice::from_json(whole.text()).ok())
                {
                    *invoice = whole;
                }
                Ok(())
            }
            Object::Subscription(subscription) => {
                if let Some(whole) = whole(stripe, &job.raw)
                    .await?
                    .and_then(|whole| Subscription::from_json(whole.text()).ok())
                {
                    *subscription = whole;
                }
                Ok(())
            }
            Object::Charge(charge) => {
                charge.invoice =
                    paid_invoice(stripe, charge.payment_intent.as_ref()).await.map(|(invoice, _)| invoice);
                Ok(())
            }
            Object::Refund(refund) => {
                (refund.invoice, refund.customer) =
                    told(paid_invoice(stripe, refund.payment_intent.as_ref()).await);
                Ok(())
            }
            Object::Dispute(dispute) => {
                (dispute.invoice, dispute.customer) =
                    told(paid_invoice(stripe, dispute.payment_intent.as_ref()).await);
                Ok(())
            }
            Object::InvoicePayment(_) | Object::Customer(_) | Object::Other => Ok(()),
        }
    };
    let error = match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if error.is_transient() => error.to_string(),
        Ok(Err(error)) => {
            warn!(event_id = job.event.id.as_str(), error = error.to_string(), "STRIPE_REFUSED");
            return Ok(());
        }
        Err(_) => format!("Stripe did not answer within {} s", TIMEOUT.as_secs()),
    };
    Err(error)
}

/// Adds what the session sold, by its line items.
async fn sold_lines(stripe: &Stripe, session: &mut CheckoutSession) -> Result<(), StripeError> {
    let items = stripe.line_items(&session.id, &Cursor::Newest).await?;
    session.line_items = Some(items.objects.iter().filter_map(|item| sold_line(&item.value())).collect());
    Ok(())
}

/// One line item of a session, in the shape in which Stripe's API answers it.
pub(crate) fn sold_line(item: &Value) -> Option<SoldLine> {
    let price = item.pointer("/price/id").or(item.get("price")).and_then(Value::as_str)?;
    let quantity = item["quantity"].as_u64().unwrap_or(1);
    Some(SoldLine { price: PriceId::new(price).ok()?, quantity })
}

/// The invoice that a payment paid, with its customer.
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

fn told(invoice: Option<(InvoiceId, Option<CustomerId>)>) -> (Option<InvoiceId>, Option<CustomerId>) {
    invoice.map_or((None, None), |(invoice, customer)| (Some(invoice), customer))
}

/// The event's own object with the whole of its list.
async fn whole(stripe: &Stripe, raw: &[u8]) -> Result<Option<stripe::Object>, StripeError> {
    let event: Value = serde_json::from_slice(raw).unwrap_or_default();
    let Some(object) = stripe::Object::of(&event["data"]["object"]) else { return Ok(None) };
    Ok(Some(stripe.complete(object).await?))
}
