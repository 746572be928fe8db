//! The catalog as data: it is stored, versioned and audited over HTTP, and the functions decide by the stored
//! one.

use std::time::Duration;

use lambda_http::Body;
use serde_json::{Value, json};
use tallyhook_service::catalog_cache::MAX_AGE;

use crate::support::{ADMIN_TOKEN, EntryPoint, World, pack, read_answer, request, sample};

const CATALOG: &str = include_str!("../catalog.toml");

/// Puts a catalog that replaces the one with this digest.
pub async fn put(world: &World, query: &str, replaces: Option<&str>, toml: &str) -> (u16, Value) {
    let token = format!("Bearer {ADMIN_TOKEN}");
    let replaces = replaces.map(|digest| format!("\"{digest}\""));
    let mut headers = vec![("authorization", token.as_str())];
    headers.extend(replaces.as_deref().map(|digest| ("if-match", digest)));
    let path = format!("/admin/catalog{query}");
    let request = request(EntryPoint::HttpApi, &headers, "PUT", &path, &Body::Text(toml.to_owned()));
    let (status, body) = read_answer(world.admin.handle(request).await.unwrap());
    crate::openapi::check("PUT", &path, status, &body);
    (status, body)
}

async fn get(world: &World, path: &str) -> (u16, Value) {
    world.ask("GET", path, Value::Null).await
}

#[tokio::test]
async fn a_catalog_is_stored_versioned_and_audited_and_replaced_only_by_its_digest() {
    let world = World::new().await;
    assert_eq!(get(&world, "/admin/catalog").await.0, 404);
    let (status, dry) = put(&world, "", None, CATALOG).await;
    assert_eq!((status, &dry["applied"], &dry["version"]), (200, &json!(false), &json!(1)), "{dry:#}");
    assert_eq!(get(&world, "/admin/catalog").await.0, 404);
    let (status, first) = put(&world, "?apply=true&reason=first", None, CATALOG).await;
    assert_eq!((status, &first["applied"]), (200, &json!(true)), "{first:#}");
    let digest = first["digest"].as_str().unwrap().to_owned();
    let (_, same) = put(&world, "?apply=true&reason=again", Some(&digest), CATALOG).await;
    assert_eq!((&same["applied"], &same["version"]), (&json!(false), &json!(1)), "{same:#}");

    let more = CATALOG.replacen("credits = 5000", "credits = 6000", 1);
    assert_ne!(more, CATALOG);
    for stale in [None, Some("0000000000000000")] {
        let (status, refused) = put(&world, "?apply=true&reason=x", stale, &more).await;
        assert_eq!((status, &refused["error"]), (412, &json!("digest_mismatch")));
        assert!(refused["message"].as_str().unwrap().contains(&digest), "{refused}");
    }
    let (status, refused) = put(&world, "?apply=true", Some(&digest), &more).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_reason")));
    let (status, refused) = put(&world, "", Some(&digest), "[tiers]\nfree = \"x\"\n").await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_catalog")));
    assert!(refused["message"].as_str().unwrap().contains("line 2"), "{refused}");

    let (status, second) = put(&world, "?apply=true&reason=more", Some(&digest), &more).await;
    assert_eq!((status, &second["version"]), (200, &json!(2)), "{second:#}");
    let changed = second["changes"]["changed"].as_array().unwrap();
    assert!(changed.iter().any(|one| one["field"] == "credits" && one["to"] == 6000), "{changed:#?}");
    let (_, current) = get(&world, "/admin/catalog").await;
    assert_eq!((&current["toml"], &current["reason"]), (&json!(more), &json!("more")));
    let (_, history) = get(&world, "/admin/catalog/history").await;
    let reasons: Vec<_> = history["versions"].as_array().unwrap().iter().map(|one| &one["reason"]).collect();
    assert_eq!(reasons, [&json!("more"), &json!("first")]);
    assert_eq!(get(&world, "/admin/catalog/history/1").await.1["toml"], CATALOG);
    assert_eq!(get(&world, "/admin/catalog/history/3").await.0, 404);
    let (_, audit) = get(&world, "/admin/audit").await;
    let audit = audit["audits"].as_array().unwrap();
    assert_eq!(audit.iter().filter(|one| one["act"] == "put_catalog").count(), 2, "{audit:#?}");
}

#[tokio::test]
async fn an_event_that_waits_for_the_catalog_is_sent_again_when_one_has_its_pack() {
    let world = World::with(&[("CATALOG_MAX_AGE_SECONDS", "0")]).await;
    world.sign_up("user_1").await;
    let (_, first) = put(&world, "?apply=true&reason=first", None, CATALOG).await;
    let mut event = pack("new_pack", "user_1", 1);
    event["data"]["object"]["metadata"]["pack"] = json!("credits_77");
    world.process(&event).await;
    let parked = world.event("evt_new_pack").await.unwrap();
    assert_eq!(
        (parked["reason"].as_str(), json!(parked["catalog"])),
        ("unknown_name", first["digest"].clone())
    );
    let more = format!("{CATALOG}\n[[pack]]\nname = \"credits_77\"\ncredits = 77\nprices = [\"price_77\"]\n");
    let digest = first["digest"].as_str().unwrap();
    let (_, dry) = put(&world, "", Some(digest), &more).await;
    let (status, second) = put(&world, "?apply=true&reason=pack", Some(digest), &more).await;
    assert_eq!((status, &dry["parked_freed"]), (200, &second["parked_freed"]), "{second:#}");
    assert_eq!(second["parked_freed"]["events"], json!(["evt_new_pack"]), "{second:#}");
    assert_eq!(second["changes"]["prices_added"], json!(["price_77"]), "{second:#}");
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 577);
    let processed = world.event("evt_new_pack").await.unwrap();
    assert_eq!(
        (processed["outcome"].as_str(), json!(processed["catalog"])),
        ("processed", second["digest"].clone())
    );
}

