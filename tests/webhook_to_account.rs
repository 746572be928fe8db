//! The main path: a signed event changes an account exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tallyhook_core::event::Family;
use tallyhook_service::http::webhook::ENDPOINTS;

use crate::support::{Fault, World, aws_error, call, cancelled, pack, sample, signature, with_id};

#[tokio::test]
async fn a_paid_subscription_sets_tier_and_credits_once() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    let account = world.account("user_1").await;
    assert_eq!(
        (account["tier"].as_str(), account["credits"].as_u64()),
        (Some("pro"), Some(5000)),
        "{account:#}"
    );
    assert_eq!(account["buckets"]["signup"], 0);

    let before = world.everything().await;
    for _ in 0..10 {
        world.process(&sample("invoice.paid", "user_1")).await;
    }
    join_all((0..10).map(|_| async { world.process(&sample("invoice.paid", "user_1")).await })).await;
    assert_eq!(world.everything().await, before);
    assert_eq!(
        world.ledger("user_1").await.iter().map(|entry| entry["delta"].as_i64().unwrap()).sum::<i64>(),
        5000
    );
}

#[tokio::test]
async fn old_and_new_api_shapes_end_in_the_same_account() {
    let mut accounts = Vec::new();
    for folder in ["", "old/"] {
        let world = World::new().await;
        world.sign_up("user_1").await;
        for name in [
            "customer.subscription.created",
            "invoice.paid",
            "customer.subscription.updated",
            "invoice.paid.renewal",
        ] {
            world.process(&sample(&format!("{folder}{name}"), "user_1")).await;
        }
        let mut account = world.account("user_1").await;
        account["updated_at"] = json!(null);
        assert_eq!(
            (account["tier"].as_str(), account["credits"].as_u64()),
            (Some("pro"), Some(5000)),
            "{account:#}"
        );
        accounts.push(account);
    }
    assert_eq!(accounts[0], accounts[1]);
}

#[tokio::test]
async fn an_add_on_adds_and_a_second_event_for_the_same_session_does_not() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    world.process(&pack("a", "user_1", 2)).await;
    world.process(&with_id(pack("a", "user_1", 2), "evt_twin")).await;
    let account = world.account("user_1").await;
    assert_eq!((account["credits"].as_u64(), account["buckets"]["addon"].as_u64()), (Some(2500), Some(2000)));
    assert_eq!(world.event("evt_twin").await.unwrap()["outcome"], "processed");
}

#[tokio::test]
async fn a_forged_old_truncated_or_rewritten_request_gets_400_and_changes_nothing() {
    let world = World::new().await;
    let before = world.everything().await;
    let body = serde_json::to_vec_pretty(&sample("invoice.paid", "user_1")).unwrap();
    let good = signature(&body);
    let forged = good.replace("v1=", "v1=00");
    let old = tallyhook_core::signature::sign(
        &body,
        &tallyhook_core::signature::Secret::new(crate::support::SECRET).unwrap(),
        tallyhook_core::timestamp::Timestamp::from_unix(1_700_000_000),
    );
    let compact = sample("invoice.paid", "user_1").to_string().into_bytes();
    let not_json = &body[..body.len() - 2];
    for (what, body, header, code) in [
        ("none", &body[..], None, "missing_signature"),
        ("forged", &body, Some(forged.as_str()), "invalid_signature"),
        ("old", &body, Some(&old), "timestamp_out_of_tolerance"),
        ("truncated", not_json, Some(&good), "invalid_signature"),
        ("rewritten", &compact, Some(&good), "invalid_signature"),
        ("signed but cut", not_json, Some(&signature(not_json)), "malformed_event"),
        ("no event", b"[]", Some(&signature(b"[]")), "malformed_event"),
    ] {
        let (status, answer) = world.post(body, header).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some(code)), "{what}");
    }
    world.drain().await;
    assert_eq!(world.everything().await, before);
}

