//! The decision for one service: which of its containers is kept, what is done with it and with the others.

use super::action::{Action, Cause, ServiceStatus, StartTarget, Step, StepNo};
use super::observed::{
    Container, ContainerKey, ContainerState, ImageState, Monitor, Observed, Operation, Run,
    ServiceKey, ServiceRecord, WritableLayer,
};
use super::plan::{Moment, pull_status};
use super::restart::{Verdict, jitter, verdict};
use super::{Millis, Phase, backoff};
use crate::image::{Digest, ImageRef};
use crate::spec::{Fingerprint, RestartPolicy, Service};

/// What is decided for one service. Numbers in its steps count within it.
pub(super) struct Decision {
    pub(super) steps: Vec<Step>,
    pub(super) status: ServiceStatus,
    /// The image to pull, the attempt, and the cause.
    pub(super) pull: Option<(ImageRef, u32, Cause)>,
    pub(super) wake_at: Option<Millis>,
}

/// What an existing container needs to be as it should.
enum Want {
    /// Nothing now.
    Nothing(Phase),
    /// An attempt at this time.
    Wait(Phase, Millis),
    /// A monitor.
    Adopt { since: Millis, cause: Cause },
    /// A start.
    Start { cause: Cause, run: Run },
}

/// Something stands in the way until it is observed to be gone.
struct Blocked(Phase);

/// Collects the steps of one service.
pub(super) struct Decider<'a> {
    key: &'a ServiceKey,
    observed: &'a Observed,
    record: ServiceRecord,
    moment: Moment,
    steps: Vec<Step>,
    pull: Option<(ImageRef, u32, Cause)>,
    wake_at: Option<Millis>,
}

impl<'a> Decider<'a> {
    pub(super) fn new(key: &'a ServiceKey, observed: &'a Observed, moment: Moment) -> Self {
        let record = observed.records.get(key).cloned().unwrap_or_default();
        Self { key, observed, record, moment, steps: Vec::new(), pull: None, wake_at: None }
    }

    /// The service should run as `wanted`.
    pub(super) fn up(
        mut self,
        wanted: &Service,
        mut containers: Vec<(&ContainerKey, &Container)>,
    ) -> Decision {
        if self.record.stopped {
            return self.stop(&containers, &Cause::ManualStop);
        }
        let fingerprint = wanted.fingerprint();
        let ready = match self.observed.images.get(&wanted.image) {
            Some(ImageState::Ready { manifest }) => Some(*manifest),
            _ => None,
        };
        containers.sort_by_key(|(_, c)| {
            let matches = difference(c, &fingerprint, ready).is_none();
            let runs = matches!(c.state, ContainerState::Running { .. });
            std::cmp::Reverse((matches, runs, c.serial))
        });
        let mut containers = containers.into_iter();
        let kept = containers.next();
        let mut before = Vec::new();
        let mut blocked = None;
        for (key, container) in containers {
            match self.teardown(key, container, &Cause::Duplicate) {
                Ok(last) => before.push(last),
                Err(by) => blocked = Some(by),
            }
        }
        let mut pending = None;
        let phase = match kept {
            None => self.create(wanted, &fingerprint, ready, Cause::NoContainer, &mut pending),
            Some((key, container)) => {
                let want = self.want(key, container, wanted.restart_policy());
                let lost =
                    matches!(want, Want::Start { .. }) && container.writable == WritableLayer::Lost;
                let cause = difference(container, &fingerprint, ready)
                    .or(lost.then_some(Cause::WritableLayerLost));
                match (cause, blocked) {
                    // Two containers of one service never run at once: what they use may be the same.
                    (cause, Some(Blocked(phase))) if matches!(want, Want::Start { .. }) => {
                        pending = cause;
                        phase
                    }
                    (Some(cause), None) => {
                        let kept = Kept { key, container, want, lost, before };
                        self.replace(wanted, &fingerprint, ready, cause, kept, &mut pending)
                    }
                    (cause, _) => {
                        pending = cause;
                        self.keep(key, want, before)
                    }
                }
            }
        };
        self.decided(phase, kept.map(|(key, _)| key), pending)
    }

