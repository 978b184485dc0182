//! What control tells about itself: statuses, events, progress. Plain data, versioned with the API.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::container::ExitRecord;
use crate::image::Digest;
use crate::spec::Sources;

pub use super::disk_report::{DiskReport, DiskRow, PruneReport, Pruned};
pub use super::usage_report::{ContainerProcesses, ContainerUsage, PortReport, ProcessReport};

/// One service as `ps` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its project.
    pub project: String,
    /// Its name in the file.
    pub service: String,
    /// Name of its container, once there is one.
    pub container: Option<String>,
    /// The image as the file names it.
    pub image: String,
    /// What runs, as a command line; empty before the image is known.
    pub command: String,
    /// One word: `created`, `pulling`, `waiting`, `starting`, `running`, `stopping`, `restarting`, `exited`,
    /// `removing`, `failed`; `stopped` only where there is no container.
    pub state: String,
    /// The same with its circumstances, for people.
    pub status: String,
    /// What its checks say: `starting`, `healthy`, `unhealthy`; empty where there are none.
    #[serde(default)]
    pub health: String,
    /// Of the last run that ended.
    pub exit_code: Option<i32>,
    /// Of the container's first process, while it runs.
    pub pid: Option<i32>,
    /// When the container was made.
    pub created_at: Option<Timestamp>,
    /// When the running process began.
    pub started_at: Option<Timestamp>,
    /// How often it was started again by policy since it was created.
    pub restarts: u32,
    /// How its image is here.
    pub content: Option<ContentReport>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortReport>,
    /// How its last run ended, whichever container that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<LastExit>,
    /// Whether it has come to where it should be, or will by itself.
    #[serde(default)]
    pub standing: Standing,
}

/// How the last run of a service ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// Its container, which may be gone.
    pub container: String,
    /// As a shell shows it; `None` when nobody saw it.
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel killed a process of it for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// It was asked to stop.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
    /// When.
    pub ended_at: Timestamp,
    /// How many milliseconds it ran.
    pub ran_ms: u64,
}

/// How an earlier run of a service ended, and what it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastExit {
    /// How.
    #[serde(flatten)]
    pub exit: ExitRecord,
    /// How many milliseconds it ran.
    pub ran_ms: u64,
    /// Its last lines.
    pub log: Vec<String>,
}

/// Where a service is on its way, in the sense of somebody who waits for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Something is under way, or will be tried again.
    #[default]
    Coming,
    /// It runs.
    Up,
    /// It ended with code 0 and is not started again.
    Done,
    /// It ended otherwise, or cannot be started, and that is final as long as nobody asks again.
    Failed,
    /// It was told to stop.
    Stopped,
}

/// How much of an image is here, and in which way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContentReport {
    /// Share of its content that is local, 0 to 1.
    pub local: f64,
    /// All of it is, so that it starts and runs without a network.
    #[serde(default)]
    pub complete: bool,
    /// Layers that are mounted lazily.
    pub lazy_layers: usize,
    /// All layers.
    pub layers: usize,
    /// Why layers that are not lazy are not, each reason once.
    pub full_because: Vec<String>,
}

/// One image of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageReport {
    /// As it was pulled.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// `os/architecture`.
    pub platform: String,
    /// Bytes of its layers as the registry sends them.
    pub size: u64,
    /// When it was pulled.
    pub pulled_at: Timestamp,
    /// How it is here.
    pub content: ContentReport,
}

/// Something that happened, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the journal: counts up by one over all restarts of control. 0 for what is not kept.
    #[serde(default)]
    pub sequence: u64,
    /// When.
    pub time: Timestamp,
    /// Whose; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub project: String,
    /// Of which service; empty for the project's or the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// What: `container-started`, `image-pulled` …; stable words.
    pub kind: String,
    /// How bad it is.
    pub level: EventLevel,
    /// The same in words.
    pub message: String,
    /// Facts by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventLevel {
    /// As it should be.
    Info,
    /// Works, but something is lost.
    Warning,
    /// Does not work.
    Error,
}

