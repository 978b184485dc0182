//! What a monitor needs to run one container: plain, self-contained, versioned data.
//!
//! Control writes it to `$RUN/containers/<id>/launch.json` and the monitor reads it there, also the one that replaces
//! a dead monitor. Nothing in it refers to an image or a services file: those are resolved before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Bounds, CallerStreams, ContainerId, Content, HealthCheck, Network, Process, RunPaths, Signal,
};

/// The version of [`Launch`] that this program writes. Fields are only added, with a default, and kinds of mounts and
/// networks, which an earlier program keeps as they are; a change of meaning raises it.
pub const LAUNCH_VERSION: u32 = 1;

/// Everything about one run of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// [`LAUNCH_VERSION`] of the writer.
    pub version: u32,
    /// Name of the container.
    pub id: ContainerId,
    /// The run directory of the host (`$RUN`).
    pub run_dir: PathBuf,
    /// This container's own directory below `$STATE`; holds `upper`, `work` and a copy of the exit record.
    pub state_dir: PathBuf,
    /// Absolute path of its control group, `/supervisor-<instance>/c/<id>`.
    pub cgroup: String,
    /// Control group of all monitors, `/supervisor-<instance>/monitor`.
    pub monitor_cgroup: String,
    /// What `/` is made of.
    pub rootfs: Rootfs,
    /// What runs.
    pub process: Process,
    /// Host name; also the first line of `/etc/hostname`. With [`Network::Host`] it is the host's own where `None`.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Lines added to `/etc/hosts`.
    #[serde(default)]
    pub extra_hosts: Vec<HostEntry>,
    /// Content of `/etc/resolv.conf`; a copy of the host's where `None`.
    #[serde(default)]
    pub resolv_conf: Option<String>,
    /// Volumes and other mounts, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Whose network it has.
    pub network: Network,
    /// What it may use of the host and what it is allowed to do, where that is not the default.
    #[serde(default, skip_serializing_if = "Bounds::is_default")]
    pub bounds: Bounds,
    /// How it is found out whether its program is well; `None`: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// How it is asked to stop when nobody says otherwise.
    pub stop: StopPolicy,
    /// Whose standard streams it has instead of a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<CallerStreams>,
    /// Where its output goes.
    pub log: LogTarget,
    /// Seconds until a start that has not reached the program is given up; long, because that may have to be fetched.
    #[serde(default = "default_start_timeout")]
    pub start_timeout_secs: u64,
    /// What this host lacks, and the container is therefore started without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<Lack>,
}

/// Something that a host may lack and a container can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// Control groups that can be made: no limits, no rules for devices, and what is in the container is found by its
    /// pid namespace alone.
    Cgroup,
    /// System-call filters.
    Seccomp,
    /// Exit codes of processes that are nobody's children.
    ExitCodes,
    /// One that a newer program knows.
    #[serde(other)]
    Other,
}

fn default_start_timeout() -> u64 {
    600
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Layer directories, lowest first; at least one. They may be on a lazy mount.
    pub layers: Vec<PathBuf>,
    /// What happens to what the container writes.
    pub writable: Writable,
    /// `/` itself is read-only for the container.
    #[serde(default)]
    pub read_only: bool,
    /// Use the mount call of old kernels (tests, and hosts where the newer one misbehaves).
    #[serde(default)]
    pub legacy_mount: bool,
}

/// How long the writable layer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writable {
    /// Kept across clean stops in one boot, without any sync while it runs.
    Volatile,
    /// Kept across crashes of the host too, at the price of syncs.
    Durable,
}

/// One line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// IPv4 or IPv6 address.
    pub address: String,
    /// Names that it has.
    pub names: Vec<String>,
}

/// Something mounted into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// What is there.
    pub kind: MountKind,
    /// The container may not write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A file or directory of the host, with what is mounted below it.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// Make a directory there where nothing is, as compose's short form does; else its absence is an error.
        #[serde(default)]
        create: bool,
    },
    /// A named volume: the folder `data` in a folder of its own, which is made where it is absent.
    Volume {
        /// Absolute path of `data`.
        source: PathBuf,
        /// While it is empty, fill it with what the image has at the target.
        copy: bool,
    },
    /// The layers of an image, lowest first; read-only whatever is said.
    Image {
        /// Absolute paths.
        layers: Vec<PathBuf>,
        /// What of it is seen, relative; all where `None`.
        #[serde(default)]
        subpath: Option<PathBuf>,
    },
    /// A file that is written at the start.
    Content(Content),
    /// An empty file system in memory.
    Tmpfs {
        /// Most bytes that it may hold; half of the memory where `None`.
        #[serde(default)]
        size: Option<u64>,
        /// Permission bits of its root; 01777 where `None`.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// One that a newer program knows: a container that has it is looked after, and not started again.
    #[serde(untagged)]
    Other(serde_json::Value),
}

