//! Features, products and `check`, through HTTP, queue and DynamoDB.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{World, pack, sample, with_id};

const FEATURES: &str = r#"
[features]
sso = "switch"
export = "switch"
projects = "limit"
[default_features]
projects = 1
[[product]]
name = "course"
features = { export = true }
prices = ["price_course"]
[[product]]
name = "strategy"
features = { projects = 20 }
prices = ["price_strategy"]
[[product]]
name = "template"
features = { sso = true }
prices = ["price_template"]
"#;

/// Writes a catalog with features to a temporary file and returns its path.
pub fn catalog(name: &str, edit: impl Fn(String) -> String) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("tallyhook-{name}-{}.toml", std::process::id()));
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml")).unwrap();
    let of_pro = "name = \"pro\"\ntier = \"pro\"\n";
    assert!(text.contains(of_pro));
    let text = text.replace(of_pro, &format!("{of_pro}features = {{ sso = true, projects = 10 }}\n"));
    std::fs::write(&path, edit(format!("{text}{FEATURES}"))).unwrap();
    path
}

async fn world(name: &str) -> World {
    let path = catalog(name, |text| text);
    let world = World::with(&[("CATALOG_FILE", path.to_str().unwrap())]).await;
    std::fs::remove_file(path).unwrap();
    world
}

async fn check(world: &World, user: &str, query: &str) -> (u16, Value) {
    world.app("GET", &format!("/users/{user}/check?{query}"), Value::Null, None).await
}

/// A paid session that sells a product by its name.
pub fn sold(name: &str, user: &str, product: &str) -> Value {
    let mut event = pack(name, user, 1);
    event["data"]["object"]["metadata"] = json!({"user_id": user, "product": product});
    event
}

/// A full refund of a session.
pub fn refunded(name: &str) -> Value {
    let mut event = with_id(sample("charge.refunded", "user_1"), &format!("evt_refund_{name}"));
    let charge = &mut event["data"]["object"];
    charge["id"] = json!(format!("ch_{name}"));
    charge["payment_intent"] = json!(format!("pi_{name}"));
    charge["metadata"] = json!({});
    charge["amount_refunded"] = charge["amount"].clone();
    event
}

#[tokio::test]
async fn check_is_one_read_and_refuses_unknown_names() {
    let world = world("check").await;
    world.sign_up("user_1").await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        world.process(&sample(name, "user_1")).await;
    }
    world.calls();
    let answer = check(&world, "user_1", "feature=projects&used=7").await;
    let expected =
        json!({"allowed": true, "limit": 10, "remaining": 3, "because": "plan pro", "until": null});
    assert_eq!(answer, (200, expected));
    assert_eq!(world.operations(), ["BatchGetItem"]);
    for (query, expected) in [
        ("feature=projects&used=10", (200, json!({"allowed": false, "limit": 10, "remaining": 0}))),
        ("feature=projects", (200, json!({"allowed": true, "remaining": 10}))),
        ("feature=sso", (200, json!({"allowed": true, "limit": null, "remaining": null}))),
        ("feature=export", (200, json!({"allowed": false, "because": "default"}))),
        ("credits=5000", (200, json!({"allowed": true, "available": 5000}))),
        ("credits=5001", (200, json!({"allowed": false, "available": 5000}))),
        ("feature=SSO", (400, json!({"error": "unknown_feature"}))),
        ("feature=", (400, json!({"error": "unknown_feature"}))),
        ("feature=projects&used=-1", (400, json!({"error": "invalid_used"}))),
        ("feature=projects&used=1000000000000000", (200, json!({"allowed": false}))),
        ("feature=projects&used=1000000000000001", (400, json!({"error": "invalid_used"}))),
        ("credits=1000000000000000", (200, json!({"allowed": false, "available": 5000}))),
        ("credits=1000000000000001", (400, json!({"error": "invalid_credits"}))),
        ("credits=many", (400, json!({"error": "invalid_credits"}))),
        ("", (400, json!({"error": "invalid_check"}))),
        ("feature=sso&credits=1", (400, json!({"error": "invalid_check"}))),
    ] {
        let (status, body) = check(&world, "user_1", query).await;
        assert_eq!(status, expected.0, "{query}: {body}");
        for (name, value) in expected.1.as_object().unwrap() {
            assert_eq!(body[name], *value, "{query}");
        }
    }
    assert_eq!(check(&world, "unknown", "feature=sso").await.1["error"], "user_not_found");
    let body = json!({"amount": 4000, "ttl_seconds": 60});
    assert_eq!(world.app("POST", "/users/user_1/credits/holds", body, Some("k")).await.0, 201);
    assert_eq!(check(&world, "user_1", "credits=1001").await.1, json!({"allowed": false, "available": 1000}));
}

