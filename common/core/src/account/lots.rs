//! The lots that credits are spent from, and the facts about those that belong to no subscription item: signup
//! credits, packs, grants by hand, lifetime plans, holds.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::snapshot::{Terms, is_false};
use crate::credits::Credits;
use crate::ids::{InvoiceId, ItemId, SessionId, SubscriptionId};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

/// The credits that a spend is taken from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lot {
    /// The bucket of a subscription item.
    Item(SubscriptionId, ItemId),
    /// The credits that an item's slice with this start took over from the one before it.
    Carry(SubscriptionId, ItemId, Timestamp),
    /// A plan that was sold for life.
    Lifetime(usize),
    /// The signup credits.
    Signup,
    /// The imported balance, less the shares of subscription items.
    Opening,
    /// A grant by hand.
    Grant(usize),
    /// A pack.
    Pack(usize),
}

impl Lot {
    /// The bucket that it belongs to.
    pub fn bucket(&self) -> String {
        match self {
            Self::Item(_, item) => item.to_string(),
            Self::Carry(_, item, _) => format!("rollover {item}"),
            Self::Lifetime(_) => "lifetime".to_owned(),
            Self::Signup => "signup".to_owned(),
            Self::Opening | Self::Grant(_) => "grant".to_owned(),
            Self::Pack(_) => "addon".to_owned(),
        }
    }
}

/// What a lot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LotBalance {
    /// The lot.
    pub lot: Lot,
    /// What was granted, less what refunds and disputes took.
    pub granted: Credits,
    /// What is left to spend.
    pub left: Credits,
    /// When it was granted; `None` if unknown.
    pub since: Option<Timestamp>,
    /// Its end, excluded. An item's lot ends with its slice, when the next payment replaces it.
    pub until: Option<Timestamp>,
    /// Whether nothing was paid for it.
    pub free: bool,
}

impl LotBalance {
    /// Whether time alone ends it.
    pub(super) fn expires(&self) -> bool {
        !matches!(self.lot, Lot::Item(..))
    }
}

/// A hold, as the account keeps it while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The reserved credits.
    pub amount: Credits,
    /// Its end, excluded.
    pub until: Timestamp,
}

/// The bucket `signup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signup {
    /// What was granted.
    pub granted: Credits,
    /// The credits spent of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spent: Credits,
    /// When it was granted. Free credits are refilled by calendar months from then on.
    #[serde(default)]
    pub since: Timestamp,
    /// Its end, excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Free credits of one month, which replace what the bucket `signup` held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeRefill {
    /// The number of the month after the signup, from 1.
    pub month: u32,
    /// What was granted.
    pub granted: Credits,
    /// The credits spent of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spent: Credits,
}

/// What one document sold once: packs of credits, or a plan for life.
///
/// A session and an invoice of one purchase are one `Purchase`; the session grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purchase {
    /// The session that sold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The invoice that sold it, or that the session made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice: Option<InvoiceId>,
    /// The payment (`pi_…` or `ch_…`), if a document names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<String>,
    /// When it was bought.
    pub at: Timestamp,
    /// Starts of later periods that end packs, and had begun when it arrived. It counts from the newest of
    /// them that still counts.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub outlives: BTreeSet<Timestamp>,
    /// Later starts that its own invoice bills. A period that the invoice opens there does not end it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub billed_with: BTreeSet<Timestamp>,
    /// Credits sold.
    pub granted: Credits,
    /// The plan that was sold for life; absent for packs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Terms>,
    /// Credits spent of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spent: Credits,
    /// Days after the purchase at which its credits end, by the catalog; 0: never.
    #[serde(default, skip_serializing_if = "never")]
    pub expires_days: i64,
    /// The end of its credits, excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Digest of the prices or names that the document sold, and their quantities. The credits also depend on
    /// the catalog, which may have changed since.
    #[serde(default)]
    pub sold: u32,
    /// The document's total in minor units.
    pub total: i64,
    /// Whether it also holds what was left of older purchases.
    #[serde(default, skip_serializing_if = "is_false")]
    pub joined: bool,
    /// What it holds of older purchases, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<OlderLot>,
}

