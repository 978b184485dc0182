//! What is meant by what was typed, and the only place that reads the environment and the working directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::host::{FeatureName, Forced};
use crate::spec::Unsupported;
use crate::supervise::{self, DiskLimits};
use crate::sys::mount::MountCall;
use crate::sys::notify::{Notifier, received_descriptors};
use crate::telemetry::{LogFormat, LogOptions};

use super::args::{GlobalArguments, LogFormatArgument};

/// Where containerd, Docker and Podman have what they know of registries.
const HOST_TREES: [&str; 3] =
    ["/etc/containerd/certs.d", "/etc/docker/certs.d", "/etc/containers/certs.d"];
const REGISTRIES_CONF: [&str; 2] =
    ["/etc/containers/registries.conf", "/usr/share/containers/registries.conf"];

/// Settings of one run of the program.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Absolute; exists only after control has run.
    pub(super) state_dir: PathBuf,
    /// Absolute.
    pub(super) run_dir: PathBuf,
    /// Who besides root may use the API socket of a control that is started.
    pub(super) socket_group: Option<u32>,
    /// What a control that is started may occupy.
    pub(super) disk: DiskLimits,
    /// As typed, to hand to a background control.
    pub(super) log: LogOptions,
    /// docker's `config.json`, where registry credentials are.
    pub(super) docker_config: Option<PathBuf>,
    /// Folders with a folder for each registry.
    pub(super) host_trees: Vec<PathBuf>,
    /// Podman's files on registries, the first one first.
    pub(super) registries_conf: Vec<PathBuf>,
    /// Environment of the caller.
    pub(super) environment: BTreeMap<String, String>,
    /// Where the caller is.
    pub(super) working_dir: PathBuf,
    /// What was said of services files before the command, or for all commands.
    pub(super) choice: FileChoice,
}

/// Which services files are meant, as typed.
#[derive(Debug, Clone, Default)]
pub(super) struct FileChoice {
    pub(super) files: Vec<PathBuf>,
    pub(super) project_name: Option<String>,
    pub(super) project_directory: Option<PathBuf>,
    pub(super) env_files: Vec<PathBuf>,
    pub(super) profiles: Vec<String>,
    /// What becomes of what this version does not do.
    pub(super) unsupported: Unsupported,
}

impl Settings {
    /// Completes the global flags from the environment and the working directory.
    pub(super) fn new(global: &GlobalArguments, default_level: &str) -> anyhow::Result<Self> {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let docker_config = environment
            .get("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(environment.get("HOME")?).join(".docker")))
            .map(|folder| folder.join("config.json"));
        let host_trees = match &*global.hosts_dir {
            [] => HOST_TREES.into_iter().map(PathBuf::from).collect(),
            given => given.iter().map(|path| absolute(path)).collect::<anyhow::Result<_>>()?,
        };
        let registries_conf = match environment.get("CONTAINERS_REGISTRIES_CONF") {
            Some(path) => vec![absolute(Path::new(path))?],
            None => REGISTRIES_CONF.into_iter().map(PathBuf::from).collect(),
        };
        Ok(Self {
            state_dir: absolute(&global.state_dir)?,
            run_dir: absolute(&global.run_dir)?,
            socket_group: global.socket_group.as_deref().map(group_id).transpose()?,
            disk: global.disk.limits(),
            log: LogOptions {
                level: global.log_level.clone().unwrap_or_else(|| default_level.to_owned()),
                format: match global.log_format {
                    LogFormatArgument::Text => LogFormat::Text,
                    LogFormatArgument::Json => LogFormat::Json,
                },
            },
            docker_config,
            host_trees,
            registries_conf,
            environment,
            // One that was removed has no name; then only absolute paths are found.
            working_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            choice: FileChoice {
                files: global.files.clone(),
                project_name: global.project_name.clone(),
                project_directory: global.project_directory.clone(),
                env_files: global.env_file.clone(),
                profiles: global.profile.clone(),
                unsupported: match global.allow_unsupported {
                    true => Unsupported::LeaveOut,
                    false => Unsupported::Reject,
                },
            },
        })
    }
}

impl Settings {
    /// The instance of the run directory.
    pub(super) fn instance(&self) -> anyhow::Result<String> {
        let resolved = std::fs::canonicalize(&self.run_dir).with_context(|| {
            format!("no supervisor has run with the run directory `{}`", self.run_dir.display())
        })?;
        Ok(supervise::instance_of(&resolved))
    }

