//! A deployment's webhook, seen from outside.

use anyhow::Context;
use http::{Request, Uri};
use serde_json::{Value, json};
use tallyhook_core::signature::{Secret, sign};
use uuid::Uuid;

use crate::client::Client;
use crate::send::{now, signed_request, webhook_url};

/// The type of the probe event. No family handles it, so it is recorded as ignored and changes nothing.
const PROBE_TYPE: &str = "tallyhook.probe";

/// The webhook at one address.
pub struct Webhook {
    client: Client,
    /// The address that Stripe posts to.
    pub url: String,
}

/// What the webhook answered.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body, or null.
    pub body: Value,
    /// The header `Date`.
    pub date: Option<String>,
}

impl Webhook {
    /// The webhook of a deployment, or at this address if it has a path.
    ///
    /// # Errors
    /// When it is not a URL.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let url = webhook_url(url)?;
        Ok(Self { client: Client::for_url(&url)?, url })
    }

    /// `GET /webhooks/stripe/health`.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn health(&self) -> anyhow::Result<Answer> {
        let uri: Uri = self.url.parse()?;
        let authority = uri.authority().with_context(|| format!("{uri} has no host"))?;
        let health = format!("{}://{authority}/webhooks/stripe/health", uri.scheme_str().unwrap_or("https"));
        self.send(Request::get(health).body(Vec::new())?).await
    }

    /// Posts an event, signed with this secret at the current time.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, event: &[u8], secret: &Secret) -> anyhow::Result<Answer> {
        self.send(signed_request(&self.url, event, secret)?).await
    }

    /// Posts an event without a `v1` signature, which every deployment must refuse. Unlike the signature of
    /// another secret, it is not counted as a sign of a wrong secret.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post_badly_signed(&self, event: &[u8]) -> anyhow::Result<Answer> {
        let secret = Secret::new(&format!("whsec_{}", Uuid::new_v4().simple()))?;
        let mut request = signed_request(&self.url, event, &secret)?;
        let header = sign(event, &secret, now()).replace("v1=", "v0=");
        request.headers_mut().insert("stripe-signature", header.parse()?);
        self.send(request).await
    }

    async fn send(&self, request: Request<Vec<u8>>) -> anyhow::Result<Answer> {
        let answer = self.client.exchange(request).await?;
        Ok(Answer {
            status: answer.status().as_u16(),
            date: answer.headers().get("date").and_then(|date| date.to_str().ok()).map(str::to_owned),
            body: serde_json::from_slice(answer.body()).unwrap_or_default(),
        })
    }
}

/// A new event that changes nothing: its id and its JSON.
pub fn probe_event(livemode: bool) -> (String, Vec<u8>) {
    let id = format!("evt_probe{}", Uuid::new_v4().simple());
    let event = json!({
        "id": id, "object": "event", "type": PROBE_TYPE, "created": now().unix(), "livemode": livemode,
        "api_version": null, "data": {"object": {"object": PROBE_TYPE}}, "pending_webhooks": 0, "request": null,
    });
    (id, event.to_string().into_bytes())
}
