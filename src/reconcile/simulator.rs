//! A host in a few lines: carries out plans on an [`Observed`], with faults where a test wants them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::image::{Digest, ImageRef};
use crate::spec::{Condition, Dependency, ProjectName, RestartPolicy, Service, ServiceName};

/// The host, its clock, and what registries hold.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) observed: Observed,
    pub(super) now: Millis,
    pub(super) registry: BTreeMap<ImageRef, Digest>,
    /// Services as they were last wanted: which conditions a start has to keep, and who has checks.
    wanted: BTreeMap<ServiceKey, Service>,
    serial: u64,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Failed,
    /// A step that it requires did not succeed.
    Skipped,
}

impl Host {
    pub(super) fn new(observed: Observed, registry: BTreeMap<ImageRef, Digest>) -> Self {
        Self { observed, now: 1_000_000, registry, wanted: BTreeMap::new(), serial: 1_000 }
    }

    /// Takes note of what is wanted from now on.
    pub(super) fn know(&mut self, goals: &BTreeMap<ProjectName, Goal>) {
        self.wanted.clear();
        for (project, goal) in goals {
            let Goal::Up(desired) = goal else { continue };
            self.wanted.extend(desired.services.iter().map(|(name, service)| {
                let key = ServiceKey { project: project.clone(), service: name.clone() };
                (key, service.clone())
            }));
        }
    }

    /// Whether what `service` needs of `on` holds, as a host would see it.
    pub(super) fn holds(
        &self,
        service: &ServiceKey,
        on: &ServiceName,
        dependency: &Dependency,
    ) -> bool {
        let key = ServiceKey { project: service.project.clone(), service: on.clone() };
        if !self.wanted.contains_key(&key) {
            return true;
        }
        if self.observed.records.get(&key).is_some_and(|record| record.stopped.is_some()) {
            return false;
        }
        let mut containers = self.ours(&key);
        containers.any(|c| match (&c.state, dependency.condition) {
            (ContainerState::Running { .. }, Condition::Started) => true,
            (ContainerState::Running { .. }, Condition::Healthy) => c.health == Health::Healthy,
            (ContainerState::Exited(exit), Condition::Completed) => {
                exit.status == ExitStatus::Code(0)
            }
            (ContainerState::Exited(_), Condition::Started) => true,
            _ => false,
        })
    }

    /// Lets some time pass in which checks succeed, and programs end that others want the end of. `false` if there
    /// was nothing of that kind.
    pub(super) fn tick(&mut self) -> bool {
        let is_awaited = |key: &ServiceKey| {
            self.wanted.iter().any(|(other, service)| {
                let dependency = service.depends_on.get(&key.service);
                other.project == key.project
                    && dependency.is_some_and(|d| d.condition == Condition::Completed)
            })
        };
        let ends = |key: &ServiceKey| {
            let policy = self.wanted.get(key).map(Service::restart_policy);
            let may_end =
                [Some(RestartPolicy::No), Some(RestartPolicy::OnFailure { max: Some(2) })];
            is_awaited(key) && may_end.contains(&policy)
        };
        let running = self.keys(|c| {
            c.instance == self.observed.instance
                && matches!(c.state, ContainerState::Running { .. })
                && self.wanted.contains_key(&c.service)
        });
        let (ending, others): (BTreeSet<_>, BTreeSet<_>) =
            running.into_iter().partition(|key| ends(&self.observed.containers[key].service));
        for key in &ending {
            self.exit(key, ExitStatus::Code(0));
        }
        let mut changed = !ending.is_empty();
        for key in others {
            let container = self.container(&key);
            if container.health == Health::Starting {
                container.health = Health::Healthy;
                changed = true;
            }
        }
        changed
    }

    pub(super) fn plan(&self, goals: &BTreeMap<ProjectName, Goal>) -> Plan {
        plan(goals, &self.observed, Moment { now: self.now, jitter_seed: 7 })
    }

