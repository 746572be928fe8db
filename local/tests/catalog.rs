//! `tallyhook catalog` against a small admin API and the fake Stripe: the binary with its output, its files
//! and its exit codes.

#![allow(clippy::unwrap_used, reason = "a test says that it failed by panicking")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Segment, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;

use self::server::serve;
use self::support::tallyhook;

const KEY: &str = "sk_test_1";

const CATALOG: &str = r#"[tiers]
free = 0
pro = 1

[policy]
default_tier = "free"
addons = "keep"

# The plan that most people have.
[[plan]]
name = "pro"
tier = "pro"
credits = 5000
amount = 2000 # in cents
currency = "usd"
interval = "month"
lookup_keys = ["pro_monthly"]

[[pack]]
name = "credits_1000"
credits = 1000
amount = 900
currency = "usd"
lookup_keys = ["credits_1000"]
"#;

/// Runs `tallyhook catalog`. Returns the exit code and both outputs.
async fn catalog(arguments: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    tallyhook(&[&["catalog"][..], arguments].concat(), env).await
}

/// A file that is removed at the end.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tallyhook-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }

    fn change(&self, from: &str, to: &str) {
        let text = self.text();
        assert!(text.contains(from), "{text}");
        fs::write(&self.0, text.replacen(from, to, 1)).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn check_prints_each_error_with_its_line_and_what_a_valid_file_sells() {
    let file = File::new("check.toml", CATALOG);
    let (code, output) = catalog(&["check", file.path()], &[]).await;
    assert_eq!(code, Some(0), "{output}");
    let row = |start: &str| output.lines().find(|line| line.trim().starts_with(start)).unwrap_or_default();
    assert!(row("plan  pro").contains("20.00 usd per month") && row("plan  pro").contains("key pro_monthly"));
    assert!(row("pack").contains("1000") && row("pack").contains("9.00 usd"), "{output}");
    assert!(!output.contains("warning"), "{output}");

    file.change("addons = \"keep\"", "addons = \"reset\"");
    let (code, output) = catalog(&["check", file.path()], &[]).await;
    assert_eq!((code, output.contains("warning  addons = \"reset\"")), (Some(0), true), "{output}");

    file.change("tier = \"pro\"", "tier = \"gold\"");
    file.change("credits = 1000\n", "credits = -1\n");
    let (code, output) = catalog(&["check", file.path()], &[]).await;
    let expected = format!(
        "{0} line 12: tier \"gold\" is not under [tiers] (known tiers: free, pro)\n    tier = \"gold\"\n\
         {0} line 21: credits is -1; it must be between 0 and 1000000000\n    credits = -1\n{0} has 2 errors.\n",
        file.path()
    );
    assert_eq!((code, output), (Some(1), expected));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml");
    assert_eq!(catalog(&["check", example], &[]).await.0, Some(0));
    assert_eq!(catalog(&["check", "/nowhere.toml"], &[]).await.0, Some(2));
    let empty = File::new("empty.toml", "");
    let (code, output) = catalog(&["check", empty.path()], &[]).await;
    assert!(code == Some(1) && output.contains("missing field `tiers`"), "{code:?} {output}");
}

/// The catalog routes of the admin API, without their rules.
#[derive(Clone, Default)]
struct Deployment {
    versions: Arc<Mutex<Vec<Value>>>,
    /// Removed after the next read, as if another operator pushed.
    is_raced: Arc<Mutex<bool>>,
}

impl Deployment {
    async fn start(&self) -> String {
        let router = Router::new()
            .route("/admin/catalog", get(Self::current).put(Self::put))
            .route("/admin/catalog/history", get(Self::history))
            .route("/admin/catalog/history/{version}", get(Self::version))
            .with_state(self.clone());
        serve(router).await
    }

    async fn current(State(this): State<Self>) -> (StatusCode, Json<Value>) {
        match this.versions.lock().unwrap().last() {
            Some(version) => (StatusCode::OK, Json(version.clone())),
            None => (
                StatusCode::NOT_FOUND,
                Json(json!({"error": "no_catalog", "message": "there is no catalog"})),
            ),
        }
    }

    async fn version(State(this): State<Self>, Segment(version): Segment<usize>) -> Json<Value> {
        Json(this.versions.lock().unwrap()[version - 1].clone())
    }

    /// One version on each page.
    async fn history(State(this): State<Self>, Query(query): Query<Value>) -> Json<Value> {
        let versions = this.versions.lock().unwrap();
        let at = query["next"].as_str().map_or(versions.len(), |next| next.parse().unwrap());
        let next = (at > 1).then(|| (at - 1).to_string());
        Json(json!({"versions": [versions[at - 1]], "next": next}))
    }

    async fn put(
        State(this): State<Self>,
        Query(query): Query<Value>,
        headers: HeaderMap,
        toml: String,
    ) -> (StatusCode, Json<Value>) {
        assert_eq!(headers["authorization"], "Bearer token");
        let digest = format!("d{}", toml.len());
        let mut versions = this.versions.lock().unwrap();
        let current = versions.last().map(|version| version["digest"].as_str().unwrap().to_owned());
        let matched =
            headers.get("if-match").map(|digest| digest.to_str().unwrap().trim_matches('"').to_owned());
        if matched != current || std::mem::take(&mut *this.is_raced.lock().unwrap()) {
            let problem = json!({"error": "digest_mismatch", "message": "another catalog is stored"});
            return (StatusCode::PRECONDITION_FAILED, Json(problem));
        }
        let is_applied = query["apply"] == "true" && current.as_ref() != Some(&digest);
        if is_applied {
            let version = json!({"version": versions.len() + 1, "digest": digest, "toml": toml,
                "actor": query["actor"], "reason": query["reason"], "applied_at": "2026-01-01T00:00:00Z"});
            versions.push(version);
        }
        let is_changed = current.as_ref() != Some(&digest);
        let users: Vec<String> = (1..=12).map(|user| format!("user_{user}")).collect();
        let answer = if is_changed {
            json!({
                "applied": is_applied, "digest": digest, "version": versions.len(),
                "changes": {"prices_added": ["price_new"], "prices_removed": ["price_old"], "plans_added": ["team"],
                    "plans_removed": [], "lookup_keys_added": [], "lookup_keys_removed": ["old_key"],
                    "changed": [{"name": "plan pro", "field": "credits", "from": 5000, "to": 6000}]},
                "accounts_on_removed_prices": {"count": 12, "at_least": true, "users": users},
                "parked_freed": {"count": 1, "events": ["evt_1"]},
            })
        } else {
            json!({"applied": false, "digest": digest, "version": versions.len(), "changes": {}})
        };
        (StatusCode::OK, Json(answer))
    }
}

#[tokio::test]
async fn push_changes_the_catalog_of_a_deployment_only_with_apply_and_a_reason() {
    let deployment = Deployment::default();
    let url = deployment.start().await;
    let env = [("TALLYHOOK_URL", url.as_str()), ("ADMIN_API_TOKEN", "token"), ("USER", "ann")];
    let file = File::new("push.toml", CATALOG);
    let run = async |arguments: &[&str]| catalog(&[arguments, &[file.path()]].concat(), &env).await;

    let (code, output) = run(&["diff"]).await;
    assert_eq!((code, output.contains("has no catalog")), (Some(1), true), "{output}");
    assert_eq!(catalog(&["pull", "--from-server"], &env).await.0, Some(2));
    let (code, output) = run(&["push"]).await;
    assert_eq!(code, Some(1), "{output}");
    for line in [
        "add      plan team",
        "add      price price_new",
        "remove   price price_old",
        "remove   lookup key old_key",
        "change   plan pro: credits 5000 → 6000",
        "warning  at least 12 accounts live on a price that is removed: user_1, user_2, user_3, user_4, user_5, \
         user_6, user_7, user_8, user_9, user_10, …. Their renewals grant what the price was worth",
        "send     1 parked event again: evt_1",
        "Nothing was changed. Repeat the command with --apply and --reason to do this.",
    ] {
        assert!(output.contains(line), "{line}: {output}");
    }
    assert!(deployment.versions.lock().unwrap().is_empty());
    let (code, output) = run(&["push", "--apply"]).await;
    assert_eq!((code, output.contains("--reason")), (Some(2), true), "{output}");

    let (code, output) = run(&["push", "--apply", "--reason", "first & only"]).await;
    assert_eq!((code, output.contains("The catalog is version 1.")), (Some(0), true), "{output}");
    let stored = deployment.versions.lock().unwrap()[0].clone();
    assert_eq!((&stored["reason"], &stored["actor"]), (&json!("first & only"), &json!("ann")));
    assert_eq!(stored["toml"], CATALOG);
    for arguments in [&["push"][..], &["push", "--apply", "--reason", "again"], &["diff"]] {
        assert_eq!(run(arguments).await.0, Some(0), "{arguments:?}");
    }
    assert_eq!(deployment.versions.lock().unwrap().len(), 1);

    file.change("credits = 5000", "credits = 6000000");
    let (code, output) = run(&["diff"]).await;
    assert_eq!(code, Some(1));
    assert!(output.contains("\n-credits = 5000\n+credits = 6000000\n amount"), "{output}");
    assert!(!output.contains("credits_1000"), "{output}");
    *deployment.is_raced.lock().unwrap() = true;
    for arguments in [
        &["push", "--apply", "--reason", "raced"][..],
        &["push", "--apply", "--reason", "stale", "--replaces", "d1"],
    ] {
        let (code, output) = run(arguments).await;
        assert_eq!((code, output.contains("digest_mismatch")), (Some(2), true), "{output}");
    }
    assert_eq!(run(&["push", "--apply", "--reason", "more credits"]).await.0, Some(0));

    let (code, output) = catalog(&["history"], &env).await;
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[1].contains("more credits") && lines[2].contains("first & only"), "{output}");
    assert_eq!(catalog(&["history", "1"], &env).await, (Some(0), CATALOG.to_owned()));
    let (_, output) = catalog(&["pull", "--from-server"], &env).await;
    assert_eq!(output, file.text());
    file.change("credits = 6000000", "credits = -1");
    let (code, output) = run(&["push", "--apply", "--reason", "wrong"]).await;
    assert_eq!((code, output.contains("line 13: credits is -1")), (Some(1), true), "{output}");
}

