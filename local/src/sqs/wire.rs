//! The JSON shapes of the AWS JSON 1.0 protocol, its errors, and the checks that need no queue.
//!
//! **Invariant:** nothing here reads a clock or the store.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};

use super::Answer;

/// The maximum size of a message, and of all messages of a batch together: body, attribute names, types and
/// values.
pub(super) const MAX_BYTES: usize = 1_048_576;

/// The queue attributes that are numbers: name, default, minimum, maximum.
const NUMBERS: [(&str, i64, i64, i64); 5] = [
    ("DelaySeconds", 0, 0, 900),
    ("MaximumMessageSize", 1_048_576, 1_024, 1_048_576),
    ("MessageRetentionPeriod", 345_600, 60, 1_209_600),
    ("ReceiveMessageWaitTimeSeconds", 0, 0, 20),
    ("VisibilityTimeout", 30, 0, 43_200),
];

const SYSTEM_ATTRIBUTES: [&str; 9] = [
    "AWSTraceHeader",
    "ApproximateFirstReceiveTimestamp",
    "ApproximateReceiveCount",
    "DeadLetterQueueSourceArn",
    "MessageDeduplicationId",
    "MessageGroupId",
    "SenderId",
    "SentTimestamp",
    "SequenceNumber",
];

// Errors.

/// An error answer: AWS's code, and a message for people.
#[derive(Debug)]
pub(super) struct SqsError {
    code: ErrorCode,
    message: String,
}

/// AWS's error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCode {
    BatchEntryIdsNotDistinct,
    BatchRequestTooLong,
    EmptyBatchRequest,
    Internal,
    InvalidAttributeName,
    InvalidAttributeValue,
    InvalidBatchEntryId,
    InvalidMessageContents,
    InvalidParameterValue,
    MissingParameter,
    QueueDoesNotExist,
    QueueNameExists,
    ReceiptHandleIsInvalid,
    ResourceNotFound,
    Serialization,
    TooManyEntries,
    UnsupportedOperation,
}

impl ErrorCode {
    /// The shape in the body's `__type`, the code in the `x-amzn-query-error` header (the one SDKs match on),
    /// and the HTTP status.
    const fn on_the_wire(self) -> (&'static str, &'static str, u16) {
        match self {
            Self::BatchEntryIdsNotDistinct => {
                ("BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct", 400)
            }
            Self::BatchRequestTooLong => {
                ("BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong", 400)
            }
            Self::EmptyBatchRequest => ("EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest", 400),
            Self::Internal => ("InternalFailure", "InternalFailure", 500),
            Self::InvalidAttributeName => ("InvalidAttributeName", "InvalidAttributeName", 400),
            Self::InvalidAttributeValue => ("InvalidAttributeValue", "InvalidAttributeValue", 400),
            Self::InvalidBatchEntryId => {
                ("InvalidBatchEntryId", "AWS.SimpleQueueService.InvalidBatchEntryId", 400)
            }
            Self::InvalidMessageContents => ("InvalidMessageContents", "InvalidMessageContents", 400),
            Self::InvalidParameterValue => ("InvalidParameterValueException", "InvalidParameterValue", 400),
            Self::MissingParameter => ("MissingRequiredParameterException", "MissingParameter", 400),
            Self::QueueDoesNotExist => ("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", 400),
            Self::QueueNameExists => ("QueueNameExists", "QueueAlreadyExists", 400),
            Self::ReceiptHandleIsInvalid => ("ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", 404),
            Self::ResourceNotFound => ("ResourceNotFoundException", "ResourceNotFoundException", 404),
            Self::Serialization => ("SerializationException", "SerializationException", 400),
            Self::TooManyEntries => {
                ("TooManyEntriesInBatchRequest", "AWS.SimpleQueueService.TooManyEntriesInBatchRequest", 400)
            }
            Self::UnsupportedOperation => {
                ("UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation", 400)
            }
        }
    }

    /// An error with this code and message.
    pub(super) fn because(self, message: impl Into<String>) -> SqsError {
        SqsError { code: self, message: message.into() }
    }
}

impl SqsError {
    /// The HTTP answer: `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does
    /// not exist."}` and the header `AWS.SimpleQueueService.NonExistentQueue;Sender`.
    pub(super) fn answer(self) -> Answer {
        let (shape, code, status) = self.code.on_the_wire();
        let body = json!({ "__type": format!("com.amazonaws.sqs#{shape}"), "message": self.message });
        let blame = if status < 500 { "Sender" } else { "Receiver" };
        (status, body.to_string().into_bytes(), Some(format!("{code};{blame}")))
    }

