//! The client against any Stripe: the fake one, or what `STRIPE_API_BASE` names. `./check localstripe` runs
//! it against localstripe, which is not ours. Only calls that both have; `docs/emulators.md` says which are
//! missing there.

use local::fake_stripe::FakeStripe;
use serde_json::json;
use tallyhook_aws::env::Env;
use tallyhook_aws::stripe::{Cursor, EventFilter, Filter, Stripe};
use tallyhook_core::event::{self, EventType, Object, Subscription};
use tallyhook_core::ids::{CustomerId, SubscriptionId};
use tallyhook_core::timestamp::Timestamp;

use crate::stripe_client::{KEY, SHORT_RETRIES};
use crate::support::sample;

/// A customer with a subscription to a price, made through the API; the fake one gets it as an event.
async fn subscribe(
    stripe: &Stripe,
    fake: Option<&FakeStripe>,
    email: &str,
    price: &str,
) -> (CustomerId, SubscriptionId) {
    let create = async |path: &str, fields: &[(&'static str, &str)]| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let made = stripe.create(path, &fields, &format!("key{path}{email}")).await;
        made.unwrap_or_else(|error| panic!("{path}: {error}")).value()["id"].as_str().unwrap().to_owned()
    };
    let customer = create("/v1/customers", &[("email", email), ("metadata[user_id]", "user_1")]).await;
    if let Some(fake) = fake {
        let mut event = sample("customer.subscription.created", "user_1");
        event["data"]["object"]["customer"] = json!(customer);
        event["data"]["object"]["items"]["data"][0]["price"]["id"] = json!(price);
        fake.ingest(&event.to_string(), true).unwrap();
        return (customer.parse().unwrap(), event["data"]["object"]["id"].as_str().unwrap().parse().unwrap());
    }
    let plan = [
        ("id", price),
        ("amount", "1900"),
        ("currency", "eur"),
        ("interval", "month"),
        ("product[name]", "Pro"),
    ];
    create("/v1/plans", &plan).await;
    let card = [
        ("type", "card"),
        ("card[number]", "4242424242424242"),
        ("card[exp_month]", "12"),
        ("card[exp_year]", "2040"),
        ("card[cvc]", "123"),
    ];
    let card = create("/v1/payment_methods", &card).await;
    create(&format!("/v1/payment_methods/{card}/attach"), &[("customer", &customer)]).await;
    create(&format!("/v1/customers/{customer}"), &[("invoice_settings[default_payment_method]", &card)])
        .await;
    let wish = [("customer", customer.as_str()), ("items[0][plan]", price), ("metadata[user_id]", "user_1")];
    let subscription = create("/v1/subscriptions", &wish).await;
    (customer.parse().unwrap(), subscription.parse().unwrap())
}

#[tokio::test]
async fn customers_subscriptions_events_and_refusals_are_read_from_any_stripe() {
    let (base, fake) = match Env::of_process().get("STRIPE_API_BASE") {
        Some(base) => (base, None),
        None => {
            let fake = FakeStripe::new(KEY);
            (format!("http://{}", fake.start().await.unwrap()), Some(fake))
        }
    };
    let stripe = Stripe::new(KEY, base.clone()).with_retry_limits(SHORT_RETRIES);
    let (email, price) =
        (format!("{:x}+a@example.com", fastrand::u64(..)), format!("price_{:x}", fastrand::u64(..)));
    let (customer, subscription) = subscribe(&stripe, fake.as_ref(), &email, &price).await;

    assert_eq!(stripe.customer(&customer).await.unwrap().value()["metadata"]["user_id"], "user_1");
    let found = stripe.customers_with_email(&email).await.unwrap();
    assert_eq!(
        found.objects.iter().filter_map(|object| object.id()).collect::<Vec<_>>(),
        [customer.as_str()]
    );

    let read = Subscription::from_json(stripe.subscription(&subscription).await.unwrap().text()).unwrap();
    assert_eq!((read.status.as_str(), read.customer.as_ref()), ("active", Some(&customer)));
    assert_eq!(read.items.iter().map(|item| item.price.id.as_str()).collect::<Vec<_>>(), [price.as_str()]);
    assert!(read.period_start().is_some());
    let all = stripe
        .subscriptions(&Filter { customer: Some(customer.clone()), ..Filter::default() }, &Cursor::Newest)
        .await
        .unwrap();
    assert_eq!(
        (all.objects.len(), all.objects[0].id(), all.has_more),
        (1, Some(subscription.as_str()), false)
    );

    let since = EventFilter { from: Some(Timestamp::from_unix(1)), ..EventFilter::default() };
    let page = stripe.events(&since, &Cursor::Newest).await.unwrap();
    let created = page
        .objects
        .iter()
        .find(|event| event.value()["data"]["object"]["id"] == subscription.as_str())
        .unwrap();
    let created = stripe.event(&created.id().unwrap().parse().unwrap()).await.unwrap();
    assert_eq!(created.value()["type"], EventType::CustomerSubscriptionCreated.as_str());
    // Every Stripe but localstripe sends `object`.
    let mut text = created.value();
    text["object"] = json!("event");
    let event = event::read(text.to_string().as_bytes()).unwrap();
    assert!(matches!(&event.object, Object::Subscription(read) if read.id == subscription), "{event:?}");

    let missing = stripe.customer(&"cus_nobody".parse().unwrap()).await.unwrap_err();
    assert!(
        missing.refusal().is_some() && !missing.is_transient() && missing.to_string().contains("404"),
        "{missing}"
    );
    let stranger =
        Stripe::new("wrong", base).with_retry_limits(SHORT_RETRIES).customer(&customer).await.unwrap_err();
    assert!(stranger.is_refused_key(), "{stranger}");
}
