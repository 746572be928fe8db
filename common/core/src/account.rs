//! One user's account: the state that the rules need, and the only way it changes ([`Account::evolve`]).
//!
//! **Invariant:** the balance is the sum of the buckets (`signup`, one per subscription item, `addon`,
//! `grant`) and never below zero. **Invariant:** the account is computed from the facts it was given; their
//! order and repetition do not matter. There are two exceptions: a spend stays with the lot that it was taken
//! from, and under `addons = "reset"` a pack that arrives after a newer reset is granted in full.
//!
//! In reading order: [`snapshot`] and [`item`] hold the facts about a subscription, [`mod@slice`] and
//! [`months`] the months of its periods, and [`subscription`] joins them. [`lots`] holds all other credits,
//! and [`state`] adds everything up. [`access`] computes the tier, and [`features`] the features. [`holds`]
//! reserves credits and gives spends back. [`import`] reads the balance that a user had in another system,
//! and [`opening`] keeps it.

pub mod access;
pub mod actions;
pub mod explain;
pub mod features;
pub mod fix;
pub mod hand_over;
pub mod holds;
pub mod import;
pub mod item;
pub mod lots;
pub mod low;
pub mod months;
pub mod opening;
pub mod products;
pub mod slice;
pub mod snapshot;
pub mod state;
pub mod subscription;
pub mod swap;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use self::access::Access;
use self::actions::PaymentAction;
use self::import::ImportedBalance;
use self::item::Line;
pub use self::lots::{Lot, LotBalance};
use self::lots::{Purchase, Signup};
use self::products::BoughtProduct;
use self::snapshot::Snapshot;
use self::state::Derived;
pub use self::state::{Buckets, State};
use self::subscription::PROVISIONAL;
use crate::catalog::{Catalog, Policy};
use crate::credits::Credits;
use crate::ids::{CustomerId, InvoiceId, ItemId, SubscriptionId, UserId};
use crate::ledger::{Entry, EntryKind, LedgerKey, Note, Payment, Taken};
use crate::reversal::DisputeSpan;
use crate::timestamp::Timestamp;

/// An account as loaded: its state, its stored version, and the ledger entries that the current event may
/// need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub user_id: UserId,
    /// Number of commits so far; 0 for an account that was never stored. A commit succeeds only if the stored
    /// version is still this one.
    pub version: u64,
    /// What the rules know about the user.
    pub state: State,
    /// The requested ledger entries that exist.
    pub recorded: BTreeMap<LedgerKey, Entry>,
}

/// One fact about an account, as an event or a call of the app states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// This Stripe customer is this user.
    Customer(CustomerId),
    /// The customer was deleted at Stripe: its subscriptions have ended.
    CustomerDeleted(CustomerId, Timestamp),
    /// The app created the user.
    Signup,
    /// A subscription is in a state, with these items, plans and periods.
    Snapshot(SubscriptionId, Option<CustomerId>, Snapshot),
    /// The same, but only for access: it grants no credits.
    Status(SubscriptionId, Option<CustomerId>, Snapshot),
    /// An invoice is paid.
    Invoice(Box<PaidInvoice>),
    /// A session or an invoice sold packs or a plan for life: one purchase for each number of days after
    /// which credits expire. All of them name the same document.
    Purchase(Vec<Purchase>, Option<Payment>),
    /// A session or an invoice sold a product.
    Product(Box<BoughtProduct>),
    /// A payment paid an invoice.
    PaymentOfInvoice(InvoiceId, String),
    /// A document's payment was refunded or disputed, in part or in full.
    Reversed(Reversed),
    /// The disputes of a document's payment were won before the document was known.
    Won(LedgerKey, String, Vec<DisputeSpan>),
    /// A document that is recorded in the ledger and moves no credits.
    Recorded(LedgerKey, EntryKind, Option<Payment>),
    /// A payment was confirmed at this time.
    Paid(Timestamp),
    /// A payment failed at this time.
    PaymentFailed(Timestamp),
    /// A test clock of Stripe shows this time.
    Clock(Timestamp),
    /// A payment waits for the customer.
    ActionRequired(PaymentAction),
    /// An invoice whose payment waited is paid.
    ActionDone(InvoiceId),
    /// The balance that the user had in another system.
    Imported(Box<ImportedBalance>),
    /// The personal data of the user was erased at this time.
    Erased(Timestamp),
}

