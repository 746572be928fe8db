//! The ledger: one entry for each thing that granted, took or could have moved credits, and the key that
//! makes it happen once.
//!
//! **Invariant:** a key names the document that is worth the credits, never a time of ours; the store writes
//! an entry only where none with its key exists. **Invariant:** the deltas of an account's entries add up to
//! its balance after every commit.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::credits::Credits;
use super::ids::{
    ChargeId, DisputeId, EventId, InvoiceId, ItemId, PaymentIntentId, RefundId, SessionId, SubscriptionId,
};
use super::timestamp::Timestamp;

/// What an entry is about, as text: `signup`, `invoice#in_…`, `invoice#in_…#si_…`, `trial#sub_…#si_…`,
/// `plan#si_…#<period start>#<plan>#<n>`, `session#cs_…`, `refund#…`, `dispute#dp_…#<status>`,
/// `consume#<idempotency key>`, `fix#<request id>`, `comp#<request id>`, `adjust#evt_…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(from = "String")]
pub struct LedgerKey(Arc<str>);

impl LedgerKey {
    /// The signup grant: one for each user.
    pub fn signup() -> Self {
        Self("signup".into())
    }

    /// The grant of a paid invoice, or of the trial whose zero invoice this is.
    pub fn invoice(invoice: &InvoiceId) -> Self {
        Self(format!("invoice#{invoice}").into())
    }

    /// A line of a paid invoice that counts later than the invoice was recorded.
    pub fn invoice_item(invoice: &InvoiceId, item: &ItemId) -> Self {
        Self(format!("invoice#{invoice}#{item}").into())
    }

    /// The trial of a subscription item: one for each item of a subscription.
    pub fn trial(subscription: &SubscriptionId, item: &ItemId) -> Self {
        Self(format!("trial#{subscription}#{item}").into())
    }

    /// A plan taken up within a billing period, as `<plan>#<n>` for the n-th time.
    pub fn plan(item: &ItemId, period_start: Timestamp, change: &str) -> Self {
        Self(format!("plan#{item}#{}#{change}", period_start.unix()).into())
    }

    /// The grant of a paid one-time session: a pack or an order.
    pub fn session(session: &SessionId) -> Self {
        Self(format!("session#{session}").into())
    }

    /// What a charge's refunds took back when they had reached `cumulative` minor units.
    pub fn refund_of_charge(charge: &ChargeId, cumulative: i64) -> Self {
        Self(format!("refund#{charge}#{cumulative}").into())
    }

    /// What had gone back of a payment when it was tied to its document.
    pub fn refund_of_payment(payment: &str, amount: i64) -> Self {
        Self(format!("refund#{payment}#{amount}").into())
    }

    /// What one refund object took back, or gave back when it failed.
    pub fn refund(refund: &RefundId, status: &str) -> Self {
        Self(format!("refund#{refund}#{status}").into())
    }

    /// What a dispute took or gave back on reaching a status.
    pub fn dispute(dispute: &DisputeId, status: &str) -> Self {
        Self(format!("dispute#{dispute}#{status}").into())
    }

    /// A spend by the app, under the app's idempotency key.
    pub fn consume(idempotency_key: &str) -> Self {
        Self(format!("consume#{idempotency_key}").into())
    }

    /// A repair by a person or by reconciliation.
    pub fn fix(request: &str) -> Self {
        Self(format!("fix#{request}").into())
    }

    /// A plan that an operator gives for a time.
    pub fn complimentary(request: &str) -> Self {
        Self(format!("comp#{request}").into())
    }

    /// A movement that grants nothing new: a return to a plan granted before in the period, or what late news
    /// about an older event changes. The grants themselves never have such a key.
    pub fn adjust(event: &EventId) -> Self {
        Self(format!("adjust#{event}").into())
    }

    /// What the schedule books because its time has come.
    pub fn due(now: Timestamp) -> Self {
        Self(format!("due#{}", now.unix()).into())
    }

    /// The same document's key for a movement that falls due with it.
    pub fn adjusted(&self) -> Self {
        Self(format!("adjust#{}", self.0).into())
    }

    /// The invoice's key, for the key of a line that counts later.
    pub fn invoice_of_item(&self) -> Option<Self> {
        let (invoice, _item) = self.0.strip_prefix("invoice#")?.split_once('#')?;
        Some(Self(format!("invoice#{invoice}").into()))
    }

    /// The invoice that it is the key of.
    pub fn invoice_id(&self) -> Option<InvoiceId> {
        self.0.strip_prefix("invoice#").and_then(|id| InvoiceId::new(id).ok())
    }

    /// The session that it is the key of.
    pub fn session_id(&self) -> Option<SessionId> {
        self.0.strip_prefix("session#").and_then(|id| SessionId::new(id).ok())
    }

    /// Whether it is this invoice's.
    pub fn is_invoice(&self, invoice: &InvoiceId) -> bool {
        self.0.strip_prefix("invoice#") == Some(invoice.as_str())
    }

    /// Whether it is this session's.
    pub fn is_session(&self, session: &SessionId) -> bool {
        self.0.strip_prefix("session#") == Some(session.as_str())
    }

    /// The text, as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads back a stored key or one that a user typed; any text is a key, most name no entry.
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

/// What kind of thing an entry records.
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
    /// Another plan was taken up within a period.
    PlanChange,
    /// A pack of credits was bought.
    AddOn,
    /// A one-time order was paid; it gives no credits.
    Order,
    /// Money went back to the customer.
    Refund,
    /// A dispute was opened, lost or won.
    Dispute,
    /// The app spent credits.
    Spend,
    /// A person or reconciliation set something right.
    Fix,
    /// See [`LedgerKey::adjust`].
    Adjust,
    /// A paid invoice that is worth no credits of its own, such as a proration.
    NoGrant,
}

/// Why an entry moved less than it was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// A newer fact already stands: this one is recorded and changes nothing.
    Superseded,
    /// A session and an invoice sold one purchase, and the session grants it.
    OnePurchase,
    /// Less could be taken back than was due, because it had been spent or had ended: see
    /// [`Entry::shortfall`].
    Shortfall,
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is about; unique in the account.
    pub key: LedgerKey,
    /// What kind of thing it is.
    pub kind: EntryKind,
    /// How the balance moved, in credits; may be 0.
    pub delta: i64,
    /// The balance after it, in credits.
    pub balance: Credits,
    /// What the document is worth by the catalog, in credits (for a refund: what was due back); 0 where that
    /// has no meaning.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub worth: Credits,
    /// Credits due back that could not be taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shortfall: Credits,
    /// The event that caused it (`evt_…`), or who else did (`app`, `admin:<actor>`, `reconcile:<run>`).
    pub cause: String,
    /// Why, in the words of whoever fixed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was booked here.
    pub at: Timestamp,
    /// When it happened at Stripe (the event's `created`).
    pub created: Timestamp,
    /// Why it moved less than it was worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
    /// The payment behind it, where the document names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<Payment>,
    /// The time under which an add-on's credits were filed; tells whether a later reset has ended them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filed_at: Option<Timestamp>,
    /// The entry booked before this one in the same account: following it lists the ledger newest first,
    /// without an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<LedgerKey>,
}

/// The money behind an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// What was paid, in the currency's minor units.
    pub amount: i64,
    /// ISO code in lower case, as Stripe writes it.
    pub currency: String,
    /// The payment intent, where named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<PaymentIntentId>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(credits: &Credits) -> bool {
    *credits == Credits::ZERO
}
