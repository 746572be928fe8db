//! The admin API for one user: what explains an account, what Stripe has, and repairs, each made once and
//! audited.

use local::fake_stripe::{FakeStripe, Misbehaviour};
use serde_json::{Value, json};

use crate::stripe_client::KEY;
use crate::support::{World, pack, sample, with_id};

async fn shop() -> (World, FakeStripe) {
    let fake = FakeStripe::new(KEY);
    let address = fake.start().await.unwrap();
    let base = format!("http://{address}");
    (World::with(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &base)]).await, fake)
}

/// A sample whose object and event are an hour old, so that reconciliation looks at them.
fn recent(name: &str, user: &str) -> Value {
    let now = crate::support::now().unix();
    let mut event = sample(name, user);
    event["created"] = json!(now - 3600);
    event["data"]["object"]["created"] = json!(now - 3600);
    event
}

async fn check(world: &World, user: &str) -> Value {
    let (status, answer) = world.ask("GET", &format!("/admin/stripe/check-user/{user}"), Value::Null).await;
    assert_eq!(status, 200, "{answer:#}");
    answer
}

fn because<'a>(answer: &'a Value, field: &str) -> &'a Value {
    answer["because"]
        .as_array()
        .unwrap()
        .iter()
        .find(|because| because["field"] == field)
        .unwrap_or(&Value::Null)
}

async fn audits(world: &World) -> Vec<Value> {
    world.ask("GET", "/admin/audit", Value::Null).await.1["audits"].as_array().unwrap().clone()
}

fn grant(credits: u64, reason: &str) -> Value {
    json!({"action": "grant", "credits": credits, "actor": "ann", "reason": reason})
}

#[tokio::test]
async fn each_account_field_is_explained_by_the_event_entry_or_rule_that_set_it() {
    let (world, _fake) = shop().await;
    world.sign_up("user_1").await;
    for name in [
        "customer.subscription.created",
        "invoice.paid",
        "checkout.session.completed",
        "checkout.session.completed.pack",
    ] {
        world.process(&sample(name, "user_1")).await;
    }
    let answer = check(&world, "user_1").await;
    let event_id = |name: &str| sample(name, "user_1")["id"].clone();
    let tier = because(&answer, "tier");
    assert_eq!(
        (&tier["value"], &tier["rule"], &tier["event_id"]),
        (&json!("pro"), &json!("highest_plan"), &event_id("customer.subscription.created"))
    );
    let items = &sample("customer.subscription.created", "user_1")["data"]["object"]["items"];
    let bucket = because(&answer, &format!("bucket {}", items["data"][0]["id"].as_str().unwrap()));
    assert_eq!(
        (&bucket["value"], &bucket["rule"], &bucket["event_id"]),
        (&json!("5000"), &json!("period"), &event_id("invoice.paid")),
        "{answer:#}"
    );
    assert!(bucket["ledger_key"].as_str().unwrap().starts_with("invoice#in_"));
    assert_eq!(because(&answer, "bucket signup")["rule"], "ended_by_subscription");
    assert_eq!(because(&answer, "bucket signup")["ledger_key"], "signup");
    let addon = because(&answer, "bucket addon");
    assert_eq!(
        (&addon["value"], &addon["event_id"]),
        (&json!("1000"), &event_id("checkout.session.completed.pack"))
    );
    assert_eq!(because(&answer, "credits")["value"], "6000");
    assert_eq!(answer["account"]["credits"], 6000);
    assert_eq!(answer["ledger"]["entries"].as_array().unwrap().len(), 3);
    assert_eq!(answer["events"].as_array().unwrap().len(), 4);
    let (_, page) = world.ask("GET", "/admin/stripe/check-user/user_1/ledger?limit=2", Value::Null).await;
    let next = page["next"].as_str().unwrap();
    let (_, rest) = world
        .ask("GET", &format!("/admin/stripe/check-user/user_1/ledger?limit=2&next={next}"), Value::Null)
        .await;
    assert_eq!(
        (page["entries"].as_array().unwrap().len(), rest["entries"].as_array().unwrap().len()),
        (2, 1)
    );
}

