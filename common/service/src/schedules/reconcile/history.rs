//! The pass over the history: lost events, paid invoices, finished sessions, refunds and disputes, merged by
//! time and handled oldest first, as they would have arrived. A pack that arrives after a newer renewal would
//! be granted in full, although it ended with that renewal.
//!
//! Stripe lists newest first. So the pass takes one window of time after the other, reads what each list has
//! in it, and sorts that. A window that has more than [`MAX_PAGES`] pages of one list is halved. A window
//! with few objects is followed by one of twice its length.

use std::collections::HashMap;

use super::{BATCH, Evidence, List, ReconcileRun, RunPosition, StepError};
use crate::process::{FoundAccount, RepairKind};
use crate::worker::ask;
use tallyhook_aws::store::items::Key;
use tallyhook_aws::stripe::{Cursor, Filter, Object};
use tallyhook_core::drift;
use tallyhook_core::event::{self, RefundStatus};
use tallyhook_core::ids::CustomerId;
use tallyhook_core::timestamp::Timestamp;

/// Pages of one list that are read of a window.
const MAX_PAGES: usize = 5;
/// Objects whose accounts are read at once.
const CHUNK: usize = 100;

/// Something that happened, with the time by which it is sorted.
pub(super) struct HistoryEntry {
    at: Timestamp,
    what: HistoryItem,
}

/// The order of the variants is the order of entries of the same second. An event comes before the document
/// that it is about, so that the document needs no repair. A refund or dispute comes after the document whose
/// payment it is about.
enum HistoryItem {
    Lost(Box<Evidence>),
    Document(List, Object),
    Reversal(List, Object),
}

impl HistoryItem {
    fn rank(&self) -> u8 {
        match self {
            Self::Lost(_) => 0,
            Self::Document(..) => 1,
            Self::Reversal(..) => 2,
        }
    }
}

/// A window of the history, as text: `1767600000+86400`, the start and the length in seconds. Without a
/// length, it has no end.
struct Window {
    from: Timestamp,
    seconds: Option<i64>,
}

impl Window {
    fn from_text(text: &str) -> Option<Self> {
        let (from, seconds) = text.split_once('+')?;
        let seconds = if seconds.is_empty() { None } else { Some(seconds.parse().ok().filter(|s| *s > 0)?) };
        Some(Self { from: Timestamp::from_unix(from.parse().ok()?), seconds })
    }

    fn text(&self) -> String {
        let seconds = self.seconds.map_or_else(String::new, |seconds| seconds.to_string());
        format!("{}+{seconds}", self.from.unix())
    }
}

