//! Configuration of `admin`: the tokens of its operators.

use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{HealthConfig, RetryConfig, keep_payloads, livemode};
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::stripe::StripeConfig;

const TOKEN: &str = "ADMIN_API_TOKEN";
const TOKENS: &str = "ADMIN_API_TOKENS";
/// The name of the operator who has [`TOKEN`].
const NAME_OF_TOKEN: &str = "admin";
const MAX_NAME: usize = 100;

/// What an operator may do. Each role may do what the roles before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Sends events again, dismisses them, reconciles, runs jobs again, and changes users, with grants of up
    /// to the token's `max_grant`.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// The name in the configuration, in answers and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator, Self::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// A token of the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminToken {
    /// The operator. It is the actor of everything that is changed with this token.
    pub name: String,
    /// What the operator may do.
    pub role: Role,
    /// The most credits of one change; `None` is without this limit.
    pub max_grant: Option<u64>,
    /// The SHA-256 of the token.
    pub sha256: [u8; 32],
}

/// Configuration of `admin`.
pub struct AdminConfig {
    /// The tokens; without one, every route refuses.
    pub tokens: Vec<AdminToken>,
    /// The variables with `ssm:/path` not replaced, to read the tokens again; `None` when no token is a
    /// parameter.
    pub tokens_source: Option<Env>,
    /// The mode of this deployment; `None` applies events of both.
    pub livemode: Option<bool>,
    /// Whether the log keeps the body of a finished event.
    pub keep_payloads: bool,
    /// Stripe's API and the key; `None` without a key.
    pub stripe: Option<StripeConfig>,
    /// Configuration for sending events again.
    pub retry: RetryConfig,
    /// Configuration for the health route.
    pub health: HealthConfig,
}

impl AdminConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self {
            tokens: admin_tokens(env)?,
            tokens_source: env.unresolved(TOKEN),
            livemode: livemode(env)?,
            keep_payloads: keep_payloads(env)?,
            stripe: StripeConfig::from_env(env)?,
            retry: RetryConfig::from_env(env)?,
            health: HealthConfig::from_env(env)?,
        })
    }
}

