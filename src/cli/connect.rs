//! Finds the control of the run directory, or starts one in the background.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{ApiClient, ClientError};
use crate::sys::process::{RoleChild, RoleCommand, SealedExe};
use crate::telemetry::LogFormat;

use super::output;
use super::settings::Settings;

/// A control that has not opened its socket by then has a problem that its log tells.
const START_LIMIT: Duration = Duration::from_secs(20);
/// So long a control that is ending may break connections.
const DYING: Duration = Duration::from_secs(3);
/// Controls that may die of one call.
const ATTEMPTS: u32 = 5;
const START_POLL: Duration = Duration::from_millis(10);

/// A Tokio runtime for one command.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")
}

/// A client of the running control, started if there is none.
pub(super) async fn connect_or_start(settings: &Settings) -> anyhow::Result<ApiClient> {
    let deadline = tokio::time::Instant::now() + DYING;
    loop {
        match ApiClient::connect(&settings.run_dir).await {
            Ok((client, hello)) => {
                if hello.state_dir != settings.state_dir {
                    output::warning(&format!(
                        "the running supervisor uses the state directory `{}`, not `{}`",
                        hello.state_dir.display(),
                        settings.state_dir.display()
                    ));
                }
                return Ok(client);
            }
            Err(error) if error.is_not_running() => return start(settings).await,
            // It was there a moment ago and is ending: the next look finds none, or its successor.
            Err(ClientError::Lost(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(START_POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Calls until there is an answer: control may die before it gives one, and the next one is asked again. For what does no
/// harm when it is asked for twice: a stop, but no start, which would run a job that has ended meanwhile once more. A control that dies each time is not asked for ever.
pub(super) async fn call_again<T: DeserializeOwned>(
    settings: &Settings,
    client: &ApiClient,
    path: &str,
    request: &(impl Serialize + Sync),
) -> anyhow::Result<T> {
    again(settings, async |_| client.call(Method::POST, path, request).await).await
}

/// The same for any call, which is told how many controls have died of it already.
pub(super) async fn again<T>(
    settings: &Settings,
    call: impl AsyncFn(u32) -> Result<T, ClientError>,
) -> anyhow::Result<T> {
    let mut died = 0;
    loop {
        match call(died).await {
            Err(ClientError::Lost(_) | ClientError::NotRunning { .. }) if died + 1 < ATTEMPTS => {
                died += 1;
                connect_or_start(settings).await?;
            }
            answer => return Ok(answer?),
        }
    }
}

/// A client of the running control, or `None` when there is none.
pub(super) async fn connect(settings: &Settings) -> anyhow::Result<Option<ApiClient>> {
    match ApiClient::connect(&settings.run_dir).await {
        Ok((client, _)) => Ok(Some(client)),
        Err(error) if error.is_not_running() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Starts control in the background as the successor of the one in this process, which ends right after: what only
/// one control may hold is free by then, and the successor waits for it.
pub(super) fn hand_over(settings: &Settings) -> anyhow::Result<()> {
    spawn(settings, &settings.run_dir.join("control.log")).map(drop)
}

/// Starts control in the background and waits until it answers.
pub(super) async fn start(settings: &Settings) -> anyhow::Result<ApiClient> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "no supervisor runs with the run directory `{}`, and only root can start one",
            settings.run_dir.display()
        );
    }
    let log_path = settings.run_dir.join("control.log");
    let child = spawn(settings, &log_path)?;
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        match ApiClient::connect(&settings.run_dir).await {
            Ok((client, _)) => return Ok(client),
            Err(ClientError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(ended) = child.try_wait()? {
            // Another caller may have started one at the same moment; theirs holds the lock.
            if let Ok((client, _)) = ApiClient::connect(&settings.run_dir).await {
                return Ok(client);
            }
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let last =
                log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            bail!("could not start the supervisor (exit code {}): {last}", ended.code());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the supervisor does not answer; its log is `{}`", log_path.display());
        }
        tokio::time::sleep(START_POLL).await;
    }
}

fn spawn(settings: &Settings, log_path: &std::path::Path) -> anyhow::Result<RoleChild> {
    let run_dir = settings.run_dir.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&settings.run_dir)
        .with_context(|| format!("could not create the run directory `{run_dir}`"))?;
    let log: File = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log_path)
        .with_context(|| format!("could not open `{}`", log_path.display()))?;
    let exe = SealedExe::of_current().context("could not copy the executable into memory")?;
    // Its log is a file, so it may say more than a command does by default.
    let level = if settings.log.level.starts_with("warn") { "info" } else { &settings.log.level };
    let format = match settings.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let command =
        RoleCommand::new(["daemon", "--on-demand", "--log-level", level, "--log-format", format]);
    let mut command = command.log_to(&log)?;
    command.args.extend(["--state-dir".into(), settings.state_dir.clone().into_os_string()]);
    command.args.extend(["--run-dir".into(), settings.run_dir.clone().into_os_string()]);
    let bounds =
        [("--disk-budget", settings.disk.budget), ("--disk-reserve", settings.disk.reserve)];
    for (flag, bytes) in bounds {
        command.args.extend(bytes.into_iter().flat_map(|n| [flag.into(), n.to_string().into()]));
    }
    if let Some(group) = settings.socket_group {
        command.args.extend(["--socket-group".into(), group.to_string().into()]);
    }
    command.spawn(&exe).context("could not start the supervisor in the background")
}
