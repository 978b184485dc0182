//! The decision for one service: which of its containers is kept, what is done with it and with the others.

use super::action::{Action, Cause, ServiceStatus, StartTarget, Step, StepNo};
use super::depend::{Readiness, Surroundings};
use super::gate::Gate;
use super::observed::ImageState;
use super::observed::{
    Container, ContainerKey, ContainerState, ManualStop, Observed, Run, ServiceKey, ServiceRecord,
    WritableLayer,
};
use super::phase::StoppedBy;
use super::plan::{Moment, pull_status};
use super::target::{Kept, Target};
use super::want::{Want, Wishes};
use super::{Millis, Phase};
use crate::image::{Digest, ImageRef};
use crate::spec::Service;

/// What is decided for one service. Numbers in its steps count within it.
pub(super) struct Decision {
    pub(super) steps: Vec<Step>,
    pub(super) status: ServiceStatus,
    /// The images to pull, the attempt, and the cause.
    pub(super) pulls: Vec<(ImageRef, u32, Cause)>,
    pub(super) wake_at: Option<Millis>,
}

/// Something stands in the way until it is observed to be gone.
pub(super) struct Blocked(pub(super) Phase);

/// Collects the steps of one service.
pub(super) struct Decider<'a> {
    pub(super) key: &'a ServiceKey,
    observed: &'a Observed,
    pub(super) record: ServiceRecord,
    pub(super) moment: Moment,
    pub(super) around: Surroundings,
    steps: Vec<Step>,
    pulls: Vec<(ImageRef, u32, Cause)>,
    wake_at: Option<Millis>,
}

impl<'a> Decider<'a> {
    pub(super) fn new(
        key: &'a ServiceKey,
        observed: &'a Observed,
        moment: Moment,
        around: Surroundings,
    ) -> Self {
        let record = observed.records.get(key).cloned().unwrap_or_default();
        let (steps, pulls, wake_at) = (Vec::new(), Vec::new(), None);
        Self { key, observed, record, moment, around, steps, pulls, wake_at }
    }

