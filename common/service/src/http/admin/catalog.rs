//! The catalog: what is stored, its versions, and a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lambda_http::Request;
use lambda_http::http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Admin, TIME, bad, parameter, seconds, short};
use crate::catalog_cache::DecidingCatalog;
use crate::config::AdminToken;
use crate::http::answer::{Problem, problem};
use crate::resend::retry::Retrier;
use tallyhook_aws::clock;
use tallyhook_aws::store::items::{self, Key, MAX_CATALOG_BYTES, StoredCatalog};
use tallyhook_aws::store::log::LogRecord;
use tallyhook_aws::store::{Reason, StoreError};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::drift;
use tallyhook_core::timestamp::Timestamp;

/// Versions on a page. Each may have 350 KB.
const PAGE: u64 = 10;
/// The maximum number of users, and of events, that an answer names.
const MAX_NAMED: usize = 20;

/// Accounts with a live subscription on a price that a new catalog does not have.
#[derive(Default)]
struct AccountsOnPrices {
    count: usize,
    users: Vec<String>,
    incomplete: bool,
}

impl Admin {
    /// ```json
    /// {"digest":"9f86d081884c7d65","toml":"[tiers]…","version":3,"applied_at":"2026-11-27T09:00:00Z",
    ///  "actor":"ann","reason":"a new plan",
    ///  "learnt_prices":[{"id":"price_1A","sold":"plan pro","lookup_key":"pro_monthly","product":"prod_1","at":"2026-…"}]}
    /// ```
    pub(super) async fn show_catalog(&self) -> Result<Value, Problem> {
        let found = self.store.load([Key::Catalog, Key::LearntPrices]).await?;
        let stored = found.get(&Key::Catalog).map(|item| items::read_catalog(&Key::Catalog, item));
        let message = "no catalog is stored: tallyhook catalog push catalog.toml --apply --reason first";
        let stored = stored.ok_or_else(|| problem(StatusCode::NOT_FOUND, "no_catalog", message))??;
        let (learnt, _) = items::read_learnt_prices(found.get(&Key::LearntPrices))?;
        let mut answer = with_toml(&stored);
        answer["learnt_prices"] = learnt
            .iter()
            .map(|one| {
                json!({"id": one.id, "sold": one.sold, "lookup_key": one.lookup_key, "product": one.product,
                    "at": one.at.to_string()})
            })
            .collect();
        Ok(answer)
    }

    /// One version, in the form of [`Admin::show_catalog`].
    pub(super) async fn catalog_version(&self, version: &str) -> Result<Value, Problem> {
        let not_found = || problem(StatusCode::NOT_FOUND, "no_version", "there is no such version");
        let version = version.parse().map_err(|_| not_found())?;
        Ok(with_toml(&self.stored(&Key::CatalogVersion(version)).await?.ok_or_else(not_found)?))
    }

    /// ```json
    /// {"versions":[{"version":3,"digest":"…","applied_at":"…","actor":"ann","reason":"…"}],"next":"2"}
    /// ```
    pub(super) async fn catalog_versions(&self, request: &Request) -> Result<Value, Problem> {
        let newest = match parameter(request, "next") {
            Some(next) => {
                next.parse().map_err(|_| bad("invalid_next", "next must be what the last page gave"))?
            }
            None => self.stored(&Key::Catalog).await?.map_or(0, |stored| stored.version),
        };
        let oldest = newest.saturating_sub(PAGE);
        let keys: Vec<Key> = (oldest + 1..=newest).rev().map(Key::CatalogVersion).collect();
        let found = self.store.load(keys.iter().cloned()).await?;
        let mut versions = Vec::new();
        for key in &keys {
            if let Some(item) = found.get(key) {
                versions.push(view(&items::read_catalog(key, item)?));
            }
        }
        Ok(json!({"versions": versions, "next": (oldest > 0).then(|| oldest.to_string())}))
    }

