//! The ledger: one entry for each document or action that moves credits or could have moved them. Its key
//! makes sure that it is booked once.
//!
//! **Invariant:** a key names the document that grants or takes credits, never the time of processing. The
//! store writes an entry only if no entry with its key exists.
//!
//! **Invariant:** after every commit, the sum of the deltas of an account's entries is its balance.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::credits::Credits;
use super::ids::{
    ChargeId, DisputeId, EventId, HoldId, InvoiceId, ItemId, PaymentIntentId, RefundId, SessionId,
    SubscriptionId,
};
use super::timestamp::Timestamp;

/// The key of an entry: `signup`, `invoice#in_…`, `invoice#in_…#si_…`, `trial#sub_…#si_…`,
/// `slice#in_…#si_…#<month>`, `rollover#in_…#si_…#<month>`, `free#<month>`, `expire#<key of a grant>`,
/// `plan#si_…#<period start>#<plan>#<n>`, `session#cs_…`, `refund#…`, `dispute#dp_…#<status>`,
/// `consume#<idempotency key>`, `hold#<hold id>`, `unspend#<spend>#<idempotency key>`, `fix#<request id>`,
/// `comp#<request id>`, `import#<batch>`, `adjust#evt_…`, `adjust#<key of a document>`, `due#<unix s>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(from = "String")]
pub struct LedgerKey(Arc<str>);

impl LedgerKey {
    /// The signup grant; one for each user.
    pub fn signup() -> Self {
        Self("signup".into())
    }

    /// A paid invoice, or the zero invoice of a trial.
    pub fn invoice(invoice: &InvoiceId) -> Self {
        Self(format!("invoice#{invoice}").into())
    }

    /// A line of a paid invoice that is booked after the invoice.
    pub fn invoice_item(invoice: &InvoiceId, item: &ItemId) -> Self {
        Self(format!("invoice#{invoice}#{item}").into())
    }

    /// A month of a paid period, counted from 1; the invoice itself grants the first.
    pub fn slice(invoice: &InvoiceId, item: &ItemId, month: u32) -> Self {
        Self(format!("slice#{invoice}#{item}#{month}").into())
    }

    /// What an item's period, or a month of it, took over from the one before.
    pub fn rollover(invoice: &InvoiceId, item: &ItemId, month: u32) -> Self {
        match month {
            0 => Self(format!("rollover#{invoice}#{item}").into()),
            month => Self(format!("rollover#{invoice}#{item}#{month}").into()),
        }
    }

    /// The free credits of a month after the signup, counted from 1.
    pub fn free(month: u32) -> Self {
        Self(format!("free#{month}").into())
    }

    /// The month of a free refill.
    pub fn free_month(&self) -> Option<u32> {
        self.0.strip_prefix("free#")?.parse().ok()
    }

    /// The end of the credits that the entry with this key granted.
    #[must_use]
    pub fn expired(&self) -> Self {
        Self(format!("expire#{}", self.0).into())
    }

    /// The trial of a subscription item; one for each item.
    pub fn trial(subscription: &SubscriptionId, item: &ItemId) -> Self {
        Self(format!("trial#{subscription}#{item}").into())
    }

    /// A change to a plan within a billing period. `change` is `<plan>#<n>` for the n-th change.
    pub fn plan(item: &ItemId, period_start: Timestamp, change: &str) -> Self {
        Self(format!("plan#{item}#{}#{change}", period_start.unix()).into())
    }

    /// A paid one-time session: a pack or an order.
    pub fn session(session: &SessionId) -> Self {
        Self(format!("session#{session}").into())
    }

    /// The refunds of a charge up to `cumulative` minor units.
    pub fn refund_of_charge(charge: &ChargeId, cumulative: i64) -> Self {
        Self(format!("refund#{charge}#{cumulative}").into())
    }

    /// The amount that was already refunded or disputed when a payment was linked to its document.
    pub fn refund_of_payment(payment: &str, amount: i64) -> Self {
        Self(format!("refund#{payment}#{amount}").into())
    }

