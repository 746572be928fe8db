//! The admin API's requests. The input is a method and path, a line break, the query, a line break, and the
//! body.
//!
//! With empty tables, every request gets a response. No request makes the code panic or fail.
#![no_main]

use std::collections::HashMap;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use lambda_http::{Body, Request, RequestExt as _};
use libfuzzer_sys::fuzz_target;
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::{QueueAges, sdk_config_with};
use tallyhook_core::event::Family;
use tallyhook_service::config::{AdminConfig, queue_variable};
use tallyhook_service::http::admin::Admin;

/// Answers every call like an empty DynamoDB and SQS.
#[derive(Clone, Debug)]
struct EmptyAws;

impl HttpClient for EmptyAws {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for EmptyAws {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let body = r#"{"Items":[],"Count":0,"ScannedCount":0,"Responses":{},"UnprocessedKeys":{},
            "Attributes":{},"MessageId":"m"}"#;
        let answer =
            http::Response::builder().status(200).header("content-type", "application/x-amz-json-1.0");
        let answer = answer.body(SdkBody::from(body)).expect("a valid response");
        HttpConnectorFuture::ready(Ok(answer.try_into().expect("a valid header")))
    }
}

fn admin() -> Admin {
    let mut env = Env::from([
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("ADMIN_API_TOKEN", "admin"),
        ("ACCOUNTS_TABLE", "accounts"),
        ("EVENTS_TABLE", "events"),
        ("QUEUE_URL_DEAD_LETTER", "http://aws.test/0/dead-letter"),
        ("QUEUE_URL_NOTIFY", "http://aws.test/0/notify"),
    ]);
    for family in Family::ALL {
        env.set(queue_variable(family), format!("http://aws.test/0/{}", family.as_str()));
    }
    let client = SharedHttpClient::new(EmptyAws);
    let config = sdk_config_with(&env, Some("http://aws.test".to_owned()), client)
        .expect("the environment is complete");
    let (dynamodb, sqs) = (aws_sdk_dynamodb::Client::new(&config), aws_sdk_sqs::Client::new(&config));
    let ages = QueueAges::new(&env).with_connector(SharedHttpConnector::new(EmptyAws));
    Admin::new(AdminConfig::from_env(&env).expect("the environment is complete"), &dynamodb, &sqs, ages)
}

thread_local! {
    static ADMIN: (Admin, tokio::runtime::Runtime) = (
        admin(),
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts"),
    );
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let (target, query, body) =
        (lines.next().unwrap_or(""), lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let (method, path) = target.split_once(' ').unwrap_or(("GET", target));
    let request = http::Request::builder().method(method).uri(path).header("authorization", "Bearer admin");
    // The HTTP server in front refuses parts that are not a valid request.
    let Ok(request) = request.header("idempotency-key", "key-1").body(Body::Text(body.to_owned())) else {
        return;
    };
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query: HashMap<String, Vec<String>> =
        pairs.map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).collect();
    let path = path.split('?').next().unwrap_or_default();
    let request: Request = request.with_query_string_parameters(query).with_raw_http_path(path);
    ADMIN.with(|(admin, runtime)| {
        let answer = runtime.block_on(admin.handle(request)).expect("every error is a response");
        // 502 and 503 are expected: there is no Stripe key here.
        let status = answer.status().as_u16();
        assert!(status < 500 || [502, 503].contains(&status), "{status} {:?}", answer.body());
    });
});
