//! The webhook endpoints at Stripe, and which of them belong to a deployment.

use serde_json::Value;

use crate::event::EventType;

/// The metadata key with the prefix of the deployment that an endpoint belongs to.
pub const PREFIX_KEY: &str = "tallyhook";
/// The metadata key of an endpoint that `setup` has replaced.
pub const REPLACED_KEY: &str = "tallyhook_replaced";

/// The path of webhook endpoints in Stripe's API.
pub const PATH: &str = "/v1/webhook_endpoints";

/// A webhook endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `we_...`
    pub id: String,
    /// Where it posts.
    pub url: String,
    /// Whether Stripe sends events to it.
    pub is_enabled: bool,
    /// `None`: the default version of the Stripe account.
    pub api_version: Option<String>,
    /// The types that it sends; `*` is all.
    pub types: Vec<String>,
    /// The prefix of the deployment in its metadata.
    pub prefix: Option<String>,
    is_replaced: bool,
    created: i64,
}

impl Endpoint {
    fn read(endpoint: &Value) -> Self {
        let text_of = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &endpoint["metadata"];
        Self {
            id: text_of(&endpoint["id"]).unwrap_or_default(),
            url: text_of(&endpoint["url"]).unwrap_or_default(),
            is_enabled: endpoint["status"] != "disabled",
            api_version: text_of(&endpoint["api_version"]),
            types: endpoint["enabled_events"].as_array().into_iter().flatten().filter_map(text_of).collect(),
            prefix: text_of(&metadata[PREFIX_KEY]),
            is_replaced: metadata[REPLACED_KEY].is_string(),
            created: endpoint["created"].as_i64().unwrap_or_default(),
        }
    }

    /// The types that the router routes and Stripe does not send.
    pub fn missing_types(&self) -> Vec<&'static str> {
        let sends = |kind: &str| self.types.iter().any(|sent| sent == kind || sent == "*");
        routed_types().filter(|kind| !sends(kind)).collect()
    }

    /// The types that Stripe sends and the router ignores.
    pub fn superfluous_types(&self) -> Vec<&str> {
        self.types
            .iter()
            .map(String::as_str)
            .filter(|sent| routed_types().all(|kind| kind != *sent))
            .collect()
    }

    /// Whether it posts to this address. A trailing slash does not count, nor which name of this machine is
    /// used.
    pub fn posts_to(&self, url: &str) -> bool {
        comparable(&self.url) == comparable(url)
    }
}

/// An address in the form in which two that mean the same place are equal.
fn comparable(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = authority.to_ascii_lowercase();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
        Some(_) | None => (authority.as_str(), ""),
    };
    let host = if matches!(host, "localhost" | "[::1]") { "127.0.0.1" } else { host };
    let scheme = scheme.to_ascii_lowercase();
    let port = if matches!((scheme.as_str(), port), ("https", "443") | ("http", "80")) { "" } else { port };
    format!("{scheme}://{host}:{port}{path}")
}

/// The types that the router routes: those that an endpoint sends.
pub fn routed_types() -> impl Iterator<Item = &'static str> {
    EventType::KNOWN.iter().map(EventType::as_str)
}

/// The endpoints of a deployment among all of an account, the oldest first: those with its prefix, else those
/// that post to it and belong to no deployment. `objects` are the newest first.
pub fn of_deployment(
    objects: &[Value],
    prefix: &str,
    posts_here: impl Fn(&Endpoint) -> bool,
) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = objects.iter().rev().map(Endpoint::read).collect();
    endpoints.retain(|endpoint| !endpoint.is_replaced);
    endpoints.sort_by_key(|endpoint| endpoint.created);
    let (ours, others): (Vec<_>, Vec<_>) =
        endpoints.into_iter().partition(|endpoint| endpoint.prefix.as_deref() == Some(prefix));
    if !ours.is_empty() {
        return ours;
    }
    others.into_iter().filter(|endpoint| endpoint.prefix.is_none() && posts_here(endpoint)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_endpoint_posts_to_every_name_of_its_address() {
        let posts =
            |one: &str, other: &str| Endpoint::read(&json!({"id": "we_1", "url": one})).posts_to(other);
        for (one, other) in [
            ("http://127.0.0.1:9000/webhooks/stripe", "http://localhost:9000/webhooks/stripe/"),
            ("http://[::1]:9000/webhooks/stripe", "http://127.0.0.1:9000/webhooks/stripe"),
            ("http://[::1]/webhooks/stripe", "http://localhost:80/webhooks/stripe"),
            ("https://Example.com/webhooks/stripe", "https://example.com:443/webhooks/stripe"),
        ] {
            assert!(posts(one, other) && posts(other, one), "{one} {other}");
        }
        for (one, other) in [
            ("http://127.0.0.1:9000/webhooks/stripe", "http://127.0.0.1:9001/webhooks/stripe"),
            ("http://127.0.0.1/webhooks/stripe", "https://127.0.0.1/webhooks/stripe"),
            ("https://example.com/webhooks/stripe", "https://example.com/webhooks/Stripe"),
            ("https://example.com.evil.test/", "https://example.com/"),
            ("not a url", "https://example.com/"),
        ] {
            assert!(!posts(one, other) && !posts(other, one), "{one} {other}");
        }
    }

    #[test]
    fn an_endpoint_for_all_types_misses_none() {
        let all = Endpoint::read(&json!({"id": "we_1", "enabled_events": ["*"]}));
        assert!(all.missing_types().is_empty());
        assert_eq!(all.superfluous_types(), ["*"]);
        let some = Endpoint::read(&json!({"id": "we_1", "enabled_events": ["invoice.paid", "invoice.sent"]}));
        assert_eq!(some.missing_types().len(), routed_types().count() - 1);
        assert_eq!(some.superfluous_types(), ["invoice.sent"]);
    }
}
