//! `ssm:/path` in the environment.

use axum::http::HeaderMap;
use axum::{Json, Router, routing::post};
use common::aws::resolve;
use common::config::Env;
use serde_json::{Value, json};

/// An SSM that knows two parameters and refuses a request that is not signed for it.
async fn parameter_store() -> String {
    async fn answer(headers: HeaderMap, body: String) -> (axum::http::StatusCode, Json<Value>) {
        let signed = headers["authorization"].to_str().unwrap_or_default();
        let body: Value = serde_json::from_str(&body).unwrap();
        if !signed.contains("/us-east-1/ssm/aws4_request")
            || headers["x-amz-target"] != "AmazonSSM.GetParameters"
            || body["WithDecryption"] != true
        {
            return (axum::http::StatusCode::BAD_REQUEST, Json(json!({"__type": "IncompleteSignature"})));
        }
        let known = [("/app/secret", "whsec_from_ssm"), ("/app/token", "token_from_ssm")];
        let asked = body["Names"].as_array().unwrap();
        let found: Vec<Value> = known
            .iter()
            .filter(|(name, _)| asked.contains(&json!(name)))
            .map(|(name, value)| json!({"Name": name, "Value": value, "Type": "SecureString"}))
            .collect();
        (axum::http::StatusCode::OK, Json(json!({"Parameters": found, "InvalidParameters": []})))
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", post(answer))).await });
    url
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
    let endpoint = parameter_store().await;
    let resolved = resolve(env(&endpoint, "ssm:/app/secret")).await.unwrap();
    assert_eq!(resolved.get("STRIPE_WEBHOOK_SECRET").as_deref(), Some("whsec_from_ssm"));
    assert_eq!(resolved.get("APP_API_TOKEN").as_deref(), Some("token_from_ssm"));
    assert_eq!(resolved.get("LOG_LEVEL").as_deref(), Some("info"));
}

#[tokio::test]
async fn a_parameter_that_is_not_there_stops_the_start_and_is_named() {
    let endpoint = parameter_store().await;
    let error = resolve(env(&endpoint, "ssm:/app/other")).await.unwrap_err().to_string();
    assert!(error.contains("/app/other"), "{error}");
    let error = resolve(env("http://127.0.0.1:9", "ssm:/app/secret")).await.unwrap_err().to_string();
    assert!(error.contains("/app/secret") && !error.contains("key"), "{error}");
}
