//! What the host reported: images, containers, and what the user asked of each service.
//!
//! All of it is read, from the store, the records of containers and their monitors; the planner keeps nothing between
//! calls. The shell adds which operations it has under way, so that none is begun twice.

use std::collections::BTreeMap;
use std::fmt;

use super::Millis;
use crate::image::{Digest, ImageRef};
use crate::spec::{Fingerprint, ProjectName, ServiceName};

/// A service of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The project.
    pub project: ProjectName,
    /// The service in it.
    pub service: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.service)
    }
}

/// The id of a container as text; the type that gives ids their form stands below this module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerKey(String);

impl ContainerKey {
    /// Takes the id as it is.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The state of the host as far as we look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Our instance id; what carries another one is foreign.
    pub instance: String,
    /// Images by the reference that services name; an absent one is missing.
    pub images: BTreeMap<ImageRef, ImageState>,
    /// Every container that has a record, whoever it belongs to.
    pub containers: BTreeMap<ContainerKey, Container>,
    /// What is remembered of services; an absent record is a default one.
    pub records: BTreeMap<ServiceKey, ServiceRecord>,
}

/// Whether containers can be created from an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    /// Not here: pulled at once. The shell says this also of a failed one when the user asks again.
    Missing,
    /// A pull is under way; the planner waits.
    Pulling {
        /// Share of what is needed before the start, 0 to 100, when it is known.
        percent: Option<u8>,
    },
    /// The last pull failed; it is tried again after a delay.
    Failed {
        /// When and why.
        failure: Failure,
        /// What a retry can hope for.
        fault: PullFault,
    },
    /// Containers can be created: layers are mounted or unpacked, or can be without asking the registry for a tag.
    Ready {
        /// The manifest for this platform. It changes only when the user pulls.
        manifest: Digest,
    },
}

/// Why a pull failed, as far as it matters for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullFault {
    /// The registry did not answer properly; retried after 1 s, doubling to 60 s.
    Unreachable,
    /// There is no room for it here; retried in the same way.
    NoSpace,
    /// It answered no (not found, not authorized, content that cannot be used); retried every 60 s.
    Refused,
}

/// An operation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error and its sources on one line.
    pub reason: String,
    /// When it failed.
    pub at: Millis,
    /// Failures in a row including this one, so at least 1.
    pub attempts: u32,
}

/// A container that has a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Instance id in its record.
    pub instance: String,
    /// The service that it was created for.
    pub service: ServiceKey,
    /// Position in the order of creation; the newest one of a service is kept.
    pub serial: u64,
    /// Of the service when the container was created.
    pub fingerprint: Fingerprint,
    /// The manifest that it was created from.
    pub manifest: Digest,
    /// The manifests of images that are mounted in it.
    pub mounted: BTreeMap<ImageRef, Digest>,
    /// What it does.
    pub state: ContainerState,
    /// The process that looks after it.
    pub monitor: Monitor,
    /// Whether a next start finds the files that it wrote.
    pub writable: WritableLayer,
    /// Whether the image's content below it can still be read.
    pub content: Content,
    /// Its counters, as the last start gave them ([`Action::Start`](super::Action::Start)).
    pub run: Run,
    /// What the checks of the program that runs say.
    pub health: Health,
    /// When its last run began; `None` until it has run.
    pub stamp: Option<Stamp>,
    /// Runs of other services that its last start was made with, as [`Action::Start`](super::Action::Start) said.
    pub with: BTreeMap<ServiceName, Stamp>,
    /// The last operation on it if that failed; gone when a later operation succeeds.
    pub failed: Option<(Operation, Failure)>,
}

/// When a run began, by whichever clock: tells runs apart, and puts them in no order.
pub type Stamp = i64;

/// What the checks of a running program say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has no checks.
    Unchecked,
    /// No check has succeeded yet, and not enough have failed.
    Starting,
    /// The last checks succeeded.
    Healthy,
    /// Too many failed in a row.
    Unhealthy(Unhealthy),
}

