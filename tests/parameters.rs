//! Secrets named by `ssm:/path` in the environment, and their rotation without a deploy.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Json, Router, routing::post};
use futures_util::future::join_all;
use lambda_http::Body;
use serde_json::{Value, json};
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::resolve;
use tallyhook_core::signature::{Secret, sign};
use tallyhook_service::config::{AdminConfig, WebhookConfig};
use tallyhook_service::http::admin::Tokens;
use tallyhook_service::http::api::AppTokens;
use tallyhook_service::http::token::TokenRefusal;
use tallyhook_service::http::webhook::Webhook;

use crate::admin_tokens::token;
use crate::support::{SECRET, World, now, pack};

/// A local SSM with two parameters.
#[derive(Clone, Default)]
struct ParameterStore(Arc<Mutex<StoreState>>);

#[derive(Default)]
struct StoreState {
    /// The value of the first parameter.
    secret: String,
    /// The value of the second one.
    token: String,
    /// The requests so far.
    asked: usize,
    /// The statuses of the next answers, before the real ones.
    refusals: Vec<u16>,
}

impl ParameterStore {
    /// Starts it; its URL. It refuses a request that is not signed for it.
    async fn start() -> (Self, String) {
        let store = Self::default();
        store.put_secret("whsec_from_ssm");
        store.put_token("token_from_ssm");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/", post(Self::answer)).with_state(store.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (store, url)
    }

    async fn answer(
        State(store): State<Self>,
        headers: HeaderMap,
        body: String,
    ) -> (StatusCode, Json<Value>) {
        let signed = headers["authorization"].to_str().unwrap_or_default();
        let body: Value = serde_json::from_str(&body).unwrap();
        if !signed.contains("/us-east-1/ssm/aws4_request")
            || headers["x-amz-target"] != "AmazonSSM.GetParameters"
            || body["WithDecryption"] != true
        {
            return (StatusCode::BAD_REQUEST, Json(json!({"__type": "IncompleteSignature"})));
        }
        let mut state = store.0.lock().unwrap();
        state.asked += 1;
        if let Some(status) = state.refusals.pop() {
            let body = json!({"__type": "ThrottlingException", "message": "Rate exceeded"});
            return (StatusCode::from_u16(status).unwrap(), Json(body));
        }
        let known = [("/app/secret", state.secret.as_str()), ("/app/token", state.token.as_str())];
        let asked = body["Names"].as_array().unwrap();
        let found: Vec<Value> = known
            .iter()
            .filter(|(name, value)| asked.contains(&json!(name)) && !value.is_empty())
            .map(|(name, value)| json!({"Name": name, "Value": value, "Type": "SecureString"}))
            .collect();
        (StatusCode::OK, Json(json!({"Parameters": found, "InvalidParameters": []})))
    }

    fn put_secret(&self, value: &str) {
        self.0.lock().unwrap().secret = value.to_owned();
    }

    fn put_token(&self, value: &str) {
        self.0.lock().unwrap().token = value.to_owned();
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }

    /// Refuses the next requests with these statuses.
    fn refuse(&self, statuses: &[u16]) {
        self.0.lock().unwrap().refusals = statuses.to_vec();
    }
}

fn env(endpoint: &str, secret: &str) -> Env {
    Env::from([
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_ENDPOINT_URL_SSM", endpoint),
        ("STRIPE_WEBHOOK_SECRET", secret),
        ("APP_API_TOKEN", "ssm:/app/token"),
        ("LOG_LEVEL", "info"),
    ])
}

#[tokio::test]
async fn a_secret_named_by_its_parameter_is_read_at_start() {
    let (_, endpoint) = ParameterStore::start().await;
    let resolved = resolve(env(&endpoint, "ssm:/app/secret")).await.unwrap();
    assert_eq!(resolved.get("STRIPE_WEBHOOK_SECRET").as_deref(), Some("whsec_from_ssm"));
    assert_eq!(resolved.get("APP_API_TOKEN").as_deref(), Some("token_from_ssm"));
    assert_eq!(resolved.get("LOG_LEVEL").as_deref(), Some("info"));
}

#[tokio::test]
async fn a_parameter_that_is_not_there_stops_the_start_and_is_named() {
    let (_, endpoint) = ParameterStore::start().await;
    let error = resolve(env(&endpoint, "ssm:/app/other")).await.unwrap_err().to_string();
    assert!(error.contains("/app/other"), "{error}");
    let error = resolve(env("http://127.0.0.1:9", "ssm:/app/secret")).await.unwrap_err().to_string();
    assert!(error.contains("/app/secret") && !error.contains("key"), "{error}");
}