#[tokio::test]
async fn check_user_explains_missing_credits_and_apply_stripe_repairs_them_once() {
    let (world, fake) = shop().await;
    world.sign_up("user_1").await;
    // The subscription's webhook arrived; the payment's was lost.
    world.process(&recent("customer.subscription.created", "user_1")).await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        fake.ingest(&recent(name, "user_1").to_string(), false).unwrap();
    }
    let answer = check(&world, "user_1").await;
    let subscription = answer["account"]["subscriptions"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(because(&answer, &format!("bucket {subscription}"))["rule"], "not_paid");
    assert_eq!(
        (&answer["verdict"]["code"], &answer["verdict"]["act"]),
        (&json!("differs"), &json!("apply_stripe")),
        "{answer:#}"
    );
    let invoice = sample("invoice.paid", "user_1")["data"]["object"]["id"].clone();
    let found = answer["differences"]
        .as_array()
        .unwrap()
        .iter()
        .find(|difference| difference["object"] == invoice)
        .unwrap();
    assert_eq!((&found["class"], &found["repairable"]), (&json!("credits"), &json!(true)));
    assert_eq!(answer["stripe"]["subscriptions"][0]["id"], json!(subscription));
    assert_eq!(answer["stripe"]["payments"][0]["id"], invoice);

    let apply = json!({"action": "apply_stripe", "actor": "ann", "reason": "ticket 7"});
    let (status, done) = world.ask("POST", "/admin/stripe/fix-user/user_1", apply.clone()).await;
    assert_eq!((status, &done["report"]["complete"]), (200, &json!(true)), "{done:#}");
    let after = check(&world, "user_1").await;
    assert_eq!(
        (&after["account"]["credits"], &after["verdict"]["code"]),
        (&json!(5000), &json!("in_order")),
        "{after:#}"
    );
    let (_, again) = world.ask("POST", "/admin/stripe/fix-user/user_1", apply).await;
    assert_eq!(
        (&again["report"]["changed"], world.account("user_1").await["credits"].as_u64()),
        (&json!(0), Some(5000))
    );
    assert_eq!(
        audits(&world)
            .await
            .iter()
            .filter(|audit| audit["act"] == "apply_stripe" && audit["reason"] == "ticket 7")
            .count(),
        2
    );
}

#[tokio::test]
async fn check_user_reports_that_stripe_fails_and_shows_the_stored_account() {
    let (world, fake) = shop().await;
    world.sign_up("user_1").await;
    world.process(&sample("customer.subscription.created", "user_1")).await;
    fake.fail("/v1/", 1000, Misbehaviour::Status(500, None));
    let answer = check(&world, "user_1").await;
    assert_eq!(answer["verdict"]["code"], "stripe_silent");
    assert!(answer["stripe"]["error"].as_str().unwrap().contains("500"), "{answer:#}");
    assert_eq!(because(&answer, "tier")["value"], "pro");
    let (status, error) = world.ask("POST", "/admin/stripe/reconcile", Value::Null).await;
    assert_eq!((status, &error["error"]), (502, &json!("stripe_failed")));

    let world = World::new().await;
    world.sign_up("user_1").await;
    assert_eq!(check(&world, "user_1").await["stripe"]["configured"], false);
    for (path, body) in [
        ("/admin/stripe/reconcile", Value::Null),
        ("/admin/stripe/retry-webhooks", json!({"source": "stripe", "id": "evt_1"})),
        ("/admin/stripe/fix-user/user_1", json!({"action": "apply_stripe", "actor": "ann", "reason": "x"})),
    ] {
        let (status, error) = world.ask("POST", path, body).await;
        assert_eq!((status, &error["error"]), (503, &json!("stripe_not_configured")), "{path}");
    }
}

