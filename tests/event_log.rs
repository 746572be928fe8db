//! The event log: listing it.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
use serde_json::{Value, json};
use tallyhook_aws::store::Store;
use tallyhook_aws::store::items::{self, EventRecord, EventState};
use tallyhook_aws::store::log::{self, Filter};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

use crate::support::{World, now, pack, sample, with_id};

const TYPES: [&str; 4] =
    ["invoice.paid", "checkout.session.completed", "customer.subscription.updated", "product.updated"];

/// Event number `number` of a log with forty events in each millisecond, over some days.
fn record(number: u32) -> EventRecord {
    let kind = TYPES[number as usize % TYPES.len()];
    let state = match number % 10 {
        0 => EventState::Parked,
        1 => EventState::Failed,
        2 => EventState::Ignored,
        _ => EventState::Processed,
    };
    let received_ms = now().plus_days(-5).unix() * 1000 + i64::from(number / 40) * 17_000_000;
    let mut digest = [0; 32];
    digest[0] = u8::try_from(number * 37 % 251).unwrap();
    EventRecord {
        id: format!("evt_{number:04}"),
        kind: kind.to_owned(),
        family: tallyhook_core::event::EventType::from(kind)
            .family()
            .map_or("other", tallyhook_core::event::Family::as_str),
        state,
        reason: None,
        message: None,
        waits_for: None,
        user: None,
        objects: Vec::new(),
        created: Timestamp::from_unix(received_ms / 1000),
        received_ms,
        finished_ms: received_ms,
        attempts: 1,
        redrives: 0,
        previous: None,
        mode: SecretMode::Any,
        livemode: false,
        api_version: None,
        digest,
        payload: None,
    }
}

async fn fill(world: &World, count: u32) -> Vec<EventRecord> {
    put(world, (0..count).map(record).collect()).await
}

async fn put(world: &World, records: Vec<EventRecord>) -> Vec<EventRecord> {
    for chunk in records.chunks(25) {
        let put = |record: &EventRecord| {
            let put = PutRequest::builder().set_item(items::event(record).item).build().unwrap();
            WriteRequest::builder().put_request(put).build()
        };
        let writes = chunk.iter().map(put).collect();
        world.dynamodb.batch_write_item().request_items("events", writes).send().await.unwrap();
    }
    records
}