impl Fact {
    /// Whether the fact says that a document sold something that may grant credits or a product.
    pub(crate) fn sells(&self) -> bool {
        match self {
            Self::Invoice(_) | Self::Purchase(..) | Self::Product(_) => true,
            Self::Customer(_)
            | Self::CustomerDeleted(..)
            | Self::Signup
            | Self::Snapshot(..)
            | Self::Status(..)
            | Self::PaymentOfInvoice(..)
            | Self::Reversed(_)
            | Self::Won(..)
            | Self::Recorded(..)
            | Self::Paid(_)
            | Self::PaymentFailed(_)
            | Self::Clock(_)
            | Self::ActionRequired(_)
            | Self::ActionDone(_)
            | Self::Imported(_)
            | Self::Erased(_) => false,
        }
    }

    /// Whether the fact may change what a bucket holds, or has a ledger entry.
    fn may_move_credits(&self) -> bool {
        match self {
            Self::CustomerDeleted(..)
            | Self::Signup
            | Self::Snapshot(..)
            | Self::Status(..)
            | Self::Invoice(_)
            | Self::Purchase(..)
            | Self::Product(_)
            | Self::PaymentOfInvoice(..)
            | Self::Reversed(_)
            | Self::Won(..)
            | Self::Recorded(..)
            | Self::Imported(_) => true,
            Self::Customer(_)
            | Self::Paid(_)
            | Self::PaymentFailed(_)
            | Self::Clock(_)
            | Self::ActionRequired(_)
            | Self::ActionDone(_)
            | Self::Erased(_) => false,
        }
    }
}

/// The lines of a paid invoice that bill plans of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaidInvoice {
    /// The invoice.
    pub id: InvoiceId,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Who pays.
    pub customer: Option<CustomerId>,
    /// The kind of its ledger entry.
    pub kind: EntryKind,
    /// The lines, each with the item that it names and when that item was there: when the invoice was made,
    /// which may be days before it is paid, or earlier. Those with [`snapshot::Terms::unknown`] wait for a
    /// snapshot that shows their price.
    pub lines: Vec<(Option<ItemId>, Line, Timestamp)>,
    /// What was paid.
    pub payment: Payment,
}

/// The sum of the refunds and disputes of one payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reversed {
    /// The document that the payment paid.
    pub document: LedgerKey,
    /// The payment (`pi_…` or `ch_…`).
    pub payment: String,
    /// Minor units, all refunds and disputes of the payment together.
    pub amount: i64,
    /// The same after each moment at which it changed, oldest first.
    pub steps: Vec<(Timestamp, i64)>,
    /// Whether a dispute of it is open or lost.
    pub disputed: bool,
    /// When each of its disputes was opened and closed.
    pub disputes: Vec<DisputeSpan>,
    /// The key of its ledger entry.
    pub key: LedgerKey,
    /// Whether the event is about a dispute or a refund.
    pub kind: EntryKind,
}

/// Who and what made a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `evt_…`, `app`, `admin:<actor>` or `reconcile:<run>`.
    pub by: String,
    /// The key of an entry for a change of the balance that no other entry explains.
    pub adjust_key: LedgerKey,
    /// When it happened at Stripe.
    pub created: Timestamp,
}

/// The effect of a set of facts on an account: the next state, and the entries to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state after.
    pub state: State,
    /// New ledger entries, oldest first.
    pub entries: Vec<Entry>,
}

/// A document with a known ledger key differs from the document that was applied first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} was applied as {known} and is {says} now")]
pub struct Conflict {
    /// The key.
    pub key: LedgerKey,
    /// The price and quantity, or the credits, that were applied.
    pub known: String,
    /// The same of the document now.
    pub says: String,
}

