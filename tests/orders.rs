//! One-time orders after they are paid: the steps of the app, refunds, and the operator's list.

use lambda_http::Body;
use serde_json::{Value, json};

use crate::support::{APP_TOKEN, EntryPoint, World, read_answer, request, sample, with_id};

/// The paid session of an order, with ids of its own.
pub fn order(number: u32, user: &str) -> Value {
    let mut event = with_id(sample("checkout.session.completed.order", user), &format!("evt_order{number}"));
    let session = &mut event["data"]["object"];
    session["id"] = json!(format!("cs_test_order{number}"));
    session["payment_intent"] = json!(format!("pi_order{number}"));
    event
}

/// All of an order's payment went back.
pub fn refund_of(order: &Value) -> Value {
    let session = &order["data"]["object"];
    let number = session["id"].as_str().unwrap().replace("cs_test_", "");
    let mut refund = with_id(sample("charge.refunded.full", "user_1"), &format!("evt_refund_{number}"));
    let charge = &mut refund["data"]["object"];
    charge["id"] = json!(format!("ch_{number}"));
    charge["payment_intent"] = session["payment_intent"].clone();
    for field in ["amount", "amount_captured", "amount_refunded"] {
        charge[field] = session["amount_total"].clone();
    }
    refund
}

/// `PATCH` of an order with this `If-Match`.
async fn patch(world: &World, path: &str, if_match: Option<&str>, body: Value) -> (u16, Value) {
    let token = format!("Bearer {APP_TOKEN}");
    let if_match = if_match.map(|value| ("if-match", value));
    let headers: Vec<_> = [("authorization", token.as_str())].into_iter().chain(if_match).collect();
    let request = request(EntryPoint::HttpApi, &headers, "PATCH", path, &Body::Text(body.to_string()));
    let (status, answer) = read_answer(world.api.handle(request).await.unwrap());
    crate::openapi::check("PATCH", path, status, &answer);
    (status, answer)
}

async fn read(world: &World, path: &str) -> Value {
    let (status, order) = world.app("GET", path, Value::Null, None).await;
    assert_eq!(status, 200, "{order}");
    order
}

/// A step with the right `If-Match`: the status and the error code, or the order's status.
pub async fn step(world: &World, path: &str, body: Value) -> (u16, String) {
    let updated_at = read(world, path).await["updated_at"].as_str().unwrap().to_owned();
    let (status, answer) = patch(world, path, Some(&updated_at), body).await;
    let shown = if status == 200 { &answer["status"] } else { &answer["error"] };
    (status, shown.as_str().unwrap().to_owned())
}

const PATH: &str = "/users/user_1/orders/cs_test_order1";