/// A Stripe account without objects.
struct Account {
    fake: FakeStripe,
    base: String,
}

impl Account {
    async fn new() -> Self {
        let fake = FakeStripe::new(KEY);
        let base = format!("http://{}", fake.start().await.unwrap());
        Self { fake, base }
    }

    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let (code, output) =
            catalog(arguments, &[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &self.base)]).await;
        assert!(!output.contains(KEY), "{output}");
        (code, output)
    }

    async fn push(&self, file: &File, flags: &[&str]) -> (Option<i32>, String) {
        self.run(&[&["push", file.path(), "--stripe"], flags].concat()).await
    }

    async fn get(&self, path: &str) -> Vec<Value> {
        let client = cli::client::Client::for_url(&self.base).unwrap();
        let request = axum::http::Request::get(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {KEY}"));
        let (_, answer) = client.send(request.body(Vec::new()).unwrap()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["data"].as_array().unwrap().clone()
    }

    /// Every price with a lookup key.
    async fn holder(&self, key: &str) -> Value {
        let found = self.get(&format!("/v1/prices?lookup_keys[]={key}")).await;
        let [holder] = found.as_slice() else { panic!("{key}: {found:?}") };
        holder.clone()
    }

    fn posts(&self) -> Vec<String> {
        self.fake.requests().into_iter().filter(|request| request.starts_with("POST")).collect()
    }
}

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

#[tokio::test]
async fn push_to_stripe_creates_what_is_missing_once_and_pull_reads_it_back() {
    let account = Account::new().await;
    let file = File::new("create.toml", CATALOG);
    let (code, output) = account.push(&file, &[]).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("create     product for plan \"pro\""), "{output}");
    assert!(
        output.contains("create     price of plan \"pro\", 20.00 usd per month, lookup key pro_monthly"),
        "{output}"
    );
    assert!(account.posts().is_empty());

    let (code, output) = account.push(&file, &["--apply"]).await;
    assert_eq!(code, Some(0), "{output}");
    let price = account.holder("pro_monthly").await;
    assert_eq!(
        (&price["unit_amount"], &price["currency"], &price["recurring"]["interval"], &price["type"]),
        (&json!(2000), &json!("usd"), &json!("month"), &json!("recurring"))
    );
    let pack = account.holder("credits_1000").await;
    assert_eq!((&pack["unit_amount"], &pack["type"]), (&json!(900), &json!("one_time")));
    let product = account.fake.object(price["product"].as_str().unwrap()).unwrap();
    assert_eq!(product["metadata"], json!({"tallyhook_plan": "pro"}));
    assert_eq!(account.posts().len(), 4);
    let (code, output) = account.push(&file, &["--apply"]).await;
    assert_eq!((code, output.contains("nothing to do")), (Some(0), true), "{output}");
    assert!(account.posts().is_empty());
    assert_eq!(file.text(), CATALOG);

    let pulled = File::new("pulled.toml", "");
    let (code, output) = account.run(&["pull", "--output", pulled.path()]).await;
    assert_eq!((code, output.contains("--force replaces it")), (Some(2), true), "{output}");
    let (code, output) = account.run(&["pull", "--output", pulled.path(), "--force"]).await;
    assert_eq!((code, output.contains("FILL_IN")), (Some(0), false), "{output}");
    let (read, written) = (Catalog::parse(&pulled.text()).unwrap(), Catalog::parse(CATALOG).unwrap());
    assert_eq!((&read.tiers, &read.default_rank()), (&written.tiers, &written.default_rank()));
    let (read_plan, plan) = (&read.plans[0], &written.plans[0]);
    assert_eq!((&read_plan.name, &read_plan.tier, read_plan.amount), (&plan.name, &plan.tier, plan.amount));
    assert_eq!(
        (read_plan.credits, &read_plan.sold_as.lookup_keys),
        (plan.credits, &plan.sold_as.lookup_keys)
    );
    assert_eq!(
        (&read.packs[0].name, read.packs[0].credits),
        (&written.packs[0].name, written.packs[0].credits)
    );
    let (code, output) = account.push(&pulled, &[]).await;
    assert_eq!((code, output.contains("nothing to do")), (Some(0), true), "{output}");
}