#[tokio::test]
async fn without_a_stored_catalog_events_wait_for_one_and_health_says_so_first() {
    let world = World::with(&[("CATALOG_FILE", ""), ("CATALOG_MAX_AGE_SECONDS", "0")]).await;
    for (method, path) in [("PUT", "/users/user_1"), ("GET", "/users/user_1"), ("POST", "/checkout-sessions")]
    {
        let (status, answer) = world.app(method, path, json!({"user_id": "user_1"}), None).await;
        assert_eq!((status, answer["error"].as_str()), (503, Some("no_catalog")), "{method} {path} {answer}");
    }
    let names = ["customer.subscription.created", "invoice.paid", "checkout.session.completed.pack"];
    for name in names {
        world.process(&sample(name, "user_1")).await;
    }
    // A type that no rule reads is ignored, with or without a catalog.
    world.process(&sample("product.updated", "user_1")).await;
    let (_, health) = get(&world, "/admin/stripe/subscription-health").await;
    let first = &health["deductions"][0];
    assert_eq!((&first["code"], &first["points"]), (&json!("no_catalog"), &json!(50)), "{health:#}");

    let (_, dry) = put(&world, "", None, CATALOG).await;
    assert_eq!(dry["parked_freed"]["count"], names.len(), "{dry:#}");
    let (status, stored) = put(&world, "?apply=true&reason=first", None, CATALOG).await;
    assert_eq!((status, &stored["parked_freed"]["count"]), (200, &json!(names.len())), "{stored:#}");
    world.drain().await;
    let account = world.account("user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(6000)), "{account:#}");
    let (_, health) = get(&world, "/admin/stripe/subscription-health").await;
    assert_ne!(health["deductions"][0]["code"], "no_catalog");
    assert_eq!(world.sign_up("user_1").await["credits"], 6000, "paid credits ended the signup credits");
}

#[tokio::test]
async fn a_push_takes_effect_on_every_route_when_the_catalog_in_use_is_too_old() {
    assert_eq!(MAX_AGE, Duration::from_secs(30));
    let world = World::with(&[("CATALOG_MAX_AGE_SECONDS", "1")]).await;
    let (_, first) = put(&world, "?apply=true&reason=first", None, CATALOG).await;
    assert_eq!(world.sign_up("user_1").await["credits"], 500);
    let other = CATALOG.replace("signup_credits = 500", "signup_credits = 700");
    let other = format!("{other}\n[[pack]]\nname = \"credits_77\"\ncredits = 77\nprices = [\"price_77\"]\n");
    let (status, second) = put(&world, "?apply=true&reason=more", first["digest"].as_str(), &other).await;
    assert_eq!((status, &second["applied"]), (200, &json!(true)), "{second:#}");
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(world.sign_up("user_2").await["credits"], 700);
    let (_, sold) = world.app("GET", "/catalog", Value::Null, None).await;
    let packs = sold["packs"].as_array().unwrap();
    assert!(packs.iter().any(|pack| pack["name"] == "credits_77"), "{sold:#}");
    let mut event = pack("pushed", "user_2", 1);
    event["data"]["object"]["metadata"]["pack"] = json!("credits_77");
    world.process(&event).await;
    assert_eq!(world.account("user_2").await["credits"], 777);
    let (_, shown) = get(&world, "/admin/stripe/webhook-logs/evt_pushed").await;
    assert_eq!(shown["event"]["catalog"], second["digest"], "{shown:#}");
}

/// Catalogs change while events arrive. Each event is applied once, by the catalog that its record names.
#[tokio::test]
async fn a_hundred_catalogs_under_load_lose_no_event_and_judge_none_twice() {
    let world = World::with(&[("CATALOG_MAX_AGE_SECONDS", "0")]).await;
    world.sign_up("user_1").await;
    let [small, large] = [
        CATALOG.to_owned(),
        CATALOG.replace("name = \"credits_1000\"\ncredits = 1000", "name = \"credits_1000\"\ncredits = 3000"),
    ];
    assert_ne!(small, large);
    let (mut digests, mut expected) = (Vec::new(), 500);
    for number in 0..100_usize {
        let toml = [&small, &large][number % 2];
        let replaces: Option<&String> = digests.last();
        let (status, stored) =
            put(&world, "?apply=true&reason=switch", replaces.map(String::as_str), toml).await;
        assert_eq!((status, &stored["applied"]), (200, &json!(true)), "{stored:#}");
        digests.push(stored["digest"].as_str().unwrap().to_owned());
        let event = pack(&format!("switch_{number}"), "user_1", 1);
        for _ in 0..1 + number % 2 {
            assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200);
        }
        world.drain().await;
        let record = world.event(&format!("evt_switch_{number}")).await.unwrap();
        assert_eq!(Some(&record["catalog"]), digests.last(), "event {number}");
        expected += [1000, 3000][number % 2];
        assert_eq!(world.account("user_1").await["credits"], expected, "event {number}");
    }
}
