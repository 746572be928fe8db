//! The commands of the package `cli` against a local stack, with their exit codes.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use local::fake_stripe::FakeStripe;
use local::stack::{Options, Stack};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: cli::Command,
}

/// Runs a command line against the stack. True means exit code 0.
async fn run(stack: &Stack, line: &[&str]) -> anyhow::Result<bool> {
    let arguments = [&["tallyhook"], line, &["--url", &stack.front_url]].concat();
    Arguments::try_parse_from(arguments)?.command.run().await
}

fn export(name: &str, text: &str) -> PathBuf {
    let file = std::env::temp_dir().join(format!("tallyhook-export-{name}-{}.csv", std::process::id()));
    std::fs::write(&file, text).expect("the temporary folder can be written");
    file
}

#[tokio::test]
async fn an_operator_sends_an_event_and_inspects_and_repairs_its_user() {
    let stack = Stack::start(Options::default()).await.unwrap();
    assert!(run(&stack, &["send", "invoice.paid"]).await.unwrap());
    assert!(
        run(&stack, &["send", "checkout.session.completed.pack", "--secret", "whsec_wrong"])
            .await
            .is_ok_and(|accepted| !accepted)
    );
    stack.idle().await;
    // The invoice names a customer without a user, so the event is parked.
    assert!(run(&stack, &["logs", "--status", "parked"]).await.unwrap());
    assert!(run(&stack, &["send", "checkout.session.completed"]).await.unwrap());
    stack.idle().await;
    assert!(run(&stack, &["health"]).await.unwrap());
    assert!(run(&stack, &["retry"]).await.unwrap());
    assert!(run(&stack, &["check-user", "user_123"]).await.is_ok());
    assert!(run(&stack, &["fix-user", "user_123", "--grant", "5", "--reason", "test"]).await.unwrap());
    assert!(run(&stack, &["fix-user", "user_123"]).await.is_err(), "a repair needs an action");
    assert!(run(&stack, &["reconcile", "--dry-run"]).await.is_ok());
    let error = run(&stack, &["logs", "evt_missing"]).await.unwrap_err().to_string();
    assert!(error.contains("not_found"), "{error}");
    stack.stop().await;
}

#[tokio::test]
async fn compare_fails_when_an_account_differs_from_the_export() {
    let stack = Stack::start(Options::default()).await.unwrap();
    assert!(run(&stack, &["send", "customer.subscription.created"]).await.unwrap());
    assert!(run(&stack, &["send", "invoice.paid"]).await.unwrap());
    assert!(run(&stack, &["send", "checkout.session.completed"]).await.unwrap());
    stack.idle().await;
    let compare = async |name: &str, text: &str| {
        let file = export(name, text);
        run(&stack, &["compare", file.to_str().unwrap()]).await
    };
    assert!(compare("equal", "user_id,tier,credits\nuser_123,pro,5000\n").await.unwrap());
    assert!(!compare("other-credits", "user_id,credits\nuser_123,4999\n").await.unwrap());
    assert!(!compare("unknown-user", "user_id,tier\nstranger,free\n").await.unwrap());
    let file = export("no-deployment", "user_id,tier\nuser_123,pro\n");
    let url = format!("{}/elsewhere", stack.front_url);
    let arguments = ["tallyhook", "compare", file.to_str().unwrap(), "--url", &url];
    let error = Arguments::try_parse_from(arguments).unwrap().command.run().await.unwrap_err().to_string();
    assert!(error.starts_with("user user_123: "), "{error}");
    stack.stop().await;
}