/// How a container is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPolicy {
    /// The request.
    pub signal: Signal,
    /// How many milliseconds later everything in the container is killed.
    pub grace_ms: u64,
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self { signal: Signal::TERM, grace_ms: 10_000 }
    }
}

/// A log file and how it is rotated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTarget {
    /// The file that is written; older ones get `.1`, `.2` … behind its name. Its directory is made.
    pub path: PathBuf,
    /// Bytes after which it is rotated.
    #[serde(default = "default_max_size")]
    pub max_size: u64,
    /// How many files there are, the current one included.
    #[serde(default = "default_max_files")]
    pub max_files: u32,
    /// What every line carries besides its text, by name.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// What happens when it cannot keep up.
    #[serde(default)]
    pub overflow: LogOverflow,
    /// Whether there is a log at all.
    #[serde(default)]
    pub kept: LogKept,
}

/// What happens to a container whose output comes faster than its log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogOverflow {
    /// It waits.
    #[default]
    Wait,
    /// It goes on; once more than this waits to be written, lines are dropped and counted.
    Drop {
        /// In bytes.
        buffer: u64,
    },
}

/// Whether output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKept {
    /// In files.
    #[default]
    Files,
    /// It is read, so that nobody waits, and thrown away.
    Nothing,
}

fn default_max_size() -> u64 {
    10_000_000
}

fn default_max_files() -> u32 {
    3
}

impl LogTarget {
    /// `path` with the default rotation, 10 MB × 3.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            max_size: default_max_size(),
            max_files: default_max_files(),
            attributes: BTreeMap::new(),
            overflow: LogOverflow::Wait,
            kept: LogKept::Files,
        }
    }
}

/// The control group of a container, as an absolute path.
#[must_use]
pub fn cgroup_of(instance: &str, id: &ContainerId) -> String {
    format!("/supervisor-{instance}/c/{id}")
}

impl Launch {
    /// A launch with defaults for everything that has one.
    #[must_use]
    pub fn new(
        id: ContainerId,
        instance: &str,
        run_dir: PathBuf,
        state_dir: PathBuf,
        rootfs: Rootfs,
        process: Process,
    ) -> Self {
        let log = LogTarget::new(state_dir.join("log.json"));
        Self {
            version: LAUNCH_VERSION,
            cgroup: cgroup_of(instance, &id),
            monitor_cgroup: format!("/supervisor-{instance}/monitor"),
            id,
            run_dir,
            state_dir,
            rootfs,
            process,
            hostname: None,
            extra_hosts: Vec::new(),
            resolv_conf: None,
            mounts: Vec::new(),
            network: Network::Host,
            bounds: Bounds::default(),
            health: None,
            caller: None,
            stop: StopPolicy::default(),
            log,
            start_timeout_secs: default_start_timeout(),
            lacks: Vec::new(),
        }
    }

    /// Whether the container is started without `lack`.
    #[must_use]
    pub fn lacks(&self, lack: Lack) -> bool {
        self.lacks.contains(&lack)
    }

    /// Where everything about this run is.
    #[must_use]
    pub fn paths(&self) -> RunPaths {
        RunPaths::new(&self.run_dir, &self.id)
    }

    /// What is wrong with it, if anything: checked before a process is made for it.
    ///
    /// # Errors
    /// The first problem.
    pub fn check(&self) -> Result<(), LaunchProblem> {
        if self.version > LAUNCH_VERSION {
            return Err(LaunchProblem::Version(self.version));
        }
        let is_newer = |mount: &Mount| matches!(mount.kind, MountKind::Other(_));
        if matches!(self.network, Network::Other(_)) || self.mounts.iter().any(is_newer) {
            return Err(LaunchProblem::Newer);
        }
        if self.process.args.first().is_none_or(String::is_empty) {
            return Err(LaunchProblem::NoCommand);
        }
        if self.rootfs.layers.is_empty() {
            return Err(LaunchProblem::NoLayers);
        }
        let absolute = [&self.run_dir, &self.state_dir, &self.log.path];
        let sources = self.mounts.iter().flat_map(|mount| match &mount.kind {
            MountKind::Bind { source, .. } | MountKind::Volume { source, .. } => {
                std::slice::from_ref(source)
            }
            MountKind::Image { layers, .. } => layers,
            MountKind::Content(content) => content.file.as_slice(),
            MountKind::Tmpfs { .. } | MountKind::Other(_) => &[],
        });
        let targets = self.mounts.iter().map(|mount| &mount.target);
        for path in absolute.into_iter().chain(&self.rootfs.layers).chain(sources).chain(targets) {
            if !path.is_absolute() {
                return Err(LaunchProblem::Relative(path.clone()));
            }
        }
        if let Some(mount) = self.mounts.iter().find(|mount| mount.target == Path::new("/")) {
            return Err(LaunchProblem::OverRoot(mount.target.clone()));
        }
        let texts = self.process.args.iter().chain(&self.process.env);
        if texts.chain(&self.process.cwd).chain(&self.process.user).any(|t| t.contains('\0')) {
            return Err(LaunchProblem::Nul);
        }
        Ok(())
    }
}