#[tokio::test]
async fn a_hundred_concurrent_purchases_and_spends_lose_no_update() {
    let world = Arc::new(World::new().await);
    world.sign_up("user_1").await;
    for number in 0..50 {
        world.deliver(pack(&format!("p{number}"), "user_1", 1).to_string().as_bytes()).await;
    }
    let purchases = (0..5).map(|_| {
        let world = world.clone();
        tokio::spawn(async move { while world.poll(Family::CheckoutSession).await > 0 {} })
    });
    let refused = Arc::new(AtomicU32::new(0));
    let spends = (0..50).map(|number| {
        let (world, refused) = (world.clone(), refused.clone());
        tokio::spawn(async move {
            loop {
                let key = format!("spend-{number}");
                let (status, answer) = world
                    .app("POST", "/users/user_1/credits/consume", json!({"amount": 10}), Some(&key))
                    .await;
                match status {
                    200 => return,
                    503 => refused.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other} {answer}"),
                };
            }
        })
    });
    for task in purchases.chain(spends).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    // Events that lost every race within one invocation return after their visibility expires.
    for _ in 0..4 {
        world.pass_seconds(1000);
        world.drain().await;
    }
    let account = world.account("user_1").await;
    assert_eq!(account["credits"].as_u64(), Some(500 + 50 * 1000 - 50 * 10), "{account:#}");
    let ledger = world.ledger("user_1").await;
    assert_eq!(ledger.len(), 1 + 50 + 50);
    assert_eq!(ledger.iter().map(|entry| entry["delta"].as_i64().unwrap()).sum::<i64>(), 50_000);
    for (newer, older) in ledger.iter().zip(&ledger[1..]) {
        let step = newer["balance"].as_i64().unwrap() - older["balance"].as_i64().unwrap();
        assert_eq!(newer["delta"].as_i64().unwrap(), step, "the chain of entries is a running balance");
    }
}

#[tokio::test]
async fn one_bad_record_in_a_batch_of_ten_is_parked_and_nine_are_applied() {
    let world = World::new().await;
    for number in 0..9 {
        world.deliver(pack(&format!("b{number}"), &format!("user_{number}"), 1).to_string().as_bytes()).await;
    }
    let url = world.queue_url(Family::CheckoutSession);
    world.sqs.send_message().queue_url(url).message_body("not from the webhook").send().await.unwrap();
    assert_eq!(world.poll(Family::CheckoutSession).await, 10);
    for number in 0..9 {
        assert_eq!(world.account(&format!("user_{number}")).await["credits"], 1000);
    }
    world.calls();
    assert_eq!(
        world.poll(Family::CheckoutSession).await,
        0,
        "an unreadable message is parked and not redelivered"
    );
}

#[tokio::test]
async fn a_batch_that_cannot_be_written_is_split_by_account_and_redelivered() {
    let world = World::new().await;
    for number in 0..6 {
        world
            .deliver(pack(&format!("c{number}"), &format!("user_{}", number % 2), 1).to_string().as_bytes())
            .await;
    }
    let batch = world.receive(Family::CheckoutSession).await;
    world.fault(|call| {
        (call.operation == "TransactWriteItems").then(|| aws_error(400, "AccessDeniedException"))
    });
    assert_eq!(
        world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap().batch_item_failures.len(),
        6
    );
    let refused = world.operations().iter().filter(|operation| *operation == "TransactWriteItems").count();
    assert_eq!(refused, 1 + 2 + 6, "one attempt for all, one for each account, one for each event");
    world.fault(|call| {
        (call.operation == "TransactWriteItems")
            .then(|| aws_error(400, "ProvisionedThroughputExceededException"))
    });
    assert_eq!(
        world.worker(Family::CheckoutSession).handle(batch).await.unwrap().batch_item_failures.len(),
        6
    );
    let away = world.operations().iter().filter(|operation| *operation == "TransactWriteItems").count();
    assert_eq!(away, 3 * (1 + 2), "the SDK makes three attempts of each call");
}

#[tokio::test]
async fn only_the_record_of_a_batch_that_cannot_be_written_is_redelivered() {
    let world = World::new().await;
    for number in 0..10 {
        world.deliver(pack(&format!("c{number}"), &format!("user_{number}"), 1).to_string().as_bytes()).await;
    }
    world.fault(|call| {
        let touches = call.request.to_string().contains("user#user_7\"");
        let touches = touches && call.operation == "TransactWriteItems";
        touches.then(|| cancelled(call, "user#user_7\"", "TransactionConflict"))
    });
    let batch = world.receive(Family::CheckoutSession).await;
    let answer = world.worker(Family::CheckoutSession).handle(batch.clone()).await.unwrap();
    assert_eq!(answer.batch_item_failures.len(), 1);
    world.delete(Family::CheckoutSession, &batch, &answer).await;
    world.heal();
    for number in 0..10 {
        let credits = world.account(&format!("user_{number}")).await["credits"].as_u64();
        assert_eq!(credits, if number == 7 { None } else { Some(1000) }, "user_{number}");
    }
    // The failed event returns after five minutes and not before.
    world.pass_seconds(299);
    assert_eq!(world.poll(Family::CheckoutSession).await, 0);
    world.pass_seconds(2);
    assert_eq!(world.poll(Family::CheckoutSession).await, 1);
    assert_eq!(world.account("user_7").await["credits"], 1000);
}

