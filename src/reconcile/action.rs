//! Actions with their causes and order: what the shell carries out and `supervisor plan` prints.

use std::collections::BTreeMap;
use std::fmt;

use super::observed::{ContainerKey, ExitStatus, Operation, Run, ServiceKey, Stamp};
use super::{Millis, Phase};
use crate::image::{Digest, ImageRef};
use crate::spec::{Fingerprint, Service, ServiceName};

/// Position of a step in [`Plan::steps`].
pub type StepNo = usize;

/// What is to be done now, and how each service stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In an order in which they can be carried out one by one; independent ones may overlap.
    pub steps: Vec<Step>,
    /// Every service that is wanted or has a container of ours in a project with a goal.
    pub services: BTreeMap<ServiceKey, ServiceStatus>,
    /// When to plan again at the latest, if nothing happens before; never in the past.
    pub wake_at: Option<Millis>,
}

impl Plan {
    /// Whether there is nothing to do now. Something may still be awaited, see [`Plan::wake_at`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// One action, why it is done, and what must come before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// Why.
    pub cause: Cause,
    /// Steps that must have *succeeded*; else this one is not attempted. All are earlier.
    pub requires: Vec<StepNo>,
    /// Steps that must have *ended*, either way. All are earlier.
    pub after: Vec<StepNo>,
}

/// How a service stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStatus {
    /// What it is doing, the steps of this plan included.
    pub phase: Phase,
    /// The container that it has, if any.
    pub container: Option<ContainerKey>,
    /// Why it will be created or recreated as soon as its image is here and what it depends on is ready.
    pub pending: Option<Cause>,
}

/// One thing to do. It names all that is needed; carrying it out makes no choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Launch a monitor in the place of one that died; the container goes on.
    AdoptMonitor {
        /// Of this service.
        service: ServiceKey,
        /// The running container.
        container: ContainerKey,
    },
    /// Stop the program with the signal that the container was launched with.
    Stop {
        /// Of this service.
        service: ServiceKey,
        /// The running container.
        container: ContainerKey,
        /// From the signal to the kill; the container's own period when `None`.
        grace: Option<Millis>,
    },
    /// Remove the container with its writable layer; it does not run.
    Remove {
        /// Of this service.
        service: ServiceKey,
        /// The container.
        container: ContainerKey,
    },
    /// Fetch what is needed of an image before containers can be created from it.
    Pull {
        /// The image.
        image: ImageRef,
        /// Which attempt in a row this is, from 1; recorded when it fails.
        attempt: u32,
        /// Who waits for it.
        services: Vec<ServiceKey>,
    },
    /// Make a container: id, record, folders, layers. Nothing runs yet.
    Create {
        /// For this service.
        service: ServiceKey,
        /// Its settings.
        settings: Box<Service>,
        /// To be recorded with the container.
        fingerprint: Fingerprint,
        /// The manifest to create it from.
        manifest: Digest,
        /// The manifests of the images that are mounted in it.
        mounted: BTreeMap<ImageRef, Digest>,
        /// The request it serves; recorded with the container, and with the failure if there is one.
        request: u64,
    },
    /// Launch the monitor of a container, which starts the program.
    Start {
        /// Of this service.
        service: ServiceKey,
        /// Which container.
        container: StartTarget,
        /// Its counters from now on; to be recorded before the start.
        run: Run,
        /// Runs of other services that it is started with; to be recorded likewise.
        with: BTreeMap<ServiceName, Stamp>,
    },
}

/// The container that a start means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartTarget {
    /// One that exists, with its writable layer.
    Existing(ContainerKey),
    /// The one that this step of the same plan creates.
    Created(StepNo),
}

impl Cause {
    /// Whether the user asked for the end of what runs, and could say how long it may take.
    pub(super) fn is_asked_for(&self) -> bool {
        matches!(
            self,
            Self::ManualStop
                | Self::ManualDown
                | Self::Restart
                | Self::ProjectStop
                | Self::ProjectDown
        )
    }
}

impl Action {
    /// The service that the action is about; a pull can be for several.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::AdoptMonitor { service, .. }
            | Self::Stop { service, .. }
            | Self::Remove { service, .. }
            | Self::Create { service, .. }
            | Self::Start { service, .. } => Some(service),
            Self::Pull { .. } => None,
        }
    }

    /// The existing container that the action is about.
    #[must_use]
    pub fn container(&self) -> Option<&ContainerKey> {
        match self {
            Self::AdoptMonitor { container, .. }
            | Self::Stop { container, .. }
            | Self::Remove { container, .. }
            | Self::Start { container: StartTarget::Existing(container), .. } => Some(container),
            Self::Pull { .. } | Self::Create { .. } | Self::Start { .. } => None,
        }
    }

    /// Place in the order of a plan: what ends comes before what begins.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::AdoptMonitor { .. } => 0,
            Self::Stop { .. } => 1,
            Self::Remove { .. } => 2,
            Self::Pull { .. } => 3,
            Self::Create { .. } => 4,
            Self::Start { .. } => 5,
        }
    }
}