#[tokio::test]
async fn a_new_amount_is_a_new_price_with_the_lookup_key_and_the_file_keeps_the_old_one() {
    let account = Account::new().await;
    let file = File::new("amount.toml", CATALOG);
    assert_eq!(account.push(&file, &["--apply"]).await.0, Some(0));
    let old = account.holder("pro_monthly").await;
    // As the dashboard of Stripe does it.
    let mut product = account.fake.object(old["product"].as_str().unwrap()).unwrap();
    product["default_price"] = old["id"].clone();
    account.fake.put(product);

    file.change("amount = 2000", "amount = 2500");
    account.posts();
    let (code, output) = account.push(&file, &[]).await;
    assert_eq!((code, account.posts().len()), (Some(1), 0), "{output}");
    for line in [
        format!("write      {} to the prices of plan \"pro\" in {}", id(&old), file.path()),
        format!(
            "create     price of plan \"pro\", 25.00 usd per month, lookup key pro_monthly in place of {} (20.00 \
             usd per month)",
            id(&old)
        ),
        format!("deactivate price {} of plan \"pro\"; its subscriptions stay", id(&old)),
    ] {
        assert!(output.contains(&line), "{line}: {output}");
    }
    let (code, output) = account.push(&file, &["--apply"]).await;
    assert_eq!(code, Some(0), "{output}");
    let new = account.holder("pro_monthly").await;
    assert_eq!((&new["unit_amount"], &new["product"]), (&json!(2500), &old["product"]));
    let old = account.fake.object(id(&old)).unwrap();
    assert_eq!((&old["active"], &old["lookup_key"]), (&json!(false), &Value::Null));
    let product = account.fake.object(old["product"].as_str().unwrap()).unwrap();
    assert_eq!(product["default_price"], new["id"]);
    let text = file.text();
    assert!(text.contains(&format!("name = \"pro\"\nprices = [\"{}\"]\n", id(&old))), "{text}");
    assert!(text.contains("# The plan that most people have.") && text.contains("# in cents"), "{text}");
    let catalog = Catalog::parse(&text).unwrap();
    assert_eq!(catalog.plan_of_price(id(&old)).unwrap().name, "pro");
    account.posts();
    let (code, output) = account.push(&file, &["--apply"]).await;
    assert_eq!((code, account.posts().len(), file.text()), (Some(0), 0, text), "{output}");
}

