//! The dashboard's page. It contains no secret: it asks for the token and then calls the admin API.
//!
//! The script is one module, joined from the files in `dashboard/` in the order in which they use each other.
//! The script and the style have names that contain their digest, so a browser caches them until they change.
//! **Invariant:** the script writes values only as text nodes; a test looks for other ways.

use std::sync::OnceLock;

use lambda_http::http::{HeaderValue, Method, StatusCode};
use lambda_http::{Body, Request, Response};
use maud::html;
use sha2::{Digest, Sha256};

use crate::http::answer::{error_answer, method};
use crate::http::pages::HtmlPage;

const STYLE: &str = include_str!("dashboard/dashboard.css");
const SCRIPT: &str = concat!(
    include_str!("dashboard/dom.js"),
    include_str!("dashboard/api.js"),
    include_str!("dashboard/chart.js"),
    include_str!("dashboard/overview.js"),
    include_str!("dashboard/events.js"),
    include_str!("dashboard/orders.js"),
    include_str!("dashboard/balance.js"),
    include_str!("dashboard/user.js"),
    include_str!("dashboard/repair.js"),
    include_str!("dashboard/catalog.js"),
    include_str!("dashboard/app.js"),
);

/// A file that the page links.
struct Asset {
    path: String,
    kind: &'static str,
    text: &'static str,
}

/// Answers a request for the page or an asset; `None` for every other request.
pub(super) fn answer(request: &Request) -> Option<Response<Body>> {
    let path = request.uri().path();
    if method(request) != Method::GET
        || !(matches!(path, "/admin" | "/admin/") || path.starts_with("/admin/assets/"))
    {
        return None;
    }
    let assets = assets();
    match assets.iter().find(|asset| asset.path == path) {
        Some(asset) => Some(asset.answer(request)),
        None if path.starts_with("/admin/assets/") => {
            Some(error_answer(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path"))
        }
        None => Some(page(assets)),
    }
}

fn assets() -> &'static [Asset; 2] {
    static ASSETS: OnceLock<[Asset; 2]> = OnceLock::new();
    ASSETS.get_or_init(|| {
        let named = |end: &str, kind: &'static str, text: &'static str| {
            let digest: String =
                Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
            Asset { path: format!("/admin/assets/dashboard-{digest}.{end}"), kind, text }
        };
        [
            named("css", "text/css; charset=utf-8", STYLE),
            named("js", "text/javascript; charset=utf-8", SCRIPT),
        ]
    })
}

impl Asset {
    fn answer(&self, request: &Request) -> Response<Body> {
        let tag = format!("\"{}\"", self.path.rsplit('/').next().unwrap_or_default());
        let known =
            request.headers().get("if-none-match").is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let mut response = Response::new(if known { Body::Empty } else { Body::Text(self.text.to_owned()) });
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static(self.kind));
        headers.insert("cache-control", HeaderValue::from_static("public, max-age=31536000, immutable"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        if let Ok(tag) = HeaderValue::try_from(tag) {
            headers.insert("etag", tag);
        }
        response
    }
}

fn page([style, script]: &[Asset; 2]) -> Response<Body> {
    let body = html! {
        a class="skip" id="skip" href="#view" { "Skip to content" }
        noscript {
            main class="narrow" {
                div class="card" {
                    "The dashboard needs JavaScript. The command line does not: tallyhook check-user."
                }
            }
        }
        main id="login" hidden {
            div class="card signin" {
                h1 { "tallyhook" }
                p class="muted" { "Find out why a customer has no credits, and fix it." }
                form id="login-form" {
                    div class="field" {
                        label for="token" { "Admin token" }
                        input id="token" type="password" autocomplete="current-password" required
                            aria-describedby="token-hint login-problem";
                        p id="token-hint" class="small muted" {
                            "It stays in this tab until you close it. Its name is kept in the audit with everything \
                             you change."
                        }
                    }
                    p id="login-problem" class="form-problem" role="alert" {}
                    button id="login-go" type="submit" { "Sign in" }
                }
            }
        }
        div id="app" hidden {
            header class="top" {
                div {
                    a class="brand" href="#/" { "tallyhook" span { " admin" } }
                    nav id="nav" aria-label="Sections" {}
                    div class="me" {
                        span id="who" class="small muted" {}
                        button id="leave" type="button" class="quiet" { "Sign out" }
                    }
                }
            }
            main id="view" {}
        }
        p id="live" class="visually-hidden" aria-live="polite" {}
        div id="toasts" {}
    };
    HtmlPage::new("tallyhook").sheet(&style.path).module(&script.path).connects().answer(200, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_cannot_turn_a_value_into_markup_or_code() {
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
            "DOMParser",
            "javascript:",
        ] {
            assert!(!SCRIPT.contains(way), "{way}");
        }
    }
}
