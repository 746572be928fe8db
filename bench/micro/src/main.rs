//! Micro benchmarks of the signature, the reader and the rules: `cargo run --release -p micro`. Compare
//! ratios, not times.
//!
//! This is a binary, because cargo builds bench targets and their dependencies without `panic = "abort"`.

use divan::{Bencher, black_box, counter::BytesCount};
use sha2::{Digest, Sha256};
use tallyhook_core::account::Account;
use tallyhook_core::account::holds::{MAX_HOLDS, hold_id};
use tallyhook_core::account::lots::Hold;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::credits::Credits;
use tallyhook_core::decide::{Outcome, Payments, decide};
use tallyhook_core::event::{self, Event};
use tallyhook_core::ids::UserId;
use tallyhook_core::signature::{Secret, sign, verify};
use tallyhook_core::timestamp::Timestamp;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIZES: [usize; 3] = [1024, 4096, 65_536];
const CREATED: &str = include_str!("../../../events/customer.subscription.created.json");
const PAID: &str = include_str!("../../../events/invoice.paid.json");
const RENEWAL: &str = include_str!("../../../events/invoice.paid.renewal.json");
const NOW: Timestamp = Timestamp::from_unix(1_790_000_000);

fn main() {
    divan::main();
}

/// A renewal, padded to this many bytes.
fn body(bytes: usize) -> String {
    let mut event: serde_json::Value = serde_json::from_str(RENEWAL).expect("the sample is JSON");
    let length = event.to_string().len();
    event["data"]["object"]["footer"] =
        "Thank you. ".chars().cycle().take(bytes.saturating_sub(length)).collect::<String>().into();
    event.to_string()
}

/// The lower limit: one hash of the same bytes.
#[divan::bench(args = SIZES)]
fn sha256(bencher: Bencher, bytes: usize) {
    let body = vec![b'a'; bytes];
    bencher.counter(BytesCount::new(bytes)).bench(|| Sha256::digest(black_box(&body)));
}

#[divan::bench(args = SIZES)]
fn verify_signature(bencher: Bencher, bytes: usize) {
    let (body, secret, now) = (
        vec![b'a'; bytes],
        Secret::new("whsec_bench").expect("a secret that is not blank"),
        Timestamp::from_unix(1_790_000_000),
    );
    let header = sign(&body, &secret, now);
    let secrets = [secret];
    bencher.counter(BytesCount::new(bytes)).bench(|| {
        verify(black_box(&body), Some(header.as_bytes()), &secrets, now, 300).expect("a valid signature")
    });
}

#[divan::bench(args = [4096, 102_400])]
fn json_value(bencher: Bencher, bytes: usize) {
    let body = body(bytes);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| serde_json::from_str::<serde_json::Value>(black_box(&body)).expect("JSON"));
}

#[divan::bench(args = [4096, 102_400])]
fn read_head(bencher: Bencher, bytes: usize) {
    let body = body(bytes);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| event::read_head(black_box(body.as_bytes())).expect("an event"));
}

#[divan::bench(args = [4096, 102_400])]
fn read_event(bencher: Bencher, bytes: usize) {
    let body = body(bytes);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| event::read(black_box(body.as_bytes())).expect("an event"));
}

#[divan::bench(args = [4096, 102_400])]
fn content_digest(bencher: Bencher, bytes: usize) {
    let body = body(bytes);
    bencher.counter(BytesCount::new(body.len())).bench(|| event::content_digest(black_box(body.as_bytes())));
}

#[divan::bench(args = [4096])]
fn pack_payload(bencher: Bencher, bytes: usize) {
    let body = body(bytes);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| tallyhook_aws::payload::pack(black_box(body.as_bytes())));
}

/// A sample, with the subscription, invoice and event number `number`.
fn sample(text: &str, number: usize) -> Event {
    let text = text
        .replace("sub_TallyHook0001", &format!("sub_{number}"))
        .replace("in_TallyHook000", &format!("in_{number}x"));
    event::read(text.replace("evt_1TallyHook", &format!("evt_{number}x")).as_bytes())
        .expect("a sample is an event")
}

/// A renewal for a user with this many paid subscriptions.
#[divan::bench(args = [1, 10, 50])]
fn decide_renewal(bencher: Bencher, subscriptions: usize) {
    let mut account = Account::new(UserId::new("user_123").expect("a user id"));
    for number in 0..subscriptions {
        for text in [CREATED, PAID] {
            account = after(&account, &sample(text, number));
        }
    }
    assert_eq!(account.state.subscriptions.len(), subscriptions);
    renew(bencher, &account, &sample(RENEWAL, 0));
}

/// The same for one subscription with this many items and the maximum number of open holds. The invoice
/// renews one item.
#[divan::bench(args = [1, 10, 50])]
fn decide_renewal_with_holds(bencher: Bencher, items: usize) {
    let mut account = Account::new(UserId::new("user_123").expect("a user id"));
    for text in [CREATED, PAID] {
        account = after(&account, &with_items(text, items));
    }
    for number in 0..MAX_HOLDS {
        let hold = Hold { amount: Credits::new(10), until: NOW.plus_seconds(600) };
        let id = hold_id(&account.user_id, &number.to_string());
        account = account.after(&account.hold(id, hold, &catalog(), NOW).expect("enough credits"));
    }
    assert_eq!(account.state.subscriptions.values().map(|one| one.items.len()).sum::<usize>(), items);
    renew(bencher, &account, &sample(RENEWAL, 1));
}

fn renew(bencher: Bencher, account: &Account, renewal: &Event) {
    let catalog = catalog();
    bencher.bench(|| match decide(black_box(account), black_box(renewal), &Payments::new(), &catalog, NOW) {
        outcome @ Outcome::Apply(_) => outcome,
        other => panic!("{other:?}"),
    });
}

fn after(account: &Account, event: &Event) -> Account {
    match decide(account, event, &Payments::new(), &catalog(), NOW) {
        Outcome::Apply(applied) => account.after(&applied.change),
        other => panic!("{other:?}"),
    }
}

fn catalog() -> Catalog {
    Catalog::parse(include_str!("../../../catalog.toml")).expect("a valid catalog")
}

/// A sample whose first item or line is there `items` times, each for an item of its own.
fn with_items(text: &str, items: usize) -> Event {
    let mut event: serde_json::Value = serde_json::from_str(text).expect("the sample is JSON");
    let object = &mut event["data"]["object"];
    let list = if object["lines"].is_null() { "items" } else { "lines" };
    let one = object[list]["data"][0].to_string();
    object[list]["data"] = (1..=items)
        .map(|number| one.replace("si_TallyHook0001", &format!("si_TallyHook{number:04}")))
        .map(|text| serde_json::from_str(&text).expect("JSON"))
        .collect::<Vec<serde_json::Value>>()
        .into();
    sample(&event.to_string(), 1)
}
