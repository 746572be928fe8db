//! Credits reserved for a job, committed, released and given back, through HTTP and DynamoDB.

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{World, change_packed, pack, sample, with_id};

const HOLDS: &str = "/users/user_1/credits/holds";
const REFUND: &str = "/users/user_1/credits/refund";

/// A user with 500 signup credits.
async fn user() -> World {
    let world = World::new().await;
    world.sign_up("user_1").await;
    world
}

async fn hold(world: &World, amount: u64, ttl_seconds: u64, key: &str) -> (u16, Value) {
    world.app("POST", HOLDS, json!({"amount": amount, "ttl_seconds": ttl_seconds}), Some(key)).await
}

async fn commit(world: &World, hold: &Value, body: Value) -> (u16, Value) {
    world.app("POST", &format!("{HOLDS}/{}/commit", hold["hold"].as_str().unwrap()), body, None).await
}

async fn release(world: &World, hold: &Value) -> (u16, Value) {
    let path = format!("{HOLDS}/{}/release", hold["hold"].as_str().unwrap());
    world.app("POST", &path, Value::Null, None).await
}

async fn give_back(world: &World, spend: &str, amount: u64, key: &str) -> (u16, Value) {
    world.app("POST", REFUND, json!({"spend": spend, "amount": amount}), Some(key)).await
}

/// Credits, available credits and held credits.
async fn credits_available_held(world: &World) -> (u64, u64, u64) {
    let account = world.account("user_1").await;
    let number = |name: &str| account[name].as_u64().unwrap();
    (number("credits"), number("available"), number("held"))
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"].as_str().unwrap_or("none"))
}

#[tokio::test]
async fn a_hold_is_made_and_committed_with_one_read_and_one_transaction_each() {
    let world = user().await;
    world.calls();
    let (status, held) = hold(&world, 200, 900, "job-1").await;
    assert_eq!((status, &held["amount"], &held["available"]), (201, &json!(200), &json!(300)));
    assert_eq!(world.operations(), ["BatchGetItem", "TransactWriteItems"]);
    assert_eq!(credits_available_held(&world).await, (500, 300, 200));
    world.calls();
    let answer = commit(&world, &held, json!({"amount": 150})).await;
    let expected =
        json!({"user_id": "user_1", "hold": held["hold"], "committed": 150, "credits": 350, "shortfall": 0});
    assert_eq!(answer, (200, expected.clone()));
    assert_eq!(world.operations(), ["BatchGetItem", "TransactWriteItems"]);
    assert_eq!(credits_available_held(&world).await, (350, 350, 0));

    // The same calls again give the same answers and write nothing.
    world.calls();
    assert_eq!(hold(&world, 200, 900, "job-1").await, (201, held.clone()));
    assert_eq!(commit(&world, &held, json!({"amount": 150})).await, (200, expected));
    assert_eq!(world.operations(), ["BatchGetItem", "BatchGetItem"]);
    assert_eq!(code(&hold(&world, 201, 900, "job-1").await), (409, "idempotency_key_reused"));
    assert_eq!(code(&hold(&world, 200, 901, "job-1").await), (409, "idempotency_key_reused"));
    assert_eq!(code(&commit(&world, &held, json!({"amount": 151})).await), (409, "hold_committed"));
    assert_eq!(code(&release(&world, &held).await), (409, "hold_committed"));

    world.calls();
    let refund = json!({"spend": held["hold"], "amount": 50});
    let answer = world.app("POST", REFUND, refund, Some("k")).await;
    assert_eq!((answer.0, &answer.1["refunded"], &answer.1["credits"]), (200, &json!(50), &json!(400)));
    assert_eq!(world.operations(), ["BatchGetItem", "TransactWriteItems"]);
    let ledger = world.app("GET", "/users/user_1/ledger", Value::Null, None).await.1;
    let spend = &ledger["entries"][1];
    assert_eq!((&spend["delta"], &spend["given_back"]), (&json!(-150), &json!(50)));
    assert_eq!(spend["from"], json!([{"lot": "signup", "credits": 150}]));
    assert_eq!(ledger["entries"][0]["of"], spend["key"]);
}

