//! In every test of this binary a function may call only what its role in `template.yaml` allows, on the
//! tables, indexes and queues that it allows. A call that AWS would refuse fails the test. A permission that
//! no function uses fails the test below, which also compares the calls with `data/calls.json`.
//! `scripts/roles.py` lets the evaluator of MiniStack judge them for each role.
//! After an intended change run `UPDATE_GOLDEN=1 cargo test -p tests permissions`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use local::stack::functions;
use serde_json::{Value, json};
use tallyhook_aws::queue::Queue;
use tallyhook_core::event::Family;
use tallyhook_service::alerts::Alerts;
use tallyhook_service::schedules::reconcile::{Options, Reconciler};

use crate::code_and_template::{camel, read, resource};
use crate::features::catalog;
use crate::reconcile::processor;
use crate::stripe_client::{KEY, stripe};
use crate::support::{Call, Fault, World, now, pack, sample};

/// `("dynamodb:Query", "EventsTable/index/by_day")`
type Permission = (String, String);

static ROLES: LazyLock<BTreeMap<&'static str, BTreeSet<Permission>>> = LazyLock::new(|| {
    let template = read("template.yaml");
    functions::all().iter().map(|part| (part.name, permissions(&template, part.name))).collect()
});

/// What the function's role and its managed policies allow.
fn permissions(template: &str, function: &str) -> BTreeSet<Permission> {
    let role = resource(template, &format!("{}Role", camel(function)));
    let managed = words(&role, "!Ref ").into_iter().filter(|name| name.ends_with("Policy"));
    managed
        .map(|name| resource(template, &name))
        .chain([role.clone()])
        .flat_map(|policy| allowed(&policy))
        .collect()
}

fn allowed(policy: &str) -> Vec<Permission> {
    let each = |statement: &str| {
        let places = places(statement);
        let with_places = |action: String| {
            places.iter().map(move |place| (action.clone(), place.clone())).collect::<Vec<_>>()
        };
        actions(statement).into_iter().flat_map(with_places).collect::<Vec<_>>()
    };
    policy.split("- Sid:").skip(1).flat_map(each).collect()
}

fn actions(statement: &str) -> Vec<String> {
    let services = ["cloudwatch:", "dynamodb:", "sqs:"];
    services
        .iter()
        .flat_map(|service| words(statement, service).into_iter().map(move |name| format!("{service}{name}")))
        .collect()
}

/// Tables, indexes (`${EventsTable.Arn}/index/by_day`) and queues, or `*` for an action without resources.
fn places(statement: &str) -> Vec<String> {
    if statement.contains("Resource: \"*\"") {
        return vec!["*".to_owned()];
    }
    let whole = words(statement, "!GetAtt ").into_iter();
    let indexes = statement.split("!Sub ${").skip(1).filter_map(|rest| {
        let (table, rest) = rest.split_once(".Arn}/index/")?;
        Some(format!("{table}/index/{}", rest.split_whitespace().next()?))
    });
    whole.chain(indexes).filter(|place| place.contains("Queue") || place.contains("Table")).collect()
}

/// The names that follow a mark.
fn words(text: &str, mark: &str) -> Vec<String> {
    text.split(mark)
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect())
        .collect()
}

/// The permissions that AWS requires for a call.
fn needs(call: &Call) -> Vec<Permission> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let table = |name: &str| format!("{}Table", camel(name));
    let one = |operation: &str, request: &Value| {
        let index = request["IndexName"].as_str().map_or_else(String::new, |index| format!("/index/{index}"));
        (format!("dynamodb:{operation}"), format!("{}{index}", table(&text(&request["TableName"]))))
    };
    let request = &call.request;
    match call.operation.as_str() {
        "BatchGetItem" => {
            let tables = request["RequestItems"].as_object().unwrap().keys();
            tables.map(|name| ("dynamodb:BatchGetItem".to_owned(), table(name))).collect()
        }
        "TransactWriteItems" => {
            let writes = request["TransactItems"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|write| write.as_object().unwrap());
            // Put, Update, Delete, ConditionCheck
            writes.map(|(kind, write)| one(&format!("{kind}Item"), write)).collect()
        }
        "GetItem" | "PutItem" | "UpdateItem" | "DeleteItem" | "Query" | "Scan" => {
            vec![one(&call.operation, request)]
        }
        "GetMetricData" => vec![("cloudwatch:GetMetricData".to_owned(), "*".to_owned())],
        sqs => {
            let queue = text(&request["QueueUrl"]);
            let queue = format!("{}Queue", camel(queue.rsplit('/').next().unwrap_or_default()));
            vec![(format!("sqs:{}", sqs.trim_end_matches("Batch")), queue)]
        }
    }
}

