//! The commands that need the local stack. All others are in the package `cli`.

mod demo;
mod fuzz_order;
mod load;
mod running_stack;
mod start;
mod trigger;

pub use start::Start;

use clap::Subcommand;

/// One command with its arguments.
#[derive(Subcommand)]
pub enum Command {
    Demo(demo::Demo),
    FuzzOrder(fuzz_order::FuzzOrder),
    Load(load::Load),
    Trigger(trigger::Trigger),
}

impl Command {
    /// Runs the command. `true` means exit code 0, `false` means exit code 1.
    pub async fn run(self) -> anyhow::Result<bool> {
        match self {
            Self::Demo(command) => command.run().await,
            Self::FuzzOrder(command) => command.run().await,
            Self::Load(command) => command.run().await,
            Self::Trigger(command) => command.run().await,
        }
    }
}
