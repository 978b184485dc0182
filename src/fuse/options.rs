//! Settings of the lazy side of one run directory, as control gives them and as roles receive them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tree::OpaqueXattr;
use crate::registry::ClientOptions;
use crate::version::versions;

/// Whether a feature of the kernel is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// When the kernel has it.
    #[default]
    Probe,
    /// Never, as on a kernel that lacks it.
    Off,
}

impl Feature {
    pub(super) fn is_wanted(self) -> bool {
        self == Self::Probe
    }
}

/// What a connection answers when extended attributes are asked for; `fuse` says why there are two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Xattrs {
    /// What the layer says.
    #[default]
    Served,
    /// That there are none, once for all layers. Layers that have some are not mounted.
    Absent,
}

/// The connections that a run directory can have, each with keeper, worker and files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Side {
    /// The one that is always there.
    #[default]
    Main,
    /// That of layers with extended attributes, where the main one does not answer for these.
    Marked,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Main, Self::Marked];

    /// Its directory below the run directory.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::Main => "lazy",
            Self::Marked => "lazy-xattr",
        }
    }

    /// Whether `run_dir` has a connection of this side, or had one that nobody took down.
    #[must_use]
    pub fn is_there(self, run_dir: &Path) -> bool {
        run_dir.join(self.directory()).join(super::session::FILE).exists()
    }
}

/// Settings of one connection of a run directory.
#[derive(Debug, Clone)]
pub struct LazyOptions {
    /// Instance id; names the mount, and is the proof that a mount is ours.
    pub instance: String,
    /// Which connection.
    pub side: Side,
    /// What a new connection answers when extended attributes are asked for. One that lives goes on as it began.
    pub xattrs: Xattrs,
    /// Control group of keeper and worker (`/supervisor-<instance>/lazy`); theirs is the caller's without it.
    pub cgroup: Option<String>,
    /// The whole of it: off as on a host without FUSE.
    pub fuse: Feature,
    /// Requests are sent again after a take-over. Without it the death of the worker ends the connection.
    pub resend: Feature,
    /// Complete files are read by the kernel itself.
    pub passthrough: Feature,
    /// Take the worker's rights away.
    pub confinement: Feature,
    /// With landlock, as a part of that.
    pub landlock: Feature,
    /// With a system-call filter, as a part of that.
    pub seccomp: Feature,
    /// Mount with the system calls of Linux 5.2.
    pub mount_api: Feature,
    /// How opaque directories are marked.
    pub opaque: OpaqueXattr,
    /// How the worker reaches registries.
    pub registry: ClientOptions,
    /// How long a read waits for a source that does not answer, before it is an I/O error. A process that waits for
    /// a read cannot be killed, so this also bounds how long a container may take to stop.
    pub read_deadline: Duration,
    /// What the content of lazy layers may occupy on disk; as much as there is without it. A worker that runs keeps to
    /// what it was started with.
    pub cache_bytes: Option<u64>,
    /// Bytes of the disk that content of lazy layers leaves free.
    pub reserve_bytes: u64,
    /// Log directives of keeper and worker.
    pub log_level: String,
    /// How long a keeper may take to serve.
    pub start_timeout: Duration,
    /// How long a worker that shows no sign of life is waited for before it is replaced. One that computes or waits
    /// for a disk gets three times as long.
    pub worker_patience: Duration,
    /// What the caller's build is called. A keeper and a worker of another build are replaced, one after the other.
    pub build: String,
}

impl LazyOptions {
    /// The defaults for an instance.
    #[must_use]
    pub fn new(instance: impl Into<String>) -> Self {
        Self {
            instance: instance.into(),
            side: Side::Main,
            xattrs: Xattrs::Served,
            cgroup: None,
            fuse: Feature::Probe,
            resend: Feature::Probe,
            passthrough: Feature::Probe,
            confinement: Feature::Probe,
            landlock: Feature::Probe,
            seccomp: Feature::Probe,
            mount_api: Feature::Probe,
            opaque: OpaqueXattr::Trusted,
            registry: ClientOptions::default(),
            read_deadline: Duration::from_secs(120),
            cache_bytes: None,
            reserve_bytes: 0,
            log_level: "info".to_owned(),
            start_timeout: Duration::from_secs(30),
            worker_patience: Duration::from_secs(20),
            build: versions().build.to_owned(),
        }
    }
}

/// What keeper and worker are started with; additive, because a keeper starts later workers with what it was given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RoleConfig {
    pub(super) instance: String,
    /// That of the side below the run directory, canonical.
    pub(super) directory: PathBuf,
    pub(super) state_dir: PathBuf,
    #[serde(default)]
    pub(super) cgroup: Option<String>,
    #[serde(default)]
    pub(super) resend: Feature,
    #[serde(default)]
    pub(super) passthrough: Feature,
    #[serde(default)]
    pub(super) confinement: Feature,
    #[serde(default)]
    pub(super) landlock: Feature,
    #[serde(default)]
    pub(super) seccomp: Feature,
    #[serde(default)]
    pub(super) mount_api: Feature,
    #[serde(default)]
    pub(super) opaque: OpaqueXattr,
    #[serde(default)]
    pub(super) xattrs: Xattrs,
    #[serde(default)]
    pub(super) registry: ClientOptions,
    pub(super) read_deadline: Duration,
    #[serde(default)]
    pub(super) cache_bytes: Option<u64>,
    #[serde(default)]
    pub(super) reserve_bytes: u64,
    pub(super) log_level: String,
    #[serde(default = "default_patience")]
    pub(super) worker_patience: Duration,
    #[serde(default = "own_build")]
    pub(super) build: String,
    /// Whether the role takes the place of one that lives.
    #[serde(default)]
    pub(super) place: Place,
}

/// Whether a role takes the place of one that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// It must be free.
    #[default]
    Free,
    /// Of one of another build, which goes when this one is ready.
    Succeed,
}

fn default_patience() -> Duration {
    LazyOptions::new("").worker_patience
}

fn own_build() -> String {
    versions().build.to_owned()
}

impl RoleConfig {
    pub(super) fn new(directory: &Path, state_dir: &Path, options: &LazyOptions) -> Self {
        Self {
            instance: options.instance.clone(),
            directory: directory.to_owned(),
            state_dir: state_dir.to_owned(),
            cgroup: options.cgroup.clone(),
            resend: options.resend,
            passthrough: options.passthrough,
            confinement: options.confinement,
            landlock: options.landlock,
            seccomp: options.seccomp,
            mount_api: options.mount_api,
            opaque: options.opaque,
            xattrs: options.xattrs,
            registry: options.registry.clone(),
            read_deadline: options.read_deadline,
            cache_bytes: options.cache_bytes,
            reserve_bytes: options.reserve_bytes,
            log_level: options.log_level.clone(),
            worker_patience: options.worker_patience,
            build: options.build.clone(),
            place: Place::Free,
        }
    }

    /// Log directives; fuser writes a line for every request at debug.
    pub(super) fn log_level(&self) -> String {
        format!("{},fuser=info", self.log_level)
    }

    /// Where the mount is.
    pub(super) fn mount_point(&self) -> PathBuf {
        self.directory.join(MOUNT)
    }

    /// What the mount says it is a mount of.
    pub(super) fn mount_source(&self) -> String {
        format!("supervisor-{}", self.instance)
    }
}

/// The mount point below the lazy directory.
pub(super) const MOUNT: &str = "layers";