#[tokio::test]
async fn the_webhook_makes_one_call_and_a_worker_one_read_and_one_transaction() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    for name in [
        "customer.subscription.created",
        "invoice.paid",
        "checkout.session.completed.pack",
        "customer.subscription.updated",
        "invoice.paid.renewal",
    ] {
        let event = sample(name, "user_1");
        world.calls();
        world.deliver(event.to_string().as_bytes()).await;
        assert_eq!(world.operations(), ["SendMessage"], "{name}");
        let family =
            tallyhook_core::event::EventType::from(event["type"].as_str().unwrap()).family().unwrap();
        let batch = world.receive(family).await;
        world.calls();
        let answer = world.worker(family).handle(batch.clone()).await.unwrap();
        assert_eq!(world.operations(), ["BatchGetItem", "TransactWriteItems"], "{name}");
        assert!(answer.batch_item_failures.is_empty());
        world.worker(family).handle(batch.clone()).await.unwrap();
        assert_eq!(world.operations(), ["BatchGetItem"], "a duplicate of {name} is one read and no write");
        world.delete(family, &batch, &answer).await;
    }
}

#[tokio::test]
async fn a_batch_of_ten_is_one_read_and_one_transaction_for_all() {
    let world = World::new().await;
    let batch = world.ten_purchases().await;
    let answer = world.worker(Family::CheckoutSession).handle(batch).await.unwrap();
    assert_eq!(world.operations(), ["BatchGetItem", "TransactWriteItems"]);
    assert!(answer.batch_item_failures.is_empty());
    for user in 0..5 {
        assert_eq!(world.account(&format!("user_{user}")).await["credits"], 2000);
    }
}

#[tokio::test]
async fn the_cost_of_a_renewal_does_not_grow_with_the_history() {
    let world = crate::counts::world().await;
    world.sign_up("user_1").await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    world.process(&sample("invoice.paid", "user_1")).await;
    for period in 0..40_i64 {
        // Pretty-printed, as Stripe sends it: 5 KB.
        let mut event = with_id(sample("invoice.paid.renewal", "user_1"), &format!("evt_renewal{period}"));
        event["created"] = json!(1_770_000_000 + period * 2_592_000);
        event["data"]["object"]["id"] = json!(format!("in_renewal{period}"));
        event["data"]["object"]["lines"]["data"][0]["period"] =
            json!({"start": 1_770_000_000 + period * 2_592_000, "end": 1_772_592_000 + period * 2_592_000});
        let body = serde_json::to_vec_pretty(&event).unwrap();
        assert!(body.len() > 4096);
        assert_eq!(world.deliver(&body).await.0, 200);
        world.calls();
        world.poll(Family::InvoicePaid).await;
        let units: Vec<_> = world
            .calls()
            .into_iter()
            .filter(|call| call.units > 0.0)
            .map(|call| (call.operation, call.units))
            .collect();
        let [(read, read_units), (write, write_units)] = &units[..] else { panic!("{units:?}") };
        assert_eq!((read.as_str(), *read_units), ("BatchGetItem", 3.0), "period {period}");
        assert_eq!(write, "TransactWriteItems");
        assert!(*write_units <= 8.0, "period {period}: {write_units} write units");
        println!("period {period}: {read_units} read, {write_units} write");
    }
    assert_eq!(world.ledger("user_1").await.len(), 1 + 1 + 40);
}

#[tokio::test]
async fn an_event_without_a_known_user_is_tried_again_within_seconds_and_then_parked() {
    let world = World::new().await;
    let mut event = sample("customer.subscription.created", "");
    event["data"]["object"]["metadata"] = json!({});
    world.deliver(event.to_string().as_bytes()).await;
    assert_eq!(world.poll(Family::CustomerSubscription).await, 1);
    assert!(world.event(event["id"].as_str().unwrap()).await.is_none());
    world.pass_seconds(6);
    assert_eq!(world.poll(Family::CustomerSubscription).await, 1);
    let parked = world.event(event["id"].as_str().unwrap()).await.unwrap();
    assert_eq!((parked["outcome"].as_str(), parked["reason"].as_str()), ("parked", "no_user"));
    assert_eq!(
        parked["waits_for"],
        format!("customer#{}", event["data"]["object"]["customer"].as_str().unwrap())
    );
}

