//! The admin API: validation, sending events again, health, and the dashboard's page.

use serde_json::{Value, json};

use crate::support::{World, now, pack};

#[tokio::test]
async fn invalid_requests_are_refused_with_an_error_code() {
    let world = World::new().await;
    for (method, path, body, status, code) in [
        ("GET", "/admin/stripe/webhook-logs?status=broken", Value::Null, 400, "invalid_status"),
        ("GET", "/admin/stripe/webhook-logs?from=yesterday", Value::Null, 400, "invalid_time"),
        (
            "GET",
            "/admin/stripe/webhook-logs?from=2026-01-02&to=2026-01-02",
            Value::Null,
            400,
            "invalid_range",
        ),
        ("GET", "/admin/export/ledger?from=2026-01-02&to=2026-01-01", Value::Null, 400, "invalid_range"),
        ("GET", "/admin/export/ledger?to=soon", Value::Null, 400, "invalid_time"),
        ("GET", "/admin/stripe/webhook-logs?limit=0", Value::Null, 400, "invalid_limit"),
        ("GET", "/admin/stripe/webhook-logs?limit=201", Value::Null, 400, "invalid_limit"),
        ("GET", "/admin/stripe/webhook-logs?next=x", Value::Null, 400, "invalid_next"),
        ("GET", "/admin/stripe/webhook-logs?user=u&next=dDEgeA", Value::Null, 400, "invalid_next"),
        ("DELETE", "/admin/stripe/webhook-logs", Value::Null, 405, "method_not_allowed"),
        ("GET", "/admin/stripe/retry-webhooks", Value::Null, 405, "method_not_allowed"),
        ("GET", "/admin/stripe/other", Value::Null, 404, "not_found"),
        ("GET", "/admin/other", Value::Null, 404, "not_found"),
        ("POST", "/admin/stripe/retry-webhooks", json!([]), 400, "invalid_body"),
        ("POST", "/admin/stripe/retry-webhooks", json!({"everything": true}), 400, "invalid_body"),
        ("POST", "/admin/stripe/retry-webhooks", json!({"status": "processed"}), 400, "invalid_status"),
        ("POST", "/admin/stripe/retry-webhooks", json!({"id": ""}), 400, "invalid_id"),
        ("POST", "/admin/stripe/retry-webhooks", json!({"id": "evt_none"}), 404, "event_not_found"),
        ("POST", "/admin/stripe/retry-webhooks", json!({"type": "invoice.payed"}), 400, "invalid_type"),
        ("POST", "/admin/stripe/retry-webhooks", json!({"to": "2026-13-01"}), 400, "invalid_time"),
        (
            "POST",
            "/admin/stripe/retry-webhooks",
            json!({"from": "2026-01-02", "to": "2026-01-01"}),
            400,
            "invalid_range",
        ),
    ] {
        let (found, answer) = world.ask(method, path, body).await;
        assert_eq!((found, answer["error"].as_str()), (status, Some(code)), "{method} {path}: {answer}");
        assert!(answer["message"].is_string());
    }
}

/// The list of the log is newest first.
#[tokio::test]
async fn events_are_sent_again_oldest_first() {
    let world = World::new().await;
    for (name, age) in [("b", 200), ("c", 100), ("a", 300)] {
        let mut event = pack(name, "user_1", 1);
        event["created"] = json!(now().unix() - age);
        event["data"]["object"]["metadata"] = json!({"user_id": "user_1"});
        world.process(&event).await;
    }
    world.calls();
    let body = json!({"status": "parked"});
    assert_eq!(world.ask("POST", "/admin/stripe/retry-webhooks", body).await.1["report"]["sent"], 3);
    let sent = world.calls().into_iter().filter(|call| call.operation == "SendMessage");
    let bodies: Vec<String> = sent.map(|call| call.request["MessageBody"].to_string()).collect();
    let order = ["evt_a", "evt_b", "evt_c"].map(|id| bodies.iter().position(|body| body.contains(id)));
    assert_eq!(order, [Some(0), Some(1), Some(2)], "{bodies:#?}");
}

#[tokio::test]
async fn events_are_sent_again_by_id_type_status_or_time_and_each_time_is_on_record() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        let mut event = pack(name, &format!("user_{name}"), 1);
        event["data"]["object"]["metadata"] = json!({"user_id": format!("user_{name}")});
        world.process(&event).await;
    }
    let retry = async |body: Value| world.ask("POST", "/admin/stripe/retry-webhooks", body).await;
    assert_eq!(retry(json!({"id": "evt_a"})).await, (200, json!({"id": "evt_a", "result": "queued"})));
    assert_eq!(retry(Value::Null).await.1["report"]["sent"], 0, "none is due yet");
    for (body, sent) in [
        (
            json!({"type": "checkout.session.completed", "actor": "ann", "reason": "metadata repaired\u{7}"}),
            3,
        ),
        (json!({"type": "invoice.paid"}), 0),
        (json!({"status": "failed"}), 0),
        (json!({"status": "parked"}), 3),
        (json!({"from": "2020-01-01", "to": "2021-01-01"}), 0),
        (json!({"from": "2020-01-01"}), 3),
    ] {
        let (status, answer) = retry(body.clone()).await;
        assert_eq!((status, answer["report"]["sent"].as_u64()), (200, Some(sent)), "{body}: {answer}");
        world.drain().await;
    }
    let all = world.everything().await;
    let audits: Vec<&Value> = all[0][1]
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["pk"]["S"].as_str().unwrap().starts_with("audit#"))
        .collect();
    assert_eq!(audits.len(), 8);
    let named = audits.iter().find(|audit| audit["claimed"]["S"] == "ann").unwrap();
    assert_eq!(
        (&named["reason"]["S"], &named["act"]["S"]),
        (&json!("metadata repaired"), &json!("retry-webhooks"))
    );
    assert!(named["target"]["S"].as_str().unwrap().contains("checkout.session.completed"));
    assert_eq!(audits.iter().filter(|audit| audit["target"]["S"] == "due").count(), 1);
}

