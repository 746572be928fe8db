//! The environment variables of a process, and the errors in them.

use std::collections::BTreeMap;

/// The environment variables of a function. The local stack and the tests build their own set instead of
/// changing the variables of the process.
#[derive(Clone, Default)]
pub struct Env {
    values: BTreeMap<String, String>,
    /// The original `ssm:/path` of each variable whose value came from a parameter.
    parameter_paths: BTreeMap<String, String>,
}

impl std::fmt::Debug for Env {
    /// Prints names only, because values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Env {
    /// The variables of this process. A variable that is not UTF-8 is left out.
    pub fn of_process() -> Self {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self { values: std::env::vars_os().filter_map(utf8).collect(), parameter_paths: BTreeMap::new() }
    }

    /// The value of a variable; `None` when it is not set or blank.
    pub fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).filter(|value| !value.trim().is_empty()).cloned()
    }

    /// The value of a required variable.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when it is not set or blank.
    pub fn require(&self, name: &str) -> Result<String, ConfigError> {
        self.get(name).ok_or_else(|| ConfigError::Missing(name.to_owned()))
    }

    /// Sets a variable.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.insert(name.into(), value.into());
    }

    /// Replaces an `ssm:/path` with the parameter's value and keeps the path for [`Env::unresolved`].
    pub(crate) fn set_from_parameter(&mut self, name: &str, value: String) {
        if let Some(path) = self.values.insert(name.to_owned(), value) {
            self.parameter_paths.insert(name.to_owned(), path);
        }
    }

    /// A copy in which each variable with this name prefix whose value came from SSM holds its `ssm:/path`
    /// again, so that it can be read anew. The other variables keep their values. `None` when no variable
    /// with the prefix came from SSM.
    pub fn unresolved(&self, prefix: &str) -> Option<Self> {
        let paths = self.parameter_paths.iter().filter(|(name, _)| name.starts_with(prefix));
        let paths: BTreeMap<_, _> = paths.map(|(name, path)| (name.clone(), path.clone())).collect();
        if paths.is_empty() {
            return None;
        }
        let mut values = self.values.clone();
        values.extend(paths);
        Some(Self { values, parameter_paths: BTreeMap::new() })
    }

    /// All variables, for starting a child process.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.values.iter()
    }

    /// A [`ConfigError::Wrong`]: `want` says what the value must be.
    pub fn wrong(name: &str, want: &str) -> ConfigError {
        ConfigError::Wrong { name: name.to_owned(), want: want.to_owned() }
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(variables: [(&str, &str); N]) -> Self {
        let values = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { values, parameter_paths: BTreeMap::new() }
    }
}

/// Why a function does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required variable is not set, or it is empty.
    #[error("environment variable {0} is missing or empty")]
    Missing(String),
    /// The value of a variable is invalid. The message leaves the value out, because it may be a secret.
    #[error("environment variable {name} must be {want}")]
    Wrong {
        /// Name of the variable.
        name: String,
        /// What the value must be.
        want: String,
    },
    /// No signing secret is set.
    #[error(
        "no webhook signing secret: set STRIPE_WEBHOOK_SECRET, or STRIPE_WEBHOOK_SECRET_TEST and _LIVE \
         (Stripe shows it beside the endpoint, whsec_…)"
    )]
    NoSecret,
    /// A signing secret is blank.
    #[error("environment variable {0} holds a blank signing secret: an empty key would let anyone sign")]
    BlankSecret(String),
    /// A variable is `ssm:/path`, and the parameter could not be read.
    #[error("SSM parameter {name}: {message}")]
    Parameter {
        /// Name of the parameter.
        name: String,
        /// The error.
        message: String,
    },
    /// The catalog file cannot be read or is invalid. The text holds its path, the line and the error.
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
