//! Parked events, failed events, dead letters, and how they are sent again.

use serde_json::{Value, json};
use tallyhook_core::event::Family;

use crate::support::{Fault, World, now, pack, sample, signature, with_id};

/// An event that names a customer and no user.
pub fn nameless(name: &str) -> Value {
    let mut event = sample(name, "user_1");
    event["data"]["object"]["metadata"] = json!({});
    for path in
        ["/data/object/parent/subscription_details/metadata", "/data/object/subscription_details/metadata"]
    {
        if let Some(metadata) = event.pointer_mut(path) {
            *metadata = json!({});
        }
    }
    for line in
        event.pointer_mut("/data/object/lines/data").and_then(Value::as_array_mut).into_iter().flatten()
    {
        line["metadata"] = json!({});
    }
    event
}

/// A finished checkout that binds the customer of the samples to `user_1`.
fn binding() -> Value {
    let mut event = pack("binding", "user_1", 1);
    event["data"]["object"]["customer"] =
        sample("invoice.paid", "user_1")["data"]["object"]["customer"].clone();
    event
}

/// Delivers an event without a user twice, some seconds apart, until it is parked.
pub async fn park(world: &World, event: &Value) {
    world.process(event).await;
    world.pass_seconds(6);
    world.drain().await;
    assert_eq!(world.event(event["id"].as_str().unwrap()).await.unwrap()["outcome"], "parked");
}