/// Why an action is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The service has no container.
    NoContainer,
    /// Its container was created and never started.
    NeverStarted,
    /// These fields of the service differ from what the container was created with.
    FieldsChanged(Vec<String>),
    /// The image was pulled again and is another one than the container's.
    ImageChanged {
        /// Which.
        image: ImageRef,
        /// Of the container.
        from: Digest,
        /// Of the image.
        to: Digest,
    },
    /// The image is not here.
    ImageMissing,
    /// The user asked for the service to run.
    Requested,
    /// The program ended and the restart policy wants it to run.
    Exited(ExitStatus),
    /// The files that the container wrote did not survive the end of the host.
    WritableLayerLost,
    /// The connection that served its lazy layers was lost.
    ContentLost,
    /// It was healthy and is not any more.
    Unhealthy,
    /// A service that it is restarted with was started again.
    DependencyRestarted(ServiceName),
    /// The service has a container that is preferred to this one.
    Duplicate,
    /// The service is no longer in the file.
    ServiceRemoved,
    /// The user stopped the service.
    ManualStop,
    /// The user took the service down.
    ManualDown,
    /// The user asked for a stop and a start.
    Restart,
    /// The user asked for a new container.
    Recreate,
    /// The project is being stopped.
    ProjectStop,
    /// The project is being taken down.
    ProjectDown,
    /// The host is going down.
    HostShutdown,
    /// The monitor died.
    MonitorLost,
    /// This operation failed before (how often).
    Retry(Operation, u32),
    /// The pull failed before (how often).
    PullRetry(u32),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoContainer => f.write_str("it has no container"),
            Self::NeverStarted => f.write_str("it was created and not started"),
            Self::FieldsChanged(fields) => write!(f, "`{}` changed", fields.join("`, `")),
            Self::ImageChanged { image, from, to } => {
                write!(f, "the image `{image}` changed from {} to {}", from.short(), to.short())
            }
            Self::ImageMissing => f.write_str("the image is not here"),
            Self::Requested => f.write_str("asked for"),
            Self::Exited(status) => write!(f, "it exited ({status})"),
            Self::WritableLayerLost => {
                f.write_str("its writable layer did not survive the host's end")
            }
            Self::ContentLost => f.write_str("the connection that served its lazy layers was lost"),
            Self::Unhealthy => f.write_str("it is not healthy any more"),
            Self::DependencyRestarted(name) => write!(f, "`{name}` was started again"),
            Self::Duplicate => f.write_str("the service has another container"),
            Self::ServiceRemoved => f.write_str("it is no longer in the file"),
            Self::ManualStop => f.write_str("stopped by hand"),
            Self::ManualDown => f.write_str("taken down by hand"),
            Self::Restart => f.write_str("a restart was asked for"),
            Self::Recreate => f.write_str("a new container was asked for"),
            Self::ProjectStop => f.write_str("the project is being stopped"),
            Self::ProjectDown => f.write_str("the project is being taken down"),
            Self::HostShutdown => f.write_str("the host is shutting down"),
            Self::MonitorLost => f.write_str("its monitor died"),
            Self::Retry(operation, failures) => write!(f, "{operation} failed {failures} times"),
            Self::PullRetry(failures) => write!(f, "the pull failed {failures} times"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AdoptMonitor { service, container } => {
                write!(f, "adopt {service} (container {container})")
            }
            Self::Stop { service, container, .. } => {
                write!(f, "stop {service} (container {container})")
            }
            Self::Remove { service, container } => {
                write!(f, "remove {service} (container {container})")
            }
            Self::Pull { image, services, .. } => {
                let services: Vec<_> = services.iter().map(ToString::to_string).collect();
                write!(f, "pull {image} for {}", services.join(", "))
            }
            Self::Create { service, settings, manifest, .. } => {
                write!(f, "create {service} from {} ({})", settings.image, manifest.short())
            }
            Self::Start { service, container: StartTarget::Existing(container), .. } => {
                write!(f, "start {service} (container {container})")
            }
            Self::Start { service, container: StartTarget::Created(_), .. } => {
                write!(f, "start {service}")
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { action, cause, .. } in &self.steps {
            writeln!(f, "{action}: {cause}")?;
        }
        for (service, status) in &self.services {
            if let Some(cause) = &status.pending {
                let when = match &status.phase {
                    Phase::Blocked { on, why } => format!("when {on} is ready ({why})"),
                    Phase::DependencyFailed { on, .. } => format!("if {on} is put right"),
                    _ => "when the image is here".to_owned(),
                };
                writeln!(f, "later, {when}: create and start {service}: {cause}")?;
            }
        }
        Ok(())
    }
}