    /// Carries out `plan`; `fails` says which actions fail.
    pub(super) fn apply(
        &mut self,
        plan: &Plan,
        mut fails: impl FnMut(&Action) -> bool,
    ) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::new();
        let mut created = BTreeMap::new();
        for (number, step) in plan.steps.iter().enumerate() {
            self.now += 1;
            let ready = step.requires.iter().all(|required| outcomes[*required] == Outcome::Done);
            let outcome = if !ready {
                Outcome::Skipped
            } else if fails(&step.action) {
                self.fail(&step.action, &created);
                Outcome::Failed
            } else {
                if let Some(key) = self.carry_out(&step.action, &created) {
                    created.insert(number, key);
                }
                Outcome::Done
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    /// Ends the operations that were under way, all well.
    pub(super) fn settle(&mut self) {
        let now = self.now;
        for container in self.observed.containers.values_mut() {
            if container.monitor == Monitor::Adopting {
                container.monitor = Monitor::Alive;
            }
            let ContainerState::Busy(operation) = container.state else { continue };
            container.state = match operation {
                Operation::Create => ContainerState::Created,
                Operation::Start | Operation::Adopt => {
                    // What runs has files.
                    container.writable = WritableLayer::Usable;
                    ContainerState::Running { since: now }
                }
                Operation::Stop | Operation::Remove => ContainerState::Exited(Exit {
                    status: ExitStatus::Signal(15),
                    at: now,
                    ran_for: 0,
                    asked: true,
                    health: Health::Unchecked,
                }),
            };
        }
        let registry = &self.registry;
        for (image, state) in &mut self.observed.images {
            if matches!(state, ImageState::Pulling { .. }) {
                *state = ImageState::Ready { manifest: registry[image] };
            }
        }
    }

    /// Ends the program of a running container.
    pub(super) fn exit(&mut self, key: &ContainerKey, status: ExitStatus) {
        let now = self.now;
        let container = self.observed.containers.get_mut(key).unwrap();
        let ContainerState::Running { since } = container.state else {
            panic!("{key} does not run")
        };
        let health = container.health.clone();
        let ran_for = now.saturating_sub(since);
        let exit = Exit { status, at: now, ran_for, asked: false, health };
        container.state = ContainerState::Exited(exit);
    }

    fn carry_out(
        &mut self,
        action: &Action,
        created: &BTreeMap<StepNo, ContainerKey>,
    ) -> Option<ContainerKey> {
        let now = self.now;
        match action {
            Action::AdoptMonitor { container, .. } => {
                let container = self.container(container);
                assert_eq!(container.monitor, Monitor::Lost);
                container.monitor = Monitor::Alive;
                container.failed = None;
            }
            Action::Stop { container, .. } => {
                assert_eq!(self.container(container).monitor, Monitor::Alive);
                let key = container.clone();
                self.exit(&key, ExitStatus::Signal(15));
                self.container(&key).failed = None;
                if let ContainerState::Exited(exit) = &mut self.container(&key).state {
                    exit.asked = true;
                }
            }
            Action::Remove { container, .. } => {
                let gone = self.observed.containers.remove(container).unwrap();
                assert!(!matches!(
                    gone.state,
                    ContainerState::Running { .. } | ContainerState::Busy(_)
                ));
            }
            Action::Pull { image, .. } => {
                let manifest = self.registry[image];
                self.observed.images.insert(image.clone(), ImageState::Ready { manifest });
            }
            Action::Create { service, fingerprint, manifest, mounted, request, .. } => {
                assert!(!self.ours(service).any(|_| true), "{service} has a container already");
                self.serial += 1;
                let key = ContainerKey::new(format!("{service}-{}", self.serial));
                let container = Container {
                    instance: self.observed.instance.clone(),
                    service: service.clone(),
                    serial: self.serial,
                    fingerprint: fingerprint.clone(),
                    manifest: *manifest,
                    mounted: mounted.clone(),
                    state: ContainerState::Created,
                    monitor: Monitor::Alive,
                    writable: WritableLayer::Usable,
                    content: Content::Usable,
                    run: Run { request: *request, ..Run::default() },
                    health: Health::Unchecked,
                    stamp: None,
                    with: BTreeMap::new(),
                    failed: None,
                };
                self.observed.containers.insert(key.clone(), container);
                self.observed.records.entry(service.clone()).or_default().create_failure = None;
                return Some(key);
            }
            Action::Start { container, run, service, with } => {
                let key = target(container, created);
                assert!(
                    !self.ours(service).any(|c| matches!(c.state, ContainerState::Running { .. })),
                    "{service} runs already"
                );
                let wanted = self.wanted.get(service).cloned();
                for (on, dependency) in wanted.iter().flat_map(|wanted| &wanted.depends_on) {
                    let holds = !dependency.required || self.holds(service, on, dependency);
                    assert!(holds, "{service} starts without {on}");
                }
                let is_checked = wanted.is_some_and(|wanted| wanted.healthcheck.is_some());
                self.serial += 1;
                let stamp = i64::try_from(self.serial).unwrap();
                let container = self.container(&key);
                assert_eq!(container.writable, WritableLayer::Usable);
                container.run = *run;
                container.stamp = Some(stamp);
                container.with.clone_from(with);
                container.health = if is_checked { Health::Starting } else { Health::Unchecked };
                container.content = Content::Usable;
                container.state = ContainerState::Running { since: now };
                container.failed = None;
            }
        }
        None
    }

    fn fail(&mut self, action: &Action, created: &BTreeMap<StepNo, ContainerKey>) {
        let at = self.now;
        let failure = |attempts| Failure { reason: "injected".into(), at, attempts };
        let (operation, key) = match action {
            Action::AdoptMonitor { container, .. } => (Operation::Adopt, container.clone()),
            Action::Stop { container, .. } => (Operation::Stop, container.clone()),
            Action::Remove { container, .. } => (Operation::Remove, container.clone()),
            Action::Start { container, run, .. } => {
                let key = target(container, created);
                self.container(&key).run = *run;
                (Operation::Start, key)
            }
            Action::Pull { image, attempt, .. } => {
                let fault = PullFault::Unreachable;
                let state = ImageState::Failed { failure: failure(*attempt), fault };
                self.observed.images.insert(image.clone(), state);
                return;
            }
            Action::Create { service, fingerprint, manifest, mounted, request, .. } => {
                let record = self.observed.records.entry(service.clone()).or_default();
                let attempts = record.create_failure.as_ref().map_or(0, |f| f.failure.attempts) + 1;
                record.create_failure = Some(CreateFailure {
                    failure: failure(attempts),
                    config: fingerprint.hash(),
                    manifest: *manifest,
                    mounted: mounted.clone(),
                    request: *request,
                });
                return;
            }
        };
        let container = self.container(&key);
        let before = container.failed.as_ref().filter(|(failed, _)| *failed == operation);
        let attempts = before.map_or(0, |(_, failure)| failure.attempts) + 1;
        container.failed = Some((operation, failure(attempts)));
    }

    pub(super) fn container(&mut self, key: &ContainerKey) -> &mut Container {
        self.observed.containers.get_mut(key).unwrap()
    }

    pub(super) fn ours(&self, service: &ServiceKey) -> impl Iterator<Item = &Container> {
        let observed = &self.observed;
        observed
            .containers
            .values()
            .filter(move |c| c.instance == observed.instance && c.service == *service)
    }

    /// Keys of the containers in `state` of mind: those that `wanted` accepts.
    pub(super) fn keys(&self, wanted: impl Fn(&Container) -> bool) -> BTreeSet<ContainerKey> {
        let containers = self.observed.containers.iter();
        containers.filter(|(_, c)| wanted(c)).map(|(key, _)| key.clone()).collect()
    }
}

fn target(target: &StartTarget, created: &BTreeMap<StepNo, ContainerKey>) -> ContainerKey {
    match target {
        StartTarget::Existing(key) => key.clone(),
        StartTarget::Created(step) => created[step].clone(),
    }
}