#[tokio::test]
async fn a_push_that_stops_at_any_request_is_completed_by_the_next_one() {
    let mut stopped = 0;
    for request in 0.. {
        let account = Account::new().await;
        let file = File::new(&format!("stopped-{request}.toml"), CATALOG);
        assert_eq!(account.push(&file, &["--apply"]).await.0, Some(0));
        let old = account.holder("pro_monthly").await;
        let mut product = account.fake.object(old["product"].as_str().unwrap()).unwrap();
        product["default_price"] = old["id"].clone();
        account.fake.put(product);
        file.change("amount = 2000", "amount = 2500");
        file.change("amount = 900", "amount = 1000");
        account.fake.requests();
        account.fake.refuse_after(request);
        let (code, output) = account.push(&file, &["--apply"]).await;
        account.fake.heal();
        if code == Some(0) {
            assert_eq!(stopped, request);
            break;
        }
        stopped += 1;
        assert_eq!(code, Some(2), "{output}");
        let (code, output) = account.push(&file, &["--apply"]).await;
        assert_eq!(code, Some(0), "{request}: {output}");
        let prices = account.get("/v1/prices?limit=100").await;
        let active: Vec<&Value> = prices.iter().filter(|price| price["active"] == true).collect();
        assert_eq!((prices.len(), active.len()), (4, 2), "{request}: {prices:?}");
        assert!(active.iter().all(|price| price["metadata"]["tallyhook_replaces"].is_null()), "{prices:?}");
        assert_eq!(account.holder("pro_monthly").await["unit_amount"], 2500);
        let catalog = Catalog::parse(&file.text()).unwrap();
        assert_eq!(catalog.plans[0].sold_as.prices, [id(&old)]);
        assert_eq!(catalog.packs[0].sold_as.prices.len(), 1);
    }
    assert!(stopped > 10, "{stopped}");
}

