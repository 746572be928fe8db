//! The variables of a process, and what can be wrong with them.

use std::collections::BTreeMap;

/// The variables a function was started with. The local stack and the tests make their own instead of
/// changing the process's.
#[derive(Clone, Default)]
pub struct Env {
    values: BTreeMap<String, String>,
    /// The `ssm:/path` of those whose value came from a parameter.
    given: BTreeMap<String, String>,
}

impl std::fmt::Debug for Env {
    /// Names only: values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Env {
    /// The variables of this process; those that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self { values: std::env::vars_os().filter_map(utf8).collect(), given: BTreeMap::new() }
    }

    /// A variable's value; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).filter(|value| !value.trim().is_empty()).cloned()
    }

    /// A variable that must be there.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn require(&self, name: &str) -> Result<String, ConfigError> {
        self.get(name).ok_or_else(|| ConfigError::Missing(name.to_owned()))
    }

    /// Sets a variable.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.insert(name.into(), value.into());
    }

    /// Puts a parameter's value in the place of its `ssm:/path`, which is remembered.
    pub(crate) fn set_from_parameter(&mut self, name: &str, value: String) {
        if let Some(path) = self.values.insert(name.to_owned(), value) {
            self.given.insert(name.to_owned(), path);
        }
    }

    /// Whether a variable whose name begins so was an `ssm:/path`.
    pub fn came_from_parameter(&self, prefix: &str) -> bool {
        self.given.keys().any(|name| name.starts_with(prefix))
    }

    /// The variables with every `ssm:/path` of a signing secret as it was given, to be resolved again. The
    /// others keep their values.
    pub fn as_given(&self) -> Self {
        let mut values = self.values.clone();
        values.extend(
            self.given.clone().into_iter().filter(|(name, _)| name.starts_with("STRIPE_WEBHOOK_SECRET")),
        );
        Self { values, given: BTreeMap::new() }
    }

    /// All variables, for starting a child process.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.values.iter()
    }

    /// That a variable's value makes no sense.
    pub fn wrong(name: &str, want: &str) -> ConfigError {
        ConfigError::Wrong { name: name.to_owned(), want: want.to_owned() }
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(variables: [(&str, &str); N]) -> Self {
        let values = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { values, given: BTreeMap::new() }
    }
}

/// Why a function does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable is not set, or empty.
    #[error("environment variable {0} is missing or empty")]
    Missing(String),
    /// A variable's value makes no sense. The value is left out: it may be a secret.
    #[error("environment variable {name} must be {want}")]
    Wrong {
        /// Which.
        name: String,
        /// What it must be.
        want: String,
    },
    /// No signing secret at all.
    #[error(
        "no webhook signing secret: set STRIPE_WEBHOOK_SECRET, or STRIPE_WEBHOOK_SECRET_TEST and _LIVE (Stripe shows it beside the endpoint, whsec_…)"
    )]
    NoSecret,
    /// A signing secret that cannot be one.
    #[error("environment variable {0} holds a blank signing secret: an empty key would let anyone sign")]
    BlankSecret(String),
    /// A variable is `ssm:/path`, and the parameter was not to be had.
    #[error("SSM parameter {name}: {message}")]
    Parameter {
        /// Its name.
        name: String,
        /// What SSM said.
        message: String,
    },
    /// The catalog file cannot be read, or is wrong: its path, the line, what is wrong.
    #[error("CATALOG_FILE {0}")]
    CatalogFile(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_never_prints_its_values() {
        let env = Env::from([("STRIPE_WEBHOOK_SECRET", "whsec_canary")]);
        assert!(!format!("{env:?}").contains("canary"));
    }
}
