//! The operators' tokens: what each role may do, how much a token may grant, and whose name the audit has.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::openapi::{operations, role};
use crate::support::{ADMIN_TOKEN, World, sample};

const ROLES: [&str; 3] = ["viewer", "operator", "admin"];

/// An entry of `ADMIN_API_TOKENS`.
pub fn token(name: &str, role: &str, max_grant: Option<u64>, text: &str) -> Value {
    let sha256: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"name": name, "role": role, "max_grant": max_grant, "sha256": sha256})
}

/// A deployment with a token for each role, beside `ADMIN_API_TOKEN`. The token of a role is its name.
async fn world() -> World {
    let tokens = json!([
        token("vera", "viewer", None, "viewer"),
        token("olga", "operator", Some(1000), "operator"),
        token("ada", "admin", None, "admin"),
        token("otto", "operator", None, "no-credits"),
    ]);
    let world = World::with(&[("ADMIN_API_TOKENS", &tokens.to_string())]).await;
    world.sign_up("user_1").await;
    world.calls();
    world
}

async fn ask(world: &World, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
    world.ask_as(Some(&format!("Bearer {token}")), method, path, body).await
}

/// `fix-user` of `user_1`, with this key.
async fn fix(world: &World, token: &str, key: &str, body: Value) -> (u16, Value) {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str()), ("idempotency-key", key)];
    world.ask_with(&headers, "POST", "/admin/stripe/fix-user/user_1", body).await
}

#[tokio::test]
async fn each_route_refuses_every_role_below_the_one_it_names() {
    let world = world().await;
    let before = world.everything().await;
    let mut changing = Vec::new();
    for (method, path) in operations().into_iter().filter(|(_, path)| path.starts_with("/admin")) {
        let needed = role(&method, &path);
        if needed != "viewer" {
            changing.push(format!("{method} {path}"));
        }
        let path = path.replace("{id}", "user_1").replace("{cs}", "cs_test_1");
        for has in ROLES {
            world.calls();
            let (status, answer) = ask(&world, has, &method, &path, Value::Null).await;
            let place = |role: &str| ROLES.iter().position(|one| *one == role);
            if place(has) < place(needed) {
                assert_eq!((status, &answer["error"]), (403, &json!("forbidden")), "{has}: {method} {path}");
                let message = format!("this needs the role {needed}; your token has the role {has}");
                assert_eq!(answer["message"], message);
                assert!(world.operations().is_empty(), "{has}: {method} {path} reads nothing");
            } else {
                assert!(!matches!(status, 401 | 403), "{has}: {method} {path}: {answer}");
            }
        }
    }
    // Routes that need more than the role viewer are listed here, so that none is readable by accident.
    assert_eq!(
        changing,
        [
            "POST /admin/erase/{id}",
            "POST /admin/import",
            "POST /admin/provisioning",
            "POST /admin/stripe/fix-user/{id}",
            "POST /admin/stripe/reconcile",
            "POST /admin/stripe/retry-webhooks",
            "POST /admin/stripe/webhook-logs/{id}/dismiss",
            "PUT /admin/catalog",
        ]
    );
    assert_eq!(world.everything().await[0][0], before[0][0], "no account changes");
}