/// Reads `ADMIN_API_TOKENS`, and `ADMIN_API_TOKEN`, which is the token of an admin named `admin`.
///
/// ```json
/// [{"name":"ann","role":"operator","max_grant":1000,"sha256":"9f86d081884c7d659a2feaa0c55ad015…"}]
/// ```
/// Two entries may have one name, so that a token can be replaced with an overlap. Without `max_grant`, an
/// admin grants any amount and an operator none. With an empty list, every request is refused.
///
/// # Errors
/// [`ConfigError`] naming the variable and the entry. The text quotes nothing of the value, which may contain
/// a token.
pub fn admin_tokens(env: &Env) -> Result<Vec<AdminToken>, ConfigError> {
    let mut tokens = Vec::new();
    if let Some(text) = env.get(TOKENS) {
        let wrong = |what: &str| {
            let want = format!(r#"a JSON list of {{"name","role","max_grant","sha256"}}: {what}"#);
            Env::wrong(TOKENS, &want)
        };
        let entries: Vec<Map<String, Value>> = serde_json::from_str(&text).map_err(|error| {
            wrong(&format!("it is not a list of objects (line {}, column {})", error.line(), error.column()))
        })?;
        for (at, entry) in entries.into_iter().enumerate() {
            let token = read_token(entry).map_err(|what| wrong(&format!("entry {}: {what}", at + 1)))?;
            tokens.push(token);
        }
    }
    if let Some(token) = env.get(TOKEN) {
        let sha256 = Sha256::digest(token.as_bytes()).into();
        let name = NAME_OF_TOKEN.to_owned();
        tokens.push(AdminToken { name, role: Role::Admin, max_grant: None, sha256 });
    }
    let mut hashes: Vec<&[u8; 32]> = tokens.iter().map(|token| &token.sha256).collect();
    hashes.sort_unstable();
    if hashes.windows(2).any(|pair| pair[0] == pair[1]) {
        let want = "a list in which no two entries have one sha256, and none has that of ADMIN_API_TOKEN";
        return Err(Env::wrong(TOKENS, want));
    }
    Ok(tokens)
}

#[derive(Deserialize)]
struct TokenEntry {
    name: String,
    role: String,
    max_grant: Option<u64>,
    sha256: String,
}

fn read_token(entry: Map<String, Value>) -> Result<AdminToken, &'static str> {
    if entry.keys().any(|field| !["name", "role", "max_grant", "sha256"].contains(&field.as_str())) {
        return Err("it has a field besides name, role, max_grant and sha256");
    }
    let entry = TokenEntry::deserialize(Value::Object(entry))
        .map_err(|_| "name, role and sha256 must be texts, and max_grant a whole number or absent")?;
    let name = entry.name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err("name must have 1 to 100 characters");
    }
    let role = Role::from_text(&entry.role).ok_or("role must be viewer, operator or admin")?;
    let sha256 = from_hex(&entry.sha256).ok_or("sha256 must be the 64 hex digits of the token's SHA-256")?;
    if sha256 == <[u8; 32]>::from(Sha256::digest(b"")) {
        return Err("sha256 is that of an empty token");
    }
    let max_grant = entry.max_grant.or(if role == Role::Admin { None } else { Some(0) });
    Ok(AdminToken { name: name.to_owned(), role, max_grant, sha256 })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The SHA-256 of `abc`, from FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn read(tokens: &str) -> Result<Vec<AdminToken>, String> {
        admin_tokens(&Env::from([(TOKENS, tokens)])).map_err(|error| error.to_string())
    }

    #[test]
    fn an_entry_has_a_name_a_role_a_largest_grant_and_a_hash() {
        let list = format!(
            r#"[{{"name":"ann","role":"operator","max_grant":1000,"sha256":"{ABC}"}},
                {{"name":"bob","role":"operator","sha256":"{}"}},
                {{"name":"cleo","role":"admin","sha256":"{}"}}]"#,
            ABC.replace('b', "c"),
            ABC.replace('b', "d").to_uppercase(),
        );
        let tokens = read(&list).unwrap();
        assert_eq!(tokens[0].sha256, <[u8; 32]>::from(Sha256::digest(b"abc")));
        let read: Vec<_> =
            tokens.iter().map(|token| (token.name.as_str(), token.role, token.max_grant)).collect();
        assert_eq!(
            read,
            [
                ("ann", Role::Operator, Some(1000)),
                ("bob", Role::Operator, Some(0)),
                ("cleo", Role::Admin, None)
            ]
        );
    }

    #[test]
    fn the_single_token_is_an_admin_named_admin() {
        let tokens = admin_tokens(&Env::from([(TOKEN, "abc")])).unwrap();
        assert_eq!(tokens.len(), 1);
        assert_eq!((tokens[0].name.as_str(), tokens[0].role), ("admin", Role::Admin));
        assert!(admin_tokens(&Env::default()).unwrap().is_empty());
    }

    #[test]
    fn a_wrong_list_names_its_entry_and_quotes_nothing() {
        let entry =
            |fields: &str| format!(r#"[{{"name":"ann","role":"viewer","sha256":"{ABC}"}},{{{fields}}}]"#);
        let secret = "canary";
        for (list, what) in [
            (secret.to_owned(), "not a list of objects (line 1"),
            (format!(r#"{{"name":"{secret}"}}"#), "not a list of objects"),
            (format!(r#"["{secret}"]"#), "not a list of objects"),
            (
                entry(&format!(r#""name":"bob","role":"viewer","{secret}":1"#)),
                "entry 2: it has a field besides",
            ),
            (
                entry(&format!(r#""name":"bob","role":"viewer","sha256":{{"{secret}":1}}"#)),
                "entry 2: name, role",
            ),
            (
                entry(&format!(r#""name":"bob","role":"{secret}","sha256":"{ABC}""#)),
                "entry 2: role must be viewer",
            ),
            (
                entry(&format!(r#""name":"bob","role":"viewer","sha256":"{secret}""#)),
                "entry 2: sha256 must be",
            ),
            (entry(&format!(r#""name":" ","role":"viewer","sha256":"{ABC}""#)), "entry 2: name must have"),
            (
                entry(&format!(r#""name":"bob","role":"viewer","sha256":"{ABC}""#)),
                "no two entries have one sha256",
            ),
            (
                entry(
                    r#""name":"bob","role":"viewer","sha256":
                    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
                ),
                "entry 2: sha256 is that of an empty token",
            ),
            (entry(r#""name":"bob","role":"viewer","sha256":"","max_grant":-1"#), "max_grant a whole number"),
        ] {
            let error = read(&list).unwrap_err();
            assert!(error.contains("ADMIN_API_TOKENS") && error.contains(what), "{list}: {error}");
            assert!(!error.contains(secret) && !error.contains(ABC), "{error}");
        }
    }

    #[test]
    fn the_single_token_must_not_be_in_the_list_too() {
        let list = format!(r#"[{{"name":"ann","role":"viewer","sha256":"{ABC}"}}]"#);
        let error = admin_tokens(&Env::from([(TOKENS, list.as_str()), (TOKEN, "abc")])).unwrap_err();
        assert!(error.to_string().contains("that of ADMIN_API_TOKEN"), "{error}");
    }
}
