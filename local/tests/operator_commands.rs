//! The commands of the package `cli` against a local stack, with their exit codes.

#![allow(clippy::unwrap_used, reason = "a test says that it failed by panicking")]

mod support;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Parser;
use local::fake_stripe::FakeStripe;
use local::stack::{Options, STRIPE_KEY, Stack};
use serde_json::{Value, json};
use tallyhook_core::signature::Secret;

use self::support::tallyhook;

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
async fn a_command_that_contradicts_itself_or_is_malformed_says_why_and_changes_nothing() {
    let stack = Stack::start(Options::default()).await.unwrap();
    let catalog = concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog.toml");
    let users = export("refused", "user_id,credits\nuser_123,5\n");
    let users = users.to_str().unwrap();
    for (line, says) in [
        ("export ledger --from 2026-02-01 --to 2026-01-01", "from must be before to"),
        ("export events --from 2026-02-01 --to 2026-02-01", "from must be before to"),
        ("export summary --from 2026-02-01 --to 2026-01-01", "--from must be before --to"),
        ("export summary --from yesterday", "--from must be like"),
        ("export users --to 2026-01-01", "has no time"),
        ("export users --json", "unexpected argument"),
        ("logs --from 2026-02-01 --to 2026-01-01", "from must be before to"),
        ("logs --limit 0", "at least 1"),
        ("logs evt_1 --status parked", "cannot be used with"),
        ("retry evt_1 --type invoice.paid", "cannot be used with"),
        ("retry --type invoice.payed", "no event of the type"),
        ("replay evt_1 --undelivered", "cannot be used with"),
        ("replay --type invoice.paid --limit 0", "at least 1"),
        ("replay --type invoice.payed", "no event of the type"),
        ("send invoice.payed", "`tallyhook send --list`"),
        ("send invoice.paid --times 0", "at least 1"),
        ("send --list --user jo", "cannot be used with"),
        ("reconcile --cap 0", "at least 1"),
        ("compare USERS --limit 0", "at least 1"),
        ("import USERS --cap 0", "at least 1"),
        ("fix-user user_123 --grant 5 --create --reason x", "cannot be used with"),
        ("fix-user user_123 --apply-stripe --until 2027-01-01 --reason x", "cannot be used with"),
        ("fix-user user_123 --move sub_1 --reason x", "--to"),
        ("fix-user user_123 --grant 5 --apply --reason x", "--move"),
        ("catalog push CATALOG --replaces 0000", "does not have the digest 0000"),
        ("catalog diff CATALOG --json", "unexpected argument"),
    ] {
        let words = line.split(' ').map(|word| match word {
            "USERS" => users,
            "CATALOG" => catalog,
            word => word,
        });
        let error = run(&stack, &words.collect::<Vec<_>>()).await.expect_err(line);
        let error = format!("{error:#}");
        assert!(error.contains(says), "{line}: {error}");
    }
    stack.idle().await;
    let url = ["--url", &stack.front_url];
    // A file that exists stays as it is until the new one is complete.
    for (name, value, says) in [
        ("ADMIN_API_TOKEN", "wrong", "does not accept this token"),
        ("ADMIN_API_TOKEN", "two words", "ADMIN_API_TOKEN has characters that no token has"),
    ] {
        let export = [&["export", "users", "--output", users], &url[..]].concat();
        let (code, output) = tallyhook(&export, &[(name, value)]).await;
        assert!(code == Some(2) && output.contains(says), "{code:?} {output}");
    }
    assert!(std::fs::read_to_string(users).unwrap().contains("user_123,5"));
    for (url, says) in [
        ("", "--url or TALLYHOOK_URL is empty"),
        ("nonsense", "nonsense is not an http:// or https:// URL"),
        (&format!("{}/webhooks/stripe", stack.front_url), "is not the URL of a deployment's API"),
    ] {
        let (code, output) = tallyhook(&["health", "--url", url], &[]).await;
        assert!(code == Some(2) && output.contains(says), "{code:?} {output}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn an_operator_moves_a_subscription_gives_a_plan_and_assigns_a_guests_session() {
    let stack = Stack::start(Options::default()).await.unwrap();
    for sample in ["customer.subscription.created", "invoice.paid", "checkout.session.completed"] {
        assert!(run(&stack, &["send", sample]).await.unwrap());
    }
    stack.idle().await;
    let fix = async |user: &str, action: &[&str]| {
        run(&stack, &[&["fix-user", user, "--reason", "test"], action].concat()).await
    };
    let holds = async |user: &str, expected: &str| {
        let file = export("holds", &format!("user_id,tier,credits\n{user},{expected}\n"));
        assert!(run(&stack, &["compare", file.to_str().unwrap()]).await.unwrap(), "{user}: {expected}");
    };
    let to_bob = ["--move", "sub_TallyHook0001", "--to", "bob", "--create"];
    assert!(!fix("user_123", &to_bob).await.unwrap(), "without --apply nothing is moved");
    holds("user_123", "pro,5000").await;
    assert!(fix("user_123", &[&to_bob[..], &["--apply"]].concat()).await.unwrap());
    holds("user_123", "free,0").await;
    holds("bob", "pro,5000").await;
    let customer = ["--move", "cus_TallyHook0001", "--to", "bob", "--apply"];
    assert!(fix("user_123", &customer).await.unwrap());
    let plan = ["--complimentary", "business", "--credits", "70", "--until", "2100-01-01T00:00:00Z"];
    assert!(fix("user_123", &plan).await.unwrap());
    holds("user_123", "business,70").await;
    assert!(fix("user_123", &["--grant", "5", "--until", "2100-01-01T00:00:00Z"]).await.unwrap());
    holds("user_123", "business,75").await;
    assert!(fix("bob", &["--assign-session", "cs_test_guest"]).await.unwrap());
    for ended in [
        &["--grant", "5", "--until", "2020-01-01T00:00:00Z"][..],
        &["--complimentary", "pro", "--until", "2020-01-01T00:00:00Z"],
        &["--complimentary", "pro", "--from", "2100-01-02T00:00:00Z", "--until", "2100-01-01T00:00:00Z"],
    ] {
        let error = fix("bob", ended).await.unwrap_err().to_string();
        assert!(error.contains("until must be in the future"), "{error}");
    }
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

/// How many users the imports have. `TALLYHOOK_USERS=10000 cargo test -p local --test operator_commands
/// imported -- --nocapture` imports more users, and prints the time and the memory.
fn users() -> usize {
    std::env::var("TALLYHOOK_USERS").map_or(Ok(60), |users| users.parse()).unwrap()
}

/// Writes the user ids of the first 60 customers to Stripe, one of which names another user.
async fn write_metadata(stack: &Stack, users: usize) {
    let users = users.min(60);
    let (base, stripe) = stack.stripe.as_ref().unwrap();
    let mut file = String::from("user_id,customer_id\n");
    (1..=users).for_each(|number| writeln!(file, "user_{number},cus_{number}").unwrap());
    let file = export("metadata", &file);
    let write = async |more: &[&str]| {
        let all = [&["import", file.to_str().unwrap(), "--write-metadata", "--rate", "1000"], more].concat();
        tallyhook(&all, &[("STRIPE_SECRET_KEY", STRIPE_KEY), ("STRIPE_API_BASE", base)]).await
    };
    let named = |id: &str| stripe.object(id).unwrap()["metadata"]["user_id"].clone();
    let apply = ["--apply", "--reason", "test"];
    let (code, dry) = write(&[]).await;
    assert!(code == Some(0) && dry.contains(&format!("{users} written")), "{dry}");
    assert_eq!((named("cus_1"), named("sub_1")), (Value::Null, Value::Null), "a dry run writes nothing");
    // Stripe does not answer after some requests. The run says where it stopped.
    stripe.refuse_after(30);
    let (code, stopped) = write(&apply).await;
    assert!(code == Some(2) && stopped.contains("the same command with --first-row"), "{code:?} {stopped}");
    stripe.heal();
    let other = json!({"id": "cus_2", "object": "customer", "metadata": {"client_id": "somebody"}});
    stripe.put(other);
    let (code, done) = write(&apply).await;
    assert!(code == Some(1) && done.contains("row 2: user_2 cus_2: the customer's metadata"), "{done}");
    let last = users.to_string();
    assert_eq!(named(&format!("cus_{last}")), format!("user_{last}"));
    assert_eq!((named("sub_1"), named("cus_2")), (json!("user_1"), Value::Null));
    let (_, again) = write(&apply).await;
    assert!(again.contains(&format!("1 bound elsewhere, {} unchanged", users - 1)), "{again}");
    let (code, one) = write(&["--first-row", &last]).await;
    assert!(code == Some(0) && one.contains("1 rows in"), "{one}");
}

/// The events that Stripe sends about a customer of [`put_customer`].
fn events_of(stripe: &FakeStripe, number: usize) -> [Value; 2] {
    let event = |kind: &str, id: &str| {
        let object = stripe.object(id).unwrap();
        json!({"id": format!("evt_{}{id}", kind.replace('.', "")), "object": "event", "type": kind, "livemode": false,
            "api_version": "2026-03-25.dahlia", "created": object["created"], "data": {"object": object}})
    };
    let [subscription, invoice] = ["sub", "in"].map(|of| format!("{of}_{number}"));
    [event("customer.subscription.created", &subscription), event("invoice.paid", &invoice)]
}

/// The export of another system with this many users of the plan `pro`, whose customers the fake Stripe has.
fn users_with_customers(stripe: &FakeStripe, users: usize, name: &str) -> PathBuf {
    let mut file = String::from("user_id,customer_id,tier,credits\n");
    for number in 1..=users {
        put_customer(stripe, number);
        writeln!(file, "user_{number},cus_{number},pro,{}", (number * 37) % 9000).unwrap();
    }
    export(name, &file)
}

/// The peak of a process's memory in KB, where the system shows it.
fn peak_memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_imported_by_a_program_that_is_killed_ten_times_while_webhooks_arrive() {
    let users = users();
    let stack = Stack::start(Options::default()).await.unwrap();
    let (_, stripe) = stack.stripe.as_ref().unwrap();
    let file = users_with_customers(stripe, users, "killed");
    let program = || {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_tallyhook"))
            .args([
                "import",
                file.to_str().unwrap(),
                "--apply",
                "--reason",
                "test",
                "--url",
                &stack.front_url,
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (url, sending) = (format!("{}/webhooks/stripe", stack.front_url), stripe.clone());
    let webhooks = tokio::spawn(async move {
        let client = cli::client::Client::for_url(&url).unwrap();
        let secret = Secret::new(cli::local_stack::WEBHOOK_SECRET).unwrap();
        for number in 1..=users {
            for event in events_of(&sending, number) {
                let request = cli::send::signed_request(&url, event.to_string().as_bytes(), &secret).unwrap();
                let (status, answer) = client.send(request).await.unwrap();
                assert!(status.is_success(), "{status} {}", String::from_utf8_lossy(&answer));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let begun = Instant::now();
    let mut peak = 0;
    for _ in 0..10 {
        let mut import = program();
        let until = Duration::from_millis(fastrand::u64(0..users as u64 * 6));
        if tokio::time::timeout(until, import.wait()).await.is_err() {
            peak = peak.max(peak_memory(import.id().unwrap()).unwrap_or(0));
            import.kill().await.unwrap();
        }
    }
    let mut last = program();
    let status = loop {
        peak = peak.max(last.id().and_then(peak_memory).unwrap_or(0));
        if let Ok(status) = tokio::time::timeout(Duration::from_millis(50), last.wait()).await {
            break status.unwrap();
        }
    };
    assert!(status.success(), "{status}");
    webhooks.await.unwrap();
    stack.idle().await;
    println!("{users} users in {:.1} s, at most {peak} KB", begun.elapsed().as_secs_f64());
    assert!(run(&stack, &["compare", file.to_str().unwrap(), "--limit", "100000"]).await.unwrap());
    stack.stop().await;
}

#[tokio::test]
async fn users_are_imported_in_parts_then_compared_exported_and_erased() {
    let users = users();
    let stack = Stack::start(Options::default()).await.unwrap();
    let (_, stripe) = stack.stripe.as_ref().unwrap();
    let file = users_with_customers(stripe, users, "users");
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
    let again = ["import", file, "--batch", "b1", "--apply", "--reason", "test", "--url", &stack.front_url];
    let (code, output) = tallyhook(&again, &[]).await;
    let expected = format!("{users} of {users} rows are done; --from-start imports them again\n");
    assert_eq!((code, output), (Some(0), expected));
    assert!(import(&[&apply[..], &["--from-start", "--cap", "60"]].concat()).await.unwrap());
    assert!(compare().await);
    write_metadata(&stack, users).await;
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
