//! The HTML of the start page with its shop, and of the pages in place of Stripe's checkout and billing
//! portal.
//!
//! The scripts fetch everything that changes, and write it as text nodes.

use axum::body::Body;
use axum::http::HeaderValue;
use axum::response::Response;
use cli::local_stack::{self, APP_TOKEN};
use maud::{Markup, html};
use serde_json::{Value, json};
use tallyhook_core::catalog::{Catalog, Per, Refill};
use tallyhook_service::http::pages::{HtmlPage, csp_hash};

use super::Shared;
use crate::fake_stripe::FakeStripe;

const STYLE: &str = include_str!("shop.css");
const SHOP: &str = include_str!("shop.js");
const STRIPE: &str = include_str!("stripe.js");
/// The example of a page with prices, which an app can copy.
const PRICING: &str = include_str!("../../../../examples/pricing.html");
/// The user of a browser that opens the shop for the first time.
const FIRST_USER: &str = "ada";

/// Something on sale.
struct Offer {
    name: String,
    description: String,
    price: String,
    /// The body of the request that buys it: `{"plan":"pro"}`.
    order: Value,
}

/// `/`
pub(super) fn start(shop: &Shared) -> Response {
    let body = html! {
        a.skip href="#shop" { "Skip to the shop" }
        header.top { div {
            span.brand { "tallyhook" span { " on this machine" } }
            nav aria-label="Pages" {
                a href="/admin" { "Dashboard" }
                a href="/local/pricing" { "Prices" }
                a href="/openapi.json" { "OpenAPI" }
                a href="#look" { "More" }
            }
        } }
        main {
            h1 { "From Stripe's events to the right account" }
            p.lead {
                "tallyhook turns Stripe's webhooks into tiers and credits, each exactly once. Try it: buy something below. "
                @if shop.stripe.is_some() {
                    "A fake Stripe takes the payment and sends signed events as the real one does: "
                    strong { "in any order, and some of them twice" } "."
                } @else { "Your own Stripe takes the payment, in the mode of your key." }
            }
            (shop_front(shop))
            (activity(shop))
            (look_around(shop))
        }
        p #live .visually-hidden role="status" {}
    };
    answer(&HtmlPage::new("tallyhook, local").style(STYLE).script(SHOP).connects(), 200, &body)
}

/// The customer, the account, and what is on sale.
fn shop_front(shop: &Shared) -> Markup {
    let offers = offers(&shop.catalog.borrow(), shop.stripe.as_ref());
    html! {
        section.card #shop aria-labelledby="shop-title" tabindex="-1" {
            h2 #shop-title { "An example shop" }
            form #who {
                label for="user" { "You are the customer" }
                div.row {
                    input #user name="user" value=(FIRST_USER) required maxlength="128" autocomplete="off" spellcheck="false";
                    button #enter type="submit" { "Sign up" }
                }
            }
            div #account hidden {
                dl.figures {
                    div { dt { "Tier" } dd #tier {} }
                    div { dt { "Credits" } dd #credits {} }
                    div { dt { "Subscription" } dd #subscription {} }
                    div { dt { "Set-up" } dd #setup {} }
                }
                p.small.muted #buckets {}
            }
            p #trouble .notice data-tone="bad" role="alert" hidden {}
            h3 { "On sale, from " code { "catalog.toml" } }
            ul.offers { @for offer in &offers { (offer.markup()) } }
            div #acts hidden {
                h3 { "What happens next" }
                div.row {
                    button.quiet type="button" data-act="password" hidden { "Set a password" }
                    button.quiet type="button" data-act="spend" { "Spend 100 credits" }
                    button.quiet type="button" data-act="arrive" hidden { "The bank transfer arrives" }
                    button.quiet type="button" data-act="renew" hidden { "Let one month pass" }
                    button.quiet type="button" data-act="cancel" hidden { "Cancel the plan" }
                    button.quiet type="button" data-act="portal" hidden { "Billing portal" }
                    button.quiet type="button" data-act="refund" hidden { "Refund " span #refund-amount {} }
                }
                p #month .gap hidden {}
            }
        }
    }
}

impl Offer {
    fn markup(&self) -> Markup {
        html! {
            li {
                strong { (self.name) }
                span.muted { (self.description) }
                span.price { (self.price) }
                button type="button" data-order=(self.order.to_string()) aria-label={ "Buy " (self.name) } disabled { "Buy" }
            }
        }
    }
}

/// Stripe's events, the ledger, and the notifications of the app.
fn activity(shop: &Shared) -> Markup {
    html! {
        div.three {
            section.card aria-labelledby="sent-title" {
                h2 #sent-title { "1. Stripe sent" }
                p.small.muted { "Signed events, newest first. Each opens in the dashboard." }
                ol.feed #sent reversed {}
                p.muted.small #sent-none {
                    @if shop.stripe.is_some() { "Nothing yet." } @else { "See the events of your own Stripe in the dashboard." }
                }
            }
            section.card aria-labelledby="ledger-title" {
                h2 #ledger-title { "2. The account changed" }
                p.small.muted { "The ledger, newest first: one entry for each payment, even if Stripe sends its event twice." }
                ol.feed #ledger {}
                p.muted.small #ledger-none { "Nothing yet." }
            }
            section.card aria-labelledby="notifications-title" {
                h2 #notifications-title { "3. Your app was notified" }
                p.small.muted {
                    @if shop.is_app { "Signed requests to its webhook. Here the shop is the app. Set " code { "PROVISION_URL" } " to use your own." }
                    @else { "Signed requests go to your " code { "PROVISION_URL" } "." }
                }
                ol.feed #notifications {}
                p.muted.small #notifications-none { @if shop.is_app { "Nothing yet." } @else { "They are not shown here." } }
            }
        }
    }
}