#[tokio::test]
async fn linking_a_customer_frees_its_events_and_never_moves_a_bound_customer() {
    let (world, _fake) = shop().await;
    for user in ["user_1", "user_2"] {
        world.sign_up(user).await;
    }
    let mut event = pack("a", "user_1", 2);
    event["data"]["object"]["metadata"] = json!({"pack": "credits_1000", "quantity": "2"});
    event["data"]["object"]["client_reference_id"] = Value::Null;
    event["data"]["object"]["customer"] = json!("cus_lost");
    world.process(&event).await;
    world.pass_seconds(6);
    world.drain().await;
    let parked = world.ask("GET", "/admin/stripe/parked", Value::Null).await.1;
    let group = &parked["groups"][0];
    assert_eq!(
        (&group["events"], &group["advice"]["act"], &group["advice"]["target"]),
        (&json!(1), &json!("link_customer"), &json!("cus_lost"))
    );

    // An equal e-mail address is only a suggestion: it links nothing.
    let email = event["data"]["object"]["customer_details"]["email"].clone();
    let (_, found) = world.ask("POST", "/admin/stripe/find", json!({"text": email})).await;
    assert_eq!(
        (&found["customers"][0]["id"], &found["users"]),
        (&json!("cus_lost"), &json!([])),
        "{found:#}"
    );
    let mut order = sample("checkout.session.completed.order", "user_1");
    order["data"]["object"]["customer_details"]["email"] = email;
    world.process(&order).await;
    let checked = check(&world, "user_1").await;
    assert_eq!(
        (&checked["suggestions"][0]["target"], &checked["suggestions"][0]["events"]),
        (&json!("cus_lost"), &json!(["evt_a"]))
    );
    assert_eq!(world.account("user_1").await["credits"], 500);

    let link = |reason: &str| json!({"action": "link_customer", "customer": "cus_lost", "actor": "ann", "reason": reason});
    let (status, linked) = world.ask("POST", "/admin/stripe/fix-user/user_1", link("ticket 9")).await;
    assert_eq!(
        (status, &linked["result"], &linked["freed"]),
        (200, &json!("linked"), &json!(["evt_a"])),
        "{linked:#}"
    );
    world.drain().await;
    assert_eq!(world.account("user_1").await["credits"], 2500);
    assert_eq!(world.ask("GET", "/admin/stripe/parked", Value::Null).await.1["groups"], json!([]));
    assert_eq!(
        world.ask("POST", "/admin/stripe/fix-user/user_1", link("again")).await.1["result"],
        "already_linked"
    );
    let (status, error) = world.ask("POST", "/admin/stripe/fix-user/user_2", link("mistake")).await;
    assert_eq!((status, &error["error"]), (409, &json!("customer_bound")));
    let (status, error) = world.ask("POST", "/admin/stripe/fix-user/no-user", link("typo")).await;
    assert_eq!((status, &error["error"]), (404, &json!("user_not_found")));
    assert_eq!(audits(&world).await.len(), 1, "a request that changes nothing is not audited");
    let (_, found) = world.ask("POST", "/admin/stripe/find", json!({"text": "cus_lost"})).await;
    assert_eq!(found["users"][0]["user_id"], "user_1");
}

#[tokio::test]
async fn linking_a_subscription_applies_its_payments_from_stripe() {
    let (world, fake) = shop().await;
    world.sign_up("user_1").await;
    for name in ["customer.subscription.created", "invoice.paid"] {
        let mut event = recent(name, "user_1");
        // Remove the metadata that names the user.
        let text = event.to_string().replace("\"user_id\":\"user_1\"", "\"other\":\"x\"");
        event = serde_json::from_str(&text).unwrap();
        fake.ingest(&event.to_string(), false).unwrap();
    }
    let subscription = sample("customer.subscription.created", "x")["data"]["object"]["id"].clone();
    let link = json!({"action": "link_subscription", "subscription": subscription, "actor": "ann",
        "reason": "ticket 3"});
    let (status, linked) = world.ask("POST", "/admin/stripe/fix-user/user_1", link.clone()).await;
    assert_eq!((status, &linked["result"]), (200, &json!("linked")), "{linked:#}");
    let account = world.account("user_1").await;
    assert_eq!((&account["tier"], &account["credits"]), (&json!("pro"), &json!(5000)), "{linked:#}");
    let unknown =
        json!({"action": "link_subscription", "subscription": "sub_none", "actor": "ann", "reason": "x"});
    assert_eq!(world.ask("POST", "/admin/stripe/fix-user/user_1", unknown).await.0, 404);
}

