//! The binary `tallyhook`: the local stack, and every command.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{Command, Start};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stripe webhooks to exactly-once tier and credit updates: the whole deployment on this machine
///
/// Without a command it starts the local stack and runs until Ctrl-C: the webhook, the app's API, queues,
/// workers, schedules, DynamoDB, SQS and a fake Stripe, in one process, without AWS, Docker or a Stripe
/// account. The functions read their variables (STRIPE_WEBHOOK_SECRET, STRIPE_SECRET_KEY,
/// RETRY_DELAYS_SECONDS, APP_API_TOKEN, LOG_LEVEL, ...) from the environment, except the addresses and
/// credentials of AWS.
#[derive(Parser)]
#[command(name = "tallyhook", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<AnyCommand>,
    #[command(flatten)]
    start: Start,
}

#[derive(Subcommand)]
enum AnyCommand {
    #[command(flatten)]
    Local(Command),
    #[command(flatten)]
    Cli(Box<cli::Command>),
}

/// The stack of a thread. Without optimization a function of the stack takes more than the default of 2 MB.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .expect("threads can be started");
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        None => cli::exit_code(arguments.start.run().await.map(|()| true), 1),
        Some(AnyCommand::Local(command)) => cli::exit_code(command.run().await, 1),
        Some(AnyCommand::Cli(command)) => {
            let failure_code = command.failure_code();
            cli::exit_code(command.run().await, failure_code)
        }
    }
}