/// Why a [`Launch`] cannot be carried out by anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchProblem {
    /// Written by a newer program.
    #[error("launch has version {0}, this program knows up to {LAUNCH_VERSION}")]
    Version(u32),
    /// It has a mount or a network that only a newer program knows.
    #[error("launch has a mount or a network of a newer version of this program")]
    Newer,
    /// Neither image nor service name a program.
    #[error("no command is given, neither by the image nor by the service")]
    NoCommand,
    /// An overlay needs one.
    #[error("root file system has no layers")]
    NoLayers,
    /// A path that depends on a working directory.
    #[error("path `{0}` is not absolute")]
    Relative(PathBuf),
    /// A volume instead of the image.
    #[error("nothing can be mounted at `{0}`")]
    OverRoot(PathBuf),
    /// The kernel takes no such text.
    #[error("command, environment, user or working directory holds a NUL byte")]
    Nul,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn example() -> Launch {
        let process = Process {
            args: vec!["/bin/true".to_owned()],
            env: Vec::new(),
            cwd: None,
            user: None,
            groups: Vec::new(),
            no_new_privileges: false,
            first: Default::default(),
            input: Default::default(),
        };
        let rootfs = Rootfs {
            layers: vec![PathBuf::from("/layers/1")],
            writable: Writable::Volatile,
            read_only: false,
            legacy_mount: false,
        };
        Launch::new(
            "web-1".parse().unwrap(),
            "00c0ffee",
            PathBuf::from("/run/supervisor"),
            PathBuf::from("/state/containers/web-1"),
            rootfs,
            process,
        )
    }

    #[test]
    fn a_launch_survives_being_written() {
        let mut launch = example();
        launch.mounts.push(Mount {
            target: PathBuf::from("/data"),
            kind: MountKind::Tmpfs { size: Some(1), mode: None },
            read_only: false,
        });
        launch.network = Network::Namespace(PathBuf::from("/run/netns/x"));
        let text = serde_json::to_string(&launch).unwrap();
        assert_eq!(serde_json::from_str::<Launch>(&text).unwrap(), launch);
    }

    #[test]
    fn problems_are_found_before_anything_starts() {
        assert_eq!(example().check(), Ok(()));
        let mut launch = example();
        launch.process.args.clear();
        assert_eq!(launch.check(), Err(LaunchProblem::NoCommand));
        let mut launch = example();
        launch.rootfs.layers.clear();
        assert_eq!(launch.check(), Err(LaunchProblem::NoLayers));
        let mut launch = example();
        launch.process.env.push("A=\0".to_owned());
        assert_eq!(launch.check(), Err(LaunchProblem::Nul));
        let mut launch = example();
        launch.log.path = PathBuf::from("log");
        assert!(matches!(launch.check(), Err(LaunchProblem::Relative(_))));
        let mut launch = example();
        launch.version += 1;
        assert!(matches!(launch.check(), Err(LaunchProblem::Version(_))));
    }

    #[test]
    fn what_a_newer_program_mounts_is_kept_as_it_is_and_not_started() {
        let mut text = serde_json::to_value(example()).unwrap();
        text["network"] = serde_json::json!({ "tunnel": { "to": "there" } });
        text["mounts"] = serde_json::json!([
            { "target": "/a", "kind": { "bind": { "source": "/b" } } },
            { "target": "/c", "kind": { "cloud": { "shape": 7 } } },
        ]);
        let launch: Launch = serde_json::from_value(text.clone()).unwrap();
        assert!(matches!(launch.mounts[0].kind, MountKind::Bind { .. }));
        assert!(matches!(launch.mounts[1].kind, MountKind::Other(_)));
        assert_eq!(launch.check(), Err(LaunchProblem::Newer));
        let written = serde_json::to_value(&launch).unwrap();
        assert_eq!(written["network"], text["network"]);
        assert_eq!(written["mounts"][1]["kind"], text["mounts"][1]["kind"]);
        text["network"] = serde_json::json!("host");
        let launch: Launch = serde_json::from_value(text).unwrap();
        assert_eq!((&launch.network, launch.check()), (&Network::Host, Err(LaunchProblem::Newer)));
    }
}