/// What was left of a lot when it was joined with a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderLot {
    /// When it was bought or granted.
    pub at: Timestamp,
    /// The credits that were not spent of it. What refunds take of them is not subtracted.
    pub left: Credits,
    /// What sold it; absent for a grant by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<Sale>,
}

/// The documents that sold a lot, for refunds after the lot was joined with a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The invoice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice: Option<InvoiceId>,
    /// The credits sold.
    pub granted: Credits,
    /// The document's total in minor units.
    pub total: i64,
}

impl Sale {
    /// Whether a document sold the lot.
    pub fn is_of(&self, document: &LedgerKey) -> bool {
        self.session.as_ref().is_some_and(|session| document.is_session(session))
            || self.invoice.as_ref().is_some_and(|invoice| document.is_invoice(invoice))
    }
}

/// The older lots that a joined lot keeps apart. Beyond it, the two with the nearest times count from the
/// later time.
const MAX_OLDER: usize = 20;

/// What is left of lots that are spent as one, oldest first: the older ones count as spent first. `lost` is
/// what refunds take of a lot.
fn parts_left(
    older: &[OlderLot],
    own: OlderLot,
    mut spent: Credits,
    lost: impl Fn(&OlderLot) -> Credits,
) -> Vec<OlderLot> {
    let mut parts = older.to_vec();
    parts.push(own);
    parts.sort_by_key(|one| one.at);
    for part in &mut parts {
        let taken = spent.min(part.left.minus(lost(part)));
        spent = spent.minus(taken);
        part.left = part.left.minus(taken);
    }
    parts.retain(|part| part.left > Credits::ZERO);
    parts
}

/// Adds older lots, at most up to [`MAX_OLDER`].
fn add_older(older: &mut Vec<OlderLot>, parts: Vec<OlderLot>) {
    older.extend(parts);
    older.sort_by_key(|one| one.at);
    while older.len() > MAX_OLDER {
        let gap = |pair: &[OlderLot]| pair[1].at.seconds_since(pair[0].at);
        let pairs = older.windows(2).enumerate();
        let place = pairs.min_by_key(|(_, pair)| gap(pair)).map_or(0, |(place, _)| place);
        let earlier = older.remove(place);
        if let Some(later) = older.get_mut(place) {
            later.left = later.left.plus(earlier.left);
        }
    }
}

impl Purchase {
    /// Whether its credits have ended.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// The ledger key of the document that grants.
    pub fn key(&self) -> Option<LedgerKey> {
        let session = self.session.as_ref().map(LedgerKey::session);
        session.or_else(|| self.invoice.as_ref().map(LedgerKey::invoice))
    }

    /// Whether two documents sold one purchase: they name the same session, invoice or payment.
    pub fn is_one_with(&self, other: &Self) -> bool {
        let same = |a: Option<&str>, b: Option<&str>| a.is_some() && a == b;
        same(self.session.as_ref().map(AsRef::as_ref), other.session.as_ref().map(AsRef::as_ref))
            || same(self.invoice.as_ref().map(AsRef::as_ref), other.invoice.as_ref().map(AsRef::as_ref))
            || same(self.payment.as_deref(), other.payment.as_deref())
    }

    /// The time from which a pack counts, if periods that end packs begin at `resets`: an older period does
    /// not end it.
    pub(super) fn counts_from(&self, resets: &BTreeSet<Timestamp>) -> Timestamp {
        self.outlives.intersection(resets).copied().fold(self.at, Timestamp::max)
    }

    /// Whether one of the periods that begin at `resets` ended it.
    pub(super) fn is_ended_by(&self, resets: &BTreeSet<Timestamp>) -> bool {
        let from = self.counts_from(resets);
        resets.iter().rev().take_while(|reset| **reset > from).any(|reset| !self.billed_with.contains(reset))
    }