fn look_around(shop: &Shared) -> Markup {
    let url = &shop.url;
    let token = shop
        .admin_token
        .map_or_else(|| html! { "your " code { "ADMIN_API_TOKEN" } }, |token| html! { code { (token) } });
    let flag = if url == local_stack::URL { String::new() } else { format!(" --url {url}") };
    // A token from the environment is the user's own: print the name of the variable.
    let app = if shop.app_token.as_deref() == Some(APP_TOKEN) { APP_TOKEN } else { "$APP_API_TOKEN" };
    let commands = [
        (format!("cargo run -- demo{flag}"), "two customers, step by step: a few months, and a year"),
        (
            format!("cargo run -- send invoice.paid --times 10 --concurrent{flag}"),
            "the event of one payment, ten times at once",
        ),
        (format!("cargo run -- check-user {FIRST_USER}{flag}"), "what set each field of an account"),
        (format!("cargo run -- logs --limit 5{flag}"), "the event log"),
        (
            format!("cargo run -- trigger reconcile{flag}"),
            "compare all accounts with Stripe, as a deployment does every 6 hours",
        ),
        (format!("curl -H \"authorization: Bearer {app}\" {url}/users/{FIRST_USER}"), "what your app reads"),
    ];
    html! {
        div.two #look tabindex="-1" {
            section.card aria-labelledby="look-title" {
                h2 #look-title { "Look around" }
                dl {
                    dt { a href="/admin" { "Dashboard" } }
                    dd { "see why a customer has no credits, and repair it; token " (token) ", any name" }
                    dt { a href="/admin#/events" { "Event log" } }
                    dd { "every event with its result and the reason" }
                    dt { a #status-page href="/portal/status?session_id=cs_test_none" { "Status page" } }
                    dd { "what a customer sees after the payment" }
                    dt { a href="/openapi.json" { "OpenAPI" } }
                    dd { "the description of both APIs; see also " code { "docs/app-api.md" } }
                    dt { a href="/webhooks/stripe/health" { "Webhook" } }
                    dd { "the webhook's health; Stripe sends its events to " code { (url) "/webhooks/stripe" } }
                    dt { a href="/local/status" { "Queues" } }
                    dd { "the messages in the queues; DynamoDB and SQS are at " code { (shop.aws_url) } }
                }
            }
            section.card aria-labelledby="terminal-title" {
                h2 #terminal-title { "From a terminal" }
                ul.commands { @for (command, what) in commands { li { code { (command) } span.small.muted { (what) } } } }
            }
        }
    }
}

