//! SQS: sends events from the webhook to the workers, and delays the next attempt of a failed event.
//!
//! The message body is the event exactly as Stripe sent it, unless `encoding` says otherwise. The message
//! attributes are:
//!
//! | attribute | value |
//! |---|---|
//! | `received_at` (Number) | unix ms at which the webhook received the event |
//! | `mode` (String) | mode of the secret that verified the event: `test`, `live`, `any` |
//! | `encoding` (String) | absent, or `packed+base64`: the body is compressed, see [`crate::payload`] |
//!
//! A body is compressed when it exceeds SQS's limit of 1 MiB or has characters that SQS does not accept.
//!
//! **Invariant:** a worker refuses a message without `received_at` and `mode`, because the webhook always
//! sets both.

use std::sync::{Arc, LazyLock};

use aws_lambda_events::event::sqs::SqsMessage;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, MessageAttributeValue, QueueAttributeName,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::payload;
use crate::sdk::PREWARM_TIMEOUT;
use tallyhook_core::signature::SecretMode;

/// SQS limits body and attributes together to 1 MiB. The attributes take less than 300 bytes.
const MAX_BYTES: usize = 1_048_576 - 300;
const PACKED: &str = "packed+base64";

/// A verified event on its way to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The event as Stripe sent it.
    pub body: Vec<u8>,
    /// Unix ms at which the webhook received it.
    pub received_ms: i64,
    /// Mode of the secret that verified it.
    pub mode: SecretMode,
}

/// Why an event was not queued.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The event is too large for one message, even when compressed. The webhook answers 413.
    #[error("the event does not fit into one message, even when compressed")]
    TooLarge,
    /// SQS did not accept it. The webhook answers 503 and Stripe sends the event again.
    #[error("sqs SendMessage: {0}")]
    Unavailable(String),
}

/// Why a message is not an event from the webhook.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// An attribute is missing or invalid.
    #[error("message attribute {0} is missing or wrong; only the webhook may send here")]
    Attribute(&'static str),
    /// The body is missing, or it cannot be decoded as `encoding` says.
    #[error("the message body is missing or not encoded as it says")]
    Body,
}

/// The queues of the system, reached through one client.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Arc<LazyLock<Client, Box<dyn FnOnce() -> Client + Send>>>,
}

impl Queue {
    /// Uses this client.
    pub fn new(client: Client) -> Self {
        Self::later(move || client)
    }

    /// Creates the client at the first call. A worker rarely calls SQS, and creating a client takes a tenth
    /// of its init.
    pub fn later(make: impl FnOnce() -> Client + Send + 'static) -> Self {
        Self { client: Arc::new(LazyLock::new(Box::new(make))) }
    }

    /// Sends an event to a worker's queue: exactly one `SendMessage`.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&self, queue_url: &str, envelope: Envelope) -> Result<(), SendError> {
        let received = envelope.received_ms.to_string();
        let (body, encoding) = encode(envelope.body)?;
        let mut request = self
            .client
            .send_message()
            .queue_url(queue_url)
            .message_body(body)
            .message_attributes("received_at", attribute("Number", &received)?)
            .message_attributes("mode", attribute("String", envelope.mode.as_str())?);
        if let Some(encoding) = encoding {
            request = request.message_attributes("encoding", attribute("String", encoding)?);
        }
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(SendError::Unavailable(code(&error))),
        }
    }

    /// Opens the connection with one cheap call. Called in a function's init, where the CPU is not limited,
    /// so that the first event does not wait for the TLS handshake. Errors are ignored: the function starts
    /// anyway.
    pub async fn prewarm(&self, queue_url: &str) {
        let call = self
            .client
            .get_queue_attributes()
            .queue_url(queue_url)
            .attribute_names(QueueAttributeName::QueueArn)
            .send();
        let _ = tokio::time::timeout(PREWARM_TIMEOUT, call).await;
    }

    /// How many messages of a queue are visible, in flight, and delayed.
    ///
    /// # Errors
    /// The text of the SDK's error.
    pub async fn depth(&self, queue_url: &str) -> Result<[u64; 3], String> {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let request =
            self.client.get_queue_attributes().queue_url(queue_url).set_attribute_names(Some(names.to_vec()));
        let answer = request
            .send()
            .await
            .map_err(|error| aws_smithy_types::error::display::DisplayErrorContext(error).to_string())?;
        let read = |name| answer.attributes().and_then(|all| all.get(name)?.parse().ok()).unwrap_or(0);
        Ok(names.each_ref().map(read))
    }

    /// Sends plain text, such as an alert.
    ///
    /// # Errors
    /// [`SendError::Unavailable`].
    pub async fn send_text(&self, queue_url: &str, body: String) -> Result<(), SendError> {
        match self.client.send_message().queue_url(queue_url).message_body(body).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(SendError::Unavailable(code(&error))),
        }
    }

    /// Hides failed messages until their next attempt. If this call fails, SQS redelivers the message when
    /// its visibility timeout ends, so only the time of the next attempt changes. The caller logs the error.
    ///
    /// # Errors
    /// The error code of SQS for the whole batch, or the error for the first message it refused.
    pub async fn delay(&self, queue_url: &str, messages: &[(String, u32)]) -> Result<(), String> {
        let mut entries = Vec::new();
        for (place, (receipt_handle, seconds)) in messages.iter().enumerate() {
            let seconds = i32::try_from(*seconds).unwrap_or(43_200);
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(place.to_string())
                .receipt_handle(receipt_handle)
                .visibility_timeout(seconds)
                .build()
                .map_err(|error| error.to_string())?;
            entries.push(entry);
        }
        if entries.is_empty() {
            return Ok(());
        }
        match self
            .client
            .change_message_visibility_batch()
            .queue_url(queue_url)
            .set_entries(Some(entries))
            .send()
            .await
        {
            Ok(answer) => match answer.failed().first() {
                Some(failed) => Err(format!("{}: {}", failed.code(), failed.message().unwrap_or_default())),
                None => Ok(()),
            },
            Err(error) => Err(code(&error)),
        }
    }
}

