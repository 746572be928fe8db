//! What the tests of the commands share: the binary, and a small server for it.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio::process::Command;

/// Runs the binary. Returns its exit code and both outputs.
pub async fn tallyhook(arguments: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tallyhook"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .await
        .expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("the output is text"))
}

/// Serves on a free port, and returns the URL.
pub async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address: SocketAddr = listener.local_addr().expect("the listener has an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}
