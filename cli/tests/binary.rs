//! The binary `tallyhook-cli`: its commands and exit codes, without a deployment.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tallyhook-cli"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("the input is a pipe");
    stdin.write_all(input.as_bytes()).expect("the binary reads its input");
    drop(stdin);
    child.wait_with_output().expect("the binary ends")
}

#[test]
fn the_help_lists_every_command() {
    let output = run(&["--help"], "");
    let help = String::from_utf8(output.stdout).unwrap();
    for command in [
        "setup",
        "doctor",
        "send",
        "check-signature",
        "logs",
        "retry",
        "replay",
        "health",
        "reconcile",
        "check-user",
        "fix-user",
        "compare",
        "catalog",
    ] {
        assert!(help.contains(&format!("  {command} ")), "{command}: {help}");
    }
}

#[test]
fn a_command_that_cannot_reach_the_deployment_ends_with_2() {
    let output = run(&["health", "--url", "http://127.0.0.1:1"], "");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("tallyhook: cannot connect to http://127.0.0.1:1/"), "{error}");
}

#[test]
fn the_exit_code_of_check_signature_is_0_for_a_valid_signature_else_1() {
    let body = r#"{"id":"evt_1","object":"event"}"#;
    let header = "t=1760000000,v1=95a3fd7f0f6ce7693c04d0dc7b0e77234e7e0b588a980b80b26e094da8fcd88e";
    let check = |now: &str| {
        run(&["check-signature", "--secret", "whsec_test", "--header", header, "--now", now], body)
            .status
            .code()
    };
    assert_eq!((check("1760000000"), check("1760000301")), (Some(0), Some(1)));
}

#[test]
fn send_lists_the_samples_of_both_api_shapes() {
    let output = run(&["send", "--list"], "");
    assert_eq!(output.status.code(), Some(0));
    let names = String::from_utf8(output.stdout).unwrap();
    for name in ["invoice.paid", "old/invoice.paid"] {
        assert!(names.lines().any(|line| line == name), "{name}: {names}");
    }
    assert_eq!(run(&["send"], "").status.code(), Some(2));
}