/// Panics when AWS would refuse the call.
pub fn check(function: &str, call: &Call) {
    for (action, place) in needs(call) {
        assert!(
            ROLES[function].contains(&(action.clone(), place.clone())),
            "{function} may not do {action} on {place}: see template.yaml"
        );
    }
}

/// What Lambda's poller does with a function's role.
const POLLING: [&str; 3] = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"];

/// The workers have the same permissions, and are one here.
fn group(function: &'static str) -> &'static str {
    if Family::ALL.iter().any(|family| family.as_str() == function) { "worker" } else { function }
}

/// Runs every function, with and without faults. Returns the permissions that each used.
async fn tour() -> BTreeMap<&'static str, BTreeSet<Permission>> {
    let (fake, client) = stripe().await;
    let address = fake.start().await.unwrap();
    let stripe = format!("http://{address}");
    let nowhere = "http://127.0.0.1:9/hook";
    let world = World::provisioning(&[
        ("STRIPE_SECRET_KEY", KEY),
        ("STRIPE_API_BASE", &stripe),
        ("SLACK_WEBHOOK_URL", nowhere),
        ("NOTIFY_ALLOW_LOOPBACK", "true"),
        ("PROVISION_URL", nowhere),
        ("PROVISION_SECRET", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
        ("PROVISION_ALLOW_LOOPBACK", "true"),
    ])
    .await;

    world.webhook.prewarm().await;

    // The app's calls, with a session that no webhook reported.
    world.sign_up("user_1").await;
    let spent = world.app("POST", "/users/user_1/credits/consume", json!({"amount": 1}), Some("key")).await;
    assert_eq!(spent.0, 200, "{}", spent.1);
    world.ledger("user_1").await;
    assert_eq!(world.ask("GET", "/admin/export/ledger", Value::Null).await.0, 200);
    let session = sample("checkout.session.completed.pack", "user_1");
    fake.ingest(&session.to_string(), false).unwrap();
    let id = session["data"]["object"]["id"].as_str().unwrap();
    world.app("GET", &format!("/portal/setup-status?session_id={id}"), Value::Null, None).await;

    // A worker: applied, parked and freed, failed to the end; access that ends by time.
    let mut unknown = pack("unknown", "user_1", 1);
    unknown["data"]["object"]["metadata"] = json!({"user_id": "user_1"});
    world.process(&unknown).await;
    for name in ["customer.subscription.created", "invoice.paid", "charge.refunded"] {
        world.process(&sample(name, "user_2")).await;
    }
    let mut unpaid = sample("customer.subscription.updated.past_due", "user_2");
    let start = now().unix() - 3600;
    unpaid["created"] = json!(start + 60);
    unpaid["data"]["object"]["items"]["data"][0]["current_period_start"] = json!(start);
    unpaid["data"]["object"]["items"]["data"][0]["current_period_end"] = json!(start + 30 * 86_400);
    world.process(&unpaid).await;
    world.deliver(pack("dead", "user_1", 1).to_string().as_bytes()).await;
    world.fault(|call| call.request.to_string().contains("evt_dead").then_some(Fault::LoseRequest));
    for _ in 0..5 {
        world.drain().await;
        world.pass_seconds(901);
    }
    world.heal();
    world.drain_dead_letters().await;

    // Reconciliation that stops and resumes, scheduled and requested by an operator. Its findings lower the
    // health score.
    let appear = |tags: &[&str]| {
        for tag in tags {
            let text = sample("customer.subscription.created", &format!("user_{tag}")).to_string();
            let mut event: Value =
                serde_json::from_str(&text.replace("TallyHook0", &format!("TallyHook{tag}0"))).unwrap();
            event["id"] = json!(format!("evt_{tag}"));
            event["created"] = json!(now().unix() - 7200);
            fake.ingest(&event.to_string(), true).unwrap();
        }
    };
    let alerts = Alerts::new(Queue::new(world.clients("reconcile").1), world.env.get("QUEUE_URL_NOTIFY"));
    let reconciler = Reconciler::new(client, processor(&world)).with_alerts(alerts);
    appear(&["A", "B", "C", "D"]);
    for max_changes in [1, 500] {
        let report = reconciler.run(&Options { max_changes, ..Options::default() }, now()).await;
        reconciler.conclude(&report, None, now()).await;
    }
    appear(&["E", "F", "G", "H"]);
    for cap in [1, 500] {
        let body = json!({"dry_run": false, "cap": cap, "actor": "ann", "reason": "a tour"});
        assert_eq!(world.ask("POST", "/admin/stripe/reconcile", body).await.0, 200);
    }
    // The health score asks for the age of a message that waits.
    world.deliver(pack("waits", "user_1", 1).to_string().as_bytes()).await;
    for path in ["webhook-logs", "check-user/user_1", "subscription-health", "parked"] {
        assert_eq!(world.ask("GET", &format!("/admin/stripe/{path}"), Value::Null).await.0, 200, "{path}");
    }
    for what in [json!({}), json!({"id": "evt_dead"}), json!({"status": "parked"})] {
        assert_eq!(world.ask("POST", "/admin/stripe/retry-webhooks", what).await.0, 200);
    }
    world.drain().await;
    world.retry_in(60 * 86_400).await;
    world.deliver(pack("waits_too", "user_1", 1).to_string().as_bytes()).await;
    world.health.handle(Value::Null).await.unwrap();
    world.notify().await;
    world.provision().await;
    // A catalog with features: accounts of the catalog before are found and written.
    let path = catalog("permissions", |text| text);
    let world = world.redeploy(&[("CATALOG_FILE", path.to_str().unwrap())]);
    world.retry_in(0).await;
    std::fs::remove_file(path).unwrap();

    let mut used: BTreeMap<&'static str, BTreeSet<Permission>> = BTreeMap::new();
    for call in world.calls() {
        if let Some(function) = call.function {
            used.entry(group(function)).or_default().extend(needs(&call));
        }
    }
    used
}

const CALLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/calls.json");

/// Compares the calls of every function with the file that `scripts/roles.py` judges again.
fn same_calls(calls: &BTreeMap<&'static str, BTreeSet<Permission>>) {
    let lines = |calls: &BTreeSet<Permission>| -> Vec<String> {
        calls.iter().map(|(action, place)| format!("{action} {place}")).collect()
    };
    let measured: BTreeMap<_, _> = calls.iter().map(|(function, calls)| (*function, lines(calls))).collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(CALLS, serde_json::to_string_pretty(&measured).unwrap() + "\n").unwrap();
    }
    let known: Value =
        serde_json::from_str(&std::fs::read_to_string(CALLS).unwrap_or_default()).unwrap_or_default();
    assert_eq!(json!(measured), known, "UPDATE_GOLDEN=1 writes {CALLS}");
}

