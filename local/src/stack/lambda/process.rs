//! The shipped binaries as child processes: built, started with what Lambda gives them, restarted when they
//! end, stopped with the stack.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::REGION;
use super::host::{Host, Instance};
use crate::stack::stopped;

/// How long an instance may take until it asks for work. On AWS it is 10 s.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);

/// An instance that ran this long ended by accident; one that did not is tried again ever more slowly.
const STABLE: Duration = Duration::from_secs(10);

/// The source tree this program was built from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Builds the binaries beside this program, as cargo has it, and answers where they are.
///
/// # Errors
/// When this program does not run from a build folder, or the build fails; cargo's own words are on the error
/// output.
pub async fn build() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let mut folder = program.parent().context("this program has no folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("this program has no folder")?; // A test.
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    // What `cargo run` tells a program about its package would look like a changed environment to build
    // scripts, and build half of the dependencies anew.
    let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    command.arg("build").current_dir(WORKSPACE).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    let profile = folder.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
    command.args(["--profile", if profile == "debug" { "dev" } else { profile }]);
    // All of them, and this program with them: a smaller choice has fewer features of shared crates and
    // compiles those once more.
    command.arg("--bins");
    tracing::info!("building the functions, if need be: cargo build --bins");
    let status = command
        .status()
        .await
        .context("cannot run cargo to build the functions; with --binaries DIR they are not built")?;
    ensure!(status.success(), "the functions do not build; with --binaries DIR they are taken from there");
    Ok(folder.to_path_buf())
}

/// What the instances of one function are started with.
#[derive(Clone)]
pub struct Binary {
    /// The executable.
    pub path: PathBuf,
    /// Its environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Whether its output goes to this program's error output or nowhere.
    pub quiet: bool,
}

impl Binary {
    /// The binary of a function in a folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn find(
        folder: &Path,
        function: &str,
        env: Vec<(String, String)>,
        quiet: bool,
    ) -> anyhow::Result<Self> {
        let path = folder.join(function);
        ensure!(path.is_file(), "there is no binary {}", path.display());
        Ok(Self { path, env, quiet })
    }

    fn spawn(&self, host: &Host, instance: &Instance) -> std::io::Result<Child> {
        let output = || if self.quiet { Stdio::null() } else { Stdio::from(std::io::stderr()) };
        let function = &instance.0;
        Command::new(&self.path)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("AWS_LAMBDA_RUNTIME_API", host.runtime_api(instance))
            .env("AWS_LAMBDA_FUNCTION_NAME", function)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", "/tallyhook/functions")
            .env("AWS_LAMBDA_LOG_STREAM_NAME", format!("{function}/{}", instance.1))
            .env("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
            .env("AWS_DEFAULT_REGION", REGION)
            .env("_HANDLER", "bootstrap")
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .process_group(0) // Ctrl-C is for the stack, which lets them finish.
            .kill_on_drop(true)
            .spawn()
    }
}

/// Keeps an instance running until `stop` becomes true, and answers when it asks for work for the first time.
///
/// # Errors
/// When the binary cannot be started, ends, reports an error or takes too long before it asks.
pub async fn start(
    host: &Host,
    instance: Instance,
    binary: Binary,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    let child =
        binary.spawn(host, &instance).with_context(|| format!("cannot start {}", binary.path.display()))?;
    let (mut child, function) = (child, instance.0.clone());
    tokio::select! {
        ready = host.ready(&instance) => if let Err(error) = ready {
            bail!("the function {function} does not start: {error}");
        },
        status = child.wait() => bail!("the function {function} ended before it asked for work ({})", how(status)),
        () = tokio::time::sleep(INIT_TIMEOUT) => bail!("the function {function} did not ask for work within {} s", INIT_TIMEOUT.as_secs()),
    }
    Ok(tokio::spawn(supervise(host.clone(), instance, binary, child, stop)))
}

async fn supervise(
    host: Host,
    instance: Instance,
    binary: Binary,
    mut child: Child,
    stop: watch::Receiver<bool>,
) {
    let mut pause = Duration::from_millis(100);
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            status = child.wait() => how(status),
            () = host.must_stop(&instance) => {
                let _ = child.kill().await;
                "stopped after its time-out".to_owned()
            }
            () = stopped(&stop) => {
                let _ = child.kill().await;
                return;
            }
        };
        host.lost(&instance, &ended);
        loop {
            tracing::warn!(
                function = instance.0,
                instance = instance.1,
                "a function's process is gone ({ended}); starting another one"
            );
            pause = if started.elapsed() > STABLE {
                Duration::from_millis(100)
            } else {
                (pause * 2).min(Duration::from_secs(5))
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped(&stop) => return,
            }
            match binary.spawn(&host, &instance) {
                Ok(spawned) => {
                    child = spawned;
                    break;
                }
                Err(error) => {
                    tracing::error!(function = instance.0, %error, "cannot start {}", binary.path.display())
                }
            }
        }
    }
}

fn how(status: std::io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
