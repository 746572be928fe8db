//! Events that an operator dismisses.

use serde_json::{Value, json};
use tallyhook_core::event::Family;

use crate::support::{World, pack, sample, signature, unnamed_pack, with_id};

async fn dismiss(world: &World, id: &str, body: Value) -> (u16, Value) {
    world.ask("POST", &format!("/admin/stripe/webhook-logs/{}/dismiss", id.replace('~', "%7E")), body).await
}

async fn outcome(world: &World, id: &str) -> String {
    world.event(id).await.unwrap()["outcome"].clone()
}

async fn listed(world: &World, status: &str) -> Vec<String> {
    let (_, page) =
        world.ask("GET", &format!("/admin/stripe/webhook-logs?status={status}"), Value::Null).await;
    let events = page["events"].as_array().unwrap().iter();
    events.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_dismissed_event_is_not_retried_not_alerted_and_not_counted_as_parked() {
    let world = World::new().await;
    world.process(&unnamed_pack("a")).await;
    world.process(&unnamed_pack("b")).await;
    world.alerts().await;
    let (status, answer) =
        dismiss(&world, "evt_a", json!({"reason": "of our other\u{7} shop", "actor": "ann"})).await;
    assert_eq!(
        (status, &answer["status"], &answer["dismissed"]["actor"], &answer["dismissed"]["reason"]),
        (200, &json!("dismissed"), &json!("admin"), &json!("of our other shop")),
        "{answer}"
    );
    assert_eq!(
        (listed(&world, "dismissed").await, listed(&world, "parked").await),
        (vec!["evt_a".to_owned()], vec!["evt_b".to_owned()])
    );
    let (_, shown) = world.ask("GET", "/admin/stripe/webhook-logs/evt_a", Value::Null).await;
    assert_eq!(
        (&shown["event"]["status"], &shown["event"]["reason"], &shown["event"]["dismissed"]),
        (&json!("dismissed"), &json!("unnamed_purchase"), &answer["dismissed"])
    );
    assert_eq!((&shown["event"]["due_at"], &shown["payload"]["id"]), (&Value::Null, &json!("evt_a")));

    let (_, health) = world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
    assert_eq!((&health["counts"]["parked"], &health["counts"]["unsuccessful"]), (&json!(1), &json!(1)));
    let (_, audit) = world.ask("GET", "/admin/audit", Value::Null).await;
    assert_eq!(
        (&audit["audits"][0]["act"], &audit["audits"][0]["claimed"], &audit["audits"][0]["target"]),
        (&json!("dismiss"), &json!("ann"), &json!("evt_a"))
    );

    assert_eq!(world.retry_in(86_400).await.sent, 1, "only evt_b is sent again");
    let matching = json!({"status": "parked"});
    let (_, answer) = world.ask("POST", "/admin/stripe/retry-webhooks", matching).await;
    assert_eq!(answer["report"]["sent"], 1);
    world.drain().await;
    world.alerts().await;
    world.process(&unnamed_pack("a")).await;
    assert_eq!((outcome(&world, "evt_a").await.as_str(), world.alerts().await.len()), ("dismissed", 0));

    // A second request changes nothing and writes no audit.
    let again = dismiss(&world, "evt_a", json!({"reason": "again"})).await;
    assert_eq!((again.0, &again.1["dismissed"]["reason"]), (200, &json!("of our other shop")));
    let (_, audit) = world.ask("GET", "/admin/audit", Value::Null).await;
    let dismissals = audit["audits"].as_array().unwrap().iter().filter(|audit| audit["act"] == "dismiss");
    assert_eq!(dismissals.count(), 1);
}

#[tokio::test]
async fn only_a_parked_or_failed_event_can_be_dismissed_and_only_with_a_reason() {
    let world = World::new().await;
    world.process(&pack("done", "user_1", 1)).await;
    world.process(&unnamed_pack("open")).await;
    for (id, body, status, code) in [
        ("evt_none", json!({"reason": "x"}), 404, "event_not_found"),
        ("audit", json!({"reason": "x"}), 404, "event_not_found"),
        ("evt_done", json!({"reason": "x"}), 409, "event_finished"),
        ("evt_open", Value::Null, 400, "missing_reason"),
        ("evt_open", json!({"reason": " \n"}), 400, "missing_reason"),
        ("evt_open", json!({"reason": 1}), 400, "invalid_body"),
        ("evt_open", json!({"why": "x"}), 400, "invalid_body"),
    ] {
        let (found, answer) = dismiss(&world, id, body.clone()).await;
        assert_eq!((found, answer["error"].as_str()), (status, Some(code)), "{id} {body}: {answer}");
    }
    let (status, answer) = world.ask("GET", "/admin/stripe/webhook-logs/evt_open/dismiss", Value::Null).await;
    assert_eq!((status, answer["error"].as_str()), (405, Some("method_not_allowed")));
    assert_eq!(outcome(&world, "evt_open").await, "parked");
}

#[tokio::test]
async fn an_operator_can_send_a_dismissed_event_again_and_it_is_processed_as_usual() {
    let world = World::new().await;
    let mut event = pack("pack", "user_1", 1);
    event["data"]["object"]["metadata"]["pack"] = json!("none");
    world.process(&event).await;
    assert_eq!(dismiss(&world, "evt_pack", json!({"reason": "a mistake"})).await.0, 200);
    let send = async || {
        let sent = world.ask("POST", "/admin/stripe/retry-webhooks", json!({"id": "evt_pack"})).await;
        assert_eq!(sent, (200, json!({"id": "evt_pack", "result": "queued"})));
        world.drain().await;
    };
    send().await;
    let parked = world.event("evt_pack").await.unwrap();
    assert_eq!((parked["outcome"].as_str(), parked.get("dismissed_by")), ("parked", None));

    // A failed event fails to the end, is dismissed, and is applied when it is sent again.
    world.deliver(pack("late", "user_1", 1).to_string().as_bytes()).await;
    world.fault(|call| {
        call.request.to_string().contains("evt_late").then_some(crate::support::Fault::LoseRequest)
    });
    for _ in 0..5 {
        world.drain().await;
        world.pass_seconds(901);
    }
    world.heal();
    world.drain_dead_letters().await;
    assert_eq!(outcome(&world, "evt_late").await, "failed");
    assert_eq!(dismiss(&world, "evt_late", json!({"reason": "wait"})).await.0, 200);
    let sent = world.ask("POST", "/admin/stripe/retry-webhooks", json!({"id": "evt_late"})).await;
    assert_eq!(sent.1["result"], "queued");
    world.drain().await;
    assert_eq!(
        (outcome(&world, "evt_late").await.as_str(), world.account("user_1").await["credits"].as_u64()),
        ("processed", Some(1000))
    );
}

#[tokio::test]
async fn a_document_that_names_another_user_than_its_subscriptions_owner_is_dismissed() {
    let world = World::new().await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    let mut conflict = with_id(sample("invoice.paid", "user_2"), "evt_conflict");
    conflict["created"] = sample("invoice.paid", "user_1")["created"].clone();
    world.process(&conflict).await;
    let parked = world.event("evt_conflict").await.unwrap();
    assert_eq!((parked["outcome"].as_str(), parked["reason"].as_str()), ("parked", "owner_conflict"));
    assert_eq!(dismiss(&world, "evt_conflict", json!({"reason": "user_2 is a typing error"})).await.0, 200);
    world.alerts().await;
    let before = world.everything().await;
    world.process(&conflict).await;
    assert_eq!(world.everything().await, before, "a redelivery changes nothing");
    assert_eq!((world.alerts().await.len(), world.retry_in(86_400).await.sent), (0, 0));
}

/// A body that cannot be read and the second content of a known id are kept as events of their own.
#[tokio::test]
async fn unreadable_events_and_second_contents_stay_dismissed() {
    let world = World::new().await;
    world.process(&pack("one", "user_1", 1)).await;
    let mut other = pack("one", "user_1", 7);
    other["api_version"] = pack("one", "user_1", 1)["api_version"].clone();
    let mut broken = pack("broken", "user_1", 1);
    broken["data"]["object"]["amount_total"] = json!("much");
    for event in [&other, &broken] {
        world.process(event).await;
    }
    let parked = listed(&world, "parked").await;
    assert_eq!(parked.len(), 2, "{parked:?}");
    for id in &parked {
        assert_eq!(dismiss(&world, id, json!({"reason": "a test of ours"})).await.0, 200, "{id}");
    }
    world.alerts().await;
    for event in [&other, &broken] {
        let body = event.to_string();
        assert_eq!(world.post(body.as_bytes(), Some(&signature(body.as_bytes()))).await.0, 200);
        assert_eq!(world.poll(Family::CheckoutSession).await, 1);
        assert_eq!(world.poll(Family::CheckoutSession).await, 0, "no message is left");
    }
    assert_eq!((world.alerts().await, listed(&world, "parked").await.len()), (Vec::new(), 0));
}
