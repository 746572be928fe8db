//! The audit: what operators did.

use lambda_http::Request;
use serde_json::{Value, json};

use super::{Admin, bad, limit, parameter, time};
use crate::http::answer::Problem;
use tallyhook_aws::store::items::{self, Item, Key};
use tallyhook_aws::store::log::Range;

/// Days that one request reads. A page that is not full by then says where to continue.
const MAX_DAYS: i64 = 60;
const DAY_MS: i64 = 86_400_000;

impl Admin {
    /// ```json
    /// {"audits":[{"id":"audit#…","at":"…","actor":"ann","claimed":null,"act":"grant","target":"user_1 500",
    ///             "reason":"…"}],
    ///  "next":"2026-11-20"}
    /// ```
    /// `actor` is the name of the token; `claimed` is another name that the request gave.
    /// A page contains whole days, so that the next page follows without a gap. `next` is the day it starts
    /// with.
    pub(super) async fn audits(&self, request: &Request, now_ms: i64) -> Result<Value, Problem> {
        let limit = limit(request, 50, 200)?;
        let newest = match parameter(request, "next") {
            None => now_ms,
            Some(day) => super::time_ms("next", Some(&day))?
                .ok_or_else(|| bad("invalid_next", "next must be what the last page gave"))?,
        };
        let mut audits = Vec::new();
        let mut next = None;
        for back in 0..=MAX_DAYS {
            let day = items::day(newest - back * DAY_MS);
            if audits.len() >= limit || back == MAX_DAYS {
                next = (back < MAX_DAYS || audits.len() >= limit).then_some(day);
                break;
            }
            let partition = format!("{day}#audit#0");
            let mut start: Option<Item> = None;
            loop {
                let range = Range {
                    index: "by_day",
                    partition: &partition,
                    from: 0,
                    to: i64::MAX,
                    newest_first: true,
                };
                let (found, more) = self.store.query(&range, Some(100), start).await?;
                let keys: Vec<Key> =
                    found.iter().filter_map(|item| Some(Key::Event(items::read_text(item, "pk")?))).collect();
                // The index does not have the actor and the reason, so the whole items are read.
                let mut whole = self.store.load(keys.iter().cloned()).await?;
                audits.extend(keys.iter().filter_map(|key| whole.remove(key)).map(|item| view(&item)));
                start = more;
                if start.is_none() {
                    break;
                }
            }
        }
        Ok(json!({"audits": audits, "next": next}))
    }
}

fn view(item: &Item) -> Value {
    let text = |name: &str| items::read_text(item, name);
    json!({
        "id": text("pk"),
        "at": items::read_number(item, "seen").map(time),
        "actor": text("actor"),
        "claimed": text("claimed"),
        "act": text("act"),
        "target": text("target"),
        "reason": text("reason"),
    })
}
