//! The local stack after `kill -9`, as its own program.

#![allow(clippy::unwrap_used, reason = "a test says that it failed by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tallyhook");

/// Starts the stack. Returns it, its URL, and what it prints besides.
fn start(data: &Path, app: &str) -> (Child, String, impl BufRead + use<>) {
    let mut stack = Command::new(PROGRAM)
        .args(["--port", "0", "--aws-port", "0", "--data"])
        .arg(data)
        .env("PROVISION_URL", app)
        .env("PROVISION_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        .env("LOG_LEVEL", "error")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(stack.stdout.take().unwrap());
    let url = loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the stack ended");
        if let Some((_, url)) = line.split_once("Open ") {
            break url.split(' ').next().unwrap().to_owned();
        }
    };
    (stack, url, output)
}

/// Waits for the request that the stack sends to the app, and leaves it unanswered. A client may open a
/// connection and not use it; such a connection ends without a request.
fn request_of_the_stack(app: &TcpListener) -> TcpStream {
    loop {
        let (mut request, _) = app.accept().unwrap();
        let mut head = [0; 4];
        if request.read_exact(&mut head).is_ok() {
            assert_eq!(&head, b"POST");
            return request;
        }
    }
}

#[test]
fn a_message_in_flight_at_kill_9_is_delivered_at_the_next_start() {
    let data = std::env::temp_dir().join(format!("tallyhook-killed-{}", std::process::id()));
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let app_url = format!("http://{}/", app.local_addr().unwrap());
    let (mut killed, url, _output) = start(&data, &app_url);
    for event in ["customer.subscription.created", "invoice.paid", "checkout.session.completed"] {
        let sent = Command::new(PROGRAM).args(["send", event, "--url", &url]).output().unwrap();
        assert!(sent.status.success(), "{sent:?}");
    }
    // The function `provision` holds its message until the app answers.
    let _unanswered = request_of_the_stack(&app);
    killed.kill().unwrap();
    killed.wait().unwrap();

    let started = Instant::now();
    let (mut stack, _, output) = start(&data, &app_url);
    let _again = request_of_the_stack(&app);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let said = output.lines().map_while(Result::ok).find(|line| line.contains("in flight")).unwrap();
    let count: u32 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(count >= 1, "{said}");
    stack.kill().unwrap();
    stack.wait().unwrap();
    std::fs::remove_dir_all(&data).unwrap();
}
