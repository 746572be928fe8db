//! A problem and its fix.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Events do not arrive, or do not count.
    Error,
    /// It works, and a person should look.
    Warning,
    /// Something was not checked.
    Note,
}

/// One problem and its fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was checked, in one word.
    pub check: String,
    /// The problem in words.
    pub problem: String,
    /// What to do.
    pub fix: String,
    /// What stays the same while the finding stays, if the problem's text has counts or times.
    #[serde(skip)]
    pub subject: Option<String>,
}

/// The findings, in the order of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Adds a finding.
    pub fn add(&mut self, level: Level, check: &str, problem: impl Into<String>, fix: impl Into<String>) {
        let (check, problem, fix) = (check.to_owned(), problem.into(), fix.into());
        self.0.push(Finding { level, check, problem, fix, subject: None });
    }

    /// Gives the last finding a subject.
    pub(super) fn about(&mut self, subject: impl Into<String>) {
        if let Some(last) = self.0.last_mut() {
            last.subject = Some(subject.into());
        }
    }

    /// Adds an error.
    pub fn error(&mut self, check: &str, problem: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Error, check, problem, fix);
    }

    /// Adds a warning.
    pub fn warning(&mut self, check: &str, problem: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Warning, check, problem, fix);
    }

    /// Adds a note.
    pub fn note(&mut self, check: &str, problem: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Note, check, problem, fix);
    }

    /// The number of findings of a level.
    pub fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }
}

impl Level {
    /// `error`, `warning`, `note`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl Finding {
    /// A key that is the same for the same finding of another hour.
    pub fn key(&self) -> String {
        let digest = Sha256::digest(self.subject.as_ref().unwrap_or(&self.problem));
        let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{}#{}#{hex}", self.level.as_str(), self.check)
    }
}

impl fmt::Display for Finding {
    /// One line. The texts may come from outside and must not control the terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line =
            |text: &str| -> String { text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() };
        let (problem, fix) = (line(&self.problem), line(&self.fix));
        write!(f, "{:<8} {:<13} {problem}. Fix: {fix}", self.level.as_str(), self.check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_fix() {
        let mut findings = Findings::default();
        findings.error("endpoint", "we_1\n is \u{1b}[2Jdisabled", "enable it");
        assert_eq!(findings.0[0].to_string(), "error    endpoint      we_1  is  [2Jdisabled. Fix: enable it");
    }

    #[test]
    fn a_finding_with_counts_keeps_its_key() {
        let key = |problem: &str, subject: Option<&str>| {
            let mut findings = Findings::default();
            findings.error("subscriptions", problem, "");
            if let Some(subject) = subject {
                findings.about(subject);
            }
            findings.0[0].key()
        };
        assert_eq!(key("1 is on price_1", Some("price_1")), key("2 are on price_1", Some("price_1")));
        assert_ne!(key("1 is on price_1", Some("price_1")), key("1 is on price_2", Some("price_2")));
        assert_ne!(key("we_1 is disabled", None), key("we_2 is disabled", None));
    }
}
