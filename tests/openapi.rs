//! The document at `/openapi.json` against the real answers: every answer that any test gets from the app's
//! and the operator's API is checked here ([`check`]), and every route that the code names is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use lambda_http::Body;
use serde_json::{Value, json};
use tallyhook_service::http::api::OPENAPI;

use crate::support::{ADMIN_TOKEN, APP_TOKEN, EntryPoint, World, read_answer, request};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(OPENAPI).unwrap());
static VALIDATORS: LazyLock<Mutex<BTreeMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// The document's path for the path of a request, and its description. An id may contain slashes, so a path
/// is matched from the end.
fn find(method: &str, path: &str) -> Option<(&'static str, &'static Value)> {
    let asked: Vec<&str> = path.split('?').next().unwrap_or_default().split('/').collect();
    // `PUT` exists for the user alone; the whole rest of its path is the id.
    let is_put = method == "PUT" && path.starts_with("/users/");
    let after_id = |template: &str| {
        let parts: Vec<&str> = template.split('/').collect();
        let id = parts.iter().position(|part| *part == "{id}").unwrap_or(parts.len());
        let (before, after) = (&parts[..id], parts.get(id + 1..).unwrap_or_default());
        let end =
            asked.len().checked_sub(after.len()).filter(|end| asked.get(..id).is_some() && *end >= id)?;
        let same = |(part, asked): (&&str, &&str)| part.starts_with('{') || part == asked;
        let fits = before.iter().zip(&asked).all(same)
            && after.iter().zip(&asked[end..]).all(same)
            && (end > id) == (parts.len() > id)
            && (!is_put || after.is_empty());
        fits.then_some(after.len())
    };
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let (template, item) =
        paths.iter().filter(|(path, _)| after_id(path).is_some()).max_by_key(|(path, _)| after_id(path))?;
    Some((template.as_str(), item))
}

/// Panics when an answer does not match the document.
pub fn check(method: &str, path: &str, status: u16, body: &Value) {
    let error = |codes: &[&str]| json!({"allOf": [{"$ref": "#/components/schemas/Error"}], "properties": {"error": {"enum": codes}}});
    let (place, schema) = match find(method, path)
        .map(|(template, item)| (template, &item[method.to_lowercase()]))
    {
        // An unauthorized request does not learn which operators' routes exist.
        None | Some((_, Value::Null)) if matches!(status, 401 | 503) => {
            ("(anywhere)".to_owned(), error(&["unauthorized", "token_not_configured"]))
        }
        None => ("(nowhere)".to_owned(), error(&["not_found"])),
        Some((_, Value::Null)) => ("(no method)".to_owned(), error(&["method_not_allowed", "not_found"])),
        Some((template, operation)) => {
            let mut answer = &operation["responses"][status.to_string()];
            assert!(
                answer.is_object(),
                "{method} {template} answers {status}, which openapi.json does not say: {body}"
            );
            if let Some(name) = answer["$ref"].as_str() {
                answer = DOCUMENT.pointer(name.trim_start_matches('#')).unwrap();
            }
            (format!("{method} {template} {status}"), answer["content"]["application/json"]["schema"].clone())
        }
    };
    let mut validators = VALIDATORS.lock().unwrap();
    let validator = validators.entry(place.clone()).or_insert_with(|| {
        let schema = json!({"$schema": "https://json-schema.org/draft/2020-12/schema",
                "components": DOCUMENT["components"], "allOf": [schema]});
        Arc::new(jsonschema::validator_for(&schema).unwrap())
    });
    let validator = validator.clone();
    drop(validators);
    let wrong: Vec<String> =
        validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(wrong.is_empty(), "{place} is not what openapi.json says: {wrong:#?}\n{body:#}");
}

/// Whether a route needs no token, by the document.
pub fn is_open(method: &str, path: &str) -> bool {
    DOCUMENT["paths"][path][method.to_lowercase()]["security"] == json!([])
}

/// The least role that may call a route of the operators' API.
pub fn role(method: &str, path: &str) -> &'static str {
    DOCUMENT["paths"][path][method.to_lowercase()]["security"][0]["admin"][0].as_str().unwrap()
}

