//! `tallyhook setup` and `tallyhook doctor` against the fake Stripe: the binary with its output and exit
//! codes.

#![allow(clippy::unwrap_used, reason = "a test says that it failed by panicking")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use local::fake_stripe::{FakeStripe, Misbehaviour};
use local::stack::{DEAD_LETTER_QUEUE, Options, Stack};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::{API_VERSION, EventType};
use tallyhook_core::signature::{Secret, verify};
use tallyhook_core::timestamp::Timestamp;

use self::server::serve;
use self::support::tallyhook;

const KEY: &str = "rk_test_1";
const PARAMETER: &str = "/tallyhook/stripe-webhook-secret";

fn now() -> i64 {
    cli::send::now().unix()
}

/// A deployment's webhook that takes events signed with one of its secrets, and an SSM with one parameter
/// that holds them. The webhook does nothing with the events.
#[derive(Clone)]
struct Deployment {
    secrets: Arc<Mutex<String>>,
    /// Every value that was put into the parameter.
    puts: Arc<Mutex<Vec<String>>>,
    is_ssm_open: bool,
    /// The status for an event with a valid signature.
    accepted: u16,
    /// The status for any other event.
    refused: u16,
}

impl Deployment {
    fn new(secrets: &str) -> Self {
        Self {
            secrets: Arc::new(Mutex::new(secrets.to_owned())),
            puts: Arc::default(),
            is_ssm_open: true,
            accepted: 200,
            refused: 400,
        }
    }

    async fn start(&self) -> String {
        let health = get(async || Json(json!({"service": "stripe-webhook", "secrets": {"any": 1}})));
        let router = Router::new()
            .route("/", post(Self::ssm))
            .route("/webhooks/stripe", post(Self::receive))
            .route("/webhooks/stripe/health", health);
        serve(router.with_state(self.clone())).await
    }

    async fn receive(
        State(this): State<Self>,
        headers: HeaderMap,
        body: String,
    ) -> (StatusCode, Json<Value>) {
        let list = this.secrets.lock().unwrap().clone();
        let secrets: Vec<Secret> = list.split(',').filter_map(|text| Secret::new(text).ok()).collect();
        let header = headers.get("stripe-signature").map(|header| header.as_bytes());
        let is_valid = verify(body.as_bytes(), header, &secrets, Timestamp::from_unix(now()), 300).is_ok();
        let status = if is_valid { this.accepted } else { this.refused };
        let error = if status == 503 { "queue_unavailable" } else { "invalid_signature" };
        (StatusCode::from_u16(status).unwrap(), Json(json!({"error": error})))
    }

    async fn ssm(State(this): State<Self>, headers: HeaderMap, body: String) -> (StatusCode, Json<Value>) {
        let signed = headers["authorization"].to_str().unwrap();
        assert!(
            signed.contains("Credential=id/") && signed.contains("/eu-central-1/ssm/aws4_request"),
            "{signed}"
        );
        let body: Value = serde_json::from_str(&body).unwrap();
        if headers["x-amz-target"] == "AmazonSSM.GetParameters" {
            assert_eq!((&body["Names"][0], &body["WithDecryption"]), (&json!(PARAMETER), &json!(true)));
            let value = this.secrets.lock().unwrap().clone();
            let found =
                if value.is_empty() { json!([]) } else { json!([{"Name": PARAMETER, "Value": value}]) };
            return (StatusCode::OK, Json(json!({"Parameters": found})));
        }
        assert_eq!(headers["x-amz-target"], "AmazonSSM.PutParameter");
        assert_eq!((&body["Type"], &body["Overwrite"]), (&json!("SecureString"), &json!(true)));
        if !this.is_ssm_open {
            let error = json!({"__type": "AccessDeniedException", "Message": "not authorized"});
            return (StatusCode::BAD_REQUEST, Json(error));
        }
        let value = body["Value"].as_str().unwrap().to_owned();
        this.puts.lock().unwrap().push(value.clone());
        *this.secrets.lock().unwrap() = value;
        (StatusCode::OK, Json(json!({"Version": 2})))
    }
}

