//! Workers, SQS and DynamoDB: failures, redelivery, concurrency.

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tallyhook_core::event::Family;

use super::{buyer, credits, outcome, signed_up, spend, subscriber};
use crate::invariants::{Tables, check_quiet};
use crate::support::{Fault, World, aws_error, cancelled, pack, sample, with_id};

#[tokio::test(start_paused = true)]
async fn s58_an_unreadable_message_is_recorded_after_a_cancelled_transaction() {
    for code in ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded", "SomethingNew"] {
        let world = World::new().await;
        let url = world.queue_url(Family::CheckoutSession);
        world.sqs.send_message().queue_url(url).message_body("not from the webhook").send().await.unwrap();
        let batch = world.receive(Family::CheckoutSession).await;
        world.fault(move |call| (call.operation == "TransactWriteItems").then(|| cancelled(call, "", code)));
        let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
        assert_eq!(answer.batch_item_failures.len(), 1, "{code}: acknowledged and not recorded");
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
async fn s58_partial_reads_are_completed_or_the_event_is_retried() {
    let world = subscriber().await;
    // Each answer reads one key and leaves the others unprocessed.
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

    // No key is ever read: the event fails and is retried. It is not treated as an event of a user without
    // an account.
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
async fn s59_a_write_whose_answer_is_lost_is_not_repeated() {
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
        assert_eq!(outcome(&world, "evt_hang").await.0, "processed", "{fault:?}");
        world.delete(Family::CheckoutSession, &batch, &answer).await;
        world.pass_seconds(601);
        world.settle().await;
        assert_eq!(check_quiet(&world, &[event], "S59").await.credits("user_1"), 1500, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s59_a_rejected_idempotency_token_is_replaced_by_a_new_one() {
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
async fn s60_a_failed_message_without_a_delay_returns_after_its_visibility() {
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
async fn s61_one_message_that_many_workers_process_at_once_is_applied_once() {
    let world = signed_up().await;
    let events: Vec<Value> = (0..10).map(|number| pack(&format!("same{number}"), "user_1", 1)).collect();
    for event in &events {
        world.deliver(event.to_string().as_bytes()).await;
    }
    let batch = world.receive(Family::CheckoutSession).await;
    let worker = world.worker(Family::CheckoutSession);
    // The visibility expires while the first handler still runs: a second handler receives the same messages.
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
        "no item of an account expires"
    );
}

#[tokio::test]
async fn s65_a_message_on_the_wrong_queue_or_without_attributes_is_parked() {
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
        // SQS refuses an invalid number, so no message is created.
        if message.send().await.is_ok() {
            world.drain().await;
        }
        assert_eq!(credits(&world, "user_1").await, 1500, "{family} {received:?} {mode:?}");
    }
    check_quiet(&world, &[], "S65").await;
    assert_eq!(outcome(&world, "evt_done").await.0, "processed", "a processed event stays processed");
    assert_eq!(outcome(&world, "evt_hand").await, ("parked".into(), "message".into()));
}

#[tokio::test]
async fn s66_of_two_contents_under_one_id_the_first_counts_and_the_second_is_parked() {
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
    assert!(credits == 1500 || credits == 500 + 900_000, "either content may arrive first: {credits}");
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
    println!("{failed} of 100 lost every race within one invocation");
    world.settle().await;
    assert_eq!(check_quiet(&world, &events, "S67").await.credits("user_1"), 100_500);
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