/// A customer of the fake Stripe with the plan `pro`, whose period began ten days ago.
fn put_customer(stripe: &FakeStripe, number: usize) {
    let start = cli::send::now().unix() - 10 * 86_400;
    let end = start + 30 * 86_400;
    let (customer, subscription) = (format!("cus_{number}"), format!("sub_{number}"));
    let price = json!({"id": "price_pro_test", "object": "price"});
    stripe.put(json!({"id": customer, "object": "customer", "email": format!("u{number}@example.com")}));
    stripe.put(json!({
        "id": subscription, "object": "subscription", "created": start, "customer": customer,
        "status": "active", "metadata": {}, "cancel_at_period_end": false, "livemode": false,
        "items": {"object": "list", "has_more": false, "data": [{
            "id": format!("si_{number}"), "object": "subscription_item", "quantity": 1, "price": price,
            "current_period_start": start, "current_period_end": end, "subscription": subscription,
        }]},
    }));
    stripe.put(json!({
        "id": format!("in_{number}"), "object": "invoice", "created": start, "customer": customer,
        "status": "paid", "billing_reason": "subscription_create", "amount_paid": 2000, "total": 2000,
        "currency": "usd", "livemode": false, "status_transitions": {"paid_at": start + 1},
        "parent": {"type": "subscription_details",
            "subscription_details": {"subscription": subscription, "metadata": {}}},
        "lines": {"object": "list", "has_more": false, "data": [{
            "id": format!("il_{number}"), "object": "line_item", "amount": 2000, "quantity": 1,
            "period": {"start": start, "end": end},
            "pricing": {"type": "price_details", "price_details": {"price": "price_pro_test"}},
            "parent": {"type": "subscription_item_details", "subscription_item_details": {
                "subscription": subscription, "subscription_item": format!("si_{number}"), "proration": false,
            }},
        }]},
    }));
}

/// `TALLYHOOK_USERS=10000 cargo test -p local --test operator_commands imported -- --nocapture` imports more
/// users and prints the time.
#[tokio::test]
async fn users_are_imported_in_parts_then_compared_exported_and_erased() {
    let users: usize = std::env::var("TALLYHOOK_USERS").map_or(Ok(60), |users| users.parse()).unwrap();
    let stack = Stack::start(Options::default()).await.unwrap();
    let (_, stripe) = stack.stripe.as_ref().unwrap();
    let mut file = String::from("user_id,customer_id,tier,credits\n");
    for number in 1..=users {
        put_customer(stripe, number);
        writeln!(file, "user_{number},cus_{number},pro,{}", (number * 37) % 9000).unwrap();
    }
    let file = export("users", &file);
    let file = file.to_str().unwrap();
    let import =
        async |more: &[&str]| run(&stack, &[&["import", file, "--batch", "b1"], more].concat()).await;
    let compare = async || run(&stack, &["compare", file, "--limit", "100000"]).await.unwrap();
    let apply = ["--apply", "--reason", "test"];
    assert!(import(&[]).await.unwrap());
    assert!(!compare().await, "a dry run writes nothing");
    // Each part continues where the one before stopped, as after an interruption.
    let begun = Instant::now();
    let part = (users / 10).to_string();
    for _ in 0..9 {
        assert!(import(&[&apply[..], &["--cap", &part]].concat()).await.unwrap());
    }
    assert!(import(&apply).await.unwrap());
    println!("{users} users in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(compare().await);
    assert!(import(&[&apply[..], &["--from-start", "--cap", "60"]].concat()).await.unwrap());
    assert!(compare().await);
    let other = export("other", "user_id,credits\nuser_1,1\n");
    let error = run(&stack, &["import", other.to_str().unwrap(), "--batch", "b1"]).await.unwrap_err();
    assert!(error.to_string().contains("another file"), "{error}");

    let summary = export("summary", "");
    let summary = summary.to_str().unwrap();
    for (what, rows) in [("users", users), ("ledger", 2 * users), ("summary", 3)] {
        assert!(run(&stack, &["export", what, "--output", summary]).await.unwrap());
        let written = std::fs::read_to_string(summary).unwrap();
        assert_eq!(written.lines().count(), rows + 1, "{what}");
    }
    let outstanding: usize = (1..=users).map(|number| (number * 37) % 9000).sum();
    let written = std::fs::read_to_string(summary).unwrap();
    assert!(written.contains(&format!(",all,{outstanding},0,0,0,{outstanding}\n")), "{written}");

    assert!(run(&stack, &["erase", "user_1"]).await.unwrap());
    assert_eq!(stripe.object("cus_1").unwrap()["deleted"], Value::Null);
    assert!(run(&stack, &[&["erase", "user_1"], &apply[..]].concat()).await.unwrap());
    assert_eq!(stripe.object("cus_1").unwrap()["deleted"], true);
    stack.stop().await;
}
