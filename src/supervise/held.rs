//! One container as control holds it: its durable record, its monitor, and what is under way.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::lazy_link::Generations;
use crate::container::{
    CallerStreams, ContainerId, ExitRecord, HealthStatus, MonitorHandle, Outcome, Phase, Status,
    WritableState,
};
use crate::fuse::Side;
use crate::image::{Digest, ImageRef};
use crate::reconcile::{
    Container, ContainerState, Content, Exit, ExitStatus, Failure, Health, Monitor, Operation, Run,
    ServiceKey, Stamp, WritableLayer,
};
use crate::spec::{Fingerprint, ProjectName, ServiceName};
use crate::store::Record;
use crate::sys::process::ProcessIdentity;
use crate::sys::process::boot_id;

/// A container as it is kept in `$STATE/containers/<id>/container`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) instance: String,
    pub(super) project: ProjectName,
    pub(super) service: ServiceName,
    pub(super) serial: u64,
    pub(super) fingerprint: Fingerprint,
    pub(super) image: ImageRef,
    pub(super) manifest: Digest,
    /// The images that are mounted in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) mounted: BTreeMap<ImageRef, Digest>,
    pub(super) command: Vec<String>,
    pub(super) created_at: Timestamp,
    #[serde(default)]
    pub(super) request: u64,
    #[serde(default)]
    pub(super) restarts: u32,
    #[serde(default)]
    pub(super) streak: u32,
    /// Runs of other services that its last start was made with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) with: BTreeMap<ServiceName, Stamp>,
    /// What it is in where its service says nothing: as it was when it was made, whatever a later version gives.
    #[serde(default)]
    pub(super) implied_network: ImpliedNetwork,
    /// Boot in which it was last started; none before its first start.
    #[serde(default)]
    pub(super) started_in_boot: Option<String>,
    /// Generation of the connection that served its lazy layers in a run that nobody has seen end as it should.
    #[serde(default)]
    pub(super) connection: Option<u64>,
    /// The same of the connection of layers with extended attributes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) marked_connection: Option<u64>,
    /// How its last run ended, once that is known.
    #[serde(default)]
    pub(super) exit: Option<ExitRecord>,
    /// Set when it runs once beside its service and is none of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) one_off: Option<OneOff>,
    /// How its last runs ended, oldest first.
    #[serde(default)]
    pub(super) exits: Vec<ExitRecord>,
}

/// The network of a container whose service names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ImpliedNetwork {
    /// The host's: of containers that were made before projects had networks of their own.
    #[default]
    Host,
    /// That of its project.
    Project,
}

/// How a container runs that runs once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OneOff {
    /// It is removed when it has ended.
    pub(super) remove: bool,
    /// Whose streams it has; a log of its own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) streams: Option<CallerStreams>,
    /// Tells it from others when it is asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_key: Option<String>,
}

/// Ends of a container's runs that are kept.
const EXITS_KEPT: usize = 10;

impl Record for ContainerRecord {
    const KIND: &'static str = "container";
    const VERSION: u32 = 1;
}

impl ContainerRecord {
    /// The connections that served its lazy layers in a run that nobody has seen end as it should.
    pub(super) fn connections(&self) -> Generations {
        Generations { main: self.connection, marked: self.marked_connection }
    }

    /// Records them.
    pub(super) fn set_connections(&mut self, connections: Generations) {
        self.connection = connections.main;
        self.marked_connection = connections.marked;
    }

    /// The record of a container whose own was lost: whose it is is known, and nothing else, so it fits no settings.
    pub(super) fn unknown(
        instance: String,
        project: ProjectName,
        service: ServiceName,
        image: ImageRef,
        started_in_boot: Option<String>,
    ) -> Self {
        Self {
            instance,
            project,
            service,
            serial: 0,
            fingerprint: Fingerprint::none(),
            image,
            manifest: Digest::of(&[]),
            mounted: BTreeMap::new(),
            command: Vec::new(),
            created_at: Timestamp::now(),
            request: 0,
            restarts: 0,
            streak: 0,
            with: BTreeMap::new(),
            implied_network: ImpliedNetwork::default(),
            started_in_boot,
            connection: None,
            marked_connection: None,
            exit: None,
            one_off: None,
            exits: Vec::new(),
        }
    }

    pub(super) fn key(&self) -> ServiceKey {
        ServiceKey { project: self.project.clone(), service: self.service.clone() }
    }

    pub(super) fn run(&self) -> Run {
        Run { request: self.request, restarts: self.restarts, streak: self.streak }
    }

