//! The path of a request, percent-decoded exactly once.
//! The two entry points of a function differ. For a request of `/a%2Fb%20c`, `rawPath` is
//!
//! | entry point | `rawPath` |
//! |---|---|
//! | an HTTP API, payload format 2.0 | `/a/b c`: decoded |
//! | a function URL | `/a%2Fb%20c`: as the client sent it |
//!
//! Sources: events of both entry points for the same request, recorded on AWS, in github.com/hotsock/voker
//! (`vokerhttp/testdata/apigwv2-request.json` and `functionurl-request.json`, commit `59c7289`); an event of
//! an HTTP API for `/a%2Fb` in github.com/fastify/aws-lambda-fastify/issues/169; and AWS's guide, "Create
//! routes for HTTP APIs" (docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-routes.html):
//! "API Gateway decodes URL-encoded request parameters before passing them to your backend integration."
//!
//! The request's URI cannot be used: `lambda_http` makes it from `rawPath` as if it were encoded, so a
//! decoded `?` or `#` cuts it off.

use std::borrow::Cow;

use lambda_http::request::RequestContext;
use lambda_http::{Request, RequestExt};
use tallyhook_core::ids::{IdError, IdProblem, UserId};

/// The decoded path. Bytes that are not UTF-8 become U+FFFD.
pub(crate) fn decoded_path(request: &Request) -> Cow<'_, str> {
    let raw = request.raw_http_path();
    if is_from_function_url(request) { Cow::Owned(percent_decode(raw)) } else { Cow::Borrowed(raw) }
}

/// Reads a user id that is part of a decoded path.
///
/// # Errors
/// [`IdError`], also for U+FFFD. It replaces any bytes that are not UTF-8, so two different ids could become
/// equal.
pub(crate) fn user_in_path(text: &str) -> Result<UserId, IdError> {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(IdError { kind: "user", problem: IdProblem::Character });
    }
    UserId::new(text)
}

/// Whether the request came through a function URL: `<id>.lambda-url.<region>.on.aws`. The domain of an HTTP
/// API is `<id>.execute-api.<region>.amazonaws.com` or the owner's own. AWS sets the name, not the client.
fn is_from_function_url(request: &Request) -> bool {
    match request.request_context_ref() {
        Some(RequestContext::ApiGatewayV2(context)) => context
            .domain_name
            .as_deref()
            .is_some_and(|domain| domain.split('.').nth(1) == Some("lambda-url")),
        Some(_) | None => false,
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match value {
            Some(value) => bytes.push(value),
            None => bytes.extend("\u{fffd}".as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A path below `/users/{id}`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UserRoute<'a> {
    /// `/users/{id}`
    Account,
    /// `/users/{id}/ledger`
    Ledger,
    /// `/users/{id}/check`
    Check,
    /// `/users/{id}/credits/consume`
    Consume,
    /// `/users/{id}/orders/{cs}`, with the last segment.
    Order(&'a str),
    /// `/users/{id}/credits/refund`
    GiveBack,
    /// `/users/{id}/portal`
    Portal,
    /// `/users/{id}/credits/holds`
    Holds,
    /// `/users/{id}/credits/holds/{hold}/commit`
    CommitHold(&'a str),
    /// `/users/{id}/credits/holds/{hold}/release`
    ReleaseHold(&'a str),
}

/// Splits the part of a path after `/users/` into the user's id and the route. The id may contain slashes, so
/// the route is matched from the end; [`tallyhook_core::ids::UserId`] refuses ids that end like a route.
pub(crate) fn user_route(path: &str) -> (&str, UserRoute<'_>) {
    if let Some((id, order)) =
        path.rsplit_once('/').and_then(|(path, order)| Some((path.strip_suffix("/orders")?, order)))
    {
        return (id, UserRoute::Order(order));
    }
    let ends = [
        ("/ledger", UserRoute::Ledger),
        ("/check", UserRoute::Check),
        ("/credits/consume", UserRoute::Consume),
        ("/credits/refund", UserRoute::GiveBack),
        ("/credits/holds", UserRoute::Holds),
        ("/portal", UserRoute::Portal),
    ];
    let plain = ends.into_iter().find_map(|(end, route)| Some((path.strip_suffix(end)?, route)));
    plain.or_else(|| hold_route(path)).unwrap_or((path, UserRoute::Account))
}

fn hold_route(path: &str) -> Option<(&str, UserRoute<'_>)> {
    let (rest, word) = path.rsplit_once('/')?;
    let (rest, hold) = rest.rsplit_once('/')?;
    let user = rest.strip_suffix("/credits/holds")?;
    match word {
        "commit" => Some((user, UserRoute::CommitHold(hold))),
        "release" => Some((user, UserRoute::ReleaseHold(hold))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_the_end_of_a_path_and_the_rest_is_the_user() {
        for (path, user, route) in [
            ("ann", "ann", UserRoute::Account),
            ("a/b/ledger", "a/b", UserRoute::Ledger),
            ("ann/check", "ann", UserRoute::Check),
            ("ann/credits/consume", "ann", UserRoute::Consume),
            ("ann/credits/refund", "ann", UserRoute::GiveBack),
            ("ann/credits/holds", "ann", UserRoute::Holds),
            ("a/b/portal", "a/b", UserRoute::Portal),
            ("a/b/credits/holds/h1/commit", "a/b", UserRoute::CommitHold("h1")),
            ("ann/credits/holds/h1/release", "ann", UserRoute::ReleaseHold("h1")),
            ("ann/credits/holds/h1/other", "ann/credits/holds/h1/other", UserRoute::Account),
            ("ann/holds/h1/commit", "ann/holds/h1/commit", UserRoute::Account),
        ] {
            assert_eq!(user_route(path), (user, route), "{path}");
        }
    }
}
