//! What was read from Stripe as the event that would have told it, so that the same rules take it.
//!
//! ```json
//! {"id":"evt_reconcile_in_1_4f1c02ab93de_7","object":"event","type":"invoice.paid","created":1759312800,"livemode":false,
//!  "api_version":"2025-09-30.clover","data":{"object":{"id":"in_1",…}},"pending_webhooks":0,"request":null}
//! ```
//! The id is made of the object's id, a digest of the content and the version of the account that it is to
//! change: of two runs that read the same and mean to do the same, one does it. No event of Stripe's has such
//! an id.

use serde_json::{Value, json};

use tallyhook_aws::stripe::{API_VERSION, Object};
use tallyhook_core::event::{self, CheckoutMode, Event, EventType, Object as Told, PaymentStatus, ReadError};
use tallyhook_core::ids::SubscriptionId;
use tallyhook_core::timestamp::Timestamp;

/// An event made of an object, or Stripe's own.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What it says.
    pub event: Event,
    /// Its text.
    pub raw: Vec<u8>,
}

impl Evidence {
    /// An event of Stripe's own, in Stripe's words.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_event(object: &Object) -> Result<Self, ReadError> {
        let raw = object.text().as_bytes().to_vec();
        Ok(Self { event: event::read(&raw)?, raw })
    }

    /// How a subscription stood at `read_at`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_subscription(object: &Object, livemode: bool, now: Timestamp) -> Result<Self, ReadError> {
        Self::made(
            object.text(),
            &EventType::CustomerSubscriptionUpdated,
            object.read_at.unwrap_or(now),
            livemode,
            object.id(),
        )
    }

    /// A paid invoice, as of the time it was paid.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_invoice(object: &Object, livemode: bool) -> Result<Self, ReadError> {
        let value = object.value();
        let paid_at = [&value["status_transitions"]["paid_at"], &value["created"], &value["date"]]
            .into_iter()
            .find_map(Value::as_i64);
        Self::made(
            object.text(),
            &EventType::InvoicePaid,
            Timestamp::from_unix(paid_at.unwrap_or(0)),
            livemode,
            object.id(),
        )
    }

    /// A finished checkout session, as of the time it was made: Stripe does not say when it was paid.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_session(object: &Object, livemode: bool) -> Result<Self, ReadError> {
        let created = Timestamp::from_unix(object.value()["created"].as_i64().unwrap_or(0));
        Self::made(object.text(), &EventType::CheckoutSessionCompleted, created, livemode, object.id())
    }

    /// The same session with the pack that its line items name, if they name one pack: `None` if they do not.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_session_with(
        object: &Object,
        line_items: &[Object],
        livemode: bool,
    ) -> Result<Self, ReadError> {
        let mut session = object.value();
        let items: Vec<Value> = line_items.iter().map(Object::value).collect();
        session["line_items"] = json!({"object": "list", "data": items});
        let created = Timestamp::from_unix(session["created"].as_i64().unwrap_or(0));
        let kind = EventType::CheckoutSessionCompleted;
        Self::made(&session.to_string(), &kind, created, livemode, object.id())
    }

    fn made(
        text: &str,
        kind: &EventType,
        created: Timestamp,
        livemode: bool,
        id: Option<&str>,
    ) -> Result<Self, ReadError> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let about = id
            .filter(|id| id.chars().all(word))
            .ok_or_else(|| ReadError::Missing { path: "id".to_owned() })?;
        let told: Value = serde_json::from_str(text).map_err(ReadError::NotJson)?;
        let livemode = told["livemode"].as_bool().unwrap_or(livemode);
        let body = |event_id: &str| {
            format!(
                r#"{{"id":"{event_id}","object":"event","type":"{kind}","created":{},"livemode":{livemode},"api_version":"{API_VERSION}","data":{{"object":{text}}},"pending_webhooks":0,"request":null}}"#,
                created.unix()
            )
        };
        let digest = event::content_digest(body("").as_bytes());
        let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let raw = body(&format!("evt_reconcile_{about}_{digest}")).into_bytes();
        Ok(Self { event: event::read(&raw)?, raw })
    }

    /// The same, to be applied to an account at this version.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn for_version(&self, version: u64) -> Result<Self, ReadError> {
        let id = self.event.id.as_str();
        let text = String::from_utf8_lossy(&self.raw).replacen(id, &format!("{id}_{version}"), 1);
        Ok(Self { event: event::read(text.as_bytes())?, raw: text.into_bytes() })
    }

    /// The subscription it is about, with its id.
    pub fn subscription(&self) -> Option<(&SubscriptionId, &event::Subscription)> {
        match &self.event.object {
            Told::Subscription(subscription) => Some((&subscription.id, subscription)),
            Told::CheckoutSession(_)
            | Told::Invoice(_)
            | Told::InvoicePayment(_)
            | Told::Charge(_)
            | Told::Refund(_)
            | Told::Dispute(_)
            | Told::Customer(_)
            | Told::Other => None,
        }
    }

    /// Whether it is a session in which something was bought once and paid.
    pub fn is_paid_purchase(&self) -> bool {
        let Told::CheckoutSession(session) = &self.event.object else { return false };
        session.mode == CheckoutMode::Payment
            && matches!(session.payment_status, PaymentStatus::Paid | PaymentStatus::NoPaymentRequired)
    }
}
