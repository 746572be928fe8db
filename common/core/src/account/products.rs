//! The products that a user bought, once or by subscription.
//!
//! **Invariant:** a product gives its features until its payment is refunded in full, or while a dispute of
//! it is open or lost. It gives them back when the dispute is won.

use serde::{Deserialize, Serialize};

use super::State;
use super::snapshot::{SnapshotItem, is_false};
use crate::catalog::{Catalog, Offer};
use crate::ids::{InvoiceId, PriceId, SessionId, SubscriptionId};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

/// The maximum number of products of an account. An event that sells more is parked.
pub const MAX_PRODUCTS: usize = 200;

/// A product that a document sold. For a product by subscription, only the newest paid document is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoughtProduct {
    /// The product's name in the catalog.
    pub name: String,
    /// The price, where the document names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<PriceId>,
    /// What it cost, in minor units.
    pub amount: i64,
    /// ISO code in lower case.
    pub currency: String,
    /// The session that sold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The invoice that sold it, or that the session made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice: Option<InvoiceId>,
    /// The payment (`pi_…` or `ch_…`), where a document names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<String>,
    /// The subscription that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<SubscriptionId>,
    /// When it was paid.
    pub at: Timestamp,
    /// The document's total in minor units.
    pub total: i64,
    /// A dispute of the payment is open or lost.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disputed: bool,
}

/// The status of a bought product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductStatus {
    /// It gives its features.
    Active,
    /// Its payment was refunded in full.
    Refunded,
    /// A dispute of its payment is open or lost.
    Disputed,
}

/// A product in the list of a user's purchases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchased {
    /// The product's name.
    pub name: String,
    /// The price, where a document names one.
    pub price: Option<PriceId>,
    /// What was paid and the currency; absent while only the subscription is known.
    pub paid: Option<(i64, String)>,
    /// Whether it gives its features.
    pub status: ProductStatus,
    /// The payment, where a document names one.
    pub payment: Option<String>,
    /// The subscription; absent for what was bought once.
    pub subscription: Option<SubscriptionId>,
    /// When it was paid, or first seen.
    pub at: Option<Timestamp>,
}

impl BoughtProduct {
    /// Whether a document sold this product.
    pub fn is_of(&self, document: &LedgerKey) -> bool {
        self.session.as_ref().is_some_and(|session| document.is_session(session))
            || self.invoice.as_ref().is_some_and(|invoice| document.is_invoice(invoice))
    }

    /// The present name of the product. If the catalog does not have the stored name any more, it is the name
    /// of the product that the catalog sells for the price.
    pub fn present_name<'a>(&'a self, catalog: &'a Catalog) -> &'a str {
        if catalog.product(&self.name).is_some() {
            return catalog.present_name(&self.name);
        }
        let offer = self.price.as_ref().map(|price| catalog.offer(price.as_str(), None, None));
        match offer {
            Some(Ok(Some(Offer::Product(product)))) => &product.name,
            Some(Ok(Some(Offer::Plan(_) | Offer::Pack(_)) | None) | Err(_)) | None => &self.name,
        }
    }

    /// Whether a document names the same product: by its name, or by its price after a change of the catalog.
    fn is_product_of(&self, other: &Self) -> bool {
        self.name == other.name || (self.price.is_some() && self.price == other.price)
    }

    /// Whether two documents sold one product: they name the same session, invoice or payment.
    fn is_one_with(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            one.is_some() && one == other
        }
        self.is_product_of(other)
            && (same(self.session.as_ref(), other.session.as_ref())
                || same(self.invoice.as_ref(), other.invoice.as_ref())
                || same(self.payment.as_ref(), other.payment.as_ref()))
    }

    /// Joins what two documents say about one product. A session has more details than its invoice.
    fn join(&mut self, other: Self) {
        if self.session.is_none() && other.session.is_some() {
            let known = std::mem::replace(self, other);
            return self.join(known);
        }
        self.price = self.price.take().or(other.price);
        self.invoice = self.invoice.take().or(other.invoice);
        self.payment = self.payment.take().or(other.payment);
        self.disputed |= other.disputed;
    }
}