/// The error code of SQS; never the request.
fn code<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> String {
    error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or("no answer").to_owned()
}

fn attribute(kind: &str, value: &str) -> Result<MessageAttributeValue, SendError> {
    MessageAttributeValue::builder()
        .data_type(kind)
        .string_value(value)
        .build()
        .map_err(|error| SendError::Unavailable(error.to_string()))
}

/// The message body and its encoding; `None` when the body is the event's own text.
fn encode(body: Vec<u8>) -> Result<(String, Option<&'static str>), SendError> {
    let body = match String::from_utf8(body) {
        Ok(text) if text.len() <= MAX_BYTES && !text.contains(['\u{fffe}', '\u{ffff}']) => {
            return Ok((text, None));
        }
        Ok(text) => text.into_bytes(),
        Err(error) => error.into_bytes(),
    };
    let packed = STANDARD.encode(payload::pack(&body));
    if packed.len() > MAX_BYTES {
        return Err(SendError::TooLarge);
    }
    Ok((packed, Some(PACKED)))
}

impl Envelope {
    /// Reads a message of a Lambda SQS event.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn read(message: &SqsMessage) -> Result<Self, EnvelopeError> {
        let attribute = |name: &'static str| {
            message.message_attributes.get(name).and_then(|value| value.string_value.as_deref())
        };
        let received = attribute("received_at")
            .and_then(|text| text.parse().ok())
            .ok_or(EnvelopeError::Attribute("received_at"))?;
        let mode =
            attribute("mode").and_then(SecretMode::from_text).ok_or(EnvelopeError::Attribute("mode"))?;
        let text = message.body.as_deref().ok_or(EnvelopeError::Body)?;
        let body = match attribute("encoding") {
            None => text.as_bytes().to_vec(),
            Some(PACKED) => STANDARD
                .decode(text)
                .ok()
                .and_then(|packed| payload::unpack(&packed))
                .ok_or(EnvelopeError::Body)?,
            Some(_) => return Err(EnvelopeError::Attribute("encoding")),
        };
        Ok(Self { body, received_ms: received, mode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_body_is_sent_as_text_and_a_large_or_odd_one_compressed() {
        assert_eq!(encode(b"{}".to_vec()).unwrap(), ("{}".to_owned(), None));
        let large = format!("{{\"filler\":\"{}\"}}", "abc ".repeat(500_000)).into_bytes();
        for body in [large, "{\"name\":\"\u{ffff}\"}".as_bytes().to_vec()] {
            let (text, encoding) = encode(body.clone()).unwrap();
            assert_eq!(encoding, Some(PACKED));
            assert_eq!(payload::unpack(&STANDARD.decode(text).unwrap()).unwrap(), body);
        }
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(b'!'..=b'~')).take(2_000_000).collect();
        assert!(matches!(encode(noise), Err(SendError::TooLarge)));
    }
}
