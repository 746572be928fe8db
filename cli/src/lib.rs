//! The commands of an operator or a deployer. They talk to a deployment over HTTP and need no database.
//!
//! The binary `tallyhook-cli` has these commands alone. The package `local` adds the local stack to them.
//!
//! Each command has a module of its name. Several commands use [`client`], `api` (the admin API), `stripe`,
//! `webhook`, `endpoint`, `ssm`, `table`, [`sample`], [`output`] and [`local_stack`].
//!
//! Exit codes of the commands that call the admin API or the app's API:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | The command did its work, and everything is in order. |
//! | 1 | The command did its work, and an operator must look: `health` below 80, an error that `doctor` or `catalog check` found, or differences in `setup`, `check-user`, `reconcile`, `compare`, `catalog diff`, `catalog push`; rows of an `import` that need an operator. |
//! | 2 | The command could not do its work. The error output says what to do. |
//!
//! `send` and `check-signature` end with 0 or 1.

pub mod client;
pub mod local_stack;
pub mod output;
pub mod sample;
pub mod send;

mod api;
mod catalog;
mod check_signature;
mod check_user;
mod compare;
mod dismiss;
mod doctor;
mod erase;
mod export;
mod fix_user;
mod health;
mod import;
mod logs;
mod reconcile;
mod replay;
mod retry;
mod setup;
mod ssm;
mod stripe;
mod table;
mod webhook;

pub use api::at_least_one;

use std::io;
use std::process::ExitCode;

use clap::Subcommand;

/// One command with its arguments.
#[derive(Subcommand)]
#[expect(missing_docs, reason = "each variant's help text is on its arguments")]
pub enum Command {
    Setup(setup::Setup),
    Doctor(doctor::Doctor),
    Send(send::Send),
    CheckSignature(check_signature::CheckSignature),
    Logs(logs::Logs),
    Retry(retry::Retry),
    Replay(replay::Replay),
    Dismiss(dismiss::Dismiss),
    Health(health::Health),
    Reconcile(reconcile::Reconcile),
    CheckUser(check_user::CheckUser),
    FixUser(fix_user::FixUser),
    Compare(compare::Compare),
    Catalog(catalog::CatalogCommand),
    Import(import::Import),
    Export(export::Export),
    Erase(erase::Erase),
}

impl Command {
    /// Runs the command. `true` means exit code 0, `false` means exit code 1.
    ///
    /// # Errors
    /// When the command cannot do its work. The message is for the person who called it.
    pub async fn run(self) -> anyhow::Result<bool> {
        match self {
            Self::Setup(command) => command.run().await,
            Self::Doctor(command) => command.run().await,
            Self::Send(command) => command.run().await,
            Self::CheckSignature(command) => command.run(),
            Self::Logs(command) => command.run().await,
            Self::Retry(command) => command.run().await,
            Self::Replay(command) => command.run().await,
            Self::Dismiss(command) => command.run().await,
            Self::Health(command) => command.run().await,
            Self::Reconcile(command) => command.run().await,
            Self::CheckUser(command) => command.run().await,
            Self::FixUser(command) => command.run().await,
            Self::Compare(command) => command.run().await,
            Self::Catalog(command) => command.run().await,
            Self::Import(command) => command.run().await,
            Self::Export(command) => command.run().await,
            Self::Erase(command) => command.run().await,
        }
    }

    /// The exit code when [`Command::run`] fails.
    pub fn failure_code(&self) -> u8 {
        match self {
            Self::Send(_) | Self::CheckSignature(_) => 1,
            Self::Setup(_)
            | Self::Doctor(_)
            | Self::Logs(_)
            | Self::Retry(_)
            | Self::Replay(_)
            | Self::Dismiss(_)
            | Self::Health(_)
            | Self::Reconcile(_)
            | Self::CheckUser(_)
            | Self::FixUser(_)
            | Self::Compare(_)
            | Self::Catalog(_)
            | Self::Import(_)
            | Self::Export(_)
            | Self::Erase(_) => 2,
        }
    }
}

/// Prints the error of a command, if it has one, and returns the exit code.
pub fn exit_code(result: anyhow::Result<bool>, failure_code: u8) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader closed the pipe: `tallyhook logs | head`.
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(failure_code)
        }
    }
}
