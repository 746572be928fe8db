//! Price ids that were learnt: the catalog names their lookup key or their Stripe product, and an event or
//! Stripe has shown both.
//!
//! An invoice's line since 2025-03-31.basil shows a price's id and product, and no lookup key. An account keeps
//! the price's id. With the learnt ids, the catalog finds the entry by the id alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Catalog, Place};
use crate::event::Price;
use crate::timestamp::Timestamp;

/// The maximum number of learnt price ids.
pub const MAX_LEARNT_PRICES: usize = 1_000;

/// The largest list of learnt prices, in bytes of JSON. An item of DynamoDB has at most 400 KB.
const MAX_BYTES: usize = 300_000;

/// The names that Stripe showed with a price id, and what they sold then.
///
/// ```json
/// {"id":"price_1A","sold":"plan pro","lookup_key":"pro_monthly","product":"prod_1","at":1795651200}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LearntPrice {
    /// The price's id.
    pub id: String,
    /// What the catalog sold for it, as `<kind> <name>`. This counts while the catalog has it, also after an
    /// edit gave the lookup key to another entry.
    pub sold: String,
    /// Its lookup key at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookup_key: Option<String>,
    /// Its Stripe product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// When it was learnt.
    pub at: Timestamp,
}

impl LearntPrice {
    /// At most this many bytes of JSON, with its names' quotes and a time.
    fn bytes(&self) -> usize {
        let names = [Some(&self.id), Some(&self.sold), self.lookup_key.as_ref(), self.product.as_ref()];
        80 + names.into_iter().flatten().map(|name| 2 * name.len()).sum::<usize>()
    }
}

/// Adds a price to learnt prices, which are in the order in which they were learnt. It replaces a price with
/// the same id. At [`MAX_LEARNT_PRICES`] the oldest price without a lookup key is dropped, else the oldest; a
/// price without a lookup key is then not added, because lines of invoices show its product. Above 300 KB of
/// JSON, prices are dropped in the same order. Returns whether it was added.
pub fn learn(known: &mut Vec<LearntPrice>, price: LearntPrice) -> bool {
    let same = known.iter().position(|one| one.id == price.id);
    if same.is_none() && known.len() >= MAX_LEARNT_PRICES && price.lookup_key.is_none() {
        return false;
    }
    if let Some(place) = same {
        known.remove(place);
    }
    let bytes = |known: &[LearntPrice]| known.iter().map(LearntPrice::bytes).sum::<usize>() + price.bytes();
    while known.len() >= MAX_LEARNT_PRICES || (bytes(known) > MAX_BYTES && !known.is_empty()) {
        known.remove(known.iter().position(|one| one.lookup_key.is_none()).unwrap_or(0));
    }
    known.push(price);
    true
}

impl Catalog {
    /// The same catalog with these learnt prices.
    #[must_use]
    pub fn with_learnt(mut self, learnt: impl IntoIterator<Item = LearntPrice>) -> Self {
        self.learnt = learnt.into_iter().map(|price| (price.id.clone(), price)).collect();
        self
    }

    /// The learnt prices, by id.
    pub fn learnt(&self) -> &BTreeMap<String, LearntPrice> {
        &self.learnt
    }

    /// Whether an entry of the catalog names this price id itself.
    pub fn names_price(&self, id: &str) -> bool {
        self.index.prices.contains_key(id)
    }

    /// What is to be learnt of a price that an event or Stripe shows: it matches one entry by its lookup key
    /// or its product, and its id alone matches none or another one.
    pub fn to_learn(&self, price: &Price, at: Timestamp) -> Option<LearntPrice> {
        let shown = self.offer(price.id.as_str(), price.lookup_key.as_deref(), price.product.as_deref());
        let Ok(Some(shown)) = shown else { return None };
        let sold = shown.key();
        if self.sells(price.id.as_str(), &sold) {
            return None;
        }
        if price.lookup_key.is_none() && self.learnt.len() >= MAX_LEARNT_PRICES {
            return None;
        }
        Some(LearntPrice {
            id: price.id.to_string(),
            sold,
            lookup_key: price.lookup_key.clone(),
            product: price.product.clone(),
            at,
        })
    }

