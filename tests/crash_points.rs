//! Every handler is stopped at every call that it makes, in every way in which a call can fail. Then calls
//! succeed again, the visibility timeout expires, and SQS redelivers what was not acknowledged. The result
//! must equal that of an undisturbed run, and the invariants must hold at every moment in between.

use serde_json::{Value, json};
use tallyhook_core::event::{EventType, Family};

use crate::invariants::{Tables, check_quiet};
use crate::support::{Call, Fault, World, aws_error, cancelled, pack, sample, with_id};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CallFailure {
    /// The request is lost; the SDK repeats it.
    RequestLost,
    /// The call has its effect and the reply is lost; the SDK repeats it.
    ReplyLost,
    /// From this call on no request arrives.
    Outage,
    /// From this call on calls have their effect and no reply arrives.
    RepliesLost,
    /// The instance is killed before the call has an effect.
    KilledBefore,
    /// The instance is killed after the call has had its effect.
    KilledAfter,
    /// From this call on the service fails.
    InternalError,
    /// From this call on the service throttles.
    Throttled,
    /// From this call on, every transaction is cancelled by a conflict.
    Conflict,
    /// Transactions are throttled by the table, which cancels them.
    ThrottledWithin,
    /// One transaction with the same token is still running.
    InProgress,
}

pub const CALL_FAILURES: [CallFailure; 11] = [
    CallFailure::RequestLost,
    CallFailure::ReplyLost,
    CallFailure::Outage,
    CallFailure::RepliesLost,
    CallFailure::KilledBefore,
    CallFailure::KilledAfter,
    CallFailure::InternalError,
    CallFailure::Throttled,
    CallFailure::Conflict,
    CallFailure::ThrottledWithin,
    CallFailure::InProgress,
];

impl CallFailure {
    /// The fault of the call with this number, counted from 0, when the failure begins at number `at`.
    fn at(self, at: usize, number: usize, call: &Call) -> Option<Fault> {
        let transaction = call.operation == "TransactWriteItems";
        match self {
            Self::RequestLost => (number == at).then_some(Fault::LoseRequest),
            Self::ReplyLost => (number == at).then_some(Fault::LoseReply),
            Self::KilledBefore => (number == at).then_some(Fault::HangBefore),
            Self::KilledAfter => (number == at).then_some(Fault::HangAfter),
            Self::Outage => (number >= at).then_some(Fault::LoseRequest),
            Self::RepliesLost => (number >= at).then_some(Fault::LoseReply),
            Self::InternalError => (number >= at).then(|| aws_error(500, "InternalServerError")),
            Self::Throttled => {
                (number >= at).then(|| aws_error(400, "ProvisionedThroughputExceededException"))
            }
            Self::Conflict => {
                (number >= at && transaction).then(|| cancelled(call, "", "TransactionConflict"))
            }
            Self::ThrottledWithin => {
                (number >= at && transaction).then(|| cancelled(call, "", "ProvisionedThroughputExceeded"))
            }
            Self::InProgress => {
                (number >= at && transaction).then(|| aws_error(400, "TransactionInProgressException"))
            }
        }
    }
}

impl World {
    /// From here on the calls are counted, and the failure is at number `at`.
    pub fn fail_at(&self, failure: CallFailure, at: usize) {
        let mut number = 0;
        self.fault(move |call| {
            number += 1;
            failure.at(at, number - 1, call)
        });
    }
}

/// One batch of one family, and what happened before it.
struct Case {
    name: &'static str,
    before: Vec<Value>,
    batch: Vec<Value>,
    /// Whether the batch also has a message that no webhook sent.
    poison: bool,
}

impl Case {
    fn family(&self) -> Family {
        EventType::from(self.batch[0]["type"].as_str().unwrap()).family().unwrap_or(Family::Customer)
    }