    /// Says what a new catalog changes, and replaces the stored one with `apply=true`.
    pub(super) async fn put_catalog(
        &self,
        request: &Request,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let bytes: &[u8] = request.body();
        if bytes.len() > MAX_CATALOG_BYTES {
            let message = format!("a catalog has at most {MAX_CATALOG_BYTES} bytes");
            return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "catalog_too_large", message));
        }
        let toml = std::str::from_utf8(bytes).map_err(|error| bad("invalid_catalog", error.to_string()))?;
        let catalog = Catalog::parse(toml).map_err(|error| bad("invalid_catalog", error.to_string()))?;
        let stored = self.stored(&Key::Catalog).await?;
        check_digest(request, stored.as_ref())?;
        let apply = parameter(request, "apply").is_some_and(|apply| apply == "true");
        let reason = apply.then(|| short(parameter(request, "reason").unwrap_or_default().trim()));
        self.replace_catalog(toml, &catalog, stored, reason, operator, now_ms).await
    }

    /// Stores a catalog as `PUT /admin/catalog` does, in place of the current one. Returns its version, or
    /// `None` if the current one has the same text.
    ///
    /// # Errors
    /// Says why the catalog is not stored.
    pub async fn store_catalog(
        &self,
        toml: &str,
        reason: &str,
        operator: &AdminToken,
    ) -> Result<Option<u64>, String> {
        let catalog = Catalog::parse(toml).map_err(|error| error.to_string())?;
        let stored = self.stored(&Key::Catalog).await.map_err(Problem::message)?;
        let (now_ms, reason) = (clock::now_ms(), Some(reason.to_owned()));
        let answer = self.with_fresh_catalog().await;
        let answer = answer.replace_catalog(toml, &catalog, stored, reason, operator, now_ms).await;
        let answer = answer.map_err(Problem::message)?;
        Ok(answer["version"].as_u64().filter(|_| answer["applied"] == true))
    }

    /// Says what a catalog changes. With a reason, it replaces the stored one.
    async fn replace_catalog(
        &self,
        toml: &str,
        catalog: &Catalog,
        stored: Option<StoredCatalog>,
        reason: Option<String>,
        operator: &AdminToken,
        now_ms: i64,
    ) -> Result<Value, Problem> {
        let now = seconds(now_ms);
        let current = &self.processor.accounts.catalog;
        let learnt = || current.learnt().values().cloned();
        let before = match &stored {
            Some(stored) => Catalog::parse(&stored.toml)
                .map_err(|error| Key::Catalog.corrupt(error.to_string()))?
                .with_learnt(learnt()),
            None => Catalog::clone(current),
        };
        let catalog = &catalog.clone().with_learnt(learnt());
        let digest = items::catalog_digest(toml);
        let mut accounts = self.processor.accounts.clone();
        accounts.catalog = DecidingCatalog::from(catalog.clone()).into();
        let retrier = Retrier::new(accounts, self.processor.redrive.clone());
        let (freed, more) = retrier.freed_by_catalog(&before, now).await?;
        let changes = changes(&before, catalog);
        let no_longer_sold = removed(&sold_prices(&before), &sold_prices(catalog));
        let on_removed = self.accounts_on_prices(&no_longer_sold, now).await?;
        let changed = stored.as_ref().is_none_or(|stored| stored.digest != digest);
        let reason = reason.filter(|_| changed);
        let known = stored.as_ref().map_or(0, |stored| stored.version);
        let version = if changed { known + 1 } else { known };
        let applied = reason.is_some();
        if let Some(reason) = reason {
            if reason.is_empty() {
                return Err(bad("invalid_reason", "applying a catalog needs reason=…"));
            }
            let target = format!("version {version} {digest}");
            self.audit(operator, None, Some(&reason), "put_catalog", &target, now_ms).await?;
            let next = StoredCatalog {
                toml: toml.to_owned(),
                digest: digest.clone(),
                version,
                applied_at: now,
                actor: operator.name.clone(),
                reason,
            };
            self.write_catalog(&next).await?;
            self.send_freed(&retrier, &freed, now).await?;
        }
        Ok(json!({
            "applied": applied,
            "digest": digest,
            "version": version,
            "changes": changes,
            "accounts_on_removed_prices": {
                "count": on_removed.count, "at_least": on_removed.incomplete, "users": on_removed.users,
            },
            "parked_freed": {
                "count": freed.len(), "at_least": more,
                "events": freed.iter().take(MAX_NAMED).map(|line| &line.id).collect::<Vec<_>>(),
            },
        }))
    }

    async fn stored(&self, key: &Key) -> Result<Option<StoredCatalog>, Problem> {
        let found = self.store.load([key.clone()]).await?;
        Ok(found.get(key).map(|item| items::read_catalog(key, item)).transpose()?)
    }

    async fn write_catalog(&self, next: &StoredCatalog) -> Result<(), Problem> {
        match self.store.commit(items::catalog(next).into()).await {
            Ok(()) => {
                self.processor.accounts.catalog_cache.read_now(&self.store).await;
                Ok(())
            }
            Err(StoreError::Cancelled(reasons))
                if reasons.iter().any(|(_, reason)| *reason == Reason::Condition) =>
            {
                let current = self.stored(&Key::Catalog).await?;
                Err(digest_mismatch(current.as_ref()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A worker reads the catalog again before it parks such an event, so each of them is decided by the new
    /// catalog.
    async fn send_freed(
        &self,
        retrier: &Retrier,
        freed: &[LogRecord],
        now: Timestamp,
    ) -> Result<(), Problem> {
        retrier.send_records(freed, now).await?;
        Ok(())
    }

    /// Stops at the deadline; the count is then a lower bound.
    async fn accounts_on_prices(
        &self,
        prices: &[String],
        now: Timestamp,
    ) -> Result<AccountsOnPrices, Problem> {
        let mut found = AccountsOnPrices::default();
        if prices.is_empty() {
            return Ok(found);
        }
        let until = Instant::now() + TIME;
        let catalog = &self.processor.accounts.catalog;
        let mut next: Option<String> = None;
        loop {
            let page = self.store.accounts(next.as_deref()).await?;
            for (user, account) in page.accounts {
                let Ok(account) = account else { continue };
                let on_price = drift::live(&account, catalog, now).into_iter().any(|id| {
                    let subscription = account.state.subscriptions.get(id);
                    let snapshot = subscription.and_then(|subscription| subscription.snapshot.as_ref());
                    let mut items = snapshot.into_iter().flat_map(|snapshot| &snapshot.items);
                    items.any(|item| prices.iter().any(|price| price == item.price.as_str()))
                });
                if on_price {
                    found.count += 1;
                    if found.users.len() < MAX_NAMED {
                        found.users.push(user);
                    }
                }
            }
            next = page.next;
            if next.is_none() {
                return Ok(found);
            }
            if Instant::now() >= until {
                found.incomplete = true;
                return Ok(found);
            }
        }
    }
}

fn view(stored: &StoredCatalog) -> Value {
    json!({
        "version": stored.version, "digest": stored.digest, "applied_at": stored.applied_at.to_string(),
        "actor": stored.actor, "reason": stored.reason,
    })
}

fn with_toml(stored: &StoredCatalog) -> Value {
    let mut view = view(stored);
    view["toml"] = json!(stored.toml);
    view
}

/// Compares `If-Match` with the stored catalog. A request without it, or with `If-None-Match: *`, is accepted
/// only while no catalog is stored.
fn check_digest(request: &Request, stored: Option<&StoredCatalog>) -> Result<(), Problem> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let expected = header("if-match").map(|value| value.trim().trim_matches('"'));
    if expected == stored.map(|stored| stored.digest.as_str()) {
        return Ok(());
    }
    Err(digest_mismatch(stored))
}

fn digest_mismatch(stored: Option<&StoredCatalog>) -> Problem {
    let message = match stored {
        Some(stored) => format!("the stored catalog has the digest {}; send it as If-Match", stored.digest),
        None => "no catalog is stored; send the request without If-Match".to_owned(),
    };
    problem(StatusCode::PRECONDITION_FAILED, "digest_mismatch", message)
}

fn removed(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    before.difference(after).cloned().collect()
}

/// What a new catalog adds, removes and changes.
fn changes(before: &Catalog, after: &Catalog) -> Value {
    let (old_prices, new_prices) = (prices(before), prices(after));
    let (old_keys, new_keys) = (lookup_keys(before), lookup_keys(after));
    let (old, new) = (entries(before), entries(after));
    let plans = |entries: &BTreeMap<String, Value>| -> BTreeSet<String> {
        entries.keys().filter_map(|name| name.strip_prefix("plan ")).map(str::to_owned).collect()
    };
    let (old_plans, new_plans) = (plans(&old), plans(&new));
    let mut changed = Vec::new();
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (from, to) = (old.get(name), new.get(name));
        let empty = Map::new();
        let fields = |entry: Option<&Value>| entry.and_then(Value::as_object).unwrap_or(&empty).clone();
        let (old_fields, new_fields) = (fields(from), fields(to));
        let all: BTreeSet<&String> = old_fields.keys().chain(new_fields.keys()).collect();
        let is_plan = name.starts_with("plan ");
        if is_plan && (from.is_none() || to.is_none()) {
            continue;
        }
        for field in all {
            let (from, to) = (old_fields.get(field), new_fields.get(field));
            if from != to {
                changed.push(json!({"name": name, "field": field, "from": from, "to": to}));
            }
        }
    }
    json!({
        "prices_added": removed(&new_prices, &old_prices),
        "prices_removed": removed(&old_prices, &new_prices),
        "plans_added": removed(&new_plans, &old_plans),
        "plans_removed": removed(&old_plans, &new_plans),
        "lookup_keys_added": removed(&new_keys, &old_keys),
        "lookup_keys_removed": removed(&old_keys, &new_keys),
        "changed": changed,
    })
}

/// The parts of a catalog by name, each an object of fields. Prices are compared separately.
fn entries(catalog: &Catalog) -> BTreeMap<String, Value> {
    let all = serde_json::to_value(catalog).unwrap_or_default();
    let mut entries = BTreeMap::new();
    for (list, kind, name) in [
        ("plans", "plan", "name"),
        ("packs", "pack", "name"),
        ("products", "product", "name"),
        ("orders", "order", "mode"),
    ] {
        for one in all[list].as_array().into_iter().flatten() {
            let mut fields = one.as_object().cloned().unwrap_or_default();
            fields.remove("sold_as");
            entries
                .insert(format!("{kind} {}", one[name].as_str().unwrap_or_default()), Value::Object(fields));
        }
    }
    for part in ["tiers", "policy", "features", "default_features", "checkout"] {
        entries.insert(part.to_owned(), all[part].clone());
    }
    // It is computed from the plans.
    if let Some(policy) = entries.get_mut("policy").and_then(Value::as_object_mut) {
        policy.remove("carried_periods");
    }
    entries.insert("catalog".to_owned(), json!({"ignore": all["ignore"]}));
    entries
}

fn prices(catalog: &Catalog) -> BTreeSet<String> {
    let sold = sold_as(catalog).flat_map(|sold_as| sold_as.prices.iter());
    let orders =
        catalog.orders.iter().flat_map(|order| order.plans.values()).flat_map(|plan| plan.prices.iter());
    sold.chain(orders).cloned().collect()
}

/// The price ids that a catalog names, and the learnt ones that it finds.
fn sold_prices(catalog: &Catalog) -> BTreeSet<String> {
    let learnt = catalog.learnt().keys().filter(|id| !matches!(catalog.offer(id, None, None), Ok(None)));
    learnt.cloned().chain(prices(catalog)).collect()
}

fn lookup_keys(catalog: &Catalog) -> BTreeSet<String> {
    sold_as(catalog).flat_map(|sold_as| sold_as.lookup_keys.iter()).cloned().collect()
}

fn sold_as(catalog: &Catalog) -> impl Iterator<Item = &tallyhook_core::catalog::SoldAs> {
    let plans = catalog.plans.iter().map(|plan| &plan.sold_as);
    let packs = catalog.packs.iter().map(|pack| &pack.sold_as);
    plans.chain(packs).chain(catalog.products.iter().map(|product| &product.sold_as))
}