    /// Whether the catalog finds this entry ([`LearntPrice::sold`]) by the price's id alone.
    pub fn sells(&self, id: &str, sold: &str) -> bool {
        matches!(self.offer(id, None, None), Ok(Some(offer)) if offer.key() == sold)
    }

    /// The entries that a learnt price matches: what it sold, else those with its lookup key or its product.
    /// A price id that the catalog names itself needs none. If an event shows the names that were learnt, an
    /// edit of the catalog says what they sell.
    pub(super) fn learnt_places(
        &self,
        id: &str,
        lookup_key: Option<&str>,
        product: Option<&str>,
    ) -> [Option<Place>; 2] {
        let Some(learnt) = self.learnt.get(id).filter(|_| !self.names_price(id)) else { return [None; 2] };
        let by_key = |key: &str| self.index.lookup_keys.get(key).copied();
        let by_product = |product: &str| self.index.products.get(product).copied();
        let is_shown = match learnt.lookup_key.as_deref() {
            Some(key) => lookup_key == Some(key) && by_key(key).is_some(),
            None => product == learnt.product.as_deref() && product.and_then(by_product).is_some(),
        };
        if is_shown {
            return [None; 2];
        }
        match self.place_of(&learnt.sold) {
            Some(place) => [Some(place), None],
            None => [
                learnt.lookup_key.as_deref().and_then(by_key),
                learnt.product.as_deref().and_then(by_product),
            ],
        }
    }