    pub(super) fn set_run(&mut self, run: Run) {
        self.request = run.request;
        self.restarts = run.restarts;
        self.streak = run.streak;
    }
}

/// A container in memory.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: ContainerId,
    pub(super) record: ContainerRecord,
    /// Its monitor, if there is one to talk to.
    pub(super) monitor: Option<MonitorHandle>,
    /// What the monitor last said; also after it died.
    pub(super) status: Option<Status>,
    /// Its first process, kept open so that how it ended can be asked even if its monitor dies with it.
    pub(super) process: Option<(ProcessIdentity, OwnedFd)>,
    /// What control does with it at the moment.
    pub(super) busy: Option<Operation>,
    pub(super) failed: Option<(Operation, Failure)>,
    /// It ran when control came, and nobody looks after it.
    pub(super) monitor_lost: bool,
    /// Its writable layer belongs to another boot.
    pub(super) writable_lost: bool,
}

impl Held {
    pub(super) fn new(id: ContainerId, record: ContainerRecord) -> Self {
        Self {
            id,
            record,
            monitor: None,
            status: None,
            process: None,
            busy: None,
            failed: None,
            monitor_lost: false,
            writable_lost: false,
        }
    }

    /// Notes how a run ended.
    pub(super) fn note_exit(&mut self, exit: ExitRecord) {
        if self.record.exits.last() != Some(&exit) {
            self.record.exits.push(exit.clone());
            let surplus = self.record.exits.len().saturating_sub(EXITS_KEPT);
            self.record.exits.drain(..surplus);
        }
        self.record.exit = Some(exit);
    }

    /// Takes over what the monitor says. Returns the exit record if the run has ended just now.
    pub(super) fn observe(&mut self, status: Status) -> Option<ExitRecord> {
        let ended = match &status.phase {
            Phase::Ended(exit) if self.record.exit.as_ref() != Some(exit) => Some(exit.clone()),
            _ => None,
        };
        if matches!(status.writable, Some(WritableState::Fresh | WritableState::Kept)) {
            self.writable_lost = false;
        }
        self.keep_process(&status.phase);
        self.status = Some(status);
        ended
    }

    /// Opens the first process once it is known, and lets it go with the run.
    pub(super) fn keep_process(&mut self, phase: &Phase) {
        let known = self.process.as_ref().map(|(identity, _)| identity);
        match (phase, phase.process()) {
            (_, Some(identity)) if known != Some(identity) => {
                self.process = identity.open().map(|pidfd| (identity.clone(), pidfd));
            }
            (Phase::Ended(_), _) => self.process = None,
            _ => {}
        }
    }

    /// Its first process, while it runs; the last one that is known while it has no monitor.
    pub(super) fn pid(&self) -> Option<i32> {
        let told = self.status.as_ref().and_then(|status| status.phase.process());
        let kept = self.process.as_ref().filter(|(_, pidfd)| {
            self.monitor_lost && !crate::sys::process::has_ended(pidfd.as_fd())
        });
        told.or(kept.map(|(identity, _)| identity)).map(|process| process.pid)
    }

    /// When its program was executed, while it runs.
    pub(super) fn started_at(&self) -> Option<Timestamp> {
        match &self.status.as_ref()?.phase {
            Phase::Running { started_at, .. } => Some(*started_at),
            Phase::Stopping { started_at, .. } => *started_at,
            Phase::Starting | Phase::Ended(_) => None,
        }
    }

    /// What the checks of its program say, while that runs.
    pub(super) fn health(&self) -> Option<&HealthStatus> {
        let status = self.status.as_ref()?;
        status.health.as_ref().filter(|_| status.phase.process().is_some())
    }

    /// Tells its last run from others.
    fn stamp(&self) -> Option<Stamp> {
        let ended = self.record.exit.as_ref().and_then(|exit| exit.started_at);
        self.started_at().or(ended).map(Timestamp::as_microsecond)
    }

    /// Whether anything of it runs or may run.
    pub(super) fn may_run(&self) -> bool {
        self.monitor_lost
            || self.status.as_ref().is_some_and(|status| !matches!(status.phase, Phase::Ended(_)))
    }

    /// Whether it was ever started, as far as anybody knows.
    pub(super) fn has_begun(&self) -> bool {
        self.record.started_in_boot.is_some() || self.record.exit.is_some()
    }

    /// Whether it could not be removed.
    pub(super) fn failed_to_go(&self) -> bool {
        matches!(self.failed, Some((Operation::Remove, _)))
    }

