//! The `ClientRequestToken` of transactions, kept here instead of in the embedded DynamoDB.
//!
//! Dynoxide keeps tokens for ten minutes, as DynamoDB does, and scans all of them at each transaction. Every
//! SDK sends a token, so the stack would become slower with each event. Here a lookup takes constant time.
//!
//! As in DynamoDB, a transaction with a known token and the same items returns the first answer and changes
//! nothing, other items with a known token are refused, and two equal transactions at the same time run once.
//! Unlike in DynamoDB, only the last [`MAX_TOKENS`] tokens are kept.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::OnceCell;

/// DynamoDB keeps a token for ten minutes.
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);
/// The maximum number of tokens that are kept.
const MAX_TOKENS: usize = 10_000;
/// The maximum length of a token in DynamoDB.
const MAX_TOKEN_LENGTH: usize = 36;

/// A committed transaction: a hash of its items, and the body of the answer. Empty until it is committed.
type Slot = Arc<OnceCell<(u64, Bytes)>>;

/// The tokens of the last ten minutes. Clones share them.
#[derive(Clone, Default)]
pub(super) struct TransactionTokens {
    tokens: Arc<Mutex<TokenMap>>,
}

#[derive(Default)]
struct TokenMap {
    slots: HashMap<String, Slot>,
    /// The tokens with the time of their first use, oldest first.
    order: VecDeque<(Instant, String)>,
}

/// A transaction with a token. It must run at most once.
pub(super) struct Transaction {
    /// The request without the token.
    pub(super) body: Bytes,
    items: u64,
    slot: Slot,
}

impl TransactionTokens {
    /// Takes the token out of the request of a transaction. `None` when there is none, or one that DynamoDB
    /// must refuse.
    pub(super) fn take(&self, request: &[u8]) -> Option<Transaction> {
        let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_slice(request).ok()?;
        let token: String = serde_json::from_str(fields.remove("ClientRequestToken")?.get()).ok()?;
        if token.is_empty() || token.len() > MAX_TOKEN_LENGTH {
            return None;
        }
        let items = digest(&serde_json::from_str(fields.get("TransactItems")?.get()).ok()?);
        let body = serde_json::to_vec(&fields).ok()?.into();
        Some(Transaction { body, items, slot: self.slot(token, Instant::now()) })
    }

    fn slot(&self, token: String, now: Instant) -> Slot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((first_use, oldest)) = tokens.order.front()
            && (tokens.order.len() >= MAX_TOKENS || now.duration_since(*first_use) >= TOKEN_LIFETIME)
        {
            let oldest = oldest.clone();
            tokens.slots.remove(&oldest);
            tokens.order.pop_front();
        }
        if let Some(slot) = tokens.slots.get(&token) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        tokens.order.push_back((now, token.clone()));
        tokens.slots.insert(token, Arc::clone(&slot));
        slot
    }
}

/// A hash of a JSON value. The order of the members of an object does not matter: SDKs write the attributes
/// of an item in any order.
fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    match value {
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| {
                let mut hasher = DefaultHasher::new();
                (name, digest(value)).hash(&mut hasher);
                hasher.finish()
            };
            (1, members.len(), members.iter().map(member).fold(0, u64::wrapping_add)).hash(&mut hasher);
        }
        Value::Array(values) => (2, values.iter().map(digest).collect::<Vec<_>>()).hash(&mut hasher),
        Value::String(text) => (3, text).hash(&mut hasher),
        Value::Null | Value::Bool(_) | Value::Number(_) => (4, value.to_string()).hash(&mut hasher),
    }
    hasher.finish()
}

impl Transaction {
    /// The answer of the earlier transaction, or else the answer of `run`. The error is an answer that is not
    /// kept, because the transaction changed nothing.
    pub(super) async fn once<F>(&self, run: impl FnOnce() -> F) -> Result<Response, Response>
    where
        F: Future<Output = Result<Bytes, Response>>,
    {
        // Copy the bytes: they share the whole buffer of the connection.
        let run = async || Ok((self.items, Bytes::copy_from_slice(&run().await?)));
        let (items, body) = self.slot.get_or_try_init(run).await?;
        if *items != self.items {
            let error = r#"{"__type":"com.amazonaws.dynamodb.v20120810#IdempotentParameterMismatchException","message":"this token was used with other items"}"#;
            return Err((
                StatusCode::BAD_REQUEST,
                [(header::CONTENT_TYPE, "application/x-amz-json-1.0")],
                error,
            )
                .into_response());
        }
        Ok(([(header::CONTENT_TYPE, "application/x-amz-json-1.0")], body.clone()).into_response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(token: &str, items: &str) -> String {
        format!(
            r#"{{"ClientRequestToken":"{token}","ReturnConsumedCapacity":"TOTAL","TransactItems":[{items}]}}"#
        )
    }

    async fn run(
        tokens: &TransactionTokens,
        request: &str,
        answer: Result<&'static str, StatusCode>,
    ) -> (StatusCode, bool) {
        let mut ran = false;
        let transaction = tokens.take(request.as_bytes()).unwrap();
        let answer = transaction
            .once(|| {
                ran = true;
                std::future::ready(answer.map(Bytes::from).map_err(|status| status.into_response()))
            })
            .await;
        (answer.unwrap_or_else(|refused| refused).status(), ran)
    }

    #[tokio::test]
    async fn a_transaction_runs_once_for_its_token_unless_it_failed() {
        let (tokens, first, other) = (
            TransactionTokens::default(),
            request("t", r#"{"a":1,"b":[2]}"#),
            request("t", r#"{"a":2,"b":[1]}"#),
        );
        assert_eq!(run(&tokens, &first, Err(StatusCode::BAD_REQUEST)).await, (StatusCode::BAD_REQUEST, true));
        assert_eq!(run(&tokens, &first, Ok("{}")).await, (StatusCode::OK, true));
        assert_eq!(
            run(&tokens, &request("t", r#"{"b":[2],"a":1}"#), Ok("{}")).await,
            (StatusCode::OK, false)
        );
        assert_eq!(run(&tokens, &other, Ok("{}")).await, (StatusCode::BAD_REQUEST, false));
        assert_eq!(run(&tokens, &request("u", "2"), Ok("{}")).await, (StatusCode::OK, true));
    }

    #[test]
    fn a_token_expires_and_an_invalid_token_is_left_to_dynamodb() {
        let (tokens, now) = (TransactionTokens::default(), Instant::now());
        let first = tokens.slot("t".to_owned(), now);
        assert!(Arc::ptr_eq(&first, &tokens.slot("t".to_owned(), now + TOKEN_LIFETIME / 2)));
        assert!(!Arc::ptr_eq(&first, &tokens.slot("t".to_owned(), now + TOKEN_LIFETIME)));
        for number in 0..2 * MAX_TOKENS {
            tokens.slot(number.to_string(), now);
        }
        let kept = tokens.tokens.lock().unwrap();
        assert_eq!((kept.slots.len(), kept.order.len()), (MAX_TOKENS, MAX_TOKENS));
        drop(kept);
        for request in [
            r#"{"TransactItems":[]}"#,
            "{",
            "[]",
            &request("", "1"),
            &request(&"t".repeat(MAX_TOKEN_LENGTH + 1), "1"),
        ] {
            assert!(tokens.take(request.as_bytes()).is_none(), "{request}");
        }
        let transaction = tokens.take(request("t", "1").as_bytes()).unwrap();
        assert_eq!(transaction.body, r#"{"ReturnConsumedCapacity":"TOTAL","TransactItems":[1]}"#);
    }
}