#[tokio::test]
async fn an_operator_links_a_subscription_and_its_parked_event_is_sent_again() {
    let world = World::new().await;
    let invoice = nameless("invoice.paid");
    park(&world, &invoice).await;
    let subscription = sample("customer.subscription.created", "x")["data"]["object"]["id"].clone();
    let fix = |user: &'static str, subscription: &Value, event: &Value| {
        let body = json!({"stripe_subscription_id": subscription, "webhook_id": event});
        let world = &world;
        async move { world.fix(user, None, body).await }
    };
    let refused = fix("user_1", &subscription, &invoice["id"]).await;
    assert_eq!((refused.0, &refused.1["error"]), (404, &json!("user_not_found")));
    world.sign_up("user_1").await;
    world.sign_up("user_2").await;
    for (subscription, event, status, code) in [
        (json!("cus_1"), invoice["id"].clone(), 400, "invalid_subscription"),
        (subscription.clone(), json!("in_1"), 400, "invalid_event"),
        (subscription.clone(), Value::Null, 400, "invalid_event"),
        (subscription.clone(), json!("evt_unknown"), 404, "event_not_found"),
    ] {
        let (found, answer) = fix("user_1", &subscription, &event).await;
        assert_eq!((found, &answer["error"]), (status, &json!(code)), "{answer}");
    }
    assert_eq!(world.account("user_1").await["tier"], "free");

    let (status, answer) = fix("user_1", &subscription, &invoice["id"]).await;
    assert_eq!(
        (status, &answer["result"], &answer["webhook"]),
        (200, &json!("linked"), &json!("queued")),
        "{answer}"
    );
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 5000);
    // Later events of the subscription need no metadata.
    world.process(&nameless("customer.subscription.created")).await;
    let account = world.account("user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(5000)), "{account:#}");

    let (_, again) = fix("user_1", &subscription, &invoice["id"]).await;
    assert_eq!((&again["result"], &again["webhook"]), (&json!("already_linked"), &json!("finished")));
    let (status, bound) = fix("user_2", &subscription, &invoice["id"]).await;
    assert_eq!((status, &bound["error"]), (409, &json!("subscription_bound")));
    let audits = world.ask("GET", "/admin/audit", Value::Null).await.1["audits"].clone();
    assert_eq!(audits.as_array().unwrap().len(), 1, "{audits:#}");
    assert_eq!(
        (&audits[0]["act"], &audits[0]["target"]),
        (&json!("link_subscription"), &json!("user_1 sub_TallyHook0001"))
    );
}

#[tokio::test]
async fn a_parked_invoice_is_applied_as_soon_as_its_customer_is_linked() {
    let world = World::new().await;
    let invoice = nameless("invoice.paid");
    park(&world, &invoice).await;
    let alerts = world.alerts().await;
    assert_eq!(
        (alerts.len(), &alerts[0]["alert"], &alerts[0]["reason"]),
        (1, &json!("parked"), &json!("no_user"))
    );
    assert_eq!(alerts[0]["event_id"], invoice["id"]);

    // The link alone frees the event: no time passes from here on.
    world.process(&binding()).await;
    assert_eq!(world.event(invoice["id"].as_str().unwrap()).await.unwrap()["outcome"], "processed");
    assert_eq!(world.account("user_1").await["credits"], 6000);
    let before = world.everything().await;
    world.process(&invoice).await;
    world.process(&binding()).await;
    assert_eq!(world.everything().await, before, "no event waits any more");
}

#[tokio::test]
async fn a_log_that_keeps_no_payloads_keeps_one_while_its_event_waits() {
    let world = World::with(&[("KEEP_PAYLOADS", "false")]).await;
    let (invoice, binding) = (nameless("invoice.paid"), binding());
    let shown = async |event: &Value| {
        let path = format!("/admin/stripe/webhook-logs/{}", event["id"].as_str().unwrap());
        let (_, answer) = world.ask("GET", &path, Value::Null).await;
        (answer["event"]["status"].clone(), answer["payload"].clone())
    };
    park(&world, &invoice).await;
    assert_eq!(
        shown(&invoice).await,
        (json!("parked"), invoice.clone()),
        "without it the event could not be sent again"
    );
    world.process(&binding).await;
    assert_eq!(world.account("user_1").await["credits"], 6000);
    for event in [&invoice, &binding] {
        assert_eq!(shown(event).await, (json!("processed"), Value::Null));
    }
    assert!(!world.everything().await.to_string().contains("\"payload\""), "in no table");
}

#[tokio::test]
async fn a_customer_link_frees_all_waiting_events_even_those_of_the_same_batch() {
    for one_batch in [false, true] {
        let world = World::new().await;
        let mut waiting = 0;
        for number in 0..if one_batch { 9 } else { 12 } {
            let mut event = with_id(nameless("checkout.session.completed.pack"), &format!("evt_w{number}"));
            event["data"]["object"]["id"] = json!(format!("cs_test_w{number}"));
            event["data"]["object"]["client_reference_id"] = json!(null);
            event["data"]["object"]["metadata"] = json!({"pack": "credits_1000"});
            event["data"]["object"]["payment_intent"] = json!(format!("pi_w{number}"));
            event["data"]["object"]["customer"] =
                sample("invoice.paid", "user_1")["data"]["object"]["customer"].clone();
            world.deliver(event.to_string().as_bytes()).await;
            waiting += 1;
        }
        world.drain().await;
        world.pass_seconds(6);
        if one_batch {
            world.deliver(binding().to_string().as_bytes()).await;
            assert_eq!(world.poll(Family::CheckoutSession).await, 10);
        } else {
            world.drain().await;
            world.deliver(binding().to_string().as_bytes()).await;
        }
        world.drain().await;
        assert_eq!(world.account("user_1").await["credits"], 1000 * (waiting + 1), "one batch: {one_batch}");
    }
}

#[tokio::test]
async fn a_refund_that_arrives_before_its_purchase_waits_for_the_payment() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    world.process(&pack("first", "user_1", 1)).await;
    let mut refund = sample("charge.refunded", "user_1");
    let purchase = pack("second", "user_1", 1);
    refund["data"]["object"]["payment_intent"] = purchase["data"]["object"]["payment_intent"].clone();
    refund["data"]["object"]["customer"] = purchase["data"]["object"]["customer"].clone();
    refund["data"]["object"]["invoice"] = json!(null);
    refund["data"]["object"]["amount"] = json!(1000);
    refund["data"]["object"]["amount_refunded"] = json!(1000);
    world.process(&refund).await;
    let parked = world.event(refund["id"].as_str().unwrap()).await.unwrap();
    assert_eq!((parked["outcome"].as_str(), parked["reason"].as_str()), ("parked", "no_grant"));

    world.process(&purchase).await;
    assert_eq!(world.event(refund["id"].as_str().unwrap()).await.unwrap()["outcome"], "processed");
    assert_eq!(world.account("user_1").await["credits"], 1500);
}