/// `setup` for one deployment and one Stripe account.
struct Setup {
    stripe: FakeStripe,
    api_base: String,
    url: String,
}

impl Setup {
    async fn new(deployment: &Deployment) -> Self {
        let stripe = FakeStripe::new(KEY);
        let api_base = format!("http://{}", stripe.start().await.unwrap());
        Self { stripe, api_base, url: deployment.start().await }
    }

    async fn run(&self, flags: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
        let arguments = [&["setup", "--url", &self.url], flags].concat();
        let common = [
            ("STRIPE_SECRET_KEY", KEY),
            ("STRIPE_API_BASE", &self.api_base),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
            ("AWS_ENDPOINT_URL_SSM", &self.url),
        ];
        tallyhook(&arguments, &[&common, env].concat()).await
    }

    /// The endpoints at Stripe, the newest first.
    async fn endpoints(&self) -> Vec<Value> {
        let client = cli::client::Client::for_url(&self.api_base).unwrap();
        let request = axum::http::Request::get(format!("{}/v1/webhook_endpoints", self.api_base))
            .header("authorization", format!("Bearer {KEY}"));
        let (_, answer) = client.send(request.body(Vec::new()).unwrap()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["data"].as_array().unwrap().clone()
    }

    fn webhook(&self) -> String {
        format!("{}/webhooks/stripe", self.url)
    }
}

/// The secret in an output, which must hold exactly one.
fn only_secret(output: &str) -> String {
    let mut found = output.split("STRIPE_WEBHOOK_SECRET=").skip(1);
    let secret = found.next().expect("the output has a secret").lines().next().unwrap().to_owned();
    assert!(found.next().is_none() && output.matches("whsec_").count() == 1, "{output}");
    secret
}

#[tokio::test]
async fn setup_creates_the_endpoint_only_with_apply_and_prints_its_secret_once() {
    let setup = Setup::new(&Deployment::new("")).await;
    let (code, output) = setup.run(&[], &[]).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("create   an endpoint at") && output.contains("--apply"), "{output}");
    assert!(setup.endpoints().await.is_empty());

    let (code, output) = setup.run(&["--apply", "--prefix", "shop"], &[]).await;
    assert_eq!(code, Some(0), "{output}");
    assert_eq!(only_secret(&output).len(), "whsec_".len() + 32);
    let endpoints = setup.endpoints().await;
    let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
    let types: Vec<&str> = EventType::KNOWN.iter().map(EventType::as_str).collect();
    assert_eq!(
        (&endpoint["url"], &endpoint["enabled_events"], &endpoint["api_version"], &endpoint["metadata"]),
        (&json!(setup.webhook()), &json!(types), &json!(API_VERSION), &json!({"tallyhook": "shop"}))
    );

    let (code, output) = setup.run(&["--apply", "--prefix", "shop"], &[]).await;
    assert_eq!((code, output.contains("nothing to do"), output.contains("whsec_")), (Some(0), true, false));
    assert_eq!(setup.endpoints().await.len(), 1);
}