#[tokio::test]
async fn a_change_that_cannot_be_audited_is_not_made() {
    let world = World::new().await;
    let mut event = pack("a", "user_a", 1);
    event["data"]["object"]["metadata"] = json!({"user_id": "user_a"});
    world.process(&event).await;
    world
        .fault(|call| (call.operation == "TransactWriteItems").then_some(crate::support::Fault::LoseRequest));
    let (status, answer) = world.ask("POST", "/admin/stripe/retry-webhooks", json!({"id": "evt_a"})).await;
    assert_eq!((status, answer["error"].as_str()), (503, Some("store_unavailable")));
    world.heal();
    assert_eq!(world.poll(tallyhook_core::event::Family::CheckoutSession).await, 0);
}

#[tokio::test]
async fn health_names_every_deduction_and_counts_what_is_there() {
    let world = World::new().await;
    for number in 0..30 {
        world.process(&pack(&format!("ok{number}"), "user_1", 1)).await;
    }
    let (status, healthy) = world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
    assert_eq!(
        (status, &healthy["score"], &healthy["success_rate"]),
        (200, &json!(95), &json!(1.0)),
        "reconciliation has not run: {healthy:#}"
    );
    for number in 0..10 {
        let mut event = pack(&format!("bad{number}"), "user_1", 1);
        event["data"]["object"]["metadata"] = json!({"user_id": "user_1"});
        world.process(&event).await;
    }
    world.deliver(pack("waits", "user_1", 1).to_string().as_bytes()).await;
    let (_, answer) = world.ask("GET", "/admin/stripe/subscription-health", Value::Null).await;
    assert_eq!(
        (&answer["counts"]["parked"], &answer["counts"]["processed"], &answer["success_rate"]),
        (&json!(10), &json!(30), &json!(0.75))
    );
    let codes: Vec<&str> = answer["deductions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|deduction| deduction["code"].as_str().unwrap())
        .collect();
    assert_eq!(
        (answer["score"].as_u64(), &codes[..]),
        (Some(55), &["success_rate", "parked", "not_reconciled"][..]),
        "{answer:#}"
    );
    let queue = answer["counts"]["queues"]
        .as_array()
        .unwrap()
        .iter()
        .find(|queue| queue["queue"] == "checkout-session")
        .unwrap();
    assert_eq!(queue["waiting"], 1);

    world.alerts().await;
    world.health.handle(Value::Null).await.unwrap();
    let alerts = world.alerts().await;
    assert_eq!((alerts.len(), &alerts[0]["alert"], &alerts[0]["score"]), (1, &json!("score"), &json!(55)));
}

#[tokio::test]
async fn the_dashboards_page_needs_no_token_shows_nothing_and_may_run_only_its_own_script() {
    let world = World::with(&[("ADMIN_API_TOKEN", "")]).await;
    let page = world.page("/admin", &[]).await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'sha256-"), "{policy}");
    assert!(
        policy.contains("connect-src 'self'")
            && policy.contains("frame-ancestors 'none'")
            && !policy.contains("unsafe")
    );
    assert_eq!(
        (page.status().as_u16(), page.headers()["cache-control"].to_str().unwrap()),
        (200, "no-store")
    );
    let text = String::from_utf8(page.body().to_vec()).unwrap();
    for (end, kind) in [("css", "text/css; charset=utf-8"), ("js", "text/javascript; charset=utf-8")] {
        let path =
            text.split('"').find(|part| part.starts_with("/admin/assets/") && part.ends_with(end)).unwrap();
        let asset = world.page(path, &[]).await;
        assert_eq!((asset.status().as_u16(), asset.headers()["content-type"].to_str().unwrap()), (200, kind));
        assert!(asset.headers()["cache-control"].to_str().unwrap().contains("immutable"));
        let tag = asset.headers()["etag"].to_str().unwrap();
        let same = world.page(path, &[("if-none-match", tag)]).await;
        assert_eq!((same.status().as_u16(), same.body().is_empty()), (304, true));
    }
    assert_eq!(world.page("/admin/assets/other.js", &[]).await.status().as_u16(), 404);
}
