//! `notify`: posts alerts from the queue `tallyhook-notify` to Slack and Discord.
//!
//! After an alert is posted, alerts with the same key are suppressed for a time; the next post says how
//! many. A post contains the alert's typed fields and our own texts, shortened to the limits of the service
//! and with its markup escaped.
//!
//! SQS retries a post that fails. After the last attempt the alert is lost, and a log line reports it; the
//! event that caused it is still in the event log. **Invariant:** nothing waits for this function.
//!
//! A destination must be https on a public address ([`tallyhook_aws::http::AllowedAddresses`]), so that a
//! person who sets a URL cannot reach internal addresses.

use std::time::Duration;

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use http::Request;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::alerts::Alert;
use crate::config::NotifyConfig;
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::http::Http;
use tallyhook_aws::sdk;
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::timestamp::Timestamp;

/// The limit for one post.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of a field. Discord takes 1024, Slack 2000.
const MAX_VALUE: usize = 300;
/// Characters of the text. Slack takes 3000, Discord 4096.
const MAX_TEXT: usize = 2500;
/// Characters of the title. Slack takes 150, Discord 256.
const MAX_TITLE: usize = 140;

/// The function `notify`.
pub struct Notify {
    store: Store,
    http: Http,
    destinations: Vec<(Chat, String)>,
}

/// The chat service of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chat {
    Slack,
    Discord,
}

impl Chat {
    fn name(self) -> &'static str {
        match self {
            Self::Slack => "slack",
            Self::Discord => "discord",
        }
    }
}

impl Notify {
    /// Builds the function from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self::new(NotifyConfig::from_env(env)?, sdk::dynamodb(&sdk::sdk_config(env, "DYNAMODB")?)))
    }

    /// Builds the function with a given client.
    pub fn new(config: NotifyConfig, dynamodb: sdk::DynamoDb) -> Self {
        let urls = [(Chat::Slack, config.slack_url), (Chat::Discord, config.discord_url)];
        Self {
            store: Store::new(dynamodb, config.accounts_table, config.events_table),
            http: Http::allowing(config.allowed_addresses),
            destinations: urls.into_iter().filter_map(|(chat, url)| Some((chat, url?))).collect(),
        }
    }

    /// Posts the alerts of a batch and returns those that could not be posted.
    ///
    /// # Errors
    /// None; a failed alert is part of the answer.
    pub async fn handle(&self, batch: SqsEvent) -> Result<SqsBatchResponse, lambda_runtime::Error> {
        let mut response = SqsBatchResponse::default();
        for message in &batch.records {
            let Some(alert) = read(message.body.as_deref().unwrap_or_default()) else {
                warn!(message_id = message.message_id, "ALERT_UNREADABLE");
                continue;
            };
            if self.post(&alert, message, clock::now()).await.is_err() {
                let mut failure = BatchItemFailure::default();
                failure.item_identifier = message.message_id.clone().unwrap_or_default();
                response.batch_item_failures.push(failure);
            }
        }
        Ok(response)
    }

    /// Posts an alert to every destination that did not get the same one lately. `Err` when one refused it.
    async fn post(&self, alert: &Alert, message: &SqsMessage, now: Timestamp) -> Result<(), ()> {
        let key = alert.key();
        let mut failed = false;
        if let Alert::BadSignatures { refused, .. } = alert {
            self.note_bad_signatures(*refused, now).await;
        }
        for (chat, url) in &self.destinations {
            let id = message.message_id.as_deref().unwrap_or_default();
            let held = match self.claim(*chat, alert, id, now).await {
                Ok(Some(held)) => held,
                Ok(None) => {
                    info!(alert = key, to = chat.name(), "ALERT_HELD");
                    continue;
                }
                // Without the claim the alert may be posted twice, which is better than not at all.
                Err(error) => {
                    warn!(alert = key, error = error.to_string(), "ALERT_NOT_DEDUPLICATED");
                    0
                }
            };
            match self.post_to(*chat, url, alert, held, now).await {
                Ok(()) => {
                    info!(alert = key, to = chat.name(), "ALERT_POSTED");
                    self.note_posted(*chat, alert, id).await;
                }
                Err(error) => {
                    failed = true;
                    warn!(alert = key, to = chat.name(), error, "ALERT_NOT_POSTED");
                }
            }
        }
        if failed { Err(()) } else { Ok(()) }
    }

    async fn post_to(
        &self,
        chat: Chat,
        url: &str,
        alert: &Alert,
        held: u64,
        now: Timestamp,
    ) -> Result<(), String> {
        let body = match chat {
            Chat::Slack => slack(alert, held),
            Chat::Discord => discord(alert, held, now),
        };
        let request =
            Request::post(url).header("content-type", "application/json").header("user-agent", "tallyhook");
        let request = request.body(body.to_string()).map_err(|_| "the URL is not valid".to_owned())?;
        let answer = self.http.send(request, TIMEOUT).await.map_err(|error| error.to_string())?;
        // A redirect is a failure too: following it could lead to an address that was not checked.
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("status {}", answer.status().as_u16()))
        }
    }

    /// Claims the alert for a chat. Returns how many alerts with the same key were suppressed since the last
    /// post, or `None` when this one must be suppressed. A message that SQS redelivers keeps its claim; for a
    /// chat that has the alert already, it is suppressed.
    async fn claim(
        &self,
        chat: Chat,
        alert: &Alert,
        message_id: &str,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        let until = now.plus_seconds(alert.quiet_seconds());
        self.store.claim_alert(chat.name(), &alert.key(), message_id, until, now).await
    }

    /// Stores that this chat has the alert, so that it does not get it again when another chat's post is
    /// retried.
    async fn note_posted(&self, chat: Chat, alert: &Alert, message_id: &str) {
        if let Err(error) = self.store.note_posted(chat.name(), &alert.key(), message_id).await {
            warn!(alert = alert.key(), error = error.to_string(), "ALERT_NOT_DEDUPLICATED");
        }
    }

    /// Stores a burst of wrong signatures for `health`, because a refused request itself writes nothing.
    async fn note_bad_signatures(&self, refused: u32, now: Timestamp) {
        if let Err(error) = self.store.note_bad_signatures(refused, now).await {
            warn!(error = error.to_string(), "SIGNAL_NOT_WRITTEN");
        }
    }
}