/// Every method and path of the document.
pub fn operations() -> BTreeSet<(String, String)> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let methods = |(path, item): (&String, &Value)| {
        let path = path.clone();
        let methods: Vec<String> =
            item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        methods.into_iter().map(move |method| (method, path.clone()))
    };
    paths.iter().flat_map(methods).collect()
}

/// The routes in the table at the top of a handler's file.
fn routes(source: &str) -> BTreeSet<(String, String)> {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/service/src/http").join(source);
    let text = std::fs::read_to_string(path).unwrap();
    let rows =
        text.lines().filter_map(|line| line.strip_prefix("//! | `")).filter_map(|row| row.split('`').next());
    let route = |row: &str| {
        let (method, path) = row.split_once(' ')?;
        Some((method.to_owned(), path.split('?').next()?.to_owned()))
    };
    rows.filter_map(route).filter(|(_, path)| path.starts_with('/')).collect()
}

#[test]
fn the_code_and_openapi_json_name_the_same_routes() {
    let named: BTreeSet<_> = routes("api.rs").into_iter().chain(routes("admin.rs")).collect();
    assert_eq!(named, operations());
    assert_eq!(DOCUMENT["openapi"], "3.1.0");
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn every_operation_of_the_document_exists() {
    let world = World::new().await;
    for (method, path) in operations() {
        let path = path.replace("{id}", "user_1").replace("{cs}", "cs_test_1").replace("{hold}", "hold_1");
        let (status, body) = if path.starts_with("/admin") {
            world.ask(&method, &path, Value::Null).await
        } else {
            read_answer(world.visit(Some(&format!("Bearer {APP_TOKEN}")), &method, &path, Body::Empty).await)
        };
        assert!(
            status != 401 && status != 405 && body["error"] != "not_found",
            "{method} {path}: {status} {body}"
        );
    }
}

#[tokio::test]
async fn the_document_is_served_unchanged() {
    let world = World::new().await;
    let answer = world.visit(None, "GET", "/openapi.json", Body::Empty).await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(read_answer(answer), (200, DOCUMENT.clone()));
}

#[test]
fn a_wrong_answer_is_found() {
    let refuses = |status: u16, body: Value| {
        let asked = std::panic::catch_unwind(|| check("GET", "/users/u/ledger", status, &body));
        assert!(asked.is_err(), "{status} {body}");
    };
    check("GET", "/users/u/ledger", 200, &json!({"entries": [], "next": null}));
    refuses(200, json!({"entries": []}));
    refuses(200, json!({"entries": [{"key": 1}], "next": null}));
    refuses(418, json!({}));
    refuses(404, json!({"error": "made_up", "message": ""}));
}

#[tokio::test]
async fn a_wrong_method_gets_the_allowed_ones_and_head_is_answered_like_get() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (method, path) in operations() {
        let allowed = methods.entry(path).or_default();
        if method == "GET" {
            allowed.insert("HEAD".to_owned());
        }
        allowed.insert(method);
    }
    for (template, allowed) in methods {
        let path = template.replace("{id}", "user_1").replace("{cs}", "cs_test_1");
        let (function, token) =
            if path.starts_with("/admin") { ("admin", ADMIN_TOKEN) } else { ("api", APP_TOKEN) };
        let send = |method: &str| {
            let headers = [("authorization", &*format!("Bearer {token}"))];
            let request = request(EntryPoint::HttpApi, &headers, method, &path, &Body::Empty);
            let world = &world;
            async move {
                match function {
                    "admin" => world.admin.handle(request).await.unwrap(),
                    _ => world.api.handle(request).await.unwrap(),
                }
            }
        };
        let answer = send("DELETE").await;
        let allow: BTreeSet<String> =
            answer.headers()["allow"].to_str().unwrap().split(", ").map(str::to_owned).collect();
        assert_eq!((answer.status().as_u16(), allow), (405, allowed.clone()), "{template}");
        if allowed.contains("HEAD") {
            let (get, head) = (send("GET").await, send("HEAD").await);
            assert_eq!((get.status(), get.headers()), (head.status(), head.headers()), "{template}");
            assert!(head.body().is_empty() && !get.body().is_empty(), "{template}");
        }
    }
}