    /// The service should have no container.
    pub(super) fn down(
        mut self,
        containers: &[(&ContainerKey, &Container)],
        cause: &Cause,
    ) -> Decision {
        let mut phase = Phase::Removing;
        for (key, container) in containers {
            if matches!(container.state, ContainerState::Running { .. }) {
                phase = Phase::Stopping;
            }
            if let Err(Blocked(by)) = self.teardown(key, container, cause) {
                phase = by;
            }
        }
        self.decided(phase, containers.first().map(|(key, _)| *key), None)
    }

    /// No container of the service should run.
    pub(super) fn stop(
        mut self,
        containers: &[(&ContainerKey, &Container)],
        cause: &Cause,
    ) -> Decision {
        let mut phase = Phase::Stopped;
        for (key, container) in containers {
            match self.end(key, container, cause) {
                Ok(None) => {}
                Ok(Some(_)) => phase = Phase::Stopping,
                Err(Blocked(by)) => phase = by,
            }
        }
        self.decided(phase, containers.first().map(|(key, _)| *key), None)
    }

    fn decided(
        self,
        phase: Phase,
        container: Option<&ContainerKey>,
        pending: Option<Cause>,
    ) -> Decision {
        let status = ServiceStatus { phase, container: container.cloned(), pending };
        Decision { steps: self.steps, status, pull: self.pull, wake_at: self.wake_at }
    }

    /// What `container` needs while it stays as it was created.
    fn want(&self, key: &ContainerKey, container: &Container, policy: RestartPolicy) -> Want {
        let requested = container.run.request < self.record.request;
        let afresh = Run { request: self.record.request, ..Run::default() };
        match &container.state {
            ContainerState::Busy(operation) => Want::Nothing(Phase::of(*operation)),
            ContainerState::Running { since } => match container.monitor {
                Monitor::Alive | Monitor::Adopting => {
                    Want::Nothing(Phase::Running { since: *since })
                }
                Monitor::Lost => match self.gate(key, container, &[Operation::Adopt]) {
                    Gate::Open => Want::Adopt { since: *since, cause: Cause::MonitorLost },
                    Gate::Retry(cause) => Want::Adopt { since: *since, cause },
                    // It runs; that nobody can reach it for a moment is an event, not its state.
                    Gate::Shut(_, at) => Want::Wait(Phase::Running { since: *since }, at),
                },
            },
            ContainerState::Created if requested => {
                Want::Start { cause: Cause::NeverStarted, run: afresh }
            }
            ContainerState::Exited(_) if requested => {
                Want::Start { cause: Cause::Requested, run: afresh }
            }
            ContainerState::Created => match self.gate(key, container, &[Operation::Start]) {
                Gate::Open => Want::Start { cause: Cause::NeverStarted, run: container.run },
                Gate::Retry(cause) => Want::Start { cause, run: container.run },
                Gate::Shut(phase, at) => Want::Wait(phase, at),
            },
            ContainerState::Exited(exit) => match self.gate(key, container, &[Operation::Start]) {
                // A start that failed was counted when it was tried, and is wanted whatever the policy says.
                Gate::Retry(cause) => Want::Start { cause, run: container.run },
                Gate::Shut(phase, at) => Want::Wait(phase, at),
                Gate::Open => match verdict(policy, exit, container.run) {
                    Verdict::Stay => Want::Nothing(Phase::Exited {
                        status: exit.status.clone(),
                        restarts: container.run.restarts,
                    }),
                    Verdict::Restart { run, streak } => {
                        let jitter = jitter(self.moment.jitter_seed, key.as_str(), run.restarts);
                        let due = exit.at.saturating_add(backoff(streak, jitter));
                        let at = self.moment.bounded(due);
                        let status = exit.status.clone();
                        if self.moment.now >= at {
                            Want::Start { cause: Cause::Exited(status), run }
                        } else {
                            Want::Wait(Phase::Restarting { at, status }, at)
                        }
                    }
                },
            },
        }
    }