/// The example of a page with prices, with the routes of this stack in place of the app's.
pub(super) fn pricing() -> Response {
    let text = PRICING
        .replace("https://api.example.com/catalog", "/catalog")
        .replace("\"/buy\"", &format!("\"/local/shop/{FIRST_USER}/buy\""));
    let hash = |start: &str, end: &str| {
        csp_hash(text.split_once(start).and_then(|(_, rest)| rest.split_once(end)).unwrap_or_default().0)
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("<script>", "</script>"),
        hash("<style>", "</style>"),
    );
    let headers = [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("content-security-policy", policy.as_str()),
    ];
    let mut response = Response::new(Body::from(text));
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The checkout page of a session. `None` when Stripe does not know the session.
pub(super) fn pay(shop: &Shared, session: Option<&Value>) -> Response {
    let Some(session) = session else { return not_found("There is no such checkout session.") };
    let total = money(&session["amount_total"], &session["currency"]);
    let items = ["plan", "pack", "mode"]
        .iter()
        .filter_map(|name| session["metadata"][*name].as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let open = session["status"] == "open";
    let catalog = shop.catalog.borrow();
    let plan = session["metadata"]["plan"].as_str().and_then(|plan| catalog.plan(plan));
    let yearly = plan.is_some_and(|plan| plan.refill == Refill::Month);
    let body = html! {
        main.narrow {
            (fake_stripe_label("checkout"))
            section.card aria-labelledby="title" data-page={ "/local/stripe/pay/" (session["id"].as_str().unwrap_or_default()) } {
                h1 #title { "Pay " (total) @if session["mode"] == "subscription" { span.muted { (if yearly { " a year" } else { " a month" }) } } }
                dl {
                    dt { "For" } dd { (items) }
                    dt { "Customer" } dd { (session["client_reference_id"].as_str().unwrap_or("unknown")) }
                }
                @if open {
                    div.row.gap {
                        button type="button" data-send=r#"{"how":"now"}"# { "Pay " (total) }
                        @if session["mode"] == "payment" {
                            button.quiet type="button" data-send=r#"{"how":"later"}"# { "By bank transfer (takes days)" }
                        }
                        button.quiet type="button" data-send=r#"{"how":"back"}"# { "Back to the shop" }
                    }
                    p.small.muted.gap {
                        "No card is needed. Paying sends the signed events to " code { (shop.url) "/webhooks/stripe" }
                        ", shuffled, one of them twice."
                    }
                } @else {
                    p.gap { "This session is " strong { (session["status"].as_str().unwrap_or("closed")) } "." }
                    p { a.button.quiet href="/" { "Back to the shop" } }
                }
                p.notice #trouble data-tone="bad" role="alert" hidden {}
            }
        }
    };
    answer(&HtmlPage::new("Fake Stripe: checkout").style(STYLE).script(STRIPE).connects(), 200, &body)
}

/// The billing portal of a customer.
pub(super) fn billing(shop: &Shared, customer: &str, subscription: Option<&Value>) -> Response {
    let Some(subscription) = subscription else { return not_found("This customer has no subscription.") };
    let price = &subscription["items"]["data"][0]["price"];
    let catalog = shop.catalog.borrow();
    let plan = price["id"].as_str().and_then(|price| catalog.plan_of_price(price));
    let current = plan.map(|plan| plan.name.as_str());
    // From a month to a year, Stripe starts a new period. The fake one only changes the price.
    let same_interval = plan.map(|plan| plan.refill);
    let others = catalog.plans.iter().filter(|plan| {
        Some(plan.name.as_str()) != current
            && same_interval.is_none_or(|refill| refill == plan.refill)
            && !plan.sold_as.prices.is_empty()
    });
    let body = html! {
        main.narrow {
            (fake_stripe_label("billing portal"))
            section.card aria-labelledby="title" data-page={ "/local/stripe/billing/" (customer) } {
                h1 #title { "Your plan: " (current.unwrap_or("unknown")) }
                p.muted { "A user has one subscription. A new plan replaces the current one for the rest of the period." }
                div.stack.gap {
                    @for plan in others {
                        button type="button" data-send=(json!({ "plan": plan.name })) { "Change to " (plan.name) }
                    }
                    button.danger type="button" data-send=r#"{"plan":null}"# { "Cancel the plan" }
                    a.button.quiet href="/" { "Back to the shop" }
                }
                p.notice #trouble data-tone="bad" role="alert" hidden {}
            }
        }
    };
    answer(&HtmlPage::new("Fake Stripe: billing").style(STYLE).script(STRIPE).connects(), 200, &body)
}

fn fake_stripe_label(page: &str) -> Markup {
    html! { p.pretend { span.pill data-tone="info" { "fake Stripe" } " " (page) } }
}

fn not_found(why: &str) -> Response {
    let body = html! { main.narrow { section.card aria-labelledby="title" { h1 #title { (why) } p { a.button.quiet href="/" { "Back to the shop" } } } } };
    answer(&HtmlPage::new("Fake Stripe").style(STYLE), 404, &body)
}

/// Everything in the catalog that has a price, plans first.
fn offers(catalog: &Catalog, stripe: Option<&FakeStripe>) -> Vec<Offer> {
    let price = |prices: &[String], suffix: &str| {
        let price = stripe.zip(prices.first()).and_then(|(stripe, price)| stripe.object(price));
        price.map_or_else(String::new, |price| {
            format!("{}{suffix}", money(&price["unit_amount"], &price["currency"]))
        })
    };
    let plans = catalog.plans.iter().filter(|plan| !plan.sold_as.prices.is_empty()).map(|plan| {
        let yearly = plan.refill == Refill::Month;
        let (per_seat, suffix) = match plan.per == Per::Seat {
            true => (" a seat", if yearly { " a seat, yearly" } else { " a seat, monthly" }),
            false => ("", if yearly { " a year" } else { " a month" }),
        };
        let every = if yearly { " every month" } else { "" };
        let description = format!("tier {}, {} credits{per_seat}{every}", plan.tier, grouped(plan.credits));
        Offer {
            name: plan.name.clone(),
            description,
            price: price(&plan.sold_as.prices, suffix),
            order: json!({ "plan": plan.name }),
        }
    });
    let packs = catalog.packs.iter().filter(|pack| !pack.sold_as.prices.is_empty()).map(|pack| Offer {
        name: pack.name.clone(),
        description: format!("{} credits more", grouped(pack.credits)),
        price: price(&pack.sold_as.prices, " once"),
        order: json!({ "pack": pack.name }),
    });
    let orders = catalog
        .orders
        .iter()
        .flat_map(|order| order.plans.iter().map(move |(name, plan)| (order, name, plan)));
    let orders = orders.filter(|(_, _, plan)| !plan.prices.is_empty()).map(|(order, name, plan)| Offer {
        name: format!("{} {name}", order.mode),
        description: format!(
            "an order with {} revision{}",
            plan.revisions,
            if plan.revisions == 1 { "" } else { "s" }
        ),
        price: price(&plan.prices, " once"),
        order: json!({ "mode": order.mode, "plan": name }),
    });
    let products = catalog.products.iter().filter(|product| !product.sold_as.prices.is_empty());
    let products = products.map(|product| {
        let features: Vec<&str> = product.features.keys().map(String::as_str).collect();
        Offer {
            name: product.name.clone(),
            description: format!("a product that gives {}", features.join(", ")),
            price: price(&product.sold_as.prices, " once"),
            order: json!({ "product": product.name }),
        }
    });
    plans.chain(packs).chain(orders).chain(products).collect()
}

/// `20,000`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let place = |at: usize| if at > 0 && (digits.len() - at).is_multiple_of(3) { "," } else { "" };
    digits.char_indices().map(|(at, digit)| format!("{}{digit}", place(at))).collect()
}

/// `$20.00`
pub(super) fn money(cents: &Value, currency: &Value) -> String {
    let cents = cents.as_i64().unwrap_or_default();
    let sign = match currency.as_str() {
        Some("usd") => "$".to_owned(),
        Some(other) => format!("{} ", other.to_uppercase()),
        None => String::new(),
    };
    format!("{sign}{}.{:02}", cents / 100, cents % 100)
}

fn answer(page: &HtmlPage<'_>, status: u16, body: &Markup) -> Response {
    let (parts, body) = page.answer(status, body).into_parts();
    Response::from_parts(parts, Body::from(body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_script_writes_html_and_no_text_closes_its_element() {
        for text in [SHOP, STRIPE, STYLE] {
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "</"]
            {
                assert!(!text.contains(forbidden), "{forbidden}");
            }
        }
    }

    #[test]
    fn the_example_of_a_page_with_prices_shows_this_stack_and_writes_no_html() {
        for once in ["https://api.example.com/catalog", "\"/buy\"", "<script>", "<style>"] {
            assert_eq!(PRICING.matches(once).count(), 1, "{once}");
        }
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " onclick"]
        {
            assert!(!PRICING.contains(forbidden), "{forbidden}");
        }
        let page = pricing();
        let policy = page.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("script-src 'sha256-") && policy.contains("style-src 'sha256-"), "{policy}");
    }

    #[test]
    fn everything_with_a_price_in_the_catalog_is_on_sale() {
        let catalog = Catalog::parse(include_str!("../../../../catalog.toml")).unwrap();
        let stripe = FakeStripe::new("sk_test_1");
        stripe.sell(&catalog);
        let offers = offers(&catalog, Some(&stripe));
        let lines: Vec<String> = offers
            .iter()
            .map(|offer| format!("{}, {}, {}, {}", offer.name, offer.description, offer.price, offer.order))
            .collect();
        assert_eq!(
            lines[1],
            r#"business, tier business, 20,000 credits, $40.00 a month, {"plan":"business"}"#
        );
        assert_eq!(
            lines[3],
            r#"pro_yearly, tier pro, 5,000 credits every month, $200.00 a year, {"plan":"pro_yearly"}"#
        );
        assert_eq!(lines[5], r#"credits_1000, 1,000 credits more, $10.00 once, {"pack":"credits_1000"}"#);
        assert_eq!(
            lines[8],
            r#"dfy starter, an order with 1 revision, $499.00 once, {"mode":"dfy","plan":"starter"}"#
        );
        assert_eq!(lines.len(), 9);
    }
}
