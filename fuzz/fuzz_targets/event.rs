//! The event reader and the rules behind it. The input is the request's body.
//!
//! No bytes make them panic. A readable event gives the same outcome each time, and applying it twice changes
//! no credits.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tallyhook_core::account::Account;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::decide::{Outcome, Payments, decide, ledger_keys, payment_refs};
use tallyhook_core::event::{content_digest, read, read_head};
use tallyhook_core::ids::UserId;

static CATALOG: LazyLock<Catalog> =
    LazyLock::new(|| Catalog::parse(include_str!("../../catalog.toml")).expect("a valid catalog"));

fuzz_target!(|data: &[u8]| {
    let head = read_head(data);
    let _ = content_digest(data);
    let Ok(event) = read(data) else { return };
    // The webhook accepts every event that a worker can read.
    let head = head.expect("an event that is read has a head");
    assert_eq!((&head.id, &head.kind, head.created), (&event.id, &event.kind, event.created));

    let _ = (
        event.named_user(),
        event.referenced_user(),
        event.customer(),
        event.subscription_id(),
        event.object_ids(),
        ledger_keys(&event),
        payment_refs(&event),
    );
    let account = Account::new(UserId::new("user_1").expect("a valid id"));
    let outcome = decide(&account, &event, &Payments::new(), &CATALOG, event.created);
    assert_eq!(outcome, decide(&account, &event, &Payments::new(), &CATALOG, event.created));
    if let Outcome::Apply(applied) = outcome {
        let after = account.after(&applied.change);
        let deltas: i128 = applied.change.entries.iter().map(|entry| i128::from(entry.delta)).sum();
        let balance = after.state.balance(&CATALOG.policy, event.created).get();
        assert_eq!(i128::from(balance), deltas, "the balance is the sum of the deltas");
        let _ = after.state.access(&CATALOG, event.created);
        if let Outcome::Apply(again) = decide(&after, &event, &Payments::new(), &CATALOG, event.created) {
            assert!(again.change.entries.is_empty(), "applied twice: {:?}", again.change.entries);
        }
    }
});
