use super::*;
use tallyhook_core::ids::EventId;
use tallyhook_core::job::JobKind;

fn number_of(item: &Item, name: &str) -> i64 {
    read_number(item, name).unwrap()
}

fn parked(redrives: u32, first_byte: u8) -> EventRecord {
    let mut digest = [7; 32];
    digest[0] = first_byte;
    EventRecord {
        id: "evt_1".to_owned(),
        kind: "invoice.paid".to_owned(),
        family: "invoice-paid",
        state: EventState::Parked,
        reason: Some("unknown_price".to_owned()),
        message: Some("no such price".to_owned()),
        waits_for: Some("price#price_x".to_owned()),
        user: Some(UserId::new("u").unwrap()),
        objects: vec!["in_1".to_owned()],
        created: Timestamp::from_unix(1_795_219_100),
        received_ms: 1_795_219_200_123,
        finished_ms: 1_795_219_201_456,
        attempts: 2,
        redrives,
        previous: Some("evt_0".to_owned()),
        mode: SecretMode::Any,
        livemode: false,
        api_version: None,
        digest,
        payload: Some(vec![1, 2]),
    }
}

#[test]
fn the_pause_doubles_up_to_a_day() {
    let pauses = [0, 1, 2, 6, 7, 8, 40, u32::MAX].map(redrive_pause_seconds);
    assert_eq!(pauses, [900, 1_800, 3_600, 57_600, 86_400, 86_400, 86_400, 86_400]);
}

#[test]
fn only_a_parked_event_is_in_the_index_that_retry_reads() {
    let item = event(&parked(1, 6)).item.unwrap();
    assert_eq!(
        (read_text(&item, "open"), read_text(&item, "day")),
        (Some("parked#2".into()), Some("2026-11-21#invoice-paid#2".into()))
    );
    assert_eq!(number_of(&item, "due"), 1_795_219_201_456 + 1_800_000);
    assert_eq!((number_of(&item, "redrives"), number_of(&item, "seen")), (1, 1_795_219_200_123));
    assert_eq!(number_of(&item, "expires_at"), 1_795_219_201 + EVENT_DAYS * 86_400);
    let texts =
        ["reason", "message", "waits_for", "user_id", "previous"].map(|name| read_text(&item, name).unwrap());
    assert_eq!(texts, ["unknown_price", "no such price", "price#price_x", "u", "evt_0"]);
    assert_eq!(
        (item["payload"].as_b().unwrap().as_ref(), item["objects"].as_l().unwrap().len()),
        (&[1, 2][..], 1)
    );

    let ended = event(&EventRecord { state: EventState::Processed, ..parked(1, 6) }).item.unwrap();
    assert!(["open", "due", "redrives", "mode"].iter().all(|name| !ended.contains_key(*name)), "{ended:?}");
}

#[test]
fn a_job_is_due_after_the_first_pause_and_in_a_partition_of_its_user() {
    let now = Timestamp::from_unix(1_795_219_200);
    let users: Vec<UserId> = (0..40).map(|number| UserId::new(format!("u{number}")).unwrap()).collect();
    let of_user = |user| job(&JobMessage::of_user(JobKind::Account, user), &Map::new(), now).item.unwrap();
    let items: Vec<Item> = users.iter().map(of_user).collect();
    let mut shards: Vec<String> = items.iter().map(|item| read_text(item, "open").unwrap()).collect();
    shards.sort();
    shards.dedup();
    assert_eq!(shards, ["job#0", "job#1", "job#2", "job#3"]);
    for item in &items {
        assert_eq!(
            (number_of(item, "due"), number_of(item, "finished")),
            (1_795_219_200_000 + 900_000, 1_795_219_200_000)
        );
        assert!((1_795_219_200_000..1_795_219_201_000).contains(&number_of(item, "seen")), "{item:?}");
    }
}

#[test]
fn an_order_is_read_with_null_for_absent_fields() {
    let item = Item::from([
        ("pk".to_owned(), text("user#u")),
        ("sk".to_owned(), text("order#cs_1")),
        ("mode".to_owned(), text("dfy")),
        ("amount_total".to_owned(), number(9900)),
        ("credits".to_owned(), number(12)),
        ("updated_at".to_owned(), number(77)),
        ("disputed".to_owned(), AttributeValue::Bool(true)),
    ]);
    let order = serde_json::to_value(read_order(&item)).unwrap();
    assert_eq!(
        order,
        serde_json::json!({
            "id": "cs_1", "mode": "dfy", "amount_total": 9900, "credits": 12, "updated_at": "1970-01-01T00:01:17Z",
            "disputed": true,
            "customer_id": null, "customer_email": null, "deadline": null, "files_url": null,
            "final_package_url": null, "upgraded_from": null
        })
    );
    assert_eq!((updated_at(&item), updated_at(&Item::new())), (Some(Timestamp::from_unix(77)), None));
}

#[test]
fn a_change_of_an_order_grows_its_time_and_keeps_its_first_and_last_steps() {
    let (user, session) = (UserId::new("u").unwrap(), SessionId::new("cs_1").unwrap());
    let now = Timestamp::from_unix(1_000);
    let mut item = Item::from([("updated_at".to_owned(), number(1_000)), ("status".to_owned(), text("NEW"))]);
    add_step(&mut item, "NEW", 1_000);
    for round in 0..60 {
        for status in [OrderStatus::InProgress, OrderStatus::Delivered] {
            let mut change = OrderChange::new(&user, &session, &item, now);
            change.set_status(status);
            change.set_status(status);
            assert!(change.moves_to(status) && change.is_any());
            let write = change.write();
            let read = number_of(&item, "updated_at");
            assert_eq!(write.condition, Condition::UpdatedAt(read));
            item = write.item.unwrap();
            assert_eq!(number_of(&item, "updated_at"), read + 1, "{round}");
        }
    }
    let steps = order_history(&item);
    assert_eq!((steps.len(), steps[0].1.as_str()), (MAX_STEPS, "NEW"));
    assert_eq!(steps.last().unwrap(), &(Timestamp::from_unix(1_120), "DELIVERED".to_owned()));
    assert!(!OrderChange::new(&user, &session, &item, now).is_any());
}

#[test]
fn a_link_has_an_owner_or_waiting_events_or_is_corrupt() {
    let key = Key::Payment("pi_1".to_owned());
    let with = |name: &str, value: AttributeValue| read_user(&key, &Item::from([(name.to_owned(), value)]));
    assert_eq!(with("user_id", text("u")).unwrap(), Some(UserId::new("u").unwrap()));
    assert_eq!(with("waiting", AttributeValue::Ss(vec!["evt_1".to_owned()])).unwrap(), None);
    assert!(matches!(with("other", text("u")), Err(StoreError::Corrupt { .. })));
}

#[test]
fn only_ids_of_the_log_are_event_ids() {
    let id = EventId::new("evt_1").unwrap();
    let mut digest = [0xab; 32];
    digest[0] = 1;
    assert_eq!(mismatch_id(&id, &digest), "evt_1~01ababab");
    for (id, is) in [
        ("evt_1", true),
        ("evt_1~01ababab", true),
        ("msg_0aF", true),
        (&format!("msg_{}", "a".repeat(100)), true),
        (&format!("msg_{}", "a".repeat(101)), false),
        ("msg_a-b", false),
        ("msg_a~b", false),
        ("evt_1~a#b", false),
        ("in_1~ab", false),
        ("audit#1#2", false),
        ("", false),
    ] {
        assert_eq!(is_event(id), is, "{id}");
    }
}
