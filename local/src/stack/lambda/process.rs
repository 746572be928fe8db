//! The shipped binaries as child processes: they are built, started with Lambda's variables, restarted when
//! they end, and stopped with the stack.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::REGION;
use super::runtime_api::{Instance, RuntimeApi};
use crate::stack::shutdown::stopped;

/// The maximum time until a new instance asks for its first invocation. On AWS it is 10 s.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);

/// An instance that ends after a shorter time is restarted after a pause that doubles each time.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The source tree this program was built from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Builds the binaries into the folder of this program and returns that folder.
///
/// # Errors
/// When this program does not run from a build folder of cargo, or the build fails. Cargo prints its errors
/// on the error output.
pub async fn build() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let mut folder = program.parent().context("this program has no folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("this program has no folder")?; // A test.
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    // `cargo run` sets variables about this package. Build scripts would see a changed environment, and cargo
    // would rebuild half of the dependencies.
    let is_of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_package)) {
        command.env_remove(name);
    }
    command.arg("build").current_dir(WORKSPACE).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    let profile = folder.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
    command.args(["--profile", if profile == "debug" { "dev" } else { profile }]);
    // Build all binaries, this program included: a smaller selection has other features of shared crates and
    // compiles them again.
    command.arg("--bins");
    tracing::info!("building the functions: cargo build --bins");
    let status = command.status().await.context(
        "cannot run cargo to build the functions; use --binaries DIR for functions that are already built",
    )?;
    ensure!(
        status.success(),
        "the functions do not build; use --binaries DIR for functions that are already built"
    );
    Ok(folder.to_path_buf())
}

/// The executable of a function, and how to start it.
#[derive(Clone)]
pub struct Binary {
    /// The executable.
    pub path: PathBuf,
    /// The whole environment. Nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Whether the output is discarded. Otherwise it goes to the error output of this program.
    pub quiet: bool,
}

impl Binary {
    /// The binary of a function in a folder.
    ///
    /// # Errors
    /// When the file does not exist.
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

    fn spawn(&self, runtime_api: &RuntimeApi, instance: &Instance) -> std::io::Result<Child> {
        let output = || if self.quiet { Stdio::null() } else { Stdio::from(std::io::stderr()) };
        let function = &instance.0;
        Command::new(&self.path)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("AWS_LAMBDA_RUNTIME_API", runtime_api.address_for(instance))
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
            .process_group(0) // Ctrl-C must reach the stack only: it lets the binaries finish.
            .kill_on_drop(true)
            .spawn()
    }
}

/// Starts an instance and keeps it running until `stop` becomes true. Returns when the instance asks for its
/// first invocation.
///
/// # Errors
/// When the binary cannot be started, or ends, reports an error or takes too long before it asks.
pub async fn start(
    runtime_api: &RuntimeApi,
    instance: Instance,
    binary: Binary,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    let mut child = binary
        .spawn(runtime_api, &instance)
        .with_context(|| format!("cannot start {}", binary.path.display()))?;
    let function = instance.0.clone();
    tokio::select! {
        ready = runtime_api.ready(&instance) => if let Err(error) = ready {
            bail!("the function {function} does not start: {error}");
        },
        status = child.wait() => {
            bail!("the function {function} ended before it asked for an invocation ({})", describe(status))
        }
        () = tokio::time::sleep(INIT_TIMEOUT) => bail!(
            "the function {function} did not ask for an invocation within {} s",
            INIT_TIMEOUT.as_secs()
        ),
    }
    Ok(tokio::spawn(supervise(runtime_api.clone(), instance, binary, child, stop)))
}

async fn supervise(
    runtime_api: RuntimeApi,
    instance: Instance,
    binary: Binary,
    mut child: Child,
    stop: watch::Receiver<bool>,
) {
    let mut pause = Duration::from_millis(100);
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            status = child.wait() => describe(status),
            () = runtime_api.must_stop(&instance) => {
                let _ = child.kill().await;
                "stopped after a timeout".to_owned()
            }
            () = stopped(&stop) => {
                let _ = child.kill().await;
                return;
            }
        };
        runtime_api.instance_ended(&instance, &ended);
        loop {
            tracing::warn!(
                function = instance.0,
                instance = instance.1,
                "the process of a function ended ({ended}); starting another one"
            );
            pause = if started.elapsed() > STABLE_AFTER {
                Duration::from_millis(100)
            } else {
                (pause * 2).min(Duration::from_secs(5))
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped(&stop) => return,
            }
            match binary.spawn(&runtime_api, &instance) {
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

fn describe(status: std::io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