    /// Features of the host that are not used: the names in `SUPERVISOR_DISABLE`, and two with a variable of their
    /// own, which is `auto` (or nothing) or `off`.
    pub(super) fn forced(&self) -> anyhow::Result<Forced> {
        let variable = |name: &str| self.environment.get(name).map_or("", String::as_str);
        let mut forced = Forced::parse(variable("SUPERVISOR_DISABLE"))
            .context("`SUPERVISOR_DISABLE` is not a list of features")?;
        let own = [
            ("SUPERVISOR_FUSE", FeatureName::Fuse),
            ("SUPERVISOR_PASSTHROUGH", FeatureName::Passthrough),
        ];
        for (name, feature) in own {
            match variable(name) {
                "" | "auto" => {}
                "off" => forced.insert(feature),
                other => bail!("`{name}` is `{other}`; expected `auto` or `off`"),
            }
        }
        Ok(forced)
    }

    /// With which call this process mounts overlays.
    pub(super) fn mount_call(&self) -> anyhow::Result<MountCall> {
        let forced = self.forced()?;
        let off = [FeatureName::LowerdirPlus, FeatureName::MountApi];
        let is_off = off.into_iter().any(|name| forced.contains(name));
        Ok(if is_off { MountCall::Legacy } else { MountCall::Best })
    }
}

/// What the service manager that started this process said.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    /// Where it listens.
    pub(super) notifier: Option<Arc<Notifier>>,
    /// How often it must hear that all is well, if that was meant for this process.
    pub(super) watchdog: Option<Duration>,
    /// What it kept of the process before.
    pub(super) descriptors: Vec<(String, Arc<OwnedFd>)>,
}

impl ServiceManager {
    /// Takes what the service manager passed to this process; once, because descriptors are taken.
    pub(super) fn take(environment: &BTreeMap<String, String>) -> Self {
        let own = |variable: &str| {
            environment.get(variable).is_some_and(|pid| *pid == std::process::id().to_string())
        };
        let number = |variable: &str| environment.get(variable)?.parse::<u64>().ok();
        let address = environment.get("NOTIFY_SOCKET").filter(|address| !address.is_empty());
        let notifier = address.and_then(|address| match Notifier::new(OsStr::new(address)) {
            Ok(notifier) => Some(Arc::new(notifier)),
            Err(error) => {
                tracing::warn!(address, error = %error, "the service manager is not told anything");
                None
            }
        });
        // Without WATCHDOG_PID it is meant for whoever has the variable.
        let watched = !environment.contains_key("WATCHDOG_PID") || own("WATCHDOG_PID");
        let watchdog = number("WATCHDOG_USEC")
            .filter(|interval| watched && *interval > 0)
            .map(Duration::from_micros);
        let count = number("LISTEN_FDS").filter(|_| own("LISTEN_PID")).unwrap_or_default();
        let names = environment.get("LISTEN_FDNAMES").map_or("", String::as_str);
        let descriptors = received_descriptors(u32::try_from(count).unwrap_or(u32::MAX), names)
            .into_iter()
            .map(|(name, descriptor)| (name, Arc::new(descriptor)))
            .collect();
        Self { notifier, watchdog, descriptors }
    }
}

/// The number of a group that is given by name or number. Only `/etc/group` is asked: a program without a C library of
/// its own cannot ask what other sources the host is set up to have.
fn group_id(group: &str) -> anyhow::Result<u32> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let path = "/etc/group";
    let text = std::fs::read_to_string(path).with_context(|| format!("could not read `{path}`"))?;
    let id = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    });
    id.with_context(|| {
        format!("there is no group `{group}` in `{path}`; a number is taken as it is")
    })
}

/// `path` below the working directory, without touching the file system: it may not exist yet.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("`{}` is not a usable path", path.display()))
}