#[tokio::test]
async fn an_order_lives_from_new_to_done_and_takes_no_other_step() {
    let world = World::new().await;
    world.process(&order(1, "user_1")).await;
    let new = read(&world, PATH).await;
    assert_eq!((&new["status"], &new["history"][0]["step"]), (&json!("NEW"), &json!("NEW")), "{new}");
    let left = new["revisions_left"].as_u64().unwrap();
    let mut expected = vec!["NEW"];
    for refused in ["NEW", "DELIVERED", "REVISION", "DONE", "REFUNDED"] {
        let answer = step(&world, PATH, json!({"status": refused})).await;
        assert_eq!(answer, (409, "step_not_allowed".to_owned()), "{refused}");
    }
    for _ in 0..left {
        for status in ["IN_PROGRESS", "DELIVERED", "REVISION"] {
            assert_eq!(step(&world, PATH, json!({"status": status})).await, (200, status.to_owned()));
            expected.push(status);
        }
    }
    for status in ["IN_PROGRESS", "DELIVERED"] {
        assert_eq!(step(&world, PATH, json!({"status": status})).await, (200, status.to_owned()));
        expected.push(status);
    }
    let none_left = step(&world, PATH, json!({"status": "REVISION"})).await;
    assert_eq!(none_left, (409, "no_revisions_left".to_owned()));
    assert_eq!(step(&world, PATH, json!({"status": "DONE"})).await, (200, "DONE".to_owned()));
    expected.push("DONE");
    assert_eq!(step(&world, PATH, json!({"status": "IN_PROGRESS"})).await.0, 409);
    let done = read(&world, PATH).await;
    let history: Vec<&str> =
        done["history"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!((history, &done["revisions_left"]), (expected, &json!(0)));
}

#[tokio::test]
async fn a_change_needs_the_current_order_and_sets_only_the_named_fields() {
    let world = World::new().await;
    world.process(&order(1, "user_1")).await;
    let read_at = read(&world, PATH).await["updated_at"].as_str().unwrap().to_owned();
    let body = json!({"files_url": "https://files.example.com/1", "deadline": "2030-01-01T00:00:00Z"});
    assert_eq!(patch(&world, PATH, None, body.clone()).await.0, 428);
    assert_eq!(patch(&world, PATH, Some("2020-01-01T00:00:00Z"), body.clone()).await.0, 412);
    let (status, changed) = patch(&world, PATH, Some(&format!("\"{read_at}\"")), body.clone()).await;
    assert_eq!((status, &changed["files_url"]), (200, &body["files_url"]), "{changed}");
    assert_eq!((&changed["deadline"], &changed["status"]), (&body["deadline"], &json!("NEW")));
    // Also within one second, the order is another one after a change.
    assert_eq!(patch(&world, PATH, Some(&read_at), body).await.1["error"], "order_changed");
    let more = json!({"files_url": null, "deadline": null, "checklist_status": "DONE"});
    let (status, changed) = patch(&world, PATH, changed["updated_at"].as_str(), more).await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!((&changed["files_url"], &changed["deadline"]), (&Value::Null, &Value::Null));
    assert_eq!(changed["checklist_status"], "DONE");
    for (body, code) in [
        (json!({}), "invalid_order"),
        (json!({"status": "PAID"}), "invalid_order"),
        (json!({"files_url": "javascript:alert(1)"}), "invalid_order"),
        (json!({"checklist_status": ""}), "invalid_order"),
        (json!({"deadline": "tomorrow"}), "invalid_order"),
        (json!({"tier": "GOLD"}), "invalid_body"),
        (json!({"revisions_left": 9}), "invalid_body"),
    ] {
        let (status, answer) = patch(&world, PATH, changed["updated_at"].as_str(), body.clone()).await;
        assert_eq!((status, &answer["error"]), (400, &json!(code)), "{body}");
    }
    for path in ["/users/user_2/orders/cs_test_order1", "/users/user_1/orders/cs_none", "/users/u/orders/x"] {
        assert_eq!(world.app("GET", path, Value::Null, None).await.1["error"], "order_not_found", "{path}");
        assert_eq!(patch(&world, path, Some("x"), json!({"status": "DONE"})).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn a_full_refund_ends_an_order_in_any_status_and_also_in_one_batch() {
    let world = World::new().await;
    world.process(&order(1, "user_1")).await;
    assert_eq!(step(&world, PATH, json!({"status": "IN_PROGRESS"})).await.0, 200);
    world.process(&refund_of(&order(1, "user_1"))).await;
    let refunded = read(&world, PATH).await;
    assert_eq!(refunded["status"], "REFUNDED", "{refunded}");
    assert_eq!(step(&world, PATH, json!({"status": "DELIVERED"})).await.0, 409);
    assert_eq!(step(&world, PATH, json!({"files_url": "https://x.example.com"})).await.0, 200);

    for (number, refund_first) in [(2, false), (3, true)] {
        let (paid, refund) = (order(number, "user_1"), refund_of(&order(number, "user_1")));
        let both = if refund_first { [refund, paid] } else { [paid, refund] };
        for event in both {
            world.deliver(event.to_string().as_bytes()).await;
        }
        world.drain().await;
        let path = format!("/users/user_1/orders/cs_test_order{number}");
        assert_eq!(read(&world, &path).await["status"], "REFUNDED", "refund first: {refund_first}");
    }
}

#[tokio::test]
async fn the_operator_lists_orders_newest_first_and_filters_them() {
    let world = World::new().await;
    for number in 1..=5 {
        let mut paid = order(number, &format!("user_{}", number % 2));
        paid["created"] = json!(paid["created"].as_i64().unwrap() + i64::from(number));
        world.process(&paid).await;
    }
    let list = async |query: &str| world.ask("GET", &format!("/admin/orders?{query}"), Value::Null).await.1;
    let ids = |page: &Value| -> Vec<String> {
        let orders = page["orders"].as_array().unwrap();
        orders.iter().map(|order| order["id"].as_str().unwrap().replace("cs_test_order", "")).collect()
    };
    let mut found = Vec::new();
    let mut next = String::new();
    loop {
        let page = list(&format!("limit=2{next}")).await;
        found.extend(ids(&page));
        let Some(place) = page["next"].as_str() else { break };
        next = format!("&next={place}");
    }
    assert_eq!(found, ["5", "4", "3", "2", "1"]);
    assert_eq!(ids(&list("user=user_0").await), ["2", "4"]);
    world.process(&refund_of(&order(3, "user_1"))).await;
    assert_eq!(ids(&list("status=REFUNDED").await), ["3"]);
    assert_eq!(ids(&list("status=NEW&limit=1").await), ["5"]);
    assert_eq!(list("status=PAID").await["error"], "invalid_status");
    assert_eq!(list("next=x").await["error"], "invalid_next");
    let (_, one) = world.ask("GET", "/admin/orders/cs_test_order3", Value::Null).await;
    let steps: Vec<_> =
        one["order"]["history"].as_array().unwrap().iter().map(|step| &step["step"]).collect();
    assert_eq!(
        (&one["order"]["user_id"], steps),
        (&json!("user_1"), vec![&json!("NEW"), &json!("REFUNDED")])
    );
    assert_eq!(world.ask("GET", "/admin/orders/cs_none", Value::Null).await.0, 404);
}
