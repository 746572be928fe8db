//! The client of Stripe's API, over HTTP, against the fake one.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};
use tallyhook_aws::stripe::{Cursor, EventFilter, Filter, RetryLimits, Stripe, StripeError};
use tallyhook_core::event::{EventType, Invoice, Subscription};
use tallyhook_core::ids::{
    CustomerId, EventId, InvoiceId, PaymentIntentId, PriceId, SessionId, SubscriptionId,
};
use tallyhook_core::timestamp::Timestamp;

use crate::support::{World, sample};

pub const KEY: &str = "sk_test_canary";

pub const SHORT_RETRIES: RetryLimits = RetryLimits {
    attempts: 3,
    attempt_timeout: Duration::from_millis(400),
    call_timeout: Duration::from_secs(5),
    first_wait: Duration::from_millis(4),
};

/// A fake Stripe and a client of it.
pub async fn stripe() -> (FakeStripe, Stripe) {
    let fake = FakeStripe::new(KEY);
    let address = fake.start().await.unwrap();
    (fake, Stripe::new(KEY, format!("http://{address}/")).with_retry_limits(SHORT_RETRIES))
}

fn id<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

fn text(event: &Value) -> String {
    serde_json::to_string_pretty(event).unwrap()
}

#[tokio::test]
async fn objects_events_and_the_payment_of_an_invoice_are_read() {
    let (fake, stripe) = stripe().await;
    for name in ["customer.subscription.created", "invoice.paid", "checkout.session.completed.pack"] {
        fake.ingest(&text(&sample(name, "user_1")), true).unwrap();
    }
    fake.put_payment("pi_1", "in_TallyHook0001");

    let subscription = stripe.subscription(&id("sub_TallyHook0001")).await.unwrap();
    assert_eq!(Subscription::from_json(subscription.text()).unwrap().status.as_str(), "active");
    let invoice = stripe.invoice(&id("in_TallyHook0001")).await.unwrap();
    assert!(Invoice::from_json(invoice.text()).unwrap().paid);
    assert_eq!(
        stripe.invoice_of_payment(&id("pi_1")).await.unwrap(),
        Some((id::<InvoiceId>("in_TallyHook0001"), Some(id::<CustomerId>("cus_TallyHook0001"))))
    );
    assert_eq!(stripe.invoice_of_payment(&id::<PaymentIntentId>("pi_2")).await.unwrap(), None);
    assert_eq!(stripe.customer(&id("cus_TallyHook0001")).await.unwrap().id(), Some("cus_TallyHook0001"));
    assert_eq!(stripe.price(&id::<PriceId>("price_pro_test")).await.unwrap().value()["object"], "price");
    let session = stripe.session(&id::<SessionId>("cs_test_a1TallyHook0002")).await.unwrap();
    assert_eq!(session.value()["line_items"]["object"], "list");

    // Byte for byte: the event log compares the bytes to detect a changed event.
    let event = sample("invoice.paid", "user_1");
    let read = stripe.event(&id::<EventId>(event["id"].as_str().unwrap())).await.unwrap();
    assert_eq!(read.text(), text(&event));
    let listed = stripe.events(&EventFilter::default(), &Cursor::Newest).await.unwrap();
    assert!(listed.objects.iter().any(|object| object.text() == text(&event)));
}

#[tokio::test]
async fn lists_are_filtered_and_come_in_pages_newest_first() {
    let (fake, stripe) = stripe().await;
    for number in 0..250 {
        let status = if number % 2 == 0 { "active" } else { "canceled" };
        fake.put(json!({"id": format!("sub_{number}"), "object": "subscription",
            "customer": format!("cus_{}", number % 5), "status": status, "created": 1_000 + number / 10, "items": {"data": []}}));
    }
    let (mut cursor, mut ids) = (Cursor::Newest, Vec::new());
    loop {
        let page = stripe.subscriptions(&Filter::default(), &cursor).await.unwrap();
        ids.extend(page.objects.iter().map(|object| object.id().unwrap().to_owned()));
        cursor = Cursor::after(page.last_id());
        if !page.has_more {
            break;
        }
    }
    let expected: Vec<String> = (0..250).rev().map(|number| format!("sub_{number}")).collect();
    assert_eq!(ids, expected);
    let newer =
        stripe.subscriptions(&Filter::default(), &Cursor::Before("sub_240".to_owned())).await.unwrap();
    assert_eq!((newer.objects.len(), newer.objects[0].id(), newer.has_more), (9, Some("sub_249"), false));

    let filter = Filter {
        customer: Some(id::<CustomerId>("cus_3")),
        from: Some(Timestamp::from_unix(1_010)),
        until: Some(Timestamp::from_unix(1_020)),
        ..Filter::default()
    };
    let page = stripe.subscriptions(&filter, &Cursor::Newest).await.unwrap();
    assert_eq!(page.objects.len(), 20);
    assert!(page.objects.iter().all(|object| object.value()["customer"] == "cus_3"));

    let error =
        stripe.subscriptions(&Filter::default(), &Cursor::After("sub_gone".to_owned())).await.unwrap_err();
    assert!(error.is_lost_cursor() && !error.is_transient(), "{error}");
}