#[tokio::test]
async fn setup_brings_an_endpoint_up_to_date_and_adopts_one_made_by_hand() {
    let setup = Setup::new(&Deployment::new("")).await;
    setup.stripe.put(json!({
        "id": "we_hand", "object": "webhook_endpoint", "api_version": API_VERSION, "created": 1,
        "enabled_events": ["invoice.paid", "invoice.sent"], "metadata": {}, "status": "disabled",
        "url": setup.webhook(),
    }));
    // Another product on the same account.
    setup.stripe.put_endpoint("we_other", "https://other.example/webhooks/stripe", "other");
    let (code, output) = setup.run(&[], &[]).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("update   we_hand: lacks checkout.session.completed"), "{output}");
    assert!(output.contains("has superfluous invoice.sent, is disabled, has no metadata"), "{output}");
    assert_eq!(setup.run(&["--apply"], &[]).await.0, Some(0));
    let endpoint = setup.stripe.object("we_hand").unwrap();
    assert_eq!(
        (&endpoint["status"], &endpoint["metadata"]["tallyhook"]),
        (&json!("enabled"), &json!("tallyhook"))
    );
    assert_eq!(endpoint["enabled_events"].as_array().unwrap().len(), EventType::KNOWN.len());
    assert_eq!(setup.stripe.object("we_other").unwrap()["url"], "https://other.example/webhooks/stripe");

    // The deployment moves: its endpoint is found by its metadata.
    let moved = [&["setup", "--url", "https://moved.example", "--apply"][..]].concat();
    let env = [("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", setup.api_base.as_str())];
    let (code, output) = tallyhook(&moved, &env).await;
    assert_eq!(code, Some(0), "{output}");
    assert_eq!(setup.stripe.object("we_hand").unwrap()["url"], "https://moved.example/webhooks/stripe");
    assert_eq!(setup.endpoints().await.len(), 2);
}

#[tokio::test]
async fn setup_stores_the_secret_in_ssm_in_place_of_a_placeholder() {
    let deployment = Deployment::new("whsec_placeholder");
    let setup = Setup::new(&deployment).await;
    let (code, output) = setup.run(&["--ssm", PARAMETER, "--apply"], &[]).await;
    assert_eq!((code, output.contains("whsec_")), (Some(0), false), "{output}");
    let stored = deployment.secrets.lock().unwrap().clone();
    assert!(stored.starts_with("whsec_") && !stored.contains(','), "only the new secret is stored");
    let (code, output) = setup.run(&["--ssm", PARAMETER, "--apply"], &[]).await;
    assert_eq!((code, output.contains("nothing to do")), (Some(0), true), "{output}");

    // The parameter was overwritten: the secret is lost.
    *deployment.secrets.lock().unwrap() = "whsec_later".to_owned();
    let (code, output) = setup.run(&["--ssm", PARAMETER], &[]).await;
    assert_eq!((code, output.contains("--roll")), (Some(1), true), "{output}");
}

#[tokio::test]
async fn setup_deletes_the_endpoint_when_its_secret_cannot_be_stored() {
    let mut deployment = Deployment::new("whsec_placeholder");
    deployment.is_ssm_open = false;
    let setup = Setup::new(&deployment).await;
    let (code, output) = setup.run(&["--ssm", PARAMETER, "--apply"], &[]).await;
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("is deleted again") && output.contains("AccessDeniedException"), "{output}");
    assert!(!output.contains("whsec_") && setup.endpoints().await.is_empty());
}

#[tokio::test]
async fn setup_rolls_a_lost_secret_with_both_secrets_in_between() {
    let deployment = Deployment::new("");
    let setup = Setup::new(&deployment).await;
    assert_eq!(setup.run(&["--ssm", PARAMETER, "--apply"], &[]).await.0, Some(0));
    let old = deployment.secrets.lock().unwrap().clone();
    let (code, output) = setup.run(&["--ssm", PARAMETER, "--roll", "--apply"], &[]).await;
    assert_eq!((code, output.contains("whsec_")), (Some(0), false), "{output}");
    let puts = deployment.puts.lock().unwrap().clone();
    let [_, both, new] = puts.as_slice() else { panic!("{} puts", puts.len()) };
    assert!(*both == format!("{new},{old}"), "both secrets are valid until the old endpoint is disabled");
    let endpoints = setup.endpoints().await;
    let [newer, older] = endpoints.as_slice() else { panic!("{endpoints:?}") };
    assert_eq!((&newer["status"], &older["status"]), (&json!("enabled"), &json!("disabled")));
    assert_eq!(older["metadata"], json!({"tallyhook_replaced": "tallyhook"}));
    // The old one is not touched again.
    assert_eq!(setup.run(&["--ssm", PARAMETER, "--apply"], &[]).await.0, Some(0));
    assert_eq!(setup.endpoints().await, endpoints);
}

