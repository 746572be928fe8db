//! The events of the benchmark: an `invoice.paid` of `events/`, padded to 4 KB, with new ids.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

pub const SECRET: &str = "whsec_bench";
const SAMPLE: &str = include_str!("../../../events/invoice.paid.renewal.json");
const BYTES: usize = 4096;

/// The renewal number `number` of a user, 4,096 bytes. Each user has a subscription of their own: a worker
/// processes the events of a batch one by one if two users claim the same subscription.
pub fn body(user: u32, number: u32) -> String {
    let own = SAMPLE
        .replace("user_123", &format!("user_{user}"))
        .replace("sub_TallyHook", &format!("sub_bench{user}x"))
        .replace("si_TallyHook", &format!("si_bench{user}x"));
    let mut event: Value = serde_json::from_str(&own).expect("the sample is JSON");
    let (start, month) = (1_770_000_000 + i64::from(number) * 2_592_000, 2_592_000);
    event["id"] = json!(format!("evt_bench{user}x{number}"));
    event["created"] = json!(start);
    let invoice = &mut event["data"]["object"];
    invoice["id"] = json!(format!("in_bench{user}x{number}"));
    invoice["customer"] = json!(format!("cus_bench{user}"));
    invoice["lines"]["data"][0]["period"] = json!({"start": start, "end": start + month});
    invoice["description"] = json!("");
    let length = event.to_string().len();
    event["data"]["object"]["description"] =
        json!("Renewal of the plan. ".chars().cycle().take(BYTES.saturating_sub(length)).collect::<String>());
    event.to_string()
}

/// A webhook request as API Gateway passes it on (payload 2.0), signed now.
pub fn request(body: &str) -> Vec<u8> {
    let t = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("{t}.{body}").as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let request = json!({
        "version": "2.0", "routeKey": "POST /webhooks/stripe", "rawPath": "/webhooks/stripe",
        "rawQueryString": "",
        "headers": {
            "accept": "*/*; q=0.5, application/xml", "cache-control": "no-cache",
            "content-length": body.len().to_string(),
            "content-type": "application/json; charset=utf-8",
            "host": "abcdefghij.execute-api.us-east-1.amazonaws.com",
            "stripe-signature": format!("t={t},v1={hex},v0={}", "5e9d2f2f0d9a1c5a".repeat(4)),
            "user-agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "x-amzn-trace-id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700",
            "x-forwarded-for": "3.18.12.63", "x-forwarded-port": "443", "x-forwarded-proto": "https",
        },
        "requestContext": {
            "accountId": "000000000000", "apiId": "abcdefghij",
            "domainName": "abcdefghij.execute-api.us-east-1.amazonaws.com",
            "domainPrefix": "abcdefghij", "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "POST /webhooks/stripe", "stage": "$default",
            "http": {"method": "POST", "path": "/webhooks/stripe", "protocol": "HTTP/1.1",
                "sourceIp": "3.18.12.63", "userAgent": "Stripe/1.0"},
            "time": "21/Nov/2026:12:00:00 +0000", "timeEpoch": 1_795_262_400_000_i64,
        },
        "body": body, "isBase64Encoded": false,
    });
    request.to_string().into_bytes()
}

/// A batch as the SQS event source passes it on.
pub fn batch(bodies: &[String]) -> Vec<u8> {
    let record = |(place, body): (usize, &String)| {
        json!({
            "messageId": format!("059f36b4-87a3-44ab-83d2-6619759{place:05}"),
            "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a", "body": body,
            "attributes": {
                "ApproximateReceiveCount": "1", "SentTimestamp": "1795262400000",
                "SenderId": "AIDAIENQZJOLO23YVJ4VO",
                "ApproximateFirstReceiveTimestamp": "1795262400001",
            },
            "messageAttributes": {
                "received_at": {"stringValue": "1795262400000", "stringListValues": [],
                    "binaryListValues": [], "dataType": "Number"},
                "mode": {"stringValue": "any", "stringListValues": [], "binaryListValues": [],
                    "dataType": "String"},
            },
            "md5OfBody": "098f6bcd4621d373cade4e832627b4f6", "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-1:000000000000:tallyhook-invoice-paid",
            "awsRegion": "us-east-1",
        })
    };
    json!({"Records": bodies.iter().enumerate().map(record).collect::<Vec<_>>()}).to_string().into_bytes()
}
