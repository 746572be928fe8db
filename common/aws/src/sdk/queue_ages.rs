//! How old the oldest message of a queue is. SQS's API does not say; CloudWatch's metric
//! `ApproximateAgeOfOldestMessage` does.
//!
//! A call costs $0.01 for a thousand queues. CloudWatch leaves out a message that was received three times or
//! more, and has no value for a queue that was not used for six hours until up to 15 minutes after its first
//! message.

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use serde::Deserialize;
use serde_json::{Value, json};

use super::signed::{Caller, Service};
use crate::env::Env;
use tallyhook_core::timestamp::Timestamp;

const CLOUDWATCH: Service = Service {
    name: "CloudWatch",
    variable: "CLOUDWATCH",
    host: "monitoring",
    content_type: "application/x-amz-json-1.0",
    attempts: 2,
    attempt_timeout: Duration::from_secs(3),
    call_timeout: Duration::from_secs(4),
};
const METRIC: &str = "ApproximateAgeOfOldestMessage";
/// SQS writes a value each minute, and CloudWatch has it a few minutes later. The newest within this time
/// counts.
const WINDOW_SECONDS: i64 = 600;
const PERIOD_SECONDS: i64 = 60;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "MetricDataResults", default)]
    results: Vec<MetricData>,
}

#[derive(Deserialize)]
struct MetricData {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Values", default)]
    values: Vec<f64>,
}

/// Reads the ages. It opens no connection before the first call.
#[derive(Clone, Debug)]
pub struct QueueAges {
    env: Arc<Env>,
    connector: Option<SharedHttpConnector>,
}

impl QueueAges {
    /// Uses the region, the credentials and the endpoint of this environment.
    pub fn new(env: &Env) -> Self {
        let mut own = Env::default();
        for (name, value) in env.iter().filter(|(name, _)| name.starts_with("AWS_")) {
            own.set(name, value);
        }
        Self { env: Arc::new(own), connector: None }
    }

    /// The same with another transport, for tests.
    #[must_use]
    pub fn with_connector(self, connector: SharedHttpConnector) -> Self {
        Self { connector: Some(connector), ..self }
    }

    /// The age in seconds of the oldest message of each queue, in their order: one `GetMetricData`. `None`
    /// for a queue of which CloudWatch has no value.
    ///
    /// # Errors
    /// The message of the last attempt.
    pub async fn read(&self, queue_urls: &[&str], now: Timestamp) -> Result<Vec<Option<u64>>, String> {
        let cloudwatch = Caller::from_env(&self.env, &CLOUDWATCH, self.connector.clone())
            .map_err(|error| error.to_string())?;
        let body = request(queue_urls, now).to_string();
        let answer = cloudwatch.call("GraniteServiceVersion20100801.GetMetricData", &body).await?;
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|error| format!("the answer of CloudWatch is not what AWS documents: {error}"))?;
        let newest = |place: usize| {
            let of_queue = answer.results.iter().find(|result| result.id == id(place))?;
            // The newest value is the first.
            of_queue
                .values
                .first()
                .map(|seconds| Duration::try_from_secs_f64(*seconds).map_or(0, |it| it.as_secs()))
        };
        Ok((0..queue_urls.len()).map(newest).collect())
    }
}

fn request(queue_urls: &[&str], now: Timestamp) -> Value {
    let query = |(place, url): (usize, &&str)| {
        let name = url.rsplit('/').next().unwrap_or_default();
        json!({
            "Id": id(place),
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/SQS",
                    "MetricName": METRIC,
                    "Dimensions": [{"Name": "QueueName", "Value": name}],
                },
                "Period": PERIOD_SECONDS,
                "Stat": "Maximum",
            },
        })
    };
    json!({
        "MetricDataQueries": queue_urls.iter().enumerate().map(query).collect::<Vec<_>>(),
        "StartTime": now.plus_seconds(-WINDOW_SECONDS).unix(),
        // The end is exclusive.
        "EndTime": now.plus_seconds(PERIOD_SECONDS).unix(),
        "ScanBy": "TimestampDescending",
    })
}

/// The id of a query begins with a small letter.
fn id(place: usize) -> String {
    format!("q{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_each_queue_once_and_ends_after_the_newest_minute() {
        let urls = [
            "https://sqs.eu-central-1.amazonaws.com/1/tallyhook-refund",
            "http://local/0/tallyhook-customer",
        ];
        let request = request(&urls, Timestamp::from_unix(1_000_000));
        let queries = request["MetricDataQueries"].as_array().unwrap();
        let names: Vec<&Value> =
            queries.iter().map(|query| &query["MetricStat"]["Metric"]["Dimensions"][0]["Value"]).collect();
        assert_eq!(names, ["tallyhook-refund", "tallyhook-customer"]);
        assert_eq!((&queries[0]["Id"], &queries[1]["Id"]), (&json!("q0"), &json!("q1")));
        assert_eq!((&request["StartTime"], &request["EndTime"]), (&json!(999_400), &json!(1_000_060)));
    }
}