#[tokio::test]
async fn a_grant_is_made_once_per_key_and_a_revocation_stops_at_zero() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    let fix = async |key: Option<&str>, body: Value| world.fix("user_1", key, body).await;
    assert_eq!(fix(None, grant(300, "late")).await.1["error"], "missing_idempotency_key");
    let (status, first) = fix(Some("k1"), grant(300, "late")).await;
    assert_eq!(
        (status, &first["balance"], &first["entry"]["delta"]),
        (200, &json!(800), &json!(300)),
        "{first:#}"
    );
    // Concurrent and later repetitions return the first answer.
    let repeated = futures_util::future::join_all((0..5).map(|_| fix(Some("k1"), grant(300, "late")))).await;
    assert!(repeated.iter().all(|answer| *answer == (200, first.clone())), "{repeated:#?}");
    for other in [
        grant(301, "late"),
        grant(300, "another"),
        json!({"action": "revoke", "credits": 300, "actor": "ann", "reason": "late"}),
    ] {
        let (status, error) = fix(Some("k1"), other).await;
        assert_eq!((status, &error["error"]), (409, &json!("idempotency_key_reused")));
    }
    let revoke = json!({"action": "revoke", "credits": 5000, "actor": "bob", "reason": "charged back"});
    let (_, revoked) = fix(Some("k2"), revoke).await;
    assert_eq!(
        (&revoked["balance"], &revoked["entry"]["delta"], &revoked["entry"]["shortfall"]),
        (&json!(0), &json!(-800), &json!(4200))
    );
    let ledger = world.ledger("user_1").await;
    assert_eq!(ledger.iter().filter_map(|entry| entry["delta"].as_i64()).sum::<i64>(), 0);
    assert_eq!(
        (&ledger[1]["cause"], &ledger[1]["reason"], &ledger[1]["key"]),
        (&json!("admin:admin"), &json!("late"), &json!("fix#k1"))
    );
    let audits = audits(&world).await;
    assert_eq!(audits.len(), 2);
    assert_eq!(
        (&audits[1]["act"], &audits[1]["claimed"], &audits[1]["target"]),
        (&json!("grant"), &json!("ann"), &json!("user_1 300"))
    );
}

#[tokio::test]
async fn an_invalid_fix_is_refused_before_any_write() {
    let (world, _fake) = shop().await;
    world.sign_up("user_1").await;
    let before = world.everything().await;
    let by = |mut body: Value| {
        body["actor"] = json!("ann");
        body["reason"] = json!("ticket");
        body
    };
    for (user, body, status, code) in [
        ("user_1", json!({}), 400, "missing_reason"),
        ("user_1", json!({"action": "grant", "credits": 5, "actor": "ann"}), 400, "missing_reason"),
        ("user_1", json!({"action": "grant", "credits": 5, "reason": " \u{7}"}), 400, "missing_reason"),
        ("user_1", by(json!({"action": "delete"})), 400, "invalid_action"),
        ("user_1", by(json!({"action": "grant"})), 400, "invalid_credits"),
        ("user_1", by(json!({"action": "grant", "credits": 0})), 400, "invalid_credits"),
        ("user_1", by(json!({"action": "grant", "credits": 1.5})), 400, "invalid_body"),
        ("user_1", by(json!({"action": "grant", "credits": -5})), 400, "invalid_body"),
        ("user_1", by(json!({"action": "grant", "credits": u64::MAX})), 400, "invalid_credits"),
        ("user_1", by(json!({"action": "grant", "credits": 5, "tier": "pro"})), 400, "invalid_body"),
        ("user_2", by(json!({"action": "grant", "credits": 5})), 404, "user_not_found"),
        ("user_1", by(json!({"action": "link_customer"})), 400, "invalid_customer"),
        ("user_1", by(json!({"action": "link_customer", "customer": ""})), 400, "invalid_customer"),
        ("user_1", by(json!({"action": "complimentary", "plan": "gold"})), 400, "invalid_plan"),
        ("user_1", by(json!({"action": "move", "to": "user_2"})), 400, "invalid_move"),
        ("user_1", by(json!({"action": "move", "customer": "cus_1"})), 400, "invalid_to"),
        ("user_1", by(json!({"action": "assign_session"})), 400, "invalid_session"),
        (
            "user_1",
            by(json!({"action": "link_subscription", "subscription": "<script>"})),
            400,
            "invalid_subscription",
        ),
        ("%00", by(json!({"action": "grant", "credits": 5})), 400, "invalid_user_id"),
    ] {
        let (found, answer) = world.fix(user, Some("k"), body.clone()).await;
        assert_eq!((found, answer["error"].as_str()), (status, Some(code)), "{body}: {answer}");
    }
    assert_eq!(world.everything().await, before);
}