#[tokio::test]
async fn no_role_has_a_permission_that_its_function_does_not_use() {
    let calls = tour().await;
    same_calls(&calls);
    let used: BTreeMap<&str, BTreeSet<String>> = calls
        .into_iter()
        .map(|(function, calls)| (function, calls.into_iter().map(|(action, _)| action).collect()))
        .collect();
    let anybody: BTreeSet<&String> = used.values().flatten().collect();
    // A policy that all functions share is used by at least one of them.
    let template = read("template.yaml");
    let common: BTreeSet<Permission> =
        ["TablesPolicy", "SendPolicy"].iter().flat_map(|name| allowed(&resource(&template, name))).collect();
    let mut idle: BTreeSet<String> = common
        .iter()
        .filter(|(action, _)| !anybody.contains(action))
        .map(|(action, _)| format!("everybody {action}"))
        .collect();
    for part in functions::all() {
        let polled = |action: &str| part.trigger == functions::Trigger::Queue && POLLING.contains(&action);
        let used = &used[group(part.name)];
        let own = ROLES[part.name]
            .iter()
            .filter(|permission| !common.contains(permission))
            .map(|(action, _)| action);
        idle.extend(
            own.filter(|action| !polled(action) && !used.contains(*action))
                .map(|action| format!("{} {action}", group(part.name))),
        );
    }
    assert_eq!(idle, BTreeSet::new(), "allowed by template.yaml and never done");
}
