//! The sample events of the folder `events`, unchanged or about another user.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;
use uuid::Uuid;

/// Every id in the samples contains this text. A copy with ids of its own replaces it.
const MARK: &str = "TallyHook";

/// The JSON text of an event.
#[derive(Clone)]
pub struct Sample {
    body: Vec<u8>,
}

impl Sample {
    /// An event that is not one of the samples.
    pub fn from_body(body: Vec<u8>) -> Self {
        Self { body }
    }

    /// Reads a file, or a sample by its name: `invoice.paid`, `old/invoice.paid`.
    ///
    /// # Errors
    /// When there is no such file or sample. The message names the samples with a similar name.
    pub fn find(name: &str) -> anyhow::Result<Self> {
        if Path::new(name).is_file() {
            return Ok(Self { body: std::fs::read(name).with_context(|| format!("cannot read {name}"))? });
        }
        let folder = folder().with_context(|| format!("{name} is not a file"))?;
        match std::fs::read(folder.join(format!("{name}.json"))) {
            Ok(body) => Ok(Self { body }),
            Err(_) => {
                let names = names(&folder);
                let similar: Vec<&str> = names
                    .iter()
                    .map(String::as_str)
                    .filter(|other| other.starts_with(name) || name.starts_with(*other))
                    .collect();
                if similar.is_empty() {
                    bail!(
                        "{name} is not a file and not a sample; `tallyhook send --list` prints the samples"
                    );
                }
                bail!("{name} is not a file and not a sample. Similar samples: {}", similar.join(", "))
            }
        }
    }

    /// The names of all samples, sorted.
    ///
    /// # Errors
    /// When there is no folder with samples.
    pub fn list() -> anyhow::Result<Vec<String>> {
        Ok(names(&folder()?))
    }

    /// The bytes to sign and send.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// A text field of the event itself, such as `id` and `type`.
    pub fn field(&self, name: &str) -> String {
        let event: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        event.get(name).and_then(Value::as_str).unwrap_or("?").to_owned()
    }

    /// The same event with another id.
    ///
    /// # Errors
    /// When the event is not a JSON object.
    pub fn with_id(&self, id: &str) -> anyhow::Result<Self> {
        self.changed(|event| event["id"] = Value::from(id))
    }

    /// The same event with a new id.
    ///
    /// # Errors
    /// When the event is not a JSON object.
    pub fn fresh(&self) -> anyhow::Result<Self> {
        self.with_id(&format!("evt_{}", Uuid::new_v4().simple()))
    }

    /// The same event about another user. In a sample, the ids of the event, customer, subscription and so on
    /// change too: with the same customer it would be about the same user. The same user always gets the same
    /// ids.
    ///
    /// # Errors
    /// When the event is not a JSON object.
    pub fn about(&self, user: &str) -> anyhow::Result<Self> {
        let mut is_changed = false;
        let changed = self.changed(|event| is_changed = set_user(event, user))?;
        if !is_changed {
            return Ok(self.clone());
        }
        let text = String::from_utf8(changed.body)?;
        let own = Uuid::new_v5(&Uuid::NAMESPACE_OID, user.as_bytes()).simple().to_string();
        let mark = format!("{MARK}{}", own.get(..10).unwrap_or_default());
        Ok(Self { body: text.replace(MARK, &mark).into_bytes() })
    }

    /// A changed copy, indented as Stripe writes its events.
    fn changed(&self, change: impl FnOnce(&mut Value)) -> anyhow::Result<Self> {
        let mut event: Value = serde_json::from_slice(&self.body)
            .context("the event is not JSON, so it can only be sent unchanged")?;
        if !event.is_object() {
            bail!("the event is not a JSON object, so it can only be sent unchanged");
        }
        change(&mut event);
        Ok(Self { body: serde_json::to_vec_pretty(&event)? })
    }
}

/// Writes `user` into every field that names the user. True when a value changed.
fn set_user(value: &mut Value, user: &str) -> bool {
    let set = |value: &mut Value| {
        let differs = value.as_str().is_some_and(|old| old != user);
        if differs {
            *value = Value::from(user);
        }
        differs
    };
    match value {
        Value::Object(fields) => {
            fields.iter_mut().fold(false, |changed, (name, value)| match (name.as_str(), &*value) {
                ("client_reference_id", Value::String(_)) => set(value) | changed,
                ("metadata", Value::Object(_)) => ["user_id", "client_id"]
                    .iter()
                    .fold(changed, |changed, name| value.get_mut(name).is_some_and(set) | changed),
                _ => set_user(value, user) | changed,
            })
        }
        Value::Array(values) => {
            values.iter_mut().fold(false, |changed, value| set_user(value, user) | changed)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The folder `events` of the current directory, or else of the source tree.
fn folder() -> anyhow::Result<PathBuf> {
    let folders = [PathBuf::from("events"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../events")];
    folders
        .into_iter()
        .find(|folder| folder.join("invoice.paid.json").is_file())
        .context("there is no folder `events` with samples in the current directory")
}

fn names(folder: &Path) -> Vec<String> {
    let in_folder = |prefix: &str| {
        let files = std::fs::read_dir(folder.join(prefix)).into_iter().flatten().flatten();
        let prefix = prefix.to_owned();
        files.filter_map(move |file| {
            Some(format!("{prefix}{}", file.file_name().to_str()?.strip_suffix(".json")?))
        })
    };
    let mut names: Vec<String> = in_folder("").chain(in_folder("old/")).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_about_another_user_has_other_ids() {
        let sample = Sample::find("checkout.session.completed.pack").unwrap();
        let bob = sample.about("bob").unwrap();
        let text = String::from_utf8(bob.body().to_vec()).unwrap();
        assert!(!text.contains("user_123"));
        let event: Value = serde_json::from_slice(bob.body()).unwrap();
        assert_eq!(event["data"]["object"]["client_reference_id"], "bob");
        assert_eq!(event["data"]["object"]["metadata"]["user_id"], "bob");
        assert_ne!(bob.field("id"), sample.field("id"));
        assert!(!text.contains("cus_TallyHook0001"));
        assert_eq!(bob.body(), sample.about("bob").unwrap().body());
        assert_ne!(bob.body(), sample.about("eve").unwrap().body());
        assert_eq!(sample.about("user_123").unwrap().body(), sample.body());
    }

    #[test]
    fn a_fresh_event_differs_only_in_its_id() {
        let sample = Sample::find("invoice.paid").unwrap();
        let fresh = sample.fresh().unwrap();
        assert_ne!(fresh.field("id"), sample.field("id"));
        assert_eq!(fresh.with_id("evt_1").unwrap().body(), sample.with_id("evt_1").unwrap().body());
    }

    #[test]
    fn an_unknown_name_lists_similar_samples() {
        let error = Sample::find("invoice.payment").err().unwrap().to_string();
        assert!(error.contains("invoice.payment_failed") && !error.contains("charge.refunded"), "{error}");
    }
}
