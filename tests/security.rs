//! The points of `docs/security.md` that no other file proves: tokens, secrets in logs, keys, headers of
//! pages and answers, and what the template and the workflows allow.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lambda_http::{Body, Response};
use local::fake_stripe::FakeStripe;
use local::stack::functions::{self, Trigger};
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_core::event::Family;
use tallyhook_service::config::{
    AdminConfig, ApiConfig, NotifyConfig, ProvisionConfig, ReconcileConfig, WebhookConfig,
};

use crate::code_and_template::{camel, read, resource};
use crate::openapi::{is_open, operations};
use crate::support::{
    ADMIN_TOKEN, APP_TOKEN, Fault, SECRET, World, aws_error, pack, read_answer, sample, with_id,
};

// -------------------------------------------------------------------------------------------------
// // Tokens

/// An answer of the function that has this route, asked with this `Authorization` header.
async fn ask(world: &World, authorization: Option<&str>, method: &str, path: &str) -> (u16, Value) {
    match path.starts_with("/admin") {
        true => world.ask_as(authorization, method, path, Value::Null).await,
        false => read_answer(world.visit(authorization, method, path, Body::Empty).await),
    }
}

#[tokio::test]
async fn every_route_refuses_a_request_without_its_own_token_before_any_read() {
    let world = World::new().await;
    let closed = World::with(&[("ADMIN_API_TOKEN", ""), ("APP_API_TOKEN", "")]).await;
    let before = world.everything().await;
    world.calls();
    let mut open = Vec::new();
    let hidden = [("GET", "/admin/stripe/none"), ("GET", "/users/user_1/none"), ("DELETE", "/users/user_1")];
    let hidden = hidden.map(|(method, path)| (method.to_owned(), path.to_owned()));
    for (method, path) in operations().into_iter().chain(hidden) {
        if is_open(&method, &path) {
            open.push(format!("{method} {path}"));
            continue;
        }
        let path = path.replace("{id}", "user_1").replace("{cs}", "cs_test_1");
        let (own, other) =
            if path.starts_with("/admin") { (ADMIN_TOKEN, APP_TOKEN) } else { (APP_TOKEN, ADMIN_TOKEN) };
        let wrong = [
            String::new(),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            "Bearer wrong".to_owned(),
            format!("Bearer {other}"),
            format!("Bearer {own}x"),
            format!("Bearer {}", &own[..own.len() - 1]),
            format!("Bearer {}", own.to_uppercase()),
            format!("Bearer  {own}"),
            format!("Basic {}", STANDARD.encode(format!("admin:{own}"))),
            own.to_owned(),
        ];
        for authorization in std::iter::once(None).chain(wrong.iter().map(|wrong| Some(wrong.as_str()))) {
            let (status, answer) = ask(&world, authorization, &method, &path).await;
            assert_eq!(
                (status, answer["error"].as_str()),
                (401, Some("unauthorized")),
                "{method} {path} {authorization:?}"
            );
        }
        for nothing in ["Bearer ", "Bearer x"] {
            let (status, answer) = ask(&closed, Some(nothing), &method, &path).await;
            assert_eq!(
                (status, answer["error"].as_str()),
                (503, Some("token_not_configured")),
                "{method} {path}"
            );
        }
    }
    assert!(
        world.operations().is_empty() && closed.operations().is_empty(),
        "an unauthorized request reads nothing"
    );
    assert_eq!(world.everything().await, before);
    // Open routes are listed here, so that a new route is not open by accident.
    assert_eq!(open, ["GET /catalog", "GET /openapi.json", "GET /portal/setup-status", "GET /portal/status"]);
}