#[tokio::test]
async fn a_failing_event_is_retried_after_each_configured_delay_then_dead_lettered() {
    for (said, delays) in [(None, [300, 600, 900]), (Some("2,4,6"), [2, 4, 6])] {
        let variables: Vec<_> = said.map(|said| ("RETRY_DELAYS_SECONDS", said)).into_iter().collect();
        let world = World::with(&variables).await;
        world.deliver(pack("outage", "user_1", 1).to_string().as_bytes()).await;
        world.fault(|call| call.request.to_string().contains("user_1").then_some(Fault::LoseRequest));
        assert_eq!(world.poll(Family::CheckoutSession).await, 1, "at once");
        for delay in delays {
            world.pass_seconds(delay - 1);
            assert_eq!(world.poll(Family::CheckoutSession).await, 0, "before {delay} s are over");
            world.pass_seconds(2);
            assert_eq!(world.poll(Family::CheckoutSession).await, 1, "after {delay} s");
        }
        world.pass_seconds(10);
        assert_eq!(world.poll(Family::CheckoutSession).await, 0, "no fifth attempt");
        world.heal();
        assert_eq!(world.account("user_1").await["error"], "user_not_found");
        let dead = world
            .sqs
            .receive_message()
            .queue_url("http://sqs.test/000000000000/dead-letter")
            .send()
            .await
            .unwrap();
        assert!(dead.messages()[0].body().unwrap().contains("evt_outage"));

        // Redriven twice, it is applied once.
        for _ in 0..2 {
            world.process(&pack("outage", "user_1", 1)).await;
            assert_eq!(world.account("user_1").await["credits"], 1000);
        }
    }
}

#[tokio::test]
async fn one_customer_pays_for_each_user_that_its_sessions_name() {
    // In one batch, in two, and with and without an account of the second user.
    for (one_batch, signed_up) in [(true, false), (false, false), (false, true), (true, true)] {
        let world = World::new().await;
        if signed_up {
            world.sign_up("user_2").await;
        }
        for (name, user) in [("first", "user_1"), ("second", "user_2")] {
            let mut event = pack(name, user, 1);
            event["data"]["object"]["customer"] = json!("cus_shared");
            world.deliver(event.to_string().as_bytes()).await;
            if !one_batch {
                world.drain().await;
            }
        }
        world.drain().await;
        let credits = |account: serde_json::Value| account["credits"].as_u64().unwrap_or(0);
        let (first, second) =
            (credits(world.account("user_1").await), credits(world.account("user_2").await));
        let signup = if signed_up { 500 } else { 0 };
        assert_eq!((first, second), (1000, 1000 + signup), "one batch {one_batch}, signed up {signed_up}");
    }
}

#[tokio::test]
async fn an_unknown_event_type_is_answered_200_and_recorded_once_as_ignored() {
    let world = World::new().await;
    let event = sample("product.updated", "user_1");
    world.process(&event).await;
    let record = world.event(event["id"].as_str().unwrap()).await.unwrap();
    assert_eq!((record["outcome"].as_str(), record["reason"].as_str()), ("ignored", "type"));
}

#[tokio::test]
async fn an_event_of_the_other_mode_is_ignored() {
    let world = World::with(&[("STRIPE_LIVEMODE", "false")]).await;
    let mut event = pack("live", "user_1", 1);
    event["livemode"] = json!(true);
    world.process(&event).await;
    let record = world.event("evt_live").await.unwrap();
    assert_eq!((record["outcome"].as_str(), record["reason"].as_str()), ("ignored", "livemode"));
    assert_eq!(world.account("user_1").await["error"], "user_not_found");
}

#[tokio::test]
async fn the_same_event_id_with_another_content_is_parked_and_the_first_one_stays() {
    let world = World::new().await;
    world.process(&pack("same", "user_1", 1)).await;
    let mut other = pack("same", "user_1", 1);
    other["data"]["object"]["metadata"]["quantity"] = json!("999");
    world.process(&other).await;
    assert_eq!(world.account("user_1").await["credits"], 1000);
    assert_eq!(world.event("evt_same").await.unwrap()["outcome"], "processed");
    // A redelivery may differ in fields that are not the event's content.
    let mut again = pack("same", "user_1", 1);
    again["pending_webhooks"] = json!(7);
    let before = world.everything().await;
    world.process(&again).await;
    assert_eq!(world.everything().await, before);
}

