//! `notify`: alerts from the queue `tallyhook-notify` to Slack and Discord.
//!
//! Alerts with the same key are posted once and then held for a while; the next one says how many were. What
//! is posted is the alert's typed fields and our own words, shortened to what the two services take, with
//! everything escaped that they would act on.
//!
//! A post that fails is tried again as the queue allows and then lost, with a line in the log: the alert was
//! there already when it was sent here, and what it is about is in the event log. **Invariant:** nothing
//! waits for this function.
//!
//! A destination is https on a public address ([`tallyhook_aws::http::Reach`]): whoever can set a URL must not be
//! able to reach what is inside.

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

/// A post takes no longer than this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A value is shown this far; Discord takes 1024 characters, Slack 2000.
const MOST_VALUE: usize = 300;
/// A text is shown this far; Slack takes 3000 characters, Discord 4096.
const MOST_TEXT: usize = 2500;
/// A title is shown this far; Slack takes 150 characters, Discord 256.
const MOST_TITLE: usize = 140;

/// The function.
pub struct Notify {
    store: Store,
    http: Http,
    destinations: Vec<(Chat, String)>,
}

/// Whose JSON to write.
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
    /// Builds it from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Ok(Self::new(NotifyConfig::from_env(env)?, sdk::dynamodb(&sdk::sdk_config(env, "DYNAMODB")?)))
    }

    /// The same over a given client.
    pub fn new(config: NotifyConfig, dynamodb: sdk::DynamoDb) -> Self {
        let urls = [(Chat::Slack, config.slack_url), (Chat::Discord, config.discord_url)];
        Self {
            store: Store::new(dynamodb, config.accounts_table, config.events_table),
            http: Http::within(config.reach),
            destinations: urls.into_iter().filter_map(|(chat, url)| Some((chat, url?))).collect(),
        }
    }

    /// Posts a batch and names the alerts that could not be posted.
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

    /// Posts an alert wherever the same was not posted lately. `Err` when a destination did not take it.
    async fn post(&self, alert: &Alert, message: &SqsMessage, now: Timestamp) -> Result<(), ()> {
        let key = alert.key();
        let mut failed = false;
        if let Alert::BadSignatures { refused, .. } = alert {
            self.signal(*refused, now).await;
        }
        for (chat, url) in &self.destinations {
            let id = message.message_id.as_deref().unwrap_or_default();
            let held = match self.claim(*chat, alert, id, now).await {
                Ok(Some(held)) => held,
                Ok(None) => {
                    info!(alert = key, to = chat.name(), "ALERT_HELD");
                    continue;
                }
                // Better twice than never.
                Err(error) => {
                    warn!(alert = key, error = error.to_string(), "ALERT_NOT_DEDUPLICATED");
                    0
                }
            };
            match self.post_to(*chat, url, alert, held, now).await {
                Ok(()) => {
                    info!(alert = key, to = chat.name(), "ALERT_POSTED");
                    self.posted(*chat, alert, id).await;
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
        let request = request.body(body.to_string()).map_err(|_| "the URL is not one".to_owned())?;
        let answer = self.http.send(request, TIMEOUT).await.map_err(|error| error.to_string())?;
        // A redirect counts as a failure, too: following it would leave the address that was checked.
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("status {}", answer.status().as_u16()))
        }
    }

    /// Whether this alert may be posted now, and how many like it were held since the last one. A message
    /// that comes back because its post failed has its claim already; one that comes back because another
    /// chat failed was posted here.
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

    /// Notes that this chat has the alert, so that it does not get it again with the next attempt for another
    /// one.
    async fn posted(&self, chat: Chat, alert: &Alert, message_id: &str) {
        if let Err(error) = self.store.note_posted(chat.name(), &alert.key(), message_id).await {
            warn!(alert = alert.key(), error = error.to_string(), "ALERT_NOT_DEDUPLICATED");
        }
    }

    /// Leaves what health counts: a refused request writes nothing, so this is the only trace of a burst.
    async fn signal(&self, refused: u32, now: Timestamp) {
        if let Err(error) = self.store.note_bad_signatures(refused, now).await {
            warn!(error = error.to_string(), "SIGNAL_NOT_WRITTEN");
        }
    }
}

/// An alert of ours, or CloudWatch's word about an alarm, as EventBridge delivers it.
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

/// One line or more of text as a chat may show it: no control characters but line breaks, nothing that looks
/// like an address of a person, not longer than this.
fn clean(text: &str, most: usize) -> String {
    let words = text
        .split(' ')
        .map(|word| if word.contains('@') { "(withheld)" } else { word })
        .collect::<Vec<_>>()
        .join(" ");
    let shown: String = words.chars().filter(|c| !c.is_control() || *c == '\n').take(most).collect();
    if words.chars().count() > most { format!("{shown}…") } else { shown }
}

fn held_line(held: u64) -> Option<String> {
    (held > 0).then(|| format!("{held} more like the last one were held back since."))
}

/// The body of Slack's incoming webhook. `text` is what notifications show, `blocks` what the channel does.
/// `&`, `<` and `>` are all that Slack acts on in text.
fn slack(alert: &Alert, held: u64) -> Value {
    let escape = |text: String| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let title = clean(&alert.title(), MOST_TITLE);
    let text = |text: String| json!({"type": "mrkdwn", "text": escape(text), "verbatim": true});
    let mut blocks = vec![
        json!({"type": "header", "text": {"type": "plain_text", "text": title.clone()}}),
        json!({"type": "section", "text": text(clean(&alert.advice(), MOST_TEXT))}),
    ];
    // A section has at most ten fields.
    let fields: Vec<Value> = alert
        .fields()
        .iter()
        .take(10)
        .map(|(name, value)| text(format!("*{name}*\n{}", clean(value, MOST_VALUE))))
        .collect();
    if !fields.is_empty() {
        blocks.push(json!({"type": "section", "fields": fields}));
    }
    if let Some(line) = held_line(held) {
        blocks.push(json!({"type": "context", "elements": [text(line)]}));
    }
    json!({"text": escape(title), "blocks": blocks})
}

/// The body of Discord's webhook. Mentions are switched off, Markdown is escaped.
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
        .map(|(name, value)| json!({"name": name, "value": escape(clean(value, MOST_VALUE)), "inline": true}))
        .collect();
    let mut embed = json!({
        "title": escape(clean(&alert.title(), MOST_TITLE)).chars().take(256).collect::<String>(),
        "description": escape(clean(&alert.advice(), MOST_TEXT)).chars().take(4096).collect::<String>(),
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
    fn both_shapes_are_what_the_services_take_and_nothing_in_them_acts() {
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
    fn an_alert_comes_back_from_its_message_and_an_alarm_is_read_from_eventbridge() {
        for alert in [
            parked("customer#cus_1"),
            Alert::Missing { records: 3, repaired: 0 },
            Alert::Score { score: 12, deductions: Vec::new() },
        ] {
            assert_eq!(read(&serde_json::to_string(&alert).unwrap()), Some(alert));
        }
        let alarm = json!({"detail-type": "CloudWatch Alarm State Change", "detail": {"alarmName": "tallyhook-oldest-invoice-paid",
            "state": {"value": "ALARM", "reason": "Threshold Crossed: 1 datapoint [960.0]"}}});
        let reason = "Threshold Crossed: 1 datapoint [960.0]".to_owned();
        assert_eq!(
            read(&alarm.to_string()),
            Some(Alert::Alarm { name: "tallyhook-oldest-invoice-paid".to_owned(), reason })
        );
        assert_eq!(read("{}"), None);
        assert_eq!(read("not json"), None);
    }
}