#[test]
fn every_route_of_the_document_reaches_its_function_and_no_other_path_reaches_any() {
    let template = read("template.yaml");
    let routes = |function: &str| -> Vec<(String, String)> {
        let function = resource(&template, function);
        let blocks = function.split("Type: HttpApi").skip(1);
        let value = |block: &str, name: &str| {
            block.split(&format!("{name}: ")).nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
        };
        blocks.map(|block| (value(block, "Method"), value(block, "Path"))).collect()
    };
    let fits = |(method, path): &(String, String), asked: &(String, String)| {
        let under = path
            .strip_suffix("{proxy+}")
            .is_some_and(|start| asked.1.len() > start.len() && asked.1.starts_with(start));
        (method == "ANY" || *method == asked.0) && (under || *path == asked.1)
    };
    let (api, admin) = (routes("ApiFunction"), routes("AdminFunction"));
    for operation in operations() {
        let own = if operation.1.starts_with("/admin") { &admin } else { &api };
        assert!(
            own.iter().any(|route| fits(route, &operation)),
            "{operation:?} is in openapi.json and not in template.yaml"
        );
    }
    let paths: BTreeSet<String> = api.iter().chain(&admin).map(|(_, path)| path.clone()).collect();
    let expected = [
        "/admin",
        "/admin/{proxy+}",
        "/catalog",
        "/checkout-sessions",
        "/openapi.json",
        "/portal/{proxy+}",
        "/users/{proxy+}",
    ];
    assert_eq!(paths.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    for public in ["ANY /portal/{proxy+}", "ANY /catalog"] {
        let throttle = format!("{public}: {{ ThrottlingBurstLimit: 50, ThrottlingRateLimit: 20 }}");
        assert!(template.contains(&throttle), "{public} has its own throttle");
    }
    let ways = api.len() + admin.len() + routes("StripeWebhookFunction").len();
    assert_eq!(template.matches("Type: HttpApi\n").count(), ways, "no way in beside these");
    assert!(
        !template.contains("FunctionUrlConfig")
            && !template.contains("Path: $default")
            && !template.contains("Type: Api\n")
    );
    // A function's own URL is open to everyone: the webhook may have one, which verifies Stripe's signature,
    // and nothing else.
    assert_eq!(
        (
            template.matches("AWS::Lambda::Url\n").count(),
            template.matches("AWS::Lambda::Permission\n").count()
        ),
        (1, 2)
    );
    for name in ["StripeWebhookUrl", "StripeWebhookUrlPermission", "StripeWebhookInvokePermission"] {
        let resource = resource(&template, name);
        assert!(
            resource.contains("    Condition: HasFunctionUrl\n")
                && resource.contains("StripeWebhookFunction"),
            "{resource}"
        );
    }
    assert!(
        resource(&template, "FunctionUrlConcurrency").contains("    Default: 0\n"),
        "off unless asked for"
    );
    let reserved = "ReservedConcurrentExecutions: !If [HasFunctionUrl, !Ref FunctionUrlConcurrency,";
    assert!(resource(&template, "StripeWebhookFunction").contains(reserved), "its only throttle");
    assert!(
        resource(&template, "StripeWebhookInvokePermission").contains("InvokedViaFunctionUrl: true"),
        "and by no other call"
    );
}

// -------------------------------------------------------------------------------------------------
// // Headers of pages and answers

fn header<'a>(answer: &'a Response<Body>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn every_page_has_a_strict_policy_and_is_not_framed_cached_or_referred() {
    let world = World::new().await;
    let token = format!("Bearer {APP_TOKEN}");
    let pages = [
        world.page("/admin", &[]).await,
        world.page("/admin/", &[]).await,
        world.visit(None, "GET", "/portal/status?session_id=cs_test_1", Body::Empty).await,
        world.visit(None, "GET", "/portal/status?session_id=<script>", Body::Empty).await,
        world.visit(Some(&token), "GET", "/portal/status", Body::Empty).await,
    ];
    for page in pages {
        let policy: Vec<&str> = header(&page, "content-security-policy").split("; ").collect();
        let body: &[u8] = page.body();
        let text = std::str::from_utf8(body).unwrap();
        for rule in ["default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'"]
        {
            assert!(policy.contains(&rule), "{rule}: {policy:?}");
        }
        let scripts = policy.iter().find(|rule| rule.starts_with("script-src ")).unwrap();
        assert!(
            !policy.iter().any(|rule| rule.contains("unsafe") || rule.contains("http") || rule.contains('*')),
            "{policy:?}"
        );
        assert!(
            *scripts == "script-src 'none'"
                || *scripts == "script-src 'self'"
                || scripts.starts_with("script-src 'sha256-"),
            "{scripts}"
        );
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("strict-transport-security", "max-age=31536000"),
        ] {
            assert_eq!(header(&page, name), value, "{name}");
        }
        assert!(
            !text.contains(" onload=") && !text.contains(" onclick=") && !text.contains(" style="),
            "{text}"
        );
        assert!(
            page.headers().get("set-cookie").is_none(),
            "the token is sent as a header, so there is nothing that a forged request could use"
        );
    }
}

