//! The shapes of the AWS JSON 1.0 protocol, its faults, and the checks AWS makes on a request before it
//! touches a queue.
//!
//! **Invariant:** nothing here reads a clock or the store.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};

use super::Answer;

/// The most bytes a message may have, and all messages of a batch together: body, attribute names, types and
/// values.
pub(super) const MAX_BYTES: usize = 1_048_576;

/// The queue attributes that are numbers: name, default, least, most.
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

// ----------------------------------------------------------------------------------------------------------------------------
// faults

/// A refused request: what AWS calls it, and a sentence for the person who reads it.
#[derive(Debug)]
pub(super) struct Fault {
    code: Code,
    message: String,
}

/// AWS's names for what can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
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

impl Code {
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

    /// This fault, with its sentence.
    pub(super) fn because(self, message: impl Into<String>) -> Fault {
        Fault { code: self, message: message.into() }
    }
}

impl Fault {
    /// The HTTP answer: `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does
    /// not exist."}` and the header `AWS.SimpleQueueService.NonExistentQueue;Sender`.
    pub(super) fn answer(self) -> Answer {
        let (shape, code, status) = self.code.on_the_wire();
        let body = json!({ "__type": format!("com.amazonaws.sqs#{shape}"), "message": self.message });
        let blame = if status < 500 { "Sender" } else { "Receiver" };
        (status, body.to_string().into_bytes(), Some(format!("{code};{blame}")))
    }

    /// The same as one entry of a batch answer's `Failed`.
    fn entry(self, id: String) -> Value {
        let (_, code, status) = self.code.on_the_wire();
        json!({ "Id": id, "Code": code, "Message": self.message, "SenderFault": status < 500 })
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Code::Internal.because(format!("queue store: {error}"))
    }
}

// --------------------------------------------------------------------------------------------------------------------------
// requests

/// `{"QueueUrl":"http://127.0.0.1:9324/000000000000/invoice-paid"}` and the two lists some of its users
/// carry.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct OnQueue {
    pub queue_url: String,
    pub attribute_names: Vec<String>,
    pub attributes: BTreeMap<String, String>,
}

/// `{"QueueName":"invoice-paid","Attributes":{"VisibilityTimeout":"30"}}`; tags are read over.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct NamedQueue {
    pub queue_name: String,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ListQueues {
    pub queue_name_prefix: String,
    pub max_results: Option<i64>,
    pub next_token: Option<String>,
}

/// `{"QueueUrl":"...","MessageBody":"...","MessageAttributes":{"k":{"DataType":"String","StringValue":"v"}}}`;
/// in a batch the same with an `Id` in place of the url.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Outgoing {
    pub queue_url: String,
    pub id: String,
    pub message_body: String,
    pub delay_seconds: Option<i64>,
    pub message_attributes: BTreeMap<String, MessageAttribute>,
    pub message_system_attributes: BTreeMap<String, MessageAttribute>,
    pub message_group_id: Option<String>,
    pub message_deduplication_id: Option<String>,
}

/// `{"QueueUrl":"...","ReceiptHandle":"...","VisibilityTimeout":300}`: what deletes or hides a message, alone
/// or as an entry of a batch.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Receipt {
    pub queue_url: String,
    pub id: String,
    pub receipt_handle: String,
    pub visibility_timeout: Option<i64>,
}

/// `{"QueueUrl":"...","Entries":[...]}`
#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Batch<T> {
    pub queue_url: String,
    pub entries: Vec<T>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { queue_url: String::new(), entries: Vec::new() }
    }
}

/// `{"QueueUrl":"...","MaxNumberOfMessages":10,"WaitTimeSeconds":20,"MessageAttributeNames":["All"]}`
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Receive {
    pub queue_url: String,
    pub attribute_names: Vec<String>,
    pub message_system_attribute_names: Vec<String>,
    pub message_attribute_names: Vec<String>,
    pub max_number_of_messages: Option<i64>,
    pub visibility_timeout: Option<i64>,
    pub wait_time_seconds: Option<i64>,
}

/// `{"SourceArn":"arn:aws:sqs:us-east-1:000000000000:dead-letter"}`; also the request that lists such tasks.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct MoveTask {
    pub source_arn: String,
    pub destination_arn: Option<String>,
    pub max_results: Option<i64>,
}