impl ReconcileRun<'_> {
    /// Processes one window. Returns whether there are more.
    pub(super) async fn history(&mut self, position: &mut RunPosition) -> Result<bool, String> {
        let first = position.started.plus_days(-self.options.days);
        let window = position.after.as_deref().and_then(Window::from_text);
        let window = window.unwrap_or(Window { from: first, seconds: None });
        let remaining = self.now.seconds_since(window.from).max(0) + 1;
        let seconds = window.seconds.filter(|seconds| *seconds < remaining);
        let until = seconds.map(|seconds| window.from.plus_seconds(seconds));
        let filter = Filter { from: Some(window.from), until, ..Filter::default() };
        let lists =
            [List::Events(0), List::Events(1), List::Invoices, List::Sessions, List::Refunds, List::Disputes];
        // A window of one second cannot be halved, so all of its pages are read.
        let max_pages = if seconds == Some(1) { usize::MAX } else { MAX_PAGES };
        let mut entries = Vec::new();
        let mut fullest = 0;
        for list in lists {
            self.check_time()?;
            let before = entries.len();
            if !self.read_list(list, &filter, max_pages, &mut entries).await? {
                let half = (seconds.unwrap_or(remaining) / 2).max(1);
                position.after = Some(Window { seconds: Some(half), ..window }.text());
                return Ok(true);
            }
            fullest = fullest.max(entries.len() - before);
        }
        self.apply_entries(entries).await?;
        let Some((seconds, from)) = seconds.zip(until) else { return Ok(false) };
        let grows = fullest * 4 <= MAX_PAGES * CHUNK;
        let seconds = if grows { seconds.saturating_mul(2) } else { seconds };
        position.after = Some(Window { from, seconds: Some(seconds) }.text());
        Ok(true)
    }

    /// Processes the history of one user's customers, without lost events: Stripe's list of events has no
    /// filter by customer.
    pub(super) async fn history_of(&mut self, customers: &[CustomerId]) -> Result<(), String> {
        let mut entries = Vec::new();
        for customer in customers {
            let filter =
                Filter { customer: Some(customer.clone()), from: Some(self.since()), ..Filter::default() };
            for list in [List::Invoices, List::Sessions] {
                self.read_list(list, &filter, usize::MAX, &mut entries).await?;
            }
        }
        self.apply_entries(entries).await?;
        for customer in customers {
            let stopped = |error: StepError| match error {
                StepError::Object(reason) | StepError::Stop(reason) => reason,
            };
            self.reversals_of_customer(customer).await.map_err(stopped)?;
        }
        Ok(())
    }

    /// Applies the refunds and disputes of all charges of a customer: an old charge may be refunded today.
    async fn reversals_of_customer(&mut self, customer: &CustomerId) -> Result<(), StepError> {
        let filter = Filter { customer: Some(customer.clone()), ..Filter::default() };
        let mut cursor = Cursor::Newest;
        loop {
            self.check_time().map_err(StepError::Stop)?;
            let page = self.stripe.charges(&filter, &cursor).await?;
            self.report.read("charges", page.objects.len());
            for charge in page.objects.iter().rev() {
                let value = charge.value();
                let is_reversed =
                    value["disputed"] == true || value["amount_refunded"].as_i64().unwrap_or(0) > 0;
                if let Some(id) = charge.id().and_then(|id| id.parse().ok()).filter(|_| is_reversed) {
                    let found = self.reversals_of(&Filter { charge: Some(id), ..Filter::default() }).await?;
                    self.apply_reversals(found).await?;
                }
            }
            match page.last_id().map(str::to_owned).filter(|_| page.has_more) {
                Some(last) => cursor = Cursor::After(last),
                None => return Ok(()),
            }
        }
    }

    /// The refunds and disputes of one payment, each with the time at which it was made.
    pub(super) async fn reversals_of(
        &mut self,
        payment: &Filter,
    ) -> Result<Vec<(Timestamp, Evidence)>, StepError> {
        let mut found = Vec::new();
        for list in [List::Refunds, List::Disputes] {
            let page = self.fetch(list, payment, &Cursor::Newest).await?;
            self.report.read(list.name(), page.objects.len());
            for object in page.objects.iter().rev() {
                let evidence = self.evidence(list, object);
                let evidence = evidence.map_err(|error| StepError::Object(error.to_string()))?;
                found.push((created(object), evidence));
            }
        }
        Ok(found)
    }

    /// Applies refunds and disputes that are not known here, oldest first.
    pub(super) async fn apply_reversals(
        &mut self,
        mut found: Vec<(Timestamp, Evidence)>,
    ) -> Result<(), StepError> {
        found.sort_by_key(|(at, _)| *at);
        for (at, evidence) in found {
            self.reversal(evidence, at).await?;
        }
        Ok(())
    }

    /// Adds the objects of a list. If it has more than `max_pages` pages, adds nothing and returns false.
    async fn read_list(
        &mut self,
        list: List,
        filter: &Filter,
        max_pages: usize,
        entries: &mut Vec<HistoryEntry>,
    ) -> Result<bool, String> {
        let (mut cursor, mut found) = (Cursor::Newest, Vec::new());
        for page_number in 1.. {
            let page = self.fetch(list, filter, &cursor).await.map_err(|error| error.to_string())?;
            let next = page.last_id().map(str::to_owned).filter(|_| page.has_more);
            found.extend(page.objects);
            let Some(next) = next else { break };
            if page_number >= max_pages {
                return Ok(false);
            }
            cursor = Cursor::After(next);
        }
        self.report.read(list.name(), found.len());
        let items: Vec<HistoryItem> = match list {
            List::Events(_) => {
                let lost = self.lost_events(found).await?.into_iter();
                lost.map(|evidence| HistoryItem::Lost(Box::new(evidence))).collect()
            }
            List::Invoices | List::Sessions => {
                found.into_iter().map(|object| HistoryItem::Document(list, object)).collect()
            }
            List::Refunds | List::Disputes => {
                found.into_iter().map(|object| HistoryItem::Reversal(list, object)).collect()
            }
            List::Subscriptions => Vec::new(),
        };
        entries.extend(items.into_iter().map(|what| {
            let at = match &what {
                HistoryItem::Lost(evidence) => evidence.event.created,
                HistoryItem::Document(_, object) | HistoryItem::Reversal(_, object) => created(object),
            };
            HistoryEntry { at, what }
        }));
        Ok(true)
    }

    /// The events that our log does not have. Events younger than `grace_seconds` may still arrive and are
    /// skipped.
    async fn lost_events(&mut self, objects: Vec<Object>) -> Result<Vec<Evidence>, String> {
        let keys = objects.iter().filter_map(|object| Some(Key::Event(object.id()?.to_owned())));
        let store = &self.processor.accounts.store;
        let known = store.load(keys).await.map_err(|error| error.to_string())?;
        let newest = self.now.plus_seconds(-self.options.grace_seconds);
        let mut lost = Vec::new();
        for object in &objects {
            let Some(id) = object.id() else { continue };
            if known.contains_key(&Key::Event(id.to_owned())) {
                continue;
            }
            match Evidence::of_event(object) {
                Ok(evidence) if evidence.event.created <= newest => lost.push(evidence),
                Ok(_) => {}
                Err(error) => self.note(id, None, Err(StepError::Object(error.to_string())))?,
            }
        }
        Ok(lost)
    }

    /// Applies the entries, oldest first.
    async fn apply_entries(&mut self, mut entries: Vec<HistoryEntry>) -> Result<(), String> {
        let mut events_of: HashMap<String, Timestamp> = HashMap::new();
        for entry in &entries {
            if let HistoryItem::Lost(evidence) = &entry.what
                && let Some(object) = evidence.event.object_ids().first()
            {
                let latest = events_of.entry((*object).to_owned()).or_insert(entry.at);
                *latest = (*latest).max(entry.at);
            }
        }
        for entry in &mut entries {
            if let HistoryItem::Document(_, object) = &entry.what
                && let Some(at) = object.id().and_then(|id| events_of.get(id))
            {
                entry.at = entry.at.max(*at);
            }
        }
        // Stripe's lists are newest first. Reversed, and with a stable sort, entries of one second are oldest
        // first.
        entries.reverse();
        entries.sort_by_key(|entry| (entry.at, entry.what.rank()));
        let mut rest = entries.into_iter().peekable();
        while rest.peek().is_some() {
            let chunk: Vec<HistoryEntry> = rest.by_ref().take(CHUNK).collect();
            self.chunk(chunk).await?;
        }
        Ok(())
    }

    async fn chunk(&mut self, entries: Vec<HistoryEntry>) -> Result<(), String> {
        let evidence: Vec<_> = entries
            .iter()
            .map(|entry| match &entry.what {
                HistoryItem::Lost(_) => None,
                HistoryItem::Document(list, object) | HistoryItem::Reversal(list, object) => {
                    Some(self.evidence(*list, object))
                }
            })
            .collect();
        let mut events = Vec::new();
        for (entry, evidence) in entries.iter().zip(&evidence) {
            if let (HistoryItem::Document(..), Some(Ok(evidence))) = (&entry.what, evidence) {
                events.push(&evidence.event);
            }
        }
        let mut accounts = self.processor.look(&events).await.map_err(|error| error.to_string())?.into_iter();
        let changed = self.report.changed;
        let mut lost = Vec::new();
        for (entry, evidence) in entries.into_iter().zip(evidence) {
            self.check_time()?;
            let (list, object) = match entry.what {
                HistoryItem::Lost(evidence) => {
                    lost.push(*evidence);
                    if lost.len() == BATCH {
                        self.replay(std::mem::take(&mut lost)).await?;
                    }
                    continue;
                }
                HistoryItem::Document(list, object) | HistoryItem::Reversal(list, object) => (list, object),
            };
            self.replay(std::mem::take(&mut lost)).await?;
            let id = object.id().unwrap_or("(no id)").to_owned();
            let customer = object.value()["customer"].as_str().map(str::to_owned);
            let result = match evidence {
                Some(Ok(evidence)) if matches!(list, List::Refunds | List::Disputes) => {
                    self.reversal(evidence, entry.at).await
                }
                Some(Ok(evidence)) => match accounts.next() {
                    // A repair in this chunk may have changed the same account, so read it again.
                    Some(_) if self.report.changed > changed => match self.find_account(&evidence).await {
                        Ok(found) => self.paid(list, &object, evidence, found).await,
                        Err(error) => Err(error),
                    },
                    Some(Ok(found)) => self.paid(list, &object, evidence, found).await,
                    Some(Err(error)) => Err(error.into()),
                    None => Ok(()),
                },
                Some(Err(error)) => Err(StepError::Object(error.to_string())),
                None => Ok(()),
            };
            self.note(&id, customer, result)?;
        }
        self.replay(lost).await
    }

    /// Applies a refund or a dispute that is not known here. Its event was lost, or went to another endpoint,
    /// so it does what the event would have done. A payment that granted nothing here has nothing to take
    /// back.
    async fn reversal(&mut self, mut evidence: Evidence, at: Timestamp) -> Result<(), StepError> {
        let newest = self.now.plus_seconds(-self.options.grace_seconds);
        let counts = match &evidence.event.object {
            event::Object::Refund(refund) => refund.status != RefundStatus::Pending,
            event::Object::Dispute(_) => true,
            event::Object::CheckoutSession(_)
            | event::Object::Subscription(_)
            | event::Object::Invoice(_)
            | event::Object::InvoicePayment(_)
            | event::Object::Charge(_)
            | event::Object::Customer(_)
            | event::Object::Other => false,
        };
        if !counts || at > newest {
            return Ok(());
        }
        let mut found = self.find_account(&evidence).await?;
        if matches!(found, FoundAccount::NoOwner(_)) {
            ask::name_invoice(self.stripe, &mut evidence.event.object).await;
            found = self.find_account(&evidence).await?;
        }
        let FoundAccount::Account(account, payments) = found else { return Ok(()) };
        let catalog = &self.processor.accounts.catalog;
        let Some(difference) = drift::reversal(&account, &evidence.event, &payments, catalog, self.now)
        else {
            return Ok(());
        };
        let object = evidence.event.object_ids().first().map(|id| (*id).to_owned()).unwrap_or_default();
        self.repair(vec![difference], &evidence, &object, &account, RepairKind::Document).await.map(|_| ())
    }
}

fn created(object: &Object) -> Timestamp {
    Timestamp::from_unix(object.value()["created"].as_i64().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_from_its_text_and_any_other_text_is_refused() {
        for text in ["1767600000+86400", "1767600000+"] {
            assert_eq!(Window::from_text(text).map(|window| window.text()).as_deref(), Some(text));
        }
        for text in ["", "1767600000", "x+1", "1+x", "1+0", "1+-5"] {
            assert!(Window::from_text(text).is_none(), "{text}");
        }
    }
}