#[tokio::test]
async fn no_answer_lets_another_origin_read_it_and_none_with_data_is_kept() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    let token = format!("Bearer {APP_TOKEN}");
    let mut answers = vec![world.page("/admin", &[("origin", "https://evil.example")]).await];
    for (authorization, method, path) in [
        (Some(token.as_str()), "GET", "/users/user_1"),
        (None, "GET", "/users/user_1"),
        (None, "OPTIONS", "/users/user_1"),
        (None, "OPTIONS", "/checkout-sessions"),
        (None, "GET", "/portal/setup-status?session_id=cs_test_1"),
    ] {
        answers.push(world.visit(authorization, method, path, Body::Empty).await);
    }
    for answer in &answers {
        let allowed: Vec<_> =
            answer.headers().keys().filter(|name| name.as_str().starts_with("access-control-")).collect();
        assert!(allowed.is_empty(), "{allowed:?}");
        assert_eq!(header(answer, "cache-control"), "no-store");
    }
    assert!(!read("template.yaml").contains("Cors"), "nor does API Gateway");
    let public = world.visit(None, "GET", "/catalog", Body::Empty).await;
    assert_eq!(header(&public, "access-control-allow-origin"), "*", "what everyone may read");
    assert!(public.headers().get("access-control-allow-credentials").is_none());
}

// -------------------------------------------------------------------------------------------------
// // Keys

#[tokio::test]
async fn no_text_of_a_request_becomes_a_key_that_is_not_one_of_its_kind() {
    let world = World::new().await;
    for user in ["user_1", "a", "a#account"] {
        world.sign_up(user.replace('#', "%23").as_str()).await;
    }
    assert_eq!(world.account("a%23account").await["user_id"], "a#account", "another account than that of a");
    let report = world
        .ask(
            "POST",
            "/admin/stripe/retry-webhooks",
            json!({"actor": "ann", "reason": "an item of the audit"}),
        )
        .await;
    assert_eq!(report.0, 200);
    let before = world.everything().await;
    world.calls();

    let long = "x".repeat(129);
    for user in ["%00", "a%0Ab", "a%7F", "%ff", "%c2%85", long.as_str()] {
        for (method, path) in [("PUT", ""), ("GET", ""), ("GET", "/ledger"), ("POST", "/credits/consume")] {
            let (status, answer) =
                world.app(method, &format!("/users/{user}{path}"), json!({"amount": 1}), Some("k")).await;
            assert_eq!(
                (status, answer["error"].as_str()),
                (400, Some("invalid_user_id")),
                "{method} {user}{path}"
            );
        }
        for (method, path) in [("GET", "check-user"), ("POST", "fix-user")] {
            let (status, answer) =
                world.ask(method, &format!("/admin/stripe/{path}/{user}"), Value::Null).await;
            assert_eq!(
                (status, answer["error"].as_str()),
                (400, Some("invalid_user_id")),
                "{method} {path}/{user}"
            );
        }
    }
    for key in ["", &"k".repeat(256)] {
        let (status, answer) =
            world.app("POST", "/users/user_1/credits/consume", json!({"amount": 1}), Some(key)).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some("missing_idempotency_key")), "{key}");
    }
    // Notes in the events table are not shown as events and not sent again.
    let long = format!("evt_{}", "x".repeat(300));
    for id in [
        "audit%231",
        "job%23provision%23user_1",
        "signal%23bad_signatures",
        "report%23reconcile",
        "evt_a%00",
        "evt_a%20b",
        &long,
    ] {
        let (status, answer) =
            world.ask("GET", &format!("/admin/stripe/webhook-logs/{id}"), Value::Null).await;
        assert_eq!((status, answer["error"].as_str()), (404, Some("event_not_found")), "{id}");
        let id = id.replace("%23", "#");
        let (_, answer) = world.ask("POST", "/admin/stripe/retry-webhooks", json!({"id": id})).await;
        assert_eq!(answer["error"], "invalid_id", "{id}");
    }
    assert!(world.operations().is_empty(), "all refused before anything is read");

    let longest = "x".repeat(5_000);
    for next in ["x", "../account", "account", "%00", longest.as_str()] {
        let token = format!("Bearer {APP_TOKEN}");
        let mine =
            world.visit(Some(&token), "GET", &format!("/users/user_1/ledger?next={next}"), Body::Empty).await;
        let operators = world
            .ask("GET", &format!("/admin/stripe/check-user/user_1/ledger?next={next}"), Value::Null)
            .await;
        for (status, answer) in [read_answer(mine), operators] {
            assert_eq!(
                (status, answer["error"].as_str()),
                (400, Some("invalid_next")),
                "{next:.20}: {answer}"
            );
        }
    }
    assert_eq!(world.everything().await, before);
}