#[tokio::test]
async fn a_throttled_start_reads_its_parameters_at_the_third_attempt() {
    let (store, endpoint) = ParameterStore::start().await;
    // SSM throttles with 400 and ThrottlingException, or with 429.
    for refusals in [[429, 429], [400, 400], [503, 429]] {
        store.refuse(&refusals);
        let before = store.asked();
        let resolved = resolve(env(&endpoint, "ssm:/app/secret")).await.unwrap();
        assert_eq!(resolved.get("STRIPE_WEBHOOK_SECRET").as_deref(), Some("whsec_from_ssm"));
        assert_eq!(store.asked() - before, 3);
    }
    store.refuse(&[429; 9]);
    let before = store.asked();
    let error = resolve(env(&endpoint, "ssm:/app/secret")).await.unwrap_err().to_string();
    assert!(error.contains("/app/secret") && error.contains("429"), "{error}");
    assert_eq!(store.asked() - before, 4, "it gives up after four attempts");
}

/// A deployment. Its webhook reads its secret from a parameter.
async fn world_with_parameter(endpoint: &str) -> World {
    let mut world = World::new().await;
    world.env.set("STRIPE_WEBHOOK_SECRET", "ssm:/app/secret");
    world.env.set("AWS_ENDPOINT_URL_SSM", endpoint);
    let env = resolve(world.env.clone()).await.unwrap();
    world.webhook = Webhook::new(WebhookConfig::from_env(&env).unwrap(), world.sqs.clone());
    world
}

/// The header that Stripe sends while these secrets are valid.
fn signed_with(body: &[u8], secrets: &[&str]) -> String {
    let headers: Vec<String> =
        secrets.iter().map(|text| sign(body, &Secret::new(text).unwrap(), now())).collect();
    let (time, _) = headers[0].split_once(',').unwrap();
    let signatures: Vec<&str> = headers.iter().map(|header| header.split_once(',').unwrap().1).collect();
    format!("{time},{}", signatures.join(","))
}

/// Posts 20 paid packs at once, signed so; all statuses.
async fn load(world: &World, phase: &str, secrets: &[&str]) -> Vec<u16> {
    let events = (0..20).map(|number| pack(&format!("{phase}{number}"), "user_1", 1).to_string());
    let posts = events.map(|body| async move {
        world.post(body.as_bytes(), Some(&signed_with(body.as_bytes(), secrets))).await.0
    });
    join_all(posts).await
}

#[tokio::test]
async fn a_secret_is_rolled_under_load_without_a_deploy_and_nothing_is_dropped() {
    let (store, endpoint) = ParameterStore::start().await;
    store.put_secret("whsec_old");
    let world = world_with_parameter(&endpoint).await;
    world.sign_up("user_1").await;
    assert_eq!(load(&world, "before", &["whsec_old"]).await, [200; 20]);
    // During the overlap Stripe signs with both secrets, before and after the parameter has the new one.
    assert_eq!(load(&world, "overlap", &["whsec_new", "whsec_old"]).await, [200; 20]);
    store.put_secret("whsec_new,whsec_old");
    assert_eq!(load(&world, "both", &["whsec_new", "whsec_old"]).await, [200; 20]);
    assert_eq!(store.asked(), 1, "a valid signature reads no parameter");
    // The overlap ends. The first signature that does not match makes the instance read the parameter again.
    store.put_secret("whsec_new");
    assert_eq!(load(&world, "after", &["whsec_new"]).await, [200; 20]);
    assert_eq!(store.asked(), 2, "concurrent requests wait for one read");
    assert_eq!(load(&world, "late", &["whsec_old"]).await, [400; 20], "the old one is gone");
    assert_eq!(load(&world, "forged", &["whsec_forged"]).await, [400; 20]);
    assert_eq!(store.asked(), 2, "a flood of forgeries asks no more than once in 30 s");
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 500 + 80 * 1000);
}

#[tokio::test]
async fn a_parameter_that_cannot_be_read_again_leaves_the_secrets_in_use() {
    for broken in ["", " , "] {
        let (store, endpoint) = ParameterStore::start().await;
        store.put_secret(SECRET);
        let world = world_with_parameter(&endpoint).await;
        store.put_secret(broken);
        assert_eq!(load(&world, "forged", &["whsec_forged"]).await, [400; 20]);
        assert_eq!(store.asked(), 2);
        assert_eq!(load(&world, "good", &[SECRET]).await, [200; 20]);
    }
}

