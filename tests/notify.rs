//! Alerts to Slack and Discord: what is posted, what is held back, and that they delay no event.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Json, Router, routing::post};
use serde_json::{Value, json};
use tallyhook_core::event::Family;

use crate::support::{World, pack, sample, signature, unnamed_pack, with_id};

/// Slack and Discord as local servers: the posts that they received, and which one is down.
#[derive(Clone, Default)]
struct Chats {
    posts: Arc<Mutex<Vec<(&'static str, Value)>>>,
    broken: Arc<Mutex<Option<&'static str>>>,
}

impl Chats {
    async fn start() -> (Self, String) {
        async fn take(chats: Chats, name: &'static str, body: Value) -> StatusCode {
            if *chats.broken.lock().unwrap() == Some(name) {
                return StatusCode::INTERNAL_SERVER_ERROR;
            }
            chats.posts.lock().unwrap().push((name, body));
            StatusCode::NO_CONTENT
        }
        let chats = Self::default();
        let router = Router::new()
            .route(
                "/slack",
                post(|State(chats): State<Chats>, Json(body): Json<Value>| take(chats, "slack", body)),
            )
            .route(
                "/discord",
                post(|State(chats): State<Chats>, Json(body): Json<Value>| take(chats, "discord", body)),
            )
            .route("/moved", post(|| async { (StatusCode::FOUND, [("location", "/slack")]) }))
            .with_state(chats.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (chats, url)
    }

    fn taken(&self) -> Vec<(&'static str, Value)> {
        std::mem::take(&mut self.posts.lock().unwrap())
    }
}

async fn world(url: &str) -> World {
    let (slack, discord) = (format!("{url}/slack"), format!("{url}/discord"));
    World::with(&[
        ("SLACK_WEBHOOK_URL", &slack),
        ("DISCORD_WEBHOOK_URL", &discord),
        ("NOTIFY_ALLOW_LOOPBACK", "true"),
    ])
    .await
}

#[tokio::test]
async fn an_alert_reaches_both_chats_once_and_the_next_counts_those_held_back() {
    let (chats, url) = Chats::start().await;
    let world = world(&url).await;
    for number in 0..5 {
        world.process(&unnamed_pack(&format!("n{number}"))).await;
    }
    assert_eq!(world.notify().await, 0);
    let posts = chats.taken();
    assert_eq!(posts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["slack", "discord"]);
    assert!(posts[0].1["text"].as_str().unwrap().contains("unnamed_purchase"), "{:#}", posts[0].1);
    assert!(
        posts[0].1["blocks"].to_string().contains("evt_n0")
            && posts[1].1["embeds"].to_string().contains("evt\\\\_n0")
    );

    // The quiet hour has passed.
    let past = aws_sdk_dynamodb::types::AttributeValue::N("1".to_owned());
    for name in ["slack", "discord"] {
        let key = aws_sdk_dynamodb::types::AttributeValue::S(format!("alert#{name}#parked#unnamed_purchase"));
        let update = world
            .dynamodb
            .update_item()
            .table_name("events")
            .key("pk", key)
            .update_expression("SET quiet_until = :past");
        update.expression_attribute_values(":past", past.clone()).send().await.unwrap();
    }
    world.process(&unnamed_pack("again")).await;
    assert_eq!(world.notify().await, 0);
    let posts = chats.taken();
    assert_eq!(posts.len(), 2);
    assert!(posts[0].1["blocks"].to_string().contains("4 more"), "{:#}", posts[0].1);
}

/// A price is renamed in the catalog while a subscription still has it.
#[tokio::test]
async fn a_price_that_left_the_catalog_is_alerted_once_and_not_for_every_event() {
    let (chats, url) = Chats::start().await;
    let world = world(&url).await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        world.process(&sample(name, "user_1")).await;
    }
    let file = std::env::temp_dir().join(format!("tallyhook-renamed-{}.toml", std::process::id()));
    let catalog = include_str!("../catalog.toml").replace("\"price_pro_test\"", "\"price_pro_2027\"");
    let catalog = catalog.replace("\"pro_monthly\"", "\"pro_monthly_2027\"");
    std::fs::write(&file, catalog).unwrap();
    let world = world.redeploy(&[("CATALOG_FILE", file.to_str().unwrap())]);
    std::fs::remove_file(&file).unwrap();
    for name in ["customer.subscription.updated", "invoice.paid.renewal"] {
        world.process(&sample(name, "user_1")).await;
    }
    let (_, line) = world.ask("GET", "/admin/stripe/webhook-logs?type=invoice.paid", Value::Null).await;
    assert_eq!(line["events"][0]["reason"], "price_not_in_catalog", "{line}");
    assert_eq!(world.account("user_1").await["credits"], 5000, "the renewal grants what it did before");
    assert_eq!(world.notify().await, 0);
    let posts = chats.taken();
    assert_eq!(posts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["slack", "discord"]);
    assert!(posts[0].1.to_string().contains("Price price_pro_test has left the catalog"), "{:#}", posts[0].1);
}

/// The corpus has such an event: `2031-01-01.zephyr`.
#[tokio::test]
async fn an_event_of_an_unknown_api_version_is_applied_and_alerted_once() {
    let (chats, url) = Chats::start().await;
    let world = world(&url).await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        let mut event = sample(name, "user_1");
        event["api_version"] = json!("2031-01-01.zephyr");
        world.process(&event).await;
    }
    assert_eq!(world.account("user_1").await["credits"], 5000);
    assert_eq!(world.notify().await, 0);
    let posts = chats.taken();
    assert_eq!(posts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["slack", "discord"]);
    let text = posts[0].1.to_string();
    assert!(text.contains("unknown API version 2031-01-01.zephyr"), "{text}");
}