    /// The error as an entry of `Failed` in a batch answer.
    fn entry(self, id: String) -> Value {
        let (_, code, status) = self.code.on_the_wire();
        json!({ "Id": id, "Code": code, "Message": self.message, "SenderFault": status < 500 })
    }
}

impl From<rusqlite::Error> for SqsError {
    fn from(error: rusqlite::Error) -> Self {
        ErrorCode::Internal.because(format!("queue store: {error}"))
    }
}

// Requests.

/// `GetMetricData` of CloudWatch.
#[derive(Deserialize)]
pub(super) struct MetricDataRequest {
    #[serde(rename = "MetricDataQueries")]
    pub queries: Vec<MetricDataQuery>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MetricDataQuery {
    pub id: String,
    #[serde(rename = "MetricStat")]
    pub stat: MetricStat,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MetricStat {
    metric: Metric,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metric {
    namespace: String,
    metric_name: String,
    dimensions: Vec<Dimension>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Dimension {
    name: String,
    value: String,
}

impl MetricStat {
    /// The queue whose age of the oldest message this asks for.
    pub(super) fn queue_of_age(&self) -> Option<&str> {
        let Metric { namespace, metric_name, dimensions } = &self.metric;
        match dimensions.as_slice() {
            [one]
                if namespace == "AWS/SQS"
                    && metric_name == "ApproximateAgeOfOldestMessage"
                    && one.name == "QueueName" =>
            {
                Some(&one.value)
            }
            _ => None,
        }
    }
}

/// `{"QueueUrl":"http://127.0.0.1:9324/000000000000/invoice-paid"}`. Some actions add attribute names or
/// attributes.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct QueueRequest {
    pub queue_url: String,
    pub attribute_names: Vec<String>,
    pub attributes: BTreeMap<String, String>,
}

/// `{"QueueName":"invoice-paid","Attributes":{"VisibilityTimeout":"30"}}`. Tags are ignored.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct QueueNameRequest {
    pub queue_name: String,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ListQueuesRequest {
    pub queue_name_prefix: String,
    pub max_results: Option<i64>,
    pub next_token: Option<String>,
}

/// `{"QueueUrl":"...","MessageBody":"...","MessageAttributes":{"k":{"DataType":"String","StringValue":"v"}}}`;
/// in a batch with an `Id` instead of the URL.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct SendRequest {
    pub queue_url: String,
    pub id: String,
    pub message_body: String,
    pub delay_seconds: Option<i64>,
    pub message_attributes: BTreeMap<String, MessageAttribute>,
    pub message_system_attributes: BTreeMap<String, MessageAttribute>,
    pub message_group_id: Option<String>,
    pub message_deduplication_id: Option<String>,
}

/// `{"QueueUrl":"...","ReceiptHandle":"...","VisibilityTimeout":300}`: deletes a message or
/// changes its visibility, also as an entry of a batch.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ReceiptRequest {
    pub queue_url: String,
    pub id: String,
    pub receipt_handle: String,
    pub visibility_timeout: Option<i64>,
}

/// `{"QueueUrl":"...","Entries":[...]}`
#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct BatchRequest<T> {
    pub queue_url: String,
    pub entries: Vec<T>,
}

impl<T> Default for BatchRequest<T> {
    fn default() -> Self {
        Self { queue_url: String::new(), entries: Vec::new() }
    }
}

/// `{"QueueUrl":"...","MaxNumberOfMessages":10,"WaitTimeSeconds":20,"MessageAttributeNames":["All"]}`
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ReceiveRequest {
    pub queue_url: String,
    pub attribute_names: Vec<String>,
    pub message_system_attribute_names: Vec<String>,
    pub message_attribute_names: Vec<String>,
    pub max_number_of_messages: Option<i64>,
    pub visibility_timeout: Option<i64>,
    pub wait_time_seconds: Option<i64>,
}

/// `{"SourceArn":"arn:aws:sqs:us-east-1:000000000000:dead-letter"}`: starts a redrive, or lists
/// the redrives.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct MoveTaskRequest {
    pub source_arn: String,
    pub destination_arn: Option<String>,
    pub max_results: Option<i64>,
}