#[tokio::test]
async fn an_admin_token_is_replaced_and_withdrawn_without_a_deploy() {
    let (store, endpoint) = ParameterStore::start().await;
    let list = |tokens: &[&str]| {
        let entries: Vec<Value> = tokens.iter().map(|text| token("ann", "operator", None, text)).collect();
        store.put_secret(&json!(entries).to_string());
    };
    list(&["old"]);
    let mut world = World::new().await;
    world.env.set("ADMIN_API_TOKEN", "");
    world.env.set("ADMIN_API_TOKENS", "ssm:/app/secret");
    world.env.set("AWS_ENDPOINT_URL_SSM", &endpoint);
    let config = AdminConfig::from_env(&resolve(world.env.clone()).await.unwrap()).unwrap();
    let tokens = Tokens::new(config.tokens, config.tokens_source);
    let ask = async |text: &str, second: i64| {
        let mut headers = lambda_http::http::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {text}").parse().unwrap());
        tokens.find(&headers, second * 1000).await.map(|token| token.name)
    };
    let ann = Ok("ann".to_owned());
    assert_eq!((ask("old", 0).await, ask("new", 0).await), (ann.clone(), Err(TokenRefusal::Wrong)));
    list(&["old", "new"]);
    assert_eq!(ask("new", 29).await, Err(TokenRefusal::Wrong));
    assert_eq!((ask("new", 30).await, ask("old", 31).await), (ann.clone(), ann.clone()), "the overlap");
    list(&["new"]);
    assert_eq!((ask("old", 60).await, ask("new", 60).await), (Err(TokenRefusal::Wrong), ann.clone()));
    // A list that is not valid, or an SSM that does not answer, leaves the known tokens in use.
    store.put_secret("[{");
    assert_eq!((ask("new", 90).await, ask("old", 90).await), (ann.clone(), Err(TokenRefusal::Wrong)));
    store.refuse(&[400; 4]);
    assert_eq!(ask("new", 120).await, ann);
    list(&["new"]);
    let before = store.asked();
    for _ in 0..100 {
        assert_eq!(ask("forged", 160).await, Err(TokenRefusal::Wrong));
    }
    assert_eq!(store.asked(), before + 1, "a flood of wrong tokens causes one call in 30 s");
    // A list without entries, and a deleted parameter, withdraw every token.
    for (second, gone) in [(200, "[]"), (300, "")] {
        assert_eq!(ask("new", second).await, ann);
        store.put_secret(gone);
        assert_eq!(ask("new", second + 30).await, Err(TokenRefusal::NotConfigured), "{gone:?}");
        list(&["new"]);
    }
}

#[tokio::test]
async fn the_apps_token_is_replaced_with_an_overlap_and_withdrawn_without_a_deploy() {
    let (store, endpoint) = ParameterStore::start().await;
    store.put_token("old");
    let tokens = AppTokens::from_env(&resolve(env(&endpoint, "ssm:/app/secret")).await.unwrap());
    let ask = async |text: &str, second: i64| {
        let mut headers = lambda_http::http::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {text}").parse().unwrap());
        tokens.check(&headers, second * 1000).await
    };
    let (ok, wrong) = (Ok(()), Err(TokenRefusal::Wrong));
    assert_eq!((ask("old", 0).await, ask("new", 0).await), (ok, wrong));
    store.put_token("new,old");
    assert_eq!(ask("new", 29).await, wrong);
    assert_eq!((ask("new", 30).await, ask("old", 31).await), (ok, ok), "the overlap");
    let before = store.asked();
    store.put_token("new");
    assert_eq!((ask("old", 329).await, store.asked()), (ok, before), "a known token reads no parameter");
    assert_eq!((ask("old", 330).await, ask("new", 330).await), (wrong, ok), "withdrawn after five minutes");
    // An SSM that does not answer leaves the known tokens in use.
    store.refuse(&[400; 4]);
    assert_eq!((ask("new", 700).await, ask("old", 700).await), (ok, wrong));
    let before = store.asked();
    for _ in 0..100 {
        assert_eq!(ask("forged", 800).await, wrong);
    }
    assert_eq!(store.asked(), before + 1, "a flood of wrong tokens causes one call in 30 s");
    // A value without a token, and a deleted parameter, withdraw every token.
    for (second, gone) in [(1_200, " , "), (2_200, "")] {
        assert_eq!(ask("new", second).await, ok);
        store.put_token(gone);
        assert_eq!(ask("new", second + 299).await, ok);
        assert_eq!(ask("new", second + 600).await, Err(TokenRefusal::NotConfigured), "{gone:?}");
        store.put_token("new");
        assert_eq!(ask("new", second + 629).await, Err(TokenRefusal::NotConfigured), "{gone:?}");
        assert_eq!(ask("new", second + 630).await, ok, "a token is read again within 30 s: {gone:?}");
    }
}

#[tokio::test]
async fn each_of_the_apps_tokens_is_taken_by_every_route() {
    let world = World::with(&[("APP_API_TOKEN", "first,second")]).await;
    for (token, status) in [("first", 200), ("second", 200), ("third", 401), ("first,second", 401)] {
        let bearer = format!("Bearer {token}");
        let answer = world.visit(Some(&bearer), "PUT", "/users/user_1", Body::Empty).await;
        assert_eq!(answer.status().as_u16(), status, "{token}");
    }
}
