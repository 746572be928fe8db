//! What every HTML page shares: the frame, the style ([`BASE`]) and the security headers.
//!
//! A page is one answer. Its style and script are static texts of this crate, and the Content-Security-Policy
//! contains their SHA-256. So a page costs one invocation, and the browser runs no other script or style: no
//! handler in an attribute, no inline style, nothing that a value contains. `maud` checks the markup at
//! compile time and escapes every value; [`maud::PreEscaped`] is only for static texts.
//!
//! ```
//! use tallyhook_service::http::pages::HtmlPage;
//! use maud::html;
//!
//! let user = "<script>alert(1)</script>"; // is shown as text
//! let page = HtmlPage::new("Hello").script("document.title = 'Hi'");
//! let body = html! { main class="narrow" { div class="card" { h1 { "Hello " (user) } } } };
//! let answer = page.answer(200, &body);
//! assert!(answer.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'sha256-"));
//! ```

pub mod status;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lambda_http::http::{HeaderValue, StatusCode};
use lambda_http::{Body, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

/// The shared style sheet: the colours of the light and the dark scheme, fonts, spacing, and the parts of
/// pages: `.card`, `button`, `.pill`, `.notice`, tables, forms.
pub const BASE: &str = include_str!("pages/base.css");

/// An HTML page without its body.
#[derive(Clone, Debug)]
pub struct HtmlPage<'a> {
    title: &'a str,
    styles: Vec<&'static str>,
    scripts: Vec<&'static str>,
    sheet: Option<&'a str>,
    module: Option<&'a str>,
    connects: bool,
}

/// The source of a Content-Security-Policy that allows this text of a script or a style.
pub fn csp_hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

impl<'a> HtmlPage<'a> {
    /// A page with the shared style and no script.
    pub fn new(title: &'a str) -> Self {
        Self { title, styles: vec![BASE], scripts: Vec::new(), sheet: None, module: None, connects: false }
    }

    /// Adds a style sheet.
    #[must_use]
    pub fn style(mut self, css: &'static str) -> Self {
        self.styles.push(css);
        self
    }

    /// Adds a script, which runs after the page is parsed. It reads its data from `data-` attributes.
    #[must_use]
    pub fn script(mut self, js: &'static str) -> Self {
        self.scripts.push(js);
        self
    }

    /// Links a style sheet of the same host, for one that is large enough to be cached by the browser.
    #[must_use]
    pub fn sheet(mut self, path: &'a str) -> Self {
        self.sheet = Some(path);
        self
    }

    /// Loads a script module of the same host, for one that is large enough to be cached by the browser.
    #[must_use]
    pub fn module(mut self, path: &'a str) -> Self {
        self.module = Some(path);
        self
    }

    /// Lets the script send requests to the same host.
    #[must_use]
    pub fn connects(mut self) -> Self {
        self.connects = true;
        self
    }

    /// The answer with this body.
    pub fn answer(&self, status: u16, body: &Markup) -> Response<Body> {
        let document = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="robots" content="noindex";
                    // Without this, the browser requests /favicon.ico, which no function answers.
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
        // The address of a page contains ids, which other sites must not see.
        headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
        if let Ok(policy) = HeaderValue::try_from(self.policy()) {
            headers.insert("content-security-policy", policy);
        }
        response
    }

    fn policy(&self) -> String {
        let sources = |texts: &[&str], linked: Option<&str>| {
            let all: Vec<String> =
                texts.iter().map(|text| csp_hash(text)).chain(linked.map(|_| "'self'".to_owned())).collect();
            if all.is_empty() { "'none'".to_owned() } else { all.join(" ") }
        };
        let connect = if self.connects { "'self'" } else { "'none'" };
        format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src {connect}; img-src data:; \
             base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            sources(&self.scripts, self.module),
            sources(&self.styles, self.sheet)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_runs_only_its_own_script_and_shows_values_as_text() {
        let hostile = "\"><script>alert(1)</script>";
        let answer = HtmlPage::new(hostile)
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
    fn the_shared_style_cannot_close_its_element() {
        assert!(!BASE.contains("</"));
    }
}