#[tokio::test]
async fn what_the_file_cannot_state_is_left_alone_at_stripe() {
    let account = Account::new().await;
    account.fake.put(json!({"id": "price_3", "object": "price", "active": true, "currency": "usd", "created": 1,
        "lookup_key": "pro_monthly", "metadata": {}, "product": "prod_pro", "unit_amount": 100, "type": "recurring",
        "recurring": {"interval": "month", "interval_count": 3, "usage_type": "licensed"}}));
    account.fake.put_price("price_archived", 900, false, Some("credits_1000"));
    let mut archived = account.fake.object("price_archived").unwrap();
    archived["active"] = json!(false);
    account.fake.put(archived);
    let file = File::new("left.toml", CATALOG);
    file.change("\"pro_monthly\"]", "\"pro_monthly\", \"pro_yearly\"]");
    let (code, output) = account.push(&file, &["--apply"]).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(
        output.contains("note     plan \"pro\" is left alone: price_3 is billed every few intervals"),
        "{output}"
    );
    assert!(
        output.contains("missing  plan \"pro\": Stripe has no price with the lookup key pro_yearly"),
        "{output}"
    );
    assert!(output.contains("activated  price price_archived of pack \"credits_1000\""), "{output}");
    assert_eq!(account.fake.object("price_archived").unwrap()["active"], true);
    assert_eq!(account.posts(), ["POST /v1/prices/price_archived"]);

    account.fake.fail("/v1/prices", 9, Misbehaviour::Status(403, None));
    let (code, output) = account.push(&file, &[]).await;
    assert_eq!((code, output.contains("Stripe answered 403")), (Some(2), true), "{output}");
    let (code, output) = catalog(&["pull"], &[]).await;
    assert_eq!((code, output.contains("set STRIPE_SECRET_KEY")), (Some(2), true), "{output}");
}

#[tokio::test]
async fn pull_reads_every_page_in_a_fixed_order_and_leaves_values_to_fill_in() {
    let account = Account::new().await;
    for number in 0..120 {
        account.fake.put_price(&format!("price_{number:03}"), 100 + number, true, None);
    }
    let (code, output) = account.run(&["pull"]).await;
    assert_eq!(code, Some(0), "{output}");
    assert_eq!(
        (output.matches("[[plan]]").count(), output.matches("tier = \"FILL_IN\"").count()),
        (120, 120)
    );
    assert_eq!(account.run(&["pull"]).await.1, output);
    let names: Vec<&str> = output.lines().filter(|line| line.starts_with("name = ")).collect();
    assert!(names.is_sorted(), "{names:?}");

    let file = File::new("blank.toml", "");
    assert_eq!(account.run(&["pull", "--output", file.path(), "--force"]).await.0, Some(0));
    let (code, output) = catalog(&["check", file.path()], &[]).await;
    assert_eq!(code, Some(1));
    assert!(
        output.contains("a value is missing: fill it in\n    tier = \"FILL_IN\"  # one of [tiers]"),
        "{output}"
    );
    assert!(output.contains("has 240 errors"), "{output}");
    let filled = file
        .text()
        .replace("free = 0", "free = 0\npro = 1")
        .replace("tier = \"FILL_IN\"", "tier = \"pro\"")
        .replace("credits = \"FILL_IN\"", "credits = 5");
    fs::write(Path::new(file.path()), filled).unwrap();
    let (code, output) = catalog(&["check", file.path()], &[]).await;
    assert_eq!(code, Some(0), "{output}");
}