    /// A world in which the batch is queued and not yet received.
    async fn world(&self) -> World {
        let world = World::new().await;
        world.sign_up("user_1").await;
        for event in &self.before {
            world.process(event).await;
        }
        for event in &self.batch {
            assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200);
        }
        if self.poison {
            world
                .sqs
                .send_message()
                .queue_url(world.queue_url(self.family()))
                .message_body("forged")
                .send()
                .await
                .unwrap();
        }
        world
    }

    /// Passes the batch to the worker and deletes what it acknowledged. The fault may kill the worker's
    /// instance.
    async fn attempt(&self, world: &World, failure: CallFailure, at: usize) {
        let family = self.family();
        let batch = world.receive(family).await;
        if batch.records.is_empty() {
            return;
        }
        let worker = world.worker(family);
        world.fail_at(failure, at);
        let answer = world.until_hung(worker.handle(batch.clone())).await;
        world.heal();
        if let Some(answer) = answer {
            let answer = answer.unwrap();
            let failed = &answer.batch_item_failures;
            let ids: Vec<_> = batch.records.iter().filter_map(|record| record.message_id.clone()).collect();
            assert!(failed.iter().all(|failure| ids.contains(&failure.item_identifier)), "I16: {failed:?}");
            world.delete(family, &batch, &answer).await;
        }
    }
}

/// A case for every family and for every shape of its path: known and unknown user, one read and two, grant
/// and none, a full batch.
fn cases() -> Vec<Case> {
    let user = |name: &str| sample(name, "user_1");
    let paid = || vec![user("customer.subscription.created"), user("invoice.paid")];
    let case = |name: &'static str, before: Vec<Value>, batch: Vec<Value>| Case {
        name,
        before,
        batch,
        poison: false,
    };
    let anonymous = |name: &str| -> Value {
        serde_json::from_str(&user(name).to_string().replace("\"user_id\":\"user_1\"", "\"note\":\"none\""))
            .unwrap()
    };
    let mut elsewhere = pack("elsewhere", "user_3", 1);
    elsewhere["account"] = json!("acct_1");
    let mut clash = pack("clash", "user_4", 1);
    clash["data"]["object"]["customer"] = json!("cus_user1");
    vec![
        case("a pack for an account", vec![], vec![pack("one", "user_1", 2)]),
        case("a pack for a new user", vec![], vec![pack("two", "user_2", 1)]),
        case("an order", vec![], vec![user("checkout.session.completed.order")]),
        case("an unpaid session", vec![], vec![user("checkout.session.completed.unpaid")]),
        case(
            "a session paid later",
            vec![user("checkout.session.completed.unpaid")],
            vec![user("checkout.session.async_payment_succeeded")],
        ),
        case("a new subscription", vec![], vec![user("customer.subscription.created")]),
        case("a trial", vec![], vec![user("customer.subscription.created.trialing")]),
        case("an upgrade", paid(), vec![user("customer.subscription.updated.upgrade")]),
        case("a cancellation", paid(), vec![user("customer.subscription.deleted")]),
        case("a first invoice", vec![user("customer.subscription.created")], vec![user("invoice.paid")]),
        case("a renewal", paid(), vec![user("invoice.paid.renewal")]),
        case("an invoice known by its customer", paid(), vec![anonymous("invoice.paid.renewal")]),
        case("an invoice without a known user", vec![], vec![anonymous("invoice.paid")]),
        case("a failed payment", paid(), vec![user("invoice.payment_failed")]),
        case("a refund", vec![user("checkout.session.completed.pack")], vec![user("charge.refunded")]),
        case("a refund of an unknown payment", vec![], vec![anonymous("refund.created")]),
        case(
            "a dispute",
            vec![user("checkout.session.completed.pack_5000")],
            vec![user("charge.dispute.created")],
        ),
        case("a deleted customer", paid(), vec![user("customer.deleted")]),
        case("a type without a family", vec![], vec![user("product.updated")]),
        Case {
            name: FULL_BATCH,
            before: vec![pack("seen", "user_1", 1)],
            batch: vec![
                pack("b1", "user_1", 1),
                pack("b2", "user_1", 2),
                pack("b3", "user_2", 1),
                with_id(pack("b3", "user_2", 1), "evt_b3again"),
                pack("seen", "user_1", 1),
                elsewhere,
                clash,
                with_id(user("checkout.session.expired"), "evt_expired"),
            ],
            poison: true,
        },
    ]
}

/// The cases that meet every failure. With `SWEEP` set, all cases do.
const EVERY_FAILURE: [&str; 2] = ["a pack for an account", "an invoice known by its customer"];
/// A run of this one takes as long as thirty of the others: unless `SWEEP` is set it is only killed, and not
/// twice.
const FULL_BATCH: &str = "a full batch";
const KILLED: [CallFailure; 2] = [CallFailure::KilledBefore, CallFailure::KilledAfter];
const LOST_OR_KILLED: [CallFailure; 4] =
    [CallFailure::RequestLost, CallFailure::ReplyLost, CallFailure::KilledBefore, CallFailure::KilledAfter];