    /// A refund that reached a status.
    pub fn refund(refund: &RefundId, status: &str) -> Self {
        Self(format!("refund#{refund}#{status}").into())
    }

    /// A dispute that reached a status.
    pub fn dispute(dispute: &DisputeId, status: &str) -> Self {
        Self(format!("dispute#{dispute}#{status}").into())
    }

    /// A spend by the app, by the app's idempotency key.
    pub fn consume(idempotency_key: &str) -> Self {
        Self(format!("consume#{idempotency_key}").into())
    }

    /// A hold that was committed or released.
    pub fn hold(hold: &HoldId) -> Self {
        Self(format!("hold#{hold}").into())
    }

    /// A part of a spend that the app gives back. `spend` is the idempotency key of a consume, or a hold's
    /// id.
    pub fn unspend(spend: &str, idempotency_key: &str) -> Self {
        Self(format!("unspend#{spend}#{idempotency_key}").into())
    }

    /// In a spend's entry: the subscription item, the start of its slice and the plan that the credits were
    /// taken from. No entry has such a key.
    pub fn place_in_item(subscription: &SubscriptionId, item: &ItemId, start: Timestamp, plan: &str) -> Self {
        Self(format!("item#{subscription}#{item}#{}#{plan}", start.unix()).into())
    }

    /// The parts of [`LedgerKey::place_in_item`].
    pub fn place_in_item_parts(&self) -> Option<(&str, &str, Timestamp, &str)> {
        let mut parts = self.0.strip_prefix("item#")?.splitn(4, '#');
        let (subscription, item) = (parts.next()?, parts.next()?);
        let start = parts.next()?.parse().ok()?;
        Some((subscription, item, Timestamp::from_unix(start), parts.next()?))
    }

    /// In a spend's entry: the plan for life that this document sold. No entry has such a key.
    #[must_use]
    pub fn place_in_lifetimes(&self) -> Self {
        Self(format!("lifetime#{}", self.0).into())
    }

    /// Whether it is the key of credits that an operator gave.
    pub fn is_grant(&self) -> bool {
        self.0.starts_with("fix#") || self.0.starts_with("comp#")
    }

    /// A repair by an operator or by reconciliation.
    pub fn fix(request: &str) -> Self {
        Self(format!("fix#{request}").into())
    }

    /// A complimentary plan that an operator gives for a limited time.
    pub fn complimentary(request: &str) -> Self {
        Self(format!("comp#{request}").into())
    }

    /// The opening balance of a user in this batch of an import.
    pub fn import(batch: &str) -> Self {
        Self(format!("import#{batch}").into())
    }

    /// A correction that is not a grant: a return to a plan that was already granted in the period, or the
    /// effect of a late event. A grant never has such a key.
    pub fn adjust(event: &EventId) -> Self {
        Self(format!("adjust#{event}").into())
    }

    /// A booking by the schedule at its due time.
    pub fn due(now: Timestamp) -> Self {
        Self(format!("due#{}", now.unix()).into())
    }

    /// The key of a correction that belongs to this document.
    pub fn adjusted(&self) -> Self {
        Self(format!("adjust#{}", self.0).into())
    }

    /// The key of the invoice, if this is the key of one of its lines.
    pub fn invoice_of_item(&self) -> Option<Self> {
        let (invoice, _item) = self.0.strip_prefix("invoice#")?.split_once('#')?;
        Some(Self(format!("invoice#{invoice}").into()))
    }

    /// The invoice, if this is the key of an invoice.
    pub fn invoice_id(&self) -> Option<InvoiceId> {
        self.0.strip_prefix("invoice#").and_then(|id| InvoiceId::new(id).ok())
    }

    /// The session, if this is the key of a session.
    pub fn session_id(&self) -> Option<SessionId> {
        self.0.strip_prefix("session#").and_then(|id| SessionId::new(id).ok())
    }

    /// Whether it is the key of this invoice.
    pub fn is_invoice(&self, invoice: &InvoiceId) -> bool {
        self.0.strip_prefix("invoice#") == Some(invoice.as_str())
    }

