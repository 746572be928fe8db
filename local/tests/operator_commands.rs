//! The commands of the package `cli` against a local stack, with their exit codes.

use std::path::PathBuf;

use clap::Parser;
use local::stack::{Options, Stack};

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