impl State {
    /// Adds a product that a document sold. A known document changes nothing.
    pub(super) fn fold_product(&mut self, bought: BoughtProduct) {
        if let Some(subscription) = &bought.subscription {
            let of_it = |known: &&mut BoughtProduct| {
                known.subscription.as_ref() == Some(subscription) && known.is_product_of(&bought)
            };
            match self.products.iter_mut().find(of_it) {
                Some(known) if known.invoice == bought.invoice => known.join(bought),
                Some(known) if (known.at, &known.invoice) < (bought.at, &bought.invoice) => *known = bought,
                Some(_) => {}
                None => self.products.push(bought),
            }
        } else {
            match self.products.iter_mut().find(|known| known.is_one_with(&bought)) {
                Some(known) => known.join(bought),
                None => self.products.push(bought),
            }
        }
        self.sort_products();
    }

    /// Links a payment to an invoice. A product of the payment's session and a product of the invoice are
    /// then one product.
    pub(super) fn tie_products(&mut self, invoice: &InvoiceId, payment: &str) {
        let (tied, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.products).into_iter().partition(|one| {
                one.payment.as_deref() == Some(payment) || one.invoice.as_ref() == Some(invoice)
            });
        self.products = others;
        for mut one in tied {
            one.payment.get_or_insert_with(|| payment.to_owned());
            one.invoice.get_or_insert_with(|| invoice.clone());
            self.fold_product(one);
        }
        self.sort_products();
    }

    fn sort_products(&mut self) {
        self.products.sort_by(|a, b| (a.at, &a.name, &a.invoice).cmp(&(b.at, &b.name, &b.invoice)));
    }

    /// Records whether a dispute of a document's payment is open or lost.
    pub(super) fn dispute_products(&mut self, document: &LedgerKey, disputed: bool) {
        for product in self.products.iter_mut().filter(|product| product.is_of(document)) {
            product.disputed = disputed;
        }
    }

    /// Whether a bought product gives its features.
    pub fn product_status(&self, product: &BoughtProduct) -> ProductStatus {
        let session = product.session.as_ref().map(LedgerKey::session);
        let invoice = product.invoice.as_ref().map(LedgerKey::invoice);
        let back = session.iter().chain(&invoice).map(|document| self.refunded(document)).max().unwrap_or(0);
        if product.disputed {
            ProductStatus::Disputed
        } else if product.total > 0 && back >= product.total {
            ProductStatus::Refunded
        } else {
            ProductStatus::Active
        }
    }

    /// The products that were bought, oldest first. A subscription's product is listed while the subscription
    /// gives access, also if a refund or dispute revokes it.
    pub fn purchased(&self, catalog: &Catalog, now: Timestamp) -> Vec<Purchased> {
        let now = self.time(now);
        let mut given: Vec<(SubscriptionId, String)> = Vec::new();
        for one in self.given(catalog, now) {
            let lives = one.until.is_none_or(|until| until > now);
            if let Some((subscription, _)) = one.by.filter(|_| lives && catalog.product(&one.plan).is_some())
            {
                given.push((subscription, one.plan));
            }
        }
        given.sort();
        given.dedup();
        let mut all = Vec::new();
        for product in &self.products {
            if let Some(subscription) = &product.subscription {
                let this = (subscription.clone(), product.present_name(catalog).to_owned());
                let Some(place) = given.iter().position(|other| *other == this) else { continue };
                given.remove(place);
            }
            all.push(Purchased {
                name: product.present_name(catalog).to_owned(),
                price: product.price.clone(),
                paid: Some((product.amount, product.currency.clone())),
                status: self.product_status(product),
                payment: product.payment.clone(),
                subscription: product.subscription.clone(),
                at: Some(product.at),
            });
        }
        // No invoice is known, as in a trial.
        for (subscription, name) in given {
            let snapshot = self.subscriptions.get(&subscription).and_then(|one| one.snapshot.as_ref());
            let item = snapshot.and_then(|snapshot| {
                let is_it = |item: &&SnapshotItem| {
                    let terms = item.terms.clone().map(|terms| terms.with_name_of(&item.price, catalog));
                    terms.is_some_and(|terms| terms.plan == name)
                };
                snapshot.items.iter().find(is_it)
            });
            all.push(Purchased {
                price: item.map(|item| item.price.clone()),
                paid: None,
                status: ProductStatus::Active,
                payment: None,
                at: snapshot.map(|snapshot| snapshot.created),
                subscription: Some(subscription),
                name,
            });
        }
        all
    }
}
