//! `POST /admin/import`: users of another system, with their customers at Stripe and their credits.

use local::fake_stripe::FakeStripe;
use serde_json::{Value, json};
use tallyhook_service::schedules::reconcile::{Options, Reconciler};

use crate::reconcile::processor;
use crate::stripe_client::{KEY, stripe};
use crate::support::{Fault, World, now, pack, sample};

const DAY: i64 = 86_400;
/// The start and the end of the samples' first period.
const START: i64 = 1_767_607_200;
const END: i64 = 1_770_285_600;
/// The digest of the imported file.
const FILE: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

async fn shop() -> (World, FakeStripe) {
    let fake = FakeStripe::new(KEY);
    let base = format!("http://{}", fake.start().await.unwrap());
    (World::with(&[("STRIPE_SECRET_KEY", KEY), ("STRIPE_API_BASE", &base)]).await, fake)
}

/// An event of a customer whose period began ten days ago. Nothing at Stripe names a user.
fn event(name: &str, number: usize) -> Value {
    let later = now().unix() - 10 * DAY - START;
    let mut text = sample(name, "user").to_string().replace("TallyHook0", &format!("TallyHook{number}x"));
    for second in (START - 5..START + 60).chain([END]) {
        text = text.replace(&second.to_string(), &(second + later).to_string());
    }
    let mut event: Value = serde_json::from_str(&text).unwrap();
    event["id"] = json!(format!("{}{number}", event["id"].as_str().unwrap()));
    let object = &mut event["data"]["object"];
    object["metadata"] = json!({});
    if object["object"] == "invoice" {
        object["parent"]["subscription_details"]["metadata"] = json!({});
        object["lines"]["data"][0]["metadata"] = json!({});
    }
    event
}

fn events(number: usize) -> [Value; 2] {
    ["customer.subscription.created", "invoice.paid"].map(|name| event(name, number))
}

fn customer(number: usize) -> String {
    format!("cus_TallyHook{number}x001")
}

/// Puts a customer with the plan `pro` into the fake Stripe.
fn customer_at_stripe(fake: &FakeStripe, number: usize) {
    fake.put(
        json!({"id": customer(number), "object": "customer", "email": format!("u{number}@example.com")}),
    );
    events(number).iter().for_each(|event| fake.put(event["data"]["object"].clone()));
}

fn row(number: usize, credits: u64) -> Value {
    json!({"user_id": format!("user_{number}"), "customer_id": customer(number), "credits": credits})
}