    /// What the planner sees.
    pub(super) fn observed(&self, clock: &Clock, connections: Generations) -> Container {
        let state = match (self.busy, self.status.as_ref().map(|status| &status.phase)) {
            (Some(operation), _) if operation != Operation::Adopt => {
                ContainerState::Busy(operation)
            }
            (_, Some(Phase::Running { started_at, .. })) => {
                ContainerState::Running { since: clock.at(*started_at) }
            }
            // Nobody goes on with what a dead monitor was doing: the next one finds out how far it came.
            (_, _) if self.monitor_lost => ContainerState::Running { since: 0 },
            (_, Some(Phase::Starting)) => ContainerState::Busy(Operation::Start),
            (_, Some(Phase::Stopping { .. })) => ContainerState::Busy(Operation::Stop),
            (_, Some(Phase::Ended(_)) | None) => self.ended(clock),
        };
        Container {
            instance: self.record.instance.clone(),
            service: self.record.key(),
            serial: self.record.serial,
            fingerprint: self.record.fingerprint.clone(),
            manifest: self.record.manifest,
            mounted: self.record.mounted.clone(),
            state,
            monitor: match (self.busy, self.monitor_lost) {
                (Some(Operation::Adopt), _) => Monitor::Adopting,
                (_, true) => Monitor::Lost,
                (_, false) => Monitor::Alive,
            },
            writable: if self.writable_lost { WritableLayer::Lost } else { WritableLayer::Usable },
            content: if self.content_lost(connections) { Content::Lost } else { Content::Usable },
            run: self.record.run(),
            health: super::health::observed(self.health(), clock),
            stamp: self.stamp(),
            with: self.record.with.clone(),
            failed: self.failed.clone(),
        }
    }

    /// Settles that the last run had its content to the end, if it has ended and the connections that served it
    /// `outlived` it: what becomes of these later is none of this run's. Says whether this is news.
    pub(super) fn settle(&mut self, outlived: impl Fn(Side, u64) -> bool) -> bool {
        if self.record.exit.is_none() || self.may_run() {
            return false;
        }
        let before = self.record.connections();
        let mut left = before;
        for side in Side::ALL {
            left.set(side, before.of(side).filter(|its| !outlived(side, *its)));
        }
        self.record.set_connections(left);
        left != before
    }

    /// Whether the run lost its lazy layers, given the connections that there are now. One that did its work to the end
    /// before lost nothing.
    fn content_lost(&self, now: Generations) -> bool {
        let its = self.record.connections();
        let is_other = Side::ALL
            .into_iter()
            .any(|side| its.of(side).zip(now.of(side)).is_some_and(|(its, now)| its != now));
        let this_boot = || boot_id().ok() == self.record.started_in_boot;
        let is_done = self.record.exit.as_ref().is_some_and(|exit| {
            !exit.stop_requested && matches!(exit.outcome, Outcome::Exited { code: 0 })
        });
        is_other && !is_done && this_boot()
    }

    fn ended(&self, clock: &Clock) -> ContainerState {
        match (&self.record.exit, &self.record.started_in_boot) {
            // A start that failed for a reason of the host is no exit: what came before it holds.
            (Some(exit), _) if !is_host_fault(exit) => ContainerState::Exited(Exit {
                status: exit_status(&exit.outcome),
                at: clock.at(exit.ended_at),
                ran_for: exit.started_at.map_or(0, |start| clock.between(start, exit.ended_at)),
                asked: exit.stop_requested,
                health: super::health::observed(exit.health.as_ref(), clock),
            }),
            (None, Some(_)) => ContainerState::Exited(Exit {
                status: ExitStatus::Unknown,
                at: 0,
                ran_for: 0,
                asked: false,
                health: Health::Unchecked,
            }),
            (Some(_), _) | (None, None) => ContainerState::Created,
        }
    }
}

/// Whether the run failed because of this host and not because of what image and service say.
pub(super) fn is_host_fault(exit: &ExitRecord) -> bool {
    matches!(exit.outcome, Outcome::NotStarted { code: 125, .. }) && !exit.stop_requested
}

fn exit_status(outcome: &Outcome) -> ExitStatus {
    let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
    match outcome {
        Outcome::Exited { code } => ExitStatus::Code(byte(*code)),
        Outcome::Signaled { signal } => ExitStatus::Signal(byte(*signal)),
        Outcome::Unknown => ExitStatus::Unknown,
        Outcome::NotStarted { reason, code } => {
            ExitStatus::NotStarted { code: byte(*code), reason: reason.clone() }
        }
    }
}
