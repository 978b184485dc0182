//! The validated model: what the user wants, with every text understood and no default filled in.
//!
//! Fields that the user left out are `None` here; methods give the value that then holds. What a container was made
//! from is compared through [`Fingerprint`](super::Fingerprint), so a changed default changes no fingerprint.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Dependency, Dns, Extensions, ExtraHost, FirstProcess, Grant, Healthcheck, Kernel, Limits,
    Logging, Port, Privileges, ProjectName, ServiceName, ServiceNetwork, Signal,
};
use crate::image::ImageRef;

/// A services file that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Of the file's `name:`, or what the caller gave.
    pub project: ProjectName,
    /// At least one.
    pub services: BTreeMap<ServiceName, Service>,
}

/// One service as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its key in the file.
    pub name: ServiceName,
    /// What it runs; the path of a layout is absolute.
    pub image: ImageRef,
    /// Replaces the image's command; empty: no command. `None`: the image's, or nothing if `entrypoint` is given.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entrypoint *and* drops the image's command; empty: no entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Added to the image's variables. A value of `None` takes the variable away from the image's: it was named
    /// without a value, and the environment given to the parser has none.
    pub environment: BTreeMap<String, Option<String>>,
    /// Absolute path in the container. `None`: the image's, else `/`.
    pub working_dir: Option<String>,
    /// `USER[:GROUP]`, names or ids, not looked up yet. `None`: the image's, else root.
    pub user: Option<String>,
    /// In the order of the file; targets are unique.
    pub volumes: Vec<Bind>,
    /// Whether the root file system is mounted read-only.
    pub read_only: Option<bool>,
    /// What happens after an exit; not part of the fingerprint, since it is the planner's and not the container's.
    pub restart: Option<RestartPolicy>,
    /// Asks the program to end. `None`: the image's, else SIGTERM.
    pub stop_signal: Option<Signal>,
    /// From the stop signal to SIGKILL.
    pub stop_grace_period: Option<Duration>,
    /// What the container sees in place of networks of the file.
    pub network_mode: Option<NetworkMode>,
    /// The networks that it is in, its way out first; that of its project if it names none. Empty with a
    /// `network_mode`.
    pub networks: Vec<ServiceNetwork>,
    /// A name that others find it by; not part of the fingerprint, since versions that accepted it did nothing with it.
    pub container_name: Option<String>,
    /// Where its output is kept.
    pub logging: Option<Logging>,
    /// Named volumes; targets are unique among these and the others.
    pub named_volumes: Vec<NamedVolume>,
    /// Other images, seen in the container; targets are unique among these and all that is mounted.
    pub image_volumes: Vec<ImageVolume>,
    /// Configs and secrets; targets are unique among these and all that is mounted.
    pub grants: Vec<Grant>,
    /// Folders in memory; targets are unique among these and the volumes.
    pub tmpfs: Vec<Tmpfs>,
    /// Its own host name. `None`: the host's, or the container's if it has a network of its own.
    pub hostname: Option<String>,
    /// Lines for `/etc/hosts`.
    pub extra_hosts: Vec<ExtraHost>,
    /// Who resolves names.
    pub dns: Dns,
    /// What it may use of the host.
    pub limits: Limits,
    /// What its processes are allowed to do.
    pub privileges: Privileges,
    /// What of the host's kernel it is given.
    pub kernel: Kernel,
    /// How its first process begins.
    pub first: FirstProcess,
    /// Ports that can be reached from outside.
    pub ports: Vec<Port>,
    /// Which services come first; not part of the fingerprint, since it is the planner's and not the container's.
    pub depends_on: BTreeMap<ServiceName, Dependency>,
    /// How its health is found out.
    pub healthcheck: Option<Healthcheck>,
    /// Our own words.
    pub extensions: Extensions,
}

impl Service {
    /// Grace period of a service that names none, as in compose.
    pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

    /// The images that it needs: its own first, then those that are mounted in it, each once.
    pub fn images(&self) -> impl Iterator<Item = &ImageRef> {
        let mounted = self.image_volumes.iter().map(|volume| &volume.image);
        let mut seen = std::collections::BTreeSet::new();
        std::iter::once(&self.image).chain(mounted).filter(move |image| seen.insert(*image))
    }

