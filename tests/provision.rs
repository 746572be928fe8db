//! Requests to the app's webhook: one for the first payment and one after each change, signed and never lost.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Router, routing::post};
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_aws::store::Store;
use tallyhook_core::event::Family;
use tallyhook_service::config::ProvisionConfig;
use tallyhook_service::outbox;

use crate::orders::{order, refund_of};
use crate::support::{Fault, World, pack, sample, with_id};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The app: the requests that it received, and what it answers.
#[derive(Clone)]
pub struct App {
    requests: Arc<Mutex<Vec<(String, Value)>>>,
    answers: Arc<Mutex<StatusCode>>,
}

impl App {
    pub async fn start() -> (Self, String) {
        async fn take(State(app): State<App>, headers: HeaderMap, body: String) -> StatusCode {
            let webhook = standardwebhooks::Webhook::new(SECRET).unwrap();
            webhook
                .verify(body.as_bytes(), &headers)
                .expect("the request has a valid Standard Webhooks signature");
            let id = headers["webhook-id"].to_str().unwrap().to_owned();
            app.requests.lock().unwrap().push((id, serde_json::from_str(&body).unwrap()));
            *app.answers.lock().unwrap()
        }
        let app = Self { requests: Arc::default(), answers: Arc::new(Mutex::new(StatusCode::OK)) };
        let moved = post(|| async { (StatusCode::TEMPORARY_REDIRECT, [("location", "/")]) });
        let router = Router::new().route("/", post(take)).route("/moved", moved).with_state(app.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (app, url)
    }

    fn answer(&self, status: StatusCode) {
        *self.answers.lock().unwrap() = status;
    }

    pub fn requests(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

pub async fn with_app(url: &str) -> World {
    World::provisioning(&[
        ("PROVISION_URL", url),
        ("PROVISION_SECRET", SECRET),
        ("PROVISION_ALLOW_LOOPBACK", "true"),
    ])
    .await
}

async fn job(world: &World, kind: &str, user: &str) -> String {
    world
        .event(&format!("job#{kind}#{user}"))
        .await
        .map_or_else(|| "none".to_owned(), |job| job["outcome"].clone())
}

/// The requests about first payments.
fn payments(requests: Vec<(String, Value)>) -> Vec<(String, Value)> {
    requests.into_iter().filter(|(_, body)| body["type"] == "payment.confirmed").collect()
}

#[tokio::test]
async fn the_first_payment_is_sent_to_the_app_once_and_a_renewal_is_not() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;
    world.process(&sample("customer.subscription.created", "user_123")).await;
    assert_eq!(job(&world, "provision", "user_123").await, "none", "a subscription is not a payment");
    for name in ["invoice.paid", "checkout.session.completed", "invoice.paid.renewal"] {
        world.process(&sample(name, "user_123")).await;
    }
    world.process(&with_id(sample("invoice.paid", "user_123"), "evt_again")).await;
    assert_eq!(world.provision().await, 0);
    let requests = payments(app.requests());
    let [(id, body)] = requests.as_slice() else { panic!("{requests:?}") };
    assert!(id.starts_with("provision_"));
    assert_eq!(
        (&body["data"]["user_id"], &body["data"]["tier"], &body["data"]["credits"]),
        (&json!("user_123"), &json!("pro"), &json!(5000))
    );
    assert_eq!(job(&world, "provision", "user_123").await, "completed");
}

#[tokio::test]
async fn the_app_is_notified_once_of_low_depleted_and_restored_credits() {
    let (app, url) = App::start().await;
    let path = std::env::temp_dir().join(format!("tallyhook-low-{}.toml", std::process::id()));
    let catalog = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml")).unwrap();
    std::fs::write(&path, catalog.replace("[policy]\n", "[policy]\nlow = [0, 100, 400]\n")).unwrap();
    let world = with_app(&url).await.redeploy(&[("CATALOG_FILE", path.to_str().unwrap())]);
    world.sign_up("user_123").await;
    let notified = async || {
        assert_eq!(world.provision().await, 0);
        let about = app.requests().into_iter().filter(|(_, body)| body["data"]["thresholds"].is_array());
        let mut notified: Vec<String> = about
            .map(|(_, body)| {
                let data = &body["data"];
                format!("{} {} {}", body["type"].as_str().unwrap(), data["thresholds"], data["credits"])
            })
            .collect();
        notified.sort();
        notified
    };
    assert_eq!(notified().await, Vec::<String>::new(), "500 signup credits");
    let consume = "/users/user_123/credits/consume";
    for (key, amount, expected) in [
        ("a", 100, vec![]),
        ("b", 1, vec![r#"credits.low ["400"] 399"#]),
        ("c", 1, vec![]),
        ("d", 398, vec![r#"credits.depleted ["0"] 0"#, r#"credits.low ["100"] 0"#]),
    ] {
        assert_eq!(world.app("POST", consume, json!({"amount": amount}), Some(key)).await.0, 200);
        assert_eq!(notified().await, expected, "{key}");
    }
    world.process(&pack("one", "user_123", 1)).await;
    assert_eq!(notified().await, [r#"credits.restored ["400","100","0"] 1000"#]);
    // A hold does not change the balance.
    let hold = json!({"amount": 1000, "ttl_seconds": 60});
    assert_eq!(world.app("POST", "/users/user_123/credits/holds", hold, Some("h")).await.0, 201);
    assert_eq!(notified().await, Vec::<String>::new());
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_job_names_the_checkout_session_that_caused_it() {
    let world = World::provisioning(&[]).await;
    world.process(&pack("one", "user_1", 1)).await;
    world.process(&sample("invoice.paid", "user_2")).await;
    let session = async |user: &str| {
        let job = world.event(&format!("job#provision#{user}")).await.unwrap();
        job.get("session").cloned()
    };
    assert_eq!((session("user_1").await.as_deref(), session("user_2").await), (Some("cs_test_one"), None));
    assert_eq!(world.provision().await, 0);
    let again = json!({"job": "provision", "user_id": "user_1", "actor": "ann", "reason": "a new app"});
    assert_eq!(world.ask("POST", "/admin/provisioning", again).await.0, 200);
    assert_eq!(session("user_1").await.as_deref(), Some("cs_test_one"), "also when it runs again");
    assert_eq!(world.provision().await, 0);
    assert_eq!(job(&world, "provision", "user_1").await, "completed");
}

#[tokio::test]
async fn the_job_is_part_of_the_one_transaction_and_only_of_the_first_payments() {
    let world = World::provisioning(&[]).await;
    world.process(&sample("customer.subscription.created", "user_123")).await;
    world.calls();
    let mut operations = Vec::new();
    for name in ["invoice.paid", "invoice.paid.renewal"] {
        world.deliver(sample(name, "user_123").to_string().as_bytes()).await;
        let batch = world.receive(Family::InvoicePaid).await;
        world.calls();
        world.worker(Family::InvoicePaid).handle(batch).await.unwrap();
        operations.push(world.operations());
    }
    assert_eq!(operations[0], ["BatchGetItem", "TransactWriteItems", "SendMessage"], "the first payment");
    assert_eq!(operations[1], ["BatchGetItem", "TransactWriteItems"], "a renewal");
    world.deliver(sample("invoice.paid", "user_123").to_string().as_bytes()).await;
    let duplicate = world.receive(Family::InvoicePaid).await;
    world.calls();
    world.worker(Family::InvoicePaid).handle(duplicate).await.unwrap();
    assert_eq!(world.operations(), ["BatchGetItem"], "a duplicate");
    assert_eq!(world.provision().await, 0);
    assert_eq!(
        job(&world, "provision", "user_123").await,
        "completed",
        "without a PROVISION_URL there is nothing to call"
    );
}

#[tokio::test]
async fn a_failing_app_is_retried_with_the_same_id_then_left_to_an_operator() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;
    world.process(&pack("one", "user_1", 1)).await;
    app.answer(StatusCode::INTERNAL_SERVER_ERROR);
    let mut ids = Vec::new();
    for (attempt, wait) in [(1, 300), (2, 600), (3, 900), (4, 0)] {
        assert_eq!(world.provision().await > 0, attempt < 4, "attempt {attempt}");
        ids.extend(payments(app.requests()).into_iter().map(|(id, _)| id));
        if wait > 0 {
            world.pass_seconds(wait - 2);
            assert_eq!((world.provision().await, app.requests().len()), (0, 0), "not before its time");
            world.pass_seconds(3);
        }
    }
    ids.dedup();
    assert_eq!((ids.len(), job(&world, "provision", "user_1").await), (1, "failed".to_owned()));
    assert!(world.alerts().await.iter().any(|alert| alert.to_string().contains("PAYMENT_CONFIRMED")));
    let store = Store::new(world.dynamodb.clone(), "accounts", "events");
    let open = outbox::open_jobs(&store).await.unwrap();
    let failed = open.iter().find(|line| line.kind == "PAYMENT_CONFIRMED").unwrap();
    assert_eq!((failed.status.as_str(), failed.user_id.as_deref()), ("failed", Some("user_1")));
    assert!(failed.reason.as_ref().unwrap().contains("the app answered 500"), "{failed:?}");

    app.answer(StatusCode::OK);
    assert_eq!(world.retry_in(86_400).await.jobs, 0, "a failed job waits for an operator");
    let shown = world.ask("GET", "/admin/provisioning", Value::Null).await.1;
    let shown = shown["jobs"].as_array().unwrap().iter().find(|job| job["job"] == "provision").unwrap();
    assert_eq!(
        (&shown["user_id"], &shown["status"], &shown["attempts"]),
        (&json!("user_1"), &json!("failed"), &json!(4))
    );
    assert!(shown["reason"].as_str().unwrap().contains("the app answered 500"), "{shown}");
    let again = |user: &str| json!({"job": "provision", "user_id": user, "actor": "ann", "reason": "the app is back"});
    let (status, answer) = world.ask("POST", "/admin/provisioning", again("user_1")).await;
    assert_eq!((status, &answer["result"]), (200, &json!("queued")), "{answer}");
    assert_eq!(world.provision().await, 0);
    assert_eq!(
        (payments(app.requests())[0].0.clone(), job(&world, "provision", "user_1").await),
        (ids[0].clone(), "completed".to_owned())
    );
    let shown = world.ask("GET", "/admin/provisioning", Value::Null).await.1;
    assert!(shown["jobs"].as_array().unwrap().iter().all(|job| job["job"] != "provision"), "{shown}");
    let audits = world.ask("GET", "/admin/audit", Value::Null).await.1["audits"].clone();
    assert_eq!(
        (&audits[0]["claimed"], &audits[0]["act"], &audits[0]["target"]),
        (&json!("ann"), &json!("provisioning"), &json!("provision user_1"))
    );
    assert_eq!(world.ask("POST", "/admin/provisioning", again("no-user")).await.1["error"], "job_not_found");
    for (body, code) in [
        (json!({"user_id": "user_1"}), "invalid_job"),
        (json!({"job": "provision"}), "invalid_user_id"),
        (json!({"job": "all", "user_id": "user_1"}), "invalid_body"),
        (json!({"job": "order_paid", "user_id": "user_1"}), "invalid_order"),
        (json!({"job": "account", "order": "cs_1", "user_id": "user_1"}), "invalid_order"),
    ] {
        let (status, answer) = world.ask("POST", "/admin/provisioning", body).await;
        assert_eq!((status, &answer["error"]), (400, &json!(code)));
    }
}

#[tokio::test]
async fn a_job_message_lost_after_the_commit_is_sent_by_retry_or_redelivery() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;
    let is_nudge = |call: &crate::support::Call| {
        call.operation == "SendMessage" && call.request.to_string().contains("provision")
    };
    world.fault(move |call| is_nudge(call).then_some(Fault::LoseRequest));
    world.process(&pack("one", "user_1", 1)).await;
    world.heal();
    assert_eq!((world.provision().await, job(&world, "provision", "user_1").await), (0, "queued".to_owned()));
    assert_eq!(world.retry_in(60).await.jobs, 0, "its message may be on the way");
    assert!(world.retry_in(1000).await.jobs > 0);
    world.provision().await;
    assert_eq!(
        (payments(app.requests()).len(), job(&world, "provision", "user_1").await),
        (1, "completed".to_owned())
    );

    // The worker is killed between the commit and the message; SQS redelivers the event.
    world.deliver(pack("two", "user_2", 1).to_string().as_bytes()).await;
    let batch = world.receive(Family::CheckoutSession).await;
    world.fault(move |call| is_nudge(call).then_some(Fault::HangBefore));
    assert!(world.until_hung(world.worker(Family::CheckoutSession).handle(batch)).await.is_none());
    world.heal();
    assert_eq!(job(&world, "provision", "user_2").await, "queued");
    world.pass_seconds(181);
    world.drain().await;
    world.provision().await;
    assert_eq!(
        (payments(app.requests()).len(), job(&world, "provision", "user_2").await),
        (1, "completed".to_owned())
    );
}

#[tokio::test]
async fn each_change_of_tier_or_balance_is_sent_to_the_app_if_a_url_is_set() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;
    let mut versions = Vec::new();
    let mut notifies = async |what: &str, credits: u64| {
        assert_eq!(world.provision().await, 0, "{what}");
        let requests: Vec<_> =
            app.requests().into_iter().filter(|(_, body)| body["type"] == "account.updated").collect();
        let [(id, body)] = requests.as_slice() else { panic!("{what}: {requests:?}") };
        assert_eq!(body["data"]["credits"], credits, "{what}");
        versions.push((id.clone(), body["data"]["version"].as_u64().unwrap()));
    };
    world.sign_up("user_1").await;
    notifies("signup", 500).await;
    world.process(&pack("one", "user_1", 1)).await;
    notifies("a pack", 1500).await;
    world.app("POST", "/users/user_1/credits/consume", json!({"amount": 10}), Some("k")).await;
    notifies("a spend", 1490).await;
    let mut unpaid = with_id(pack("two", "user_1", 1), "evt_unpaid");
    unpaid["data"]["object"]["payment_status"] = json!("unpaid");
    world.process(&unpaid).await;
    assert_eq!((world.provision().await, app.requests()), (0, Vec::new()), "nothing changed");
    assert!(versions.windows(2).all(|pair| pair[0].1 < pair[1].1 && pair[0].0 != pair[1].0), "{versions:?}");

    let quiet = World::provisioning(&[]).await;
    quiet.sign_up("user_1").await;
    assert_eq!(
        (quiet.messages("provision"), job(&quiet, "account", "user_1").await),
        ((0, 0), "none".to_owned())
    );
}

#[tokio::test]
async fn the_setup_status_follows_the_job() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;
    let state =
        async || world.setup_status("cs_test_one").await.1["provisioning_state"].as_str().unwrap().to_owned();
    assert_eq!(state().await, "not_started");
    app.answer(StatusCode::INTERNAL_SERVER_ERROR);
    world.process(&pack("one", "user_1", 1)).await;
    assert_eq!(state().await, "queued");
    world.provision().await;
    assert_eq!(state().await, "queued", "it will be tried again");
    app.answer(StatusCode::OK);
    world.pass_seconds(301);
    world.provision().await;
    assert_eq!(state().await, "completed");
    assert_eq!(world.setup_status("cs_test_one").await.1["next_action"], "set_password");
}

#[tokio::test]
async fn provisioning_calls_no_internal_address_and_follows_no_redirect() {
    let (app, url) = App::start().await;
    for (at, loopback) in [
        (url.clone(), "false"),
        (url.replace("http:", "https:"), "false"),
        ("https://169.254.169.254/".to_owned(), "true"),
        ("https://[::ffff:7f00:1]/".to_owned(), "true"),
        (format!("{url}moved"), "true"),
    ] {
        let variables = [
            ("PROVISION_URL", at.as_str()),
            ("PROVISION_SECRET", SECRET),
            ("PROVISION_ALLOW_LOOPBACK", loopback),
        ];
        let world = World::provisioning(&variables).await;
        world.process(&pack("one", "user_1", 1)).await;
        assert_eq!(world.provision().await, 2, "{at}: both jobs come back");
        assert_eq!(app.requests(), Vec::new(), "{at}");
    }
}

#[test]
fn a_url_without_a_usable_secret_stops_the_start() {
    let env = |secret: &str| {
        Env::from([
            ("ACCOUNTS_TABLE", "a"),
            ("EVENTS_TABLE", "e"),
            ("QUEUE_URL_PROVISION", "q"),
            ("PROVISION_URL", "https://a.test"),
            ("PROVISION_SECRET", secret),
        ])
    };
    assert!(ProvisionConfig::from_env(&env(SECRET)).is_ok());
    for secret in ["", " ", "whsec_", "whsec_c2hvcnQ=", "not base64 at all"] {
        assert!(ProvisionConfig::from_env(&env(secret)).is_err(), "{secret}");
    }
}

#[tokio::test]
async fn each_order_is_reported_once_when_it_is_paid_and_once_when_it_is_refunded() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;
    let of_orders = |requests: Vec<(String, Value)>| -> Vec<(String, Value)> {
        requests
            .into_iter()
            .filter(|(_, body)| body["type"].as_str().unwrap().starts_with("order."))
            .collect()
    };
    for number in [1, 2] {
        world.process(&order(number, "user_1")).await;
        world.process(&with_id(order(number, "user_1"), "evt_again")).await;
        world.provision().await;
        let sent = of_orders(app.requests());
        let [(id, body)] = sent.as_slice() else { panic!("{sent:?}") };
        assert!(id.starts_with("order_paid_"), "{id}");
        assert_eq!(body["type"], "order.paid");
        let data = &body["data"];
        assert_eq!((&data["user_id"], &data["order"]["status"]), (&json!("user_1"), &json!("NEW")), "{data}");
        assert_eq!(data["order"]["id"], format!("cs_test_order{number}"));
        assert!(data["version"].is_u64() && data["tier"].is_string(), "the whole account: {data}");
    }
    world.process(&refund_of(&order(2, "user_1"))).await;
    world.process(&with_id(refund_of(&order(2, "user_1")), "evt_refund_again")).await;
    world.provision().await;
    let sent = of_orders(app.requests());
    let [(_, body)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(
        (&body["type"], &body["data"]["order"]["status"]),
        (&json!("order.refunded"), &json!("REFUNDED"))
    );

    app.answer(StatusCode::INTERNAL_SERVER_ERROR);
    world.process(&order(3, "user_1")).await;
    for _ in 0..5 {
        world.provision().await;
    }
    app.answer(StatusCode::OK);
    app.requests();
    let again = json!({"job": "order_paid", "order": "cs_test_order3", "user_id": "user_1", "actor": "ann"});
    let (status, answer) = world.ask("POST", "/admin/provisioning", again).await;
    assert_eq!((status, &answer["order"]), (200, &json!("cs_test_order3")), "{answer}");
    world.provision().await;
    assert_eq!(of_orders(app.requests()).len(), 1);
}