/// An entry that a fact causes, unless its key is already recorded.
struct NewEntry {
    key: LedgerKey,
    kind: EntryKind,
    worth: Credits,
    shortfall: Credits,
    note: Option<Note>,
    payment: Option<Payment>,
    filed_at: Option<Timestamp>,
    from: Vec<Taken>,
    of: Option<LedgerKey>,
    /// Its part of the change of the balance; `None` takes the rest.
    delta: Option<i64>,
    /// When it fell due, if time alone caused it.
    due: Option<Timestamp>,
    skipped: u32,
}

impl NewEntry {
    fn new(key: LedgerKey, kind: EntryKind, worth: Credits) -> Self {
        Self {
            key,
            kind,
            worth,
            shortfall: Credits::ZERO,
            note: None,
            payment: None,
            filed_at: None,
            from: Vec::new(),
            of: None,
            delta: None,
            due: None,
            skipped: 0,
        }
    }
}

/// The maximum number of ends of credits that one change books one by one. The rest is booked in one entry.
const MAX_DUE_STEPS: usize = 16;
/// Of the periods that had begun when a late pack arrived, this many of the newest are stored with it.
const MAX_OUTLIVED: usize = 8;

impl Account {
    /// The account of a new user.
    pub fn new(user_id: UserId) -> Self {
        Self { user_id, version: 0, state: State::default(), recorded: BTreeMap::new() }
    }