    /// The restart policy that holds: `no` unless the file says otherwise, as in compose.
    #[must_use]
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart.unwrap_or_default()
    }

    /// The grace period that holds.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.stop_grace_period.unwrap_or(Self::DEFAULT_GRACE)
    }

    /// What happens when it was healthy and is not any more.
    #[must_use]
    pub fn on_unhealthy(&self) -> super::UnhealthyAction {
        self.extensions.on_unhealthy.unwrap_or(super::UnhealthyAction::Restart)
    }

    /// Whether the file says anything about the network that it has. Else it is what this version gives: the
    /// project's own.
    #[must_use]
    pub fn asks_for_network(&self) -> bool {
        self.network_mode.is_some() || self.networks.iter().any(|network| network.is_asked)
    }

    /// Publishes ports that name no address where `ports_bind` says. One in the host's network says itself where it
    /// listens.
    pub(super) fn bind_ports(&mut self) {
        let Some(address) = self.extensions.ports_bind else { return };
        if self.network_mode != Some(NetworkMode::Host) {
            for port in &mut self.ports {
                port.host_ip = port.host_ip.or(Some(address));
            }
        }
    }

    /// Whether the root file system is read-only; it is writable unless the file says otherwise.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only.unwrap_or(false)
    }
}

/// A path of the host that is seen in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host. As under Docker, a missing one is created as a directory before the start.
    pub source: PathBuf,
    /// Absolute, normalized path in the container.
    pub target: String,
    /// What the container may do with it.
    pub access: Access,
}

/// A volume of this host that outlives containers, mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedVolume {
    /// Its name on this host: that of the project, `_`, and the key of the file, unless the file gives another. It can
    /// be the name of a folder.
    pub volume: String,
    /// Absolute, normalized path in the container.
    pub target: String,
    /// What the container may do with it.
    pub access: Access,
    /// Whether it gets the image's files.
    pub copy_up: CopyUp,
}

/// Another image, seen in the container; nothing can be written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// The image.
    pub image: ImageRef,
    /// Absolute, normalized path in the container.
    pub target: String,
    /// The folder or file of the image that is seen, relative and without `..`; all of it where `None`.
    pub subpath: Option<String>,
}

/// Whether a volume gets what the image has where it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyUp {
    /// While it is empty.
    IfEmpty,
    /// Never (`nocopy`).
    Never,
}

/// A folder of the container that is memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute, normalized path in the container.
    pub target: String,
    /// Most bytes in it. `None`: half of the host's memory.
    pub size: Option<u64>,
    /// Its permission bits. `None`: 01777.
    pub mode: Option<u32>,
    /// What the container may do with it.
    pub access: Access,
}

/// Whether something can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading only (`:ro`).
    ReadOnly,
    /// Reading and writing (`:rw`, the default).
    ReadWrite,
}

/// What happens when a container's program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays exited.
    #[default]
    No,
    /// It is started again, however it ended.
    Always,
    /// It is started again unless it ended with code 0, at most `max` times after the last request of the user.
    OnFailure {
        /// No limit when absent.
        max: Option<u32>,
    },
    /// As `always`; a manual stop holds for both here until the user asks for a start.
    UnlessStopped,
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::Always => f.write_str("always"),
            Self::OnFailure { max: None } => f.write_str("on-failure"),
            Self::OnFailure { max: Some(max) } => write!(f, "on-failure:{max}"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

/// The network that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkMode {
    /// The host's own.
    Host,
    /// A namespace with nothing but a loopback.
    None,
    /// A namespace on the bridge that all such services of this host share.
    Bridge,
    /// That of the container of another service, which comes first and which it is restarted with.
    Service(ServiceName),
    /// That of a container, by its name.
    Container(String),
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::None => f.write_str("none"),
            Self::Bridge => f.write_str("bridge"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Container(name) => write!(f, "container:{name}"),
        }
    }
}
