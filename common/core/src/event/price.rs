//! A price, as lines and items name it.

use super::ReadError;
use super::fields::Fields;
use crate::ids::PriceId;

/// A price with what Stripe shows of it. The catalog finds it by any of the three.
///
/// A subscription's item, a session's line item and an invoice's line before 2025-03-31.basil hold the price
/// object with `lookup_key` and `product`. Since basil an invoice's line holds
/// `pricing.price_details.{price, product}` and no lookup key:
/// <https://docs.stripe.com/api/invoice-line-item/object#invoice_line_item_object-pricing>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The id (`price_…`, or `plan_…` of old plans).
    pub id: PriceId,
    /// The lookup key. It can move from one price to another.
    pub lookup_key: Option<String>,
    /// Stripe's product (`prod_…`).
    pub product: Option<String>,
    /// Whether the field `lookup_key` was shown, with a text or null.
    pub is_complete: bool,
}

impl Price {
    /// A price of which only the id is known.
    pub fn of_id(id: PriceId) -> Self {
        Self { id, lookup_key: None, product: None, is_complete: false }
    }

    /// Reads a price object of Stripe's API.
    ///
    /// # Errors
    /// [`ReadError`] as for events.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        let object = serde_json::from_str(text).map_err(ReadError::NotJson)?;
        let price = Fields::new("price", &object);
        Ok(Self {
            id: price.need("id", price.id("id")?)?,
            lookup_key: price.owned("lookup_key")?,
            product: price.id_text("product")?.map(str::to_owned),
            is_complete: price.names("lookup_key"),
        })
    }

    /// Reads the price of a line or an item, in the shapes of all API versions.
    pub(super) fn from_fields(line: &Fields<'_>) -> Result<Option<Self>, ReadError> {
        let Some(id) = line.first_id(&["pricing.price_details.price", "price", "plan"])? else {
            return Ok(None);
        };
        let mut product = None;
        for path in ["pricing.price_details.product", "price.product", "plan.product"] {
            product = product.or(line.id_text(path)?);
        }
        Ok(Some(Self {
            id,
            lookup_key: line.owned("price.lookup_key")?,
            product: product.map(str::to_owned),
            is_complete: line.names("price.lookup_key"),
        }))
    }
}