#[tokio::test]
async fn a_refund_waits_for_its_payment_whether_or_not_it_names_a_customer() {
    let world = World::new().await;
    for (number, customer) in [(0, json!("cus_Unknown1")), (1, Value::Null)] {
        let mut refund = with_id(nameless("charge.refunded"), &format!("evt_refund{number}"));
        refund["data"]["object"]["payment_intent"] = json!("pi_unknown");
        refund["data"]["object"]["customer"] = customer;
        park(&world, &refund).await;
        let parked = world.event(&format!("evt_refund{number}")).await.unwrap();
        assert_eq!(parked["waits_for"], "payment#pi_unknown");
    }
}

#[tokio::test]
async fn an_invalid_user_id_falls_back_to_the_customers_user_or_parks() {
    let world = World::new().await;
    let impossible = |name: &str| {
        let mut event = with_id(pack(name, "user_1", 1), &format!("evt_{name}"));
        event["data"]["object"]["client_reference_id"] = json!("\u{0}");
        event["data"]["object"]["metadata"]["user_id"] = json!("\u{0}");
        event["data"]["object"]["customer"] =
            sample("invoice.paid", "user_1")["data"]["object"]["customer"].clone();
        event
    };
    world.process(&impossible("early")).await;
    let parked = world.event("evt_early").await.unwrap();
    assert_eq!((parked["outcome"].as_str(), parked["reason"].as_str()), ("parked", "invalid_user"));
    world.process(&binding()).await;
    world.process(&impossible("late")).await;
    assert_eq!(world.event("evt_late").await.unwrap()["user_id"], "user_1");
    assert_eq!(world.account("user_1").await["credits"], 2000);
}

#[tokio::test]
async fn parking_creates_no_account_and_lists_the_event_once() {
    let world = World::new().await;
    let mut unknown = pack("unknown", "user_1", 1);
    unknown["data"]["object"]["metadata"]["pack"] = json!("none");
    world.process(&unknown).await;
    assert!(
        !world.everything().await.to_string().contains("\"account\""),
        "a parked event creates no account"
    );

    world.process(&pack("first", "user_1", 1)).await;
    let mut second = with_id(unknown.clone(), "evt_second");
    second["data"]["object"]["id"] = json!("cs_test_second");
    world.process(&second).await;
    let before = world.event("evt_second").await.unwrap();
    assert_eq!((before["outcome"].as_str(), before["previous"].as_str()), ("parked", "evt_first"));
    world.process(&pack("third", "user_1", 1)).await;
    world.process(&second).await;
    let again = world.event("evt_second").await.unwrap();
    assert_eq!(
        (again["outcome"].as_str(), again["previous"].as_str(), again["attempts"].as_str()),
        ("parked", "evt_first", "2")
    );
    world.process(&pack("fourth", "user_1", 1)).await;
    assert_eq!(world.event("evt_fourth").await.unwrap()["previous"], "evt_third");
}

#[tokio::test]
async fn a_queue_that_is_down_when_a_link_frees_an_event_fails_no_event() {
    let world = World::new().await;
    let invoice = nameless("invoice.paid");
    park(&world, &invoice).await;
    world.deliver(binding().to_string().as_bytes()).await;
    world.fault(|call| (call.operation == "SendMessage").then_some(Fault::LoseRequest));
    world.drain().await;
    world.heal();
    assert_eq!(world.event("evt_binding").await.unwrap()["outcome"], "processed");
    assert_eq!(world.event(invoice["id"].as_str().unwrap()).await.unwrap()["outcome"], "parked");
}