/// Reads one of our alerts, or a CloudWatch alarm that EventBridge delivers.
fn read(body: &str) -> Option<Alert> {
    if let Ok(alert) = serde_json::from_str(body) {
        return Some(alert);
    }
    let event: Value = serde_json::from_str(body).ok()?;
    let detail = event
        .get("detail")
        .filter(|_| event.get("detail-type").is_some_and(|kind| kind == "CloudWatch Alarm State Change"))?;
    let name = detail.get("alarmName")?.as_str()?.to_owned();
    let reason = detail.pointer("/state/reason").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(Alert::Alarm { name, reason })
}

/// Removes control characters except line breaks, hides words that look like e-mail addresses, and shortens
/// the text to `max` characters.
fn clean(text: &str, max: usize) -> String {
    let words = text
        .split(' ')
        .map(|word| if word.contains('@') { "(withheld)" } else { word })
        .collect::<Vec<_>>()
        .join(" ");
    let shown: String = words.chars().filter(|c| !c.is_control() || *c == '\n').take(max).collect();
    if words.chars().count() > max { format!("{shown}…") } else { shown }
}

fn held_line(held: u64) -> Option<String> {
    (held > 0).then(|| format!("{held} more alerts like this one were suppressed since the last one."))
}

/// The body for Slack's incoming webhook. Notifications show `text`, the channel shows `blocks`. Slack
/// interprets only `&`, `<` and `>` in a text.
fn slack(alert: &Alert, held: u64) -> Value {
    let escape = |text: String| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let title = clean(&alert.title(), MAX_TITLE);
    let text = |text: String| json!({"type": "mrkdwn", "text": escape(text), "verbatim": true});
    let mut blocks = vec![
        json!({"type": "header", "text": {"type": "plain_text", "text": title.clone()}}),
        json!({"type": "section", "text": text(clean(&alert.advice(), MAX_TEXT))}),
    ];
    // A section has at most ten fields.
    let fields: Vec<Value> = alert
        .fields()
        .iter()
        .take(10)
        .map(|(name, value)| text(format!("*{name}*\n{}", clean(value, MAX_VALUE))))
        .collect();
    if !fields.is_empty() {
        blocks.push(json!({"type": "section", "fields": fields}));
    }
    if let Some(line) = held_line(held) {
        blocks.push(json!({"type": "context", "elements": [text(line)]}));
    }
    json!({"text": escape(title), "blocks": blocks})
}

