//! An object that was read from Stripe, as the event that Stripe would have sent about it, so that the same
//! rules apply to it.
//!
//! ```json
//! {"id":"evt_reconcile_in_1_4f1c02ab93de_7","object":"event","type":"invoice.paid","created":1759312800,
//!  "livemode":false,"api_version":"2025-09-30.clover","data":{"object":{"id":"in_1",…}},
//!  "pending_webhooks":0,"request":null}
//! ```
//! The id consists of the object's id, a digest of the content and the version of the account to change. So
//! when two runs read the same content and make the same repair, only one of them is applied. Stripe's own
//! events never have such an id.

use serde_json::{Value, json};

use tallyhook_aws::stripe::{API_VERSION, Object};
use tallyhook_core::event::{
    self, CheckoutMode, Event, EventType, Object as EventObject, PaymentStatus, ReadError,
};
use tallyhook_core::ids::{EventId, SubscriptionId};
use tallyhook_core::timestamp::Timestamp;

/// An event of Stripe, or one made from an object of Stripe.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The parsed event.
    pub event: Event,
    /// The event's JSON.
    pub raw: Vec<u8>,
    /// The refunds and disputes of a document's payments.
    pub reversals: Vec<Event>,
}

impl Evidence {
    /// Stripe's own event, unchanged.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_event(object: &Object) -> Result<Self, ReadError> {
        let raw = object.text().as_bytes().to_vec();
        Ok(Self { event: event::read(&raw)?, raw, reversals: Vec::new() })
    }

    /// A subscription as it was when it was read. If its period began before `imported_at`, the time of an
    /// imported balance, the event's time is before it too: Stripe does not say when the plan or the seats
    /// changed, and the balance includes what a change had granted.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_subscription(
        object: &Object,
        livemode: bool,
        now: Timestamp,
        imported_at: Option<Timestamp>,
    ) -> Result<Self, ReadError> {
        let read_at = object.read_at.unwrap_or(now);
        let value = object.value();
        let items = value["items"]["data"].as_array().into_iter().flatten();
        let starts = items.chain([&value]).filter_map(|one| one["current_period_start"].as_i64());
        let start = starts.max().map(Timestamp::from_unix);
        let before = imported_at.filter(|at| start.is_some_and(|start| start < *at));
        let at = before.map_or(read_at, |at| read_at.min(at.plus_seconds(-1)));
        Self::made(object.text(), &EventType::CustomerSubscriptionUpdated, at, livemode, object.id())
    }

    /// A paid invoice; the event's time is the time of the payment.
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

    /// A finished checkout session. The event's time is the time of the payment if it is given, else the
    /// session's creation: the session does not say when it was paid.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_session(
        object: &Object,
        livemode: bool,
        paid_at: Option<Timestamp>,
    ) -> Result<Self, ReadError> {
        let created = Timestamp::from_unix(object.value()["created"].as_i64().unwrap_or(0));
        let created = paid_at.map_or(created, |paid_at| paid_at.max(created));
        Self::made(object.text(), &EventType::CheckoutSessionCompleted, created, livemode, object.id())
    }

    /// A refund as it was when it was read. A refund that succeeded has the time at which it was made, so
    /// that an imported balance of later includes it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_refund(object: &Object, livemode: bool, now: Timestamp) -> Result<Self, ReadError> {
        let value = object.value();
        let made = value["created"].as_i64().filter(|_| value["status"] == "succeeded");
        let at = made.map_or(object.read_at.unwrap_or(now), Timestamp::from_unix);
        Self::made(object.text(), &EventType::RefundUpdated, at, livemode, object.id())
    }

    /// A dispute as it was when it was read, with the time at which it was opened. A dispute does not say when
    /// it was won: that counts from when it was read.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn of_dispute(object: &Object, livemode: bool, now: Timestamp) -> Result<Self, ReadError> {
        let value = object.value();
        let opened = value["created"].as_i64().filter(|_| value["status"] != "won");
        let at = opened.map_or(object.read_at.unwrap_or(now), Timestamp::from_unix);
        Self::made(object.text(), &EventType::ChargeDisputeUpdated, at, livemode, object.id())
    }

    /// A finished checkout session with its line items.
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
        let is_id_char = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let object_id = id
            .filter(|id| id.chars().all(is_id_char))
            .ok_or_else(|| ReadError::Missing { path: "id".to_owned() })?;
        let object: Value = serde_json::from_str(text).map_err(ReadError::NotJson)?;
        let livemode = object["livemode"].as_bool().unwrap_or(livemode);
        let created = created.unix();
        let body = |event_id: &str| {
            format!(
                concat!(
                    r#"{{"id":"{event_id}","object":"event","type":"{kind}","created":{created},"#,
                    r#""livemode":{livemode},"api_version":"{version}","data":{{"object":{text}}},"#,
                    r#""pending_webhooks":0,"request":null}}"#
                ),
                event_id = event_id,
                kind = kind,
                created = created,
                livemode = livemode,
                version = API_VERSION,
                text = text,
            )
        };
        let digest = event::content_digest(body("").as_bytes());
        let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let raw = body(&format!("evt_reconcile_{object_id}_{digest}")).into_bytes();
        Ok(Self { event: event::read(&raw)?, raw, reversals: Vec::new() })
    }

    /// The same event, to be applied to an account at this version.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn for_version(&self, version: u64) -> Result<Self, ReadError> {
        let id = self.event.id.as_str();
        let numbered = format!("{id}_{version}");
        let text = String::from_utf8_lossy(&self.raw).replacen(id, &numbered, 1);
        let id = EventId::new(numbered.as_str()).map_err(|_| ReadError::Missing { path: "id".to_owned() })?;
        // The event may have what was read from Stripe beside the object.
        let event = Event { id, ..self.event.clone() };
        Ok(Self { event, raw: text.into_bytes(), reversals: self.reversals.clone() })
    }

    /// The event's subscription with its id.
    pub fn subscription(&self) -> Option<(&SubscriptionId, &event::Subscription)> {
        match &self.event.object {
            EventObject::Subscription(subscription) => Some((&subscription.id, subscription)),
            EventObject::CheckoutSession(_)
            | EventObject::Invoice(_)
            | EventObject::InvoicePayment(_)
            | EventObject::Charge(_)
            | EventObject::Refund(_)
            | EventObject::Dispute(_)
            | EventObject::Customer(_)
            | EventObject::Other => None,
        }
    }

    /// Whether this is a paid session for a one-time purchase.
    pub fn is_paid_purchase(&self) -> bool {
        let EventObject::CheckoutSession(session) = &self.event.object else { return false };
        session.mode == CheckoutMode::Payment
            && matches!(session.payment_status, PaymentStatus::Paid | PaymentStatus::NoPaymentRequired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dispute_has_the_time_at_which_it_was_opened_until_it_is_won() {
        for (status, at) in [("needs_response", 100), ("under_review", 100), ("lost", 100), ("won", 900)] {
            let dispute = json!({"id": "dp_1", "object": "dispute", "status": status, "amount": 5,
                "created": 100, "charge": "ch_1"});
            let dispute = Object::of(&dispute).unwrap();
            let evidence = Evidence::of_dispute(&dispute, true, Timestamp::from_unix(900)).unwrap();
            assert_eq!(evidence.event.created.unix(), at, "{status}");
        }
    }
}
