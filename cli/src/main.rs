//! The binary `tallyhook-cli`: every command that needs no local stack.

use std::process::ExitCode;

use clap::Parser;
use cli::Command;

/// Operate a deployment of tallyhook: Stripe webhooks to exactly-once tier and credit updates
#[derive(Parser)]
#[command(name = "tallyhook", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let failure_code = command.failure_code();
    cli::exit_code(command.run().await, failure_code)
}