#[tokio::test]
async fn undelivered_events_of_some_types_are_listed() {
    let (fake, stripe) = stripe().await;
    for (name, delivered) in
        [("invoice.paid", false), ("invoice.paid.renewal", true), ("customer.subscription.created", false)]
    {
        fake.ingest(&text(&sample(name, "user_1")), delivered).unwrap();
    }
    let ids = |filter: EventFilter| {
        let stripe = stripe.clone();
        async move { stripe.events(&filter, &Cursor::Newest).await.unwrap().objects.len() }
    };
    assert_eq!(ids(EventFilter::default()).await, 3);
    assert_eq!(ids(EventFilter { undelivered: true, ..EventFilter::default() }).await, 2);
    let types = vec![EventType::InvoicePaid, EventType::CustomerDeleted];
    assert_eq!(ids(EventFilter { undelivered: true, types, ..EventFilter::default() }).await, 1);
    fake.set_now(1_770_289_330 + 20 * 86_400);
    assert_eq!(ids(EventFilter::default()).await, 1, "Stripe keeps events for 30 days");
}

#[tokio::test]
async fn lists_inside_an_object_are_completed() {
    let (fake, stripe) = stripe().await;
    let lines: Vec<Value> = (0..130)
        .map(|number| json!({"id": format!("il_{number}"), "object": "line_item", "amount": 1}))
        .collect();
    fake.put(json!({"id": "in_1", "object": "invoice", "status": "paid", "amount_paid": 130,
        "lines": {"object": "list", "data": lines[..10], "has_more": true}}));
    fake.put_inside("in_1", lines);
    let invoice = stripe.invoice(&id("in_1")).await.unwrap();
    let whole = Invoice::from_json(stripe.complete(invoice).await.unwrap().text()).unwrap();
    assert_eq!((whole.lines.len(), whole.lines_has_more), (130, false));
}

#[tokio::test]
async fn only_transient_failures_are_retried() {
    let (fake, stripe) = stripe().await;
    fake.put(json!({"id": "sub_1", "object": "subscription", "status": "active", "created": 1}));
    let subscription = id::<SubscriptionId>("sub_1");
    let get = || stripe.subscription(&subscription);
    for what in [
        Misbehaviour::Status(429, None),
        Misbehaviour::Status(500, None),
        Misbehaviour::Status(503, None),
        Misbehaviour::Status(409, None),
        Misbehaviour::Delay(Duration::from_millis(700)),
        Misbehaviour::Cut,
    ] {
        fake.requests();
        fake.fail("/v1/subscriptions", 2, what.clone());
        assert!(get().await.is_ok(), "{what:?}");
        assert_eq!(fake.requests().len(), 3, "{what:?}");
        fake.fail("/v1/subscriptions", 3, what.clone());
        let error = get().await.unwrap_err();
        assert!(error.is_transient(), "{what:?}: {error}");
        assert_eq!(fake.requests().len(), 3);
    }
    for status in [400, 401, 402, 403, 404] {
        fake.fail("/v1/subscriptions", 1, Misbehaviour::Status(status, None));
        let error = get().await.unwrap_err();
        assert!(!error.is_transient() && error.is_refused_key() == matches!(status, 401 | 403), "{error}");
        assert_eq!(fake.requests().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_404_page_that_is_not_stripes_does_not_mean_that_the_object_is_missing() {
    let page = || async { (StatusCode::NOT_FOUND, "<html><h1>404 Not Found</h1></html>") };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(page)).await });
    let stripe = Stripe::new(KEY, &base).with_retry_limits(SHORT_RETRIES);
    let error = stripe.subscription(&id::<SubscriptionId>("sub_1")).await.unwrap_err();
    assert!(!error.is_missing() && error.is_transient() && error.refusal().is_none(), "{error}");

    let world = World::with(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &base)]).await;
    let asked = world.ask("POST", "/admin/stripe/find", json!({"text": "sub_1"})).await;
    assert_eq!((asked.0, &asked.1["error"]), (502, &json!("stripe_failed")), "{}", asked.1);
    let body = json!({"source": "stripe", "id": "evt_1", "actor": "ann", "reason": "x"});
    let asked = world.ask("POST", "/admin/stripe/retry-webhooks", body).await;
    assert_eq!((asked.0, &asked.1["error"]), (502, &json!("stripe_failed")), "{}", asked.1);
}