/// `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead-letter","maxReceiveCount":4}`. The number
/// may also be text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedrivePolicy {
    dead_letter_target_arn: String,
    max_receive_count: Value,
}

/// `{"DataType":"Number","StringValue":"7"}` or `{"DataType":"Binary","BinaryValue":"AQI="}`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct MessageAttribute {
    pub data_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string_value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_value: Option<Blob>,
}

impl MessageAttribute {
    pub(super) fn is_binary(&self) -> bool {
        self.data_type.split('.').next() == Some("Binary")
    }

    pub(super) fn value(&self) -> &[u8] {
        let text = self.string_value.as_deref().unwrap_or_default();
        if self.is_binary() {
            self.binary_value.as_ref().map_or(&[], |blob| &blob.0)
        } else {
            text.as_bytes()
        }
    }

    fn check(&self, name: &str) -> Result<(), SqsError> {
        let wrong = |why: &str| {
            ErrorCode::InvalidParameterValue.because(format!("Message (user) attribute '{name}' {why}"))
        };
        let shape = (1..=256).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        let lower = name.to_ascii_lowercase();
        if !shape || name.starts_with('.') || name.ends_with('.') || name.contains("..") {
            return Err(wrong("has a name that is not 1 to 256 of A-Z a-z 0-9 _ - and single dots inside."));
        }
        if lower.starts_with("aws.") || lower.starts_with("amazon.") {
            return Err(wrong("has a name that starts with a reserved prefix: AWS. or Amazon."));
        }
        let kind = self.data_type.split('.').next().unwrap_or_default();
        if !["Binary", "Number", "String"].contains(&kind) || self.data_type.len() > 256 {
            return Err(wrong(
                "has an invalid type. You must use only the following supported type prefixes: Binary, Number, String.",
            ));
        }
        if self.value().is_empty() {
            return Err(wrong(&format!("must contain a non-empty value of type '{kind}'.")));
        }
        if kind == "Number"
            && !self.string_value.as_deref().unwrap_or_default().parse::<f64>().is_ok_and(f64::is_finite)
        {
            return Err(wrong("must contain a number: its value could not be parsed."));
        }
        check_characters(self.string_value.as_deref().unwrap_or_default())
    }
}

/// Bytes, as base64 in JSON.
#[derive(Clone, Debug)]
pub(super) struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map(Self).map_err(de::Error::custom)
    }
}

// Answers.

/// `{"MessageId":"...","MD5OfMessageBody":"...","MD5OfMessageAttributes":"..."}`. In a
/// batch it has an `Id`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SendResult {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub message_id: String,
    #[serde(rename = "MD5OfMessageBody")]
    pub md5_of_body: String,
    #[serde(rename = "MD5OfMessageAttributes", skip_serializing_if = "Option::is_none")]
    pub md5_of_attributes: Option<String>,
    #[serde(rename = "MD5OfMessageSystemAttributes", skip_serializing_if = "Option::is_none")]
    pub md5_of_system_attributes: Option<String>,
}

/// `{"MessageId":"...","ReceiptHandle":"...","MD5OfBody":"...","Body":"...","Attributes":{"ApproximateReceiveCount":"1"}}`
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReceivedMessage {
    pub message_id: String,
    pub receipt_handle: String,
    #[serde(rename = "MD5OfBody")]
    pub md5_of_body: String,
    pub body: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    #[serde(rename = "MD5OfMessageAttributes", skip_serializing_if = "Option::is_none")]
    pub md5_of_attributes: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub message_attributes: BTreeMap<String, MessageAttribute>,
}

/// `{"Successful":[{"Id":"a"}],"Failed":[{"Id":"b","Code":"...","Message":"...","SenderFault":true}]}`
pub(super) fn batch_answer<T: Serialize>(results: Vec<(String, Result<T, SqsError>)>) -> Value {
    let (mut successful, mut failed) = (Vec::new(), Vec::new());
    for (id, result) in results {
        match result {
            Ok(done) => successful.push(json!(done)),
            Err(error) => failed.push(error.entry(id)),
        }
    }
    json!({ "Successful": successful, "Failed": failed })
}

// Checks.

/// The value of a required text.
pub(super) fn required<'a>(name: &str, value: &'a str) -> Result<&'a str, SqsError> {
    if value.is_empty() {
        return Err(
            ErrorCode::MissingParameter.because(format!("The request must contain the parameter {name}."))
        );
    }
    Ok(value)
}