/// A changed copy of the catalog in a temporary file.
fn catalog(name: &str, change: impl FnOnce(String) -> String) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../catalog.toml");
    let file = std::env::temp_dir().join(format!("tallyhook-{name}-{}.toml", std::process::id()));
    std::fs::write(&file, change(std::fs::read_to_string(path).unwrap())).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_price_added_to_the_catalog_frees_its_events_on_the_next_retry() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    let mut event = pack("new_pack", "user_1", 1);
    event["data"]["object"]["metadata"]["pack"] = json!("credits_77");
    world.process(&event).await;
    let parked = world.event("evt_new_pack").await.unwrap();
    assert_eq!(
        (parked["reason"].as_str(), parked["waits_for"].as_str()),
        ("unknown_name", "pack#credits_77")
    );
    let report = world.retry_in(86_400).await;
    assert_eq!(
        (report.looked_at, report.sent, report.waiting),
        (1, 0, 1),
        "without the price in the catalog the event stays parked"
    );

    let file = catalog("pack", |text| {
        format!("{text}\n[[pack]]\nname = \"credits_77\"\ncredits = 77\nprices = [\"price_77\"]\n")
    });
    let world = world.redeploy(&[("CATALOG_FILE", &file)]);
    let report = world.retry_in(0).await;
    assert_eq!((report.sent, report.waiting), (1, 0));
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 577);
    assert_eq!(world.event("evt_new_pack").await.unwrap()["outcome"], "processed");
    assert_eq!(world.retry_in(0).await.looked_at, 0);
}

#[tokio::test]
async fn a_parked_event_is_retried_after_growing_pauses_by_one_run_only() {
    let world = World::new().await;
    let mut event = pack("unnamed", "user_1", 1);
    event["data"]["object"]["metadata"] = json!({"user_id": "user_1"});
    world.process(&event).await;
    assert_eq!(world.event("evt_unnamed").await.unwrap()["reason"], "unnamed_purchase");
    assert_eq!(world.retry_in(840).await.sent, 0);
    let at = now().plus_seconds(930);
    let (one, other) = futures_util::future::join(world.retry.run(at), world.retry.run(at)).await;
    assert_eq!(one.unwrap().sent + other.unwrap().sent, 1);
    world.drain().await;
    let parked = world.event("evt_unnamed").await.unwrap();
    assert_eq!(
        (parked["outcome"].as_str(), parked["redrives"].as_str(), parked["attempts"].as_str()),
        ("parked", "1", "2")
    );
    assert_eq!(world.retry_in(930).await.sent, 0, "the second pause is longer");
    assert_eq!(world.retry_in(1_830).await.sent, 1);
}

#[tokio::test]
async fn the_next_retry_sends_events_that_a_link_freed_but_could_not_send() {
    let world = World::new().await;
    let invoice = nameless("invoice.paid");
    park(&world, &invoice).await;
    world.deliver(binding().to_string().as_bytes()).await;
    world.fault(|call| (call.operation == "SendMessage").then_some(Fault::LoseRequest));
    world.drain().await;
    world.heal();
    assert_eq!(world.retry_in(0).await.sent, 1);
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 6000);
}

/// Fails every attempt of an event until it is in the dead-letter queue.
async fn exhaust(world: &World, name: &'static str) {
    world.deliver(pack(name, "user_1", 1).to_string().as_bytes()).await;
    world.fault(move |call| {
        call.request.to_string().contains(&format!("evt_{name}")).then_some(Fault::LoseRequest)
    });
    for _ in 0..4 {
        world.drain().await;
        world.pass_seconds(901);
    }
    world.drain().await;
    world.heal();
}

