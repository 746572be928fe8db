//! `fix-user` with `{"stripe_subscription_id":"sub_1","webhook_id":"evt_1"}`: the repair of a payment whose
//! user was not known.

use lambda_http::http::StatusCode;
use serde_json::{Value, json};

use super::{Admin, AdminToken, FixRequest, bad};
use crate::accounts::MAX_ATTEMPTS;
use crate::http::answer::{Problem, problem};
use tallyhook_aws::clock;
use tallyhook_aws::store::items::{self, Key};
use tallyhook_aws::store::{Condition, Write};
use tallyhook_core::decide::owner::StoredOwner;
use tallyhook_core::ids::{EventId, SubscriptionId, UserId};

impl Admin {
    /// Makes the user the owner of the subscription, then sends the event again, and the events that wait for
    /// the subscription. Stripe is not asked. Answers
    /// `{"action":"link_subscription","user_id":"user_1","subscription":"sub_1","result":"linked",
    /// "webhook_id":"evt_1","webhook":"queued","freed":[]}`.
    pub(super) async fn link_and_send(
        &self,
        user: &UserId,
        body: &FixRequest,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let text = |id: &Option<String>| id.clone().unwrap_or_default();
        let subscription = SubscriptionId::new(text(&body.stripe_subscription_id))
            .map_err(|_| bad("invalid_subscription", "stripe_subscription_id must be an id like sub_…"))?;
        let event = EventId::new(text(&body.webhook_id))
            .map_err(|_| bad("invalid_event", "webhook_id must be an id like evt_…"))?;
        let (key, account_key, event_key) =
            (Key::Subscription(subscription.clone()), Key::Account(user.clone()), Key::event(&event));
        let mut attempts = 0;
        let (result, mut freed) = loop {
            attempts += 1;
            let items = self.store.load([key.clone(), account_key.clone(), event_key.clone()]).await?;
            if !items.contains_key(&account_key) && !body.create {
                let message = "no account has this id; send \"create\":true to create it";
                return Err(problem(StatusCode::NOT_FOUND, "user_not_found", message));
            }
            if !items.contains_key(&event_key) {
                let message = "the log has no event with this id";
                return Err(problem(StatusCode::NOT_FOUND, "event_not_found", message));
            }
            let link = items.get(&key);
            let owner = link.map(|item| items::read_owner(&key, item)).transpose()?.flatten();
            if let Some(owner) = &owner {
                if owner.user == *user {
                    break ("already_linked", Default::default());
                }
                let other = &owner.user;
                let message = format!(
                    "{subscription} belongs to user {other}; to move it, send the action \"move\" for {other}"
                );
                return Err(problem(StatusCode::CONFLICT, "subscription_bound", message));
            }
            if attempts == 1 {
                let target = format!("{user} {subscription}");
                let (claimed, reason) = (body.actor.as_deref(), Some(body.reason.as_str()));
                self.audit(operator, claimed, reason, "link_subscription", &target, now_ms).await?;
            }
            let new = StoredOwner { user: user.clone(), moved: false, by_reference: false, shared: false };
            let waiting = link.map(items::waiting).unwrap_or_default();
            let write = items::subscription(&subscription, &new, None);
            let write = match waiting.is_empty() {
                true => write,
                false => Write { condition: Condition::Waiting(waiting.clone()), ..write },
            };
            match self.store.commit(vec![write]).await {
                Ok(()) => break ("linked", waiting),
                Err(error) if attempts < MAX_ATTEMPTS && error.is_transient() => clock::pause(attempts).await,
                Err(error) => return Err(error.into()),
            }
        };
        let id = event.to_string();
        freed.remove(&id);
        self.processor.redrive.send_freed(&self.store, &freed).await;
        let sent = self.processor.redrive.send(&self.store, std::slice::from_ref(&id)).await?;
        Ok(json!({
            "action": "link_subscription", "user_id": user, "subscription": subscription, "result": result,
            "webhook_id": id, "webhook": sent.first(), "freed": freed,
        }))
    }
}