#[tokio::test]
async fn a_released_hold_is_not_committed() {
    let world = user().await;
    let held = hold(&world, 500, 60, "job").await.1;
    assert_eq!(code(&hold(&world, 1, 60, "another").await), (402, "insufficient_credits"));
    let spend = world.app("POST", "/users/user_1/credits/consume", json!({"amount": 1}), Some("c")).await;
    assert_eq!(spend.1["message"], "0 credits are available, 1 are needed");
    world.calls();
    let answer = (200, json!({"user_id": "user_1", "hold": held["hold"], "released": 500, "credits": 500}));
    assert_eq!(release(&world, &held).await, answer);
    assert_eq!(world.operations(), ["BatchGetItem", "TransactWriteItems"]);
    assert_eq!(release(&world, &held).await, answer);
    assert_eq!(code(&commit(&world, &held, json!({"amount": 1})).await), (409, "hold_released"));
    assert_eq!(credits_available_held(&world).await, (500, 500, 0));
    assert_eq!(
        code(&give_back(&world, held["hold"].as_str().unwrap(), 1, "k").await),
        (409, "exceeds_spend")
    );
}

#[tokio::test]
async fn a_wrong_request_is_refused() {
    let world = user().await;
    for (body, key, expected) in [
        (json!({"amount": 1, "ttl_seconds": 60}), None, (400, "missing_idempotency_key")),
        (json!({"amount": 0, "ttl_seconds": 60}), Some("k"), (400, "invalid_amount")),
        (json!({"amount": 1}), Some("k"), (400, "invalid_ttl")),
        (json!({"amount": 1, "ttl_seconds": 59}), Some("k"), (400, "invalid_ttl")),
        (json!({"amount": 1, "ttl_seconds": 86_401}), Some("k"), (400, "invalid_ttl")),
        (json!({"amount": 1, "ttl_seconds": "900"}), Some("k"), (400, "invalid_ttl")),
    ] {
        assert_eq!(code(&world.app("POST", HOLDS, body.clone(), key).await), expected, "{body}");
    }
    for ttl_seconds in [60, 86_400] {
        assert_eq!(hold(&world, 1, ttl_seconds, &format!("ttl {ttl_seconds}")).await.0, 201);
    }
    let held = hold(&world, 10, 60, "job").await.1;
    for (body, expected) in [
        (json!({}), (400, "invalid_amount")),
        (json!({"amount": -1}), (400, "invalid_body")),
        (json!({"amount": 11}), (400, "exceeds_hold")),
        (json!({"amount": 499, "extend": true}), (400, "exceeds_hold")),
    ] {
        assert_eq!(code(&commit(&world, &held, body.clone()).await), expected, "{body}");
    }
    assert_eq!(commit(&world, &held, json!({"amount": 498, "extend": true})).await.1["credits"], 2);
    for unknown in ["hold_00000000000000000000000000000000", "x", "hold_"] {
        let unknown = json!({"hold": unknown});
        assert_eq!(code(&release(&world, &unknown).await), (404, "hold_not_found"));
        assert_eq!(code(&commit(&world, &unknown, json!({"amount": 1})).await), (404, "hold_not_found"));
    }
    let of_another = format!("/users/user_2/credits/holds/{}/release", held["hold"].as_str().unwrap());
    world.sign_up("user_2").await;
    assert_eq!(code(&world.app("POST", &of_another, Value::Null, None).await), (404, "hold_not_found"));
    assert_eq!(code(&give_back(&world, "never", 1, "k").await), (404, "spend_not_found"));
    assert_eq!(code(&give_back(&world, "", 1, "k").await), (404, "spend_not_found"));
    let body = json!({"amount": 1, "ttl_seconds": 60});
    let of_unknown = world.app("POST", "/users/unknown/credits/holds", body, Some("k")).await;
    assert_eq!(code(&of_unknown), (404, "user_not_found"));
}