/// `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead-letter","maxReceiveCount":4}`, with the
/// number as text as well.
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

    fn check(&self, name: &str) -> Result<(), Fault> {
        let wrong = |why: &str| {
            Code::InvalidParameterValue.because(format!("Message (user) attribute '{name}' {why}"))
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

/// Bytes, in base64 on the wire.
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

// ---------------------------------------------------------------------------------------------------------------------------
// answers

/// `{"MessageId":"...","MD5OfMessageBody":"...","MD5OfMessageAttributes":"..."}`, with its `Id` in a batch.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Sent {
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
pub(super) struct Received {
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
pub(super) fn batch_answer<T: Serialize>(results: Vec<(String, Result<T, Fault>)>) -> Value {
    let (mut successful, mut failed) = (Vec::new(), Vec::new());
    for (id, result) in results {
        match result {
            Ok(done) => successful.push(json!(done)),
            Err(fault) => failed.push(fault.entry(id)),
        }
    }
    json!({ "Successful": successful, "Failed": failed })
}

// ----------------------------------------------------------------------------------------------------------------------------
// checks

/// The value of a required text.
pub(super) fn required<'a>(name: &str, value: &'a str) -> Result<&'a str, Fault> {
    if value.is_empty() {
        return Err(Code::MissingParameter.because(format!("The request must contain the parameter {name}.")));
    }
    Ok(value)
}

/// The value of an optional number in a closed range.
pub(super) fn between(
    name: &str,
    value: Option<i64>,
    default: i64,
    least: i64,
    most: i64,
) -> Result<i64, Fault> {
    let value = value.unwrap_or(default);
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    let why = format!(
        "Value {value} for parameter {name} is invalid. Reason: Must be between {least} and {most}, if provided."
    );
    Err(Code::InvalidParameterValue.because(why))
}

/// A queue's name: 1 to 80 letters, digits, hyphens and underscores. A name that ends in `.fifo` asks for
/// what is not here.
pub(super) fn check_queue_name(name: &str) -> Result<(), Fault> {
    required("QueueName", name)?;
    if name.ends_with(".fifo") {
        return Err(Code::UnsupportedOperation
            .because("FIFO queues are not supported by this endpoint: it has standard queues only."));
    }
    if name.len() > 80 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
        let why = "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length";
        return Err(Code::InvalidParameterValue.because(why));
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

/// Queue attributes as they are kept: numbers in range, policies well formed. An empty policy means "none".
pub(super) fn check_queue_attributes(
    given: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut kept = BTreeMap::new();
    for (name, value) in given {
        let wrong =
            || Code::InvalidAttributeValue.because(format!("Invalid value for the parameter {name}."));
        let value = if let Some((.., least, most)) = NUMBERS.iter().find(|(known, ..)| *known == name) {
            let number = value.parse::<i64>().ok().filter(|number| (*least..=*most).contains(number));
            number.ok_or_else(wrong)?.to_string()
        } else {
            match name.as_str() {
                "RedrivePolicy" if !value.is_empty() => {
                    let (target, most) = parse_redrive_policy(&value)?;
                    json!({ "deadLetterTargetArn": target, "maxReceiveCount": most }).to_string()
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
                    return Err(Code::UnsupportedOperation.because(why));
                }
                _ => return Err(Code::InvalidAttributeName.because(format!("Unknown Attribute {name}."))),
            }
        };
        kept.insert(name, value);
    }
    Ok(kept)
}

/// The dead-letter queue's ARN and how often a message may be received before it moves there.
pub(super) fn parse_redrive_policy(text: &str) -> Result<(String, i64), Fault> {
    let wrong = |why: &str| {
        Code::InvalidParameterValue
            .because(format!("Value {text} for parameter RedrivePolicy is invalid. Reason: {why}"))
    };
    let policy: RedrivePolicy = serde_json::from_str(text)
        .map_err(|_| wrong("It must be a JSON object with deadLetterTargetArn and maxReceiveCount."))?;
    let most = policy
        .max_receive_count
        .as_i64()
        .or_else(|| policy.max_receive_count.as_str().and_then(|text| text.parse().ok()));
    let most = most
        .filter(|most| (1..=1_000).contains(most))
        .ok_or_else(|| wrong("maxReceiveCount must be between 1 and 1000."))?;
    if !policy.dead_letter_target_arn.starts_with("arn:aws") {
        return Err(wrong("Invalid value for deadLetterTargetArn."));
    }
    Ok((policy.dead_letter_target_arn, most))
}

/// A batch's entries: 1 to 10, with distinct ids of 1 to 80 letters, digits, hyphens and underscores.
pub(super) fn check_batch<'a>(ids: impl ExactSizeIterator<Item = &'a String>) -> Result<(), Fault> {
    let count = ids.len();
    if count == 0 {
        return Err(Code::EmptyBatchRequest.because("There should be at least one entry in the request."));
    }
    if count > 10 {
        return Err(Code::TooManyEntries
            .because(format!("Maximum number of entries per request are 10. You have sent {count}.")));
    }
    let mut seen = BTreeSet::new();
    for id in ids {
        if !(1..=80).contains(&id.len())
            || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        {
            let why = "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.";
            return Err(Code::InvalidBatchEntryId.because(why));
        }
        if !seen.insert(id) {
            return Err(Code::BatchEntryIdsNotDistinct.because(format!("Id {id} repeated.")));
        }
    }
    Ok(())
}

impl Outgoing {
    /// What counts towards the size limits.
    pub(super) fn bytes(&self) -> usize {
        let attribute = |(name, value): (&String, &MessageAttribute)| {
            name.len() + value.data_type.len() + value.value().len()
        };
        self.message_body.len() + self.message_attributes.iter().map(attribute).sum::<usize>()
    }

    /// Refuses what AWS refuses of a message for a standard queue that takes up to `most` bytes.
    pub(super) fn check(&self, most: i64) -> Result<(), Fault> {
        required("MessageBody", &self.message_body)?;
        if !usize::try_from(most).is_ok_and(|most| self.bytes() <= most) {
            let why = format!(
                "One or more parameters are invalid. Reason: Message must be shorter than {most} bytes."
            );
            return Err(Code::InvalidParameterValue.because(why));
        }
        if let Some(id) = &self.message_deduplication_id {
            let why = format!(
                "Value {id} for parameter MessageDeduplicationId is invalid. Reason: The request include parameter that is not valid for this queue type."
            );
            return Err(Code::InvalidParameterValue.because(why));
        }
        check_characters(&self.message_body)?;
        let count = self.message_attributes.len();
        if count > 10 {
            let why = format!("Number of message attributes [{count}] exceeds the allowed maximum [10].");
            return Err(Code::InvalidParameterValue.because(why));
        }
        for (name, attribute) in &self.message_system_attributes {
            if name != "AWSTraceHeader" || attribute.data_type != "String" || attribute.value().is_empty() {
                let why = format!(
                    "Message system attribute '{name}' is invalid: only AWSTraceHeader, a String, can be sent."
                );
                return Err(Code::InvalidParameterValue.because(why));
            }
        }
        self.message_attributes.iter().try_for_each(|(name, attribute)| attribute.check(name))
    }
}

impl Receive {
    /// The system attributes asked for, by either of the two names the list has had.
    pub(super) fn system_names(&self) -> Result<BTreeSet<&str>, Fault> {
        let asked: BTreeSet<&str> = self
            .attribute_names
            .iter()
            .chain(&self.message_system_attribute_names)
            .map(String::as_str)
            .collect();
        if let Some(name) = asked.iter().find(|name| **name != "All" && !SYSTEM_ATTRIBUTES.contains(name)) {
            return Err(Code::InvalidAttributeName.because(format!("Unknown Attribute {name}.")));
        }
        Ok(if asked.contains("All") { SYSTEM_ATTRIBUTES.into() } else { asked })
    }

    /// Whether a message attribute was asked for: by its name, by `prefix.*`, or as one of `All`.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.message_attribute_names.iter().any(|asked| match asked.strip_suffix(".*") {
            Some(prefix) => name.starts_with(prefix),
            None => asked == "All" || asked == name,
        })
    }
}

/// SQS takes what XML 1.0 takes: no control characters but tab, line feed and carriage return, and no U+FFFE
/// or U+FFFF.
fn check_characters(text: &str) -> Result<(), Fault> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..);
    match text.chars().find(|c| !allowed(*c)) {
        None => Ok(()),
        Some(c) => Err(Code::InvalidMessageContents.because(format!(
            "Invalid characters found: #x{:X}. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF",
            u32::from(c)
        ))),
    }
}
