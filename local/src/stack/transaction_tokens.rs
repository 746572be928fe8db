//! The `ClientRequestToken` of a transaction, remembered here instead of by the embedded DynamoDB.
//!
//! Dynoxide remembers tokens for ten minutes, as DynamoDB does, and walks all of them at each transaction:
//! with every SDK sending one, a stack under load gets slower by the event. Here a token costs the same
//! however many there are. What is kept to: the same token and items again answer what was answered, and
//! change nothing; other items are refused; two at once are one. Left out: at most the last [`MOST`] tokens
//! are remembered, and a repetition is not billed as a read.

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

/// So long DynamoDB remembers a token.
const WINDOW: Duration = Duration::from_secs(600);
/// So many are remembered.
const MOST: usize = 10_000;
/// The longest token that DynamoDB takes.
const LONGEST: usize = 36;

/// The answer to a transaction that was committed: the items it had, as a hash, and the body.
type Slot = Arc<OnceCell<(u64, Bytes)>>;

/// The tokens of the last minutes. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Tokens {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    slots: HashMap<String, Slot>,
    order: VecDeque<(Instant, String)>,
}

/// A transaction with a token: what there is to do once.
pub(super) struct Transaction {
    /// The request without its token.
    pub(super) body: Bytes,
    items: u64,
    slot: Slot,
}

impl Tokens {
    /// Takes the token out of a transaction's request. `None` when it has none, or one that DynamoDB has to
    /// refuse.
    pub(super) fn take(&self, request: &[u8]) -> Option<Transaction> {
        let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_slice(request).ok()?;
        let token: String = serde_json::from_str(fields.remove("ClientRequestToken")?.get()).ok()?;
        if token.is_empty() || token.len() > LONGEST {
            return None;
        }
        let items = digest(&serde_json::from_str(fields.get("TransactItems")?.get()).ok()?);
        let body = serde_json::to_vec(&fields).ok()?.into();
        Some(Transaction { body, items, slot: self.slot(token, Instant::now()) })
    }

    fn slot(&self, token: String, now: Instant) -> Slot {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((since, oldest)) = seen.order.front()
            && (seen.order.len() >= MOST || now.duration_since(*since) >= WINDOW)
        {
            let oldest = oldest.clone();
            seen.slots.remove(&oldest);
            seen.order.pop_front();
        }
        if let Some(slot) = seen.slots.get(&token) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        seen.order.push_back((now, token.clone()));
        seen.slots.insert(token, Arc::clone(&slot));
        slot
    }
}

/// The same for the same JSON, in whatever order an object's members are written: SDKs write an item's
/// attributes in any.
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
    /// The answer of the first time, or what `run` answers now. The error is an answer that is not to be
    /// remembered: nothing was done.
    pub(super) async fn once<F>(&self, run: impl FnOnce() -> F) -> Result<Response, Response>
    where
        F: Future<Output = Result<Bytes, Response>>,
    {
        // A copy: what came over a socket is a part of its whole buffer.
        let run = async || Ok((self.items, Bytes::copy_from_slice(&run().await?)));
        let (items, body) = self.slot.get_or_try_init(run).await?;
        if *items != self.items {
            let error = r#"{"__type":"com.amazonaws.dynamodb.v20120810#IdempotentParameterMismatchException","message":"other items had this token"}"#;
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
        tokens: &Tokens,
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
    async fn a_token_runs_once_and_again_only_if_nothing_came_of_it() {
        let (tokens, first, other) =
            (Tokens::default(), request("t", r#"{"a":1,"b":[2]}"#), request("t", r#"{"a":2,"b":[1]}"#));
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
    fn a_token_is_forgotten_in_time_and_none_is_made_up() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let first = tokens.slot("t".to_owned(), now);
        assert!(Arc::ptr_eq(&first, &tokens.slot("t".to_owned(), now + WINDOW / 2)));
        assert!(!Arc::ptr_eq(&first, &tokens.slot("t".to_owned(), now + WINDOW)));
        for number in 0..2 * MOST {
            tokens.slot(number.to_string(), now);
        }
        let seen = tokens.seen.lock().unwrap();
        assert_eq!((seen.slots.len(), seen.order.len()), (MOST, MOST));
        drop(seen);
        for request in
            [r#"{"TransactItems":[]}"#, "{", "[]", &request("", "1"), &request(&"t".repeat(LONGEST + 1), "1")]
        {
            assert!(tokens.take(request.as_bytes()).is_none(), "{request}");
        }
        let transaction = tokens.take(request("t", "1").as_bytes()).unwrap();
        assert_eq!(transaction.body, r#"{"ReturnConsumedCapacity":"TOTAL","TransactItems":[1]}"#);
    }
}
