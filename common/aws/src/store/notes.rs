//! Single-item writes of the events table, outside a transaction.
//!
//! Each write changes one note, one job, or the redrive count of an open event. It never changes an account,
//! a ledger entry or the outcome of an event. These items only control when work is tried. If a write is
//! lost, the work is done once more, and the transaction of the account makes that safe.

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use tallyhook_core::ids::{SessionId, UserId};
use tallyhook_core::job::JobMessage;
use tallyhook_core::setup_status::{ProvisioningState, SessionPayment};
use tallyhook_core::timestamp::Timestamp;

use super::items::{self, CreatedCustomer, Key, SessionRequest, Table};
use super::log::LogRecord;
use super::{Store, StoreError, failed};

impl Store {
    /// Increments the redrive count of an open event or job and moves its `due`, so that only one run sends
    /// it. Returns `false` when the item changed since the index was read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim_redrive(&self, record: &LogRecord, now: Timestamp) -> Result<bool, StoreError> {
        let redrives = record.redrives.saturating_add(1);
        let due = now.plus_seconds(items::redrive_pause_seconds(redrives)).unix().saturating_mul(1000);
        let request = self
            .update(&Key::Event(record.id.clone()))
            .update_expression("SET redrives = :redrives, due = :due")
            .condition_expression("outcome = :outcome AND redrives = :before")
            .expression_attribute_values(":redrives", number(redrives))
            .expression_attribute_values(":before", number(record.redrives))
            .expression_attribute_values(":due", number(due))
            .expression_attribute_values(":outcome", text(&record.status));
        send(request).await
    }

    /// Marks a job as running. `seen` is the value that was read with the job. Returns `false` when a newer
    /// job replaced it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn start_job(
        &self,
        job: &JobMessage,
        seen: i64,
        attempts: u32,
        due_ms: i64,
    ) -> Result<bool, StoreError> {
        let request = self
            .update(&items::job_key(job))
            .update_expression("SET outcome = :outcome, attempts = :attempts, due = :due")
            .condition_expression("seen = :seen")
            .expression_attribute_values(":outcome", text(ProvisioningState::Running.as_str()))
            .expression_attribute_values(":attempts", number(attempts))
            .expression_attribute_values(":due", number(due_ms))
            .expression_attribute_values(":seen", number(seen));
        send(request).await
    }

    /// Records the result of an attempt of a job. A completed job leaves the index of open items; a failed
    /// one stays there for the operator. Returns `false` when a newer job replaced it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_job(
        &self,
        job: &JobMessage,
        seen: i64,
        state: ProvisioningState,
        reason: &str,
        finished_ms: i64,
    ) -> Result<bool, StoreError> {
        const SET: &str = "SET outcome = :outcome, reason = :reason, finished = :finished";
        let completed = state == ProvisioningState::Completed;
        // `open` is a reserved word.
        let update = if completed { format!("{SET} REMOVE #open, due") } else { SET.to_owned() };
        let request = self
            .update(&items::job_key(job))
            .update_expression(update)
            .set_expression_attribute_names(
                completed.then(|| [("#open".to_owned(), "open".to_owned())].into()),
            )
            .condition_expression("seen = :seen")
            .expression_attribute_values(":outcome", text(state.as_str()))
            .expression_attribute_values(":reason", text(reason))
            .expression_attribute_values(":finished", number(finished_ms))
            .expression_attribute_values(":seen", number(seen));
        send(request).await
    }

    /// Removes the payload of an event. Returns `false` when it has none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_payload(&self, key: &Key) -> Result<bool, StoreError> {
        let request = self.update(key).update_expression("REMOVE payload");
        send(request.condition_expression("attribute_exists(payload)")).await
    }

    /// Claims the request to Stripe for a session. Of several concurrent callers, one gets `true`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim_session_request(
        &self,
        session: &SessionId,
        before: &SessionRequest,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let request = self
            .update(&items::session_request_key(session))
            .update_expression("SET asked = :now, tries = :tries, expires_at = :expires")
            .condition_expression("attribute_not_exists(pk) OR asked = :before")
            .expression_attribute_values(":now", number(now.unix()))
            .expression_attribute_values(":tries", number(i64::from(before.tries) + 1))
            .expression_attribute_values(":before", number(before.asked))
            .expression_attribute_values(":expires", number(now.plus_days(30).unix()));
        send(request).await
    }

    /// Records that this deployment created a session, so that Stripe may be asked for it. A payment that is
    /// not instant takes up to two weeks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_created_session(&self, session: &SessionId, now: Timestamp) -> Result<(), StoreError> {
        let request = self
            .update(&items::session_request_key(session))
            .update_expression(
                "SET ours = :yes, asked = if_not_exists(asked, :never), \
                 tries = if_not_exists(tries, :never), expires_at = :expires",
            )
            .expression_attribute_values(":yes", AttributeValue::Bool(true))
            .expression_attribute_values(":never", number(0))
            .expression_attribute_values(":expires", number(now.plus_days(30).unix()));
        send(request).await.map(|_| ())
    }

    /// Records the customer that our checkout created for a user. Concurrent requests record the same one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_created_customer(
        &self,
        user: &UserId,
        created: &CreatedCustomer,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let customer = created.customer.as_ref().map(ToString::to_string).unwrap_or_default();
        let set = "SET customer_id = :customer, earlier = :earlier, expires_at = :expires";
        let missing: Vec<String> = created.missing.iter().cloned().collect();
        let update = if missing.is_empty() { set.to_owned() } else { format!("{set}, gone = :gone") };
        let request = self
            .update(&items::created_customer_key(user))
            .update_expression(update)
            .expression_attribute_values(":customer", text(&customer))
            .expression_attribute_values(":earlier", number(i64::from(created.earlier)))
            .expression_attribute_values(":expires", number(now.plus_days(365).unix()));
        let request = if missing.is_empty() {
            request
        } else {
            request.expression_attribute_values(":gone", AttributeValue::Ss(missing))
        };
        send(request).await.map(|_| ())
    }

    /// Takes one request to Stripe for a session from the deployment's budget: at most `max` in a window of
    /// this many seconds. `false` when it is used up.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_session_budget(
        &self,
        max: u32,
        window_seconds: i64,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let key = items::session_budget_key();
        let window = now.unix().div_euclid(window_seconds);
        let take = self
            .update(&key)
            .update_expression("ADD used :one")
            .condition_expression("#window = :window AND used < :max")
            .expression_attribute_names("#window", "window")
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":window", number(window))
            .expression_attribute_values(":max", number(max));
        if send(take).await? {
            return Ok(true);
        }
        let start = self
            .update(&key)
            .update_expression("SET #window = :window, used = :one")
            .condition_expression("attribute_not_exists(pk) OR #window < :window")
            .expression_attribute_names("#window", "window")
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":window", number(window));
        send(start).await
    }

    /// Records Stripe's answer about a session, with the customer's own reference. `None` means that Stripe
    /// has no such session.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_session_answer(
        &self,
        session: &SessionId,
        payment: Option<SessionPayment>,
        reference: Option<&str>,
    ) -> Result<(), StoreError> {
        let update = if reference.is_some() {
            "SET answer = :answer, customer_reference = :reference"
        } else {
            "SET answer = :answer"
        };
        let request = self
            .update(&items::session_request_key(session))
            .update_expression(update)
            .expression_attribute_values(":answer", text(payment.map_or("missing", SessionPayment::as_str)));
        let request = match reference {
            Some(reference) => request.expression_attribute_values(":reference", text(reference)),
            None => request,
        };
        send(request).await.map(|_| ())
    }

    /// Claims an alert for one destination until `until`. Returns the number of equal alerts that were
    /// suppressed since the last post. Returns `None` when the alert must not be posted now; this increments
    /// the number, unless this same message was already posted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim_alert(
        &self,
        destination: &str,
        alert: &str,
        message_id: &str,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        let key = items::alert_key(destination, alert);
        let claim = self
            .update(&key)
            .update_expression(
                "SET quiet_until = :until, message = :message, expires_at = :expires REMOVE held",
            )
            .condition_expression("attribute_not_exists(pk) OR quiet_until <= :now OR message = :message")
            .expression_attribute_values(":until", number(until.unix()))
            .expression_attribute_values(":now", number(now.unix()))
            .expression_attribute_values(":message", text(message_id))
            .expression_attribute_values(":expires", number(until.plus_days(7).unix()))
            .return_values(ReturnValue::UpdatedOld)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match claim.send().await {
            Ok(answer) => {
                Ok(Some(answer.attributes.and_then(|old| items::read_number(&old, "held")).unwrap_or(0)))
            }
            Err(error) => {
                let Some(UpdateItemError::ConditionalCheckFailedException(refused)) =
                    error.as_service_error()
                else {
                    return Err(failed("UpdateItem", &error));
                };
                let posted = refused.item().and_then(|item| items::read_text(item, "posted"));
                if posted.as_deref() != Some(message_id) {
                    let count = self
                        .update(&key)
                        .update_expression("ADD held :one")
                        .expression_attribute_values(":one", number(1));
                    send(count).await?;
                }
                Ok(None)
            }
        }
    }

    /// Records that an alert was posted to a destination, so that a retry of the same message does not post
    /// it again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_posted(
        &self,
        destination: &str,
        alert: &str,
        message_id: &str,
    ) -> Result<(), StoreError> {
        let request = self
            .update(&items::alert_key(destination, alert))
            .update_expression("SET posted = :message REMOVE message")
            .expression_attribute_values(":message", text(message_id));
        send(request).await.map(|_| ())
    }

    /// Records the newest burst of refused signatures, for `health`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_bad_signatures(&self, refused: u32, now: Timestamp) -> Result<(), StoreError> {
        let request = self
            .update(&items::bad_signatures_key())
            .update_expression("SET refused = :refused, #at = :at, expires_at = :expires")
            .expression_attribute_names("#at", "at")
            .expression_attribute_values(":refused", number(refused))
            .expression_attribute_values(":at", number(now.unix()))
            .expression_attribute_values(":expires", number(now.plus_days(7).unix()));
        send(request).await.map(|_| ())
    }

    /// Deletes an item if it exists. Only `reconcile` calls this, for its stored position.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let item = items::key_attributes(key.table(), &key.partition(), &key.sort());
        let request = self.client.delete_item().table_name(self.table(key.table())).set_key(Some(item));
        request.send().await.map(|_| ()).map_err(|error| failed("DeleteItem", &error))
    }

    pub(super) fn update(&self, key: &Key) -> UpdateItemFluentBuilder {
        self.client.update_item().table_name(self.table(Table::Events)).key("pk", text(&key.partition()))
    }
}

/// Sends an update; `false` when its condition did not hold.
pub(super) async fn send(request: UpdateItemFluentBuilder) -> Result<bool, StoreError> {
    match request.send().await {
        Ok(_) => Ok(true),
        Err(error)
            if error
                .as_service_error()
                .is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
        {
            Ok(false)
        }
        Err(error) => Err(failed("UpdateItem", &error)),
    }
}

pub(super) fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub(super) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}
