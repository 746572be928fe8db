//! The queues of a deployment.

use anyhow::ensure;
use serde_json::{Value, json};
use tallyhook_core::event::Family;

use super::lambda::{self, REGION};
use crate::sqs::Sqs;

/// The queue of the messages that failed too often.
pub const DEAD_LETTER_QUEUE: &str = "tallyhook-dead-letter";

/// The queues that do not belong to an event family.
pub(super) const OTHER_QUEUES: [&str; 2] = ["provision", "notify"];

/// Six times the timeout of a function, as AWS recommends: Lambda may retry a batch itself before its
/// messages become visible again.
const VISIBILITY_SECONDS: u64 = 6 * lambda::TIMEOUT.as_secs();

/// The first attempt and one for each of the three retry delays.
const MAX_RECEIVE_COUNT: u32 = 4;

/// Creates missing queues, and gives every queue the settings of `template.yaml`.
pub(super) async fn create_queues(sqs: &Sqs, aws_url: &str) -> anyhow::Result<()> {
    let call = async |action: &str, request: Value| -> anyhow::Result<()> {
        let (status, answer, _) =
            sqs.handle(&format!("AmazonSQS.{action}"), "localhost", request.to_string().as_bytes()).await;
        ensure!(status == 200, "{action}: {}", String::from_utf8_lossy(&answer));
        Ok(())
    };
    call("CreateQueue", json!({ "QueueName": DEAD_LETTER_QUEUE })).await?;
    let attributes =
        json!({ "VisibilityTimeout": VISIBILITY_SECONDS.to_string(), "MessageRetentionPeriod": "1209600" });
    call("SetQueueAttributes", json!({ "QueueUrl": DEAD_LETTER_QUEUE, "Attributes": attributes })).await?;
    let redrive = json!({
        "deadLetterTargetArn": format!("arn:aws:sqs:{REGION}:000000000000:{DEAD_LETTER_QUEUE}"),
        "maxReceiveCount": MAX_RECEIVE_COUNT,
    });
    for name in Family::ALL.iter().map(|family| family.as_str()).chain(OTHER_QUEUES) {
        let attributes = json!({
            "VisibilityTimeout": VISIBILITY_SECONDS.to_string(),
            "MessageRetentionPeriod": "1209600",
            "RedrivePolicy": redrive.to_string(),
        });
        call("CreateQueue", json!({ "QueueName": format!("tallyhook-{name}") })).await?;
        call("SetQueueAttributes", json!({ "QueueUrl": queue_url(aws_url, name), "Attributes": attributes }))
            .await?;
    }
    Ok(())
}

/// The URL of a queue on the local endpoint.
pub(super) fn queue_url(aws_url: &str, name: &str) -> String {
    format!("{aws_url}/000000000000/tallyhook-{name}")
}
