//! The binary, for the tests of the commands.

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