#[tokio::test]
async fn a_body_over_the_message_limit_is_compressed_and_over_lambdas_refused() {
    let world = World::new().await;
    let mut event = pack("large", "user_1", 1);
    event["data"]["object"]["filler"] = json!("abcdefgh ".repeat(500_000));
    world.process(&event).await;
    assert_eq!(world.account("user_1").await["credits"], 1000);
    event["data"]["object"]["filler"] = json!("abcdefgh ".repeat(800_000));
    let (status, answer) = world.deliver(event.to_string().as_bytes()).await;
    assert_eq!((status, answer["error"].as_str()), (413, Some("too_large")));
}

#[tokio::test]
async fn every_path_of_the_endpoint_takes_events_with_one_call() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    world.calls();
    let slashes = ENDPOINTS.map(|path| format!("{path}/"));
    let paths: Vec<&str> = ENDPOINTS.into_iter().chain(slashes.iter().map(String::as_str)).collect();
    for (number, path) in (1..).zip(&paths) {
        let body = pack(&format!("path{number}"), "user_1", 1).to_string();
        let signed = signature(body.as_bytes());
        let post = async |signature: Option<&str>| {
            let header = signature.map(|signature| ("stripe-signature", signature));
            world.call(&call("POST", path, header, &body, false)).await
        };
        assert_eq!(post(Some(&signed)).await, (200, json!({"received": true})), "{path}");
        assert_eq!(world.operations(), ["SendMessage"], "{path}");
        let (status, refused): (u16, Value) = post(None).await;
        assert_eq!((status, &refused["error"]), (400, &json!("missing_signature")), "{path}");
        assert!(world.operations().is_empty(), "{path}");
    }
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 500 + 1000 * paths.len());
}

/// `context` is a path of account ids, joined by `/`.
#[tokio::test]
async fn an_event_of_another_account_of_the_organization_is_ignored() {
    let of_context = |name: &str| {
        let mut event = pack(name, "user_1", 1);
        event["context"] = json!("acct_1/acct_2");
        event
    };
    let world = World::new().await;
    world.process(&of_context("other")).await;
    let ignored = world.event("evt_other").await.unwrap();
    assert_eq!((ignored["outcome"].as_str(), ignored["reason"].as_str()), ("ignored", "context"));

    let file = std::env::temp_dir().join(format!("tallyhook-context-{}.toml", std::process::id()));
    let rule = "\n[[ignore]]\ncontext = \"acct_1/acct_2\"\n";
    // The pack's session has no line with a price, so the rule alone decides.
    std::fs::write(&file, format!("{}{rule}", include_str!("../catalog.toml"))).unwrap();
    let world = world.redeploy(&[("CATALOG_FILE", file.to_str().unwrap())]);
    std::fs::remove_file(&file).unwrap();
    world.process(&of_context("foreign")).await;
    let foreign = world.event("evt_foreign").await.unwrap();
    assert_eq!((foreign["outcome"].as_str(), foreign["reason"].as_str()), ("ignored", "foreign"));
    world.process(&pack("ours", "user_1", 1)).await;
    assert_eq!(world.account("user_1").await["credits"], 1000);
}

/// Since 2025-03-31.basil an invoice names no payment: `invoice_payment.paid` does, and Stripe sends it with
/// the invoice, in either order
/// (<https://docs.stripe.com/changelog/basil/2025-03-31/add-support-for-multiple-partial-payments-on-invoices>).
#[tokio::test]
async fn a_payment_is_tied_to_its_invoice_in_either_order_at_the_first_attempt() {
    for order in [["invoice.paid", "invoice_payment.paid"], ["invoice_payment.paid", "invoice.paid"]] {
        let world = World::new().await;
        for name in order {
            world.process(&sample(name, "user_1")).await;
        }
        let tie = world.event("evt_1TallyHookPayment00001").await.unwrap();
        assert_eq!((tie["outcome"].as_str(), tie["attempts"].as_str()), ("processed", "1"), "{order:?}");
        world.process(&refund_of_half()).await;
        assert_eq!(world.account("user_1").await["credits"], 2500, "{order:?}");
    }
}

/// Half of the first invoice's payment is refunded.
fn refund_of_half() -> Value {
    let mut refund = sample("charge.refunded", "user_1");
    let charge = &mut refund["data"]["object"];
    charge["payment_intent"] = json!("pi_TallyHook0001");
    charge["amount"] = json!(2000);
    charge["amount_refunded"] = json!(1000);
    refund
}