#[tokio::test]
async fn reconcile_is_a_dry_run_by_default_and_resumes_where_it_stopped() {
    let (world, fake) = shop().await;
    for user in ["user_1", "user_2"] {
        world.sign_up(user).await;
        for name in ["customer.subscription.created", "invoice.paid"] {
            let tag = if user == "user_1" { "A" } else { "B" };
            let event = recent(name, user).to_string().replace("TallyHook0", &format!("TallyHook{tag}0"));
            let mut event: Value = serde_json::from_str(&event).unwrap();
            event["id"] = json!(format!("{}{tag}", event["id"].as_str().unwrap()));
            fake.ingest(&event.to_string(), false).unwrap();
        }
    }
    let before = world.everything().await;
    let (status, dry) = world.ask("POST", "/admin/stripe/reconcile", Value::Null).await;
    let report = &dry["report"];
    assert_eq!(
        (status, &report["dry_run"], &report["complete"]),
        (200, &json!(true), &json!(true)),
        "{dry:#}"
    );
    assert!(report["changed"].as_u64() > Some(0) && report["found"]["lost_event"] == 4, "{dry:#}");
    assert_eq!(world.everything().await, before, "a dry run writes nothing, no audit either");

    let ask = async |body: Value| world.ask("POST", "/admin/stripe/reconcile", body).await;
    for (body, code) in [
        (json!({"cap": 0}), "invalid_cap"),
        (json!({"cap": 5001}), "invalid_cap"),
        (json!({"next": "garbage"}), "invalid_next"),
        (json!({"dry_run": false, "next": ""}), "invalid_next"),
        (json!({"dry_run": "no"}), "invalid_body"),
        (json!({"user": ""}), "invalid_user_id"),
    ] {
        assert_eq!(ask(body.clone()).await.1["error"], code, "{body}");
    }
    let (_, capped) = ask(json!({"dry_run": false, "cap": 1, "actor": "ann", "reason": "outage"})).await;
    assert_eq!(
        (&capped["report"]["changed"], &capped["report"]["complete"]),
        (&json!(1), &json!(false)),
        "{capped:#}"
    );
    assert!(
        capped["report"]["stopped"].as_str().unwrap().contains("1 changes")
            && capped["report"]["next"].is_null()
    );
    let (_, all) = ask(json!({"dry_run": false, "actor": "ann", "reason": "outage"})).await;
    assert_eq!(all["report"]["complete"], true, "{all:#}");
    for user in ["user_1", "user_2"] {
        assert_eq!(world.account(user).await["credits"], 5000, "{user}");
    }
    assert_eq!(ask(json!({"user": "user_1"})).await.1["report"]["changed"], 0);
    assert_eq!(audits(&world).await.iter().filter(|audit| audit["act"] == "reconcile").count(), 2);
}

#[tokio::test]
async fn events_are_replayed_from_stripe_by_id_type_and_time_without_repeating() {
    let (world, fake) = shop().await;
    world.sign_up("user_1").await;
    let done = recent("customer.subscription.created", "user_1");
    world.process(&done).await;
    for event in [done, recent("invoice.paid", "user_1"), recent("checkout.session.completed.pack", "user_1")]
    {
        fake.ingest(&event.to_string(), true).unwrap();
    }
    let replay = async |mut body: Value| {
        body["source"] = json!("stripe");
        world.ask("POST", "/admin/stripe/retry-webhooks", body).await
    };
    for (body, status, code) in [
        (json!({}), 400, "invalid_body"),
        (json!({"id": "in_1"}), 400, "invalid_id"),
        (json!({"id": "evt_none"}), 404, "event_not_found"),
        (json!({"type": "invoice.paid", "status": "failed"}), 400, "invalid_status"),
        (json!({"type": "invoice.paid", "limit": 0}), 400, "invalid_limit"),
    ] {
        let (found, answer) = replay(body.clone()).await;
        assert_eq!((found, answer["error"].as_str()), (status, Some(code)), "{body}: {answer}");
    }
    let (_, one) = replay(json!({"id": sample("invoice.paid", "user_1")["id"]})).await;
    assert_eq!(one["report"]["processed"].as_array().unwrap().len(), 1, "{one:#}");
    assert_eq!(world.account("user_1").await["credits"], 5000);
    let (_, first) = replay(json!({"from": "2020-01-01", "limit": 2})).await;
    let (_, rest) = replay(json!({"from": "2020-01-01", "limit": 2, "next": first["report"]["next"]})).await;
    let count = |answer: &Value| answer["report"]["processed"].as_array().unwrap().len();
    assert_eq!((count(&first), count(&rest)), (2, 1));
    assert_eq!(world.account("user_1").await["credits"], 6000);
    assert_eq!(world.ledger("user_1").await.len(), 3);
}

