//! The status page and the setup status after a checkout, and the requests to Stripe while its webhook is
//! missing.

use aws_sdk_dynamodb::types::AttributeValue;
use lambda_http::Body;
use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};

use crate::stripe_client::KEY;
use crate::support::{APP_TOKEN, World, read_answer, sample, with_id};

const SESSION: &str = "cs_test_a1TallyHook0001";
const PACK_SESSION: &str = "cs_test_a1TallyHook0002";

/// A deployment with a Stripe key, and its Stripe.
pub async fn with_stripe() -> (World, FakeStripe) {
    let fake = FakeStripe::new(KEY);
    let base = format!("http://{}", fake.start().await.unwrap());
    let variables =
        [("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", base.as_str()), ("STRIPE_LIVEMODE", "false")];
    (World::with(&variables).await, fake)
}

/// Adds sample events to the fake Stripe that no webhook delivers.
fn happens(fake: &FakeStripe, names: &[&str]) {
    for name in names {
        fake.ingest(&sample(name, "user_123").to_string(), false).unwrap();
    }
}

async fn states(world: &World, session: &str) -> String {
    states_of(session, world.setup_status(session).await)
}

async fn states_for_app(world: &World, session: &str) -> String {
    states_of(session, app_asks(world, session).await)
}

fn states_of(session: &str, (status, body): (u16, Value)) -> String {
    assert_eq!((status, body["session_id"].as_str()), (200, Some(session)), "{body}");
    let word = |name: &str| body[name].as_str().unwrap().to_owned();
    ["payment_state", "provisioning_state", "password_state", "next_action"].map(word).join(" ")
}

/// Makes the next request for a session ask Stripe at once.
async fn time_passes(world: &World, session: &str) {
    let update = world
        .dynamodb
        .update_item()
        .table_name("events")
        .key("pk", AttributeValue::S(format!("ask#{session}")));
    let update = update
        .update_expression("SET asked = :long_ago")
        .expression_attribute_values(":long_ago", AttributeValue::N("1".to_owned()));
    update.send().await.unwrap();
}

/// The setup status of a session that another system created, as the app asks for it.
pub async fn app_asks(world: &World, session: &str) -> (u16, Value) {
    let token = format!("Bearer {APP_TOKEN}");
    let path = format!("/portal/setup-status?session_id={session}");
    read_answer(world.visit(Some(&token), "GET", &path, Body::Empty).await)
}

/// The item that counts requests to Stripe for a session, if there is one.
async fn asked_item(world: &World, key: &str) -> bool {
    let key = AttributeValue::S(key.to_owned());
    let found = world.dynamodb.get_item().table_name("events").key("pk", key).send().await.unwrap();
    found.item.is_some()
}

fn sessions_asked(fake: &FakeStripe) -> usize {
    fake.requests().iter().filter(|request| request.contains("/v1/checkout/sessions/")).count()
}

#[tokio::test]
async fn the_states_follow_the_webhooks() {
    let world = World::new().await;
    assert_eq!(states(&world, SESSION).await, "confirming not_started not_sent wait_payment");
    let unpaid = json!({"status": "complete", "payment_status": "unpaid"});
    let mut delayed = sample("checkout.session.completed.pack", "user_123");
    delayed["data"]["object"]["payment_status"] = unpaid["payment_status"].clone();
    world.process(&delayed).await;
    assert_eq!(states(&world, PACK_SESSION).await, "confirming not_started not_sent wait_payment");
    let mut failed = with_id(delayed.clone(), "evt_failed");
    failed["type"] = json!("checkout.session.async_payment_failed");
    world.process(&failed).await;
    assert_eq!(states(&world, PACK_SESSION).await, "failed not_started not_sent pay");

    world.process(&sample("checkout.session.completed", "user_123")).await;
    assert_eq!(states(&world, SESSION).await, "paid completed not_sent set_password");
    let (status, body) =
        world.app("POST", "/portal/password-set", json!({"user_id": "user_123"}), None).await;
    assert_eq!((status, &body["password_state"]), (200, &json!("set")));
    assert_eq!(states(&world, SESSION).await, "paid completed set go_to_dashboard");
}

