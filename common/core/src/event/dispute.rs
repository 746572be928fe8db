//! The Dispute. Events: `charge.dispute.*`.

use super::{Fields, Metadata, ReadError};
use crate::ids::{ChargeId, CustomerId, DisputeId, InvoiceId, PaymentIntentId};
use crate::timestamp::Timestamp;

open_enum! {
    /// `status` of a dispute. The three `warning_*` are inquiries: no money was withdrawn.
    DisputeStatus {
        /// An inquiry that waits for an answer.
        WarningNeedsResponse = "warning_needs_response",
        /// An inquiry that was answered.
        WarningUnderReview = "warning_under_review",
        /// An inquiry that ended without a chargeback.
        WarningClosed = "warning_closed",
        /// A chargeback that waits for an answer. The money is withdrawn.
        NeedsResponse = "needs_response",
        /// A chargeback that was answered.
        UnderReview = "under_review",
        /// The merchant won and has the money again.
        Won = "won",
        /// The merchant lost. The customer keeps the money.
        Lost = "lost",
        /// It was settled before it became a chargeback.
        Prevented = "prevented",
    }
}

/// The fields of a Dispute that the rules need.
///
/// ```json
/// {"id":"dp_1","object":"dispute","charge":"ch_1","payment_intent":"pi_1","amount":2000,
///  "status":"needs_response","created":1759312800}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// `dp_…` or `du_…`
    pub id: DisputeId,
    /// The disputed charge.
    pub charge: Option<ChargeId>,
    /// The disputed payment.
    pub payment_intent: Option<PaymentIntentId>,
    /// The invoice that the payment paid. Events do not have it; it comes from a call to Stripe.
    pub invoice: Option<InvoiceId>,
    /// The customer of the invoice, from the same call.
    pub customer: Option<CustomerId>,
    /// Disputed minor units.
    pub amount: i64,
    /// Its status.
    pub status: DisputeStatus,
    /// The dispute's metadata.
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
