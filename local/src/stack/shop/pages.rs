//! The start page with its shop, and the two pages that play Stripe's: checkout and billing portal.
//!
//! What changes is fetched by the scripts, which write it as text nodes; the rest is here.

use axum::body::Body;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::{Value, json};
use tallyhook_core::catalog::{Catalog, Per};
use tallyhook_service::http::pages::Page;

use super::super::APP_TOKEN;
use super::Shared;
use crate::fake_stripe::FakeStripe;

const STYLE: &str = include_str!("shop.css");
const SHOP: &str = include_str!("shop.js");
const STRIPE: &str = include_str!("stripe.js");
/// Whoever opens the shop for the first time.
const FIRST_USER: &str = "ada";

/// Something on sale.
struct Offer {
    name: String,
    what: String,
    price: String,
    /// `{"plan":"pro"}`
    wish: Value,
}

/// `/`
pub(super) fn start(shop: &Shared) -> Response {
    let body = html! {
        a.skip href="#shop" { "Skip to the shop" }
        header.top { div {
            span.brand { "tallyhook" span { " on this machine" } }
            nav aria-label="Pages" {
                a href="/admin" { "Dashboard" }
                a href="/openapi.json" { "OpenAPI" }
                a href="#look" { "More" }
            }
        } }
        main {
            h1 { "Stripe's events in, the right account out" }
            p.lead {
                "tallyhook turns Stripe's webhooks into tiers and credits, each exactly once. Try it: buy something below. "
                @if shop.stripe.is_some() {
                    "A pretend Stripe takes the payment and sends its signed events as the real one does: "
                    strong { "in any order, and some of them twice" } "."
                } @else { "Your own Stripe takes the payment, in the mode of your key." }
            }
            (shop_front(shop))
            (happenings(shop))
            (look_around(shop))
        }
        p #live .visually-hidden role="status" {}
    };
    answer(&Page::new("tallyhook, local").style(STYLE).script(SHOP).connects(), 200, &body)
}

/// Who buys, what their account is, and what is on sale.
fn shop_front(shop: &Shared) -> Markup {
    let offers = offers(&shop.catalog, shop.stripe.as_ref());
    html! {
        section.card #shop aria-labelledby="shop-title" tabindex="-1" {
            h2 #shop-title { "A shop that uses it" }
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
                    button.quiet type="button" data-act="renew" hidden { "A month passes" }
                    button.quiet type="button" data-act="cancel" hidden { "Cancel the plan" }
                    button.quiet type="button" data-act="refund" hidden { "Refund " span #refund-amount {} }
                }
            }
        }
    }
}

impl Offer {
    fn markup(&self) -> Markup {
        html! {
            li {
                strong { (self.name) }
                span.muted { (self.what) }
                span.price { (self.price) }
                button type="button" data-wish=(self.wish.to_string()) aria-label={ "Buy " (self.name) } disabled { "Buy" }
            }
        }
    }
}

/// What Stripe sent, what the ledger says, what the app was told.
fn happenings(shop: &Shared) -> Markup {
    html! {
        div.three {
            section.card aria-labelledby="sent-title" {
                h2 #sent-title { "1. Stripe sent" }
                p.small.muted { "Signed events, newest first. Each opens in the dashboard." }
                ol.feed #sent reversed {}
                p.muted.small #sent-none {
                    @if shop.stripe.is_some() { "Nothing yet." } @else { "The events of your own Stripe are in the dashboard." }
                }
            }
            section.card aria-labelledby="ledger-title" {
                h2 #ledger-title { "2. The account got" }
                p.small.muted { "Its ledger, newest first: one entry for each payment, however often Stripe told of it." }
                ol.feed #ledger {}
                p.muted.small #ledger-none { "Nothing yet." }
            }
            section.card aria-labelledby="told-title" {
                h2 #told-title { "3. Your app was told" }
                p.small.muted {
                    @if shop.is_app { "Signed requests to its webhook. Here the shop is the app; " code { "PROVISION_URL" } " names yours." }
                    @else { "By requests to your " code { "PROVISION_URL" } "." }
                }
                ol.feed #told {}
                p.muted.small #told-none { @if shop.is_app { "Nothing yet." } @else { "They are not shown here." } }
            }
        }
    }
}