#[tokio::test]
async fn the_app_reports_how_far_it_has_set_a_user_up() {
    let world = World::new().await;
    world.process(&sample("checkout.session.completed", "user_123")).await;
    let report = async |state: &str| {
        let body = json!({"user_id": "user_123", "state": state});
        world.app("POST", "/portal/provisioning", body, None).await
    };
    assert_eq!(report("PROVISIONING_STARTED").await.0, 200);
    assert_eq!(states(&world, SESSION).await, "paid running not_sent wait_provisioning");
    assert_eq!(world.setup_status(SESSION).await.1["welcome_email_sent"], false);
    let (status, body) = report("WELCOME_EMAIL_SENT").await;
    assert_eq!((status, body), (200, json!({"user_id": "user_123", "state": "WELCOME_EMAIL_SENT"})));
    assert_eq!(states(&world, SESSION).await, "paid running not_sent wait_provisioning");
    assert_eq!(world.setup_status(SESSION).await.1["welcome_email_sent"], true);
    assert_eq!(report("PROVISIONING_COMPLETED").await.0, 200);
    let password = json!({"user_id": "user_123"});
    assert_eq!(world.app("POST", "/portal/password-set", password, None).await.0, 200);
    assert_eq!(states(&world, SESSION).await, "paid completed set go_to_dashboard");
    assert_eq!(world.setup_status(SESSION).await.1["welcome_email_sent"], true, "no report replaces another");
    assert_eq!(report("PROVISIONING_FAILED").await.0, 200);
    assert_eq!(states(&world, SESSION).await, "paid failed set wait_provisioning");

    assert_eq!(report("DONE").await.1["error"], "invalid_state");
    let unknown = json!({"user_id": "unknown", "state": "WELCOME_EMAIL_SENT"});
    assert_eq!(world.app("POST", "/portal/provisioning", unknown.clone(), None).await.0, 404);
    let body = Body::Text(unknown.to_string());
    assert_eq!(read_answer(world.visit(None, "POST", "/portal/provisioning", body).await).0, 401);
}

#[tokio::test]
async fn the_reference_is_the_customers_own_or_the_session() {
    let (world, fake) = with_stripe().await;
    let mut event = sample("checkout.session.completed.pack", "user_123");
    event["data"]["object"]["metadata"]["customer_reference"] = json!("PO 7\u{7}/a");
    // The webhook is late: Stripe is asked.
    fake.ingest(&event.to_string(), false).unwrap();
    assert_eq!(app_asks(&world, PACK_SESSION).await.1["reference"], "PO 7/a");
    world.process(&event).await;
    assert_eq!(world.setup_status(PACK_SESSION).await.1["reference"], "PO 7/a");
    let world = World::new().await;
    world.process(&sample("checkout.session.completed", "user_123")).await;
    assert_eq!(world.setup_status(SESSION).await.1["reference"], SESSION);
}

#[tokio::test]
async fn a_late_unpaid_event_does_not_revert_a_payment() {
    let world = World::new().await;
    let paid = sample("checkout.session.async_payment_succeeded", "user_123");
    let session = paid["data"]["object"]["id"].as_str().unwrap().to_owned();
    world.process(&paid).await;
    let mut before = with_id(paid.clone(), "evt_before");
    before["type"] = json!("checkout.session.completed");
    before["data"]["object"]["payment_status"] = json!("unpaid");
    world.process(&before).await;
    assert!(states(&world, &session).await.starts_with("paid "));
}

#[tokio::test]
async fn setup_status_reads_an_unannounced_subscription_from_stripe_once() {
    let (world, fake) = with_stripe().await;
    world.sign_up("user_123").await;
    let life = ["customer.subscription.created", "invoice.paid", "checkout.session.completed"];
    happens(&fake, &life);
    assert_eq!(states(&world, SESSION).await, "confirming not_started not_sent wait_payment");
    assert_eq!(sessions_asked(&fake), 0, "this deployment did not create the session");
    assert_eq!(states_for_app(&world, SESSION).await, "paid completed not_sent set_password");
    let account = world.account("user_123").await;
    assert_eq!(
        (account["tier"].as_str(), account["credits"].as_i64()),
        (Some("pro"), Some(5000)),
        "{account}"
    );
    let ledger = world.ledger("user_123").await;
    assert_eq!(ledger[0]["cause"], "setup-status", "{ledger:?}");
    for name in life {
        world.process(&sample(name, "user_123")).await;
    }
    let after = world.account("user_123").await;
    assert_eq!((&after["tier"], &after["buckets"]), (&account["tier"], &account["buckets"]));
    assert_eq!(world.ledger("user_123").await, ledger, "every credit is granted once");
}

