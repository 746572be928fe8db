//! The fake's memory across restarts: a file of lines, each the latest state of one object or of what is inside one.
//!
//! A stack that keeps its accounts keeps its Stripe too: else reconciliation would find every subscription missing there. A line that
//! was cut off by a crash is left out; the file is written anew, without what is outdated, at each start.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{State, Stored};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Object { text: String, told: i64, place: (i64, u64), delivered: bool },
    Inside { id: String, entries: Vec<Value> },
}

impl Line {
    fn of(stored: &Stored) -> Self {
        Self::Object { text: stored.text.clone(), told: stored.told, place: stored.place, delivered: stored.delivered }
    }
}

impl State {
    /// Takes up what the file has, and keeps it up to date from then on.
    pub(super) fn remember(&mut self, path: &Path) -> anyhow::Result<()> {
        let name = path.display();
        if path.exists() {
            let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
            for line in BufReader::new(file).lines() {
                if let Ok(line) = serde_json::from_str(&line.with_context(|| format!("cannot read {name}"))?) {
                    self.take_up(line);
                }
            }
        }
        let fresh = path.with_extension("new");
        self.journal = Some(File::create(&fresh).with_context(|| format!("cannot write {}", fresh.display()))?);
        let objects = self.objects.values().map(Line::of);
        let inside = self.inside.iter().map(|(id, entries)| Line::Inside { id: id.clone(), entries: entries.clone() });
        objects.chain(inside).for_each(|line| self.write(&line));
        std::fs::rename(&fresh, path).with_context(|| format!("cannot write {name}"))
    }

    fn take_up(&mut self, line: Line) {
        match line {
            Line::Object { text, told, place, delivered } => {
                let value: Value = serde_json::from_str(&text).unwrap_or_default();
                let Some(id) = value["id"].as_str().map(str::to_owned) else { return };
                let kind = value["object"].as_str().unwrap_or("unknown").to_owned();
                self.serial = self.serial.max(place.1);
                self.objects.insert(id, Stored { kind, told, place, text, value, delivered });
            }
            Line::Inside { id, entries } => drop(self.inside.insert(id, entries)),
        }
    }

    /// Writes down how an object stands.
    pub(super) fn note_object(&self, id: &str) {
        if let (Some(_), Some(stored)) = (&self.journal, self.objects.get(id)) {
            self.write(&Line::of(stored));
        }
    }

    /// Writes down what is inside an object.
    pub(super) fn note_inside(&self, id: &str) {
        if let (Some(_), Some(entries)) = (&self.journal, self.inside.get(id)) {
            self.write(&Line::Inside { id: id.to_owned(), entries: entries.clone() });
        }
    }

    /// A line that cannot be written is lost at the next start, and said now.
    fn write(&self, line: &Line) {
        let (Some(mut journal), Ok(mut text)) = (self.journal.as_ref(), serde_json::to_string(line)) else { return };
        text.push('\n');
        if let Err(error) = journal.write_all(text.as_bytes()) {
            tracing::error!(%error, "the fake Stripe cannot write its journal");
        }
    }
}
