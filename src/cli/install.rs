//! `supervisor install`: places this program, its units and its documents on a host or below another root.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::completion::{self, Shell};
use super::settings::{Settings, absolute};
use super::{man, output};
use crate::install::{
    Change, ChangeKind, Content, Item, SERVICE, SHUTDOWN_SERVICE, UnitOptions, place, record_path,
    units,
};

const EXAMPLES: &str = "\
Examples:
  supervisor install --now                     on this host, and start it
  supervisor install --root ./image            into the root file system of an image
  supervisor --state-dir /data/supervisor install

With systemd, `supervisor.service` runs `supervisor daemon` from now on, and `supervisor-shutdown.service` stops all
services in order when the host shuts down. Run it again to upgrade: what runs goes on.";

/// `install`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InstallArguments {
    /// Start the units, too; a running supervisor is replaced and its services go on
    #[arg(long)]
    now: bool,
    /// Folder for program and documents
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Leave the program where it is now instead of copying it
    #[arg(long)]
    in_place: bool,
    /// Write below this root instead of on this host, and start nothing
    #[arg(long, value_name = "DIR", conflicts_with = "now")]
    root: Option<PathBuf>,
    /// Whether units for systemd are written
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    systemd: SystemdArgument,
}

/// `--systemd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SystemdArgument {
    /// Where systemd is.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

pub(super) fn run(settings: &Settings, arguments: &InstallArguments) -> anyhow::Result<ExitCode> {
    let root = root(arguments.root.as_deref())?;
    let prefix = absolute(&arguments.prefix)?;
    let running = std::env::current_exe().context("could not find this program")?;
    let program = if arguments.in_place { running.clone() } else { prefix.join("bin/supervisor") };
    let with_units = match arguments.systemd {
        SystemdArgument::Always => true,
        SystemdArgument::Never => false,
        SystemdArgument::Auto => has_systemd(&root),
    };
    let mut items = Vec::new();
    if program != running || root != Path::new("/") {
        // Of the running program, also when its file was replaced or removed meanwhile.
        let bytes = std::fs::read("/proc/self/exe").context("could not read this program")?;
        items.push(Item { path: program.clone(), content: Content::Program(bytes) });
    }
    if with_units {
        items.extend(units(&UnitOptions {
            program: program.clone(),
            state_dir: settings.state_dir.clone(),
            run_dir: settings.run_dir.clone(),
            socket_group: settings.socket_group,
        })?);
    }
    items.extend(documents(&prefix)?);
    let changes = place(&root, &record_path(&prefix), &items)?;
    tell(&root, &changes);
    if !with_units {
        output::note(&format!(
            "there is no systemd here, so nothing starts it at boot: have the host's init run `{} daemon` and start it \
             again when it ends",
            program.display()
        ));
    } else if root == Path::new("/") {
        start(arguments, &changes)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Completion scripts where each shell looks for them, and manual pages.
fn documents(prefix: &Path) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for shell in Shell::ALL {
        let folder = match shell {
            Shell::Bash => "share/bash-completion/completions",
            Shell::Zsh => "share/zsh/site-functions",
            Shell::Fish => "share/fish/vendor_completions.d",
        };
        let mut script = Vec::new();
        completion::write(shell, &mut script)?;
        let path = prefix.join(folder).join(shell.file_name());
        items.push(Item { path, content: Content::File(script) });
    }
    let pages = tempfile::tempdir().context("could not make a temporary folder")?;
    for name in man::write(pages.path()).context("could not write the manual pages")? {
        let page = std::fs::read(pages.path().join(&name))
            .with_context(|| format!("could not read the manual page `{name}`"))?;
        let path = prefix.join("share/man/man1").join(name);
        items.push(Item { path, content: Content::File(page) });
    }
    Ok(items)
}

fn start(arguments: &InstallArguments, changes: &[Change]) -> anyhow::Result<()> {
    if !systemd_runs() {
        return Ok(());
    }
    systemctl(["daemon-reload"])?;
    if arguments.now {
        // A restart, because an older one may run; the units leave containers alone.
        systemctl(["restart", SERVICE])?;
        systemctl(["start", SHUTDOWN_SERVICE])?;
        output::note(&format!("{SERVICE} runs"));
    } else if changes.iter().all(|change| change.kind == ChangeKind::Unchanged) {
        output::note("it was installed already");
    } else {
        output::note(&format!(
            "it starts with the next boot; now: `systemctl restart {SERVICE}` and `systemctl start \
             {SHUTDOWN_SERVICE}` (services that run go on)"
        ));
    }
    Ok(())
}

/// The root to write below; on the host itself only root may.
pub(super) fn root(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    match named {
        Some(root) => {
            std::fs::canonicalize(root).with_context(|| format!("there is no `{}`", root.display()))
        }
        None if rustix::process::geteuid().is_root() => Ok(PathBuf::from("/")),
        None => bail!("only root can change what is installed on this host"),
    }
}

/// Says what was done.
pub(super) fn tell(root: &Path, changes: &[Change]) {
    for change in changes {
        let path = root.join(change.path.strip_prefix("/").unwrap_or(&change.path));
        let path = path.display();
        match change.kind {
            ChangeKind::Placed => output::line(&format!("placed {path}")),
            ChangeKind::Replaced => output::line(&format!("replaced {path}")),
            ChangeKind::Unchanged => output::line(&format!("unchanged {path}")),
            ChangeKind::Removed => output::line(&format!("removed {path}")),
            ChangeKind::Kept => output::warning(&format!(
                "`{path}` stays, because it was changed since it was installed"
            )),
        }
    }
}

fn has_systemd(root: &Path) -> bool {
    if root == Path::new("/") {
        return systemd_runs();
    }
    ["usr/lib/systemd/systemd", "lib/systemd/systemd"].iter().any(|path| root.join(path).exists())
}

/// Whether systemd is this host's init, as sd_booted(3) decides it.
pub(super) fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Runs systemctl, whose complaints are shown.
pub(super) fn systemctl<A: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = A>,
) -> anyhow::Result<()> {
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null());
    let status = command.status().context("could not run systemctl")?;
    if !status.success() {
        let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!("`systemctl {}` failed", words.join(" "));
    }
    Ok(())
}