/// The value of an optional number. It must be in a closed range.
pub(super) fn between(
    name: &str,
    value: Option<i64>,
    default: i64,
    min: i64,
    max: i64,
) -> Result<i64, SqsError> {
    let value = value.unwrap_or(default);
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    let why = format!(
        "Value {value} for parameter {name} is invalid. Reason: Must be between {min} and {max}, if provided."
    );
    Err(ErrorCode::InvalidParameterValue.because(why))
}

/// Checks the name of a queue: 1 to 80 letters, digits, hyphens and underscores. FIFO queues (`.fifo`) are
/// not supported.
pub(super) fn check_queue_name(name: &str) -> Result<(), SqsError> {
    required("QueueName", name)?;
    if name.ends_with(".fifo") {
        return Err(ErrorCode::UnsupportedOperation
            .because("FIFO queues are not supported by this endpoint: it has standard queues only."));
    }
    if name.len() > 80 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
        let why = "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length";
        return Err(ErrorCode::InvalidParameterValue.because(why));
    }
    Ok(())
}

/// The default of a queue attribute that is a number.
pub(super) fn default_number(name: &str) -> i64 {
    NUMBERS.iter().find(|(known, ..)| *known == name).map_or(0, |(_, default, ..)| *default)
}

/// The names of the queue attributes that are numbers.
pub(super) fn number_names() -> impl Iterator<Item = &'static str> {
    NUMBERS.iter().map(|(name, ..)| *name)
}

/// Checks queue attributes: numbers must be in range, policies well formed. An empty policy means "none".
pub(super) fn check_queue_attributes(
    given: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, SqsError> {
    let mut kept = BTreeMap::new();
    for (name, value) in given {
        let wrong =
            || ErrorCode::InvalidAttributeValue.because(format!("Invalid value for the parameter {name}."));
        let value = if let Some((.., min, max)) = NUMBERS.iter().find(|(known, ..)| *known == name) {
            let number = value.parse::<i64>().ok().filter(|number| (*min..=*max).contains(number));
            number.ok_or_else(wrong)?.to_string()
        } else {
            match name.as_str() {
                "RedrivePolicy" if !value.is_empty() => {
                    let (target, max_receives) = parse_redrive_policy(&value)?;
                    json!({ "deadLetterTargetArn": target, "maxReceiveCount": max_receives }).to_string()
                }
                "Policy" | "RedriveAllowPolicy" if !value.is_empty() => {
                    serde_json::from_str::<BTreeMap<String, Value>>(&value).map_err(|_| wrong())?;
                    value
                }
                "RedrivePolicy" | "Policy" | "RedriveAllowPolicy" => value,
                "KmsMasterKeyId" | "KmsDataKeyReusePeriodSeconds" | "SqsManagedSseEnabled" => value,
                "FifoQueue" | "ContentBasedDeduplication" | "DeduplicationScope" | "FifoThroughputLimit" => {
                    let why = format!(
                        "{name}: FIFO queues are not supported by this endpoint: it has standard queues only."
                    );
                    return Err(ErrorCode::UnsupportedOperation.because(why));
                }
                _ => {
                    return Err(ErrorCode::InvalidAttributeName.because(format!("Unknown Attribute {name}.")));
                }
            }
        };
        kept.insert(name, value);
    }
    Ok(kept)
}

/// The ARN of the dead-letter queue, and the maximum number of receives before a message moves there.
pub(super) fn parse_redrive_policy(text: &str) -> Result<(String, i64), SqsError> {
    let wrong = |why: &str| {
        ErrorCode::InvalidParameterValue
            .because(format!("Value {text} for parameter RedrivePolicy is invalid. Reason: {why}"))
    };
    let policy: RedrivePolicy = serde_json::from_str(text)
        .map_err(|_| wrong("It must be a JSON object with deadLetterTargetArn and maxReceiveCount."))?;
    let max_receives = policy
        .max_receive_count
        .as_i64()
        .or_else(|| policy.max_receive_count.as_str().and_then(|text| text.parse().ok()));
    let max_receives = max_receives
        .filter(|count| (1..=1_000).contains(count))
        .ok_or_else(|| wrong("maxReceiveCount must be between 1 and 1000."))?;
    if !policy.dead_letter_target_arn.starts_with("arn:aws") {
        return Err(wrong("Invalid value for deadLetterTargetArn."));
    }
    Ok((policy.dead_letter_target_arn, max_receives))
}

/// Checks the entries of a batch: 1 to 10, with distinct ids of 1 to 80 letters, digits, hyphens and
/// underscores.
pub(super) fn check_batch<'a>(ids: impl ExactSizeIterator<Item = &'a String>) -> Result<(), SqsError> {
    let count = ids.len();
    if count == 0 {
        return Err(
            ErrorCode::EmptyBatchRequest.because("There should be at least one entry in the request.")
        );
    }
    if count > 10 {
        return Err(ErrorCode::TooManyEntries
            .because(format!("Maximum number of entries per request are 10. You have sent {count}.")));
    }
    let mut seen = BTreeSet::new();
    for id in ids {
        if !(1..=80).contains(&id.len())
            || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        {
            let why = "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.";
            return Err(ErrorCode::InvalidBatchEntryId.because(why));
        }
        if !seen.insert(id) {
            return Err(ErrorCode::BatchEntryIdsNotDistinct.because(format!("Id {id} repeated.")));
        }
    }
    Ok(())
}