/// The result of the undisturbed run, and the number of calls of the handler.
async fn undisturbed(case: &Case) -> (Tables, usize) {
    let world = case.world().await;
    world.calls();
    let batch = world.receive(case.family()).await;
    world.calls();
    let answer = world.worker(case.family()).handle(batch.clone()).await.unwrap();
    let calls = world.calls().len();
    world.delete(case.family(), &batch, &answer).await;
    world.settle().await;
    (check_quiet(&world, &case.batch, case.name).await.meaning(), calls)
}

/// Replaces message ids, which differ from world to world.
fn without_message_ids(mut tables: Tables) -> Tables {
    let (messages, events): (Vec<_>, Vec<_>) =
        tables.events.into_iter().partition(|(id, _)| id.starts_with("msg_"));
    tables.events = events.into_iter().collect();
    for (number, (_, mut item)) in messages.into_iter().enumerate() {
        item["pk"] = json!(number);
        tables.events.insert(format!("message {number}"), item);
    }
    tables
}

/// Redelivers what was not acknowledged and compares the result with the undisturbed run. Then delivers
/// everything once more, which must change nothing.
async fn must_end_as(world: &World, case: &Case, end: &Tables, when: &str) {
    Tables::read(world).await.check(when);
    world.pass_seconds(1000);
    world.settle().await;
    let tables = check_quiet(world, &case.batch, when).await;
    without_message_ids(tables.meaning()).must_be(end, &format!("I6, {when}"));
    for event in &case.batch {
        assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200, "{when}");
    }
    world.settle().await;
    let tables = check_quiet(world, &case.batch, when).await;
    without_message_ids(tables.meaning()).must_be(end, &format!("I7, {when}"));
}

/// Whether every case meets every failure: `SWEEP=1 cargo test -p tests crash_points`.
fn sweep() -> bool {
    std::env::var_os("SWEEP").is_some()
}

#[tokio::test(start_paused = true)]
async fn a_worker_stopped_at_any_call_in_any_way_ends_where_an_undisturbed_one_does() {
    let mut runs = 0;
    for case in cases() {
        let (end, calls) = undisturbed(&case).await;
        let end = without_message_ids(end);
        let failures = match case.name {
            name if sweep() || EVERY_FAILURE.contains(&name) => &CALL_FAILURES[..],
            FULL_BATCH => &KILLED,
            _ => &LOST_OR_KILLED,
        };
        assert!(calls > 0, "{} makes no call", case.name);
        for at in 0..calls {
            for &failure in failures {
                let when = format!("{}: {failure:?} at call {at} of {calls}", case.name);
                let world = case.world().await;
                case.attempt(&world, failure, at).await;
                must_end_as(&world, &case, &end, &when).await;
                runs += 1;
            }
        }
    }
    println!("{runs} runs of the workers");
}

/// The second instance starts from what the first one left.
#[tokio::test(start_paused = true)]
async fn an_instance_killed_twice_at_any_two_calls_ends_where_an_undisturbed_one_does() {
    let mut runs = 0;
    for case in cases().into_iter().filter(|case| sweep() || EVERY_FAILURE.contains(&case.name)) {
        let (end, calls) = undisturbed(&case).await;
        let end = without_message_ids(end);
        for first in 0..calls {
            for second in 0..calls {
                for one in KILLED {
                    let two = CallFailure::KilledAfter;
                    let when = format!(
                        "{}: {one:?} at call {first}, {two:?} at call {second} of {calls}",
                        case.name
                    );
                    let world = case.world().await;
                    case.attempt(&world, one, first).await;
                    Tables::read(&world).await.check(&when);
                    world.pass_seconds(1000);
                    case.attempt(&world, two, second).await;
                    must_end_as(&world, &case, &end, &when).await;
                    runs += 1;
                }
            }
        }
    }
    println!("{runs} runs of instances killed twice");
}

#[tokio::test(start_paused = true)]
async fn an_instance_killed_after_its_answer_and_before_the_delete_leaves_a_duplicate() {
    for case in cases() {
        let (end, _) = undisturbed(&case).await;
        let world = case.world().await;
        let batch = world.receive(case.family()).await;
        world.worker(case.family()).handle(batch).await.unwrap();
        world.pass_seconds(1000);
        world.settle().await;
        let tables = check_quiet(&world, &case.batch, case.name).await;
        without_message_ids(tables.meaning())
            .must_be(&without_message_ids(end), &format!("S55, {}", case.name));
    }
}