    /// The next state, and the entries that `facts` cause. A known fact changes nothing, and a recorded key
    /// is not written again. What fell due by time since the last write is booked, too.
    ///
    /// # Errors
    /// [`Conflict`] when a known document now says something else.
    pub fn evolve(
        &self,
        facts: Vec<Fact>,
        cause: &Cause,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<Change, Conflict> {
        let policy = &catalog.policy;
        let clock = facts.iter().filter_map(|fact| if let Fact::Clock(at) = fact { Some(*at) } else { None });
        let now = clock.chain([self.state.time(now)]).max().unwrap_or(now);
        let mut state = self.state.clone();
        if self.version == 0 && state.created_at == Timestamp::default() {
            state.created_at = now;
        }
        let mut entries = Vec::new();
        let mut known = self.state.buckets(policy, self.state.as_of);
        self.book_due(&mut state, &mut known, policy, now, &mut entries);
        let mut is_booked = false;
        for fact in facts {
            let may_move_credits = fact.may_move_credits();
            let mut new = Vec::new();
            self.fold(&mut state, fact, catalog, now, &mut new)?;
            if may_move_credits {
                self.book(&mut state, &mut known, new, cause, policy, now, &mut entries);
                is_booked = true;
            }
        }
        if !is_booked {
            self.book(&mut state, &mut known, Vec::new(), cause, policy, now, &mut entries);
        }
        state.due_at = known.next;
        Ok(Change { state, entries })
    }

    /// Settles the state after a fact and writes the entries of the fact and of what follows from it.
    #[expect(clippy::too_many_arguments, reason = "the state, what it held, and what has happened")]
    fn book(
        &self,
        state: &mut State,
        known: &mut Buckets,
        mut new: Vec<NewEntry>,
        cause: &Cause,
        policy: &Policy,
        now: Timestamp,
        entries: &mut Vec<Entry>,
    ) {
        state.empty_imported_lots();
        let first = new.iter().filter(|entry| !self.recorded.contains_key(&entry.key));
        let expired = state.granted_too_late(first, now);
        state.settle(policy, now);
        let after = state.buckets(policy, now);
        name_derived(&mut new, known, &after);
        new.extend(expired);
        for entry in &mut new {
            if entry.note.is_none() && entry.kind.grants() && !counts(state, &after, &entry.key) {
                entry.note = Some(Note::Superseded);
            }
        }
        let mut booked = self.entries(state, &after, new, entries, cause, now);
        booked.iter_mut().for_each(|entry| state.note_imported(entry));
        entries.extend(booked);
        *known = after;
    }

    /// Books what time alone has changed since the account was last written, each at the moment it fell due.
    fn book_due(
        &self,
        state: &mut State,
        known: &mut Buckets,
        policy: &Policy,
        now: Timestamp,
        entries: &mut Vec<Entry>,
    ) {
        if state.due_at.is_none_or(|due| due > now) || state.as_of >= now {
            return;
        }
        let mut book = |state: &mut State, known: &mut Buckets, new: Vec<NewEntry>, at: Timestamp| {
            let cause = Cause { by: "schedule".to_owned(), adjust_key: LedgerKey::due(at), created: at };
            self.book(state, known, new, &cause, policy, at, entries);
        };
        for _ in 0..MAX_DUE_STEPS {
            let ends = known.lots.iter().filter(|one| one.expires() && one.left > Credits::ZERO);
            let end = ends.filter_map(|one| one.until).min().filter(|end| *end <= now);
            let Some(end) = end else { break };
            let expired = state.expired_at(known, end);
            book(state, known, expired, end);
        }
        book(state, known, Vec::new(), now);
    }

    /// The account after a change was committed.
    #[must_use]
    pub fn after(&self, change: &Change) -> Self {
        let mut recorded = self.recorded.clone();
        recorded.extend(change.entries.iter().map(|entry| (entry.key.clone(), entry.clone())));
        Self {
            user_id: self.user_id.clone(),
            version: self.version + 1,
            state: change.state.clone(),
            recorded,
        }
    }

    /// Spends credits under the app's idempotency key; `None` when too few are available.
    pub fn consume(
        &self,
        amount: Credits,
        key: LedgerKey,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Option<Change> {
        let now = self.state.time(now);
        let cause = Cause { by: "app".to_owned(), adjust_key: key.adjusted(), created: now };
        let due = self.evolve(Vec::new(), &cause, catalog, now).ok()?;
        let available = due.state.available(&catalog.policy, now);
        (available >= amount).then(|| self.spend(due, amount, key, &cause, catalog, now))
    }

    /// Makes the entries of one fact. The first new entry gets the whole change of the balance. A change
    /// without a new entry is booked under the cause's own key.
    fn entries(
        &self,
        state: &mut State,
        after: &Buckets,
        asked: Vec<NewEntry>,
        written: &[Entry],
        cause: &Cause,
        now: Timestamp,
    ) -> Vec<Entry> {
        let balance = after.balance();
        let mut left = balance.delta_from(state.booked);
        let balance_before = i64::try_from(state.booked.get()).unwrap_or(i64::MAX);
        state.booked = balance;
        state.as_of = now;
        let mut new: Vec<NewEntry> = Vec::new();
        for entry in asked {
            let known = self.recorded.contains_key(&entry.key)
                || written.iter().any(|other| other.key == entry.key)
                || new.iter().any(|other| other.key == entry.key);
            if !known {
                new.push(entry);
            }
        }
        // Entries that grant nothing come last, so that the other entries get the change of the balance.
        new.sort_by_key(|entry| (entry.delta.is_some(), entry.kind == EntryKind::NoGrant));
        let own: i64 = new.iter().filter_map(|entry| entry.delta).fold(0, i64::saturating_add);
        left = left.saturating_sub(own);
        let takes_the_rest = new.iter().any(|entry| entry.delta.is_none());
        if !takes_the_rest && left != 0 {
            new.insert(0, NewEntry::new(cause.adjust_key.clone(), EntryKind::Adjust, Credits::ZERO));
        }
        let mut entries = Vec::new();
        let mut running = balance_before;
        for entry in new {
            let delta = entry.delta.unwrap_or_else(|| std::mem::take(&mut left));
            running = running.saturating_add(delta);
            entries.push(Entry {
                previous: state.last_entry.replace(entry.key.clone()),
                key: entry.key,
                kind: entry.kind,
                delta,
                balance: Credits::new(u64::try_from(running).unwrap_or(0)),
                worth: entry.worth,
                shortfall: entry.shortfall,
                cause: cause.by.clone(),
                reason: None,
                at: entry.due.unwrap_or(now),
                created: entry.due.unwrap_or(cause.created),
                note: entry.note,
                skipped: entry.skipped,
                payment: entry.payment,
                filed_at: entry.filed_at,
                from: entry.from,
                given_back: Credits::ZERO,
                of: entry.of,
            });
        }
        entries
    }

    fn fold(
        &self,
        state: &mut State,
        fact: Fact,
        catalog: &Catalog,
        now: Timestamp,
        new: &mut Vec<NewEntry>,
    ) -> Result<(), Conflict> {
        match fact {
            Fact::Customer(customer) => {
                state.customers.entry(customer).or_insert(None);
            }
            Fact::CustomerDeleted(customer, at) => {
                let deleted = state.customers.entry(customer).or_insert(None);
                *deleted = Some(deleted.map_or(at, |known| known.min(at)));
            }
            Fact::Signup => {
                let granted = Credits::new(catalog.policy.signup_credits);
                let key = LedgerKey::signup();
                if state.signup.is_none() && !self.recorded.contains_key(&key) {
                    let days = catalog.policy.signup_expires_days;
                    let until = (days > 0).then(|| now.plus_days(days));
                    state.signup = Some(Signup { granted, spent: Credits::ZERO, since: now, until });
                }
                new.push(NewEntry::new(key, EntryKind::Signup, granted));
            }
            Fact::Snapshot(id, customer, snapshot) => {
                let trial = snapshot.status == crate::event::SubscriptionStatus::Trialing;
                if trial {
                    let this = (snapshot.created, id.clone());
                    state.first_trial = Some(match state.first_trial.take() {
                        Some(known) => known.min(this),
                        None => this,
                    });
                }
                let subscription = state.subscription_mut(&id);
                subscription.customer = subscription.customer.take().or(customer);
                subscription.fold_snapshot(snapshot, catalog.policy.free_credits > 0);
            }
            Fact::Status(id, customer, snapshot) => {
                let subscription = state.subscription_mut(&id);
                subscription.customer = subscription.customer.take().or(customer);
                subscription.fold_status(snapshot);
            }
            Fact::Invoice(invoice) => self.fold_invoice(state, *invoice, new)?,
            Fact::Purchase(purchases, payment) => {
                let resets = state.resets(&catalog.policy, now);
                self.fold_purchases(state, purchases, payment, &resets, new)?;
            }
            Fact::Product(bought) => {
                let documents = [
                    bought.session.as_ref().map(LedgerKey::session),
                    bought.invoice.as_ref().map(LedgerKey::invoice),
                ];
                // A document that was applied by an earlier catalog sells nothing else by a later one.
                let document = documents.into_iter().flatten().next();
                let is_news = document.is_none_or(|key| {
                    let is_of_it = |known: &BoughtProduct| known.is_of(&key) && known.name == bought.name;
                    !self.recorded.contains_key(&key) || state.products.iter().any(is_of_it)
                });
                if is_news {
                    state.fold_product(*bought);
                }
            }
            Fact::PaymentOfInvoice(invoice, payment) => state.tie(&invoice, &payment),
            Fact::Reversed(reversed) => self.reverse(state, reversed, catalog, now, new),
            Fact::Won(document, payment, disputes) => state.set_disputes(&document, &payment, disputes),
            Fact::Recorded(key, kind, payment) => {
                new.push(NewEntry { payment, ..NewEntry::new(key, kind, Credits::ZERO) });
            }
            Fact::Paid(at) => {
                state.first_paid_at = Some(state.first_paid_at.map_or(at, |known| known.min(at)));
            }
            Fact::PaymentFailed(at) => state.payment_failed_at = state.payment_failed_at.max(Some(at)),
            Fact::Clock(at) => state.clock = state.clock.max(Some(at)),
            Fact::ActionRequired(action) => state.fold_action(action),
            Fact::ActionDone(invoice) => state.actions.retain(|action| action.invoice != invoice),
            Fact::Erased(at) => state.erased_at = Some(state.erased_at.map_or(at, |known| known.min(at))),
            Fact::Imported(balance) => new.push(state.fold_import(*balance)?),
        }
        Ok(())
    }

    fn fold_invoice(
        &self,
        state: &mut State,
        invoice: PaidInvoice,
        new: &mut Vec<NewEntry>,
    ) -> Result<(), Conflict> {
        let key = LedgerKey::invoice(&invoice.id);
        let worth = invoice
            .lines
            .iter()
            .map(|(_, line, _)| line.terms.worth(line.quantity))
            .max()
            .unwrap_or_default();
        // A recorded invoice that the state does not have was dropped from it, and is not added again.
        let known = state.subscriptions.get(&invoice.subscription);
        let is_kept = known.is_some_and(|known| known.names_document(&key));
        if !self.recorded.contains_key(&key) || is_kept {
            let subscription = state.subscription_mut(&invoice.subscription);
            subscription.customer = subscription.customer.take().or(invoice.customer);
            let known = subscription.names_document(&key);
            for (item, line, named_at) in invoice.lines {
                if line.terms.is_unknown() {
                    if !known {
                        subscription.keep_unpriced(item, line, named_at);
                    }
                    continue;
                }
                let says = format!("{} × {}", line.price, line.quantity);
                subscription.fold_line(item.as_ref(), line, named_at, known).map_err(|known| Conflict {
                    key: key.clone(),
                    known: format!("{} × {}", known.price, known.quantity),
                    says,
                })?;
            }
        }
        new.push(NewEntry { payment: Some(invoice.payment), ..NewEntry::new(key, invoice.kind, worth) });
        Ok(())
    }

    /// Adds what one document sold once: packs, one for each number of days after which they expire, or a
    /// plan for life. If a session and an invoice report the same purchase, it counts once: the session
    /// grants, and what was spent of the invoice's credits counts as spent of the session's. The catalog may
    /// have changed between the two, so they may name other credits, other expiries, or a pack and a plan.
    fn fold_purchases(
        &self,
        state: &mut State,
        purchases: Vec<Purchase>,
        payment: Option<Payment>,
        resets: &BTreeSet<Timestamp>,
        new: &mut Vec<NewEntry>,
    ) -> Result<(), Conflict> {
        let Some(first) = purchases.first().cloned() else { return Ok(()) };
        let Some(key) = first.key() else { return Ok(()) };
        let lifetime = first.plan.is_some();
        let granted: Credits = purchases.iter().map(|purchase| purchase.granted).sum();
        let own: Vec<Timestamp> = state.starts_billed_by(first.invoice.as_ref()).collect();
        let later = resets.iter().copied().filter(|reset| *reset > first.at && !own.contains(reset));
        let outlives: BTreeSet<Timestamp> = later.rev().take(MAX_OUTLIVED).collect();
        let filed_at = outlives.last().copied().unwrap_or(first.at);
        let kind = if lifetime { EntryKind::Subscription } else { EntryKind::AddOn };
        let mut entry =
            NewEntry { payment, filed_at: Some(filed_at), ..NewEntry::new(key.clone(), kind, granted) };
        let (all, others) = if lifetime {
            (&mut state.lifetimes, &mut state.packs)
        } else {
            (&mut state.packs, &mut state.lifetimes)
        };
        let is_known = |known: &Purchase| known.key().as_ref() == Some(&key);
        let is_other = |known: &Purchase| !is_known(known) && known.is_one_with(&first);
        let has_other = all.iter().chain(others.iter()).any(is_other);
        let was_sold_by = |invoice: &InvoiceId| {
            let known = self.recorded.get(&LedgerKey::invoice(invoice));
            known.is_some_and(|known| known.kind == EntryKind::AddOn)
        };
        if all.iter().any(is_known) {
            let lots = || all.iter().filter(|known| is_known(known));
            let known: Credits = lots().map(|known| known.granted).sum();
            let is_same = lots().any(|known| known.joined || known.sold == first.sold);
            if known != granted && !is_same {
                return Err(Conflict { key, known: known.to_string(), says: granted.to_string() });
            }
            all.iter_mut().filter(|known| is_known(known)).for_each(|known| known.take_ids(&first));
        } else if self.recorded.contains_key(&key) {
            // The account has dropped it, or applied it as something else by an earlier catalog.
        } else if !lifetime && !has_other && first.invoice.as_ref().is_some_and(was_sold_by) {
            // The account has dropped the packs that its invoice granted.
            entry.filed_at = Some(first.at);
            entry.note = Some(Note::OnePurchase);
        } else if all.iter().chain(others.iter()).any(|known| is_other(known) && known.session.is_some())
            || (first.session.is_none() && all.iter().chain(others.iter()).any(is_other))
        {
            let of_it = all.iter_mut().chain(others.iter_mut()).filter(|known| is_other(known));
            of_it.for_each(|known| known.take_ids(&first));
            entry.note = Some(Note::OnePurchase);
        } else {
            // If the invoice granted before its session arrived, the session replaces it.
            let of_invoice: Vec<Purchase> = all
                .extract_if(.., |known| is_other(known))
                .chain(others.extract_if(.., |known| is_other(known)))
                .collect();
            // What the invoice granted arrived before the session.
            let arrived = of_invoice.first().map_or(outlives, |known| known.outlives.clone());
            let outlives = if lifetime { BTreeSet::new() } else { arrived };
            let lot = |purchase: Purchase| Purchase { outlives: outlives.clone(), ..purchase };
            let mut lots: Vec<Purchase> = purchases.into_iter().map(lot).collect();
            lots::replace(&of_invoice, lots.iter_mut().collect());
            all.extend(lots);
        }
        new.push(entry);
        Ok(())
    }

    /// Applies the refunded and disputed amount of a payment. Nothing changes when the period or purchase of
    /// the document is not in the account.
    fn reverse(
        &self,
        state: &mut State,
        reversed: Reversed,
        catalog: &Catalog,
        now: Timestamp,
        new: &mut Vec<NewEntry>,
    ) {
        let Reversed { document, payment, amount, steps, disputed, disputes, key, kind } = reversed;
        let policy = &catalog.policy;
        state.dispute_products(&document, disputed);
        state.settle(policy, now);
        if !state.knows(&document) {
            new.push(self.reversal_of_the_past(state, &document, amount, key, kind));
            return;
        }
        let before = state.buckets(policy, now);
        state.set_disputes(&document, &payment, disputes);
        state.refunded_since.insert(payment.clone(), steps);
        let known = state.refunds.get(&document).and_then(|paid| paid.get(&payment)).copied();
        state.refunds.entry(document.clone()).or_default().insert(payment.clone(), amount);
        // A session and an invoice of one purchase share the payment, and so its refunds.
        for paid in state.refunds.values_mut() {
            if amount == 0 {
                paid.remove(&payment);
            } else if let Some(other) = paid.get_mut(&payment) {
                *other = amount;
            }
        }
        state.refunds.retain(|_, paid| !paid.is_empty());
        let after = state.buckets(policy, now);
        let other_documents = {
            let mut without = state.clone();
            without.refunds.remove(&document);
            without.buckets(policy, now).lost
        };
        let moved = before.balance().minus(after.balance());
        let due = after.lost.minus(before.lost);
        let shortfall = due.minus(moved);
        let is_news = known.unwrap_or(0) != amount;
        let note = if shortfall > Credits::ZERO {
            Some(Note::Shortfall)
        } else {
            (is_news && due == Credits::ZERO && !after.counts(&document, state)).then_some(Note::Superseded)
        };
        let worth = after.lost.minus(other_documents);
        new.push(NewEntry { shortfall, note, ..NewEntry::new(key, kind, worth) });
    }

    /// The entry for a refund or dispute of a document that the state does not keep any more: its period is
    /// over, or its credits were spent.
    fn reversal_of_the_past(
        &self,
        state: &State,
        document: &LedgerKey,
        amount: i64,
        key: LedgerKey,
        kind: EntryKind,
    ) -> NewEntry {
        let mut entry = NewEntry::new(key, kind, Credits::ZERO);
        let spent = |entry: &&Entry| entry.kind == EntryKind::AddOn && entry.filed_at >= state.reset_at;
        match self.recorded.get(document).filter(spent) {
            Some(pack) => {
                let total = pack.payment.as_ref().map_or(0, |payment| payment.amount);
                entry.worth = pack.worth.share(amount, total);
                entry.shortfall = entry.worth;
                entry.note = Some(Note::Shortfall);
            }
            None => entry.note = Some(Note::Superseded),
        }
        entry
    }
}

/// Adds the entries of what the last fact, or the time, has caused: plan changes, trials, refills, credits
/// carried over, and lines that count later than their invoice was recorded.
fn name_derived(new: &mut Vec<NewEntry>, before: &Buckets, after: &Buckets) {
    for (key, derived) in &after.derived {
        if before.derived.contains_key(key) {
            continue;
        }
        // While an invoice is recorded, its own key is used for the periods that it opens.
        let invoice = key.invoice_of_item();
        let recorded = |invoice: &LedgerKey| {
            // Until a snapshot shows the item of a line, the line is kept under a provisional item.
            let provisional = format!("{invoice}#{PROVISIONAL}");
            new.iter().any(|entry| entry.key == *invoice)
                || before.derived.keys().any(|known| known.as_str().starts_with(&provisional))
        };
        if invoice.as_ref().is_some_and(recorded) {
            continue;
        }
        let entry =
            NewEntry { due: derived.since, ..NewEntry::new(key.clone(), derived.kind, derived.worth) };
        new.push(match derived.kind {
            EntryKind::Rollover => NewEntry { delta: Some(after.carried_over(key)), ..entry },
            EntryKind::Refill | EntryKind::FreeRefill => {
                NewEntry { skipped: skipped(key, derived, before), ..entry }
            }
            EntryKind::Signup
            | EntryKind::Subscription
            | EntryKind::Trial
            | EntryKind::Renewal
            | EntryKind::PlanChange
            | EntryKind::AddOn
            | EntryKind::Order
            | EntryKind::Refund
            | EntryKind::Dispute
            | EntryKind::Spend
            | EntryKind::Release
            | EntryKind::GiveBack
            | EntryKind::Product
            | EntryKind::Fix
            | EntryKind::Import
            | EntryKind::Adjust
            | EntryKind::NoGrant
            | EntryKind::Expire => entry,
        });
    }
    // If a later month has begun, its refill explains the change, not the invoice of the first month.
    new.sort_by_key(|entry| entry.kind != EntryKind::Refill);
}

/// The number of refills of the same period that fell due between the last booked one and this one.
fn skipped(key: &LedgerKey, derived: &Derived, before: &Buckets) -> u32 {
    let series = |key: &LedgerKey| key.as_str().rsplit_once('#').map(|(series, _)| series.to_owned());
    let known =
        before.derived.iter().filter(|(other, one)| one.kind == derived.kind && series(other) == series(key));
    let known = known.map(|(_, one)| one.before).max().unwrap_or(0);
    u32::try_from(derived.before.saturating_sub(known).saturating_sub(1)).unwrap_or(0)
}

impl EntryKind {
    /// Whether an entry of this kind is superseded when its document does not count.
    fn grants(self) -> bool {
        match self {
            Self::Signup | Self::Subscription | Self::Trial | Self::Renewal | Self::PlanChange => true,
            Self::Refill
            | Self::Rollover
            | Self::FreeRefill
            | Self::Expire
            | Self::AddOn
            | Self::Order
            | Self::Product
            | Self::Refund
            | Self::Dispute
            | Self::Spend
            | Self::Release
            | Self::GiveBack
            | Self::Fix
            | Self::Import
            | Self::Adjust
            | Self::NoGrant => false,
        }
    }
}

/// Whether an entry's document counts in these buckets.
fn counts(state: &State, buckets: &Buckets, key: &LedgerKey) -> bool {
    if *key == LedgerKey::signup() {
        return buckets.paid_since.is_none();
    }
    buckets.derived.contains_key(key) || state.waits(key) || buckets.counts(key, state)
}
