//! The Customer. Event: `customer.deleted`.

use super::{Fields, Metadata, ReadError};
use crate::ids::CustomerId;

/// The fields of a Customer that the rules need: `{"id":"cus_1","object":"customer","metadata":{}}`. A
/// deleted customer has `"deleted":true` and no metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Customer {
    /// `cus_…`
    pub id: CustomerId,
    /// The customer's metadata.
    pub metadata: Metadata,
}

impl Customer {
    pub(super) fn from_fields(object: &Fields<'_>) -> Result<Self, ReadError> {
        Ok(Self { id: object.need("id", object.id("id")?)?, metadata: object.metadata("metadata") })
    }
}