#[tokio::test]
async fn the_65th_open_hold_is_refused() {
    let world = user().await;
    let first = hold(&world, 1, 900, "0").await.1;
    for number in 1..64 {
        assert_eq!(hold(&world, 1, 900, &number.to_string()).await.0, 201);
    }
    assert_eq!(code(&hold(&world, 1, 900, "64").await), (409, "too_many_holds"));
    assert_eq!(release(&world, &first).await.0, 200);
    assert_eq!(hold(&world, 1, 900, "64").await.0, 201);
    assert_eq!(credits_available_held(&world).await, (500, 436, 64));
}

#[tokio::test]
async fn a_commit_after_the_end_spends_what_is_available() {
    let world = user().await;
    let held = hold(&world, 400, 60, "job").await.1;
    assert_eq!(hold(&world, 100, 900, "beside").await.0, 201);
    // The hold's time passes.
    let name = held["hold"].as_str().unwrap();
    end(&world, name).await;
    assert_eq!(credits_available_held(&world).await, (500, 400, 100));
    let spend = world.app("POST", "/users/user_1/credits/consume", json!({"amount": 1}), Some("c")).await;
    assert_eq!(spend.0, 200);
    assert_eq!(code(&commit(&world, &held, json!({"amount": 400})).await), (402, "insufficient_credits"));
    world.process(&pack("one", "user_1", 1)).await;
    assert_eq!(commit(&world, &held, json!({"amount": 400})).await.1["credits"], 1099);
}

/// Sets the end of a hold in the account to a second that has passed.
async fn end(world: &World, hold: &str) {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let read = world.dynamodb.get_item().table_name("accounts");
    let read = read.key("pk", text("user#user_1")).key("sk", text("account"));
    let mut item = read.send().await.unwrap().item.unwrap();
    let ended = change_packed(&item["state"], |state| {
        let mut state: Value = serde_json::from_str(&state).unwrap();
        state["holds"][hold]["until"] = json!(1);
        state.to_string()
    });
    item.insert("state".to_owned(), ended);
    world.dynamodb.put_item().table_name("accounts").set_item(Some(item)).send().await.unwrap();
}

#[tokio::test]
async fn a_refund_under_a_hold_leaves_a_shortfall_that_does_not_return() {
    let world = World::new().await;
    for name in ["customer.subscription.created", "invoice.paid", "invoice_payment.paid"] {
        world.process(&sample(name, "user_1")).await;
    }
    let held = hold(&world, 3000, 900, "job").await.1;
    let mut refund = sample("charge.refunded", "user_1");
    let charge = &mut refund["data"]["object"];
    charge["payment_intent"] = json!("pi_TallyHook0001");
    charge["amount_refunded"] = json!(1_000_000);
    world.process(&refund).await;
    assert_eq!(credits_available_held(&world).await, (0, 0, 3000));
    let answer = commit(&world, &held, json!({"amount": 2000})).await;
    assert_eq!((answer.0, &answer.1["shortfall"], &answer.1["credits"]), (200, &json!(2000), &json!(0)));
    let answer = give_back(&world, held["hold"].as_str().unwrap(), 2000, "k").await;
    assert_eq!((&answer.1["refunded"], &answer.1["note"]), (&json!(0), &json!("shortfall")));
}

