//! User ids are taken from the path unchanged, through both entry points, and different ids stay different
//! users.

use std::collections::BTreeMap;

use fastrand::Rng;
use lambda_http::Body;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::support::{ADMIN_TOKEN, APP_TOKEN, EntryPoint, World, read_answer, request, sample};

/// What a client must encode in a path, and nothing else.
const LITTLE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'%');
const ENTRY_POINTS: [EntryPoint; 2] = [EntryPoint::HttpApi, EntryPoint::FunctionUrl];

impl World {
    /// A request of the app through this entry point.
    async fn through(&self, entry_point: EntryPoint, method: &str, path: &str, body: Value) -> (u16, Value) {
        let token = format!("Bearer {APP_TOKEN}");
        let key = fastrand::u64(..).to_string();
        let headers = [("authorization", token.as_str()), ("idempotency-key", &key)];
        let body = if body.is_null() { Body::Empty } else { Body::Text(body.to_string()) };
        let answer = self.api.handle(request(entry_point, &headers, method, path, &body)).await.unwrap();
        let (status, body) = read_answer(answer);
        crate::openapi::check(method, path, status, &body);
        (status, body)
    }

    /// A request of an operator through this entry point.
    async fn operator(&self, entry_point: EntryPoint, path: &str) -> (u16, Value) {
        let headers = [("authorization", &*format!("Bearer {ADMIN_TOKEN}"))];
        read_answer(
            self.admin.handle(request(entry_point, &headers, "GET", path, &Body::Empty)).await.unwrap(),
        )
    }
}

fn error(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"].as_str().unwrap_or_default())
}

/// An id of parts that a wrong path decoder would misread.
fn random_id(rng: &mut Rng) -> String {
    const PIECES: [&str; 24] = [
        "ann", "a", "/", "//", "?", "#", "%", "%2F", "%252F", "%61", "%6e", "..", ".", " ", "+", "&", "=",
        ";", "\\", ":", "@", "é", "用", "ledger",
    ];
    (0..rng.usize(1..6)).map(|_| PIECES[rng.usize(..PIECES.len())]).collect()
}

#[tokio::test]
async fn random_ids_are_different_users_through_both_entry_points() {
    let world = World::new().await;
    let mut rng = Rng::with_seed(19);
    let mut spent: BTreeMap<String, u64> = BTreeMap::new();
    while spent.len() < 60 {
        let id = random_id(&mut rng);
        for (entry_point, set) in ENTRY_POINTS
            .into_iter()
            .flat_map(|entry_point| [(entry_point, LITTLE), (entry_point, NON_ALPHANUMERIC)])
        {
            let path = format!("/users/{}", utf8_percent_encode(&id, set));
            let answer = world.through(entry_point, "PUT", &path, Value::Null).await;
            if tallyhook_core::ids::UserId::new(id.as_str()).is_err() {
                assert_eq!(error(&answer), (400, "reserved_id"), "{entry_point:?} {id}");
                continue;
            }
            assert_eq!(
                (answer.0, answer.1["user_id"].as_str()),
                (200, Some(id.as_str())),
                "{entry_point:?} {path}"
            );
            let before = *spent.entry(id.clone()).or_default();
            assert_eq!(answer.1["credits"], 500 - before, "{entry_point:?} {path}");
            let consume = format!("{path}/credits/consume");
            let answer = world.through(entry_point, "POST", &consume, json!({"amount": 1})).await;
            assert_eq!(
                (answer.0, answer.1["user_id"].as_str()),
                (200, Some(id.as_str())),
                "{entry_point:?} {path}"
            );
            spent.insert(id.clone(), before + 1);
        }
    }
    for (id, spent) in &spent {
        let encoded = utf8_percent_encode(id, NON_ALPHANUMERIC);
        for entry_point in ENTRY_POINTS {
            let (_, account) =
                world.through(entry_point, "GET", &format!("/users/{encoded}"), Value::Null).await;
            assert_eq!((&account["user_id"], &account["credits"]), (&json!(id), &json!(500 - spent)), "{id}");
            let (_, ledger) =
                world.through(entry_point, "GET", &format!("/users/{encoded}/ledger"), Value::Null).await;
            let entries = ledger["entries"].as_array().map_or(0, Vec::len);
            assert_eq!(entries, 1 + usize::try_from(*spent).unwrap(), "{id}");
            let path = format!("/admin/stripe/check-user/{encoded}");
            let (status, checked) = world.operator(entry_point, &path).await;
            assert_eq!((status, &checked["user_id"]), (200, &json!(id)), "{id}");
            let (status, page) = world.operator(entry_point, &format!("{path}/ledger")).await;
            assert_eq!((status, page["entries"].as_array().map(Vec::len)), (200, Some(entries)), "{id}");
        }
    }
}

#[tokio::test]
async fn a_path_is_decoded_exactly_once() {
    let world = World::new().await;
    for entry_point in ENTRY_POINTS {
        for (path, id) in [
            ("ann", "ann"),
            ("ann%3Fx", "ann?x"),
            ("ann%23x", "ann#x"),
            ("an%256e", "an%6e"),
            ("a%2Fb", "a/b"),
            ("a%252Fb", "a%2Fb"),
            ("a+b%20c", "a+b c"),
            ("ann/", "ann/"),
            ("%2e%2e", ".."),
            ("%C3%A9", "é"),
        ] {
            let (status, answer) =
                world.through(entry_point, "PUT", &format!("/users/{path}"), Value::Null).await;
            assert_eq!((status, answer["user_id"].as_str()), (200, Some(id)), "{entry_point:?} {path}");
        }
        // Bytes that are not UTF-8, and control characters: NUL, line feed, escape, DEL, next line.
        for broken in ["%ff", "%C3", "a%00b", "a%0Ab", "a%1Bb", "a%7Fb", "a%C2%85b"] {
            let answer = world.through(entry_point, "PUT", &format!("/users/{broken}"), Value::Null).await;
            assert_eq!(error(&answer), (400, "invalid_user_id"), "{entry_point:?} {broken}");
        }
    }
}

#[tokio::test]
async fn an_id_that_ends_like_a_route_is_refused_and_parked() {
    let world = World::new().await;
    for end in ["check", "ledger", "credits/consume", "credits/holds/h/commit", "orders/cs_test_1", "portal"]
    {
        for (entry_point, path) in [
            (EntryPoint::HttpApi, format!("/users/ann/{end}")),
            (EntryPoint::HttpApi, format!("/users/ann%2F{end}")),
            (EntryPoint::FunctionUrl, format!("/users/ann%2F{end}")),
        ] {
            let answer = world.through(entry_point, "PUT", &path, Value::Null).await;
            assert_eq!(error(&answer), (400, "reserved_id"), "{entry_point:?} {path}");
        }
        let event = sample("checkout.session.completed.pack", &format!("ann/{end}"));
        let event: Value =
            serde_json::from_str(&event.to_string().replace("TallyHook", &end.replace('/', "X"))).unwrap();
        world.process(&event).await;
        let logged = world.event(event["id"].as_str().unwrap()).await.unwrap();
        assert_eq!(
            (&logged["outcome"], &logged["reason"]),
            (&"parked".to_owned(), &"invalid_user".to_owned()),
            "{end}"
        );
    }
    assert_eq!(world.through(EntryPoint::HttpApi, "GET", "/users/ann", Value::Null).await.0, 404);
}