    /// Whether it is the key of this session.
    pub fn is_session(&self, session: &SessionId) -> bool {
        self.0.strip_prefix("session#") == Some(session.as_str())
    }

    /// The text, as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a stored key, or a key that a person typed. Every text is valid.
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for LedgerKey {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Serialize for LedgerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Display for LedgerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// The app created the user.
    Signup,
    /// A new subscription was paid.
    Subscription,
    /// A trial began.
    Trial,
    /// A subscription renewed.
    Renewal,
    /// The plan changed within a period.
    PlanChange,
    /// A month of a paid period began.
    Refill,
    /// A period or a month took over unspent credits of the one before.
    Rollover,
    /// A user without a plan got the free credits of a month.
    FreeRefill,
    /// Credits reached their end.
    Expire,
    /// A pack of credits was bought.
    AddOn,
    /// A one-time order was paid. It grants no credits.
    Order,
    /// A product was bought that has no credits.
    Product,
    /// Money was refunded.
    Refund,
    /// A dispute was opened, lost or won.
    Dispute,
    /// The app spent credits, or committed a hold.
    Spend,
    /// The app released a hold. It moves no credits; its worth is what was held.
    Release,
    /// The app gave a spend back.
    GiveBack,
    /// An operator or reconciliation repaired the account.
    Fix,
    /// An import set the opening balance.
    Import,
    /// See [`LedgerKey::adjust`].
    Adjust,
    /// A paid invoice that grants no credits, such as a proration.
    NoGrant,
}

/// Why an entry moved fewer credits than the document is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// A newer fact replaced it. The entry is recorded and changes nothing.
    Superseded,
    /// A session and an invoice belong to the same purchase. The session grants it.
    OnePurchase,
    /// The credits were granted before the opening balance of an import, which includes them.
    Imported,
    /// Fewer credits could be taken back than were due, because some were spent or had ended: see
    /// [`Entry::shortfall`].
    Shortfall,
    /// Credits of a spend were given back, and a lot that they came from has ended: see
    /// [`Entry::shortfall`].
    LotEnded,
}

/// Credits that a spend took from a lot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The key of the entry that granted the lot.
    pub lot: LedgerKey,
    /// How much.
    pub credits: Credits,
    /// The place of the lot in the account, if its key does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<LedgerKey>,
    /// When the lot ends, excluded; only for packs and for credits that were given by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When the lot was granted; absent for the credits of a slice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unique in the account.
    pub key: LedgerKey,
    /// Its kind.
    pub kind: EntryKind,
    /// Change of the balance in credits; may be 0.
    pub delta: i64,
    /// Balance after the entry, in credits.
    pub balance: Credits,
    /// Credits that the document is worth by the catalog; for a refund, the credits to take back. 0 where
    /// this does not apply.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub worth: Credits,
    /// Credits to take back that could not be taken; of a give-back, credits that could not return.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shortfall: Credits,
    /// The lots that a spend took from, in the order in which it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Taken>,
    /// The sum of the credits of this spend that were given back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub given_back: Credits,
    /// The spend that a give-back belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<LedgerKey>,
    /// What caused it: an event (`evt_…`), `app`, `admin:<actor>`, `reconcile:<run>`.
    pub cause: String,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was booked.
    pub at: Timestamp,
    /// The event's `created`.
    pub created: Timestamp,
    /// Why it moved fewer credits than the document is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
    /// How many earlier refills had fallen due and were skipped, because this one replaces them.
    #[serde(default, skip_serializing_if = "is_no_refill")]
    pub skipped: u32,
    /// The payment of the document, if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<Payment>,
    /// The time of an add-on's credits. A later reset ends credits that are older than the reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filed_at: Option<Timestamp>,
    /// The entry of the account that was booked before this one. Following it lists the ledger, newest first,
    /// without an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<LedgerKey>,
}

/// The payment of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Amount in the currency's minor units.
    pub amount: i64,
    /// ISO code in lower case.
    pub currency: String,
    /// The payment intent, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<PaymentIntentId>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_no_refill(skipped: &u32) -> bool {
    *skipped == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(credits: &Credits) -> bool {
    *credits == Credits::ZERO
}
