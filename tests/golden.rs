//! The outcome of the rules for every event of the corpus. The repository has the outcomes, but not the
//! events.
//!
//! Each event is decided for an empty account, with a catalog that sells every price of the corpus as one
//! plan. A refund or dispute is decided for an account with one payment: 1,000 credits for 2,000 minor units.
//! After an intended change of the rules run `UPDATE_GOLDEN=1 cargo test -p tests golden` and read the
//! difference.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use tallyhook_core::account::lots::Purchase;
use tallyhook_core::account::{Account, Cause, Fact};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::{Outcome, Payments, decide, is_reversal, payment_refs};
use tallyhook_core::event::{self, Event, Object};
use tallyhook_core::ids::{SessionId, UserId};
use tallyhook_core::ledger::{LedgerKey, Payment};
use tallyhook_core::reversal::PaymentRecord;
use tallyhook_core::timestamp::Timestamp;

use crate::corpus;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/corpus-outcomes.txt");

#[test]
fn every_event_of_the_corpus_has_its_known_outcome() {
    let Some(files) = corpus::files("golden::every_event_of_the_corpus_has_its_known_outcome") else {
        return;
    };
    assert!(files.len() > 150, "the corpus has {} files", files.len());
    let events: Vec<(String, Result<Event, String>)> = files
        .iter()
        .map(|(name, raw)| (name.clone(), event::read(raw).map_err(|error| error.reason().to_owned())))
        .collect();
    let catalog = catalog_of(events.iter().filter_map(|(_, event)| event.as_ref().ok()));
    let mut outcomes = String::new();
    for (name, event) in &events {
        let outcome = match event {
            Err(reason) => format!("refused: {reason}"),
            Ok(event) => outcome(event, &catalog),
        };
        writeln!(outcomes, "{name}: {outcome}").unwrap();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &outcomes).unwrap();
    }
    let known = std::fs::read_to_string(Path::new(GOLDEN)).unwrap_or_default();
    for (now, then) in outcomes.lines().zip(known.lines()) {
        assert_eq!(now, then, "the outcome of a corpus event changed");
    }
    assert_eq!(outcomes.lines().count(), known.lines().count());
}

fn catalog_of<'a>(events: impl Iterator<Item = &'a Event>) -> Catalog {
    let mut prices = BTreeSet::new();
    for event in events {
        match &event.object {
            Object::Subscription(subscription) => {
                prices.extend(subscription.items.iter().map(|item| item.price.id.to_string()))
            }
            Object::Invoice(invoice) => prices.extend(
                invoice.lines.iter().filter_map(|line| line.price.as_ref()).map(|price| price.id.to_string()),
            ),
            Object::CheckoutSession(_)
            | Object::Charge(_)
            | Object::Refund(_)
            | Object::Dispute(_)
            | Object::InvoicePayment(_)
            | Object::Customer(_)
            | Object::Other => {}
        }
    }
    let prices: Vec<String> = prices.iter().map(|price| format!("{price:?}")).collect();
    Catalog::parse(&format!(
        "[tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n[[plan]]\nname = \"pro\"\ntier = \"pro\"\ncredits = 5000\n\
         trial_credits = 100\nprices = [{}]\n[[pack]]\nname = \"credits_1000\"\ncredits = 1000\nprices = [\"pack\"]\n",
        prices.join(", ")
    ))
    .unwrap()
}

fn outcome(event: &Event, catalog: &Catalog) -> String {
    let mut account = Account::new(UserId::new("user_1").unwrap());
    let mut payments = Payments::new();
    if is_reversal(event) {
        let session = SessionId::new("cs_1").unwrap();
        let document = LedgerKey::session(&session);
        let payment = payment_refs(event).first().map(|payment| payment.as_str().to_owned());
        let bought = Purchase {
            session: Some(session),
            invoice: None,
            payment: payment.clone(),
            at: Timestamp::from_unix(1),
            outlives: std::collections::BTreeSet::new(),
            billed_with: std::collections::BTreeSet::new(),
            granted: Credits::new(1000),
            plan: None,
            spent: Credits::ZERO,
            expires_days: 0,
            sold: 0,
            until: None,
            total: 2000,
            joined: false,
            older: Vec::new(),
        };
        let paid = Payment { amount: 2000, currency: "usd".to_owned(), intent: None };
        let cause =
            Cause { by: "app".to_owned(), adjust_key: LedgerKey::signup(), created: Timestamp::from_unix(1) };
        let facts = vec![Fact::Purchase(vec![bought], Some(paid))];
        let change = account.evolve(facts, &cause, catalog, event.created).unwrap();
        account = account.after(&change);
        let record = PaymentRecord { document: Some(document), ..PaymentRecord::default() };
        payments.extend(payment.map(|payment| (payment, record)));
    }
    match decide(&account, event, &payments, catalog, event.created) {
        Outcome::Tie => "tied".to_owned(),
        Outcome::Ignore(ignored) => format!("ignored: {}", ignored.as_str()),
        Outcome::Park(parked) => format!("parked: {}", parked.code()),
        Outcome::Apply(applied) => {
            let after = account.after(&applied.change);
            let mut text = format!(
                "{}, tier {}",
                applied.effect.as_str(),
                after.state.access(catalog, event.created).tier
            );
            for subscription in after.state.subscriptions.values() {
                let status = subscription.snapshot.as_ref().map(|snapshot| snapshot.status.to_string());
                let status = status.unwrap_or_else(|| "unknown".to_owned());
                let ends =
                    subscription.snapshot.as_ref().is_some_and(|snapshot| snapshot.cancel_at.is_some());
                write!(text, ", subscription {status}{}", if ends { " (cancelling)" } else { "" }).unwrap();
            }
            for entry in &applied.change.entries {
                let kind = serde_json::to_value(entry.kind).unwrap();
                write!(text, ", {} {:+}", kind.as_str().unwrap(), entry.delta).unwrap();
            }
            text
        }
    }
}
