//! Stripe events that others captured or wrote, of API versions from 2017 to 2026. Each is read, or refused
//! for the reason listed here.
//!
//! The files are not part of the repository. The tests look for them in `$TALLYHOOK_CORPUS`, else in
//! `../shared/corpus` beside the checkout. Without them a test prints that it was left out, even when it
//! passes. With `TALLYHOOK_REQUIRE_CORPUS=1` it fails instead.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use tallyhook_core::event::{EventType, Object, ReadError, content_digest, read, read_head};

/// Files that must be refused, with the reason. Every other file must be read.
const REFUSED: [(&str, &str); 3] = [
    ("derived-from-stripe-openapi/v1.billing.meter.error_report_triggered--1.json", "thin_event"),
    // A mock library's samples, which lack the dispute's id.
    ("stripe-ruby-mock__stripe-ruby-mock/charge.dispute.closed--1.json", "missing data.object.id"),
    ("stripe-ruby-mock__stripe-ruby-mock/charge.dispute.updated--1.json", "missing data.object.id"),
];

/// Every JSON file of the corpus by its relative path. Without a corpus: `None`, after a line on stderr that
/// says that `test` was left out.
///
/// # Panics
///
/// If the corpus is missing and `TALLYHOOK_REQUIRE_CORPUS` is `1`.
pub fn files(test: &str) -> Option<BTreeMap<String, Vec<u8>>> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let root = std::env::var_os("TALLYHOOK_CORPUS").map_or_else(beside, PathBuf::from).join("stripe-events");
    if !root.is_dir() {
        let required = std::env::var("TALLYHOOK_REQUIRE_CORPUS").is_ok_and(|value| value == "1");
        assert!(!required, "TALLYHOOK_REQUIRE_CORPUS is 1, and there is no corpus at {}", root.display());
        // libtest hides what a passing test prints with `eprintln!`, but not what it writes to stderr itself.
        let line = format!("left out: {test}: no corpus at {} (TALLYHOOK_CORPUS)\n", root.display());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return None;
    }
    let entries = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let files = entries(&root).into_iter().filter(|path| path.is_dir()).flat_map(|folder| entries(&folder));
    Some(
        files
            .map(|file| (file.strip_prefix(&root).unwrap().display().to_string(), fs::read(&file).unwrap()))
            .collect(),
    )
}

/// The reason of an error, followed by its path if it has one.
fn why(error: &ReadError) -> String {
    match error {
        ReadError::Missing { path } | ReadError::Wrong { path, .. } | ReadError::Id { path, .. } => {
            format!("{} {path}", error.reason())
        }
        ReadError::NotUtf8(_)
        | ReadError::NotJson(_)
        | ReadError::NotAnObject
        | ReadError::Thin
        | ReadError::EventBridge
        | ReadError::NotAnEvent => error.reason().to_owned(),
    }
}

#[test]
fn every_event_of_the_corpus_is_read_or_refused_for_a_known_reason() {
    let Some(files) = files("corpus::every_event_of_the_corpus_is_read_or_refused_for_a_known_reason") else {
        return;
    };
    assert!(files.len() > 100, "only {} files", files.len());
    let refused: Vec<(String, String)> =
        files.iter().filter_map(|(name, body)| Some((name.clone(), why(&read(body).err()?)))).collect();
    let expected: Vec<(String, String)> =
        REFUSED.iter().map(|(name, why)| ((*name).to_owned(), (*why).to_owned())).collect();
    assert_eq!(refused, expected);
}

#[test]
fn an_event_of_the_corpus_is_read_with_the_values_of_its_json() {
    let Some(files) = files("corpus::an_event_of_the_corpus_is_read_with_the_values_of_its_json") else {
        return;
    };
    for (name, body) in files {
        let (Ok(event), Ok(head)) = (read(&body), read_head(&body)) else { continue };
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (event.id.as_str(), &event.kind, event.livemode),
            (head.id.as_str(), &head.kind, head.livemode),
            "{name}"
        );
        assert_eq!(json["type"], event.kind.as_str(), "{name}");
        assert_eq!(event.kind.family().is_none(), event.object == Object::Other, "{name}");
        // An InvoicePayment is named by its invoice and its payment.
        if let Some(own) = event.object_ids().first()
            && !matches!(event.object, Object::InvoicePayment(_))
        {
            assert_eq!(json["data"]["object"]["id"], **own, "{name}");
        }
        if let Object::Invoice(invoice) = &event.object {
            assert_eq!(invoice.paid, event.kind == EventType::InvoicePaid, "{name}");
            assert!(invoice.lines.iter().all(|line| line.period_end >= line.period_start), "{name}");
        }
        if let Object::Subscription(subscription) = &event.object {
            assert!(subscription.period_end() > subscription.period_start(), "{name}");
        }
        let compact = serde_json::to_vec(
            &serde_json::json!({"pending_webhooks": 7, "data": &json["data"], "type": &json["type"],
            "created": &json["created"], "livemode": &json["livemode"]}),
        );
        let spaced = serde_json::to_vec_pretty(
            &serde_json::from_slice::<serde_json::Value>(compact.as_ref().unwrap()).unwrap(),
        );
        assert_eq!(content_digest(&compact.unwrap()), content_digest(&spaced.unwrap()), "{name}");
    }
}