#[tokio::test]
async fn a_dead_letter_is_logged_as_failed_and_applied_once_when_redriven() {
    let world = World::new().await;
    exhaust(&world, "dead").await;
    let batch = world.receive_from("dead-letter").await;
    assert_eq!(batch.records.len(), 1);
    // If the log cannot be written, the message stays in the queue.
    world.fault(|call| (call.operation == "TransactWriteItems").then_some(Fault::LoseRequest));
    assert_eq!(world.dead_letter.handle(batch.clone()).await.unwrap().batch_item_failures.len(), 1);
    world.heal();
    // A second delivery of the same dead letter changes nothing.
    for _ in 0..2 {
        assert!(world.dead_letter.handle(batch.clone()).await.unwrap().batch_item_failures.is_empty());
        let failed = world.event("evt_dead").await.unwrap();
        assert_eq!(
            (failed["outcome"].as_str(), failed["reason"].as_str(), failed["attempts"].as_str()),
            ("failed", "retries_used_up", "4")
        );
        assert!(failed["message"].contains("checkout-session"), "{}", failed["message"]);
    }
    assert_eq!(world.alerts().await[0]["alert"], "dead_letter");
    assert_eq!(world.account("user_1").await["error"], "user_not_found");

    let retry = json!({"id": "evt_dead", "actor": "ann", "reason": "the outage is over"});
    for result in ["queued", "finished"] {
        let answer = world.ask("POST", "/admin/stripe/retry-webhooks", retry.clone()).await;
        assert_eq!(answer, (200, json!({"id": "evt_dead", "result": result})));
        world.drain().await;
        assert_eq!(world.account("user_1").await["credits"], 1000);
    }
    // A late copy of the dead letter does not overwrite the processed event.
    assert!(world.dead_letter.handle(batch).await.unwrap().batch_item_failures.is_empty());
    assert_eq!(world.event("evt_dead").await.unwrap()["outcome"], "processed");
    assert_eq!(world.alerts().await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_failed_event_is_sent_again_by_itself_a_bounded_number_of_times() {
    let world = World::new().await;
    let mut days = 0;
    for redrives in 0..=5 {
        if redrives == 0 {
            exhaust(&world, "stubborn").await;
        } else {
            assert_eq!(world.retry_in(days * 86_400).await.sent, 1, "redrive {redrives}");
            world.fault(|call| {
                call.request.to_string().contains("evt_stubborn").then_some(Fault::LoseRequest)
            });
            for _ in 0..5 {
                world.drain().await;
                world.pass_seconds(901);
            }
            world.heal();
        }
        days += 2;
        assert_eq!(world.drain_dead_letters().await, 1);
        assert_eq!(world.event("evt_stubborn").await.unwrap()["redrives"], redrives.to_string());
    }
    assert_eq!(world.retry_in(90 * 86_400).await.sent, 0, "after five redrives an operator decides");
}

#[tokio::test]
async fn a_dead_letter_that_is_not_an_event_is_logged_and_a_dead_alert_is_not() {
    let world = World::new().await;
    for (queue, id) in [("invoice-paid", "a-1"), ("notify", "b-1")] {
        let record = json!({"messageId": id, "receiptHandle": "h", "body": "junk", "eventSource": "aws:sqs", "attributes": {
            "ApproximateReceiveCount": "5", "SentTimestamp": "1795219200000",
            "DeadLetterQueueSourceArn": format!("arn:aws:sqs:us-east-1:000000000000:tallyhook-{queue}")}});
        let batch = serde_json::from_value(json!({"Records": [record]})).unwrap();
        assert!(world.dead_letter.handle(batch).await.unwrap().batch_item_failures.is_empty());
    }
    let failed = world.event("msg_a1").await.unwrap();
    assert_eq!((failed["outcome"].as_str(), failed["reason"].as_str()), ("failed", "message"));
    assert_eq!(world.event("msg_b1").await, None);
    assert_eq!(world.retry_in(86_400).await.sent, 0);
}

#[tokio::test]
async fn a_second_content_under_one_event_id_is_alerted_and_never_sent_again() {
    let world = World::new().await;
    world.process(&pack("same", "user_1", 1)).await;
    let mut other = pack("same", "user_1", 1);
    other["data"]["object"]["metadata"]["quantity"] = json!("999");
    world.process(&other).await;
    let alerts = world.alerts().await;
    assert_eq!((alerts.len(), &alerts[0]["reason"]), (1, &json!("payload_mismatch")));
    assert_eq!(world.retry_in(86_400).await.sent, 0);
    let page = world.ask("GET", "/admin/stripe/webhook-logs?status=parked", Value::Null).await.1;
    let id = page["events"][0]["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("evt_same~"), "{id}");
    let (status, answer) = world.ask("POST", "/admin/stripe/retry-webhooks", json!({"id": id})).await;
    assert_eq!((status, answer["error"].as_str()), (409, Some("not_sendable")));
    assert_eq!(world.account("user_1").await["credits"], 1000);
}

#[tokio::test]
async fn a_wrong_webhook_secret_causes_one_alert() {
    let world = World::with(&[("STRIPE_WEBHOOK_SECRET", "whsec_of_another_endpoint")]).await;
    for number in 0..12 {
        let body = pack(&format!("refused{number}"), "user_1", 1).to_string();
        world.calls();
        assert_eq!(world.post(body.as_bytes(), Some(&signature(body.as_bytes()))).await.0, 400);
        let calls = world.operations();
        assert_eq!(calls.len(), usize::from(number == 4), "request {number}: {calls:?}");
    }
    let alerts = world.alerts().await;
    assert_eq!(alerts.len(), 1);
    assert_eq!((&alerts[0]["alert"], &alerts[0]["verified"]), (&json!("bad_signatures"), &json!(0)));
}

#[tokio::test]
async fn requests_without_a_signature_of_stripes_shape_raise_no_alarm() {
    let world = World::new().await;
    for number in 0..20 {
        assert_eq!(world.post(b"{}", (number % 2 == 0).then_some("v1=00")).await.0, 400);
    }
    assert_eq!(world.alerts().await, [] as [Value; 0]);
}

#[tokio::test]
async fn the_schedule_writes_the_end_of_grace_only_where_access_has_ended() {
    let world = World::new().await;
    for user in ["user_1", "user_2"] {
        world.sign_up(user).await;
    }
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    let mut unpaid = sample("customer.subscription.updated.past_due", "user_1");
    let start = now().plus_seconds(-3600).unix();
    unpaid["created"] = json!(start + 60);
    let item = &mut unpaid["data"]["object"]["items"]["data"][0];
    item["current_period_start"] = json!(start);
    item["current_period_end"] = json!(start + 30 * 86_400);
    world.process(&unpaid).await;
    // The snapshot shows the plan business, of which nothing was paid.
    assert_eq!(world.account("user_1").await["tier"], "pro");
    let stored = async || {
        let key = std::collections::HashMap::from([
            ("pk".to_owned(), aws_sdk_dynamodb::types::AttributeValue::S("user#user_1".to_owned())),
            ("sk".to_owned(), aws_sdk_dynamodb::types::AttributeValue::S("account".to_owned())),
        ]);
        let item = world
            .dynamodb
            .get_item()
            .table_name("accounts")
            .set_key(Some(key))
            .send()
            .await
            .unwrap()
            .item
            .unwrap();
        (item["tier"].as_s().unwrap().clone(), item.contains_key("access_until"))
    };
    assert_eq!(stored().await, ("pro".to_owned(), true));

    assert_eq!(world.retry_in(6 * 86_400).await.lapsed, 0);
    let before = world.everything().await;
    world.calls();
    assert_eq!(world.retry_in(0).await.lapsed, 0);
    let reads = ["Query", "BatchGetItem"];
    assert!(
        world.operations().iter().all(|operation| reads.contains(&operation.as_str())),
        "a run without work writes nothing"
    );
    assert_eq!(world.everything().await, before);

    assert_eq!(world.retry_in(8 * 86_400).await.lapsed, 1);
    assert_eq!(stored().await, ("free".to_owned(), false));
    assert_eq!(world.retry_in(8 * 86_400).await.lapsed, 0);
}