#[tokio::test]
async fn credits_return_to_living_lots_and_never_more_than_the_spend() {
    let world = World::new().await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        world.process(&sample(name, "user_1")).await;
    }
    let consume = "/users/user_1/credits/consume";
    assert_eq!(world.app("POST", consume, json!({"amount": 1000}), Some("job#1")).await.0, 200);
    for _ in 0..2 {
        let answer = give_back(&world, "job#1", 400, "a").await;
        let expected =
            json!({"user_id": "user_1", "refunded": 400, "credits": 4400, "shortfall": 0, "note": null});
        assert_eq!(answer, (200, expected));
    }
    assert_eq!(code(&give_back(&world, "job#1", 401, "a").await), (409, "idempotency_key_reused"));
    assert_eq!(code(&give_back(&world, "job#1", 601, "b").await), (409, "exceeds_spend"));
    // `job#1` with the key `x` and `job` with the key `1#x` would have one ledger key.
    assert_eq!(world.app("POST", consume, json!({"amount": 1}), Some("job")).await.0, 200);
    assert_eq!(give_back(&world, "job", 1, "1#x").await.0, 200);
    assert_eq!(code(&give_back(&world, "job#1", 1, "x").await), (409, "idempotency_key_reused"));
    // Twenty at once give back what is left of the spend, and not more.
    let keys: Vec<String> = (0..20).map(|number| format!("part {number}")).collect();
    let answers = join_all(keys.iter().map(|key| give_back(&world, "job#1", 100, key))).await;
    assert_eq!(answers.iter().filter(|answer| answer.0 == 200).count(), 6);
    assert_eq!(credits_available_held(&world).await.0, 5000);

    assert_eq!(world.app("POST", consume, json!({"amount": 10}), Some("late")).await.0, 200);
    for name in ["customer.subscription.updated", "invoice.paid.renewal"] {
        world.process(&sample(name, "user_1")).await;
    }
    let answer = give_back(&world, "late", 10, "k").await;
    assert_eq!((&answer.1["refunded"], &answer.1["note"]), (&json!(0), &json!("lot_ended")));
    assert_eq!(credits_available_held(&world).await, (5000, 5000, 0));
}

#[tokio::test]
async fn a_thousand_concurrent_holds_commits_releases_and_spends_lose_nothing() {
    const CREDITS: u64 = 2000;
    let world = World::new().await;
    world.count_only();
    world.process(&with_id(pack("one", "user_1", 2), "evt_pack")).await;
    assert_eq!(credits_available_held(&world).await.0, CREDITS);
    // 250 jobs in 5 lanes. Each makes a hold; most commit a part, some release, some leave it open. Each
    // spends three credits, and repeats the spend. A call that lost every race (503) is tried again.
    let world = &world;
    let job = async |number: u64| {
        let (mut spent, mut open, mut calls) = (0, 0, 2);
        let name = format!("job {number}");
        let held = 1 + number % 9;
        let made = persist(|| hold(world, held, 900, &name)).await;
        assert_eq!(made.0, 201, "{}", made.1);
        match number % 10 {
            0..=6 => {
                let part = held / 2;
                calls += 2;
                for _ in 0..2 {
                    let answer = persist(|| commit(world, &made.1, json!({"amount": part}))).await;
                    assert_eq!((answer.0, &answer.1["committed"]), (200, &json!(part)));
                }
                spent += part;
            }
            7 | 8 => {
                calls += 1;
                assert_eq!(persist(|| release(world, &made.1)).await.0, 200);
            }
            _ => open = held,
        }
        let spend = || world.app("POST", "/users/user_1/credits/consume", json!({"amount": 3}), Some(&name));
        for _ in 0..2 {
            assert_eq!(persist(spend).await.0, 200);
        }
        (spent + 3, open, calls + 1)
    };
    let lane = async |lane: u64| {
        let mut sum = (0, 0, 0);
        for place in 0..50 {
            let (spent, open, calls) = job(lane * 50 + place).await;
            sum = (sum.0 + spent, sum.1 + open, sum.2 + calls);
        }
        sum
    };
    let lanes = join_all((0..5).map(lane)).await;
    let sum = |part: fn(&(u64, u64, u64)) -> u64| lanes.iter().map(part).sum::<u64>();
    let (spent, open, calls) = (sum(|one| one.0), sum(|one| one.1), sum(|one| one.2));
    assert!(calls >= 1000 && spent > 1000 && open > 100, "{calls} calls, {spent} spent, {open} held");
    assert_eq!(credits_available_held(world).await, (CREDITS - spent, CREDITS - spent - open, open));
}

/// Calls again while the answer is 503.
async fn persist<F: Future<Output = (u16, Value)>>(call: impl Fn() -> F) -> (u16, Value) {
    loop {
        let answer = call().await;
        if answer.0 != 503 {
            return answer;
        }
    }
}