#[tokio::test]
async fn two_users_three_products_and_one_refund_give_one_result_in_any_order() {
    let events = [
        sold("a", "user_1", "course"),
        sold("b", "user_2", "strategy"),
        sold("c", "user_1", "template"),
        refunded("a"),
    ];
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]];
    let ends = join_all(orders.iter().enumerate().map(async |(place, order)| {
        let world = world(&format!("products-{place}")).await;
        for place in order {
            world.process(&events[*place]).await;
        }
        let mut end = Vec::new();
        for user in ["user_1", "user_2"] {
            let account = world.account(user).await;
            assert_eq!((&account["tier"], &account["credits"]), (&json!("free"), &json!(0)));
            end.push(json!([account["features"], account["products"]]));
        }
        end
    }))
    .await;
    let product = |name: &str, status: &str, payment: &str| {
        json!({"name": name, "price": null, "amount": 1000, "currency": "usd", "status": status,
            "payment_intent": payment, "subscription": null, "purchase_type": "one_time",
            "at": "2026-01-12T15:00:21Z"})
    };
    for end in ends {
        let of_user_1 = json!([
            {"sso": true, "export": false, "projects": 1},
            [product("course", "refunded", "pi_a"), product("template", "active", "pi_c")],
        ]);
        let of_user_2 = json!([
            {"sso": false, "export": false, "projects": 20},
            [product("strategy", "active", "pi_b")],
        ]);
        assert_eq!(end, [of_user_1, of_user_2]);
    }
}

#[tokio::test]
async fn an_unknown_product_is_parked_until_the_catalog_has_it() {
    let world = world("unknown").await;
    world.process(&sold("a", "user_1", "movie")).await;
    let parked = world.event("evt_a").await.unwrap();
    assert_eq!((parked["reason"].as_str(), parked["waits_for"].as_str()), ("unknown_name", "product#movie"));
}

/// The attributes `features` and `catalog_digest` of an account's item.
fn features_of(everything: &Value, user: &str) -> (Value, Value) {
    let items = everything[0][0].as_array().unwrap();
    let key = format!("user#{user}");
    let item = items.iter().find(|item| item["pk"]["S"] == key && item["sk"]["S"] == "account").unwrap();
    (item["features"]["M"].clone(), item["catalog_digest"]["S"].clone())
}

#[tokio::test]
async fn a_change_of_the_catalog_reaches_every_account_and_a_stopped_sweep_continues() {
    let world = World::new().await;
    for number in 0..30 {
        world.sign_up(&format!("user_{number}")).await;
    }
    // A catalog without features writes none, and its schedule writes nothing.
    let before = world.everything().await;
    assert_eq!(features_of(&before, "user_7"), (Value::Null, Value::Null));
    world.retry_in(0).await;
    assert_eq!(world.everything().await, before);

    let path = catalog("sweep", |text| text);
    let world = world.redeploy(&[("CATALOG_FILE", path.to_str().unwrap())]);
    // The API follows the new catalog at once.
    assert_eq!(world.account("user_7").await["features"]["projects"], 1);
    // DynamoDB fails in the middle. The next run continues and ends.
    let mut writes = 0;
    world.fault(move |call| {
        writes += usize::from(call.operation == "TransactWriteItems");
        (writes > 10).then(|| crate::support::aws_error(400, "AccessDeniedException"))
    });
    assert!(world.retry.run(crate::support::now()).await.is_err());
    world.heal();
    let swept = world.retry_in(0).await.swept;
    assert!((1..30).contains(&swept.written) && !swept.more, "{swept:?}");
    let after = world.everything().await;
    let expected = json!({"sso": {"BOOL": false}, "export": {"BOOL": false}, "projects": {"N": "1"}});
    for number in 0..30 {
        assert_eq!(features_of(&after, &format!("user_{number}")).0, expected);
    }
    // A run without a change reads the place and writes nothing.
    world.calls();
    assert_eq!(world.retry_in(0).await.swept.written, 0);
    assert!(world.operations().iter().all(|operation| operation != "Scan"));

    // An edit reaches all accounts again. A catalog without features removes them.
    std::fs::write(
        &path,
        std::fs::read_to_string(&path).unwrap().replace("projects = 1\n", "projects = 2\n"),
    )
    .unwrap();
    let world = world.redeploy(&[("CATALOG_FILE", path.to_str().unwrap())]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(world.retry_in(0).await.swept.written, 30);
    assert_eq!(features_of(&world.everything().await, "user_29").0["projects"], json!({"N": "2"}));
    let plain = concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml");
    let world = world.redeploy(&[("CATALOG_FILE", plain)]);
    assert_eq!(world.retry_in(0).await.swept.written, 30);
    assert_eq!(features_of(&world.everything().await, "user_29"), (Value::Null, Value::Null));
}
