//! The messages to the app about an event, besides the change of tier and balance.
//!
//! A notice has one cause, which names it: an event, or the invoice or dispute that several events are about.
//! It compares the account before and after the event, so an event that is late, repeated or superseded has
//! no notice.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::account::access::Summary;
use crate::account::{Account, State};
use crate::catalog::Catalog;
use crate::credits::Credits;
use crate::decide::{Applied, Payments};
use crate::event::{CheckoutSession, Event, EventType, Invoice, Object, SubscriptionStatus};
use crate::ids::{InvoiceId, SubscriptionId};
use crate::job::JobKind;
use crate::ledger::{Entry, EntryKind, LedgerKey, Note};
use crate::reversal::{DisputeStage, PaymentRecord};
use crate::timestamp::Timestamp;

/// One message to the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Its type.
    pub kind: JobKind,
    /// The cause: `evt_…`, `in_…`, `dp_…`.
    pub about: String,
    /// What its `data` has beside the account.
    pub data: Map<String, Value>,
}

/// The event that a message is about, and the account before and after it.
struct EventContext<'a> {
    event: &'a Event,
    before: &'a Account,
    applied: &'a Applied,
    catalog: &'a Catalog,
    now: Timestamp,
}

/// Whether a subscription runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    NotStarted,
    Running,
    Ended,
}

/// The notices of an event that was decided: `before` is the account before it, `payments` what was known of
/// the payments that it names.
pub fn notices(
    event: &Event,
    before: &Account,
    applied: &Applied,
    payments: &Payments,
    catalog: &Catalog,
    now: Timestamp,
) -> Vec<Notice> {
    let now = applied.change.state.time(now);
    let context = EventContext { event, before, applied, catalog, now };
    let mut all = Vec::new();
    match &event.object {
        Object::Customer(customer) => {
            let of_it = before.state.subscriptions.iter();
            let of_it = of_it.filter(|(_, one)| one.customer.as_ref() == Some(&customer.id));
            of_it.for_each(|(id, _)| context.subscription(id, &mut all));
        }
        Object::CheckoutSession(_)
        | Object::Subscription(_)
        | Object::Invoice(_)
        | Object::InvoicePayment(_)
        | Object::Charge(_)
        | Object::Refund(_)
        | Object::Dispute(_)
        | Object::Other => {
            if let Some(id) = event.subscription_id() {
                context.subscription(id, &mut all);
            }
        }
    }
    context.failed_payment(&mut all);
    for (payment, record) in &applied.payments {
        context.payment(payment, payments.get(payment), record, &mut all);
    }
    all
}

