//! `customer.deleted`: the Customer.

use super::{Fields, Metadata, ReadError};
use crate::ids::CustomerId;

/// What the rules need of a Customer: `{"id":"cus_1","object":"customer","metadata":{}}`, also of a deleted
/// one (`"deleted":true`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Customer {
    /// `cus_…`
    pub id: CustomerId,
    /// The customer's own.
    pub metadata: Metadata,
}

impl Customer {
    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self { id: object.need("id", object.id("id")?)?, metadata: object.metadata("metadata") })
    }
}