    /// What it granted that was bought before a time: its own credits, and those of older purchases.
    pub(super) fn granted_before(&self, at: Timestamp) -> Credits {
        let older: Credits = self.older.iter().map(|one| one.left).sum();
        let own = if self.at < at { self.granted.minus(older) } else { Credits::ZERO };
        self.older.iter().filter(|one| one.at < at).map(|one| one.left).sum::<Credits>().plus(own)
    }

    /// Its own part, without older purchases.
    pub(super) fn own(&self) -> OlderLot {
        let older: Credits = self.older.iter().map(|one| one.left).sum();
        let (session, invoice) = (self.session.clone(), self.invoice.clone());
        let own = self.granted.minus(older);
        let sale = Some(Sale { session, invoice, granted: own, total: self.total });
        OlderLot { at: self.at, left: own, sale }
    }

    /// What is left of it and of the older purchases in it. The credits that were bought first count as spent
    /// first.
    pub(super) fn parts_left(&self, lost: impl Fn(&OlderLot) -> Credits) -> Vec<OlderLot> {
        parts_left(&self.older, self.own(), self.spent, lost)
    }

    /// Adds the parts of another purchase, which ends at `until`.
    pub(super) fn join(&mut self, until: Option<Timestamp>, parts: Vec<OlderLot>) {
        self.until = later_end(self.until, until);
        self.hold_older(parts);
    }

    /// Adds credits of older purchases.
    fn hold_older(&mut self, parts: Vec<OlderLot>) {
        self.granted = self.granted.plus(parts.iter().map(|part| part.left).sum());
        self.joined = true;
        add_older(&mut self.older, parts);
    }

    /// Gives credits back to an older purchase that this document sold; `false` if it holds none.
    pub(super) fn give_back_to_older(&mut self, document: &LedgerKey, credits: Credits) -> bool {
        let is_it = |part: &&mut OlderLot| part.sale.as_ref().is_some_and(|sale| sale.is_of(document));
        let Some(part) = self.older.iter_mut().find(is_it) else { return false };
        part.left = part.left.plus(credits);
        self.granted = self.granted.plus(credits);
        true
    }

    /// Drops what was bought before a time. `lost` is what refunds take of a part.
    pub(super) fn drop_before(&mut self, at: Timestamp, lost: impl Fn(&OlderLot) -> Credits) {
        let own = self.own();
        if own.at < at && self.older.iter().all(|part| part.at < at) {
            self.spent = self.spent.max(self.granted);
            return;
        }
        let mut gone: Vec<OlderLot> = self.older.extract_if(.., |part| part.at < at).collect();
        gone.extend(Some(own).filter(|own| own.at < at));
        for part in gone {
            self.spent = self.spent.minus(part.left.minus(lost(&part)));
            self.granted = self.granted.minus(part.left);
        }
    }

    /// Takes over the invoice and the payment that another document of the same purchase names.
    pub(super) fn take_ids(&mut self, other: &Self) {
        self.invoice = self.invoice.take().or_else(|| other.invoice.clone());
        self.payment = self.payment.take().or_else(|| other.payment.clone());
    }

    /// Whether a document sold this purchase, or an older one in it.
    pub fn holds(&self, document: &LedgerKey) -> bool {
        let is_it = |part: &OlderLot| part.sale.as_ref().is_some_and(|sale| sale.is_of(document));
        self.is_of(document) || self.older.iter().any(is_it)
    }

    /// Whether a document sold this purchase.
    pub fn is_of(&self, document: &LedgerKey) -> bool {
        self.session.as_ref().is_some_and(|session| document.is_session(session))
            || self.invoice.as_ref().is_some_and(|invoice| document.is_invoice(invoice))
    }
}

