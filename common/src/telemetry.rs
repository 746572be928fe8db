//! Logs: JSON lines on standard output, with stable names.
//!
//! | name | when |
//! |---|---|
//! | `WEBHOOK_RECEIVED` | a verified event was queued |
//! | `WEBHOOK_REFUSED` | a request was not taken: `code`, `hint` |
//! | `WEBHOOK_PROCESSED_OK` | an event ended: `outcome` is `processed`, `duplicate`, `ignored` or `parked` |
//! | `WEBHOOK_PROCESSING_FAILED` | an attempt failed and will be repeated: `error`, `attempt`, `next_attempt_seconds` |
//!
//! Fields: `event_id`, `event_type`, `livemode`, `user_id`, `customer_id`, `subscription_id`, `checkout_session_id`, `reason`, `duration_ms`;
//! one that the event does not name is left out.
//! **Invariant:** never a payload, signature, secret, token, e-mail address or name.

use std::io::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Env;

/// Starts logging to standard output; a second call changes nothing. `LOG_LEVEL` is about our own lines: what the libraries say below
/// a warning is never logged, because the SDK's `debug` and `trace` hold requests and their bodies.
pub fn init(env: &Env) {
    let level = env.get("LOG_LEVEL").and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let ours = Targets::new().with_target("common", level).with_default(level.min(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt().json().flatten_event(true).with_current_span(false).with_span_list(false).with_target(false);
    let _ = lines.with_max_level(level).finish().with(ours).try_init();
    let _ = NAMESPACE.set(env.get("METRICS_NAMESPACE").unwrap_or_else(|| "tallyhook".to_owned()));
}

/// What this deployment's metrics are filed under. Metrics are written only where it is set: by functions, which start logging.
static NAMESPACE: OnceLock<String> = OnceLock::new();

/// Writes metrics as one line of CloudWatch's embedded metric format: CloudWatch makes metrics of it, and no call is needed. `dimensions`
/// are names and values by which they can be told apart.
pub fn metrics(dimensions: &[(&str, &str)], metrics: &[(&str, f64)]) {
    let Some(namespace) = NAMESPACE.get().filter(|_| !metrics.is_empty()) else { return };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = embedded(namespace, dimensions, metrics, u64::try_from(since.as_millis()).unwrap_or(0));
    // Standard output that is gone takes the log with it; there is nobody to tell.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn embedded(namespace: &str, dimensions: &[(&str, &str)], metrics: &[(&str, f64)], now_ms: u64) -> Value {
    let names: Vec<&str> = dimensions.iter().map(|(name, _)| *name).collect();
    let listed: Vec<Value> = metrics.iter().map(|(name, _)| json!({"Name": name})).collect();
    let mut line = Map::new();
    line.insert(
        "_aws".to_owned(),
        json!({"Timestamp": now_ms, "CloudWatchMetrics": [{"Namespace": namespace, "Dimensions": [names], "Metrics": listed}]}),
    );
    line.extend(dimensions.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    line.extend(metrics.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    Value::Object(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_a_line_that_cloudwatch_reads() {
        assert_eq!(
            embedded("tallyhook", &[("family", "invoice-paid")], &[("Processed", 3.0)], 1_795_219_200_000),
            json!({
                "_aws": {
                    "Timestamp": 1_795_219_200_000_u64,
                    "CloudWatchMetrics": [{"Namespace": "tallyhook", "Dimensions": [["family"]], "Metrics": [{"Name": "Processed"}]}],
                },
                "family": "invoice-paid",
                "Processed": 3.0,
            })
        );
    }
}