#[tokio::test]
async fn a_roll_without_ssm_is_completed_by_the_next_run() {
    let deployment = Deployment::new("");
    let setup = Setup::new(&deployment).await;
    let old = only_secret(&setup.run(&["--apply"], &[]).await.1);
    let (code, output) = setup.run(&["--roll", "--apply"], &[]).await;
    assert_eq!(code, Some(1), "{output}");
    let new = only_secret(&output);
    let enabled =
        async || setup.endpoints().await.iter().filter(|endpoint| endpoint["status"] == "enabled").count();
    assert_eq!(enabled().await, 2);
    // Without the secret, nothing is disabled.
    assert_eq!(setup.run(&["--apply"], &[]).await.0, Some(2));
    *deployment.secrets.lock().unwrap() = format!("{new},{old}");
    let (code, output) = setup.run(&["--apply"], &[("STRIPE_WEBHOOK_SECRET", &new)]).await;
    assert_eq!((code, output.contains("whsec_")), (Some(0), false), "{output}");
    assert_eq!(enabled().await, 1);
}

#[tokio::test]
async fn a_deployment_that_does_not_take_the_new_secret_keeps_both_endpoints() {
    let mut deployment = Deployment::new("");
    deployment.accepted = 503;
    let setup = Setup::new(&deployment).await;
    assert_eq!(setup.run(&["--ssm", PARAMETER, "--apply"], &[]).await.0, Some(0));
    let (code, output) = setup.run(&["--ssm", PARAMETER, "--roll", "--apply"], &[]).await;
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("does not accept the new secret (503") && !output.contains("whsec_"), "{output}");
    assert!(setup.endpoints().await.iter().all(|endpoint| endpoint["status"] == "enabled"));
}

