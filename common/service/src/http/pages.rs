//! What every page for people shares: the frame, the look ([`BASE`]) and the headers that keep what came from
//! outside from acting.
//!
//! A page is one answer: its style and script are in it, static texts of this crate, and the
//! Content-Security-Policy names their SHA-256. So a page costs one invocation, and nothing that is not one
//! of these texts is ever run or applied: no handler in an attribute, no inline style, nothing that a value
//! brought along. Markup is made by `maud`, which checks it when it is compiled and escapes every value;
//! [`maud::PreEscaped`] is for static texts only.
//!
//! ```
//! use tallyhook_service::http::pages::Page;
//! use maud::html;
//!
//! let user = "<script>alert(1)</script>"; // shown as it is written
//! let page = Page::new("Hello").script("document.title = 'Hi'");
//! let answer = page.answer(200, &html! { main class="narrow" { div class="card" { h1 { "Hello " (user) } } } });
//! assert!(answer.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'sha256-"));
//! ```

pub mod status;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lambda_http::http::{HeaderValue, StatusCode};
use lambda_http::{Body, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

/// Colours of both schemes, type, spacing, and the parts that pages are made of: `.card`, `button`, `.pill`,
/// `.notice`, tables, forms.
pub const BASE: &str = include_str!("pages/base.css");

/// A page: what goes around its body.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    title: &'a str,
    styles: Vec<&'static str>,
    scripts: Vec<&'static str>,
    sheet: Option<&'a str>,
    module: Option<&'a str>,
    connects: bool,
}

impl<'a> Page<'a> {
    /// A page with the shared look and no script.
    pub fn new(title: &'a str) -> Self {
        Self { title, styles: vec![BASE], scripts: Vec::new(), sheet: None, module: None, connects: false }
    }

    /// Adds a style sheet of this page's own.
    #[must_use]
    pub fn style(mut self, css: &'static str) -> Self {
        self.styles.push(css);
        self
    }

    /// Adds a script; it runs once the page is read. It finds its data in `data-` attributes.
    #[must_use]
    pub fn script(mut self, js: &'static str) -> Self {
        self.scripts.push(js);
        self
    }

    /// Links a style sheet of this same host: for one that is large enough to be worth keeping in the
    /// browser.
    #[must_use]
    pub fn sheet(mut self, path: &'a str) -> Self {
        self.sheet = Some(path);
        self
    }

    /// Loads a module of this same host, likewise.
    #[must_use]
    pub fn module(mut self, path: &'a str) -> Self {
        self.module = Some(path);
        self
    }

    /// Lets the script ask this same host.
    #[must_use]
    pub fn connects(mut self) -> Self {
        self.connects = true;
        self
    }

    /// The page with this body, as an answer.
    pub fn answer(&self, status: u16, body: &Markup) -> Response<Body> {
        let document = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="robots" content="noindex";
                    // Else the browser asks for /favicon.ico, which no function has.
                    link rel="icon" href="data:,";
                    title { (self.title) }
                    @for css in &self.styles { style { (PreEscaped(css)) } }
                    @if let Some(path) = self.sheet { link rel="stylesheet" href=(path); }
                    @if let Some(path) = self.module { script type="module" src=(path) {} }
                }
                body {
                    (body)
                    @for js in &self.scripts { script { (PreEscaped(js)) } }
                }
            }
        };
        let mut response = Response::new(Body::Text(document.into_string()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert("cache-control", HeaderValue::from_static("no-store"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        headers.insert("x-frame-options", HeaderValue::from_static("DENY"));
        headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
        headers.insert("strict-transport-security", HeaderValue::from_static("max-age=31536000"));
        // The address of a page holds ids.
        headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
        if let Ok(policy) = HeaderValue::try_from(self.policy()) {
            headers.insert("content-security-policy", policy);
        }
        response
    }

    fn policy(&self) -> String {
        let sources = |texts: &[&str], linked: Option<&str>| {
            let hash = |text: &&str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())));
            let all: Vec<String> =
                texts.iter().map(hash).chain(linked.map(|_| "'self'".to_owned())).collect();
            if all.is_empty() { "'none'".to_owned() } else { all.join(" ") }
        };
        let connect = if self.connects { "'self'" } else { "'none'" };
        format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src {connect}; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            sources(&self.scripts, self.module),
            sources(&self.styles, self.sheet)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_runs_its_own_script_and_shows_what_came_from_outside_as_text() {
        let hostile = "\"><script>alert(1)</script>";
        let answer = Page::new(hostile)
            .script("let a = 1 < 2;")
            .answer(200, &html! { p data-value=(hostile) { (hostile) } });
        let Body::Text(text) = answer.body() else { panic!("a page is text") };
        assert!(text.contains("<script>let a = 1 < 2;</script>") && !text.contains("<script>alert"));
        assert_eq!(text.matches("&quot;&gt;&lt;script&gt;").count(), 3);
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        // `printf 'let a = 1 < 2;' | openssl dgst -sha256 -binary | base64`
        assert!(
            policy.contains("script-src 'sha256-Xd/xFl+DmsVqHczJvGQWMh7nLH7H7r5iGmQKRm0JimU=';"),
            "{policy}"
        );
        assert!(
            policy.starts_with("default-src 'none'; ")
                && policy.contains("connect-src 'none'")
                && !policy.contains("unsafe")
        );
    }

    #[test]
    fn no_page_has_a_text_that_would_end_its_own_element() {
        assert!(!BASE.contains("</"));
    }
}
