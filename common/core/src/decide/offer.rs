//! What a list of prices and quantities is worth: the plan that decides, and the credits of all known plans
//! together.

use super::Parked;
use crate::catalog::{Catalog, MAX_QUANTITY, Per, Plan};
use crate::credits::Credits;
use crate::ids::PriceId;

/// What a subscription, or an invoice of it, sells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// The price of the plan with the highest rank; it decides the tier.
    pub price: PriceId,
    /// How many of it.
    pub quantity: u64,
    /// Credits of a paid period, over all known plans of the list.
    pub credits: Credits,
    /// Credits of a trial, likewise.
    pub trial_credits: Credits,
}

/// Reads a list. Prices that the catalog does not know (seat add-ons, taxes, one-time lines) count for
/// nothing beside one that it knows.
///
/// # Errors
/// [`Parked::UnknownPrice`] when it knows none of them, [`Parked::Quantity`] when an amount is out of range;
/// `None` for an empty list.
pub(super) fn offer<'a>(
    items: impl Iterator<Item = (&'a PriceId, u64)>,
    catalog: &Catalog,
) -> Result<Option<Offer>, Parked> {
    let mut unknown = None;
    let mut best: Option<(u32, Offer)> = None;
    let (mut credits, mut trial_credits) = (Credits::ZERO, Credits::ZERO);
    let mut counted: Vec<&PriceId> = Vec::new();
    for (price, quantity) in items {
        let Some(plan) = catalog.plan_of_price(price.as_str()) else {
            unknown.get_or_insert(price);
            continue;
        };
        // Tiered prices are billed in several lines; only seats add up over them.
        if plan.per == Per::Subscription && counted.contains(&price) {
            continue;
        }
        counted.push(price);
        credits = credits.plus(worth(plan, plan.credits, quantity)?);
        trial_credits = trial_credits.plus(worth(plan, plan.trial_credits, quantity)?);
        let rank = |rank: u32, price: &PriceId| (rank, std::cmp::Reverse(price.clone()));
        if best
            .as_ref()
            .is_none_or(|(best_rank, best)| rank(plan.rank, price) > rank(*best_rank, &best.price))
        {
            best = Some((
                plan.rank,
                Offer {
                    price: price.clone(),
                    quantity,
                    credits: Credits::ZERO,
                    trial_credits: Credits::ZERO,
                },
            ));
        }
    }
    match (best, unknown) {
        (Some((_, offer)), _) => Ok(Some(Offer { credits, trial_credits, ..offer })),
        (None, Some(price)) => Err(Parked::UnknownPrice(price.clone())),
        (None, None) => Ok(None),
    }
}

fn worth(plan: &Plan, credits: u64, quantity: u64) -> Result<Credits, Parked> {
    let counted = match plan.per {
        Per::Subscription => 1,
        Per::Seat => quantity,
    };
    let in_range = quantity <= MAX_QUANTITY;
    Credits::new(credits)
        .times(counted)
        .filter(|_| in_range)
        .ok_or_else(|| Parked::Quantity(quantity.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOG: &str = "[tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n\
        [[plan]]\nname = \"team\"\ntier = \"pro\"\ncredits = 10\nper = \"seat\"\nprices = [\"price_seat\", \"price_more\"]\n";

    #[test]
    fn seats_that_are_billed_in_several_lines_add_up_and_the_first_line_is_shown() {
        let catalog = Catalog::parse(CATALOG).unwrap();
        let [seat, more]: [PriceId; 2] = ["price_seat", "price_more"].map(|price| price.parse().unwrap());
        let of = |lines: &[(&PriceId, u64)]| offer(lines.iter().copied(), &catalog).unwrap().unwrap();
        let shown = |offer: &Offer| (offer.price.to_string(), offer.quantity, offer.credits);
        assert_eq!(shown(&of(&[(&seat, 3), (&seat, 5)])), ("price_seat".to_owned(), 3, Credits::new(80)));
        assert_eq!(shown(&of(&[(&seat, 3), (&more, 5)])), ("price_more".to_owned(), 5, Credits::new(80)));
        assert_eq!(of(&[(&more, 5), (&seat, 3)]), of(&[(&seat, 3), (&more, 5)]));
    }
}
