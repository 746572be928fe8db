//! What reaches the webhook: repeated, unsigned, malformed, too large, in a burst.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tallyhook_core::event::Family;

use super::{changed, credits, outcome, signed, signed_up, tier};
use crate::invariants::check_quiet;
use crate::support::{Fault, SECRET, World, aws_error, call, pack, sample, signature, with_id};

#[tokio::test(start_paused = true)]
async fn s02_the_same_event_fifty_times_at_once_is_applied_once() {
    let world = signed_up().await;
    let event = pack("many", "user_1", 1);
    let body = event.to_string();
    let answers = join_all((0..50).map(|_| world.deliver(body.as_bytes()))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    let worker = world.worker(Family::CheckoutSession);
    let batches = join_all((0..5).map(|_| world.receive(Family::CheckoutSession))).await;
    let handled = join_all(batches.iter().map(|batch| worker.handle(batch.clone()))).await;
    for (batch, answer) in batches.iter().zip(handled) {
        world.delete(Family::CheckoutSession, batch, &answer.unwrap()).await;
    }
    world.settle().await;
    let tables = check_quiet(&world, &[event], "S02").await;
    assert_eq!((tables.credits("user_1"), tables.events.len()), (1500, 1));
}

#[tokio::test]
async fn s03_different_events_for_the_same_money_grant_it_once() {
    let world = signed_up().await;
    let invoice = sample("invoice.paid", "user_1");
    let session = sample("checkout.session.completed.pack", "user_1");
    let events = [
        sample("checkout.session.completed", "user_1"),
        sample("customer.subscription.created", "user_1"),
        invoice.clone(),
        with_id(invoice.clone(), "evt_invoice_again"),
        changed(invoice, "evt_succeeded", &[("/type", json!("invoice.payment_succeeded"))]),
        session.clone(),
        changed(
            session.clone(),
            "evt_async",
            &[("/type", json!("checkout.session.async_payment_succeeded"))],
        ),
        changed(session.clone(), "evt_intent", &[("/type", json!("payment_intent.succeeded"))]),
        changed(session, "evt_charge", &[("/type", json!("charge.succeeded"))]),
    ];
    for event in &events {
        world.process(event).await;
    }
    let tables = check_quiet(&world, &events, "S03").await;
    assert_eq!(tables.credits("user_1"), 5000 + 1000);
    for id in ["evt_succeeded", "evt_intent", "evt_charge"] {
        assert_eq!(outcome(&world, id).await, ("ignored".into(), "type".into()));
    }
}

#[tokio::test]
async fn s04_one_event_at_two_endpoints_with_two_secrets_is_applied_once() {
    let world = World::with(&[("STRIPE_WEBHOOK_SECRET", "whsec_first, whsec_second")]).await;
    world.sign_up("user_1").await;
    let event = pack("both", "user_1", 1);
    let body = event.to_string().into_bytes();
    for secret in ["whsec_first", "whsec_second"] {
        assert_eq!(world.post(&body, Some(&signed(&body, secret, 0))).await.0, 200);
    }
    world.drain().await;
    assert_eq!(check_quiet(&world, &[event], "S04").await.credits("user_1"), 1500);
}

#[tokio::test(start_paused = true)]
async fn s07_any_sqs_failure_is_answered_503_so_that_stripe_sends_again() {
    let refusals = [
        aws_error(500, "InternalError"),
        aws_error(503, "ServiceUnavailable"),
        aws_error(400, "ThrottlingException"),
        aws_error(400, "OverLimit"),
        aws_error(403, "AccessDeniedException"),
        aws_error(400, "QueueDoesNotExist"),
        Fault::Answer(502, Value::Null),
        Fault::LoseRequest,
        Fault::HangBefore,
    ];
    let world = signed_up().await;
    let event = pack("later", "user_1", 1);
    let before = world.everything().await;
    for refusal in refusals {
        let when = format!("{refusal:?}");
        world.fault(move |_| Some(refusal.clone()));
        let (status, answer) = world.deliver(event.to_string().as_bytes()).await;
        assert_eq!((status, answer["error"].as_str()), (503, Some("queue_unavailable")), "{when}");
        world.heal();
        assert_eq!(world.everything().await, before, "{when}");
    }
    world.process(&event).await;
    assert_eq!(check_quiet(&world, &[event], "S07").await.credits("user_1"), 1500);
}

#[tokio::test(start_paused = true)]
async fn s08_a_lost_reply_of_sqs_leaves_two_messages_and_one_effect() {
    let world = signed_up().await;
    let event = pack("twice", "user_1", 1);
    world.fault(|_| Some(Fault::LoseReply));
    assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 503);
    world.heal();
    world.process(&event).await;
    assert_eq!(check_quiet(&world, &[event], "S08").await.credits("user_1"), 1500);
}

