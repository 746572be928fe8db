//! The log lines that the functions write, by name, with their level and fields: `snapshots/log-lines.txt`.
//! Every line that any test causes is compared with that file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{LazyLock, Once};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const FILE: &str = include_str!("snapshots/log-lines.txt");

/// The fields of a line. A field is optional where the file has it in brackets.
#[derive(Debug, Default)]
struct Fields {
    required: BTreeSet<&'static str>,
    optional: BTreeSet<&'static str>,
}

/// By level and name.
static EXPECTED: LazyLock<BTreeMap<(&str, &str), Fields>> = LazyLock::new(|| {
    let rows = FILE.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    rows.map(|row| {
        let mut words = row.split_whitespace();
        let key = (words.next().unwrap(), words.next().unwrap());
        let mut fields = Fields::default();
        for word in words {
            match word.strip_prefix('[').and_then(|word| word.strip_suffix(']')) {
                Some(optional) => fields.optional.insert(optional),
                None => fields.required.insert(word),
            };
        }
        (key, fields)
    })
    .collect()
});

/// Compares every line that is logged from here on. Does nothing where another subscriber is installed.
pub fn compare_all() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = tracing::subscriber::set_global_default(Comparer);
    });
}

/// Whether a message is one of our stable names.
fn is_name(message: &str) -> bool {
    message.contains('_') && message.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// Panics if a line is not in the file, lacks a field, or has another one.
fn compare(level: &str, name: &str, fields: &BTreeSet<&str>) {
    let expected = EXPECTED.get(&(level, name));
    let expected = expected.unwrap_or_else(|| panic!("snapshots/log-lines.txt has no `{level} {name}`"));
    let missing: Vec<_> = expected.required.iter().filter(|field| !fields.contains(**field)).collect();
    let unknown: Vec<_> = fields
        .iter()
        .filter(|field| !expected.required.contains(**field) && !expected.optional.contains(**field))
        .collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "{level} {name} differs from snapshots/log-lines.txt: missing {missing:?}, unknown {unknown:?}"
    );
}

struct Comparer;

impl Subscriber for Comparer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= LevelFilter::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if is_name(&line.message) {
            let level = event.metadata().level().as_str().to_lowercase();
            compare(&level, &line.message, &line.fields);
        }
    }

    // Spans are not enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The message of a line and the names of its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: BTreeSet<&'static str>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields.insert(field.name());
        }
    }
}