fn look_around(shop: &Shared) -> Markup {
    let url = &shop.url;
    let token = shop
        .admin_token
        .map_or_else(|| html! { "your " code { "ADMIN_API_TOKEN" } }, |token| html! { code { (token) } });
    let flag = if url == "http://127.0.0.1:9000" { String::new() } else { format!(" --url {url}") };
    // A token of the person's own is not for the screen.
    let app = if shop.app_token.as_deref() == Some(APP_TOKEN) { APP_TOKEN } else { "$APP_API_TOKEN" };
    let commands = [
        (format!("cargo run -- demo{flag}"), "a customer's life, step by step"),
        (
            format!("cargo run -- send invoice.paid --times 10 --concurrent{flag}"),
            "one payment told ten times at once",
        ),
        (format!("cargo run -- check-user {FIRST_USER}{flag}"), "what set each field of an account"),
        (format!("cargo run -- logs --limit 5{flag}"), "the event log"),
        (format!("cargo run -- trigger reconcile{flag}"), "compare everything with Stripe, as every 6 hours"),
        (format!("curl -H \"authorization: Bearer {app}\" {url}/users/{FIRST_USER}"), "what your app reads"),
    ];
    html! {
        div.two #look tabindex="-1" {
            section.card aria-labelledby="look-title" {
                h2 #look-title { "Look around" }
                dl {
                    dt { a href="/admin" { "Dashboard" } }
                    dd { "why a customer has no credits, and setting it right; token " (token) ", any name" }
                    dt { a href="/admin#/events" { "Event log" } }
                    dd { "every event, what came of it and why" }
                    dt { a #status-page href="/portal/status?session_id=cs_test_none" { "Status page" } }
                    dd { "what a customer sees who has just paid" }
                    dt { a href="/openapi.json" { "OpenAPI" } }
                    dd { "both APIs for machines; " code { "docs/app-api.md" } " is for people" }
                    dt { a href="/webhooks/stripe/health" { "Webhook" } }
                    dd { "its health; Stripe's events go to " code { (url) "/webhooks/stripe" } }
                    dt { a href="/local/status" { "Queues" } }
                    dd { "what is waiting; DynamoDB and SQS answer at " code { (shop.aws_url) } }
                }
            }
            section.card aria-labelledby="terminal-title" {
                h2 #terminal-title { "From a terminal" }
                ul.commands { @for (command, what) in commands { li { code { (command) } span.small.muted { (what) } } } }
            }
        }
    }
}