/// The link from the payment to its invoice is known, and the invoice is not. Nothing sends the refund again
/// until the invoice arrives.
#[tokio::test]
async fn a_refund_between_the_link_and_its_invoice_waits_for_the_invoice() {
    let world = World::new().await;
    world.process(&sample("invoice_payment.paid", "user_1")).await;
    let refund = refund_of_half();
    assert_eq!(world.deliver(refund.to_string().as_bytes()).await.0, 200);
    assert_eq!(world.poll(Family::Refund).await, 1);
    assert_eq!(world.messages("refund"), (0, 0));
    let waits = world.event(refund["id"].as_str().unwrap()).await.unwrap();
    assert_eq!((waits["outcome"].as_str(), waits["reason"].as_str()), ("parked", "no_grant"));
    world.process(&sample("invoice.paid", "user_1")).await;
    assert_eq!(world.account("user_1").await["credits"], 2500);
    assert_eq!(world.event(refund["id"].as_str().unwrap()).await.unwrap()["outcome"], "processed");
}

/// The link and the invoice are of one family, so a batch may have both.
#[tokio::test]
async fn a_refund_before_a_batch_with_its_link_and_its_invoice_is_applied() {
    for order in [["invoice.paid", "invoice_payment.paid"], ["invoice_payment.paid", "invoice.paid"]] {
        let world = World::new().await;
        world.process(&refund_of_half()).await;
        for name in order {
            let event = sample(name, "user_1");
            assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200);
        }
        assert_eq!(world.poll(Family::InvoicePaid).await, 2, "one batch");
        world.settle().await;
        assert_eq!(world.account("user_1").await["credits"], 2500, "{order:?}");
    }
}

/// Copies of a list's first element under other ids.
fn copies(list: &Value, count: usize, of: impl Fn(&mut Value, usize)) -> Value {
    let first = &list["data"][0];
    let copy = |number| {
        let mut copy = first.clone();
        of(&mut copy, number);
        copy
    };
    json!((0..count).map(copy).collect::<Vec<_>>())
}

/// A subscription with this many items of one plan, and its paid invoice with a line for each.
fn with_items(count: usize) -> [Value; 2] {
    let mut created = with_id(sample("customer.subscription.created", "user_1"), &format!("evt_sub_{count}"));
    let items = &mut created["data"]["object"]["items"];
    items["data"] = copies(items, count, |item, number| item["id"] = json!(format!("si_{number}")));
    let mut paid = with_id(sample("invoice.paid", "user_1"), &format!("evt_paid_{count}"));
    paid["data"]["object"]["id"] = json!(format!("in_{count}"));
    let lines = &mut paid["data"]["object"]["lines"];
    lines["data"] = copies(lines, count, |line, number| {
        line["id"] = json!(format!("il_{number}"));
        line["parent"]["subscription_item_details"]["subscription_item"] = json!(format!("si_{number}"));
    });
    [created, paid]
}

#[tokio::test]
async fn an_account_holds_fifty_items_and_the_event_with_one_more_is_parked() {
    let world = World::new().await;
    for event in with_items(50) {
        world.process(&event).await;
    }
    let account = world.account("user_1").await;
    assert_eq!(account["credits"], 50 * 5000);
    assert_eq!(account["buckets"]["items"].as_object().unwrap().len(), 50);
    // DynamoDB's limit is 400 KB; 50 items with one line each take a tenth of it, and less than a hundredth when packed.
    let stored = world.everything().await[0][0].as_array().unwrap().clone();
    let account = stored.iter().find(|item| item["sk"]["S"] == "account").unwrap();
    let bytes = account["state"]["B"].to_string().len();
    assert!((10_000..40_000).contains(&bytes), "{bytes} bytes");
    let packed = tallyhook_aws::payload::pack(account["state"]["B"].to_string().as_bytes()).len();
    assert!((500..4_000).contains(&packed), "{packed} bytes");
    for event in with_items(51) {
        world.process(&event).await;
    }
    for id in ["evt_sub_51", "evt_paid_51"] {
        let event = world.event(id).await.unwrap();
        let seen = (event["outcome"].as_str(), event["reason"].as_str());
        assert_eq!(seen, ("parked", "too_many_items"), "{id}");
    }
    assert_eq!(world.account("user_1").await["credits"], 50 * 5000);
}