/// The body for Discord's webhook. Mentions are switched off, Markdown is escaped.
fn discord(alert: &Alert, held: u64, now: Timestamp) -> Value {
    let escape = |text: String| {
        let mut escaped = String::new();
        for c in text.chars() {
            if "\\*_~`|>#[]()<".contains(c) {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        escaped
    };
    // An embed has at most 25 fields and 6000 characters in all.
    let fields: Vec<Value> = alert
        .fields()
        .iter()
        .take(10)
        .map(|(name, value)| json!({"name": name, "value": escape(clean(value, MAX_VALUE)), "inline": true}))
        .collect();
    let mut embed = json!({
        "title": escape(clean(&alert.title(), MAX_TITLE)).chars().take(256).collect::<String>(),
        "description": escape(clean(&alert.advice(), MAX_TEXT)).chars().take(4096).collect::<String>(),
        "color": 0xd4_5b_2c,
        "fields": fields,
        "timestamp": now.to_string(),
    });
    if let (Some(line), Some(embed)) = (held_line(held), embed.as_object_mut()) {
        embed.insert("footer".to_owned(), json!({"text": line}));
    }
    json!({"username": "tallyhook", "embeds": [embed], "allowed_mentions": {"parse": []}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(waits_for: &str) -> Alert {
        let text = |text: &str| text.to_owned();
        Alert::Parked {
            event_id: text("evt_1"),
            event_type: text("invoice.paid"),
            reason: text("no_user"),
            waits_for: Some(text(waits_for)),
        }
    }

    #[test]
    fn posts_keep_the_limits_of_the_services_and_escape_their_markup() {
        let hostile = format!("pack#<!channel> @everyone *x* ann@example.com {}", "y".repeat(5000));
        let slack = slack(&parked(&hostile), 3);
        let text = slack.to_string();
        assert!(!text.contains("<!channel>") && text.contains("&lt;!channel&gt;"), "{text}");
        assert_eq!(slack["blocks"][0]["type"], "header");
        assert!(slack["blocks"][0]["text"]["text"].as_str().unwrap().chars().count() <= 150);
        assert!(
            slack["blocks"][2]["fields"].as_array().unwrap().iter().all(|field| field["text"]
                .as_str()
                .unwrap()
                .len()
                < 2000)
        );
        assert!(slack["blocks"][3]["elements"][0]["text"].as_str().unwrap().contains("3 more"));

        let discord = discord(&parked(&hostile), 0, Timestamp::from_unix(1_795_219_200));
        let text = discord.to_string();
        assert!(
            !text.contains("@everyone") && !text.contains("@example") && text.contains("\\\\*x"),
            "{text}"
        );
        assert_eq!(discord["allowed_mentions"], json!({"parse": []}));
        assert!(
            discord["embeds"][0]["fields"].as_array().unwrap().iter().all(|field| field["value"]
                .as_str()
                .unwrap()
                .len()
                <= 1024)
        );
        assert_eq!(discord["embeds"][0]["timestamp"], "2026-11-21T00:00:00Z");
        assert!(!text.contains(&"y".repeat(400)));
    }

    #[test]
    fn our_alerts_and_eventbridge_alarms_are_read_from_messages() {
        for alert in [
            parked("customer#cus_1"),
            Alert::Missing { records: 3, repaired: 0 },
            Alert::Score { score: 12, deductions: Vec::new() },
        ] {
            assert_eq!(read(&serde_json::to_string(&alert).unwrap()), Some(alert));
        }
        let reason = "Threshold Crossed: 1 datapoint [960.0]".to_owned();
        let state = json!({"value": "ALARM", "reason": reason});
        let detail = json!({"alarmName": "tallyhook-oldest-invoice-paid", "state": state});
        let alarm = json!({"detail-type": "CloudWatch Alarm State Change", "detail": detail});
        assert_eq!(
            read(&alarm.to_string()),
            Some(Alert::Alarm { name: "tallyhook-oldest-invoice-paid".to_owned(), reason })
        );
        assert_eq!(read("{}"), None);
        assert_eq!(read("not json"), None);
    }
}