impl EventContext<'_> {
    fn notice(&self, kind: JobKind, name: &str, object: Value) -> Notice {
        self.notice_about(kind, self.event.id.as_str(), name, object)
    }

    fn notice_about(&self, kind: JobKind, about: &str, name: &str, object: Value) -> Notice {
        let mut data = Map::new();
        data.insert("event_id".to_owned(), json!(self.event.id));
        data.insert("event_created".to_owned(), json!(self.event.created.to_string()));
        data.insert(name.to_owned(), object);
        Notice { kind, about: about.to_owned(), data }
    }

    fn subscription(&self, id: &SubscriptionId, all: &mut Vec<Notice>) {
        let (before, after) = (&self.before.state, &self.applied.change.state);
        let was = before.summary(id, self.catalog, self.now);
        let Some(is) = after.summary(id, self.catalog, self.now).filter(|is| is.plan.is_some()) else {
            return;
        };
        let view = subscription_view(id, &is);
        let mut add = |kind| all.push(self.notice(kind, "subscription", view.clone()));
        let stages =
            (was.as_ref().map_or(Stage::NotStarted, |was| stage(was, self.now)), stage(&is, self.now));
        match stages {
            (Stage::NotStarted, Stage::Running) => add(JobKind::SubscriptionStarted),
            (Stage::Running, Stage::Ended) => add(JobKind::SubscriptionEnded),
            (Stage::Running, Stage::Running)
                if was.as_ref().is_some_and(|was| differs(was, &is)) || items_differ(before, after, id) =>
            {
                add(JobKind::SubscriptionChanged);
            }
            (Stage::NotStarted | Stage::Running | Stage::Ended, _) => {}
        }
        let runs = stages.1 == Stage::Running;
        if runs && is.ends.is_some() && was.as_ref().and_then(|was| was.ends) != is.ends {
            add(JobKind::SubscriptionEnding);
        }
        if self.event.kind == EventType::CustomerSubscriptionTrialWillEnd
            && is.status == Some(SubscriptionStatus::Trialing)
        {
            add(JobKind::TrialEnding);
        }
        for invoice in self.renewals() {
            let kind = JobKind::SubscriptionRenewed;
            let mut notice = self.notice_about(kind, invoice.as_str(), "subscription", view.clone());
            notice.data.insert("invoice".to_owned(), json!({"id": invoice}));
            all.push(notice);
        }
    }

    /// The invoices that renewed a subscription.
    fn renewals(&self) -> BTreeSet<InvoiceId> {
        let renews = |entry: &&Entry| entry.kind == EntryKind::Renewal && entry.note.is_none();
        let entries = self.applied.change.entries.iter().filter(renews);
        let invoice = |entry: &Entry| match entry.key.invoice_of_item() {
            Some(invoice) => invoice.invoice_id(),
            None => entry.key.invoice_id(),
        };
        entries.filter_map(invoice).collect()
    }

    fn failed_payment(&self, all: &mut Vec<Notice>) {
        let is_paid = |document: &LedgerKey| self.before.recorded.contains_key(document);
        let kind = if self.event.kind == EventType::InvoicePaymentActionRequired {
            JobKind::PaymentActionRequired
        } else {
            JobKind::PaymentFailed
        };
        if let Object::Invoice(invoice) = &self.event.object
            && self.event.kind != EventType::InvoicePaid
            && !is_paid(&LedgerKey::invoice(&invoice.id))
        {
            all.push(self.notice(kind, "invoice", invoice_view(invoice)));
        }
        if let Object::CheckoutSession(session) = &self.event.object
            && self.event.kind == EventType::CheckoutSessionAsyncPaymentFailed
            && !is_paid(&LedgerKey::session(&session.id))
        {
            all.push(self.notice(kind, "checkout_session", session_view(session)));
        }
    }

    /// What went back of a payment that is tied to its document.
    fn payment(
        &self,
        payment: &str,
        before: Option<&PaymentRecord>,
        after: &PaymentRecord,
        all: &mut Vec<Notice>,
    ) {
        let Some(document) = &after.document else { return };
        let before = before.filter(|before| before.document.is_some());
        let is_reversal = |entry: &&Entry| matches!(entry.kind, EntryKind::Refund | EntryKind::Dispute);
        let entries: Vec<&Entry> = self.applied.change.entries.iter().filter(is_reversal).collect();
        let credits = entries.iter().map(|entry| entry.delta).fold(0, i64::saturating_add);
        let object = |more: Value| {
            let mut object = json!({
                "payment": payment, "invoice": document.invoice_id(), "checkout_session": document.session_id(),
            });
            if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
                object.extend(more);
            }
            object
        };
        let refunded = after.reversal.refunded();
        let counts = self.applied.order_payment.is_some()
            || entries.iter().any(|entry| entry.note != Some(Note::Superseded));
        if counts && before.map_or(0, |before| before.reversal.refunded()) != refunded {
            let shortfall: Credits = entries.iter().map(|entry| entry.shortfall).sum();
            let more = json!({"amount_refunded": refunded, "credits": credits, "shortfall": shortfall});
            all.push(self.notice(JobKind::RefundApplied, "refund", object(more)));
        }
        for (dispute, amount, stage) in after.reversal.disputes() {
            let was = before.and_then(|before| before.reversal.dispute(dispute));
            let kind = match (was, stage) {
                (None | Some(DisputeStage::Inquiry), DisputeStage::Open) => JobKind::DisputeOpened,
                (
                    None | Some(DisputeStage::Inquiry | DisputeStage::Open),
                    DisputeStage::Lost | DisputeStage::Won,
                ) => JobKind::DisputeClosed,
                _ => continue,
            };
            let more = json!({"id": dispute, "status": stage, "amount": amount, "credits": credits});
            all.push(self.notice_about(kind, dispute.as_str(), "dispute", object(more)));
        }
    }
}

fn stage(summary: &Summary, now: Timestamp) -> Stage {
    use SubscriptionStatus as Status;
    match &summary.status {
        None if summary.runs_by_invoice(now) => Stage::Running,
        None | Some(Status::Incomplete | Status::IncompleteExpired | Status::Other(_)) => Stage::NotStarted,
        Some(Status::Active | Status::Trialing | Status::PastDue | Status::Unpaid | Status::Paused) => {
            Stage::Running
        }
        Some(Status::Canceled) => Stage::Ended,
    }
}

/// Whether a running subscription is another one than before. The state that only an invoice shows is
/// `active`.
fn differs(was: &Summary, is: &Summary) -> bool {
    let status = |summary: &Summary| summary.status.clone().unwrap_or(SubscriptionStatus::Active);
    status(was) != status(is)
        || (&was.plan, &was.price, was.quantity) != (&is.plan, &is.price, is.quantity)
        || (was.ends.is_some() && is.ends.is_none())
}

/// Whether two snapshots of a subscription have other items, prices or quantities.
fn items_differ(before: &State, after: &State, id: &SubscriptionId) -> bool {
    let items = |state: &State| {
        let snapshot = state.subscriptions.get(id)?.snapshot.as_ref()?;
        let items = snapshot.items.iter().map(|item| (item.id.clone(), item.price.clone(), item.quantity));
        Some(items.collect::<Vec<_>>())
    };
    items(before).zip(items(after)).is_some_and(|(before, after)| before != after)
}

/// A subscription as the app reads it.
pub fn subscription_view(id: &SubscriptionId, one: &Summary) -> Value {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    json!({
        "id": id,
        "status": one.status,
        "plan": one.plan,
        "price": one.price,
        "quantity": one.quantity,
        "period_start": time(one.start),
        "period_end": time(one.end),
        "cancelling": one.ends.is_some(),
        "cancel_at": time(one.ends),
    })
}

fn invoice_view(invoice: &Invoice) -> Value {
    json!({
        "id": invoice.id,
        "subscription": invoice.subscription,
        "amount_due": invoice.amount_due,
        "currency": invoice.currency,
        "attempt_count": invoice.attempt_count,
        "next_payment_attempt": invoice.next_payment_attempt.map(|at| at.to_string()),
        "hosted_invoice_url": invoice.hosted_invoice_url,
    })
}

fn session_view(session: &CheckoutSession) -> Value {
    json!({"id": session.id, "amount_total": session.amount_total, "currency": session.currency})
}

#[cfg(test)]
mod tests;