/// One step of a pull.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum PullProgress {
    /// The manifest is known.
    Resolved {
        /// What was asked for.
        image: String,
        /// Of the manifest.
        digest: Digest,
        /// Its layers.
        layers: Vec<PullLayer>,
    },
    /// Bytes of a layer have arrived.
    Layer {
        /// Which.
        digest: Digest,
        /// How many so far.
        done: u64,
        /// Of how many; the size of the index for a lazy layer.
        total: u64,
    },
    /// A layer is ready.
    LayerReady {
        /// Which.
        digest: Digest,
        /// Whether it is lazy.
        lazy: bool,
        /// All of its content is here.
        #[serde(default)]
        complete: bool,
        /// Why it is not lazy.
        why_full: Option<String>,
    },
    /// Everything that was asked for is here.
    Done {
        /// What was asked for.
        image: String,
        /// Of the manifest.
        digest: Digest,
    },
    /// It did not work.
    Failed {
        /// What was asked for.
        image: String,
        /// Why, the whole chain.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// A layer as a pull announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullLayer {
    /// Which.
    pub digest: Digest,
    /// Its compressed size in bytes.
    pub size: u64,
}

/// An image whose layers are ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountableImage {
    /// Of its manifest.
    pub digest: Digest,
    /// Its layers' directories, lowest first.
    pub layers: Vec<PathBuf>,
    /// The instance that has them, for the mount's name.
    pub instance: String,
}

/// The output of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSource {
    /// Whose it is.
    pub service: String,
    /// Prefix of its lines.
    pub container: String,
    /// The current file; rotated ones stand beside it.
    pub path: PathBuf,
}

/// How a run of a service's container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Its service.
    pub service: String,
    /// The container.
    pub container: String,
    /// As a shell shows it; `None` when nobody saw it.
    pub code: Option<i32>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunEnd {
    /// As a shell shows it; `None` when nobody saw it.
    pub code: Option<i32>,
    /// Why it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where a command can be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecTarget {
    /// The container.
    pub container: String,
}

/// What `up` would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Of which project.
    pub project: String,
    /// What is done first, in order.
    pub steps: Vec<PlannedStep>,
    /// What follows as soon as something else has come true.
    pub later: Vec<PlannedLater>,
}

/// One action and why it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// One word: `adopt`, `stop`, `remove`, `pull`, `create`, `start`.
    pub action: String,
    /// For which services; a pull may be for several.
    pub services: Vec<String>,
    /// The container, where it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The image of a pull or of a new container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Why, for people.
    pub cause: String,
    /// Keys of the file whose values differ from those that the container was made with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// Of a stop: how long the service is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime: Option<Downtime>,
}

/// How long a service is down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downtime {
    /// Most milliseconds that its end may take: its grace period.
    pub stop_at_most_ms: u64,
    /// It starts right after that; else it stays down, or waits for what it depends on.
    pub starts_again: bool,
}

/// Something that is done later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedLater {
    /// Which service is created and started.
    pub service: String,
    /// Why.
    pub cause: String,
    /// Keys of the file whose values differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// What is waited for.
    pub when: String,
}

/// A project that should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpRequest {
    /// Its name.
    pub project: String,
    /// The first services file.
    pub file: PathBuf,
    /// What all files say together; the text of the one file when there are no `sources`.
    pub text: String,
    /// Where relative paths in it start.
    pub base_dir: PathBuf,
    /// Variables of the caller that the file takes over by name.
    pub environment: BTreeMap<String, String>,
    /// Only these services, and those that they depend on; all when empty.
    pub services: Vec<String>,
    /// Services that start without those that they depend on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub independent: Vec<String>,
    /// Services that get new containers, whether or not something has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recreate: Vec<String>,
    /// What the text was put together from, to do it again when a file changes. Absent in requests of older
    /// versions, and when `text` is `file`'s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Sources>,
}