#[tokio::test]
async fn setup_refuses_what_stripe_or_a_reader_of_the_command_line_must_not_see() {
    let env = [("STRIPE_SECRET_KEY", "pk_test_1")];
    for (arguments, env, says) in [
        (&["setup", "--url", "https://a.example"][..], &[][..], "set STRIPE_SECRET_KEY"),
        (&["setup", "--url", "https://a.example"], &env, "publishable key"),
        (&["setup", "--url", "http://a.example"], &[("STRIPE_SECRET_KEY", KEY)], "https:// addresses only"),
        (
            &["setup", "--url", "https://a.example"],
            &[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", "http://stripe.example")],
            "unencrypted",
        ),
        (
            &["setup", "--url", "https://a.example", "--ssm", "/a"],
            &[("STRIPE_SECRET_KEY", KEY), ("AWS_REGION", "eu-central-1")],
            "AWS_ACCESS_KEY_ID is not set",
        ),
    ] {
        let (code, output) = tallyhook(arguments, env).await;
        assert_eq!((code, output.contains(says)), (Some(2), true), "{output}");
        assert!(!output.contains(KEY), "{output}");
    }
}

/// A Stripe account in order, with the prices of the catalog and an endpoint that posts to `url`.
async fn account(key: &str, url: &str) -> (FakeStripe, String) {
    let stripe = FakeStripe::new(key);
    stripe.sell(&Catalog::parse(include_str!("../../catalog.toml")).unwrap());
    stripe.put_endpoint("we_1", &format!("{url}/webhooks/stripe"), "tallyhook");
    stripe.put_portal("bpc_1", "always_invoice");
    let api_base = format!("http://{}", stripe.start().await.unwrap());
    (stripe, api_base)
}

/// A broken state, and the one line that names it and its fix.
struct Broken {
    /// How the account is broken.
    account: fn(&FakeStripe),
    key: &'static str,
    env: &'static [(&'static str, &'static str)],
    flags: &'static [&'static str],
    line: [&'static str; 3],
}

const IN_ORDER: Broken = Broken { account: |_| {}, key: KEY, env: &[], flags: &[], line: ["", "", ""] };

/// Changes a field of an object at Stripe.
fn change(stripe: &FakeStripe, id: &str, field: &str, value: Value) {
    let mut object = stripe.object(id).unwrap();
    object[field] = value;
    stripe.put(object);
}

fn broken_accounts() -> Vec<Broken> {
    let broken = |account: fn(&FakeStripe), line| Broken { account, line, ..IN_ORDER };
    vec![
        broken(
            |stripe| stripe.remove("we_1"),
            ["error    endpoint", "no webhook endpoint at Stripe in test mode posts to http", "setup --url"],
        ),
        broken(
            |stripe| change(stripe, "we_1", "status", json!("disabled")),
            ["error    endpoint", "we_1 is disabled, so Stripe sends no event", "setup --url"],
        ),
        broken(
            |stripe| change(stripe, "we_1", "url", json!("https://old.example/hook")),
            ["error    endpoint", "we_1 posts to https://old.example/hook, not to http", "setup --url"],
        ),
        broken(
            |stripe| change(stripe, "we_1", "enabled_events", json!(["invoice.paid"])),
            ["error    endpoint", "we_1 does not send checkout.session.completed, ", "setup --url"],
        ),
        broken(
            |stripe| change(stripe, "we_1", "enabled_events", json!(["*"])),
            ["warning  endpoint", "we_1 sends *, which tallyhook ignores", "setup --url"],
        ),
        broken(
            |stripe| change(stripe, "we_1", "api_version", json!("2024-06-20")),
            ["warning  endpoint", "we_1 sends events of API version 2024-06-20, not", "--roll --apply"],
        ),
        broken(
            |stripe| change(stripe, "we_1", "metadata", json!({})),
            ["warning  endpoint", "we_1 has no metadata tallyhook=tallyhook", "setup --url"],
        ),
        broken(
            |stripe| {
                let mut second = stripe.object("we_1").unwrap();
                second["id"] = json!("we_2");
                stripe.put(second);
            },
            ["warning  endpoint", "we_1 and we_2 both send every event", "disables the older one"],
        ),
        broken(
            |stripe| stripe.remove("bpc_1"),
            ["warning  portal", "no configuration of the customer portal", "save the settings"],
        ),
        broken(
            |stripe| stripe.put_portal("bpc_1", "create_prorations"),
            ["error    portal", "bpc_1 changes plans with create_prorations", "Invoice immediately"],
        ),
        broken(
            |stripe| {
                for id in ["price_business_test", "price_business_live"] {
                    stripe.remove(id);
                }
            },
            [
                "error    prices",
                "plan business: Stripe has none of its prices (price_business_test",
                "create the price",
            ],
        ),
        broken(
            |stripe| change(stripe, "price_team_test", "active", json!(false)),
            ["warning  prices", "plan team: price_team_test is deactivated", "activate it"],
        ),
        broken(
            |stripe| {
                // `catalog push --stripe` has replaced the price: its lookup key finds another one.
                for id in ["price_pro_test", "price_pro_live", "price_pro_year_test"] {
                    change(stripe, id, "active", json!(false));
                    change(stripe, id, "lookup_key", Value::Null);
                }
                stripe.put_price("price_new", 2_500, true, Some("pro_monthly"));
            },
            ["", "", ""],
        ),
        broken(
            |stripe| change(stripe, "price_pro_test", "lookup_key", Value::Null),
            [
                "warning  prices",
                "plan pro: no price at Stripe has the lookup key pro_monthly",
                "give the key",
            ],
        ),
        broken(
            |stripe| {
                stripe.put(json!({"id": "sub_1", "object": "subscription", "status": "active", "created": 1,
                    "customer": "cus_1", "metadata": {},
                    "items": {"data": [{"id": "si_1", "price": {"id": "price_new", "product": "prod_new"}}]}}));
            },
            [
                "error    subscriptions",
                "1 live subscription is on price_new, which the catalog lacks, for example sub_1",
                "add price_new",
            ],
        ),
        broken(
            |stripe| stripe.fail("/v1/refunds", 9, Misbehaviour::Status(403, None)),
            ["error    key", "the key may not read refunds", "give the restricted key read access"],
        ),
        broken(
            |stripe| stripe.fail("/v1/webhook_endpoints", 9, Misbehaviour::Status(403, None)),
            ["warning  endpoint", "the key may not read webhook endpoints", "give the key read access"],
        ),
        broken(
            |stripe| stripe.set_now(now() - 400),
            ["error    clock", "the clock of this machine is 40", "synchronise"],
        ),
        Broken {
            env: &[("STRIPE_SECRET_KEY", "rk_test_2")],
            line: ["error    key", "Stripe does not accept the key", "copy a key"],
            ..IN_ORDER
        },
        Broken {
            account: |stripe| stripe.fail("/v1/", 1_000, Misbehaviour::Status(404, None)),
            line: ["error    stripe", "STRIPE_API_BASE has none of Stripe's routes", "unset it"],
            ..IN_ORDER
        },
        Broken {
            env: &[("STRIPE_SECRET_KEY", "")],
            line: ["error    key", "STRIPE_SECRET_KEY is not set", "STRIPE_API_BASE"],
            ..IN_ORDER
        },
        Broken {
            key: "rk_live_1",
            line: [
                "error    secret",
                "has no signing secret of live mode",
                "use a key of the deployment's mode",
            ],
            ..IN_ORDER
        },
        Broken {
            env: &[("STRIPE_WEBHOOK_SECRET", "whsec_of_another_endpoint")],
            line: [
                "error    probe",
                "refuses the signing secret known here (invalid_signature)",
                "setup --ssm",
            ],
            ..IN_ORDER
        },
        Broken {
            env: &[("ADMIN_API_TOKEN", "wrong")],
            line: ["error    admin", "does not accept this token", "check --url and ADMIN_API_TOKEN"],
            ..IN_ORDER
        },
        Broken {
            flags: &["--catalog", "/nowhere.toml"],
            line: ["error    catalog", "cannot read /nowhere.toml", "name another one with --catalog"],
            ..IN_ORDER
        },
    ]
}

/// Runs `doctor`, and requires that it prints this line, and no other finding.
async fn check(url: &str, broken: &Broken, flags: &[&str]) {
    let (stripe, api_base) = account(broken.key, url).await;
    (broken.account)(&stripe);
    let catalog = concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml");
    let catalog = if broken.flags.contains(&"--catalog") { &[][..] } else { &["--catalog", catalog] };
    let arguments = [&["doctor", "--url", url], catalog, broken.flags, flags].concat();
    let env =
        [&[("STRIPE_SECRET_KEY", broken.key), ("STRIPE_API_BASE", api_base.as_str())], broken.env].concat();
    let (code, output) = tallyhook(&arguments, &env).await;
    let [start, problem, fix] = broken.line;
    if start.is_empty() {
        assert_eq!((code, output.as_str()), (Some(0), "Everything is in order.\n"));
        return;
    }
    let lines: Vec<&str> = output.lines().collect();
    let [line, _counts] = lines.as_slice() else { panic!("{problem}: {output}") };
    let (found, remedy) = line.split_once(". Fix: ").expect("a finding has a fix");
    assert!(
        found.starts_with(start) && found.contains(problem) && remedy.contains(fix),
        "{problem}: {output}"
    );
    assert_eq!(code, Some(i32::from(start.starts_with("error"))), "{output}");
    assert!(!output.contains(broken.key), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_each_broken_state_of_the_account_and_its_fix_in_one_line() {
    let stack = Stack::start(Options::default()).await.unwrap();
    let url = stack.front_url.clone();
    let not_reconciled = Broken {
        line: [
            "error    reconcile",
            "no reconciliation was complete within 12 hours",
            "set STRIPE_SECRET_KEY",
        ],
        ..IN_ORDER
    };
    check(&url, &not_reconciled, &[]).await;
    let client = cli::client::Client::for_url(&url).unwrap();
    let reconcile = axum::http::Request::post(format!("{url}/local/schedules/reconcile")).body(Vec::new());
    assert_eq!(client.send(reconcile.unwrap()).await.unwrap().0, 200);

    check(&url, &IN_ORDER, &[]).await;
    for broken in broken_accounts() {
        check(&url, &broken, &[]).await;
    }

    let message =
        json!({"QueueUrl": DEAD_LETTER_QUEUE, "MessageBody": "kept", "DelaySeconds": 900}).to_string();
    stack.sqs().handle("AmazonSQS.SendMessage", "localhost", message.as_bytes()).await;
    let dead = Broken {
        line: ["error    queues", "1 message is in the dead-letter queue", "look at its errors"],
        ..IN_ORDER
    };
    check(&url, &dead, &[]).await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_each_broken_webhook_and_its_fix_in_one_line() {
    let stack = Stack::start(Options::default()).await.unwrap();
    let client = cli::client::Client::for_url(&stack.front_url).unwrap();
    let reconcile = axum::http::Request::post(format!("{}/local/schedules/reconcile", stack.front_url));
    assert_eq!(client.send(reconcile.body(Vec::new()).unwrap()).await.unwrap().0, 200);
    let everything = serve(Router::new().fallback(async || "hello")).await;
    let trusting = Deployment { refused: 200, ..Deployment::new("whsec_local") }.start().await;
    let lost = Deployment::new("whsec_local").start().await;
    let without_queue = Deployment { accepted: 503, ..Deployment::new("whsec_local") }.start().await;
    for (url, line) in [
        (
            "http://127.0.0.1:1",
            ["error    webhook", "does not answer from here: cannot connect", "check the address"],
        ),
        (
            &everything,
            ["error    webhook", "answers 200, but is not tallyhook's webhook", "output WebhookUrl"],
        ),
        (
            &trusting,
            ["error    signature", "accepts an event with a wrong signature", "do not give it to Stripe"],
        ),
        (&lost, ["error    probe", "and after 1 s the event log lacks it", "function customer"]),
        (&without_queue, ["error    probe", "answers 503 (queue_unavailable)", "cannot write the queue"]),
    ] {
        let webhook = format!("{url}/webhooks/stripe");
        let (_, api_base) = account(KEY, url).await;
        // The catalog is the one that the stack stores.
        let arguments = ["doctor", "--url", &stack.front_url, "--webhook", &webhook];
        let env = [("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", api_base.as_str())];
        let (code, output) = tallyhook(&[&arguments[..], &["--wait", "1"]].concat(), &env).await;
        let [start, problem, fix] = line;
        let (found, remedy) = output.split_once(". Fix: ").expect("a finding has a fix");
        assert!(
            found.starts_with(start) && found.contains(problem) && remedy.contains(fix),
            "{url}: {output}"
        );
        assert_eq!((code, output.lines().count()), (Some(1), 2), "{output}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn doctor_reads_the_secret_from_ssm_and_prints_findings_as_json() {
    let deployment = Deployment::new("whsec_0123456789abcdef0123456789abcdef");
    let url = deployment.start().await;
    let (_, api_base) = account(KEY, &url).await;
    let env = [
        ("STRIPE_SECRET_KEY", KEY),
        ("STRIPE_API_BASE", &api_base),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_ENDPOINT_URL_SSM", &url),
    ];
    let arguments = ["doctor", "--url", &url, "--ssm", PARAMETER, "--json", "--wait", "0"];
    let (code, output) = tallyhook(&arguments, &env).await;
    let report: Value = serde_json::from_str(&output).unwrap();
    let checks: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["check"].as_str().unwrap())
        .collect();
    // This webhook takes the probe. There is no catalog in the folder of the test, and no admin API.
    assert_eq!((code, checks), (Some(1), vec!["catalog", "admin"]), "{output}");
    assert!(!output.contains("whsec_"), "{output}");
}
