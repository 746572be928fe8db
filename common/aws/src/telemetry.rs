//! Logs: JSON lines on standard output, with stable names.
//!
//! | name | when |
//! |---|---|
//! | `WEBHOOK_RECEIVED` | a verified event was queued |
//! | `WEBHOOK_REFUSED` | a request was refused: `code`, `hint` |
//! | `WEBHOOK_PROCESSED_OK` | an event is finished: `outcome` is `processed` or `duplicate` |
//! | `WEBHOOK_IGNORED` | an event does not concern this deployment |
//! | `WEBHOOK_PARKED` | an event waits for an operator or for a later event |
//! | `WEBHOOK_PROCESSING_FAILED` | an attempt failed and will be repeated: `error`, `attempt`, `next_attempt_seconds` |
//!
//! Fields: `event_id`, `event_type`, `livemode`, `user_id`, `customer_id`, `subscription_id`,
//! `checkout_session_id`, `reason`, `duration_ms`; a field that the event does not have is left out.
//! **Invariant:** never a payload, signature, secret, token, e-mail address or name.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::env::Env;

/// Starts logging to standard output. A second call changes nothing. `LOG_LEVEL` applies to tallyhook's own
/// lines. Libraries log at `warn` at most, because the SDK's `debug` and `trace` lines hold requests and
/// their bodies. A release build does not contain these lines (`release_max_level_info` in `Cargo.toml`).
pub fn init(env: &Env) {
    let level = env.get("LOG_LEVEL").and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let ours = Targets::new().with_target("tallyhook", level).with_default(level.min(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false);
    let _ = lines.with_max_level(level).finish().with(ours).try_init();
    let _ = NAMESPACE.set(env.get("METRICS_NAMESPACE").unwrap_or_else(|| "tallyhook".to_owned()));
}

/// The CloudWatch namespace of the metrics. [`init`] sets it; without it no metrics are written.
static NAMESPACE: OnceLock<String> = OnceLock::new();

/// Writes metrics as one log line in CloudWatch's embedded metric format, so no API call is needed.
///
/// The metrics have no dimension: CloudWatch charges for each combination of values, and an alarm would need
/// each of them. `properties` are pairs of name and value for queries of the log.
pub fn metrics(properties: &[(&str, &str)], metrics: &[(&str, f64)]) {
    let Some(namespace) = NAMESPACE.get().filter(|_| !metrics.is_empty()) else { return };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = embedded(namespace, properties, metrics, u64::try_from(since.as_millis()).unwrap_or(0));
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    // When standard output is closed, the error cannot be logged either.
    let _ = std::io::stdout().lock().write_all(&text);
}

/// `{"_aws":{…},"family":"invoice-paid","Processed":1.0}`
#[derive(Serialize)]
struct Embedded<'a> {
    #[serde(rename = "_aws")]
    aws: Aws<'a>,
    #[serde(flatten)]
    properties: BTreeMap<&'a str, &'a str>,
    #[serde(flatten)]
    metrics: BTreeMap<&'a str, f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Aws<'a> {
    timestamp: u64,
    cloud_watch_metrics: [Directive<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directive<'a> {
    namespace: &'a str,
    dimensions: [[&'a str; 0]; 1],
    metrics: Vec<Metric<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metric<'a> {
    name: &'a str,
}

fn embedded<'a>(
    namespace: &'a str,
    properties: &[(&'a str, &'a str)],
    metrics: &[(&'a str, f64)],
    now_ms: u64,
) -> Embedded<'a> {
    let directive = Directive {
        namespace,
        dimensions: [[]],
        metrics: metrics.iter().map(|(name, _)| Metric { name }).collect(),
    };
    Embedded {
        aws: Aws { timestamp: now_ms, cloud_watch_metrics: [directive] },
        properties: properties.iter().copied().collect(),
        metrics: metrics.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metrics_are_one_line_in_the_embedded_metric_format() {
        assert_eq!(
            json!(embedded(
                "tallyhook",
                &[("family", "invoice-paid")],
                &[("Processed", 3.0)],
                1_795_219_200_000
            )),
            json!({
                "_aws": {
                    "Timestamp": 1_795_219_200_000_u64,
                    "CloudWatchMetrics": [{
                        "Namespace": "tallyhook",
                        "Dimensions": [[]],
                        "Metrics": [{"Name": "Processed"}]
                    }],
                },
                "family": "invoice-paid",
                "Processed": 3.0,
            })
        );
    }
}