#[tokio::test]
async fn a_customer_that_pays_for_a_second_user_is_alerted_with_what_it_gave_the_first() {
    let (chats, url) = Chats::start().await;
    let world = world(&url).await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        world.process(&sample(name, "user_1")).await;
    }
    let mut second = with_id(sample("customer.subscription.created", "user_2"), "evt_second");
    second["data"]["object"]["id"] = json!("sub_second");
    second["data"]["object"]["items"]["data"][0]["id"] = json!("si_second");
    second["data"]["object"]["items"]["data"][0]["subscription"] = json!("sub_second");
    world.process(&second).await;
    world.process(&with_id(second, "evt_third")).await;
    assert_eq!(world.notify().await, 0);
    let posts = chats.taken();
    assert_eq!(posts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["slack", "discord"]);
    let customer = sample("invoice.paid", "user_1")["data"]["object"]["customer"].clone();
    let text = posts[0].1.to_string();
    for part in [customer.as_str().unwrap(), "user_1", "user_2", ": pro, 5000 credits left"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn an_alert_is_retried_only_for_the_chat_that_was_down() {
    let (chats, url) = Chats::start().await;
    let world = world(&url).await;
    *chats.broken.lock().unwrap() = Some("slack");
    world.process(&unnamed_pack("down")).await;
    assert_eq!(world.event("evt_down").await.unwrap()["outcome"], "parked");
    assert_eq!(world.notify().await, 1);
    assert_eq!(chats.taken().iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["discord"]);
    *chats.broken.lock().unwrap() = None;
    world.pass_seconds(3600);
    assert_eq!(world.notify().await, 0);
    assert_eq!(chats.taken().iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["slack"]);
}

#[tokio::test]
async fn an_alert_about_a_wrong_secret_is_posted_and_health_counts_it() {
    let (chats, url) = Chats::start().await;
    let (slack, wrong) = (format!("{url}/slack"), "whsec_of_another_endpoint");
    let world = World::with(&[
        ("SLACK_WEBHOOK_URL", &slack),
        ("NOTIFY_ALLOW_LOOPBACK", "true"),
        ("STRIPE_WEBHOOK_SECRET", wrong),
    ])
    .await;
    for number in 0..5 {
        let body = pack(&format!("w{number}"), "user_1", 1).to_string();
        world.post(body.as_bytes(), Some(&signature(body.as_bytes()))).await;
    }
    world.notify().await;
    let posts = chats.taken();
    assert_eq!(posts.len(), 1);
    let text = posts[0].1.to_string();
    assert!(
        text.contains("the webhook secret is wrong") && text.contains("whsec_…") && !text.contains(wrong),
        "{text}"
    );
    let (_, health) = world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
    assert_eq!(
        (&health["counts"]["refused_signatures"], &health["score"]),
        (&json!(5), &json!(65)),
        "reconciliation has not run"
    );
}

#[tokio::test]
async fn no_event_for_the_policys_quiet_hours_is_an_alert_in_live_mode_only() {
    let (chats, url) = Chats::start().await;
    let slack = format!("{url}/slack");
    for (livemode, alerts) in [("true", 1), ("false", 0)] {
        let mode = [
            ("SLACK_WEBHOOK_URL", slack.as_str()),
            ("NOTIFY_ALLOW_LOOPBACK", "true"),
            ("STRIPE_LIVEMODE", livemode),
        ];
        let world = World::with(&mode).await;
        let quiet = |posts: Vec<(&str, Value)>| {
            posts
                .iter()
                .filter(|(_, post)| post.to_string().contains("No event has arrived for 24 hours"))
                .count()
        };
        world.health.handle(Value::Null).await.unwrap();
        world.notify().await;
        assert_eq!(quiet(chats.taken()), alerts, "before the first event, live mode {livemode}");
        let mut event = pack("first", "user_1", 1);
        event["livemode"] = json!(livemode == "true");
        world.process(&event).await;
        world.health.handle(Value::Null).await.unwrap();
        world.notify().await;
        assert_eq!(quiet(chats.taken()), 0, "after an event");
    }
}

#[tokio::test]
async fn an_alert_is_never_sent_to_an_internal_address_and_follows_no_redirect() {
    let (chats, url) = Chats::start().await;
    let port = url.rsplit(':').next().unwrap();
    let moved = format!("{url}/moved");
    let switched_off: [(&str, &str); 2] =
        [("SLACK_WEBHOOK_URL", &format!("{url}/slack")), ("NOTIFY_ALLOW_LOOPBACK", "false")];
    let by_name: [(&str, &str); 2] = [
        ("SLACK_WEBHOOK_URL", &format!("https://localhost:{port}/slack")),
        ("NOTIFY_ALLOW_LOOPBACK", "false"),
    ];
    let metadata: [(&str, &str); 2] =
        [("SLACK_WEBHOOK_URL", "https://169.254.169.254/latest"), ("NOTIFY_ALLOW_LOOPBACK", "true")];
    let redirect: [(&str, &str); 2] = [("SLACK_WEBHOOK_URL", &moved), ("NOTIFY_ALLOW_LOOPBACK", "true")];
    for variables in [switched_off, by_name, metadata, redirect] {
        let world = World::with(&variables).await;
        world.process(&unnamed_pack("inside")).await;
        assert_eq!(world.notify().await, 1, "{variables:?}");
        assert_eq!(chats.taken(), []);
    }
}

#[tokio::test]
async fn an_alert_that_cannot_be_sent_fails_no_event() {
    let world = World::new().await;
    world.deliver(unnamed_pack("quiet").to_string().as_bytes()).await;
    world.fault(|call| (call.operation == "SendMessage").then_some(crate::support::Fault::LoseRequest));
    assert_eq!(world.poll(Family::CheckoutSession).await, 1);
    world.heal();
    assert_eq!(world.event("evt_quiet").await.unwrap()["outcome"], "parked");
    world.pass_seconds(3600);
    assert_eq!(world.poll(Family::CheckoutSession).await, 0);
}

#[tokio::test]
async fn no_personal_data_reaches_a_chat() {
    let (chats, url) = Chats::start().await;
    let world = world(&url).await;
    let mut event = sample("checkout.session.completed.pack", "user_1");
    event["data"]["object"]["customer_details"] =
        json!({"email": "canary@example.com", "name": "Canary Bird"});
    event["data"]["object"]["metadata"] =
        json!({"user_id": "user_1", "pack": "canary@example.com <!channel>"});
    world.process(&event).await;
    world.notify().await;
    let text = json!(chats.taken().iter().map(|(_, body)| body).collect::<Vec<_>>()).to_string();
    assert!(text.contains("unknown_name"), "{text}");
    for canary in ["canary@example.com", "Canary Bird", "<!channel>"] {
        assert!(!text.contains(canary), "{text}");
    }
}
