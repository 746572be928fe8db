//! `GET /admin/export/users` and `GET /admin/export/ledger`: everything, page by page, for a file. The order
//! is arbitrary.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lambda_http::Request;
use serde_json::{Value, json};

use super::user::entry_view;
use super::{Admin, bad, parameter, range_ms, seconds};
use crate::http::answer::Problem;
use tallyhook_core::account::Account;
use tallyhook_core::timestamp::Timestamp;

impl Admin {
    /// ```json
    /// {"users":[{"user_id":"user_1","created_at":"…","tier":"pro","access_until":null,"credits":5000,
    ///            "customers":["cus_1"],"subscriptions":["sub_1"]}],"unreadable":[],"next":null}
    /// ```
    pub(super) async fn export_users(&self, request: &Request, now_ms: i64) -> Result<Value, Problem> {
        let page = self.store.accounts(after(request)?.as_deref()).await?;
        let (mut users, mut unreadable) = (Vec::new(), Vec::new());
        for (user, account) in page.accounts {
            match account {
                Ok(account) => users.push(self.user_row(&account, seconds(now_ms))),
                Err(_) => unreadable.push(user),
            }
        }
        Ok(json!({"users": users, "unreadable": unreadable, "next": page.next.map(next)}))
    }

    fn user_row(&self, account: &Account, now: Timestamp) -> Value {
        let (state, catalog) = (&account.state, &self.processor.accounts.catalog);
        let access = state.access(catalog, now);
        let live = state.subscriptions.iter().filter(|(_, one)| state.ended_at(one).is_none());
        json!({
            "user_id": account.user_id,
            "created_at": state.created_at.to_string(),
            "tier": access.tier,
            "access_until": access.until.map(|until| until.to_string()),
            "credits": state.balance(&catalog.policy, now),
            "customers": state.customers.keys().collect::<Vec<_>>(),
            "subscriptions": live.map(|(id, _)| id).collect::<Vec<_>>(),
        })
    }

    /// Entries that were booked at or after `from` and before `to`:
    /// `{"entries":[{"user_id":"user_1","key":"…",…}],"next":null}`.
    pub(super) async fn export_ledger(&self, request: &Request) -> Result<Value, Problem> {
        let (from, to) =
            range_ms(parameter(request, "from").as_deref(), parameter(request, "to").as_deref())?;
        let from = from.map_or(Timestamp::from_unix(0), seconds);
        let to = to.map_or(Timestamp::from_unix(i64::from(u32::MAX) * 60), seconds);
        let page = self.store.entries(from, to, after(request)?.as_deref()).await?;
        let entries: Vec<Value> = page
            .entries
            .iter()
            .map(|(user, entry)| {
                let mut view = entry_view(entry);
                view["user_id"] = json!(user);
                view
            })
            .collect();
        Ok(json!({"entries": entries, "next": page.next.map(next)}))
    }
}

/// The store's key of the next page, as an opaque text.
fn next(key: String) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

fn after(request: &Request) -> Result<Option<String>, Problem> {
    let wrong = || bad("invalid_next", "next must be what the last page gave");
    let read = |text: String| {
        let key = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        key.contains('\n').then_some(key)
    };
    parameter(request, "next").map(|text| read(text).ok_or_else(wrong)).transpose()
}