    /// The service should run as `wanted`.
    pub(super) fn up(
        mut self,
        wanted: &Service,
        mut containers: Vec<(&ContainerKey, &Container)>,
    ) -> Decision {
        match self.record.stopped {
            Some(ManualStop::Keep) => {
                return self.stop(&containers, &Cause::ManualStop, StoppedBy::Hand);
            }
            Some(ManualStop::Remove) => return self.down(&containers, &Cause::ManualDown),
            None => {}
        }
        let target = Target::new(wanted, self.observed);
        containers.sort_by_key(|(_, c)| {
            let matches = target.difference(c).is_none();
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
            None => self.create(&target, &mut pending),
            Some((key, container)) => {
                let wishes = Wishes {
                    wanted,
                    record: &self.record,
                    around: &self.around,
                    moment: self.moment,
                };
                let want = Want::of(key, container, &wishes);
                let lost =
                    matches!(want, Want::Start { .. }) && container.writable == WritableLayer::Lost;
                let recreate = container.run.request < self.record.recreate;
                let cause = target
                    .difference(container)
                    .or(recreate.then_some(Cause::Recreate))
                    .or(lost.then_some(Cause::WritableLayerLost));
                match (cause, blocked) {
                    // Two containers of one service never run at once: what they use may be the same.
                    (cause, Some(Blocked(phase)))
                        if matches!(want, Want::Start { .. } | Want::Restart { .. }) =>
                    {
                        pending = cause;
                        phase
                    }
                    (Some(cause), None) => {
                        let kept = Kept { key, container, want, lost, before };
                        self.replace(&target, cause, kept, &mut pending)
                    }
                    (cause, _) => {
                        pending = cause;
                        self.keep(key, container, want, before)
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
        let mut phase = match containers {
            // It was taken down before, and is listed because the project still has it.
            [] => Phase::Stopped { by: StoppedBy::Hand },
            _ => Phase::Removing,
        };
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
        by: StoppedBy,
    ) -> Decision {
        let mut phase = Phase::Stopped { by };
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
        Decision { steps: self.steps, status, pulls: self.pulls, wake_at: self.wake_at }
    }

    /// Gives the kept container what it wants, after the steps `before`.
    fn keep(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        want: Want,
        mut before: Vec<StepNo>,
    ) -> Phase {
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
                Phase::Running { since, health: container.health.clone() }
            }
            Want::Start { cause, run } => match self.held_back() {
                Some(phase) => phase,
                None => {
                    self.start(StartTarget::Existing(key.clone()), run, cause, before);
                    Phase::Starting
                }
            },
            Want::Stop { cause } => match self.end(key, container, &cause) {
                Err(Blocked(phase)) => phase,
                Ok(_) => Phase::Stopping,
            },
            Want::Restart { cause, run } => match self.end(key, container, &cause) {
                Err(Blocked(phase)) => phase,
                Ok(ended) => {
                    before.extend(ended);
                    // What it depends on is looked at again before the second half.
                    if self.around.readiness == Readiness::Met {
                        self.start(StartTarget::Existing(key.clone()), run, cause, before);
                    }
                    Phase::Stopping
                }
            },
        }
    }

    /// Puts a new container in the place of the kept one, or keeps that one until this is possible.
    fn replace(
        &mut self,
        target: &Target<'_>,
        cause: Cause,
        kept: Kept<'_>,
        pending: &mut Option<Cause>,
    ) -> Phase {
        let Kept { key, container, want, lost, mut before } = kept;
        let Some(manifest) = target.ready else {
            let waiting = self.wait_for_image(target);
            *pending = Some(cause);
            return if lost { waiting } else { self.keep(key, container, want, before) };
        };
        if let Gate::Shut(phase, at) = self.create_gate(target, manifest) {
            self.wake(at);
            *pending = Some(cause);
            return if lost { phase } else { self.keep(key, container, want, before) };
        }
        if let Some(phase) = self.held_back() {
            // What runs is better than what could not start, unless what it depends on ends at this moment.
            let ends = matches!(self.around.readiness, Readiness::Waiting { ends: true, .. });
            *pending = Some(cause.clone());
            return match &container.state {
                ContainerState::Running { .. } if ends => match self.end(key, container, &cause) {
                    Err(Blocked(phase)) => phase,
                    Ok(_) => Phase::Stopping,
                },
                ContainerState::Running { .. } | ContainerState::Busy(_) => {
                    self.keep(key, container, want, before)
                }
                ContainerState::Created | ContainerState::Exited(_) => phase,
            };
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
        self.create_and_start(target, manifest, &cause, run, before);
        Phase::Starting
    }

    /// Makes the first container, as soon as its image is here.
    fn create(&mut self, target: &Target<'_>, pending: &mut Option<Cause>) -> Phase {
        let Some(manifest) = target.ready else {
            *pending = Some(Cause::NoContainer);
            return self.wait_for_image(target);
        };
        let cause = match self.create_gate(target, manifest) {
            Gate::Open => Cause::NoContainer,
            Gate::Retry(cause) => cause,
            Gate::Shut(phase, at) => {
                self.wake(at);
                return phase;
            }
        };
        if let Some(phase) = self.held_back() {
            *pending = Some(cause);
            return phase;
        }
        let run = Run { request: self.record.request, ..Run::default() };
        self.create_and_start(target, manifest, &cause, run, Vec::new());
        Phase::Starting
    }

    /// The phase of a service that is to start, as long as one that it depends on keeps it from that.
    fn held_back(&self) -> Option<Phase> {
        match self.around.readiness.clone() {
            Readiness::Met => None,
            Readiness::Waiting { on, why, .. } => Some(Phase::Blocked { on, why }),
            Readiness::Hopeless { on, reason } => Some(Phase::DependencyFailed { on, reason }),
        }
    }

    fn start(&mut self, container: StartTarget, run: Run, cause: Cause, before: Vec<StepNo>) {
        let with = self.around.with.clone();
        let action = Action::Start { service: self.key.clone(), container, run, with };
        self.step(action, cause, before);
    }

    fn create_and_start(
        &mut self,
        target: &Target<'_>,
        manifest: Digest,
        cause: &Cause,
        run: Run,
        before: Vec<StepNo>,
    ) {
        let create = Action::Create {
            service: self.key.clone(),
            settings: Box::new(target.wanted.clone()),
            fingerprint: target.fingerprint.clone(),
            manifest,
            mounted: target.mounted.clone(),
            request: run.request,
        };
        let created = self.step(create, cause.clone(), before);
        self.start(StartTarget::Created(created), run, cause.clone(), vec![created]);
    }

    fn wait_for_image(&mut self, target: &Target<'_>) -> Phase {
        // All that are not here are pulled at once. What keeps one of them from coming is told first.
        let mut told: Option<Phase> = None;
        for image in target.wanted.images() {
            let state = self.observed.images.get(image);
            if matches!(state, Some(ImageState::Ready { .. })) {
                continue;
            }
            let status = pull_status(image, state, self.moment);
            self.pulls.extend(status.start.map(|(attempt, cause)| (image.clone(), attempt, cause)));
            if let Some(at) = status.wake_at {
                self.wake(at);
            }
            if told.as_ref().is_none_or(|phase| matches!(phase, Phase::Pulling { .. })) {
                let is_news = !matches!(status.phase, Phase::Pulling { .. }) || told.is_none();
                told = if is_news { Some(status.phase) } else { told };
            }
        }
        // Never without one: it is only asked for where something is not here.
        told.unwrap_or(Phase::Pulling { percent: None })
    }

    /// Whether a container like this may be created; only another one, or a new request, is tried at once.
    fn create_gate(&self, target: &Target<'_>, manifest: Digest) -> Gate {
        let failed = self.record.create_failure.as_ref().filter(|failed| {
            failed.config == target.fingerprint.hash()
                && failed.manifest == manifest
                && failed.mounted == target.mounted
                && failed.request == self.record.request
        });
        Gate::of_creation(self.moment, self.key, failed)
    }

    pub(super) fn step(&mut self, action: Action, cause: Cause, requires: Vec<StepNo>) -> StepNo {
        self.steps.push(Step { action, cause, requires, after: Vec::new() });
        self.steps.len() - 1
    }

    pub(super) fn wake(&mut self, at: Millis) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}