    /// The entry with this kind and name, or former name.
    fn place_of(&self, sold: &str) -> Option<Place> {
        let (kind, name) = sold.split_once(' ')?;
        match kind {
            "plan" => {
                let plan = self.plan(name)?;
                self.plans.iter().position(|one| one.name == plan.name).map(Place::Plan)
            }
            "pack" => self.packs.iter().position(|pack| pack.name == name).map(Place::Pack),
            "product" => {
                let product = self.product(name)?;
                self.products.iter().position(|one| one.name == product.name).map(Place::Product)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Offer;
    use crate::ids::PriceId;

    const CATALOG: &str = "[tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n\
        [[plan]]\nname = \"pro\"\ntier = \"pro\"\ncredits = 5000\nlookup_keys = [\"pro_monthly\"]\n\
        [[plan]]\nname = \"team\"\ntier = \"pro\"\ncredits = 10\nlookup_keys = [\"team_monthly\"]\n\
        stripe_products = [\"prod_team\"]\n";

    fn price(id: &str, lookup_key: Option<&str>, product: Option<&str>) -> Price {
        Price {
            id: PriceId::new(id).unwrap(),
            lookup_key: lookup_key.map(str::to_owned),
            product: product.map(str::to_owned),
            is_complete: true,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    /// What the catalog finds for a price id alone.
    fn found(catalog: &Catalog, id: &str) -> String {
        match catalog.offer(id, None, None) {
            Ok(offer) => offer.map_or("nothing".to_owned(), |offer| offer.to_string()),
            Err((one, other)) => format!("{one} and {other}"),
        }
    }

    #[test]
    fn a_learnt_price_is_found_by_its_id_and_follows_edits_of_the_catalog() {
        let catalog = Catalog::parse(CATALOG).unwrap();
        assert_eq!(found(&catalog, "price_a"), "nothing");
        let learnt = catalog.to_learn(&price("price_a", Some("pro_monthly"), Some("prod_x")), at(5)).unwrap();
        let catalog = catalog.with_learnt([learnt.clone()]);
        assert_eq!(catalog.learnt().values().collect::<Vec<_>>(), [&learnt]);
        assert_eq!(found(&catalog, "price_a"), "plan \"pro\"");
        assert_eq!(catalog.to_learn(&price("price_a", Some("pro_monthly"), None), at(6)), None);
        let edited = |from: &str, to: &str| {
            let catalog = Catalog::parse(&CATALOG.replacen(from, to, 1)).unwrap();
            found(&catalog.with_learnt([learnt.clone()]), "price_a")
        };
        assert_eq!(edited("name = \"pro\"", "name = \"plus\""), "plan \"plus\"");
        assert_eq!(edited("\"team_monthly\"", "\"x\", \"pro_m\""), "plan \"pro\"");
        assert_eq!(edited("\"pro_monthly\"", "\"pro_m\""), "plan \"pro\"");
        // The key was given to another plan: the price keeps its plan.
        let moved = CATALOG.replacen("\"pro_monthly\"", "\"pro_m\"", 1);
        let moved = moved.replacen("\"team_monthly\"", "\"team_monthly\", \"pro_monthly\"", 1);
        let moved = Catalog::parse(&moved).unwrap().with_learnt([learnt.clone()]);
        assert_eq!(found(&moved, "price_a"), "plan \"pro\"");
        // At Stripe the price still has the key, so the edit is meant for it. It is learnt again.
        let shown = price("price_a", Some("pro_monthly"), Some("prod_x"));
        let again = moved.to_learn(&shown, at(9)).unwrap();
        assert_eq!(again.sold, "plan team");
        assert_eq!(found(&moved.with_learnt([again]), "price_a"), "plan \"team\"");
        assert_eq!(edited("\"team_monthly\"]", "\"team_monthly\"]\nprices = [\"price_a\"]"), "plan \"team\"");
    }

    #[test]
    fn a_price_with_a_new_lookup_key_does_not_change_its_plan_silently() {
        let catalog = Catalog::parse(CATALOG).unwrap();
        let learnt = catalog.to_learn(&price("price_a", Some("pro_monthly"), None), at(5)).unwrap();
        let catalog = catalog.with_learnt([learnt]);
        let shown = |key: Option<&str>| catalog.offer("price_a", key, Some("prod_x"));
        // The key has moved to another price, or was renamed to one that the catalog does not have.
        for key in [None, Some("other")] {
            assert!(matches!(shown(key), Ok(Some(Offer::Plan(plan))) if plan.name == "pro"), "{key:?}");
        }
        let Err((one, other)) = shown(Some("team_monthly")) else { panic!("two plans match") };
        assert_eq!((one.to_string(), other.to_string()), ("plan \"team\"".into(), "plan \"pro\"".into()));
        assert_eq!(catalog.to_learn(&price("price_a", Some("team_monthly"), None), at(6)), None);
    }

    #[test]
    fn of_too_many_learnt_prices_those_without_a_lookup_key_go_first_then_the_oldest() {
        let of_key = |number: usize| LearntPrice {
            id: format!("price_{number}"),
            sold: "plan pro".to_owned(),
            lookup_key: Some("pro_monthly".to_owned()),
            product: None,
            at: at(5),
        };
        let of_product = |id: &str| LearntPrice {
            id: id.to_owned(),
            sold: "plan team".to_owned(),
            lookup_key: None,
            product: Some("prod_team".to_owned()),
            at: at(5),
        };
        let mut known = Vec::new();
        assert!(learn(&mut known, of_key(0)) && learn(&mut known, of_product("price_x")));
        assert!((1..MAX_LEARNT_PRICES - 1).all(|number| learn(&mut known, of_key(number))));
        assert_eq!(known.len(), MAX_LEARNT_PRICES);
        assert!(!learn(&mut known, of_product("price_y")), "it drops no other price");
        assert!(learn(&mut known, of_key(1_000)));
        assert!(known.iter().all(|one| one.lookup_key.is_some()) && known[0].id == "price_0");
        assert!(learn(&mut known, of_key(1_001)) && learn(&mut known, of_key(7)));
        assert_eq!((known.len(), known[0].id.as_str()), (MAX_LEARNT_PRICES, "price_1"));
        assert_eq!(known.last().unwrap().id, "price_7", "learnt again, and not twice");
    }

    #[test]
    fn learnt_prices_stay_below_300_kb_however_long_their_names_are() {
        let long = |number: usize| LearntPrice {
            id: format!("price_{number}"),
            sold: "plan pro".to_owned(),
            lookup_key: Some("k".repeat(20_000)),
            product: None,
            at: at(5),
        };
        let mut known = Vec::new();
        assert!((0..9).all(|number| learn(&mut known, long(number))));
        assert_eq!((known.len(), known[0].id.as_str()), (7, "price_2"));
        let huge = LearntPrice { lookup_key: Some("k".repeat(200_000)), ..long(9) };
        assert!(learn(&mut known, huge) && known.len() == 1, "the newest stays");
    }

    #[test]
    fn a_price_is_learnt_by_its_stripe_product() {
        let catalog = Catalog::parse(CATALOG).unwrap();
        let learnt = catalog.to_learn(&price("price_t", None, Some("prod_team")), at(5)).unwrap();
        assert_eq!(found(&catalog.with_learnt([learnt.clone()]), "price_t"), "plan \"team\"");
        // It stays what it was sold as when its product has left the catalog, and Stripe still shows it.
        let edited = Catalog::parse(&CATALOG.replace("[\"prod_team\"]", "[\"prod_new\"]")).unwrap();
        let edited = edited.with_learnt([learnt.clone()]);
        let shown = edited.offer("price_t", None, Some("prod_team"));
        assert!(matches!(shown, Ok(Some(Offer::Plan(plan))) if plan.name == "team"));
        // The product was given to another plan, and the event shows it.
        let moved = CATALOG.replace("stripe_products = [\"prod_team\"]\n", "");
        let moved =
            moved.replace("[\"pro_monthly\"]\n", "[\"pro_monthly\"]\nstripe_products = [\"prod_team\"]\n");
        let moved = Catalog::parse(&moved).unwrap().with_learnt([learnt]);
        let shown = moved.offer("price_t", None, Some("prod_team"));
        assert!(matches!(shown, Ok(Some(Offer::Plan(plan))) if plan.name == "pro"), "{shown:?}");
        assert_eq!(found(&moved, "price_t"), "plan \"team\"");
    }

    #[test]
    fn a_learnt_price_of_a_product_is_found_by_its_id() {
        let text = format!(
            "{CATALOG}[features]\nsso = \"switch\"\n[[product]]\nname = \"one\"\nfeatures = {{ sso = true }}\n\
            prices = [\"price_one\"]\n[[product]]\nname = \"two\"\nfeatures = {{ sso = true }}\n\
            lookup_keys = [\"two\"]\n"
        );
        let catalog = Catalog::parse(&text).unwrap();
        let learnt = catalog.to_learn(&price("price_b", Some("two"), None), at(5)).unwrap();
        // It stays what it was sold as, also after its lookup key has left the catalog.
        let edited = Catalog::parse(&text.replace("[\"two\"]", "[\"three\"]")).unwrap();
        for catalog in [catalog, edited] {
            assert_eq!(found(&catalog.with_learnt([learnt.clone()]), "price_b"), "product \"two\"");
        }
    }

    #[test]
    fn a_learnt_price_of_a_pack_is_found_by_its_id() {
        let text = format!(
            "{CATALOG}[[pack]]\nname = \"one\"\ncredits = 1\nprices = [\"price_one\"]\n[[pack]]\nname = \"two\"\n\
            credits = 2\nlookup_keys = [\"two\"]\n"
        );
        let catalog = Catalog::parse(&text).unwrap();
        let learnt = catalog.to_learn(&price("price_b", Some("two"), None), at(5)).unwrap();
        let edited = Catalog::parse(&text.replace("[\"two\"]", "[\"three\"]")).unwrap();
        for catalog in [catalog, edited] {
            assert_eq!(found(&catalog.with_learnt([learnt.clone()]), "price_b"), "pack \"two\"");
        }
    }
}