/// Stripe's page for a session; `None` for one it does not know.
pub(super) fn pay(shop: &Shared, session: Option<&Value>) -> Response {
    let Some(session) = session else { return nothing("There is no such checkout session.") };
    let total = money(&session["amount_total"], &session["currency"]);
    let what = ["plan", "pack", "mode"]
        .iter()
        .filter_map(|name| session["metadata"][*name].as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let open = session["status"] == "open";
    let body = html! {
        main.narrow {
            (pretend("checkout"))
            section.card aria-labelledby="title" data-page={ "/local/stripe/pay/" (session["id"].as_str().unwrap_or_default()) } {
                h1 #title { "Pay " (total) @if session["mode"] == "subscription" { span.muted { " a month" } } }
                dl {
                    dt { "For" } dd { (what) }
                    dt { "Customer" } dd { (session["client_reference_id"].as_str().unwrap_or("unknown")) }
                }
                @if open {
                    div.row.gap {
                        button type="button" data-send=r#"{"how":"now"}"# { "Pay " (total) }
                        @if session["mode"] == "payment" {
                            button.quiet type="button" data-send=r#"{"how":"later"}"# { "By bank transfer, which takes days" }
                        }
                        button.quiet type="button" data-send=r#"{"how":"back"}"# { "Back to the shop" }
                    }
                    p.small.muted.gap {
                        "No card is asked for. Paying sends the signed events to " code { (shop.url) "/webhooks/stripe" }
                        ", shuffled, one of them twice."
                    }
                } @else {
                    p.gap { "This session is " strong { (session["status"].as_str().unwrap_or("over")) } "." }
                    p { a.button.quiet href="/" { "Back to the shop" } }
                }
                p.notice #trouble data-tone="bad" role="alert" hidden {}
            }
        }
    };
    answer(&Page::new("Pretend Stripe: checkout").style(STYLE).script(STRIPE).connects(), 200, &body)
}

/// Stripe's billing portal for a customer.
pub(super) fn billing(shop: &Shared, customer: &str, subscription: Option<&Value>) -> Response {
    let Some(subscription) = subscription else { return nothing("This customer has no subscription.") };
    let price = &subscription["items"]["data"][0]["price"];
    let current = price["id"]
        .as_str()
        .and_then(|price| shop.catalog.plan_of_price(price))
        .map(|plan| plan.name.as_str());
    let others = shop
        .catalog
        .plans
        .iter()
        .filter(|plan| Some(plan.name.as_str()) != current && !plan.prices.is_empty());
    let body = html! {
        main.narrow {
            (pretend("billing portal"))
            section.card aria-labelledby="title" data-page={ "/local/stripe/billing/" (customer) } {
                h1 #title { "Your plan: " (current.unwrap_or("unknown")) }
                p.muted { "A user has one subscription. Another plan takes its place for what is left of the period." }
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
    answer(&Page::new("Pretend Stripe: billing").style(STYLE).script(STRIPE).connects(), 200, &body)
}

fn pretend(page: &str) -> Markup {
    html! { p.pretend { span.pill data-tone="info" { "pretend Stripe" } " " (page) } }
}

fn nothing(why: &str) -> Response {
    let body = html! { main.narrow { section.card aria-labelledby="title" { h1 #title { (why) } p { a.button.quiet href="/" { "Back to the shop" } } } } };
    answer(&Page::new("Pretend Stripe").style(STYLE), 404, &body)
}

/// What the catalog has a price for, plans first.
fn offers(catalog: &Catalog, stripe: Option<&FakeStripe>) -> Vec<Offer> {
    let price = |prices: &[String], end: &str| {
        let price = stripe.zip(prices.first()).and_then(|(stripe, price)| stripe.object(price));
        price.map_or_else(String::new, |price| {
            format!("{}{end}", money(&price["unit_amount"], &price["currency"]))
        })
    };
    let plans = catalog.plans.iter().filter(|plan| !plan.prices.is_empty()).map(|plan| {
        let (per, of_price) =
            if plan.per == Per::Seat { (" a seat", " a seat, monthly") } else { ("", " a month") };
        let what = format!("tier {}, {} credits{per}", plan.tier, grouped(plan.credits));
        Offer {
            name: plan.name.clone(),
            what,
            price: price(&plan.prices, of_price),
            wish: json!({ "plan": plan.name }),
        }
    });
    let packs = catalog.packs.iter().filter(|pack| !pack.prices.is_empty()).map(|pack| Offer {
        name: pack.name.clone(),
        what: format!("{} credits more", grouped(pack.credits)),
        price: price(&pack.prices, " once"),
        wish: json!({ "pack": pack.name }),
    });
    let orders = catalog
        .orders
        .iter()
        .flat_map(|order| order.plans.iter().map(move |(name, plan)| (order, name, plan)));
    let orders = orders.filter(|(_, _, plan)| !plan.prices.is_empty()).map(|(order, name, plan)| Offer {
        name: format!("{} {name}", order.mode),
        what: format!(
            "an order with {} revision{}",
            plan.revisions,
            if plan.revisions == 1 { "" } else { "s" }
        ),
        price: price(&plan.prices, " once"),
        wish: json!({ "mode": order.mode, "plan": name }),
    });
    plans.chain(packs).chain(orders).collect()
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

fn answer(page: &Page<'_>, status: u16, body: &Markup) -> Response {
    let (parts, body) = page.answer(status, body).into_parts();
    Response::from_parts(parts, Body::from(body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_script_has_a_way_to_read_markup_from_a_value_and_no_text_ends_its_own_element() {
        for text in [SHOP, STRIPE, STYLE] {
            for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "</"] {
                assert!(!text.contains(way), "{way}");
            }
        }
    }

    #[test]
    fn everything_in_the_catalog_that_has_a_price_is_on_sale_at_stripes_price() {
        let catalog = Catalog::parse(include_str!("../../../../catalog.toml")).unwrap();
        let stripe = FakeStripe::new("sk_test_1");
        stripe.sell(&catalog);
        let offers = offers(&catalog, Some(&stripe));
        let told: Vec<String> = offers
            .iter()
            .map(|offer| format!("{}, {}, {}, {}", offer.name, offer.what, offer.price, offer.wish))
            .collect();
        assert_eq!(
            told[1],
            r#"business, tier business, 20,000 credits, $40.00 a month, {"plan":"business"}"#
        );
        assert_eq!(told[3], r#"credits_1000, 1,000 credits more, $10.00 once, {"pack":"credits_1000"}"#);
        assert_eq!(
            told[6],
            r#"dfy starter, an order with 1 revision, $499.00 once, {"mode":"dfy","plan":"starter"}"#
        );
        assert_eq!(told.len(), 7);
    }
}
