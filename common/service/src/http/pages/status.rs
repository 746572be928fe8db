//! `/portal/status?session_id=cs_…`: the page that a customer sees after checkout.
//!
//! It shows three steps with their state, and a button that refreshes them. The script requests
//! `/portal/setup-status` every 5 seconds and stops after 180 seconds; then a banner shows the reference
//! (`customer_reference` of the session's metadata, else the session's id) and the support address. Without
//! JavaScript, the page says that it needs it.

use lambda_http::{Body, Response};
use maud::html;

use super::HtmlPage;

const STYLE: &str = include_str!("status.css");
const SCRIPT: &str = include_str!("status.js");
/// The time between two requests of the script.
const POLL_MS: u32 = 5_000;
/// The time after which the script stops and shows the banner.
const MAX_WAIT_MS: u32 = 180_000;

/// The values that the page shows.
pub struct StatusPage<'a> {
    /// The id of the checkout session; `None` when the address has none.
    pub session: Option<&'a str>,
    /// Where the customer goes when the setup is complete.
    pub app_url: Option<&'a str>,
    /// The address that the customer can write to.
    pub support_email: Option<&'a str>,
}

impl StatusPage<'_> {
    /// The page.
    pub fn answer(&self) -> Response<Body> {
        match self.session {
            Some(session) => self.page(session),
            None => self.no_session(),
        }
    }

    fn page(&self, session: &str) -> Response<Body> {
        let steps = [("payment", "Payment"), ("provisioning", "Your account"), ("password", "Password")];
        let body = html! {
            main.narrow {
                section.card #status data-session=(session) data-poll=(POLL_MS) data-patience=(MAX_WAIT_MS)
                    aria-labelledby="headline" {
                    div role="status" aria-live="polite" aria-atomic="true" {
                        h1 #headline { "Confirming your payment" }
                        p.muted #detail { "This usually takes a few seconds. You can leave this page open." }
                    }
                    ol.steps {
                        @for (name, label) in steps {
                            li #(format!("step-{name}")) data-state="waiting" {
                                span.mark aria-hidden="true" {}
                                span.label { (label) }
                                span.state { "Waiting" }
                            }
                        }
                    }
                    div.row {
                        button #refresh type="button" { "Refresh status" }
                        @if let Some(url) = self.app_url {
                            a.button #continue href=(url) hidden { "Continue" }
                        }
                    }
                    p.muted.small #checked { "Not checked yet" }
                    noscript {
                        div.notice data-tone="warn" {
                            p { "This page needs JavaScript to show your payment. Reload it to try again." }
                        }
                    }
                }
                section.notice #banner data-tone="warn" role="alert" hidden {
                    h2 #banner-title { "This takes longer than usual" }
                    p #banner-text { "Your payment is safe. There is no need to pay again." }
                    dl {
                        dt { "Reference" }
                        dd { code #reference { (session) } }
                        @if let Some(email) = self.support_email {
                            dt { "Support" }
                            dd { (mail(email, session)) }
                        }
                    }
                }
            }
        };
        HtmlPage::new("Your order").style(STYLE).script(SCRIPT).connects().answer(200, &body)
    }

    fn no_session(&self) -> Response<Body> {
        let body = html! {
            main.narrow {
                section.card {
                    h1 { "We do not know which order this is" }
                    p {
                        "The address of this page should end with the reference of your checkout. "
                        "Please open the link that you were sent to after paying."
                    }
                    @if let Some(email) = self.support_email {
                        p {
                            "If that does not help, write to " a href={ "mailto:" (email) } { (email) } "."
                        }
                    }
                    @if let Some(url) = self.app_url { p { a.button.quiet href=(url) { "Back" } } }
                }
            }
        };
        HtmlPage::new("Your order").answer(400, &body)
    }
}

/// A mail link with the reference as subject. Ids consist of letters, digits and `_`, so they need no
/// encoding.
fn mail(email: &str, session: &str) -> maud::Markup {
    html! { a #support href={ "mailto:" (email) "?subject=Order%20" (session) } { (email) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(page: &StatusPage<'_>) -> (u16, String) {
        let answer = page.answer();
        let Body::Text(text) = answer.body() else { panic!("a page is text") };
        (answer.status().as_u16(), text.clone())
    }

    #[test]
    fn the_page_contains_the_reference_and_the_support_address() {
        let page = StatusPage {
            session: Some("cs_1"),
            app_url: Some("https://app.example.com"),
            support_email: Some("help@example.com"),
        };
        let (status, text) = text(&page);
        assert_eq!(status, 200);
        for part in [
            "<code id=\"reference\">cs_1</code>",
            "mailto:help@example.com?subject=Order%20cs_1",
            "data-poll=\"5000\"",
            "data-patience=\"180000\"",
            "aria-live",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!SCRIPT.contains("innerHTML") && !SCRIPT.contains("</") && !STYLE.contains("</"));
    }

    #[test]
    fn the_page_works_without_a_session_or_a_support_address() {
        let (status, html) = text(&StatusPage { session: None, app_url: None, support_email: None });
        assert_eq!(status, 400);
        assert!(html.contains("We do not know which order this is") && !html.contains("href=\"mailto:"));
        let (_, html) = text(&StatusPage { session: Some("cs_1"), app_url: None, support_email: None });
        assert!(!html.contains("href=\"mailto:") && !html.contains("id=\"continue\""));
    }
}
