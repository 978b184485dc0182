//! `supervisor uninstall`: removes what `install` placed, and on request everything that runs and is stored.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use hyper::Method;
use rustix::process::Signal;

use super::install::{root, systemctl, systemd_runs, tell};
use super::settings::{Settings, absolute};
use super::{connect, output};
use crate::api::{ApiClient, StopRequest};
use crate::install::{SERVICE, SHUTDOWN_SERVICE, UNIT_FOLDER, record_path, remove};
use crate::supervise::instance_of;
use crate::sys::{cgroup, mount, process};

/// What was told to end has ended by then.
const ENDING: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// `uninstall`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --now nothing that runs is stopped: services go on, and so does the supervisor until the host \
restarts."
)]
pub(super) struct UninstallArguments {
    /// Take down all projects first, and end the supervisor
    #[arg(long)]
    now: bool,
    /// Remove images, logs, records and writable layers, too; volumes stay
    #[arg(long)]
    purge: bool,
    /// As it was installed
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// As it was installed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["now", "purge"])]
    root: Option<PathBuf>,
}

pub(super) fn run(settings: &Settings, arguments: &UninstallArguments) -> anyhow::Result<ExitCode> {
    let root = root(arguments.root.as_deref())?;
    let record = record_path(&absolute(&arguments.prefix)?);
    let host = root == Path::new("/");
    if host && arguments.now {
        connect::runtime()?.block_on(end_everything(settings))?;
    }
    let runs = host && !traces(settings)?.is_empty();
    if runs && arguments.purge {
        bail!("services or a supervisor still run, and need what would be removed; add `--now`");
    }
    let removed = remove(&root, &record);
    if let Ok(changes) = &removed {
        tell(&root, changes);
    }
    if host && systemd_runs() {
        systemctl(["daemon-reload"])?;
    }
    if arguments.purge {
        purge(&settings.state_dir)?;
    }
    if host && !runs {
        purge(&settings.run_dir)?;
    }
    if runs {
        output::note("what runs goes on; `uninstall --now` would have ended it");
    }
    // What else was asked for has happened by now.
    removed?;
    Ok(ExitCode::SUCCESS)
}

/// Takes down all projects and ends control, and sees that nothing is left of them.
async fn end_everything(settings: &Settings) -> anyhow::Result<()> {
    if settings.state_dir.exists() && settings.run_dir.exists() {
        // One is started if none runs: it finds what runs, and ends that.
        let client = connect::connect_or_start(settings).await?;
        let projects: Vec<String> = client.call(Method::GET, "/v1/projects", &()).await?;
        for project in projects {
            let path = format!("/v1/projects/{project}/down");
            let gone: Vec<String> =
                client.call(Method::POST, &path, &StopRequest::default()).await?;
            output::became(&gone, "Removed");
        }
    }
    if systemd_runs() {
        for unit in [SHUTDOWN_SERVICE, SERVICE] {
            if Path::new(UNIT_FOLDER).join(unit).exists() {
                systemctl(["stop", unit])?;
            }
        }
    }
    let deadline = tokio::time::Instant::now() + ENDING;
    if let Ok((_, hello)) = ApiClient::connect(&settings.run_dir).await {
        let pid = i32::try_from(hello.pid).context("the supervisor has no process id")?;
        if let Ok(control) = process::open_pidfd(pid) {
            process::send_signal(control.as_fd(), Signal::TERM.as_raw())
                .context("could not end the supervisor")?;
        }
    }
    loop {
        let left = traces(settings)?;
        if left.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("nothing was uninstalled, because this is left: {}", left.join(", "));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What is on the host of this instance, in words.
fn traces(settings: &Settings) -> anyhow::Result<Vec<String>> {
    // Without a run directory nothing has run since the boot.
    let Ok(run_dir) = std::fs::canonicalize(&settings.run_dir) else { return Ok(Vec::new()) };
    let mut left = Vec::new();
    if is_locked(&run_dir)? {
        left.push(format!("the supervisor of `{}`", run_dir.display()));
    }
    let group = format!("/supervisor-{}", instance_of(&run_dir));
    let pids = cgroup::processes(&group).context("could not list the control groups")?;
    left.extend(pids.iter().map(|pid| format!("process {pid} in the control group `{group}`")));
    if pids.is_empty() {
        // Empty groups are nobody's any more.
        let groups = cgroup::remove(&group).context("could not list the control groups")?;
        left.extend(groups.iter().map(|path| format!("control group `{}`", path.display())));
    }
    let mounts = mount::mounts().context("could not list mounts")?;
    let below = mounts.iter().filter(|mount| mount.mount_point.starts_with(&run_dir));
    left.extend(below.map(|mount| format!("mount `{}`", mount.mount_point.display())));
    Ok(left)
}

/// Whether a control has the run directory.
fn is_locked(run_dir: &Path) -> anyhow::Result<bool> {
    use rustix::fs::FlockOperation;
    let path = run_dir.join("control.lock");
    let Ok(lock) = std::fs::File::open(&path) else { return Ok(false) };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("could not look at `{}`", path.display())),
    }
}

/// Removes a directory of ours and all that is in it; never what is mounted there.
fn purge(directory: &Path) -> anyhow::Result<()> {
    let Ok(directory) = std::fs::canonicalize(directory) else { return Ok(()) };
    let inside = |path: &Path| path.starts_with(&directory) && path != directory;
    let mounts = mount::mounts().context("could not list mounts")?;
    if let Some(mount) = mounts.iter().find(|mount| inside(&mount.mount_point)) {
        bail!(
            "`{}` stays, because `{}` is mounted in it",
            directory.display(),
            mount.mount_point.display()
        );
    }
    // Somebody may have named a directory that holds other things too: only what is known to be ours goes.
    let entries = std::fs::read_dir(&directory)
        .with_context(|| format!("could not read `{}`", directory.display()))?;
    let mut others = Vec::new();
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let failed = || format!("could not remove `{}`", path.display());
        if !is_ours(&name.to_string_lossy()) {
            others.push(path.display().to_string());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path).with_context(failed)?;
        } else {
            std::fs::remove_file(&path).with_context(failed)?;
        }
    }
    if others.is_empty() {
        match std::fs::remove_dir(&directory) {
            // A mount point: empty now, and not ours to unmount.
            Err(error) if error.kind() != std::io::ErrorKind::ResourceBusy => {
                return Err(error)
                    .with_context(|| format!("could not remove `{}`", directory.display()));
            }
            _ => output::line(&format!("removed {}", directory.display())),
        }
    } else {
        output::warning(&format!(
            "`{}` stays, because this in it is not ours: {}",
            directory.display(),
            others.join(", ")
        ));
    }
    Ok(())
}

/// Whether it is one of ours, or what became of one: a previous copy, or what was set aside.
fn is_ours(name: &str) -> bool {
    let became = |rest: &str| {
        rest.is_empty()
            || rest == ".prev"
            || rest.starts_with(".unreadable-")
            || rest.starts_with(".version-")
    };
    OURS.iter().any(|own| name.strip_prefix(own).is_some_and(became))
}

/// What the state directory and the run directory hold.
const OURS: [&str; 20] = [
    "api.sock",
    "blobs",
    "containers",
    "control.lock",
    "control.log",
    "events",
    "files",
    "filters",
    "images",
    "layers",
    "lazy",
    "lazy-xattr",
    "lock",
    "logs",
    "monitor",
    "mounts",
    "network",
    "services",
    "set-aside",
    "version",
];