#[tokio::test]
async fn a_pack_is_granted_once_whichever_comes_first_even_when_many_ask_at_once() {
    let (world, fake) = with_stripe().await;
    world.sign_up("user_123").await;
    happens(&fake, &["checkout.session.completed.pack"]);
    let event = sample("checkout.session.completed.pack", "user_123");
    let polls = futures_util::future::join_all((0..8).map(|_| app_asks(&world, PACK_SESSION)));
    let (polls, ()) = tokio::join!(polls, world.process(&event));
    assert!(polls.iter().all(|(status, _)| *status == 200));
    assert!(sessions_asked(&fake) <= 1, "at most one request asks Stripe");
    assert_eq!(states(&world, PACK_SESSION).await, "paid completed not_sent set_password");
    let account = world.account("user_123").await;
    assert_eq!(account["credits"], 1500, "{account}");
}

#[tokio::test]
async fn polling_asks_stripe_a_bounded_number_of_times() {
    let (world, fake) = with_stripe().await;
    for _ in 0..20 {
        assert_eq!(app_asks(&world, SESSION).await.0, 404);
    }
    assert_eq!(sessions_asked(&fake), 1);
    // All sessions and all instances share one budget.
    let other = world.redeploy(&[]);
    for number in 0..30 {
        app_asks(&other, &format!("cs_test_made_up_{number}")).await;
    }
    // A new window may have begun meanwhile.
    assert!((19..=40).contains(&sessions_asked(&fake)));
}

#[tokio::test]
async fn invented_session_ids_ask_stripe_nothing_and_write_nothing() {
    let (world, fake) = with_stripe().await;
    let before = world.everything().await;
    for number in 0..60 {
        let (status, body) = world.setup_status(&format!("cs_test_made_up_{number}")).await;
        assert_eq!((status, &body["next_action"]), (200, &json!("wait_payment")));
    }
    assert_eq!((sessions_asked(&fake), world.everything().await), (0, before));
    assert!(!asked_item(&world, "budget#sessions").await);
}

#[tokio::test]
async fn the_state_of_an_unpaid_session_is_shown_and_changes_no_account() {
    let (world, fake) = with_stripe().await;
    let mut event = sample("checkout.session.completed.pack", "user_123");
    for (status, payment, expect) in
        [("open", "unpaid", "unpaid"), ("complete", "unpaid", "confirming"), ("expired", "unpaid", "unpaid")]
    {
        event["data"]["object"]["status"] = json!(status);
        event["data"]["object"]["payment_status"] = json!(payment);
        fake.ingest(&event.to_string(), false).unwrap();
        assert!(states_for_app(&world, PACK_SESSION).await.starts_with(expect), "{status} {payment}");
        time_passes(&world, PACK_SESSION).await;
    }
    assert_eq!(
        world.app("GET", "/users/user_123", Value::Null, None).await.0,
        404,
        "an unpaid session creates no account"
    );
    fake.fail("/v1/checkout/sessions/", 9, Misbehaviour::Status(500, None));
    assert_eq!(
        app_asks(&world, "cs_test_other").await.0,
        200,
        "a failure of Stripe is not shown as an error"
    );
}