#[tokio::test]
async fn a_stolen_viewer_token_changes_nothing() {
    let world = world().await;
    world.process(&sample("invoice.paid", "user_2")).await;
    let before = world.everything().await;
    let mine = json!({"reason": "x", "actor": "ada"});
    let with = |more: Value| {
        let mut body = mine.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let event = sample("invoice.paid", "user_2")["id"].as_str().unwrap().to_owned();
    for (path, body) in [
        ("stripe/fix-user/user_1".to_owned(), with(json!({"action": "grant", "credits": 1}))),
        ("stripe/fix-user/user_1".to_owned(), with(json!({"action": "complimentary", "plan": "pro"}))),
        ("stripe/fix-user/user_1".to_owned(), with(json!({"action": "link_customer", "customer": "cus_1"}))),
        (
            "stripe/fix-user/user_1".to_owned(),
            with(json!({"action": "move", "customer": "cus_1", "to": "u"})),
        ),
        ("stripe/retry-webhooks".to_owned(), with(json!({"id": event}))),
        ("stripe/reconcile".to_owned(), with(json!({"dry_run": false}))),
        ("stripe/reconcile".to_owned(), with(json!({"dry_run": true}))),
        (format!("stripe/webhook-logs/{event}/dismiss"), with(json!({}))),
        ("provisioning".to_owned(), with(json!({"job": "provision", "user_id": "user_1"}))),
    ] {
        let headers = [("authorization", "Bearer viewer"), ("idempotency-key", "k")];
        let (status, answer) =
            world.ask_with(&headers, "POST", &format!("/admin/{path}"), body.clone()).await;
        assert_eq!((status, &answer["error"]), (403, &json!("forbidden")), "{path} {body}");
    }
    assert_eq!(world.everything().await, before, "nothing is changed, audited or sent");
}

#[tokio::test]
async fn a_token_changes_at_most_its_largest_grant_at_once() {
    let world = world().await;
    let change = |action: &str, credits: u64| json!({"action": action, "credits": credits, "reason": "x"});
    let gift = |credits: u64| {
        json!({"action": "complimentary", "plan": "pro", "until": "2099-01-01T00:00:00Z", "credits": credits,
            "reason": "x"})
    };
    let before = world.everything().await;
    for (token, body, max) in [
        ("operator", change("grant", 1001), 1000),
        ("operator", change("revoke", 1001), 1000),
        ("operator", gift(1001), 1000),
        ("no-credits", change("grant", 1), 0),
        ("no-credits", gift(1), 0),
    ] {
        let (status, answer) = fix(&world, token, "k", body.clone()).await;
        assert_eq!((status, &answer["error"]), (403, &json!("forbidden")), "{body}");
        assert!(answer["message"].as_str().unwrap().contains(&format!("at most {max} credits")), "{answer}");
    }
    assert_eq!(world.everything().await, before, "a refused change is neither made nor audited");
    for (token, key, body, balance) in [
        ("operator", "k1", change("grant", 1000), 1500),
        ("operator", "k2", change("revoke", 1000), 500),
        ("no-credits", "k3", gift(0), 500),
        ("admin", "k4", change("grant", 50_000), 50_500),
        (ADMIN_TOKEN, "k5", change("grant", 50_000), 100_500),
    ] {
        let (status, answer) = fix(&world, token, key, body.clone()).await;
        assert_eq!((status, answer["balance"].as_u64()), (200, Some(balance)), "{body}: {answer}");
    }
}

#[tokio::test]
async fn the_actor_of_a_change_is_the_tokens_name_and_another_name_is_a_claim() {
    let world = world().await;
    for (key, actor) in [("k1", json!("ada")), ("k2", json!("olga")), ("k3", Value::Null)] {
        let body = json!({"action": "grant", "credits": 1, "reason": "x", "actor": actor});
        assert_eq!(fix(&world, "operator", key, body).await.0, 200);
    }
    let audits = ask(&world, "viewer", "GET", "/admin/audit", Value::Null).await.1["audits"].clone();
    let names: Vec<_> =
        audits.as_array().unwrap().iter().map(|audit| (&audit["actor"], &audit["claimed"])).collect();
    let mut claims: Vec<_> = names.iter().filter_map(|(_, claimed)| claimed.as_str()).collect();
    claims.sort_unstable();
    assert!(names.iter().all(|(actor, _)| *actor == "olga"), "{names:?}");
    assert_eq!(claims, ["ada"]);
    let ledger = world.ledger("user_1").await;
    assert!(ledger[..3].iter().all(|entry| entry["cause"] == "admin:olga"), "{ledger:#?}");
}

#[tokio::test]
async fn a_token_learns_its_own_name_role_and_limit() {
    let world = world().await;
    for (token, name, role, max_grant) in [
        ("viewer", "vera", "viewer", json!(0)),
        ("operator", "olga", "operator", json!(1000)),
        ("no-credits", "otto", "operator", json!(0)),
        ("admin", "ada", "admin", Value::Null),
        (ADMIN_TOKEN, "admin", "admin", Value::Null),
    ] {
        let me = json!({"name": name, "role": role, "max_grant": max_grant});
        assert_eq!(ask(&world, token, "GET", "/admin/me", Value::Null).await, (200, me));
    }
    let hash = token("x", "viewer", None, "viewer")["sha256"].as_str().unwrap().to_owned();
    let refused = ask(&world, &hash, "GET", "/admin/me", Value::Null).await;
    assert_eq!((refused.0, &refused.1["error"]), (401, &json!("unauthorized")), "a hash is not a token");
}