impl SendRequest {
    /// The size that counts for the limits.
    pub(super) fn bytes(&self) -> usize {
        let attribute = |(name, value): (&String, &MessageAttribute)| {
            name.len() + value.data_type.len() + value.value().len()
        };
        self.message_body.len() + self.message_attributes.iter().map(attribute).sum::<usize>()
    }

    /// Checks a message as AWS does, for a standard queue with a maximum message size.
    pub(super) fn check(&self, max_bytes: i64) -> Result<(), SqsError> {
        required("MessageBody", &self.message_body)?;
        if !usize::try_from(max_bytes).is_ok_and(|max_bytes| self.bytes() <= max_bytes) {
            let why = format!(
                "One or more parameters are invalid. Reason: Message must be shorter than {max_bytes} bytes."
            );
            return Err(ErrorCode::InvalidParameterValue.because(why));
        }
        if let Some(id) = &self.message_deduplication_id {
            let why = format!(
                "Value {id} for parameter MessageDeduplicationId is invalid. Reason: The request include parameter that is not valid for this queue type."
            );
            return Err(ErrorCode::InvalidParameterValue.because(why));
        }
        check_characters(&self.message_body)?;
        let count = self.message_attributes.len();
        if count > 10 {
            let why = format!("Number of message attributes [{count}] exceeds the allowed maximum [10].");
            return Err(ErrorCode::InvalidParameterValue.because(why));
        }
        for (name, attribute) in &self.message_system_attributes {
            if name != "AWSTraceHeader" || attribute.data_type != "String" || attribute.value().is_empty() {
                let why = format!(
                    "Message system attribute '{name}' is invalid: only AWSTraceHeader, a String, can be sent."
                );
                return Err(ErrorCode::InvalidParameterValue.because(why));
            }
        }
        self.message_attributes.iter().try_for_each(|(name, attribute)| attribute.check(name))
    }
}

impl ReceiveRequest {
    /// The requested system attributes. SQS has two names for the list, an old and a new one.
    pub(super) fn system_names(&self) -> Result<BTreeSet<&str>, SqsError> {
        let asked: BTreeSet<&str> = self
            .attribute_names
            .iter()
            .chain(&self.message_system_attribute_names)
            .map(String::as_str)
            .collect();
        if let Some(name) = asked.iter().find(|name| **name != "All" && !SYSTEM_ATTRIBUTES.contains(name)) {
            return Err(ErrorCode::InvalidAttributeName.because(format!("Unknown Attribute {name}.")));
        }
        Ok(if asked.contains("All") { SYSTEM_ATTRIBUTES.into() } else { asked })
    }

    /// Whether a message attribute was requested: by its name, by `prefix.*`, or by `All`.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.message_attribute_names.iter().any(|asked| match asked.strip_suffix(".*") {
            Some(prefix) => name.starts_with(prefix),
            None => asked == "All" || asked == name,
        })
    }
}

/// SQS accepts the characters of XML 1.0: of the control characters only tab, line feed and carriage return,
/// and neither U+FFFE nor U+FFFF.
fn check_characters(text: &str) -> Result<(), SqsError> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..);
    match text.chars().find(|c| !allowed(*c)) {
        None => Ok(()),
        Some(c) => Err(ErrorCode::InvalidMessageContents.because(format!(
            "Invalid characters found: #x{:X}. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF",
            u32::from(c)
        ))),
    }
}