#[tokio::test(start_paused = true)]
async fn a_webhook_stopped_at_its_call_in_any_way_has_queued_what_it_acknowledged() {
    let mut large = pack("large", "user_1", 1);
    large["data"]["object"]["filler"] = json!("abcdefgh ".repeat(200_000));
    let mut runs = 0;
    for event in [
        pack("one", "user_1", 1),
        sample("invoice.paid", "user_1"),
        sample("product.updated", "user_1"),
        large,
    ] {
        let body = event.to_string();
        let undisturbed = World::new().await;
        undisturbed.deliver(body.as_bytes()).await;
        assert_eq!(undisturbed.operations(), ["SendMessage"]);
        undisturbed.settle().await;
        let end = check_quiet(&undisturbed, std::slice::from_ref(&event), "undisturbed").await.meaning();
        for failure in CALL_FAILURES {
            let when = format!("{}: {failure:?}", event["type"]);
            let world = World::new().await;
            world.fail_at(failure, 0);
            let answer = world.until_hung(world.deliver(body.as_bytes())).await;
            world.heal();
            let queues = world.everything().await[1].clone();
            let queued: u64 = queues.as_array().unwrap().iter().filter_map(|queue| queue[1].as_u64()).sum();
            match answer {
                Some((200, _)) => assert!(queued >= 1, "I4, {when}"),
                Some((status, answer)) => {
                    assert_eq!(
                        (status, answer["error"].as_str()),
                        (503, Some("queue_unavailable")),
                        "{when}"
                    );
                }
                None => {
                    assert!(matches!(failure, CallFailure::KilledBefore | CallFailure::KilledAfter), "{when}")
                }
            }
            // Stripe sends again what was not answered 2xx. Here everything is sent again.
            assert_eq!(world.deliver(body.as_bytes()).await.0, 200, "{when}");
            world.settle().await;
            check_quiet(&world, std::slice::from_ref(&event), &when)
                .await
                .meaning()
                .must_be(&end, &format!("I6, {when}"));
            runs += 1;
        }
    }
    println!("{runs} webhook runs");
}

#[tokio::test(start_paused = true)]
async fn the_apps_requests_stopped_at_any_call_and_repeated_happen_once() {
    let spend =
        |amount: u64| ("POST", "/users/user_1/credits/consume", json!({"amount": amount}), Some("job-1"));
    let mut runs = 0;
    for (name, signed_up, (method, path, body, key)) in [
        ("sign-up", false, ("PUT", "/users/user_1", Value::Null, None)),
        ("sign-up again", true, ("PUT", "/users/user_1", Value::Null, None)),
        ("spend", true, spend(120)),
        ("a spend above the balance", true, spend(501)),
        ("a spend of an unknown user", false, spend(1)),
    ] {
        let fresh = || async {
            let world = World::new().await;
            if signed_up {
                world.sign_up("user_1").await;
            }
            world.calls();
            world
        };
        let ask = async |world: &World| world.app(method, path, body.clone(), key).await;
        let undisturbed = fresh().await;
        let (status, mut expected) = ask(&undisturbed).await;
        let calls = undisturbed.calls().len();
        let end = Tables::read(&undisturbed).await.meaning();
        forget_times(&mut expected);
        for at in 0..calls {
            for failure in CALL_FAILURES {
                let when = format!("{name}: {failure:?} at call {at} of {calls}");
                let world = fresh().await;
                world.fail_at(failure, at);
                let first = world.until_hung(ask(&world)).await;
                world.heal();
                Tables::read(&world).await.check(&when);
                let (again, mut answer) = ask(&world).await;
                forget_times(&mut answer);
                assert_eq!((again, &answer), (status, &expected), "{when}");
                if let Some((first, answer)) = first {
                    assert!(
                        first == status
                            || (first, answer["error"].as_str()) == (503, Some("store_unavailable")),
                        "{when}: {first} {answer}"
                    );
                }
                let tables = Tables::read(&world).await;
                tables.check(&when);
                tables.meaning().must_be(&end, &format!("I7, {when}"));
                runs += 1;
            }
        }
    }
    println!("{runs} runs of the app's API");
}

/// Removes the times of our own from an account.
fn forget_times(account: &mut Value) {
    if let Some(account) = account.as_object_mut() {
        account.remove("updated_at");
        for lot in account.get_mut("lots").and_then(Value::as_array_mut).into_iter().flatten() {
            lot["since"] = Value::Null;
        }
    }
}