#[tokio::test]
async fn a_paid_session_without_a_user_or_of_the_other_mode_stays_unconfirmed() {
    let (world, fake) = with_stripe().await;
    let mut event = sample("checkout.session.completed.pack", "user_123");
    event["data"]["object"]["client_reference_id"] = Value::Null;
    event["data"]["object"]["metadata"] = json!({"pack": "credits_1000"});
    fake.ingest(&event.to_string(), false).unwrap();
    assert_eq!(states_for_app(&world, PACK_SESSION).await, "confirming not_started not_sent wait_payment");
    let mut live = sample("checkout.session.completed.pack", "user_123");
    live["data"]["object"]["id"] = json!("cs_live_1");
    live["data"]["object"]["livemode"] = json!(true);
    fake.ingest(&live.to_string(), false).unwrap();
    assert_eq!(states_for_app(&world, "cs_live_1").await, "confirming not_started not_sent wait_payment");
    assert_eq!(world.app("GET", "/users/user_123", Value::Null, None).await.0, 404);
}

#[tokio::test]
async fn an_invalid_session_id_is_refused_before_any_read() {
    let world = World::new().await;
    let long = format!("cs_{}", "a".repeat(300));
    for session in ["", "cs_", "sub_1", "cs_1#x", "cs_<script>", "cs_1'--", long.as_str()] {
        let (status, body) = world.setup_status(session).await;
        assert_eq!((status, body["error"].as_str()), (400, Some("invalid_session_id")), "{session}");
    }
    assert_eq!(read_answer(world.visit(None, "GET", "/portal/setup-status", Body::Empty).await).0, 400);
    assert_eq!(read_answer(world.visit(None, "POST", "/portal/setup-status", Body::Empty).await).0, 405);
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn only_the_app_reports_a_set_password_and_only_for_an_existing_user() {
    let world = World::new().await;
    let say = async |authorization: Option<&str>, body: &str| {
        let (status, body) = read_answer(
            world.visit(authorization, "POST", "/portal/password-set", Body::Text(body.to_owned())).await,
        );
        (status, body["error"].as_str().unwrap_or_default().to_owned())
    };
    let token = format!("Bearer {APP_TOKEN}");
    assert_eq!(say(None, "{}").await, (401, "unauthorized".to_owned()));
    assert_eq!(say(Some("Bearer wrong"), "{}").await, (401, "unauthorized".to_owned()));
    assert_eq!(say(Some(&token), r#"{"user_id":"no-user"}"#).await, (404, "user_not_found".to_owned()));
    for body in ["", "{}", "[]", "\u{feff}{}", r#"{"user_id":7}"#, r#"{"user_id":"u","x":1}"#, "<xml/>"] {
        assert_eq!(say(Some(&token), body).await, (400, "invalid_body".to_owned()), "{body}");
    }
    assert_eq!(say(Some(&token), r#"{"user_id":""}"#).await, (400, "invalid_user_id".to_owned()));
    assert_eq!(
        say(Some(&token), &format!("\"{}\"", "x".repeat(70_000))).await,
        (413, "too_large".to_owned())
    );
    let closed = world.redeploy(&[("APP_API_TOKEN", "")]);
    assert_eq!(
        read_answer(closed.visit(Some("Bearer "), "POST", "/portal/password-set", Body::Empty).await).0,
        503
    );
}

#[tokio::test]
async fn the_page_shows_the_reference_as_text_and_runs_nothing_but_its_own_script() {
    let world =
        World::with(&[("SUPPORT_EMAIL", "help@example.com"), ("APP_BASE_URL", "https://app.example.com")])
            .await;
    let page = async |path: &str| {
        let answer = world.visit(None, "GET", path, Body::Empty).await;
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        let body: &[u8] = answer.body();
        (answer.status().as_u16(), policy, String::from_utf8(body.to_vec()).unwrap())
    };
    let (status, policy, text) = page(&format!("/portal/status?session_id={SESSION}")).await;
    assert_eq!(status, 200);
    assert!(
        text.contains(SESSION)
            && text.contains("help@example.com")
            && text.contains("https://app.example.com")
    );
    assert!(
        policy.contains("default-src 'none'")
            && policy.contains("connect-src 'self'")
            && !policy.contains("unsafe")
    );
    for hostile in [
        "",
        "?session_id=",
        "?session_id=cs_<script>alert(1)</script>",
        "?session_id=\"><img src=x onerror=alert(1)>",
    ] {
        let (status, _, text) = page(&format!("/portal/status{hostile}")).await;
        assert_eq!(status, 400);
        assert!(!text.contains("alert(1)"), "{hostile}");
    }
}