fn page(rows: &[Value], more: &Value) -> Value {
    let mut body = json!({"batch": "go-live", "file": FILE, "first_row": 1, "rows": rows, "dry_run": false,
        "actor": "ann", "reason": "go-live"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Imports a page. `[result, tier, credits]` of each row.
async fn import(world: &World, rows: &[Value], more: Value) -> Vec<Value> {
    let (status, answer) = world.ask("POST", "/admin/import", page(rows, &more)).await;
    assert_eq!(status, 200, "{answer:#}");
    let short = |row: &Value| json!([row["result"], row["tier"], row["credits"]]);
    answer["rows"].as_array().unwrap().iter().map(short).collect()
}

async fn tier_and_credits(world: &World, user: &str) -> Value {
    let account = world.account(user).await;
    json!([account["tier"], account["credits"]])
}

#[tokio::test]
async fn an_import_links_customers_and_sets_balances_once() {
    let (world, fake) = shop().await;
    (1..=3).for_each(|number| customer_at_stripe(&fake, number));
    let rows = [row(1, 7000), row(2, 1200), json!({"user_id": "user_3", "customer_id": customer(3)})];
    let before = world.everything().await;
    let tried = import(&world, &rows, json!({"dry_run": true})).await;
    assert_eq!(world.everything().await, before, "a dry run writes nothing");
    let created = |credits: u64| json!(["created", "pro", credits]);
    assert_eq!(
        tried,
        [json!(["created", "free", 7000]), json!(["created", "free", 1200]), json!(["created", "free", 0])]
    );

    // Without credits in its row, a user has what Stripe says was paid.
    assert_eq!(import(&world, &rows, json!({})).await, [created(7000), created(1200), created(5000)]);
    let after = world.everything().await;
    let again = import(&world, &rows, json!({})).await;
    let unchanged = |credits: u64| json!(["unchanged", "pro", credits]);
    assert_eq!(again, [unchanged(7000), unchanged(1200), unchanged(5000)]);
    let accounts = |all: &Value| all[0][0].clone();
    assert_eq!(accounts(&world.everything().await), accounts(&after));

    let account = world.account("user_1").await;
    assert_eq!(account["buckets"]["grant"], 2000, "{account:#}");
    let ledger = world.ledger("user_1").await;
    let entries: Vec<_> =
        ledger.iter().map(|entry| (&entry["key"], &entry["delta"], &entry["note"])).collect();
    assert_eq!(
        entries,
        [
            (&json!("invoice#in_TallyHook1x001"), &json!(0), &json!("imported")),
            (&json!("import#go-live"), &json!(7000), &Value::Null),
        ]
    );
    // The webhooks of the same documents, and the app's signup, find the same keys.
    for event in events(1) {
        world.process(&event).await;
    }
    assert_eq!(world.sign_up("user_1").await["credits"], 7000);
    let progress = world.ask("GET", "/admin/import/go-live", Value::Null).await.1;
    assert_eq!((&progress["rows"], &progress["file"]), (&json!(3), &json!(FILE)));
    let audits = world.ask("GET", "/admin/audit", Value::Null).await.1;
    assert_eq!(audits["audits"][0]["target"], "go-live rows 1 to 3");
}

#[tokio::test]
async fn a_row_that_cannot_be_imported_says_why_and_writes_nothing() {
    let (world, fake) = shop().await;
    [1, 3, 4].into_iter().for_each(|number| customer_at_stripe(&fake, number));
    assert_eq!(import(&world, &[row(1, 10)], json!({})).await, [json!(["created", "pro", 10])]);
    let mut other_price = event("customer.subscription.created", 2)["data"]["object"].clone();
    other_price["items"]["data"][0]["price"]["id"] = json!("price_old");
    other_price["items"]["data"][0]["price"]["lookup_key"] = Value::Null;
    fake.put(other_price);
    fake.put(json!({"id": "cus_twin", "object": "customer", "email": "u4@example.com"}));
    let bound = json!({"user_id": "user_9", "customer_id": customer(1), "credits": 5});
    let missing = json!({"user_id": "user_9", "customer_id": "cus_none", "credits": 5});
    let by_email = |number: usize| json!({"user_id": format!("user_{number}"), "email": format!("u{number}@example.com")});
    let rows = [
        bound,
        missing,
        row(1, 11),
        json!({"user_id": "user_9", "credits": 5, "as_of": "yesterday"}),
        json!({"user_id": "user_9", "credits": 5, "tier_until": "gold 2030-01-01"}),
        by_email(4),
        row(2, 5),
        by_email(3),
        json!({"user_id": "user_5", "credits": 5, "tier_until": "business 2090-01-01"}),
    ];
    let nothing = |result: &str| json!([result, null, null]);
    assert_eq!(
        import(&world, &rows, json!({"match_email": true})).await,
        [
            nothing("bound_elsewhere"),
            nothing("no_customer"),
            nothing("conflict"),
            nothing("invalid"),
            nothing("invalid"),
            nothing("duplicate_customer"),
            json!(["no_price", "free", 5]),
            json!(["created", "pro", 5000]),
            json!(["created", "business", 5]),
        ]
    );
    assert_eq!(world.app("GET", "/users/user_9", Value::Null, None).await.0, 404);
    for (more, status, code) in [
        (json!({"batch": "a b"}), 400, "invalid_batch"),
        (json!({"rows": []}), 400, "invalid_rows"),
        (json!({"file": "x"}), 400, "invalid_file"),
        (json!({"file": FILE.replace('9', "8")}), 409, "batch_of_another_file"),
    ] {
        let (found, answer) = world.ask("POST", "/admin/import", page(&[row(1, 10)], &more)).await;
        assert_eq!((found, answer["error"].as_str()), (status, Some(code)), "{answer}");
    }
}

#[tokio::test]
async fn an_interrupted_import_continues_while_webhooks_of_the_same_users_arrive() {
    const USERS: usize = 6;
    let as_of = now().to_string();
    let whole = async |interrupted: bool| {
        let (world, fake) = shop().await;
        (1..=USERS).for_each(|number| customer_at_stripe(&fake, number));
        let rows: Vec<Value> = (1..=USERS).map(|number| dated(row(number, 1000), &as_of)).collect();
        if interrupted {
            for crash in 0..10 {
                let mut left = 3 + 7 * crash;
                world.fault(move |_| {
                    left -= usize::from(left > 0);
                    (left == 0).then_some(Fault::HangBefore)
                });
                world.until_hung(world.ask("POST", "/admin/import", page(&rows, &json!({})))).await;
                world.heal();
                let number = 1 + crash % USERS;
                for event in events(number) {
                    world.process(&event).await;
                }
                world.process(&pack_of(number, crash)).await;
            }
        }
        import(&world, &rows, json!({})).await;
        if !interrupted {
            for crash in 0..10 {
                world.process(&pack_of(1 + crash % USERS, crash)).await;
            }
        }
        let mut all = Vec::new();
        for number in 1..=USERS {
            all.push(tier_and_credits(&world, &format!("user_{number}")).await);
        }
        all
    };
    let expected = whole(false).await;
    assert_eq!(expected[0], json!(["pro", 3000]), "1000 imported and two packs of later");
    assert_eq!(whole(true).await, expected);
}

fn dated(mut row: Value, as_of: &str) -> Value {
    row["as_of"] = json!(as_of);
    row
}

/// A pack that the customer buys now.
fn pack_of(number: usize, crash: usize) -> Value {
    let mut event = pack(&format!("{number}_{crash}"), &format!("user_{number}"), 1);
    event["created"] = json!(now().unix() + 5);
    event["data"]["object"]["created"] = json!(now().unix() + 5);
    event
}

#[tokio::test]
async fn an_import_without_credits_ends_like_reconciliation() {
    let (imported, fake) = shop().await;
    customer_at_stripe(&fake, 1);
    let rows = [json!({"user_id": "user_1", "customer_id": customer(1)})];
    import(&imported, &rows, json!({"signup_credits": true})).await;

    let (reconciled, (fake, client)) = (World::new().await, stripe().await);
    customer_at_stripe(&fake, 1);
    reconciled.sign_up("user_1").await;
    let link = json!({"action": "link_customer", "customer": customer(1), "actor": "ann", "reason": "r"});
    assert_eq!(reconciled.fix("user_1", None, link).await.0, 200);
    let report = Reconciler::new(client, processor(&reconciled)).run(&Options::default(), now()).await;
    assert!(report.complete && report.left.is_empty(), "{report:#?}");

    let entries = async |world: &World| -> Vec<Value> {
        let ledger = world.ledger("user_1").await;
        ledger.iter().map(|entry| json!([entry["key"], entry["delta"], entry["note"]])).collect()
    };
    assert_eq!(entries(&imported).await, entries(&reconciled).await);
    let (one, other) =
        (tier_and_credits(&imported, "user_1").await, tier_and_credits(&reconciled, "user_1").await);
    assert_eq!((one, other), (json!(["pro", 5000]), json!(["pro", 5000])));
}

/// Stripe shows only the plan of now. `create_prorations`, the default, bills a change with the next invoice.
#[tokio::test]
async fn a_plan_that_was_changed_before_the_balance_grants_nothing_beside_it() {
    let (world, fake) = shop().await;
    (1..=2).for_each(|number| customer_at_stripe(&fake, number));
    for (number, price) in [(1, "price_business_test"), (2, "price_team_test")] {
        let mut subscription = event("customer.subscription.created", number)["data"]["object"].clone();
        let item = &mut subscription["items"]["data"][0];
        item["price"]["id"] = json!(price);
        item["price"]["lookup_key"] = Value::Null;
        item["quantity"] = json!(10);
        fake.put(subscription);
    }
    let rows = [row(1, 900), row(2, 20_000)];
    let imported = import(&world, &rows, json!({})).await;
    assert_eq!(imported, [json!(["created", "business", 900]), json!(["created", "business", 20_000])]);
    let run = json!({"dry_run": false, "actor": "ann", "reason": "check"});
    assert_eq!(world.ask("POST", "/admin/stripe/reconcile", run).await.0, 200);
    assert_eq!(tier_and_credits(&world, "user_1").await, json!(["business", 900]));
    assert_eq!(tier_and_credits(&world, "user_2").await, json!(["business", 20_000]));
}

/// Stripe shows what was refunded. What was refunded before the balance is part of it.
#[tokio::test]
async fn a_refund_that_is_read_from_stripe_counts_by_the_time_at_which_it_was_made() {
    for (days_ago, left) in [(4, 4000), (2, 1500)] {
        let (world, fake) = shop().await;
        customer_at_stripe(&fake, 1);
        let mut paid = event("invoice_payment.paid", 1)["data"]["object"].clone();
        let (payment, charge) = (paid["payment"]["payment_intent"].take(), "ch_1");
        paid["payment"]["payment_intent"] = payment.clone();
        fake.put(paid);
        fake.put(
            json!({"id": charge, "object": "charge", "customer": customer(1), "payment_intent": payment,
            "paid": true, "amount": 2000, "amount_refunded": 1000, "created": now().unix() - 10 * DAY}),
        );
        fake.put(json!({"id": "re_1", "object": "refund", "status": "succeeded", "currency": "usd",
            "amount": 1000, "payment_intent": payment, "charge": charge, "metadata": {},
            "created": now().unix() - days_ago * DAY}));
        let as_of = now().plus_days(-3).to_string();
        let imported = import(&world, &[dated(row(1, 4000), &as_of)], json!({})).await;
        assert_eq!(imported, [json!(["created", "pro", left])], "{days_ago}");
        let run = json!({"dry_run": false, "actor": "ann", "reason": "check"});
        assert_eq!(world.ask("POST", "/admin/stripe/reconcile", run).await.0, 200);
        assert_eq!(tier_and_credits(&world, "user_1").await, json!(["pro", left]), "{days_ago}");
    }
}

#[tokio::test]
async fn a_session_that_was_made_before_the_balance_and_paid_after_it_grants() {
    let (world, fake) = shop().await;
    customer_at_stripe(&fake, 1);
    let as_of = now().plus_days(-3);
    let mut session = pack("1", "user_1", 1)["data"]["object"].clone();
    session["customer"] = json!(customer(1));
    session["created"] = json!(as_of.unix() - 3600);
    session["payment_intent"] = json!("pi_pack");
    fake.put(session);
    fake.put(json!({"id": "ch_pack", "object": "charge", "customer": customer(1), "paid": true,
        "payment_intent": "pi_pack", "amount": 1000, "amount_refunded": 0, "created": as_of.unix() + 3600}));
    let imported = import(&world, &[dated(row(1, 200), &as_of.to_string())], json!({})).await;
    assert_eq!(imported, [json!(["created", "pro", 1200])]);
}

#[tokio::test]
async fn what_an_operator_revoked_after_the_balance_stays_revoked() {
    let (world, fake) = shop().await;
    customer_at_stripe(&fake, 1);
    import(&world, &[json!({"user_id": "user_1", "customer_id": customer(1)})], json!({"batch": "link"}))
        .await;
    let as_of = now().plus_days(-1);
    let revoke = json!({"action": "revoke", "credits": 300, "actor": "ann", "reason": "abuse"});
    assert_eq!(world.fix("user_1", Some("r1"), revoke).await.0, 200);
    let imported = import(&world, &[dated(row(1, 2000), &as_of.to_string())], json!({})).await;
    assert_eq!(imported, [json!(["linked", "pro", 1700])]);
}