/// Replaces the lots of an invoice by the lots of its session: what was spent of the former counts as spent
/// of the latter, first of the lot that expires after the same number of days.
pub(super) fn replace(of_invoice: &[Purchase], mut of_session: Vec<&mut Purchase>) {
    let mut rest = Credits::ZERO;
    for old in of_invoice {
        of_session.iter_mut().for_each(|lot| lot.take_ids(old));
        let mut spent = old.spent;
        let same = of_session.iter().position(|lot| lot.expires_days == old.expires_days);
        if let Some(lot) = of_session.get_mut(same.unwrap_or(0)) {
            if !old.older.is_empty() {
                lot.hold_older(old.older.clone());
            }
            let part = if same.is_some() { spent.min(lot.granted.minus(lot.spent)) } else { Credits::ZERO };
            lot.spent = lot.spent.plus(part);
            spent = spent.minus(part);
        }
        rest = rest.plus(spent);
    }
    let last = of_session.len().saturating_sub(1);
    for (place, lot) in of_session.iter_mut().enumerate() {
        let part = if place == last { rest } else { rest.min(lot.granted.minus(lot.spent)) };
        lot.spent = lot.spent.plus(part);
        rest = rest.minus(part);
    }
}

/// Credits given by hand: the bucket `grant`, which no renewal ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The entry that granted it.
    pub key: LedgerKey,
    /// What was granted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub granted: Credits,
    /// What is left of it.
    pub left: Credits,
    /// When it was granted.
    #[serde(default)]
    pub since: Timestamp,
    /// Its end, excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// What it holds of older grants, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<OlderLot>,
}

impl Grant {
    /// A grant of which nothing is spent.
    pub(super) fn new(key: LedgerKey, credits: Credits, since: Timestamp, until: Option<Timestamp>) -> Self {
        Self { key, granted: credits, left: credits, since, until, older: Vec::new() }
    }

    fn own(&self) -> OlderLot {
        let older: Credits = self.older.iter().map(|one| one.left).sum();
        OlderLot { at: self.since, left: self.granted.minus(older), sale: None }
    }

    fn parts_left(&self) -> Vec<OlderLot> {
        parts_left(&self.older, self.own(), self.granted.minus(self.left), |_| Credits::ZERO)
    }

    /// Adds what is left of another grant.
    pub(super) fn join(&mut self, other: &Self) {
        self.granted = self.granted.plus(other.left);
        self.left = self.left.plus(other.left);
        self.until = later_end(self.until, other.until);
        add_older(&mut self.older, other.parts_left());
    }

    /// What was spent of it, and how much of it was granted before a time.
    pub(super) fn spent_and_granted_before(&self, at: Timestamp) -> (Credits, Credits) {
        let parts = self.older.iter().cloned().chain([self.own()]);
        let before = parts.filter(|part| part.at < at).map(|part| part.left).sum();
        (self.granted.minus(self.left), before)
    }

    /// Drops what was granted before a time.
    pub(super) fn drop_before(&mut self, at: Timestamp) {
        if self.since >= at && self.older.iter().all(|one| one.at >= at) {
            return;
        }
        let mut parts = self.parts_left();
        parts.retain(|part| part.at >= at);
        self.left = parts.iter().map(|part| part.left).sum();
        self.granted = self.left;
        if let Some(newest) = parts.pop() {
            self.since = newest.at;
        }
        self.older = parts;
    }
}

/// A plan that an operator gives for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complimentary {
    /// The entry that records it.
    pub key: LedgerKey,
    /// The plan's name.
    pub plan: String,
    /// Its start.
    pub from: Timestamp,
    /// Its end, excluded; absent without an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// The later of two ends. `None` means no end, which is later than every end.
pub(super) fn later_end(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.zip(other).map(|(one, other)| one.max(other))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn never(expires_days: &i64) -> bool {
    *expires_days == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_zero(credits: &Credits) -> bool {
    *credits == Credits::ZERO
}

#[cfg(test)]
mod tests;