    /// Gives the kept container what it wants, after the steps `before`.
    fn keep(&mut self, key: &ContainerKey, want: Want, before: Vec<StepNo>) -> Phase {
        match want {
            Want::Nothing(phase) => phase,
            Want::Wait(phase, at) => {
                self.wake(at);
                phase
            }
            Want::Adopt { since, cause } => {
                let action =
                    Action::AdoptMonitor { service: self.key.clone(), container: key.clone() };
                self.step(action, cause, Vec::new());
                Phase::Running { since }
            }
            Want::Start { cause, run } => {
                let container = StartTarget::Existing(key.clone());
                let action = Action::Start { service: self.key.clone(), container, run };
                self.step(action, cause, before);
                Phase::Starting
            }
        }
    }

    /// Puts a new container in the place of the kept one, or keeps that one until this is possible.
    fn replace(
        &mut self,
        wanted: &Service,
        fingerprint: &Fingerprint,
        ready: Option<Digest>,
        cause: Cause,
        kept: Kept<'_>,
        pending: &mut Option<Cause>,
    ) -> Phase {
        let Kept { key, container, want, lost, mut before } = kept;
        let Some(manifest) = ready else {
            let waiting = self.wait_for_image(wanted);
            *pending = Some(cause);
            return if lost { waiting } else { self.keep(key, want, before) };
        };
        if let Gate::Shut(phase, at) = self.create_gate(fingerprint, manifest) {
            self.wake(at);
            *pending = Some(cause);
            return if lost { phase } else { self.keep(key, want, before) };
        }
        // Counters go on when only the files were lost; a changed service begins anew.
        let run = match (&cause, want) {
            (Cause::WritableLayerLost, Want::Start { run, .. }) => run,
            _ => Run { request: self.record.request, ..Run::default() },
        };
        match self.teardown(key, container, &cause) {
            Ok(last) => before.push(last),
            Err(Blocked(phase)) => {
                *pending = Some(cause);
                return phase;
            }
        }
        self.create_and_start(wanted, fingerprint, manifest, &cause, run, before);
        Phase::Starting
    }

    /// Makes the first container, as soon as its image is here.
    fn create(
        &mut self,
        wanted: &Service,
        fingerprint: &Fingerprint,
        ready: Option<Digest>,
        cause: Cause,
        pending: &mut Option<Cause>,
    ) -> Phase {
        let Some(manifest) = ready else {
            *pending = Some(cause);
            return self.wait_for_image(wanted);
        };
        let cause = match self.create_gate(fingerprint, manifest) {
            Gate::Open => cause,
            Gate::Retry(cause) => cause,
            Gate::Shut(phase, at) => {
                self.wake(at);
                return phase;
            }
        };
        let run = Run { request: self.record.request, ..Run::default() };
        self.create_and_start(wanted, fingerprint, manifest, &cause, run, Vec::new());
        Phase::Starting
    }

    fn create_and_start(
        &mut self,
        wanted: &Service,
        fingerprint: &Fingerprint,
        manifest: Digest,
        cause: &Cause,
        run: Run,
        before: Vec<StepNo>,
    ) {
        let create = Action::Create {
            service: self.key.clone(),
            settings: Box::new(wanted.clone()),
            fingerprint: fingerprint.clone(),
            manifest,
            request: run.request,
        };
        let created = self.step(create, cause.clone(), before);
        let container = StartTarget::Created(created);
        let start = Action::Start { service: self.key.clone(), container, run };
        self.step(start, cause.clone(), vec![created]);
    }

    fn wait_for_image(&mut self, wanted: &Service) -> Phase {
        let image = &wanted.image;
        let status = pull_status(image, self.observed.images.get(image), self.moment);
        self.pull = status.start.map(|(attempt, cause)| (image.clone(), attempt, cause));
        if let Some(at) = status.wake_at {
            self.wake(at);
        }
        status.phase
    }

    /// Stops and removes a container; gives the last step.
    fn teardown(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        cause: &Cause,
    ) -> Result<StepNo, Blocked> {
        let operations = [Operation::Adopt, Operation::Stop, Operation::Remove];
        self.check(key, container, &operations)?;
        let ended = self.end(key, container, cause)?;
        let action = Action::Remove { service: self.key.clone(), container: key.clone() };
        Ok(self.step(action, cause.clone(), ended.into_iter().collect()))
    }