/// All pages of a query.
async fn pages(world: &World, query: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut next = String::new();
    for _ in 0..1000 {
        let (status, page) =
            world.ask("GET", &format!("/admin/stripe/webhook-logs?{query}{next}"), Value::Null).await;
        assert_eq!(status, 200, "{page}");
        events.extend(page["events"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(cursor) => next = format!("&next={cursor}"),
            None => return events,
        }
    }
    panic!("the pages do not end");
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

fn expected(records: &[EventRecord], takes: impl Fn(&EventRecord) -> bool) -> Vec<String> {
    let mut all: Vec<_> = records
        .iter()
        .filter(|record| takes(record))
        .map(|record| (record.received_ms, record.id.clone()))
        .collect();
    all.sort_by(|a, b| b.cmp(a));
    all.into_iter().map(|(_, id)| id).collect()
}

#[tokio::test]
async fn a_thousand_events_are_paged_newest_first_without_a_gap_whatever_the_filter() {
    let world = World::new().await;
    let records = fill(&world, 1000).await;
    let (from, to) = (records[300].received_ms, records[700].received_ms);
    let time = |ms: i64| Timestamp::from_unix(ms / 1000).to_string();
    // Without a time, the search goes back to the age at which events expire.
    let all = expected(&records, |_| true);
    assert_eq!(ids(&pages(&world, "limit=200").await), all);
    let since = format!("from={}", time(records[0].received_ms - 1000));
    assert_eq!(ids(&pages(&world, &format!("limit=60&{since}")).await), all);
    for status in ["processed", "ignored", "parked", "failed"] {
        let found = pages(&world, &format!("limit=150&status={status}&{since}")).await;
        assert_eq!(ids(&found), expected(&records, |record| record.state.as_str() == status), "{status}");
    }
    for kind in TYPES {
        let found = pages(&world, &format!("limit=60&type={kind}&{since}")).await;
        assert_eq!(ids(&found), expected(&records, |record| record.kind == kind), "{kind}");
    }
    let found = pages(&world, &format!("limit=150&from={}&to={}", time(from), time(to))).await;
    assert_eq!(ids(&found), expected(&records, |record| (from..to).contains(&record.received_ms)));
    let found = pages(&world, &format!("limit=30&status=parked&type=invoice.paid&from={}", time(from))).await;
    let wanted = |record: &EventRecord| {
        record.state == EventState::Parked && record.kind == "invoice.paid" && record.received_ms >= from
    };
    assert_eq!(ids(&found), expected(&records, wanted));
    assert_eq!(pages(&world, "status=duplicate").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_page_that_ends_within_a_millisecond_is_followed_without_a_gap() {
    let world = World::new().await;
    let records = fill(&world, 100).await;
    for (limit, query) in
        [(3, "status=processed&type=invoice.paid"), (1, "status=parked"), (7, "type=product.updated")]
    {
        let wanted = |record: &EventRecord| {
            query.contains("parked") && record.state == EventState::Parked
                || query.contains("product") && record.kind == "product.updated"
                || query.contains("invoice")
                    && record.kind == "invoice.paid"
                    && record.state == EventState::Processed
        };
        assert_eq!(
            ids(&pages(&world, &format!("limit={limit}&{query}")).await),
            expected(&records, wanted),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_partition_of_many_pages_is_read_without_a_gap() {
    let world = World::new().await;
    // All of one family, day and shard, forty to a millisecond, and every fifth of them ended.
    let begins = now().plus_days(-2).unix().div_euclid(86_400) * 86_400_000;
    let records = (0..450).map(|number| EventRecord {
        kind: "invoice.paid".to_owned(),
        family: "invoice-paid",
        state: if number % 5 == 0 { EventState::Processed } else { EventState::Parked },
        received_ms: begins + i64::from(number / 40) * 1000,
        digest: [0; 32],
        ..record(number)
    });
    let records = put(&world, records.collect()).await;
    assert_eq!(ids(&pages(&world, "type=invoice.paid&limit=120").await), expected(&records, |_| true));
    for state in ["parked", "processed"] {
        let found = pages(&world, &format!("status={state}&type=invoice.paid&limit=120")).await;
        assert_eq!(ids(&found), expected(&records, |record| record.state.as_str() == state), "{state}");
    }
}

#[tokio::test]
async fn events_of_a_month_ago_are_found_and_an_exactly_full_page_is_the_last() {
    let (world, today) = (World::new().await, now());
    let records = (0..12).map(|number| EventRecord {
        received_ms: today.plus_days(-27 - i64::from(number)).unix() * 1000,
        ..record(number)
    });
    let records = put(&world, records.collect()).await;
    assert_eq!(ids(&pages(&world, "limit=200").await), expected(&records, |_| true));
    let since = format!("from={}&to={}", today.plus_days(-28), today.plus_days(-26));
    for (limit, next) in [(1, true), (2, false)] {
        let (_, page) =
            world.ask("GET", &format!("/admin/stripe/webhook-logs?{since}&limit={limit}"), Value::Null).await;
        assert_eq!(
            (page["events"].as_array().unwrap().len(), page["next"].is_string()),
            (limit, next),
            "{page}"
        );
    }
}

#[tokio::test]
async fn a_time_range_excludes_its_end() {
    let world = World::new().await;
    let store = Store::new(world.dynamodb.clone(), "accounts", "events");
    let midnight = now().plus_days(-3).unix().div_euclid(86_400) * 86_400_000;
    let at = [midnight - 86_400_000, midnight - 3_600_000, midnight - 1, midnight, midnight + 1];
    let records = (3_u32..).zip(at).map(|(number, received_ms)| EventRecord {
        state: EventState::Processed,
        received_ms,
        ..record(number)
    });
    put(&world, records.collect()).await;
    let counted = async |from, to| store.outcomes(from, to, 3_600_000).await.unwrap();
    let counts = counted(at[0], midnight).await;
    let steps: Vec<_> = counts.steps.iter().map(|(step, outcomes)| (*step, outcomes["processed"])).collect();
    assert_eq!((counts.complete, steps), (true, vec![(0, 1), (23, 2)]));
    assert_eq!(counted(midnight, midnight + 2).await.steps[&0]["processed"], 2);
    // Within a day, too.
    assert_eq!(counted(at[1], at[2]).await.steps[&0]["processed"], 1);
    assert_eq!(counted(at[1], at[2] + 1).await.steps[&0]["processed"], 2);

    world.process(&pack("mine", "user_1", 1)).await;
    let received_ms: i64 = world.event("evt_mine").await.unwrap()["seen"].parse().unwrap();
    for (to_ms, found) in [(received_ms, 0), (received_ms + 1, 1)] {
        let filter =
            Filter { user: Some("user_1".parse().unwrap()), to_ms: Some(to_ms), ..Filter::default() };
        assert_eq!(log::list(&store, &filter, 10, None, now()).await.unwrap().events.len(), found);
    }
}

#[tokio::test]
async fn a_users_events_are_listed_open_ones_first_then_newest_first() {
    let world = World::new().await;
    let mut unknown = pack("parked_first", "user_1", 1);
    unknown["data"]["object"]["metadata"]["pack"] = json!("none");
    // The user has no account yet.
    world.process(&unknown).await;
    assert_eq!(ids(&pages(&world, "user=user_1").await), ["evt_parked_first"]);

    let mut names = Vec::new();
    for number in 0..12 {
        world.process(&pack(&format!("u{number}"), "user_1", 1)).await;
        world.process(&pack(&format!("other{number}"), "user_2", 1)).await;
        names.push(format!("evt_u{number}"));
    }
    let mut later = with_id(unknown.clone(), "evt_parked_later");
    later["data"]["object"]["id"] = json!("cs_test_later");
    world.process(&later).await;
    names.reverse();
    let open: BTreeSet<String> = ["evt_parked_later".to_owned(), "evt_parked_first".to_owned()].into();
    for limit in [5, 50] {
        let found = ids(&pages(&world, &format!("user=user_1&limit={limit}")).await);
        assert_eq!(found[..2].iter().cloned().collect::<BTreeSet<_>>(), open);
        assert_eq!(found[2..], names, "limit {limit}");
    }
    assert_eq!(ids(&pages(&world, "user=user_1&status=processed&limit=5").await), names);
    assert_eq!(ids(&pages(&world, "user=user_1&status=parked").await).len(), 2);
    assert_eq!(ids(&pages(&world, "user=user_1&status=parked&limit=1").await).len(), 2);
    let (_, page) = world.ask("GET", "/admin/stripe/webhook-logs?user=user_2&limit=4", Value::Null).await;
    assert_eq!(page["events"].as_array().unwrap().len(), 4);
    let mixed = format!(
        "/admin/stripe/webhook-logs?user=user_2&status=parked&next={}",
        page["next"].as_str().unwrap()
    );
    assert_eq!(world.ask("GET", &mixed, Value::Null).await.0, 400, "a cursor of a list of another kind");
    assert_eq!(pages(&world, "user=user_1&type=invoice.paid").await, [] as [Value; 0]);
    assert_eq!(pages(&world, "user=no-user").await, [] as [Value; 0]);
    assert_eq!(ids(&pages(&world, "user=user_2&limit=4").await).len(), 12);
}

#[tokio::test]
async fn a_parked_event_keeps_its_place_in_the_users_list_once_processed() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    let text = sample("invoice.paid", "user_1").to_string().replace("price_pro_test", "price_unknown");
    let invoice: Value = serde_json::from_str(&text).unwrap();
    let invoice_id = invoice["id"].as_str().unwrap();
    let subscription = sample("customer.subscription.created", "user_1");
    world.process(&pack("first", "user_1", 1)).await;
    world.process(&invoice).await;
    world.pass_seconds(10);
    world.drain().await;
    assert_eq!(world.event(invoice_id).await.unwrap()["outcome"], "parked");
    // Once the plan of its subscription is known, an unknown price does not park the event.
    world.process(&subscription).await;
    world.drain().await;
    assert_eq!(world.event(invoice_id).await.unwrap()["outcome"], "processed");
    let subscription_id = subscription["id"].as_str().unwrap();
    assert_eq!(ids(&pages(&world, "user=user_1").await), [subscription_id, invoice_id, "evt_first"]);
}

#[tokio::test]
async fn one_event_comes_with_its_payload_as_it_was_received() {
    let world = World::new().await;
    let event = pack("shown", "user_1", 1);
    world.process(&event).await;
    let (status, answer) = world.ask("GET", "/admin/stripe/webhook-logs/evt_shown", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(answer["payload"], event);
    assert_eq!(
        (&answer["event"]["status"], &answer["event"]["user_id"], &answer["event"]["livemode"]),
        (&json!("processed"), &json!("user_1"), &json!(false))
    );
    assert!(answer["event"]["objects"].as_array().unwrap().contains(&json!("cs_test_shown")), "{answer:#}");
    assert_eq!(pages(&world, "id=evt_shown").await.len(), 1);
    assert_eq!(pages(&world, "id=evt_shown&status=failed").await.len(), 0);
    assert_eq!(world.ask("GET", "/admin/stripe/webhook-logs/evt_none", Value::Null).await.0, 404);
    assert_eq!(world.ask("GET", "/admin/stripe/webhook-logs/%ff", Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_page_of_the_log_reads_a_bounded_part_of_it() {
    let world = World::new().await;
    fill(&world, 400).await;
    world.calls();
    world.ask("GET", "/admin/stripe/webhook-logs?status=parked&limit=20", Value::Null).await;
    assert!(world.operations().len() <= 8, "the partitions of open events");
    world.ask("GET", "/admin/stripe/webhook-logs?type=invoice.paid&limit=5", Value::Null).await;
    assert!(world.operations().len() <= 4 * 6, "the partitions of one family, a day at a time");
}

#[tokio::test]
async fn the_log_of_a_quiet_deployment_is_read_at_once_and_any_other_in_bounded_steps() {
    let world = World::new().await;
    let old = |number: u32| EventRecord {
        received_ms: now().plus_days(-80).unix() * 1000 + i64::from(number),
        ..record(number)
    };
    let records = put(&world, (0..3).map(old).collect()).await;
    let retry = json!({"actor": "ann", "reason": "an item of the audit, in the same index"});
    world.ask("POST", "/admin/stripe/retry-webhooks", retry).await;
    world.calls();
    for query in ["", "status=ignored"] {
        let (_, page) = world.ask("GET", &format!("/admin/stripe/webhook-logs?{query}"), Value::Null).await;
        assert_eq!(world.operations(), ["Scan"], "{query}");
        let status = query.strip_prefix("status=");
        let wanted = expected(&records, |record| status.is_none_or(|status| record.state.as_str() == status));
        assert_eq!((ids(page["events"].as_array().unwrap()), &page["next"]), (wanted, &Value::Null));
    }
    put(&world, (3..1003).map(old).collect()).await;
    world.calls();
    let (_, page) = world.ask("GET", "/admin/stripe/webhook-logs", Value::Null).await;
    assert!(page["events"].as_array().unwrap().is_empty() && page["next"].is_string(), "{page}");
    assert!(world.operations().len() <= 1 + 31 * 4, "no more than a list of one type");
    assert_eq!(pages(&world, "limit=200").await.len(), 1003);
}