#[tokio::test]
async fn s09_every_refused_signature_gets_the_same_message() {
    let world = World::new().await;
    let body = pack("no", "user_1", 1).to_string().into_bytes();
    let other = signed(&body, "whsec_other", 0);
    let mut texts = Vec::new();
    for header in [
        None,
        Some(""),
        Some("t=1"),
        Some("v1=00"),
        Some("t=1,v1=zz"),
        Some(&other),
        Some(&signed(&body, SECRET, -9000)),
    ] {
        let (status, answer) = world.post(&body, header).await;
        assert_eq!(status, 400, "{header:?}");
        texts.push(answer["message"].clone());
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
}

#[tokio::test]
async fn s10_s11_s12_a_clock_two_minutes_off_does_no_harm_and_one_six_minutes_off_refuses() {
    let world = signed_up().await;
    for (offset, status) in [
        (-120, 200),
        (120, 200),
        (-290, 200),
        (290, 200),
        (-360, 400),
        (360, 400),
        (-90_000, 400),
        (90_000, 400),
    ] {
        let body = pack("clock", "user_1", 1).to_string().into_bytes();
        let before = world.everything().await;
        let answer = world.post(&body, Some(&signed(&body, SECRET, offset))).await;
        assert_eq!(answer.0, status, "{offset}");
        if status == 400 {
            assert_eq!(
                (answer.1["error"].as_str(), world.everything().await),
                (Some("timestamp_out_of_tolerance"), before)
            );
        }
    }
    world.drain().await;
    assert_eq!(credits(&world, "user_1").await, 1500);
}

#[tokio::test]
async fn s13_s14_during_a_rotation_both_secrets_verify_and_then_only_the_new_one() {
    let body = pack("rolled", "user_1", 1).to_string().into_bytes();
    let (old, new) = (signed(&body, "whsec_old", 0), signed(&body, "whsec_new", 0));
    let both = format!("{old},{}", new.split_once(',').unwrap().1);
    for (configured, header, status) in [
        ("whsec_new,whsec_old", &both, 200),
        ("whsec_new,whsec_old", &old, 200),
        ("whsec_new,whsec_old", &new, 200),
        ("whsec_new", &both, 200),
        ("whsec_new", &new, 200),
        ("whsec_new", &old, 400),
        ("whsec_old", &new, 400),
    ] {
        let world = World::with(&[("STRIPE_WEBHOOK_SECRET", configured)]).await;
        assert_eq!(world.post(&body, Some(header)).await.0, status, "{configured}: {header}");
    }
}

#[tokio::test]
async fn s16_base64_bodies_any_case_of_the_header_and_odd_formatting_are_verified_as_sent() {
    let world = signed_up().await;
    let event = pack("gateway", "user_1", 1);
    let crlf = serde_json::to_string_pretty(&event).unwrap().replace('\n', "\r\n");
    let odd = crlf.replace(
        "\"livemode\": false",
        "\"odd\": [1E2, 1.50, -0.0, \"\\u00e9\\/\"],\r\n\t\"livemode\" : false",
    );
    assert_ne!(crlf, odd);
    for (text, header) in
        [(&crlf, "Stripe-Signature"), (&odd, "stripe-signature"), (&crlf, "STRIPE-SIGNATURE")]
    {
        let packed = STANDARD.encode(text);
        for (body, base64) in [(text, false), (&packed, true)] {
            let call =
                call("POST", "/webhooks/stripe", Some((header, &signature(text.as_bytes()))), body, base64);
            assert_eq!(world.call(&call).await.0, 200, "{header} {base64}");
        }
    }
    world.drain().await;
    assert_eq!(credits(&world, "user_1").await, 1500);
}

#[tokio::test]
async fn s17_a_hostile_header_gets_400() {
    let world = World::new().await;
    let before = world.everything().await;
    let body = pack("header", "user_1", 1).to_string().into_bytes();
    let good = signature(&body);
    let (time, v1) = good.split_once(",v1=").unwrap();
    let many = format!("{time}{}", ",v1=00".repeat(1000));
    let digits = format!("t={},v1={v1}", "9".repeat(5000));
    let hostile: Vec<Vec<u8>> = [
        format!("{time},v1="),
        format!("{time},v1"),
        "t=NaN,v1=00".into(),
        format!("t=1,t=2,v1={v1}"),
        format!("{time},v0={v1}"),
        format!("{time},v1={}", &v1[..62]),
        format!("{time},v1={v1}0"),
        format!("t=-1,v1={v1}"),
        format!("t=99999999999999999999,v1={v1}"),
        format!("t=9223372036854775807,v1={v1}"),
        format!("t=-9223372036854775808,v1={v1}"),
        ",,,,====".into(),
        "=".repeat(10_000),
        many,
        digits,
    ]
    .into_iter()
    .map(String::into_bytes)
    .chain([format!("{time},v1=").into_bytes().into_iter().chain([0xff, 0xfe, 0x80]).collect()])
    .collect();
    for header in hostile {
        // The request is JSON, which holds text only.
        let header = String::from_utf8_lossy(&header);
        assert_eq!(world.post(&body, Some(&header)).await.0, 400, "{header:.60}");
    }
    let unlike =
        call("POST", "/webhooks/stripe", Some(("stripe-signature", &signature(&body))), "{not base64", true);
    let (status, answer) = world.call(&unlike).await;
    assert_eq!((status, &answer["error"]), (400, &json!("malformed_event")));
    assert_eq!(world.everything().await, before, "I13");
}

#[tokio::test]
async fn s18_s19_s21_signed_invalid_bodies_and_json_bombs_get_400_and_change_nothing() {
    let world = World::new().await;
    let before = world.everything().await;
    let envelope = |extra: &str| {
        format!(r#"{{"id":"evt_1","object":"event","type":"invoice.paid","livemode":false,{extra}}}"#)
            .into_bytes()
    };
    let bomb = |depth: usize| format!(r#""data":{{"object":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    // docs.stripe.com/event-destinations: `created` is a text, and the object is only named.
    let thin = |kind: &str| {
        json!({"id": "evt_1", "object": "v2.core.event", "type": kind, "created": "2026-10-01T10:00:00.000Z",
            "livemode": false, "context": null, "snapshot_event": "evt_2", "changes": null,
            "related_object": {"id": "in_1", "type": "invoice", "url": "/v1/invoices/in_1"}})
        .to_string()
        .into_bytes()
    };
    let objects = format!(r#""data":{{"object":{}1{}}}"#, r#"{"a":"#.repeat(5000), "}".repeat(5000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        b"42".to_vec(),
        b"\"text\"".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{\"id\":\"evt_\xff\"}".to_vec(),
        // gzip of `{}`: nothing unpacks a request.
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\xae\x05\0C\xbf\xa6\xa3\x02\0\0\0".to_vec(),
        envelope(r#""data":{"object":{"n":NaN}}"#),
        envelope(r#""data":{"object":{"n":"\ud800"}}"#),
        envelope("\"data\":{\"object\":{\"n\":\"\0\"}}"),
        envelope(r#""data":{"object":{}},"id":"evt_2""#),
        envelope(r#""data":{"object":{}},"livemode":true"#),
        envelope(r#""data":[]"#),
        envelope(r#""data":null"#),
        envelope(r#""data":{"object":{}},"#),
        envelope(&bomb(5000)),
        envelope(&bomb(200_000)),
        envelope(&objects),
        "[".repeat(1_000_000).into_bytes(),
        thin("v2.core.account.created"),
        thin("v1.invoice.paid"),
        thin("v2.core.health.event_generation_failure.resolved"),
        r#"{"version":"0","detail-type":"invoice.paid","detail":{"id":"evt_1","object":"event"}}"#.into(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(90)]).into_owned();
        let (status, answer) = world.deliver(&body).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some("malformed_event")), "{shown}");
        let names_the_setting = answer["message"].as_str().unwrap().contains("set to snapshot events");
        let is_thin = String::from_utf8_lossy(&body).contains("v2.core.event");
        assert_eq!(names_the_setting, is_thin, "{shown}: {answer}");
        let (status, answer) = world.post(&body, Some("t=1,v1=00")).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some("invalid_signature")), "{shown}");
    }
    assert_eq!(world.everything().await, before, "I13");
}

#[tokio::test]
async fn s20_a_body_of_any_size_is_applied_or_refused_as_too_large_before_it_is_verified() {
    let world = signed_up().await;
    for (number, kilobytes) in [270, 900, 1100, 5000].into_iter().enumerate() {
        let mut event = pack(&format!("size{number}"), "user_1", 1);
        event["data"]["object"]["filler"] = json!("0123456789abcdef".repeat(kilobytes * 64));
        world.process(&event).await;
        assert_eq!(outcome(&world, &format!("evt_size{number}")).await.0, "processed", "{kilobytes} KB");
    }
    assert_eq!(credits(&world, "user_1").await, 4500);
    let before = world.everything().await;
    let huge = vec![b'x'; 10_000_000];
    for header in [None, Some("t=1,v1=00"), Some(signature(&huge).as_str())] {
        assert_eq!(world.post(&huge, header).await.0, 413);
    }
    assert_eq!(world.everything().await, before, "I13");
}

#[tokio::test]
async fn s23_an_event_that_lacks_a_needed_field_is_parked() {
    let world = signed_up().await;
    let mut no_lines = sample("invoice.paid", "user_1");
    no_lines["data"]["object"]["lines"]["data"] = json!([]);
    let mut wrong_shape = with_id(sample("invoice.paid", "user_1"), "evt_shape");
    wrong_shape["data"]["object"]["amount_paid"] = json!("many");
    let mut no_id = with_id(sample("customer.subscription.created", "user_1"), "evt_noid");
    no_id["data"]["object"].as_object_mut().unwrap().remove("id");
    world.process(&no_lines).await;
    let known = outcome(&world, no_lines["id"].as_str().unwrap()).await;
    assert_eq!(known, ("processed".into(), "no_known_line".into()), "a paid invoice is recorded once");
    for event in [wrong_shape, no_id] {
        world.process(&event).await;
        world.pass_seconds(10);
        world.drain().await;
        let (outcome, reason) = outcome(&world, event["id"].as_str().unwrap()).await;
        assert_eq!(outcome, "parked", "{reason}");
    }
    assert_eq!((credits(&world, "user_1").await, tier(&world, "user_1").await.as_str()), (500, "free"));
}

#[tokio::test]
async fn s24_an_event_of_the_wrong_mode_is_ignored_however_the_mode_is_set() {
    for (livemode, variables) in [
        (true, vec![("STRIPE_LIVEMODE", "false")]),
        (false, vec![("STRIPE_LIVEMODE", "true")]),
        (true, vec![("STRIPE_WEBHOOK_SECRET", ""), ("STRIPE_WEBHOOK_SECRET_TEST", SECRET)]),
        (false, vec![("STRIPE_WEBHOOK_SECRET", ""), ("STRIPE_WEBHOOK_SECRET_LIVE", SECRET)]),
    ] {
        let world = World::with(&variables).await;
        world.sign_up("user_1").await;
        let event = changed(pack("mode", "user_1", 1), "evt_mode", &[("/livemode", json!(livemode))]);
        world.process(&event).await;
        assert_eq!(outcome(&world, "evt_mode").await, ("ignored".into(), "livemode".into()), "{variables:?}");
        assert_eq!(credits(&world, "user_1").await, 500, "{variables:?}");
    }
}

#[tokio::test]
async fn s25_an_event_of_a_connected_account_changes_nothing() {
    let world = signed_up().await;
    let mut connect = pack("connect", "user_1", 1);
    connect["account"] = json!("acct_foreign");
    world.process(&connect).await;
    assert_eq!(outcome(&world, "evt_connect").await, ("ignored".into(), "account".into()));
    assert_eq!(credits(&world, "user_1").await, 500);
}

#[tokio::test]
async fn s26_other_methods_and_paths_get_405_and_404_and_change_nothing() {
    let world = World::new().await;
    let before = world.everything().await;
    let body = pack("path", "user_1", 1).to_string();
    for (method, path, status) in [
        ("GET", "/webhooks/stripe", 405),
        ("PUT", "/webhooks/stripe", 405),
        ("DELETE", "/webhooks/stripe", 405),
        ("POST", "/webhooks/stripe/health", 405),
        ("GET", "/api/webhook/stripe", 405),
        ("GET", "/api/webhooks/stripe/", 405),
        ("POST", "/webhooks/stripe//", 404),
        ("POST", "/webhooks//stripe", 404),
        ("POST", "/api/webhook", 404),
        ("POST", "/WEBHOOKS/STRIPE", 404),
        ("POST", "/", 404),
    ] {
        let call = call(method, path, Some(("stripe-signature", &signature(body.as_bytes()))), &body, false);
        assert_eq!(world.call(&call).await.0, status, "{method} {path}");
        if status == 405 {
            let answer = world.webhook.handle(serde_json::from_value(call).unwrap()).await.unwrap();
            let allow = if path.ends_with("health") { "GET, HEAD" } else { "POST" };
            assert_eq!(json!(answer)["headers"]["allow"], allow, "{method} {path}");
        }
    }
    let (status, health) = world.call(&call("GET", "/webhooks/stripe/health", None, "", false)).await;
    assert_eq!(
        (status, &health["ok"], &health["endpoint"], &health["secrets"]),
        (200, &json!(true), &json!("/webhooks/stripe"), &json!({"test": 0, "live": 0, "any": 1}))
    );
    let head = call("HEAD", "/webhooks/stripe/health", None, "", false);
    assert_eq!(world.call(&head).await, (200, Value::Null), "no body");
    assert!(!health.to_string().contains(SECRET), "{health}");
    assert_eq!(world.everything().await, before, "I13");
}

#[tokio::test(start_paused = true)]
async fn s27_a_burst_against_a_throttled_table_is_applied_to_the_last_event() {
    let world = World::new().await;
    let events: Vec<Value> =
        (0..200).map(|number| pack(&format!("burst{number}"), &format!("user_{}", number % 60), 1)).collect();
    join_all(
        events
            .iter()
            .map(|event| async { assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200) }),
    )
    .await;
    let worker = world.worker(Family::CheckoutSession);
    for number in 0..20 {
        let batch = world.receive(Family::CheckoutSession).await;
        let mut random = fastrand::Rng::with_seed(number);
        world.fault(move |_| {
            (random.u8(0..3) == 0).then(|| aws_error(400, "ProvisionedThroughputExceededException"))
        });
        let answer = worker.handle(batch.clone()).await.unwrap();
        world.heal();
        world.delete(Family::CheckoutSession, &batch, &answer).await;
    }
    world.settle().await;
    let tables = check_quiet(&world, &events, "S27").await;
    assert_eq!((0..60).map(|user| tables.credits(&format!("user_{user}"))).sum::<i64>(), 200_000);
}