    /// Stops a container; gives the step, or nothing if it does not run.
    fn end(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        cause: &Cause,
    ) -> Result<Option<StepNo>, Blocked> {
        self.check(key, container, &[Operation::Adopt, Operation::Stop])?;
        if !matches!(container.state, ContainerState::Running { .. }) {
            return Ok(None);
        }
        let mut requires = Vec::new();
        if container.monitor == Monitor::Lost {
            // The monitor is the one who can stop it, and who sees how it ended.
            let action = Action::AdoptMonitor { service: self.key.clone(), container: key.clone() };
            requires.push(self.step(action, Cause::MonitorLost, Vec::new()));
        }
        let action = Action::Stop { service: self.key.clone(), container: key.clone() };
        Ok(Some(self.step(action, cause.clone(), requires)))
    }

    /// Whether `operations` can be begun on a container now.
    fn check(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        operations: &[Operation],
    ) -> Result<(), Blocked> {
        if let ContainerState::Busy(operation) = container.state {
            return Err(Blocked(Phase::of(operation)));
        }
        if container.monitor == Monitor::Adopting {
            return Err(Blocked(Phase::Stopping));
        }
        match self.gate(key, container, operations) {
            Gate::Shut(phase, at) => {
                self.wake(at);
                Err(Blocked(phase))
            }
            Gate::Open | Gate::Retry(_) => Ok(()),
        }
    }

    /// Whether one of `operations` failed on the container, and may be tried again.
    fn gate(&self, key: &ContainerKey, container: &Container, operations: &[Operation]) -> Gate {
        match &container.failed {
            Some((operation, failure)) if operations.contains(operation) => {
                let at = self.moment.retry_at(key.as_str(), failure.attempts, failure.at);
                if self.moment.now >= at {
                    return Gate::Retry(Cause::Retry(*operation, failure.attempts));
                }
                let reason = format!("{operation}: {}", failure.reason);
                Gate::Shut(Phase::Failed { reason, retry_at: Some(at) }, at)
            }
            _ => Gate::Open,
        }
    }

    /// The same for the creation of a container like this; another one is tried at once.
    fn create_gate(&self, fingerprint: &Fingerprint, manifest: Digest) -> Gate {
        let failed = self.record.create_failure.as_ref().filter(|failed| {
            failed.config == fingerprint.hash()
                && failed.manifest == manifest
                && failed.request == self.record.request
        });
        let Some(failure) = failed.map(|failed| &failed.failure) else { return Gate::Open };
        let at = self.moment.retry_at(&self.key.to_string(), failure.attempts, failure.at);
        if self.moment.now >= at {
            return Gate::Retry(Cause::Retry(Operation::Create, failure.attempts));
        }
        let reason = format!("{}: {}", Operation::Create, failure.reason);
        Gate::Shut(Phase::Failed { reason, retry_at: Some(at) }, at)
    }

    fn step(&mut self, action: Action, cause: Cause, requires: Vec<StepNo>) -> StepNo {
        self.steps.push(Step { action, cause, requires, after: Vec::new() });
        self.steps.len() - 1
    }

    fn wake(&mut self, at: Millis) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// The container that a service keeps, until it is replaced.
struct Kept<'a> {
    key: &'a ContainerKey,
    container: &'a Container,
    want: Want,
    /// It is to start and its writable layer is gone.
    lost: bool,
    /// What must have succeeded before anything of the service starts.
    before: Vec<StepNo>,
}

/// Whether an operation that may have failed can be begun.
enum Gate {
    /// It did not fail.
    Open,
    /// It failed and may be tried again.
    Retry(Cause),
    /// It failed and must wait until this time.
    Shut(Phase, Millis),
}

/// Why the container is not what is wanted, if so.
fn difference(container: &Container, wanted: &Fingerprint, ready: Option<Digest>) -> Option<Cause> {
    let fields = container.fingerprint.changed_fields(wanted);
    if !fields.is_empty() {
        return Some(Cause::FieldsChanged(fields));
    }
    let to = ready.filter(|manifest| *manifest != container.manifest)?;
    Some(Cause::ImageChanged { from: container.manifest, to })
}