#[tokio::test]
async fn outcomes_are_counted_in_steps_of_time_from_the_index() {
    let world = World::new().await;
    world.sign_up("user_1").await;
    for number in 0..3 {
        world.process(&pack(&format!("ok{number}"), "user_1", 1)).await;
    }
    let mut odd = pack("odd", "user_1", 1);
    odd["data"]["object"]["metadata"] = json!({"user_id": "user_1"});
    world.process(&odd).await;
    world.calls();
    let (status, counts) = world.ask("GET", "/admin/stripe/event-counts", Value::Null).await;
    assert_eq!(
        (status, &counts["complete"], counts["steps"].as_array().unwrap().len()),
        (200, &json!(true), 24)
    );
    assert_eq!(
        (&counts["totals"]["processed"], &counts["totals"]["parked"]),
        (&json!(3), &json!(1)),
        "{counts:#}"
    );
    assert_eq!(counts["steps"][23]["processed"], 3);
    let operations = world.operations();
    let (catalog, queries) = operations.split_first().unwrap();
    assert_eq!(catalog, "BatchGetItem", "the stored catalog is read once in 30 s");
    assert!(queries.iter().all(|one| one == "Query") && queries.len() <= 64, "{}", queries.len());
    for (query, code) in [
        ("step=1x", "invalid_step"),
        ("step=0h", "invalid_step"),
        ("from=2026-01-01&to=2026-03-01&step=1d", "invalid_range"),
        ("from=2026-01-02&to=2026-01-01", "invalid_range"),
        ("from=2026-01-01&to=2026-01-30&step=1m", "invalid_range"),
        ("from=x", "invalid_time"),
    ] {
        let (status, answer) =
            world.ask("GET", &format!("/admin/stripe/event-counts?{query}"), Value::Null).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some(code)), "{query}");
    }
}

#[tokio::test]
async fn a_refund_of_a_moved_subscription_takes_the_credits_of_the_user_who_has_it() {
    let world = World::new().await;
    for user in ["user_1", "user_2"] {
        world.sign_up(user).await;
    }
    for name in ["customer.subscription.created", "invoice.paid", "invoice_payment.paid"] {
        world.process(&sample(name, "user_1")).await;
    }
    let subscription =
        sample("invoice.paid", "user_1")["data"]["object"]["parent"]["subscription_details"]["subscription"]
            .clone();
    let body = json!({"action": "move", "subscription": subscription, "to": "user_2", "dry_run": false,
        "actor": "ann", "reason": "the wrong user"});
    let (status, answer) = world.fix("user_1", Some("m"), body).await;
    assert_eq!((status, &answer["credits"]), (200, &json!(5000)), "{answer:#}");
    let credits = async |user: &str| world.account(user).await["credits"].clone();
    assert_eq!((credits("user_1").await, credits("user_2").await), (json!(500), json!(5000)));
    // The invoice of a moved subscription that arrives again is no document of another owner.
    let again = with_id(sample("invoice.paid", "user_2"), "evt_TallyHookAgain");
    world.process(&again).await;
    assert_eq!(world.event("evt_TallyHookAgain").await.unwrap()["outcome"], "processed");
    let mut refunded = sample("charge.refunded.full", "user_1");
    let payment = &sample("invoice_payment.paid", "user_1")["data"]["object"]["payment"]["payment_intent"];
    refunded["data"]["object"]["payment_intent"] = payment.clone();
    refunded["data"]["object"]["amount_refunded"] = json!(2000);
    world.process(&refunded).await;
    assert_eq!((credits("user_1").await, credits("user_2").await), (json!(500), json!(0)));
    let sum: i64 = world.ledger("user_1").await.iter().map(|entry| entry["delta"].as_i64().unwrap()).sum();
    assert_eq!(sum, 500, "the entry of the invoice stays in the ledger of the first user");
}