// -------------------------------------------------------------------------------------------------
// // Secrets and personal data in logs, alerts and answers

/// Names that a test gives the process it starts.
const CHILD: &str = "TALLYHOOK_TEST_CANARIES";
const TEST: &str = "security::nothing_secret_or_personal_is_in_a_log_line_a_metric_an_alert_or_an_error";

const PERSONAL: [&str; 8] = [
    "canary.person@example.com",
    "Canary Q. Person",
    "4242canary",
    "+15550canary",
    "pi_canary_secret_canary",
    "Canary Street 1",
    "canary-free-text",
    "canary-answer-of-the-app",
];
const SECRETS: [&str; 10] = [
    SECRET,
    APP_TOKEN,
    ADMIN_TOKEN,
    "whsec_canary",
    "sk_test_canary",
    "canary-path-of-the-chat",
    "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXI=",
    "canary-wrong-token",
    "canary-path-of-the-app",
    "canary-path-of-the-portal",
];

/// Runs itself in a child process and reads all its output: log lines, metrics, panics.
#[test]
fn nothing_secret_or_personal_is_in_a_log_line_a_metric_an_alert_or_an_error() {
    if std::env::var_os(CHILD).is_some() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        return runtime.block_on(tour());
    }
    let this = std::env::current_exe().unwrap();
    let child = Command::new(this)
        .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env_remove("LOG_LEVEL")
        .output();
    let child = child.unwrap();
    let output =
        format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{output}");
    for name in [
        "WEBHOOK_RECEIVED",
        "WEBHOOK_REFUSED",
        "WEBHOOK_PROCESSED_OK",
        "WEBHOOK_PARKED",
        "WEBHOOK_PROCESSING_FAILED",
        "WEBHOOK_FAILED",
        "CloudWatchMetrics",
        "ADMIN_REFUSED",
        "ADMIN_CHANGE",
        "ADMIN_PAYLOAD_SHOWN",
        "BILLING_PORTAL_CREATED",
        "ALERT_POSTED",
        "ALERT_NOT_POSTED",
        "START_WOULD_BE_REFUSED",
    ] {
        assert!(output.contains(name), "nothing was captured of {name}: {output}");
    }
    for canary in PERSONAL.iter().chain(&SECRETS) {
        let line = output.lines().find(|line| line.contains(canary));
        assert!(line.is_none(), "I21, written by a function: {canary}: {line:?}");
    }
}

/// A local server that is chat and app: it keeps what it receives and answers with a canary, every second
/// time with an error.
#[derive(Clone, Default)]
struct RecordingServer {
    bodies: Arc<Mutex<Vec<String>>>,
}

