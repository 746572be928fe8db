//! `charge.dispute.*`: the Dispute.

use super::{Fields, Metadata, ReadError};
use crate::ids::{ChargeId, CustomerId, DisputeId, InvoiceId, PaymentIntentId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `status` of a dispute. The three `warning_*` are inquiries: no money has moved.
    DisputeStatus {
        /// An inquiry that waits for an answer.
        WarningNeedsResponse = "warning_needs_response",
        /// An inquiry that was answered.
        WarningUnderReview = "warning_under_review",
        /// An inquiry that came to nothing.
        WarningClosed = "warning_closed",
        /// A chargeback that waits for an answer; the money is gone.
        NeedsResponse = "needs_response",
        /// A chargeback that was answered.
        UnderReview = "under_review",
        /// The merchant has the money again.
        Won = "won",
        /// The customer keeps the money.
        Lost = "lost",
        /// Settled before it became a chargeback.
        Prevented = "prevented",
    }
}

/// What the rules need of a Dispute.
///
/// ```json
/// {"id":"dp_1","object":"dispute","charge":"ch_1","payment_intent":"pi_1","amount":2000,"status":"needs_response","created":1759312800}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// `dp_…` or `du_…`
    pub id: DisputeId,
    /// The disputed charge.
    pub charge: Option<ChargeId>,
    /// The payment it belongs to.
    pub payment_intent: Option<PaymentIntentId>,
    /// The invoice that the payment paid. No event says so: Stripe was asked.
    pub invoice: Option<InvoiceId>,
    /// Who paid it, likewise.
    pub customer: Option<CustomerId>,
    /// Disputed minor units.
    pub amount: i64,
    /// Where it stands.
    pub status: DisputeStatus,
    /// The dispute's own.
    pub metadata: Metadata,
    /// When it was opened.
    pub created: Option<Timestamp>,
}

impl Dispute {
    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            id: object.need("id", object.id("id")?)?,
            charge: object.id("charge")?,
            payment_intent: object.id("payment_intent")?,
            invoice: None,
            customer: None,
            amount: object.need("amount", object.amount("amount")?)?,
            status: object.word("status")?,
            metadata: object.metadata("metadata"),
            created: object.time("created")?,
        })
    }
}