#[tokio::test]
async fn retry_after_is_respected_up_to_the_time_limit() {
    let (fake, stripe) = stripe().await;
    fake.put(json!({"id": "sub_1", "object": "subscription", "status": "active", "created": 1}));
    let subscription = id::<SubscriptionId>("sub_1");
    let get = || stripe.subscription(&subscription);
    let started = Instant::now();
    fake.fail("sub_1", 1, Misbehaviour::Status(429, Some(1)));
    assert!(get().await.is_ok());
    assert!(started.elapsed() >= Duration::from_secs(1));
    fake.fail("sub_1", 1, Misbehaviour::Status(429, Some(60)));
    let error = get().await.unwrap_err();
    assert_eq!(error.refusal().unwrap().retry_after, Some(Duration::from_secs(60)));
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn an_error_has_stripes_message_and_no_secret() {
    let (_fake, stripe) = stripe().await;
    let error = stripe.subscription(&id("sub_1")).await.unwrap_err();
    assert!(error.is_missing());
    let refusal = error.refusal().unwrap();
    assert_eq!(
        (refusal.status, refusal.code.as_deref(), refusal.param.as_deref()),
        (404, Some("resource_missing"), Some("id"))
    );
    assert!(refusal.request_id.as_deref().unwrap().starts_with("req_"));
    assert!(error.to_string().contains("No such subscription: 'sub_1'"), "{error}");

    let unreachable = Stripe::new(KEY, "http://127.0.0.1:1").with_retry_limits(SHORT_RETRIES);
    let error = unreachable.subscription(&id("sub_1")).await.unwrap_err();
    assert!(error.is_transient() && matches!(error, StripeError::NoAnswer { .. }));
    for text in [format!("{error} {error:?}"), format!("{unreachable:?}")] {
        assert!(!text.contains("canary"), "{text}");
    }
    let (fake, _) = self::stripe().await;
    let address = fake.start().await.unwrap();
    let wrong = Stripe::new("sk_test_wrong", format!("http://{address}")).with_retry_limits(SHORT_RETRIES);
    assert!(wrong.subscription(&id("sub_1")).await.unwrap_err().is_refused_key());
}

#[tokio::test]
async fn a_repeated_creation_creates_once() {
    let (fake, stripe) = stripe().await;
    fake.put_price("price_pack", 900, false, None);
    let fields = [
        ("mode", "payment".to_owned()),
        ("success_url", "https://app.test/paid".to_owned()),
        ("line_items[0][price]", "price_pack".to_owned()),
        ("metadata[user_id]", "user 1&".to_owned()),
    ];
    fake.fail("/v1/checkout/sessions", 1, Misbehaviour::Delay(Duration::from_millis(700)));
    let first = stripe.create("/v1/checkout/sessions", &fields, "checkout-user_1-order_1").await.unwrap();
    let again = stripe.create("/v1/checkout/sessions", &fields, "checkout-user_1-order_1").await.unwrap();
    assert_eq!((first.id(), first.value()["metadata"]["user_id"].as_str()), (again.id(), Some("user 1&")));
    let error =
        stripe.create("/v1/checkout/sessions", &fields[..1], "checkout-user_1-order_1").await.unwrap_err();
    assert_eq!(error.refusal().unwrap().kind, "idempotency_error");
}
