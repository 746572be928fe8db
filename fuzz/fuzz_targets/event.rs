//! The event reader and the rules behind it. The input is the request's body.
//!
//! No bytes make them panic. A readable event is decided the same way each time, and a repetition changes no
//! credits.
#![no_main]

use std::sync::LazyLock;

use tallyhook_core::account::Account;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::decide::{Outcome, decide, ledger_keys, payment_refs};
use tallyhook_core::ids::UserId;
use tallyhook_core::event::{content_digest, read, read_head};
use libfuzzer_sys::fuzz_target;

static CATALOG: LazyLock<Catalog> =
    LazyLock::new(|| Catalog::parse(include_str!("../../catalog.toml")).expect("our own catalog is right"));

fuzz_target!(|data: &[u8]| {
    let head = read_head(data);
    let _ = content_digest(data);
    let Ok(event) = read(data) else { return };
    // The webhook accepts every event that a worker can read.
    let head = head.expect("the reader takes nothing that the first look refuses");
    assert_eq!((&head.id, &head.kind, head.created), (&event.id, &event.kind, event.created));

    let _ = (
        event.user_hint(),
        event.customer(),
        event.subscription_id(),
        event.object_ids(),
        ledger_keys(&event),
        payment_refs(&event),
    );
    let account = Account::new(UserId::new("user_1").expect("a valid id"));
    let outcome = decide(&account, &event, None, &CATALOG, event.created);
    assert_eq!(outcome, decide(&account, &event, None, &CATALOG, event.created));
    if let Outcome::Apply(applied) = outcome {
        let after = account.after(&applied.change);
        let deltas: i128 = applied.change.entries.iter().map(|entry| i128::from(entry.delta)).sum();
        assert_eq!(i128::from(after.state.balance().get()), deltas, "the balance is the sum of the deltas");
        let _ = after.state.access(&CATALOG, event.created);
        if let Outcome::Apply(again) = decide(&after, &event, None, &CATALOG, event.created) {
            assert!(again.change.entries.is_empty(), "applied twice: {:?}", again.change.entries);
        }
    }
});