impl RecordingServer {
    async fn start() -> (Self, String) {
        async fn take(State(recorder): State<RecordingServer>, body: String) -> (StatusCode, &'static str) {
            let mut bodies = recorder.bodies.lock().unwrap();
            bodies.push(body);
            let status =
                if bodies.len() % 2 == 0 { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
            (status, "canary-answer-of-the-app <canary.person@example.com>")
        }
        let recorder = Self::default();
        let router = Router::new().fallback(take).with_state(recorder.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (recorder, url)
    }
}

/// The event with personal data and secrets in every field that may have them.
fn tainted(event: &Value, id: &str) -> Value {
    let mut event = with_id(event.clone(), id);
    let [email, name, card, phone, client_secret, street, free_text, _] = PERSONAL;
    let object = &mut event["data"]["object"];
    object["customer_email"] = json!(email);
    object["receipt_email"] = json!(email);
    object["customer_details"] =
        json!({"email": email, "name": name, "phone": phone, "address": {"line1": street}});
    object["billing_details"] = json!({"email": email, "name": name});
    object["payment_method_details"] = json!({"card": {"last4": card}});
    object["client_secret"] = json!(client_secret);
    object["description"] = json!(format!("{free_text} sk_test_canary whsec_canary"));
    event
}

/// Runs every function, with canaries in all input and with faults.
async fn tour() {
    tallyhook_aws::telemetry::init(&Env::from([("METRICS_NAMESPACE", "canaries")]));
    start_is_refused();
    let (recorder, url) = RecordingServer::start().await;
    let fake = FakeStripe::new("sk_test_canary");
    let stripe = format!("http://{}", fake.start().await.unwrap());
    let (chat, app) = (format!("{url}/canary-path-of-the-chat"), format!("{url}/canary-path-of-the-app"));
    let world = World::provisioning(&[
        ("STRIPE_WEBHOOK_SECRET", "whsec_canary,whsec_test"),
        ("STRIPE_SECRET_KEY", "sk_test_canary"),
        ("STRIPE_API_BASE", &stripe),
        ("SLACK_WEBHOOK_URL", &chat),
        ("DISCORD_WEBHOOK_URL", "http://127.0.0.1:9/canary-path-of-the-chat"),
        ("NOTIFY_ALLOW_LOOPBACK", "true"),
        ("PROVISION_URL", &app),
        ("PROVISION_SECRET", "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXI="),
        ("PROVISION_ALLOW_LOOPBACK", "true"),
        ("APP_BASE_URL", "https://app.example.com"),
    ])
    .await;
    world.sign_up("user_1").await;
    let mut answers = events(&world).await;
    // The rest uses real sockets, which need the real clock.
    tokio::time::resume();

    // Dead letters: an event that used up its attempts, and a message that is no event.
    let dead = tainted(&pack("dead", "user_1", 1), "evt_dead");
    world.deliver(dead.to_string().as_bytes()).await;
    world.fault(|call| {
        (call.operation == "TransactWriteItems").then_some(aws_error(400, "ValidationException"))
    });
    for _ in 0..5 {
        world.drain().await;
        world.pass_seconds(901);
    }
    world.heal();
    let letters = world.env.get("QUEUE_URL_DEAD_LETTER").unwrap();
    world.sqs.send_message().queue_url(&letters).message_body(PERSONAL[0]).send().await.unwrap();
    world.drain_dead_letters().await;

    // Requests of the app, of an operator, and with a wrong token.
    fake.ingest(&tainted(&sample("customer.subscription.created", "user_9"), "evt_lost").to_string(), false)
        .unwrap();
    let wrong = Some("Bearer canary-wrong-token");
    for (method, path) in operations() {
        answers += &ask(&world, wrong, &method, &path.replace("{id}", "user_1").replace("{cs}", "cs_test_1"))
            .await
            .1
            .to_string();
    }
    let [email, name, ..] = PERSONAL;
    for (method, path, body) in [
        ("POST", "/users/user_1/credits/consume", json!({"amount": email})),
        ("POST", "/checkout-sessions", json!({"user_id": "user_1", "plan": "pro", "customer_email": email})),
        (
            "POST",
            "/checkout-sessions",
            json!({"user_id": "user_1", "plan": "pro", "customer_email": "canary.person@example.com\u{0}"}),
        ),
    ] {
        answers += &world.app(method, path, body, Some("key")).await.1.to_string();
    }
    for (method, path, body) in [
        ("POST", "stripe/find", json!({"text": email})),
        ("POST", "stripe/reconcile", json!({"dry_run": false, "actor": email, "reason": name})),
        ("POST", "stripe/retry-webhooks", json!({"actor": email, "reason": name})),
        ("POST", "stripe/retry-webhooks", json!({"id": "evt_dead", "actor": email, "reason": name})),
        ("GET", "stripe/parked", Value::Null),
        ("GET", "stripe/webhook-logs", Value::Null),
        ("GET", "stripe/subscription-health", Value::Null),
        ("GET", "provisioning", Value::Null),
    ] {
        answers += &world.ask(method, &format!("/admin/{path}"), body).await.1.to_string();
    }
    let grant = json!({"action": "grant", "credits": 5, "actor": email, "reason": name});
    assert_eq!(world.fix("user_1", Some("key"), grant).await.0, 200);
    // An operator may see the payload. That it was shown is logged.
    assert!(
        world
            .ask("GET", "/admin/stripe/webhook-logs/evt_dead", Value::Null)
            .await
            .1
            .to_string()
            .contains(email)
    );

    // A portal session: its URL lets everyone in.
    fake.set_pages("https://billing.test/canary-path-of-the-portal");
    fake.put_portal("bpc_1", "always_invoice");
    fake.put(json!({"id": "cus_user2", "object": "customer"}));
    world.process(&pack("portal", "user_2", 1)).await;
    let (status, portal) = world.app("POST", "/users/user_2/portal", json!({"flow": "home"}), None).await;
    assert!(status == 200 && portal.to_string().contains("canary-path-of-the-portal"), "{portal}");
    assert!(!world.everything().await.to_string().contains("canary-path-of-the-portal"));

    // Alarms, alerts and jobs, each sent twice because every second post is refused.
    let alarm = json!({"detail-type": "CloudWatch Alarm State Change",
        "detail": {"alarmName": "tallyhook-x", "state": {"reason": email}}});
    let notify = world.env.get("QUEUE_URL_NOTIFY").unwrap();
    world.sqs.send_message().queue_url(&notify).message_body(alarm.to_string()).send().await.unwrap();
    world.health.handle(Value::Null).await.unwrap();
    world.retry_in(86_400).await;
    for _ in 0..2 {
        world.notify().await;
        world.provision().await;
        world.pass_seconds(901);
    }
    let sent = std::mem::take(&mut *recorder.bodies.lock().unwrap()).join("\n");
    assert!(sent.contains("blocks") && sent.contains("payment.confirmed"), "{sent}");
    for canary in PERSONAL.iter().chain(&SECRETS) {
        let place = answers
            .find(canary)
            .map(|place| answers[place.saturating_sub(300)..].chars().take(500).collect::<String>());
        assert_eq!(place, None, "I21, in an answer: {canary}");
        assert!(!sent.contains(canary), "I21, sent outside: {canary}");
    }
}

/// Delivers events of every family, tainted, malformed, forged and truncated, while one write in three fails.
/// Returns the answers.
async fn events(world: &World) -> String {
    let mut answers = String::new();
    let mut broken = sample("invoice.paid", "user_1");
    broken["data"]["object"]["amount_paid"] = json!(PERSONAL[0]);
    let mut wrong_id = pack("wrong", "user_1", 1);
    wrong_id["data"]["object"]["payment_intent"] = json!(PERSONAL[4]);
    wrong_id["data"]["object"]["customer"] = json!(PERSONAL[0]);
    let mut wrong_user = pack("wrong_user", "user_1", 1);
    wrong_user["data"]["object"]["client_reference_id"] = json!(format!("{}\n", PERSONAL[0]));
    let mut all = vec![broken, wrong_id, wrong_user];
    for name in [
        "checkout.session.completed.pack",
        "checkout.session.completed.order",
        "customer.subscription.created",
        "invoice.paid",
        "invoice.payment_failed",
        "charge.refunded",
        "charge.dispute.created",
        "customer.deleted",
        "product.updated",
    ] {
        let mut nobodys = sample(name, "user_1");
        nobodys["data"]["object"]["metadata"] = json!({});
        nobodys["data"]["object"]["client_reference_id"] = Value::Null;
        all.extend([sample(name, "user_1"), nobodys]);
    }
    for (number, event) in all.iter().enumerate() {
        let body = tainted(event, &format!("evt_canary{number}")).to_string().into_bytes();
        answers += &world.deliver(&body).await.1.to_string();
        answers += &world.post(&body, Some("t=1,v1=canary-wrong-token")).await.1.to_string();
        answers += &world.deliver(&body[..body.len() - 3]).await.1.to_string();
        let odd = String::from_utf8_lossy(&body).replace("\"event\"", "\"canary.person@example.com\"");
        answers += &world.deliver(odd.as_bytes()).await.1.to_string();
        let mut writes = 0;
        world.fault(move |call| {
            writes += u32::from(call.operation == "TransactWriteItems");
            match (writes % 6, call.operation.as_str()) {
                (0 | 1, "TransactWriteItems") => Some(aws_error(400, "ValidationException")),
                (4, "TransactWriteItems") => Some(Fault::LoseRequest),
                _ => None,
            }
        });
        for family in Family::ALL {
            let url = world.queue_url(family);
            world.sqs.send_message().queue_url(&url).message_body(PERSONAL[0]).send().await.unwrap();
            let batch = world.receive(family).await;
            let answer = world.worker(family).handle(batch.clone()).await.unwrap();
            world.delete(family, &batch, &answer).await;
        }
        world.heal();
    }
    world.settle().await;
    answers
}

/// Logs the errors of functions that cannot start: they name the variable, never its value.
fn start_is_refused() {
    let mut env = Env::from([
        ("AWS_REGION", "us-east-1"),
        ("ACCOUNTS_TABLE", "a"),
        ("EVENTS_TABLE", "e"),
        ("QUEUE_URL_PROVISION", "q"),
        ("STRIPE_LIVEMODE", "true"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_canary, ,whsec_test"),
        ("STRIPE_SECRET_KEY", "sk_test_canary"),
        ("PROVISION_URL", "https://example.com/canary-path-of-the-app"),
        ("PROVISION_SECRET", "whsec_canary"),
        ("APP_BASE_URL", "http://canary.person@example.com"),
        ("NOTIFY_ALLOW_LOOPBACK", "canary-wrong-token"),
    ]);
    for family in Family::ALL {
        env.set(tallyhook_service::config::queue_variable(family), "q");
    }
    let refusals = [
        WebhookConfig::from_env(&env).err(),
        ApiConfig::from_env(&env).err(),
        AdminConfig::from_env(&env).err(),
        ReconcileConfig::from_env(&env).err(),
        ProvisionConfig::from_env(&env).err(),
        NotifyConfig::from_env(&env).err(),
    ];
    for refusal in refusals {
        let error = refusal.expect("this environment starts nothing");
        tracing::error!(error = error.to_string(), debug = ?error, "START_WOULD_BE_REFUSED");
    }
}

// -------------------------------------------------------------------------------------------------
// The template and the workflows

/// The actions that a function's role and its managed policies allow.
fn actions(template: &str, function: &str) -> BTreeSet<String> {
    let role = resource(template, &format!("{}Role", camel(function)));
    let managed: Vec<String> = role
        .split("!Ref ")
        .skip(1)
        .filter_map(|rest| rest.split([',', ']', ' ', '\n']).next())
        .map(str::to_owned)
        .collect();
    let texts = managed
        .iter()
        .filter(|name| name.ends_with("Policy"))
        .map(|name| resource(template, name))
        .chain([role.clone()]);
    let words = |text: String| -> Vec<String> {
        let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().to_owned());
        let of = |line: String| line.split([' ', ',', '[', ']']).map(str::to_owned).collect::<Vec<_>>();
        lines
            .flat_map(of)
            .filter(|word| {
                ["dynamodb:", "sqs:", "ssm:", "sns:", "logs:", "s3:", "lambda:"]
                    .iter()
                    .any(|service| word.starts_with(service))
            })
            .collect()
    };
    texts.flat_map(words).collect()
}

#[test]
fn the_webhook_reads_no_table_and_no_role_deletes_from_the_accounts() {
    let template = read("template.yaml");
    let webhook: Vec<String> = actions(&template, "stripe-webhook").into_iter().collect();
    assert_eq!(
        webhook,
        [
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            "sqs:GetQueueAttributes",
            "sqs:SendMessage",
            "ssm:GetParameters"
        ]
    );
    for part in functions::all() {
        for action in actions(&template, part.name) {
            let deletes = action == "dynamodb:DeleteItem" || action == "dynamodb:BatchWriteItem";
            assert!(!deletes || ["reconcile", "admin"].contains(&part.name), "{} may {action}", part.name);
            assert!(
                !["dynamodb:DeleteTable", "dynamodb:UpdateTable", "sqs:PurgeQueue"]
                    .contains(&action.as_str()),
                "{action}"
            );
        }
    }
    // Two functions delete the place of a reconciliation from the events table. None deletes accounts.
    for statement in template.split("- Sid:").filter(|statement| statement.contains("dynamodb:DeleteItem")) {
        let statement: String = statement.lines().take_while(|line| !line.trim().is_empty()).collect();
        assert!(statement.contains("EventsTable.Arn") && !statement.contains("AccountsTable"), "{statement}");
    }
}

#[test]
fn queues_are_encrypted_and_require_tls_and_the_template_has_no_secret() {
    let template = read("template.yaml");
    let named = |kind: &str| -> Vec<String> {
        let mark = format!(":\n    Type: {kind}\n");
        let texts: Vec<&str> = template.split(&mark).collect();
        texts[..texts.len() - 1]
            .iter()
            .map(|text| text.rsplit('\n').next().unwrap().trim().to_owned())
            .collect()
    };
    let queues = named("AWS::SQS::Queue");
    assert!(queues.len() > 9, "{queues:?}");
    let tls: String = named("AWS::SQS::QueuePolicy").iter().map(|name| resource(&template, name)).collect();
    for queue in queues {
        assert!(resource(&template, &queue).contains("SqsManagedSseEnabled: true"), "{queue}");
        assert!(
            tls.contains(&format!("!Ref {queue}\n")) || tls.contains(&format!("[!Ref {queue}]")),
            "{queue} takes messages without TLS"
        );
    }
    for policy in named("AWS::SQS::QueuePolicy") {
        assert!(resource(&template, &policy).contains("\"aws:SecureTransport\": \"false\""), "{policy}");
    }
    // The template names the parameter of a secret, never its value.
    for line in template.lines().filter(|line| {
        line.contains("_TOKEN:")
            || line.contains("_TOKENS:")
            || line.contains("_SECRET:")
            || line.contains("_KEY:")
            || line.contains("WEBHOOK_URL:")
    }) {
        assert!(line.contains("ssm:${"), "{line}");
    }
    assert!(!template.contains("whsec_M") && !template.contains("sk_live") && !template.contains("sk_test"));
}

#[test]
fn each_worker_has_a_concurrency_limit_and_the_front_is_throttled() {
    let template = read("template.yaml");
    assert!(resource(&template, "HttpApi").contains("ThrottlingRateLimit: "));
    for part in
        functions::all().iter().filter(|part| Family::ALL.iter().any(|family| family.as_str() == part.name))
    {
        assert_eq!(part.trigger, Trigger::Queue);
        let function = resource(&template, &format!("{}Function", camel(part.name)));
        assert!(function.contains("MaximumConcurrency: !Ref WorkerConcurrency"), "{}", part.name);
    }
}

#[test]
fn every_action_of_a_workflow_is_pinned_and_only_the_job_that_publishes_may_write() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.github/workflows");
    let mut actions = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for line in
            text.lines().filter(|line| line.trim_start().trim_start_matches("- ").starts_with("uses:"))
        {
            let commit = line.split('@').nth(1).unwrap().split_whitespace().next().unwrap();
            assert!(
                commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit()),
                "{}: {line}",
                path.display()
            );
            actions += 1;
        }
        assert!(text.contains("\npermissions:\n  contents: read\n"), "{}", path.display());
        let publishes = usize::from(path.ends_with("release.yml"));
        assert_eq!(text.matches("contents: write").count(), publishes, "{}", path.display());
        assert!(!text.contains("pull_request_target"), "{}", path.display());
        assert_eq!(
            text.matches("actions/checkout@").count(),
            text.matches("persist-credentials: false").count(),
            "{}",
            path.display()
        );
    }
    assert!(actions > 3);
}