/// A program whose checks fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    /// Since when.
    pub since: Millis,
    /// When it had become healthy before that; `None`: it never was in this run.
    pub was_healthy_since: Option<Millis>,
    /// What the last check said.
    pub reason: String,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// An operation is under way; the planner waits for its outcome. (Adoption is [`Monitor::Adopting`].)
    Busy(Operation),
    /// Never started.
    Created,
    /// Its program runs, whoever started it: a container adopted after a restart of control is just running.
    Running {
        /// When it was started.
        since: Millis,
    },
    /// Its program ended.
    Exited(Exit),
}

/// What is done with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Record, folders and layers are prepared.
    Create,
    /// A monitor is launched and the program started.
    Start,
    /// Signal, grace period, kill.
    Stop,
    /// Record, folders, cgroup and mounts are removed.
    Remove,
    /// A monitor takes the place of a dead one.
    Adopt,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::Adopt => "adopt",
        })
    }
}

/// How and when a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How.
    pub status: ExitStatus,
    /// When; after a restart of the host any time before now, for example 0.
    pub at: Millis,
    /// How long it ran.
    pub ran_for: Millis,
    /// It was told to end.
    pub asked: bool,
    /// What its checks said last.
    pub health: Health,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// It could not be executed as the image and the service say (not found, not executable, unknown user); 126 or
    /// 127. A fault of the host is no exit: the container stays as it was, with [`Container::failed`].
    NotStarted {
        /// 126 or 127.
        code: u8,
        /// Why.
        reason: String,
    },
    /// Nobody saw it: the host went down, or the monitor died with it.
    Unknown,
}

impl ExitStatus {
    /// The code that a shell would show; `None` when it is unknown.
    #[must_use]
    pub fn code(&self) -> Option<u8> {
        match self {
            Self::Code(code) | Self::NotStarted { code, .. } => Some(*code),
            Self::Signal(number) => Some(number.saturating_add(128)),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{code}"),
            None => f.write_str("unknown"),
        }
    }
}

/// The process that looks after a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// It answers, or the container does not run and needs none.
    Alive,
    /// It died and the container runs.
    Lost,
    /// It died, and another one is being launched in its place.
    Adopting,
}

/// What became of the files that a container wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WritableLayer {
    /// A next start finds them.
    Usable,
    /// Not cleanly unmounted before the host went down: the container is recreated when it is to start again.
    Lost,
}

/// Whether a container's run can read the content of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// It can, or could until it ended.
    Usable,
    /// The connection that served its lazy layers was lost during the run: reads fail, and an end means nothing.
    Lost,
}

/// Counters of a container's starts. The planner computes them, the shell records them at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// The request that the last start served.
    pub request: u64,
    /// Restarts since that request, whatever came between; `on-failure:N` limits them.
    pub restarts: u32,
    /// Restarts in a row without a healthy run between; gives the delay before the next one.
    pub streak: u32,
}

/// What is remembered of a service beyond its containers. Durable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceRecord {
    /// How often the user asked for it to run; raised by `up`, `start` and `restart`.
    pub request: u64,
    /// The request that was for a restart: what runs for an earlier one is stopped first. 0 when there was none.
    pub restart: u64,
    /// The request that was for a new container: one that serves an earlier one is replaced. 0 when there was none.
    pub recreate: u64,
    /// The user stopped it by hand; cleared by `up`, `start` and `restart`.
    pub stopped: Option<ManualStop>,
    /// Grace period that the user gave with the last stop or restart, in the place of the container's own.
    pub grace: Option<Millis>,
    /// The last creation if it failed; need not survive control.
    pub create_failure: Option<CreateFailure>,
}

/// What the user wants of a service that they stopped by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManualStop {
    /// It does not run; its container stays, with its writable layer.
    Keep,
    /// It has no container.
    Remove,
}

/// A creation that failed and left no container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateFailure {
    /// When and why.
    pub failure: Failure,
    /// [`Fingerprint::hash`] of what was to be created; a changed service is tried at once.
    pub config: Digest,
    /// The manifest that it was to be created from.
    pub manifest: Digest,
    /// Those of the images that were to be mounted in it.
    pub mounted: BTreeMap<ImageRef, Digest>,
    /// The request then; a new one is tried at once.
    pub request: u64,
}
